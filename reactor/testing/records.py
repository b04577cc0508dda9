"""What every connection has to keep while it lives, at each call and callback.

The checks are written from the laws and the docstrings. They look at what the user has called and was called with, and
at what the simulated kernel holds of the socket: never at a condition of the stream's own, for then an oracle would be
wrong where the stream is.

Owns the records of one reactor. The rule: no condition of the code that is tested is repeated.
"""

from __future__ import annotations

from errno import EPIPE
from sys import _getframe
from weakref import ref

from ..errors import ConnectionClosed, SendFileError
from ..net.tls import TLSStream
from .calls import COMPLETIONS, DISPATCH
from .files import End
from .watched import Planted, Record, WatchedStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .kernel import SimKernel

CALLBACK_COST = 1024  # bytes: as much at most may each `on_written` that waits count towards `max_buffered`
DEEPEST = 12  # frames between `select` and a callback


class Records:
    """The records of one reactor's connections, and what each has to keep at every call and callback."""

    kernel: SimKernel
    simulated: bool

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.records: list[Record] = []
        self.by_end: dict[End, Record] = {}
        self.streams: dict[WatchedStream, None] = {}  # those that have not ended
        self.just_closed: list[WatchedStream] = []
        self.inside: str | None = None  # the callback that runs
        self.callbacks: int = 0
        self.turns = 0
        self.phase: int = DISPATCH  # as far as callbacks have shown it
        self.cut = False  # the turn was left in the middle
        self.closing = False  # the reactor itself
        self.reactor: Any = None
        self.depth = 0  # of the stack at the last poll
        self.just_raised: list[BaseException] = []
        self.unreported: dict[BaseException, str] = {}

    def time(self) -> int:
        """What the simulated clock says, in ns; 0 on a real kernel, where no limits are looked at.

        Deadlines and time limits are readings of it. Its steps may be long, so nothing is early or late by true time.
        """
        return self.kernel.reading(self.kernel.time) if self.simulated else 0

    # -- told by the streams

    def opened(self, stream: WatchedStream) -> Record:
        """A stream was made."""
        record = Record(len(self.records))
        record.limits_from = self.time()
        self.records.append(record)
        self.streams[stream] = None
        return record

    def watch(self, stream: WatchedStream, kind: str, fn: Callable[..., object]) -> Callable[..., object]:
        """`fn`, with the checks before and after it."""
        watched = WatchedCallback(self, kind, fn)
        stream.record.wrappers.append(ref(watched))
        return watched

    def run(self, stream: WatchedStream, kind: str, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Call `fn`, with the checks before and after it."""
        self.enter(kind, stream, args)
        try:
            fn(stream, *args)
        except Exception as exc:
            self._raises(stream, kind, exc)
            raise
        finally:
            self.inside = None
            if kind == 'close':
                self.streams.pop(stream, None)
                self.just_closed.append(stream)

    def _raises(self, stream: WatchedStream, kind: str, exc: BaseException) -> None:
        record = stream.record
        record.raised.append(exc)
        self.just_raised.append(exc)
        if kind not in ('close', 'error'):
            if stream.on_error is not None:
                record.survived.append(exc)
        self.unreported[exc] = f'connection {record.number}: law 8: {exc!r} of on_{kind} was never reported'

    def caught(self, exc: Exception, handle: Any) -> None:
        """A callback raised: planted, or a mistake."""
        self.unreported.pop(exc, None)
        if not isinstance(exc, Planted):
            self.violations.append(f'a callback of {handle!r} raised {exc!r}')

    def write(self, stream: WatchedStream, call: Any, what: Any, pieces: Any, on_written: Any, args: Any) -> bool:
        """A write of the user, and what became of it."""
        record = stream.record
        if record.writing:  # over TLS one is made of the other
            within: bool = call(what, on_written, *args)
            return within
        data = b''.join(bytes(piece) for piece in pieces)
        failed, waits = stream.closed, self._waits(stream)
        if on_written is not None:
            on_written = self._watch_written(record, on_written, len(record.marks))
        size, record.writing = len(record.offered), True
        record.offered += data
        marks = len(record.marks)
        if on_written is not None:
            record.marks.append(len(record.offered))
        try:
            taken: bool = call(what, on_written, *args)
        except BaseException as exc:
            del record.offered[size:], record.marks[marks:]
            self._check_refusal(stream, exc)
            raise
        finally:
            record.writing = False
        if record.ended_by is not None or record.over:
            self.wrong(stream, f'a write after {record.ended_by or "on_close"} did not raise')
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
                self.wrong(stream, 'a write raised ConnectionClosed, and its user has not ended the connection')
        elif not isinstance(exc, TypeError | ValueError | (OSError if record.sends_files else SendFileError)):
            self.wrong(stream, f'law 2: a write raised {exc!r}')

    def _check_cut(self, stream: WatchedStream, failed: bool, waits: int, taken: bool) -> None:
        record, end = stream.record, self.end_of(stream)
        if failed or record.secured or not self.simulated or (end is not None and end.told):
            return
        enough = waits + CALLBACK_COST * (len(record.marks) - record.told) >= stream.options.max_buffered
        record.cut = enough or not self.kernel.fails  # else other code may have closed its descriptor
        if record.cut and not enough:
            self.wrong(stream, f'it was cut off although {waits} bytes wait, and no error was reported to it')

    def _check_taken(self, stream: WatchedStream, taken: bool, size: int, waited: int) -> None:
        record, waits = stream.record, self._waits(stream)
        if not taken:
            record.awaits_drain = True
        if waits and not waited:
            record.waiting_from = self.time()
        record.waited |= waits > 0
        record.largest = max(record.largest, size)
        if waited >= max(1, stream.options.max_buffered) and not record.sends_files:
            self.wrong(stream, f'law 6: {waited} bytes wait, and a write is taken')
        if taken != (waits < record.high_water):
            self.wrong(stream, f'write says {taken}: {waits} wait, the mark is {record.high_water}')

    def _watch_written(self, record: Record, fn: Callable[..., object], mark: int) -> Callable[..., object]:
        def watched(stream: WatchedStream, *args: Any) -> None:
            record = stream.record
            self.enter('written', stream, args)
            if mark != record.told:
                self.wrong(stream, f'law 3: on_written of write {mark} is told, that of {record.told} is next')
            record.told = mark + 1
            if record.end is not None and not record.secured and record.end.sent < record.marks[mark]:
                self.wrong(stream, f'law 3: on_written at {record.end.sent} of {record.marks[mark]} bytes')
            try:
                fn(stream, *args)
            except Exception as exc:
                self._raises(stream, 'written', exc)
                raise
            finally:
                self.inside = None

        record.wrappers.append(ref(watched))
        return watched

    def called(self, what: str, phase: int | None) -> None:
        """Any callback of the user begins: not inside a call, not deep in the stack, not before its phase."""
        wrong = self.violations.append
        if self.inside is not None:
            wrong(f'law 2: {what} is called inside {self.inside}')
        self.inside = what
        if phase is not None:
            if phase < self.phase and not self.closing and not self.cut:
                wrong(f'law 3: {what} of phase {phase} is called in phase {self.phase}')
            self.phase = max(phase, self.phase)
        if not self.simulated:
            return
        began = self.kernel.reading(self.kernel.woke_at) / 1e9
        if self.reactor.now != began:
            wrong(f'in {what}, now is {self.reactor.now}, and the turn began at {began}')
        frame: Any = _getframe()
        depth = -self.depth
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        if self.depth and depth > DEEPEST and not self.closing:
            wrong(f'law 2: {what} is called {depth} frames deep')

    def enter(self, kind: str, stream: WatchedStream, args: tuple[Any, ...]) -> None:
        """A callback of a stream begins."""
        record, end = stream.record, self.end_of(stream)
        self.callbacks += 1
        self.kernel.note('on_' + kind, -1, (record.number, *[_short(arg) for arg in args]))
        late = kind in ('written', 'drain', 'close')
        self.called(f'on_{kind} of connection {record.number}', COMPLETIONS if late else None)
        if record.over:
            self.wrong(stream, f'law 1: on_{kind} after on_close')
        if kind in ('connect', 'data', 'eof', 'drain') and record.closed_by is not None:
            self.wrong(stream, f'law 1: on_{kind} after {record.closed_by}()')
        if kind in ('data', 'eof', 'drain', 'written') and record.awaits_connect and not record.connected:
            if record.closed_by is None:  # else there is no on_connect any more, and what was sent was sent
                self.wrong(stream, f'law 3: on_{kind} before on_connect')
        if kind in ('data', 'eof') and record.paused:
            self.wrong(stream, f'on_{kind} while reading is paused')
        if kind in ('connect', 'eof') and kind in record.events:
            self.wrong(stream, f'law 1: on_{kind} twice')
        if kind in ('data', 'eof') and 'eof' in record.events:
            self.wrong(stream, f'law 3: on_{kind} after on_eof')
        if len(record.events) < 1000 or kind != 'data':
            record.events.append(kind)
        if kind == 'connect':
            record.connected, record.limits_from = True, self.time()
            if end is not None and end.sent and not self.secured(stream):
                self.wrong(stream, f'law 3: {end.sent} bytes were sent before on_connect')
        elif kind == 'data':
            self._take(stream, args[0])
        elif kind == 'eof':
            self._check_whole(stream)
        elif kind == 'drain':
            self._check_drain(stream)
        elif kind == 'error':
            self._check_error(stream, args[0])
        elif kind == 'close':
            self._check_end(stream, args[0])

    def wrong(self, stream: WatchedStream, text: str) -> None:
        """A law is broken."""
        self.violations.append(f'connection {stream.record.number}: {text}')

    def secured(self, stream: WatchedStream) -> bool:
        """Whether its bytes are encrypted."""
        record: Record = stream.record
        record.secured |= stream.tls is not None or isinstance(stream, TLSStream)
        return record.secured

    def lacks_farewell(self, stream: WatchedStream, end: End) -> bool:
        """Whether all that failed was to send the end of our TLS stream.

        A peer that has ended its own and has closed its socket does not take it, and need not (RFC 8446, section 6.1).
        """
        return end.told == [EPIPE] and self.secured(stream) and _is_alert(end.never_sent)

    def check_closed_is_true(self, stream: WatchedStream, how: str) -> None:
        """From the user's call on."""
        if not stream.closed:
            self.wrong(stream, f'after {how}() it says that it is open')

    def _check_drain(self, stream: WatchedStream) -> None:
        record = stream.record
        if not record.awaits_drain:
            self.wrong(stream, 'on_drain, and no write has returned False')
        record.awaits_drain = False
        if self._waits(stream) >= record.high_water:
            self.wrong(stream, f'on_drain while {self._waits(stream)} wait, the mark is {record.high_water}')

    def _check_error(self, stream: WatchedStream, exc: BaseException) -> None:
        if exc not in self.unreported or exc not in stream.record.raised:
            self.wrong(stream, f'on_error with {exc!r}, which none of its callbacks has just raised')
        self.unreported.pop(exc, None)

    def _check_end(self, stream: WatchedStream, exc: BaseException | None) -> None:
        raise NotImplementedError

    # -- bytes

    def _waits(self, stream: WatchedStream) -> int:
        """How many bytes the kernel has not accepted yet, by what was written and what it has."""
        record, end = stream.record, self.end_of(stream)
        if self.secured(stream) or (end is None and stream.sock is not None):  # on a real kernel, that is unknown
            return stream.buffered
        return len(record.offered) - (0 if end is None else end.sent)

    def _peer(self, record: Record) -> Record | None:
        if record.end is None or record.end.peer is None:
            return None
        peer = self.by_end.get(record.end.peer)
        return None if record.raw or (peer is not None and peer.raw) else peer

    def end_of(self, stream: WatchedStream) -> End | None:
        """What the kernel has of it."""
        record = stream.record
        if record.end is None and stream.sock is not None:
            file = self.kernel.files.get(stream.sock.fileno())
            if isinstance(file, End):
                record.end = file
                record.sock = ref(stream.sock)
                self.by_end[file] = record
        return record.end

    def _take(self, stream: WatchedStream, data: bytes) -> None:
        record, end = stream.record, stream.record.end
        begin = len(record.got)
        record.got += data
        if not data:
            self.wrong(stream, 'law 3: on_data without bytes')
        turn, count = record.deliveries
        record.deliveries = self.turns, count + 1 if turn == self.turns else 1
        if not self.secured(stream):
            if len(data) > stream.options.read_size:
                self.wrong(stream, f'law 5: {len(data)} bytes at once')
            failed = end is not None and bool(end.told)
            if record.deliveries[1] > 1 + record.has_header and self.simulated and not (failed or self.cut):
                self.wrong(stream, f'law 5: on_data is called {record.deliveries[1]} times in a turn')
        peer = self._peer(record)
        if peer is not None and peer.offered[begin : len(record.got)] != data:
            self.wrong(stream, f'law 4: bytes {begin} to {len(record.got)} are not what the peer wrote')

    def _check_whole(self, stream: WatchedStream) -> None:
        # The peer has ended: all that its kernel took has to be here.
        record = stream.record
        end, peer = self.end_of(stream), self._peer(record)
        if end is None or end.peer is None:
            return
        hears = stream.on_data is not None
        if self.secured(stream):  # its end comes after its last byte, or is an error
            if hears and peer is not None and not peer.dropped and not peer.closed_by == 'abort' and not peer.exc:
                if peer.offered != record.got:
                    self.wrong(stream, f'bytes: the peer wrote {len(peer.offered)} and ended, {len(record.got)} came')
            return
        if not (end.ended_in or end.dead):
            self.wrong(stream, 'an end of file, and the peer has not ended')
        if hears and len(record.got) != end.received:
            self.wrong(stream, f'law 3: on_eof at {len(record.got)} of {end.received} bytes that were read')
        if end.ended_in and end.inbox:
            self.wrong(stream, f'an end of file before the last {len(end.inbox)} bytes')
        if peer is None or peer.dropped or peer.end is None or peer.end.told or end.dead:
            return
        left = peer.end.gone and peer.end.sent < len(peer.offered)  # discarded there, for which it has its reasons
        if end.ended_in and len(peer.offered) != end.received and not left:
            self.wrong(stream, f'bytes: the peer wrote {len(peer.offered)} and ended, {end.received} came')


class WatchedCallback:
    """A callback of a stream, watched. Code that looks at `conn.on_data` (`reactor.framing` does, and a protocol may)
    finds in it what was set: it is equal to that, an instance of its class, and has its attributes.
    """

    __slots__ = ('__weakref__', '_fn', '_kind', '_records')

    def __init__(self, records: Records, kind: str, fn: Callable[..., object]) -> None:
        self._records = records
        self._kind = kind
        self._fn = fn

    def __call__(self, stream: WatchedStream, *args: Any) -> None:
        self._records.run(stream, self._kind, self._fn, args)

    def __eq__(self, other: object) -> bool:
        return self is other or self._fn == other

    def __hash__(self) -> int:
        return hash(self._fn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fn, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._fn)


def _is_alert(data: bytes) -> bool:
    # In TLS 1.3 an alert is encrypted as data are: its two bytes, their type, and 16 of the cipher (RFC 8446, 5.2).
    encrypted = data[:5] == b'\x17\x03\x03\x00\x13' and len(data) == 24
    return encrypted or (data[:1] == b'\x15' and len(data) == 5 + int.from_bytes(data[3:5], 'big'))


def _short(value: Any) -> Any:
    return len(value) if isinstance(value, bytes) else repr(value)
