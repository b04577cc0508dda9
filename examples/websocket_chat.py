"""A chat room for browsers. One port serves the page and the WebSocket that it opens; wsproto parses the protocol.

    $ pip install h11 wsproto
    $ python examples/websocket_chat.py
    listening on 127.0.0.1:8090

Open http://127.0.0.1:8090/ in two windows and type. Each line appears in both:

    guest1: hello

A client that does not answer pings is disconnected, and so is a client that reads so slowly that `max_buffered` bytes
are buffered for it. Other clients never have to wait for a slow client.
"""

import argparse
import signal
from itertools import count

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import ProtocolError

import reactor

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
members = {}  # maps connections to `Member` objects
numbers = count(1)


class Member:
    def __init__(self, ws):
        self.ws = ws
        self.name = f'guest{next(numbers)}'
        self.text = ''  # the part of a message that has been received so far


def broadcast(text):
    for conn in members:
        send(conn, TextMessage(data=text))


def send(conn, event):
    if not conn.closed:
        conn.write(members[conn].ws.send(event))


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
        if request.target != b'/chat':
            return answer(conn, *((200, PAGE) if request.target == b'/' else (404, b'not found\n')))
        ws = WSConnection(ConnectionType.SERVER)
        ws.initiate_upgrade_connection(request.headers, '/chat')
    except (h11.ProtocolError, ProtocolError, ValueError):  # ValueError for an invalid host name
        return answer(conn, 400, b'not a valid HTTP request or WebSocket handshake\n')
    conn.write(ws.send(AcceptConnection()))
    members[conn], conn.on_data = Member(ws), on_websocket
    broadcast(f'* {members[conn].name} joined, {len(members)} here')
    if http.trailing_data[0]:
        on_websocket(conn, http.trailing_data[0])


def answer(conn, status, body):
    kind = 'text/html; charset=utf-8' if body is PAGE else 'text/plain'
    head = f'HTTP/1.1 {status} \r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'
    conn.write(head.encode() + body)
    conn.on_data = None  # drop everything else that the client sends
    conn.write_eof()


def on_websocket(conn, data):
    member = members[conn]
    try:
        member.ws.receive_data(data)
        for event in member.ws.events():
            if isinstance(event, Ping):
                send(conn, event.response())
            elif isinstance(event, CloseConnection):
                return end(conn, event.response())
            elif isinstance(event, Message):
                if not isinstance(event, TextMessage) or len(member.text) + len(event.data) > LONGEST_MESSAGE:
                    return end(conn, CloseConnection(code=1008, reason='text only, and no long messages'))
                member.text += event.data
                if event.message_finished:
                    text, member.text = member.text, ''
                    broadcast(f'{member.name}: {text}')
    except ProtocolError as exc:
        end(conn, getattr(exc, 'event_hint', None) or CloseConnection(code=1002))


def end(conn, event):
    if members[conn].ws.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
        send(conn, event)
    conn.close()


def on_close(conn, exc):
    if conn in members:
        name = members.pop(conn).name
        broadcast(f'* {name} left')


def ping():
    for conn in members:
        send(conn, Ping())


def main(r, port, interval):
    server = r.listen_tcp('127.0.0.1', port, on_http, on_connect=on_connect, on_close=on_close,
                          max_buffered=1 << 18, read_timeout=3 * interval)  # fmt: skip
    r.call_every(interval, ping)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8090)
    options.add_argument('--ping', type=float, default=20, help='seconds between pings (default 20)')
    args = options.parse_args()
    reactor.run(lambda r: main(r, args.port, args.ping))
    print('bye')
