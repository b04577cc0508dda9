"""The objects behind simulated descriptors: ends of streams, listeners, regular files.

They hold state and bytes, and pass bytes to each other over the simulated network. `SimSocket` and the kernel are
responsible for faults and descriptor numbers.

- Sent bytes arrive once and in order. The receiver always has room for all bytes in flight.
- `ready` always has the events that a real system would report.
- A file is closed together with its last descriptor.
"""

from __future__ import annotations

import errno
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from .agenda import Agenda, excerpt

READ, WRITE = EVENT_READ, EVENT_WRITE
BOTH = READ | WRITE
SYN_RETRY = 1_000_000_000  # ns until Linux retransmits a SYN that was dropped because the backlog was full
SILENCE = 127_000_000_000  # ns until Linux gives up on a connect that gets no answer
LOOPBACK = 20_000  # ns: the latency between the two ends of a socketpair that is a TCP connection
DEFERRED = 1_000_000_000  # ns for which TCP_DEFER_ACCEPT does not report a silent client


class File:
    """An open file. `references` counts its descriptors, and `ready` has the events it is ready for.

    A file that may have changed adds itself to each dict in `kernel.audience`. So selectors and checks look only at
    files that have changed.
    """

    def __init__(self, kernel: Agenda) -> None:
        self.kernel = kernel
        self.references = 1
        self.ready = 0
        self.hung_up: bool = False
        self.stuck = 0  # events that are always reported, for example after other code has called shutdown
        self.unread_error = False  # the socket has an entry in its error queue, which the program does not read
        self.private = False  # the file is an end of a socketpair, on which a send fails only when there is no room
        self.refused_at = 0  # ns: when a call on this file last failed; only the checks use it
        self.options: dict[tuple[int, int], Any] = {}  # the socket options that were set, by level and number
        self.binding: Any = None  # the `Binding` of a socket that is bound
        self.named: str | None = None  # the host that `bind` has named; it survives the end of a connection
        self.local: Any = None  # the address of the socket, or None
        self.shut: int = 0  # events that `shutdown` has ended: READ, WRITE or both
        self.successor: File | None = None  # the file that has taken the place of this one
        self.number: int = kernel.next_number()
        self.key = 0  # which random numbers of the kernel belong to this file; 0: the common ones

    @property
    def ready(self) -> int:
        """The events that the file is ready for."""
        return self._ready

    @ready.setter
    def ready(self, events: int) -> None:
        self._ready = events
        self.changed()

    def changed(self) -> None:
        """Add this file to the dicts of selectors and checks, which then look at it."""
        for files in self.kernel.audience:
            files[self] = None

    def become(self, file: File) -> None:
        """Hand address and options to the file that takes the place of this one: see `Descriptors.replace`."""
        file.references, file.binding, file.local = self.references, self.binding, self.local
        file.options, file.named = self.options, self.named

    def latest(self) -> File:
        """Return the file that has taken the place of this one, or this one."""
        file = self
        while file.successor is not None:
            file = file.successor
        return file

    def closed(self) -> None:
        """Handle the closing of the last descriptor."""


class Stored(File):
    """A regular file, open for reading. It is also the file object that is passed to `send_file`."""

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

    error = 0

    def __init__(self, kernel: Agenda) -> None:
        super().__init__(kernel)
        self.ready = BOTH
        self.hung_up = True


class Listening(File):
    """A listener and its backlog."""

    error = 0

    def __init__(self, kernel: Agenda, backlog: int, deferred: bool) -> None:
        super().__init__(kernel)
        self.backlog: int = backlog
        self.deferred = deferred
        self.nodelay = False
        self.half_closed = False  # it was shut down for writing before `listen`, and so is each connection
        self.takes_new = True  # False: SYNs of new clients are dropped
        self.queue: deque[End] = deque()

    def arrive(self, end: End) -> None:
        """Add a complete connection to the backlog."""
        self.queue.append(end)
        self.look()

    def take(self) -> End:
        """Return the next connection of the backlog, which must not be empty."""
        end = self.queue.popleft()
        self.look()
        return end

    def look(self) -> None:
        """Update `ready` and `hung_up`."""
        self.ready: int = READ if self.queue or self.shut & READ else 0
        self.hung_up: bool = self.shut == BOTH

    def closed(self) -> None:
        while self.queue:
            self.queue.popleft().reset()


class End(File):
    """One end of a stream.

    inbox       bytes that have arrived but have not been read yet
    on_the_way  how many bytes are in flight to this end
    capacity    how many bytes can be in `inbox` and in flight, together
    sent        how many bytes this end has accepted from its program, in total
    received    how many bytes the program has read, in total
    error       the error number that the next call fails with (SO_ERROR), or 0
    reported    the errors that calls failed with

    Only the checks use `reported`, `sent_at`, `read_at`, `misled`, `at_failure`, `never_sent` and `cut_short`.
    """

    def __init__(self, kernel: Agenda, family: int, instant: bool, key: int) -> None:
        super().__init__(kernel)
        self.key: int = key
        self.family = family
        self.instant = instant  # a Unix socket: bytes arrive at once
        self.peer: End | None = None
        self.remote: Any = None
        self.inbox: bytearray = bytearray()
        self.on_the_way: int = 0
        self.capacity: int = kernel.draw_capacity(key)
        self.sent: int = 0
        self.received: int = 0
        self.sent_at: int = kernel.time
        self.read_at: int = kernel.time
        self.misled = False  # recv failed although there was something to read
        self.error: int = 0
        self.reported: list[int] = []
        self.at_failure: int | None = None  # how many bytes had arrived, read or unread, when a send first failed
        self.never_sent: bytes = b''  # the bytes of the last send that failed
        self.connected = False
        self.refused = False  # the connect of this end has failed
        self.released = False  # the connection has ended, and the socket has lost a port that `bind` has not named
        self.disconnecting = False  # it was shut down after its connect failed: it cannot connect again
        self.confirmed = False  # another connect, or accept, has found that this end is connected
        self.ended_first: bool = False  # this end was shut down or closed before its peer: TCP will keep its port
        self.dead: bool = False  # the connection was reset: no bytes can be sent or received
        self.ended_out: bool = False
        self.ended_in: bool = False
        self.lingers = True  # False: closing resets the connection
        self.nodelay = False  # TCP_NODELAY was set or inherited
        self.cut_short: bool = False  # this end was closed with unread input while sent bytes were still in flight
        self.vanished: str = ''  # the strike of a fault since which neither end hears from the other
        self.vanished_at = 0  # ns
        self.waits_for_acknowledgement = False  # something was sent to a peer that has vanished
        self.accepted = True  # False while this end is in a backlog, where it has no descriptor but receives bytes
        # ns: when the last event in flight to this end arrives. Events do not overtake each other.
        self.arrival: int = 0
        self.epoch: int = 0  # a reset increases it, and bytes of an earlier epoch are lost

    # -- called by the socket

    def room(self) -> int:
        """Return how many bytes can be sent now."""
        peer = self.peer
        assert peer is not None
        if peer.gone and not self.vanished:
            return max(65536, peer.capacity)  # the sender does not know yet that the peer is gone
        return peer.capacity - len(peer.inbox) - peer.on_the_way

    def send(self, data: bytes) -> None:
        """Send these bytes, for which there must be room."""
        peer = self.peer
        assert peer is not None
        self.sent += len(data)
        self.sent_at = self.kernel.time
        peer.on_the_way += len(data)
        peer.schedule(peer.arrive, data)
        self.look()

    def take(self, size: int) -> bytes:
        """Read at most `size` bytes that have arrived."""
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        self.received += len(data)
        self.read_at = self.kernel.time
        self.look()
        if self.peer is not None:
            self.peer.look()
        return data

    def send_failed(self, data: bytes) -> None:
        """Record that a send of these bytes has failed with an error other than EAGAIN."""
        self.never_sent = data
        if self.at_failure is None:
            self.at_failure = self.received + len(self.inbox)

    def take_error(self) -> int:
        """Return SO_ERROR and clear it."""
        error, self.error = self.error, 0
        if error:
            self.reported.append(error)
        self.look()
        return error

    def end(self) -> None:
        """Shut down writing: the peer reads an end of file after the sent bytes."""
        if not self.ended_out:
            self.ended_out = True
            self.ended_first = not (self.ended_in or self.instant)
            assert self.peer is not None
            self.peer.schedule(self.peer.arrive_end)
            self.look()

    def closed(self) -> None:
        peer = self.peer
        if peer is None or not self.connected or self.over:
            return
        # A Unix socket is reset only if it has unread bytes, whatever SO_LINGER says.
        if self.inbox or not (self.lingers or self.instant):
            self.cut_short = self.lingers and peer.on_the_way > 0
            self.reset()
        else:
            self.end()

    def reset(self) -> None:
        """Reset the connection."""
        peer = self.peer
        assert peer is not None
        if not self.dead:
            self.dead = True
            if (self.inbox or not self.lingers) and self.kernel.draw(self.key) < 0.5:
                peer.lose_bytes_on_the_way()  # bytes in the send buffer are discarded
            peer.schedule(peer.arrive_reset)
            self.look()

    # -- called by the network

    def schedule(self, fn: Any, *args: Any) -> None:
        """Schedule an arrival at this end, after everything that is already in flight."""
        kernel = self.kernel
        if self.instant:
            fn(*args, self.epoch)
            return
        if self.private:
            self.deliver(LOOPBACK, fn, args)
        elif not ((kernel.hostile or kernel.partitions) and kernel.delays(self, fn, args)):
            self.deliver(kernel.draw_latency(self), fn, args)

    def deliver(self, latency: int, fn: Any, args: tuple[Any, ...], epoch: int | None = None) -> None:
        """Schedule an arrival in `latency` ns; `epoch` is that of a sender that has waited until now."""
        self.arrival = max(self.arrival, self.kernel.time + latency)
        self.kernel.at(self.arrival, fn, *args, self.epoch if epoch is None else epoch)

    def lose_bytes_on_the_way(self) -> None:
        """Drop the bytes in flight: the sender has discarded them, or a reset has overtaken them."""
        self.epoch += 1
        self.on_the_way = 0

    def arrive(self, data: bytes, epoch: int) -> None:
        """Receive bytes."""
        if epoch != self.epoch or self.dead:
            return
        self.on_the_way -= len(data)
        if self.gone:
            self.reset()  # bytes for a closed socket are answered with a reset
            return
        if self.shut == BOTH and not self.instant and self.kernel.on_linux:
            self.reset()  # and so are bytes for a socket that was shut down in both directions
            self.error = errno.ECONNRESET
            self.look()
            return
        self.inbox += data
        self.kernel.note('arrived', -1, (self.number, *excerpt(data)))
        self.look()

    def arrive_end(self, epoch: int) -> None:
        """Receive the peer's end of file."""
        if epoch == self.epoch and not self.dead:
            self.ended_in = True
            if self.over and self.binding is not None:  # in TIME_WAIT, the connection keeps its options
                self.binding.options = dict(self.options)
            self.kernel.note('end arrived', -1, self.number)
            self.look()

    def arrive_reset(self, epoch: int = 0) -> None:
        """Receive a reset from the peer or from the network."""
        if not self.dead:
            self.dead = True
            after_end = self.ended_in and self.kernel.on_linux and not self.instant
            self.error = errno.EPIPE if after_end else errno.ECONNRESET  # EPIPE is reported only by sends and SO_ERROR
            if self.kernel.kind == 'windows':
                self.inbox.clear()  # a reset erases unread bytes (RFC 9112, section 9.6, warns of this)
                self.at_failure = None if self.at_failure is None else self.received
            self.kernel.note('reset arrived', -1, self.number)
            if self.peer is not None:
                self.peer.lose_bytes_on_the_way()
            self.look()

    def cut(self, error: int) -> None:
        """Break the connection in the network: both ends fail at once."""
        for end in (self, self.peer):
            if end is not None:
                end.lose_bytes_on_the_way()
                end.arrive_reset()
                end.error = end.error and error

    def time_out(self) -> None:
        """Fail with ETIMEDOUT, because the peer acknowledges nothing. The peer does not notice."""
        if not self.dead:
            self.dead, self.error = True, errno.ETIMEDOUT
            self.kernel.note('timed out', -1, self.number)
            self.look()

    def look(self) -> None:
        """Update `ready` and `hung_up`."""
        ready = 0
        if self.inbox or self.ended_in or self.error or self.dead or self.shut & READ:
            ready = READ
        if self.error or self.dead or self.ended_out:
            ready |= WRITE
        elif self.connected and self.peer is not None and 3 * self.room() >= self.peer.capacity:
            ready |= WRITE
        self.ready = ready
        ended_in = self.ended_in or self.shut & READ
        self.hung_up: bool = bool(self.error or self.dead or (ended_in and self.ended_out))

    @property
    def gone(self) -> bool:
        """Whether this end was closed."""
        return self.accepted and not self.references

    @property
    def over(self) -> bool:
        """Whether TCP has ended the connection: it was reset or refused, or both ends have read an end of file."""
        peer = self.peer
        ended = self.ended_in and self.ended_out and peer is not None and (peer.ended_in or peer.gone)
        return self.dead or (ended and not self.instant)
