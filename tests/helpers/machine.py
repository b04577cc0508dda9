"""Who uses the machine: tests share it, and a test that is marked `alone` has it to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HELD = 'REACTOR_TESTS_MACHINE'  # in the environment of what a test starts: the folder in which the test has its place
CHECKOUT = Path(__file__).resolve().parents[2]


@contextmanager
def machine(alone: bool, folder: Path = CHECKOUT) -> Iterator[None]:
    """Share the machine with the other tests of this checkout, or have it alone, whatever processes run them.

    Both files are locked and never written. The first is the queue: a test that wants to be alone keeps its place there
    until the tests before it have ended, and so no later test begins. A pytest that a test starts has its parent's
    place: in the queue it would wait for a test that waits for its parent.
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
            fcntl.flock(taken, fcntl.LOCK_UN)  # a forked child may have it open, so closing does not unlock it
