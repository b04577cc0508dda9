"""The options of simulated sockets: which exist, which values they have at first, and which values are accepted.

The rules are those of Linux. Most options have no effect in simulation: their value is stored, and can be read again.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..kernel.platforms import AF_UNIX, RESET_ON_CLOSE, SO_MEMINFO, SO_REUSEPORT, TCP_DEFER_ACCEPT
from .faults import fail

Options = dict[tuple[int, int], Any]

SOL, TCP, IP, IPV6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6


def _named(*prefixes: str) -> frozenset[int]:
    return frozenset(value for name, value in vars(socket).items() if name.startswith(prefixes))


KNOWN = {
    SOL: _named('SO_') | {SO_MEMINFO},
    TCP: _named('TCP_') | {TCP_DEFER_ACCEPT},
    IP: _named('IP_', 'MCAST_') | {24},  # IP_BIND_ADDRESS_NO_PORT, which has no name before Python 3.12
    IPV6: _named('IPV6_', 'MCAST_'),
}
SWITCHES = {
    (SOL, getattr(socket, name, None))
    for name in ('SO_REUSEADDR', 'SO_REUSEPORT', 'SO_KEEPALIVE', 'SO_BROADCAST', 'SO_OOBINLINE')
} | {(TCP, socket.TCP_NODELAY), (IPV6, socket.IPV6_V6ONLY)}
READ_ONLY = {
    (SOL, getattr(socket, name, None))
    for name in ('SO_TYPE', 'SO_DOMAIN', 'SO_PROTOCOL', 'SO_ACCEPTCONN', 'SO_ERROR', 'SO_PEERCRED')
}
KEEPALIVE: tuple[tuple[str, int, int], ...] = (
    ('TCP_KEEPIDLE', 7200, 32767), ('TCP_KEEPINTVL', 75, 32767), ('TCP_KEEPCNT', 9, 127)
)  # fmt: skip
FIRST = {(TCP, getattr(socket, name, None)): value for name, value, _ in KEEPALIVE}
FIRST |= {(SOL, socket.SO_SNDBUF): 212_992, (SOL, socket.SO_RCVBUF): 212_992}
MOST = {(TCP, getattr(socket, name, None)): most for name, _, most in KEEPALIVE}
LINGER = SOL, socket.SO_LINGER
SHARES_PORT = SOL, SO_REUSEPORT


def check_level(family: int, kind: int, level: int, option: int, error: int) -> None:
    """Fail as Linux does if sockets of this family and type do not have an option; `error` is for a foreign level."""
    if level != SOL:
        if family == AF_UNIX:
            fail(errno.EOPNOTSUPP)
        if (level == TCP and kind != socket.SOCK_STREAM) or (level == IPV6 and family != socket.AF_INET6):
            fail(error)
    if option not in KNOWN.get(level, ()):
        fail(errno.ENOPROTOOPT)


def to_store(family: int, level: int, option: int, value: Any) -> Any:
    """Return the value that an option has after it was set to `value`; fail if that is refused."""
    which = level, option
    if which in READ_ONLY:
        fail(errno.ENOPROTOOPT)
    if which == LINGER and len(value) < len(RESET_ON_CLOSE):
        fail(errno.EINVAL)
    if which == SHARES_PORT and value and family == AF_UNIX:
        fail(errno.EOPNOTSUPP)
    if which in MOST and not 0 < value <= MOST[which]:
        fail(errno.EINVAL)
    if which in SWITCHES:
        return int(bool(value))
    return 2 * max(value, 2304) if level == SOL and option in (socket.SO_SNDBUF, socket.SO_RCVBUF) else value


def silence(options: Options) -> int:
    """Return the seconds of silence after which keepalive ends a connection; 0: keepalive is not set."""
    if not options.get((SOL, socket.SO_KEEPALIVE)):
        return 0
    idle, interval, count = (options.get((TCP, getattr(socket, name, -1)), first) for name, first, _ in KEEPALIVE)
    return int(idle + interval * count)


def stored(options: Options, level: int, option: int, size: int) -> Any:
    """Return the value of an option, or its first value; `size` bytes of it, if that is not 0."""
    value = options.get((level, option), FIRST.get((level, option), 0))
    if not size:
        return value if isinstance(value, int) else int.from_bytes(value[:4], 'little')
    return (
        value[:size] if isinstance(value, bytes) else value.to_bytes(4, 'little', signed=True)[:size].ljust(size, b'\0')
    )
