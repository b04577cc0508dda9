"""Networks: which addresses a list of prefixes has, such as 10.0.0.0/8 and ::1/128.

Owns the notation and the comparison. Knows no socket. The rule: an IPv4 client of a dual-stack socket is compared as
the IPv4 address that it has, and whatever is no IP address is in no network.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6

from .addresses import unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..kernel import Kernel


class Networks:
    """Some networks; `address in networks` for (host, port) as sockets give it."""

    __slots__ = ('_kernel', '_prefixes')

    def __init__(self, kernel: Kernel, networks: Iterable[str]) -> None:
        if isinstance(networks, (str, bytes)):
            raise TypeError(f'networks are a list such as ["10.0.0.0/8", "::1/128"], not {networks!r}')
        self._kernel = kernel
        self._prefixes = [_prefix(kernel, text) for text in networks]

    def __contains__(self, address: Any) -> bool:
        host = packed(self._kernel, address)
        number = int.from_bytes(host, 'big')
        for size, shift, prefix in self._prefixes:
            if size == len(host) and number >> shift == prefix:
                return True
        return False


def packed(kernel: Kernel, address: Any) -> bytes:
    """The 4 or 16 bytes of the host of an address, none for what is no IP address."""
    if not isinstance(address, tuple):
        return b''
    host = unmapped(address)[0].partition('%')[0]  # the scope of a link-local one is no part of it
    return kernel.pack_address(AF_INET6 if ':' in host else AF_INET, host)


def _prefix(kernel: Kernel, text: str) -> tuple[int, int, int]:
    """(bytes of an address, bits that do not count, the others as a number)."""
    if not isinstance(text, str):
        raise TypeError(f'a network is a str such as "10.0.0.0/8", not {text!r}')
    host, slash, length = text.partition('/')
    try:
        number = packed(kernel, (host, 0))
    except (OSError, ValueError):
        number = b''
    bits = length if slash else str(8 * len(number))
    if not number or not (bits.isascii() and bits.isdecimal() and int(bits) <= 8 * len(number)):
        raise ValueError(f'a network is an address in numbers and a length, such as "10.0.0.0/8", not {text!r}')
    shift = 8 * len(number) - int(bits)
    prefix = int.from_bytes(number, 'big')
    if prefix >> shift << shift != prefix:
        raise ValueError(f'{text!r} has bits beyond its length of {bits}: an address of one machine, or a slip?')
    return len(number), shift, prefix >> shift
