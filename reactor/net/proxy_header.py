r"""PROXY headers: a proxy sends one at the beginning of a connection, to name the client that it speaks for.

The two formats are those of HAProxy's proxy-protocol.txt. `header_size` never counts a byte that may belong to the data
after the header. A header that does not match the document exactly is refused: if two parsers read it differently, a
client could give itself another client's address.

    version 1   PROXY TCP4 192.0.2.1 198.51.100.7 51234 443\r\n
    version 2   12 bytes of signature, version and command, family and protocol, length; addresses; TLVs
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from typing import Any

from ..kernel import Kernel
from ..kernel.platforms import AF_UNIX
from .addresses import show, unmapped

SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
FIXED = 16  # bytes of version 2 before the addresses
LONGEST_V1 = 107  # bytes including the CRLF; proxy-protocol.txt gives this number
# The document asks receivers to accept at least 536 bytes. TLVs can be longer, for example a client's certificate with
# its chain.
LONGEST_V2 = 4096
CRC32C = 0x03  # PP2_TYPE_CRC32C: the checksum of the whole header, with these 4 bytes as zeros
# Maps the number in version 2 to the family and the size of its addresses in bytes.
FAMILIES: dict[int, tuple[int, int]] = {1: (AF_INET, 4), 2: (AF_INET6, 16), 3: (AF_UNIX, 108)}
PROTOCOLS = {1: SOCK_STREAM, 2: SOCK_DGRAM}


class ProxyHeader:
    """The header that a proxy has sent for a connection, `conn.proxy`.

    Attributes:
        version: 1 or 2.
        command: 'PROXY' if the proxy speaks for a client, 'LOCAL' if it speaks for itself, as in a health check.
        family: AF_INET, AF_INET6 or AF_UNIX; 0 if the header has no addresses (LOCAL, UNKNOWN).
        protocol: SOCK_STREAM or SOCK_DGRAM, between the client and the proxy; 0 if the header has none.
        source: The client's address, in the form that Python's sockets use, or None.
        destination: The address that the client has connected to, or None.
        tlvs: Further fields, a list of (type, bytes), in order. The types are in proxy-protocol.txt, section 2.2.
        peername: The value of `conn.peername`: `source`, or the address of the proxy if there is no source.
    """

    __slots__ = ('command', 'destination', 'family', 'peername', 'protocol', 'source', 'tlvs', 'version')

    def __init__(
        self,
        version: int,
        command: str = 'PROXY',
        family: int = 0,
        protocol: int = 0,
        source: Any = None,
        destination: Any = None,
    ) -> None:
        self.version: int = version
        self.command: str = command
        self.family: int = family
        self.protocol: int = protocol
        self.source: Any = unmapped(source)
        self.destination: Any = unmapped(destination)
        self.tlvs: list[tuple[int, bytes]] = []
        self.peername: Any = self.source

    def __repr__(self) -> str:
        ends = f'{show(self.source)} to {show(self.destination)}'
        return f'<ProxyHeader v{self.version} {self.command} {ends}, {len(self.tlvs)} TLVs>'


def header_size(data: bytes) -> int:
    """Return the length of the header at the beginning of `data`, which may contain more bytes after it.

    If `data` is too short, return a lower bound of that length, greater than the length of `data`. Raises
    ValueError if `data` does not begin with a header.
    """
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        if len(data) < FIXED:
            return FIXED
        size = FIXED + int.from_bytes(data[14:16], 'big')
        if size > LONGEST_V2:
            raise ValueError(f'its header has {size} bytes, more than {LONGEST_V2}')
        return size
    if data[:6] != b'PROXY '[: len(data)]:
        raise ValueError(f'it began with {data[:20]!r}, not with a header')
    end = data.find(b'\r\n', 0, LONGEST_V1)
    if end >= 0:
        return end + 2
    if len(data) >= LONGEST_V1:
        raise ValueError(f'its header does not end within {LONGEST_V1} bytes')
    return len(data) + 1


def parse_header(kernel: Kernel, data: bytes) -> ProxyHeader:
    """Parse a header; `data` must be the whole header and nothing else. Raises ValueError if it is not valid."""
    return _parse_v2(kernel, data) if data[:1] == b'\r' else _parse_v1(kernel, data)


def _parse_v1(kernel: Kernel, data: bytes) -> ProxyHeader:
    words = data[:-2].split(b' ')
    if words[1] == b'UNKNOWN':
        return ProxyHeader(1)  # the rest of the line must be ignored
    family = {b'TCP4': AF_INET, b'TCP6': AF_INET6}.get(words[1])
    if family is None or len(words) != 6:
        raise ValueError(f'its header is wrong: {data!r}')
    try:
        hosts = [kernel.pack_address(family, word.decode('ascii')) for word in words[2:4]]
    except (OSError, ValueError):
        raise ValueError(f'its header has a wrong address: {data!r}') from None
    ports = [int(word) if word.isdigit() and len(word) < 6 and str(int(word)).encode() == word else 65536
             for word in words[4:]]  # fmt: skip
    if max(ports) > 65535:
        raise ValueError(f'its header has a wrong port: {data!r}')
    ends = [_address(kernel, family, host, port) for host, port in zip(hosts, ports, strict=True)]
    return ProxyHeader(1, 'PROXY', family, SOCK_STREAM, *ends)


def _parse_v2(kernel: Kernel, data: bytes) -> ProxyHeader:
    version, command = divmod(data[12], 16)
    if version != 2 or command > 1:
        raise ValueError(f'its header has version and command {data[12]:#04x}, not 0x20 or 0x21')
    if command == 0:
        return ProxyHeader(2, 'LOCAL')  # the addresses must be ignored
    known, transport = divmod(data[13], 16)
    if known > 3 or transport > 2:
        raise ValueError(f'its header has an unknown family and protocol: {data[13]:#04x}')
    if not (known and transport):
        header, begin = ProxyHeader(2), FIXED
    else:
        family, size = FAMILIES[known]
        begin = FIXED + 2 * size + (0 if family == AF_UNIX else 4)
        if len(data) < begin:
            raise ValueError(f'its header has {len(data)} bytes, too few for its addresses')
        hosts = data[FIXED : FIXED + size], data[FIXED + size : FIXED + 2 * size]
        ports = int.from_bytes(data[begin - 4 : begin - 2], 'big'), int.from_bytes(data[begin - 2 : begin], 'big')
        ends = [_address(kernel, family, host, port) for host, port in zip(hosts, ports, strict=True)]
        header = ProxyHeader(2, 'PROXY', family, PROTOCOLS[transport], *ends)
    _read_tlvs(header, data, begin)
    return header


def _address(kernel: Kernel, family: int, host: bytes, port: int) -> Any:
    """Return an address in the form that Python's sockets use."""
    if family == AF_INET:
        return kernel.unpack_address(family, host), port
    if family == AF_INET6:
        return kernel.unpack_address(family, host), port, 0, 0
    if host[:1] == b'\0':
        return host.rstrip(b'\0')  # abstract, or unnamed
    return host.partition(b'\0')[0].decode('utf-8', 'surrogateescape')


def _read_tlvs(header: ProxyHeader, data: bytes, at: int) -> None:
    while at < len(data):
        begin = at + 3
        end = begin + int.from_bytes(data[at + 1 : begin], 'big')
        if begin > len(data) or end > len(data):
            raise ValueError('its header ends in the middle of a TLV')
        kind, value = data[at], data[begin:end]
        if kind == CRC32C and any(known == CRC32C for known, _ in header.tlvs):
            # One header has room for 580 correct checksums, and each takes 0.3 ms to check.
            raise ValueError('its header has two checksums')
        if kind == CRC32C and crc32c(data[:begin] + bytes(len(value)) + data[end:]).to_bytes(4, 'big') != value:
            raise ValueError('its header has a wrong checksum')
        header.tlvs.append((kind, value))
        at = end


_TABLE: list[int] = []  # filled at the first use


def crc32c(data: bytes) -> int:
    """Return Castagnoli's checksum of `data` (RFC 3720, appendix B.4)."""
    if not _TABLE:
        for number in range(256):
            for _ in range(8):
                number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
            _TABLE.append(number)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
