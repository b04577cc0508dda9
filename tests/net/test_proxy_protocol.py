"""The PROXY protocol: the address of the client, trusted proxies, and headers that arrive in pieces."""

from __future__ import annotations

import errno
import gc
import logging
import socket
import ssl
import struct
import weakref
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reactor
from reactor import ProxyError, ProxyTimeout, Reactor, ReactorError
from reactor.admission.networks import Networks
from reactor.kernel import Kernel
from reactor.loop.timers import Timer, TimerHeap
from reactor.net.proxy_header import LONGEST_V1, SIGNATURE, crc32c, header_size, parse_header
from reactor.testing import SimKernel
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import FailingKernel, Log, drain, in_thread, reset, run_short, run_until, turns, turns_in

HERE = '127.0.0.1'
HOME = ['127.0.0.0/8', '::1/128']
KERNEL = Kernel()
LONGEST_V2 = 4096  # bytes: the longest version 2 header


def tlv(kind, value):
    return struct.pack('!BH', kind, len(value)) + value


def v2(command=1, family=0x11, body=b''):
    return SIGNATURE + struct.pack('!BBH', 0x20 | command, family, len(body)) + body


def ends4(source='192.0.2.1', sport=51234, destination='198.51.100.7', dport=443):
    return socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack('!HH', sport, dport)


def ends6(source='2001:db8::1', sport=51234, destination='2001:db8::7', dport=443):
    hosts = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return hosts + struct.pack('!HH', sport, dport)


def ends_unix(source, destination):
    return source.ljust(108, b'\0') + destination.ljust(108, b'\0')


def with_checksum(header):
    """Return the header with a correct checksum as its last TLV."""
    body = header[16:] + tlv(3, bytes(4))
    whole = v2(header[12] & 15, header[13], body)
    return whole[:-4] + struct.pack('!I', crc32c(whole))


V4 = (('192.0.2.1', 51234), ('198.51.100.7', 443))
V6 = (('2001:db8::1', 51234, 0, 0), ('2001:db8::7', 443, 0, 0))
TLVS = [(0x01, b'h2'), (0x02, b'example.org'), (0x04, b''), (0xE0, bytes(300))]
# Maps a name to a header and its contents: (version, command, family, (source, destination), TLVs).
HEADERS = {
    'v1-ipv4': (b'PROXY TCP4 192.0.2.1 198.51.100.7 51234 443\r\n', (1, 'PROXY', socket.AF_INET, V4, [])),
    'v1-ipv6': (b'PROXY TCP6 2001:DB8::1 2001:db8::7 51234 443\r\n', (1, 'PROXY', socket.AF_INET6, V6, [])),
    'v1-unknown': (b'PROXY UNKNOWN\r\n', (1, 'PROXY', 0, (None, None), [])),
    'v1-unknown-and-more': (b'PROXY UNKNOWN ' + b'x' * 91 + b'\r\n', (1, 'PROXY', 0, (None, None), [])),
    'v2-ipv4': (v2(body=ends4()), (2, 'PROXY', socket.AF_INET, V4, [])),
    'v2-ipv6': (v2(family=0x21, body=ends6()), (2, 'PROXY', socket.AF_INET6, V6, [])),
    'v2-udp': (v2(family=0x12, body=ends4()), (2, 'PROXY', socket.AF_INET, V4, [])),
    'v2-unix': (
        v2(family=0x31, body=ends_unix(b'/run/client', b'\0server')),
        (2, 'PROXY', socket.AF_UNIX, ('/run/client', b'\0server'), []),
    ),
    'v2-local': (v2(0, 0), (2, 'LOCAL', 0, (None, None), [])),
    'v2-local-with-addresses': (v2(0, 0x11, ends4()), (2, 'LOCAL', 0, (None, None), [])),
    'v2-unspecified': (v2(family=0, body=tlv(4, b'')), (2, 'PROXY', 0, (None, None), [(4, b'')])),
    'v2-tlvs': (
        v2(body=ends4() + b''.join(tlv(*one) for one in TLVS)),
        (2, 'PROXY', socket.AF_INET, V4, TLVS),
    ),
}
each_header = pytest.mark.parametrize('name', list(HEADERS))
BAD = {
    'http': b'GET / HTTP/1.1\r\n',
    'tls': b'\x16\x03\x01\x02\x00\x01',
    'an empty line': b'\r\n',
    'v1 without words': b'PROXY \r\n',
    'v1 of an unknown kind': b'PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n',
    'v1 in lower case': b'proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n',
    'v1 with one word too few': b'PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n',
    'v1 with one word too many': b'PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n',
    'v1 with two spaces': b'PROXY TCP4  1.2.3.4 1.2.3.4 1 1\r\n',
    'v1 with addresses of another family': b'PROXY TCP4 ::1 ::1 1 1\r\n',
    'v1 with a name': b'PROXY TCP4 localhost 1.2.3.4 1 1\r\n',
    'v1 with a NUL': b'PROXY TCP4 1.2.3.4\0 1.2.3.4 1 1\r\n',
    'v1 with a byte that is not ASCII': b'PROXY TCP4 \xff.2.3.4 1.2.3.4 1 1\r\n',
    'v1 with an address in octal': b'PROXY TCP4 1.2.3.04 1.2.3.4 1 1\r\n',
    'v1 with a port that is too high': b'PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n',
    'v1 with a port in octal': b'PROXY TCP4 1.2.3.4 1.2.3.4 1 01\r\n',
    'v1 with a signed port': b'PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n',
    'v1 that never ends': b'PROXY UNKNOWN ' + b'x' * 200,
    'v1 that ends a byte too late': b'PROXY UNKNOWN ' + b'x' * 92 + b'\r\n',
    'v2 of version 1': SIGNATURE + b'\x11\x11\0\0',
    'v2 with an unknown command': v2(2, 0x11, ends4()),
    'v2 with an unknown family': v2(1, 0x41, ends4()),
    'v2 with an unknown protocol': v2(1, 0x13, ends4()),
    'v2 too short for its addresses': v2(1, 0x11, ends4()[:-1]),
    'v2 with half a TLV': v2(1, 0x11, ends4() + b'\x04\0'),
    'v2 with a TLV that is longer than the rest': v2(1, 0x11, ends4() + b'\x04\0\x02a'),
    'v2 with a wrong checksum': v2(1, 0x11, ends4() + tlv(3, b'\1\2\3\4')),
    'v2 with a checksum of two bytes': v2(1, 0x11, ends4() + tlv(3, b'\1\2')),
    'v2 too long': v2(1, 0x11, ends4() + tlv(0xE1, bytes(LONGEST_V2 - 16 - 12 - 3 + 1))),
}


def listen(r, log=None, **options):
    """Make a listener that expects PROXY headers; return it and a list, to which `on_connect` adds each connection."""
    conns = []
    callbacks = {} if log is None else log.callbacks('on_data', 'on_close')

    def on_connect(conn):
        conns.append(conn)
        if log is not None:
            log.on_connect(conn)

    options.setdefault('proxy_protocol', HOME)
    return r.listen_tcp(HERE, 0, on_connect=on_connect, **{**callbacks, **options}), conns


def close_all(r, server, *conns):
    server.close()
    for conn in conns:
        conn.abort()
    run_until(r, lambda: not r.handles())
    turns(r, 1)


def taken(r, count):
    """Run until the reactor has received `count` bytes."""
    run_until(r, lambda: r.stats().bytes_in >= count)


# -- the client's address


@each_header
def test_the_contents_of_a_header_are_known_in_on_connect(r, sockets, name):
    header, (version, command, family, (source, destination), tlvs) = HEADERS[name]
    server, conns = listen(r)
    client = sockets.connect(server.address)
    client.send(header)
    run_until(r, lambda: conns)
    (conn,) = conns
    assert conn.peername == (source or client.getsockname())
    assert conn.sockname == server.address
    proxy = conn.proxy
    assert (proxy.version, proxy.command, proxy.family) == (version, command, family)
    assert (proxy.source, proxy.destination, proxy.tlvs) == (source, destination, tlvs)
    assert proxy.protocol == {'v2-udp': socket.SOCK_DGRAM}.get(name, socket.SOCK_STREAM if family else 0)
    assert f'v{version} {command}' in repr(proxy)
    assert type(conn) is reactor.Stream
    assert (r.stats().proxy_headers, r.stats().proxy_errors) == (1, 0)
    assert (r.stats().reads, r.stats().bytes_in) == (1, len(header))
    close_all(r, server, conn)


@pytest.mark.scenario(170)
@each_header
def test_a_header_that_is_cut_anywhere_loses_no_byte_of_the_data_after_it(r, sockets, name):
    header, (_, _, _, (source, _), _) = HEADERS[name]
    message = b'GET / HTTP/1.1\r\n\r\nPROXY '
    log = Log()
    server, conns = listen(r, log)
    step = 1 if len(header) < 120 else 17
    for cut in range(0, len(header) + 1, step):
        log.clear(), conns.clear()
        before = r.stats().bytes_in
        client = sockets.connect(server.address)
        client.send(header[:cut])
        taken(r, before + cut)
        assert (conns == []) == (cut < len(header))
        client.send(header[cut:] + message)
        run_until(r, lambda: len(log.received) == len(message))
        assert log.received == message
        assert log.names()[:2] == ['connect', 'data']
        assert conns[0].peername == (source or client.getsockname())
        client.close()
        run_until(r, lambda: 'close' in log.names())
        assert log.names().count('connect') == log.names().count('close') == 1
        assert log.received == message
    close_all(r, server)


@each_header
def test_a_header_that_arrives_byte_by_byte_is_read(r, sockets, name):
    header, (_, _, _, (source, _), _) = HEADERS[name]
    log = Log()
    server, conns = listen(r, log)
    client = sockets.connect(server.address)
    for count, byte in enumerate(header + b'hello', 1):
        client.send(bytes((byte,)))
        taken(r, count)
        assert bool(conns) == (count >= len(header))
    assert (conns[0].peername, log.received) == (source or client.getsockname(), b'hello')
    close_all(r, server, *conns)


def test_data_that_arrives_with_the_header_is_read_after_on_connect(r, sockets):
    log = Log()
    server, conns = listen(r, log)
    client = sockets.connect(server.address)
    run_until(r, lambda: server.open_connections)
    client.send(HEADERS['v2-ipv4'][0] + b'hello')
    before = r.stats().loop_count
    run_until(r, lambda: log)
    assert log == [('connect',), ('data', b'hello')]
    assert r.stats().loop_count <= before + 2
    close_all(r, server, *conns)


def test_a_deferred_accept_reads_the_header_and_the_data_after_it_at_once(r, sockets):
    log = Log()
    server, conns = listen(r, log, defer_accept=True)
    client = sockets.connect(server.address)
    client.send(HEADERS['v2-ipv4'][0] + b'hello')
    run_until(r, lambda: len(log) == 2)
    assert log == [('connect',), ('data', b'hello')]
    client.send(b'more')
    run_until(r, lambda: log.received == b'hellomore')
    close_all(r, server, *conns)


def test_after_a_deferred_accept_with_a_header_alone_data_may_come_later(r, sockets):
    log = Log()
    server, conns = listen(r, log, defer_accept=True)
    client = sockets.connect(server.address)
    client.send(HEADERS['v2-ipv4'][0])
    run_until(r, lambda: conns)
    client.send(b'hello')
    run_until(r, lambda: log.received == b'hello')
    close_all(r, server, *conns)


def test_a_mapped_ipv4_client_is_shown_as_ipv4(r, sockets):
    server, conns = listen(r)
    client = sockets.connect(server.address)
    client.send(v2(family=0x21, body=ends6('::ffff:192.0.2.1', 1, '::ffff:192.0.2.2', 2)))
    run_until(r, lambda: conns)
    assert conns[0].peername == ('192.0.2.1', 1)
    assert conns[0].proxy.destination == ('192.0.2.2', 2)
    close_all(r, server, *conns)


def test_other_connections_have_no_proxy(r, sockets):
    conns = []
    server = r.listen_tcp(HERE, 0, on_connect=conns.append)
    sockets.connect(server.address)
    run_until(r, lambda: conns)
    assert conns[0].proxy is None
    close_all(r, server, *conns)


def test_the_client_is_known_in_on_close(r, sockets):
    seen = []
    server, _ = listen(r, on_close=lambda conn, exc: seen.append((conn.peername, conn.proxy.tlvs)))
    client = sockets.connect(server.address)
    client.send(HEADERS['v2-tlvs'][0])
    client.close()
    run_until(r, lambda: seen)
    assert seen == [(V4[0], TLVS)]
    close_all(r, server)


def test_a_header_of_maximum_length_is_read(r, sockets):
    fill = LONGEST_V2 - 16 - len(ends4()) - 3
    log = Log()
    server, conns = listen(r, log)
    client = sockets.connect(server.address)
    client.send(v2(body=ends4() + tlv(0xE1, b'x' * fill)) + b'hello')
    run_until(r, lambda: log.received == b'hello')
    assert conns[0].proxy.tlvs == [(0xE1, b'x' * fill)]
    close_all(r, server, *conns)


def test_a_correct_checksum_is_accepted(r, sockets):
    server, conns = listen(r)
    for name in 'v2-ipv4', 'v2-tlvs':
        sockets.connect(server.address).send(with_checksum(HEADERS[name][0]))
    run_until(r, lambda: len(conns) == 2)
    assert [conn.proxy.tlvs[-1][0] for conn in conns] == [3, 3]
    close_all(r, server, *conns)


def test_the_checksum_is_crc32c():
    assert crc32c(b'123456789') == 0xE3069283


# -- invalid headers


@pytest.mark.scenario(171)
@pytest.mark.parametrize('name', list(BAD))
def test_an_invalid_header_ends_the_connection_before_on_connect(r, sockets, name, caplog):
    caplog.set_level(logging.WARNING)
    log = Log()
    server, _ = listen(r, log)
    client = sockets.connect(server.address)
    client.send(BAD[name] + b'and more')
    run_until(r, lambda: log)
    assert log.names() == ['close']
    assert type(log[0][1]) is ProxyError
    assert f'127.0.0.1:{client.getsockname()[1]} was reset' in str(log[0][1])
    assert (r.stats().proxy_errors, r.stats().proxy_headers, r.stats().incoming) == (1, 0, 0)
    assert len(caplog.records) == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    close_all(r, server)


@pytest.mark.scenario(171)
def test_a_late_header_ends_the_connection(kernel, fake, sockets, caplog):
    log = Log()
    server, _ = listen(fake, log, proxy_timeout=3)
    began = kernel.time
    client = sockets.connect(server.address)
    client.send(b'PROXY TCP4 ')
    fake.run_once(0)
    fake.run_once(0)
    client.send(b'192.0.2.1')
    while not log:
        fake.run_once()
    assert log.names() == ['close']
    assert type(log[0][1]) is ProxyTimeout
    assert isinstance(log[0][1], TimeoutError)
    assert 3 <= kernel.time - began < 3.1
    assert fake.stats().proxy_errors == 1
    server.close()


def test_the_default_timeout_for_a_header_is_ten_seconds(kernel, fake, sockets):
    log = Log()
    server, _ = listen(fake, log)
    began = kernel.time
    sockets.connect(server.address)
    run_until(fake, lambda: log)
    assert type(log[0][1]) is ProxyTimeout
    assert 10 <= kernel.time - began < 10.1
    server.close()


def test_a_header_in_time_stops_the_timeout(kernel, fake, sockets):
    log = Log()
    server, conns = listen(fake, log, proxy_timeout=3, idle_timeout=50)
    client = sockets.connect(server.address)
    client.send(HEADERS['v1-ipv4'][0])
    while not conns:
        fake.run_once()
    began = kernel.time
    while 'close' not in log.names():
        fake.run_once()
    assert type(log[-1][1]) is reactor.IdleTimeout
    assert 50 <= kernel.time - began < 52
    server.close()


def test_a_header_that_is_cut_short_is_an_error(r, sockets):
    log = Log()
    server, _ = listen(r, log)
    client = sockets.connect(server.address)
    client.send(b'PROXY TC')
    client.close()
    run_until(r, lambda: log)
    assert log.names() == ['close']
    assert 'in the middle of its header' in str(log[0][1])
    close_all(r, server)


@pytest.mark.scenario(172)
def test_health_checks_that_connect_and_close_are_not_logged(r, sockets, caplog):
    caplog.set_level(logging.INFO)
    log = Log()
    server, _ = listen(r, log)
    for _ in range(5):
        sockets.connect(server.address).close()
    run_until(r, lambda: len(log) == 5)
    assert log == [('close', None)] * 5
    for _ in range(5):
        reset(sockets.connect(server.address))
    run_until(r, lambda: len(log) == 10)
    assert log.names() == ['close'] * 10
    assert {getattr(exc, 'errno', None) for _, exc in log[5:]} == {errno.ECONNRESET}
    assert (r.stats().proxy_errors, caplog.records) == (0, [])
    close_all(r, server)


@pytest.mark.scenario(172)
def test_health_checks_that_send_a_local_header_and_reset_are_not_logged(r, sockets, caplog):
    caplog.set_level(logging.INFO)
    log = Log()
    server, _ = listen(r, log)
    for name in 'v2-local', 'v1-unknown':
        client = sockets.connect(server.address)
        client.send(HEADERS[name][0])
        run_until(r, lambda: server.open_connections)
        reset(client)
        run_until(r, lambda: not server.open_connections)
    turns(r, 1)
    assert log.names().count('close') == 2
    assert caplog.records == []
    close_all(r, server)


@pytest.mark.scenario(171)
def test_a_partial_header_does_not_make_the_loop_spin(r, sockets):
    server, _ = listen(r)
    for part in b'PROXY TCP4 1', SIGNATURE[:5], HEADERS['v2-tlvs'][0][:-1]:
        sockets.connect(server.address).send(part)
    run_until(r, lambda: server.open_connections == 3)
    turns(r, 3)
    assert turns_in(r) < 5
    server.close()
    for conn in r.handles():
        conn.abort()
    turns(r, 2)


@pytest.mark.scenario(171)
def test_many_invalid_headers_are_logged_as_one_line_a_second(kernel, fake, sockets, caplog):
    caplog.set_level(logging.WARNING)
    log = Log()
    server, _ = listen(fake, log)
    for second in range(3):
        for _ in range(20):
            sockets.connect(server.address).send(b'GET / HTTP/1.1\r\n\r\n')
        while len(log) < 20 * (second + 1):
            fake.run_once(0)
        kernel.time += 1
    assert len(caplog.records) == 3
    assert fake.stats().proxy_errors == 60
    server.close()


# -- trusted proxies


@pytest.mark.scenario(173)
def test_only_the_given_networks_are_trusted(r, sockets, caplog):
    caplog.set_level(logging.WARNING)
    log = Log()
    server, _ = listen(r, log, proxy_protocol=['10.0.0.0/8', '127.0.0.2/32'])
    for _ in range(10):
        client = sockets.connect(server.address)
        client.send(HEADERS['v1-ipv4'][0] + b'hello')
        run_until(r, lambda: r.stats().refused_untrusted)
    run_until(r, lambda: r.stats().refused_untrusted == 10)
    turns(r, 2)
    assert (log, server.open_connections, r.stats().accepts) == ([], 0, 0)
    assert len(caplog.records) == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    friend = sockets.track(socket.socket())
    friend.bind(('127.0.0.2', 0))
    friend.connect(server.address)
    friend.send(HEADERS['v1-ipv4'][0] + b'hello')
    run_until(r, lambda: log.received == b'hello')
    friend.close()
    close_all(r, server)


def test_an_untrusted_client_that_has_reset_already_is_harmless(r, sockets):
    server, _ = listen(r, proxy_protocol=['10.0.0.0/8'])
    reset(sockets.connect(server.address))
    run_until(r, lambda: r.stats().refused_untrusted == 1)
    close_all(r, server)


def test_a_refused_socket_is_closed_even_if_setting_its_options_fails():
    kernel = FailingKernel('setsockopt', errno.EINVAL, 10**6)
    with Reactor(kernel=kernel) as r:
        r.listen_tcp('10.0.0.1', 80, proxy_protocol=['192.168.0.0/16'])
        r.connect_tcp('10.0.0.1', 80)
        kernel.count = 1
        run_until(r, lambda: r.stats().refused_untrusted)
        assert kernel.count < 0  # setsockopt has failed once, as planned


def test_ipv6_and_mapped_ipv4_peers_are_compared_with_the_networks_of_their_own_family(r, sockets):
    conns = []
    server = r.listen_tcp(None, 0, on_connect=conns.append, proxy_protocol=['127.0.0.0/8', '::1/128'])
    port = server.address[1]
    for host in HERE, '::1':
        sockets.connect((host, port)).send(HEADERS['v2-ipv6'][0])
    run_until(r, lambda: len(conns) == 2)
    assert {conn.peername for conn in conns} == {V6[0]}
    close_all(r, server, *conns)


def address(host):
    return (host, 1, 0, 0) if ':' in host else (host, 1)


@pytest.mark.parametrize(
    ('networks', 'inside', 'outside'),
    [
        (['0.0.0.0/0'], ['1.2.3.4', '::ffff:1.2.3.4'], ['::1']),
        (['10.0.0.0/8'], ['10.255.255.255', '10.0.0.0'], ['11.0.0.0', '9.255.255.255', '::a00:1']),
        (['10.1.2.3'], ['10.1.2.3'], ['10.1.2.2', '10.1.2.4']),
        (['10.1.2.4/30'], ['10.1.2.7'], ['10.1.2.8', '10.1.2.3']),
        (['2001:db8::/32'], ['2001:db8:ffff::1'], ['2001:db9::', '32.1.13.184']),
        (['fe80::/10'], ['fe80::1%eth0'], ['ff80::1']),
        (['::/0'], ['::1'], ['1.2.3.4']),
        (['::ffff:10.0.0.0/104'], ['10.1.2.3', '::ffff:10.1.2.3'], ['11.0.0.0', '::a00:1', '::ffff:11.0.0.1']),
        (['::ffff:a01:203'], ['10.1.2.3'], ['10.1.2.4']),
        (['::ffff:0:0/96'], ['10.1.2.3', '255.255.255.255'], ['::1']),
        (['10.0.0.0/8', '::1'], ['10.1.1.1', '::1'], ['::2']),
        ([], [], ['10.0.0.1', '::1']),
    ],
)
def test_a_network_has_the_addresses_of_its_prefix(networks, inside, outside):
    found = Networks(KERNEL, networks)
    assert [host for host in inside if address(host) not in found] == []
    assert [host for host in outside if address(host) in found] == []
    assert '' not in found
    assert '/run/a' not in found


@pytest.mark.parametrize(
    'text', ['', 'localhost', '10.0.0.0/33', '10.0.0.0/', '10.0.0.0/-1', '10.0.0.0/x', '10/8', '10.0.0.1/8', '::1/129',
             '::2/127/1', '10.0.0.0/²', ':', '10.0.0.0\0/8'],
)  # fmt: skip
def test_an_invalid_network_raises_at_the_call(r, text):
    with pytest.raises(ValueError, match=r'network|bits beyond'):
        r.listen_tcp(HERE, 0, proxy_protocol=[text])


def test_a_mapped_ipv4_network_matches_ipv4_proxies(r, sockets):
    conns = []
    server = r.listen_tcp(HERE, 0, on_connect=conns.append, proxy_protocol=['::ffff:127.0.0.0/104'])
    client = sockets.connect(server.address)
    client.send(b'PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\n')
    run_until(r, lambda: conns)
    assert conns[0].peername == ('192.0.2.1', 1000)
    conns[0].abort()
    server.close()
    turns(r, 2)


@pytest.mark.parametrize('networks', [[], (), set()])
def test_an_empty_list_of_networks_is_refused_because_every_client_would_be_reset(r, networks):
    with pytest.raises(ValueError, match='proxy_protocol'):
        r.listen_tcp(HERE, 0, proxy_protocol=networks)


@pytest.mark.parametrize(('value', 'error'), [(True, TypeError), ('10.0.0.0/8', TypeError), ([b'::1'], TypeError)])
def test_on_tcp_the_networks_of_the_proxies_are_required(r, value, error):
    with pytest.raises(error, match='network'):
        r.listen_tcp(HERE, 0, proxy_protocol=value)


def test_a_wrong_timeout_raises_at_the_call(r):
    with pytest.raises(ValueError, match='proxy_timeout'):
        r.listen_tcp(HERE, 0, proxy_protocol=HOME, proxy_timeout=-1)


def test_on_a_unix_socket_every_client_is_trusted(r, sockets, tmp_path):
    conns = []
    path = str(tmp_path / 's')
    server = r.listen_unix(path, on_connect=conns.append, proxy_protocol=True)
    for name in 'v2-ipv4', 'v2-local':
        client = sockets.track(socket.socket(socket.AF_UNIX))
        client.connect(path)
        client.send(HEADERS[name][0])
    run_until(r, lambda: len(conns) == 2)
    assert [conn.peername for conn in conns] == [V4[0], '']
    close_all(r, server, *conns)
    with pytest.raises(TypeError, match='True'):
        r.listen_unix(path, proxy_protocol=['10.0.0.0/8'])


# -- TLS after the header


@pytest.mark.scenario(170)
@pytest.mark.parametrize('name', ['v1-ipv4', 'v2-tlvs'])
@pytest.mark.parametrize('cut', [0, 7, -1, None])
def test_tls_begins_after_the_header(r, sockets, certificates, name, cut):  # noqa: F811
    header = HEADERS[name][0]
    log = Log()
    server, conns = listen(r, log, ssl=certificates.server())
    client = sockets.connect(server.address)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.client().wrap_bio(incoming, outgoing, server_hostname='localhost')
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    whole = header + outgoing.read()
    client.send(whole[:cut])
    taken(r, len(whole[:cut]))
    client.send(b'' if cut is None else whole[cut:])

    def shaken():
        incoming.write(drain(client))
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    run_until(r, shaken)
    tls.write(b'secret')
    client.send(outgoing.read())
    run_until(r, lambda: log.received == b'secret')
    (conn,) = conns
    assert (conn.peername, conn.tls.version) == (V4[0], 'TLSv1.3')
    assert log.names()[0] == 'connect'
    close_all(r, server, conn)


def test_the_error_of_a_handshake_after_a_header_names_the_client(r, sockets, certificates):  # noqa: F811
    log = Log()
    server, _ = listen(r, log, ssl=certificates.server())
    client = sockets.connect(server.address)
    client.send(HEADERS['v1-ipv4'][0] + b'GET / HTTP/1.1\r\n\r\n')
    run_until(r, lambda: log)
    assert log.names() == ['close']
    assert isinstance(log[0][1], reactor.TLSError)
    assert '192.0.2.1:51234' in str(log[0][1])
    close_all(r, server)


# -- connections that are waiting for their header


def waiting(r, server):
    run_until(r, lambda: server.open_connections)
    return next(handle for handle in r.handles() if handle is not server)


def test_nothing_is_written_before_the_header_is_read(r, sockets):
    log = Log()
    server, conns = listen(r, log)
    client = sockets.connect(server.address)
    conn = waiting(r, server)
    assert conn.write(b'x') is False
    assert conn.writelines([b'x']) is False
    conn.write_eof()
    assert (conn.buffered, conn.state, conn.proxy) == (0, 'CONNECTING', None)
    assert any('waits for its PROXY header' in line for line in r.why_alive())
    assert conn.peername == client.getsockname()
    client.send(HEADERS['v2-ipv4'][0])
    run_until(r, lambda: conns)
    assert conns == [conn]
    assert conn.peername == V4[0]
    conn.write(b'hello')
    assert drain(client) == b'hello'
    close_all(r, server, conn)


def test_reading_can_be_paused_before_the_header_is_read(r, sockets, certificates):  # noqa: F811
    for context in None, certificates.server():
        log = Log()
        server, conns = listen(r, log, ssl=context)
        client = sockets.connect(server.address)
        conn = waiting(r, server)
        conn.pause_reading()
        conn.resume_reading()
        conn.pause_reading()
        client.send(HEADERS['v2-ipv4'][0] + b'hello')
        if context is None:
            run_until(r, lambda conns=conns: conns)
            turns(r, 3)
            assert log.names() == ['connect']
            conn.resume_reading()
            run_until(r, lambda log=log: log.received == b'hello')
        conn.abort()
        conn.pause_reading()
        conn.resume_reading()
        close_all(r, server)


@pytest.mark.parametrize('how', ['close', 'abort'])
def test_a_connection_can_be_closed_before_its_header_is_read(r, sockets, how):
    log = Log()
    server, _ = listen(r, log)
    client = sockets.connect(server.address)
    client.send(b'PROXY')
    conn = waiting(r, server)
    taken(r, 5)
    getattr(conn, how)()
    conn.pause_reading()
    conn.resume_reading()
    turns(r, 1)
    assert log == [('close', None)]
    assert conn.tls is None
    close_all(r, server)


def test_in_debug_mode_a_connection_is_a_checked_stream_after_its_header(sockets):
    with Reactor(debug=True) as r:
        server, conns = listen(r)
        sockets.connect(server.address).send(HEADERS['v2-ipv4'][0])
        run_until(r, lambda: conns)
        assert type(conns[0]).__name__ == 'CheckedStream'


@pytest.mark.parametrize('call', ['close', 'abort', 'write_eof', 'pause_reading', 'resume_reading', 'set_timeouts'])
def test_in_debug_mode_a_connection_that_waits_for_its_header_checks_the_thread(sockets, call):
    errors = []

    def call_elsewhere(r, server):
        (conn,) = (handle for handle in r.handles() if handle is not server)
        with pytest.raises(ReactorError, match='another thread'):
            in_thread(getattr(conn, call))
        errors.append(conn.closed)

    with Reactor(debug=True) as r:
        server, _ = listen(r)
        sockets.connect(server.address)
        run_until(r, lambda: server.open_connections)
        r.call_soon(call_elsewhere, r, server)
        run_until(r, lambda: errors)
    assert errors == [False]


# -- other events


def test_max_connections_counts_connections_that_wait_for_their_header(r, sockets):
    server, conns = listen(r, max_connections=1)
    first, second = sockets.connect(server.address), sockets.connect(server.address)
    run_until(r, lambda: server.open_connections)
    turns(r, 2)
    assert server.open_connections == 1
    first.close()
    second.send(HEADERS['v1-ipv4'][0])
    run_until(r, lambda: conns)
    close_all(r, server, *conns)


def test_a_spurious_readability_is_ignored():
    for count in 1, 2:
        kernel = FailingKernel('recv', errno.EAGAIN, 10**6)
        with Reactor(kernel=kernel) as r:
            conns = []
            server = r.listen_tcp('10.0.0.1', 80, on_connect=conns.append, proxy_protocol=['0.0.0.0/0'])
            client = r.connect_tcp('10.0.0.1', 80)
            client.write(HEADERS['v2-ipv4'][0])
            run_until(r, lambda server=server: server.open_connections)
            kernel.count = count
            run_until(r, lambda conns=conns: conns)
            assert kernel.count < 0  # recv has failed, as planned
            assert conns[0].peername == V4[0]


def test_a_header_that_is_received_in_parts_is_read_completely():
    for seed in range(20):
        with Reactor(kernel=SimKernel(seed, faults=('recv.short', 'send.short', 'recv.spurious'))) as r:
            log = Log()
            server, conns = listen_there(r, log)
            client = r.connect_tcp('10.0.0.1', 80)
            client.write(HEADERS['v2-tlvs'][0] + b'hello')
            run_until(r, lambda log=log: log.received == b'hello')
            assert conns[0].peername == V4[0]
            server.close()


def listen_there(r, log):
    conns = []

    def on_connect(conn):
        conns.append(conn)

    server = r.listen_tcp(
        '10.0.0.1', 80, on_connect=on_connect, **log.callbacks('on_data', 'on_close'), proxy_protocol=['0.0.0.0/0']
    )
    return server, conns


def test_closed_connections_are_freed_without_the_collector(r, sockets):
    freed = []

    class Data:
        pass

    def on_connect(conn):
        conn.data = Data()
        freed.append(weakref.ref(conn.data))
        freed.append(weakref.ref(conn))
        conn.close()

    server = r.listen_tcp(HERE, 0, on_connect=on_connect, proxy_protocol=HOME)
    gc.disable()
    try:
        for bytes_ in HEADERS['v2-tlvs'][0], BAD['http'], b'PROXY ':
            client = sockets.connect(server.address)
            client.send(bytes_)
            run_until(r, lambda: server.open_connections)
            freed.extend(weakref.ref(handle) for handle in r.handles() if handle is not server)
            client.close()
            run_until(r, lambda: not server.open_connections)
            turns(r, 2)
        assert [ref() for ref in freed] == [None] * len(freed)
        assert len(freed) >= 4
    finally:
        gc.enable()
    close_all(r, server)


# -- random input

whole_headers = st.sampled_from([header for header, _ in HEADERS.values()] + list(BAD.values()))


@st.composite
def openings(draw):
    """Draw the first bytes of a connection: a header, a header with a few changed bytes, or random bytes."""
    data = bytearray(draw(whole_headers) if draw(st.integers(0, 9)) else draw(st.binary(max_size=600)))
    for _ in range(draw(st.sampled_from((0, 0, 1, 3)))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(st.binary(max_size=40))


def expected(data):
    """Return the data that has to be delivered for these bytes and EOF, or None if they have to cause an error."""
    for end in range(1, len(data) + 1):
        try:
            size = header_size(data[:end])
        except ValueError:
            return None
        assert size >= end or size == header_size(data[:size])
        if size == end:
            try:
                parse_header(KERNEL, data[:size])
            except ValueError:
                return None
            return data[size:]
    return None


@pytest.mark.scenario(170)
@given(openings(), st.lists(st.integers(1, 700), max_size=6), st.integers(0, 2**32))
def test_any_bytes_in_any_pieces_are_a_client_or_an_error(data, cuts, seed):
    errors = []
    kernel = SimKernel(seed, faults=('recv.short', 'recv.spurious', 'select.spurious'))
    with Reactor(kernel=kernel, catch_errors=lambda exc, handle: errors.append(exc)) as r:
        log = Log()
        _, conns = listen_there(r, log)
        client = r.connect_tcp('10.0.0.1', 80)
        borders = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
        for turn, (begin, end) in enumerate(pairwise(borders)):
            r.call_later(turn, send, client, data[begin:end], end == len(data))
        run_until(r, lambda: 'close' in log.names())
        rest = expected(data)
        assert len(conns) == (rest is not None)
        assert log.received == (rest or b'')
        assert log.names().count('close') == 1
        exc = log[-1][1]
        assert exc is None if rest is not None or not data else type(exc) is ProxyError
    assert not errors


def send(client, data, last):
    if not client.closed:
        client.write(data)
        if last:
            client.write_eof()


def test_a_version_1_header_has_at_most_107_bytes():
    longest = b'PROXY TCP6 ' + b' '.join([b'ffff:' * 7 + b'ffff'] * 2) + b' 65535 65535\r\n'
    assert len(longest) == 104 < LONGEST_V1
    assert header_size(longest + b'x') == 104


# -- no memory


def test_a_header_timer_that_could_not_be_cancelled_without_memory_does_nothing(kernel, fake, sockets, monkeypatch):
    log = Log()
    server, _ = listen(fake, log, proxy_timeout=3)
    client = sockets.connect(server.address)
    turns(fake, 2)
    (conn,) = (handle for handle in fake.handles() if handle is not server)
    run_short(monkeypatch, Timer, 'cancel')
    conn.abort()
    turns(fake, 2)
    assert log == [('close', None)]
    kernel.time += 5
    turns(fake, 3)
    assert log == [('close', None)]
    assert (fake.stats().proxy_errors, fake.stats().callback_errors) == (0, 0)
    assert len(fake.timers) == 0
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    server.close()


def test_a_client_without_memory_for_its_header_timer_is_closed_and_the_next_is_served(fake, sockets, monkeypatch):
    server, conns = listen(fake)
    refused = sockets.connect(server.address)
    run_short(monkeypatch, TimerHeap, 'unreferenced_later')
    turns(fake, 2)
    assert drain(refused) == b''
    assert fake.stats().accepts_refused == 1
    sockets.connect(server.address).send(HEADERS['v1-ipv4'][0])
    while not conns:
        fake.run_once()
    close_all(fake, server, *conns)
