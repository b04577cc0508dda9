"""Ten thousand clients that are slow on purpose and a few good ones, with the server for both (M7).

Deadlines are absolute: the time starts when a client connects, and starts again when a request is complete and when its
response has been sent. A single byte does not extend the deadline. In production, attackers
run on other machines, so here they get one core; the server and the good clients get the other core, at real-time
priority.
"""

import contextlib
import re
import socket
import subprocess
import time

import reactor
from perf.common.arithmetic import quantile
from perf.common.machine import ahead_of_others, cores, on_core, raise_descriptor_limit
from perf.common.server import Failed
from perf.loads.sockets import connect

from .case import Case, Goal
from .child import Child
from .programs import Looks

SLOW = 10_000  # slow clients
ATTACKERS = 4  # processes of slowhttptest; each gets slower the more connections it has
RATE = 1_000  # slow clients that connect each second
DEADLINE = 30.0  # seconds within which a request must arrive, and within which a response must be sent
ATTACK = 80.0  # seconds that slowhttptest runs, including the time for connecting
DRIP = 10  # seconds between two pieces of a slow request
GOOD = 200  # requests a second from all good clients together
GOOD_CLIENTS = 10  # connections of the good clients
SMALL = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'
LARGE = b'HTTP/1.1 200 OK\r\nContent-Length: 262144\r\n\r\n' + b'x' * (256 << 10)
SEND_BUFFER = 16384  # bytes that the kernel buffers; the rest of a large response stays in the server


class SlowLoris(Case):
    name = 'M7'
    title = 'slowhttptest with 10,000 connections: slow headers, then slow reading'
    seconds = 200
    needs = ('slowhttptest',)
    goals = (
        Goal('each slow client is aborted', lambda m: all(one['ended'] == one['slow'] for one in m['modes'].values())),
        Goal(
            'slow clients are aborted at their deadlines: at most 1 s late, and never early',
            lambda m: all(0 <= one['least_late_s'] <= one['most_late_s'] <= 1 for one in m['modes'].values()),
            timed=True,
        ),
        Goal(
            'the p99 of good clients is at most twice that without slow clients',
            lambda m: all(one['p99_us'] <= 2 * m['unloaded_p99_us'] for one in m['modes'].values()),
            timed=True,
        ),
        Goal(
            'every request of the good clients is answered',
            lambda m: all(one['failed'] == 0 for one in m['modes'].values()),
        ),
    )

    def measure(self, run):
        modes = {
            'slow headers': ('-H', '-i', str(DRIP), '-x', '8'),
            'slow reading': ('-X', '-n', str(DRIP), '-z', '64', '-w', '512', '-y', '1024', '-k', '1'),
        }
        deadline, attack = run.seconds(DEADLINE, 1), run.seconds(ATTACK, 2)
        server_core, load_core = cores()
        found = {}
        ahead = ahead_of_others()
        with on_core(server_core), contextlib.ExitStack() as stack:
            server = stack.enter_context(Child('loris:serve_http', prefix=ahead, deadline=deadline))
            port = server.receive()
            good = stack.enter_context(Child('loris:ask', prefix=ahead, port=port))
            run.progress(0, 3, 'without slow clients')
            unloaded = good.ask('ask', seconds=attack / 2)
            for done, (mode, options) in enumerate(modes.items()):
                run.progress(1 + done, 3, mode)
                server.ask('begin')
                good.send('ask', seconds=attack)
                with on_core(load_core):
                    count = self.attack(run, port, options, attack)
                found[mode] = {'slow': count, **server.ask('ends'), **good.receive()}
        return {'unloaded_p50_us': unloaded['p50_us'], 'unloaded_p99_us': unloaded['p99_us'], 'modes': found}

    def attack(self, run, port, options, attack):
        """Run slowhttptest; return how many clients it had."""
        each = run.count(SLOW, 40) // ATTACKERS
        command = ['slowhttptest', *options, '-c', str(each), '-r', str(min(RATE // ATTACKERS, each))]
        command += ['-l', str(round(attack)), '-p', '3']
        command += ['-u', f'http://127.0.0.1:{port}/{"large" if "-X" in options else ""}']
        attackers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(ATTACKERS)]
        try:
            texts = [one.communicate(timeout=attack + 30)[0] for one in attackers]
        finally:
            for one in attackers:
                one.kill()
                one.communicate()
        if failed := [text for text in texts if not re.search(r'closed:\W+\d+', text)]:
            raise Failed(f'slowhttptest: {failed[0].strip()[-200:]}')
        return each * ATTACKERS


class Good:
    """Good clients: they send requests at a fixed rate, and measure times from the moment when each request was due."""

    def __init__(self, port):
        self.port = port

    def ask(self, seconds):
        socks = [connect(self.port) for _ in range(GOOD_CLIENTS)]
        times, failed, began = [], 0, time.perf_counter()
        for index in range(round(GOOD * seconds)):
            due = began + index / GOOD
            time.sleep(max(0, due - time.perf_counter()))
            failed += not self.answered(socks[index % GOOD_CLIENTS])
            times.append(time.perf_counter() - due)
        for sock in socks:
            sock.close()
        times.sort()
        return {'p50_us': quantile(times, 0.5) * 1e6, 'p99_us': quantile(times, 0.99) * 1e6, 'failed': failed}

    def answered(self, sock):
        sock.settimeout(5)
        try:
            sock.send(b'GET /good HTTP/1.1\r\n\r\n')
            return sock.recv(4096) == SMALL
        except OSError:
            return False


def ask(control, port):
    control.serve({'ask': Good(port).ask})


class Connection:
    """A connection of the server: the part of the request that has arrived, and the deadline."""

    def __init__(self, conn, deadlines):
        self.request = b''
        self.deadlines = deadlines
        self.began = time.monotonic()
        self.deadline = conn.loop.call_later(deadlines.deadline, self.too_late, conn)
        conn.data = self
        conn.on_data = self.on_data
        conn.on_close = self.on_close

    def on_data(self, conn, data):
        self.request += data
        if b'\r\n\r\n' in self.request:
            large = self.request.startswith(b'GET /large')
            self.request = b''
            self.begin()
            conn.write(LARGE if large else SMALL, self.on_taken)
        elif len(self.request) > 16384:
            conn.abort()

    def on_taken(self, conn):
        self.begin()

    def begin(self):
        self.began = time.monotonic()
        self.deadline.reset()

    def too_late(self, conn):
        self.deadlines.late.append(time.monotonic() - self.began - self.deadlines.deadline)
        conn.abort()

    def on_close(self, conn, exc):
        self.deadline.cancel()


class Deadlines:
    """The time limit of the server, and how late the server aborted slow clients."""

    def __init__(self, deadline):
        self.deadline = deadline
        self.late = []

    def begin(self):
        self.late = []

    def ends(self):
        least, most = min(self.late, default=0), max(self.late, default=0)
        return {'ended': len(self.late), 'least_late_s': least, 'most_late_s': most}


def serve_http(control, deadline):
    raise_descriptor_limit()
    deadlines = Deadlines(deadline)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.bind(('127.0.0.1', 0))

    def begin(conn):
        Connection(conn, deadlines)

    def main(r):
        control.attach(r, Looks(r).commands(begin=deadlines.begin, ends=deadlines.ends))
        control.send(r.listen_tcp(None, 0, sock=sock, on_connect=begin).address[1])

    reactor.run(main)
