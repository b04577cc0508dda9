"""A chat room: send each line to all other clients, with the name of the client that wrote it.

    $ python examples/chat.py
    listening on 127.0.0.1:5222

Join in two terminals and type. A line typed in the first appears in the second:

    $ nc 127.0.0.1 5222
    you are guest2, 2 here
    guest1: hello

A client that reads too slowly misses lines, so that the others do not have to wait for it. A client that does not read
at all is disconnected.
"""

import argparse
import signal
from itertools import count

import reactor
from reactor import framing

LONGEST_LINE = 4096  # bytes; a client that sends a longer line is reset
members = {}  # maps connections to names
guests = count(1)


def broadcast(text, but=None):
    for member in members:
        if member is not but and not member.closed and member.buffered < 1 << 20:
            member.write(text)


def on_connect(conn):
    members[conn] = b'guest%d' % next(guests)
    conn.write(b'you are %s, %d here\n' % (members[conn], len(members)))
    broadcast(b'* %s joined\n' % members[conn], but=conn)


def on_line(conn, line):
    broadcast(b'%s: %s\n' % (members[conn], line), but=conn)


def on_close(conn, exc):
    if conn in members:  # a connection can be closed before `on_connect` is called, for example by Ctrl-C
        broadcast(b'* %s left\n' % members.pop(conn), but=conn)


def main(r, port):
    on_data = framing.lines(on_line, limit=LONGEST_LINE)
    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, on_close=on_close, write_timeout=60)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=5222)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
