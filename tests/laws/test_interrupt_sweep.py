"""Ctrl-C at the n-th line of our code: SIGINT arrives just before each of the reactor's lines that a program executes.

The programs come from `test_nth_call.py` and from the simulation; one more program uses the real system. A first run
counts the executed lines of `reactor`, without the simulator, and of `ssl` and `selectors`, from the beginning of the
program to the end of `close`. Then the installed SIGINT handler is called at the n-th line. In some runs it is called
again at the same line or a later line, because people press Ctrl-C twice.

No law may be broken, whichever line is interrupted. `KeyboardInterrupt` is raised from `run`, `run_once` or `close` at
least once, and at most once for each SIGINT. Each of these methods can be called again, and every connection ends once.
The signal handlers and the wakeup descriptor are restored; all other descriptors are closed.

A sample always runs. `pytest --interrupts-whole tests/laws/test_interrupt_sweep.py` covers all lines that the programs
reach, each at one of its executions, in two processes.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import random
import selectors
import signal
import ssl
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

import reactor
from reactor import Reactor
from reactor.testing.oracles import Violation
from reactor.testing.programs import ALONE, PROGRAMS
from reactor.testing.simulation import Simulation, SimulationFailed
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.nth_scenarios import SCENARIOS
from tests.helpers.support import SELECTORS

pytestmark = pytest.mark.slow

PLAYS: dict[str, Any] = {program.__name__: program for program in (*SCENARIOS, *PROGRAMS, *ALONE)}
del PLAYS['signals'], PLAYS['signalled']  # these handle SIGINT themselves
SECURED = {'tls_echo', 'tls_ends', 'tls_files', 'upgrade'}
SAMPLE, PARTS = 200, 4
LONGEST = 40_000  # lines; longer programs are not in the sample
MOST = 50  # KeyboardInterrupts in one run; a correct run has far fewer
OURS = str(Path(reactor.__file__).parent)
TESTING = str(Path(reactor.__file__).parent / 'testing')
CALLED = (ssl.__file__, selectors.__file__)

Case = tuple[
    str, int, str, int, int
]  # program, seed, method, n, and how many lines later SIGINT comes again; -1: never
contexts: Any = None  # the TLS contexts of servers and clients


class Lines:
    """Counts executed lines, and calls the SIGINT handler before the lines whose numbers are in `at`."""

    def __init__(self, handler: Any, at: tuple[int, ...] = ()) -> None:
        self.handler = handler  # a function that returns the installed SIGINT handler
        self.at = at
        self.before = sys.gettrace()  # set when coverage is measured
        self.count = 0
        self.armed = False  # True during a call to `run`, `run_once` or `close`
        self.pressed = 0
        self.known: dict[str, bool] = {}
        self.sites: dict[tuple[str, int], list[int]] = {}  # for each (file, line): the counts at its executions

    def begin(self) -> None:
        """Start counting lines, also in the frames that are on the stack already."""
        self.again()
        frame: Any = sys._getframe(1)
        while frame is not None:
            if self.counts(frame.f_code.co_filename):
                frame.f_trace = self.line
            frame = frame.f_back

    def again(self) -> None:
        """Install the trace function again: Python has removed it, because it raised KeyboardInterrupt."""
        unfinished = self.pressed < len(self.at) or not self.at
        sys.settrace(self.call if unfinished else self.before)

    def end(self) -> None:
        sys.settrace(self.before)

    def counts(self, file: str) -> bool:
        found = self.known.get(file)
        if found is None:
            found = self.known[file] = (file.startswith(OURS) and not file.startswith(TESTING)) or file in CALLED
        return found

    def call(self, frame: Any, event: str, arg: Any) -> Any:
        return self.line if self.counts(frame.f_code.co_filename) else None

    def line(self, frame: Any, event: str, arg: Any) -> Any:
        if event == 'line' and self.armed:
            self.count += 1
            if not self.at:
                self.sites.setdefault((frame.f_code.co_filename, frame.f_lineno), []).append(self.count)
            while self.pressed < len(self.at) and self.at[self.pressed] < self.count:
                self.pressed += 1
                handler = self.handler()
                if self.pressed == len(self.at):
                    self.end()
                handler(SIGINT, frame)
        return self.line


class Interrupted(Simulation):
    """A simulation without faults, which counts lines from the beginning of its program."""

    def __init__(self, seed: int, how: str, at: tuple[int, ...]) -> None:
        super().__init__(seed, selector='epoll', faults=False, calm=0)
        self.how = how
        self.lines = Lines(lambda: self.kernel.handlers[SIGINT], at)
        self.raised = 0
        self.world.contexts = contexts  # type: ignore[attr-defined]
        self.world.at_end = int  # type: ignore[attr-defined]

    def again_and_again(self, fn: Any) -> Any:
        """Call `fn` again after each interrupt, until it returns."""
        while True:
            try:
                self.lines.armed = True
                return fn()
            except KeyboardInterrupt:
                self.raised += 1
                self.world.stops += 1  # the interrupt may have come in the turn in which `stop` was called
                if self.raised > MOST:
                    raise Violation('law 8: a call was interrupted again and again') from None
                self.lines.again()
            finally:
                self.lines.armed = False

    def _live(self, main: Any) -> None:
        kernel, oracles = self.kernel, self.reactor.oracles

        def begin(r: Any) -> None:
            main(r)
            oracles.ledger.begun = True

        self.reactor.call_soon(self.lines.begin)
        self.reactor.call_soon(begin, self.reactor)
        run = self.reactor.run if self.how == 'run' else self.turn
        while not self.again_and_again(run):
            self.world.stops += 1
        kernel.calm()
        if self.world.expectations:
            missing = '; '.join(expectation.text for expectation in self.world.expectations)
            raise Violation(f'liveness: the program has ended, but this has not happened: {missing}')
        oracles.check_over()
        oracles.check_turn(0)
        while not self.reactor.guard.closed:
            self.again_and_again(self.reactor.close)
        self.lines.end()
        oracles.check_closed()

    def turn(self) -> bool:
        while self.reactor.run_once():
            pass
        return not self.reactor.why_alive(1)


def play(program: str, seed: int, how: str, at: tuple[int, ...] = ()) -> Interrupted:
    """Run the program once."""
    simulation = Interrupted(seed, how, at)
    try:
        simulation.run(lambda r: PLAYS[program](simulation.world))
        simulation.world.at_end()  # type: ignore[attr-defined]
    finally:
        simulation.lines.end()
    return simulation


@cache
def lines_of(program: str, seed: int, how: str) -> int:
    """Return the number of lines that the program executes."""
    return play(program, seed, how).lines.count


@cache
def seed_of(program: str) -> int:
    """Return a seed for which the program is short."""
    return min(range(4), key=lambda seed: lines_of(program, seed, 'run'))


def attempt(case: Case) -> str | None:
    """Run a case; return None if all laws hold, otherwise the case and the broken law."""
    program, seed, how, n, later = case
    at = (n,) if later < 0 else (n, n + later)
    try:
        simulation = play(program, seed, how, at)
        why = '; '.join(simulation.reactor.ledger.violations)
        if not why and simulation.lines.pressed and not 1 <= simulation.raised <= simulation.lines.pressed:
            why = (
                f'SIGINT came {simulation.lines.pressed} times, KeyboardInterrupt was raised {simulation.raised} times'
            )
    except SimulationFailed as exc:
        why = str(exc).partition(': ')[2].partition('the end of the trace')[0]
    except BaseException as exc:
        why = f'{type(exc).__name__}: {exc}'
    return f'{case!r}: {" ".join(why.split())}' if why else None


def plays() -> list[str]:
    return [program for program in PLAYS if contexts is not None or program not in SECURED]


def variant(rng: random.Random) -> tuple[str, int]:
    """Return the method that runs the loop, and after how many more lines SIGINT comes again; -1: it does not."""
    return rng.choice(('run', 'run_once')), rng.choice((-1, 0, rng.randrange(1, 60)))


def cases() -> list[Case]:
    """Return a case for each line that a program reaches; SIGINT comes at a randomly chosen execution of the line."""
    rng, found = random.Random(1), []
    for program in plays():
        seed = seed_of(program)
        for how in ('run', 'run_once'):
            for reached in play(program, seed, how).lines.sites.values():
                wanted, later = variant(rng)
                if wanted == how:
                    found.append((program, seed, how, rng.choice(reached) - 1, later))
    return found


@cache
def sample() -> list[Case]:
    """Return a sample of the cases: some lines of each program, the same ones each time."""
    rng, found = random.Random(1), []
    for program in plays():
        count = lines_of(program, 0, 'run')
        for _ in range(SAMPLE // len(PLAYS) if count < LONGEST else 0):
            how, later = variant(rng)
            found.append((program, 0, how, rng.randrange(count), later))
    return found


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def secured(request):
    """Set `contexts` for TLS if certificates can be made."""
    global contexts
    try:
        made = request.getfixturevalue('certificates')
    except pytest.skip.Exception as exc:
        print(f'the scenarios with TLS are left out: {exc}')
        contexts = None
    else:
        contexts = (made.server(), made.client())


@pytest.mark.parametrize('part', range(PARTS))
def test_no_law_is_broken_when_ctrl_c_is_pressed_at_any_line(part):
    failures = [line for line in map(attempt, sample()[part::PARTS]) if line is not None]
    assert not failures, '\n'.join(failures)


def test_the_whole(request, capsys):
    if not request.config.getoption('--interrupts-whole'):
        pytest.skip('testing each line of all programs takes many minutes: pytest --interrupts-whole')
    faulthandler.cancel_dump_traceback_later()  # this test takes a long time, but does not hang
    everything, failures, began = cases(), [], time.monotonic()
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(2, mp_context=context) as pool, capsys.disabled():
        for count, line in enumerate(pool.map(attempt, everything, chunksize=50), 1):
            if line is not None:
                failures.append(line)
                print(f'\n{line}')
            if count % 500 == 0 or count == len(everything):
                done = f'{count} of {len(everything)} runs, {len(failures)} failed'
                print(f'\r{done}, {time.monotonic() - began:.0f} s   ', end='', flush=True)
        print()
    assert not failures, '\n'.join([f'{len(failures)} of {len(everything)} runs:', *failures])


# -- on the real system, where selectors are written in Python


class Real:
    """A program that does a little of everything on real sockets, with SIGINT at some lines."""

    def __init__(self, selector: Any, how: str, at: tuple[int, ...]) -> None:
        self.how = how
        self.began: list[Any] = []
        self.ended: list[Any] = []
        self.raised = 0
        self.lines = Lines(lambda: signal.getsignal(SIGINT), at)
        self.r = Reactor(selector=selector())

    def begin(self) -> None:
        r = self.r
        server = r.listen_tcp('127.0.0.1', 0, self.echo, on_connect=self.began.append, on_close=self.note)
        udp = r.bind_udp('127.0.0.1', 0, lambda udp, data, address: udp.close())
        udp.send(b'x', udp.address)
        signals = r.add_signal_handler(signal.SIGUSR1, self.stop, server)
        r.run_in_thread(int, on_done=lambda *outcome: r.call_later(0.001, signal.raise_signal, signal.SIGUSR1))
        self.signals = signals
        for _ in range(2):
            self.began.append(r.connect_tcp(*server.address, self.answered, on_connect=self.ask, on_close=self.note))

    def stop(self, server: Any) -> None:
        server.close()
        self.signals.close()

    def ask(self, conn: Any) -> None:
        conn.pause_reading()
        conn.write(b'question', type(conn).resume_reading)

    def echo(self, conn: Any, data: bytes) -> None:
        conn.write(data)
        conn.close()

    def answered(self, conn: Any, data: bytes) -> None:
        conn.pause_reading()
        conn.resume_reading()

    def note(self, conn: Any, exc: Any) -> None:
        self.ended.append(conn)

    def again_and_again(self, fn: Any) -> Any:
        while True:
            try:
                self.lines.armed = True
                return fn()
            except KeyboardInterrupt:
                self.raised += 1
                assert self.raised <= MOST, 'interrupted again and again'
                self.lines.again()
            finally:
                self.lines.armed = False

    def turns(self) -> bool:
        while self.r.run_once(1):
            pass
        return not self.r.why_alive(1)

    def play(self) -> str:
        """Return a description of the failures, or ''."""
        r = self.r
        r.call_soon(self.lines.begin)
        r.call_soon(self.begin)
        too_late = time.monotonic() + 10
        r.call_later(10, r.stop).unref()
        while not self.again_and_again(r.run if self.how == 'run' else self.turns) and time.monotonic() < too_late:
            pass
        while not r.guard.closed:
            self.again_and_again(r.close)
        self.lines.end()
        left = signal.set_wakeup_fd(-1)
        installed = signal.getsignal(SIGINT), signal.getsignal(signal.SIGUSR1)
        wrong = [] if left == -1 else [f'wakeup descriptor {left} is left']
        if installed != (signal.default_int_handler, signal.SIG_DFL):
            wrong.append(f'{installed} are left installed')
        if sorted(map(id, self.began)) != sorted(map(id, self.ended)) or len(self.began) != 4:
            wrong.append(f'{len(self.began)} connections began, and {len(self.ended)} ended')
        if self.lines.pressed and not 1 <= self.raised <= self.lines.pressed:
            wrong.append(f'{self.lines.pressed} times SIGINT, {self.raised} times KeyboardInterrupt')
        return '; '.join(wrong)


@pytest.fixture
def pythons_own():
    """Start with Python's own SIGINT handler."""
    before, tracing = signal.signal(SIGINT, signal.default_int_handler), sys.gettrace()
    yield
    sys.settrace(tracing)
    signal.signal(SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, 'SIGUSR1'), reason='needs SIGUSR1')
@pytest.mark.parametrize(
    'selector', [cls for cls in SELECTORS.values() if cls], ids=[*filter(SELECTORS.get, SELECTORS)]
)
def test_no_connection_is_lost_on_the_real_system(selector, pythons_own, request):
    counted = Real(selector, 'run', ())
    assert not counted.play()
    rng = random.Random(1)
    reached = [rng.choice(counts) - 1 for counts in counted.lines.sites.values()]
    if not request.config.getoption('--interrupts-whole'):
        reached = rng.sample(reached, 40)
    for n in reached:
        how, later = variant(rng)
        one = Real(selector, how, (n,) if later < 0 else (n, n + later))
        assert not one.play(), (how, n, later)
