"""Each example is run as a person would run it, and does what its first lines say."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / 'examples'
SIGNALS = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGHUP, and no SIGINT for a child')


LONGER = {'resp_server.py': 350}  # lines


@contextmanager
def example(name, *options, warnings='error'):
    """A running example; yields (process, port), and ends it by its own means."""
    process = subprocess.Popen(
        [sys.executable, '-X', 'dev', '-W', warnings, str(EXAMPLES / name), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.search(r'listening on .*?(\d+)$', line):
                break
        else:
            raise AssertionError(process.stderr.read())
        yield process, int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, errors
    assert not errors


@contextmanager
def client(port):
    with socket.create_connection(('127.0.0.1', port), timeout=10) as sock:
        yield sock


def read_to_end(sock):
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b''.join(pieces)


def read_until(sock, end):
    received = b''
    while end not in received:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return received


@pytest.mark.parametrize('path', sorted(EXAMPLES.glob('*.py')), ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_to_run(path):
    text = path.read_text()
    assert text.startswith('"""')
    assert f'python examples/{path.name}' in text
    assert len(text.splitlines()) < LONGER.get(path.name, 60)


def test_seed_answers_after_its_delay_and_counts_it():
    with example('seed.py', '--port', '0', '--delay', '0.2') as (process, port):
        with client(port) as sock:
            began = time.monotonic()
            sock.sendall(b'GET / HTTP/1.1\r\n\r\n')
            reply = read_to_end(sock)
            assert time.monotonic() - began >= 0.2
        assert reply.endswith(b'\r\n\r\nomglolwtf') and len(reply) == 110
        printed = ''.join(process.stdout.readline() for _ in range(10))
    assert re.fullmatch(r'(incoming: 0\noutgoing: 0\nfinished: \d+\nrate: \d+\.\d{3} req/s\n\n){2}', printed)


def test_seed_answers_open_requests_after_ctrl_c():
    with example('seed.py', '--port', '0', '--delay', '0.5') as (process, port), client(port) as sock:
        sock.sendall(b'GET / HTTP/1.1\r\n\r\n')
        process.stdout.readline()
        time.sleep(0.1)  # another process has to read it: there is nothing here to wait for
        process.send_signal(signal.SIGINT)
        assert read_to_end(sock).endswith(b'omglolwtf')
        assert process.stdout.read().endswith('TCP server exited.\n')


def test_echo_sends_back_a_megabyte_to_a_client_that_reads_late():
    with example('echo.py', '--port', '0') as (_, port), client(port) as sock:
        sent = bytes(range(256)) * 4096
        sock.setblocking(False)
        received, position = b'', 0
        deadline = time.monotonic() + 20
        while len(received) < len(sent) and time.monotonic() < deadline:
            try:
                position += sock.send(sent[position : position + 65536]) if position < len(sent) else 0
            except BlockingIOError:
                pass
            if position == len(sent) or position > 1 << 19:
                try:
                    received += sock.recv(1 << 16)
                except BlockingIOError:
                    pass
        assert received == sent


def test_discard_counts_what_it_threw_away():
    with example('discard.py', '--port', '0') as (process, port):
        with client(port) as sock:
            sock.sendall(b'x' * 1_000_000)
        assert process.stdout.readline() == '1,000,000 bytes \n'


def test_chargen_writes_only_as_fast_as_the_client_reads():
    with example('chargen.py', '--port', '0') as (_, port), client(port) as sock, client(port) as stalled:
        received = b''
        while len(received) < 1_000_000:
            received += sock.recv(65536)
        lines = received.split(b'\r\n')
        assert all(len(line) == 72 for line in lines[:-1])
        assert lines[0].startswith(b'0123456789') and lines[1].startswith(b'123456789')
        assert stalled.recv(74) == lines[0] + b'\r\n'


def test_daytime_tells_the_time_and_closes():
    with example('daytime.py', '--port', '0') as (_, port), client(port) as sock:
        assert re.fullmatch(rb'\w+, \w+ \d\d, \d{4} \d\d:\d\d:\d\d-.*\r\n', read_to_end(sock))


def test_chat_passes_lines_to_everybody_else():
    with example('chat.py', '--port', '0') as (_, port), client(port) as anna, client(port) as ben:
        name = read_until(anna, b' here\n').split()[2].strip(b',')
        read_until(ben, b' here\n')
        anna.sendall(b'hel')
        anna.sendall(b'lo\n')
        assert name + b': hello\n' in read_until(ben, b'hello\n')
        anna.close()
        assert read_until(ben, b'left\n').endswith(name + b' left\n')


def test_proxy_passes_both_ways_and_half_closes():
    with example('echo.py', '--port', '0') as (_, echo_port):
        with example('proxy.py', '--port', '0', '--to', f'127.0.0.1:{echo_port}') as (_, port), client(port) as sock:
            sock.sendall(b'through both')
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b'through both'


def test_proxy_without_its_server_ends_the_client():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        nobody = taken.getsockname()[1]
    with example('proxy.py', '--port', '0', '--to', f'127.0.0.1:{nobody}') as (_, port), client(port) as sock:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_timers_end_by_themselves():
    done = subprocess.run(
        [sys.executable, '-W', 'error', str(EXAMPLES / 'timers.py')],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    said = [line.split('s  ')[-1] for line in done.stdout.splitlines()]
    assert said == ['first', *['tick'] * 5, 'the watchdog barks', 'nothing is left to wait for']
    assert not done.stderr


@SIGNALS
def test_signals_are_told_in_the_loop():
    process = subprocess.Popen([sys.executable, str(EXAMPLES / 'signals.py')], stdout=subprocess.PIPE, text=True)
    assert f'pid {process.pid} waits' in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline().startswith('SIGHUP: ')
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == 'SIGTERM: finishing\nended\n'
    assert process.returncode == 0


PORTS = [
    'port_from_asyncore.py',
    pytest.param(
        'asyncore_original.py',
        marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason='Python 3.12 and later have no asyncore'),
    ),
]


@pytest.mark.parametrize('name', PORTS)
def test_the_port_from_asyncore_answers_as_the_original(name):
    with example(name, '--port', '0', warnings='ignore') as (_, port), client(port) as sock, client(port) as other:
        assert read_until(sock, b'\r\n') == b'220 ready\r\n'
        assert read_until(other, b'\r\n') == b'220 ready\r\n'
        sock.sendall(b'say one\r\nSAY  two words\r\nsa')
        assert read_until(sock, b'two words\r\n') == b'250 one\r\n250 two words\r\n'
        sock.sendall(b'y three\r\nnonsense\r\n\r\ncount\r\nquit\r\nsay no more\r\n')
        assert read_to_end(sock) == b'250 three\r\n500 unknown\r\n500 unknown\r\n250 6\r\n221 bye\r\n'
        other.sendall(b'count\r\n' + b'x' * 5000 + b'\r\n')
        assert read_until(other, b'\r\n') == b'250 1\r\n'
        try:
            assert read_to_end(other) == b''
        except ConnectionResetError:
            pass  # the end of who sends too long a line
