"""Times of requests and failed requests, counted from `conn.busy`."""

from __future__ import annotations

import json

import pytest

from reactor import DrainTimeout, Reactor, Stats, observe
from tests.helpers.support import reset, run_until, turns

HERE = '127.0.0.1'


class Server:
    """A server that is busy with each connection from the first byte until the test finishes the request."""

    def __init__(self, r: Reactor, sockets, count: int = 1, **callbacks) -> None:
        self.r, self.conns, self.ended = r, [], []
        self.listener = r.listen_tcp(
            HERE, 0, self.on_data, on_connect=self.conns.append, on_close=self.on_close, **callbacks
        )
        self.clients = [sockets.connect(self.listener.address) for _ in range(count)]
        run_until(r, lambda: len(self.conns) == count)

    def on_data(self, conn, data):
        conn.busy = True

    def on_close(self, conn, exc):
        self.ended.append(exc)

    def ask(self, client=None):
        requests = self.r.stats().requests
        (client or self.clients[0]).send(b'x')
        run_until(self.r, lambda: self.r.stats().requests > requests)


def counted(r: Reactor) -> dict[float, int]:
    """Return the buckets that are not 0; the one without a bound is infinity."""
    bounds = (*Stats.request_bounds, float('inf'))
    return {bound: n for bound, n in zip(bounds, r.stats().request_seconds, strict=True) if n}


@pytest.mark.parametrize(
    'seconds, bound', [(0, 0.0005), (0.5, 0.5), (0.003, 0.005), (0.25, 0.25), (7, 10), (31, float('inf'))]
)
def test_a_request_is_counted_in_the_bucket_of_its_time(fake, kernel, sockets, seconds, bound):
    ours, _ = sockets()
    conn = fake.adopt(ours)
    turns(fake, 1)
    kernel.time = fake.now = 1024.0
    conn.busy = True
    assert counted(fake) == {}
    kernel.time += seconds
    conn.busy = False
    assert counted(fake) == {bound: 1}
    assert fake.stats().request_seconds_sum == pytest.approx(seconds)
    conn.busy = False
    assert counted(fake) == {bound: 1} and fake.stats().requests_failed == 0
    conn.close()


def test_the_time_that_a_request_waits_for_other_callbacks_of_its_turn_is_included(fake, kernel, sockets):
    """Otherwise the times of an overloaded loop would look short, although every client waits."""
    first, second = [fake.adopt(sockets()[0]) for _ in range(2)]

    def answer(conn):
        conn.busy = True
        kernel.time += 0.2  # a callback that computes
        conn.busy = False

    fake.call_soon(answer, first)
    fake.call_soon(answer, second)
    turns(fake, 1)
    assert counted(fake) == {0.25: 1, 0.5: 1}
    for conn in first, second:
        conn.close()


def test_pipelined_requests_are_counted_one_by_one(r, sockets):
    server = Server(r, sockets)
    server.ask()
    (conn,) = server.conns
    for _ in range(3):
        conn.busy = False
        conn.busy = True
    conn.busy = False
    assert sum(r.stats().request_seconds) == r.stats().requests == 4
    conn.abort()
    run_until(r, lambda: server.ended)
    server.listener.close()


def test_a_connection_that_ends_with_an_error_while_it_is_busy_is_a_failed_request(r, sockets):
    server = Server(r, sockets, 2)
    server.ask()
    reset(server.clients[0])
    reset(server.clients[1])  # this one owes its client nothing
    run_until(r, lambda: len(server.ended) == 2)
    assert all(isinstance(exc, OSError) for exc in server.ended)
    stats = r.stats()
    assert (stats.requests, stats.requests_failed, sum(stats.request_seconds)) == (1, 1, 0)
    server.listener.close()


def test_an_exception_in_a_callback_fails_the_request(r, sockets, caplog):
    def on_data(conn, data):
        conn.busy = True
        raise ValueError('boom')

    server = Server(r, sockets)
    server.conns[0].on_data = on_data
    server.clients[0].send(b'x')
    run_until(r, lambda: server.ended)
    assert r.stats().requests_failed == r.stats().callback_errors == 1
    server.listener.close()


def test_a_request_that_a_drain_cuts_off_has_failed(r, sockets):
    server = Server(r, sockets)
    server.ask()
    r.drain(0.05)
    r.run()
    run_until(r, lambda: server.ended)
    assert isinstance(server.ended[0], DrainTimeout)
    assert r.stats().requests_failed == 1 and counted(r) == {}


def test_a_connection_that_is_closed_without_an_error_finishes_its_request(r, sockets):
    """As with one request per connection, where the program writes the answer and closes."""
    server = Server(r, sockets)
    server.ask()
    server.conns[0].write(b'answer')
    server.conns[0].close()
    run_until(r, lambda: server.ended)
    stats = r.stats()
    assert server.ended == [None] and (sum(stats.request_seconds), stats.requests_failed) == (1, 0)
    server.listener.close()


def test_each_request_ends_exactly_once(r, sockets):
    server = Server(r, sockets, 9)
    for n, (client, conn) in enumerate(zip(server.clients, list(server.conns), strict=True)):
        server.ask(client)
        if n % 3 == 0:
            next(conn for conn in server.conns if conn.busy).busy = False
        elif n % 3 == 1:
            next(conn for conn in server.conns if conn.busy).abort(OSError('a test'))
        else:
            next(conn for conn in server.conns if conn.busy).close()
        turns(r, 1)
    for client in server.clients:
        client.close()
    run_until(r, lambda: len(server.ended) == 9)
    stats = r.stats()
    assert stats.requests == 9 == sum(stats.request_seconds) + stats.requests_failed
    assert stats.requests_failed == 3 and not r.streams.busy
    server.listener.close()


def test_a_program_that_does_not_use_busy_counts_no_request(r, sockets):
    server = Server(r, sockets)
    server.conns[0].on_data = lambda conn, data: conn.write(data)
    server.clients[0].send(b'x')
    run_until(r, lambda: r.stats().writes)
    server.clients[0].close()
    run_until(r, lambda: server.ended)
    stats = r.stats()
    assert (stats.requests, sum(stats.request_seconds), stats.request_seconds_sum, stats.requests_failed) == (0,) * 4
    server.listener.close()


def test_times_of_all_workers_are_added_up():
    with Reactor() as one, Reactor() as another:
        for r, seconds in (one, 0.002), (one, 0.2), (another, 0.2), (another, 99):
            r.counters.count_request(seconds)
        sent = json.loads(json.dumps(observe.source(another)()['0']))
        total = observe.combined([observe.source(one)()['0'], sent])
    bounds = [*Stats.request_bounds, float('inf')]
    assert {bound: n for bound, n in zip(bounds, total['request_seconds'], strict=True) if n} == {
        0.0025: 1, 0.25: 2, float('inf'): 1,
    }  # fmt: skip
    assert total['request_seconds_sum'] == pytest.approx(99.402)
