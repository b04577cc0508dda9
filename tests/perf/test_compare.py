"""Tests of perf/compare/: it runs and writes valid files, and all peers do the same work. Nothing is timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

PERF = Path(__file__).parents[2] / 'perf'
LONGEST_PEER = 80  # the most lines that a peer's program may have

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
    for name in ('requests_per_s', 'cpu_us_per_request', 'p50_us', 'p99_us', 'rss_mb'):
        peers = workload['metrics'][name]['peers']
        assert peers['reactor']['figure']['median'] > 0
        assert peers['reactor']['ratio']['median'] == 1
        assert peers['asyncio']['ratio']['median'] > 0
    (line,) = (tmp_path / 'rounds.jsonl').read_text().splitlines()
    assert json.loads(line)['figures'].keys() == {'reactor', 'asyncio'}
    charts = list(tmp_path.glob('keepalive-*.svg'))
    assert len(charts) >= 5
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


def test_an_unknown_name_is_a_usage_error(tmp_path):
    done = compare('--only', 'keepalife', '--out', tmp_path)
    assert done.returncode == 2 and 'keepalife' in done.stderr and 'keepalive' in done.stderr


@pytest.mark.parametrize('path', sorted((PERF / 'compare' / 'peers').glob('*.*')), ids=lambda path: path.name)
def test_a_peer_is_short(path):
    if path.name not in ('common.py', 'loop_figures.py'):
        assert len(path.read_text().splitlines()) < LONGEST_PEER


def every(workloads_of):
    """Parametrize a test with (peer, workload) for all known peers, installed or not."""
    from perf.compare.known_peers import peers

    cases = [(peer, workload) for peer in peers() for workload in sorted(workloads_of(peer))]
    return pytest.mark.parametrize('peer, workload', cases, ids=[f'{peer.name}-{name}' for peer, name in cases])


def skip_if_missing(peer):
    if reason := peer.missing():
        pytest.skip(f'{peer.name} is left out: {reason}')


@pytest.mark.slow
@every(lambda peer: peer.workloads & {'keepalive', 'churn', 'defer', 'seed', 'large', 'broadcast'})
def test_all_peers_send_the_same_replies(peer, workload):
    from perf.common.server import Server
    from perf.compare.peers import common
    from perf.loads.sockets import REQUEST, TIMEOUT, connections

    expected = {
        'keepalive': common.REPLY,
        'churn': common.LAST_REPLY,
        'defer': common.LAST_REPLY,
        'seed': common.LATE_REPLY,
        'large': common.LARGE_REPLY,
        'broadcast': common.MESSAGE,
    }[workload]
    skip_if_missing(peer)
    with Server(peer, workload, None) as server, connections(server.port, 1) as (sock,):
        sock.settimeout(TIMEOUT)
        sock.send(REQUEST)
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
    figures = one.measure(peer, Window(seconds=0.1, scale=0.002, server_core=None))
    assert figures.keys() == {metric.name for metric in one.metrics}
    assert all(value > 0 for value in figures.values())
