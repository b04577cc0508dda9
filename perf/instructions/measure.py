"""One workload on one peer: how many instructions a request takes, and how steady that figure is.

Start-up and warm-up end at the first mark. Intervals without a request show what a mark costs by itself. Every block
that is measured contains this cost once, so it is subtracted.
"""

from dataclasses import dataclass
from statistics import median

from . import callgrind
from .workloads import TooSlow

# Requests at least until CPython has specialised the code that runs, and until counters have left the small integers,
# up to 256, which cost no allocation.
WARM_UP = 300
BLOCKS = 3  # intervals that are measured
ATTEMPTS = 4  # with a longer delay each time, on a machine that is too busy for the shorter one
EMPTY = 2  # intervals without a request, of which the last one is used: the first contains the end of the warm-up


@dataclass
class Figure:
    """User instructions for one unit of a workload, and the relative difference of the blocks."""

    instructions: float
    spread: float


def figure(empty, blocks, units):
    """Return the `Figure` of blocks of `units` units each, when an interval without any takes `empty` instructions."""
    each = sorted((block - empty) / units for block in blocks)
    middle = median(each)
    return Figure(middle, (each[-1] - each[0]) / middle)


def measure(peer, workload, folder, scale=1):
    """Count `workload` on the peer of that name; `folder` is for files that can be removed afterwards."""
    delay = workload.delay
    for attempt in range(ATTEMPTS):
        try:
            return count(peer, workload, delay, folder, max(1, round(workload.rounds * scale)))
        except TooSlow:
            if attempt == ATTEMPTS - 1:
                raise
            delay *= 3


def count(peer, workload, delay, folder, rounds):
    script = callgrind.PEERS / f'{peer}_{workload.server}.py'
    with callgrind.Uncounted(script, workload.workload, delay, folder):
        pass  # it has compiled all modules now
    with callgrind.Counted(script, workload.workload, delay, folder) as server, workload.connected(server) as ask:

        def interval(rounds):
            for _ in range(rounds):
                ask()
            return server.mark()

        interval(max(rounds, WARM_UP // (workload.clients * workload.units)))
        empty = [interval(0) for _ in range(EMPTY)][-1]
        blocks = [interval(rounds) for _ in range(BLOCKS)]
    return figure(empty, blocks, rounds * workload.clients * workload.units)
