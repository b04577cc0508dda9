"""Counters of one reactor and of many: they have the same names, sums are correct, and reading them is cheap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import psutil
import pytest

from reactor import Reactor, ReactorError, observe


def test_a_reactor_is_a_source_with_one_name(fake):
    fake.call_soon(int)
    fake.run()
    figures = observe.source(fake)()
    assert list(figures) == ['0']
    assert figures['0'] == {**fake.stats().as_dict(), 'pid': os.getpid()}
    assert figures['0']['loop_count'] == 1


def test_counters_can_be_sent_as_json(fake):
    fake.counters.count_slow('app.f:1', 0.5)
    figures = observe.source(fake)()
    assert json.loads(json.dumps(figures)) == {
        name: {**one, **{key: list(one[key]) for key in ('timer_lag', 'request_seconds')}}
        for name, one in figures.items()
    }


def test_reading_a_source_in_the_wrong_thread_raises(fake):
    errors = []

    def ask():
        try:
            observe.source(fake)()
        except ReactorError as exc:
            errors.append(str(exc))

    def main(r):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    fake.run(main)
    assert 'another thread' in errors[0]


def test_sums_include_all_reactors():
    with Reactor() as one, Reactor() as another:
        one.counters.bytes_in, another.counters.bytes_in = 5, 7
        one.counters.idle_time, another.counters.idle_time = 1.5, 2.0
        one.counters.incoming = 3
        one.counters.timer_lag[0], another.counters.timer_lag[0], another.counters.timer_lag[15] = 1, 2, 4
        total = observe.combined([observe.source(one)()['0'], json.loads(json.dumps(observe.source(another)()['0']))])
    assert (total['bytes_in'], total['idle_time'], total['incoming']) == (12, 3.5, 3)
    assert list(total['timer_lag']) == [3, *[0] * 14, 4]
    assert set(total) == set(one.stats().as_dict())


def test_slow_places_are_merged_by_place_and_the_most_frequent_come_first():
    figures = [
        {'slow': [['a', 3, 0.5], ['b', 1, 9.0]]},
        {'slow': [['b', 5, 0.1], *[[f'c{n}', 1, 0.2] for n in range(20)]]},
    ]
    slow = observe.combined(figures)['slow']
    assert slow[:2] == [['b', 6, 9.0], ['a', 3, 0.5]]
    assert len(slow) == 20


def test_the_sum_of_no_reactors_has_all_the_names(fake):
    assert observe.combined([]).keys() == fake.stats().as_dict().keys()
    assert observe.combined([])['bytes_in'] == 0


def test_memory_is_the_resident_memory_of_the_process():
    # The mapped address space, most of which is not in use, would be several times as large.
    assert observe.memory(os.getpid()) == pytest.approx(psutil.Process().memory_info().rss, abs=4 << 20)


def test_the_memory_of_a_process_that_has_ended_is_none():
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    assert observe.memory(child.pid) is None


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='without /proc, another program reads the memory')
def test_no_program_is_started_to_read_the_memory_of_a_process_that_has_ended(monkeypatch):
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    started = []
    monkeypatch.setattr(subprocess, 'run', lambda *args, **options: started.append(args))
    assert observe.memory(child.pid) is None and started == []


def test_importing_observe_does_not_load_json_or_the_prometheus_library():
    code = 'import sys; from reactor import observe; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=30)
    assert not set(loaded.stdout.split()) & {'json', 'prometheus_client', 'reactor.observe.metrics'}


def test_an_unknown_name_raises_an_attribute_error():
    with pytest.raises(AttributeError, match='no_such_part'):
        _ = observe.no_such_part
