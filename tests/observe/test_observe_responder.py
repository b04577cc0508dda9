"""The small HTTP server of `observe`: it accepts valid requests and refuses others, and no client can harm it."""

from __future__ import annotations

import threading
import urllib.request

import pytest

from reactor import Reactor
from reactor.observe.responder import LONGEST_HEAD, MOST_CLIENTS, REQUEST_TIMEOUT, listen_http
from tests.helpers.support import ends, read_all, run_until, turns

HOST = b'Host: localhost\r\n'


class Site:
    """A server that records the requests that it receives, and responds with `self.answer`."""

    def __init__(self, r, **options):
        self.r, self.requests = r, []
        self.answer = lambda request: request.reply(200, 'text/plain', b'hello\n')
        self.server = listen_http(r, '127.0.0.1', 0, self.on_request, **options)

    def on_request(self, request):
        self.requests.append(request)
        self.answer(request)

    def ask(self, sockets, data):
        """Send `data` on a new connection and return the whole response."""
        client = sockets.connect(self.server.address)
        client.send(data)
        answer = read_all(self.r, client)
        client.close()
        run_until(self.r, lambda: self.server.open_connections == 0)
        return answer

    def status(self, sockets, data):
        return int(self.ask(sockets, data).split()[1])


@pytest.fixture
def site(r):
    site = Site(r)
    yield site
    site.server.close()
    turns(r, 2)


def test_a_get_request_is_answered_and_the_connection_is_closed(site, sockets):
    answer = site.ask(sockets, b'GET /stats?a=b?c HTTP/1.1\r\n' + HOST + b'Accept: x\r\nAccept:  y \r\n\r\n')
    head, body = answer.split(b'\r\n\r\n')
    assert body == b'hello\n'
    assert head.split(b'\r\n') == [
        b'HTTP/1.1 200 OK',
        b'Content-Type: text/plain',
        b'Content-Length: 6',
        b'Cache-Control: no-store',
        b'X-Content-Type-Options: nosniff',
        b'Connection: close',
    ]
    (request,) = site.requests
    assert (request.method, request.path, request.query) == ('GET', '/stats', 'a=b?c')
    assert request.headers == {'host': 'localhost', 'accept': 'x, y'}


def test_a_head_request_is_answered_without_the_body(site, sockets):
    head, body = site.ask(sockets, b'HEAD / HTTP/1.0\r\n\r\n').split(b'\r\n\r\n')
    assert body == b'' and b'Content-Length: 6' in head


def test_a_request_may_arrive_in_any_pieces(site, sockets):
    data = b'GET / HTTP/1.1\r\n' + HOST + b'\r\n'
    for at in range(1, len(data)):
        client = sockets.connect(site.server.address)
        client.send(data[:at])
        run_until(site.r, lambda: site.server.open_connections)
        turns(site.r, 2)
        client.send(data[at:])
        assert read_all(site.r, client).endswith(b'\r\n\r\nhello\n')
        client.close()
        run_until(site.r, lambda: not site.server.open_connections)


@pytest.mark.parametrize(
    ('status', 'request_'),
    [
        (400, b'\r\n\r\n'),
        (400, b'GET\r\n\r\n'),
        (400, b'GET  / HTTP/1.1\r\n' + HOST + b'\r\n'),
        (400, b'GET /a\tb HTTP/1.1\r\n' + HOST + b'\r\n'),
        (400, b'GET http://localhost/ HTTP/1.1\r\n' + HOST + b'\r\n'),
        (400, b'GET /\xff HTTP/1.1\r\n' + HOST + b'\r\n'),
        (400, b'GET / HTTP/1.1\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + HOST + b'\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b'X : y\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b' folded\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b': y\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b'no colon\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b'X: a\nY: b\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b'X: a\rb\r\n\r\n'),
        (400, b'GET / HTTP/1.1\r\n' + HOST + b'X: \0\r\n\r\n'),
        (405, b'POST / HTTP/1.1\r\n' + HOST + b'\r\n'),
        (505, b'GET / HTTP/2.0\r\n' + HOST + b'\r\n'),
        (431, b'GET / HTTP/1.1\r\n' + b'X: y\r\n' * (LONGEST_HEAD // 6)),
    ],
)
def test_an_invalid_request_is_refused_and_the_callback_is_not_called(site, sockets, status, request_):
    answer = site.ask(sockets, request_)
    assert answer.startswith(b'HTTP/1.1 %d ' % status)
    assert b'Connection: close' in answer and not site.requests
    assert (b'Allow: GET, HEAD' in answer) == (status == 405)


def test_no_control_character_except_the_tab_is_accepted(site, sockets):
    line = b'GET / HTTP/1.1\r\n' + HOST + b'X: a%cb\r\n\r\n'
    refused = [code for code in range(256) if site.status(sockets, line % code) == 400]
    assert refused == [*range(9), *range(10, 32), 127]


@pytest.mark.parametrize(('count', 'status'), [(100, 200), (101, 431)])
def test_a_request_may_have_a_hundred_headers(site, sockets, count, status):
    request = b'GET / HTTP/1.1\r\n' + HOST + b'X: y\r\n' * (count - 1) + b'\r\n'
    assert site.status(sockets, request) == status


def test_no_part_of_a_bad_request_is_sent_back(site, sockets):
    for evil in (
        b'GET /evil',
        b'evil /',
        b'GET evil',
        b'GET / HTTP/evil',
        b'GET / HTTP/1.1\r\nHost: evil',
        b'GET / x\r\nevil',
    ):
        assert b'evil' not in site.ask(sockets, evil + b' HTTP/1.1\r\n' + HOST + b'\r\n')


@pytest.mark.parametrize(
    'host', ['localhost', 'LocalHost:8080', '127.0.0.1', '127.0.0.1:1', '[::1]', '[::1]:1', '10.1.2.3']
)
def test_on_loopback_names_of_this_machine_and_addresses_are_accepted(site, sockets, host):
    assert site.status(sockets, b'GET / HTTP/1.1\r\nHost: %s\r\n\r\n' % host.encode()) == 200


@pytest.mark.parametrize(
    'host', ['example.org', 'example.org:80', '', 'localhost.example.org', 'x@localhost', '[', '0x7f.1']
)
def test_on_loopback_another_name_is_refused(site, sockets, host):
    assert site.status(sockets, b'GET / HTTP/1.1\r\nHost: %s\r\n\r\n' % host.encode()) == 403
    assert not site.requests


def test_on_loopback_further_names_can_be_allowed(r, sockets):
    site = Site(r, hosts=['Figures.Example'])
    assert site.status(sockets, b'GET / HTTP/1.1\r\nHost: figures.example:80\r\n\r\n') == 200
    site.server.close()


def test_on_other_addresses_every_name_is_accepted(r, sockets):
    server = listen_http(r, '0.0.0.0', 0, lambda request: request.reply(200, 'text/plain', b''))
    client = sockets.connect(('127.0.0.1', server.address[1]))
    client.send(b'GET / HTTP/1.1\r\nHost: example.org\r\n\r\n')
    assert read_all(r, client).startswith(b'HTTP/1.1 200 ')
    client.close()
    run_until(r, lambda: not server.open_connections)
    server.close()


def test_a_client_that_is_still_sending_gets_the_response(site, sockets, caplog):
    client = sockets.connect(site.server.address)
    client.send(b'GET / HTTP/1.1\r\n' + HOST + b'Content-Length: 99999\r\n\r\n' + b'x' * 50000)
    run_until(site.r, lambda: site.requests)
    client.send(b'x' * 49999)
    assert read_all(site.r, client).endswith(b'hello\n')
    client.close()
    run_until(site.r, lambda: not site.server.open_connections)
    assert not caplog.records


def test_a_second_request_on_a_connection_is_not_answered(site, sockets):
    answer = site.ask(sockets, b'GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n')
    assert answer.count(b'HTTP/1.1') == 1 and [request.path for request in site.requests] == ['/1']


@pytest.mark.parametrize('drip', [b'', b'X'])
def test_a_client_that_does_not_finish_its_request_is_cut_off(fake, kernel, sockets, drip):
    server = listen_http(fake, '127.0.0.1', 0, lambda request: None)
    client = sockets.connect(server.address)
    client.send(b'GET ')
    run_until(fake, lambda: server.open_connections)
    for _ in range(int(REQUEST_TIMEOUT)):
        kernel.time += 1.01
        if drip and server.open_connections:
            client.send(drip)
        turns(fake, 2)
    assert server.open_connections == 0


def test_a_client_that_does_not_close_is_cut_off(fake, kernel, sockets):
    server = listen_http(fake, '127.0.0.1', 0, lambda request: request.reply(200, 'text/plain', b'x'))
    client = sockets.connect(server.address)
    client.send(b'GET / HTTP/1.0\r\n\r\n')
    run_until(fake, lambda: fake.stats().bytes_out)
    turns(fake, 2)
    assert server.open_connections == 1
    kernel.time += REQUEST_TIMEOUT
    turns(fake, 2)
    assert server.open_connections == 0


def test_a_response_after_the_client_has_disconnected_is_dropped(site, sockets):
    site.answer = lambda request: None
    client = sockets.connect(site.server.address)
    client.send(b'GET / HTTP/1.0\r\n\r\n')
    run_until(site.r, lambda: site.requests)
    client.close()
    run_until(site.r, lambda: not site.server.open_connections)
    site.requests[0].reply(200, 'text/plain', b'')
    assert site.requests[0].stream('text/plain') is None


def test_a_stream_of_events_has_no_time_limit(fake, kernel, sockets):
    streams, ended = [], []

    def answer(request):
        conn = request.stream('text/event-stream')
        conn.on_close = lambda conn, exc: ended.append(exc)
        streams.append(conn)

    server = listen_http(fake, '127.0.0.1', 0, answer)
    client = sockets.connect(server.address)
    client.send(b'GET / HTTP/1.0\r\n\r\n')
    run_until(fake, lambda: streams)
    for n in range(5):
        kernel.time += REQUEST_TIMEOUT
        streams[0].write(b'data: %d\n\n' % n)
        turns(fake, 2)
    head, _, body = client.recv(65536).partition(b'\r\n\r\n')
    assert b'Content-Type: text/event-stream' in head and b'Content-Length' not in head
    assert body == b''.join(b'data: %d\n\n' % n for n in range(5))
    client.close()
    run_until(fake, lambda: ended)


def test_a_head_request_for_a_stream_gets_only_the_header(site, sockets):
    site.answer = lambda request: request.stream('text/event-stream', [('X-A', 'b')])
    answer = site.ask(sockets, b'HEAD / HTTP/1.0\r\n\r\n')
    assert answer.startswith(b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-A: b\r\n')
    assert answer.endswith(b'\r\n\r\n')


@pytest.mark.parametrize('catch_errors', [True, False])
def test_a_request_callback_that_raises_ends_only_its_own_connection(sockets, caplog, catch_errors):
    with Reactor(catch_errors=catch_errors) as r:
        site = Site(r)
        site.answer = lambda request: 1 / 0
        client = sockets.connect(site.server.address)
        client.send(b'GET / HTTP/1.0\r\n\r\n')
        run_until(r, lambda: site.requests)
        run_until(r, lambda: not site.server.open_connections)
        site.answer = lambda request: request.reply(200, 'text/plain', b'ok')
        assert site.ask(sockets, b'GET / HTTP/1.0\r\n\r\n').endswith(b'ok')
    assert 'ZeroDivisionError' in caplog.text and len(caplog.records) == 1


def test_neither_the_listener_nor_a_client_keeps_the_loop_running(r, sockets):
    server = listen_http(r, '127.0.0.1', 0, lambda request: None)
    assert ends(r)
    client = sockets.connect(server.address)
    client.send(b'GET ')
    run_until(r, lambda: server.open_connections)
    assert ends(r)
    client.close()
    run_until(r, lambda: not server.open_connections)
    server.close()


def test_clients_above_the_limit_wait(r, sockets):
    server = listen_http(r, '127.0.0.1', 0, lambda request: None)
    clients = [sockets.connect(server.address) for _ in range(MOST_CLIENTS + 5)]
    run_until(r, lambda: server.open_connections == MOST_CLIENTS)
    turns(r, 5)
    assert server.open_connections == MOST_CLIENTS
    for client in clients:
        client.close()
    run_until(r, lambda: not server.open_connections and r.stats().accepts == MOST_CLIENTS + 5)
    server.close()


def test_a_real_client_can_read_a_large_response():
    with Reactor() as r:
        server = listen_http(r, '127.0.0.1', 0, lambda request: request.reply(200, 'text/plain', b'x' * 300_000))
        url = f'http://127.0.0.1:{server.address[1]}/'
        answers = []

        def fetch():
            with urllib.request.urlopen(url, timeout=10) as answer:
                answers.append(answer.read())
            r.call_soon_threadsafe(r.stop)

        thread = threading.Thread(target=fetch)
        thread.start()
        r.call_later(10, r.stop)
        r.run()
        thread.join()
    assert answers == [b'x' * 300_000]


def test_a_client_that_is_closed_before_on_connect_is_not_an_error(site, sockets, caplog):
    sockets.connect(site.server.address)
    closed = []

    def close_all():  # runs in the turn in which the client is accepted
        for handle in site.r.handles():
            if handle is not site.server:
                closed.append(handle)
                handle.close()

    while not closed:
        site.r.call_soon(close_all)
        site.r.run_once(0)
    turns(site.r, 2)
    assert site.server.open_connections == 0
    assert site.r.stats().callback_errors == 0 and not caplog.records


def test_bad_arguments_are_refused_at_the_call(r):
    with pytest.raises(TypeError):
        listen_http(r, '127.0.0.1', 'http', print)
    with pytest.raises(TypeError, match='hosts must be a list of names'):
        listen_http(r, '127.0.0.1', 0, print, hosts='status.example.org')
    with pytest.raises(OSError):
        listen_http(r, '192.0.2.1', 0, print)
    assert not r.handles()
