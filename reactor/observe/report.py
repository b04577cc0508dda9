"""A page for bug reports: Python, the operating system and its limits.

Values that are not available are left out; nothing here may fail. The page contains nothing private: no environment
variables, and no names of hosts, users or files.
"""

from __future__ import annotations

import os
import platform
import selectors
import socket
import sys
from importlib import metadata

from .. import __version__
from ..kernel import platforms
from .tables import pairs, printable

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

# Linux settings that limit how many connections can be open, and how fast they can be opened.
SYSCTLS = (
    'fs/file-max',
    'fs/nr_open',
    'fs/epoll/max_user_watches',
    'net/core/somaxconn',
    'net/core/netdev_max_backlog',
    'net/core/rmem_max',
    'net/core/wmem_max',
    'net/ipv4/ip_local_port_range',
    'net/ipv4/tcp_max_syn_backlog',
    'net/ipv4/tcp_syncookies',
    'net/ipv4/tcp_abort_on_overflow',
    'net/ipv4/tcp_fin_timeout',
    'net/ipv4/tcp_tw_reuse',
    'net/ipv4/tcp_max_tw_buckets',
    'net/ipv4/tcp_keepalive_time',
    'net/ipv4/tcp_mem',
    'net/ipv4/tcp_rmem',
    'net/ipv4/tcp_wmem',
    'net/ipv4/tcp_congestion_control',
    'net/netfilter/nf_conntrack_max',
    'kernel/yama/ptrace_scope',
)
SELECTORS = 'EpollSelector', 'KqueueSelector', 'DevpollSelector', 'PollSelector', 'SelectSelector'
LIBRARIES = 'prometheus_client', 'watchdog', 'py-spy'


def report() -> list[str]:
    """Return the lines of the page."""
    return [
        f'reactor {__version__}',
        '',
        *pairs(_python()),
        '',
        *pairs(_limits()),
        '',
        *pairs(_features()),
    ]


def _python() -> list[tuple[str, str]]:
    return [
        ('Python', f'{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}'),
        ('built with', ', '.join(_ssl())),
        ('platform', platform.platform()),
        ('processors', f'{os.cpu_count()}, {_usable_processors()} for this process'),
        ('memory', _memory()),
        *((name, _version(name)) for name in LIBRARIES),
    ]


def _limits() -> list[tuple[str, str]]:
    rows = []
    if resource is not None:
        for name in 'RLIMIT_NOFILE', 'RLIMIT_AS':
            soft, hard = resource.getrlimit(getattr(resource, name))
            rows.append((name, f'{_limit(soft)} of {_limit(hard)}'))
    rows.append(('SOMAXCONN', str(socket.SOMAXCONN)))
    rows += [(name, value) for name in SYSCTLS if (value := _read(f'/proc/sys/{name}'))]
    return rows


def _features() -> list[tuple[str, str]]:
    chosen = selectors.DefaultSelector.__name__
    there = {
        'IPv6': socket.has_ipv6,
        'Unix sockets': platforms.AF_UNIX >= 0,
        'abstract Unix sockets': platforms.ABSTRACT_PATHS,
        'SO_REUSEPORT': platforms.SO_REUSEPORT >= 0,
        'TCP_DEFER_ACCEPT': platforms.TCP_DEFER_ACCEPT >= 0,
        'TCP_NODELAY inherited': platforms.NODELAY_INHERITED,
        'sendmsg': platforms.HAS_SENDMSG,
        'sendfile': platforms.HAS_SENDFILE,
        'pidfd_open': _has_pidfd(),
    }
    has = [name for name in SELECTORS if hasattr(selectors, name)]
    return [
        ('selector', f'{chosen}; available: {", ".join(has)}'),
        *((name, 'yes' if value else 'no') for name, value in there.items()),
    ]


def _ssl() -> list[str]:
    try:
        import ssl
    except ImportError:
        return ['no ssl']
    jit = getattr(sys, '_is_gil_enabled', None)
    return [ssl.OPENSSL_VERSION, *(['without the GIL'] if jit is not None and not jit() else [])]


def _usable_processors() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _memory() -> str:
    try:
        there = f'{os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20:,} MiB'
    except (AttributeError, ValueError, OSError):
        return 'unknown'
    limit = _read('/sys/fs/cgroup/memory.max')
    return f'{there}, {int(limit) >> 20:,} MiB for this control group' if limit.isdecimal() else there


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return 'not installed'


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False  # this is not Linux, or an old kernel, or a sandbox that forbids the call
    return True


def _limit(value: int) -> str:
    assert resource is not None
    return 'unlimited' if value == resource.RLIM_INFINITY else f'{value:,}'


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return printable(' '.join(file.read().split()))
    except OSError:
        return ''
