"""Character generator (RFC 864): writes lines for ever, as fast as each client reads and no faster.

Run it:    python examples/chargen.py                     (--port 1919)
Read:      nc 127.0.0.1 1919 | head -5                    and it stops when you do
"""

import argparse
from string import printable

import reactor

CHARACTERS = printable[:95] * 2
LINES = b''.join(f'{CHARACTERS[n : n + 72]}\r\n'.encode() for n in range(95))


def generate(conn):
    conn.write(LINES, generate)  # and again when the kernel has taken all of it


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_connect=generate)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=1919)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
