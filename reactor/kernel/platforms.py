"""What differs between platforms: constants that some lack, sizes, and the manners of their calls.

Owns no state. A constant that a platform lacks is -1 here, and the call that needs it fails. What a part of the
reactor must ask of the kernel it was given, because a simulated one may be of another platform, is an attribute of
`Kernel`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys

# What some platforms lack, guarded here and nowhere else.
AF_UNIX: int = getattr(socket, 'AF_UNIX', -1)
SO_REUSEPORT: int = getattr(socket, 'SO_REUSEPORT', -1)
TCP_DEFER_ACCEPT: int = getattr(socket, 'TCP_DEFER_ACCEPT', -1)
# How many bytes wait to be read: termios.FIONREAD, without the import of a module for one number.
FIONREAD = 0x541B if sys.platform == 'linux' else 0x4004667F
# How Linux attaches a filter of packets to a socket; the module names none of it.
SO_ATTACH_FILTER: int = 26 if sys.platform == 'linux' else -1
# Such a filter, as fields of struct sock_filter (classic BPF): drop a segment whose TCP header has the flag SYN.
DROP_FIRST_SEGMENTS = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 2),  # is SYN set? If not, skip one
    (0x06, 0, 0, 0),  # keep no byte
    (0x06, 0, 0, 0xFFFFFFFF),  # keep all
)
# Linux, which alone has it, tells with it how many datagrams it dropped; the module does not name it.
SO_MEMINFO: int = 55 if sys.platform == 'linux' else -1
# Joining a multicast group over IPv4 takes struct ip_mreqn, with an interface's index. Windows has an older struct,
# and takes the index in place of the interface's address.
HAS_IP_MREQN = os.name == 'posix'
# Linux has had it since 4.2; the module names it only from Python 3.12 on.
IP_BIND_ADDRESS_NO_PORT: int = getattr(socket, 'IP_BIND_ADDRESS_NO_PORT', 24 if sys.platform == 'linux' else -1)
# On Windows SO_REUSEADDR lets another program steal a port that is in use; elsewhere it only skips TIME_WAIT. What
# keeps the port from programs that set it is there alone: SO_EXCLUSIVEADDRUSE.
REUSE_ADDRESS = os.name == 'posix'
SO_EXCLUSIVEADDRUSE: int = getattr(socket, 'SO_EXCLUSIVEADDRUSE', -1)
# Linux hands TCP_NODELAY of a listener on to what it accepts, which saves a call for each connection.
NODELAY_INHERITED = sys.platform == 'linux'
# struct linger, on with 0 seconds: closing discards what waits and resets the connection.
RESET_ON_CLOSE = b'\1\0\0\0\0\0\0\0' if os.name == 'posix' else b'\1\0\0\0'
HAS_POLL = hasattr(select, 'poll')
HAS_SENDMSG = hasattr(socket.socket, 'sendmsg')
HAS_SENDFILE = hasattr(os, 'sendfile')
ABSTRACT_PATHS = sys.platform == 'linux'
# What says that a descriptor was closed by other code: its number is not open, or stands for something that is not a
# socket. On Windows it is always the second.
LOST_ERRORS = frozenset({errno.EBADF, errno.ENOTSOCK})

# (seconds idle, seconds between probes, probes), by the names that each platform gives them.
KEEPALIVE_OPTIONS: tuple[int, int, int] = (
    getattr(socket, 'TCP_KEEPIDLE', getattr(socket, 'TCP_KEEPALIVE', -1)),
    getattr(socket, 'TCP_KEEPINTVL', -1),
    getattr(socket, 'TCP_KEEPCNT', -1),
)

# How many descriptors `select` can hold. POSIX bounds the number itself, Windows how many there are.
FD_SETSIZE = 1024 if os.name == 'posix' else 512


def step_of_waits(system: str, resolution: float) -> float:
    """Seconds by which a wait may seem too short, by `os.name` and the resolution of the clock.

    Selectors count milliseconds. Windows ends a wait at a tick of its timer, which may be 15.6 ms early. Up to Python
    3.12 its clock has the same steps. Since then it is exact, so that its resolution says nothing about waits.
    """
    return max(0.001 if system == 'posix' else 0.016, resolution)
