"""Who uses the machine: tests share it, and a test that is marked `alone` has it to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKOUT = Path(__file__).resolve().parent.parent


@contextmanager
def machine(alone: bool, folder: Path = CHECKOUT) -> Iterator[None]:
    """Share the machine with the other tests of this checkout, or have it alone, whatever processes run them.

    Both files are locked and never written. The first is the queue: a test that wants to be alone keeps its place there
    until the tests before it have ended, and so no later test begins.
    """
    if fcntl is None:
        yield
        return
    with open(folder / 'pyproject.toml') as queue, open(folder / 'setup.cfg') as taken:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(taken, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(taken, fcntl.LOCK_UN)  # a forked child may have it open, so closing does not unlock it
