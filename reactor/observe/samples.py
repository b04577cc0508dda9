"""Samples: what the reactors behind a source did since the last look, as rates and shares.

Owns the arithmetic from counts to what a person wants to see: requests a second, shares of the turn, how late timers
were, memory for each connection. Knows nothing of who shows it. The rule: what cannot be told is None and never a
guess; and a loop's own clock, the sum of its phases, is what its counts are divided by, so that it does not matter when
it told them.
"""

from __future__ import annotations

import os
from time import monotonic, process_time, time

from ..loop.counters import TIMES
from .counters import combined, memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .counters import Snapshot, Source

# One sample, of all reactors together, in this order.
FIELDS = (
    'time',  # milliseconds since 1970; never goes back
    'incoming',  # connections
    'outgoing',
    'requests',  # by the second
    'reads',
    'dispatch',  # shares of the turn, 0 to 1, the mean of all loops; what is missing to 1 is the selector's
    'timers',
    'soon',
    'completions',
    'busiest',  # of all loops: the share that one spent outside the selector
    'lag_p50',  # how late timers fired since the last sample: indices into `Stats.timer_lag`
    'lag_p99',
    'lag_max',
    'cpu',  # cores in use
    'memory',  # bytes of resident memory
    'per_connection',  # bytes: what it had grown by when the most were open, for each; freed memory is often kept
)
# One row for each reactor, in this order.
WORKER_FIELDS = ('name', 'pid', 'connections', 'rate', 'busy', 'lag_p99', 'cpu', 'memory', 'silent')
RATES = ('requests', 'reads', 'accepts', 'bytes_in', 'bytes_out', 'loop_count', 'timers_fired')  # told by the second
ENOUGH_CONNECTIONS = 100  # to divide memory by
LEAST_CPU_TIME = 0.5  # seconds to measure over: the system counts in hundredths
SILENT = 3.0  # seconds without news, after which what a reactor told last is no longer taken for now
HAS_PROC = os.path.exists('/proc/self/stat')


class Sampler:
    """Looks at a source; `sample()` tells what happened since the last one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._watched: dict[str, Watched] = {}
        self._started = time() - monotonic()
        self.counts_requests: bool = False  # whether anybody ever did
        self.look()

    def look(self) -> dict[str, Snapshot]:
        """Begin anew: the next sample counts from here. Memory is compared with what it was when nothing was open."""
        now, told = monotonic(), self._source()
        for name in self._watched.keys() - told.keys():
            del self._watched[name]
        for name, counters in told.items():
            if name not in self._watched:
                self._watched[name] = Watched()
            self._watched[name].look(counters, now)
        return told

    def sample(self) -> dict[str, Any]:
        """The values of FIELDS as 'row'; 'rates' by the second; 'totals', 'workers' and 'slow' as they are now.

        'counted' is 'reads' as long as no request was ever counted, which stand for them then.
        """
        totals = combined(self.look().values())
        self.counts_requests = self.counts_requests or totals.get('requests', 0) > 0
        counted = 'requests' if self.counts_requests else 'reads'
        slow, all_ = totals.pop('slow', []), list(self._watched.values())
        rates = {name: rounded(added([one.rates.get(name) for one in all_])) for name in RATES}
        row = [
            int((self._started + monotonic()) * 1000),
            totals.get('incoming', 0),
            totals.get('outgoing', 0),
            rates['requests'],
            rates['reads'],
            *[mean([one.shares.get(name) for one in all_]) for name in TIMES if name != 'idle_time'],
            max((one.busy for one in all_ if one.busy is not None), default=None),
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
    """One reactor: what it told last, and what changed since the time before."""

    __slots__ = ('counters', 'cpu', 'cpu_at', 'extremes', 'lag', 'memory', 'rates', 'shares', 'told_at')

    def __init__(self) -> None:
        self.counters: Snapshot = {}
        self.rates: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.lag: list[int] = []
        self.cpu: float | None = None
        self.cpu_at: tuple[float, float | None] = (0.0, None)
        self.memory: int | None = None
        # Connections and memory when it had the fewest connections, and when it had the most; None: memory is unknown.
        self.extremes: tuple[tuple[int, int], tuple[int, int]] | None = None
        self.told_at: float = 0.0

    def look(self, counters: Snapshot, now: float) -> None:
        """Compare with the last look; `now` in seconds."""
        before, self.counters = self.counters, counters
        elapsed = loop_seconds(counters) - loop_seconds(before)
        same = before.get('pid') == counters['pid'] and elapsed >= 0
        self._measure(counters['pid'], now, same)
        if not same:  # another process by this name: its counts began anew
            self.rates, self.shares, self.lag, self.told_at = {}, {}, [], now
        elif elapsed > 0:
            self.told_at = now
            self.rates = {name: (counters[name] - before[name]) / elapsed for name in RATES}
            self.shares = {name: (counters[name] - before[name]) / elapsed for name in TIMES}
            self.lag = [new - old for new, old in zip(counters['timer_lag'], before['timer_lag'], strict=True)]
        elif now - self.told_at > SILENT:
            self.rates, self.shares, self.lag = {}, {}, []

    def _measure(self, pid: int, now: float, same: bool) -> None:
        self.memory = memory(pid) if HAS_PROC else None  # elsewhere another program would have to be started for it
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
        if 'base_memory' in self.counters:  # who started it has looked before the first connection
            fewest = 0, self.counters['base_memory']
        elif here[0] < fewest[0]:
            fewest = here
        if here[0] >= most[0]:
            most = here
        self.extremes = fewest, most

    @property
    def connections(self) -> int:
        """How many are open."""
        count: int = self.counters['incoming'] + self.counters['outgoing']
        return count

    @property
    def busy(self) -> float | None:
        """The share of its time that it was not in the selector."""
        idle = self.shares.get('idle_time')
        return None if idle is None else round(max(0.0, 1 - idle), 4)

    def row(self, counted: str) -> list[Any]:
        """The values of WORKER_FIELDS, but for the name."""
        silent = monotonic() - self.told_at
        return [
            self.counters['pid'],
            self.connections,
            rounded(self.rates.get(counted)),
            self.busy,
            lateness([self.lag])[1],
            rounded(self.cpu, 4),
            self.memory,
            int(silent) if silent > SILENT else 0,
        ]


def loop_seconds(counters: Snapshot) -> float:
    """How long a loop has run, by its own clock."""
    return float(sum(counters.get(name, 0.0) for name in TIMES))


def lateness(lags: list[list[int]]) -> list[int | None]:
    """Median, 99th percentile and most of histograms as `timer_lag`, as indices; None when no timer has fired."""
    counts = [sum(column) for column in zip(*filter(None, lags), strict=True)]
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
    """What memory grew by from when there were the fewest connections to when there were the most, for each more."""
    grown = more = 0
    for one in all_:
        if one.extremes is not None:
            (fewest, before), (most, after) = one.extremes
            more += most - fewest
            grown += after - before
    return round(max(0, grown) / more, 1) if more >= ENOUGH_CONNECTIONS else None


def cpu_seconds(pid: int) -> float | None:
    """What a process has used so far, its threads and system calls included; None where it cannot be told."""
    if pid == os.getpid():
        return process_time()
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            after_name = file.read().rpartition(b') ')[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf('SC_CLK_TCK')
    except (OSError, ValueError, IndexError):
        return None


def added(values: list[Any]) -> Any:
    """The sum of those that are known, None when none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def mean(values: list[float | None]) -> float | None:
    """The mean of those that are known, None when none is."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if known else None


def rounded(value: Any, digits: int = 1) -> Any:
    """For sending: a float needs no seventeen digits."""
    return round(value, digits) if isinstance(value, float) else value
