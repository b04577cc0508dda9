"""Programs must leave the same trace on this loop and on asyncio's, wherever both loops promise the same behaviour.

The programs, and the table of intended differences, are in `both_loops.py`. asyncio runs in a child process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import reactor
from reactor import ConnectionClosed, Reactor
from reactor.kernel import Kernel
from tests.helpers.both_loops import DIFFERENCES, PROGRAMS, Clock, Driver, Raised, Selector, play

SEEDS = 40
PROJECT = Path(__file__).parents[2]

if os.name != 'posix':
    pytest.skip('the programs use Unix sockets and signals', allow_module_level=True)


class ClockKernel(Kernel):
    """The real kernel with the clock and the selector of a program."""

    def __init__(self, clock: Clock, selector: Selector) -> None:
        self._clock, self._selector = clock, selector

    def clock(self) -> float:  # type: ignore[override]
        return self._clock.now

    def selector(self) -> Any:
        return self._selector


class Ours(Driver):
    def __init__(self, clock: Clock, selector: Selector) -> None:
        super().__init__(clock, selector)
        self.r = Reactor(kernel=ClockKernel(clock, selector), catch_errors=self.caught)
        self.handles: dict[int, Any] = {}
        # Without an open handle, `run` would return.
        self.ours, self.theirs = socket.socketpair()
        self.alive = self.r.watch_fd(self.ours, reactor.READ, print)

    def caught(self, exc: BaseException, handle: Any) -> None:
        if not isinstance(exc, Raised):
            raise SystemExit(f'{handle!r} raised {exc!r}')
        if not isinstance(handle, reactor.Stream):
            self.note('errors', 'Raised')

    def turn(self) -> None:
        self.r.run_once(0)

    def run(self) -> None:
        assert self.r.run() is False

    def stop(self) -> None:
        self.r.stop()

    def call_soon(self, fn: Any, *args: Any) -> None:
        self.r.call_soon(fn, *args)

    def call_soon_threadsafe(self, fn: Any, *args: Any) -> None:
        self.r.call_soon_threadsafe(fn, *args)

    def call_later(self, delay: float, fn: Any, *args: Any) -> Any:
        return self.r.call_later(delay, fn, *args)

    def call_at(self, deadline: float, fn: Any, *args: Any) -> Any:
        return self.r.call_at(deadline, fn, *args)

    def watch(self, fd: int, events: int, fn: Any) -> None:
        if fd not in self.handles:
            self.handles[fd] = self.r.watch_fd(fd, events, lambda handle, event: fn(event))
        else:
            self.handles[fd].set_events(events)

    def add_signal_handler(self, signum: int, fn: Any, *args: Any) -> None:
        self.r.add_signal_handler(signum, fn, *args)

    def remove_signal_handler(self, signum: int) -> bool:
        return self.r.remove_signal_handler(signum)

    def connect(self, sock: socket.socket, side: Any) -> None:
        side.conn = Ends(self, sock, side)

    def close(self) -> None:
        self.r.close()
        self.ours.close()
        self.theirs.close()


class Ends:
    """The `conn` of a `Side` on this loop: a connection whose callbacks call the methods of the side."""

    def __init__(self, driver: Ours, sock: socket.socket, side: Any) -> None:
        self.side = side
        self.conn = conn = driver.r.adopt(
            sock,
            lambda conn, data: side.on_data(data),
            on_eof=(lambda conn: side.on_eof()) if side.keeps_open else None,
            on_close=lambda conn, exc: side.on_close(exc),
        )
        self.pause_reading, self.resume_reading = conn.pause_reading, conn.resume_reading
        self.write_eof, self.close, self.abort = conn.write_eof, conn.close, conn.abort

    def write(self, data: bytes, number: int) -> None:
        try:
            self.conn.write(data, lambda conn: self.side.on_written(number))
        except ConnectionClosed:
            raise SystemExit('a write raised ConnectionClosed on an open connection') from None


@pytest.fixture(scope='module')
def reference() -> Any:
    """The traces of asyncio, for each program."""
    children = {
        name: subprocess.Popen(
            [sys.executable, '-m', 'tests.reference.asyncio_driver', name, str(SEEDS)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in PROGRAMS
    }
    traces = {}
    for name, child in children.items():
        out, err = child.communicate(timeout=300)
        assert child.returncode == 0, f'{name}: {err}'
        traces[name] = [json.loads(line) for line in out.splitlines()]
    return traces


@pytest.mark.parametrize('name', PROGRAMS)
def test_a_program_leaves_the_same_trace_on_both_loops(name, reference):
    assert len(reference[name]) == SEEDS
    for seed, expected in enumerate(reference[name]):
        found = json.loads(json.dumps(play(name, seed, Ours)))
        assert found == expected, f'{name}, seed {seed}'


@pytest.mark.parametrize('name', PROGRAMS)
def test_a_program_does_something(name, reference):
    """Most seeds cause callbacks, and no two traces are the same."""
    traces = reference[name]
    assert len({json.dumps(trace) for trace in traces}) > SEEDS // 2
    assert sum(sum(map(len, trace.values())) > 5 for trace in traces) > SEEDS // 2


def test_each_difference_has_a_reason():
    assert all(len(reason) > 40 for reason in DIFFERENCES.values())
