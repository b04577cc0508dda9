"""Start the process of a server on its core, measure it, and end it.

CPU time and memory are read from the operating system, never from the process itself, and no process outlives its
`with` block.
"""

import os
import selectors
import subprocess
import time
from pathlib import Path

from .machine import on_core

PROJECT = Path(__file__).parents[2]
START = 20  # seconds within which a server must be listening
SETTLED = 0.2  # seconds without a change after which memory counts as settled


class Failed(Exception):
    """A measurement failed: a process ended, did not answer in time, or gave an unexpected answer."""


class Measured:
    """The CPU time, memory and descriptors of a process, read from the operating system by its `pid`."""

    pid: int

    def cpu(self):
        """Return the CPU time that all its threads have used so far, in seconds."""
        return time.clock_gettime((~self.pid << 3) | 2)  # the clock id that clock_getcpuclockid(3) returns on Linux

    def wakeups(self):
        """Return how often its main thread has waited so far: the voluntary context switches."""
        with open(f'/proc/{self.pid}/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('voluntary_ctxt_switches:'))

    def memory(self):
        """Wait until the resident memory has settled, and return it in bytes."""
        last, since = None, time.monotonic()
        while True:
            now = resident(self.pid)
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > SETTLED:
                return now
            time.sleep(0.02)

    def peak_memory(self):
        """Return the largest resident memory so far, in bytes."""
        with open(f'/proc/{self.pid}/status') as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM:'))

    def descriptors(self):
        """Return how many descriptors the process has open."""
        return len(os.listdir(f'/proc/{self.pid}/fd'))


class Server(Measured):
    """A context manager: the server program of a peer, listening on a free port of 127.0.0.1.

    peer      the peer's name, and the command that starts the program
    workload  name of the workload that the program serves
    core      the core that the process is pinned to, or None
    start     seconds within which the program must be listening
    """

    def __init__(self, peer, workload, core, start=START):
        command = [*peer.command, '--port', '0', '--workload', workload]
        with on_core(core):
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
            )
        self.pid = self.process.pid
        try:
            line = read_line(self.process, start)
            start, _, where = line.partition('listening on ')
            if start or not where:
                raise Failed(f'{peer.name} does not listen: {line or self.last_words()}')
            host, _, port = where.rpartition(':')
            self.port = int(port) if host else None
            self.address = self.port or where  # of a Unix socket
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def last_words(self):
        """Kill the process and return the last line that it wrote to standard error."""
        self.process.kill()
        return (self.process.communicate()[1].strip().splitlines() or ['it ended without a message'])[-1]

    def close(self):
        self.process.terminate()
        try:
            self.process.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def environment():
    """Return the environment of a program that is measured: it imports this checkout and prints no warnings."""
    return {**os.environ, 'PYTHONPATH': str(PROJECT), 'PYTHONWARNINGS': 'ignore', 'NODE_NO_WARNINGS': '1'}


def read_line(process, seconds):
    """Return the first line that a process prints, or '' when it ends or prints no line within `seconds`."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline().strip() if selector.select(seconds) else ''


def resident(pid):
    """Return the resident memory of a process in bytes."""
    with open(f'/proc/{pid}/smaps_rollup') as file:
        for line in file:
            if line.startswith('Rss:'):
                return int(line.split()[1]) * 1024
    raise Failed(f'process {pid} has no resident memory')
