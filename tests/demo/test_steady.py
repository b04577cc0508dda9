"""The steady load: every request is sent on schedule and accounted for, whatever the server does."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

import psutil
import pytest

import reactor
from reactor.demo.steady import SteadyLoad
from tests.demo.test_demo import CHECKOUT, DEMO, demo, descriptors
from tests.demo.test_demo import pytestmark as pytestmark
from tests.helpers.support import run_until

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
LAST = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok'


class Server:
    """A server that responds to request number `number` with the result of `answer(number, conn)`."""

    def __init__(self, r, answer):
        self.answer, self.asked, self.conns = answer, [], []
        self.listener = r.listen_tcp('127.0.0.1', 0, self.on_data, on_connect=self.conns.append)
        self.port = self.listener.address[1]

    def on_data(self, conn, data):
        self.asked.append((conn, data))
        reply = self.answer(len(self.asked), conn)
        if reply:
            conn.write(reply)


@pytest.fixture
def r():
    with reactor.Reactor() as r:
        yield r


def begin(r, answer, *, connections=2, rate=100, seconds=60):
    """Start a load on a server with this `answer`; return both, and a list that gets an item when the load is done."""
    server, done = Server(r, answer), []
    load = SteadyLoad(r, '127.0.0.1', server.port, connections=connections, rate=rate, seconds=seconds,
                      timeout=10, on_done=lambda: done.append(1))  # fmt: skip
    return load, server, done


def load_of(r, answer, *, connections=1, rate=200, seconds=0.05, timeout=10, **options):
    """Run a load on a server with this `answer`; return both when the load is done."""
    server, done = Server(r, answer), []
    load = SteadyLoad(r, '127.0.0.1', server.port, connections=connections, rate=rate, seconds=seconds,
                      timeout=timeout, on_done=lambda: done.append(1), **options)  # fmt: skip
    run_until(r, lambda: done)
    assert load.requests == load.replies + sum(load.errors.values())
    assert load.share == 1
    return load, server


def test_requests_keep_their_rate_over_connections_that_stay_open(r):
    began = time.monotonic()
    load, server = load_of(r, lambda number, conn: OK, connections=4, rate=200, seconds=0.2)
    assert time.monotonic() - began >= 39 / 200
    assert (load.requests, load.replies, load.failed, load.reopened) == (40, 40, 0, 0)
    assert len(server.conns) == 4
    assert [sum(conn is of for of, _ in server.asked) for conn in server.conns] == [10] * 4
    assert server.asked[0][1] == b'GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n' % server.port


def test_a_reply_time_counts_from_the_scheduled_time_of_the_request(r):
    late = []

    def answer(number, conn):
        if number > 1:
            return OK
        r.call_later(0.2, lambda: late.append(time.monotonic()) or conn.write(OK))

    load, _ = load_of(r, answer, rate=100, seconds=0.1)
    assert load.replies == 10
    # There is only one connection, so the later requests waited for the first, and their times include the wait.
    assert min(load.reply_times[:9]) >= 0.1
    assert load.reply_times[0] >= 0.2


def test_the_last_answer_of_the_server_on_a_connection_is_not_a_failure(r):
    load, server = load_of(r, lambda number, conn: LAST if number % 2 else OK)
    assert (load.replies, load.failed) == (10, 0)
    assert load.reopened in (4, 5) and len(server.conns) >= 5


def test_a_connection_that_ends_between_requests_is_opened_again(r):
    load, server, done = begin(r, lambda number, conn: OK, connections=1, rate=2, seconds=1)
    run_until(r, lambda: load.replies == 1)
    server.conns[0].close()
    run_until(r, lambda: done)
    assert (load.replies, load.failed, load.reopened) == (2, 0, 1)


ENDINGS = {
    'without a response': (lambda conn: conn.close(), 'closed-early'),
    'by a reset': (lambda conn: conn.abort(), 'ECONNRESET|closed-early'),
    'within the header': (lambda conn: conn.write(OK[:20]) and conn.close(), 'closed-early'),
    'within the body': (lambda conn: conn.write(OK[:-1]) and conn.close(), 'closed-early'),
}


@pytest.mark.parametrize('ending', ENDINGS)
def test_a_connection_that_ends_during_a_request_is_an_error_and_nothing_is_sent_twice(r, ending):
    end, kind = ENDINGS[ending]
    load, server = load_of(r, lambda number, conn: end(conn) and None if number == 3 else OK)
    assert len(server.asked) == load.requests == 10 and load.replies == 9
    assert re.fullmatch(kind, *load.errors)
    assert load.errors == {load.listed[0][1]: 1} and 0.01 <= load.listed[0][0] < 5


BAD = {
    'status-503': OK.replace(b'200 OK', b'503 Service Unavailable'),
    'no-length': b'HTTP/1.1 200 OK\r\n\r\n',
    'not-http': b'SSH-2.0-OpenSSH\r\n\r\n',
    'too-long': OK + b'!',
}


@pytest.mark.parametrize('kind', BAD)
def test_each_kind_of_invalid_response_is_a_separate_error(r, kind):
    load, _ = load_of(r, lambda number, conn: BAD[kind] if number == 3 else OK)
    assert (load.errors, load.replies) == ({kind: 1}, 9)


def test_a_response_that_arrives_in_pieces_counts_once(r):
    def answer(number, conn):
        conn.write(OK[:30])
        r.call_later(0.01, conn.write, OK[30:])

    load, _ = load_of(r, answer)
    assert (load.replies, load.failed) == (10, 0)


def test_a_response_without_a_request_is_an_error(r):
    load, server, done = begin(r, lambda number, conn: OK, connections=1, rate=2, seconds=1)
    run_until(r, lambda: load.replies == 1)
    server.conns[0].write(OK)
    run_until(r, lambda: done)
    assert (load.replies, load.errors, load.reopened) == (2, {'unasked': 1}, 1)


def test_a_request_is_abandoned_at_its_timeout(r):
    load, server = load_of(r, lambda number, conn: None, rate=20, seconds=0.2, timeout=0.1)
    assert load.replies == 0 and load.errors['reply-timeout'] >= 1 and sum(load.errors.values()) == 4
    assert load.errors['reply-timeout'] == len(server.asked)


def test_a_request_that_could_not_be_sent_is_also_abandoned_at_its_timeout(r):
    server, done = Server(r, lambda number, conn: OK), []
    server.listener.close()
    load = SteadyLoad(r, '127.0.0.1', server.port, connections=1, rate=20, seconds=0.2, timeout=0.1,
                      on_done=lambda: done.append(1))  # fmt: skip
    run_until(r, lambda: done)
    assert (load.replies, load.errors) == (0, {'unsent': 4})


def test_a_failed_connect_is_an_error_and_is_retried(r):
    first = Server(r, lambda number, conn: OK)
    first.listener.close()
    load = SteadyLoad(r, '127.0.0.1', first.port, connections=2, rate=20, seconds=0.2, timeout=10, on_done=r.stop)
    run_until(r, lambda: load.connect_errors.get('ECONNREFUSED', 0) >= 3)
    r.listen_tcp('127.0.0.1', first.port, first.on_data)
    r.run()
    assert (load.replies, load.errors) == (4, {}) and load.failed >= 3


def test_a_load_that_is_stopped_still_accounts_for_its_requests(r):
    held = []
    load, _, done = begin(r, lambda number, conn: OK if number <= 3 or held is None else held.append(conn))
    run_until(r, lambda: load.replies == 3 and len(held) == 2)
    load.stop()
    assert not done
    for conn in held:
        conn.write(OK)
    held = None
    run_until(r, lambda: done)
    assert load.requests == load.replies >= 5 and load.failed == 0 and load.share < 1


def test_a_load_that_is_stopped_twice_ends_at_once(r):
    load, _, done = begin(r, lambda number, conn: None)
    run_until(r, lambda: load.requests >= 3)
    load.stop()
    load.stop()
    assert done == [1]
    run_until(r, lambda: len(r.handles()) == 1)
    load.stop()
    assert done == [1]


def test_a_load_that_is_stopped_before_its_start_is_done(r):
    load, _, done = begin(r, lambda number, conn: OK)
    load.stop()
    assert (
        done == [1]
        and load.requests == 0
        and load.figures()['seconds'] == 0
        and json.dumps(load.figures())
        and load.report()
    )


@pytest.fixture
def unused_port(r):
    """A port on which there is no listener."""
    server = Server(r, lambda number, conn: OK)
    server.listener.close()
    return server.port


def load_without_a_server(r, port, *, seconds=0.2, timeout=30):
    done = []
    load = SteadyLoad(r, '127.0.0.1', port, connections=2, rate=20, seconds=seconds, timeout=timeout,
                      on_done=lambda: done.append(1))  # fmt: skip
    return load, done


def test_without_a_server_the_load_ends_soon_after_its_schedule_and_reports_each_failure(r, unused_port):
    load, done = load_without_a_server(r, unused_port)
    began = time.monotonic()
    run_until(r, lambda: done)
    assert time.monotonic() - began < 10  # and not 30, the timeout of a request
    assert load.requests == 4 and load.errors == {'unsent': 4} and not load.connected
    assert load.connect_errors.keys() == {'ECONNREFUSED'}
    report = load.report()
    assert 'Total: connections 0 requests 4 replies 0 ' in report and '[replies/s]: 0.0 (wanted 20)' in report
    refused = load.connect_errors['ECONNREFUSED']
    assert report.endswith(f'Errors: total {refused + 4} ECONNREFUSED {refused} unsent 4')


def test_without_a_server_the_first_stop_ends_the_load(r, unused_port):
    load, done = load_without_a_server(r, unused_port, seconds=60)
    run_until(r, lambda: load.requests >= 3)
    began = time.monotonic()
    load.stop()
    run_until(r, lambda: done)
    assert time.monotonic() - began < 5 and load.stopped
    assert load.errors == {'unsent': load.requests}


def test_a_stopped_load_waits_only_a_few_seconds_for_answers(r, monkeypatch):
    monkeypatch.setattr('reactor.demo.steady.STOPPING', 0.1)
    load, server, done = begin(r, lambda number, conn: None)
    run_until(r, lambda: load.requests >= 5)
    load.stop()
    run_until(r, lambda: done)
    assert load.errors == {'interrupted': 2, 'unsent': load.requests - 2} and len(server.asked) == 2
    assert load.figures()['seconds'] > 0


def test_the_rate_in_the_report_counts_answers(r):
    load, _ = load_of(r, lambda number, conn: conn.abort() if number > 5 else OK)
    seconds = load.ended - load.began
    assert f'Reply rate [replies/s]: {5 / seconds:.1f} (wanted 200)' in load.report()


def test_a_rate_that_no_machine_can_keep_does_not_block_the_loop(r):
    load, _, done = begin(r, lambda number, conn: OK, rate=1e8)
    run_until(r, lambda: load.requests > 10_000)
    load.stop()
    load.stop()
    assert done == [1] and load.requests < 1e7


def command(r, server, *options):
    """Run `python -m reactor.demo load` on a server in this process; return (status, output)."""
    process = subprocess.Popen([*DEMO, 'load', '--port', str(server.port), *options], cwd=CHECKOUT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        run_until(r, lambda: process.poll() is not None)
        printed, errors = process.communicate()
    finally:
        process.kill()
    assert not errors
    return process.returncode, printed


def test_the_command_prints_a_report_or_json(r):
    server = Server(r, lambda number, conn: OK)
    options = ['--connections', '3', '--requests-per-second', '200', '--seconds', '0.2', '--method', 'POST',
               '--path', '/x']  # fmt: skip
    status, printed = command(r, server, *options)
    assert status == 0
    assert 'Total: connections 3 requests 40 replies 40 test-duration 0.' in printed
    assert printed.endswith('\nConnections: reopened 0 failed 0\n\nErrors: total 0\n')
    assert server.asked[0][1] == b'POST /x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 0\r\n\r\n' % server.port
    status, printed = command(r, server, *options, '--json')
    figures = json.loads(printed)
    assert status == 0 and figures['replies'] == 40 and figures['failed'] == 0 and figures['errors'] == {}
    assert 0 < figures['reply_time']['min'] <= figures['reply_time']['max'] < 10


def test_the_command_fails_when_a_request_fails(r):
    server = Server(r, lambda number, conn: conn.abort() if number == 7 else OK)
    status, printed = command(r, server, '--connections', '2', '--requests-per-second', '100', '--seconds', '0.2')
    assert status == 1 and 'requests 20 replies 19 ' in printed and '\nErrors: total 1 ' in printed


def test_the_command_ends_in_time_and_says_that_nobody_listens(unused_port):
    done = demo('load', '--port', str(unused_port), '--requests-per-second', '20', '--seconds', '0.2', timeout=20)
    assert done.returncode == 1 and 'ECONNREFUSED' in done.stdout
    assert f'no connection to 127.0.0.1 port {unused_port} could be opened' in done.stderr


def wait_for_refusals(process):
    """Wait until the process has been running its load for a moment: it then has a selector and a wakeup socket."""
    deadline = time.monotonic() + 20
    while len(psutil.Process(process.pid).net_connections('all')) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)


def test_the_first_ctrl_c_ends_the_command_when_nobody_listens(unused_port):
    options = ['--port', str(unused_port), '--connections', '1', '--requests-per-second', '100', '--seconds', '60']
    with subprocess.Popen([*DEMO, 'load', *options], cwd=CHECKOUT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:  # fmt: skip
        wait_for_refusals(process)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=10)
        assert process.returncode == 130 and printed.startswith('Total: connections 0 ')


def test_more_connections_than_descriptors_are_lowered(r):
    server = Server(r, lambda number, conn: OK)
    options = ['--connections', '500', '--requests-per-second', '50', '--seconds', '0.2']
    process = subprocess.Popen([*DEMO, 'load', '--port', str(server.port), *options], cwd=CHECKOUT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=descriptors(74))  # fmt: skip
    try:
        run_until(r, lambda: process.poll() is not None)
        printed, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0 and 'Total: connections 10 requests 10 replies 10 ' in printed
    assert errors.startswith('lowered from 500 to 10 connections')


def test_ctrl_c_ends_the_load_with_a_report(r):
    processes = []

    def answer(number, conn):
        if number == 3:
            processes[0].send_signal(signal.SIGINT)
        return OK

    options = ['--port', str(Server(r, answer).port), '--connections', '1', '--requests-per-second', '100']
    with subprocess.Popen([*DEMO, 'load', *options], cwd=CHECKOUT, text=True, stdout=subprocess.PIPE) as process:
        processes.append(process)
        run_until(r, lambda: process.poll() is not None)
        assert process.stdout.read().startswith('Total: connections 1 ') and process.returncode == 130
