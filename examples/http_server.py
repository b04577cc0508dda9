"""An HTTP/1.1 server: h11 parses the protocol, and the reactor sends no faster than the client reads.

    $ pip install h11
    $ python examples/http_server.py --root .
    listening on 127.0.0.1:8080

In another terminal:

    $ curl http://127.0.0.1:8080/README.md              # a file below --root
    $ curl 'http://127.0.0.1:8080/stream?lines=2'       # a body of unknown length
    line 0 of a generated stream
    line 1 of a generated stream
    $ curl -T README.md http://127.0.0.1:8080/echo      # the file is sent back while it is received
    $ curl http://127.0.0.1:8080/healthz                # 200, or 503 while the server drains
    200 OK

SIGTERM drains the server. /healthz then answers 503, and each response has `Connection: close`. After one second (see
--lame-duck) the server accepts no more clients, and it exits after the last response. With --workers N, N processes
share the port; SIGHUP replaces them one by one.
"""

import argparse
import mimetypes
import os
import signal
import sys
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import h11

import reactor
from reactor import serve

LONGEST_HEADERS = 16384  # bytes in a request line and its headers; a longer request is answered with 431
DRAIN = 30  # seconds allowed for the last responses
ALL_SENT, ROOM = 'all sent', 'room'  # what a response waits for: `on_written` of its last part, or `on_drain`


def generate(lines):
    for first in range(0, lines, 256):
        yield b''.join(b'line %d of a generated stream\n' % n for n in range(first, min(lines, first + 256)))


class Session:
    """One client: the state of its HTTP connection, and the response that is being sent."""

    def __init__(self, r, root, conn):
        self.r, self.root, self.conn = r, root, conn
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEADERS)
        self.waits_for = None  # ALL_SENT or ROOM while the response waits for the client to read
        self.bodiless = False  # True for HEAD: send only headers
        self.echoing = False  # True: send back the body of the request
        self.pieces = None  # an iterator that generates the body of the response

    def on_data(self, conn, data):
        conn.busy = True
        self.http.receive_data(data)
        if self.waits_for:
            self.conn.pause_reading()
        else:
            self.advance()

    def on_written(self, conn):
        if self.waits_for is ALL_SENT:
            self.waits_for = None
            self.advance()

    def on_drain(self, conn):
        if self.waits_for is ROOM:
            self.waits_for = None
            self.advance()

    def advance(self):
        """Handle one event after another, until more bytes are needed or the client has to read first."""
        while not self.waits_for and not self.conn.closed:
            if self.pieces is not None:
                self.send_next_piece()
            elif self.http.our_state is not h11.IDLE and self.http.their_state is not h11.SEND_BODY:
                if (self.http.our_state, self.http.their_state) != (h11.DONE, h11.DONE):
                    return self.conn.close()
                self.http.start_next_cycle()
                self.conn.busy = False
                self.conn.busy = bool(self.http.trailing_data[0])  # True if part of the next request has arrived
            else:
                try:
                    event = self.http.next_event()
                except h11.RemoteProtocolError as exc:
                    return self.refuse(exc)
                if event is h11.NEED_DATA:
                    return self.conn.resume_reading()
                self.take(event)

    def take(self, event):
        if type(event) is h11.Request:
            self.begin(event)
        elif self.echoing:
            self.send(event)  # part of the request's body, or the end of the body
            self.echoing = type(event) is h11.Data

    def begin(self, request):
        self.bodiless = request.method == b'HEAD'
        try:
            url = urlsplit(request.target.decode())
        except ValueError:
            return self.respond(400)
        if url.path == '/echo' and request.method in (b'POST', b'PUT'):
            if self.http.they_are_waiting_for_100_continue:
                self.send(h11.InformationalResponse(status_code=100, headers=[], reason='Continue'))
            headers = dict(request.headers)
            length = None if b'transfer-encoding' in headers else headers.get(b'content-length')
            self.start(200, 'application/octet-stream', length)
            self.echoing = True
        elif request.method not in (b'GET', b'HEAD'):
            self.respond(405, ('allow', 'GET, HEAD'))
        elif url.path == '/healthz':
            self.respond(503 if self.r.draining else 200)
        elif url.path == '/stream':
            lines = parse_qs(url.query).get('lines', ['1000'])[0]
            self.start(200, 'text/plain')
            self.pieces = generate(int(lines[:12]) if lines.isdecimal() and not self.bodiless else 0)
        else:
            self.send_file(self.root / unquote(url.path).lstrip('/'))

    def send_file(self, path):
        try:
            path = path.resolve()  # follow `..` and links
            if not path.is_relative_to(self.root) or not path.is_file():
                return self.respond(404)
            file = path.open('rb')
        except (OSError, ValueError, RuntimeError):  # no permission, a loop of links, or an invalid name
            return self.respond(404)
        with file:
            size = os.fstat(file.fileno()).st_size
            self.start(200, mimetypes.guess_type(path)[0] or 'application/octet-stream', str(size))
            if not self.bodiless:
                self.http.send_with_data_passthrough(h11.Data(data=range(size)))  # h11 uses only the length of `data`
                self.waits_for = ALL_SENT
                self.conn.send_file(file, 0, size, self.on_written)
        self.send(h11.EndOfMessage())

    def send_next_piece(self):
        piece = next(self.pieces, None)
        if piece is None:
            self.pieces = None
            self.send(h11.EndOfMessage())
        else:
            self.waits_for = ALL_SENT  # one piece per turn, so that a fast client does not delay the others
            self.conn.write(self.http.send(h11.Data(data=piece)), self.on_written)

    def respond(self, status, *headers):
        text = f'{status} {HTTPStatus(status).phrase}\n'.encode()
        self.start(status, 'text/plain', str(len(text)), *headers)
        if not self.bodiless:
            self.send(h11.Data(data=text))
        self.send(h11.EndOfMessage())

    def start(self, status, kind, length=None, *headers):
        headers = [('date', formatdate(usegmt=True)), ('content-type', kind), *headers]
        if length is not None:
            headers.append(('content-length', length))
        if self.r.draining:
            headers.append(('connection', 'close'))
        self.send(h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase))

    def send(self, event):
        data = self.http.send(event)
        if data and not self.conn.write(data):
            self.waits_for = self.waits_for or ROOM

    def refuse(self, exc):
        if self.http.our_state is not h11.IDLE:
            return self.conn.abort()  # part of a response has been sent already
        self.bodiless = False
        self.respond(exc.error_status_hint, ('connection', 'close'))
        self.conn.busy, self.conn.on_data = False, None
        self.conn.write_eof()  # not close(), which would reset the connection if the client is still sending


def main(r, listeners=(), *, port, root, lame_duck, **limits):
    """Serve on `listeners[0]`, a listening socket that the worker has inherited, or on `port` if there are none."""

    def on_connect(conn):
        session = Session(r, root, conn)
        conn.on_data, conn.on_drain = session.on_data, session.on_drain

    sock = listeners[0] if listeners else None
    listener = r.listen_tcp('127.0.0.1', port, sock=sock, on_connect=on_connect, **limits)
    if sock is None:  # `serve.run` handles SIGTERM in its workers
        r.add_signal_handler(signal.SIGTERM, r.drain, DRAIN, lame_duck)
        announce(listener.address)
        r.add_exit_callback(lambda: print(f'{r.stats().requests} requests', flush=True))


def announce(address):
    print(f'listening on {address[0]}:{address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8080)
    options.add_argument('--root', type=lambda path: Path(path).resolve(), default='.', help='folder to serve')
    options.add_argument('--idle', dest='idle_timeout', type=float, default=60, help='seconds a client can be idle')
    options.add_argument('--lame-duck', type=float, default=1, help='seconds to keep accepting clients after SIGTERM')
    options.add_argument('--proxy-protocol', nargs='+', metavar='NETWORK', help='networks with trusted PROXY headers')
    options.add_argument('--workers', type=int, default=0, help='number of processes; 0: only this process')
    args = vars(options.parse_args())
    workers, listen, lame_duck = args.pop('workers'), [('127.0.0.1', args['port'])], args['lame_duck']
    try:
        if workers:
            times = {
                'drain_timeout': DRAIN,
                'lame_duck': lame_duck,
                'on_start': lambda r, team: announce(team.addresses[0]),
            }
            sys.exit(serve.run(partial(main, **args), workers=workers, listen=listen, **times))
        reactor.run(partial(main, **args))
    except KeyboardInterrupt:
        print('bye')
