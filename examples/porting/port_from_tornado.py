"""A server ported from the callbacks of Tornado 4; the original is `tornado_original.py`.

    $ python examples/porting/port_from_tornado.py
    listening on 127.0.0.1:2527

In another terminal (the other commands are `ticks 3`, `body 5` and `quit`):

    $ nc -C 127.0.0.1 2527
    echo hello
    hello
    in 0.5 later
    later

It also receives datagrams: after `echo news | nc -u -w0 127.0.0.1 2527`, the answer to the command `last` is `news`.
"""

import argparse
import signal
import socket

import reactor
from reactor.framing import Frames

LONGEST_LINE = 4096
LONGEST_BODY = 1 << 20


class Server:
    last = b'nothing'

    def __init__(self, r, port):
        self.r = r
        self.listener = r.listen_tcp('127.0.0.1', port, on_connect=lambda conn: Connection(self, conn))

    def handle_datagram(self, handle, events, sock):
        self.last = sock.recv(65536)


class Connection:
    def __init__(self, server, conn):
        self.server, self.conn, self.left, self.beat = server, conn, 0, None
        self.frames, self.body = Frames(limit=LONGEST_LINE), None  # body: the size of the body that follows, or None
        conn.on_data, conn.on_close = self.on_data, self.on_close

    def on_data(self, conn, data):
        self.frames.feed(data)
        try:
            while conn.reading and (message := self.take()) is not None:
                self.on_line(message) if self.body is None else self.on_body(message)
        except reactor.FrameTooLong:
            conn.abort()

    def take(self):
        return self.frames.line() if self.body is None else self.frames.exactly(self.body, LONGEST_BODY)

    def on_line(self, line):
        match line.split():
            case [b'echo', text]:
                self.say(text)
            case [b'in', seconds, text]:
                self.server.r.call_later(float(seconds), self.say, text)
            case [b'ticks', count]:
                self.left = int(count)
                self.beat = self.server.r.call_every(0.02, self.tick)  # seconds
            case [b'body', size]:
                self.body = int(size)
            case [b'last']:
                self.say(self.server.last)
            case [b'quit']:
                self.conn.write(b'bye\r\n')
                self.conn.close()  # closes when all bytes have been sent
            case _:
                self.say(b'what?')

    def on_body(self, body):
        self.body = None
        self.say(b'%d bytes' % len(body))

    def tick(self):
        self.say(b'tick')
        self.left -= 1
        if not self.left:
            self.beat.cancel()

    def say(self, text):
        if not self.conn.closed:
            self.conn.write(text + b'\r\n')

    def on_close(self, conn, exc):
        if self.beat is not None:
            self.beat.cancel()
        print(f'closed: {exc}', flush=True)


def main(r, port):
    server = Server(r, port)
    news = socket.socket(type=socket.SOCK_DGRAM)
    news.setblocking(False)
    news.bind(server.listener.address)
    r.watch_fd(news, reactor.READ, server.handle_datagram, news)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.listener.address[1]}', flush=True)
    r.add_exit_callback(news.close)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2527)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
