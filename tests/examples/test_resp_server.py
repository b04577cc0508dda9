"""The key-value server among the examples: its answers and limits, and Redis' own clients (Debian: redis-tools)."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time

import pytest

from tests.examples.test_examples import client, example, read_to_end


@pytest.fixture
def port():
    with example('resp_server.py', '--port', '0') as (_, port):
        yield port


@pytest.fixture
def ask(port):
    """A function that sends bytes, and compares the answer with the expected bytes."""
    with client(port) as sock:

        def ask(sent, expected):
            sock.sendall(sent)
            answer = b''
            while len(answer) < len(expected):
                piece = sock.recv(1 << 20)
                assert piece, answer
                answer += piece
            assert answer == expected

        yield ask


def command(*arguments):
    """Encode a command as a client does."""
    sized = b''.join(b'$%d\r\n%b\r\n' % (len(argument), argument) for argument in arguments)
    return b'*%d\r\n%b' % (len(arguments), sized)


def ended(port, sent):
    """Send these bytes, and return everything that the server sends until it closes the connection."""
    with client(port) as sock:
        sock.sendall(sent)
        return read_to_end(sock)


ANSWERS = [
    ('PING', b'+PONG\r\n'),
    ('ping hello', b'$5\r\nhello\r\n'),
    ('ECHO hello', b'$5\r\nhello\r\n'),
    ('GET a', b'$-1\r\n'),
    ('SET a 1', b'+OK\r\n'),
    ('GET a', b'$1\r\n1\r\n'),
    ('SET a 2 NX', b'$-1\r\n'),
    ('SET b 2 XX', b'$-1\r\n'),
    ('SET b 2 nx ex 100', b'+OK\r\n'),
    ('TTL b', b':100\r\n'),
    ('INCR b', b':3\r\n'),
    ('TTL b', b':100\r\n'),
    ('SET b x', b'+OK\r\n'),
    ('TTL b', b':-1\r\n'),
    ('TTL c', b':-2\r\n'),
    ('INCR b', b'-ERR value is not an integer or out of range\r\n'),
    ('INCR new', b':1\r\n'),
    ('MSET x 1 y 2', b'+OK\r\n'),
    ('MGET x nothing y', b'*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n2\r\n'),
    ('MSET x', b"-ERR wrong number of arguments for 'mset' command\r\n"),
    ('EXISTS x y z x', b':3\r\n'),
    ('EXPIRE x 50', b':1\r\n'),
    ('TTL x', b':50\r\n'),
    ('EXPIRE z 50', b':0\r\n'),
    ('EXPIRE y -1', b':1\r\n'),
    ('EXPIRE x soon', b'-ERR value is not an integer or out of range\r\n'),
    ('DEL x y z', b':1\r\n'),
    ('GET', b"-ERR wrong number of arguments for 'get' command\r\n"),
    ('DEL', b"-ERR wrong number of arguments for 'del' command\r\n"),
    ('SET a', b"-ERR wrong number of arguments for 'set' command\r\n"),
    ('SET a 1 EX 0', b"-ERR invalid expire time in 'set' command\r\n"),
    ('SET a 1 EX', b'-ERR value is not an integer or out of range\r\n'),
    ('SET a 1 NX XX', b'-ERR syntax error\r\n'),
    ('CONFIG GET save', b'*2\r\n$4\r\nsave\r\n$0\r\n\r\n'),
    ('CONFIG GET unheard-of', b'*0\r\n'),
    ('CONFIG SET save 1', b'-ERR only CONFIG GET is known\r\n'),
    ('SELECT 0', b'+OK\r\n'),
    ('SELECT 1', b'-ERR DB index is out of range\r\n'),
    ('COMMAND DOCS', b'*0\r\n'),
    ('PUBLISH empty hello', b':0\r\n'),
    ('FLUSHALL', b"-ERR unknown command 'FLUSHALL'\r\n"),
    ('UNSUBSCRIBE', b'*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n'),
    ('QUIT', b'+OK\r\n'),
]


def test_the_answers_follow_the_protocol(ask):
    for text, answer in ANSWERS:
        ask(command(*text.encode().split()), answer)


def test_commands_can_be_typed_by_hand(ask):
    for text, answer in ANSWERS:
        ask(text.encode() + b'\r\n', answer)


def test_a_pipeline_is_answered_in_order_however_it_is_cut(port):
    sent = b''
    for number, (text, _) in enumerate(ANSWERS):
        sent += command(*text.encode().split()) if number % 3 else text.encode() + b'\n'
    expected = b''.join(answer for _, answer in ANSWERS)
    assert ended(port, sent) == expected
    for size in 1, 7, 100:
        with example('resp_server.py', '--port', '0') as (_, another), client(another) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(sent), size):
                sock.sendall(sent[at : at + size])
            assert read_to_end(sock) == expected


def test_values_are_bytes_of_any_kind_and_size(ask):
    for value in b'', b'\r\n', b'$3\r\nabc\r\n*1\r\n', bytes(range(256)) * 20, b'x' * 1_000_000:
        ask(command(b'SET', b'k\r\n', value) * 2, b'+OK\r\n' * 2)
        ask(command(b'GET', b'k\r\n') * 2, b'$%d\r\n%b\r\n' % (len(value), value) * 2)
    ask(command(b'MGET', *[b'k\r\n'] * 3), b'*3\r\n' + b'$1000000\r\n%b\r\n' % value * 3)
    ask(command(b'MGET', *[b'k\r\n'] * 20), b'-ERR the answer would be too large\r\n')


def test_an_unknown_command_with_any_name_cannot_break_the_answer(ask):
    ask(command(b'no\r\n+OK'), b"-ERR unknown command 'no\\r\\n+OK'\r\n")
    ask(command(b''), b"-ERR unknown command ''\r\n")


def test_keys_expire_by_themselves(ask):
    ask(command(b'SET', b'k', b'v', b'PX', b'50') + command(b'GET', b'k'), b'+OK\r\n$1\r\nv\r\n')
    ask(command(b'SET', b'kept', b'v', b'PX', b'50') + command(b'SET', b'kept', b'v'), b'+OK\r\n' * 2)
    end = time.monotonic() + 10
    while True:
        try:
            ask(command(b'EXISTS', b'k'), b':0\r\n')
            break
        except AssertionError:
            assert time.monotonic() < end
    ask(command(b'EXISTS', b'kept'), b':1\r\n')


def test_info_shows_the_counters_of_the_reactor(port):
    answer = ended(port, command(b'SET', b'k', b'v') + command(b'INFO') + command(b'QUIT')).decode()
    assert re.search(r'\r\nincoming:1\r\n', answer) and re.search(r'\r\nkeys:1\r\n', answer)


@pytest.mark.scenario(82)
@pytest.mark.parametrize(
    ('sent', 'error'),
    [
        (b'*x\r\n', b'invalid multibulk length'),
        (b'*65537\r\n', b'invalid multibulk length'),
        (b'*99999999999999999999\r\n', b'invalid multibulk length'),
        (b'*1\r\n+PING\r\n', b"expected '$', got '+'"),
        (b'*1\r\n$-5\r\n', b'invalid bulk length'),
        (b'*2\r\n$3\r\nGET\r\n$99999999\r\n', b'invalid bulk length'),
        (b'*3\r\n$9000000\r\n' + b'x' * 9_000_000 + b'\r\n$9000000\r\n', b'invalid bulk length'),
        (b'x' * 70_000, b'too big inline request'),
        (b'x' * 3_000_000, b'too big inline request'),
    ],
)
def test_a_protocol_error_is_answered_and_the_connection_closed(port, sent, error):
    with client(port) as sock:
        sock.sendall(command(b'PING'))
        sock.sendall(sent)
        assert read_to_end(sock) == b'+PONG\r\n-ERR Protocol error: %b\r\n' % error


def test_nothing_is_run_after_quit(port):
    assert ended(port, command(b'SET', b'k', b'1') + command(b'QUIT') + command(b'INCR', b'k')) == b'+OK\r\n+OK\r\n'
    assert ended(port, b'GET k\r\nQUIT\r\n') == b'$1\r\n1\r\n+OK\r\n'


def test_messages_go_to_the_subscribers(port, ask):
    with client(port) as sock:
        sock.sendall(command(b'SUBSCRIBE', b'news', b'sport'))
        subscribed = b'*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$5\r\nsport\r\n:2\r\n'
        assert sock.recv(1000) == subscribed
        ask(command(b'PUBLISH', b'news', b'rain') + command(b'PUBLISH', b'weather', b'sun'), b':1\r\n:0\r\n')
        assert sock.recv(1000) == b'*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$4\r\nrain\r\n'
        sock.sendall(command(b'GET', b'k') + command(b'PING') + command(b'UNSUBSCRIBE', b'news'))
        sock.sendall(command(b'UNSUBSCRIBE') + command(b'PING') + command(b'QUIT'))
        assert read_to_end(sock) == (
            b'-ERR only SUBSCRIBE, UNSUBSCRIBE, PING and QUIT are allowed while subscribed\r\n'
            b'*2\r\n$4\r\npong\r\n$0\r\n\r\n'
            b'*3\r\n$11\r\nunsubscribe\r\n$4\r\nnews\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$5\r\nsport\r\n:0\r\n'
            b'+PONG\r\n+OK\r\n'
        )
    ask(command(b'PUBLISH', b'news', b'late'), b':0\r\n')


@pytest.mark.scenario(79)
def test_a_subscriber_that_does_not_read_is_disconnected_and_the_others_are_served(port, ask):
    with client(port) as stalled, client(port) as gone:
        for sock in stalled, gone:
            sock.sendall(command(b'SUBSCRIBE', b'news'))
            assert b':1\r\n' in sock.recv(1000)
        gone.close()
        message = command(b'PUBLISH', b'news', b'x' * 1_000_000)
        end, receivers = time.monotonic() + 20, b':1\r\n'
        with client(port) as publisher:
            while receivers != b':0\r\n':
                publisher.sendall(message)
                receivers = publisher.recv(100)
                assert time.monotonic() < end
        with pytest.raises(ConnectionResetError):
            while stalled.recv(1 << 20):
                pass
    ask(command(b'PING'), b'+PONG\r\n')


def test_reading_is_paused_for_a_client_that_does_not_read_its_answers(port, ask):
    ask(command(b'SET', b'k', b'x' * 4000), b'+OK\r\n')
    with client(port) as sock:
        sock.setblocking(False)
        asking, sent = command(b'GET', b'k') * 1000, 0
        try:
            while sent < 100_000_000:
                sent += sock.send(asking)
                ask(command(b'PING'), b'+PONG\r\n')
        except BlockingIOError:
            pass
        assert sent < 100_000_000


def test_a_pipeline_of_large_answers_continues_while_they_are_read(port, ask):
    ask(command(b'SET', b'k', b'x' * 1_000_000), b'+OK\r\n')
    sent = command(b'GET', b'k') * 50 + command(b'PING')
    ask(sent, b'$1000000\r\n%b\r\n' % (b'x' * 1_000_000) * 50 + b'+PONG\r\n')
    assert ended(port, b'GET k\r\n' * 20 + command(b'SET', b'k', b'\r\n') + b'GET k\r\nQUIT\r\n').endswith(
        b'x\r\n+OK\r\n$2\r\n\r\n\r\n+OK\r\n'
    )


# -- other clients


def run(name, port, *options):
    if shutil.which(name) is None:
        pytest.skip(f'{name} is not installed: apt-get install redis-tools')
    done = subprocess.run([name, '-p', str(port), *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_redis_cli_sets_and_gets(port):
    assert run('redis-cli', port, 'set', 'greeting', 'hello\r\nthere', 'ex', '60') == 'OK\n'
    assert run('redis-cli', port, '--no-raw', 'get', 'greeting') == '"hello\\r\\nthere"\n'
    assert run('redis-cli', port, '--no-raw', 'ttl', 'greeting') == '(integer) 60\n'
    assert run('redis-cli', port, 'object', 'freq').startswith("ERR unknown command 'object'")
    assert 'loop_count:' in run('redis-cli', port, 'info')


def test_redis_cli_runs_commands_from_standard_input(port):
    run('redis-cli', port, 'ping')
    asked = 'incr n\nincr n\nmset a 1 b 2\nmget a b\n'
    done = subprocess.run(['redis-cli', '-p', str(port)], input=asked, capture_output=True, text=True, timeout=60)
    assert done.stdout == '1\n2\nOK\n1\n2\n'


@pytest.mark.parametrize('pipeline', ['1', '16'])
def test_redis_benchmark_ends_by_itself(port, pipeline):
    tests = 'ping,set,get,incr,mset'
    printed = run('redis-benchmark', port, '-t', tests, '-n', '2000', '-c', '50', '-P', pipeline, '-r', '100', '--csv')
    rows = [line.split(',')[0].strip('"') for line in printed.splitlines()[1:]]
    assert rows == ['PING_INLINE', 'PING_MBULK', 'SET', 'GET', 'INCR', 'MSET (10 keys)']
    assert not re.search('error', printed, re.IGNORECASE)
