"""The process that drives a soak: it starts clients at a given rate, and causes floods.

The clients are drawn at random, from a seed. Every client must succeed or end for a stated reason. Any other outcome is
a fault, unless the client was disturbed by a flood or by a stop of this process.
"""

import collections
import functools
import json
import random
import resource
import socket
import ssl
import sys

import reactor

from .clients import WEIGHTS, Held
from .common import STATED, CommandSocket, LogWatch, by_words, objects

BEAT = 0.02  # seconds from one batch of new clients to the next
GAP = 0.5  # seconds without a beat after which we assume that this process or the whole machine was stopped
AFTERMATH = 2  # seconds after a flood during which the accumulated work still disturbs clients
FLOOD_STEP = 100  # connections of a flood that are opened in each beat
KEPT = 20  # the most faults that the report describes
SOME = 5  # clients of each kind in the warm-up


class Driver:
    """The clients, and their outcomes."""

    def __init__(self, r, seed, rate, patience, folder, ports):
        self.r = r
        self.random = random.Random(seed)
        self.rate = rate
        self.patience = patience
        self.context = ssl.create_default_context(cafile=f'{folder}/server.pem')
        self.ports = ports
        self.closed_port = socket.socket()  # a port that is bound, but on which nothing listens
        self.closed_port.bind(('127.0.0.1', 0))
        ports['closed'] = self.closed_port.getsockname()[1]
        self.open = set()
        self.opened = collections.Counter()
        self.outcomes = collections.Counter()
        self.flood = []
        self.flood_left = 0
        self.driving = False
        self.owed = 0.0
        self.disturbed_at = self.last_beat = r.now
        self.faults = self.excused = 0
        self.first_faults = []
        r.call_every(BEAT, self.on_beat)

    def begin(self, kind):
        self.opened[kind.__name__] += 1
        client = kind(self)
        self.open.add(client)
        return client

    def ended(self, client, how):
        self.open.discard(client)
        self.look_for_gap()
        kind = type(client).__name__
        self.outcomes[kind, how] += 1
        if how not in STATED or not client.acceptable(how):
            if how in STATED and self.disturbed_at >= client.began:
                self.excused += 1
                return
            self.faults += 1
            if len(self.first_faults) < KEPT:
                self.first_faults.append(f'{kind}: {how} after {self.r.now - client.began:.3f} s')

    def on_beat(self):
        self.look_for_gap()
        self.last_beat = self.r.now
        if self.flood_left:
            step = min(FLOOD_STEP, self.flood_left)
            self.flood_left -= step
            self.flood += [self.begin(Held) for _ in range(step)]
        if self.driving:
            self.owed += self.rate * BEAT
            kinds = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=int(self.owed))
            self.owed -= len(kinds)
            for kind in kinds:
                self.begin(kind)

    def look_for_gap(self):
        if self.flood or self.r.now - self.last_beat > GAP:
            self.disturbed_at = self.r.now + AFTERMATH

    # -- commands from the main process

    def some_of_each(self):
        for kind in WEIGHTS:
            for _ in range(SOME):
                self.begin(kind)
        return True

    def drive(self, driving):
        self.driving = driving
        return True

    def begin_flood(self, count, seconds):
        self.flood_left += count
        self.disturbed_at = self.r.now
        self.r.call_later(seconds, self.end_flood)
        return True

    def end_flood(self):
        self.flood_left = 0
        held, self.flood = self.flood, []
        self.disturbed_at = self.r.now + AFTERMATH
        for client in held:
            client.leave()

    def stop(self):
        """Abort all clients that are still connected."""
        for client in list(self.open):
            client.end('stopped')
        return True

    def still_open(self):
        return len(self.open)

    def sample(self, log):
        stats = self.r.stats()
        return {
            'objects': objects(),
            'opened': sum(self.opened.values()),
            'ended': sum(self.outcomes.values()),
            'open': len(self.open),
            'outgoing': stats.outgoing,
            'flood': bool(self.flood or self.flood_left),
            'outcomes': by_words(self.outcomes),
            'faults': self.faults,
            'first_faults': self.first_faults,
            'excused': self.excused,
            'unplanned': log.unplanned,
            'stats': stats.as_dict(),
        }


def main(descriptor, seed, rate, patience, folder, ports):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log = LogWatch()
    with reactor.Reactor() as r:
        driver = Driver(r, int(seed), float(rate), float(patience), folder, json.loads(ports))
        commands = {
            'sample': functools.partial(driver.sample, log),
            'some_of_each': driver.some_of_each,
            'drive': driver.drive,
            'flood': driver.begin_flood,
            'stop': driver.stop,
            'still_open': driver.still_open,
        }
        CommandSocket(r, int(descriptor), commands).send('ready')
        r.run()


if __name__ == '__main__':
    main(*sys.argv[1:])
