"""A whole server on a scripted kernel: everything below the reactor is simulated."""

from __future__ import annotations

import errno

import pytest

from reactor import Reactor, Stream
from tests.helpers.support import Log, ScriptedKernel, ScriptedSocket, turns


@pytest.fixture
def scripted() -> ScriptedKernel:
    return ScriptedKernel()


@pytest.fixture
def reactor(scripted: ScriptedKernel):
    with Reactor(kernel=scripted) as reactor:
        yield reactor


def echo(conn: Stream, data: bytes) -> None:
    conn.write(data)


def test_an_echo_server_runs_without_a_real_descriptor(scripted, reactor):
    log = Log()
    listener = reactor.listen_tcp('10.0.0.1', 80, echo, **log.callbacks('on_connect', 'on_close'))
    assert listener.address == ('10.0.0.1', 80)
    client = ScriptedSocket(scripted)
    client.incoming.extend([b'hello ', b'world', b''])
    scripted.open[listener.fileno()].backlog.append(client)
    turns(reactor, 5)
    assert client.sent == b'hello world'
    assert log == [('connect',), ('close', None)]
    assert client.calls[-1] == 'close'
    assert listener.open_connections == 0
    listener.close()


def test_run_ends_when_the_scripted_world_is_over(scripted, reactor):
    sock = ScriptedSocket(scripted)
    sock.incoming.extend([b'x', ConnectionResetError(errno.ECONNRESET, 'reset')])
    log = Log()
    reactor.adopt(sock, echo, on_close=log.on_close)
    assert reactor.run() is True
    assert [type(exc) for _, exc in log] == [ConnectionResetError]
    assert sock.sent == b'x'


def test_time_passes_only_in_the_scripted_selector(scripted, reactor):
    sock = ScriptedSocket(scripted)
    log = Log()
    conn = reactor.adopt(sock, echo, on_close=log.on_close, idle_timeout=3600)
    reactor.run()
    assert conn.closed
    assert 3600 <= scripted.time - 1000 <= 3601


def test_closing_a_reactor_leaves_no_scripted_descriptor(scripted):
    with Reactor(kernel=scripted) as reactor:
        listener = reactor.listen_tcp('10.0.0.1', 80, echo)
        scripted.open[listener.fileno()].backlog.append(ScriptedSocket(scripted))
        turns(reactor, 1)
        assert listener.open_connections == 1
    assert scripted.open == {}
