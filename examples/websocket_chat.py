"""A chat room for browsers. One port serves the page and the WebSocket that it opens; wsproto parses the protocol.

    $ pip install h11 wsproto
    $ python examples/websocket_chat.py
    listening on 127.0.0.1:8090

Open http://127.0.0.1:8090/ in two windows and type. Each line appears in both:

    guest1: hello

A client that does not answer pings is disconnected, and so is a client that reads so slowly that `max_buffered` bytes
are buffered for it. Other clients never have to wait for a slow client.

On SIGTERM, all clients are sent the close code 1001 (going away), and the program ends when they have answered it, or
at the drain timeout. With `--workers 2`, two processes share the port; each is a chat room of its own, because workers
share no memory. SIGHUP then replaces the workers, and their clients get the code 1001, too.
"""

import argparse
import signal
import sys
from functools import partial
from itertools import count

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection, ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import ProtocolError

import reactor
from reactor import serve

LONGEST_MESSAGE = 4096  # characters in a message
PAGE = b"""<!doctype html><meta charset="utf-8"><title>Chat</title><link rel="icon" href="data:,">
<h1>Chat</h1><ul id="said"></ul>
<form id="form"><input id="text" maxlength="4096" autocomplete="off" disabled> <button>say</button></form>
<script>
  const said = document.getElementById('said'), text = document.getElementById('text');
  const socket = new WebSocket('ws://' + location.host + '/chat');
  const show = line => { said.appendChild(document.createElement('li')).textContent = line; };
  socket.onopen = () => { text.disabled = false; text.focus(); };
  socket.onmessage = event => show(event.data);
  socket.onclose = () => { text.disabled = true; show('* disconnected'); };
  document.getElementById('form').onsubmit = event => {
    event.preventDefault();
    socket.send(text.value);
    text.value = '';
  };
</script>
"""
members = set()  # the connections that take part in the chat; `data` of each is a `Member`
numbers = count(1)
encoder = Connection(ConnectionType.SERVER)  # frames of a server are not masked, so all members get the same bytes


class Member:
    def __init__(self, ws):
        self.ws = ws
        self.name = f'guest{next(numbers)}'
        self.text = ''  # the part of a message that has been received so far


def broadcast(event):
    data = encoder.send(event)
    for conn in members:
        if not conn.closed:
            conn.write(data)


def say(text):
    broadcast(TextMessage(data=text))


def send(conn, event):
    if not conn.closed:
        conn.write(conn.data.ws.send(event))


def on_connect(conn):
    conn.data = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)


def on_http(conn, data):
    """Answer a request for the page, or turn the connection into a WebSocket."""
    http = conn.data
    try:
        http.receive_data(data)
        request = http.next_event()
        if request is h11.NEED_DATA:
            return
        if request.target == b'/chat' and conn.loop.draining:
            return answer(conn, 503, b'this server is going away\n')
        if request.target != b'/chat':
            return answer(conn, *((200, PAGE) if request.target == b'/' else (404, b'not found\n')))
        ws = WSConnection(ConnectionType.SERVER)
        ws.initiate_upgrade_connection(request.headers, '/chat')
    except (h11.ProtocolError, ProtocolError, ValueError):  # ValueError for an invalid host name
        return answer(conn, 400, b'not a valid HTTP request or WebSocket handshake\n')
    conn.write(ws.send(AcceptConnection()))
    conn.data, conn.on_data = Member(ws), on_websocket
    members.add(conn)
    say(f'* {conn.data.name} joined, {len(members)} here')
    if http.trailing_data[0]:
        on_websocket(conn, http.trailing_data[0])


def answer(conn, status, body):
    kind = 'text/html; charset=utf-8' if body is PAGE else 'text/plain'
    head = f'HTTP/1.1 {status} \r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'
    conn.write(head.encode() + body)
    conn.on_data = None  # drop everything else that the client sends
    conn.write_eof()


def on_websocket(conn, data):
    member = conn.data
    try:
        member.ws.receive_data(data)
        for event in member.ws.events():
            if isinstance(event, CloseConnection):
                return end(conn, event.response())
            elif conn not in members:
                continue  # this client was asked to go away, and is only waited for
            elif isinstance(event, Ping):
                send(conn, event.response())
            elif isinstance(event, Message):
                if not isinstance(event, TextMessage) or len(member.text) + len(event.data) > LONGEST_MESSAGE:
                    return end(conn, CloseConnection(code=1008, reason='text only, and no long messages'))
                member.text += event.data
                if event.message_finished:
                    text, member.text = member.text, ''
                    say(f'{member.name}: {text}')
    except ProtocolError as exc:
        end(conn, getattr(exc, 'event_hint', None) or CloseConnection(code=1002))


def end(conn, event):
    if conn.data.ws.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
        send(conn, event)
    conn.close()


def on_close(conn, exc):
    if conn in members:
        members.remove(conn)
        say(f'* {conn.data.name} left')


def say_goodbye(seconds):
    """Ask all members to go away; called when a drain begins, which waits for connections that are busy."""
    while members:
        conn = members.pop()
        send(conn, CloseConnection(code=1001, reason='going away'))
        conn.busy = True  # until the connection is closed


def main(r, listeners=(), *, port, ping, drain_timeout):
    """Serve on `listeners[0]`, a listening socket that the worker has inherited, or on `port` if there are none."""
    sock = listeners[0] if listeners else None
    server = r.listen_tcp('127.0.0.1', port, on_http, on_connect=on_connect, on_close=on_close, sock=sock,
                          max_buffered=1 << 18, read_timeout=3 * ping)  # fmt: skip
    r.call_every(ping, broadcast, Ping())
    r.add_drain_callback(say_goodbye)
    if sock is None:
        r.add_signal_handler(signal.SIGTERM, r.drain, drain_timeout)
        announce(server.address)


def announce(address):
    print(f'listening on 127.0.0.1:{address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8090)
    options.add_argument('--ping', type=float, default=20, help='seconds between pings (default 20)')
    options.add_argument('--workers', type=int, default=0, help='number of processes; 0: only this process')
    options.add_argument('--drain-timeout', type=float, default=10, help='seconds to wait for clients (default 10)')
    args = vars(options.parse_args())
    workers, listen, timeout = args.pop('workers'), [('127.0.0.1', args['port'])], args['drain_timeout']
    try:
        if workers:
            sys.exit(serve.run(partial(main, **args), workers=workers, listen=listen, drain_timeout=timeout,
                               lame_duck=0, on_start=lambda r, team: announce(team.addresses[0])))  # fmt: skip
        reactor.run(partial(main, **args))
    except KeyboardInterrupt:
        print('bye')
