"""Limits for clients: number of connections, rates, lifetime and minimum speed, all with bounded memory."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import sys
import weakref
from collections import deque

import pytest

import reactor
from reactor import ClientRefused, LifetimeOver, Limits, Reactor, TooSlow
from reactor.admission.address_record import TokenBucket
from reactor.admission.pace import LimitedClient
from reactor.net.listener import Listener
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import FailingKernel, FakeKernel, Log, fill, idle, run_short, run_until, turns
from tests.net.test_proxy_protocol import HEADERS, close_all, ends4, ends6, v2

HERE = '127.0.0.1'
counted = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux counts the bytes of a TCP connection')


def listen(r, log=None, **options):
    """Make a listener with limits; return it and a list, to which `on_connect` adds each connection."""
    log = Log() if log is None else log
    conns = []

    def on_connect(conn):
        conns.append(conn)
        log.on_connect(conn)

    listener = r.listen_tcp(HERE, 0, on_connect=on_connect, **{**log.callbacks('on_data', 'on_close'), **options})
    return listener, conns


def connect(sockets, listener, host=HERE):
    """Connect a client from the address `host`."""
    sock = sockets.track(socket.socket())
    sock.bind((host, 0))
    sock.connect(listener.address)
    sock.setblocking(False)
    return sock


def is_reset(client):
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    return True


# -- the `refuse` hook


def test_a_client_that_the_hook_refuses_is_reset_and_on_connect_is_never_called(r, sockets, caplog):
    caplog.set_level(logging.WARNING)
    asked, log = [], Log()

    def refuse(address):
        asked.append(address)
        return address[0] == '127.0.0.2'

    listener, conns = listen(r, log, limits=Limits(refuse=refuse))
    bad = connect(sockets, listener, '127.0.0.2')
    run_until(r, lambda: r.stats().refused_by_hook)
    good = connect(sockets, listener)
    run_until(r, lambda: conns)
    assert is_reset(bad)
    assert asked == [bad.getsockname(), good.getsockname()] or asked[1:] == [good.getsockname()]
    assert log == [('connect',)]
    assert (r.stats().accepts, listener.open_connections) == (1, 1)
    assert [record.getMessage() for record in caplog.records] == [
        f'127.0.0.2:{asked[0][1]} was refused: the refuse= hook returned true'
    ]
    close_all(r, listener, *conns)


def test_an_exception_in_the_hook_refuses_the_client_and_is_reported_like_others(sockets):
    errors = []
    with Reactor(catch_errors=lambda exc, handle: errors.append((exc, handle))) as r:
        log = Log()
        listener, _ = listen(r, log, limits=Limits(refuse=lambda address: 1 // 0))
        client = connect(sockets, listener)
        run_until(r, lambda: errors)
        assert type(errors[0][0]) is ZeroDivisionError
        assert errors[0][1] is listener
        assert (log, listener.open_connections, r.stats().callback_errors) == ([], 0, 1)
        client.setblocking(True)
        assert is_reset(client)
        assert not listener.closed


def test_a_hook_that_keeps_failing_logs_one_line_a_second(kernel, fake, sockets, caplog):
    caplog.set_level(logging.WARNING)
    listener, _ = listen(fake, limits=Limits(refuse=lambda address: 1 // 0))
    for _ in range(20):
        connect(sockets, listener)
    while fake.stats().callback_errors < 20:
        fake.run_once(0)
    assert len(caplog.records) == 1
    listener.close()


def test_refusals_do_not_hide_an_exception_in_the_log(kernel, fake, sockets, caplog):
    caplog.set_level(logging.WARNING)
    raising = {'on_connect': lambda conn: 1 // 0}
    listener = fake.listen_tcp(HERE, 0, limits=Limits(refuse=lambda address: address[0] == '127.0.0.2'), **raising)
    for host in ['127.0.0.2'] * 5 + [HERE]:
        connect(sockets, listener, host)
    while not fake.stats().callback_errors or fake.stats().refused_by_hook < 5:
        fake.run_once(0)
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]
    listener.close()


# -- number of connections


def test_a_connection_beyond_the_limit_is_refused(r, sockets, caplog):
    caplog.set_level(logging.WARNING)
    listener, conns = listen(r, limits=Limits(connections=2))
    clients = [connect(sockets, listener) for _ in range(5)]
    run_until(r, lambda: r.stats().refused_connections == 3)
    assert (len(conns), r.stats().accepts) == (2, 2)
    assert sum(idle_socket(client) for client in clients) == 2
    assert len(caplog.records) == 1
    assert '2 connections are open' in caplog.text
    conns[0].close()
    turns(r, 1)
    connect(sockets, listener)
    run_until(r, lambda: len(conns) == 3)
    close_all(r, listener, *conns)


@pytest.mark.parametrize(
    ('limits', 'why'),
    [
        ({'per_address': 1}, 'its address has 1 connections open; the limit is per_address=1'),
        ({'connect_rate': (0.5, 1)}, 'its address connects too often; the limit is connect_rate=(0.5, 1.0)'),
    ],
)
def test_the_log_names_the_limit_that_a_client_exceeded(r, sockets, caplog, limits, why):
    caplog.set_level(logging.WARNING)
    listener, conns = listen(r, limits=Limits(**limits))
    for _ in range(2):
        connect(sockets, listener)
    run_until(r, lambda: caplog.records)
    assert why in caplog.text
    close_all(r, listener, *conns)


def idle_socket(client):
    try:
        return client.recv(1) and False
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def test_listeners_may_share_limits(r, sockets):
    limits = Limits(connections=1)
    first, conns = listen(r, limits=limits)
    second, others = listen(r, limits=limits)
    connect(sockets, first)
    run_until(r, lambda: conns)
    connect(sockets, second)
    run_until(r, lambda: r.stats().refused_connections)
    conns[0].close()
    turns(r, 1)
    connect(sockets, second)
    run_until(r, lambda: others)
    assert repr(limits) == '<Limits: 1 connections, 1 addresses, 0 gone>'
    first.close()
    close_all(r, second, *others)
    assert repr(limits) == '<Limits: 0 connections, 0 addresses, 1 gone>'


@pytest.mark.scenario(174)
def test_the_limit_per_address_applies_to_each_address_alone(r, sockets):
    listener, conns = listen(r, limits=Limits(per_address=2))
    clients = [connect(sockets, listener) for _ in range(10)]
    run_until(r, lambda: r.stats().refused_per_address == 8)
    connect(sockets, listener, '127.0.0.2')
    run_until(r, lambda: len(conns) == 3)
    assert sum(idle_socket(client) for client in clients) == 2
    conns[0].abort()
    turns(r, 1)
    connect(sockets, listener)
    run_until(r, lambda: len(conns) == 4)
    connect(sockets, listener)
    run_until(r, lambda: r.stats().refused_per_address == 9)
    close_all(r, listener, *conns)


def test_a_client_that_cannot_be_registered_is_not_counted():
    limits = Limits(per_address=1)
    for count in range(3, 9):  # one of these registrations is for the accepted connection
        with Reactor(kernel=FailingKernel('register', errno.ENOMEM, count)) as r:
            conns = []
            r.listen_tcp('10.0.0.1', 80, on_connect=conns.append, limits=limits)
            r.call_later(5, r.stop)
            r.connect_tcp('10.0.0.1', 80, timeout=4)
            r.run()
            if r.stats().accepts_refused:
                assert repr(limits).startswith('<Limits: 0 connections, 0 addresses')
                r.connect_tcp('10.0.0.1', 80)
                run_until(r, lambda conns=conns: conns)
                return
    raise AssertionError('no registration was for the accepted connection')


# -- rates


@pytest.mark.scenario(174)
def test_an_address_can_connect_while_it_has_tokens(kernel, fake, sockets):
    listener, conns = listen(fake, limits=Limits(connect_rate=(2, 3)))

    def connect_many(count, host=HERE):
        before = len(conns)
        for _ in range(count):
            connect(sockets, listener, host)
        while not idle(fake, 3):
            pass
        return len(conns) - before

    assert connect_many(5) == 3
    assert connect_many(5, '127.0.0.2') == 3
    kernel.time += 0.5
    assert connect_many(3) == 1
    kernel.time += 1
    assert connect_many(3) == 2
    kernel.time += 1000
    assert connect_many(5) == 3
    assert fake.stats().refused_rate == 2 + 2 + 2 + 1 + 2


def test_requests_are_allowed_while_their_address_has_tokens(kernel, fake, sockets):
    limits = Limits(request_rate=(1, 2))
    listener, conns = listen(fake, limits=limits)
    for _ in range(2):
        connect(sockets, listener)
    connect(sockets, listener, '127.0.0.2')
    while len(conns) < 3:
        fake.run_once(0)
    ours = [conn for conn in conns if conn.peername[0] == HERE]
    other = next(conn for conn in conns if conn not in ours)
    assert [limits.allow(ours[0]), limits.allow(ours[1]), limits.allow(ours[0]), limits.allow(ours[1])] == [
        True, True, False, False,
    ]  # fmt: skip
    assert limits.allow(other)
    kernel.time += 1
    assert (limits.allow(ours[0]), limits.allow(ours[1])) == (True, False)
    assert fake.stats().requests_refused == 3
    ours[1].close()
    assert limits.allow(ours[1])  # the connection is closed, so there is nothing to refuse
    listener.close()


def test_without_a_rate_every_request_is_allowed(r, sockets):
    limits = Limits()
    listener, conns = listen(r, limits=limits)
    connect(sockets, listener)
    run_until(r, lambda: conns)
    assert all(limits.allow(conns[0]) for _ in range(1000))
    close_all(r, listener, *conns)


def test_on_a_unix_socket_each_connection_has_its_own_request_rate(r, sockets, tmp_path):
    limits = Limits(
        request_rate=(1, 2), per_address=1, connect_rate=(0.001, 1), connections=2, refuse=lambda address: True
    )
    conns = []
    path = str(tmp_path / 's')
    listener = r.listen_unix(path, on_connect=conns.append, limits=limits)
    for _ in range(3):
        client = sockets.track(socket.socket(socket.AF_UNIX))
        client.connect(path)
    run_until(r, lambda: r.stats().refused_connections)
    assert [[limits.allow(conn) for _ in range(3)] for conn in conns] == [[True, True, False]] * 2
    assert repr(limits) == '<Limits: 2 connections, 0 addresses, 0 gone>'
    close_all(r, listener, *conns)


def test_tokens_grow_to_the_burst_and_no_further():
    tokens = TokenBucket(0, (10, 2))
    assert [tokens.take(now, (10, 2)) for now in (0, 0, 0, 0.09, 0.11, 0.11, 5, 5, 5)] == [
        True, True, False, False, True, False, True, True, False,
    ]  # fmt: skip


# -- remembered addresses


def through_proxy(r, sockets, listener, source, v6=False, wait=True):
    """Connect as a proxy whose header says that the client is at `source`."""
    client = sockets.connect(listener.address)
    body = ends6(source) if v6 else ends4(source)
    client.send(v2(family=0x21 if v6 else 0x11, body=body))
    if wait:
        before = r.stats().proxy_headers
        run_until(r, lambda: r.stats().proxy_headers > before)
        turns(r, 1)
    return client


@pytest.mark.scenario(175)
def test_at_most_max_addresses_are_remembered(fake, sockets):
    limits = Limits(connect_rate=(0.001, 1), max_addresses=10)
    log = Log()
    listener, conns = listen(fake, log, limits=limits, proxy_protocol=['127.0.0.0/8'])
    for number in range(30):
        through_proxy(fake, sockets, listener, f'10.0.0.{number}').close()
        run_until(fake, lambda: not listener.open_connections)
    assert repr(limits) == '<Limits: 0 connections, 0 addresses, 10 gone>'
    through_proxy(fake, sockets, listener, '10.0.0.29')
    assert fake.stats().refused_rate == 1
    through_proxy(fake, sockets, listener, '10.0.0.1')  # this address was forgotten, so it counts as new
    assert (fake.stats().refused_rate, len(conns)) == (1, 31)
    assert repr(limits) == '<Limits: 1 connections, 1 addresses, 9 gone>'
    listener.close()


@pytest.mark.scenario(175)
def test_an_address_is_forgotten_when_it_has_all_its_tokens_again(kernel, fake, sockets):
    limits = Limits(connect_rate=(1, 5))
    listener, _ = listen(fake, limits=limits, proxy_protocol=['127.0.0.0/8'])
    for number in range(20):
        through_proxy(fake, sockets, listener, f'10.0.0.{number}').close()
        run_until(fake, lambda: not listener.open_connections)
    assert '20 gone' in repr(limits)
    kernel.time += 6
    for number in range(20, 30):
        through_proxy(fake, sockets, listener, f'10.0.0.{number}').close()
        run_until(fake, lambda: not listener.open_connections)
    assert '10 gone' in repr(limits)
    listener.close()


def test_a_refused_address_stays_remembered_while_it_has_a_connection(kernel, fake, sockets):
    listener, conns = listen(fake, limits=Limits(connect_rate=(0.001, 1), max_addresses=0))
    connect(sockets, listener)
    while not conns:
        fake.run_once(0)
    connect(sockets, listener)
    while not fake.stats().refused_rate:
        fake.run_once(0)
    listener.close()


def test_closed_connections_are_freed_without_the_collector(r, sockets):
    limits = Limits(
        per_address=9, lifetime=100, request_rate=(9, 9), min_rate=(1, 1) if sys.platform == 'linux' else None
    )
    listener, conns = listen(r, limits=limits)
    gc.disable()
    try:
        clients = [connect(sockets, listener) for _ in range(3)]
        run_until(r, lambda: len(conns) == 3)
        freed = [weakref.ref(conn) for conn in conns]
        conns.clear()
        for client in clients:
            client.close()
        run_until(r, lambda: not listener.open_connections)
        turns(r, 2)
        assert [ref() for ref in freed] == [None] * 3
        assert len(r.timers.buckets) == 0
        close_all(r, listener)
    finally:
        gc.enable()


# -- behind a proxy


@pytest.mark.scenario(174)
def test_behind_a_proxy_the_limits_apply_to_the_real_client(r, sockets):
    asked, log = [], Log()
    limits = Limits(per_address=1, refuse=lambda address: asked.append(address) or address[0] == '192.0.2.66')
    listener, conns = listen(r, log, limits=limits, proxy_protocol=['127.0.0.0/8'])
    for source in '192.0.2.1', '192.0.2.2':
        through_proxy(r, sockets, listener, source)
    assert log == [('connect',)] * 2
    clients = [through_proxy(r, sockets, listener, source) for source in ('192.0.2.1', '192.0.2.66')]
    run_until(r, lambda: len(log) == 4)
    assert log.names() == ['connect', 'connect', 'close', 'close']
    assert [type(exc) for _, exc in log[2:]] == [ClientRefused] * 2
    reason = 'its address has 1 connections open; the limit is per_address=1'
    assert f'192.0.2.1:51234 was refused: {reason}' in str(log[2][1])
    assert asked == [(host, 51234) for host in ('192.0.2.1', '192.0.2.2', '192.0.2.1', '192.0.2.66')]
    assert (r.stats().refused_per_address, r.stats().refused_by_hook) == (1, 1)
    assert r.stats().callback_errors == 0
    assert all(is_reset(client) for client in clients)
    conns[0].abort()
    turns(r, 1)
    through_proxy(r, sockets, listener, '192.0.2.1')
    assert len(conns) == 3
    close_all(r, listener, *conns)


@pytest.mark.scenario(174)
def test_an_ipv6_address_counts_as_its_whole_network(r, sockets):
    listener, conns = listen(r, limits=Limits(per_address=1), proxy_protocol=['127.0.0.0/8'])
    for source in '2001:db8:0:1::1', '2001:db8:0:2::1', '2001:db8:0:1:ffff::9':
        through_proxy(r, sockets, listener, source, v6=True)
    assert (len(conns), r.stats().refused_per_address) == (2, 1)
    close_all(r, listener, *conns)


def test_local_connections_of_a_proxy_are_not_limited_and_unknown_ones_only_in_number(r, sockets):
    limits = Limits(connections=2, per_address=1, refuse=lambda address: True)
    log = Log()
    listener, conns = listen(r, log, limits=limits, proxy_protocol=['127.0.0.0/8'])
    for name in ['v1-unknown'] * 3 + ['v2-local'] * 3 + ['v2-unix']:
        before = len(log)
        sockets.connect(listener.address).send(HEADERS[name][0])
        run_until(r, lambda before=before: len(log) > before)
    assert [conn.proxy.command for conn in conns] == ['PROXY'] * 2 + ['LOCAL'] * 3
    assert r.stats().refused_connections == 2
    assert r.stats().refused_by_hook == 0
    close_all(r, listener, *conns)


def test_behind_a_proxy_an_exception_of_the_hook_ends_the_connection(r, sockets, caplog):
    for on_error in None, Log().on_error:
        log = Log()
        listener, _ = listen(
            r, log, limits=Limits(refuse=lambda address: 1 // 0), proxy_protocol=['127.0.0.0/8'], on_error=on_error
        )
        through_proxy(r, sockets, listener, '192.0.2.1')
        assert log.names() == ['close']
        assert type(log[0][1]) is ClientRefused
        close_all(r, listener)
    assert 'ZeroDivisionError' in caplog.text


def test_listeners_with_limits_and_behind_a_proxy_share_one_class(r, sockets):
    assert type(r.listen_tcp(HERE, 0)) is Listener
    kinds = [r.listen_tcp(HERE, 0, limits=Limits()), r.listen_tcp(HERE, 0, proxy_protocol=['::1'])]
    assert len({type(listener) for listener in kinds}) == 1
    for listener in r.handles():
        listener.close()


# -- lifetime


def test_a_connection_ends_with_its_lifetime(kernel, fake, sockets):
    log = Log()
    listener, conns = listen(fake, log, limits=Limits(lifetime=5))
    began = kernel.time
    client = connect(sockets, listener)
    while not conns:
        fake.run_once()
    client.send(b'x')
    while 'close' not in log.names():
        fake.run_once()
    assert type(log[-1][1]) is LifetimeOver
    assert isinstance(log[-1][1], TimeoutError)
    assert began + 5 <= kernel.time <= began + 6.1
    assert fake.stats().ended_lifetime == 1
    assert len(fake.timers.buckets) == 0
    listener.close()


# -- minimum rate


class Pace:
    """A server with a minimum rate, one client of this server, and a clock that the test moves."""

    def __init__(self, fake, kernel, sockets, **options):
        self.r, self.kernel, self.log = fake, kernel, Log()
        self.listener, conns = listen(fake, self.log, **options)
        self.client = connect(sockets, self.listener)
        while not conns:
            fake.run_once(0)
        self.conn = conns[0]

    def second(self):
        """Let one second pass, and run the timers that are due."""
        turns(self.r, 2)
        self.kernel.time += 1
        turns(self.r, 2)

    def seconds_until_slow(self, each_second, most=60):
        """Return the number of seconds until the client is closed as too slow, or None if it never is."""
        for count in range(1, most):
            each_second()
            self.second()
            if 'close' in self.log.names():
                assert type(self.log[-1][1]) is TooSlow
                return count
        return None


@pytest.fixture
def pace(fake, kernel, sockets):
    made = []

    def make(rate=10, grace=8, **options):
        made.append(Pace(fake, kernel, sockets, limits=Limits(min_rate=(rate, grace)), **options))
        return made[-1]

    yield make
    for one in made:
        one.conn.abort()
        one.listener.close()
    turns(fake, 2)


@pytest.mark.scenario(78)
@counted
def test_a_client_that_sends_too_slowly_is_reset_after_the_grace(pace):
    slow = pace()
    count = slow.seconds_until_slow(lambda: slow.client.send(b'x'))
    assert 9 <= count <= 8 + 2 + 4
    assert 'sent too slowly' in str(slow.log[-1][1])
    assert isinstance(slow.log[-1][1], TimeoutError)
    assert slow.r.stats().ended_slow == 1
    assert is_reset(slow.client)


@counted
def test_a_client_that_sends_fast_enough_stays_open(pace):
    fast = pace()
    assert fast.seconds_until_slow(lambda: fast.client.send(b'x' * 11)) is None


@counted
def test_bytes_sent_early_give_a_client_time_later(pace):
    slow = pace()
    slow.client.send(b'x')
    for _ in range(4):
        slow.second()
    slow.client.send(b'x' * 200)  # at the minimum rate, these bytes last twenty seconds
    count = slow.seconds_until_slow(lambda: slow.client.send(b'x'))
    assert 20 <= count <= 20 + 8 + 6


@pytest.mark.scenario(78)
@counted
def test_a_client_that_waits_for_an_answer_is_not_slow(pace):
    waiting = pace()
    waiting.client.send(b'GET / HTTP/1.1\r\n\r\n')
    assert waiting.seconds_until_slow(lambda: None) is None


@counted
def test_a_silent_client_is_not_slow(pace):
    silent = pace()
    assert silent.seconds_until_slow(lambda: None) is None


@counted
def test_each_answer_restarts_the_measurement(pace):
    talking = pace()

    def talk():
        talking.client.send(b'x')
        turns(talking.r, 1)
        talking.conn.write(b'y')
        talking.client.recv(9)

    assert talking.seconds_until_slow(talk) is None


@counted
def test_a_client_that_is_not_read_is_not_slow(pace):
    paused = pace()
    paused.conn.pause_reading()
    assert paused.seconds_until_slow(lambda: paused.client.send(b'x')) is None


@counted
def test_a_client_that_is_not_read_is_not_slow_even_while_bytes_wait_for_it(pace):
    paused = pace()
    paused.conn.pause_reading()
    paused.conn.write(b'x' * 16_000_000)
    for _ in range(4):
        paused.second()
    assert paused.client.recv(1 << 20)  # at the minimum rate, these bytes last hours
    paused.second()
    assert paused.conn.buffered
    assert paused.seconds_until_slow(lambda: paused.client.send(b'x')) is None


@pytest.mark.scenario(176)
@counted
def test_a_client_that_reads_nothing_is_reset_after_the_grace(pace):
    slow = pace()
    slow.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(200):
        slow.conn.write(b'x' * 65536)
    count = slow.seconds_until_slow(lambda: None)
    assert 9 <= count <= 8 + 2 + 4
    assert 'read too slowly' in str(slow.log[-1][1])


@pytest.mark.scenario(176)
@counted
def test_a_client_whose_answer_waits_in_the_kernel_can_be_too_slow(pace):
    slow = pace()
    slow.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    slow.conn.write(b'x' * 500_000)
    if slow.conn.buffered:
        pytest.skip('the socket buffers of this kernel take less than half a megabyte')
    assert slow.seconds_until_slow(lambda: None) is not None


@counted
def test_a_client_that_reads_fast_enough_stays_open(pace):
    fast = pace()

    def take():
        fast.conn.write(b'x' * 1_000_000)
        for _ in range(100):
            turns(fast.r, 1)
            try:
                fast.client.recv(1 << 20)
            except BlockingIOError:
                pass

    fast.conn.set_write_limits(1 << 30, 1 << 20)
    assert fast.seconds_until_slow(take, 16) is None


@counted
def test_reading_everything_in_time_restarts_the_measurement(pace):
    fast = pace(grace=4)
    for _ in range(3):
        fast.conn.write(b'x' * 16_000_000)
        assert fast.conn.buffered
        for _ in range(3):
            fast.second()
        while fast.conn.buffered or not idle_socket(fast.client):
            turns(fast.r, 1)
            try:
                fast.client.recv(1 << 20)
            except BlockingIOError:
                pass
        for _ in range(3):
            fast.second()
    assert fast.log.names() == ['connect']


@counted
def test_a_connection_that_is_closing_or_broken_is_left_alone(pace):
    closing = pace(linger=20)
    fill(closing.client)
    closing.conn.pause_reading()
    closing.conn.close()
    assert closing.conn.state == 'CLOSING'
    for _ in range(10):
        closing.second()
    assert closing.log.names() == ['connect']
    broken = pace()
    closed, broken.conn.sock = broken.conn.sock, Gone(broken.conn.sock)
    for _ in range(4):
        broken.second()
    assert broken.log.names() == ['connect']
    broken.conn.sock = closed


class Gone:
    """A socket on which every getsockopt fails, because the connection is gone."""

    def __init__(self, sock):
        self.fileno = sock.fileno

    def getsockopt(self, *args):
        raise OSError(errno.ENOTCONN, 'gone')


@counted
def test_the_rate_is_checked_four_times_in_a_grace_period(pace):
    fast = pace(grace=100)
    checks = []
    counts = fast.kernel.tcp_counts
    fast.kernel.tcp_counts = lambda sock: checks.append(1) or counts(sock)
    for _ in range(100):
        fast.second()
    assert len(checks) == 4


def test_a_minimum_rate_is_refused_where_the_kernel_does_not_count_bytes(r, tmp_path, monkeypatch):
    limits = Limits(min_rate=(1, 1))
    with pytest.raises(OSError, match='Linux'):
        r.listen_unix(str(tmp_path / 's'), limits=limits)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match='Linux'):
        r.listen_tcp(None, 0, sock=sock, limits=limits)
    monkeypatch.setattr(FakeKernel, 'counts_tcp', False)
    with Reactor(kernel=FakeKernel()) as other, pytest.raises(OSError, match='Linux'):
        other.listen_tcp(HERE, 0, limits=limits)


# -- no memory


@pytest.mark.parametrize('when', ['before it is counted', 'LimitedClient.__init__', 'LimitedClient.begin'])
def test_a_client_for_which_memory_runs_out_is_reset_and_not_counted(fake, sockets, monkeypatch, when):
    limits, log = Limits(connections=1, per_address=1, lifetime=60), Log()
    listener, conns = listen(fake, log, limits=limits)
    if when == 'before it is counted':
        fake.completions = ShortDeque()
    else:
        run_short(monkeypatch, LimitedClient, when.removeprefix('LimitedClient.'))
    client = connect(sockets, listener)
    turns(fake, 3)
    client.setblocking(True)
    assert is_reset(client)
    assert [(name, type(exc)) for name, exc in log if name == 'close'] == [('close', MemoryError)]
    assert repr(limits).startswith('<Limits: 0 connections, 0 addresses, ')
    connect(sockets, listener)
    run_until(fake, lambda: len(conns) and not conns[-1].closed)
    assert fake.stats().refused_connections == fake.stats().refused_per_address == 0
    close_all(fake, listener, *conns)


class ShortDeque(deque):
    """A completions queue that has no memory for its first entry."""

    short = True

    def append(self, completion):
        if self.short:
            self.short = False
            raise MemoryError
        super().append(completion)


# -- arguments


def test_the_default_is_to_remember_fifty_thousand_addresses():
    assert Limits().max_addresses == 50_000


@counted
@pytest.mark.parametrize('name', ['connect_rate', 'request_rate', 'min_rate'])
@pytest.mark.parametrize('rate', [(10**400, 10**400), (1, 10**400), (10**400, 1), (5e-324, 1e308)])
def test_a_rate_of_any_size_works(kernel, fake, sockets, name, rate):
    limits = Limits(**{name: rate})
    listener, conns = listen(fake, limits=limits)
    for number in 1, 2:
        connect(sockets, listener).send(b'x')
        run_until(fake, lambda number=number: len(conns) == number or fake.stats().refused_rate)
        kernel.time += 1
    assert limits.allow(conns[0]) and fake.stats().callback_errors == 0
    close_all(fake, listener, *conns)


@pytest.mark.parametrize(
    ('error', 'arguments'),
    [
        (TypeError, {'refuse': 1}),
        (TypeError, {'connections': 1.5}),
        (ValueError, {'connections': -1}),
        (ValueError, {'per_address': -1}),
        (TypeError, {'max_addresses': '9'}),
        (TypeError, {'connect_rate': 1}),
        (TypeError, {'connect_rate': (1,)}),
        (ValueError, {'connect_rate': (0, 1)}),
        (ValueError, {'connect_rate': (1, 0.5)}),
        (ValueError, {'request_rate': (float('nan'), 1)}),
        (ValueError, {'request_rate': (1, float('inf'))}),
        (ValueError, {'lifetime': -1}),
        (ValueError, {'min_rate': (0, 1)}),
        (ValueError, {'min_rate': (1, -1)}),
    ],
    ids=str,
)
def test_a_wrong_limit_raises_at_the_call(error, arguments):
    with pytest.raises(error, match=next(iter(arguments))):
        Limits(**arguments)


def test_limits_of_another_type_raise_at_the_call(r):
    with pytest.raises(TypeError, match=r'reactor\.Limits'):
        r.listen_tcp(HERE, 0, limits=5)


@pytest.mark.parametrize('secured', [False, True])
def test_limits_hold_over_tls_too(r, sockets, certificates, secured):  # noqa: F811
    keywords = {'ssl': certificates.server()} if secured else {}
    log = Log()
    limits = Limits(per_address=1, min_rate=(1, 4) if sys.platform == 'linux' else None)
    listener, conns = listen(r, log, limits=limits, **keywords)
    options = {'ssl': certificates.client(), 'server_hostname': 'localhost'} if secured else {}
    clients = [r.connect_tcp(*listener.address, **options) for _ in range(2)]
    run_until(r, lambda: conns and r.stats().refused_per_address)
    assert [client.closed for client in clients].count(True) <= 1
    close_all(r, listener, *conns, *clients)
    assert reactor.Limits is Limits


@counted
def test_a_client_whose_socket_other_code_has_closed_is_noticed_when_its_speed_is_checked(r, sockets):
    """Regression: epoll does not report such a socket, and the error of the check was ignored."""
    log = Log()
    listener, conns = listen(r, log, limits=Limits(min_rate=(1, 1)))
    connect(sockets, listener)
    run_until(r, lambda: conns)
    os.close(conns[0].fileno())
    run_until(r, lambda: 'close' in log.names())
    assert log[-1][1].errno == errno.EBADF
    listener.close()
