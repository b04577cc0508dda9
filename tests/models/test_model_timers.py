"""Test timers against a model, a list sorted by deadline and age.

The callbacks set, cancel and move timers, raise, and leave `run`.
"""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from reactor import HandleClosed, Reactor
from tests.helpers.models_support import Machine, Raised, case_of
from tests.helpers.support import FakeKernel

QUARTERS = st.integers(0, 12).map(lambda quarters: quarters / 4)
DELAYS = st.one_of(QUARTERS, st.just(3600.0))
INDEX = st.integers(0, 1000)
OFTEN = st.sampled_from([1, 1, 2, 3, 40])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just('set'), QUARTERS),
        st.tuples(st.just('cancel'), INDEX),
        st.tuples(st.just('reset'), INDEX, QUARTERS),
        st.tuples(st.just('cancel self')),
        st.tuples(st.just('reset self'), QUARTERS),
        st.tuples(st.just('unref'), INDEX),
        st.tuples(st.just('raise')),
        st.tuples(st.just('leave')),
    ),
    max_size=4,
)


class Token:
    """An argument of a timer, which shows when the timer releases its arguments."""


class Leaving(BaseException):
    """Raised by a callback to leave the loop in the middle of a batch."""


class Expected:
    """The model of one timer."""

    def __init__(self, deadline, order, delay, repeats, script):
        self.deadline = deadline
        self.order = order  # the order among timers with the same deadline
        self.delay = delay
        self.repeats = repeats
        self.script = script
        self.cancelled = False
        self.referenced = True


class Timers(Machine):
    """Check which timers fire in which order, which are pending, when the next is due, and what is released."""

    def __init__(self):
        super().__init__()
        gc.disable()  # objects must be freed by reference counts alone
        self.kernel = FakeKernel()
        self.r = Reactor(kernel=self.kernel, catch_errors=self.caught)
        self.timers, self.tokens, self.fired = [], [], []
        self.model, self.to_fire = [], []
        self.collected = []  # (deadline, order, number) of timers that an exception left unfired; they fire first
        self.order = 0

    def teardown(self):
        self.r.close()
        self.timers.clear()
        gc.enable()
        assert all(token() is None for token in self.tokens)

    # -- actions on the real timers

    def add(self, how, delay, script):
        token = Token()
        args = (self.fire, len(self.timers), script, token)
        if how == 'at':
            self.timers.append(self.r.call_at(self.kernel.time + delay, *args))
        else:
            self.timers.append((self.r.call_every if how == 'every' else self.r.call_later)(delay, *args))
        self.tokens.append(weakref.ref(token))

    def fire(self, number, script, token):
        assert self.model[number].cancelled is False
        self.fired.append(number)
        for what, *args in script:
            if what == 'set':
                self.add('later', args[0], ())
            elif what == 'cancel':
                self.timers[args[0] % len(self.timers)].cancel()
            elif what == 'reset':
                self.reset(args[0] % len(self.timers), args[1])
            elif what == 'cancel self':
                self.timers[number].cancel()
            elif what == 'reset self':
                self.reset(number, args[0])
            elif what == 'unref':
                self.timers[args[0] % len(self.timers)].unref()
            else:
                raise Raised if what == 'raise' else Leaving

    def reset(self, number, seconds):
        try:
            self.timers[number].reset(seconds)
        except HandleClosed:
            assert repr(self.timers[number]).endswith('cancelled>')

    # -- the model

    def next_order(self):
        self.order += 1
        return self.order

    def expect_add(self, delay, repeats, script):
        self.model.append(Expected(self.kernel.time + delay, self.next_order(), delay, repeats, script))

    def expect_gone(self, number):
        self.model[number].deadline = None
        self.model[number].referenced = True

    def expect_cancel(self, number):
        self.expect_gone(number)
        self.model[number].cancelled = True

    def expect_reset(self, number, seconds):
        if not self.model[number].cancelled:
            self.model[number].deadline = self.kernel.time + seconds
            self.model[number].order = self.next_order()

    def expect_unref(self, number):
        if self.model[number].deadline is not None:
            self.model[number].referenced = False

    def expect_fire(self, number):
        """Update the model for a timer that fires next; return whether its callback leaves the loop."""
        timer = self.model[number]
        if timer.repeats:
            while timer.deadline <= self.kernel.time:
                timer.deadline += timer.delay
            timer.order = self.next_order()
        else:
            self.expect_gone(number)
        self.to_fire.append(number)
        for what, *args in timer.script:
            if what == 'set':
                self.expect_add(args[0], False, ())
            elif what == 'cancel':
                self.expect_cancel(args[0] % len(self.model))
            elif what == 'reset':
                self.expect_reset(args[0] % len(self.model), args[1])
            elif what == 'cancel self':
                self.expect_cancel(number)
            elif what == 'reset self':
                self.expect_reset(number, args[0])
            elif what == 'unref':
                self.expect_unref(args[0] % len(self.model))
            else:
                return what == 'leave'
        return False

    def is_pending(self, entry):
        deadline, order, number = entry
        return (self.model[number].deadline, self.model[number].order) == (deadline, order)

    def pending(self):
        """Return (deadline, order, number) of each pending timer, in the order of firing."""
        first = [entry for entry in self.collected if self.is_pending(entry)]
        return first + sorted(
            entry
            for number, timer in enumerate(self.model)
            if timer.deadline is not None and (entry := (timer.deadline, timer.order, number)) not in first
        )

    # -- rules

    @rule(how=st.sampled_from(['later', 'later', 'at', 'every']), delay=DELAYS, script=ACTIONS, count=OFTEN)
    def set(self, how, delay, script, count):
        repeats = how == 'every'
        delay = delay or 0.25 if repeats else delay
        for _ in range(count):
            self.add(how, delay, script)
            self.expect_add(delay, repeats, script)

    @precondition(lambda self: self.timers)
    @rule(index=INDEX, count=OFTEN)
    def cancel(self, index, count):
        for number in range(index, index + count):
            self.timers[number % len(self.timers)].cancel()
            self.expect_cancel(number % len(self.timers))

    @precondition(lambda self: self.timers)
    @rule(index=INDEX, seconds=DELAYS, count=OFTEN)
    def move(self, index, seconds, count):
        for number in range(index, index + count):
            self.reset(number % len(self.timers), seconds)
            self.expect_reset(number % len(self.timers), seconds)

    @precondition(lambda self: self.timers)
    @rule(index=INDEX, back=st.booleans())
    def unref(self, index, back):
        number = index % len(self.timers)
        self.timers[number].unref()
        self.expect_unref(number)
        if back:
            self.timers[number].ref()
            self.model[number].referenced = True

    @rule(seconds=st.sampled_from([0, 0.25, 0.5, 1, 3]))
    def turn(self, seconds):
        self.kernel.time += seconds
        collected, last = set(self.collected), self.kernel.time
        due = [entry for entry in self.pending() if entry in collected or entry[0] <= last]
        left = False
        try:
            self.turns(self.r)
        except Leaving:
            left = True
        leaves = False
        while due and not leaves:
            entry = due.pop(0)
            if self.is_pending(entry):
                leaves = self.expect_fire(entry[2])
        assert left == leaves
        self.collected = due
        assert self.fired == self.to_fire
        assert self.r.stats().timers_fired == len(self.to_fire)

    # -- invariants

    @invariant()
    def the_same_timers_are_pending(self):
        pending, timers = self.pending(), self.r.timers
        numbers = {timer: number for number, timer in enumerate(self.timers)}
        assert [(timer.deadline, numbers[timer]) for timer in timers] == [
            (deadline, number) for deadline, _, number in pending
        ]
        assert len(timers) == len(pending)
        assert timers.referenced == sum(self.model[number].referenced for _, _, number in pending)

    @invariant()
    def the_loop_waits_until_the_next_timer(self):
        pending, now = self.pending(), self.kernel.time
        if any(self.is_pending(entry) for entry in self.collected):
            assert self.r.timeout() == 0
        else:
            assert self.r.timers.next_deadline() == (pending[0][0] if pending else None)
            assert self.r.timeout() == (max(0, pending[0][0] - now) if pending else None)

    @invariant()
    def the_heap_is_bounded(self):
        assert len(self.r.timers.heap) <= 2 * len(self.pending()) + 128

    @invariant()
    def cancelled_timers_release_everything(self):
        for timer, token in zip(self.model, self.tokens, strict=True):
            assert (token() is None) == timer.cancelled


TestTimersAsASortedList = pytest.mark.scenario(19, 21)(case_of(Timers))
