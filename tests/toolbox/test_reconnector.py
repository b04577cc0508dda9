"""Clients that are kept connected: when they connect again, after which delays, and when they give up."""

from __future__ import annotations

import gc
import itertools
import logging
import socket
import subprocess
import sys
import weakref
from typing import Any

import pytest

import reactor
from reactor import HandleClosed, Reactor, ReactorError, ResolveError, Stream, TLSError
from reactor.testing import SimKernel, Simulation, World
from tests.helpers.certificates import certificates  # noqa: F401  (a fixture)
from tests.helpers.support import run_until


class History(list):  # type: ignore[type-arg]
    """The calls of `on_up` and `on_down`, in order."""

    def on_up(self, conn: Stream) -> None:
        self.append('up')

    def on_down(self, conn: Stream | None, exc: BaseException | None, delay: float | None) -> None:
        self.append((type(exc), delay))

    @property
    def delays(self) -> list[float | None]:
        return [each[1] for each in self if each != 'up']


@pytest.fixture
def sim():
    """A reactor on a simulated system without faults, where hours take no time."""
    with Reactor(kernel=SimKernel(1, faults=False)) as r:
        yield r


@pytest.fixture
def history() -> History:
    return History()


def until(sim: Reactor, predicate: Any) -> None:
    """Run turns on a simulated system until `predicate()` holds."""
    while not predicate():
        assert sim.run_once(), 'nothing is left to wait for'


def listen(r: Reactor, on_connect: Any = None, port: int = 1) -> reactor.Listener:
    return r.listen_tcp('10.0.0.1', port, on_connect=on_connect)


def to_server(r: Reactor, **options: Any) -> Any:
    """Return a `connect` for the server of `listen`."""
    return lambda: r.connect_tcp('10.0.0.1', 1, **options)


# -- connecting again


def test_a_client_is_connected_at_once(sim, history):
    server = listen(sim, server_closes := [].append)
    client = reactor.reconnect(to_server(sim), history.on_up, history.on_down)
    assert client.conn is not None and client.conn.state == 'CONNECTING' and history == []
    until(sim, lambda: history)
    assert history == ['up'] and client.conn.state == 'OPEN' and not client.closed
    assert (client.attempts, client.ups) == (1, 1)
    assert server_closes
    client.stop()
    server.close()
    sim.run()
    assert history == ['up', (type(None), None)] and client.conn is None and client.closed


def test_a_client_connects_again_when_the_server_ends_the_connection(sim, history):
    server = listen(sim, lambda conn: conn.close())
    client = reactor.reconnect(to_server(sim), history.on_up, history.on_down, first=2, jitter=0)
    until(sim, lambda: client.ups == 3)
    assert history[:3] == ['up', (type(None), 2), 'up']
    client.stop()
    server.close()
    sim.run()


def test_the_delays_double_up_to_the_longest_one(sim, history):
    client = reactor.reconnect(to_server(sim), history.on_up, history.on_down, first=1, most=10, jitter=0)
    until(sim, lambda: len(history) == 6)
    assert history.delays == [1, 2, 4, 8, 10, 10]
    assert {each[0] for each in history} == {ConnectionRefusedError}
    assert (client.attempts, client.ups) == (6, 0)
    client.stop()
    assert sim.run() and len(history) == 6, 'no attempt was under way, so nothing ends'


def test_an_attempt_comes_after_its_delay(sim, history):
    times = []

    def connect() -> Stream:
        times.append(sim.now)
        return sim.connect_tcp('10.0.0.1', 1)

    client = reactor.reconnect(connect, on_down=history.on_down)
    until(sim, lambda: len(times) == 8)
    client.stop()
    sim.run()
    waits = [after - before for before, after in itertools.pairwise(times)]
    for wait, delay in zip(waits, history.delays, strict=False):
        assert delay <= wait < delay + 1


@pytest.mark.parametrize(('jitter', 'least'), [(1, 0.0), (0.5, 5.0), (0.1, 9.0)])
def test_a_part_of_each_delay_is_random(sim, history, jitter, least):
    client = reactor.reconnect(to_server(sim), on_down=history.on_down, first=10, most=10, jitter=jitter)
    until(sim, lambda: len(history) == 200)
    client.stop()
    delays = history.delays
    assert least <= min(delays) < least + 0.5 * jitter and 10 - 0.5 * jitter < max(delays) <= 10
    assert len(set(delays)) > 100


def test_the_delays_of_a_simulated_run_depend_on_its_seed_alone():
    def delays(seed: int) -> list[float | None]:
        history = History()
        with Reactor(kernel=SimKernel(seed, faults=False)) as r:
            client = reactor.reconnect(to_server(r), on_down=history.on_down)
            until(r, lambda: len(history) == 5)
            client.stop()
        return history.delays

    assert delays(1) == delays(1) != delays(2)


def test_real_delays_are_random():
    kernel = reactor.kernel.Kernel()
    drawn = [kernel.random_number() for _ in range(1000)]
    assert 0 <= min(drawn) < 0.05 and 0.95 < max(drawn) < 1 and len(set(drawn)) == 1000


def test_the_delays_begin_again_after_a_connection_that_was_open_for_as_long_as_the_delay_before_it(sim, history):
    lives = [0, 0, 0, 3, 9, 0]  # seconds for which the server leaves each connection open
    server = listen(sim, lambda conn: sim.call_later(lives.pop(0), conn.close))
    client = reactor.reconnect(to_server(sim), history.on_up, history.on_down, jitter=0)
    until(sim, lambda: len(history.delays) == 6)
    client.stop()
    server.close()
    sim.run()
    assert history.delays[:6] == [1, 2, 4, 8, 1, 2]


def test_a_failed_look_up_is_tried_again(history):
    with Reactor(kernel=SimKernel(1, faults=False)) as r:
        client = reactor.reconnect(lambda: r.connect_tcp('nowhere.test', 1), on_down=history.on_down)
        run_until(r, lambda: len(history) == 2)
        client.stop()
    assert {each[0] for each in history} == {ResolveError} and None not in history.delays


def test_a_connection_that_the_program_closes_is_replaced_too(sim, history):
    server = listen(sim)
    client = reactor.reconnect(to_server(sim), Stream.close, history.on_down)
    until(sim, lambda: client.ups == 2)
    assert history[0][0] is type(None) and history[0][1] is not None
    client.stop()
    server.close()
    sim.run()


@pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='this platform has no Unix sockets')
def test_a_unix_socket_that_does_not_exist_yet_is_tried_again(r, tmp_path, history):
    path = str(tmp_path / 'server')
    client = reactor.reconnect(lambda: r.connect_unix(path), history.on_up, history.on_down, first=0.01)
    run_until(r, lambda: history)
    assert history[0][0] is FileNotFoundError
    server = r.listen_unix(path)
    run_until(r, lambda: client.ups)
    client.stop()
    server.close()
    run_until(r, lambda: not (r.handles() or r.completions))


def test_an_adopted_connection_is_up_in_the_next_turn(r, sockets, history):
    made = []

    def connect() -> Stream:
        ours, theirs = sockets()
        made.append(theirs)
        return r.adopt(ours)

    client = reactor.reconnect(connect, history.on_up, history.on_down, first=0.01)
    assert history == []
    run_until(r, lambda: history)
    made[0].close()
    run_until(r, lambda: client.ups == 2)
    assert history[0] == 'up' and history[1][0] is type(None) and history[2] == 'up'
    client.stop()
    run_until(r, lambda: not (r.handles() or r.completions))


# -- the callbacks of the connection


def test_the_callbacks_of_the_connection_are_called_first(sim):
    seen = []
    server = listen(sim, lambda conn: conn.close())
    client = reactor.reconnect(
        to_server(
            sim, on_connect=lambda conn: seen.append('on_connect'), on_close=lambda conn, exc: seen.append('on_close')
        ),
        lambda conn: seen.append('on_up'),
        lambda conn, exc, delay: seen.append('on_down'),
    )
    until(sim, lambda: client.ups == 2)
    assert seen[:5] == ['on_connect', 'on_up', 'on_close', 'on_down', 'on_connect']
    client.stop()
    server.close()
    sim.run()


@pytest.mark.parametrize('chained', [False, True])
@pytest.mark.parametrize('where', ['on_connect', 'on_up'])
def test_on_close_can_be_replaced_while_the_connection_is_being_established(sim, history, where, chained):
    seen = []

    def replace(conn: Stream) -> None:
        before = conn.on_close

        def on_close(conn: Stream, exc: BaseException | None) -> None:
            seen.append('on_close')
            if chained:
                before(conn, exc)

        conn.on_close = on_close

    server = listen(sim, lambda conn: conn.close())
    connect = to_server(sim, on_connect=replace if where == 'on_connect' else None)
    client = reactor.reconnect(connect, replace if where == 'on_up' else history.on_up, history.on_down)
    until(sim, lambda: client.ups == 3)
    assert len(seen) == len(history.delays) == 2
    client.stop()
    server.close()
    sim.run()


def test_the_callbacks_of_the_client_can_be_replaced(sim, history):
    server = listen(sim, lambda conn: conn.close())
    client = reactor.reconnect(to_server(sim))
    client.on_up, client.on_down = history.on_up, history.on_down
    until(sim, lambda: len(history) == 3)
    client.on_up = client.on_down = None
    client.stop()
    server.close()
    sim.run()
    assert len(history) == 3


def test_an_exception_in_on_up_ends_the_connection_and_the_client_connects_again(sim, history, caplog):
    def on_up(conn: Stream) -> None:
        raise RuntimeError('no')

    server = listen(sim)
    client = reactor.reconnect(to_server(sim), on_up, history.on_down)
    until(sim, lambda: client.ups == 2)
    assert history[0][0] is RuntimeError and history[0][1] is not None
    client.stop()
    server.close()
    sim.run()


def test_an_exception_in_on_down_or_on_close_is_logged_and_the_client_connects_again(sim, caplog):
    def fails(*args: object) -> None:
        raise RuntimeError('no')

    client = reactor.reconnect(to_server(sim, on_close=fails), None, fails)
    until(sim, lambda: client.attempts == 3)
    client.stop()
    assert 'RuntimeError' in caplog.text


def test_without_on_connect_being_reached_on_up_is_not_called(sim, history):
    """`on_connect` closes the connection, so that it is not up."""
    server = listen(sim)
    client = reactor.reconnect(to_server(sim, on_connect=Stream.close), history.on_up, history.on_down)
    until(sim, lambda: len(history) == 2)
    assert 'up' not in history and client.ups == 0
    client.stop()
    server.close()
    sim.run()


# -- the end


def test_stop_in_on_up(sim, history):
    server = listen(sim)
    client = reactor.reconnect(to_server(sim), lambda conn: client.stop(), history.on_down)
    sim.call_later(100, server.close)
    assert sim.run()
    assert history == [(type(None), None)] and client.attempts == 1 and client.conn is None


def test_stop_in_on_down(sim, history):
    def on_down(conn: Stream | None, exc: BaseException | None, delay: float | None) -> None:
        history.on_down(conn, exc, delay)
        client.stop()

    client = reactor.reconnect(to_server(sim), history.on_up, on_down)
    assert sim.run()
    assert len(history) == 1 and history[0][1] is not None and client.attempts == 1 and client.closed


def test_stop_in_on_close(sim, history):
    client = reactor.reconnect(to_server(sim, on_close=lambda conn, exc: client.stop()), None, history.on_down)
    assert sim.run()
    assert history == [(ConnectionRefusedError, None)]


def test_stop_while_connecting(sim, history):
    server = listen(sim)
    client = reactor.reconnect(to_server(sim), history.on_up, history.on_down)
    client.stop()
    client.stop()
    client.close()
    server.close()
    assert sim.run()
    assert history == [(type(None), None)]


def test_stop_inside_a_later_call_of_connect(sim, history):
    def connect() -> Stream:
        if refused:
            client.stop()
        refused.append(1)
        return sim.connect_tcp('10.0.0.1', 1)

    refused: list[int] = []
    client = reactor.reconnect(connect, history.on_up, history.on_down)
    assert sim.run()
    assert len(history) == 1 and client.attempts == 2 and client.conn is None


def test_stop_sends_what_is_buffered(r, history):
    received = []
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: received.append(data))
    client = reactor.reconnect(
        lambda: r.connect_tcp(*server.address), lambda conn: (conn.write(b'bye'), client.stop()), history.on_down
    )
    run_until(r, lambda: history and received)
    server.close()
    run_until(r, lambda: not (r.handles() or r.completions))
    assert received == [b'bye'] and client.closed


def test_closing_the_reactor_ends_the_client(history):
    for up in False, True:
        with Reactor(kernel=SimKernel(1, faults=False)) as r:
            if up:
                listen(r)
            client = reactor.reconnect(to_server(r), history.on_up, history.on_down, first=5)
            run_until(r, lambda: history)
            attempts = client.attempts
        assert client.attempts == attempts == 1 and client.conn is None
        history.clear()


def test_a_drain_does_not_stop_a_client(sim, history):
    busy = []

    def on_request(conn: Stream, data: bytes) -> None:
        conn.busy = True
        busy.append(conn)

    listen(sim, lambda conn: conn.close())
    sim.listen_tcp('10.0.0.1', 2, on_request)
    asking = sim.connect_tcp('10.0.0.1', 2)
    asking.write(b'request')
    client = reactor.reconnect(to_server(sim), history.on_up, history.on_down, first=1, most=1)
    until(sim, lambda: busy)
    sim.drain(100)
    attempts = client.attempts
    until(sim, lambda: client.attempts > attempts + 2)
    busy[0].busy = False
    assert not sim.run(), 'the drain stops the reactor'
    client.stop()


# -- giving up


def test_what_the_first_call_of_connect_raises_is_raised(sim):
    with pytest.raises(TypeError, match='on_daat'):
        reactor.reconnect(to_server(sim, on_daat=None))
    with pytest.raises(TypeError, match='connect must return the connection that it has started, not None'):
        reactor.reconnect(lambda: None)
    assert not sim.handles()


@pytest.mark.parametrize('exc', [TypeError('x'), ValueError('x'), AttributeError('x'), HandleClosed('x')])
def test_a_mistake_in_connect_ends_the_client(sim, history, caplog, exc):
    def connect() -> Stream:
        if client.attempts > 1:
            raise exc
        return sim.connect_tcp('10.0.0.1', 1)

    class Client:
        attempts = 1

    client: Any = Client
    client = reactor.reconnect(connect, history.on_up, history.on_down)
    with caplog.at_level(logging.WARNING, 'reactor'):
        assert sim.run()
    assert history[1:] == [(type(exc), None)] and client.closed and client.conn is None
    assert [record.getMessage() for record in caplog.records] == ['gave up reconnecting after attempt 2: x']


@pytest.mark.parametrize('exc', [OSError('x'), ReactorError('x'), MemoryError()])
def test_other_exceptions_of_connect_are_failed_attempts(sim, history, exc):
    calls = []

    def connect() -> Stream:
        calls.append(1)
        if len(calls) == 2:
            raise exc
        return sim.connect_tcp('10.0.0.1', 1)

    conns = []
    client = reactor.reconnect(connect, None, lambda conn, *rest: (conns.append(conn), history.on_down(conn, *rest)))
    until(sim, lambda: len(history) == 3)
    client.stop()
    assert history[1][0] is type(exc) and history[1][1] is not None
    assert [conn is None for conn in conns] == [False, True, False]


def test_an_exception_of_a_callback_is_no_reason_to_give_up(sim, history, caplog):
    def on_data(conn: Stream, data: bytes) -> None:
        raise ValueError('not what the protocol allows')

    server = listen(sim, lambda conn: conn.write(b'x'))
    client = reactor.reconnect(lambda: sim.connect_tcp('10.0.0.1', 1, on_data), history.on_up, history.on_down)
    until(sim, lambda: client.ups == 2)
    assert history[1][0] is ValueError and history[1][1] is not None
    client.stop()
    server.close()
    sim.run()


def test_a_certificate_that_cannot_be_verified_ends_the_client(r, certificates, history, caplog):  # noqa: F811
    server = r.listen_tcp('127.0.0.1', 0, ssl=certificates.server())
    client = reactor.reconnect(
        lambda: r.connect_tcp('127.0.0.1', server.address[1], ssl=True), history.on_up, history.on_down
    )
    run_until(r, lambda: history)
    assert history == [(TLSError, None)] and client.closed
    assert 'gave up reconnecting after attempt 1: ' in caplog.text
    server.close()
    run_until(r, lambda: not (r.handles() or r.completions))


def test_another_failure_of_tls_is_tried_again(r, history):
    server = r.listen_tcp('127.0.0.1', 0, on_connect=lambda conn: conn.write(b'HTTP/1.1 400 Bad Request\r\n\r\n'))
    client = reactor.reconnect(
        lambda: r.connect_tcp('127.0.0.1', server.address[1], ssl=True), history.on_up, history.on_down, first=0.01
    )
    run_until(r, lambda: len(history) == 2)
    assert history[0][0] is TLSError and None not in history.delays
    client.stop()
    server.close()
    run_until(r, lambda: not (r.handles() or r.completions))


def test_without_on_down_the_first_of_several_failures_is_logged(sim, caplog):
    with caplog.at_level(logging.WARNING, 'reactor'):
        client = reactor.reconnect(to_server(sim))
        until(sim, lambda: client.attempts == 4)
    client.stop()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and 'cannot connect to 10.0.0.1:1' in lines[0]


# -- arguments, and memory


@pytest.mark.parametrize(
    ('error', 'message', 'arguments'),
    [
        (TypeError, 'connect must be callable, not 5', {'connect': 5}),
        (TypeError, 'on_up is called with', {'on_up': lambda: None}),
        (TypeError, r'on_down is called with \(conn, exc, delay\)', {'on_down': lambda conn, exc: None}),
        (ValueError, 'first must be', {'first': 0}),
        (TypeError, 'first must be', {'first': '1'}),
        (ValueError, 'most must be at least first=1.0, not 0.5', {'most': 0.5}),
        (ValueError, 'jitter must be a number from 0 to 1, not 2', {'jitter': 2}),
        (TypeError, 'jitter must be a number, not True', {'jitter': True}),
    ],
)
def test_wrong_arguments_are_refused_before_connecting(error, message, arguments):
    def connect() -> Stream:
        raise AssertionError

    with pytest.raises(error, match=message):
        reactor.reconnect(**{'connect': connect, **arguments})


def test_ended_connections_and_a_stopped_client_are_freed_without_the_garbage_collector(sim):
    conns: list[Any] = []

    class Callback:
        def __call__(self, *args: object) -> None:
            if not isinstance(args[-1], Stream):
                conns.append(weakref.ref(args[0].data))

    class Data:
        pass

    def connect() -> Stream:
        conn = sim.connect_tcp('10.0.0.1', 1, on_close=Callback())
        conn.data = Data()
        return conn

    server = listen(sim, lambda conn: conn.close())
    on_up, on_down = Callback(), Callback()
    client = reactor.reconnect(connect, on_up, lambda *args, keep=on_down: None)
    watched = [weakref.ref(each) for each in (on_up, on_down, connect)]
    del on_up, on_down, connect
    gc.disable()
    try:
        until(sim, lambda: len(conns) == 3)
        sim.run_once(0)
        assert [ref() for ref in conns] == [None] * 3
        client.stop()
        server.close()
        sim.run()
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()


def test_repr(sim):
    client = reactor.reconnect(to_server(sim))
    assert repr(client).startswith('<Reconnector <Stream fd=') and repr(client).endswith('1 attempts, 0 connections>')
    until(sim, lambda: client.conn is None)
    assert repr(client) == '<Reconnector waits, 1 attempts, 0 connections>'
    client.stop()
    assert repr(client) == '<Reconnector closed, 1 attempts, 0 connections>'


def test_importing_the_package_imports_no_tool():
    code = 'import sys, reactor; reactor.Reactor; assert "toolbox" not in str([*sys.modules]); print(dir(reactor))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {'reconnect', 'Requests', 'Group'} < set(done.stdout.replace("'", ' ').replace(',', ' ').split())
    with pytest.raises(AttributeError, match="module 'reactor' has no attribute 'reconect'"):
        reactor.reconect  # noqa: B018


# -- on simulated systems


def asks_until_answered(world: World) -> None:
    """A client asks ten questions, one after the other, of a server that may end any connection."""
    host, port = world.address()
    questions = 10
    done = world.expect('ten answers')
    answers: list[bytes] = []

    def on_question(conn: Stream, data: bytes) -> None:
        if world.random.random() < 0.2:
            conn.abort()
        else:
            conn.write(data[-1:])

    def ask(conn: Stream) -> None:
        world.trouble()
        conn.write(bytes([len(answers)]))

    def on_answer(conn: Stream, data: bytes) -> None:
        answers.append(data)
        if len(answers) == questions:
            client.stop()
            server.close()
            done.met()
        else:
            ask(conn)

    def on_down(conn: Stream | None, exc: BaseException | None, delay: float | None) -> None:
        if (delay is None) != client.closed:
            world.fail('a delay, and no further attempt')
        world.trouble()

    server = world.r.listen_tcp(host, port, on_question)
    client = reactor.reconnect(
        lambda: world.r.connect_tcp(host, port, on_answer, timeout=10, read_timeout=10), ask, on_down
    )


@pytest.mark.parametrize('seeds', [range(40), range(40, 80)])
def test_a_client_gets_its_answers_on_a_simulated_system_with_faults(seeds):
    for seed in seeds:
        Simulation(seed).run_program(asks_until_answered)


def test_the_client_ends_with_the_reactor_and_logs_nothing(caplog):
    downs = []
    with Reactor() as r:
        server = r.listen_tcp('127.0.0.1', 0)
        loud = reactor.reconnect(
            lambda: r.connect_tcp(*server.address), on_down=lambda conn, exc, delay: downs.append(delay)
        )
        quiet = reactor.reconnect(lambda: r.connect_tcp(*server.address))
        r.call_later(0.1, r.stop)
        r.run()
        assert loud.ups == quiet.ups == 1
    assert downs == [None] and loud.closed and quiet.closed
    assert not caplog.records
