"""A test marked `alone` waits for running tests to end, and no other test begins before the marked test has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from select import select

import pytest

from tests.helpers.machine import HELD, machine

fcntl = pytest.importorskip(
    'fcntl', reason='this platform has no file locks: tests marked alone may run at the same time as others'
)

USER = """
import sys
from pathlib import Path
from tests.helpers.machine import machine

with machine(sys.argv[1] == 'alone', Path(sys.argv[2])):
    print('in', flush=True)
    sys.stdin.readline()
"""


class User:
    """A process that holds the lock on the machine until `end` is called."""

    def __init__(self, how: str, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', USER, how, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def begins(self, seconds: float) -> bool:
        """Return whether the process gets the lock within `seconds`."""
        return bool(select([self.process.stdout], [], [], seconds)[0]) and self.process.stdout.readline() == b'in\n'

    def end(self) -> None:
        self.process.communicate(b'\n', timeout=30)


@pytest.fixture
def folder(tmp_path):
    for name in 'pyproject.toml', 'setup.cfg':
        (tmp_path / name).touch()
    return tmp_path


def queued(folder):
    """Return whether a process holds the lock on the queue because it is waiting for the machine."""
    with (folder / 'pyproject.toml').open() as queue:
        try:
            fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_test_marked_alone_waits_for_earlier_tests_and_later_tests_wait_for_it(folder):
    users = [User('shared', folder), User('shared', folder)]
    try:
        assert users[0].begins(30) and users[1].begins(30)
        users.append(User('alone', folder))
        while not queued(folder):
            pass
        users.append(User('shared', folder))
        users[0].end()
        assert not users[2].begins(0.1) and not users[3].begins(0.1)
        users[1].end()
        assert users[2].begins(30)
        assert not users[3].begins(0.5)
        users[2].end()
        assert users[3].begins(30)
    finally:
        for user in users:
            if user.process.returncode is None:
                user.end()


def test_a_program_started_by_a_test_shares_the_lock_of_the_test(folder):
    # Otherwise the program would wait for the test marked `alone`, which waits for the test that started the program.
    users = []
    try:
        with machine(False, folder):
            users.append(User('alone', folder, {HELD: ''}))
            while not queued(folder):
                pass
            users.append(User('shared', folder))
            assert users[1].begins(30)
            users[1].end()
            assert not users[0].begins(0.1)
        assert users[0].begins(30)
    finally:
        for user in users:
            if user.process.returncode is None:
                user.end()


def test_a_failure_releases_the_machine(folder):
    with pytest.raises(ZeroDivisionError), machine(True, folder):
        raise ZeroDivisionError
    with machine(True, folder):
        pass
