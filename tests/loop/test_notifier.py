"""Notifiers: many triggers from any thread become one call in the loop, and none is lost."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref

import pytest

from reactor import HandleClosed, Reactor, ReactorError
from reactor.loop.wakeup import Wakeup
from tests.helpers.support import in_thread, run_short, run_until, turns


def test_a_trigger_from_a_thread_wakes_a_sleeping_loop(r):
    log = []
    notifier = r.notifier(lambda: log.append(threading.get_ident()))
    timer = threading.Timer(0.02, notifier.trigger)
    timer.start()
    assert r.run() is True
    timer.join()
    assert log == [threading.get_ident()]


@pytest.mark.scenario(16)
def test_many_triggers_before_the_call_are_one_call(r):
    log = []
    notifier = r.notifier(log.append, 'called', once=False)
    for _ in range(1000):
        notifier.trigger()
    turns(r, 3)
    assert log == ['called']
    notifier.trigger()
    turns(r, 3)
    assert log == ['called'] * 2
    notifier.close()


def test_a_trigger_never_calls_inside_itself(r):
    log = []
    notifier = r.notifier(log.append, 'called')
    r.call_soon(lambda: (notifier.trigger(), log.append('triggered')))
    assert r.run() is True
    assert log == ['triggered', 'called']


def test_a_notifier_closes_itself_before_its_only_call(r):
    log = []
    notifier = r.notifier(lambda: log.append(notifier.closed))
    notifier.trigger()
    assert r.run() is True
    assert log == [True]
    with pytest.raises(HandleClosed, match='once'):
        notifier.trigger()


def test_a_notifier_that_stays_may_be_triggered_by_its_own_callback(r):
    log = []

    def call():
        log.append(1)
        if len(log) < 100:
            notifier.trigger()
        else:
            notifier.close()

    notifier = r.notifier(call, once=False)
    notifier.trigger()
    assert r.run() is True
    assert len(log) == 100


@pytest.mark.scenario(16)
def test_a_trigger_from_many_threads_is_never_lost(r):
    done, seen, calls = [], [], []

    def work():
        for number in range(500):
            done.append(number)
            notifier.trigger()

    def take():
        calls.append(1)
        while done:
            seen.append(done.pop())

    notifier = r.notifier(take, once=False)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    run_until(r, lambda: len(seen) == 2000)
    for thread in threads:
        thread.join()
    notifier.close()
    assert len(calls) <= 2000


def test_two_triggers_at_the_same_instant_cause_one_call_or_two_in_sequence(r):
    """Both threads may see that the flag is not set, and queue a call. The second call then finds nothing to do."""
    log = []
    notifier = r.notifier(log.append, 1, once=False)
    notifier.trigger()
    r.call_soon_threadsafe(notifier.handle_trigger)  # the call that the other thread would queue
    turns(r, 3)
    assert log == [1]
    notifier.close()


@pytest.mark.skipif(sys.platform == 'win32', reason='a Windows process cannot send itself this signal')
def test_a_trigger_from_a_signal_handler_wakes_the_loop(r):
    log = []
    notifier = r.notifier(log.append, 'called')
    before = signal.signal(signal.SIGUSR1, lambda *_: notifier.trigger())
    try:
        killer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        killer.start()
        assert r.run() is True
        killer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert log == ['called']


def test_a_notifier_keeps_the_loop_running_unless_it_is_unreferenced(r):
    notifier = r.notifier(lambda: None)
    (line,) = r.why_alive()
    assert 'Notifier' in line and 'trigger()' in line
    notifier.unref()
    assert r.run() is True and r.why_alive() == []
    notifier.ref()
    assert r.watchers.referenced == 1
    notifier.close()
    notifier.close()
    assert r.run() is True


def test_a_trigger_right_before_the_close_causes_no_call(r):
    log = []
    notifier = r.notifier(log.append, 1)
    notifier.trigger()
    notifier.close()
    turns(r, 3)
    assert log == []


@pytest.mark.scenario(115)
def test_an_exception_is_logged_and_a_notifier_that_stays_goes_on(r, caplog):
    def bad():
        raise ValueError('boom')

    notifier = r.notifier(bad, once=False)
    for _ in range(2):
        notifier.trigger()
        turns(r, 2)
    assert [record.exc_info[0] for record in caplog.records] == [ValueError] * 2
    assert not notifier.closed
    notifier.close()


def test_a_trigger_after_the_reactor_was_closed_raises():
    with Reactor() as r:
        notifier = r.notifier(lambda: None)
    assert notifier.closed
    with pytest.raises(HandleClosed):
        notifier.trigger()
    with pytest.raises(HandleClosed):
        r.notifier(lambda: None)


def test_a_closed_notifier_releases_everything(r):
    class Thing:
        def call(self):
            pass

    thing = Thing()
    refs = weakref.ref(thing), weakref.ref(notifier := r.notifier(thing.call))
    notifier.trigger()
    r.run()
    del thing, notifier
    gc.disable()
    try:
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_the_repr_of_a_notifier_shows_its_state(r):
    notifier = r.notifier(turns, r, 1)
    assert repr(notifier) == '<Notifier calls tests.helpers.support.turns>'
    notifier.trigger()
    assert repr(notifier) == '<Notifier triggered, calls tests.helpers.support.turns>'
    assert 'its turn' in '\n'.join(r.why_alive())
    notifier.close()
    assert repr(notifier) == '<Notifier closed>'


def test_a_callback_that_is_not_callable_is_refused(r):
    with pytest.raises(TypeError):
        r.notifier(5)
    assert r.handles() == []


def test_only_trigger_may_be_called_from_another_thread(r):
    log = []

    def other():
        with pytest.raises(ReactorError, match='thread'):
            in_thread(notifier.close)
        in_thread(notifier.trigger)

    notifier = r.notifier(log.append, 1)
    r.call_soon(other)
    assert r.run() is True
    assert log == [1]


def test_a_trigger_that_finds_no_memory_raises_and_the_next_one_calls(r, monkeypatch):
    log = []
    notifier = r.notifier(log.append, 1)
    run_short(monkeypatch, Wakeup, '_send_byte')
    with pytest.raises(MemoryError):
        notifier.trigger()
    turns(r, 2)
    assert log == []
    notifier.trigger()
    run_until(r, lambda: log)
    assert log == [1]


def test_a_trigger_that_ctrl_c_interrupts_raises_and_the_next_one_calls(r, monkeypatch):
    # This can happen when the main thread calls `trigger` and the loop runs in another thread.
    # Regression: the flag used to stay set, so the notifier never worked again.
    log = []
    notifier = r.notifier(log.append, 'called', once=False)
    run_short(monkeypatch, Wakeup, 'call', kind=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        notifier.trigger()
    notifier.trigger()
    turns(r, 3)
    assert log == ['called']
    notifier.close()
