"""The snapshot of the counters that users get."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .counters import COUNTS, GAUGES, LAG_BUCKETS, SLOW_PLACES, TIMES, Counters, other


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

    handles: int = other('Handles open now, connections among them.', 'handles')
    timers: int = other('Timers pending now.', 'timers')

    def __init__(self, counters: Counters, timers: int, handles: int) -> None:
        for name in COUNTS + GAUGES + TIMES:
            setattr(self, name, getattr(counters, name))
        self.timer_lag: Any = tuple(counters.timer_lag)
        self.timer_lag_sum: float = counters.timer_lag_sum
        self.slow: Any = most_frequent([place, *found] for place, found in counters.slow.items())
        self.timers = timers
        self.handles = handles

    def as_dict(self) -> dict[str, Any]:
        """The same as a dictionary, for printing or sending."""
        return {name: getattr(self, name) for name in self.declared}

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
