"""Attacks that hurt other servers, tried on this library and on its examples.

Each test is named after the attack. Its docstring names the advisory or the document that describes it.
The HTTP tests run against `examples/http_server.py`, which parses HTTP with h11.
"""

from __future__ import annotations

import errno
import importlib.util
import random
import re
import socket
import ssl
import sys
import time
from collections import Counter

import psutil
import pytest

from reactor import ConnectionClosed, Limits, Reactor, TLSError, TooSlow, WriteBufferFull, framing
from tests.conftest import check_empty
from tests.examples.test_examples import client, example, read_to_end
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.hostile_tls import ENGINE, TLS_1_3, Peer
from tests.helpers.support import Log, idle, reset, run_until, turns

HERE = '127.0.0.1'
MANY = 200
MIB = 1 << 20


@pytest.fixture
def r():
    """A reactor on the best selector. A test fails if it leaves anything open."""
    with Reactor() as reactor:
        yield reactor
        turns(reactor, 2)
        check_empty(reactor)


# -- connections that are gone or closed


@pytest.mark.scenario(177)
def test_clients_that_disconnect_before_getpeername_cause_no_busy_loop(r, sockets):
    """waitress, GHSA-3f84-rpwh-47g6: `getpeername` failed, and the incomplete connection was polled for ever."""
    log, names = Log(), []
    listener = r.listen_tcp(
        HERE, 0, log.on_data, on_connect=lambda conn: names.append((conn.peername, repr(conn))), on_close=log.on_close
    )
    for _ in range(MANY):
        reset(socket.create_connection(listener.address))
    run_until(r, lambda: r.stats().accepts == MANY and not listener.open_connections)
    turns(r, 2)
    assert log.names() == ['close'] * len(names) and len(names) <= MANY
    assert all(name is None or name[0] == HERE for name, _ in names)
    assert idle(r)
    listener.close()


@pytest.mark.scenario(178)
@pytest.mark.parametrize('ending', ['close', 'abort', 'write_eof'])
@pytest.mark.parametrize('framed', [False, True])
def test_a_request_after_the_one_that_ended_the_connection_is_not_served(r, sockets, ending, framed):
    """waitress, GHSA-9298-4cf8-g4wj: requests pipelined after a refused request were still served."""
    served = []

    def on_request(conn, line):
        served.append(bytes(line).strip())
        if line.startswith(b'bad'):
            conn.on_data = None if ending == 'write_eof' else conn.on_data
            getattr(conn, ending)()

    listener = r.listen_tcp(HERE, 0, framing.lines(on_request) if framed else on_request)
    peer = sockets.connect(listener.address)
    peer.send(b'bad\nsecret\n' if framed else b'bad\n')
    run_until(r, lambda: served)
    for _ in range(3):
        try:
            peer.send(b'secret\n')
        except OSError:
            break
        turns(r, 3)
    assert served == [b'bad']
    peer.close()
    run_until(r, lambda: not listener.open_connections)
    listener.close()


@pytest.mark.scenario(179)
@pytest.mark.parametrize('ending', ['close', 'abort', 'raises', 'refuses', 'peer'])
def test_the_count_of_connections_goes_down_however_they_end(r, sockets, ending):
    """gunicorn 26.1: connections that the server had closed stayed in its count, until it accepted no more clients."""

    def on_connect(conn):
        if ending == 'refuses':
            conn.close()

    def on_data(conn, data):
        if ending == 'raises':
            raise ValueError('planned')
        getattr(conn, 'abort' if ending == 'abort' else 'close')()

    listener = r.listen_tcp(HERE, 0, on_data, on_connect=on_connect, max_connections=2)
    for _ in range(10):
        peer = sockets.connect(listener.address)
        if ending == 'peer':
            peer.close()
        elif ending != 'refuses':
            peer.send(b'x')
        before = r.stats().accepts
        run_until(r, lambda: r.stats().accepts > before or not listener.open_connections)  # noqa: B023
        peer.close()
    run_until(r, lambda: r.stats().accepts == 10 and not listener.open_connections)
    assert r.stats().incoming == 0
    listener.close()
    turns(r, 2)


# -- memory


@pytest.mark.scenario(180)
def test_writelines_returns_false_at_the_high_water_mark(r, sockets):
    """CVE-2024-12254: `writelines` of asyncio never paused the writer, and memory ran out."""
    log = Log()
    ours, peer = sockets()
    conn = r.adopt(ours, on_drain=log.on_drain, on_close=log.on_close, high_water=64 << 10, max_buffered=MIB)
    assert not conn.writelines([bytes(1 << 16)] * 8)
    waits = conn.buffered
    assert waits >= 64 << 10
    while conn.buffered < MIB:
        assert not conn.writelines([bytes(1 << 16)] * 2)
    assert not conn.writelines([b'x'])  # at the limit: this write is not queued and ends the connection
    run_until(r, lambda: log)
    assert isinstance(log[-1][1], WriteBufferFull) and conn.buffered <= MIB + (2 << 16)
    with pytest.raises(ConnectionClosed):
        conn.writelines([b'x'])
    peer.close()


# -- TLS


@pytest.mark.scenario(181)
@pytest.mark.parametrize('plain', [b'GET / HTTP/1.0\r\n\r\n', b'x', bytes(20_000)])
def test_plain_bytes_before_the_handshake_are_never_delivered(r, sockets, certificates, plain):  # noqa: F811
    """CVE-2023-40217: plain bytes sent before the handshake were delivered as data when the connection then ended."""
    log = Log()
    listener = r.listen_tcp(
        HERE, 0, log.on_data, on_connect=log.on_connect, on_eof=log.on_eof, on_close=log.on_close,
        ssl=certificates.server_that_asks(),
    )  # fmt: skip
    peer = sockets.connect(listener.address)
    peer.send(plain)
    peer.shutdown(socket.SHUT_WR)
    run_until(r, lambda: log)
    turns(r, 3)
    assert log.names() == ['close'] and isinstance(log[0][1], TLSError | OSError)
    listener.close()


@pytest.mark.scenario(181)
def test_commands_sent_in_plain_text_after_starttls_are_not_executed_after_the_handshake(r, sockets, certificates):  # noqa: F811
    """CVE-2011-0411, Postfix: commands sent in plain text after STARTTLS were executed after the handshake."""
    log, received = Log(), []

    def on_data(conn, data):
        received.append(bytes(data))
        if data.startswith(b'STARTTLS\n'):
            conn.start_tls(certificates.server(), server_side=True)

    ours, peer = sockets()
    r.adopt(ours, on_data, on_close=log.on_close)
    peer.send(b'STARTTLS\n')
    run_until(r, lambda: received)
    peer.send(b'RESET\n')
    peer.shutdown(socket.SHUT_WR)
    run_until(r, lambda: log)
    assert received == [b'STARTTLS\n'] and isinstance(log[0][1], TLSError)


@pytest.fixture
def secure(r, sockets, certificates):  # noqa: F811
    """A TLS echo server, a peer that may send any bytes, and a well-behaved client, all on one reactor."""
    if ENGINE.missing:
        pytest.skip(f'NOT TESTED: TLS peers that misbehave; {ENGINE.missing}')
    log = Log()
    listener = r.listen_tcp(
        HERE, 0, lambda conn, data: conn.write(data), on_close=log.on_close, ssl=certificates.server(),
        read_timeout=60,
    )  # fmt: skip
    context = certificates.client()
    context.minimum_version = TLS_1_3
    answers = []
    trusting = {'ssl': certificates.client(), 'server_hostname': 'localhost'}
    good = r.connect_tcp(*listener.address, lambda conn, data: answers.append(data), **trusting)

    def attacker():
        peer = Peer(context, False, random.Random(1))
        r.connect_tcp(*listener.address, lambda conn, data: peer.received(data), on_connect=peer.join)
        run_until(r, lambda: peer.ready)
        return peer

    def served():
        answers.clear()
        good.write(b'hello')
        run_until(r, lambda: answers)
        return b''.join(answers) == b'hello'

    assert served()
    yield attacker, served, log
    assert served()
    good.abort()
    run_until(r, lambda: not listener.open_connections)
    listener.close()


@pytest.mark.scenario(182)
def test_a_flood_of_key_updates_is_cut_off_and_others_are_served(r, secure):
    """openssl PR 32501 and RFC 9846, 4.7.3: each KeyUpdate costs the receiver far more than the sender."""
    attacker, served, log = secure
    peer = attacker()
    for _ in range(2000):
        ENGINE.update_keys(peer.tls, requested=True)
    peer.send()
    assert served()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], TLSError) and 'max_empty_records' in str(log[0][1])


@pytest.mark.scenario(182)
def test_records_of_one_byte_cost_a_bounded_turn(r, secure):
    """Each record costs a decryption and a callback for one byte. A turn takes four records from one connection."""
    attacker, served, _ = secure
    peer = attacker()
    before = r.stats().loop_count
    for _ in range(400):
        peer.say(b'x')
    assert served()
    run_until(r, lambda: len(peer.heard) == 400)
    assert r.stats().loop_count - before >= 400 / 4
    peer.conn.abort()


EMPTY_RECORDS = [b'\x16\x03\x01\0\0', b'\x17\x03\x03\0\0', b'\x14\x03\x03\0\1\1', b'\x15\x03\x01\0\2\1\0']


@pytest.mark.scenario(182)
@pytest.mark.parametrize('record', EMPTY_RECORDS, ids=['handshake', 'data', 'cipher', 'warning'])
def test_empty_records_before_the_handshake_are_cut_off(r, sockets, secure, record):
    """Empty handshake records, empty data, ChangeCipherSpec and warnings cost the attacker nothing."""
    _, served, log = secure
    peer = sockets.connect(secure_address(r))
    peer.send(record * 5000)
    assert served()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], TLSError)


@pytest.mark.scenario(182)
def test_a_flood_of_handshakes_leaves_room_for_others(r, sockets, secure):
    """A ClientHello costs its sender nothing, but the server a signature. A turn computes only a few signatures."""
    _, served, log = secure
    hello = client_hello()
    before = r.stats()
    peers = [sockets.connect(secure_address(r)) for _ in range(MANY)]
    for peer in peers:
        peer.send(hello)
    assert served()
    answers = []

    def all_answered():
        answers.extend(peer for peer in peers if peer not in answers and readable(peer))
        return len(answers) == MANY

    run_until(r, all_answered)
    assert r.stats().accepts - before.accepts == MANY
    assert r.stats().loop_count - before.loop_count >= MANY / 4
    for peer in peers:
        reset(peer)
    run_until(r, lambda: len(log) == MANY)


def secure_address(r):
    return next(handle.address for handle in r.handles() if hasattr(handle, 'address'))


def readable(sock):
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname='localhost')
    with pytest.raises(ssl.SSLWantReadError):
        made.do_handshake()
    return outgoing.read()


# -- slow clients, and many requests at once


@pytest.mark.scenario(183)
def test_slowloris_is_ended_by_a_time_limit_that_its_bytes_do_not_extend(r, sockets):
    """Slowloris (2009) and similar attacks: with a byte now and then, a connection is never idle."""
    log = Log()
    listener = r.listen_tcp(HERE, 0, log.on_data, on_close=log.on_close, limits=Limits(min_rate=(1000, 1)))
    peer = sockets.connect(listener.address)

    def drip():
        if not peer._closed:
            try:
                peer.send(b'G')
            except OSError:
                pass

    beat = r.call_every(0.05, drip)
    run_until(r, lambda: 'close' in log.names())
    assert isinstance(log[-1][1], TooSlow)
    beat.cancel()
    listener.close()


# -- HTTP, served by an example

HTTP = importlib.util.find_spec('h11') is not None and sys.platform != 'win32'
needs_h11 = pytest.mark.skipif(not HTTP, reason='NOT TESTED: no h11 (pip install -e .[examples])')


@pytest.fixture(scope='module')
def http(tmp_path_factory):
    """A running `examples/http_server.py` with a few files: (process, port)."""
    tmp_path = tmp_path_factory.mktemp('root')
    (tmp_path / 'big').write_bytes(bytes(range(256)) * (MIB // 256))
    (tmp_path / 'small').write_text('small\n')
    with example('http_server.py', '--port', '0', '--root', str(tmp_path)) as found:
        yield found


def get(path, *headers):
    return ''.join(f'{line}\r\n' for line in (f'GET {path} HTTP/1.1', 'Host: x', *headers, '')).encode()


@pytest.mark.scenario(184)
@needs_h11
def test_pipelined_requests_of_a_client_that_does_not_read_do_not_pile_up(http):
    """CVE-2026-54273: aiohttp queued pipelined requests without a limit."""
    process, port = http
    memory = psutil.Process(process.pid).memory_info
    with client(port) as sock:
        sock.sendall(get('/small'))
        sock.recv(65536)
        before, sent = memory().rss, 0
        sock.setblocking(False)
        requests = get('/big') * 1000
        end_at = time.monotonic() + 3
        while time.monotonic() < end_at and sent < 64 * MIB:
            try:
                sent += sock.send(requests)
            except BlockingIOError:
                time.sleep(0.05)
        assert sent < 16 * MIB  # only the buffers of the kernel fill up, because the server has stopped reading
        assert memory().rss - before < 16 * MIB


def test_many_small_parts_of_one_message_leave_turns_to_other_clients(r, sockets):
    """CVE-2026-31958: Tornado handled all parts of a body in one callback and served no other client in that time."""
    parts, others = [], []
    attacked = r.listen_tcp(HERE, 0, framing.delimited(lambda conn, part: parts.append(r.counters.loop_count), b'--'))
    served = r.listen_tcp(HERE, 0, lambda conn, data: others.append(len(parts)))
    attacker, other = sockets.connect(attacked.address), sockets.connect(served.address)
    run_until(r, lambda: attacked.open_connections and served.open_connections)
    attacker.sendall(b'--' * 20_000)
    other.send(b'?')
    run_until(r, lambda: len(parts) == 20_000)
    assert others and others[0] <= 200
    assert max(Counter(parts).values()) <= 128  # as `Framing` promises
    attacked.close(), served.close()
    attacker.close(), other.close()
    run_until(r, lambda: not r.handles())


@pytest.mark.scenario(184)
@needs_h11
def test_pipelined_requests_are_answered_in_order(http):
    """CVE-2023-46137: Twisted answered a quick request before a slow one that had arrived earlier."""
    _, port = http
    with client(port) as sock:
        sock.sendall(get('/big') + get('/stream?lines=3000') + get('/small') + get('/none', 'Connection: close'))
        answer = read_to_end(sock)
    big, stream, small = (answer.index(mark) for mark in (bytes(range(256)), b'line 2999 of', b'small\n'))
    assert big < stream < small < answer.rindex(b'404 Not Found')
    assert re.findall(rb'HTTP/1.1 (\d+)', answer) == [b'200', b'200', b'200', b'404']


@pytest.mark.scenario(185)
@needs_h11
@pytest.mark.parametrize(
    'body',
    [b'5\r\nhel', b'5\r\nhello\r\n', b'5\r\nhello\r\n0\r\n', b'ffffffffffffffffff\r\n', b'-1\r\n'],
    ids=['piece', 'no end', 'half an end', 'huge', 'below 0'],
)
def test_a_truncated_chunked_body_is_never_taken_for_a_complete_one(http, body):
    """gunicorn 26.1: a truncated chunked body was handed to the application as complete."""
    _, port = http
    with client(port) as sock:
        sock.sendall(b'PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n' + body)
        try:
            sock.shutdown(socket.SHUT_WR)
            answer = read_to_end(sock)
        except OSError as exc:
            assert exc.errno in (errno.ECONNRESET, errno.ENOTCONN)  # a reset, before or after our end of file
            return
    assert not answer.endswith(b'0\r\n\r\n')


@pytest.mark.scenario(185)
@needs_h11
@pytest.mark.parametrize(
    'headers',
    [
        ('Host: y',),
        ('Content-Length: 5', 'Content-Length: 6'),
        ('Content-Length: +5',),
        ('Transfer-Encoding: chunked, identity',),
        ('Bad Header: x',),
        ('X : y',),
    ],
    ids=' '.join,
)
def test_requests_that_two_servers_could_read_differently_are_refused(http, headers):
    """gunicorn 26.1 (two Host headers), and request smuggling in general (RFC 9112, 11.2)."""
    _, port = http
    with client(port) as sock:
        sock.sendall(get('/small', *headers) + get('/small'))
        answer = read_to_end(sock)
    assert re.findall(rb'HTTP/1.1 (\d)', answer) in ([b'4'], [b'5'])
