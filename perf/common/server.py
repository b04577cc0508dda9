"""A peer's process while it is measured: started on its core, asked for CPU time and memory, ended.

Owns the process. Knows nothing of what it answers. The rule: figures come from the operating system, never from the
process itself, and no process outlives its `with`.
"""

import os
import selectors
import subprocess
import time
from pathlib import Path

from .machine import on_core

PROJECT = Path(__file__).parents[2]
START = 20  # seconds until a server must listen
SETTLED = 0.2  # seconds without a change of memory


class Failed(Exception):
    """A peer did not do what it was measured for."""


class Measured:
    """A process of which the system is asked what it uses: `pid` is all that it needs."""

    pid: int

    def cpu(self):
        """Seconds of CPU that all its threads have used so far, to the nanosecond."""
        return time.clock_gettime((~self.pid << 3) | 2)  # what clock_getcpuclockid(3) returns on Linux

    def memory(self):
        """Resident bytes, once they have settled."""
        last, since = None, time.monotonic()
        while True:
            now = resident(self.pid)
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > SETTLED:
                return now
            time.sleep(0.02)

    def peak_memory(self):
        """The most bytes that were resident at any time."""
        with open(f'/proc/{self.pid}/status') as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM:'))

    def descriptors(self):
        """How many it has open."""
        return len(os.listdir(f'/proc/{self.pid}/fd'))


class Server(Measured):
    """A server on a port that the system chose; a context manager."""

    def __init__(self, peer, workload, core, start=START):
        command = [*peer.command, '--port', '0', '--workload', workload]
        with on_core(core):
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
            )
        self.pid = self.process.pid
        try:
            line = read_line(self.process, start)
            if not line.startswith('listening on 127.0.0.1:'):
                raise Failed(f'{peer.name} does not listen: {line or self.last_words()}')
            self.port = int(line.rpartition(':')[2])
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def last_words(self):
        self.process.kill()
        return (self.process.communicate()[1].strip().splitlines() or ['it ended without a word'])[-1]

    def close(self):
        self.process.terminate()
        try:
            self.process.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def environment():
    return {**os.environ, 'PYTHONPATH': str(PROJECT), 'PYTHONWARNINGS': 'ignore', 'NODE_NO_WARNINGS': '1'}


def read_line(process, seconds):
    """Its first line, or nothing when it ends or takes too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline().strip() if selector.select(seconds) else ''


def resident(pid):
    with open(f'/proc/{pid}/smaps_rollup') as file:
        for line in file:
            if line.startswith('Rss:'):
                return int(line.split()[1]) * 1024
    raise Failed(f'process {pid} has no resident memory')
