"""The HTTP server and the WebSocket chat among the examples, tested with curl, ab, wrk, a browser, and raw bytes.

The tools are in the Debian packages curl, apache2-utils, wrk and chromium.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest

import reactor
from tests.demo.test_clients import client as program
from tests.examples.test_examples import check_end, client, example, read_to_end, read_until

h11 = pytest.importorskip('h11', reason='NOT TESTED: no h11 (pip install -e .[examples])')
wsproto = pytest.importorskip('wsproto', reason='NOT TESTED: no wsproto (pip install -e .[examples])')
from wsproto.events import AcceptConnection, CloseConnection, Ping, Pong, Request, TextMessage  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGTERM to start a drain')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
BIG = 20 << 20


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder to serve, and a secret file next to it."""
    outer = tmp_path_factory.mktemp('outer')
    inner = outer / 'inner'
    (inner / 'folder').mkdir(parents=True)
    (outer / 'secret').write_text('secret')
    (inner / 'hello.txt').write_text('hello\n')
    (inner / 'empty').write_text('')
    (inner / 'folder' / 'with space.html').write_text('<p>spaced')
    (inner / 'big').write_bytes(bytes(range(256)) * (BIG // 256))
    (inner / 'circle').symlink_to(inner / 'circle')
    (inner / 'link').symlink_to(outer / 'secret')
    os.mkfifo(inner / 'fifo')
    return inner


@contextmanager
def serving(root, *options):
    with example('http_server.py', '--port', '0', '--root', str(root), *options) as (process, port):
        yield process, port


@pytest.fixture(scope='module')
def server(root):
    """The HOST:PORT of a server for tests that do not change its state. The server must not log anything or exit."""
    with serving(root) as (process, port):
        yield f'127.0.0.1:{port}'
        assert process.poll() is None


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
@pytest.mark.parametrize('name', ['http_server.py', 'websocket_chat.py'])
def test_a_server_says_where_it_listens_and_ends_cleanly(name, signum):
    check_end(name, signum, '--port', '0')


def raw(server, request):
    """Send a request, and return everything that the server sends until it closes the connection."""
    with client(server.rpartition(':')[2]) as sock:
        sock.sendall(request)
        return read_to_end(sock)


def get(path, *headers):
    return ''.join(f'{line}\r\n' for line in (f'GET {path} HTTP/1.1', 'Host: x', *headers, '')).encode()


# -- files


@pytest.mark.parametrize(('path', 'body'), [('/hello.txt', b'hello\n'), ('/folder/with%20space.html', b'<p>spaced'),
                                            ('/empty', b''), ('/./folder/../hello.txt', b'hello\n')])  # fmt: skip
def test_a_file_under_the_root_is_sent(server, path, body):
    answer = raw(server, get(path, 'Connection: close'))
    head, _, rest = answer.partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 200 OK\r\n')
    assert b'content-length: %d\r\n' % len(body) in head.lower() + b'\r\n'
    assert rest == body


@pytest.mark.scenario(126)
@pytest.mark.parametrize('path', ['/../secret', '/%2e%2e/secret', '/folder/../../secret', '/..%2fsecret', '/link',
                                  '//../secret', '/%2e%2e%2fsecret', '/folder', '/', '/fifo', '/nothing', '/%00',
                                  '/circle', '/' + 'x' * 5000])  # fmt: skip
def test_anything_but_a_file_under_the_root_is_not_found(server, path):
    answer = raw(server, get(path, 'Connection: close'))
    assert answer.startswith(b'HTTP/1.1 404 Not Found\r\n') and b'secret' not in answer


def test_head_sends_the_length_without_the_body(server):
    for path, length in ('/big', BIG), ('/nothing', 14):
        answer = raw(server, get(path, 'Connection: close').replace(b'GET', b'HEAD'))
        assert b'content-length: %d\r\n' % length in answer.lower()
        assert answer.endswith(b'\r\n\r\n')
    assert raw(server, get('/stream', 'Connection: close').replace(b'GET', b'HEAD')).endswith(b'\r\n\r\n')


@pytest.mark.scenario(126)
def test_connections_are_kept_alive_and_requests_can_be_pipelined(server):
    both = get('/hello.txt') + get('/nothing') + get('/stream?lines=3') + get('/big') + get('/hello.txt')
    answer = raw(server, both + get('/empty', 'Connection: close') + get('/never'))
    assert re.findall(rb'HTTP/1.1 (\d+)', answer) == [b'200', b'404', b'200', b'200', b'200', b'200']
    assert len(answer) > BIG


def test_an_unknown_method_is_not_allowed_and_its_body_is_dropped(server):
    request = b'DELETE /hello.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n' + bytes(100000)
    answer = raw(server, request + get('/hello.txt', 'Connection: close'))
    assert re.findall(rb'HTTP/1.1 (\d+)', answer) == [b'405', b'200'] and b'allow: GET, HEAD' in answer


# -- streams


def test_a_generated_stream_arrives_in_chunks_and_complete(server):
    connection = http.client.HTTPConnection(server, timeout=20)
    connection.request('GET', '/stream?lines=20000')
    answer = connection.getresponse()
    assert answer.headers['transfer-encoding'] == 'chunked'
    lines = answer.read().splitlines()
    connection.close()
    assert len(lines) == 20000 and lines[19999].startswith(b'line 19999 ')


@pytest.mark.scenario(127)
@pytest.mark.alone
def test_a_stream_waits_for_its_reader_and_other_clients_are_served(root):
    psutil = pytest.importorskip('psutil')
    with serving(root) as (process, port), client(port) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(get('/stream?lines=100000000'))
        assert read_until(slow, b'line 100 ')
        memory = psutil.Process(process.pid).memory_info().rss
        for _ in range(20):
            with client(port) as quick:
                quick.sendall(get('/hello.txt', 'Connection: close'))
                assert read_to_end(quick).endswith(b'hello\n')
        assert psutil.Process(process.pid).memory_info().rss - memory < 4 << 20


@pytest.mark.parametrize('chunked', [False, True])
def test_an_upload_is_sent_back_while_it_arrives(server, chunked):
    data = os.urandom(1 << 20) * 8
    connection = http.client.HTTPConnection(server, timeout=20)
    sock = None
    pieces = (data[at : at + 65536] for at in range(0, len(data), 65536))
    answer = []

    def read():
        answer.append(read_to_end(sock))

    connection.connect()
    sock = connection.sock
    # The client sends everything before it reads anything. Without this thread, which reads, it would wait forever.
    reader = threading.Thread(target=read)
    reader.start()
    length = {} if chunked else {'Content-Length': str(len(data))}
    connection.request('POST', '/echo', pieces, {'Connection': 'close', **length}, encode_chunked=chunked)
    reader.join(20)
    connection.close()
    assert not reader.is_alive()
    response = h11.Connection(h11.CLIENT)
    response.send(h11.Request(method='POST', target='/echo', headers=[('host', 'x'), ('content-length', '0')]))
    response.send(h11.EndOfMessage())
    response.receive_data(answer[0])
    assert response.next_event().status_code == 200
    received = bytearray()
    while type(event := response.next_event()) is h11.Data:
        received += event.data
    assert type(event) is h11.EndOfMessage and received == data


def test_an_upload_with_both_a_length_and_chunks_is_read_as_chunks(server):
    head = b'POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n'
    head += b'Transfer-Encoding: chunked\r\n\r\n'
    assert raw(server, head + b'3\r\nabc\r\n0\r\n\r\n').endswith(b'\r\n3\r\nabc\r\n0\r\n\r\n')


def test_an_offer_to_switch_protocols_is_ignored(server):
    answer = raw(server, get('/hello.txt', 'Connection: Upgrade, close', 'Upgrade: h2c'))
    assert answer.startswith(b'HTTP/1.1 200 ') and answer.endswith(b'hello\n')
    assert raw(server, b'CONNECT x:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n').startswith(b'HTTP/1.1 405 ')


@pytest.mark.scenario(127)
def test_the_upload_of_a_client_that_reads_nothing_is_paused(root):
    with serving(root) as (_, port), client(port) as sock:
        sock.sendall(b'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n')
        sock.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 200 << 20:
                sent += sock.send(bytes(1 << 20))
        assert sent < 64 << 20


# -- limits, errors, shutdown


@pytest.mark.scenario(126)
@pytest.mark.parametrize(('request_', 'status'), [
    (b'nonsense\r\n\r\n', b'400'),
    (b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + bytes(50) + b'\r\n\r\n', b'400'),
    (b'GET / HTTP/1.1\r\n\r\n', b'400'),
    (b'GET / HTTP/1.1\r\nHost: x\r\nX: ' + b'x' * 200_000 + b'\r\n\r\n', b'431'),
    (b'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n', b'400'),
    (get('http://[x/', 'Connection: close'), b'400'),
    (get('/hello.txt') + b'nonsense\r\n\r\n', b'400'),
])  # fmt: skip
def test_invalid_requests_are_answered_and_closed(server, request_, status):
    with client(server.rpartition(':')[2]) as sock:
        sock.sendall(request_)
        sock.shutdown(socket.SHUT_WR)
        answer = read_to_end(sock)
    last = answer[answer.rindex(b'HTTP/1.1') :]
    assert last.startswith(b'HTTP/1.1 ' + status) and b'connection: close' in last.lower()


def test_an_invalid_chunk_ends_the_connection_in_the_middle_of_its_answer(server):
    with suppress(ConnectionResetError):
        answer = raw(server, b'POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n')
        assert not answer.endswith(b'0\r\n\r\n')


@pytest.mark.scenario(126)
def test_an_idle_client_is_disconnected(root):
    with serving(root, '--idle', '1') as (_, port), client(port) as sock:
        sock.sendall(b'GET /hello.txt HT')
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b''
        assert time.monotonic() - began < 5


@pytest.mark.scenario(113, 128)
def test_sigterm_ends_idle_clients_and_answers_the_others_with_connection_close(root):
    with (
        serving(root, '--lame-duck', '0.2') as (process, port),
        client(port) as idle,
        client(port) as half,
        client(port) as reading,
    ):
        idle.sendall(get('/hello.txt'))
        read_until(idle, b'hello\n')
        half.sendall(get('/hello.txt')[:-2])
        reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        reading.sendall(get('/big'))
        read_until(reading, b'\r\n\r\n')
        idle.sendall(get('/hello.txt'))
        read_until(idle, b'hello\n')  # the server has now also read the other requests
        process.send_signal(signal.SIGTERM)
        assert read_to_end(idle) == b''
        with pytest.raises(ConnectionRefusedError):
            client(port).__enter__()
        half.sendall(b'\r\n')
        answer = read_to_end(half)
        assert b'connection: close' in answer and answer.endswith(b'hello\n')
        reading.sendall(get('/hello.txt'))  # the server keeps the connection open until it has sent this answer
        answer = read_to_end(reading)
        assert len(answer) > BIG - 65536 and answer.endswith(b'hello\n') and b'connection: close' in answer[-300:]
        reading.close()  # the server waits until the client closes, because otherwise its last bytes could be lost
        half.close()
        assert process.wait(10) == 0


def test_healthz_says_whether_the_server_accepts_more_clients(root):
    with serving(root) as (process, port), client(port) as waiting:
        server = f'127.0.0.1:{port}'
        head, _, body = raw(server, get('/healthz', 'Connection: close')).partition(b'\r\n\r\n')
        assert head.startswith(b'HTTP/1.1 200 OK\r\n') and body == b'200 OK\n'
        waiting.sendall(get('/hello.txt')[:-2])
        process.send_signal(signal.SIGTERM)
        # The server might answer before it handles the signal. Without `Connection: close`, the server would then keep
        # the connection open until it stops accepting.
        while (answer := raw(server, get('/healthz', 'Connection: close'))).startswith(b'HTTP/1.1 200 OK\r\n'):
            pass
        assert answer.startswith(b'HTTP/1.1 503 Service Unavailable\r\n')
        assert b'connection: close' in raw(server, get('/healthz'))
        waiting.sendall(b'\r\n')
        assert read_to_end(waiting).endswith(b'hello\n')
        assert process.wait(10) == 0


class Requester(threading.Thread):
    """A client that repeats a request, on one connection or on new connections, until the server no longer listens."""

    def __init__(self, port, *headers):
        super().__init__()
        self.port, self.request = port, get('/hello.txt', *headers)
        self.requests, self.answers, self.lost = 0, 0, []

    def run(self):
        while True:
            try:
                sock = socket.create_connection(('127.0.0.1', self.port), timeout=20)
            except (ConnectionRefusedError, ConnectionResetError):
                return
            with sock:
                try:
                    self.send_requests(sock)
                except (OSError, EOFError) as exc:
                    self.lost.append(exc)

    def send_requests(self, sock):
        while True:
            sock.sendall(self.request)
            self.requests += 1
            answer = b''
            while not answer.endswith(b'hello\n'):
                piece = sock.recv(4096)
                if not piece:
                    raise EOFError(f'the connection ended after {answer!r}')
                answer += piece
            self.answers += 1
            if b'connection: close' in answer.lower():
                return


def requests_answered(process):
    """Wait for the server to exit without an error; return the number of requests that it has counted."""
    assert process.wait(20) == 0
    return int(re.search(r'(\d+) requests', process.stdout.read())[1])


@pytest.mark.scenario(113)
@pytest.mark.slow
@pytest.mark.parametrize('headers', [(), ('Connection: close',)], ids=['kept', 'not kept'])
def test_sigterm_under_load_answers_everything_that_was_accepted(root, headers):
    with serving(root, '--lame-duck', '0') as (process, port):
        clients = [Requester(port, *headers) for _ in range(8)]
        for requester in clients:
            requester.start()
        while min(requester.answers for requester in clients) < 10:
            time.sleep(0.01)  # the clients run in threads
        process.send_signal(signal.SIGTERM)
        for requester in clients:
            requester.join(20)
        assert [exc for requester in clients for exc in requester.lost] == []
        answers = sum(requester.answers for requester in clients)
        assert sum(requester.requests for requester in clients) == answers == requests_answered(process)


# -- other clients


def curl(server, *options):
    done = program('curl', '-sS', '--max-time', '30', *options)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout


def test_curl_downloads_uploads_sends_head_requests_and_keeps_the_connection(server, root, tmp_path):
    curl(server, '-o', str(tmp_path / 'down'), f'http://{server}/big')
    assert (tmp_path / 'down').read_bytes() == (root / 'big').read_bytes()
    for option in ['-T', str(root / 'big')], ['-X', 'PUT', '-H', 'Transfer-Encoding: chunked', '-T', str(root / 'big')]:
        curl(server, *option, '-o', str(tmp_path / 'up'), f'http://{server}/echo')
        assert (tmp_path / 'up').read_bytes() == (root / 'big').read_bytes()
    assert re.search(r'(?i)content-length: 6\r?\n', curl(server, '-I', f'http://{server}/hello.txt'))
    output = curl(server, '-w', '%{num_connects} ', f'http://{server}/hello.txt', f'http://{server}/hello.txt')
    assert output.split() == ['hello', '1', 'hello', '0']


@pytest.mark.parametrize('path', ['/hello.txt', '/stream?lines=500'])
def test_ab_counts_no_failure(server, path):
    done = program('ab', '-q', '-k', '-n', '500', '-c', '20', f'http://{server}{path}')
    assert done.returncode == 0, done.stderr
    assert re.search(r'Complete requests:\s+500\nFailed requests:\s+0\n', done.stdout)


@pytest.mark.parametrize('path', ['/hello.txt', '/stream?lines=500'])
def test_wrk_gets_an_answer_to_each_request_on_kept_connections(server, path):
    done = program('wrk', '-t1', '-c20', '-d1', f'http://{server}{path}')
    assert done.returncode == 0, done.stderr
    assert int(re.search(r'(\d+) requests in', done.stdout)[1]) > 100
    assert 'Socket errors' not in done.stdout and 'Non-2xx' not in done.stdout


@pytest.mark.scenario(110)
@pytest.mark.slow
@pytest.mark.parametrize('name', ['M13', 'M21'])
def test_workers_under_load_are_replaced_and_drained_without_a_failed_request(name):
    """Run a case of `perf.faults` at a tiny size."""
    from perf.faults.case import Run
    from perf.faults.cases import BY_NAME

    assert not BY_NAME[name].missing()
    found = BY_NAME[name].measure(Run(0.001))
    missed = [goal.text for goal in BY_NAME[name].goals if not goal.check(found)]
    assert not missed, found


@pytest.mark.scenario(113)
@pytest.mark.slow
@pytest.mark.parametrize('options', [('-k',), ()], ids=['kept', 'not kept'])
def test_ab_gets_an_answer_to_each_request_while_the_server_shuts_down(root, options):
    with serving(root, '--lame-duck', '20') as (process, port):
        later = threading.Timer(0.15, process.send_signal, [signal.SIGTERM])
        later.start()
        done = program('ab', '-q', *options, '-n', '1000', '-c', '20', f'http://127.0.0.1:{port}/hello.txt')
        later.join()
        assert re.search(r'Complete requests:\s+1000\nFailed requests:\s+0\n', done.stdout)
        assert raw(f'127.0.0.1:{port}', get('/healthz')).startswith(b'HTTP/1.1 503 ')
        process.send_signal(signal.SIGINT)  # skip the rest of the lame duck phase
        assert process.wait(10) == 0


# The server gets SIGTERM at the 100th answer. All clients pause after every 50 answers, so that the server soon finds
# its accept queue empty.
WRK_SCRIPT = """
local answers, server = 0, nil
function init(args) server = args[1] end
function response()
  answers = answers + 1
  if answers == 100 then os.execute('kill -TERM ' .. server) end
  if answers % 50 == 0 then os.execute('sleep 0.05') end
end
function done(summary)
  local errors = summary.errors
  print(string.format('COUNTED %d read %d timeout %d status %d',
    summary.requests, errors.read, errors.timeout, errors.status))
end
"""


@pytest.mark.scenario(113)
@pytest.mark.slow
@pytest.mark.alone
def test_wrk_loses_no_answer_when_the_server_ends(root, tmp_path):
    """wrk and the server count the same number of answers.

    wrk counts an answer when it has read all of it. When wrk exits, it loses the answers to requests in flight, one
    for each connection. So wrk is stopped only after the server has exited.

    When the server closes a connection, wrk opens a new one at once. A draining server keeps its listener open while
    clients wait in the accept queue, so without pauses it might outlive wrk. The connects and writes that wrk counts
    as failed are connections that were refused after the server had exited.
    """
    if shutil.which('wrk') is None:
        pytest.skip('NOT TESTED: wrk is not installed: apt-get install wrk')
    script = tmp_path / 'end_the_server.lua'
    script.write_text(WRK_SCRIPT)
    with serving(root, '--lame-duck', '0.1') as (process, port):
        url = f'http://127.0.0.1:{port}/hello.txt'
        command = ['wrk', '-t1', '-c20', '-d60', '-s', str(script), url, '--', str(process.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
            try:
                answered = requests_answered(process)
                wrk.send_signal(signal.SIGINT)  # SIGINT makes wrk print its counts and exit
                report = wrk.communicate(timeout=20)[0]
            finally:
                wrk.kill()
        assert answered >= 100
        assert re.findall('COUNTED.*', report) == [f'COUNTED {answered} read 0 timeout 0 status 0']


def test_behind_a_proxy_the_server_reads_the_proxy_header_first(root):
    with serving(root, '--proxy-protocol', '127.0.0.0/8') as (_, port), client(port) as sock:
        sock.sendall(b'PROXY TCP4 192.0.2.1 127.0.0.1 51234 80\r\nGET /hello.txt HTTP/1.0\r\n\r\n')
        assert read_to_end(sock).endswith(b'\r\n\r\nhello\n')


# -- the chat


@contextmanager
def chatting(*options):
    with example('websocket_chat.py', '--port', '0', *options) as (_, port):
        yield port


class Member:
    """A blocking WebSocket client."""

    def __init__(self, port, target='/chat', **options):
        self.sock = socket.create_connection(('127.0.0.1', port), timeout=20)
        self.ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.events = []
        self.send(Request(host=f'127.0.0.1:{port}', target=target, **options))
        assert isinstance(self.next(), AcceptConnection)

    def send(self, event):
        self.sock.sendall(self.ws.send(event))

    def next(self):
        """Return the next event, or None at the end of the connection."""
        while not self.events:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.ws.receive_data(data)
            self.events = list(self.ws.events())
        return self.events.pop(0)

    def text(self):
        """Return the next text message, even if it arrives in several pieces, and answer pings before it."""
        text = ''
        while True:
            event = self.next()
            if isinstance(event, Ping):
                self.send(event.response())
                continue
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return text

    def say(self, text):
        self.send(TextMessage(data=text))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()


def test_a_message_of_one_member_is_sent_to_all():
    with chatting() as port, Member(port) as anna:
        assert anna.text() == '* guest1 joined, 1 here'
        with Member(port) as ben:
            assert (anna.text(), ben.text()) == ('* guest2 joined, 2 here',) * 2
            anna.say('grüß dich')
            assert (anna.text(), ben.text()) == ('guest1: grüß dich',) * 2
            ben.send(CloseConnection(code=1000))
            assert isinstance(ben.next(), CloseConnection)
            assert ben.next() is None
        assert anna.text() == '* guest2 left'


def test_a_message_in_pieces_is_one_message():
    with chatting() as port, Member(port) as anna:
        anna.text()
        anna.send(TextMessage(data='one ', message_finished=False))
        anna.send(Ping(payload=b'between'))
        anna.send(TextMessage(data='message'))
        pong = anna.next()
        assert isinstance(pong, Pong) and pong.payload == b'between'
        assert anna.text() == 'guest1: one message'


@pytest.mark.scenario(129)
@pytest.mark.parametrize('how', ['long', 'binary', 'garbage'])
def test_a_member_that_breaks_the_rules_gets_an_error_and_is_dropped(how):
    with chatting() as port, Member(port) as anna, Member(port) as ben:
        anna.text(), anna.text(), ben.text()
        if how == 'long':
            ben.say('x' * 5000)
        elif how == 'binary':
            ben.send(wsproto.events.BytesMessage(data=b'x'))
        else:
            ben.sock.sendall(b'\xff' * 100)
        end = ben.next()
        assert isinstance(end, CloseConnection) and end.code == (1002 if how == 'garbage' else 1008)
        assert anna.text() == '* guest2 left'


@pytest.mark.scenario(129)
@pytest.mark.slow
def test_a_member_that_reads_nothing_is_dropped_and_the_others_never_wait():
    with chatting() as port, Member(port) as anna, Member(port) as stalled:
        stalled.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        anna.text(), anna.text()
        messages = 0
        for _ in range(5000):
            anna.say('x' * 4000)
            text = anna.text()
            if text == '* guest2 left':
                break
            messages += 1
            assert text == 'guest1: ' + 'x' * 4000
        else:
            raise AssertionError('the member that reads nothing was not dropped')


@pytest.mark.scenario(129)
def test_a_member_that_does_not_answer_pings_is_dropped_and_the_others_stay():
    with chatting('--ping', '0.4') as port, Member(port) as anna, Member(port) as silent:
        messages = [anna.text() for _ in range(3)]  # `text` also answers pings
        assert messages[-1] == '* guest2 left'
        assert any(isinstance(event, Ping) for event in iter_events(silent))


def iter_events(member):
    with suppress(ConnectionResetError):
        while (event := member.next()) is not None:
            yield event


class ChatClient:
    """A WebSocket client of a reactor: it answers the close frame of the server and waits for the end of the stream.

    `ended` is the code of that frame and how the connection ended: (code, exception or None).
    """

    def __init__(self, r, port, answers=True):
        self.answers, self.received, self.upgraded, self.code, self.ended = answers, bytearray(), False, None, None
        self.conn = r.connect_tcp('127.0.0.1', port, self.on_data, on_close=self.on_close)
        self.conn.write(UPGRADE)

    def on_data(self, conn, data):
        received = self.received
        received += data
        if not self.upgraded and b'\r\n\r\n' in received:
            assert received.startswith(b'HTTP/1.1 101 '), received
            del received[: received.index(b'\r\n\r\n') + 4]
            self.upgraded = True
        at = 0
        while self.upgraded and len(received) - at >= 2:
            opcode, size = received[at] & 15, received[at + 1]
            assert size < 126  # the messages in these tests are short, and a server does not mask them
            if len(received) - at < 2 + size:
                break
            if opcode == 8:
                assert self.code is None
                self.code = int.from_bytes(received[at + 2 : at + 4], 'big')
                if self.answers:
                    conn.write(b'\x88\x82\0\0\0\0' + received[at + 2 : at + 4])  # the mask is four zeros
            at += 2 + size
        del received[:at]

    def on_close(self, conn, exc):
        self.ended = self.code, exc


UPGRADE = get('/chat', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13',
              'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==')  # fmt: skip


def run_while(r, waits, seconds=60):
    """Run a reactor while `waits()` is true."""
    end = time.monotonic() + seconds
    while waits():
        r.run_once(0.1)
        assert time.monotonic() < end, 'not in time'


@pytest.mark.scenario(129)
@pytest.mark.parametrize(('options', 'signum'), [
    ((), signal.SIGTERM), (('--workers', '2'), signal.SIGTERM), (('--workers', '2'), signal.SIGHUP),
], ids=['alone', 'workers', 'replaced workers'])  # fmt: skip
def test_a_drain_sends_1001_to_a_thousand_members_and_waits_for_their_answers(options, signum):
    with example('websocket_chat.py', '--port', '0', *options) as (process, port), reactor.Reactor() as r:
        members = [ChatClient(r, port) for _ in range(1000)]
        run_while(r, lambda: not all(member.upgraded for member in members))
        began = time.monotonic()
        process.send_signal(signum)
        run_while(r, lambda: not all(member.ended for member in members))
        assert time.monotonic() - began < 10  # the drain timeout
        assert {member.ended for member in members} == {(1001, None)}
        if signum == signal.SIGTERM:
            assert process.wait(10) == 0
        else:
            late = ChatClient(r, port)
            run_while(r, lambda: not late.upgraded)


@pytest.mark.scenario(129)
@pytest.mark.parametrize('options', [(), ('--workers', '1')], ids=['alone', 'workers'])
def test_a_member_that_does_not_answer_1001_is_reset_at_the_drain_timeout(options):
    options = ('--port', '0', '--drain-timeout', '1.5', *options)
    with example('websocket_chat.py', *options) as (process, port), reactor.Reactor() as r:
        silent, polite = ChatClient(r, port, answers=False), ChatClient(r, port)
        run_while(r, lambda: not (silent.upgraded and polite.upgraded))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        run_while(r, lambda: not polite.ended)
        assert time.monotonic() - began < 1.4 and silent.code == 1001 and silent.ended is None
        silent.conn.write(b'\x81\x82\0\0\0\0hi')  # a message that crosses with the close frame is dropped
        run_while(r, lambda: not silent.ended)
        assert 1.4 < time.monotonic() - began < 4 and isinstance(silent.ended[1], ConnectionResetError)
        assert polite.ended == (1001, None) and process.wait(10) == 0


def test_a_client_that_wants_to_join_during_a_drain_is_refused():
    with example('websocket_chat.py', '--port', '0') as (process, port), Member(port) as anna, client(port) as late:
        late.sendall(UPGRADE[:-2])
        anna.text()
        process.send_signal(signal.SIGTERM)
        assert anna.next().code == 1001
        late.sendall(b'\r\n')
        assert read_to_end(late).startswith(b'HTTP/1.1 503 ')


@pytest.mark.parametrize(('request_', 'status'), [
    (get('/'), '200'),
    (get('/nothing'), '404'),
    (get('/chat'), '400'),
    (get('/chat', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: x')
     .replace(b'Host: x', b'Host: \xff\xfe'), '400'),
    (get('/chat', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 12'), '400'),
    (b'nonsense\r\n\r\n', '400'),
])  # fmt: skip
def test_other_requests_to_the_chat_are_answered(request_, status):
    with chatting() as port:
        answer = raw(f'127.0.0.1:{port}', request_).decode()
        assert answer.startswith(f'HTTP/1.1 {status} ')
        assert ('new WebSocket' in answer) == (status == '200')


@pytest.fixture
def browser(tmp_path):
    """The port on which a headless Chromium accepts commands."""
    if not CHROMIUM:
        pytest.skip('NOT TESTED: no chromium (apt-get install chromium)')
    process = subprocess.Popen(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage',
         f'--user-data-dir={tmp_path}/browser', '--remote-debugging-port=0', 'about:blank'],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(60, process.kill)  # the loop below ends when the process does
    watchdog.start()
    output = []
    try:
        for line in process.stderr:
            output.append(line)
            if found := re.search(r'DevTools listening on ws://127\.0\.0\.1:(\d+)/', line):
                break
        else:
            raise AssertionError(''.join(output))
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield int(found[1])
    finally:
        process.kill()
        process.wait()
        watchdog.cancel()
        drain.join()
        process.stderr.close()


class Page(Member):
    """A page of the browser, driven over its debugging protocol."""

    def __init__(self, port, url):
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list', timeout=20) as answer:
            (page,) = [each for each in json.load(answer) if each['type'] == 'page']
        super().__init__(port, page['webSocketDebuggerUrl'].partition(str(port))[2])
        self.count = 0
        self.call('Page.navigate', url=url)

    def call(self, method, **params):
        self.count += 1
        self.say(json.dumps({'id': self.count, 'method': method, 'params': params}))
        while (answer := json.loads(self.text())).get('id') != self.count:
            pass
        return answer['result']

    def until(self, expression):
        """Evaluate an expression until its result is true, and return the result."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if value := self.call('Runtime.evaluate', expression=expression)['result'].get('value'):
                return value
            time.sleep(0.05)  # nothing signals that the page has changed
        raise AssertionError(self.call('Runtime.evaluate', expression='document.documentElement.outerHTML'))


@pytest.mark.slow
def test_a_browser_loads_the_page_sends_a_message_and_shows_it(browser):
    with chatting() as port, Page(browser, f'http://127.0.0.1:{port}/') as page, Member(port) as anna:
        page.until("!!document.getElementById('text') && !text.disabled")
        page.call('Runtime.evaluate', expression="text.value = 'hello <b>there'; form.querySelector('button').click()")
        seen = page.until("said.textContent.includes('there') && said.innerText")
        assert re.search(r'guest\d: hello <b>there', seen)
        while not anna.text().endswith(': hello <b>there'):
            pass
        anna.say('hello browser')
        assert page.until("said.textContent.includes('hello browser') && said.innerText")
