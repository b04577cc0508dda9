"""RPC servers that are replaced, killed and restarted under load; each call that a client has made is counted."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from examples.recipes import rpc_drain
from reactor import Reactor, RequestTimeout
from tests.examples.test_examples import EXAMPLES, example
from tests.examples.test_service_clients import Running, free_port, service
from tests.helpers.support import run_until, turns_in

PROGRAM = 'recipes/rpc_drain.py'
# The same server without its goodbye: it can only be reset at the end of its drain, because its clients go on calling.
SILENT = """
import reactor, signal, sys
from examples.recipes.rpc_drain import METHODS, Server

def main(r):
    server = Server(r, METHODS)
    server.send_goodbye = lambda conn: None
    server.listen('127.0.0.1', int(sys.argv[1]))
    r.add_signal_handler(signal.SIGTERM, r.drain, 1)

reactor.run(main)
"""

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='two servers share a port, as only Linux balances it')


class Load:
    """Clients that make calls at a steady rate; `ends` counts how the calls have ended."""

    def __init__(self, r, port, clients=5, seconds=0.05):
        self.r, self.seconds = r, seconds
        self.clients = [rpc_drain.Client(r, '127.0.0.1', port) for _ in range(clients)]
        self.made, self.ends = 0, Counter()
        self.timer = r.call_every(0.01, self.call)

    def call(self):
        for each in self.clients:
            for seconds in 0, self.seconds:  # one that is answered at once, and one that is under way for a while
                self.made += 1
                each.call(self.on_done, 'sleep', seconds)

    def on_done(self, result, error):
        self.ends['answered' if error is None else type(error).__name__] += 1

    def run(self, seconds):
        turns_in(self.r, seconds)

    def finish(self):
        """Stop calling, and wait until every call has ended."""
        self.timer.cancel()
        run_until(self.r, lambda: self.ends.total() == self.made, 20)
        for each in self.clients:
            each.close()
        run_until(self.r, lambda: not self.r.handles())


@contextmanager
def loaded(port, **options):
    with Reactor() as r:
        load = Load(r, port, **options)
        yield load
        load.finish()


@pytest.mark.parametrize(('times', 'clients'), [(3, 5), pytest.param(20, 30, marks=pytest.mark.slow)])
def test_servers_that_are_replaced_under_load_lose_no_call(times, clients, capsys):
    longest = 0
    with ExitStack() as stack:
        process, port = stack.enter_context(example(PROGRAM, '--port', '0'))
        with loaded(port, clients=clients) as load:
            load.run(0.5)
            for _ in range(times):
                successor, _ = stack.enter_context(example(PROGRAM, '--port', str(port)))
                process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                run_until(load.r, lambda process=process: process.poll() is not None)
                longest = max(longest, time.monotonic() - began)
                assert process.returncode == 0
                process = successor
                load.run(0.2)
        assert longest < 3
        assert load.ends == {'answered': load.made}
        assert {each.requests.unknown for each in load.clients} == {0}
        with capsys.disabled():
            made, answered = load.made, load.ends['answered']
            print(f'\n{times} replacements, {clients} clients: {made} calls made, {answered} answered, {longest:.2f} s')


def test_calls_wait_for_a_server_that_is_started_a_second_after_the_end_of_the_last_one():
    with ExitStack() as stack:
        process, port = stack.enter_context(example(PROGRAM, '--port', '0'))
        with loaded(port) as load:
            load.run(0.5)
            process.send_signal(signal.SIGTERM)
            run_until(load.r, lambda: process.poll() is not None)
            assert process.returncode == 0
            load.run(1)
            assert load.ends.keys() == {'answered'} and load.ends.total() < load.made - 500
            stack.enter_context(example(PROGRAM, '--port', str(port)))
        assert load.ends == {'answered': load.made}


def test_a_server_without_a_goodbye_loses_calls_in_the_same_test(capsys):
    port = free_port()
    with service([sys.executable, '-c', SILENT, str(port)], port) as (start, _, processes):
        with loaded(port) as load:
            load.run(0.3)
            processes[-1].send_signal(signal.SIGTERM)
            began = time.monotonic()
            run_until(load.r, lambda: processes[-1].poll() is not None)
            assert time.monotonic() - began > 0.8
            start()
        assert load.ends['CallLost'] > 0
        assert load.ends['answered'] + load.ends['CallLost'] == load.made
        with capsys.disabled():
            print(f'\nwithout the goodbye: {dict(load.ends)}')


def test_the_calls_that_a_killed_server_had_are_reported_as_lost_and_no_others(capsys):
    port = free_port()
    command = [sys.executable, str(EXAMPLES / PROGRAM), '--port', str(port)]
    with service(command, port) as (start, kill, _):
        with loaded(port) as load:
            for _ in range(2):
                load.run(0.5)
                kill()
                load.run(0.5)
                start()
        assert 0 < load.ends['CallLost'] < 200
        assert load.ends['answered'] + load.ends['CallLost'] == load.made
        with capsys.disabled():
            print(f'\n2 kills: {dict(load.ends)}')


def test_workers_that_are_replaced_under_load_lose_no_call(capsys):
    port = free_port()
    command = [sys.executable, str(EXAMPLES / PROGRAM), '--port', str(port), '--workers', '2']
    with service(command, port) as (_, _, processes):
        parent = psutil.Process(processes[-1].pid)
        with loaded(port) as load:
            load.run(0.5)
            before = {child.pid for child in parent.children()}
            parent.send_signal(signal.SIGHUP)
            run_until(
                load.r, lambda: len(pids := {child.pid for child in parent.children()}) == 2 and not pids & before
            )
            load.run(0.3)
        assert load.ends == {'answered': load.made}
        with capsys.disabled():
            print(f'\n2 workers replaced: {load.made} calls made, {load.ends["answered"]} answered')
        parent.send_signal(signal.SIGTERM)
        assert processes[-1].wait(10) == 0


@contextmanager
def pair(**options):
    """Yield a reactor with a server and a client, and a function that calls and returns (result, error)."""
    with Reactor() as r:
        server = rpc_drain.Server(r, {**rpc_drain.METHODS, 'fail': lambda r, done: 1 / 0, 'never': lambda r, done: 0},
                                  **options)  # fmt: skip
        listener = server.listen('127.0.0.1', 0)
        caller = rpc_drain.Client(r, '127.0.0.1', listener.address[1])

        def call(*words, **options):
            ends = []
            caller.call(lambda *end: ends.append(end), *words, **options)
            run_until(r, lambda: ends)
            return ends[0]

        yield r, server, caller, call


def test_errors_of_methods_and_of_calls_reach_the_client():
    with pair() as (r, server, caller, call):
        assert call('add', 1, 2) == (3, None)
        for words, text in ((['nonsense'], 'KeyError'), (['fail'], 'ZeroDivisionError'), (['add', 'x'], 'TypeError')):
            result, error = call(*words)
            assert result is None and isinstance(error, rpc_drain.CallFailed) and text in str(error)
        assert not server.running and not caller.link.sent
        caller.close()
        run_until(r, lambda: not server.conns)


def test_a_call_is_not_continued_when_the_time_of_its_client_is_over():
    with pair() as (r, server, caller, call):
        began = time.monotonic()
        assert isinstance(call('never', timeout=0.3)[1], RequestTimeout)
        assert time.monotonic() - began < 0.6
        run_until(r, lambda: not server.running and not caller.link.sent)  # the server has ended it by itself
        assert server.running.timed_out == 1
        assert call('add', 1, 2) == (3, None)
        caller.close()


def test_too_many_calls_are_refused_with_an_error():
    with pair(most=2) as (_, _, caller, call):
        for _ in range(2):
            caller.call(lambda *end: None, 'sleep', 0.3)
        assert 'TooManyRequests' in str(call('add', 1, 2)[1])
        caller.close()


def test_a_long_call_ends_before_the_server_does_and_a_client_that_only_ends_its_side_is_answered():
    with pair() as (r, _, caller, call):
        assert call('add', 1, 2) == (3, None)
        ends = []
        caller.call(lambda *end: ends.append(end), 'sleep', 1)
        link = caller.link
        run_until(r, lambda: link.sent)
        link.reconnector.conn.write_eof()
        r.call_later(0.1, r.drain, 10)
        assert r.run() is False
        assert ends == [(1, None)]


def test_a_client_that_ignores_the_goodbye_is_reset_at_the_timeout():
    with Reactor() as r:
        ends = []
        server = rpc_drain.Server(r, rpc_drain.METHODS)
        listener = server.listen('127.0.0.1', 0)
        stubborn = r.connect_tcp('127.0.0.1', listener.address[1], on_close=lambda conn, exc: ends.append(exc))
        run_until(r, lambda: server.conns)
        r.drain(0.5)
        began = time.monotonic()
        assert r.run() is False
        assert 0.4 < time.monotonic() - began < 2
        run_until(r, lambda: ends)
        assert isinstance(ends[0], ConnectionResetError) and stubborn.closed


def test_the_program_that_makes_a_load_says_how_its_calls_end():
    with example(PROGRAM, '--port', '0') as (process, port):
        with Running(sys.executable, str(EXAMPLES / PROGRAM), '--port', str(port), '--load', '50') as running:
            assert 'calls answered' in running.printed.get(timeout=10)
            running.process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
