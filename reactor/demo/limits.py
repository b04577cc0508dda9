"""What this machine allows one process: descriptors, ports, addresses to connect from.

Owns the questions to the operating system. The rule: what cannot be asked on this platform is answered with a guess on
the safe side, and never fails.
"""

from __future__ import annotations

import sys
from math import ceil, sqrt

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SPARE_DESCRIPTORS = 64  # of a process: standard streams, selector, wakeup, listener, and some to be safe
WITHOUT_LIMIT = 500  # descriptors, where nobody says how many there may be (Windows' select holds 512)
MOST_PROCESSES = 16  # of a kind; each costs some ten megabytes
PORTS_PER_SOURCE = 20000  # of the 28,232 that Linux gives out by default, less those in use


def raise_descriptor_limit() -> int:
    """Raise the soft descriptor limit to the hard one; returns how many connections one process can then hold."""
    if resource is None:
        return WITHOUT_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, 65536, 10240):  # macOS names a hard limit that it does not grant
        if soft != hard and (wanted > soft or wanted < 0):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                continue
            break
    limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (limit if 0 < limit < 1 << 20 else 1 << 20) - SPARE_DESCRIPTORS


def processes_for(connections: int, per_process: int, share_port: bool) -> int:
    """How many processes hold so many connections, when the kernel spreads them by chance over `share_port` ones."""
    # Six standard deviations of the binomial spread: one server in a thousand million experiments gets too many.
    spread = 6 * sqrt(connections) if share_port and connections > per_process else 0
    return max(1, ceil((connections + spread) / per_process))


def most_connections(per_process: int, can_share_port: bool) -> int:
    """How many connections this machine can hold for the experiment."""
    servers = MOST_PROCESSES if can_share_port else 1
    most = servers * per_process - ceil(6 * sqrt(servers * per_process)) * (servers > 1)
    return most if has_many_sources() else min(most, PORTS_PER_SOURCE // 2)


def has_many_sources() -> bool:
    """Whether every address 127.x.y.z is this machine, not only 127.0.0.1."""
    return sys.platform in ('linux', 'win32')


def source_addresses(connections: int, first: int = 1) -> list[str]:
    """Enough addresses of this machine to connect from."""
    if not has_many_sources():
        return ['127.0.0.1']
    return [f'127.0.{first}.{n}' for n in range(1, 2 + connections // PORTS_PER_SOURCE)]
