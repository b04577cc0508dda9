"""The list of peers: how each is started, and why some cannot be measured on this machine.

A peer that is left out is always reported, with the reason.
"""

import atexit
import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).with_name('peers')
REPLIES = {'keepalive', 'churn', 'pending', 'seed'}
ALL = REPLIES | {'large', 'pump', 'broadcast'}
NO_TIMERS = ALL - {'seed', 'pending'}
LOOPS = {'timers', 'soon', 'threads', 'client'}


class Peer:
    """A server program in `peers/`, and for some peers a program that measures the loop itself.

    workloads       names of the workloads that the server program answers
    loop_workloads  names of the workloads that the loop program runs
    needs           name of a Python module that has to be installed, or None
    """

    def __init__(self, name, workloads, loop_workloads=frozenset(), needs=None):
        self.name = name
        self.workloads = workloads
        self.needs = needs
        self.loop_workloads = loop_workloads
        self.command = [sys.executable, str(FOLDER / f'{name}_server.py')]
        self.loop_command = [sys.executable, str(FOLDER / f'{name}_loop.py')]

    def missing(self):
        """Return why the peer cannot be measured here, or None."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f'the Python module {self.needs} is not installed'
        return None


class Node(Peer):
    def __init__(self):
        super().__init__('node', ALL)
        self.command = ['node', str(FOLDER / 'node_server.js')]

    def missing(self):
        return None if shutil.which('node') else 'the command node is not installed'


class Floor(Peer):
    """The server in C, which is compiled before its first use."""

    def __init__(self):
        super().__init__('epoll', REPLIES)

    def missing(self):
        if sys.platform != 'linux' or not shutil.which('cc'):
            return 'it needs Linux and a C compiler'
        self.command = [compiled(FOLDER / 'epoll.c')]
        return None


@functools.cache
def compiled(source):
    """Compile a C file and return the path of the program. The program is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix='compare-')
    atexit.register(shutil.rmtree, folder)
    program = f'{folder}/{source.stem}'
    subprocess.run(['cc', '-O2', '-o', program, source], check=True, timeout=60)
    return program


def peers():
    """Return all known peers, this reactor first."""
    return [
        Peer('reactor', ALL | {'defer', 'tls'}, LOOPS),
        Peer('asyncio', ALL | {'tls'}, LOOPS),
        Peer('uvloop', ALL | {'tls'}, LOOPS, needs='uvloop'),
        # gevent runs a callback in the turn that adds it, so a chain of callbacks would not measure turns of the loop.
        Peer('gevent', ALL, LOOPS - {'soon'}, needs='gevent'),
        Peer('twisted', ALL, LOOPS, needs='twisted'),
        Peer('tornado', ALL, LOOPS, needs='tornado'),
        Peer('trio', ALL, needs='trio'),
        Peer('pyftpdlib', ALL, needs='pyftpdlib'),
        Peer('asyncore', NO_TIMERS, needs='asyncore'),
        Node(),
        Floor(),
    ]
