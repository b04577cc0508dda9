"""Running a recipe as a program, and what to look at from outside: its descriptors, wake-ups and children."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

RECIPES = Path(__file__).parents[2] / 'examples' / 'recipes'
PYTHON = sys.executable, '-X', 'dev', '-W', 'error'
LISTENING = r'listening on 127\.0\.0\.1:(\d+)\n'


@contextmanager
def recipe(name, *words, first=LISTENING, python=PYTHON, harmless='(?!)'):
    """Run a recipe; yields its process and what its first line says. It must end without printing an error."""
    command = [*python, str(RECIPES / name), *words]
    environment = {**os.environ, 'PYTHONPATH': str(RECIPES.parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(first, line)
        assert found, line + process.stderr.read()
        yield process, found[1] if found.groups() else line
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0, errors
        assert not re.sub(harmless, '', errors), errors
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def wait_until(condition, seconds=15):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'waited in vain'
        time.sleep(0.01)


def descriptors(process):
    return len(os.listdir(f'/proc/{process.pid}/fd'))


def wakeups(process, seconds=2.0):
    """Return how often the main thread of a process woke up per second, in this time."""
    status = Path(f'/proc/{process.pid}/status')

    def switches():
        return int(re.search(r'^voluntary_ctxt_switches:\s+(\d+)', status.read_text(), re.MULTILINE)[1])

    before = switches()
    time.sleep(seconds)
    return (switches() - before) / seconds
