"""Measure how long the garbage collector stops a loop with as many connections as a process can have (M20).

Pauses are measured in the collector's own callbacks. The lateness of the loop, for any reason, is reported separately.
"""

import gc
import time

import reactor
from perf.common.machine import ahead_of_others, raise_descriptor_limit

from .case import Case, Goal
from .child import Child
from .held import FIRST, SPARE, limit, open_all, wait_until
from .programs import Looks, echo, resume

BUSY = 10.0  # seconds of load in each mode
ASKING = 200  # connections that send requests
PASSING = 50  # other connections that are open at a time; they are opened and closed during the load
TICK = 0.002  # seconds between two measurements of how late the loop is
LONGEST = 50  # milliseconds that a pause may take


class Collector(Case):
    name = 'M20'
    title = 'pauses of the garbage collector with 20,000 connections'
    seconds = 60
    goals = (
        Goal(
            'pauses are at most 50 ms while connections are opened',
            lambda m: m['while opening']['longest_pause_ms'] <= LONGEST,
            timed=True,
        ),
        Goal(
            'pauses are at most 50 ms in traffic, with a full collection',
            lambda m: m['in traffic']['longest_pause_ms'] <= LONGEST,
            timed=True,
        ),
        Goal(
            'pauses are at most 50 ms in traffic after gc.freeze()',
            lambda m: m['frozen']['longest_pause_ms'] <= LONGEST,
            timed=True,
        ),
    )

    def measure(self, run):
        count, seconds = run.count(limit() - SPARE, FIRST), run.seconds(BUSY, 0.4)
        found = {'connections': count}
        with Child('collector:serve', prefix=ahead_of_others()) as server:
            port = server.receive()
            with (
                Child('programs:hold', port=port) as held,
                Child('churn:come_and_go', port=port) as passers,
            ):
                server.ask('begin')
                open_all(run, [held], count, 'opened')
                wait_until('all connections are accepted', lambda: server.ask('look')['incoming'] == count)
                found['while opening'] = server.ask('end')
                for mode in ('in traffic', 'frozen'):
                    if mode == 'frozen':
                        server.ask('freeze')
                    server.ask('begin')
                    self.load(run, held, passers, seconds, mode)
                    server.ask('collect')
                    found[mode] = server.ask('end')
        return found

    def load(self, run, held, passers, seconds, mode):
        """Send requests on some of the open connections, while other connections are opened and closed."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            passers.send('go', count=20 * PASSING)
            held.ask('ping', first=0, count=ASKING)
            passers.receive()
            run.progress(passed, seconds, mode)


class Pauses:
    """Records the longest pause of the collector, and how late the loop was."""

    def __init__(self, r):
        self.r = r
        self.began = 0.0
        self.begin()
        gc.callbacks.append(self.note)
        r.call_later(TICK, self.tick, time.monotonic() + TICK)

    def begin(self):
        self.collections, self.longest, self.late = [0, 0, 0], [0.0, 0.0, 0.0], 0.0

    def note(self, phase, info):
        if phase == 'start':
            self.began = time.perf_counter()
        else:
            generation = info['generation']
            self.collections[generation] += 1
            self.longest[generation] = max(self.longest[generation], time.perf_counter() - self.began)

    def tick(self, due):
        self.late = max(self.late, time.monotonic() - due)
        self.r.call_later(TICK, self.tick, time.monotonic() + TICK)

    def end(self):
        return {
            'longest_pause_ms': max(self.longest) * 1000,
            'longest_by_generation_ms': {str(n): longest * 1000 for n, longest in enumerate(self.longest)},
            'collections': {str(n): count for n, count in enumerate(self.collections)},
            'latest_turn_ms': self.late * 1000,
        }


def serve(control):
    def main(r):
        raise_descriptor_limit()
        pauses = Pauses(r)
        control.attach(r, Looks(r).commands(begin=pauses.begin, end=pauses.end))
        control.send(r.listen_tcp('127.0.0.1', 0, echo, on_drain=resume).address[1])

    reactor.run(main)
