"""The service example under systemd and Kubernetes: its units and its manifest are valid and work as intended."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'
UNITS = sorted((EXAMPLES / 'systemd').glob('app*'))
MANIFEST = EXAMPLES / 'kubernetes' / 'app.yaml'

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='service managers like these exist only on Unix')


def needs(command):
    return pytest.mark.skipif(shutil.which(command) is None, reason=f'not tested with {command}: not installed')


@pytest.fixture
def manager(tmp_path, sockets):
    """The socket on which a service manager receives messages from its services."""
    sock = sockets.track(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(str(tmp_path / 'notify'))
    sock.settimeout(20)
    return sock


def next_message(manager, *skipped):
    """Return the lines of the next message that is not in `skipped`."""
    while (message := manager.recv(4096).decode()) in skipped:
        pass
    return message.split('\n')


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as probe:
        return probe.getsockname()[1]


def unit(name):
    """Return the settings of a unit file. The values of a repeated setting are joined."""
    settings = {}
    for line in (EXAMPLES / 'systemd' / name).read_text().splitlines():
        key, equals, value = line.partition('=')
        if equals and not line.startswith('#'):
            settings[key] = f'{settings[key]} {value}' if key in settings else value
    return settings


def here(command):
    """Return a command from the examples with the paths of this checkout."""
    places = {'/opt/app/bin/python': sys.executable, 'python': sys.executable}
    programs = {'/opt/app/service.py', '/app/service.py'}
    return [str(EXAMPLES / 'service.py') if word in programs else places.get(word, word) for word in command]


@contextmanager
def running(command, pass_fds=(), **environment):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path)), **environment}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, pass_fds=pass_fds
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def get(port, path='/', sock=None):
    """Send a request; return (status, whether the server closes the connection)."""
    with sock or socket.create_connection(('127.0.0.1', port), timeout=20) as sock:
        sock.sendall(f'GET {path} HTTP/1.1\r\nHost: here\r\n\r\n'.encode())
        received = b''
        while not re.search(rb'from process \d+\n', received):
            piece = sock.recv(65536)
            assert piece, received
            received += piece
    return int(received.split()[1]), b'Connection: close' in received


def wait_for(predicate):
    end = time.monotonic() + 20
    while not (result := predicate()):
        assert time.monotonic() < end, 'nothing happened within 20 s'
        time.sleep(0.01)  # nothing signals the progress of another process
    return result


# -- addresses


def service(*options):
    return running([sys.executable, '-W', 'error', str(EXAMPLES / 'service.py'), *options])


def has_ipv6():
    try:
        socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize('workers', ['0', '1'])
@pytest.mark.parametrize(
    'text, shown, where',
    [
        ('127.0.0.1:{port}', '127.0.0.1:{port}', '127.0.0.1'),
        ('localhost:{port}', '127.0.0.1:{port}', '127.0.0.1'),
        ('[::1]:{port}', '[::1]:{port}', '::1'),
    ],
)
def test_the_service_listens_on_an_address_and_prints_it(workers, text, shown, where):
    if ':' in where and not has_ipv6():
        pytest.skip('not tested with IPv6: this machine has no IPv6 loopback address')
    port = free_port()
    with service('--listen', text.format(port=port), '--workers', workers) as process:
        line = process.stdout.readline()
        if text.startswith('localhost') and '::1' in line:
            where, shown = '::1', '[::1]:{port}'
        assert line == f'listening on {shown.format(port=port)}\n', process.stderr.read()
        with socket.create_connection((where, port), timeout=20) as sock:
            assert get(port, '/ready', sock) == (200, False)
        process.terminate()
        assert process.wait(20) == 0 and not process.stderr.read()


@pytest.mark.parametrize('option, mode', [('', None), ('?mode=0660', 0o660)])
def test_workers_of_the_service_listen_on_a_unix_socket_and_print_its_path(tmp_path, option, mode):
    path = tmp_path / 'app.sock'
    with service('--listen', f'unix:{path}{option}', '--workers', '1') as process:
        assert process.stdout.readline() == f'listening on {path}\n'
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert get(0, '/ready', sock) == (200, False)
        assert mode is None or stat.S_IMODE(path.stat().st_mode) == mode
        process.terminate()
        assert process.wait(20) == 0 and not process.stderr.read()


@pytest.mark.parametrize('text', ['unix:/run/app.sock', '::1:8080', '8080', 'here:http', '127.0.0.1:70000', ''])
def test_the_service_says_which_address_it_cannot_use_alone(text):
    with service('--listen', text) as process:
        _, errors = process.communicate(timeout=20)
        assert process.returncode and 'Traceback' not in errors and 'error' in errors
        assert ('--workers' if 'unix' in text else text) in errors


@pytest.mark.parametrize('workers', ['0', '1'])
def test_the_service_says_that_its_address_is_in_use(workers):
    with socket.create_server(('127.0.0.1', 0)) as other:
        address = f'127.0.0.1:{other.getsockname()[1]}'
        with service('--listen', address, '--workers', workers) as process:
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 1 and 'Traceback' not in errors
            assert errors.startswith('error: ') and address.rpartition(':')[2] in errors


@pytest.mark.parametrize('workers', ['0', '2'])
def test_the_service_serves_metrics(workers):
    pytest.importorskip('prometheus_client', reason='not tested with metrics: no prometheus_client')
    port, metrics = free_port(), free_port()
    with service('--listen', f'127.0.0.1:{port}', '--metrics', f'127.0.0.1:{metrics}', '--workers', workers) as process:
        process.stdout.readline()
        assert get(port) == (200, False)

        def scrape():
            try:
                with urllib.request.urlopen(f'http://127.0.0.1:{metrics}/metrics', timeout=20) as answer:
                    return re.findall(r'^reactor_requests_total\{.*\} (\S+)$', answer.read().decode(), re.MULTILINE)
            except urllib.error.URLError:
                return []  # a worker can be ready before the parent has opened the port

        wait_for(lambda: sum(map(float, scrape())) == 1)
        wait_for(lambda: len(scrape()) == max(1, int(workers)))
        process.terminate()
        assert process.wait(20) == 0 and not process.stderr.read()


# -- systemd


@pytest.fixture
def units(tmp_path):
    """A folder with the unit files, changed to the paths of this checkout."""
    folder = tmp_path / 'units'
    folder.mkdir()
    for path in UNITS:
        text = path.read_text().replace('/opt/app/bin/python', sys.executable)
        (folder / path.name).write_text(text.replace('/opt/app/service.py', str(EXAMPLES / 'service.py')))
    return folder


def verify(*paths):
    """Return the messages of `systemd-analyze verify` about these units, or its exit status if there are none."""
    done = subprocess.run(['systemd-analyze', 'verify', *paths], capture_output=True, text=True, timeout=60)
    return f'{done.stdout}{done.stderr}' or done.returncode


@needs('systemd-analyze')
def test_systemd_accepts_the_units(units):
    broken = units / 'broken.service'
    broken.write_text((units / 'app.service').read_text().replace('WatchdogSec', 'WatchdogSecs'))
    if 'WatchdogSecs' not in str(verify(broken)):
        pytest.skip(f'the units were not verified: systemd-analyze does not work here: {verify(broken)}')
    assert verify(units / 'app.socket', units / 'app.service', units / 'app@8081.service') == 0
    assert {path.name for path in UNITS} == {'app.socket', 'app.service', 'app@.service'}


@pytest.mark.parametrize('name', ['app.service', 'app@.service'])
def test_a_unit_gives_more_time_than_the_drain_timeout_and_more_descriptors_than_usual(name):
    settings = unit(name)
    timeout = float(settings['ExecStart'].partition('--drain-timeout ')[2].split()[0])
    assert float(settings['TimeoutStopSec']) > timeout + 5
    assert int(settings['LimitNOFILE']) > 1024 and settings['Type'] == 'notify'


@pytest.mark.parametrize('name', ['app.service', 'app@.service'])
def test_systemd_never_stops_restarting_a_service_and_does_not_end_it_for_one_killed_worker(name):
    """By default, five starts within ten seconds put a unit into the failed state, and its socket unit, too."""
    sections = dict(re.findall(r'^\[(\w+)\]\n(.*?)(?=^\[|\Z)', (EXAMPLES / 'systemd' / name).read_text(), re.M | re.S))
    assert '\nStartLimitIntervalSec=0\n' in sections['Unit']
    settings = unit(name)
    assert settings['Restart'] == 'always' and float(settings['RestartSec']) >= 1
    assert settings['OOMPolicy'] == 'continue'


def test_a_process_of_the_template_unit_sends_all_messages_to_the_service_manager(manager, tmp_path):
    port = free_port()
    command = here(shlex.split(unit('app@.service')['ExecStart'].replace('%i', str(port))))
    command[command.index('--lame-duck') + 1] = '1'
    variables = {'NOTIFY_SOCKET': str(tmp_path / 'notify'), 'WATCHDOG_USEC': '200000'}
    with running(command, **variables) as process:
        assert next_message(manager) == ['READY=1']
        with socket.create_connection(('127.0.0.1', port), timeout=20) as kept:
            kept.sendall(b'GET /re')
            assert next_message(manager) == next_message(manager) == ['WATCHDOG=1']
            assert get(port, '/ready') == (200, False)
            process.send_signal(signal.SIGHUP)  # as ExecReload= does
            first, second = next_message(manager, 'WATCHDOG=1')
            assert first == 'RELOADING=1' and second.startswith('MONOTONIC_USEC=')
            assert next_message(manager, 'WATCHDOG=1') == ['READY=1']
            process.send_signal(signal.SIGTERM)
            assert next_message(manager, 'WATCHDOG=1') == ['STOPPING=1']
            assert get(port, '/ready') == (503, True)  # the service is in the lame duck phase
            assert get(port) == (200, True)
            kept.sendall(b'ady HTTP/1.1\r\n\r\n')
            assert b'503' in kept.recv(4096)
        assert process.wait(20) == 0
        assert not process.stderr.read()


@pytest.mark.scenario(155)
def test_a_process_that_the_watchdog_ends_prints_where_it_hung():
    command = here(shlex.split(unit('app@.service')['ExecStart'].replace('%i', str(free_port()))))
    with running(command) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGABRT)
        errors = process.communicate(timeout=20)[1]
        assert process.returncode == -signal.SIGABRT
    assert 'Fatal Python error: Aborted' in errors and 'service.py"' in errors and ' in run' in errors


@needs('systemd-socket-activate')
def test_a_process_serves_on_the_socket_that_systemd_passes(manager, tmp_path):
    port = free_port()
    passed = {'PYTHONPATH': os.pathsep.join(filter(None, sys.path)), 'NOTIFY_SOCKET': str(tmp_path / 'notify')}
    options = [word for name, value in passed.items() for word in ('-E', f'{name}={value}')]
    activate = ['systemd-socket-activate', '-l', f'127.0.0.1:{port}', *options]
    with running([*activate, *here(['python', '/app/service.py', '--listen', 'not used'])]) as process:
        assert 'Listening on' in process.stderr.readline()
        assert get(port) == (200, False)
        assert next_message(manager) == ['READY=1']
        process.send_signal(signal.SIGTERM)
        assert next_message(manager) == ['STOPPING=1']
        assert process.wait(20) == 0


# A program that passes a socket to a command as a service manager does.
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def workers(manager, tmp_path, listener):
    """Run app.service on this listening socket; yields (process, port) when the service is ready."""
    command = here(shlex.split(unit('app.service')['ExecStart']))
    command[command.index('--drain-timeout') + 1] = '5'
    number = listener.fileno()
    variables = {'NOTIFY_SOCKET': str(tmp_path / 'notify'), 'WATCHDOG_USEC': '300000'}
    with running([sys.executable, '-c', PASS, str(number), *command], pass_fds=[number], **variables) as process:
        try:
            assert next_message(manager, 'WATCHDOG=1') == ['READY=1']
            yield process, listener.getsockname()[1]
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)


def processes(port, count=2):
    """Wait until requests have been answered by `count` processes, and return their ids."""
    found = set()

    def ask():
        with socket.create_connection(('127.0.0.1', port), timeout=20) as sock:
            sock.sendall(b'GET / HTTP/1.1\r\n\r\n')
            found.add(int(sock.recv(4096).split()[-1]))
        return len(found) == count

    wait_for(ask)
    return found


def test_workers_on_a_systemd_socket_are_one_service_to_systemd(manager, tmp_path, sockets):
    listener = sockets.track(socket.create_server(('127.0.0.1', 0)))
    with workers(manager, tmp_path, listener) as (process, port):
        before = processes(port)
        for pid in before:
            names = {entry.partition(b'=')[0] for entry in Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')}
            assert b'REACTOR_WORKER' in names
            assert not {name for name in names if name.startswith((b'LISTEN_', b'NOTIFY_', b'WATCHDOG_'))}
        process.send_signal(signal.SIGHUP)  # as ExecReload= does
        assert next_message(manager, 'WATCHDOG=1')[0] == 'RELOADING=1'
        assert next_message(manager, 'WATCHDOG=1') == ['READY=1']
        wait_for(lambda: not before & processes(port))
        assert next_message(manager) == ['WATCHDOG=1']
        process.send_signal(signal.SIGTERM)
        assert next_message(manager, 'WATCHDOG=1') == ['STOPPING=1']
        assert process.wait(20) == 0, process.stderr.read()
        assert not process.stderr.read()


@pytest.mark.scenario(156)
def test_clients_that_connect_during_a_restart_are_served_afterwards(manager, tmp_path, sockets):
    listener = sockets.track(socket.create_server(('127.0.0.1', 0)))
    with workers(manager, tmp_path, listener) as (process, port):
        assert get(port) == (200, False)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    waiting = [sockets.connect(('127.0.0.1', port)) for _ in range(20)]
    for sock in waiting:
        sock.setblocking(True)
        sock.settimeout(20)
    assert next_message(manager, 'WATCHDOG=1') == ['STOPPING=1']
    with workers(manager, tmp_path, listener):
        assert [get(port, sock=sock) for sock in waiting] == [(200, False)] * 20


@needs('systemd-socket-activate')
def test_systemd_starts_workers_with_the_first_client(manager, tmp_path):
    port = free_port()
    passed = {'PYTHONPATH': os.pathsep.join(filter(None, sys.path)), 'NOTIFY_SOCKET': str(tmp_path / 'notify')}
    options = [word for name, value in passed.items() for word in ('-E', f'{name}={value}')]
    command = here(shlex.split(unit('app.service')['ExecStart']))
    activate = ['systemd-socket-activate', '-l', f'127.0.0.1:{port}', '--fdname=http', *options]
    with running([*activate, *command]) as process:
        assert 'Listening on' in process.stderr.readline()
        assert get(port) == (200, False)
        assert next_message(manager) == ['READY=1']
        process.send_signal(signal.SIGTERM)
        assert next_message(manager) == ['STOPPING=1']
        assert process.wait(20) == 0


# -- Kubernetes


@pytest.fixture(scope='module')
def manifest():
    validate = pytest.importorskip('kubernetes_validate', reason='the manifest was not checked: no kubernetes-validate')
    import yaml

    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    return validate, {document['kind']: document for document in documents}


def test_kubernetes_accepts_the_manifest(manifest):
    validate, documents = manifest
    assert set(documents) == {'Deployment', 'Service', 'PodDisruptionBudget'}
    for document in documents.values():
        validate.validate(document, validate.latest_version(), strict=True)
    labels = documents['Deployment']['spec']['template']['metadata']['labels']
    for kind, selector in (('Deployment', 'matchLabels'), ('PodDisruptionBudget', 'matchLabels')):
        assert documents[kind]['spec']['selector'][selector] == labels
    assert documents['Service']['spec']['selector'] == labels


def test_the_check_of_the_manifest_can_fail(manifest):
    validate, documents = manifest
    with pytest.raises(validate.ValidationError):
        validate.validate({**documents['Service'], 'specs': {}}, validate.latest_version(), strict=True)


def container(manifest):
    pod = manifest[1]['Deployment']['spec']['template']['spec']
    (container,) = pod['containers']
    given = dict(zip(container['args'][::2], container['args'][1::2], strict=True))
    return pod, container, given


def test_the_times_of_the_manifest_fit_together(manifest):
    pod, container_, given = container(manifest)
    lame_duck, timeout = float(given['--lame-duck']), float(given['--drain-timeout'])
    ready = container_['readinessProbe']
    noticed = ready['periodSeconds'] * ready['failureThreshold'] + ready['timeoutSeconds']
    assert noticed < lame_duck < timeout < pod['terminationGracePeriodSeconds']
    targets = {port['name'] for port in container_['ports']}
    assert manifest[1]['Service']['spec']['ports'][0]['targetPort'] in targets
    ports = {port['name']: port['containerPort'] for port in container_['ports']}
    assert given['--listen'] == f'0.0.0.0:{ports["http"]}' and given['--metrics'] == f'0.0.0.0:{ports["metrics"]}'
    assert pod['terminationGracePeriodSeconds'] >= timeout + 5  # the process still has to exit
    probes = container_['startupProbe'], container_['livenessProbe'], ready
    assert [probe['httpGet']['path'] for probe in probes] == ['/live', '/live', '/ready']


def test_the_metrics_of_the_manifest_are_scraped_inside_the_cluster_only(manifest):
    documents = manifest[1]
    template = documents['Deployment']['spec']['template']
    (container_,) = template['spec']['containers']
    ports = {port['name']: str(port['containerPort']) for port in container_['ports']}
    assert template['metadata']['annotations'] == {
        'prometheus.io/scrape': 'true',
        'prometheus.io/port': ports['metrics'],
        'prometheus.io/path': '/metrics',
    }
    assert [port['targetPort'] for port in documents['Service']['spec']['ports']] == ['http']


def status_of(port, path):
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port}{path}', timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_command_of_the_manifest_answers_its_probes(manifest):
    _, container_, given = container(manifest)
    pytest.importorskip('prometheus_client', reason='not tested with metrics: no prometheus_client')
    port, metrics = free_port(), free_port()
    given.update({'--listen': f'127.0.0.1:{port}', '--metrics': f'127.0.0.1:{metrics}', '--lame-duck': '1'})
    command = here([*container_['command'], *(word for pair in given.items() for word in pair)])
    paths = [container_[probe]['httpGet']['path'] for probe in ('startupProbe', 'livenessProbe', 'readinessProbe')]
    with running(command) as process:
        process.stdout.readline()
        assert [get(port, path) for path in paths] == [(200, False)] * 3
        with urllib.request.urlopen(f'http://127.0.0.1:{metrics}/metrics', timeout=20) as answer:
            assert b'\nreactor_requests_total{' in answer.read()
        assert status_of(metrics, '/live') == status_of(metrics, '/ready') == 200  # as the comment in the manifest says
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: get(port, '/ready') == (503, True))
        assert [get(port, path) for path in paths] == [(200, True), (200, True), (503, True)]
        assert (status_of(metrics, '/live'), status_of(metrics, '/ready')) == (200, 503)
        assert process.wait(20) == 0
