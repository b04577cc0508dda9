"""Streams over the pipes of a child process.

A pipe is one-way; otherwise it behaves like `Stream`, from which it inherits. Instead of a socket, it has a
`PipeSocket` made by the kernel object.

A selector reports the writing end of a pipe as readable only when the reading end has been closed.
"""

from __future__ import annotations

from errno import EPIPE
from typing import TYPE_CHECKING, Any

from ..kinds import CheckedStream
from ..loop.checks import shown
from ..net.states import ENDED, LINGERING, State
from ..net.stream import Stream
from ..net.writer import SHUT, Writer


class Pipe(Stream):
    """One end of a pipe. `peername` describes the other end, such as 'stdin of process 1234'."""

    __slots__ = ()

    def __repr__(self) -> str:
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {self.peername or "unknown"}, '
            f'{self.buffered} bytes wait>'
        )

    def start_tls(self, *args: Any, **options: Any) -> None:  # type: ignore[override]  # accepts any arguments
        """Raise TypeError: a pipe cannot have TLS."""
        raise TypeError(f'start_tls needs a connection; {self!r} is a pipe, which is one-way')

    @property
    def unread(self) -> bool:
        """Whether there are unread bytes from the child; always False for a pipe that the child reads."""
        return False


class ReadPipe(Pipe):
    """A stream from the output of a child, with `on_data`, `on_eof`, `on_close`. Writing raises `ConnectionClosed`."""

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
        """Close the pipe now; `on_close(pipe, None)` is called. If the child writes again, it gets SIGPIPE."""
        self.abort()


class WritePipe(Pipe):
    """A stream to the input of a child, with `write`, `on_drain`, `on_close`.

    When the child closes its end or exits, `on_close` is called, with `BrokenPipeError` if buffered bytes were left.
    """

    __slots__ = ()

    def handle_read(self) -> None:
        """Called when the child has closed its end or exited."""
        if self.sock.hung_up():  # type: ignore[attr-defined]
            lost = f'{self.peername} was closed by the child while {self.buffered} bytes were waiting'
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
        """Send the buffered bytes, however long that takes, then close the pipe. The child then reads end of file."""
        super().write_eof()
        self._close_when_ended()

    def close(self) -> None:
        """Send the buffered bytes within `linger` seconds, then close the pipe. The child then reads end of file."""
        super().close()
        self._close_when_ended()

    def _close_when_ended(self) -> None:
        if self.state is ENDED or self.state is LINGERING:
            self.reset(None)


class CheckedReadPipe(ReadPipe, CheckedStream):
    """A `ReadPipe` for `Reactor(debug=True)`."""

    __slots__ = ()


class CheckedWritePipe(WritePipe, CheckedStream):
    """A `WritePipe` for `Reactor(debug=True)`."""

    __slots__ = ()
