"""TLS: streams whose bytes on the wire are encrypted, for connecting, listening and `start_tls`.

Owns the session: the handshake, what waits for it, and the end of the stream as TLS tells it. Knows no more of sockets
than to read one; what it has encrypted is written like any other bytes, so the marks, the limits and `on_written` are
those of plain streams: a write is accepted when all of its ciphertext is. OpenSSL works between two buffers in memory
(`ssl.MemoryBIO`), which avoids what a non-blocking SSL socket does: data without readiness, retries that must be equal.

The rules: `state` is CONNECTING during a handshake, so nobody is told anything before the peer is known; and the end of
the connection without the end of the TLS stream (close_notify, RFC 8446 section 6.1) is an error, since somebody may
have cut it short.
"""

from __future__ import annotations

from sys import version_info

from ..errors import ConnectTimeout, HandshakeTimeout, ReactorError, SelectorFull, TLSError
from ..loop.checks import shown
from ..loop.watcher import READ
from .addresses import show
from .files import READ_FILE_SIZE, FilePart, file_part
from .stream import CLOSED, CLOSING, CONNECTING, OPEN, Stream
from .writer import DRAINED, MARK_COST, check_buffers, flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import socket
    from ssl import SSLContext, SSLError, SSLObject
    from typing import Any

    from ..loop.timers import Timer
    from .stream import Buffer

    Told = tuple[Callable[..., object] | None, tuple[Any, ...]]

RECORDS_PER_TURN = 4  # of up to 16 KiB: what one recv may bring; small ones wait for the next turn
# A Python before that, such as Debian 12's, has OpenSSL 3 take a stream that was cut short for one that has ended
# (python/cpython#95494: OP_IGNORE_UNEXPECTED_EOF in every context).
CUT_IS_END = version_info < (3, 11, 4)
RECORD = 16384  # bytes of plaintext in the largest record
HANDSHAKES_PER_TURN = 8  # steps of one listener: with RSA one takes a millisecond, and others are being served


class Session:
    """The TLS side of a connection, `conn.tls`: what was agreed with the peer, once the handshake is done.

    `version` ('TLSv1.3'), `cipher` (its name), `alpn` (the protocol chosen, or None), `peer_certificate` (a dict as
    `ssl.SSLSocket.getpeercert` gives it, empty for one that was not verified, None without one) and
    `peer_certificate_der` (bytes or None). `ssl_object` is the `ssl.SSLObject`, for everything else.
    """

    __slots__ = (
        '_incoming',
        '_outgoing',
        'ended',
        'full',
        'held',
        'held_bytes',
        'more',
        'on_secured',
        'over',
        'reading',
        'ssl',
        'ssl_object',
        'timer',
    )

    ssl_object: SSLObject

    def __init__(self) -> None:
        import ssl

        self.ssl = ssl
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.on_secured: Told = (Stream.handle_accepted, ())
        self.held: list[tuple[list[bytes], Told]] = []  # writes that wait for the end of the handshake, in order
        self.held_bytes = 0
        self.full = False  # whether a held write returned False, so that `on_drain` has to follow
        self.ended = False  # whether `write_eof` waits behind them
        self.reading = True  # whether the user wants to read when the handshake is done
        self.more = False  # whether a completion will decrypt what is here already
        self.over = False  # the peer sends no more, and OpenSSL will hear it behind what is here
        self.timer: Timer | None = None  # of the handshake

    def begin(self, context: SSLContext, server_side: bool, server_hostname: str | None) -> None:
        """Make the SSL object; ValueError when `context` checks host names and none is given."""
        if context.check_hostname and not server_side and not server_hostname:
            raise ValueError('this context checks host names: give server_hostname')
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)

    @property
    def version(self) -> str | None:
        return self.ssl_object.version()

    @property
    def cipher(self) -> str | None:
        cipher = self.ssl_object.cipher()
        return None if cipher is None else cipher[0]

    @property
    def alpn(self) -> str | None:
        return self.ssl_object.selected_alpn_protocol()

    @property
    def peer_certificate(self) -> Any:
        return self.ssl_object.getpeercert()

    @property
    def peer_certificate_der(self) -> bytes | None:
        return self.ssl_object.getpeercert(True)

    @property
    def unread(self) -> bool:
        """Whether ciphertext is here, or plaintext waits for its turn."""
        return self.more or self._incoming.pending > 0

    def received(self, data: bytes) -> None:
        """Ciphertext from the peer; nothing at its end."""
        if data:
            self._incoming.write(data)
        else:
            self.over = True

    def heard_all(self) -> bool:
        """OpenSSL has read all there is. True when that was the end, which it is told now: it is to be asked again."""
        last = self.over and not self._incoming.eof
        if last:
            self._incoming.write_eof()
        return last

    def to_say(self) -> bytes:
        """What OpenSSL wants to be sent: handshakes, alerts, new keys."""
        return self._outgoing.read() if self._outgoing.pending else b''

    def sealed(self, pieces: Iterable[bytes | memoryview]) -> bytes:
        """The ciphertext of `pieces`, behind whatever else is to be said."""
        write = self.ssl_object.write
        for piece in pieces:
            while piece:  # at once as a rule, but OpenSSL may also take a record at a time
                piece = memoryview(piece)[write(piece) :]
        return self._outgoing.read()

    def unsealed(self) -> tuple[list[bytes], SSLError | None, bool]:
        """(plaintext of some records, what is wrong with the next, whether the peer has ended the stream).

        `more` tells whether there may be further records here.
        """
        pieces: list[bytes] = []
        read = self.ssl_object.read
        self.more = False
        try:
            while len(pieces) < RECORDS_PER_TURN:
                piece = read(RECORD)
                if not piece:
                    return pieces, *self._end()
                pieces.append(piece)
                if not self._incoming.pending:
                    return pieces, None, False
            self.more = True
        except self.ssl.SSLWantReadError:
            if self.heard_all():
                _, exc, ended = self.unsealed()
                return pieces, exc, ended
        except self.ssl.SSLZeroReturnError:  # as nothing read, when our side has ended before
            return pieces, *self._end()
        except self.ssl.SSLError as exc:
            return pieces, exc.with_traceback(None), False
        return pieces, None, False

    def _end(self) -> tuple[SSLError | None, bool]:
        # The peer's own end is heard before OpenSSL is told that nothing comes any more.
        if CUT_IS_END and self._incoming.eof:
            exc = self.ssl.SSLEOFError(self.ssl.SSL_ERROR_EOF, 'unexpected eof while reading')
            exc.reason = 'UNEXPECTED_EOF_WHILE_READING'  # as from OpenSSL
            return exc, False
        return None, True

    def farewell(self) -> bytes:
        """The end of our side of the stream: close_notify."""
        # It reads as well, and throws away what it finds that is not the peer's end: so it finds nothing.
        here = self._incoming.read()
        try:
            self.ssl_object.unwrap()
        except self.ssl.SSLError:
            pass  # the peer has not ended its side
        if here:
            self._incoming.write(here)
        return self.to_say()


class TLSStream(Stream):
    """A `Stream` over TLS; `conn.tls` tells what was agreed. `on_connect` is called after the handshake.

    `buffered` and the limits count ciphertext, and before the end of the handshake what is still to be encrypted.
    """

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        Stream.__init__(self, *args)
        self.tls = Session()

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
            self.reset(exc)
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
        session = Session()
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
            stream._shake_hands()

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
        if session.more:
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
        """Told as a completion: there was more than for one turn, or it came with the end of the handshake."""
        self.tls.more = False
        if self.state is CONNECTING:
            self._shake_hands_in_turn()
        elif self.events & READ and self.state is not CLOSING:
            self._decrypt()

    def handle_stream_end(self, exc: SSLError | None) -> None:
        """Told as a completion behind the last data: the peer has ended its side, or broken it."""
        if self.sock is None or self.state is CLOSING:
            return
        if self.state is OPEN and not self.events & READ:
            self.tls.more = False  # paused: it is told when reading goes on
        elif exc is None:
            if self.on_eof is None:
                self._say(self.tls.farewell())
            self.handle_end()
        elif isinstance(exc, self.tls.ssl.SSLEOFError):
            self._fail(
                'ended the connection without ending the TLS stream',
                exc,
                'do not take what it sent for complete',
            )
        else:
            self._fail('broke the TLS stream', exc, 'the connection was closed')

    def handle_handshake_over(self, kind: type[Exception]) -> None:
        """Called by the timer of the handshake."""
        if self.state is CONNECTING:
            self.reset(kind(f'the TLS handshake with {show(self.peername)} took too long; the connection was reset'))

    # -- what users call

    def write(self, data: Buffer, on_written: Callable[..., object] | None = None, *args: Any) -> bool:
        return self.writelines((data,), on_written, *args)

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[..., object] | None = None, *args: Any
    ) -> bool:
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        check_buffers(buffers)
        pieces = [flat(data) for data in buffers]
        session = self.tls
        if self.state is CONNECTING:
            if self.refuses(session.ended, session.held_bytes + len(session.held) * MARK_COST):
                return False
            session.held.append(([bytes(piece) for piece in pieces], (on_written, args)))
            session.held_bytes += sum(len(piece) for piece in pieces)
            full = self.buffered >= self.options.high_water
            session.full = session.full or full
            return not full
        writer = self.writer
        if writer is not None:
            if writer.error is not None and not writer.ended:
                return False
            if self.refuses(writer.ended, writer.weight):
                return False
        return Stream.write(self, session.sealed(pieces), on_written, *args)

    def send_file(
        self,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[..., object] | None = None,
        *args: Any,
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

    def pause_reading(self) -> None:
        if self.state is CONNECTING:
            self.tls.reading = False
        else:
            Stream.pause_reading(self)

    def resume_reading(self) -> None:
        if self.state is CONNECTING:
            self.tls.reading = True
            return
        Stream.resume_reading(self)
        if self.state is OPEN:
            self._decrypt_later()  # what is here already is no readiness to come

    def write_eof(self) -> None:
        if self.state is CONNECTING:
            self.tls.ended = True
            return
        if self.state == OPEN and not (self.writer is not None and self.writer.ended):
            self._say(self.tls.farewell())
        Stream.write_eof(self)

    def close(self) -> None:
        if self.state == OPEN and not (self.writer is not None and self.writer.ended):
            self._say(self.tls.farewell())
            if self.writer is None:
                self.writer = DRAINED  # the peer may be talking: TLS sends tickets, new keys and its own farewell
        Stream.close(self)

    @property
    def unread(self) -> bool:
        return self.tls.unread or super().unread

    def start_tls(self, *args: Any, **options: Any) -> None:
        raise ReactorError('this connection is TLS already')

    # -- for its base

    def finish(self, exc: BaseException | None) -> None:
        if self.sock is None and self.state is CLOSED:
            return  # what was to be said last has met the end
        session = self.tls
        if session.timer is not None:
            session.timer.cancel()
        session.held.clear()  # `buffered` goes on telling how many bytes that were
        session.on_secured = (None, ())
        Stream.finish(self, exc)

    # -- in this file

    def _shake_hands_in_turn(self) -> None:
        shared, turn = self.options.shared, self.loop.counters.loop_count
        last, steps = shared.handshakes
        steps = 0 if last != turn else steps
        if steps >= HANDSHAKES_PER_TURN:
            self._decrypt_later()
        else:
            shared.handshakes = (turn, steps + 1)
            self._shake_hands()

    def _shake_hands(self) -> None:
        session = self.tls
        try:
            session.ssl_object.do_handshake()
        except session.ssl.SSLWantReadError:
            self._say(session.to_say())
            if session.heard_all():
                self._shake_hands()
        except session.ssl.SSLError as exc:
            self._fail('failed in the TLS handshake', exc.with_traceback(None), hint(session.ssl, exc))
        else:
            self._secured()

    def _secured(self) -> None:
        session, completions = self.tls, self.loop.completions
        session.timer.cancel()
        session.timer = None
        self.state = OPEN
        on_secured, args = session.on_secured
        if on_secured is not None:
            completions.append((self, on_secured, args))
        session.on_secured = (None, ())
        self._say(session.to_say())
        held, session.held = session.held, []
        full = session.full
        for pieces, (on_written, written_args) in held:
            if self.state is OPEN:
                session.held_bytes -= sum(map(len, pieces))
                Stream.write(self, session.sealed(pieces), on_written, *written_args)
        if self.state is not OPEN:
            return  # sending has failed meanwhile, and `buffered` goes on telling what was never sent
        writer = self.writer
        if full and (writer is None or writer is DRAINED):
            completions.append((self, Stream.handle_drain, ()))
        elif full and writer is not None:
            writer.full = True  # so that on_drain tells, however little of it waits
        if not session.reading:
            Stream.pause_reading(self)
        self._decrypt_later()
        if session.ended:
            self.write_eof()

    def _decrypt(self) -> None:
        session = self.tls
        pieces, exc, ended = session.unsealed()
        answer, writer = session.to_say(), self.writer
        if answer and writer is not None and not writer.ended and self.refuses(False, writer.weight):
            return  # it asks for new handshakes again and again, and takes nothing
        self._say(answer)
        if ended or exc is not None:
            self.loop.completions.append((self, TLSStream.handle_stream_end, (exc,)))
            session.more = True  # nothing comes after it
        elif session.more:
            self.loop.completions.append((self, TLSStream.handle_records, ()))
        on_data = self.on_data
        if on_data is not None and pieces:
            on_data(self, pieces[0] if len(pieces) == 1 else b''.join(pieces))

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

    def _fail(self, what: str, exc: SSLError, advice: str) -> None:
        self._say(self.tls.to_say())  # the alert, by which the peer knows why
        error = TLSError(f'{show(self.peername)} {what}: {exc.reason or exc.strerror or exc}; {advice}')
        error.__cause__ = exc
        if self.state is CLOSED and self.writer is not None:
            self.writer.error = error  # it did not take the alert; but this is why there was one
        self.finish(error)


Stream.secured = TLSStream


def hint(ssl: Any, exc: SSLError) -> str:
    """What to do about a handshake that failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f'{exc.verify_message}; trust its issuer in the context, or ask for the name that it has'
    if exc.reason in ('HTTP_REQUEST', 'WRONG_VERSION_NUMBER'):
        return 'it does not speak TLS; check the port'
    if exc.reason == 'CALLBACK_FAILED':
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
