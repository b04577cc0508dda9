"""How connections end: once, with the right reason, and with nothing lost that was promised.

Owns the checks that are made in `on_close`. The rule: a reason is right when the kernel or the user has given it.
"""

from __future__ import annotations

from ..errors import (
    ClientRefused,
    ConnectTimeout,
    DrainTimeout,
    IdleTimeout,
    LifetimeOver,
    ProxyError,
    ReactorError,
    ReadTimeout,
    ResolveError,
    SendFileError,
    TLSError,
    TooSlow,
    WriteBufferFull,
    WriteTimeout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .files import End
    from .ledger import Ledger
    from .watched import WatchedStream

# What a connection may end with, beside the errors of the kernel and what its callbacks have raised.
REASONS = (
    ReadTimeout, WriteTimeout, IdleTimeout, ConnectTimeout, WriteBufferFull, TLSError, DrainTimeout, ResolveError,
    SendFileError, TooSlow, LifetimeOver, ClientRefused, ProxyError,
)  # fmt: skip


class Ends:
    """The checks of how the connections of one reactor end."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def check(self, stream: WatchedStream, exc: BaseException | None) -> None:
        """A connection has ended: `on_close` is called with `exc`."""
        record, end = stream.record, stream.record.end
        record.over, record.exc = True, exc
        if not stream.closed:
            self.ledger.wrong(stream, 'in on_close it says that it is open')
        lost = (
            self.ledger.simulated and self.ledger.kernel.loses
        )  # other code has closed a descriptor: `end` may be another's
        self._check_reason(stream, exc, lost)
        if not self.ledger.secured(stream) and not lost and self.ledger.simulated:
            self._check_unsent(stream, exc)
        if exc is None and end is not None:
            if record.unread and end.cut_short:
                self.ledger.wrong(stream, 'close() with something unread has reset it, and lost what was under way')
            self._check_clean(stream, end)
        self._check_received(stream, exc)
        self._check_limits(stream, exc)
        self._check_reset(stream, exc)

    def check_whole(self, stream: WatchedStream) -> None:
        """The peer has ended: all that its kernel took has to be here."""
        record = stream.record
        end, peer = self.ledger.end_of(stream), self.ledger.peer_of(record)
        if end is None or end.peer is None:
            return
        hears = stream.on_data is not None
        if self.ledger.secured(stream):  # its end comes after its last byte, or is an error
            if hears and peer is not None and not peer.dropped and not peer.closed_by == 'abort' and not peer.exc:
                if peer.offered != record.got:
                    self.ledger.wrong(
                        stream, f'bytes: the peer wrote {len(peer.offered)} and ended, {len(record.got)} came'
                    )
            return
        if not (end.ended_in or end.dead):
            self.ledger.wrong(stream, 'an end of file, and the peer has not ended')
        if hears and len(record.got) != end.received:
            self.ledger.wrong(stream, f'law 3: on_eof at {len(record.got)} of {end.received} bytes that were read')
        if end.ended_in and end.inbox:
            self.ledger.wrong(stream, f'an end of file before the last {len(end.inbox)} bytes')
        if peer is None or peer.dropped or peer.end is None or peer.end.reported or end.dead:
            return
        left = peer.end.gone and peer.end.sent < len(peer.offered)  # discarded there, for which it has its reasons
        if end.ended_in and len(peer.offered) != end.received and not left:
            self.ledger.wrong(stream, f'bytes: the peer wrote {len(peer.offered)} and ended, {end.received} came')

    def _check_reason(self, stream: WatchedStream, exc: BaseException | None, lost: bool) -> None:
        record, end = stream.record, stream.record.end
        known = exc in (None, record.aborted_with, *record.raised) or isinstance(exc, (OSError, *REASONS))
        if not known and not isinstance(exc, MemoryError | RecursionError):
            self.ledger.wrong(stream, f'law 1: on_close with {exc!r}')
        if exc in record.survived:
            self.ledger.wrong(stream, f'law 8: it ends with {exc!r}, of which on_error was told')
        if isinstance(exc, OSError) and exc.__traceback__ is not None and type(exc).__module__ == 'builtins':
            self.ledger.wrong(stream, f'law 9: {exc!r} keeps its traceback')
        if exc is not record.aborted_with and record.closed_by == 'abort' and not record.failed_before:
            self.ledger.wrong(stream, f'it was aborted, and ends with {exc!r}')
        if isinstance(exc, WriteBufferFull) != (record.cut and record.closed_by != 'abort'):
            if self.ledger.simulated and not (
                self.ledger.kernel.fails or self.ledger.secured(stream) or exc in record.raised
            ):
                self.ledger.wrong(stream, f'it {"was" if record.cut else "was not"} cut off, and ends with {exc!r}')
        if end is None:
            return
        if type(exc).__module__ == 'builtins' and isinstance(exc, OSError) and not isinstance(exc, TimeoutError):
            if exc.errno not in end.reported and not lost:
                self.ledger.wrong(stream, f'law 8: {exc!r} was never reported')
        if exc is None and record.closed_by is None and end.reported and not self.ledger.lacks_close_notify(stream, end):
            self.ledger.wrong(stream, f'law 1: errors {end.reported} were told, and on_close says None')

    def _check_unsent(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # Law 3: what the kernel has is told by on_written, and what it has not by `buffered`.
        record, end = stream.record, stream.record.end
        sent = 0 if end is None else end.sent
        if stream.buffered != len(record.offered) - sent:
            self.ledger.wrong(
                stream, f'law 3: buffered says {stream.buffered}, {len(record.offered) - sent} were not sent'
            )
        due = sum(mark <= sent for mark in record.marks) if end is not None and record.begun else 0
        if record.written_calls != due:
            self.ledger.wrong(
                stream, f'law 3: {record.written_calls} on_written were called, and the kernel took {due} writes'
            )
        if exc is None and record.begun and record.closed_by != 'abort' and not self.ledger.closing:
            if sent < len(record.offered):
                self.ledger.wrong(stream, f'a clean end, and {len(record.offered) - sent} bytes were never sent')

    def _check_clean(self, stream: WatchedStream, end: End) -> None:
        # None: the user's own end, or the peer's.
        record = stream.record
        if record.closed_by is not None or self.ledger.closing or self.ledger.reactor.draining:
            return
        if not record.begun and self.ledger.secured(stream):
            return  # the peer has gone during the handshake
        if 'eof' not in record.events:
            self.check_whole(stream)
        elif record.ended_by is None:
            self.ledger.wrong(stream, 'it ends after on_eof, and its user has not ended it')

    def _check_received(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # What has arrived before sending failed is delivered first, unless reading is paused.
        record, end = stream.record, stream.record.end
        if end is None or end.at_failure is None or record.closed_by is not None or self.ledger.secured(stream):
            return
        if exc is None or exc in record.raised or isinstance(exc, ReactorError) or stream.on_data is None:
            return
        raised = len(record.raised) > len(record.survived)  # which ends it as well, and it tells what was first
        if raised or record.paused or record.resumed_late or end.misled or self.ledger.closing:
            return
        if len(record.got) < end.at_failure:
            missing = end.at_failure - len(record.got)
            self.ledger.wrong(
                stream, f'{missing} bytes had arrived when sending failed, and it ends with {exc!r} before them'
            )

    def _check_limits(self, stream: WatchedStream, exc: BaseException | None) -> None:
        record, end, options, now = stream.record, stream.record.end, stream.options, self.ledger.time()
        if isinstance(exc, ConnectTimeout):
            if 'connect' in record.events:
                self.ledger.wrong(stream, f'{exc!r} after on_connect')
            if self.ledger.simulated and (record.connect_by is None or now < record.connect_by - 1000):
                self.ledger.wrong(stream, f'{exc!r} before its time')
        if end is None or not isinstance(exc, ReadTimeout | IdleTimeout | WriteTimeout) or not now:
            return
        linger = options.linger * 1e9 - 1000
        if isinstance(exc, WriteTimeout) and record.closed_by is not None:
            if now < record.closed_at + linger:
                self.ledger.wrong(stream, f'{exc!r} before its linger is over')
            return
        waits = self.ledger.waits(stream)
        running = {error: (since, limit) for error, since, limit in record.time_limits(options, waits)}
        since, limit = running.get(type(exc), (0, None))
        if isinstance(exc, WriteTimeout) and end.ended_in and now >= self.ledger.kernel.reading(end.read_at) + linger:
            return  # the peer has ended, and what is left was to be flushed within `linger`
        if limit is None:
            self.ledger.wrong(stream, f'{exc!r}, and no such limit runs')
        elif now - since < limit * 1e9 - 1000:
            self.ledger.wrong(stream, f'{exc!r} after {(now - since) / 1e9} s')

    def _check_reset(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # The peer of what was aborted has to see a reset, and that of what was closed an end of file.
        record, end = stream.record, stream.record.end
        if end is None or end.instant or end.reported or self.ledger.kernel.fails or not record.begun:
            return
        aborted = record.closed_by == 'abort' and not record.gone_before
        aborted = aborted or isinstance(exc, WriteTimeout | WriteBufferFull) or exc in record.raised
        if aborted and end.lingers and not end.dead:
            self.ledger.wrong(stream, f'it ends with {exc!r}, and its peer is not reset')
        if record.closed_by != 'abort' and exc is None and not end.lingers and not self.ledger.closing:
            self.ledger.wrong(stream, 'a clean end, and its peer is reset')
