"""Find the tests that reach a line of the code: run the suite under coverage, which records the tests for each line.

The result is stored in a file outside of git. A test reaches a line when the line runs in the test's process or in a
process that the test starts. A line that runs at import is reached by the tests that use the name that it defines.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.mutation.chosen_tests import CHOSEN, MEASURE, REPORTS
from tests.mutation.drawing import PROJECT

CACHE = PROJECT / '.mutation'
# These tests read the text of the code, or plant bugs in copies of it. If such a test fails on a mutant, this does not
# show that it has noticed a change in behaviour.
NOT_JUDGES = (
    *(f'tests/mutation/test_{name}.py' for name in ('mutants', 'mutation', 'tls_mutants')),
    *(f'tests/project/test_{name}.py' for name in ('changelog', 'scenarios', 'shape')),
)
SHORTEST = 0.03  # seconds; shorter tests count as this long
OWN = 0.3  # factor for the cost of tests in the module's own test file, so that they run before other tests

Lines = dict[str, int]  # {module: a number in which bit N stands for line N}


class Test(NamedTuple):
    """The cost of a test, and the lines that it reaches."""

    __test__ = False

    name: str
    seconds: float
    lines: Lines
    count: int  # number of lines that the test reaches

    def file(self) -> str:
        return self.name.partition('::')[0]


CONFIGURATION = """
[run]
branch = False
parallel = True
source = reactor
data_file = {folder}/coverage
context = ${{PYTEST_CURRENT_TEST-}}
disable_warnings = no-data-collected,module-not-measured,module-not-imported,no-ctracer,couldnt-parse
"""


def cover(tests: list[str], jobs: int, without: str = '') -> None:
    """Run these tests, by default all tests that are not slow, and store the lines that each test reaches.

    `without` names tests that fail under coverage, such as tests that use up all descriptors.
    """
    CACHE.mkdir(exist_ok=True)
    reports, configuration = CACHE / 'reports.jsonl', CACHE / 'coveragerc'
    reports.write_text('')
    configuration.write_text(CONFIGURATION.format(folder=CACHE))
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'tests.mutation.chosen_tests']
    command += ['-n', str(jobs), f'--cov={PROJECT / "reactor"}', f'--cov-config={configuration}', '--cov-context=test']
    environment = {**os.environ, CHOSEN: '', REPORTS: str(reports), MEASURE: str(configuration)}
    environment['PYTHONPATH'] = str(PROJECT)
    command += ['-m', 'not slow and not alone', *(f'--ignore={file}' for file in NOT_JUDGES)]
    command += ['-k', f'not ({without})'] if without else []
    # The exit status is ignored, because pytest prints the failures.
    subprocess.run([*command, '--cov-report=', *tests], cwd=PROJECT, env=environment)
    known = read() if tests and (CACHE / 'reach').exists() else {}
    files = {file for file in tests if '::' not in file}
    kept = {name: test for name, test in known.items() if test.file() not in files}
    kept.update(measured(reports))
    with open(CACHE / 'reach', 'wb') as file:
        pickle.dump([tuple(test) for test in kept.values()], file)
    print(f'{len(kept):,} tests reach {len(reached_lines(kept.values())):,} lines')


def measured(reports: Path) -> dict[str, Test]:
    """Return the tests of the last run, with the lines that coverage recorded for each."""
    from coverage import CoverageData

    seconds: dict[str, float] = {}
    for line in reports.read_text().splitlines():
        report = json.loads(line)
        if report['when'] != 'collect' and 'alone' not in report['marks']:
            seconds[report['test']] = seconds.get(report['test'], 0.0) + report['seconds']
    lines: dict[str, Lines] = {name: {} for name in seconds if not name.startswith(NOT_JUDGES)}
    data = CoverageData(str(CACHE / 'coverage'))
    data.read()
    for path in data.measured_files():
        module = Path(path).relative_to(PROJECT).as_posix()
        for line, contexts in data.contexts_by_lineno(path).items():
            for name in {test_of(context) for context in contexts} & lines.keys():
                lines[name][module] = lines[name].get(module, 0) | 1 << line
    return {
        name: Test(name, seconds[name], reached, sum(bits.bit_count() for bits in reached.values()))
        for name, reached in lines.items()
    }


def test_of(context: str) -> str:
    """Return the test of a context: pytest-cov writes `test|call`, and child processes write `test (call)`."""
    return re.sub(r'(\|| \()(setup|run|call|teardown)\)?$', '', context)


test_of.__test__ = False  # type: ignore[attr-defined]


def read() -> dict[str, Test]:
    """Return the recorded tests by name."""
    with open(CACHE / 'reach', 'rb') as file:
        return {test[0]: Test(*test) for test in pickle.load(file)}


def reached_lines(tests: Iterable[Test]) -> set[tuple[str, int]]:
    bits: Lines = {}
    for test in tests:
        for module, some in test.lines.items():
            bits[module] = bits.get(module, 0) | some
    return {(module, line) for module, some in bits.items() for line in range(some.bit_length()) if some >> line & 1}


def judges(known: dict[str, Test], project: Path, module: str, line: int) -> list[Test]:
    """Return the tests that reach this line; cheap tests that reach little else come first."""
    texts = {path.relative_to(project).as_posix(): path.read_text() for path in (project / 'reactor').rglob('*.py')}
    wanted = lines_for(texts, module, line)
    found = [test for test in known.values() if any(test.lines.get(name, 0) & bits for name, bits in wanted.items())]
    if not found:
        found = [test for test in known.values() if named_for(test.file(), module)]
    return sorted(found, key=lambda test: price(test, module))


def price(test: Test, module: str) -> float:
    own = OWN if named_for(test.file(), module) else 1.0
    return own * max(test.seconds, SHORTEST) * max(test.count, 1)


def named_for(file: str, module: str) -> bool:
    """Return whether the file is named after the module, or after the package if no file is named after the module."""
    stem, room = Path(module).stem, Path(module).parent.name
    words = [word for word in (stem, stem.removesuffix('s')) if list((PROJECT / 'tests').glob(f'*/test_*{word}*.py'))]
    return any(word in Path(file).stem for word in words) if words else Path(file).parent.name == room


def lines_for(texts: dict[str, str], module: str, line: int) -> Lines:
    """Return the lines that run this line's code: its statement or, if it runs at import, uses of the defined names."""
    statement, function = innermost(ast.parse(texts[module]), line)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {module: bits_of(statement.body[0].lineno, statement.body[-1].end_lineno)}
    if function is not None:
        return {module: bits_of(statement.lineno, end_of_head(statement))}
    names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    if not names:
        return {module: bits_of(1, len(texts[module].splitlines()))}
    return {name: mentions(text, names) for name, text in texts.items()}


def mentions(text: str, names: list[str]) -> int:
    """Return the lines in function bodies that use one of these names; if the head uses it, the whole body."""
    mentioned = re.compile(rf'\b({"|".join(map(re.escape, names))})\b')
    if not mentioned.search(text):
        return 0
    found, bits = [number for number, line in enumerate(text.splitlines(), 1) if mentioned.search(line)], 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            begin, end = node.body[0].lineno, node.body[-1].end_lineno or 0
            bits |= sum(1 << line for line in found if begin <= line <= end)
            if any(first_line(node) <= line < begin for line in found):
                bits |= bits_of(begin, end)
    return bits


def innermost(tree: ast.Module, line: int) -> tuple[ast.stmt, ast.FunctionDef | None]:
    """Return the innermost statement on this line, and the function around it, if any."""
    statement: ast.stmt | None = None
    function, body = None, list(tree.body)
    while found := next((one for one in body if first_line(one) <= line <= (one.end_lineno or 0)), None):
        if isinstance(statement, ast.FunctionDef):
            function = statement
        statement = found
        parts = [getattr(found, name, []) for name in ('body', 'orelse', 'finalbody', 'handlers', 'cases')]
        body = [inner for part in parts for inner in part]
    assert statement is not None, line
    return statement, function


def first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, 'decorator_list', [])
    return min([one.lineno for one in decorators], default=statement.lineno if hasattr(statement, 'lineno') else 0)


def end_of_head(statement: ast.stmt) -> int:
    """Return the last line before the body of a statement, or its last line if it has no body."""
    body = getattr(statement, 'body', None)
    return max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno or statement.lineno


def bits_of(first: int, last: int | None) -> int:
    return sum(1 << line for line in range(first, (last or first) + 1))
