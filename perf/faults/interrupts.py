"""A flood of signals to a busy loop (M10).

The kernel merges pending signals of one kind, so the number of calls is not compared with the number of signals. One
goal is that each handler runs at least once after its signal was last sent. The other is that SIGTERM is handled in
time.
"""

import os
import signal
import time
from collections import deque

import reactor

from .case import Case, Goal
from .child import Child
from .held import wait_until

SIGNALS = 1_000_000
STEP = 10_000  # signals between two updates of the progress line
RARE = signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH  # each of these signals is sent once during the flood
WORK = 0.001  # seconds of work per turn


class SignalFlood(Case):
    name = 'M10'
    title = 'SIGUSR1 is sent a million times to a busy loop, then SIGTERM'
    seconds = 20
    goals = (
        Goal('SIGTERM is handled in the next turn at the latest', lambda m: m['turns_to_sigterm'] <= 1),
        Goal(
            'no signal is lost: each handler runs at least once after its signal was last sent',
            lambda m: m['lost'] == [],
        ),
        Goal('the loop makes turns during the flood', lambda m: m['turns'] > 0),
    )

    def measure(self, run):
        count, sent = run.count(SIGNALS, STEP), {}
        with Child('interrupts:busy') as child:
            pid = child.receive()

            def send(signum):
                sent[signum] = time.monotonic()
                os.kill(pid, signum)

            began = time.monotonic()
            for done in range(count):
                send(signal.SIGUSR1)
                if done % (count // 4) == count // 8 and len(sent) <= len(RARE):
                    send(RARE[len(sent) - 1])
                if not done % STEP:
                    run.progress(done, count, f'{done:,} sent')
            took = time.monotonic() - began
            send(signal.SIGTERM)
            wait_until('SIGTERM is handled', lambda: str(int(signal.SIGTERM)) in child.ask('look')['handled'])
            found = child.ask('look')
        handled = {int(signum): one for signum, one in found['handled'].items()}
        lost = [number for number, when in sent.items() if number not in handled or handled[number]['last'] < when]
        return {
            'sent': count,
            'per_second': count / took,
            'calls_of_its_handler': handled[signal.SIGUSR1]['calls'],
            'kinds': len(sent),
            'lost': [signal.Signals(number).name for number in lost],
            'turns': found['turns'],
            'turns_to_sigterm': sum(polled > sent[signal.SIGTERM] for polled in found['polled']),
            'sigterm_after_ms': (handled[signal.SIGTERM]['last'] - sent[signal.SIGTERM]) * 1000,
        }


class Busy:
    """Works in every turn, and records the calls of each signal handler."""

    def __init__(self, r):
        self.r = r
        self.handled = {}
        self.turns = 0
        self.polled = deque(maxlen=100)  # times at which the selector returned in the last turns
        self.to_sigterm = []
        for signum in (signal.SIGUSR1, signal.SIGTERM, *RARE):
            r.add_signal_handler(signum, self.handle, signum)
        r.call_soon(self.work)

    def work(self):
        self.r.call_soon(self.work)
        self.turns += 1
        self.polled.append(self.r.now)
        began = time.monotonic()
        while time.monotonic() - began < WORK:
            pass

    def handle(self, signum):
        one = self.handled.setdefault(int(signum), {'calls': 0})
        one['calls'] += 1
        one['last'] = time.monotonic()
        if signum == signal.SIGTERM:
            self.to_sigterm = list(self.polled)

    def look(self):
        return {'handled': self.handled, 'turns': self.turns, 'polled': self.to_sigterm}


def busy(control):
    def main(r):
        one = Busy(r)
        control.attach(r, {'look': one.look})
        control.send(os.getpid())

    reactor.run(main)
