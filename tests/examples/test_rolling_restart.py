"""The rolling restart with a runtime socket that fails: a worker is set ready again, or the message says how to do it.

The tests with the real HAProxy are in tests/serve/test_haproxy.py.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'examples' / 'haproxy' / 'rolling_restart.py'
HEAD = '# pxname,svname,scur,qcur,status,addr,\n'

pytestmark = pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='HAProxy runs only on Unix')


class Runtime:
    """A runtime socket for two servers in one backend. `refuse(command)` returns the answer, or None for the usual."""

    def __init__(self, path, refuse):
        self.path, self.refuse, self.commands = str(path), refuse, []
        self.states = {'w1': 'UP', 'w2': 'UP'}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            conn, _ = self.listener.accept()
            with conn:
                command = conn.recv(4096).decode().strip()
                if command == 'end of the test':
                    return
                conn.sendall(self.answer(command).encode())

    def answer(self, command):
        self.commands.append(command)
        if answer := self.refuse(command):
            return answer
        if command.startswith('show stat'):
            return HEAD + ''.join(f'http,{name},0,0,{state},127.0.0.1:80,\n' for name, state in self.states.items())
        _, _, server, kind, value = command.split()
        if kind == 'state':
            self.states[server.partition('/')[2]] = 'DRAIN' if value == 'drain' else 'UP'
        return '\n'

    def close(self):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(b'end of the test')
        self.thread.join(20)
        self.listener.close()


@pytest.fixture
def run(tmp_path):
    """`run(refuse, command)` runs the script, and returns (its exit status, its messages, the runtime socket)."""
    made = []

    def run(refuse, command='true'):
        made.append(Runtime(tmp_path / 'sock', refuse))
        program = [sys.executable, str(SCRIPT), made[0].path, command]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert 'Traceback' not in done.stderr
        return done.returncode, done.stderr, made[0]

    yield run
    for runtime in made:
        runtime.close()


def changes(runtime):
    return [command.removeprefix('set server http/') for command in runtime.commands if command.startswith('set')]


def test_both_servers_are_restarted(run):
    status, errors, runtime = run(lambda command: None)
    assert (status, errors) == (0, '')
    steps = ('state drain', 'health down', 'state ready')
    assert changes(runtime) == [f'{name} {step}' for name in ('w1', 'w2') for step in steps]


@pytest.mark.parametrize('command', ['true', 'false'])
def test_the_attempt_to_set_a_server_ready_is_repeated(run, command):
    refusals = iter(['Not now.\n'] * 3)
    status, _, runtime = run(lambda said: next(refusals, None) if said.endswith('w1 state ready') else None, command)
    assert status == (command == 'false') and runtime.states == {'w1': 'UP', 'w2': 'UP'}
    assert changes(runtime).count('w1 state ready') == 4


def test_the_message_says_how_to_set_a_server_ready_that_haproxy_does_not_set_ready(run):
    status, errors, runtime = run(lambda said: 'Not now.\n' if said.endswith('state ready') else None)
    assert status == 1 and runtime.states == {'w1': 'DRAIN', 'w2': 'UP'}
    assert "refused 'set server http/w1 state ready': Not now." in errors
    assert f"echo 'set server BACKEND/w1 state ready' | socat - {runtime.path}" in errors
    assert 'w2 state drain' not in changes(runtime)


def test_a_server_whose_drain_is_refused_is_not_restarted(run, tmp_path):
    status, errors, runtime = run(
        lambda said: 'Permission denied\n' if said.endswith('drain') else None, f'touch {tmp_path}/{{name}}'
    )
    assert status == 1 and "refused 'set server http/w1 state drain': Permission denied" in errors
    assert not (tmp_path / 'w1').exists() and changes(runtime) == ['w1 state drain', 'w1 state ready']


def test_servers_without_health_checks_are_not_restarted(run):
    def unchecked(said):
        return f'{HEAD}http,w1,0,0,no check,127.0.0.1:80,\n' if said.startswith('show') else None

    status, errors, runtime = run(unchecked)
    assert status == 1 and 'w1 has no health checks' in errors and not changes(runtime)


def test_a_single_server_is_not_restarted(run):
    def single(said):
        return f'{HEAD}http,w1,0,0,UP,127.0.0.1:80,\n' if said.startswith('show') else None

    status, errors, runtime = run(single)
    assert status == 1 and 'w1 is the last healthy server of backend http (it has no other server)' in errors
    assert not changes(runtime)


def test_a_server_that_is_failing_its_health_checks_does_not_count_as_healthy(run):
    def failing(said):
        return f'{HEAD}http,w1,0,0,UP,,\nhttp,w2,0,0,UP 1/2,,\n' if said.startswith('show') else None

    status, errors, runtime = run(failing)
    assert status == 1 and 'w2 is UP 1/2' in errors and not changes(runtime)
