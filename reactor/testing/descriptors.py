"""Simulated descriptors, the calls on them, and the call that is made to fail.

Every call to the simulated system goes through `call` or `failing`, where it is counted, and where a signal may come.
"""

from __future__ import annotations

import errno
import signal
from sys import _getframe

from .faults import fail
from .files import End
from .network import Network
from .platforms import STDIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .files import File

FIRST_HANDLE, HANDLE_STEP = 400, 4  # of Windows, whose sockets have such numbers
# Calls whose failure is the end of a connection; what others say of it is not.
ENDING = {'recv', 'send', 'sendmsg', 'sendfile', 'getsockopt', 'register', 'modify'}
LOST = ('shutdown', errno.EBADF)
UNREAD = {'recv', 'register', 'modify'}  # what arrived before is not read then
# Calls that nobody needs to succeed. Who lost his descriptor there cannot know it, so its number is not given again: he
# would use what is another's, and nothing could prevent that.
UNHEARD = {'setsockopt', 'getsockname', 'getpeername'}


class Descriptors(Network):
    """A kernel whose descriptors are simulated. `fail` and `lasting` are explained at `SimKernel`.

    network  the arguments of `Network`
    """

    def __init__(self, fail: tuple[int, int] | None, lasting: str | None, *network: Any) -> None:
        if lasting not in (None, 'kind', 'descriptor'):
            raise ValueError(f"lasting is None, 'kind' or 'descriptor', not {lasting!r}")
        super().__init__(*network)
        self.files: dict[int, File] = {}
        self.calls: int = 0
        self.reads: dict[File, int] = {}  # in this turn, of each file: bytes, datagrams, clients
        self.on_turn: Callable[[float | None], object] = _nothing
        self.wakeup_fd: int = -1
        self.handlers: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        self.running_thread: int = 1  # signals come in the first, the main thread, alone
        self.fails: bool = fail is not None
        self.loses: bool = fail is not None and fail[1] == errno.EBADF
        self.failed: str = ''  # the name of the call that was made to fail
        self._fail = fail
        self._lasting = lasting
        self._failing: tuple[str, Any] | None = None  # what fails from now on
        self._withheld = -1  # a number that is not given again

    def call(self, name: str, fd: int) -> None:
        """Every call to the system comes by here: it is counted, may be the one that fails, or be met by a signal."""
        error = self.failing(name, fd)
        if error:
            fail(error)

    def failing(self, name: str, fd: int) -> int:
        """The same for calls that return their error."""
        self.calls += 1
        if self.faults.on:
            self.throw_signals()
        if self._fail is not None and self._is_to_fail(name, fd, self._fail[0]):
            error = self._make_fail(name, fd, self._fail[1])
            return self.lost if error == errno.EBADF else error
        return 0

    def throw_signals(self) -> None:
        """Signals come when they like."""
        if self.running_thread != 1:
            return
        if self.faults.falls('signal.interrupt'):
            self.raise_signal(signal.SIGINT)
        if self.faults.falls('signal'):
            handled = [signum for signum, handler in self.handlers.items() if callable(handler) and signum != 2]
            if handled:
                self.raise_signal(self.random.choice(handled))

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the program; the handler runs at once, as Python runs them between two instructions."""
        self.note('signal', -1, signum)
        bell = self.files.get(self.wakeup_fd)
        if isinstance(bell, End) and bell.connected and bell.room() > 0:
            bell.send(bytes((signum,)))
        handler = self.handlers.get(signum)
        if callable(handler):
            handler(signum, _getframe())

    def begin_turn(self, timeout: float | None) -> None:
        """The loop is about to sleep: the turn is over."""
        self.on_turn(timeout)
        self.reads.clear()

    def file(self, fd: int) -> File:
        """What a descriptor stands for; EBADF when it is not open."""
        file = self.files.get(fd)
        if file is None:
            fail(self.lost)
        return file

    def lowest_free(self) -> int:
        """The lowest number that is free, as POSIX has it; EMFILE at the limit."""
        if len(self.files) + STDIO >= self.descriptors:
            fail(errno.EMFILE)
        fd, step = (FIRST_HANDLE, HANDLE_STEP) if self.kind == 'windows' else (STDIO, 1)
        while fd in self.files or fd == self._withheld:
            fd += step
        return fd

    def open(self, fd: int, file: File) -> None:
        """Give a number to a file."""
        self.files[fd] = file

    def close_fd(self, fd: int) -> None:
        """Close a descriptor; EBADF when it is not open."""
        file = self.file(fd)
        del self.files[fd]
        self.moved('close', fd, file.number)
        file.references -= 1
        if not file.references:
            self.forget(file)
            file.closed()
            file.ready = 0

    def duplicate(self, fd: int) -> int:
        """Another number for the same file (`dup`)."""
        file, other = self.file(fd), self.lowest_free()
        file.references += 1
        self.open(other, file)
        return other

    def took(self, file: File, count: int) -> None:
        """So much was taken from a file in this turn: bytes of a connection, datagrams, clients."""
        self.reads[file] = self.reads.get(file, 0) + count

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
            self.close_fd(fd)
            # Neither poll nor select looks at what is registered; they find out when they are to wait for it.
            untold = name in ('register', 'modify') and self.kind not in ('epoll', 'kqueue')
            if untold or name in UNHEARD:
                self._withheld = fd
            return 0 if untold else error
        if isinstance(file, End) and name == 'shutdown':
            file.cut(errno.ECONNRESET)  # it fails only when there is no connection any more
        return error


def _nothing(timeout: float | None) -> None:
    pass
