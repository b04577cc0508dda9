"""Simulated selectors that behave like epoll, poll, select, kqueue, and select on Windows, including their traps.

epoll watches the open file, not the descriptor number. It does not report a closed file. If a descriptor is closed
while a copy of it is open, epoll reports the file for ever, under the old number. No handle has that number any more,
or the number now belongs to another handle. poll reports a closed number for ever. select fails for all descriptors if
one number is closed, and supports only numbers below 1,024. epoll and poll report a hang-up for ever, even if no events
are wanted.

kqueue has a filter for each direction (`KqueueSelector` in CPython's Lib/selectors.py): a descriptor that is readable
and writable is reported in two entries of one batch. Filters vanish with their descriptor, even if copies of it are
open (kqueue(2)). So a closed number is never reported. A number that is in use again can be modified, and then the new
file is watched. Registering for both directions takes two calls. If the second call fails, the first filter stays, but
its events reach no handle.

Windows has `select` for at most 512 sockets in each direction. It fails with ENOTSOCK if one of them is closed, and
with EINVAL if there are none. A failed connect is only in the exception set, which `SelectSelector` reports as
writable: such a socket is never readable (select in the Winsock reference; `_select` in Lib/selectors.py).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from math import ceil
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

from .descriptors import Descriptors
from .files import End, File, Unborn
from .platforms import KINDS

Ready = list[tuple[SelectorKey, int]]

READ, WRITE = EVENT_READ, EVENT_WRITE
FD_SETSIZE = 1024
MOST_SOCKETS = 512  # FD_SETSIZE of CPython on Windows, where it limits the number of sockets
SLEEPS_FOR_EVER = 'no event is left to wait for, so the loop would sleep for ever'


class SimSelector:
    """A selector for a `SimKernel`, with the methods of the selectors in the module `selectors`."""

    def __init__(self, kernel: Descriptors, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f'unknown kind of simulated selector: {kind!r}; choose one of {", ".join(KINDS)}')
        self._kernel = kernel
        self.kind = kind
        self._keys: dict[int, SelectorKey] = {}
        self._files: dict[int, File] = {}  # the files that epoll watches, by the numbers they were registered with
        # Files that epoll still watches, with their old numbers: they were unregistered too late, and a copy is open.
        self._ghosts: list[tuple[int, File]] = []
        self._filters: dict[tuple[int, int], File] = {}  # the files that kqueue watches, by number and direction
        self.blind: bool = False  # the selector has woken the loop for an event that it cannot report
        self._closed = False

    def register(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        """Watch a descriptor.

        Raises, like `selectors`, ValueError for bad events, KeyError if the number is registered, and OSError.
        """
        if not events or events & ~(READ | WRITE):
            raise ValueError(f'invalid events: {events!r}')
        if fd in self._keys:
            raise KeyError(f'{fd} is already registered')
        if self.kind == 'kqueue':
            self._add_filters(fd, events)
        else:
            self._kernel.call('register', fd)
        if self.kind == 'epoll':
            self._files[fd] = self._kernel.file(fd)
        key = self._keys[fd] = SelectorKey(fd, fd, events, data)
        return key

    def modify(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        """Change the wanted events. With epoll, this fails and unregisters the descriptor if it was closed."""
        key = self._keys[fd]
        if self.kind == 'kqueue':
            return self._modify_filters(key, events, data)
        error = self._kernel.failing('modify', fd)
        if not error and self.kind == 'epoll' and self._files[fd] is not self._kernel.files.get(fd):
            error = errno.ENOENT if fd in self._kernel.files else errno.EBADF
        if error:
            self._forget(fd)  # as in `selectors`; epoll still watches the file if a copy is open
            raise OSError(error, 'simulated: not registered')
        key = self._keys[fd] = key._replace(events=events, data=data)
        return key

    def unregister(self, fd: int) -> SelectorKey:
        """Stop watching a descriptor. Like `selectors`, this ignores errors from the system."""
        if fd not in self._keys:
            raise KeyError(f'{fd} is not registered')
        self._kernel.note('unregister', fd)
        if self._files.get(fd) is self._kernel.files.get(fd):
            self._files.pop(fd, None)
        for event in READ, WRITE:
            self._filters.pop((fd, event), None)
        return self._forget(fd)

    def get_map(self) -> Mapping[int, SelectorKey]:
        """Return the registrations by descriptor number."""
        return self._keys

    def close(self) -> None:
        """Stop watching all descriptors."""
        self._keys.clear()
        self._files.clear()
        self._filters.clear()
        self._closed = True

    def select(self, timeout: float | None = None) -> Ready:
        """Return ready descriptors, after at most `timeout` seconds of simulated time.

        Simulated time passes here. Raises `Stuck` if no event is left that could end the wait.
        """
        kernel = self._kernel
        kernel.begin_turn(timeout)
        try:
            return self._report(self._wait(timeout))
        finally:
            kernel.woke_at = kernel.time

    def _wait(self, timeout: float | None) -> Ready:
        kernel = self._kernel
        kernel.call('select', -1)
        if self.kind == 'windows':
            self._check_sets()
        until = None if timeout is None else self._end_of_wait(max(timeout, 0))
        while True:
            kernel.run_due()
            ready = self._ready()
            if ready:
                return ready
            if self._has_ghost():
                self.blind = True
                return ready
            if until is not None and kernel.time >= until:
                return ready
            if not kernel.sleep_until(until):
                raise Stuck(SLEEPS_FOR_EVER)

    def _ready(self) -> Ready:
        if self.kind == 'kqueue':
            return self._ready_filters()
        files = self._files if self.kind == 'epoll' else self._kernel.files
        ready: Ready = []
        for fd, key in self._keys.items():
            file = files.get(fd)
            if file is None or not file.references:
                self._judge_closed(key, ready)
            elif self.kind == 'windows':
                mask = _on_windows(file) & key.events
                if mask:
                    ready.append((key, mask))
            elif file.unread_error:
                ready.append((key, key.events))  # an error is reported as all wanted events
            elif (file.ready | file.stuck) & key.events or (file.hung_up and self.kind != 'select'):
                everything = file.hung_up and self.kind != 'select'  # EPOLLHUP counts as all wanted events
                ready.append((key, key.events if everything else (file.ready | file.stuck) & key.events))
        for fd, file in self._ghosts:
            # If the old number is registered again, epoll's report seems to be about the new file.
            if fd in self._keys and file.references and file.ready & self._keys[fd].events:
                ready.append((self._keys[fd], file.ready & self._keys[fd].events))
        return ready

    def _judge_closed(self, key: SelectorKey, ready: Ready) -> None:
        if self.kind == 'select':
            raise OSError(errno.EBADF, 'simulated: a registered descriptor is closed')
        if self.kind == 'windows':
            raise OSError(errno.ENOTSOCK, 'simulated: a registered descriptor is not a socket')
        if self.kind == 'poll':
            ready.append((key, key.events))  # POLLNVAL

    def _has_ghost(self) -> bool:
        self._ghosts = [(fd, file) for fd, file in self._ghosts if file.references]
        orphans = [file.ready & event for (fd, event), file in self._filters.items() if fd not in self._keys]
        return any(orphans) or any(file.ready for _, file in self._ghosts)

    # -- kqueue

    def _add_filters(self, fd: int, events: int) -> None:
        for event in READ, WRITE:
            if events & event:
                self._kernel.call('register', fd)
                file = self._kernel.file(fd)
                self._filters[fd, event] = file

    def _modify_filters(self, key: SelectorKey, events: int, data: Any) -> SelectorKey:
        # The steps of `BaseSelector.modify`, which `KqueueSelector` inherits.
        if events == key.events:
            key = self._keys[key.fd] = key._replace(data=data)
            return key
        self.unregister(key.fd)
        return self.register(key.fd, events, data)

    def _ready_filters(self) -> Ready:
        files, ready = self._kernel.files, []
        self._filters = {(fd, event): file for (fd, event), file in self._filters.items() if files.get(fd) is file}
        for (fd, event), file in self._filters.items():
            key = self._keys.get(fd)
            if key is not None and (file.ready | file.stuck) & event and not isinstance(file, Unborn):
                ready.append((key, event & key.events))
        return ready

    # -- Windows

    def _check_sets(self) -> None:
        if not self._keys:
            raise OSError(errno.EINVAL, 'simulated: no descriptor is registered')
        for event in READ, WRITE:
            if sum(1 for key in self._keys.values() if key.events & event) > MOST_SOCKETS:
                raise ValueError('too many file descriptors in select()')

    def _end_of_wait(self, timeout: float) -> int:
        now, tick = self._kernel.time, self._kernel.tick
        if self.kind != 'windows':
            return now + _round_up(timeout, self.kind)
        if not timeout:
            return now
        # A wait begins at the last tick and ends at a tick, so it may be up to a tick too short ("Remarks" of Sleep in
        # the Windows API reference).
        until = now // tick * tick + ceil(timeout * 1e9 / tick) * tick
        return until if until > now else until + tick

    def _report(self, ready: Ready) -> Ready:
        kernel = self._kernel
        falls, random = kernel.faults.falls, kernel.random
        if falls('select.spurious') and self._keys:
            key = random.choice(list(self._keys.values()))
            if all(key is not each for each, _ in ready):
                one = key.events & READ if self.kind == 'kqueue' else 0
                ready.append((key, one or key.events))
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
    """The loop is waiting, but no event is left that could wake it.

    This is not an `Exception`, so it is not caught like a callback's error.
    """


def _round_up(seconds: float, kind: str) -> int:
    # epoll and poll count in milliseconds, select in microseconds, kqueue in nanoseconds. A wait is never too short.
    unit = {'select': 1_000, 'kqueue': 1}.get(kind, 1_000_000)
    return ceil(seconds * 1e9 / unit) * unit


def _on_windows(file: File) -> int:
    if isinstance(file, Unborn):
        return 0
    if isinstance(file, End) and file.refused:
        return WRITE
    return file.ready | file.stuck
