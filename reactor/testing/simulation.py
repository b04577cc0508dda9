"""One simulated run: a reactor, a program, and faults that stop after a while.

The seed decides when the faults stop. After that, everything must end within a time that depends on the program's own
time limits. A failure is reported with the seed that repeats it.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from random import Random
from typing import Any

from ..loop.signals import SignalHandler
from .faults import Site
from .kernel import PLENTY, SimKernel
from .options import silence
from .oracles import Violation, WatchedReactor
from .places import program_name
from .poller import Stuck
from .processes import ProcessKernel
from .reached import Reached
from .reality import NotSimulated, Refusal
from .report import show_lines, show_report
from .traffic import programs_random
from .world import World

MOST_INTERRUPTS = 1000  # the most interrupts in a row without a finished turn
PATIENCE = 3600.0  # simulated seconds for everything to end, once faults have stopped
CALM, HOSTILE_CALM = 120, 3600  # seconds: the latest time at which faults stop, in the two profiles
MOST_WAITS = 10  # how many times in a row a program may wait for the longest of its timers and time limits besides


class SimulationFailed(AssertionError):
    """A law was broken, the loop got stuck, or the program failed. The message is a report, with the seed.

    Attributes:
        simulation: The run that failed, or None.
        command: The command line of a smaller run that fails in the same way; '' if the failure cannot be repeated.
    """

    command: str = ''

    def __init__(self, report: str, simulation: Simulation | None = None) -> None:
        super().__init__(report)
        self.simulation = simulation


class Simulation:
    """A simulated run, which `run` or `run_program` starts. An object can be used only once.

    Args:
        seed: Decides all random choices.
        traffic: From 0 to 1: a smaller number makes the integers that programs draw from `world.random` smaller, and so
            usually the traffic, too.
        calm: Simulated seconds after which faults stop. None: up to two minutes, drawn from the seed; up to an hour in
            the profile 'hostile'.
        patience: Simulated seconds in which everything must end, once faults have stopped. None: an hour, and ten times
            the longest timer or time limit that the loop still waits for when the hour is over.
        turns: The most turns of the loop. None: 200,000 besides those in which a timer of the program fired, and at
            most 2,000,000 in all.
        max_undrained: The most bytes that the program may write to a connection after a write has returned False, while
            more than the connection's `low_water` are buffered. None: any number.
        max_memory: The most bytes that the program may hold for one connection: bytes that wait to be sent, and what
            only `conn.data` refers to. Shared objects are not counted. It is checked after each turn in which something
            has happened to the connection. None: any number.
        until_stop: Whether `stop` ends the program, and so does `drain`, which calls it. What is still open then is
            closed, as `reactor.run` does. By default, `run` is called again, until nothing is left to wait for.
        allow_real: Whether the program may use real sockets, the real clock and real threads, which make a run differ
            from the next one. By default, such a call raises `NotSimulated`, and the run fails.
        on_kernel: Called with the kernel before the reactor is made.
        options: Options of `SimKernel`: selector, faults, profile, descriptors, hosts, fail and others.
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
        max_memory: int | None = None,
        until_stop: bool = False,
        allow_real: bool = False,
        on_kernel: Callable[[SimKernel], object] | None = None,
        **options: Any,
    ) -> None:
        self.seed = seed
        self.traffic = traffic
        # The options that differ from the defaults, for the report of a failure.
        said = {
            'calm': calm, 'patience': patience, 'turns': turns,
            'max_undrained': max_undrained, 'max_memory': max_memory,
        }  # fmt: skip
        self.given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        flags = {'until_stop': until_stop, 'allow_real': allow_real}
        self.given.update(options, traffic=traffic, **{name: True for name, flag in flags.items() if flag})
        self.kernel: SimKernel = SimKernel(seed, **options)
        if on_kernel is not None:
            on_kernel(self.kernel)
        self.faulty: bool = bool(self.kernel.faults.on) or self.kernel.fails
        latest = HOSTILE_CALM if self.kernel.hostile else CALM
        self._calm = Random(f'calm {seed}').random() ** 3 * latest if calm is None else calm
        # Faults start only after `main` has returned, so that the program can start its servers and clients.
        self.could_strike: dict[str, Site] = self.kernel.faults.on
        self.kernel.faults.on = {}
        self._descriptors, self.kernel.descriptors = self.kernel.descriptors, max(PLENTY, self.kernel.descriptors)
        self.reactor: WatchedReactor = WatchedReactor(self.kernel)
        self.reactor.oracles.most_turns = turns
        self.reactor.oracles.streams.max_undrained = max_undrained
        self.reactor.oracles.streams.max_memory = max_memory
        self._patience = patience
        self._until_stop = until_stop
        self._allow_real = allow_real
        self._calm_since = 0
        self.places: count[int] = count(1)  # the numbers of addresses and paths
        self.world: World = World(self, self.kernel, self.reactor, programs_random(seed, traffic))
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
        self._refuse_in_threads(self.kernel)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with nullcontext() if self._allow_real else Refusal(self._refuse):
                self._live(main)
        except (Violation, NotSimulated) as exc:
            self._failed(str(exc))
        except Stuck as exc:
            advice = 'if `stop` is the end of the program, pass until_stop=True; ' if self.world.stops else ''
            waits = f'liveness: {exc}; {advice}the loop waits for:'
            self._failed('\n'.join([*self._lost_peers(), waits, self._why_alive()]))
        finally:
            for kernel in (self.kernel, *(process.kernel for process in self.kernel.others)):
                kernel.suspended.end()
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

    @property
    def reached(self) -> Reached:
        """Which time limits, timers and error paths of the program were reached."""
        return self.reactor.ledger.reached

    def show_trace(self) -> str:
        """Return the trace as text, one line for each event, with one name for each connection."""
        return show_lines(self.kernel, self.reactor.ledger)

    def trace_hash(self) -> str:
        """Return the SHA-256 of the trace, which is the same for the same seed on every computer."""
        return hashlib.sha256(self.kernel.show_trace().encode()).hexdigest()

    def open_world(self, kernel: ProcessKernel, name: str) -> World:
        """Return a world with a new reactor for another process."""
        reactor = WatchedReactor(kernel)
        self._refuse_in_threads(kernel)
        reactor.oracles.streams.max_undrained = self.reactor.oracles.streams.max_undrained
        reactor.ledger.share(self.reactor.ledger)
        return World(self, kernel, reactor, programs_random(f'{self.seed} {name}', self.traffic))

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
                    over = True
                    break
                over = None
            todo = None
            self.world.stops += over is False
            if over or (over is False and self._until_stop):
                break
        if over:
            self._check_expectations(over)
            oracles.check_over()
        oracles.check_turn(0)
        self._finish_others()
        if kernel.faults.on:
            kernel.calm()
        try:
            self.reactor.close()
        except OSError:
            if not kernel.fails:
                raise
        self._check_expectations(
            over
        )  # after `stop`, the end of the connections that `close` has aborted may be expected
        oracles.check_closed()

    def _check_expectations(self, over: bool | None) -> None:
        if self.world.expectations:
            missing = '; '.join(expectation.text for expectation in self.world.expectations)
            raise Violation(f'liveness: run() returned {over}, but these events have not happened: {missing}')

    def _finish_others(self) -> None:
        kernel, violations = self.kernel, self.reactor.ledger.violations
        while any(process.missing() for process in kernel.others):
            kernel.run_due()
            kernel.run_others()
            if violations:
                raise Violation('\n'.join(violations))
            if not kernel.sleep_until(kernel.first_wake(None)):
                missing = '; '.join(text for process in kernel.others for text in process.missing())
                raise Violation(f'liveness: nothing is left that could happen, but these events have not: {missing}')

    def _refuse_in_threads(self, kernel: SimKernel) -> None:
        if not self._allow_real:
            kernel.suspended.around = lambda: Refusal(self._refuse, kernel.suspended.sleep)

    def _only_signals_are_left(self) -> bool:
        """Return whether nothing but signal handlers keeps the loop running: the program then has nothing to do."""
        waits = [handle for handle in self.reactor.handles() if self.reactor.watchers.is_referenced(handle)]
        only = all(type(handle) is SignalHandler for handle in waits)
        return bool(waits) and only and len(waits) == len(self.reactor.why_alive())

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
        self.reactor.ledger.violations += self._lost_peers()
        self.reactor.ledger.violations.append(
            f'liveness: {waited:g} s after the last fault, the loop still waits. If the program needs more time, pass '
            f'`patience=` with the seconds. It waits for:\n{self._why_alive()}'
        )

    def _why_alive(self) -> str:
        lines = [*self.reactor.why_alive(), *(f'expects: {each.text}' for each in self.world.expectations)]
        for process in self.kernel.others:
            lines += process.why_alive()
        text = '\n'.join(lines)
        for world in self._worlds():
            for stream in world.r.ledger.streams:
                text = text.replace(repr(stream), f'{world.r.ledger.name(stream.record)}: {stream!r}')
        return text.replace('<Watched', '<')

    def _worlds(self) -> list[World]:
        return [self.world, *(process.world for process in self.kernel.others if process.running)]

    def _lost_peers(self) -> Iterator[str]:
        waited = (self.kernel.time - self._calm_since) / 1e9
        for world in self._worlds():
            ledger = world.r.ledger
            for stream in ledger.streams:
                end = ledger.end_of(stream)
                if end is not None and end.vanished and not end.dead:
                    yield (
                        f'liveness: {ledger.name(stream.record)} still waits, {waited:g} s after the last fault, for a '
                        f'peer that has vanished without a word ({end.vanished}): set idle_timeout=, read_timeout= or '
                        'keepalive=, or pass keepalive=True to the simulation'
                    )

    def _longest_wait(self) -> float:
        # This includes the timers of the reactor itself, which stand for `linger`, `lifetime`, `drain` and others.
        return max(wait for world in self._worlds() for wait in _waits(world))

    def _failed(self, text: str) -> None:
        self.failure = text
        report = show_report(self.kernel, self.reactor.ledger, text, self._program, self._calm, self.could_strike)
        raise SimulationFailed(report, self) from None


def _waits(world: World) -> Iterator[float]:
    """Yield the seconds of each timer and time limit of a program."""
    yield 0.0
    for timer in world.r.timers:
        yield max(timer.delay, (timer.deadline or 0.0) - world.kernel.clock())
    for stream in world.r.ledger.streams:
        options = stream.options
        yield from (limit or 0.0 for limit in (options.idle_timeout, options.read_timeout, options.write_timeout))
        end = world.r.ledger.end_of(stream)
        yield 0.0 if end is None else silence(end.options)
