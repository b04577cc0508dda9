"""The demo's command line, run as users run it: from the checkout, in separate processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from reactor import Reactor
from reactor.demo.experiment import Experiment
from reactor.demo.load import Load
from reactor.demo.memory import memory_kind, total_memory
from reactor.demo.plan import plan
from reactor.demo.progress import Progress
from reactor.demo.results import table
from reactor.demo.server import serve
from tests.helpers.support import run_until

CHECKOUT = Path(__file__).parents[2]
DEMO = [sys.executable, '-m', 'reactor.demo']
REQUEST = b'GET / HTTP/1.1\r\n\r\n'
pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='children and signals work differently on Windows')


def demo(*options, **popen):
    popen = {'capture_output': True, 'text': True, 'timeout': 60, 'cwd': CHECKOUT, **popen}
    return subprocess.run([*DEMO, *options], **popen)


@contextmanager
def serving(*options):
    """A running `serve`; yields the process and its port, and ends the process if it is still running."""
    process = subprocess.Popen([*DEMO, 'serve', '--port', '0', *options], cwd=CHECKOUT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout.readline() == 'Starting TCP server.\n', process.stderr.read()
        port = int(re.fullmatch(r'listening on 127\.0\.0\.1:(\d+)\n', process.stdout.readline())[1])
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def connect(port):
    return socket.create_connection(('127.0.0.1', port), timeout=10)


def read_to_end(sock):
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b''.join(pieces)


def test_a_server_that_has_printed_its_address_handles_sigterm(monkeypatch):
    # Regression: SIGTERM used to kill the server if it arrived right after the server had printed its address.
    ready = []

    def said(text, **options):
        if text.startswith('listening'):
            ready.append([signal.getsignal(number) is not before[number] for number in before])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr('builtins.print', said)
    with Reactor() as r:
        serve(r, '127.0.0.1', 0, delay=0, reuse_port=False, seconds=None, stats=False)
    assert ready == [[True, True]]


@pytest.mark.parametrize('selector', ['default', 'poll', 'select'])
def test_serve_answers_after_the_delay_and_prints_four_lines_a_second(selector):
    with serving('--delay', '0.2', '--selector', selector, '--seconds', '1.5') as (process, port):
        with connect(port) as sock:
            began = time.monotonic()
            sock.sendall(REQUEST)
            assert read_to_end(sock).endswith(b'\r\n\r\nomglolwtf')
            assert time.monotonic() - began >= 0.2
        printed, errors = process.communicate(timeout=10)
    assert not errors and process.returncode == 0
    block = r'incoming: \d+\noutgoing: 0\nfinished: \d+\nrate: \d+\.\d{3} req/s\n\n'
    assert re.fullmatch(rf'({block}){{2,4}}TCP server exited\.\n', printed)
    assert 'finished: 1\n' in printed


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_idle_connections_and_still_answers_open_requests(signum):
    with serving('--delay', '0.5', '--no-stats') as (process, port), connect(port) as asking, connect(port) as idle:
        asking.sendall(REQUEST)
        time.sleep(0.2)  # give the server time to read the request
        process.send_signal(signum)
        assert idle.recv(1) == b''
        with pytest.raises(OSError):
            connect(port).close()
        assert read_to_end(asking).endswith(b'omglolwtf')
        printed, errors = process.communicate(timeout=10)
    assert (process.returncode, printed, errors) == (0, 'TCP server exited.\n', '')


def test_a_client_that_half_closes_after_its_request_is_answered():
    """`nc` behaves like this client."""
    with serving('--delay', '0.1', '--no-stats') as (_, port):
        for _ in range(5):
            with connect(port) as sock:
                sock.sendall(REQUEST)
                sock.shutdown(socket.SHUT_WR)
                assert read_to_end(sock).endswith(b'omglolwtf')


def test_a_client_that_half_closes_without_a_request_is_closed():
    with serving('--delay', '60', '--no-stats') as (_, port), connect(port) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b''


def test_a_second_ctrl_c_ends_the_server_at_once():
    with serving('--delay', '60', '--no-stats') as (process, port), connect(port) as asking:
        asking.sendall(REQUEST)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130
        assert process.stderr.read() == 'reactor.demo: interrupted\n'


def test_a_port_in_use_is_reported_in_one_helpful_line():
    with serving('--no-stats') as (_, port):
        done = demo('serve', '--port', str(port))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(port) in done.stderr and 'ss -ltnp' in done.stderr and '--port 0' in done.stderr


def test_two_servers_share_a_port_with_the_option():
    with serving('--reuse-port', '--no-stats') as (_, port):
        done = demo('serve', '--port', str(port), '--reuse-port', '--seconds', '0.1', '--no-stats')
    assert done.returncode == 0, done.stderr


MISTYPED = [
    ('--connections', '-3'),
    ('--rate', 'fast'),
    ('serve', '--port', '65536'),
    ('serve', '--selector', 'kqueue'),
    ('load', '--timeout', 'nan'),
    ('load', '--timeout', '0'),
    ('load', '--sources', '64001'),
    ('load', '--host', 'localhost', '--sources', '2'),
    ('load', '--requests-per-second', '0'),
    ('load', '--seconds', '3'),
    ('load', '--requests-per-second', '5', '--calls', '2'),
    ('load', '--requests-per-second', '5', '--path', '/a b'),
    ('--json', 'load'),
    ('--delay', '1', 'serve'),
    ('load', '--host', ''),
    ('serve', '--host', ''),
    ('dance',),
    ('--what',),
]


@pytest.mark.parametrize('options', MISTYPED, ids=' '.join)
def test_a_mistyped_command_gives_one_line_and_status_2(options):
    done = demo(*options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith('python -m reactor.demo')
    assert not done.stdout


SUGGESTED = [
    (('--conections', '5'), '--conections; did you mean --connections?'),
    (('serve', '--prot', '5'), '--prot; did you mean --port?'),
    (('--port', '5'), '--port; it belongs after the command `serve` or `load`'),
    (('dance',), "'dance'"),
]


@pytest.mark.parametrize('options, words', SUGGESTED, ids=[' '.join(options) for options, _ in SUGGESTED])
def test_an_unknown_word_is_named_with_a_suggestion(options, words):
    assert words in demo(*options).stderr


def test_statistics_that_nobody_reads_end_the_server_without_a_traceback():
    with serving() as (process, _):
        process.stdout.close()
        process.stdout = None
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == ''


def test_load_reports_in_the_terms_of_httperf():
    with serving('--delay', '0.1', '--no-stats') as (_, port):
        done = demo('load', '--port', str(port), '--connections', '100', '--rate', '200', '--sources', '3')
    assert done.returncode == 0 and not done.stderr
    assert re.search(r'Total: connections 100 requests 100 replies 100 test-duration 0\.\d+ s', done.stdout)
    assert re.search(r'Connection rate: [\d.]+ conn/s \(<=\d+ concurrent connections\)', done.stdout)
    least, median = map(
        float, re.search(r'Reply time \[ms\]: min (\S+) median (\S+) p99 \S+ max', done.stdout).groups()
    )
    assert 100 <= least <= median
    assert done.stdout.endswith('Errors: total 0\n')


def test_load_counts_errors_by_kind():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        free = taken.getsockname()[1]
    done = demo('load', '--port', str(free), '--connections', '10', '--rate', '1000')
    assert done.returncode == 1
    assert 'Errors: total 10 ECONNREFUSED 10' in done.stdout
    assert re.fullmatch(rf'reactor\.demo: no connection to 127\.0\.0\.1 port {free} could be opened; .*\n', done.stderr)
    with serving('--delay', '0', '--no-stats') as (_, port):
        done = demo('load', '--port', str(port), '--connections', '5', '--calls', '2')
    assert done.returncode == 1
    assert 'replies 5 ' in done.stdout and 'Errors: total 5 ' in done.stdout


def test_the_reply_times_of_load_show_a_server_that_falls_behind():
    with serving('--delay', '5', '--no-stats') as (_, port):
        done = demo('load', '--port', str(port), '--connections', '3', '--timeout', '0.5')
    assert done.returncode == 1
    assert 'Errors: total 3 reply-timeout 3' in done.stdout


def test_a_load_that_is_interrupted_reports_its_open_connections_as_errors():
    with Reactor() as r:
        done: list[bool] = []
        listener = r.listen_tcp('127.0.0.1', 0)
        load = Load(r, *listener.address[:2], connections=9, rate=5, calls=1, timeout=30, sources=[],
                    on_done=lambda: done.append(True))  # fmt: skip
        run_until(r, lambda: load.requests >= 2)
        load.stop()
        run_until(r, lambda: done)
        assert load.errors == {'interrupted': load.attempted} and load.stopped


def descriptors(limit):
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


KEYS = {'connections', 'answered', 'errors', 'peak_open', 'seconds', 'rate', 'reply_time', 'server', 'load',
        'answers_after_release', 'kernel_memory_bytes', 'idle_cpu', 'own_network', 'selector', 'python'}  # fmt: skip


def test_the_experiment_needs_no_installation_and_no_environment():
    done = demo('--connections', '300', '--rate', '1000', '--delay', '0.5', '--json',
                env={'PATH': os.environ['PATH']})  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= KEYS
    assert result['connections'] == result['answered'] == result['peak_open'] == 300
    assert result['errors'] == 0 and result['idle_cpu'] is None
    assert 0.5 <= result['reply_time']['p50'] <= result['reply_time']['p99'] <= result['reply_time']['max']
    assert result['server'].keys() == {
        'processes', 'memory', 'memory_bytes', 'base_memory_bytes', 'bytes_per_connection', 'cpu_us_per_connection'
    }  # fmt: skip
    assert result['server']['memory_bytes'] > result['server']['base_memory_bytes'] > 0
    assert 'answered 300' in done.stderr


def test_the_experiment_prints_one_table():
    done = demo('--connections', '50', '--rate', '1000', '--delay', '0.2', '--quiet')
    assert done.returncode == 0 and not done.stderr
    assert 'open at once   50 of 50 connections\nanswered       50\nerrors         0\n' in done.stdout


@pytest.mark.parametrize('limit', [20, 32, 64])
@pytest.mark.parametrize('command', [['serve', '--port', '0'], ['load', '--port', '9'], []], ids=' '.join)
def test_too_few_descriptors_are_reported_in_one_sentence_that_says_what_to_do(command, limit):
    done = demo(*command, preexec_fn=descriptors(limit))
    assert (done.returncode, done.stdout) == (1, '')
    assert len(done.stderr.splitlines()) == 1 and f'only {limit} descriptors' in done.stderr
    assert 'ulimit -Hn' in done.stderr


@pytest.mark.parametrize('limit', [65, 66, 68, 96])
def test_more_connections_than_descriptors_are_refused_with_the_largest_number_that_fits(limit):
    small = ['--delay', '0.1', '--rate', '500', '--json', '--quiet']
    done = demo('--connections', '1000', *small, preexec_fn=descriptors(limit))
    assert (done.returncode, done.stdout) == (1, '')
    found = re.fullmatch(
        r'reactor\.demo: 1,000 connections do not fit, because a process can open only (\d+) here '
        r'\(see `ulimit -Hn`\); at most (\d+) do\n',
        done.stderr,
    )
    assert found, done.stderr
    assert int(found[1]) == limit - 64 <= int(found[2]) < 1000
    if limit < 96:  # with more processes this takes long
        done = demo('--connections', found[2], *small, preexec_fn=descriptors(limit))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)['peak_open'] == int(found[2])


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='this system does not report PSS')
def test_memory_is_the_proportional_set_size_and_pages_shared_by_processes_count_once():
    done = demo('--connections', '60', '--delay', '0.5', '--json', '--quiet', preexec_fn=descriptors(84))
    server = json.loads(done.stdout)['server']
    assert server['memory'] == 'PSS' and server['processes'] > 3
    resident, proportional = psutil.Process().memory_info().rss, psutil.Process().memory_full_info().pss
    assert total_memory([os.getpid()] * 2, 'PSS') == pytest.approx(2 * proportional, rel=0.05)
    assert total_memory([os.getpid()], 'RSS') == pytest.approx(resident, rel=0.05)
    printed = demo('--connections', '5', '--delay', '0', '--quiet').stdout
    assert re.search(r'\nserver memory  [\d.]+ MB \(PSS\) in 1 process, ', printed)


def test_without_pss_memory_is_reported_as_rss(monkeypatch):
    monkeypatch.setattr('reactor.demo.memory.proportional_memory', {}.get)
    assert memory_kind() == 'RSS'


def test_rate_counts_only_connections_that_were_answered():
    r = Reactor()
    ended = Experiment(r, plan(10, 10, 0, 10), rate=10, delay=0, hold=0, progress=Progress(True))
    server, load = SimpleNamespace(status={'cpu': 1.0}, base_cpu=0.5), SimpleNamespace()
    load.status = {'opened': 2.0, 'reply_times': [0.1] * 4, 'replied': [1.0] * 4, 'errors': {'ECONNREFUSED': 6}}
    ended.servers, ended.loads, ended.released, ended.peak_open = [server], [load], 0.0, 4
    ended.finish()
    r.close()
    assert ended.result['rate'] == 2.0
    assert ended.result['server']['cpu_us_per_connection'] == 125_000
    assert 'opened at      2 a second, without those that failed' in table(ended.result, 0)


def test_an_experiment_without_a_single_connection_still_has_a_table():
    r = Reactor()
    ended = Experiment(r, plan(3, 10, 0, 10), rate=10, delay=0, hold=0, progress=Progress(True))
    server, load = SimpleNamespace(status={'cpu': 1.0}, base_cpu=0.5), SimpleNamespace()
    load.status = {'opened': 0.0, 'reply_times': [], 'replied': [], 'errors': {'ECONNREFUSED': 3}}
    ended.servers, ended.loads, ended.released = [server], [load], 0.0
    ended.finish()
    r.close()
    assert 'open at once   0 of 3 connections\nanswered       0\nerrors         3, 3 ECONNREFUSED\n' in table(
        ended.result, 0
    )


def test_the_experiment_starts_enough_processes_for_the_descriptor_limit():
    done = demo(
        '--connections', '300', '--rate', '2000', '--delay', '1', '--json', '--quiet', preexec_fn=descriptors(160)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result['peak_open'] == result['answered'] == 300
    assert result['server']['processes'] == 6  # each for 50 connections, and six deviations more


def test_answers_wait_until_all_connections_are_open():
    done = demo('--connections', '60', '--rate', '60', '--delay', '0.2', '--quiet')
    assert done.returncode == 0, done.stderr
    assert re.search(r'the answers waited (0\.[6-9]|[1-9]\.\d) s until all were open', done.stdout)


def children_of(process, count):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        if len(children) == count:
            return children
        time.sleep(0.02)
    raise AssertionError('its processes did not start')


@contextmanager
def experiment(*options, children=2):
    process = subprocess.Popen([*DEMO, '--connections', '20', '--rate', '100', '--delay', '60', *options],
                               cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    try:
        yield process, children_of(process, children)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    'signum, status, reason',
    [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 1, 'ended by SIGTERM'), (signal.SIGKILL, -9, '')],
)
def test_no_process_is_left_behind(signum, status, reason):
    with experiment() as (process, children):
        process.send_signal(signum)
        assert process.wait(timeout=20) == status
        if reason:
            assert process.stderr.read().endswith(f'reactor.demo: {reason}\n')
        assert psutil.wait_procs(children, timeout=20)[1] == []


@pytest.mark.parametrize('children', [1, 2])
def test_ctrl_c_on_the_terminal_while_the_processes_start_leaves_none_and_prints_no_traceback(children):
    with experiment('--quiet', children=children) as (process, started):
        os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to the whole group
        assert process.wait(timeout=20) == 130
        assert psutil.wait_procs(started, timeout=20)[1] == []
        assert process.stderr.read() == 'reactor.demo: interrupted\n'


def test_the_experiment_reports_that_one_of_its_processes_died():
    with experiment() as (process, children):
        children[0].kill()
        assert process.wait(timeout=20) == 1
        assert re.search(r'process \(pid \d+\) ended early', process.stderr.read())
        assert psutil.wait_procs(children, timeout=20)[1] == []
