"""Monitoring a parent and its workers: the counters of each and their sum, on the control socket and as metrics."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from reactor.observe.asking import ControlClient

if os.name != 'posix':
    pytest.skip('NOT TESTED: workers, which need POSIX', allow_module_level=True)
prometheus_client = pytest.importorskip(
    'prometheus_client', reason='NOT TESTED: metrics; pip install prometheus_client'
)

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

PROGRAM = Path(__file__).parents[2] / 'examples' / 'observed.py'


@pytest.fixture
def program(tmp_path):
    """A parent with two workers: its process, the path of its control socket, and three ports."""
    path = str(tmp_path / 'control')
    options = ['--port', '0', '--workers', '2', '--control', path, '--page', '0', '--metrics', '0']
    words = [sys.executable, '-X', 'dev', '-W', 'error', str(PROGRAM), *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        yield process, path, *[int(re.search(r':(\d+)(/\w+)?$', line)[1]) for line in lines]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert not errors


def until(ask, holds, seconds=15):
    """Call `ask` until `holds(answer)` is true; return this answer."""
    end = time.monotonic() + seconds
    while not holds(answer := ask()):
        assert time.monotonic() < end, answer
        time.sleep(0.05)
    return answer


def scrape(port):
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=10) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def received(families):
    return {
        sample.labels['worker']: sample.value
        for family in families
        for sample in family.samples
        if sample.name == 'reactor_received_bytes_total'
    }


def test_workers_can_be_monitored_separately_and_together_and_be_drained(program):
    process, path, page, metrics, port = program
    with ControlClient(path) as client:
        until(lambda: client.ask('stats')['workers'], lambda workers: len(workers) == 2)
        for _ in range(40):
            with socket.create_connection(('127.0.0.1', port), timeout=10) as conn:
                conn.sendall(b'12345')
                assert conn.recv(5)
        answer = until(lambda: client.ask('stats'), lambda answer: answer['sum']['bytes_in'] == 200)
        workers = answer['workers']
        assert workers['0']['pid'] != workers['1']['pid'] != process.pid
        assert workers['0']['accepts'] + workers['1']['accepts'] == answer['sum']['accepts'] == 40
        assert set(client.ask('phases')['workers']) == {'0', '1'}
        assert 'Process' in client.ask('handles', worker='parent')['kinds']

        # The metrics are made from the last reports of the workers, which are up to a second old.
        expected = {name: figures['bytes_in'] for name, figures in workers.items()}
        families = until(lambda: scrape(metrics), lambda families: received(families) == expected)
        resident = next(family for family in families if family.name == 'reactor_resident_memory_bytes')
        assert all(sample.value > 5 << 20 for sample in resident.samples)

        with urllib.request.urlopen(f'http://127.0.0.1:{page}/', timeout=10) as answer:
            assert b'<html' in answer.read()
        assert client.ask('drain')['ok']
    assert process.wait(timeout=20) == 0
    assert not os.path.exists(path)


def test_a_drain_over_the_control_socket_takes_the_times_of_the_command(program):
    process, path, _, _, port = program
    with ControlClient(path) as client:
        until(lambda: client.ask('stats')['workers'], lambda workers: len(workers) == 2)
        began = time.monotonic()
        assert client.ask('drain', drain_timeout=9, lame_duck=2)['ok']
    while time.monotonic() < began + 1.5:  # the workers still accept clients
        with socket.create_connection(('127.0.0.1', port), timeout=10) as conn:
            conn.sendall(b'12345')
            assert conn.recv(5) == b'12345'
        time.sleep(0.1)
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - began >= 2
