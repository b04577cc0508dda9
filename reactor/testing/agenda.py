"""Simulated time: the clock, the events scheduled for later, and the trace of past events.

Time passes only in `sleep_until`, which the simulated selectors call, and in `busy` and `sleep`, which callbacks call.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from .draws import Draws, Keys, number_of
from .platforms import MS, Platform

SHOWN = 48  # bytes: how much of the data of a call is kept in the trace
START = 1_000_000 * MS  # ns: the simulated time at which a run starts
PROCESS_STEP = 1_000_000  # in the trace, the descriptors of the n-th other process begin at n times this number
COARSE = 0.3  # the share of seeds in which time advances in steps
GRAINS = 0.005, 0.05  # seconds: the shortest and the longest step


class Agenda(Platform):
    """A kernel with simulated time. `SimKernel` explains `grain`; the other arguments are for `Platform`."""

    def __init__(self, grain: float | None, *platform: Any) -> None:
        super().__init__(*platform)
        self.time: int = self.first_time()  # ns: now
        self.woke_at: int = self.time  # ns: when the last poll returned
        self.trace: list[tuple[int, str, int, Any]] = []
        self.turns: list[int] = []  # where each turn begins in `trace`
        self.progress: int = 0  # the number of calls that made progress
        self.index: int = 0  # the number of the process: 0 is the main process
        self.partitions: list[frozenset[int]] = []  # the processes that are cut off from all others, by number
        self.others: list[Any] = []  # the other processes on the network, as `SimProcess` objects
        self.audience: list[dict[Any, None]] = []  # each dict collects the files that have changed
        self._events: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = count()
        self._numbers = count(1)
        self.faults.on_strike = self.struck
        self.keys: Keys = Keys()
        self.draw: Callable[[int], float] = Draws(number_of(f'{self.seed} capacity')).draw
        self._draw_latency = Draws(number_of(f'{self.seed} latency')).draw
        self._of_program = Random(f'random {self.seed}')
        steps = Random(f'grain {self.seed}')
        drawn = steps.uniform(*GRAINS) if steps.random() < COARSE else 0.0
        self.grain: int = int(1e9 * (drawn if grain is None else grain))
        self.latency: int = self.random.choice((MS // 20, MS // 2, 5 * MS, 80 * MS))
        self._capacity = self.random.choice((500, 4096, 16384, 65536, 262144))

    def first_time(self) -> int:
        """Return the time at which this kernel starts, in ns."""
        return START

    def clock(self) -> float:
        return self.reading(self.time) / 1e9

    def random_number(self) -> float:
        return self._of_program.random()

    def sleep(self, seconds: float) -> None:
        self.busy(seconds)

    def note(self, what: str, fd: int, detail: Any = None) -> None:
        """Add a line to the trace."""
        self.trace.append((self.time, what, fd, detail))

    def moved(self, what: str, fd: int, detail: Any = None) -> None:
        """Add a line to the trace, and count the call that caused it as progress."""
        self.progress += 1
        self.trace.append((self.time, what, fd, detail))

    def struck(self, site: str, strike: int, fd: int, key: int) -> None:
        """Add the strike of a fault to the trace; without a descriptor, `key` says which file it concerns."""
        self.note('fault', fd, (f'{site}@{strike}', key if fd < 0 else 0))

    def show_trace(self, last: int | None = None) -> str:
        """Return the trace as text, one line for each event; `last` limits it to that many lines."""
        lines = self.trace if last is None else self.trace[-last:]
        return ''.join(
            f'{(time - START) / 1e9:14.6f}  {what}{f" fd={fd}" if fd >= 0 else ""}'
            f'{"" if detail is None else f"  {detail}"}\n'
            for time, what, fd, detail in lines
        )

    def reading(self, time: int) -> int:
        """Return the clock reading at a time, both in ns. The clock may be coarser than time itself."""
        return time // self.clock_grain * self.clock_grain

    def busy(self, seconds: float) -> None:
        """Let time pass inside a callback, as if it were slow."""
        self.time += int(seconds * 1e9)

    def at(self, time: int, fn: Callable[..., object], *args: Any) -> None:
        """Schedule `fn(*args)` for a time, in ns."""
        heappush(self._events, (time, next(self._sequence), fn, args))

    def after_latency(self, fn: Callable[..., object], *args: Any) -> None:
        """Schedule `fn(*args)` after one network latency; the first argument is the file that waits or has sent."""
        self.at(self.time + self.draw_latency(args[0]), fn, *args)

    def delays(self, end: Any, fn: Callable[..., object], args: tuple[Any, ...]) -> bool:
        """Return whether an arrival at an end of a stream was delayed or lost. Only a hostile network does this."""
        return False

    def draw_latency(self, file: Any) -> int:
        """Draw a network latency, in ns, for what arrives next at a file."""
        latency = 1 + int(self._draw_latency(file.key) * (2 * self.latency - 1))
        if self.faults.falls('network.stall', -1, file.key):
            stall = self.faults.between(1, 8000)
            self.note('stalled', -1, (file.number, stall))
            return stall * MS
        return latency

    def draw_capacity(self, key: int) -> int:
        """Draw the size of a socket buffer, in bytes, for the file with this key."""
        least = self._capacity // 2
        return max(1, least + int(self.draw(key) * (2 * self._capacity - least)))

    def next_number(self) -> int:
        """Return a number that was not returned before."""
        return next(self._numbers)

    def run_due(self) -> None:
        """Run the events that are due."""
        while self._events and self._events[0][0] <= self.time:
            _, _, fn, args = heappop(self._events)
            fn(*args)

    def run_others(self) -> None:
        """Run one turn of each other process in which something is ready."""
        for process in self.others.copy() if self.others else ():
            process.run_if_ready()

    def first_wake(self, until: int | None) -> int | None:
        """Return the earliest of `until` and the times at which timers wake other processes; None: there is none."""
        wakes = [until, *(process.wakes_at() for process in self.others)] if self.others else [until]
        return min((wake for wake in wakes if wake is not None), default=None)

    def sleep_until(self, until: int | None) -> bool:
        """Let time pass until the next event or `until`, whichever comes first; return False if there is neither."""
        coming = self._events[0][0] if self._events else None
        if coming is None and until is None:
            return False
        time = min(time for time in (coming, until) if time is not None)
        if self.grain:
            time = -(-time // self.grain) * self.grain
        self.time = max(self.time, time)
        if self.faults.falls('clock.jump'):
            jump = self.faults.between(1, 90_000)
            self.time += jump * MS
            self.note('clock jumped', -1, jump)
        return True


def excerpt(data: bytes) -> tuple[int, bytes]:
    """Return what the trace keeps of some bytes: how many they are, and the first ones."""
    return len(data), bytes(data[:SHOWN])
