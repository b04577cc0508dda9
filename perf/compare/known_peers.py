"""The peers: how each is started, and why one is left out.

Owns the list. Knows nothing of what they answer. The rule: who cannot be measured here is named, with the reason.
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
    """One server program, and perhaps one for what a loop does besides sockets."""

    def __init__(self, name, workloads, loop_workloads=frozenset(), needs=None):
        self.name = name
        self.workloads = workloads
        self.needs = needs
        self.loop_workloads = loop_workloads
        self.command = [sys.executable, str(FOLDER / f'{name}_server.py')]
        self.loop_command = [sys.executable, str(FOLDER / f'{name}_loop.py')]

    def missing(self):
        """Why it cannot be measured here; None when it can."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f'Python has no module {self.needs}'
        return None


class Node(Peer):
    def __init__(self):
        super().__init__('node', ALL)
        self.command = ['node', str(FOLDER / 'node_server.js')]

    def missing(self):
        return None if shutil.which('node') else 'there is no command node'


class Floor(Peer):
    """The C server, compiled when it is first asked for."""

    def __init__(self):
        super().__init__('epoll', REPLIES)

    def missing(self):
        if sys.platform != 'linux' or not shutil.which('cc'):
            return 'it needs Linux and a C compiler'
        self.command = [compiled(FOLDER / 'epoll.c')]
        return None


@functools.cache
def compiled(source):
    """The program made of a C file, gone when this process ends."""
    folder = tempfile.mkdtemp(prefix='compare-')
    atexit.register(shutil.rmtree, folder)
    program = f'{folder}/{source.stem}'
    subprocess.run(['cc', '-O2', '-o', program, source], check=True, timeout=60)
    return program


def peers():
    """All that are known, the one measured against the others first."""
    return [
        Peer('reactor', ALL | {'defer', 'tls'}, LOOPS),
        Peer('asyncio', ALL | {'tls'}, LOOPS),
        Peer('uvloop', ALL | {'tls'}, LOOPS, needs='uvloop'),
        # gevent's callbacks run in the turn in which they are added, so it has no chain of turns.
        Peer('gevent', ALL, LOOPS - {'soon'}, needs='gevent'),
        Peer('twisted', ALL, LOOPS, needs='twisted'),
        Peer('tornado', ALL, LOOPS, needs='tornado'),
        Peer('trio', ALL, needs='trio'),
        Peer('pyftpdlib', ALL, needs='pyftpdlib'),
        Peer('asyncore', NO_TIMERS, needs='asyncore'),
        Node(),
        Floor(),
    ]
