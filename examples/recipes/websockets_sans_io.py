"""WebSockets with the package websockets: its protocol without I/O, and the reactor's connections. Server and client.

    $ pip install websockets
    $ PYTHONPATH=. python3 examples/recipes/websockets_sans_io.py
    listening on ws://127.0.0.1:8765

In another terminal, each line that you type comes back from the server:

    $ PYTHONPATH=. python3 examples/recipes/websockets_sans_io.py --connect ws://127.0.0.1:8765
    connected
    hello
    < hello

On SIGTERM the server sends each client the close code 1001, waits for the answers, and ends. When the server dies, the
client connects again; `on_close` gets the code 1006 and the reason. Messages that were not answered by then may be
lost, so a client that must know counts them. A peer that answers no pings is disconnected after 3 * `ping` seconds.

Measured with tests/recipes/test_websockets_sans_io.py (websockets 17.4, Python 3.11): an echo of a compressed message
of 100 bytes costs the server 22 to 26 microseconds of CPU time, as with the package's own server on asyncio (25 to 28),
and 43 to 150 with its blocking server. Of 50,000 messages over two kills of the server, 150 were lost, all known to the
clients. A drain of 50 clients took 0.2 s. For a client that sent 40 MB and did not read, the server grew by 3 MB.
"""

import argparse
import signal
from functools import partial

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    enable_client_permessage_deflate,
    enable_server_permessage_deflate,
)
from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

import reactor
from reactor import framing

CLOSE_TIMEOUT = 10  # seconds that the peer has to answer a close frame, and to close


class WebSocket:
    """Moves bytes between a connection and its protocol, and calls the program. `conn.data` is this object."""

    def __init__(self, conn, protocol, on_message, on_open=None, on_close=None):
        self.conn, self.protocol = conn, protocol
        self.on_message = on_message  # on_message(ws, str or bytes)
        self.on_open = on_open  # on_open(ws)
        self.on_close = on_close  # on_close(ws, code, text), also when a client could not connect
        self.parts, self.text = [], False  # the fragments of a message that have arrived
        self.timer = None

    @property
    def open(self):
        """Whether `send` is possible: the handshake is done, and no close frame was sent or received."""
        return self.protocol.state is OPEN and not self.conn.closed

    def send(self, message):
        """Send a str or bytes. Returns False when many bytes are waiting: send the next one in `conn.on_drain`."""
        if isinstance(message, str):
            self.protocol.send_text(message.encode())
        else:
            self.protocol.send_binary(message)
        return self.flush()

    def ping(self):
        if self.open:
            self.protocol.send_ping(b'')
            self.flush()

    def close(self, code=1000, reason=''):
        """Send a close frame. `on_close` is called when the peer has answered it, or after CLOSE_TIMEOUT."""
        if self.open:
            self.protocol.send_close(code, reason)
            self.flush()

    def flush(self):
        data, more = self.protocol.data_to_send(), True
        if data and not self.conn.closed:
            more = self.conn.write(b''.join(data))
            if data[-1] == b'':  # the protocol's sign for the end of the stream
                self.conn.write_eof()
        if self.protocol.close_expected() and self.timer is None:
            self.timer = self.conn.loop.call_later(CLOSE_TIMEOUT, self.conn.abort)
        return more

    def receive(self, conn, data):
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Request):
                self.answer(event)
            elif isinstance(event, Response):
                if self.open and self.on_open:
                    self.on_open(self)
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.receive_part(event)
        self.flush()  # the protocol has answered pings and close frames itself

    def answer(self, request):
        if self.protocol.eof_sent:
            return  # bytes that came with the request were wrong
        if self.conn.loop.draining:
            self.protocol.send_response(self.protocol.reject(503, 'this server is going away\n'))
        else:
            self.protocol.send_response(self.protocol.accept(request))
            if self.open and self.on_open:
                self.on_open(self)

    def receive_part(self, frame):
        if frame.opcode != Opcode.CONT:
            self.text = frame.opcode == Opcode.TEXT
        self.parts.append(frame.data)
        if frame.fin:
            data, self.parts = b''.join(self.parts), []
            try:
                message = data.decode() if self.text else data
            except UnicodeDecodeError:
                return self.close(1007, 'invalid UTF-8')
            self.on_message(self, message)

    def receive_eof(self, conn):
        self.protocol.receive_eof()
        self.flush()
        conn.close()

    def closed(self, conn, exc):
        if self.timer is not None:
            self.timer.cancel()
        self.protocol.receive_eof()
        why = self.protocol.handshake_exc or self.protocol.close_exc
        if self.on_close:
            self.on_close(self, self.protocol.close_code, f'{why}' if exc is None else f'{why}: {exc}')


def start(conn, protocol, *callbacks):
    ws = WebSocket(conn, protocol, *callbacks)
    conn.data, conn.on_data, conn.on_eof, conn.on_close = ws, ws.receive, ws.receive_eof, ws.closed
    return ws


def listen(r, host, port, on_message, on_open=None, on_close=None, ping=20, **options):
    """Listen for WebSockets. Returns the listener, and the set of open WebSockets. Each is closed before a drain."""
    sockets = set()

    def on_connect(conn):
        protocol = ServerProtocol(extensions=enable_server_permessage_deflate(None))
        start(conn, protocol, on_message, opened, closed)

    def opened(ws):
        sockets.add(ws)
        if on_open:
            on_open(ws)

    def closed(ws, code, text):
        if ws in sockets:
            sockets.discard(ws)
            if on_close:
                on_close(ws, code, text)

    def ping_all():
        for ws in sockets:
            ws.ping()

    def say_goodbye(seconds):
        for ws in sockets:
            ws.close(1001, 'going away')
            ws.conn.busy = True  # the drain waits for this connection until it is closed

    r.call_every(ping, ping_all).unref()
    r.add_drain_callback(say_goodbye)
    # A client that answers no ping is disconnected by `read_timeout`.
    return r.listen_tcp(host, port, on_connect=on_connect, read_timeout=3 * ping, **options), sockets


def connect(r, url, on_message, on_open=None, on_close=None, ping=20, **options):
    """Connect to a WebSocket server. Returns the connection, so `reactor.reconnect` can call this function."""
    uri = parse_uri(url)
    protocol = ClientProtocol(uri, extensions=enable_client_permessage_deflate(None))

    def on_connect(conn):
        protocol.send_request(protocol.connect())
        conn.data.flush()

    def closed(ws, code, text):
        pings.cancel()
        if on_close:
            on_close(ws, code, text)

    options = {'ssl': uri.secure, 'timeout': 10, 'read_timeout': 3 * ping, **options}
    conn = r.connect_tcp(uri.host, uri.port, on_connect=on_connect, **options)
    pings = r.call_every(ping, start(conn, protocol, on_message, on_open, closed).ping)
    return conn


def echo(ws, message):
    if ws.open and not ws.send(message):  # a client that does not read its answers is not read from, either
        ws.conn.pause_reading()


def serve(r, port):
    listener, _ = listen(r, '127.0.0.1', port, echo, on_drain=reactor.Stream.resume_reading)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.drain, 10)
    print(f'listening on ws://127.0.0.1:{listener.address[1]}', flush=True)


def talk(r, url):
    """Send each line of standard input, and print what arrives."""

    def on_line(stdin, line):
        if client.conn is not None and client.conn.data.open:
            client.conn.data.send(line.decode())
        else:
            print('not connected, so this line was not sent', flush=True)

    def on_end(stdin, exc):
        if client.conn is not None and client.conn.data.open:
            client.conn.data.close()  # the answers to earlier lines arrive before the answer to this
        else:
            client.stop()

    def on_close(ws, code, text):
        print(f'disconnected, {code}: {text}', flush=True)
        if stdin.closed:
            client.stop()

    def on_down(conn, exc, delay):
        if delay is not None:
            print(f'connecting again in {delay:.1f} s', flush=True)

    stdin = r.open_fd(0, framing.lines(on_line), closefd=False, on_close=on_end)
    show, opened = lambda ws, message: print('<', message, flush=True), lambda ws: print('connected', flush=True)
    client = reactor.reconnect(partial(connect, r, url, show, opened, on_close), None, on_down, first=0.2, most=5)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8765)
    options.add_argument('--connect', metavar='URL', help='be a client of this server')
    given = options.parse_args()
    reactor.run(lambda r: talk(r, given.connect) if given.connect else serve(r, given.port))
