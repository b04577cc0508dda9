"""What a program asks to be called later, under watch: timers, `call_soon`, calls from threads, idlers.

A watched call goes through a `Call`, which knows when it was asked for and tells the `Calls` of its reactor when it
begins. What is checked is what the design says of a turn: due timers in the order of their deadlines, then idlers, then
the calls in the order in which they were asked for, none of them early, twice, or late.

Owns the watched calls of one reactor. The rule: it lets every call through, and tells what is wrong.
"""

from __future__ import annotations

from math import inf
from sys import _getframe

from ..admission.listener import GuardedListener
from ..loop.timers import RepeatingTimer, Timer
from ..net.stream import Stream
from .ledger import CALLS, TIMERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .ledger import Ledger

DEEPEST = 12  # frames between `select` and a callback
OURS = Stream.__module__.rpartition('.')[0], GuardedListener.__module__.rpartition('.')[0]  # whose timers are ours
PACKAGE = __name__.partition('.')[0] + '.'
TESTING = __name__.rpartition('.')[0]
LONGEST_WAIT = 86_400.0  # seconds: long waits are clamped to a day
ROUNDED = 0.0011  # seconds by which the timeout of a poll may be rounded up
PROMPT = 2.0  # seconds: longer than a handle is parked, or a listener that was refused a client pauses


class Call:
    """A function that is called in a phase, and what is known of it."""

    calls: Calls
    phase: int
    kind: str
    set_in: int
    fn: Callable[..., object]
    turn: int

    def __init__(self, calls: Calls, phase: int, kind: str, fn: Callable[..., object]) -> None:
        self.calls, self.phase, self.kind, self.fn = calls, phase, kind, fn
        self.__qualname__ = getattr(fn, '__qualname__', repr(fn))
        self.turn, self.set_in = calls.ledger.turns, calls.ledger.phase
        self.order: int = calls.next_order()
        self.deadline: float | None = None
        self.cancelled = False

    def __call__(self, *args: Any) -> Any:
        ledger = self.calls.ledger
        self.calls.begins(self)
        try:
            return self.fn(*args)
        finally:
            ledger.inside = None

    def moved(self, deadline: float | None) -> None:
        """The timer has a new deadline."""
        self.turn, self.set_in = self.calls.ledger.turns, self.calls.ledger.phase
        self.order, self.deadline = self.calls.next_order(), deadline


class WatchedTimer(Timer):
    """A timer that tells its `Call` when it is moved or cancelled."""

    __slots__ = ()

    def reset(self, seconds: float | None = None) -> None:
        super().reset(seconds)
        self.fn.moved(self.deadline)  # type: ignore[union-attr]

    def cancel(self) -> None:
        call = self.fn
        super().cancel()
        if call is not None:
            call.cancelled = True  # type: ignore[attr-defined]
        if self.deadline is not None or self.fn is not None or self.args:
            raise AssertionError('a timer that was cancelled has still a deadline, or keeps what it was given')


class WatchedRepeatingTimer(WatchedTimer, RepeatingTimer):
    """The same of `call_every`."""

    __slots__ = ()


class Calls:
    """The calls of one reactor, in the order in which they were asked for, and the checks."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.soon: dict[str, list[Call]] = {'call_soon': [], 'call_soon_threadsafe': []}
        self.timers: dict[Timer, Call] = {}
        self.count: int = 0  # that have begun
        self._order = 0
        self._fired: tuple[float, int] = (-inf, 0)  # the last timer of this turn

    def next_order(self) -> int:
        """A number that is higher than all before."""
        self._order += 1
        return self._order

    # -- told by the reactor

    def watch_timer(self, timer: Timer) -> Timer:
        """A timer was made, whose function is a `Call`."""
        if isinstance(timer.fn, Call):
            timer.__class__ = WatchedRepeatingTimer if isinstance(timer, RepeatingTimer) else WatchedTimer
            timer.fn.deadline = timer.deadline
            self.timers[timer] = timer.fn
        return timer

    def wrap(self, phase: int, kind: str, fn: Any) -> Any:
        """`fn` under watch, unless it belongs to the reactor itself."""
        module = getattr(fn, '__module__', None) or ''
        ours = module.startswith(PACKAGE) and not module.startswith(TESTING)
        if ours or not callable(fn) or not self.ledger.simulated:
            return fn
        call = Call(self, phase, kind, fn)
        if kind in self.soon:
            self.soon[kind].append(call)
        return call

    def begins(self, call: Call) -> None:
        """One of them is called."""
        self.count += 1
        self.enter(call.kind, call.phase)
        if call.kind in self.soon:
            self._check_soon(call)
        elif call.phase == TIMERS:
            self._check_timer(call)

    def enter(self, what: str, phase: int | None) -> None:
        """Any callback of the user begins: not inside a call, not deep in the stack, not before its phase."""
        ledger, wrong = self.ledger, self.ledger.violations.append
        if ledger.inside is not None:
            wrong(f'law 2: {what} is called inside {ledger.inside}')
        ledger.inside = what
        if phase is not None:
            if phase < ledger.phase and not ledger.closing and not ledger.cut:
                wrong(f'law 3: {what} of phase {phase} is called in phase {ledger.phase}')
            ledger.phase = max(phase, ledger.phase)
        if not ledger.simulated:
            return
        began = ledger.kernel.reading(ledger.kernel.woke_at) / 1e9
        if ledger.reactor.now != began:
            wrong(f'in {what}, now is {ledger.reactor.now}, and the turn began at {began}')
        frame: Any = _getframe()
        depth = -ledger.depth
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        if ledger.depth and depth > DEEPEST and not ledger.closing:
            wrong(f'law 2: {what} is called {depth} frames deep')

    def _check_soon(self, call: Call) -> None:
        waiting, wrong = self.soon[call.kind], self.ledger.violations.append
        if not waiting or waiting[0] is not call:
            wrong(f'law 3: {call.kind} of {call.__qualname__} runs twice, or before one that was asked for earlier')
        if call in waiting:
            waiting.remove(call)
        if call.turn == self.ledger.turns and call.set_in >= CALLS and not self.ledger.cut:
            wrong(f'law 5: {call.__qualname__} runs in the turn in whose calls it was asked for')

    def _check_timer(self, call: Call) -> None:
        ledger, wrong = self.ledger, self.ledger.violations.append
        deadline = call.deadline
        if call.cancelled:
            wrong(f'law 1: {call.__qualname__} was cancelled, and runs')
        if deadline is None:
            wrong(f'law 1: {call.__qualname__} runs twice for one deadline')
            return
        if ledger.time() < deadline * 1e9 - 1000:
            wrong(f'{call.__qualname__} runs {deadline - ledger.time() / 1e9} s early')
        if (deadline, call.order) < self._fired and not ledger.cut:
            wrong(f'law 3: a timer of {deadline} runs after one of {self._fired[0]}')
        if call.turn == ledger.turns and call.set_in >= TIMERS and not ledger.cut:
            wrong(f'law 5: {call.__qualname__} runs in the turn in whose timers it was set')
        self._fired = deadline, call.order
        call.deadline = None
        for timer in (timer for timer, its in self.timers.items() if its is call):
            call.moved(timer.deadline)  # of a repeating one, the next

    # -- between two turns

    def check_turn(self, timeout: float | None) -> None:
        """What was due in the turn that is over has run, and the poll to come waits for nothing too long."""
        ledger = self.ledger
        woke_at, wrong = ledger.kernel.reading(ledger.kernel.woke_at) / 1e9, ledger.violations.append
        self._fired = (-inf, 0)
        self.timers = {timer: call for timer, call in self.timers.items() if timer.deadline is not None}
        for kind, waiting in self.soon.items():
            if waiting and timeout != 0 and kind == 'call_soon':  # the others ring
                wrong(f'the loop sleeps for {timeout} s, and {kind} of {waiting[0].__qualname__} waits')
            if waiting and waiting[0].turn < ledger.turns - 1 and not ledger.cut:
                if kind == 'call_soon' or not self._bell_was_refused():
                    wrong(f'{kind} of {waiting[0].__qualname__} waits for its second turn')
        for timer, call in self.timers.items():
            deadline = timer.deadline or 0.0
            if call.turn < ledger.turns - 1 and deadline <= woke_at and not ledger.cut:
                wrong(f'{call.__qualname__} was due at {deadline}, and did not run at {woke_at}')
            wait = max(0.0, deadline - ledger.time() / 1e9)
            if timeout is None or timeout > min(wait, LONGEST_WAIT) + ROUNDED:
                wrong(f'the loop sleeps for {timeout} s, and {call.__qualname__} is due in {wait} s')

    def _bell_was_refused(self) -> bool:
        # A call from a thread waits for the byte that it has sent, which the loop tries again to read.
        kernel = self.ledger.kernel
        since = kernel.time - PROMPT * 1e9
        return any(file.private and file.refused_at > since for file in kernel.files.values())


def is_ours(timer: Timer) -> bool:
    """Whether a stream or a listener has set this timer."""
    return getattr(timer.fn, '__module__', '').startswith(OURS)
