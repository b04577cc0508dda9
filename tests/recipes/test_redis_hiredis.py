"""The recipe redis_hiredis.py, tested with a Redis server that is killed while it answers."""

from __future__ import annotations

import random
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from reactor import Reactor
from tests.examples.test_examples import EXAMPLES
from tests.examples.test_service_clients import Running, free_port, service
from tests.helpers.support import run_until
from tests.recipes.usage import cpu, descriptors, wakeups

hiredis = pytest.importorskip('hiredis', reason='NOT TESTED: hiredis is not installed: pip install hiredis')
REDIS, CLI = shutil.which('redis-server'), shutil.which('redis-cli')
pytestmark = pytest.mark.skipif(
    REDIS is None or CLI is None, reason='NOT TESTED: redis-server is not installed: apt-get install redis-server'
)
RECIPE = EXAMPLES / 'recipes/redis_hiredis.py'
COMMANDS = 300_000


@contextmanager
def redis(folder):
    """Run a server that writes each command to a file before it answers."""
    port = free_port()
    files = ['--dir', str(folder), '--save', '', '--appendonly', 'yes', '--appendfsync', 'no']
    with service([REDIS, '--bind', '127.0.0.1', '--port', str(port), *files], port) as (start, kill, _):
        yield port, start, kill


def cli(port, *words):
    return subprocess.run([CLI, '-p', str(port), *words], capture_output=True, text=True, check=True).stdout.strip()


def recipe(port, *options):
    return Running(sys.executable, '-X', 'dev', '-W', 'error', str(RECIPE), '--port', str(port), *options)


class Events:
    def __init__(self):
        self.messages, self.gaps, self.reasons = [], [], []

    def message(self, channel, message):
        self.messages.append(message)

    def gap(self, channel, seconds):
        self.gaps.append((len(self.messages), seconds))

    def down(self, why):
        self.reasons.append(why)


@contextmanager
def client(port, **options):
    with Reactor() as r:
        events = Events()
        client = runpy.run_path(str(RECIPE))['Redis'](r, '127.0.0.1', port, events, **options)
        yield r, client, events
        client.client.stop()
        assert r.run()


def test_answers_and_messages_are_those_that_redis_cli_sees(tmp_path):
    with redis(tmp_path) as (port, _, _), recipe(port) as caller:
        caller.say(
            'SET a 1', 'INCR a', 'LPUSH a x', 'SUBSCRIBE news', 'GET a', 'GET b', 'LPUSH l 1 zwölf', 'LRANGE l 0 -1'
        )
        caller.expect('SET a 1: OK', 'INCR a: 2', 'LPUSH a x: .*WRONGTYPE.*', r"SUBSCRIBE news: \[.*, 1\]", 'GET a: 2',
                      'GET b: None', 'LPUSH l 1 zwölf: 2', r"LRANGE l 0 -1: \[b'zw.*lf', b'1'\]")  # fmt: skip
        assert cli(port, 'GET', 'a') == '2'
        assert cli(port, 'PUBLISH', 'news', 'hello') == '1'
        caller.expect('news: hello')
        caller.say('UNSUBSCRIBE news', 'PING')
        caller.expect(r'UNSUBSCRIBE news: \[.*, 0\]', 'PING: PONG')
        assert cli(port, 'PUBLISH', 'news', 'hello') == '0'
        rate = wakeups(caller.process.pid, 3)
        print(f'{rate:.1f} wake-ups a second')
        assert rate < 1


def test_commands_and_channels_survive_the_end_of_the_server(tmp_path):
    with redis(tmp_path) as (port, start, kill), recipe(port) as caller:
        caller.say('SUBSCRIBE news', 'SET a 1')
        caller.expect('SUBSCRIBE news: .*', 'SET a 1: OK')
        before = descriptors(caller.process.pid)
        for _ in range(3):
            kill()
            caller.expect(f'not connected to 127.0.0.1:{port}: .*')
            used = cpu(caller.process.pid)
            time.sleep(0.3)
            assert cpu(caller.process.pid) - used < 0.1, 'busy while there is no server'
            caller.say('GET a')  # it waits for the next server
            start()
            left = ['GET a: 1', r'news: no messages were received for \d\.\d+ s']
            while left:
                line = caller.printed.get(timeout=20)
                left = [pattern for pattern in left if not re.fullmatch(pattern, line)]
            assert cli(port, 'PUBLISH', 'news', 'hello') == '1'
            caller.expect('news: hello')
        assert descriptors(caller.process.pid) == before


def test_each_of_many_pipelined_commands_ends_once_although_the_server_is_killed(tmp_path):
    with redis(tmp_path) as (port, start, kill), client(port, most=2000) as (r, caller, events):
        answers, errors, sent = [], [], 0

        def send():
            nonlocal sent
            while sent < COMMANDS and len(caller.requests) < 1000:
                sent += 1
                caller.command(on_done, b'INCR', b'n')

        def on_done(answer, error):
            (answers if error is None else errors).append(answer or error)
            send()

        killer = threading.Timer(random.uniform(0.4, 0.9), kill)
        killer.start()
        caller.command(lambda *_: send(), b'SUBSCRIBE', b'news')
        begin = time.monotonic()
        run_until(r, lambda: events.reasons, 60)
        rate = len(answers) / (time.monotonic() - begin)
        killer.join()
        start()
        run_until(r, lambda: len(answers) + len(errors) == COMMANDS, 60)
        run_until(r, lambda: events.gaps)
        run_until(r, lambda: not caller.requests)
        executed = int(cli(port, 'GET', 'n'))
        print(f'{len(answers)} answered, {len(errors)} reported as lost, of which {executed - len(answers)} were '
              f'executed; {rate:.0f} a second; gap of {events.gaps[0][1]:.2f} s')  # fmt: skip
        assert len(answers) + len(errors) == COMMANDS
        assert len(answers) <= executed <= COMMANDS
        assert len(errors) <= 1000
        assert all('may have executed this command or not' in str(error) for error in errors)
        assert answers == sorted(set(answers))
        assert caller.requests.unknown == 0


def test_messages_are_only_missing_in_the_gap(tmp_path):
    with redis(tmp_path) as (port, start, kill), client(port) as (r, caller, events):
        caller.command(lambda *_: None, b'SUBSCRIBE', b'news')
        run_until(r, lambda: caller.channels)
        published = 0
        for number in range(20):
            if number == 10:
                kill()
                start()
            published += 1
            cli(port, 'PUBLISH', 'news', str(number))
            r.run_once(0.1)
        run_until(r, lambda: events.gaps)
        cli(port, 'PUBLISH', 'news', 'end')
        run_until(r, lambda: events.messages[-1] == b'end')
        until, _ = events.gaps[0]
        numbers = [int(each) for each in events.messages[:-1]]
        assert numbers[:until] == list(range(10))
        assert numbers[until:] == list(range(20))[20 - len(numbers[until:]) :]


def test_a_server_that_does_not_answer_is_reported(sockets):
    silent = sockets.track(socket.create_server(('127.0.0.1', 0)))
    with client(silent.getsockname()[1], timeout=0.3) as (r, _, events):
        run_until(r, lambda: events.reasons)
        assert 'was not answered within 0.3 s' in events.reasons[0]


def test_a_command_with_several_answers_is_refused(tmp_path):
    with redis(tmp_path) as (port, _, _), client(port) as (_, caller, _):
        with pytest.raises(ValueError, match='SUBSCRIBE needs exactly one channel'):
            caller.command(print, b'SUBSCRIBE', b'a', b'b')
