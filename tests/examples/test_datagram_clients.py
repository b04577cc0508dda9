"""Tests of datagram sockets with socat and dig, which are in the Debian packages socat and bind9-dnsutils."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import pytest

from reactor import DatagramSocket, Reactor
from tests.examples.test_examples import example, needs
from tests.helpers.support import run_until, turns

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='socat and dig are programs for Unix')


def run_client(r: Reactor, *command: str, stdin: str = '') -> str:
    """Run a client until it exits, while the reactor runs; return the output of the client."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        run_until(r, lambda: process.poll() is not None, timeout=30)
        printed = process.stdout.read()
        assert process.returncode == 0, printed
        return printed
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()


@needs('socat')
@pytest.mark.parametrize('host', ['127.0.0.1', '[::1]'])
def test_socat_talks_to_a_socket_that_serves_both_families(r, host):
    sock = r.bind_udp(None, 0, lambda sock, data, address: sock.send(data.upper(), address))
    kind = 'UDP6' if ':' in host else 'UDP4'
    printed = run_client(r, 'socat', '-t', '1', '-', f'{kind}:{host}:{sock.address[1]}', stdin='over udp\n')
    assert printed == 'OVER UDP\n'
    sock.close()
    turns(r, 1)


@needs('socat')
def test_socat_gets_its_lines_back_from_the_example():
    with example('udp_echo.py', '--port', '0') as (_, port):
        done = subprocess.run(
            ['socat', '-t', '1', '-', f'UDP:127.0.0.1:{port}'],
            input='one\ntwo\n',
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, 'one\ntwo\n', '')


def answer(sock: DatagramSocket, query: bytes, address: Any) -> None:
    """Answer as a tiny name server: every name has the address 192.0.2.7."""
    if len(query) < 17:
        return  # too short to contain a question
    number, _, questions = struct.unpack_from('!HHH', query)
    end = query.index(b'\0', 12) + 5
    header = struct.pack('!HHHHHH', number, 0x8580, questions, 1, 0, 0)
    record = b'\xc0\x0c' + struct.pack('!HHIH', 1, 1, 60, 4) + bytes((192, 0, 2, 7))
    sock.send(header + query[12:end] + record, address)


@needs('dig')
@pytest.mark.parametrize('host', ['127.0.0.1', '::1'])
def test_dig_is_answered(r, host):
    sock = r.bind_udp(None, 0, answer)
    port = str(sock.address[1])
    printed = run_client(
        r, 'dig', f'@{host}', '-p', port, 'reactor.example', 'A', '+short', '+tries=2', '+time=5', '+noedns'
    )
    assert printed == '192.0.2.7\n'
    sock.close()
    turns(r, 1)


@pytest.mark.scenario(98)
@needs('dig')
def test_dig_is_answered_among_garbage(r, caplog):
    sock = r.bind_udp('127.0.0.1', 0, answer)
    noise = r.connect_udp(*sock.address)
    for size in range(40):
        noise.send(b'\xff' * size + b'\0' * 5)
    printed = run_client(
        r, 'dig', '@127.0.0.1', '-p', str(sock.address[1]), 'reactor.example', '+short', '+noedns', '+tries=2'
    )
    assert printed == '192.0.2.7\n'
    assert not caplog.records
    sock.close()
    noise.close()
    turns(r, 1)
