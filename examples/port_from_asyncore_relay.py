"""A relay, ported from asyncore: `asyncore_relay_original.py` beside it is what it was.

Run it:    python examples/port_from_asyncore_relay.py --to 127.0.0.1:7007     (--port 8008)
End it:    kill its pid: no more clients, and those that it has may finish
"""

import argparse
import signal

import reactor


def on_data(conn, data):
    if not conn.data.write(data):  # conn.data is the other side; it reads more slowly than this one sends
        conn.pause_reading()


def on_drain(conn):
    if conn.data is not None:
        conn.data.resume_reading()


def on_close(conn, exc):
    other, conn.data = conn.data, None
    if other is not None:
        other.data = None
        other.close()  # what it was told until now is sent first


def main(r, port, to, idle):
    callbacks = {'on_drain': on_drain, 'on_close': on_close, 'idle_timeout': idle}

    def on_connect(client):
        client.data = r.connect_tcp(*to, on_data, timeout=10, **callbacks)
        client.data.data = client

    relay = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, **callbacks)
    r.add_signal_handler(signal.SIGTERM, relay.close).unref()
    print(f'listening on 127.0.0.1:{relay.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8008)
    options.add_argument('--to', default='127.0.0.1:7007', help='host:port of the server')
    options.add_argument('--idle', type=float, default=60, help='seconds of silence until a client is cut off')
    args = options.parse_args()
    host, _, to_port = args.to.rpartition(':')
    reactor.run(lambda r: main(r, args.port, (host, int(to_port)), args.idle))
    print('ended')
