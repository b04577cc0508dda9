"""Echo (RFC 862): send back what each client sends.

    $ python examples/echo.py
    listening on 127.0.0.1:7007

In another terminal, each line that you type comes back:

    $ nc 127.0.0.1 7007
    hello
    hello

When a client sends without reading its answers, the server stops reading from that client until it has caught up.
"""

import argparse
import signal

import reactor


def on_data(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_drain(conn):
    conn.resume_reading()


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_data, on_drain=on_drain)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
