"""A flood of signals into a loop that is busy.

Owns M10. The rule: the kernel merges signals of one kind, so they are not counted; what counts is that the loop hears
of each kind after it was sent for the last time, and when.
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
STEP = 10_000
RARE = signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH  # each sent once, in the middle of it
WORK = 0.001  # seconds of work in each turn


class SignalFlood(Case):
    name = 'M10'
    title = 'a million SIGUSR1 into a busy loop, and SIGTERM last'
    seconds = 20
    goals = (
        Goal('SIGTERM is handled in the turn after it came', lambda m: m['turns_to_sigterm'] <= 1),
        Goal('no kind is lost: each is heard of after it was sent last', lambda m: m['lost'] == []),
        Goal('the loop goes on meanwhile', lambda m: m['turns'] > 0),
    )

    def measure(self, run):
        count, sent = run.count(SIGNALS, STEP), {}
        with Child('interrupts:busy') as child:
            pid = child.hear()

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
            wait_until('SIGTERM is handled', lambda: str(int(signal.SIGTERM)) in child.ask('look')['heard'])
            found = child.ask('look')
        heard = {int(signum): one for signum, one in found['heard'].items()}
        lost = [number for number, when in sent.items() if number not in heard or heard[number]['last'] < when]
        return {
            'sent': count,
            'per_second': count / took,
            'calls_of_its_handler': heard[signal.SIGUSR1]['calls'],
            'kinds': len(sent),
            'lost': [signal.Signals(number).name for number in lost],
            'turns': found['turns'],
            'turns_to_sigterm': sum(polled > sent[signal.SIGTERM] for polled in found['polled']),
            'sigterm_after_ms': (heard[signal.SIGTERM]['last'] - sent[signal.SIGTERM]) * 1000,
        }


class Busy:
    """Work in every turn, and what was heard of each signal."""

    def __init__(self, r):
        self.r = r
        self.heard = {}
        self.turns = 0
        self.polled = deque(maxlen=100)  # when the selector returned, in the last turns
        self.to_sigterm = []
        for signum in (signal.SIGUSR1, signal.SIGTERM, *RARE):
            r.add_signal_handler(signum, self.hear, signum)
        r.call_soon(self.work)

    def work(self):
        self.r.call_soon(self.work)
        self.turns += 1
        self.polled.append(self.r.now)
        began = time.monotonic()
        while time.monotonic() - began < WORK:
            pass

    def hear(self, signum):
        one = self.heard.setdefault(int(signum), {'calls': 0})
        one['calls'] += 1
        one['last'] = time.monotonic()
        if signum == signal.SIGTERM:
            self.to_sigterm = list(self.polled)

    def look(self):
        return {'heard': self.heard, 'turns': self.turns, 'polled': self.to_sigterm}


def busy(control):
    def main(r):
        one = Busy(r)
        control.attach(r, {'look': one.look})
        control.say(os.getpid())

    reactor.run(main)
