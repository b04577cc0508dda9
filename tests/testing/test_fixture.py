"""The pytest plugin: workers share the seeds, a report can be repeated, and what was never reached is listed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

CONFTEST = "pytest_plugins = ['reactor.testing.fixture']\n"
RECORDING = """
    import os
    import pytest

    def record(name):
        def program(world):
            with open(os.environ['RAN'], 'a') as file:
                print(name, world._simulation.seed, file=file)
        return program

    def test_number(simulate):
        simulate(record('number'), seeds=11, faults=False)

    def test_range(simulate):
        simulate(record('range'), seeds=range(20, 25), faults=False)

    def test_list(simulate):
        simulate(record('list'), seeds=[7, 5], faults=False)

    @pytest.mark.parametrize('letter', 'ab')
    def test_of_two(letter, simulate):
        simulate(record(letter), seeds=4, faults=False)

    def test_without_simulation():
        pass
"""
FAILING = """
    def chunk_is_message(world):
        server = world.r.listen_tcp(*world.address(), lambda conn, data: conn.write(b'%d' % len(data)))

        def on_data(conn, data):
            if data != b'50':
                world.fail(f'the answer is {data!r}')
            conn.close()

        client = world.r.connect_tcp(*server.address, on_data, on_close=lambda conn, exc: server.close())
        client.write(bytes(50))
        world.r.call_later(400, server.close)
        world.r.call_later(400, client.close)

    class TestServer:
        def test_answers(self, simulate):
            simulate(chunk_is_message, faults=('recv.short', 'select.some', 'network.stall'), selector='poll')
"""


@pytest.fixture
def project(tmp_path):
    """A project with tests of its own: `project(text, *options)` runs its tests in a child process."""
    (tmp_path / 'pytest.ini').write_text('[pytest]\naddopts = -p no:cacheprovider\n')
    (tmp_path / 'conftest.py').write_text(CONFTEST)

    def run(text, *options):
        (tmp_path / 'test_it.py').write_text(textwrap.dedent(text))
        return command([sys.executable, '-m', 'pytest', 'test_it.py', *options], tmp_path)

    return run


def command(words, folder):
    """Run a command in a folder; return its exit status and its output."""
    path = os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': path, 'RAN': str(folder / 'ran')}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


def ran(folder):
    """Return the programs and seeds that ran, sorted."""
    file = folder / 'ran'
    lines = sorted((name, int(seed)) for name, seed in map(str.split, file.read_text().splitlines()))
    file.unlink()
    return lines


EACH_ONCE = sorted(
    [('number', seed) for seed in range(11)]
    + [('range', seed) for seed in range(20, 25)]
    + [(letter, seed) for letter in 'ab' for seed in range(4)]
)


def test_without_workers_each_test_runs_all_of_its_seeds(project, tmp_path):
    status, said = project(RECORDING)
    assert (status, '6 passed' in said) == (0, True), said
    assert ran(tmp_path) == sorted([*EACH_ONCE, ('list', 5), ('list', 7)])


@pytest.mark.parametrize('workers', [2, 3])
def test_workers_share_the_seeds_of_each_test(project, tmp_path, workers):
    status, said = project(RECORDING, '-n', str(workers), '-v')
    assert (status, f'{5 * workers + 1} passed' in said) == (0, True), said
    assert ran(tmp_path) == sorted([*EACH_ONCE, *[('list', 5), ('list', 7)] * workers])
    for part in range(workers):
        assert f'test_number[seeds-{part + 1}-of-{workers}]' in said
        assert f'test_of_two[a-seeds-{part + 1}-of-{workers}]' in said


def test_one_worker_and_one_seed_are_not_divided(project, tmp_path):
    for options in ('-n', '1'), ('-n', '2', '--seed', '3'):
        status, said = project(RECORDING, *options)
        assert (status, '6 passed' in said) == (0, True), said
        if '--seed' in options:
            assert ran(tmp_path) == sorted((name, 3) for name in ('number', 'range', 'list', 'a', 'b'))
        else:
            assert ran(tmp_path) == sorted([*EACH_ONCE, ('list', 5), ('list', 7)])


@pytest.mark.parametrize('options', [(), ('-n', '2')])
def test_the_command_of_a_report_repeats_the_failure(project, tmp_path, options):
    status, said = project(FAILING, *options)
    assert status == 1, said
    assert_repeats(said, tmp_path, ['test_it.py::TestServer::test_answers', '--seed'])


@pytest.mark.parametrize('where', ['module', 'option'])
def test_the_command_loads_the_plugin_unless_a_conftest_does(project, tmp_path, where):
    (tmp_path / 'conftest.py').unlink()
    plugin = ['-p', 'reactor.testing.fixture']
    if where == 'module':
        if any(each.value == 'reactor.testing.fixture' for each in entry_points(group='pytest11')):
            plugin = []  # the installed distribution loads it
        status, said = project(CONFTEST + textwrap.dedent(FAILING))
    else:
        status, said = project(FAILING, '-p', 'reactor.testing.fixture')
    assert status == 1, said
    assert_repeats(said, tmp_path, [*plugin, 'test_it.py::TestServer::test_answers', '--seed'])


def test_the_command_names_one_test_of_a_parametrized_test(project, tmp_path):
    text = textwrap.dedent(FAILING).replace('class TestServer:', 'class TestServer:\n    @MARK')
    text = text.replace('(self, simulate)', '(self, simulate, word)')
    status, said = project(
        "import pytest\nMARK = pytest.mark.parametrize('word', ['a b', '[c]'])\n" + text, '-n', '2', '-k', '[c]'
    )
    assert status == 1, said
    assert_repeats(said, tmp_path, ['test_it.py::TestServer::test_answers[[c]]', '--seed'])


def assert_repeats(said, folder, words):
    """Check that the command of a report begins with these words, and fails in the same way."""
    failure = re.search(r'seed \d+, turn \d+: the answer is .*', said)[0]
    repeat = re.search(r'repeat: (.*)', said)[1]
    assert shlex.split(repeat)[: 3 + len(words)] == ['python', '-m', 'pytest', *words]
    status, again = command([sys.executable, *shlex.split(repeat)[1:]], folder)
    assert status == 1, again
    assert failure in again
    assert '1 failed' in again


def test_the_command_of_a_report_on_the_command_line_repeats_the_failure(tmp_path):
    (tmp_path / 'server.py').write_text(textwrap.dedent(FAILING).partition('class')[0])
    start = [sys.executable, '-m', 'reactor.testing', 'server:chunk_is_message']
    for options in ([], ['--manner', 'select', '--patience', '900.0', '--turns', '5000']):
        status, said = command([*start, '--seeds', '200', '--stop', *options], tmp_path)
        assert status == 1, said
        failure = re.search(r'seed \d+, turn \d+: the answer is .*', said)[0]
        words = shlex.split(re.search(r'repeat: (.*)', said)[1])
        assert words[: 4 + len(options)] == ['python', '-m', 'reactor.testing', 'server:chunk_is_message', *options]
        status, again = command([sys.executable, *words[1:]], tmp_path)
        assert (status, failure in again) == (1, True), again
        # The report of one seed has the same command, and it works, too.
        words = shlex.split(re.search(r'repeat: (.*)', again)[1])
        status, again = command([sys.executable, *words[1:]], tmp_path)
        assert (status, failure in again) == (1, True), again


NEVER = """
    def program(world):
        def on_close(conn, exc):
            server.close()

        def give_up():
            pass

        server = world.r.listen_tcp(
            *world.address(), lambda conn, data: conn.close(), on_close=on_close, on_drain=print, read_timeout=30
        )
        world.r.connect_tcp(*server.address).write(b'x')
        world.r.call_later(500, give_up).cancel()
        world.r.call_later(20, server.close)

    def test_it(simulate):
        simulate(program, seeds=6, faults=False)
"""
MISSED = [
    'on_close with an exception: test_it:program (on_close, line 3 of test_it.py)',
    'on_drain: builtins:print',
    'read_timeout of listen_tcp at test_it.py:9, in program',
    'the timer of test_it:program (give_up, line 6 of test_it.py)',
]


@pytest.mark.parametrize('options', [('--simulation-report',), ('-v',), ('-n', '2', '-v')])
def test_what_no_seed_has_reached_is_listed_on_demand(project, options):
    status, said = project(NEVER, *options)
    assert status == 0, said
    lines = [line.strip() for line in said.splitlines()]
    assert said.count('simulated programs') == 1
    begin = lines.index('test_it.py::test_it: never reached in 6 seeds:')
    assert lines[begin + 1 : begin + 5] == MISSED
    assert not lines[begin + 5].startswith('on_')


def test_what_no_seed_has_reached_is_not_listed_without_an_option(project):
    assert 'never reached' not in project(NEVER)[1]


@pytest.mark.parametrize('jobs', ['1', '2'])
def test_the_command_line_lists_what_no_seed_has_reached(tmp_path, jobs):
    (tmp_path / 'test_it.py').write_text(textwrap.dedent(NEVER))
    words = ['-m', 'reactor.testing', 'test_it:program', '--seeds', '45', '--faults', 'none', '--jobs', jobs]
    status, said = command([sys.executable, *words], tmp_path)
    assert status == 0, said
    lines = [line.strip() for line in said.splitlines()]
    begin = lines.index('never reached in 45 seeds:')
    assert lines[begin + 1 : begin + 5] == MISSED
    assert lines[-1].startswith('45 of 45 seeds from 0: 0 failed')
