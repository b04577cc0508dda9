"""The loop: its phases and their order, running, stopping, closing, errors in callbacks, and the cost of waiting."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
import tracemalloc
import weakref

import pytest

import reactor
from reactor import READ, WRITE, HandleClosed, Reactor, ReactorError, SelectorFull
from reactor.loop import failures
from reactor.loop.closing import CLOSING_ROUNDS
from reactor.loop.idle import Idler
from reactor.loop.timers import RepeatingTimer, Timer
from reactor.loop.watcher import Handle
from tests.helpers.support import (
    SELECTORS,
    FakeKernel,
    FakeSelector,
    Log,
    Probe,
    ScriptedKernel,
    ScriptedSocket,
    in_thread,
    run_short,
    run_until,
    turns,
    turns_in,
)


def fail(*args):
    """A callback that must not be called."""
    raise AssertionError('called')


def boom(*args):
    """A callback that raises."""
    raise ValueError('boom')


class Thing:
    """An object for weak references."""


# -- one turn


@pytest.mark.scenario(1)
def test_a_turn_dispatches_then_runs_timers_then_calls_then_completions(r, sockets):
    log = []
    ours, theirs = sockets()

    def on_data(conn, data):
        log.append('data')
        conn.close()

    r.adopt(ours, on_data, on_close=lambda conn, exc: log.append('close'))
    r.call_soon(log.append, 'soon')
    r.call_later(0, log.append, 'timer')
    theirs.send(b'x')
    r.run_once(0)
    assert log == ['data', 'timer', 'soon', 'close']


@pytest.mark.scenario(1)
def test_on_close_is_called_after_the_io_of_its_turn_in_the_order_of_closing(r, sockets):
    log = []
    pairs = [sockets() for _ in range(5)]

    def on_data(conn, data):
        log.append(('data', conn.data))
        conn.close()

    for number, (ours, theirs) in enumerate(pairs):
        conn = r.adopt(ours, on_data, on_close=lambda conn, exc, number=number: log.append(('close', number)))
        conn.data = number
        theirs.send(b'x')
    r.run_once(0)
    order = [number for what, number in log[:5] if what == 'data']
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert log[5:] == [('close', number) for number in order]


def test_a_call_made_by_a_call_waits_for_the_next_turn(r):
    log = []
    r.call_soon(lambda: (log.append('first'), r.call_soon(log.append, 'second')))
    r.run_once(0)
    assert log == ['first']
    r.run_once(0)
    assert log == ['first', 'second']


def test_a_call_made_by_a_timer_runs_in_the_same_turn(r):
    log = []
    r.call_later(0, r.call_soon, log.append, 'soon')
    r.run_once(0)
    assert log == ['soon']


def test_a_call_made_by_a_completion_waits_for_the_next_turn(r, sockets):
    log = []
    conn = r.adopt(sockets()[0], on_close=lambda conn, exc: r.call_soon(log.append, 'soon'))
    conn.close()
    r.run_once(0)
    assert log == []
    r.run_once(0)
    assert log == ['soon']


def test_a_completion_caused_by_a_completion_waits_for_the_next_turn(r, sockets):
    log = Log()
    second = r.adopt(sockets()[0], on_close=log.on_close)
    first = r.adopt(sockets()[0], on_close=lambda conn, exc: second.close())
    first.close()
    r.run_once(0)
    assert log == []
    r.run_once(0)
    assert log.names() == ['close']


def test_calls_run_in_the_order_in_which_they_were_made(r):
    log = []
    for number in range(100):
        r.call_soon(log.append, number)
    r.run()
    assert log == list(range(100))


def test_a_call_gets_its_arguments(r):
    log = []
    r.call_soon(lambda *args: log.append(args), 1, 'two', None)
    r.call_soon(lambda *args: log.append(args))
    r.run()
    assert log == [(1, 'two', None), ()]


def test_nothing_is_called_inside_a_call_into_the_api(r, sockets):
    log = []
    ours, _ = sockets()
    r.call_soon(log.append, 'soon')
    r.call_later(0, log.append, 'timer')
    r.call_soon_threadsafe(log.append, 'threadsafe')
    conn = r.adopt(ours, on_close=lambda conn, exc: log.append('close'))
    conn.write(b'x', lambda conn: log.append('written'))
    conn.close()
    assert log == []
    run_until(r, lambda: len(log) == 5)
    assert sorted(log) == ['close', 'soon', 'threadsafe', 'timer', 'written']


@pytest.mark.scenario(2)
def test_a_call_that_schedules_itself_runs_once_a_turn_at_constant_depth(r):
    rounds = 100_000
    left = rounds
    depths = set()

    def again():
        nonlocal left
        left -= 1
        if left % 1000 == 0:
            depth, frame = 0, sys._getframe()
            while frame is not None:
                depth, frame = depth + 1, frame.f_back
            depths.add(depth)
        if left:
            r.call_soon(again)

    r.call_soon(again)
    assert r.run() is True
    assert len(depths) == 1
    assert r.stats().loop_count == rounds


@pytest.mark.scenario(2)
def test_a_call_that_schedules_itself_for_ever_does_not_starve_sockets_and_timers(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    fired = []

    def again():
        if len(fired) < 5 or not log:
            r.call_soon(again)

    again()
    timer = r.call_every(0.001, fired.append, 1)
    theirs.send(b'x')
    run_until(r, lambda: len(fired) >= 5 and log)
    timer.cancel()
    conn.abort()
    turns(r, 3)
    assert log.received == b'x'


def test_now_is_the_stamp_of_the_turn_while_the_clock_goes_on(fake, kernel):
    stamps = []

    def busy():
        stamps.append(fake.now)
        kernel.time += 2

    fake.call_soon(busy)
    fake.call_soon(busy)
    fake.run_once(0)
    assert stamps == [1000, 1000]
    fake.run_once(0)
    assert fake.now == 1004


@pytest.mark.scenario(5)
def test_stop_in_the_first_handler_of_a_batch_loses_no_event(r, sockets):
    pairs = [sockets() for _ in range(100)]
    got = []

    def on_data(conn, data):
        got.append(data)
        r.stop()

    conns = [r.adopt(ours, on_data) for ours, _ in pairs]
    for _, theirs in pairs:
        theirs.send(b'x')
    assert r.run() is False
    assert len(got) == 100
    for conn in conns:
        conn.abort()
    assert r.run() is True


# -- stale events


@pytest.mark.scenario(9)
@pytest.mark.parametrize('count', [2, 100])
def test_a_handle_closed_by_another_one_in_the_same_batch_gets_only_on_close(r, sockets, count):
    logs = [Log() for _ in range(count)]
    conns = []

    def on_data(conn, data):
        conn.data.on_data(conn, data)
        for other in conns:
            if other is not conn:
                other.close()

    for log in logs:
        ours, theirs = sockets()
        conn = r.adopt(ours, on_data, on_close=log.on_close)
        conn.data = log
        conns.append(conn)
        theirs.send(b'x')
    turns(r, 3)
    assert sorted(log.names() for log in logs) == [['close']] * (count - 1) + [['data']]
    for conn in conns:
        conn.abort()
    turns(r, 2)


@pytest.mark.scenario(10)
def test_a_new_handle_with_the_number_of_one_closed_in_the_batch_does_not_get_its_event(r, sockets):
    new_probes, mates = [], []

    def on_ready(probe):
        other = next(other for other in probes if other is not probe)
        number = other.fileno()
        other.close()
        probe.loop.watchers.set_events(probe, 0)
        new, mate = socket.socketpair()
        assert new.fileno() == number
        mates.append(sockets.track(mate))
        new_probes.append(Probe(r, new, READ))

    probes = []
    for _ in range(2):
        ours, theirs = sockets()
        probes.append(Probe(r, ours, READ, on_ready))
        theirs.send(b'x')
    r.run_once(0)
    assert sorted(probe.log for probe in probes) == [[], ['read']]
    assert [new.log for new in new_probes] == [[]]
    mates[0].send(b'y')
    r.run_once(0)
    assert new_probes[0].log == ['read']
    for probe in [*probes, *new_probes]:
        probe.close()


@pytest.mark.scenario(8)
def test_a_handle_closed_by_its_own_read_is_not_reported_writable(r, sockets):
    ours, theirs = sockets()
    probe = Probe(r, ours, READ | WRITE, Probe.close)
    theirs.send(b'x')
    turns(r, 3)
    assert probe.log == ['read']


def test_a_handle_paused_by_another_one_in_the_same_batch_is_not_called(r, sockets):
    probes = []

    def on_ready(probe):
        for other in probes:
            r.watchers.set_events(other, 0)

    for _ in range(2):
        ours, theirs = sockets()
        probes.append(Probe(r, ours, READ, on_ready))
        theirs.send(b'x')
    turns(r, 3)
    assert sorted(probe.log for probe in probes) == [[], ['read']]
    for probe in probes:
        probe.close()


# -- running and stopping


def test_run_returns_true_when_nothing_is_left(r):
    assert r.run() is True
    r.call_soon(int)
    assert r.run() is True


def test_main_gets_the_reactor_in_the_first_turn(r):
    got = []
    r.call_soon(got.append, 'before')
    assert r.run(got.append) is True
    assert got == ['before', r]
    assert r.stats().loop_count == 1


def test_an_exception_in_main_leaves_run_after_the_turn(r):
    log = []

    def main(r):
        r.call_later(0.01, log.append, 'later')
        raise ValueError('in main')

    r.call_soon(log.append, 'before')
    with pytest.raises(ValueError, match='in main'):
        r.run(main)
    assert log == ['before']
    assert r.run() is True
    assert log == ['before', 'later']


@pytest.mark.parametrize('catch_errors', [True, False, boom])
def test_an_exception_in_main_leaves_run_whatever_catch_errors_is(catch_errors):
    with pytest.raises(ZeroDivisionError):
        reactor.run(lambda r: 1 / 0, catch_errors=catch_errors)


@pytest.mark.parametrize('how', ['run', 'run_once'])
@pytest.mark.parametrize('after', [False, True])
def test_an_exception_in_main_is_raised_by_the_next_call_when_another_exception_has_left_the_run(r, how, after):
    # Regression: `run_once` used to return as if nothing had happened. So did `run`, when `main` had raised before the
    # other exception.
    def leave(*args):
        raise SystemExit

    def main(r):
        raise ValueError('in main')

    if not after:
        r.call_soon(leave)
    else:
        r.completions.append((r._wakeup, leave, ()))
    with pytest.raises(SystemExit):
        r.run(main)
    with pytest.raises(ValueError, match='in main'):
        getattr(r, how)()
    assert r.run() is True


@pytest.mark.parametrize(
    ('timeout', 'error'), [('1', TypeError), (True, TypeError), ((), TypeError), (float('nan'), ValueError)]
)
def test_a_timeout_of_run_once_that_is_not_a_number_is_refused(r, timeout, error):
    # Regression: NaN used to be reported as a failure of the selector, and a string as a failed comparison.
    r.call_later(60, int).unref()
    idler = r.idle(int)
    with pytest.raises(error, match='timeout must be a'):
        r.run_once(timeout)
    idler.close()
    assert r.stats().loop_count == 0
    assert r.run_once(float('inf')) is r.run_once(-1) is False
    r.timers.clear()


@pytest.mark.scenario(3)
@pytest.mark.parametrize('call', [Reactor.run, Reactor.run_once, Reactor.close])
def test_a_nested_run_is_refused_and_the_outer_one_goes_on(r, call):
    log = []

    def nested():
        with pytest.raises(ReactorError, match='running already'):
            call(r)
        log.append('refused')
        r.call_later(0.001, log.append, 'later')

    r.call_soon(nested)
    assert r.run() is True
    assert log == ['refused', 'later']


@pytest.mark.scenario(3)
def test_another_reactor_may_run_inside_a_callback(r):
    log = []

    def nested():
        with Reactor() as inner:
            inner.call_later(0.001, log.append, 'inner')
            assert inner.run() is True
        r.call_later(0.001, log.append, 'outer')

    r.call_soon(nested)
    assert r.run() is True
    assert log == ['inner', 'outer']


@pytest.mark.scenario(4)
def test_stop_ends_the_turn_and_keeps_waiting_calls_for_the_next_run(r):
    log = []
    r.call_soon(r.stop)
    r.call_soon(log.append, 'rest of the turn')
    r.call_soon(r.call_soon, log.append, 'next turn')
    assert r.run() is False
    assert log == ['rest of the turn']
    assert r.run() is True
    assert log == ['rest of the turn', 'next turn']


@pytest.mark.scenario(4)
def test_stopping_twice_has_the_effect_of_stopping_once(r):
    r.call_soon(r.stop)
    r.call_soon(r.stop)
    timer = r.call_later(60, fail)
    assert r.run() is False
    timer.cancel()
    assert r.run() is True


@pytest.mark.scenario(4)
def test_stop_before_run_gives_one_turn_that_does_not_wait(fake):
    log = []
    fake.call_later(60, fail)
    fake.call_soon(log.append, 1)
    fake.stop()
    assert fake.run() is False
    assert log == [1]
    assert fake.watchers.selector.waits == [0]


@pytest.mark.scenario(4)
def test_stop_before_run_holds_for_that_run_only(fake):
    fired = []
    fake.call_later(60, fired.append, 1)
    fake.stop()
    assert fake.run() is False
    assert fake.run() is True
    assert fired == [1]


@pytest.mark.scenario(6)
def test_run_ends_when_only_unreferenced_handles_and_timers_are_left(r, sockets):
    conn = r.adopt(sockets()[0], fail)
    conn.unref()
    timer = r.call_later(0.001, fail)
    timer.unref()
    assert r.run() is True
    assert r.handles() == [conn]
    timer.cancel()
    conn.abort()
    r.run_once(0)


def test_a_handle_referenced_again_keeps_run_running(r, sockets):
    conn = r.adopt(sockets()[0])
    conn.unref()
    conn.unref()
    conn.ref()
    conn.ref()
    timer = r.call_later(0.01, r.stop)
    timer.unref()
    assert r.run() is False
    conn.abort()
    r.run_once(0)


def test_run_works_in_any_thread_one_at_a_time(r):
    log = []
    for thread in in_thread, in_thread:
        r.call_soon(lambda: log.append(threading.get_ident()))
        assert thread(r.run) is True
    r.call_soon(lambda: log.append(threading.get_ident()))
    r.run()
    assert log[2] == threading.get_ident()
    assert threading.get_ident() not in log[:2]


def test_a_second_thread_cannot_run_a_running_reactor(r):
    def other(call):
        with pytest.raises(ReactorError, match='running already'):
            in_thread(call)

    for call in r.run, r.run_once, r.close:
        r.call_soon(other, call)
    assert r.run() is True
    assert r.stats().callback_errors == 0


def test_run_once_does_one_turn_and_returns_whether_something_is_left(r):
    log = []
    r.call_soon(r.call_soon, log.append, 1)
    assert r.run_once(0) is True
    assert log == []
    assert r.run_once(0) is False
    assert log == [1]


def test_run_once_waits_no_longer_than_its_timeout(fake, kernel):
    fake.call_later(60, fail)
    assert fake.run_once(2) is True
    assert kernel.time == 1002
    assert fake.run_once(0) is True
    assert kernel.time == 1002


def test_run_once_waits_no_longer_than_until_the_next_timer(fake, kernel):
    fired = []
    fake.call_later(3, fired.append, 1)
    assert fake.run_once(60) is False
    assert kernel.time == 1003
    assert fired == [1]


def test_run_once_never_waits_when_nothing_is_left(fake, kernel):
    fake.call_later(60, fail).unref()
    assert fake.run_once() is False
    assert fake.run_once(30) is False
    assert kernel.time == 1000


def test_run_once_after_stop_does_not_wait(fake, kernel):
    fake.call_later(60, fail)
    fake.stop()
    fake.run_once()
    assert kernel.time == 1000
    fake.run_once(1)
    assert kernel.time == 1001


def test_run_once_returns_false_when_it_was_stopped(fake):
    timer = fake.call_later(60, fail)
    assert fake.run_once(0) is True
    fake.call_soon(fake.stop)
    assert fake.run_once(0) is False
    assert fake.run_once(0) is True
    timer.cancel()


@pytest.mark.parametrize('timeout', [1e7, 1e10, 1e300])
def test_run_once_takes_a_limit_of_any_size(r, sockets, timeout):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    theirs.send(b'x')
    r.run_once(timeout)
    assert log.received == b'x'
    conn.abort()
    r.run_once(0)


def test_the_function_run_builds_runs_and_closes():
    made = []
    assert reactor.run(made.append, catch_errors=False) is True
    with pytest.raises(HandleClosed):
        made[0].run()


def test_the_function_run_closes_when_main_raises(sockets):
    log = Log()
    ours, _ = sockets()

    def main(r):
        log.append(r.adopt(ours, on_close=log.on_close))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reactor.run(main)
    assert log[0].closed
    assert log[1:] == [('close', None)]


def test_the_function_run_returns_false_when_it_was_stopped(sockets):
    def main(r):
        r.adopt(sockets()[0])
        r.stop()

    assert reactor.run(main) is False


def test_a_reactor_is_a_context_manager_that_closes_itself():
    with pytest.raises(ZeroDivisionError), Reactor() as r:
        raise ZeroDivisionError
    with pytest.raises(HandleClosed):
        r.run()


# -- closing


def test_exit_callbacks_run_last_in_first_out_before_handles_are_closed(sockets):
    log = []
    r = Reactor()
    conn = r.adopt(sockets()[0], on_close=lambda conn, exc: log.append('close'))
    for number in range(3):
        r.add_exit_callback(lambda *args: log.append((*args, conn.closed)), number, 'x')
    r.close()
    assert log == [(2, 'x', False), (1, 'x', False), (0, 'x', False), 'close']


def test_an_exit_callback_that_raises_is_logged_and_the_others_run(caplog):
    log = []
    r = Reactor(catch_errors=False)
    r.add_exit_callback(log.append, 'first')
    r.add_exit_callback(boom)
    r.close()
    assert log == ['first']
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]


def test_a_handle_that_cannot_be_closed_does_not_keep_the_others_open(sockets):
    log, r = Log(), Reactor()

    class Stuck(Handle):
        closed = False

        def __init__(self):
            self.loop, self.since = r, 0
            r.watchers.park(self)

        def close(self):
            raise OSError(errno.EIO, 'stuck')

    Stuck()
    r.adopt(sockets()[0], log.on_data, on_close=log.on_close)
    r.adopt(sockets()[0], log.on_data, on_close=log.on_close)
    with pytest.raises(OSError, match='stuck'):
        r.close()
    assert log.names() == ['close', 'close'] and r.guard.closed


def test_an_exit_callback_that_raises_is_counted_and_passed_to_catch_errors(caplog):
    # Regression: the exception used to be logged as well.
    got, log = [], []
    r = Reactor(catch_errors=lambda exc, handle: got.append((type(exc), handle)))
    r.add_exit_callback(log.append, 'first')
    r.add_exit_callback(boom)
    r.close()
    assert got == [(ValueError, None)] and log == ['first']
    assert r.stats().callback_errors == 1 and not caplog.records


def test_an_exit_callback_may_add_another():
    log = []
    r = Reactor()
    r.add_exit_callback(r.add_exit_callback, log.append, 1)
    r.close()
    assert log == [1]


def test_an_exit_callback_must_be_callable(r):
    with pytest.raises(TypeError):
        r.add_exit_callback(None)


@pytest.mark.scenario(7)
def test_close_aborts_every_handle_and_calls_each_on_close_once(r, sockets):
    log = Log()
    for _ in range(10):
        r.adopt(sockets()[0], on_close=log.on_close)
    r.adopt(sockets()[0], on_close=log.on_close).pause_reading()
    r.listen_tcp('127.0.0.1', 0)
    r.close()
    assert log == [('close', None)] * 11
    assert r.handles() == []


def test_close_calls_on_close_of_handles_closed_in_the_last_turn(r, sockets):
    log = Log()
    r.adopt(sockets()[0], on_close=log.on_close).close()
    r.close()
    assert log == [('close', None)]


@pytest.mark.scenario(7)
def test_a_connection_opened_while_closing_is_closed_too(r, sockets):
    log = Log()
    pairs = [sockets() for _ in range(5)]

    def on_close(conn, exc):
        log.on_close(conn, exc)
        if pairs:
            r.adopt(pairs.pop()[0], on_close=on_close)

    r.adopt(pairs.pop()[0], on_close=on_close)
    r.close()
    assert log.names() == ['close'] * 5


def test_close_drops_timers_and_calls_and_their_arguments(r):
    gc.disable()
    try:
        things = [Thing() for _ in range(3)]
        refs = [weakref.ref(thing) for thing in things]
        r.call_later(60, fail, things[0])
        r.call_soon(fail, things[1])
        r.call_soon_threadsafe(fail, things[2])
        del things
        r.close()
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()
    assert len(r.timers) == 0


@pytest.mark.scenario(7)
def test_closing_twice_does_nothing(r):
    calls = []
    r.add_exit_callback(calls.append, 1)
    r.close()
    r.close()
    assert calls == [1]


@pytest.mark.parametrize(
    'call',
    [
        lambda r: r.run(),
        lambda r: r.run_once(0),
        lambda r: r.call_soon(int),
        lambda r: r.call_soon_threadsafe(int),
        lambda r: r.call_later(1, int),
        lambda r: r.call_at(1, int),
        lambda r: r.call_every(1, int),
        lambda r: r.run_in_thread(int),
        lambda r: r.add_signal_handler(2, int),
        lambda r: r.add_exit_callback(int),
        lambda r: r.listen_tcp('127.0.0.1', 0),
        lambda r: r.connect_tcp('127.0.0.1', 1),
    ],
    ids='run run_once call_soon threadsafe later at every thread signal exit listen connect'.split(),
)
def test_a_closed_reactor_refuses_work(r, call):
    r.close()
    with pytest.raises(HandleClosed):
        call(r)


def test_a_closed_reactor_still_answers_questions(r):
    r.close()
    assert r.handles() == []
    assert r.why_alive() == []
    assert r.stats().handles == 0
    assert r.timeout() is None
    r.stop()
    r.clear_signal_handlers()
    assert r.remove_signal_handler(2) is False


def test_a_constructor_that_fails_leaves_nothing_open():
    class FullKernel(FakeKernel):
        def room_of(self, selector):
            return lambda fd: False

    with pytest.raises(SelectorFull):
        Reactor(kernel=FullKernel())
    gc.collect()


@pytest.mark.parametrize('given', [False, True])
def test_a_constructor_that_gets_no_descriptor_for_its_doorbell_closes_the_selector_that_it_made(given):
    # Regression: each attempt used to leave a selector open until the garbage collector ran, although no descriptors
    # were left.
    class FullKernel(FakeKernel):
        def selector(self):
            selectors_made.append(super().selector())
            return selectors_made[-1]

        def socketpair(self):
            raise OSError(errno.EMFILE, 'too many open files')

    selectors_made, mine = [], selectors.DefaultSelector() if given else None
    with pytest.raises(OSError, match='too many'):
        Reactor(selector=mine, kernel=FullKernel())
    if given:
        assert mine.get_map() is not None and not selectors_made  # the caller may still use its own selector
        mine.close()
    else:
        assert [selector.get_map() for selector in selectors_made] == [None]


def test_a_selector_in_use_or_closed_is_refused(sockets):
    # Regression: when a descriptor that such a selector already watched became ready, every turn used to log an
    # AttributeError, and `close` raised it.
    selector = selectors.DefaultSelector()
    selector.register(sockets()[0], READ)
    with pytest.raises(ValueError, match='selector must be a new one'):
        Reactor(selector=selector)
    assert len(selector.get_map()) == 1
    selector.close()
    with pytest.raises(ValueError, match='selector must be a new one'):
        Reactor(selector=selector)


def test_on_close_that_raises_while_closing_does_not_keep_others_open(sockets):
    log = Log()
    r = Reactor(catch_errors=False)
    conns = [r.adopt(sockets()[0], on_close=boom)]
    conns += [r.adopt(sockets()[0], on_close=log.on_close) for _ in range(2)]
    try:
        r.close()
    except ValueError:
        pass
    assert all(conn.closed for conn in conns)
    assert log == [('close', None)] * 2


@pytest.mark.parametrize('kind', [KeyboardInterrupt, SystemExit])
def test_everything_is_closed_after_an_exit_callback_that_raises_out_of_close(sockets, kind):
    def leave():
        raise kind

    log = Log()
    r = Reactor()
    conn = r.adopt(sockets()[0], on_close=log.on_close)
    r.add_exit_callback(leave)
    with pytest.raises(kind):
        r.close()
    assert conn.closed
    assert log == [('close', None)]


# -- errors in callbacks


@pytest.mark.parametrize('raises', [False, True])
def test_a_program_that_opens_another_connection_whenever_one_ends_is_cut_off_by_close(raises):
    kernel, ends = ScriptedKernel(), []
    r = Reactor(kernel=kernel, catch_errors=not raises)

    def again(conn, exc):
        ends.append(exc)
        r.adopt(ScriptedSocket(kernel), on_close=again)
        if raises:
            raise ValueError('boom')

    r.adopt(ScriptedSocket(kernel), on_close=again)
    if raises:
        with pytest.raises(ValueError, match='boom'):
            r.close()
    else:
        r.close()
    assert len(ends) == CLOSING_ROUNDS
    assert r.guard.closed
    with pytest.raises(HandleClosed):
        r.run()


def test_in_a_fork_the_reactor_does_not_run_and_its_close_calls_no_callback():
    class Forked(ScriptedKernel):
        number = 1

        def pid(self):
            return self.number

    kernel, log = Forked(), Log()
    with Reactor(kernel=kernel) as r:
        sock = ScriptedSocket(kernel)
        r.adopt(sock, log.on_data, on_close=log.on_close)
        r.add_exit_callback(log.append, 'exit')
        sock.incoming.append(b'x')
        kernel.number = 2
        for run in r.run, r.run_once:
            with pytest.raises(ReactorError, match='forked'):
                run()
    assert log == [] and 'close' not in sock.calls
    assert r.guard.closed


@pytest.mark.scenario(115)
@pytest.mark.parametrize('error', [ValueError, MemoryError, RecursionError, StopIteration])
def test_an_exception_in_a_callback_is_logged_and_the_loop_goes_on(r, caplog, error):
    log = []

    def bad():
        raise error('boom')

    for call in r.call_soon, r.call_soon_threadsafe, lambda fn, *args: r.call_later(0, fn, *args):
        call(bad)
        call(log.append, 1)
    run_until(r, lambda: len(log) == 3)
    assert [record.exc_info[0] for record in caplog.records] == [error] * 3
    assert {record.name for record in caplog.records} == {'reactor'}
    assert r.stats().callback_errors == 3


@pytest.mark.scenario(118)
def test_a_real_recursion_error_hurts_one_callback_only(r, caplog):
    log = []

    def deeper():
        deeper()

    r.call_soon(deeper)
    r.call_soon(log.append, 1)
    assert r.run() is True
    assert log == [1]
    assert caplog.records[0].exc_info[0] is RecursionError


def deeper(conn, data):
    """An `on_data` that exhausts the stack."""
    deeper(conn, data)


@pytest.mark.parametrize('leaves', ['the error itself', 'on_error', 'catch_errors'])
def test_an_exhausted_stack_in_a_callback_leaves_run_once(sockets, leaves):
    # Regression: every later call to `run` used to report the error again, and no other callback ever ran.
    calls = []

    def leave(*args):
        calls.append(args)
        raise SystemExit

    r = Reactor(catch_errors={'catch_errors': leave, 'on_error': True}.get(leaves, False))
    ours, theirs = sockets()
    conn = r.adopt(ours, deeper, on_error=leave if leaves == 'on_error' else None)
    theirs.send(b'x')
    with pytest.raises(RecursionError if leaves == 'the error itself' else SystemExit):
        run_until(r, lambda: False)
    log = []
    conn.abort()
    r.call_soon(log.append, 1)
    assert r.run() is True
    assert log == [1] and len(calls) == (leaves != 'the error itself')
    r.close()


@pytest.mark.parametrize('on_error', [False, True])
def test_an_exhausted_stack_in_the_last_turn_is_reported_when_the_reactor_is_closed(sockets, caplog, on_error):
    # Regression: the error used to be lost. Neither `on_error` nor the log got it, and `on_close` was called with None.
    r, log, errors = Reactor(), Log(), []

    def on_data(conn, data):
        r.stop()
        deeper(conn, data)

    ours, theirs = sockets()
    r.adopt(ours, on_data, on_close=log.on_close, on_error=(lambda conn, exc: errors.append(exc)) if on_error else None)
    theirs.send(b'x')
    assert r.run() is False
    r.close()
    ((_, exc),) = log
    if on_error:
        assert exc is None and [type(error) for error in errors] == [RecursionError] and not caplog.records
    else:
        assert type(exc) is RecursionError and len(caplog.records) == 1
    assert r.timeout() is None


def test_timeout_is_zero_for_a_host_loop_after_an_exhausted_stack(r, sockets):
    # Regression: the connection is aborted in the next turn, but `timeout` used to let the host loop sleep first.
    log = Log()
    ours, theirs = sockets()
    r.adopt(ours, deeper, on_close=log.on_close)
    theirs.send(b'x')
    for _ in range(10):
        r.run_once(0 if r.timeout() == 0 else 0.1)
        if r.timeout() is None:
            break
    assert log.names() == ['close']


NESTED = functools.reduce(lambda inner, _: [inner], range(100_000), [])


@pytest.mark.parametrize('way', ['call_soon', 'call_soon_threadsafe', 'call_later', 'call_every'])
@pytest.mark.parametrize(
    'fn',
    [
        functools.partial(bytearray, sys.maxsize),
        functools.partial(functools.partial(repr), NESTED),
        (bytearray, sys.maxsize),
        (b'x'.ljust, sys.maxsize - 100),
        (repr, NESTED),
    ],
    ids=['partial', 'partial of a partial', 'class', 'method', 'function'],
)
@pytest.mark.parametrize('slow', [None, 100.0])
def test_a_callback_written_in_c_that_exhausts_memory_or_stack_is_called_once(caplog, way, fn, slow):
    # Regression: a C function has no frame, so the loop used to believe that the function had not been called. It
    # then called the function again in each turn, or the error left `run`.
    log = []
    with Reactor(slow_callback=slow) as r:
        fn, *args = fn if isinstance(fn, tuple) else (fn,)
        call = getattr(r, way)
        call(fn, *args) if 'soon' in way else call(0.001, fn, *args)
        r.call_later(0.01, log.append, 1)
        run_until(r, lambda: log and len(r.completions) == 0)
        errors = r.stats().callback_errors
    assert errors == 1 or way == 'call_every'
    assert {record.exc_info[0] for record in caplog.records} <= {MemoryError, RecursionError}
    assert len(caplog.records) == errors


class FailingHandler(logging.Handler):
    """A log handler whose `emit` finds no memory left."""

    def emit(self, record):
        raise MemoryError


@pytest.fixture
def log_without_memory():
    handler = FailingHandler()
    logging.getLogger('reactor').addHandler(handler)
    yield
    logging.getLogger('reactor').removeHandler(handler)


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
@pytest.mark.parametrize('way', ['call_soon', 'call_later'])
def test_after_a_callback_that_finds_no_memory_or_stack_the_others_in_its_turn_are_called(fake, way, kind):
    def fail():
        raise kind

    log = []
    for fn, *args in (fail,), (log.append, 1), (fail,), (log.append, 2):
        getattr(fake, way)(*([0] if way == 'call_later' else []), fn, *args)
    turns(fake, 1)
    assert log == [1, 2]
    assert fake.stats().callback_errors == 2


@pytest.mark.scenario(118)
def test_the_loop_goes_on_when_neither_a_callback_nor_the_log_finds_memory(r, sockets, log_without_memory):
    def exhaust(conn, data):
        raise MemoryError

    log = Log()
    ours, theirs = sockets()
    r.adopt(ours, exhaust, on_close=log.on_close)
    theirs.send(b'x')
    run_until(r, lambda: log)
    assert [type(exc) for _, exc in log] == [MemoryError]
    done = []
    r.call_soon(done.append, 'served')
    assert r.run() is True
    assert done == ['served']


@pytest.mark.scenario(118)
@pytest.mark.parametrize('reporter', ['log', 'on_error', 'callable'])
def test_memory_is_reserved_for_reporting_a_memory_error(sockets, reporter):
    def exhaust(conn, data):
        raise MemoryError

    def measure(*args):
        during.append(tracemalloc.get_traced_memory()[0])

    class Measuring(logging.Handler):
        def emit(self, record):
            measure()

    during = []
    handler = Measuring()
    logging.getLogger('reactor').addHandler(handler)
    tracemalloc.start()
    try:
        with Reactor(catch_errors=measure if reporter == 'callable' else True) as r:
            ours, theirs = sockets()
            conn = r.adopt(ours, exhaust, on_error=measure if reporter == 'on_error' else None)
            for _ in range(2):
                before = tracemalloc.get_traced_memory()[0]
                theirs.send(b'x')
                turns(r, 2)
                assert during.pop() < before - (1 << 20)
                assert tracemalloc.get_traced_memory()[0] > before - (1 << 20)
                if conn.closed:
                    break
    finally:
        tracemalloc.stop()
        logging.getLogger('reactor').removeHandler(handler)


RESERVES = """
import os
from reactor import Reactor

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

first = Reactor()
before = resident()
reactors = [Reactor() for _ in range(50)]
print(resident() - before)
for r in first, *reactors:
    r.close()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the memory of the process is read from Linux')
def test_the_reserve_takes_no_resident_memory():
    # In a process of its own: once a reserve has been freed, malloc may take the next one from memory that was used.
    printed = subprocess.run([sys.executable, '-c', RESERVES], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 50 * failures.RESERVE // 4


def test_the_reserve_is_allocated_again_as_soon_as_there_is_memory(sockets, monkeypatch):
    def exhaust():
        raise MemoryError

    def no_memory(size):
        asked.append(size)
        if len(asked) < 3:
            raise MemoryError
        return b''

    asked = []
    with Reactor(kernel=FakeKernel(), catch_errors=lambda exc, handle: None) as r:
        monkeypatch.setattr(failures, 'bytes', no_memory, raising=False)
        r.call_soon(exhaust)
        r.run()
        assert len(asked) == 1
        r.call_later(10, int)
        r.run()
    assert len(asked) == 3


def test_an_exception_hurts_its_own_connection_only(r, sockets, caplog):
    logs = [Log(), Log()]
    bad, good = sockets(), sockets()
    r.adopt(bad[0], boom, on_close=logs[0].on_close)
    conn = r.adopt(good[0], logs[1].on_data, on_close=logs[1].on_close)
    bad[1].send(b'x')
    good[1].send(b'y')
    turns(r, 3)
    assert [str(exc) for _, exc in logs[0]] == ['boom']
    assert logs[1] == [('data', b'y')]
    conn.abort()
    turns(r, 1)


def test_a_callable_catch_errors_gets_the_exception_and_its_handle_instead_of_the_log(sockets, caplog):
    caught = []
    with Reactor(catch_errors=lambda exc, handle: caught.append((str(exc), handle))) as r:
        ours, theirs = sockets()
        conn = r.adopt(ours, boom)
        theirs.send(b'x')
        r.call_soon(boom)
        r.call_later(0, boom)
        turns(r, 2)
        assert sorted(caught, key=lambda entry: entry[1] is not None) == [
            ('boom', None),
            ('boom', None),
            ('boom', conn),
        ]
        assert conn.closed
    assert caplog.records == []


@pytest.mark.scenario(116)
def test_a_catch_errors_that_raises_is_logged_and_the_loop_goes_on(caplog):
    log = []

    def worse(exc, handle):
        raise KeyError('worse')

    with Reactor(catch_errors=worse) as r:
        r.call_soon(boom)
        r.call_soon(log.append, 1)
        assert r.run() is True
    assert log == [1]
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


def test_without_catch_errors_an_exception_leaves_run_and_the_rest_is_kept():
    log = []
    with Reactor(catch_errors=False) as r:
        for call in r.call_soon, lambda fn, *args: r.call_later(0, fn, *args):
            call(boom)
            call(log.append, 1)
        for count in range(2):
            with pytest.raises(ValueError, match='boom'):
                r.run()
            assert len(log) == count
        assert r.run() is True
    assert log == [1, 1]


def test_without_catch_errors_on_error_is_still_called(sockets):
    log = Log()
    with Reactor(catch_errors=False) as r:
        ours, theirs = sockets()
        conn = r.adopt(ours, boom, on_error=log.on_error)
        theirs.send(b'x')
        turns(r, 2)
        assert log.names() == ['error']
        assert not conn.closed


@pytest.mark.parametrize('value', [None, 'log', 1])
def test_catch_errors_must_be_a_bool_or_callable(value):
    with pytest.raises(TypeError):
        Reactor(catch_errors=value).close()


def leaving(r, phase, error, sockets, log):
    """Schedule three callbacks for one phase of one turn; each logs its name and then raises."""

    def leave(*args):
        log.append(args[-1])
        raise error

    for number in range(3):
        if phase == 'soon':
            r.call_soon(leave, number)
        elif phase == 'threadsafe':
            r.call_soon_threadsafe(leave, number)
        elif phase == 'timers':
            r.call_later(0, leave, number)
        else:
            ours, theirs = sockets()
            if phase == 'dispatch':
                r.adopt(ours, leave)
                theirs.send(b'%d' % number)
            else:
                r.adopt(ours).write(b'x', leave, number)


@pytest.mark.scenario(117)
@pytest.mark.parametrize('phase', ['dispatch', 'timers', 'soon', 'threadsafe', 'completions'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
def test_a_base_exception_leaves_run_and_the_rest_of_the_batch_is_kept(r, sockets, phase, error):
    log = []
    leaving(r, phase, error, sockets, log)
    for count in range(1, 4):
        with pytest.raises(error):
            r.run()
        assert len(log) == count
    assert len({str(entry) for entry in log}) == 3
    if phase != 'dispatch':
        assert log == [0, 1, 2]
    for handle in r.handles():
        handle.abort()
    assert r.run() is True


def test_a_timer_that_leaves_run_is_not_run_again(r):
    def leave():
        raise SystemExit

    timer = r.call_later(0, leave)
    with pytest.raises(SystemExit):
        r.run()
    assert timer.deadline is None
    assert r.run() is True


# -- wrong threads


@pytest.mark.parametrize(
    'call',
    [
        lambda r: r.call_at(1, int),
        lambda r: r.call_every(1, int),
        lambda r: r.run_in_thread(int),
        lambda r: r.add_signal_handler(2, int),
        lambda r: r.listen_tcp('127.0.0.1', 0),
        lambda r: r.connect_tcp('127.0.0.1', 1),
    ],
    ids='at every thread signal listen connect'.split(),
)
def test_cold_calls_from_another_thread_are_refused(r, call):
    def other():
        with pytest.raises(ReactorError, match='thread'):
            in_thread(call, r)

    r.call_soon(other)
    assert r.run() is True
    assert r.stats().callback_errors == 0


@pytest.mark.parametrize(
    'call',
    [
        lambda r, timer, conn: r.call_soon(int),
        lambda r, timer, conn: r.call_later(1, int),
        lambda r, timer, conn: r.stop(),
        lambda r, timer, conn: timer.cancel(),
        lambda r, timer, conn: timer.reset(2),
        lambda r, timer, conn: conn.write(b'x'),
        lambda r, timer, conn: conn.close(),
    ],
    ids='call_soon call_later stop cancel reset write close'.split(),
)
def test_in_debug_mode_every_call_from_another_thread_is_refused(sockets, call):
    with Reactor(debug=True, catch_errors=False) as r:
        timer = r.call_later(60, int)
        conn = r.adopt(sockets()[0])

        def other():
            try:
                with pytest.raises(ReactorError, match='thread'):
                    in_thread(call, r, timer, conn)
            finally:
                r.stop()

        r.call_soon(other)
        r.run()


def test_in_debug_mode_calls_from_its_own_thread_and_before_it_runs_are_fine():
    log = []
    with Reactor(debug=True) as r:
        r.call_soon(r.call_later, 0, log.append, 1)
        in_thread(r.call_soon, log.append, 2)
        r.run()
    assert log == [2, 1]


# -- the cost of waiting


def test_no_turn_passes_while_nothing_happens(r, sockets):
    conn = r.adopt(sockets()[0], fail)
    assert turns_in(r) <= 3
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(18)
def test_unwanted_bytes_do_not_wake_the_loop(r, sockets):
    ours, theirs = sockets()
    conn = r.adopt(ours, fail)
    conn.pause_reading()
    theirs.send(b'x' * 1000)
    assert turns_in(r) <= 3
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(17)
@pytest.mark.parametrize('unread', [b'', b'x'])
def test_a_peer_that_hangs_up_on_a_paused_connection_does_not_wake_the_loop(r, sockets, unread):
    ours, theirs = sockets()
    conn = r.adopt(ours, fail)
    conn.pause_reading()
    theirs.send(b'bytes' + unread)
    theirs.close()
    assert turns_in(r) <= 3
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(17)
def test_an_end_of_file_with_the_write_side_open_does_not_wake_the_loop(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, fail, on_eof=log.on_eof)
    theirs.shutdown(socket.SHUT_WR)
    run_until(r, lambda: log)
    assert turns_in(r) <= 3
    theirs.close()
    assert turns_in(r) <= 3
    assert log.names() == ['eof']
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(11)
def test_a_duplicate_of_a_closed_descriptor_does_not_wake_the_loop(r, sockets):
    ours, theirs = sockets()
    conn = r.adopt(ours, fail)
    duplicate = os.dup(ours.fileno())
    try:
        conn.close()
        theirs.send(b'x')
        r.call_soon(int)
        assert turns_in(r) <= 4
    finally:
        os.close(duplicate)


@pytest.mark.scenario(11)
def test_a_descriptor_lost_while_a_copy_of_it_is_open_wakes_the_loop_only_a_few_times(r, sockets):
    log = Log()
    ours, theirs = sockets()
    lost, mate = sockets()
    victim = r.adopt(lost, fail)
    conn = r.adopt(ours, log.on_data)
    duplicate = os.dup(lost.fileno())
    try:
        os.close(lost.fileno())
        victim.pause_reading()
        mate.send(b'x')
        turns_in(r)
        assert turns_in(r) <= 30
        theirs.send(b'y')
        run_until(r, lambda: log)
    finally:
        lost.detach()
        os.close(duplicate)
        victim.abort()
        conn.abort()
        turns(r, 2)


@pytest.mark.scenario(11)
def test_a_blind_selector_is_replaced_and_all_handles_move_over(sockets):
    made = []

    class Blind(selectors.SelectSelector):
        """A selector class; in its first instance, `select` returns at once and reports nothing."""

        def __init__(self):
            super().__init__()
            made.append(self)

        def select(self, timeout=None):
            return [] if self is made[0] else super().select(timeout)

    log = Log()
    with Reactor(selector=Blind()) as r:
        ours, theirs = sockets()
        conn = r.adopt(ours, log.on_data)
        theirs.send(b'x')
        r.call_later(5, r.stop)
        conn.on_data = lambda conn, data: (log.on_data(conn, data), r.stop())
        assert r.run() is False
        assert log.received == b'x'
        assert r.handles() == [conn]
        assert len(made) == 2
        assert r.stats().loop_count < 50
        in_thread(r.call_soon_threadsafe, log.append, ('called',))
        run_until(r, lambda: log.names() == ['data', 'called'])


@pytest.mark.parametrize('wait', [1, 5])
def test_a_selector_that_ends_20_waits_in_a_row_early_without_events_is_taken_for_blind(wait):
    class Blind(selectors.SelectSelector):
        def select(self, timeout=None):
            return []

    with Reactor(selector=Blind()) as r:
        r.call_later(100, int)
        r.run_once(0.0001)  # a wait too short to judge the selector
        for _ in range(19):
            r.run_once(wait)
        r.run_once(0)  # this poll does not wait, so it does not count
        r.run_once(wait)
        assert r.stats().stalls == 0
        r.run_once(0)  # the selector is replaced before the next poll
        assert r.stats().stalls == 1


@pytest.mark.parametrize('error', [OSError, TypeError])
def test_a_blind_selector_that_cannot_be_replaced_stays_in_use(sockets, monkeypatch, error):
    class Blind(selectors.SelectSelector):
        """A selector whose first hundred calls to `select` return at once and report nothing."""

        blind = 100

        def select(self, timeout=None):
            self.blind -= 1
            return [] if self.blind >= 0 else super().select(timeout)

    def new_selector_like(selector):
        raise error('no other')

    log = Log()
    with Reactor(selector=Blind()) as r:
        monkeypatch.setattr(r.kernel, 'new_selector_like', new_selector_like)
        ours, theirs = sockets()
        conn = r.adopt(ours, log.on_data)
        theirs.send(b'x')
        run_until(r, lambda: log)
        assert r.handles() == [conn]


@pytest.mark.parametrize('step', [0.1, 0.2, 0.3, 0.7, 0.037])
def test_waiting_in_small_steps_is_not_taken_for_a_blind_selector(fake, kernel, step):
    selector = fake.watchers.selector
    fake.call_later(100, int)
    for _ in range(50):
        fake.run_once(step)
    assert fake.watchers.selector is selector
    assert 1000 + 49 * step < kernel.time < 1000 + 51 * step


@pytest.mark.scenario(26)
def test_waiting_for_a_timer_takes_few_turns(r):
    fired = []
    for number in range(10):
        r.call_later(0.02 + number / 1e4, fired.append, number)
    r.run()
    assert fired == list(range(10))
    assert r.stats().loop_count <= 30


def sleeping(r, probe):
    """Have `probe` called each time the loop is about to sleep, at the stack depth at which it calls the selector."""
    select = r._select

    def watched(timeout):
        if timeout != 0:
            probe()
        return select(timeout)

    r._select = watched


def run_to_sleep(r, probe):
    """Run without the garbage collector until `probe`, called each time the loop is about to sleep, returns true."""
    last = r.call_later(5, int)

    def asleep():
        if probe():
            last.cancel()
            r.call_soon_threadsafe(int)

    sleeping(r, asleep)
    gc.disable()
    try:
        r.run()
    finally:
        gc.enable()


@pytest.mark.parametrize('end', ['peer', 'close in a timer', 'close in a call'])
def test_a_closed_handle_is_freed_before_the_loop_sleeps(r, sockets, end):
    ours, theirs = sockets()
    log, alive = Log(), []
    conn = r.adopt(ours, lambda conn, data: None, on_close=log.on_close)
    ref = weakref.ref(conn)
    if end == 'peer':
        theirs.close()
    elif end == 'close in a timer':
        r.call_later(0, conn.close)
    else:
        r.call_soon(conn.close)
    del conn
    run_to_sleep(r, lambda: alive.append((len(log), ref() is not None)) or alive[-1] == (1, False))
    assert alive[-1] == (1, False)
    assert (1, True) not in alive


@pytest.mark.parametrize('how', ['soon', 'threadsafe', 'timer', 'error'])
def test_the_arguments_of_a_callback_are_freed_before_the_loop_sleeps(r, how):
    thing, alive = Thing(), []
    ref = weakref.ref(thing)
    r.failures.catch_errors = lambda exc, handle: None
    if how == 'soon':
        r.call_soon(id, thing)
    elif how == 'threadsafe':
        r.call_soon_threadsafe(id, thing)
    elif how == 'timer':
        r.call_later(0, id, thing)
    else:
        r.call_soon(boom, thing)
    del thing
    run_to_sleep(r, lambda: alive.append(ref() is not None) or not alive[-1])
    assert alive[-1] is False


@pytest.mark.scenario(119)
def test_opening_and_closing_leaves_no_object_behind(r):
    def cycle():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        r.adopt(ours, int, on_close=lambda conn, exc: None).close()
        theirs.close()
        r.call_later(60, int).cancel()
        r.call_later(0, int)
        r.run()

    for _ in range(50):
        cycle()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(2000):
            cycle()
        assert len(gc.get_objects()) - before < 100
    finally:
        gc.enable()


# -- embedding


def test_timeout_is_none_without_timers(r, sockets):
    assert r.timeout() is None
    conn = r.adopt(sockets()[0])
    assert r.timeout() is None
    conn.abort()
    r.run_once(0)


def test_timeout_is_zero_when_there_is_something_to_do_at_once(r, sockets):
    for call in r.call_soon, r.call_soon_threadsafe:
        call(int)
        assert r.timeout() == 0
        run_until(r, lambda: r.timeout() is None)
    r.adopt(sockets()[0]).close()
    assert r.timeout() == 0
    r.run()
    assert r.timeout() is None


def test_timeout_is_the_time_to_the_next_timer(fake, kernel):
    fake.call_later(7, int)
    first = fake.call_later(5, int)
    assert fake.timeout() == 5
    kernel.time += 2
    assert fake.timeout() == 3
    first.cancel()
    assert fake.timeout() == 5
    kernel.time += 100
    assert fake.timeout() == 0


def test_timeout_is_a_day_at_most(fake):
    fake.call_later(1e12, int)
    assert fake.timeout() == 86400


def test_a_foreign_loop_can_drive_the_reactor(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    fired = []
    r.call_later(0.005, fired.append, 1)
    theirs.send(b'x')
    while not (log and fired):
        r.run_once(min(r.timeout() or 0.01, 0.01))
    conn.abort()
    assert r.run_once(0) is False


def test_fileno_is_readable_when_the_loop_has_something_to_do(r, sockets):
    if not hasattr(r.watchers.selector, 'fileno'):
        pytest.skip(f'{type(r.watchers.selector).__name__} has no descriptor')
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    assert select.select([r], [], [], 0)[0] == []
    theirs.send(b'x')
    assert select.select([r], [], [], 5)[0] == [r]
    r.run_once(0)
    assert log.received == b'x'
    assert select.select([r], [], [], 0)[0] == []
    in_thread(r.call_soon_threadsafe, log.append, ('called',))
    assert select.select([r], [], [], 5)[0] == [r]
    r.run_once(0)
    assert log.names() == ['data', 'called']
    conn.abort()
    r.run_once(0)


def test_the_error_of_fileno_without_a_descriptor_says_how_to_embed_instead():
    with Reactor(selector=selectors.SelectSelector()) as r, pytest.raises(ReactorError, match='run_once'):
        r.fileno()


# -- introspection


def test_handles_lists_all_open_handles_whether_they_want_events_or_not(r, sockets):
    assert r.handles() == []
    first = r.adopt(sockets()[0])
    second = r.adopt(sockets()[0])
    second.pause_reading()
    server = r.listen_tcp('127.0.0.1', 0)
    assert set(r.handles()) == {first, second, server}
    for handle in first, second, server:
        handle.abort()
    assert r.handles() == []
    turns(r, 1)


def test_why_alive_is_empty_when_nothing_is_left(r):
    assert r.why_alive() == []
    r.call_later(60, int).cancel()
    assert r.why_alive() == []


def test_why_alive_names_calls_by_their_function(r):
    r.call_soon(fail)
    r.call_soon_threadsafe(fail)
    assert r.why_alive() == [f'call_soon of {__name__}.fail: waits for its turn'] * 2
    r._soon.clear()
    r._wakeup.calls.clear()


def test_why_alive_shows_the_age_of_a_timer_and_how_long_it_waits(fake, kernel):
    fake.call_later(10, fail)
    kernel.time += 4
    assert fake.why_alive() == [f'timer of {__name__}.fail: since 4 s, waits another 6.0 s']


def test_why_alive_shows_the_age_of_a_handle_and_what_it_waits_for(fake, kernel, sockets):
    kernel.time += 100
    turns(fake, 1)
    conn = fake.adopt(sockets()[0], fail)
    kernel.time += 4
    assert fake.why_alive() == [f'{conn!r}: since 4 s, waits for bytes to read']


def test_why_alive_shows_callbacks_that_are_due(r, sockets):
    conn = r.adopt(sockets()[0])
    conn.close()
    assert r.why_alive() == [f'{conn!r}: a callback is due']
    r.run()


def test_why_alive_leaves_out_everything_that_does_not_keep_run_running(r, sockets):
    conn = r.adopt(sockets()[0])
    conn.unref()
    timer = r.call_later(60, int)
    timer.unref()
    assert r.why_alive() == []
    conn.ref()
    timer.ref()
    assert len(r.why_alive()) == 2
    timer.cancel()
    conn.abort()
    r.run_once(0)


# -- bad arguments


@pytest.mark.parametrize('fn', [None, 5, 'name'])
def test_a_callback_must_be_callable(r, fn):
    for call in (
        lambda: r.call_soon(fn),
        lambda: r.call_soon_threadsafe(fn),
        lambda: r.call_later(1, fn),
        lambda: r.call_at(r.now, fn),
        lambda: r.call_every(1, fn),
    ):
        with pytest.raises(TypeError):
            call()
    assert r.why_alive() == []


def test_main_must_be_callable(r):
    with pytest.raises(TypeError):
        r.run(5)
    assert r.run() is True


def test_a_limit_that_is_not_a_number_is_refused(r):
    timer = r.call_later(60, int)
    with pytest.raises(TypeError):
        r.run_once('soon')
    timer.cancel()
    assert r.run() is True


def test_a_selector_passed_to_the_reactor_is_closed_with_it():
    class Closing(selectors.SelectSelector):
        closes = 0

        def close(self):
            Closing.closes += 1
            super().close()

    with Reactor(selector=Closing()):
        pass
    assert Closing.closes == 1


def test_an_error_of_the_selector_itself_leaves_run():
    class Broken(FakeSelector):
        def select(self, timeout=None):
            raise OSError('broken')

    with Reactor(selector=Broken(FakeKernel())) as r:
        r.call_soon(int)
        with pytest.raises(OSError, match='broken'):
            r.run()


def test_a_selector_that_fails_once_loses_nothing():
    """The timer and the call that were pending when the selector failed both run in the next `run`."""

    class Failing(selectors.SelectSelector):
        failures = 1

        def select(self, timeout=None):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.ENOMEM, 'no memory')
            return super().select(timeout)

    log = []
    with Reactor(selector=Failing()) as r:
        r.call_later(0.1, log.append, 'timer')  # not due in the first turn, even on a busy machine
        r.call_soon(log.append, 'soon')
        with pytest.raises(OSError, match='no memory') as failure:
            r.run()
        assert failure.value.errno == errno.ENOMEM
        assert r.run() is True
    assert log == ['soon', 'timer']


@pytest.mark.skipif(not hasattr(select, 'epoll'), reason='needs epoll')
@pytest.mark.parametrize('how', ['its number is closed', 'its object is closed'])
def test_the_error_of_a_selector_closed_by_other_code_says_what_to_look_for(how, sockets):
    log = Log()
    r = Reactor(selector=selectors.EpollSelector())
    conn = r.adopt(sockets()[0], on_close=log.on_close)
    if how == 'its number is closed':
        os.close(r.fileno())
    else:
        r.watchers.selector._selector.close()
    for run in r.run, r.run, r.run_once:
        with pytest.raises(OSError, match=r'EpollSelector.select failed: .*; look for code that closes') as failure:
            run()
        assert failure.value.errno == errno.EBADF
    assert not conn.closed
    r.close()
    assert log.names() == ['close'] and r.guard.closed


def test_each_selector_is_of_the_named_kind(r):
    assert type(r.watchers.selector) in SELECTORS.values()


# -- memory runs out before the callback is reached


def test_a_connection_that_found_no_memory_ends_with_that_error_even_if_an_exception_has_left_its_turn(r, sockets):
    class Short(socket.socket):
        def send(self, data):
            raise MemoryError

    log = Log()
    ours, _theirs = sockets()
    conn = r.adopt(Short(fileno=ours.detach()), on_close=log.on_close)

    def write_and_leave():
        assert not conn.write(b'x')
        raise SystemExit

    r.call_soon(write_and_leave)
    with pytest.raises(SystemExit):
        r.run()
    turns(r, 2)
    assert [(name, type(exc)) for name, exc in log] == [('close', MemoryError)]


@pytest.mark.parametrize('after', [False, True])
def test_a_timer_that_runs_out_of_memory_right_before_its_callback_fires_once_in_the_next_turn(
    fake, kernel, monkeypatch, after
):
    log = []
    fake.call_later(1, log.append, 1)
    kernel.time += 1
    run_short(monkeypatch, Timer, 'handle_due', after=after)
    turns(fake, 1)
    assert (log, len(fake.timers)) == ([], 1)
    turns(fake, 2)
    assert (log, len(fake.timers)) == ([1], 0)


@pytest.mark.parametrize('after', [False, True])
def test_a_repeating_timer_that_runs_out_of_memory_keeps_its_rate(fake, kernel, monkeypatch, after):
    times = []
    timer = fake.call_every(1, lambda: times.append(kernel.time))
    kernel.time += 1
    run_short(monkeypatch, RepeatingTimer, 'handle_due', after=after)
    turns(fake, 2)
    assert times == ([] if after else [1001])  # if memory ran out after the next beat was set, this beat is skipped
    kernel.time += 1
    turns(fake, 2)
    assert times[-1] == 1002 and len(times) == 2 - after
    timer.cancel()
    assert len(fake.timers) == 0


def test_a_call_that_runs_out_of_memory_right_before_its_callback_is_made_in_the_next_turn(r, monkeypatch):
    log = []
    idler = r.idle(log.append, 1)
    for _ in range(3):  # three failures: the reserve of memory is allocated again after each
        log.clear()
        run_short(monkeypatch, Idler, 'handle_turn')
        turns(r, 2)
        assert log == [1]
    idler.close()


@pytest.mark.parametrize(('kind', 'times'), [(MemoryError, 2), (RecursionError, 1)])
def test_a_call_that_runs_out_of_stack_or_twice_of_memory_leaves_run_once_and_is_not_lost(r, monkeypatch, kind, times):
    log = []
    idler = r.idle(log.append, 1)
    r.call_soon(log.append, 2)
    run_short(monkeypatch, Idler, 'handle_turn', times, kind)
    with pytest.raises(kind):
        turns(r, 2)
    assert log == []
    run_until(r, lambda: 2 in log)
    idler.close()
    assert log[:2] == [1, 2]


def test_a_selector_that_cannot_be_closed_does_not_keep_anything_else_open(sockets):
    class Stuck(selectors.SelectSelector):
        def close(self):
            super().close()
            raise OSError(errno.EBADF, 'a kqueue that a fork has not inherited')

    log = Log()
    r = Reactor(selector=Stuck())
    r.adopt(sockets()[0], on_close=log.on_close)
    bell = r._wakeup.bell_fileno()
    r.close()
    assert log.names() == ['close'] and r.guard.closed
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(bell)


def test_run_once_returns_false_in_a_child_that_closes_the_loop():
    kernel = ScriptedKernel()
    r = Reactor(kernel=kernel)

    def fork():
        parent = kernel.pid()
        kernel.pid = lambda: parent + 1
        r.close()

    for fn in fork, int:
        r.call_soon(fn)
    assert r.run_once(0) is False


def test_an_error_that_finds_no_memory_to_be_reported_is_reported_in_a_later_turn(sockets, monkeypatch):
    reported = []

    def fail(conn, data):
        raise RecursionError('of the user')

    with Reactor(catch_errors=lambda exc, handle: reported.append(str(exc))) as r:
        ours, theirs = sockets()
        r.adopt(ours, fail)
        theirs.send(b'x')
        turns(r, 1)
        run_short(monkeypatch, failures.Failures, 'callback_failed')
        with pytest.raises(MemoryError):
            turns(r, 3)
        assert reported == []
        turns(r, 3)
        assert reported == ['of the user']


@pytest.mark.parametrize('slow', [None, 100.0])
@pytest.mark.parametrize('phase', ['dispatch', 'timers', 'soon', 'completions'])
def test_a_callback_that_closes_the_loop_in_a_forked_child_is_the_last_one_in_that_child(phase, slow):
    # Regression: with open handles, `run` used to go on for ever in the child, and the child handled events that
    # belonged to its parent.
    kernel, log = ScriptedKernel(), Log()
    r = Reactor(kernel=kernel, slow_callback=slow)
    socks = [ScriptedSocket(kernel) for _ in range(3)]

    def fork(*args):
        parent = kernel.pid()
        kernel.pid = lambda: parent + 1
        r.close()

    first, *others = (r.adopt(sock, log.on_data, on_close=log.on_close) for sock in socks)
    if phase == 'dispatch':
        first.on_data = fork
        for sock in socks:
            sock.incoming.append(b'x')
    elif phase == 'timers':
        r.call_later(1, fork)
        r.call_later(1, log.append, 1)
    elif phase == 'soon':
        r.call_soon(fork)
        r.call_soon(log.append, 1)
    else:
        first.write(b'x', fork)
        others[0].write(b'x', log.append)
    assert r.run() is True
    assert r.guard.closed and not log
    assert all('close' not in sock.calls for sock in socks)


def test_the_loop_sleeps_when_select_refuses_to_wait_without_sockets():
    # Regression: `run` used to raise an OSError with a message that blamed other code for closing descriptors.
    class Windows(selectors.SelectSelector):
        refused = 0

        def select(self, timeout=None):
            if not self.get_map():
                self.refused += 1
                raise OSError(errno.EINVAL, 'an invalid argument was supplied')
            return super().select(timeout)

    selector, fired = Windows(), []
    with Reactor(selector=selector) as r:
        r.watchers.set_events(r._wakeup, 0)
        r.call_later(0.03, fired.append, 1)
        assert r.run() is True
        assert fired == [1] and 1 <= selector.refused < 20
        r.watchers.set_events(r._wakeup, READ)
        r.call_soon_threadsafe(fired.append, 2)
        assert r.run() is True
    assert fired == [1, 2]
