"""Counterparts of the tests of cl-async, the library that this package brings to Python, under the original names.

In cl-async, `stream t` and `async-stream` give Lisp streams over a socket. Here every connection has `on_data` instead,
so the counterparts of those tests check that all bytes arrive in order in both directions. `mkdtemp` has no counterpart
here, because the standard library has this function.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import threading
import weakref
from socket import AF_INET, AF_INET6

import pytest

from reactor import READ, ConnectTimeout, Reactor, ResolveError, ResolveTimeout, Stream
from reactor.kernel import Kernel
from reactor.kernel.platforms import AF_UNIX
from reactor.net.addresses import numeric
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import SELECTORS, FakeKernel, Log, run_until, turns

needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')


class TimedKernel(FakeKernel):
    """A kernel whose clock advances only when the loop would otherwise wait, with the given kind of selector."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def selector(self):
        selector = super().selector()
        selector.real.close()
        selector.real = self.kind()
        return selector


@pytest.fixture(params=list(SELECTORS))
def kind(request):
    """Each kind of selector."""
    if SELECTORS[request.param] is None:
        pytest.skip(f'this platform has no {request.param} selector')
    return SELECTORS[request.param]


@pytest.fixture
def timed(kind):
    """A reactor on each kind of selector, with a clock that moves only while the loop would wait."""
    with Reactor(kernel=TimedKernel(kind)) as reactor:
        yield reactor


class Closing:
    """An `on_close` callback for several connections: when the last of them has closed, it closes their server."""

    def __init__(self, server, count):
        self.server = server
        self.count = count

    def on_close(self, conn, exc):
        self.count -= 1
        if not self.count:
            self.server.close()


# -- base


def test_event_loop_starts(r):
    started = []
    assert r.run(started.append) is True
    assert started == [r]


def test_event_loop_exit(timed):
    log = []
    timed.call_later(1, log.append, 'late')
    timed.call_soon(timed.stop)
    assert timed.run() is False
    assert log == []


def test_catch_app_errors(kind):
    def bad():
        raise ValueError('boom')

    with Reactor(selector=kind(), catch_errors=False) as r:
        r.call_soon(bad)
        with pytest.raises(ValueError):
            r.run()
    caught = []
    with Reactor(selector=kind(), catch_errors=lambda exc, handle: caught.append(exc)) as r:
        r.call_soon(bad)
        assert r.run() is True
    assert [str(exc) for exc in caught] == ['boom']


def test_data_and_fn_pointers(r):
    timers = [r.call_later(60, lambda: None) for _ in range(3)]
    assert (r.stats().timers, r.stats().handles) == (3, 0)
    for timer in timers:
        timer.cancel()
    assert (r.stats().timers, r.stats().handles) == (0, 0)


def test_exit_callbacks(kind):
    log = []
    with Reactor(selector=kind()) as r:
        for number in range(3):
            r.add_exit_callback(log.append, number)
        assert r.run() is True
        assert log == []
    assert log == [2, 1, 0]


# -- event


def test_delay_simple(r):
    log = []
    r.call_later(0, log.append, 'called')
    assert log == []
    assert r.run() is True
    assert log == ['called']


def test_delay_timer(timed):
    began, log = timed.now, []
    timed.call_later(2, lambda: log.append(timed.now - began))
    assert timed.run() is True
    assert log == [pytest.approx(2, abs=0.02)]


def test_delay_multi(timed):
    log = []
    for number in range(3):
        timed.call_at(timed.now + 1, log.append, number)
    assert timed.run() is True
    assert log == [0, 1, 2]


def test_interval(timed):
    log = []
    beats = timed.call_every(0.1, log.append, 'beat')
    timed.call_later(0.32, beats.cancel)
    assert timed.run() is True
    assert log == ['beat'] * 3


# -- tcp


def answer_when_whole(conn, data):
    conn.data = (conn.data or b'') + data
    if conn.data.endswith(b'hai '):
        conn.write(b'thxlol ')


def test_tcp_simple_client_server(r):
    ask_twice(r, None, None)


def test_tcp_ssl_simple_client_server(r, certificates):  # noqa: F811
    ask_twice(r, certificates.server(), certificates.client())


def ask_twice(r, server_context, client_context):
    connected, requests, replies = [], [], []

    def on_data(conn, data):
        answer_when_whole(conn, data)
        requests.append(conn.data)

    def on_reply(conn, data):
        replies.append(data)
        assert not conn.closed
        conn.close()
        assert conn.closed

    server = r.listen_tcp('127.0.0.1', 0, on_data, on_connect=connected.append, ssl=server_context)
    closing = Closing(server, 2)
    for host in '127.0.0.1', 'localhost':
        conn = r.connect_tcp(
            host, server.address[1], on_reply, on_close=closing.on_close, timeout=10, family=AF_INET, ssl=client_context
        )
        conn.write(b'ha')  # written before the stream is connected
        conn.write(b'i ')
    run_until(r, lambda: server.closed)
    assert r.run() is True
    assert len(connected) == 2
    assert requests == [b'hai '] * 2
    assert replies == [b'thxlol '] * 2


def test_tcp_connect_fail(r):
    log = Log()
    r.connect_tcp('192.0.2.1', 1, timeout=0.1, **log.callbacks('on_connect', 'on_close'))
    assert r.run() is True
    ((what, exc),) = log
    assert what == 'close'
    assert isinstance(exc, (ConnectTimeout, OSError)) and '192.0.2.1' in str(exc)


def test_tcp_connect_fail_an_error_in_its_callback_leaves_the_loop(kind):
    def on_close(conn, exc):
        raise ValueError('boom')

    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
    with Reactor(selector=kind(), catch_errors=False) as r:
        r.connect_tcp('127.0.0.1', port, on_close=on_close)
        with pytest.raises(ValueError):
            r.run()
        assert r.run() is True


def test_tcp_server_close(r):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data))
    client = r.connect_tcp(*server.address, log.on_data, on_connect=log.on_connect)
    run_until(r, lambda: log and server.open_connections)
    assert not server.closed
    server.close()
    assert server.closed
    client.write(b'still here')
    run_until(r, lambda: log.received == b'still here')
    client.close()
    assert r.run() is True


def test_tcp_server_stream(r):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0, log.on_data, on_close=lambda conn, exc: server.close())
    client = r.connect_tcp(*server.address)
    sent = bytes(range(256)) * 1000
    client.write(sent, Stream.close)  # close only after the write: a close while connecting drops queued bytes
    assert r.run() is True
    assert log.received == sent


def test_address_in_use(r):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.close(), on_connect=log.on_connect)
    with pytest.raises(OSError) as caught:
        r.listen_tcp(*server.address)
    assert caught.value.errno == errno.EADDRINUSE
    client = r.connect_tcp(*server.address)
    run_until(r, lambda: log)
    client.abort()
    server.close()
    assert r.run() is True


def test_write_seq_with_offset(r):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0, log.on_data, on_close=lambda conn, exc: server.close())
    client = r.connect_tcp(*server.address)
    letters = memoryview(b'xxabcdxx')
    client.write(letters[2:4])
    client.write(letters[4:6])
    client.write(b'ef', Stream.close)
    assert r.run() is True
    assert log.received == b'abcdef'


def test_no_overlap(r):
    size = (64 << 10) + 20000
    received = {}
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data))
    closing = Closing(server, 4)

    def on_data(conn, data):
        received[conn.data] += data
        if len(received[conn.data]) == size:
            conn.close()

    for byte in b'abcd':
        conn = r.connect_tcp(*server.address, on_data, on_close=closing.on_close)
        conn.data, received[byte] = byte, b''
        conn.write(bytes([byte]) * size)
    assert r.run() is True
    assert received == {byte: bytes([byte]) * size for byte in b'abcd'}


# -- async-stream


def test_stream_read_write_sequence(r, sockets):
    log = Log()
    with socket.create_server(('127.0.0.1', 0)) as listening:
        client = r.connect_tcp(*listening.getsockname(), log.on_data)
        accepted, _ = listening.accept()

    def on_data(conn, data):
        assert data == b'hello'
        conn.writelines([b'good', b'bye'])
        conn.close()

    r.adopt(accepted, on_data)
    client.write(b'hello')
    run_until(r, lambda: log.received == b'goodbye')
    client.close()
    assert r.run() is True


# -- pipe: the tests of tcp on a Unix socket


@needs_unix
def test_pipe_simple_client_server(r, tmp_path):
    log, path = Log(), str(tmp_path / 'socket')
    server = r.listen_unix(path, answer_when_whole)
    closing = Closing(server, 2)
    conns = [r.connect_unix(path, log.on_data, on_close=closing.on_close) for _ in range(2)]
    for conn in conns:
        conn.write(b'ha')
        conn.write(b'i ')
    run_until(r, lambda: log.received == b'thxlol ' * 2)
    for conn in conns:
        conn.close()
    assert r.run() is True
    assert not os.path.exists(path)


@needs_unix
def test_pipe_connect_fail(r, tmp_path):
    log = Log()
    r.connect_unix(str(tmp_path / 'nothing'), **log.callbacks('on_connect', 'on_close'))
    assert log == []
    assert r.run() is True
    ((what, exc),) = log
    assert (what, exc.errno) == ('close', errno.ENOENT)


@needs_unix
def test_pipe_server_close(r, tmp_path):
    log, path = Log(), str(tmp_path / 'socket')
    server = r.listen_unix(path, lambda conn, data: conn.write(data))
    client = r.connect_unix(path, log.on_data)
    run_until(r, lambda: server.open_connections)
    server.close()
    assert server.closed
    client.write(b'still here')
    run_until(r, lambda: log.received == b'still here')
    client.close()
    assert r.run() is True


@needs_unix
def test_pipe_server_stream(r, tmp_path):
    log, path = Log(), str(tmp_path / 'socket')
    server = r.listen_unix(path, log.on_data, on_close=lambda conn, exc: server.close())
    client = r.connect_unix(path)
    client.write(bytes(300_000), Stream.close)
    assert r.run() is True
    assert log.received == bytes(300_000)


# -- dns: only names of this machine, so that no network is needed


def resolve_all(r, *calls):
    """Start all lookups at once; return (result, error) for each of them, in the order of the calls."""
    answers = {}
    for number, (method, what, *rest) in enumerate(calls):
        options = rest[0] if rest else {}

        def on_done(result, error, number=number):
            assert number not in answers
            answers[number] = result, error

        method(what, on_done, timeout=20, **options)
    assert r.run() is True
    return [answers[number] for number in range(len(calls))]


def test_dns_simple(r):
    ((addresses, error),) = resolve_all(r, (r.resolve, 'localhost'))
    assert error is None and {'127.0.0.1', '::1'} & set(addresses)


def test_dns_multi(r):
    answers = resolve_all(r, *[(r.resolve, name) for name in ('localhost', '127.0.0.1', '::1', 'localhost')])
    assert [error for _, error in answers] == [None] * 4
    assert answers[1][0] == ['127.0.0.1'] and answers[2][0] == ['::1']


def test_dns_lookup_ipv4(r):
    assert resolve_all(r, (r.resolve, 'localhost', {'family': AF_INET})) == [(['127.0.0.1'], None)]


def test_dns_lookup_ipv6(r):
    try:
        name = socket.getaddrinfo('localhost', 0, AF_INET6) and 'localhost'
    except OSError:
        name = '::1'  # loopback has no IPv6 name on this machine
    assert resolve_all(r, (r.resolve, name, {'family': AF_INET6})) == [(['::1'], None)]


def test_dns_fail(r):
    ((addresses, error),) = resolve_all(r, (r.resolve, 'nope.invalid'))
    assert addresses is None
    assert isinstance(error, ResolveError) and not isinstance(error, ResolveTimeout)


@pytest.mark.parametrize('address', ['127.0.0.1', '::1'], ids=['ipv4', 'ipv6'])
def test_dns_reverse(r, address):
    try:
        expected = socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
    except OSError:
        expected = None  # the address has no name on this machine
    ((name, error),) = resolve_all(r, (r.resolve_address, address))
    assert name == expected
    assert (error is None) if expected else isinstance(error, ResolveError)


@pytest.mark.parametrize('method', ['resolve', 'resolve_address'])
def test_dns_memory_leak(r, method):
    def on_done(result, error):
        pass

    lookup = getattr(r, method)('127.0.0.1', on_done, timeout=20)
    refs = weakref.ref(lookup), weakref.ref(on_done)
    del lookup, on_done
    gc.disable()
    try:
        assert r.run() is True
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
    assert (r.stats().handles, r.stats().timers) == (0, 0)


# -- poll, idle, signal, threading


def test_poll_fd(r, sockets):
    log = []
    ours, theirs = sockets()

    def on_ready(handle, event):
        if not log:
            r.call_soon(handle.close)
        log.append(event)

    poller = r.watch_fd(ours, READ, on_ready)
    r.call_later(0.01, theirs.send, b'x')
    assert r.run() is True
    assert set(log) == {READ} and poller.closed
    assert ours.recv(10) == b'x'


def test_idle(r):
    calls = []

    def idling():
        calls.append(1)
        if len(calls) == 517:
            idler.close()

    idler = r.idle(idling)
    assert r.run() is True
    assert len(calls) == 517 and idler.closed


def test_signal_handler_add_remove(timed):
    began = timed.now
    timed.add_signal_handler(signal.SIGINT, lambda: None)
    timed.call_later(1, timed.remove_signal_handler, signal.SIGINT)
    assert timed.run() is True
    assert timed.now - began == pytest.approx(1, abs=0.02)


@pytest.mark.skipif(sys.platform == 'win32', reason='a process cannot send itself this signal on Windows')
def test_signal_handler_alone_keeps_the_loop_alive(r):
    log = []

    def handler():
        log.append('signal')
        r.clear_signal_handlers()

    r.add_signal_handler(signal.SIGUSR1, handler)
    sender = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    assert r.run() is True
    sender.join()
    assert log == ['signal']


def test_threading_delay(r):
    log = []
    notifier = r.notifier(lambda: log.append(threading.get_ident()))
    thread = threading.Timer(0.05, notifier.trigger)
    thread.start()
    assert r.run() is True
    thread.join()
    assert log == [threading.get_ident()] and notifier.closed


# -- util


@pytest.mark.parametrize('address', ['127.0.0.1', '::1', 'fe80::1'])
def test_ip_addresses_are_recognized(address):
    assert numeric(Kernel(), address, 0)


@pytest.mark.parametrize('name', ['localhost', '127.0.0.x', '1::g', ''])
def test_names_are_not_taken_for_ip_addresses(r, name):
    with pytest.raises(ValueError):
        r.resolve_address(name, lambda name, error: None)


def test_pointer_callbacks_and_data_are_set_and_cleared(r, sockets):
    """Callbacks and data are plain attributes, which are released when the connection is closed."""

    class Thing:
        def on_data(self, conn, data):
            self.data = data

    thing, (ours, theirs) = Thing(), sockets()
    conn = r.adopt(ours)
    conn.on_data, conn.data = thing.on_data, thing
    theirs.send(b'x')
    turns(r, 1)
    assert thing.data == b'x'
    ref = weakref.ref(thing)
    del thing
    conn.close()
    gc.disable()
    try:
        turns(r, 2)
        assert ref() is None
    finally:
        gc.enable()
