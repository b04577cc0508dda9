"""A million timers (M9), and clocks that jump (M16).

A timer's callback reads the monotonic clock to measure whether the timer is early or late.
"""

import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import reactor
from perf.common.arithmetic import quantile
from perf.common.machine import ahead_of_others
from perf.common.server import Failed

from .case import Case, Goal
from .child import Child
from .held import wait

LIVE = 1_000_000  # timers that remain set
ADDED = 10_000_000  # timers that are added and cancelled while the others stay
STEP = 100_000  # timers added by one command
HOUR = 3600
IDLE_TIMERS = 2_000  # timers whose lateness is measured
IDLE_SECONDS = 10.0  # seconds over which those timers are spread
COMPACT_ABOVE = 64  # cancelled deadlines that the heap may hold, even when few timers are live
GAP = 60.0  # seconds for which the process is stopped
BEAT = 0.05  # seconds from one call of the repeating timer to the next


class Timers(Case):
    name = 'M9'
    title = 'a million timers, while ten million others are added and cancelled'
    seconds = 60
    goals = (
        Goal('adding a timer takes at most 2 µs', lambda m: m['add_us'] <= 2, timed=True),
        Goal(
            'the heap never holds more than two deadlines for each live timer',
            lambda m: m['longest_heap'] <= 2 * m['live'] + COMPACT_ABOVE + 2,
        ),
        Goal('no timer is left after all are cancelled', lambda m: m['left'] == 0),
        Goal('the p99 of the lateness is at most 2 ms in an idle loop', lambda m: m['p99_ms'] <= 2, timed=True),
        Goal('no timer is early', lambda m: m['earliest_ms'] >= 0),
    )

    def measure(self, run):
        with Child('clocks:many_timers', prefix=ahead_of_others()) as child:
            live, added = run.count(LIVE, 1_000), run.count(ADDED, 10_000)
            found = {'live': live, **child.ask('add', count=live), 'longest_heap': live}
            took = 0.0
            for done in range(0, added, STEP):
                step = child.ask('add_and_cancel', count=min(STEP, added - done))
                took += step['seconds']
                found['longest_heap'] = max(found['longest_heap'], step['longest_heap'])
                run.progress(done, added, f'{done:,} added and cancelled')
            found['add_and_cancel_us'] = took / added * 1e6
            seconds = run.seconds(IDLE_SECONDS, 0.5)
            run.progress(1, 1, 'idle')
            found |= child.ask('idle', count=max(100, round(IDLE_TIMERS * seconds / IDLE_SECONDS)), seconds=seconds)
            return {**found, **child.ask('cancel')}


class ManyTimers:
    def __init__(self):
        self.r = reactor.Reactor()
        self.timers = []

    def add(self, count):
        """Add `count` timers; return how many microseconds each takes."""
        call_later, keep = self.r.call_later, self.timers.append
        delays = [HOUR * (1 + random.random()) for _ in range(count)]
        began = time.perf_counter()
        for delay in delays:
            keep(call_later(delay, fire))
        return {'add_us': (time.perf_counter() - began) / count * 1e6}

    def add_and_cancel(self, count):
        """Add and cancel `count` timers; return how many seconds this took, and the largest size of the heap."""
        call_later, heap, longest = self.r.call_later, self.r.timers.heap, 0
        began = time.perf_counter()
        for index in range(count):
            call_later(HOUR, fire).cancel()
            if not index % 1000:
                longest = max(longest, len(heap))
        return {'seconds': time.perf_counter() - began, 'longest_heap': longest}

    def idle(self, count, seconds):
        """Spread `count` timers over `seconds`; return how late they fire."""
        late = []

        def note(due):
            late.append(time.monotonic() - due)
            if len(late) == count:
                self.r.stop()

        now = time.monotonic()
        for _ in range(count):
            due = now + 0.1 + random.random() * seconds
            self.r.call_at(due, note, due)
        self.r.run()
        late.sort()
        found = {'p50_ms': quantile(late, 0.5), 'p99_ms': quantile(late, 0.99), 'most_ms': late[-1]}
        return {name: value * 1000 for name, value in {'earliest_ms': late[0], **found}.items()}

    def cancel(self):
        began = time.perf_counter()
        for timer in self.timers:
            timer.cancel()
        took = (time.perf_counter() - began) / len(self.timers) * 1e6
        return {'cancel_us': took, 'left': len(self.r.timers) + len(self.r.timers.heap)}


def fire():
    raise AssertionError('a timer that is due in an hour was called')


def many_timers(control):
    many = ManyTimers()
    commands = {'add': many.add, 'add_and_cancel': many.add_and_cancel, 'idle': many.idle, 'cancel': many.cancel}
    control.serve(commands)


class Jumps(Case):
    name = 'M16'
    title = 'the wall clock jumps an hour forwards and back; then the process is stopped for a minute'
    seconds = 90
    needs = ('faketime',)
    goals = (
        Goal('the process observed each jump', lambda m: m['wall_jumps'] == m['asked_jumps']),
        Goal('no timer is early', lambda m: m['earliest_ms'] >= 0),
        Goal('no timer is lost, and none fires twice', lambda m: m['fired'] == m['set']),
        Goal(
            'a repeating timer never fires twice in one interval, and never early',
            lambda m: m['beats_too_many'] == 0 and m['earliest_beat'] >= 0,
        ),
        Goal(
            'timers that were due while the process was stopped all fire in the first turn',
            lambda m: m['turns_for_these'] == 1,
        ),
        Goal('jumps of the wall clock delay no timer', lambda m: m['late_while_jumping_ms'] < 200, timed=True),
    )

    def measure(self, run):
        with tempfile.TemporaryDirectory() as folder:
            offset = Path(folder) / 'offset'
            offset.write_text('+0')
            seconds, gap = run.seconds(10, 1), run.seconds(GAP, 1)
            environment = {'FAKETIME_TIMESTAMP_FILE': str(offset), 'FAKETIME_NO_CACHE': '1', 'LD_PRELOAD': library()}
            # libfaketime must not change the monotonic clock, because real jumps of the wall clock do not affect it.
            environment |= {'DONT_FAKE_MONOTONIC': '1', 'FAKETIME_DONT_FAKE_MONOTONIC': '1'}
            with Child('clocks:watch_clocks', env=environment) as child:
                child.ask('begin', seconds=1.5 * seconds + gap)
                steps = ('+1h', '-1h', '+0')
                for count, step in enumerate(steps, 1):
                    wait(seconds / 4, run, 'the wall clock jumps')
                    offset.with_suffix('.new').write_text(step)
                    offset.with_suffix('.new').replace(offset)
                    self.await_jumps(child, count)
                wait(seconds / 4, run, 'the wall clock jumps')
                jumped = child.ask('look')
                child.process.send_signal(signal.SIGSTOP)
                try:
                    wait(gap, run, 'stopped')
                finally:
                    child.process.send_signal(signal.SIGCONT)
                wait(seconds, run, 'goes on')
                return {'asked_jumps': len(steps), **child.ask('end'), 'late_while_jumping_ms': jumped['most_late_ms']}

    def await_jumps(self, child, count):
        """Wait until the process has observed `count` jumps. On a busy machine, this can take many calls of `beat`."""
        for _ in range(200):
            if child.ask('jumped') >= count:
                return
            time.sleep(BEAT)


def library():
    """Return the path of the library that the command faketime preloads."""
    text = subprocess.run(['faketime', '-f', '+0', 'env'], capture_output=True, text=True, check=False).stdout
    found = re.search(r'^LD_PRELOAD=(.*libfaketime\S*)', text, re.MULTILINE)
    if not found:
        raise Failed(f'faketime does not show which library it preloads: {text[-200:]!r}')
    return found[1].split(':')[-1]


class Clocks:
    """Timers at random times and a repeating timer, with the times at which they fired."""

    def __init__(self, r):
        self.r = r
        self.late, self.beats, self.jumps = [], [], 0
        self.set = 0

    def begin(self, seconds):
        now = self.began = time.monotonic()
        self.wall = time.time() - now
        self.set = round(seconds * 100)
        for _ in range(self.set):
            due = now + random.random() * seconds
            self.r.call_at(due, self.fire, due)
        self.first = self.r.call_every(BEAT, self.beat).deadline
        return self.set

    def fire(self, due):
        self.late.append((due, time.monotonic() - due, self.r.counters.loop_count))

    def beat(self):
        # Use the time stamp of the turn. The process may be preempted after the turn has begun and before this line.
        # With the time of this line, two calls that were on time could then seem to fall into one interval.
        self.beats.append(self.r.now)
        wall = time.time() - time.monotonic()
        if abs(wall - self.wall) > HOUR / 2:
            self.jumps += 1
            self.wall = wall

    def jumped(self):
        return self.jumps

    def look(self):
        return {'most_late_ms': max(late for _, late, _ in self.late) * 1000}

    def end(self):
        """Return the figures; call this when all timers have fired."""
        gap, until = max((later - beat, later) for beat, later in zip(self.beats, self.beats[1:], strict=False))
        # Use only the middle of the gap, because the exact time at which the process was stopped is unknown.
        missed = [turn for due, _, turn in self.late if until - 0.75 * gap < due < until - 0.25 * gap]
        slots = [int((beat - self.first) // BEAT) for beat in self.beats]
        return {
            'set': self.set,
            'fired': len(self.late),
            'earliest_ms': min(late for _, late, _ in self.late) * 1000,
            'wall_jumps': self.jumps,
            'longest_gap_s': gap,
            'due_in_the_gap': len(missed),
            'turns_for_these': len(set(missed)),
            'beats': len(slots),
            'beats_too_many': len(slots) - len(set(slots)),
            'earliest_beat': min(slots),
        }


def watch_clocks(control):
    def main(r):
        clocks = Clocks(r)
        control.attach(r, {name: getattr(clocks, name) for name in ('begin', 'jumped', 'look', 'end')})

    reactor.run(main)
