"""Descriptors that belong to the user: pipes, sockets of other libraries, inotify, anything that a selector can watch.

The reactor only watches such a descriptor; it never reads, writes or closes it. Before each call of the user's function
it asks the kernel whether the descriptor is still open and ready. This is needed because epoll keeps reporting a closed
descriptor while a copy of it exists, and `poll` reports closed descriptors too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, HandleClosed
from ..kernel import Kernel
from ..kernel.calls import ONLY_ERROR
from .checks import shown
from .log import log, name_of
from .watcher import READ, WRITE, Handle

if TYPE_CHECKING:
    from ..callbacks import Loop

LOOK_INTERVAL = 0.5  # seconds; buckets round up to whole seconds, so descriptors are checked every second
WANTS = {0: 'nothing', READ: 'READ', WRITE: 'WRITE', READ | WRITE: 'READ|WRITE'}


class Descriptor(Handle):
    """A watched descriptor, as returned by `watch_fd`. `close` ends the watch and leaves the descriptor open."""

    __slots__ = ('_fd', '_file', '_second', 'args', 'fn')

    leads_to: tuple[tuple[str, str], ...] = (('handle_read', 'fn'),)

    def __init__(
        self, loop: Loop, kernel: Kernel, file: Any, events: int, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.fn: Callable[..., object] | None = fn
        self.args: tuple[Any, ...] = args
        self._file = file  # keeps the user's object alive, so that its descriptor is not closed while we watch it
        self._fd = number_of(file)
        _check_events(events)
        self._second = loop.timers.buckets.add(self, loop.now + LOOK_INTERVAL)
        try:
            if kernel.never_blocks(self._fd):
                raise PermissionError
            if events:
                loop.watchers.add(self, events)
            else:
                loop.watchers.park(self)
        except BaseException as exc:
            loop.timers.buckets.discard(self, self._second)
            if not isinstance(exc, PermissionError):
                raise
            raise always_ready(self._fd) from None

    def fileno(self) -> int:
        if type(self._file) is int:
            return self._file
        try:
            # If the user reopened the object, it has a new number, which another handle may have registered.
            return self._fd if number_of(self._file) == self._fd else -1
        except EXHAUSTION:
            raise
        except Exception:
            return -1  # its owner has closed it, and objects of other libraries may then raise any exception

    def set_events(self, events: int) -> None:
        """Change the events that are watched.

        Args:
            events: `reactor.READ`, `reactor.WRITE`, both, or 0 for none.

        Raises:
            ValueError: `events` is something else.
            HandleClosed: The watch has ended.
            ReactorError: Another handle watches the descriptor now, or the caller is outside the loop's thread.
        """
        self.loop.guard.check_thread()
        _check_events(events)
        if self.fn is None:
            raise HandleClosed(f'descriptor {self._fd} is no longer watched; call watch_fd() again')
        self.loop.watchers.set_events(self, events)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        self.loop.guard.check_thread()
        if self.fn is not None:
            self.loop.watchers.remove(self)  # the first step, because memory or stack may run out in it
            if self.loop.watchers.is_lost(self, self._fd):
                self.loop.spins.replace_selector()
            self.loop.timers.buckets.discard(self, self._second)
            self._file = -1
            self.fn, self.args = None, ()

    def handle_read(self) -> None:
        self._ready(READ)

    def handle_write(self) -> None:
        self._ready(WRITE)

    def handle_look(self, now: float) -> None:
        """Called once a second: end the watch if the descriptor was closed, which epoll and kqueue do not report."""
        if self.fn is None:
            return
        if self.loop.watchers.is_lost(self, self._fd):
            self.loop.watchers.evict(self)
        else:
            self._second = self.loop.timers.buckets.add(self, now + LOOK_INTERVAL)

    def handle_failed(self, exc: Exception) -> None:
        self.close()  # otherwise `fn` might raise again in each turn, for bytes that it did not read

    def handle_lost(self, exc: Exception) -> None:
        log('warning', '%s', exc)
        self.close()

    handle_refused = handle_lost

    def waits_for(self) -> str:
        waits = {0: 'set_events()', READ: 'input', WRITE: 'room for output', READ | WRITE: 'input or room for output'}
        return waits.get(self.events, 'its end')  # UNHEARD, if memory ran out while `events` was being changed

    def __repr__(self) -> str:
        if self.closed:
            return f'<Descriptor fd={self._fd} closed>'
        return f'<Descriptor fd={self._fd} wants {WANTS.get(self.events, WANTS[0])}, calls {name_of(self.fn)}>'

    def _ready(self, event: int) -> None:
        loop, kernel, fn = self.loop, self.loop.kernel, self.fn
        if loop.watchers.is_lost(self, self._fd):
            loop.watchers.evict(self)
            return
        readiness = kernel.readiness(self._fd, event)
        if readiness == ONLY_ERROR:
            before = kernel.received_memory(self._fd)
            fn(self, event, *self.args)  # type: ignore[misc]
            if self.events and kernel.received_memory(self._fd) == before:  # `fn` has not read the error queue
                loop.spins.no_progress(self)
        elif readiness:
            fn(self, event, *self.args)  # type: ignore[misc]  # not None: a closed handle wants no events
        else:
            loop.spins.no_progress(self)  # the event was for another descriptor, or this descriptor is no longer ready


def always_ready(fd: int) -> PermissionError:
    """Return the error for a descriptor that a selector cannot wait for."""
    return PermissionError(
        errno.EPERM,
        f'descriptor {fd} cannot be watched: files, directories and devices such as /dev/null are always ready; '
        'read it in a thread, with run_in_thread()',
    )


def number_of(file: Any) -> int:
    """Return the number of a descriptor. Raises TypeError or ValueError if `file` has none."""
    fileno = getattr(file, 'fileno', None)
    fd = fileno() if fileno is not None else file
    if type(fd) is not int:
        raise TypeError(f'a descriptor must be an int or an object with fileno(), not {shown(file)}')
    if not 0 <= fd < 1 << 31:
        raise ValueError(f'{shown(file)} has no open descriptor')
    return fd


def _check_events(events: int) -> None:
    if type(events) is not int or events not in WANTS:
        raise ValueError(f'events must be READ, WRITE, READ | WRITE, or 0 for none, not {shown(events)}')
