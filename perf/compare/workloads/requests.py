"""Requests over connections that stay open, and requests that each use their own connection.

CPU time is measured under a load that saturates the server. The load in C runs in short bursts; wrk runs for a second
or more, and is used for TLS too.
"""

import contextlib
import ssl
import time

from perf.common.server import Failed
from perf.compare.peers.common import LAST_REPLY, REPLY, SMALL, SMALLS
from perf.loads import wrk
from perf.loads.native import load
from perf.loads.sockets import connect

from .workload import Metric, Spent, Workload, spent_metrics

CONNECTIONS = 100
REQUESTS = Metric('requests_per_s', 'requests/s', 'more')
CPU = spent_metrics('request')


class Burst(Workload):
    """A closed loop in C: `shape` has the options of the load."""

    metrics = (REQUESTS, *CPU)

    def __init__(self, name, about, server, **shape):
        self.name = name
        self.about = about
        self.server = server
        self.shape = {'connections': CONNECTIONS, 'reply': len(REPLY), **shape}

    def figures(self, server, window):
        load(server.address, window.burst / 5, **self.shape)  # the processor's caches are warm after this
        spent = Spent(server)
        found = load(server.address, window.burst, **self.shape)
        return {'requests_per_s': found['answered'] / found['seconds'], **spent.per('request', found['answered'])}


class UnderWrk(Workload):
    """The command wrk saturates the server."""

    metrics = (REQUESTS, *CPU)

    def __init__(self, name, about, server, scheme='http'):
        self.name = name
        self.about = about
        self.server = server
        self.scheme = scheme

    def figures(self, server, window):
        if not wrk.available():
            raise Failed('it needs the command wrk')
        spent = Spent(server)
        answered, seconds = wrk.saturate(server.port, CONNECTIONS, window.seconds, self.scheme)
        return {'requests_per_s': answered / seconds, **spent.per('request', answered)}


class Latency(Workload):
    """Requests at a fixed rate, whatever the server does; `shape` has the options of the load."""

    metrics = (
        Metric('p50_us', 'µs, median'),
        Metric('p99_us', 'µs, 99 %'),
        Metric('p999_us', 'µs, 99.9 %'),
        *CPU,
    )

    def __init__(self, name, about, server, rate, **shape):
        self.name = name
        self.about = f'{about}, at {rate:,} a second'
        self.server = server
        self.shape = {'rate': rate, 'connections': CONNECTIONS, 'reply': len(REPLY), **shape}

    def figures(self, server, window):
        spent = Spent(server)
        found = load(server.address, 2 * window.burst, **self.shape)
        times = {name: found[name] for name in ('p50_us', 'p99_us', 'p999_us')}
        return {**times, **spent.per('request', found['answered'])}


class Handshakes(Workload):
    name = 'handshakes'
    server = 'tls'
    about = 'full TLS 1.3 handshakes with a P-256 key, one after the other, each on a new connection'
    metrics = spent_metrics('handshake')

    def figures(self, server, window):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        spent, count, until = Spent(server), 0, time.monotonic() + window.burst
        while time.monotonic() < until:
            with contextlib.closing(context.wrap_socket(connect(server.port))):
                count += 1
        return spent.per('handshake', count)


CONNECTIONS_EACH = {'reconnect': True, 'reply': len(LAST_REPLY)}
REQUEST_WORKLOADS = (
    Burst('keepalive', f'{CONNECTIONS} connections, a reply of {len(REPLY)} bytes to each request', 'keepalive'),
    UnderWrk('keepalive_wrk', 'the same, under wrk', 'keepalive'),
    Burst('churn', 'one connection for each request, closed by the server', 'churn', **CONNECTIONS_EACH),
    Burst(
        'churn_defer', 'the same, accepted when the request is there (TCP_DEFER_ACCEPT)', 'defer', **CONNECTIONS_EACH
    ),
    UnderWrk('churn_wrk', 'one connection for each request, under wrk', 'churn'),
    UnderWrk('tls', 'like keepalive_wrk, over TLS 1.3 with a P-256 key', 'tls', 'https'),
    Handshakes(),
    Burst('echo4k', 'echo of 4 KiB', 'echo', request=4096, reply=4096),
    Burst('echo64k', 'echo of 64 KiB', 'echo', request=65536, reply=65536, connections=20),
    Burst('twice', f'{len(REPLY)} bytes in two writes', 'twice'),
    Burst('pipeline', '16 requests in one segment, a write for each reply', 'pipeline', depth=16, connections=20),
    Burst('small', f'{SMALLS} writes of {len(SMALL)} bytes', 'small', reply=SMALLS * len(SMALL)),
    Burst('unix', 'like keepalive, over a Unix socket', 'unix'),
    Burst('udp', 'echo of datagrams of 100 bytes', 'udp', datagrams=True, request=100),
    Latency('latency2k', 'like keepalive', 'keepalive', 2_000),
    Latency('latency10k', 'like keepalive', 'keepalive', 10_000),
    Latency('latency30k', 'like keepalive', 'keepalive', 30_000),
    Latency('min_wait', 'like keepalive, with Reactor(min_wait=0.0005)', 'min_wait', 10_000),
    Latency('storm', 'one connection for each request', 'churn', 5_000, **CONNECTIONS_EACH),
)
