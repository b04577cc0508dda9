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

    reports_numbers: bool = False  # as keys do; see `EventSelector` in `reactor.kernel.polling`

    def __init__(self, kernel: Descriptors, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f'unknown kind of simulated selector: {kind!r}; choose one of {", ".join(KINDS)}')
        self._kernel = kernel
        self.kind = kind
        self._keys: dict[int, SelectorKey] = {}
        self._files: dict[int, File] = {}  # the files that epoll watches, by the numbers they were registered with
        # (number, events, file): files that epoll still watches. They were unregistered too late, and a copy is open.
        self._ghosts: list[tuple[int, int, File]] = []
        self._filters: dict[tuple[int, int], File] = {}  # the files that kqueue watches, by number and direction
        self._orphans: set[int] = set()  # numbers with a filter of kqueue whose registration failed
        # A poll looks only at numbers that were reported last time, or whose registration or file has changed.
        self._hot: dict[int, None] = {}
        self._order: dict[int, int] = {}  # numbers in the order of registration
        self._registered = 0
        self._changed: dict[File, None] = {}
        self._seen: dict[int, File] = {}  # the file that each number had when it was looked at
        self._numbers: dict[File, dict[int, None]] = {}  # the inverse of `_seen`
        kernel.audience.append(self._changed)
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
        self._registered += 1
        self._order[fd], self._hot[fd] = self._registered, None
        return key

    def modify(self, fd: int, events: int, data: Any = None) -> SelectorKey:
        """Change the wanted events. With epoll, this fails and unregisters the descriptor if it was closed."""
        key = self._keys[fd]
        if self.kind == 'kqueue':
            return self._modify_filters(key, events, data)
        if events == key.events:  # then `selectors` makes no call
            key = self._keys[fd] = key._replace(data=data)
            return key
        error = self._kernel.failing('modify', fd)
        if not error and self.kind == 'epoll' and self._files[fd].latest() is not self._kernel.files.get(fd):
            error = errno.ENOENT if fd in self._kernel.files else errno.EBADF
        if error:
            self._forget(fd)  # as in `selectors`; epoll still watches the file if a copy is open
            raise OSError(error, 'simulated: not registered')
        key = self._keys[fd] = key._replace(events=events, data=data)
        self._hot[fd] = None
        return key

    def unregister(self, fd: int) -> SelectorKey:
        """Stop watching a descriptor. Like `selectors`, this ignores errors from the system."""
        if fd not in self._keys:
            raise KeyError(f'{fd} is not registered')
        self._kernel.note('unregister', fd)
        if fd in self._files and self._files[fd].latest() is self._kernel.files.get(fd):
            del self._files[fd]
        for event in READ, WRITE:
            self._filters.pop((fd, event), None)
        return self._forget(fd)

    def get_map(self) -> Mapping[int, SelectorKey]:
        """Return the registrations by descriptor number."""
        return self._keys

    def is_ready(self) -> bool:
        """Return whether a poll would return at once."""
        try:
            return bool(self._ready()) or self._has_ghost()
        except OSError:
            return True  # the poll will fail

    def close(self) -> None:
        """Stop watching all descriptors."""
        for each in self._keys, self._files, self._filters, self._hot, self._order, self._seen, self._numbers:
            each.clear()
        self._ghosts.clear()
        self._kernel.audience = [files for files in self._kernel.audience if files is not self._changed]
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
            kernel.run_others()
            ready = self._ready()
            if ready:
                return ready
            if self._has_ghost():
                self.blind = True
                return ready
            if until is not None and kernel.time >= until:
                return ready
            if not kernel.sleep_until(kernel.first_wake(until)):
                raise Stuck(SLEEPS_FOR_EVER)

    def _ready(self) -> Ready:
        for file in self._changed:
            self._hot.update(self._numbers.get(file, {}))
        self._changed.clear()
        ready: Ready = []
        for fd in sorted(self._hot, key=self._order.__getitem__):
            self._see(fd)
            count = len(ready)
            if self.kind == 'kqueue':
                self._look_at_filters(self._keys[fd], ready)
            else:
                self._look_at(self._keys[fd], ready)
            if len(ready) == count:
                del self._hot[fd]
        self._look_at_ghosts(ready)
        return ready

    def _look_at_ghosts(self, ready: Ready) -> None:
        for fd, events, file in self._ghosts:
            # If the old number is registered again, epoll's report seems to be about the new file. `selectors` reports
            # it even if the new file is registered for other events only, which leaves none.
            found = from_epoll(file, events)
            if found and fd in self._keys:
                self.blind = self._kernel.misled = True
                ready.append((self._keys[fd], found & self._keys[fd].events))

    def _look_at(self, key: SelectorKey, ready: Ready) -> None:
        file = self._seen.get(key.fd)
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

    def _see(self, fd: int) -> None:
        """Record the file of a registered number: epoll watches one file, the others whatever has the number."""
        file = (self._files if self.kind == 'epoll' else self._kernel.files).get(fd)
        if file is not None and file.successor is not None:
            file = self._files[fd] = file.latest()
        if file is not self._seen.get(fd):
            self._lose_sight(fd)
            if file is not None:
                self._seen[fd] = file
                self._numbers.setdefault(file, {})[fd] = None

    def _lose_sight(self, fd: int) -> None:
        file = self._seen.pop(fd, None)
        if file is not None:
            numbers = self._numbers[file]
            del numbers[fd]
            if not numbers:
                del self._numbers[file]

    def _judge_closed(self, key: SelectorKey, ready: Ready) -> None:
        if self.kind == 'select':
            raise OSError(errno.EBADF, 'simulated: a registered descriptor is closed')
        if self.kind == 'windows':
            raise OSError(errno.ENOTSOCK, 'simulated: a registered descriptor is not a socket')
        if self.kind == 'poll':
            ready.append((key, key.events))  # POLLNVAL

    def _has_ghost(self) -> bool:
        ghosts = [(fd, events, file.latest()) for fd, events, file in self._ghosts]
        self._ghosts = [ghost for ghost in ghosts if ghost[2].references]
        self._orphans = {fd for fd in self._orphans if fd not in self._keys}
        if any(map(self._is_orphan_ready, self._orphans)):
            return True
        return any(from_epoll(file, events) for _, events, file in self._ghosts)

    # -- kqueue

    def _add_filters(self, fd: int, events: int) -> None:
        for event in READ, WRITE:
            if events & event:
                self._orphans.add(fd)  # until the registration is complete
                self._kernel.call('register', fd)
                file = self._kernel.file(fd)
                self._filters[fd, event] = file

    def _is_orphan_ready(self, fd: int) -> bool:
        file = self._kernel.files.get(fd)
        return any(file is self._filters.get((fd, event)) and file.ready & event for event in (READ, WRITE) if file)

    def _modify_filters(self, key: SelectorKey, events: int, data: Any) -> SelectorKey:
        # The steps of `BaseSelector.modify`, which `KqueueSelector` inherits.
        if events == key.events:
            key = self._keys[key.fd] = key._replace(data=data)
            self._hot[key.fd] = None
            return key
        self.unregister(key.fd)
        return self.register(key.fd, events, data)

    def _look_at_filters(self, key: SelectorKey, ready: Ready) -> None:
        for event in READ, WRITE:
            file = self._filters.get((key.fd, event))
            if file is None:
                continue
            if self._seen.get(key.fd) is not file:
                del self._filters[key.fd, event]
            elif (file.ready | file.stuck) & event and not isinstance(file, Unborn):
                ready.append((key, event & key.events))

    # -- Windows

    def _check_sets(self) -> None:
        if not self._keys:
            raise OSError(errno.EINVAL, 'simulated: no descriptor is registered')
        if len(self._keys) <= MOST_SOCKETS:
            return
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
        faults, falls = kernel.faults, kernel.faults.falls
        if falls('select.spurious') and self._keys:
            key = faults.pick(list(self._keys.values()))
            if all(key is not each for each, _ in ready):
                one = key.events & READ if self.kind == 'kqueue' else 0
                ready.append((key, one or key.events))
        if len(ready) > 1:
            if falls('select.shuffled'):
                faults.shuffle(ready)
            if falls('select.some'):
                del ready[faults.between(1, len(ready)) :]
        if ready:
            kernel.note('ready', -1, [(key.fd, mask) for key, mask in ready])
        return ready

    def _forget(self, fd: int) -> SelectorKey:
        self._hot.pop(fd, None)
        self._order.pop(fd, None)
        self._lose_sight(fd)
        file = self._files.pop(fd, None)
        key = self._keys.pop(fd)
        if file is not None and file.references:
            self._ghosts.append((fd, key.events, file))
        return key


class Stuck(BaseException):
    """The loop is waiting, but no event is left that could wake it.

    This is not an `Exception`, so it is not caught like a callback's error.
    """


def _round_up(seconds: float, kind: str) -> int:
    # epoll and poll count in milliseconds, select in microseconds, kqueue in nanoseconds. A wait is never too short.
    unit = {'select': 1_000, 'kqueue': 1}.get(kind, 1_000_000)
    return ceil(seconds * 1e9 / unit) * unit


def from_epoll(file: File, events: int) -> int:
    # epoll reports a hang-up whatever events are wanted, and `selectors` takes it for both.
    if not file.references:
        return 0
    return READ | WRITE if file.hung_up else (file.ready | file.stuck) & events


def _on_windows(file: File) -> int:
    if isinstance(file, Unborn):
        return 0
    if isinstance(file, End) and file.refused:
        return WRITE
    return file.ready | file.stuck
