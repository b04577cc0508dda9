"""`python -m reactor.observe --pid`: attaching to programs that sleep or work, and leaving nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reactor.observe import attaching

PROJECT = Path(__file__).parents[2]

CAN_ATTACH = hasattr(sys, 'remote_exec')
needs_attaching = pytest.mark.skipif(
    not CAN_ATTACH or sys.platform != 'linux',
    reason='NOT TESTED: attaching to a process: it needs Python 3.14 and Linux',
)
IDLE = """
import reactor
def main(r):
    r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data))
    print('ready', flush=True)
reactor.run(main)
"""
BUSY = """
import reactor
def main(r):
    def work():
        for _ in range(20_000):
            pass
        r.call_soon(work)
    work()
    print('ready', flush=True)
reactor.run(main)
"""
TWO = """
import threading, reactor
def run():
    reactor.run(lambda r: r.listen_tcp('127.0.0.1', 0, print))
threading.Thread(target=run, daemon=True).start()
def main(r):
    r.call_every(60, int)
    r.call_later(0.2, ready)
def ready():
    print('ready', flush=True)
reactor.run(main)
"""
NONE = """
import time, reactor
print('ready', flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def start():
    """`start(program)` runs a program until it prints 'ready', and returns its process."""
    started = []

    def start(program, options=None, **environment):
        process = subprocess.Popen(
            [sys.executable, '-c', program], stdout=subprocess.PIPE, text=True, cwd='/', **(options or {}),
            env={**os.environ, 'PYTHONPATH': str(PROJECT), **environment},
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == 'ready\n'
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def observe(pid, *words, **options):
    command = [sys.executable, '-m', 'reactor.observe', '--pid', str(pid), '--timeout', '20', *words]
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment, cwd='/', **options
    )


def descriptors(process):
    return sorted(os.listdir(f'/proc/{process.pid}/fd'))


def folders():
    return sorted(path for path in Path('/tmp').glob('reactor-*') if path.stat().st_uid == os.getuid())


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@needs_attaching
@pytest.mark.parametrize('program', [IDLE, BUSY], ids=['idle', 'busy'])
def test_a_program_without_a_control_socket_answers_and_nothing_is_left_behind(start, program):
    before, process = folders(), start(program)
    had = descriptors(process)
    for _ in range(2):
        done = observe(process.pid, 'handles')
        assert done.returncode == 0, done.stderr
        assert 'ControlSocket' in done.stdout
        wait_for(lambda: descriptors(process) == had)
    assert folders() == before
    assert process.poll() is None


@needs_attaching
def test_a_program_keeps_working_after_it_was_woken_up(start):
    process = start(
        IDLE.replace("print('ready'", "r.call_later(1, lambda: print('on time', flush=True)); print('ready'")
    )
    observe(process.pid, 'stats')
    assert process.stdout.readline() == 'on time\n'


@needs_attaching
def test_the_socket_is_closed_when_the_process_that_asked_is_killed(start):
    process = start(IDLE)
    had = descriptors(process)
    command = [sys.executable, '-m', 'reactor.observe', '--pid', str(process.pid), 'stats', '--watch', '1']
    asker = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(PROJECT)})
    asker.stdout.readline()
    assert descriptors(process) != had
    asker.kill()
    asker.communicate()
    wait_for(lambda: descriptors(process) == had)
    for folder in folders():  # a killed process cannot remove its folder
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@needs_attaching
def test_of_several_reactors_one_has_to_be_chosen(start):
    process = start(TWO)
    done = observe(process.pid, 'handles')
    assert done.returncode == 1
    assert '2 reactors run in it; choose one with --reactor' in done.stderr
    kinds = []
    for number in '0', '1':
        done = observe(process.pid, 'handles', '--reactor', number)
        assert done.returncode == 0, done.stderr
        kinds.append('Listener' in done.stdout)
    assert sorted(kinds) == [False, True]
    done = observe(process.pid, 'handles', '--reactor', '7')
    assert done.returncode == 1 and 'the reactors 0 to 1' in done.stderr


@needs_attaching
def test_a_process_without_a_running_reactor_says_so(start):
    done = observe(start(NONE).pid)
    assert done.returncode == 1 and 'no reactor runs in it' in done.stderr


@needs_attaching
def test_where_attaching_is_switched_off_the_message_says_what_to_do_instead(start):
    done = observe(start(IDLE, PYTHON_DISABLE_REMOTE_DEBUG='1').pid)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert 'PYTHON_DISABLE_REMOTE_DEBUG' in done.stderr and 'serve_control' in done.stderr


@needs_attaching
def test_a_process_that_is_no_python_is_refused():
    with subprocess.Popen(['sleep', '60']) as process:
        try:
            done = observe(process.pid)
        finally:
            process.kill()
    assert done.returncode == 1 and f'process {process.pid}' in done.stderr
    assert len(done.stderr.splitlines()) == 1


NOBODY = {'user': 65534, 'group': 65534, 'extra_groups': []}


def is_readable_for_nobody():
    command = [sys.executable, '-c', 'import reactor.observe']
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    done = subprocess.run(command, capture_output=True, check=False, cwd='/', env=environment, **NOBODY)
    return done.returncode == 0


@pytest.fixture
def as_nobody():
    """Options of `subprocess` that run a process as another user."""
    if not hasattr(os, 'getuid') or os.getuid() != 0:
        pytest.skip('NOT TESTED: another user: it needs root')
    if not is_readable_for_nobody():
        pytest.skip('NOT TESTED: another user, who cannot read this Python or this checkout')
    return NOBODY


@needs_attaching
def test_another_user_is_refused(start, as_nobody):
    process = start(IDLE)
    done = observe(process.pid, **as_nobody)
    assert done.returncode == 1 and 'not permitted' in done.stderr
    assert process.poll() is None


@needs_attaching
def test_root_can_attach_to_the_process_of_any_user(start, as_nobody):
    done = observe(start(IDLE, as_nobody).pid, 'handles')
    assert done.returncode == 0, done.stderr
    assert 'ControlSocket' in done.stdout


def test_before_python_3_14_the_message_says_what_to_do_instead(monkeypatch):
    monkeypatch.delattr(sys, 'remote_exec', raising=False)
    with pytest.raises(attaching.NoAnswer, match=r'--pid needs Python 3\.14 or later.*serve_control'):
        attaching.Attached(os.getpid(), None, 1)


@pytest.mark.skipif(CAN_ATTACH, reason='this Python can attach')
def test_on_an_older_python_the_command_fails_with_one_line():
    done = observe(os.getpid(), 'stats')
    assert done.returncode == 1 and done.stdout == ''
    assert len(done.stderr.splitlines()) == 1 and '3.14' in done.stderr


def test_reactor_is_an_option_of_pid():
    command = [sys.executable, '-m', 'reactor.observe', '/no/socket', '--reactor', '1']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and '--reactor is for --pid' in done.stderr
