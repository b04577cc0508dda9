"""Discard (RFC 863): reads everything and says nothing; tells how much when a client ends.

Run it:    python examples/discard.py                       (--port 9099)
Send:      head -c 1000000 /dev/zero | nc -N 127.0.0.1 9099   and it prints 1,000,000 bytes
"""

import argparse

import reactor


def on_connect(conn):
    conn.data = 0


def on_data(conn, data):
    conn.data += len(data)


def on_close(conn, exc):
    print(f'{conn.data or 0:,} bytes', f'({exc})' if exc else '', flush=True)


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, on_close=on_close)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=9099)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
