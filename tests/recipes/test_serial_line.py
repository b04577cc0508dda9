"""The serial line on pseudo-terminals: a device that is unplugged and plugged in again, by us and by socat."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.recipes.running import descriptors, recipe, wait_until, wakeups

pytest.importorskip('pty', reason='NOT TESTED: this platform has no pseudo-terminals; test on Linux or macOS')


class Device:
    """The far end of a line: a pseudo-terminal, whose near end has a fixed path while it is plugged in."""

    def __init__(self, path):
        self.path = path
        self.plug_in()

    def plug_in(self):
        self.fd, near = os.openpty()
        os.symlink(os.ttyname(near), self.path)
        os.close(near)

    def unplug(self):
        os.unlink(self.path)
        os.close(self.fd)


@pytest.fixture
def device(tmp_path):
    device = Device(tmp_path / 'line')
    yield device
    device.unplug()


@pytest.fixture(params=['pyserial', 'termios'])
def library(request, tmp_path, monkeypatch):
    """Run the recipe with and without pyserial."""
    if request.param == 'termios':
        (tmp_path / 'serial.py').write_text('raise ImportError\n')
        monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    elif importlib.util.find_spec('serial') is None:
        pytest.skip('NOT TESTED: pyserial is not installed: pip install pyserial')
    return request.param


@contextmanager
def served(path, *words):
    with recipe('serial_line.py', str(path), '--port', '0', *words) as (process, port):
        assert process.stdout.readline() == f'{path} is open at 115200 baud\n'
        yield process, int(port)


@contextmanager
def client(port):
    with socket.create_connection(('127.0.0.1', port), timeout=15) as sock:
        yield sock


def receive(sock, size):
    data = b''
    while len(data) < size:
        piece = sock.recv(65536) if isinstance(sock, socket.socket) else os.read(sock, 65536)
        assert piece, data
        data += piece
    return data


def test_clients_share_the_line_and_every_byte_passes_unchanged(device, library):
    everything = bytes(range(256)) * 20
    with served(device.path) as (_, port), client(port) as one, client(port) as two:
        one.sendall(everything)
        assert receive(device.fd, len(everything)) == everything
        two.sendall(b'two')
        assert receive(device.fd, 3) == b'two'
        for n in range(0, len(everything), 1024):
            os.write(device.fd, everything[n : n + 1024])
            for sock in one, two:
                assert receive(sock, 1024) == everything[n : n + 1024]
        assert os.readlink(device.path).startswith('/dev/')


def test_what_clients_send_while_the_device_is_unplugged_is_counted_and_clients_stay_connected(device, library):
    with served(device.path) as (process, port), client(port) as sock:
        sock.sendall(b'before')
        receive(device.fd, 6)
        open_before = descriptors(process)
        for turn in range(3):
            device.unplug()
            assert process.stdout.readline().startswith(f'{device.path} was unplugged')
            sock.sendall(b'lost' * 1000)
            time.sleep(0.4)
            device.plug_in()
            assert process.stdout.readline() == f'{device.path} is open at 115200 baud\n'
            dropped = '4000 bytes from clients were dropped, because the line was unplugged\n'
            assert process.stdout.readline() == dropped
            sock.sendall(b'turn %d' % turn)
            assert receive(device.fd, 6) == b'turn %d' % turn
            os.write(device.fd, b'hello')
            assert receive(sock, 5) == b'hello'
        assert descriptors(process) == open_before


def test_every_byte_is_delivered_or_counted_when_a_device_that_does_not_read_is_unplugged(device, library):
    total, kernel = 600_000, 32768  # a terminal of Linux 6 takes between 13,824 and 22,048 bytes
    with served(device.path) as (process, port), client(port) as sock:
        sock.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):  # the device does not read, so the recipe stops reading its client
            while True:
                sent += sock.send(b'x' * 65536)
                assert sent < 20e6
        assert psutil.Process(process.pid).memory_info().rss < 80e6
        device.unplug()
        sock.settimeout(15)
        sock.sendall(b'y' * total)
        sent += total
        assert process.stdout.readline().startswith(f'{device.path} was unplugged')
        time.sleep(0.5)
        device.plug_in()
        process.stdout.readline()
        dropped = int(process.stdout.readline().split()[0])
        # What is missing was accepted by the kernel for the terminal that no longer exists.
        assert sent - kernel <= dropped < sent


def test_a_client_that_does_not_read_is_disconnected_and_the_others_are_not(device):
    with served(device.path) as (process, port), client(port) as idle, client(port) as busy:
        busy.sendall(b'.')
        receive(device.fd, 1)
        received = 0
        while received < 20_000_000:
            os.write(device.fd, b'z' * 1024)
            received += len(receive(busy, 1024))
            if received % 102400 == 0 and len(psutil.Process(process.pid).net_connections()) < 3:
                break
        assert 'was disconnected' in process.stdout.readline()
        os.write(device.fd, b'still here')
        assert receive(busy, 10) == b'still here'
        with pytest.raises(ConnectionResetError):
            read_to_end(idle)


def test_a_second_program_cannot_open_the_line(device):
    pytest.importorskip('serial', reason='NOT TESTED: pyserial is not installed: pip install pyserial')
    with served(device.path), pytest.raises(AssertionError, match='exclusively lock port'):
        with served(device.path):
            pass


def test_a_device_that_does_not_exist_is_reported(tmp_path, library):
    with pytest.raises(AssertionError, match=r'No such file or directory.*plug the device in'):
        with served(tmp_path / 'none'):
            pass


def read_to_end(sock):
    while sock.recv(65536):
        pass


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def socat(path):
    """A line that sends back what it receives."""
    process = subprocess.Popen(['socat', f'PTY,link={path},rawer', 'EXEC:cat'], start_new_session=True)
    try:
        wait_until(lambda: os.path.exists(path))
        yield process
    finally:
        kill(process)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('socat') is None, reason='NOT TESTED: socat is not installed: apt-get install socat')
def test_lines_come_back_from_socat_before_and_after_it_was_killed(tmp_path, library, capsys):
    path, count = tmp_path / 'line', 2000

    def echo_lines(sock, took):
        for n in range(count):
            began = time.perf_counter()
            sock.sendall(b'%6d\n' % n)
            assert receive(sock, 7) == b'%6d\n' % n
            took.append(time.perf_counter() - began)

    took = []
    with socat(path):
        with served(path) as (process, port), client(port) as sock:
            echo_lines(sock, took)
            time.sleep(1.1)
            woke = wakeups(process)
            assert woke <= 0.5
    with socat(path) as first, served(path) as (process, port), client(port) as sock:
        echo_lines(sock, took)
        kill(first)
        assert process.stdout.readline().startswith(f'{path} was unplugged')
        retries = wakeups(process)
        assert retries < 10
        began = time.monotonic()
        with socat(path):
            assert process.stdout.readline() == f'{path} is open at 115200 baud\n'
            again = time.monotonic() - began
            echo_lines(sock, took)
    took.sort()
    with capsys.disabled():
        print(
            f'\nserial_line: echo p50 {took[len(took) // 2] * 1e6:.0f} us, p99 {took[len(took) * 99 // 100] * 1e6:.0f} '
            f'us; idle {woke}/s, unplugged {retries}/s; again after {again:.2f} s'
        )
