"""The network of the profile 'hostile': peers that vanish, partitions, stalls near the time limits of the program.

    peer.vanishes      Neither end of a TCP connection hears from the other again, not even after the faults have
                       stopped. Sent bytes are accepted until the buffer is full. Bytes or an end of file that are not
                       acknowledged end the connection with ETIMEDOUT after RETRANSMISSION, and keepalive ends it, too.
                       Otherwise only a time limit of the program does. A connection without any is a failure
                       (`liveness`), for a client as for a server.
    network.partition  Some hosts cannot be reached for minutes. Bytes wait, and arrive when the partition is over,
                       unless the connection has timed out before. Connects get no answer. Datagrams are lost. The
                       clients and servers of one program share a host, so a connection of such a host to itself is
                       cut, too. When the faults stop, the partition is over.
    network.limit      What arrives next takes about as long as one of the durations that the program uses: delays of
                       timers, connect timeouts and the time limits of connections.
    network.trickle    The first bytes of a send arrive one by one, one a second.

Unix sockets and the wakeup are not affected. With `Simulation(keepalive=True)`, connections whose peer has
vanished end with ETIMEDOUT when the faults stop. So programs can be tested that have no time limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .addresses import plain
from .files import SILENCE, SYN_RETRY, End
from .mailboxes import Mailbox
from .network import Network
from .options import silence
from .platforms import MS

SECOND = 1000 * MS  # ns
RETRANSMISSION = 924 * SECOND  # ns until Linux gives up on unacknowledged bytes: net.ipv4.tcp_retries2 = 15
PARTITION = 60, 1200  # seconds: the shortest and the longest partition
NEAR = 0.9, 1.1  # times a duration of the program
SHORTEST, LONGEST = 0.1, 800.0  # seconds: durations that count; TCP does not wait longer for an acknowledgement
MOST_DURATIONS = 50
MOST_TRICKLED = 60  # bytes
Held = tuple[End, Callable[..., object], tuple[Any, ...], int]  # an end, the arrival at it, and the end's epoch


class Hostile(Network):
    """A kernel with a hostile network, if the profile is 'hostile'. The other arguments are for `Network`."""

    def __init__(self, keepalive: bool, *network: Any) -> None:
        super().__init__(*network)
        self._keepalive = keepalive
        self._durations: dict[float, None] = {}  # the durations of the program, in seconds
        self._cut: frozenset[str] | None = None  # the hosts that cannot be reached from the others, in a partition
        self._held: list[Held] = []  # what arrives when the partition is over
        self._vanished: list[End] = []

    def uses(self, *durations: float | None) -> None:
        """Record durations of the program, in seconds. Stalls are about as long as one of them."""
        for seconds in durations:
            if seconds is not None and SHORTEST <= seconds <= LONGEST and len(self._durations) < MOST_DURATIONS:
                self._durations[seconds] = None

    def calm(self) -> None:
        """End the partition and, with the option `keepalive`, the connections whose peers have vanished."""
        self._end_partition()
        for end in self._vanished if self._keepalive else ():
            self._time_out(end)

    # -- called by ends and sockets

    def draw_latency(self, file: Any) -> int:
        latency = super().draw_latency(file)
        if self._durations and isinstance(file, End) and self.faults.falls('network.limit', -1, file.key):
            which = self.faults.drawn * len(self._durations)
            seconds = list(self._durations)[int(which)] * (NEAR[0] + (NEAR[1] - NEAR[0]) * (which % 1))
            self.note('stalled', -1, (file.number, int(1000 * seconds)))
            return int(1000 * seconds) * MS
        return latency

    def delays(self, end: End, fn: Callable[..., object], args: tuple[Any, ...]) -> bool:
        falls = self.faults.falls
        if not end.vanished and falls('peer.vanishes', -1, end.key):
            self._vanish(end)
        if end.vanished:
            self._expect_acknowledgement(end.peer)
            return True
        if self._cut is None and falls('network.partition'):
            self._begin_partition(plain(end.local)[0])
        if self._is_held(end):
            held = end, fn, args, end.epoch
            self._held.append(held)
            self.at(self.time + RETRANSMISSION, self._give_up_held, held)
            return True
        if args and len(args[0]) > 1 and falls('network.trickle', -1, end.key):
            self._trickle(end, fn, args[0])
            return True
        return False

    def probe(self, end: End) -> None:
        """Probe a peer that has vanished, if keepalive is set: end the connection when the time for this is over."""
        seconds = silence(end.options)
        if not seconds or end.dead:
            return
        if self.time < end.vanished_at + seconds * SECOND:
            self.at(end.vanished_at + seconds * SECOND, self.probe, end)
        elif not end.waits_for_acknowledgement:  # otherwise Linux sends no probes
            self._time_out(end)

    # -- called by the network

    def try_connect(self, end: End) -> bool:
        listening = self._listener(end.remote, end.key) if self.partitions else None
        apart = listening is not None and self.separates(end, listening)
        if apart or self._is_cut(plain(end.local)[0], plain(end.remote)[0]):
            if end.dead:
                return False
            if self.time >= end.sent_at + SILENCE:  # it has sent nothing: this is when it began to connect
                self.give_up(end)
            else:
                self.at(self.time + SYN_RETRY, self.try_connect, end)
            return False
        connected = super().try_connect(end)
        if connected and self.hostile and self.faults.falls('peer.vanishes', -1, end.key):
            self._vanish(end)
        return connected

    def post(self, sender: Mailbox, data: bytes, address: Any) -> None:
        if not self._is_cut(plain(sender.local)[0], address[0]):
            super().post(sender, data, address)

    # -- private methods

    def _vanish(self, end: End) -> None:
        self._lose_sight(end, f'peer.vanishes@{self.faults.on["peer.vanishes"].strikes}')

    def _lose_sight(self, end: End, strike: str) -> None:
        both = [each for each in (end, end.peer) if each is not None]
        for each in both:
            each.vanished, each.vanished_at = strike, self.time
            self.probe(each)
        self._vanished += both
        self.note('vanished', -1, tuple(each.number for each in both))

    def _expect_acknowledgement(self, sender: End | None) -> None:
        if sender is not None:
            sender.waits_for_acknowledgement = True
            self.at(self.time + RETRANSMISSION, self._time_out, sender)

    def _time_out(self, end: End) -> None:
        if not end.gone:
            end.time_out()

    def _begin_partition(self, struck: str) -> None:
        bits = int(self.faults.drawn * 2**32)
        hosts = sorted({host for found in self.hosts.values() for host in found})
        self._cut = frozenset(host for place, host in enumerate(hosts) if bits >> place & 1) | {struck}
        seconds = self.faults.between(*PARTITION)
        self.note(f'a partition of {seconds} s cuts off', -1, ', '.join(sorted(self._cut)))
        self.at(self.time + seconds * SECOND, self._end_partition)

    def _is_held(self, end: End) -> bool:
        apart = end.peer is not None and self.separates(end, end.peer)
        return apart or self._is_cut(plain(end.local)[0], plain(end.remote)[0])

    def _is_cut(self, host: str, other: str) -> bool:
        if self._cut is None:
            return False
        return host in self._cut if host == other else (host in self._cut) != (other in self._cut)

    def _end_partition(self) -> None:
        if self._cut is None:
            return
        self._cut = None
        self.note('the partition is over', -1)
        self.deliver_held()

    def deliver_held(self) -> None:
        """Deliver what no partition holds back any more."""
        held, self._held = self._held, []
        for each in held:
            end, fn, args, epoch = each
            if self._is_held(end):
                self._held.append(each)
            elif end.vanished:
                self._expect_acknowledgement(end.peer)
            else:
                end.deliver(self.draw_latency(end), fn, args, epoch)

    def _give_up_held(self, held: Held) -> None:
        sender = held[0].peer
        if not any(each is held for each in self._held) or sender is None:
            return
        # The sender's host forgets the connection, and its peer does not hear of this.
        receiver = held[0]
        if any(each[0] is sender for each in self._held):
            self._expect_acknowledgement(receiver)
        self._held = [each for each in self._held if each[0] not in (sender, receiver)]
        self._lose_sight(receiver, 'network.partition')
        self._time_out(sender)

    def _trickle(self, end: End, fn: Callable[..., object], data: bytes) -> None:
        self.note('trickles', -1, end.number)
        count = min(self.faults.between(1, MOST_TRICKLED + 1), len(data) - 1)
        for piece in (*(data[place : place + 1] for place in range(count)), data[count:]):
            end.deliver(max(0, end.arrival - self.time) + SECOND, fn, (piece,))
