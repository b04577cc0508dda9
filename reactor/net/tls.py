"""TLS: streams whose bytes on the wire are encrypted, for connecting, listening and `start_tls`.

Owns the handshake, what waits for it, and the end of the stream as TLS tells it. Knows no more of sockets than to read
one; what its session has encrypted is written like any other bytes, so the marks, the limits and `on_written` are those
of plain streams: a write is accepted when all of its ciphertext is.

The rules: `state` is CONNECTING during the first handshake, so nobody is told anything before the peer is known; the
end of the connection without the end of the TLS stream (close_notify, RFC 8446 section 6.1) is an error, since somebody
may have cut it short; and whatever OpenSSL finds wrong ends the connection at once, so no later call meets an SSL
object that cannot go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Self

from ..errors import ConnectTimeout, HandshakeTimeout, ReactorError, SelectorFull, TLSError
from ..hints import Buffer, HasFileno, SSLContext, Ts, socket
from ..loop.checks import shown
from ..loop.watcher import READ
from .addresses import show
from .files import READ_FILE_SIZE, FilePart, file_part
from .session import Buffers, Session
from .stream import CLOSED, CLOSING, CONNECTING, LAST_BYTES, OPEN, Stream
from .writer import BROKEN, DRAINED, MARK_COST, PEER_ENDED, check_buffers, flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLError

    from ..callbacks import Loop, OnData, OnEof
    from .session import Told
    from .stream import State

# Steps of one listener. The first of a handshake takes 1.1 ms with an RSA key of 2048 bits (0.4 ms with P-256, 6 ms
# with RSA of 4096 bits). With 4 of them in a turn, ten clients that connected again and again doubled the 99th
# percentile of the latency of the others; with 2 it grew by a fifth.
HANDSHAKES_PER_TURN = 2


class TLSStream(Stream):
    """A `Stream` over TLS; `conn.tls` tells what was agreed. `on_connect` is called after the handshake.

    `buffered` and the limits count ciphertext, and during a handshake what is still to be encrypted.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        since: float
        state: State
        tls: Any
        on_data: OnData | None
        on_eof: OnEof | None

    def __init__(self, *args: Any) -> None:
        Stream.__init__(self, *args)
        self.tls = Session(buffers_of(self.loop))
        self.tls.on_secured = (Stream.handle_accepted, ())

    # -- for its maker

    def attach(self, sock: socket, deferred: bool = False) -> None:
        """Take an accepted socket: the client begins the handshake."""
        options = self.options
        self.tls.begin(options.ssl, True, None)
        Stream.attach(self, sock, deferred)
        self.limit_handshake(options.handshake_timeout, None)

    def opened(self, reading: bool, deadline: float | None = None) -> None:
        """The socket is connected: begin the handshake, which is to be done by `deadline` as well."""
        session, options = self.tls, self.options
        session.begin(options.ssl, False, options.server_hostname)
        self.writer = None
        try:
            self.loop.watchers.set_events(self, READ)
        except SelectorFull as exc:
            self.reset(exc.with_traceback(None))
        if self.sock is None:
            return  # it was lost, and is told so
        if options.timed:
            self.start_timeouts()
        self.limit_handshake(options.handshake_timeout, deadline)
        self._shake_hands()

    @classmethod
    def upgrade(
        cls,
        stream: Stream,
        context: SSLContext,
        on_secured: Told,
        server_side: bool | None,
        server_hostname: str | None,
        timeout: float,
    ) -> None:
        """Called by `start_tls`: from here on, what `stream` sends and receives is TLS."""
        session = Session(buffers_of(stream.loop))
        session.begin(context, check_context(context, server_side), server_hostname)
        session.on_secured = on_secured
        session.reading = bool(stream.events & READ)
        stream.__class__ = cls
        stream.tls = session
        assert isinstance(stream, TLSStream)
        stream.loop.watchers.set_events(stream, stream.events | READ)
        if stream.sock is None:
            return  # its descriptor was lost, and it is told so
        stream.limit_handshake(timeout, None)
        if not session.ssl_object.server_side:
            stream._decrypt_later()  # not in this call: an `sni_callback` may have made it, inside another handshake

    def limit_handshake(self, seconds: float, deadline: float | None) -> None:
        """The handshake lasts at most `seconds`, and not beyond `deadline`."""
        self.state = CONNECTING
        kind: type[Exception] = HandshakeTimeout
        timers = self.loop.timers
        if deadline is not None and deadline - timers.clock() < seconds:
            seconds, kind = deadline - timers.clock(), ConnectTimeout
        self.tls.timer = timers.later(seconds, TLSStream.handle_handshake_over, self, kind)
        self.tls.timer.unref()  # the stream itself keeps the loop running

    # -- what the loop calls

    def handle_read(self) -> None:
        """One recv, then a few records, then the user."""
        session = self.tls
        if self.state is CLOSING:
            Stream.handle_read(self)  # what still comes is dropped
            return
        if session.more or session.ended:
            return  # first what is here already
        try:
            data = self.sock.recv(self.options.read_size)
        except BlockingIOError:
            self.loop.watchers.no_progress(self)
            return
        except OSError as exc:
            self.read_failed(exc)
            return
        counters = self.loop.counters
        counters.reads += 1
        counters.bytes_in += len(data)
        if self.timeouts is not None:
            self.since = self.loop.timers.clock()
        session.received(data)
        if self.state is CONNECTING:
            self._shake_hands_in_turn()
        else:
            self._decrypt()

    def handle_records(self) -> None:
        """Called as a completion: there was more than for one turn, or it came with the end of the handshake."""
        self.tls.more = False
        if self.state is CONNECTING:
            self._shake_hands_in_turn()
        elif self.tls.ended:
            self.handle_stream_end()
        elif self.events & READ and self.state is not CLOSING:
            self._decrypt()

    def handle_waiting(self) -> None:
        """Called as a completion, once a turn while handshakes wait: the first of them take a step in the next turn.

        So each turn costs as much as its steps, however many clients wait.
        """
        shared, completions, turn = self.options.shared, self.loop.completions, self.loop.counters.loop_count
        waiting, count, stream = shared.waiting, 0, self
        if shared.handshakes[0] > turn:
            return  # all that waited had ended, and then others came: their completion has done it
        while waiting and count < HANDSHAKES_PER_TURN:
            stream = next(iter(waiting))
            completions.append((stream, TLSStream.handle_handshake, ()))
            del waiting[stream]
            count += 1
        shared.handshakes = (turn + 1, count)
        if waiting:
            completions.append((stream, TLSStream.handle_waiting, ()))

    def handle_handshake(self) -> None:
        """Called as a completion: it is the turn of this handshake."""
        self.tls.more = False
        if self.state is CONNECTING:
            self._shake_hands()

    def handle_held_writes(self) -> None:
        """Called as a completion after `on_connect` or `on_secured`: send what was written during the handshake."""
        if self.tls.held is not None:
            self._send_held()
        self._end_after_held()

    def handle_last_reads(self, left: int = LAST_BYTES) -> None:
        if self.tls.more and self.sock is not None and self.events & READ:
            # What was read already comes first, a few records in a turn.
            self.loop.completions.append((self, TLSStream.handle_last_reads, (left,)))
        else:
            Stream.handle_last_reads(self, left)

    def handle_stream_end(self) -> None:
        """Called as a completion after the last data: the peer has ended its side."""
        session = self.tls
        if self.state is not OPEN or not self.events & READ:
            return  # it is over already; or reading is paused, and `resume_reading` comes back to this
        if session.held:
            self._fail('ended its side of the TLS stream during a handshake', None, 'what waited for it was not sent')
            return
        if self.on_eof is None:
            self._say_farewell()
        self.handle_end()

    def handle_handshake_over(self, kind: type[Exception]) -> None:
        """Called by the timer of the handshake."""
        if self.state is CONNECTING:
            self.reset(kind(f'the TLS handshake with {show(self.peername)} took too long; the connection was reset'))

    # -- what users call

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        session = self.tls
        if self.writer is None and session.held is None and type(data) is bytes and on_written is None:
            try:
                record = session.encrypt_record(data)  # the short way, as nearly all writes go
            except MemoryError as exc:
                return self._lose(exc)
            if record:
                try:
                    return Stream.write(self, record)
                except (MemoryError, RecursionError) as exc:
                    return self._lose(exc)
        return self.writelines((data,), on_written, *args)

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts
    ) -> bool:
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        check_buffers(buffers)
        pieces = [flat(data) for data in buffers]
        session, writer = self.tls, self.writer
        if writer is not None:
            ended = writer.ended or session.last is not None
            if writer.error is not None and not ended:
                return False
            if self.refuses(ended, writer.weight):
                return False
        if session.held is not None:
            return self._hold(pieces, on_written, args)
        try:
            parts = session.encrypt(pieces)
        except session.ssl.SSLWantReadError:
            session.held = []
            return self._hold(pieces, on_written, args)
        except session.ssl.SSLError as exc:
            self._fail('cannot be written to', exc.with_traceback(None), 'nothing was sent')
            return False
        except MemoryError as exc:
            return self._lose(exc)
        try:
            if len(parts) == 1:
                return Stream.write(self, parts[0], on_written, *args)
            return Stream.writelines(self, parts, on_written, *args)
        except (MemoryError, RecursionError) as exc:
            return self._lose(exc)

    def send_file(
        self,
        file: HasFileno,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
    ) -> bool:
        """As `Stream.send_file`, but what is sent is read and encrypted in this call.

        It waits in memory then, and blocks the loop meanwhile: send a long file in parts, the next from `on_written`.
        """
        part = file_part(self.loop.watchers.kernel, file, offset, count)
        if not isinstance(part, FilePart):
            return self.writelines((part,), on_written, *args)
        pieces = []
        while part.sent < len(part):
            pieces.append(part.read(READ_FILE_SIZE))
            part.sent += len(pieces[-1])
        return self.writelines(pieces, on_written, *args)

    @property
    def buffered(self) -> int:
        held: int = self.tls.held_bytes
        return held + (0 if self.writer is None else self.writer.buffered)

    @property
    def reading(self) -> bool:
        # The handshake itself is read also while the user has paused reading.
        return super().reading and (
            self.state is not CONNECTING or self.tls.reading or self.loop.watchers.suspended.get(self, False)
        )

    def write_eof(self) -> None:
        if self.state != OPEN and self.state is not CONNECTING:
            return
        if self.tls.held is not None:
            self.tls.last = self.tls.last or TLSStream.write_eof
            return
        if not (self.writer is not None and self.writer.ended):
            self._say_farewell()
        if self.closed:
            self._refuse_writes()  # the peer did not take it
        else:
            Stream.write_eof(self)

    def close(self) -> None:
        if self.state == OPEN and self.tls.held:
            self._close_after_handshake()
            return
        if self.state == OPEN and not (self.writer is not None and self.writer.ended):
            self._say_farewell()
            if self.writer is None:
                self.writer = DRAINED  # the peer may be talking: TLS sends tickets, new keys and its own farewell
        Stream.close(self)

    @property
    def closed(self) -> bool:
        return super().closed or self.tls.last is TLSStream.close

    @property
    def unread(self) -> bool:
        return self.tls.unread or super().unread

    def start_tls(self, *args: Any, **options: Any) -> None:  # type: ignore[override]  # whatever it is given
        raise ReactorError('this connection is TLS already')

    # -- for its base

    def set_reading(self, reading: bool) -> None:
        if self.state is CONNECTING:
            self.tls.reading = reading
            if self in self.loop.watchers.suspended:
                self.set_suspended(reading)
            return
        Stream.set_reading(self, reading)
        if reading and (self.state is OPEN or self.state is CLOSED):
            self._decrypt_later()  # what is here already is no readiness to come

    def finish(self, exc: BaseException | None) -> None:
        Stream.finish(self, exc)  # first: it appends the completion
        session = self.tls
        session.held = None  # `buffered` goes on saying how many bytes were held
        session.on_secured = (None, ())
        waiting = self.options.shared.waiting
        if waiting:
            waiting.pop(self, None)
        try:
            session.drop_received()
            if session.timer is not None:
                session.timer.cancel()
        except (MemoryError, RecursionError):
            pass  # it finds the connection closed, and does nothing

    # -- in this file

    def _shake_hands_in_turn(self) -> None:
        shared, turn = self.options.shared, self.loop.counters.loop_count
        last, steps = shared.handshakes
        steps = 0 if last < turn else steps
        if not shared.waiting and steps < HANDSHAKES_PER_TURN:
            shared.handshakes = (max(last, turn), steps + 1)
            self._shake_hands()
            return
        self.tls.more = True
        if not shared.waiting:
            shared.waiting = OrderedDict()
            self.loop.completions.append((self, TLSStream.handle_waiting, ()))
        shared.waiting[self] = None

    def _shake_hands(self) -> None:
        session = self.tls
        try:
            done = session.shake_hands()
        except session.ssl.SSLError as exc:
            self._fail('failed in the TLS handshake', exc.with_traceback(None), hint(session.ssl, exc))
            return
        if done:
            self._secured()
            return
        self._say(session.to_say())
        if session.more and self.state is CONNECTING:
            session.more = False
            self._decrypt_later()

    def _secured(self) -> None:
        session = self.tls
        session.timer.cancel()
        session.timer = None
        self.state = OPEN
        on_secured, args = session.on_secured
        if on_secured is not None:
            self.loop.completions.append((self, on_secured, args))
        session.on_secured = (None, ())
        if not session.reading:
            self.loop.watchers.set_events(self, self.events & ~READ)
        self._say(session.to_say())
        if self.state is not OPEN:
            pass  # sending has failed meanwhile, and `buffered` goes on saying what was never sent
        elif session.held or session.last is not None:
            # After `on_connect`, which may find that this peer must not get it, and abort.
            self.loop.completions.append((self, TLSStream.handle_held_writes, ()))
        else:
            session.held = None
        self._decrypt_later()  # not before `on_connect`: until then, nothing more is read either

    def _hold(
        self, pieces: list[bytes | memoryview], on_written: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> bool:
        """Keep a write until the handshake is done."""
        session = self.tls
        if self.refuses(session.last is not None, self.buffered + len(session.held) * MARK_COST):
            return False
        session.held.append(([bytes(piece) for piece in pieces], (on_written, args)))
        session.held_bytes += sum(map(len, pieces))
        full = self.buffered >= self.options.high_water
        session.full = session.full or full
        return not full

    def _lose(self, exc: Exception) -> bool:
        """Memory or stack ran out, and a part of the ciphertext is lost: the next turn ends the stream with `exc`.

        Without that part the peer could not decrypt what follows. Returns False, as `write` does then.
        """
        starved = self.loop.watchers.starved
        starved.append(self)
        starved.append(exc)
        if self.writer is None or self.writer is DRAINED:
            self.writer = BROKEN
        elif self.writer.error is None:
            self.writer.error = PEER_ENDED  # which drops what is written from now on
        return False

    def _send_held(self) -> None:
        """Send what waited for the end of a handshake, if it has ended."""
        session = self.tls
        held = session.held
        for index, (pieces, (on_written, args)) in enumerate(held):
            if self.state != OPEN:
                break  # sending has failed meanwhile
            try:
                parts = session.encrypt(pieces)
            except session.ssl.SSLWantReadError:
                del held[:index]
                return
            except session.ssl.SSLError as exc:
                self._fail('cannot be written to', exc.with_traceback(None), 'what waited was not sent')
                return
            except RecursionError:
                del held[:index]  # the rest is not encrypted yet, and can be sent on a stack that has room
                raise
            except MemoryError as exc:
                self._lose(exc)
                return
            try:
                session.held_bytes -= sum(map(len, pieces))
                Stream.writelines(self, parts, on_written, *args)
            except (MemoryError, RecursionError) as exc:
                self._lose(exc)
                return
        session.held = None
        if self.state != OPEN:
            return
        full, session.full = session.full, False
        writer = self.writer
        if full and (writer is None or writer is DRAINED):
            self.loop.completions.append((self, Stream.handle_drain, ()))
        elif full and writer is not None:
            writer.full = True  # so that on_drain is called, however little of it waits

    def _end_after_held(self) -> None:
        """Call what the user has called meanwhile: `write_eof` or `close`."""
        session = self.tls
        last = session.last
        if session.held is None and last is not None and self.state == OPEN:
            session.last = None
            last(self)

    def _close_after_handshake(self) -> None:
        """The peer has begun a new handshake, and writes wait for its end: go on with it, within `linger`."""
        session = self.tls
        if session.last is not TLSStream.close:
            session.last = TLSStream.close
            self.on_data = self.on_eof = None
            session.timer = self.loop.timers.later(self.options.linger, Stream.handle_linger_over, self)
            self.loop.watchers.set_events(self, self.events | READ)
            self._decrypt_later()

    def _decrypt(self) -> None:
        session = self.tls
        pieces, exc = session.decrypt()
        answer = session.to_say()
        if answer:
            writer = self.writer
            if writer is not None and not writer.ended and self.refuses(False, writer.weight):
                return  # it asks for new handshakes again and again, and takes nothing
            self._say(answer)
        if exc is not None:
            self._break(exc)
        elif session.ended:
            self.loop.completions.append((self, TLSStream.handle_stream_end, ()))
        elif session.more:
            self.loop.completions.append((self, TLSStream.handle_records, ()))
        if session.empty:
            self._check_empty()
        if session.held is not None:
            self._send_held()
            self._end_after_held()
        on_data = self.on_data
        if on_data is not None and pieces:
            on_data(self, pieces[0] if len(pieces) == 1 else b''.join(pieces))

    def _check_empty(self) -> None:
        session, most = self.tls, self.options.max_empty_records
        if most is not None and session.empty > most and self.sock is not None:
            self.reset(
                TLSError(
                    f'{show(self.peername)} sent only TLS records without data, more than the {most} in a row that '
                    'max_empty_records= allows; it was reset. If it has reasons to, raise the limit, or set it to None'
                )
            )

    def _decrypt_later(self) -> None:
        if not self.tls.more:
            self.tls.more = True
            self.loop.completions.append((self, TLSStream.handle_records, ()))

    def _say(self, data: bytes) -> None:
        """Send what TLS itself has to say, behind what waits, however much that is."""
        writer = self.writer
        if not data:
            return
        if writer is None or writer is DRAINED:
            Stream.write(self, data)
            if self.writer is not None:
                self.writer.full = False  # the user has not written it, and need not hear that it is gone
        elif not writer.ended and writer.error is None:
            writer.extend((data,), None, ())

    def _say_farewell(self) -> None:
        """Send close_notify, the end of our side of the stream.

        A peer that has closed its socket does not take it, and does not have to (RFC 8446, section 6.1): when nothing
        else waits, nothing is lost, and reading tells how the connection has ended.
        """
        writer, state = self.writer, self.state
        self._say(self.tls.farewell())
        if self.state is CLOSED and state is not CLOSED and isinstance(self.writer.error, BrokenPipeError):  # type: ignore[union-attr]
            self.writer, self.state = writer, state

    def _break(self, exc: SSLError) -> None:
        """The TLS stream is cut short or wrong: end the connection, after the data that came before."""
        if isinstance(exc, self.tls.ssl.SSLEOFError):
            what, advice = 'ended the connection without ending the TLS stream', 'do not take what it sent for complete'
        else:
            what, advice = 'broke the TLS stream', 'the connection was closed'
        self._fail(what, exc, advice)

    def _fail(self, what: str, exc: SSLError | None, advice: str) -> None:
        failed_before = self.state is CLOSED
        self._say(self.tls.to_say())  # the alert, by which the peer knows why
        why = '' if exc is None else f': {getattr(exc, "reason", None) or exc.strerror or exc}'
        error = TLSError(f'{show(self.peername)} {what}{why}; {advice}')
        error.__cause__ = exc
        if self.state is CLOSED and not failed_before:
            self.writer.error = error  # type: ignore[union-attr]  # the alert was not taken; this is why there was one
        self.finish(error)


def buffers_of(loop: Loop) -> Buffers:
    """The buffers that the TLS connections of `loop` share."""
    if loop.watchers.tls_buffers is None:
        loop.watchers.tls_buffers = Buffers()
    buffers: Buffers = loop.watchers.tls_buffers
    return buffers


def hint(ssl: Any, exc: SSLError) -> str:
    """What to do about a handshake that failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f'{exc.verify_message}; trust its issuer in the context, or ask for the name that it has'
    reason = getattr(exc, 'reason', None)  # not all of them have one
    if reason in ('HTTP_REQUEST', 'WRONG_VERSION_NUMBER'):
        return 'it does not speak TLS; check the port'
    if reason == 'CALLBACK_FAILED':
        return 'the sni_callback of the context refused the name that it asked for'
    return 'compare what both sides allow'


def check_context(context: Any, server_side: bool | None = None) -> bool:
    """Whether `context` is for the server's side; TypeError or ValueError when it is not what is needed."""
    import ssl

    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f'ssl takes an ssl.SSLContext, not {shown(context)}')
    protocol = context.protocol
    kinds = {ssl.PROTOCOL_TLS_SERVER: True, ssl.PROTOCOL_TLS_CLIENT: False}
    kind = kinds.get(protocol, server_side)
    if kind is None:
        raise ValueError('this context is for both sides; say which one with server_side=')
    if server_side is not None and kind is not server_side:
        raise ValueError(f'this context is for the {"server" if kind else "client"}, the other side is needed')
    return kind


def client_options(context: SSLContext | bool | None, server_hostname: str | None) -> dict[str, Any]:
    """What `Options` take to connect with; for True a context that verifies, with the system's authorities."""
    if context is None or context is False:
        return {}
    if context is True:
        import ssl

        context = ssl.create_default_context()
    check_context(context, False)
    if context.check_hostname and not server_hostname:
        raise ValueError('this context checks host names: give server_hostname')
    return {'ssl': context, 'server_hostname': server_hostname}
