"""A reactor in each of several interpreters of one process, all on one port. It needs Python 3.14 or later.

    $ python3.14 examples/interpreters.py --port 7007 --interpreters 2
    2 interpreters of process 4711 listen on 127.0.0.1:7007
    $ nc 127.0.0.1 7007

Each interpreter has a GIL of its own (PEP 734), so the reactors run on several cores. The kernel distributes the
clients among them (SO_REUSEPORT). Signals arrive in the main interpreter only. On SIGTERM or Ctrl-C, it ends its side
of the connection to each of the others, which then drain: they answer what they have read, and end.

On Python 3.15, two interpreters echoed 0.97 times as many messages a second as two processes (230,000 of 100 bytes,
with the clients on the same two cores), and took 40 MB instead of 27.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading

import reactor

DRAIN = 10  # seconds that clients have to finish
CODE = 'import sys; sys.path[:] = path; from interpreters import serve; serve(port, control)'  # this module


def on_data(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def serve(port, control):
    """Echo on `port`, in an interpreter of its own, until the main interpreter ends its side of `control`."""

    def main(r):
        r.listen_tcp('127.0.0.1', port, on_data, on_drain=reactor.Stream.resume_reading, reuse_port=True)
        parent = r.adopt(socket.socket(fileno=control), on_eof=lambda conn: r.drain(DRAIN))
        parent.write(b'ready')

    reactor.run(main)


class Interpreters:
    """The other interpreters, from the main one's side: a connection to each, and a thread in which it runs."""

    def __init__(self, r, port, count):
        from concurrent import interpreters  # Python 3.14

        with socket.socket() as reserved:  # it finds a free port, and does not listen
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(('127.0.0.1', port))
            self.port = reserved.getsockname()[1]
        self.starting = self.count = count
        self.connections = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            self.connections.append(r.adopt(ours, self.on_ready))
            interpreter = interpreters.create()
            path = (os.path.dirname(os.path.abspath(__file__)), *sys.path)
            interpreter.prepare_main(path=path, port=self.port, control=theirs.detach())
            threading.Thread(target=interpreter.exec, args=(CODE,)).start()
        for signum in signal.SIGINT, signal.SIGTERM:
            r.add_signal_handler(signum, self.end).unref()  # `run` ends when the last interpreter has ended

    def on_ready(self, conn, data):
        self.starting -= 1
        if not self.starting:
            pid = os.getpid()
            print(f'{self.count} interpreters of process {pid} listen on 127.0.0.1:{self.port}', flush=True)

    def end(self):
        for conn in self.connections:
            conn.write_eof()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--port', type=int, default=7007)
    parser.add_argument('--interpreters', type=int, default=2)
    args = parser.parse_args()
    if sys.version_info < (3, 14):
        sys.exit('interpreters.py: this needs Python 3.14 or later; workers.py does the same with processes')
    reactor.run(lambda r: Interpreters(r, args.port, args.interpreters))
