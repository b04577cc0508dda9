"""Readers of what a server sends unasked: a slow one of endless streams, and many of one message each.

Owns nothing. The rule: what was received is counted here, what it cost is measured at the server.
"""

import selectors
import time

from .sockets import REQUEST, TIMEOUT

PAUSE = 0.001  # seconds between two looks of the slow reader


class Readers:
    """Connections and the selector that watches them; a context manager."""

    def __init__(self, socks):
        self.socks = socks
        self.selector = selectors.DefaultSelector()
        for sock in socks:
            self.selector.register(sock, selectors.EVENT_READ)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.selector.close()

    def drain_slowly(self, seconds):
        """Bytes received, 64 KiB at a time from each, with a pause after each look."""
        received, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            for key, _ in self.selector.select(0):
                received += len(key.fileobj.recv(65536))
            time.sleep(PAUSE)
        return received

    def broadcast(self, size):
        """Have one message sent to all of them; returns when everybody has it."""
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
