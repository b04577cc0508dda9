"""Counters of reactors as plain dictionaries, which can be sent, summed and displayed.

A *source* is a callable without arguments that returns `{name: counters}`. Here `counters` is `Stats.as_dict()` with
the process id added as 'pid'. The source of a single reactor returns one name; `workers.stats` returns one for each
worker.

A source is called once a second or more often, so its cost must not depend on how many handles are open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from .. import Reactor, inspection
from ..loop.counters import Counters
from ..loop.stats import Stats, most_frequent

if TYPE_CHECKING:
    from ..serve.health import Health

Snapshot = dict[str, Any]
Source = Callable[[], dict[str, Snapshot]]

HISTOGRAMS = 'timer_lag', 'request_seconds'  # lists of counts
HAS_PROC = os.path.exists('/proc/self/statm')


def source(r: Reactor) -> Source:
    """Return a source with the counters of one reactor, under the name '0'.

    The source can only be called in the thread that runs the reactor. In another thread it raises `ReactorError`.
    """
    return partial(_counters_of, r)


def _counters_of(r: Reactor) -> dict[str, Snapshot]:
    r.guard.check_thread()
    return {'0': inspection.counters(r)}


def health_of(workers: dict[str, Snapshot]) -> Health | None:
    """Return the state of the service if the counters come from `workers.stats`, otherwise None."""
    # Not `isinstance`: importing `reactor.serve` would double the time to import this package.
    health: Health | None = getattr(workers, 'health', None)
    return health


def combined(many: Iterable[Snapshot]) -> Snapshot:
    """Add up the counters of several reactors; the slow callbacks are merged, and 'pid' is left out.

    Args:
        many: Counters as a source returns them.

    Returns:
        The sum of each counter; of `drain_seconds`, the maximum. If `many` is empty, all counters are 0. The reactors
        may run different versions of this library: a counter that one of them lacks counts as 0.
    """
    total = Stats(Counters(), 0, 0).as_dict()  # all counters, each 0
    slow: dict[str, list[Any]] = {}
    for counters in many:
        for name, value in counters.items():
            if name in HISTOGRAMS:
                total[name] = [a + b for a, b in zip_longest(total[name], value, fillvalue=0)]
            elif name == 'drain_seconds':
                total[name] = max(total[name], value)
            elif name == 'slow':
                for place, count, longest in value:
                    before = slow.get(place, [place, 0, 0.0])
                    slow[place] = [place, before[1] + count, max(before[2], longest)]
            elif name != 'pid' and isinstance(value, (int, float)):
                total[name] = total.get(name, 0) + value
    total['slow'] = most_frequent(slow.values())
    return total


def utilisation(idle: float, total: float) -> float | None:
    """Return the share of the time in which a loop did not wait in its selector, 0 to 1; None if no time has passed.

    Node calls this the event loop utilisation.

    Args:
        idle: Seconds in the selector.
        total: Seconds in all phases.
    """
    return max(0.0, 1 - idle / total) if total > 0 else None


def memory(pid: int) -> int | None:
    """Return the resident memory of a process in bytes, or None if it is unknown.

    Without /proc, this runs `ps` and blocks for about 40 ms.

    Args:
        pid: Process id.
    """
    try:
        with open(f'/proc/{pid}/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        if HAS_PROC:
            return None  # the process has ended
    import subprocess

    try:
        done = subprocess.run(['ps', '-o', 'rss=', '-p', str(pid)], capture_output=True, timeout=5, check=False)
        return int(done.stdout) * 1024
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
