"""The list of peers: how each is started, and why some cannot be measured on this machine.

A peer that is left out is always reported, with the reason.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from perf.common import compiler

FOLDER = Path(__file__).with_name('peers')
REPLIES = {'keepalive', 'churn', 'pending', 'seed'}
ALL = REPLIES | {'large', 'pump', 'broadcast'}
PIECES = {'echo', 'twice', 'small', 'pipeline'}
FULL = ALL | PIECES | {'defer', 'tls', 'unix', 'udp'}  # what the protocols of asyncio serve
OURS = FULL | {'min_wait'}
# rloop 0.5 has neither TLS nor Unix sockets, and what was written before close() does not always reach the client.
NOT_IN_RLOOP = {'tls', 'unix', 'churn', 'defer', 'seed'}
NO_TIMERS = ALL - {'seed', 'pending'}
LOOPS = {'timers', 'soon', 'threads', 'client'}


class Peer:
    """A server program in `peers/`, and for some peers a program that measures the loop itself.

    workloads       names of the workloads that the server program answers
    loop_workloads  names of the workloads that the loop program runs
    needs           name of a Python module that has to be installed, or None
    """

    def __init__(self, name, workloads, loop_workloads=frozenset(), needs=None, python=sys.executable):
        self.name = name
        self.workloads = workloads
        self.needs = needs
        self.loop_workloads = loop_workloads
        self.command = [python, str(FOLDER / f'{name}_server.py')]
        self.loop_command = [python, str(FOLDER / f'{name}_loop.py')]

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


class InC(Peer):
    """A server in C, which is compiled before its first use. `headers` is where Debian installs those of a library."""

    def __init__(self, name, workloads, library=None, headers=None):
        super().__init__(name, workloads)
        self.library = library
        self.headers = headers

    def missing(self):
        if reason := compiler.missing():
            return reason
        if sys.platform != 'linux':
            return 'it needs Linux'
        if self.headers and not Path(self.headers).exists():
            return f'{self.headers} is not installed (Debian: apt-get install lib{self.library}1-dev)'
        self.command = [compiler.compiled(FOLDER / f'{self.name}.c', *filter(None, [self.library]))]
        return None


def reactor_on(python):
    """Return the reactor on another interpreter, as a peer whose name has the version, such as reactor-3.15.2."""
    show = 'import sys; print("{}.{}.{}".format(*sys.version_info))'
    found = subprocess.run([python, '-c', show], capture_output=True, text=True, timeout=60, check=True)
    peer = Peer('reactor', OURS, LOOPS, python=python)
    peer.name = f'reactor-{found.stdout.strip()}'
    return peer


def peers():
    """Return all known peers, this reactor first."""
    return [
        Peer('reactor', OURS, LOOPS),
        Peer('asyncio', FULL, LOOPS),
        Peer('uvloop', FULL, LOOPS, needs='uvloop'),
        Peer('rloop', FULL - NOT_IN_RLOOP, LOOPS, needs='rloop'),
        Peer('zuvloop', FULL, LOOPS, needs='zuvloop'),
        # gevent runs a callback in the turn that adds it, so a chain of callbacks would not measure turns of the loop.
        Peer('gevent', ALL, LOOPS - {'soon'}, needs='gevent'),
        Peer('twisted', ALL, LOOPS, needs='twisted'),
        Peer('tornado', ALL, LOOPS, needs='tornado'),
        Peer('trio', ALL, needs='trio'),
        Peer('pyftpdlib', ALL, needs='pyftpdlib'),
        Peer('asyncore', NO_TIMERS, needs='asyncore'),
        Node(),
        InC('libuv', REPLIES | PIECES | {'defer'}, 'uv', '/usr/include/uv.h'),
        InC('epoll', REPLIES | {'defer'}),  # the lower bound
    ]
