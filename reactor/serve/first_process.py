"""What the parent does about its surroundings: closed standard descriptors, and being process 1 of a container.

The kernel treats process 1 differently. It drops signals without a handler, so SIGTERM does not end it. And it makes it
the parent of all processes whose own parent has died; when such an orphan ends, process 1 has to reap it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from .. import Process, Reactor

# Seconds between two looks for orphans. An orphan is reaped at the second look that finds it, because a child that the
# program itself has started, and waits for, may look the same.
LOOKS_EVERY = 5.0
ENDED_BY_SIGTERM = 128 + signal.SIGTERM  # the exit status that a shell reports


def end_on_sigterm() -> None:
    """In process 1, have SIGTERM end the program until `run` handles it; other processes do not need this."""
    if os.getpid() == 1 and threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _end)


def _end(signum: int, frame: Any) -> None:
    sys.exit(ENDED_BY_SIGTERM)


def open_standard_descriptors() -> None:
    """Open /dev/null for each standard descriptor that is closed.

    Otherwise the next file or socket would get its number, and the output of a worker would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
            os.set_inheritable(opened, True)


def reap_orphans(r: Reactor) -> None:
    """In process 1, reap orphans from a timer that does not keep the loop running."""
    if os.getpid() == 1:
        r.call_every(LOOKS_EVERY, _reap, r, set()).unref()


def _reap(r: Reactor, before: set[int]) -> None:
    found = _zombies() - {handle.pid for handle in r.handles() if isinstance(handle, Process)}
    for pid in found & before:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass  # reaped meanwhile
    before.clear()
    before.update(found)


def _zombies() -> set[int]:
    """Return the children of this process that have ended and have not been reaped."""
    found = set()
    for name in os.listdir('/proc') if os.path.isdir('/proc') else ():
        if name.isdecimal():
            try:
                with open(f'/proc/{name}/stat', 'rb') as file:
                    # The name of the program, in parentheses, can contain anything.
                    state, parent = file.read().rpartition(b')')[2].split()[:2]
            except OSError:
                continue  # it has ended
            if state == b'Z' and int(parent) == os.getpid():
                found.add(int(name))
    return found
