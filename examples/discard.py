"""Discard (RFC 863): read everything, answer nothing, and print how many bytes each client sent.

    $ python examples/discard.py
    listening on 127.0.0.1:9099
    1,000,000 bytes

The second line appears after this command in another terminal:

    $ head -c 1000000 /dev/zero | nc -N 127.0.0.1 9099
"""

import argparse
import signal

import reactor


def on_connect(conn):
    conn.data = 0  # number of bytes received


def on_data(conn, data):
    conn.data += len(data)


def on_close(conn, exc):
    error = f' ({exc})' if exc else ''
    print(f'{conn.data or 0:,} bytes{error}', flush=True)  # `data` is None if `on_connect` was not called


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, on_close=on_close)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=9099)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
