"""Character generator (RFC 864): send an endless stream of lines, no faster than each client reads.

    $ python examples/chargen.py
    listening on 127.0.0.1:1919

In another terminal (the connection ends when `head` has printed its lines):

    $ nc 127.0.0.1 1919 | head -2
    0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!"#$%&'()*
    123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!"#$%&'()*+
"""

import argparse
import signal
from string import printable

import reactor

CHARACTERS = printable[:95] * 2
LINES = b''.join(f'{CHARACTERS[n : n + 72]}\r\n'.encode() for n in range(95))


def generate(conn):
    conn.write(LINES, generate)  # `generate` is called again when the kernel has accepted all of LINES


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_connect=generate)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=1919)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
