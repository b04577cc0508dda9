"""The page of scenarios: every test that it names exists, every number stands once, no row is missing."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS / 'SCENARIOS.md').read_text(encoding='utf-8')
ROWS = [
    [cell.strip() for cell in line.strip('|').split('|')] for line in PAGE.splitlines() if re.match(r'\| *\d', line)
]
NUMBERS = [int(row[0]) for row in ROWS]
NAME = re.compile(r'`(test_\w+\.py)::(\w+)`')
NAMED = sorted(set(NAME.findall(PAGE)))


def test_every_row_has_a_number_a_scenario_an_outcome_and_its_tests():
    assert {len(row) for row in ROWS} == {4}
    for number, scenario, outcome, tests in ROWS:
        assert scenario and outcome, number
        assert tests and not NAME.sub('', tests).strip(', '), number


def test_no_number_stands_twice_and_they_are_in_order():
    assert NUMBERS == sorted(set(NUMBERS))


def test_no_row_is_missing():
    assert set(range(1, 121)) - set(NUMBERS) == set()


def test_a_test_that_is_named_exists():
    """In one test, because each of 500 would take more time to be collected and reported than to run."""
    texts = {file: (TESTS / file).read_text(encoding='utf-8') for file in {file for file, _ in NAMED}}
    assert NAMED
    assert [
        f'{file}::{name}'
        for file, name in NAMED
        if not re.search(rf'^(?:def {name}\(|class {name}\b|{name} = )', texts[file], re.MULTILINE)
    ] == []
