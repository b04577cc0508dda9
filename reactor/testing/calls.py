"""Checks for scheduled calls: timers, idlers, `call_soon` and `call_soon_threadsafe`.

Each function that a program schedules is wrapped in a `Call`, which reports to the `Calls` of its reactor when it is
called. The design fixes the order in a turn: due timers by deadline, then idlers, then the other calls in the order in
which they were scheduled. No function may be called early, late or twice.

A wrapped function is always called, even if the call is a violation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from sys import _getframe
from typing import Any

from ..admission.listener import GuardedListener
from ..loop.timers import RepeatingTimer, Timer
from ..net.stream import Stream
from .files import End
from .ledger import CALLS, TIMERS, Ledger, Walks

DEEPEST = 12  # the most frames between `select` and a callback
# Timers set in these packages, by streams and listeners, belong to the reactor.
OURS = Stream.__module__.rpartition('.')[0], GuardedListener.__module__.rpartition('.')[0]
PACKAGE = __name__.partition('.')[0] + '.'
TESTING = __name__.rpartition('.')[0]
LONGEST_WAIT = 86_400.0  # seconds: long waits are clamped to a day
ROUNDED = 0.0011  # seconds by which the timeout of a poll may be rounded up
PROMPT = 2.0  # seconds: longer than a handle stays parked, or a listener pauses after a failed accept


class Call:
    """A function that a program has scheduled, with the turn and the phase in which it was scheduled."""

    def __init__(self, calls: Calls, phase: int, kind: str, fn: Callable[..., object]) -> None:
        self.calls = calls
        self.phase = phase
        self.kind = kind
        self.fn = fn
        self.__qualname__: str = getattr(fn, '__qualname__', type(fn).__qualname__)
        self.text: str = calls.ledger.reached.add_timer(fn) if phase == TIMERS else ''  # for `Reached`
        self.cancelled = False
        self.moved(None)

    def __call__(self, *args: Any) -> Any:
        self.calls.check_call(self)
        try:
            return self.fn(*args)
        finally:
            self.calls.ledger.inside = None

    def moved(self, deadline: float | None) -> None:
        """Record that the timer has a new deadline."""
        self.turn: int = self.calls.ledger.turns
        self.set_in: int = self.calls.ledger.phase
        self.order: int = self.calls.next_order()
        self.deadline = deadline


class InThread:
    """A function that a program runs in a thread; its beginning and end are in the trace."""

    def __init__(self, calls: Calls, fn: Callable[..., Any]) -> None:
        self.calls = calls
        self.fn = fn
        self.__module__: str = getattr(fn, '__module__', '') or ''
        self.__qualname__: str = getattr(fn, '__qualname__', type(fn).__qualname__)

    def __call__(self, *args: Any) -> Any:
        self.calls.note_thread('begins', self.fn)
        try:
            return self.fn(*args)
        finally:
            self.calls.note_thread('ends', self.fn)


class WatchedTimer(Timer):
    """A timer that reports to its `Call` when it is reset or cancelled."""

    __slots__ = ()

    def reset(self, seconds: float | None = None) -> None:
        super().reset(seconds)
        call: Call = self.fn  # type: ignore[assignment]
        call.calls.expect(call, self)

    def cancel(self) -> None:
        call = self.fn
        super().cancel()
        if call is not None:
            call.cancelled = True  # type: ignore[attr-defined]
            call.calls.timers.pop(call, None)  # type: ignore[attr-defined]
        if self.deadline is not None or self.fn is not None or self.args:
            raise AssertionError('a cancelled timer still has its deadline, function or arguments')


class WatchedRepeatingTimer(WatchedTimer, RepeatingTimer):
    """A `WatchedTimer` made by `call_every`."""

    __slots__ = ()


class Calls:
    """The scheduled calls of one reactor, in the order in which they were scheduled, and the checks for them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.soon: dict[str, deque[Call]] = {'call_soon': deque(), 'call_soon_threadsafe': deque()}
        self.timers: dict[Call, Timer] = {}  # the pending timers, and those that were pending one look ago
        self._deadlines: list[tuple[float, int, Call]] = []  # a heap; entries of timers that were moved stay in it
        self._walks = Walks()
        self.count: int = 0  # scheduled calls that have run
        self._order = 0
        self._fired: tuple[float, int] = (-inf, 0)  # deadline and order of the last timer that fired in this turn

    @property
    def fired(self) -> bool:
        """Whether a timer of the program has fired in this turn."""
        return self._fired[0] > -inf

    def next_order(self) -> int:
        """Return the next sequence number."""
        self._order += 1
        return self._order

    # -- called by the reactor

    def watch_timer(self, timer: Timer) -> Timer:
        """Watch a new timer, whose function is a `Call`."""
        if isinstance(timer.fn, Call):
            self.ledger.uses(timer.delay)
            timer.__class__ = WatchedRepeatingTimer if isinstance(timer, RepeatingTimer) else WatchedTimer
            self.expect(timer.fn, timer)
        return timer

    def expect(self, call: Call, timer: Timer) -> None:
        """Record the deadline of a timer that was made or moved."""
        call.moved(timer.deadline)
        if timer.deadline is None:
            self.timers.pop(call, None)
        else:
            self.timers[call] = timer
            heappush(self._deadlines, (timer.deadline, call.order, call))

    def wrap(self, phase: int, kind: str, fn: Any) -> Any:
        """Return `fn` wrapped in a `Call`, or `fn` itself if it belongs to the reactor."""
        if self._is_ours(fn) or not callable(fn) or not self.ledger.simulated:
            return fn
        call = Call(self, phase, kind, fn)
        if kind in self.soon:
            self.soon[kind].append(call)
        return call

    def note_thread(self, what: str, fn: Any) -> None:
        """Add a line to the trace if the program does something with a function in a thread."""
        kernel = self.ledger.kernel
        if self.ledger.simulated and kernel.running_thread != 1 and not self._is_ours(fn):
            kernel.note(f'thread {kernel.running_thread - 1000} {what}', -1, getattr(fn, '__qualname__', repr(fn)))

    def check_call(self, call: Call) -> None:
        """Check a scheduled call that is being called."""
        self.count += 1
        self.ledger.kernel.note(f'{call.kind}: {call.__qualname__.removeprefix("Watched")}', -1)
        self.enter(call.kind, call.phase)
        if call.kind in self.soon:
            self._check_soon(call)
        elif call.phase == TIMERS:
            self.ledger.reached.reach(call.text)
            self._check_timer(call)

    def enter(self, what: str, phase: int | None) -> None:
        """Check a callback of any kind that is being called: its place in the turn, and the depth of the stack.

        Callbacks must not be nested, and phases must come in order. `phase` is None if any phase is allowed.
        """
        ledger, wrong = self.ledger, self.ledger.violations.append
        if ledger.simulated:
            ledger.kernel.suspended.preempt()
        if ledger.inside is not None:
            wrong(f'law 2: {what} is called inside {ledger.inside}')
        ledger.inside = what
        if phase is not None:
            if phase < ledger.phase and not ledger.closing and not ledger.cut:
                wrong(f'law 3: {what} belongs to phase {phase}, but is called in phase {ledger.phase}')
            ledger.phase = max(phase, ledger.phase)
        if not ledger.simulated:
            return
        began = ledger.kernel.reading(ledger.kernel.woke_at) / 1e9
        if ledger.reactor.now != began:
            wrong(f'in {what}, `now` is {ledger.reactor.now}, but the turn began at {began}')
        frame: Any = _getframe()
        depth = -ledger.depth
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        if ledger.depth and depth > DEEPEST and not ledger.closing:
            wrong(f'law 2: {what} is called {depth} frames below the poll; at most {DEEPEST} are allowed')

    def _check_soon(self, call: Call) -> None:
        waiting, wrong = self.soon[call.kind], self.ledger.violations.append
        if not waiting or waiting[0] is not call:
            wrong(f'law 3: {call.kind} of {call.__qualname__} runs twice, or before an earlier {call.kind}')
        if call in waiting:
            waiting.remove(call)
        if call.turn == self.ledger.turns and call.set_in >= CALLS and not self.ledger.cut:
            wrong(f'law 5: {call.__qualname__} was scheduled by a call, but runs in the same turn')

    def _check_timer(self, call: Call) -> None:
        ledger, wrong = self.ledger, self.ledger.violations.append
        deadline = call.deadline
        if call.cancelled:
            wrong(f'law 1: the timer of {call.__qualname__} was cancelled, but fired')
        if deadline is None:
            wrong(f'law 1: the timer of {call.__qualname__} fired twice for one deadline')
            return
        if ledger.time() < deadline * 1e9 - 1000:
            wrong(f'the timer of {call.__qualname__} fired {deadline - ledger.time() / 1e9} s early')
        if (deadline, call.order) < self._fired and not ledger.cut:
            wrong(f'law 3: a timer due at {deadline} fired after a timer due at {self._fired[0]}')
        if call.turn == ledger.turns and call.set_in >= TIMERS and not ledger.cut:
            wrong(f'law 5: the timer of {call.__qualname__} was set by a timer, but fired in the same turn')
        self._fired = deadline, call.order
        call.deadline = None
        if call in self.timers:
            self.expect(call, self.timers[call])  # a repeating timer already has its next deadline

    @staticmethod
    def _is_ours(fn: Any) -> bool:
        module = getattr(fn, '__module__', None) or ''
        return module.startswith(PACKAGE) and not module.startswith(TESTING)

    # -- between two turns

    def check_turn(self, timeout: float | None) -> None:
        """Check that all calls due in the last turn ran, and that a poll of `timeout` seconds delays no other call."""
        ledger = self.ledger
        woke_at, wrong = ledger.kernel.reading(ledger.kernel.woke_at) / 1e9, ledger.violations.append
        self._fired = (-inf, 0)
        for kind, waiting in self.soon.items():
            if waiting and timeout != 0 and kind == 'call_soon':  # call_soon_threadsafe wakes a sleeping loop
                wrong(f'the loop sleeps for {timeout} s, although {kind} of {waiting[0].__qualname__} is waiting')
            if waiting and waiting[0].turn < ledger.turns - 1 and not ledger.cut:
                if kind == 'call_soon' or not self._wakeup_is_late():
                    wrong(f'{kind} of {waiting[0].__qualname__} did not run in the turn after it was scheduled')
        for call, timer in self._to_check(woke_at):
            deadline = timer.deadline or 0.0
            if call.turn < ledger.turns - 1 and deadline <= woke_at and not ledger.cut:
                wrong(f'the timer of {call.__qualname__} was due at {deadline}, but did not fire at {woke_at}')
            wait = max(0.0, deadline - ledger.time() / 1e9)
            if timeout is None or timeout > min(wait, LONGEST_WAIT) + ROUNDED:
                wrong(f'the loop sleeps for {timeout} s, although the timer of {call.__qualname__} is due in {wait} s')

    def _to_check(self, woke_at: float) -> list[tuple[Call, Timer]]:
        """Return the timers that are due, and the next one; in small programs and now and then, all pending timers."""
        if self._walks.is_time(len(self.timers)):
            self.timers = {call: timer for call, timer in self.timers.items() if timer.deadline is not None}
            self._deadlines = [(timer.deadline or 0.0, call.order, call) for call, timer in self.timers.items()]
            heapify(self._deadlines)
            return list(self.timers.items())
        found = []
        while self._deadlines:
            deadline, _, call = heappop(self._deadlines)
            timer = self.timers.get(call)
            if timer is not None and timer.deadline == deadline:
                found.append((call, timer))
                if deadline > woke_at:
                    break
        for call, timer in found:
            heappush(self._deadlines, (timer.deadline or 0.0, call.order, call))
        return found

    def _wakeup_is_late(self) -> bool:
        # A thread-safe call waits until the loop has read the byte that wakes it. If the read fails, the loop retries.
        # On Windows the byte needs time to arrive, and a thread may have sent it right before the last poll.
        kernel = self.ledger.kernel
        since = kernel.time - PROMPT * 1e9
        wakeup = [file for file in kernel.files.values() if file.private and isinstance(file, End)]
        return any(end.refused_at > since or end.on_the_way for end in wakeup)


def is_ours(timer: Timer) -> bool:
    """Return whether a stream or a listener has set this timer."""
    return getattr(timer.fn, '__module__', '').startswith(OURS)
