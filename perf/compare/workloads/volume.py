"""Workloads that move much data: large replies, endless streams to slow readers, and one message to many clients.

The figure is the amount that the server delivers in one second of CPU time. Bytes per second of real time would measure
the readers, which are written in Python.
"""

import time

from perf.common.server import Failed
from perf.compare.peers.common import LARGE_REPLY, MESSAGE
from perf.loads.native import load
from perf.loads.readers import Readers
from perf.loads.sockets import connections

from .workload import Metric, Spent, Workload

STREAMS = 16
BUFFER = 256 << 10  # bytes: the receive buffer of a reader
LARGE_CONNECTIONS = 8
PAUSES = 0.001, 0.002, 0.004  # seconds between two reads, a different one in each round: so wake-ups per MB vary
MEMBERS = 5_000
BYTES = Metric('mb_per_cpu_s', 'MB/second of CPU', 'more')


class Large(Workload):
    name = server = 'large'
    about = f'{LARGE_CONNECTIONS} connections, a reply of 1 MiB to each request'
    metrics = (BYTES,)

    def figures(self, server, window):
        size = len(LARGE_REPLY)
        load(server.port, 0.05, connections=LARGE_CONNECTIONS, reply=size)
        before = server.cpu()
        answered = load(server.port, window.burst, connections=LARGE_CONNECTIONS, reply=size)['answered']
        if not answered:
            raise Failed('no request was answered')
        return {'mb_per_cpu_s': answered * size / 1e6 / (server.cpu() - before)}


class Pump(Workload):
    name = server = 'pump'
    about = f'endless writes of 256 KiB to {STREAMS} connections that read more slowly'
    metrics = (
        Metric('mb_per_cpu_s', 'MB/second of CPU', 'more', wakeups='wakeups_per_mb'),
        Metric('wakeups_per_mb', 'wake-ups/MB'),
        Metric('rss_mb', 'MB of RSS'),
    )

    def figures(self, server, window):
        with connections(server.port, STREAMS, BUFFER) as socks, Readers(socks) as readers:
            for sock in socks:
                sock.send(b'go')
            pause = PAUSES[window.index % len(PAUSES)]
            readers.drain_slowly(0.2, pause)
            spent = Spent(server)
            received = readers.drain_slowly(window.seconds, pause)
            if not received:
                raise Failed('the server has stopped writing')
            each = spent.per('mb', received / 1e6)
            figures = {'mb_per_cpu_s': 1e6 / each['cpu_us_per_mb'], 'wakeups_per_mb': each['wakeups_per_mb']}
            return {**figures, 'rss_mb': server.memory() / 1e6}


class Broadcast(Workload):
    name = server = 'broadcast'
    about = f'a message of 1 KiB to {MEMBERS:,} connections, repeatedly'
    metrics = (Metric('deliveries_per_cpu_s', 'deliveries/second of CPU', 'more'),)

    def figures(self, server, window):
        with connections(server.port, window.scaled(MEMBERS)) as socks, Readers(socks) as readers:
            time.sleep(0.3)  # by then the server has accepted the last connection
            readers.broadcast(len(MESSAGE))
            before, sent, until = server.cpu(), 0, time.monotonic() + window.burst
            while time.monotonic() < until:
                readers.broadcast(len(MESSAGE))
                sent += len(socks)
            return {'deliveries_per_cpu_s': sent / (server.cpu() - before)}
