"""Well-known HTTP clients use the demo's server (Debian: curl socat wrk apache2-utils httperf)."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.demo.test_demo import pytestmark as pytestmark
from tests.demo.test_demo import serving


def client(name, *options, **popen):
    """Run a client program; skip the test if the program is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f'{name} is not installed: apt-get install curl socat wrk apache2-utils httperf')
    return subprocess.run([name, *options], capture_output=True, text=True, timeout=60, **popen)


@pytest.fixture
def server():
    """The address of a running server, which must not log, must not crash, and must exit with status 0."""
    with serving('--delay', '0.02', '--no-stats') as (process, port):
        yield f'127.0.0.1:{port}'
        assert process.poll() is None, process.stderr.read()
        process.terminate()
        printed, errors = process.communicate(timeout=10)
    assert (process.returncode, printed, errors) == (0, 'TCP server exited.\n', '')


def test_curl_reads_the_whole_answer(server):
    done = client('curl', '-sS', '-i', f'http://{server}/')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('HTTP/1.1 200 OK\n') and done.stdout.endswith('omglolwtf')


def test_socat_and_nc_close_their_side_after_the_request_and_get_the_answer(server):
    """`printf 'x\\r\\n' | nc -N` behaves like this, too."""
    done = client('socat', '-t5', '-', f'TCP:{server}', input='x\r\n')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('HTTP/1.1 200 OK\n') and done.stdout.endswith('omglolwtf')


def test_ab_counts_no_failure(server):
    done = client('ab', '-q', '-n', '2000', '-c', '200', f'http://{server}/')
    assert done.returncode == 0, done.stderr
    assert re.search(r'Complete requests:\s+2000\nFailed requests:\s+0\n', done.stdout)


def test_wrk_gets_an_answer_on_each_connection(server):
    done = client('wrk', '-t1', '-c50', '-d2', f'http://{server}/')
    assert done.returncode == 0, done.stderr
    requests = int(re.search(r'(\d+) requests in', done.stdout)[1])
    assert requests > 100
    # wrk expects to send another request, but the server closes each connection after one response.
    connect, read, write, timeout = map(
        int, re.search(r'connect (\d+), read (\d+), write (\d+), timeout (\d+)', done.stdout).groups()
    )
    assert (connect, write, timeout) == (0, 0, 0) and read <= requests + 50


def test_httperf_gets_every_answer(server):
    host, _, port = server.partition(':')
    done = client('httperf', '--hog', f'--server={host}', f'--port={port}', '--num-conns=1000', '--rate=1000')
    assert 'connections 1000 requests 1000 replies 1000' in done.stdout
    assert 'Errors: total 0' in done.stdout


def test_httperf_gets_end_of_file_after_one_complete_reply_even_if_it_expects_more(server):
    host, _, port = server.partition(':')
    done = client('httperf', '--hog', f'--server={host}', f'--port={port}', '--num-conns=200', '--num-calls=10',
                  '--rate=500')  # fmt: skip
    assert 'replies 200 ' in done.stdout
    assert re.search(r'Errors: total \d+ client-timo 0 socket-timo 0 connrefused 0 connreset', done.stdout)
