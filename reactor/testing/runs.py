"""Run simulations of the reactor: many seeds, or a single seed with its trace.

This is the command `python -m reactor.testing`. Even if it is interrupted, the last line of its output says how many
seeds ran and how many failed. The exit status is 1 if a seed failed or the command was interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .faults import PROFILES
from .platforms import KINDS
from .reached import Reached, show_never
from .report import END
from .seeds import run_seed
from .shrinking import parse_faults, shrink
from .simulation import Simulation, SimulationFailed

Block = tuple[int, int, dict[str, Any]]  # the first seed, how many there are, and the options of their runs
Outcome = tuple[int, int, list[tuple[int, str]], list[Any]]  # a block's first seed, size, failures, and what it reached
BLOCK = 20  # seeds that a process gets at once
# Options of `Simulation` with a number, which shrinking does not change: the type, the letter for it and the help.
LIMITS: dict[str, tuple[type, str, str]] = {
    'calm': (float, 'S', 'the simulated seconds after which faults stop (default: drawn from the seed)'),
    'patience': (float, 'S', 'the simulated seconds in which a run must end, once faults have stopped'),
    'turns': (int, 'N', 'the most turns of a run'),
    'max_undrained': (int, 'N', 'the most bytes that are written to a connection after a write has returned False'),
    'max_memory': (int, 'N', 'the most bytes that the program holds for one connection'),
}
FLAGS = {
    'until_stop': 'the program ends when it calls `stop` of its reactor',
    'keepalive': 'hostile: connections whose peer has vanished end when the faults stop',
}
REPORT_EVERY = 10.0  # seconds between two progress lines, if stderr is not a terminal


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog='python -m reactor.testing', description=__doc__.split('\n')[0])
    parser.add_argument(
        'program',
        nargs='?',
        metavar='MODULE:PROGRAM',
        help='run this program (default: programs that test the reactor)',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--seed',
        type=int,
        metavar='N',
        help='run only seed N and print its trace; if it fails, the trace of a smaller run',
    )
    what.add_argument('--seeds', type=int, metavar='N', help='run N seeds')
    parser.add_argument('--first', type=int, default=0, metavar='K', help='the first seed of --seeds (default: 0)')
    parser.add_argument('--jobs', type=int, default=1, metavar='J', help='the number of processes (default: 1)')
    parser.add_argument(
        '--manner',
        '--selector',
        dest='selector',
        choices=KINDS,
        help='the simulated platform (default: each seed draws one)',
    )
    parser.add_argument(
        '--faults', type=parse_faults, metavar='A,B@N', help='only these faults, or strikes of faults (default: all)'
    )
    parser.add_argument('--profile', choices=tuple(PROFILES), help='hostile: harsher systems (default: default)')
    parser.add_argument('--traffic', type=float, metavar='X', help='from 0 to 1: less traffic (default: 1)')
    parser.add_argument(
        '--resume', type=Path, metavar='FILE', help='write results to FILE, and skip seeds whose results it already has'
    )
    for name, (kind, letter, text) in LIMITS.items():
        parser.add_argument(flag(name), type=kind, metavar=letter, help=text)
    for name, text in FLAGS.items():
        parser.add_argument(flag(name), action='store_const', const=True, help=text)
    parser.add_argument('--stop', action='store_true', help='stop at the first failure')
    options = parser.parse_args(arguments)
    if options.program is not None:
        try:
            find_program(options.program)
        except (ImportError, AttributeError, ValueError) as exc:
            parser.error(f'there is no program {options.program!r}: {exc}; write it as package.module:function')
    log = logging.getLogger('reactor')
    level = log.level
    be_silent()
    try:
        return replay(options.seed, given(options)) if options.seeds is None else Runs(options).run()
    finally:
        log.setLevel(level)


def be_silent() -> None:
    """Silence the log: most errors are planted by the simulation."""
    logging.getLogger('reactor').setLevel(logging.CRITICAL)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run that the command line gives."""
    said = {
        'only': options.faults,
        **{name: getattr(options, name) for name in ('program', 'traffic', 'profile', 'selector', *FLAGS, *LIMITS)},
    }
    return {name: value for name, value in said.items() if value is not None}


def find_program(name: str) -> Callable[[Any], object]:
    """Return the program with a name such as `package.module:program`."""
    module, _, program = name.partition(':')
    found: Callable[[Any], object] = getattr(importlib.import_module(module), program)
    return found


def run_one(seed: int, given: dict[str, Any], reached: Reached) -> Simulation:
    """Run one seed. If it fails, raise the failure of a smaller run that fails in the same way.

    What the run has reached is added to `reached`.
    """
    options = dict(given)
    if 'program' in options:
        options['programs'] = (find_program(options.pop('program')),)

    def again(**changes: Any) -> Simulation:
        return run_seed(seed, **options | changes)

    try:
        simulation = again()
    except SimulationFailed as failed:
        if failed.simulation is not None:
            reached.merge(failed.simulation.reached)
        smaller = shrink(failed, again, options.get('programs', ()), command(given))
    else:
        reached.merge(simulation.reached)
        return simulation
    raise smaller


def command(given: dict[str, Any]) -> str:
    """Return the command line of these options, without those that shrinking changes."""
    words = ['python -m reactor.testing', *([given['program']] if 'program' in given else [])]
    words += [flag(name) for name in FLAGS if name in given]
    return ' '.join([*words, *(f'{flag(name)} {given[name]}' for name in ('selector', *LIMITS) if name in given)])


def flag(name: str) -> str:
    """Return the option of the command line for an option of `Simulation`."""
    return '--manner' if name == 'selector' else '--' + name.replace('_', '-')


def first_line(failed: SimulationFailed) -> str:
    """Return the first line of a report: the seed, the turn and the violation."""
    return str(failed).partition('\n')[0]


def replay(seed: int, given: dict[str, Any]) -> int:
    """Run one seed, and print its trace and its result; return the exit status."""
    try:
        simulation = run_one(seed, given, Reached())
    except SimulationFailed as exc:
        if exc.simulation is not None:
            sys.stdout.write(exc.simulation.show_trace())
        print(f'failed: {str(exc).partition(END)[0].rstrip()}')
        return 1
    sys.stdout.write(simulation.show_trace())
    print(f'seed {seed}: no law was broken; SHA-256 of the trace {simulation.trace_hash()}')
    return 0


def run_block(block: Block) -> Outcome:
    """Run a block of seeds; return its first seed, its size, the failures with reasons, and what the seeds reached."""
    first, count, given = block
    failed, reached = [], Reached()
    for seed in range(first, first + count):
        try:
            run_one(seed, given, reached)
        except SimulationFailed as exc:
            repeat = exc.command or f'{command(given)} --seed {seed}'
            failed.append((seed, f'{first_line(exc)}\n    repeat: {repeat}'))
        except Exception as exc:
            failed.append((seed, f'seed {seed}: the simulation itself failed with {exc!r}'))
    return first, count, failed, reached.as_list()


class Runs:
    """A run of many seeds. It skips seeds that are in the file of `--resume`, shows progress, and reports failures."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.began: float = time.monotonic()
        self._reported = self.began
        self.ran: int = 0
        self.kept: int = 0
        self.failed: dict[int, str] = {}
        self.reached: Reached = Reached()

    def run(self) -> int:
        """Run the seeds; return the exit status."""
        blocks = list(self._blocks())
        try:
            self._run(blocks)
            cut = ''
        except KeyboardInterrupt:
            cut = ' (interrupted)'
        seconds = time.monotonic() - self.began
        self._clear()
        if self.options.program is not None:
            print('\n'.join(show_never(self.reached)))
        print(
            f'{self.ran + self.kept:,} of {self.options.seeds:,} seeds from {self.options.first}{cut}'
            + (f', {self.kept:,} of them in an earlier run' if self.kept else '')
            + f': {len(self.failed)} failed; {seconds:.0f} s, {self.ran / max(seconds, 0.001):.0f} a second, '
            f'{self.options.jobs} {"process" if self.options.jobs == 1 else "processes"}'
        )
        return 1 if self.failed or cut else 0

    def _run(self, blocks: list[Block]) -> None:
        if self.options.jobs == 1:
            for block in blocks:
                if self._took(run_block(block)):
                    return
            return
        with multiprocessing.get_context('spawn').Pool(self.options.jobs, be_silent) as pool:
            for outcome in pool.imap_unordered(run_block, blocks):
                if self._took(outcome):
                    return

    def _blocks(self) -> Iterator[Block]:
        done = self._done_before()
        end = self.options.first + self.options.seeds
        for first in range(self.options.first, end, BLOCK):
            count = min(BLOCK, end - first)
            if (first, count) in done:
                self.kept += count
                self.reached.merge(done[first, count])
            else:
                yield first, count, given(self.options)

    def _done_before(self) -> dict[tuple[int, int], Reached]:
        path = self.options.resume
        if path is None or not path.exists():
            return {}
        done = {}
        for line in path.read_text().splitlines():
            first, count, failed, *reached = json.loads(line)
            done[first, count] = Reached(*reached[0]) if reached else Reached(runs=count)
            self.failed.update({seed: text for seed, text in failed if seed >= self.options.first})
        return done

    def _took(self, outcome: Outcome) -> bool:
        _, count, failed, reached = outcome
        self.ran += count
        self.reached.merge(Reached(*reached))
        if self.options.resume is not None:
            with self.options.resume.open('a') as file:
                file.write(json.dumps(outcome) + '\n')
        for seed, text in failed:
            self._clear()
            print(text, flush=True)
            self.failed[seed] = text
        self._show_progress()
        return bool(failed) and self.options.stop

    def _show_progress(self) -> None:
        now = time.monotonic()
        text = f'{self.ran + self.kept:,} of {self.options.seeds:,} seeds, {len(self.failed)} failed'
        if sys.stderr.isatty():
            sys.stderr.write(f'\r\033[K{text}')
        elif now - self._reported > REPORT_EVERY:
            self._reported = now
            print(text, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write('\r\033[K')
