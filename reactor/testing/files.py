"""What simulated descriptors stand for: ends of streams, listeners, mailboxes of datagrams.

Owns their states, the bytes they hold, and what travels between them. Knows no fault and no number: `SimSocket` throws
the coins and asks the kernel. The rules: what was sent arrives once, in order, behind all that was sent before, and
never more of it than there is room for; `ready` is always what the system would tell of it; and a file is gone when the
last descriptor of it is closed.
"""

from __future__ import annotations

import errno
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agenda import Agenda

READ, WRITE = EVENT_READ, EVENT_WRITE
BOTH = READ | WRITE
SYN_RETRY = 1_000_000_000  # ns, as Linux: a client asks again when the backlog was full
SILENCE = 127_000_000_000  # ns until Linux gives up asking
LOOPBACK = 20_000  # ns, on the way between the two ends of a pair that is made of a TCP connection
DEFERRED = 1_000_000_000  # ns for which TCP_DEFER_ACCEPT keeps a silent client back


class File:
    """What was opened. `references` counts the descriptors that stand for it, `ready` is what it is ready for."""

    def __init__(self, kernel: Agenda) -> None:
        self.kernel = kernel
        self.references = 1
        self.ready = 0
        self.hung_up = False
        self.stuck = 0  # what it is reported as for good, whatever is done: somebody else has shut it down, say
        self.unread_error = False  # its error queue has something that nobody reads
        self.private = False  # one of a socketpair: its kind fails only when it is full
        self.refused_at = 0  # when a call on it failed last, for oracles
        self.number: int = kernel.next_number()

    def closed(self) -> None:
        """The last descriptor is gone."""


class Stored(File):
    """A regular file, open for reading. It is its own file object, as far as `send_file` asks."""

    name = 'simulated'

    def __init__(self, kernel: Agenda, fd: int, data: bytes) -> None:
        super().__init__(kernel)
        self.data = data
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self.kernel.close_fd(self._fd)


class Unborn(File):
    """A stream socket that is neither connected nor listening."""

    def __init__(self, kernel: Agenda) -> None:
        super().__init__(kernel)
        self.ready = BOTH  # Linux tells a hang-up


class Listening(File):
    """A listener and its backlog."""

    ready: int

    def __init__(self, kernel: Agenda, address: Any, backlog: int, deferred: bool) -> None:
        super().__init__(kernel)
        self.address = address
        self.backlog: int = max(1, backlog)
        self.deferred = deferred
        self.nodelay = False
        self.exclusive = False  # on Windows: its port cannot be shared, not even by a program that sets SO_REUSEADDR
        self.takes_new = True  # False: what a new client sends first is dropped
        self.queue: deque[End] = deque()

    def arrive(self, end: End) -> None:
        """A connection is complete and waits to be accepted."""
        self.queue.append(end)
        self.ready = READ

    def take(self) -> End:
        """The next one, which has to be there."""
        end = self.queue.popleft()
        self.ready = READ if self.queue else 0
        return end

    def closed(self) -> None:
        while self.queue:
            self.queue.popleft().reset()


class End(File):
    """One end of a stream.

    inbox       bytes that have arrived and were not read
    on_the_way  how many bytes to here have not arrived yet
    capacity    how many bytes may be in `inbox` and on the way together
    sent        how many bytes were accepted here, in all
    error       what the next call is told: SO_ERROR
    told        the errors that were told, for oracles, as are `sent_at`, `read_at`, `misled`, `at_failure` and
                `never_sent`
    """

    sent_at: int
    read_at: int
    hung_up: bool

    def __init__(self, kernel: Agenda, family: int, instant: bool) -> None:
        super().__init__(kernel)
        self.family = family
        self.instant = instant  # a Unix socket: nothing is ever on the way
        self.peer: End | None = None
        self.local: Any = None
        self.remote: Any = None
        self.inbox: bytearray = bytearray()
        self.on_the_way: int = 0
        self.capacity: int = kernel.draw_capacity()
        self.sent: int = 0
        self.received: int = 0
        self.sent_at = self.read_at = kernel.time
        self.misled = False  # recv failed although there was something to read
        self.error: int = 0
        self.reported: list[int] = []
        self.at_failure: int | None = None  # bytes that had arrived when a send failed for good, read or not
        self.never_sent: bytes = b''  # what the last send that failed for good was to send
        self.connected = False
        self.refused = False  # it could not be connected
        self.dead: bool = False  # reset: nothing goes in or out any more
        self.ended_out: bool = False
        self.ended_in: bool = False
        self.lingers = True  # False: closing resets
        self.nodelay = False  # TCP_NODELAY was asked for, or inherited
        self.cut_short: bool = False  # closed with something unread, and what was sent was still under way
        self.accepted = True  # False in a backlog, where bytes are kept though nobody has it yet
        self._arrival = 0  # of the last thing on the way to here: nothing overtakes
        self._epoch = 0  # raised by a reset: what was on the way is lost

    # -- what the socket does

    def room(self) -> int:
        """How many bytes can be sent now."""
        peer = self.peer
        assert peer is not None
        if peer.gone:
            return max(65536, peer.capacity)  # nobody here knows that yet
        return peer.capacity - len(peer.inbox) - peer.on_the_way

    def send(self, data: bytes) -> None:
        """Send what there is room for."""
        peer = self.peer
        assert peer is not None
        self.sent += len(data)
        self.sent_at = self.kernel.time
        peer.on_the_way += len(data)
        peer.schedule(peer.arrive, data)
        self.look()

    def take(self, size: int) -> bytes:
        """Read up to so many bytes of what has arrived."""
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        self.received += len(data)
        self.read_at = self.kernel.time
        self.look()
        if self.peer is not None:
            self.peer.look()
        return data

    def send_failed(self, data: bytes) -> None:
        """A send of these bytes has failed for good."""
        self.never_sent = data
        if self.at_failure is None:
            self.at_failure = self.received + len(self.inbox)

    def take_error(self) -> int:
        """SO_ERROR: read it and forget it."""
        error, self.error = self.error, 0
        if error:
            self.reported.append(error)
        self.look()
        return error

    def end(self) -> None:
        """Shut down writing: the peer reads the end behind what was sent."""
        if not self.ended_out:
            self.ended_out = True
            assert self.peer is not None
            self.peer.schedule(self.peer.arrive_end)
            self.look()

    def closed(self) -> None:
        peer = self.peer
        if peer is None or not self.connected or self.dead:
            return
        # A Unix socket resets for what nobody has read, and for nothing else.
        if self.inbox or not (self.lingers or self.instant):
            self.cut_short = self.lingers and peer.on_the_way > 0
            self.reset()
        else:
            self.end()

    def reset(self) -> None:
        """Tell the peer that it is over."""
        peer = self.peer
        assert peer is not None
        if not self.dead:
            self.dead = True
            if (self.inbox or not self.lingers) and self.kernel.random.random() < 0.5:
                peer.lose_what_is_on_the_way()  # it was not sent yet, and is not any more
            peer.schedule(peer.arrive_reset)
            self.look()

    # -- what comes from the network

    def schedule(self, fn: Any, *args: Any) -> None:
        """Have something arrive here, behind everything else."""
        kernel = self.kernel
        if self.instant:
            fn(*args, self._epoch)
            return
        latency = LOOPBACK if self.private else kernel.draw_latency()
        self._arrival = max(self._arrival, kernel.time + latency)
        kernel.at(self._arrival, fn, *args, self._epoch)

    def lose_what_is_on_the_way(self) -> None:
        """It was discarded where it was sent, or overtaken by a reset."""
        self._epoch += 1
        self.on_the_way = 0

    def arrive(self, data: bytes, epoch: int) -> None:
        """Bytes are here."""
        if epoch != self._epoch or self.dead:
            return
        self.on_the_way -= len(data)
        if self.gone:
            self.reset()  # nobody reads it any more
            return
        self.inbox += data
        self.kernel.note('arrived', -1, (self.number, len(data)))
        self.look()

    def arrive_end(self, epoch: int) -> None:
        """The peer has ended its side."""
        if epoch == self._epoch and not self.dead:
            self.ended_in = True
            self.kernel.note('end arrived', -1, self.number)
            self.look()

    def arrive_reset(self, epoch: int = 0) -> None:
        """The peer, or somebody between, has reset the connection."""
        if not self.dead:
            self.dead = True
            self.error = errno.EPIPE if self.ended_in else errno.ECONNRESET
            if self.kernel.kind == 'windows':
                self.inbox.clear()  # a reset erases what was not read yet (RFC 9112, 9.6, warns of that)
                self.at_failure = None if self.at_failure is None else self.received
            self.kernel.note('reset arrived', -1, self.number)
            if self.peer is not None:
                self.peer.lose_what_is_on_the_way()
            self.look()

    def cut(self, error: int) -> None:
        """What lies between is broken, and both sides are told at once."""
        for end in (self, self.peer):
            if end is not None:
                end.lose_what_is_on_the_way()
                end.arrive_reset()
                end.error = end.error and error

    def look(self) -> None:
        """Bring `ready` up to date."""
        ready = 0
        if self.inbox or self.ended_in or self.error or self.dead:
            ready = READ
        if self.error or self.dead or self.ended_out:
            ready |= WRITE
        elif self.connected and self.peer is not None and 3 * self.room() >= self.peer.capacity:
            ready |= WRITE
        self.ready = ready
        self.hung_up = bool(self.error or self.dead or (self.ended_in and self.ended_out))

    @property
    def gone(self) -> bool:
        """Whether it was closed, for good."""
        return self.accepted and not self.references


class Mailbox(File):
    """A datagram socket: what was received, each with its sender, up to `capacity` bytes."""

    def __init__(self, kernel: Agenda, family: int) -> None:
        super().__init__(kernel)
        self.family = family
        self.local: Any = None
        self.remote: Any = None
        self.inbox: deque[tuple[bytes, Any]] = deque()
        self.capacity: int = kernel.draw_capacity() + 100_000
        self.held: int = 0
        self.dropped: int = 0
        self.error: int = 0
        self.ready: int = WRITE

    def arrive(self, data: bytes, sender: Any) -> None:
        """A datagram is here; without room it is dropped."""
        if not self.references or (self.remote is not None and sender != self.remote):
            return
        if self.held + len(data) > self.capacity:
            self.dropped += 1
            return
        self.inbox.append((data, sender))
        self.held += len(data) + 1
        self.ready = BOTH

    def refuse(self) -> None:
        """Nothing listens at the address to which this was sent (ICMP).

        Windows reports it to unconnected sockets too, as WSAECONNRESET, when they receive (recvfrom in the
        Winsock reference).
        """
        on_windows = self.kernel.kind == 'windows'
        if self.references and (self.remote is not None or on_windows):
            self.error = errno.ECONNRESET if on_windows else errno.ECONNREFUSED
            self.ready = BOTH

    def take(self) -> tuple[bytes, Any]:
        """The next one."""
        data, sender = self.inbox.popleft()
        self.held -= len(data) + 1
        self.look()
        return data, sender

    def look(self) -> None:
        """Bring `ready` up to date."""
        self.ready = BOTH if self.inbox or self.error else WRITE
