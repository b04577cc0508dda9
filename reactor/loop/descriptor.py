"""Descriptors of others: pipes, foreign sockets, inotify, whatever a selector can wait for.

Owns the interest in a descriptor, never the descriptor: it is not read, not written and not closed here. Knows nothing
of what it is for. The rule: before the user is called it is asked whether the descriptor is still open, since a poll
goes on reporting one that was closed behind our back, and epoll does while a copy of it lives.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from ..errors import HandleClosed
from ..kernel import ONLY_ERROR
from .checks import shown
from .log import log, name_of
from .watcher import READ, WRITE, Handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop
    from ..kernel import Kernel

WANTS = {0: 'nothing', READ: 'READ', WRITE: 'WRITE', READ | WRITE: 'READ|WRITE'}


class Descriptor(Handle):
    """A watched descriptor, as returned by `watch_fd`; `close` ends the watch and leaves the descriptor open."""

    __slots__ = ('_fd', '_file', 'args', 'fn')

    leads_to: tuple[tuple[str, str], ...] = (('handle_read', 'fn'),)

    def __init__(
        self, loop: Loop, kernel: Kernel, file: Any, events: int, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.fn: Callable[..., object] | None = fn
        self.args: tuple[Any, ...] = args
        self._file = file  # held, so that a forgotten socket object is not closed under our feet
        self._fd = _number(file)
        _check_events(events)
        try:
            if kernel.never_blocks(self._fd):
                raise PermissionError
            if events:
                loop.watchers.add(self, events)
            else:
                loop.watchers.park(self)
        except PermissionError:
            raise PermissionError(
                errno.EPERM,
                f'descriptor {self._fd} cannot be watched: a file, a directory and a device such as /dev/null are '
                'always ready; read it in a thread, with run_in_thread()',
            ) from None

    def fileno(self) -> int:
        if type(self._file) is int:
            return self._file
        try:
            # A file object that was opened again has another number, which may be registered for another handle.
            return self._fd if _number(self._file) == self._fd else -1
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return -1  # closed by its owner; a library's object may raise anything then

    def set_events(self, events: int) -> None:
        """Change what is waited for: READ, WRITE, both, or 0 for nothing.

        Raises `HandleClosed` after `close`, `ReactorError` when another handle watches the descriptor meanwhile.
        """
        self.loop.guard.check_thread()
        _check_events(events)
        if self.fn is None:
            raise HandleClosed(f'descriptor {self._fd} is not watched any more; call watch_fd() again')
        self.loop.watchers.set_events(self, events)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        self.loop.guard.check_thread()
        if self.fn is not None:
            self.loop.watchers.remove(self)  # first, as it may find no memory or stack
            self._file = -1
            self.fn, self.args = None, ()

    def handle_read(self) -> None:
        self._ready(READ)

    def handle_write(self) -> None:
        self._ready(WRITE)

    def handle_failed(self, exc: Exception) -> None:
        self.close()  # what it did not read is ready again at once, and so would be the exception

    def handle_lost(self, exc: Exception) -> None:
        log('warning', '%s', exc)
        self.close()

    handle_refused = handle_lost

    def waits_for(self) -> str:
        waits = {0: 'set_events()', READ: 'input', WRITE: 'room for output', READ | WRITE: 'input or room for output'}
        return waits.get(self.events, 'its end')  # there was no memory to watch it

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
            if self.events and kernel.received_memory(self._fd) == before:  # it has left the error where it is
                loop.spins.no_progress(self)
        elif readiness:
            fn(self, event, *self.args)  # type: ignore[misc]  # who is closed wants nothing, and is not called
        else:
            loop.spins.no_progress(self)  # the report was about another descriptor, or is over


def _number(file: Any) -> int:
    fileno = getattr(file, 'fileno', None)
    fd = fileno() if fileno is not None else file
    if type(fd) is not int:
        raise TypeError(f'a descriptor is an int or something with fileno(), not {shown(file)}')
    if not 0 <= fd < 1 << 31:
        raise ValueError(f'{shown(file)} has no open descriptor')
    return fd


def _check_events(events: int) -> None:
    if type(events) is not int or events not in WANTS:
        raise ValueError(f'events are READ, WRITE, READ | WRITE, or 0 for nothing, not {shown(events)}')
