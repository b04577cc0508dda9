"""A server on gevent, with a greenlet for each connection, StreamServer, and gevent's own sockets.

Each handler is sequential code that blocks its greenlet, the way users of gevent write it.
"""

import socket

import gevent
from common import CHUNK, LARGE_REPLY, LAST_REPLY, LATE_REPLY, MESSAGE, REPLY, arguments, listening
from gevent.server import StreamServer


def reply(sock, address):
    while sock.recv(65536):
        sock.sendall(REPLY)


def reply_and_close(sock, address):
    sock.recv(65536)
    sock.sendall(LAST_REPLY)


def reply_large(sock, address):
    while sock.recv(65536):
        sock.sendall(LARGE_REPLY)


def pump(sock, address):
    sock.recv(65536)
    while True:
        sock.sendall(CHUNK)


def reply_late(sock, address):
    sock.recv(65536)
    gevent.sleep(delay)
    sock.sendall(LATE_REPLY)


members = set()


def broadcast(sock, address):
    members.add(sock)
    while sock.recv(65536):
        for member in members:
            member.sendall(MESSAGE)
    members.discard(sock)


WORKLOADS = {
    'keepalive': reply, 'churn': reply_and_close, 'large': reply_large, 'pump': pump,
    'seed': reply_late, 'pending': reply_late, 'broadcast': broadcast,
}  # fmt: skip


def handle(sock, address):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        answer(sock, address)
    except OSError:
        pass  # the client has disconnected


port, workload, delay = arguments()
answer = WORKLOADS[workload]
server = StreamServer(('127.0.0.1', port), handle, backlog=4096)
server.start()
listening(server.address)
server.serve_forever()
