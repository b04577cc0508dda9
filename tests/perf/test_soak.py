"""Tests of perf/soak/: a short run keeps all promises, and a broken promise is reported. Nothing is timed here."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.slow]  # other tests would affect memory, CPU time and time limits
PERF = Path(__file__).parents[2] / 'perf'
SHORT = ('--minutes', 0.02, '--rate', 150, '--seed', 7, '--patience', 0.5, '--descriptors', 200)

if sys.platform != 'linux':
    pytest.skip('perf.soak reads memory and descriptors from Linux', allow_module_level=True)
if shutil.which('openssl') is None:
    pytest.skip('NOT TESTED: perf.soak needs the openssl command, which creates its certificate',
                allow_module_level=True)  # fmt: skip


def soak(*args):
    command = [sys.executable, '-m', 'perf.soak', *map(str, args)]
    environment = {**os.environ, 'PYTHONPATH': str(PERF.parent)}
    return subprocess.run(command, capture_output=True, env=environment, text=True, timeout=60, check=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A short soak: (its output, its rows, the file that contains them)."""
    path = tmp_path_factory.mktemp('soak') / 'soak.jsonl'
    done = soak(*SHORT, '--out', path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, [json.loads(line) for line in path.read_text().splitlines()], path


def verdict(rows):
    from perf.soak import promises

    return {promise: kept for promise, kept, _ in promises.judge(rows)}


@pytest.mark.scenario(119)
def test_a_short_soak_keeps_every_promise_that_can_be_judged(run):
    printed, rows, _ = run
    assert [rows[0]['row'], rows[1]['row'], rows[-1]['row']] == ['start', 'base', 'end']
    kept = verdict(rows)
    assert kept.pop('the memory of the server does not grow') is None
    assert len(kept) > 10 and all(kept.values())
    assert printed.count('kept ') == len(kept) and 'MISSED' not in printed


def test_a_soak_has_every_kind_of_client_and_fault(run):
    from perf.soak.clients import WEIGHTS

    end = run[1][-1]
    assert end['driver']['outcomes'].keys() >= {kind.__name__ for kind in WEIGHTS} | {'Held'}
    reasons = {how for by_reason in end['server']['ends'].values() for how in by_reason}
    assert reasons >= {'clean', 'ECONNRESET', 'TLSError', 'FrameTooLong', 'Planned', 'HandshakeTimeout'}
    assert end['server']['stats']['accept_pauses'] > 0
    assert end['server']['counts']['signals'] > 0
    assert end['server']['log']['planned'] > 0


def test_an_interrupted_run_is_judged_by_its_rows(run, tmp_path):
    lines = run[2].read_text().splitlines(keepends=True)
    path = tmp_path / 'cut.jsonl'
    path.write_text(''.join(lines[:-1]) + lines[-1][:100])
    done = soak('--report', path)
    assert done.returncode == 1
    assert 'MISSED the run is complete' in done.stdout and 'Echo' in done.stdout
    path.write_text(lines[0])
    assert soak('--report', path).returncode == 1


@pytest.mark.parametrize(
    ('process', 'name', 'value', 'missed'),
    [
        ('server', 'stats', {'loop_count': 130, 'events': 60, 'timers_fired': 40}, 'each turn has a reason'),
        ('server', 'accepts', -1, 'the server calls on_close once for each connection'),
        ('server', 'open', 1, 'the server calls on_close once for each connection'),
        ('server', 'ends', {'echo': {'KeyError': 1}}, 'each connection of the server ends for a stated reason'),
        ('server', 'unplanned', ['a line'], 'the log has only planned lines'),
        ('server', 'descriptors', 999, 'no descriptor of the server is left'),
        ('server', 'objects', 10**6, 'no object of the server is left'),
        ('driver', 'ended', -1, 'the driver calls on_close once for each connection'),
        ('driver', 'faults', 1, 'each client gets what it was promised'),
        ('driver', 'objects', 10**6, 'no object of the driver is left'),
        (None, 'idle_cpu', 0.5, 'nothing spins without traffic'),
        (None, 'codes', [0, 1], 'both processes end with status 0'),
    ],
)
def test_a_broken_promise_is_reported(run, process, name, value, missed):
    rows = copy.deepcopy(run[1])
    (rows[-1] if process is None else rows[-1][process])[name] = value
    assert missed in [promise for promise, kept in verdict(rows).items() if kept is False]


def test_growing_memory_is_reported_and_floods_do_not_count(run):
    rows = copy.deepcopy(run[1])
    sample = next(row for row in rows if row['row'] == 'sample')
    sample['driver']['flood'] = False
    grown = []
    for minute in range(31):
        one = copy.deepcopy(sample)
        one['seconds'] = minute * 60
        one['server']['rss'] = 30e6 + (minute * 2e6 / 60 if minute >= 10 else -minute * 1e6)
        grown.append(one)
    assert verdict([*rows[:-1], *grown, rows[-1]])['the memory of the server does not grow'] is False
    for one in grown[10:]:
        one['driver']['flood'] = one['server']['rss'] > 30e6 + 0.5e6
        one['server']['rss'] = 99e6 if one['driver']['flood'] else 30e6
    assert verdict([*rows[:-1], *grown, rows[-1]])['the memory of the server does not grow'] is True


def test_the_slope_is_computed_by_least_squares():
    from perf.soak.promises import slope

    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 0), (1, 1), (2, 0)]) == pytest.approx(0)
    assert slope([]) is slope([(1, 2), (1, 3)]) is None


def test_each_kind_of_client_accepts_only_the_outcomes_that_it_may_have():
    from perf.soak.clients import Echo, Refused, SlowWriter

    def acceptable(kind, how):
        return kind.acceptable(kind.__new__(kind), how)

    assert acceptable(Echo, 'success') and not acceptable(Echo, 'ECONNRESET') and not acceptable(Echo, 'cut short')
    assert acceptable(SlowWriter, 'ECONNRESET') and not acceptable(SlowWriter, 'too late')
    assert not acceptable(SlowWriter, 'wrong bytes') and not acceptable(SlowWriter, 'KeyError')
    assert acceptable(Refused, 'ECONNREFUSED') and not acceptable(Refused, 'success')
