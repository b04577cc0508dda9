"""Tests of perf/imports/: it pairs the processes, and prints a line for each statement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_a_pair_is_measured_in_both_orders_and_its_difference_is_that_of_the_two():
    from perf.imports.__main__ import BASE, differences

    ran = []

    def measure(statement):
        ran.append(statement)
        return len(ran) if statement == BASE else 10 * len(ran)

    assert differences('x', 2, measure) == [10 * 1 - 2, 10 * 4 - 3]
    assert ran == ['x', BASE, BASE, 'x']


def test_the_command_prints_a_line_for_each_statement():
    line = [sys.executable, '-m', 'perf.imports', '--pairs', '2']
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    rows = [row.rsplit(maxsplit=4)[0].strip() for row in done.stdout.splitlines()[3:]]
    assert rows == ['import reactor', 'from reactor import Reactor', 'import asyncio']


def test_a_wrong_number_of_pairs_is_a_usage_error():
    line = [sys.executable, '-m', 'perf.imports', '--pairs', '1']
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and '--pairs' in done.stderr
