"""Tests of perf/faults/: it resumes, reports missed goals and writes a table. Each case runs once, at a tiny size."""

from __future__ import annotations

import json
import sys

import pytest

TINY = 0.001  # factor for all counts and times, except those with a minimum

if sys.platform != 'linux':
    pytest.skip('perf.faults reads CPU time, memory and descriptors from Linux', allow_module_level=True)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command with three fake cases, on a commit named `abc`; returns `run(*args) -> status`."""
    from perf.faults import __main__ as faults
    from perf.faults.case import Case, Goal

    class One(Case):
        seconds = 1
        goals = (Goal('more than nothing', lambda m: m['found'] > 0),)
        found, needs, measured = 1, (), 0

        def __init__(self, name):
            self.name = self.title = name

        def measure(self, run):
            self.measured += 1
            run.progress(1, 2, 'half')
            if self.found is None:
                raise RuntimeError('it does not work')
            return {'found': self.found, 'size': run.count(1000)}

    chosen = {name: One(name) for name in ('A', 'B', 'C')}
    monkeypatch.setattr(faults, 'CASES', list(chosen.values()))
    monkeypatch.setattr(faults, 'BY_NAME', chosen)
    monkeypatch.setattr(faults.machine, 'commit', lambda folder: 'abc')
    monkeypatch.setattr(faults.machine.OtherWork, 'cores', lambda load: 0.0)
    run = lambda *args: faults.main([*args, '--out', str(tmp_path)])  # noqa: E731
    run.figures, run.out, run.faults = chosen, tmp_path, faults
    return run


def lines(command):
    return [json.loads(line) for line in (command.out / 'results.jsonl').read_text().splitlines()]


def test_when_all_goals_are_met_the_status_is_0_and_a_table_is_written(command, capsys):
    assert command() == 0
    assert [(one['case'], one['outcome'], one['commit']) for one in lines(command)] == [
        (name, 'held', 'abc') for name in 'ABC'
    ]
    table = (command.out / 'faults.md').read_text()
    assert '| A | A: more than nothing | found 1, size 1,000 | held | abc |' in table
    assert 'Python' in table and 'kernel' in table and 'cores' in table
    assert table in capsys.readouterr().out


def test_a_missed_goal_is_named_and_the_status_is_1(command, capsys):
    command.figures['B'].found = 0
    assert command() == 1
    assert [one['outcome'] for one in lines(command)] == ['held', 'missed', 'held']
    assert '**MISSED** more than nothing' in (command.out / 'faults.md').read_text()
    assert 'NOT ALL HELD: B missed' in capsys.readouterr().err


def test_when_a_case_raises_the_status_is_1_and_the_others_are_measured(command):
    command.figures['A'].found = None
    assert command() == 1
    assert [one['outcome'] for one in lines(command)] == ['failed', 'held', 'held']
    assert 'it does not work' in (command.out / 'faults.md').read_text()


def test_a_case_whose_tool_is_not_installed_is_reported_as_not_run(command, capsys):
    command.figures['C'].needs = ('no-such-tool',)
    assert command() == 1
    assert not command.figures['C'].measured
    assert 'NOT ALL HELD: C not run' in capsys.readouterr().err
    assert 'no-such-tool not found' in (command.out / 'faults.md').read_text()


def test_an_interrupted_run_resumes_where_it_stopped(command, monkeypatch):
    def cut(figure, run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            type(command.figures['B']),
            'measure',
            lambda self, run: {'found': 1} if self.name == 'A' else cut(self, run),
        )
        with pytest.raises(KeyboardInterrupt):
            command()
    assert [one['case'] for one in lines(command)] == ['A']
    assert '| A |' in (command.out / 'faults.md').read_text()
    assert command() == 0
    assert [one['case'] for one in lines(command)] == ['A', 'B', 'C']
    assert command.figures['A'].measured == 0


def test_a_case_is_measured_again_on_demand_at_another_commit_and_in_another_size(command, monkeypatch):
    first = command.figures['A']
    command('--only', 'A')
    command('--only', 'A')
    assert first.measured == 1
    command('--only', 'A', '--again')
    assert first.measured == 2
    command('--only', 'A', '--quick')
    assert first.measured == 3
    assert lines(command)[-1]['measured']['size'] == 20
    monkeypatch.setattr(command.faults.machine, 'commit', lambda folder: 'def')
    command('--only', 'A')
    assert first.measured == 4


def test_a_checkout_with_changes_is_always_measured(command, monkeypatch):
    monkeypatch.setattr(command.faults.machine, 'commit', lambda folder: 'abc+')
    command('--only', 'A')
    command('--only', 'A')
    assert command.figures['A'].measured == 2


def test_a_failed_case_is_measured_again(command):
    command.figures['A'].found = None
    command('--only', 'A')
    command.figures['A'].found = 1
    assert command('--only', 'A') == 0


def test_an_unknown_name_is_a_usage_error(command, capsys):
    with pytest.raises(SystemExit):
        command('--only', 'A,M999')
    assert 'M999' in capsys.readouterr().err


def test_each_case_states_its_promises_and_how_long_it_takes():
    from perf.faults.cases import BY_NAME, CASES

    assert len(BY_NAME) == len(CASES)
    for figure in CASES:
        assert figure.name and figure.title and figure.seconds > 0, figure
        assert all(goal.text and callable(goal.check) for goal in figure.goals), figure.name


def every_figure():
    from perf.faults.cases import CASES

    # The network cases take minutes even with little data, so test_network_faults.py tests them. The cases that need
    # the HTTP server are tested in test_http_examples.py.
    figures = [figure for figure in CASES if not figure.name.startswith('M11') and figure.name not in ('M13', 'M21')]
    return pytest.mark.parametrize('figure', figures, ids=[figure.name for figure in figures])


@pytest.mark.scenario(111)
@pytest.mark.slow
@every_figure()
def test_each_case_meets_its_goals_in_a_tiny_size(figure):
    from perf.faults.case import Run

    if reason := figure.missing():
        pytest.skip(f'{figure.name} is left out: {reason}')
    found = figure.measure(Run(TINY))
    assert json.loads(json.dumps(found)) == found
    held = {goal.text: bool(goal.check(found)) for goal in figure.goals}
    missed = [goal.text for goal in figure.goals if not held[goal.text] and not goal.timed]
    assert not missed, found
