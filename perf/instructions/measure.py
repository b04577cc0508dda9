"""Measure one workload on one peer: the instructions for each request, and how much the figure varies.

Start-up and warm-up end at the first mark. An interval without requests shows the cost of a mark itself. Each measured
interval contains that cost once, so it is subtracted.
"""

from dataclasses import dataclass
from statistics import median

from . import callgrind
from .workloads import TooSlow

# Requests before the first measured request. After them, CPython has specialised the code, and counters are above 256:
# smaller integers are preallocated, so counting up to 256 costs less.
WARM_UP = 300
BLOCKS = 3  # number of measured intervals
ATTEMPTS = 4  # number of attempts; each has a longer delay, in case the machine was too busy for the previous delay
EMPTY = 2  # intervals without requests; the last one is used, because the first contains the end of the warm-up


@dataclass
class Figure:
    """User instructions for one unit of a workload, and the relative difference between the blocks."""

    instructions: float
    spread: float


def figure(empty, blocks, units):
    """Return the `Figure` of blocks of `units` units each; an interval without requests costs `empty` instructions."""
    each = sorted((block - empty) / units for block in blocks)
    middle = median(each)
    return Figure(middle, (each[-1] - each[0]) / middle)


def measure(peer, workload, folder, scale=1):
    """Measure `workload` on the peer with this name; `folder` is for temporary files."""
    rounds = max(1, round(workload.rounds * scale))
    return attempts(lambda delay: count(peer, workload, delay, folder, rounds), workload.delay)


def attempts(measure, delay):
    """Return measure(delay); while the machine is too slow for this delay, try again with longer ones."""
    for attempt in range(ATTEMPTS):
        try:
            return measure(delay)
        except TooSlow:
            if attempt == ATTEMPTS - 1:
                raise
            delay *= 3
    raise AssertionError('the last attempt returns or raises')


def count(peer, workload, delay, folder, rounds):
    script = callgrind.PEERS / f'{peer}_{workload.server}.py'
    with callgrind.Uncounted(script, workload.workload, delay, folder):
        pass  # start the server once, so that all modules are compiled
    with callgrind.Counted(script, workload.workload, delay, folder) as server, workload.connected(server) as ask:

        def interval(rounds):
            for _ in range(rounds):
                ask()
            return server.mark()

        interval(max(rounds, WARM_UP // (workload.clients * workload.units)))
        empty = [interval(0) for _ in range(EMPTY)][-1]
        blocks = [interval(rounds) for _ in range(BLOCKS)]
    return figure(empty, blocks, rounds * workload.clients * workload.units)
