"""A store of bytes, ported from `asyncore_store_original.py`.

    $ python examples/porting/port_from_asyncore_store.py
    listening on 127.0.0.1:2526

In another terminal:

    $ nc -C 127.0.0.1 2526
    put greeting 5
    hello
    stored
"""

import argparse
import signal

import reactor
from reactor.framing import Frames

MOST = 1 << 20  # the largest size of a value, in bytes
LONGEST_LINE = 4096
stored = {}


class Session(Frames):
    name, size = None, 0  # name and size of the value that follows; if name is None, a line follows


def on_connect(conn):
    conn.data = Session(limit=LONGEST_LINE)


def on_data(conn, data):
    session = conn.data
    session.feed(data)
    try:
        while conn.reading and (message := take(session)) is not None:
            on_message(conn, session, message)
    except reactor.FrameTooLong:
        conn.abort()


def take(session):
    return session.line() if session.name is None else session.exactly(session.size, limit=MOST)


def on_message(conn, session, message):
    if session.name is not None:
        stored[session.name], session.name = message, None
        conn.write(b'stored\r\n')
        return
    match message.split():
        case [b'put', name, size] if size.isdigit() and 0 < int(size) <= MOST:
            session.name, session.size = name, int(size)
        case [b'get', name]:
            value = stored.get(name, b'')
            conn.writelines([b'%d\r\n' % len(value), value])  # bytes that the kernel does not accept now are queued
        case [b'quit']:
            conn.close()
        case _:
            conn.write(b'what?\r\n')


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2526)
    port = options.parse_args().port

    def main(r):
        server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect)
        for signum in signal.SIGINT, signal.SIGTERM:
            r.add_signal_handler(signum, r.stop)
        print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)

    reactor.run(main)
    print('bye')
