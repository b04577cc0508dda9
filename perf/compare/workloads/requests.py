"""Requests over connections that stay open, and requests that each use their own connection.

Throughput and CPU are measured under a load that saturates the server, latency under a load at a fixed rate.
"""

from perf.common.server import Failed
from perf.compare.peers.common import REPLY
from perf.loads import closed_loop, wrk
from perf.loads.fixed_rate import latencies, p50_and_p99

from .workload import Metric, Workload

CONNECTIONS = 100
RATE = 4000  # requests a second, for measuring latency
REPLY_SIZE = len(REPLY)
WARM_UP = 500  # requests before the measurement

REQUESTS = Metric('requests_per_s', 'requests/s', 'more')
CPU = Metric('cpu_us_per_request', 'µs CPU/request')


class KeepAlive(Workload):
    name = server = 'keepalive'
    about = f'{CONNECTIONS} connections, a reply of {REPLY_SIZE} bytes to each request'
    metrics = (
        REQUESTS,
        CPU,
        Metric('p50_us', f'µs, median at {RATE}/s'),
        Metric('p99_us', f'µs, 99 % at {RATE}/s'),
        Metric('rss_mb', 'MB of RSS'),
    )

    def figures(self, server, window):
        closed_loop.keep_alive(server.port, CONNECTIONS, window.seconds, REPLY_SIZE, WARM_UP)
        figures = under_load(server, window, closed_loop.keep_alive, REPLY_SIZE)
        times = latencies(server.port, CONNECTIONS, RATE, window.seconds, REPLY_SIZE)
        return {**figures, **p50_and_p99(times), 'rss_mb': server.memory() / 1e6}


class Churn(Workload):
    name = server = 'churn'
    about = 'one connection for each request, closed by the server'
    metrics = (REQUESTS, CPU)

    def figures(self, server, window):
        closed_loop.reconnect(server.port, CONNECTIONS, window.seconds, WARM_UP)
        return under_load(server, window, closed_loop.reconnect)


class DeferredChurn(Churn):
    name = 'churn_defer'
    about = 'like churn, but the reactor accepts with defer_accept=True; the peers run as in churn'

    def measure(self, peer, window):
        self.server = 'defer' if 'defer' in peer.workloads else 'churn'
        return super().measure(peer, window)

    def peers(self, known):
        return [peer for peer in known if 'churn' in peer.workloads]


class Secure(Workload):
    name = server = 'tls'
    about = f'like keepalive, over TLS 1.3 with a P-256 key; {CONNECTIONS} connections'
    metrics = (REQUESTS, CPU)

    def figures(self, server, window):
        if not wrk.available():
            raise Failed('it needs the command wrk')
        wrk.saturate(server.port, CONNECTIONS, 1, 'https')
        before = server.cpu()
        answered, seconds = wrk.saturate(server.port, CONNECTIONS, window.seconds, 'https')
        return {'requests_per_s': answered / seconds, 'cpu_us_per_request': (server.cpu() - before) / answered * 1e6}


def under_load(server, window, our_load, *args):
    """Return the requests a second, and the server's CPU time for each, under a saturating load."""
    before = server.cpu()
    if wrk.available():
        answered, seconds = wrk.saturate(server.port, CONNECTIONS, window.seconds)
    else:
        answered, seconds = our_load(server.port, CONNECTIONS, window.seconds, *args)
        if not answered:
            raise Failed('no request was answered')
    return {'requests_per_s': answered / seconds, 'cpu_us_per_request': (server.cpu() - before) / answered * 1e6}
