"""HTTP clients that keep their connections open, and reconnect after a response with `Connection: close`.

A request counts as lost when it was sent and its connection ended before the whole response arrived, for whatever
reason. A connection that ends between two requests loses nothing, and a refused connection is counted separately.
"""

import selectors
import time

from .sockets import connect


class KeepAliveClients:
    """A context manager: `count` clients, each of which sends its next request as soon as a response has arrived."""

    def __init__(self, port, path, count):
        self.port = port
        self.request = f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'.encode()
        self.count = count
        self.answered = self.lost = self.refused = self.closed = 0
        self.received = {}  # {socket: the bytes received so far of the current response}

    def __enter__(self):
        self.selector = selectors.DefaultSelector()
        for _ in range(self.count):
            self.begin()
        return self

    def __exit__(self, *failure):
        for sock in list(self.received):
            self.end(sock)
        self.selector.close()

    def go(self, seconds):
        """Run for `seconds`, or until no client is connected."""
        until = time.monotonic() + seconds
        while self.received and (left := until - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                self.read(key.fileobj)

    def begin(self):
        try:
            sock = connect(self.port)
        except ConnectionRefusedError:
            self.refused += 1
            return
        self.selector.register(sock, selectors.EVENT_READ)
        self.ask(sock)

    def ask(self, sock):
        self.received[sock] = b''
        try:
            sock.sendall(self.request)
        except OSError:
            pass  # the next read raises the same error, and `read` counts it

    def read(self, sock):
        try:
            data = sock.recv(65536)
        except OSError:
            data = b''
        received = self.received[sock] = self.received[sock] + data
        head, end, body = received.partition(b'\r\n\r\n')
        fields = dict(line.lower().split(b': ', 1) for line in head.split(b'\r\n')[1:]) if end else {}
        if end and len(body) >= int(fields[b'content-length']):
            self.answered += 1
            if fields.get(b'connection') == b'close':
                self.closed += 1
                self.end(sock)
                self.begin()
            else:
                self.ask(sock)
        elif not data:
            self.lost += 1
            self.end(sock)
            self.begin()

    def end(self, sock):
        del self.received[sock]
        self.selector.unregister(sock)
        sock.close()
