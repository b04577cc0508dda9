"""`drain()` of a server with many connections: the cost of waiting, and how each connection ends (M25).

The clients come from `programs.hold` and stay idle. The server delays its answer to half of them, and marks
these connections as busy in the meantime.
"""

import time

import reactor

from .case import Case, Goal
from .child import Child
from .held import open_all, wait, wait_until
from .programs import Looks

CONNECTIONS = 10_000
TIMEOUT = 120  # timeout of drain() in seconds
BUSY = 20.0  # seconds for which half of the connections are busy


class Ending(Case):
    name = 'M25'
    title = 'drain() of a server with 10,000 connections, half of them busy for 20 s'
    seconds = 40
    goals = (
        Goal('idle connections are closed within 5 s', lambda m: m['idle_closed_after'] <= 5, timed=True),
        Goal('CPU use is below 1 % while the busy connections wait', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('every connection ends without an error', lambda m: m['ends'] == {'NoneType': m['connections']}),
        Goal(
            'all connections end, and run() returns, within 8 s after the last answer',
            lambda m: m['over_after'] <= 8,
            timed=True,
        ),
    )

    def measure(self, run):
        count = run.count(CONNECTIONS, 20)
        with Child('ending:serve_busy') as server:
            with Child('programs:hold', port=server.receive()) as clients:
                open_all(run, [clients], count, 'opened')
                wait_until('all connections are accepted', lambda: server.ask('look')['incoming'] == count)
                server.ask('drain')
                idle = wait_until(
                    'idle connections are closed', lambda: server.ask('look')['incoming'] == count - count // 2
                )
                cpu, began = server.cpu(), time.monotonic()
                wait(run.seconds(BUSY, 0.5), run, 'half of the connections are busy')
                share = (server.cpu() - cpu) / (time.monotonic() - began)
                began = time.monotonic()
                server.ask('answer')
                ends = server.receive()
                over = time.monotonic() - began
        return {
            'connections': count,
            'idle_closed_after': idle,
            'cpu_share': share,
            'ends': ends,
            'over_after': over,
        }


def serve_busy(control):
    """Run a server on which every second connection is busy until the command `answer`."""
    conns, ends = [], {}

    def on_connect(conn):
        conn.busy = len(conns) % 2 == 0
        conns.append(conn)

    def on_close(conn, exc):
        kind = type(exc).__name__
        ends[kind] = ends.get(kind, 0) + 1

    def answer():
        for conn in conns:
            if conn.busy:
                conn.write(b'!')
                conn.busy = False

    def main(r):
        commands = {'drain': lambda: r.drain(TIMEOUT), 'answer': answer}
        control.attach(r, Looks(r).commands(**commands))
        control.send(r.listen_tcp('127.0.0.1', 0, on_connect=on_connect, on_close=on_close).address[1])

    reactor.run(main)
    control.send(ends)
