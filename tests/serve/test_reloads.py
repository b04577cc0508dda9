"""A reload runs the new program: other releases behind a symbolic link, changed arguments, changed versions."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_serve import HERE, PROJECT, wait_until

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
