"""Idlers: called once per turn, before all other calls, until they are closed."""

from __future__ import annotations

import gc
import weakref

import pytest

from reactor import HandleClosed, Reactor, ReactorError
from reactor.loop.timers import TimerHeap
from tests.helpers.support import in_thread, run_short, run_until, turns


def test_an_idler_is_called_once_in_every_turn(r):
    log = []
    idler = r.idle(log.append, 'x')
    for count in range(1, 6):
        r.run_once()
        assert len(log) == count
    idler.close()
    turns(r, 3)
    assert len(log) == 5


def test_an_idler_is_never_called_inside_the_call_that_opens_it(r):
    log, idlers = [], []

    def idling():
        log.append('idler')
        idlers[0].close()

    def main(r):
        idlers.append(r.idle(idling))
        log.append('opened')

    assert r.run(main) is True
    assert log == ['opened', 'idler']


def test_a_loop_with_an_idler_does_not_sleep(r):
    log = []
    r.call_later(60, log.append, 'late')
    idler = r.idle(log.append, 'turn')
    assert r.timeout() == 0
    run_until(r, lambda: len(log) == 100, timeout=5)
    assert set(log) == {'turn'}
    idler.close()
    assert r.timeout() > 50
    r.close()


def test_idlers_come_before_all_other_calls_in_the_order_in_which_they_were_opened(r, sockets):
    log = []
    ours, theirs = sockets()
    conn = r.adopt(ours, lambda conn, data: r.call_soon(log.append, 'call of the dispatch'))
    idlers = [r.idle(log.append, number) for number in range(3)]
    turns(r, 1)
    log.clear()
    theirs.send(b'x')
    r.call_soon(log.append, 'call from before')
    r.call_later(0, r.call_soon, log.append, 'call of a timer')
    r.run_once(0)
    assert log[:3] == [0, 1, 2]
    assert sorted(log[3:]) == ['call from before', 'call of a timer', 'call of the dispatch']
    for idler in idlers:
        idler.close()
    conn.close()
    turns(r, 2)


@pytest.mark.scenario(2)
def test_a_call_that_schedules_itself_never_comes_before_an_idler(r):
    log = []

    def again():
        log.append('call')
        if len(log) < 20:
            r.call_soon(again)
        else:
            idler.close()

    r.call_soon(again)
    idler = r.idle(log.append, 'idler')
    assert r.run() is True
    assert log == ['idler', 'call'] * 10


def test_an_idler_may_close_itself_and_others(r):
    log = []

    def first():
        log.append('first')
        mine.close()
        others.close()

    mine = r.idle(first)
    others = r.idle(log.append, 'second')
    assert r.run() is True
    assert log == ['first']
    mine.close()
    assert mine.closed and others.closed


def test_an_idler_opened_by_an_idler_begins_in_the_next_turn(r):
    log = []

    def first():
        log.append('first')
        if len(log) == 1:
            later.append(r.idle(log.append, 'second'))

    later = []
    idler = r.idle(first)
    r.run_once()
    assert log == ['first']
    r.run_once()
    assert log == ['first', 'first', 'second']
    idler.close()
    later[0].close()


@pytest.mark.scenario(2)
def test_an_idler_does_not_starve_sockets_and_timers(r, sockets):
    log = []
    ours, theirs = sockets()
    conn = r.adopt(ours, lambda conn, data: log.append(data))
    idler = r.idle(lambda: None)
    r.call_later(0.01, theirs.send, b'x')
    run_until(r, lambda: log)
    idler.close()
    conn.close()
    turns(r, 2)


def test_an_idler_keeps_the_loop_running_unless_it_is_unreferenced(r):
    log = []

    def count():
        log.append(1)
        if len(log) == 5:
            idler.unref()

    idler = r.idle(count)
    assert r.run() is True
    assert len(log) == 5 and not idler.closed
    r.call_later(0.002, lambda: None)
    assert r.run() is True
    assert len(log) > 5
    idler.ref()
    assert any('Idler' in line and 'every turn' in line for line in r.why_alive())
    idler.close()
    assert r.why_alive() == [] and r.run() is True


@pytest.mark.scenario(115)
def test_an_exception_in_an_idler_is_logged_and_the_others_go_on(r, caplog):
    log = []

    def bad():
        raise ValueError('boom')

    idlers = [r.idle(bad), r.idle(log.append, 1)]
    turns(r, 2)
    assert [record.exc_info[0] for record in caplog.records] == [ValueError] * 2
    assert len(log) == 2
    for idler in idlers:
        idler.close()


def test_an_exception_that_leaves_run_skips_no_idler_and_calls_none_twice_a_turn(r):
    log, interrupts = [], [KeyboardInterrupt]

    def interrupt():
        if interrupts:
            raise interrupts.pop()

    idlers = [r.idle(interrupt), r.idle(log.append, 1)]
    with pytest.raises(KeyboardInterrupt):
        r.run_once()
    r.run_once()
    assert log == [1]
    r.run_once()
    assert log == [1, 1]
    for idler in idlers:
        idler.close()


def test_closing_the_reactor_closes_its_idlers():
    with Reactor() as r:
        idler = r.idle(lambda: None)
        r.run_once()
    assert idler.closed
    with pytest.raises(HandleClosed):
        r.idle(lambda: None)


def test_a_closed_idler_releases_everything(r):
    class Thing:
        def call(self):
            pass

    thing = Thing()
    refs = weakref.ref(thing), weakref.ref(idler := r.idle(thing.call))
    r.run_once()
    idler.close()
    del thing, idler
    gc.disable()
    try:
        turns(r, 1)
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_the_repr_of_an_idler_shows_what_it_calls(r):
    idler = r.idle(test_the_repr_of_an_idler_shows_what_it_calls, r)
    assert repr(idler) == f'<Idler calls {__name__}.test_the_repr_of_an_idler_shows_what_it_calls>'
    assert r.handles() == [idler]
    idler.close()
    assert repr(idler) == '<Idler closed>'


def test_a_callback_that_is_not_callable_is_refused(r):
    with pytest.raises(TypeError):
        r.idle(5)
    assert r.handles() == []


def test_another_thread_cannot_close_an_idler_of_a_running_loop(r):
    def other():
        with pytest.raises(ReactorError, match='thread'):
            in_thread(idler.close)
        idler.close()

    idler = r.idle(other)
    assert r.run() is True
    assert idler.closed


def test_an_idler_is_not_opened_when_there_is_no_memory_for_it(r, monkeypatch):
    log = []
    run_short(monkeypatch, TimerHeap, 'unreferenced_later')
    with pytest.raises(MemoryError):
        r.idle(log.append, 1)
    assert r.handles() == []
    idler = r.idle(log.append, 2)
    turns(r, 2)
    idler.close()
    assert log == [2, 2]
