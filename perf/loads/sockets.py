"""Connections to the server that is measured.

Owns how they are made. The rule: plain blocking sockets with as few system calls as can be; a load reads only what a
selector has announced.
"""

import contextlib
import socket
import struct

REQUEST = b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'
TIMEOUT = 10  # seconds until a load gives up
SOURCES = 4  # addresses of this machine to connect from, for their ports
IP_BIND_ADDRESS_NO_PORT = getattr(socket, 'IP_BIND_ADDRESS_NO_PORT', 24)  # the port is chosen when connecting
SEND_TIMEOUT = struct.pack('ll', TIMEOUT, 0)


def connect(port, source=None, receive_buffer=None):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)  # of connecting, too
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
    """Hold `count` connections open."""
    held = []
    try:
        for index in range(count):
            held.append(connect(port, f'127.0.0.{1 + index % SOURCES}', receive_buffer))
        yield held
    finally:
        for sock in held:
            sock.close()
