"""Streams: connected sockets with buffered writing, TCP and Unix alike.

`Stream` is what users hold. It is built of parts, each with a file of its own: how it ends (`ending.py`), its write
side (`sending.py`, `writer.py`), its states (`states.py`) and time limits (`timeouts.py`). Here are its callbacks, its
read side, and what it reports about itself.

Only `handle_read` calls the user directly, and as the last thing it does; everything else is called as a completion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from ..errors import ConnectionClosed, SelectorFull, WriteTimeout
from ..hints import SSLContext, Ts, socket
from ..loop.checks import switch, time_limit
from ..loop.watcher import READ, WRITE
from .addresses import show, unmapped
from .options import HANDSHAKE_TIMEOUT, check_callback, check_server_hostname
from .proxy_header import ProxyHeader
from .sending import Sender
from .states import CONNECTING, ENDING, OPEN
from .timeouts import Timeouts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop, OnClose, OnConnect, OnData, OnDrain, OnEof, OnError
    from .ending import Ending, Origin
    from .options import Options
    from .states import State
    from .writer import Writer


class Stream(Sender):
    """A connection. Made by `listen_*`, `connect_*` and `adopt`, never by hand.

    Its callbacks are plain attributes and can be replaced at any time: `on_connect(conn)`, `on_data(conn, data)` with
    bytes, `on_eof(conn)`, `on_drain(conn)`, `on_close(conn, exc)`, `on_error(conn, exc)` for exceptions that the
    others raise. `data` is yours. `state` is 'CONNECTING', 'OPEN', 'CLOSING' or 'CLOSED'. After `on_close` returned,
    the callbacks and `data` are dropped.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        data: Any
        ending: Ending | None
        on_close: OnClose | None
        on_connect: OnConnect | None
        on_data: OnData | None
        on_drain: OnDrain | None
        on_eof: OnEof | None
        on_error: OnError | None
        options: Options
        origin: Origin | None
        peer: Any
        sock: socket
        state: State
        timeouts: Timeouts | None
        tls: Any
        writer: Writer | None

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

    # callbacks: a `Callbacks`, or the listener, whose attributes they are
    def __init__(self, loop: Loop, options: Options, callbacks: Any, origin: Origin | None) -> None:
        self.loop = loop
        self.events = 0
        timers = loop.timers
        if loop.now >= timers.second + 1:
            timers.second = int(loop.now)
        self.since: float = timers.second
        self.sock = None  # type: ignore[assignment]  # until it is connected
        self.state = CONNECTING
        self.options = options
        self.writer = None
        self.ending = None
        self.origin = origin
        self.data = None
        self.peer = None
        self.on_connect = callbacks.on_connect
        self.on_data = callbacks.on_data
        self.on_eof = callbacks.on_eof
        self.on_drain = callbacks.on_drain
        self.on_close = callbacks.on_close
        self.on_error = callbacks.on_error
        self.tls = None
        self.timeouts = None

    # -- what the loop calls

    def handle_read(self) -> None:
        """One recv, then the user. Readiness is level-triggered: what is left is ready again, after the others."""
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
        """Called as a completion, in the turn in which it was accepted: `on_connect`."""
        if self.on_connect is None:
            return
        if self.closed:  # over TLS it may have failed since: then `on_close` alone is called
            self.on_data = self.on_eof = None
        else:
            self.on_connect(self)

    def handle_first_read(self) -> None:
        """Called as a completion after a deferred accept: the client has sent something, which is read first.

        A connection that is answered and closed at once is never registered at all.
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
        """Called in the second in which the next time limit may be over."""
        timeouts = self.timeouts
        if timeouts is None:
            return  # they ended while there was no memory to say so
        if self.state.closed:
            self.timeouts = None
            return  # sending has failed: what was received is delivered now, and then it ends
        over, next_look = timeouts.look(self.options, self.peername, self.events & READ != 0, self.buffered > 0, now)
        if over is not None and type(over) is not WriteTimeout and self._has_input():
            # The peer has sent something, which is read next: a callback was slow, or reading was paused.
            over, next_look = None, now + 1
        if over is not None:
            self.reset(over)
        else:
            timeouts.second = self.loop.timers.buckets.add(self, next_look)

    def handle_held_messages(self) -> None:
        """Called as a completion after `resume_reading`: a layer above passes on what it held during the pause."""
        if self.loop.streams.suspended.get(self):
            layer: Any = self.on_data
            if hasattr(layer, 'handle_resumed'):
                layer.handle_resumed(self)
            else:
                continue_reading(self)  # another callback has taken the place of the layer

    def may_log(self) -> bool:
        return self.options.shared.may_log(self.loop.timers.clock())

    def set_write_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the water marks of this connection, in bytes; ValueError unless 0 <= low <= high.

        `ReactorError` in another thread than the loop's.
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
        """Go on over TLS (STARTTLS, RFC 3207), as the side that `context` is made for.

        on_secured         called as `on_secured(conn, *args)` when the handshake is done; `on_close` reports a failure
        server_side        needed only for a context that is for both sides
        server_hostname    the name that the certificate must have, when connecting
        handshake_timeout  seconds, then `HandshakeTimeout`

        Bytes that wait are sent before it, what is written from now on is sent encrypted. Whatever the peer has sent
        in plain text behind its request must not be used: bytes that `on_data` got in the same chunk are yours to
        refuse; those that come later are taken for TLS, and fail.

        `close` during the handshake ends it there: what was written behind `start_tls` is not sent.
        Raises `ConnectionClosed` unless the connection is open, `ReactorError` when it is TLS already, TypeError and
        ValueError for bad arguments.
        """
        self.loop.guard.check_thread()
        check_callback('on_secured', on_secured)
        check_server_hostname(server_hostname, context)
        server_side = None if server_side is None else switch('server_side', server_side)
        handshake_timeout = time_limit('handshake_timeout', handshake_timeout)
        if self.state is not OPEN:
            raise ConnectionClosed(f'start_tls on {self!r}: it has to be open in both directions')
        upgrade = self.loop.streams.tls_class.upgrade
        upgrade(self, context, (on_secured, args), server_side, server_hostname, handshake_timeout)

    # -- reading

    def pause_reading(self) -> None:
        """Do not call `on_data` until `resume_reading`; the peer is slowed down by TCP. A dead peer goes unseen."""
        self.set_reading(False)

    def resume_reading(self) -> None:
        """Call `on_data` again. Does nothing when reading goes on, has ended, or the connection is closed.

        What was received already comes first: messages that `reactor.framing` holds, and data that TLS has not
        decrypted yet. None of it is passed on inside this call. `Stream.resume_reading` can be given as `on_drain` for
        any kind of stream: a server that pauses reading when `write` returns False goes on when its client has caught
        up.
        """
        self.set_reading(True)

    @property
    def reading(self) -> bool:
        """Whether bytes that arrive go to `on_data`: reading is not paused, not over, and you have not closed it."""
        return self.on_data is not None and (self.events & READ != 0 or self.loop.streams.suspended.get(self, False))

    @property
    def unread(self) -> bool:
        """Whether bytes of the peer have arrived that were not read yet; False while connecting and after the end."""
        return self.sock is not None and self.loop.kernel.has_bytes(self.sock)

    # -- facts

    @property
    def peername(self) -> Any:
        """The peer's address; asked of the system once, None when it is too late for that.

        On a listener with `proxy_protocol` the client's, from the header of the proxy.
        """
        if self.peer is None and self.sock is not None:
            try:
                self.peer = unmapped(self.sock.getpeername())
            except Exception:
                pass  # an adopted socket may be of a class of its own, and error messages are made of this
        return self.peer

    @property
    def proxy(self) -> ProxyHeader | None:
        """The header of the proxy before a listener with `proxy_protocol`; None for other connections, and at the end.

        `on_close` is the last callback that finds it.
        """
        return self.loop.streams.proxy_headers.get(self)

    @property
    def sockname(self) -> Any:
        """Our own address, None when there is none."""
        try:
            return unmapped(self.sock.getsockname()) if self.sock is not None else None
        except Exception:
            return None

    @property
    def busy(self) -> bool:
        """Whether you owe the peer an answer: `drain` waits for it, and closes the connection when you do no more.

        Yours to set, True from the first byte of a request (half a request is none to others: unless you say so, it may
        be closed) to the last of its answer, False when you wait for the next. In `on_close` it says whether the
        answer was given. From False to True counts one in `requests` of `stats`. Setting it on a connection that is
        over does nothing; TypeError for what is not a bool.
        """
        return self in self.loop.streams.busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        all_busy = self.loop.streams.busy
        if busy is False:
            all_busy.discard(self)
        elif busy is not True:
            raise TypeError(f'busy is True or False, not {busy!r}')
        elif self not in all_busy and (self.sock is not None or self.state is CONNECTING):
            all_busy.add(self)
            self.loop.counters.requests += 1

    def set_timeouts(self, *, read: float | None = None, write: float | None = None, idle: float | None = None) -> None:
        """Set this connection's time limits in seconds, all three; None for never. They begin now.

        read: no byte arrived for so long (`ReadTimeout`); write: bytes wait and the peer took none (`WriteTimeout`);
        idle: no byte went either way (`IdleTimeout`). Late by up to a second, never early; not before it is connected.
        """
        self.options = self.options.changed(read_timeout=read, write_timeout=write, idle_timeout=idle)
        if self.sock is not None and not self.closed:
            self.start_timeouts()

    def start_timeouts(self) -> None:
        """Begin to watch the time limits of `options`, if there are any."""
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
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {show(self.sockname)} to '
            f'{show(self.peername)}, {self.buffered} bytes wait>'
        )

    # -- for its maker

    def attach(self, sock: socket, deferred: bool = False) -> None:
        """Take a connected socket: the stream is open from here on. Raises as `Watchers.add`, and is not open then.

        deferred: it is read first and registered then, by `handle_first_read`.
        """
        self.sock = sock
        if deferred:
            self.loop.watchers.defer(self, READ)
        else:
            self.loop.watchers.add(self, READ)
        self.state = OPEN
        if self.options.timed:
            self.start_timeouts()

    def opened(self, reading: bool, deadline: float | None = None) -> None:
        """The parked stream has got its socket: watch it, call `on_connect`, and then send what was written before.

        deadline: for kinds of streams that need more to be open, when they must be.
        """
        self.state = OPEN if self.ending is None else ENDING
        self.ending = None
        writer = self.writer
        assert writer is not None
        for _, on_written, args in writer.reached():  # empty writes, which wait for nothing any more
            self.loop.completions.append((self, on_written, args))
        if writer.untouched and self.state is OPEN:
            self.writer = None
        events = (READ if reading else 0) | (0 if self.writer is None else WRITE)
        try:
            self.loop.watchers.set_events(self, events)
        except SelectorFull as exc:
            self.reset(exc.with_traceback(None))
        if self.sock is None:
            return  # it has failed, and `on_close` reports that
        if self.options.timed:
            self.start_timeouts()
        if self.on_connect is not None:
            self.on_connect(self)

    # -- for its kinds

    def set_reading(self, reading: bool) -> None:
        """Do what `resume_reading` or `pause_reading` was called for. Each kind has its own; both come here alone, so
        that `Stream.resume_reading` works on every kind of stream.
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
        """The same while a layer above holds messages: it passes them on first."""
        suspended = self.loop.streams.suspended
        if reading and not suspended[self]:
            self.loop.completions.append((self, Stream.handle_held_messages, ()))
        suspended[self] = reading

    # -- in this file

    def _has_input(self) -> bool:
        return self.loop.streams.suspended.get(self, False) or (self.events & READ != 0 and self.unread)


def suspend_reading(stream: Stream) -> None:
    """Receive nothing until `continue_reading`, because a layer above has more to pass on to the user first.

    For the user it is reading all the while: `reading` is True until `pause_reading`. After `resume_reading` the layer,
    which is the `on_data` of the stream, goes on: its `handle_resumed(stream)` is called in the completions phase.
    """
    if stream not in stream.loop.streams.suspended:
        stream.pause_reading()
        stream.loop.streams.suspended[stream] = True


def hold_reading(stream: Stream) -> None:
    """The same for a stream whose user has paused reading."""
    stream.loop.streams.suspended[stream] = False


def continue_reading(stream: Stream) -> None:
    """End a suspension; does nothing when there is none any more."""
    if stream.loop.streams.suspended.pop(stream, False):
        stream.resume_reading()
