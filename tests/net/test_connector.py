"""Connecting: success, failures that are reported once, racing addresses, time limits, and cleanup."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import selectors
import socket
import sys
import weakref
from collections.abc import Callable
from socket import AF_INET, AF_INET6, AI_NUMERICHOST, SO_ERROR, SO_KEEPALIVE, SOL_SOCKET, TCP_NODELAY
from typing import Any

import pytest

from reactor import (
    ConnectionClosed,
    ConnectTimeout,
    IdleTimeout,
    Reactor,
    ResolveError,
    SelectorFull,
    Stream,
    WriteBufferFull,
)
from reactor.kernel.platforms import ABSTRACT_PATHS, AF_UNIX
from reactor.loop.timers import TimerHeap
from reactor.net.connector import Attempt, Connector
from tests.helpers.support import (
    FailingKernel,
    Log,
    Probe,
    ScriptedKernel,
    ScriptedSelector,
    ScriptedSocket,
    end,
    idle,
    run_short,
    run_until,
    turns,
)

NEVER = float('inf')
ON_LINUX = sys.platform == 'linux'

needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')
needs_abstract = pytest.mark.skipif(not ABSTRACT_PATHS, reason='abstract Unix sockets are a Linux feature')
needs_linux_backlog = pytest.mark.skipif(
    not ON_LINUX, reason='only Linux is known to ignore clients while a backlog is full; other kernels refuse them'
)


def has_ipv6() -> bool:
    try:
        socket.create_server(('::1', 0), family=AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6 on its loopback')

PLACES = [
    'ipv4',
    pytest.param('ipv6', marks=needs_ipv6),
    'name',
    pytest.param('unix', marks=needs_unix),
    pytest.param('abstract', marks=needs_abstract),
]
TCP_AND_UNIX = ['ipv4', pytest.param('unix', marks=needs_unix)]


class Place:
    """An address of one kind, with methods to listen there and to connect to it."""

    def __init__(self, kind: str, folder: Any) -> None:
        self.host = {'ipv6': '::1', 'name': 'localhost'}.get(kind, '127.0.0.1')
        self.path = {'unix': str(folder / 's'), 'abstract': f'@reactor-{os.getpid()}'}.get(kind)
        self.port = 0

    def listen(self, r: Reactor, *args: Any, **options: Any) -> Any:
        if self.path is not None:
            return r.listen_unix(self.path, *args, **options)
        listener = r.listen_tcp('127.0.0.1' if self.host == 'localhost' else self.host, 0, *args, **options)
        self.port = listener.address[1]
        return listener

    def server(self, sockets: Any, backlog: int = 8) -> socket.socket:
        """Return a blocking socket that listens at this address and belongs to no reactor."""
        server = sockets.track(socket.socket(AF_INET if self.path is None else AF_UNIX))
        server.bind((self.host, 0) if self.path is None else self.path)
        server.listen(backlog)
        if self.path is None:
            self.port = server.getsockname()[1]
        return server

    def connect(self, r: Reactor, *args: Any, **options: Any) -> Stream:
        if self.path is not None:
            return r.connect_unix(self.path, *args, **options)
        return r.connect_tcp(self.host, self.port, *args, **options)


@pytest.fixture(autouse=True)
def nothing_logged(caplog: Any):
    """Fail the test if the reactor logged an exception. A test that expects an exception clears the log."""
    yield
    assert [record.getMessage() for record in caplog.get_records('call') if record.levelname == 'ERROR'][:3] == []


@pytest.fixture
def place(request: Any, tmp_path: Any) -> Place:
    return Place(request.param, tmp_path)


def closed_port() -> int:
    """Return a port of 127.0.0.1 on which no socket listens."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port: int = server.getsockname()[1]
        return port


def echo(conn: Stream, data: bytes) -> None:
    conn.write(data)


# -- a simulated kernel with scripted addresses


class Bell(ScriptedSocket):
    """One end of the socket pair that wakes the loop."""

    def link(self, other: Bell) -> None:
        self.other = other

    def send(self, data: Any) -> int:
        self.other.incoming.append(bytes(data))
        return len(data)


class WorldSocket(ScriptedSocket):
    """A socket whose connect has the outcome that is set in `World.answers`."""

    def __init__(self, world: World, family: int) -> None:
        super().__init__(world)
        self.family = family  # type: ignore[misc]
        self.answers_at = NEVER
        self.error = 0
        self.connected = False
        self.spurious = False
        self.peer: Any = None
        self.options: list[Any] = []

    def connect_ex(self, address: Any) -> int:
        world, self.peer = self.kernel, address
        assert isinstance(world, World)
        key = address if isinstance(address, str) else address[0]
        world.tried.append((round(world.time - 1000, 3), key))
        answer = world.answers.get(key)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, int):
            self.connected = not answer
            return answer
        if answer is not None:
            seconds, self.error = answer
            self.answers_at = world.time + seconds
        return errno.EINPROGRESS

    def ready(self) -> int:
        if self.connected:
            return super().ready()
        return selectors.EVENT_WRITE if self.spurious or self.kernel.time >= self.answers_at else 0

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (SOL_SOCKET, SO_ERROR)
        if self.error < 0:
            raise OSError(-self.error, 'getsockopt has failed')
        self.connected = not self.error and self.kernel.time >= self.answers_at
        return self.error

    def setsockopt(self, *args: Any) -> None:
        self.options.append(args)

    def getpeername(self) -> Any:
        if not self.connected:
            raise OSError(errno.ENOTCONN, 'not connected')
        return self.peer

    def bind(self, address: Any) -> None:
        assert isinstance(self.kernel, World)
        if self.kernel.bind_error:
            raise OSError(self.kernel.bind_error, os.strerror(self.kernel.bind_error))
        super().bind(address)


class WorldSelector(ScriptedSelector):
    """A selector that moves the clock to the next answer or to the end of the wait, whichever comes first."""

    def select(self, timeout=None):  # type: ignore[no-untyped-def]
        world = self.kernel
        answers = [
            sock.answers_at
            for fd, sock in world.open.items()
            if fd in self.keys and isinstance(sock, WorldSocket) and not sock.connected
        ]
        wait = min(answers, default=NEVER) - world.time
        if timeout is None and wait == NEVER:
            return super().select(None)
        if (
            wait > 0
            and (timeout is None or wait <= timeout)
            and not any(self.kernel.open[fd].ready() & key.events for fd, key in self.keys.items())
        ):
            world.time += wait
            timeout = 0
        return super().select(timeout)


class World(ScriptedKernel):
    """A kernel with the names and addresses that a test sets up.

    names     maps a host to a list of numeric addresses, or to an exception
    answers   maps a numeric address or path to one of the following; any other address never answers:
              an error number that connect itself returns (0: connected)
              (seconds, error): SO_ERROR is the error after that time; if the error is negative, reading SO_ERROR fails
              a list of such outcomes, one for each attempt
    tried     (seconds since the start, address) of each connect
    threads   look-ups that have started; if `stalled` is true, they wait here until the test runs them
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.tried: list[tuple[float, str]] = []
        self.threads: list[Callable[[], None]] = []
        self.stalled = False
        self.socket_errors: list[int] = []  # an error number for each socket; 0 means no error
        self.bind_error = 0
        self.room = True

    def selector(self) -> WorldSelector:  # type: ignore[override]
        return WorldSelector(self)

    def new_selector_like(self, selector: Any) -> Any:
        raise AssertionError('a working selector was replaced')

    def room_of(self, selector: Any) -> Any:
        return lambda fd: self.room

    def socketpair(self) -> Any:
        ours, theirs = Bell(self), Bell(self)
        ours.link(theirs)
        theirs.link(ours)
        return ours, theirs

    def socket(self, family: int, kind: int, proto: int = 0) -> Any:
        if self.socket_errors and (number := self.socket_errors.pop(0)):
            raise OSError(number, os.strerror(number))
        return WorldSocket(self, family)

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        if self.stalled:
            self.threads.append(target)
        else:
            target()

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        if flags & AI_NUMERICHOST:
            return socket.getaddrinfo(host, port, family, kind, 0, AI_NUMERICHOST)
        found = self.names[host]
        if isinstance(found, BaseException):
            raise type(found)(*found.args)
        every = [socket.getaddrinfo(each, port, 0, kind, 0, AI_NUMERICHOST)[0] for each in found]
        return [each for each in every if family in (0, each[0])]

    @property
    def elapsed(self) -> float:
        return round(self.time - 1000, 3)

    def sockets(self) -> list[WorldSocket]:
        return [sock for sock in self.open.values() if isinstance(sock, WorldSocket)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def w(world: World):
    """A reactor on the kernel `world`. Every descriptor must be closed at the end."""
    with Reactor(kernel=world) as reactor:
        yield reactor
    assert world.open == {}


FOUR = ['fd00::1', 'fd00::2', '10.0.0.1', '10.0.0.2']


@pytest.fixture
def four(world: World) -> World:
    """The kernel `world`, with a name that has two addresses of each family."""
    world.names['four.test'] = FOUR
    return world


def run_world(w: Reactor, predicate: Callable[[], Any], most: int = 1000) -> None:
    """Run turns until `predicate()` holds. The clock moves while a turn waits."""
    for _ in range(most):
        if predicate():
            return
        w.run_once()
    raise AssertionError(f'does not hold after {most} turns; still alive:\n' + '\n'.join(w.why_alive()))


def close_reason(r: Reactor, conn: Stream, log: Log) -> BaseException | None:
    """Run until `on_close` is called, check that no other callback was called, and return the exception."""
    if isinstance(r.kernel, World):
        run_world(r, lambda: log)
    else:
        run_until(r, lambda: log, timeout=3)
    turns(r, 2)
    assert log.names() == ['close']
    assert conn.closed
    return log[0][1]


# -- connected


@pytest.mark.parametrize('place', PLACES, indirect=True)
def test_a_connection_is_made_reported_and_echoed(r, place):
    log = Log()
    listener = place.listen(r, echo)
    conn = place.connect(
        r, log.on_data, on_connect=lambda conn: (log.on_connect(conn), conn.write(b'hi')), on_close=log.on_close
    )
    run_until(r, lambda: log.received == b'hi')
    assert conn.state == 'OPEN' and not conn.closed
    listener.close()
    conn.close()
    r.run()
    assert log == [('connect',), ('data', b'hi'), ('close', None)]


@pytest.mark.parametrize('place', ['ipv4', pytest.param('ipv6', marks=needs_ipv6)], indirect=True)
def test_a_connected_stream_knows_both_addresses(r, place):
    accepted: list[Stream] = []
    listener = place.listen(r, on_connect=accepted.append)
    conn = place.connect(r)
    run_until(r, lambda: accepted and conn.state == 'OPEN')
    assert conn.peername[:2] == (place.host, place.port)
    assert conn.sockname == accepted[0].peername
    listener.close()
    end(r, conn, *accepted)


def test_a_stream_is_connecting_until_on_connect_is_called(r):
    states = []
    listener = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*listener.address, on_connect=lambda conn: states.append(conn.state))
    assert (conn.state, conn.closed, conn.peername, conn.sockname) == ('CONNECTING', False, None, None)
    assert 'CONNECTING' in repr(conn)
    run_until(r, lambda: states)
    assert states == ['OPEN']
    listener.close()
    end(r, conn)


@pytest.mark.parametrize('place', PLACES, indirect=True)
def test_no_callback_runs_inside_the_call(r, place):
    log = Log()
    listener = place.listen(r)
    conn = place.connect(r, **log.callbacks('on_connect', 'on_close'))
    assert log == []
    run_until(r, lambda: log)
    assert log == [('connect',)]
    listener.close()
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_on_connect_comes_before_the_first_data_even_if_the_data_arrived_earlier(r, place, sockets):
    log = Log()
    server = place.server(sockets)
    conn = place.connect(r, log.on_data, on_connect=log.on_connect)
    peer = sockets.track(server.accept()[0])
    peer.send(b'welcome')
    run_until(r, lambda: log.received)
    assert log == [('connect',), ('data', b'welcome')]
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_a_connection_begun_in_a_completion_is_reported_before_its_first_data(r, place, sockets):
    log, conns = Log(), []
    server = place.server(sockets)
    ours, _ = sockets()

    def proxy(conn: Stream, exc: Any) -> None:
        conns.append(place.connect(r, log.on_data, on_connect=log.on_connect))
        if place.path is not None:  # a Unix socket is connected at once
            greet()

    def greet() -> None:
        sockets.track(server.accept()[0]).send(b'welcome')

    r.adopt(ours, on_close=proxy).close()
    run_until(r, lambda: conns)
    if place.path is None:
        greet()
    run_until(r, lambda: log.received)
    assert log == [('connect',), ('data', b'welcome')]
    end(r, *conns)


def test_an_end_of_file_that_arrived_earlier_is_reported_after_on_connect(r, sockets):
    log = Log()
    server = sockets.track(socket.create_server(('127.0.0.1', 0)))
    r.connect_tcp(*server.getsockname(), **log.callbacks('on_connect', 'on_close'))
    server.accept()[0].close()
    r.run()
    assert log == [('connect',), ('close', None)]


def test_outgoing_tcp_sockets_have_nodelay_and_the_requested_keepalive(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    conns = [
        r.connect_tcp(*listener.address, keepalive=30),
        r.connect_tcp(*listener.address, nodelay=False),
    ]
    run_until(r, lambda: all(conn.state == 'OPEN' for conn in conns))
    found = [
        (
            bool(conn.sock.getsockopt(socket.IPPROTO_TCP, TCP_NODELAY)),
            bool(conn.sock.getsockopt(SOL_SOCKET, SO_KEEPALIVE)),
        )
        for conn in conns
    ]
    assert found == [(True, True), (False, False)]
    listener.close()
    end(r, *conns)


def test_a_loop_with_an_idle_outgoing_connection_sleeps(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*listener.address)
    run_until(r, lambda: conn.state == 'OPEN')
    turns(r, 5)
    assert idle(r)
    listener.close()
    end(r, conn)


def test_an_exception_in_on_connect_ends_the_connection_with_it(r, caplog):
    log, boom = Log(), ValueError('boom')

    def on_connect(conn: Stream) -> None:
        raise boom

    listener = r.listen_tcp('127.0.0.1', 0)
    r.connect_tcp(*listener.address, on_connect=on_connect, on_close=log.on_close)
    run_until(r, lambda: log)
    assert log == [('close', boom)]
    assert 'boom' in caplog.text
    caplog.clear()
    listener.close()
    turns(r, 3)


def test_with_on_error_a_failing_on_connect_does_not_stop_earlier_writes(r):
    log, echoed = Log(), Log()

    def on_connect(conn: Stream) -> None:
        raise ValueError('boom')

    listener = r.listen_tcp('127.0.0.1', 0, echoed.on_data)
    conn = r.connect_tcp(*listener.address, on_connect=on_connect, **log.callbacks('on_error', 'on_close'))
    conn.write(b'early')
    run_until(r, lambda: echoed.received == b'early')
    assert log.names() == ['error']
    listener.close()
    end(r, conn)


# -- writing before the stream is connected


@pytest.mark.scenario(51)
@pytest.mark.parametrize('place', PLACES, indirect=True)
def test_early_writes_are_sent_in_order_after_on_connect(r, place):
    log, server = Log(), Log()
    listener = place.listen(r, server.on_data)
    conn = place.connect(r, on_connect=log.on_connect)
    assert conn.write(b'one ', log.on_written, 1) is True
    assert conn.write(bytearray(b'two '), log.on_written, 2) is True
    assert conn.writelines([b'th', memoryview(b'ree')], log.on_written, 3) is True
    run_until(r, lambda: server.received == b'one two three' and len(log) == 4)
    assert log == [('connect',), ('written', 1), ('written', 2), ('written', 3)]
    listener.close()
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_writes_in_on_connect_follow_earlier_writes(r, place):
    server = Log()
    listener = place.listen(r, server.on_data)
    conn = place.connect(r, on_connect=lambda conn: conn.write(b' later'))
    conn.write(b'early')
    run_until(r, lambda: len(server.received) == 11)
    assert server.received == b'early later'
    listener.close()
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_an_early_end_follows_the_early_writes_and_leaves_reading_open(r, place):
    log, server = Log(), Log()

    def answer(conn: Stream) -> None:
        server.on_eof(conn)
        conn.write(b'answer')
        conn.close()

    listener = place.listen(r, server.on_data, on_eof=answer)
    conn = place.connect(r, log.on_data, **log.callbacks('on_connect', 'on_close'))
    conn.write(b'question', log.on_written)
    conn.write_eof()
    with pytest.raises(ConnectionClosed):
        conn.write(b'too late')
    run_until(r, lambda: 'close' in log.names())
    assert server == [('data', b'question'), ('eof',)]
    assert log == [('connect',), ('written',), ('data', b'answer'), ('close', None)]
    listener.close()
    turns(r, 3)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_an_early_end_without_a_write_is_seen_by_the_peer(r, place):
    log, server = Log(), Log()
    listener = place.listen(r, on_eof=lambda conn: (server.on_eof(conn), conn.close()))
    conn = place.connect(r, on_close=log.on_close)
    conn.write_eof()
    run_until(r, lambda: log)
    assert server == [('eof',)]
    assert log == [('close', None)]
    listener.close()
    turns(r, 3)


def test_an_empty_early_write_is_reported_as_written(r):
    log = Log()
    listener = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*listener.address, on_connect=log.on_connect)
    conn.write(b'', log.on_written)
    run_until(r, lambda: len(log) == 2)
    assert log.names() == ['connect', 'written']
    listener.close()
    end(r, conn)


def test_an_empty_early_write_never_asks_to_wait_for_on_drain(r):
    # No byte is queued, so `on_drain` would never be called, and a caller that waits for it would wait forever.
    server = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*server.address, high_water=0)
    assert conn.write(b'') is True
    assert conn.write(b'x') is False
    server.close()
    end(r, conn)


def test_an_empty_early_write_is_reported_although_on_connect_closes(r):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*server.address, on_connect=lambda conn: conn.close(), on_close=log.on_close)
    conn.write(b'', log.on_written)
    run_until(r, lambda: ('close', None) in log)
    assert log == [('written',), ('close', None)]
    server.close()


def test_nothing_is_sent_before_on_connect(w, world):
    world.answers['10.0.0.1'] = (1, 0)
    seen = []
    conn = w.connect_tcp('10.0.0.1', 80, on_connect=lambda conn: seen.append(bytes(conn.sock.sent)))
    conn.write(b'early')
    run_world(w, lambda: seen and not conn.buffered)
    assert seen == [b'']
    assert conn.sock.sent == b'early'


@pytest.mark.scenario(61)
def test_an_early_write_beyond_the_high_mark_is_answered_by_on_drain(w, world):
    world.answers['10.0.0.1'] = (1, 0)
    log = Log()
    conn = w.connect_tcp('10.0.0.1', 80, high_water=100, **log.callbacks('on_connect', 'on_drain'))
    assert conn.write(b'x' * 99) is True
    assert conn.write(b'x') is False
    assert conn.buffered == 100
    run_world(w, lambda: not conn.buffered)
    turns(w, 2)
    assert log.names() == ['connect', 'drain']


@pytest.mark.scenario(51)
def test_early_writes_beyond_the_limit_end_the_connection(w, world):
    log = Log()
    conn = w.connect_tcp('10.0.0.1', 80, max_buffered=100, on_close=log.on_close)
    assert conn.write(b'x' * 100) is True
    assert conn.write(b'x') is False
    assert isinstance(close_reason(w, conn, log), WriteBufferFull)
    assert world.sockets() == []


# -- failures


def refused(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    return r.connect_tcp('127.0.0.1', closed_port(), **options)


def refused_by_name(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    return r.connect_tcp('localhost', closed_port(), **options)


def unresolvable(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    return r.connect_tcp('nope.invalid', 80, **options)


def other_family(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    return r.connect_tcp('127.0.0.1', closed_port(), family=AF_INET6, **options)


def missing_path(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    return r.connect_unix(str(tmp_path / 'missing'), **options)


def stale_path(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    path = str(tmp_path / 'stale')
    with socket.socket(AF_UNIX) as sock:
        sock.bind(path)
    return r.connect_unix(path, **options)


def not_our_address(r: Reactor, tmp_path: Any, **options: Any) -> Stream:
    return r.connect_tcp('127.0.0.1', closed_port(), local_address=('192.0.2.1', 0), **options)


FAILURES = [
    pytest.param(refused, ConnectionRefusedError, '127.0.0.1', id='refused'),
    pytest.param(refused_by_name, ConnectionRefusedError, '127.0.0.1|::1', id='refused-by-name'),
    pytest.param(unresolvable, ResolveError, 'nope.invalid', id='unresolvable'),
    pytest.param(other_family, ResolveError, '127.0.0.1', id='address-of-another-family'),
    pytest.param(missing_path, FileNotFoundError, 'missing', id='missing-path', marks=needs_unix),
    pytest.param(stale_path, ConnectionRefusedError, 'stale', id='stale-path', marks=needs_unix),
    pytest.param(not_our_address, OSError, '192.0.2.1|127.0.0.1', id='local-address-not-ours'),
]
failures = pytest.mark.parametrize(('fail', 'kind', 'naming'), FAILURES)


@pytest.mark.scenario(48)
@failures
def test_a_failure_is_reported_once_by_on_close_and_after_the_call(r, tmp_path, fail, kind, naming):
    log = Log()
    conn = fail(r, tmp_path, **log.callbacks('on_connect', 'on_data', 'on_eof', 'on_error', 'on_close'))
    assert log == []
    assert isinstance(close_reason(r, conn, log), kind)
    assert r.stats().outgoing == 0 and r.handles() == []
    assert r.run() is True


@pytest.mark.scenario(48)
@failures
def test_a_failure_in_a_running_loop_is_reported_once_and_on_a_fresh_stack(r, tmp_path, fail, kind, naming):
    log, inside = Log(), []

    def main(r: Reactor) -> None:
        inside.append(True)
        fail(r, tmp_path, on_connect=log.on_connect, on_close=lambda conn, exc: log.append((list(inside), exc)))
        inside.clear()

    assert r.run(main) is True
    assert [(when, type(exc)) for when, exc in log] == [([], kind)]


@pytest.mark.scenario(48)
@failures
def test_a_failure_names_the_address_that_could_not_be_reached(r, tmp_path, fail, kind, naming):
    log = Log()
    exc = close_reason(r, fail(r, tmp_path, on_close=log.on_close), log)
    assert any(part in str(exc) for part in naming.split('|')), str(exc)


@pytest.mark.scenario(51)
@failures
def test_after_a_failure_buffered_counts_bytes_that_were_never_sent(r, tmp_path, fail, kind, naming):
    log = Log()
    conn = fail(r, tmp_path, on_close=lambda conn, exc: log.append(('close', conn.buffered)))
    early = not conn.closed  # if the connection has already failed, the write is dropped
    assert conn.write(b'12345', log.on_written) is early
    conn.write(b'678', log.on_written)
    run_until(r, lambda: log)
    turns(r, 2)
    assert log == [('close', 8 if early else 0)]
    assert conn.buffered == 0


@needs_unix
def test_writes_after_a_failure_are_dropped_until_it_is_reported_and_raise_afterwards(r, tmp_path):
    log = Log()
    conn = missing_path(r, tmp_path, on_close=log.on_close)
    assert conn.closed
    assert conn.write(b'x', log.on_written) is False
    assert conn.writelines([b'x'], log.on_written) is False
    conn.write_eof()
    assert isinstance(close_reason(r, conn, log), FileNotFoundError)
    with pytest.raises(ConnectionClosed):
        conn.write(b'x')


@failures
def test_closing_a_failed_connection_is_silent(r, tmp_path, fail, kind, naming):
    log = Log()
    conn = fail(r, tmp_path, on_close=lambda conn, exc: (log.on_close(conn, exc), conn.close(), conn.abort()))
    close_reason(r, conn, log)
    conn.close()
    conn.abort()
    turns(r, 2)
    assert log.names() == ['close']


@pytest.mark.scenario(55)
@pytest.mark.parametrize('error', [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES])
def test_an_error_of_connect_itself_is_reported_with_its_number(w, world, error):
    world.answers['10.0.0.1'] = error
    log = Log()
    exc = close_reason(w, w.connect_tcp('10.0.0.1', 80, on_close=log.on_close), log)
    assert isinstance(exc, OSError) and exc.errno == error
    assert '10.0.0.1:80' in str(exc)
    assert len(world.tried) == 1


@pytest.mark.parametrize('error', [errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH])
def test_an_error_from_the_network_is_reported_with_its_number(w, world, error):
    world.answers['10.0.0.1'] = (0.5, error)
    log = Log()
    exc = close_reason(w, w.connect_tcp('10.0.0.1', 80, on_close=log.on_close), log)
    assert isinstance(exc, OSError) and exc.errno == error
    assert world.elapsed == 0.5


def test_running_out_of_descriptors_is_reported_and_names_the_target(w, world):
    world.socket_errors = [errno.EMFILE]
    log = Log()
    conn = w.connect_tcp('10.0.0.1', 80, on_close=log.on_close)
    assert log == []
    exc = close_reason(w, conn, log)
    assert isinstance(exc, OSError) and exc.errno == errno.EMFILE
    assert '10.0.0.1:80' in str(exc)


def test_running_out_of_descriptors_on_a_real_kernel_is_reported(r, monkeypatch):
    def no_descriptors(*args: Any) -> Any:
        raise OSError(errno.EMFILE, 'Too many open files')

    log = Log()
    monkeypatch.setattr(r.kernel, 'socket', no_descriptors)
    exc = close_reason(r, r.connect_tcp('127.0.0.1', 9, on_close=log.on_close), log)
    assert isinstance(exc, OSError) and exc.errno == errno.EMFILE


@pytest.mark.scenario(120)
@pytest.mark.parametrize('answer', [0, (0.1, 0)])
def test_a_selector_without_room_is_reported(w, world, answer):
    world.answers['10.0.0.1'] = answer
    world.room = False
    log = Log()
    conn = w.connect_tcp('10.0.0.1', 80, **log.callbacks('on_connect', 'on_close'))
    assert isinstance(close_reason(w, conn, log), SelectorFull)
    assert w.stats().outgoing == 0


def test_a_local_address_of_another_machine_is_reported_with_its_number(w, world):
    world.bind_error = errno.EADDRNOTAVAIL
    log = Log()
    conn = w.connect_tcp('10.0.0.1', 80, local_address=('192.0.2.1', 0), on_close=log.on_close)
    exc = close_reason(w, conn, log)
    assert isinstance(exc, OSError) and exc.errno == errno.EADDRNOTAVAIL
    assert world.tried == []


@needs_unix
def test_connecting_again_and_again_from_on_close_neither_deepens_the_stack_nor_blocks_the_loop(r, tmp_path):
    depths: list[int] = []
    ticks: list[int] = []

    def again(conn: Stream | None, exc: Any) -> None:
        frame, depth = sys._getframe(), 0
        while frame.f_back is not None:
            frame, depth = frame.f_back, depth + 1
        depths.append(depth)
        if len(depths) < 300:
            missing_path(r, tmp_path, on_close=again)

    missing_path(r, tmp_path, on_close=again)
    r.call_soon(lambda: ticks.append(len(depths)))
    assert r.run() is True
    assert len(depths) == 300 and max(depths) - min(depths) <= 1
    assert ticks[0] <= 2


# -- closed while connecting


def in_look_up(w: Reactor, world: World, log: Log, **options: Any) -> Stream:
    world.stalled = True
    world.names['slow.test'] = ['10.0.0.1']
    return w.connect_tcp('slow.test', 80, **log.callbacks('on_connect', 'on_close'), **options)


def in_attempt(w: Reactor, world: World, log: Log, **options: Any) -> Stream:
    return w.connect_tcp('10.0.0.1', 80, **log.callbacks('on_connect', 'on_close'), **options)


def in_several_attempts(w: Reactor, world: World, log: Log, **options: Any) -> Stream:
    world.names['four.test'] = FOUR
    conn = w.connect_tcp('four.test', 80, **log.callbacks('on_connect', 'on_close'), **options)
    run_world(w, lambda: len(world.tried) == 2)
    assert len(world.sockets()) == 2
    return conn


def between_attempts(w: Reactor, world: World, log: Log, **options: Any) -> Stream:
    world.answers['/s'] = errno.EAGAIN
    conn = w.connect_unix('/s', **log.callbacks('on_connect', 'on_close'), **options)
    assert world.sockets() == [] and len(w.timers) >= 1
    return conn


STAGES = [in_look_up, in_attempt, in_several_attempts, pytest.param(between_attempts, marks=needs_unix)]
stages = pytest.mark.parametrize('stage', STAGES)


@pytest.mark.scenario(50, 75)
@stages
@pytest.mark.parametrize('how', ['close', 'abort'])
def test_ending_a_stream_while_connecting_is_reported_once_without_an_error_and_leaves_nothing(w, world, stage, how):
    log = Log()
    conn = stage(w, world, log, timeout=60)
    getattr(conn, how)()
    assert log == []
    assert conn.closed and conn.state == 'CLOSED'
    assert world.sockets() == []
    assert w.handles() == [] and len(w.timers) == 0
    assert w.run() is True
    assert log == [('close', None)]
    assert w.stats().outgoing == 0
    conn.close()
    conn.abort()
    turns(w, 2)
    assert log == [('close', None)]


@pytest.mark.scenario(50)
@stages
def test_closing_while_connecting_drops_the_early_writes_and_refuses_later_ones(w, world, stage):
    log, left = Log(), []
    conn = stage(w, world, log)
    conn.on_close = lambda conn, exc: left.append((conn.buffered, exc))
    conn.write(b'early', log.on_written)
    conn.close()
    with pytest.raises(ConnectionClosed):
        conn.write(b'late')
    w.run()
    assert left == [(5, None)]
    assert log == []


@stages
def test_closing_the_reactor_while_connecting_calls_on_close_and_leaves_nothing(world, stage):
    log = Log()
    with Reactor(kernel=world) as w:
        stage(w, world, log, timeout=60)
    assert log == [('close', None)]
    assert world.open == {}


def test_a_look_up_that_ends_after_the_close_is_ignored(w, world):
    log = Log()
    in_look_up(w, world, log).close()
    w.run()
    for thread in world.threads:
        thread()
    turns(w, 3)
    assert log == [('close', None)]
    assert world.tried == []


def test_a_look_up_that_ended_just_before_the_close_is_ignored(w, world):
    log = Log()
    conn = in_look_up(w, world, log)
    for thread in world.threads:
        thread()
    conn.close()
    w.run()
    turns(w, 3)
    assert log == [('close', None)]
    assert world.tried == []


@pytest.mark.parametrize('how', ['close', 'abort'])
@pytest.mark.parametrize('place', PLACES, indirect=True)
def test_on_connect_is_not_called_when_the_stream_is_ended_right_after_the_call(r, place, how):
    log = Log()
    listener = place.listen(r)
    conn = place.connect(r, **log.callbacks('on_connect', 'on_data', 'on_close'))
    getattr(conn, how)()
    run_until(r, lambda: log)
    turns(r, 3)
    assert log == [('close', None)]
    listener.close()
    turns(r, 3)


@pytest.mark.scenario(50)
@pytest.mark.parametrize('paused', [False, True], ids=['reading', 'paused'])
@pytest.mark.parametrize('how', ['close', 'abort'])
def test_on_connect_is_not_called_when_the_stream_is_ended_in_the_turn_in_which_it_connects(r, how, paused):
    log = Log()
    listener = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*listener.address, **log.callbacks('on_connect', 'on_close'))
    if paused:
        conn.pause_reading()

    def end_it() -> None:  # runs after the events of a turn and before its completions
        if conn.state == 'CONNECTING' and not log and not r.completions:
            r.call_soon(end_it)
        else:
            getattr(conn, how)()

    r.call_soon(end_it)
    run_until(r, lambda: log)
    turns(r, 3)
    assert log == [('close', None)]
    listener.close()
    turns(r, 3)


@pytest.mark.scenario(9)
def test_a_callback_can_close_another_connection_that_connects_in_the_same_batch(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    logs = [Log(), Log()]
    conns: list[Stream] = []

    def close_the_other(conn: Stream) -> None:
        index = conns.index(conn)
        logs[index].on_connect(conn)
        conns[1 - index].close()

    conns += [r.connect_tcp(*listener.address, on_connect=close_the_other, on_close=log.on_close) for log in logs]
    run_until(r, lambda: all(logs))
    turns(r, 3)
    assert sorted(log.names() for log in logs) == [['close'], ['connect']]
    listener.close()
    end(r, *conns)


# -- time limits


@pytest.mark.scenario(49)
def test_the_time_limit_covers_a_look_up_that_stalls(w, world):
    log = Log()
    conn = in_look_up(w, world, log, timeout=5)
    exc = close_reason(w, conn, log)
    assert isinstance(exc, ConnectTimeout) and isinstance(exc, TimeoutError)
    assert world.elapsed == 5
    for part in 'slow.test:80', '5 s', 'look-up', 'check':
        assert part in str(exc)


@pytest.mark.scenario(49)
def test_the_time_limit_covers_an_address_that_never_answers(w, world):
    log = Log()
    conn = in_attempt(w, world, log, timeout=2.5)
    exc = close_reason(w, conn, log)
    assert isinstance(exc, ConnectTimeout)
    assert world.elapsed == 2.5
    for part in '10.0.0.1:80', '2.5 s', 'answer', 'check':
        assert part in str(exc)
    assert world.sockets() == []


def test_one_time_limit_covers_the_look_up_and_the_attempts(w, world):
    log = Log()
    conn = in_look_up(w, world, log, timeout=5)
    w.call_later(3, lambda: world.threads.pop()())
    exc = close_reason(w, conn, log)
    assert isinstance(exc, ConnectTimeout) and 'look-up' not in str(exc)
    assert world.tried == [(3, '10.0.0.1')]
    assert world.elapsed == 5


def test_one_time_limit_covers_all_attempts(w, four):
    log = Log()
    conn = w.connect_tcp('four.test', 80, on_close=log.on_close, timeout=0.6)
    assert isinstance(close_reason(w, conn, log), ConnectTimeout)
    assert [when for when, _ in four.tried] == [0, 0.25, 0.5]
    assert four.elapsed == 0.6
    assert four.sockets() == []


@pytest.mark.scenario(49)
def test_an_answer_after_the_time_limit_is_ignored(w, world):
    world.answers['10.0.0.1'] = (5.001, 0)
    log = Log()
    conn = in_attempt(w, world, log, timeout=5)
    close_reason(w, conn, log)
    w.call_later(10, log.append, ('later',))
    w.run()
    assert log.names() == ['close', 'later']


def test_a_connection_made_in_time_leaves_no_time_limit(w, world):
    world.answers['10.0.0.1'] = (4.999, 0)
    log = Log()
    conn = in_attempt(w, world, log, timeout=5)
    run_world(w, lambda: log)
    assert log == [('connect',)]
    assert len(w.timers) == 0
    w.call_later(10, w.stop)
    w.run()
    assert log == [('connect',)] and conn.state == 'OPEN'


def test_a_failure_in_time_leaves_no_time_limit(w, world):
    world.answers['10.0.0.1'] = (1, errno.ECONNREFUSED)
    log = Log()
    conn = in_attempt(w, world, log, timeout=60)
    assert isinstance(close_reason(w, conn, log), ConnectionRefusedError)
    assert len(w.timers) == 0
    assert w.run() is True and world.elapsed == 1


def test_a_time_limit_of_zero_expires_in_the_first_turn(w, world):
    log = Log()
    conn = in_attempt(w, world, log, timeout=0)
    assert isinstance(close_reason(w, conn, log), ConnectTimeout)
    assert world.elapsed == 0


def test_the_message_of_a_time_limit_shows_an_ipv6_address_in_brackets(w, world):
    log = Log()
    exc = close_reason(w, w.connect_tcp('fd00::1', 80, on_close=log.on_close, timeout=1), log)
    assert '[fd00::1]:80' in str(exc)


def test_without_a_time_limit_a_connect_waits_as_long_as_the_kernel_does(w, world):
    world.answers['10.0.0.1'] = (7200, 0)
    log = Log()
    conn = in_attempt(w, world, log)
    run_world(w, lambda: log)
    assert log == [('connect',)] and world.elapsed == 7200
    conn.abort()


def fill_backlog(place: Place, sockets: Any, server: socket.socket) -> None:
    """Connect clients until the backlog of the server is full; the server accepts none of them."""
    address = server.getsockname()
    for _ in range(16):
        client = sockets.track(socket.socket(server.family))
        client.settimeout(0.1)
        try:
            client.connect(address)
        except (TimeoutError, BlockingIOError):
            return
    raise AssertionError('the backlog never filled')


@needs_linux_backlog
@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_a_connect_to_a_full_backlog_waits_until_the_time_limit(r, place, sockets):
    log = Log()
    fill_backlog(place, sockets, place.server(sockets, backlog=0))
    conn = place.connect(r, **log.callbacks('on_connect', 'on_close'), timeout=0.1)
    before = r.timers.clock()
    exc = close_reason(r, conn, log)
    assert isinstance(exc, ConnectTimeout)
    assert r.timers.clock() - before >= 0.1 - 0.02
    assert (place.path or '127.0.0.1') in str(exc)


@needs_linux_backlog
@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_closing_while_a_backlog_is_full_is_reported_without_an_error(r, place, sockets):
    log = Log()
    fill_backlog(place, sockets, place.server(sockets, backlog=0))
    conn = place.connect(r, **log.callbacks('on_connect', 'on_close'), timeout=60)
    turns(r, 3)
    assert idle(r)
    conn.close()
    assert close_reason(r, conn, log) is None


@needs_linux_backlog
@needs_unix
@pytest.mark.parametrize('place', ['unix'], indirect=True)
def test_a_full_unix_backlog_is_tried_again_until_there_is_room(r, place, sockets):
    log = Log()
    server = place.server(sockets, backlog=0)
    fill_backlog(place, sockets, server)
    conn = place.connect(r, log.on_data, on_connect=log.on_connect)
    conn.write(b'early')
    turns(r, 3)
    assert log == [] and idle(r)
    server.setblocking(False)
    peers = [sockets.track(server.accept()[0])]
    run_until(r, lambda: log == [('connect',)])
    while not any(peer.recv(5) == b'early' for peer in peers[1:]):
        peers.append(sockets.track(server.accept()[0]))
        run_until(r, lambda: not conn.buffered)
    end(r, conn)


# -- Unix sockets whose backlog is full, on a simulated clock


@pytest.mark.scenario(55)
@needs_unix
def test_a_full_unix_backlog_is_retried_after_10_ms_and_then_at_growing_intervals_up_to_250_ms(w, world):
    world.answers['/s'] = [errno.EAGAIN] * 8 + [0]
    log = Log()
    w.connect_unix('/s', **log.callbacks('on_connect', 'on_close'))
    run_world(w, lambda: log)
    times = [when for when, _ in world.tried]
    gaps = [round(after - before, 3) for before, after in itertools.pairwise(times)]
    assert gaps == [0.01, 0.02, 0.04, 0.08, 0.16, 0.25, 0.25, 0.25]
    assert log == [('connect',)]
    assert len(world.sockets()) == 1 and len(w.timers) == 0


@pytest.mark.scenario(55)
@needs_unix
def test_a_unix_backlog_that_stays_full_ends_with_the_time_limit(w, world):
    world.answers['/s'] = errno.EAGAIN
    log = Log()
    conn = w.connect_unix('/s', on_close=log.on_close, timeout=1)
    exc = close_reason(w, conn, log)
    assert isinstance(exc, ConnectTimeout) and '/s' in str(exc)
    assert world.elapsed == 1 and len(world.tried) < 10


@needs_unix
def test_a_unix_server_that_goes_away_while_its_backlog_is_full_is_reported(w, world):
    world.answers['/s'] = [errno.EAGAIN, errno.ECONNREFUSED]
    log = Log()
    conn = w.connect_unix('/s', on_close=log.on_close)
    assert isinstance(close_reason(w, conn, log), ConnectionRefusedError)


# -- several addresses


@pytest.mark.scenario(54)
def test_addresses_are_tried_every_250_ms_with_alternating_families(w, four):
    w.connect_tcp('four.test', 80)
    w.call_later(5, w.stop)
    w.run()
    assert four.tried == [(0, 'fd00::1'), (0.25, '10.0.0.1'), (0.5, 'fd00::2'), (0.75, '10.0.0.2')]


@pytest.mark.scenario(54)
def test_after_a_refusal_the_next_address_is_tried_at_once_and_the_250_ms_start_again(w, four):
    four.answers['fd00::1'] = (0.1, errno.ECONNREFUSED)
    w.connect_tcp('four.test', 80)
    w.call_later(5, w.stop)
    w.run()
    assert four.tried == [(0, 'fd00::1'), (0.1, '10.0.0.1'), (0.35, 'fd00::2'), (0.6, '10.0.0.2')]


def test_addresses_that_cannot_be_reached_cost_no_time(w, four):
    four.answers = {'fd00::1': errno.ENETUNREACH, '10.0.0.1': errno.ENETUNREACH, 'fd00::2': (0.01, 0)}
    log = Log()
    w.connect_tcp('four.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_world(w, lambda: log)
    assert four.tried == [(0, 'fd00::1'), (0, '10.0.0.1'), (0, 'fd00::2')]
    assert log == [('connect',)]


def test_when_the_first_address_answers_no_other_is_tried(w, four):
    four.answers['fd00::1'] = (0.2, 0)
    log = Log()
    w.connect_tcp('four.test', 80, on_connect=log.on_connect)
    run_world(w, lambda: log)
    w.call_later(5, w.stop)
    w.run()
    assert [host for _, host in four.tried] == ['fd00::1']


@pytest.mark.scenario(54)
def test_the_first_to_answer_wins_and_the_others_are_closed(w, four):
    four.answers = {'fd00::1': (3, 0), '10.0.0.1': (1, 0), 'fd00::2': (0.1, 0)}
    log = Log()
    conn = w.connect_tcp('four.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_world(w, lambda: log)
    assert conn.peername[0] == 'fd00::2'
    assert four.elapsed == 0.6
    assert [sock.peer[0] for sock in four.sockets()] == ['fd00::2']
    w.call_later(5, w.stop)
    w.run()
    assert log == [('connect',)]
    assert w.handles() == [conn]


def test_an_early_address_can_win_after_later_ones_were_tried(w, four):
    four.answers['fd00::1'] = (0.6, 0)
    log = Log()
    conn = w.connect_tcp('four.test', 80, on_connect=log.on_connect)
    run_world(w, lambda: log)
    assert conn.peername[0] == 'fd00::1'
    assert len(four.tried) == 3 and len(four.sockets()) == 1


def test_when_two_addresses_answer_in_one_turn_one_is_used(w, world):
    world.names['two.test'] = ['fd00::1', '10.0.0.1']
    world.answers = {'fd00::1': (1, 0), '10.0.0.1': (0.75, 0)}
    log = Log()
    conn = w.connect_tcp('two.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_world(w, lambda: log)
    turns(w, 3)
    assert log == [('connect',)]
    assert len(world.sockets()) == 1 and w.handles() == [conn]
    assert w.stats().connects == 1


def test_when_one_address_fails_and_one_answers_in_one_turn_the_stream_is_connected(w, world):
    world.names['two.test'] = ['fd00::1', '10.0.0.1']
    world.answers = {'fd00::1': (1, errno.ECONNREFUSED), '10.0.0.1': (0.75, 0)}
    log = Log()
    conn = w.connect_tcp('two.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_world(w, lambda: log)
    turns(w, 3)
    assert log == [('connect',)] and conn.peername[0] == '10.0.0.1'


@pytest.mark.scenario(54)
def test_when_all_addresses_fail_the_first_familys_last_error_is_reported_with_all_in_its_notes(w, four):
    four.answers = {
        'fd00::1': errno.ENETUNREACH,
        '10.0.0.1': (0.1, errno.ECONNREFUSED),
        'fd00::2': (0.1, errno.EHOSTUNREACH),
        '10.0.0.2': (0.1, errno.ECONNRESET),
    }
    log = Log()
    exc = close_reason(w, w.connect_tcp('four.test', 80, on_close=log.on_close), log)
    assert isinstance(exc, OSError) and exc.errno == errno.EHOSTUNREACH
    assert 'fd00::2' in str(exc)
    for host in FOUR:
        assert any(host in note for note in exc.__notes__), exc.__notes__
    assert len(exc.__notes__) == 4


def test_the_first_familys_error_is_reported_even_when_the_other_family_failed_before_it(w, world):
    world.names['two.test'] = ['fd00::1', '10.0.0.1']
    world.answers = {'fd00::1': (2, errno.ETIMEDOUT), '10.0.0.1': (0.1, errno.ECONNREFUSED)}
    log = Log()
    exc = close_reason(w, w.connect_tcp('two.test', 80, on_close=log.on_close), log)
    assert isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT
    assert len(exc.__notes__) == 2


def test_a_single_failure_needs_no_notes(w, world):
    world.answers['10.0.0.1'] = (0.1, errno.ECONNREFUSED)
    log = Log()
    exc = close_reason(w, w.connect_tcp('10.0.0.1', 80, on_close=log.on_close), log)
    assert not hasattr(exc, '__notes__')


@pytest.mark.parametrize(('family', 'hosts'), [(AF_INET, FOUR[2:]), (AF_INET6, FOUR[:2])])
def test_only_addresses_of_the_requested_family_are_tried(w, four, family, hosts):
    w.connect_tcp('four.test', 80, family=family)
    w.call_later(5, w.stop)
    w.run()
    assert [host for _, host in four.tried] == hosts


def test_running_out_of_descriptors_for_one_address_leaves_the_attempts_under_way(w, four):
    four.answers['fd00::1'] = (1, 0)
    four.socket_errors = [0, errno.EMFILE]
    log = Log()
    conn = w.connect_tcp('four.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_world(w, lambda: log)
    assert log == [('connect',)] and conn.peername[0] == 'fd00::1'


@pytest.mark.scenario(14)
def test_each_attempt_has_its_own_socket(w, four):
    four.answers = dict.fromkeys(FOUR, (0.01, errno.ECONNREFUSED))
    made = []
    real = four.socket
    four.socket = lambda *args: made.append(real(*args)) or made[-1]  # type: ignore[method-assign]
    log = Log()
    close_reason(w, w.connect_tcp('four.test', 80, on_close=log.on_close), log)
    assert len({id(sock) for sock in made}) == 4
    assert all(sock.calls == ['close'] for sock in made)


def test_a_name_with_one_refusing_and_one_listening_address_is_connected(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    log = Log()
    conn = r.connect_tcp('localhost', listener.address[1], **log.callbacks('on_connect', 'on_close'))
    run_until(r, lambda: log)
    assert log == [('connect',)] and conn.peername == listener.address
    listener.close()
    end(r, conn)


# -- a connecting socket that is writable is not always connected


@pytest.mark.scenario(52)
def test_a_spurious_writability_is_ignored(w, world):
    world.answers['10.0.0.1'] = (2, 0)
    log = Log()
    conn = in_attempt(w, world, log)
    sock = world.sockets()[0]
    sock.spurious = True
    turns(w, 3)
    sock.spurious = False
    assert log == [] and conn.state == 'CONNECTING'
    run_world(w, lambda: log)
    assert log == [('connect',)] and world.elapsed == 2


@pytest.mark.scenario(52)
def test_a_writable_socket_with_an_error_is_not_a_connection(w, world):
    world.answers['10.0.0.1'] = (1, errno.ECONNREFUSED)
    log = Log()
    exc = close_reason(w, in_attempt(w, world, log), log)
    assert isinstance(exc, ConnectionRefusedError)
    assert w.stats().connects == 0


@pytest.mark.scenario(52)
def test_a_socket_whose_error_cannot_be_read_has_failed(w, world):
    world.answers['10.0.0.1'] = (1, -errno.EBADF)
    log = Log()
    conn = in_attempt(w, world, log, timeout=60)
    exc = close_reason(w, conn, log)
    assert isinstance(exc, OSError) and exc.errno == errno.EBADF
    assert w.stats().callback_errors == 0


@pytest.mark.scenario(53)
def test_a_port_that_connects_to_itself_is_refused(r):
    port = closed_port()
    log = Log()
    conn = r.connect_tcp(
        '127.0.0.1', port, local_address=('127.0.0.1', port), timeout=10, **log.callbacks('on_connect', 'on_close')
    )
    exc = close_reason(r, conn, log)
    assert isinstance(exc, ConnectionRefusedError)
    assert f'127.0.0.1:{port}' in str(exc)


@pytest.mark.scenario(53)
@pytest.mark.parametrize('answer', [(0.1, 0), 0], ids=['later', 'at-once'])
def test_a_scripted_socket_that_is_its_own_peer_is_refused(w, world, answer):
    world.answers['10.0.0.1'] = answer
    log = Log()
    conn = in_attempt(w, world, log, local_address=('10.0.0.1', 80))
    assert isinstance(close_reason(w, conn, log), ConnectionRefusedError)


def foreign_close(r: Reactor, sockets: Any, tmp_path: Any, **options: Any) -> Stream:
    """Return a connecting stream whose descriptor has been closed by other code."""
    place = Place('ipv4', tmp_path)
    fill_backlog(place, sockets, place.server(sockets, backlog=0))
    conn = place.connect(r, **options)
    turns(r, 2)
    (attempt,) = [handle for handle in r.handles() if isinstance(handle, Attempt)]
    os.close(attempt.fileno())
    return conn


@needs_linux_backlog
@pytest.mark.parametrize('how', ['close', 'abort'])
def test_ending_a_connecting_stream_after_a_foreign_close_is_reported_once(r, sockets, tmp_path, how):
    log = Log()
    conn = foreign_close(r, sockets, tmp_path, on_close=log.on_close)
    getattr(conn, how)()
    close_reason(r, conn, log)
    assert r.handles() == []


@needs_linux_backlog
def test_a_foreign_close_is_reported_at_the_poll_that_sees_it(r, sockets, tmp_path):
    if not isinstance(r.watchers.selector, (getattr(selectors, 'PollSelector', ()), selectors.SelectSelector)):
        pytest.skip('epoll and kqueue never report a descriptor that was closed')
    log = Log()
    conn = foreign_close(r, sockets, tmp_path, on_close=log.on_close)
    exc = close_reason(r, conn, log)
    assert isinstance(exc, OSError) and exc.errno == errno.EBADF
    assert r.handles() == [] and r.stats().callback_errors == 0


# -- the local address


def test_a_local_address_without_a_port_is_used(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    host = '127.0.0.2' if ON_LINUX else '127.0.0.1'
    conn = r.connect_tcp(*listener.address, local_address=(host, 0))
    run_until(r, lambda: conn.state == 'OPEN')
    assert conn.sockname[0] == host and conn.sockname[1] > 0
    listener.close()
    end(r, conn)


def test_a_local_address_with_a_port_is_used(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    port = closed_port()
    conn = r.connect_tcp(*listener.address, local_address=('127.0.0.1', port))
    run_until(r, lambda: conn.state == 'OPEN')
    assert conn.sockname == ('127.0.0.1', port)
    listener.close()
    end(r, conn)


@needs_ipv6
def test_a_local_ipv6_address_is_used(r):
    listener = r.listen_tcp('::1', 0)
    conn = r.connect_tcp(*listener.address[:2], local_address=('::1', 0))
    run_until(r, lambda: conn.state == 'OPEN')
    assert conn.sockname[0] == '::1'
    listener.close()
    end(r, conn)


def test_a_local_address_limits_a_name_to_addresses_of_its_family(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    log = Log()
    conn = r.connect_tcp(
        'localhost', listener.address[1], local_address=('127.0.0.1', 0), **log.callbacks('on_connect', 'on_close')
    )
    run_until(r, lambda: log)
    assert log == [('connect',)] and conn.sockname[0] == '127.0.0.1'
    listener.close()
    end(r, conn)


# -- pausing, references, gauges, time limits


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_reading_paused_while_connecting_stays_paused(r, place, sockets):
    log = Log()
    server = place.server(sockets)
    conn = place.connect(r, log.on_data, on_connect=log.on_connect)
    conn.pause_reading()
    sockets.track(server.accept()[0]).send(b'hello')
    run_until(r, lambda: log)
    turns(r, 5)
    assert log == [('connect',)]
    assert idle(r)
    conn.resume_reading()
    run_until(r, lambda: log.received == b'hello')
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_reading_resumed_while_connecting_continues(r, place, sockets):
    log = Log()
    server = place.server(sockets)
    conn = place.connect(r, log.on_data, on_connect=log.on_connect)
    conn.pause_reading()
    conn.resume_reading()
    sockets.track(server.accept()[0]).send(b'hello')
    run_until(r, lambda: log.received == b'hello')
    assert log.names() == ['connect', 'data']
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_early_writes_are_sent_while_reading_is_paused(r, place):
    server = Log()
    listener = place.listen(r, server.on_data)
    conn = place.connect(r)
    conn.pause_reading()
    conn.write(b'x' * 300_000)
    run_until(r, lambda: len(server.received) == 300_000)
    listener.close()
    end(r, conn)


@pytest.mark.parametrize('place', TCP_AND_UNIX, indirect=True)
def test_the_gauges_count_connecting_and_connected_streams(r, place):
    def gauges() -> tuple[int, int]:
        return r.stats().outgoing, r.stats().incoming

    listener = place.listen(r)
    conn = place.connect(r)
    assert gauges() == (1, 0)
    run_until(r, lambda: gauges() == (1, 1))
    assert r.stats().connects == 1
    conn.close()
    assert gauges()[0] == 0
    run_until(r, lambda: gauges() == (0, 0))
    assert r.stats().connects == 1
    listener.close()


def test_a_failure_does_not_count_as_a_connect(r, tmp_path):
    log = Log()
    conn = refused(r, tmp_path, on_close=log.on_close)
    assert r.stats().outgoing == 1
    close_reason(r, conn, log)
    assert (r.stats().outgoing, r.stats().connects) == (0, 0)


@stages
def test_a_connecting_stream_keeps_the_loop_running_and_why_alive_says_so(w, world, stage):
    stage(w, world, Log())
    assert w.run_once(0) is True
    assert 'connection to be made' in '\n'.join(w.why_alive())


@stages
def test_an_unreferenced_connection_does_not_keep_the_loop_running(w, world, stage):
    conn = stage(w, world, Log())
    conn.unref()
    w.call_later(1, w.stop).unref()
    assert w.run() is True
    assert conn.state == 'CONNECTING'


@stages
def test_the_repr_of_a_connecting_stream_never_fails(w, world, stage):
    conn = stage(w, world, Log())
    assert all('fd=' in repr(handle) or 'ThreadCall' in repr(handle) for handle in w.handles())
    assert 'CONNECTING' in repr(conn)


def test_idle_time_starts_when_the_stream_is_connected(w, world):
    world.answers['10.0.0.1'] = (30, 0)
    log = Log()
    in_attempt(w, world, log, idle_timeout=5)
    assert w.run() is True
    assert log.names() == ['connect', 'close']
    assert isinstance(log[1][1], IdleTimeout)
    assert 35 <= world.elapsed <= 36


def test_time_limits_set_while_connecting_start_when_the_stream_is_connected(w, world):
    world.answers['10.0.0.1'] = (30, 0)
    log = Log()
    in_attempt(w, world, log).set_timeouts(idle=5)
    w.run()
    assert isinstance(log[1][1], IdleTimeout)
    assert 35 <= world.elapsed <= 36


def test_callbacks_can_be_replaced_while_connecting(r):
    log, other = Log(), Log()
    listener = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*listener.address, **log.callbacks('on_connect', 'on_close'))
    conn.on_connect, conn.on_close = other.on_connect, other.on_close
    run_until(r, lambda: other)
    end(r, conn)
    assert other == [('connect',), ('close', None)] and log == []
    listener.close()
    turns(r, 2)


# -- freed without the garbage collector


@pytest.fixture
def no_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connectors() -> int:
    return sum(type(found) in (Connector, Attempt) for found in gc.get_objects())


def refuse_later(w: Reactor, world: World, log: Log) -> Stream:
    world.answers['10.0.0.1'] = (1, errno.ECONNREFUSED)
    return in_attempt(w, world, log)


def refuse_at_once(w: Reactor, world: World, log: Log) -> Stream:
    world.answers['10.0.0.1'] = errno.ENETUNREACH
    return in_attempt(w, world, log)


def refuse_everywhere(w: Reactor, world: World, log: Log) -> Stream:
    world.names['four.test'] = FOUR
    world.answers = dict.fromkeys(FOUR, (0.1, errno.ECONNREFUSED))
    return w.connect_tcp('four.test', 80, on_close=log.on_close)


def no_socket(w: Reactor, world: World, log: Log) -> Stream:
    world.socket_errors = [errno.EMFILE]
    return in_attempt(w, world, log)


def no_bind(w: Reactor, world: World, log: Log) -> Stream:
    world.bind_error = errno.EADDRNOTAVAIL
    return in_attempt(w, world, log, local_address=('192.0.2.1', 0))


def no_room(w: Reactor, world: World, log: Log) -> Stream:
    world.room = False
    return in_attempt(w, world, log)


def no_name(w: Reactor, world: World, log: Log) -> Stream:
    world.names['gone.test'] = socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
    return w.connect_tcp('gone.test', 80, on_close=log.on_close)


def time_over(w: Reactor, world: World, log: Log) -> Stream:
    return in_attempt(w, world, log, timeout=5)


def time_over_in_look_up(w: Reactor, world: World, log: Log) -> Stream:
    return in_look_up(w, world, log, timeout=5)


def closed_in(stage: Any) -> Any:
    def close(w: Reactor, world: World, log: Log) -> Stream:
        conn: Stream = stage(w, world, log, timeout=60)
        conn.write(b'early', log.on_written)
        conn.close()
        return conn

    close.__name__ = f'closed_{stage.__name__}'
    return close


def closed_when_connected(w: Reactor, world: World, log: Log) -> Stream:
    world.answers['10.0.0.1'] = (1, 0)
    conn = in_attempt(w, world, log, timeout=60)
    conn.on_connect = Stream.close
    return conn


ENDS = [
    refuse_later,
    refuse_at_once,
    refuse_everywhere,
    no_socket,
    no_bind,
    no_room,
    no_name,
    time_over,
    time_over_in_look_up,
    closed_in(in_look_up),
    closed_in(in_attempt),
    closed_in(in_several_attempts),
    pytest.param(closed_in(between_attempts), marks=needs_unix),
    closed_when_connected,
]


@pytest.mark.scenario(119)
@pytest.mark.parametrize('ending', ENDS)
def test_a_connecting_stream_is_freed_without_the_garbage_collector_however_it_ends(w, world, no_gc, ending):
    class Data:
        pass

    log, before = Log(), connectors()
    conn = ending(w, world, log)
    data = conn.data = Data()
    freed = [weakref.ref(conn), weakref.ref(data)]
    del conn, data
    assert w.run() is True
    assert log.names() == ['close']
    assert [ref() for ref in freed] == [None, None]
    assert connectors() == before
    assert w.handles() == [] and len(w.timers) == 0


def test_once_connected_nothing_of_the_attempts_is_left(w, four, no_gc):
    four.answers['10.0.0.1'] = (0.1, 0)
    log, before = Log(), connectors()
    conn = w.connect_tcp('four.test', 80, on_connect=log.on_connect, timeout=60)
    run_world(w, lambda: log)
    turns(w, 1)
    assert connectors() == before
    assert w.handles() == [conn] and len(w.timers) == 0


@pytest.mark.parametrize('fail', [refused, refused_by_name, unresolvable, pytest.param(missing_path, marks=needs_unix)])
def test_a_stream_that_fails_on_the_real_kernel_is_freed_without_the_garbage_collector(r, tmp_path, no_gc, fail):
    log, before = Log(), connectors()
    freed = weakref.ref(fail(r, tmp_path, on_close=log.on_close))
    run_until(r, lambda: log)
    turns(r, 2)
    assert freed() is None and connectors() == before


def test_the_error_of_a_failure_keeps_no_frames(r, tmp_path):
    for fail in refused, not_our_address, unresolvable:
        log = Log()
        exc = close_reason(r, fail(r, tmp_path, on_close=log.on_close), log)
        assert exc is not None and exc.__traceback__ is None


def test_many_connects_in_a_row_leave_nothing(r):
    listener = r.listen_tcp('127.0.0.1', 0, on_connect=Stream.close)
    closed = Log()

    def again(conn: Stream | None, exc: Any) -> None:
        closed.append(('close', exc))
        if len(closed) < 200:
            r.connect_tcp(*listener.address, on_close=again)
        else:
            listener.close()

    r.connect_tcp(*listener.address, on_close=again)
    assert r.run() is True
    assert closed == [('close', None)] * 200
    assert r.stats().connects == 200


# -- no local port is left


@pytest.mark.scenario(55)
def test_a_local_port_already_connected_to_the_target_is_reported_once_and_nothing_spins(r, sockets):
    server = sockets.track(socket.create_server(('127.0.0.1', 0)))
    taken = sockets.track(socket.socket())
    taken.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(('127.0.0.1', 0))
    taken.connect(server.getsockname())
    log = Log()
    conn = r.connect_tcp(
        *server.getsockname(), local_address=taken.getsockname(), **log.callbacks('on_connect', 'on_close')
    )
    exc = close_reason(r, conn, log)
    assert isinstance(exc, OSError) and exc.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE)
    assert str(server.getsockname()[1]) in str(exc)
    assert r.run() is True
    assert r.stats().loop_count < 10


@pytest.mark.parametrize('call', ['getsockopt', 'getpeername', 'getsockname', 'setsockopt', 'register'])
@pytest.mark.parametrize('error', [errno.ENOBUFS, errno.EBADF])
def test_an_attempt_whose_socket_fails_is_reported_and_leaves_no_descriptor(call, error):
    log, errors = Log(), []
    kernel = FailingKernel(call, error, count=2 if call == 'register' else 1)  # the wakeup is registered first
    with Reactor(kernel=kernel, catch_errors=lambda exc, handle: errors.append(exc)) as r:
        server = kernel.socket(AF_INET, socket.SOCK_STREAM)
        server.bind(('10.0.0.1', 80))
        server.listen(5)
        conn = r.connect_tcp('10.0.0.1', 80, **log.callbacks('on_connect', 'on_close'))
        r.call_later(5, conn.close)
        r.run()
    server.close()
    assert not errors
    assert log.names()[-1] == 'close' and log.names().count('close') == 1
    assert not kernel.files


def test_a_connection_that_cannot_be_watched_never_calls_on_connect_and_leaves_no_time_limit():
    log = Log()
    kernel = FailingKernel('register', errno.ENOMEM, count=3)  # the third registration is the stream's
    with Reactor(kernel=kernel) as r:
        server = kernel.socket(AF_INET, socket.SOCK_STREAM)
        server.bind(('10.0.0.1', 80))
        server.listen(5)
        r.connect_tcp('10.0.0.1', 80, idle_timeout=60, **log.callbacks('on_connect', 'on_close'))
        assert r.run() is True
        assert [(name, exc.errno) for name, exc in log] == [('close', errno.ENOMEM)]
        assert len(r.timers.buckets) == 0
    server.close()
    assert not kernel.files


@pytest.mark.parametrize('error', [errno.ENOMEM, errno.EBADF])
def test_an_empty_early_write_of_a_connection_that_cannot_be_watched_is_not_reported(error):
    """Regression: `on_written` was called although `on_connect` never was."""
    log = Log()
    kernel = FailingKernel('register', error, count=3)  # the third registration is the stream's
    with Reactor(kernel=kernel) as r:
        server = kernel.socket(AF_INET, socket.SOCK_STREAM)
        server.bind(('10.0.0.1', 80))
        server.listen(5)
        conn = r.connect_tcp('10.0.0.1', 80, **log.callbacks('on_connect', 'on_close'))
        conn.write(b'', log.on_written)
        r.run()
    server.close()
    assert [(name, exc.errno) for name, exc in log] == [('close', error)]


def test_at_most_64_addresses_that_fail_at_once_are_tried_in_a_turn(w, world):
    log = Log()
    world.names['many.test'] = [f'10.0.0.{number}' for number in range(100)]
    world.answers = dict.fromkeys(world.names['many.test'], errno.ENETUNREACH)
    w.connect_tcp('many.test', 80, on_close=log.on_close)
    run_until(w, lambda: world.tried)
    assert len(world.tried) == 64
    turns(w, 1)
    assert len(world.tried) == 100
    run_until(w, lambda: log)
    assert log.names() == ['close'] and log[0][1].errno == errno.ENETUNREACH


# -- memory or stack runs out


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_running_out_of_memory_or_stack_after_a_look_up_ends_the_connection(w, world, monkeypatch, kind):
    log = Log()
    world.names['four.test'] = FOUR
    run_short(monkeypatch, Connector, 'try_addresses', kind=kind)
    w.connect_tcp('four.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_until(w, lambda: log)
    assert log.names() == ['close'] and type(log[0][1]) is kind
    turns(w, 1)
    assert w.handles() == []


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_running_out_of_memory_or_stack_for_the_time_limit_ends_the_connection(r, monkeypatch, kind):
    log = Log()
    run_short(monkeypatch, TimerHeap, 'unreferenced_later', kind=kind)
    conn = r.connect_tcp('127.0.0.1', 9, timeout=5, **log.callbacks('on_connect', 'on_close'))
    assert conn.closed and log == []
    turns(r, 2)
    assert log.names() == ['close'] and type(log[0][1]) is kind
    assert r.handles() == []


def test_an_attempt_is_closed_when_there_is_no_memory_to_remember_it(w, world, monkeypatch):
    log, begin = Log(), Attempt.begin

    def begin_before_memory_runs_out(attempt: Attempt) -> int:
        error = begin(attempt)
        run_short(monkeypatch, Attempt, '__hash__')
        return error

    monkeypatch.setattr(Attempt, 'begin', begin_before_memory_runs_out)
    w.connect_tcp('10.0.0.1', 80, **log.callbacks('on_connect', 'on_close'))
    run_until(w, lambda: log)
    assert log.names() == ['close'] and type(log[0][1]) is MemoryError
    assert w.handles() == [] and world.sockets() == []


@pytest.mark.parametrize('ended', [False, True])
def test_an_attempt_that_runs_out_of_memory_ends_its_connection_unless_it_has_ended(r, sockets, monkeypatch, ended):
    log = Log()
    with socket.create_server(('127.0.0.1', 0)) as server:
        conn = r.connect_tcp(*server.getsockname(), **log.callbacks('on_connect', 'on_close'))
        run_short(monkeypatch, Attempt, 'handle_write')
        if ended:  # abort the connection in the turn in which memory runs out
            ours, theirs = sockets()
            Probe(r, ours, on_ready=lambda probe: (conn.abort(), probe.close()))
            theirs.send(b'x')
        run_until(r, lambda: log)
        turns(r, 2)
    assert log.names() == ['close']
    assert type(log[0][1]) is (type(None) if ended else MemoryError)


def test_running_out_of_memory_after_another_attempt_has_connected_in_the_same_turn_is_harmless(r):
    log = Log()
    with socket.create_server(('127.0.0.1', 0)) as server:
        conn = r.connect_tcp(*server.getsockname(), **log.callbacks('on_connect', 'on_close'))
        (attempt,) = (handle for handle in r.handles() if isinstance(handle, Attempt))
        run_until(r, lambda: log)
        attempt.handle_exhausted(MemoryError())  # as the loop does at the start of the next turn
        turns(r, 2)
        assert log == [('connect',)] and not conn.closed
        end(r, conn)


def test_on_close_knows_where_a_connection_that_failed_was_going(r, sockets):
    """It gets the address that the caller gave, since no address of the host was connected to."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    seen = {}

    def on_close(conn, exc):
        seen[conn.data] = conn.peername, repr(conn)

    calls = {
        'refused': lambda **options: r.connect_tcp('127.0.0.1', port, **options),
        'unresolved': lambda **options: r.connect_tcp('no-such-host.invalid', 80, **options),
        'closed': lambda **options: r.connect_tcp('127.0.0.1', port, **options),
        'late': lambda **options: r.connect_tcp('127.0.0.1', port, timeout=0, **options),
    }
    for name, connect in calls.items():
        conn = connect(on_close=on_close)
        conn.data = name
        if name == 'closed':
            conn.close()
    run_until(r, lambda: len(seen) == len(calls))
    assert {name: peername for name, (peername, _) in seen.items()} == {
        'refused': ('127.0.0.1', port), 'unresolved': ('no-such-host.invalid', 80),
        'closed': ('127.0.0.1', port), 'late': ('127.0.0.1', port),
    }  # fmt: skip
    assert 'to no-such-host.invalid:80' in seen['unresolved'][1]


@needs_unix
def test_on_close_knows_the_path_that_could_not_be_connected_to(r, tmp_path):
    seen = []
    path = str(tmp_path / 'none')
    r.connect_unix(path, on_close=lambda conn, exc: seen.append(conn.peername))
    run_until(r, lambda: seen)
    assert seen == [path]
