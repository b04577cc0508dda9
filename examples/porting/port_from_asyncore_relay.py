"""A relay, ported from `asyncore_relay_original.py`: it connects each client to a server.

With `examples/echo.py` running in another terminal:

    $ python examples/porting/port_from_asyncore_relay.py --to 127.0.0.1:7007
    listening on 127.0.0.1:8008

    $ nc 127.0.0.1 8008
    hello
    hello

SIGTERM closes the listener; the program ends when its last client has disconnected. Ctrl-C ends it at once.
"""

import argparse
import signal

import reactor


def on_data(conn, data):
    if not conn.data.write(data):  # conn.data is the other connection; its peer reads too slowly
        conn.pause_reading()


def on_drain(conn):
    if conn.data is not None:
        conn.data.resume_reading()


def on_close(conn, exc):
    other, conn.data = conn.data, None
    if other is not None:
        other.data = None
        other.close()  # close() first sends the buffered bytes


def main(r, port, to, idle):
    callbacks = {'on_drain': on_drain, 'on_close': on_close, 'idle_timeout': idle}

    def on_connect(client):
        client.data = r.connect_tcp(*to, on_data, timeout=10, **callbacks)
        client.data.data = client

    relay = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, **callbacks)
    r.add_signal_handler(signal.SIGINT, r.stop).unref()
    r.add_signal_handler(signal.SIGTERM, relay.close).unref()
    print(f'listening on 127.0.0.1:{relay.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8008)
    options.add_argument('--to', default='127.0.0.1:7007', help='host:port of the server')
    options.add_argument('--idle', type=float, default=60, help='seconds without traffic until a client is closed')
    args = options.parse_args()
    host, _, to_port = args.to.rpartition(':')
    reactor.run(lambda r: main(r, args.port, (host, int(to_port)), args.idle))
    print('ended')
