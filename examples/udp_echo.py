"""UDP echo (RFC 862): send each datagram back to its sender.

    $ python examples/udp_echo.py
    listening on 127.0.0.1:7007

In another terminal, each line that you type comes back:

    $ socat - UDP:127.0.0.1:7007
    hello
    hello

A datagram that cannot be sent at once is queued. When the queue is full, new datagrams are dropped, as UDP allows.
Empty datagrams, floods and clients that have disappeared do not disturb the server.
"""

import argparse
import signal

import reactor


def on_datagram(sock, data, address):
    sock.send(data, address)


def main(r, port):
    sock = r.bind_udp('127.0.0.1', port, on_datagram)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{sock.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
