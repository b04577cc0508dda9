"""Workloads that move much data: large replies, endless streams to slow readers, and one message to many clients.

The figure is the amount that the server delivers in one second of CPU time. Bytes per second of real time would measure
the readers, which are written in Python.
"""

import time

from perf.common.server import Failed
from perf.compare.peers.common import LARGE_REPLY, MESSAGE
from perf.loads import closed_loop
from perf.loads.readers import Readers
from perf.loads.sockets import connections

from .workload import Metric, Workload

STREAMS = 16
BUFFER = 256 << 10  # bytes: the receive buffer of a reader
LARGE_CONNECTIONS = 8
MEMBERS = 5_000
BYTES = Metric('mb_per_cpu_s', 'MB/second of CPU', 'more')


class Large(Workload):
    name = server = 'large'
    about = f'{LARGE_CONNECTIONS} connections, a reply of 1 MiB to each request'
    metrics = (BYTES,)

    def figures(self, server, window):
        size = len(LARGE_REPLY)
        closed_loop.keep_alive(server.port, LARGE_CONNECTIONS, 0.2, size)
        before = server.cpu()
        answered, _ = closed_loop.keep_alive(server.port, LARGE_CONNECTIONS, window.seconds, size)
        if not answered:
            raise Failed('no request was answered')
        return {'mb_per_cpu_s': answered * size / 1e6 / (server.cpu() - before)}


class Pump(Workload):
    name = server = 'pump'
    about = f'endless writes of 256 KiB to {STREAMS} connections that read more slowly'
    metrics = (BYTES, Metric('rss_mb', 'MB of RSS'))

    def figures(self, server, window):
        with connections(server.port, STREAMS, BUFFER) as socks, Readers(socks) as readers:
            for sock in socks:
                sock.send(b'go')
            readers.drain_slowly(0.3)
            before = server.cpu()
            received = readers.drain_slowly(window.seconds)
            spent = server.cpu() - before
            if not received or not spent:
                raise Failed('the server has stopped writing')
            return {'mb_per_cpu_s': received / 1e6 / spent, 'rss_mb': server.memory() / 1e6}


class Broadcast(Workload):
    name = server = 'broadcast'
    about = f'a message of 1 KiB to {MEMBERS:,} connections, repeatedly'
    metrics = (Metric('deliveries_per_cpu_s', 'deliveries/second of CPU', 'more'),)

    def figures(self, server, window):
        with connections(server.port, window.scaled(MEMBERS)) as socks, Readers(socks) as readers:
            time.sleep(0.3)  # by then the server has accepted the last connection
            readers.broadcast(len(MESSAGE))
            before, sent, until = server.cpu(), 0, time.monotonic() + window.seconds
            while time.monotonic() < until:
                readers.broadcast(len(MESSAGE))
                sent += len(socks)
            return {'deliveries_per_cpu_s': sent / (server.cpu() - before)}
