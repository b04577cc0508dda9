"""Ending a server with `drain`: what it waits for, and when it closes listeners and connections.

The clock moves only while the loop waits.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import sys
import weakref
from pathlib import Path
from socket import AF_INET
from typing import Any

import pytest

from reactor import READ, DrainTimeout, HandleClosed, Reactor, ReactorError
from reactor.kernel import Kernel
from reactor.kernel.platforms import AF_UNIX, TCP_DEFER_ACCEPT
from reactor.loop.timers import Timer, TimerHeap
from reactor.net.drain import CHECK_COST, CHECK_INTERVAL, GRACE, HANDSHAKE
from reactor.net.listener import ACCEPTS_PER_TURN
from reactor.testing.programs.service import drain as drain_program
from tests.conftest import check_empty
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import (
    SELECTORS,
    FakeKernel,
    FakeSelector,
    Log,
    drain,
    end,
    in_thread,
    reset,
    run_short,
    run_until,
    turns,
)
from tests.testing.test_programs import RealWorld

HERE = '127.0.0.1'
needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')
LARGE = b'x' * 8_000_000  # more than the kernel's buffers hold


@pytest.fixture(params=list(SELECTORS))
def r(request: Any):
    """A reactor on each kind of selector, with a clock that moves only while the loop waits."""
    if SELECTORS[request.param] is None:
        pytest.skip(f'this platform has no {request.param} selector')
    kernel = FakeKernel()
    selector = FakeSelector(kernel)
    selector.real.close()
    selector.real = SELECTORS[request.param]()
    with Reactor(selector, kernel) as reactor:
        yield reactor
        check_empty(reactor)


class Server:
    """A server whose connections are busy from the first byte they receive until `answer` is called."""

    def __init__(self, r: Reactor, path: str | None = None, **keywords: Any) -> None:
        self.log, self.conns = Log(), []
        callbacks = {'on_connect': self.conns.append, 'on_close': self.log.on_close, **keywords}
        if path is None:
            self.listener = r.listen_tcp(HERE, 0, self.on_data, **callbacks)
        else:
            self.listener = r.listen_unix(path, self.on_data, **callbacks)

    def on_data(self, conn, data):
        self.log.on_data(conn, data)
        conn.busy = True

    def answer(self, data=b'answer'):
        for conn in self.conns:
            if conn.busy:
                conn.write(data)
                conn.busy = False


def ask(r, server, client, request=b'request'):
    """Send a request, and run until the server has received it."""
    before = server.log.received
    client.sendall(request)
    run_until(r, lambda: server.log.received == before + request)


def connected(r, server, sockets, count=1):
    """Connect `count` clients, and run until the server has accepted them."""
    before = len(server.conns)
    clients = [sockets.connect(server.listener.address) for _ in range(count)]
    run_until(r, lambda: len(server.conns) == before + count)
    return clients


def ended(client):
    """Return the bytes that a client has received, or None if the server has not closed the connection cleanly."""
    received = drain(client)
    try:
        return received if not client.recv(1) else None
    except BlockingIOError:
        return None


# -- the whole drain


def test_a_server_without_connections_stops_and_run_returns_false(r):
    server = Server(r)
    assert not r.draining
    r.drain(10)
    assert r.draining
    assert r.run() is False
    assert server.listener.closed
    assert 1000 <= r.now < 1000 + 2 * CHECK_INTERVAL


def test_a_drain_ends_although_signal_handlers_and_timers_are_left(r):
    r.listen_tcp(HERE, 0)
    handler = r.add_signal_handler(signal.SIGTERM, r.drain, 10)
    timer = r.call_every(60, turns, r, 1)
    r.call_soon(os.kill, os.getpid(), signal.SIGTERM)
    assert r.run() is False
    assert r.handles() == [handler]
    handler.close()
    timer.cancel()


def test_an_unreferenced_signal_handler_does_not_keep_a_program_running_that_closes_its_handles(r):
    server = r.listen_tcp(HERE, 0)
    handler = r.add_signal_handler(signal.SIGTERM, server.close)
    handler.unref()
    r.call_soon(os.kill, os.getpid(), signal.SIGTERM)
    assert r.run() is True
    handler.close()


def test_a_drain_ends_even_when_nothing_was_ever_opened(r):
    r.drain(10, lame_duck=2)
    assert r.run() is False
    assert r.now == 1002


def test_an_idle_connection_is_closed_cleanly_after_a_grace_period(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    began = r.now
    r.drain(10)
    assert r.run() is False
    assert server.log == [('close', None)]
    assert client.recv(1) == b''
    assert began + GRACE <= r.now < began + GRACE + 2 * CHECK_INTERVAL


@pytest.mark.scenario(113)
def test_a_busy_connection_is_answered_first(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    r.drain(10)
    r.call_later(4, server.answer)
    assert r.run() is False
    assert server.log[1:] == [('close', None)]
    assert ended(client) == b'answer'


def test_a_connection_that_the_application_closes_is_no_longer_waited_for(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    began = r.now
    r.drain(10)
    r.call_later(4, lambda: (server.answer(), server.conns[0].close()))
    assert r.run() is False
    assert r.now <= began + 4 + CHECK_INTERVAL + 0.01
    assert ended(client) == b'answer'


@pytest.mark.scenario(113)
def test_an_answer_that_waits_for_its_reader_is_sent_to_the_end(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    server.answer(LARGE)
    received = bytearray()
    reader = r.call_later(4, lambda: None)
    reader.unref()
    r.drain(30)
    r.call_later(4, lambda: r.call_every(0.01, lambda: received.extend(drain(client))).unref())
    assert r.run() is False
    received += drain(client)
    assert received == LARGE
    assert server.log[1:] == [('close', None)]
    r.timers.clear()


@pytest.mark.scenario(113)
def test_a_connection_that_is_not_done_at_the_timeout_is_reset_with_the_reason(r, sockets):
    server = Server(r)
    idle_one, client = connected(r, server, sockets, 2)
    ask(r, server, client)
    r.call_at(r.now, lambda: None)
    began = r.timers.clock()
    r.drain(5)
    assert r.run() is False
    assert r.now == pytest.approx(began + 5)
    (_, clean), (_, exc) = server.log[1:]
    assert clean is None and isinstance(exc, DrainTimeout) and isinstance(exc, TimeoutError)
    host, port = client.getsockname()
    assert str(exc) == (
        f'{host}:{port} was not finished within 5 s of drain(): its answer was under way, 0 bytes were buffered; '
        'the connection was reset'
    )
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert idle_one.recv(1) == b''


def test_a_timeout_of_zero_resets_at_once(r, sockets):
    server = Server(r)
    connected(r, server, sockets)
    r.drain(0)
    assert r.run() is False
    assert [type(exc) for _, exc in server.log] == [DrainTimeout]
    assert 'it was not busy' in str(server.log[0][1])


@pytest.mark.parametrize('timeout', [0.25, 1])
def test_idle_connections_are_closed_cleanly_however_many_there_are(r, sockets, timeout, monkeypatch):
    # At a cost of 1 s per handle, the second check would come after the timeout if the interval between the checks had
    # no upper limit.
    monkeypatch.setattr('reactor.net.drain.CHECK_COST', 1.0)
    server = Server(r)
    connected(r, server, sockets, 3)
    r.drain(timeout)
    assert r.run() is False
    assert server.log == [('close', None)] * 3


def test_many_connections_are_closed_a_few_in_each_turn(r, sockets, monkeypatch):
    monkeypatch.setattr('reactor.net.drain.CLOSES_PER_TURN', 4)
    server = Server(r)
    connected(r, server, sockets, 10)
    r.drain(10)
    closed = []
    while r.run_once():
        closed.append(len(server.log))
    closed.append(len(server.log))
    assert [count for count in dict.fromkeys(closed) if count] == [4, 8, 10]


# -- lame duck


@pytest.mark.scenario(113)
def test_a_lame_duck_accepts_and_answers_and_closes_nothing(r, sockets):
    server = Server(r)
    (early,) = connected(r, server, sockets)
    began = r.timers.clock()
    r.drain(30, lame_duck=5)
    (late,) = connected(r, server, sockets)
    ask(r, server, late)
    server.answer()
    r.call_at(began + 4.99, lambda: server.log.append(('late', r.draining, server.listener.closed)))
    assert r.run() is False
    assert server.log[1:] == [('late', True, False), ('close', None), ('close', None)]
    assert (ended(early), ended(late)) == (b'', b'answer')
    assert began + 5 + GRACE <= r.now < began + 5 + GRACE + 2 * CHECK_INTERVAL


# -- the accept queue


@pytest.mark.scenario(113)
@pytest.mark.parametrize('count', [1, ACCEPTS_PER_TURN + 1, 3 * ACCEPTS_PER_TURN])
def test_clients_in_the_accept_queue_are_accepted_and_answered(r, sockets, count):
    server = Server(r)
    clients = [sockets.connect(server.listener.address) for _ in range(count)]
    for client in clients:
        client.send(b'?')
    r.drain(10)
    r.call_later(1, server.answer)
    assert r.run() is False
    assert [ended(client) for client in clients] == [b'answer'] * count
    assert r.stats().requests == r.stats().accepts == count


@pytest.mark.scenario(113)
def test_the_client_accepted_last_has_time_to_send_its_request(r, sockets):
    server = Server(r)
    client = sockets.connect(server.listener.address)
    began = r.now
    r.drain(10)
    run_until(r, lambda: server.listener.closed)
    assert server.conns
    r.call_at(began + 0.9 * GRACE, client.send, b'?')
    r.call_at(began + 1, server.answer)
    assert r.run() is False
    assert ended(client) == b'answer'


@pytest.mark.scenario(113)
@pytest.mark.parametrize('can_drop', [True, False])
@pytest.mark.parametrize('path', [None, pytest.param('s', marks=needs_unix)])
def test_a_client_that_connects_after_the_last_check_is_served(r, sockets, tmp_path, monkeypatch, can_drop, path):
    monkeypatch.chdir(tmp_path)
    server = Server(r, path)
    clients = []

    def connect_late(sock):
        if not clients:
            clients.append(sockets.track(socket.socket(AF_INET if path is None else AF_UNIX)))
            clients[0].connect(server.listener.address)
            clients[0].setblocking(False)
            clients[0].send(b'?')
        return can_drop

    r.kernel.drop_new_connections = connect_late
    r.drain(10)
    r.call_later(1, server.answer)
    assert r.run() is False
    assert ended(clients[0]) == b'answer'


@pytest.mark.scenario(113)
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux can drop new connections')
def test_a_listener_that_drops_new_connections_keeps_its_queue(sockets):
    listener = sockets.track(socket.create_server((HERE, 0)))
    early = sockets.connect(listener.getsockname())
    assert Kernel().drop_new_connections(listener)
    late = sockets.track(socket.socket())
    late.settimeout(0.1)
    with pytest.raises(TimeoutError):
        late.connect(listener.getsockname())
    listener.setblocking(False)
    accepted = sockets.track(listener.accept()[0])
    assert accepted.getpeername() == early.getsockname()
    assert not Kernel().has_clients(listener)


@pytest.mark.skipif(TCP_DEFER_ACCEPT < 0, reason='a handshake can be held open only with TCP_DEFER_ACCEPT')
def test_a_handshake_that_has_begun_is_completed_while_new_connections_are_dropped(sockets):
    # With TCP_DEFER_ACCEPT the client already sees an open connection, but the kernel waits for the client's
    # first bytes before it reports the connection to the listener.
    listener = sockets.track(socket.create_server((HERE, 0)))
    listener.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 10)
    client = sockets.connect(listener.getsockname())
    assert not Kernel().has_clients(listener)
    Kernel().drop_new_connections(listener)
    client.send(b'?')
    listener.settimeout(10)
    accepted = sockets.track(listener.accept()[0])
    accepted.settimeout(10)
    assert accepted.recv(1) == b'?'


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux can drop new connections')
@pytest.mark.skipif(TCP_DEFER_ACCEPT < 0, reason='a handshake can be held open only with TCP_DEFER_ACCEPT')
def test_a_client_in_its_handshake_when_the_queue_was_checked_is_served(r, sockets):
    server = Server(r)
    server.listener.sock.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 10)
    client = sockets.connect(server.listener.address)
    r.drain(10)
    turns(r, 1)
    assert not server.listener.closed
    client.send(b'?')
    r.call_later(1, server.answer)
    assert r.run() is False
    assert ended(client) == b'answer'


@needs_unix
def test_new_connections_to_a_unix_socket_cannot_be_dropped(tmp_path):
    with socket.socket(AF_UNIX) as listener:
        listener.bind(str(tmp_path / 'sock'))
        listener.listen()
        assert not Kernel().drop_new_connections(listener)


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
@pytest.mark.parametrize('good', [0, 1, 2, 3])
def test_a_drain_without_memory_or_stack_does_not_begin(r, monkeypatch, kind, good):
    made, called = [], []
    r.add_drain_callback(called.append)
    later = TimerHeap.later

    def fails(timers, *args):
        if len(made) == good:
            raise kind
        made.append(later(timers, *args))
        return made[-1]

    with monkeypatch.context() as patched:
        patched.setattr(TimerHeap, 'later', fails)
        with pytest.raises(kind):
            r.drain(10)
    assert not r.draining
    assert len(r.timers) == 0
    r.drain(10)
    assert r.run() is False
    assert called == [10]


def test_timers_of_a_drain_that_failed_to_begin_do_nothing_when_they_cannot_be_cancelled(r, monkeypatch):
    server, later = Server(r), TimerHeap.later

    def fails(timers, delay, fn, *args):
        if fn.__name__ == '_check':
            raise MemoryError
        return later(timers, delay, fn, *args)

    with monkeypatch.context() as patched:
        patched.setattr(TimerHeap, 'later', fails)
        run_short(patched, Timer, 'cancel', 9)
        with pytest.raises(MemoryError):
            r.drain(10)
    run_until(r, lambda: not len(r.timers))
    assert not r.draining and not server.listener.closed
    r.drain(10)
    assert r.run() is False


def test_dropping_new_connections_of_a_closed_listener_raises_nothing(sockets):
    listener = sockets.track(socket.create_server((HERE, 0)))
    listener.close()
    assert not Kernel().drop_new_connections(listener)


def test_a_drain_works_where_accepting_cannot_be_deferred(r, monkeypatch):
    Server(r, defer_accept=True)
    monkeypatch.setattr('reactor.net.sockets.TCP_DEFER_ACCEPT', -1)
    r.drain(10)
    assert r.run() is False


@pytest.mark.parametrize('how', ['number', 'socket'])
def test_a_listener_that_lost_its_descriptor_does_not_delay_the_drain(r, how):
    server = Server(r, defer_accept=True)
    if how == 'number':
        os.close(server.listener.sock.fileno())
    else:
        server.listener.sock.close()
    r.drain(10)
    assert r.run() is False
    assert server.listener.closed


def test_an_inherited_listener_is_left_unchanged(r, sockets):
    # Clients that connect now are served by another process, which has the same listening socket.
    ours = sockets.track(socket.create_server((HERE, 0)))
    theirs = sockets.track(ours.dup())
    r.listen_tcp(None, 0, sock=ours, defer_accept=True)
    r.drain(10)
    assert r.run() is False
    assert r.now < 1000 + 2 * CHECK_INTERVAL
    client = sockets.connect(theirs.getsockname())
    client.send(b'?')
    theirs.settimeout(10)
    assert sockets.track(theirs.accept()[0]).recv(1) == b'?'
    if TCP_DEFER_ACCEPT >= 0:
        assert theirs.getsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux can drop new connections')
def test_an_inherited_listener_drops_new_connections_when_it_is_the_last_one(r, sockets):
    ours = sockets.track(socket.create_server((HERE, 0)))
    address = ours.getsockname()
    listener = r.listen_tcp(None, 0, sock=ours, defer_accept=True)
    listener.handle_last()
    assert not ours.getsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT)
    r.drain(10)
    turns(r, 1)
    late = sockets.track(socket.socket())
    late.settimeout(0.1)
    with pytest.raises(TimeoutError):
        late.connect(address)
    assert r.run() is False
    assert listener.closed


def test_a_paused_listener_accepts_its_queue_when_it_is_resumed(r, sockets):
    server = Server(r)
    server.listener.pause()
    client = sockets.connect(server.listener.address)
    client.send(b'?')
    r.drain(10)
    r.call_later(2, lambda: server.log.append(('accepted', r.stats().accepts)))
    r.call_later(3, server.listener.resume)
    r.call_later(4, server.answer)
    assert r.run() is False
    assert server.log[0] == ('accepted', 0)
    assert ended(client) == b'answer'


def test_a_paused_listener_with_an_empty_queue_is_closed_soon(r):
    server = Server(r)
    server.listener.pause()
    r.drain(10)
    assert r.run() is False
    assert r.now < 1000 + 2 * CHECK_INTERVAL


def test_a_paused_listener_refuses_its_queue_at_the_timeout(r, sockets):
    server = Server(r)
    server.listener.pause()
    client = sockets.connect(server.listener.address)
    r.drain(10)
    assert r.run() is False
    assert r.now == pytest.approx(1010)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.scenario(113)
def test_a_full_listener_serves_its_queue_when_there_is_room(r, sockets):
    server = Server(r, max_connections=2)
    clients = [sockets.connect(server.listener.address) for _ in range(7)]
    for client in clients:
        client.send(b'?')
    r.drain(30)
    most = []
    r.call_every(0.3, lambda: (most.append(server.listener.open_connections), server.answer())).unref()
    assert r.run() is False
    assert [ended(client) for client in clients] == [b'answer'] * 7
    assert max(most) == 2
    r.timers.clear()


def test_a_listener_that_begins_during_a_drain_is_closed_too(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    r.drain(10)
    late = []
    r.call_later(1, lambda: late.append(r.listen_tcp(HERE, 0)))
    r.call_later(2, server.answer)
    assert r.run() is False
    assert late[0].closed


@pytest.mark.scenario(113)
@pytest.mark.skipif(TCP_DEFER_ACCEPT < 0, reason='this platform has no TCP_DEFER_ACCEPT')
def test_with_defer_accept_a_silent_client_is_accepted_during_the_lame_duck(sockets):
    # If the client were not accepted, it would first see an open connection, and then be refused when it sends its
    # first bytes.
    with Reactor() as r:
        server = Server(r, defer_accept=True)
        r.drain(10, lame_duck=0.2)
        (client,) = connected(r, server, sockets)
        client.send(b'?')
        run_until(r, lambda: server.log.received)
        server.answer()
        assert r.run() is False
        assert ended(client) == b'answer'


def test_with_defer_accept_a_client_that_has_sent_data_is_in_the_queue(r, sockets):
    server = Server(r, defer_accept=True)
    client = sockets.connect(server.listener.address)
    client.send(b'?')
    r.drain(10)
    r.call_later(1, server.answer)
    assert r.run() is False
    assert ended(client) == b'answer'


# -- which connections are idle


@pytest.mark.scenario(113)
def test_a_connection_with_something_unread_is_not_closed(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    (conn,) = server.conns
    conn.pause_reading()
    client.send(b'?')
    assert conn.unread
    r.drain(10)
    r.call_later(4, conn.resume_reading)
    r.call_later(5, server.answer)
    assert r.run() is False
    assert server.log == [('data', b'?'), ('close', None)]
    assert ended(client) == b'answer'


def test_a_connection_whose_peer_has_ended_is_closed_at_once(r, sockets):
    server = Server(r, on_eof=lambda conn: None)
    client, paused = connected(r, server, sockets, 2)
    server.conns[1].pause_reading()
    for sock in client, paused:
        sock.shutdown(socket.SHUT_WR)
    run_until(r, lambda: server.conns[0].events == 0)
    r.drain(10)
    assert r.run() is False
    assert r.now < 1001
    assert server.log == [('close', None)] * 2


def test_the_drain_does_not_wait_for_a_peer_that_has_reset(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    server.conns[0].pause_reading()
    reset(client)
    assert not server.conns[0].unread
    r.drain(10)
    assert r.run() is False
    assert r.now < 1001


def test_a_connection_that_is_used_during_the_drain_is_not_idle(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    r.drain(10)
    r.run_once(0)
    r.call_later(0.9 * GRACE, client.send, b'?')
    r.call_later(1, server.answer)
    assert r.run() is False
    assert ended(client) == b'answer'


def test_a_request_that_arrives_in_the_turn_of_the_check_is_seen(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    seen = []
    unread = type(server.conns[0]).unread.fget

    class Asked(type(server.conns[0])):
        __slots__ = ()

        @property
        def unread(self):
            if not seen:
                client.send(b'?')
            seen.append(unread(self))
            return seen[-1]

    server.conns[0].__class__ = Asked
    r.drain(10, lame_duck=5)
    r.call_later(7, server.answer)
    assert r.run() is False
    assert any(seen)
    assert ended(client) == b'answer'


def test_a_connection_whose_send_has_failed_is_read_to_its_end(r, sockets):
    class Broken:
        def __init__(self, sock):
            self.sock = sock

        def send(self, data):
            raise BrokenPipeError(errno.EPIPE, 'planted')

        def __getattr__(self, name):
            return getattr(self.sock, name)

    server = Server(r, read_size=1000)
    (client,) = connected(r, server, sockets)
    (conn,) = server.conns
    client.send(b'x' * 50_000)
    conn.sock = Broken(conn.sock)
    conn.write(b'?')
    r.drain(10)
    assert r.run() is False
    assert len(server.log.received) == 50_000
    assert isinstance(server.log[-1][1], BrokenPipeError)
    assert r.now < 1001


@pytest.mark.parametrize(('timeout', 'seconds'), [(100, 3), (8, 2)])
def test_a_drain_checks_less_often_with_more_open_handles_and_more_often_before_the_timeout(
    r, sockets, monkeypatch, caplog, timeout, seconds
):
    monkeypatch.setattr('reactor.net.drain.CHECK_COST', 1.0)
    server = Server(r)
    connected(r, server, sockets, 2)
    r.drain(timeout)  # the first check closes nothing: no connection has been idle for long enough
    assert r.run() is False
    assert seconds <= r.now - 1000 < seconds + 2 * CHECK_INTERVAL
    assert [exc for _, exc in server.log] == [None] * 2
    assert not caplog.records


@pytest.mark.scenario(113)
def test_a_drain_that_waits_does_not_spin(r, sockets):
    server = Server(r, max_connections=2)
    busy, paused = connected(r, server, sockets, 2)
    waiting = sockets.connect(server.listener.address)
    ask(r, server, busy)
    server.conns[1].pause_reading()
    paused.send(b'?')
    r.drain(60)
    before = r.stats()
    r.call_later(10, r.stop)
    r.run()
    after = r.stats()
    assert after.loop_count - before.loop_count < 10 / CHECK_INTERVAL + 10
    assert after.events == before.events
    end(r, *server.conns)
    waiting.close()
    assert r.run() is False


# -- handles that a drain does not close, or does not wait for


def test_a_drain_does_not_close_streams_that_the_application_made(r, sockets):
    with socket.create_server((HERE, 0)) as other:
        outgoing = r.connect_tcp(*other.getsockname())
        theirs = sockets.track(other.accept()[0])
    ours, peer = sockets()
    adopted = r.adopt(ours)
    run_until(r, lambda: outgoing.state == 'OPEN')
    timer = r.call_later(1000, lambda: None)
    Server(r)
    r.drain(10)
    assert r.run() is False
    assert r.now < 1001
    assert not outgoing.closed and not adopted.closed
    timer.cancel()
    end(r, outgoing, adopted)
    assert theirs and peer


@pytest.mark.parametrize('busy', [False, True])
def test_the_drain_waits_for_streams_of_the_application_while_they_are_busy(r, sockets, busy):
    ours, theirs = sockets()
    conn = r.adopt(ours)
    if busy:
        conn.busy = True
        r.call_later(4, lambda: setattr(conn, 'busy', False))
    else:
        conn.write(LARGE)
        r.call_later(4, lambda: r.call_every(0.01, drain, theirs).unref())
    r.drain(10)
    assert r.run() is False
    assert r.now >= 1004
    assert not conn.closed and not conn.buffered
    r.timers.clear()
    end(r, conn)


def test_a_stream_of_the_application_that_was_closed_is_not_busy(r, sockets):
    ours, theirs = sockets()
    conn = r.adopt(ours)
    conn.busy = True
    conn.pause_reading()
    conn.close()
    assert conn.state == 'CLOSING'
    r.drain(10)
    assert r.run() is False
    assert r.now == 1000
    assert theirs.recv(1) == b''
    end(r, conn)


def test_the_timeout_does_not_close_streams_that_the_application_made(r, sockets):
    ours, theirs = sockets()
    conn = r.adopt(ours)
    conn.busy = True
    r.drain(3)
    assert r.run() is False
    assert r.now == pytest.approx(1003)
    assert not conn.closed and theirs
    end(r, conn)


@pytest.mark.scenario(113)
def test_peers_have_a_second_to_end_their_side(r, sockets):
    # After close(), the reactor reads and drops data that still arrives: closing the socket at once would reset the
    # connection, and data in flight would be lost. Many peers notice the end only when they next write.
    server = Server(r)
    silent, prompt, chatty = connected(r, server, sockets, 3)
    r.drain(30)
    for conn in server.conns:
        conn.write(LARGE)
        conn.close()
    received = [bytearray() for _ in range(3)]

    def read():
        for sock, data in zip((silent, prompt, chatty), received, strict=True):
            if sock.fileno() >= 0:
                data.extend(drain(sock))
        if len(received[1]) == len(LARGE):
            prompt.close()

    reader = r.call_every(0.01, read)
    chatter = r.call_every(0.3, chatty.send, b'and another thing')
    for timer in reader, chatter:
        timer.unref()
    assert r.run() is False
    assert 1 <= r.now - 1000 < 2
    assert received == [LARGE] * 3
    assert [exc for _, exc in server.log] == [None] * 3
    r.timers.clear()


# -- drain callbacks


def test_drain_callbacks_get_the_seconds_left_and_run_in_order_before_anything_is_closed(r, sockets):
    server, log = Server(r), []
    (client,) = connected(r, server, sockets)
    for name in 'first', 'second':
        r.add_drain_callback(lambda *args: log.append((*args, server.listener.closed, r.draining)), name, 3)
    r.run_once(0)
    assert log == []
    r.drain(10)
    assert log == []  # never inside a call of the API
    turns(r, 1)
    assert log == [(10, 'first', 3, False, True), (10, 'second', 3, False, True)]
    assert r.run() is False
    assert ended(client) == b'' and len(log) == 2


def test_a_drain_callback_can_have_the_drain_wait_for_a_connection(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    began = r.now

    def say_goodbye(seconds):
        for conn in server.conns:
            conn.write(b'going away')
            conn.busy = True

    r.add_drain_callback(say_goodbye)
    r.drain(10)
    r.call_later(4, client.send, b'bye')
    r.call_later(4.1, server.answer, b'!')
    assert r.run() is False
    assert r.now > began + 4 and server.log == [('data', b'bye'), ('close', None)]
    assert ended(client) == b'going away!'


def test_a_drain_callback_can_delay_a_drain_that_has_nothing_else_to_wait_for(r, sockets):
    ours, _ = sockets()
    conn = r.adopt(ours)
    r.add_drain_callback(lambda seconds: setattr(conn, 'busy', True))
    r.drain(10)
    r.call_later(3, conn.close)
    began = r.now
    assert r.run() is False
    assert r.now >= began + 3


def test_the_seconds_are_read_when_the_callback_runs(r):
    log = []
    r.add_drain_callback(log.append)
    r.drain(10, lame_duck=10)
    r.kernel.time += 3
    r.drain(4)
    r.kernel.time += 1
    assert r.run() is False
    assert log == [3]


def test_a_second_drain_does_not_call_the_drain_callbacks_again(r, sockets):
    server, log = Server(r), []
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    r.add_drain_callback(log.append)
    r.drain(20, lame_duck=5)
    r.call_later(1, r.drain, 10)
    r.call_later(2, server.answer)
    assert r.run() is False
    assert log == [20]
    r.drain(5)
    r.run()
    assert log == [20]


def test_drain_callbacks_run_even_when_the_timeout_is_zero(r, sockets):
    server, log = Server(r), []
    connected(r, server, sockets)
    r.add_drain_callback(lambda seconds: log.append((seconds, server.conns[0].closed)))
    r.drain(0)
    assert r.run() is False
    assert log == [(0, False)]


@pytest.mark.parametrize('how', ['soon', 'timer', 'data', 'close'])
def test_a_drain_that_is_begun_in_a_callback_calls_the_drain_callbacks_afterwards(r, sockets, how):
    log = []

    def begin(*args):
        r.drain(10)
        log.append('drain returned')

    ours, theirs = sockets()
    r.add_drain_callback(lambda seconds: log.append('called'))
    conn = r.adopt(ours, begin if how == 'data' else None, on_close=begin if how == 'close' else None)
    {'soon': lambda: r.call_soon(begin), 'timer': lambda: r.call_later(0, begin),
     'data': lambda: theirs.send(b'x'), 'close': conn.close}[how]()  # fmt: skip
    assert r.run() is False
    assert log == ['drain returned', 'called']
    end(r, conn)


def test_an_exception_in_a_drain_callback_is_reported_and_the_others_and_the_drain_go_on(r, sockets, caplog):
    def fails(seconds):
        raise ValueError('planted')

    server, log = Server(r), []
    (client,) = connected(r, server, sockets)
    r.add_drain_callback(fails)
    r.add_drain_callback(log.append)
    r.drain(10)
    assert r.run() is False
    assert log == [10] and ended(client) == b'' and server.listener.closed
    assert [record.exc_info[1].args for record in caplog.records] == [('planted',)]
    assert r.stats().callback_errors == 1


@pytest.mark.parametrize('kind', [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_of_a_drain_callback_that_leaves_run_loses_no_other_callback(kind):
    def fails(seconds):
        raise kind

    log = []
    with Reactor(kernel=FakeKernel(), catch_errors=False) as r:
        r.add_drain_callback(fails)
        r.add_drain_callback(log.append)
        r.drain(10)
        with pytest.raises(kind):
            r.run()
        assert r.run() is False
    assert log == [10]


def test_a_callback_that_is_added_during_a_drain_is_called_soon(r):
    log = []
    r.add_drain_callback(lambda seconds: r.add_drain_callback(log.append))
    r.drain(10, lame_duck=10)
    r.call_later(2, lambda: (r.add_drain_callback(log.append), log.append('added')))
    assert r.run() is False
    assert log == [pytest.approx(10, abs=0.1), 'added', pytest.approx(8, abs=0.1)]


def test_a_drain_that_could_not_begin_calls_no_callback_and_the_next_one_does(r, monkeypatch):
    log, later = [], TimerHeap.later

    def fails(timers, delay, fn, *args):
        if fn.__name__ == '_check':
            raise MemoryError
        return later(timers, delay, fn, *args)

    r.add_drain_callback(log.append)
    with monkeypatch.context() as patched:
        patched.setattr(TimerHeap, 'later', fails)
        run_short(patched, Timer, 'cancel', 9)
        with pytest.raises(MemoryError):
            r.drain(10)
    run_until(r, lambda: not len(r.timers))
    assert log == []
    r.drain(10)
    assert r.run() is False
    assert log == [10]


@pytest.mark.parametrize('fn', [None, 5, lambda: None, lambda seconds, more: None])
def test_a_drain_callback_that_cannot_be_called_is_refused(r, fn):
    with pytest.raises(TypeError):
        r.add_drain_callback(fn)
    with pytest.raises(TypeError):
        r.add_drain_callback(lambda seconds: None, 'one too many')
    r.drain(1)
    assert r.run() is False


def test_a_closed_reactor_takes_no_drain_callback_and_keeps_none():
    class Target:
        def method(self, seconds):
            raise AssertionError('close is not a drain')

    target = Target()
    alive = weakref.ref(target)
    r = Reactor()
    r.add_drain_callback(target.method)
    del target
    r.close()
    assert alive() is None
    with pytest.raises(HandleClosed):
        r.add_drain_callback(print)


def test_drain_callbacks_are_dropped_once_they_were_called(r):
    class Target:
        def method(self, seconds):
            pass

    target = Target()
    alive = weakref.ref(target)
    r.add_drain_callback(target.method)
    del target
    r.drain(10)
    assert r.run() is False
    assert alive() is None


# -- TLS


@pytest.fixture
def secured(r, certificates):  # noqa: F811
    """A TLS server, with a method that connects a client on the same reactor."""

    class Secured(Server):
        def __init__(self):
            super().__init__(r, ssl=certificates.server())
            self.client_log = Log()

        def connect(self):
            callbacks = self.client_log.callbacks('on_connect', 'on_eof', 'on_close')
            options = {'ssl': certificates.client(), 'server_hostname': 'localhost'}
            port = self.listener.address[1]
            return r.connect_tcp(HERE, port, self.client_log.on_data, **callbacks, **options)

    return Secured()


def test_over_tls_an_idle_connection_ends_with_the_end_of_its_stream(r, secured):
    client = secured.connect()
    run_until(r, lambda: secured.conns and client.state == 'OPEN')
    r.drain(10)
    assert r.run() is False
    assert secured.log == [('close', None)]
    assert secured.client_log == [('connect',), ('eof',)]
    end(r, client)


def test_over_tls_a_handshake_and_the_request_after_it_are_waited_for(r, secured):
    client = secured.connect()
    client.write(b'?')
    r.drain(10)
    r.call_later(3, secured.answer)
    assert r.run() is False
    assert secured.client_log.received == b'answer'
    assert secured.client_log.names() == ['connect', 'data', 'eof']
    end(r, client)


def test_over_tls_a_client_that_never_begins_the_handshake_is_closed_before_the_timeout(r, secured, sockets):
    silent = sockets.connect(secured.listener.address)
    run_until(r, lambda: secured.listener.open_connections)
    r.drain(60)
    assert r.run() is False
    assert HANDSHAKE <= r.now - 1000 < HANDSHAKE + 1
    assert silent.recv(1) == b''


def test_over_tls_a_client_has_time_for_its_request_after_a_long_handshake(r, secured, certificates):  # noqa: F811
    client = secured.connect()
    accepted = secured.listener

    def silence():
        client.loop.watchers.set_events(client, 0)  # the client sends nothing for a while

    run_until(r, lambda: client.tls.timer is not None and accepted.open_connections)
    silence()
    r.drain(60)
    r.call_later(2, lambda: r.watchers.set_events(client, READ))
    r.call_later(2 + 0.8 * GRACE, lambda: client.write(b'?'))
    r.call_later(4, secured.answer)
    assert r.run() is False
    assert secured.client_log.received == b'answer'
    end(r, client)


def test_over_tls_data_that_was_not_decrypted_yet_is_unread(r, secured):
    client = secured.connect()
    run_until(r, lambda: secured.conns and client.state == 'OPEN')
    turns(r, 3)
    (conn,) = secured.conns
    assert not conn.unread
    conn.pause_reading()
    client.write(b'?')
    turns(r, 2)
    assert conn.unread
    r.drain(10)
    r.call_later(3, conn.resume_reading)
    r.call_later(4, secured.answer)
    assert r.run() is False
    assert secured.client_log.received == b'answer'
    end(r, client)


# -- the call to `drain`


@pytest.mark.scenario(113)
def test_a_second_call_can_only_shorten_a_drain(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    began = r.now
    r.drain(20, lame_duck=10)
    r.drain(30, lame_duck=30)
    r.call_later(1, r.drain, 4, 2)
    r.call_later(3.5, lambda: server.log.append(('refusing', server.listener.closed)))
    assert r.run() is False
    assert r.now == pytest.approx(began + 5)
    assert ('refusing', True) in server.log
    assert 'within 5 s' in str(server.log[-1][1])


def test_a_second_call_ends_a_lame_duck_and_a_third_does_nothing(r):
    Server(r)
    r.drain(20, lame_duck=10)
    r.call_later(1, r.drain, 20)
    assert r.run() is False
    assert 1001 <= r.now < 1001 + 2 * CHECK_INTERVAL
    r.drain(20)
    assert r.run() is True
    assert r.draining


def test_a_second_call_after_the_lame_duck_shortens_the_timeout(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    r.drain(20)
    r.call_later(2, r.drain, 1, 1)
    assert r.run() is False
    assert r.now == pytest.approx(1003, abs=0.02)


def test_a_second_call_still_gives_idle_connections_time_for_a_request(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    r.drain(30)
    r.drain(20)
    r.call_later(0.9 * GRACE, client.send, b'?')
    r.call_later(1, server.answer)
    assert r.run() is False
    assert ended(client) == b'answer'


@pytest.mark.parametrize('timeout', [-1, math.nan, math.inf])
def test_a_bad_timeout_raises(r, timeout):
    with pytest.raises(ValueError, match='timeout must be a finite number'):
        r.drain(timeout)
    assert not r.draining


@pytest.mark.parametrize('lame_duck', [-1, math.nan, math.inf])
def test_a_bad_lame_duck_raises(r, lame_duck):
    with pytest.raises(ValueError, match='lame_duck must be a finite number'):
        r.drain(1, lame_duck)


def test_a_lame_duck_longer_than_the_whole_raises(r):
    with pytest.raises(ValueError, match='3 s do not fit into 2 s'):
        r.drain(2, lame_duck=3)


@pytest.mark.parametrize('arguments', [(None,), ('1',), (1, None), (1, '1')])
def test_a_value_that_is_not_a_number_raises(r, arguments):
    with pytest.raises(TypeError):
        r.drain(*arguments)
    assert not r.draining


def test_a_closed_reactor_cannot_be_shut_down():
    r = Reactor()
    r.close()
    with pytest.raises(HandleClosed):
        r.drain(1)


def test_another_thread_cannot_begin_a_drain(r):
    errors = []

    def other():
        with pytest.raises(ReactorError, match='call_soon_threadsafe') as raised:
            r.drain(1)
        errors.append(raised.value)

    r.run(lambda r: in_thread(other))
    assert errors and not r.draining


def test_in_an_embedded_reactor_run_once_reports_the_end(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    timer = r.call_later(1000, lambda: None)
    r.drain(10)
    r.call_later(2, server.answer)
    while r.run_once(0.5):
        assert r.now < 1005
    assert ended(client) == b'answer'
    timer.cancel()


def test_a_reactor_stopped_during_a_drain_continues_it_when_it_runs_again(r, sockets):
    server = Server(r)
    connected(r, server, sockets)
    r.drain(10, lame_duck=5)
    r.call_later(1, r.stop)
    assert r.run() is False
    assert not server.listener.closed
    assert r.run() is False
    assert server.listener.closed


def test_why_alive_names_a_drain_that_is_under_way(r):
    r.drain(10, lame_duck=2)
    assert any('Drain' in reason for reason in r.why_alive())
    r.timers.clear()


def test_a_callback_that_raises_ends_its_own_connection_and_not_the_drain(r, sockets, caplog):
    def on_close(conn, exc):
        raise ValueError('planted')

    server = Server(r, on_close=on_close)
    connected(r, server, sockets, 2)
    r.drain(10)
    assert r.run() is False
    assert r.now < 1001
    assert 'planted' in caplog.text


# -- the random program in `reactor.testing.programs.service`


class Here(RealWorld):
    """The real kernel, used with a numeric host: look-ups would run in threads, which ignore the simulated clock."""

    name = HERE


@pytest.mark.scenario(113)
@pytest.mark.parametrize('seed', range(10))
def test_a_service_that_is_shut_down_answers_every_client_it_accepted(r, seed, tmp_path_factory):
    Here(r, seed, tmp_path_factory.mktemp('s')).play(drain_program, seconds=1000)


# -- the page about drains


def test_the_page_about_drains_states_the_times_of_the_code():
    page = (Path(__file__).parents[2] / 'docs' / 'operations' / 'drain.md').read_text()
    with_ten_thousand = GRACE + 10_000 * CHECK_COST
    assert f'| {GRACE:g} s later | idle connections are closed' in page
    assert f'{with_ten_thousand:.0f} s later with 10,000 connections' in page
    assert f'no TLS handshake has {HANDSHAKE:g} s' in page
    if os.name == 'posix':
        from reactor.serve.worker_process import GRACE as UNTIL_KILLED

        assert f'| `timeout` + {UNTIL_KILLED:g} s |' in page


# -- busy connections


def test_setting_busy_counts_requests(r, sockets):
    server = Server(r)
    connected(r, server, sockets, 2)
    one, other = server.conns
    assert not one.busy
    one.busy = True
    one.busy = True
    assert one.busy and not other.busy
    other.busy = True
    one.busy = False
    one.busy = False
    assert not one.busy
    one.busy = True
    assert r.stats().requests == 3
    assert r.stats().as_dict()['requests'] == 3
    server.listener.close()
    end(r, *server.conns)
    assert not r.streams.busy


def test_on_close_sees_whether_the_answer_was_given(r, sockets):
    seen = []
    server = Server(r, on_close=lambda conn, exc: seen.append(conn.busy))
    first, second = connected(r, server, sockets, 2)
    ask(r, server, first)
    for client in first, second:
        client.close()
    run_until(r, lambda: len(seen) == 2)
    assert sorted(seen) == [False, True]
    assert not r.streams.busy
    server.listener.close()


def test_a_connection_that_has_ended_does_not_become_busy(r, sockets):
    server = Server(r)
    connected(r, server, sockets)
    (conn,) = server.conns
    conn.abort()
    conn.busy = True
    assert not conn.busy
    turns(r, 2)
    conn.busy = True
    assert not conn.busy and not r.streams.busy and not r.stats().requests
    server.listener.close()


def test_a_connecting_stream_may_be_busy_already(r, sockets):
    with socket.create_server((HERE, 0)) as other:
        conn = r.connect_tcp(*other.getsockname())
        conn.busy = True
        assert conn.busy
        run_until(r, lambda: conn.state == 'OPEN')
        assert conn.busy
        end(r, conn)
    assert not r.streams.busy


@pytest.mark.parametrize('value', [1, 0, None, 'yes'])
def test_busy_is_a_bool(r, sockets, value):
    ours, _ = sockets()
    conn = r.adopt(ours)
    with pytest.raises(TypeError, match='busy must be True or False'):
        conn.busy = value
    end(r, conn)


def test_a_drain_works_the_same_in_debug_mode(sockets):
    with Reactor(kernel=FakeKernel(), debug=True) as r:
        server = Server(r)
        (client,) = connected(r, server, sockets)
        ask(r, server, client)
        r.drain(10)
        r.call_later(4, server.answer)
        assert r.run() is False
        assert ended(client) == b'answer'


def test_in_debug_mode_busy_checks_the_thread(sockets):
    ours, _ = sockets()
    with Reactor(debug=True) as r:
        conn = r.adopt(ours)
        conn.busy = True
        assert conn.busy

        def other():
            with pytest.raises(ReactorError, match='call_soon_threadsafe'):
                conn.busy = False

        r.call_soon(lambda: (in_thread(other), r.stop()))
        r.run()
        assert conn.busy


@pytest.mark.parametrize('timeout', [10, 0.2])
def test_unreferenced_servers_and_connections_are_left_alone(r, sockets, timeout):
    aside = Server(r, on_connect=lambda conn: (aside.conns.append(conn), conn.unref()))
    aside.listener.unref()
    server = Server(r)
    (asking,) = connected(r, aside, sockets)
    (busy,) = connected(r, server, sockets)
    ask(r, server, busy)
    r.drain(timeout)
    run_until(r, lambda: server.listener.closed)
    late, _ = *connected(r, aside, sockets), ask(r, aside, asking)  # the drain waits for neither connection
    if timeout == 10:
        server.answer()
    assert r.run() is False
    assert not aside.listener.closed and not any(conn.closed for conn in aside.conns)
    assert all(conn.closed for conn in server.conns)
    aside.listener.close()
    end(r, *aside.conns)
    late.close()
