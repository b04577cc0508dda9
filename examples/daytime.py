"""Daytime (RFC 867): send the date and time to each client, then close the connection.

    $ python examples/daytime.py
    listening on 127.0.0.1:1313

In another terminal:

    $ nc 127.0.0.1 1313
    Sunday, November 29, 2026 11:30:00-UTC
"""

import argparse
import signal
import time

import reactor


def on_connect(conn):
    conn.write(time.strftime('%A, %B %d, %Y %H:%M:%S-%Z\r\n').encode())
    conn.close()  # close() first sends the bytes already written


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_connect=on_connect)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=1313)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
