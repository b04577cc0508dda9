"""The alert rules and the dashboard: each alert fires when a real service has its fault, and never without it.

They need Debian's package prometheus. The services are programs with real faults (tests/helpers/faulty_service.py),
which a real Prometheus scrapes twice a second. The ranges and the `for:` of the shipped rules are shortened; everything
else is used as it is shipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.proxied import HERE, PROJECT, children, ended, free_port, wait_until

FOLDER = PROJECT / 'examples' / 'prometheus'
PROGRAM = PROJECT / 'tests' / 'helpers' / 'faulty_service.py'
RULES = (FOLDER / 'alerts.yml').read_text()
ALERTS = re.findall(r'^ +- alert: (\w+)$', RULES, re.MULTILINE)
DASHBOARD = json.loads((FOLDER / 'dashboard.json').read_text())
PANELS = [panel for panel in DASHBOARD['panels'] if panel['type'] != 'row']
EXPRESSIONS = [(panel['title'], target['expr']) for panel in PANELS for target in panel['targets']]
# Each fault, the alerts that it must fire, and further alerts that it may fire.
FAULTS = {
    'down': ({'ReactorDown'}, set()),
    'no worker': ({'ReactorNoWorkerServes', 'ReactorWorkersRestart'}, set()),
    'hang': ({'ReactorWorkerHangs'}, set()),
    'restarts': ({'ReactorWorkersRestart'}, set()),
    'descriptors': ({'ReactorDescriptorsRunOut'}, set()),
    'listen queue': ({'ReactorListenQueueFull'}, set()),
    'late timers': ({'ReactorTimersLate'}, set()),
    'busy loop': ({'ReactorLoopBusy'}, set()),
    'failed requests': ({'ReactorRequestsFail'}, set()),
    'exceptions': ({'ReactorCallbackErrors'}, set()),
    'drain': ({'ReactorDrainTooLong'}, set()),
    'reload': ({'ReactorReloadFailed'}, set()),
    'log': ({'ReactorLogLinesLost'}, set()),
}
# Panels that are empty as long as there is nothing to show.
EMPTY = {'Slow callbacks per second', 'Connections that a drain waits for', 'Time left to drain'}


def needs(command):
    return pytest.mark.skipif(
        shutil.which(command) is None, reason=f'NOT TESTED with {command}: apt-get install prometheus'
    )


def promtool(*words):
    done = subprocess.run(['promtool', *words], capture_output=True, text=True, timeout=60, cwd=FOLDER)
    return done.returncode, done.stdout + done.stderr


# -- what the files say


@needs('promtool')
@pytest.mark.parametrize(
    'command', ['check rules alerts.yml', 'check config prometheus.yml', 'test rules alerts_test.yml']
)
def test_promtool_accepts_the_files(command):
    status, printed = promtool(*command.split())
    assert status == 0, printed


@needs('promtool')
@pytest.mark.parametrize('name', ALERTS)
def test_the_unit_tests_notice_a_rule_that_never_fires(name, tmp_path):
    broken = re.sub(rf'(- alert: {name}\n +expr: )(>-\n +)?', r'\1\2vector(0) > 1 and ', RULES)
    assert broken != RULES
    (tmp_path / 'alerts.yml').write_text(broken)
    shutil.copy(FOLDER / 'alerts_test.yml', tmp_path)
    status, printed = promtool('test', 'rules', str(tmp_path / 'alerts_test.yml'))
    assert status != 0 and name in printed, printed


def test_every_alert_has_a_test_with_a_real_fault_and_says_what_to_do():
    assert sorted(ALERTS) == sorted({alert for fired, _ in FAULTS.values() for alert in fired})
    assert len(re.findall(r'^ +labels: \{severity: (?:page|ticket)\}$', RULES, re.MULTILINE)) == len(ALERTS)
    assert RULES.count(' summary: ') == RULES.count(' description: ') == len(ALERTS)


def test_grafana_can_show_the_dashboard():
    assert DASHBOARD['uid'] and DASHBOARD['title'] and DASHBOARD['schemaVersion'] >= 30
    panels = DASHBOARD['panels']
    assert len({panel['id'] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel['gridPos']
        assert 0 <= place['x'] < place['x'] + place['w'] <= 24 and place['h'] > 0
        columns, lines = range(place['x'], place['x'] + place['w']), range(place['y'], place['y'] + place['h'])
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken, f'{panel["title"]} covers another panel'
        taken |= cells
    variables = {variable['name'] for variable in DASHBOARD['templating']['list']}
    for panel in PANELS:
        assert panel['type'] in ('timeseries', 'stat') and panel['title'] and panel['fieldConfig']['defaults']['unit']
        assert len({target['refId'] for target in panel['targets']}) == len(panel['targets']) > 0
        for source in (panel['datasource'], *(target['datasource'] for target in panel['targets'])):
            assert source == {'type': 'prometheus', 'uid': '${datasource}'}
    used = set(re.findall(r'\$(\w+)', ' '.join(text for _, text in EXPRESSIONS)))
    assert used == (variables - {'datasource'}) | {'__rate_interval'}


# -- with real services


class Prometheus:
    """A running Prometheus with the shipped configuration and rules, whose times are shortened."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        rules = re.sub(r'\bfor: \w+', 'for: 1s', re.sub(r'\[\d+m\]', '[20s]', RULES))
        assert rules.count('for: 1s') > 5 and len(re.findall(r'\[\w+\]', rules)) > 5
        (folder / 'alerts.yml').write_text(rules)
        config = (FOLDER / 'prometheus.yml').read_text().replace('15s', '500ms').partition('    static_configs:')[0]
        (folder / 'prometheus.yml').write_text(
            f'{config}    file_sd_configs:\n      - {{files: [{folder}/targets.json], refresh_interval: 1s}}\n'
        )
        self.targets = []
        command = ['prometheus', '--config.file', str(folder / 'prometheus.yml'), '--log.level', 'warn']
        command += ['--storage.tsdb.path', str(folder / 'data'), '--web.listen-address', f'{HERE}:{self.port}']
        self.log = (folder / 'log').open('w')
        self.process = subprocess.Popen(command, stderr=self.log, process_group=0)

    def query(self, text):
        """Return the samples that a query returns now, as (labels, value)."""
        where = f'http://{HERE}:{self.port}/api/v1/query?{urllib.parse.urlencode({"query": text})}'
        with urllib.request.urlopen(where, timeout=20) as answer:
            found = json.load(answer)
        assert found['status'] == 'success'
        return [(sample['metric'], float(sample['value'][1])) for sample in found['data']['result']]

    def started(self):
        assert self.process.poll() is None, (self.folder / 'log').read_text()
        with suppress(OSError):
            return bool(self.query('vector(1)'))
        return False

    @contextmanager
    def scraping(self, port):
        """Scrape the metrics on this port; yields the value of the label `instance`."""
        self.targets.append(f'{HERE}:{port}')
        self.write_targets()
        try:
            wait_until(lambda: self.query(f'up{{instance="{HERE}:{port}"}} == 1'))
            yield f'{HERE}:{port}'
        finally:
            self.targets.remove(f'{HERE}:{port}')
            self.write_targets()

    def write_targets(self):
        new = self.folder / 'targets.new'
        new.write_text(json.dumps([{'targets': self.targets}]))
        new.replace(self.folder / 'targets.json')

    def fired(self, instance):
        """Return the alerts that have fired so far."""
        text = f'last_over_time(ALERTS{{alertstate="firing", instance="{instance}"}}[1h])'
        return {labels['alertname'] for labels, _ in self.query(text)}


@pytest.fixture(scope='module')
def prometheus(tmp_path_factory):
    if shutil.which('prometheus') is None:
        pytest.skip('NOT TESTED with Prometheus: apt-get install prometheus')
    pytest.importorskip('prometheus_client', reason='NOT TESTED: no prometheus_client')
    running = Prometheus(tmp_path_factory.mktemp('prometheus'))
    with running.log, ended(running.process):
        wait_until(running.started)
        yield running


@contextmanager
def service(fault, folder):
    """Run a service with this fault; yields (process, its port, the port of its metrics)."""
    with open('/dev/full' if fault == 'log' else folder / 'log', 'w') as log:
        command = [sys.executable, str(PROGRAM), fault, str(folder / 'broken')]
        environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, process_group=0
        )
        try:
            line = process.stdout.readline()
            assert line, (folder / 'log').read_text()
            yield process, *map(int, line.split())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def provoke(fault, process, port, sockets, folder):
    """Do what an operator or the clients do when a service has this fault."""
    if fault == 'down':
        os.killpg(process.pid, signal.SIGKILL)
    elif fault == 'reload':
        (folder / 'broken').touch()
        process.send_signal(signal.SIGHUP)
    elif fault == 'log':
        process.send_signal(signal.SIGHUP)  # each replaced worker is logged
    elif fault == 'listen queue':
        for _ in range(12):
            sock = sockets.track(socket.socket())
            sock.setblocking(False)  # when the queue is full, the kernel does not answer
            sock.connect_ex((HERE, port))
    elif fault == 'drain':
        client = sockets.connect((HERE, port))
        client.sendall(b'hold')
        time.sleep(1.5)  # until the worker has read the request, which nothing shows
        process.send_signal(signal.SIGHUP)


@pytest.mark.slow
@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_fires_its_alerts_and_no_others(fault, prometheus, tmp_path, sockets):
    if fault == 'descriptors' and not os.stat('/proc/self/fd').st_size:
        pytest.skip('NOT TESTED: the number of open descriptors is known only since Linux 6.2')
    expected, allowed = FAULTS[fault]
    with service(fault, tmp_path) as (process, port, metrics), prometheus.scraping(metrics) as instance:
        provoke(fault, process, port, sockets, tmp_path)
        wait_until(lambda: prometheus.fired(instance) >= expected, 60)
        assert prometheus.fired(instance) - expected <= allowed


@pytest.mark.slow
def test_a_service_that_is_reloaded_loses_a_worker_and_shuts_down_fires_no_alert(prometheus, tmp_path):
    def ask():
        with socket.create_connection((HERE, port), timeout=20) as sock:
            sock.sendall(b'x')
            with suppress(ConnectionError):  # the worker was killed
                sock.recv(10)

    with service('none', tmp_path) as (process, port, metrics), prometheus.scraping(metrics) as instance:
        wait_until(lambda: len(children(process)) == 2)
        for step in range(3):
            before = children(process)
            if step == 1:
                process.send_signal(signal.SIGHUP)
            elif step == 2:
                os.kill(min(before), signal.SIGKILL)
            until = time.monotonic() + 4
            while time.monotonic() < until:
                ask()
                time.sleep(0.02)
            assert len(children(process)) == 2
        assert [
            value for _, value in prometheus.query(f'sum(reactor_worker_restarts_total{{instance="{instance}"}})')
        ] == [1]
        with socket.create_connection((HERE, port), timeout=20) as client:
            client.sendall(b'hold')
            time.sleep(1.5)  # until the worker has read the request, which nothing shows
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: prometheus.query(f'reactor_service_draining{{instance="{instance}"}} == 1'))
            time.sleep(1.5)  # the time in which the alert for a service without workers would fire
            assert prometheus.query(f'reactor_drain_connections{{instance="{instance}"}} == 1')
            assert prometheus.fired(instance) == set()


@pytest.mark.slow
def test_every_panel_of_the_dashboard_shows_the_metrics_of_a_real_service(prometheus, tmp_path, sockets):
    with service('none', tmp_path) as (_, port, metrics), prometheus.scraping(metrics) as instance:
        client = sockets.connect((HERE, port))
        client.setblocking(True)
        values = {'$job': 'reactor', '$instance': instance, '$__rate_interval': '5s'}

        def shown(text):
            for name, value in values.items():
                text = text.replace(name, value)
            return prometheus.query(text)

        def all_shown():
            client.sendall(b'x')
            assert client.recv(10) == b'answer'
            return all(shown(text) for title, text in EXPRESSIONS if title not in EMPTY)

        try:
            wait_until(all_shown)
        finally:
            missing = [(title, text) for title, text in EXPRESSIONS if title not in EMPTY and not shown(text)]
        assert not missing
        with urllib.request.urlopen(f'http://{instance}/metrics', timeout=20) as answer:
            served = set(re.findall(r'^# TYPE (\S+)', answer.read().decode(), re.MULTILINE))
        used = set(
            re.findall(r'\breactor_\w+', RULES.partition('groups:')[2] + ' '.join(text for _, text in EXPRESSIONS))
        )
        assert {name.removesuffix('_bucket') for name in used} <= served
