"""What a running program uses: wake-ups, CPU time, descriptors. Measured by the tests of recipes, on Linux."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil


def wakeups(pid: int, seconds: float) -> float:
    """Return how often a process wakes up in a second, measured for `seconds`."""

    def switches() -> int:
        return int(re.search(r'^voluntary_ctxt_switches:\s+(\d+)', Path(f'/proc/{pid}/status').read_text(), re.M)[1])

    before, begin = switches(), time.monotonic()
    time.sleep(seconds)
    return (switches() - before) / (time.monotonic() - begin)


def cpu(pid: int | None) -> float:
    """Return the seconds of CPU time that a process has used. None: this process."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def descriptors(pid: int | None) -> int:
    """Return the number of open descriptors of a process. None: this process."""
    return psutil.Process(pid).num_fds()
