"""Time limits in one-second buckets: never early, at most a second late, with one timer for all members."""

from __future__ import annotations

import gc
import weakref
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reactor import IdleTimeout
from reactor.loop.buckets import LOOKS_PER_TURN
from reactor.loop.counters import Counters
from reactor.loop.timers import TimerHeap
from tests.helpers.support import FakeKernel, Log, run_short


class Member:
    """A member that records the times of its checks, and calls `on_look(member)` after each."""

    def __init__(self, on_look=None):
        self.looks = []
        self.on_look = on_look

    def handle_look(self, now):
        self.looks.append(now)
        if self.on_look is not None:
            self.on_look(self)


@pytest.fixture
def buckets(fake):
    """The buckets of a reactor that is kept running by a timer."""
    fake.call_later(1000, int)
    return fake.timers.buckets


@pytest.mark.parametrize('when', [1001, 1001.0, 1001.001, 1001.5, 1001.999])
def test_a_member_is_checked_in_the_first_full_second_after_its_deadline(fake, buckets, when):
    member = Member()
    second = buckets.add(member, when)
    assert when <= second < when + 1
    fake.run()
    assert member.looks == [second]


@given(st.lists(st.floats(1000, 1100), max_size=20), st.floats(0.05, 3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_member_is_checked_once_never_early_and_less_than_a_second_late(times, step):
    kernel = FakeKernel()
    heap = TimerHeap(kernel.clock, Counters(), int)
    members = [Member() for _ in times]
    for member, when in zip(members, times, strict=True):
        heap.buckets.add(member, when)
    while kernel.time < 1102:
        kernel.time += step
        heap.collect(kernel.time)
        while heap.due:
            timer = heap.due.popleft()
            if timer.deadline is not None:
                timer.handle_due(kernel.time)
                timer.fn(*timer.args)
    for member, when in zip(members, times, strict=True):
        assert len(member.looks) == 1
        assert 0 <= member.looks[0] - when < 1 + step
    assert len(heap.buckets) == len(heap) == 0


def test_many_members_need_one_timer(fake, buckets):
    for number in range(1000):
        buckets.add(Member(), 1001 + number % 50)
    assert len(buckets) == 1000
    assert len(fake.timers) == 2


def test_a_member_does_not_keep_run_running(fake, kernel):
    member = Member()
    fake.timers.buckets.add(member, 1005)
    assert fake.run() is True
    assert kernel.time == 1000
    assert member.looks == []


def test_a_discarded_member_is_not_checked(fake, buckets):
    member, other = Member(), Member()
    buckets.discard(member, buckets.add(member, 1002))
    buckets.add(other, 1003)
    fake.run()
    assert (member.looks, other.looks) == ([], [1003])


def test_discarding_the_last_member_cancels_the_timer(fake, buckets):
    member = Member()
    buckets.discard(member, buckets.add(member, 1002))
    assert len(buckets) == 0
    assert len(fake.timers) == 1


def test_discarding_an_unknown_member_does_nothing(buckets):
    member = Member()
    buckets.discard(member, 1002)
    second = buckets.add(member, 1002)
    buckets.discard(Member(), second)
    buckets.discard(member, second)
    buckets.discard(member, second)
    assert len(buckets) == 0


def test_the_timer_moves_to_an_earlier_second_and_back(fake, buckets, kernel):
    late, early = Member(), Member()
    buckets.add(late, 1050)
    assert fake.timeout() == 50
    second = buckets.add(early, 1010)
    assert fake.timeout() == 10
    buckets.discard(early, second)
    assert fake.timeout() == 50
    fake.run_once(60)
    assert (late.looks, early.looks) == ([1050], [])


def test_a_member_may_ask_to_be_checked_again(fake, buckets, kernel):
    def again(member):
        if len(member.looks) < 3:
            buckets.add(member, kernel.time + 2.5)

    member = Member(again)
    buckets.add(member, 1001)
    fake.run()
    assert member.looks == [1001, 1004, 1007]


def test_missed_seconds_are_all_checked_in_order(fake, buckets, kernel):
    order = []
    for second in 1005, 1002, 1008, 1003:
        buckets.add(Member(lambda member, second=second: order.append(second)), second)
    kernel.time = 1006
    fake.run_once(0)
    assert order == [1002, 1003, 1005]


def test_a_member_discarded_by_the_check_of_another_one_in_its_second_is_not_checked(fake, buckets):
    second = Member()
    first = Member(lambda member: buckets.discard(second, 1002))
    buckets.add(first, 1002)
    buckets.add(second, 1002)
    fake.run()
    assert (first.looks, second.looks) == ([1002], [])


def test_a_member_discarded_by_the_check_of_one_in_an_earlier_second_is_not_checked(fake, buckets, kernel):
    second = Member()
    first = Member(lambda member: buckets.discard(second, 1003))
    third = Member()
    buckets.add(first, 1002)
    buckets.add(second, 1003)
    buckets.add(third, 1004)
    kernel.time = 1010
    fake.run_once(0)
    assert (first.looks, second.looks, third.looks) == ([1010], [], [1010])
    assert fake.stats().callback_errors == 0


@pytest.mark.parametrize('count', [500, 1000, 2000])
def test_a_turn_checks_a_bounded_number_of_members_and_serves_others_in_between(fake, buckets, kernel, count):
    members = [Member() for _ in range(count)]
    for member in members:
        buckets.add(member, 1002)
    kernel.time = 1002
    looked, others, each_turn = 0, [], []
    while looked < count:
        fake.call_soon(others.append, looked)
        fake.run_once(0)
        now = sum(len(member.looks) for member in members)
        each_turn.append(now - looked)
        looked = now
        assert len(each_turn) <= count, 'the buckets make no progress'
    assert max(each_turn) == LOOKS_PER_TURN
    assert len(each_turn) == len(others) == ceil(count / LOOKS_PER_TURN)
    assert all(member.looks == [1002] for member in members)
    assert len(buckets) == 0


def test_a_member_that_is_due_in_a_later_turn_can_be_discarded_first(fake, buckets, kernel):
    members = [Member() for _ in range(LOOKS_PER_TURN + 10)]
    for member in members:
        second = buckets.add(member, 1002)
    kernel.time = 1002
    fake.run_once(0)
    buckets.discard(members[-1], second)
    fake.run_once(0)
    assert [len(member.looks) for member in members] == [1] * (len(members) - 1) + [0]


def test_connections_idle_since_the_same_second_end_over_several_turns(fake, kernel, sockets):
    log = Log()
    for _ in range(LOOKS_PER_TURN + 1):
        fake.adopt(sockets()[0], on_close=log.on_close, idle_timeout=10)
    kernel.time += 11
    fake.run_once(0)
    assert len(log) == LOOKS_PER_TURN
    fake.run_once(0)
    assert [type(exc) for _, exc in log] == [IdleTimeout] * (LOOKS_PER_TURN + 1)


def test_clearing_removes_all_members(fake, buckets):
    member = Member()
    buckets.add(member, 1002)
    buckets.clear()
    fake.run()
    assert member.looks == []
    assert len(buckets) == 0


class Counted(int):
    """An int that counts how often such ints are compared."""

    comparisons = 0

    def __lt__(self, other):
        Counted.comparisons += 1
        return int(self) < other

    def __gt__(self, other):
        Counted.comparisons += 1
        return int(self) > other

    def __ceil__(self):
        return self


@pytest.mark.parametrize('order', [1, -1], ids=['ascending', 'descending'])
def test_twice_as_many_seconds_cost_little_more_than_twice_the_comparisons(fake, buckets, kernel, order):
    # Regression: each second that was added or removed used to be compared with all others; 4,000 of them took 2.3 s.
    cost = []
    for count in 100, 200, 400:
        Counted.comparisons = 0
        added = [
            (member, buckets.add(member, Counted(5000 + n))) for n in range(count)[::order] for member in [Member()]
        ]
        for member, second in added:
            buckets.discard(member, second)
        for n in range(count)[::order]:
            buckets.add(Member(), Counted(1001 + n))
        kernel.time += count + 1
        while len(buckets):
            fake.run_once(0)
        kernel.time -= count + 1
        cost.append(Counted.comparisons)
    assert cost[1] < 2.5 * cost[0] and cost[2] < 2.5 * cost[1], cost


def test_seconds_that_were_added_and_removed_are_forgotten(fake, buckets):
    """An earlier second stays first in the heap, so the removed seconds are never dropped from its front."""
    buckets.add(Member(), 1001)
    for _ in range(3):
        for second in range(2000, 3000):
            member = Member()
            buckets.discard(member, buckets.add(member, second))
    assert len(buckets) == 1
    assert len(buckets._seconds) < 100
    buckets.clear()
    assert not buckets._seconds


def test_a_member_is_not_referenced_after_its_check(fake, buckets):
    member = Member()
    ref = weakref.ref(member)
    buckets.add(member, 1002)
    del member
    gc.disable()
    try:
        fake.run()
        assert ref() is None
    finally:
        gc.enable()


@pytest.mark.scenario(78)
def test_bytes_of_a_connection_with_a_timeout_cost_no_timer_operation(fake, kernel, sockets):
    log = Log()
    ours, theirs = sockets()
    fake.adopt(ours, log.on_data, on_close=log.on_close, idle_timeout=10)
    heap = list(fake.timers.heap)
    for _ in range(100):
        theirs.send(b'x')
        fake.run_once(0)
    assert log.names() == ['data'] * 100
    assert fake.timers.heap == heap


def test_an_idle_connection_is_closed_by_its_bucket(fake, kernel, sockets):
    log = Log()
    fake.adopt(sockets()[0], on_close=log.on_close, idle_timeout=10.5)
    fake.call_later(60, int)
    while not log:
        fake.run_once()
    assert 1010.5 <= kernel.time < 1011.5
    assert isinstance(log[0][1], IdleTimeout)


def test_a_member_is_not_added_when_there_is_no_memory_for_its_timer(fake, buckets, monkeypatch):
    first, second = Member(), Member()
    run_short(monkeypatch, TimerHeap, 'add')
    with pytest.raises(MemoryError):
        buckets.add(first, 1005)
    assert len(buckets) == 0
    buckets.add(second, 1005)
    fake.run()
    assert (first.looks, second.looks) == ([], [1005])
