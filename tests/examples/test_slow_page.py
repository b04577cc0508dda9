"""The page docs/guide/slow.md: its program has the fault, and each tool shows what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / 'docs' / 'guide' / 'slow.md').read_text()
PORT = '7010'
CLIENTS = 20


@pytest.fixture
def program(tmp_path):
    """The program of the page, on a free port, after one report among requests of other clients."""
    (text,) = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    assert text.count(PORT) == 1
    (tmp_path / 'stalls.py').write_text(text.replace(PORT, str(port)))
    process = start(tmp_path)
    try:
        # On a busy machine, the start may be slow, too: then the recorder writes its file for that.
        while '__main__.main' in observe(tmp_path):
            process.kill()
            process.communicate()
            shutil.rmtree(tmp_path / 'traces', ignore_errors=True)
            process = start(tmp_path)
        report(port)
        yield tmp_path, process
    finally:
        process.kill()
        process.communicate()


def start(folder):
    """Start the program, and wait for its control socket."""
    (folder / 'stalls.sock').unlink(missing_ok=True)
    environment = {**os.environ, 'PYTHONPATH': str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, 'stalls.py'], cwd=folder, stderr=subprocess.PIPE, text=True, env=environment
    )
    until = time.monotonic() + 20
    while not (folder / 'stalls.sock').exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    return process


def report(port):
    socks = [socket.create_connection(('127.0.0.1', port), timeout=10) for _ in range(CLIENTS)]
    for sock in socks:
        sock.sendall(b'x\n')
        assert sock.recv(10) == b'x\n'
    socks[0].sendall(b'report\n')
    time.sleep(0.02)
    for sock in socks[1:]:
        sock.sendall(b'y\n')
    assert socks[0].recv(10) == b'done\n'
    for sock in socks[1:]:
        assert sock.recv(10) == b'y\n'
        sock.close()
    socks[0].close()


def observe(folder, *words):
    done = subprocess.run(
        [sys.executable, '-m', 'reactor.observe', 'stalls.sock', *words],
        cwd=folder, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, 'PYTHONPATH': str(CHECKOUT)},
    )  # fmt: skip
    return done.stdout


def test_each_tool_of_the_page_shows_the_fault(program):
    folder, process = program
    place = '__main__.on_data:5'
    assert place in PAGE
    phases = observe(folder, 'phases')
    assert phases.splitlines()[0].split() == ['seconds', 'share'] and 'late' in phases
    top = observe(folder, 'top', '--once').splitlines()
    (head,) = {line for line in top if line.startswith('connection ')}
    assert top[0].startswith('utilisation  0: ') and f'\n{head}\n' in PAGE
    assert re.search(rf'slow callbacks +times +longest\n{re.escape(place)} +1 ', observe(folder))
    observe(folder, 'trace', 'now.json')
    (stall,) = [
        event for event in json.loads((folder / 'now.json').read_text())['traceEvents']
        if event['name'] == place and event['tid'] < 100 and event['dur'] >= 80_000
    ]  # fmt: skip
    assert stall['args'].keys() == {
        'phase', 'connection', 'events_that_waited', 'timers_that_waited', 'waited_at_most_ms', 'mean_timer_lag_ms'
    }  # fmt: skip
    assert stall['args']['events_that_waited'] >= CLIENTS - 1
    for name in stall['args']:
        assert f'\n{name} ' in PAGE
    log = [process.stderr.readline() for _ in range(2)]
    assert f'slow callback: {place} took 0.08' in log[0]
    assert f'flight recorder: {place} took 0.08' in log[1] and 'the last 10 s are in traces/trace-' in log[1]


def test_the_pictures_of_the_page_exist_and_are_small():
    names = re.findall(r'!\[[^]]+\]\(\.\./(\S+)\)', PAGE)
    assert len(names) == 2
    for name in names:
        assert (CHECKOUT / 'docs' / name).stat().st_size < 150_000
