"""Streams: connected sockets with buffered writing, TCP and Unix alike.

Owns one connection: its socket, what it wants from the selector, and its end. Knows nothing of how it was made. The
rules, all of which the tests hold:

    what has happened is appended to `loop.completions` and told from there; only `handle_read` calls a user directly,
    and as the last thing it does
    the write side lives in `writer`: None while nothing waits and nothing is wrong, so one test opens the fast path
    a connection ends in `finish`, whose completion is the last it ever appends. It is appended first, and does again
    whatever of the ending failed for want of memory or stack: an exhausted process never leaves half an ending

`state` is one of CONNECTING, OPEN, CLOSING, CLOSED. HALF_OPEN is a second OPEN: the peer has ended, we may still write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET
from typing import Any, Protocol, Self

from ..errors import (
    ConnectionClosed,
    SelectorFull,
    SendFileError,
    WriteBufferFull,
    WriteTimeout,
)
from ..hints import Buffer, HasFileno, SSLContext, Ts, socket
from ..kernel import HAS_SENDMSG, LOST_ERRORS, send_first
from ..loop.checks import shown, switch, time_limit
from ..loop.timers import Timer
from ..loop.watcher import READ, UNHEARD, WRITE, Handle
from .addresses import show, unmapped
from .files import FilePart, file_part
from .options import HANDSHAKE_TIMEOUT, Callbacks, check_callback, check_server_hostname
from .proxy_header import ProxyHeader
from .timeouts import look_at_limits
from .writer import BROKEN, DRAINED, ENDED, PEER_ENDED, Writer, check_buffers, flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop, OnClose, OnConnect, OnData, OnDrain, OnEof, OnError
    from .listener import Listener
    from .options import Options

    class Origin(Protocol):
        """Who made a stream, a listener or a connector, and wants to know when it is closed."""

        def handle_closed(self, stream: Stream) -> None: ...


class State(str):
    """A state, by the name that users see. Compared by identity in here, since two of them share a name."""

    __slots__ = ()


CONNECTING = State('CONNECTING')
OPEN = State('OPEN')
HALF_OPEN = State('OPEN')
CLOSING = State('CLOSING')
CLOSED = State('CLOSED')  # sending has failed; what was received before is still delivered
OVER = State('CLOSED')  # it has ended: nothing follows but `on_close`

LAST_BYTES = 8 << 20  # that the kernel may still hold when sending has failed: more than Linux's largest buffers


class Stream(Handle):
    """A connection. Made by `listen_*`, `connect_*` and `adopt`, never by hand.

    Its callbacks are plain attributes and can be replaced at any time: `on_connect(conn)`, `on_data(conn, data)` with
    bytes, `on_eof(conn)`, `on_drain(conn)`, `on_close(conn, exc)`, `on_error(conn, exc)` for exceptions that the
    others raise. `data` is yours. After `on_close` returned, all of them are dropped.
    """

    __slots__ = (
        'data',
        'on_close',
        'on_connect',
        'on_data',
        'on_drain',
        'on_eof',
        'on_error',
        'options',
        'origin',
        'peer',
        'sock',
        'state',
        'timeouts',
        'tls',
        'writer',
        'written_at',
    )

    def __init__(self, loop: Loop, options: Options, callbacks: Callbacks | Listener, origin: Origin | None) -> None:
        self.loop = loop
        self.events: int = 0
        timers = loop.timers
        if loop.now >= timers.second + 1:
            timers.second = int(loop.now)
        self.since: float = timers.second
        self.sock: socket = None  # type: ignore[assignment]  # until connected
        self.state: State = CONNECTING
        self.options: Options = options
        self.writer: Writer | None = None
        self.origin: Origin | None = origin
        self.data: Any = None
        self.peer: Any = None
        self.on_connect: OnConnect | None = callbacks.on_connect
        self.on_data: OnData | None = callbacks.on_data
        self.on_eof: OnEof | None = callbacks.on_eof
        self.on_drain: OnDrain | None = callbacks.on_drain
        self.on_close: OnClose | None = callbacks.on_close
        self.on_error: OnError | None = callbacks.on_error
        self.tls: Any = None
        # What limits its time: the second in which it is looked at, the timer of `linger` while closing, or None.
        self.timeouts: int | Timer | None = None
        self.written_at: float = self.since

    # -- what the loop calls

    def handle_read(self) -> None:
        """One recv, then the user. Readiness is level-triggered: what is left is ready again, after the others."""
        try:
            data = self.sock.recv(self.options.read_size)
        except BlockingIOError:
            self.loop.watchers.no_progress(self)
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
            self.since = self.loop.timers.clock()
        on_data = self.on_data
        if on_data is not None:
            on_data(self, data)

    def handle_write(self, dispatched: bool = True) -> None:
        """Send what waits, as much as the kernel takes at once.

        dispatched: the selector has reported room. False: a write tries at once, and finding none is no stall.
        """
        writer = self.writer
        assert writer is not None
        counters = self.loop.counters
        buffers = writer.buffers()
        if buffers:
            try:
                if type(buffers) is FilePart:
                    sent = buffers.send_some(self.sock)
                else:
                    sent = self.sock.sendmsg(buffers) if HAS_SENDMSG else send_first(self.sock, buffers)
            except BlockingIOError:
                if dispatched:
                    self.loop.watchers.no_progress(self)
                return
            except OSError as exc:
                self._write_failed(exc)
                return
            del buffers  # the writer may grow its last one again
            counters.writes += 1
            counters.bytes_out += sent
            writer.advance(sent)
            if self.timeouts is not None:
                self.written_at = self.loop.timers.clock()
        for _, on_written, args in writer.reached():
            self.loop.completions.append((self, on_written, args))
        if writer.full and writer.buffered <= self.options.low_water:
            writer.full = False
            self.loop.completions.append((self, Stream.handle_drain, ()))
        if not writer.buffered:
            self._flushed(writer)
        else:
            counters.short_writes += 1

    def handle_accepted(self) -> None:
        """Told as a completion, in the turn in which it was accepted: `on_connect`."""
        if self.on_connect is None:
            return
        if self.closed:  # over TLS it may have failed since: nothing but its end is told then
            self.on_data = self.on_eof = None
        else:
            self.on_connect(self)

    def handle_first_read(self) -> None:
        """Told as a completion after a deferred accept, when the client has spoken: read before it is registered.

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

    def handle_drain(self) -> None:
        """Told as a completion: what waits has fallen to the low-water mark."""
        if self.on_drain is not None and not self.closed and not (self.writer is not None and self.writer.full):
            self.on_drain(self)

    def handle_flushed(self) -> None:
        """Told as a completion, behind `on_written` and `on_drain`: look for room no more, unless they wrote on."""
        if self.writer is DRAINED:
            self.loop.watchers.set_events(self, self.events & ~WRITE)

    def handle_both_ended(self) -> None:
        """Called as a completion after `on_eof` when our side has ended too: unless `on_eof` raised, all went well."""
        if self.state is HALF_OPEN:
            self.finish(None)

    def handle_closed(self, exc: BaseException | None) -> None:
        """Told as the last completion of a connection: `on_close`, after which nothing of the user's is kept."""
        if self.sock is not None or self.origin is not None:
            Stream.finish(self, exc)  # the first time it found no memory or stack for all of it
        on_close = self.on_close
        called = True
        self.on_error = None  # what on_close raises is logged
        try:
            if on_close is not None:
                on_close(self, exc)
        except (MemoryError, RecursionError) as failure:
            # Raised by the call itself and not inside the callback: the loop calls this method again.
            called = failure.__traceback__.tb_next is not None  # type: ignore[union-attr]
            raise
        finally:
            if called:
                busy = self.loop.watchers.busy
                if busy:
                    busy.discard(self)
                headers = self.options.shared.proxy_headers
                if headers:
                    headers.pop(self, None)
                self.writer = ENDED
                self.on_connect = self.on_data = self.on_eof = self.on_drain = self.on_close = self.data = None

    def handle_last_reads(self, left: int = LAST_BYTES) -> None:
        """Told as a completion after sending failed: deliver what was received before, then end."""
        if self.sock is None or self.state is not CLOSED:
            return
        if self.loop.watchers.suspended.get(self):  # first what was received already
            self.loop.completions.append((self, type(self).handle_last_reads, (left,)))
            return
        if left > 0 and self.events & READ:
            before = self.loop.counters.reads
            self.loop.completions.append((self, type(self).handle_last_reads, (left - self.options.read_size,)))
            self.handle_read()
            if self.loop.counters.reads != before or self.sock is None:
                return
        assert self.writer is not None
        self.finish(self.writer.error)

    def handle_linger_over(self) -> None:
        """Called by the timer of `linger`."""
        self.reset(
            WriteTimeout(
                f'{show(self.peername)} did not take the last {self.buffered} bytes and the end of the '
                f'stream within {self.options.linger:g} s of close(); it was reset'
            )
        )

    def handle_look(self, now: float) -> None:
        """Called in the second in which the next time limit may be over."""
        if type(self.timeouts) is not int:
            return  # they ended, or changed, while there was no memory to say so
        if self.state is CLOSED:
            self.timeouts = None
            return  # sending has failed: what was received is delivered now, and then it ends
        over, next_look = look_at_limits(self, now)
        if type(over) is not WriteTimeout and over is not None and self._has_input():
            # The peer has sent something, which is read next: a callback was slow, or reading was paused.
            over, next_look = None, now + 1
        if over is not None:
            self.reset(over)
        else:
            self.timeouts = self.loop.timers.buckets.add(self, next_look)

    def handle_held_messages(self) -> None:
        """Called as a completion after `resume_reading`: a layer above passes on what it held during the pause."""
        if self.loop.watchers.suspended.get(self):
            layer: Any = self.on_data
            if hasattr(layer, 'handle_resumed'):
                layer.handle_resumed(self)
            else:
                continue_reading(self)  # another callback has taken the place of the layer

    def handle_failed(self, exc: Exception) -> None:
        self.reset(exc)

    def handle_exhausted(self, exc: Exception) -> bool:
        """Memory or stack ran out while it was read, written or opened: bytes may be lost, so it is reset.

        When it has ended already, only its last completions are left, which can be run again.
        """
        if self.state is OVER:
            return False
        self.reset(exc)
        return True

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()
        self.finish(exc)

    def may_log(self) -> bool:
        return self.options.shared.may_log(self.loop.timers.clock())

    # -- writing

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        """Send bytes, now as far as the kernel takes them, the rest when it can; never blocks.

        data        bytes are kept by reference; of a bytearray or memoryview, what cannot be sent at once is copied
        on_written  called as `on_written(conn, *args)` when the kernel has accepted all bytes up to here, in the order
                    of the writes, never inside this call, and never if the connection fails first

        Returns False when `high_water` or more bytes wait now: hold back until `on_drain`. Also when the connection
        has failed, of which `on_close` is about to tell; the bytes are dropped then.
        Raises `ConnectionClosed` after your own `close`, `abort` or `write_eof` and after `on_close`; TypeError for
        what is not bytes. A write that raises, RecursionError and MemoryError too, has sent nothing. Where one of these
        comes when some of the bytes may be sent, this returns False and `on_close` is called with it.
        """
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        writer = self.writer
        if (writer is not None and writer is not DRAINED) or type(data) is not bytes or not data:
            return self._queue((data,), on_written, args)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._write_failed(exc, data)
            return False
        except MemoryError as exc:  # perhaps of the result, and the bytes are sent
            starved = self.loop.watchers.starved
            starved.append(self)
            starved.append(exc)
            self.writer = BROKEN
            return False
        try:
            loop = self.loop
            counters = loop.counters
            counters.writes += 1
            counters.bytes_out += sent
            if self.timeouts is not None:
                self.written_at = loop.timers.clock()
            if sent != len(data):
                return self._keep_rest(data, sent, on_written, args)
            if on_written is not None:
                loop.completions.append((self, on_written, args))
        except (MemoryError, RecursionError) as exc:
            if not sent:
                self.writer = writer
                raise
            starved = self.loop.watchers.starved
            starved.append(self)
            starved.append(exc)
            self.writer = BROKEN
            return False
        return True

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts
    ) -> bool:
        """Send several buffers with one system call; otherwise as `write`."""
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        check_buffers(buffers)
        return self._queue(buffers, on_written, args)

    def send_file(
        self,
        file: HasFileno,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
    ) -> bool:
        """Send bytes of a file, by the system and not through our memory where it can (`sendfile`).

        file    open for reading, a regular file; only its descriptor is used, of which a duplicate is kept: it may be
                closed after this call. Its position does not count and, except on Windows, does not move
        offset  the first byte to send
        count   how many, None: to the end that the file has now. They are promised: should the file become shorter
                meanwhile, the connection is reset with `SendFileError`

        The rest is as `write` has it: the order with other writes, `on_written`, the end. What of the file was not sent
        counts in `buffered` and towards the water marks, but not towards `max_buffered`. It is read as the peer takes
        it, which blocks as long as the disk does. `linger` holds for files too: close after a long one in `on_written`.
        Raises ValueError for what is no regular file or does not have these bytes, and OSError from its descriptor.
        """
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        return self._queue((file_part(self.loop.watchers.kernel, file, offset, count),), on_written, args)

    def write_eof(self) -> None:
        """End the write side after what waits; the peer reads end of file, and we go on reading what it sends.

        The safe end for a peer that may still be sending: `write_eof`, then wait for `on_eof`. When both sides have
        ended, the connection closes by itself. Does nothing when it is ended or closed already.
        """
        writer = self.writer
        if self.state not in (CONNECTING, OPEN) or (writer is not None and writer.ended):
            return
        if writer is None or writer is DRAINED:
            self._shut_down()
        else:
            writer.ended = True

    @property
    def buffered(self) -> int:
        """How many bytes wait to be sent. In `on_close`: how many the kernel never accepted."""
        return 0 if self.writer is None else self.writer.buffered

    def set_write_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the water marks of this connection, in bytes; ValueError unless 0 <= low <= high.

        `ReactorError` in another thread than the loop's.
        """
        self.loop.watchers.check_thread()
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

        on_secured         called as `on_secured(conn, *args)` when the handshake is done; `on_close` tells a failure
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
        self.loop.watchers.check_thread()
        check_callback('on_secured', on_secured)
        check_server_hostname(server_hostname, context)
        server_side = None if server_side is None else switch('server_side', server_side)
        handshake_timeout = time_limit('handshake_timeout', handshake_timeout)
        if self.state is not OPEN or (self.writer is not None and self.writer.ended):
            raise ConnectionClosed(f'start_tls on {self!r}: it has to be open in both directions')
        tls_class = self.options.shared.tls_class
        tls_class.upgrade(self, context, (on_secured, args), server_side, server_hostname, handshake_timeout)

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
        """Whether bytes that arrive go to `on_data`: reading is not paused, not over, and nobody has closed it here."""
        return self.on_data is not None and (self.events & READ != 0 or self.loop.watchers.suspended.get(self, False))

    @property
    def unread(self) -> bool:
        """Whether bytes of the peer have arrived that were not read yet; False while connecting and after the end."""
        return self.sock is not None and self.loop.watchers.kernel.has_bytes(self.sock)

    # -- ending

    def close(self) -> None:
        """Stop reading, send what waits, then close; `on_close(conn, None)` tells. Closing twice does nothing.

        All of it within `linger` seconds, else the connection is reset. Where something may be unread (reading is
        paused, or bytes had to wait for the peer), the write side is ended first and the peer's bytes are dropped until
        it ends too: closing with unread bytes would reset the connection and lose what is under way.
        """
        state, writer = self.state, self.writer
        if state is OPEN and writer is None and self.events & READ:  # nothing waits, nothing is known to be unread
            self.finish(None)
            self.writer = ENDED
            return
        if state is CONNECTING or (state is HALF_OPEN and not self.buffered):
            self.finish(None)
        elif state is OPEN or state is HALF_OPEN:
            self._begin_closing()
        else:
            self.on_data = None  # sending has failed; what was received before is no longer wanted
        self._refuse_writes()

    def abort(self, exc: BaseException | None = None) -> None:
        """Discard what waits and reset the connection now; `on_close(conn, exc)` is called. Twice is fine.

        exc  why, for `on_close`. A connection that has failed already keeps the reason for that

        Raises TypeError for what is not an exception.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f'exc is an exception or None, not {shown(exc)}')
        self.reset(exc)
        self._refuse_writes()

    def reset(self, exc: BaseException | None) -> None:
        """Abort, and have `on_close` tell why."""
        if self.sock is not None:
            try:
                self.sock.setsockopt(SOL_SOCKET, SO_LINGER, self.loop.watchers.kernel.reset_on_close)
            except OSError:
                pass  # then it is no longer connected, and there is nothing to reset
        self.finish(exc)

    @property
    def closed(self) -> bool:
        """True from `close`, `abort` or failure on."""
        state = self.state
        return state is not OPEN and state is not HALF_OPEN and state is not CONNECTING

    # -- facts

    @property
    def peername(self) -> Any:
        """The peer's address; asked of the system once, None when it is too late for that.

        On a listener with `proxy_protocol` the client's, as the proxy has told it.
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
        return self.options.shared.proxy_headers.get(self)

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
        be closed) to the last of its answer, False when you wait for the next. In `on_close` it tells whether the
        answer was given. From False to True counts one in `requests` of `stats`. Setting it on a connection that is
        over does nothing; TypeError for what is not a bool.
        """
        return self in self.loop.watchers.busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        all_busy = self.loop.watchers.busy
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
        second = None
        if self.options.timed:
            now = self.loop.timers.clock()
            self.since = self.written_at = now
            second = self.loop.timers.buckets.add(self, look_at_limits(self, now)[1])
        if self.timeouts != second:
            self._stop_timeouts()
        self.timeouts = second

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
        self.state = OPEN
        writer = self.writer
        assert writer is not None
        for _, on_written, args in writer.reached():  # empty writes, which wait for nothing any more
            self.loop.completions.append((self, on_written, args))
        if writer.untouched:
            self.writer = None
        events = (READ if reading else 0) | (0 if self.writer is None else WRITE)
        try:
            self.loop.watchers.set_events(self, events)
        except SelectorFull as exc:
            self.reset(exc.with_traceback(None))
        if self.sock is None:
            return  # it has failed, and is told so
        if self.options.timed:
            self.start_timeouts()
        if self.on_connect is not None:
            self.on_connect(self)

    # -- for its kinds

    def set_reading(self, reading: bool) -> None:
        """Do what `resume_reading` or `pause_reading` was called for. Each kind has its own; both come here alone, so
        that `Stream.resume_reading` works on every kind of stream.
        """
        if self in self.loop.watchers.suspended:
            self.set_suspended(reading)
        elif self.state is OPEN or (self.state is CLOSED and self.sock is not None):  # see `handle_last_reads`
            if reading and self.timeouts is not None and not self.events & READ:
                if self.options.read_timeout is not None:
                    self.since = self.loop.timers.clock()  # the time for which reading was paused does not count
            self.loop.watchers.set_events(self, self.events | READ if reading else self.events & ~READ)
        elif self.state is CONNECTING and self.origin is not None:
            self.origin.reading = reading  # type: ignore[attr-defined]

    def set_suspended(self, reading: bool) -> None:
        """The same while a layer above holds messages: it passes them on first."""
        suspended = self.loop.watchers.suspended
        if reading and not suspended[self]:
            self.loop.completions.append((self, Stream.handle_held_messages, ()))
        suspended[self] = reading

    def refuses(self, ended: bool, weight: int) -> bool:
        """Whether a write is not taken: the user has ended the stream, or so much waits that the peer is cut off."""
        if ended:
            raise ConnectionClosed(
                f'write to {show(self.peername)} after close(), abort() or write_eof(): '
                'nothing was sent; look at conn.closed first'
            )
        if weight < self.options.max_buffered:
            return False
        self.reset(
            WriteBufferFull(
                f'{show(self.peername)} is too slow: {self.buffered} bytes waited for it; it was reset. '
                'Hold back while write() returns False, until on_drain'
            )
        )
        return True

    def handle_end(self) -> None:
        """The peer has ended its side."""
        on_eof = self.on_eof
        if self.state is OPEN and on_eof is not None:
            if self.writer is ENDED:
                self.loop.completions.append((self, Stream.handle_both_ended, ()))
            self.state = HALF_OPEN
            self.loop.watchers.set_events(self, self.events & ~READ)
            on_eof(self)
        elif self.state is OPEN and self.buffered:
            self._begin_closing()
            assert self.writer is not None
            self.writer.error = PEER_ENDED
        else:
            self.finish(None)

    def read_failed(self, exc: OSError) -> None:
        """A recv has failed."""
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        self.finish(exc.with_traceback(None))

    def finish(self, exc: BaseException | None) -> None:
        """Close the socket now, and have `on_close(conn, exc)` called as a completion, which is appended first.

        What it holds is given back in steps that do nothing the second time, so it can be called again after a failure.
        All in one function: a call for the steps costs a short connection 0.5 % of its instructions.
        """
        loop, over = self.loop, self.state is OVER
        if not over:
            writer = self.writer
            if writer is None or writer is DRAINED:
                writer = BROKEN
            elif self.state is CLOSED and (writer.error is not None or writer is ENDED):
                exc = writer.error  # sending failed first, and that is what ended it
            loop.completions.append((self, Stream.handle_closed, (exc,)))
            if writer.error is None and writer is not ENDED:
                writer.error = PEER_ENDED
            self.writer = writer
            self.state = OVER
        elif self.sock is None and self.origin is None:
            return
        try:
            if self.timeouts is not None:
                self._stop_timeouts()
            loop.watchers.remove(self)
            sock = self.sock
            if sock is not None:
                try:
                    sock.close()
                except OSError:
                    pass  # some systems report a reset here; the descriptor is gone all the same
                self.sock = None  # type: ignore[assignment]
            origin = self.origin
            if origin is not None:
                origin.handle_closed(self)
                self.origin = None
        except (MemoryError, RecursionError):
            self.events = self.events and UNHEARD
            if over:
                raise  # else `handle_closed` does the rest

    def forget(self) -> None:
        """Give back what it holds, and never call its user: it could not be opened."""
        self.on_connect = self.on_data = self.on_eof = self.on_drain = self.on_close = self.origin = None
        self.finish(None)

    # -- in this file

    def _has_input(self) -> bool:
        return self.loop.watchers.suspended.get(self, False) or (self.events & READ != 0 and self.unread)

    def _queue(
        self, buffers: Iterable[Buffer | FilePart], on_written: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> bool:
        pieces = [data if type(data) is FilePart else flat(data) for data in buffers]  # type: ignore[arg-type]
        before = writer = self.writer
        if writer is not None and writer is not DRAINED:
            if writer.error is not None and not writer.ended:
                return False
            if self.refuses(writer.ended, writer.weight):
                return False
            if writer.extend(pieces, on_written, args) < self.options.high_water:
                return True
            writer.full = True
            return False
        writer = Writer()
        writer.extend(pieces, on_written, args)
        self.writer = writer
        try:
            self.handle_write(False)  # it may well be writable
            if self.writer is DRAINED:
                self.writer = before  # nothing had to wait
                return True
            if writer.error is not None:
                return False
            self._wait(writer)
            return not writer.full
        except (MemoryError, RecursionError) as exc:
            if type(exc) is RecursionError and not writer.sent:
                self.writer = before
                raise
            starved = self.loop.watchers.starved
            starved.append(self)
            starved.append(exc)
            self.writer = BROKEN
            return False

    def _keep_rest(
        self, data: bytes, sent: int, on_written: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> bool:
        self.loop.counters.short_writes += 1
        self.writer = writer = Writer()
        writer.extend((data,), on_written, args)
        writer.advance(sent)
        self._wait(writer)
        return not writer.full

    def _wait(self, writer: Writer) -> None:
        writer.full = writer.buffered >= self.options.high_water
        if self.timeouts is not None:
            self.written_at = self.loop.timers.clock()
        self.loop.watchers.set_events(self, self.events | WRITE)

    def _flushed(self, writer: Writer) -> None:
        if self.state is CLOSING or writer.ended:
            self._shut_down()
        else:
            self.writer = DRAINED
            if self.events & WRITE:
                self.loop.completions.append((self, Stream.handle_flushed, ()))

    def _shut_down(self) -> None:
        writer = self.writer
        by_peer = writer is not None and writer.error is not None and not writer.ended  # the user was not told yet
        self.writer = BROKEN if by_peer else ENDED
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError as exc:
            if exc.errno in LOST_ERRORS:
                self.loop.watchers.evict(self)  # reading will not tell: epoll is silent about it
                return
            # else the connection is gone already, and reading will tell
        if self.state is HALF_OPEN:
            self.finish(None)
        else:
            self.loop.watchers.set_events(self, READ if self.state is CLOSING else self.events & ~WRITE)

    def _begin_closing(self) -> None:
        linger = self.loop.timers.later(self.options.linger, Stream.handle_linger_over, self)
        limits, self.timeouts = self.timeouts, linger
        self.state = CLOSING
        self.on_data = None  # what still comes is read and dropped
        if limits is not None:
            self.loop.timers.buckets.discard(self, limits)  # type: ignore[arg-type]
        if self.buffered:
            self.loop.watchers.set_events(self, WRITE)
        else:
            self._shut_down()

    def _write_failed(self, exc: OSError, lost: bytes = b'') -> None:
        # What the peer sent before is still to be delivered, by a completion: we may be inside a user's write.
        if self.writer is None or self.writer is DRAINED:
            self.writer = Writer()
            self.writer.extend((lost,), None, ())
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        if isinstance(exc, SendFileError):
            self.reset(exc.with_traceback(None))
            return
        self.writer.error = exc.with_traceback(None)
        self.state = CLOSED
        self.loop.watchers.set_events(self, self.events & READ)
        self.loop.completions.append((self, type(self).handle_last_reads, ()))

    def _refuse_writes(self) -> None:
        # The user ended it, so a later write is the user's mistake.
        if self.writer is None or self.writer is DRAINED or self.writer is BROKEN:
            self.writer = ENDED
        elif self.writer is not ENDED:
            self.writer.ended = True

    def _stop_timeouts(self) -> None:
        timeouts = self.timeouts
        if isinstance(timeouts, int):
            self.loop.timers.buckets.discard(self, timeouts)
        elif timeouts is not None:
            timeouts.cancel()
        self.timeouts = None


def suspend_reading(stream: Stream) -> None:
    """Receive nothing until `continue_reading`, because a layer above has more to pass on to the user first.

    For the user it is reading all the while: `reading` is True until `pause_reading`. After `resume_reading` the layer,
    which is the `on_data` of the stream, goes on: its `handle_resumed(stream)` is called in the completions phase.
    """
    if stream not in stream.loop.watchers.suspended:
        stream.pause_reading()
        stream.loop.watchers.suspended[stream] = True


def hold_reading(stream: Stream) -> None:
    """The same for a stream whose user has paused reading."""
    stream.loop.watchers.suspended[stream] = False


def continue_reading(stream: Stream) -> None:
    """End a suspension; does nothing when there is none any more."""
    if stream.loop.watchers.suspended.pop(stream, False):
        stream.resume_reading()
