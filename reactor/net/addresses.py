"""Addresses: check the ones that users pass, convert them for sockets, and format them for people.

A wrong address is refused when it is given, and the message shows it.
"""

from __future__ import annotations

from itertools import zip_longest
from socket import AF_INET, AF_INET6, AI_NUMERICHOST, AI_PASSIVE, SOCK_STREAM
from typing import Any

from ..kernel import Kernel
from ..kernel.calls import ResolveFailure
from ..kernel.platforms import ABSTRACT_PATHS, AF_UNIX
from ..loop.checks import shown
from ..loop.log import describe

Address = tuple[int, Any]  # the family, and the address as `bind` and `connect` take it
PASSIVE = AI_PASSIVE
MAPPED = '::ffff:'  # how an IPv6 socket shows an IPv4 peer
MOST_ADDRESSES = 1024  # the addresses of a name that are tried; a name server can answer with 4,000
LONGEST_PATH = 107  # bytes of sun_path on Linux, without the final NUL; the BSDs have 103


def check_port(port: int) -> int:
    """Check and return a TCP or UDP port: an int of 0 to 65535, else TypeError or ValueError."""
    if type(port) is not int:
        raise TypeError(f'a port is an int, not {shown(port)}')
    if not 0 <= port <= 65535:
        raise ValueError(f'a port is 0 to 65535, not {shown(port)}')
    return port


def check_host(host: str | None) -> str | None:
    """Check and return a host name, a numeric address, or None for all addresses; else TypeError or ValueError."""
    if host is not None and type(host) is not str:
        raise TypeError(f'a host is a str or None, not {shown(host)}')
    if host is not None and ('\0' in host or not host):
        raise ValueError(f'a host is a name or an address, not {host!r}')
    if host is not None and ('/' in host or '[' in host or host.count(':') == 1):
        raise ValueError(f'a host is a name or an address, not {shown(host)}: {_advice(host)}')
    return host


def _advice(host: str) -> str:
    if '://' in host:
        return 'it is not a URL; give the host alone, and the port as an argument of its own'
    if '[' in host:
        return 'give an IPv6 address without brackets, such as ::1, and the port as an argument of its own'
    return 'give the host alone, and the port as an argument of its own'


def check_local_address(kernel: Kernel, address: tuple[str, int] | None) -> None:
    """Check the address to connect from: None, or (host, port) with a numeric host; else TypeError or ValueError.

    `bind` would look a name up, and block the loop until that is done.
    """
    if address is None:
        return
    if not isinstance(address, tuple) or len(address) != 2:
        raise TypeError(f'local_address is (host, port), not {shown(address)}')
    if check_host(address[0]) is None:
        raise ValueError(f'local_address needs a host: {shown(address)}')
    check_port(address[1])
    if not numeric(kernel, address[0], address[1]):
        raise ValueError(
            f'local_address is written in numbers, such as ("127.0.0.1", 0), not {shown(address)}; '
            'look a name up with resolve() first'
        )


def check_path(path: str | bytes) -> str | bytes:
    """Check and return the path of a Unix socket. A path that begins with NUL or @ is abstract (Linux only)."""
    if not isinstance(path, (str, bytes)):
        raise TypeError(f'a path is a str or bytes, not {shown(path)}')
    if AF_UNIX < 0:
        raise OSError('this platform has no Unix sockets; use TCP on 127.0.0.1')
    encoded = path.encode('utf-8', 'surrogateescape') if isinstance(path, str) else path
    if not encoded:
        raise ValueError('the path of a Unix socket is empty')
    if len(encoded) > LONGEST_PATH:
        raise OSError(f'the path of a Unix socket has at most {LONGEST_PATH} bytes, not {len(encoded)}: {path!r}')
    if encoded[:1] == b'@':
        encoded = b'\0' + encoded[1:]
    if encoded[:1] == b'\0':
        if not ABSTRACT_PATHS:
            raise OSError(f'this platform has no abstract Unix sockets: {path!r}')
        return encoded
    if b'\0' in encoded:
        raise ValueError(f'the path of a Unix socket has a NUL inside: {path!r}')
    return path


def is_abstract(path: str | bytes) -> bool:
    """Return whether a checked path is abstract, so that there is no file."""
    return path[:1] == ('\0' if isinstance(path, str) else b'\0')  # `python -bb` forbids comparing str and bytes


def numeric(kernel: Kernel, host: str, port: int, family: int = 0) -> list[Address]:
    """Return the addresses of a numeric host, without a look-up; an empty list for a name."""
    try:
        found = kernel.getaddrinfo(host, port, family, SOCK_STREAM, AI_NUMERICHOST)
    except (ResolveFailure, UnicodeError):
        return []
    return [(family, address) for family, _, _, _, address in found]


def destination(kernel: Kernel, family: int, address: Any) -> Any:
    """Convert (host, port) or (host, port, flow, scope) for `sendto` on a socket of this family.

    The host must be numeric, because `sendto` would look a name up and block. TypeError or ValueError for others.
    """
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise TypeError(f'an address is (host, port), not {address!r}')
    if check_host(address[0]) is None:
        raise ValueError(f'a destination needs a host, not None: {address!r}')
    for number, bits in zip(address[2:], (20, 32), strict=False):
        if type(number) is not int or not 0 <= number < 1 << bits:
            raise ValueError(f'the flow and the scope of an IPv6 address are numbers of 20 and 32 bits: {address!r}')
    found = numeric(kernel, address[0], check_port(address[1]))
    if not found:
        raise ValueError(
            f'a destination is written in numbers, not {address[0]!r}; '
            'look a name up with resolve(), or use connect_udp()'
        )
    kind, plain = found[0]
    if kind == family:
        return plain[:2] + address[2:] if kind == AF_INET6 and address[2:] else plain
    if kind == AF_INET6:
        raise ValueError(f'cannot send to {show(address)}: it is an IPv6 address, and this is an IPv4 socket')
    return MAPPED + plain[0], plain[1]


def interleave(addresses: list[Address]) -> list[Address]:
    """Reorder addresses so that families alternate, beginning with the first address (RFC 8305, section 4)."""
    first: list[Address] = []
    others: list[Address] = []
    for address in addresses:
        (first if address[0] == addresses[0][0] else others).append(address)
    if not others:
        return first
    return [address for pair in zip_longest(first, others) for address in pair if address is not None]


def unmapped(address: Any) -> Any:
    """Return an IPv4 address that is mapped into IPv6 as (host, port); any other address unchanged."""
    if type(address) is tuple and len(address) == 4 and type(address[0]) is str:
        if address[0].startswith(MAPPED) and '.' in address[0]:
            return address[0][len(MAPPED) :], address[1]
    return address


def is_ipv4(address: Any) -> bool:
    """Return whether (host, port, ...) with a numeric host is an IPv4 address, plain or mapped into IPv6."""
    host = address[0]
    return ':' not in host or (host.startswith(MAPPED) and '.' in host)


def show(address: Any) -> str:
    """Format an address as people write it: 127.0.0.1:80, [::1]:80, a path, @abstract. Quote unprintable text."""
    if address is None:
        return 'unknown'
    if type(address) is tuple and len(address) > 1 and type(address[0]) is str:
        host, port = address[:2]
        text = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    elif type(address) is bytes and address[:1] == b'\0':
        text = '@' + address[1:].decode('utf-8', 'backslashreplace')
    else:
        text = describe(address)  # also addresses of other families, such as (3, 1024) of AF_VSOCK
    # A peer may have chosen the text, and it must not add lines to a log.
    return (text if text.isprintable() else repr(text)) or 'unnamed'


FAMILIES = (0, AF_INET, AF_INET6)


def check_family(family: int) -> int:
    """Check and return a family: 0 for any, AF_INET or AF_INET6; else ValueError."""
    if isinstance(family, bool) or not isinstance(family, int) or family not in FAMILIES:
        raise ValueError(f'a family is 0, AF_INET or AF_INET6, not {shown(family)}')
    return family
