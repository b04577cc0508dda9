"""The recipe postgres_notify.py, tested with a PostgreSQL server that is killed while it sends notifications."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.examples.test_examples import example
from tests.examples.test_service_clients import free_port
from tests.recipes.usage import cpu, descriptors, wakeups

HELP = "pip install 'psycopg[binary]' websockets"
psycopg = pytest.importorskip('psycopg', reason=f'NOT TESTED: psycopg is not installed: {HELP}')
sync_client = pytest.importorskip(
    'websockets.sync.client', reason=f'NOT TESTED: websockets is not installed: {HELP}', exc_type=ImportError
)
PROGRAMS = sorted(Path('/usr/lib/postgresql').glob('*/bin'))
pytestmark = pytest.mark.skipif(
    not PROGRAMS, reason='NOT TESTED: there is no server in /usr/lib/postgresql: apt-get install postgresql'
)
RECIPE = 'recipes/postgres_notify.py'
MESSAGES = 10_000


class Postgres:
    """A server on a free port, in a temporary folder: a context manager."""

    def __enter__(self):
        # The server refuses to run as root.
        self.user = pwd.getpwnam('postgres').pw_name if os.geteuid() == 0 else None
        self.folder = tempfile.mkdtemp()
        self.port = free_port()
        self.conninfo = f'hostaddr=127.0.0.1 port={self.port} user=postgres dbname=postgres'
        try:
            if self.user:
                shutil.chown(self.folder, self.user)
            command = [PROGRAMS[-1] / 'initdb', '-D', self.folder, '-U', 'postgres', '--auth=trust', '--no-sync']
            subprocess.run(command, check=True, capture_output=True, user=self.user, cwd='/')
            self.process = None
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def start(self):
        settings = ['-c', 'listen_addresses=127.0.0.1', '-c', 'unix_socket_directories=', '-c', 'fsync=off']
        command = [PROGRAMS[-1] / 'postgres', '-D', self.folder, '-p', str(self.port), *settings]
        until = time.monotonic() + 20
        while self.process is None or self.process.poll() is not None:
            # The new server ends at once while a process of the killed one still exists.
            assert time.monotonic() < until, 'the server does not start'
            self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, user=self.user, cwd='/')
            while self.process.poll() is None:
                try:
                    psycopg.connect(self.conninfo).close()
                    return
                except psycopg.OperationalError:
                    assert time.monotonic() < until, 'the server does not answer'
                    time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, *exc):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)  # a process of the server may just be ending

    def psql(self, *commands):
        options = [each for command in commands for each in ('-c', command)]
        return subprocess.run(
            ['psql', '-X', self.conninfo, *options], check=True, capture_output=True, text=True, timeout=10
        ).stdout


class Client:
    """A WebSocket client, which receives in a thread until the message `end`. It first waits for the end of a gap."""

    def __init__(self, port, wait=True):
        self.stack = ExitStack()
        self.ws = self.stack.enter_context(sync_client.connect(f'ws://127.0.0.1:{port}/', compression=None))
        self.received = []
        while wait and json.loads(self.ws.recv(timeout=20))['gap'] == 'began':
            pass
        self.thread = threading.Thread(target=self.receive)
        self.thread.start()

    def receive(self):
        while not self.received or self.received[-1].get('payload') != 'end':
            self.received.append(json.loads(self.ws.recv(timeout=20)))

    def join(self):
        self.thread.join(30)
        self.stack.close()
        return self.received

    def has(self, key, value):
        return any(message.get(key) == value for message in self.received)

    def wait_for(self, key, value):
        until = time.monotonic() + 10
        while not self.has(key, value):
            assert time.monotonic() < until, self.received[-5:]
            time.sleep(0.01)


@pytest.fixture(scope='module')
def postgres():
    with Postgres() as server:
        yield server


def publish(server, numbers, confirmed, done):
    """Send numbers as notifications, 2,500 a second, and add those that the server has confirmed to a list."""
    begin, before = time.monotonic(), len(confirmed)
    try:
        with psycopg.connect(server.conninfo, autocommit=True) as conn:
            while not done():
                number = next(numbers)
                conn.execute("SELECT pg_notify('news', %s)", [str(number)])
                confirmed.append(number)
                time.sleep(max(0, begin + (len(confirmed) - before) / 2500 - time.monotonic()))
    except psycopg.OperationalError:
        pass


def test_clients_receive_what_psql_receives(postgres):
    with example(RECIPE, postgres.conninfo, 'news', 'a "b"', '--port', '0') as (_, port):
        client = Client(port)
        printed = postgres.psql(
            'LISTEN news', 'LISTEN "a ""b"""', "NOTIFY news, 'one'", 'NOTIFY "a ""b""", \'zwölf\'', "NOTIFY news, 'end'"
        )
        expected = re.findall(r'notification "(.*)" with payload "(.*)" received', printed)
        assert len(expected) == 3
        assert [(each['channel'], each['payload']) for each in client.join()] == expected


@pytest.mark.slow
def test_clients_are_told_of_the_gap_when_the_server_is_killed(postgres):
    with example(RECIPE, postgres.conninfo, 'news', '--port', '0') as (process, port):
        clients = [Client(port) for _ in range(3)]
        postgres.psql("NOTIFY news, 'begin'")
        clients[0].wait_for('payload', 'begin')
        before = descriptors(process.pid)

        killer = threading.Timer(1.2, postgres.kill)
        killer.start()
        numbers, confirmed = itertools.count(), []
        publish(postgres, numbers, confirmed, lambda: False)
        killer.join()
        clients[0].wait_for('gap', 'began')
        used = cpu(process.pid)
        time.sleep(0.5)
        assert cpu(process.pid) - used < 0.1, 'the recipe is busy while the server is down'
        late = Client(port, wait=False)
        late.wait_for('gap', 'began')  # a client that connects during the gap is told of it

        postgres.start()
        publish(postgres, numbers, confirmed, lambda: len(confirmed) >= MESSAGES and late.has('gap', 'ended'))
        postgres.psql("NOTIFY news, 'end'")
        received = [client.join() for client in clients]
        late.join()
        assert received[1] == received[2] == received[0]

        began, ended = (i for i, message in enumerate(received[0]) if 'gap' in message)
        assert ended == began + 1
        first = [int(message['payload']) for message in received[0][1:began]]
        then = [int(message['payload']) for message in received[0][ended + 1 : -1]]
        assert 'closed' in received[0][began]['why']
        lost = sorted(set(confirmed) - set(first) - set(then))
        print(f'{len(confirmed)} confirmed, {len(first) + len(then)} arrived, {len(lost)} lost in the gap of '
              f'{received[0][ended]["seconds"]} s')  # fmt: skip
        # Nothing is lost before the gap begins or after it has ended.
        assert first == list(range(len(first)))
        assert then == list(range(then[0], confirmed[-1] + 1))
        assert all(first[-1] < number < then[0] for number in lost)

        until = time.monotonic() + 5
        while descriptors(process.pid) > before - 3:  # the three clients have disconnected
            assert time.monotonic() < until
            time.sleep(0.05)


def test_the_recipe_sleeps_while_there_are_no_notifications(postgres):
    with example(RECIPE, postgres.conninfo, 'news', '--port', '0') as (process, _):
        time.sleep(0.5)
        rate = wakeups(process.pid, 3)
        print(f'{rate:.1f} wake-ups a second')
        assert rate < 4


def reason(port, wanted):
    """Connect clients until one of them gets this reason for the gap. Returns the reason."""
    until = time.monotonic() + 10
    while True:
        with sync_client.connect(f'ws://127.0.0.1:{port}/') as ws:
            message = json.loads(ws.recv(timeout=10))
        if wanted in message['why']:
            return message['why']
        assert time.monotonic() < until, message


def test_a_server_that_does_not_run_is_reported():
    with example(RECIPE, f'hostaddr=127.0.0.1 port={free_port()}', 'news', '--port', '0') as (_, port):
        assert reason(port, 'Connection refused')


def test_a_server_that_does_not_answer_is_given_up_after_the_time_limit(sockets):
    silent = sockets.track(socket.create_server(('127.0.0.1', 0)))
    conninfo = f'hostaddr=127.0.0.1 port={silent.getsockname()[1]}'
    with example(RECIPE, conninfo, 'news', '--port', '0', '--timeout', '0.3') as (process, port):
        assert reason(port, 'no answer') == 'no answer within 0.3 s'
        time.sleep(2)
        assert descriptors(process.pid) < 15
