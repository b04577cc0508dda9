"""Run the TLS handshakes of streams: schedule the steps, limit the time, and hold writes until a handshake is done.

The step itself (`ssl_object.do_handshake()`) is in `session.py`. The records that TLS itself sends, alerts and
close_notify, are sent from this file.

`state` is CONNECTING during the first handshake, so no callback is called before the peer is known. A turn makes only a
few steps of handshakes, so that new clients of a listener do not delay its open connections.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, ConnectTimeout, HandshakeTimeout, SelectorFull, TLSError
from ..hints import SSLContext, SSLError, socket
from ..loop.watcher import READ
from .addresses import show
from .contexts import check_context, hint
from .session import Buffers, CallbackAndArgs, TLSSession
from .states import CONNECTING, FAILED, OPEN
from .stream import Stream
from .writer import MARK_COST, SHUT

if TYPE_CHECKING:
    from ..callbacks import Loop
    from .ending import Ending
    from .states import State

# The most handshake steps per turn, for each listener. The first step of a handshake takes 1.1 ms with an RSA key
# of 2048 bits, 0.4 ms with P-256 and 6 ms with RSA of 4096 bits. With 4 steps per turn, ten clients that kept
# reconnecting doubled the 99th percentile of the latency of the other clients; with 2 steps, it grew by a fifth.
HANDSHAKES_PER_TURN = 2


class HandshakeStream(Stream):
    """The part of a `TLSStream` that does the handshake."""

    __slots__ = ()

    tls: TLSSession

    if TYPE_CHECKING:
        state: State
        ending: Ending | None

    # -- methods for opening (internal)

    def __init__(self, *args: Any) -> None:
        Stream.__init__(self, *args)
        self.tls = TLSSession(buffers_of(self.loop))
        self.tls.on_secured = (Stream.handle_accepted, ())

    def attach(self, sock: socket, deferred: bool = False) -> None:
        """Take an accepted socket (internal). The client begins the handshake."""
        options = self.options
        self.tls.begin(options.ssl, True, None)  # type: ignore[arg-type]  # a TLS stream has a context
        Stream.attach(self, sock, deferred)
        self.limit_handshake(options.handshake_timeout, None)

    def opened(self, reading: bool, deadline: float | None = None) -> None:
        """Begin the handshake on a connected socket (internal). `deadline` is when it must be done, or None."""
        session, options = self.tls, self.options
        session.begin(options.ssl, False, options.server_hostname)  # type: ignore[arg-type]  # as above
        self.writer = None
        try:
            self.loop.watchers.set_events(self, READ)
        except SelectorFull as exc:
            self.reset(exc.with_traceback(None))
        if self.sock is None:
            return  # the descriptor was lost, and `on_close` will be called
        if options.timed:
            self.start_timeouts()
        self.limit_handshake(options.handshake_timeout, deadline)
        self._shake_hands()

    @classmethod
    def upgrade(
        cls,
        stream: Stream,
        context: SSLContext,
        on_secured: CallbackAndArgs,
        server_side: bool | None,
        server_hostname: str | None,
        timeout: float,
    ) -> None:
        """Turn `stream` into a TLS stream, for `start_tls` and after a PROXY header."""
        session = TLSSession(buffers_of(stream.loop))
        session.begin(context, check_context(context, server_side), server_hostname)
        session.on_secured = on_secured
        session.reading = bool(stream.events & READ)
        stream.__class__ = cls
        stream.tls = session
        assert isinstance(stream, HandshakeStream)
        stream.loop.watchers.set_events(stream, stream.events | READ)
        if stream.sock is None:
            return  # the descriptor was lost, and `on_close` will be called
        stream.limit_handshake(timeout, None)
        if not session.ssl_object.server_side:
            # Not done during this call, because an `sni_callback` may have called `start_tls` inside another handshake.
            stream.decrypt_later()

    def limit_handshake(self, seconds: float, deadline: float | None) -> None:
        """Start the timer of the handshake, which may take `seconds` and must be done by `deadline`."""
        self.state = CONNECTING
        kind: type[Exception] = HandshakeTimeout
        timers = self.loop.timers
        if deadline is not None and deadline - timers.clock() < seconds:
            seconds, kind = deadline - timers.clock(), ConnectTimeout
        self.tls.timer = timers.later(seconds, HandshakeStream.handle_handshake_over, self, kind)
        self.tls.timer.unref()  # the stream itself keeps the loop running

    # -- methods for the loop

    def handle_waiting(self) -> None:
        """Called as a completion, once per turn while handshakes are waiting: queue the next step of the first few.

        The steps are taken in the next turn. So the cost of a turn does not depend on the number of waiting clients.
        """
        shared, completions, turn = self.options.shared, self.loop.completions, self.loop.counters.loop_count
        waiting, count, stream = shared.waiting, 0, self
        if shared.handshakes[0] > turn:
            return  # these streams have ended, and the completion of newer waiting streams has already done this
        while waiting and count < HANDSHAKES_PER_TURN:
            stream = next(iter(waiting))
            completions.append((stream, HandshakeStream.handle_handshake, ()))
            del waiting[stream]
            count += 1
        shared.handshakes = (turn + 1, count)
        if waiting:
            completions.append((stream, HandshakeStream.handle_waiting, ()))

    def handle_handshake(self) -> None:
        """Called as a completion: take the next step of this handshake."""
        self.tls.more = False
        if self.state is CONNECTING:
            self._shake_hands()

    def handle_held_writes(self) -> None:
        """Called as a completion after `on_connect` or `on_secured`: send the writes held during the handshake."""
        if self.tls.held is not None:
            self.send_held()
        self.end_after_held()

    def handle_records(self) -> None:
        """Called as a completion: decrypt buffered records; see `TLSStream`."""
        raise NotImplementedError

    def handle_handshake_over(self, kind: type[Exception]) -> None:
        """Called by the timer of the handshake: it has taken too long."""
        if self.state is CONNECTING:
            option = 'timeout' if kind is ConnectTimeout else 'handshake_timeout'
            error = kind(
                f'the TLS handshake with {show(self.peername)} took too long; the connection was reset. '
                f'Check that the peer speaks TLS, or raise {option}='
            )
            self._report_unheard(error)
            self.reset(error)

    # -- methods for other modules

    def has_ended_writing(self) -> bool:
        return self.tls.last is not None or Stream.has_ended_writing(self)

    def shake_hands_in_turn(self) -> None:
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
            self.loop.completions.append((self, HandshakeStream.handle_waiting, ()))
        shared.waiting[self] = None

    def hold(
        self, pieces: list[bytes | memoryview], on_written: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> bool:
        """Hold a write until the handshake is done; return the result for `write`."""
        session = self.tls
        held: Any = session.held  # a list, because a handshake is under way
        weight = self.buffered + len(held) * MARK_COST
        if self.refuses(self.has_ended_writing()) or self.overflows(weight):
            return False
        held.append(([bytes(piece) for piece in pieces], (on_written, args)))
        session.held_bytes += sum(map(len, pieces))
        full = self.buffered >= self.options.high_water
        session.full = session.full or full
        return not full

    def send_held(self) -> None:
        """Send the held writes if the handshake has ended."""
        session = self.tls
        held: Any = session.held  # a list, because a handshake is under way
        for index, (pieces, (on_written, args)) in enumerate(held):
            if self.state.closed:
                break  # sending has failed
            try:
                parts = session.encrypt(pieces)
            except session.ssl.SSLWantReadError:
                del held[:index]
                return
            except session.ssl.SSLError as exc:
                self.fail('cannot be written to', exc.with_traceback(None), 'the held writes were not sent')
                return
            except RecursionError:
                del held[:index]  # the rest is not encrypted yet, and can still be sent once the stack has room
                raise
            except MemoryError as exc:
                self.lose(exc)
                return
            try:
                session.held_bytes -= sum(map(len, pieces))
                Stream.writelines(self, parts, on_written, *args)
            except EXHAUSTION as exc:
                self.lose(exc)
                return
        session.held = None
        if self.state.closed:
            return
        full, session.full = session.full, False
        writer = self.writer
        if not full or writer is SHUT:
            return
        if writer is None or writer.buffered <= self.options.low_water:
            self.loop.completions.append((self, Stream.handle_drain, ()))
        else:
            writer.full = True  # so that on_drain is called, even if fewer bytes than `high_water` are waiting

    def end_after_held(self) -> None:
        """Carry out the `write_eof` or `close` that the user called during the handshake."""
        session = self.tls
        last = session.last
        if session.held is None and last is not None and not self.state.closed:
            session.last = None
            last(self)

    def decrypt_later(self) -> None:
        if not self.tls.more:
            self.tls.more = True
            self.loop.completions.append((self, type(self).handle_records, ()))

    def send_tls(self, data: bytes) -> None:
        """Send a record of TLS itself, such as an alert, after the buffered bytes and regardless of the limits."""
        writer = self.writer
        if not data:
            return
        if writer is None:
            Stream.write(self, data)
            if self.writer is not None:
                self.writer.full = False  # the user has not written this, so `on_drain` is not called for it
        elif writer is not SHUT and self.state.takes_writes:
            writer.extend((data,), None, ())

    def send_close_notify(self) -> None:
        """Send close_notify, which ends our side of the TLS stream.

        The peer may already have closed its socket, as RFC 8446 (section 6.1) allows; then sending fails. If no bytes
        are buffered, nothing is lost, and reading reports how the connection has ended.
        """
        writer, state, ending = self.writer, self.state, self.ending
        self.send_tls(self.tls.close_notify())
        if self.state is FAILED and isinstance(self.ending.exc, BrokenPipeError):  # type: ignore[union-attr]  # not None here
            self.writer, self.state, self.ending = writer, state, ending

    def fail(self, what: str, exc: SSLError | None, advice: str) -> None:
        """End the connection with a `TLSError` that says what the peer did, why, and what to do."""
        failed_before = self.state.closed
        self.send_tls(self.tls.pending_output())  # the alert, which lets the peer know why the connection ends
        why = '' if exc is None else f': {getattr(exc, "reason", None) or exc.strerror or exc}'
        error = TLSError(f'{show(self.peername)} {what}{why}; {advice}')
        error.__cause__ = exc
        self._report_unheard(error)
        ending = self.ending
        if not failed_before and self.state is FAILED and ending is not None and ending.exc is not None:
            ending.exc = error  # sending the alert has failed; report the reason for the alert instead
        self.finish(error)

    # -- private methods

    def _report_unheard(self, error: Exception) -> None:
        # Clients of a listener can cause failed handshakes at will, so only those of our own connects are logged.
        if self.state is CONNECTING and not self.tls.ssl_object.server_side:
            self.loop.failures.unheard(self, error)

    def _shake_hands(self) -> None:
        session = self.tls
        try:
            done = session.shake_hands()
        except session.ssl.SSLError as exc:
            self.fail('failed in the TLS handshake', exc.with_traceback(None), hint(session.ssl, exc))
            return
        if done:
            self._handshake_done()
            return
        self.send_tls(session.pending_output())
        if session.more and self.state is CONNECTING:
            session.more = False
            self.decrypt_later()

    def _handshake_done(self) -> None:
        session = self.tls
        session.timer.cancel()  # type: ignore[union-attr]  # it limits every handshake
        session.timer = None
        self.state = OPEN
        on_secured, args = session.on_secured
        if on_secured is not None:
            self.loop.completions.append((self, on_secured, args))
        session.on_secured = (None, ())
        if not session.reading:
            self.loop.watchers.set_events(self, self.events & ~READ)
        self.send_tls(session.pending_output())
        if self.state is not OPEN:
            pass  # sending has failed; the held writes stay, because `buffered` counts bytes that were never sent
        elif session.held or session.last is not None:
            # Held writes are sent after `on_connect`, which may abort the connection if this peer must not get them.
            self.loop.completions.append((self, HandshakeStream.handle_held_writes, ()))
        else:
            session.held = None
        self.decrypt_later()  # done after `on_connect`; nothing more is read before that call


def buffers_of(loop: Loop) -> Buffers:
    """Return the buffers that the TLS connections of `loop` share."""
    if loop.streams.tls_buffers is None:
        loop.streams.tls_buffers = Buffers()
    buffers: Buffers = loop.streams.tls_buffers
    return buffers
