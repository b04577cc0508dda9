"""A pytest plugin for `tests.mutation`: run the tests listed in a file, in that order, and record the outcomes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

CHOSEN = 'MUTATION_CHOSEN_TESTS'  # a file with one test per line; '' for all collected tests
REPORTS = 'MUTATION_REPORTS'  # the file for their outcomes
MEASURE = 'MUTATION_MEASURE_CHILDREN'  # a coverage configuration for the children of tests; '' for none


reports: IO[str]  # opened before the tests run, because a test may use up all descriptors


def pytest_configure() -> None:
    global reports
    # The parent of a pytest-xdist worker also writes reports.
    reports = open(os.devnull if 'PYTEST_XDIST_WORKER' in os.environ else os.environ[REPORTS], 'a')


def pytest_unconfigure() -> None:
    reports.close()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    yield  # run after `conftest.py`, which also orders the tests
    if chosen := os.environ.get(CHOSEN):
        order = {name: number for number, name in enumerate(Path(chosen).read_text().splitlines())}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])


def pytest_runtest_setup() -> None:
    # If this were set earlier, coverage would measure the pytest-xdist workers a second time.
    if measure := os.environ.get(MEASURE):
        os.environ['COVERAGE_PROCESS_START'] = measure


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        write(report.nodeid, 'collect', report.outcome, 0.0, str(report.longrepr), [])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    marks = [mark for mark in ('alone', 'slow') if mark in report.keywords]
    write(report.nodeid, report.when, report.outcome, report.duration, str(report.longrepr or ''), marks)


def write(test: str, when: str, outcome: str, seconds: float, text: str, marks: list[str]) -> None:
    line = {'test': test, 'when': when, 'outcome': outcome, 'seconds': seconds, 'text': text[-2000:], 'marks': marks}
    print(json.dumps(line), file=reports, flush=True)
