"""Tests with the real HAProxy: peer addresses, health checks that cause no log lines, drained and lost workers.

They need Debian's haproxy. Rolling restarts and kills under load are tested by the cases H1 and H2 of perf/faults/.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

import reactor
from reactor import framing
from reactor.net.stream import OPEN
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import run_until

PERF = Path(__file__).parents[2] / 'perf'
TRUSTED = ['127.0.0.0/8', '::1/128']
CONFIG = """
global
    stats socket "unix@$ADMIN" level admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 20s
    timeout server 20s
    unique-id-format from-%ci
listen door
    {lines}
    bind "$DOOR" {bind}
    server w 127.0.0.1:{port} {server}
"""

if shutil.which('haproxy') is None:
    pytest.skip('NOT TESTED: haproxy is not installed: apt-get install haproxy', allow_module_level=True)


@pytest.fixture(autouse=True)
def measuring():
    """The module that starts HAProxy with a configuration."""
    from perf.faults import haproxy

    return haproxy


@pytest.fixture
def r():
    with reactor.Reactor() as r:
        yield r


@pytest.fixture
def door(measuring, tmp_path, sockets):
    """`door(port, server, ...)` starts HAProxy in front of a port and returns (HAProxy, its address for clients)."""
    made = []

    def start(port, server, lines='', bind='', host='127.0.0.1'):
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        front = sockets.track(socket.create_server((host, 0), family=family))
        path = tmp_path / 'haproxy.cfg'
        path.write_text(CONFIG.format(port=port, server=server, lines=lines, bind=bind))
        made.append(measuring.Haproxy(path, {'DOOR': front}))
        return made[-1].__enter__(), front.getsockname()

    yield start
    for haproxy in made:
        haproxy.__exit__()


def echo(conn, data):
    conn.write(data)


class Echo:
    """An echo server that records its connections and the exception with which each of them ended."""

    def __init__(self, r, on_data=echo, **options):
        self.conns, self.ends = [], []
        options = {'on_connect': self.conns.append, 'on_close': self.on_close, **options}
        self.listener = r.listen_tcp('127.0.0.1', 0, on_data, **options)
        self.port = self.listener.address[1]

    def on_close(self, conn, exc):
        self.ends.append(exc)


def talk(r, address, **options):
    """Return a client that has sent hello and received the echo."""
    received = []
    conn = r.connect_tcp(*address[:2], lambda conn, data: received.append(data), **options)
    conn.on_connect = lambda conn: conn.write(b'hello')
    run_until(r, lambda: b''.join(received) == b'hello')
    return conn


# -- the PROXY protocol


@pytest.mark.parametrize('host', ['127.0.0.1', '::1'])
@pytest.mark.parametrize('server, version', [('send-proxy', 1), ('send-proxy-v2', 2)])
def test_the_peer_is_the_client_that_connected_to_haproxy(r, door, host, server, version):
    echo = Echo(r, proxy_protocol=TRUSTED)
    _, address = door(echo.port, server, host=host)
    client = talk(r, address)
    (conn,) = echo.conns
    assert conn.peername == client.sockname
    said = conn.proxy
    assert (said.version, said.command, said.source, said.destination) == (version, 'PROXY', client.sockname, address)
    assert said.family == (socket.AF_INET6 if ':' in host else socket.AF_INET)
    assert conn.sockname == ('127.0.0.1', echo.port)
    client.close()
    run_until(r, lambda: echo.ends)
    assert echo.ends == [None]


def test_the_tlvs_sent_by_haproxy_are_available(r, door):
    echo = Echo(r, proxy_protocol=TRUSTED)
    _, address = door(echo.port, 'send-proxy-v2 proxy-v2-options crc32c,unique-id')
    talk(r, address)
    tlvs = dict(echo.conns[0].proxy.tlvs)
    assert tlvs[0x05] == b'from-127.0.0.1'
    assert len(tlvs[0x03]) == 4  # this is the checksum; a wrong one would be refused


def test_facts_about_a_tls_connection_terminated_by_haproxy_are_available(r, door, certificates, tmp_path):  # noqa: F811
    folder = certificates.folder
    (tmp_path / 'both.pem').write_text((folder / 'server.pem').read_text() + (folder / 'server.key').read_text())
    echo = Echo(r, proxy_protocol=TRUSTED)
    options = 'send-proxy-v2-ssl-cn proxy-v2-options authority,ssl'
    _, address = door(echo.port, options, bind=f'ssl crt {tmp_path}/both.pem')
    context = ssl.create_default_context(cafile=str(certificates.authority))
    client = talk(r, address, ssl=context, server_hostname='localhost')
    proxy = echo.conns[0].proxy
    assert echo.conns[0].peername == client.sockname
    tlvs = dict(proxy.tlvs)
    assert tlvs[0x02] == b'localhost' and b'TLSv1.' in tlvs[0x20]


def test_when_the_worker_terminates_tls_the_handshake_follows_the_header(r, door, certificates):  # noqa: F811
    echo = Echo(r, proxy_protocol=TRUSTED, ssl=certificates.server())
    _, address = door(echo.port, 'send-proxy-v2')
    context = ssl.create_default_context(cafile=str(certificates.authority))
    client = talk(r, address, ssl=context, server_hostname='localhost')
    assert echo.conns[0].peername == client.sockname


# -- health checks


# The worker does not see a plain `check`: HAProxy resets the connection before the TCP handshake is complete.
CONNECTION = 'option tcp-check\n    tcp-check connect default linger'
RESET = 'option tcp-check\n    tcp-check connect default\n    tcp-check send hello'
HTTP = 'option httpchk GET /'
PROXY, TLS = {'proxy_protocol': TRUSTED}, True
CHECKS = {
    'a connection': ('', CONNECTION, {}, False),
    'a word and a reset': ('', RESET, {}, False),
    'a request': ('', HTTP, {}, False),
    'a PROXY header, version 1': ('send-proxy', '', PROXY, False),
    'a PROXY header, version 2': ('send-proxy-v2', '', PROXY, False),
    'a PROXY header only in checks': ('check-send-proxy', '', PROXY, False),
    'a word after a PROXY header, and a reset': ('send-proxy-v2', RESET, PROXY, False),
    'a request after a PROXY header': ('send-proxy-v2', HTTP, PROXY, False),
    'no PROXY header where one is expected': ('', CONNECTION, PROXY, False),
    'no handshake where one is expected': ('', CONNECTION, {}, TLS),
    'a handshake': ('check-ssl verify none', '', {}, TLS),
    'a handshake after a PROXY header': ('send-proxy-v2 check-ssl verify none', '', PROXY, TLS),
}


@pytest.mark.parametrize('kind', CHECKS)
def test_health_checks_succeed_without_errors_or_log_lines(r, door, kind, certificates, caplog):  # noqa: F811
    server, lines, options, tls = CHECKS[kind]
    caplog.set_level(logging.DEBUG)
    errors = []
    options = {
        'on_error': lambda conn, exc: errors.append(exc),
        'ssl': certificates.server() if tls else None,
        **options,
    }
    echo = Echo(r, lambda conn, data: conn.write(b'HTTP/1.0 200 OK\r\n\r\n'), **options)
    haproxy, _ = door(echo.port, f'check inter 20ms {server}', lines)
    run_until(r, lambda: r.stats().accepts >= 5 and haproxy.up())
    assert not errors and r.stats().callback_errors == r.stats().proxy_errors == 0
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# -- the shipped configuration


class Worker:
    """A worker that responds with its name, and records the requests that it receives.

    `GET /hold` is answered only when the test calls `answer`.
    """

    def __init__(self, r, name):
        self.r, self.name, self.asked, self.held, self.conns = r, name, [], [], set()
        self.port = 0
        self.start()

    def start(self):
        self.listener = self.r.listen_tcp('127.0.0.1', self.port, framing.lines(self.on_line), proxy_protocol=TRUSTED)
        self.port = self.listener.address[1]

    def on_line(self, conn, line):
        if line:
            conn.data = conn.data or line
            return
        request, conn.data = conn.data, None
        if b'/ready' not in request:
            self.asked.append(request)
            self.conns.add(conn)
        if b'/hold' in request:
            self.held.append(conn)
        else:
            self.answer(conn)

    def answer(self, conn):
        conn.write(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n' + self.name.encode())

    def die(self, conn):
        """End like a process that is killed after it has read the request."""
        self.listener.close()
        conn.close()


class Client:
    """A client that keeps its connection open."""

    def __init__(self, r, address):
        self.r, self.received, self.ended = r, b'', False
        self.conn = r.connect_tcp(*address, self.on_data, on_close=self.on_close)

    def on_data(self, conn, data):
        self.received += data

    def on_close(self, conn, exc):
        self.ended = True

    def ask(self, path='/', method='GET'):
        self.received = b''
        self.conn.write(f'{method} {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n'.encode())
        return self

    def answer(self):
        """Wait for the response and return the name of the worker in it."""
        run_until(self.r, lambda: b'\r\n\r\nw' in self.received)
        return self.received[-2:].decode()


class Shipped:
    """HAProxy with the configuration in examples/, and two workers in this process."""

    def __init__(self, r, measuring, sockets):
        self.r = r
        fronts = [sockets.track(socket.create_server(('127.0.0.1', 0))) for _ in range(2)]
        self.http, self.tcp = (front.getsockname() for front in fronts)
        self.workers = {name: Worker(r, name) for name in ('w1', 'w2')}
        where = {f'WORKER{name[1]}': f'127.0.0.1:{worker.port}' for name, worker in self.workers.items()}
        self.haproxy = measuring.Haproxy(measuring.CONFIG, dict(zip(('HTTP', 'TCP'), fronts, strict=True)), **where)

    def client(self, address=None):
        client = Client(self.r, address or self.http)
        run_until(self.r, lambda: client.conn.state == OPEN)
        return client

    def hold(self, name, **request):
        """Return (client, connection) of a request that this worker has received but not answered."""
        other = 'w2' if name == 'w1' else 'w1'
        self.haproxy.admin.set(other, 'state drain')
        client = self.client().ask('/hold', **request)
        run_until(self.r, lambda: self.workers[name].held)
        self.haproxy.admin.set(other, 'state ready')
        return client, self.workers[name].held[0]


@pytest.fixture
def shipped(r, measuring, sockets):
    shipped = Shipped(r, measuring, sockets)
    with shipped.haproxy:
        run_until(r, shipped.haproxy.up)
        yield shipped


def test_a_client_with_occasional_requests_keeps_its_connections_to_the_workers(r, shipped):
    clients = [shipped.client() for _ in range(30)]
    for _ in range(5):
        for client in clients:
            client.ask().answer()
    made = [len(worker.conns) for worker in shipped.workers.values()]
    assert max(made) <= 30 and sum(len(worker.asked) for worker in shipped.workers.values()) == 150
    peers = {conn.peername for worker in shipped.workers.values() for conn in worker.conns}
    assert peers == {client.conn.sockname for client in clients}


def test_a_drained_worker_gets_no_new_requests_and_finishes_those_in_progress(r, shipped, measuring):
    client, held = shipped.hold('w1')
    admin, idle = shipped.haproxy.admin, measuring.rolling_restart().is_idle
    admin.set('w1', 'state drain')
    others = [shipped.client() for _ in range(4)]
    assert [one.ask().answer() for one in others + others] == ['w2'] * 8
    assert not all(idle(row) for row in admin.servers('w1'))
    shipped.workers['w1'].answer(held)
    assert client.answer() == 'w1'
    run_until(r, lambda: all(idle(row) for row in admin.servers('w1')))
    assert client.ask().answer() == 'w2'  # the client uses the same connection to HAProxy


def test_a_client_stays_with_its_worker_if_haproxy_does_not_parse_requests(r, shipped):
    client = shipped.client(shipped.tcp)
    first = client.ask().answer()
    shipped.haproxy.admin.set(first, 'state drain')
    assert client.ask().answer() == first
    others = {shipped.client(shipped.tcp).ask().answer() for _ in range(4)}
    assert others == {'w1', 'w2'} - {first}


def test_an_idempotent_request_is_repeated_when_its_worker_dies(r, shipped):
    client, held = shipped.hold('w1')
    shipped.workers['w1'].die(held)
    run_until(r, lambda: shipped.workers['w2'].held)
    shipped.workers['w2'].answer(shipped.workers['w2'].held[0])
    assert client.answer() == 'w2'


def test_a_request_that_is_not_idempotent_is_lost_with_its_worker(r, shipped):
    client, held = shipped.hold('w1', method='POST')
    shipped.workers['w1'].die(held)
    run_until(r, lambda: client.ended or b' 502 ' in client.received)
    assert not shipped.workers['w2'].asked


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_a_worker_that_does_not_listen_costs_no_request(r, shipped, method):
    shipped.workers['w1'].listener.close()
    clients = [shipped.client() for _ in range(4)]
    assert [client.ask(method=method).answer() for client in clients] == ['w2'] * 4


# -- the rolling restart as a command


ROLL = str(PERF.parent / 'examples' / 'haproxy' / 'rolling_restart.py')


def roll(r, shipped, command, *options, while_running=lambda process: None):
    """Run the script, and return its exit status and its messages."""
    with subprocess.Popen([sys.executable, ROLL, *options[:2], shipped.haproxy.admin.path, command, *options[2:]],
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        try:
            run_until(r, lambda: while_running(process) or process.poll() is not None)
        finally:
            process.kill()
        return process.returncode, process.communicate()[1]


def statuses(shipped):
    return {f'{row["pxname"]}/{row["svname"]}': row['status'] for row in shipped.haproxy.admin.servers()}


ALL_UP = dict.fromkeys(('http/w1', 'http/w2', 'tcp/w1', 'tcp/w2'), 'UP')


def test_a_rolling_restart_restarts_each_worker_while_it_is_idle(r, shipped, tmp_path):
    status, errors = roll(r, shipped, f'echo {{name}} {{port}} >>{tmp_path}/done')
    assert (status, errors) == (0, '')
    ports = [f'{name} {worker.port}' for name, worker in shipped.workers.items()]
    assert (tmp_path / 'done').read_text().splitlines() == ports
    assert shipped.haproxy.up()
    assert {shipped.client().ask().answer() for _ in range(8)} == {'w1', 'w2'}


def test_a_rolling_restart_stops_at_a_worker_that_does_not_come_back(r, shipped, tmp_path):
    r.watch_path(str(tmp_path), lambda *what: shipped.workers['w1'].listener.close())
    status, errors = roll(r, shipped, f'touch {tmp_path}/{{name}}', '--start', '0.5')
    assert status == 1 and 'w1 was not up again' in errors
    assert [path.name for path in tmp_path.iterdir()] == ['w1']
    assert shipped.client().ask().answer() == 'w2'


def test_a_rolling_restart_reports_that_haproxy_cannot_be_reached(r, shipped):
    shipped.haproxy.process.kill()
    status, errors = roll(r, shipped, 'true')
    assert status == 1 and len(errors.splitlines()) == 1 and shipped.haproxy.admin.path in errors


def test_a_rolling_restart_does_not_drain_the_last_healthy_worker(r, shipped, tmp_path):
    shipped.workers['w1'].listener.close()
    run_until(r, lambda: statuses(shipped)['http/w1'] == statuses(shipped)['tcp/w1'] == 'DOWN')
    seen = set()
    look = lambda process: seen.add(statuses(shipped)['http/w2'])  # noqa: E731
    status, errors = roll(r, shipped, f'touch {tmp_path}/{{name}}', '--drain', '5', 'w2', while_running=look)
    assert status == 1 and 'w2 is the last healthy server of backend http (w1 is DOWN)' in errors
    assert 'Start another server' in errors and not list(tmp_path.iterdir())
    assert seen == {'UP'} and shipped.client().ask().answer() == 'w2'


def test_a_rolling_restart_restarts_a_worker_that_is_down_first(r, shipped, tmp_path):
    worker = shipped.workers['w1']
    worker.listener.close()
    run_until(r, lambda: statuses(shipped)['http/w1'] == statuses(shipped)['tcp/w1'] == 'DOWN')
    r.watch_path(str(tmp_path), lambda *what: worker.listener.closed and worker.start())
    assert roll(r, shipped, f'touch {tmp_path}/{{name}}') == (0, '')
    assert {path.name for path in tmp_path.iterdir()} == {'w1', 'w2'} and statuses(shipped) == ALL_UP


def test_a_rolling_restart_ends_the_drain_when_the_other_worker_fails(r, shipped, tmp_path):
    client, held = shipped.hold('w1')

    def fail(process):
        if statuses(shipped)['http/w1'] == 'DRAIN' and not shipped.workers['w2'].listener.closed:
            shipped.workers['w2'].listener.close()

    status, errors = roll(r, shipped, f'touch {tmp_path}/{{name}}', while_running=fail)
    assert status == 1 and 'w1 is the last healthy server' in errors and not list(tmp_path.iterdir())
    assert statuses(shipped)['http/w1'] == statuses(shipped)['tcp/w1'] == 'UP'
    assert shipped.client().ask().answer() == 'w1'
    shipped.workers['w1'].answer(held)
    assert client.answer() == 'w1'


@pytest.mark.parametrize('command, reason', [('exit 3', 'status 3'), ('kill -9 $$', 'status -9'), ('{', 'status 2')])
def test_a_worker_is_set_ready_again_when_its_command_fails(r, shipped, command, reason):
    status, errors = roll(r, shipped, command)
    assert status == 1 and f'the command for w1 failed with {reason}: {command}' in errors
    assert 'run the script again' in errors and 'Traceback' not in errors
    run_until(r, lambda: statuses(shipped) == ALL_UP)


def test_only_the_name_and_the_port_are_replaced_in_the_command(r, shipped, tmp_path):
    command = f'printf "%s\\n" "${{HOME}} {{name}} {{port}} {{other}} {{}}" >>{tmp_path}/done'
    assert roll(r, shipped, command) == (0, '')
    wanted = [f'{os.environ["HOME"]} {name} {worker.port} {{other}} {{}}' for name, worker in shipped.workers.items()]
    assert (tmp_path / 'done').read_text().splitlines() == wanted


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda signum: signum.name)
@pytest.mark.parametrize('phase', ['drain', 'command'])
def test_a_worker_is_set_ready_again_when_the_script_is_interrupted(r, shipped, tmp_path, signum, phase):
    if phase == 'drain':
        shipped.hold('w1')

    def interrupt(process):
        if statuses(shipped)['http/w1'] == 'DRAIN' and (phase == 'drain' or (tmp_path / 'w1').exists()):
            process.send_signal(signum)

    status, errors = roll(r, shipped, f'touch {tmp_path}/{{name}}; exec sleep 60', while_running=interrupt)
    assert status == 128 + signum and errors.startswith('Interrupted. No server is left drained')
    run_until(r, lambda: statuses(shipped) == ALL_UP)
    assert [path.name for path in tmp_path.iterdir()] == ([] if phase == 'drain' else ['w1'])


def test_a_rolling_restart_of_an_unknown_worker_fails(r, shipped):
    status, errors = roll(r, shipped, 'true', '--start', '5', 'w1', 'w7')
    assert status == 1 and errors == 'HAProxy has no server w7; it has w1, w2.\n'
