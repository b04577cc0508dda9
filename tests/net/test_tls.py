"""TLS: the handshake, data in both directions, the end of the stream, start_tls, and peers that misbehave."""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import os
import random
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
import weakref
from functools import partial
from pathlib import Path

import pytest

import reactor
from reactor import (
    ConnectionClosed,
    ConnectTimeout,
    HandshakeTimeout,
    IdleTimeout,
    ReactorError,
    SelectorFull,
    TLSError,
    WriteBufferFull,
    WriteTimeout,
)
from reactor.kernel import Kernel
from reactor.net.session import TLSSession, record_end
from reactor.net.stream import suspend_reading
from reactor.net.tls import TLSStream
from reactor.testing import SimKernel
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.exhaustion import is_traced, near_limit
from tests.helpers.hostile_tls import ALLOW_CLIENT_RENEGOTIATION, ENGINE, TLS_1_2, TLS_1_3, Peer, peer_callbacks
from tests.helpers.support import Log, drain, end, fill, idle, run_short, run_until, turns
from tests.project.test_shape import frames_since

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def tls(r, certificates):  # noqa: F811
    """An object that makes a server and its clients: `tls.listen(**callbacks)`, `tls.connect(**callbacks)`."""

    class Maker:
        certs = certificates

        def listen(self, on_data=None, context=None, **options):
            self.server = r.listen_tcp('127.0.0.1', 0, on_data, ssl=context or certificates.server(), **options)
            return self.server

        def connect(self, on_data=None, context=None, **options):
            options.setdefault('server_hostname', 'localhost')
            port = self.server.address[1]
            return r.connect_tcp('127.0.0.1', port, on_data, ssl=context or certificates.client(), **options)

        def pair(self, ours_calls=None, theirs_calls=None, server=None, client=None):
            """Make two connected streams with the given callbacks."""
            ours = []
            self.listen(context=server, on_connect=ours.append, **(ours_calls or {}))
            theirs = self.connect(context=client, **(theirs_calls or {}))
            run_until(r, lambda: (ours and theirs.state == 'OPEN') or theirs.closed)
            return ours.pop(), theirs

    maker = Maker()
    yield maker
    maker.server.close()
    turns(r, 2)


def plain_client(server):
    return socket.create_connection(server.address[:2])


# -- the handshake


def simulated(certificates, faults, on_data=None, **callbacks):  # noqa: F811
    """Run a server and a client on simulated kernels with these faults; return the exceptions passed to `on_close`."""
    ends = []

    def ended(server, conn, exc):
        ends.append(exc)
        server.close()

    for seed in range(20):
        with reactor.Reactor(kernel=SimKernel(seed, faults=faults)) as r:
            server = r.listen_tcp('10.0.0.1', 443, on_data, ssl=certificates.server(), **callbacks)
            options = {'ssl': certificates.client(), 'server_hostname': 'localhost'}
            client = r.connect_tcp('10.0.0.1', 443, on_close=partial(ended, server), **options)
            client.write(b'spoken')
            r.call_later(5, client.close)
            r.run()
    return ends


def test_handshake_data_that_had_to_wait_causes_no_on_drain(certificates):  # noqa: F811
    # Regression: with low marks and a kernel that was slow to accept the certificate, on_drain used to be called before
    # on_connect.
    log = Log()
    callbacks = log.callbacks('on_connect', 'on_drain')
    simulated(certificates, ('send.again', 'send.short'), high_water=0, **callbacks)
    assert log == [('connect',)] * 20


def test_on_data_is_never_called_without_on_connect(r, certificates, tmp_path):  # noqa: F811
    # Regression: if the session tickets after the handshake could not be sent, `on_data` used to be called without
    # `on_connect`.
    log = Log()
    path = str(tmp_path / 'socket')
    callbacks = log.callbacks('on_connect', 'on_eof', 'on_close')
    server = r.listen_unix(path, log.on_data, ssl=certificates.server(), **callbacks)

    def speak_and_go(conn):
        conn.write(b'spoken')
        conn.abort()

    r.connect_unix(path, on_connect=speak_and_go, ssl=certificates.client(), server_hostname='localhost')
    run_until(r, lambda: log)
    turns(r, 2)
    assert log.names() == ['close']
    assert isinstance(log[0][1], BrokenPipeError)
    server.close()


@pytest.mark.parametrize('version', VERSIONS)
def test_bytes_go_both_ways_and_both_sides_know_the_agreed_parameters(r, tls, version):
    log, echoed = Log(), []
    context = tls.certs.server(minimum_version=version, maximum_version=version)
    context.set_alpn_protocols(['h2', 'http/1.1'])
    client = tls.certs.client()
    client.set_alpn_protocols(['http/1.1'])

    def echo(conn, data):
        conn.write(data)

    ours, theirs = tls.pair({'on_data': echo}, {'on_data': lambda conn, data: echoed.append(data)}, server=context,
                            client=client)  # fmt: skip
    theirs.write(b'hello', log.on_written, 'sent')
    run_until(r, lambda: echoed)
    assert echoed == [b'hello']
    assert log == [('written', 'sent')]
    for conn in ours, theirs:
        assert conn.tls.version == version.name.replace('_', '.')
        assert conn.tls.alpn == 'http/1.1'
        assert conn.tls.cipher
    assert ('commonName', 'server') in theirs.tls.peer_certificate['subject'][0]
    assert ssl.DER_cert_to_PEM_cert(theirs.tls.peer_certificate_der)
    assert ours.tls.peer_certificate is None
    end(r, ours, theirs)


def test_tls_works_over_a_unix_socket_too(r, certificates, tmp_path):  # noqa: F811
    seen = []
    path = str(tmp_path / 'tls')
    server = r.listen_unix(path, lambda conn, data: seen.append(data), ssl=certificates.server())
    conn = r.connect_unix(path, ssl=certificates.client(), server_hostname='localhost')
    conn.write(b'hello')
    conn.close() if conn.closed else None
    run_until(r, lambda: seen)
    assert seen == [b'hello']
    server.close()
    end(r, conn)
    run_until(r, lambda: not r.handles())


def test_data_written_before_the_handshake_is_sent_after_on_connect(r, tls):
    log, seen = Log(), bytearray()
    tls.listen(lambda conn, data: seen.extend(data))
    conn = tls.connect(on_connect=log.on_connect)
    assert conn.write(b'one', log.on_written, 1)
    conn.writelines([b'two', bytearray(b'three')], log.on_written, 2)
    assert conn.buffered == 11
    run_until(r, lambda: len(seen) == 11)
    assert seen == b'onetwothree'
    assert log == [('connect',), ('written', 1), ('written', 2)]
    assert conn.buffered == 0
    end(r, conn)
    run_until(r, lambda: not tls.server.open_connections)


def test_data_written_earlier_is_not_sent_to_a_peer_that_on_connect_refuses(r, tls):
    # A program checks the certificate of its peer in on_connect. Regression: the data used to be sent before on_connect
    # was called.
    log, seen = Log(), bytearray()
    tls.listen(lambda conn, data: seen.extend(data))
    conn = tls.connect(on_connect=reactor.Stream.abort, on_close=lambda conn, exc: log.append((exc, conn.buffered)))
    conn.write(b'secret')
    run_until(r, lambda: log and tls.server.open_connections == 0)
    assert log == [(None, 6)]
    assert seen == b''


@pytest.mark.parametrize('ended', ['write_eof', 'close'])
def test_data_that_on_connect_writes_follows_earlier_writes_and_precedes_the_end(r, tls, ended):
    log = Log()
    tls.listen(log.on_data, on_close=log.on_close)

    def on_connect(conn):
        assert conn.buffered == 3 and conn.state == 'OPEN'
        conn.write(b'two')
        getattr(conn, ended)()
        with pytest.raises(ConnectionClosed):
            conn.write(b'three')

    conn = tls.connect(on_connect=on_connect)
    conn.write(b'one')
    run_until(r, lambda: 'close' in log.names() and conn.state == 'CLOSED')
    assert (log.received, log[-1]) == (b'onetwo', ('close', None))


def test_on_drain_is_called_after_a_write_before_the_handshake_returned_false(r, tls):
    log, seen = Log(), bytearray()
    tls.listen(lambda conn, data: seen.extend(data))
    conn = tls.connect(on_connect=log.on_connect, on_drain=log.on_drain)
    assert conn.write(bytes(100_000)) is False
    run_until(r, lambda: len(seen) == 100_000)
    assert log == [('connect',), ('drain',)]
    end(r, conn)
    run_until(r, lambda: not tls.server.open_connections)


@pytest.mark.scenario(92)
def test_writing_too_much_before_the_handshake_aborts_the_connection(r, tls):
    log = Log()
    tls.listen()
    conn = tls.connect(on_close=log.on_close, max_buffered=1000)
    conn.write(bytes(1000))
    assert conn.write(b'x') is False
    run_until(r, lambda: log)
    assert isinstance(log[0][1], WriteBufferFull)
    run_until(r, lambda: not tls.server.open_connections)


def test_many_empty_writes_before_the_handshake_reach_the_limit_too(r, tls):
    log = Log()
    tls.listen()
    conn = tls.connect(on_close=log.on_close, max_buffered=10_000)
    count = 0
    while conn.write(b'', log.on_written):
        count += 1
        assert count < 1000
    run_until(r, lambda: log)
    assert log.names() == ['close'] and isinstance(log[0][1], WriteBufferFull)
    run_until(r, lambda: not tls.server.open_connections)


@pytest.mark.parametrize('size', range(70_000, 600_000, 30_000))
def test_on_drain_is_called_however_much_the_kernel_takes_at_once(r, sockets, certificates, size):  # noqa: F811
    log, seen = Log(), bytearray()
    a, b = sockets()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    ours = r.adopt(a, on_drain=log.on_drain)
    theirs = r.adopt(b, lambda conn, data: seen.extend(data))
    theirs.start_tls(certificates.server())
    ours.start_tls(certificates.client(), server_hostname='localhost')
    assert ours.write(bytes(size)) is False
    run_until(r, lambda: len(seen) == size and log)
    turns(r, 2)
    assert log == [('drain',)]
    end(r, ours, theirs)


def test_a_write_that_waits_only_for_the_handshake_returns_false_and_on_drain_follows(r, sockets, certificates):  # noqa: F811
    # With OpenSSL 3.5, the first message of a handshake is 1,500 bytes long. Until it is sent, `buffered` includes it.
    log, seen = Log(), bytearray()
    a, b = sockets()
    fill(a)
    ours = r.adopt(a, on_drain=log.on_drain, high_water=100, low_water=50)
    ours.start_tls(certificates.client(), server_hostname='localhost')
    turns(r, 2)
    assert ours.buffered >= 100
    assert ours.write(b'x') is False
    drain(b)
    theirs = r.adopt(b, lambda conn, data: seen.extend(data))
    theirs.start_tls(certificates.server())
    run_until(r, lambda: seen == b'x' and log)
    turns(r, 2)
    assert log == [('drain',)]
    end(r, ours, theirs)


def test_on_drain_after_the_handshake_does_not_wait_for_the_peer_to_read(r, sockets, certificates):  # noqa: F811
    """Regression: at the low-water mark, `on_drain` was called only when the kernel had taken more bytes."""
    log = Log()
    a, b = sockets()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    ours = r.adopt(a, on_drain=log.on_drain, high_water=600_000, low_water=590_000)
    theirs = r.adopt(b, read_size=1000)
    theirs.start_tls(certificates.server(), lambda conn: conn.pause_reading())
    ours.start_tls(certificates.client(), server_hostname='localhost')
    assert ours.write(bytes(610_000)) is False
    run_until(r, lambda: ours.state == 'OPEN' and 0 < ours.buffered <= 590_000 and log)
    assert log == [('drain',)]
    end(r, ours, theirs)


def test_a_peer_that_leaves_before_the_alert_is_reported_with_its_tls_error(r, certificates, tmp_path):  # noqa: F811
    log = Log()
    server = r.listen_unix(str(tmp_path / 'tls'), ssl=certificates.server(), on_close=log.on_close)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / 'tls'))
        sock.sendall(b'\x16\x03\x01\x00\x05hello')
    run_until(r, lambda: log)
    assert log.names() == ['close'] and isinstance(log[0][1], TLSError)
    server.close()


@pytest.mark.scenario(86)
def test_the_peer_is_verified_by_default(r, tls):
    log = Log()
    tls.listen(on_close=log.on_close)
    client_log = Log()
    conn = tls.connect(context=True, on_connect=client_log.on_connect, on_close=client_log.on_close)
    run_until(r, lambda: client_log and log)
    ((name, exc),) = client_log
    assert name == 'close' and isinstance(exc, TLSError)
    assert 'trust its issuer' in str(exc) and str(tls.server.address[1]) in str(exc)
    assert isinstance(exc.__cause__, ssl.SSLCertVerificationError)
    assert conn.closed
    assert isinstance(log[0][1], TLSError)


@pytest.mark.scenario(86)
def test_a_certificate_for_another_name_is_refused(r, tls):
    log = Log()
    tls.listen()
    tls.connect(server_hostname='example.org', on_connect=log.on_connect, on_close=log.on_close)
    run_until(r, lambda: log and not tls.server.open_connections)
    assert log.names() == ['close'] and 'example.org' in str(log[0][1])


def test_a_client_shows_its_certificate(r, tls):
    ours, theirs = tls.pair(server=tls.certs.server_that_asks(), client=tls.certs.client_with_certificate())
    assert ('commonName', 'client') in ours.tls.peer_certificate['subject'][0]
    end(r, ours, theirs)


@pytest.mark.scenario(86)
def test_a_client_without_a_required_certificate_is_reported_once(r, tls):
    log, client_log = Log(), Log()
    tls.listen(context=tls.certs.server_that_asks(), on_connect=log.on_connect, on_close=log.on_close)
    tls.connect(on_close=client_log.on_close)
    run_until(r, lambda: log and client_log)
    assert log.names() == ['close'] == client_log.names()
    assert isinstance(log[0][1], TLSError) and isinstance(client_log[0][1], TLSError)


def test_a_name_chooses_the_context(r, tls):
    names = []
    context = tls.certs.server()
    context.sni_callback = lambda ssl_object, name, context: names.append(name)
    ours, theirs = tls.pair(server=context)
    assert names == ['localhost']
    end(r, ours, theirs)


@pytest.mark.scenario(85)
@pytest.mark.parametrize('sent', [b'', b'\x16\x03\x01'], ids=['silent', 'an incomplete record'])
def test_a_handshake_that_does_not_end_is_cut_off(r, tls, sent):
    log = Log()
    server = tls.listen(on_connect=log.on_connect, on_close=log.on_close, handshake_timeout=0.05)
    with plain_client(server) as sock:
        sock.sendall(sent)
        run_until(r, lambda: log)
        ((name, exc),) = log
        assert name == 'close' and isinstance(exc, HandshakeTimeout) and isinstance(exc, TimeoutError)
    assert len(r.timers) == 0


@pytest.mark.scenario(85)
def test_the_connect_timeout_spans_the_handshake(r, sockets, certificates):  # noqa: F811
    log = Log()
    with socket.create_server(('127.0.0.1', 0)) as silent:
        r.connect_tcp(*silent.getsockname(), ssl=certificates.client(), timeout=0.05, on_close=log.on_close)
        run_until(r, lambda: log)
    assert isinstance(log[0][1], ConnectTimeout)


@pytest.mark.scenario(86)
@pytest.mark.parametrize('sent', [b'GET / HTTP/1.0\r\n\r\n', b'\0' * 100, b'\x16\x03\x01\x02\x00\x01'])
def test_a_peer_that_does_not_speak_tls_ends_with_one_clear_error(r, tls, caplog, sent):
    log = Log()
    server = tls.listen(on_connect=log.on_connect, on_close=log.on_close)
    with plain_client(server) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        run_until(r, lambda: log)
    ((name, exc),) = log
    assert name == 'close' and isinstance(exc, TLSError)
    assert not caplog.records


def test_closing_in_the_middle_of_a_handshake_is_clean(r, tls):
    log = Log()
    tls.listen()
    conn = tls.connect(on_connect=log.on_connect, on_close=log.on_close)
    conn.write(b'never sent')
    run_until(r, lambda: conn.sock is not None)
    conn.close()
    with pytest.raises(ConnectionClosed):
        conn.write(b'x')
    run_until(r, lambda: log and not tls.server.open_connections)
    assert log == [('close', None)]


def test_contexts_are_checked_at_the_call(r, certificates):  # noqa: F811
    with pytest.raises(TypeError, match='SSLContext'):
        r.listen_tcp('127.0.0.1', 0, ssl='yes')
    with pytest.raises(ValueError, match='client'):
        r.listen_tcp('127.0.0.1', 0, ssl=certificates.client())
    with pytest.raises(ValueError, match='server'):
        r.connect_tcp('127.0.0.1', 1, ssl=certificates.server())
    with pytest.raises(ValueError, match='server_hostname'):
        r.connect_unix('/nowhere', ssl=certificates.client())
    assert not r.handles()


@pytest.mark.scenario(95)
def test_a_flood_of_handshakes_is_handled_a_few_in_a_turn(r, tls, monkeypatch):
    steps = []
    shake = TLSStream._shake_hands
    server_side = []

    def counted(conn):
        if conn.tls.ssl_object.server_side:
            server_side.append(conn)
            steps.append(r.stats().loop_count)
        shake(conn)

    monkeypatch.setattr(TLSStream, '_shake_hands', counted)
    done = []
    tls.listen(on_connect=done.append)
    conns = [tls.connect() for _ in range(50)]
    run_until(r, lambda: len(done) == 50)
    assert max(collections.Counter(steps).values()) <= 4  # a step takes 1.1 ms with RSA; a turn must end within 5 ms
    done.clear()
    server_side.clear()
    end(r, *conns)
    run_until(r, lambda: not tls.server.open_connections)


# -- bytes


@pytest.mark.scenario(87)
def test_both_sides_may_write_at_once(r, tls):
    a, b = bytearray(), bytearray()
    ours, theirs = tls.pair({'on_data': lambda conn, data: a.extend(data)}, {'on_data': lambda c, data: b.extend(data)})
    for _ in range(10):
        ours.write(bytes(1_000_000))
        theirs.write(bytes(1_000_000))
    run_until(r, lambda: len(a) == len(b) == 10_000_000)
    end(r, ours, theirs)


@pytest.mark.parametrize('size', [1, 16384, 16385, 3_000_000])
def test_any_size_arrives_whole_in_order_and_on_written_is_called_when_the_kernel_has_it(r, tls, size):
    log, seen = Log(), bytearray()
    ours, theirs = tls.pair({'on_data': lambda conn, data: seen.extend(data)})
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    theirs.write(data, log.on_written, 'all')
    theirs.write(b'end', log.on_written, 'end')
    run_until(r, lambda: len(seen) == size + 3 and len(log) == 2)
    assert bytes(seen) == data + b'end'
    assert log == [('written', 'all'), ('written', 'end')]
    end(r, ours, theirs)


@pytest.mark.scenario(61, 92)
def test_a_slow_reader_makes_the_writer_wait_and_memory_stays_bounded(r, tls):
    log = Log()
    ours, theirs = tls.pair({'on_data': None}, {'on_drain': log.on_drain})
    ours.pause_reading()
    while theirs.write(bytes(10_000)):
        pass
    assert 65536 <= theirs.buffered < 65536 + 12_000
    turns(r, 5)
    assert log == []
    ours.resume_reading()
    run_until(r, lambda: log)
    assert theirs.buffered <= 16384
    end(r, ours, theirs)


@pytest.mark.scenario(88)
def test_many_small_records_are_read_a_few_in_a_turn(r, tls):
    chunks = []
    ours, theirs = tls.pair({'on_data': lambda conn, data: chunks.append(data)})
    for _ in range(100):
        theirs.write(b'x')
    run_until(r, lambda: sum(map(len, chunks)) == 100)
    assert max(map(len, chunks)) <= 4
    end(r, ours, theirs)


@pytest.mark.scenario(88)
def test_reading_can_be_paused_between_records_that_have_arrived_already(r, tls):
    chunks = []

    def once(conn, data):
        chunks.append(data)
        conn.pause_reading()

    ours, theirs = tls.pair({'on_data': once})
    for _ in range(20):
        theirs.write(b'x')
    run_until(r, lambda: chunks)
    turns(r, 5)
    assert len(chunks) == 1
    while sum(map(len, chunks)) < 20:
        before = len(chunks)
        ours.resume_reading()
        run_until(r, lambda before=before: len(chunks) > before)
    assert b''.join(chunks) == b'x' * 20
    end(r, ours, theirs)


@pytest.mark.parametrize('size', [0, 100, 1_000_000])
def test_a_file_is_sent_encrypted_between_writes(r, tls, tmp_path, size):
    log, seen = Log(), bytearray()
    path = tmp_path / 'file'
    path.write_bytes(bytes(range(256)) * (size // 256 + 1))
    ours, theirs = tls.pair({'on_data': lambda conn, data: seen.extend(data)})
    theirs.write(b'before ')
    with path.open('rb') as file:
        theirs.send_file(file, 10, size, log.on_written, 'file')
    theirs.write(b' after', log.on_written, 'after')
    run_until(r, lambda: len(log) == 2 and seen.endswith(b' after'))
    assert bytes(seen) == b'before ' + path.read_bytes()[10 : 10 + size] + b' after'
    assert log == [('written', 'file'), ('written', 'after')]
    end(r, ours, theirs)


# -- the end


@pytest.mark.parametrize('version', VERSIONS)
def test_a_close_is_a_clean_end_for_the_other_side(r, tls, version):
    log, their_log = Log(), Log()
    context = tls.certs.server(minimum_version=version, maximum_version=version)
    _, theirs = tls.pair({'on_data': log.on_data, 'on_close': log.on_close}, {'on_close': their_log.on_close},
                            server=context)  # fmt: skip
    theirs.write(b'last')
    theirs.close()
    run_until(r, lambda: their_log and 'close' in log.names())
    assert log == [('data', b'last'), ('close', None)]
    assert their_log == [('close', None)]


def test_a_side_may_end_and_go_on_reading(r, tls):
    log = Log()

    def answer(conn):
        conn.write(b'answer')
        conn.close()

    ours, theirs = tls.pair({'on_data': log.on_data, 'on_eof': answer}, {'on_data': log.on_data})
    theirs.write(b'question')
    theirs.write_eof()
    with pytest.raises(ConnectionClosed):
        theirs.write(b'more')
    run_until(r, lambda: ours.state == theirs.state == 'CLOSED')
    assert log == [('data', b'question'), ('data', b'answer')]


@pytest.mark.parametrize('version', VERSIONS)
def test_a_side_that_ends_with_unread_records_still_reads_them_all(r, tls, version):
    # OpenSSL also reads when it sends close_notify. Regression: the records that it read then used to be lost.
    received, log = [], Log()

    def end_at_once(conn, data):
        received.append(data)
        conn.write_eof()

    server, client = tls.certs.server(maximum_version=version), tls.certs.client()
    theirs = {'on_data': end_at_once, **log.callbacks('on_eof', 'on_close')}
    ours, conn = tls.pair(theirs, {'on_eof': lambda conn: None}, server=server, client=client)
    for number in range(20):
        conn.write(b'%d,' % number)
    conn.write_eof()
    run_until(r, lambda: ours.closed and conn.closed)
    turns(r, 1)
    assert b''.join(received) == b''.join(b'%d,' % number for number in range(20))
    assert log == [('eof',), ('close', None)]


def test_after_the_peers_end_the_loop_is_idle_until_our_side_ends(r, tls):
    log = Log()
    ours, theirs = tls.pair({'on_eof': log.on_eof})
    theirs.write_eof()
    run_until(r, lambda: log)
    assert idle(r)
    end(r, ours, theirs)


def test_an_end_before_the_handshake_follows_earlier_writes(r, tls):
    log = Log()
    tls.listen(log.on_data, on_close=log.on_close)
    conn = tls.connect()
    conn.write(b'all')
    conn.write_eof()
    with pytest.raises(ConnectionClosed):
        conn.write(b'more')
    run_until(r, lambda: 'close' in log.names() and conn.state == 'CLOSED')
    assert log == [('data', b'all'), ('close', None)]


@pytest.mark.scenario(89)
def test_a_stream_that_is_cut_short_is_an_error_after_its_data(r, tls):
    log = Log()
    _, theirs = tls.pair({'on_data': log.on_data, 'on_eof': log.on_eof, 'on_close': log.on_close})
    theirs.write(b'half')
    theirs.sock.shutdown(socket.SHUT_WR)
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['data', 'close']
    assert isinstance(log[1][1], TLSError) and 'complete' in str(log[1][1])
    end(r, theirs)


@pytest.mark.parametrize('paused', [False, True])
@pytest.mark.parametrize('cut', [False, True])
def test_a_cut_is_reported_even_by_a_python_that_ignores_it(r, tls, cut, paused):
    # Python before 3.11.4, for example in Debian 12, sets OP_IGNORE_UNEXPECTED_EOF in every context.
    # Regression: a truncated answer used to look complete there.
    log = Log()
    context = tls.certs.server(options=ssl.OP_ALL | ssl.OP_IGNORE_UNEXPECTED_EOF)
    ours, theirs = tls.pair({'on_data': log.on_data, 'on_close': log.on_close}, server=context)
    if paused:
        ours.pause_reading()
    theirs.write(b'half')
    theirs.sock.shutdown(socket.SHUT_WR) if cut else theirs.write_eof()
    turns(r, 5)
    ours.resume_reading()
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['data', 'close']
    assert isinstance(log[1][1], TLSError) is cut
    end(r, theirs)


@pytest.mark.scenario(89)
def test_a_damaged_record_ends_the_connection_after_the_records_before_it(r, tls):
    log = Log()
    _, theirs = tls.pair({'on_data': log.on_data, 'on_close': log.on_close})
    theirs.write(b'good')
    theirs.sock.send(b'\x17\x03\x03\x00\x20' + bytes(32))
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['data', 'close']
    assert isinstance(log[1][1], TLSError)
    end(r, theirs)


def test_a_close_after_more_than_max_buffered_still_sends_everything(r, tls):
    seen = bytearray()
    log = Log()
    calls = {'on_data': lambda conn, data: seen.extend(data), 'on_close': log.on_close}
    _, theirs = tls.pair(calls, {'max_buffered': 1000})
    theirs.write(bytes(5_000_000))
    assert theirs.buffered > 1000
    theirs.close()
    run_until(r, lambda: log)
    assert (len(seen), log) == (5_000_000, [('close', None)])
    run_until(r, lambda: theirs.state == 'CLOSED')


@pytest.mark.scenario(90)
def test_a_peer_that_does_not_answer_close_notify_is_abandoned_after_the_linger(r, tls):
    log = Log()
    ours, theirs = tls.pair({'on_close': log.on_close, 'linger': 0.05})
    theirs.pause_reading()
    ours.close()
    assert ours.closed
    run_until(r, lambda: log)
    assert isinstance(log[0][1], WriteTimeout)
    end(r, theirs)


@pytest.mark.scenario(91)
def test_data_that_arrives_after_our_close_notify_is_dropped(r, tls):
    log = Log()
    ours, theirs = tls.pair({'on_data': log.on_data, 'on_close': log.on_close}, {'on_eof': lambda conn: None})
    ours.close()
    theirs.write(b'too late')
    run_until(r, lambda: theirs.state == 'OPEN' and not theirs.events)
    theirs.write(b'later still')
    theirs.close()
    run_until(r, lambda: ours.state == theirs.state == 'CLOSED')
    turns(r, 1)
    assert log == [('close', None)]


def test_undecrypted_data_is_dropped_with_the_connection(r, tls):
    # Regression: a closed connection used to keep up to 64 KiB of ciphertext, and its `unread` stayed True.
    log = Log()
    ours, theirs = tls.pair({'on_data': lambda conn, data: conn.pause_reading(), 'on_close': log.on_close})
    for _ in range(10):
        theirs.write(bytes(5000))
    turns(r, 10)
    assert ours.unread and ours.tls.unread
    ours.abort()
    assert not ours.unread
    turns(r, 2)
    assert log == [('close', None)]
    assert not ours.unread and not ours.tls.unread
    run_until(r, lambda: theirs.state == 'CLOSED')


@pytest.mark.parametrize('failed', ['the connect', 'the handshake'])
def test_before_the_end_of_the_handshake_the_agreed_parameters_are_none(r, sockets, certificates, failed):  # noqa: F811
    # Regression: before the connect, these attributes used to raise AttributeError. During the handshake, the
    # certificate used to raise ValueError.
    agreed, log = ['version', 'cipher', 'alpn', 'peer_certificate', 'peer_certificate_der'], []

    def look(conn, exc=None):
        log.append([getattr(conn.tls, name) for name in agreed])

    listener = sockets.track(socket.create_server(('127.0.0.1', 0)))
    address = listener.getsockname()
    if failed == 'the connect':
        listener.close()
    conn = r.connect_tcp(*address, ssl=certificates.client(), server_hostname='localhost', on_close=look)
    look(conn)
    if failed == 'the handshake':
        peer, _ = listener.accept()
        sockets.track(peer)
        turns(r, 3)
        look(conn)
        peer.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
    run_until(r, lambda: conn.closed and len(log) > 1)
    turns(r, 1)
    assert log == [[None] * 5] * (3 if failed == 'the handshake' else 2)


def test_an_abort_resets(r, tls):
    log = Log()
    _, theirs = tls.pair({'on_close': log.on_close})
    theirs.abort()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], ConnectionResetError)


@pytest.mark.scenario(90)
def test_waiting_data_is_sent_before_a_close(r, tls):
    seen = bytearray()
    ours, theirs = tls.pair({'on_data': lambda conn, data: seen.extend(data)})
    theirs.write(bytes(5_000_000))
    theirs.close()
    assert theirs.closed
    run_until(r, lambda: len(seen) == 5_000_000)
    run_until(r, lambda: ours.state == theirs.state == 'CLOSED')


@pytest.mark.scenario(94, 119)
def test_a_closed_connection_is_freed_by_reference_counts(r, tls):
    conns = list(tls.pair({'on_data': lambda conn, data: None}))
    conns[1].write(b'x')
    turns(r, 3)
    conns[1].close()
    refs = [weakref.ref(thing) for conn in conns for thing in (conn, conn.tls.ssl_object)]
    run_until(r, lambda: conns[0].state == conns[1].state == 'CLOSED')
    gc.collect()
    gc.disable()
    try:
        turns(r, 2)
        conns.clear()
        assert [ref() for ref in refs] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize('sent', [b'', b'\x16\x03\x01', b'not TLS'])
def test_the_error_of_a_handshake_that_fails_does_not_keep_the_connection(r, tls, sent):
    """A program may keep the error. A traceback in the error or in its cause would keep the connection alive."""
    errors, refs = [], []

    def on_close(conn, exc):
        errors.append(exc)
        refs.append(weakref.ref(conn))

    tls.listen(on_close=on_close)
    gc.collect()
    gc.disable()
    try:
        with plain_client(tls.server) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            run_until(r, lambda: errors)
        turns(r, 2)
        assert isinstance(errors[0], TLSError)
        assert [ref() for ref in refs] == [None]
    finally:
        gc.enable()


# -- start_tls


def test_a_connection_can_be_upgraded_to_tls(r, certificates):  # noqa: F811
    log, seen = Log(), []

    def serve(conn, data):
        seen.append(data)
        if data == b'STARTTLS\n':
            conn.write(b'go\n')
            conn.start_tls(certificates.server(), log.on_written, 'server')

    def use(conn, data):
        if data == b'go\n':
            conn.start_tls(certificates.client(), log.on_written, 'client', server_hostname='localhost')
            conn.write(b'secret')

    server = r.listen_tcp('127.0.0.1', 0, serve)
    conn = r.connect_tcp(*server.address, use)
    conn.write(b'STARTTLS\n')
    run_until(r, lambda: b'secret' in seen)
    assert seen == [b'STARTTLS\n', b'secret']
    assert sorted(log) == [('written', 'client'), ('written', 'server')]
    assert conn.tls.version
    with pytest.raises(ReactorError, match='already'):
        conn.start_tls(certificates.client())
    server.close()
    end(r, conn)
    run_until(r, lambda: not r.handles())


@pytest.mark.scenario(93)
def test_plain_text_sent_after_the_request_for_tls_is_never_data(r, certificates):  # noqa: F811
    log = Log()

    def serve(conn, data):
        log.on_data(conn, data)
        conn.write(b'go\n', lambda conn: conn.start_tls(certificates.server()))

    server = r.listen_tcp('127.0.0.1', 0, serve, on_close=log.on_close)
    with plain_client(server) as sock:
        sock.sendall(b'STARTTLS\n')
        run_until(r, lambda: log)
        sock.sendall(b'DELETE EVERYTHING\n')
        run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['data', 'close'] and isinstance(log[1][1], TLSError)
    server.close()


def test_start_tls_is_refused_with_a_reason(r, sockets, certificates):  # noqa: F811
    ours, _ = sockets()
    conn = r.adopt(ours)
    with pytest.raises(ValueError, match='hostname'):
        conn.start_tls(certificates.client())
    with pytest.raises(TypeError):
        conn.start_tls('context')
    assert type(conn) is reactor.Stream and conn.tls is None
    conn.write_eof()
    with pytest.raises(ConnectionClosed):
        conn.start_tls(certificates.server())
    end(r, conn)


def test_start_tls_keeps_a_paused_connection_paused(r, sockets, certificates):  # noqa: F811
    seen = []
    a, b = sockets()
    ours = r.adopt(a, lambda conn, data: seen.append(data))
    theirs = r.adopt(b)
    ours.pause_reading()
    done = Log()
    ours.start_tls(certificates.server(), done.on_written)
    theirs.start_tls(certificates.client(), done.on_written, server_hostname='localhost')
    theirs.write(b'later')
    run_until(r, lambda: len(done) == 2)
    turns(r, 5)
    assert seen == []
    ours.resume_reading()
    run_until(r, lambda: seen)
    assert seen == [b'later']
    end(r, ours, theirs)


# -- calls at the wrong time


def half(certificates, sock, server_side):  # noqa: F811
    """Begin a handshake as the peer; return (SSL object, BIO that it reads from, BIO that it writes to)."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = certificates.server() if server_side else certificates.client()
    name = None if server_side else 'localhost'
    peer = context.wrap_bio(incoming, outgoing, server_side, name)
    with contextlib.suppress(BlockingIOError):
        incoming.write(sock.recv(1 << 16))
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.do_handshake()
    sock.send(outgoing.read())
    return peer, incoming, outgoing


@pytest.fixture
def local(r, sockets, certificates):  # noqa: F811
    """Make two TLS streams, the first of them with the options.

    They use a socket pair, on which a send to a closed peer fails at once.
    """

    def make(**options):
        a, b = sockets()
        ours, theirs = r.adopt(a, **options), r.adopt(b)
        ours.start_tls(certificates.server())
        theirs.start_tls(certificates.client(), server_hostname='localhost')
        run_until(r, lambda: ours.state == theirs.state == 'OPEN')
        turns(r, 3)
        return ours, theirs

    return make


def test_one_frame_lies_between_the_dispatch_and_on_data_of_a_whole_record(r, local):
    seen = []
    ours, theirs = local()
    ours.on_data = lambda conn, data: seen.append(frames_since('_dispatch'))
    theirs.write(b'x')
    run_until(r, lambda: seen)
    assert seen == [['TLSStream.handle_read']]
    end(r, ours, theirs)


@pytest.mark.parametrize('cut', [0, 1, 4, 5, 6, 20])
def test_records_are_decrypted_however_they_arrive(r, local, sockets, cut):
    log = Log()
    ours, theirs = local(on_data=log.on_data)
    parts = [theirs.tls.encrypt([b'%d' % number]) for number in range(4)]
    data = b''.join(parts[0] + parts[1] + parts[2])
    for piece in (data[:cut], data[cut:], b''.join(parts[3])):
        if piece:
            theirs.sock.send(piece)
            turns(r, 2)
    run_until(r, lambda: log.received == b'0123')
    end(r, ours, theirs)


def test_an_on_written_that_is_not_callable_is_refused(r, local):
    ours, theirs = local()
    for write in ours.write, lambda data, fn: ours.writelines([data], fn):
        with pytest.raises(TypeError, match='on_written'):
            write(b'x', 'not callable')
    assert ours.buffered == 0
    end(r, ours, theirs)


@pytest.mark.parametrize('when', ['before it is connected', 'in the handshake'])
@pytest.mark.parametrize('resumed', [False, True])
def test_reading_paused_before_the_end_of_the_handshake_stays_paused(r, tls, when, resumed):
    seen, ready, conns = [], [], []
    tls.listen(on_connect=lambda conn: (conns.append(conn), conn.write(b'hello')))
    conn = tls.connect(lambda conn, data: seen.append(data), on_connect=ready.append)
    if when == 'in the handshake':
        run_until(r, lambda: conn.sock is not None)
    assert conn.state == 'CONNECTING'
    conn.pause_reading()
    if resumed:
        conn.resume_reading()
    run_until(r, lambda: ready and conns)
    turns(r, 5)
    run_until(r, lambda: bool(seen) or not resumed)
    assert seen == ([b'hello'] if resumed else [])
    conn.resume_reading()
    run_until(r, lambda: seen)
    assert seen == [b'hello']
    end(r, conn)
    run_until(r, lambda: not tls.server.open_connections)


def test_resuming_after_the_peer_has_ended_does_nothing(r, local):
    log = Log()
    ours, theirs = local(**log.callbacks('on_data', 'on_eof', 'on_close'))
    theirs.write_eof()
    run_until(r, lambda: log)
    ours.resume_reading()
    assert idle(r)
    assert log == [('eof',)]
    end(r, ours, theirs)


def test_write_eof_again_does_nothing(r, local):
    log = Log()
    ours, theirs = local(**log.callbacks('on_data', 'on_eof'))
    for _ in range(3):
        theirs.write_eof()
    run_until(r, lambda: log)
    turns(r, 3)
    assert log == [('eof',)]
    end(r, ours, theirs)


def test_an_end_that_arrived_with_data_is_reported_after_a_pause(r, local):
    log = Log()

    def pause(conn, data):
        log.on_data(conn, data)
        conn.pause_reading()

    ours, theirs = local(on_data=pause, on_close=log.on_close)
    theirs.write(b'last')
    theirs.close()
    run_until(r, lambda: log)
    turns(r, 3)
    assert log == [('data', b'last')]
    ours.resume_reading()
    run_until(r, lambda: len(log) == 2 and theirs.state == 'CLOSED')
    assert log[1] == ('close', None)


def test_a_spurious_readability_is_ignored(r, local):
    log = Log()
    ours, theirs = local(**log.callbacks('on_data', 'on_close'))
    ours.handle_read()
    turns(r, 2)
    assert log == []
    theirs.write(b'x')
    run_until(r, lambda: log)
    assert log == [('data', b'x')]
    end(r, ours, theirs)


def test_a_context_for_both_sides_requires_server_side(r, sockets):
    conn = r.adopt(sockets()[0])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # PROTOCOL_TLS is deprecated
        context = ssl.SSLContext(ssl.PROTOCOL_TLS)
    with pytest.raises(ValueError, match='server_side='):
        conn.start_tls(context)
    assert conn.tls is None
    end(r, conn)


# -- time limits


def test_bytes_in_either_direction_restart_the_idle_timeout(kernel, fake, sockets, certificates):  # noqa: F811
    log, data_log = Log(), Log()
    a, b = sockets()
    ours, theirs = fake.adopt(a, data_log.on_data, on_close=log.on_close, idle_timeout=5), fake.adopt(b)
    ours.start_tls(certificates.server())
    theirs.start_tls(certificates.client(), server_hostname='localhost')
    run_until(fake, lambda: ours.state == 'OPEN')
    for _ in range(5):
        kernel.time += 3
        theirs.write(b'x')
        turns(fake, 2)
    assert data_log.received == b'xxxxx' and log == []
    began = kernel.time
    run_until(fake, lambda: log)
    assert isinstance(log[0][1], IdleTimeout) and 5 <= kernel.time - began <= 6
    end(fake, theirs)


@pytest.fixture
def silent(tmp_path):
    """The path of a Unix socket whose listener never sends anything."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'silent'))
        server.listen()
        yield str(tmp_path / 'silent')


@pytest.mark.parametrize('when', ['given', 'set in the handshake', 'changed in the handshake'])
def test_the_time_limits_hold_in_the_handshake_too(kernel, fake, silent, certificates, when):  # noqa: F811
    log = Log()
    options = {'given': {'idle_timeout': 5}, 'changed in the handshake': {'idle_timeout': 3000}}.get(when, {})
    conn = fake.connect_unix(
        silent, ssl=certificates.client(), server_hostname='localhost', on_close=log.on_close, **options
    )
    run_until(fake, lambda: conn.sock is not None)
    turns(fake, 1)
    assert conn.state == 'CONNECTING'
    if when != 'given':
        conn.set_timeouts(idle=5)
    began = kernel.time
    run_until(fake, lambda: log)
    assert isinstance(log[0][1], IdleTimeout) and 5 <= kernel.time - began <= 6


def test_time_limits_can_be_removed_in_the_handshake(kernel, fake, silent, certificates, caplog):  # noqa: F811
    log = Log()
    conn = fake.connect_unix(
        silent, ssl=certificates.client(), server_hostname='localhost', on_close=log.on_close, idle_timeout=5
    )
    run_until(fake, lambda: conn.sock is not None)
    turns(fake, 1)
    conn.set_timeouts()
    run_until(fake, lambda: log)
    assert isinstance(log[0][1], HandshakeTimeout) and kernel.time >= 1060
    assert caplog.records == []


def test_when_a_send_fails_as_the_handshake_times_out_the_send_error_is_reported(kernel, fake, sockets, certificates):  # noqa: F811
    log = Log()
    a, b = sockets()
    conn = fake.adopt(a, on_close=log.on_close)
    conn.start_tls(certificates.server(), handshake_timeout=5)
    half(certificates, b, server_side=False)
    b.close()
    kernel.time += 6
    fake.run_once(0)
    turns(fake, 2)
    assert [type(exc) for _, exc in log] == [BrokenPipeError]


# -- lost connections and data


def test_a_write_after_a_failure_that_was_not_reported_yet_is_dropped(r, local):
    log = Log()
    ours, theirs = local(on_close=log.on_close)
    theirs.abort()
    assert ours.write(b'x', log.on_written) is False
    assert ours.write(b'y', log.on_written) is False
    assert log == []
    turns(r, 3)
    assert [(name, type(exc)) for name, exc in log] == [('close', BrokenPipeError)]


def test_all_records_received_before_a_failed_write_are_delivered(r, local):
    received, log = [], Log()
    ours, theirs = local(on_close=log.on_close)

    def answer(conn, data):
        received.append(data)
        conn.write(b'answer')

    ours.on_data = answer
    for number in range(20):
        theirs.write(b'%d,' % number)
    theirs.abort()
    run_until(r, lambda: log)
    assert b''.join(received) == b''.join(b'%d,' % number for number in range(20))
    assert [(name, type(exc)) for name, exc in log] == [('close', BrokenPipeError)]


def test_records_received_before_a_failed_write_are_delivered_when_reading_is_resumed(r, local):
    received, log = [], Log()
    ours, theirs = local(on_close=log.on_close)

    def receive_once(conn, data):
        received.append(data)
        conn.pause_reading()

    ours.on_data = receive_once
    for number in range(20):
        theirs.write(b'%d,' % number)
    theirs.pause_reading()
    ours.write(b'never read')  # so that the connection ends with a reset
    theirs.abort()
    run_until(r, lambda: received)
    turns(r, 2)
    assert ours.write(b'x') is False
    ours.on_data = lambda conn, data: received.append(data)
    ours.resume_reading()
    run_until(r, lambda: log)
    assert b''.join(received) == b''.join(b'%d,' % number for number in range(20))
    assert [(name, type(exc)) for name, exc in log] == [('close', BrokenPipeError)]


@pytest.mark.parametrize('held', [False, True])
def test_a_write_without_stack_sends_nothing_or_ends_the_connection(r, local, sockets, certificates, held):  # noqa: F811
    # Regression: the write used to raise an error after some of the ciphertext had been lost, so the peer could not
    # decrypt later writes.
    if is_traced():
        pytest.skip('UNTESTED while branch coverage is measured: the tracer itself runs out of stack')
    pieces, raised, ends, left = [bytes(70_000), bytes(70_000)], [], [], 0

    def write(conn):
        try:
            near_limit(left, conn.handle_held_writes if held else lambda: conn.writelines(pieces))
            raised.append(False)
        except RecursionError:
            raised.append(True)
        conn.write(b'more')

    while not raised or raised[-1] or ends[-1] is not None:
        log, received = Log(), bytearray()
        left += 1
        if held:
            a, b = sockets()
            ours, theirs = r.adopt(a, on_close=log.on_close), r.adopt(b)
            theirs.start_tls(certificates.server())
            ours.start_tls(certificates.client(), write, server_hostname='localhost')
            ours.writelines(pieces)
        else:
            ours, theirs = local(on_close=log.on_close)
            write(ours)
        theirs.on_data = lambda conn, data, received=received: received.extend(data)
        run_until(r, lambda log=log, received=received: log or received[-4:] == b'more')
        ends.append(type(log[0][1]) if log else None)
        assert log or len(received) == (4 if raised[-1] and not held else 140_004)
        end(r, ours, theirs)
    assert set(ends) == {None, RecursionError}


@pytest.mark.parametrize('size', [1, 70_000])
def test_a_write_whose_ciphertext_is_lost_without_memory_ends_the_connection(r, local, size):
    log = Log()
    ours, theirs = local(on_close=log.on_close)
    encrypt = ours.tls._write

    def without_memory(data):
        encrypt(data)
        raise MemoryError

    ours.tls._write = without_memory
    assert ours.write(bytes(size)) is False
    ours.tls._write = encrypt
    assert ours.write(b'more') is False
    turns(r, 2)
    assert [(name, type(exc)) for name, exc in log] == [('close', MemoryError)]
    end(r, theirs)


def test_a_write_without_memory_after_bytes_that_wait_ends_the_connection_too(r, local, monkeypatch):
    log = Log()
    ours, theirs = local(on_close=log.on_close)
    theirs.pause_reading()
    while ours.write(b'x' * 100_000):
        pass
    run_short(monkeypatch, TLSSession, 'encrypt')
    assert ours.write(b'lost') is False
    assert ours.write(b'more') is False
    turns(r, 2)
    assert [(name, type(exc)) for name, exc in log] == [('close', MemoryError)]
    end(r, theirs)


def test_held_writes_without_stack_are_sent_when_there_is_some(r, sockets, certificates, monkeypatch):  # noqa: F811
    received = bytearray()
    a, b = sockets()
    ours, theirs = r.adopt(a), r.adopt(b, lambda conn, data: received.extend(data))
    theirs.start_tls(certificates.server())
    ours.start_tls(certificates.client(), server_hostname='localhost')
    ours.write(b'one, ')
    ours.write(b'two')
    run_short(monkeypatch, TLSSession, 'encrypt', kind=RecursionError)
    with pytest.raises(RecursionError):
        run_until(r, lambda: received)
    run_until(r, lambda: received == b'one, two')
    end(r, ours, theirs)


def test_a_pause_during_a_handshake_also_pauses_a_layer_above(r, sockets, certificates):  # noqa: F811
    a, b = sockets()
    ours, theirs = r.adopt(a, int), r.adopt(b)
    suspend_reading(ours)
    theirs.start_tls(certificates.client(), server_hostname='localhost')
    ours.start_tls(certificates.server())
    assert ours.state == 'CONNECTING' and ours.reading
    ours.pause_reading()
    assert not ours.reading
    end(r, ours, theirs)


def test_a_write_after_an_end_that_the_peer_did_not_receive_raises(r, local):
    log = Log()
    ours, theirs = local(on_close=log.on_close)
    theirs.abort()
    ours.write_eof()
    with pytest.raises(ConnectionClosed):
        ours.write(b'x', log.on_written)
    assert log == []
    turns(r, 3)
    assert [(name, type(exc)) for name, exc in log] == [('close', TLSError)]  # a read would also fail with TLSError


def test_a_peer_that_does_not_receive_our_end_is_still_read(r, local):
    log = Log()
    ours, theirs = local(**log.callbacks('on_data', 'on_close'))
    theirs.pause_reading()
    theirs.sock.shutdown(socket.SHUT_RD)
    ours.write_eof()
    turns(r, 3)
    assert log == []
    theirs.write(b'still sent')
    run_until(r, lambda: log)
    assert log == [('data', b'still sent')]
    end(r, ours, theirs)


def test_a_write_after_an_end_that_waits_for_a_failed_handshake_raises(r, sockets, certificates):  # noqa: F811
    log = Log()
    a, b = sockets()
    conn = r.adopt(a, on_close=log.on_close)
    conn.start_tls(certificates.server())
    conn.write_eof()
    b.send(b'no TLS at all\r\n' * 10)
    refused = []

    def at_the_end(conn, exc):
        refused.append(type(exc))
        with pytest.raises(ConnectionClosed):
            conn.write(b'x')

    conn.on_close = at_the_end
    run_until(r, lambda: refused)
    assert refused == [TLSError]


def test_a_program_that_ignores_false_is_aborted_at_max_buffered(r, local):
    log = Log()
    ours, theirs = local(on_close=log.on_close, max_buffered=1000)
    theirs.pause_reading()
    ours.write(bytes(5_000_000))
    assert ours.write(b'x') is False
    turns(r, 2)
    assert isinstance(log[0][1], WriteBufferFull)
    end(r, theirs)


def test_data_that_waited_for_a_handshake_counts_as_not_sent_when_the_peer_is_gone(r, sockets, certificates):  # noqa: F811
    log, left = Log(), []
    a, b = sockets()
    conn = r.adopt(a, on_close=lambda conn, exc: left.append((type(exc), conn.buffered)))
    conn.start_tls(certificates.client(), server_hostname='localhost')
    for size in 1000, 2000:
        conn.write(bytes(size), log.on_written)
    half(certificates, b, server_side=True)
    b.close()
    run_until(r, lambda: left)
    ((kind, buffered),) = left
    assert kind is BrokenPipeError and buffered >= 3000
    assert log == []


def test_a_descriptor_lost_before_start_tls_is_reported_once(r, sockets, certificates):  # noqa: F811
    log = Log()
    conn = r.adopt(sockets()[0], on_close=log.on_close)
    conn.pause_reading()
    os.close(conn.fileno())
    conn.start_tls(certificates.client(), log.on_connect, server_hostname='localhost')
    turns(r, 3)
    assert [(name, exc.errno) for name, exc in log] == [('close', errno.EBADF)]
    assert r.handles() == []


def test_a_descriptor_lost_right_before_close_notify_is_reported_once(r, tls):
    log = Log()

    def lose(conn, data):
        log.on_data(conn, data)
        os.close(conn.fileno())

    _, theirs = tls.pair({'on_data': lose, 'on_close': log.on_close})
    theirs.write(b'last')
    theirs.close()
    run_until(r, lambda: 'close' in log.names())
    turns(r, 2)
    assert log[0] == ('data', b'last')
    assert [(name, exc.errno) for name, exc in log[1:]] == [('close', errno.EBADF)]
    run_until(r, lambda: theirs.state == 'CLOSED')


def test_no_alert_is_sent_after_our_own_end(r, local):
    log = Log()
    ours, theirs = local(on_close=log.on_close)
    theirs.pause_reading()
    ours.write(bytes(5_000_000))
    ours.write_eof()
    waited = ours.buffered
    theirs.sock.send(b'\x17\x03\x03\x00\x20' + bytes(32))
    left = []
    ours.on_close = lambda conn, exc: left.append((type(exc), conn.buffered))
    run_until(r, lambda: left)
    assert left == [(TLSError, waited)]
    end(r, theirs)


def test_a_selector_without_room_for_a_connection_is_reported(certificates, tmp_path):  # noqa: F811
    class Crowded(Kernel):
        room = True

        def room_of(self, selector):
            return lambda fd: self.room

    kernel, log = Crowded(), Log()
    with reactor.Reactor(kernel=kernel) as r:
        r.listen_unix(str(tmp_path / 'tls'), ssl=certificates.server())
        r.connect_unix(
            str(tmp_path / 'tls'), ssl=certificates.client(), server_hostname='localhost', on_close=log.on_close
        )
        kernel.room = False
        turns(r, 2)
        kernel.room = True
        assert [(name, type(exc)) for name, exc in log] == [('close', SelectorFull)]
        assert log[0][1].__traceback__ is None  # with a traceback, the exception would keep the connection alive
        assert r.stats().outgoing == 0


# -- peers that misbehave


@pytest.fixture
def hostile(r, sockets, certificates):  # noqa: F811
    """Make a stream with these options and a `Peer` at its other end; both have completed the handshake."""
    if ENGINE.missing:
        pytest.skip(f'NOT TESTED: {ENGINE.missing}')

    def make(version=TLS_1_3, client=False, **options):
        a, b = sockets()
        ours = r.adopt(a, **options)
        limits = {'maximum_version': version}
        server, other = certificates.server(**limits), certificates.client(**limits)
        server.options |= ALLOW_CLIENT_RENEGOTIATION
        done = Log()
        context, peer = (other, Peer(server, True, random.Random(0))) if client else (server, None)
        peer = peer or Peer(other, False, random.Random(0))
        ours.start_tls(context, done.on_connect, server_hostname='localhost' if client else None)
        peer.join(r.adopt(b, **peer_callbacks()))
        run_until(r, lambda: done and peer.ready)
        turns(r, 3)
        return ours, peer

    return make


@pytest.mark.scenario(89)
@pytest.mark.parametrize('act', ['fin', 'say_and_fin', 'flip', 'flip_and_fin', 'cut', 'garbage', 'renegotiate', 'keys'])
@pytest.mark.parametrize('version', [TLS_1_2, TLS_1_3])
def test_a_misbehaving_member_of_a_chat_room_does_not_affect_the_others(r, hostile, act, version):
    # Regression: writing to the misbehaving member used to raise SSLEOFError or SSLWantReadError in the callback of the
    # member that had sent the message, and the sender was aborted.
    log, sent, room = Log(), [], []

    def send_to_all(conn, data):
        sent.append(data)
        for member in room:
            member.write(data)

    def on_close(conn, exc):
        room.remove(conn)

    callbacks = {'on_data': send_to_all, 'on_close': on_close, 'max_empty_records': None}
    members = [hostile(version, **callbacks) for _ in range(3)]
    room.extend(ours for ours, _ in members)
    (speaker, good), (_, bad), (_, other) = members
    speaker.on_close = log.on_close
    for _ in range(5):
        bad.do(act)
        good.say(b'hello')
        r.run_once(0)
        turns(r, 3)
    run_until(r, lambda: other.heard.count(b'hello') == 5 == good.heard.count(b'hello'))
    assert log == [] and not speaker.closed
    end(r, *room, *[peer.conn for _, peer in members if peer.conn is not None])


@pytest.mark.scenario(89)
@pytest.mark.parametrize('act', ['fin', 'flip'])
def test_a_failure_after_data_that_paused_reading_is_reported_and_writes_are_dropped(r, hostile, act):
    # Regression: until resume_reading() was called, all writes used to raise SSLEOFError.
    log = Log()

    def on_data(conn, data):
        log.on_data(conn, data)
        conn.pause_reading()
        assert act == 'fin' or conn.write(b'x', log.on_written) is False

    ours, peer = hostile(on_data=on_data, on_close=log.on_close)
    peer.conn.pause_reading()  # so that the callbacks of the peer do not close its connection
    peer.tls.write(b'data')
    if act == 'flip':
        peer.tls.write(b'more')
        peer._flips = False
        data = bytearray(peer._outgoing.read())
        data[-1] ^= 1
        peer.conn.write(bytes(data))
    else:
        peer.send()
        peer.conn.write_eof()
    run_until(r, lambda: log)
    assert log[0] == ('data', b'data')
    ours.resume_reading()
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['data', 'close'] and isinstance(log[1][1], TLSError)
    end(r, peer.conn)


def stalled(r, hostile, client, **options):
    """Make a stream whose peer has begun a new handshake, but has not continued it yet."""
    ours, peer = hostile(TLS_1_2, client, **options)
    peer.conn.pause_reading()
    peer.conn.on_eof = lambda conn: None
    ENGINE.renegotiate(peer.tls)
    peer.send()
    turns(r, 3)
    return ours, peer


@pytest.mark.scenario(87)
@pytest.mark.parametrize('client', [False, True])
@pytest.mark.parametrize('then', ['write_eof', 'close', 'nothing'])
def test_data_written_during_a_new_handshake_is_sent_after_it_in_order(r, hostile, client, then):
    log = Log()
    ours, peer = stalled(r, hostile, client, on_data=log.on_data, on_close=log.on_close, on_drain=log.on_drain)
    assert ours.write(b'one', log.on_written, 1) is True
    assert ours.writelines([b'two', bytearray(b'three')], log.on_written, 2) is True
    assert ours.write(bytes(100_000), log.on_written, 3) is False
    assert ours.buffered == 100_011
    if then != 'nothing':
        getattr(ours, then)()
        getattr(ours, then)()
        assert ours.closed is (then == 'close')
        with pytest.raises(ConnectionClosed):
            ours.write(b'too late')
    turns(r, 3)
    assert log == []
    peer.conn.resume_reading()
    run_until(r, lambda: len(peer.heard) == 100_011)
    turns(r, 3)
    assert peer.heard == b'onetwothree' + bytes(100_000)
    assert [args for name, *args in log if name == 'written'] == [[1], [2], [3]]
    assert ('drain',) in log or then != 'nothing'
    if then == 'close':
        run_until(r, lambda: ours.state == 'CLOSING')  # close() takes effect without another call
    peer.do('close_notify')
    end(r, *[conn for conn in (ours, peer.conn) if conn is not None])
    run_until(r, lambda: 'close' in log.names())
    assert log[-1] == ('close', None)


def test_a_close_during_a_new_handshake_that_never_ends_is_cut_off_after_the_linger(r, hostile):
    log = Log()
    ours, peer = stalled(r, hostile, False, on_close=log.on_close, linger=0.05)
    ours.write(b'never sent')
    ours.close()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], WriteTimeout)
    end(r, peer.conn)


@pytest.mark.scenario(92)
def test_writing_too_much_during_a_new_handshake_aborts_the_connection(r, hostile):
    log = Log()
    ours, peer = stalled(r, hostile, False, on_close=log.on_close, max_buffered=1000)
    ours.write(bytes(1000))
    assert ours.write(b'x') is False
    run_until(r, lambda: log)
    assert isinstance(log[0][1], WriteBufferFull)
    end(r, peer.conn)


def test_an_end_during_a_new_handshake_is_an_error_while_writes_wait_for_it(r, hostile):
    log = Log()
    ours, peer = stalled(r, hostile, False, on_close=log.on_close)
    ours.write(b'never sent')
    peer.conn.write_eof()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], TLSError)
    end(r, peer.conn)


def test_an_end_of_the_stream_while_writes_wait_for_a_new_handshake_is_an_error(r, hostile, monkeypatch):
    def encrypt(session, pieces):
        raise ssl.SSLWantReadError  # OpenSSL raises this in the middle of a new handshake

    left = []
    ours, peer = hostile(TLS_1_2, on_close=lambda conn, exc: left.append((exc, conn.buffered)))
    monkeypatch.setattr(TLSSession, 'encrypt', encrypt)
    assert ours.writelines([b'never sent'], int) is True
    peer.do('close_notify')
    run_until(r, lambda: left)
    ((exc, buffered),) = left
    assert isinstance(exc, TLSError) and 'during a handshake' in str(exc)
    assert buffered == len(b'never sent')
    end(r, *[conn for conn in (peer.conn,) if conn is not None])


def test_data_that_waited_for_a_handshake_counts_as_not_sent_when_the_first_send_fails(r, sockets, certificates):  # noqa: F811
    class Broken(socket.socket):
        def sendmsg(self, *args):
            raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

    log, left = Log(), []
    a, b = sockets()
    conn = r.adopt(Broken(fileno=a.detach()), on_close=lambda conn, exc: left.append((type(exc), conn.buffered)))
    conn.start_tls(certificates.client(), server_hostname='localhost')
    for size in 1000, 2000:
        conn.write(bytes(size), log.on_written)
    turns(r, 2)
    half(certificates, b, server_side=True)
    run_until(r, lambda: left)
    ((kind, buffered),) = left
    assert kind is BrokenPipeError and buffered >= 3000
    assert log == []


class CannotSend(socket.socket):
    """A socket that can receive but not send. Each send first calls `last_words`, in which the peer sends data."""

    def send(self, *args):
        self.last_words()
        raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

    sendmsg = send


def end_handshake(sock, parts, conn):
    """Send the end of the handshake to `conn`, which cannot send its answer; data arrives while it tries."""
    peer, incoming, outgoing = parts

    def last_words():
        peer.write(b'sent without an answer')
        sock.sendall(outgoing.read())

    conn.sock = CannotSend(fileno=conn.sock.detach())
    conn.sock.last_words = last_words
    incoming.write(sock.recv(1 << 16))
    peer.do_handshake()
    sock.sendall(outgoing.read())


def test_a_client_whose_handshake_cannot_be_answered_is_not_read_before_on_connect(r, tls, sockets, monkeypatch):
    # A handshake that has to wait for the next turn ends in the completions phase of that turn, and `on_connect` is
    # called one phase later. Regression: data that was read in between used to be passed to `on_data` before that.
    monkeypatch.setattr('reactor.net.handshake.HANDSHAKES_PER_TURN', 1)
    log = Log()
    server = tls.listen(on_connect=log.on_connect, on_data=log.on_data, on_close=log.on_close)
    socks = [sockets.track(plain_client(server)) for _ in range(2)]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    peers = [half(tls.certs, sock, server_side=False) for sock in socks]
    run_until(r, lambda: len(select.select(socks, [], [], 0)[0]) == 2)
    conns = {handle.peername[1]: handle for handle in r.handles() if handle is not server}
    for sock, parts in zip(socks, peers, strict=True):
        end_handshake(sock, parts, conns[sock.getsockname()[1]])
    run_until(r, lambda: len(log) == 2)
    turns(r, 2)
    assert [(name, type(exc)) for name, exc in log] == [('close', BrokenPipeError)] * 2


def test_a_peer_whose_handshake_cannot_be_answered_is_not_read_while_reading_is_paused(r, sockets, certificates):  # noqa: F811
    log, (a, b) = Log(), sockets()
    conn = r.adopt(a, log.on_data, on_close=log.on_close)
    conn.start_tls(certificates.server())
    conn.pause_reading()
    parts = half(certificates, b, server_side=False)
    turns(r, 2)
    end_handshake(b, parts, conn)
    run_until(r, lambda: log)
    turns(r, 2)
    assert [(name, type(exc)) for name, exc in log] == [('close', BrokenPipeError)]


def test_a_damaged_record_after_a_failed_send_causes_no_alert_and_keeps_the_reason(r, hostile):
    left = []
    ours, peer = hostile(on_close=lambda conn, exc: left.append((type(exc), conn.buffered)))
    peer.do('flip')
    peer.conn.abort()
    assert ours.write(b'x') is False
    waited = ours.buffered
    turns(r, 4)
    assert left == [(BrokenPipeError, waited)]


@pytest.mark.scenario(87)
@pytest.mark.parametrize('client', [False, True])
@pytest.mark.parametrize('requested', [False, True])
def test_a_flood_of_new_keys_is_cut_off(r, hostile, client, requested):
    # Regression: 64 KiB of key updates used to block the loop for 60 ms, or for 140 ms if each update had to be
    # answered.
    log = Log()
    _, peer = hostile(client=client, on_close=log.on_close)
    for _ in range(33 if not client else 40):
        ENGINE.update_keys(peer.tls, requested)
    peer.send()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], TLSError) and 'max_empty_records' in str(log[0][1]) and '32' in str(log[0][1])
    end(r, *[conn for conn in (peer.conn,) if conn is not None])


def test_new_keys_with_data_between_them_are_not_a_flood(r, hostile):
    received = bytearray()
    ours, peer = hostile(on_data=lambda conn, data: received.extend(data), max_empty_records=3)
    for _ in range(50):
        for _ in range(3):
            ENGINE.update_keys(peer.tls, True)
        peer.say(b'x')
    run_until(r, lambda: len(received) == 50)
    assert not ours.closed
    end(r, ours, peer.conn)


@pytest.mark.scenario(87)
@pytest.mark.parametrize('requested', [False, True])
def test_without_a_limit_one_record_without_data_is_handled_in_each_phase(r, hostile, requested, monkeypatch):
    received, log = bytearray(), Log()
    ours, peer = hostile(
        on_data=lambda conn, data: received.extend(data), on_close=log.on_close, max_empty_records=None
    )
    for _ in range(100):
        ENGINE.update_keys(peer.tls, requested)
    peer.say(b'behind')
    turns_before, left = r.stats().loop_count, []
    while not received:
        r.run_once(0)
        left.append(len(ours.tls._incoming))
    assert r.stats().loop_count - turns_before >= 100 / 2  # each turn handles one record in each of two phases
    assert received == b'behind' and log == []
    end(r, ours, peer.conn)


def test_a_limit_on_records_without_data_is_checked(r, sockets):
    for wrong, error in (-1, ValueError), (1.5, TypeError), ('32', TypeError):
        with pytest.raises(error, match='max_empty_records'):
            r.adopt(sockets()[0], max_empty_records=wrong)


def test_a_handshake_in_records_of_one_byte_is_handled_in_steps(r, sockets, certificates, monkeypatch):  # noqa: F811
    sizes = []
    shake = TLSSession.shake_hands

    def measured(session):
        before = len(session._incoming)
        try:
            return shake(session)
        finally:
            sizes.append(before - len(session._incoming))

    monkeypatch.setattr(TLSSession, 'shake_hands', measured)
    a, b = sockets()
    ours = r.adopt(a, read_size=1 << 20)
    ours.start_tls(certificates.server())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificates.client().wrap_bio(incoming, outgoing, False, 'localhost')
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    head, body = hello[:3] + b'\0\1', hello[5:]
    b.sendall(b''.join(head + body[at : at + 1] for at in range(len(body))))
    run_until(r, lambda: select.select([b], [], [], 0)[0])
    incoming.write(b.recv(1 << 16))
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    assert client.version() == 'TLSv1.3'
    assert len(sizes) > 5 and max(sizes) <= 64 * 6
    end(r, ours)


@pytest.mark.parametrize('sent', [b'\x16\x03', b'\x16\x03\x03\x48\x01', b'\x80\x80\x01\x03\x01', b'SSH-2.0-x\r\n'])
def test_bytes_that_cannot_be_a_record_are_refused_at_once(r, sockets, certificates, sent):  # noqa: F811
    log = Log()
    a, b = sockets()
    r.adopt(a, on_close=log.on_close).start_tls(certificates.server())
    b.sendall(sent)
    turns(r, 3)
    if len(sent) < 5:
        b.shutdown(socket.SHUT_WR)
    elif sent[0] == 0x80:
        b.sendall(bytes(200))  # the rest of an SSL 2 hello
    run_until(r, lambda: log)
    assert log.names() == ['close'] and isinstance(log[0][1], TLSError)


def test_a_callback_in_a_handshake_can_write_to_other_connections(r, tls):
    """All connections of a loop share the same two buffers."""
    received, conns = [], []
    ours, theirs = tls.pair({}, {'on_data': lambda conn, data: received.append(data)})

    def announce(ssl_object, name, context):
        ours.write(b'new client')

    context = tls.certs.server()
    context.sni_callback = announce
    server = r.listen_tcp('127.0.0.1', 0, ssl=context, on_connect=conns.append)
    other = r.connect_tcp(*server.address, ssl=tls.certs.client(), server_hostname='localhost')
    run_until(r, lambda: received and conns and other.state == 'OPEN')
    assert received == [b'new client'] and not ours.closed
    server.close()
    end(r, other, ours, theirs, *conns)


@pytest.mark.parametrize('act', ['close', 'write_eof', 'write', 'start_tls'])
def test_a_callback_in_a_handshake_does_not_disturb_that_handshake(r, tls, sockets, act):
    """A fatal alert ends the handshake, even if a callback uses other connections, which share the same buffers."""
    log = Log()
    ours, theirs = tls.pair({}, {})
    plain = r.adopt(sockets()[0])

    def announce(ssl_object, name, context):
        if act == 'start_tls':
            plain.start_tls(tls.certs.client(), server_hostname='localhost')
        else:
            getattr(ours, act)(*([b'new client'] if act == 'write' else []))

    context = tls.certs.server()
    context.sni_callback = announce
    a, b = sockets()
    r.adopt(a, on_close=log.on_close).start_tls(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.certs.client().wrap_bio(incoming, outgoing, server_hostname='localhost')
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    b.sendall(outgoing.read() + bytes.fromhex('15030300020250'))
    run_until(r, lambda: log)
    assert log.names() == ['close'] and 'INTERNAL_ERROR' in str(log[0][1])
    end(r, plain, ours, theirs)


@pytest.mark.parametrize(('size', 'whole'), [(0, False), (1, True), (16384, True), (16385, False)])
def test_data_that_fits_into_one_record_is_encrypted_as_one_record(r, local, size, whole):
    ours, theirs = local()
    record = ours.tls.encrypt_record(bytes(size))
    assert bool(record) is whole
    if whole:
        assert record_end(record, 0) == len(record)
    end(r, ours, theirs)


def test_data_left_over_from_a_failed_call_is_not_sent_to_another_peer(r, tls):
    received, ends = [], []
    calls = {'on_data': lambda conn, data: received.append(data), 'on_close': lambda conn, exc: ends.append(exc)}
    ours, theirs = tls.pair({}, calls)
    another = tls.connect()
    run_until(r, lambda: another.state == 'OPEN')
    another.tls.ssl_object.write(b'sent by no one')  # stays in the shared buffer, as if memory had run out
    ours.tls.buffers.incoming.write(b'nor this')
    ours.write(b'hello')
    theirs.write(b'hello')
    run_until(r, lambda: received)
    turns(r, 3)
    assert received == [b'hello'] and ends == [] and not ours.closed
    end(r, ours, theirs, another)


def test_data_left_over_from_a_failed_call_is_also_dropped_during_a_handshake(r, sockets, local, certificates):  # noqa: F811
    ours, theirs = local()
    a, b = sockets()
    beginning = r.adopt(a)
    beginning.start_tls(certificates.client(), server_hostname='localhost')
    run_until(r, lambda: select.select([b], [], [], 0)[0])  # only the first step of the handshake is done
    buffers = ours.tls.buffers
    buffers.outgoing.write(b'left behind')
    ours.writelines([b'hello'])
    assert not buffers.outgoing.pending
    end(r, ours, theirs, beginning)


def test_a_write_that_openssl_refuses_ends_that_connection(r, tls):
    log = Log()
    ours, theirs = tls.pair({'on_close': log.on_close})
    with contextlib.suppress(ssl.SSLError):
        ours.tls.ssl_object.unwrap()  # a program must not do this
    assert ours.write(b'x', log.on_written) is False
    assert ours.write(b'y') is False
    assert ours.closed and log == []
    run_until(r, lambda: log)
    assert log.names() == ['close'] and isinstance(log[0][1], TLSError)
    end(r, theirs)


def test_a_held_write_that_openssl_refuses_ends_that_connection(r, hostile, monkeypatch):
    log = Log()
    ours, peer = stalled(r, hostile, False, on_close=log.on_close)
    ours.write(b'never sent', log.on_written)

    def refuse(session, pieces):
        raise ssl.SSLError(1, 'made up')

    monkeypatch.setattr(TLSSession, 'encrypt', refuse)
    peer.conn.resume_reading()
    run_until(r, lambda: log)
    assert log.names() == ['close'] and isinstance(log[0][1], TLSError)
    end(r, *[conn for conn in (peer.conn,) if conn is not None])


MEMORY = """
import gc, socket, sys, resource
sys.path.append({project!r})
from pathlib import Path
from tests.helpers.certificates import Certificates
import reactor
certificates = Certificates.__new__(Certificates)
certificates.folder = Path({folder!r})
certificates.authority = certificates.folder / 'authority.pem'
COUNT, SIZE = 200, 1 << 20  # enough that the size of an allocator arena does not matter

def rss():
    gc.collect()
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()

got, pairs = [0], []
def on_data(conn, data):
    got[0] += len(data)

with reactor.Reactor() as r:
    def until(what):
        while not what():
            r.run_once(0.1)
    server = r.listen_tcp('127.0.0.1', 0, on_data, ssl=certificates.server(), on_connect=pairs.append)
    secured = dict(ssl=certificates.client(), server_hostname='localhost')
    def connect():
        conn = r.connect_tcp(*server.address, on_data, **secured)
        until(lambda: len(pairs) > len(conns) and conn.state == 'OPEN')
        conns.append(conn)
        return conn
    def transfer(conn):
        before = got[0]
        conn.write(bytes(SIZE))
        until(lambda: got[0] == before + SIZE)
    conns = []
    transfer(connect())
    transfer(pairs[0])
    for _ in range(COUNT):
        connect()
    idle = rss()
    for conn in pairs[1:]:
        transfer(conn)
    answered = rss()
    for conn in conns[1:]:
        transfer(conn)
    uploaded = rss()
    def early():
        before = got[0]
        conn = r.connect_tcp(*server.address, **secured)
        conn.write(bytes(SIZE))
        until(lambda: got[0] == before + SIZE)
        return conn
    again = [early() for _ in range(5)]
    base = rss()
    again += [early() for _ in range(40)]
    print((answered - idle) // COUNT, (uploaded - answered) // COUNT, (rss() - base) // 40)
    for conn in r.handles():
        conn.abort() if hasattr(conn, 'abort') else conn.close()
"""


@pytest.mark.scenario(92)
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
@pytest.mark.slow
def test_a_connection_keeps_no_memory_of_sent_and_received_data(certificates):  # noqa: F811
    # Regression: a connection used to keep 1,068 KiB after one answer of 1 MiB, and 77 KiB after an upload.
    code = MEMORY.format(project=str(Path(__file__).parents[2]), folder=str(certificates.folder))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answered, uploaded, early = map(int, done.stdout.split())
    # The limits are generous: both ends are in one process, and a few hundred connections give only a rough result.
    assert answered < 32768 and uploaded < 32768, (answered, uploaded)
    assert early < 200_000, f'an idle connection keeps {early} bytes after data that was written before its handshake'


# -- other TLS implementations


def s_client(server, *options):
    if shutil.which('openssl') is None:
        pytest.skip('not tested with openssl s_client: openssl is not installed')
    return subprocess.Popen(
        ['openssl', 's_client', '-connect', f'127.0.0.1:{server.address[1]}', *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize('version', ['-tls1_2', '-tls1_3'])
def test_openssl_s_client_is_answered(r, tls, version):
    server = tls.listen(lambda conn, data: (conn.write(data.upper()), conn.close()))
    client = s_client(server, version, '-quiet', '-ign_eof')
    client.stdin.write(b'hello\n')
    client.stdin.flush()
    found = []
    reader = threading.Thread(target=lambda: found.append(client.stdout.read()))
    reader.start()
    run_until(r, lambda: not reader.is_alive())
    client.stdin.close()
    client.stdout.close()
    assert client.wait(10) == 0
    assert found[0].endswith(b'HELLO\n')


@pytest.mark.scenario(87)
@pytest.mark.parametrize(
    ('version', 'command', 'expected'),
    [('-tls1_3', b'K\n', b'KEYUPDATE'), ('-tls1_3', b'k\n', b'KEYUPDATE'), ('-tls1_2', b'R\n', b'RENEGOTIATING')],
)
def test_new_keys_are_accepted_and_renegotiation_is_harmless(r, tls, version, command, expected):
    log, printed = Log(), bytearray()
    server = tls.listen(log.on_data, on_close=log.on_close)
    client = s_client(server, version)
    reader = threading.Thread(target=lambda: [printed.extend(line) for line in client.stdout])
    reader.start()
    client.stdin.write(b'before\n')
    client.stdin.flush()
    run_until(r, lambda: log.received == b'before\n')
    client.stdin.write(command)
    client.stdin.flush()
    run_until(r, lambda: expected in printed)
    with contextlib.suppress(BrokenPipeError):
        client.stdin.write(b'after\n')
        client.stdin.flush()
    run_until(r, lambda: log.received == b'before\nafter\n' or 'close' in log.names())
    assert version == '-tls1_2' or log.received == b'before\nafter\n'
    client.kill()
    with contextlib.suppress(BrokenPipeError):
        client.stdin.close()
    run_until(r, lambda: not (server.open_connections or reader.is_alive()))
    client.stdout.close()
    client.wait(10)
    reader.join()


def test_a_peer_that_asks_for_new_handshakes_and_reads_nothing_is_aborted(r, tls):
    log, conns = Log(), []
    server = tls.listen(on_connect=conns.append, on_close=log.on_close, max_buffered=1000)
    client = s_client(server, '-tls1_2')
    run_until(r, lambda: conns)
    (conn,) = conns
    conn.pause_reading()
    client.stdin.write(b'R\n')
    client.stdin.flush()
    run_until(r, lambda: select.select([conn.sock], [], [], 0)[0])
    client.send_signal(signal.SIGSTOP)  # the client no longer reads, but the socket buffers hold 32 MB or more
    conn.write(bytes(60_000_000))
    turns(r, 3)
    assert conn.buffered > 1000 and log == []
    conn.resume_reading()
    run_until(r, lambda: log)
    assert isinstance(log[0][1], WriteBufferFull)
    client.kill()
    client.stdin.close()
    client.stdout.close()
    client.wait(10)


@pytest.mark.parametrize('version', ['-tls1_2', '-tls1_3'])
def test_openssl_s_server_answers(r, certificates, version):  # noqa: F811
    files = ['-cert', str(certificates.folder / 'server.pem'), '-key', str(certificates.folder / 'server.key')]
    command = ['openssl', 's_server', '-accept', '127.0.0.1:0', '-rev', version, *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            for line in server.stdout:
                if line.startswith(b'ACCEPT'):
                    break
            port = int(line.rpartition(b':')[2])
            log = Log()
            conn = r.connect_tcp('127.0.0.1', port, log.on_data, ssl=certificates.client(), on_close=log.on_close)
            conn.write(b'hello\n')
            run_until(r, lambda: log.received.endswith(b'\n') or 'close' in log.names())
            assert log.received == b'olleh\n'
            assert conn.tls.version == {'-tls1_2': 'TLSv1.2', '-tls1_3': 'TLSv1.3'}[version]
            conn.close()
            run_until(r, lambda: 'close' in log.names())
            assert log[-1] == ('close', None)
        finally:
            server.kill()


def test_the_thread_is_checked_in_debug_mode(certificates):  # noqa: F811
    with reactor.Reactor(debug=True) as r:
        seen, raised = [], []
        server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: seen.append(data), ssl=certificates.server())
        conn = r.connect_tcp(*server.address, ssl=certificates.client())
        conn.write(b'x')
        run_until(r, lambda: seen)

        def write():
            try:
                conn.write(b'y')
            except ReactorError as exc:
                raised.append(exc)

        def main(r):
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
            r.stop()

        r.run(main)
        assert raised


def test_adopt_does_not_guess_the_side(r, sockets, certificates):  # noqa: F811
    ours, _ = sockets()
    with pytest.raises(TypeError, match='start_tls'):
        r.adopt(ours, ssl=certificates.server())


def test_handshakes_that_start_when_all_waiting_handshakes_have_ended_are_limited_too(r, tls, monkeypatch):
    # Regression: the next step of these handshakes used to be scheduled twice, so twice as many of them took a step in
    # a turn.
    in_turn, shake = TLSStream.shake_hands_in_turn, TLSStream._shake_hands
    ended, steps, done = [], [], []

    def end_the_first_that_waits(conn):
        in_turn(conn)
        if not ended and conn in (conn.options.shared.waiting or ()):
            ended.append(conn)
            conn.abort()

    def counted(conn):
        if conn.tls.ssl_object.server_side:
            steps.append(r.stats().loop_count)
        shake(conn)

    monkeypatch.setattr(TLSStream, 'shake_hands_in_turn', end_the_first_that_waits)
    monkeypatch.setattr(TLSStream, '_shake_hands', counted)
    tls.listen(on_connect=done.append)
    conns = [tls.connect() for _ in range(20)]
    run_until(r, lambda: len(done) == 19)
    assert len(ended) == 1 and max(collections.Counter(steps).values()) <= 4
    end(r, *conns)
    run_until(r, lambda: not tls.server.open_connections)
