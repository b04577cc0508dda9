"""Checks for open connections, at every call and callback.

They are written from the laws and the docstrings, and compare the user's calls and the callbacks with the state of the
simulated kernel. They do not repeat conditions from the stream's code: otherwise they would repeat its mistakes, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

from ..errors import ConnectionClosed, SendFileError
from ..net.connector import Connector
from ..net.listener import Listener
from .agenda import excerpt
from .calls import Calls, is_ours
from .ends import Ends
from .faults import Killed
from .ledger import COMPLETIONS, WALK, Ledger
from .memory import held_for, show_held
from .places import place_of
from .reality import NotSimulated
from .records import Record
from .watched import Planted, WatchedStream

CALLBACK_COST = 1024  # bytes: each waiting `on_written` uses at most this much of `max_buffered`


class StreamChecks:
    """The checks for the connections of one reactor, at every call and callback and between two turns."""

    def __init__(self, ledger: Ledger, calls: Calls, ends: Ends) -> None:
        self.ledger: Ledger = ledger
        self.calls: Calls = calls
        self.ends: Ends = ends
        self._just_closed: list[WatchedStream] = []
        self._left: list[ref[WatchedStream]] = []  # ended streams whose timers are still to be looked for
        self.max_undrained: int | None = None
        self.max_memory: int | None = None
        self._just_raised: list[BaseException] = []
        self._unreported: dict[BaseException, str] = {}

    # -- called by the streams

    def opened(self, stream: WatchedStream, origin: Any) -> Record:
        """Add a new stream to the ledger, and return its record; `origin` is the listener or connector."""
        record = Record(len(self.ledger.records))
        record.client = isinstance(origin, Connector)
        if isinstance(origin, Listener):
            record.limits = self.ledger.limits.get(origin, record.limits)
        if record.client:
            self.ledger.unconnected[stream] = None
            self.ledger.name(record)  # clients are numbered in the order in which they are made
        record.limits_from = self.ledger.time()
        self.ledger.records.append(record)
        self.ledger.streams[stream] = None
        return record

    def watch(self, stream: WatchedStream, kind: str, fn: Callable[..., object]) -> Callable[..., object]:
        """Return `fn` wrapped in the checks of a callback."""
        self.ledger.reached.add_callback(kind, fn)
        watched = WatchedCallback(self, kind, fn)
        stream.record.wrappers.append(ref(watched))
        return watched

    def run(self, stream: WatchedStream, kind: str, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Call `fn`, with checks before and after it."""
        self.enter(kind, stream, args)
        if kind != 'data':
            self.ledger.reached.called(kind, fn, args)
        try:
            fn(stream, *args)
        except Exception as exc:
            self._raises(stream, kind, exc)
            raise
        finally:
            self.ledger.inside = None
            if kind == 'close':
                self.ledger.ended(stream)
                self._just_closed.append(stream)

    def _raises(self, stream: WatchedStream, kind: str, exc: BaseException) -> None:
        record = stream.record
        record.raised.append(exc)
        self._just_raised.append(exc)
        if kind not in ('close', 'error') and stream.on_error is not None:
            record.survived.append(exc)
        self._unreported[exc] = f'{self.ledger.name(record)}: law 8: on_{kind} raised {exc!r}, which was never reported'

    def caught(self, exc: Exception, handle: Any) -> None:
        """Handle an exception that the reactor caught. An exception that was not planted is a violation."""
        self._unreported.pop(exc, None)
        if not isinstance(exc, Planted | NotSimulated):  # the second is reported where it is raised
            who = self.ledger.name(handle.record) if isinstance(handle, WatchedStream) else repr(handle)
            what = 'a scheduled call' if handle is None else f'a callback of {who}'
            self.ledger.violations.append(f'{what} raised {exc!r}{place_of(exc)}')

    def write(self, stream: WatchedStream, call: Any, what: Any, pieces: Any, on_written: Any, args: Any) -> bool:
        """Make the user's write by calling `call(what, on_written, *args)`, and check its result."""
        record = stream.record
        if record.writing:  # over TLS, one write method calls another
            within: bool = call(what, on_written, *args)
            return within
        self.ledger.touch(stream)
        data = b''.join(bytes(piece) for piece in pieces)
        failed, waits = stream.closed, self.ledger.waits(stream)
        if on_written is not None:
            on_written = self._watch_written(record, on_written, len(record.marks))
        size, record.writing = len(record.offered), True
        self.ledger.kernel.note('call', -1, (record.number, 'write', excerpt(data)))
        record.offered += data
        marks = len(record.marks)
        if on_written is not None:
            record.marks.append(len(record.offered))
        try:
            taken: bool = call(what, on_written, *args)
        except Killed:
            raise
        except BaseException as exc:
            del record.offered[size:], record.marks[marks:]
            self._check_refusal(stream, exc)
            raise
        finally:
            record.writing = False
        if not taken:
            self.ledger.kernel.note('refused', -1, record.number)
        if record.ended_by is not None or record.over:
            self.ledger.wrong(stream, f'a write after {record.ended_by or "on_close"} did not raise')
        if not taken and (failed or stream.closed):
            record.dropped = True
            self._check_cut(stream, failed, waits, taken)
            if failed or record.cut:
                del record.offered[size:], record.marks[marks:]
            return taken
        self._check_taken(stream, taken, len(data), waits)
        return taken

    def _check_refusal(self, stream: WatchedStream, exc: BaseException) -> None:
        record = stream.record
        if isinstance(exc, ConnectionClosed):
            if record.ended_by is None and not (record.over or record.unclear):
                self.ledger.wrong(stream, 'a write raised ConnectionClosed, but the user has not ended the connection')
        elif not isinstance(exc, TypeError | ValueError | (OSError if record.sends_files else SendFileError)):
            self.ledger.wrong(stream, f'law 2: a write raised {exc!r}')

    def _check_cut(self, stream: WatchedStream, failed: bool, waits: int, taken: bool) -> None:
        record, end = stream.record, self.ledger.end_of(stream)
        if failed or record.secured or not self.ledger.simulated or (end is not None and end.reported):
            return
        enough = waits + CALLBACK_COST * (len(record.marks) - record.written_calls) >= stream.options.max_buffered
        record.cut = enough or not self.ledger.kernel.fails  # otherwise other code may have closed the descriptor
        if record.cut and not enough:
            self.ledger.wrong(stream, f'a write was dropped without an error, although only {waits} bytes are waiting')

    def _check_taken(self, stream: WatchedStream, taken: bool, size: int, waited: int) -> None:
        record, waits = stream.record, self.ledger.waits(stream)
        self._check_undrained(stream, size, waited)
        if not taken:
            record.awaits_drain = True
        if waits and not waited:
            record.waiting_from = self.ledger.time()
        record.waited |= waits > 0
        record.largest = max(record.largest, size)
        if waited >= max(1, stream.options.max_buffered) and not record.sends_files:
            most = stream.options.max_buffered
            self.ledger.wrong(stream, f'law 6: a write was taken with {waited} bytes waiting; max_buffered is {most}')
        if taken != (waits < record.high_water):
            mark = record.high_water
            self.ledger.wrong(stream, f'a write returned {taken} with {waits} bytes waiting; high_water is {mark}')

    def _check_undrained(self, stream: WatchedStream, size: int, waited: int) -> None:
        record, most = stream.record, self.max_undrained
        if not record.awaits_drain or waited <= (stream.options.low_water or 0):
            record.undrained = 0
            return
        record.undrained += size
        if most is not None and record.undrained > most:
            self.ledger.wrong(
                stream,
                f'a write had returned False, and the program has written {record.undrained} bytes since, without '
                f'waiting for on_drain; max_undrained allows {most}',
            )

    def _watch_written(self, record: Record, fn: Callable[..., object], mark: int) -> Callable[..., object]:
        def watched(stream: WatchedStream, *args: Any) -> None:
            if mark != record.written_calls:
                due = record.written_calls
                self.ledger.wrong(stream, f'law 3: on_written of write {mark} was called before that of write {due}')
            record.written_calls = mark + 1
            if record.end is not None and not record.secured and record.end.sent < record.marks[mark]:
                sent = record.end.sent
                self.ledger.wrong(stream, f'law 3: on_written was called after {sent} of {record.marks[mark]} bytes')
            self.run(stream, 'written', fn, args)

        record.wrappers.append(ref(watched))
        return watched

    def enter(self, kind: str, stream: WatchedStream, args: tuple[Any, ...]) -> None:
        """Check a callback of a stream that is being called."""
        record, end = stream.record, self.ledger.end_of(stream)
        self.ledger.callbacks += 1
        self.ledger.touch(stream)
        if not record.name:
            self.ledger.name(record)
        self.ledger.kernel.note('on_' + kind, -1, (record.number, *[_short(arg) for arg in args]))
        late = kind in ('written', 'drain', 'close')
        self.calls.enter(f'on_{kind} of {record.name}', COMPLETIONS if late else None)
        if record.over:
            self.ledger.wrong(stream, f'law 1: on_{kind} was called after on_close')
        if kind in ('connect', 'data', 'eof', 'drain') and record.closed_by is not None:
            self.ledger.wrong(stream, f'law 1: on_{kind} was called after {record.closed_by}()')
        if kind in ('data', 'eof', 'drain', 'written') and record.awaits_connect and not record.connected:
            if record.closed_by is None:  # after close(), on_connect is not called, but bytes may have been sent
                self.ledger.wrong(stream, f'law 3: on_{kind} was called before on_connect')
        if kind in ('data', 'eof') and record.paused:
            self.ledger.wrong(stream, f'on_{kind} was called while reading is paused')
        if kind in ('connect', 'eof') and kind in record.events:
            self.ledger.wrong(stream, f'law 1: on_{kind} was called twice')
        if kind in ('data', 'eof') and 'eof' in record.events:
            self.ledger.wrong(stream, f'law 3: on_{kind} was called after on_eof')
        if len(record.events) < 1000 or kind != 'data':
            record.events.append(kind)
        if kind == 'connect':
            record.connected, record.limits_from = True, self.ledger.time()
            if end is not None and end.sent and not self.ledger.secured(stream):
                self.ledger.wrong(stream, f'law 3: {end.sent} bytes were sent before on_connect')
        elif kind == 'data':
            self._take(stream, args[0])
        elif kind == 'eof':
            self.ends.check_whole(stream)
        elif kind == 'drain':
            self._check_drain(stream)
        elif kind == 'error':
            self._check_error(stream, args[0])
        elif kind == 'close':
            if record.closed_by is None:  # otherwise `linger` has ended it
                self.ledger.reached.ended(args[0], record.limits)
            self.ends.check(stream, args[0])

    def check_closed_is_true(self, stream: WatchedStream, how: str) -> None:
        """Check that a stream is closed after the user has called the method named `how`."""
        if not stream.closed:
            self.ledger.wrong(stream, f'after {how}(), `closed` is still False')

    def _check_drain(self, stream: WatchedStream) -> None:
        record, waits, mark = stream.record, self.ledger.waits(stream), stream.record.high_water
        if not record.awaits_drain:
            self.ledger.wrong(stream, 'on_drain was called, but no write has returned False')
        record.awaits_drain = False
        if waits >= mark:
            self.ledger.wrong(stream, f'on_drain was called with {waits} bytes waiting; high_water is {mark}')

    def _check_error(self, stream: WatchedStream, exc: BaseException) -> None:
        if exc not in self._unreported or exc not in stream.record.raised:
            self.ledger.wrong(stream, f'on_error got {exc!r}, which no callback of this connection has just raised')
        self._unreported.pop(exc, None)

    def _take(self, stream: WatchedStream, data: bytes) -> None:
        record, end = stream.record, stream.record.end
        begin = len(record.got)
        record.got += data
        if not data:
            self.ledger.wrong(stream, 'law 3: on_data was called with no bytes')
        turn, count = record.deliveries
        record.deliveries = self.ledger.turns, count + 1 if turn == self.ledger.turns else 1
        if not self.ledger.secured(stream):
            if len(data) > stream.options.read_size:
                most = stream.options.read_size
                self.ledger.wrong(stream, f'law 5: on_data got {len(data)} bytes; read_size is {most}')
            failed = end is not None and bool(end.reported)
            if (
                record.deliveries[1] > 1 + record.has_header
                and self.ledger.simulated
                and not (failed or self.ledger.cut)
            ):
                self.ledger.wrong(stream, f'law 5: on_data was called {record.deliveries[1]} times in one turn')
        peer = self.ledger.peer_of(record)
        if peer is not None and peer.offered[begin : len(record.got)] != data:
            self.ledger.wrong(stream, f'law 4: bytes {begin} to {len(record.got)} are not the bytes the peer wrote')

    # -- between two turns

    def check_turn(self, touched: Iterable[WatchedStream]) -> None:
        """Check these open connections and those that have just ended, and report exceptions that were swallowed."""
        for stream in touched:
            self._check_stream(stream)
        for exc in self._just_raised:
            exc.__traceback__ = None  # we keep the exception, and its frames would keep their objects alive
        self._just_raised.clear()
        for stream in self._just_closed:
            self._check_dropped(stream)
            self._left.append(ref(stream))
        self._just_closed.clear()
        if len(self._left) * WALK >= len(self.ledger.reactor.timers):
            self.check_timers()
        self.ledger.violations += self._unreported.values()

    def _check_stream(self, stream: WatchedStream) -> None:
        record, end = stream.record, self.ledger.end_of(stream)
        if end is None or not record.begun:
            return
        if not self.ledger.secured(stream):
            waits = len(record.offered) - end.sent
            if waits < 0:
                self.ledger.wrong(
                    stream, f'the kernel accepted {end.sent} bytes, but only {len(record.offered)} were written'
                )
            if stream.buffered != waits:
                self.ledger.wrong(stream, f'{waits} bytes are waiting, but `buffered` is {stream.buffered}')
        if self.max_memory is not None and held_for(stream, self.max_memory) > self.max_memory:
            self.ledger.wrong(stream, f'{show_held(stream)}; max_memory allows {self.max_memory:,}')
        if stream.options.nodelay and not (end.nodelay or end.instant or self.ledger.kernel.fails):
            self.ledger.wrong(stream, 'TCP_NODELAY was neither set nor inherited')
        if stream.buffered > stream.options.max_buffered + max(record.largest, 1 << 17) and not record.sends_files:
            most = stream.options.max_buffered
            self.ledger.wrong(stream, f'law 6: {stream.buffered} bytes are waiting; max_buffered is {most}')

    def _check_dropped(self, stream: WatchedStream) -> None:
        # Law 9: an ended stream keeps no object of the user, no socket and no timer.
        record = stream.record
        kept = [each for each in (*record.wrappers, record.sock) if each is not None and each() is not None]
        if kept or stream.data is not None or stream.origin is not None:
            self.ledger.wrong(
                stream, f'law 9: after on_close it keeps its data or listener, or {[each() for each in kept]}'
            )
        if stream.busy:
            self.ledger.wrong(stream, 'law 9: `busy` is still True after on_close')

    def check_timers(self) -> None:
        """Check that no timer of a connection that has ended is left."""
        left = {id(stream): stream for stream in (each() for each in self._left) if stream is not None}
        self._left.clear()
        for timer in self.ledger.reactor.timers if left else ():
            for stream in (left.get(id(arg)) for arg in timer.args or () if is_ours(timer)):
                if stream is not None:
                    self.ledger.wrong(stream, f'law 9: its timer {timer!r} still exists after on_close')


class WatchedCallback:
    """A callback of a stream, wrapped in checks.

    Only the reactor's own code sees the wrapper; see `WatchedStream`. It has the attributes of the callback, because
    `reactor.framing` makes callbacks with methods that a stream calls.
    """

    __slots__ = ('__weakref__', '_checks', '_kind', 'fn')

    def __init__(self, checks: StreamChecks, kind: str, fn: Callable[..., object]) -> None:
        self._checks = checks
        self._kind = kind
        self.fn: Callable[..., object] = fn

    def __call__(self, stream: WatchedStream, *args: Any) -> None:
        self._checks.run(stream, self._kind, self.fn, args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fn, name)


def _short(value: Any) -> Any:
    return excerpt(value) if isinstance(value, bytes) else repr(value)
