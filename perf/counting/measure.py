"""One workload on one peer: how many instructions a request takes, and how steady that figure is.

Four marks come before the blocks that count: start-up and warm-up end at the first. Two intervals without a request
tell what a mark costs by itself, which every block contains once and which is subtracted.
"""

from dataclasses import dataclass
from statistics import median

from . import callgrind

BLOCKS = 3  # intervals that are measured
EMPTY = 2  # intervals without a request; the last one counts, when the handler has run before


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
    script = callgrind.PEERS / f'{peer}_{workload.server}.py'
    rounds = max(1, round(workload.rounds * scale))
    callgrind.compile_modules(script, workload.workload, workload.options, folder)
    with callgrind.Counted(script, workload.workload, workload.options, folder) as server:
        with workload.connected(server) as ask:

            def interval(rounds):
                for _ in range(rounds):
                    ask()
                return server.mark()

            interval(rounds)  # start-up, and CPython specialises the code that runs
            empty = [interval(0) for _ in range(EMPTY)][-1]
            blocks = [interval(rounds) for _ in range(BLOCKS)]
    return figure(empty, blocks, rounds * workload.clients * workload.units)
