"""A TCP proxy: forward bytes both ways, no faster than the slower side reads, and forward half-closes.

With `examples/echo.py` running in another terminal:

    $ python examples/proxy.py --to 127.0.0.1:7007
    listening on 127.0.0.1:8008

Clients of the proxy talk to the echo server:

    $ nc 127.0.0.1 8008
    hello
    hello
"""

import argparse
import signal

import reactor


def on_data(conn, data):
    if not conn.data.write(data):  # conn.data is the connection to the other side
        conn.pause_reading()


def on_drain(conn):
    if conn.data is not None:
        conn.data.resume_reading()


def on_eof(conn):
    conn.data.write_eof()


def on_close(conn, exc):
    other, conn.data = conn.data, None
    if other is not None and not other.closed:
        other.data = None
        if exc is None:
            other.close()
        else:
            other.abort()


def main(r, port, host, to_port):
    pair = {'on_eof': on_eof, 'on_drain': on_drain, 'on_close': on_close}

    def on_connect(client):
        client.data = r.connect_tcp(host, to_port, on_data, timeout=10, **pair)
        client.data.data = client

    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, **pair)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8008)
    options.add_argument('--to', default='127.0.0.1:7007', help='host:port of the server')
    args = options.parse_args()
    host, _, to_port = args.to.rpartition(':')
    reactor.run(lambda r: main(r, args.port, host, int(to_port)))
    print('bye')
