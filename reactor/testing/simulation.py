"""One simulated run: a reactor, a program, and faults that stop after a while.

The seed decides when the faults stop. After that, everything must end within a time that depends on the program's own
time limits. A failure is reported with the seed that repeats it.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

from ..loop.signals import SignalHandler
from .faults import Site
from .kernel import PLENTY, SimKernel
from .oracles import Violation, WatchedReactor
from .places import place_of_caller, program_name
from .poller import Stuck
from .reality import NotSimulated, Refusal
from .report import show_lines, show_report
from .traffic import programs_random
from .watched import Planted

MOST_INTERRUPTS = 1000  # the most interrupts in a row without a finished turn
PATIENCE = 3600.0  # simulated seconds for everything to end, once faults have stopped
MOST_WAITS = 10  # how many times in a row a program may wait for the longest of its timers and time limits besides


class SimulationFailed(AssertionError):
    """A law was broken, the loop got stuck, or the program failed. The message is a report, with the seed.

    Attributes:
        simulation: The run that failed, or None.
        arguments: The arguments of the command line for a smaller run that fails in the same way; '' if there are none.
    """

    arguments: str = ''

    def __init__(self, report: str, simulation: Simulation | None = None) -> None:
        super().__init__(report)
        self.simulation = simulation


class Expectation:
    """An event that must happen before the run ends."""

    def __init__(self, world: World, text: str) -> None:
        self._world = world
        self.text = text

    def met(self) -> None:
        """Record that the event has happened."""
        self._world.expectations.pop(self, None)


class World:
    """The object passed to each program: it has the reactor, and makes random decisions and failures.

    Attributes:
        r: The reactor.
        random: A seeded `random.Random` that only programs use.
        faulty: Whether faults may happen. Without faults, all bytes must arrive and all connections must end cleanly.
        has_unix: Whether there are Unix sockets.
        counts_tcp: Whether the system counts the bytes of connections, which `Limits(min_rate=...)` needs.
        name: The host name of `address()`. It has a second address, at which there is no listener.
        stops: How many times `run` has returned False. Without `until_stop`, the simulation then calls it again.
        tls: SSL contexts for (servers, clients) if the programs use TLS, otherwise None.
    """

    tls: Any = None
    name = 'both.test'

    def __init__(self, simulation: Simulation) -> None:
        self.r: Any = simulation.reactor
        self.random: Random = programs_random(simulation.seed, simulation.traffic)
        self.faulty: bool = simulation.faulty
        self.has_unix: bool = simulation.kernel.kind != 'windows'
        self.counts_tcp: bool = simulation.kernel.counts_tcp
        self.stops = 0
        self.expectations: dict[Expectation, None] = {}
        self._simulation = simulation
        self._ports = 0

    def address(self) -> tuple[str, int]:
        """Return a host and a port at which there is no listener yet."""
        self._ports += 1
        return '10.0.0.1', 1000 + self._ports

    def unix_path(self) -> str:
        """Return a path at which there is no socket yet."""
        self._ports += 1
        return f'/run/{self._ports}.sock'

    def trouble(self, conn: Any = None) -> None:
        """Make trouble at random: send a signal, let time pass or raise an exception. Call this first in callbacks."""
        kernel = self._simulation.kernel
        kernel.throw_signals()
        if kernel.faults.falls('callback.slow'):
            kernel.busy(kernel.faults.drawn * 2)
        if kernel.faults.falls('callback.raises'):
            raise Planted('planted by the simulation')

    def expect(self, text: str) -> Expectation:
        """Expect an event before the end of the run; call `met()` on the returned object when the event happens."""
        expectation = Expectation(self, text)
        self.expectations[expectation] = None
        return expectation

    def always(self, fn: Callable[[], object], text: str = '') -> None:
        """Check a condition after every turn of the loop, from this turn on.

        Args:
            fn: Called without arguments after each turn. The run fails if it raises an exception, or returns a false
                value other than None. So it can be an expression, or a function with `assert` statements. It must not
                change the program.
            text: The condition in words, for the message. Without it, the message has the docstring or name of `fn`.
        """
        words = text or (fn.__doc__ or '').strip().partition('\n')[0] or getattr(fn, '__qualname__', repr(fn))
        self._simulation.reactor.oracles.conditions.append((fn, words))

    def fail(self, text: str) -> None:
        """Fail the run with this text: the program has seen something that must not happen."""
        self._simulation.reactor.ledger.violations.append(f'{text} (world.fail at {place_of_caller(1)})')

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self._simulation.kernel.note(text, -1)

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the program."""
        self._simulation.kernel.raise_signal(signum)


class Simulation:
    """A simulated run, which `run` or `run_program` starts. An object can be used only once.

    Args:
        seed: Decides all random choices.
        traffic: From 0 to 1: a smaller number makes the integers that programs draw from `world.random` smaller, and so
            usually the traffic, too.
        calm: Simulated seconds after which faults stop. None: up to two minutes, drawn from the seed.
        patience: Simulated seconds in which everything must end, once faults have stopped. None: an hour, and ten times
            the longest timer or time limit that the loop still waits for when the hour is over.
        turns: The most turns of the loop. None: 200,000 besides those in which a timer of the program fired, and at
            most 2,000,000 in all.
        max_undrained: The most bytes that the program may write to a connection after a write has returned False, while
            more than the connection's `low_water` are buffered. None: any number.
        until_stop: Whether `stop` ends the program, and so does `drain`, which calls it. What is still open then is
            closed, as `reactor.run` does. By default, `run` is called again, until nothing is left to wait for.
        allow_real: Whether the program may use real sockets, the real clock and real threads, which make a run differ
            from the next one. By default, such a call raises `NotSimulated`, and the run fails.
        on_kernel: Called with the kernel before the reactor is made.
        options: Options of `SimKernel`: selector, faults, descriptors, hosts, fail and others.
    """

    def __init__(
        self,
        seed: int,
        *,
        traffic: float = 1,
        calm: float | None = None,
        patience: float | None = None,
        turns: int | None = None,
        max_undrained: int | None = None,
        until_stop: bool = False,
        allow_real: bool = False,
        on_kernel: Callable[[SimKernel], object] | None = None,
        **options: Any,
    ) -> None:
        self.seed = seed
        self.traffic = traffic
        # The options that differ from the defaults, for the report of a failure.
        said = {'calm': calm, 'patience': patience, 'turns': turns, 'max_undrained': max_undrained}
        self.given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        flags = {'until_stop': until_stop, 'allow_real': allow_real}
        self.given.update(options, traffic=traffic, **{name: True for name, flag in flags.items() if flag})
        self.kernel: SimKernel = SimKernel(seed, **options)
        if on_kernel is not None:
            on_kernel(self.kernel)
        self.faulty: bool = bool(self.kernel.faults.on) or self.kernel.fails
        self._calm = Random(f'calm {seed}').random() ** 3 * 120 if calm is None else calm
        # Faults start only after `main` has returned, so that the program can start its servers and clients.
        self.could_strike: dict[str, Site] = self.kernel.faults.on
        self.kernel.faults.on = {}
        self._descriptors, self.kernel.descriptors = self.kernel.descriptors, max(PLENTY, self.kernel.descriptors)
        self.reactor: WatchedReactor = WatchedReactor(self.kernel)
        self.reactor.oracles.most_turns = turns
        self.reactor.oracles.streams.max_undrained = max_undrained
        self._patience = patience
        self._until_stop = until_stop
        self._allow_real = allow_real
        self._calm_since = 0
        self.world: World = World(self)
        if Random(f'silence {seed}').random() < 0.3:
            self.kernel.silent.add('fd00::1')  # the second address of `World.name` never answers
        self.failure: str | None = None
        self._program = ''

    def run(self, main: Callable[[Any], object]) -> Simulation:
        """Run `main(reactor)` until the reactor's `run` returns True, with the garbage collector off.

        Args:
            main: Called with the reactor in the first turn, like the argument of `reactor.run`.

        Returns:
            This simulation.

        Raises:
            SimulationFailed: A law was broken, the loop got stuck, or the program failed.
        """
        self._program = self._program or program_name(main)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with nullcontext() if self._allow_real else Refusal(self._refuse):
                self._live(main)
        except (Violation, NotSimulated) as exc:
            self._failed(str(exc))
        except Stuck as exc:
            advice = 'if `stop` is the end of the program, pass until_stop=True; ' if self.world.stops else ''
            self._failed(f'liveness: {exc}; {advice}the loop waits for:\n' + '\n'.join(self.reactor.why_alive()))
        finally:
            if collecting:
                gc.enable()
        return self

    def run_program(self, *programs: Callable[[World], object]) -> Simulation:
        """Run one or more programs, like `run`; each is called with the `World` in the first turn."""

        def main(r: Any) -> None:
            for program in programs:
                self.world.note(f'program {program_name(program)}')
                program(self.world)

        self._program = ', '.join(map(program_name, programs))
        return self.run(main)

    def show_trace(self) -> str:
        """Return the trace as text, one line for each event, with one name for each connection."""
        return show_lines(self.kernel, self.reactor.ledger)

    def trace_hash(self) -> str:
        """Return the SHA-256 of the trace, which is the same for the same seed on every computer."""
        return hashlib.sha256(self.kernel.show_trace().encode()).hexdigest()

    def _live(self, main: Callable[[Any], object]) -> None:
        kernel, oracles, ledger = self.kernel, self.reactor.oracles, self.reactor.ledger
        calm_at = kernel.time + int(self._calm * 1e9)
        kernel.at(calm_at, self._begin_calm)

        def begin(r: Any) -> None:
            main(r)
            ledger.begun = True
            if kernel.time < calm_at:  # otherwise the time for faults is already over
                kernel.faults.on, kernel.descriptors = self.could_strike, self._descriptors

        todo: Any = begin
        turns, interrupts = 0, 0
        while True:
            try:
                over = self.reactor.run(todo)
            except Stuck:
                if not self._only_signals_are_left():
                    raise
                self.reactor.clear_signal_handlers()
                over = None
            except KeyboardInterrupt:
                over = None  # the interrupt came between two callbacks, so nothing is lost
                interrupts = interrupts + 1 if ledger.turns == turns else 0
                turns = ledger.turns
                if interrupts > MOST_INTERRUPTS:
                    raise Violation(f'law 8: run() was interrupted {interrupts} times in one turn') from None
            except OSError as exc:
                if not kernel.fails:
                    raise
                # Either the selector made the call that failed, or a program made it while the program was starting. In
                # the second case the program has not started, so nothing can be expected of it.
                kernel.note('left run()', -1, repr(exc))
                if not ledger.begun:
                    self.world.expectations.clear()
                    break
                over = None
            todo = None
            self.world.stops += over is False
            if over or (over is False and self._until_stop):
                break
        if kernel.faults.on:
            kernel.calm()
        if self.world.expectations:
            missing = '; '.join(expectation.text for expectation in self.world.expectations)
            raise Violation(f'liveness: run() returned {over}, but these events have not happened: {missing}')
        if over:
            oracles.check_over()
        oracles.check_turn(0)
        try:
            self.reactor.close()
        except OSError:
            if not kernel.fails:
                raise
        oracles.check_closed()

    def _only_signals_are_left(self) -> bool:
        """Return whether nothing but signal handlers keeps the loop running: the program then has nothing to do."""
        waits = [handle for handle in self.reactor.handles() if self.reactor.watchers.is_referenced(handle)]
        only = all(type(handle) is SignalHandler for handle in waits)
        return only and len(waits) == len(self.reactor.why_alive())

    def _refuse(self, text: str) -> None:
        violations = self.reactor.ledger.violations
        if text not in violations:
            violations.append(text)

    def _begin_calm(self) -> None:
        self.kernel.calm()
        self._calm_since = self.kernel.time
        self._be_patient(PATIENCE if self._patience is None else self._patience)

    def _be_patient(self, seconds: float) -> None:
        self.kernel.at(self._calm_since + int(seconds * 1e9), self._out_of_patience, seconds)

    def _out_of_patience(self, waited: float) -> None:
        if self._only_signals_are_left():
            return None  # no event is left, so the wait ends as in `_live`
        longer = PATIENCE + MOST_WAITS * self._longest_wait()
        if self._patience is None and longer > waited:
            return self._be_patient(longer)
        self.reactor.ledger.violations.append(
            f'liveness: {waited:g} s after the last fault, the loop still waits. If the program needs more time, pass '
            f'`patience=` with the seconds. It waits for:\n' + '\n'.join(self.reactor.why_alive())
        )

    def _longest_wait(self) -> float:
        # This includes the timers of the reactor itself, which stand for `linger`, `lifetime`, `drain` and others.
        waits = [max(timer.delay, (timer.deadline or 0.0) - self.kernel.clock()) for timer in self.reactor.timers]
        for stream in self.reactor.ledger.streams:
            options = stream.options
            waits += [limit or 0.0 for limit in (options.idle_timeout, options.read_timeout, options.write_timeout)]
        return max(waits, default=0.0)

    def _failed(self, text: str) -> None:
        self.failure = text
        report = show_report(self.kernel, self.reactor.ledger, text, self._program, self._calm, self.could_strike)
        raise SimulationFailed(report, self) from None
