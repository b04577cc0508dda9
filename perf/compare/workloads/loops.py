"""Workloads for the loop itself: timers, soon-calls, calls from threads, and connecting as a client.

Each measurement starts the peer's loop program in a process. The program measures its own CPU time, because only it
knows when the measured part begins.
"""

import json
import subprocess

from perf.common.machine import on_core
from perf.common.server import Failed, Server, environment
from perf.compare.known_peers import peers

from .workload import Fresh, Metric

MOST = 120  # seconds for which a loop program may run


class LoopWorkload(Fresh):
    """A workload of the peers' loop programs; `count` is the number of timers, calls or connections."""

    def __init__(self, name, about, count, metrics):
        self.name = name
        self.about = about
        self.count = count
        self.metrics = metrics

    def peers(self, known):
        return [peer for peer in known if self.name in peer.loop_workloads]

    def measure(self, peer, servers, window, *options):
        command = [*peer.loop_command, '--workload', self.name, '--count', str(window.scaled(self.count)), *options]
        with on_core(window.server_core):
            try:
                done = subprocess.run(
                    command, capture_output=True, env=environment(), text=True, timeout=MOST, check=False
                )
            except subprocess.TimeoutExpired:
                raise Failed(f'{peer.name} did not end within {MOST} s') from None
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or [f'it ended with {done.returncode}'])[-1])
        return json.loads(done.stdout)


class ClientWorkload(LoopWorkload):
    """Measures the peer as a client.

    The client runs on the core of the measured process; the server that it connects to runs on the other core.
    """

    def measure(self, peer, servers, window):
        known = {peer.name: peer for peer in peers()}
        server = known['epoll'] if known['epoll'].missing() is None else known['reactor']
        with Server(server, 'churn', None) as running:
            return super().measure(peer, servers, window, '--port', str(running.port))


def per_cpu_second(name, what):
    return Metric(name, f'{what}/second of CPU', 'more')


LOOPS = (
    LoopWorkload(
        'timers',
        '1,000,000 timers added and cancelled, then 1,000,000 added and fired',
        1_000_000,
        (per_cpu_second('cancelled_per_s', 'cancelled'), per_cpu_second('fired_per_s', 'fired')),
    ),
    LoopWorkload(
        'soon',
        'call_soon in batches of 1,000, then a chain with one turn for each call',
        1_000_000,
        (per_cpu_second('batch_per_s', 'calls in batches'), per_cpu_second('chain_per_s', 'calls in a chain')),
    ),
    LoopWorkload(
        'threads',
        'calls from another thread, at most 1,000 of them waiting',
        200_000,
        (per_cpu_second('calls_per_s', 'calls'),),
    ),
    ClientWorkload(
        'client',
        '100 at a time: connect, send a request, read to the end, close',
        20_000,
        (Metric('cpu_us_per_connection', 'µs CPU/connection'),),
    ),
)
