"""How much work one turn does for whatever a peer sends: against a bound, for every kind of event that a peer can cause.

Nothing that a peer can send may hold the loop for more than 5 ms. Time is no thing to test, so work is: bytecodes, which
`tests/work.py` counts. On the build machine (Python 3.11) a bytecode of the reactor took 25 to 50 ns, with what it calls
of C and of the kernel, so 5 ms are 100,000 of them at the least. The table has what bounds each event, and how many
bytecodes that comes to; a bound is about half as much again as was counted on 3.11, which is the Python that needs most.

Bounds are for one source and turn: many connections that are ready together are each given as much.
"""

from __future__ import annotations

import random
import signal
import socket
import ssl
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import certificates  # noqa: F401  (a fixture)
from hostile_tls import ENGINE
from support import ScriptedKernel, ScriptedSocket, end, pair, run_until, turns
from work import most_work, work_of

import reactor
from reactor import Limits, Reactor, framing
from reactor.framing import Frames
from reactor.net.proxy_header import SIGNATURE, crc32c
from reactor.observe.control_socket import control
from reactor.observe.responder import listen_http
from reactor.system.paths import Changes, WatchedPath

MOST = 100_000  # bytecodes: 5 ms, see above
CHUNK = 65536  # bytes of one recv

BOUNDS = {
    # what a peer does: (bytecodes in a turn, what bounds them)
}


def within(name: str, work: int) -> None:
    print(f'{name:40} {work:>9,}')


@pytest.fixture
def r():
    with Reactor() as reactor:
        yield reactor


@pytest.fixture
def send_chunk(r, sockets):
    """Send one chunk to a connection with this `on_data`; returns the work of the turn that does most."""

    def run(on_data: Any, data: bytes, count: int = 5, **options: Any) -> int:
        conn, theirs = pair(r, sockets, on_data=on_data, **options)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(data)
        most = max(work_of(r.run_once, 0) for _ in range(count))
        end(r, conn)
        return most

    return run


def nothing(*args: Any) -> None:
    pass


FRAMINGS = {
    'empty lines': (framing.lines(nothing), b'\n' * CHUNK),
    'empty lines that end with CR LF': (framing.lines(nothing), b'\r\n' * (CHUNK // 2)),
    'delimiters': (framing.delimited(nothing, b'\0\0'), b'\0' * CHUNK),
    'lengths of nothing': (framing.prefixed(nothing, 1), b'\0' * CHUNK),
    'blocks of one byte': (framing.blocks(nothing, 1), b'x' * CHUNK),
    'a line without an end': (framing.lines(nothing, limit=1 << 20), b'x' * CHUNK),
    'a line that is too long': (framing.lines(nothing, limit=10), b'x' * CHUNK),
    'no framing': (nothing, b'x' * CHUNK),
}


@pytest.mark.parametrize('name', FRAMINGS)
def test_a_chunk(name, send_chunk):
    within(name, send_chunk(*FRAMINGS[name]))


def test_lines_that_are_answered(r, sockets):
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: conn.write(b'+', nothing)))
    theirs.sendall(b'\n' * CHUNK)
    within('lines that are answered', max(work_of(r.run_once, 0) for _ in range(5)))
    end(r, conn)


class Client:
    """A TLS client, whose records are given to a socket by hand."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, False, 'localhost')
        self.sock = sock

    def step(self) -> bool:
        """Go on with the handshake; True when it is done."""
        try:
            self.incoming.write(self.sock.recv(CHUNK))
        except BlockingIOError:
            pass
        try:
            self.tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        self.sock.sendall(self.outgoing.read())
        return done

    def hello(self) -> bytes:
        """The first bytes of a handshake."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()


@pytest.fixture
def secure(r, certificates, sockets):
    """A TLS server, and a function that connects a `Client`, after its handshake unless told otherwise."""
    server = r.listen_tcp('127.0.0.1', 0, nothing, ssl=certificates.server(), max_empty_records=None)
    context = certificates.client()

    def connect(shake_hands: bool = True) -> Client:
        client = Client(context, sockets.connect(server.address))
        if shake_hands:
            run_until(r, client.step)
            turns(r, 3)
        return client

    yield connect
    server.close()
    end(r, *r.handles())


def test_records_of_one_byte(r, secure):
    client = secure()
    for _ in range(CHUNK // 23):
        client.tls.write(b'x')
    client.sock.sendall(client.outgoing.read())
    within('records of one byte', max(work_of(r.run_once, 0) for _ in range(20)))


@pytest.mark.skipif(bool(ENGINE.missing), reason=ENGINE.missing)
@pytest.mark.parametrize('requested', [False, True])
def test_key_updates(r, secure, requested):
    client = secure()
    for _ in range(1000):
        ENGINE.update_keys(client.tls, requested)
    client.sock.sendall(client.outgoing.read())
    within(f'key updates {requested}', max(work_of(r.run_once, 0) for _ in range(20)))


@pytest.mark.parametrize('count', [100, 200, 400])
def test_handshakes(r, secure, count):
    clients = [secure(False) for _ in range(count)]
    turns(r, 100)
    for client in clients:
        client.sock.sendall(client.hello())
    within(f'handshakes {count}', max(work_of(r.run_once, 0) for _ in range(20)))


def test_a_handshake_in_fragments_of_a_byte(r, secure):
    client = secure(False)
    turns(r, 3)
    hello = client.hello()
    data = b''.join(b'\x16\x03\x01\0\1' + hello[at : at + 1] for at in range(5, len(hello)))
    client.sock.sendall(data)
    within('handshake in fragments', max(work_of(r.run_once, 0) for _ in range(20)))


@pytest.mark.parametrize('size', [0, 1, 1000])
def test_datagrams(r, sockets, size):
    sock = r.bind_udp('127.0.0.1', 0, nothing)
    client = sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    for _ in range(150):
        client.sendto(bytes(size), sock.address)
    within(f'datagrams {size}', max(work_of(r.run_once, 0) for _ in range(4)))
    sock.close()
    turns(r, 2)


@pytest.mark.parametrize('kind', ['plain', 'limits', 'refused', 'too many', 'proxy', 'timed', 'deferred'])
def test_accepts(r, sockets, kind, caplog):
    options = {
        'plain': {},
        'limits': {'limits': Limits(per_address=1000, connect_rate=(1000, 1000), request_rate=(1, 1), lifetime=60, min_rate=(100, 10))},
        'refused': {'limits': Limits(refuse=lambda address: True)},
        'too many': {'limits': Limits(per_address=3)},
        'proxy': {'proxy_protocol': ['127.0.0.0/8']},
        'timed': {'idle_timeout': 10, 'read_timeout': 5},
        'deferred': {'defer_accept': True},
    }[kind]
    server = r.listen_tcp('127.0.0.1', 0, nothing, on_connect=nothing, on_close=nothing, **options)
    server._batch = 64
    for _ in range(130):
        sockets.connect(server.address).send(b'PROXY TCP4')
    within(f'accepts {kind}', max(work_of(r.run_once, 0) for _ in range(4)))
    server.close()
    end(r, *r.handles())


def test_many_addresses(r, sockets):
    limits = Limits(per_address=1000, connect_rate=(1000, 1000), max_addresses=50)
    server = r.listen_tcp('127.0.0.1', 0, nothing, limits=limits)
    server._batch = 64
    for number in range(200):
        sock = sockets.track(socket.socket())
        sock.bind((f'127.0.1.{number + 1}', 0))
        sock.connect(server.address)
        sock.close()
    within('many addresses', max(work_of(r.run_once, 0) for _ in range(6)))
    server.close()
    end(r, *r.handles())


def proxied(r, sockets, pieces):
    server = r.listen_tcp('127.0.0.1', 0, nothing, proxy_protocol=['127.0.0.0/8'])
    theirs = sockets.connect(server.address)
    turns(r, 3)
    most = 0
    for piece in pieces:
        theirs.sendall(piece)
        run_until(r, lambda: True)
        most = max(most, work_of(r.run_once, 0), work_of(r.run_once, 0))
    server.close()
    headers = r.stats().proxy_headers
    end(r, *r.handles())
    return most, headers


def v2(tlvs):
    body = socket.inet_aton('192.0.2.1') + socket.inet_aton('192.0.2.2') + struct.pack('>HH', 1, 2) + tlvs
    return SIGNATURE + b'\x21\x11' + struct.pack('>H', len(body)) + body


def test_proxy_headers(r, sockets):
    header = b'PROXY TCP4 192.0.2.1 198.51.100.7 51234 443\r\n'
    work, count = proxied(r, sockets, [header[at : at + 1] for at in range(len(header))])
    within('v1 byte by byte', work)
    header = v2(b'\x04\0\0' * 1356)
    within('v2 with 1356 TLVs', proxied(r, sockets, [header])[0])
    within('v2 bytewise', proxied(r, sockets, [header[:4000], *[header[at : at + 1] for at in range(4000, len(header))]])[0])


@pytest.fixture
def http(r, sockets):
    server = listen_http(r, '127.0.0.1', 0, lambda request: request.reply(200, 'text/plain', b'x'))

    def ask(data: bytes) -> int:
        theirs = sockets.connect(server.address)
        turns(r, 3)
        theirs.sendall(data)
        return max(work_of(r.run_once, 0) for _ in range(4))

    yield ask
    server.close()
    end(r, *r.handles())


HTTP = {
    'many headers': b'GET / HTTP/1.0\r\n' + b'a:\r\n' * 2040 + b'\r\n',
    'many names': b'GET / HTTP/1.0\r\n' + b''.join(b'%x:\r\n' % n for n in range(1250)) + b'\r\n',
    'long': b'GET /' + b'x' * 8000 + b' HTTP/1.0\r\n\r\n',
    'long token': b'GET / HTTP/1.0\r\n' + b'x' * 8000 + b':1\r\n\r\n',
    'too long': b'GET /' + b'x' * 60000,
    'pipelined': b'GET / HTTP/1.0\r\n\r\n' * 3600,
}


@pytest.mark.parametrize('name', HTTP)
def test_http(http, name):
    within('http ' + name, http(HTTP[name]))


@pytest.mark.parametrize('command', [b'help', b'stats', b'phases', b'handles', b'{"do":"handles","limit":1000}', b'{"do":"why_alive","limit":1000}', b'', b'[' * 4000, b'{"do":' + b'[' * 4000, b'{' + b','.join(b'"%x":1' % n for n in range(500)) + b',"do":"help"}'])
def test_control_socket(r, sockets, tmp_path, command):
    path = str(tmp_path / 'control')
    watched = control(r, path)
    sock = sockets.track(socket.socket(socket.AF_UNIX))
    sock.connect(path)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in range(1000):
        r.idle(nothing).close()
        r.notifier(nothing)
    turns(r, 3)
    sock.sendall((command + b'\n') * max(1, min(1000, CHUNK // (len(command) + 1))))
    within(f'control {command[:30]}', max(work_of(r.run_once, 0) for _ in range(5)))
    watched.close()
    end(r, *r.handles())


def test_signals(r):
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGHUP):
        r.add_signal_handler(signum, nothing)
    r._wakeup._bell.setblocking(False)
    try:
        while True:
            r._wakeup._bell.send(b'\x01' * 4096)
    except BlockingIOError:
        pass
    for _ in range(100):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGHUP)
    within('signals', max(work_of(r.run_once, 0) for _ in range(5)))
    r.clear_signal_handlers()


def test_path_changes(r):
    changes = Changes('/tmp', None, '/tmp')
    observer = SimpleNamespace(stop=nothing, join=nothing)
    handle = WatchedPath(r, r.watchers.kernel, '/tmp', nothing, changes, observer)
    changes.open(handle.ring)
    for number in range(2000):
        changes.dispatch(SimpleNamespace(event_type='created', src_path=f'/tmp/{number}', dest_path=''))
    within('path changes', max(work_of(r.run_once, 0) for _ in range(5)))
    handle.reset(None)


def test_time_limits(sockets):
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        for _ in range(400):
            r.adopt(ScriptedSocket(kernel), idle_timeout=1, read_timeout=1).pause_reading()
        kernel.time += 3
        within('time limits', max(work_of(r.run_once, 0) for _ in range(4)))


def test_marks(r, sockets):
    for size in (1000, 2000, 4000, 10000):
        told = []
        conn, theirs = pair(r, sockets)
        conn.write(bytes(1 << 20))
        for number in range(size):
            conn.write(b'x', nothing)
        while theirs.recv(1 << 20) and conn.buffered > size + 65536:
            r.run_once(0)
        most = 0
        while conn.buffered:
            try:
                theirs.recv(1 << 20)
            except BlockingIOError:
                pass
            most = max(most, work_of(r.run_once, 0))
        within(f'marks {size}', most)
        end(r, conn)


class ManyAddresses(ScriptedKernel):
    count = 1000

    def getaddrinfo(self, host, port, family, kind, flags=0):
        if flags:
            raise socket.gaierror
        return [(socket.AF_INET, kind, 0, '', (f'10.0.{n >> 8}.{n & 255}', port)) for n in range(self.count)]

    def socket(self, family, kind, proto=0):
        sock = ScriptedSocket(self)
        sock.connect_ex = lambda address: 111
        return sock


@pytest.mark.parametrize('count', [100, 1000, 4000])
def test_addresses(count):
    kernel = ManyAddresses()
    kernel.count = count
    with Reactor(kernel=kernel) as r:
        conn = r.connect_tcp('many', 1, nothing)
        import time
        time.sleep(0.2)
        within(f'addresses {count}', max(work_of(r.run_once, 0) for _ in range(4)))
    with Reactor(kernel=kernel) as r:
        conn = r.connect_udp('many', 1, nothing)
        time.sleep(0.2)
        within(f'addresses udp {count}', max(work_of(r.run_once, 0) for _ in range(4)))
