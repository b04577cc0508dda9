"""Rates, shares, lateness and memory for the live page, computed from the counters of reactors."""

from __future__ import annotations

import os

import pytest

from reactor import Reactor
from reactor.loop.counters import COUNTS, GAUGES, LAG_BUCKETS, TIMES
from reactor.observe import samples, source, top
from reactor.observe.commands import phases_of
from reactor.observe.counters import utilisation
from reactor.observe.samples import FIELDS, WORKER_FIELDS, Sampler, lateness

NO_PROCESS = 2**22 + 1  # above the largest possible process id


@pytest.fixture
def clock(monkeypatch):
    """A fake clock for the sampler, which also sets the memory and the CPU time of all processes."""

    class Clock:
        now, memory, cpu = 100.0, 10_000_000, 1.0

    monkeypatch.setattr(samples, 'HAS_PROC', True)
    monkeypatch.setattr(samples, 'monotonic', lambda: Clock.now)
    monkeypatch.setattr(samples, 'memory', lambda pid: Clock.memory)
    monkeypatch.setattr(samples, 'cpu_seconds', lambda pid: Clock.cpu)
    return Clock


def figures(pid=NO_PROCESS, lag=(), **values):
    zero = dict.fromkeys((*COUNTS, *GAUGES, 'timers', 'handles', 'requests'), 0) | dict.fromkeys(TIMES, 0.0)
    buckets = [0] * LAG_BUCKETS
    for index, count in lag:
        buckets[index] = count
    return {**zero, 'timer_lag': buckets, 'slow': [], 'pid': pid, **values}


class Source(dict):
    """A source with counters that the test sets."""

    def __call__(self):
        return dict(self)


def row(sample):
    return dict(zip(FIELDS, sample['row'], strict=True))


def worker(sample, name='0'):
    (found,) = [each for each in sample['workers'] if each[0] == name]
    return dict(zip(WORKER_FIELDS, found, strict=True))


def test_rates_use_the_clock_of_the_loop_and_not_that_of_the_sampler(clock):
    counters = Source({'0': figures(idle_time=5.0, requests=100, reads=300)})
    sampler = Sampler(counters)
    counters['0'] = figures(idle_time=6.5, dispatch_time=0.3, timers_time=0.2, requests=300, reads=700)
    clock.now += 1  # the counters, however, cover two seconds of the loop's clock
    sample = sampler.sample()
    assert sample['rates']['requests'] == row(sample)['requests'] == 100
    assert sample['rates']['reads'] == row(sample)['reads'] == 200 and sample['counted'] == 'requests'
    assert (row(sample)['dispatch'], row(sample)['timers'], row(sample)['soon']) == (0.15, 0.1, 0)
    assert row(sample)['busiest'] == worker(sample)['utilisation'] == 0.25


def test_in_the_first_sample_values_that_need_two_samples_are_none():
    counters = Source({'0': figures(incoming=3)})
    first = Sampler(counters).sample()
    assert row(first)['incoming'] == 3
    assert [row(first)[name] for name in ('requests', 'dispatch', 'utilisation', 'busiest', 'lag_p99')] == [None] * 5


def test_a_worker_without_new_counters_keeps_its_values_for_three_seconds(clock):
    counters = Source({'0': figures()})
    sampler = Sampler(counters)
    counters['0'] = figures(idle_time=1.0, requests=10)
    clock.now += 1
    assert row(sampler.sample())['requests'] == 10
    clock.now += 3
    held = sampler.sample()
    assert row(held)['requests'] == 10 and worker(held)['silent'] == 0
    clock.now += 0.5
    silent = sampler.sample()
    assert row(silent)['requests'] is None and worker(silent)['utilisation'] is None and worker(silent)['silent'] == 3


def test_a_successor_counts_from_its_own_start(clock):
    counters = Source({'0': figures(idle_time=50.0, requests=9000)})
    sampler = Sampler(counters)
    counters['0'] = figures(pid=NO_PROCESS + 1, idle_time=60.0, requests=9001)
    assert row(sampler.sample())['requests'] is None
    counters['0'] = figures(pid=NO_PROCESS + 1, idle_time=1.0, requests=4)  # a restarted process can have the same id
    assert row(sampler.sample())['requests'] is None
    counters['0'] = figures(pid=NO_PROCESS + 1, idle_time=2.0, requests=9)
    assert row(sampler.sample())['requests'] == 5


def test_a_worker_that_has_ended_is_left_out(clock):
    counters = Source({'0': figures(incoming=1), '1': figures(incoming=2)})
    sampler = Sampler(counters)
    assert row(sampler.sample())['incoming'] == 3
    del counters['1']
    sample = sampler.sample()
    assert row(sample)['incoming'] == 1 and [each[0] for each in sample['workers']] == ['0']
    counters.clear()
    empty = sampler.sample()
    assert row(empty)['incoming'] == 0 and row(empty)['busiest'] is None and empty['workers'] == []


def test_several_loops_are_combined_by_sums_and_means_and_the_busiest_is_reported(clock):
    counters = Source({'a': figures(), 'b': figures()})
    sampler = Sampler(counters)
    counters['a'] = figures(idle_time=1.0, requests=10, lag=[(0, 98)])
    counters['b'] = figures(idle_time=0.25, dispatch_time=0.75, requests=20, lag=[(4, 2)])
    sample = sampler.sample()
    assert row(sample)['requests'] == 30
    assert row(sample)['dispatch'] == 0.375 and row(sample)['busiest'] == 0.75
    assert (row(sample)['lag_p50'], row(sample)['lag_p99'], row(sample)['lag_max']) == (0, 4, 4)


def test_reads_are_shown_until_a_request_is_counted(clock):
    counters = Source({'0': figures()})
    sampler = Sampler(counters)
    counters['0'] = figures(idle_time=1.0, reads=7)
    sample = sampler.sample()
    assert sample['counted'] == 'reads' and row(sample)['reads'] == worker(sample)['rate'] == 7
    counters['0'] = figures(idle_time=2.0, reads=14, requests=1)
    assert sampler.sample()['counted'] == 'requests'


@pytest.mark.parametrize('counts, expected', [
    ([], [None, None, None]),
    ([[0] * 4], [None, None, None]),
    ([[100, 0, 0, 0]], [0, 0, 0]),
    ([[99, 1, 0, 0]], [0, 0, 1]),
    ([[98, 2, 0, 0]], [0, 1, 1]),
    ([[1, 1, 0, 1]], [1, 3, 3]),
    ([[0, 0, 0, 1]], [3, 3, 3]),
    ([[1, 0, 0, 0], [], [0, 0, 2, 0]], [2, 2, 2]),
])  # fmt: skip
def test_lateness_is_the_bound_of_the_bucket_that_holds_the_quantile(counts, expected):
    assert lateness(counts) == expected


def test_memory_per_connection_is_growth_divided_by_new_connections(clock):
    counters = Source({'0': figures(incoming=50)})
    sampler = Sampler(counters)
    assert row(sampler.sample())['per_connection'] is None
    counters['0'], clock.memory = figures(incoming=1050), 10_500_000
    assert row(sampler.sample())['per_connection'] == 500
    counters['0'] = figures(incoming=10)  # the process has not returned the memory to the kernel
    sample = sampler.sample()
    assert row(sample)['memory'] == 10_500_000
    counters['0'], clock.memory = figures(incoming=1050), 10_400_000
    # Growth is measured from the sample with the fewest connections. At that time, the process used more memory.
    assert row(sampler.sample())['per_connection'] == 0
    counters['0'] = figures(incoming=1000, base_memory=10_000_000)
    # A base that was measured before any connection was open is preferred.
    assert row(sampler.sample())['per_connection'] == 381
    assert 'base_memory' not in sampler.sample()['totals']


def test_unknown_memory_is_none_and_no_program_is_started_to_read_it(clock, monkeypatch):
    monkeypatch.setattr(samples, 'HAS_PROC', False)
    monkeypatch.setattr(samples, 'memory', lambda pid: pytest.fail('asked'))
    sample = Sampler(Source({'0': figures(incoming=500, base_memory=1)})).sample()
    assert row(sample)['memory'] is None and row(sample)['per_connection'] is None


def test_cpu_is_measured_over_at_least_half_a_second(clock):
    counters = Source({'0': figures()})
    sampler = Sampler(counters)
    assert row(sampler.sample())['cpu'] is None
    clock.now, clock.cpu = clock.now + 2, clock.cpu + 0.5
    assert row(sampler.sample())['cpu'] == worker(sampler.sample())['cpu'] == 0.25
    clock.now += 0.1
    assert row(sampler.sample())['cpu'] == 0.25


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='CPU time is read from /proc')
def test_cpu_time_can_be_read_whatever_the_name_of_the_process(tmp_path):
    import subprocess
    import sys

    # If the line were split from the left, a name with a bracket and spaces would shift the fields.
    name = tmp_path / 'a) b (c'
    name.symlink_to(sys.executable)
    with subprocess.Popen([name, '-c', 'sum(range(10**7)); print(flush=True); input()'],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # fmt: skip
        process.stdout.readline()
        assert 0 < samples.cpu_seconds(process.pid) < 60
        process.communicate(b'\n')
    assert samples.cpu_seconds(NO_PROCESS) is None
    assert samples.cpu_seconds(os.getpid()) > 0


def test_time_never_goes_back_even_if_the_system_clock_does(clock, monkeypatch):
    sampler = Sampler(Source())
    first = row(sampler.sample())['time']
    monkeypatch.setattr(samples, 'time', lambda: 0.0)
    clock.now += 1
    assert row(sampler.sample())['time'] == first + 1000


def test_a_sample_can_be_made_from_the_counters_of_a_real_reactor():
    with Reactor() as r:
        sampler = Sampler(source(r))
        r.call_later(0.05, r.stop)
        r.run()
        sample = sampler.sample()
        assert 0 <= row(sample)['busiest'] < 1
        assert row(sample)['lag_p99'] is not None
        assert sample['totals']['timers_fired'] == 1
        assert sample['slow'] == []


@pytest.mark.parametrize('idle, total, expected', [
    (1.0, 1.0, 0.0), (0.0, 2.0, 1.0), (0.75, 1.0, 0.25), (0.0, 0.0, None), (1.0000001, 1.0, 0.0),
])  # fmt: skip
def test_utilisation_is_the_share_of_the_time_in_which_a_loop_does_not_wait(idle, total, expected):
    assert utilisation(idle, total) == expected


def test_the_page_and_the_table_in_the_terminal_show_the_same_utilisation(clock):
    before, after = figures(idle_time=5.0, soon_time=1.0), figures(idle_time=5.6, soon_time=1.1, timers_time=0.3)
    counters = Source({'0': before})
    sampler = Sampler(counters)
    counters['0'] = after
    answers = [phases_of({'clock': 0.0, 'workers': {'0': one}, 'sum': one}) for one in (before, after)]
    assert '0: 40.0% busy' in top.lines(answers[1], answers[0])[0]
    assert row(sampler.sample())['utilisation'] == 0.4


def test_the_utilisation_of_several_loops_is_their_mean(clock):
    counters = Source({'a': figures(), 'b': figures()})
    sampler = Sampler(counters)
    counters['a'], counters['b'] = figures(idle_time=1.0), figures(idle_time=0.5, dispatch_time=1.5)
    sample = sampler.sample()
    assert row(sample)['utilisation'] == 0.375 and row(sample)['busiest'] == 0.75
    assert [worker(sample, name)['utilisation'] for name in 'ab'] == [0, 0.75]
