"""The load on a server that is profiled: a separate process with connections that keep the server busy.

A connection sends its next request as soon as it has a reply, so the server sets the pace. The load ends at SIGTERM,
or when the server has ended.
"""

from __future__ import annotations

import json
import signal
import sys
from time import monotonic

import reactor

REQUEST = b'GET / HTTP/1.1\r\nHost: profile\r\n\r\n'
CONNECTIONS = {'keepalive': 32, 'churn': 32, 'seed': 1000, 'idle': 500, 'pump': 4, 'timers': 100}
ASKING = {'keepalive', 'churn', 'seed', 'timers'}
ASKING_AGAIN = {
    'keepalive',
    'timers',
}  # workloads that send the next request on the same connection; the others open a new one
SPREAD = 1.0  # seconds over which the first connections are spread, so that they do not stay in step


class Drive:
    """The connections of one workload, and counts of the data that they received."""

    def __init__(self, r, workload, host, port):
        self.r = r
        self.address = host, port
        self.asks = workload in ASKING
        self.asks_again = workload in ASKING_AGAIN
        self.wanted = CONNECTIONS[workload]
        self.connected = self.replies = self.bytes = self.errors = 0
        self.started = monotonic()
        for index in range(self.wanted):
            r.call_later(SPREAD * index / self.wanted, self.connect)
        r.add_signal_handler(signal.SIGTERM, r.stop).unref()

    def connect(self):
        self.r.connect_tcp(*self.address, self.on_data, on_connect=self.on_connect, on_close=self.on_close, timeout=10)

    def on_connect(self, conn):
        self.connected += 1
        if self.connected == self.wanted:
            print('driving', flush=True)
        if self.asks:
            conn.write(REQUEST)

    def on_data(self, conn, data):
        self.replies += 1
        self.bytes += len(data)
        if self.asks_again:
            conn.write(REQUEST)

    def on_close(self, conn, exc):
        if isinstance(exc, ConnectionRefusedError):
            self.r.stop()
            return
        if exc is not None:
            self.errors += 1
        self.r.call_soon(self.connect)

    def report(self):
        """Return the counts as one line of JSON."""
        seconds = monotonic() - self.started
        return json.dumps({'seconds': round(seconds, 3), 'connections': self.connected, 'replies': self.replies,
                           'bytes': self.bytes, 'errors': self.errors})  # fmt: skip


def main(workload, host, port):
    """Send requests until SIGTERM, then print the report."""
    with reactor.Reactor() as r:
        drive = Drive(r, workload, host, int(port))
        r.run()
        print(drive.report(), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
