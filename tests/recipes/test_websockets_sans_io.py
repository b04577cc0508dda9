"""The WebSocket recipe against the package's own blocking client and server, and against peers that misbehave."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

import reactor
from reactor import Reactor
from tests.examples.test_examples import EXAMPLES, example
from tests.examples.test_service_clients import Running, free_port, service
from tests.helpers.support import run_until, turns_in

pytest.importorskip('websockets', reason='NOT TESTED: no websockets (pip install -e .[recipes])')
recipe = importlib.import_module('examples.recipes.websockets_sans_io')
blocking = importlib.import_module('websockets.sync.client')
exceptions = importlib.import_module('websockets.exceptions')

PROGRAM = 'recipes/websockets_sans_io.py'
REFERENCE = Path(__file__).parents[1] / 'reference'
BLOCKING_SERVER = """
import sys
from websockets.sync.server import serve

def echo(connection):
    for message in connection:
        connection.send(message)

with serve(echo, '127.0.0.1', int(sys.argv[1])) as server:
    server.serve_forever()
"""
ASYNCIO_SERVER = (REFERENCE / 'websocket_echo_asyncio.txt').read_text()


@contextmanager
def client(port, **options):
    with blocking.connect(f'ws://127.0.0.1:{port}', **options) as ws:
        yield ws


def test_messages_come_back_whole_with_and_without_compression():
    with example(PROGRAM, '--port', '0') as (_, port):
        for compression in 'deflate', None:
            with client(port, compression=compression) as ws:
                assert bool(ws.protocol.extensions) == (compression == 'deflate')
                for message in 'hello', '', b'', 'zwölf ☕', b'\x00\xff', 'x' * 900_000, os.urandom(900_000):
                    ws.send(message)
                    assert ws.recv(10) == message, len(message)
                ws.send(['three ', 'fragments ', '☕'])
                assert ws.recv(10) == 'three fragments ☕'
                assert ws.ping(b'are you there').wait(10)
                ws.close(3000, 'enough')
                assert ws.protocol.close_rcvd.code == 3000


def test_wrong_messages_end_the_connection_with_the_code_that_says_why():
    with example(PROGRAM, '--port', '0') as (_, port):
        for message, code in ((os.urandom(1_100_000), 1009), (b'\xff\xfe', 1007)):
            with client(port) as ws, pytest.raises(exceptions.ConnectionClosed) as caught:
                if code == 1007:
                    ws.send(message, text=True)
                else:
                    ws.send(message)
                ws.recv(10)
            assert caught.value.rcvd.code == code
        with socket.create_connection(('127.0.0.1', port)) as sock:
            sock.sendall(b'not HTTP\r\n\r\n')
            assert sock.recv(100) == b''
        for request in b'GET / HTTP/1.1\r\nHost: a\r\n\r\n', b'GET / HTTP/1.1\r\nHost: a\r\n\r\n\xff\xff\xff\xff':
            with socket.create_connection(('127.0.0.1', port)) as sock:
                sock.sendall(request)
                assert sock.recv(100)[:12] in (b'', b'HTTP/1.1 426')


@pytest.mark.skipif(shutil.which('curl') is None, reason='NOT TESTED: no curl (apt-get install curl)')
def test_curl_is_told_that_this_is_a_websocket():
    with example(PROGRAM, '--port', '0') as (_, port):
        command = ['curl', '-s', '-w', '%{http_code}', f'http://127.0.0.1:{port}/']
        assert subprocess.run(command, capture_output=True, timeout=10).stdout.endswith(b'426')


def test_a_drain_sends_every_client_1001_and_the_server_ends_when_all_have_answered(capsys):
    with example(PROGRAM, '--port', '0') as (process, port), ExitStack() as stack:
        clients = [stack.enter_context(client(port, close_timeout=5)) for _ in range(50)]
        for number, ws in enumerate(clients):
            ws.send(str(number))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        for number, ws in enumerate(clients):
            assert ws.recv(10) == str(number)
            with pytest.raises(exceptions.ConnectionClosedOK) as caught:
                ws.recv(10)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, 'going away')
        assert process.wait(8) == 0
        with capsys.disabled():
            print(f'\na drain of {len(clients)} clients took {time.monotonic() - began:.2f} s')
        with pytest.raises(OSError):
            blocking.connect(f'ws://127.0.0.1:{port}')


def test_a_client_that_does_not_read_is_not_read_from_and_gets_everything_later(capsys):
    # The blocking client cannot be used here: it receives nothing while it waits in `send`.
    messages, received = [os.urandom(400_000) for _ in range(100)], []

    def on_open(ws):
        ws.conn.pause_reading()
        for message in messages:
            ws.send(message)

    with example(PROGRAM, '--port', '0') as (process, port), Reactor() as r:
        server = psutil.Process(process.pid)
        before = server.memory_info().rss
        url, on_message = f'ws://127.0.0.1:{port}', lambda ws, message: received.append(message)
        conn = recipe.connect(r, url, on_message, on_open, max_buffered=100_000_000)
        turns_in(r, 2)
        grown = server.memory_info().rss - before
        assert conn.buffered > 20_000_000  # the server does not read them
        conn.resume_reading()
        run_until(r, lambda: len(received) == len(messages), 20)
        assert all(came == sent for came, sent in zip(received, messages, strict=True))
        conn.data.close()
        run_until(r, lambda: conn.state == 'CLOSED')
        with capsys.disabled():
            print(f'\nthe server has grown by {grown / 1e6:.1f} MB')
        assert grown < 10_000_000


def handshake(port):
    """Open a WebSocket, and return its socket, which from then on answers nothing."""
    sock = socket.create_connection(('127.0.0.1', port))
    sock.sendall(
        b'GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
        b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n'
    )
    return sock


def test_a_client_that_answers_no_ping_is_disconnected():
    with Reactor() as r:
        ends = []
        listener, open_now = recipe.listen(
            r, '127.0.0.1', 0, recipe.echo, on_close=lambda *end: ends.append(end[1:]), ping=0.4
        )
        with handshake(listener.address[1]):
            run_until(r, lambda: open_now)
            run_until(r, lambda: ends)
        assert ends[0][0] == 1006
        assert 'no close frame received or sent' in ends[0][1] and 'read' in ends[0][1]
        assert not open_now
        listener.close()


def test_a_client_that_answers_no_close_frame_is_reset(monkeypatch):
    monkeypatch.setattr(recipe, 'CLOSE_TIMEOUT', 0.3)
    with Reactor() as r:
        ends = []
        listener, open_now = recipe.listen(r, '127.0.0.1', 0, recipe.echo, on_close=lambda *end: ends.append(end[1:]))
        with handshake(listener.address[1]):
            run_until(r, lambda: open_now)
            next(iter(open_now)).close(4000, 'go')
            run_until(r, lambda: ends)
        assert ends[0][0] == 1006
        assert '4000' in ends[0][1]
        listener.close()


class Caller:
    """Sends three numbers, and the next one for each that comes back; counts the numbers that were lost."""

    def __init__(self, r, url):
        self.sent = self.received = self.lost = self.ups = 0
        self.ends = []
        connect = partial(recipe.connect, r, url, self.on_message, self.on_open, self.on_close)
        self.client = reactor.reconnect(connect, first=0.1, most=0.3)

    def on_open(self, ws):
        self.ups += 1
        for _ in range(3):
            self.send(ws)

    def send(self, ws):
        self.sent += 1
        ws.send(str(self.sent))

    def on_message(self, ws, message):
        self.received += 1
        assert int(message) == self.received + self.lost
        if ws.open:
            self.send(ws)

    def on_close(self, ws, code, text):
        self.ends.append((code, text))
        self.lost = self.sent - self.received


@pytest.mark.parametrize('source', [BLOCKING_SERVER, ASYNCIO_SERVER], ids=['blocking', 'asyncio'])
def test_clients_survive_a_server_that_is_killed_and_know_what_was_lost(source, capsys):
    port = free_port()
    with service([sys.executable, '-c', source, str(port)], port) as (start, kill, _), Reactor() as r:
        callers = [Caller(r, f'ws://127.0.0.1:{port}') for _ in range(20)]
        run_until(r, lambda: all(caller.received > 20 for caller in callers))
        descriptors = psutil.Process().num_fds()
        for ups in 1, 2:
            assert {caller.ups for caller in callers} == {ups}
            turns_in(r, 0.3)
            kill()
            assert turns_in(r, 0.6) < 1500
            assert all(code == 1006 for caller in callers for code, _ in caller.ends)
            assert 'Connection refused' in callers[0].ends[-1][1]
            start()
            before = [caller.received for caller in callers]
            run_until(r, lambda b=before: all(c.received > n + 20 for c, n in zip(callers, b, strict=True)))
        assert psutil.Process().num_fds() <= descriptors
        for caller in callers:
            caller.client.conn.data.close()
            caller.client.closed = True  # no further attempt
        run_until(r, lambda: all(caller.client.conn is None for caller in callers))
        for caller in callers:
            code, text = caller.ends[-1]
            assert code == 1000, text
            assert caller.sent == caller.received + caller.lost
        assert sum(caller.lost for caller in callers) > 0
        with capsys.disabled():
            sent, lost = sum(caller.sent for caller in callers), sum(caller.lost for caller in callers)
            print(f'\n20 clients, 2 kills: {sent} sent, {lost} lost and known to be lost')
        assert not r.handles()


def test_the_program_sends_lines_and_says_when_the_server_has_gone():
    with Running(sys.executable, '-X', 'dev', '-W', 'error', str(EXAMPLES / PROGRAM), '--connect',
                 f'ws://127.0.0.1:{free_port()}') as talker:  # fmt: skip
        talker.expect('disconnected, 1006: did not receive a valid HTTP response: .*', 'connecting again in .* s')
        talker.say('lost')
        seen = [talker.printed.get(timeout=10) for _ in range(3)]
        assert 'not connected, so this line was not sent' in seen
    with example(PROGRAM, '--port', '0') as (_, port):
        with Running(sys.executable, '-X', 'dev', '-W', 'error', str(EXAMPLES / PROGRAM), '--connect',
                     f'ws://127.0.0.1:{port}') as talker:  # fmt: skip
            talker.expect('connected')
            talker.say('hello')
            talker.expect('< hello')
        talker.expect(r'disconnected, 1000: sent 1000 \(OK\); then received 1000 \(OK\)')


@pytest.mark.slow
def test_cpu_per_message(capsys):
    """Compare the CPU time of the server for each message with that of the package's own servers."""
    messages, figures = 30_000, {}

    def measure(port, pid):
        with Reactor() as r:
            left = [messages]

            def on_message(ws, message):
                left[0] -= 1
                if left[0] > 0:
                    ws.send(message)
                else:
                    ws.close()

            url = f'ws://127.0.0.1:{port}'
            conns = [recipe.connect(r, url, on_message, lambda ws: ws.send('x' * 100)) for _ in range(20)]
            run_until(r, lambda: all(conn.data.open for conn in conns))
            process = psutil.Process(pid)
            before = sum(process.cpu_times()[:2])
            run_until(r, lambda: left[0] <= 0, 60)
            spent = sum(process.cpu_times()[:2]) - before
            for conn in conns:
                conn.abort()
            r.run_once(0)
        return round(1e6 * spent / messages)

    with example(PROGRAM, '--port', '0') as (process, port):
        figures['reactor'] = measure(port, process.pid)
    for name, source in ('blocking', BLOCKING_SERVER), ('asyncio', ASYNCIO_SERVER):
        port = free_port()
        with service([sys.executable, '-c', source, str(port)], port) as (_, _, processes):
            figures[name] = measure(port, processes[-1].pid)
    with capsys.disabled():
        print(f'\nCPU microseconds of the server per message of 100 bytes, compressed: {figures}')
    assert figures['reactor'] < 1.5 * figures['asyncio']
