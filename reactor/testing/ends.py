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
from .records import Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .files import End
    from .watched import WatchedStream

# What a connection may end with, beside the errors of the kernel and what its callbacks have raised.
REASONS = (
    ReadTimeout, WriteTimeout, IdleTimeout, ConnectTimeout, WriteBufferFull, TLSError, DrainTimeout, ResolveError,
    SendFileError, TooSlow, LifetimeOver, ClientRefused, ProxyError,
)  # fmt: skip


class Connections(Records):
    """The records of one reactor's connections, with the checks of their ends."""

    def _check_end(self, stream: WatchedStream, exc: BaseException | None) -> None:
        record, end = stream.record, stream.record.end
        record.over, record.exc = True, exc
        if not stream.closed:
            self.wrong(stream, 'in on_close it says that it is open')
        lost = self.simulated and self.kernel.loses  # other code has closed a descriptor: `end` may be another's
        self._check_reason(stream, exc, lost)
        if not self.secured(stream) and not lost and self.simulated:
            self._check_unsent(stream, exc)
        if exc is None and end is not None:
            if record.unread and end.cut_short:
                self.wrong(stream, 'close() with something unread has reset it, and lost what was under way')
            self._check_clean(stream, end)
        self._check_received(stream, exc)
        self._check_limits(stream, exc)
        self._check_reset(stream, exc)

    def _check_reason(self, stream: WatchedStream, exc: BaseException | None, lost: bool) -> None:
        record, end = stream.record, stream.record.end
        known = exc in (None, record.aborted_with, *record.raised) or isinstance(exc, (OSError, *REASONS))
        if not known and not isinstance(exc, MemoryError | RecursionError):
            self.wrong(stream, f'law 1: on_close with {exc!r}')
        if exc in record.survived:
            self.wrong(stream, f'law 8: it ends with {exc!r}, of which on_error was told')
        if isinstance(exc, OSError) and exc.__traceback__ is not None and type(exc).__module__ == 'builtins':
            self.wrong(stream, f'law 9: {exc!r} keeps its traceback')
        if exc is not record.aborted_with and record.closed_by == 'abort' and not record.failed_before:
            self.wrong(stream, f'it was aborted, and ends with {exc!r}')
        if isinstance(exc, WriteBufferFull) != (record.cut and record.closed_by != 'abort'):
            if self.simulated and not (self.kernel.fails or self.secured(stream) or exc in record.raised):
                self.wrong(stream, f'it {"was" if record.cut else "was not"} cut off, and ends with {exc!r}')
        if end is None:
            return
        if type(exc).__module__ == 'builtins' and isinstance(exc, OSError) and not isinstance(exc, TimeoutError):
            if exc.errno not in end.told and not lost:
                self.wrong(stream, f'law 8: {exc!r} was never reported')
        if exc is None and record.closed_by is None and end.told and not self.lacks_farewell(stream, end):
            self.wrong(stream, f'law 1: errors {end.told} were told, and on_close says None')

    def _check_unsent(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # Law 3: what the kernel has is told by on_written, and what it has not by `buffered`.
        record, end = stream.record, stream.record.end
        sent = 0 if end is None else end.sent
        if stream.buffered != len(record.offered) - sent:
            self.wrong(stream, f'law 3: buffered says {stream.buffered}, {len(record.offered) - sent} were not sent')
        due = sum(mark <= sent for mark in record.marks) if end is not None and record.begun else 0
        if record.told != due:
            self.wrong(stream, f'law 3: {record.told} on_written were called, and the kernel took {due} writes')
        if exc is None and record.begun and record.closed_by != 'abort' and not self.closing:
            if sent < len(record.offered):
                self.wrong(stream, f'a clean end, and {len(record.offered) - sent} bytes were never sent')

    def _check_clean(self, stream: WatchedStream, end: End) -> None:
        # None: the user's own end, or the peer's.
        record = stream.record
        if record.closed_by is not None or self.closing or self.reactor.draining:
            return
        if not record.begun and self.secured(stream):
            return  # the peer has gone during the handshake
        if 'eof' not in record.events:
            self._check_whole(stream)
        elif record.ended_by is None:
            self.wrong(stream, 'it ends after on_eof, and its user has not ended it')

    def _check_received(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # What has arrived before sending failed is delivered first, unless reading is paused.
        record, end = stream.record, stream.record.end
        if end is None or end.at_failure is None or record.closed_by is not None or self.secured(stream):
            return
        if exc is None or exc in record.raised or isinstance(exc, ReactorError) or stream.on_data is None:
            return
        raised = len(record.raised) > len(record.survived)  # which ends it as well, and it tells what was first
        if raised or record.paused or record.resumed_late or end.misled or self.closing:
            return
        if len(record.got) < end.at_failure:
            missing = end.at_failure - len(record.got)
            self.wrong(stream, f'{missing} bytes had arrived when sending failed, and it ends with {exc!r} before them')

    def _check_limits(self, stream: WatchedStream, exc: BaseException | None) -> None:
        record, end, options, now = stream.record, stream.record.end, stream.options, self.time()
        if isinstance(exc, ConnectTimeout):
            if 'connect' in record.events:
                self.wrong(stream, f'{exc!r} after on_connect')
            if self.simulated and (record.connect_by is None or now < record.connect_by - 1000):
                self.wrong(stream, f'{exc!r} before its time')
        if end is None or not isinstance(exc, ReadTimeout | IdleTimeout | WriteTimeout) or not now:
            return
        linger = options.linger * 1e9 - 1000
        if isinstance(exc, WriteTimeout) and record.closed_by is not None:
            if now < record.closed_at + linger:
                self.wrong(stream, f'{exc!r} before its linger is over')
            return
        waits = self._waits(stream)
        running = {error: (since, limit) for error, since, limit in record.time_limits(options, waits)}
        since, limit = running.get(type(exc), (0, None))
        if isinstance(exc, WriteTimeout) and end.ended_in and now >= self.kernel.reading(end.read_at) + linger:
            return  # the peer has ended, and what is left was to be flushed within `linger`
        if limit is None:
            self.wrong(stream, f'{exc!r}, and no such limit runs')
        elif now - since < limit * 1e9 - 1000:
            self.wrong(stream, f'{exc!r} after {(now - since) / 1e9} s')

    def _check_reset(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # The peer of what was aborted has to see a reset, and that of what was closed an end of file.
        record, end = stream.record, stream.record.end
        if end is None or end.instant or end.told or self.kernel.fails or not record.begun:
            return
        aborted = record.closed_by == 'abort' and not record.gone_before
        aborted = aborted or isinstance(exc, WriteTimeout | WriteBufferFull) or exc in record.raised
        if aborted and end.lingers and not end.dead:
            self.wrong(stream, f'it ends with {exc!r}, and its peer is not reset')
        if record.closed_by != 'abort' and exc is None and not end.lingers and not self.closing:
            self.wrong(stream, 'a clean end, and its peer is reset')
