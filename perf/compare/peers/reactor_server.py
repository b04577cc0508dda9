"""A server on this reactor, used as plainly as in its README: the code is what a user would write."""

from common import (
    BODY,
    CHUNK,
    HEAD,
    LARGE_REPLY,
    LAST_REPLY,
    LATE_REPLY,
    MESSAGE,
    REPLY,
    REQUEST_END,
    SMALL,
    SMALLS,
    arguments,
    bound,
    listening,
    server_context,
)  # fmt: skip

import reactor


def reply(conn, data):
    conn.write(REPLY)


def reply_and_close(conn, data):
    conn.write(LAST_REPLY)
    conn.close()


def reply_large(conn, data):
    conn.write(LARGE_REPLY)


def pump(conn, data=None):
    while conn.write(CHUNK):
        pass  # stop at the high-water mark; on_drain then calls this function again


def reply_late(conn, data):
    conn.loop.call_later(delay, answer, conn)


def answer(conn):
    if not conn.closed:
        conn.write(LATE_REPLY, reactor.Stream.close)


def echo(conn, data):
    conn.write(data)


def reply_twice(conn, data):
    conn.write(HEAD)
    conn.write(BODY)


def reply_in_pieces(conn, data):
    for _ in range(SMALLS):
        conn.write(SMALL)


def reply_to_each(conn, data):
    for _ in range(data.count(REQUEST_END)):
        conn.write(REPLY)


def echo_datagram(sock, data, address):
    sock.send(data, address)


members = set()


def broadcast(conn, data):
    for member in members:
        member.write(MESSAGE)


def leave(conn, exc):
    members.discard(conn)


MIN_WAIT = 0.0005  # seconds
WORKLOADS = {
    'keepalive': {'on_data': reply},
    'tls': {'on_data': reply},
    'min_wait': {'on_data': reply},
    'churn': {'on_data': reply_and_close},
    'defer': {'on_data': reply_and_close, 'defer_accept': True},
    'large': {'on_data': reply_large},
    'pump': {'on_data': pump, 'on_drain': pump},
    'seed': {'on_data': reply_late},
    'pending': {'on_data': reply_late},
    'echo': {'on_data': echo},
    'twice': {'on_data': reply_twice},
    'small': {'on_data': reply_in_pieces},
    'pipeline': {'on_data': reply_to_each},
    'broadcast': {'on_data': broadcast, 'on_connect': members.add, 'on_close': leave},
}


def main(r):
    if workload == 'udp':
        return listening(r.bind_udp('127.0.0.1', port, echo_datagram).address)
    if workload == 'unix':
        return listening(r.listen_unix(bound(), reply).address)
    secure = {'ssl': server_context()} if workload == 'tls' else {}
    listening(r.listen_tcp('127.0.0.1', port, **WORKLOADS[workload], **secure).address)


port, workload, delay = arguments()
reactor.run(main, min_wait=MIN_WAIT if workload == 'min_wait' else 0)
