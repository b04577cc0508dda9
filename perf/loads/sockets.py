"""Connections from the loads to the server.

The sockets are plain and blocking, which costs the fewest system calls; a load reads only when its selector reports
the socket ready.
"""

import contextlib
import socket
import struct

REQUEST = b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'
TIMEOUT = 10  # seconds after which a load fails
SOURCES = 4  # number of local addresses to connect from: each has its own range of ports
IP_BIND_ADDRESS_NO_PORT = getattr(socket, 'IP_BIND_ADDRESS_NO_PORT', 24)  # connect(), not bind(), chooses the port
SEND_TIMEOUT = struct.pack('ll', TIMEOUT, 0)


def connect(port, source=None, receive_buffer=None):
    """Connect to a port of 127.0.0.1 from the address `source`; `receive_buffer` is SO_RCVBUF in bytes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)  # this limit applies to connect() too
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
    try:
        sock.connect(('127.0.0.1', port))
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def connections(port, count, receive_buffer=None):
    """Hold `count` connections open during the `with` block."""
    held = []
    try:
        for index in range(count):
            held.append(connect(port, f'127.0.0.{1 + index % SOURCES}', receive_buffer))
        yield held
    finally:
        for sock in held:
            sock.close()
