"""The random user programs on the real kernel, over loopback: without faults each program ends cleanly."""

from __future__ import annotations

import random
import selectors
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from reactor import Reactor
from reactor.kernel import Kernel
from reactor.testing.programs import PROGRAMS, paces, time_limits
from tests.conftest import check_empty
from tests.helpers.support import SELECTORS

SEEDS = range(4)
SLOW = {time_limits}  # programs whose time limits take seconds of real time
SIMULATED = {paces}  # a program whose time limits would take half a minute


def courses(seeds: range) -> list[Any]:
    """Return each program with each seed; slow programs get only one seed."""
    return [
        pytest.param(program, seed, id=f'{program.__name__}-{seed}')
        for program in PROGRAMS
        if program not in SIMULATED
        for seed in (seeds[:1] if program in SLOW else seeds)
    ]


class Goal:
    """A goal of a program, as returned by `World.expect`."""

    def __init__(self, text: str) -> None:
        self.text, self.count = text, 0

    def met(self) -> None:
        self.count += 1


class RealWorld:
    """A `World` on the real kernel, without faults. It keeps failures even if their exceptions are caught."""

    faulty = False
    has_unix = True
    counts_tcp = Kernel.counts_tcp
    name = 'localhost'
    tls = None

    def __init__(self, r: Reactor, seed: int, folder: Path) -> None:
        self.r, self.random, self.folder = r, random.Random(seed), folder
        self.goals: list[Goal] = []
        self.failures: list[str] = []
        self.stops = 0
        self.paths = 0

    def address(self) -> tuple[str, int]:
        return '127.0.0.1', 0

    def unix_path(self) -> str:
        self.paths += 1
        return str(self.folder / f's{self.paths}')

    def trouble(self, conn: Any = None) -> None:
        """Do nothing; there are no faults here."""

    def expect(self, text: str) -> Goal:
        self.goals.append(Goal(text))
        return self.goals[-1]

    def fail(self, text: str) -> None:
        self.failures.append(text)
        raise AssertionError(text)

    def raise_signal(self, number: int) -> None:
        signal.raise_signal(number)

    def play(self, program: Any, seconds: float = 20) -> None:
        """Run a program to its end, which must come within `seconds`, and check that it reached its goals."""
        too_long = self.r.call_later(seconds, self.r.stop)
        too_long.unref()
        ended = self.r.run(lambda r: program(self))
        while not ended and too_long.deadline is not None:
            self.stops += 1
            ended = self.r.run()
        too_long.cancel()
        assert not self.failures
        assert ended, '\n'.join(['not in time; still alive:', *self.r.why_alive()])
        assert [goal.text for goal in self.goals if goal.count != 1] == []


def play(program: Any, seed: int, selector: selectors.BaseSelector, folder: Path) -> None:
    """Run one program on the real kernel, and check that nothing is raised and nothing is left."""
    errors: list[Any] = []
    with Reactor(selector=selector, catch_errors=lambda exc, handle: errors.append((exc, handle))) as r:
        try:
            RealWorld(r, seed, folder).play(program)
            check_empty(r)
        finally:
            assert not errors


@pytest.mark.parametrize(('program', 'seed'), courses(SEEDS))
@pytest.mark.parametrize('kind', list(SELECTORS))
def test_a_program_ends_on_the_real_kernel(kind, program, seed, tmp_path_factory):
    if SELECTORS[kind] is None:
        pytest.skip(f'this platform has no {kind} selector')
    if not hasattr(socket, 'AF_UNIX'):
        pytest.skip('this platform has no Unix sockets, which the programs use')
    play(program, seed, SELECTORS[kind](), tmp_path_factory.mktemp('s'))
