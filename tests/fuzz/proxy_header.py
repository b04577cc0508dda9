"""Fuzz PROXY headers of versions 1 and 2: send bytes in pieces, and compare the result with that of a second parser.

The second parser is written from HAProxy's proxy-protocol.txt (sections 2.1 and 2.2). A header must mean the same
however it was cut, and all data after it must reach `on_data`. Anything that is not a header must end the connection
with a `ProxyError` and without a call to `on_connect`.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM
from typing import Any, NamedTuple

from reactor import ProxyError, ProxyTimeout

from .scene import Input, Scene, Seen

SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
LONGEST_INPUT = 700
WORDS = (
    SIGNATURE, SIGNATURE + b'\x21\x11\0\x0c', SIGNATURE + b'\x21\x21\0\x24', SIGNATURE + b'\x20\0\0\0', b'PROXY ',
    b'PROXY TCP4 ', b'PROXY TCP6 ', b'PROXY UNKNOWN', b'\r\n', b'255.255.255.255', b'::ffff:1.2.3.4', b' 65535',
    b'\x03\0\x04', b'\x04\0\0',
)  # fmt: skip
NUMBERS = 4  # numbers in an input: three piece lengths, and how the connection ends
LONGEST_LINE = 107  # bytes of a version 1 header (section 2.1)
LONGEST = 4096  # bytes of a version 2 header; the specification requires support for at least 536
TIMEOUT = 10.0  # seconds, the default of proxy_timeout
PROXY = ('127.0.0.1', 50000)  # the peer of every scripted socket


class Header(NamedTuple):
    """What the first bytes of a connection mean.

    `kind` is 'header', 'wrong', 'part' (of a header), or 'free' (accepting and refusing are both allowed).
    """

    kind: str
    size: int = 0
    version: int = 0
    command: str = 'PROXY'
    family: int = 0
    protocol: int = 0
    source: Any = None
    destination: Any = None
    tlvs: list[tuple[int, bytes]] | None = None  # None if they are not compared


WRONG, PART = Header('wrong'), Header('part')


def reference(data: bytes) -> Header:
    """Return the meaning of the first bytes of a connection, according to the specification. More bytes may follow."""
    if data[:12] == SIGNATURE[: len(data)]:
        return reference_v2(data)
    if not data.startswith(b'PROXY ') and not b'PROXY '.startswith(data):
        return WRONG
    line, crlf, _ = data[:LONGEST_LINE].partition(b'\r\n')
    if not crlf:
        return PART if len(data) < LONGEST_LINE else WRONG
    size = len(line) + 2
    if re.fullmatch(rb'PROXY UNKNOWN(?: .*)?', line, re.DOTALL):
        return Header('header', size, 1)
    match = re.fullmatch(
        rb'PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})', line
    )
    if match is None:
        return WRONG
    version, source, destination = (part.decode() for part in match.groups()[:3])
    ports = [int(port) for port in match.groups()[3:]]
    kind: Any = IPv4Address if version == '4' else IPv6Address
    try:
        hosts = [kind(source), kind(destination)]
    except ValueError:
        return WRONG
    if max(ports) > 65535:
        return WRONG
    ends = list(zip(hosts, ports, strict=True))
    return Header('header', size, 1, 'PROXY', AF_INET if version == '4' else AF_INET6, SOCK_STREAM, *ends)


def reference_v2(data: bytes) -> Header:
    if len(data) < 16:
        return PART
    size = 16 + int.from_bytes(data[14:16], 'big')
    if size > LONGEST:
        return WRONG
    if len(data) < size:
        return PART
    if data[12] == 0x20:
        return Header('header', size, 2, 'LOCAL')
    family, protocol = data[13] >> 4, data[13] & 15
    if data[12] != 0x21 or family > 3 or protocol > 2:
        return WRONG
    if not family or not protocol:  # "free to accept the connection anyway and use the real endpoint addresses"
        return Header('free', size, 2)
    width, ports = {1: (4, 4), 2: (16, 4), 3: (108, 0)}[family]
    block, rest = data[16 : 16 + 2 * width + ports], data[16 + 2 * width + ports : size]
    if len(block) < 2 * width + ports or 16 + len(block) > size:
        return WRONG
    tlvs = []
    while rest:
        length = int.from_bytes(rest[1:3], 'big')
        if len(rest) < 3 + length:
            return WRONG
        tlvs.append((rest[0], rest[3 : 3 + length]))
        rest = rest[3 + length :]
    if not checksum_is_right(data[:size], 16 + len(block), tlvs):
        return WRONG
    source = address(family, block[:width], block[2 * width : 2 * width + 2])
    destination = address(family, block[width : 2 * width], block[-2:])
    kinds = {1: AF_INET, 2: AF_INET6, 3: AF_UNIX}[family], {1: SOCK_STREAM, 2: SOCK_DGRAM}[protocol]
    return Header('header', size, 2, 'PROXY', *kinds, source, destination, tlvs)


def address(family: int, host: bytes, port: bytes) -> Any:
    """Return an address in a form that can be compared."""
    if family == 3:
        return host.rstrip(b'\0') if host.startswith(b'\0') else host.split(b'\0')[0]
    return ip_address(host), int.from_bytes(port, 'big')


def checksum_is_right(header: bytes, at: int, tlvs: list[tuple[int, bytes]]) -> bool:
    """Return whether the CRC-32C of the header, with zeros in place of the checksum, is right (section 2.2.4).

    The reactor allows only one checksum.
    """
    found = [value for kind, value in tlvs if kind == 3]
    if not found:
        return True
    if len(found) > 1 or len(found[0]) != 4:
        return False
    for kind, value in tlvs:
        if kind == 3:
            break
        at += 3 + len(value)
    return castagnoli(header[: at + 3] + bytes(4) + header[at + 7 :]) == int.from_bytes(found[0], 'big')


def castagnoli(data: bytes) -> int:
    """Compute CRC-32C bit by bit, as a division of polynomials."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def comparable(end: Any) -> Any:
    """Convert an address of `conn.proxy` to the form of `address`. An IPv4-mapped IPv6 address becomes IPv4."""
    if end is None:
        return None
    if isinstance(end, str | bytes):
        return end.encode('utf-8', 'surrogateescape') if isinstance(end, str) else end
    host = end[0] if not isinstance(end[0], str) else ip_address(end[0])
    return getattr(host, 'ipv4_mapped', None) or host, end[1]


class Client(Seen):
    """A connection from the proxy, with the header and the peername that `on_connect` saw."""

    header: Any = None
    peername: Any = None

    def _connect(self) -> None:
        super()._connect()
        self.header, self.peername = self.conn.proxy, self.conn.peername


def run(data: bytes) -> None:
    """Send the payload in pieces, then the end of the stream, a reset, or nothing."""
    given = Input(data, NUMBERS)
    with Scene() as scene:
        client = Client(scene)
        names = ('on_connect', 'on_data', 'on_close')
        server = scene.r.listen_tcp('127.0.0.1', 0, proxy_protocol=['127.0.0.0/8'], **client.callbacks(*names))
        sock = scene.connect(server)
        for piece, misled in given.pieces(NUMBERS - 1):
            sock.arrive(piece, misled)
            scene.turn()
        scene.settle()
        how = ('end', 'reset', 'silence')[given.number(3)]
        meaning = reference(given.payload)
        check_before_the_end(client, meaning, given.payload)
        if how == 'silence':
            scene.wait(TIMEOUT + 0.1)
        else:
            getattr(sock, how)()
            scene.settle()
        check(client, meaning, given.payload, how)
        server.close()


def check_before_the_end(client: Client, meaning: Header, payload: bytes) -> None:
    """Before the peer's end, check that complete headers were accepted and that only invalid headers were refused."""
    if meaning.kind == 'header':
        assert client.connected, f'a header was not accepted: {payload!r}'
    if meaning.kind == 'part':
        assert not client.over, f'refused, but more bytes could make this a header: {payload!r}: {client.exc!r}'
    if meaning.kind == 'wrong':
        assert isinstance(client.exc, ProxyError) or not client.over, f'ended with {client.exc!r}'


def check(client: Client, meaning: Header, payload: bytes, how: str) -> None:
    """Compare the calls that were made to the callbacks with the specification."""
    if client.connected:
        assert meaning.kind in ('header', 'free'), f'{payload!r} was accepted as a header: {client.header!r}'
        check_header(client, meaning)
        assert client.received == payload[meaning.size :], (
            f'{bytes(client.received)!r} instead of {payload[meaning.size :]!r}'
        )
        assert client.over == (how != 'silence'), f'on_close was called {client.over} times after the {how}'
        clean = client.exc is None
        assert clean if how == 'end' else not isinstance(client.exc, ProxyError), f'{client.exc!r} after the {how}'
        return
    assert client.over, f'{payload!r} is not a header, but the connection is open after the {how}'
    assert not client.received, 'on_data without on_connect'
    if meaning.kind == 'part' and how == 'reset':
        assert isinstance(client.exc, ConnectionResetError), f'{client.exc!r} after a reset'
    elif meaning.kind == 'part' and how == 'silence':
        assert isinstance(client.exc, ProxyTimeout), f'{client.exc!r} after {TIMEOUT} s without the rest of a header'
    elif payload:
        assert isinstance(client.exc, ProxyError), f'{client.exc!r} for {payload!r}'
    else:
        assert client.exc is None, f'{client.exc!r} for a peer that ends without a byte'


def check_header(client: Client, meaning: Header) -> None:
    header = client.header
    ends = comparable(header.source), comparable(header.destination)
    assert header.version == meaning.version, header
    assert ends == (comparable(meaning.source), comparable(meaning.destination)), f'{header} instead of {meaning}'
    assert header.peername == client.peername, f'peername {client.peername}, header {header.peername}'
    assert client.peername == (header.source if header.source is not None else PROXY), client.peername
    if meaning.kind == 'header':
        expected = meaning.command, meaning.family, meaning.protocol
        assert (header.command, header.family, header.protocol) == expected, header
        assert meaning.tlvs is None or header.tlvs == meaning.tlvs, f'{header.tlvs} instead of {meaning.tlvs}'
