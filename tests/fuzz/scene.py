"""A reactor on scripted sockets whose clients follow an input, and the checks that apply to every target.

This module has the sockets, the clock and the checks, and does not depend on a protocol. The input decides everything,
so a failing input always fails in the same way. The clock moves only while the loop waits. Each check below is one of
the laws of the design; a target adds checks only for its own promises.

    law 1  every connection ends with one `on_close`, which is the last callback
    law 2  no callback runs inside another one, and only the exceptions that a docstring names are raised
    law 7  the loop needs a bounded number of turns, whatever the peer does
    law 8  nothing is logged as an error, and no exception reaches the loop unless the target raised it on purpose
    law 9  nothing is open at the end, and a closed connection is freed without the garbage collector
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from socket import MSG_PEEK
from types import TracebackType
from typing import Any

from reactor import Reactor, Stream
from tests.helpers.support import ScriptedKernel, ScriptedSelector, ScriptedSocket

MOST_TURNS = 20_000  # no correct run of an input of a few thousand bytes needs that many
QUIET = 2  # after this many turns without events or calls, only the peer or the clock can make anything happen
LONGEST = 1000.0  # seconds, longer than every time limit that is on by default


class Input:
    """The bytes of an input: a payload, and numbers at its end that decide how the payload is sent.

    The numbers come last, so that the payload of an input in the corpus is readable and the fuzzer can find words in
    it. Numbers beyond the end of the input are 0. After the last number, reading starts again with the first.
    """

    def __init__(self, data: bytes, numbers: int) -> None:
        border = max(0, len(data) - numbers)
        self.payload, self._numbers = data[:border], data[border:].ljust(numbers, b'\0')
        self._at = 0

    def number(self, below: int = 256) -> int:
        """Return the next number, from 0 to `below` - 1."""
        number = self._numbers[self._at % len(self._numbers)]
        self._at += 1
        return number % below

    def pieces(self, cuts: int) -> Iterator[tuple[bytes, bool]]:
        """Generate pieces of the payload, each with a flag.

        If the flag is True, the socket is reported as readable before the piece arrives, so `recv` finds no data.

        The next `cuts` numbers are the lengths of the pieces, repeated in a cycle; 0 means all remaining bytes.
        """
        sizes, rest = [self.number() for _ in range(cuts)], self.payload
        for step in range(len(rest) + 1):
            size = sizes[step % cuts]
            yield rest[: size & 127 or len(rest)], size > 127
            rest = rest[size & 127 or len(rest) :]
            if not rest:
                return


class Socket(ScriptedSocket):
    """A connected socket. The target plays the peer: it calls `arrive`, `end` and `reset`.

    sent  the bytes sent to the peer

    room  how many more bytes the peer receives; None: no limit
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.inbox = bytearray()
        self.room: int | None = None
        self.shut = False  # whether our side has ended
        self._ended = self._dead = False
        self._error: OSError | None = None
        self._misled = False  # whether the socket is reported as readable although the next `recv` finds nothing
        self._was_misled = False  # whether the last `recv` found nothing: after two in a row the reactor pauses reading

    # -- actions of the peer

    def arrive(self, data: bytes, misled: bool = False) -> None:
        """Deliver bytes. `misled`: before them, the socket is reported as readable, but `recv` finds nothing."""
        if not self._ended:
            self.inbox += data
            self._misled = misled and not self._was_misled

    def end(self) -> None:
        """End the peer's side of the stream."""
        self._ended = True

    def reset(self) -> None:
        """Reset the connection from the peer's side. Unread bytes are lost."""
        if not self._dead:
            self.inbox.clear()
            self._ended = self._dead = True
            self._error = ConnectionResetError(104, 'scripted: reset by the peer')

    # -- methods of a socket

    def ready(self) -> int:
        readable = self.inbox or self._ended or self._error or self._misled or self.backlog
        return (1 if readable else 0) | (2 if self.room is None or self.room > 0 or self._dead else 0)

    def recv(self, size: int, flags: int = 0) -> bytes:  # type: ignore[override]
        self._misled, self._was_misled = False, self._misled
        if self._was_misled:
            raise BlockingIOError
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if not self.inbox and not self._ended:
            raise BlockingIOError
        data = bytes(self.inbox[:size])
        if not flags & MSG_PEEK:
            del self.inbox[:size]
        return data

    def sendmsg(self, buffers: Any) -> int:
        data = b''.join(buffers)
        assert data, 'a send of nothing'
        assert not self.shut, 'a send after the end of our side'
        if self._dead:
            raise BrokenPipeError(32, 'scripted: the peer has reset the connection')
        taken = len(data) if self.room is None else min(self.room, len(data))
        if not taken:
            raise BlockingIOError
        if self.room is not None:
            self.room -= taken
        self.sent += data[:taken]
        return taken

    def shutdown(self, how: int) -> None:
        if self._dead:
            raise OSError(107, 'scripted: not connected')
        self.shut = True

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        return bytes(size) if size else 0

    @property
    def closed(self) -> bool:
        """Whether the reactor has closed this socket."""
        return self.number < 0


class Selector(ScriptedSelector):
    """A selector that counts the turns, and the handles that were ready in the last turn."""

    turns = ready = 0

    def select(self, timeout=None):  # type: ignore[no-untyped-def]
        self.turns += 1
        assert self.turns < MOST_TURNS, f'law 7: {self.turns} turns for one input'
        ready = super().select(timeout)
        self.ready = len(ready)
        return ready


class Kernel(ScriptedKernel):
    """The kernel of a scene. No path of a Unix socket is in use, and nothing is written to disk."""

    watch: Selector

    def selector(self) -> Selector:
        self.watch = Selector(self)
        return self.watch

    def socket(self, family: int, kind: int, proto: int = 0) -> Socket:
        return Socket(self)

    def has_bytes(self, sock: Any) -> bool:
        return bool(sock.inbox)

    def has_clients(self, sock: Any) -> bool:
        return bool(sock.backlog)

    def readiness(self, fd: int, events: int) -> int:
        return self.open[fd].ready() & events

    def never_blocks(self, fd: int) -> bool:
        return False

    def received_memory(self, fd: int) -> int:
        return 0

    def identity(self, fd: int) -> Any:
        return fd

    def socket_file(self, path: str | bytes) -> None:
        return None

    def lock_folder(self, path: str | bytes) -> int:
        return -1

    def unlink(self, path: str | bytes) -> None:
        pass

    def chmod(self, path: str | bytes, mode: int) -> None:
        pass


class Expected(Exception):
    """Raised by a target's own callback, on purpose."""


class Errors(logging.Handler):
    """A log handler that keeps errors. Other records are only formatted, to check that formatting works."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self.found.append(text if record.exc_info is None else f'{text}: {record.exc_info[1]!r}')


class Scene:
    """The run of one input, used as `with Scene() as scene:`. The checks are made at the end.

    The garbage collector is off during the run.
    """

    def __init__(self, **options: Any) -> None:
        self.kernel = Kernel()
        self.failures: list[BaseException] = []
        self.r = Reactor(kernel=self.kernel, catch_errors=self.caught, **options)
        self.inside = False  # whether one of our callbacks is running
        self.streams: list[weakref.ref[Stream]] = []
        self.seen: list[Seen] = []
        self._errors = Errors()
        self._log = logging.getLogger('reactor')

    def __enter__(self) -> Scene:
        self._collecting = gc.isenabled()
        gc.disable()
        self._level, self._propagate = self._log.level, self._log.propagate
        self._log.addHandler(self._errors)
        self._log.setLevel(logging.DEBUG)
        self._log.propagate = False
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if exc is None:
                self._close()
        finally:
            self._log.removeHandler(self._errors)
            self._log.setLevel(self._level)
            self._log.propagate = self._propagate
            if self._collecting:
                gc.enable()

    # -- methods that targets call

    def caught(self, exc: Exception, handle: Any) -> None:
        """Handle an exception from a callback, which would otherwise be logged."""
        if not isinstance(exc, Expected):
            self.failures.append(exc)

    def connect(self, server: Any) -> Socket:
        """Connect a client to a listener."""
        sock = Socket(self.kernel)
        server.sock.backlog.append(sock)
        self.turn()
        return sock

    def turn(self) -> None:
        """Run one turn with a zero timeout."""
        self.r.run_once(0)
        self.check()

    def settle(self) -> None:
        """Run turns with a zero timeout until only the peer or the clock can make anything more happen."""
        quiet = 0
        while quiet < QUIET:
            busy = self.r.timeout() == 0
            self.turn()
            quiet = 0 if busy or self.kernel.watch.ready else quiet + 1

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        passed: list[bool] = []
        self.r.call_later(seconds, passed.append, True)
        while not passed:
            self.r.run_once()
            self.check()

    def check(self) -> None:
        """Raise the first failure that a callback has recorded, and check that no error was logged."""
        if self.failures:
            raise self.failures[0]
        assert not self._errors.found, f'law 8: logged as an error: {self._errors.found[0]}'

    # -- closing everything at the end

    def _close(self) -> None:
        """Close everything, and check that it is closed."""
        self.settle()
        for seen in self.seen:
            if seen.conn is not None and not seen.over:
                seen.conn.abort()
        for handle in self.r.handles():
            handle.close()
        self.wait(LONGEST)
        left = self.r.handles()
        assert not left, f'law 9: left open: {left}'
        assert not len(self.r.timers), f'law 9: timers are left: {list(self.r.timers)}'
        assert self.r.run(), 'run() reports that something is left to wait for'
        stats = self.r.stats()
        assert not stats.incoming and not stats.outgoing, (
            f'law 9: {stats.incoming} and {stats.outgoing} counted as open'
        )
        for seen in self.seen:
            seen.check_over()
        alive = [conn for ref in self.streams if (conn := ref()) is not None]
        assert not alive, f'law 9: closed, and still referenced: {alive}'
        self.r.close()
        self.check()
        assert not self.kernel.open, f'law 9: sockets {list(self.kernel.open)} are open after close()'


class Seen:
    """The callbacks of one connection. They record their arguments, and check laws 1 and 2.

    Targets override `message`, `eof` and `ended`.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.conn: Any = None
        self.connected = self.over = self.eofs = 0
        self.received = bytearray()
        self.exc: BaseException | None = None
        scene.seen.append(self)

    def callbacks(self, *names: str) -> dict[str, Any]:
        """Return the named callbacks as keyword arguments."""
        return {name: getattr(self, name) for name in names}

    def on_connect(self, conn: Any) -> None:
        self._call('on_connect', conn, self._connect)

    def on_data(self, conn: Any, data: bytes) -> None:
        self._call('on_data', conn, self._data, data)

    def on_eof(self, conn: Any) -> None:
        self._call('on_eof', conn, self._eof)

    def on_close(self, conn: Any, exc: BaseException | None) -> None:
        self._call('on_close', conn, self._close, exc)

    # -- methods that targets override

    def message(self, data: bytes) -> None:
        """Called with received bytes, or with a message."""

    def eof(self) -> None:
        """Called when the peer has ended its side of the stream."""

    def ended(self) -> None:
        """Called when the connection has ended."""

    def check_over(self) -> None:
        """Check law 1 at the end of the run."""
        if self.conn is not None or self.connected:
            assert self.over == 1, f'law 1: on_close was called {self.over} times'
        self.conn = None

    # -- private methods

    def _call(self, name: str, conn: Any, fn: Any, *args: Any) -> None:
        try:
            assert not self.scene.inside, f'law 2: {name} runs inside another callback'
            assert not self.over, f'law 1: {name} after on_close'
            self.scene.inside = True
            try:
                self.watch(conn)
                fn(*args)
            finally:
                self.scene.inside = False
        except AssertionError as exc:
            # Keep the failure: the loop or `on_error` would handle it like an exception of the program.
            self.scene.failures.append(exc)

    def watch(self, conn: Any) -> None:
        """Remember the connection, and check at the end that it is freed."""
        if self.conn is None and not self.over:
            self.conn = conn
            self.scene.streams.append(weakref.ref(conn))

    def _connect(self) -> None:
        self.connected += 1
        assert self.connected == 1, 'on_connect was called twice'

    def _data(self, data: bytes) -> None:
        assert data, 'on_data without bytes'
        assert type(data) is bytes, f'on_data with {type(data)}'
        assert not self.eofs, 'on_data after on_eof'
        self.received += data
        self.message(data)

    def _eof(self) -> None:
        self.eofs += 1
        assert self.eofs == 1, 'on_eof was called twice'
        self.eof()

    def _close(self, exc: BaseException | None) -> None:
        self.over += 1
        self.exc = exc
        self.conn = None
        self.ended()
