"""Limits of this machine: descriptors, ports, and addresses to connect from.

If the platform does not report a limit, the functions return a safe guess.
"""

from __future__ import annotations

import errno
import sys
from math import ceil, sqrt

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

SPARE_DESCRIPTORS = 64  # kept for the standard streams, the selector, the wakeup socket and the listener, with a margin
WITHOUT_LIMIT = 500  # descriptors to assume if the limit is unknown (select on Windows handles 512)
MOST_PROCESSES = 16  # servers, and the same number of loads; each process costs about ten megabytes
PORTS_PER_SOURCE = 20000  # Linux has 28,232 by default, but some may be in use


def raise_descriptor_limit() -> int:
    """Raise the soft descriptor limit to the hard limit. Return how many connections a process can then hold.

    Raises:
        OSError: The limit leaves no descriptor for a connection.
    """
    if resource is None:
        return WITHOUT_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, 65536, 10240):  # macOS reports a hard limit, but refuses to set it
        if soft != hard and (wanted > soft or wanted < 0):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                continue
            break
    limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit <= SPARE_DESCRIPTORS:
        raise OSError(
            errno.EMFILE,
            f'a process can open only {limit} descriptors here, and the demo needs more than {SPARE_DESCRIPTORS}; '
            'raise the limit in a new shell, or with `ulimit -Hn 4096` as root',
        )
    return (limit if 0 < limit < 1 << 20 else 1 << 20) - SPARE_DESCRIPTORS


def processes_for(connections: int, per_process: int, share_port: bool) -> int:
    """Return the number of processes needed. With `share_port`, allow for an uneven distribution by the kernel."""
    # The margin is six standard deviations of the binomial distribution: a server gets too many connections only about
    # once in 10**9 experiments.
    spread = 6 * sqrt(connections) if share_port and connections > per_process else 0
    return max(1, ceil((connections + spread) / per_process))


def most_connections(per_process: int, can_share_port: bool) -> int:
    """Return the number of connections that the experiment can open on this machine."""
    servers = MOST_PROCESSES if can_share_port else 1
    most = max(per_process, servers * per_process - ceil(6 * sqrt(servers * per_process)))
    return most if has_many_sources() else min(most, PORTS_PER_SOURCE // 2)


def has_many_sources() -> bool:
    """Return whether all addresses 127.x.y.z are local, not only 127.0.0.1."""
    return sys.platform in ('linux', 'win32')


def source_addresses(connections: int, first: int = 1) -> list[str]:
    """Return enough local addresses to connect from."""
    if not has_many_sources():
        return ['127.0.0.1']
    return [f'127.0.{first}.{n}' for n in range(1, 2 + connections // PORTS_PER_SOURCE)]
