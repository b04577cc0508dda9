"""Libvirt on the reactor: its test driver in the process, and a libvirtd that is killed, stopped and started again.

The daemon runs as an ordinary user, so that it leaves the machine alone, and has the machines of the test driver.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.recipes.running import RECIPES, descriptors, recipe, wait_until, wakeups

INSTALL = 'apt-get install libvirt-dev pkg-config gcc; pip install libvirt-python==VERSION, that of libvirt-dev'


def has_libvirt(python):
    return subprocess.run([python, '-c', 'import libvirt'], capture_output=True).returncode == 0


@pytest.fixture(scope='module')
def python():
    """A Python with the module libvirt: this one, or that of Debian."""
    found = next((python for python in (sys.executable, '/usr/bin/python3') if has_libvirt(python)), None)
    if found is None:
        pytest.skip(f'NOT TESTED: libvirt-python is not installed: {INSTALL}, or apt-get install python3-libvirt')
    return found


def test_every_event_of_the_test_driver_arrives_in_order_and_the_loop_ends_after_the_connection(python, capsys):
    program = """if 1:
        import json, threading, time
        import libvirt, reactor
        from libvirt_loop import LibvirtLoop

        COUNT, result, seen = 2000, {}, []

        def change():
            domain = conn.lookupByName('test')
            for _ in range(COUNT // 2):
                domain.suspend()
                domain.resume()

        def on_event(conn, domain, event, detail, _):
            seen.append((event, threading.get_ident() == loop.thread))
            if len(seen) == COUNT:
                result['seconds'] = time.monotonic() - began
                r.call_later(0.5, idle, r.stats().loop_count)

        def idle(turns):
            result['turns'] = r.stats().loop_count - turns
            result['watches'], result['timers'] = len(loop.watches), len(loop.timers)
            conn.domainEventDeregisterAny(number)
            conn.close()

        r = reactor.Reactor()
        loop = LibvirtLoop(r)
        conn = libvirt.open('test:///default')
        number = conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_event, None)
        began = time.monotonic()
        r.run_in_thread(change)
        result['ended'] = r.run()
        result['left'] = len(loop.watches) + len(loop.timers)
        kinds = [libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_RESUMED]
        result['right'] = seen == [(kind, True) for _ in range(COUNT // 2) for kind in kinds]
        r.close()
        print(json.dumps(result))
    """
    environment = {**os.environ, 'PYTHONPATH': f'{RECIPES.parents[1]}:{RECIPES}'}
    command = [python, '-X', 'dev', '-W', 'error', '-c', program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    result = json.loads(done.stdout)
    with capsys.disabled():
        print(f'\nlibvirt, test:///default: {result}')
    assert result['right'] and result['ended']
    assert result['turns'] <= 3  # the last event, and the end of the thread
    assert result['left'] == 0


class Daemon:
    """A libvirtd of our own."""

    def __init__(self, folder):
        self.folder = folder
        self.path = Path(folder) / 'libvirt' / 'libvirt-sock'
        self.uri = f'test+unix:///default?socket={self.path}'
        self.user = {}
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
            self.user = {'user': 65534, 'group': 65534, 'extra_groups': []}
        self.start()

    def start(self):
        names = 'HOME', 'XDG_RUNTIME_DIR', 'XDG_CONFIG_HOME', 'XDG_CACHE_HOME'
        environment = {**os.environ, **dict.fromkeys(names, self.folder)}
        quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL, 'cwd': self.folder}
        self.process = subprocess.Popen(['libvirtd'], env=environment, **quiet, **self.user)
        # `virsh` connects anew each time. The test driver forgets its states when its last connection is closed.
        wait_until(lambda: self.virsh('uri', check=False).returncode == 0)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def virsh(self, *words, check=True):
        done = subprocess.run(['virsh', '-c', self.uri, *words], capture_output=True, text=True, timeout=20)
        assert not check or done.returncode == 0, done.stderr
        return done


@pytest.fixture
def daemon(python):
    if shutil.which('libvirtd') is None or shutil.which('virsh') is None:
        pytest.skip('NOT TESTED: libvirtd or virsh is not installed: apt-get install libvirt-daemon libvirt-clients')
    with tempfile.TemporaryDirectory() as folder:  # not in `tmp_path`, which other users cannot enter
        daemon = Daemon(folder)
        try:
            yield daemon
        finally:
            daemon.kill()


def watching(python, daemon, *words):
    first = re.escape(f'connected to {daemon.uri}\n')
    return recipe('libvirt_events.py', daemon.uri, *words, first=first, python=(python, '-X', 'dev', '-W', 'error'))


def test_events_arrive_again_from_a_daemon_that_was_killed_and_started_again(python, daemon):
    with watching(python, daemon) as (process, _):
        lines = process.stdout
        assert lines.readline() == 'test is running\n'
        before = descriptors(process)
        for _ in range(2):
            daemon.virsh('suspend', 'test')
            assert lines.readline() == 'test: suspended\n'
            assert 'paused' in daemon.virsh('domstate', 'test').stdout
            daemon.kill()
            assert lines.readline() == f'the daemon at {daemon.uri} is gone\n'
            assert lines.readline().startswith(f'cannot connect to {daemon.uri}: ')
            daemon.start()
            while (line := lines.readline()).startswith('cannot connect'):
                pass
            assert line == f'connected to {daemon.uri}\n'
            assert lines.readline() == 'test is running\n'  # the new daemon has a new machine
            daemon.virsh('destroy', 'test')
            assert lines.readline() == 'test: stopped\n'
            daemon.virsh('start', 'test')
            assert lines.readline() == 'test: started\n'
        wait_until(lambda: descriptors(process) == before)


@pytest.mark.slow
def test_how_often_an_idle_program_wakes_up_and_when_it_notices_a_daemon_that_hangs(python, daemon, capsys):
    with watching(python, daemon) as (process, _):
        process.stdout.readline()
        time.sleep(1.1)
        idle = wakeups(process, 3)
    with watching(python, daemon, '--keepalive', '1') as (process, _):
        process.stdout.readline()
        with_keepalive = wakeups(process, 3)
        daemon.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert process.stdout.readline() == f'the daemon at {daemon.uri} is gone\n'
        noticed = time.monotonic() - began
        daemon.process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == f'connected to {daemon.uri}\n'
    with capsys.disabled():
        print(f'\nlibvirt: idle {idle:.1f}/s, with keep-alive {with_keepalive:.1f}/s; hang noticed in {noticed:.1f} s')
    assert idle <= 1.5  # once a second, a reactor checks the descriptor of each `watch_fd`
    assert noticed < 6
