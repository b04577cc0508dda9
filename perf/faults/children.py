"""Thousands of child processes (M18). Zombies are counted from the operating system, not from the reactor."""

import gc
import time
from pathlib import Path

import reactor

from .case import Case, Goal
from .child import LATER, Child
from .programs import Looks

CHILDREN = 10_000
AT_ONCE = 50  # children that run at the same time
STEP = 500  # children started by one command
COMMAND = ['/bin/true']


class Children(Case):
    name = 'M18'
    title = '10,000 short-lived child processes, 50 at a time'
    seconds = 60
    goals = (
        Goal('every child is reported to have exited', lambda m: m['exits'] == m['spawns']),
        Goal('every exit code is right', lambda m: m['codes'] == {'0': m['spawns']}),
        Goal('no zombie is left', lambda m: m['zombies'] == 0),
        Goal('no descriptor is left', lambda m: m['descriptors_left'] == 0),
        Goal('no object is left, with the garbage collector off', lambda m: m['objects_left'] <= 0),
    )

    def measure(self, run):
        count = run.count(CHILDREN, 100)
        with Child('children:spawn') as child:
            child.ask('go', count=min(STEP, count))  # warm-up
            before = self.look(child)
            began, found = time.monotonic(), {'spawns': 0, 'exits': 0, 'codes': {}}
            for done in range(0, count, STEP):
                step = child.ask('go', count=min(STEP, count - done))
                for name in ('spawns', 'exits'):
                    found[name] += step[name]
                for code, times in step['codes'].items():
                    found['codes'][code] = found['codes'].get(code, 0) + times
                run.progress(done, count, f'{found["exits"]:,} exits')
            took = time.monotonic() - began
            found['zombies'] = zombies(child.pid)
            after = self.look(child)
        left = {f'{name}_left': after[name] - before[name] for name in before}
        return {**found, **left, 'per_second': count / took}

    def look(self, child):
        return {'descriptors': child.descriptors(), 'objects': child.ask('objects')}


def zombies(pid):
    """Return how many children of a process have ended but have not been reaped."""
    count = 0
    for one in Path(f'/proc/{pid}/task/{pid}/children').read_text().split():
        count += 'State:\tZ' in Path(f'/proc/{one}/status').read_text()
    return count


class Spawner:
    """Starts `count` children for the command `go`, with at most AT_ONCE of them running at the same time."""

    def __init__(self, r, control):
        self.r, self.control = r, control

    def go(self, count):
        self.left, self.spawns, self.exits, self.codes = count, 0, 0, {}
        for _ in range(min(AT_ONCE, count)):
            self.start()
        return LATER

    def start(self):
        self.left -= 1
        self.spawns += 1
        self.r.spawn(COMMAND, on_exit=self.ended)

    def ended(self, process, code, signum):
        self.exits += 1
        self.codes[str(code)] = self.codes.get(str(code), 0) + 1
        if self.left:
            self.start()
        elif self.exits == self.spawns:
            self.control.send({'spawns': self.spawns, 'exits': self.exits, 'codes': self.codes})


def spawn(control):
    gc.disable()

    def main(r):
        control.attach(r, Looks(r).commands(go=Spawner(r, control).go))

    reactor.run(main)
