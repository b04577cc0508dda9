"""Programs that the tests of proxies start: the service example behind the proxy, and a load in front of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[2]
HERE = '127.0.0.1'
TRUSTED = ['127.0.0.0/8']


def wait_until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, 'not in time'
        time.sleep(0.02)  # nothing signals the progress of another process
    return found


def free_port():
    with socket.create_server((HERE, 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def ended(process):
    """End a process, and everything that it has started, when the block ends."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def service(*options, workers=2):
    """Run examples/service.py, with no parent if `workers` is 0; yields the process when all workers listen."""
    command = [sys.executable, str(PROJECT / 'examples' / 'service.py'), '--workers', str(workers), *options]
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    with ended(
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, process_group=0)
    ) as process:
        printed = ''
        while printed.count('listening on ') < max(1, workers):
            line = process.stdout.readline()
            assert line, printed
            printed += line
        yield process


def get(port, method='GET', path='/'):
    """Return (status, body) of a request on a new connection."""
    with socket.create_connection((HERE, port), timeout=20) as sock:
        sock.sendall(f'{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n'.encode())
        with HTTPResponse(sock, method=method) as response:
            response.begin()
            return response.status, response.read().decode()


@contextmanager
def load(port, rate=400, connections=20):
    """Send requests at a fixed rate; yields a function that stops the load and returns its report."""
    options = {'port': port, 'connections': connections, 'requests-per-second': rate, 'seconds': 600}
    command = [sys.executable, '-m', 'reactor.demo', 'load', '--json', *(f'--{k}={v}' for k, v in options.items())]
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)) as process:

        def result():
            process.send_signal(signal.SIGINT)
            return json.loads(process.communicate(timeout=60)[0])

        yield result


def children(process):
    return {child.pid for child in psutil.Process(process.pid).children()}
