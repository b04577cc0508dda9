"""Differences between platforms: constants that some of them lack, sizes, and how system calls behave.

A constant that a platform lacks is -1, and the call that needs it fails. A value that a simulated kernel may change,
because it can simulate another platform, is an attribute of `Kernel`, and the reactor reads it there.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys

# Some platforms lack these constants. Only this module tests for that.
AF_UNIX: int = getattr(socket, 'AF_UNIX', -1)
SO_REUSEPORT: int = getattr(socket, 'SO_REUSEPORT', -1)
TCP_DEFER_ACCEPT: int = getattr(socket, 'TCP_DEFER_ACCEPT', -1)
# An ioctl that returns how many bytes are unread: termios.FIONREAD, without importing `termios` for one number.
FIONREAD = 0x541B if sys.platform == 'linux' else 0x4004667F
# The option that attaches a packet filter to a socket on Linux. The module `socket` has no name for it.
SO_ATTACH_FILTER: int = 26 if sys.platform == 'linux' else -1
# A packet filter, as fields of struct sock_filter (classic BPF). It drops segments whose TCP header has the SYN flag.
DROP_FIRST_SEGMENTS = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 2),  # if SYN is not set, skip one instruction
    (0x06, 0, 0, 0),  # drop the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # keep the segment
)
# The option that reports the memory use of a socket, and how many datagrams the kernel dropped. It exists on Linux
# only, and the module `socket` has no name for it.
SO_MEMINFO: int = 55 if sys.platform == 'linux' else -1
# The option that names the peer, also after the connection has been reset, when `getpeername` fails. It exists on Linux
# only, and the module `socket` has no name for it.
SO_PEERNAME: int = 28 if sys.platform == 'linux' else -1
# Joining a multicast group over IPv4 takes struct ip_mreqn, with the index of an interface. Windows has an older
# struct, which takes the index in place of an address.
HAS_IP_MREQN = os.name == 'posix'
# Linux has had this option since version 4.2, and the module `socket` has had a name for it since Python 3.12.
IP_BIND_ADDRESS_NO_PORT: int = getattr(socket, 'IP_BIND_ADDRESS_NO_PORT', 24 if sys.platform == 'linux' else -1)
# On Windows SO_REUSEADDR lets another program steal a port that is in use, and only SO_EXCLUSIVEADDRUSE prevents that.
# Elsewhere SO_REUSEADDR only skips TIME_WAIT.
REUSE_ADDRESS = os.name == 'posix'
SO_EXCLUSIVEADDRUSE: int = getattr(socket, 'SO_EXCLUSIVEADDRUSE', -1)
# On Linux accepted sockets inherit TCP_NODELAY from their listener, which saves a call for each connection.
NODELAY_INHERITED = sys.platform == 'linux'
# struct linger, enabled with 0 seconds: closing the socket discards unsent bytes and resets the connection.
RESET_ON_CLOSE = b'\1\0\0\0\0\0\0\0' if os.name == 'posix' else b'\1\0\0\0'
HAS_POLL = hasattr(select, 'poll')
HAS_SENDMSG = hasattr(socket.socket, 'sendmsg')
HAS_SENDFILE = hasattr(os, 'sendfile')
ABSTRACT_PATHS = sys.platform == 'linux'
# Errors that mean that other code has closed a descriptor: its number is not open (EBADF), or no longer belongs to a
# socket (ENOTSOCK). Windows always reports ENOTSOCK.
LOST_ERRORS = frozenset({errno.EBADF, errno.ENOTSOCK})

# The socket options for (idle seconds, seconds between probes, number of probes). Their names differ between platforms.
KEEPALIVE_OPTIONS: tuple[int, int, int] = (
    getattr(socket, 'TCP_KEEPIDLE', getattr(socket, 'TCP_KEEPALIVE', -1)),
    getattr(socket, 'TCP_KEEPINTVL', -1),
    getattr(socket, 'TCP_KEEPCNT', -1),
)

# The limit of `select`: on POSIX it applies to the number of a descriptor, on Windows to the count of descriptors.
FD_SETSIZE = 1024 if os.name == 'posix' else 512


def step_of_waits(system: str, resolution: float) -> float:
    """Return by how many seconds a wait may seem too short, given `os.name` and the resolution of the clock.

    Selectors count milliseconds. Windows ends a wait at a tick of its timer, up to 15.6 ms early. Up to Python 3.12,
    Python's clock on Windows has the same steps. Later versions have an exact clock, whose resolution says nothing
    about waits.
    """
    return max(0.001 if system == 'posix' else 0.016, resolution)
