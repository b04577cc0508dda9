"""Check whether an address is in a list of networks such as 10.0.0.0/8 and ::1/128.

An IPv4 client of a dual-stack socket is compared by its IPv4 address. An address of another kind, such as a path, is in
no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from socket import AF_INET, AF_INET6
from typing import Any

from ..kernel import Kernel
from ..loop.checks import shown
from ..net.addresses import unmapped

MAPPED_PREFIX = bytes(10) + b'\xff\xff'  # ::ffff:0:0/96: IPv6 sockets show IPv4 peers in this network


class Networks:
    """A list of networks. `address in networks` takes an address in the form that sockets use, (host, port, ...)."""

    __slots__ = ('_kernel', '_prefixes')

    def __init__(self, kernel: Kernel, networks: Iterable[str]) -> None:
        if isinstance(networks, str | bytes) or not hasattr(networks, '__iter__'):
            raise TypeError(f'networks must be a list such as ["10.0.0.0/8", "::1/128"], not {shown(networks)}')
        self._kernel = kernel
        self._prefixes = [_prefix(kernel, text) for text in networks]

    def __len__(self) -> int:
        return len(self._prefixes)

    def __contains__(self, address: Any) -> bool:
        host = packed(self._kernel, address)
        number = int.from_bytes(host, 'big')
        for size, shift, prefix in self._prefixes:
            if size == len(host) and number >> shift == prefix:
                return True
        return False


def packed(kernel: Kernel, address: Any) -> bytes:
    """Return the 4 or 16 bytes of an IP address; b'' for any other address."""
    if not isinstance(address, tuple) or not isinstance(address[0], str):
        return b''  # the path of a Unix socket, or an AF_VSOCK (cid, port) pair
    host = unmapped(address)[0].partition('%')[0]  # without the scope of a link-local address
    return kernel.pack_address(AF_INET6 if ':' in host else AF_INET, host)


def _prefix(kernel: Kernel, text: str) -> tuple[int, int, int]:
    """Return (bytes of an address, bits after the prefix, the prefix as a number)."""
    if not isinstance(text, str):
        raise TypeError(f'a network must be a str such as "10.0.0.0/8", not {shown(text)}')
    host, slash, length = text.partition('/')
    try:
        number = packed(kernel, (host, 0))
    except (OSError, ValueError):
        number = b''
    length = length if slash else str(8 * len(number))
    bits = int(length) if length.isascii() and length.isdecimal() and len(length) <= 3 else 999
    if not number or bits > 8 * len(number):
        raise ValueError(
            'a network must be a numeric address, optionally with a prefix length (such as "10.0.0.0/8"), '
            f'not {shown(text)}'
        )
    if number.startswith(MAPPED_PREFIX) and bits >= 8 * len(MAPPED_PREFIX):
        # This is an IPv4 network in the notation of IPv6. Convert it, because clients are compared by IPv4 addresses.
        number, bits = number[len(MAPPED_PREFIX) :], bits - 8 * len(MAPPED_PREFIX)
    shift = 8 * len(number) - bits
    prefix = int.from_bytes(number, 'big')
    if prefix >> shift << shift != prefix:
        raise ValueError(
            f'{text!r} has bits set after its prefix of {length}: write the first address of the network, '
            f'or /{8 * len(number)} for a single address'
        )
    return len(number), shift, prefix >> shift
