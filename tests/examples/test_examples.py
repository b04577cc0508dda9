"""Run each example like a user, and check that it works as its docstring says."""

from __future__ import annotations

import re
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from reactor import Listener, Reactor, Stream
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import run_until, turns

EXAMPLES = Path(__file__).parents[2] / 'examples'
PROGRAMS = sorted([*EXAMPLES.glob('*.py'), *EXAMPLES.glob('porting/*.py')])
LONGER = {
    'http_server.py': 205,
    'https_pool.py': 155,
    'interpreters.py': 75,
    'redis_client.py': 159,
    'rpc.py': 125,
    'resp_server.py': 345,
    'service.py': 105,
    'asyncore_relay_original.py': 72,
    'port_from_asyncio.py': 95,
    'port_from_tornado.py': 100,
    'tornado_original.py': 95,
    'websocket_chat.py': 172,
}  # the maximum number of lines in each of the longer examples
SERVERS = [
    'chargen.py', 'chat.py', 'daytime.py', 'discard.py', 'echo.py', 'embed.py', 'live_page.py', 'observed.py',
    'proxy.py', 'resp_server.py', 'rpc.py', 'seed.py', 'service.py', 'starttls.py', 'tls_echo.py', 'tls_service.py',
    'udp_echo.py', 'workers.py',
]  # fmt: skip
SIGNALS = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGHUP, and cannot send SIGINT to a child')


def needs(*commands):
    missing = [command for command in commands if shutil.which(command) is None]
    return pytest.mark.skipif(bool(missing), reason=f'not tested with a real client: {missing} not installed')


@contextmanager
def example(name, *options, warnings='error', mode='dev'):
    """Run an example and yield (process, port). At the end, interrupt it and check that it exits without an error.

    `process.printed` has the lines that the example printed, up to the line with the port.
    """
    process = subprocess.Popen(
        [sys.executable, '-X', mode, '-W', warnings, str(EXAMPLES / name), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        process.printed = []
        for line in process.stdout:
            process.printed.append(line)
            if found := re.search(r'listening on .*?(\d+)$', line):
                break
        else:
            raise AssertionError(process.stderr.read())
        yield process, int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, errors
    if name == 'live_page.py':  # this example logs slow callbacks, and on a busy machine any callback can be slow
        errors = re.sub(r'^slow .*\n', '', errors, flags=re.MULTILINE)
    assert not errors


@contextmanager
def client(port):
    with socket.create_connection(('127.0.0.1', port), timeout=10) as sock:
        yield sock


def read_to_end(sock):
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b''.join(pieces)


def read_until(sock, end):
    received = b''
    while end not in received:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return received


def shown(path):
    """Return the lines of output that the docstring of an example shows below its command."""
    name = re.escape(str(path.relative_to(EXAMPLES)))
    text = path.read_text().split('"""')[1]
    found = re.search(rf'^    \$ python(?:3\.1[14])? examples/{name}.*\n((?:    [^$ ].*\n)+)', text, re.MULTILINE)
    assert found, f'{path.name} does not say what to run and what is printed'
    return [line.removeprefix('    ') for line in found[1].splitlines()]


def without_numbers(lines):
    return [re.sub(r'\d+', 'N', line.rstrip('\n')) for line in lines]


def check_end(name, signum, *options, **how):
    """Run a server, compare its output with its docstring, connect to it, and end it with a signal."""
    with example(name, *options, **how) as (process, port):
        expected = shown(EXAMPLES / name)[: len(process.printed)]
        assert without_numbers(process.printed) == without_numbers(expected)
        with socket.socket(type=socket.SOCK_DGRAM if name == 'udp_echo.py' else socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect(('127.0.0.1', port))
            if name == 'udp_echo.py':
                sock.send(b'hello')
                assert sock.recv(100) == b'hello'
            process.send_signal(signum)
            # The other servers exit only after their clients have disconnected.
            if name != 'seed.py' and (signum is signal.SIGINT or 'relay' not in name):
                assert process.wait(20) == 0
        assert process.wait(20) == 0


@pytest.mark.parametrize('path', PROGRAMS, ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_to_run_and_what_is_printed(path):
    text = path.read_text()
    assert text.startswith('"""') and shown(path)
    assert len(text.split('"""', 2)[2].splitlines()) <= LONGER.get(path.name, 66)


def test_the_page_of_recipes_and_examples_lists_each_of_them():
    text = (EXAMPLES.parent / 'docs' / 'recipes.md').read_text()
    for path in [*EXAMPLES.glob('*.py'), *EXAMPLES.glob('recipes/*.py')]:
        assert f'](../{path.relative_to(EXAMPLES.parent)})' in text, path.name
    for folder in (
        path for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in ('recipes', '__pycache__')
    ):
        assert f'/{folder.name}.md)' in text or f']({folder.name}/' in text, folder.name


@SIGNALS
@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
@pytest.mark.parametrize('name', SERVERS)
def test_a_server_says_where_it_listens_and_ends_cleanly(name, signum, request, tmp_path):
    if name in ('starttls.py', 'tls_echo.py', 'tls_service.py') and not shutil.which('openssl'):
        pytest.skip('no certificate: openssl is not installed')
    with socket.create_server(('127.0.0.1', 0)) as behind:
        options = {
            'live_page.py': ['--page', '0'],
            'observed.py': ['--page', '0', '--workers', '1', '--control', str(tmp_path / 'control')],
            'proxy.py': ['--to', f'127.0.0.1:{behind.getsockname()[1]}'],
            'service.py': ['--listen', '127.0.0.1:0'],
            'workers.py': ['--workers', '1'],
        }.get(name, [])
        if name == 'tls_service.py':
            folder = request.getfixturevalue('certificates').folder
            options = ['--name', 'default', str(folder / 'server.pem'), str(folder / 'server.key')]
        if name != 'service.py':
            options = ['--port', '0', *options]
        check_end(name, signum, *options)


def test_every_server_among_the_examples_is_tested():
    servers = {path.name for path in EXAMPLES.glob('*.py') if "'listening on" in path.read_text().replace("f'", "'")}
    servers |= {path.name for path in EXAMPLES.glob('*.py') if 'serve.run' in path.read_text()}
    assert servers == {*SERVERS, 'http_server.py', 'websocket_chat.py'}  # test_http_examples.py tests two


def test_seed_answers_after_its_delay_and_counts_it():
    with example('seed.py', '--port', '0', '--delay', '0.2') as (process, port):
        with client(port) as sock:
            began = time.monotonic()
            sock.sendall(b'GET / HTTP/1.1\r\n\r\n')
            reply = read_to_end(sock)
            assert time.monotonic() - began >= 0.2
        assert reply.endswith(b'\r\n\r\nomglolwtf') and len(reply) == 110
        printed = ''.join(process.stdout.readline() for _ in range(10))
    assert re.fullmatch(r'(incoming: 0\noutgoing: 0\nfinished: \d+\nrate: \d+\.\d{3} req/s\n\n){2}', printed)


def test_seed_answers_open_requests_after_ctrl_c():
    with example('seed.py', '--port', '0', '--delay', '0.5') as (process, port), client(port) as sock:
        sock.sendall(b'GET / HTTP/1.1\r\n\r\n')
        process.stdout.readline()
        time.sleep(0.1)  # give the server time to read the request, because nothing signals that it has
        process.send_signal(signal.SIGINT)
        assert read_to_end(sock).endswith(b'omglolwtf')
        assert process.stdout.read().endswith('TCP server exited.\n')


def test_echo_sends_back_a_megabyte_to_a_client_that_reads_late():
    with example('echo.py', '--port', '0') as (_, port), client(port) as sock:
        sent = bytes(range(256)) * 4096
        sock.setblocking(False)
        received, position = b'', 0
        deadline = time.monotonic() + 20
        while len(received) < len(sent) and time.monotonic() < deadline:
            try:
                position += sock.send(sent[position : position + 65536]) if position < len(sent) else 0
            except BlockingIOError:
                pass
            if position == len(sent) or position > 1 << 19:
                try:
                    received += sock.recv(1 << 16)
                except BlockingIOError:
                    pass
        assert received == sent


def test_udp_echo_sends_back_each_datagram_to_its_sender():
    with example('udp_echo.py', '--port', '0') as (_, port), socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(('127.0.0.1', port))
        for data in b'hello', b'', bytes(range(256)) * 200:
            sock.send(data)
            assert sock.recv(65536) == data


@pytest.mark.scenario(98)
def test_udp_echo_survives_datagrams_of_any_size():
    with example('udp_echo.py', '--port', '0') as (_, port), socket.socket(type=socket.SOCK_DGRAM) as sock:
        for size in range(0, 60_000, 500):
            with socket.socket(type=socket.SOCK_DGRAM) as gone:  # closed before the answer arrives
                gone.sendto(b'\xff' * size, ('127.0.0.1', port))
        sock.settimeout(1)
        for _ in range(10):  # the flood can cause datagrams to be dropped
            sock.sendto(b'hello', ('127.0.0.1', port))
            try:
                assert sock.recv(100) == b'hello'
                break
            except TimeoutError:
                continue
        else:
            raise AssertionError('no answer')


def test_discard_counts_the_bytes_that_it_dropped():
    with example('discard.py', '--port', '0') as (process, port):
        with client(port) as sock:
            sock.sendall(b'x' * 1_000_000)
        assert process.stdout.readline() == '1,000,000 bytes\n'


def test_chargen_writes_only_as_fast_as_the_client_reads():
    with example('chargen.py', '--port', '0') as (_, port), client(port) as sock, client(port) as stalled:
        received = b''
        while len(received) < 1_000_000:
            received += sock.recv(65536)
        lines = received.split(b'\r\n')
        assert all(len(line) == 72 for line in lines[:-1])
        assert lines[0].startswith(b'0123456789') and lines[1].startswith(b'123456789')
        assert stalled.recv(74) == lines[0] + b'\r\n'


def test_daytime_sends_the_time_and_closes():
    with example('daytime.py', '--port', '0') as (_, port), client(port) as sock:
        assert re.fullmatch(rb'\w+, \w+ \d\d, \d{4} \d\d:\d\d:\d\d-.*\r\n', read_to_end(sock))


def test_chat_passes_lines_to_all_other_clients():
    with example('chat.py', '--port', '0') as (_, port), client(port) as anna, client(port) as ben:
        name = read_until(anna, b' here\n').split()[2].strip(b',')
        read_until(ben, b' here\n')
        anna.sendall(b'hel')
        anna.sendall(b'lo\n')
        assert name + b': hello\n' in read_until(ben, b'hello\n')
        anna.close()
        assert read_until(ben, b'left\n').endswith(name + b' left\n')


def test_proxy_passes_both_ways_and_half_closes():
    with example('echo.py', '--port', '0') as (_, echo_port):
        with example('proxy.py', '--port', '0', '--to', f'127.0.0.1:{echo_port}') as (_, port), client(port) as sock:
            sock.sendall(b'through both')
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b'through both'


def test_proxy_without_its_server_ends_the_client():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        unused = taken.getsockname()[1]
    with example('proxy.py', '--port', '0', '--to', f'127.0.0.1:{unused}') as (_, port):
        # The reset may arrive while `client` is still connecting.
        with pytest.raises(ConnectionResetError), client(port) as sock:
            sock.recv(1)


def test_timers_end_by_themselves():
    done = subprocess.run(
        [sys.executable, '-W', 'error', str(EXAMPLES / 'timers.py')],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    printed = [line.split('s  ')[-1] for line in done.stdout.splitlines()]
    assert printed == ['first', *['tick'] * 5, 'the watchdog barks', 'nothing is left to wait for']
    assert not done.stderr


def run_example(name, *options):
    """Run an example until it exits; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, '-X', 'dev', '-W', 'error', str(EXAMPLES / name), *options],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_dns_looks_up_many_names_and_prints_each_once():
    lines = run_example('dns.py', 'localhost', '127.0.0.1', 'nope.invalid', 'also.invalid', '--timeout', '30')
    printed = dict(line.split(': ', 1) for line in lines)
    assert len(lines) == 4
    assert set(printed['localhost'].split(', ')) <= {'127.0.0.1', '::1'}
    assert printed['127.0.0.1'] and 'cannot look up' not in printed['127.0.0.1']
    assert all('cannot look up' in printed[name] for name in ('nope.invalid', 'also.invalid'))


def test_threads_prints_results_errors_and_steps():
    lines = run_example('threads.py')
    assert lines[-1] == 'ended'
    assert [line for line in lines if line.startswith('step')] == ['step 0', 'step 1', 'step 2']
    assert len({line for line in lines if re.fullmatch('digest [0-9a-f]{16}', line)}) == 4
    assert len([line for line in lines if line.startswith('failed: ValueError')]) == 1


@pytest.mark.skipif(not hasattr(select, 'epoll') and not hasattr(select, 'kqueue'), reason='no selector with fileno()')
def test_embed_serves_from_a_foreign_loop():
    with example('embed.py', '--port', '0') as (process, port), client(port) as sock:
        sock.sendall(b'hello')
        assert sock.recv(100) == b'hello'
        assert process.stdout.readline() == '1 connections\n'
        sock.sendall(b'quit')
        assert read_to_end(sock) == b'quit'
        assert process.wait(10) == 0  # the reactor had nothing left to wait for, so the foreign loop ended


@SIGNALS
def test_signals_are_handled_in_the_loop():
    process = subprocess.Popen([sys.executable, str(EXAMPLES / 'signals.py')], stdout=subprocess.PIPE, text=True)
    assert f'pid {process.pid} is waiting' in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline().startswith('SIGHUP: ')
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == 'SIGTERM: finishing\nended\n'
    assert process.returncode == 0


@needs('openssl')
def test_tls_echo_makes_its_own_certificate():
    with example('tls_echo.py', '--port', '0') as (_, port):
        talk = ['openssl', 's_client', '-connect', f'127.0.0.1:{port}', '-quiet', '-no_ign_eof']
        with subprocess.Popen(talk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as talker:
            talker.stdin.write(b'hello\n')
            talker.stdin.flush()
            assert talker.stdout.readline() == b'hello\n'


@needs('openssl', 'curl')
def test_tls_echo_asks_for_certificates(certificates):  # noqa: F811
    cert, key, authority = (str(certificates.folder / name) for name in ('client.pem', 'client.key', 'authority.pem'))
    server = [str(certificates.folder / name) for name in ('server.pem', 'server.key')]
    files = ['--cert', server[0], '--key', server[1], '--ca', authority]
    with example('tls_echo.py', '--port', '0', *files) as (_, port):
        talk = ['curl', '--http0.9', '-sS', '-m', '1', '--cacert', authority, f'https://localhost:{port}/']
        known = subprocess.run([*talk, '--cert', cert, '--key', key], capture_output=True, check=False)
        assert known.stdout.startswith(b'hello client\nGET / HTTP/1.1\r\n'), known.stderr
        stranger = subprocess.run(talk, capture_output=True, check=False)
        assert stranger.returncode and not stranger.stdout
        assert b'certificate required' in stranger.stderr or b'SSL' in stranger.stderr


@pytest.mark.scenario(151)
@SIGNALS
@needs('openssl', 'curl')
def test_tls_service_renews_its_certificates_and_keeps_them_when_it_cannot(certificates, tmp_path):  # noqa: F811
    live = tmp_path / 'live.pem', tmp_path / 'live.key'

    def put(name, key):
        shutil.copy(certificates.issue(name, 'example.org')[0], live[0])
        shutil.copy(certificates.folder / f'{key}.key', live[1])

    def shown():
        talk = ['curl', '-sSv', '-m', '20', '--resolve', f'example.org:{port}:127.0.0.1']
        done = subprocess.run(
            [*talk, '--cacert', certificates.authority, f'https://example.org:{port}/'], capture_output=True, text=True
        )
        assert done.stdout.startswith('TLSv1.3 with TLS_'), done.stderr
        return re.search(r'subject: *CN ?= ?(\w+)', done.stderr)[1]

    put('first', 'first')
    with example('tls_service.py', '--port', '0', '--name', 'example.org', *map(str, live)) as (process, port):
        assert shown() == 'first'
        put('second', 'second')
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().startswith('certificates valid until 2')
        assert shown() == 'second'
        put('third', 'second')
        process.send_signal(signal.SIGHUP)
        assert f'the key in {live[1]} does not belong' in process.stdout.readline()
        assert shown() == 'second'


@pytest.mark.scenario(113)
@SIGNALS
@needs('openssl')
def test_tls_service_answers_the_clients_that_it_has_accepted_before_it_ends(certificates):  # noqa: F811
    files = [str(certificates.folder / name) for name in ('server.pem', 'server.key')]
    request = b'GET / HTTP/1.1\r\n\r\n'
    with (
        example('tls_service.py', '--port', '0', '--name', 'default', *files) as (process, port),
        client(port) as connected,
        client(port) as idle,
    ):
        context = certificates.client()
        with context.wrap_socket(idle, server_hostname='localhost') as idle:
            process.send_signal(signal.SIGTERM)
            with context.wrap_socket(connected, server_hostname='localhost') as late:  # its handshake begins only now
                late.sendall(request)
                assert b'TLSv1.3 with TLS_' in read_to_end(late)
            assert read_to_end(idle) == b''
        assert process.wait(10) == 0


@pytest.mark.scenario(93)
@needs('openssl')
def test_starttls_upgrades_a_connection_to_tls():
    with example('starttls.py', '--port', '0') as (_, port):
        talk = ['openssl', 's_client', '-connect', f'127.0.0.1:{port}', '-starttls', 'smtp', '-quiet', '-crlf']
        with subprocess.Popen(talk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as talker:
            talker.stdin.write(b'noop\nquit\n')
            talker.stdin.flush()
            assert talker.stdout.read().endswith(b'250 over TLSv1.3\r\n221 bye\r\n')
        with client(port) as sock:
            read_until(sock, b'ready\r\n')
            sock.sendall(b'STARTTLS\r\nNOOP\r\n')
            assert read_to_end(sock) == b'554 nothing may follow STARTTLS\r\n'


def tail(*command):
    return subprocess.Popen([sys.executable, '-X', 'dev', '-W', 'error', str(EXAMPLES / 'process_tail.py'), *command],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.skipif(sys.platform == 'win32', reason='pipes of children cannot be watched on Windows')
def test_process_tail_prefixes_lines_and_exits_like_its_command():
    process = tail('sh', '-c', 'echo one; echo two >&2; printf three; exit 7')
    printed, errors = process.communicate(timeout=20)
    assert process.returncode == 7 and not errors
    number = re.match(r'\[(\d+)\] ', printed)[1]
    assert sorted(printed.splitlines()) == [f'[{number}] ! two', f'[{number}] one', f'[{number}] three']


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows cannot send SIGINT to a child')
def test_process_tail_ends_its_command_after_ctrl_c():
    process = tail('sh', '-c', 'echo ready; exec sleep 60')
    assert process.stdout.readline().endswith('ready\n')
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert process.communicate() == ('', '')


def test_process_tail_reports_in_one_line_a_command_that_cannot_be_run():
    process = tail('/no/such/command')
    assert process.communicate(timeout=20) == ('', 'process_tail.py: /no/such/command: No such file or directory\n')
    assert process.returncode == 1


@SIGNALS
def test_several_workers_echo_and_are_replaced_on_sighup():
    with example('workers.py', '--port', '0', '--workers', '2') as (process, port), client(port) as first:
        greeting = read_until(first, b'\n')
        first.sendall(b'well\n')
        assert read_until(first, b'well\n') == b'well\n'
        others = {greeting}
        while len(others) == 1:
            with client(port) as other:
                others.add(read_until(other, b'\n'))
        process.send_signal(signal.SIGHUP)
        assert read_to_end(first) == b''  # the old worker exits when the new workers are serving
        with client(port) as other:
            assert read_until(other, b'\n') not in others


PORTS = [
    'port_from_asyncore.py',
    pytest.param(
        'asyncore_original.py',
        marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason='Python 3.12 and later have no asyncore'),
    ),
]


@pytest.mark.parametrize('name', PORTS)
def test_the_port_from_asyncore_answers_like_the_original(name):
    running = example(f'porting/{name}', '--port', '0', warnings='ignore')
    with running as (_, port), client(port) as sock, client(port) as other:
        assert read_until(sock, b'\r\n') == b'220 ready\r\n'
        assert read_until(other, b'\r\n') == b'220 ready\r\n'
        sock.sendall(b'say one\r\nSAY  two words\r\nsa')
        assert read_until(sock, b'two words\r\n') == b'250 one\r\n250 two words\r\n'
        sock.sendall(b'y three\r\nnonsense\r\n\r\ncount\r\nquit\r\nsay no more\r\n')
        assert read_to_end(sock) == b'250 three\r\n500 unknown\r\n500 unknown\r\n250 6\r\n221 bye\r\n'
        other.sendall(b'count\r\n' + b'x' * 5000 + b'\r\n')
        assert read_until(other, b'\r\n') == b'250 1\r\n'
        try:
            assert read_to_end(other) == b''
        except ConnectionResetError:
            pass  # a client is disconnected when it sends a line that is too long


@pytest.mark.parametrize('name', ['chat', 'discard', 'resp_server'])
def test_an_example_handles_a_client_that_is_closed_before_on_connect(name, capsys):
    main = runpy.run_path(str(EXAMPLES / f'{name}.py'))['main']
    errors = []
    with Reactor(catch_errors=lambda exc, handle: errors.append(exc)) as r:
        main(r, 0)
        (listener,) = (handle for handle in r.handles() if isinstance(handle, Listener))
        with socket.create_connection(listener.address):
            r.call_soon(lambda: [handle.close() for handle in r.handles()])  # runs in the turn that accepts the client
            turns(r, 3)
        assert r.stats().accepts == 1 and errors == []


def test_an_empty_line_after_a_request_does_not_delay_the_drain_of_the_service(capsys):
    listen = runpy.run_path(str(EXAMPLES / 'service.py'))['listen']
    with Reactor() as r, socket.create_server(('127.0.0.1', 0)) as sock:
        listen(r, [sock])
        with socket.create_connection(sock.getsockname()) as client:
            client.sendall(b'GET / HTTP/1.1\r\n\r\n\r\n')
            run_until(r, lambda: r.stats().requests)
            turns(r, 3)
            assert client.recv(4096).startswith(b'HTTP/1.1 200 OK')
            assert not any(handle.busy for handle in r.handles() if isinstance(handle, Stream))
            r.drain(10, 0)
            r.call_later(5, r.stop)
            r.run()
            assert client.recv(1) == b''  # closed cleanly


def test_a_chat_room_is_tested_in_simulation_and_its_bug_is_found():
    assert '2 passed' in run_example('test_with_simulation.py', '-p', 'no:cacheprovider')[-1]
    one_seed = ['-k', 'fixed', '--seed', '3', '-p', 'no:cacheprovider']
    assert '1 passed' in run_example('test_with_simulation.py', *one_seed)[-1]
