"""A relay on asyncore that connects each client to a server; `port_from_asyncore_relay.py` is the port.

Needs Python 3.11 or older. With `examples/echo.py` running in another terminal:

    $ python3.11 examples/porting/asyncore_relay_original.py --to 127.0.0.1:7007
    listening on 127.0.0.1:8008

    $ nc 127.0.0.1 8008
    hello
    hello

SIGTERM closes the listener; the program ends when its last client has disconnected. Ctrl-C ends it at once.
"""

import argparse
import asyncore
import signal
import time


class Relay(asyncore.dispatcher):
    ending = False

    def __init__(self, port, to, sockets):
        super().__init__(map=sockets)
        self.to = to
        self.create_socket()
        self.set_reuse_addr()
        self.bind(('127.0.0.1', port))
        self.listen(128)

    def handle_accepted(self, sock, address):
        client, server = Side(sock, self._map), Side(None, self._map)
        client.other, server.other = server, client
        server.create_socket()
        server.connect(self.to)

    def end(self, signum, frame):
        self.ending = True  # only set a flag, because the signal may have interrupted any line


class Side(asyncore.dispatcher_with_send):
    def __init__(self, sock, sockets):
        super().__init__(sock, sockets)
        self.other, self.used = None, time.monotonic()

    def handle_read(self):
        data = self.recv(65536)
        self.used = time.monotonic()
        if self.other is not None:
            self.other.send(data)

    def handle_error(self):  # called if the connection was refused or reset
        self.handle_close()

    def handle_close(self):
        other, self.other = self.other, None
        self.close()
        if other is not None:
            other.handle_close()


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8008)
    options.add_argument('--to', default='127.0.0.1:7007', help='host:port of the server')
    options.add_argument('--idle', type=float, default=60, help='seconds without traffic until a client is closed')
    args = options.parse_args()
    host, _, to_port = args.to.rpartition(':')
    sockets = {}
    relay = Relay(args.port, (host, int(to_port)), sockets)
    signal.signal(signal.SIGTERM, relay.end)
    try:
        print(f'listening on 127.0.0.1:{relay.socket.getsockname()[1]}', flush=True)
        while sockets:
            asyncore.loop(timeout=0.1, count=1, map=sockets)
            if relay.ending:
                relay.close()
            for side in list(sockets.values()):
                if side is not relay and time.monotonic() - side.used > args.idle:
                    side.handle_close()
    except KeyboardInterrupt:
        asyncore.close_all(sockets)
    print('ended')
