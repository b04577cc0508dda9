"""Streams: connections over TCP and Unix sockets, with buffered writing. `Stream` is the class that users hold.

This file has the callbacks of streams, reading, and the properties. Other parts are in other files: the end of a stream
(`ending.py`), writing (`sending.py`, `writer.py`), states (`states.py`) and time limits (`timeouts.py`).

Only `handle_read` calls the user's callback directly, as its last step. All other callbacks run as completions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from ..errors import ConnectionClosed, SelectorFull, WriteTimeout
from ..hints import SSLContext, Ts, socket
from ..kernel.sockets import peer_of
from ..loop.checks import switch, time_limit
from ..loop.watcher import READ, WRITE
from .addresses import show, unmapped
from .ending import Ending, Origin
from .options import HANDSHAKE_TIMEOUT, Options, check_callback, check_server_hostname
from .proxy_header import ProxyHeader
from .sending import Sender
from .session import TLSSession
from .states import CONNECTING, ENDING, OPEN, State
from .timeouts import Timeouts
from .writer import Writer

if TYPE_CHECKING:
    from ..callbacks import Loop, OnClose, OnConnect, OnData, OnDrain, OnEof, OnError


class Stream(Sender):
    """A connection: accepted by a listener, or returned by `connect_*` or `adopt`.

    Its callbacks are attributes, which can be replaced at any time. They and `data` are dropped after `on_close`.

    Attributes:
        on_connect: Called as `on_connect(conn)` when the connection is open; over TLS, after the handshake.
        on_data: Called as `on_data(conn, data)` with received `bytes`. None: input is read and dropped.
        on_eof: Called as `on_eof(conn)` when the peer has ended its side. None: the connection closes then.
        on_drain: Called as `on_drain(conn)` when the buffer is down to `low_water` after a write returned False.
        on_close: Called once, as `on_close(conn, exc)`, when the connection has ended; `exc` is None if there was no
            error.
        on_error: Called as `on_error(conn, exc)` when another callback raised. None: log it and abort the connection.
        state: 'CONNECTING', 'OPEN', 'CLOSING' or 'CLOSED'.
        data: Any object of yours.
    """

    __slots__ = ()

    leads_to: tuple[tuple[str, str], ...] = (
        ('handle_accepted', 'on_connect'),
        ('handle_connected', 'on_connect'),
        ('handle_read', 'on_data'),
        ('handle_read', 'on_eof'),
        ('handle_first_read', 'on_data'),
        ('handle_last_reads', 'on_data'),
        ('handle_drain', 'on_drain'),
        ('handle_closed', 'on_close'),
    )

    # `callbacks` is a `Callbacks`, or the listener, which has them as attributes.
    def __init__(self, loop: Loop, options: Options, callbacks: Any, origin: Origin | None) -> None:
        self.loop = loop
        self.events = 0
        timers = loop.timers
        if loop.now >= timers.second + 1:
            timers.second = int(loop.now)
        self.since: float = timers.second
        self.sock: socket = None  # type: ignore[assignment]  # None until it is connected
        self.state: State = CONNECTING
        self.options: Options = options
        self.writer: Writer | None = None
        self.ending: Ending | None = None
        self.origin: Origin | None = origin
        self.data: Any = None
        self.peer: Any = None
        self.on_connect: OnConnect | None = callbacks.on_connect
        self.on_data: OnData | None = callbacks.on_data
        self.on_eof: OnEof | None = callbacks.on_eof
        self.on_drain: OnDrain | None = callbacks.on_drain
        self.on_close: OnClose | None = callbacks.on_close
        self.on_error: OnError | None = callbacks.on_error
        self.tls: TLSSession | None = None
        self.timeouts: Timeouts | None = None

    # -- methods for the loop

    def handle_read(self) -> None:
        """Called by the loop: one recv, then `on_data`. Unread bytes are reported again, after the other handles."""
        try:
            data = self.sock.recv(self.options.read_size)
        except BlockingIOError:
            self.loop.spins.no_progress(self)
            return
        except OSError as exc:
            self.read_failed(exc)
            return
        if not data:
            self.handle_end()
            return
        counters = self.loop.counters
        counters.reads += 1
        counters.bytes_in += len(data)
        if self.timeouts is not None:
            self.timeouts.received_at = self.loop.timers.clock()
        on_data = self.on_data
        if on_data is not None:
            on_data(self, data)

    def handle_accepted(self) -> None:
        """Called as a completion after the accept, or over TLS after the handshake: call `on_connect`."""
        if self.on_connect is None:
            return
        if self.closed:  # a TLS connection may have failed by now, and then only `on_close` is called
            self.on_data = self.on_eof = None
        else:
            self.on_connect(self)

    def handle_first_read(self) -> None:
        """Called as a completion after a deferred accept: the client's first bytes have arrived, so read them.

        A connection that is answered and closed at once is never registered with the selector.
        """
        if not self.events & READ:
            return
        try:
            self.handle_read()
        finally:
            try:
                self.loop.watchers.settle(self)
            except (OSError, SelectorFull) as exc:
                self.reset(exc.with_traceback(None))

    def handle_look(self, now: float) -> None:
        """Called in the second in which the next time limit may expire."""
        timeouts = self.timeouts
        if timeouts is None:
            return  # the limits have ended, but there was no memory to cancel this check
        if self.state.closed:
            self.timeouts = None
            return  # sending has failed: received bytes are delivered, and then the connection ends
        over, next_look = timeouts.look(self.options, self.peername, self.events & READ != 0, self.buffered > 0, now)
        if over is not None and type(over) is not WriteTimeout and self._has_input():
            # Bytes from the peer have arrived and are read next: a callback was slow, or reading was paused until now.
            over, next_look = None, now + 1
        if over is not None:
            self.reset(over)
        else:
            timeouts.second = self.loop.timers.buckets.add(self, next_look)

    def handle_held_messages(self) -> None:
        """Called as a completion after `resume_reading`: a layer above passes on the messages it has held."""
        if self.loop.streams.suspended.get(self):
            layer: Any = self.on_data
            if hasattr(layer, 'handle_resumed'):
                layer.handle_resumed(self)
            else:
                continue_reading(self)  # another callback has replaced `on_data`: no messages are held

    def may_log(self) -> bool:
        return self.options.shared.may_log(self.loop.timers.clock())

    def has_log_limit(self) -> bool:
        return self.options.shared.of_listener

    def set_write_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the water marks of this connection: `write` returns False at `high`, and `on_drain` is called at `low`.

        Args:
            high: Bytes; None leaves the present value.
            low: Bytes; None: 16 KiB or a quarter of `high`, whichever is less.

        Raises:
            TypeError, ValueError: Unless both are ints and 0 <= low <= high.
            ReactorError: Called from a thread other than the loop's.
        """
        self.loop.guard.check_thread()
        high = self.options.high_water if high is None else high
        self.options = self.options.changed(high_water=high, low_water=low)

    def start_tls(
        self,
        context: SSLContext,
        on_secured: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
        server_side: bool | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        """Switch this connection to TLS (STARTTLS, RFC 3207), as the side that `context` is made for.

        Buffered bytes are sent first, in plain text; later writes are encrypted. If the chunk that `on_data` got has
        plain text after the peer's request for TLS, refuse that text: it must not be used. `reactor.framing` resets
        such a connection with `TLSError`. Plain text that arrives later makes the handshake fail. `close` during the
        handshake drops the writes made since `start_tls`.

        Args:
            context: An `ssl.SSLContext`.
            on_secured: Called as `on_secured(conn, *args)` after the handshake. A failure is passed to `on_close`.
            *args: Arguments for `on_secured`.
            server_side: Whether this is the server; needed only for a context that is for both sides.
            server_hostname: The name that the server's certificate must have.
            handshake_timeout: Seconds until the connection is reset with `HandshakeTimeout`.

        Raises:
            ConnectionClosed: The connection is not open in both directions.
            ReactorError: The connection uses TLS already, or this is not the loop's thread.
            TypeError, ValueError: An argument is wrong.
        """
        self.loop.guard.check_thread()
        check_callback('on_secured', on_secured, '(conn)', len(args))
        check_server_hostname(server_hostname, context)
        server_side = None if server_side is None else switch('server_side', server_side)
        handshake_timeout = time_limit('handshake_timeout', handshake_timeout)
        if self.state is not OPEN:
            raise ConnectionClosed(f'start_tls() on {self!r}: the connection must be open in both directions')
        upgrade = self.loop.streams.tls_class.upgrade
        upgrade(self, context, (on_secured, args), server_side, server_hostname, handshake_timeout)

    # -- reading

    def pause_reading(self) -> None:
        """Stop calling `on_data` until `resume_reading`. TCP then slows the peer down. A dead peer goes unnoticed."""
        self.set_reading(False)

    def resume_reading(self) -> None:
        """Call `on_data` again. Does nothing if reading is not paused or has ended.

        Bytes that have already been received come first, later in this turn or in the next: messages that
        `reactor.framing` holds, and data that TLS has not decrypted yet. For any kind of stream,
        `Stream.resume_reading` can be passed as `on_drain`. A server that pauses reading when `write` returns False
        then reads again as soon as its client has caught up.
        """
        self.set_reading(True)

    @property
    def reading(self) -> bool:
        """Whether arriving bytes are passed to `on_data`: reading is neither paused nor over."""
        return self.on_data is not None and (self.events & READ != 0 or self.loop.streams.suspended.get(self, False))

    @property
    def unread(self) -> bool:
        """Whether bytes from the peer are waiting to be read; False while connecting and after the end."""
        return self.sock is not None and self.loop.kernel.has_bytes(self.sock)

    # -- properties

    @property
    def peername(self) -> Any:
        """The peer's address, read from the kernel at the first use, and known in `on_close`. None: not connected yet.

        With `proxy_protocol`, it is the client's address, from the proxy's header. After a connect that failed, it is
        the host and port or the path that was given. After the end of a connection without `on_close`, it is None
        unless it was read before.
        """
        if self.peer is None and self.sock is not None:
            try:
                self.peer = unmapped(peer_of(self.sock))
            except Exception:
                pass  # an adopted socket may be of any class, and an error message must not fail
        return self.peer

    @property
    def proxy(self) -> ProxyHeader | None:
        """The proxy's header, on a listener with `proxy_protocol`; otherwise None. It is dropped after `on_close`."""
        return self.loop.streams.proxy_headers.get(self)

    @property
    def sockname(self) -> Any:
        """Our own address; None before the connection is made and after its end."""
        try:
            return unmapped(self.sock.getsockname()) if self.sock is not None else None
        except Exception:
            return None

    @property
    def busy(self) -> bool:
        """Whether you owe the peer an answer. `drain` waits for busy connections and closes idle ones.

        Set it to True at the first byte of a request: nothing else can see a partial request, so without this `drain`
        might close the connection. Set it to False after the answer. In `on_close` it still has the last value. Each
        change to True increments `stats().requests`. Each change to False adds the time of the request to
        `stats().request_seconds`. A connection that ends with an error while it is busy increments
        `stats().requests_failed` instead. Setting it on a closed connection does nothing. Raises TypeError for a value
        that is not a bool.
        """
        return self in self.loop.streams.busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        loop, all_busy = self.loop, self.loop.streams.busy
        if busy is False:
            began = all_busy.pop(self, None)
            if began is not None:
                loop.counters.count_request(loop.timers.clock() - began)
        elif busy is not True:
            raise TypeError(f'busy must be True or False, not {busy!r}')
        elif self not in all_busy and (self.sock is not None or self.state is CONNECTING):
            all_busy[self] = loop.now  # the request has waited since then, and connections of a turn share the float
            loop.counters.requests += 1

    def set_timeouts(self, *, read: float | None = None, write: float | None = None, idle: float | None = None) -> None:
        """Replace all three time limits of this connection. They begin now, or once the connection is made.

        A limit that expires resets the connection, up to a second late and never early.

        Args:
            read: Seconds without a byte received, until `ReadTimeout`; None: no limit.
            write: Seconds in which bytes are waiting and the kernel accepts none, until `WriteTimeout`; None: no limit.
            idle: Seconds without a byte in either direction, until `IdleTimeout`; None: no limit.

        Raises:
            TypeError, ValueError: A limit is not a number above 0.
        """
        self.options = self.options.changed(read_timeout=read, write_timeout=write, idle_timeout=idle)
        if self.sock is not None and not self.closed:
            self.start_timeouts()

    def start_timeouts(self) -> None:
        """Start the time limits of `options`, if there are any (internal)."""
        buckets, old, new = self.loop.timers.buckets, self.timeouts, None
        if self.options.timed:
            now = self.loop.timers.clock()
            new = Timeouts(now)
            next_look = new.look(self.options, None, self.events & READ != 0, self.buffered > 0, now)[1]
            new.second = buckets.add(self, next_look)
        if old is not None and (new is None or old.second != new.second):
            buckets.discard(self, old.second)
        self.timeouts = new

    def waits_for(self) -> str:
        if self.state is CONNECTING:
            return 'the connection to be made'
        reasons = ['bytes to read'] if self.events & READ else []
        if self.buffered:
            reasons.append(f'the peer to take {self.buffered} bytes')
        return ' and '.join(reasons) or 'its owner: reading is paused or over'

    def fileno(self) -> int:
        return -1 if self.sock is None else self.sock.fileno()

    def __repr__(self) -> str:
        here = '' if self.sock is None else f'{show(self.sockname)} '
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {here}to {show(self.peername)}, '
            f'{self.buffered} bytes wait>'
        )

    # -- methods for opening (internal)

    def attach(self, sock: socket, deferred: bool = False) -> None:
        """Open the stream on a connected socket (internal). If `Watchers.add` raises, the stream is not open.

        If `deferred`, `handle_first_read` reads first, and then registers the stream.
        """
        self.sock = sock
        if deferred:
            self.loop.watchers.defer(self, READ)
        else:
            self.loop.watchers.add(self, READ, sock.fileno())
        self.state = OPEN
        if self.options.timed:
            self.start_timeouts()

    def opened(self, reading: bool, deadline: float | None = None) -> None:
        """Open a parked stream whose socket is connected (internal): call `on_connect`, then send earlier writes.

        `deadline` is for subclasses that are not open yet, such as TLS streams: the time at which they must be open.
        """
        self.state = OPEN if self.ending is None else ENDING
        self.ending = None
        writer = self.writer
        assert writer is not None
        # Callbacks of empty writes, which no longer have to wait.
        written = [(self, on_written, args) for _, on_written, args in writer.reached()]
        if writer.untouched and self.state is OPEN:
            self.writer = None
        events = (READ if reading else 0) | (0 if self.writer is None else WRITE)
        try:
            self.loop.watchers.set_events(self, events)
        except SelectorFull as exc:
            self.reset(exc.with_traceback(None))
        if self.sock is None:
            return  # the stream has failed, and `on_close` will be called
        self.loop.completions.extend(written)
        if self.options.timed:
            self.start_timeouts()
        if self.on_connect is not None:
            self.on_connect(self)

    # -- methods that subclasses override (internal)

    def set_reading(self, reading: bool) -> None:
        """Resume or pause reading (internal). Subclasses override only this method, so that `Stream.resume_reading`
        works on every kind of stream.
        """
        if self in self.loop.streams.suspended:
            self.set_suspended(reading)
        elif self.state.reads:
            if reading and self.timeouts is not None and not self.events & READ:
                if self.options.read_timeout is not None:  # the time for which reading was paused does not count
                    self.timeouts.received_at = self.loop.timers.clock()
            self.loop.watchers.set_events(self, self.events | READ if reading else self.events & ~READ)
        elif self.state is CONNECTING and self.origin is not None:
            self.origin.reading = reading  # type: ignore[attr-defined]

    def set_suspended(self, reading: bool) -> None:
        """Resume or pause reading while a layer above holds messages. The layer passes them on first (internal)."""
        suspended = self.loop.streams.suspended
        if reading and not suspended[self]:
            self.loop.completions.append((self, Stream.handle_held_messages, ()))
        suspended[self] = reading

    # -- private methods

    def _has_input(self) -> bool:
        return self.loop.streams.suspended.get(self, False) or (self.events & READ != 0 and self.unread)


def suspend_reading(stream: Stream) -> None:
    """Receive nothing until `continue_reading`, because a layer above holds messages for the user (internal).

    To the user the stream still seems to be reading: `reading` is True until `pause_reading`. The layer is the stream's
    `on_data`. After `resume_reading`, its method `handle_resumed(stream)` is called in the completions phase.
    """
    if stream not in stream.loop.streams.suspended:
        stream.pause_reading()
        stream.loop.streams.suspended[stream] = True


def hold_reading(stream: Stream) -> None:
    """Suspend reading like `suspend_reading`, for a stream whose user has paused reading."""
    stream.loop.streams.suspended[stream] = False


def continue_reading(stream: Stream) -> None:
    """End a suspension; does nothing if there is none."""
    if stream.loop.streams.suspended.pop(stream, False):
        stream.resume_reading()
