"""Shrink a failing run: leave out faults, single strikes of faults and traffic, as long as it still fails the same way.

A fault that is left out changes no draw of the others, because each has its own random numbers. So a few dozen runs
usually find the one or two faults that matter. Other strikes of a fault may have hidden or delayed the failure. So a
run counts only if it breaks the same law, or the same expectation, with a text that differs only in numbers.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from .places import can_be_imported, program_name
from .report import END
from .simulation import SimulationFailed

MOST_RUNS = 200
MOST_PASSES = 4  # over the faults and the traffic
MOST_SECONDS = 2.0  # of real time, after which no further run begins
MOST_STRIKES = 6  # a fault that needs more strikes than this is listed without their numbers
TRAFFIC = (0.0, 0.25, 0.5)  # tried in this order
FEW = 'descriptors.few'  # a fault without strikes: it lasts from the start
NONE = 'none'  # the value of `--faults` that stands for no faults

Run = Callable[..., object]  # runs the seed with these changed options of `Simulation`; raises SimulationFailed


class Shrinking:
    """The search for a smaller run that fails like `failed`.

    Args:
        failed: The failure, as raised by a run.
        run: Called with options of `Simulation` to run the seed again.
    """

    def __init__(self, failed: SimulationFailed, run: Run) -> None:
        self.failed: SimulationFailed = failed  # the failure of the smallest run so far
        self.options: dict[str, Any] = {}  # the options of that run
        self.runs: int = 0
        self.repeatable: bool = True
        self._run = run
        self._kind = kind_of(failed)
        self._until = time.monotonic() + MOST_SECONDS

    def shrink(self) -> None:
        """Search for at most MOST_RUNS runs and MOST_SECONDS."""
        if not self.fails():
            self.repeatable = self.runs == 0
            return
        for number in range(MOST_PASSES):
            before = self.options
            if self.options.get('only') != () and not self.fails(only=()):
                if number == 0:
                    self._drop_sites()
                self._drop_strikes()
            self._drop_traffic()
            if self.options == before:
                break  # otherwise less traffic may need fewer faults

    def fails(self, **changes: Any) -> bool:
        """Run the seed with these changes; return whether it fails in the same way, and if so, keep the changes."""
        if self.runs >= MOST_RUNS or time.monotonic() > self._until:
            return False
        self.runs += 1
        options = self.options | changes
        try:
            self._run(**options)
        except SimulationFailed as failed:
            if kind_of(failed) == self._kind:
                self.failed, self.options = failed, options
                return True
        return False

    def _drop_sites(self) -> None:
        assert self.failed.simulation is not None
        struck = [name for name, site in self.failed.simulation.could_strike.items() if site.strikes or name == FEW]
        self.fails(only=tuple(struck))
        self._minimize(struck)

    def _drop_strikes(self) -> None:
        assert self.failed.simulation is not None
        sites = tuple(self.failed.simulation.could_strike)
        strikes: list[str] = []
        for name, fault in self.failed.simulation.could_strike.items():
            strikes += [f'{name}@{number}' for number in range(1, fault.strikes + 1)] or [name]
        strikes = self._minimize(strikes)
        for site in sites:
            mine = [strike for strike in strikes if strike.partition('@')[0] == site]
            if len(mine) > MOST_STRIKES:
                strikes = [strike for strike in strikes if strike not in mine] + [site]
        if not self.fails(only=tuple(strikes)):
            self.fails(only=sites)

    def _drop_traffic(self) -> None:
        for traffic in TRAFFIC:
            before = self.failed, self.options
            if self.fails(traffic=traffic):
                if length_of(self.failed) >= length_of(before[0]):
                    self.failed, self.options = before
                break

    def _minimize(self, faults: list[str]) -> list[str]:
        """Leave out faults while the run fails: first halves of the list, then smaller parts; return the rest."""
        parts = 2
        while len(faults) > 1:
            size = -(-len(faults) // parts)
            for begin in range(0, len(faults), size):
                rest = faults[:begin] + faults[begin + size :]
                if self.fails(only=tuple(rest)):
                    faults, parts = rest, max(parts - 1, 2)
                    break
            else:
                if parts >= len(faults):
                    break
                parts = min(2 * parts, len(faults))
        return faults


def kind_of(failed: SimulationFailed) -> str:
    """Return what identifies a violation: its first line without numbers, quoted text and the reprs of objects."""
    text = str(failed).partition('\n')[0].partition(': ')[2].partition('; ')[0]
    return re.sub(r"<[^<>]*>|b?'[^']*'|b?\"[^\"]*\"|-?\d[\d.]*", '#', text)


def length_of(failed: SimulationFailed) -> int:
    """Return the number of events in a failed run."""
    return 0 if failed.simulation is None else len(failed.simulation.kernel.trace)


def shrink(failed: SimulationFailed, run: Run, programs: Iterable[Any], command: str = '') -> SimulationFailed:
    """Return the failure of the smallest run that was found, with a report that says how to repeat it.

    Args:
        failed: The failure, as raised by a run.
        run: Called with options of `Simulation` to run the seed again, at most MOST_RUNS times.
        programs: The programs of the run, for the test in the report; empty if the seed draws them.
        command: The command that runs the programs, with its options except `--seed`, `--faults` and `--traffic`.
    """
    if failed.simulation is None:
        return failed
    search = Shrinking(failed, run)
    log = logging.getLogger('reactor')
    level = log.level
    log.setLevel(logging.CRITICAL)  # otherwise the log of the failure would be lost among those of the other runs
    try:
        search.shrink()
    finally:
        log.setLevel(level)
    found = search.failed
    assert found.simulation is not None
    head, _, trace = str(found).partition(f'{END}\n')
    repeated = f'{command} --seed {found.simulation.seed}{arguments(found.simulation.given)}'.lstrip()
    if not search.repeatable:
        how = ['not repeatable: the same seed does not fail in this way again; see "not reproducible" in the README']
    else:
        before = str(failed).partition(': ')[0]
        how = [
            f'shrunk in {search.runs} runs from {before}, with {len(failed.simulation.could_strike)} possible faults',
            f'repeat: {repeated}',
            *as_test(found.simulation.seed, found.simulation.given, list(programs)),
        ]
    report = SimulationFailed('\n'.join([head.rstrip(), *how, END, trace]), found.simulation)
    report.command = repeated if search.repeatable else ''
    return report


def arguments(options: dict[str, Any]) -> str:
    """Return options of a smaller run as arguments for a command line, with a space before each."""
    said = f' --profile {options["profile"]}' if options.get('profile', 'default') != 'default' else ''
    if options.get('only') is not None:
        said += f' --faults {",".join(options["only"]) or NONE}'
    if options.get('traffic', 1) != 1:
        said += f' --traffic {options["traffic"]:g}'
    return said


def as_test(seed: int, options: dict[str, Any], programs: list[Any]) -> list[str]:
    """Return the lines of a test for pytest that repeats a run; without programs, the seed draws them."""
    usual: dict[str, Any] = {'selector': None, 'traffic': 1, 'profile': 'default'}
    keywords = {name: value for name, value in options.items() if name not in usual or value != usual[name]}
    said = ''.join(f', {name}={value!r}' for name, value in keywords.items())
    if not programs:
        lines, call, fixture = ['from reactor.testing.seeds import run_seed'], f'run_seed({seed}{said})', ''
    else:
        call, fixture = f'simulate(program, seeds=[{seed}]{said})', 'simulate'
        lines = [f'# the program: {", ".join(map(program_name, programs))}']
        if len(programs) == 1 and can_be_imported(programs[0]):
            name = programs[0].__name__
            lines = [f'from {programs[0].__module__} import {name}{" as program" * (name != "program")}']
    lines = ["pytest_plugins = ['reactor.testing.fixture']", '', *lines] if fixture else lines
    test = [*lines, '', f'def test_seed_{seed}({fixture}):', f'    {call}']
    return ['as a test:', '', *(f'    {line}'.rstrip() for line in test), '']


def parse_faults(text: str) -> tuple[str, ...]:
    """Return the faults of an argument such as 'accept.aborted,clock.jump@3'; 'none' stands for no faults."""
    return () if text == NONE else tuple(fault.strip() for fault in text.split(','))
