"""Simulated selectors, with the manners of epoll, poll and select.

Owns the registrations of one selector and the choice of what is told. Knows of files only their `ready` mask. The
rule: each kind keeps the traps of the real one. epoll watches what was opened, not its number: it never reports what
was closed, and reports what was closed while a copy lives for ever, to nobody, or to the handle that has the number by
now. poll reports a closed number for ever, select fails for everybody because of it, and cannot take numbers from 1,024
on. The first two report a hang-up for ever, even to a handle that wants nothing.
"""

from __future__ import annotations

import errno
from math import ceil
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .files import File
    from .kernel import SimKernel

    Ready = list[tuple[SelectorKey, int]]

READ, WRITE = EVENT_READ, EVENT_WRITE
FD_SETSIZE = 1024
KINDS = ('epoll', 'poll', 'select')
LOOPS_FOR_EVER = 'nothing can happen any more, and the loop would sleep for ever'


class SimSelector:
    """What `selectors.BaseSelector` is, on a `SimKernel`."""

    def __init__(self, kernel: SimKernel, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f'a simulated selector is one of {", ".join(KINDS)}, not {kind!r}')
        self._kernel = kernel
        self.kind = kind
        self._keys: dict[int, SelectorKey] = {}
        self._files: dict[int, File] = {}  # what epoll watches, by the number under which it was registered
        self._ghosts: list[tuple[int, File]] = []  # unregistered too late, and a copy lives; with the number it had
        self._closed = False

    def register(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        """As of `selectors`: ValueError for bad events, KeyError when the number is taken, OSError of the system."""
        if not events or events & ~(READ | WRITE):
            raise ValueError(f'invalid events: {events!r}')
        if fd in self._keys:
            raise KeyError(f'{fd} is already registered')
        self._kernel.call('register', fd)
        if self.kind == 'epoll':
            self._files[fd] = self._kernel.file(fd)
        key = self._keys[fd] = SelectorKey(fd, fd, events, data)
        return key

    def modify(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        """Change what is wanted; a number that is not open any more fails with epoll, and is forgotten then."""
        key = self._keys[fd]
        error = self._kernel.failing('modify', fd)
        if not error and self.kind == 'epoll' and self._files[fd] is not self._kernel.files.get(fd):
            error = errno.ENOENT if fd in self._kernel.files else errno.EBADF
        if error:
            self._forget(fd)  # as `selectors` does, while epoll still watches what is open
            raise OSError(error, 'simulated: not registered')
        key = self._keys[fd] = key._replace(events=events, data=data)
        return key

    def unregister(self, fd: int) -> SelectorKey:
        """Forget it; that the system knows it no more is hidden, as `selectors` does."""
        if fd not in self._keys:
            raise KeyError(f'{fd} is not registered')
        self._kernel.note('unregister', fd)
        if self._files.get(fd) is self._kernel.files.get(fd):
            self._files.pop(fd, None)
        return self._forget(fd)

    def get_map(self) -> Mapping[int, SelectorKey]:
        """The registrations by number."""
        return self._keys

    def close(self) -> None:
        """Forget everything."""
        self._keys.clear()
        self._files.clear()
        self._closed = True

    def select(self, timeout: float | None = None) -> Ready:
        """What is ready, at the latest after `timeout` seconds of simulated time. Here alone time passes.

        Raises `Stuck` when nothing can ever happen.
        """
        kernel = self._kernel
        kernel.begin_turn(timeout)
        kernel.call('select', -1)
        until = None if timeout is None else kernel.time + _round_up(max(timeout, 0), self.kind)
        while True:
            kernel.run_due()
            ready = self._ready()
            if ready or self._has_ghost():
                break
            if until is not None and kernel.time >= until:
                break
            if not kernel.sleep_until(until):
                raise Stuck(LOOPS_FOR_EVER)
        return self._told(ready)

    def _ready(self) -> Ready:
        files = self._files if self.kind == 'epoll' else self._kernel.files
        ready: Ready = []
        for fd, key in self._keys.items():
            file = files.get(fd)
            if file is None or not file.references:
                self._judge_closed(key, ready)
            elif file.unread_error:
                ready.append((key, key.events))  # whatever was asked for
            elif (file.ready | file.stuck) & key.events or (file.hung_up and self.kind != 'select'):
                ready.append((key, (file.ready | file.stuck) & key.events))
        for fd, file in self._ghosts:
            # It was registered under a number that is another's by now, and the report is taken for that one's.
            if fd in self._keys and file.references and file.ready & self._keys[fd].events:
                ready.append((self._keys[fd], file.ready & self._keys[fd].events))
        return ready

    def _judge_closed(self, key: SelectorKey, ready: Ready) -> None:
        if self.kind == 'select':
            raise OSError(errno.EBADF, 'simulated: a descriptor among those to select is closed')
        if self.kind == 'poll':
            ready.append((key, key.events))  # POLLNVAL

    def _has_ghost(self) -> bool:
        self._ghosts = [(fd, file) for fd, file in self._ghosts if file.references]
        return any(file.ready for _, file in self._ghosts)

    def _told(self, ready: Ready) -> Ready:
        kernel = self._kernel
        falls, random = kernel.faults.falls, kernel.random
        if falls('select.spurious') and self._keys:
            key = random.choice(list(self._keys.values()))
            if all(key is not told for told, _ in ready):
                ready.append((key, key.events))
        if len(ready) > 1:
            if falls('select.shuffled'):
                random.shuffle(ready)
            if falls('select.some'):
                del ready[random.randrange(1, len(ready)) :]
        if ready:
            kernel.note('ready', -1, [(key.fd, mask) for key, mask in ready])
        return ready

    def _forget(self, fd: int) -> SelectorKey:
        file = self._files.pop(fd, None)
        if file is not None and file.references:
            self._ghosts.append((fd, file))
        return self._keys.pop(fd)


class Stuck(BaseException):
    """The loop waits for what cannot happen. No `Exception`: nobody may take it for an error of a callback."""


def _round_up(seconds: float, kind: str) -> int:
    # epoll and poll count milliseconds, and select microseconds; a wait may be too long but never too short.
    unit = 1_000 if kind == 'select' else 1_000_000
    return ceil(seconds * 1e9 / unit) * unit
