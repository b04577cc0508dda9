"""A control socket: a Unix socket that reports what a program is doing and can shut it down.

The permissions of the socket file decide which users can connect. Each client gets one answer per turn, so that many
requests do not slow the program down. The control socket never keeps the program running and never delays its end.

The control socket is not a `Listener`, and its connections are not counted as connections of the program. A drain
leaves them open, so that an operator can see what the drain is waiting for. A spare descriptor is kept open, so that a
client can still connect when the process has reached its descriptor limit: this is when inspection is needed most.
(libuv and Twisted keep a spare descriptor for their listeners, too.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import READ, FrameTooLong, Reactor, ReactorError, Stream
from ..errors import EXHAUSTION
from ..framing import Frames
from ..kernel.sockets import close_socket
from ..loop.checks import shown
from ..loop.descriptor import Descriptor
from ..loop.log import log
from ..net.addresses import check_path, is_abstract
from ..net.options import Options, check_callback
from ..net.sockets import listening_unix
from ..serve.workers import Workers
from .commands import Commands, refusal
from .counters import Source
from .counters import source as source_of
from .recorder import FlightRecorder
from .worker_commands import WorkerCommands

LONGEST_LINE = 4096  # bytes in a request
MOST_CLIENTS = 8  # connected at once; further clients wait in the backlog
BACKLOG = 8
RETRY = 0.1  # seconds until accepting, or opening the spare descriptor, is tried again
SILENT = 600.0  # seconds without a request after which a client is dropped
STALLED = 30.0  # seconds after which a client that does not read its answer is dropped
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
FAILED_ADOPT = (OSError, ReactorError, *EXHAUSTION)  # why an accepted client cannot be served


def serve_control(
    r: Reactor,
    path: str | bytes,
    source: Source | None = None,
    *,
    mode: int = 0o600,
    drain: Callable[[float, float], object] | None = None,
    workers: Workers | None = None,
    recorder: FlightRecorder | None = None,
) -> ControlSocket:
    """Open a control socket, for `python -m reactor.observe PATH` or any client that sends it a line.

    Args:
        r: The reactor to inspect.
        path: Path of the socket file. It is created, and removed when the returned handle or the reactor is closed.
        source: Source of the counters. Default: the counters of the workers, or of `r` without `workers`.
        mode: Permissions of the file. Every user with write permission can see everything and drain the program.
        drain: Called as `drain(timeout, lame_duck)`, in seconds, for the command `drain`. Default: `r.drain`. With
            `workers`, the default is `workers.drain`, and a command without times uses those that `run` was given.
        workers: The workers, in the parent process of `reactor.serve`. The commands `stats`, `phases`, `handles` and
            `why_alive` are then answered by each worker, including workers that drain. A worker that does not answer
            within a second is named in the answer. With the argument `worker`, such as
            `{"do": "handles", "worker": "0"}`, one worker answers; with "parent", the parent does.
        recorder: The flight recorder whose trace the command `trace` returns. Workers have recorders and control
            sockets of their own.

    Returns:
        The control socket, a handle that does not keep `run` running.

    Raises:
        ValueError: The path is abstract; such a socket has no permissions.
        OSError: As for `listen_unix`.
    """
    if is_abstract(check_path(path)):
        raise ValueError(
            'an abstract path has no permissions: every user of this machine could drain the program; use a file'
        )
    check_callback('source', source)
    check_callback('drain', drain)
    if not (workers is None or callable(getattr(workers, 'ask', None))):
        raise TypeError(f'workers must be the `Workers` that serve.run passes to on_start, not {shown(workers)}')
    r.guard.check()
    if workers is None:
        commands = Commands(r, source or source_of(r), drain or r.drain, recorder)
    else:
        commands = WorkerCommands(r, source or workers.stats, drain or workers.drain, workers, recorder)
    return ControlSocket(r, path, mode, commands)


class ControlSocket(Descriptor):
    """A control socket, as returned by `serve_control`: a handle with a `path`. It never keeps `run` running.

    Closing the reactor closes it.
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
        """Remove the file and reset the connections. Closing twice does nothing.

        Raises:
            ReactorError: The calling thread is not the one that runs the reactor.
        """
        super().close()  # done first: in the wrong thread this raises, and then nothing must change
        self._end()

    def handle_lost(self, exc: Exception) -> None:
        """Called when other code has closed the socket; its number may already belong to another file."""
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
            self._pause()  # there is no descriptor left, not even the spare one, or the client has disconnected
            return
        try:
            conn = self.loop.adopt(
                sock, on_close=self._on_close, on_error=_on_error,
                idle_timeout=SILENT, write_timeout=STALLED,
            )  # fmt: skip
        except FAILED_ADOPT:
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
    """The unanswered requests of one client. Reading is paused until the current request has been answered."""

    __slots__ = ('_commands', '_frames')

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._frames = Frames(LONGEST_LINE)

    def on_data(self, conn: Stream, data: bytes) -> None:
        self._frames.feed(data)
        self.go_on(conn)

    def on_eof(self, conn: Stream) -> None:
        """Answer the last request, even without a newline, and close."""
        rest = self._frames.rest()
        if rest.strip():
            self._commands.handle(rest, partial(self._end, conn))
        else:
            conn.close()

    def go_on(self, conn: Stream) -> None:
        """Answer the next request. Called in a later turn, or when the client has read the last answer."""
        if conn.closed:
            return
        try:
            line = self._frames.line()
        except FrameTooLong:
            self._end(conn, refusal(f'a request may have at most {LONGEST_LINE} bytes'))
            return
        if line is None:
            conn.resume_reading()
            return
        conn.pause_reading()
        if line.strip():
            self._commands.handle(line, partial(self._reply, conn))
        else:
            self._later(conn)

    def _reply(self, conn: Stream, answer: bytes) -> None:
        if not conn.closed and conn.write(answer):
            self._later(conn)

    def _later(self, conn: Stream) -> None:
        if not len(self._frames):
            conn.resume_reading()
            return
        # Continue in the next turn. Unlike call_soon, a timer can be unreferenced, so that it does not keep the
        # program running.
        conn.loop.call_later(0, self.go_on, conn).unref()

    def _end(self, conn: Stream, answer: bytes) -> None:
        if not conn.closed:
            conn.write(answer)
            conn.close()


def _on_error(conn: Stream, exc: Exception) -> None:
    if conn.may_log():
        log('error', 'exception while serving a client of the control socket, %s', conn, exc=exc)
    conn.abort()
