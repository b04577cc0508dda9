"""The Dockerfile: what matters about it, the package that it installs, and the service as process 1.

The image itself is built only where Docker works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.proxied import ended, free_port, get, wait_until

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / 'examples' / 'container'
DOCKERFILE = (FOLDER / 'Dockerfile').read_text()

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='the image is for Linux')


def stages(text):
    """Return the instructions of each stage, as (name, arguments)."""
    found = []
    lines = [line for line in text.splitlines() if not line.startswith('#')]
    for line in '\n'.join(lines).replace('\\\n', ' ').splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(' ')
            if name == 'FROM':
                found.append([])
            found[-1].append((name, rest.strip()))
    return found


def values(stage, name):
    return [rest for given, rest in stage if given == name]


def problems(text):
    """Return what is wrong with a Dockerfile for a service that drains on SIGTERM and needs no privileges."""
    found, final = [], stages(text)[-1]
    for stage in stages(text):
        (image,) = values(stage, 'FROM')
        if not re.match(r'[\w./-]+:\d[\w.-]*( AS \w+)?$', image):
            found.append(f'the image {image} has no version')
        for name, rest in stage:
            if name == 'COPY' and '--from=' not in rest:
                found += [f'{path} does not exist' for path in rest.split()[:-1] if not (CHECKOUT / path).exists()]
            if name == 'ADD':
                found.append('ADD can download or unpack; use COPY')
    if not re.fullmatch(r'[1-9]\d*(:[1-9]\d*)?', (values(final, 'USER') or [''])[-1]):
        found.append('the user is root or has no number')
    if values(final, 'STOPSIGNAL') != ['SIGTERM']:
        found.append('SIGTERM is not the signal to stop')
    for name in ('ENTRYPOINT', 'CMD'):
        if not (values(final, name) or [''])[-1].startswith('['):
            found.append(f'{name} starts a shell')
    if values(final, 'RUN'):
        found.append('the final stage runs commands, so it may contain their tools')
    return found


def test_the_dockerfile_has_none_of_the_usual_problems():
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    'line, changed, problem',
    [
        ('FROM python:3.13-slim-bookworm\n', 'FROM python\n', 'the image python has no version'),
        ('FROM python:3.13-slim-bookworm\n', 'FROM python:latest\n', 'the image python:latest has no version'),
        ('USER 10001:10001\n', '', 'the user is root'),
        ('USER 10001:10001\n', 'USER 0\n', 'the user is root'),
        ('USER 10001:10001\n', 'USER app\n', 'the user is root'),
        ('STOPSIGNAL SIGTERM\n', 'STOPSIGNAL SIGINT\n', 'SIGTERM is not'),
        ('ENTRYPOINT ["python", "-X", "faulthandler", "/app/service.py"]', 'ENTRYPOINT python', 'ENTRYPOINT starts a'),
        ('EXPOSE', 'RUN apt-get install gcc\nEXPOSE', 'the final stage runs commands'),
        ('examples/service.py', 'examples/services.py', 'examples/services.py does not exist'),
        ('COPY examples', 'ADD examples', 'ADD'),
    ],
)
def test_the_check_of_the_dockerfile_finds_each_problem(line, changed, problem):
    assert line in DOCKERFILE
    (found,) = problems(DOCKERFILE.replace(line, changed))
    assert found.startswith(problem)


def test_the_image_starts_the_command_of_the_kubernetes_manifest():
    yaml = pytest.importorskip('yaml', reason='the manifest was not compared: no PyYAML')
    final = stages(DOCKERFILE)[-1]
    documents = list(yaml.safe_load_all((CHECKOUT / 'examples' / 'kubernetes' / 'app.yaml').read_text()))
    pod = next(one for one in documents if one['kind'] == 'Deployment')['spec']['template']['spec']
    (container,) = pod['containers']
    assert json.loads(values(final, 'ENTRYPOINT')[0]) == container['command']
    assert values(final, 'USER') == ['{runAsUser}:{runAsGroup}'.format(**pod['securityContext'])]
    ports = {str(port['containerPort']) for port in container['ports']}
    assert set(values(final, 'EXPOSE')[0].split()) == ports


def test_the_readme_gives_more_time_than_the_drain_timeout():
    text = (CHECKOUT / 'docs' / 'operations' / 'container.md').read_text()
    arguments = json.loads(values(stages(DOCKERFILE)[-1], 'CMD')[0])
    timeout = float(arguments[arguments.index('--drain-timeout') + 1])
    times = re.findall(r'(?:--stop-timeout |stop -t |stop_grace_period: )(\d+)', text)
    assert len(times) == 4 and all(float(time) >= timeout + 5 for time in times)


def test_the_copied_files_are_enough_to_build_the_package(tmp_path):
    pytest.importorskip('setuptools', reason='not built: no setuptools')
    for rest in values(stages(DOCKERFILE)[0], 'COPY'):
        *sources, _ = rest.split()
        for source in sources:
            if (CHECKOUT / source).is_dir():
                shutil.copytree(CHECKOUT / source, tmp_path / source)
            else:
                shutil.copy(CHECKOUT / source, tmp_path)
    command = [sys.executable, '-c', 'import setuptools; setuptools.setup()', '-q', 'build', '--build-base', 'made']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    made = {str(path.relative_to(tmp_path / 'made' / 'lib')) for path in (tmp_path / 'made' / 'lib').rglob('*')}
    assert {'reactor/serve/running.py', 'reactor/observe/live.html', 'reactor/py.typed'} <= made


def namespace():
    """Return a command that runs another one as process 1 of its own namespace, or None if that is forbidden here."""
    for options in ([], ['--user', '--map-root-user']):
        command = ['unshare', *options, '--pid', '--fork', '--kill-child', '--mount-proc']
        if shutil.which('unshare') and subprocess.run([*command, 'true'], capture_output=True).returncode == 0:
            return command
    return None


@pytest.mark.parametrize('workers', [0, 2])
def test_the_service_drains_on_sigterm_as_process_1(workers):
    prefix = namespace()
    if prefix is None:
        pytest.skip('NOT TESTED as process 1: this system allows no process namespaces')
    (entry,), (arguments,) = (values(stages(DOCKERFILE)[-1], name) for name in ('ENTRYPOINT', 'CMD'))
    port, metrics = free_port(), free_port()
    changes = {
        'python': sys.executable, '/app/service.py': str(CHECKOUT / 'examples' / 'service.py'),
        '0.0.0.0:8080': f'127.0.0.1:{port}', '0.0.0.0:9464': f'127.0.0.1:{metrics}',
    }  # fmt: skip
    command = [changes.get(word, word) for word in json.loads(entry) + json.loads(arguments)]
    command += ['--lame-duck', '0', '--workers', str(workers)]
    pytest.importorskip('prometheus_client', reason='not tested with metrics: no prometheus_client')
    environment = {**os.environ, 'PYTHONPATH': str(CHECKOUT)}
    with ended(
        subprocess.Popen(
            [*prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            process_group=0,
        )
    ) as process:  # fmt: skip
        printed = ''
        while printed.count('listening on ') < max(1, workers):
            printed += process.stdout.readline() or pytest.fail(process.stderr.read())
        wait_until(lambda: get(port)[0] == 200)
        (first,) = psutil.Process(process.pid).children()
        assert Path(f'/proc/{first.pid}/status').read_text().split('NSpid:')[1].split('\n')[0].split()[-1] == '1'
        first.send_signal(signal.SIGTERM)  # as `docker stop` does
        assert process.wait(20) == 0
        assert not process.stderr.read()


def docker(*words, **options):
    return subprocess.run(['docker', *words], capture_output=True, text=True, timeout=110, **options)


@pytest.fixture
def works():
    if shutil.which('docker') is None or docker('info').returncode:
        pytest.skip('NOT BUILT: the image was only checked, because Docker does not work here')
    image = values(stages(DOCKERFILE)[-1], 'FROM')[0]
    if docker('image', 'inspect', image).returncode and docker('pull', image).returncode:
        pytest.skip(f'NOT BUILT: the image was only checked, because {image} cannot be downloaded here')


def test_the_image_is_built_and_its_container_drains(works):
    built = docker('build', '-q', '-f', str(FOLDER / 'Dockerfile'), str(CHECKOUT))
    assert built.returncode == 0, built.stderr
    port = free_port()
    run = ['run', '-d', '--read-only', '--stop-timeout', '40', '-p', f'127.0.0.1:{port}:8080', built.stdout.strip()]
    container = docker(*run).stdout.strip()

    def answered():
        try:
            return get(port)[0] == 200
        except (OSError, IndexError):
            return False  # the container is still starting

    try:
        wait_until(answered)
        assert docker('stop', container).returncode == 0
        assert docker('wait', container).stdout.strip() == '0', docker('logs', container).stderr
    finally:
        docker('rm', '-f', container)
