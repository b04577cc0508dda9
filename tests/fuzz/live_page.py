"""Fuzz the HTTP server of the live page: one or two browsers send a request in pieces.

The expected responses come from a second parser, written from RFC 9112 and from the WHATWG's specification of
server-sent events. Each request gets one response with an allowed status. The server never sends back bytes that a
client sent. Every connection ends within the time limits, except when the browser keeps reading its events.
"""

from __future__ import annotations

import json
import re
from functools import cache
from ipaddress import ip_address

from reactor.observe import serve_page

from .scene import Input, Scene, Socket

LONGEST_INPUT = 1200
# The numbers at the end of an input are three piece lengths, how the connection ends, how much a browser reads, and
# whether there are two browsers.
NUMBERS = 6
WORDS = (
    b'GET / HTTP/1.1\r\n', b'GET /events HTTP/1.1\r\n', b'HEAD ', b'HTTP/1.0', b'Host: localhost\r\n', b'Host: [::1]:1',
    b'Host: 127.0.0.1:80\r\n', b'Last-Event-ID: ', b'\r\n\r\n', b'\r\n', b'\r\n ', b': ', b'POST / HTTP/1.1\r\n',
    b'GET /trace HTTP/1.1\r\n',
)  # fmt: skip
LONGEST_HEAD = 8192  # bytes: the request line and the headers together
MOST_HEADERS = 100
DEADLINE = 15.0  # seconds for a request and its response
STALLED = 30.0  # seconds after which a browser that reads none of its events is disconnected
STATUSES = {200, 400, 403, 404, 405, 431, 503, 505}
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
ECHO = 8  # bytes in a row that a response must not share with its request, unless every response contains them
REPEATED = 40  # how often the payload is repeated to exceed the limits


def run(data: bytes) -> None:
    given = Input(data, NUMBERS)
    with Scene() as scene:
        listener = serve_page(scene.r, about='fuzzed')
        pieces = list(given.pieces(3))
        how, reads, more = given.number(), given.number(), given.number()
        pieces *= REPEATED if more & 14 == 2 else 1
        socks = [scene.connect(listener) for _ in range(1 + more % 2)]
        began = scene.kernel.time
        for sock in socks:
            sock.room = None if reads < 128 else 3 * reads
        for piece, misled in pieces:
            for sock in socks:
                sock.arrive(piece, misled)
            scene.turn()
        scene.settle()
        payload = b''.join(piece for piece, _ in pieces)
        expected = deserved(payload)
        for sock in socks:
            check(sock, expected, payload)
        end(scene, socks, how)
        for sock in socks:
            check(sock, expected, payload)
            if not sock.sent.startswith(b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream'):
                late = scene.kernel.time - began
                assert sock.closed or late < DEADLINE, f'a connection is still open {late} s after it was accepted'
            elif sock.room == 0 and how % 4 == 2:
                assert sock.closed, f'a browser that read nothing for more than {STALLED} s is still connected'
        listener.close()


def end(scene: Scene, socks: list[Socket], how: int) -> None:
    """Shut down the browser's sending side, reset the connection, or wait: for the time limits or a few seconds."""
    for sock in socks:
        if how % 4 == 0:
            sock.end()
        elif how % 4 == 1:
            sock.reset()
    scene.settle()
    scene.wait(2 * STALLED + 5 if how % 4 == 2 else 3.5)
    if how & 128:
        for sock in socks:
            sock.room = None  # the browser reads again
    scene.wait(2 * STALLED if how % 4 < 2 else 1)


# -- expected responses


def deserved(payload: bytes) -> set[int]:
    """Return the allowed statuses of the response to these bytes: none while the request is incomplete."""
    head, found, _ = payload.partition(b'\r\n\r\n')
    if len(head) > LONGEST_HEAD:
        return {431}
    if not found:
        return set()
    first, *lines = head.split(b'\r\n')
    wrong = set()
    if len(lines) > MOST_HEADERS:
        wrong.add(431)
    match = re.fullmatch(rb'(\S+) (/[!-~]*) HTTP/(\d\.\d)', first)
    if match is None or not re.fullmatch(TOKEN, match[1]):
        return wrong | {400, 405, 505}  # the server reports the first error that it finds
    method, target, version = match.groups()
    if version not in (b'1.0', b'1.1'):
        wrong.add(505)
    if method not in (b'GET', b'HEAD'):
        wrong.add(405)
    fields = [re.fullmatch(rb'(' + TOKEN + rb'):[ \t]*([\t -~\x80-\xff]*?)[ \t]*', line, re.DOTALL) for line in lines]
    hosts = [field[2] for field in fields if field is not None and field[1].lower() == b'host']
    if None in fields or len(hosts) > 1 or (not hosts and version == b'1.1'):
        wrong.add(400)
    if wrong:
        return wrong | ({403} if len(hosts) == 1 else set())
    known = {b'/': {200}, b'/events': {200, 503}}.get(target.partition(b'?')[0], {404})
    return known if not hosts else {'ours': known, 'foreign': {403}, 'unclear': known | {403}}[kind_of_host(hosts[0])]


def kind_of_host(host: bytes) -> str:
    """Return 'ours' for an address or `localhost`, 'foreign' for another name, 'unclear' if no browser sends it."""
    match = re.fullmatch(rb'(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-]+)(?::[0-9]*)?', host)
    if match is None:
        return 'unclear'
    name = match[1].decode().lower().strip('[]')
    try:
        return 'ours' if name == 'localhost' or ip_address(name) else 'foreign'
    except ValueError:
        return 'foreign' if re.fullmatch(r'[a-z0-9\-]+(\.[a-z0-9\-]+)*', name) else 'unclear'


# -- checks


def check(sock: Socket, expected: set[int], payload: bytes) -> None:
    """Check the part of the response that the browser has read."""
    sent = bytes(sock.sent)
    if not expected:
        assert not sent, f'{payload!r} is not a complete request, but was answered: {sent!r}'
        return
    cut = sock.room is not None or sock.closed  # the browser may not have read everything
    head, found, body = sent.partition(b'\r\n\r\n')
    if not found:
        assert cut, f'no answer to {payload!r}: {sent!r}'
        return
    status, headers = read_head(head)
    assert status in expected, f'{payload!r} was answered by {status}, not by {expected}'
    assert status in STATUSES, f'status {status}'
    check_echo(payload, sent)
    if headers[b'content-type'] == b'text/event-stream':
        assert status == 200 and b'content-length' not in headers, headers
        check_events(body)
        return
    length = int(headers[b'content-length'])
    assert body == b'' if payload.startswith(b'HEAD ') and status < 400 else len(body) <= length, f'{len(body)} bytes'
    assert cut or len(body) == length or payload.startswith(b'HEAD '), f'{len(body)} of {length} bytes'


def read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Return the status and the headers; no header may be repeated."""
    first, *lines = head.split(b'\r\n')
    match = re.fullmatch(rb'HTTP/1\.1 (\d\d\d) [A-Za-z ]+', first)
    assert match is not None, first
    headers = {}
    for line in lines:
        field = re.fullmatch(rb'(' + TOKEN + rb'): ([!-~][ -~]*)', line)
        assert field is not None, line
        assert field[1].lower() not in headers, line
        headers[field[1].lower()] = field[2]
    assert headers[b'connection'] == b'close' and headers[b'cache-control'] == b'no-store', headers
    assert headers[b'x-content-type-options'] == b'nosniff', headers
    assert (b'allow' in headers) == (match[1] == b'405'), headers
    return int(match[1]), headers


def check_events(body: bytes) -> None:
    """Check that each event has only known fields, and JSON as data. The last event is not checked: it may be cut."""
    for text in body.split(b'\n\n')[:-1]:
        for line in text.split(b'\n'):
            name, colon, value = line.partition(b': ')
            assert colon and name in (b'retry', b'event', b'id', b'data'), line
            if name == b'data':
                json.loads(value)
            elif name in (b'id', b'retry'):
                assert value.isdigit(), line


def check_echo(payload: bytes, sent: bytes) -> None:
    """Check that no bytes of the request are sent back."""
    if len(payload) > LONGEST_INPUT:
        return  # the payload is repeated; shorter inputs are checked instead
    usual = always_sent()
    for begin in range(len(payload) - ECHO + 1):
        part = payload[begin : begin + ECHO]
        assert part not in sent or part in usual, f'{part!r} was sent back in {sent[:2000]!r}'


@cache
def always_sent() -> bytes:
    """Return text that the server sends to any client: its responses to the fixed requests below."""
    requests = [b'GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n' % path for path in (b'/', b'/events', b'/trace', b'/x')]
    requests += [b'HEAD / HTTP/1.0\r\n\r\n', b'PUT / HTTP/1.0\r\n\r\n', b'GET / HTTP/3.0\r\n\r\n', b'?\r\n\r\n']
    requests += [b'GET / HTTP/1.1\r\n\r\n', b'GET / HTTP/1.1\r\nHost: a.b\r\n\r\n', b'GET / HTTP/1.1\r\nx\r\n\r\n']
    requests += [b'GET / HTTP/1.0\r\n\0\r\n\r\n', b'GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n', b'x' * 9000]
    requests += [b'GET / HTTP/1.0\r\n' + b'a: b\r\n' * 101 + b'\r\n']
    answers = []
    with Scene() as scene:
        listener = serve_page(scene.r, about='fuzzed')
        for request in requests:
            sock = scene.connect(listener)
            sock.arrive(request)
            scene.settle()
            scene.wait(1.5)
            answers.append(bytes(sock.sent))
            sock.end()
        listener.close()
    return b'\0'.join(answers)
