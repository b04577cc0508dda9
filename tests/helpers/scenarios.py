"""The lists of tests in `tests/SCENARIOS.md`, generated from the marks on the tests.

Run `python -m tests.helpers.scenarios` after you add or remove a mark or rename a marked test. A test belongs
to a row of the page if it has the mark `@pytest.mark.scenario(NUMBER)` with the number of that row; a mark can have
several numbers. Marks are read from the source, so tests that are skipped on this machine are listed, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS / 'SCENARIOS.md'
COLUMNS = 4
HEADING = '## The tests of each scenario\n'  # the list below this heading is generated, and ends the page


def cells(line: str) -> list[str]:
    """Return the cells of one row of a table."""
    return [cell.strip() for cell in line.strip().strip('|').split('|')]


def rows(page: str) -> list[list[str]]:
    """Return the cells of each scenario."""
    return [cells(line) for line in page.splitlines() if re.match(r'\| *\d', line)]


def numbers_of(node: ast.expr) -> Iterator[int]:
    """Generate the scenario numbers of a mark, which is a decorator, or is called with a test in an assignment."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(attr='mark'), attr='scenario'), args=args):
            yield from (ast.literal_eval(arg) for arg in args)


def marks(path: Path) -> Iterator[tuple[int, str]]:
    """Generate (number of a scenario, name of a test) for each number in the marks of one test file."""
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found = node.decorator_list
            case ast.Assign(targets=[ast.Name(name)], value=ast.Call(func=mark)):
                found = [mark]
            case _:
                continue
        for one in found:
            yield from ((number, name) for number in numbers_of(one))


def marked() -> dict[int, list[str]]:
    """Return the tests of each scenario, in the order of the files and of the tests in each file."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob('test_*.py')):
        file = path.relative_to(TESTS).as_posix()
        for number, name in marks(path):
            found.setdefault(number, []).append(f'[{file}]({file}) `{name}`')
    return found


def written(page: str) -> str:
    """Return the page with the current lists of tests."""
    tests, listed = marked(), set()

    def row(line: str) -> str:
        number, *texts = cells(line)[: COLUMNS - 1]
        listed.add(int(number))
        count = len(tests.get(int(number), []))
        return f'| {number} | {" | ".join(texts)} | [{count} test{"" if count == 1 else "s"}](#{number}) |'

    tables = page.partition(HEADING)[0]
    lines = [row(line) if re.match(r'\| *\d', line) else line for line in tables.splitlines()]
    if unknown := tests.keys() - listed:
        raise ValueError(f'tests are marked with scenarios that {PAGE.name} does not have: {sorted(unknown)}')
    lists = [f'\n### {number}\n\n' + '\n'.join(f'- {test}' for test in tests[number]) for number in sorted(tests)]
    return '\n'.join(lines) + f'\n{HEADING}' + '\n'.join(lists) + '\n'


if __name__ == '__main__':
    PAGE.write_text(written(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
