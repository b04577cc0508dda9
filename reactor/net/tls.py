"""TLS streams, for listening, connecting and `start_tls`.

Ciphertext is written like any other bytes, so the water marks, the limits and `on_written` work as for plain streams: a
write is accepted when all of its ciphertext is accepted. A connection that ends without close_notify (RFC 8446, section
6.1) ends with an error, because an attacker may have cut it short. Any OpenSSL error ends the connection at once, so an
SSL object that has failed is never used again.

The handshake is in `handshake.py`, the work with OpenSSL in `session.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

from ..errors import EXHAUSTION, ReactorError, TLSError
from ..hints import Buffer, HasFileno, SSLError, Ts
from ..loop.watcher import READ
from .addresses import show
from .ending import LAST_BYTES, WAITED, Ending
from .files import READ_FILE_SIZE, FilePart, file_part
from .handshake import HandshakeStream
from .states import CONNECTING, HALF, OPEN
from .stream import Stream
from .writer import check_buffers, flat

if TYPE_CHECKING:
    from ..callbacks import OnData, OnEof


class TLSStream(HandshakeStream):
    """A `Stream` over TLS. `on_connect` is called after the handshake; `conn.tls` then describes the TLS session.

    `buffered` and the limits count ciphertext, and during a handshake also the plaintext of held writes.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        ending: Ending | None
        on_data: OnData | None
        on_eof: OnEof | None

    leads_to: tuple[tuple[str, str], ...] = (
        *Stream.leads_to,
        ('handle_records', 'on_data'),
        ('handle_stream_end', 'on_eof'),
    )

    # -- methods for the loop

    def handle_read(self) -> None:
        """Called by the loop: one recv, then decrypt a few records, then call `on_data`."""
        session = self.tls
        if self.state.discards:
            Stream.handle_read(self)
            return
        if session.more or session.ended:
            return  # the buffered records come first
        try:
            data = self.sock.recv(self.options.read_size)
        except BlockingIOError:
            self.loop.spins.no_progress(self)
            return
        except OSError as exc:
            self.read_failed(exc)
            return
        counters = self.loop.counters
        counters.reads += 1
        counters.bytes_in += len(data)
        if self.timeouts is not None:
            self.timeouts.received_at = self.loop.timers.clock()
        failure = None
        try:
            piece = session.decrypt_record(data)
        except session.ssl.SSLError as exc:
            piece, failure = b'', session.outcome(exc, len(data))
        if piece and not session.buffers.outgoing.pending:
            on_data = self.on_data
            if on_data is not None:
                on_data(self, piece)
        elif piece is not None:
            self._deliver([piece] if piece else [], failure)
        else:
            session.received(data)
            if self.state is CONNECTING:
                self.shake_hands_in_turn()
            else:
                self._deliver(*session.decrypt())

    def handle_records(self) -> None:
        """Called as a completion: decrypt records beyond a turn's limit, or those after the end of the handshake."""
        self.tls.more = False
        if self.state is CONNECTING:
            self.shake_hands_in_turn()
        elif self.tls.ended:
            self.handle_stream_end()
        elif self.events & READ and not self.state.discards:
            self._deliver(*self.tls.decrypt())

    def handle_last_reads(self, left: int = LAST_BYTES) -> None:
        if self.tls.more and self.sock is not None and self.events & READ:
            # The buffered records come first, a few per turn.
            self.loop.completions.append((self, TLSStream.handle_last_reads, (left,)))
        else:
            Stream.handle_last_reads(self, left)

    def handle_stream_end(self) -> None:
        """Called as a completion after the last data: the peer has ended its side of the TLS stream."""
        session = self.tls
        if not self.state.receives or not self.events & READ:
            return  # the connection is over already; or reading is paused, and `resume_reading` leads here again
        if session.held:
            self.fail('ended its side of the TLS stream during a handshake', None, 'the held writes were not sent')
            return
        if self.on_eof is None:
            self.send_close_notify()
        self.handle_end()

    # -- methods for users

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        session = self.tls
        if self.writer is None and session.held is None and type(data) is bytes and on_written is None:
            try:
                record = session.encrypt_record(data)  # the fast path, for nearly all writes
            except MemoryError as exc:
                return self.lose(exc)
            if record:
                try:
                    return Stream.write(self, record)
                except EXHAUSTION as exc:
                    return self.lose(exc)
        return self.writelines((data,), on_written, *args)

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts
    ) -> bool:
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        check_buffers(buffers)
        pieces = [flat(data) for data in buffers]
        session, writer = self.tls, self.writer
        if writer is not None and (self.refuses(self.has_ended_writing()) or self.overflows(writer.weight)):
            return False
        if session.held is not None:
            return self.hold(pieces, on_written, args)
        try:
            parts = session.encrypt(pieces)
        except session.ssl.SSLWantReadError:
            session.held = []
            return self.hold(pieces, on_written, args)
        except session.ssl.SSLError as exc:
            self.fail('cannot be written to', exc.with_traceback(None), 'nothing was sent')
            return False
        except MemoryError as exc:
            return self.lose(exc)
        try:
            if len(parts) == 1:
                return Stream.write(self, parts[0], on_written, *args)
            return Stream.writelines(self, parts, on_written, *args)
        except EXHAUSTION as exc:
            return self.lose(exc)

    def send_file(
        self,
        file: HasFileno,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
    ) -> bool:
        """Like `Stream.send_file`, but the bytes are read and encrypted during this call, which blocks the loop.

        The ciphertext is buffered in memory. Send a long file in parts, each in the `on_written` of the previous part.
        """
        part = file_part(self.loop.kernel, file, offset, count)
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
        # The socket is read during a handshake even if the user has paused reading.
        return super().reading and (
            self.state is not CONNECTING or self.tls.reading or self.loop.streams.suspended.get(self, False)
        )

    def write_eof(self) -> None:
        if not self.state.takes_writes:
            return
        if self.tls.held is not None:
            self.tls.last = self.tls.last or TLSStream.write_eof
            return
        self.send_close_notify()
        if self.closed:
            self.refuse_writes()  # sending the close_notify has failed
        else:
            Stream.write_eof(self)

    def close(self) -> None:
        state = self.state
        if (state.receives or state.half) and self.tls.held:
            self._close_after_handshake()
            return
        if state is OPEN or state is HALF:
            self.send_close_notify()
            if self.ending is None:
                # The peer may be sending, because TLS itself sends tickets, key updates and a close_notify.
                self.ending = WAITED
        Stream.close(self)

    @property
    def closed(self) -> bool:
        return super().closed or self.tls.last is TLSStream.close

    @property
    def unread(self) -> bool:
        return self.tls.unread or super().unread

    def start_tls(self, *args: Any, **options: Any) -> None:  # type: ignore[override]  # any arguments
        raise ReactorError(f'start_tls() on {self!r}: this connection uses TLS already')

    # -- overridden methods

    def set_reading(self, reading: bool) -> None:
        if self.state is CONNECTING:
            self.tls.reading = reading
            if self in self.loop.streams.suspended:
                self.set_suspended(reading)
            return
        Stream.set_reading(self, reading)
        if reading and self.state.reads:
            self.decrypt_later()  # the selector does not report records that are buffered here

    def finish(self, exc: BaseException | None) -> None:
        Stream.finish(self, exc)  # done first, so that `on_close` is called even if a later step fails
        session = self.tls
        session.held = None  # `held_bytes` stays, because `buffered` counts bytes that were never sent
        session.on_secured = (None, ())
        waiting = self.options.shared.waiting
        if waiting:
            waiting.pop(self, None)
        try:
            session.drop_received()
            if session.timer is not None:
                session.timer.cancel()
        except EXHAUSTION:
            pass  # the timer finds the connection closed and does nothing

    # -- private methods

    def _close_after_handshake(self) -> None:
        """Finish the peer's new handshake within `linger` seconds, because held writes are waiting for its end."""
        session = self.tls
        if session.last is not TLSStream.close:
            session.last = TLSStream.close
            self.on_data = self.on_eof = None
            session.timer = self.loop.timers.later(self.options.linger, Stream.handle_linger_over, self)
            self.loop.watchers.set_events(self, self.events | READ)
            self.decrypt_later()

    def _deliver(self, pieces: list[bytes], exc: SSLError | None) -> None:
        session = self.tls
        answer = session.pending_output()
        if answer:
            writer = self.writer
            if writer is not None and self.state.takes_writes and self.overflows(writer.weight):
                return  # the peer requests handshake after handshake and reads nothing
            self.send_tls(answer)
        if exc is not None:
            self._break(exc)
        elif session.ended:
            self.loop.completions.append((self, TLSStream.handle_stream_end, ()))
        elif session.more:
            self.loop.completions.append((self, TLSStream.handle_records, ()))
        if session.empty:
            self._check_empty()
        if session.held is not None:
            self.send_held()
            self.end_after_held()
        on_data = self.on_data
        if on_data is not None and pieces:
            on_data(self, pieces[0] if len(pieces) == 1 else b''.join(pieces))

    def _check_empty(self) -> None:
        session, most = self.tls, self.options.max_empty_records
        if most is not None and session.empty > most and self.sock is not None:
            self.reset(
                TLSError(
                    f'{show(self.peername)} sent more TLS records without data in a row than max_empty_records={most} '
                    'allows; the connection was reset. If the peer needs them, raise the limit or set it to None'
                )
            )

    def _break(self, exc: SSLError) -> None:
        """End the connection because the TLS stream is cut short or broken. Data received before is delivered first."""
        if isinstance(exc, self.tls.ssl.SSLEOFError):
            what, advice = 'closed the connection without ending the TLS stream', 'what it sent may be incomplete'
        else:
            what, advice = 'broke the TLS stream', 'the connection was closed'
        self.fail(what, exc, advice)
