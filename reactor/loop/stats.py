"""The snapshot of the counters that `stats` returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .counters import COUNTS, GAUGES, LAG_BUCKETS, REQUEST_BOUNDS, SLOW_PLACES, TIMES, Counters, other


class Stats(Counters):
    """A snapshot of a reactor's counters, as returned by `stats`.

    Most attributes are counts since the start. `incoming`, `outgoing`, `timers` and `handles` say how many are open or
    pending now. The attributes that end with `_time` are the seconds spent in each phase of the turn; `idle_time` is
    the time inside the selector, waiting or not. docs/counters.md explains each attribute.

    Attributes:
        timer_lag: How late timers fired, the best sign of an overloaded loop: for each bound in `lag_bounds`, how many
            timers were late by less than the bound (in seconds), but not by less than the previous bound. The last
            count has no bound.
        timer_lag_sum: The total lateness of all fired timers, in seconds.
        request_seconds: How long requests took, if the application sets `conn.busy`: for each bound in
            `request_bounds`, how many took at most the bound (in seconds), but more than the previous bound. The last
            count has no bound. A request begins with the turn in which `busy` becomes True, so the time that it waited
            for other callbacks of that turn is included. It is finished when `busy` becomes False, or when the
            connection ends without an error.
        request_seconds_sum: The total time of all finished requests, in seconds.
        slow: With `slow_callback=`, the slow callbacks, the most frequent first, at most 20. Each is a list of [place,
            count, longest in seconds].
    """

    lag_bounds: tuple[Any, ...] = tuple(2**n / 1024 for n in range(LAG_BUCKETS - 1))

    request_bounds: tuple[float, ...] = REQUEST_BOUNDS

    handles: int = other('Handles that are open, connections included.', 'handles')
    timers: int = other('Timers that are pending.', 'timers')
    draining: int = other('1 while the reactor drains, otherwise 0.', 'draining')
    drain_connections: int = other('Connections that the drain still waits for.', 'drain_connections')
    drain_seconds: float = other('Seconds until the drain resets the remaining connections.', 'drain_remaining_seconds')

    def __init__(self, counters: Counters, timers: int, handles: int, drain: tuple[int, float] | None = None) -> None:
        for name in COUNTS + GAUGES + TIMES:
            setattr(self, name, getattr(counters, name))
        self.timer_lag: Any = tuple(counters.timer_lag)
        self.timer_lag_sum: float = counters.timer_lag_sum
        self.request_seconds: Any = tuple(counters.request_seconds)
        self.request_seconds_sum: float = counters.request_seconds_sum
        self.slow: Any = most_frequent([place, *found] for place, found in counters.slow.items())
        self.timers = timers
        self.handles = handles
        self.draining = int(drain is not None)
        self.drain_connections, self.drain_seconds = drain or (0, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as a dict, for printing or sending."""
        return {name: getattr(self, name) for name in self.declared}

    def __repr__(self) -> str:
        shown = [
            f'{name}={round(value, 6) if isinstance(value, float) else value}' for name, value in self.as_dict().items()
        ]
        return f'Stats({", ".join(shown)})'


def most_frequent(slow: Iterable[list[Any]]) -> list[list[Any]]:
    """Sort the places of slow callbacks as in `Stats.slow`, and cut the list to SLOW_PLACES."""
    return sorted(slow, key=_by_count_and_longest, reverse=True)[:SLOW_PLACES]


def _by_count_and_longest(entry: list[Any]) -> list[Any]:
    return entry[1:]
