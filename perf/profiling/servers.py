"""The servers to profile: a small program for each kind of work that a reactor does.

Each server prints `listening on HOST:PORT`, prints a line of counters at every SIGUSR1, and ends with status 0 at
SIGTERM.

    keepalive  replies to every chunk and keeps the connection
    churn      replies and closes
    seed       `python -m reactor.demo serve`, this project's first program: a timer replies, a callback closes
    idle       holds connections and sends nothing
    pump       writes as fast as the client reads
    timers     sets twenty timers for every chunk, cancels half of them, and replies when the last one fires
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from time import monotonic, process_time

import reactor
from reactor.demo.server import serve

HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 34\r\n\r\n'
REPLY = HEAD + b'.' * (100 - len(HEAD))
BLOCK = bytes(65536)
SEED_DELAY = 1.0  # seconds until the reply: not 5 as in the first program, because a profile waits for the last reply
TIMERS = 20  # timers set for every chunk
TIMER_STEP = 0.001  # seconds between two timers


def answer(conn, data):
    conn.write(REPLY)


def answer_and_close(conn, data):
    conn.write(REPLY)
    conn.close()


def write_block(conn):
    if not conn.closed:
        conn.write(BLOCK, write_block)


class Timers:
    """The callbacks of the workload `timers`."""

    def __init__(self, r):
        self.r = r

    def on_data(self, conn, data):
        timers = [self.r.call_later(TIMER_STEP * n, self.tick) for n in range(1, TIMERS)]
        self.r.call_later(TIMER_STEP * TIMERS, self.answer, conn)
        for timer in timers[::2]:
            timer.cancel()

    def tick(self):
        pass

    def answer(self, conn):
        if not conn.closed:
            conn.write(REPLY)


def start(r, workload):
    """Listen on a free port of 127.0.0.1 and print the address."""
    if workload == 'seed':
        serve(r, '127.0.0.1', 0, delay=SEED_DELAY, reuse_port=False, seconds=None, stats=False)
        return
    callbacks = {
        'keepalive': {'on_data': answer},
        'churn': {'on_data': answer_and_close},
        'idle': {'on_data': None},
        'pump': {'on_data': None, 'on_connect': write_block},
        'timers': {'on_data': Timers(r).on_data},
    }
    host, port = r.listen_tcp('127.0.0.1', 0, **callbacks[workload]).address[:2]
    r.add_signal_handler(signal.SIGTERM, r.stop)
    print(f'listening on {host}:{port}', flush=True)


def print_counters(r):
    """Print the counters of the reactor, the clock, and what this process has used, as a line of JSON."""
    used = {'cpu_seconds': process_time(), 'preemptions': resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw}
    print(json.dumps(r.stats().as_dict() | {'clock': monotonic(), **used}), flush=True)


def main(workload):
    """Serve until SIGTERM."""
    with reactor.Reactor() as r:
        r.add_signal_handler(signal.SIGUSR1, print_counters, r).unref()
        start(r, workload)
        r.run()


if __name__ == '__main__':
    main(sys.argv[1])
