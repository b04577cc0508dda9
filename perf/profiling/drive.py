"""The load: connections that keep a workload busy, from a process of their own.

Owns how many there are and when they ask. Does not know the server but by its answers. The rule: a connection asks
again as soon as it is answered, so the server decides the pace; it goes on until SIGTERM, and ends by itself when the
server is gone.
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
ASKING_AGAIN = {'keepalive', 'timers'}  # on the same connection; the others are closed, and make a new one
SPREAD = 1.0  # seconds over which the first connections are made, so that they do not march in step


class Drive:
    """The connections of one workload, and what came of them."""

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
        """What was done, as one line of JSON."""
        seconds = monotonic() - self.started
        return json.dumps({'seconds': round(seconds, 3), 'connections': self.connected, 'replies': self.replies,
                           'bytes': self.bytes, 'errors': self.errors})  # fmt: skip


def main(workload, host, port):
    """Drive until SIGTERM."""
    with reactor.Reactor() as r:
        drive = Drive(r, workload, host, int(port))
        r.run()
        print(drive.report(), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
