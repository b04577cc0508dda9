"""Counters: what reactors count, as plain dictionaries that can be sent, summed and shown.

Owns what a *source* is: a callable without arguments that returns `{name: counters}`, where `counters` is what
`Stats.as_dict()` gives, and 'pid' with it. One reactor is a source with one name, the parent of workers one with a name
for each. Knows nothing of who shows them. The rule: asking is cheap, whatever is open, for it is asked every second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .. import Reactor
from ..loop.counters import Counters
from ..loop.stats import Stats, most_frequent

Snapshot = dict[str, Any]
Source = Callable[[], dict[str, Snapshot]]

HAS_PROC = os.path.exists('/proc/self/statm')


def source(r: Reactor) -> Source:
    """A source of the counters of one reactor, by the name '0'.

    To be called in the thread that runs the reactor, else `ReactorError`.
    """
    return partial(_counters_of, r)


def _counters_of(r: Reactor) -> dict[str, Snapshot]:
    r.guard.check_thread()
    return {'0': {**r.stats().as_dict(), 'pid': os.getpid()}}


def combined(many: Iterable[Snapshot]) -> Snapshot:
    """The counters of several reactors as those of one: sums, slow places merged, 'pid' left out. Of none: zeros."""
    total = Stats(Counters(), 0, 0).as_dict()  # of nobody: everything is there, and 0
    slow: dict[str, list[Any]] = {}
    for counters in many:
        for name, value in counters.items():
            if name == 'timer_lag':
                total[name] = [a + b for a, b in zip(total[name], value, strict=True)]
            elif name == 'slow':
                for place, count, longest in value:
                    before = slow.get(place, [place, 0, 0.0])
                    slow[place] = [place, before[1] + count, max(before[2], longest)]
            elif name != 'pid' and isinstance(value, (int, float)):
                total[name] = total.get(name, 0) + value
    total['slow'] = most_frequent(slow.values())
    return total


def memory(pid: int) -> int | None:
    """Resident memory of a process in bytes, measured from outside; None where it cannot be told."""
    try:
        with open(f'/proc/{pid}/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        if HAS_PROC:
            return None  # it has ended; to ask another program would take the loop 40 ms
    import subprocess

    try:
        done = subprocess.run(['ps', '-o', 'rss=', '-p', str(pid)], capture_output=True, timeout=5, check=False)
        return int(done.stdout) * 1024
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
