"""Lasting faults: from the n-th call on, every call of that kind fails, and nothing may spin, leak or be lost.

After a fault that happens only once, trying again always seems to be right. Here the faults persist.
For each program of `test_nth_call.py`, each kind of call and each of its errors, a lasting fault begins at the first
such call or at the middle one. The fault affects all descriptors of that kind, or only one descriptor. Wrong reports
of a selector are lasting faults, too: an unread error queue, or a readiness that no call can use.

The program need not reach its goals. The oracle checks only the loop:

    no spin           few turns without progress: a fixed number, plus MOST_A_SECOND for each simulated second
    each ends once    `close` of the reactor always works; when it returns, every connection has ended once
    no surprise       `run` and calls of the API raise only errors that their docstrings name
    bounded           timers, handles, completions and log lines do not grow
    nothing left      no descriptor, handler or timer is left after `close`

A sample always runs. `pytest --lasting-whole tests/laws/test_lasting_faults.py -k whole` runs all, in two processes.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import pytest

from reactor import READ
from reactor.testing.oracles import Violation
from reactor.testing.poller import Stuck
from reactor.testing.simulation import Simulation
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.nth_scenarios import HOST, close_all
from tests.laws import test_nth_call as nth
from tests.laws.test_nth_call import KINDS, PLAYS, SECURED, beginning, calls, quiet, secured, seeds  # noqa: F401

pytestmark = pytest.mark.slow

SECONDS = 60  # simulated time from the beginning of the fault
MOST_AT_ONCE = 100  # turns without progress in a whole run, however long it lasts
MOST_EACH = 60  # further turns for each connection and handle, which the spin detection needs
MOST_A_SECOND = 40  # further turns for each simulated second; 250 turns a second would take 1 % of a core
MOST_LINES = 20  # the most lines in the log
MOST_TIMERS = 100
SAMPLE, PARTS = 600, 4  # the number of runs, and the number of tests among which they are divided
LASTING = 'kind', 'descriptor'
# States that a selector reports for ever although no call can do anything about them. No call fails in such a state.
STATES = 'unread error', 'stuck readable', 'stuck writable'

# No kernel keeps refusing to restore a signal handler.
LEFT_OUT = {'signal'}

Case = tuple[
    str, int, str, int, str, str, Any
]  # program, seed, selector, n, name of the call, how the fault lasts, error


def begin(seed: int, kind: str, n: int, error: int, lasting: str) -> Simulation:
    """Return a simulation in which only this fault happens."""
    simulation = Simulation(seed, selector=kind, faults=False, fail=(n, error), lasting=lasting)
    simulation.world.contexts = nth.contexts  # type: ignore[attr-defined]
    simulation.world.at_end = int  # type: ignore[attr-defined]
    return simulation


@cache
def cases() -> list[Case]:
    """Return all cases."""
    found: list[Case] = []
    first = len(beginning()) + 1
    for play in PLAYS:
        if play in SECURED and nth.contexts is None:
            continue
        for seed in seeds(play)[:1]:
            for kind in KINDS:
                places: dict[tuple[str, tuple[int, ...]], list[int]] = {}
                for n, (name, errors) in enumerate(calls(play, seed, kind), 1):
                    if n >= first and name not in LEFT_OUT:
                        places.setdefault((name, errors), []).append(n)
                for (name, errors), numbers in places.items():
                    chosen = sorted({numbers[0], numbers[len(numbers) // 2]})
                    # EBADF means that other code has closed the descriptor. This can happen to a descriptor only once.
                    for error in (*(error for error in errors if error != errno.EBADF), *states(name)):
                        found += [(play, seed, kind, n, name, how, error) for n in chosen for how in LASTING]
    return found


def states(name: str) -> tuple[str, ...]:
    """Return the lasting states that can affect the descriptor of a call."""
    waited_for = {'accept', 'recv', 'send', 'sendmsg', 'recvfrom', 'sendto', 'connect', 'getsockopt'}
    return STATES if name in waited_for else ()


@cache
def sample() -> list[Case]:
    """Return some of the cases, the same ones each time, each on one selector."""
    rng, everything = random.Random(1), cases()
    rng.shuffle(everything)
    chosen = {(case[0], case[4], case[5], case[6]): case for case in everything}
    return sorted(chosen.values(), key=str)[:: max(1, len(chosen) // SAMPLE)]


class Watch(logging.Handler):
    """Records the effects of the fault: turns without progress, log lines, and the most timers at once."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self.kernel, self.ledger, self.reactor = simulation.kernel, simulation.reactor.ledger, simulation.reactor
        self.lines: list[str] = []
        self.wasted = self.in_a_row = self.timers = self.handles = 0
        self.began = 0
        self._before: Any = None
        self._check_turn = self.reactor.oracles.check_turn
        self.kernel.on_turn = self.on_turn

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def on_turn(self, timeout: float | None) -> None:
        """Count a turn; called before each poll."""
        self._check_turn(timeout)
        if not self.kernel.failed:
            return
        self.began = self.began or self.kernel.time
        fired = self.reactor.counters.timers_fired  # counted as progress: nearly all timers belong to programs
        now = self.kernel.progress, self.ledger.callbacks, self.kernel.threads.total(), fired
        # The first turn without progress is not counted as wasted: when a datagram arrives and its answer cannot be
        # sent, the reactor notices this only in the next turn.
        self.in_a_row = self.in_a_row + 1 if now == self._before else 0
        self.wasted += self.in_a_row > 1
        self._before = now
        self.handles = max(self.handles, len(self.reactor.watchers))
        self.timers = max(self.timers, len(self.reactor.timers) + len(self.reactor.completions))
        if self.wasted > self.most():
            raise Violation(f'law 7: {self.wasted} turns without progress in {self.seconds():g} s')

    def seconds(self) -> float:
        """Return how long the fault has lasted."""
        return (self.kernel.time - self.began) / 1e9 if self.began else 0.0

    def most(self) -> float:
        """Return the number of turns without progress that are allowed so far."""
        return MOST_AT_ONCE + MOST_EACH * (self.handles + len(self.ledger.records)) + MOST_A_SECOND * self.seconds()


def attempt(case: Case) -> str | None:
    """Run a case; return None if all laws hold, otherwise a line with the case, to run it again, and the failures."""
    play, seed, kind, n, name, lasting, error = case
    simulation = begin(seed, kind, n, 0 if error in STATES else error, lasting)
    kernel, ledger = simulation.kernel, simulation.reactor.ledger
    if error in STATES:
        make_state_last(kernel, error)
    fail = simulation.world.fail
    # A program may miss its goals, but nothing may happen twice.
    simulation.world.fail = lambda text: fail(text) if 'twice' in text else None  # type: ignore[method-assign]
    watch = Watch(simulation)
    logger = logging.getLogger('reactor')
    logger.addHandler(watch)
    wrong: list[str] = []
    try:
        run(simulation, watch, PLAYS[play], wrong)
        close(simulation, wrong)
    except Violation as exc:
        wrong.append(str(exc))
    finally:
        logger.removeHandler(watch)
    if play in SECURED and kernel.failed != name:
        return None  # random keys change some lengths, so the n-th call was a different one
    wrong += judge(watch, ledger)
    if not kernel.failed:
        wrong.append('the call was not made')
    if not wrong:
        return None
    what = errno.errorcode.get(error, str(error))
    why = ' '.join('; '.join(wrong).split())
    return f'{play} seed={seed} {kind} n={n}: {name} always fails with {what} {case!r}: {why}'


def run(simulation: Simulation, watch: Watch, play: Any, wrong: list[str]) -> None:
    """Run the program until it ends, is stuck, or the fault has lasted long enough."""
    r, kernel = simulation.reactor, simulation.kernel

    over: list[bool] = []

    def stop() -> None:
        if kernel.failed and watch.seconds() >= SECONDS:
            over.append(True)
            r.stop()
        else:
            kernel.at(kernel.time + 10**9, stop)

    kernel.at(kernel.time + int(simulation._calm * 1e9), kernel.calm)  # at the same time as in the counted run
    kernel.at(kernel.time + 10**9, stop)

    def main(r: Any) -> None:
        play(simulation.world)
        simulation.reactor.ledger.begun = True

    todo: Any = main
    try:
        while not r.run(todo) and not over:
            todo = None
            simulation.world.stops += 1  # the program has called `stop` and wants to run again
    except Stuck:
        pass  # nothing more can happen
    except OSError as exc:  # raised by the selector itself, or by a program that could not start
        if simulation.reactor.ledger.begun and kernel.failed not in ('select', 'selector'):
            wrong.append(f'run() raised {exc!r}')
    except Exception as exc:
        if simulation.reactor.ledger.begun:
            wrong.append(f'run() raised {exc!r}')
    if simulation.reactor.guard.thread is not None:
        simulation.reactor.guard.thread = None  # `Stuck` was raised inside the selector, so this was not reset


def close(simulation: Simulation, wrong: list[str]) -> None:
    """Close the reactor; this must work during any fault."""
    try:
        simulation.reactor.close()
    except OSError as exc:
        wrong.append(f'close() raised {exc!r}')
    simulation.reactor.oracles.check_closed()


def judge(watch: Watch, ledger: Any) -> list[str]:
    """Return the failures of the loop."""
    wrong = []
    if len(watch.lines) > MOST_LINES:
        wrong.append(f'{len(watch.lines)} lines were logged, the last: {watch.lines[-1]}')
    if watch.timers > MOST_TIMERS:
        wrong.append(f'law 6: {watch.timers} timers and completions')
    wrong += [text for text in ledger.violations if text not in wrong]
    return wrong


def make_state_last(kernel: Any, state: str) -> None:
    """Make calls succeed instead of fail, and let the selector report this state of their descriptors for ever."""

    def make(name: str, fd: int, error: int) -> int:
        kernel.failed = name
        file = kernel.files.get(fd)
        if file is not None:
            if state == 'unread error':
                file.unread_error = True
            else:
                file.stuck = 1 if state == 'stuck readable' else 2
        return 0

    kernel._make_fail = make


@pytest.mark.parametrize('part', range(PARTS))
def test_no_law_is_broken_when_a_fault_lasts(part):
    failures = [line for line in map(attempt, sample()[part::PARTS]) if line is not None]
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('what', ['watch', 'stream', 'listener', 'datagrams'])
def test_a_number_that_is_closed_while_a_copy_is_open_and_then_given_to_a_new_handle(kind, what):
    """epoll would keep reporting the closed file under the number of the new handle, so the selector is replaced."""
    simulation = Simulation(0, selector=kind, faults=False)
    kernel, r, calls = simulation.kernel, simulation.reactor, []

    def main(r):
        ours, theirs = kernel.socketpair()
        lost = r.watch_fd(ours, READ, calls.append)
        number, copy = ours.fileno(), kernel.duplicate(ours.fileno())
        kernel.lose_fd(ours.detach())
        theirs.send(b'x')
        new, peer = kernel.socketpair()
        r.ledger.foreign.update(range(20))
        if what == 'watch':
            handle = r.watch_fd(new, READ, lambda *args: calls.append(new.recv(9)))
        elif what == 'stream':
            handle = r.adopt(new, lambda conn, data: calls.append(data))
        else:
            close_all(new)
            if what == 'listener':
                handle = r.listen_tcp(HOST, 1, on_connect=lambda conn: calls.append(conn.abort()))
            else:
                handle = r.bind_udp(HOST, 1, lambda sock, data, address: calls.append(data))
        assert handle.fileno() == number

        def use() -> None:
            assert calls == []
            if what == 'listener':
                r.connect_tcp(HOST, 1)
            elif what == 'datagrams':
                sender = r.connect_udp(HOST, 1)
                sender.send(b'x')
                r.call_later(1, sender.close)
            else:
                peer.send(b'x')

        def end() -> None:
            assert len(calls) == 1
            for each in handle, lost:
                each.abort()
            close_all(new, peer, theirs)
            kernel.close_fd(copy)
            r.ledger.foreign.clear()

        r.call_later(5, use)
        r.call_later(10, end)

    simulation.run(main)
    assert r.stats().loop_count < 200
    assert r.stats().callback_errors == 0


def test_the_whole(request, capsys):
    if not request.config.getoption('--lasting-whole'):
        pytest.skip('running all lasting faults takes many minutes: pytest --lasting-whole')
    faulthandler.cancel_dump_traceback_later()  # this test takes a long time, but does not hang
    everything, failures, began = cases(), [], time.monotonic()
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(2, mp_context=context) as pool, capsys.disabled():
        for count, line in enumerate(pool.map(attempt, everything, chunksize=100), 1):
            if line is not None:
                failures.append(line)
                print(f'\n{line}')
            if count % 500 == 0 or count == len(everything):
                print(f'\r{count} of {len(everything)} runs, {len(failures)} failed', end=' ', flush=True)
        print(f'in {time.monotonic() - began:.0f} s')
    assert not failures, '\n'.join([f'{len(failures)} of {len(everything)} runs:', *failures])
