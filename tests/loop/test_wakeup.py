"""The wakeup: calls from other threads reach a sleeping loop once and in order, even when the wakeup socket is full."""

from __future__ import annotations

import errno
import gc
import os
import selectors
import signal
import threading
import time
import weakref
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reactor import HandleClosed, Reactor
from reactor.loop.wakeup import Wakeup
from reactor.testing import SimKernel
from tests.helpers.support import (
    FailingKernel,
    FakeKernel,
    FakeSelector,
    Log,
    ScriptedKernel,
    ScriptedSocket,
    fill,
    idle,
    in_thread,
    run_short,
    run_until,
    turns,
    turns_in,
)


class Thing:
    """An object for weak references."""


def asleep(r):
    """Return an event that is set when the loop is about to sleep."""
    event, select = threading.Event(), r._select

    def watched(timeout):
        if timeout != 0:
            event.set()
        return select(timeout)

    r._select = watched
    return event


@pytest.mark.scenario(16)
def test_a_call_from_a_thread_wakes_a_sleeping_loop(r):
    event = asleep(r)
    latencies = []

    def note(called):
        latencies.append(time.monotonic() - called)

    def other():
        for _ in range(20):
            event.wait(10)
            event.clear()
            r.call_soon_threadsafe(note, time.monotonic())
        r.call_soon_threadsafe(timer.cancel)

    timer = r.call_later(30, r.stop)
    thread = threading.Thread(target=other)
    thread.start()
    assert r.run() is True
    thread.join()
    assert min(latencies) < 0.005


def test_a_call_runs_in_the_thread_of_the_loop(r):
    log = []
    in_thread(r.call_soon_threadsafe, lambda *args: log.append((threading.get_ident(), args)), 1, 2)
    run_until(r, lambda: log)
    assert log == [(threading.get_ident(), (1, 2))]


def test_a_call_that_waits_keeps_run_running_until_it_was_made(r):
    log = []
    r.call_soon_threadsafe(log.append, 1)
    assert r.run() is True
    assert log == [1]


def test_a_call_made_in_the_loops_own_thread_is_never_run_inside_the_call(r):
    log = []

    def outer():
        r.call_soon_threadsafe(log.append, 'inner')
        log.append('outer')

    r.call_soon(outer)
    r.run()
    assert log == ['outer', 'inner']


@pytest.mark.scenario(16)
def test_calls_from_threads_run_once_each_in_the_order_of_their_thread(r):
    log = []
    count, threads = 5000, 4

    def work(name):
        for number in range(count):
            r.call_soon_threadsafe(log.append, (name, number))

    workers = [threading.Thread(target=work, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    run_until(r, lambda: len(log) >= count * threads)
    for worker in workers:
        worker.join()
    turns(r, 2)
    for name in range(threads):
        assert [number for thread, number in log if thread == name] == list(range(count))
    assert len(log) == count * threads


@given(st.lists(st.lists(st.sampled_from(['call', 'pause']), max_size=30), max_size=4), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_every_call_is_made_once_in_order_whatever_the_threads_do(scripts, full):
    log = []
    with Reactor() as r:
        if full:
            fill(r._wakeup._bell)

        def work(name, script):
            for number, action in enumerate(script):
                if action == 'call':
                    r.call_soon_threadsafe(log.append, (name, number))
                else:
                    time.sleep(0)

        workers = [threading.Thread(target=work, args=entry) for entry in enumerate(scripts)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            r.run_once(0)
        run_until(r, lambda: not r._wakeup.calls)
        turns(r, 2)
    for name, script in enumerate(scripts):
        expected = [number for number, action in enumerate(script) if action == 'call']
        assert [number for thread, number in log if thread == name] == expected


def test_many_calls_while_the_loop_is_busy_ring_once_and_are_all_made(r):
    log = []

    def busy():
        for number in range(20_000):
            r.call_soon_threadsafe(log.append, number)

    r.call_soon(busy)
    assert r.run() is True
    assert log == list(range(20_000))
    assert r.stats().events == 1


@pytest.mark.scenario(29)
def test_a_full_doorbell_loses_no_call(r):
    log = []
    fill(r._wakeup._bell)
    in_thread(r.call_soon_threadsafe, log.append, 1)
    run_until(r, lambda: log)
    assert log == [1]


def test_a_doorbell_without_memory_for_its_byte_is_rung_again():
    # Regression: the call used to be queued without sending a byte, and the loop spun or slept and never made the call.
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        bell = kernel.open[r._wakeup.bell_fileno()]
        bell.outcomes = deque([OSError(errno.ENOBUFS, 'no buffer space'), OSError(errno.ENOMEM, 'no memory'), 1])
        r.call_soon_threadsafe(print)
        assert bell.sent == b'\0'


def test_a_call_waits_20_milliseconds_for_memory_to_ring():
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        bell = kernel.open[r._wakeup.bell_fileno()]
        bell.outcomes = deque([*[OSError(errno.ENOBUFS, 'no buffer space')] * 20, 1])
        r.call_soon_threadsafe(print)
        assert bell.sent == b'\0'


def test_a_full_doorbell_is_emptied_and_then_quiet(r):
    bytes_waiting = fill(r._wakeup._bell)
    turns(r, bytes_waiting // 4096 + 2)
    assert turns_in(r) <= 3


def test_a_call_that_arrives_between_reading_the_doorbell_and_the_queue_is_made_once(r):
    log = []

    def late(data):
        if not log:
            r._wakeup.call(log.append, ('late',))

    r._wakeup.on_bytes = late
    r.call_soon_threadsafe(log.append, 'first')
    turns(r, 3)
    assert log == ['first', 'late']


@pytest.mark.scenario(16)
def test_a_loop_sleeps_while_a_thread_has_queued_its_call_but_not_rung_yet(r, monkeypatch):
    """The kernel may suspend the thread between the two steps for any length of time."""
    ring, made, may_ring, queued = Wakeup._ring, [], threading.Event(), threading.Event()

    def ring_late(wakeup):
        queued.set()
        assert may_ring.wait(10)
        ring(wakeup)

    monkeypatch.setattr(Wakeup, '_ring', ring_late)
    thread = threading.Thread(target=r.call_soon_threadsafe, args=(made.append, 1))
    thread.start()
    assert queued.wait(10)
    try:
        assert turns_in(r) < 10
        assert made == []
    finally:
        may_ring.set()
        thread.join()
    run_until(r, lambda: made == [1])


def test_calls_made_by_calls_do_not_starve_io(r, sockets):
    log, data = [], Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, data.on_data)

    def again():
        log.append(1)
        if not data:
            r.call_soon_threadsafe(again)

    again()
    theirs.send(b'x')
    turns(r, 3)
    assert data.received == b'x'
    assert len(log) <= 4
    turns(r, 2)
    conn.abort()
    turns(r, 1)


def test_a_spurious_readiness_of_the_doorbell_is_harmless(caplog):
    class Nervous(FakeSelector):
        """A selector that always reports everything as readable."""

        def select(self, timeout=None):
            return [(key, selectors.EVENT_READ) for key in list(self.get_map().values())]

    log = []
    with Reactor(selector=Nervous(FakeKernel())) as r:
        turns(r, 3)
        r.call_soon_threadsafe(log.append, 1)
        turns(r, 2)
        assert r.stats().callback_errors == 0
    assert log == [1]
    assert caplog.records == []


def test_the_wakeup_is_not_listed_as_a_handle_and_does_not_keep_run_running(r):
    assert r.handles() == []
    assert r.why_alive() == []
    assert r.run() is True


def test_a_call_that_was_made_releases_its_arguments(r):
    thing = Thing()
    ref = weakref.ref(thing)
    r.call_soon_threadsafe(id, thing)
    del thing
    gc.disable()
    try:
        r.run()
        assert ref() is None
    finally:
        gc.enable()


def test_a_closed_reactor_refuses_calls_from_threads(r):
    r.close()
    with pytest.raises(HandleClosed):
        in_thread(r.call_soon_threadsafe, int)


def test_a_call_while_the_reactor_closes_is_refused_or_dropped(r):
    r._wakeup.close()
    try:
        r.call_soon_threadsafe(int)
    except HandleClosed:
        pass
    r.close()


def test_a_thread_that_keeps_calling_while_the_reactor_closes_gets_only_handle_closed():
    outcomes = []

    def work(r):
        try:
            while True:
                r.call_soon_threadsafe(int)
        except Exception as exc:
            outcomes.append(type(exc))

    for _ in range(20):
        r = Reactor()
        thread = threading.Thread(target=work, args=(r,))
        thread.start()
        turns(r, 3)
        r.close()
        thread.join()
    assert outcomes == [HandleClosed] * 20


def test_a_call_must_be_callable(r):
    with pytest.raises(TypeError):
        r.call_soon_threadsafe('name')
    assert r.timeout() is None


def test_the_repr_of_the_wakeup_shows_its_descriptor(r):
    assert repr(r._wakeup) == f'<Wakeup fd={r._wakeup.fileno()}>'
    assert r._wakeup.fileno() >= 0


@pytest.mark.scenario(83)
def test_another_thread_can_close_a_connection_with_a_call_that_wakes_the_loop(r, sockets):
    log = []
    ours, theirs = sockets()
    conn = r.adopt(ours, on_close=lambda conn, exc: log.append((threading.get_ident(), exc)))
    event = asleep(r)

    def other():
        event.wait(10)
        r.call_soon_threadsafe(conn.close)

    thread = threading.Thread(target=other)
    thread.start()
    assert r.run() is True
    thread.join()
    assert log == [(threading.get_ident(), None)]
    assert theirs.recv(1) == b''


# -- closed by other code


@pytest.mark.scenario(12)
@pytest.mark.parametrize('end', ['_bell', 'sock'])
def test_a_doorbell_closed_by_other_code_is_replaced_and_does_not_spin(r, end, caplog):
    # Regression: the end of file used to be read again and again, and calls from threads were no longer made.
    if end == 'sock' and isinstance(r.watchers.selector, getattr(selectors, 'EpollSelector', ())):
        pytest.skip('epoll never reports a closed descriptor')
    log = []
    os.close(getattr(r._wakeup, end).fileno())
    turns(r, 3)
    assert turns_in(r) <= 3
    in_thread(r.call_soon_threadsafe, log.append, 1)
    run_until(r, lambda: log)
    assert r.handles() == []
    assert caplog.text.count('wakeup socket') == 1


def test_a_doorbell_that_cannot_be_replaced_for_want_of_descriptors_is_replaced_later(r, caplog):
    # Regression: the error used to be logged, and calls from threads and signals never reached the loop again.
    log = []
    handler = r.add_signal_handler(signal.SIGUSR1, log.append, 'signal')
    socketpair, refused = r.kernel.socketpair, []

    def full():
        refused.append(1)
        raise OSError(errno.EMFILE, 'too many open files')

    r.kernel.socketpair = full
    os.close(r._wakeup.bell_fileno())
    turns(r, 3)
    assert refused and 'cannot be replaced yet' in caplog.text
    in_thread(r.call_soon_threadsafe, log.append, 'call')
    run_until(r, lambda: log == ['call'])
    signal.raise_signal(signal.SIGUSR1)
    run_until(r, lambda: log == ['call', 'signal'])
    assert turns_in(r) <= 12
    assert signal.set_wakeup_fd(-1) == -1  # the old number is not installed: other code may own it now
    r.kernel.socketpair = socketpair
    run_until(r, lambda: not r._wakeup.closed)
    assert signal.set_wakeup_fd(-1) == r._wakeup.bell_fileno()
    signal.set_wakeup_fd(r._wakeup.bell_fileno())
    in_thread(r.call_soon_threadsafe, log.append, 'later')
    assert turns_in(r) <= 3 and log[2:] == ['later']
    assert len(caplog.records) == 1
    handler.close()


def test_without_signal_handlers_a_replaced_doorbell_is_not_installed_as_wakeup_descriptor():
    with Reactor(kernel=SimKernel(faults=False, selector='poll')) as r:
        r.run(lambda r: None)
        r.kernel.close_fd(r._wakeup.fileno())
        turns(r, 3)
        assert r.kernel.wakeup_fd == -1


def test_signals_ring_the_new_doorbell(r):
    log = []
    handler = r.add_signal_handler(signal.SIGTERM, log.append, 1)
    os.close(r._wakeup.bell_fileno())
    turns(r, 3)
    r.call_later(0.01, signal.raise_signal, signal.SIGTERM)
    began = time.monotonic()
    too_late = r.call_later(20, r.stop)
    while not log and time.monotonic() < began + 20:
        r.run_once()
    too_late.cancel()
    handler.close()
    assert time.monotonic() < began + 10


def test_a_call_that_finds_its_doorbell_closed_is_made(r):
    log = []
    os.close(r._wakeup.bell_fileno())
    r.call_soon_threadsafe(log.append, 1)
    run_until(r, lambda: log)


@pytest.mark.parametrize('error', [errno.ENOMEM, errno.ENOBUFS, errno.EBADF])
def test_a_doorbell_that_cannot_be_read_loses_no_call(error):
    log, errors = [], []
    kernel = FailingKernel('recv', error)
    with Reactor(kernel=kernel, catch_errors=lambda exc, handle: errors.append(exc)) as r:
        r.run_in_thread(int, on_done=lambda *outcome: log.append(outcome))
        assert r.run() is True
    assert log == [(0, None)]
    assert not errors
    assert not kernel.files


def test_a_doorbell_closed_by_other_code_stops_neither_the_loop_nor_its_close(r, sockets, caplog):
    log = Log()
    ours, theirs = sockets()
    r.adopt(ours, log.on_data)
    os.close(r._wakeup.fileno())
    turns(r, 3)
    theirs.send(b'x')
    run_until(r, lambda: log)
    assert log == [('data', b'x')]
    assert idle(r)
    assert len(caplog.records) <= 1
    r.close()


@pytest.mark.parametrize('name', ['handle_read', '_take'])
def test_a_doorbell_that_finds_no_memory_before_or_after_it_is_read_loses_no_call(r, monkeypatch, name):
    log = []
    run_short(monkeypatch, Wakeup, name)
    in_thread(r.call_soon_threadsafe, log.append, 1)
    turns(r, 3)
    assert log == [1]


def test_a_call_that_finds_no_memory_to_ring_raises_and_is_not_made(r, monkeypatch):
    log = []
    run_short(monkeypatch, Wakeup, '_send_byte')
    with pytest.raises(MemoryError):
        r.call_soon_threadsafe(log.append, 1)
    r.call_soon_threadsafe(log.append, 2)
    run_until(r, lambda: log)
    assert log == [2]


def test_a_call_without_memory_for_its_byte_is_made_although_other_code_closed_the_doorbell():
    class Closed(ScriptedSocket):
        def shutdown(self, how):
            raise OSError(errno.EBADF, 'Bad file descriptor')

    class Closing(ScriptedKernel):
        def socketpair(self):
            return ScriptedSocket(self), Closed(self)

        def sleep(self, seconds):
            self.time += seconds

    log, kernel = [], Closing()
    with Reactor(kernel=kernel) as r:
        bell = kernel.open[r._wakeup.bell_fileno()]
        bell.outcomes = deque([OSError(errno.ENOBUFS, 'no buffer space')] * 100)
        r.call_soon_threadsafe(log.append, 1)
        kernel.open[r._wakeup.fileno()].incoming.append(b'')  # so that the loop reads end of file from the doorbell
        turns(r, 3)
        assert log == [1]
        bell = kernel.open[r._wakeup.bell_fileno()]
        r.call_soon_threadsafe(log.append, 2)
        assert bell.sent == b'\0'
