"""Oracles: what has to hold, whatever a program does and whatever fails.

Owns a `Record` of every connection and the checks of the laws. Knows no program. The rule: it looks on. A
`WatchedReactor` calls the same code as a `Reactor` and lets everything through unchanged; what is wrong is collected in
`violations`, and the simulation ends with the turn in which there is one.

The laws are those of the README, "What it promises".
"""

from __future__ import annotations

from errno import EBADF, EPIPE
from math import inf
from signal import SIG_DFL, SIGINT, default_int_handler
from weakref import WeakKeyDictionary

from ..errors import ConnectTimeout, IdleTimeout, ReactorError, ReadTimeout, WriteTimeout
from ..facade import Reactor
from ..loop.threads import THREADS
from ..loop.watcher import READ
from ..net.datagram import DATAGRAM_COST, DATAGRAMS_PER_TURN, DatagramSocket
from ..net.listener import ACCEPTS_PER_TURN, Listener
from ..net.proxy_protocol import ProxiedStream
from ..net.stream import CONNECTING, OPEN, Stream
from ..net.tls import TLSStream
from ..net.writer import ENDED
from .files import End, Listening, Mailbox, Stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .kernel import SimKernel

MOST_IDLE_POLLS = 100  # polls in a row that end early and bring nothing: a spin
MOST_TURNS = 200_000
NET = Stream.__module__.rpartition('.')[0]  # whose timers are ours
MOST_TURNS_AT_ONCE = 20_000  # without time passing


class Planted(Exception):
    """Raised by the simulation inside a user's callback."""


class Record:
    """What was seen of one connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.events: list[str] = []
        self.end: End | None = None
        self.offered = bytearray()  # what the user wrote, as far as it was taken
        self.got = bytearray()
        self.writing = False
        self.marks: list[int] = []  # for each on_written that is awaited, up to where
        self.told = 0
        self.closed_by: str | None = None  # the user's own close() or abort()
        self.over = False
        self.exc: BaseException | None = None
        self.connected = False
        self.paused = False
        self.awaits_connect = False
        self.high_water = 0
        self.careful = False  # when it was closed, something was known to be unread, perhaps
        self.dropped = False  # some of what was written is never sent, and the user was told so
        self.raised: list[BaseException] = []
        self.raw = False  # the program makes its own protocol of these bytes: the peer gets other ones than it writes


class WatchedStream(Stream):
    """A stream whose callbacks and calls go by the ledger of its reactor."""

    __slots__ = ('record',)

    loop: Any

    def __init__(self, loop: Any, options: Any, callbacks: Any, origin: Any) -> None:
        self.record = loop.ledger.opened(self)
        self.record.awaits_connect = callbacks.on_connect is not None
        self.record.high_water = max(1, options.high_water)
        super().__init__(loop, options, callbacks, origin)
        self.on_close = callbacks.on_close or _nothing  # watched, also where the user does not care

    def write(self, data: Any, on_written: Any = None, *args: Any) -> bool:
        taken: bool = self.loop.ledger.write(self, super().write, data, (data,), on_written, args)
        return taken

    def writelines(self, buffers: Any, on_written: Any = None, *args: Any) -> bool:
        pieces = list(buffers)
        taken: bool = self.loop.ledger.write(self, super().writelines, pieces, pieces, on_written, args)
        return taken

    def pause_reading(self) -> None:
        self.record.paused = True  # whatever has become of the connection meanwhile
        super().pause_reading()

    def resume_reading(self) -> None:
        if self.sock is not None or self.state is CONNECTING:  # else it has ended, paused, and is told so later
            self.record.paused = False
        super().resume_reading()

    def set_write_limits(self, high: int | None = None, low: int | None = None) -> None:
        super().set_write_limits(high, low)
        if high is not None:
            self.record.high_water = max(1, high)

    def send_file(
        self, file: Any, offset: int = 0, count: int | None = None, on_written: Any = None, *args: Any
    ) -> bool:
        send = super().send_file
        if self.loop.ledger.secured(self):
            secured: bool = send(file, offset, count, on_written, *args)  # comes back as bytes
            return secured

        def call(what: Any, on_written: Any, *args: Any) -> bool:
            return send(what, offset, count, on_written, *args)

        data = file.data[offset:][:count]
        taken: bool = self.loop.ledger.write(self, call, file, (data,), on_written, args)
        return taken

    def close(self) -> None:
        if not self.closed:
            self.record.closed_by = 'close'
            self.record.dropped |= self.state is CONNECTING  # what was written before is never sent
            self.record.careful = self.state is OPEN and (self.writer is not None or not self.events & READ)
        super().close()

    def abort(self) -> None:
        if not self.record.over:
            self.record.closed_by = 'abort'
        super().abort()

    def reset(self, exc: BaseException | None) -> None:
        if exc is None and not self.record.over:
            self.record.closed_by = 'abort'
        if isinstance(exc, ReadTimeout) and self.record.paused:  # it may be paused later, before on_close
            self.loop.ledger.wrong(self, f'{exc!r} while reading is paused')
        self.record.dropped |= self.sock is not None  # over a Unix socket, nobody tells the peer so
        end = self.loop.ledger.live_end(self)
        super().reset(exc)
        if end is not None and end.lingers and not self.loop.ledger.kernel.fails:
            self.loop.ledger.wrong(self, 'it was aborted, and its peer got no reset')

    def forget(self) -> None:
        super().forget()
        self.loop.ledger.streams.pop(self, None)  # it could not be watched, and no user has ever seen it


class WatchedTLSStream(WatchedStream, TLSStream):
    """The same over TLS, of which the kernel's bytes say nothing."""

    __slots__ = ()

    def write(self, data: Any, on_written: Any = None, *args: Any) -> bool:
        return self.writelines((data,), on_written, *args)  # as TLS does it, but seen once


class WatchedProxiedStream(WatchedStream, ProxiedStream):
    """The same while its PROXY header is awaited, which its peer has written like anything else."""

    __slots__ = ()

    def handle_header_bytes(self, data: bytes) -> None:
        self.record.got += data
        super().handle_header_bytes(data)


WatchedStream.secured = WatchedTLSStream
WatchedStream.proxied = WatchedProxiedStream


def _callback(kind: str) -> property:
    slot = Stream.__dict__['on_' + kind]

    def fset(stream: WatchedStream, fn: Callable[..., object] | None) -> None:
        slot.__set__(stream, None if fn is None else stream.loop.ledger.watch(kind, fn))

    return property(slot.__get__, fset)


for _kind in ('connect', 'data', 'eof', 'drain', 'close', 'error'):
    setattr(WatchedStream, 'on_' + _kind, _callback(_kind))


class WatchedReactor(Reactor):
    """A reactor on a simulated kernel, under watch."""

    def __init__(self, kernel: SimKernel, **options: Any) -> None:
        self.ledger = Ledger(kernel)
        super().__init__(kernel=kernel, catch_errors=self.ledger.caught, **options)
        self._stream_kind = WatchedStream
        self.ledger.reactor = self
        kernel.on_turn = self.ledger.check_turn


class Ledger:
    """The records of one reactor, and the checks."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kernel = kernel
        self.reactor: WatchedReactor | None = None
        self.violations: list[str] = []
        self.records: list[Record] = []
        self.by_end: dict[End, Record] = {}
        self.streams: dict[WatchedStream, None] = {}  # those that have not ended
        self.just_closed: list[WatchedStream] = []
        self.inside: str | None = None  # the callback that runs
        self.begun = False  # the program, without an error
        self.turns = 0
        self.callbacks = 0
        self.foreign: set[int] = set()  # descriptors that belong to the user
        self._idle_polls = 0
        self._bounds: WeakKeyDictionary[Listener, float] = WeakKeyDictionary()  # of open connections, a turn before
        self._last = (0, 0, 0, 0)  # time, progress, callbacks, turns at that time

    # -- told by the streams

    def opened(self, stream: WatchedStream) -> Record:
        """A stream was made."""
        record = Record(len(self.records))
        self.records.append(record)
        self.streams[stream] = None
        return record

    def watch(self, kind: str, fn: Callable[..., object]) -> Callable[..., object]:
        """`fn`, with the checks before and after it."""

        def watched(stream: WatchedStream, *args: Any) -> None:
            self.enter(kind, stream, args)
            try:
                fn(stream, *args)
            except Exception as exc:
                stream.record.raised.append(exc)
                raise
            finally:
                self.inside = None
                if kind == 'close':
                    self.streams.pop(stream, None)
                    self.just_closed.append(stream)

        return watched

    def write(self, stream: WatchedStream, call: Any, what: Any, pieces: Any, on_written: Any, args: Any) -> bool:
        """A write of the user, and what became of it."""
        record = stream.record
        if record.writing:  # over TLS one is made of the other
            within: bool = call(what, on_written, *args)
            return within
        failed = stream.writer is not None and stream.writer.error is not None
        full = stream.buffered >= stream.options.max_buffered and not failed
        size, marks = len(record.offered), len(record.marks)
        record.offered += b''.join(bytes(piece) for piece in pieces)
        if on_written is not None:
            record.marks.append(len(record.offered))
            on_written = self._watch_written(on_written, marks)
        record.writing = True
        try:
            taken: bool = call(what, on_written, *args)
        except Exception:
            del record.offered[size:], record.marks[marks:]
            raise
        finally:
            record.writing = False
        record.dropped |= failed or (not taken and stream.closed)
        if full and not stream.closed and stream.sock is not None:
            self.wrong(stream, 'law 6: so much waits that the peer has to be cut off, and a write is taken')
        if not (failed or stream.closed) and taken != (stream.buffered < record.high_water):
            self.wrong(stream, f'write says {taken}: {stream.buffered} wait, the mark is {record.high_water}')
        return taken

    def _watch_written(self, fn: Callable[..., object], mark: int) -> Callable[..., object]:
        def watched(stream: WatchedStream, *args: Any) -> None:
            record = stream.record
            self.enter('written', stream, args)
            if mark != record.told:
                self.wrong(stream, f'law 3: on_written of write {mark} is told, that of {record.told} is next')
            record.told = mark + 1
            if record.end is not None and not self.secured(stream) and record.end.sent < record.marks[mark]:
                self.wrong(stream, f'law 3: on_written at {record.end.sent} of {record.marks[mark]} bytes')
            try:
                fn(stream, *args)
            except Exception as exc:
                record.raised.append(exc)
                raise
            finally:
                self.inside = None

        return watched

    def enter(self, kind: str, stream: WatchedStream, args: tuple[Any, ...]) -> None:
        """A callback begins."""
        record = stream.record
        self.callbacks += 1
        self.kernel.note('on_' + kind, -1, (record.number, *[_short(arg) for arg in args]))
        if self.inside is not None:
            self.wrong(stream, f'law 2: on_{kind} is called inside {self.inside}')
        self.inside = f'on_{kind} of connection {record.number}'
        if record.over:
            self.wrong(stream, f'law 1: on_{kind} after on_close')
        if kind in ('connect', 'data', 'eof', 'drain') and record.closed_by is not None:
            self.wrong(stream, f'law 1: on_{kind} after {record.closed_by}()')
        if kind in ('data', 'eof', 'drain') and record.awaits_connect and not record.connected:
            self.wrong(stream, f'law 3: on_{kind} before on_connect')
        if kind == 'data' and record.paused:
            self.wrong(stream, 'on_data while reading is paused')
        if kind in ('connect', 'eof') and kind in record.events:
            self.wrong(stream, f'law 1: on_{kind} twice')
        if kind in ('data', 'eof') and 'eof' in record.events:
            self.wrong(stream, f'law 3: on_{kind} after on_eof')
        if len(record.events) < 1000 or kind != 'data':
            record.events.append(kind)
        if kind == 'connect':
            record.connected = True
        if kind == 'data':
            self._take(stream, args[0])
        elif kind == 'eof':
            self._check_whole(stream)
        elif kind == 'close':
            self._check_end(stream, args[0])

    def caught(self, exc: Exception, handle: Any) -> None:
        """A callback raised: planted, or a mistake."""
        if not isinstance(exc, Planted):
            self.violations.append(f'a callback of {handle!r} raised {exc!r}')

    def wrong(self, stream: WatchedStream, text: str) -> None:
        """A law is broken."""
        self.violations.append(f'connection {stream.record.number}: {text}')

    def secured(self, stream: WatchedStream) -> bool:
        """Whether its bytes are encrypted."""
        return stream.tls is not None or isinstance(stream, TLSStream)

    # -- bytes

    def _peer(self, record: Record) -> Record | None:
        if record.end is None or record.end.peer is None:
            return None
        peer = self.by_end.get(record.end.peer)
        return None if record.raw or (peer is not None and peer.raw) else peer

    def _end(self, stream: WatchedStream) -> End | None:
        record = stream.record
        if record.end is None and stream.sock is not None:
            file = self.kernel.files.get(stream.sock.fileno())
            if isinstance(file, End):
                record.end = file
                self.by_end[file] = record
        return record.end

    def live_end(self, stream: WatchedStream) -> End | None:
        """What is at our side of a connection, None when it is over or was not made yet."""
        end = self._end(stream)
        return end if end is not None and end.references and end.connected and not end.dead else None

    def _take(self, stream: WatchedStream, data: bytes) -> None:
        record = stream.record
        self._end(stream)
        begin = len(record.got)
        record.got += data
        if not data:
            self.wrong(stream, 'law 3: on_data without bytes')
        if len(data) > stream.options.read_size and not self.secured(stream):
            self.wrong(stream, f'law 5: {len(data)} bytes at once')
        peer = self._peer(record)
        if peer is not None and peer.offered[begin : len(record.got)] != data:
            self.wrong(stream, f'law 4: bytes {begin} to {len(record.got)} are not what the peer wrote')

    def _check_whole(self, stream: WatchedStream) -> None:
        # The peer has ended: all that its kernel took has to be here.
        record = stream.record
        end, peer = self._end(stream), self._peer(record)
        if end is None or end.peer is None:
            return
        if self.secured(stream):  # its end comes behind its last byte, or is an error
            if stream.on_data is not None and peer is not None and not peer.dropped and peer.offered != record.got:
                self.wrong(stream, f'bytes: the peer wrote {len(peer.offered)} and ended, {len(record.got)} came')
            return
        if stream.on_data is not None and len(record.got) != end.received:
            self.wrong(stream, f'law 3: on_eof at {len(record.got)} of {end.received} bytes that were read')
        if peer is None or peer.dropped or peer.end is None or peer.end.told or end.dead:
            return
        if end.ended_in and len(peer.offered) != end.received:
            self.wrong(stream, f'bytes: the peer wrote {len(peer.offered)} and ended, {end.received} came')

    def _check_end(self, stream: WatchedStream, exc: BaseException | None) -> None:
        record = stream.record
        record.over = True
        record.exc = exc
        if exc is not None and not isinstance(exc, BaseException):
            self.wrong(stream, f'law 1: on_close with {exc!r}')
        if isinstance(exc, Planted) and exc not in record.raised:
            self.wrong(stream, 'law 8: it ends with what a callback of another one raised')
        if exc is None and record.closed_by != 'abort' and record.end is not None and record.connected:
            if record.told < len(record.marks) and not record.dropped:
                self.wrong(stream, f'law 3: {len(record.marks) - record.told} on_written are missing')
        if type(exc).__module__ == 'builtins' and isinstance(exc, OSError) and record.end is not None:
            lost = exc.errno == EBADF and self.kernel.fails  # its number may be another's by now, and `end` with it
            if exc.errno not in record.end.told and not (lost or isinstance(exc, TimeoutError | ReactorError)):
                self.wrong(stream, f'law 8: nobody told it {exc!r}')
        if exc is None and record.closed_by is None and 'eof' not in record.events:
            self._check_whole(stream)
        if exc is None and record.careful and record.end is not None and record.end.cut_short:
            self.wrong(stream, 'close() with something unread has reset it, and lost what was under way')
        self._check_received(stream, exc)
        self._check_limits(stream, exc)
        # A peer that has ended its TLS stream and its socket does not take our end, and need not (RFC 8446, 6.1).
        untaken = [EPIPE] if self.secured(stream) else []
        if exc is None and record.closed_by is None and record.end is not None and record.end.told not in ([], untaken):
            self.wrong(stream, f'law 1: errors {record.end.told} were told, and on_close says None')

    def _check_received(self, stream: WatchedStream, exc: BaseException | None) -> None:
        # What has arrived before sending failed is delivered first.
        record, end = stream.record, stream.record.end
        refused = isinstance(exc, OSError) and not isinstance(exc, ReactorError) and record.closed_by is None
        if end is None or not end.inbox or not refused or record.paused or record.raised or self.secured(stream):
            return
        if stream.on_data is not None and not end.misled:
            self.wrong(stream, f'{len(end.inbox)} bytes had arrived, and it ends with {exc!r} before them')

    def _check_limits(self, stream: WatchedStream, exc: BaseException | None) -> None:
        record, end, options = stream.record, stream.record.end, stream.options
        if isinstance(exc, ConnectTimeout) and 'connect' in record.events:
            self.wrong(stream, f'{exc!r} after on_connect')
        if end is None or not isinstance(exc, ReadTimeout | IdleTimeout | WriteTimeout):
            return
        since, limit = {
            ReadTimeout: (end.read_at, options.read_timeout),
            IdleTimeout: (max(end.read_at, end.sent_at), options.idle_timeout),
            WriteTimeout: (end.sent_at, options.write_timeout),
        }[type(exc)]
        if isinstance(exc, WriteTimeout) and (record.closed_by is not None or end.ended_in):
            limit = None  # it was closing, which `linger` limits as a whole
        if limit is not None and self.kernel.time - since < limit * 1e9 - 1000 - self.kernel.clock_grain:
            self.wrong(stream, f'{exc!r} after {(self.kernel.time - since) / 1e9} s')
        if isinstance(exc, WriteTimeout) and record.closed_by is None and not (stream.buffered or end.ended_in):
            self.wrong(stream, f'{exc!r} though nothing waits')

    # -- turns

    def check_turn(self, timeout: float | None) -> None:
        """Between two turns everything has to be in order; raises `Violation` when something was not."""
        self.turns += 1
        self._check_bounds()
        self._check_progress(timeout)
        if self.kernel.replaced_in_vain:
            self.violations.append('law 7: the selector was replaced, and nothing was wrong with it')
        self._check_descriptors()
        self._check_counts()
        for stream in self.streams:
            self._check_stream(stream)
            self._check_late(stream, timeout)
        for stream in self.just_closed:
            self._check_dropped(stream)
        self.just_closed.clear()
        if self.violations:
            raise Violation('\n'.join(self.violations))

    def _check_bounds(self) -> None:
        kernel = self.kernel
        if kernel.threads > THREADS:
            self.violations.append(f'law 6: {kernel.threads} threads')
        for file, count in kernel.reads.items():
            if isinstance(file, Mailbox) and count > DATAGRAMS_PER_TURN:
                self.violations.append(f'law 5: {count} datagrams in a turn')
            elif isinstance(file, Listening) and count > ACCEPTS_PER_TURN:
                self.violations.append(f'law 5: {count} accepts in a turn')
            elif isinstance(file, End) and count > 2 * 65536:
                self.violations.append(f'law 5: {count} bytes of one connection in a turn')

    def _check_progress(self, timeout: float | None) -> None:
        kernel = self.kernel
        time, progress, callbacks, turns = self._last
        still = (kernel.time, kernel.progress, self.callbacks) == (time, progress, callbacks)
        # A turn that was not meant to wait had work of its own, which nobody sees from here.
        self._idle_polls = self._idle_polls + 1 if still and timeout != 0 else 0
        if self._idle_polls >= MOST_IDLE_POLLS:
            self.violations.append(f'law 7: {self._idle_polls} polls in a row ended at once and brought nothing')
        turns = turns + 1 if kernel.time == time else 0
        if turns > MOST_TURNS_AT_ONCE or self.turns > MOST_TURNS:
            self.violations.append(f'law 7: {turns} turns at once, {self.turns} in all')
        self._last = (kernel.time, kernel.progress, self.callbacks, turns)

    def _check_descriptors(self) -> None:
        reactor, files = self.reactor, self.kernel.files
        assert reactor is not None
        held = {handle.fileno() for handle in reactor.handles()}
        held.add(reactor._wakeup.fileno())
        held.add(reactor._wakeup.bell_fileno())
        held |= self.foreign
        lost = [fd for fd, file in files.items() if fd not in held and not isinstance(file, Stored)]
        if lost:
            self.violations.append(f'law 9: descriptors {lost} are open, and no handle has them')

    def _check_counts(self) -> None:
        reactor = self.reactor
        assert reactor is not None
        accepted: dict[Any, int] = {}
        outgoing = 0
        for stream in self.streams:
            if isinstance(stream.origin, Listener):
                accepted[stream.origin] = accepted.get(stream.origin, 0) + 1
            elif stream.origin is not None:
                outgoing += 1
        counted = reactor.counters.incoming, reactor.counters.outgoing
        if counted != (sum(accepted.values()), outgoing):
            self.violations.append(f'{counted} are counted as open, and {sum(accepted.values()), outgoing} are')
        for handle in reactor.handles():
            if isinstance(handle, Listener):
                count, most = accepted.get(handle, 0), handle.max_connections
                # The limit may be lowered at any time, which closes none of those that are open.
                bound = inf if most is None else most
                before, self._bounds[handle] = self._bounds.get(handle, 0), max(count, bound)
                if handle.open_connections != count or count > max(bound, before):
                    self.violations.append(f'law 6: {handle!r} has {count} of {most}')
            elif isinstance(handle, DatagramSocket) and handle.queued:
                sizes = [len(data) + DATAGRAM_COST for line in handle._lines.values() for data, _ in line]
                if sum(sizes) != handle.buffered + len(sizes) * DATAGRAM_COST:
                    self.violations.append(f'{handle!r} says {handle.buffered} bytes wait')
                if sum(sizes[:-1]) >= max(1, handle._max_queued):
                    self.violations.append(f'law 6: {sum(sizes)} bytes wait in {handle!r}')

    def _check_stream(self, stream: WatchedStream) -> None:
        record, writer = stream.record, stream.writer
        end = self._end(stream)
        if end is None or stream.state is CONNECTING:
            return
        if not self.secured(stream):
            if end.sent > len(record.offered):
                self.wrong(stream, f'bytes: the kernel has {end.sent}, {len(record.offered)} were written')
            waits = len(record.offered) - end.sent
            if writer is None or writer.error is None:
                if not stream.closed and not record.dropped and stream.buffered != waits:
                    self.wrong(stream, f'bytes: {waits} wait, and buffered says {stream.buffered}')
        if stream.options.nodelay and not (end.nodelay or end.instant or self.kernel.fails):
            self.wrong(stream, 'TCP_NODELAY was not asked for, and is not inherited')
        # Over TLS some may wait for the peer's new handshake instead, which is no matter of room.
        if stream.state is OPEN and writer is not None and writer.buffered and not stream.events & 2:
            self.wrong(stream, f'{stream.buffered} bytes wait, and nobody waits for room')
        if stream.buffered > stream.options.max_buffered + 1_000_000:
            self.wrong(stream, f'law 6: {stream.buffered} bytes wait')

    def _check_late(self, stream: WatchedStream, timeout: float | None) -> None:
        # The loop may sleep for a second longer than until its first time limit is over. It does not sleep at all where
        # bytes wait to be read.
        if stream.events & 1 and stream.unread:
            return
        options, now = stream.options, self.kernel.time / 1e9
        limits = []
        if options.idle_timeout is not None:
            limits.append(max(stream.since, stream.written_at) + options.idle_timeout)
        if options.read_timeout is not None and stream.events & 1:
            limits.append(stream.since + options.read_timeout)
        if stream.state is OPEN and limits and (timeout is None or timeout > max(0, min(limits) - now) + 1.001):
            self.wrong(stream, f'its time limit is over in {min(limits) - now} s, and the loop sleeps for {timeout} s')

    def _check_dropped(self, stream: WatchedStream) -> None:
        kept = [
            name
            for name in ('on_connect', 'on_data', 'on_eof', 'on_drain', 'on_close', 'data', 'sock', 'origin')
            if getattr(stream, name) is not None
        ]
        if kept or stream.writer is not ENDED:
            self.wrong(stream, f'law 9: after on_close it keeps {", ".join(kept) or "its writer"}')
        assert self.reactor is not None
        if stream.busy:
            self.wrong(stream, 'law 9: it is busy after on_close')
        for timer in self.reactor.timers:
            if stream in (timer.args or ()) and _is_ours(timer):
                self.wrong(stream, f'law 9: {timer!r} has outlived it')

    def check_over(self) -> None:
        """After `run` has returned True: nobody waits for anything, and nothing of ours is left."""
        assert self.reactor is not None
        timers = self.reactor.timers
        left = [timer for timer in timers if _is_ours(timer)]
        if not self.reactor.handles() and (left or timers.buckets):
            self.violations.append(f'law 9: left over are {left}, and {len(timers.buckets)} that have a time limit')

    def check_closed(self) -> None:
        """After `close()` of the reactor nothing may be left."""
        for stream in self.streams:
            self.wrong(stream, 'law 1: it never ended')
        if self.kernel.files.keys() - self.foreign:
            self.violations.append(f'law 9: descriptors {sorted(self.kernel.files)} are open after close()')
        handlers = {SIGINT: default_int_handler, **self.kernel.handlers}
        changed = [n for n, fn in handlers.items() if fn is not (default_int_handler if n == SIGINT else SIG_DFL)]
        if changed or self.kernel.wakeup_fd != -1:
            self.violations.append(
                f'handlers of {changed} and wakeup descriptor {self.kernel.wakeup_fd} are not put back'
            )
        if self.violations:
            raise Violation('\n'.join(self.violations))


class Violation(BaseException):
    """A law was broken. No `Exception`: it leaves `run`, and no callback's `except` takes it."""


def _short(value: Any) -> Any:
    return len(value) if isinstance(value, bytes) else repr(value)


def _is_ours(timer: Any) -> bool:
    return getattr(timer.fn, '__module__', '').startswith(NET)


def _nothing(*args: Any) -> None:
    pass
