"""Workers that leave in unusual ways: by themselves, or stopped while they drain; and the length of their queues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.observe.test_health_pages import Service

LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux shows the queues of listening sockets')


@pytest.mark.parametrize('lame_duck', [0, 1])
def test_an_idle_worker_that_is_sent_sigterm_is_replaced_and_is_no_failure(tmp_path, lame_duck):
    with Service(tmp_path, lame_duck=lame_duck) as service:
        old = service.until(lambda: len(found := service.pids()) == 2 and found)['0']
        os.kill(old, signal.SIGTERM)
        service.until(lambda: not psutil.pid_exists(old) and service.pids().get('0', old) != old)
        service.until(lambda: service.metrics()['reactor_workers', 'serving'] == 2)
        assert service.total('reactor_worker_restarts_total') == 0
        assert 'unexpectedly' not in (tmp_path / 'errors').read_text()


def test_a_predecessor_that_is_stopped_while_it_drains_is_killed_like_a_worker_that_hangs(tmp_path):
    with Service(tmp_path, workers=1, hang_timeout=2) as service:
        (old,) = service.until(service.pids).values()
        with service.owed():
            service.parent.send_signal(signal.SIGHUP)
            service.until(lambda: service.total('reactor_drain_connections') == 1)
            os.kill(old, signal.SIGSTOP)
            began = time.monotonic()
            service.until(lambda: not psutil.pid_exists(old), 10)
            assert time.monotonic() - began < 2 * 2 + 3  # its drain timeout is 20 s
        assert f'(pid {old}) has not reported for 2 s: it is stopped by a signal' in (tmp_path / 'errors').read_text()
        assert set(service.pids()) == {'0'}


@LINUX
def test_the_queues_of_workers_are_as_long_as_the_program_says(tmp_path):
    with Service(tmp_path, backlog=5) as service:
        service.until(lambda: len(service.pids()) == 2)
        limits = [value for key, value in service.metrics().items() if key[0] == 'reactor_listen_queue_limit']
        assert limits == [5, 5]


def test_the_command_drain_leaves_the_times_to_the_program(tmp_path):
    with Service(tmp_path, workers=1, drain_timeout=3) as service:
        service.until(service.pids)
        with service.owed():
            command = [sys.executable, '-m', 'reactor.observe', str(tmp_path / 'control'), 'drain']
            printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
            assert printed == 'draining, with the times of the program\n'
            began = time.monotonic()
            assert service.parent.wait(20) == 0
            assert 2 < time.monotonic() - began < 8
