"""Differences between platforms, tested on simulated kernels and on the real kernel with a part replaced."""

from __future__ import annotations

import errno
import os
import socket
from socket import AF_INET, SOCK_STREAM, SOL_SOCKET

import pytest

from reactor import Limits, Reactor
from reactor.kernel import Kernel
from reactor.kernel.platforms import step_of_waits
from reactor.net.sockets import bound_tcp
from reactor.testing import SimKernel
from reactor.testing.platforms import KINDS
from tests.helpers.support import run_until, tcp_sockets

PLACE = '10.0.0.1', 80
HERE = '127.0.0.1'


def simulated(kind, **options):
    return SimKernel(0, selector=kind, faults=False, grain=0, **options)


# -- a BSD or macOS


@pytest.mark.parametrize(
    'options',
    [{}, {'limits': Limits(per_address=1)}, {'proxy_protocol': ['10.0.0.0/8']}],
    ids=['plain', 'limits', 'proxy_protocol'],
)
def test_a_client_that_is_gone_before_it_is_accepted_has_no_address_and_hurts_no_other_client(options):
    kernel = simulated('kqueue')
    ended, others = [], []
    failures = []
    with Reactor(kernel=kernel, catch_errors=lambda exc, handle: failures.append(exc)) as r:
        server = r.listen_tcp(*PLACE, on_close=lambda conn, exc: ended.append(exc), **options)
        server.pause()

        def abort(conn):
            conn.abort()
            r.call_later(1, server.resume)
            r.call_later(2, r.connect_tcp, *PLACE, None)

        r.connect_tcp(*PLACE, on_connect=abort)
        r.call_later(3, others.extend, [1])
        r.call_later(4, r.stop)
        r.run()
        assert not failures
        assert others and not server.closed
        assert server.open_connections <= 1


def test_in_a_fork_a_selector_whose_descriptor_was_not_inherited_can_be_closed():
    """A forked child does not inherit a kqueue, so closing it in the child fails."""

    class Gone(type(Kernel().selector())):
        def close(self):
            super().close()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    r = Reactor(selector=Gone())
    bell = r._wakeup
    r.close()
    assert bell.closed


# -- Windows


@pytest.mark.parametrize(
    ('system', 'resolution', 'step'),
    [('posix', 1e-9, 0.001), ('posix', 0.01, 0.01), ('nt', 0.015625, 0.016), ('nt', 1e-7, 0.016)],
    ids=['Linux', 'a coarse clock', 'Windows up to 3.12', 'Windows from 3.13 on'],
)
def test_a_wait_may_seem_short_by_a_tick_of_the_timer_that_ends_it(system, resolution, step):
    assert step_of_waits(system, resolution) == step


@pytest.mark.parametrize('seed', range(6))
def test_short_waits_on_windows_do_not_make_the_loop_replace_its_selector(seed):
    kernel = SimKernel(seed, selector='windows', faults=False, grain=0)
    with Reactor(kernel=kernel) as r:
        before = r.watchers.selector
        timer = r.call_every(0.0213, lambda: None)
        r.call_later(5, timer.cancel)
        r.run()
        assert r.watchers.selector is before
        assert not r.stats().stalls


def test_on_windows_a_port_in_use_cannot_be_shared():
    kernel = simulated('windows')
    sock = bound_tcp(kernel, *PLACE, reuse_port=False)
    sock.listen()
    assert sock.file.local == PLACE
    with pytest.raises(OSError, match='Address already in use'):
        bound_tcp(kernel, *PLACE, reuse_port=False)
    thief = kernel.socket(AF_INET, SOCK_STREAM)
    thief.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with pytest.raises(PermissionError):
        thief.bind(PLACE)


def test_on_windows_a_refused_connect_is_reported():
    ended = []
    with Reactor(kernel=simulated('windows')) as r:
        r.connect_tcp(*PLACE, on_close=lambda conn, exc: ended.append(type(exc)))
        r.run()
    assert ended == [ConnectionRefusedError]


def test_on_windows_an_icmp_error_does_not_close_the_socket_that_serves_all_clients():
    errors, got = [], []
    with Reactor(kernel=simulated('windows')) as r:
        server = r.bind_udp(
            *PLACE, lambda sock, data, address: got.append(data), on_send_error=lambda sock, exc: errors.append(exc)
        )
        r.call_soon(server.send, b'x', ('10.0.0.1', 9))
        client = r.bind_udp('10.0.0.1', 0)
        r.call_later(1, client.send, b'hello', PLACE)
        r.call_later(2, r.stop)
        r.run()
        assert not server.closed
    assert got == [b'hello']
    [exc] = errors
    assert isinstance(exc, ConnectionResetError)
    assert 'None' not in str(exc)


# -- everywhere


@pytest.mark.parametrize('kind', KINDS)
def test_a_reset_uses_the_linger_format_of_the_platform(kind):
    ended = []
    with Reactor(kernel=simulated(kind)) as r:
        server = r.listen_tcp(*PLACE, on_connect=lambda conn: conn.abort())
        r.connect_tcp(*PLACE, on_close=lambda conn, exc: (ended.append(type(exc)), server.close()))
        r.run()
    assert ended == [ConnectionResetError]


def test_a_lost_descriptor_whose_number_now_belongs_to_a_file_is_not_closed(r, sockets, tmp_path):
    """A send to the file fails with ENOTSOCK, the only error that Windows reports for a lost descriptor."""
    ours, _ = tcp_sockets(sockets)
    ended = []
    conn = r.adopt(ours, on_close=lambda conn, exc: ended.append(exc))
    number = conn.fileno()
    with open(tmp_path / 'precious', 'wb') as file:
        os.dup2(file.fileno(), number)  # dup2 closes the socket, and gives its number to the file
    conn.write(b'for the peer')
    run_until(r, lambda: ended)
    os.write(number, b'kept')
    os.close(number)
    assert (tmp_path / 'precious').read_bytes() == b'kept'
    assert ended[0].errno == errno.EBADF


def test_without_dual_stack_sockets_the_listener_is_for_ipv4():
    """OpenBSD has no dual-stack sockets, because IPV6_V6ONLY cannot be cleared there."""

    class Parted(socket.socket):
        def setsockopt(self, level, option, value):
            if (level, option, value) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            super().setsockopt(level, option, value)

    class OpenBSD(Kernel):
        def socket(self, family, kind, proto=0):
            return Parted(family, kind)

    with Reactor(kernel=OpenBSD()) as r:
        server = r.listen_tcp(None, 0)
        assert server.address[0] == '0.0.0.0'
        with socket.create_connection((HERE, server.address[1])):
            pass
        server.close()


def test_a_connect_that_is_writable_and_never_connected_ends(r):
    """SO_ERROR is 0 and getpeername keeps failing with ENOTCONN, because other code has read the error."""

    class Undecided(socket.socket):
        def getpeername(self):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    class Strange(Kernel):
        def socket(self, family, kind, proto=0):
            sock = Undecided(family, kind)
            sock.setblocking(False)
            return sock

    ended = []
    with socket.create_server((HERE, 0)) as server, Reactor(kernel=Strange()) as r:
        r.connect_tcp(*server.getsockname(), on_close=lambda conn, exc: ended.append(exc))
        r.run()
        assert r.stats().loop_count < 100
    assert ended[0].errno == errno.ENOTCONN
