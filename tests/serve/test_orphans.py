"""Workers whose parent has died, and workers that hang: each ends in the stated time, and its stack is logged."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

import psutil
import pytest

from tests.serve.test_serve import HERE, LINUX, Served, hung, is_gone, wait_until


def free(port: int) -> bool:
    """Return whether a server can listen on the port now."""
    try:
        socket.create_server((HERE, port)).close()
    except OSError:
        return False
    return True


# -- the parent has died


def test_a_worker_that_hangs_when_its_parent_is_killed_ends_and_frees_the_port(tmp_path):
    with Served(tmp_path, run={'workers': 2, 'drain_timeout': 1}) as served:
        pids = served.pids(2)
        conn = served.connect()
        worker = conn.pid()
        conn.send('block 60')
        time.sleep(0.2)  # the test cannot see when the worker has read the line
        served.parent.kill()
        port = served.addresses[0][1]
        begun = time.monotonic()
        assert not is_gone(worker)
        wait_until(lambda: free(port))
        assert 2.5 < time.monotonic() - begun < 8  # the drain timeout of 1 s, and 2 s more
        wait_until(lambda: all(map(is_gone, pids.values())))
        assert f'(pid {worker}) has not ended 3 s after the end of its parent' in served.log
        assert 'in on_line' in served.log  # the stack


def test_a_worker_that_hangs_with_its_log_locked_ends_too(tmp_path):
    with Served(tmp_path, run={'drain_timeout': 0.5}) as served:
        conn = served.connect()
        worker = conn.pid()
        conn.send('lock 60')
        time.sleep(0.2)  # the test cannot see when the worker has read the line
        served.parent.kill()
        wait_until(lambda: is_gone(worker), 8)


def test_a_worker_that_can_drain_when_its_parent_is_killed_is_not_cut_off(tmp_path):
    with Served(tmp_path, run={'drain_timeout': 3}) as served:
        conn = served.connect()
        worker = conn.pid()
        conn.send('wait 1')
        served.parent.kill()
        assert conn.receive() == f'{worker} wait 1'
        wait_until(lambda: is_gone(worker))
        assert served.log == ''


def test_a_waiting_worker_does_not_wake_up_for_its_parent_more_than_once_a_second(tmp_path):
    with Served(tmp_path) as served:
        process = psutil.Process(served.pids()['0'])
        before, begun = process.num_ctx_switches().voluntary, time.monotonic()
        time.sleep(5)
        assert process.num_threads() == 2
        assert process.num_ctx_switches().voluntary - before <= 3 * (time.monotonic() - begun)


# -- a worker hangs


@pytest.mark.parametrize('how', ['stopped', 'blocked'])
def test_a_worker_that_hangs_is_replaced_within_twice_the_limit_and_its_stack_is_logged(tmp_path, how):
    limit = 4
    with Served(tmp_path, run={'hang_timeout': limit}) as served:
        first = served.connect()
        worker = first.pid()
        begun = time.monotonic()
        hung(worker, first, how)
        waiting = [served.connect() for _ in range(5)]  # these clients are in the queue of the hung worker
        for conn in waiting:
            conn.send('x')
        wait_until(lambda: 'has not reported for 4 s' in served.log)
        assert limit - 1 <= time.monotonic() - begun < limit + 1.5
        served.look()
        successors = {int(conn.receive().split()[0]) for conn in waiting}
        assert time.monotonic() - begun < 2 * limit
        assert successors == set(served.pids().values()) != {worker}
        if how == 'stopped':
            assert f'worker 0 (pid {worker}) has not reported for 4 s: it is stopped by a signal' in served.log
        else:
            assert f'worker 0 (pid {worker}) has not reported for 4 s: its loop is blocked' in served.log
            assert re.search(r'File ".*serve_program.py", line \d+ in on_line', served.log)
        assert 'ended unexpectedly (signal 9)' in served.log


@LINUX
def test_no_client_of_another_worker_notices_a_worker_that_hangs(tmp_path):
    with Served(tmp_path, run={'workers': 2, 'hang_timeout': 2}) as served:
        served.pids(2)
        conns = [served.connect() for _ in range(40)]
        pids = [conn.pid() for conn in conns]
        stopped = pids[0]
        os.kill(stopped, signal.SIGSTOP)
        others = [conn for conn, pid in zip(conns, pids, strict=True) if pid != stopped]
        assert len(others) > 5
        for conn in others:
            conn.sock.settimeout(1)
        begun = time.monotonic()
        while time.monotonic() - begun < 5:
            assert all(conn.pid() != stopped for conn in others)
        assert stopped not in served.pids(2).values()


def test_the_stack_of_a_worker_whose_main_does_not_return_is_logged_before_it_is_killed(tmp_path):
    hang = tmp_path / 'hang'
    hang.touch()
    with Served(tmp_path, hang=str(hang), run={'start_timeout': 1}) as served:
        wait_until(lambda: 'ended unexpectedly (signal 9)' in served.log)
        assert 'is not ready after 1 s: killing it' in served.log
        assert re.search(r'File ".*serve_program.py", line \d+ in main', served.log)


def test_an_operator_gets_the_stack_of_a_worker_with_sigquit(tmp_path):
    with Served(tmp_path) as served:
        worker = served.pids()['0']
        os.kill(worker, signal.SIGQUIT)
        wait_until(lambda: re.search(r'File ".*loop.py", line \d+ in _poll', served.log))
        assert served.connect().pid() == worker
