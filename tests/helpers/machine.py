"""Locks for the machine: tests share it, and a test marked `alone` has it to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HELD = 'REACTOR_TESTS_MACHINE'  # environment variable for child processes of a test: the folder whose lock it holds
CHECKOUT = Path(__file__).resolve().parents[2]


@contextmanager
def machine(alone: bool, folder: Path = CHECKOUT) -> Iterator[None]:
    """Share the machine with the other tests of this checkout, or have it to itself, across all processes.

    The locks are on two files of the checkout, which are never written. The first lock is the queue: a test that wants
    to be alone holds it until the tests before it have ended, so no later test begins. A pytest that is started by a
    test takes no lock: it could wait in the queue for a test that is itself waiting for its parent.
    """
    if fcntl is None or os.environ.get(HELD) == str(folder):
        yield
        return
    with open(folder / 'pyproject.toml') as queue, open(folder / 'setup.cfg') as taken:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(taken, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        before = os.environ.get(HELD, '')
        os.environ[HELD] = str(folder)
        try:
            yield
        finally:
            os.environ[HELD] = before
            fcntl.flock(taken, fcntl.LOCK_UN)  # a forked child may have the file open, so closing does not unlock it
