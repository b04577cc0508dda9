"""Check the addresses that users pass, convert them for sockets, and format them for messages.

A wrong address is refused when it is passed in, and the error message shows it.
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

Address = tuple[int, Any]  # the family, and the address in the form that `bind` and `connect` take
PASSIVE = AI_PASSIVE
MAPPED = '::ffff:'  # the prefix of an IPv4 peer's address on an IPv6 socket
MOST_ADDRESSES = 1024  # at most this many addresses of a name are tried; a name server can return 4,000
LONGEST_PATH = 107  # bytes of sun_path on Linux, without the final NUL; the BSDs have 103


def check_port(port: int) -> int:
    """Return `port` if it is an int from 0 to 65535; raise TypeError or ValueError otherwise."""
    if type(port) is not int:
        raise TypeError(f'a port must be an int, not {shown(port)}')
    if not 0 <= port <= 65535:
        raise ValueError(f'a port must be from 0 to 65535, not {shown(port)}')
    return port


def check_host(host: str | None) -> str | None:
    """Return `host` if it is a host name, a numeric address, or None (all addresses); raise an error otherwise."""
    if host is not None and type(host) is not str:
        raise TypeError(f'a host must be a str or None, not {shown(host)}')
    if host is not None and ('\0' in host or not host):
        raise ValueError(f'a host must be a name or an address, not {host!r}')
    if host is not None and ('/' in host or '[' in host or host.count(':') == 1):
        raise ValueError(f'a host must be a name or an address, not {shown(host)}: {_advice(host)}')
    return host


def _advice(host: str) -> str:
    if '://' in host:
        return 'a host is not a URL; pass the host alone, and the port as a separate argument'
    if '[' in host:
        return 'pass an IPv6 address without brackets, such as ::1, and the port as a separate argument'
    return 'pass the host alone, and the port as a separate argument'


def check_local_address(kernel: Kernel, address: tuple[str, int] | None) -> None:
    """Check the address to connect from: None, or (host, port) with a numeric host.

    Raises TypeError or ValueError. A name is refused, because `bind` would block the loop while looking it up.
    """
    if address is None:
        return
    if not isinstance(address, tuple) or len(address) != 2:
        raise TypeError(f'local_address must be (host, port), not {shown(address)}')
    if check_host(address[0]) is None:
        raise ValueError(f'local_address must have a host: {shown(address)}')
    check_port(address[1])
    if not numeric(kernel, address[0], address[1]):
        raise ValueError(
            f'local_address must be numeric, such as ("127.0.0.1", 0), not {shown(address)}; '
            'look up a name with resolve() first'
        )


def check_path(path: str | bytes) -> str | bytes:
    """Check and return the path of a Unix socket. A path that begins with NUL or @ is abstract (Linux only)."""
    if not isinstance(path, (str, bytes)):
        raise TypeError(f'a path must be a str or bytes, not {shown(path)}')
    if AF_UNIX < 0:
        raise OSError('this platform has no Unix sockets; use TCP on 127.0.0.1')
    encoded = path.encode('utf-8', 'surrogateescape') if isinstance(path, str) else path
    if not encoded:
        raise ValueError('the path of a Unix socket is empty')
    if len(encoded) > LONGEST_PATH:
        raise OSError(f'the path of a Unix socket can have at most {LONGEST_PATH} bytes, not {len(encoded)}: {path!r}')
    if encoded[:1] == b'@':
        encoded = b'\0' + encoded[1:]
    if encoded[:1] == b'\0':
        if not ABSTRACT_PATHS:
            raise OSError(f'this platform has no abstract Unix sockets: {path!r}')
        return encoded
    if b'\0' in encoded:
        raise ValueError(f'the path of a Unix socket must not contain NUL: {path!r}')
    return path


def is_abstract(path: str | bytes) -> bool:
    """Return whether a path from `check_path` is abstract: no file exists for it."""
    return path[:1] == ('\0' if isinstance(path, str) else b'\0')  # `python -bb` forbids comparing str and bytes


def numeric(kernel: Kernel, host: str, port: int, family: int = 0) -> list[Address]:
    """Return the addresses of a numeric host, without a look-up. For a name, return an empty list."""
    try:
        found = kernel.getaddrinfo(host, port, family, SOCK_STREAM, AI_NUMERICHOST)
    except (ResolveFailure, UnicodeError):
        return []
    return [(family, address) for family, _, _, _, address in found]


def destination(kernel: Kernel, family: int, address: Any) -> Any:
    """Convert (host, port) or (host, port, flow, scope) for `sendto` on a socket of this family.

    The host must be numeric, because `sendto` would block while looking up a name. Raises TypeError or ValueError.
    """
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise TypeError(f'an address must be (host, port), not {address!r}')
    if check_host(address[0]) is None:
        raise ValueError(f'a destination needs a host, not None: {address!r}')
    for number, bits in zip(address[2:], (20, 32), strict=False):
        if type(number) is not int or not 0 <= number < 1 << bits:
            raise ValueError(f'the flow and scope of an IPv6 address must be ints of 20 and 32 bits: {address!r}')
    found = numeric(kernel, address[0], check_port(address[1]))
    if not found:
        raise ValueError(
            f'the host of a destination must be numeric, not {address[0]!r}; '
            'look up a name with resolve(), or use connect_udp()'
        )
    kind, plain = found[0]
    if kind == family:
        return plain[:2] + address[2:] if kind == AF_INET6 and address[2:] else plain
    if kind == AF_INET6:
        raise ValueError(f'cannot send to {show(address)}: it is an IPv6 address, but this is an IPv4 socket')
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
    """Return (host, port) for an IPv4 address that is mapped into IPv6; return any other address unchanged."""
    if type(address) is tuple and len(address) == 4 and type(address[0]) is str:
        if address[0].startswith(MAPPED) and '.' in address[0]:
            return address[0][len(MAPPED) :], address[1]
    return address


def is_ipv4(address: Any) -> bool:
    """Return whether (host, port, ...) with a numeric host is an IPv4 address, plain or mapped into IPv6."""
    host = address[0]
    return ':' not in host or (host.startswith(MAPPED) and '.' in host)


def show(address: Any) -> str:
    """Format an address the way people write it: 127.0.0.1:80, [::1]:80, a path, @abstract. Quote unprintable text."""
    if address is None:
        return 'unknown'
    if type(address) is tuple and len(address) > 1 and type(address[0]) is str:
        host, port = address[:2]
        text = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    elif type(address) is bytes and address[:1] == b'\0':
        text = '@' + address[1:].decode('utf-8', 'backslashreplace')
    else:
        text = describe(address)  # also formats addresses of other families, such as (3, 1024) for AF_VSOCK
    # A peer may have chosen the text, and a line break in it must not add lines to a log.
    return (text if text.isprintable() else repr(text)) or 'unnamed'


FAMILIES = (0, AF_INET, AF_INET6)


def check_family(family: int) -> int:
    """Return `family` if it is 0 (any), AF_INET or AF_INET6; raise ValueError otherwise."""
    if isinstance(family, bool) or not isinstance(family, int) or family not in FAMILIES:
        raise ValueError(f'a family must be 0, AF_INET or AF_INET6, not {shown(family)}')
    return family
