"""nginx with the configuration from examples/, in front of a service."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from perf.common.machine import ahead_of_others
from perf.common.server import Failed

from .haproxy import EXAMPLES, START, Running

CONFIG = EXAMPLES / 'nginx' / 'nginx.conf'
COMMAND = shutil.which('nginx', path=f'{os.environ.get("PATH", "")}{os.pathsep}/usr/sbin')


class Nginx(Running):
    """A context manager: nginx, which listens on two free ports.

    http   where requests go: the port of the service, or the path of its Unix socket
    tcp    the port to which other connections go
    proxy  whether these begin with a PROXY header

    Its attributes are `ports`, the ports for HTTP and for TCP, and `log`, a path.
    """

    def __init__(self, http, tcp, proxy=True):
        self.where = f'unix:{http}' if isinstance(http, str) else f'127.0.0.1:{http}'
        self.tcp, self.proxy = tcp, proxy
        self.ports = free_port(), free_port()
        self.stack = contextlib.ExitStack()

    def text(self):
        """Return the configuration with the ports of this run, and with one process."""
        text = CONFIG.read_text().replace('auto;', '1;', 1)
        for old, new in (
            ('listen 127.0.0.1:8000', f'listen 127.0.0.1:{self.ports[0]}'),
            ('listen 127.0.0.1:8001', f'listen 127.0.0.1:{self.ports[1]}'),
            ('server 127.0.0.1:8080', f'server {self.where}'),
            ('server 127.0.0.1:8081', f'server 127.0.0.1:{self.tcp}'),
            ('proxy_protocol on', f'proxy_protocol {"on" if self.proxy else "off"}'),
        ):
            assert old in text, f'{CONFIG} does not contain {old!r}'
            text = text.replace(old, new)
        return text

    def start(self):
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        self.log = folder / 'log'
        config = folder / 'nginx.conf'
        config.write_text(self.text())
        command = [*ahead_of_others(), COMMAND, '-p', folder, '-e', 'stderr', '-c', config]
        self.process = subprocess.Popen(command, stderr=self.stack.enter_context(self.log.open('w')))
        self.stack.callback(self.process.wait)
        self.stack.callback(self.process.terminate)
        until = time.monotonic() + START
        # The file is written after the ports are open. A connection would be an extra client of the service.
        while not (folder / 'nginx.pid').exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise Failed(f'nginx does not run: {self.log.read_text()}')
            time.sleep(0.02)

    def up(self):
        """Return whether nginx runs."""
        return self.process.poll() is None


def free_port():
    """Return a port on which no program listens now."""
    with socket.create_server(('127.0.0.1', 0)) as probe:
        return probe.getsockname()[1]
