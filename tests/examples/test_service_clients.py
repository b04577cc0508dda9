"""The clients among the examples: Redis, HTTPS and RPC, tested with servers that are killed and started again.

The same programs with asyncio, in tests/reference/, run the same tests, and show how long such a program is there. The
servers are in the Debian packages redis-server and nginx.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from perf.faults.nginx import COMMAND as NGINX
from tests.examples.test_examples import EXAMPLES, client
from tests.helpers.certificates import certificates  # noqa: F401

REFERENCE = Path(__file__).parents[1] / 'reference'
REDIS = shutil.which('redis-server')
LONGER = 1.3  # how much longer than the program with asyncio an example may be
TIMED_OUT = r'(RequestTimeout|TimeoutError)'
LOST = r'(ConnectionResetError|ConnectionClosed|ConnectionError|BrokenPipeError|IncompleteReadError)'

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no streams on standard input')
both = pytest.mark.parametrize('kind', ['reactor', 'asyncio'])


def program(name, kind):
    """Return the command that runs an example, or the same program with asyncio."""
    if kind == 'asyncio':
        return [sys.executable, str(REFERENCE / f'{name}_asyncio.txt')]
    return [sys.executable, '-X', 'dev', '-W', 'error', str(EXAMPLES / f'{name}.py')]


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


class Running:
    """A program that is running: a context manager, which checks that it ends without an error after its input."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.printed = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.printed.put(line.rstrip('\n'))

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        try:
            if kind is None:
                self.process.stdin.close()
                assert self.process.wait(20) == 0, self.process.stderr.read()
                assert self.process.stderr.read() == ''
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join()
            for pipe in self.process.stdin, self.process.stdout, self.process.stderr:
                pipe.close()

    def say(self, *lines):
        for line in lines:
            self.process.stdin.write(line + '\n')

    def expect(self, *patterns):
        """Check that the next lines match these patterns, in any order."""
        left = list(patterns)
        while left:
            line = self.printed.get(timeout=20)
            found = [pattern for pattern in left if re.fullmatch(pattern, line)]
            assert found, (line, left)
            left.remove(found[0])


def wait_for(port):
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(('127.0.0.1', port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.02)


@contextmanager
def service(command, port):
    """Run a server; yields a function that kills it and one that starts it again."""
    processes = []

    def start():
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(port)
        return processes[-1]

    def kill():
        processes[-1].kill()
        processes[-1].wait()

    start()
    try:
        yield start, kill, processes
    finally:
        kill()


@pytest.mark.parametrize('name', ['rpc', 'redis_client', 'https_pool'])
def test_an_example_is_not_much_longer_than_the_same_program_with_asyncio(name, tmp_path):
    reference = (REFERENCE / f'{name}_asyncio.txt').read_text()
    ours = (EXAMPLES / f'{name}.py').read_text()
    lines = [sum(bool(line.strip()) for line in text.split('\n')) for text in (ours, reference)]
    assert lines[0] <= LONGER * lines[1], lines
    assert 'import asyncio' in reference


# -- RPC


@contextmanager
def rpc_server(kind, port=0):
    command = [*program('rpc', kind), '--port', str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith('listening on 127.0.0.1:'), process.stderr.read()
        yield process, int(line.rpartition(':')[2])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def rpc_client(kind, port, timeout=10):
    return Running(*program('rpc', kind), '--call', '--port', str(port), '--timeout', str(timeout))


@pytest.mark.parametrize('server', ['reactor', 'asyncio'])
@both
def test_calls_are_answered_also_after_the_server_was_killed_and_started_again(kind, server):
    with rpc_server(server) as (process, port), rpc_client(kind, port) as caller:
        caller.say('add 1 2', 'nonsense', 'add 1 "x"', 'sleep 0.1')
        caller.expect('add 1 2: 3', 'nonsense: RuntimeError', 'add 1 "x": RuntimeError', 'sleep 0.1: 0.1')
        caller.say('sleep 30')
        time.sleep(0.2)
        process.kill()
        caller.expect(f'sleep 30: {LOST}')
        caller.say('add 3 4')  # it waits for the next server
        process.wait()
        with rpc_server(server, port) as (process, _):
            caller.expect('add 3 4: 7')
            caller.say('add 5 6')
            caller.expect('add 5 6: 11')


@both
def test_a_call_has_a_time_limit_with_and_without_a_server(kind):
    with rpc_client(kind, free_port(), timeout=0.5) as caller:
        caller.say('add 1 2')
        caller.expect(f'add 1 2: {TIMED_OUT}')
    with rpc_server('reactor') as (_, port), rpc_client(kind, port, timeout=0.5) as caller:
        caller.say('sleep 1', 'add 1 2')
        caller.expect('add 1 2: 3', f'sleep 1: {TIMED_OUT}')
        time.sleep(0.8)  # the late answer arrives
        caller.say('add 2 3')
        caller.expect('add 2 3: 5')


@both
def test_a_server_that_is_told_to_end_answers_the_calls_that_it_has(kind):
    with rpc_server(kind) as (process, port), rpc_client('reactor', port) as caller:
        caller.say('sleep 1', 'add 1 2')
        caller.expect('add 1 2: 3')
        process.send_signal(signal.SIGTERM)
        caller.expect('sleep 1: 1')
        assert process.wait(10) == 0
        assert process.stderr.read() == ''


def test_a_client_with_many_calls_waits_for_answers():
    with rpc_server('reactor') as (_, port), client(port) as sock:
        sock.sendall(b''.join(b'{"id": %d, "method": "add", "params": [%d, 1]}\n' % (n, n) for n in range(1000)))
        sock.sendall(b'{"id": 1, "method": "sleep", "params": [0.01]}\n' * 300)
        received = b''
        while received.count(b'\n') < 1300:
            received += sock.recv(65536)
        sock.sendall(b'not json\n')
        assert b'"error": "JSONDecodeError' in sock.recv(65536)


# -- Redis


@contextmanager
def redis():
    if REDIS is None:
        pytest.skip('NOT TESTED: redis-server is not installed: apt-get install redis-server')
    port = free_port()
    with service([REDIS, '--port', str(port), '--save', '', '--appendonly', 'no'], port) as (start, kill, processes):
        yield port, start, kill, processes


def publish(port, channel, message):
    """Publish a message, as soon as the channel has a subscriber."""
    until = time.monotonic() + 10
    with client(port) as sock:
        while True:
            sock.sendall(f'PUBLISH {channel} {message}\r\n'.encode())
            if sock.recv(100) == b':1\r\n':
                return
            assert time.monotonic() < until
            time.sleep(0.05)


@both
def test_commands_and_channels_survive_the_end_of_the_server(kind):
    with redis() as (port, start, kill, _), Running(*program('redis_client', kind), '--port', str(port)) as caller:
        caller.say('SET a 1', 'GET a', 'GET b', 'INCR a', 'LPUSH a x', 'MGET a b')
        caller.expect('SET a 1: OK', 'GET a: 1', 'GET b: None', 'INCR a: 2', 'LPUSH a x: WRONGTYPE.*')
        caller.expect(r"MGET a b: \[b'2', None\]")
        caller.say('SUBSCRIBE news')
        caller.expect('subscribe news 1')
        publish(port, 'news', 'hello')
        caller.expect('message news hello')
        for number in range(2):
            kill()
            caller.say('GET a')  # waits for the next server, unless it was sent to this one
            time.sleep(0.3)
            start()
            caller.expect(f'GET a: (None|{LOST})', 'subscribe news 1')
            publish(port, 'news', f'again{number}')
            caller.expect(f'message news again{number}')


@both
def test_a_command_has_a_time_limit_and_its_late_answer_is_dropped(kind):
    command = [*program('redis_client', kind), '--timeout', '0.5']
    with redis() as (port, _, _, processes), Running(*command, '--port', str(port)) as caller:
        caller.say('SET a 1')
        caller.expect('SET a 1: OK')
        processes[-1].send_signal(signal.SIGSTOP)
        caller.say('GET a')
        caller.expect(f'GET a: {TIMED_OUT}')
        processes[-1].send_signal(signal.SIGCONT)
        caller.say('GET b')
        caller.expect('GET b: None')


# -- HTTPS

CONFIGURATION = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off; keepalive_requests 5; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c;
    uwsgi_temp_path d; scgi_temp_path e;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        root {root};
    }}
}}
"""  # fmt: skip


@pytest.fixture
def nginx(tmp_path, certificates):  # noqa: F811
    if NGINX is None:
        pytest.skip('NOT TESTED: nginx is not installed: apt-get install nginx')
    pytest.importorskip('h11', reason='NOT TESTED: no h11 (pip install -e .[examples])')
    root = tmp_path / 'root'
    root.mkdir()
    (root / 'small').write_bytes(b'x' * 10)
    (root / 'big').write_bytes(b'x' * 5_000_000)
    port = free_port()
    text = CONFIGURATION.format(port=port, folder=certificates.folder, root=root)
    if os.geteuid() == 0:
        text = f'user root;{text}'  # otherwise it could not read this folder
    (tmp_path / 'nginx.conf').write_text(text)
    command = [NGINX, '-p', str(tmp_path), '-e', 'stderr', '-c', str(tmp_path / 'nginx.conf')]
    with service(command, port) as (start, kill, processes):
        yield port, start, kill, processes


def pool(kind, port, certificates, timeout=10):  # noqa: F811
    options = '--authority', str(certificates.authority), '--timeout', str(timeout)
    return Running(*program('https_pool', kind), 'localhost', '--port', str(port), *options)


@both
def test_requests_are_answered_also_after_the_server_was_killed_and_started_again(kind, nginx, certificates):  # noqa: F811
    port, start, kill, _ = nginx
    with pool(kind, port, certificates) as caller:
        for _ in range(2):  # more requests than nginx answers on one connection
            caller.say(*['/small'] * 30, '/big', '/missing')
            caller.expect(*['/small: 200, 10 bytes'] * 30, '/big: 200, 5000000 bytes', r'/missing: 404, \d+ bytes')
            kill()
            time.sleep(0.2)
            caller.say('/small')
            caller.expect(r'/small: (ConnectionRefusedError|OSError|ConnectionError)')
            start()
            caller.say('/small')
            caller.expect('/small: 200, 10 bytes')


@both
def test_the_time_limit_of_a_request_includes_its_wait_for_a_connection(kind, nginx, certificates):  # noqa: F811
    port, _, _, processes = nginx
    with pool(kind, port, certificates, timeout=1) as caller:
        caller.say('/small')
        caller.expect('/small: 200, 10 bytes')
        processes[-1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        caller.say(*['/small'] * 10)
        caller.expect(*[f'/small: {TIMED_OUT}'] * 10)
        assert 0.9 < time.monotonic() - began < 5
        processes[-1].send_signal(signal.SIGCONT)
        caller.say('/small')
        caller.expect('/small: 200, 10 bytes')


def test_a_server_with_another_name_is_refused(nginx):
    port, *_ = nginx
    with Running(*program('https_pool', 'reactor'), '127.0.0.1', '--port', str(port)) as caller:
        caller.say('/small')
        caller.expect('/small: TLSError')
