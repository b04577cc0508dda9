"""UDP echo (RFC 862): sends every datagram back to where it came from.

Run it:    python examples/udp_echo.py                  (--port 7007)
Talk:      socat - UDP:127.0.0.1:7007                   and every line comes back

A client that is gone, a datagram without a byte, a hundred thousand at once: the server stays what it is. What it
cannot send at once waits, up to a limit; beyond that it is dropped, as UDP may.
"""

import argparse

import reactor


def on_datagram(sock, data, address):
    sock.send(data, address)


def main(r, port):
    sock = r.bind_udp('127.0.0.1', port, on_datagram)
    print(f'listening on 127.0.0.1:{sock.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    port = options.parse_args().port
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
