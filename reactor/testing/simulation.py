"""One simulated run: a reactor, a program, faults for a while, and then the end that everything has to come to.

Owns the course of a run and its report. Knows no program but by calling it. The rules: faults stop after a time that is
drawn, and from then on whatever was begun has to end by itself; and what is found is told with the seed that shows it
again.
"""

from __future__ import annotations

import gc
import hashlib
from random import Random

from .kernel import PLENTY, SimKernel
from .oracles import Violation, WatchedReactor
from .poller import Stuck
from .watched import Planted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_INTERRUPTS = 1000  # in a row, before there was a turn
PATIENCE = 3600.0  # simulated seconds for everything to end, once faults have stopped


class SimulationFailed(AssertionError):
    """A law was broken, something got stuck, or the program has failed; tells the seed and the last of the trace."""


class Expectation:
    """Something that has to have happened before a program is over."""

    def __init__(self, world: World, text: str) -> None:
        self._world = world
        self.text = text

    def met(self) -> None:
        """It has happened."""
        self._world.expectations.pop(self, None)


class World:
    """What a program gets: the reactor, a random source, and the trouble that it has to bear.

    r        the reactor
    random   a seeded `random.Random`, for the program alone
    faulty   whether faults may happen: without them every transfer has to be whole and every end clean
    has_unix  whether there are Unix sockets
    counts_tcp  whether the system counts the bytes of connections, which `Limits(min_rate=...)` needs
    name     of the host of `address()`, which has another address, where nobody listens
    stops    how often `run` has returned False; it was called again then
    tls      contexts for (servers, clients), when the programs are to talk over TLS
    """

    tls: Any = None
    name = 'both.test'

    def __init__(self, simulation: Simulation) -> None:
        self.r: Any = simulation.reactor
        self.random: Random = Random(simulation.kernel.random.getrandbits(64))
        self.faulty: bool = simulation.faulty
        self.has_unix: bool = simulation.kernel.kind != 'windows'
        self.counts_tcp: bool = simulation.kernel.counts_tcp
        self.stops = 0
        self.expectations: dict[Expectation, None] = {}
        self._simulation = simulation
        self._ports = 0

    def address(self) -> tuple[str, int]:
        """A host and port on which nobody listens yet."""
        self._ports += 1
        return '10.0.0.1', 1000 + self._ports

    def unix_path(self) -> str:
        """A path at which there is no socket yet."""
        self._ports += 1
        return f'/run/{self._ports}.sock'

    def trouble(self, conn: Any = None) -> None:
        """To be called first in a callback: it may be slow, a signal may come, and it may raise."""
        kernel = self._simulation.kernel
        kernel.throw_signals()
        if kernel.faults.falls('callback.slow'):
            kernel.busy(kernel.random.random() * 2)
        if kernel.faults.falls('callback.raises'):
            raise Planted('planted')

    def expect(self, text: str) -> Expectation:
        """Something that has to happen before the end; call `met()` of what is returned when it has."""
        expectation = Expectation(self, text)
        self.expectations[expectation] = None
        return expectation

    def fail(self, text: str) -> None:
        """The program has seen what must not be."""
        self._simulation.reactor.ledger.violations.append(text)

    def note(self, text: str) -> None:
        """A line for the trace."""
        self._simulation.kernel.note(text, -1)

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the program."""
        self._simulation.kernel.raise_signal(signum)


class Simulation:
    """A run with a seed; `run(main)` does it once.

    seed     of everything that is drawn
    main     called with the reactor in the first turn: a program as for `reactor.run`
    calm       simulated seconds after which faults stop; None: drawn, up to two minutes
    on_kernel  called with the kernel before anything runs on it
    options    of `SimKernel`: selector, faults, descriptors, hosts, fail
    """

    def __init__(
        self,
        seed: int,
        *,
        calm: float | None = None,
        on_kernel: Callable[[SimKernel], object] | None = None,
        **options: Any,
    ) -> None:
        self.seed = seed
        self.kernel: SimKernel = SimKernel(seed, **options)
        if on_kernel is not None:
            on_kernel(self.kernel)
        self.faulty: bool = bool(self.kernel.faults.on) or self.kernel.fails
        self._calm = self.kernel.random.random() ** 3 * 120 if calm is None else calm
        # Who could not begin has nothing to end: there are no faults before `main` has returned.
        self._coins, self.kernel.faults.on = self.kernel.faults.on, {}
        self._descriptors, self.kernel.descriptors = self.kernel.descriptors, PLENTY
        self.reactor: WatchedReactor = WatchedReactor(self.kernel)
        self.world: World = World(self)
        if self.kernel.random.random() < 0.3:
            self.kernel.silent.add('fd00::1')  # of `World.name`: an address that is tried in vain
        self.failure: str | None = None

    def run(self, main: Callable[[Any], object]) -> Simulation:
        """Run `main(reactor)` until all is over, with the garbage collector off; raises `SimulationFailed`."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._live(main)
        except Violation as exc:
            self._failed(str(exc))
        except Stuck as exc:
            self._failed(f'{exc}; it waits for:\n' + '\n'.join(self.reactor.why_alive()))
        finally:
            if collecting:
                gc.enable()
        return self

    def run_program(self, *programs: Callable[[World], object]) -> Simulation:
        """The same with programs, each of which is called with the `World`."""

        def main(r: Any) -> None:
            for program in programs:
                self.world.note(f'program {program.__name__}')
                program(self.world)

        return self.run(main)

    def trace_hash(self) -> str:
        """The SHA-256 of the trace: the same for the same seed, everywhere."""
        return hashlib.sha256(self.kernel.show_trace().encode()).hexdigest()

    def _live(self, main: Callable[[Any], object]) -> None:
        kernel, oracles, ledger = self.kernel, self.reactor.oracles, self.reactor.ledger
        calm_at = kernel.time + int(self._calm * 1e9)
        kernel.at(calm_at, self._begin_calm)

        def begin(r: Any) -> None:
            main(r)
            ledger.begun = True
            if kernel.time < calm_at:  # else they were to stop before this first turn
                kernel.faults.on, kernel.descriptors = self._coins, self._descriptors

        todo: Any = begin
        turns, interrupts = 0, 0
        while True:
            try:
                over = self.reactor.run(todo)
            except KeyboardInterrupt:
                over = None  # between two callbacks; nothing is lost, so it goes on
                interrupts = interrupts + 1 if ledger.turns == turns else 0
                turns = ledger.turns
                if interrupts > MOST_INTERRUPTS:
                    raise Violation(f'law 8: run() was called {interrupts} times, and none has done a turn') from None
            except OSError as exc:
                if not kernel.fails:
                    raise
                # The call that was made to fail was the selector's own, or one of a program that could not begin.
                kernel.note('left run()', -1, repr(exc))
                if not ledger.begun:
                    self.world.expectations.clear()
                    break
                over = None
            todo = None
            if over:
                break
            self.world.stops += over is False
        if kernel.faults.on:
            kernel.calm()
        if self.world.expectations:
            missing = '; '.join(expectation.text for expectation in self.world.expectations)
            raise Violation(f'liveness: it has ended, and this has not happened: {missing}')
        oracles.check_over()
        oracles.check_turn(0)
        try:
            self.reactor.close()
        except OSError:
            if not kernel.fails:
                raise
        oracles.check_closed()

    def _begin_calm(self) -> None:
        self.kernel.calm()
        self.kernel.at(self.kernel.time + int(PATIENCE * 1e9), self._out_of_patience)

    def _out_of_patience(self) -> None:
        self.reactor.ledger.violations.append(
            f'liveness: {PATIENCE:g} s after the last fault it has not ended; it waits for:\n'
            + '\n'.join(self.reactor.why_alive())
        )

    def _failed(self, text: str) -> None:
        self.failure = text
        raise SimulationFailed(
            f'seed {self.seed}, turn {self.reactor.ledger.turns}: {text}\n'
            f'the last of the trace:\n{self.kernel.show_trace(25)}'
        ) from None
