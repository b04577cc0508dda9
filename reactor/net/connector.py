"""Connect streams to a name, a numeric address or the path of a Unix socket.

Several addresses are tried as in RFC 8305 ("Happy Eyeballs"): the address families alternate, the next attempt begins
after 250 ms or as soon as an attempt has failed, and the first attempt to succeed wins.

Each attempt has its own socket and its own registration with the selector. The stream's `on_connect` or `on_close`
reports the outcome; a failure is never raised. When the stream ends, all attempts end.
"""

from __future__ import annotations

import errno
from collections import deque
from socket import SO_ERROR, SOCK_STREAM, SOL_SOCKET
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, ConnectTimeout, SelectorFull
from ..hints import socket
from ..kernel import Kernel
from ..kernel.platforms import AF_UNIX, LOST_ERRORS
from ..kernel.sockets import close_socket
from ..loop.threads import ThreadCall
from ..loop.timers import Timer
from ..loop.watcher import WRITE, Handle
from .addresses import MOST_ADDRESSES, Address, interleave, numeric, show
from .options import Callbacks, Options
from .resolver import look_up
from .sockets import bind_local, set_stream_options
from .states import CONNECTING
from .stream import Stream
from .writer import Writer

if TYPE_CHECKING:
    from ..callbacks import Loop

ATTEMPT_DELAY = 0.25  # seconds, RFC 8305 section 5
ATTEMPTS_PER_TURN = 64  # the most attempts per turn: each may fail at once (no route), and takes 20 µs
# A Unix socket with a full backlog refuses at once, and the selector does not report when the backlog has room.
UNIX_RETRY, UNIX_RETRY_MOST = 0.01, 0.25  # seconds


class Established:
    """The origin of outgoing connections: counts each stream until it is closed."""

    def handle_closed(self, stream: Stream) -> None:
        """See `Origin`."""
        stream.loop.counters.outgoing -= 1


ESTABLISHED = Established()


class Connector:
    """Connects `stream`, which is CONNECTING until an attempt succeeds."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # the stream, and its target
        'stream', 'reading', '_loop', '_kernel', '_target', '_local_address',
        # its time limit
        'deadline', '_timeout', '_timer',
        # addresses not tried yet, attempts under way, and attempts that have failed
        '_lookup', '_addresses', '_family', '_attempts', '_errors',
        # when the next attempt begins
        '_next', '_retry_delay',
    )  # fmt: skip

    stream: Stream

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        options: Options,
        callbacks: Callbacks,
        *,
        kind: type[Stream] = Stream,
        target: Any,
        timeout: float | None,
        local_address: tuple[str, int] | None = None,
    ) -> None:
        self.reading: bool = True  # whether the stream reads as soon as it is connected
        self.stream = stream = kind(loop, options, callbacks, self)
        self._loop = loop
        self._kernel = kernel
        self._target = target  # (host, port) or a path, as it was given
        self._local_address = local_address
        self._timeout = timeout
        self.deadline: float | None = None if timeout is None else loop.timers.clock() + timeout
        self._lookup: ThreadCall | None = None
        self._addresses: deque[Address] = deque()  # addresses not tried yet
        self._attempts: dict[Attempt, None] = {}  # attempts under way
        self._family = 0  # the family of the first address, which is preferred
        self._errors: list[tuple[Address, Exception]] = []
        self._timer: Timer | None = None
        self._next: Timer | None = None
        self._retry_delay = UNIX_RETRY
        stream.writer = Writer()  # for the bytes that are written before the stream is connected
        outgoing = loop.counters.outgoing + 1
        loop.watchers.park(stream)
        loop.counters.outgoing = outgoing
        try:
            if timeout is not None:  # unreferenced, because the stream itself keeps the loop running
                self._timer = loop.timers.unreferenced_later(timeout, Connector._timed_out, self)
        except EXHAUSTION as exc:
            stream.reset(exc)

    def connect(self, host: str, port: int, family: int) -> None:
        """Begin to connect. A host that is not a numeric address is looked up first."""
        try:
            addresses = numeric(self._kernel, host, port, family)
            if addresses:
                self.try_addresses(addresses)
            else:
                self._lookup = look_up(self._loop, self._kernel, host, port, family, self._looked_up)
                self._lookup.unref()
        except EXHAUSTION as exc:
            self.stream.reset(exc)

    def try_addresses(self, addresses: list[Address]) -> None:
        """Begin to connect; the first of these addresses that answers is used."""
        self._family = addresses[0][0]
        try:
            self._addresses.extend(interleave(addresses[:MOST_ADDRESSES]))
            self._try_next()
        except EXHAUSTION as exc:
            self.stream.reset(exc)

    def handle_attempt(self, attempt: Attempt, exc: OSError | None) -> None:
        """Called by an attempt that has succeeded, or failed with `exc`."""
        try:
            if exc is None:
                self._succeed(attempt)
            else:
                attempt.close()
                self._attempts.pop(attempt, None)
                self._errors.append((attempt.address, exc))
                self._try_next()
        except EXHAUSTION as exhausted:
            self.stream.reset(exhausted)

    def handle_closed(self, stream: Stream) -> None:
        """Called when the stream has ended before it was connected."""
        self._end()  # done first: if it runs out of memory, this method is called again, and counts only once
        if stream.peer is None:
            stream.peer = self._target
        self._loop.counters.outgoing -= 1

    def _looked_up(self, addresses: list[Address] | None, error: Exception | None) -> None:
        self._lookup = None
        try:
            if addresses:
                self.try_addresses(addresses)
            else:
                self._fail(error)
        except EXHAUSTION as exc:
            self.stream.reset(exc)

    def _call_next_due(self) -> None:
        try:
            self._try_next()
        except EXHAUSTION as exc:
            self.stream.reset(exc)

    def _try_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for _ in range(ATTEMPTS_PER_TURN):
            if not self._addresses:
                break
            address = self._addresses.popleft()
            try:
                attempt = Attempt(self._loop, self, address, self._open(address[0]))
                error = attempt.begin()
            except OSError as exc:
                self._errors.append((address, self._error(address, exc.errno or 0, str(exc.strerror or exc))))
                continue
            except SelectorFull as exc:
                self._errors.append((address, exc.with_traceback(None)))
                continue
            if error in self._kernel.connecting:
                try:
                    self._attempts[attempt] = None
                except MemoryError:
                    attempt.close()
                    raise
                if self._addresses:
                    self._call_next(ATTEMPT_DELAY)
                return
            if not error:
                self._succeed(attempt)
                return
            attempt.close()
            if error == errno.EAGAIN and address[0] == AF_UNIX:
                self._addresses.appendleft(address)
                self._call_next(self._retry_delay)
                self._retry_delay = min(2 * self._retry_delay, UNIX_RETRY_MOST)
                return
            self._errors.append((address, self._error(address, error)))
        if self._addresses:
            self._call_next(0)
        elif not self._attempts:
            self._fail(self._failure())

    def _open(self, family: int) -> socket:
        sock = self._kernel.socket(family, SOCK_STREAM)
        try:
            if self._local_address is not None:
                bind_local(self._kernel, sock, self._local_address)
        except BaseException:
            close_socket(sock)
            raise
        return sock

    def _call_next(self, delay: float) -> None:
        self._next = self._loop.timers.unreferenced_later(delay, Connector._call_next_due, self)

    def _succeed(self, attempt: Attempt) -> None:
        stream = self.stream
        stream.sock = attempt.release()
        self._end()
        if attempt.address[0] != AF_UNIX:
            set_stream_options(stream.sock, stream.options)
        self._loop.completions.append((stream, handle_connected, (self,)))

    def _error(self, address: Address, error: int, reason: str = '') -> OSError:
        return OSError(error, f'cannot connect to {show(address[1])}: {reason or self._kernel.strerror(error)}')

    def _failure(self) -> Exception:
        # Return the last error of the preferred family. Its notes list the errors of all attempts.
        exc = [exc for (family, _), exc in self._errors if family == self._family][-1]
        if len(self._errors) > 1:
            for _, each in self._errors:
                exc.add_note(str(each))
        return exc

    def _fail(self, exc: Exception | None) -> None:
        self._loop.failures.unheard(self.stream, exc)
        self.stream.reset(exc)

    def _timed_out(self) -> None:
        why = 'it did not answer' if self._lookup is None else 'the look-up of its name did not finish'
        self._fail(
            ConnectTimeout(
                f'cannot connect to {show(self._target)}: {why} within timeout={self._timeout:g} s; '
                'check that it is up and reachable'
            )
        )

    def _end(self) -> None:
        for timer in (self._timer, self._next):
            if timer is not None:
                timer.cancel()
        self._timer = self._next = None
        if self._lookup is not None:
            self._lookup.close()
            self._lookup = None
        for attempt in self._attempts:
            attempt.close()
        self._attempts.clear()
        self._addresses.clear()


def handle_connected(stream: Stream, connector: Connector) -> None:
    """Called as a completion when an attempt has succeeded: open the stream unless it has been closed."""
    if stream.state is CONNECTING:
        stream.origin = ESTABLISHED
        stream.loop.counters.connects += 1
        stream.opened(connector.reading, connector.deadline)


class Attempt(Handle):
    """One attempt to connect: one address and one socket, watched by the selector."""

    __slots__ = ('address', 'connector', 'sock')

    def __init__(self, loop: Loop, connector: Connector, address: Address, sock: socket) -> None:
        self.loop = loop
        self.events = 0
        self.since: float = loop.now
        self.address: Address = address
        self.connector: Connector = connector
        self.sock: socket | None = sock

    def begin(self) -> int:
        """Start to connect and return the error number; 0 if connected already. Raises like `Watchers.add`."""
        assert self.sock is not None
        try:
            error = self.sock.connect_ex(self.address[1])
            if not error:
                return self._error_of_peer(self.sock)
            if error in self.loop.kernel.connecting:
                self.loop.watchers.add(self, WRITE)
                self.unref()
        except BaseException:
            self.close()
            raise
        return error

    def handle_write(self) -> None:
        """Called by the loop when the socket is writable: it is connected, has failed, or is still connecting."""
        sock, connector = self.sock, self.connector
        assert sock is not None
        try:
            error = sock.getsockopt(SOL_SOCKET, SO_ERROR)
        except OSError as exc:
            if exc.errno in LOST_ERRORS:
                self.loop.watchers.evict(self)
                return
            error = exc.errno or errno.EIO
        if not error:
            error = self._error_of_peer(sock)
            if error == errno.ENOTCONN and self._is_connecting(sock):
                return
        connector.handle_attempt(self, connector._error(self.address, error) if error else None)

    def _is_connecting(self, sock: socket) -> bool:
        """Return whether the event was spurious. If more events follow, other code has read the error of the socket."""
        spins = self.loop.spins
        if spins.stalled(self) and self.loop.kernel.readiness(sock.fileno(), WRITE):
            return False
        spins.no_progress(self)
        return True

    def _error_of_peer(self, sock: socket) -> int:
        try:
            peer = sock.getpeername()
            if self.address[0] != AF_UNIX and peer == sock.getsockname():
                # TCP connects a port to itself if no one listens on it and the kernel picks it as the local port.
                return errno.ECONNREFUSED
        except OSError as exc:
            return exc.errno or errno.ENOTCONN
        return 0

    def handle_exhausted(self, exc: Exception) -> bool:
        # A socket reports its error only once, and that report may have been lost when memory or stack ran out.
        if self.connector.stream.state is CONNECTING:
            self.connector.stream.reset(exc)
        return True

    def handle_lost(self, exc: OSError) -> None:
        self.loop.watchers.remove(self)
        self.release().detach()
        self.connector.handle_attempt(self, exc.with_traceback(None))

    def release(self) -> socket:
        """Unregister the socket and return it."""
        sock = self.sock
        assert sock is not None
        if self.events:
            self.loop.watchers.remove(self)
        self.sock = None
        return sock

    def close(self) -> None:
        if self.sock is not None:
            failed = self.loop.spins.close_failed  # first, because a method object needs memory
            close_socket(self.release(), failed)

    @property
    def closed(self) -> bool:
        return self.sock is None

    def fileno(self) -> int:
        return -1 if self.sock is None else self.sock.fileno()

    def __repr__(self) -> str:
        return f'<Attempt fd={self.fileno()} to {show(self.address[1])}>'
