"""The parent in rough surroundings: terminals, stray signals, closed descriptors, and as the first process."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.serve.test_parents import free_port
from tests.serve.test_serve import HERE, PROJECT, Served, is_gone, wait_until

# -- signals


@pytest.mark.parametrize('signum', [signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize('group', [False, True], ids=['parent', 'group'])
def test_a_stray_signal_ends_neither_the_parent_nor_a_worker_and_is_logged(tmp_path, signum, group):
    with Served(tmp_path, stray=True, run={'workers': 2}) as served:
        pids = served.pids(2)
        if group:
            os.killpg(served.parent.pid, signum)
        else:
            served.send(signum)
        wait_until(lambda: f'{signum.name} is ignored' in served.log)
        time.sleep(0.5)
        assert served.pids(2) == pids
        served.send(signal.SIGTERM)
        assert served.ended() == 0


def test_the_handler_of_the_program_for_such_a_signal_is_kept(tmp_path):
    with Served(tmp_path) as served:  # it has handlers for both signals
        served.pids()
        served.send(signal.SIGUSR1)
        assert served.ended() == 0 and 'is ignored' not in served.log


@pytest.fixture
def default_sigquit():
    """The default action of SIGQUIT for the programs of a test, even if a script has started these tests with `&`."""
    before = signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGQUIT, before)


def test_sigquit_ends_the_program_at_once(tmp_path, default_sigquit):
    with Served(tmp_path, run={'workers': 2, 'drain_timeout': 60}) as served:
        pids = served.pids(2)
        conn = served.connect()
        conn.send('wait 30')
        served.send(signal.SIGQUIT)
        assert served.ended(3) == 131
        assert all(map(is_gone, pids.values()))


# -- a terminal


@contextmanager
def in_background_of_a_terminal(arguments: list[str]):
    """Run a program in the background of a terminal after `stty tostop`; generate (its process, the terminal)."""
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[3] |= termios.TOSTOP
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    # The leader of the session owns the foreground; it starts the program in a process group of its own.
    leader = (
        'import fcntl, os, subprocess, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); '
        'child = subprocess.Popen(sys.argv[1:], process_group=0); print(child.pid, flush=True); child.wait()'
    )
    started = subprocess.Popen(
        [sys.executable, '-c', leader, *arguments],
        stdin=slave, stdout=subprocess.PIPE, stderr=slave, start_new_session=True, cwd=PROJECT, text=True,
    )  # fmt: skip
    os.close(slave)
    pid = int(started.stdout.readline())
    try:
        yield psutil.Process(pid), master
    finally:
        for group in pid, started.pid:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        started.communicate()
        os.close(master)


def terminal_text(master: int, seconds: float) -> str:
    """Return what is written to the terminal in this time."""
    text, end = b'', time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([master], [], [], left)[0]:
            text += os.read(master, 65536)
    return text.decode()


def test_a_log_on_a_terminal_that_stops_background_output_uses_no_cpu_and_removes_no_worker(tmp_path):
    path, port = tmp_path / 'app.py', free_port()
    path.write_text(
        'import logging, sys\n'
        'from reactor import serve\n'
        'logging.basicConfig(level="INFO")\n'
        'def main(r, listeners):\n'
        '    r.listen_tcp(None, 0, print, sock=listeners[0])\n'
        '    print("a line of a worker", file=sys.stderr, flush=True)\n'
        f'sys.exit(serve.run(main, workers=2, listen=["127.0.0.1:{port}"], drain_timeout=1, lame_duck=0))\n'
    )
    with in_background_of_a_terminal([sys.executable, str(path)]) as (parent, master):
        text = terminal_text(master, 3)
        assert text.count('a line of a worker') == 2 and text.count('is ready') == 2
        before = [sum(process.cpu_times()[:2]) for process in [parent, *parent.children()]]
        assert len(before) == 3 and terminal_text(master, 2) == ''
        after = [sum(process.cpu_times()[:2]) for process in [parent, *parent.children()]]
        assert all(late - early < 0.2 for early, late in zip(before, after, strict=True))
        parent.send_signal(signal.SIGTTOU)
        assert 'has drained' in terminal_text(master, 2)
        assert len(parent.children()) == 1


def test_two_signals_that_follow_each_other_remove_two_workers(tmp_path):
    with Served(tmp_path, run={'workers': 3}) as served:
        served.pids(3)
        served.send(signal.SIGTTOU)
        served.pids(2)
        served.send(signal.SIGTTOU)
        served.pids(1)
        served.send(signal.SIGTTIN)
        served.pids(2)


# -- closed descriptors


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
@pytest.mark.parametrize('closed', ['<&-', '>&-', '<&- >&- 2>&-'])
def test_standard_descriptors_that_are_closed_at_the_start_are_open_in_the_parent_and_the_workers(tmp_path, closed):
    port, path = free_port(), tmp_path / 'app.py'
    path.write_text(
        'import os, sys\n'
        'from reactor import serve\n'
        'def main(r, listeners):\n'
        '    r.listen_tcp(None, 0, lambda conn, data: conn.write(b"%d" % os.getpid()), sock=listeners[0])\n'
        f'sys.exit(serve.run(main, workers=1, listen=["127.0.0.1:{port}"], drain_timeout=1, lame_duck=0))\n'
    )
    parent = subprocess.Popen(
        ['sh', '-c', f'exec "$0" "$1" {closed}', sys.executable, str(path)], stdin=subprocess.DEVNULL, cwd=PROJECT
    )
    try:

        def worker():
            with suppress(ConnectionRefusedError), socket.create_connection((HERE, port), 20) as sock:
                sock.sendall(b'x')
                return int(sock.recv(100))

        pids = wait_until(worker), parent.pid
        for pid in pids:
            names = [os.readlink(f'/proc/{pid}/fd/{fd}') for fd in range(3)]
            assert not [name for name in names if 'anon_inode' in name or 'socket' in name], names
            assert names.count('/dev/null') >= closed.count('&')
    finally:
        parent.terminate()
        assert parent.wait(20) == 0


# -- the first process of a container

UNSHARE = ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child']


def can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, 'true'], capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


FIRST = pytest.mark.skipif(
    sys.platform != 'linux' or not can_unshare(), reason='NOT TESTED: a new PID namespace needs root and unshare'
)


@contextmanager
def first_process(path: Path, text: str):
    """Run a program as process 1; generate (the process, its output)."""
    path.write_text(text)
    with subprocess.Popen(
        [*UNSHARE, sys.executable, str(path)], stdout=subprocess.PIPE, cwd=PROJECT, text=True, bufsize=1
    ) as started:
        try:
            (program,) = wait_until(lambda: psutil.Process(started.pid).children())
            yield started, program
        finally:
            started.kill()


def is_zombie(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False  # it was reaped after it was listed


@FIRST
@pytest.mark.timeout(90)
def test_the_first_process_reaps_orphans_and_ends_on_sigterm(tmp_path):
    text = """
import os, subprocess, sys, time
from reactor import serve

def main(r, listeners):
    # Each shell leaves an orphan, which ends soon.
    for _ in range(20):
        subprocess.run(['sh', '-c', 'sleep 0.2 &'])
    r.call_later(60, int)  # without listeners, a worker would have nothing to do
    r.call_later(1, lambda: print('orphans have ended', flush=True))

kept = []

def on_start(r, workers):
    kept.append(subprocess.Popen(['sh', '-c', 'sleep 1; exit 7']))  # a child of the parent is no orphan
    r.call_later(3, lambda: print('exit code', kept[0].wait(), flush=True))

sys.exit(serve.run(main, workers=1, on_start=on_start, drain_timeout=1, lame_duck=0))
"""
    with first_process(tmp_path / 'app.py', text) as (started, program):
        assert started.stdout.readline() == 'orphans have ended\n'
        zombies = lambda: [p for p in program.children() if is_zombie(p)]  # noqa: E731
        assert len(zombies()) >= 20
        assert started.stdout.readline() == 'exit code 7\n'
        wait_until(lambda: not zombies())
        program.terminate()
        assert started.wait(20) == 0


@FIRST
def test_the_first_process_ends_on_sigterm_while_it_imports(tmp_path):
    text = """
import sys, time
from reactor import serve
print('importing', flush=True)
time.sleep(60)
sys.exit(serve.run(print))
"""
    with first_process(tmp_path / 'app.py', text) as (started, program):
        assert started.stdout.readline() == 'importing\n'
        program.terminate()
        assert started.wait(10) == 128 + signal.SIGTERM


def test_another_process_keeps_its_signal_handlers_when_the_package_is_imported():
    code = 'import signal; from reactor import serve; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=20, cwd=PROJECT)
    assert done.stdout == 'True\n'
