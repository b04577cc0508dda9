"""A network namespace for the experiment: a loopback interface of its own, without connection tracking (Linux, root).

The kernel removes the namespace when the last process in it has ended, so nothing is left behind.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

try:
    import fcntl
except ImportError:  # Windows has no such module
    fcntl = None  # type: ignore[assignment]

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
INTERFACE = struct.Struct('16sh22x')  # struct ifreq, with the flags


def enter_namespace() -> bool:
    """Move this process, and the children that it starts from now on, into a new network namespace.

    Sockets that are open already stay in the old one, so they go on serving. Call this in the main thread.

    Returns:
        False if that is not possible here; nothing has changed then.
    """
    if sys.platform != 'linux' or fcntl is None or os.geteuid():
        return False
    try:
        unshare(CLONE_NEWNET)
    except OSError:  # root in a container often has no right to do so
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = INTERFACE.unpack(fcntl.ioctl(sock, SIOCGIFFLAGS, INTERFACE.pack(b'lo', 0)))
        fcntl.ioctl(sock, SIOCSIFFLAGS, INTERFACE.pack(name, flags | IFF_UP))
    return True


def unshare(flags: int) -> None:
    """Call unshare(2), which Python has from 3.12 on."""
    if sys.version_info >= (3, 12):
        os.unshare(flags)
        return
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
