"""Where the loop gets its events: from a selector that reports descriptor numbers, or from any other selector.

A selector of the standard library makes a `SelectorKey` for each registration, and a list of pairs (key, events) for
each poll, over which the loop then iterates again. `EventSelector` leaves both out: it maps each number to its handle,
and the loop reads the events of the kernel. This saves a fifth of the instructions of a request.

The loop uses both kinds in the same way. It polls with `poll`, and finds the handle of the first item of each reported
pair in `handles`.
"""

from __future__ import annotations

import selectors
import sys
from collections.abc import Callable, Iterator, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import TYPE_CHECKING, Any, Protocol

Reports = list[tuple[Any, int]]  # pairs of an item, which is a number or a key, and the events reported for it


class EventSource(Protocol):
    """What the loop polls.

    Attributes:
        poll: Waits for at most this many seconds (None: no limit), and returns what is ready.
        readable, writable: The bits of the reported events.
        changed: The numbers whose registration has changed since they were last cleared. An event of such a number may
            be that of another handle.
    """

    poll: Callable[[float | None], Reports]
    readable: int
    writable: int
    changed: set[int]

    @property
    def handles(self) -> Any:
        """Maps the first item of each reported pair to its handle. Raises KeyError if there is none."""
        ...

    def open_handles(self) -> list[Any]:
        """Return all registered handles."""
        ...

    def events_for(self, event: int, wanted: int) -> int:
        """Return a reported event as READ, WRITE or both. Returns 0 if it was not reported for what is `wanted`."""
        ...


class EventSelector(selectors.DefaultSelector):
    """The default selector of Linux, without a `SelectorKey` for each registration.

    Only handles may be registered, under their number. The loop calls `poll`; `select` and `get_map` are for everything
    else. `poll` returns at most 1,023 events, the default of the kernel object; epoll reports the others first in the
    next poll. A longer timeout than a whole number of milliseconds is rounded up there.
    """

    if TYPE_CHECKING:  # parts of the classes in `selectors`, see `can_report_numbers`
        _selector: Any
        _EVENT_READ: int
        _EVENT_WRITE: int

    def __init__(self) -> None:
        super().__init__()
        self._events = 0, self._EVENT_READ, self._EVENT_WRITE, self._EVENT_READ | self._EVENT_WRITE
        self.poll: Callable[[float | None], Reports] = self._selector.poll
        self.readable: int = self._EVENT_READ
        self.writable: int = self._EVENT_WRITE
        self.changed: set[int] = set()
        self.handles: dict[int, Any] = {}
        self._registered: Registered | None = Registered(self.handles)

    def register(self, fd: int, events: int, handle: Any) -> None:  # type: ignore[override]  # no key is made
        """Watch a descriptor. Raises KeyError if the number is registered, and OSError."""
        handles = self.handles
        if fd in handles:
            raise KeyError(f'{fd} is already registered')
        self.changed.add(fd)
        handles[fd] = handle
        try:
            self._selector.register(fd, self._events[events])
        except BaseException:
            del handles[fd]
            raise

    def modify(self, fd: int, events: int, handle: Any) -> None:  # type: ignore[override]  # no key is made
        """Change the wanted events. If this fails with OSError, the descriptor is no longer watched."""
        self.changed.add(fd)
        try:
            self._selector.modify(fd, self._events[events])
        except BaseException:
            self.handles.pop(fd, None)
            raise

    def unregister(self, fd: int) -> None:  # type: ignore[override]  # no key is made
        """Stop watching a descriptor. Raises KeyError if the number is not registered."""
        self.changed.add(fd)
        del self.handles[fd]
        try:
            self._selector.unregister(fd)
        except OSError:
            pass  # other code has closed it

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait, and return the ready descriptors as any other selector does."""
        ready = []
        for fd, event in self.poll(timeout):
            if fd in self.handles:
                key = self._registered[fd]  # type: ignore[index]  # not None: it is open
                ready.append((key, self.events_for(event, key.events) & key.events))
        return ready

    def open_handles(self) -> list[Any]:
        """See `EventSource`. Making the key of each of 40,000 connections would take 50 ms."""
        return list(self.handles.values())

    def events_for(self, event: int, wanted: int) -> int:
        """See `EventSource`. Errors and hang-ups count as both READ and WRITE."""
        mask = EVENT_READ if event & ~self.writable else 0
        if event & ~self.readable:
            mask |= EVENT_WRITE
        return mask if mask & wanted or not wanted else 0  # a handle that wants nothing was reported before it changed

    def get_map(self) -> Registered | None:  # type: ignore[override]  # it is a mapping
        """Return the registrations, which are made when they are looked up. None after `close`."""
        return self._registered

    def close(self) -> None:
        """Close the selector."""
        super().close()
        self._registered = None
        self.handles.clear()


class Registered(Mapping[int, SelectorKey]):
    """The registrations of an `EventSelector`, by number.

    A key has no events if memory ran out when its handle was being parked or closed. That is about to be finished.
    """

    def __init__(self, handles: dict[int, Any]) -> None:
        self._handles = handles

    def __getitem__(self, fd: int) -> SelectorKey:
        handle = self._handles[fd]
        return SelectorKey(fd, fd, handle.events & (EVENT_READ | EVENT_WRITE), handle)

    def __iter__(self) -> Iterator[int]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


class KeySource:
    """The events of any other selector, which reports the `SelectorKey` of each ready descriptor."""

    readable: int = EVENT_READ
    writable: int = EVENT_WRITE

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.poll: Callable[[float | None], Reports] = selector.select
        self.changed: set[int] = set()  # always empty: a key names its handle
        self._map = selector.get_map()

    @property
    def handles(self) -> Any:
        """See `EventSource`."""
        return self

    def __getitem__(self, key: SelectorKey) -> Any:
        return key.data

    def open_handles(self) -> list[Any]:
        """See `EventSource`."""
        return [key.data for key in self._map.values()]

    def events_for(self, event: int, wanted: int) -> int:
        """See `EventSource`. The selector has already compared the events with the registration."""
        return event


def can_report_numbers() -> bool:
    """Return whether `EventSelector` works: on Linux, while the class in `selectors` has the parts that it uses."""
    parts = '_selector_cls', '_EVENT_READ', '_EVENT_WRITE', 'fileno'
    return sys.platform == 'linux' and all(hasattr(selectors.DefaultSelector, name) for name in parts)
