"""A server ported from asyncio's protocols; the original is `asyncio_original.txt`.

    $ python examples/porting/port_from_asyncio.py
    listening on 127.0.0.1:2528

In another terminal (the other commands are `later 0.5 hello`, `digest hello`, `flood 9` and `quit`):

    $ nc -C 127.0.0.1 2528
    ready, 127.0.0.1
    say hello
    hello

With --cert and --key, the server uses TLS. It prints a line when a connection ends.
"""

import argparse
import hashlib
import signal
import ssl

import reactor
from reactor import framing

LONGEST_LINE = 4096
PIECE = b'x' * 65536


def digest(text):
    return hashlib.pbkdf2_hmac('sha256', text, b'salt', 1000).hex().encode()


def on_connect(conn):
    conn.data = 0  # number of pieces still to send
    say(conn, b'ready, ' + conn.peername[0].encode())


def on_line(conn, line):
    r = conn.loop
    match line.split():
        case [b'say', text]:
            say(conn, text)
        case [b'later', seconds, text]:
            r.call_later(float(seconds), say, conn, text)
        case [b'digest', text]:
            r.run_in_thread(digest, text, on_done=lambda result, error: digested(conn, result, error))
        case [b'flood', pieces]:
            conn.data = int(pieces)
            on_drain(conn)
        case [b'quit']:
            say(conn, b'bye')
            conn.close()
        case _:
            say(conn, b'what?')


def digested(conn, result, error):
    if error is not None:
        raise error
    say(conn, result)


def on_drain(conn):
    while conn.data:
        conn.data -= 1
        if not conn.write(PIECE):
            break


def say(conn, text):
    if not conn.closed:
        conn.write(text + b'\r\n')


def on_eof(conn):
    say(conn, b'you have ended')
    conn.close()


def on_close(conn, exc):
    print(f'closed: {exc}', flush=True)


def main(r, port, idle, tls):
    server = r.listen_tcp(
        '127.0.0.1', port, framing.lines(on_line, limit=LONGEST_LINE),
        on_connect=on_connect, on_drain=on_drain, on_eof=on_eof, on_close=on_close, idle_timeout=idle, ssl=tls,
    )  # fmt: skip
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2528)
    options.add_argument('--idle', type=float, default=60, help='seconds without traffic until a client is closed')
    options.add_argument('--cert')
    options.add_argument('--key')
    args = options.parse_args()
    tls = None
    if args.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(args.cert, args.key)
    reactor.run(lambda r: main(r, args.port, args.idle, tls))
