"""Timers: when and in which order they fire, cancelling and moving them, and the size of the heap."""

from __future__ import annotations

import gc
import math
import weakref
from functools import partial

import pytest

from reactor import HandleClosed, Reactor, Timer
from reactor.loop import timers
from reactor.loop.log import name_of
from reactor.loop.timers import TimerHeap
from tests.helpers.support import Log, run_short, run_until, turns


class Thing:
    """An object for weak references."""


@pytest.fixture
def uncollected():
    """Disable the garbage collector during the test: reference counts alone must suffice."""
    gc.disable()
    yield
    gc.enable()


# -- firing


def test_a_timer_fires_once_with_its_arguments(r):
    fired = []
    timer = r.call_later(0.001, lambda *args: fired.append(args), 1, 'two')
    assert isinstance(timer, Timer)
    assert r.run() is True
    assert fired == [(1, 'two')]


def test_timers_fire_in_the_order_of_their_deadlines(fake):
    fired = []
    for delay in 5, 1, 4, 2, 3:
        fake.call_later(delay, fired.append, delay)
    fake.run()
    assert fired == [1, 2, 3, 4, 5]


@pytest.mark.scenario(19)
def test_timers_with_equal_deadlines_fire_in_the_order_in_which_they_were_set(fake):
    fired = []
    for number in range(100):
        fake.call_later(5, fired.append, number)
    fake.run()
    assert fired == list(range(100))


@pytest.mark.parametrize('delay', [-0.5, -1, -7, -1e9])
def test_a_delay_below_0_counts_as_0_and_overtakes_no_timer(fake, kernel, delay):
    fired = []
    fake.call_later(0, fired.append, 'first')
    timer = fake.call_later(delay, fired.append, 'second')
    assert timer.deadline == kernel.time
    fake.run()
    assert fired == ['first', 'second']


def test_a_timer_moved_to_a_deadline_fires_after_those_that_had_it_before(fake):
    fired = []
    moved = fake.call_later(1, fired.append, 'moved')
    fake.call_later(5, fired.append, 'first')
    moved.reset(5)
    fake.run()
    assert fired == ['first', 'moved']


@pytest.mark.scenario(26)
def test_no_timer_fires_early(r):
    late = []

    def fire(timer):
        late.append(r._clock() - deadlines[timer])

    deadlines = {}
    for number in range(50):
        deadlines[number] = r.call_later(0.0005 * number, fire, number).deadline
    r.run()
    assert len(late) == 50
    assert min(late) >= 0


@pytest.mark.scenario(26)
def test_a_timer_is_not_fired_a_moment_before_its_deadline(fake, kernel):
    fired = []
    timer = fake.call_later(5, fired.append, 1)
    kernel.time = math.nextafter(timer.deadline, 0)
    fake.run_once(0)
    assert fired == []
    kernel.time = timer.deadline
    fake.run_once(0)
    assert fired == [1]


def test_a_delay_counts_from_a_fresh_clock_and_not_from_the_turns_stamp(fake, kernel):
    def late():
        kernel.time += 10
        assert fake.call_later(5, int).deadline == kernel.time + 5
        assert fake.now == 1000

    fake.call_soon(late)
    fake.run_once(0)
    assert fake.timeout() == 5
    assert fake.stats().callback_errors == 0


def test_call_at_fires_at_its_deadline_on_the_loops_clock(fake, kernel):
    fired = []
    fake.call_at(1030.5, lambda: fired.append(kernel.time))
    fake.run()
    assert fired == [1030.5]


def test_a_deadline_that_has_passed_is_due_at_once(fake, kernel):
    fired = []
    fake.call_at(-5, fired.append, 1)
    fake.run()
    assert (fired, kernel.time) == ([1], 1000)


@pytest.mark.scenario(20)
def test_a_timer_set_by_a_timer_waits_for_a_later_turn(fake):
    fired = []

    def fire():
        fired.append('first')
        fake.call_later(0, fired.append, 'second')

    fake.call_later(0, fire)
    fake.run_once(0)
    assert fired == ['first']
    fake.run_once(0)
    assert fired == ['first', 'second']


def test_a_timer_set_by_io_is_due_in_the_same_turn(r, sockets):
    fired = []
    ours, theirs = sockets()
    conn = r.adopt(ours, lambda conn, data: r.call_at(0, fired.append, 1))
    theirs.send(b'x')
    r.run_once(0)
    assert fired == [1]
    conn.abort()
    r.run_once(0)


@pytest.mark.scenario(20)
def test_a_timer_that_sets_itself_again_fires_once_a_turn_and_leaves_room_for_io(r, sockets):
    log, fired = Log(), []
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)

    def again():
        fired.append(r.stats().loop_count)
        if not log.received:
            r.call_later(0, again)
        if len(fired) == 20:
            theirs.send(b'x')

    r.call_later(0, again)
    run_until(r, lambda: log)
    turns(r, 2)
    assert fired == list(range(1, len(fired) + 1))
    assert len(fired) < 50
    conn.abort()
    r.run_once(0)


@pytest.mark.scenario(20)
def test_a_loop_with_a_timer_that_sets_itself_for_ever_can_be_stopped(fake):
    def again():
        fake.call_later(0, again)

    again()
    fake.call_soon(fake.call_soon, fake.stop)
    assert fake.run() is False


@pytest.mark.scenario(27)
def test_io_is_polled_between_the_turns_of_slow_timers(fake, kernel, sockets):
    log = []
    ours, theirs = sockets()

    def slow(number):
        kernel.time += 0.5
        log.append(number)
        if number == 0:
            theirs.send(b'x')

    conn = fake.adopt(ours, lambda conn, data: (log.append(data), conn.abort()))
    for number in range(1000):
        fake.call_later(0.001, slow, number)
    fake.call_later(1, slow, 'later')
    fake.run()
    assert conn.closed
    assert log == [*range(1000), b'x', 'later']


@pytest.mark.scenario(25)
def test_a_suspended_machine_finds_its_timers_due_once(fake, kernel):
    log = []
    fake.call_later(5, log.append, 'one-shot')
    every = fake.call_every(1, log.append, 'beat')
    kernel.time += 3600
    turns(fake, 5)
    assert sorted(log) == ['beat', 'one-shot']
    every.cancel()


@pytest.mark.scenario(25)
def test_a_step_of_the_wall_clock_moves_no_timer(r, monkeypatch):
    fired = []
    r.call_later(60, fired.append, 'late').unref()
    r.call_later(0.01, fired.append, 'early')
    monkeypatch.setattr('time.time', lambda: 4e9)
    assert r.run() is True
    assert fired == ['early']
    r.timers.clear()


@pytest.mark.scenario(24)
def test_a_long_wait_is_cut_to_a_day(fake):
    fired = []
    fake.call_later(3 * 86400, fired.append, 1)
    fake.run()
    assert fake.watchers.selector.waits == [86400, 86400, 86400]
    assert fired == [1]


# -- delays


@pytest.mark.scenario(24)
def test_a_delay_below_zero_is_treated_as_no_delay(fake, kernel):
    fired = []
    for delay in -0.0, -1, -1e9:
        assert fake.call_later(delay, fired.append, delay).deadline == kernel.time
    fake.run_once(0)
    assert fired == [-0.0, -1, -1e9]


@pytest.mark.scenario(24)
@pytest.mark.parametrize('delay', [1e7, 1e10, 1e12])
def test_a_very_long_delay_is_only_long(r, delay):
    fired = []
    timer = r.call_later(delay, fired.append, 'far')
    r.call_later(0.001, fired.append, 'near')
    run_until(r, lambda: fired)
    assert fired == ['near']
    assert r.timeout() == 86400
    timer.cancel()


@pytest.mark.scenario(24)
@pytest.mark.parametrize('seconds', [math.nan, math.inf, -math.inf])
def test_a_time_that_is_not_finite_is_refused_at_the_call(r, seconds):
    for call in r.call_later, r.call_at, r.call_every:
        with pytest.raises(ValueError, match=r'seconds'):
            call(seconds, int)
    assert len(r.timers) == 0


@pytest.mark.parametrize('seconds', [3.4e38, 1e300, 10**18, 10**400])
def test_a_finite_delay_that_used_to_be_taken_for_infinite_is_cut_to_a_very_long_one(r, seconds):
    fired = []
    timers = [call(seconds, fired.append, 'far') for call in (r.call_later, r.call_at, r.call_every)]
    timers[0].reset()
    timers[1].reset(seconds)
    r.call_later(0.001, fired.append, 'near')
    run_until(r, lambda: fired)
    assert fired == ['near'] and r.timeout() == 86400
    assert all('in 9' in repr(timer) or 'in 10' in repr(timer) for timer in timers)
    assert len(r.why_alive()) == 3
    for timer in timers:
        timer.cancel()


@pytest.mark.parametrize('seconds', ['1', None, 1j, True, b'1'])
def test_a_value_that_is_not_a_number_is_refused_at_the_call_and_not_by_a_comparison(r, seconds):
    for call in r.call_later, r.call_at, r.call_every:
        with pytest.raises(TypeError, match=r'must be a number of seconds, not ') as caught:
            call(seconds, int)
        assert repr(seconds) in str(caught.value)
    timer = r.call_later(60, int)
    if seconds is not None:  # for `reset`, None means the timer's original delay
        with pytest.raises(TypeError, match=r'seconds must be a number of seconds, not '):
            timer.reset(seconds)
    timer.cancel()
    assert len(r.timers) == 0


@pytest.mark.parametrize('interval', [0, -1, -0.0])
def test_an_interval_must_be_above_zero(r, interval):
    with pytest.raises(ValueError, match='above 0'):
        r.call_every(interval, int)
    assert len(r.timers) == 0


def test_a_refused_reset_leaves_the_timer_as_it_was(fake):
    timer = fake.call_later(5, int)
    for seconds, error in (math.nan, ValueError), (math.inf, ValueError), ('x', TypeError):
        with pytest.raises(error):
            timer.reset(seconds)
    assert fake.timeout() == 5


# -- cancelling


def test_a_cancelled_timer_does_not_fire_and_does_not_keep_run_running(fake, kernel):
    timer = fake.call_later(5, int)
    timer.cancel()
    assert timer.deadline is None
    assert fake.run() is True
    assert kernel.time == 1000
    assert fake.stats().timers_fired == 0


@pytest.mark.scenario(22)
def test_cancelling_twice_or_after_firing_does_nothing(fake):
    fired = []
    timer = fake.call_later(1, fired.append, 1)
    fake.run()
    timer.cancel()
    timer.cancel()
    fake.run_once(0)
    assert fired == [1]
    assert fake.stats().timers_cancelled == 0


@pytest.mark.scenario(22)
def test_a_timer_may_cancel_itself(fake):
    fired = []

    def fire():
        fired.append(1)
        timers[0].cancel()

    timers = [fake.call_later(1, fire)]
    assert fake.run() is True
    timers = [fake.call_every(1, fire)]
    assert fake.run() is True
    assert fired == [1, 1]


@pytest.mark.scenario(22)
def test_a_timer_cancelled_by_another_one_in_the_same_batch_does_not_fire(fake):
    fired = []
    timers = []

    def fire(number):
        fired.append(number)
        timers[1 - number].cancel()

    timers += [fake.call_later(1, fire, 0), fake.call_later(1, fire, 1)]
    fake.run()
    assert fired == [0]
    assert len(fake.timers) == 0


@pytest.mark.scenario(23)
def test_a_timer_moved_by_another_one_in_the_same_batch_fires_only_at_its_new_time(fake, kernel):
    fired = []
    fake.call_later(1, lambda: second.reset(5))
    second = fake.call_later(1, lambda: fired.append(kernel.time))
    fake.run()
    assert fired == [1006]


def test_a_timer_that_cannot_be_moved_out_of_its_batch_is_left_as_it_was(fake, kernel):
    # Regression: the failed `reset(5)` used to leave the timer registered at the new deadline too. The timer then fired
    # at that deadline, although `reset(10)` had moved it to a later one.
    class Full(dict):
        def __setitem__(self, key, value):
            raise MemoryError

    def move():
        fake.timers.moved = Full()
        with pytest.raises(MemoryError):
            other.reset(5)
        fake.timers.moved = {}

    def fire():
        fired.append(kernel.time)
        if len(fired) == 1:
            other.reset(10)

    fired = []
    fake.call_later(1, move)
    other = fake.call_later(1, fire)
    assert fake.run() is True
    assert fired == [1001, 1011] and len(fake.timers) == 0


@pytest.mark.parametrize('error', [MemoryError, RecursionError])
def test_a_timer_that_could_not_be_set_does_not_fire_with_the_next_one_at_its_deadline(fake, monkeypatch, error):
    # Regression: with no stack left, `call_later` used to raise, but the timer still fired with the next timer at its
    # deadline, and the count of pending timers was wrong by one.
    fired = []
    run_short(monkeypatch, timers, 'heappush', kind=error)
    with pytest.raises(error):
        fake.call_later(1, fired.append, 'not set')
    assert list(fake.timers) == []
    fake.call_later(1, fired.append, 'set')
    assert fake.run() is True
    assert fired == ['set'] and len(fake.timers) == 0


@pytest.mark.parametrize('error', [MemoryError, RecursionError])
def test_a_timer_that_could_not_be_moved_fires_only_at_its_old_time(fake, kernel, monkeypatch, error):
    fired = []
    timer = fake.call_later(5, lambda: fired.append(kernel.time) or (len(fired) == 1 and timer.reset(7)))
    run_short(monkeypatch, TimerHeap, '_withdraw', kind=error)
    with pytest.raises(error):
        timer.reset(10)
    assert fake.run() is True
    assert fired == [1005, 1012] and len(fake.timers) == 0


def test_a_timer_alone_at_a_deadline_can_be_set_to_it_again_without_memory(fake, monkeypatch):
    fired = []
    timer = fake.call_later(1, fired.append, 1)
    run_short(monkeypatch, TimerHeap, 'insert')
    timer.reset()
    assert fake.run() is True
    assert fired == [1] and len(fake.timers) == 0


def test_a_timer_that_shares_its_deadline_can_be_set_to_it_again_without_memory(fake, monkeypatch):
    # Regression: the timer used to be removed before it was appended after the others. If there was no memory to append
    # it, the timer was lost.
    fired = []
    timers_of_one = [fake.call_later(1, fired.append, number) for number in range(5)]
    run_short(monkeypatch, TimerHeap, 'insert')
    timers_of_one[1].reset()
    assert fake.run() is True
    assert fired == [0, 2, 3, 4, 1] and len(fake.timers) == 0


def test_a_timer_in_a_batch_that_cannot_be_set_to_its_own_deadline_again_fires_in_that_batch(kernel, monkeypatch):
    fired = []

    def again():
        with monkeypatch.context() as short:
            run_short(short, TimerHeap, 'insert')
            with pytest.raises(MemoryError):
                other.reset(0)

    with Reactor(kernel=kernel) as r:
        r.call_at(kernel.time, again)
        other = r.call_at(kernel.time, fired.append, 'other')
        assert r.run() is True
        assert fired == ['other'] and len(r.timers) == 0


@pytest.mark.parametrize('slow', [None, 100.0])
@pytest.mark.parametrize('later', [0, 2])
def test_timers_moved_out_of_their_batch_fire_once_each_in_a_later_turn(kernel, slow, later):
    fired = []
    with Reactor(kernel=kernel, slow_callback=slow) as r:

        def first():
            for timer in moved:
                timer.reset(later)
            fired.append(('first', r.stats().loop_count))

        r.call_later(1, first)
        moved = [r.call_later(1 + n / 1000, lambda: fired.append(('moved', r.stats().loop_count))) for n in range(3)]
        kernel.time += 1.5
        r.run()
        assert len(r.timers) == 0
    (_, turn), *rest = fired
    assert [name for name, _ in rest] == ['moved'] * 3
    assert all(later_turn > turn for _, later_turn in rest)


@pytest.mark.scenario(21)
def test_cancelling_releases_the_callback_and_its_arguments_at_once(r, uncollected):
    thing, callback = Thing(), Thing()
    refs = weakref.ref(thing), weakref.ref(callback)
    timer = r.call_later(3600, partial(int, callback), thing)
    del thing, callback
    timer.cancel()
    assert [ref() for ref in refs] == [None, None]


@pytest.mark.scenario(21, 119)
def test_cancelling_many_keeps_the_heap_small_and_releases_everything(r, uncollected):
    longest, thing = 0, Thing()
    ref = weakref.ref(thing)
    for _ in range(100_000):
        r.call_later(3600, int, thing).cancel()
        longest = max(longest, len(r.timers.heap))
    del thing
    assert ref() is None
    assert longest <= 128
    assert r.stats().timers_cancelled == 100_000


@pytest.mark.scenario(21)
def test_cancelling_many_timers_keeps_the_heap_in_proportion_to_the_live_ones(fake):
    fired = []
    for number in range(500):
        fake.call_later(10 + number, fired.append, number)
    for _ in range(10_000):
        fake.call_later(3600, int).cancel()
        assert len(fake.timers.heap) <= 2 * 500 + 128
    fake.run()
    assert fired == list(range(500))


def test_firing_leaves_no_cancelled_timers_in_the_heap(fake):
    for _ in range(1000):
        fake.call_later(1, int)
    for _ in range(1000):
        fake.call_later(3600, int).cancel()
    fake.run()
    assert len(fake.timers.heap) <= 128


# -- moving


def test_a_batch_that_an_exception_has_left_skips_the_timers_that_were_moved(kernel):
    fired = []
    with Reactor(kernel=kernel, catch_errors=False) as r:

        def first():
            timer.reset(0)
            raise RuntimeError

        r.call_later(1, first)
        timer = r.call_later(1, fired.append, 'timer')
        r.call_later(1, fired.append, 'other')
        kernel.time += 2
        with pytest.raises(RuntimeError):
            r.run()
        assert [each for each in r.timers if each is timer] == [timer]
        timer.reset(0)
        assert r.run() is True
        assert fired == ['other', 'timer'] and len(r.timers) == 0 and not r.timers.moved


def test_a_timer_that_was_moved_and_collected_again_is_still_listed_and_released_with_the_others(kernel):
    # Regression: the second exception used to leave the timer among the due timers twice. The loop believed that the
    # timer had been moved to a later turn, and closing did not release it.
    def leave(*moved):
        for timer in moved:
            timer.reset(0)
        raise RuntimeError

    r = Reactor(kernel=kernel, catch_errors=False)
    timers = []
    r.call_later(1, lambda: leave(timers[1]))
    timers += [r.call_later(1, leave), r.call_later(1, int)]
    kernel.time += 1
    for _ in range(2):
        with pytest.raises(RuntimeError):
            r.run()
    assert list(r.timers) == [timers[1]]
    r.close()
    assert repr(timers[1]) == '<Timer cancelled>'


@pytest.mark.parametrize('how', ['cancelled', 'moved'])
def test_after_an_exception_has_left_a_batch_the_loop_still_waits_for_the_next_timer(kernel, how):
    # Regression: the loop used to poll without waiting, and `timeout` made a host loop do the same.
    def leave():
        raise RuntimeError

    with Reactor(kernel=kernel, catch_errors=False) as r:
        r.call_later(1, leave)
        timer = r.call_later(1, int)
        kernel.time += 1
        with pytest.raises(RuntimeError):
            r.run()
        assert r.timeout() == 0
        r.call_later(7, int)
        timer.cancel() if how == 'cancelled' else timer.reset(5)
        assert len(list(r.timers)) == len(r.timers) == (1 if how == 'cancelled' else 2)
        assert r.timeout() == (7 if how == 'cancelled' else 5)


@pytest.mark.scenario(23)
@pytest.mark.parametrize('seconds', [2, 5, 60])
def test_a_timer_that_was_moved_fires_once_at_its_new_time(fake, kernel, seconds):
    fired = []
    timer = fake.call_later(5, lambda: fired.append(kernel.time))
    kernel.time += 1
    timer.reset(seconds)
    fake.run()
    fake.run_once(0)
    assert fired == [1001 + seconds]


def test_reset_alone_starts_the_delay_again(fake, kernel):
    timer = fake.call_later(5, int)
    kernel.time += 3
    timer.reset()
    assert timer.deadline == 1008
    timer.reset(1)
    timer.reset()
    assert timer.deadline == 1008


def test_reset_of_a_call_at_timer_repeats_its_first_delay(fake, kernel):
    timer = fake.call_at(1007, int)
    kernel.time += 100
    timer.reset()
    assert timer.deadline == 1107


def test_a_fired_timer_can_be_set_again(fake, kernel):
    fired = []
    timer = fake.call_later(5, lambda: fired.append(kernel.time))
    fake.run()
    timer.reset()
    fake.run()
    timer.reset(1)
    fake.run()
    assert fired == [1005, 1010, 1011]


def test_a_timer_may_set_itself_again_in_a_later_turn(fake):
    fired = []

    def fire():
        fired.append(1)
        timer.reset(0)

    timer = fake.call_later(0, fire)
    fake.run_once(0)
    assert fired == [1]
    fake.run_once(0)
    assert fired == [1, 1]
    timer.cancel()


def test_a_timer_that_is_moved_twice_to_the_same_time_is_pending_once(fake, kernel):
    fired = []

    def fire():
        fired.append(1)
        if len(fired) < 3:
            timer.reset(0)

    timer = fake.call_later(5, fire)
    timer.reset(0)
    timer.reset(0)
    assert list(fake.timers) == [timer]
    fake.run_once(0)
    assert fired == [1]
    fake.run()
    assert fired == [1, 1, 1]


def test_a_cancelled_timer_cannot_be_set_again(fake):
    timer = fake.call_later(5, int)
    timer.cancel()
    for seconds in None, 3:
        with pytest.raises(HandleClosed):
            timer.reset(seconds)
    assert len(fake.timers) == 0


@pytest.mark.scenario(23)
@pytest.mark.parametrize('seconds', [0, 1, 7200])
def test_moving_often_keeps_the_heap_small(r, seconds):
    timer = r.call_later(3600, int)
    for _ in range(2000):
        timer.reset(seconds)
        assert len(r.timers.heap) <= 128
    assert list(r.timers) == [timer]
    timer.cancel()


def test_moving_often_at_one_moment_keeps_the_heap_small(fake):
    timer = fake.call_later(3600, int)
    for _ in range(300):
        timer.reset(0)
    assert len(fake.timers.heap) <= 128


@pytest.mark.parametrize('seconds', [5, 60])
def test_a_timer_that_was_moved_and_has_fired_is_not_referenced(fake, uncollected, seconds):
    thing = Thing()
    ref = weakref.ref(thing)
    timer = fake.call_later(3600 if seconds == 5 else 10, id, thing)
    timer.reset(seconds)
    del thing
    fake.run()
    assert ref() is not None
    del timer
    assert ref() is None


# -- repeating


def test_a_repeating_timer_keeps_its_rate_however_long_its_callback_takes(fake, kernel):
    beats = []

    def beat():
        beats.append(kernel.time)
        kernel.time += 0.25
        if len(beats) == 4:
            timer.cancel()

    timer = fake.call_every(1, beat)
    fake.run()
    assert beats == [1001, 1002, 1003, 1004]


@pytest.mark.scenario(25)
def test_a_repeating_timer_skips_the_beats_that_it_missed(fake, kernel):
    beats = []

    def beat():
        beats.append(kernel.time)
        if len(beats) == 1:
            kernel.time += 3.5
        if len(beats) == 3:
            timer.cancel()

    timer = fake.call_every(1, beat)
    fake.run()
    assert beats == [1001, 1004.5, 1005]


@pytest.mark.scenario(28)
def test_a_repeating_timer_survives_an_exception(fake, caplog):
    beats = []

    def beat():
        beats.append(1)
        if len(beats) == 3:
            timer.cancel()
        raise ValueError('boom')

    timer = fake.call_every(1, beat)
    assert fake.run() is True
    assert len(beats) == len(caplog.records) == 3


@pytest.mark.scenario(28)
def test_a_repeating_timer_survives_an_exception_that_leaves_run(kernel):
    beats = []

    def beat():
        beats.append(kernel.time)
        raise KeyboardInterrupt

    with Reactor(kernel=kernel) as r:
        r.call_every(1, beat)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                r.run()
    assert beats == [1001, 1002, 1003]


def test_a_repeating_timer_that_is_moved_repeats_from_its_new_time(fake, kernel):
    beats = []

    def beat():
        beats.append(kernel.time)
        if len(beats) == 3:
            timer.cancel()

    timer = fake.call_every(2, beat)
    timer.reset(5)
    fake.run()
    assert beats == [1005, 1007, 1009]


def test_a_repeating_timer_may_move_itself(fake, kernel):
    beats = []

    def beat():
        beats.append(kernel.time)
        if len(beats) == 1:
            timer.reset(10)
        else:
            timer.cancel()

    timer = fake.call_every(1, beat)
    fake.run()
    assert beats == [1001, 1011]


def test_the_next_beat_is_always_in_the_future(fake, kernel):
    timer = fake.call_every(0.1, int)
    step = 0.0373
    for _ in range(20_000):
        kernel.time += step
        if timer.deadline <= kernel.time:
            timer.handle_due(kernel.time)
        assert kernel.time < timer.deadline <= kernel.time + 0.1 + 1e-9
    timer.cancel()


def test_a_beat_that_is_late_by_whole_intervals_is_not_made_twice(fake, kernel):
    # The 29th beat after 1099.741 is at 1099.77, but in floating point (1099.77 - 1099.741) // 0.001 is 28.
    timer = fake.timers.add_at(fake._repeating_timer, 1099.741, 0.001, int, ())
    kernel.time = 1099.77
    timer.handle_due(kernel.time)
    assert kernel.time < timer.deadline < kernel.time + 0.0011
    timer.cancel()


# -- references


@pytest.mark.scenario(6)
def test_an_unreferenced_timer_lets_run_end_and_fires_while_it_runs(fake):
    fired = []
    timer = fake.call_later(5, fired.append, 'unreferenced')
    timer.unref()
    timer.unref()
    assert fake.run() is True
    assert fired == []
    fake.call_later(10, fired.append, 'referenced')
    assert fake.run() is True
    assert fired == ['unreferenced', 'referenced']


def test_a_timer_referenced_again_keeps_run_running(fake):
    fired = []
    timer = fake.call_later(5, fired.append, 1)
    timer.unref()
    timer.ref()
    timer.ref()
    assert fake.run() is True
    assert fired == [1]


def test_a_moved_timer_stays_unreferenced(fake):
    timer = fake.call_later(5, int)
    timer.unref()
    timer.reset(7)
    assert fake.run() is True
    assert timer.deadline == 1007
    timer.cancel()
    assert fake.timers.referenced == 0


def test_a_repeating_timer_stays_unreferenced_from_beat_to_beat(fake):
    beats = []
    fake.call_every(1, beats.append, 1).unref()
    fake.call_later(3.5, int)
    assert fake.run() is True
    assert len(beats) == 3


@pytest.mark.parametrize('debug', [False, True])
def test_a_timer_that_fired_cannot_be_reset_when_the_reactor_is_closed(kernel, debug):
    # Regression: the timer used to stay pending for ever in a loop that no longer runs.
    r = Reactor(kernel=kernel, debug=debug)
    timer = r.call_later(1, int)
    r.run()
    r.close()
    with pytest.raises(HandleClosed, match='reactor is closed'):
        timer.reset(5)
    timer.cancel()
    assert timer.deadline is None and r.stats().timers == 0


def test_referencing_a_timer_that_has_ended_changes_nothing(fake):
    fired, cancelled = fake.call_later(0, int), fake.call_later(5, int)
    cancelled.cancel()
    fake.run()
    for timer in fired, cancelled:
        timer.unref()
        timer.ref()
        timer.ref()
        timer.unref()
    assert fake.timers.referenced == 0
    assert fake.run() is True


def test_cancelling_an_unreferenced_timer_leaves_the_others_referenced(fake):
    fired = []
    fake.call_later(5, fired.append, 1)
    timer = fake.call_later(5, int)
    timer.unref()
    timer.cancel()
    assert fake.timers.referenced == 1
    fake.run()
    assert fired == [1]


# -- introspection


def test_pending_timers_are_listed_in_the_order_of_firing(fake):
    timers = [fake.call_later(delay, int) for delay in (5, 1, 3, 1)]
    timers[2].cancel()
    assert list(fake.timers) == [timers[1], timers[3], timers[0]]
    assert len(fake.timers) == 3


def test_the_repr_of_a_timer_shows_its_state(fake):
    timer = fake.call_later(5, fail_named)
    assert repr(timer) == f'<Timer in 5.000 s calls {__name__}.fail_named>'
    fake.run()
    assert repr(timer) == '<Timer fired>'
    timer.cancel()
    assert repr(timer) == '<Timer cancelled>'
    every = fake.call_every(2, fail_named)
    assert repr(every) == f'<RepeatingTimer in 2.000 s calls {__name__}.fail_named>'


def fail_named():
    """A callback whose name appears in a repr."""


@pytest.mark.parametrize('interval', [5e-324, 1e-320, 1e-300, 1e-17])
def test_the_smallest_intervals_repeat_too(interval):
    beats = []
    with Reactor() as r:
        timer = r.call_every(interval, beats.append, 1)
        run_until(r, lambda: len(beats) == 3)
        timer.cancel()


def test_a_callback_is_named_by_its_qualified_name():
    assert name_of(fail_named) == f'{__name__}.fail_named'
    assert name_of(partial(partial(fail_named), 1)) == f'{__name__}.fail_named'
    assert name_of(Log().on_data) == 'tests.helpers.support.Log.on_data'
    thing = Thing()
    assert name_of(thing).startswith(__name__) or name_of(thing) == repr(thing)


def test_a_timer_has_five_slots_and_no_dictionary(fake):
    timer = fake.call_later(5, int)
    assert len(Timer.__slots__) <= 5
    assert not hasattr(timer, '__dict__')
    assert not hasattr(fake.call_every(5, int), '__dict__')


def test_a_timer_that_is_moved_twice_out_of_its_batch_fires_once(kernel):
    fired = []
    with Reactor(kernel=kernel, catch_errors=False) as r:

        def leave():
            timer.reset(0)
            raise RuntimeError

        r.call_later(1, leave)
        again = r.call_later(1, leave)
        timer = r.call_later(1, fired.append, 1)
        kernel.time += 1
        for _ in range(2):  # each exception leaves its timer's entry among the due timers, so two are left
            with pytest.raises(RuntimeError):
                r.run()
        assert list(r.timers) == [timer] and again.deadline is None
        assert r.run() is True
        assert fired == [1] and not r.timers.moved
