"""The signals of a terminal's job control, two of which the parent uses for its own purpose.

SIGTTIN adds a worker and SIGTTOU removes one. A terminal sends the same signals when a process in the background reads
from it, or writes to it after `stty tostop`. If the process has a handler, the kernel starts the call again after the
handler has returned, and sends the signal again, without end. If the signal is blocked, the kernel sends none, and the
call succeeds or fails. So the parent blocks both signals, except while it waits in its selector.
"""

from __future__ import annotations

import selectors
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

JOB_CONTROL = (signal.SIGTTIN, signal.SIGTTOU) if hasattr(signal, 'SIGTTIN') else ()


@contextmanager
def job_control_blocked() -> Iterator[None]:
    """Block both signals in this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_CONTROL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_job_control() -> None:
    """Ignore both signals. A worker inherits from its parent that they are blocked; undo that for its children."""
    for signum in JOB_CONTROL:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_CONTROL)


class ParentSelector(selectors.DefaultSelector):
    """The platform's selector, with both signals allowed while it waits."""

    def select(self, timeout: float | None = None) -> list[Any]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_CONTROL)
        try:
            return super().select(timeout)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, JOB_CONTROL)
