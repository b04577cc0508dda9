"""The pty bridge with real programs on its terminals: a shell, a program that does not read, one that is killed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.recipes.running import descriptors, recipe, wait_until, wakeups

pytestmark = pytest.mark.skipif(
    shutil.which('setsid') is None, reason='NOT TESTED: setsid is not installed: apt-get install util-linux'
)


@contextmanager
def bridge(*command):
    with recipe('pty_bridge.py', '--port', '0', *command) as (process, port):
        yield process, int(port)


@contextmanager
def client(port):
    with socket.create_connection(('127.0.0.1', port), timeout=15) as sock:
        yield sock


def read_until(sock, pattern):
    received = b''
    while not re.search(pattern, received):
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return received


def read_to_end(sock):
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b''.join(pieces)


def test_a_shell_has_a_controlling_terminal_and_ctrl_c_interrupts_what_runs_in_it():
    with bridge('bash', '--norc', '-i') as (process, port), client(port) as sock:
        sock.sendall(b'tty; ps -o tty= -p $$; echo end=$((1+1))\n')
        shown = read_until(sock, rb'end=2').decode()
        assert re.search(r'/dev/(pts/\d+)\r\n\1', shown), shown
        sock.sendall(b'sleep 100\n')
        wait_until(lambda: any(child.name() == 'sleep' for child in psutil.Process(process.pid).children(True)))
        sock.sendall(b'\x03')
        sock.sendall(b'echo status=$?\n')
        read_until(sock, rb'status=130')
        sock.sendall(b'exit 7\n')
        read_to_end(sock)
        assert re.fullmatch(r'process \d+ has ended: exit status 7\n', process.stdout.readline())


def test_a_client_that_goes_away_hangs_up_its_program_and_the_next_client_gets_a_new_one():
    with bridge('bash', '--norc', '-i') as (process, port):
        before = descriptors(process)
        for _ in range(20):
            with client(port) as sock:
                sock.sendall(b'echo number=$((40+2))\n')
                read_until(sock, rb'number=42')
        ends = [process.stdout.readline() for _ in range(20)]
        assert all('(Hangup)' in line or 'exit status 129' in line for line in ends), ends
        wait_until(lambda: descriptors(process) == before)
        assert not psutil.Process(process.pid).children()


def test_a_program_that_is_killed_ends_its_connection_after_all_of_its_output():
    with bridge('sh', '-c', 'stty raw -echo; echo $$; seq 200000; kill -KILL $$') as (process, port):
        with client(port) as sock:
            time.sleep(0.5)  # the program fills all buffers, and stops
            pid, *numbers = read_to_end(sock).split()
        assert numbers == [b'%d' % n for n in range(1, 200001)]
        assert process.stdout.readline() == f'process {int(pid)} has ended: signal 9 (Killed)\n'


def test_a_program_that_does_not_read_stops_its_client_and_gets_every_byte_later():
    count = 3_000_000
    code = f"""if 1:
        import hashlib, os, time, tty
        tty.setraw(0)
        os.write(1, b'ready')
        time.sleep(1)
        seen, digest = 0, hashlib.sha256()
        while seen < {count}:
            data = os.read(0, 65536)
            seen += len(data)
            digest.update(data)
        os.write(1, digest.hexdigest().encode())"""
    data = os.urandom(count)
    with bridge(sys.executable, '-c', code) as (process, port), client(port) as sock:
        read_until(sock, b'ready')
        sock.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 20 * count:  # more than the buffers of the two sockets hold
                sent += sock.send(data[sent : sent + 65536] or b'x')
                if sent >= count:
                    raise TimeoutError
        assert psutil.Process(process.pid).memory_info().rss < 80e6
        sock.settimeout(15)
        sock.sendall(data[sent:count])
        assert read_to_end(sock).decode() == hashlib.sha256(data).hexdigest()


def test_a_command_that_does_not_exist_is_reported():
    with bridge('no-such-program') as (process, port), client(port) as sock:
        assert b'no-such-program' in read_to_end(sock)  # setsid says so on the terminal
        assert 'exit status' in process.stdout.readline()


def test_what_a_key_press_takes_and_an_idle_bridge_does_not_wake_up(capsys):
    with bridge('cat') as (process, port), client(port) as sock:
        took = []
        for _ in range(2000):
            began = time.perf_counter()
            sock.sendall(b'k')
            assert sock.recv(10) == b'k'
            took.append(time.perf_counter() - began)
        time.sleep(1.1)
        woke = wakeups(process)
        took.sort()
        with capsys.disabled():
            print(f'\npty_bridge: echo p50 {took[1000] * 1e6:.0f} us, p99 {took[1980] * 1e6:.0f} us; {woke}/s idle')
        assert woke <= 1
