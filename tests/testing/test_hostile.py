"""The profile 'hostile': each of its faults strikes, is named in the report, and can be shrunk to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import wraps
from itertools import pairwise

import pytest

from reactor import ReactorError, ReadTimeout
from reactor.testing import Simulation, SimulationFailed, shrinking
from reactor.testing.faults import ALL, HOSTILE, SITES, Faults, parse_strikes
from reactor.testing.fixture import run_and_shrink
from reactor.testing.hostile import PARTITION, RETRANSMISSION
from reactor.testing.seeds import run_seed
from tests.helpers.hostile_servers import BUGS, half_a_result, peer_never_missed

SEEDS = 100


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a busy machine, do not end the search early."""
    monkeypatch.setattr(shrinking, 'MOST_SECONDS', 60)


def with_bug(program):
    return wraps(program)(lambda world: program(world, fixed=False))


def failure(program, seed, **options):
    try:
        Simulation(seed, **options).run_program(program)
    except SimulationFailed as failed:
        return failed
    return None


def failures(program, seeds=range(SEEDS), **options):
    found = (failure(program, seed, **options) for seed in seeds)
    return [failed for failed in found if failed is not None]


def shrunk(program, **options):
    """Return the failure of the smaller run of the first seed that fails."""
    seed = failures(program, **options)[0].simulation.seed
    with pytest.raises(SimulationFailed) as failed:
        run_and_shrink(program, seed, options)
    return failed.value


@pytest.mark.parametrize('bug', BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found_within_100_seeds_and_is_shrunk_to_its_fault(bug):
    failed = shrunk(with_bug(bug), profile='hostile')
    sites = parse_strikes(failed.simulation.given['only']).keys()
    assert sites & BUGS[bug], failed
    [site] = sites & BUGS[bug]
    assert f' fault {site}@' in str(failed)
    assert HOSTILE[site][1] in str(failed)


@pytest.mark.slow
@pytest.mark.parametrize('bug', BUGS, ids=lambda bug: bug.__name__)
def test_the_program_passes_when_its_bug_is_fixed(bug):
    for seed in range(SEEDS):
        Simulation(seed, profile='hostile').run_program(lambda world: bug(world, fixed=True))


@pytest.mark.slow
@pytest.mark.parametrize('bug', [peer_never_missed, half_a_result], ids=lambda bug: bug.__name__)
def test_the_default_profile_never_finds_it(bug):
    assert not failures(with_bug(bug), range(150))


@pytest.mark.slow
@pytest.mark.parametrize('bug', BUGS, ids=lambda bug: bug.__name__)
def test_each_fault_strikes_alone(bug):
    for site in BUGS[bug]:
        found = failures(with_bug(bug), range(40), profile='hostile', faults=(site,))
        assert found, site
        assert all(f' fault {site}@' in str(failed) for failed in found)


# -- the profile


def test_a_fault_of_the_hostile_profile_needs_the_profile():
    with pytest.raises(ValueError, match=r"'default' has no faults peer\.vanishes; pass profile='hostile'"):
        Simulation(0, faults=('peer.vanishes',))
    with pytest.raises(ValueError, match="no profile 'harsh'; choose one of default, hostile"):
        Simulation(0, profile='harsh')
    assert not SITES.keys() & HOSTILE.keys()


def test_the_faults_of_the_default_profile_are_as_likely_in_both_profiles():
    for seed in range(50):
        default, hostile = Faults(seed).on, Faults(seed, profile='hostile').on
        assert {name: site.often for name, site in hostile.items() if name in SITES} == {
            name: site.often for name, site in default.items()
        }
    counts = [len(Faults(seed, profile='hostile').on.keys() & HOSTILE.keys()) for seed in range(1000)]
    assert 0.4 < sum(counts) / len(HOSTILE) / 1000 < 0.5


def test_a_report_carries_the_profile_to_the_command_line_and_to_the_test(tmp_path):
    failed = shrunk(with_bug(peer_never_missed), profile='hostile')
    only = failed.simulation.given['only']
    seed = failed.simulation.seed
    assert f'repeat: --seed {seed} --profile hostile --faults {",".join(only)}' in str(failed)
    [line] = [line for line in str(failed).splitlines() if 'simulate(program, seeds=' in line]
    assert "profile='hostile'" in line
    assert f'seeds=[{seed}]' in line


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=100)


def test_the_command_line_runs_and_repeats_a_hostile_seed():
    name = f'{peer_never_missed.__module__}:vanished_client'
    many = run('-m', 'reactor.testing', name, '--profile', 'hostile', '--seeds', '40', '--stop')
    line, repeat = [line for line in many.stdout.splitlines() if not line.startswith('40 of')][:2]
    assert ' --profile hostile --faults peer.vanishes@' in repeat
    once = run(*repeat.partition('python ')[2].split())
    assert once.returncode == many.returncode == 1
    assert f'\nfailed: {line}\n' in once.stdout
    assert run('-m', 'reactor.testing', name, '--seeds', '40').returncode == 0


def test_pytest_runs_a_hostile_seed(tmp_path):
    (tmp_path / 'conftest.py').write_text("pytest_plugins = ['reactor.testing.fixture']\n")
    file = tmp_path / 'test_vanished.py'
    file.write_text(
        f'from {peer_never_missed.__module__} import vanished_client\n'
        'def test_all(simulate):\n    simulate(vanished_client)\n'
    )
    pytest_run = ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--rootdir={tmp_path}', '-c', '/dev/null', str(file)]
    assert run(*pytest_run).returncode == 0
    hostile = run(*pytest_run, '--profile', 'hostile')
    assert hostile.returncode == 1
    assert ' --profile hostile --faults peer.vanishes@' in hostile.stdout


# -- vanished peers and partitions


def vanished(world, seconds=None, **options):
    """Make a connection that vanishes at its first bytes; return a dict of what its server sees and when."""
    seen = {}

    def on_close(conn, exc):
        seen['exc'], seen['after'] = exc, world.r.now - seen['began']
        server.close()
        client.abort()

    def on_connect(conn):
        seen['began'] = world.r.now
        if seconds is not None:
            world.r.call_later(seconds, conn.write, b'bytes')

    server = world.r.listen_tcp(*world.address(), on_connect=on_connect, on_close=on_close, **options)
    client = world.r.connect_tcp(*server.address)
    client.write(b'hello')
    return seen


def run_vanished(seconds=None, **options):
    seen = {}

    def program(world):
        seen.update(now=vanished(world, seconds, **options))

    simulation = Simulation(
        1, selector='epoll', profile='hostile', faults=('peer.vanishes',), only=('peer.vanishes@1',), calm=20_000
    )
    simulation.kernel.faults.on = {}
    for site in simulation.could_strike.values():
        site.often = 1.0
    simulation.run_program(program)
    return seen['now']


def test_a_peer_that_vanishes_is_noticed_by_unacknowledged_bytes():
    seen = run_vanished(seconds=100)
    assert isinstance(seen['exc'], TimeoutError)
    assert seen['after'] == pytest.approx(100 + RETRANSMISSION / 1e9, abs=1)


def test_a_peer_that_vanishes_is_noticed_by_keepalive():
    seen = run_vanished(keepalive=(60, 10, 5))
    assert isinstance(seen['exc'], TimeoutError)
    assert seen['after'] == pytest.approx(110, abs=1)


def test_a_peer_that_vanishes_is_noticed_by_a_time_limit():
    seen = run_vanished(read_timeout=300)
    assert isinstance(seen['exc'], ReadTimeout)
    assert seen['after'] == pytest.approx(300, abs=1)


def test_a_peer_that_vanishes_is_never_noticed_by_a_server_without_a_limit():
    with pytest.raises(SimulationFailed, match=r'liveness: (client|server) 1 still waits, 3600 s after') as failed:
        run_vanished()
    assert 'for a peer that has vanished without a word (peer.vanishes@1): set idle_timeout=' in str(failed.value)


def test_bytes_for_a_vanished_peer_are_accepted_until_the_buffer_is_full():
    unread = []

    def program(world):
        got = bytearray()

        def on_connect(conn):
            conn.write(bytes(10_000_000))
            world.r.call_later(100, look, conn)

        def look(conn):
            if conn.buffered:
                unread.append(10_000_000 - conn.buffered - len(got))
            conn.abort()
            server.close()

        server = world.r.listen_tcp(*world.address(), on_connect=on_connect)
        world.r.connect_tcp(*server.address, lambda conn, data: got.extend(data), idle_timeout=200)

    for seed in range(20):
        Simulation(seed, selector='epoll', profile='hostile', faults=('peer.vanishes',), calm=1000).run_program(program)
    assert len(unread) > 5
    assert max(unread) > 0
    assert all(0 <= count <= 2 * 262_144 for count in unread)


def test_with_keepalive_for_all_a_vanished_connection_ends_when_the_faults_stop():
    bug = with_bug(peer_never_missed)
    assert failures(bug, profile='hostile')
    assert not failures(bug, profile='hostile', keepalive=True)


def test_in_a_partition_bytes_wait_connects_get_no_answer_and_datagrams_are_lost():
    seen = []

    def program(world):
        r = world.r
        server = r.listen_tcp(*world.address(), lambda conn, data: seen.append(('bytes', r.now - began, data)))
        udp = r.bind_udp(*world.address(), lambda sock, data, sender: seen.append(('datagram', r.now - began, data)))
        sender = r.connect_udp(*udp.address)
        client = r.connect_tcp(*server.address)
        began = r.now
        r.call_later(1, client.write, b'one')  # the partition begins
        r.call_later(10, sender.send, b'lost')
        r.call_later(
            20,
            lambda: r.connect_tcp(
                *server.address, on_close=lambda conn, exc: seen.append(('connect', exc)), timeout=30
            ),
        )
        r.call_later(PARTITION[1] + 60, sender.send, b'received')
        r.call_later(PARTITION[1] + 100, lambda: [each.close() for each in (client, server, sender, udp)])

    def cut(seed):
        seen.clear()
        simulation = Simulation(
            seed, profile='hostile', faults=('network.partition',), only=('network.partition@1',), calm=5000
        )
        simulation.could_strike['network.partition'].often = 1.0
        simulation.run_program(program)
        [seconds] = [int(what.split()[3]) for _, what, _, _ in simulation.kernel.trace if 'a partition of' in what]
        return seconds

    seconds = next(seconds for seconds in map(cut, range(20)) if 60 < seconds < 800)
    kinds = {kind: rest for kind, *rest in seen}
    assert kinds['bytes'][1] == b'one'
    assert seconds <= kinds['bytes'][0] <= seconds + 5
    assert isinstance(kinds['connect'][0], TimeoutError)
    assert [data for kind, *rest in seen if kind == 'datagram' for data in rest[1:]] == [b'received']


def test_a_long_partition_ends_a_connection_with_unacknowledged_bytes():
    ended = []

    def program(world):
        server = world.r.listen_tcp(*world.address(), lambda conn, data: None, idle_timeout=3000)
        client = world.r.connect_tcp(
            *server.address, on_close=lambda conn, exc: ended.append((exc, world.r.now - began))
        )
        began = world.r.now
        client.write(b'hello')
        world.r.call_later(2000, lambda: (client.close(), server.close()))

    for seed in range(200):
        Simulation(seed, profile='hostile', faults=('network.partition',), calm=5000).run_program(program)
    timed_out = [after for exc, after in ended if type(exc) is TimeoutError]
    assert timed_out
    assert all(after == pytest.approx(RETRANSMISSION / 1e9, abs=5) for after in timed_out)


# -- stalls near the limits of the program, and trickling bytes


@pytest.mark.slow
def test_a_read_timeout_fires_in_a_good_share_of_the_seeds():
    def program(world):
        def on_close(conn, exc):
            ended.append(exc)
            server.close()

        server = world.r.listen_tcp(*world.address(), lambda conn, data: None, on_close=on_close, read_timeout=10)
        client = world.r.connect_tcp(*server.address, idle_timeout=60, timeout=60)
        for second in range(0, 20, 2):
            world.r.call_later(second, lambda: client.closed or client.write(b'more'))
        world.r.call_later(21, client.close)
        world.r.call_later(100, server.close)

    shares = []
    for profile in 'hostile', 'default':
        ended = []
        for seed in range(100):
            Simulation(seed, profile=profile).run_program(program)
        shares.append(sum(isinstance(exc, ReadTimeout) for exc in ended) / 100)
    assert shares[0] > 0.15
    assert shares[1] < 0.05


def test_trickling_bytes_arrive_one_a_second():
    times = []

    def program(world):
        times.clear()
        server = world.r.listen_tcp(*world.address(), lambda conn, data: times.append((world.r.now, data)))
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: server.close())
        client.write(b'0123456789' * 20)
        world.r.call_later(300, client.close)

    for seed in range(50):
        Simulation(seed, selector='epoll', profile='hostile', faults=('network.trickle',), grain=0).run_program(program)
        single = [(now, data) for now, data in times if len(data) == 1]
        if len(single) > 10:
            break
    gaps = [later - now for (now, _), (later, _) in pairwise(single)]
    assert all(gap == pytest.approx(1, abs=0.01) for gap in gaps)
    assert b''.join(data for _, data in times) == b'0123456789' * 20


# -- threads


def threaded(world):
    """Threads and the loop append to one list, in an order that depends on the faults alone."""
    r, seen = world.r, []

    def work(number):
        seen.append(('before', number))
        r.call_soon_threadsafe(seen.append, ('loop', number))
        seen.append(('between', number))
        r.call_soon_threadsafe(seen.append, ('loop again', number))
        return number

    for number in range(6):
        r.run_in_thread(work, number, on_done=lambda result, error: seen.append(('done', result)))
        r.resolve('server.test', lambda found, error: seen.append(('found', found)))
    r.call_later(100, lambda: world.note(repr(seen)))


@pytest.mark.slow
def test_threads_interleave_in_the_same_way_each_time():
    orders = {Simulation(seed, profile='hostile').run_program(threaded).trace_hash() for seed in range(30)}
    assert len(orders) > 20
    for seed in range(30):
        assert Simulation(seed, profile='hostile').run_program(threaded).trace_hash() in orders
    code = (
        'from reactor.testing import Simulation; from tests.testing.test_hostile import threaded;'
        "print([Simulation(seed, profile='hostile').run_program(threaded).trace_hash() for seed in range(5)])"
    )
    first, second = (
        subprocess.run(
            [sys.executable, '-c', code], env={'PYTHONHASHSEED': seed, 'PYTHONPATH': ':'.join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in '12'
    )  # fmt: skip
    assert first == second


def test_the_kernel_knows_which_thread_runs():
    def program(world):
        r, kernel = world.r, world._simulation.kernel

        def work():
            mine = kernel.thread()
            threads.append(mine)
            for _ in range(3):
                refused.append(refuses())
                r.call_soon_threadsafe(look)
                assert kernel.thread() == mine
                assert not kernel.in_main_thread()

        def look():
            assert kernel.thread() == 1
            assert kernel.in_main_thread()
            assert not refuses()

        def refuses():
            try:
                r.resolve('127.0.0.1', lambda found, error: None)
            except ReactorError:
                return True
            return False

        def run_in_thread(fn):
            r.run_in_thread(fn, on_done=lambda result, error: error and world.fail(repr(error)))

        for delay in range(3):
            r.call_later(delay, run_in_thread, work)

    for seed in range(20):
        threads, refused = [], []
        Simulation(seed, profile='hostile', faults=('thread.paused', 'thread.preempts')).run_program(program)
        assert len(refused) == 9
        assert all(refused)
        assert 1 not in threads


def test_the_real_world_is_refused_in_a_thread_too():
    def program(world):
        world.r.run_in_thread(real_clock)

    def real_clock():
        return time.time()

    failed = failure(program, 3, profile='hostile')
    assert 'time.time was called in a simulated run, at ' in str(failed)
    assert failure(program, 3, profile='hostile', allow_real=True) is None


def test_no_real_thread_is_left_after_a_run_that_fails_with_suspended_threads():
    def program(world):
        def work():
            try:
                while True:
                    world.r.call_soon_threadsafe(len, '')
            finally:
                ended.append(True)

        world.r.run_in_thread(work)
        world.r.call_later(1, world.fail, 'the end')

    ended = []
    assert 'the end' in str(failure(program, 3, profile='hostile', faults=('thread.paused',)))
    assert ended
    until = time.monotonic() + 10
    while time.monotonic() < until and any('simulated thread' in each.name for each in threading.enumerate()):
        pass
    assert not [each.name for each in threading.enumerate() if 'simulated thread' in each.name]


def test_a_call_is_not_late_while_the_byte_that_wakes_the_loop_is_on_the_way():
    strikes = 'callback.slow@1', *(f'callback.slow@{number}' for number in range(3, 7)), 'thread.preempts@2'
    run_seed(1714, profile='hostile', only=strikes)  # on Windows, where the wakeup is a TCP connection


@pytest.mark.slow
def test_the_reactors_own_programs_run_in_the_hostile_profile():
    for seed in range(16):
        run_seed(seed, profile='hostile')


def test_every_fault_has_a_description():
    assert all(0 < most <= 1 and text for most, text in ALL.values())
