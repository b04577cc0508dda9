"""Counters of workers that run another version of this library: a name may be missing, or unknown."""

from __future__ import annotations

import pytest

from reactor import Reactor, observe
from reactor.observe.samples import Sampler
from reactor.observe.tables import TABLES
from tests.observe.test_observe_control import Client, path  # noqa: F401

prometheus_client = pytest.importorskip(
    'prometheus_client', reason='NOT TESTED: metrics; pip install prometheus_client'
)

from tests.observe.test_observe_metrics import exposed  # noqa: E402


def counters():
    with Reactor() as r:
        return observe.source(r)()['0']


NAMES = sorted(counters())
OTHERS = {
    'a new count': {'parsed': 7},
    'a new text': {'version': '9.9'},
    'a new list': {'sizes': [1, 2, 3]},
    'a histogram with more buckets': {'timer_lag': [1] * 20, 'request_seconds': [1] * 30},
    'a histogram with fewer buckets': {'timer_lag': [1] * 3, 'request_seconds': []},
}


def workers(missing=(), **more):
    """A worker of this version and one of another."""
    other = {name: value for name, value in counters().items() if name not in missing} | more
    return {'0': counters(), '1': other}


@pytest.mark.parametrize('missing', [*([name] for name in NAMES), NAMES], ids=[*NAMES, 'all'])
def test_a_counter_that_a_worker_lacks_is_left_out_for_this_worker_only(missing):
    found = workers(missing)
    complete = exposed(lambda: {'0': found['0']}).keys()
    metrics = exposed(lambda: found).keys()
    assert {key for key in metrics if 'worker=1' not in key} == complete
    theirs = {(key[0], *(label.replace('worker=1', 'worker=0') for label in key[1:])) for key in metrics}
    assert theirs == complete  # nothing but what worker 0 has


@pytest.mark.parametrize('more', OTHERS.values(), ids=OTHERS)
def test_a_counter_that_is_not_declared_is_ignored(more):
    found = workers(**more)
    metrics = exposed(lambda: found)
    assert metrics['reactor_turns_total', 'worker=1'] == found['1']['loop_count']
    assert not any('parsed' in key[0] or 'sizes' in key[0] for key in metrics)


@pytest.mark.parametrize('found', [workers(NAMES), *(workers(**more) for more in OTHERS.values())])
def test_the_control_socket_and_the_live_page_do_not_need_it_either(r, path, sockets, found):  # noqa: F811
    door = observe.serve_control(r, path, source=lambda: found)
    client = Client(r, sockets, path)
    for command in 'stats', 'phases':
        answer = client.ask(command)
        assert answer['ok'], answer
        assert TABLES[command](answer, answer)
    found['1'].setdefault('pid', 1 << 22)
    sampler = Sampler(lambda: found)
    found = {**found, '1': {**found['1'], 'idle_time': found['1'].get('idle_time', 0) + 1}}
    assert len(sampler.sample()['workers']) == 2
    door.close()
    r.run_once(0)
