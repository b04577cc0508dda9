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
MOST_PROCESSES = 64  # servers, and the same number of loads; each process costs about ten megabytes
DESCRIPTORS_OF_A_PAIR = 4  # that the experiment itself needs for a server and a load
PORT_RANGE = '/proc/sys/net/ipv4/ip_local_port_range'
PORTS = 28_232  # the default of Linux
DEVIATIONS = 6  # a server gets so many standard deviations more than its share once in 10**9 experiments


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


def most_of_a_server(share: float) -> float:
    """Return how many connections the kernel may give a server whose share is this, when servers share a port.

    The kernel assigns each connection at random, so the number has a binomial distribution.
    """
    return share + DEVIATIONS * sqrt(share)


def loads_for(connections: int, per_process: int) -> int:
    """Return the number of load processes needed."""
    return max(1, ceil(connections / per_process))


def servers_for(connections: int, per_process: int) -> int:
    """Return the number of server processes needed; several share a port."""
    if connections <= per_process:
        return 1
    count = ceil(connections / per_process)
    while most_of_a_server(connections / count) > per_process:
        count += 1
    return count


def most_connections(per_process: int, can_share_port: bool) -> int:
    """Return the number of connections that the descriptors and the ports of this machine allow."""
    # The largest share whose deviations leave it within `per_process`.
    share = (sqrt(per_process + DEVIATIONS**2 / 4) - DEVIATIONS / 2) ** 2
    processes = min(MOST_PROCESSES, (per_process + SPARE_DESCRIPTORS // 2) // DESCRIPTORS_OF_A_PAIR)
    most = max(per_process, int(processes * share)) if can_share_port else per_process
    return most if has_many_sources() else min(most, ports_per_source())


def has_many_sources() -> bool:
    """Return whether all addresses 127.x.y.z are local, not only 127.0.0.1."""
    return sys.platform in ('linux', 'win32')


def ports_per_source() -> int:
    """Return how many connections to open from one address to one server: half of the ports.

    The kernel looks for a free port from a random one on. While less than half are taken, it finds one at once; when
    most are, the search takes more than half a millisecond.
    """
    try:
        with open(PORT_RANGE) as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        return PORTS // 2
    return max(1, (last - first + 1) // 2)


def source_addresses(connections: int, first: int = 1) -> list[str]:
    """Return enough local addresses to connect from."""
    if not has_many_sources():
        return ['127.0.0.1']
    return [f'127.0.{first}.{n}' for n in range(1, 2 + (connections - 1) // ports_per_source())]
