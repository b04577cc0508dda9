"""Measure how many changes to the code the tests notice: `python -m tests.mutation draw|cover|run|report`.

    draw      draw the list of mutants again; see `drawing.py`
    cover     run the suite (or only the named tests) under coverage, to record which lines each test reaches
    run       run the tests on the mutants that have no outcome yet; with --simulator run only the simulator
    report    print how many mutants were killed, and list the others

This needs the extra `mutation`. The outcomes are stored in this folder.

- The tests whose coverage reaches the line of a mutant are run in a copy of the project, the cheapest first, until the
  first failure. In total they may take LONGEST seconds. Slow tests and tests marked `alone` are left out.
- A mutant is killed when a test fails, fails again when it is run alone, and passes on the original code.
- A test that does not end fails at its own time limit, or at HANGS, which is shorter than the suite's limit.
- When LONGEST seconds are over, the outcome is `uncertain`, which counts as if the mutant had survived.
- The simulator runs the seeds below SEEDS, for at most LONGEST seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutation import drawing, reaching
from tests.mutation.chosen_tests import CHOSEN, REPORTS
from tests.mutation.drawing import PROJECT, Mutant

KEPT = Path(__file__).resolve().parent
RESULTS, SIMULATED, EQUIVALENT = KEPT / 'results.jsonl', KEPT / 'simulated.jsonl', KEPT / 'equivalent.json'
LONGEST = 60  # seconds for all tests of a mutant, or all seeds of the simulator
HANGS = 20  # seconds for one test
SEEDS = 150
MEMORY = 8 << 30  # bytes of address space for a process: a mutant may allocate without limit
FIRST_TESTS, MORE_TESTS = 20, 10  # the size of the first batch, and how many more tests each further batch has
NOT_COPIED = '.git .venv* .mutation .hypothesis .*_cache __pycache__ *.egg-info'.split()
MARK = 'MUTATION_RUN'  # environment variable that identifies the run; all processes of the run inherit it
RUNS = itertools.count()


class Ended(NamedTuple):
    """The result of a command: its exit status (None after a timeout), its output, and the seconds that it took."""

    status: int | None
    output: str
    seconds: float


class Results:
    """The outcomes in one file, which has a line for each mutant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.all: dict[int, dict[str, Any]] = {one['number']: one for one in map(json.loads, lines)}
        self._lock = threading.Lock()

    def add(self, result: dict[str, Any]) -> None:
        """Store this outcome, which replaces an earlier outcome of the same mutant."""
        with self._lock:
            self.all[result['number']] = result
            lines = [json.dumps(one) for _, one in sorted(self.all.items())]
            written = self.path.with_suffix('.new')
            written.write_text('\n'.join(lines) + '\n')
            written.replace(self.path)

    def killed(self) -> set[int]:
        return {number for number, one in self.all.items() if one['outcome'] == 'killed'}


class Tester:
    """Tries mutants of one project, in copies of it under a temporary folder."""

    def __init__(self, project: Path, folder: Path) -> None:
        self.project, self.folder = project, folder
        self.usual = folder / 'usual'  # the original code
        shutil.copytree(project, self.usual, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self.known: dict[str, reaching.Test] = {}
        self.sound: dict[str, bool] = {}  # whether a test passes on the original code

    def use_tests(self) -> None:
        self.known = reaching.read()
        # pytest rewrites the assertions of the tests once, and the result is copied with them.
        environment = {CHOSEN: '', REPORTS: os.devnull}
        self.python(self.usual, ['-m', 'pytest', '-q', '--collect-only', '-p', 'no:cacheprovider'], 300, environment)

    @contextmanager
    def copy(self, mutant: Mutant) -> Iterator[tuple[Path, int] | None]:
        """Copy the project with the mutant in it; yield the copy and the line, or None if the code no longer exists."""
        text = (self.project / mutant.module).read_text() if (self.project / mutant.module).exists() else ''
        found = drawing.find(mutant, text)
        if found is None:
            yield None
            return
        folder = self.folder / str(mutant.number)
        shutil.copytree(self.usual, folder)
        path = folder / mutant.module
        for compiled in path.parent.glob(f'__pycache__/{path.stem}.*'):
            compiled.unlink()
        path.write_text(found[1])
        try:
            yield folder, found[0]
        finally:
            shutil.rmtree(folder)

    def simulate(self, mutant: Mutant) -> dict[str, Any]:
        """Run only the simulator on the mutant."""
        with self.copy(mutant) as copy:
            if copy is None:
                return {'number': mutant.number, 'outcome': 'gone'}
            folder, _ = copy
            ended = self.python(folder, ['-m', 'reactor.testing', '--seeds', str(SEEDS), '--stop'], LONGEST)
        outcome = {0: 'survived', None: 'uncertain'}.get(ended.status, 'killed')
        result = {'number': mutant.number, 'outcome': outcome, 'seconds': round(ended.seconds, 1)}
        if outcome == 'killed':
            result['by'] = next(iter(ended.output.splitlines()), f'status {ended.status}')[:200]
        return result

    def test(self, mutant: Mutant) -> dict[str, Any]:
        """Run the tests that reach the mutant."""
        with self.copy(mutant) as copy:
            if copy is None:
                return {'number': mutant.number, 'outcome': 'gone'}
            folder, line = copy
            tests = [test.name for test in reaching.judges(self.known, self.project, mutant.module, line)]
            result = {'number': mutant.number, 'outcome': 'survived', 'tests': len(tests)}
            began = time.monotonic()
            result.update(self._judge(folder, tests))
            result['seconds'] = round(time.monotonic() - began, 1)
        return result

    def _judge(self, folder: Path, tests: list[str]) -> dict[str, Any]:
        left, size, doubtful = float(LONGEST), FIRST_TESTS, []
        while tests:
            ended, failed, running = self.run_tests(folder, tests[:size], left)
            left -= ended.seconds
            if failed and self._counts(folder, failed['test'], tests[:size]):
                how = {'how': 'time limit'} if 'Timeout (>' in failed['text'] else {}
                return {'outcome': 'killed', 'by': failed['test'], **how, 'doubtful': doubtful}
            if failed:
                doubtful.append(failed['test'])
                tests = tests[tests.index(failed['test']) + 1 :] if failed['test'] in tests else tests[size:]
            elif ended.status is not None:
                tests, size = tests[size:], size * MORE_TESTS
            if tests and left <= 0:
                return {'outcome': 'uncertain', 'running': running, 'doubtful': doubtful}
        return {'outcome': 'survived', 'doubtful': doubtful}

    def _counts(self, folder: Path, failed: str, tests: list[str]) -> bool:
        """Return whether this failure can be repeated and does not occur with the original code."""
        alone = [failed] if failed in tests else tests
        if not self.run_tests(folder, alone, 3 * LONGEST)[1]:
            return False
        if failed not in self.sound:
            self.sound[failed] = not self.run_tests(self.usual, alone, 3 * LONGEST)[1]
        return self.sound[failed]

    def run_tests(
        self, folder: Path, tests: list[str], seconds: float
    ) -> tuple[Ended, dict[str, Any] | None, str | None]:
        """Run these tests until one fails; return the result, the report of the failure, and the last test's name."""
        with tempfile.TemporaryDirectory(dir=self.folder) as notes:
            chosen, reports = Path(notes) / 'chosen', Path(notes) / 'reports'
            chosen.write_text('\n'.join(tests))
            reports.write_text('')
            files = list(dict.fromkeys(test.partition('::')[0] for test in tests))
            command = ['-m', 'pytest', '-qx', '-p', 'no:cacheprovider', '-p', 'tests.mutation.chosen_tests']
            environment = {CHOSEN: str(chosen), REPORTS: str(reports)}
            ended = self.python(folder, [*command, '--timeout', str(HANGS), *files], seconds, environment)
            reported = [json.loads(line) for line in reports.read_text().splitlines()]
        failed = next((one for one in reported if one['outcome'] == 'failed'), None)
        if failed is None and ended.status not in (None, 0, 5):  # 5: no tests were collected
            failed = {'test': f'pytest itself, status {ended.status}', 'text': ended.output[-2000:]}
        return ended, failed, reported[-1]['test'] if reported else None

    def python(
        self, folder: Path, arguments: list[str], seconds: float, environment: dict[str, str] | None = None
    ) -> Ended:
        """Run Python in this copy with a timeout in seconds, and end all processes that it has started."""
        mark = f'{folder} {next(RUNS)}'  # several runs may share a folder
        environment = {**os.environ, **(environment or {}), 'PYTHONPATH': str(folder), MARK: mark}
        environment.pop('PYTHONDONTWRITEBYTECODE', None)  # compiled files are copied too
        began = time.monotonic()
        with tempfile.TemporaryFile(dir=self.folder) as output:
            child = subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            resource.prlimit(child.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
            try:
                status = child.wait(max(seconds, 1))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end_all(mark)
                with suppress(ProcessLookupError):
                    # The process group includes children that were started with a different environment.
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            output.seek(0)
            text = output.read().decode(errors='replace')
        return Ended(status, text, time.monotonic() - began)


def end_all(mark: str) -> None:
    """Kill all processes that this run has started, even if their parents have ended."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass


def run(options: argparse.Namespace) -> None:
    """Try the selected mutants and store their outcomes."""
    results = Results(options.results or (SIMULATED if options.simulator else RESULTS))
    listed = drawing.read()['mutants']
    again = {number for number, one in results.all.items() if one['outcome'] in options.again}
    numbers = options.numbers or [number for number in listed if number not in results.all or number in again]
    with tempfile.TemporaryDirectory(prefix='mutants-') as folder:
        tester = Tester(options.project.resolve(), Path(folder))
        if not options.simulator:
            tester.use_tests()
        try_one: Callable[[Mutant], dict[str, Any]] = tester.simulate if options.simulator else tester.test

        def try_and_keep(number: int) -> None:
            result = try_one(listed[number])
            results.add(result)
            print(json.dumps(result), flush=True)

        with ThreadPoolExecutor(options.jobs) as pool:
            try:
                list(pool.map(try_and_keep, numbers[: options.most]))
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
    show(results, {})


def equivalents() -> dict[int, str]:
    """Return {number of a mutant that changes no behaviour: the reason}."""
    if not EQUIVALENT.exists():
        return {}
    return {int(number): reason for number, reason in json.loads(EQUIVALENT.read_text()).items()}


def show(results: Results, equivalent: dict[int, str]) -> None:
    """Print statistics of these outcomes. Equivalent mutants are not counted."""
    counted = [one for number, one in results.all.items() if number not in equivalent]
    outcomes = Counter(one['outcome'] for one in counted)
    tried = len(counted) - outcomes['gone']
    figures = ', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())
    if tried:
        print(f'{results.path.name}: {100 * outcomes["killed"] / tried:.1f} % of {tried} killed ({figures})')


def report() -> None:
    """Print statistics, and the mutants that survived or are uncertain."""
    drawn, results, simulated, equivalent = drawing.read(), Results(RESULTS), Results(SIMULATED), equivalents()
    show(results, equivalent)
    show(simulated, {})
    share = 100 * len(equivalent) / len(drawn['mutants'])
    print(f'equivalent: {len(equivalent)} of {len(drawn["mutants"])}, {share:.1f} %')
    for number, one in sorted(results.all.items()):
        if one['outcome'] not in ('killed', 'gone') and number not in equivalent:
            print(f'\n{drawn["mutants"][number].diff()}\n  {one["outcome"]}, {one.get("tests")} tests reach it')


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m tests.mutation', description=__doc__.partition('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('draw')
    covering = commands.add_parser('cover')
    covering.add_argument('tests', nargs='*')
    covering.add_argument('--jobs', type=int, default=2)
    covering.add_argument('--without', default='', metavar='WORDS', help='leave out these tests, as with -k of pytest')
    running = commands.add_parser('run')
    running.add_argument('numbers', nargs='*', type=int, help='numbers of mutants; default: all that have no outcome')
    running.add_argument(
        '--again', nargs='*', default=[], metavar='OUTCOME', help='also run mutants with this outcome again'
    )
    running.add_argument('--jobs', type=int, default=2)
    running.add_argument('--most', type=int, help='run at most this many mutants')
    running.add_argument('--simulator', action='store_true', help='run only the simulator')
    running.add_argument('--project', type=Path, default=PROJECT, help='the checkout to mutate')
    running.add_argument('--results', type=Path, help='a different file for the outcomes')
    commands.add_parser('report')
    options = parser.parse_args()
    # A shell makes background commands ignore Ctrl-C, and the tests would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    match options.command:
        case 'draw':
            drawing.write(drawing.draw())
        case 'cover':
            reaching.cover(options.tests, options.jobs, options.without)
        case 'run':
            run(options)
        case 'report':
            report()


if __name__ == '__main__':
    main()
