"""The simulated kernel: a seed always gives the same run, and simulated selectors behave like real ones."""

from __future__ import annotations

import errno
import glob
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from random import Random
from socket import (
    AF_INET,
    AF_UNIX,
    IPPROTO_TCP,
    SHUT_WR,
    SO_LINGER,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)

import pytest

import reactor
from reactor import READ, WRITE, Reactor
from reactor.testing import SimKernel, Simulation, SimulationFailed, runs
from reactor.testing.faults import SITES
from reactor.testing.kernel import PLENTY
from reactor.testing.platforms import KINDS
from reactor.testing.poller import Stuck
from reactor.testing.programs import PROGRAMS, restarts
from reactor.testing.seeds import run_seed

PROJECT = Path(reactor.__file__).parent.parent


@cache
def pythons():
    """Return the supported Python versions that run on this machine; shims without an interpreter do not count."""
    found = {sys.version_info[:2]: sys.executable}
    names = [f'python3.{minor}' for minor in (11, 12, 13)]
    for path in [*names, *glob.glob(os.path.expanduser('~/.pyenv/versions/3.1[123].*/bin/python'))]:
        try:
            said = subprocess.run(
                [path, '-c', 'import ssl, sys; print(*sys.version_info[:2])'], capture_output=True, text=True
            )
        except OSError:
            continue
        if said.returncode == 0:
            major, minor = map(int, said.stdout.split())
            found.setdefault((major, minor), path)
    return list(found.values())


def run_module(*arguments, python=sys.executable, **environment):
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT), **environment}
    command = [python, '-m', 'reactor.testing', *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


# -- a seed always gives the same run


@pytest.mark.parametrize('seed', [3, 17])
def test_a_seed_gives_the_same_trace_in_every_process_and_on_every_python(seed):
    processes = [(sys.executable, '1'), *((python, '2') for python in pythons())]
    traces = {
        run_module('--seed', str(seed), python=python, PYTHONHASHSEED=hash_seed).stdout
        for python, hash_seed in processes
    }
    assert len(traces) == 1
    assert 'no law was broken' in traces.pop()


def test_seeds_differ():
    assert run_seed(1).trace_hash() != run_seed(2).trace_hash()


@pytest.mark.parametrize(('seed', 'system'), [(69460, 'select'), (69460, 'kqueue'), (69588, 'kqueue')])
def test_a_check_knows_what_happens_between_an_end_and_on_close(seed, system):
    """Regression: the checks used to reject a correct end after new time limits were set or a `lifetime` was over."""
    run_seed(seed, selector=system)


@pytest.mark.timeout(600)  # the test computes for a long time
@pytest.mark.slow
def test_every_kind_of_fault_occurs():
    fallen = set()
    for seed in range(400):
        simulation = Simulation(seed)
        faults, falls = simulation.kernel.faults, simulation.kernel.faults.falls
        fallen.update({'descriptors.few'} & simulation.could_strike.keys())

        def noted(site, *details, falls=falls):
            return falls(site, *details) and not fallen.add(site)

        faults.falls = noted
        programs = [*PROGRAMS, restarts]
        simulation.world.random.shuffle(programs)
        simulation.run_program(*programs[:3])
        if SITES.keys() <= fallen:
            return
    raise AssertionError(f'these faults did not occur in 400 seeds: {SITES.keys() - fallen}')


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match=r'recv\.late'):
        SimKernel(faults=('recv.late',))


# -- failures are reported


def test_a_loop_that_would_sleep_for_ever_is_stuck():
    with Reactor(kernel=SimKernel(faults=False)) as r, pytest.raises(Stuck):
        r.run(lambda r: r.listen_tcp('10.0.0.1', 80))


def test_a_run_that_cannot_end_reports_its_seed_and_its_waiting_handles():
    with pytest.raises(SimulationFailed, match=r'(?s)^seed 5, turn .*Listener .*accepting at 10\.0\.0\.1:80'):
        Simulation(5, faults=False).run(lambda r: r.listen_tcp('10.0.0.1', 80))


def test_an_exception_of_a_callback_that_was_not_planted_fails_the_run():
    with pytest.raises(SimulationFailed, match='ZeroDivisionError'):
        Simulation(0, faults=False).run(lambda r: r.call_later(1, lambda: 1 // 0))


def test_an_expectation_that_is_not_met_fails_the_run():
    with pytest.raises(SimulationFailed, match='an answer'):
        Simulation(0, faults=False).run_program(lambda world: world.expect('an answer'))


def test_a_failure_found_by_a_program_fails_the_run():
    with pytest.raises(SimulationFailed, match='the sky is green'):
        Simulation(0, faults=False).run_program(lambda world: world.fail('the sky is green'))


def test_an_hour_takes_no_time():
    simulation = Simulation(0, faults=False)
    simulation.run(lambda r: r.call_later(3600, simulation.world.note, 'an hour later'))
    assert '   3600.' in simulation.kernel.show_trace()


# -- the system


@pytest.fixture(params=KINDS)
def kernel(request):
    return SimKernel(0, selector=request.param, faults=False)


def connected(kernel):
    """Return the two ends of a connection of simulated sockets."""
    server, client = kernel.socket(AF_INET, SOCK_STREAM), kernel.socket(AF_INET, SOCK_STREAM)
    server.bind(('10.0.0.1', 80))
    server.listen()
    assert client.connect_ex(('10.0.0.1', 80)) in kernel.connecting
    pass_time(kernel, 1)
    accepted, _ = server.accept()
    server.close()
    return client, accepted


def pass_time(kernel, seconds):
    selector, bell = kernel.selector(), kernel.socketpair()
    selector.register(bell[0].fileno(), READ)  # on Windows, select cannot wait without a socket
    selector.select(seconds)
    selector.close()
    for each in bell:
        each.close()


def test_descriptors_are_given_out_lowest_first_and_run_out(kernel):
    kernel.descriptors = 6
    first, second, third = (kernel.socket(AF_INET, SOCK_STREAM) for _ in range(3))
    numbers = [400, 404, 408] if kernel.kind == 'windows' else [3, 4, 5]
    assert [first.fileno(), second.fileno(), third.fileno()] == numbers
    with pytest.raises(OSError) as caught:
        kernel.socket(AF_INET, SOCK_STREAM)
    assert caught.value.errno == errno.EMFILE
    second.close()
    assert kernel.socket(AF_INET, SOCK_STREAM).fileno() == numbers[1]


def test_time_passes_only_in_select(kernel):
    before = kernel.clock()
    client, accepted = connected(kernel)
    between = kernel.clock()
    assert between > before
    client.send(b'x')
    assert kernel.clock() == between
    accepted.close()


def test_bytes_arrive_later_in_order_and_then_the_end(kernel):
    client, accepted = connected(kernel)
    assert client.send(b'one') + client.send(b'two') == 6
    client.shutdown(SHUT_WR)
    with pytest.raises(BlockingIOError):
        accepted.recv(100)
    pass_time(kernel, 1)
    assert accepted.recv(4) + accepted.recv(100) == b'onetwo'
    assert accepted.recv(100) == b''
    assert accepted.recv(100) == b''


def test_a_send_accepts_no_more_than_there_is_room_for(kernel):
    client, accepted = connected(kernel)
    sent = client.send(bytes(1 << 20))
    assert 0 < sent < 1 << 20
    with pytest.raises(BlockingIOError):
        client.send(b'x')
    pass_time(kernel, 1)
    assert len(accepted.recv(1 << 20)) == sent
    assert client.send(b'x') == 1


@pytest.mark.parametrize('how', ['unread bytes', 'linger of 0'])
def test_closing_with_unread_bytes_or_with_a_linger_of_0_resets(kernel, how):
    client, accepted = connected(kernel)
    if how == 'unread bytes':
        client.send(b'never read')
        pass_time(kernel, 1)
    else:
        accepted.setsockopt(SOL_SOCKET, SO_LINGER, kernel.reset_on_close)
    accepted.close()
    pass_time(kernel, 1)
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with pytest.raises(BrokenPipeError):
        client.send(b'x')


def test_a_connect_without_a_listener_is_refused_later(kernel):
    client = kernel.socket(AF_INET, SOCK_STREAM)
    selector = kernel.selector()
    assert client.connect_ex(('10.0.0.1', 80)) in kernel.connecting
    selector.register(client.fileno(), WRITE)
    assert [key.fd for key, _ in selector.select(1)] == [client.fileno()]
    with pytest.raises(ConnectionRefusedError):
        client.recv(1)


# -- the behaviour of selectors


def test_readiness_is_reported_as_long_as_it_lasts(kernel):
    client, accepted = connected(kernel)
    selector = kernel.selector()
    selector.register(accepted.fileno(), READ, 'data')
    assert selector.select(0.1) == []
    client.send(b'x')
    for _ in range(2):
        [(key, mask)] = selector.select(1)
        assert (key.data, mask) == ('data', READ)
    accepted.recv(1)
    assert selector.select(0.1) == []


def test_a_closed_number_is_reported_by_poll_fails_select_and_is_forgotten_by_epoll_and_kqueue(kernel):
    client, accepted = connected(kernel)
    selector = kernel.selector()
    selector.register(accepted.fileno(), READ)
    client.send(b'x')
    kernel.close_fd(accepted.fileno())
    if kernel.kind in ('select', 'windows'):
        with pytest.raises(OSError) as caught:
            selector.select(1)
        assert caught.value.errno == (errno.EBADF if kernel.kind == 'select' else errno.ENOTSOCK)
    else:
        assert len(selector.select(1)) == (1 if kernel.kind == 'poll' else 0)


def test_epoll_wakes_for_ever_for_a_copy_of_a_closed_descriptor_without_an_entry():
    kernel = SimKernel(0, selector='epoll', faults=False)
    client, accepted = connected(kernel)
    selector = kernel.selector()
    selector.register(accepted.fileno(), READ)
    kernel.duplicate(accepted.fileno())
    client.send(b'x')
    kernel.close_fd(accepted.fileno())
    selector.unregister(accepted.fileno())
    selector.select(1)  # wait until the byte arrives
    before = kernel.clock()
    assert selector.select(1) == []
    assert kernel.clock() == before


def test_select_accepts_no_number_from_1024_on():
    kernel = SimKernel(0, selector='select', faults=False, descriptors=2000)
    selector = kernel.selector()
    assert kernel.room_of(selector)(1023)
    assert not kernel.room_of(selector)(1024)


# -- other platforms


def on(kind, **options):
    return SimKernel(0, selector=kind, faults=False, **options)


def test_kqueue_reports_each_direction_in_a_separate_entry():
    kernel = on('kqueue')
    client, accepted = connected(kernel)
    selector = kernel.selector()
    client.send(b'x')
    selector.register(accepted.fileno(), READ | WRITE)
    pass_time(kernel, 1)
    assert sorted(mask for _, mask in selector.select(1)) == [READ, WRITE]


def test_kqueue_reports_the_end_while_bytes_wait():
    kernel = on('kqueue')
    client, accepted = connected(kernel)
    selector = kernel.selector()
    client.send(b'x')
    client.close()
    pass_time(kernel, 1)
    selector.register(accepted.fileno(), READ)
    assert [mask for _, mask in selector.select(1)] == [READ]
    assert [accepted.recv(10), accepted.recv(10)] == [b'x', b'']


@pytest.mark.parametrize('copied', [False, True])
def test_kqueue_never_reports_a_closed_descriptor_and_modifies_the_new_owner_of_its_number(copied):
    kernel = on('kqueue')
    client, accepted = connected(kernel)
    number = accepted.fileno()
    selector = kernel.selector()
    selector.register(number, READ)
    if copied:
        kernel.duplicate(number)
    client.send(b'x')
    kernel.close_fd(number)
    assert selector.select(1) == []
    while kernel.socket(AF_INET, SOCK_STREAM).fileno() != number:
        pass
    selector.modify(number, WRITE)
    assert selector.get_map()[number].events == WRITE


def test_kqueue_keeps_the_first_filter_of_a_failed_registration_without_reporting_it():
    kernel = on('kqueue')
    client, accepted = connected(kernel)
    selector = kernel.selector()
    kernel._fail = kernel.calls + 2, errno.ENOMEM
    with pytest.raises(OSError):
        selector.register(accepted.fileno(), READ | WRITE)
    client.send(b'x')
    before = kernel.clock()
    assert selector.select(1) == []
    assert kernel.clock() < before + 1
    accepted.close()
    assert selector.select(1) == []
    assert kernel.clock() > before + 1


def test_on_kqueue_a_client_that_is_gone_is_accepted_without_an_address():
    kernel = on('kqueue')
    server, client = kernel.socket(AF_INET, SOCK_STREAM), kernel.socket(AF_INET, SOCK_STREAM)
    server.bind(('10.0.0.1', 80))
    server.listen()
    client.connect_ex(('10.0.0.1', 80))
    pass_time(kernel, 1)
    client.setsockopt(SOL_SOCKET, SO_LINGER, kernel.reset_on_close)
    client.close()
    pass_time(kernel, 1)
    accepted, address = server.accept()
    assert address is None
    with pytest.raises(OSError):
        accepted.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


def test_on_windows_a_refused_connect_is_writable_and_never_readable():
    kernel = on('windows')
    client = kernel.socket(AF_INET, SOCK_STREAM)
    selector = kernel.selector()
    assert client.connect_ex(('10.0.0.1', 80)) == errno.EWOULDBLOCK
    selector.register(client.fileno(), READ | WRITE)
    assert [mask for _, mask in selector.select(1)] == [WRITE]


def test_windows_waits_for_at_most_512_sockets_and_needs_at_least_one():
    kernel = on('windows', descriptors=2000)
    selector = kernel.selector()
    with pytest.raises(OSError):
        selector.select(1)
    for count in range(513):
        assert kernel.room_of(selector)(2) is (count < 512)
        selector.register(kernel.socket(AF_INET, SOCK_STREAM).fileno(), WRITE)
    with pytest.raises(ValueError, match='too many'):
        selector.select(1)


def test_windows_has_no_unix_sockets_and_shares_a_port_without_an_option():
    kernel = on('windows')
    with pytest.raises(OSError):
        kernel.socket(AF_UNIX, SOCK_STREAM)
    first, second = kernel.socket(AF_INET, SOCK_STREAM), kernel.socket(AF_INET, SOCK_STREAM)
    second.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    for sock in first, second:
        sock.bind(('10.0.0.1', 80))
        sock.listen()


def test_on_windows_coarse_clocks_and_waits_that_end_early_are_drawn():
    seen = set()
    for seed in range(30):
        kernel = SimKernel(seed, selector='windows', faults=False, grain=0)
        selector, bell = kernel.selector(), kernel.socketpair()
        selector.register(bell[0].fileno(), READ)
        kernel.busy(0.0123)
        before, began = kernel.clock(), kernel.time
        selector.select(0.02)
        seen.update(['early'] if kernel.time - began < 20_000_000 else [])
        seen.add('looks short' if kernel.clock() - before < 0.02 else 'looks whole')
        assert kernel.clock() - before > 0.02 - kernel.clock_step
    assert seen == {'early', 'looks short', 'looks whole'}


def test_on_windows_a_datagram_without_a_receiver_fails_a_later_receive():
    kernel = on('windows')
    sock = kernel.socket(AF_INET, SOCK_DGRAM)
    sock.bind(('10.0.0.1', 0))
    sock.sendto(b'x', ('10.0.0.1', 9))
    pass_time(kernel, 1)
    with pytest.raises(ConnectionResetError):
        sock.recvfrom(10)


def test_a_selector_that_is_replaced_in_vain_breaks_a_law():
    simulation = Simulation(0, selector='windows', faults=False)
    with pytest.raises(SimulationFailed, match='the selector was replaced'):
        simulation.run(lambda r: r.call_later(1, r.watchers.rebuild))


def test_old_seeds_give_the_same_run_on_their_old_system():
    """Most seeds still draw the same system. The other seeds repeat the old run if that system is forced."""
    drawn = [SimKernel(seed).kind for seed in range(200)]
    assert 60 < sum(kind in ('kqueue', 'windows') for kind in drawn) < 100
    for seed, kind in enumerate(drawn):
        old = Random(seed)
        old.getrandbits(64)
        first = old.choice(('epoll', 'poll', 'select'))
        assert kind in (first, 'kqueue', 'windows')
        assert SimKernel(seed, selector=first).random.getstate() == SimKernel(seed).random.getstate()


# -- the command line


def test_a_seed_is_replayed_with_its_trace():
    done = run_module('--seed', '5')
    assert done.returncode == 0, done.stderr
    *trace, last = done.stdout.splitlines()
    assert any(re.search(r'(client|server) \d+: recv \d+ byte', line) for line in trace)
    assert last.startswith('seed 5: no law was broken; SHA-256 of the trace ')


def test_a_failing_seed_is_reported_and_gives_status_1(monkeypatch, capsys, tmp_path):
    ran = []

    def run_some(seed, **options):
        ran.append(seed)
        if seed == 33:
            raise SimulationFailed(f'seed {seed}, turn 8: law 1: it broke\nthe end of the trace:\n')
        return Simulation(seed)

    monkeypatch.setattr(runs, 'run_seed', run_some)
    kept = str(tmp_path / 'kept')
    assert runs.main(['--seeds', '50', '--resume', kept]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['seed 33, turn 8: law 1: it broke', '    repeat: python -m reactor.testing --seed 33']
    assert lines[2].startswith('50 of 50 seeds from 0: 1 failed; ')
    assert ran == list(range(50))
    assert runs.main(['--seeds', '70', '--resume', kept]) == 1
    assert ran[50:] == list(range(40, 70))  # the block that was incomplete, and the new block
    assert ', 40 of them in an earlier run: 1 failed' in capsys.readouterr().out


@pytest.mark.parametrize('kind', KINDS)
def test_a_manner_can_be_forced_and_is_named_in_a_failure(kind, monkeypatch, capsys):
    ran = []

    def run_some(seed, selector):
        ran.append((seed, selector))
        raise SimulationFailed(f'seed {seed}, turn 8: law 1: it broke')

    monkeypatch.setattr(runs, 'run_seed', run_some)
    assert runs.main(['--seeds', '1', '--first', '7', '--manner', kind]) == 1
    assert ran == [(7, kind)]
    assert capsys.readouterr().out.splitlines()[1] == f'    repeat: python -m reactor.testing --manner {kind} --seed 7'


def test_seeds_that_pass_give_status_0_in_several_processes():
    done = run_module('--seeds', '20', '--jobs', '2')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith('20 of 20 seeds from 0: 0 failed; ')
    assert '2 processes' in done.stdout


def test_faults_with_no_time_before_the_calm_never_begin():
    """Faults begin when `main` has returned, which happens after the first events."""
    seen = []
    simulation = Simulation(1, faults=('descriptors.few', 'recv.short'), calm=0)

    def main(r):
        r.call_later(1, lambda: seen.append((dict(simulation.kernel.faults.on), simulation.kernel.descriptors)))

    simulation.run(main)
    assert seen == [({}, PLENTY)]


# -- what a program sees of the details of Linux


def run_program_on(kind, main):
    kernel = SimKernel(0, selector=kind, faults=False, grain=0)
    with Reactor(kernel=kernel) as r:
        r.run(main)


@pytest.mark.parametrize('kind', KINDS[:3])
def test_an_ipv6_listener_refuses_clients_over_ipv4(kind):
    ends = []

    def main(r):
        server = r.listen_tcp('::', 80)
        r.connect_tcp('127.0.0.1', 80, on_close=lambda conn, exc: (ends.append(type(exc)), server.close()))

    run_program_on(kind, main)
    assert ends == [ConnectionRefusedError]


@pytest.mark.parametrize('kind', KINDS[:3])
def test_a_listener_without_a_host_accepts_clients_over_both_versions(kind):
    peers = []

    def main(r):
        def on_connect(conn):
            peers.append((conn.peername[0], conn.sockname[0]))
            conn.close()
            if len(peers) == 2:
                server.close()

        server = r.listen_tcp(None, 80, on_connect=on_connect)
        r.connect_tcp('127.0.0.1', 80)
        r.connect_tcp('::1', 80)

    run_program_on(kind, main)
    assert sorted(peers) == [('127.0.0.1', '127.0.0.1'), ('::1', '::1')]


@pytest.mark.parametrize('kind', KINDS[:3])
def test_an_end_of_file_followed_by_a_reset_is_a_clean_end(kind):
    events = []

    def main(r):
        def on_data(conn, data):
            events.append(data)
            server.close()

        def on_connect(conn):
            conn.pause_reading()
            conn.write(b'unread')
            r.call_later(5, conn.resume_reading)

        def begin(conn):
            conn.write(b'last words')
            conn.write_eof()
            r.call_later(2, conn.abort)

        server = r.listen_tcp(
            '10.0.0.1', 80, on_data, on_connect=on_connect, on_eof=lambda conn: (events.append('eof'), conn.close()),
            on_close=lambda conn, exc: events.append(exc),
        )  # fmt: skip
        r.connect_tcp('10.0.0.1', 80, on_connect=lambda conn: (conn.pause_reading(), begin(conn)))

    run_program_on(kind, main)
    assert events == [b'last words', 'eof', None]


def test_datagram_sockets_share_a_port_and_a_broadcast_needs_permission():
    errors = []

    def main(r):
        sockets = [r.bind_udp('127.0.0.1', 99, print, reuse_port=True) for _ in range(2)]
        sender = r.bind_udp('127.0.0.1', 0, print, on_send_error=lambda sock, exc, *rest: errors.append(exc.errno))
        sender.send(b'x', ('127.255.255.255', 99))
        r.call_later(1, lambda: [sock.close() for sock in [*sockets, sender]])

    run_program_on('epoll', main)
    assert errors == [errno.EACCES]


def test_a_client_that_finds_a_full_backlog_is_connected_once():
    def program(world):
        server = world.r.listen_tcp(*world.address(), backlog=1)
        server.pause()

        def connect():
            client = world.r.connect_tcp(*server.address)
            world.r.call_later(15, client.close)

        for _ in range(6):
            world.r.call_later(0.1, connect)
        world.r.call_later(3, server.resume)
        world.r.call_later(20, server.close)

    for seed in range(20):
        simulation = Simulation(seed, selector='epoll', faults=('connect.at_once',), calm=100).run_program(program)
        clients = [detail[0] for _, what, _, detail in simulation.kernel.trace if what == 'connected']
        assert len(clients) == len(set(clients)) == 6
