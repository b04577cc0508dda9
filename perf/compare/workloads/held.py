"""The memory of an idle connection, and of a connection whose request waits on a timer.

The figure is the slope between a small and a large number of connections, so it does not include memory that a server
needs only once.
"""

import contextlib
import ssl
import time

from perf.loads.sockets import REQUEST, connect, connections

from .workload import Fresh, Metric

CONNECTIONS = 10_000
FIRST = 500  # connections that are open before memory is first measured
BYTES = Metric('rss_per_connection', 'bytes of RSS/connection')


class Idle(Fresh):
    name = 'idle'
    server = 'keepalive'
    about = f'{CONNECTIONS:,} connections held open'
    metrics = (BYTES,)
    request = b''

    def figures(self, server, window):
        many = window.scaled(CONNECTIONS)
        with connections(server.port, FIRST) as first:
            self.ask(first)
            before = server.memory()
            with connections(server.port, many) as rest:
                self.ask(rest)
                return {'rss_per_connection': (server.memory() - before) / many}

    def ask(self, socks):
        for sock in socks:
            sock.send(self.request)
        time.sleep(0.3)  # by then the server has accepted the last connection


class SecureIdle(Fresh):
    name = 'tls_idle'
    server = 'tls'
    about = f'{CONNECTIONS:,} connections held open over TLS 1.3'
    metrics = (BYTES,)

    def figures(self, server, window):
        many = window.scaled(CONNECTIONS)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with contextlib.ExitStack() as stack:
            for count in FIRST, many:
                before = server.memory()
                for _ in range(count):
                    stack.enter_context(context.wrap_socket(connect(server.port)))
            return {'rss_per_connection': (server.memory() - before) / many}


class Pending(Idle):
    name = server = 'pending'
    about = f'{CONNECTIONS:,} connections, each with a request that waits on a timer'
    request = REQUEST
