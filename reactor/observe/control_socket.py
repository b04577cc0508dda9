"""A control socket: a Unix socket on which a program tells what it does, and is told to drain.

Owns the socket, those who are connected, and the descriptor that is kept for them. Knows nothing of the commands. The
rules: whoever may write to the socket's file may ask, and nobody else; one request is answered in a turn, so asking
much costs the program little; and it never keeps the program running nor holds its end up.

It is no `Listener`, and those who ask are no clients: the program accepted connections without them, its gauges do not
count them, and a drain leaves them alone, so that one can see what it waits for. One descriptor is held back for the
moment when none is left, when looking in is most needed (libuv and Twisted keep one for their listeners).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from .. import READ, FrameTooLong, Reactor, ReactorError, Stream
from ..framing import Frames
from ..kernel import close_socket
from ..loop.descriptor import Descriptor
from ..loop.log import log
from ..net.addresses import check_path, is_abstract
from ..net.options import Options, check_callback
from ..net.sockets import listening_unix
from .commands import Commands, refusal
from .counters import Source
from .counters import source as source_of

LONGEST_LINE = 4096  # bytes of a request
MOST_CLIENTS = 8  # at once; further ones wait in the backlog
BACKLOG = 8
RETRY = 0.1  # seconds until it is tried again to accept somebody, or to have a descriptor to spare
SILENT = 600.0  # seconds that a client may say nothing
STALLED = 30.0  # seconds that one may take nothing of its answer
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def serve_control(
    r: Reactor,
    path: str | bytes,
    source: Source | None = None,
    *,
    mode: int = 0o600,
    drain: Callable[[float, float], object] | None = None,
) -> ControlSocket:
    """Listen on a control socket, for `python -m reactor.observe PATH` and for anyone who can write a line to it.

    path    of the socket's file. It is created here, and removed when the returned handle or the reactor is closed
    source  whose counters are reported, by default those of `r`
    mode    permissions of the file: who may write to it may see everything, and drain
    drain   called as `drain(timeout, lame_duck)` for the command `drain`, by default `r.drain`

    Raises as `listen_unix` does, and ValueError for an abstract path, which has no permissions.
    """
    if is_abstract(check_path(path)):
        raise ValueError('an abstract path has no permissions: all on this machine could drain it; use a file')
    check_callback('source', source)
    check_callback('drain', drain)
    r.guard.check()
    return ControlSocket(r, path, mode, Commands(r, source or source_of(r), drain or r.drain))


class ControlSocket(Descriptor):
    """A control socket, as returned by `serve_control`: a handle with a `path`. It never keeps `run` running.

    It closes with the reactor. An exit callback would do the same, but it would stay with the reactor when the control
    socket is closed earlier.
    """

    __slots__ = ('_clients', '_commands', '_sock', '_spare', '_unlink', 'path')

    def __init__(self, r: Reactor, path: str | bytes, mode: int, commands: Commands) -> None:
        kernel, options = r.kernel, Options(idle_timeout=SILENT, write_timeout=STALLED)
        self._commands = commands
        self._clients: set[Stream] = set()
        self._spare = -1
        self._sock, self._unlink = listening_unix(kernel, path, options, backlog=BACKLOG, mode=mode)
        self.path: str | bytes = path
        self.fn: Callable[..., object] | None = None
        try:
            Descriptor.__init__(self, r, kernel, self._sock, READ, ControlSocket._on_ready, ())
        except BaseException:
            self._end()
            raise
        self.unref()
        self._keep_spare()

    def close(self) -> None:
        """Remove the file and reset the connections of its clients. Closing twice does nothing.

        Raises `ReactorError` in another thread than the loop's.
        """
        super().close()  # first: in another thread it raises, and nothing has changed
        self._end()

    def handle_lost(self, exc: Exception) -> None:
        """Called when other code has closed the socket: its number may belong to another by now."""
        self._sock.detach()
        super().handle_lost(exc)

    def __repr__(self) -> str:
        return f'<ControlSocket {self.path!r}, {"closed" if self.closed else f"{len(self._clients)} clients"}>'

    def _end(self) -> None:
        if self._unlink is not None:
            self._unlink()
            self._unlink = None
        close_socket(self._sock)
        self._use_spare()
        for conn in list(self._clients):
            conn.abort()

    def _on_ready(self, event: int) -> None:
        try:
            sock = self._accept()
        except BlockingIOError:
            return
        except OSError:
            self._pause()  # nothing is left, not even the spare one; or who was there is gone
            return
        try:
            conn = self.loop.adopt(
                sock, on_close=self._on_close, on_error=_on_error,
                idle_timeout=SILENT, write_timeout=STALLED,
            )  # fmt: skip
        except (OSError, ReactorError, MemoryError, RecursionError):
            close_socket(sock)
            self._pause()
            return
        conn.unref()
        session = ControlSession(self._commands)
        conn.on_data, conn.on_eof, conn.on_drain = session.on_data, session.on_eof, session.go_on
        self._clients.add(conn)
        if len(self._clients) >= MOST_CLIENTS:
            self.set_events(0)

    def _accept(self) -> Any:
        try:
            return self._sock.accept()[0]
        except OSError as exc:
            if exc.errno not in EXHAUSTED or self._spare < 0:
                raise
        self._use_spare()
        return self._sock.accept()[0]

    def _on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self._clients.discard(conn)
        if not self.closed:
            self._keep_spare()
            self._listen()

    def _pause(self) -> None:
        self.set_events(0)
        self.loop.call_later(RETRY, self._listen).unref()

    def _listen(self) -> None:
        if not self.closed and len(self._clients) < MOST_CLIENTS:
            self.set_events(READ)

    def _keep_spare(self) -> None:
        if self._spare < 0 and not self.closed:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                self.loop.call_later(RETRY, self._keep_spare).unref()

    def _use_spare(self) -> None:
        if self._spare >= 0:
            spare, self._spare = self._spare, -1
            os.close(spare)


class ControlSession:
    """What one client has sent and was not answered yet."""

    __slots__ = ('_commands', '_frames')

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._frames = Frames(LONGEST_LINE)

    def on_data(self, conn: Stream, data: bytes) -> None:
        self._frames.feed(data)
        self._answer(conn)

    def on_eof(self, conn: Stream) -> None:
        """The last line needs no end."""
        rest = self._frames.rest()
        if rest.strip():
            conn.write(self._commands.answer(rest))
        conn.close()

    def go_on(self, conn: Stream) -> None:
        """Answer the next request, which waited for the end of the turn, or for the client to read."""
        if not conn.closed:
            conn.resume_reading()
            self._answer(conn)

    def _answer(self, conn: Stream) -> None:
        try:
            line = self._frames.line()
        except FrameTooLong:
            conn.write(refusal(f'a request has at most {LONGEST_LINE} bytes'))
            conn.close()
            return
        if line is None:
            return
        room = conn.write(self._commands.answer(line)) if line.strip() else True
        if room and not len(self._frames):
            return
        conn.pause_reading()
        if room:
            # In the next turn. A timer can be unreferenced, so that what is asked keeps no program running.
            conn.loop.call_later(0, self.go_on, conn).unref()


def _on_error(conn: Stream, exc: Exception) -> None:
    if conn.may_log():
        log('error', 'exception while %s was answered', conn, exc=exc)
    conn.abort()
