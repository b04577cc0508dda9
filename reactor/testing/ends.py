"""Check how connections end: once, for the right reason, and without losing bytes that must arrive.

The checks run when `on_eof` or `on_close` is called. A reason is right only if the simulated kernel or the user caused
it.
"""

from __future__ import annotations

from .. import errors
from .files import End
from .ledger import Ledger
from .watched import WatchedStream

# The errors that a connection may end with, besides errors from the kernel and exceptions raised by its callbacks.
REASONS = (
    errors.ReadTimeout, errors.WriteTimeout, errors.IdleTimeout, errors.ConnectTimeout, errors.WriteBufferFull,
    errors.TLSError, errors.DrainTimeout, errors.ResolveError, errors.SendFileError, errors.TooSlow,
    errors.LifetimeOver, errors.ClientRefused, errors.ProxyError,
)  # fmt: skip


class Ends:
    """Checks how the connections of one reactor end."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def check(self, stream: WatchedStream, exc: BaseException | None) -> None:
        """Check a connection whose `on_close` is being called with `exc`."""
        record, end = stream.record, stream.record.end
        record.over, record.exc = True, exc
        if not stream.closed:
            self.ledger.wrong(stream, 'in on_close, `closed` is still False')
        # When other code closes descriptors, `end` may belong to another connection.
        lost = self.ledger.simulated and self.ledger.kernel.loses
        self._check_reason(stream, exc, lost)
        if not self.ledger.secured(stream) and not lost and self.ledger.simulated:
            self._check_unsent(stream, exc)
        if exc is None and end is not None:
            if record.unread and end.cut_short:
                self.ledger.wrong(stream, 'close() with unread input reset the connection, and sent bytes were lost')
            self._check_clean(stream, end)
        self._check_received(stream, exc)
        self._check_limits(stream, exc)
        self._check_reset(stream, exc)

    def check_whole(self, stream: WatchedStream) -> None:
        """Check that all bytes from the peer arrived before its end of file."""
        record = stream.record
        end, peer = self.ledger.end_of(stream), self.ledger.peer_of(record)
        if end is None or end.peer is None:
            return
        hears = stream.on_data is not None
        if self.ledger.secured(stream):  # over TLS, a clean end of file comes only after the last byte
            if hears and peer is not None and not peer.dropped and not peer.closed_by == 'abort' and not peer.exc:
                if peer.offered != record.got:
                    self.ledger.wrong(
                        stream, f'the peer wrote {len(peer.offered)} bytes and ended, but {len(record.got)} arrived'
                    )
            return
        if not (end.ended_in or end.dead):
            self.ledger.wrong(stream, 'it received an end of file, but the peer has not sent one')
        if hears and len(record.got) != end.received:
            self.ledger.wrong(stream, f'law 3: on_eof was called after {len(record.got)} of {end.received} bytes')
        if end.ended_in and end.inbox:
            self.ledger.wrong(stream, f'it received an end of file with {len(end.inbox)} bytes still unread')
        if peer is None or peer.dropped or peer.end is None or peer.end.reported or end.dead:
            return
        discarded = peer.end.gone and peer.end.sent < len(peer.offered)  # checked when the peer itself ends
        if end.ended_in and len(peer.offered) != end.received and not discarded:
            self.ledger.wrong(stream, f'the peer wrote {len(peer.offered)} bytes and ended, but {end.received} arrived')

    def _check_reason(self, stream: WatchedStream, exc: BaseException | None, lost: bool) -> None:
        record, end = stream.record, stream.record.end
        known = exc in (None, record.aborted_with, *record.raised) or isinstance(exc, (OSError, *REASONS))
        if not known and not isinstance(exc, MemoryError | RecursionError):
            self.ledger.wrong(stream, f'law 1: on_close was called with {exc!r}, which no connection may end with')
        if exc in record.survived:
            self.ledger.wrong(stream, f'law 8: it ended with {exc!r}, although on_error was called with this exception')
        if isinstance(exc, OSError) and exc.__traceback__ is not None and type(exc).__module__ == 'builtins':
            self.ledger.wrong(stream, f'law 9: {exc!r} was passed to on_close with its traceback')
        if exc is not record.aborted_with and record.closed_by == 'abort' and not record.failed_before:
            self.ledger.wrong(stream, f'it was aborted with {record.aborted_with!r}, but ended with {exc!r}')
        if exc is record.aborted_with and record.closed_by == 'abort':
            return  # any exception that the program has passed
        if isinstance(exc, errors.WriteBufferFull) != (record.cut and record.closed_by != 'abort'):
            if self.ledger.simulated and not (
                self.ledger.kernel.fails or self.ledger.secured(stream) or exc in record.raised
            ):
                was = 'exceeded' if record.cut else 'did not exceed'
                self.ledger.wrong(stream, f'it {was} max_buffered, but ended with {exc!r}')
        if end is None:
            return
        if type(exc).__module__ == 'builtins' and isinstance(exc, OSError) and not isinstance(exc, TimeoutError):
            if exc.errno not in end.reported and not lost:
                self.ledger.wrong(stream, f'law 8: it ended with {exc!r}, which the kernel never reported')
        if exc is None and record.closed_by is None and end.reported:
            if not self.ledger.lacks_close_notify(stream, end):
                self.ledger.wrong(stream, f'law 1: the kernel reported errors {end.reported}, but on_close got None')

    def _check_unsent(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # Law 3: on_written reports the bytes that the kernel accepted, and `buffered` counts the others.
        record, end = stream.record, stream.record.end
        sent = 0 if end is None else end.sent
        if stream.buffered != len(record.offered) - sent:
            unsent = len(record.offered) - sent
            self.ledger.wrong(stream, f'law 3: `buffered` is {stream.buffered}, but {unsent} bytes were not sent')
        due = sum(mark <= sent for mark in record.marks) if end is not None and record.begun else 0
        if record.written_calls != due:
            calls = record.written_calls
            self.ledger.wrong(stream, f'law 3: on_written was called {calls} times, but the kernel took {due} writes')
        if exc is None and record.begun and record.closed_by != 'abort' and not self.ledger.closing:
            if sent < len(record.offered):
                self.ledger.wrong(stream, f'it ended cleanly, but {len(record.offered) - sent} bytes were never sent')

    def _check_clean(self, stream: WatchedStream, end: End) -> None:
        # on_close(None): either the user has ended the connection, or the peer has.
        record = stream.record
        if record.closed_by is not None or self.ledger.closing or self.ledger.reactor.draining:
            return
        if not record.begun and self.ledger.secured(stream):
            return  # the peer closed during the handshake
        if 'eof' not in record.events:
            self.check_whole(stream)
        elif record.ended_by is None:
            self.ledger.wrong(stream, 'it ended after on_eof, but the user has not ended it')

    def _check_received(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # Bytes that arrived before sending failed are delivered first, unless reading is paused.
        record, end = stream.record, stream.record.end
        if end is None or end.at_failure is None or record.closed_by is not None or self.ledger.secured(stream):
            return
        if exc is None or exc in record.raised or isinstance(exc, errors.ReactorError) or stream.on_data is None:
            return
        # An exception in a callback ends the connection, too. Then on_close gets the error that came first.
        raised = len(record.raised) > len(record.survived)
        if raised or record.paused or record.resumed_late or record.limited or end.misled or self.ledger.closing:
            return
        if len(record.got) < end.at_failure:
            missing = end.at_failure - len(record.got)
            self.ledger.wrong(
                stream,
                f'{missing} bytes arrived before sending failed, but were not delivered before on_close({exc!r})',
            )

    def _check_limits(self, stream: WatchedStream, exc: BaseException | None) -> None:
        record, end, now = stream.record, stream.record.end, self.ledger.time()
        options = record.options_at_end or stream.options
        if exc is record.aborted_with and record.closed_by == 'abort':
            return
        if isinstance(exc, errors.ConnectTimeout):
            if 'connect' in record.events:
                self.ledger.wrong(stream, f'it ended with {exc!r} after on_connect')
            if self.ledger.simulated and (record.connect_by is None or now < record.connect_by - 1000):
                self.ledger.wrong(stream, f'it ended with {exc!r} before its connect timeout was over')
        if end is None or not isinstance(exc, errors.ReadTimeout | errors.IdleTimeout | errors.WriteTimeout) or not now:
            return
        linger = options.linger * 1e9 - 1000
        if isinstance(exc, errors.WriteTimeout) and record.closed_by is not None:
            if now < record.closed_at + linger:
                self.ledger.wrong(stream, f'it ended with {exc!r} before `linger` was over')
            return
        waits = self.ledger.waits(stream)
        running = {error: (since, limit) for error, since, limit in record.time_limits(options, waits)}
        since, limit = running.get(type(exc), (0, None))
        flushed_by = self.ledger.kernel.reading(end.read_at) + linger
        if isinstance(exc, errors.WriteTimeout) and end.ended_in and now >= flushed_by:
            return  # the peer has ended, and the rest was not flushed within `linger`
        if limit is None:
            self.ledger.wrong(stream, f'it ended with {exc!r}, but no such time limit was running')
        elif now - since < limit * 1e9 - 1000:
            self.ledger.wrong(stream, f'it ended with {exc!r} after {(now - since) / 1e9} s; the limit is {limit} s')

    def _check_reset(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # The peer must see a reset after abort(), and an end of file after close().
        record, end = stream.record, stream.record.end
        if end is None or end.instant or end.reported or self.ledger.kernel.fails or not record.begun:
            return
        aborted = record.closed_by == 'abort' and not record.gone_before
        aborted = aborted or isinstance(exc, errors.WriteTimeout | errors.WriteBufferFull) or exc in record.raised
        if aborted and end.lingers and not end.dead:
            self.ledger.wrong(stream, f'it ended with {exc!r}, but its peer gets no reset')
        if record.closed_by != 'abort' and exc is None and not end.lingers and not self.ledger.closing:
            self.ledger.wrong(stream, 'it ended cleanly, but its peer gets a reset')
