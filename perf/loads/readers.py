"""Clients that only read: slowly from endless streams, or one message on each connection.

The bytes received are counted here; their cost is measured at the server.
"""

import selectors
import time

from .sockets import REQUEST, TIMEOUT


class Readers:
    """A context manager: connections, and the selector that they are registered with."""

    def __init__(self, socks):
        self.socks = socks
        self.selector = selectors.DefaultSelector()
        for sock in socks:
            self.selector.register(sock, selectors.EVENT_READ)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.selector.close()

    def drain_slowly(self, seconds, pause):
        """Read at most 64 KiB from each connection, pause, and repeat for `seconds`; return the bytes received."""
        received, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            for key, _ in self.selector.select(0):
                received += len(key.fileobj.recv(65536))
            time.sleep(pause)
        return received

    def broadcast(self, size):
        """Make the server send one message to all connections; return when each has received all `size` bytes."""
        missing, last = size * len(self.socks), time.monotonic()
        self.socks[0].send(REQUEST)
        while missing > 0:
            ready = self.selector.select(1)
            for key, _ in ready:
                missing -= len(key.fileobj.recv(65536))
            if ready:
                last = time.monotonic()
            elif time.monotonic() - last > TIMEOUT:
                raise TimeoutError(f'{missing} bytes of a broadcast are missing')
