"""Datagram sockets: a callback per datagram, bounded queues, and errors that leave the socket open."""

from __future__ import annotations

import errno
import gc
import logging
import random
import selectors
import socket
import struct
import sys
import threading
import weakref
from itertools import pairwise
from socket import AF_INET, AF_INET6, SOCK_DGRAM
from typing import Any

import pytest

import reactor
from reactor import DatagramSocket, HandleClosed, Reactor, ReactorError, ResolveError, SelectorFull
from reactor.kernel import Kernel
from reactor.kernel.platforms import AF_UNIX, SO_MEMINFO, SO_REUSEPORT
from reactor.loop.watcher import Watchers
from reactor.net import datagram
from reactor.net.datagram_sending import DATAGRAM_COST, DATAGRAMS_PER_TURN, LONGEST_IPV4, LONGEST_IPV6
from tests.helpers.support import (
    FailingKernel,
    FakeKernel,
    Log,
    ManyAddresses,
    idle,
    in_thread,
    run_short,
    run_until,
    turns,
    uncallable,
)
from tests.net.test_sockets import needs_ipv6
from tests.project.test_shape import frames_since

HERE = '127.0.0.1'
GROUP = '239.255.7.7'
GROUP6 = 'ff01::7:7'  # interface-local scope: datagrams to this group never leave the machine
LOOPBACK = next((name for _, name in getattr(socket, 'if_nameindex', list)() if name in ('lo', 'lo0')), None)

needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')
needs_loopback = pytest.mark.skipif(LOOPBACK is None, reason='this machine has no interface called lo or lo0')


class DatagramLog(Log):
    """Records the callbacks of a datagram socket in the order in which they are called."""

    def on_datagram(self, sock: DatagramSocket, data: bytes, address: Any) -> None:
        self.append(('datagram', data))
        self.last = address

    def on_send_error(self, sock: DatagramSocket, exc: OSError) -> None:
        self.append(('send error', exc.errno))
        self.last = exc

    def all(self) -> dict[str, Any]:
        return self.callbacks('on_datagram', 'on_send_error', 'on_drain', 'on_close')

    def datagrams(self) -> list[bytes]:
        return [entry[1] for entry in self if entry[0] == 'datagram']


@pytest.fixture
def log() -> DatagramLog:
    return DatagramLog()


@pytest.fixture
def udp(sockets: Any):
    """Make plain UDP sockets that block up to a time limit and are closed after the test."""

    def make(host: str = HERE, port: int = 0) -> socket.socket:
        sock = sockets.track(socket.socket(AF_INET6 if ':' in host else AF_INET, SOCK_DGRAM))
        sock.bind((host, port))
        sock.settimeout(10)
        return sock

    return make


@pytest.fixture
def unused() -> tuple[str, int]:
    """An address of this machine to which no socket is bound."""
    with socket.socket(AF_INET, SOCK_DGRAM) as sock:
        sock.bind((HERE, 0))
        return sock.getsockname()


def echo(sock: DatagramSocket, data: bytes, address: Any) -> None:
    sock.send(data, address)


def boom(*args: Any) -> None:
    raise ZeroDivisionError


def end(r: Reactor, *handles: Any) -> None:
    """Close handles that a test left open, and run the turns in which `on_close` is called."""
    for handle in handles:
        handle.close()
    turns(r, 2)


# -- receiving and answering


def test_a_datagram_arrives_with_the_senders_address(r, udp):
    sock, client = r.bind_udp(HERE, 0, echo), udp()
    client.sendto(b'hello', sock.address)
    run_until(r, lambda: r.stats().datagrams_out)
    assert client.recvfrom(100) == (b'hello', sock.address)
    end(r, sock)


@pytest.mark.scenario(97)
def test_each_datagram_is_delivered_separately_even_if_it_is_empty(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, log.on_datagram), udp()
    for data in b'', b'a', b'', b'bc':
        client.sendto(data, sock.address)
    run_until(r, lambda: len(log) == 4)
    assert log.datagrams() == [b'', b'a', b'', b'bc']
    assert log.last == client.getsockname()
    end(r, sock)


@pytest.mark.scenario(97)
def test_an_empty_datagram_can_be_sent(r, udp):
    sock, client = r.bind_udp(HERE, 0), udp()
    assert sock.send(b'', client.getsockname()) is True
    assert client.recv(100) == b''
    end(r, sock)


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview])
def test_any_bytes_can_be_sent(r, udp, kind):
    sock, client = r.bind_udp(HERE, 0), udp()
    assert sock.send(kind(b'abc'), client.getsockname())
    assert client.recv(100) == b'abc'
    with pytest.raises(TypeError):
        sock.send('abc', client.getsockname())
    end(r, sock)


def test_the_longest_datagram_arrives_whole(r, log):
    one, other = r.bind_udp(HERE, 0), r.bind_udp(HERE, 0, log.on_datagram)
    data = random.randbytes(LONGEST_IPV4)
    assert one.send(data, other.address)
    run_until(r, lambda: log)
    assert log.datagrams() == [data]
    end(r, one, other)


@pytest.mark.scenario(97)
def test_a_datagram_that_is_too_long_raises_at_the_call_and_the_next_is_sent(r, udp):
    sock, client = r.bind_udp(HERE, 0), udp()
    with pytest.raises(ValueError, match='65507 bytes here, not 65508'):
        sock.send(bytes(LONGEST_IPV4 + 1), client.getsockname())
    assert sock.send(b'x', client.getsockname())
    assert client.recv(100) == b'x'
    assert not r.stats().datagram_errors
    end(r, sock)


def test_without_on_datagram_datagrams_are_read_and_dropped(r, udp):
    sock, client = r.bind_udp(HERE, 0), udp()
    client.sendto(b'x', sock.address)
    run_until(r, lambda: r.stats().datagrams_in)
    assert idle(r)
    end(r, sock)


def test_callbacks_can_be_replaced_at_any_time(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, boom), udp()
    sock.on_datagram = log.on_datagram
    client.sendto(b'x', sock.address)
    run_until(r, lambda: log)
    end(r, sock)


@pytest.mark.scenario(98)
def test_garbage_is_delivered_and_never_logged(r, udp, log, caplog):
    sock, client = r.bind_udp(HERE, 0, log.on_datagram), udp()
    sent = [random.randbytes(random.randrange(1500)) for _ in range(50)]
    for data in sent:
        client.sendto(data, sock.address)
    run_until(r, lambda: len(log) == 50)
    assert log.datagrams() == sent
    assert not caplog.records
    end(r, sock)


def test_one_frame_lies_between_the_dispatch_and_on_datagram(r, udp):
    seen = []
    sock, client = r.bind_udp(HERE, 0, lambda *args: seen.append(frames_since('_dispatch'))), udp()
    client.sendto(b'x', sock.address)
    run_until(r, lambda: seen)
    assert seen == [['DatagramSocket.handle_read']]
    end(r, sock)


# -- bounded turns and queues


@pytest.mark.scenario(98)
def test_a_flood_is_delivered_in_bounded_parts_and_other_handles_get_their_turn(r, udp, log):
    other = DatagramLog()
    sock, quiet, client = r.bind_udp(HERE, 0, log.on_datagram), r.bind_udp(HERE, 0, other.on_datagram), udp()
    for number in range(100):
        client.sendto(b'%d' % number, sock.address)
    client.sendto(b'me too', quiet.address)
    r.run_once(0)
    assert len(log) == DATAGRAMS_PER_TURN == 32 and len(other) == 1
    r.run_once(0)
    assert len(log) == 64
    run_until(r, lambda: len(log) == 100)
    assert log.datagrams() == [b'%d' % number for number in range(100)]
    end(r, sock, quiet)


@pytest.mark.scenario(98)
@pytest.mark.skipif(SO_MEMINFO < 0, reason='this kernel does not count the datagrams that it drops')
def test_the_datagrams_that_the_kernel_dropped_in_a_flood_are_counted(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, log.on_datagram), udp()
    sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert sock.kernel_drops == 0
    for _ in range(200):
        client.sendto(bytes(500), sock.address)
    assert sock.kernel_drops > 0
    dropped = sock.kernel_drops
    run_until(r, lambda: len(log) == 200 - dropped)
    end(r, sock)
    assert sock.kernel_drops is None


def unix_pair(sockets: Any) -> tuple[socket.socket, socket.socket]:
    """Make two connected Unix datagram sockets: unlike UDP sockets, they report that the receiver's queue is full."""
    ours, theirs = socket.socketpair(AF_UNIX, SOCK_DGRAM)
    for sock in ours, theirs:
        sockets.track(sock).setblocking(False)
    return ours, theirs


def fill(sock: DatagramSocket, first: int = 0, size: int = 100) -> int:
    """Send numbered datagrams until one of them has to be queued; return the next number."""
    number = first
    while not sock.queued:
        assert sock.send(b'%0*d' % (size, number))
        number += 1
    return number


def take(sock: socket.socket) -> list[int]:
    """Receive all datagrams that are waiting in a plain socket; return their numbers."""
    numbers = []
    try:
        while True:
            numbers.append(int(sock.recv(65536)))
    except BlockingIOError:
        return numbers


@pytest.mark.scenario(99)
@needs_unix
def test_datagrams_that_the_kernel_cannot_take_wait_in_order(r, sockets, log):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, **log.all())
    count = fill(sock)
    for number in range(count, count + 50):
        assert sock.send(bytearray(b'%0100d' % number))
    assert sock.queued == 51 and sock.buffered == 5100
    assert idle(r)
    received: list[int] = []
    run_until(r, lambda: received.extend(take(theirs)) or len(received) == count + 50)
    assert received == list(range(count + 50))
    turns(r, 2)
    assert sock.queued == sock.buffered == 0
    assert log == []  # every `send` returned True, so `on_drain` is not called
    assert r.stats().datagrams_out == count + 50
    end(r, sock)


@pytest.mark.scenario(99)
@needs_unix
def test_beyond_the_limit_the_newest_is_dropped_and_on_drain_is_called_when_there_is_room(r, sockets, log):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, max_queued=10 * (100 + DATAGRAM_COST), **log.all())
    count = fill(sock)
    for number in range(count, count + 9):
        assert sock.send(b'%0100d' % number) is True
    assert [sock.send(b'lost') for _ in range(5)] == [False] * 5
    assert sock.queued == 10 and r.stats().datagrams_dropped == 5
    received: list[int] = []
    run_until(r, lambda: received.extend(take(theirs)) or log)
    assert log == [('drain',)]
    received.extend(take(theirs))
    assert received == list(range(count + 9))
    assert sock.send(b'1') is True
    turns(r, 3)
    assert log == [('drain',)]
    end(r, sock)


@needs_unix
def test_a_long_queue_is_sent_until_the_kernel_is_full_and_the_rest_keeps_waiting(r, sockets, log):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, max_queued=1 << 30, **log.all())
    count = fill(sock)
    last = 3 * count
    for number in range(count, last):
        sock.send(b'%0100d' % number)
    waited, received = sock.queued, take(theirs)
    turns(r, count // DATAGRAMS_PER_TURN + 2)
    assert 0 < sock.queued < waited
    assert idle(r)
    run_until(r, lambda: received.extend(take(theirs)) or len(received) == last)
    assert received == list(range(last))
    end(r, sock)


@needs_unix
@pytest.mark.parametrize('how', ['close', 'no callback', 'full again'])
def test_on_drain_is_skipped_when_it_no_longer_applies(r, sockets, log, how):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, max_queued=0, **log.all())
    while sock.send(b'1'):
        pass
    take(theirs)

    def meanwhile(*args):
        if how == 'close':
            sock.close()
        elif how == 'no callback':
            sock.on_drain = None
        else:
            while sock.send(b'1'):
                pass

    r.call_soon(meanwhile)  # this runs after the socket was reported as writable, and before `on_drain` is called
    r.run_once(0)
    assert 'drain' not in log.names()
    if how == 'full again':
        take(theirs)
    turns(r, 3)
    assert log.names() == {'close': ['close'], 'no callback': [], 'full again': ['drain']}[how]
    end(r, sock)


@needs_unix
def test_a_foreign_close_ends_a_socket_in_the_middle_of_its_queue(r, sockets, log):
    sock = r.bind_udp(None, 0, sock=unix_pair(sockets)[0], **log.all())
    fill(sock)
    socket.close(sock.fileno())
    sock.handle_write()
    turns(r, 2)
    assert [(name, exc.errno) for name, exc in log] == [('close', errno.EBADF)]
    assert r.stats().datagrams_dropped == 1


@pytest.mark.scenario(99)
@needs_unix
def test_without_a_queue_a_datagram_that_would_block_is_dropped_and_on_drain_is_still_called(r, sockets, log):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, max_queued=0, **log.all())
    while sock.send(b'1'):
        pass
    assert sock.queued == 0 and r.stats().datagrams_dropped == 1
    assert idle(r) and log == []
    take(theirs)
    run_until(r, lambda: log)
    assert log == [('drain',)] and idle(r)
    end(r, sock)


@pytest.mark.scenario(99)
@needs_unix
def test_many_empty_datagrams_reach_the_limit_too(r, sockets):
    ours, _ = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, max_queued=10_000)
    while sock.send(b''):
        pass
    assert sock.queued == -(-10_000 // DATAGRAM_COST) and sock.buffered == 0
    end(r, sock)


@pytest.mark.scenario(99)
@needs_unix
def test_closing_drops_the_queue_and_on_close_still_sees_its_size(r, sockets):
    ours, _ = unix_pair(sockets)
    seen = []
    sock = r.bind_udp(None, 0, sock=ours, on_close=lambda sock, exc: seen.append((sock.queued, sock.buffered, exc)))
    fill(sock)
    sock.send(b'abc')
    end(r, sock)
    assert seen == [(2, 103, None)]
    assert r.stats().datagrams_dropped == 2
    assert sock.queued == 0


@needs_unix
def test_a_full_receiver_is_retried_at_growing_intervals_up_to_250_ms(kernel, fake, sockets, tmp_path, caplog):
    class Timed(socket.socket):
        def sendto(self, *args: Any) -> int:
            tries.append(kernel.time)
            return super().sendto(*args)

    tries: list[float] = []
    ours, full = sockets.track(Timed(AF_UNIX, SOCK_DGRAM)), sockets.track(socket.socket(AF_UNIX, SOCK_DGRAM))
    ours.setblocking(False)
    full.bind(str(tmp_path / 'full'))
    sock = fake.bind_udp(None, 0, sock=ours)
    while not sock.queued:
        sock.send(b'x', str(tmp_path / 'full'))
    turns(fake, 1)
    tries.clear()
    tries.append(kernel.time)
    run_until(fake, lambda: len(tries) == 4)
    assert not caplog.records
    run_until(fake, lambda: len(tries) == 8)
    waited = [later - earlier for earlier, later in pairwise(tries)]
    assert waited == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.25, 0.25], abs=0.002)
    assert len(caplog.records) == 1 and '1 receivers are full' in caplog.text
    assert fake.stats().stalls == 8  # the last attempt also failed
    end(fake, sock)


class Full(socket.socket):
    """A socket for which the kernel has no buffers left. The kernel reports it as writable anyway, as BSD does."""

    def sendto(self, *args: Any) -> int:
        raise OSError(errno.ENOBUFS, 'No buffer space available')


@pytest.mark.scenario(99)
def test_without_buffers_in_the_kernel_a_datagram_is_dropped_and_reported_and_nothing_spins(r, udp, log, sockets):
    own = sockets.track(Full(AF_INET, SOCK_DGRAM))
    own.bind((HERE, 0))
    sock = r.bind_udp(None, 0, sock=own, **log.all())
    assert sock.send(b'x', udp().getsockname()) is False
    assert log == [] and sock.queued == 0
    turns(r, 1)
    assert log == [('send error', errno.ENOBUFS)]
    assert idle(r)
    end(r, sock)


# -- connected


@pytest.mark.scenario(97)
def test_a_connected_socket_receives_from_and_sends_to_its_peer_alone(r, udp, log):
    peer, stranger = udp(), udp()
    sock = r.connect_udp(*peer.getsockname(), log.on_datagram)
    assert sock.peername == peer.getsockname()
    assert sock.sockname == sock.address
    assert sock.send(b'ask')
    assert peer.recvfrom(100) == (b'ask', sock.sockname)
    stranger.sendto(b'forged', sock.sockname)
    peer.sendto(b'answer', sock.sockname)
    run_until(r, lambda: log)
    turns(r, 2)
    assert log.datagrams() == [b'answer']
    assert sock.send(b'with its address', log.last) and sock.send(b'so too', peer.getsockname())
    with pytest.raises(ValueError, match='can send only to it'):
        sock.send(b'x', stranger.getsockname())
    assert [peer.recv(100), peer.recv(100)] == [b'with its address', b'so too']
    end(r, sock)


@pytest.mark.scenario(97)
def test_datagrams_of_other_senders_from_before_the_connect_are_not_delivered(r, udp, log):
    own, peer, stranger = udp(), udp(), udp()
    stranger.sendto(b'forged', own.getsockname())
    own.connect(peer.getsockname())
    peer.sendto(b'genuine', own.getsockname())
    sock = r.bind_udp(None, 0, log.on_datagram, sock=own)
    run_until(r, lambda: log)
    turns(r, 2)
    assert log.datagrams() == [b'genuine'] and r.stats().datagrams_in == 1
    end(r, sock)


def test_a_socket_can_send_from_a_given_address(r, udp, unused):
    peer = udp()
    sock = r.connect_udp(*peer.getsockname(), local_address=unused)
    assert sock.sockname == unused
    end(r, sock)


@pytest.mark.scenario(96)
def test_an_unreachable_port_is_reported_once_and_the_socket_stays_open(r, udp, log, unused, caplog):
    sock = r.connect_udp(*unused, **log.all())
    assert sock.send(b'anybody?') is True
    run_until(r, lambda: log)
    assert log == [('send error', errno.ECONNREFUSED)]
    assert isinstance(log.last, ConnectionRefusedError)
    assert f'{HERE}:{unused[1]}' in str(log.last) and 'not delivered' in str(log.last)
    assert idle(r)
    assert len(log) == 1 and not sock.closed
    peer = udp(port=unused[1])
    assert sock.send(b'and now?')
    assert peer.recv(100) == b'and now?'
    peer.sendto(b'yes', sock.sockname)
    run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [b'yes']
    assert not caplog.records
    end(r, sock)


@pytest.mark.scenario(96)
def test_the_error_of_an_earlier_datagram_does_not_drop_the_next_one(r, udp, log, unused):
    sock = r.connect_udp(*unused, **log.all())
    sock.send(b'lost')  # the ICMP error has now arrived, and is pending on the socket
    peer = udp(port=unused[1])
    assert sock.send(b'not lost') is True
    assert peer.recv(100) == b'not lost'
    turns(r, 3)
    assert log == [('send error', errno.ECONNREFUSED)]
    assert r.stats().datagrams_dropped == 0
    end(r, sock)


@needs_unix
def test_a_datagram_that_is_refused_twice_is_dropped_and_reported_once(r, sockets, log):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, **log.all())
    theirs.close()
    assert sock.send(b'to nobody') is False
    turns(r, 2)
    assert log.names() == ['send error']
    assert 'was not sent' in str(log.last)
    assert (r.stats().datagrams_dropped, r.stats().datagram_errors) == (1, 1)
    end(r, sock)


class Undecided(socket.socket):
    """A socket whose first send reports the error of an earlier datagram, and whose next send would block."""

    failed = False

    def send(self, *args: Any) -> int:
        if self.failed:
            raise BlockingIOError
        self.failed = True
        raise ConnectionRefusedError(errno.ECONNREFUSED, 'refused')


def test_an_earlier_error_is_reported_while_this_datagram_waits(r, udp, log, sockets):
    own = sockets.track(Undecided(AF_INET, SOCK_DGRAM))
    own.connect(udp().getsockname())
    sock = r.bind_udp(None, 0, sock=own, **log.all())
    assert sock.send(b'waits') is True
    assert (sock.queued, r.stats().datagrams_dropped) == (1, 0)
    turns(r, 1)
    assert log == [('send error', errno.ECONNREFUSED)]
    assert 'not delivered' in str(log.last)
    end(r, sock)


def test_a_selector_without_room_is_reported_by_on_close(log):
    class Crowded(Kernel):
        room = True

        def room_of(self, selector: Any) -> Any:
            return lambda fd: self.room

    kernel = Crowded()
    with Reactor(kernel=kernel) as r:
        kernel.room = False
        r.connect_udp(HERE, 9, **log.all())
        turns(r, 2)
        kernel.room = True
        assert [(name, type(exc)) for name, exc in log] == [('close', SelectorFull)]
        assert r.handles() == []


@pytest.mark.scenario(96)
def test_errors_of_one_turn_are_reported_once_and_all_are_counted(r, log, unused):
    sock = r.connect_udp(*unused, **log.all())
    for _ in range(1000):
        sock.send(b'x')
    assert len(r.completions) <= 1
    turns(r, 3)
    assert 1 <= len(log) <= 2 and set(log.names()) == {'send error'}
    assert r.stats().datagram_errors > 900
    end(r, sock)


@pytest.mark.scenario(96)
def test_a_refusal_while_reading_is_paused_is_harmless_and_does_not_wake_the_loop(r, log, unused):
    sock = r.connect_udp(*unused, **log.all())
    sock.pause_reading()
    sock.send(b'x')
    assert idle(r)
    assert log == []
    sock.resume_reading()
    run_until(r, lambda: log)
    assert log == [('send error', errno.ECONNREFUSED)]
    end(r, sock)


@pytest.mark.scenario(96)
def test_without_on_send_error_nothing_is_logged(r, unused, caplog):
    sock = r.connect_udp(*unused)
    sock.send(b'x')
    run_until(r, lambda: r.stats().datagram_errors)
    turns(r, 2)
    assert not caplog.records and not sock.closed
    end(r, sock)


def test_an_unconnected_socket_gets_no_error_for_a_receiver_that_is_gone(r, udp, log, unused):
    sock, client = r.bind_udp(HERE, 0, **log.all()), udp()
    assert sock.send(b'x', unused)
    assert sock.send(b'y', client.getsockname())
    assert client.recv(100) == b'y'
    assert idle(r)
    assert log == []
    end(r, sock)


# -- names


def test_a_name_without_a_reachable_address_is_reported_with_the_error_of_the_first(log):
    with Reactor(kernel=ManyAddresses(3)) as r:
        r.connect_udp('many.test', 9, **log.all())
        run_until(r, lambda: log)
        ((name, exc),) = log
        assert (name, exc.errno) == ('close', errno.ENETUNREACH)
        assert exc.strerror == 'cannot connect to 10.0.0.0:9: Network is unreachable'


def test_a_name_is_looked_up_in_a_thread_and_datagrams_sent_before_the_answer_follow(r, udp, log):
    peer = udp()
    sock = r.connect_udp('localhost', peer.getsockname()[1], family=AF_INET, **log.all())
    assert (sock.state, sock.peername, sock.address) == ('CONNECTING', None, None)
    assert sock.send(b'one') and sock.send(b'') and sock.send(b'two')
    assert sock.queued == 3
    assert any('the name to be looked up' in line for line in r.why_alive())
    run_until(r, lambda: not sock.queued)
    assert [peer.recv(100) for _ in range(3)] == [b'one', b'', b'two']
    assert (sock.state, sock.peername) == ('OPEN', peer.getsockname())
    end(r, sock)
    assert log == [('close', None)]


@pytest.mark.parametrize('resumed', [False, True])
def test_reading_paused_during_the_look_up_stays_paused(r, udp, log, resumed):
    # Regression: the pause used to have no effect, because only an open socket could be paused.
    peer = udp()
    sock = r.connect_udp('localhost', peer.getsockname()[1], family=AF_INET, **log.all())
    assert sock.state == 'CONNECTING'
    sock.pause_reading()
    if resumed:
        sock.resume_reading()
    sock.send(b'x')
    run_until(r, lambda: not sock.queued)
    peer.sendto(b'answer', sock.address)
    if not resumed:
        turns(r, 3)
        assert log == []
        sock.resume_reading()
    run_until(r, lambda: log)
    assert log.datagrams() == [b'answer']
    end(r, sock)


class Names(Kernel):
    """A kernel whose look-ups wait until the test opens the gate, and then find no address."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        if flags:
            return super().getaddrinfo(host, port, family, kind, flags)
        self.gate.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')


def test_a_name_without_an_address_ends_the_socket_with_a_clear_error():
    log, names = DatagramLog(), Names()
    with Reactor(kernel=names) as r:
        sock = r.connect_udp('nowhere.invalid', 53, **log.all())
        sock.send(b'x')
        names.gate.set()
        assert r.run() is True
        assert [name for name, _ in log] == ['close']
        assert isinstance(log[0][1], ResolveError) and 'nowhere.invalid' in str(log[0][1])
        assert sock.closed
        with pytest.raises(HandleClosed):
            sock.send(b'x')


def test_closing_during_the_look_up_is_reported_once_without_an_error():
    log, names = DatagramLog(), Names()
    with Reactor(kernel=names) as r:
        sock = r.connect_udp('nowhere.invalid', 53, **log.all())
        sock.close()
        turns(r, 2)
        names.gate.set()
        assert r.run() is True
        assert log == [('close', None)]


def test_the_queue_is_bounded_during_the_look_up():
    names = Names()
    with Reactor(kernel=names) as r:
        sock = r.connect_udp('nowhere.invalid', 53, max_queued=1000)
        assert [sock.send(b'x') for _ in range(6)] == [True] * 4 + [False] * 2
        names.gate.set()


def test_an_unusable_local_address_is_reported_by_on_close(r, log):
    sock = r.connect_udp(HERE, 9, local_address=('192.0.2.1', 0), **log.all())  # not an address of this machine
    assert sock.closed and log == []
    assert sock.send(b'x') is False
    turns(r, 1)
    assert [(name, exc.errno) for name, exc in log] == [('close', errno.EADDRNOTAVAIL)]
    assert f'{HERE}:9' in str(log[0][1])


# -- addresses

BAD_ADDRESSES: list[tuple[Any, type[Exception], str]] = [
    (None, ValueError, 'needs an address'),
    (HERE, TypeError, r'\(host, port\)'),
    ((HERE,), TypeError, r'\(host, port\)'),
    ((HERE, 1, 2), TypeError, r'\(host, port\)'),
    ([HERE, 1], TypeError, r'\(host, port\)'),
    ((HERE, '1'), TypeError, 'port'),
    ((HERE, -1), ValueError, 'port'),
    ((HERE, 65536), ValueError, 'port'),
    ((None, 1), ValueError, 'host'),
    (('', 1), ValueError, 'host'),
    ((b'x', 1), TypeError, 'host'),
    (('localhost', 1), ValueError, 'must be numeric'),
    (('::1', 1), ValueError, 'IPv6'),
    (('::1', 1, 0, -1), ValueError, '32 bits'),
    (('::1', 1, 1 << 20, 0), ValueError, '20 and'),
    (('::1', 1, '0', 0), ValueError, '20 and'),
]


@pytest.mark.scenario(97)
@pytest.mark.parametrize(('address', 'error', 'message'), BAD_ADDRESSES, ids=repr)
def test_a_bad_address_raises_at_the_call(fake, udp, address, error, message):
    sock, client = fake.bind_udp(HERE, 0), udp()
    with pytest.raises(error, match=message):
        sock.send(b'x', address)
    assert sock.send(b'fine', client.getsockname()) and client.recv(100) == b'fine'
    assert fake.stats().datagram_errors == 0


@needs_unix
def test_a_bad_path_raises_at_the_call(r, sockets):
    own = sockets.track(socket.socket(AF_UNIX, SOCK_DGRAM))
    sock = r.bind_udp(None, 0, sock=own)
    with pytest.raises(TypeError):
        sock.send(b'x', 1)
    end(r, sock)


@pytest.mark.scenario(97)
def test_port_0_is_an_error_of_that_send_alone(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, **log.all()), udp()
    assert sock.send(b'x', (HERE, 0)) is False
    assert sock.send(b'y', client.getsockname()) is True
    assert client.recv(100) == b'y'
    turns(r, 2)
    assert log == [('send error', errno.EINVAL)]
    assert f'{HERE}:0' in str(log.last)
    assert idle(r)
    end(r, sock)


@pytest.mark.scenario(97)
def test_an_answer_to_a_forged_port_0_affects_no_other_client(r, udp, log, sockets, caplog):
    try:
        forger = sockets.track(socket.socket(AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP))
    except PermissionError:
        pytest.skip('forging datagrams needs root')
    sock, client = r.bind_udp(HERE, 0, echo, on_send_error=log.on_send_error), udp()
    forger.sendto(struct.pack('!HHHH', 0, sock.address[1], 8 + 6, 0) + b'forged', (HERE, 0))
    run_until(r, lambda: log)
    assert log == [('send error', errno.EINVAL)]
    client.sendto(b'honest', sock.address)
    run_until(r, lambda: r.stats().datagrams_out)
    assert client.recv(100) == b'honest'
    assert not caplog.records
    end(r, sock)


@needs_ipv6
def test_without_a_host_both_families_are_served_and_ipv4_is_shown_as_ipv4(r, udp, log):
    def on_datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
        log.append(address)
        sock.send(data, address)

    sock = r.bind_udp(None, 0, on_datagram)
    port = sock.address[1]
    old, new = udp(HERE), udp('::1')
    old.sendto(b'4', (HERE, port))
    run_until(r, lambda: len(log) == 1)
    new.sendto(b'6', ('::1', port))
    run_until(r, lambda: len(log) == 2)
    assert log == [old.getsockname(), new.getsockname()]
    assert old.recv(10) == b'4' and new.recv(10) == b'6'
    assert sock.send(b'again', tuple(log[0])) and sock.send(b'again', ('::1', new.getsockname()[1]))
    assert old.recv(10) == new.recv(10) == b'again'
    end(r, sock)


@needs_ipv6
def test_over_ipv6_a_datagram_may_be_twenty_bytes_longer(r, log):
    one, other = r.bind_udp('::1', 0), r.bind_udp('::1', 0, log.on_datagram)
    assert one.send(bytes(LONGEST_IPV6), other.address)
    with pytest.raises(ValueError):
        one.send(bytes(LONGEST_IPV6 + 1), other.address)
    run_until(r, lambda: log)
    assert len(log[0][1]) == LONGEST_IPV6
    end(r, one, other)


@needs_ipv6
def test_a_socket_for_both_families_sends_the_longest_that_each_of_them_has(r, log):
    both, six = r.bind_udp(None, 0), r.bind_udp('::1', 0, log.on_datagram)
    with pytest.raises(ValueError, match='at most 65507 bytes'):
        both.send(bytes(65508), (HERE, 9))
    assert both.send(bytes(65508), six.address)
    run_until(r, lambda: log)
    assert len(log[0][1]) == 65508
    end(r, both, six)


# -- binding


def test_an_address_in_use_raises_at_the_call_and_says_what_to_do(r):
    sock = r.bind_udp(HERE, 0)
    with pytest.raises(OSError, match=rf'{HERE}:{sock.address[1]}.*ss -lunp') as caught:
        r.bind_udp(*sock.address)
    assert caught.value.errno == errno.EADDRINUSE
    assert r.handles() == [sock]
    end(r, sock)


def test_a_name_is_looked_up_at_the_call(fake):
    assert fake.bind_udp('localhost', 0).address[0] in (HERE, '::1')
    with pytest.raises(ResolveError):
        fake.bind_udp('name with spaces', 0)


@pytest.mark.skipif(SO_REUSEPORT < 0, reason='this platform has no SO_REUSEPORT')
def test_several_sockets_may_share_a_port(r, udp, log):
    one = r.bind_udp(HERE, 0, log.on_datagram, reuse_port=True)
    other = r.bind_udp(*one.address, log.on_datagram, reuse_port=True)
    for _ in range(20):
        udp().sendto(b'x', one.address)
    run_until(r, lambda: len(log) == 20)
    end(r, one, other)


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    *(
        ({name: 'x'}, TypeError)
        for name in ('on_datagram', 'on_send_error', 'on_drain', 'on_close', 'on_error')
    ),
    ({'max_queued': -1}, ValueError),
    ({'max_queued': '1'}, ValueError),
    ({'unknown': 1}, TypeError),
]  # fmt: skip
BAD_ENDS: list[tuple[Any, Any, type[Exception]]] = [
    (HERE, -1, ValueError),
    (HERE, '1', TypeError),
    ('', 1, ValueError),
    (b'x', 1, TypeError),
]


@pytest.mark.parametrize('method', ['bind_udp', 'connect_udp'])
def test_bad_arguments_raise_at_the_call_and_leave_nothing(fake, method):
    call = getattr(fake, method)
    for options, error in BAD_OPTIONS:
        with pytest.raises(error):
            call(HERE, 9, **options)
    for host, port, error in BAD_ENDS:
        with pytest.raises(error):
            call(host, port)
    assert fake.handles() == []


def test_connect_udp_refuses_unusable_arguments_at_the_call(fake):
    for options in {'family': 99}, {'local_address': (None, 1)}:
        with pytest.raises(ValueError):
            fake.connect_udp(HERE, 9, **options)
    with pytest.raises(ValueError, match='host'):
        fake.connect_udp(None, 9)
    assert fake.handles() == []


def test_only_a_datagram_socket_can_be_passed(r, sockets):
    ours, _ = sockets()
    for sock in ours, 'x', 3:
        with pytest.raises(TypeError, match='datagram socket'):
            r.bind_udp(None, 0, sock=sock)


def test_a_socket_belongs_to_one_handle_and_a_second_is_refused_without_harm(r, udp, log):
    own, client = udp(), udp()
    sock = r.bind_udp(None, 0, log.on_datagram, sock=own)
    with pytest.raises(ReactorError, match='belongs to'):
        r.bind_udp(None, 0, sock=own)
    client.sendto(b'x', sock.address)
    run_until(r, lambda: log)
    end(r, sock)


def test_a_connected_socket_that_is_passed_stays_connected(r, udp):
    own, peer = udp(), udp()
    own.connect(peer.getsockname())
    sock = r.bind_udp(None, 0, sock=own)
    assert sock.peername == peer.getsockname()
    assert sock.send(b'x') and peer.recv(10) == b'x'
    end(r, sock)


# -- broadcast and multicast


def test_broadcast_has_to_be_allowed(r, log):
    sock = r.bind_udp(HERE, 0, **log.all())
    assert sock.send(b'x', ('127.255.255.255', 9)) is False
    turns(r, 1)
    assert log == [('send error', errno.EACCES)]
    assert 'broadcast=True' in str(log.last)
    end(r, sock)


def test_a_broadcast_arrives(r, log):
    receiver = r.bind_udp('0.0.0.0', 0, log.on_datagram)
    sock = r.bind_udp(HERE, 0, broadcast=True)
    connected = r.connect_udp('127.255.255.255', receiver.address[1], broadcast=True)
    assert sock.send(b'to all', ('127.255.255.255', receiver.address[1]))
    assert connected.send(b'this too')
    run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [b'to all', b'this too']
    end(r, receiver, sock, connected)


@needs_loopback
@pytest.mark.parametrize('interface', ['address', 'name', 'index'])
def test_datagrams_to_a_group_arrive_while_it_is_joined(r, log, interface):
    where = {'address': HERE, 'name': LOOPBACK, 'index': socket.if_nametoindex(LOOPBACK)}[interface]
    receiver, sock = r.bind_udp('0.0.0.0', 0, log.on_datagram), r.bind_udp(HERE, 0)
    target = GROUP, receiver.address[1]
    receiver.join_group(GROUP, where)
    assert sock.send(b'one', target)
    run_until(r, lambda: log)
    receiver.leave_group(GROUP, where)
    assert sock.send(b'two', target)
    sock.send(b'three', (HERE, receiver.address[1]))
    run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [b'one', b'three']
    end(r, receiver, sock)


def multicast_interface() -> tuple[int, str] | None:
    """Return an interface with a route to IPv6 groups, or None. On many machines, the loopback has no such route."""
    for index, name in getattr(socket, 'if_nameindex', list)():
        try:
            with socket.socket(AF_INET6, SOCK_DGRAM) as sock:
                sock.sendto(b'', (GROUP6, 9, 0, index))
        except OSError:
            continue
        return index, name
    return None


@pytest.mark.parametrize('by', ['name', 'index'])
def test_an_ipv6_group_is_joined_by_interface(r, log, by):
    interface = multicast_interface()
    if interface is None:
        pytest.skip('this machine has no interface with a route to IPv6 groups')
    index, name = interface
    where = {'name': name, 'index': index}[by]
    receiver, sock = r.bind_udp('::', 0, log.on_datagram), r.bind_udp('::', 0)
    target = GROUP6, receiver.address[1], 0, index
    receiver.join_group(GROUP6, where)
    assert sock.send(b'one', target)
    run_until(r, lambda: log)
    receiver.leave_group(GROUP6, where)
    assert sock.send(b'two', target) is True
    sock.send(b'three', ('::1', receiver.address[1]))
    run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [b'one', b'three']
    end(r, receiver, sock)


def test_an_invalid_group_or_interface_raises_at_the_call(fake):
    sock = fake.bind_udp(HERE, 0)
    with pytest.raises(ValueError, match='multicast address'):
        sock.join_group(HERE)
    with pytest.raises(TypeError):
        sock.join_group(239)
    with pytest.raises(OSError, match='no network interface'):
        sock.join_group(GROUP, 'nosuch0')
    with pytest.raises(OSError, match=f'cannot join {GROUP}'):
        sock.join_group(GROUP, '192.0.2.1')
    with pytest.raises(OSError, match=f'cannot leave {GROUP}'):
        sock.leave_group(GROUP, HERE)


# -- ending


def test_a_socket_ends_once_and_closing_it_again_is_silent(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, **log.all()), udp()
    client.sendto(b'too late', sock.address)
    sock.close()
    assert sock.closed and log == []
    sock.close()
    turns(r, 3)
    sock.close()
    turns(r, 1)
    assert log == [('close', None)]
    assert (sock.address, sock.fileno(), sock.state) == (None, -1, 'CLOSED')
    with pytest.raises(HandleClosed, match='closed'):
        sock.send(b'x', client.getsockname())
    for call in sock.join_group, sock.leave_group:
        with pytest.raises(HandleClosed):
            call(GROUP)
    sock.pause_reading()
    sock.resume_reading()


def test_a_socket_closed_in_a_callback_receives_nothing_more(r, udp, log):
    def on_datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
        log.on_datagram(sock, data, address)
        sock.close()

    sock, client = r.bind_udp(HERE, 0, on_datagram, on_close=log.on_close), udp()
    for _ in range(3):
        client.sendto(b'x', sock.address)
    run_until(r, lambda: 'close' in log.names())
    turns(r, 2)
    assert log == [('datagram', b'x'), ('close', None)]


def test_a_socket_paused_in_a_callback_receives_the_rest_later(r, udp, log):
    def on_datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
        log.on_datagram(sock, data, address)
        sock.pause_reading()

    sock, client = r.bind_udp(HERE, 0, on_datagram), udp()
    for data in b'1', b'2':
        client.sendto(data, sock.address)
    run_until(r, lambda: log)
    assert idle(r)
    assert log.datagrams() == [b'1']
    sock.resume_reading()
    run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [b'1', b'2']
    end(r, sock)


def test_a_foreign_close_ends_a_socket_with_the_kernels_error(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, **log.all()), udp()
    socket.close(sock.fileno())
    assert sock.send(b'x', client.getsockname()) is False
    assert sock.closed and log == []
    assert sock.send(b'x', client.getsockname()) is False
    turns(r, 2)
    assert [(name, exc.errno) for name, exc in log] == [('close', errno.EBADF)]
    with pytest.raises(HandleClosed):
        sock.send(b'x', client.getsockname())


@pytest.mark.skipif(SO_MEMINFO < 0, reason='this kernel does not count the datagrams that it drops')
def test_the_number_of_drops_is_unknown_after_a_foreign_close(r):
    sock = r.bind_udp(HERE, 0)
    assert sock.kernel_drops == 0
    socket.close(sock.fileno())
    assert sock.kernel_drops is None
    end(r, sock)


@pytest.mark.parametrize('then', ['close', 'resume_reading'])
def test_a_foreign_close_of_a_paused_socket_is_seen_by_the_next_call(r, log, then):
    sock = r.bind_udp(HERE, 0, **log.all())
    sock.pause_reading()
    socket.close(sock.fileno())
    getattr(sock, then)()
    turns(r, 2)
    assert log.names() == ['close'] and sock.closed


def test_closing_the_reactor_calls_on_close_of_each_socket():
    log = DatagramLog()
    with Reactor() as r:
        r.bind_udp(HERE, 0, **log.all())
        r.connect_udp(HERE, 9, **log.all())
    assert log == [('close', None)] * 2


# -- callbacks that raise


@pytest.mark.scenario(98)
def test_an_exception_goes_to_on_error_and_the_socket_stays_open(r, udp, log):
    sock, client = r.bind_udp(HERE, 0, boom, on_error=log.on_error), udp()
    for _ in range(3):
        client.sendto(b'x', sock.address)
    run_until(r, lambda: len(log) == 3)
    assert [type(exc) for _, exc in log] == [ZeroDivisionError] * 3
    assert not sock.closed
    end(r, sock)


@pytest.mark.scenario(98)
def test_without_on_error_an_exception_is_logged_once_a_second_and_the_socket_stays_open(kernel, fake, udp, caplog):
    sock, client = fake.bind_udp(HERE, 0, boom), udp()
    for expected in 1, 2:
        for _ in range(20):
            client.sendto(b'a stranger who has found the bug', sock.address)
        run_until(fake, lambda expected=expected: fake.stats().callback_errors == 20 * expected)
        assert [type(record.exc_info[1]) for record in caplog.records] == [ZeroDivisionError] * expected
        assert 'DatagramSocket' in caplog.text
        kernel.time += 1
    assert not sock.closed


def test_an_on_error_that_raises_is_logged_once_a_second_too(kernel, fake, udp, caplog):
    sock, client = fake.bind_udp(HERE, 0, boom, on_error=boom), udp()
    for _ in range(20):
        client.sendto(b'x', sock.address)
    run_until(fake, lambda: fake.stats().callback_errors == 20)
    assert len(caplog.records) == 1 and not sock.closed


def test_an_on_close_that_raises_is_logged(r, caplog):
    sock = r.bind_udp(HERE, 0, on_close=boom, on_error=lambda *args: pytest.fail('on_error was called'))
    end(r, sock)
    assert len(caplog.records) == 1


def test_an_interrupt_leaves_run_and_the_rest_is_delivered_by_the_next(r, udp, log):
    def on_datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
        log.on_datagram(sock, data, address)
        if data == b'2':
            raise KeyboardInterrupt

    sock, client = r.bind_udp(HERE, 0, on_datagram), udp()
    for data in b'1', b'2', b'3':
        client.sendto(data, sock.address)
    with pytest.raises(KeyboardInterrupt):
        run_until(r, lambda: False)
    run_until(r, lambda: len(log) == 3)
    assert log.datagrams() == [b'1', b'2', b'3']
    end(r, sock)


# -- references, repr, counters, threads, memory


def test_a_socket_keeps_run_running_unless_unreferenced(r):
    sock = r.bind_udp(HERE, 0)
    assert r.run_once(0) is True
    sock.unref()
    assert r.run() is True
    sock.ref()
    assert r.run_once(0) is True
    end(r, sock)


def test_repr_and_why_alive_describe_a_socket(r, sockets):
    sock = r.bind_udp(HERE, 0)
    port = sock.address[1]
    assert repr(sock) == f'<DatagramSocket fd={sock.fileno()} OPEN {HERE}:{port}, 0 datagrams wait>'
    assert any('waits for datagrams' in line for line in r.why_alive())
    sock.pause_reading()
    assert sock.waits_for() == 'its owner: reading is paused'
    peer = r.connect_udp(HERE, port)
    assert repr(peer).endswith(f'{HERE}:{peer.sockname[1]} to {HERE}:{port}, 0 datagrams wait>')
    end(r, sock, peer)
    assert repr(sock) == '<DatagramSocket fd=-1 CLOSED unknown, 0 datagrams wait>'


@needs_unix
def test_repr_and_waits_for_show_the_queue(r, sockets):
    ours, _ = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours)
    fill(sock)
    assert sock.waits_for() == 'datagrams and room to send 1'
    assert repr(sock).endswith('1 datagrams wait>')
    end(r, sock)


def test_datagrams_and_their_bytes_are_counted(r, udp):
    sock, client = r.bind_udp(HERE, 0, echo), udp()
    for _ in range(3):
        client.sendto(b'abcd', sock.address)
    run_until(r, lambda: r.stats().datagrams_out == 3)
    stats = r.stats()
    assert (stats.datagrams_in, stats.bytes_in, stats.bytes_out) == (3, 12, 12)
    assert (stats.datagrams_dropped, stats.datagram_errors) == (0, 0)
    end(r, sock)


COLD = {
    'bind_udp': lambda r, sock: r.bind_udp(HERE, 0),
    'connect_udp': lambda r, sock: r.connect_udp(HERE, 9),
    'close': lambda r, sock: sock.close(),
    'join_group': lambda r, sock: sock.join_group(GROUP),
    'leave_group': lambda r, sock: sock.leave_group(GROUP),
}
HOT = {
    'send': lambda r, sock: sock.send(b'x', (HERE, 9)),
    'pause_reading': lambda r, sock: sock.pause_reading(),
    'resume_reading': lambda r, sock: sock.resume_reading(),
}


@pytest.mark.parametrize('debug', [False, True])
@pytest.mark.parametrize('name', [*COLD, *HOT])
def test_calls_from_another_thread_are_refused(name, debug):
    if name in HOT and not debug:
        return
    raised = []

    def main(r: Reactor) -> None:
        sock = r.bind_udp(HERE, 0)
        with pytest.raises(ReactorError, match='thread'):
            in_thread({**COLD, **HOT}[name], r, sock)
        raised.append(name)
        sock.close()

    assert reactor.run(main, debug=debug) is True
    assert raised == [name]


def test_with_debug_a_socket_works_in_the_loops_own_thread(udp):
    client = udp()
    with Reactor(debug=True) as r:
        sock = r.bind_udp(HERE, 0, echo)
        sock.pause_reading()
        sock.resume_reading()
        client.sendto(b'x', sock.address)
        run_until(r, lambda: r.stats().datagrams_out)
        assert client.recv(10) == b'x'


class Thing:
    """A user object that supports weak references."""

    def __call__(self, *args: Any) -> None:
        pass


class Raising(Thing):
    def __call__(self, *args: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize('way', ['close', 'lost', 'raised', 'refused', 'waiting', 'name', 'nowhere'])
def test_a_closed_socket_is_freed_without_the_collector(r, udp, sockets, unused, way, monkeypatch):
    monkeypatch.setattr(logging.getLogger('reactor'), 'disabled', True)
    watched = []

    def go() -> None:
        callbacks = {name: Thing() for name in ('on_datagram', 'on_send_error', 'on_drain', 'on_close')}
        if way == 'raised':
            callbacks['on_datagram'] = Raising()
        if way == 'refused':
            sock = r.connect_udp(*unused, **callbacks)
            sock.send(b'x')
        elif way == 'waiting':
            if AF_UNIX < 0:
                return
            sock = r.bind_udp(None, 0, sock=unix_pair(sockets)[0], max_queued=300, **callbacks)
            fill(sock)
            sock.send(b'dropped')
        elif way == 'name':
            sock = r.connect_udp('localhost', 9, family=socket.AF_INET, **callbacks)
            run_until(r, lambda: sock.state == 'OPEN')
        elif way == 'nowhere':
            sock = r.connect_udp(HERE, 9, local_address=('192.0.2.1', 0), **callbacks)
        else:
            sock = r.bind_udp(HERE, 0, **callbacks)
        sock.data = Thing()
        watched.extend(weakref.ref(thing) for thing in (sock, sock.data, *callbacks.values()))
        if not sock.closed and sock.address and way != 'waiting':
            udp().sendto(b'x', sock.address)
        turns(r, 3)
        if way == 'lost':
            socket.close(sock.fileno())
            sock.send(b'x', unused)
        sock.close()

    gc.disable()
    try:
        go()
        turns(r, 3)
        assert [reference() for reference in watched if reference() is not None] == []
    finally:
        gc.enable()


@pytest.mark.scenario(119)
def test_opening_and_closing_leaves_no_object_behind(r):
    def cycle() -> None:
        one = r.bind_udp(HERE, 0, echo)
        other = r.connect_udp(*one.address)
        other.send(b'x')
        turns(r, 2)
        end(r, one, other)

    for _ in range(20):
        cycle()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(200):
            cycle()
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


def test_the_log_uses_the_clock_of_the_loop(kernel: FakeKernel, fake):
    sock = fake.bind_udp(HERE, 0)
    assert sock.may_log() and not sock.may_log()
    kernel.time += 1
    assert sock.may_log()


def test_a_socket_that_may_not_broadcast_leaves_no_descriptor():
    kernel = FailingKernel('setsockopt', errno.EACCES)
    with Reactor(kernel=kernel) as r:
        with pytest.raises(PermissionError):
            r.bind_udp('10.0.0.1', 80, broadcast=True)
    assert not kernel.files


def test_a_connected_socket_knows_its_peer_when_getpeername_fails():
    # Regression: the socket used to look unconnected, so `send` without an address raised an error.
    log, kernel = [], FailingKernel('getpeername', errno.ENOBUFS, count=2)
    with Reactor(kernel=kernel) as r:
        server = r.bind_udp('10.0.0.1', 80, lambda sock, data, address: log.append(data))
        sock = r.connect_udp('10.0.0.1', 80)
        assert sock.peername == ('10.0.0.1', 80)
        assert sock.send(b'x') is True
        r.call_later(5, server.close)
        r.call_later(5, sock.close)
        r.run()
    assert log == [b'x']


# -- no memory


def test_an_end_without_memory_to_unregister_is_repeated(r, log, monkeypatch):
    sock = r.bind_udp(HERE, 0, **log.all())
    run_short(monkeypatch, Watchers, 'remove')
    sock.close()
    turns(r, 3)
    assert log == [('close', None)]
    assert sock.fileno() == -1 and r.handles() == []


def test_an_on_close_without_memory_for_its_call_is_called_later(r, log):
    sock = r.bind_udp(HERE, 0, on_close=uncallable(2))
    sock.data = log
    sock.close()
    turns(r, 1)
    assert sock.data is log  # the user's objects are dropped only after on_close has been called
    sock.on_close = log.on_close
    turns(r, 2)
    assert log == [('close', None)]
    assert sock.data is sock.on_close is None


@needs_unix
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has Unix datagrams of this length')
def test_a_long_datagram_of_a_unix_socket_arrives_whole(r, sockets, log):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, **log.all())
    theirs.send(bytes(100_000))
    theirs.send(b'next')
    run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [bytes(100_000), b'next']
    end(r, sock)


@needs_unix
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has Unix datagrams of this length')
@pytest.mark.parametrize(('size', 'at_once'), [(65536, 2), (65537, 1)])
def test_after_a_datagram_longer_than_64_kib_the_others_wait_for_the_next_turn(r, sockets, log, size, at_once):
    ours, theirs = unix_pair(sockets)
    sock = r.bind_udp(None, 0, sock=ours, **log.all())
    theirs.send(bytes(size))
    theirs.send(b'next')
    turns(r, 1)
    assert len(log) == at_once
    turns(r, 1)
    assert len(log) == 2
    end(r, sock)


@needs_unix
def test_a_datagram_is_received_where_its_length_cannot_be_asked_for(r, log, monkeypatch):
    monkeypatch.setattr(datagram, 'PEEK', 0)
    ours, theirs = socket.socketpair(AF_UNIX, SOCK_DGRAM)
    sock = r.bind_udp(None, 0, sock=ours, **log.all())
    with theirs:
        theirs.send(b'')
        theirs.send(bytes(8192))
        run_until(r, lambda: len(log) == 2)
    assert log.datagrams() == [b'', bytes(8192)]
    sock.close()
    turns(r, 2)


@needs_unix
def test_a_socket_lost_while_its_receiver_is_full_is_not_retried(sockets, log, tmp_path):
    class Refusing(selectors.SelectSelector):
        refusing = False

        def modify(self, fileobj, events, data=None):
            if self.refusing:
                raise OSError(errno.ENOMEM, 'Cannot allocate memory')
            return super().modify(fileobj, events, data)

    selector = Refusing()
    with Reactor(selector=selector) as r:
        ours, full = (sockets.track(socket.socket(AF_UNIX, SOCK_DGRAM)) for _ in range(2))
        full.bind(str(tmp_path / 'full'))
        ours.setblocking(False)
        sock = r.bind_udp(None, 0, sock=ours, **log.all())
        while sock._queued < 2:
            sock.send(b'x', str(tmp_path / 'full'))
        selector.refusing = True
        run_until(r, lambda: log)
        turns(r, 2)
        assert log.names() == ['close'] and log[0][1].errno == errno.ENOMEM
        assert len(r.timers) == 0 and r.handles() == []
        assert (r.stats().datagrams_dropped, r.stats().stalls) == (2, 0)


def test_a_socket_that_cannot_be_watched_is_closed_and_the_error_raised(r, monkeypatch):
    def full(*args):
        raise SelectorFull('no room')

    monkeypatch.setattr(Watchers, 'add', full)
    with pytest.raises(SelectorFull, match='no room'):
        r.bind_udp('127.0.0.1', 0)  # the fixtures check that no descriptor is left
