"""What an experiment takes, and whether this machine has it: processes, memory, descriptors, time."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from .limits import loads_for, most_connections, servers_for
from .memory import reported

BIG = 100_000  # connections from which on an experiment is announced, and has to be confirmed
KERNEL_PER_PAIR = 10_500  # bytes of kernel memory for both ends of a connection over loopback
OURS_PER_PAIR = 1_700  # bytes of server and load together
PROCESS = 9_000_000  # bytes of a process before its first connection; pages that processes share are counted once
OPENED_PER_CORE = 2_500  # connections that a core can open in a second, at both ends
ANSWERED_PER_CORE = 5_000
START = 0.12  # seconds to start a process
MOST_MEMORY = 0.9  # the share of the available memory that an experiment may take


@dataclass(frozen=True)
class Plan:
    """An experiment: how many processes it starts, and what it takes.

    Attributes:
        ours: Bytes that the processes take at the peak.
        kernel: Bytes that the kernel takes for the connections.
        seconds: How long the experiment takes, about.
    """

    connections: int
    servers: int
    loads: int
    ours: int
    kernel: int
    seconds: float

    def describe(self) -> str:
        """Return what the experiment takes, in one sentence."""
        return (
            f'{self.connections:,} connections take {self.servers + self.loads} processes with '
            f"{self.ours / 1e9:.1f} GB, {self.kernel / 1e9:.1f} GB of the kernel's memory, and about "
            f'{duration(self.seconds)}'
        )


def plan(connections: int, rate: float, waits: float, per_process: int) -> Plan:
    """Return the plan of an experiment; `waits` are the seconds in which nothing is opened or answered."""
    servers, loads = servers_for(connections, per_process), loads_for(connections, per_process)
    cores = os.cpu_count() or 1
    opening = connections / min(rate, OPENED_PER_CORE * cores)
    answering = connections / (ANSWERED_PER_CORE * cores)
    return Plan(
        connections,
        servers,
        loads,
        ours=connections * OURS_PER_PAIR + (servers + loads) * PROCESS,
        kernel=connections * KERNEL_PER_PAIR,
        seconds=(servers + loads) * START + opening + waits + answering,
    )


def refusal(wanted: Plan, per_process: int, can_share_port: bool, own_network: bool) -> str | None:
    """Return why this machine cannot run an experiment, with the largest number that fits; None if it can."""
    most, why = most_connections(per_process, can_share_port), f'a process can open only {per_process:,} here'
    why += ' (see `ulimit -Hn`)'
    for limit, reason in machine_limits(wanted, own_network):
        if limit is not None and limit < most:
            most, why = limit, reason
    if wanted.connections <= most:
        return None
    return f'{wanted.connections:,} connections do not fit, because {why}; at most {most:,} do'


def machine_limits(wanted: Plan, own_network: bool) -> list[tuple[int | None, str]]:
    """Return (the most connections, why no more) for each limit of the whole machine that is known."""
    files = numbers('/proc/sys/fs/file-nr')
    watches = numbers('/proc/sys/fs/epoll/max_user_watches')
    found: list[tuple[int | None, str]] = [
        ((files[2] - files[0]) // 2 if len(files) == 3 else None, 'the kernel has no more open files (fs.file-max)'),
        (watches[0] // 2 if watches else None, 'epoll watches no more descriptors (fs.epoll.max_user_watches)'),
    ]
    if not own_network:
        most, used = (
            numbers('/proc/sys/net/netfilter/nf_conntrack_max'),
            numbers('/proc/sys/net/netfilter/nf_conntrack_count'),
        )
        tracked = most[0] - used[0] if most and used else None
        found.append((tracked, 'the kernel tracks no more connections (net.netfilter.nf_conntrack_max); run as root'))
    if wanted.connections > BIG:  # below this, the estimate is less exact than what is left
        memory = available_memory()
        if memory is not None:
            processes = (wanted.servers + wanted.loads) * PROCESS
            left = MOST_MEMORY * memory - processes
            most_in_memory = max(0, int(left / (KERNEL_PER_PAIR + OURS_PER_PAIR)))
            found.append((most_in_memory, f'only {memory / 1e9:.1f} GB of memory are available'))
    return found


def confirmed(wanted: Plan, yes: bool) -> bool:
    """Say what a big experiment takes, and return whether the user agrees."""
    print(wanted.describe(), file=sys.stderr)
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f'reactor.demo: more than {BIG:,} connections need --yes, or a terminal to ask on', file=sys.stderr)
        return False
    print('Start? [y/N] ', end='', file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ('y', 'yes')


def available_memory() -> int | None:
    """Return the bytes of memory that are available to this process, or None if that is unknown."""
    available = reported('/proc/meminfo', 'MemAvailable')
    found = [] if available is None else [available]
    limit, used = numbers('/sys/fs/cgroup/memory.max'), numbers('/sys/fs/cgroup/memory.current')
    if limit and used:
        found.append(limit[0] - used[0])
    return min(found, default=None)


def numbers(path: str) -> list[int]:
    """Return the numbers in a file, or an empty list if it cannot be read or has no numbers."""
    try:
        with open(path) as file:
            return [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return []


def duration(seconds: float) -> str:
    """Return seconds in words, such as '40 s' or '6 min'."""
    return f'{seconds:.0f} s' if seconds < 90 else f'{seconds / 60:.0f} min'
