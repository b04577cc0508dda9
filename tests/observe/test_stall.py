"""A stall among 2,000 connections: the flight recorder's file says which callback it was, for whom, and who waited.

Everything is seen from outside. The server is a process of its own, and the clients note when they send and when the
reply arrives, on the same clock as the server. The file is checked against the document of its format.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest

from perf.visitors import browser, speedscope
from tests.helpers.trace_format import check

resource = pytest.importorskip('resource', reason='NOT TESTED: a stall among 2,000 connections: no limits to raise')

CONNECTIONS = 2000
RATE = 1000  # requests of all clients together in a second
STALL = 0.08  # seconds
TIMERS = 20
ATTEMPTS = 3  # on a busy machine, another callback may be slow first, and then the stall causes no file
PROGRAM = f"""
import sys, time
import reactor
from reactor import observe

def on_data(conn, data):
    if data == b'report\\n':
        time.sleep({STALL})
    conn.write(data)

def main(r):
    server = r.listen_tcp('127.0.0.1', 0, on_data)
    for _ in range({TIMERS}):
        r.call_every(0.01, int)
    observe.FlightRecorder(r, seconds=float(sys.argv[1]), folder='traces', slow=0.05)
    print(server.address[1], flush=True)

reactor.run(main)
"""
PLACE = '__main__.on_data:6'


@dataclass
class Request:
    """When a client sent a request, and when it received the reply: seconds of the clock that all processes share."""

    sending: float
    sent: float
    answered: float = 0.0


class Clients:
    """Connections that are idle for most of the time: one after the other sends a line and waits for its echo."""

    def __init__(self, port):
        self.selector = selectors.DefaultSelector()
        self.socks = [socket.create_connection(('127.0.0.1', port)) for _ in range(CONNECTIONS)]
        self.pending = {}  # {socket: its request}
        self.requests = []
        for sock in self.socks:
            sock.setblocking(False)
            self.selector.register(sock, selectors.EVENT_READ)
        self.next = deque(self.socks[1:])  # the first one only asks for the report

    def send(self, sock, line):
        sending = time.monotonic()
        sock.send(line)
        self.pending[sock] = Request(sending, time.monotonic())
        self.requests.append(self.pending[sock])

    def go(self, seconds):
        """Send requests at the given rate for some seconds, and receive the replies."""
        due = time.monotonic()
        until = due + seconds
        while (now := time.monotonic()) < until:
            if now >= due:
                due += 1 / RATE
                if self.next[0] not in self.pending:
                    self.send(self.next[0], b'x\n')
                self.next.rotate(-1)
            self.receive(max(0.0, due - now))

    def receive(self, seconds):
        for key, _ in self.selector.select(seconds):
            assert key.fileobj.recv(100), 'the server has closed a connection'
            self.pending.pop(key.fileobj).answered = time.monotonic()

    def close(self):
        self.selector.close()
        for sock in self.socks:
            sock.close()


@dataclass
class Stalled:
    """The file of a stall, and what the clients saw."""

    path: Path
    text: str
    client: str
    requests: list[Request]

    def slices(self, track, longer=0.0):
        """Return the slices of the track with this name, in the order of their times, that are longer than this."""
        events = check(self.text)
        tracks = [each['tid'] for each in events if each['name'] == 'thread_name' and each['args']['name'] == track]
        found = [each for each in events if each['ph'] == 'X' and each['tid'] in tracks and each['dur'] > longer * 1e6]
        return sorted(found, key=lambda each: each['ts'])


@pytest.fixture(scope='module')
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 200:
        pytest.skip(f'NOT TESTED: a stall among {CONNECTIONS} connections: this process may open only {hard} files')
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def stall(folder, quiet, seconds):
    """Run the server, and plant a stall after `quiet` seconds; a file reaches back for `seconds`."""
    (folder / 'server.py').write_text(PROGRAM)
    server = subprocess.Popen(
        [sys.executable, 'server.py', str(seconds)], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        clients = Clients(int(server.stdout.readline()))
        try:
            for _ in range(ATTEMPTS):
                clients.go(quiet)
                clients.send(clients.socks[0], b'report\n')
                clients.go(2.0)
                host, port = clients.socks[0].getsockname()
                for path in sorted((folder / 'traces').glob('trace-*.json')):
                    found = Stalled(path, path.read_text(), f'{host}:{port}', clients.requests)
                    if f'{PLACE} took' in found.text and found.slices(f'Stream {found.client}', longer=STALL):
                        return found
            raise AssertionError('the stall caused no file')
        finally:
            clients.close()
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope='module')
def stalled(many_descriptors, tmp_path_factory):
    """A stall a short time after the start."""
    return stall(tmp_path_factory.mktemp('stall'), quiet=2.5, seconds=2.0)


def assert_names_the_stall(stalled):
    """The file alone must say which callback stalled, for which connection, and how much was delayed."""
    assert re.fullmatch(rf'{re.escape(PLACE)} took 0\.\d+ s', json.loads(stalled.text)['otherData']['reason'])
    (again,) = stalled.slices(f'Stream {stalled.client}', longer=STALL)
    (found,) = [each for each in stalled.slices('callbacks', longer=STALL) if each['ts'] == again['ts']]
    assert found['name'] == again['name'] == PLACE and found['args'] == again['args']
    assert found['args']['phase'] == 'dispatch'
    assert found['args']['connection'] == f'Stream {stalled.client}'

    began, ended = found['ts'] / 1e6, (found['ts'] + found['dur']) / 1e6
    turns = [each['ts'] / 1e6 for each in stalled.slices('turns')]
    before = max([each for each in turns if each <= began][:-1], default=0.0)
    after = min(each for each in turns if each >= ended)
    during = [each for each in stalled.requests if began <= each.sending and each.sent <= ended]
    perhaps = [each for each in stalled.requests if before <= each.sent and each.sending <= after]
    assert during, 'the clients went on sending'
    assert len(during) <= found['args']['events_that_waited'] <= len(perhaps)
    assert all(each.answered >= ended for each in during)
    # Milliseconds. The first request of the stall waited for nearly all of it, and the file says so.
    longest = found['args']['waited_at_most_ms']
    assert (ended - min(each.sending for each in during)) * 1e3 <= found['dur'] / 1e3 <= longest
    assert found['args']['timers_that_waited'] >= TIMERS
    assert STALL * 1e3 / 2 <= found['args']['mean_timer_lag_ms'] <= longest + 10


def test_the_file_names_the_line_the_connection_and_what_waited(stalled):
    assert_names_the_stall(stalled)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_stall_in_a_minute_is_found(many_descriptors, tmp_path):
    assert_names_the_stall(stall(tmp_path, quiet=58.0, seconds=10.0))


@pytest.mark.slow
def test_speedscope_opens_the_file_at_the_callback(stalled, tmp_path):
    if missing := speedscope.missing():
        pytest.skip(f'NOT TESTED: a trace in a viewer: {missing}')
    with browser.Browser(*speedscope.FLAGS) as window:
        window.show(1280, 400)
        speedscope.show(window, stalled.path, tmp_path)
        shown = window.run('return document.body.innerText')
        assert re.search(r'reactor \d+ \(pid \d+\), callbacks \(tid \d+\)', shown), shown
        window.press('3')  # a table of the track; in the other views, names are drawn and not text
        window.until(f"document.body.innerText.includes('{PLACE}')")
        rows = re.findall(rf'{re.escape(PLACE)} .*', window.run('return document.body.innerText'))
        connection = f'"connection":"Stream {stalled.client}"'
        assert any(connection in row and '"events_that_waited":' in row for row in rows), rows
        # The viewer complains about slices that overlap or do not end.
        assert not [each for each in window.log() if each['level'] == 'SEVERE' or 'ried to end' in each['message']]
