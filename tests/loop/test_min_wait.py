"""`Reactor(min_wait=)`: events that arrive soon after each other share a turn, and nothing is later than that."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from reactor import Reactor
from tests.helpers.support import SELECTORS, FakeKernel

WAIT = 0.05  # seconds


class SleepingKernel(FakeKernel):
    """A kernel whose `sleep` lets its clock advance, and notes for how long; `meanwhile` runs in each sleep."""

    def __init__(self):
        super().__init__()
        self.slept = []
        self.meanwhile = lambda: None

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds
        self.meanwhile()


@pytest.fixture
def kernel():
    return SleepingKernel()


def test_events_that_arrive_during_the_minimum_wait_share_a_turn(kernel):
    with Reactor(kernel=kernel, min_wait=0.5) as r:
        pairs = [socket.socketpair() for _ in range(3)]
        turns = []
        for ours, _ in pairs:
            r.adopt(ours, lambda conn, data: turns.append(r.stats().loop_count))
        kernel.meanwhile = lambda: [theirs.send(b'x') for _, theirs in pairs]
        r.run_once()
        assert len(turns) == 3 and len(set(turns)) == 1
        assert kernel.slept == [0.5]
        for _, theirs in pairs:
            theirs.close()


def test_without_a_minimum_wait_the_loop_never_sleeps(kernel):
    with Reactor(kernel=kernel) as r:
        r.call_later(10, int)
        r.run()
    assert kernel.slept == []


def test_a_timer_is_not_late_because_of_the_minimum_wait(kernel):
    fired = []
    with Reactor(kernel=kernel, min_wait=0.5) as r:
        began = r.now
        for delay in 0.2, 0.3, 2.0:
            r.call_later(delay, lambda: fired.append(round(r.now - began, 6)))
        r.run()
    assert fired == [0.2, 0.3, 2.0]
    assert kernel.slept == pytest.approx([0.2, 0.1, 0.5])


def test_calls_that_are_waiting_are_not_delayed(kernel):
    with Reactor(kernel=kernel, min_wait=0.5) as r:
        left = [5]

        def again():
            left[0] -= 1
            if left[0]:
                r.call_soon(again)

        r.call_soon(again)
        r.run()
    assert kernel.slept == []


def test_run_once_sleeps_no_longer_than_its_timeout(kernel):
    with Reactor(kernel=kernel, min_wait=0.5) as r:
        r.call_later(60, int)
        r.run_once(0)
        assert kernel.slept == []
        r.run_once(0.2)
        assert kernel.slept == [0.2]


@pytest.mark.parametrize('make', SELECTORS.values(), ids=list(SELECTORS))
def test_a_call_from_another_thread_and_a_signal_are_handled_after_the_minimum_wait(make):
    handled = []
    with Reactor(make(), min_wait=WAIT) as r:
        r.add_signal_handler(signal.SIGUSR1, handled.append, signal.SIGUSR1).unref()

        def called():
            handled.append('thread')
            r.call_later(WAIT, int)  # the loop ends after the turn that handles the signal
            signal.raise_signal(signal.SIGUSR1)

        def from_thread():
            time.sleep(WAIT / 2)
            r.call_soon_threadsafe(called)

        r.call_later(3 * WAIT, int)
        thread = threading.Thread(target=from_thread)
        thread.start()
        r.run()
        thread.join()
    assert handled == ['thread', signal.SIGUSR1]


def test_a_selector_that_is_replaced_keeps_the_minimum_wait(kernel):
    with Reactor(kernel=kernel, min_wait=0.5) as r:
        r._set_select(r.watchers.source.poll)  # as the loop does when its selector has failed
        r.call_later(1, int)
        r.run()
    assert kernel.slept == [0.5]


@pytest.mark.parametrize('wrong, error', [(-1, ValueError), ('1', TypeError), (float('nan'), ValueError)])
def test_a_minimum_wait_that_is_no_duration_is_refused(wrong, error):
    with pytest.raises(error, match='min_wait must be a'):
        Reactor(min_wait=wrong)
