"""Tests of perf/instructions/: it reads callgrind's files, computes figures, and fails above a budget."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parents[2] / 'perf'
LONGEST = 300  # seconds for a real run: callgrind is slow, and the machine may be busy
WRITTEN_BY_CALLGRIND = """# callgrind format
version: 1
creator: callgrind-3.19.0
cmd:  python server.py
part: 2

desc: Trigger: --dump-before=getppid

positions: line
events: Ir
summary: 16236870

fn=(1) getppid
0 808
calls=1 0
0 4711

totals: 16236871
"""

if sys.platform != 'linux':
    pytest.skip('the server is controlled by signals, and its state is read from /proc', allow_module_level=True)


@pytest.fixture
def command(monkeypatch):
    """`perf.instructions.__main__`, patched as if valgrind were installed; its measurements come from `figures`."""
    from perf.common.server import Failed
    from perf.instructions import __main__ as instructions
    from perf.instructions.measure import Figure

    def measure(peer, workload, folder, scale):
        figure = instructions.figures.get((peer, workload.name), 1000.0)
        if isinstance(figure, str):
            raise Failed(figure)
        return Figure(figure, 0.0)

    monkeypatch.setattr(instructions.callgrind, 'missing', lambda: None)
    monkeypatch.setattr(instructions, 'measure', measure)
    monkeypatch.setattr(instructions, 'figures', {}, raising=False)
    return instructions


@pytest.fixture
def budgets_of(tmp_path):
    """`budgets_of(budgets, build)` writes budgets, by default for this Python, and returns the option to read them."""

    def write(budgets, build=None):
        from perf.instructions.budgets import build as this_build

        path = tmp_path / 'budgets.json'
        path.write_text(json.dumps({build or this_build(): {'instructions': budgets}}))
        return f'--budgets={path}'

    return write


def test_the_total_is_read_from_a_callgrind_file():
    from perf.instructions.callgrind import total

    assert total(WRITTEN_BY_CALLGRIND) == 16236871


def test_an_incomplete_file_has_no_total():
    from perf.instructions.callgrind import total

    complete = WRITTEN_BY_CALLGRIND
    assert [total(complete[:size]) for size in range(len(complete))] == [None] * len(complete)


def test_the_cost_of_a_mark_is_not_attributed_to_requests():
    from perf.instructions.measure import figure

    found = figure(empty=500, blocks=[10_500, 10_500, 10_500], units=10)
    assert (found.instructions, found.spread) == (1000, 0)


def test_a_figure_is_the_median_of_its_blocks():
    from perf.instructions.measure import figure

    found = figure(empty=0, blocks=[1030, 1000, 1010], units=1)
    assert found.instructions == 1010
    assert found.spread == pytest.approx(30 / 1010)


@pytest.mark.parametrize(
    'instructions, verdict',
    [(1021, 'above'), (1020, 'within'), (1000, 'within'), (980, 'within'), (979, 'below')],
)
def test_deviations_of_two_percent_from_a_budget_are_tolerated(instructions, verdict):
    from perf.instructions.budgets import judge

    assert judge(instructions, 1000) == verdict
    assert judge(instructions, None) == 'no budget'


def test_the_name_of_a_python_build_has_the_options_that_change_its_speed():
    from perf.instructions.budgets import build

    debian = "'--enable-shared' '--enable-optimizations' '--with-lto' 'CFLAGS=-g -O2'"
    assert build('3.11', "'--prefix=/root' '--enable-shared'") == '3.11 shared'
    assert build('3.14', debian) == '3.14 pgo lto shared'
    assert build('3.12', '') == '3.12'
    assert build().split()[0] == f'{sys.version_info.major}.{sys.version_info.minor}'


@pytest.mark.parametrize('figure, status', [(1020.0, 0), (1021.0, 1), (900.0, 0)])
def test_a_check_fails_above_the_budget(command, budgets_of, capsys, figure, status):
    command.figures['reactor', 'churn'] = figure
    arguments = ['--only', 'keepalive,churn', budgets_of({'keepalive': 1000, 'churn': 1000})]
    assert command.main(['--check', *arguments]) == status
    printed = capsys.readouterr().out
    assert ('ABOVE BUDGET  churn: 1,021' in printed) == (status == 1)
    assert ('budget can be lowered  churn: 900' in printed) == (figure == 900)
    assert command.main(arguments) == 0


def test_a_python_without_budgets_is_only_measured(command, budgets_of, capsys):
    assert command.main(['--check', budgets_of({'churn': 1}, build='2.7 shared')]) == 0
    assert 'NO BUDGET FOR THIS PYTHON' in capsys.readouterr().out


def test_a_workload_without_a_budget_is_only_measured(command, budgets_of, capsys):
    assert command.main(['--check', '--only', 'churn,tls', budgets_of({'churn': 1000})]) == 0
    assert 'NO BUDGET  tls: 1,000' in capsys.readouterr().out


def test_a_workload_that_cannot_be_measured_fails_the_check(command, budgets_of, capsys):
    command.figures['reactor', 'tls'] = 'it does not listen'
    assert command.main(['--check', budgets_of({'tls': 1000})]) == 1
    assert 'it does not listen' in capsys.readouterr().err


def test_a_peer_that_fails_does_not_hide_an_exceeded_budget(command, budgets_of, capsys):
    command.figures['uvloop', 'churn'] = 'no module uvloop'
    command.figures['reactor', 'churn'] = 2000.0
    assert command.main(['--check', '--peers', 'uvloop', '--only', 'churn', budgets_of({'churn': 1000})]) == 1
    assert 'ABOVE BUDGET  churn' in capsys.readouterr().out


def test_the_table_has_the_ratio_the_budget_and_the_deviation(command, budgets_of, capsys):
    command.figures.update({('reactor', 'seed'): 3000.0, ('uvloop', 'seed'): 1500.0, ('uvloop', 'churn_defer'): 'dead'})
    command.main(['--peers', 'uvloop', '--only', 'seed,churn_defer', budgets_of({'seed': 2400, 'churn_defer': 1000})])
    printed = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines()[1:]}
    assert rows['workload'] == ['per', 'reactor', 'uvloop', 'ratio', 'budget', 'deviation']
    assert rows['seed'] == ['request', '3,000', '1,500', '2.00', '2,400', '+25.00%']
    assert rows['churn_defer'] == ['request', '1,000', '-', '-', '1,000', '+0.00%']
    assert 'uvloop   FAILED: Failed: dead' in printed.err


def test_the_figures_are_written_as_json(command, budgets_of, tmp_path):
    command.figures['reactor', 'chain'] = 14000.5
    command.main(['--only', 'chain', '--json', str(tmp_path / 'found.json'), budgets_of({'chain': 14000})])
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['workloads'] == {'chain': {'budget': 14000, 'reactor': {'instructions': 14000.5, 'spread': 0.0}}}
    assert found['failures'] == {}


def test_an_update_replaces_the_measured_budgets_and_keeps_the_others(command, budgets_of, capsys, tmp_path):
    from perf.instructions.budgets import build, read

    argument = budgets_of({'keepalive': 5, 'churn': 7})
    path = tmp_path / 'budgets.json'
    path.write_text(json.dumps({**read(path), '2.7': {'instructions': {'churn': 3}}}))
    assert command.main(['--update', '--only', 'churn', argument]) == 0
    found = read(path)
    assert found[build()]['instructions'] == {'keepalive': 5, 'churn': 1000}
    assert found['2.7'] == {'instructions': {'churn': 3}}
    assert 'BUDGET CHANGED  churn: 7 -> 1,000' in capsys.readouterr().out


def test_a_scaled_trial_cannot_update_budgets(command):
    with pytest.raises(SystemExit) as raised:
        command.main(['--update', '--scale', '0.1'])
    assert raised.value.code == 2


def test_without_valgrind_one_line_is_printed_and_the_status_is_3(monkeypatch, capsys):
    from perf.instructions import __main__ as instructions

    monkeypatch.setattr(shutil, 'which', lambda command: None)
    assert instructions.main(['--check']) == 3
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert 'NOT MEASURED' in line and 'valgrind' in line and printed.out == ''


def run(*args):
    """Run the command in a separate process."""
    environment = {**os.environ, 'PYTHONPATH': str(PERF.parent)}
    line = [sys.executable, '-m', 'perf.instructions', *args]
    return subprocess.run(line, capture_output=True, env=environment, text=True, timeout=LONGEST, check=False)


def test_an_unknown_name_is_a_usage_error():
    done = run('--only', 'keepalife')
    assert done.returncode == 2 and 'keepalife' in done.stderr and 'keepalive' in done.stderr


def test_the_file_in_the_project_has_a_budget_for_every_workload():
    from perf.instructions.budgets import read
    from perf.instructions.workloads import WORKLOADS

    for build, entry in read().items():
        assert entry['instructions'].keys() == WORKLOADS.keys(), build


@pytest.mark.slow
@pytest.mark.parametrize('peer', ['reactor', 'uvloop'])
@pytest.mark.parametrize('workload', ['keepalive', 'churn', 'churn_defer', 'tls', 'seed', 'chain'])
def test_the_clients_accept_the_replies_of_each_server(peer, workload, tmp_path):
    from perf.instructions import callgrind
    from perf.instructions.workloads import WORKLOADS

    one = WORKLOADS[workload]
    if peer == 'uvloop':
        pytest.importorskip('uvloop')
    script = callgrind.PEERS / f'{peer}_{one.server}.py'
    with callgrind.Uncounted(script, one.workload, one.delay, tmp_path) as server, one.connected(server) as ask:
        ask()
        ask()


def test_an_unexpected_reply_is_an_error(tmp_path):
    from perf.common.server import Failed
    from perf.instructions import callgrind
    from perf.instructions.workloads import WORKLOADS

    script = callgrind.PEERS / 'reactor_server.py'
    with callgrind.Uncounted(script, 'churn', 0, tmp_path) as server, WORKLOADS['keepalive'].connected(server) as ask:
        with pytest.raises(Failed, match='the server answered'):
            ask()


def test_a_delay_that_is_too_short_is_an_error(tmp_path):
    from perf.instructions import callgrind
    from perf.instructions.workloads import WORKLOADS, TooSlow

    script, seed = callgrind.PEERS / 'reactor_server.py', WORKLOADS['seed']
    with callgrind.Uncounted(script, 'seed', 1e-9, tmp_path) as server, seed.connected(server) as ask:
        with pytest.raises(TooSlow, match='to read 32 requests'):
            ask()


@pytest.mark.skipif(not shutil.which('valgrind'), reason='valgrind is not installed')
@pytest.mark.slow
@pytest.mark.parametrize('workload', ['keepalive', 'churn'])
def test_a_real_run_counts_instructions(workload, tmp_path):
    path = tmp_path / 'found.json'
    done = run('--only', workload, '--scale', '0.1', '--json', str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())['workloads'][workload]['reactor']
    assert 5_000 < found['instructions'] < 200_000
    assert found['spread'] < 0.05


def test_what_a_mark_costs_is_subtracted_from_each_function():
    from perf.common.server import PROJECT
    from perf.instructions.functions import ranked, table

    file = str(PROJECT / 'reactor' / 'loop' / 'loop.py')
    found = {(file, 'Loop._turn'): (12, 900), (file, 'Loop._poll'): (2, 40), ('/lib/x.py', 'f'): (10, 5000)}
    empty = {(file, 'Loop._turn'): (2, 100), (file, 'Loop._poll'): (2, 40)}
    first, second = ranked(found, empty, 10)  # _poll runs only because of the mark
    assert (first.name, first.calls, first.bytecodes) == ('x.py:f', 1, 500)
    assert (second.name, second.calls, second.bytecodes) == ('reactor/loop/loop.py:Loop._turn', 1, 80)
    assert table('chain', 'call', [first, second]).startswith('chain: 580.0 bytecodes in 2.0 calls per call\n')


@pytest.mark.slow
def test_a_request_costs_one_call_of_each_function_on_its_path(tmp_path):
    from perf.instructions.functions import functions
    from perf.instructions.workloads import WORKLOADS

    found = {one.name.partition(':')[2]: one for one in functions(WORKLOADS['keepalive'], tmp_path, 0.1)}
    for name in 'reply', 'Stream.handle_read', 'Sender.write':
        assert found[name].calls == 1
        assert found[name].bytecodes == int(found[name].bytecodes) > 0
    assert 'mark' not in found
    assert 0 < found['Loop._turn'].calls < 0.1, 'a turn serves all hundred clients'
