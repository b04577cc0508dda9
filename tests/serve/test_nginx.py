"""Tests with the real nginx and the shipped configuration: requests, client addresses, replaced and killed workers.

They need Debian's nginx and libnginx-mod-stream.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

import reactor
from perf.faults.nginx import COMMAND, CONFIG, Nginx
from tests.helpers.proxied import HERE, PROJECT, TRUSTED, children, free_port, get, load, service, wait_until
from tests.helpers.support import run_until

MODULE = '/usr/lib/nginx/modules/ngx_stream_module.so'

if COMMAND is None or not os.path.exists(MODULE):
    pytest.skip(
        'NOT TESTED: nginx is not installed: apt-get install nginx libnginx-mod-stream', allow_module_level=True
    )


@contextmanager
def nginx(folder, http=None, tcp=None):
    """Run nginx with the shipped configuration; yields (port for HTTP, port for TCP, path of the log).

    `http` and `tcp` are what nginx connects to: a port, or for `http` the path of a Unix socket.
    """
    with Nginx(http or free_port(), tcp or free_port()) as proxy:
        yield *proxy.ports, proxy.log


# -- the configuration


def test_the_times_of_the_configuration_fit_together():
    text = CONFIG.read_text()
    (upstream,) = re.findall(r'upstream app \{(.*?)\n    \}', text, re.DOTALL)
    kept = float(re.search(r'^ *keepalive_timeout (\d+)s;', upstream, re.MULTILINE)[1])
    idle = float(re.search(r'idle_timeout=(\d+)', (PROJECT / 'examples' / 'service.py').read_text())[1])
    assert kept <= idle / 2


def test_nginx_logs_nothing_about_the_configuration(tmp_path):
    with nginx(tmp_path) as (_, _, log):
        assert log.read_text() == ''


# -- the PROXY protocol


def test_the_peer_is_the_client_that_connected_to_nginx(tmp_path):
    with reactor.Reactor() as r:
        conns = []
        listener = r.listen_tcp(
            HERE, 0, lambda conn, data: conn.write(data), on_connect=conns.append, proxy_protocol=TRUSTED
        )
        with nginx(tmp_path, tcp=listener.address[1]) as (_, port, _):
            received = []
            client = r.connect_tcp(HERE, port, lambda conn, data: received.append(data))
            client.write(b'hello')
            run_until(r, lambda: received == [b'hello'])
            (conn,) = conns
            assert conn.peername == client.sockname and conn.sockname == listener.address
            assert (conn.proxy.version, conn.proxy.destination) == (1, (HERE, port))
            client.close()
            run_until(r, lambda: not r.stats().incoming)


# -- workers that share a socket


@pytest.mark.parametrize('method, status', [('GET', 200), ('POST', 501)])
def test_requests_are_answered_by_all_workers(tmp_path, method, status):
    at = free_port()
    with service('--listen', f'{HERE}:{at}') as process, nginx(tmp_path, http=at) as (port, _, log):
        found = set()
        with ThreadPoolExecutor(20) as pool:  # requests one after another would all use the same connection to a worker

            def ask():
                replies = list(pool.map(lambda _: get(port, method), range(40)))
                found.update(int(body.split()[-1]) for _, body in replies)
                assert {code for code, _ in replies} == {status}
                return found == children(process)

            wait_until(ask)
        assert log.read_text() == ''


def test_nginx_keeps_its_connections_to_the_workers(tmp_path):
    with reactor.Reactor() as r:
        conns = []

        def on_data(conn, data):
            conn.write(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')

        listener = r.listen_tcp(HERE, 0, on_data, on_connect=conns.append)
        with nginx(tmp_path, http=listener.address[1]) as (port, _, _):
            ends = []
            for count in range(1, 11):
                client = r.connect_tcp(HERE, port, on_close=lambda conn, exc: ends.append(exc))
                client.write(b'GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n')
                run_until(r, lambda count=count: len(ends) == count)
            assert ends == [None] * 10 and len(conns) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason='not tested: only root can run nginx as another user')
@pytest.mark.parametrize('mode, status', [('0600', 502), ('0666', 200)])
def test_nginx_of_another_user_can_connect_to_a_unix_socket_if_its_mode_allows_it(mode, status):
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter the parents of tmp_path
        folder = Path(name)
        folder.chmod(0o755)
        path = str(folder / 'app.sock')
        with service('--listen', f'unix:{path}?mode={mode}'), nginx(folder, http=path) as (port, _, log):
            assert get(port)[0] == status
            assert ('Permission denied' in log.read_text()) == (status == 502)


def test_no_request_fails_while_the_workers_are_replaced_under_load(tmp_path):
    at = free_port()
    options = ('--listen', f'{HERE}:{at}', '--drain-timeout', '10')
    with ExitStack() as stack:
        process = stack.enter_context(service(*options))
        port, _, log = stack.enter_context(nginx(tmp_path, http=at))
        result = stack.enter_context(load(port))
        for _ in range(4):
            before = children(process)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda before=before: len(now := children(process)) == 2 and not now & before)
        report = result()
        assert report['failed'] == 0 and report['replies'] == report['requests'] > 100, report
        assert 'error' not in log.read_text()


def test_a_killed_worker_loses_at_most_the_requests_that_were_open_on_it(tmp_path):
    at = free_port()
    with ExitStack() as stack:
        process = stack.enter_context(service('--listen', f'{HERE}:{at}'))
        port, _, _ = stack.enter_context(nginx(tmp_path, http=at))
        result = stack.enter_context(load(port))
        lost = 0
        for _ in range(4):
            before = children(process)
            # A worker that dies within a second of its start counts as one that cannot start. Its queue is lost, too.
            wait_until(lambda before=before: all(time.time() - psutil.Process(pid).create_time() > 3 for pid in before))
            pid = wait_until(lambda before=before: next((pid for pid in before if connected(pid)), None))
            lost += connected(pid)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda before=before: len(now := children(process)) == 2 and now != before)
        report = result()
        assert report['replies'] + report['failed'] == report['requests'] > 100
        assert report['failed'] <= lost, report
        assert get(port)[0] == 200


def connected(pid):
    """Return how many connections a worker has."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(pid).net_connections('tcp'))


def test_a_killed_worker_loses_only_its_own_connections_over_tcp(tmp_path, sockets):
    at = free_port()
    with (
        service('--listen', f'{HERE}:{at}', '--proxy-protocol', *TRUSTED) as process,
        nginx(tmp_path, tcp=at) as (_, port, _),
    ):
        clients = [sockets.track(socket.create_connection((HERE, port), timeout=20)) for _ in range(40)]

        def ask(client):
            """Return the worker that answered on this connection; None if the connection has ended."""
            try:
                client.sendall(b'GET / HTTP/1.1\r\n\r\n')
                return int(client.recv(4096).split()[-1])
            except (OSError, IndexError):
                return None

        served = [ask(client) for client in clients]
        killed, other = children(process)
        assert set(served) == {killed, other}
        os.kill(killed, signal.SIGKILL)
        assert [ask(client) for client in clients] == [None if pid == killed else other for pid in served]
        wait_until(lambda: len(children(process)) == 2)
        again = [sockets.track(socket.create_connection((HERE, port), timeout=20)) for _ in range(40)]
        assert {ask(client) for client in again} <= children(process)
