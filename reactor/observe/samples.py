"""Samples of a source: rates and shares computed from two successive readings of its counters.

A sample has requests per second, shares of the turn, timer lag, CPU time and memory per connection.

- An unknown value is None, never a guess.
- Counts are divided by the time on the loop's own clock, which is the sum of its phase times. So it does not matter how
  old a worker's counters are when they arrive.
"""

from __future__ import annotations

import os
from itertools import zip_longest
from time import monotonic, process_time, time
from typing import Any

from ..loop.counters import TIMES
from .counters import Snapshot, Source, combined, memory, utilisation

# The values of a sample, in this order; each covers all reactors together.
FIELDS = (
    'time',  # milliseconds since 1970; never goes back
    'incoming',  # open connections
    'outgoing',
    'requests',  # per second
    'reads',
    # Shares of the turn, 0 to 1, averaged over all loops; the rest of the turn is spent in the selector.
    'dispatch',
    'timers',
    'soon',
    'completions',
    'utilisation',  # share of the time outside the selector, averaged over all loops
    'busiest',  # utilisation of the busiest loop
    # How late timers fired since the last sample, as indices into `Stats.timer_lag`.
    'lag_p50',
    'lag_p99',
    'lag_max',
    'cpu',  # number of cores in use
    'memory',  # resident memory in bytes
    # Bytes by which memory grew per connection. Measured at the peak, because a process often keeps freed memory.
    'per_connection',
)
# The values for each reactor, in this order.
WORKER_FIELDS = ('name', 'pid', 'connections', 'rate', 'utilisation', 'lag_p99', 'cpu', 'memory', 'silent')
RATES = ('requests', 'reads', 'accepts', 'bytes_in', 'bytes_out', 'loop_count', 'timers_fired')  # reported per second
ENOUGH_CONNECTIONS = 100  # with fewer, the memory per connection is too inexact to be useful
LEAST_CPU_TIME = 0.5  # seconds to measure over, because the kernel counts CPU time in hundredths of a second
SILENT = 3.0  # seconds without new counters, after which the last rates are considered out of date
HAS_PROC = os.path.exists('/proc/self/stat')


class Sampler:
    """Reads a source. Each call to `sample()` covers the time since the previous call."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._watched: dict[str, Watched] = {}
        self._started = time() - monotonic()
        self.counts_requests: bool = False  # whether the counter `requests` is in use
        self.look()

    def look(self) -> dict[str, Snapshot]:
        """Read the counters; the next sample covers the time from now on."""
        now, workers = monotonic(), self._source()
        for name in self._watched.keys() - workers.keys():
            del self._watched[name]
        for name, counters in workers.items():
            if name not in self._watched:
                self._watched[name] = Watched()
            self._watched[name].look(counters, now)
        return workers

    def sample(self) -> dict[str, Any]:
        """Take a sample.

        Returns:
            A dict. 'row' has the values of FIELDS, 'workers' has the values of WORKER_FIELDS for each worker, and
            'rates' has the change of each counter per second. 'totals' and 'slow' are the counters and the slow
            callbacks. 'counted' is 'requests', or 'reads' while the program has not counted any requests; the page then
            displays reads instead.
        """
        totals = combined(self.look().values())
        self.counts_requests = self.counts_requests or totals.get('requests', 0) > 0
        counted = 'requests' if self.counts_requests else 'reads'
        slow, all_ = totals.pop('slow', []), list(self._watched.values())
        busy = [one.utilisation for one in all_]
        rates = {name: rounded(added([one.rates.get(name) for one in all_])) for name in RATES}
        row = [
            int((self._started + monotonic()) * 1000),
            totals.get('incoming', 0),
            totals.get('outgoing', 0),
            rates['requests'],
            rates['reads'],
            *[mean([one.shares.get(name) for one in all_]) for name in TIMES if name != 'idle_time'],
            mean(busy),
            max((one for one in busy if one is not None), default=None),
            *lateness([one.lag for one in all_]),
            rounded(added([one.cpu for one in all_]), 4),
            added([one.memory for one in all_]),
            bytes_per_connection(all_),
        ]
        for name in 'timer_lag', 'base_memory':
            totals.pop(name, None)
        return {
            'row': row,
            'counted': counted,
            'rates': rates,
            'totals': {name: rounded(value) for name, value in totals.items()},
            'workers': [[name, *one.row(counted)] for name, one in self._watched.items()],
            'slow': slow,
        }


class Watched:
    """One reactor: its last counters, and their change since the previous reading."""

    __slots__ = ('changed_at', 'counters', 'cpu', 'cpu_at', 'extremes', 'lag', 'memory', 'rates', 'shares')

    def __init__(self) -> None:
        self.counters: Snapshot = {}
        self.rates: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.lag: list[int] = []
        self.cpu: float | None = None
        self.cpu_at: tuple[float, float | None] = (0.0, None)
        self.memory: int | None = None
        # (connections, memory) with the fewest and with the most connections so far; None if memory is unknown.
        self.extremes: tuple[tuple[int, int], tuple[int, int]] | None = None
        self.changed_at: float = 0.0

    def look(self, counters: Snapshot, now: float) -> None:
        """Compare `counters` with the previous ones; `now` is the monotonic clock in seconds."""
        before, self.counters = self.counters, counters
        elapsed = loop_seconds(counters) - loop_seconds(before)
        same = before.get('pid') == counters['pid'] and elapsed >= 0
        self._measure(counters['pid'], now, same)
        if not same:  # the process has been replaced, and its counts began at 0
            self.rates, self.shares, self.lag, self.changed_at = {}, {}, [], now
        elif elapsed > 0:
            self.changed_at = now
            # The worker may run another version of this library, which lacks a counter.
            grown = {name: counters.get(name, 0) - before.get(name, 0) for name in (*RATES, *TIMES)}
            self.rates = {name: grown[name] / elapsed for name in RATES}
            self.shares = {name: grown[name] / elapsed for name in TIMES}
            lags = counters.get('timer_lag', ()), before.get('timer_lag', ())
            self.lag = [new - old for new, old in zip_longest(*lags, fillvalue=0)]
        elif now - self.changed_at > SILENT:
            self.rates, self.shares, self.lag = {}, {}, []

    def _measure(self, pid: int, now: float, same: bool) -> None:
        self.memory = memory(pid) if HAS_PROC else None  # without /proc, `memory` would have to run `ps`
        (then, used_then), used = self.cpu_at, cpu_seconds(pid)
        if not same or now - then >= LEAST_CPU_TIME:
            known = same and used is not None and used_then is not None
            self.cpu = max(0.0, used - used_then) / (now - then) if known else None  # type: ignore[operator]
            self.cpu_at = now, used
        if self.memory is None:
            self.extremes = None
            return
        here = self.connections, self.memory
        fewest, most = self.extremes if same and self.extremes is not None else (here, here)
        if 'base_memory' in self.counters:  # measured by the parent before the first connection
            fewest = 0, self.counters['base_memory']
        elif here[0] < fewest[0]:
            fewest = here
        if here[0] >= most[0]:
            most = here
        self.extremes = fewest, most

    @property
    def connections(self) -> int:
        """The number of open connections."""
        count: int = self.counters.get('incoming', 0) + self.counters.get('outgoing', 0)
        return count

    @property
    def utilisation(self) -> float | None:
        """The share of the time spent outside the selector, 0 to 1."""
        idle = self.shares.get('idle_time')
        return None if idle is None else rounded(utilisation(idle, 1.0), 4)

    def row(self, counted: str) -> list[Any]:
        """Return the values of WORKER_FIELDS except the name."""
        silent = monotonic() - self.changed_at
        return [
            self.counters['pid'],
            self.connections,
            rounded(self.rates.get(counted)),
            self.utilisation,
            lateness([self.lag])[1],
            rounded(self.cpu, 4),
            self.memory,
            int(silent) if silent > SILENT else 0,
        ]


def loop_seconds(counters: Snapshot) -> float:
    """Return the seconds that a loop has run, by its own clock."""
    return float(sum(counters.get(name, 0.0) for name in TIMES))


def lateness(lags: list[list[int]]) -> list[int | None]:
    """Return median, 99th percentile and maximum of `timer_lag` histograms, as indices; all None if no timer fired."""
    counts = [sum(column) for column in zip_longest(*lags, fillvalue=0)]
    total, seen = sum(counts), 0
    found: list[int | None] = []
    if not total:
        return [None, None, None]
    ranks = [total * 0.5, total * 0.99, total]
    for index, count in enumerate(counts):
        seen += count
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(index)
    return found


def bytes_per_connection(all_: list[Watched]) -> float | None:
    """Return by how much memory grew per connection, between the fewest and the most connections seen."""
    grown = more = 0
    for one in all_:
        if one.extremes is not None:
            (fewest, before), (most, after) = one.extremes
            more += most - fewest
            grown += after - before
    return round(max(0, grown) / more, 1) if more >= ENOUGH_CONNECTIONS else None


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process, including all threads and system calls; None if it is not known."""
    if pid == os.getpid():
        return process_time()
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            after_name = file.read().rpartition(b') ')[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf('SC_CLK_TCK')
    except (OSError, ValueError, IndexError):
        return None


def added(values: list[Any]) -> Any:
    """Return the sum of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def mean(values: list[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if known else None


def rounded(value: Any, digits: int = 1) -> Any:
    """Round a float, because sending 17 digits would be a waste."""
    return round(value, digits) if isinstance(value, float) else value
