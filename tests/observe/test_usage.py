"""Saturation of a process and of its listening sockets: descriptors, queues, drops and refusals, as metrics."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time

import pytest

from reactor import Limits, Reactor, observe
from reactor.observe.usage import accept_queue, descriptor_limit, open_descriptors
from reactor.serve.health import STATES, Health, Snapshots, WorkerState
from tests.helpers.support import run_until

prometheus_client = pytest.importorskip(
    'prometheus_client', reason='NOT TESTED: metrics; pip install prometheus_client'
)

from prometheus_client.openmetrics.exposition import generate_latest  # noqa: E402
from prometheus_client.openmetrics.parser import text_string_to_metric_families  # noqa: E402

from tests.observe.test_observe_metrics import exposed  # noqa: E402

HERE = '127.0.0.1'
LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has these figures')
COUNTS_DESCRIPTORS = os.path.exists('/proc/self/fd') and os.stat('/proc/self/fd').st_size > 0
no_process = 1 << 30


@pytest.mark.skipif(not COUNTS_DESCRIPTORS, reason='NOT TESTED: the count of open descriptors; needs Linux 6.2')
def test_open_descriptors_are_counted_exactly():
    before = open_descriptors(os.getpid())
    assert before == len(os.listdir('/proc/self/fd')) - 1  # without the one that lists the directory
    more = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
    assert open_descriptors(os.getpid()) == before + 50
    for number in more:
        os.close(number)
    assert open_descriptors(no_process) is None


@LINUX
def test_the_limit_of_descriptors_is_that_of_the_process_asked_for():
    assert descriptor_limit(os.getpid()) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with subprocess.Popen(['sh', '-c', 'ulimit -Sn 77; read line'], stdin=subprocess.PIPE) as child:
        end = time.monotonic() + 10
        while descriptor_limit(child.pid) != 77:
            assert time.monotonic() < end
            time.sleep(0.01)
        child.stdin.close()
    assert descriptor_limit(no_process) is None


@LINUX
def test_the_queue_of_a_listening_socket_shows_its_length_its_limit_and_what_was_dropped(sockets):
    server = sockets.track(socket.create_server((HERE, 0), backlog=3))
    assert accept_queue(server) == (0, 3, 0)
    for _ in range(2):
        sockets.track(socket.create_connection(server.getsockname()))
    assert accept_queue(server) == (2, 3, 0)
    for _ in range(8):
        client = sockets.track(socket.socket())
        client.setblocking(False)
        client.connect_ex(server.getsockname())
    end = time.monotonic() + 10
    while not (queue := accept_queue(server)).drops:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert queue.length >= queue.limit == 3


def test_sockets_without_a_known_queue_have_none(sockets, tmp_path):
    plain, _ = sockets()
    unix = sockets.track(socket.socket(socket.AF_UNIX))
    unix.bind(str(tmp_path / 'socket'))
    unix.listen()
    bound = sockets.track(socket.socket())
    bound.bind((HERE, 0))
    closed = socket.create_server((HERE, 0))
    closed.close()
    assert [accept_queue(sock) for sock in (plain, unix, bound, closed)] == [None] * 4


@LINUX
def test_queues_are_exported_for_each_worker_and_address(sockets):
    own, shared = (sockets.track(socket.create_server((HERE, 0), backlog=n)) for n in (5, 6))
    found = Snapshots(Health(False, [], {}, True), [('0', own), ('all', shared)])
    metrics = exposed(lambda: found)
    for sock, worker, limit in (own, '0', 5), (shared, 'all', 6):
        where = f'address={HERE}:{sock.getsockname()[1]}', f'worker={worker}'
        assert metrics['reactor_listen_queue_limit', *where] == limit
        assert metrics['reactor_listen_queue_connections', *where] == metrics['reactor_listen_drops_total', *where] == 0


def test_refused_connections_are_counted_by_the_limit_that_refused_them(r, sockets):
    server = r.listen_tcp(HERE, 0, limits=Limits(per_address=1))
    for _ in range(3):
        sockets.connect(server.address)
    run_until(r, lambda: r.stats().refused_per_address == 2)
    metrics = exposed(observe.source(r))
    refusals = {key: value for key, value in metrics.items() if key[0] == 'reactor_refusals_total' and value}
    assert refusals == {('reactor_refusals_total', 'reason=per_address', 'worker=0'): 2}
    assert sum(key[0] == 'reactor_refusals_total' for key in metrics) == 7
    r.close()


def whole_service(listener):
    """Every metric that a service can have, with a value."""
    with Reactor() as r:
        r.counters.count_request(0.2)
        counters = {**observe.source(r)()['0'], 'draining': 1, 'drain_connections': 3, 'drain_seconds': 2.5}
        counters['slow'] = [['app.f:1', 2, 0.5]]
    workers = [WorkerState(str(n), state, os.getpid(), time.time(), 0.5) for n, state in enumerate(STATES)]
    found = Snapshots(Health(True, workers, {'0': 2}, True), [('0', listener)])
    found.update({'0': counters, '0-4711': counters})
    return found


@LINUX
def test_promtool_and_open_metrics_accept_every_metric_of_a_service(sockets):
    found = whole_service(sockets.track(socket.create_server((HERE, 0))))
    registry = prometheus_client.CollectorRegistry()
    registry.register(observe.ReactorCollector(lambda: found))
    names = {family.name for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert {
        'reactor_workers', 'reactor_worker_restarts', 'reactor_worker_start_time_seconds',
        'reactor_worker_report_age_seconds', 'reactor_service_draining', 'reactor_draining',
        'reactor_last_reload_successful', 'reactor_log_lines_lost',
        'reactor_drain_connections', 'reactor_drain_remaining_seconds', 'reactor_request_seconds',
        'reactor_requests_failed', 'reactor_open_descriptors', 'reactor_descriptor_limit',
        'reactor_listen_queue_connections', 'reactor_listen_queue_limit', 'reactor_listen_drops', 'reactor_refusals',
    } <= names  # fmt: skip
    if shutil.which('promtool') is None:
        pytest.skip('NOT TESTED: promtool check metrics: apt-get install prometheus')
    text = prometheus_client.generate_latest(registry)
    done = subprocess.run(['promtool', 'check', 'metrics'], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'', b'')


def test_the_histogram_of_requests_agrees_with_stats(fake):
    for seconds in 0.0001, 0.002, 0.002, 3, 99:
        fake.counters.count_request(seconds)
    metrics, stats = exposed(observe.source(fake)), fake.stats()
    for n, bound in enumerate(stats.request_bounds):
        assert metrics['reactor_request_seconds_bucket', f'le={bound}', 'worker=0'] == sum(
            stats.request_seconds[: n + 1]
        )
    assert metrics['reactor_request_seconds_bucket', 'le=0.0025', 'worker=0'] == 3
    assert metrics['reactor_request_seconds_bucket', 'le=+Inf', 'worker=0'] == 5
    assert metrics['reactor_request_seconds_count', 'worker=0'] == 5
    assert metrics['reactor_request_seconds_sum', 'worker=0'] == pytest.approx(102.0041)
