"""A simulated epoll selector that reports numbers, like `EventSelector` in `reactor.kernel.polling`."""

from __future__ import annotations

from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

from .poller import Ready, SimSelector, from_epoll

IN, OUT, HUP = 1, 4, 16  # the bits of epoll on Linux
UNREGISTERED = -1  # the `fileobj` in a key for a file that is not registered
BITS = {EVENT_READ: IN, EVENT_WRITE: OUT, EVENT_READ | EVENT_WRITE: IN | OUT}


class SimEventSelector(SimSelector):
    """A selector for a `SimKernel` that reports the events of epoll, for handles under their numbers.

    Unlike `select`, `poll` also reports events of numbers that are not registered, and events that no handle wants.
    """

    reports_numbers: bool = True
    readable: int = IN
    writable: int = OUT

    def __init__(self, kernel: Any, kind: str) -> None:
        super().__init__(kernel, kind)
        self.changed: set[int] = set()
        self._polling = False  # whether `poll` is called, and not `select`

    def register(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        self.changed.add(fd)
        return super().register(fd, events, data)

    def modify(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        self.changed.add(fd)
        return super().modify(fd, events, data)

    def unregister(self, fd: int) -> SelectorKey:
        self.changed.add(fd)
        return super().unregister(fd)

    @property
    def handles(self) -> Any:
        """See `EventSource` in `reactor.kernel.polling`."""
        return self

    def __getitem__(self, fd: int) -> Any:
        return self._keys[fd].data

    def open_handles(self) -> list[Any]:
        """See `EventSource`."""
        return [key.data for key in self._keys.values()]

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Like `select`, but return pairs of a number and the bits that epoll reports."""
        self._polling = True
        try:
            return [(key.fd, self._bits(key, mask)) for key, mask in self.select(timeout)]
        finally:
            self._polling = False

    def events_for(self, event: int, wanted: int) -> int:
        """See `EventSource`. Errors and hang-ups count as both READ and WRITE."""
        mask = (EVENT_READ if event & ~OUT else 0) | (EVENT_WRITE if event & ~IN else 0)
        return mask if mask & wanted or not wanted else 0

    def _bits(self, key: SelectorKey, mask: int) -> int:
        file = self._seen.get(key.fd)
        return BITS[mask] | HUP if key.fileobj != UNREGISTERED and file is not None and file.hung_up else BITS[mask]

    def _look_at_ghosts(self, ready: Ready) -> None:
        if not self._polling:
            super()._look_at_ghosts(ready)
            return
        for fd, events, file in self._ghosts:
            found = from_epoll(file, events)
            if found:
                self.blind = True
                self._kernel.misled |= fd in self._keys
                ready.append((SelectorKey(UNREGISTERED, fd, events, None), found))
