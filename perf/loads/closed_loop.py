"""Closed-loop loads: send a request, read the reply, send the next. The number in flight is fixed.

They replace wrk where it is not installed, and are also used for large replies and for counting system calls.
"""

import selectors
import time

from .sockets import REQUEST, TIMEOUT, connect, connections


def keep_alive(port, count, seconds, size, most=float('inf')):
    """Send requests over `count` connections that stay open, with replies of `size` bytes.

    Stop after `seconds` or `most` replies. Returns (requests answered, seconds it took).
    """
    answered, started = 0, time.monotonic()
    with connections(port, count) as socks, selectors.DefaultSelector() as selector:
        left = dict.fromkeys(socks, size)
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
            sock.send(REQUEST)
        while time.monotonic() - started < seconds and answered < most:
            for key, _ in selector.select(TIMEOUT):
                sock = key.fileobj
                data = sock.recv(1 << 18)
                if not data:
                    raise ConnectionError('the server closed a connection that should stay open')
                left[sock] -= len(data)
                if left[sock] <= 0:
                    answered += 1
                    left[sock] = size
                    sock.send(REQUEST)
        return answered, time.monotonic() - started


def reconnect(port, count, seconds, most=float('inf')):
    """Like `keep_alive`, but each request has its own connection, which the server closes."""
    answered, started = 0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            ask(selector, port)
        while time.monotonic() - started < seconds and answered < most:
            for key, _ in selector.select(TIMEOUT):
                if not key.fileobj.recv(65536):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    answered += 1
                    ask(selector, port)
        took = time.monotonic() - started
        for key in list(selector.get_map().values()):
            key.fileobj.close()
    return answered, took


def ask(selector, port):
    """Connect and send a request; the selector reports the reply."""
    sock = connect(port)
    sock.send(REQUEST)
    selector.register(sock, selectors.EVENT_READ)
