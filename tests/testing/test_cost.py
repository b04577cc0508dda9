"""The cost of a simulation grows in proportion to its connections, and no check is lost for that."""

from __future__ import annotations

import pytest

from reactor.loop.buckets import Buckets
from reactor.net.stream import Stream
from reactor.testing import Simulation, SimulationFailed
from reactor.testing.ledger import WALK
from tests.helpers.work import growth, work_of

ECHOES = 3
LINEAR = 2.1  # how much the work may grow when the number of connections is doubled: 2 would be exact


def echo(conn, data):
    conn.write(data)


def echoes(r, connections, idle_timeout=None):
    """Have each of these connections send ECHOES messages to an echo server, one after the other, with pauses."""
    left = connections

    def on_connect(conn):
        conn.data = ECHOES
        conn.write(b'hello')

    def on_data(conn, data):
        conn.data -= 1
        if conn.data:
            r.call_later(0.01, conn.write, data)
        else:
            conn.close()

    def on_close(conn, exc):
        nonlocal left
        left -= 1
        if not left:
            server.close()

    server = r.listen_tcp('10.0.0.1', 80, echo, idle_timeout=idle_timeout)
    for _ in range(connections):
        r.connect_tcp('10.0.0.1', 80, on_data, on_connect=on_connect, on_close=on_close)


def simulation(**options):
    return Simulation(1, faults=False, grain=0, **options)


@pytest.mark.parametrize('idle_timeout', [None, 10])
@pytest.mark.parametrize('selector', ['epoll', 'poll', 'kqueue', 'windows'])
def test_the_work_for_each_echo_does_not_depend_on_the_number_of_connections(selector, idle_timeout):
    def work(connections):
        run = simulation(selector=selector, descriptors=1000).run
        return work_of(run, lambda r: echoes(r, connections, idle_timeout))

    assert max(growth(work, 4 * WALK)) < LINEAR


def one_after_another(r, connections):
    """Make each of these connections when the one before it is open, and keep them all open until the last one is."""
    conns = []

    def on_connect(conn):
        if len(conns) < connections:
            connect()
        else:
            for each in [server, *conns]:
                each.close()

    def connect():
        conns.append(r.connect_tcp('10.0.0.1', 80, on_connect=on_connect))

    server = r.listen_tcp('10.0.0.1', 80, echo)
    connect()


@pytest.mark.parametrize('selector', ['epoll', 'kqueue'])
def test_the_work_for_each_connect_does_not_depend_on_the_number_of_open_connections(selector):
    def work(connections):
        return work_of(simulation(selector=selector, descriptors=1000).run, lambda r: one_after_another(r, connections))

    assert max(growth(work, 4 * WALK)) < LINEAR


def test_a_thousand_connections_can_be_simulated():
    connections = 1000
    run = simulation(selector='epoll', descriptors=3 * connections)
    run.run(lambda r: echoes(r, connections))
    assert len([record for record in run.reactor.ledger.records if record.over]) == 2 * connections


# -- among many quiet connections, a broken promise to one of them is found


def crowd(r, misbehave, **options):
    """Open many connections, call `misbehave(conn)` with one of them after a minute, and close all after another."""

    def end():
        ticker.cancel()
        for each in [server, *conns]:
            each.close()

    server = r.listen_tcp('10.0.0.1', 80, echo, **options)
    conns = [r.connect_tcp('10.0.0.1', 80) for _ in range(6 * WALK)]
    ticker = r.call_every(1, int)
    r.call_later(60, misbehave, conns[WALK])
    r.call_later(120, end)


def fails(match):
    return pytest.raises(SimulationFailed, match=match)


def test_a_forgotten_time_limit_is_found(monkeypatch):
    monkeypatch.setattr(Buckets, 'add', lambda buckets, member, when: 0)
    with fails('IdleTimeout'):
        simulation().run(lambda r: crowd(r, lambda conn: None, idle_timeout=30))


def test_bytes_that_are_never_read_are_found(monkeypatch):
    def forget_to_read(conn):
        monkeypatch.setattr(Stream, 'handle_read', lambda stream: stream.loop.watchers.set_events(stream, 0))
        conn.write(b'hello')

    with fails('forgotten for .* bytes can be read'):
        simulation().run(lambda r: crowd(r, forget_to_read))


def test_a_change_that_no_call_and_no_event_accompanies_is_found():
    def lose_a_descriptor(conn):
        conn.loop.watchers.remove(conn)

    with fails('law 9: descriptors'):
        simulation().run(lambda r: crowd(r, lose_a_descriptor))


def test_a_timer_that_does_not_fire_is_found_among_many():
    def main(r):
        for second in range(6 * WALK):
            r.call_later(10 + second, int)
        lost = r.call_later(5, int)
        r.call_later(1, r.timers.at.pop, lost.deadline)

    with fails('the timer of int'):
        simulation().run(main)
