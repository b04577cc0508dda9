"""nginx with a configuration for this measurement, in front of a service."""

import contextlib
import socket
import subprocess
import tempfile
from pathlib import Path

from perf.common.machine import ahead_of_others
from perf.common.server import Failed

from .haproxy import Running

# Debian builds the stream module as a file of its own.
MODULE_FILE = Path('/usr/lib/nginx/modules/ngx_stream_module.so')
MODULE = f'load_module {MODULE_FILE};' if MODULE_FILE.exists() else ''
CONFIG = """
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 4000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    upstream service {{ server 127.0.0.1:{port}; keepalive 64; keepalive_timeout 30s; }}
    server {{
        listen 127.0.0.1:{http};
        keepalive_requests 1000000;
        location / {{ proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
stream {{
    server {{ listen 127.0.0.1:{tcp}; proxy_pass 127.0.0.1:{port};}}
}}
"""


class Nginx(Running):
    """A context manager: nginx passes on what arrives at the ports of two sockets, which it replaces by its own.

    http  the port for HTTP
    tcp   the port for any protocol
    """

    def __init__(self, port, http, tcp):
        self.port, self.socks = port, (http, tcp)
        self.http, self.tcp = (sock.getsockname()[1] for sock in self.socks)
        self.stack = contextlib.ExitStack()

    def start(self):
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / 'nginx.conf').write_text(
            MODULE + CONFIG.format(folder=folder, port=self.port, http=self.http, tcp=self.tcp)
        )
        for sock in self.socks:
            sock.close()
        self.process = subprocess.Popen(
            [*ahead_of_others(), 'nginx', '-p', folder, '-c', folder / 'nginx.conf'], stderr=subprocess.PIPE
        )
        self.stack.callback(self.end)

    def end(self):
        """End nginx and its worker process at once."""
        self.process.terminate()
        self.process.communicate()

    def up(self):
        """Return whether nginx listens on both ports; raise `Failed` if it has ended."""
        if self.process.poll() is not None:
            raise Failed(f'nginx has ended: {self.process.stderr.read().decode()}')
        return all(is_listening(port) for port in (self.http, self.tcp))


def is_listening(port):
    """Return whether a connection to a port of this machine is accepted."""
    try:
        socket.create_connection(('127.0.0.1', port), 1).close()
    except OSError:
        return False
    return True
