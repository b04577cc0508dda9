"""Simulated programs as users write them: each runs as it would on a real system, and only its own mistakes fail it."""

from __future__ import annotations

import signal

import pytest

from reactor import ConnectTimeout, IdleTimeout, WriteBufferFull, framing
from reactor.testing import Simulation, SimulationFailed

SEEDS = range(12)


def test_a_callback_can_be_chained():
    def program(world):
        ends = []

        def chain(conn):
            old = conn.on_close
            conn.on_close = lambda conn, exc: (old(conn, exc), ends.append(exc))

        server = world.r.listen_tcp(
            *world.address(), lambda conn, data: conn.write(data), on_connect=chain, on_close=lambda *_: server.close()
        )
        both = world.expect('both chained callbacks')
        client = world.r.connect_tcp(*server.address, lambda conn, data: conn.close(), on_close=lambda *_: None)
        chain(client)
        client.write(b'hello')
        world.r.call_later(600, lambda: (len(ends) == 2) and both.met())

    for seed in SEEDS:
        Simulation(seed, faults=False).run_program(program)


def test_a_callback_reads_as_it_was_set():
    def program(world):
        def on_data(conn, data): ...

        conn = world.r.connect_tcp(*world.address(), on_data)
        assert conn.on_data is on_data
        assert conn.on_close is None and conn.on_drain is None
        conn.on_data = None
        assert conn.on_data is None
        conn.close()

    Simulation(1).run_program(program)


def test_every_line_is_delivered():
    lines = []

    def program(world):
        def served(conn, exc):
            lines.append(got)
            server.close()

        got = []
        read = framing.lines(lambda conn, line: got.append(line))
        server = world.r.listen_tcp(*world.address(), read, on_close=served)
        client = world.r.connect_tcp(*server.address)
        client.write(b'one\ntwo\nthree\n')
        client.write_eof()

    for seed in SEEDS:
        Simulation(seed, faults=False).run_program(program)
    assert lines == [[b'one', b'two', b'three']] * len(SEEDS)


@pytest.mark.parametrize('host', ['10.0.0.1', 'fd00::2'])
def test_the_address_of_a_client_is_known_after_it_has_reset_the_connection(host):
    seen = []

    def program(world):
        def on_close(conn, exc):
            seen.append(conn.peername[:2])
            server.close()

        server = world.r.listen_tcp(host, 1000, on_close=on_close)
        client = world.r.connect_tcp(host, 1000, on_connect=lambda conn: seen.append(conn.sockname[:2]))
        world.r.call_later(10, client.abort)

    Simulation(3, faults=False, selector='epoll').run_program(program)
    assert seen[0] == seen[1] and len(seen) == 2


def server_that_stops(world):
    """A server as most programs have one: it listens, handles SIGTERM, and ends with `stop`."""
    r = world.r
    server = r.listen_tcp(*world.address(), lambda conn, data: conn.write(data))
    r.add_signal_handler(signal.SIGTERM, r.stop)
    r.call_every(10, len, 'a heartbeat')
    answer = world.expect('an answer, or an end with an error')

    def on_close(conn, exc):
        answer.met()
        world.raise_signal(signal.SIGTERM)

    client = r.connect_tcp(*server.address, lambda conn, data: conn.close(), on_close=on_close)
    client.write(b'hello')


def test_a_program_that_ends_with_stop_may_leave_its_listener_open():
    for seed in SEEDS:
        Simulation(seed, until_stop=True).run_program(server_that_stops)


def test_without_the_option_run_is_called_again_after_stop():
    with pytest.raises(SimulationFailed, match='the loop still waits'):
        Simulation(1, faults=False).run_program(server_that_stops)


def test_a_program_that_stops_too_early_fails():
    def program(world):
        world.expect('something that never happens')
        world.r.call_later(1, world.r.stop)

    with pytest.raises(SimulationFailed, match='something that never happens'):
        Simulation(1, until_stop=True).run_program(program)


def test_signal_handlers_alone_are_no_reason_for_a_simulated_program_to_wait():
    def program(world):
        world.r.add_signal_handler(signal.SIGTERM, world.r.stop)
        world.r.call_later(1, len, '')

    for seed in SEEDS:
        Simulation(seed).run_program(program)


def test_a_program_that_waits_for_more_than_signals_is_stuck():
    def program(world):
        world.r.add_signal_handler(signal.SIGTERM, world.r.stop)
        world.r.listen_tcp(*world.address())

    with pytest.raises(SimulationFailed, match='would sleep for ever'):
        Simulation(1).run_program(program)


def test_a_failure_after_stop_names_the_option():
    def program(world):
        world.r.listen_tcp(*world.address())
        world.r.call_later(1, world.r.stop)

    with pytest.raises(SimulationFailed, match='pass until_stop=True'):
        Simulation(1).run_program(program)


def test_the_option_is_in_the_test_of_a_report():
    def program(world):
        world.r.call_soon(world.fail, 'a mistake')
        world.r.call_later(1, world.r.stop)

    with pytest.raises(SimulationFailed) as caught:
        Simulation(1, until_stop=True).run_program(program)
    assert caught.value.simulation.given['until_stop'] is True


@pytest.mark.parametrize(
    'error', [ConnectionResetError(104, 'x'), IdleTimeout('x'), ConnectTimeout('x'), WriteBufferFull('x')]
)
def test_a_connection_can_be_aborted_with_any_exception(error):
    def program(world):
        server = world.r.listen_tcp(*world.address(), on_close=lambda conn, exc: None)
        world.r.connect_tcp(
            *server.address, on_connect=lambda conn: conn.abort(error), on_close=lambda conn, exc: server.close()
        )

    for seed in SEEDS:
        Simulation(seed, faults=False).run_program(program)


class Tally:
    """A server as users write it: framing, a chained callback, a listener left open, and a drain at SIGTERM."""

    def __init__(self, r, address, broken):
        self.r, self.broken, self.counts, self.open = r, broken, {}, set()
        r.listen_tcp(*address, framing.lines(self.on_line), on_connect=self.on_connect, idle_timeout=120)
        r.add_signal_handler(signal.SIGTERM, lambda: r.draining or r.drain(30))

    def on_connect(self, conn):
        self.open.add(conn)
        before = conn.on_close

        def on_close(conn, exc):
            if before is not None:
                before(conn, exc)
            if exc is None or not self.broken:  # the planted bug: a connection that ends with an error stays in `open`
                self.open.discard(conn)

        conn.on_close = on_close

    def on_line(self, conn, line):
        self.counts[line] = self.counts.get(line, 0) + 1
        conn.write(b'%d\n' % self.counts[line])


def tally(world, broken):
    address = world.address()
    server = Tally(world.r, address, broken)
    for name in (b'one', b'two', b'three'):
        ask(world, address, name)
    world.r.call_later(600, world.raise_signal, signal.SIGTERM)

    def look():
        if server.open:
            world.fail(f'{len(server.open)} connections are open in the table, although all clients have ended')

    world.r.call_later(599, look)


def ask(world, address, name):
    got, end = [], world.expect(f'three answers to {name}, or an end with an error')

    def on_close(conn, exc):
        if exc is None and len(got) < 3 and not world.faulty:
            world.fail(f'{name} got {got}')
        end.met()

    def on_line(conn, line):
        got.append(int(line))
        if len(got) == 3:
            conn.close()

    conn = world.r.connect_tcp(*address, framing.lines(on_line), on_close=on_close, timeout=60, read_timeout=60)
    conn.writelines([name + b'\n'] * 3)


@pytest.mark.slow
def test_a_server_as_users_write_it_has_no_false_report_on_100_seeds():
    for seed in range(100):
        Simulation(seed, until_stop=True).run_program(lambda world: tally(world, False))


def test_a_bug_in_a_server_as_users_write_it_is_found_on_100_seeds():
    found = []
    for seed in range(100):
        try:
            Simulation(seed, until_stop=True).run_program(lambda world: tally(world, True))
        except SimulationFailed as failed:
            assert 'are open in the table' in str(failed)
            found.append(seed)
    assert found
