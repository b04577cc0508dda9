"""HAProxy with the shipped configuration, and workers behind it: the HTTP server of the examples, each on its port.

Owns the processes, and what is asked of them from outside. The rule: configuration, worker and restart are the files
that people take from examples/, and nothing outlives its `with`.
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

from measuring.server import PROJECT, Failed, Measured, environment, read_line

EXAMPLES = PROJECT / 'examples'
START = 20  # seconds until a process must be there
TOKEN = 'ok\n'  # what the workers serve


def rolling_restart():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location('rolling_restart', EXAMPLES / 'haproxy' / 'rolling_restart.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_ports(count):
    """Ports of 127.0.0.1 that nobody has now."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


class Worker(Measured):
    """examples/http_server.py on its port; `start` after an end starts another."""

    def __init__(self, port, root):
        options = ('--port', str(port), '--root', str(root), '--proxy-protocol', '127.0.0.0/8')
        self.port = port
        self.command = [sys.executable, str(EXAMPLES / 'http_server.py'), *options]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, env=environment())
        self.pid = self.process.pid
        line = read_line(self.process, START)
        if not line.startswith('listening on '):
            self.end(signal.SIGKILL)
            raise Failed(f'a worker does not listen on port {self.port}: {line}')

    def end(self, signum):
        """Have it end and wait for it; its status."""
        self.process.send_signal(signum)
        try:
            status = self.process.wait(60)
        finally:
            self.process.kill()
            self.process.stdout.close()
        return status

    def restart(self):
        """As systemd does it: SIGTERM, and when that one is gone another."""
        if status := self.end(signal.SIGTERM):
            raise Failed(f'a worker ended with status {status}')
        self.start()

    def connections(self):
        """How many are open on it."""
        wanted = f':{self.port:04X}'
        with open('/proc/net/tcp') as file:
            return sum(fields[1].endswith(wanted) and fields[3] == '01' for fields in map(str.split, file))


class Behind:
    """HAProxy and two workers; `port` and `tcp_port` are its frontends, `workers` by the names of its servers."""

    def __init__(self):
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.stack.close()
            raise

    def __exit__(self, *failure):
        self.stack.close()

    def start(self):
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        root = folder / 'root'
        root.mkdir()
        (root / 'hello').write_text(TOKEN)
        self.port, self.tcp_port, *ports = free_ports(4)
        self.workers = {}
        for name, port in zip(('w1', 'w2'), ports, strict=True):
            worker = self.workers[name] = Worker(port, root)
            self.stack.callback(lambda worker=worker: worker.end(signal.SIGKILL))
        where = {
            'HTTP': f'127.0.0.1:{self.port}',
            'TCP': f'127.0.0.1:{self.tcp_port}',
            'WORKER1': f'127.0.0.1:{ports[0]}',
            'WORKER2': f'127.0.0.1:{ports[1]}',
            'ADMIN': str(folder / 'haproxy.sock'),
        }
        self.log = self.stack.enter_context(open(folder / 'log', 'w+'))
        self.process = subprocess.Popen(
            ['haproxy', '-f', str(EXAMPLES / 'haproxy' / 'haproxy.cfg')],
            env={**os.environ, **where},
            stdout=self.log,
            stderr=self.log,
        )
        self.stack.callback(self.process.wait)
        self.stack.callback(self.process.kill)
        self.admin = rolling_restart().Admin(where['ADMIN'])
        self.wait_until_up()
        return self

    def wait_until_up(self):
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if all(row['check_status'] == 'L7OK' for row in self.admin.servers()):
                    return
            time.sleep(0.05)
        raise Failed(f'HAProxy does not come up: {self.said()}')

    def said(self):
        """What it has logged."""
        self.log.flush()
        return Path(self.log.name).read_text()

    def sums(self, *names):
        """Figures of all servers together, by the names that `show stat` gives them."""
        rows = self.admin.servers()
        return {name: sum(int(row[name] or 0) for row in rows) for name in names}


class Load:
    """`python -m reactor.demo load` at a fixed rate, until `result()` ends it."""

    def __init__(self, port, rate, connections, seconds=3600, method='GET', path='/hello'):
        options = {
            '--port': port,
            '--connections': connections,
            '--requests-per-second': rate,
            '--seconds': seconds,
            '--method': method,
            '--path': path,
        }
        command = [sys.executable, '-m', 'reactor.demo', 'load', '--json']
        command += [str(word) for option in options.items() for word in option]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def result(self):
        """Have it ask no more; what became of all that it asked."""
        self.process.send_signal(signal.SIGINT)
        return json.loads(self.process.communicate(timeout=60)[0])
