"""The workloads: each has a server program, and clients that send requests to it.

All clients send their requests together, so the count is dominated by the requests, and not by the turn of the loop
that handles them (`chain` counts turns). The server is stopped while the clients send. When it continues, it finds all
requests at once and handles them in the same turns each time. The clients send again only when the server sleeps. So
the speed of the machine does not change the count.
"""

import contextlib
import ssl
import time

from perf.common.server import Failed
from perf.compare.peers import common
from perf.loads.sockets import REQUEST, connect

TIMEOUT = 60  # seconds within which a reply must arrive
DELAY = 0.15  # seconds before a delayed reply; the server must read all requests within this time
# Every timer is at least this many seconds late. The reactor counts late timers in buckets whose bounds double. One
# bucket begins at 0.125 s, and all timers fall into that bucket unless the machine is far too busy.
LATE = 0.13


class TooSlow(Failed):
    """The machine is so busy that a timer may have fired before all requests were read."""


class Workload:
    """A kind of request, which all `clients` send together, `rounds` times in each interval."""

    server = 'server'  # the program perf/compare/peers/PEER_SERVER.py
    reply = common.REPLY
    units = 1  # number of units that a request consists of
    what = 'request'  # name of a unit
    delay = 0  # seconds that the server waits before it replies

    def __init__(self, name, about, clients, rounds, workload=None):
        self.name = name
        self.about = about
        self.clients = clients
        self.rounds = rounds
        self.workload = workload or name

    @contextlib.contextmanager
    def connected(self, server):
        """Connect the clients; yield a function that sends a request from each and receives all replies."""
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(self.connect(server.port)) for _ in range(self.clients)]
            yield lambda: self.ask(server, socks)

    def connect(self, port):
        sock = connect(port)
        sock.settimeout(TIMEOUT)
        return sock

    def ask(self, server, socks):
        with server.stopped():
            for sock in socks:
                sock.sendall(REQUEST)
        for sock in socks:
            receive(sock, self.reply)


class Secure(Workload):
    """Requests over TLS 1.3."""

    def __init__(self, *args):
        super().__init__(*args)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def connect(self, port):
        return self.context.wrap_socket(super().connect(port))


class Connecting(Workload):
    """Requests that are each sent on a new connection; the server closes the connection after its reply."""

    reply = common.LAST_REPLY

    @contextlib.contextmanager
    def connected(self, server):
        yield lambda: self.connect_and_ask(server)

    def connect_and_ask(self, server):
        with contextlib.ExitStack() as stack:
            with server.stopped():
                socks = [stack.enter_context(self.connect(server.port)) for _ in range(self.clients)]
                for sock in socks:
                    sock.sendall(REQUEST)
            self.wait(server)
            for sock in socks:
                receive(sock, self.reply, last=True)

    def wait(self, server):
        pass


class Delayed(Connecting):
    """The server is stopped until all its timers are due, so that they fire in one turn."""

    reply = common.LATE_REPLY
    delay = DELAY

    def wait(self, server):
        began = time.monotonic()
        with server.stopped():
            if time.monotonic() - began > server.delay:
                raise TooSlow(f'the server took more than {server.delay:g} s to read {self.clients} requests')
            time.sleep(server.delay + LATE)


class Chain(Workload):
    server = 'chain'
    units = common.CHAIN
    what = 'call'


def receive(sock, expected, last=False):
    """Receive the `expected` reply and, if it is the `last`, end of file. Raise `Failed` for anything else."""
    data = b''
    while len(data) < len(expected) and (piece := sock.recv(65536)):
        data += piece
    if data != expected:
        raise Failed(f'the server answered {data!r}, not {expected!r}')
    if last and (rest := sock.recv(1)):
        raise Failed(f'the server sent more after its reply: {rest!r}')


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload('keepalive', 'a request on a connection that stays open', 100, 20),
        Connecting('churn', 'a connection that carries one request', 32, 30),
        Connecting('churn_defer', 'a connection that carries one request, and is accepted with it', 32, 30, 'defer'),
        Secure('tls', 'a request on a TLS 1.3 connection that stays open', 20, 20),
        Delayed('seed', 'a connection that carries one request; a timer replies, and the write callback closes', 32, 8),
        Chain('chain', 'a turn of the loop, which makes one call to call_soon; that call adds the next', 1, 2),
    )
}
