"""The ledger of one reactor: the facts that all checks read, and the violations that they find.

It holds what the reactor was asked to do, what it has called, and which file of the simulated kernel belongs to which
connection. It knows none of the checks: each of them has a module, gets the ledger, and adds to `violations`.
"""

from __future__ import annotations

from errno import EPIPE
from weakref import ref

from ..net.tls import TLSStream
from .files import End

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..facade import Reactor
    from ..net.listener import Listener
    from .kernel import SimKernel
    from .records import Record
    from .watched import WatchedStream

# The phases of a turn, in their order.
DISPATCH, TIMERS, IDLERS, CALLS, COMPLETIONS = range(5)


class Ledger:
    """What is known of one reactor, its connections and its turns."""

    kernel: SimKernel
    reactor: Reactor
    simulated: bool
    phase: int
    cut: bool
    depth: int

    def __init__(self, kernel: SimKernel, reactor: Reactor) -> None:
        self.kernel, self.reactor = kernel, reactor
        self.simulated = hasattr(kernel, 'woke_at')  # else only what the user sees is watched
        self.violations: list[str] = []
        self.turns = 0
        self.phase = DISPATCH  # as far as callbacks have shown it
        self.inside: str | None = None  # the callback that runs
        self.callbacks: int = 0  # of streams, that have begun
        self.depth = 0  # of the stack at the last poll
        self.begun = False  # the program, without an error
        self.cut = False  # the turn was left in the middle
        self.closing = False  # the reactor itself
        self.foreign: set[int] = set()  # descriptors that belong to the user
        self.records: list[Record] = []
        self.by_end: dict[End, Record] = {}
        self.streams: dict[WatchedStream, None] = {}  # those that have not ended
        self.listeners: dict[Listener, bool] = {}  # whether each is paused

    def time(self) -> int:
        """What the simulated clock says, in ns; 0 on a real kernel, where no limits are looked at.

        Deadlines and time limits are readings of it. Its steps may be long, so nothing is early or late by true time.
        """
        return self.kernel.reading(self.kernel.time) if self.simulated else 0

    def wrong(self, stream: WatchedStream, text: str) -> None:
        """A law is broken."""
        self.violations.append(f'connection {stream.record.number}: {text}')

    def secured(self, stream: WatchedStream) -> bool:
        """Whether its bytes are encrypted."""
        record = stream.record
        record.secured |= stream.tls is not None or isinstance(stream, TLSStream)
        return record.secured

    def lacks_close_notify(self, stream: WatchedStream, end: End) -> bool:
        """Whether all that failed was to send the end of our TLS stream.

        A peer that has ended its own and has closed its socket does not take it, and need not (RFC 8446, section 6.1).
        """
        return end.reported == [EPIPE] and self.secured(stream) and _is_alert(end.never_sent)

    def waits(self, stream: WatchedStream) -> int:
        """How many bytes the kernel has not accepted yet, by what was written and what it has."""
        record, end = stream.record, self.end_of(stream)
        if self.secured(stream) or (end is None and stream.sock is not None):  # on a real kernel, that is unknown
            return stream.buffered
        return len(record.offered) - (0 if end is None else end.sent)

    def peer_of(self, record: Record) -> Record | None:
        """The record of the other end of this connection, if its bytes can be compared."""
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


def _is_alert(data: bytes) -> bool:
    # In TLS 1.3 an alert is encrypted as data are: its two bytes, their type, and 16 of the cipher (RFC 8446, 5.2).
    encrypted = data[:5] == b'\x17\x03\x03\x00\x13' and len(data) == 24
    return encrypted or (data[:1] == b'\x15' and len(data) == 5 + int.from_bytes(data[3:5], 'big'))
