"""The end of a server that has many connections: what it costs to wait for them, and that each ends in good order.

Owns M25. The rule: the clients are those of `held`, which do nothing by themselves; half of them are owed an answer for
a while, and the others nothing.
"""

import time

import reactor

from .case import Case, Goal
from .child import Child
from .held import open_all, wait, wait_until
from .programs import Looks

CONNECTIONS = 10_000
TIMEOUT = 120  # seconds
SILENCE = 20.0  # seconds in which those who are busy are waited for


class Ending(Case):
    name = 'M25'
    title = 'drain() of a server with 10,000 connections, half of them busy for 20 s'
    seconds = 40
    goals = (
        Goal('who was idle is closed in 5 s', lambda m: m['idle_closed_after'] <= 5, timed=True),
        Goal('CPU below 1 % while the others are busy', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('everybody ends in good order', lambda m: m['ends'] == {'NoneType': m['connections']}),
        Goal('all have ended, and run() has, 8 s behind the last answer', lambda m: m['over_after'] <= 8, timed=True),
    )

    def measure(self, run):
        count = run.count(CONNECTIONS, 20)
        with Child('ending:serve_busy') as server:
            with Child('programs:hold', port=server.hear()) as clients:
                open_all(run, [clients], count, 'opened')
                wait_until('all are accepted', lambda: server.ask('look')['incoming'] == count)
                server.ask('drain')
                idle = wait_until('the idle are closed', lambda: server.ask('look')['incoming'] == count - count // 2)
                cpu, began = server.cpu(), time.monotonic()
                wait(run.seconds(SILENCE, 0.5), run, 'half of them are busy')
                share = (server.cpu() - cpu) / (time.monotonic() - began)
                began = time.monotonic()
                server.ask('answer')
                ends = server.hear()
                over = time.monotonic() - began
        return {
            'connections': count,
            'idle_closed_after': idle,
            'cpu_share': share,
            'ends': ends,
            'over_after': over,
        }


def serve_busy(control):
    """A server every second client of which is owed an answer, until it is told to answer."""
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
        control.say(r.listen_tcp('127.0.0.1', 0, on_connect=on_connect, on_close=on_close).address[1])

    reactor.run(main)
    control.say(ends)
