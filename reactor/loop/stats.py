"""Counters, and the snapshot of them that users get.

Owns the numbers. Knows nothing of what is counted. The rule: whoever does a thing counts it, on the object itself, so
that counting is one addition. The words are libuv's (`loop_count`, `events`, `idle_time`), else redis'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

COUNTS = (
    'loop_count',  # turns
    'events',  # events that the selector reported
    'stalls',  # a handle was parked for a moment, or the selector replaced: ready again and again, and nothing to do
    'callback_errors',  # exceptions raised by users' callbacks
    'slow_callbacks',  # with slow_callback=: callbacks, and whole turns, that took as long
    'slow_turns',
    'timers_fired',
    'timers_cancelled',
    'accepts',
    'accept_pauses',  # a listener stopped accepting: descriptors or memory ran out, or accept kept failing
    'accepts_refused',  # accepted and closed at once: the selector has no room
    'refused_untrusted',  # reset at once: a PROXY header is awaited, and the peer is in none of the networks to trust
    'refused_by_hook',  # by `Limits`: the hook has said so
    'refused_connections',  # so many connections are open
    'refused_per_address',  # so many of its address
    'refused_rate',  # it connects too often
    'requests_refused',  # it asks too often
    'ended_lifetime',  # by `Limits`: it was connected for long enough
    'ended_slow',  # it sent, or took, too little
    'proxy_headers',  # PROXY headers read
    'proxy_errors',  # connections ended because theirs was wrong, cut short or too late
    'requests',  # answers that applications said they owe: `busy` of a connection became True
    'connects',  # outgoing connections established
    'reads',  # recv calls that brought bytes
    'bytes_in',
    'writes',  # send calls
    'bytes_out',
    'short_writes',  # send calls that could not take all of it
    'datagrams_in',
    'datagrams_out',
    'datagrams_dropped',  # never handed to the system: no room in the queue, a send that failed, a socket closed first
    'datagram_errors',  # what the system told about datagrams: a send that failed, an ICMP message
)
GAUGES = ('incoming', 'outgoing')  # connections open now: accepted by us, made by us
LAG_BUCKETS = 16  # powers of two of 1/1024 s: 1 ms, 2 ms ... 16 s, more
SLOW_PLACES = 20  # callbacks of which it is remembered how slow they were
TIMES = ('idle_time', 'dispatch_time', 'timers_time', 'soon_time', 'completions_time')  # seconds in each phase


class Counters:
    """The running numbers of one loop, `loop.counters` (internal)."""

    __slots__ = (*COUNTS, *GAUGES, *TIMES, 'slow', 'timer_lag', 'timer_lag_sum')

    timer_lag: Any  # a list that the loop counts in; in a snapshot a tuple
    timer_lag_sum: float  # seconds that all fired timers together were late
    slow: Any  # place -> [count, longest]; in a snapshot a list
    loop_count: int
    events: int
    stalls: int
    callback_errors: int
    slow_callbacks: int
    slow_turns: int
    timers_fired: int
    timers_cancelled: int
    accepts: int
    accept_pauses: int
    accepts_refused: int
    refused_untrusted: int
    refused_by_hook: int
    refused_connections: int
    refused_per_address: int
    refused_rate: int
    requests_refused: int
    ended_lifetime: int
    ended_slow: int
    proxy_headers: int
    proxy_errors: int
    requests: int
    connects: int
    reads: int
    bytes_in: int
    writes: int
    bytes_out: int
    short_writes: int
    datagrams_in: int
    datagrams_out: int
    datagrams_dropped: int
    datagram_errors: int
    incoming: int
    outgoing: int
    idle_time: float
    dispatch_time: float
    timers_time: float
    soon_time: float
    completions_time: float

    def __init__(self) -> None:
        for name in COUNTS + GAUGES:
            setattr(self, name, 0)
        for name in TIMES:
            setattr(self, name, 0.0)
        self.timer_lag: Any = [0] * LAG_BUCKETS
        self.timer_lag_sum: float = 0.0
        self.slow: Any = {}

    def count_slow(self, place: str, seconds: float) -> None:
        """A callback written at `place` was slow. Of more than SLOW_PLACES, the rarest is forgotten."""
        known = self.slow.get(place)
        if known is not None:
            known[0] += 1
            known[1] = max(known[1], seconds)
            return
        if len(self.slow) >= SLOW_PLACES:
            del self.slow[min(self.slow, key=self.slow.__getitem__)]
        self.slow[place] = [1, seconds]


class Stats(Counters):
    """A snapshot of a reactor's counters, as returned by `stats`.

    Counts since the start, the gauges `incoming` and `outgoing` (connections open now), `timers` and `handles`
    (pending and open now), and the seconds spent in each phase of the turn: `idle_time` is the time inside the
    selector, waiting or not, and the others are named for their phase. `timer_lag` tells how late timers fired, the
    truest sign of an overloaded loop: how many were late by less than `lag_bounds` seconds each, the last unbounded,
    and `timer_lag_sum` by how many seconds all of them together. `slow` tells which callbacks were slow, with
    `slow_callback=`: a list of [place, count, longest in seconds], the most frequent first, of at most 20 places.
    """

    lag_bounds: tuple[Any, ...] = tuple(2**n / 1024 for n in range(LAG_BUCKETS - 1))

    __slots__ = ('handles', 'timers')

    def __init__(self, counters: Counters, timers: int, handles: int) -> None:
        for name in COUNTS + GAUGES + TIMES:
            setattr(self, name, getattr(counters, name))
        self.timer_lag: Any = tuple(counters.timer_lag)
        self.timer_lag_sum: float = counters.timer_lag_sum
        self.slow: Any = most_frequent([place, *told] for place, told in counters.slow.items())
        self.timers: int = timers
        self.handles: int = handles

    def as_dict(self) -> dict[str, Any]:
        """The same as a dictionary, for printing or sending."""
        lists = 'timer_lag', 'timer_lag_sum', 'slow'
        return {name: getattr(self, name) for name in (*COUNTS, *GAUGES, *TIMES, *self.__slots__, *lists)}

    def __repr__(self) -> str:
        shown = [
            f'{name}={round(value, 6) if isinstance(value, float) else value}' for name, value in self.as_dict().items()
        ]
        return f'Stats({", ".join(shown)})'


def most_frequent(slow: Iterable[list[Any]]) -> list[list[Any]]:
    """Places of slow callbacks as `Stats.slow` has them: in order, and no more than SLOW_PLACES."""
    return sorted(slow, key=_by_count_and_longest, reverse=True)[:SLOW_PLACES]


def _by_count_and_longest(entry: list[Any]) -> list[Any]:
    return entry[1:]
