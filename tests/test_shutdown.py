"""The end of a server: `shutdown`, what it waits for, what it closes, and when."""

from __future__ import annotations

from typing import Any

import pytest
from certificates import certificates  # noqa: F401
from support import Log, drain, run_until, turns

from reactor import Reactor, ShutdownTimeout

HERE = '127.0.0.1'
LARGE = b'x' * 8_000_000  # more than the system's buffers hold


class Server:
    """A listener whose connections are busy from their first byte on, until `answer`."""

    def __init__(self, r: Reactor, **keywords: Any) -> None:
        self.log, self.conns = Log(), []
        callbacks = {'on_connect': self.conns.append, 'on_close': self.log.on_close, **keywords}
        self.listener = r.listen_tcp(HERE, 0, self.on_data, **callbacks)

    def on_data(self, conn, data):
        self.log.on_data(conn, data)
        conn.busy = True

    def answer(self, data=b'answer'):
        for conn in self.conns:
            if conn.busy:
                conn.write(data)
                conn.busy = False


def ask(r, server, client, request=b'request'):
    """Have the server receive a request."""
    before = server.log.received
    client.sendall(request)
    run_until(r, lambda: server.log.received == before + request)


def connected(r, server, sockets, count=1):
    """So many clients, accepted."""
    before = len(server.conns)
    clients = [sockets.connect(server.listener.address) for _ in range(count)]
    run_until(r, lambda: len(server.conns) == before + count)
    return clients


def ended(client):
    """What a client has read, when the server has ended in good order; None before."""
    received = drain(client)
    try:
        return received if not client.recv(1) else None
    except BlockingIOError:
        return None


# -- to the end


def test_a_server_without_connections_stops_and_run_returns_false(r):
    server = Server(r)
    assert not r.draining
    r.shutdown(10)
    assert r.draining
    assert r.run() is False
    assert server.listener.closed


def test_an_idle_connection_is_closed_in_good_order(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    r.shutdown(10)
    assert r.run() is False
    assert server.log == [('close', None)]
    assert client.recv(1) == b''


def test_a_busy_connection_has_its_answer_first(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    r.shutdown(10)
    r.call_later(0.4, server.answer)
    assert r.run() is False
    assert server.log[1:] == [('close', None)]
    assert ended(client) == b'answer'


def test_an_answer_that_waits_for_its_reader_is_sent_to_the_end(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    ask(r, server, client)
    server.answer(LARGE)
    r.shutdown(10)
    r.run_once(0.3)
    turns(r, 5)
    assert not server.log[1:]
    received = bytearray()
    r.call_every(0.01, lambda: received.extend(drain(client))).unref()
    assert r.run() is False
    received.extend(drain(client))
    assert received == LARGE
    assert server.log[1:] == [('close', None)]
    r.timers.clear()


def test_what_is_not_done_at_the_deadline_is_reset_and_told_why(r, sockets):
    server = Server(r)
    idle_one, client = connected(r, server, sockets, 2)
    ask(r, server, client)
    began = r.timers.clock()
    r.shutdown(0.5)
    assert r.run() is False
    assert 0.5 <= r.timers.clock() - began < 5
    (_, clean), (_, exc) = server.log[1:]
    assert clean is None and isinstance(exc, ShutdownTimeout) and isinstance(exc, TimeoutError)
    host, port = client.getsockname()
    assert str(exc) == (
        f'{host}:{port} was not done within 0.5 s of shutdown(): its answer was under way, 0 bytes waited; it was reset'
    )
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert idle_one.recv(1) == b''


def test_a_deadline_of_nothing_resets_at_once(r, sockets):
    server = Server(r)
    (client,) = connected(r, server, sockets)
    r.shutdown(0)
    assert r.run() is False
    assert [type(exc) for _, exc in server.log] == [ShutdownTimeout]
    assert 'it was not busy' in str(server.log[0][1])
