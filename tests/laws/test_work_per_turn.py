"""Bounds for the work of one turn, for every kind of event that a peer can cause.

Nothing that a peer can send may occupy the loop for more than 5 ms. Time cannot be tested on a busy machine, so these
tests count bytecodes, with `tests/helpers/work.py`. On the build machine one bytecode of the reactor takes 7 ns in pure
computation, and up to 40 ns in code that consists mostly of system calls. So 100,000 bytecodes take 1 to 4 ms, and no
bound for a remote peer is higher.

A bound applies to one source in one turn; if many connections are ready together, each may use that much. A bound is
about a third above the number counted on Python 3.11, which needs more bytecodes than later versions. The callbacks do
nothing.
"""

from __future__ import annotations

import errno
import signal
import socket
import ssl
import struct
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from reactor import Limits, Reactor, ResolveError, framing
from reactor.kernel import Kernel
from reactor.loop import threads
from reactor.net.addresses import MOST_ADDRESSES
from reactor.net.listener import ACCEPTS_PER_TURN
from reactor.net.proxy_header import SIGNATURE, crc32c
from reactor.observe.control_socket import serve_control
from reactor.observe.responder import listen_http
from reactor.system.paths import QUEUE_LIMIT, Changes, WatchedPath
from tests.helpers.certificates import certificates  # noqa: F401  (a fixture)
from tests.helpers.hostile_tls import ENGINE
from tests.helpers.support import ManyAddresses, ScriptedKernel, ScriptedSocket, end, pair, run_until, turns
from tests.helpers.work import most_work, work_of

MOST = 100_000  # bytecodes; the module docstring gives the reason
CHUNK = 65536  # bytes of one recv

# For each event: (the most bytecodes that a turn may take, the limit that ensures this).
BOUNDS = {
    'a chunk of bytes': (1_500, 'one recv of read_size'),
    'the end of a child': (2_000, 'the end of each pipe, and the exit'),
    'messages': (35_000, 'framing.MESSAGES_PER_TURN'),
    'messages that are answered': (75_000, 'framing.MESSAGES_PER_TURN, and a write for each message'),
    'a part of a message': (3_000, 'each byte is searched once'),
    'TLS records of one byte': (4_000, 'session.RECORDS_PER_TURN'),
    'TLS records without data': (4_000, 'one such record a turn'),
    'TLS handshakes': (6_000, 'handshake.HANDSHAKES_PER_TURN'),
    'a TLS handshake in fragments': (12_000, 'session.HANDSHAKE_RECORDS'),
    'datagrams': (6_000, 'datagram_sending.DATAGRAMS_PER_TURN'),
    'clients that connect': (80_000, 'listener.ACCEPTS_PER_TURN'),
    'a PROXY header': (MOST, 'proxy_header.LONGEST_V2: 1,356 TLVs'),
    'a PROXY header, byte by byte': (3_000, 'a peek and a recv'),
    'checksums of a PROXY header': (MOST, 'one checksum, over LONGEST_V2 bytes'),
    'an HTTP request': (12_000, 'responder.LONGEST_HEAD and MOST_HEADERS'),
    'a command': (16_000, 'one command a turn, of control_socket.LONGEST_LINE bytes'),
    # Only users who may open the control socket can cause this turn: it takes 10 ms for the 1,000 requested handles.
    'a command that lists handles': (600_000, 'commands.MOST and LONGEST_TEXT'),
    '64 look-ups while 1,000 wait': (90_000, 'threads.QUEUE_LIMIT, searched once a turn'),
    'signals': (3_000, 'wakeup.DOORBELL_BYTES, and a call for each signal number'),
    'changes of a path': (MOST, 'paths.QUEUE_LIMIT'),
    'time limits': (MOST, 'buckets.LOOKS_PER_TURN'),
    'callbacks of writes': (95_000, 'writer.MARKS_PER_SEND'),
    'addresses of a name': (MOST, 'addresses.MOST_ADDRESSES, connector.ATTEMPTS_PER_TURN'),
}


def within(what: str, work: int) -> None:
    """Check the work against its bound, and print both: if they differ a lot, the bound or the test is wrong."""
    bound, reason = BOUNDS[what]
    print(f'{what:42} {work:>9,} {bound:>9,}')
    assert work <= bound, f'{what}: {work:,} bytecodes in a turn, above the bound of {bound:,} ({reason})'


def most_of(r: Reactor, count: int) -> int:
    """Return the work of the busiest of the next `count` turns."""
    return max(work_of(r.run_once, 0) for _ in range(count))


def nothing(*args: Any) -> None:
    pass


@pytest.fixture
def r():
    with Reactor() as reactor:
        yield reactor
        end(reactor, *reactor.handles())


# -- chunks


@pytest.fixture
def chunk(r, sockets):
    """A function that sends a chunk to a connection with this `on_data` and returns the most work in any one turn."""

    def run(on_data: Any, data: bytes) -> int:
        conn, theirs = pair(r, sockets, on_data=on_data)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(data)
        most = most_of(r, 5)
        assert r.stats().bytes_in == len(data)
        conn.abort()
        return most

    return run


MESSAGES = {
    'lines': (framing.lines(nothing), b'\n' * CHUNK),
    'lines that end with CR LF': (framing.lines(nothing), b'\r\n' * (CHUNK // 2)),
    'delimiters': (framing.delimited(nothing, b'\0\0'), b'\0' * CHUNK),
    'lengths': (framing.prefixed(nothing, 1), b'\0' * CHUNK),
    'blocks': (framing.blocks(nothing, 1), b'x' * CHUNK),
}


@pytest.mark.parametrize('kind', MESSAGES)
def test_a_chunk_of_the_shortest_messages(kind, chunk):
    within('messages', chunk(*MESSAGES[kind]))


def test_a_chunk_of_lines_that_are_answered(chunk):
    within('messages that are answered', chunk(framing.lines(answer_line), b'\n' * CHUNK))


def answer_line(conn: Any, line: bytes) -> None:
    conn.write(b'+')


@pytest.mark.parametrize('limit', [10, CHUNK * 2])
def test_a_line_without_an_end(limit, chunk):
    within('a part of a message', chunk(framing.lines(nothing, limit=limit), b'x' * CHUNK))


@pytest.mark.parametrize('on_data', [nothing, None])
def test_a_chunk_of_bytes(on_data, chunk):
    within('a chunk of bytes', chunk(on_data, b'x' * CHUNK))


def test_the_output_of_a_child(r):
    child = r.spawn(['sh', '-c', 'head -c 200000 /dev/zero'], stdout=-1)
    most = {'a chunk of bytes': 0, 'the end of a child': 0}
    child.stdout.on_data = nothing
    while not child.closed or not child.stdout.closed:
        r.kernel.sleep(0.001)
        before = r.stats().bytes_in
        work = work_of(r.run_once, 0)
        what = 'a chunk of bytes' if r.stats().bytes_in > before else 'the end of a child'
        most[what] = max(most[what], work)
    assert r.stats().bytes_in == 200_000
    for what, work in most.items():
        within(what, work)


# -- TLS


class Client:
    """A TLS client that writes its records to a plain socket."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, False, 'localhost')
        self.sock = sock

    def step(self) -> bool:
        """Continue the handshake; return True when it is done."""
        try:
            self.incoming.write(self.sock.recv(CHUNK))
        except BlockingIOError:
            pass
        try:
            self.tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        self.send()
        return done

    def hello(self) -> bytes:
        """Return the first bytes of a handshake."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def send(self) -> None:
        """Send the pending output of OpenSSL."""
        self.sock.sendall(self.outgoing.read())


@pytest.fixture
def connect_tls(r, certificates, sockets):  # noqa: F811
    """A function that connects a `Client` to a TLS server and, by default, does the handshake."""
    on_data = framing.lines(nothing)
    server = r.listen_tcp('127.0.0.1', 0, on_data, ssl=certificates.server(), max_empty_records=None)
    context = certificates.client()

    def connect(shake_hands: bool = True) -> Client:
        client = Client(context, sockets.connect(server.address))
        if shake_hands:
            run_until(r, client.step)
            turns(r, 5)
        return client

    return connect


def test_tls_records_of_one_byte(r, connect_tls):
    client = connect_tls()
    for _ in range(CHUNK // 23):
        client.tls.write(b'x')
    client.send()
    within('TLS records of one byte', most_of(r, 20))


def test_tls_records_full_of_the_shortest_messages(r, connect_tls):
    client = connect_tls()
    client.tls.write(b'\n' * CHUNK)
    client.send()
    within('messages', most_of(r, 20))


@pytest.mark.skipif(bool(ENGINE.missing), reason=ENGINE.missing)
@pytest.mark.parametrize('requested', [False, True])
def test_tls_records_with_new_keys(r, connect_tls, requested):
    client = connect_tls()
    for _ in range(1000):
        ENGINE.update_keys(client.tls, requested)
    client.send()
    within('TLS records without data', most_of(r, 20))


def test_tls_handshakes(r, connect_tls):
    clients = [connect_tls(shake_hands=False) for _ in range(100)]
    turns(r, 100)
    for client in clients:
        client.sock.sendall(client.hello())
    r.run_once(0)  # reads the bytes of each client
    within('TLS handshakes', most_of(r, 6))


def test_a_tls_handshake_in_fragments_of_a_byte(r, connect_tls):
    client = connect_tls(shake_hands=False)
    turns(r, 5)
    hello = client.hello()
    client.sock.sendall(b''.join(b'\x16\x03\x01\0\1' + hello[at : at + 1] for at in range(5, len(hello))))
    within('a TLS handshake in fragments', most_of(r, 20))


# -- datagrams, clients


@pytest.mark.parametrize('size', [0, 1, 1000])
def test_datagrams(r, sockets, size):
    sock = r.bind_udp('127.0.0.1', 0, nothing)
    client = sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    for _ in range(60):
        client.sendto(bytes(size), sock.address)
    within('datagrams', most_of(r, 5))
    assert r.stats().datagrams_in == 60


def limits(**more: Any) -> dict[str, Any]:
    many = (1000.0, 1000.0)
    everything = {
        'per_address': 1000,
        'connect_rate': many,
        'request_rate': many,
        'lifetime': 60.0,
        'max_addresses': 50,
    }
    return {'limits': Limits(**{**everything, **more})}


LISTENERS: dict[str, dict[str, Any]] = {
    'plain': {},
    'deferred': {'defer_accept': True},
    'with time limits': {'idle_timeout': 10, 'read_timeout': 5},
    'with limits': limits(),
    'refusing all': limits(refuse=lambda address: True),
    'refusing most': limits(per_address=3),
    'behind proxies': {'proxy_protocol': ['127.0.0.0/8']},
}


@pytest.mark.parametrize('kind', LISTENERS)
def test_clients_that_connect(r, sockets, kind, caplog):
    server = r.listen_tcp('127.0.0.1', 0, nothing, on_connect=nothing, on_close=nothing, **LISTENERS[kind])
    server._batch = ACCEPTS_PER_TURN  # the accepts per turn that the listener would reach after many turns
    for _ in range(2 * ACCEPTS_PER_TURN):
        sockets.connect(server.address).send(b'x' if kind == 'deferred' else b'')
    within('clients that connect', most_of(r, 3))


def test_clients_that_connect_from_many_addresses(r, sockets):
    server = r.listen_tcp('127.0.0.1', 0, nothing, on_connect=nothing, on_close=nothing, **limits())
    server._batch = ACCEPTS_PER_TURN
    for number in range(3 * ACCEPTS_PER_TURN):
        sock = sockets.track(socket.socket())
        sock.bind((f'127.0.1.{number + 1}', 0))
        sock.connect(server.address)
    within('clients that connect', most_of(r, 4))
    assert server.open_connections == 3 * ACCEPTS_PER_TURN


# -- other input from peers


@pytest.fixture
def proxied(r, sockets):
    """A function that sends a header in pieces, waits until each is read, and returns the most work in any one turn."""

    def run(*pieces: bytes) -> int:
        server = r.listen_tcp('127.0.0.1', 0, nothing, proxy_protocol=['127.0.0.0/8'])
        theirs = sockets.connect(server.address)
        turns(r, 3)
        most = 0
        for piece in pieces:
            theirs.sendall(piece)
            before = r.stats().bytes_in
            most = max(most, most_work(r, lambda before=before, piece=piece: r.stats().bytes_in > before))
        return max(most, most_of(r, 12))

    return run


def version_2(tlvs: bytes) -> bytes:
    addresses = socket.inet_aton('192.0.2.1') + socket.inet_aton('192.0.2.2') + struct.pack('>HH', 1, 2)
    return SIGNATURE + b'\x21\x11' + struct.pack('>H', len(addresses + tlvs)) + addresses + tlvs


def test_a_proxy_header_byte_by_byte(r, proxied):
    header = b'PROXY TCP4 192.0.2.1 198.51.100.7 51234 443\r\n'
    within('a PROXY header, byte by byte', proxied(*(header[at : at + 1] for at in range(len(header)))))
    assert r.stats().proxy_headers == 1


def test_a_proxy_header_with_many_parts(r, proxied):
    within('a PROXY header', proxied(version_2(b'\x04\0\0' * 1356)))
    assert r.stats().proxy_headers == 1


def with_checksums(count: int, rest: int) -> bytes:
    """Return a header with `count` correct checksums, found by solving linear equations over bits."""

    def header(values: int) -> bytes:
        parts = values.to_bytes(4 * count, 'big')
        tlvs = b''.join(b'\x03\0\x04' + parts[4 * n : 4 * n + 4] for n in range(count))
        return version_2(tlvs + b'\x04' + struct.pack('>H', rest) + bytes(rest))

    def wrong(values: int) -> int:
        """Return the bits in which the checksums differ from the correct ones."""
        whole, found = header(values), 0
        for number in range(count):
            at = len(SIGNATURE) + 16 + 7 * number + 3
            right = crc32c(whole[:at] + bytes(4) + whole[at + 4 :])
            found = found << 32 | right ^ int.from_bytes(whole[at : at + 4], 'big')
        return found

    left = wrong(0)
    rows = [(wrong(1 << bit) ^ left, 1 << bit) for bit in range(32 * count)]
    chosen = 0
    for bit in reversed(range(32 * count)):
        pivot = next((row for row in rows if row[0] >> bit & 1), (0, 0))
        rows = [(a ^ pivot[0], b ^ pivot[1]) if a >> bit & 1 else (a, b) for a, b in rows if (a, b) != pivot]
        if left >> bit & 1:
            left, chosen = left ^ pivot[0], chosen ^ pivot[1]
    assert left == wrong(chosen) == 0
    return header(chosen)


def test_a_proxy_header_has_one_checksum(r, proxied, caplog):
    within('checksums of a PROXY header', proxied(with_checksums(1, 4000)))
    assert r.stats().proxy_headers == 1
    proxied(with_checksums(2, 30))
    assert r.stats().proxy_errors == 1 and 'two checksums' in caplog.text


HTTP = {
    'many headers': b'GET / HTTP/1.0\r\n' + b'a:\r\n' * 2040 + b'\r\n',
    'headers with many names': b'GET / HTTP/1.0\r\n' + b''.join(b'%x:\r\n' % n for n in range(99)) + b'\r\n',
    'a long line': b'GET /' + b'x' * 8000 + b' HTTP/1.0\r\n\r\n',
    'a long name': b'GET / HTTP/1.0\r\n' + b'x' * 8000 + b':1\r\n\r\n',
    'no end': b'GET /' + b'x' * 60000,
    'many requests': b'GET / HTTP/1.0\r\n\r\n' * 3600,
}


@pytest.mark.parametrize('kind', HTTP)
def test_an_http_request(r, sockets, kind):
    server = listen_http(r, '127.0.0.1', 0, lambda request: request.reply(200, 'text/plain', b'x'))
    theirs = sockets.connect(server.address)
    turns(r, 3)
    theirs.sendall(HTTP[kind])
    within('an HTTP request', most_of(r, 5))


COMMANDS = {
    'help': b'help',
    'stats': b'stats',
    'phases': b'phases',
    'nothing': b'',
    'no command': b'x' * 4000,
    'no JSON': b'{"do":' + b'[' * 4000,
    'many arguments': b'{' + b','.join(b'"%x":1' % number for number in range(500)) + b',"do":"help"}',
    'some handles': b'handles',
    'many handles': b'{"do":"handles","limit":1000}',
    'many reasons': b'{"do":"why_alive","limit":1000}',
}


@pytest.mark.parametrize('kind', COMMANDS)
def test_a_command_on_the_control_socket(r, sockets, tmp_path, kind):
    path = str(tmp_path / 'control')
    socket_of_control = serve_control(r, path)
    theirs = sockets.track(socket.socket(socket.AF_UNIX))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.connect(path)
    for _ in range(1000):
        r.notifier(nothing)
    turns(r, 3)
    line = COMMANDS[kind] + b'\n'
    theirs.sendall(line * (CHUNK // len(line)))
    what = 'a command that lists handles' if kind.endswith(('handles', 'reasons')) else 'a command'
    within(what, most_of(r, 4))
    socket_of_control.close()


# -- other work that peers cause


class NoThreads(Kernel):
    """A kernel whose threads never start, so that all calls in threads stay in the queue."""

    def start_thread(self, fn: Any, name: str) -> None:
        pass


def test_look_ups_while_many_wait():
    refused: list[Any] = []
    with Reactor(kernel=NoThreads()) as r:

        def on_data() -> None:
            for _ in range(64):
                r.resolve('name', lambda addresses, error: refused.append(error))

        for _ in range(threads.QUEUE_LIMIT):
            r.resolve('name', lambda addresses, error: None)
        r.call_soon(on_data)
        within('64 look-ups while 1,000 wait', most_of(r, 3))
        assert len(refused) == 64 and isinstance(refused[0], ResolveError)


def test_signals(r):
    for signum in signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH:
        r.add_signal_handler(signum, nothing)
    for _ in range(300):
        for signum in signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH:
            signal.raise_signal(signum)
    within('signals', most_of(r, 4))


def test_changes_of_a_path(r):
    changes = Changes('/tmp', None, '/tmp')
    observer = SimpleNamespace(stop=nothing, join=nothing)
    handle = WatchedPath(r, r.kernel, '/tmp', nothing, (), changes, observer)
    changes.open(handle.ring)
    for number in range(2 * QUEUE_LIMIT):
        changes.dispatch(SimpleNamespace(event_type='created', src_path=f'/tmp/{number}', dest_path=''))
    within('changes of a path', most_of(r, 4))
    handle.reset(None)


def test_time_limits_of_many_that_are_due_together():
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        for _ in range(400):
            r.adopt(ScriptedSocket(kernel), idle_timeout=1, read_timeout=1)
        kernel.time += 3
        within('time limits', most_of(r, 3))
        assert 0 < len(r.handles()) < 400


def test_callbacks_of_tiny_writes_when_the_peer_takes_all_of_them_at_once():
    written = []
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        sock = ScriptedSocket(kernel)
        sock.outcomes = deque()
        conn = r.adopt(sock)
        for number in range(3000):
            conn.write(b'%4d' % number, lambda conn, number: written.append(number), number)
        sock.outcomes = None
        within('callbacks of writes', most_work(r, lambda: len(written) == 3000))
        assert written == list(range(3000)) and sock.sent == b''.join(b'%4d' % number for number in written)
        assert conn.buffered == 0


@pytest.mark.parametrize('connect', ['connect_tcp', 'connect_udp'])
def test_a_name_with_many_addresses_that_are_all_unreachable(connect):
    closed: list[Any] = []
    with Reactor(kernel=ManyAddresses(4000)) as r:
        getattr(r, connect)('many', 1, nothing, on_close=lambda conn, exc: closed.append(exc))
        within('addresses of a name', most_work(r, lambda: closed))
        assert closed[0].errno == errno.ENETUNREACH
        if connect == 'connect_tcp':
            assert len(closed[0].__notes__) == MOST_ADDRESSES


def test_a_name_with_many_addresses_that_is_looked_up():
    found: list[str] = []
    with Reactor(kernel=ManyAddresses(4000)) as r:
        r.resolve('many', lambda addresses, error: found.extend(addresses))
        within('addresses of a name', most_work(r, lambda: found))
        assert len(found) == 4000
