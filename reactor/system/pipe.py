"""Streams over descriptors that are not sockets: the pipes of a child process, and what `open_fd` opens.

They inherit from `Stream`. Instead of a socket, they have a `PipeSocket` or a `FileSocket` made by the kernel object.

A selector reports the writing end of a pipe as readable only when the reading end has been closed.
"""

from __future__ import annotations

from errno import EPIPE
from typing import TYPE_CHECKING, Any

from ..errors import ReactorError
from ..kernel import Kernel
from ..kinds import CheckedStream
from ..loop.checks import shown, switch
from ..loop.descriptor import always_ready, number_of
from ..loop.log import describe
from ..net.options import Callbacks, Options
from ..net.states import ENDED, LINGERING, State
from ..net.stream import Stream
from ..net.writer import SHUT, Writer

if TYPE_CHECKING:
    from ..callbacks import FdOptions, Loop, OnData


class Pipe(Stream):
    """A stream over a pipe or another descriptor. `peername` describes it, such as 'stdin of process 1234'."""

    __slots__ = ()

    def __repr__(self) -> str:
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {self.peername or "unknown"}, '
            f'{self.buffered} bytes wait>'
        )

    def start_tls(self, *args: Any, **options: Any) -> None:  # type: ignore[override]  # accepts any arguments
        """Raise TypeError: a pipe cannot have TLS."""
        raise TypeError(f'start_tls() needs a connection over a socket, not {self!r}')

    @property
    def unread(self) -> bool:
        """Whether there are bytes to read; always False for the writing end of a pipe."""
        return False


class ReadPipe(Pipe):
    """A stream that is only read, such as the output of a child. Writing raises `ConnectionClosed`."""

    __slots__ = ()

    if TYPE_CHECKING:
        writer: Writer | None
        state: State

    def attach(self, sock: Any, deferred: bool = False) -> None:
        super().attach(sock, deferred)
        self.writer = SHUT
        self.state = ENDED

    @property
    def unread(self) -> bool:
        pipe: Any = self.sock
        return pipe is not None and bool(pipe.has_bytes())

    def set_timeouts(self, *, read: float | None = None, write: float | None = None, idle: float | None = None) -> None:
        """Set time limits, see `Stream.set_timeouts`. Raises ValueError for `write`, because this end is only read."""
        if write is not None:
            raise ValueError(f'a write timeout of {shown(write)} cannot apply: {self!r} is only read; use read=')
        super().set_timeouts(read=read, idle=idle)

    def close(self) -> None:
        """Close the pipe now; `on_close(pipe, None)` is called. If a process writes to it again, it gets SIGPIPE."""
        self.abort()


class WritePipe(Pipe):
    """A stream that is only written, such as the input of a child.

    When the reader closes its end or exits, `on_close` is called, with `BrokenPipeError` if buffered bytes were left.
    """

    __slots__ = ()

    def handle_read(self) -> None:
        """Called when the reader has closed its end or exited."""
        if self.sock.hung_up():  # type: ignore[attr-defined]
            lost = f'{self.peername} was closed by its reader while {self.buffered} bytes were waiting'
            self.reset(BrokenPipeError(EPIPE, lost) if self.buffered else None)
        else:
            self.loop.spins.no_progress(self)

    def set_timeouts(self, *, read: float | None = None, write: float | None = None, idle: float | None = None) -> None:
        """Set time limits, see `Stream.set_timeouts`. Raises ValueError for `read`, because this end is only written.

        `idle` limits the time in seconds in which nothing is written.
        """
        if read is not None:
            raise ValueError(f'a read timeout of {shown(read)} cannot apply: {self!r} is only written; use write=')
        super().set_timeouts(write=write, idle=idle)

    def handle_write(self, dispatched: bool = True) -> None:
        super().handle_write(dispatched)
        self._close_when_ended()

    def write_eof(self) -> None:
        """Send the buffered bytes, however long that takes, then close the pipe. The reader then gets end of file."""
        super().write_eof()
        self._close_when_ended()

    def close(self) -> None:
        """Send the buffered bytes within `linger` seconds, then close the pipe. The reader then gets end of file."""
        super().close()
        self._close_when_ended()

    def _close_when_ended(self) -> None:
        if self.state is ENDED or self.state is LINGERING:
            self.reset(None)


class DuplexPipe(Pipe):
    """A stream that is read and written: a terminal, either end of a pty, a serial line.

    A terminal has no half-close: `write_eof` sends the buffered bytes and refuses further writes, but the other side
    gets no end of file. (A program that reads lines takes the byte 4, Ctrl-D, for one.)
    """

    __slots__ = ()

    @property
    def unread(self) -> bool:
        return self.sock is not None and bool(self.sock.has_bytes())  # type: ignore[attr-defined]

    def handle_write(self, dispatched: bool = True) -> None:
        super().handle_write(dispatched)
        self._close_when_sent()

    def close(self) -> None:
        """Send the buffered bytes within `linger` seconds, then close the descriptor."""
        super().close()
        self._close_when_sent()

    def _close_when_sent(self) -> None:
        if self.state is LINGERING:  # a socket would now wait for the end of the other side
            self.reset(None)


class CheckedReadPipe(ReadPipe, CheckedStream):
    """A `ReadPipe` for `Reactor(debug=True)`."""

    __slots__ = ()


class CheckedWritePipe(WritePipe, CheckedStream):
    """A `WritePipe` for `Reactor(debug=True)`."""

    __slots__ = ()


class CheckedDuplexPipe(DuplexPipe, CheckedStream):
    """A `DuplexPipe` for `Reactor(debug=True)`."""

    __slots__ = ()


def open_fd(
    loop: Loop, kernel: Kernel, file: Any, on_data: OnData | None, closefd: bool, options: FdOptions, checked: bool
) -> Pipe:
    """Make a stream over a descriptor; see `Reactor.open_fd`."""
    given: Any = options
    callbacks = {name: given[name] for name in Callbacks.__slots__ if name in given}
    others = {name: value for name, value in given.items() if name not in callbacks}
    settings, streams = Options(**others), Callbacks(on_data, **callbacks)
    fd, closefd = number_of(file), switch('closefd', closefd)
    loop.guard.check()
    key = loop.watchers.selector.get_map().get(fd)
    if key is not None and key.data.fileno() == fd:
        raise ReactorError(f'descriptor {fd} already belongs to {describe(key.data)}; close that first')
    try:
        sock, reads, writes = kernel.open_fd(fd, None if file is fd else file, not closefd)
        if not writes:
            _refuse(fd, 'reading', write_timeout=settings.write_timeout)
        if not reads:
            _refuse(fd, 'writing', read_timeout=settings.read_timeout, on_data=on_data)
        one_way, both_ways = PIPES[checked]
        stream = (both_ways if reads and writes else one_way[writes])(loop, settings, streams, None)
        stream.peer = f'descriptor {fd}'
        stream.attach(sock)  # type: ignore[arg-type]  # it has the methods of a socket that a stream calls
    except PermissionError:
        raise always_ready(fd) from None
    sock.begin()
    return stream


# The classes for descriptors that are only read or only written, and for both; with True, for `Reactor(debug=True)`.
PIPES: dict[bool, tuple[tuple[type[Pipe], type[Pipe]], type[Pipe]]] = {
    False: ((ReadPipe, WritePipe), DuplexPipe),
    True: ((CheckedReadPipe, CheckedWritePipe), CheckedDuplexPipe),
}


def _refuse(fd: int, only: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f'{name}={shown(value)} cannot apply: descriptor {fd} is open for {only} only')
