"""An HTTP/1.1 server: h11 knows the protocol, the reactor moves the bytes, no faster than the client takes them.

Run it:    python examples/http_server.py --root .        (--port 8080; pip install h11)
Use it:    curl http://127.0.0.1:8080/README.md           a file under --root, HEAD too
           curl http://127.0.0.1:8080/stream?lines=5      made while it is sent
           curl -T some.file http://127.0.0.1:8080/echo   comes back while it is being sent
           curl http://127.0.0.1:8080/healthz             whether it wants more clients: 200 or 503

SIGTERM drains: /healthz says 503 and each answer `Connection: close`; a second later it accepts nobody any more, and it
ends with the last answer. With --workers N it is N processes on the port, which SIGHUP replaces one by one.
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

LONGEST_HEADERS = 16384  # bytes of a request line and its headers, else 431
DRAIN = 30  # seconds for the last answers
TAKEN, ROOM = 'taken', 'room'  # what an answer waits for: that the kernel has all of it, or on_drain


def generate(lines):
    for first in range(0, lines, 256):
        yield b''.join(b'line %d of what is made while it is sent\n' % n for n in range(first, min(lines, first + 256)))


class Session:
    """One client: what h11 knows of it, and the answer that is under way."""

    def __init__(self, r, root, conn):
        self.r, self.root, self.conn = r, root, conn
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEADERS)
        self.held = None  # while the client has to take something first
        self.bodiless = False  # HEAD: headers only
        self.echoing = False  # what still comes is the answer
        self.answer = None  # what generates it

    def on_data(self, conn, data):
        conn.busy = True
        self.http.receive_data(data)
        if self.held:
            self.conn.pause_reading()
        else:
            self.advance()

    def on_taken(self, conn):
        if self.held is TAKEN:
            self.held = None
            self.advance()

    def on_drain(self, conn):
        if self.held is ROOM:
            self.held = None
            self.advance()

    def advance(self):
        """One event after the other, until more bytes are needed or the client has to read first."""
        while not self.held and not self.conn.closed:
            if self.answer is not None:
                self.go_on_answering()
            elif self.http.our_state is not h11.IDLE and self.http.their_state is not h11.SEND_BODY:
                if (self.http.our_state, self.http.their_state) != (h11.DONE, h11.DONE):
                    return self.conn.close()
                self.http.start_next_cycle()
                self.conn.busy = False
                self.conn.busy = bool(self.http.trailing_data[0])  # it has asked again already
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
            self.send(event)  # a piece, or the end of it
            self.echoing = type(event) is h11.Data

    def begin(self, request):
        self.bodiless = request.method == b'HEAD'
        try:
            url = urlsplit(request.target.decode())
        except ValueError:
            return self.say(400)
        if url.path == '/echo' and request.method in (b'POST', b'PUT'):
            if self.http.they_are_waiting_for_100_continue:
                self.send(h11.InformationalResponse(status_code=100, headers=[], reason='Continue'))
            headers = dict(request.headers)
            length = None if b'transfer-encoding' in headers else headers.get(b'content-length')
            self.start(200, 'application/octet-stream', length)
            self.echoing = True
        elif request.method not in (b'GET', b'HEAD'):
            self.say(405, ('allow', 'GET, HEAD'))
        elif url.path == '/healthz':
            self.say(503 if self.r.draining else 200)
        elif url.path == '/stream':
            lines = parse_qs(url.query).get('lines', ['1000'])[0]
            self.start(200, 'text/plain')
            self.answer = generate(int(lines[:12]) if lines.isdecimal() and not self.bodiless else 0)
        else:
            self.send_file(self.root / unquote(url.path).lstrip('/'))

    def send_file(self, path):
        try:
            path = path.resolve()  # what `..` and links lead to
            if not path.is_relative_to(self.root) or not path.is_file():
                return self.say(404)
            file = path.open('rb')
        except (OSError, ValueError, RuntimeError):  # not ours to read, too long, a NUL, links in a circle
            return self.say(404)
        with file:
            size = os.fstat(file.fileno()).st_size
            self.start(200, mimetypes.guess_type(path)[0] or 'application/octet-stream', str(size))
            if not self.bodiless:
                self.http.send_with_data_passthrough(h11.Data(data=range(size)))  # all it looks at is the length
                self.held = TAKEN
                self.conn.send_file(file, 0, size, self.on_taken)
        self.send(h11.EndOfMessage())

    def go_on_answering(self):
        piece = next(self.answer, None)
        if piece is None:
            self.answer = None
            self.send(h11.EndOfMessage())
        else:
            self.held = TAKEN  # one piece a turn, however fast this client is
            self.conn.write(self.http.send(h11.Data(data=piece)), self.on_taken)

    def say(self, status, *headers):
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
            self.held = self.held or ROOM

    def refuse(self, exc):
        if self.http.our_state is not h11.IDLE:
            return self.conn.abort()  # in the middle of an answer, which cannot be taken back
        self.bodiless = False
        self.say(exc.error_status_hint, ('connection', 'close'))
        self.conn.busy, self.conn.on_data = False, None
        self.conn.write_eof()  # not close(): what it still sends must not reset our answer


def main(r, listeners=(), *, port, root, lame_duck, **limits):
    """Serve on the first of `listeners`, bound sockets that somebody hands over; without one, on `port`."""

    def on_connect(conn):
        session = Session(r, root, conn)
        conn.on_data, conn.on_drain = session.on_data, session.on_drain

    sock = listeners[0] if listeners else None
    listener = r.listen_tcp('127.0.0.1', port, sock=sock, on_connect=on_connect, **limits)
    r.add_signal_handler(signal.SIGTERM, r.drain, DRAIN, lame_duck)
    if sock is None:
        tell(listener.address)
        r.add_exit_callback(lambda: print(f'{r.stats().requests} requests', flush=True))


def tell(address):
    print(f'listening on {address[0]}:{address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8080)
    options.add_argument('--root', type=lambda path: Path(path).resolve(), default='.', help='everybody can read it')
    options.add_argument('--idle', dest='idle_timeout', type=float, default=60, help='seconds a client may be silent')
    options.add_argument('--lame-duck', type=float, default=1, help='seconds after SIGTERM in which it still accepts')
    options.add_argument('--proxy-protocol', nargs='+', metavar='NETWORK', help='whose PROXY headers tell the clients')
    options.add_argument('--workers', type=int, default=0, help='how many processes; 0: this one alone')
    args = vars(options.parse_args())
    workers, listen, lame_duck = args.pop('workers'), [('127.0.0.1', args['port'])], args['lame_duck']
    try:
        if workers:
            times = {
                'drain_timeout': DRAIN,
                'lame_duck': lame_duck,
                'on_start': lambda r, team: tell(team.addresses[0]),
            }
            sys.exit(serve.run(partial(main, **args), workers=workers, listen=listen, **times))
        reactor.run(partial(main, **args))
    except KeyboardInterrupt:
        print('bye')
