"""Counters: the meaning of each one, the times of the phases of a turn, and snapshots that do not change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reactor
from reactor import Reactor, Stats
from reactor.loop.counters import COUNTS, GAUGES, TIMES, Counters
from reactor.observe.samples import RATES
from tests.helpers.support import Log, run_until, turns

LISTS = 'timer_lag', 'timer_lag_sum', 'request_seconds', 'request_seconds_sum', 'slow'
OF_SNAPSHOTS = 'handles', 'timers', 'draining', 'drain_connections', 'drain_seconds'


def boom():
    """A callback that raises."""
    raise ValueError('boom')


def test_everything_begins_at_zero(r):
    stats = r.stats().as_dict()
    assert stats.pop('slow') == []
    assert {*stats.pop('timer_lag'), *stats.pop('request_seconds')} == set(stats.values()) == {0}


def test_each_declared_counter_has_a_slot_and_there_are_no_other_slots():
    slots = {name for base in Stats.__mro__ for name in base.__dict__.get('__slots__', ())}
    assert slots == set(Stats.declared) and len(COUNTS) > 30 and len(TIMES) == 5
    assert not hasattr(Counters(), '__dict__')
    with pytest.raises(AttributeError):
        Counters().not_declared = 1


def test_the_live_page_shows_counters_that_are_declared():
    page = (Path(reactor.__file__).parent / 'observe' / 'live.html').read_text()
    shown = {*RATES, *re.findall(r'id="[nr]-(\w+)"', page)} - {'lag', 'workers'}
    assert {'accepts', 'callback_errors', 'bytes_in'} <= shown
    assert shown <= set(Stats.declared), shown - set(Stats.declared)


def test_turns_and_events_are_counted(r, sockets):
    log = Log()
    conns = []
    for _ in range(3):
        ours, theirs = sockets()
        conns.append(r.adopt(ours, log.on_data))
        theirs.send(b'x')
    turns(r, 5)
    stats = r.stats()
    assert (stats.loop_count, stats.events) == (5, 3)
    for conn in conns:
        conn.abort()
    turns(r, 1)


def test_timers_are_counted_when_they_fire_and_when_they_are_cancelled(fake):
    fake.call_later(1, int)
    fake.call_later(2, int).cancel()
    every = fake.call_every(1, int)
    fake.call_later(3.5, every.cancel)
    assert fake.stats().timers == 3
    fake.run()
    stats = fake.stats()
    assert (stats.timers_fired, stats.timers_cancelled, stats.timers) == (5, 2, 0)


@pytest.mark.parametrize('catch_errors', [True, False, print])
def test_exceptions_of_callbacks_are_counted(catch_errors):
    with Reactor(catch_errors=catch_errors) as r:
        r.call_soon(boom)
        r.call_later(0, boom)
        for _ in range(3):
            try:
                r.run()
            except ValueError:
                pass
        assert r.stats().callback_errors == 2


def test_bytes_and_calls_are_counted_in_both_directions(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    theirs.send(b'12345')
    run_until(r, lambda: log)
    conn.write(b'123')
    conn.write(b'4567')
    stats = r.stats()
    assert (stats.reads, stats.bytes_in) == (1, 5)
    assert (stats.writes, stats.bytes_out, stats.short_writes) == (2, 7, 0)
    conn.abort()
    turns(r, 1)


def test_a_send_that_accepts_only_a_part_is_counted(r, sockets):
    conn = r.adopt(sockets()[0])
    conn.write(b'x' * (8 << 20))
    stats = r.stats()
    assert stats.short_writes == 1
    assert stats.bytes_out == (8 << 20) - conn.buffered
    conn.abort()
    turns(r, 1)


def test_accepted_connections_are_counted_and_gauged(r, sockets):
    server = r.listen_tcp('127.0.0.1', 0)
    clients = [sockets.connect(server.address) for _ in range(3)]
    run_until(r, lambda: r.stats().accepts == 3)
    assert (r.stats().incoming, r.stats().handles) == (3, 4)
    for client in clients:
        client.close()
    run_until(r, lambda: r.stats().incoming == 0)
    server.close()
    assert (r.stats().accepts, r.stats().handles) == (3, 0)


def test_handles_are_counted_as_they_are_listed(r, sockets):
    assert r.stats().handles == len(r.handles()) == 0
    parked, watched = r.adopt(sockets()[0]), r.adopt(sockets()[0])
    parked.pause_reading()
    assert r.stats().handles == len(r.handles()) == 2
    watched.abort()
    turns(r, 1)
    assert r.stats().handles == len(r.handles()) == 1
    r.close()
    assert r.stats().handles == len(r.handles()) == 0


def test_the_time_of_a_turn_is_counted_by_phase(fake, kernel, sockets):
    def take(seconds):
        kernel.time += seconds

    ours, theirs = sockets()
    conn = fake.adopt(ours, lambda conn, data: (take(2), conn.close()), on_close=lambda conn, exc: take(16))
    fake.call_soon(take, 8)
    fake.call_later(0, take, 4)
    theirs.send(b'x')
    fake.run_once(0)
    fake.call_later(32, int)
    fake.run()
    stats = fake.stats()
    assert conn.closed
    assert [getattr(stats, name) for name in TIMES] == [32, 2, 4, 8, 16]


def test_time_outside_of_run_is_not_counted(fake, kernel):
    fake.call_later(5, int)
    fake.run_once(1)
    kernel.time += 100
    fake.run_once(0)
    stats = fake.stats()
    assert sum(getattr(stats, name) for name in TIMES) == 1


def test_idle_time_is_the_time_that_the_loop_slept(r):
    r.call_later(0.2, int)
    r.run()
    assert 0.1 < r.stats().idle_time < 5


def test_a_timer_is_counted_under_the_bound_of_its_lateness(kernel):
    with Reactor(kernel=kernel) as r:
        bounds = Stats.lag_bounds
        assert bounds[0] == 1 / 1024 and bounds[-1] == 16  # seconds; each bound is twice the previous one
        for number, bound in enumerate(bounds):
            for late, bucket in (bound - 2**-20, number), (bound, number + 1):
                before = r.stats().timer_lag
                r.call_later(1, int)
                kernel.time += 1 + late
                r.run_once(0)
                counts = [new - old for new, old in zip(r.stats().timer_lag, before, strict=True)]
                assert [index for index, count in enumerate(counts) if count] == [bucket], (bound, late)


def test_lateness_is_summed_when_an_exception_leaves_run(kernel):
    with Reactor(kernel=kernel, catch_errors=False) as r:
        r.call_later(0, boom)
        r.call_later(0, int)
        kernel.time += 2
        with pytest.raises(ValueError):
            r.run()
        kernel.time += 1
        r.run()
        assert r.stats().timer_lag_sum == 5 and sum(r.stats().timer_lag) == 2


def test_a_snapshot_does_not_change(fake):
    before = fake.stats()
    fake.call_soon(int)
    fake.run()
    assert before.loop_count == 0
    assert fake.stats().loop_count == 1


def test_a_snapshot_is_a_dictionary_on_demand(fake):
    stats = fake.stats()
    assert isinstance(stats, Stats)
    assert list(stats.as_dict()) == [*COUNTS, *GAUGES, *TIMES, *LISTS, *OF_SNAPSHOTS]
    assert stats.as_dict()['loop_count'] == stats.loop_count


def test_a_snapshot_shows_every_count_exactly(fake):
    fake.counters.bytes_in = 12_345_678_901
    text = repr(fake.stats())
    assert text.startswith('Stats(loop_count=0, events=0')
    assert 'bytes_in=12345678901' in text


def test_counters_have_only_the_declared_attributes():
    counters = Counters()
    with pytest.raises(AttributeError):
        counters.no_such_count = 1
