"""`python -m reactor.observe SOCKET top`: the busiest and oldest connections, and the live table in a terminal."""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from reactor import Reactor, Stream, activity
from reactor.net.addresses import show
from reactor.observe import top
from tests.helpers.support import FakeKernel, run_until
from tests.observe.test_worker_commands import Program

pty = pytest.importorskip('pty', reason='NOT TESTED: the live table: this platform has no terminals')
PROJECT = Path(__file__).parents[2]
APP = """
import sys, time, reactor
from reactor import observe
def on_data(conn, data):
    time.sleep(0.001)
    conn.write(data)
def main(r):
    server = r.listen_tcp('127.0.0.1', 0, on_data)
    observe.serve_control(r, sys.argv[1])
    print(server.address[1], flush=True)
reactor.run(main)
"""


class Clients:
    """A server that answers each byte with two, and its clients, the oldest first."""

    def __init__(self, r, count):
        self.r = r
        self.received = 0
        self.server = r.listen_tcp('127.0.0.1', 0, self.on_data)
        self.socks = []
        for _ in range(count):
            self.socks.append(socket.create_connection(self.server.address))
            run_until(r, lambda: r.stats().incoming == len(self.socks))
            (newest,) = [
                conn for conn in r.handles() if isinstance(conn, Stream) and show(conn.peername) == self.name(-1)
            ]
            newest.since += len(self.socks) - 100  # the time of an opening is only known to the second

    def on_data(self, conn, data):
        self.received += len(data)
        if data == b'slow':
            time.sleep(0.02)
        conn.write(data * 2)

    def send(self, number, data=b'x'):
        before = self.received
        self.socks[number].send(data)
        run_until(self.r, lambda: self.received == before + len(data))
        assert self.socks[number].recv(100) == data * 2

    def name(self, number):
        host, port = self.socks[number].getsockname()
        return f'{host}:{port}'

    def close(self):
        for sock in self.socks:
            sock.close()
        run_until(self.r, lambda: not self.r.stats().incoming)
        self.server.close()


@pytest.fixture
def clients(r, monkeypatch):
    monkeypatch.setattr(activity, 'SILENT', 0.1)
    clients = Clients(r, 6)
    yield clients
    clients.close()
    run_until(r, lambda: not r.phase_timer.watching)


@pytest.fixture
def often(monkeypatch):
    """Each look has figures of its own, however short the time since the last one."""
    monkeypatch.setattr(activity, 'SHORTEST', 0.0)


def names(rows):
    return [one['connection'] for one in rows]


def test_the_busiest_connections_come_first_with_their_callbacks_and_bytes(r, clients, often, monkeypatch):
    assert activity.activity(r)['busiest'] == [], 'callbacks are timed from now on'
    for _ in range(3):
        clients.send(1)
    clients.send(4, b'slow')
    found = activity.activity(r)
    assert names(found['busiest']) == [clients.name(4), clients.name(1)]
    assert found['active'] == 2
    slow, quick = found['busiest']
    assert 0.02 <= slow['busy'] < found['interval'] and slow['calls'] == 1
    assert 0 < quick['busy'] < 0.02 and quick['calls'] == 3
    if sys.platform == 'linux':
        assert slow['received'] == 4 and quick['received'] == 3
        assert slow['sent'] <= 8 and quick['sent'] <= 6, 'what the peer has acknowledged'
    monkeypatch.setattr(activity, 'SHORTEST', 60.0)
    assert names(activity.activity(r)['busiest']) == names(found['busiest']), 'a second viewer sees the same'
    monkeypatch.setattr(activity, 'SHORTEST', 0.0)
    assert activity.activity(r)['busiest'] == [], 'since the last look'


def test_the_bytes_are_those_that_the_kernel_has_counted(r, clients):
    if sys.platform != 'linux':
        pytest.skip('NOT TESTED: bytes by connection: only Linux counts them')
    for _ in range(1000):
        clients.send(2)
    (oldest,) = activity.activity(r, limit=1, only=clients.name(2))['oldest']
    assert oldest['received'] == 1000 and 1990 <= oldest['sent'] <= 2000


def test_each_sort_key_decides(r, clients, often):
    def found(sort):
        for _ in range(3):
            clients.send(5)
        clients.send(2, b'slow')
        return names(activity.activity(r, sort)['busiest'])

    activity.activity(r)
    assert found('busy') == [clients.name(2), clients.name(5)]
    assert found('calls') == [clients.name(5), clients.name(2)]
    assert found('age') == [clients.name(2), clients.name(5)]


def test_the_oldest_connections_come_first(r, clients):
    activity.activity(r)
    assert names(activity.activity(r, limit=3)['oldest']) == [clients.name(n) for n in range(3)]


def test_the_oldest_are_found_although_each_look_visits_only_a_few(r, clients, monkeypatch):
    monkeypatch.setattr(activity, 'VISITED', 2)
    for _ in range(10):
        found = activity.activity(r, limit=2)
    assert names(found['oldest']) == [clients.name(0), clients.name(1)]


def test_only_connections_with_this_address_are_listed(r, clients, often):
    activity.activity(r)
    clients.send(0)
    clients.send(3)
    port = clients.name(3).rpartition(':')[2]
    activity.activity(r, only=port)
    clients.send(0)
    clients.send(3)
    found = activity.activity(r, only=port)
    assert names(found['busiest']) == [clients.name(3)] == names(found['oldest'])


def test_a_connection_that_has_ended_is_still_listed(r, clients, often):
    activity.activity(r)
    name = clients.name(5)
    clients.send(5)
    clients.socks.pop().close()
    run_until(r, lambda: r.stats().incoming == 5)
    (ended,) = activity.activity(r)['busiest']
    assert ended['connection'] == name and 'ended' in ended['waits_for'] and ended['calls'] >= 1


def test_when_nobody_looks_any_more_nothing_is_timed():
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        activity.activity(r)
        assert r.phase_timer.watching
        for _ in range(4):
            kernel.time += 2
            activity.activity(r)
            r.run_once(0)
        assert r.phase_timer.watching, 'somebody looks every two seconds'
        for _ in range(4):
            kernel.time += activity.SILENT / 2
            r.run_once(0)
        assert not r.phase_timer.watching and not r.timers.pending


def test_after_a_pause_callbacks_are_timed_again(often):
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        for _ in range(3):
            activity.activity(r)
            assert r.phase_timer.watching
            for _ in range(4):
                kernel.time += activity.SILENT / 2
                r.run_once(0)
            assert not r.phase_timer.watching
        assert len(r._exit_callbacks) == 1


def test_a_closed_reactor_is_not_kept():
    with Reactor() as r:
        activity.activity(r)
        closed = weakref.ref(r)
    del r
    gc.collect()
    assert closed() is None


# -- the table


def part(idle, active, turns):
    seconds = {'idle': idle, 'dispatch': active, 'timers': 0.0, 'soon': 0.0, 'completions': 0.0}
    return {'seconds': seconds, 'loop_count': turns, 'timer_lag': [3, 0], 'timer_lag_sum': 0.001}


def row(**changes):
    found = {
        'connection': '127.0.0.1:40001', 'kind': 'Stream', 'busy': 0.25, 'calls': 1000, 'received': 12_345_678,
        'sent': 512, 'buffered': 70_000, 'seconds': 7200.0, 'waits_for': 'data or EOF',
    }  # fmt: skip
    return found | changes


def test_the_table_fits_into_80_columns_and_shows_what_happened_since_the_last_look():
    before = {'workers': {'0': part(10.0, 10.0, 100)}, 'sum': part(10.0, 10.0, 100)}
    answer = {'workers': {'0': part(10.75, 10.25, 300)}, 'sum': part(10.75, 10.25, 300)}
    answer |= {
        'interval': 0.5,
        'active': 1234,
        'busiest': [row()],
        'oldest': [row(connection='[::1]:5', received=None)],
    }
    found = top.lines(answer, before)
    assert max(map(len, found)) <= 80
    assert '0: 25.0% busy, 200 turns/s' in found[0]
    assert any('1,234 connections with callbacks' in line for line in found)
    (busiest,) = [line for line in found if '127.0.0.1:40001' in line]
    assert busiest.split() == ['127.0.0.1:40001', '50.0%', '2,000', '12MB', '512B', '70kB', '2h', 'data', 'or', 'EOF']


def test_text_from_a_peer_cannot_send_commands_to_the_terminal():
    both = [row(connection='\x1b[2J', waits_for='\x1b]0;title\x07')]
    answer = {'workers': {}, 'sum': part(1.0, 1.0, 1), 'interval': 1.0, 'active': 1, 'busiest': both, 'oldest': both}
    assert '\x1b' not in ''.join(top.lines(answer, None)) and '\x07' not in ''.join(top.lines(answer, None))


@pytest.mark.parametrize(
    'seconds, text', [(0.4, '0s'), (99.0, '99s'), (130.0, '2m'), (7200.0, '2h'), (400_000.0, '5d')]
)
def test_an_age_is_short(seconds, text):
    assert top._age(seconds) == text


@pytest.mark.parametrize(
    'count, text',
    [(0, '0B'), (9999, '9999B'), (10_000, '10kB'), (123_456_789, '123MB'), (10**13, '10000GB'), (None, '')],
)
def test_a_number_of_bytes_is_short(count, text):
    assert top._size(count) == text


# -- the command


@pytest.fixture
def app(tmp_path):
    """A program with a control socket, and a client that keeps it busy: (path, send)."""
    path = str(tmp_path / 'control')
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    process = subprocess.Popen([sys.executable, '-c', APP, path], stdout=subprocess.PIPE, text=True, env=environment)
    port = int(process.stdout.readline())
    sock = socket.create_connection(('127.0.0.1', port), timeout=10)

    def send(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sock.send(b'x')
            sock.recv(10)

    yield path, send
    sock.close()
    process.kill()
    process.communicate()


def command(*words):
    return [sys.executable, '-m', 'reactor.observe', *words]


def run(*words):
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_once_prints_one_table_of_a_second(app):
    path, send = app
    both = run(path, 'top', '--once'), run(path, 'top', '--once', '--json')
    send(2.5)
    table, as_json = (process.communicate(timeout=30)[0] for process in both)
    assert 'utilisation' in table and re.search(r'127\.0\.0\.1:\d+ +\d+\.\d% +[\d,]+ ', table)
    answer = json.loads(as_json)
    assert 0.9 < answer['interval'] < 5 and answer['busiest'][0]['calls'] > 100
    assert [process.returncode for process in both] == [0, 0]


class Terminal:
    """The command `top` in a terminal of 80 columns."""

    def __init__(self, path):
        environment = {**os.environ, 'PYTHONPATH': str(PROJECT), 'TERM': 'xterm', 'COLUMNS': '80', 'LINES': '24'}
        self.number, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command(path, 'top'), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.text = ''

    def read_until(self, wanted, send=lambda seconds: None):
        until = time.monotonic() + 20
        while not re.search(wanted, self.text):
            assert time.monotonic() < until, self.text[-2000:]
            send(0.05)
            if select.select([self.number], [], [], 0)[0]:
                try:
                    self.text += os.read(self.number, 65536).decode()
                except OSError:
                    break  # the command has ended
        found, self.text = self.text, ''
        return found

    def press(self, keys):
        os.write(self.number, keys.encode())


@pytest.fixture
def terminal(app):
    terminal = Terminal(app[0])
    yield terminal
    terminal.process.kill()
    terminal.process.communicate()
    os.close(terminal.number)


def test_the_live_table_is_sorted_filtered_and_left_with_the_terminal_as_it_was(app, terminal):
    _, send = app
    screen = terminal.read_until(r'127\.0\.0\.1:\d+ +\d+\.\d% +[1-9]', send)
    assert screen.startswith(top.ALTERNATE) and 'q quit' in screen
    terminal.press('c')
    terminal.read_until(r'utilisation', send)
    terminal.press('/nowhere')
    terminal.read_until(r'filter: nowhere', send)
    terminal.press('\r')
    terminal.read_until(
        r'the busiest:[^\n]*\n[^\n]*waits for[^\n]*\n[^\n]*the oldest:[^\n]*\n[^\n]*waits for\x1b\[K\r?\n\x1b\[K', send
    )
    terminal.press('q')
    terminal.read_until(re.escape(top.NORMAL))
    assert terminal.process.wait(10) == 0


def test_ctrl_c_leaves_the_live_table_cleanly(app, terminal):
    terminal.read_until('utilisation', app[1])
    terminal.process.send_signal(signal.SIGINT)  # as a terminal does for Ctrl-C
    assert top.NORMAL in terminal.read_until(re.escape(top.NORMAL))
    assert terminal.process.wait(10) == 0


@pytest.mark.parametrize(
    'words, said',
    [
        (['top', 'stats'], 'stands alone'),
        (['stats', '--once'], 'option of top'),
        (['stats', '--sort', 'busy'], '--sort is an option of top'),
        (['stats', 'trace'], 'stands alone'),
    ],
)
def test_a_wrong_combination_is_refused(words, said):
    done = subprocess.run(command('/no/socket', *words), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2) and said in done.stderr


def test_without_a_terminal_the_message_names_the_option_for_scripts(app):
    process = run(app[0], 'top')
    assert '--once' in process.communicate(timeout=30)[1] and process.returncode == 2


def test_a_wrong_sort_key_is_refused_with_the_valid_ones(app):
    process = run(app[0], 'top', '--once', '--sort', 'name')
    assert 'busy, calls, waits, age' in process.communicate(timeout=30)[1] and process.returncode == 1


def test_each_worker_answers(tmp_path):
    with Program(tmp_path) as program:
        program.workers()
        program.send(b'pid')
        answer = program.client.ask('top')
        assert 'worker 0' in '\n'.join(top.lines(answer, None))
        assert [one['worker'] for one in answer['connections']] == ['0', '1']
        assert all({'busiest', 'oldest', 'interval'} <= one.keys() for one in answer['connections'])
        assert answer['workers'].keys() == {'0', '1'}
        oldest = [one['oldest'] for one in answer['connections']]
        assert sum(map(len, oldest)) == 1
