"""Streams over the pipes of a child.

Owns what is different about a pipe: it goes one way. Knows nothing of children. The rule: everything else is `Stream`,
which does not know of it; what stands for its socket is a `PipeSocket` of the kernel.

A selector reports the writing end of a pipe as readable for one reason only: nobody has the other end any more.
"""

from __future__ import annotations

from errno import EPIPE
from typing import Any

from ..kinds import CheckedStream
from ..loop.checks import shown
from ..net.states import ENDED, LINGERING, State
from ..net.stream import Stream
from ..net.writer import SHUT, Writer

TYPE_CHECKING = False


class Pipe(Stream):
    """One end of a pipe; `peername` says whose the other is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {self.peername or "unknown"}, '
            f'{self.buffered} bytes wait>'
        )

    def start_tls(self, *args: Any, **options: Any) -> None:  # type: ignore[override]  # whatever it is given
        """Refused, with TypeError."""
        raise TypeError(f'start_tls needs a connection, which goes both ways, and {self!r} is a pipe')

    @property
    def unread(self) -> bool:
        """Whether bytes of the child have arrived that were not read yet; False for a pipe that it reads."""
        return False


class ReadPipe(Pipe):
    """What a child writes, as a stream: `on_data`, `on_eof`, `on_close`. A write raises `ConnectionClosed`."""

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
        """As `Stream.set_timeouts`; ValueError for `write`, since nothing is written to what a child writes."""
        if write is not None:
            raise ValueError(f'a write timeout of {shown(write)} cannot apply: {self!r} is only read; use read=')
        super().set_timeouts(read=read, idle=idle)

    def close(self) -> None:
        """Close it now; a child that goes on writing gets SIGPIPE. `on_close(pipe, None)` tells."""
        self.abort()


class WritePipe(Pipe):
    """What a child reads, as a stream: `write`, `on_drain`, `on_close`.

    A child that closes its end, or dies, ends it: `on_close` gets `BrokenPipeError` when bytes still waited, else None.
    """

    __slots__ = ()

    def handle_read(self) -> None:
        """The child has closed its end, or is gone."""
        if self.sock.hung_up():  # type: ignore[attr-defined]
            lost = f'{self.peername} was closed by the child while {self.buffered} bytes waited for it'
            self.reset(BrokenPipeError(EPIPE, lost) if self.buffered else None)
        else:
            self.loop.spins.no_progress(self)

    def set_timeouts(self, *, read: float | None = None, write: float | None = None, idle: float | None = None) -> None:
        """As `Stream.set_timeouts`; ValueError for `read`, since nothing is read from what a child reads.

        idle: we wrote nothing for so long.
        """
        if read is not None:
            raise ValueError(f'a read timeout of {shown(read)} cannot apply: {self!r} is only written; use write=')
        super().set_timeouts(write=write, idle=idle)

    def handle_write(self, dispatched: bool = True) -> None:
        super().handle_write(dispatched)
        self._close_when_ended()

    def write_eof(self) -> None:
        """Close it after what waits; the child reads end of file. Takes as long as the child takes to read."""
        super().write_eof()
        self._close_when_ended()

    def close(self) -> None:
        """Close it after what waits, within `linger` seconds; the child reads end of file."""
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
