"""A reload runs the new program: other releases behind a symbolic link, changed arguments, changed versions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_serve import HERE, PROJECT, is_gone, wait_until

# A program whose workers answer each line with the name of their release and their process id.
APP = """
import logging, os, signal, sys, time
from reactor import framing, serve
logging.basicConfig(level='INFO', format='%(levelname)s %(message)s')

def on_line(conn, line):
    if line.startswith(b'wait '):
        conn.busy = True
        conn.loop.call_later(float(line[5:]), answer, conn)
    else:
        answer(conn)

def answer(conn):
    conn.write(b'RELEASE %d\\n' % os.getpid())
    conn.busy = False

def main(r, listeners):
    r.listen_tcp(None, 0, framing.lines(on_line), sock=listeners[0])

def on_start(r, workers):
    print(workers.addresses[0][1], flush=True)

if __name__ == '__main__':
    arguments = dict(workers=1, listen=['127.0.0.1:0'], drain_timeout=5, lame_duck=0)
    sys.exit(serve.run(main, on_start=on_start, **arguments))
"""


class Deployed:
    """A running program: its parent, its log, and the port that its workers serve."""

    def __init__(self, folder: Path, argv: list[str], **options: Any) -> None:
        self.errors = folder / 'errors'
        environment = {**os.environ, 'PYTHONPATH': str(PROJECT), **options.pop('env', {})}
        with self.errors.open('wb') as errors:
            self.parent = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0, env=environment, **options
            )
        line = self.parent.stdout.readline()
        assert line, self.log
        self.port = int(line)

    @property
    def log(self) -> str:
        return self.errors.read_text()

    def ask(self) -> tuple[str, int]:
        """Return the release and the process id of the worker that answers."""
        with self.connect() as sock:
            return self.answer(sock)

    def connect(self) -> socket.socket:
        return socket.create_connection((HERE, self.port), timeout=20)

    @staticmethod
    def answer(sock: socket.socket, question: str = 'x') -> tuple[str, int]:
        sock.sendall(question.encode() + b'\n')
        with sock.makefile() as file:
            release, pid = file.readline().split()
        return release, int(pid)

    def reload(self) -> None:
        self.parent.send_signal(signal.SIGHUP)

    def kill_worker(self) -> tuple[str, int]:
        """Kill the worker, and return what its successor answers."""
        os.kill(self.ask()[1], signal.SIGKILL)
        return self.ask()


@contextmanager
def deployed(folder: Path, argv: list[str], **options: Any) -> Iterator[Deployed]:
    program = Deployed(folder, argv, **options)
    try:
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.parent.pid, signal.SIGKILL)
        program.parent.communicate()


def release(folder: Path, name: str, app: str = APP) -> Path:
    path = folder / 'releases' / name
    path.mkdir(parents=True)
    (path / 'app.py').write_text(app.replace('RELEASE', name))
    return path


def switch(folder: Path, to: Path) -> Path:
    """Point the link `current` to another release, in one step."""
    new, current = folder / 'new', folder / 'current'
    new.symlink_to(to)
    new.rename(current)
    return current


# -- releases behind a symbolic link


@pytest.mark.parametrize('start', ['in the link', 'by an absolute path', 'as a module'])
def test_after_the_old_release_is_removed_workers_restart_and_a_reload_runs_the_new_one(tmp_path, start):
    one, two = release(tmp_path, 'one'), release(tmp_path, 'two')
    current = switch(tmp_path, one)
    argv, options = [sys.executable, 'app.py'], {'cwd': current, 'env': {'PWD': str(current)}}
    if start == 'by an absolute path':  # with a directory that is not the link, as a service manager may have it
        argv, options = [sys.executable, str(current / 'app.py')], {'cwd': one, 'env': {'PWD': str(one)}}
    elif start == 'as a module':
        argv = [sys.executable, '-m', 'app']
    with deployed(tmp_path, argv, **options) as program:
        assert program.ask()[0] == 'one'
        switch(tmp_path, two)
        program.reload()
        wait_until(lambda: program.ask()[0] == 'two')
        shutil.rmtree(one)
        before = program.ask()
        after = program.kill_worker()
        assert after[0] == 'two' and after[1] != before[1]
        program.reload()
        wait_until(lambda: program.ask()[1] != after[1])
        assert program.parent.poll() is None


def test_if_pwd_names_another_directory_it_is_not_used(tmp_path):
    one = release(tmp_path, 'one')
    release(tmp_path, 'two')
    with deployed(
        tmp_path, [sys.executable, 'app.py'], cwd=one, env={'PWD': str(tmp_path / 'releases' / 'two')}
    ) as program:
        assert program.kill_worker()[0] == 'one'


def test_an_interpreter_with_a_relative_path_is_looked_up_through_the_link(tmp_path):
    one, two = release(tmp_path, 'one'), release(tmp_path, 'two')
    for path in one, two:
        (path / 'python').symlink_to(sys.executable)
    current = switch(tmp_path, one)
    with deployed(tmp_path, ['./python', 'app.py'], cwd=current, env={'PWD': str(current)}) as program:
        switch(tmp_path, two)
        shutil.rmtree(one)
        program.reload()
        wait_until(lambda: program.ask()[0] == 'two')


def test_a_directory_that_is_gone_is_logged_with_what_to_do(tmp_path):
    app = release(tmp_path, 'one') / 'app.py'
    gone = tmp_path / 'gone'
    gone.mkdir()
    with deployed(tmp_path, [sys.executable, str(app)], cwd=gone, env={'PWD': str(gone)}) as program:
        gone.rmdir()
        assert program.kill_worker()[0] == 'one'
        assert f'WARNING the directory {gone}, in which this program was started, has been removed' in program.log


# -- changed programs


ARGUMENTS = "workers=1, listen=['127.0.0.1:0'], drain_timeout=5, lame_duck=0"


def changed(folder: Path, arguments: str, before: str = '') -> None:
    """Change the program: `arguments` of `run`, and code that is run before `run`."""
    text = APP.replace(ARGUMENTS, arguments).replace(
        "if __name__ == '__main__':", before + "\nif __name__ == '__main__':"
    )
    assert text != APP
    new = folder / 'new.py'
    new.write_text(text.replace('RELEASE', 'two'))
    new.rename(folder / 'releases' / 'one' / 'app.py')


@contextmanager
def running(folder: Path, arguments: str = ARGUMENTS, **options: Any) -> Iterator[Deployed]:
    path = release(folder, 'one', APP.replace(ARGUMENTS, arguments))
    with deployed(folder, [sys.executable, 'app.py'], cwd=path, **options) as program:
        assert program.ask()[0] == 'one'  # so a change of the file comes after the start of the first worker
        yield program


def test_a_second_reload_does_not_wait_for_a_long_drain_of_the_first(tmp_path):
    arguments = ARGUMENTS.replace('drain_timeout=5', 'drain_timeout=3600')
    with running(tmp_path, arguments) as program, program.connect() as busy:
        first = program.answer(busy)[1]
        busy.sendall(b'wait 60\n')
        time.sleep(0.2)  # the test cannot see when the worker has read the line
        program.reload()
        wait_until(lambda: program.ask()[1] != first)
        second = program.ask()[1]
        begun = time.monotonic()
        program.reload()
        wait_until(lambda: f'a reload waits for worker 0 (pid {first})' in program.log)
        assert 'it gets 5 s more instead of' in program.log
        time.sleep(2)
        assert not is_gone(first)  # its clients have a little time
        wait_until(lambda: program.ask()[1] != second)
        assert 4 < time.monotonic() - begun < 12
        with pytest.raises(ConnectionResetError):
            busy.recv(1)
        program.parent.terminate()
        assert program.parent.wait(20) == 0


def test_a_reload_that_does_not_wait_long_shortens_no_drain(tmp_path):
    with running(tmp_path) as program, program.connect() as busy:
        first = program.answer(busy)[1]
        busy.sendall(b'wait 3\n')
        time.sleep(0.2)  # the test cannot see when the worker has read the line
        program.reload()
        wait_until(lambda: program.ask()[1] != first)
        program.reload()
        wait_until(lambda: 'a reload waits for' in program.log)
        with busy.makefile() as file:
            assert file.readline() == f'one {first}\n'


def test_a_reload_during_a_reload_is_logged(tmp_path):
    with running(tmp_path) as program:
        changed(tmp_path, ARGUMENTS, 'time.sleep(1)')
        program.reload()
        time.sleep(0.5)
        program.reload()
        wait_until(lambda: 'INFO a reload is under way; another one follows it' in program.log)
        wait_until(lambda: program.log.count('because its successor is ready') == 2)


def test_arguments_that_a_reload_cannot_change_are_logged_once_each_reload(tmp_path):
    with running(tmp_path, ARGUMENTS.replace('workers=1', 'workers=2')) as program:
        wait_until(lambda: program.log.count('is ready after') == 2)
        changed(tmp_path, "workers=3, listen=['127.0.0.1:0', 'unix:@x'], backlog=7")
        for count in 1, 2:
            program.reload()
            wait_until(lambda: program.log.count('because its successor is ready') == 2 * count)  # noqa: B023
            lines = [line for line in program.log.splitlines() if line.startswith('WARNING')]
            assert len(lines) == count
            for change in (
                'workers=3 instead of 2',
                "listen=['127.0.0.1:0', 'unix:@x'] instead of ['127.0.0.1:0']",
                f'backlog=7 instead of {socket.SOMAXCONN}',
            ):
                assert change in lines[-1]
            assert lines[-1].endswith('restart the program; a reload is not enough')
        assert program.ask()[0] == 'two'


def test_the_drain_timeout_of_the_new_program_is_applied(tmp_path):
    with running(tmp_path, ARGUMENTS.replace('drain_timeout=5', 'drain_timeout=0.5')) as program:
        changed(tmp_path, ARGUMENTS.replace('drain_timeout=5', 'drain_timeout=10'))
        program.reload()
        wait_until(lambda: program.ask()[0] == 'two')
        with program.connect() as busy:
            worker = program.answer(busy)[1]
            busy.sendall(b'wait 4\n')
            time.sleep(0.2)  # the test cannot see when the worker has read the line
            program.parent.terminate()
            with busy.makefile() as file:
                assert file.readline() == f'two {worker}\n'
        assert program.parent.wait(20) == 0
        assert 'WARNING' not in program.log


@pytest.mark.parametrize(('old', 'new'), [('None', '2'), ('2', 'None')])
def test_the_hang_timeout_of_the_new_program_is_applied(tmp_path, old, new):
    with running(tmp_path, f'{ARGUMENTS}, hang_timeout={old}') as program:
        changed(tmp_path, f'{ARGUMENTS}, hang_timeout={new}')
        program.reload()
        wait_until(lambda: program.ask()[0] == 'two')
        worker = program.ask()[1]
        os.kill(worker, signal.SIGSTOP)
        if new == 'None':
            time.sleep(5)
            assert 'has not reported' not in program.log
            os.kill(worker, signal.SIGCONT)
        else:
            assert program.ask()[1] != worker


def test_a_program_with_an_error_replaces_no_worker_and_the_log_and_systemd_say_so(tmp_path, manager):
    path, messages = manager
    with running(tmp_path, ARGUMENTS.replace('workers=1', 'workers=2'), env={'NOTIFY_SOCKET': path}) as program:
        assert messages.recv(4096) == b'READY=1'  # both workers have started
        pids = {program.ask()[1] for _ in range(40)}
        assert len(pids) == 2
        changed(tmp_path, ARGUMENTS, 'a line with an error')
        program.reload()
        assert messages.recv(4096).startswith(b'RELOADING=1')
        failed = 'the last reload failed: 2 of 2 workers were not replaced'
        assert messages.recv(4096) == f'READY=1\nSTATUS={failed}'.encode()
        assert f'WARNING {failed}; correct the program and send SIGHUP again' in program.log
        assert 'SyntaxError' in program.log and {program.ask()[1] for _ in range(40)} == pids
        changed(tmp_path, ARGUMENTS.replace('workers=1', 'workers=2'), 'pass')
        program.reload()
        assert messages.recv(4096).startswith(b'RELOADING=1')
        assert messages.recv(4096) == b'READY=1\nSTATUS=the last reload succeeded'
        assert not pids & {program.ask()[1] for _ in range(40)}


@pytest.fixture
def manager(tmp_path, sockets):
    """The path and the socket of a service manager."""
    path = str(tmp_path / 'notify')
    sock = sockets.track(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(path)
    sock.settimeout(20)
    return path, sock


# -- changed versions


OTHER_VERSION = """
import reactor.serve.worker as worker
worker.Worker.greet = lambda self, terms: self.control.write(b'["hello", 99]\\n[{}, false]\\n')
"""


@pytest.mark.parametrize(
    ('before', 'said'),
    [
        (OTHER_VERSION, 'uses version 99 of the messages between worker and parent, and this parent version 1'),
        (
            'import reactor.serve.worker as worker; worker.VERSION = 99',
            'the parent of this worker uses version 1 of the messages between them, and this program version 99',
        ),
    ],
    ids=['seen by the parent', 'seen by the worker'],
)
def test_a_worker_with_other_messages_replaces_no_worker_and_the_log_says_what_to_do(tmp_path, before, said):
    with running(tmp_path) as program:
        old = program.ask()
        changed(tmp_path, ARGUMENTS, before)
        program.reload()
        wait_until(lambda: 'the last reload failed: 1 of 1 workers were not replaced' in program.log)
        assert f'{said}: restart the program; a reload is not enough' in program.log
        assert program.ask() == old


# The parent loses the processor before it kills a worker.
SLOW_TO_KILL = """
from reactor import Process
kill = Process.kill
Process.kill = lambda process: (time.sleep(0.5), kill(process))
"""


def test_a_worker_that_the_parent_refuses_does_not_take_itself_for_an_orphan_before_it_is_killed(tmp_path):
    """A worker without a parent has the kernel open no more connections on its sockets: here, the old worker's."""
    path = release(tmp_path, 'one', SLOW_TO_KILL + APP)
    with deployed(tmp_path, [sys.executable, 'app.py'], cwd=path) as program:
        old = program.ask()
        changed(tmp_path, ARGUMENTS, OTHER_VERSION)
        program.reload()
        wait_until(lambda: 'the last reload failed: 1 of 1 workers were not replaced' in program.log)
        assert program.ask() == old


def test_another_version_of_python_serves_and_the_log_advises_a_restart(tmp_path):
    with running(tmp_path) as program:
        changed(tmp_path, ARGUMENTS, 'sys.version_info = (3, 99, 1)')
        program.reload()
        wait_until(lambda: program.ask()[0] == 'two')
        version = '.'.join(map(str, sys.version_info[:3]))
        assert f'has Python 3.99.1 instead of {version}: restart the program; a reload is not enough' in program.log


def other_interpreters() -> list[str]:
    """Return interpreters of another version that this package supports, the system's first."""
    found = []
    for path in ['/usr/bin/python3', *map(str, Path.home().glob('.pyenv/versions/*/bin/python'))]:
        with suppress(OSError):
            code = 'import ssl, sys; print(*sys.version_info[:3])'
            done = subprocess.run([path, '-c', code], capture_output=True, text=True, timeout=20)
            version = tuple(map(int, done.stdout.split()))
            if version >= (3, 11) and version != sys.version_info[:3]:
                found.append(path)
    return found


def test_an_interpreter_that_was_replaced_serves_after_a_reload(tmp_path):
    others = other_interpreters()
    if not others:
        pytest.skip('NOT TESTED: no second version of Python is installed')
    python = tmp_path / 'python'
    python.symlink_to(sys.executable)
    app = release(tmp_path, 'one') / 'app.py'
    with deployed(tmp_path, [str(python), str(app)]) as program:
        old = program.ask()[1]
        switched = tmp_path / 'switched'
        switched.symlink_to(others[0])
        switched.rename(python)
        program.reload()
        wait_until(lambda: program.ask()[1] != old)
        assert ': restart the program; a reload is not enough' in program.log and ' has Python ' in program.log
        python.unlink()  # without an interpreter, the workers that serve are kept
        program.reload()
        wait_until(lambda: 'the last reload failed: 1 of 1 workers were not replaced' in program.log)
        assert f"cannot start worker 0: [Errno 2] No such file or directory: '{python}'" in program.log
        assert program.ask()[1] != old


# -- the log


def test_each_step_of_a_worker_is_logged_once_with_its_slot_and_process_id(tmp_path):
    with running(tmp_path) as program:
        first = program.ask()[1]
        program.reload()
        wait_until(lambda: 'has drained' in program.log)
        second = program.ask()[1]
        program.parent.terminate()
        assert program.parent.wait(20) == 0
        log = re.sub(r'\d\.\d s', 'N s', program.log)
        one, two = (f'INFO worker 0 (pid {pid})' for pid in (first, second))
        assert log.splitlines() == [
            f'{one} is ready after N s',
            f'{two} is ready after N s',
            f'{one} drains, because its successor is ready',
            f'{one} has drained in N s',
            f'{two} drains, and is not replaced',
            f'{two} has drained in N s',
        ]


def test_the_end_of_a_worker_that_dies_while_it_drains_is_logged_as_a_warning(tmp_path):
    with running(tmp_path) as program, program.connect() as busy:
        first = program.answer(busy)[1]
        busy.sendall(b'wait 4\n')
        program.reload()
        wait_until(lambda: program.ask()[1] != first)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: f'WARNING worker 0 (pid {first}) ended' in program.log)
        assert 'after the beginning of its drain (signal 9)' in program.log


def test_a_worker_that_was_killed_after_a_reload_does_not_change_the_exit_status(tmp_path):
    arguments = ARGUMENTS.replace('drain_timeout=5', 'drain_timeout=0.5')
    with running(tmp_path, arguments) as program, program.connect() as conn:
        first = program.answer(conn)[1]
        program.reload()
        wait_until(lambda: 'because its successor is ready' in program.log)
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: f'worker 0 (pid {first}) has not ended after 2.5 s: killing it' in program.log)
        wait_until(lambda: is_gone(first))
        program.parent.terminate()
        assert program.parent.wait(20) == 0
