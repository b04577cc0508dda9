"""tests/SCENARIOS.md lists the tests marked with a scenario, has each number once, and lacks no row."""

from __future__ import annotations

from tests.helpers import scenarios

PAGE = scenarios.PAGE.read_text(encoding='utf-8')
ROWS = scenarios.rows(PAGE)
NUMBERS = [int(row[0]) for row in ROWS]


def test_every_row_has_a_number_a_scenario_an_outcome_and_its_tests():
    assert {len(row) for row in ROWS} == {scenarios.COLUMNS}
    for number, scenario, outcome, tests in ROWS:
        assert scenario and outcome, number
        assert not tests.startswith('[0 '), f'no test has the mark scenario({number})'


def test_the_numbers_are_unique_and_in_order():
    assert NUMBERS == sorted(set(NUMBERS))


def test_no_row_is_missing():
    assert set(range(1, 121)) - set(NUMBERS) == set()


def test_the_tests_of_each_row_are_the_marked_ones():
    assert NUMBERS
    assert scenarios.written(PAGE) == PAGE, 'run python -m tests.helpers.scenarios'
