"""Every code block of the README is run; one that nobody knows how to run fails."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reactor

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / 'README.md').read_text()
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)


def run_shell(code):
    if 'pytest' in code:  # this very run: hold it to what the checks call
        assert (
            code.strip().replace('.venv/bin/pip install -e', '.venv/bin/pip install -q -e')
            in (CHECKOUT / '.ci' / 'run').read_text()
        )
        return
    words = shlex.split(code)
    if words[0] == 'perf/profile.sh':  # it has tests of its own; here, that it is there and takes these options
        done = subprocess.run(['bash', words[0], '--help'], cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and all(word in done.stdout for word in words[1:] if word.startswith('--'))
        return
    assert words == ['python3', '-m', 'reactor.demo']
    small = [sys.executable, *words[1:], '--connections', '200', '--delay', '0.2']
    done = subprocess.run(small, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '200 of 200 connections' in done.stdout


def run_python(code):
    if '7007' not in code:
        subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=CHECKOUT, check=True, timeout=30)
        return
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, '-W', 'error', '-c', code.replace('7007', str(port))], cwd=CHECKOUT)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                sock = socket.create_connection(('127.0.0.1', port), timeout=10)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline and process.poll() is None
        with sock:
            sock.sendall(b'hello')
            assert sock.recv(100) == b'hello'
    finally:
        process.kill()
        process.wait()


RUNNERS = {'sh': run_shell, 'python': run_python}


@pytest.mark.parametrize('language, code', BLOCKS, ids=[code.split('\n')[0] for _, code in BLOCKS])
def test_a_code_block_of_the_readme_runs(language, code):
    RUNNERS[language](code)


def test_the_echo_server_of_the_readme_has_at_most_twelve_lines():
    echo = next(code for _, code in BLOCKS if '7007' in code)
    assert len(echo.strip().splitlines()) <= 12


def test_the_readme_names_everything_public():
    for name in reactor.__all__:
        if name not in ('READ', 'WRITE', 'Listener', 'Stats', 'Stream', 'Options'):
            assert f'`{name}' in README or f'reactor.{name}(' in README or f'**{name}**' in README, name
    for name in dir(reactor.Reactor):
        if not name.startswith('_'):
            assert name in README, name
