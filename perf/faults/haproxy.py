"""HAProxy with the configuration from examples/, and two workers behind it, each a `service.py` on its own port.

The configuration, the worker and the restart script are the files that users copy from examples/. All processes run at
real-time priority; otherwise other work on the machine would be measured too. No process outlives its `with` block.
"""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perf.common.machine import ahead_of_others
from perf.common.server import PROJECT, Failed, Measured, environment, read_line

EXAMPLES = PROJECT / 'examples'
CONFIG = EXAMPLES / 'haproxy' / 'haproxy.cfg'
START = 20  # seconds within which a process must be ready


def rolling_restart():
    """Return examples/haproxy/rolling_restart.py as a module."""
    spec = importlib.util.spec_from_file_location('rolling_restart', EXAMPLES / 'haproxy' / 'rolling_restart.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Running:
    """A context manager: `start()` pushes everything that has to be ended onto `stack`."""

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *failure):
        self.stack.close()


class Haproxy(Running):
    """A context manager: HAProxy with a configuration that takes variables from the environment.

    binds  {variable for the address of a frontend: listening socket}; HAProxy inherits the sockets, so no other
           process can take their ports first
    env    the other variables; ADMIN is set to a path in a temporary folder
    """

    def __init__(self, config, binds, **env):
        self.config, self.binds, self.env = config, binds, env
        self.stack = contextlib.ExitStack()

    def start(self):
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.log = self.stack.enter_context(open(folder / 'log', 'w+'))
        self.admin = rolling_restart().Admin(str(folder / 'haproxy.sock'))
        numbers = {name: sock.fileno() for name, sock in self.binds.items()}
        where = {name: f'fd@{number}' for name, number in numbers.items()}
        self.process = subprocess.Popen(
            [*ahead_of_others(), 'haproxy', '-f', str(self.config)],
            env={**os.environ, **where, **self.env, 'ADMIN': self.admin.path},
            pass_fds=list(numbers.values()),
            stdout=self.log,
            stderr=self.log,
        )
        self.stack.callback(self.process.wait)
        self.stack.callback(self.process.kill)

    def up(self, *names):
        """Return whether these servers (by default all) are up and checked. Raise `Failed` if HAProxy has ended."""
        if self.process.poll() is not None:
            raise Failed(f'HAProxy has ended: {self.logged()}')
        try:
            rows = self.admin.servers(*names)
        except OSError:  # HAProxy does not listen on its admin socket yet
            return False
        return all(row['status'] == 'UP' and row['check_status'][-2:] == 'OK' for row in rows)

    def logged(self):
        """Return the log of HAProxy."""
        return Path(self.log.name).read_text()

    def sums(self, *names):
        """Return the totals of these columns of `show stat` over all servers."""
        rows = self.admin.servers()
        return {name: sum(int(row[name] or 0) for row in rows) for name in names}


class Worker(Measured):
    """examples/service.py on its own port; after the process has ended, `start` starts a new one on the same port."""

    port = 0
    options: tuple = ('--proxy-protocol', '127.0.0.0/8')

    def start(self):
        options = ('--listen', f'127.0.0.1:{self.port}', *self.options)
        command = [*ahead_of_others(), sys.executable, str(EXAMPLES / 'service.py'), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        self.pid = self.process.pid
        line = read_line(self.process, START)
        if not line.startswith('listening on '):
            self.end(signal.SIGKILL)
            raise Failed(f'a worker does not listen on port {self.port}: it printed {line!r}')
        self.port = int(line.rpartition(':')[2])

    def end(self, signum):
        """Send the worker a signal, wait until it ends, and return its exit status."""
        self.process.send_signal(signum)
        try:
            status = self.process.wait(60)
        finally:
            self.process.kill()
            self.process.stdout.close()
        return status

    def restart(self):
        """Restart the worker the way systemd does: send SIGTERM, and start a new process when the old one has ended."""
        if status := self.end(signal.SIGTERM):
            raise Failed(f'a worker ended with status {status}')
        self.start()

    def connections(self):
        """Return how many connections are open on the worker's port."""
        wanted = f':{self.port:04X}'
        with open('/proc/net/tcp') as file:
            return sum(fields[1].endswith(wanted) and fields[3] == '01' for fields in map(str.split, file))


class Behind(Running):
    """HAProxy with two workers; `port` and `tcp_port` are the ports of its frontends, `workers` is {name: `Worker`}."""

    def __init__(self):
        self.stack = contextlib.ExitStack()

    def start(self):
        socks = [self.stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(2)]
        self.port, self.tcp_port = (sock.getsockname()[1] for sock in socks)
        self.workers = {}
        for name in ('w1', 'w2'):
            worker = self.workers[name] = Worker()
            worker.start()
            self.stack.callback(worker.end, signal.SIGKILL)
        where = {f'WORKER{name[1:]}': f'127.0.0.1:{worker.port}' for name, worker in self.workers.items()}
        binds = dict(zip(('HTTP', 'TCP'), socks, strict=True))
        self.haproxy = self.stack.enter_context(Haproxy(CONFIG, binds, **where))
        self.admin = self.haproxy.admin
        until = time.monotonic() + START
        while not self.haproxy.up():
            if time.monotonic() > until:
                raise Failed(f'not all workers are up after {START} s: {self.haproxy.logged()}')
            time.sleep(0.05)


class Load:
    """`python -m reactor.demo load` at a fixed rate, until `result()` stops it."""

    def __init__(self, port, rate, connections):
        options = {'port': port, 'connections': connections, 'requests-per-second': rate, 'seconds': 3600}
        command = [*ahead_of_others(), sys.executable, '-m', 'reactor.demo', 'load', '--json']
        command += [f'--{name}={value}' for name, value in options.items()]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def result(self):
        """Stop the load and return its report."""
        self.process.send_signal(signal.SIGINT)
        return json.loads(self.process.communicate(timeout=60)[0])
