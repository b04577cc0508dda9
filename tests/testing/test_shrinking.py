"""A failing seed is shrunk to the faults that matter, and its report says how to repeat it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time

import pytest

from reactor.testing import Simulation, SimulationFailed, shrinking
from reactor.testing.faults import parse_strikes
from reactor.testing.fixture import run_and_shrink
from reactor.testing.shrinking import kind_of, parse_faults
from reactor.testing.traffic import LessTraffic
from tests.helpers.planted_servers import PLANTED, chunk_is_message

SEEDS = 260


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a busy machine, do not end the search early."""
    monkeypatch.setattr(shrinking, 'MOST_SECONDS', 60)


def shrunk(program, seed, **options):
    """Return the failure of the smaller run, or None if the seed does not fail."""
    try:
        run_and_shrink(program, seed, options)
    except SimulationFailed as failed:
        return failed
    return None


def first_failure(program, seeds=range(SEEDS), **options):
    return next(failed for failed in (shrunk(program, seed, **options) for seed in seeds) if failed is not None)


def only(failed):
    return failed.simulation.given['only']


@pytest.mark.parametrize('program', list(PLANTED))
def test_the_report_of_a_planted_bug_names_the_one_or_two_faults_that_matter(program):
    failures = [failed for failed in (shrunk(program, seed) for seed in range(SEEDS)) if failed is not None]
    assert failures
    for failed in failures:
        sites = parse_strikes(only(failed)).keys()
        assert 1 <= len(sites) <= 2, failed
        assert sites & PLANTED[program], failed
        assert f'repeat: --seed {failed.simulation.seed} --faults {",".join(only(failed))}' in str(failed)
        with pytest.raises(SimulationFailed) as again:
            Simulation(failed.simulation.seed, only=only(failed)).run_program(program)
        assert kind_of(again.value) == kind_of(failed)
    single = sum(len(only(failed)) == 1 for failed in failures)
    assert single >= len(failures) * 0.6


def test_the_test_in_a_report_fails_in_the_same_way(tmp_path):
    failed = first_failure(chunk_is_message)
    lines = str(failed).partition('as a test:\n')[2].partition('the end of the trace:')[0]
    file = tmp_path / 'test_pasted.py'
    file.write_text(textwrap.dedent(lines))
    done = run('-m', 'pytest', '-p', 'no:cacheprovider', '-c', os.devnull, f'--rootdir={tmp_path}', str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    assert str(failed).partition('\n')[0] in done.stdout


def run(*arguments):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60)


def test_the_command_line_repeats_a_shrunk_seed():
    failed = first_failure(chunk_is_message)
    name = f'{chunk_is_message.__module__}:{chunk_is_message.__name__}'
    seed = failed.simulation.seed
    many = run('-m', 'reactor.testing', name, '--first', str(seed), '--seeds', '1')
    line, repeat = many.stdout.splitlines()[:2]
    assert line == str(failed).partition('\n')[0]
    assert repeat == f'    repeat: python -m reactor.testing {name} --seed {seed} --faults {",".join(only(failed))}'
    once = run(*repeat.partition('python ')[2].split())
    assert once.returncode == many.returncode == 1
    assert f'\nfailed: {line}\n' in once.stdout
    assert run('-m', 'reactor.testing', name, '--seed', str(seed), '--faults', 'none').returncode == 0


@pytest.mark.parametrize(
    'name', ['no.such.module:f', 'tests.helpers.planted_servers:f', 'tests.helpers.planted_servers']
)
def test_a_program_that_does_not_exist_is_refused(name):
    done = run('-m', 'reactor.testing', name, '--seeds', '1')
    assert done.returncode == 2
    assert f'there is no program {name!r}' in done.stderr


def test_a_bug_that_needs_no_fault_is_reported_with_none():
    failed = first_failure(lambda world: world.fail('always'))
    assert only(failed) == ()
    assert ' --faults none' in str(failed)
    assert parse_faults('none') == ()
    assert parse_faults('a.b,c.d@3') == ('a.b', 'c.d@3')


def test_a_run_that_fails_in_another_way_does_not_count():
    def program(world):
        world.fail('with faults' if world.faulty else 'without faults')

    failed = first_failure(program, range(5, 20), faults=('recv.short', 'send.short'))
    assert str(failed).partition('\n')[0].count('with faults')
    assert only(failed)


def test_a_fault_that_less_traffic_makes_unnecessary_is_left_out_too():
    def program(world):
        size = world.random.randrange(1, 200)  # fits into every buffer

        def on_data(conn, data):
            if size < 5 or len(data) < size:
                world.fail('too short')
            conn.close()

        server = world.r.listen_tcp(*world.address(), on_data, on_close=lambda conn, exc: server.close())
        client = world.r.connect_tcp(*server.address, on_data=lambda conn, data: None)
        for _ in range(size):
            client.write(b'x')
        client.write_eof()

    failures = [failed for failed in (shrunk(program, seed, faults=('recv.short',)) for seed in range(20)) if failed]
    assert len(failures) > 3
    for failed in failures:
        assert only(failed) == ()
        assert failed.simulation.given['traffic'] == 0


@pytest.mark.parametrize('program', list(PLANTED))
def test_shrinking_again_finds_nothing_smaller(program):
    first = first_failure(program)
    given = {name: first.simulation.given[name] for name in ('only', 'traffic')}
    again = shrunk(program, first.simulation.seed, **given)
    assert {name: again.simulation.given[name] for name in given} == given


def test_a_fault_that_needs_many_strikes_is_listed_without_numbers():
    def program(world):
        chunks = []

        def on_data(conn, data):
            chunks.append(data)
            if len(chunks) == 8:
                world.fail('eight chunks')

        server = world.r.listen_tcp(*world.address(), on_data)
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: server.close())
        client.write(bytes(240))  # fits into every buffer
        world.r.call_later(300, client.close)

    failed = first_failure(program, faults=('recv.short',))
    assert only(failed) == ('recv.short',)


def test_traffic_is_reduced():
    def program(world):
        got = bytearray()

        def on_data(conn, data):
            got.extend(data)
            if len(got) == size:
                world.fail('everything has arrived')

        size = world.random.randint(2000, 60_000)
        server = world.r.listen_tcp(*world.address(), on_data)
        world.r.connect_tcp(*server.address).write(bytes(size))

    seed = next(seed for seed in range(100) if shrunk(program, seed).command.endswith(' --traffic 0'))
    with pytest.raises(SimulationFailed) as whole:
        Simulation(seed).run_program(program)
    small = shrunk(program, seed)
    assert shrinking.length_of(small) < shrinking.length_of(whole.value)
    assert f'seeds=[{seed}], ' in str(small)
    assert 'traffic=0.0' in str(small)


def test_less_traffic_draws_smaller_integers_from_the_same_numbers_and_ends_a_search_for_new_ones():
    usual, less = LessTraffic('x'), LessTraffic('x')
    less.part = 0.5
    for _ in range(100):
        assert less.randint(10, 30) == 10 + (usual.randint(10, 30) - 10) // 2
    assert less.random() == usual.random()
    none, seen = LessTraffic('x'), set()
    none.part = 0
    while len(seen) < 20:
        seen.add(none.randrange(20))


def test_a_failure_that_does_not_come_back_is_reported_as_not_repeatable():
    runs = []

    def program(world):
        runs.append(world)
        if len(runs) == 1:
            world.fail('only once')

    said = str(first_failure(program, [3]))
    assert said.startswith('seed 3, turn ')
    assert 'not repeatable: ' in said
    assert 'as a test' not in said


@pytest.mark.parametrize(('limit', 'value'), [('MOST_RUNS', 5), ('MOST_SECONDS', 0.1)])
def test_shrinking_ends_after_a_number_of_runs_and_after_a_time(limit, value, monkeypatch):
    def program(world):
        runs.append(world)
        if limit == 'MOST_SECONDS':
            time.sleep(0.03)
        world.fail('with faults' if len(world._simulation.could_strike) > 5 else 'with few faults')

    runs = []
    monkeypatch.setattr(shrinking, limit, value)
    failed = next(f for f in (shrunk(program, seed, allow_real=True) for seed in range(100)) if 'with faults' in str(f))
    assert re.search(r'^shrunk in \d+ runs', str(failed), re.M)
    assert int(re.search(r'^shrunk in (\d+) runs', str(failed), re.M)[1]) <= 5


def test_a_seed_of_the_reactors_own_programs_is_shrunk_to_a_call_of_run_seed():
    said = shrinking.as_test(7, {'only': ('signal@1',), 'selector': None, 'traffic': 1}, [])
    assert "        run_seed(7, only=('signal@1',))" in said
    assert '    from reactor.testing.seeds import run_seed' in said


def test_the_options_of_a_run_are_kept_in_the_smaller_runs_and_in_the_test():
    seen = []

    def program(world):
        oracles = world._simulation.reactor.oracles
        seen.append((world._simulation._patience, oracles.most_turns, oracles.streams.max_undrained))
        world.r.call_later(100_000, int)

    failed = shrunk(program, 3, patience=40, turns=5000, max_undrained=9, allow_real=True)
    assert len(seen) > 2
    assert set(seen) == {(40, 5000, 9)}
    assert 'liveness: 40 s after the last fault' in str(failed)
    [line] = [line for line in str(failed).splitlines() if 'simulate(program, seeds=' in line]
    assert 'patience=40, turns=5000, max_undrained=9' in line
    assert 'allow_real=True' in line


def test_a_condition_that_is_always_checked_is_checked_in_the_smaller_runs():
    def program(world):
        chunks = []
        world.always(lambda: b'split' not in chunks, 'no chunk is split')
        server = world.r.listen_tcp(*world.address(), lambda conn, data: chunks.append(b'split' * (data != b'hello')))
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: server.close())
        client.write(b'hello')
        world.r.call_later(300, client.close)

    failed = first_failure(program, faults=('recv.short', 'clock.jump'))
    assert only(failed) == ('recv.short@1',)
    assert 'always: this was not true after the turn: no chunk is split' in str(failed)


def test_the_command_line_repeats_a_seed_with_its_patience_and_turns():
    name = f'{chunk_is_message.__module__}:{chunk_is_message.__name__}'
    seed = str(first_failure(chunk_is_message, patience=50.5, turns=9000).simulation.seed)
    more = ['--manner', 'poll', '--patience', '50.5', '--turns', '9000']
    many = run('-m', 'reactor.testing', name, '--first', seed, '--seeds', '1', *more)
    repeat = many.stdout.splitlines()[1]
    assert f'python -m reactor.testing {name} {" ".join(more)} --seed {seed} --faults ' in repeat
    once = run(*repeat.partition('python ')[2].split())
    assert once.returncode == many.returncode == 1
    assert f'\nfailed: {many.stdout.splitlines()[0]}\n' in once.stdout
