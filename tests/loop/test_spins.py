"""No spin: an event that a selector reports for ever costs a few turns a second and hurts no other handle.

Each test causes such an event on real sockets, lets the loop detect it, and counts turns. A spin would make tens of
thousands of turns a second. Then the test removes the cause, and the parked handle has to work again.
"""

from __future__ import annotations

import errno
import gc
import os
import selectors
import socket
import sys
import time
import weakref
from collections import deque

import pytest

from reactor import READ, Reactor
from reactor.loop.spins import MOST_STALLS, STALLED
from reactor.loop.watcher import Handle
from tests.helpers.support import FakeKernel, Log, in_thread, run_until, turns, turns_in

FEW = 12  # turns in 0.3 s: parking lasts 10 ms, then 20 ms, 40 ms and so on, and wakes the loop twice each time
SECONDS = 0.3
IP_RECVERR = 11
SO_TIMESTAMPING, TX_SOFTWARE, SOFTWARE, OPT_ID = 37, 2, 16, 128

linux = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has error queues and epoll')


def settles(r):
    """Let the loop detect the endless event, then return whether it makes few turns.

    A busy machine may need several attempts; a spin fails in all of them.
    """
    turns_in(r, 0.1)
    return any(turns_in(r, SECONDS) <= FEW for _ in range(10))


def refused_port():
    """Return an address of this host to which no socket is bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()


def close_all(r, *handles):
    for handle in handles:
        handle.abort()
    turns(r, 3)


class Refusing(socket.socket):
    """A listening socket whose `accept` always fails, as if a security module forbade it."""

    error: int | None = errno.EPERM

    def accept(self):
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


def refusing(error):
    sock = Refusing()
    sock.error = error
    sock.bind(('127.0.0.1', 0))
    return sock


@pytest.mark.parametrize('error', [errno.EPERM, errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EOPNOTSUPP])
def test_an_accept_that_always_fails_pauses_the_listener_and_is_reported_once(r, sockets, error, caplog):
    reported, connected = [], []
    sock = refusing(error)
    server = r.listen_tcp(
        '127.0.0.1',
        0,
        sock=sock,
        on_connect=connected.append,
        on_accept_error=lambda server, exc: reported.append(exc.errno),
    )
    client = sockets.connect(server.address)
    assert settles(r)
    assert reported == [error]
    assert r.stats().accept_pauses > 1
    assert caplog.records == []
    sock.error = None
    run_until(r, lambda: connected)
    close_all(r, *connected, server)
    client.close()


def test_an_accept_that_always_fails_is_logged_once_if_there_is_no_callback(r, sockets, caplog):
    server = r.listen_tcp('127.0.0.1', 0, sock=refusing(errno.EPERM))
    sockets.connect(server.address)
    assert settles(r)
    assert [record.levelname for record in caplog.records] == ['WARNING']
    close_all(r, server)


@pytest.mark.parametrize(('count', 'parked'), [(49, 0), (50, 1)])
def test_a_spin_is_detected_after_exactly_the_documented_number_of_turns(r, sockets, count, parked):
    # docs/counters.md states this number.
    conn = r.adopt(sockets()[0])
    for _ in range(count):
        turns(r, 1)
        r.spins.no_progress(conn)
    assert r.stats().stalls == parked
    conn.close()
    turns(r, 1)


def test_a_few_clients_that_disconnect_before_accept_do_not_pause_the_listener(r, sockets):
    """ECONNABORTED affects only one client; the others are accepted in the same turn."""
    connected = []
    sock = refusing(errno.ECONNABORTED)
    server = r.listen_tcp('127.0.0.1', 0, sock=sock, on_connect=connected.append)
    client = sockets.connect(server.address)
    turns(r, STALLED - 10)
    sock.error = None
    turns(r, 2)
    assert connected
    assert r.stats().accept_pauses == 0
    close_all(r, *connected, server)
    client.close()


# -- datagrams


@pytest.fixture
def unix(tmp_path, sockets):
    """A function that makes a Unix datagram socket with the given file name, and returns the socket and its path."""

    def make(name):
        path = str(tmp_path / name)
        sock = sockets.track(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        sock.setblocking(False)
        sock.bind(path)
        return sock, path

    return make


def test_a_full_receiver_delays_no_other_and_does_not_spin(r, unix, caplog):
    (ours, _), (full, slow_path), (good, good_path) = unix('ours'), unix('full'), unix('good')
    drained = []
    sock = r.bind_udp(None, 0, sock=ours.dup(), on_drain=drained.append)
    for number in range(2000):
        assert sock.send(b'%d' % number, slow_path)
    assert sock.queued > 0
    assert sock.send(b'hello', good_path)
    assert good.recv(100) == b'hello'  # the datagram was sent without waiting for a turn
    turns_in(r, 0.4)
    assert settles(r)
    assert r.stats().stalls > 1
    assert len(caplog.records) == 1
    assert 'full' in caplog.text
    got = []

    def read():
        try:
            while True:
                got.append(full.recv(100))
        except BlockingIOError:
            return len(got) == 2000

    run_until(r, read)
    assert got == [b'%d' % number for number in range(2000)]
    assert sock.queued == sock.buffered == 0
    assert not drained  # every `send` returned True
    assert len(caplog.records) == 1
    sock.close()
    turns(r, 2)


def test_receivers_that_are_full_are_tried_in_turn_and_each_gets_its_datagrams_in_order(r, unix):
    ours, _ = unix('ours')
    sock = r.bind_udp(None, 0, sock=ours.dup())
    receivers = [unix(str(number)) for number in range(5)]
    for number in range(100):
        for _, path in receivers:
            assert sock.send(b'%d' % number, path)
    got = {path: [] for _, path in receivers}
    for reader, path in reversed(receivers):  # each receiver gets all of its datagrams while the others stay full

        def read(reader=reader, path=path):
            try:
                while True:
                    got[path].append(reader.recv(100))
            except BlockingIOError:
                return len(got[path]) == 100

        run_until(r, read)
        assert got[path] == [b'%d' % number for number in range(100)]
    assert sock.queued == 0
    sock.close()
    turns(r, 2)


def test_a_receiver_that_is_gone_loses_only_its_own_datagrams(r, unix):
    (ours, _), (full, path) = unix('ours'), unix('full')
    errors = []
    sock = r.bind_udp(None, 0, sock=ours.dup(), on_send_error=lambda sock, exc: errors.append(exc.errno))
    for _ in range(1000):
        sock.send(b'x', path)
    waiting = sock.queued
    assert waiting
    full.close()
    run_until(r, lambda: not sock.queued)
    assert set(errors) == {errno.ECONNREFUSED}
    assert r.stats().datagrams_dropped == waiting
    sock.close()
    turns(r, 2)


def test_closing_while_receivers_are_full_counts_unsent_datagrams_and_leaves_no_timer(r, unix):
    (ours, _), (_, path) = unix('ours'), unix('full')
    ended = []
    sock = r.bind_udp(None, 0, sock=ours.dup(), on_close=lambda sock, exc: ended.append(sock.queued))
    for _ in range(1000):
        sock.send(b'x', path)
    waiting = sock.queued
    turns(r, 3)
    sock.close()
    turns(r, 1)
    assert ended == [waiting]
    assert sock.queued == 0


@linux
@pytest.mark.parametrize('size', [65_536, 65_537, 150_000, 200_000])
def test_a_long_unix_datagram_is_received_whole(r, size):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    got = []
    sock = r.bind_udp(None, 0, lambda sock, data, address: got.append(data), sock=ours)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    data = os.urandom(size)
    for message in (data, b'', b'short', data):
        theirs.send(message)
    run_until(r, lambda: len(got) == 4)
    assert got == [data, b'', b'short', data]
    sock.close()
    turns(r, 2)
    theirs.close()


@linux
def test_a_turn_reads_a_bounded_number_of_bytes_in_long_datagrams(r):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
    got = []
    sock = r.bind_udp(None, 0, lambda sock, data, address: got.append(r.stats().loop_count), sock=ours)
    theirs.setblocking(False)
    sent = 0
    try:
        while True:
            sent += theirs.send(bytes(150_000)) > 0
    except BlockingIOError:
        pass
    assert sent > 1
    run_until(r, lambda: len(got) == sent)
    assert len(set(got)) == sent  # each datagram arrived in a separate turn
    sock.close()
    turns(r, 2)
    theirs.close()


@linux
def test_an_unread_error_queue_of_a_datagram_socket_parks_it_for_a_moment(r, sockets, caplog):
    ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ours.bind(('127.0.0.1', 0))
    ours.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    got = []
    sock = r.bind_udp(None, 0, lambda sock, data, address: got.append(data), sock=ours)
    sock.send(b'x', refused_port())
    assert settles(r)
    assert r.stats().stalls > 1
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'MSG_ERRQUEUE' in caplog.text
    peer = sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    peer.sendto(b'still received', sock.address)
    run_until(r, lambda: got == [b'still received'])
    assert settles(r)
    assert len(caplog.records) == 1  # the same unread error is logged only once
    ours.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
    turns_in(r, 0.3)
    stalls = r.stats().stalls
    assert turns_in(r, 0.6) <= 3
    assert r.stats().stalls == stalls
    sock.close()
    turns(r, 2)


@linux
def test_an_unread_error_queue_of_a_connection_parks_it_for_a_moment(r, sockets, caplog):
    got, listener = [], sockets.track(socket.create_server(('127.0.0.1', 0)))
    ours = socket.create_connection(listener.getsockname())
    theirs = sockets.track(listener.accept()[0])
    ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | OPT_ID)
    conn = r.adopt(ours, lambda conn, data: got.append(data))
    conn.write(b'x')
    assert settles(r)
    assert len(caplog.records) == 1
    for number in range(3):
        theirs.send(b'%d' % number)
        run_until(r, lambda number=number: len(got) == number + 1)
        conn.write(b'echo')
        assert settles(r)
    assert len(caplog.records) == 1
    close_all(r, conn)


@linux
def test_a_watched_descriptor_whose_error_queue_is_not_read_is_parked_for_a_moment(r, caplog):
    calls = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.sendto(b'x', refused_port())

        def on_ready(handle, event):
            calls.append(event)
            try:
                sock.recv(100)
            except OSError:
                pass  # `recv` raises the error, but a copy of the error stays in the error queue

        watch = r.watch_fd(sock, READ, on_ready)
        assert settles(r)
        assert len(calls) >= STALLED
        watch.close()
    assert len(caplog.records) == 1


@linux
def test_a_watch_that_reads_one_error_in_each_call_is_never_parked(r):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(('127.0.0.1', 0))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | OPT_ID)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(('127.0.0.1', 0))
            for _ in range(3 * STALLED):
                sock.sendto(b'x', peer.getsockname())
        got = []
        watch = r.watch_fd(sock, READ, lambda handle, event: got.append(sock.recvmsg(1, 1000, socket.MSG_ERRQUEUE)))
        run_until(r, lambda: len(got) == 3 * STALLED)
        assert r.stats().stalls == 0
        watch.close()


def test_a_connection_that_sends_in_every_turn_is_never_parked_although_the_next_write_finds_no_room(scripted):
    r, make = scripted
    conn, sock = make()
    sock.outcomes = deque([BlockingIOError(), 5] * 3 * STALLED)
    conn.write(bytearray(5), write_again := lambda conn: conn.write(bytearray(5), write_again))
    turns(r, 3 * STALLED)
    assert len(sock.sent) == 5 * 3 * STALLED
    assert r.stats().stalls == 0
    close_all(r, conn)


@linux
@pytest.mark.parametrize('connected', [False, True])
def test_a_datagram_socket_that_other_code_shut_down_does_not_spin(r, sockets, connected):
    peer = sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    peer.bind(('127.0.0.1', 0))
    sock = r.connect_udp(*peer.getsockname()) if connected else r.bind_udp('127.0.0.1', 0)
    turns(r, 1)
    try:
        sock.sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # shutdown fails with "not connected", but the socket is shut down anyway
    assert settles(r)
    sock.close()
    turns(r, 2)


# -- false reports


@linux
@pytest.mark.parametrize('kind', ['watch', 'stream', 'listener', 'datagrams'])
def test_a_number_that_was_closed_while_a_copy_is_open_does_not_harm_the_next_handle_that_gets_it(r, sockets, kind):
    calls = []
    ours, theirs = sockets()
    lost = r.watch_fd(ours, READ, calls.append) if kind == 'watch' else r.adopt(ours)
    number, copy = ours.fileno(), os.dup(ours.fileno())
    os.close(ours.detach() if kind == 'watch' else number)
    theirs.send(b'x')  # from now on the duplicate of the lost descriptor is readable
    peer = None
    if kind in ('watch', 'stream'):
        new, peer = sockets()
        handle = (
            r.watch_fd(new, READ, lambda *args: calls.append(new.recv(9)))
            if kind == 'watch'
            else r.adopt(new, lambda conn, data: calls.append(data))
        )
    elif kind == 'listener':
        handle = r.listen_tcp('127.0.0.1', 0, on_connect=calls.append)
    else:
        handle = r.bind_udp('127.0.0.1', 0, lambda sock, data, address: calls.append(data))
    assert handle.fileno() == number
    assert settles(r)
    assert calls == []  # there was nothing to read, so no callback was called
    if kind == 'listener':
        peer = sockets.connect(handle.address)
    elif kind == 'datagrams':
        peer = sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        peer.sendto(b'x', handle.address)
    else:
        peer.send(b'x')
    run_until(r, lambda: calls)
    assert len(calls) == 1
    for open_handle in (*(calls if kind == 'listener' else ()), handle, lost):
        open_handle.abort()
    turns(r, 3)
    os.close(copy)


@linux
def test_a_connect_whose_error_other_code_has_read_fails(r, caplog):
    ended = []
    conn = r.connect_tcp(*refused_port(), on_close=lambda conn, exc: ended.append(exc))
    (attempt,) = [handle for handle in r.handles() if handle is not conn]
    time.sleep(0.05)
    assert attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    run_until(r, lambda: ended)
    assert ended[0].errno == errno.ENOTCONN
    assert caplog.records == []


class Deaf(socket.socket):
    """A socket that the selector reports as ready although `recv` and `send` would block."""

    deaf = True

    def recv(self, size, flags=0):
        if self.deaf:
            raise BlockingIOError
        return super().recv(size, flags)

    def send(self, data, flags=0):
        if self.deaf:
            raise BlockingIOError
        return super().send(data, flags)

    def sendmsg(self, buffers):
        if self.deaf:
            raise BlockingIOError
        return super().sendmsg(buffers)


@pytest.mark.parametrize('event', ['read', 'write'])
def test_a_connection_that_is_reported_ready_but_would_block_is_parked_and_works_again(r, sockets, event, caplog):
    ours, theirs = sockets()
    deaf, got = Deaf(fileno=ours.detach()), []
    conn = r.adopt(deaf, lambda conn, data: got.append(data))
    if event == 'read':
        theirs.send(b'x')
    else:
        conn.write(b'x')
    assert settles(r)
    assert len(caplog.records) == 1
    deaf.deaf = False
    if event == 'read':
        run_until(r, lambda: got == [b'x'])
    else:
        run_until(r, lambda: not conn.buffered)
        assert theirs.recv(9) == b'x'
    close_all(r, conn)


def test_a_parked_connection_can_be_paused_resumed_and_closed(r, sockets):
    ours, theirs = sockets()
    deaf, got = Deaf(fileno=ours.detach()), []
    conn = r.adopt(deaf, lambda conn, data: got.append(data))
    theirs.send(b'x')
    run_until(r, lambda: r.stats().stalls)
    assert conn.reading
    conn.pause_reading()
    deaf.deaf = False
    turns_in(r, 0.05)
    assert got == []
    deaf.deaf = True
    stalls = r.stats().stalls
    conn.resume_reading()
    run_until(r, lambda: r.stats().stalls > stalls)  # the connection was watched again at once
    conn.pause_reading()
    conn.resume_reading()
    run_until(r, lambda: r.stats().stalls > stalls + 1)  # the connection stalled again before its parking time was over
    deaf.deaf = False
    run_until(r, lambda: got == [b'x'])
    deaf.deaf = True
    theirs.send(b'x')
    stalls = r.stats().stalls
    run_until(r, lambda: r.stats().stalls > stalls)
    conn.close()
    turns(r, 2)  # the fixture checks that no timer is left


def test_a_handle_that_made_no_progress_once_is_not_referenced(r, sockets):
    ours, theirs = sockets()
    deaf = Deaf(fileno=ours.detach())
    conn = r.adopt(deaf)
    theirs.send(b'x')
    run_until(r, lambda: r.stats().stalls)
    gone = weakref.ref(conn)
    gc.disable()
    try:
        conn.abort()
        turns(r, 2)
        del conn
        assert gone() is None
    finally:
        gc.enable()


def test_progress_ends_a_row_of_turns_without_progress(r, sockets):
    ours, theirs = sockets()
    deaf, got = Deaf(fileno=ours.detach()), []
    conn = r.adopt(deaf, lambda conn, data: got.append(data))
    for _ in range(5):
        deaf.deaf = True
        theirs.send(b'x')
        turns(r, STALLED - 1)
        deaf.deaf = False
        turns(r, 1)
    assert len(got) == 5
    assert r.stats().stalls == 0
    close_all(r, conn)


@pytest.mark.parametrize('began', [0, 1000])
def test_a_handle_that_was_parked_before_is_parked_again_after_10_turns(sockets, began):
    kernel = FakeKernel()
    kernel.time = began
    with Reactor(kernel=kernel) as r:
        conn = r.adopt(sockets()[0])
        for count, stalls in (50, 1), (9, 1), (1, 2):
            for _ in range(count):
                turns(r, 1)
                r.spins.no_progress(conn)
            assert r.stats().stalls == stalls
            if count == 50:
                kernel.time += 1
                turns(r, 2)  # the handle is watched again, and makes progress
        conn.abort()
        turns(r, 1)


def stall_of_others(r, count):
    """Let `count` handles stall, each in a separate turn."""
    for _ in range(count):
        r.counters.loop_count += 2
        handle = Handle()
        handle.loop = r
        r.spins.stalled(handle)


def test_rows_that_have_ended_are_forgotten_when_there_are_many(r):
    stall_of_others(r, 3 * MOST_STALLS)
    assert len(r.spins.stalls) <= MOST_STALLS


def test_a_row_that_continues_is_not_forgotten_however_many_others_there_are(r, sockets):
    conn = r.adopt(sockets()[0])
    stall_of_others(r, MOST_STALLS - 1)
    for _ in range(50):
        r.counters.loop_count += 1
        r.spins.no_progress(conn)
        for _ in range(20):
            handle = Handle()
            handle.loop = r
            r.spins.stalled(handle)
    assert r.stats().stalls == 1
    conn.close()
    turns(r, 1)


def test_a_parked_handle_is_watched_again_however_many_others_make_no_progress(r, sockets, caplog):
    ours, theirs = sockets()
    log = Log()
    conn = r.adopt(ours, log.on_data)
    for _ in range(50):
        turns(r, 1)
        r.spins.no_progress(conn)
    assert r.stats().stalls == 1
    stall_of_others(r, 2 * MOST_STALLS)
    theirs.send(b'x')
    run_until(r, lambda: log)
    assert not [record for record in caplog.records if record.exc_info]
    conn.close()
    turns(r, 1)


# -- a selector that makes the loop itself spin


@linux
def test_a_selector_that_can_neither_report_nor_be_replaced_does_not_spin(r, monkeypatch):
    """At the descriptor limit no new epoll can be made, so the loop sleeps between its attempts."""

    class Blind(selectors.SelectSelector):
        blind = True

        def select(self, timeout=None):
            return [] if self.blind else super().select(timeout)

    def new_selector_like(selector):
        raise OSError(errno.EMFILE, 'no descriptor is left')

    with Reactor(selector=Blind()) as blind:
        monkeypatch.setattr(blind.kernel, 'new_selector_like', new_selector_like)
        assert turns_in(blind, 0.5) <= 1000  # most turns are in the last millisecond, which is too short to judge
        calls = []
        blind.watchers.selector.blind = False
        in_thread(blind.call_soon_threadsafe, calls.append, 1)
        run_until(blind, lambda: calls)


def test_a_selector_that_is_replaced_is_logged_once_and_counted(caplog):
    class Blind(selectors.SelectSelector):
        blind = 100

        def select(self, timeout=None):
            Blind.blind -= 1
            return [] if Blind.blind >= 0 else super().select(timeout)

    with Reactor(selector=Blind()) as r:
        turns_in(r, 0.1)
        assert r.stats().stalls == 5
    assert caplog.text.count('was replaced') == 1


def test_a_call_is_made_although_the_doorbell_cannot_be_rung_for_want_of_memory(r, monkeypatch, caplog):
    class Mute:
        def __init__(self, real):
            self.real = real

        def send(self, data):
            raise OSError(errno.ENOBUFS, 'no memory')

        def __getattr__(self, name):
            return getattr(self.real, name)

    real = r.kernel.socketpair
    monkeypatch.setattr(r.kernel, 'socketpair', lambda: (lambda ours, theirs: (ours, Mute(theirs)))(*real()))
    r._wakeup._bell = Mute(r._wakeup._bell)
    calls = []
    for number in range(3):
        in_thread(r.call_soon_threadsafe, calls.append, number)
        run_until(r, lambda number=number: len(calls) == number + 1)
    assert calls == [0, 1, 2]
    assert caplog.text.count('wakeup socket') == 1


class Cramped(socket.socket):
    """A datagram socket that can receive, but never has room to send, although it is reported as writable."""

    cramped = True

    def sendto(self, data, address):
        if self.cramped:
            raise BlockingIOError
        return super().sendto(data, address)


def test_a_udp_socket_that_has_no_room_although_it_is_writable_goes_on_receiving(r, sockets, caplog):
    ours, got = Cramped(socket.AF_INET, socket.SOCK_DGRAM), []
    ours.bind(('127.0.0.1', 0))
    sock = r.bind_udp(None, 0, lambda sock, data, address: got.append(data), sock=ours)
    peer = sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    peer.bind(('127.0.0.1', 0))
    assert sock.send(b'answer', peer.getsockname())
    turns_in(r, 0.4)
    assert settles(r)
    assert len(caplog.records) == 1
    for number in range(3):
        peer.sendto(b'%d' % number, sock.address)
        turns_in(r, 0.02)
        assert len(got) == number + 1  # received at once, although nothing can be sent
    ours.cramped = False
    peer.settimeout(5)
    run_until(r, lambda: not sock.queued)
    assert peer.recv(100) == b'answer'
    sock.close()
    turns(r, 2)
