"""/ready and /live of a parent with workers: they say whether clients are served, and whether a restart helps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from reactor.observe.asking import ControlClient
from reactor.serve.health import Health, Snapshots, WorkerState

if os.name != 'posix':
    pytest.skip('NOT TESTED: workers, which need POSIX', allow_module_level=True)
prometheus_client = pytest.importorskip(
    'prometheus_client', reason='NOT TESTED: metrics; pip install prometheus_client'
)

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from reactor import observe  # noqa: E402
from tests.observe.test_observe_metrics import scrape  # noqa: E402

PROGRAM = """
import json, os, sys, time
from reactor import observe, serve

folder, options = sys.argv[1], json.loads(sys.argv[2])

def on_data(conn, data):
    conn.busy = True  # the answer is given when the test says so

def main(r, listeners):
    if os.path.exists(folder + '/fail'):
        raise SystemExit('failed because the test requested it')
    r.listen_tcp(None, 0, on_data, sock=listeners[0])

def on_start(r, workers):
    observe.serve_control(r, folder + '/control', workers=workers)
    server = observe.serve_metrics(r, source=workers.stats)
    print(server.address[1], workers.addresses[0][1], flush=True)

serve.run(main, listen=['127.0.0.1:0'], on_start=on_start, **options)
"""


class Service:
    """A running service with its health checks."""

    def __init__(self, folder, **options) -> None:
        self.folder = folder
        (folder / 'program.py').write_text(PROGRAM)
        words = [sys.executable, str(folder / 'program.py'), str(folder)]
        options = {'workers': 2, 'drain_timeout': 20, 'lame_duck': 0, **options}
        self.errors = (folder / 'errors').open('wb')
        self.parent = subprocess.Popen(
            [*words, json.dumps(options)], stdout=subprocess.PIPE, stderr=self.errors, text=True, process_group=0
        )
        self.port, self.served = map(int, self.parent.stdout.readline().split())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        with suppress(ProcessLookupError):
            os.killpg(self.parent.pid, signal.SIGKILL)
        self.parent.communicate()
        self.errors.close()

    def get(self, path):
        """Return the status and the body of a page."""
        try:
            with urllib.request.urlopen(f'http://127.0.0.1:{self.port}{path}', timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()

    def metrics(self):
        """Return {(sample, label, ...): value}."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.get('/metrics')[1])
            for sample in family.samples
        }

    def until(self, holds, seconds=15):
        """Wait until `holds()` is true and return it."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, (self.get('/ready'), self.get('/metrics'))
            time.sleep(0.05)
        return found

    def pids(self):
        with ControlClient(str(self.folder / 'control')) as client:
            return {name: counters['pid'] for name, counters in client.ask('stats')['workers'].items()}

    def owed(self):
        """Return a client that waits for an answer."""
        client = socket.create_connection(('127.0.0.1', self.served), timeout=10)
        client.sendall(b'x')
        self.until(lambda: self.total('reactor_requests_total') >= 1)
        return client

    def total(self, name):
        return sum(value for key, value in self.metrics().items() if key[0] == name)


def test_the_checks_fail_while_the_service_drains_and_say_what_is_left(tmp_path):
    with Service(tmp_path) as service:
        service.until(lambda: len(service.pids()) == 2)
        assert service.get('/ready') == service.get('/healthz') == service.get('/live') == (200, 'ok\n')
        with service.owed():
            service.parent.terminate()
            service.until(lambda: service.get('/ready') == (503, 'draining\n'))
            assert service.get('/healthz') == (503, 'draining\n')
            assert service.get('/live') == (200, 'ok\n')  # a restart would lose the answer
            service.until(lambda: service.total('reactor_drain_connections') == 1)
            metrics = service.metrics()
            assert metrics['reactor_service_draining',] == 1
            assert metrics['reactor_workers', 'serving'] == 0 and metrics['reactor_workers', 'draining'] >= 1
            seconds = [value for key, value in metrics.items() if key[0] == 'reactor_drain_remaining_seconds']
            assert seconds and all(0 < value <= 20 for value in seconds)
            with ControlClient(str(tmp_path / 'control')) as client:
                answer = client.ask('stats')
            assert answer['draining'] is True and answer['service']['workers'][0]['state'] == 'draining'
            assert answer['sum']['drain_connections'] == 1
        assert service.parent.wait(20) == 0


def test_the_checks_fail_while_no_worker_lives_and_pass_again_afterwards(tmp_path):
    with Service(tmp_path, workers=1) as service:
        (pid,) = service.until(service.pids).values()
        (tmp_path / 'fail').touch()
        os.kill(pid, signal.SIGKILL)
        service.until(lambda: service.get('/ready') == (503, 'no worker\n'), 5)
        assert service.get('/live') == (200, 'ok\n')  # the parent starts the worker again by itself
        service.until(lambda: service.metrics()['reactor_worker_restarts_total', '0'] >= 2)
        (tmp_path / 'fail').unlink()
        service.until(lambda: service.get('/ready') == (200, 'ok\n'))
        metrics = service.metrics()
        assert metrics['reactor_workers', 'serving'] == 1 and metrics['reactor_workers', 'restarting'] == 0


@pytest.mark.parametrize('hang_timeout, live', [(None, (503, 'hung\n')), (30, (200, 'ok\n'))])
def test_a_service_whose_workers_all_hang_is_not_ready_and_only_alive_if_they_are_replaced(
    tmp_path, hang_timeout, live
):
    with Service(tmp_path, hang_timeout=hang_timeout) as service:
        pids = service.until(lambda: len(found := service.pids()) == 2 and found)
        os.kill(pids['0'], signal.SIGSTOP)
        service.until(lambda: service.metrics()['reactor_workers', 'hung'] == 1, 5)
        assert service.get('/ready') == (200, 'ok\n')  # the other worker serves
        metrics = service.metrics()
        assert metrics['reactor_worker_report_age_seconds', '0'] > 3 > metrics['reactor_worker_report_age_seconds', '1']
        os.kill(pids['1'], signal.SIGSTOP)
        service.until(lambda: service.get('/ready') == (503, 'no worker\n'), 5)
        assert service.get('/live') == live


def test_a_predecessor_that_drains_after_a_reload_is_a_series_of_its_own(tmp_path):
    with Service(tmp_path, workers=1) as service:
        (old,) = service.until(service.pids).values()
        started = service.metrics()['reactor_worker_start_time_seconds', '0']
        assert time.time() - 60 < started < time.time()
        with service.owed():
            service.parent.send_signal(signal.SIGHUP)
            service.until(lambda: service.total('reactor_drain_connections') == 1)
            metrics = service.metrics()
            assert metrics['reactor_drain_connections', f'0-{old}'] == 1
            assert metrics['reactor_draining', f'0-{old}'] == 1 and metrics['reactor_draining', '0'] == 0
            assert ('reactor_drain_connections', '0') not in metrics
            assert metrics['reactor_worker_start_time_seconds', f'0-{old}'] == started
            assert metrics['reactor_worker_start_time_seconds', '0'] > started
            assert metrics['reactor_service_draining',] == 0 and service.get('/ready') == (200, 'ok\n')
        service.until(lambda: set(service.pids()) == {'0'})
        assert service.metrics()['reactor_workers', 'draining'] == 0


def test_a_failed_reload_is_visible_until_the_next_reload(tmp_path):
    with Service(tmp_path, workers=1) as service:
        service.until(service.pids)
        assert service.metrics()['reactor_last_reload_successful',] == 1
        (tmp_path / 'fail').touch()
        service.parent.send_signal(signal.SIGHUP)
        service.until(lambda: service.metrics()['reactor_last_reload_successful',] == 0, 5)
        assert service.get('/ready') == (200, 'ok\n')  # the worker of the old program serves
        (tmp_path / 'fail').unlink()
        service.parent.send_signal(signal.SIGHUP)
        service.until(lambda: service.metrics()['reactor_last_reload_successful',] == 1, 5)


def snapshots(*states, **more):
    found = Snapshots(Health(False, [WorkerState(str(n), state) for n, state in enumerate(states)], {}, True), [])
    found.update(more)
    return found


def test_a_worker_that_serves_makes_the_service_ready_unless_the_program_is_not(r, sockets):
    server = observe.serve_metrics(r, source=lambda: snapshots('serving', 'restarting'), ready=lambda: False)
    assert scrape(r, sockets, server, '/ready')[1] == 'not ready\n'
    assert scrape(r, sockets, server, '/live')[1] == 'ok\n'  # a restart would not bring the database back
    server.close()


def test_the_program_is_not_asked_while_no_worker_serves(r, sockets):
    server = observe.serve_metrics(r, source=lambda: snapshots('starting'), ready=[].pop)
    head, body = scrape(r, sockets, server, '/ready')
    assert head.startswith('HTTP/1.1 503 ') and body == 'no worker\n'
    server.close()


def test_a_plain_dict_is_a_source_whose_health_is_that_of_the_reactor(r, sockets):
    server = observe.serve_metrics(r, source=dict)
    for path in '/ready', '/healthz', '/live':
        assert scrape(r, sockets, server, path)[1] == 'ok\n'
    assert 'reactor_workers' not in scrape(r, sockets, server)[1]
    r.drain(60, 60)
    assert scrape(r, sockets, server, '/ready')[1] == 'draining\n'
    assert scrape(r, sockets, server, '/live')[1] == 'ok\n'
    r.close()
