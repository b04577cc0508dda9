"""The recipe http2_client.py, tested with an nginx that is killed while it answers."""

from __future__ import annotations

import hashlib
import random
import runpy
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from perf.faults.nginx import COMMAND as NGINX
from reactor import Reactor
from tests.examples.test_examples import EXAMPLES, example
from tests.examples.test_service_clients import Running, free_port, service
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import run_until
from tests.recipes.usage import cpu, descriptors, wakeups

pytest.importorskip('h2', reason='NOT TESTED: h2 is not installed: pip install h2')
pytestmark = pytest.mark.skipif(NGINX is None, reason='NOT TESTED: nginx is not installed: apt-get install nginx-light')
RECIPE = EXAMPLES / 'recipes/http2_client.py'
# One process, so that a single SIGKILL ends the server.
CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/temp;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp;
    scgi_temp_path {folder}/temp;
    keepalive_requests {requests};
    http2_max_concurrent_streams {streams};
    server {{
        listen 127.0.0.1:{port} ssl{http2};
        ssl_certificate {certificates}/server.pem;
        ssl_certificate_key {certificates}/server.key;
        root {folder};
    }}
}}
"""
SIZES = {'empty': 0, 'small': 100, 'page': 30_000, 'large': 400_000, 'huge': 5_000_000}
REQUESTS = 2000


@contextmanager
def nginx(folder, certificates, requests=1_000_000, streams=128, http2=' http2'):  # noqa: F811
    port = free_port()
    for name, size in SIZES.items():
        (folder / name).write_bytes(hashlib.shake_128(name.encode()).digest(size))
    config = folder / 'nginx.conf'
    config.write_text(CONFIG.format(
        folder=folder, port=port, certificates=certificates.folder, requests=requests, streams=streams, http2=http2
    ))  # fmt: skip
    with service([NGINX, '-p', str(folder), '-e', 'stderr', '-c', str(config)], port) as (start, kill, _):
        yield port, start, kill


@contextmanager
def client(port, certificates, **options):  # noqa: F811
    context = certificates.client()
    context.set_alpn_protocols(['h2'])
    with Reactor() as r:
        client = runpy.run_path(str(RECIPE))['Client'](r, 'localhost', port, context, **options)
        yield r, client
        client.client.stop()
        assert r.run()


class Answers:
    """Checks the answers against the files."""

    def __init__(self, folder):
        self.files = {f'/{name}': (folder / name).read_bytes() for name in SIZES}
        self.right, self.errors, self.most = 0, [], 0

    def on_done(self, get, error):
        if error is not None:
            self.errors.append(error)
        else:
            assert get.status == 200
            assert bytes(get.body) == self.files[get.path], get.path
            self.right += 1


def test_answers_are_those_that_curl_gets(certificates, tmp_path):  # noqa: F811
    with nginx(tmp_path, certificates) as (port, _, _):
        trust = '--cafile', str(certificates.authority)
        command = [sys.executable, '-X', 'dev', '-W', 'error', str(RECIPE), 'localhost', '--port', str(port), *trust]
        with Running(*command) as caller:
            for name in [*SIZES, 'missing']:
                curl = ['curl', '-s', '--http2', '--cacert', str(certificates.authority)]
                shown = ['-o', '/dev/null', '-w', '%{http_code}, %{size_download} bytes']
                answer = subprocess.run(
                    [*curl, *shown, f'https://localhost:{port}/{name}'], capture_output=True, text=True
                )
                caller.say(f'/{name}')
                caller.expect(f'/{name}: {answer.stdout}')
            rate = wakeups(caller.process.pid, 2)
            print(f'{rate:.1f} wake-ups a second')
            assert rate < 2


@pytest.mark.parametrize('streams', [1, 10, 128])
def test_no_more_streams_are_opened_than_the_server_allows(certificates, tmp_path, streams):  # noqa: F811
    with nginx(tmp_path, certificates, streams=streams) as (port, _, _), client(port, certificates) as (r, caller):
        answers, most = Answers(tmp_path), 0
        for _ in range(300):
            caller.get('/page', answers.on_done)
        while caller.requests:
            r.run_once(0.05)
            most = max(most, len(caller.streams))
        run_until(r, lambda: answers.right == 300)
        assert caller.retried == 0  # the server has refused none
        assert most == min(streams, 100)


def test_each_request_is_answered_although_the_server_is_killed(certificates, tmp_path):  # noqa: F811
    with nginx(tmp_path, certificates) as (port, start, kill), client(port, certificates) as (r, caller):
        answers, draw = Answers(tmp_path), random.Random(1)
        before = descriptors(None)
        for _ in range(REQUESTS):
            name = draw.choices(list(SIZES), [10, 50, 30, 10, 0.1])[0]
            caller.get(f'/{name}', answers.on_done)
        begin, used = time.monotonic(), cpu(None)
        kills = iter([REQUESTS // 4, REQUESTS // 2])
        for count in kills:
            run_until(r, lambda count=count: answers.right >= count, 60)
            kill()
            run_until(r, lambda: not caller.ready)
            idle = cpu(None)
            r.call_later(0.3, r.stop)
            r.run()
            assert cpu(None) - idle < 0.2, 'busy while there is no server'
            start()
        run_until(r, lambda: not caller.requests, 60)
        run_until(r, lambda: answers.right + len(answers.errors) == REQUESTS)
        print(f'{answers.right} of {REQUESTS} answered, {caller.retried} sent again, {caller.client.ups} connections, '
              f'{time.monotonic() - begin:.1f} s, {cpu(None) - used:.1f} s of CPU')  # fmt: skip
        assert not answers.errors
        assert 0 < caller.retried <= 200
        assert caller.client.ups == 3
        assert descriptors(None) <= before + 1


def test_requests_go_on_when_the_server_ends_connections_with_goaway(certificates, tmp_path):  # noqa: F811
    with nginx(tmp_path, certificates, requests=200) as (port, _, _), client(port, certificates) as (r, caller):
        answers = Answers(tmp_path)
        for _ in range(1000):
            caller.get('/small', answers.on_done)
        run_until(r, lambda: answers.right + len(answers.errors) == 1000, 30)
        print(f'{caller.client.ups} connections, {caller.retried} sent again, errors {answers.errors[:1]}')
        assert not answers.errors
        assert caller.client.ups >= 5


def test_a_request_has_a_time_limit(certificates, tmp_path):  # noqa: F811
    with nginx(tmp_path, certificates) as (port, start, kill):
        kill()
        with client(port, certificates, timeout=0.3) as (r, caller):
            answers = Answers(tmp_path)
            caller.get('/small', answers.on_done)
            run_until(r, lambda: answers.errors)
            assert isinstance(answers.errors[0], TimeoutError)
        start()


def test_a_server_without_http_2_is_reported(certificates, tmp_path):  # noqa: F811
    with nginx(tmp_path, certificates, http2='') as (port, _, _), client(port, certificates) as (r, caller):
        answers = Answers(tmp_path)
        caller.get('/small', answers.on_done)
        run_until(r, lambda: answers.errors)
        caller.get('/small', answers.on_done)  # this one is not even tried
        run_until(r, lambda: len(answers.errors) == 2)
        assert f'localhost:{port} does not speak HTTP/2' in str(answers.errors[1])


def test_the_client_and_the_server_among_the_recipes_understand_each_other(certificates):  # noqa: F811
    cert, key = certificates.folder / 'server.pem', certificates.folder / 'server.key'
    with example('recipes/http2_server.py', '--port', '0', '--cert', str(cert), '--key', str(key)) as (_, port):
        with client(port, certificates) as (r, caller):
            sizes = []
            for number in range(500):
                caller.get(f'/bytes/{number * 1000}', lambda get, error: sizes.append(error or len(get.body)))
            run_until(r, lambda: len(sizes) == 500, 30)
            assert sorted(sizes) == [number * 1000 for number in range(500)]
            assert (caller.client.ups, caller.retried) == (1, 0)
