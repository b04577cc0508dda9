"""Calls and bytecodes for each request, by function: which Python code the instructions of a request belong to.

As with instructions, an interval without requests shows what a mark costs, and is subtracted.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from perf.common.server import PROJECT

from . import callgrind
from .measure import EMPTY, WARM_UP, attempts

TRACED = Path(__file__).with_name('traced.py')
OURS = 'reactor'
SMALLEST = 0.05  # fewer bytecodes for each request are not shown


@dataclass
class Function:
    """A function, and its calls and bytecodes for each request."""

    name: str
    calls: float
    bytecodes: float


class Traced(callgrind.Uncounted):
    """A server that counts its calls and bytecodes; its files are written to `folder`."""

    def __init__(self, script, workload, delay, folder):
        self.prefix = folder / f'traced-{script.stem}-{workload}'
        self.marks = 0
        self.wrapper = TRACED, self.prefix
        super().__init__(script, workload, delay, folder)

    def mark(self):
        """Return {(file, function): (calls, bytecodes)} since the last mark, or since the process started."""
        self.marks += 1
        found = self.written(Path(f'{self.prefix}.{self.marks}'))
        return {(file, name): (calls, bytecodes) for file, name, calls, bytecodes in json.loads(found)}


def functions(workload, folder, scale=1):
    """Measure `workload` on the reactor; return a list of `Function`, the dearest first."""
    return attempts(
        lambda delay: count(workload, delay, folder, max(1, round(workload.rounds * scale))), workload.delay
    )


def count(workload, delay, folder, rounds):
    script = callgrind.PEERS / f'{OURS}_{workload.server}.py'
    units = workload.clients * workload.units
    with Traced(script, workload.workload, delay, folder) as server, workload.connected(server) as ask:
        for _ in range(max(1, WARM_UP // units)):
            ask()
        server.mark()
        empty = [server.mark() for _ in range(EMPTY)][-1]
        for _ in range(rounds):
            ask()
        found = server.mark()
    return ranked(found, empty, rounds * units)


def ranked(found, empty, units):
    """Return what one unit costs in each function; an interval without requests costs `empty`."""
    all_ = []
    for (file, name), both in found.items():
        calls, bytecodes = (
            (mine - mark) / units for mine, mark in zip(both, empty.get((file, name), (0, 0)), strict=True)
        )
        if bytecodes >= SMALLEST:
            all_.append(Function(f'{shown(file)}:{name}', calls, bytecodes))
    return sorted(all_, key=lambda one: -one.bytecodes)


def shown(file):
    """Return a short name for a file: relative to the project, or its name alone."""
    path = Path(file)
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name


def table(name, what, found):
    """Return the table of one workload."""
    calls, bytecodes = sum(one.calls for one in found), sum(one.bytecodes for one in found)
    lines = [f'{name}: {bytecodes:,.1f} bytecodes in {calls:,.1f} calls per {what}', '  bytecodes  calls']
    return '\n'.join([*lines, *(f'  {one.bytecodes:9,.1f}  {one.calls:5,.2f}  {one.name}' for one in found)])
