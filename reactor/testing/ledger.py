"""The ledger of one reactor: the facts that all checks read, and the violations that they find.

It knows which phase the turn is in, which callback is running, and which file of the simulated kernel belongs to which
connection. It does not know the checks. They are objects in other modules that get the ledger and add to `violations`.
"""

from __future__ import annotations

from errno import EPIPE
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, ref

from ..facade import Reactor
from ..net.connector import Attempt
from ..net.listener import Listener
from ..net.tls import TLSStream
from .files import End, File
from .kernel import SimKernel
from .reached import Limits, Reached
from .records import Record
from .watched import WatchedStream, is_accepted

# The phases of a turn, in their order.
DISPATCH, TIMERS, IDLERS, CALLS, COMPLETIONS = range(5)
# Most checks look only at what has changed in a turn. So that no silent change is missed, they look at everything too,
# as often as that costs no more than WALK objects a turn: a small program is checked completely after each turn.
WALK = 8


class Walks:
    """Decides after which turns a check looks at everything."""

    def __init__(self) -> None:
        self._saved = 0

    def is_time(self, size: int) -> bool:
        """Return whether to look at all `size` objects after this turn."""
        self._saved += WALK
        if self._saved < size:
            return False
        self._saved = 0
        return True


class Ledger:
    """The facts about one reactor, its connections and its turns."""

    def __init__(self, kernel: SimKernel, reactor: Reactor) -> None:
        self.kernel = kernel
        self.reactor = reactor
        self.simulated: bool = hasattr(kernel, 'woke_at')  # on a real kernel, only calls and callbacks are checked
        self.violations: list[str] = []
        self.turns = 0
        self.phase: int = DISPATCH  # the latest phase in which a callback was seen
        self.inside: str | None = None  # the callback that is running
        self.callbacks: int = 0  # how many callbacks of streams were called
        self.depth = 0  # the depth of the stack at the last poll
        self.begun = False  # the program has started without an error
        self.cut = False  # an exception left `run` in the middle of the turn
        self.closing = False  # the reactor is being closed
        self.foreign: set[int] = set()  # descriptors that belong to the user
        self.records: list[Record] = []
        self.by_end: dict[End, Record] = {}
        self.tried: dict[End, Record] = {}  # the ends of attempts to connect
        self._connections = count(1)
        self.streams: dict[WatchedStream, None] = {}  # the streams that have not ended
        self.listeners: dict[Listener, bool] = {}  # maps each listener to whether it is paused
        self.accepted: WeakKeyDictionary[Listener, int] = WeakKeyDictionary()  # each listener's open connections
        self.limits: WeakKeyDictionary[Listener, Limits] = WeakKeyDictionary()  # each listener's time limits
        self.reached: Reached = Reached(runs=1)
        self.incoming: int = 0  # open connections
        self.outgoing: int = 0
        self._touched: dict[WatchedStream, None] = {}  # the streams to check after this turn
        self._changed: dict[File, None] = {}  # the files that have changed in this turn
        self._by_end: dict[End, WatchedStream] = {}
        self.unconnected: dict[WatchedStream, None] = {}  # outgoing connections that have no socket yet
        if self.simulated:
            kernel.audience.append(self._changed)

    def share(self, other: Ledger) -> None:
        """Use the records of connections of another process, so that the two ends of a connection can be compared."""
        self.records, self._connections = other.records, other._connections
        self.by_end, self.tried = other.by_end, other.tried

    def time(self) -> int:
        """Return the reading of the simulated clock, in ns; 0 on a real kernel, where time limits are not checked.

        Deadlines are compared with the clock's reading, not with the exact time: the clock may advance in long steps.
        """
        return self.kernel.reading(self.kernel.time) if self.simulated else 0

    def uses(self, *durations: float | None) -> None:
        """Record durations of the program, in seconds, for the stalls of the profile 'hostile'."""
        if self.simulated:
            self.kernel.uses(*durations)

    def thread_called(self) -> None:
        """Let the loop run before a thread goes on that has called `call_soon_threadsafe`, in the profile 'hostile'."""
        if self.simulated:
            self.kernel.suspended.called()

    def touch(self, stream: WatchedStream) -> None:
        """Have the stream checked after this turn: something has happened to it."""
        if stream in self.streams:
            self._touched[stream] = None

    def take_touched(self, everything: bool) -> dict[WatchedStream, None]:
        """Return the open streams to which something has happened since the last call of this method, or all."""
        for file in self._changed:
            stream = self._by_end.get(file)  # type: ignore[call-overload]
            if stream is not None:
                self._touched[stream] = None
        self._changed.clear()
        touched, self._touched = self._touched, {}
        if everything:
            touched = self.streams.copy()
        for stream in touched:
            self._count(stream, stream.origin)
        return touched

    def ended(self, stream: WatchedStream) -> None:
        """Forget an open stream, because its `on_close` was called or the user has never seen it."""
        self.streams.pop(stream, None)
        self.unconnected.pop(stream, None)
        self._touched.pop(stream, None)
        if stream.record.end is not None:
            self._by_end.pop(stream.record.end, None)
        self._count(stream, None)

    def _count(self, stream: WatchedStream, origin: Any) -> None:
        record, kind = stream.record, 0 if origin is None else 1 if is_accepted(stream) else -1
        self.incoming += (kind == 1) - (record.counted == 1)
        self.outgoing += (kind == -1) - (record.counted == -1)
        if kind == 1 and record.counted != 1:
            record.listener = ref(origin)
            self.accepted[origin] = self.accepted.get(origin, 0) + 1
        elif record.counted == 1 and kind != 1:
            listener: Listener | None = None if record.listener is None else record.listener()
            if listener is not None:
                self.accepted[listener] -= 1
        record.counted = kind

    def wrong(self, stream: WatchedStream, text: str) -> None:
        """Add a violation that concerns a connection."""
        self.violations.append(f'{self.name(stream.record)}: {text}')

    def name(self, record: Record) -> str:
        """Return the name of a connection: 'client 3' and 'server 3' are the two ends of one connection."""
        if not record.name:
            peer = None
            if not record.client and record.end is not None:
                if record.end.peer not in self.by_end and record.end.peer not in self.tried:
                    self.find_attempts()
                peer = self.by_end.get(record.end.peer) or self.tried.get(record.end.peer)  # type: ignore[arg-type]
            if peer is not None and peer.client:
                record.name = 'server' + self.name(peer)[6:]
            else:
                record.name = f'{"client" if record.client else "server"} {next(self._connections)}'
        return record.name

    def find_attempts(self) -> None:
        """Record which sockets that have begun to connect belong to which connections that the user is making."""
        while self.kernel.connects:
            fd, file = self.kernel.connects.popitem()
            key = self.reactor.watchers.selector.get_map().get(fd)
            handle = None if key is None else key.data
            if isinstance(handle, Attempt):
                owner = handle.connector.stream
                if isinstance(owner, WatchedStream) and self.kernel.files.get(fd) is file:
                    self.tried[file] = owner.record
            elif handle is None:  # it may have connected at once, and so it belongs to a stream that is not watched yet
                for stream in self.unconnected.copy():
                    self.end_of(stream)

    def secured(self, stream: WatchedStream) -> bool:
        """Return whether the stream uses TLS."""
        record = stream.record
        record.secured |= stream.tls is not None or isinstance(stream, TLSStream)
        return record.secured

    def lacks_close_notify(self, stream: WatchedStream, end: End) -> bool:
        """Return whether the only failure was that our close_notify could not be sent.

        A peer that has sent its own close_notify and closed its socket need not receive ours (RFC 8446, section 6.1).
        """
        return end.reported == [EPIPE] and self.secured(stream) and _is_alert(end.never_sent)

    def waits(self, stream: WatchedStream) -> int:
        """Return how many bytes were written but not yet accepted by the kernel."""
        record, end = stream.record, self.end_of(stream)
        if self.secured(stream) or (end is None and stream.sock is not None):
            return stream.buffered  # with TLS or on a real kernel, only the stream knows the number
        return len(record.offered) - (0 if end is None else end.sent)

    def peer_of(self, record: Record) -> Record | None:
        """Return the record of the other end of a connection, if the bytes of the two ends can be compared."""
        if record.end is None or record.end.peer is None:
            return None
        peer = self.by_end.get(record.end.peer)
        return None if record.raw or (peer is not None and peer.raw) else peer

    def end_of(self, stream: WatchedStream) -> End | None:
        """Return the stream's end in the simulated kernel, or None."""
        record = stream.record
        if record.end is None and stream.sock is not None:
            file = self.kernel.files.get(stream.sock.fileno())
            if isinstance(file, End):
                record.end = file
                record.sock = ref(stream.sock)
                self.by_end[file] = record
                self._by_end[file] = stream
                self.unconnected.pop(stream, None)
        return record.end


def _is_alert(data: bytes) -> bool:
    # In TLS 1.3 an alert is encrypted like data: two bytes, their type, and a 16-byte tag (RFC 8446, section 5.2).
    encrypted = data[:5] == b'\x17\x03\x03\x00\x13' and len(data) == 24
    return encrypted or (data[:1] == b'\x15' and len(data) == 5 + int.from_bytes(data[3:5], 'big'))
