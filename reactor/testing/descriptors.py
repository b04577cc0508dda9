"""Simulated descriptors, the calls on them, and the one call that is made to fail.

Every call to the simulated system goes through `call` or `failing`. Both count the call; a signal may arrive before it.
"""

from __future__ import annotations

import errno
import signal
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from sys import _getframe
from typing import Any

from .faults import fail
from .files import End, File
from .hostile import Hostile
from .platforms import STDIO

FIRST_HANDLE, HANDLE_STEP = 400, 4  # sockets on Windows are numbered 400, 404, 408 and so on
# Calls whose failure ends a connection. If any other call fails, the connection stays open.
ENDING = {'recv', 'send', 'sendmsg', 'sendfile', 'getsockopt', 'register', 'modify'}
LOST = ('shutdown', errno.EBADF)
UNREAD = {'recv', 'register', 'modify'}  # if one of these calls fails, bytes that have arrived are not read
# Calls whose errors the reactor ignores. If such a call fails because its descriptor was closed, the reactor does not
# notice. So the number is not reused: otherwise the reactor would go on to use the descriptor of another file.
IGNORED = {'setsockopt', 'getsockname', 'getpeername'}


class Descriptors(Hostile):
    """A kernel with descriptors. `SimKernel` explains `fail` and `lasting`; the other arguments are for `Hostile`."""

    def __init__(self, fail: tuple[int, int] | None, lasting: str | None, *hostile: Any) -> None:
        if lasting not in (None, 'kind', 'descriptor'):
            raise ValueError(f"lasting must be None, 'kind' or 'descriptor', not {lasting!r}")
        super().__init__(*hostile)
        self.files: dict[int, File] = {}
        self.faults.key_of = self.key_of
        self.calls: int = 0
        self.connects: dict[int, End] = {}  # sockets that have begun to connect, until `Ledger` looks at them
        self.reads: dict[File, int] = {}  # bytes, datagrams or clients taken from each file in this turn
        self.on_turn: Callable[[float | None], object] = _nothing
        self.wakeup_fd: int = -1
        self.handlers: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        self.threads: Counter[str] = Counter()  # how many threads of each pool are running
        self.running_thread: int = 1  # signals arrive only in thread 1, the main thread
        self.fails: bool = fail is not None
        self.loses: bool = fail is not None and fail[1] == errno.EBADF
        self.disturbed: bool = False  # other code has closed a descriptor
        self.misled: bool = False  # an event of its file was reported for the handle that has its number now
        self.failed: str = ''  # the name of the call that was made to fail
        self._fail = fail
        self._lasting = lasting
        self._failing: tuple[str, Any] | None = None  # the call that fails from now on, and its target
        self._withheld = -1  # a descriptor number that is not reused
        self._freed: list[int] = []  # a heap of numbers that were closed; some may be in use again

    def call(self, name: str, fd: int) -> None:
        """Count a call to the system; raise OSError if it is made to fail. A signal may arrive before the call."""
        error = self.failing(name, fd)
        if error:
            fail(error)

    def failing(self, name: str, fd: int) -> int:
        """Count a call as `call` does, but return the error number; 0 if the call succeeds."""
        self.calls += 1
        if self.faults.on:
            self.throw_signals()
        file = self.files.get(fd)
        if file is not None:
            file.changed()
        if self._fail is not None and self._is_to_fail(name, fd, self._fail[0]):
            error = self._make_fail(name, fd, self._fail[1])
            return self.lost if error == errno.EBADF else error
        return 0

    def throw_signals(self) -> None:
        """Send signals to the program at random."""
        if self.running_thread != 1:
            return
        if self.faults.falls('signal.interrupt'):
            self.raise_signal(signal.SIGINT)
        if self.faults.falls('signal'):
            handled = [signum for signum, handler in self.handlers.items() if callable(handler) and signum != 2]
            if handled:
                self.raise_signal(self.faults.pick(handled))

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the program. Its handler runs at once: Python runs handlers between two instructions."""
        self.note('signal', -1, signum)
        bell = self.files.get(self.wakeup_fd)
        if isinstance(bell, End) and bell.connected and bell.room() > 0:
            bell.send(bytes((signum,)))
        handler = self.handlers.get(signum)
        if callable(handler):
            handler(signum, _getframe())

    def begin_turn(self, timeout: float | None) -> None:
        """Record that the turn is over: the loop is about to sleep for `timeout` seconds."""
        self.on_turn(timeout)
        self.turns.append(len(self.trace))
        self.reads.clear()

    def file(self, fd: int) -> File:
        """Return the file of a descriptor; fail with EBADF if the descriptor is not open."""
        file = self.files.get(fd)
        if file is None:
            fail(self.lost)
        return file

    def lowest_free(self) -> int:
        """Return the lowest free number, as POSIX requires; fail with EMFILE at the limit."""
        if len(self.files) + STDIO >= self.descriptors:
            self.note(f'EMFILE: all {self.descriptors} descriptors are in use', -1)
            fail(errno.EMFILE)
        first, step = (FIRST_HANDLE, HANDLE_STEP) if self.kind == 'windows' else (STDIO, 1)
        while self._freed and self._freed[0] in self.files:
            heappop(self._freed)
        fd = self._freed[0] if self._freed else first + step * len(self.files)
        while fd in self.files or fd == self._withheld:
            fd += step
        return fd

    def open(self, fd: int, file: File) -> None:
        """Give a descriptor number to a file."""
        self.files[fd] = file

    def replace(self, fd: int, file: File) -> None:
        """Put a file in the place of the file of a descriptor and of its copies: the socket now listens or connects."""
        old = self.files[fd]
        for number in [fd] if old.references == 1 else [each for each in self.files if self.files[each] is old]:
            self.files[number] = file
        old.successor = file
        if file.binding is not None:
            file.binding.file = file
        old.changed()

    def close_fd(self, fd: int) -> None:
        """Close a descriptor; fail with EBADF if it is not open."""
        file = self.file(fd)
        del self.files[fd]
        heappush(self._freed, fd)
        file.changed()
        self.moved('close', fd, file.number)
        file.references -= 1
        if not file.references:
            self.forget(file)
            file.closed()
            file.ready = 0

    def lose_fd(self, fd: int) -> None:
        """Close a descriptor as other code in the process would, without the knowledge of the reactor."""
        self.disturbed = True
        self.close_fd(fd)

    def duplicate(self, fd: int) -> int:
        """Return another descriptor of the same file (`dup`)."""
        file, other = self.file(fd), self.lowest_free()
        file.references += 1
        self.open(other, file)
        return other

    def took(self, file: File, count: int) -> None:
        """Count bytes, datagrams or clients that were taken from a file in this turn."""
        self.reads[file] = self.reads.get(file, 0) + count

    def key_of(self, fd: int) -> int:
        """Return the key of the file of a descriptor: which random numbers decide about it."""
        file = self.files.get(fd)
        return 0 if file is None else file.key

    def _is_to_fail(self, name: str, fd: int, n: int) -> bool:
        if self.calls < n:
            return False
        if self.calls > n and not self._lasting:
            return False
        file = self.files.get(fd)
        what = name, file if self._lasting == 'descriptor' else (type(file), getattr(file, 'private', False))
        if self.calls == n:
            self._failing = what
        return what == self._failing

    def _make_fail(self, name: str, fd: int, error: int) -> int:
        self.failed = name
        self.note(f'{name} is made to fail', fd, errno.errorcode.get(error, error))
        file = self.files.get(fd)
        if file is not None:
            file.refused_at = self.time
        if isinstance(file, End) and (name in UNREAD or error == errno.EBADF):
            file.misled = True
        if isinstance(file, End) and error != errno.EAGAIN and (name in ENDING or (name, error) == LOST):
            file.reported.append(error)
        if file is not None and error == errno.EBADF:
            self.lose_fd(fd)
            # poll and select check a descriptor only when they wait for it, not when it is registered.
            unnoticed = name in ('register', 'modify') and self.kind not in ('epoll', 'kqueue')
            if unnoticed or name in IGNORED:
                self._withheld = fd
            return 0 if unnoticed else error
        if isinstance(file, End) and name == 'shutdown':
            file.cut(errno.ECONNRESET)  # shutdown fails only if the connection no longer exists
        return error


def _nothing(timeout: float | None) -> None:
    pass
