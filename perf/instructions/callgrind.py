"""A server under valgrind's callgrind, which counts the user instructions between two marks.

The server runs in a fixed environment and without address space randomisation, so the same code executes the same
instructions each time. Other work on the machine makes it slower, but does not change the count.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from perf.common.server import PROJECT, Failed, Server

PEERS = PROJECT / 'perf' / 'compare' / 'peers'
MARKED = Path(__file__).with_name('marked.py')
START = 120  # seconds until a server must listen: it runs 50 times slower than usual, and the machine may be busy
WRITTEN = 60  # seconds within which callgrind must write the count of a mark
LOOK = 0.0002  # seconds between two checks of the server's state
SLEEPING, STOPPED = 'S', 'T'  # states of a process in /proc/PID/stat
MARK_FUNCTION = 'getppid'  # the C function that marked.py calls


def missing():
    """Return why nothing can be counted on this machine, or None."""
    if sys.platform != 'linux':
        return 'counting needs Linux'
    if not shutil.which('valgrind'):
        return 'the command valgrind is not installed (Debian: apt-get install valgrind)'
    return None


def total(text):
    """Return the number of instructions in a file that callgrind wrote, or None while it is incomplete."""
    found = re.search(r'^totals: (\d+)\n', text, re.MULTILINE)
    return int(found[1]) if found else None


class Program:
    """The part of a peer that `perf.common.server.Server` needs: a name and a command."""

    def __init__(self, name, command):
        self.name = name
        self.command = command


class Uncounted(Server):
    """A context manager: a server in the fixed environment, without callgrind, that can be stopped for a while."""

    wrapper: tuple = (MARKED,)  # the program that runs the server's program, and its arguments

    def __init__(self, script, workload, delay, folder, under=()):
        self.delay = delay  # seconds until a delayed answer
        program = [sys.executable, *map(str, self.wrapper), str(script), '--delay', str(delay)]
        command = [*environment(folder), *under, *program]
        super().__init__(Program(script.stem, command), workload, None, START)

    @contextlib.contextmanager
    def stopped(self):
        """Wait until the server sleeps in its selector, and stop it during the `with` block.

        When the server continues, its selector returns everything that happened in the meantime in one list of events.
        """
        self.wait_for_state(SLEEPING)
        os.kill(self.pid, signal.SIGSTOP)
        try:
            self.wait_for_state(STOPPED)
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def wait_for_state(self, wanted):
        until = time.monotonic() + WRITTEN
        while (state := self.state()) != wanted:
            if state in 'ZX' or time.monotonic() > until:
                raise Failed(f'the server is in process state {state}, not {wanted}')
            time.sleep(LOOK)

    def written(self, path, complete=bool):
        """Send SIGUSR1 to the server when it sleeps, and return what it then writes to `path`, once it is complete."""
        self.wait_for_state(SLEEPING)
        os.kill(self.pid, signal.SIGUSR1)
        until = time.monotonic() + WRITTEN
        while time.monotonic() < until:
            if path.exists() and complete(text := path.read_text()):
                path.unlink()
                return text
            time.sleep(0.001)
        raise Failed(f'the server did not write {path} within {WRITTEN} s after a mark')

    def state(self):
        """Return the letter that /proc shows for the state of the process."""
        with open(f'/proc/{self.pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0]


class Counted(Uncounted):
    """A server under callgrind, whose files and compiled modules are written to `folder`."""

    def __init__(self, script, workload, delay, folder):
        self.prefix = folder / f'{script.stem}-{workload}'
        self.marks = 0
        super().__init__(script, workload, delay, folder, callgrind(self.prefix))

    def mark(self):
        """Return the number of instructions since the last mark, or since the process started."""
        self.marks += 1
        return total(self.written(Path(f'{self.prefix}.{self.marks}'), lambda text: total(text) is not None))


def environment(folder):
    """Return a prefix that runs a command in an environment that is the same on every machine."""
    variables = {
        'PATH': os.environ.get('PATH', os.defpath),
        'LC_ALL': 'C.UTF-8',
        'PYTHONPATH': str(PROJECT),
        'PYTHONHASHSEED': '0',
        'PYTHONPYCACHEPREFIX': str(folder / 'compiled'),
        'PYTHONWARNINGS': 'ignore',
    }
    if 'LD_LIBRARY_PATH' in os.environ:
        variables['LD_LIBRARY_PATH'] = os.environ['LD_LIBRARY_PATH']
    return ['env', '-i', *(f'{name}={value}' for name, value in variables.items())]


def callgrind(prefix):
    """Return a prefix that runs a command under callgrind, which writes PREFIX.1, PREFIX.2 and so on at marks."""
    return [
        *without_randomisation(),
        *('valgrind', '--quiet', '--tool=callgrind', f'--callgrind-out-file={prefix}'),
        f'--dump-before={MARK_FUNCTION}',
    ]


@functools.cache
def without_randomisation():
    """Return a prefix that runs a command at fixed addresses, or [] where that is forbidden."""
    command = ['setarch', '-R']
    try:
        subprocess.run([*command, 'true'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command
