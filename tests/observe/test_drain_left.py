"""How many connections a drain still waits for, and how long it waits, in the counters."""

from __future__ import annotations

import pytest

from reactor import observe
from tests.helpers.support import run_until

HERE = '127.0.0.1'


def left(r):
    stats = r.stats()
    return stats.draining, stats.drain_connections


def test_a_reactor_that_does_not_drain_has_nothing_left(r):
    stats = r.stats()
    assert (stats.draining, stats.drain_connections, stats.drain_seconds) == (0, 0, 0.0)


def test_the_counters_show_what_a_drain_waits_for_until_its_end(r, sockets):
    conns = []
    server = r.listen_tcp(HERE, 0, lambda conn, data: setattr(conn, 'busy', True), on_connect=conns.append)
    clients = [sockets.connect(server.address) for _ in range(5)]
    run_until(r, lambda: len(conns) == 5)
    for client in clients[:2]:
        client.send(b'x')
    run_until(r, lambda: r.stats().requests == 2)
    r.drain(60, 0.2)
    assert left(r) == (1, 5)  # during the lame duck, all accepted connections
    assert 59 < r.stats().drain_seconds <= 60
    run_until(r, lambda: server.closed and left(r) == (1, 2))  # the three idle ones are closed
    assert 50 < r.stats().drain_seconds < 60
    r.drain(20)
    assert 15 < r.stats().drain_seconds <= 20
    for conn in conns:
        if conn.busy:
            conn.write(b'answer')
            conn.busy = False
    r.run()
    assert left(r) == (1, 0) and r.stats().drain_seconds == 0


def test_connections_that_do_not_keep_the_loop_running_are_not_waited_for(r, sockets):
    """Such as the connection of the health check or scrape that reads these counters."""
    conns = []
    server = r.listen_tcp(HERE, 0, on_connect=conns.append)
    sockets.connect(server.address)
    run_until(r, lambda: conns)
    server.unref()
    conns[0].unref()
    waiting = r.listen_tcp(HERE, 0, lambda conn, data: setattr(conn, 'busy', True))
    client = sockets.connect(waiting.address)
    client.send(b'x')
    run_until(r, lambda: r.stats().requests)
    r.drain(60)
    run_until(r, lambda: waiting.closed and left(r) == (1, 1))
    assert r.stats().incoming == 2
    r.close()


def test_when_the_timeout_is_over_nothing_is_left(r, sockets):
    server = r.listen_tcp(HERE, 0, lambda conn, data: setattr(conn, 'busy', True))
    client = sockets.connect(server.address)
    client.send(b'x')
    run_until(r, lambda: r.stats().requests)
    r.drain(0.05)
    r.run()
    assert left(r) == (1, 0) and r.stats().drain_seconds == 0


def test_sums_count_draining_reactors_and_take_the_longest_time_left():
    counters = [
        {'draining': 1, 'drain_connections': 3, 'drain_seconds': 7.5, 'pid': 1},
        {'draining': 1, 'drain_connections': 4, 'drain_seconds': 2.5, 'pid': 2},
        {'draining': 0, 'drain_connections': 0, 'drain_seconds': 0.0, 'pid': 3},
    ]
    total = observe.combined(counters)
    assert (total['draining'], total['drain_connections'], total['drain_seconds']) == (2, 7, pytest.approx(7.5))
