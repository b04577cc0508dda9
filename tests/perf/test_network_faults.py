"""The network cases of perf/faults/: faults happen as configured, damaged data is detected, and nothing is left over.

Namespaces, devices and rules need root. Only little data is transferred, and nothing is timed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parents[2] / 'perf'
TAG = 'test'

if sys.platform != 'linux':
    pytest.skip('network namespaces exist only on Linux', allow_module_level=True)


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def reason():
    """The reason why no network can be set up here, or None."""
    from perf.faults.network.namespaces import missing

    return missing()


@pytest.fixture
def namespaces(reason):
    """The `namespaces` module, if it works here; no namespace may be left after the test.

    Namespaces have machine-wide names, so all tests on this machine that use them take turns.
    """
    if reason is not None:
        pytest.skip(f'NETWORK FAULTS ARE NOT TESTED HERE: {reason}')
    from perf.faults.network import namespaces

    with namespaces.lock(f'{TAG}-turn', wait=True):
        yield namespaces
        assert f'reactor-{TAG}-' not in namespaces.call('ip netns list')


# -- the relay


def times(count, **faults):
    from perf.faults.network.relay import Faults

    made = Faults(1, **faults)
    return [made.times() for _ in range(count)], made.counts


def out(arrivals, until=100.0, **faults):
    """Put a packet into a `Line` every millisecond; return the packets that came out, in order, and the `Line`."""
    from perf.faults.network.relay import Faults, Line

    line, came_out = Line(Faults(1, **faults)), []
    for index in range(arrivals):
        came_out += line.take(index / 1000)
        line.put(index / 1000, index)
    return came_out + line.take(until), line


def test_without_faults_every_packet_arrives_once_immediately_and_in_order():
    assert times(3)[0] == [(0.0,), (0.0,), (0.0,)]
    assert out(1000)[0] == list(range(1000))


def test_faults_depend_only_on_the_seed():
    from perf.faults.network.relay import Faults

    everything = {'loss': 0.2, 'delay': 0.1, 'reorder': 0.3, 'late': 0.05, 'duplicate': 0.2}
    first, again, other = ([faults.times() for _ in range(200)] for faults in (Faults(s, **everything) for s in '112'))
    assert first == again != other


def test_the_configured_share_of_packets_is_lost():
    found, counts = times(10_000, loss=0.1)
    assert 900 < found.count(()) < 1100
    assert counts['packets'] == 10_000 and counts['lost'] == found.count(())


def test_one_fault_does_not_change_which_packets_another_fault_affects():
    lost = [found == () for found in times(1000, loss=0.1)[0]]
    assert [found == () for found in times(1000, loss=0.1, reorder=0.5, duplicate=0.5, delay=1)[0]] == lost


def test_a_delay_keeps_the_order_and_releases_no_packet_early():
    from perf.faults.network.relay import Faults, Line

    line = Line(Faults(1, delay=0.2))
    line.put(10.0, 'a')
    line.put(10.1, 'b')
    assert line.take(10.19) == [] and line.wait(10.1) == pytest.approx(0.1)
    assert line.take(10.2) == ['a'] and line.take(10.3) == ['b']
    assert line.wait(10.3) is None


def test_late_packets_are_overtaken_and_none_is_lost():
    came_out, line = out(1000, reorder=0.25, late=0.01)
    assert came_out != list(range(1000)) and sorted(came_out) == list(range(1000))
    assert 200 < line.faults.counts['late'] < 300
    overtaken_by = [sum(other > packet for other in came_out[:place]) for place, packet in enumerate(came_out)]
    assert 0 < max(overtaken_by) <= 10


def test_duplicated_packets_arrive_twice_in_a_row():
    came_out, line = out(1000, duplicate=0.1)
    doubled = [packet for packet in range(1000) if came_out.count(packet) == 2]
    assert 70 < len(doubled) == line.faults.counts['doubled'] < 130
    assert came_out == sorted(came_out) and len(came_out) == 1000 + len(doubled)


def test_packets_above_the_limit_of_the_line_are_lost_and_counted():
    from perf.faults.network.relay import Faults, Line

    line = Line(Faults(1, delay=1), waiting=3)
    for index in range(5):
        line.put(0.0, index)
    assert line.take(1.0) == [0, 1, 2]
    assert line.faults.counts['overflowed'] == 2


# -- judging the data that was sent and received


def test_all_chunks_differ_and_there_is_a_digest_for_any_length():
    from perf.faults.network.transfer import CHUNK, Pattern

    pattern = Pattern('connect', 10_000)
    chunks = [pattern.chunk(index) for index in range(200)]
    assert len(set(chunks)) == 200 and {len(chunk) for chunk in chunks} == {CHUNK}
    for count in 0, 1, 8, CHUNK - 1, CHUNK, 3 * CHUNK + 5:
        assert pattern.digest(count) == hashlib.sha256(b''.join(chunks)[:count]).hexdigest()
    assert (
        Pattern('listen', 10_000).chunk(0) != Pattern('connect', 10_000).chunk(0) != Pattern('connect', 10_001).chunk(0)
    )


@pytest.fixture
def judged():
    """`judged(listen={...}, connect={...})` judges a connection that is complete except for these changes."""
    from perf.faults.network.exchange import Exchange, stream
    from perf.faults.network.transfer import FIRST_PORT, Pattern

    def judge(**changes):
        exchange = Exchange(None, [stream(1000)], timeout=1)
        for side, (role, other) in enumerate((('connect', 'listen'), ('listen', 'connect'))):
            if changes.get(role, ()) is None:
                continue
            received = changes.get(role, {}).get('received', 1000)
            end = {
                'port': FIRST_PORT,
                'sent': 1000,
                'sent_sha': Pattern(role, FIRST_PORT).digest(1000),
                'received': received,
                'received_sha': Pattern(other, FIRST_PORT).digest(received),
                'connected': True,
                'eof': True,
                'hung': False,
                'error': None,
                'seconds': 2.0,
                'stall': 0.5,
            }
            exchange.ends[side][FIRST_PORT] = {**end, **changes.get(role, {})}
        found = exchange.judge()
        return found['complete'], found['streams_that_differ'], found['unexplained_ends'], found['errors']

    return judge


def test_a_connection_is_complete_when_both_ends_have_everything(judged):
    assert judged() == (1, 0, 0, {})


def test_a_stream_that_was_changed_on_the_way_differs(judged):
    assert judged(listen={'received_sha': hashlib.sha256(b'?').hexdigest()}) == (1, 1, 0, {})


def test_a_broken_connection_differs_unless_the_received_data_is_the_beginning_of_the_sent_data(judged):
    broken = {'received': 500, 'eof': False, 'error': 'ConnectionResetError'}
    assert judged(listen=broken) == (0, 0, 0, {'ConnectionResetError': 1})
    assert judged(listen={**broken, 'received_sha': '?'}) == (0, 1, 0, {'ConnectionResetError': 1})


def test_an_end_that_is_not_reported_or_a_success_without_all_bytes_is_counted(judged):
    assert judged(connect={'received': 999}) == (0, 0, 1, {})
    assert judged(connect={'eof': False}) == (0, 0, 1, {})
    assert judged(listen=None) == (0, 0, 1, {})
    assert judged(connect=None)[2] == 1
    assert judged(connect={'received': 0, 'connected': False, 'error': 'ConnectTimeout'}, listen=None)[2] == 0


def test_steps_are_taken_in_order_when_enough_bytes_have_arrived(monkeypatch):
    from perf.faults.network import exchange

    now, done = [100.0], []
    monkeypatch.setattr(exchange.time, 'monotonic', lambda: now[0])
    steps = [exchange.Step(lambda: done.append('down'), share=0.5), exchange.Step(lambda: done.append('up'), after=30)]
    one = exchange.Exchange(None, [exchange.stream(100)], timeout=1, steps=steps)
    for at, received, expected in (0, 99, []), (1, 100, ['down']), (30, 100, ['down']), (31.5, 100, ['down', 'up']):
        now[0] = 100.0 + at
        one.take_steps(received)
        assert done == expected, at


# -- where no network can be set up


def test_without_the_tools_or_without_root_a_case_says_what_to_do(monkeypatch):
    from perf.faults.cases import BY_NAME
    from perf.faults.network import namespaces

    figure = BY_NAME['M11-loss1']
    monkeypatch.setattr(namespaces.shutil, 'which', lambda command: None)
    assert 'apt-get install iproute2 iptables' in figure.missing()
    monkeypatch.setattr(namespaces.shutil, 'which', lambda command: command)
    monkeypatch.setattr(namespaces.os, 'geteuid', lambda: 1000)
    assert 'run this as root' in figure.missing()


# -- with root: transfers


@pytest.fixture
def measure(namespaces, monkeypatch):
    """Measure a case; all its goals must be met. Times have a wide margin, because the machine may be busy."""
    from perf.faults.network import cases

    monkeypatch.setattr(cases, 'LATE', 60)
    return measured


def measured(figure):
    from perf.faults.case import Run

    figure.tag = TAG
    found = figure.measure(Run())
    missed = [goal.text for goal in figure.goals if not goal.check(found)]
    assert not missed, found
    return found


def test_a_few_megabytes_arrive_complete_when_1_percent_of_the_packets_is_lost(measure):
    from perf.faults.network.cases import Transfer, lost

    found = measure(Transfer('T', 'tiny', 1, size=6_000_000, count=4, loss=0.01, proof=lost(0.01)))
    assert found['complete'] == 4 and found['GB'] == 0.006


def test_data_arrives_complete_when_the_relay_delays_duplicates_and_reorders(measure):
    from perf.faults.network.cases import Transfer

    mixed = {'seed': 1, 'delay': 0.02, 'reorder': 0.1, 'late': 0.01, 'duplicate': 0.05, 'loss': 0.02}
    found = measure(Transfer('T', 'tiny', 1, size=400_000, count=2, relay=mixed))
    assert min(found[name] for name in ('lost', 'late', 'doubled')) > 0


def test_filters_that_refuse_and_filters_that_drop_lead_to_different_errors(measure):
    from perf.faults.network.cases import NoWayIn

    figure = NoWayIn()
    figure.count, figure.limit = 5, 0.2
    measure(figure)


@pytest.mark.scenario(77)
def test_each_time_limit_and_keepalive_detect_a_dead_peer(measure):
    from perf.faults.network.cases import DeadPeer

    figure = DeadPeer(limit=1, keepalive=(1, 1, 1), unlimited=False)
    figure.each, figure.before = 1, 0.3
    found = measure(figure)
    assert {'WriteTimeout': 2, 'ReadTimeout': 2, 'IdleTimeout': 2}.items() <= found['errors'].items()


# -- with root: cleaning up


KEEP_OPEN = """
import sys
from perf.faults.network.namespaces import network
with network('test') as made:
    made.on(0, 'ip link show')
    print('made', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def keeper(namespaces):
    """A process that creates a network and keeps it until the process ends."""
    environment = {**os.environ, 'PYTHONPATH': str(PERF.parent)}
    with subprocess.Popen(
        [sys.executable, '-c', KEEP_OPEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdout.readline() == b'made\n'
        yield process
        process.kill()


def test_a_terminated_run_removes_its_network_and_until_then_no_other_run_can_use_it(keeper, namespaces):
    with pytest.raises(namespaces.Failed, match='another run'), namespaces.network(TAG):
        pass
    assert f'reactor-{TAG}-0' in namespaces.call('ip netns list')
    keeper.terminate()
    assert keeper.wait(20) == 128 + signal.SIGTERM
    assert f'reactor-{TAG}-' not in namespaces.call('ip netns list')


def test_the_network_of_a_killed_run_is_removed_before_the_next_run(keeper, namespaces):
    with subprocess.Popen(
        ['ip', 'netns', 'exec', f'reactor-{TAG}-0', 'sh', '-c', 'echo in; read line'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as left:
        assert left.stdout.readline() == b'in\n'
        keeper.kill()
        keeper.wait()
        assert f'reactor-{TAG}-0' in namespaces.call('ip netns list')
        with namespaces.network(TAG) as made:
            assert left.wait(20) == -signal.SIGKILL
            assert made.counts()['dropped'] == 0
