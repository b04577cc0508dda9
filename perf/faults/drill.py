"""An operator's drill (O1): a service breaks in eight ways, and its metrics have to say how within 5 s.

Each fault strikes a new service: a parent with two workers, whose log goes to a file. An operator at 3 a.m. sees the
dashboard first, so only the page /metrics is read. Each fault has a sign: a test on the metrics that is false while all
is well, and true once the fault is visible.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from perf.common.server import Failed, environment, read_line

from .case import Case, Goal
from .held import wait_until
from .serving import children

PROGRAM = Path(__file__).with_name('drill_program.py')
LIMIT = 5.0  # seconds in which a fault has to be visible
OWED = 100  # answers that a draining service owes
DRAIN_TIMEOUT = 20.0  # seconds
DESCRIPTORS = 60  # descriptor limit of each process, for the fault that uses them up


class Service:
    """A context manager: the program of this drill, in a folder of its own."""

    def __init__(self, stack, log='log', descriptors=None):
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.code = self.folder / 'release' / 'program.py'
        self.code.parent.mkdir()
        shutil.copy(PROGRAM, self.code)
        with open(self.folder / log if log else '/dev/full', 'w') as file:
            self.process = subprocess.Popen(
                [sys.executable, self.code, str(DRAIN_TIMEOUT)],
                env=environment(), stdout=subprocess.PIPE, stderr=file, text=True, cwd=self.code.parent,
                preexec_fn=descriptors and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors,) * 2)),
            )  # fmt: skip
        stack.callback(self.end)
        self.port, self.metrics_port = map(int, read_line(self.process, 20).split())
        wait_until('both workers serve', lambda: self.value('reactor_workers', state='serving') == 2)

    def end(self):
        """Kill the parent and its workers."""
        for pid in [self.process.pid, *children(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def samples(self):
        """Return the metrics as (name, labels, value)."""
        with urllib.request.urlopen(f'http://127.0.0.1:{self.metrics_port}/metrics', timeout=LIMIT) as page:
            lines = page.read().decode().splitlines()
        for line in lines:
            if line and line[0] != '#':
                name, _, value = line.rpartition(' ')
                name, _, labels = name.partition('{')
                yield name, labels, float(value)

    def value(self, name, **labels):
        """Return the sum of a metric over all samples that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(value for found, having, value in self.samples() if found == name and all(map(having.count, wanted)))

    def worker(self):
        """Return the pid of one worker."""
        return children(self.process.pid)[0]

    def connect(self, count):
        """Return clients that have sent a request, which is answered only at the end of a drain."""
        clients = [socket.create_connection(('127.0.0.1', self.port)) for _ in range(count)]
        for client in clients:
            client.sendall(b'later\n')
        return clients


def kill(service, stack):
    os.kill(service.worker(), signal.SIGKILL)


def stop(service, stack):
    os.kill(service.worker(), signal.SIGSTOP)


def reload_broken_code(service, stack):
    service.code.write_text('this is not a program')
    service.process.send_signal(signal.SIGHUP)


def remove_directory(service, stack):
    shutil.rmtree(service.code.parent)
    service.process.send_signal(signal.SIGHUP)


def start_again(service, stack):
    command = [sys.executable, service.code, str(DRAIN_TIMEOUT), str(service.port)]
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    if second.returncode == 0 or f':{service.port}' not in second.stderr:
        raise Failed(f'the second parent ended with status {second.returncode} and said {second.stderr!r}')


def use_up_descriptors(service, stack):
    for client in service.connect(3 * DESCRIPTORS):
        stack.callback(client.close)


def owe_answers_and_drain(service, stack):
    for client in service.connect(OWED):
        stack.callback(client.close)
    wait_until('all have asked', lambda: service.value('reactor_requests_total') == OWED)
    service.process.terminate()


def restarted(service):
    return service.value('reactor_worker_restarts_total') > 0


def hangs(service):
    return service.value('reactor_workers', state='hung') == 1


def reload_failed(service):
    return service.value('reactor_last_reload_successful') == 0


def unharmed(service):
    return service.value('reactor_workers', state='serving') == 2 and not restarted(service)


def loses_log_lines(service):
    return service.value('reactor_log_lines_lost_total') > 0


def has_no_descriptors(service):
    most = max(value for name, _, value in service.samples() if name == 'reactor_open_descriptors')
    return service.value('reactor_accept_pauses_total') > 0 and most >= 0.9 * DESCRIPTORS


def owes_answers(service):
    return (
        service.value('reactor_service_draining') == 1
        and service.value('reactor_drain_connections') == OWED
        and service.value('reactor_drain_remaining_seconds') > 0
    )


# Maps the name of each fault to how it strikes, and to its sign in the metrics.
FAULTS = {
    'killed': (kill, restarted),
    'stopped': (stop, hangs),
    'broken_code': (reload_broken_code, reload_failed),
    'removed_directory': (remove_directory, reload_failed),
    'two_parents': (start_again, unharmed),  # the second one must end, and the first one must not notice
    'full_disk': (kill, loses_log_lines),  # the end of the worker cannot be logged
    'no_descriptors': (use_up_descriptors, has_no_descriptors),
    'owed_answers': (owe_answers_and_drain, owes_answers),
}
TRUE_BEFORE = {'two_parents', 'full_disk'}  # the disk is full from the start, so its sign is there before the kill
OPTIONS = {'full_disk': {'log': None}, 'no_descriptors': {'descriptors': DESCRIPTORS}}


class Drill(Case):
    name = 'O1'
    title = 'a service with two workers breaks in eight ways; its metrics say how'
    seconds = 60
    goals = tuple(
        Goal(f'{name}: visible within {LIMIT:g} s', lambda m, name=name: m[name] is not None and m[name] <= LIMIT)
        for name in FAULTS
    )

    def missing(self):
        try:
            import prometheus_client  # noqa: F401
        except ImportError:
            return 'the metrics need prometheus_client: pip install prometheus_client'
        return super().missing()

    def measure(self, run):
        found = {}
        for index, name in enumerate(FAULTS):
            run.progress(index, len(FAULTS), name)
            with contextlib.ExitStack() as stack:
                found[name] = seconds_until_visible(name, Service(stack, **OPTIONS.get(name, {})), stack)
        return found


def seconds_until_visible(name, service, stack):
    """Let a fault strike; return after how many seconds the metrics show it, or None if they do not."""
    strike, sign = FAULTS[name]
    if name not in TRUE_BEFORE and sign(service):
        raise Failed(f'{name}: the metrics show the fault before it has struck')
    began = time.monotonic()
    strike(service, stack)
    with contextlib.suppress(Failed):
        wait_until('the metrics show the fault', lambda: sign(service), 2 * LIMIT)
        return round(time.monotonic() - began, 2)
    return None
