"""A server with the callbacks of Tornado 4, which Tornado 6 no longer has; `port_from_tornado.py` is the port.

Needs Python 3.11 or older and `pip install tornado==4.5.3`.

    $ python3.11 examples/porting/tornado_original.py
    listening on 127.0.0.1:2527

In another terminal:

    $ nc -C 127.0.0.1 2527
    echo hello
    hello
    in 0.5 later
    later
"""

import argparse
import signal
import socket

from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.tcpserver import TCPServer

LONGEST_LINE = 4096


class Server(TCPServer):
    last = b'nothing'

    def handle_stream(self, stream, address):
        Connection(self, stream)

    def handle_datagram(self, sock, events):
        self.last = sock.recv(65536)


class Connection:
    def __init__(self, server, stream):
        self.server, self.stream, self.left, self.beat = server, stream, 0, None
        stream.set_close_callback(self.on_close)
        self.next()

    def next(self):
        if not self.stream.closed():
            self.stream.read_until(b'\r\n', self.on_line, max_bytes=LONGEST_LINE)

    def on_line(self, line):
        match line.split():
            case [b'echo', text]:
                self.say(text)
            case [b'in', seconds, text]:
                IOLoop.current().call_later(float(seconds), self.say, text)
            case [b'ticks', count]:
                self.left = int(count)
                self.beat = PeriodicCallback(self.tick, 20)  # milliseconds
                self.beat.start()
            case [b'body', size]:
                self.stream.read_bytes(int(size), self.on_body)
                return
            case [b'last']:
                self.say(self.server.last)
            case [b'quit']:
                self.stream.write(b'bye\r\n', self.stream.close)
                return
            case _:
                self.say(b'what?')
        self.next()

    def on_body(self, body):
        self.say(b'%d bytes' % len(body))
        self.next()

    def tick(self):
        self.say(b'tick')
        self.left -= 1
        if not self.left:
            self.beat.stop()

    def say(self, text):
        if not self.stream.closed():
            self.stream.write(text + b'\r\n')

    def on_close(self):
        if self.beat is not None:
            self.beat.stop()
        print(f'closed: {self.stream.error}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2527)
    server = Server()
    server.listen(options.parse_args().port, '127.0.0.1')
    (listening,) = server._sockets.values()
    news = socket.socket(type=socket.SOCK_DGRAM)
    news.setblocking(False)
    news.bind(listening.getsockname())
    IOLoop.current().add_handler(news, server.handle_datagram, IOLoop.READ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the program, like Ctrl-C
    try:
        print(f'listening on 127.0.0.1:{listening.getsockname()[1]}', flush=True)
        IOLoop.current().start()
    except KeyboardInterrupt:
        news.close()
