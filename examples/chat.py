"""A chat room: every line goes to everybody else, with the name of who said it.

Run it:    python examples/chat.py               (--port 5222)
Join:      nc 127.0.0.1 5222                     in two terminals, and type

Who reads too slowly misses lines instead of making the others wait, and who stops reading at all is cut off.
"""

import argparse
from itertools import count

import reactor

LONGEST_LINE = 4096
members = {}  # connection: name
guests = count(1)


def tell(text, but=None):
    for member in members:
        if member is not but and not member.closed and member.buffered < 1 << 20:
            member.write(text)


def on_connect(conn):
    conn.data = b''
    members[conn] = b'guest%d' % next(guests)
    conn.write(b'you are %s, %d here\n' % (members[conn], len(members)))
    tell(b'* %s joined\n' % members[conn], but=conn)


def on_data(conn, data):
    *lines, conn.data = (conn.data + data).split(b'\n')
    for line in lines:
        tell(b'%s: %s\n' % (members[conn], line), but=conn)
    if len(conn.data) > LONGEST_LINE:
        conn.abort()


def on_close(conn, exc):
    if conn in members:  # else it was closed before on_connect, as when Ctrl-C comes just then
        tell(b'* %s left\n' % members.pop(conn), but=conn)


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, on_close=on_close, write_timeout=60)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=5222)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
