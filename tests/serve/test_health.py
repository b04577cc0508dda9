"""The state of a service and of its workers: serving, starting, draining, restarting, hung."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from reactor.serve.health import LATE, STATES, Health, WorkerState

if os.name != 'posix':
    pytest.skip('workers inherit descriptors, which this platform does not support', allow_module_level=True)

from tests.serve.test_serve import Served, wait_until


def states(served) -> dict[str, str]:
    return {worker['name']: worker['state'] for worker in served.look()['health']['workers']}


def health(*found: str, draining: bool = False, replaces_hung: bool = True) -> Health:
    return Health(draining, [WorkerState(str(n), state) for n, state in enumerate(found)], {}, replaces_hung)


@pytest.mark.parametrize('state', STATES)
def test_a_service_is_ready_while_a_worker_serves(state):
    assert health(state).ready is (state == 'serving')
    assert health(state, 'serving').ready
    assert not health(state, 'serving', draining=True).ready
    assert not health().ready


@pytest.mark.parametrize('state', STATES)
def test_a_restart_helps_only_when_all_workers_hang_for_good(state):
    assert health(state, 'hung', replaces_hung=False).stuck is (state == 'hung')
    assert not health(state, 'hung').stuck  # the parent replaces them
    assert not health(replaces_hung=False).stuck


def test_each_worker_has_its_state_its_start_time_and_the_age_of_its_report(tmp_path):
    before = time.time()
    with Served(tmp_path, run={'workers': 2}) as served:
        pids = served.pids(2)
        found = served.look()['health']
        assert found['draining'] is False and found['restarts'] == {'0': 0, '1': 0}
        for worker in found['workers']:
            assert worker['state'] == 'serving' and worker['pid'] == pids[worker['name']]
            assert before <= worker['started'] <= time.time()
            assert 0 <= worker['report_age'] < 3


def test_a_worker_that_does_not_report_is_hung_within_five_seconds(tmp_path):
    with Served(tmp_path, run={'workers': 2}) as served:
        pids = served.pids(2)
        os.kill(pids['1'], signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: states(served) == {'0': 'serving', '1': 'hung'})
        assert time.monotonic() - stopped < 5
        (age,) = [worker['report_age'] for worker in served.look()['health']['workers'] if worker['name'] == '1']
        assert age > LATE
        os.kill(pids['1'], signal.SIGCONT)
        wait_until(lambda: states(served) == {'0': 'serving', '1': 'serving'})


def test_a_slot_that_waits_to_restart_its_worker_is_restarting_and_failures_are_counted(tmp_path):
    fail = tmp_path / 'fail'
    with Served(tmp_path, fail=str(fail)) as served:
        pid = served.pids()['0']
        fail.touch()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: states(served) == {'0': 'restarting'})
        wait_until(lambda: served.look()['health']['restarts']['0'] >= 3)
        fail.unlink()
        wait_until(lambda: states(served) == {'0': 'serving'})


def test_a_predecessor_that_drains_keeps_its_counters_under_its_own_name(tmp_path):
    with Served(tmp_path) as served:
        conn = served.connect()
        old = conn.pid()
        idle = [served.connect() for _ in range(3)]
        assert all(other.pid() == old for other in idle)
        conn.send('wait 60')
        served.send(signal.SIGHUP)
        wait_until(lambda: states(served) == {'0': 'serving', f'0-{old}': 'draining'})
        stats = wait_until(lambda: (found := served.look()['stats']).get(f'0-{old}', {}).get('draining') and found)
        assert stats['0']['pid'] != old and stats['0']['draining'] == 0
        # The three idle connections are closed, and one is busy.
        stats = wait_until(lambda: (found := served.look()['stats'])[f'0-{old}']['drain_connections'] == 1 and found)
        assert 0 < stats[f'0-{old}']['drain_seconds'] <= 5
        wait_until(lambda: states(served) == {'0': 'serving'})  # after the timeout, the client is reset
        assert set(served.look()['stats']) == {'0'} and served.log.count('\n') == 0


def test_while_the_whole_service_drains_its_workers_keep_their_names_and_counters(tmp_path):
    with Served(tmp_path, run={'workers': 2, 'drain_timeout': 20}) as served:
        pids = served.pids(2)
        conns = [served.connect() for _ in range(20)]
        for conn in conns:
            conn.ask()
        owed = next(conn for conn in conns if conn.pid() == pids['1'])
        owed.send('wait 6')
        wait_until(lambda: served.look()['stats']['1']['requests'])
        served.send(signal.SIGTERM)
        found = wait_until(lambda: (found := served.look())['health']['draining'] and found)
        assert {worker['state'] for worker in found['health']['workers']} == {'draining'}
        wait_until(lambda: len(served.look()['stats']) == 1)
        assert states(served) == {'1': 'draining'}
        assert wait_until(lambda: served.look()['stats']['1']['drain_connections'] == 1)
        assert 5 < served.look()['stats']['1']['drain_seconds'] < 20
        assert served.ended() == 0


def test_the_state_of_a_service_can_be_sent_as_json(tmp_path):
    found = health('serving', 'hung').as_dict()
    assert json.loads(json.dumps(found)) == found and set(found) == {
        'draining', 'workers', 'restarts', 'reload_failed', 'log_lines_lost',
    }  # fmt: skip
