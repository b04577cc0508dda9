"""The recipe http2_server.py, tested with curl."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import subprocess
import time

import psutil
import pytest

from tests.examples.test_examples import example
from tests.helpers.certificates import certificates  # noqa: F401
from tests.recipes.usage import cpu, descriptors, wakeups

h2 = pytest.importorskip('h2.connection', reason='NOT TESTED: h2 is not installed: pip install h2')
events = pytest.importorskip('h2.events')
CURL = shutil.which('curl')
HTTP2 = CURL is not None and 'HTTP2' in subprocess.run([CURL, '--version'], capture_output=True, text=True).stdout
pytestmark = pytest.mark.skipif(not HTTP2, reason='NOT TESTED: no curl with HTTP/2 is installed: apt-get install curl')
RECIPE = 'recipes/http2_server.py'


def curl(*options, **keywords):
    command = [CURL, '-sS', '--max-time', '60', *map(str, options)]
    return subprocess.run(command, capture_output=True, check=True, **keywords).stdout


def test_curl_with_prior_knowledge_downloads_and_uploads():
    body = hashlib.shake_128(b'body').digest(3_000_000)  # larger than all windows, so flow control is needed
    with example(RECIPE, '--port', '0') as (_, port):
        url = f'http://127.0.0.1:{port}'
        known = '--http2-prior-knowledge'
        assert curl(known, '-w', '%{http_code} %{http_version}', f'{url}/bytes/0') == b'200 2'
        assert curl(known, f'{url}/bytes/3000000') == bytes(3_000_000)
        assert curl(known, '--data-binary', '@-', f'{url}/echo', input=body) == body
        assert curl(known, '-w', '%{http_code}', f'{url}/other') == b'404'
        assert curl(known, '--data-binary', '@-', '-w', '%{http_code}', f'{url}/other', input=body) == b'404'


def test_curl_over_tls_chooses_http_2(certificates):  # noqa: F811
    cert, key = certificates.folder / 'server.pem', certificates.folder / 'server.key'
    with example(RECIPE, '--port', '0', '--cert', str(cert), '--key', str(key)) as (_, port):
        url, trust = f'https://localhost:{port}', ('--cacert', certificates.authority)
        assert curl('--http2', *trust, '-w', '%{http_version}', f'{url}/bytes/3000000') == bytes(3_000_000) + b'2'
        assert curl('--http1.1', *trust, '-w', '%{http_code}', url) == b'use HTTP/2\n505'


def test_a_hundred_streams_share_a_connection(certificates, tmp_path):  # noqa: F811
    # Over TLS, because curl 7.88 fails with several streams and prior knowledge.
    cert, key = certificates.folder / 'server.pem', certificates.folder / 'server.key'
    body = tmp_path / 'body'
    body.write_bytes(hashlib.shake_128(b'body').digest(100_000))
    with example(RECIPE, '--port', '0', '--cert', str(cert), '--key', str(key)) as (process, port):
        each = f"""
            http2
            cacert = "{certificates.authority}"
            data-binary = "@{body}"
            url = "https://localhost:{port}/echo"
            write-out = "%%{{num_connects}}\\n"
            output = "{tmp_path}/echo-%d"
        """
        transfers = tmp_path / 'curl.conf'
        transfers.write_text('next\n'.join(each % number for number in range(100)))
        begin, used = time.monotonic(), cpu(process.pid)
        connects = curl('--no-progress-meter', '--parallel', '--parallel-max', '100', '-K', transfers).split()
        seconds, used = time.monotonic() - begin, cpu(process.pid) - used
        print(f'100 echoes of 100 kB on one connection in {seconds:.2f} s, {used:.2f} s of CPU')
        assert sum(map(int, connects)) == 1
        for number in range(100):
            assert (tmp_path / f'echo-{number}').read_bytes() == body.read_bytes()


def test_a_client_that_reads_slowly_costs_no_memory_and_no_cpu():
    with example(RECIPE, '--port', '0') as (process, port):
        idle, memory = descriptors(process.pid), psutil.Process(process.pid).memory_info().rss
        command = [
            CURL,
            '-sS',
            '--http2-prior-knowledge',
            '-o',
            '/dev/null',
            f'http://127.0.0.1:{port}/bytes/2000000000',
        ]
        slow = subprocess.Popen([*command, '--limit-rate', '100k'])
        try:
            time.sleep(1.5)
            used, grown = cpu(process.pid), psutil.Process(process.pid).memory_info().rss - memory
            time.sleep(1)
            assert cpu(process.pid) - used < 0.2
            assert grown < 10_000_000
            begin = time.monotonic()
            assert curl('--http2-prior-knowledge', f'http://127.0.0.1:{port}/bytes/1000') == bytes(1000)
            assert time.monotonic() - begin < 1
        finally:
            slow.kill()
            slow.wait()
        until = time.monotonic() + 5
        while descriptors(process.pid) > idle:
            assert time.monotonic() < until, 'the connection of the killed client is still open'
            time.sleep(0.05)
        rate = wakeups(process.pid, 2)
        print(f'{rate:.1f} wake-ups a second')
        assert rate < 2


def test_a_frame_that_is_not_allowed_is_answered_with_goaway():
    with example(RECIPE, '--port', '0') as (_, port), socket.create_connection(('127.0.0.1', port), 10) as sock:
        settings, data_on_stream_0 = b'\0\0\0\4\0\0\0\0\0', b'\0\0\1\0\0\0\0\0\0x'
        sock.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + settings + data_on_stream_0)
        received = b''
        while data := sock.recv(1000):
            received += data
        assert re.search(rb'\x00\x00.\x07\x00\x00\x00\x00\x00', received, re.DOTALL)  # a frame of type 7: GOAWAY


def test_requests_that_are_reset_at_once_do_not_disturb_others():
    connection = h2.H2Connection()
    connection.initiate_connection()
    headers = {':method': 'POST', ':path': '/echo', ':scheme': 'http', ':authority': 'localhost'}
    with example(RECIPE, '--port', '0') as (_, port), socket.create_connection(('127.0.0.1', port), 10) as sock:
        for number in range(500):
            stream = connection.get_next_available_stream_id()
            connection.send_headers(stream, list(headers.items()))
            if number % 2:
                connection.send_data(stream, b'x' * 100)
            connection.reset_stream(stream)
        sock.sendall(connection.data_to_send())
        assert curl('--http2-prior-knowledge', f'http://127.0.0.1:{port}/bytes/100000') == bytes(100_000)
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, list(headers.items()))
        connection.send_data(stream, b'hello', end_stream=True)
        sock.sendall(connection.data_to_send())
        received = []
        while not any(isinstance(event, events.StreamEnded) for event in received):
            received += connection.receive_data(sock.recv(65536))
            sock.sendall(connection.data_to_send())
        assert [event.data for event in received if isinstance(event, events.DataReceived)] == [b'hello']
