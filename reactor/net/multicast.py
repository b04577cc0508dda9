"""Check multicast groups and interfaces, and make the socket options that join or leave a group.

An address that is not a multicast group is refused here. The kernel decides whether this machine can join a group.
"""

from __future__ import annotations

import sys
from errno import ENODEV
from socket import (
    AF_INET,
    AF_INET6,
    IP_ADD_MEMBERSHIP,
    IP_DROP_MEMBERSHIP,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_JOIN_GROUP,
    IPV6_LEAVE_GROUP,
)

from ..kernel import Kernel
from ..kernel.platforms import HAS_IP_MREQN


def membership(kernel: Kernel, group: str, interface: str | int | None) -> tuple[int, int, int, bytes]:
    """Return (level, option to join, option to leave, value) for `setsockopt`.

    Raises TypeError or ValueError if `group` is not a multicast group, and OSError if the interface does not exist.
    """
    if type(group) is not str:
        raise TypeError(f'a group must be an address like 239.1.2.3 or ff02::1:3, not {group!r}')
    family = AF_INET6 if ':' in group else AF_INET
    try:
        packed = kernel.pack_address(family, group)
    except (OSError, ValueError):
        packed = b'\0'
    if not (packed[0] == 0xFF if family == AF_INET6 else packed[0] & 0xF0 == 0xE0):
        raise ValueError(f'a group must be a multicast address like 239.1.2.3 or ff02::1:3, not {group!r}')
    if family == AF_INET6:
        index = _index(kernel, interface)
        return IPPROTO_IPV6, IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP, packed + index.to_bytes(4, sys.byteorder)
    return IPPROTO_IP, IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP, packed + _ipv4_interface(kernel, interface)


def _ipv4_interface(kernel: Kernel, interface: str | int | None) -> bytes:
    if isinstance(interface, str):
        try:
            return kernel.pack_address(AF_INET, interface)
        except (OSError, ValueError):
            pass  # a name rather than an address: see below
    index = _index(kernel, interface)
    return bytes(4) + index.to_bytes(4, sys.byteorder) if HAS_IP_MREQN else index.to_bytes(4, 'big')


def _index(kernel: Kernel, interface: str | int | None) -> int:
    if interface is None:
        return 0  # the kernel chooses
    if isinstance(interface, str):
        try:
            return kernel.interface_index(interface)
        except (OSError, ValueError) as exc:
            error = exc.errno if isinstance(exc, OSError) else ENODEV
            raise OSError(error, f'no network interface is called {interface!r}; `ip link` lists them') from None
    if type(interface) is not int:
        raise TypeError(f'an interface must be a name, an index or an IPv4 address, not {interface!r}')
    if not 0 <= interface < 1 << 31:
        raise ValueError(f'the index of an interface must be from 0 to 2147483647, not {interface}')
    return interface
