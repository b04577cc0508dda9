"""Simulated threads: `time.sleep` lets simulated time pass, blocking calls are refused, and every thread ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from reactor.testing import Simulation, SimulationFailed
from tests.testing.test_reality import check_restored

PROFILES = 'default', 'hostile'


def sleeper(world, seconds=5.0):
    """A thread sleeps, and the loop goes on in the meantime."""
    began, seen = world.kernel.time, []

    def work():
        time.sleep(seconds)
        return len(seen)

    def done(result, error):
        took = (world.kernel.time - began) / 1e9
        if error is not None or result != 4 or not seconds <= took < seconds + 1:
            world.fail(f'{result}, {error} after {took} s')

    for number in range(1, 5):
        world.r.call_later(number, seen.append, number)
    world.r.run_in_thread(work, on_done=done)


@pytest.mark.parametrize('profile', PROFILES)
def test_sleep_in_a_thread_lets_simulated_time_pass(profile):
    began = time.perf_counter()
    for seed in range(20):
        Simulation(seed, faults=False, profile=profile).run_program(sleeper)
    assert time.perf_counter() - began < 50  # 100 simulated seconds


def test_a_sleep_is_not_cut_short_by_a_thread_that_preempts_the_loop():
    def program(world):
        def work():
            began = world.kernel.time
            time.sleep(5)
            slept.append((world.kernel.time - began) / 1e9)

        for delay in range(5):
            world.r.call_later(delay, world.r.run_in_thread, work)
        for tick in range(200):
            world.r.call_later(tick / 20, int)

    for seed in range(20):
        slept = []
        Simulation(seed, profile='hostile', faults=('thread.preempts', 'thread.paused')).run_program(program)
        assert len(slept) == 5
        assert all(5 <= seconds < 6 for seconds in slept)


@pytest.mark.parametrize('profile', PROFILES)
def test_sleeping_threads_run_in_the_same_way_each_time(profile):
    def program(world):
        def work(number):
            for _ in range(3):
                time.sleep(0.01 * number)
                order.append(number)
                world.r.call_soon_threadsafe(world.note, str(number))

        order = []
        for number in range(1, 4):
            world.r.run_in_thread(work, number)
        world.r.call_later(50, lambda: world.note(repr(order)))

    hashes = [[Simulation(s, profile=profile).run_program(program).trace_hash() for s in range(10)] for _ in range(2)]
    assert hashes[0] == hashes[1]


def test_a_thread_can_wait_in_a_loop_of_short_sleeps():
    def program(world):
        def work():
            while not ready:
                time.sleep(0)
            return 'ready'

        ready = []
        world.r.run_in_thread(work, on_done=lambda result, error: results.append(result))
        world.r.call_later(0.5, ready.append, True)

    results = []
    Simulation(1, faults=False).run_program(program)
    assert results == ['ready']


def test_a_negative_sleep_is_an_error_in_a_thread():
    def program(world):
        world.r.run_in_thread(
            time.sleep, -1, on_done=lambda result, error: type(error) is ValueError or world.fail(repr(error))
        )

    Simulation(1, faults=False).run_program(program)


def test_threads_of_a_killed_process_do_not_go_on():
    went_on = []

    def program(world):
        def main(other):
            other.r.run_in_thread(work)

        def work():
            time.sleep(5)
            went_on.append(True)

        world.r.call_later(2, world.process(main, kills=False).kill)
        world.r.call_later(20, int)

    Simulation(1, faults=False).run_program(program)
    assert not went_on


@pytest.mark.parametrize('profile', PROFILES)
def test_another_blocking_call_in_a_thread_is_refused_with_what_to_do_there(profile):
    def program(world):
        world.r.run_in_thread(socket.create_connection, ('127.0.0.1', 9))
        world.r.run_in_thread(fetch)

    def fetch():
        socket.create_connection(('127.0.0.1', 9))

    with pytest.raises(SimulationFailed) as failed:
        Simulation(1, faults=False, profile=profile).run_program(program)
    text = str(failed.value)
    assert 'test_simulated_threads.py:' in text
    assert 'In the test, replace the blocking function by one that calls time.sleep' in text
    assert 'r.connect_tcp' not in text
    check_restored()


def test_a_thread_sleeps_in_real_time_if_that_is_allowed():
    began = time.perf_counter()
    Simulation(1, faults=False, allow_real=True).run(lambda r: r.run_in_thread(time.sleep, 0.2))
    assert time.perf_counter() - began >= 0.2


# What a thread does when it is ended. Each calls `call`, which suspends it at random.
STUBBORN = {
    'ends': """
def work():
    call()
""",
    'catches everything once': """
def work():
    try:
        call()
    except BaseException:
        call()
""",
    'goes on': """
def work():
    while True:
        call()
""",
    'catches everything': """
def work():
    while True:
        try:
            call()
        except BaseException:
            pass
""",
    'calls at the end': """
def work():
    try:
        while True:
            call()
    finally:
        try:
            call()
        finally:
            time.sleep(1)
""",
    'waits for ever': """
def work():
    try:
        while True:
            call()
    finally:
        threading.Event().wait()
""",
}
PROGRAM = """
import threading, time
from reactor.testing import Simulation, SimulationFailed, reality

def program(world):
    global call
    def call():
        world.r.call_soon_threadsafe(called)
    def called():
        if world.random.random() < 0.3:
            world.fail('too early')
    for number in range(4):
        world.r.run_in_thread(work)

failed = 0
for seed in range(16, 23):
    try:
        Simulation(seed, profile='hostile', faults=('thread.paused', 'thread.preempts')).run_program(program)
    except SimulationFailed as exc:
        failed += 'too early' in str(exc)
assert failed > 1, failed
assert not isinstance(time.sleep, reality.Refused)
print('ended')
"""


@pytest.mark.parametrize('kind', list(STUBBORN))
def test_a_run_that_fails_ends_whatever_its_threads_do(kind):
    code = STUBBORN[kind] + PROGRAM
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == 'ended\n', done.stderr
