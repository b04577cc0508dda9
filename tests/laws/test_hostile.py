"""Many hostile peers on the real kernel: nothing spins, grows or fills the log, and other clients are served."""

from __future__ import annotations

import gc
import logging
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter

import psutil
import pytest

from reactor import (
    FrameTooLong,
    Reactor,
    ReactorError,
    TLSError,
    WriteBufferFull,
    WriteTimeout,
    framing,
)
from tests.conftest import check_empty, open_descriptors
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import Log, drain, reset, run_until, tcp_sockets, turns, turns_in

resource = pytest.importorskip('resource', reason='hostile peers in numbers: this platform has no descriptor limit')

HERE = '127.0.0.1'
SLOW, DEADLINE = 2000, 1.0  # the number of clients, and the time in seconds that each has to send its request
BATCH = 100  # connections that are made between two turns of the reactor
PAYLOAD = b'EVIL%s%n\r{0}'  # must not appear in any message


@pytest.fixture(scope='module', autouse=True)
def many_descriptors():
    """Raise the descriptor limit to its maximum; each client of these tests takes two descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def r():
    """A reactor on the best selector. A test fails if it leaves anything open."""
    with Reactor() as reactor:
        yield reactor
        turns(reactor, 2)
        check_empty(reactor)


def connected(r, sockets, listener, count, prepare=None, source=HERE):
    """Return `count` plain non-blocking clients of `listener`."""
    made = []
    for index in range(count):
        client = sockets.track(socket.socket())
        if prepare is not None:
            prepare(client)
        client.bind((source, 0))
        client.connect(listener.address)
        client.setblocking(False)
        made.append(client)
        if index % BATCH == BATCH - 1:
            turns(r, 3)
    return made


def answered(r, client, timeout=5):
    """Return whether an echo is served. The time limit is long, so that only a starved client fails."""
    received = []
    client.send(b'ping')

    def echoed():
        received.append(drain(client))
        return b''.join(received) == b'ping'

    run_until(r, echoed, timeout)
    return True


def say(client, data):
    """Send as much as the kernel accepts, unless the client has already been disconnected."""
    try:
        client.send(data)
    except OSError:
        pass


def echo(conn, data):
    conn.write(data)


@pytest.fixture
def bystander(r, sockets):
    """A client of an echo server on the same reactor: a function that requests an echo, which must always be served."""
    listener = r.listen_tcp(HERE, 0, echo)
    (client,) = connected(r, sockets, listener, 1)
    assert answered(r, client)
    yield lambda: answered(r, client)
    assert answered(r, client)
    client.close()
    run_until(r, lambda: not listener.open_connections)
    listener.close()


def known_objects():
    """Return how many objects exist, without a garbage collection; a leak would increase this number."""
    return len(gc.get_objects())


# -- row 78: clients that send a byte now and then


@pytest.mark.scenario(78)
def test_thousands_of_slow_clients_end_at_a_deadline_that_their_bytes_do_not_extend(
    r, sockets, bystander, many_descriptors
):
    if many_descriptors < 2 * SLOW + 100:
        pytest.skip(f'{SLOW} clients need {2 * SLOW + 100} descriptors, but only {many_descriptors} are available')
    ended = []

    def on_connect(conn):
        conn.data = r.call_later(DEADLINE, conn.abort).deadline

    def on_line(conn, line):
        raise AssertionError('no line was sent')

    def on_close(conn, exc):
        ended.append((r.now - conn.data, exc))

    def drip():
        for client in clients:
            say(client, b'G')

    listener = r.listen_tcp(HERE, 0, framing.lines(on_line), on_connect=on_connect, on_close=on_close)
    clients = []
    beat = r.call_every(DEADLINE / 10, drip)
    while len(clients) < SLOW:
        clients += connected(r, sockets, listener, BATCH)
    while len(ended) < SLOW:
        bystander()
    assert all(0 <= late < 5 and exc is None for late, exc in ended)
    assert r.stats().bytes_in > 2 * SLOW
    beat.cancel()
    listener.close()


@pytest.mark.scenario(78)
def test_bytes_that_drip_in_create_no_objects(r, sockets):
    listener = r.listen_tcp(HERE, 0, framing.lines(echo), idle_timeout=60)
    clients = connected(r, sockets, listener, 200)

    def drip(count):
        for _ in range(count):
            before = r.stats().bytes_in
            for client in clients:
                client.send(b'G')
            run_until(r, lambda before=before: r.stats().bytes_in == before + len(clients))

    drip(2)
    before = known_objects()
    drip(20)
    assert known_objects() - before < len(clients) / 10
    for client in clients:
        client.close()
    run_until(r, lambda: not listener.open_connections)
    listener.close()


@pytest.mark.scenario(78)
def test_thousands_of_silent_clients_cost_no_turns(r, sockets, bystander):
    listener = r.listen_tcp(HERE, 0, echo, idle_timeout=60)
    clients = connected(r, sockets, listener, 400)
    run_until(r, lambda: listener.open_connections == 400)
    assert turns_in(r, 0.3) < 10
    bystander()
    for client in clients:
        client.close()
    run_until(r, lambda: not listener.open_connections)
    listener.close()


# -- row 79: clients that request a lot and read nothing


def small_buffer(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


@pytest.mark.scenario(79)
@pytest.mark.alone
def test_stalled_readers_cost_high_water_and_one_write_each_and_end_at_the_write_timeout(r, sockets, bystander):
    count, chunk, high_water = 300, 100_000, 65536
    log, conns = Log(), []

    def pump(conn):
        while conn.write(bytes(chunk)):
            pass

    def on_connect(conn):
        conns.append(conn)
        pump(conn)

    before = psutil.Process().memory_info().rss
    listener = r.listen_tcp(
        HERE, 0, on_connect=on_connect, on_drain=pump, on_close=log.on_close, write_timeout=0.5, high_water=high_water
    )
    connected(r, sockets, listener, count, small_buffer)
    run_until(r, lambda: len(conns) == count)
    assert all(high_water <= conn.buffered < high_water + chunk for conn in conns if not conn.closed)
    assert psutil.Process().memory_info().rss - before < count * (high_water + chunk) + (50 << 20)
    bystander()
    run_until(r, lambda: len(log) == count)
    assert {type(exc) for _, exc in log} == {WriteTimeout}
    listener.close()


@pytest.mark.scenario(79)
def test_a_server_that_ignores_false_loses_only_clients_that_do_not_read(r, sockets, bystander):
    count, chunk, most = 200, 50_000, 200_000
    log, conns, largest = Log(), [], []

    def publish():
        for conn in conns:
            conn.write(bytes(chunk)) if not conn.closed else None
        largest.append(max((conn.buffered for conn in conns if not conn.closed), default=0))

    listener = r.listen_tcp(HERE, 0, on_connect=conns.append, on_close=log.on_close, max_buffered=most)
    connected(r, sockets, listener, count, small_buffer)
    run_until(r, lambda: len(conns) == count)
    beat = r.call_every(0.01, publish)
    while len(log) < count:
        bystander()
    assert {type(exc) for _, exc in log} == {WriteBufferFull}
    assert most - chunk <= max(largest) < most + chunk
    beat.cancel()
    listener.close()


# -- row 80: clients that connect, send and reset


@pytest.mark.scenario(80, 119)
@pytest.mark.timeout(600)  # the test computes for a long time
@pytest.mark.parametrize('clients', [10_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_storm_of_resets_leaves_nothing_behind(r, sockets, bystander, caplog, clients):
    caplog.set_level(logging.INFO)
    ended = []
    listener = r.listen_tcp(HERE, 0, echo, on_close=lambda conn, exc: ended.append(1))

    def storm(count):
        for index in range(count):
            client = socket.socket()
            client.connect(listener.address)
            if index % 2:
                client.send(PAYLOAD)
            reset(client)
            if index % BATCH == BATCH - 1:
                turns(r, 2)
        run_until(r, lambda: not listener.open_connections and turns_in(r, 0.01) < 5)

    storm(500)
    gc.collect()
    gc.disable()
    try:
        ended.clear()
        objects, descriptors, accepts = known_objects(), open_descriptors(), r.stats().accepts
        for _ in range(clients // 2000):
            storm(2000)
            bystander()
        accepted = r.stats().accepts - accepts
        assert accepted == len(ended)
        assert sys.platform != 'linux' or accepted == clients
        assert known_objects() - objects < 50
        assert open_descriptors() == descriptors
    finally:
        gc.enable()
    assert caplog.records == []
    listener.close()


# -- row 81: more connections than allowed


@pytest.mark.scenario(81)
def test_clients_beyond_the_limit_cost_no_turns_and_open_connections_are_served(r, sockets, bystander):
    listener = r.listen_tcp(HERE, 0, echo, max_connections=100)
    clients = connected(r, sockets, listener, 500)
    run_until(r, lambda: listener.open_connections == 100)
    assert turns_in(r, 0.2) < 10
    bystander()
    assert all(answered(r, client) for client in clients[:100])
    for client in clients[:60]:
        client.close()
    run_until(r, lambda: r.stats().accepts == 1 + 160)
    assert listener.open_connections == 100
    assert answered(r, clients[159])
    for client in clients[60:]:
        client.close()
    run_until(r, lambda: r.stats().accepts == 1 + 500 and not listener.open_connections)
    listener.close()


@pytest.mark.scenario(81)
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has all of 127.0.0.0/8')
def test_a_user_can_limit_one_address_with_a_few_lines(r, sockets, bystander):
    most, open_from = 20, {}

    def on_connect(conn):
        conn.data = host = conn.peername[0]
        open_from[host] = open_from.get(host, 0) + 1
        if open_from[host] > most:
            conn.abort()

    def on_close(conn, exc):
        if conn.data is not None:  # None: the connection was gone before on_connect
            open_from[conn.data] -= 1

    listener = r.listen_tcp(HERE, 0, echo, on_connect=on_connect, on_close=on_close)
    greedy = connected(r, sockets, listener, 300, source='127.0.0.2')
    (modest,) = connected(r, sockets, listener, 1, source='127.0.0.3')
    run_until(r, lambda: r.stats().accepts == 1 + 301 and listener.open_connections == most + 1)
    assert open_from == {'127.0.0.2': most, '127.0.0.3': 1}
    assert answered(r, modest)
    assert sum(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 for client in greedy) == 300 - most
    for client in (*greedy, modest):
        client.close()
    run_until(r, lambda: not listener.open_connections)
    assert set(open_from.values()) == {0}
    listener.close()


# -- row 82: garbage where a protocol is expected


def hand_over(r, clients, messages):
    """Let each client send as much of its message as the kernel accepts, and then shut down its sending side."""
    for client, message in zip(clients, messages, strict=True):
        say(client, message)
        try:
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has already been disconnected
        r.run_once(0)


def kinds_of_garbage(rng):
    yield lambda: rng.randbytes(200_000)
    yield lambda: b'GET / HTTP/1.1\r\n' + PAYLOAD * 1000
    yield lambda: b'\x16\x03\x01\xff\xff' + rng.randbytes(70_000)  # a record of 65,535 bytes
    yield lambda: b'\x17\x03\x03\x00\x10' * 10_000  # data before the handshake
    yield lambda: b'\x15\x03\x03\x00\x02\x01\x00' * 5_000  # alerts without end
    yield lambda: b'\x80\x2e' + rng.randbytes(1000)  # the beginning of an SSL 2 connection


@pytest.mark.scenario(82)
def test_garbage_on_a_tls_port_causes_one_error_each_and_is_read_no_further(
    r, sockets, bystander, certificates, caplog  # noqa: F811
):  # fmt: skip
    caplog.set_level(logging.INFO)
    rng, log = random.Random(82), Log()
    context = certificates.server()
    listener = r.listen_tcp(HERE, 0, echo, ssl=context, **log.callbacks('on_connect', 'on_close'))
    kinds = list(kinds_of_garbage(rng))
    count = 50 * len(kinds)
    clients = connected(r, sockets, listener, count)
    before = r.stats()
    hand_over(r, clients, [kinds[index % len(kinds)]() for index in range(count)])
    run_until(r, lambda: len(log) == count)
    bystander()
    after = r.stats()
    assert log.names() == ['close'] * count
    for _, exc in log:
        assert isinstance(exc, TLSError | OSError), exc
        assert len(str(exc)) < 300 and 'EVIL' not in str(exc)
    assert sum(isinstance(exc, TLSError) for _, exc in log) > count * 0.9
    assert after.bytes_in - before.bytes_in <= count * 2 * 65536
    assert after.reads - before.reads <= 3 * count
    assert caplog.records == []
    listener.close()


def hello():
    """Return the first bytes that a TLS client sends, its ClientHello."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname='localhost').do_handshake()
    return outgoing.read()


def damaged(rng, message):
    """Return the message with a few bytes changed, dropped or inserted."""
    found = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found))
        what = rng.randrange(4)
        if what == 0:
            found[at] = rng.randrange(256)
        elif what == 1:
            del found[at:]
        elif what == 2:
            del found[at : at + rng.randint(1, 20)]
        else:
            found[at:at] = rng.randbytes(rng.randint(1, 20))
        found = found or bytearray(1)
    return bytes(found)


@pytest.mark.scenario(82)
def test_damaged_handshakes_end_with_one_error_each(
    r, sockets, bystander, certificates, caplog  # noqa: F811
):  # fmt: skip
    caplog.set_level(logging.INFO)
    rng, log, count = random.Random(83), Log(), 400
    listener = r.listen_tcp(HERE, 0, echo, ssl=certificates.server(), **log.callbacks('on_connect', 'on_close'))
    clients = connected(r, sockets, listener, count)
    first = hello()
    hand_over(r, clients, [damaged(rng, first) for _ in range(count)])
    run_until(r, lambda: len(log) == count)
    bystander()
    assert log.names() == ['close'] * count
    assert {isinstance(exc, TLSError | OSError) for _, exc in log} == {True}
    assert caplog.records == []
    listener.close()


@pytest.mark.scenario(82)
def test_lines_without_end_cause_one_error_each_and_are_read_no_further(r, sockets, bystander, caplog):
    caplog.set_level(logging.INFO)
    log, count, limit = Log(), 300, 10_000
    on_line = framing.lines(lambda conn, line: None, limit=limit)
    listener = r.listen_tcp(HERE, 0, on_line, on_close=log.on_close)
    clients = connected(r, sockets, listener, count)
    before = r.stats().bytes_in
    hand_over(r, clients, [PAYLOAD * 50_000] * count)
    run_until(r, lambda: len(log) == count)
    bystander()
    for _, exc in log:
        assert isinstance(exc, FrameTooLong | ConnectionResetError)
        assert len(str(exc)) < 300 and 'EVIL' not in str(exc)
    assert r.stats().bytes_in - before <= count * (limit + 65536) + 100
    assert caplog.records == []
    listener.close()


@pytest.mark.scenario(82)
def test_a_flood_of_empty_messages_is_bounded_in_a_turn(r, sockets, bystander):
    counts = {}  # the number of messages for each turn and connection

    def on_line(conn, line):
        key = r.counters.loop_count, conn
        counts[key] = counts.get(key, 0) + 1

    listener = r.listen_tcp(HERE, 0, framing.lines(on_line))
    clients = connected(r, sockets, listener, 10)
    for client in clients:
        client.send(b'\n' * 5_000)
    bystander()
    run_until(r, lambda: sum(counts.values()) == 50_000)
    assert max(counts.values()) == framing.MESSAGES_PER_TURN
    turns_with = Counter(turn for turn, _ in counts)
    assert max(turns_with.values()) == len(clients)  # no client has to wait for another client
    for client in clients:
        client.close()
    run_until(r, lambda: not listener.open_connections)
    listener.close()


@pytest.mark.scenario(82)
def test_the_cost_of_a_byte_does_not_grow_with_the_length_of_its_line(r, sockets):
    """When a line arrives in chunks of one byte, each byte takes as many calls in a long line as in a short one."""
    taken = []

    def calls_for(size):
        on_line = framing.lines(lambda conn, line: taken.append(len(line)), limit=size)
        ours, theirs = tcp_sockets(sockets)
        conn = r.adopt(ours)
        count = 0

        def profile(frame, event, arg):
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            for _ in range(size):
                on_line(conn, b'x') if conn.on_data is None else conn.on_data(conn, b'x')
            conn.on_data(conn, b'\n')
        finally:
            sys.setprofile(None)
        theirs.close()
        conn.abort()
        return count / size

    assert calls_for(20_000) < 1.1 * calls_for(2_000)
    assert taken == [20_000, 2_000]


# -- row 83: another thread closes a connection that the loop is about to select


@pytest.mark.scenario(83)
def test_in_debug_mode_other_threads_can_close_only_through_call_soon_threadsafe(sockets):
    with Reactor(debug=True) as r:
        log = Log()
        conns = [r.adopt(tcp_sockets(sockets)[0], echo, on_close=log.on_close) for _ in range(50)]
        refused, threads = [], []

        def meddle(mine):
            for conn in mine:
                for call in conn.close, conn.abort, conn.pause_reading:
                    try:
                        call()
                    except ReactorError as exc:
                        refused.append(exc)
            for conn in mine:
                r.call_soon_threadsafe(conn.close)

        def begin():
            for index in range(5):
                threads.append(threading.Thread(target=meddle, args=(conns[index::5],)))
                threads[-1].start()

        r.call_soon(begin)
        r.call_later(10, r.stop).unref()
        assert r.run() is True
        for thread in threads:
            thread.join()
        assert len(refused) == 3 * 50
        assert all('call_soon_threadsafe' in str(exc) for exc in refused)
        assert log == [('close', None)] * 50


@pytest.mark.scenario(83)
def test_a_thread_that_closes_connections_while_the_loop_selects_hurts_no_others(r, sockets, bystander):
    """The thread uses `call_soon_threadsafe` during traffic. Each of them ends once; other connections lose no byte."""
    log = Log()
    listener = r.listen_tcp(HERE, 0, echo, on_connect=lambda conn: conns.append(conn), on_close=log.on_close)
    conns = []
    clients = connected(r, sockets, listener, 200)
    run_until(r, lambda: len(conns) == 200)

    def close_all():
        for conn in conns:
            r.call_soon_threadsafe(conn.close)
            for client in clients[::10]:
                say(client, b'x')

    thread = threading.Thread(target=close_all)
    thread.start()
    while len(log) < 200:
        bystander()
    thread.join()
    assert log.names() == ['close'] * 200
    listener.close()


# -- row 84: clients that want to fill the log


def raising(conn, *args):
    raise ValueError(f'on purpose: {args}')


@pytest.mark.scenario(84)
@pytest.mark.parametrize('name', ['on_connect', 'on_data', 'on_eof', 'on_close'])
def test_exceptions_that_clients_cause_log_one_line_a_second_for_a_listener_and_are_all_counted(
    fake, kernel, sockets, caplog, name
):
    listener = fake.listen_tcp(HERE, 0, **{name: raising})
    another = fake.listen_tcp(HERE, 0, **{name: raising})

    def storm(listener, count):
        accepts = fake.stats().accepts + count
        for client in connected(fake, sockets, listener, count):
            say(client, PAYLOAD)
            client.close()
        run_until(fake, lambda: fake.stats().accepts == accepts and not fake.stats().incoming and not fake.completions)

    storm(listener, 200)
    assert len(caplog.records) == 1
    assert fake.stats().callback_errors >= 200
    storm(another, 20)
    assert len(caplog.records) == 2
    kernel.time += 1
    storm(listener, 200)
    assert len(caplog.records) == 3
    assert 'Traceback' in caplog.text and 'on purpose' in caplog.text
    for one in listener, another:
        one.close()


@pytest.mark.scenario(84)
def test_a_connection_with_its_own_limits_does_not_get_its_own_log_lines(fake, sockets, caplog):
    def on_connect(conn):
        conn.set_timeouts(idle=60)
        conn.set_write_limits(1000)

    listener = fake.listen_tcp(HERE, 0, raising, on_connect=on_connect)
    for client in connected(fake, sockets, listener, 50):
        say(client, b'x')
    run_until(fake, lambda: fake.stats().accepts == 50 and not listener.open_connections)
    assert len(caplog.records) == 1
    listener.close()


@pytest.mark.scenario(84)
def test_nothing_that_clients_do_to_a_server_without_faults_is_logged(
    r, sockets, bystander, certificates, caplog  # noqa: F811
):  # fmt: skip
    caplog.set_level(logging.INFO)
    plain = r.listen_tcp(HERE, 0, framing.lines(echo, limit=100), idle_timeout=1, write_timeout=1)
    secret = r.listen_tcp(HERE, 0, echo, ssl=certificates.server(), handshake_timeout=0.5)
    rng = random.Random(84)
    for _ in range(150):
        for listener in plain, secret:
            client = sockets.track(socket.create_connection(listener.address))
            client.setblocking(False)
            client.send(rng.choice((PAYLOAD, PAYLOAD + b'\n', PAYLOAD * 1000, b'\x16\x03\x01\x02\x00')))
            rng.choice((reset, socket.socket.close, lambda client: client.shutdown(socket.SHUT_WR), id))(client)
        r.run_once(0)
    bystander()
    run_until(r, lambda: not plain.open_connections + secret.open_connections)
    assert caplog.records == []
    plain.close()
    secret.close()


@pytest.mark.scenario(84)
@pytest.mark.skipif(sys.platform != 'linux', reason='abstract Unix sockets are a feature of Linux')
def test_the_name_that_a_unix_peer_gives_itself_cannot_forge_a_line(r, sockets, caplog):
    log = Log()
    listener = r.listen_unix(f'@reactor-hostile-{time.monotonic_ns()}', raising, on_close=log.on_close)
    client = sockets.track(socket.socket(socket.AF_UNIX))
    client.bind(f'\0{time.monotonic_ns()}\nERROR reactor: forged %s \x1b[2J'.encode())
    client.connect(listener.address)
    client.send(b'x')
    run_until(r, lambda: log)
    (record,) = caplog.records
    line = record.getMessage()
    assert 'forged %s' in line and '\n' not in line and '\x1b' not in line
    client.close()
    listener.close()
