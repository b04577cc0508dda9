"""Keep a client connected: connect again each time its connection ends, after a delay that grows and is random.

The delays are those of AWS ("Exponential Backoff And Jitter", 2015): with `jitter=1` its "full jitter", with 0.5 its
"equal jitter". Without randomness, all clients of a server that restarts would return at the same moment.
"""

from __future__ import annotations

from collections.abc import Callable

from ..callbacks import OnDown, OnUp
from ..errors import EXHAUSTION, HandleClosed, ReactorError, TLSError
from ..loop.checks import callback, number, shown, time_limit
from ..loop.log import log
from ..loop.timers import Timer
from ..net.stream import Stream

# Exceptions of `connect` after which another attempt may succeed. Any other one is a mistake in the program.
TEMPORARY = (OSError, ReactorError, *EXHAUSTION)


class Reconnector:
    """A client that is kept connected, as returned by `reactor.reconnect`.

    Attributes:
        conn: The connection, from the call of `connect` on. None between two attempts and after the end.
        closed: Whether there will be no further attempt: `stop` was called, or the client has given up.
        attempts: How many times `connect` was called.
        ups: How many connections were established.
        on_up: Called as `on_up(conn)`; see `reconnect`. Like `on_down`, it can be replaced at any time.
        on_down: Called as `on_down(conn, exc, delay)`; see `reconnect`.
    """

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        'conn', 'closed', 'attempts', 'ups', 'on_up', 'on_down',
        # how to connect, when the connection was established, and the delays
        '_loop', '_connect', '_up_since', '_timer', '_delay', '_first', '_most', '_jitter',
    )  # fmt: skip

    def __init__(
        self, connect: Callable[[], Stream], on_up: OnUp | None, on_down: OnDown | None, *delays: float
    ) -> None:
        self.conn: Stream | None = None
        self.closed: bool = False
        self.attempts: int = 0
        self.ups: int = 0
        self.on_up: OnUp | None = on_up
        self.on_down: OnDown | None = on_down
        self._connect: Callable[[], Stream] | None = connect
        self._up_since: float | None = None
        self._timer: Timer | None = None
        self._first, self._most, self._jitter = delays
        self._delay = 0.0  # the longest that the last delay could be; 0: the delays begin with `first`
        conn = self._try_once()
        self._loop = conn.loop
        self._watch(conn)

    def stop(self) -> None:
        """Make no further attempt, and close the connection if there is one; a second call does nothing.

        The connection is closed as `Stream.close` does it. Then `on_down(conn, exc, None)` is called.
        """
        if not self.closed:
            self.closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self.conn is None:
                self._release()
            else:
                self.conn.close()

    def close(self) -> None:
        """Do the same as `stop`. All handles have this method, so this client can be in a `Group`."""
        self.stop()

    def __repr__(self) -> str:
        state = 'closed' if self.closed else 'waits' if self.conn is None else repr(self.conn)
        return f'<Reconnector {state}, {self.attempts} attempts, {self.ups} connections>'

    def _attempt(self) -> None:
        self._timer = None
        try:
            conn = self._try_once()
        except Exception as exc:
            self._down(None, exc, isinstance(exc, HandleClosed) or not isinstance(exc, TEMPORARY))
            return
        if self.closed:  # `connect` has called `stop`
            conn.close()
        else:
            self._watch(conn)

    def _try_once(self) -> Stream:
        self.attempts += 1
        assert self._connect is not None
        conn = self._connect()
        if not isinstance(conn, Stream):
            raise TypeError(f'connect must return the connection that it has started, not {shown(conn)}')
        return conn

    def _watch(self, conn: Stream) -> None:
        """Call the methods below when the connection is established and when it ends, after its own callbacks."""
        self.conn = conn
        before, ended = conn.on_connect, self._watch_end(conn)

        def connected(conn: Stream) -> None:
            try:
                if before is not None:
                    before(conn)
                self._up(conn)
            finally:
                if conn.on_close is not ended:  # these callbacks have replaced it
                    self._watch_end(conn)

        if conn.state == 'OPEN':  # an adopted connection, which never calls `on_connect`
            conn.loop.call_soon(connected, conn)
        else:
            conn.on_connect = connected

    def _watch_end(self, conn: Stream) -> Callable[[Stream, BaseException | None], None]:
        before = conn.on_close

        def ended(conn: Stream, exc: BaseException | None) -> None:
            try:
                if before is not None:
                    before(conn, exc)
            finally:
                self._ended(conn, exc)

        conn.on_close = ended
        return ended

    def _up(self, conn: Stream) -> None:
        if conn is self.conn and not conn.closed:
            self.ups += 1
            self._up_since = conn.loop.now
            if self.on_up is not None:
                self.on_up(conn)

    def _ended(self, conn: Stream, exc: BaseException | None) -> None:
        if conn is self.conn:
            since, self._up_since = self._up_since, None
            if since is not None and conn.loop.now - since >= self._delay:
                self._delay = 0.0
            self._down(conn, exc, _is_refused_certificate(exc))

    def _down(self, conn: Stream | None, exc: BaseException | None, final: bool) -> None:
        self.conn, on_down, delay = None, self.on_down, None
        self.closed |= self._loop.guard.closing  # `close` of the reactor has ended the connection
        if final and not self.closed:
            self.closed = True
            log('warning', 'gave up reconnecting after attempt %d: %s', self.attempts, exc)
        if self.closed:
            self._release()
        else:
            if on_down is None and not self._delay:
                why = 'the connection was closed' if exc is None else exc
                log('warning', 'a client is not connected, and keeps trying: %s', why)
            delay = self._wait()
        if on_down is not None:
            on_down(conn, exc, delay)

    def _wait(self) -> float:
        self._delay = min(2 * self._delay, self._most) or self._first
        delay = self._delay * (1 - self._jitter * self._loop.kernel.random_number())
        self._timer = self._loop.call_later(delay, self._attempt)
        return delay

    def _release(self) -> None:
        self.on_up = self.on_down = self._connect = self._timer = None


def _is_refused_certificate(exc: BaseException | None) -> bool:
    if not isinstance(exc, TLSError):
        return False
    import ssl

    return isinstance(exc.__cause__, ssl.SSLCertVerificationError)


def reconnect(
    connect: Callable[[], Stream],
    on_up: OnUp | None = None,
    on_down: OnDown | None = None,
    *,
    first: float = 1.0,
    most: float = 60.0,
    jitter: float = 1.0,
) -> Reconnector:
    """Keep a client connected: connect now, and again each time the connection ends, until `stop` is called.

    The first delay is up to `first` seconds, and each further one up to twice as long, but at most `most`. After a
    connection that was open for as long as the delay before it could be, the delays begin again. The client connects
    again after every end: a failed look-up, a refused or reset connection, a time limit, an end of file, and your own
    `conn.close`. Pass `timeout=` and `keepalive=` in `connect`, so that a dead server is noticed.

    The client gives up, and logs a warning, when the certificate of the server is refused, or when a later call of
    `connect` raises anything but an `OSError` or a `ReactorError`. While it waits for an attempt, it keeps `run`
    running. `Reactor.close` ends it. A drain does not, because requests under way may need its server.

    Args:
        connect: Called without arguments for each attempt. It starts a connection and returns it:
            `lambda: r.connect_tcp(host, port, on_data, timeout=10)`. Its callbacks and `conn.data` are yours as always.
            If you replace `on_close` after `on_up` has returned, call the previous one in yours.
        on_up: `on_up(conn)`: a connection is established, and its `on_connect` was called. An exception is handled like
            one in `on_connect`.
        on_down: `on_down(conn, exc, delay)`: the connection has ended, or could not be established, and its `on_close`
            was called with `exc`. The next attempt follows after `delay` seconds; None: there is none, because of
            `stop`, because the reactor is being closed, or because the client has given up. If `connect` has raised
            `exc`, `conn` is None. Without this callback, the first failure of several in a row is logged.
        first: The longest first delay in seconds.
        most: The longest delay in seconds.
        jitter: Which part of each delay is random, from 0 to 1: a delay is between `1 - jitter` and 1 times the longest
            that it can be. 1 spreads the clients of a server best.

    Returns:
        The client.

    Raises:
        TypeError, ValueError: An argument is wrong, or `connect` does not return a connection.
        Exception: What the first call of `connect` raises, which is made during this call.
    """
    callback('connect', connect)
    for name, fn, arguments in (('on_up', on_up, '(conn)'), ('on_down', on_down, '(conn, exc, delay)')):
        if fn is not None:
            callback(name, fn, arguments)
    first, most, jitter = time_limit('first', first), time_limit('most', most), number('jitter', jitter, 'number')
    if most < first:
        raise ValueError(f'most must be at least first={first!r}, not {most!r}')
    if not 0 <= jitter <= 1:
        raise ValueError(f'jitter must be a number from 0 to 1, not {jitter!r}')
    return Reconnector(connect, on_up, on_down, first, most, jitter)
