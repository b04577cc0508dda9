"""Tests of perf/compare/: it runs and writes valid files, and all peers do the same work. Nothing is timed here."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

PERF = Path(__file__).parents[2] / 'perf'
LONGEST_PEER = {'.py': 140, '.js': 80, '.c': 160}  # the most lines that a peer's program may have

if sys.platform != 'linux':
    pytest.skip('perf.compare reads CPU time and memory from Linux', allow_module_level=True)


def compare(*args):
    command = [sys.executable, '-m', 'perf.compare', *map(str, args)]
    environment = {**os.environ, 'PYTHONPATH': str(PERF.parent)}
    return subprocess.run(command, capture_output=True, env=environment, text=True, timeout=120, check=False)


QUICK = ('--quick', '--only', 'keepalive', '--peers', 'reactor,asyncio', '--rounds', 1, '--seconds', 0.3)


@pytest.mark.slow
def test_a_quick_run_writes_valid_files(tmp_path):
    done = compare(*QUICK, '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'keepalive' in done.stdout and 'asyncio' in done.stdout
    result = json.loads((tmp_path / 'compare.json').read_text())
    assert {'date', 'commit', 'machine', 'versions', 'workloads', 'left_out'} <= result.keys()
    workload = result['workloads']['keepalive']
    assert workload['failures'] == {}
    for name in ('requests_per_s', 'cpu_us_per_request', 'wakeups_per_request'):
        peers = workload['metrics'][name]['peers']
        assert peers['reactor']['figure']['median'] > 0
        assert peers['reactor']['ratio']['median'] == 1
        assert peers['asyncio']['ratio']['median'] > 0
    (line,) = (tmp_path / 'rounds.jsonl').read_text().splitlines()
    assert json.loads(line)['figures'].keys() == {'reactor', 'asyncio'}
    for peer in 'reactor', 'asyncio':  # in a random order, and then in the reverse order
        assert done.stderr.count(f'round 1 keepalive     {peer}') == 2
    charts = list(tmp_path.glob('keepalive-*.svg'))
    assert len(charts) >= 3
    for chart in charts:
        assert ElementTree.parse(chart).getroot().tag == '{http://www.w3.org/2000/svg}svg'


def test_a_resumed_run_measures_only_the_remaining_rounds(tmp_path):
    from perf.compare.rounds import Rounds

    settings, path = {'seconds': 3}, tmp_path / 'rounds.jsonl'
    Rounds(path, settings, False).add('keepalive', 0, {'reactor': {'p50_us': 1}}, {})
    again = Rounds(path, settings, True)
    assert again.has('keepalive', 0) and not again.has('keepalive', 1) and not again.has('churn', 0)
    assert again.figures('keepalive') == [{'reactor': {'p50_us': 1}}]
    with pytest.raises(SystemExit, match='measured with'):
        Rounds(path, {'seconds': 1}, True)
    Rounds(path, settings, False)
    assert path.read_text() == ''


def test_ratios_are_computed_within_a_round():
    from perf.compare.ratios import ratios, summary

    rounds = [{'a': {'x': 2.0}, 'b': {'x': 1.0}}, {'a': {'x': 30.0}, 'b': {'x': 10.0}}, {'a': {'x': 5.0}}]
    assert ratios(rounds, 'x', 'a', 'b') == [2.0, 3.0]
    assert ratios(rounds, 'x', 'a', 'nobody') == []
    assert summary([3.0, 1.0, 8.0]) == {'median': 3.0, 'min': 1.0, 'max': 8.0}
    assert summary([]) is None


def test_a_ratio_to_zero_is_left_out():
    from perf.compare.ratios import ratios

    assert ratios([{'a': {'x': 2.0}, 'b': {'x': 0.0}}], 'x', 'a', 'b') == []


def test_peers_are_measured_in_a_random_order_and_back_and_the_order_is_the_same_in_each_run():
    from perf.compare.workloads.workload import drawn

    orders = [drawn('abcd', 'keepalive', index, 2) for index in range(50)]
    assert all(order == order[::-1] and sorted(order) == sorted('aabbccdd') for order in orders)
    assert orders == [drawn('abcd', 'keepalive', index, 2) for index in range(50)]
    assert len({tuple(order) for order in orders}) > 10
    assert {order[0] for order in orders} == set('abcd')
    assert sorted(drawn('abcd', 'idle', 0, 1)) == list('abcd')


def test_the_figure_of_a_round_is_the_mean_of_both_passes():
    from perf.compare.workloads.workload import mean

    assert mean([{'x': 1.0, 'y': 8.0}, {'x': 3.0, 'y': 4.0}]) == {'x': 2.0, 'y': 6.0}


def costs(wakeups, each, base):
    return {'wakeups': wakeups, 'cost': base + each * wakeups, 'speed': 1 / (base + each * wakeups)}


@pytest.mark.parametrize('name, better', [('cost', 'less'), ('speed', 'more')])
def test_a_comparison_at_equal_wakeups_removes_what_the_additional_wakeups_cost(name, better):
    from perf.compare.ratios import at_equal_wakeups
    from perf.compare.workloads.workload import Metric

    metric = Metric(name, 'µs', better, wakeups='wakeups')
    # Both pay 18 for a wake-up. Without wake-ups ours pays 44 and theirs 40, and ours wakes up more often.
    rounds = [{'ours': costs(0.5 + n / 10, 18, 44), 'theirs': costs(0.2 + n / 7, 18, 40)} for n in range(9)]
    expected = [(44 + 18 * (0.5 + n / 10)) / (40 + 18 * (0.5 + n / 10)) for n in range(9)]
    if better == 'more':
        expected = [1 / ratio for ratio in expected]
    assert at_equal_wakeups(rounds, metric, 'ours', 'theirs') == pytest.approx(expected)
    assert at_equal_wakeups([*rounds, {'ours': rounds[0]['ours']}], metric, 'ours', 'theirs') == pytest.approx(expected)


def test_a_server_that_answers_nothing_fails_the_measurement():
    from perf.common.server import Failed
    from perf.compare.workloads.workload import Spent

    class Idle:
        def cpu(self):
            return 1.0

        wakeups = cpu

    with pytest.raises(Failed, match='no request was answered'):
        Spent(Idle()).per('request', 0)


def test_equal_numbers_of_wakeups_change_no_ratio():
    from perf.compare.ratios import at_equal_wakeups
    from perf.compare.workloads.workload import Metric

    rounds = [{'ours': costs(1, 0, 44 + n), 'theirs': costs(1, 0, 40)} for n in range(3)]
    found = at_equal_wakeups(rounds, Metric('cost', 'µs', wakeups='wakeups'), 'ours', 'theirs')
    assert found == pytest.approx([44 / 40, 45 / 40, 46 / 40])
    assert at_equal_wakeups([], Metric('cost', 'µs', wakeups='wakeups'), 'ours', 'theirs') == []


def test_quantiles_are_measured_values():
    from perf.common.arithmetic import quantile

    values = [float(n) for n in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1)) == (50, 99, 100)
    assert quantile([7.0], 0.99) == 7


def test_each_peer_is_first_in_one_of_the_rounds():
    from perf.common.arithmetic import rotated

    assert [rotated(list('abc'), turn) for turn in range(4)] == [list('abc'), list('bca'), list('cab'), list('abc')]
    assert rotated([], 3) == []


def test_the_table_printed_by_strace_can_be_read():
    from perf.compare.syscalls import total

    with_errors = '% time  seconds  usecs/call  calls  errors syscall\n100.00    0.1    7      2130        30 total\n'
    without = '100.00    0.000000           0        29           total\n'
    assert (total(with_errors), total(without)) == (2130, 29)


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    from perf.compare import __main__ as command
    from perf.compare.known_peers import Peer

    absent = Peer('absent', {'keepalive'}, needs='no_such_module')
    monkeypatch.setattr(command, 'peers', lambda: [Peer('reactor', {'keepalive'}), absent])
    found, left_out = command.chosen_peers(None)
    assert [peer.name for peer in found] == ['reactor']
    assert 'no_such_module' in left_out['absent']
    assert 'left out: absent' in capsys.readouterr().err


def test_the_reactor_on_another_interpreter_is_a_peer_named_for_its_version():
    from perf.compare import __main__ as command

    found, _ = command.chosen_peers(['asyncio'], [sys.executable])
    version = '.'.join(map(str, sys.version_info[:3]))
    assert [peer.name for peer in found] == [f'reactor-{version}', 'reactor', 'asyncio']
    assert found[0].command[1:] == found[1].command[1:] and found[0].workloads == found[1].workloads


def test_an_unknown_name_is_a_usage_error(tmp_path):
    done = compare('--only', 'keepalife', '--out', tmp_path)
    assert done.returncode == 2 and 'keepalife' in done.stderr and 'keepalive' in done.stderr


@pytest.mark.parametrize('path', sorted((PERF / 'compare' / 'peers').glob('*.*')), ids=lambda path: path.name)
def test_a_peer_is_short(path):
    if path.name not in ('common.py', 'loop_figures.py'):
        assert len(path.read_text().splitlines()) < LONGEST_PEER[path.suffix]


def every(workloads_of):
    """Parametrize a test with (peer, workload) for all known peers, installed or not."""
    from perf.compare.known_peers import peers

    cases = [(peer, workload) for peer in peers() for workload in sorted(workloads_of(peer))]
    return pytest.mark.parametrize('peer, workload', cases, ids=[f'{peer.name}-{name}' for peer, name in cases])


def skip_if_missing(peer):
    if reason := peer.missing():
        pytest.skip(f'{peer.name} is left out: {reason}')


@pytest.mark.slow
@every(lambda peer: peer.workloads - {'tls', 'pump', 'pending', 'udp'})
def test_all_peers_send_the_same_replies(peer, workload):
    from perf.common.server import Server
    from perf.compare.peers import common
    from perf.loads.sockets import REQUEST, TIMEOUT

    expected = {
        'keepalive': common.REPLY,
        'churn': common.LAST_REPLY,
        'defer': common.LAST_REPLY,
        'seed': common.LATE_REPLY,
        'large': common.LARGE_REPLY,
        'broadcast': common.MESSAGE,
        'echo': REQUEST,
        'twice': common.REPLY,
        'small': common.SMALL * common.SMALLS,
        'pipeline': 3 * common.REPLY,
        'unix': common.REPLY,
        'min_wait': common.REPLY,
    }[workload]
    skip_if_missing(peer)
    family = socket.AF_UNIX if workload == 'unix' else socket.AF_INET
    with Server(peer, workload, None) as server, socket.socket(family) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(server.address if workload == 'unix' else ('127.0.0.1', server.port))
        sock.send(REQUEST * (3 if workload == 'pipeline' else 1))
        received = b''
        while len(received) < len(expected):
            data = sock.recv(1 << 16)
            assert data, received[:200]
            received += data
        assert received == expected
        if workload in ('churn', 'defer', 'seed'):
            assert sock.recv(1) == b''


@pytest.mark.slow
@every(lambda peer: peer.workloads & {'pump'})
def test_all_peers_continue_writing_to_a_slow_reader(peer, workload):
    from perf.common.server import Server
    from perf.compare.peers import common
    from perf.loads.sockets import REQUEST, TIMEOUT, connections

    skip_if_missing(peer)
    with Server(peer, workload, None) as server, connections(server.port, 1) as (sock,):
        sock.settimeout(TIMEOUT)
        sock.send(REQUEST)
        missing = 40 * len(common.CHUNK)
        while missing > 0:
            data = sock.recv(1 << 16)
            assert data == b'c' * len(data) != b''
            missing -= len(data)


@pytest.mark.slow
@every(lambda peer: peer.loop_workloads)
def test_all_loops_yield_every_figure(peer, workload):
    from perf.compare.workloads import WORKLOADS
    from perf.compare.workloads.workload import Window

    skip_if_missing(peer)
    one = WORKLOADS[workload]
    figures = one.measure(peer, {}, Window(seconds=0.1, scale=0.002, server_core=None))
    assert figures.keys() == {metric.name for metric in one.metrics}
    assert all(value > 0 for value in figures.values())


@pytest.mark.slow
@every(lambda peer: peer.workloads & {'udp'})
def test_all_peers_echo_datagrams(peer, workload):
    from perf.common.server import Server

    skip_if_missing(peer)
    with Server(peer, workload, None) as server, socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b'once', ('127.0.0.1', server.port))
        assert sock.recv(100) == b'once'


@pytest.fixture
def answers():
    """A server in a thread: `answers(fn)` calls fn(sock) for each connection, and returns its port."""
    if not shutil.which('cc'):
        pytest.skip('NOT TESTED: the load is written in C, and the command cc is not installed')
    listening = socket.create_server(('127.0.0.1', 0))

    def start(fn):
        def accept():
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=[sock], daemon=True).start()

        def answer(sock):
            with sock, suppress(OSError):  # a load ends without waiting for the last replies
                fn(sock)

        threading.Thread(target=accept, daemon=True).start()
        return listening.getsockname()[1]

    with closing(listening):
        yield start
        listening.shutdown(socket.SHUT_RDWR)


def echo(sock):
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def test_the_load_counts_each_reply_once(answers):
    from perf.loads.native import load

    seen = []

    def count(sock):
        while data := sock.recv(1 << 16):
            seen.append(len(data))
            sock.sendall(data)

    found = load(answers(count), 0.2, connections=1, request=1000, reply=1000)
    assert 0.2 <= found['seconds'] < 1
    assert 1 <= found['answered'] == sum(seen) / 1000, 'the last reply is waited for'
    assert 0 < found['p50_us'] <= found['p99_us'] <= found['p999_us']


def test_the_load_sends_several_requests_at_once_and_waits_for_all_their_replies(answers):
    from perf.loads.native import load

    found = load(answers(echo), 0.1, connections=3, request=10, reply=10, depth=16)
    assert found['answered'] and found['answered'] % 16 == 0


def test_the_load_sends_a_fixed_number_of_requests_if_it_has_a_rate(answers):
    from perf.loads.native import load

    found = load(answers(echo), 0.5, connections=5, request=10, reply=10, rate=200)
    assert found['answered'] == 100


def test_a_time_counts_from_when_the_request_was_due(answers):
    from perf.loads.native import load

    waited = threading.Event()

    def late(sock):
        while data := sock.recv(100):
            waited.wait(0.3)  # the requests that are due in this time cannot be sent
            waited.set()
            sock.sendall(data)

    found = load(answers(late), 0.5, connections=1, request=10, reply=10, rate=100)
    assert found['answered'] == 50
    assert found['p50_us'] > 30_000, 'half of the requests were due while the server waited'


def test_a_load_opens_a_connection_for_each_request(answers):
    from perf.loads.native import load

    opened = []

    def once(sock):
        opened.append(sock)
        sock.recv(1 << 16)
        sock.sendall(b'x' * 100)

    found = load(answers(once), 0.2, connections=2, reconnect=True)
    assert found['answered'] == len(opened)


@pytest.mark.parametrize('options', [{}, {'reconnect': True}])
def test_a_server_that_closes_without_a_reply_fails_the_load(answers, options):
    from perf.common.server import Failed
    from perf.loads.native import load

    with pytest.raises(Failed, match=r'closed a connection too early|reset'):
        load(answers(lambda sock: sock.recv(10)), 0.2, connections=1, **options)


def test_replies_that_are_missing_at_a_fixed_rate_fail_the_load(answers):
    from perf.common.server import Failed
    from perf.loads.native import load

    def once(sock):
        sock.sendall(sock.recv(100))
        sock.recv(100)
        sock.recv(100)

    with pytest.raises(Failed, match='2 answers to 20 requests'):
        load(answers(once), 0.2, connections=2, request=10, reply=10, rate=100)
