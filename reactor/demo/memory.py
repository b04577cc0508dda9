"""The memory of processes, PSS where the kernel reports it, otherwise RSS; and the memory of the kernel.

RSS counts a page in each process that uses it, so the sum over several processes is too high. PSS (proportional set
size, proc(5)) divides a shared page among the processes that share it, so the sum is what they use together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..observe import memory


def memory_kind() -> str:
    """Return what `total_memory` measures here: 'PSS' or 'RSS'."""
    return 'RSS' if proportional_memory(os.getpid()) is None else 'PSS'


def total_memory(pids: Iterable[int], kind: str) -> int:
    """Return the memory of the processes together, in bytes; `kind` is 'PSS' or 'RSS'. Ended processes count as 0."""
    measure = proportional_memory if kind == 'PSS' else memory
    return sum(measure(pid) or 0 for pid in pids)


def kernel_memory() -> int | None:
    """Return the bytes that the kernel uses for its own objects (slab), of all programs, or None if that is unknown."""
    return reported('/proc/meminfo', 'Slab')


def proportional_memory(pid: int) -> int | None:
    """Return the PSS of a process in bytes, or None if it is unknown. Linux reports it since version 4.14."""
    return reported(f'/proc/{pid}/smaps_rollup', 'Pss')


def reported(path: str, name: str) -> int | None:
    """Return a number of bytes that the kernel reports in kB after `name`, or None if it does not."""
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(f'{name}:'):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
