"""What a worker does when its loop cannot: end after the death of the parent, and write its stacks to the log.

A worker drains when its parent dies, because its control connection ends. A worker whose loop is blocked does not see
that, and would keep the port for good. So each worker has a thread that waits for the same event. The thread sleeps
until then.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import threading
import time

from ..loop.log import log

STDERR = 2
LOG_TIME = 1.0  # seconds to write the stacks of a worker that has lost its parent


def write_stacks_on_sigquit() -> None:
    """Write the stacks of all threads to standard error on SIGQUIT, even if the loop is blocked.

    A program that has its own handler for the signal keeps it. A signal that is only ignored, as in a job that a script
    has started in the background, is not.
    """
    if not callable(signal.getsignal(signal.SIGQUIT)):
        faulthandler.register(signal.SIGQUIT, file=STDERR)


def end_after_parent(control: int, name: str, seconds: float) -> None:
    """Start a thread that ends this process with exit code 1, `seconds` after the end of the parent.

    Args:
        control: The descriptor of the connection to the parent, which ends when the parent dies.
        name: What the log calls this process.
        seconds: The time that a drain takes at most.
    """
    threading.Thread(target=_wait, args=(control, name, seconds), name='reactor-parent', daemon=True).start()


def _wait(control: int, name: str, seconds: float) -> None:
    poll = select.poll()
    poll.register(control, 0)  # reports only a hang-up, so messages from the parent do not wake this thread
    poll.poll()
    time.sleep(seconds)
    # The loop may be blocked because standard error is full, and then the log is blocked too.
    last = threading.Timer(LOG_TIME, os._exit, (1,))
    last.daemon = True
    last.start()
    log('error', '%s has not ended %g s after the end of its parent: it ends now, in these calls:', name, seconds)
    try:
        faulthandler.dump_traceback(STDERR)
    finally:
        os._exit(1)
