"""Calls in threads: results reach the loop, at most four calls run and a thousand wait, and any can be cancelled."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref
from collections import deque

import pytest

from reactor import HandleClosed, Reactor, ReactorError, ResolveError
from reactor.kernel import Kernel
from reactor.loop.threads import QUEUE_LIMIT, THREADS
from tests.helpers.support import FakeKernel, in_thread, run_until, turns, uncallable


class Thing:
    """An object for weak references."""


class Gate:
    """A gate at which calls wait in their threads until `open` is set."""

    def __init__(self):
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.inside = self.most = self.entered = 0

    def wait(self, result=None):
        with self.lock:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(20)
        with self.lock:
            self.inside -= 1
        return result


@pytest.fixture
def gate():
    """A gate that is opened at the end of the test, whatever happens."""
    gate = Gate()
    yield gate
    gate.open.set()
    threads_ended()


def pool_threads():
    """Return the threads of all pools."""
    return [thread for thread in threading.enumerate() if thread.name.startswith('reactor-')]


def threads_ended():
    """Wait until all threads of pools have ended."""
    for thread in pool_threads():
        thread.join(20)
    assert not pool_threads()


def outcomes_of(r, *calls):
    """Make the calls in threads; return the (result, error) of each, in the order of the calls."""
    outcomes = {}
    for number, (fn, *args) in enumerate(calls):
        r.run_in_thread(fn, *args, on_done=lambda *outcome, number=number: outcomes.update({number: outcome}))
    run_until(r, lambda: len(outcomes) == len(calls))
    return [outcomes[number] for number in range(len(calls))]


def test_the_result_arrives_with_no_error(r):
    assert outcomes_of(r, (divmod, 17, 5), (list,), (id, None))[:2] == [((3, 2), None), ([], None)]


@pytest.mark.parametrize('error', [ValueError, SystemExit, KeyboardInterrupt, ReactorError])
def test_whatever_a_call_raises_arrives_as_its_error(r, error):
    def bad():
        raise error('boom')

    ((result, raised),) = outcomes_of(r, (bad,))
    assert result is None
    assert type(raised) is error


def test_the_call_runs_in_a_daemon_thread_and_on_done_in_the_thread_of_the_loop(r):
    where = []

    def call():
        where.append((threading.current_thread().daemon, threading.get_ident()))

    r.run_in_thread(call, on_done=lambda *outcome: where.append(threading.get_ident()))
    run_until(r, lambda: len(where) == 2)
    (daemon, ident), loop = where
    assert daemon
    assert ident != loop == threading.get_ident()


def test_run_ends_when_the_call_is_done_with_or_without_on_done(r):
    called = []
    r.run_in_thread(called.append, 1)
    assert r.run() is True
    assert called == [1]


def test_on_done_is_never_called_inside_the_call(r):
    log = []
    r.run_in_thread(int, on_done=lambda *outcome: log.append(outcome))
    threads_ended()
    assert log == []
    run_until(r, lambda: log)
    assert log == [(0, None)]


def test_at_most_four_run_at_once(r, gate):
    done = []
    for number in range(10):
        r.run_in_thread(gate.wait, number, on_done=lambda *outcome: done.append(outcome))
    run_until(r, lambda: gate.inside == THREADS)
    turns(r, 5)
    assert (gate.inside, len(pool_threads())) == (4, 4)
    gate.open.set()
    run_until(r, lambda: len(done) == 10)
    assert gate.most == 4
    assert sorted(done) == [(number, None) for number in range(10)]


@pytest.mark.parametrize('threads', [1, 2, 20])
def test_the_option_threads_says_how_many_run_at_once(gate, threads):
    done = []
    with Reactor(threads=threads) as r:
        for number in range(threads + 5):
            r.run_in_thread(gate.wait, number, on_done=lambda *outcome: done.append(outcome))
        run_until(r, lambda: gate.inside == threads)
        turns(r, 5)
        assert (gate.inside, len(pool_threads())) == (threads, threads)
        gate.open.set()
        assert r.run()
    assert gate.most == threads and len(done) == threads + 5


@pytest.mark.parametrize('threads', [0, -1])
def test_a_reactor_has_at_least_one_thread(threads):
    with pytest.raises(ValueError, match=f'threads must be a number of threads, at least 1, not {threads}'):
        Reactor(threads=threads)


def test_slow_calls_do_not_stop_look_ups_and_connects(r, gate):
    """All threads are occupied, and more calls wait; names are looked up all the same."""
    for _ in range(2 * THREADS):
        r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == THREADS)
    found, connected = [], []
    r.resolve('localhost', lambda addresses, error: found.append(addresses))
    server = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp('localhost', server.address[1], on_connect=connected.append)
    run_until(r, lambda: found and connected)
    assert gate.inside == THREADS
    gate.open.set()
    conn.abort()
    server.close()
    assert r.run()


def test_slow_look_ups_do_not_stop_calls(gate):
    class SlowNames(Kernel):
        def getaddrinfo(self, host, port, family=0, kind=0, flags=0):
            if not flags:  # numeric addresses are parsed in the loop
                gate.wait()
            return super().getaddrinfo(host, port, family, kind, flags)

    with Reactor(kernel=SlowNames()) as r:
        for _ in range(20):
            r.resolve('localhost', lambda addresses, error: None)
        run_until(r, lambda: gate.inside == 4)
        assert outcomes_of(r, (abs, -1)) == [(1, None)]
        gate.open.set()
        assert r.run()


def test_calls_beyond_a_thousand_waiting_ones_are_refused_through_on_done(r, gate):
    done, refused = [], []
    for _ in range(THREADS):
        r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == THREADS)
    for number in range(QUEUE_LIMIT):
        r.run_in_thread(int, number, on_done=lambda *outcome: done.append(outcome))
    call = r.run_in_thread(int, on_done=lambda *outcome: refused.append(outcome))
    assert refused == []
    turns(r, 2)
    ((result, error),) = refused
    assert (result, type(error)) == (None, ReactorError)
    assert str(QUEUE_LIMIT) in str(error)
    assert call.closed
    assert (QUEUE_LIMIT, done) == (1000, [])
    gate.open.set()
    run_until(r, lambda: len(done) == QUEUE_LIMIT and not r.handles())
    assert outcomes_of(r, (abs, -1)) == [(1, None)]


@pytest.mark.scenario(100)
def test_cancelled_calls_free_their_places_in_the_queue(r, gate):
    done = []
    for _ in range(THREADS):
        r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == THREADS)
    waiting = [r.run_in_thread(done.append, number) for number in range(QUEUE_LIMIT)]
    for call in waiting[1:]:
        call.close()
    for number in range(QUEUE_LIMIT, 2 * QUEUE_LIMIT - 1):
        r.run_in_thread(done.append, number)
    gate.open.set()
    assert r.run() is True
    assert sorted(done) == [0, *range(QUEUE_LIMIT, 2 * QUEUE_LIMIT - 1)]


def test_a_cancelled_call_that_waits_is_never_made(r, gate):
    log = []
    for _ in range(THREADS):
        r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == THREADS)
    call = r.run_in_thread(log.append, 'made', on_done=lambda *outcome: log.append(outcome))
    call.close()
    call.close()
    assert call.closed
    gate.open.set()
    assert r.run() is True
    assert log == []


def test_a_cancelled_call_that_waits_releases_its_arguments_at_once(r, gate):
    thing = Thing()
    ref = weakref.ref(thing)
    for _ in range(THREADS):
        r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == THREADS)
    r.run_in_thread(id, thing, on_done=lambda *outcome, thing=thing: None).close()
    del thing
    gc.disable()
    try:
        assert ref() is None
    finally:
        gc.enable()
    gate.open.set()
    assert r.run() is True


def test_the_result_of_a_cancelled_call_that_runs_is_dropped(r, gate):
    log = []
    call = r.run_in_thread(gate.wait, on_done=lambda *outcome: log.append(outcome))
    run_until(r, lambda: gate.inside == 1)
    call.close()
    assert r.handles() == []
    gate.open.set()
    threads_ended()
    turns(r, 3)
    assert log == []


def test_a_call_that_is_done_but_not_reported_can_still_be_cancelled(r):
    log = []
    call = r.run_in_thread(int, on_done=lambda *outcome: log.append(outcome))
    threads_ended()
    call.close()
    turns(r, 3)
    assert log == []


@pytest.mark.scenario(101)
def test_a_reactor_closed_with_a_call_in_flight_does_not_call_on_done(r, gate):
    log = []
    call = r.run_in_thread(gate.wait, on_done=lambda *outcome: log.append(outcome))
    waiting = [r.run_in_thread(log.append, 'made') for _ in range(THREADS)]
    run_until(r, lambda: gate.inside == 1)
    r.close()
    assert call.closed
    assert all(call.closed for call in waiting)
    made = len(log)
    gate.open.set()
    threads_ended()
    assert len(log) == made
    assert set(log) <= {'made'}


def test_an_unreferenced_call_lets_run_end(r, gate):
    call = r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == 1)
    call.unref()
    assert r.run() is True
    assert r.handles() == [call]
    call.close()


def test_an_exception_in_on_done_is_logged_and_the_others_go_on(r, caplog):
    def bad(result, error):
        raise ValueError('boom')

    r.run_in_thread(int, on_done=bad)
    assert r.run() is True
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]
    assert outcomes_of(r, (int,)) == [(0, None)]


def test_threads_end_when_there_is_nothing_to_do_and_start_again(r):
    for _ in range(3):
        assert outcomes_of(r, *[(abs, -number) for number in range(20)]) == [(number, None) for number in range(20)]
        threads_ended()


def test_calls_made_by_calls_are_made(r):
    log = []

    def next_call(result, error):
        log.append(result)
        if result < 100:
            r.run_in_thread(int, result + 1, on_done=next_call)

    r.run_in_thread(int, 0, on_done=next_call)
    assert r.run() is True
    assert log == list(range(101))


def test_a_call_that_is_done_releases_everything(r):
    def call(thing):
        return thing

    thing = Thing()
    ref = weakref.ref(thing)
    r.run_in_thread(call, thing, on_done=lambda *outcome: None)
    del thing
    gc.disable()
    try:
        run_until(r, lambda: ref() is None)
    finally:
        gc.enable()
    assert r.run() is True


class FewThreads(Kernel):
    """A kernel that refuses to start the next `failures` threads, or more than `most` threads."""

    def __init__(self, failures=0, most=1000):
        self.failures, self.most = failures, most

    def start_thread(self, target, name):
        if self.failures or not self.most:
            self.failures -= 1
            raise RuntimeError("can't start new thread")
        self.most -= 1
        super().start_thread(target, name)


def test_a_call_fails_with_an_error_when_no_thread_can_be_started():
    done = []
    with Reactor(kernel=FewThreads(failures=1)) as r:
        r.run_in_thread(int, on_done=lambda *outcome: done.append(outcome))
        assert not done
        assert r.run() is True
    result, error = done[0]
    assert result is None
    assert isinstance(error, ReactorError)
    assert "can't start new thread" in str(error)


def test_a_look_up_fails_when_no_thread_can_be_started():
    done = []
    with Reactor(kernel=FewThreads(failures=1)) as r:
        r.resolve('localhost', lambda *outcome: done.append(outcome))
        assert r.run() is True
    assert isinstance(done[0][1], ResolveError)


def test_waiting_calls_are_made_although_the_next_thread_cannot_be_started():
    done, queued = [], threading.Event()
    with Reactor(kernel=FewThreads(most=1)) as r:
        for _ in range(3):
            r.run_in_thread(queued.wait, on_done=lambda *outcome: done.append(outcome))
        queued.set()
        assert r.run() is True
    assert done == [(True, None)] * 3


def test_a_thread_that_cannot_be_started_does_not_use_up_a_place():
    done = []
    with Reactor(kernel=FewThreads(THREADS)) as r:
        for _ in range(THREADS):
            r.run_in_thread(int)
        r.run_in_thread(int, on_done=lambda *outcome: done.append(outcome))
        run_until(r, lambda: done and not r.handles(), timeout=3)
    assert done == [(0, None)]


@pytest.mark.parametrize('fn', [None, 5])
def test_a_call_must_be_callable(r, fn):
    with pytest.raises(TypeError):
        r.run_in_thread(fn)
    assert r.handles() == []


def test_on_done_must_be_callable(r):
    with pytest.raises(TypeError):
        r.run_in_thread(int, on_done=5)
    assert r.handles() == []


def test_a_call_is_refused_from_another_thread_while_the_loop_runs(r):
    refused = []

    def other():
        with pytest.raises(ReactorError, match='thread'):
            in_thread(r.run_in_thread, int)
        refused.append(1)

    r.call_soon(other)
    assert r.run() is True
    assert refused == [1]


def test_a_closed_reactor_makes_no_calls(r):
    r.close()
    with pytest.raises(HandleClosed):
        r.run_in_thread(int)


def test_the_repr_of_a_call_shows_what_it_waits_for(r, gate):
    call = r.run_in_thread(gate.wait)
    assert repr(call) == f'<ThreadCall {__name__}.Gate.wait>'
    assert r.why_alive()[0].endswith(f'waits for {__name__}.Gate.wait to return')
    call.close()
    assert repr(call) == '<ThreadCall closed>'


def no_thread(*args):
    raise RuntimeError("can't start new thread")


def test_the_error_of_a_call_without_a_thread_is_reported_in_a_later_turn(r, monkeypatch):
    log = []
    monkeypatch.setattr(r.kernel, 'start_thread', no_thread)
    r.run_in_thread(log.append, 'called', on_done=lambda *outcome: log.append(outcome))
    assert log == []
    assert r.run() is True
    ((result, error),) = log
    assert result is None and isinstance(error, ReactorError) and 'call it later' in str(error)
    monkeypatch.undo()
    assert outcomes_of(r, (int,)) == [(0, None)]


def test_a_call_waits_for_a_running_thread_when_no_other_can_be_started(r, gate, monkeypatch):
    log = []
    r.run_in_thread(gate.wait)
    monkeypatch.setattr(r.kernel, 'start_thread', no_thread)
    r.run_in_thread(int, on_done=lambda *outcome: log.append(outcome))
    turns(r, 2)
    assert log == []
    gate.open.set()
    run_until(r, lambda: log)
    assert log == [(0, None)]
    threads_ended()
    turns(r, 2)


def test_a_thread_may_take_a_call_while_cancelled_calls_are_dropped(r, gate):
    class Raced(deque):
        """A queue from which a thread takes a call just as the loop is about to take its first call."""

        raced = False

        def popleft(self):
            if not self.raced and threading.current_thread() is threading.main_thread():
                self.raced = True
                self.popleft()
            return super().popleft()

    done = []
    for _ in range(THREADS):
        r.run_in_thread(gate.wait)
    run_until(r, lambda: gate.inside == THREADS)
    r._threads._queue = Raced()
    for call in [r.run_in_thread(done.append, number) for number in range(QUEUE_LIMIT)]:
        call.close()
    r.run_in_thread(done.append, 'new')
    assert r._threads._queue.raced
    gate.open.set()
    assert r.run() is True
    assert done == ['new']


class ClosedBetween:
    """A call that the loop cancels right after the thread has read the first attribute of the call."""

    closed = False

    def __init__(self, fn, args):
        self.now = {'fn': fn, 'args': args}

    def _take(self, name):
        value = self.now[name]
        self.now = {'fn': None, 'args': ()}  # the attributes after `ThreadCall.close`
        return value

    fn = property(lambda self: self._take('fn'))
    args = property(lambda self: self._take('args'))

    def handle_done(self, result, error):
        """Ignore the outcome."""


def test_a_call_that_is_cancelled_as_its_thread_begins_is_never_made_without_its_arguments():
    called = []

    def delete(path='/'):
        called.append(path)

    with Reactor() as r:
        r._threads._queue.append(ClosedBetween(delete, ('/tmp/x',)))
        r._threads._work()
    assert called in ([], ['/tmp/x'])


def test_a_thread_without_memory_for_its_outcome_reports_it_later_and_is_not_counted_for_ever(r, monkeypatch):
    class Short(deque):
        """A queue without memory for the next `failures` entries."""

        failures = 0

        def append(self, item):
            if self.failures:
                self.failures -= 1
                raise MemoryError
            super().append(item)

    sleeps = []
    monkeypatch.setattr(r.kernel, 'sleep', sleeps.append, raising=False)
    r._wakeup.calls = calls = Short()
    answers = []
    for number in range(3 * THREADS):
        calls.failures = 2
        r.run_in_thread(int, number, on_done=lambda result, error: answers.append((result, error)))
        run_until(r, lambda expected=number + 1: len(answers) == expected)
    assert answers == [(number, None) for number in range(3 * THREADS)]
    run_until(r, lambda: not pool_threads())
    run_until(r, lambda: not r._threads._running)
    assert sleeps == [0.01] * 2 * 3 * THREADS  # one pause after each failure, and no other pauses


def test_on_done_is_called_later_when_there_is_no_memory_to_call_it(r):
    log = []
    call = r.run_in_thread(int, on_done=uncallable(2))
    ended = call.on_done
    with contextlib.suppress(MemoryError):  # a second MemoryError in one turn leaves `run_once`, but nothing is lost
        run_until(r, lambda: call.closed)
    assert call.on_done is ended
    call.on_done = lambda *outcome: log.append(outcome)
    run_until(r, lambda: log)
    assert log == [(0, None)]


class NoMemoryAt:
    """Starts threads, in which the n-th call to a function of `reactor` finds no memory. `made` counts such calls."""

    def __init__(self, n):
        self.n, self.made = n, 0

    def start_thread(self, target, name):
        def work():
            sys.settrace(self.trace)
            try:
                target()
            except MemoryError:
                pass  # the thread ends here

        threading.Thread(target=work, name=name, daemon=True).start()

    def trace(self, frame, event, arg):
        name = frame.f_code.co_name
        if frame.f_globals.get('__name__', '').startswith('reactor') and name not in ('_work', 'work', '__del__'):
            self.made += 1
            if self.made == self.n:
                raise MemoryError


def test_every_call_gets_an_outcome_when_a_thread_finds_no_memory_at_any_of_its_calls():
    """The thread that ends without memory must not be counted as running for ever, either."""
    n, made = 0, 1
    while n < made:
        n += 1
        source, answers = NoMemoryAt(n), []
        kernel = Kernel()
        kernel.start_thread = source.start_thread
        with Reactor(kernel=kernel) as r:
            for _ in range(3):
                r.run_in_thread(
                    int, '7', on_done=lambda result, error, answers=answers: answers.append(result or type(error))
                )
            r.call_later(5, r.stop).unref()
            assert r.run(), f'call {n}: {answers}, waiting for {r.why_alive()}'
            assert len(answers) == 3 and set(answers) <= {7, MemoryError}, f'call {n}: {answers}'
            run_until(r, lambda r=r: not r._threads._running)
        made = max(made, source.made)
    assert n > 5


def test_a_call_that_finds_no_memory_for_a_thread_raises_and_is_not_waited_for():
    # Regression: the call used to stay in the queue, and `run` never returned.
    class Kernel(FakeKernel):
        def start_thread(self, target, name):
            raise MemoryError

    with Reactor(kernel=Kernel()) as r:
        with pytest.raises(MemoryError):
            r.run_in_thread(int, on_done=print)
        assert r.handles() == []
        assert r.run() is True
