"""Programs for the child processes of several cases: an echo server, and clients that stay connected.

The server is what a user would write, and also answers questions about its state. The clients are plain blocking
sockets, so that only one reactor is measured.
"""

import contextlib
import gc
import logging
import resource
import selectors
import socket
import time

import reactor
from perf.common.machine import raise_descriptor_limit
from perf.loads.sockets import IP_BIND_ADDRESS_NO_PORT, connect

SOURCES = 40  # number of addresses to connect from: a million connections leave many ports in TIME_WAIT
ANSWER = 10  # seconds within which an answer must arrive


class Lines(logging.Handler):
    """Counts the lines that the reactor logs, and keeps the last one."""

    def __init__(self):
        super().__init__()
        self.count, self.last = 0, ''
        logging.getLogger('reactor').addHandler(self)
        logging.getLogger('reactor').propagate = False

    def emit(self, record):
        self.count += 1
        self.last = record.getMessage()


class Looks:
    """The commands that query the state of a program with a reactor."""

    def __init__(self, r):
        self.r, self.lines = r, Lines()

    def look(self):
        """Return the reactor's counters, and how many lines it has logged."""
        return {**self.r.stats().as_dict(), 'lines': self.lines.count, 'last_line': self.lines.last}

    def commands(self, **more):
        """Return all commands by name, including those in `more`."""
        return {'look': self.look, 'objects': objects, 'collect': gc.collect, 'freeze': freeze, **more}


def objects():
    """Return the number of objects that the garbage collector tracks."""
    return len(gc.get_objects())


def freeze():
    """Exempt all existing objects from garbage collection."""
    gc.collect()
    gc.freeze()


def echo(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def resume(conn):
    conn.resume_reading()


def serve_echo(control, port=0, collector=True, select=False, limit=None, **options):
    """Run an echo server on 127.0.0.1, and send its port to the parent."""
    raise_descriptor_limit()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if not collector:
        gc.disable()

    def main(r):
        control.attach(r, Looks(r).commands())
        server = r.listen_tcp('127.0.0.1', port, echo, on_drain=resume, **options)
        control.send(server.address[1])

    reactor.run(main, selector=selectors.SelectSelector() if select else None)


class Held:
    """Clients that stay connected."""

    def __init__(self, port, receive_buffer=None):
        self.port = port
        self.receive_buffer = receive_buffer
        self.socks = []

    def open(self, count):
        for _ in range(count):
            sock = connect(self.port, source(len(self.socks)), self.receive_buffer)
            sock.settimeout(ANSWER)
            self.socks.append(sock)
        return len(self.socks)

    def ping(self, first=0, count=None):
        """Ping the connections in turn; return how many answered, and the longest time in milliseconds."""
        answered, longest = 0, 0.0
        for sock in self.socks[first : None if count is None else first + count]:
            began = time.perf_counter()
            try:
                sock.send(b'?')
                answered += sock.recv(1) == b'?'
            except OSError:
                continue
            longest = max(longest, time.perf_counter() - began)
        return {'answered': answered, 'longest_ms': longest * 1000}

    def close(self, count=None):
        for _ in range(len(self.socks) if count is None else count):
            self.socks.pop().close()
        return len(self.socks)


def source(index):
    """Return the address from which client number `index` connects."""
    return f'127.0.0.{1 + index % SOURCES}'


def hold(control, port, receive_buffer=None):
    """Run clients of the server at `port` that stay connected; `receive_buffer` is SO_RCVBUF in bytes."""
    raise_descriptor_limit()
    held = Held(port, receive_buffer)
    control.serve({'open': held.open, 'ping': held.ping, 'close': held.close})


class Crowd:
    """Clients that all connect at once, without waiting; some of them may never be accepted."""

    def __init__(self, port, count):
        self.socks = []
        self.port = port
        self.count = count

    def connect(self):
        for index in range(self.count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source(index), 0))
            sock.connect_ex(('127.0.0.1', self.port))
            self.socks.append(sock)
        return len(self.socks)

    def ping(self):
        """Ping on all connections; return how many pings are answered before half a second passes without an answer."""
        answered = 0
        with selectors.DefaultSelector() as selector:
            for sock in self.socks:
                with contextlib.suppress(OSError):  # the socket is not connected yet, or is closed
                    sock.send(b'?')
                    selector.register(sock, selectors.EVENT_READ)
            while ready := selector.select(0.5):
                for key, _ in ready:
                    selector.unregister(key.fileobj)
                    with contextlib.suppress(OSError):
                        answered += key.fileobj.recv(1) == b'?'
        return answered

    def count_closed(self):
        """Return how many connections the server has closed."""
        closed = 0
        for sock in self.socks:
            try:
                closed += not sock.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                closed += 1
        return closed

    def leave(self, count=None):
        """Close the oldest `count` connections, by default all; return how many were closed."""
        leaving = self.socks[:count]
        del self.socks[:count]
        for sock in leaving:
            sock.close()
        return len(leaving)


def crowd(control, port, count):
    """Run `count` clients of the server at `port` that connect, ping and leave on command."""
    raise_descriptor_limit()
    one = Crowd(port, count)
    control.serve({'connect': one.connect, 'ping': one.ping, 'count_closed': one.count_closed, 'leave': one.leave})
