"""The recipe mqtt.py, tested with a Mosquitto broker that is killed while it passes messages on."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tests.examples.test_examples import EXAMPLES
from tests.examples.test_service_clients import Running, free_port, service
from tests.recipes.usage import cpu, descriptors, wakeups

pytest.importorskip('paho.mqtt.client', reason='NOT TESTED: paho-mqtt is not installed: pip install paho-mqtt')
MOSQUITTO = shutil.which('mosquitto', path='/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin')
pytestmark = pytest.mark.skipif(
    MOSQUITTO is None or shutil.which('mosquitto_sub') is None,
    reason='NOT TESTED: mosquitto is not installed: apt-get install mosquitto mosquitto-clients',
)
RECIPE = [sys.executable, '-X', 'dev', '-W', 'error', str(EXAMPLES / 'recipes/mqtt.py')]
# The broker writes its messages to the disk after each change; by default, it does so every 30 minutes. It passes any
# number of messages to a subscriber at once, and not only 20, so few messages are waiting in it.
CONFIG = """
listener {port} 127.0.0.1
allow_anonymous true
user root
persistence true
persistence_location {folder}/
autosave_on_changes true
autosave_interval 1
max_inflight_messages 0
max_queued_messages 0
"""
MESSAGES = 3000
RATE = 2000


@contextmanager
def broker(folder, persistence='true'):
    port = free_port()
    config = folder / 'mosquitto.conf'
    config.write_text(CONFIG.format(port=port, folder=folder).replace('persistence true', f'persistence {persistence}'))
    with service([MOSQUITTO, '-c', str(config)], port) as (start, kill, _):
        yield port, start, kill


class Recipe(Running):
    """The recipe as a child process. `lines` are all lines that it has printed and that were taken."""

    def __init__(self, port, *options):
        super().__init__(*RECIPE, '--port', str(port), *options)
        self.lines = []

    def until(self, line):
        """Take lines up to this one."""
        while not self.lines or not self.lines[-1].startswith(line):
            self.lines.append(self.printed.get(timeout=20))

    def all(self, kind):
        while not self.printed.empty():
            self.lines.append(self.printed.get())
        return [int(line.split()[1]) for line in self.lines if line.startswith(f'{kind}: ')]


@contextmanager
def subscriber(port):
    with Recipe(port, '--subscribe', 'news') as recipe:
        recipe.until('connected, with a new session')
        time.sleep(0.2)  # until the broker has the subscription
        yield recipe
        recipe.process.send_signal(signal.SIGINT)


@contextmanager
def mosquitto_sub(port, path):
    with path.open('w') as file:
        command = ['mosquitto_sub', '-p', str(port), '-t', 'news', '-q', '1', '-i', 'tool', '-c']
        process = subprocess.Popen(command, stdout=file)
        try:
            time.sleep(0.2)
            yield lambda: [int(line) for line in path.read_text().split()]
        finally:
            process.kill()
            process.wait()


def test_messages_are_received_as_mosquitto_sub_receives_them(tmp_path):
    with broker(tmp_path) as (port, _, _), mosquitto_sub(port, tmp_path / 'tool') as received:
        with subscriber(port) as recipe, Recipe(port, '--publish', 'news') as publisher:
            publisher.say(*map(str, range(5)))
            publisher.until('acknowledged: 4')
            recipe.until('received: 4')
            subprocess.run(['mosquitto_pub', '-p', str(port), '-t', 'news', '-q', '1', '-m', '5'], check=True)
            recipe.until('received: 5')
        assert recipe.all('received') == received() == list(range(6))


@pytest.mark.slow
def test_each_message_that_was_acknowledged_is_delivered_although_the_broker_is_killed(tmp_path):
    with broker(tmp_path) as (port, start, kill), mosquitto_sub(port, tmp_path / 'tool') as tool:
        with subscriber(port) as recipe, Recipe(port, '--publish', 'news') as publisher:
            publisher.until('connected')
            before = descriptors(recipe.process.pid), descriptors(publisher.process.pid)
            begin = time.monotonic()
            killer = threading.Timer(random.uniform(0.5, 1), kill)
            killer.start()
            for number in range(MESSAGES):
                publisher.say(str(number))
                if number == MESSAGES - 500:
                    killer.join()
                    used = [cpu(each.process.pid) for each in (recipe, publisher)]
                    time.sleep(0.5)
                    for each, cpu_before in zip((recipe, publisher), used, strict=True):
                        assert cpu(each.process.pid) - cpu_before < 0.2, 'busy while there is no broker'
                    start()
                time.sleep(max(0, begin + number / RATE - time.monotonic()))
            until = time.monotonic() + 30
            while len(set(publisher.all('acknowledged'))) < MESSAGES:
                assert time.monotonic() < until
                time.sleep(0.05)
            while len(set(recipe.all('received'))) < MESSAGES and time.monotonic() < until:
                time.sleep(0.05)
            assert (descriptors(recipe.process.pid), descriptors(publisher.process.pid)) == before
        received = recipe.all('received')
        print(f'{len(set(received))} of {MESSAGES} messages delivered, {len(received) - len(set(received))} twice; '
              f'mosquitto_sub: {len(set(tool()))}')  # fmt: skip
        for each in recipe, publisher:
            print([line for line in each.lines if 'connected' in line])
        assert sorted(set(received)) == list(range(MESSAGES))


def test_a_session_that_the_broker_has_lost_is_reported(tmp_path):
    with broker(tmp_path, 'false') as (port, start, kill), subscriber(port) as recipe:
        kill()
        recipe.until(f'not connected to 127.0.0.1:{port}: connection lost')
        start()
        recipe.until(f'127.0.0.1:{port} has lost the session')
        time.sleep(0.2)  # until the broker has the subscription
        subprocess.run(['mosquitto_pub', '-p', str(port), '-t', 'news', '-q', '1', '-m', '1'], check=True)
        recipe.until('received: 1')


def test_the_recipe_sleeps_while_there_are_no_messages(tmp_path):
    with broker(tmp_path) as (port, _, _), subscriber(port) as recipe:
        rate = wakeups(recipe.process.pid, 3)
        print(f'{rate:.1f} wake-ups a second')
        assert rate < 5
