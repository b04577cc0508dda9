"""Downloads by libcurl in the reactor, from two real HTTP servers, of which one is killed, and compared with `curl`."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import psutil
import pytest

from perf.faults.nginx import COMMAND as NGINX
from reactor import Reactor
from tests.examples.test_examples import EXAMPLES
from tests.examples.test_service_clients import free_port, service
from tests.helpers.support import run_until, turns_in

pycurl = pytest.importorskip('pycurl', reason='NOT TESTED: no pycurl (pip install -e .[recipes])')
recipe = importlib.import_module('examples.recipes.curl_multi')

PROGRAM = str(EXAMPLES / 'recipes' / 'curl_multi.py')
# Answers /BYTES/PAUSE with that many bytes, in ten parts with a pause between them. /moved goes to /1000/0.
SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == '/moved':
            self.send_response(302)
            self.send_header('Location', '/1000/0')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        size, pause = self.path[1:].split('/')
        body = (self.path.encode() * int(size))[: int(size)]
        self.send_response(200)
        self.send_header('Content-Length', size)
        self.end_headers()
        for number in range(10):
            self.wfile.write(body[number * len(body) // 10 : (number + 1) * len(body) // 10])
            time.sleep(float(pause))

class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

Server(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"""


@contextmanager
def server():
    port = free_port()
    with service([sys.executable, '-c', SERVER, str(port)], port) as (start, kill, processes):
        yield f'http://127.0.0.1:{port}', start, kill, processes


@contextmanager
def downloads(most=100):
    """Yield a reactor and its downloads, and check that they leave nothing when they are closed."""
    before = psutil.Process().num_fds()
    with Reactor() as r:
        opened = psutil.Process().num_fds()
        made = recipe.Downloads(r, most)
        yield r, made
        made.close()
        assert not made.transfers and not made.watches
        assert not r.handles() and len(r.timers) == 0
        assert psutil.Process().num_fds() == opened
    assert psutil.Process().num_fds() == before


def body_of(url):
    path = '/' + url.split('/', 3)[3]
    size = int(path.split('/')[1])
    return (path.encode() * size)[:size]


def test_a_killed_server_fails_its_own_downloads_only_and_serves_again_after_its_restart():
    with server() as (lasting, *_), server() as (killed, start, kill, _), downloads() as (r, made):
        ends = {lasting: [], killed: []}

        def on_done(url, status, body, error):
            assert error or body == body_of(url)
            ends[url.rpartition('/')[0].rpartition('/')[0]].append((status, error))

        for base in lasting, killed:
            for size in range(100_000, 100_040):
                made.get(f'{base}/{size}/0.1', partial(on_done, f'{base}/{size}/0.1'))
        assert turns_in(r, 0.6) < 3000
        kill()
        run_until(r, lambda: len(ends[killed]) == 40)
        errors = [error for _, error in ends[killed]]
        assert {error.code for error in errors} <= {pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR, pycurl.E_GOT_NOTHING}
        assert killed in str(errors[0])
        run_until(r, lambda: len(ends[lasting]) == 40)
        assert ends[lasting] == [(200, None)] * 40
        made.get(f'{killed}/1000/0', partial(on_done, f'{killed}/1000/0'))
        run_until(r, lambda: len(ends[killed]) == 41)
        assert ends[killed][-1][1].code == pycurl.E_COULDNT_CONNECT
        start()
        made.get(f'{killed}/1000/0', partial(on_done, f'{killed}/1000/0'))
        run_until(r, lambda: len(ends[killed]) == 42)
        assert ends[killed][-1] == (200, None)


def test_more_downloads_than_connections_wait_and_a_name_is_looked_up_by_libcurl():
    with server() as (base, *_), downloads(most=5) as (r, made):
        base, ends = base.replace('127.0.0.1', 'localhost'), []
        for _ in range(40):
            made.get(f'{base}/1000/0.01', lambda *end: ends.append(end))
        most = 0
        while len(ends) < 40:
            r.run_once(1)
            most = max(most, len([each for each in psutil.Process().net_connections() if each.status == 'ESTABLISHED']))
        assert 1 < most <= 5
        assert {(status, len(body), error) for status, body, error in ends} == {(200, 1000, None)}
        made.get(f'{base}/moved', lambda *end: ends.append(end))
        run_until(r, lambda: len(ends) == 41)
        assert ends[-1] == (200, body_of(f'{base}/1000/0'), None)


def test_a_download_has_a_time_limit_and_can_be_cancelled_and_can_be_passed_on_in_pieces():
    with server() as (base, *_), downloads() as (r, made):
        ends, pieces = [], []
        began = time.monotonic()
        made.get(f'{base}/1000/1', lambda *end: ends.append(end), timeout=0.5)
        cancelled = made.get(f'{base}/1000/0.1', lambda *end: ends.append(end))
        made.get(f'{base}/1000/0', lambda *end: ends.append(end), write=pieces.append)
        run_until(r, lambda: len(ends) == 1)
        assert ends[0] == (200, b'', None) and b''.join(pieces) == body_of(f'{base}/1000/0')
        made.cancel(cancelled)
        made.cancel(cancelled)
        assert turns_in(r, 0.2) < 20
        run_until(r, lambda: len(ends) == 2)
        assert ends[1][2].code == pycurl.E_OPERATION_TIMEDOUT
        assert 0.4 < time.monotonic() - began < 0.9
        made.get(f'{base}/1000/1', lambda *end: ends.append(end))
        r.run_once(0.1)  # `close` ends this one


def test_an_exception_in_a_callback_does_not_end_other_downloads(caplog):
    with server() as (base, *_), downloads() as (r, made):
        ends = []
        for pause in 0, 0, 0.05:
            made.get(f'{base}/1000/{pause}', lambda *end: ends.append(end) or 1 / 0)
        run_until(r, lambda: len(ends) == 3)
        assert caplog.text.count('ZeroDivisionError: ') == 3


@pytest.mark.skipif(shutil.which('curl') is None, reason='NOT TESTED: no curl, to compare with (apt-get install curl)')
def test_the_program_gets_the_same_bytes_as_curl():
    with server() as (base, *_):
        urls = [f'{base}/{size}/0' for size in (1, 1000, 3_000_000)] + [f'http://127.0.0.1:{free_port()}/']
        child = subprocess.run([sys.executable, '-X', 'dev', '-W', 'error', PROGRAM, *urls], capture_output=True,
                               text=True, timeout=20)  # fmt: skip
        assert (child.returncode, child.stderr) == (0, '')
        shown = child.stdout.splitlines()
        assert f'{urls[2]}: 200, 3000000 bytes' in shown and len(shown) == 4
        assert any(line.startswith(urls[3]) and line.endswith('(curl: 7)') for line in shown)
        with downloads() as (r, made):
            digests = []
            made.get(urls[2], lambda status, body, error: digests.append(hashlib.sha256(body).hexdigest()))
            run_until(r, lambda: digests)
        real = subprocess.run(['curl', '-s', urls[2]], capture_output=True, timeout=20)
        assert hashlib.sha256(real.stdout).hexdigest() == digests[0]


# Two programs that download a URL many times, and print how many times it came, their CPU seconds, and how often they
# have waited. The first is a loop that does nothing else.
SELECT = """
import json, pycurl, resource, sys
multi, left, good = pycurl.CurlMulti(), int(sys.argv[2]), 0
multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, int(sys.argv[3]))
for _ in range(left):
    easy = pycurl.Curl()
    easy.setopt(pycurl.URL, sys.argv[1])
    easy.setopt(pycurl.WRITEFUNCTION, lambda data: None)
    multi.add_handle(easy)
while left:
    multi.perform()
    waiting, done, failed = multi.info_read()
    left, good = left - len(done) - len(failed), good + len(done)
    for easy in done:
        multi.remove_handle(easy)
    if left and not waiting:
        multi.select(min(1.0, multi.timeout() / 1000) if multi.timeout() >= 0 else 1.0)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([good, used.ru_utime + used.ru_stime, used.ru_nvcsw]))
"""
OURS = """
import json, reactor, resource, sys
from examples.recipes.curl_multi import Downloads
good = 0

def on_done(status, body, error):
    global good
    good += error is None

def main(r):
    downloads = Downloads(r, int(sys.argv[3]))
    for _ in range(int(sys.argv[2])):
        downloads.get(sys.argv[1], on_done, write=lambda data: None)

reactor.run(main)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([good, used.ru_utime + used.ru_stime, used.ru_nvcsw]))
"""
NGINX_CONF = """
daemon off; master_process off; pid nginx.pid; error_log stderr; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d;
    scgi_temp_path e; keepalive_requests 100000;
    server {{ listen 127.0.0.1:{port} backlog=511; root {root}; location /slow/ {{ limit_rate 2k; alias {root}/; }} }}
}}
"""


@pytest.mark.slow
def test_cpu_and_waits_beside_a_loop_of_its_own(tmp_path, capsys):
    """Compare with `CurlMulti.select` at 3,000 short downloads, and at 400 at once of 2 s each."""
    if NGINX is None:
        pytest.skip('NOT TESTED: nginx is not installed: apt-get install nginx')
    port, figures = free_port(), {}
    (tmp_path / 'file').write_bytes(b'x' * 5_000)
    user = 'user root;' if os.geteuid() == 0 else ''
    (tmp_path / 'nginx.conf').write_text(NGINX_CONF.format(port=port, root=tmp_path, user=user))
    with service([NGINX, '-p', str(tmp_path), '-e', 'stderr', '-c', str(tmp_path / 'nginx.conf')], port):
        for path, count, most in ('file', 3000, 100), ('slow/file', 400, 400):
            for name, source in ('select', SELECT), ('reactor', OURS):
                command = [sys.executable, '-c', source, f'http://127.0.0.1:{port}/{path}', str(count), str(most)]
                began = time.monotonic()
                child = subprocess.run(command, capture_output=True, text=True, timeout=30)
                good, cpu, waits = json.loads(child.stdout)
                assert good == count, child.stderr
                figures[name, count] = cpu
                with capsys.disabled():
                    print(f'\n{name}: {count} in {time.monotonic() - began:.1f} s, {cpu:.2f} s of CPU, {waits} waits')
    assert (
        figures['reactor', 3000] < 5 * figures['select', 3000]
    )  # with callbacks in Python for each change of a socket
