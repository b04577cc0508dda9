"""A very small HTTP server for the pages of `observe`: one GET or HEAD request per connection.

- A request that is invalid or not supported is refused; nothing is guessed.
- No part of a request is echoed in the response.
- A connection lasts at most REQUEST_TIMEOUT, unless the request was answered with a stream of events.

On loopback, the Host header must be `localhost` or an address. Otherwise a web site could make its host name resolve to
this machine (DNS rebinding), and its scripts could read the counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from .. import Listener, Reactor, Stream
from ..errors import FrameTooLong
from ..framing import Frames
from ..loop.checks import shown
from ..loop.log import log

Headers = Iterable[tuple[str, str]]
Answer = Callable[['Request'], object]

LONGEST_HEAD = 8192  # bytes in a request line and its headers, as in nginx and Apache
MOST_HEADERS = 100  # as in Apache; parsing the 2,000 headers that fit into LONGEST_HEAD took 4 ms
REQUEST_TIMEOUT = 15.0  # seconds for the request and the response; Prometheus gives up after 10 seconds
MOST_CLIENTS = 64  # connections at once, a few kilobytes each; further clients wait in the backlog
STALLED = 30.0  # seconds after which a client that reads nothing from a stream is dropped
REASONS = {
    200: 'OK',
    400: 'Bad Request',
    403: 'Forbidden',
    404: 'Not Found',
    405: 'Method Not Allowed',
    431: 'Request Header Fields Too Large',
    500: 'Internal Server Error',
    503: 'Service Unavailable',
    505: 'HTTP Version Not Supported',
}
# Sent with every response: counters are out of date at once, and browsers must not guess another media type.
ALWAYS = (('Cache-Control', 'no-store'), ('X-Content-Type-Options', 'nosniff'), ('Connection', 'close'))
TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # RFC 9110, 5.6.2
CONTROLS = bytes({*range(32), 127} - {9})


class HTTPError(Exception):
    """Raised to refuse a request; the arguments are the status and one sentence for the body."""


class Request:
    """A request. Answer it exactly once, with `reply` or `stream`, in the callback or later.

    Attributes:
        conn: The connection.
        method: 'GET' or 'HEAD'.
        path: Path of the URL exactly as the client sent it, not decoded. Begins with a slash.
        query: The part of the URL after the question mark, or ''.
        headers: Maps header names in lower case to their values.
    """

    __slots__ = ('conn', 'headers', 'method', 'path', 'query')

    path: str
    query: str

    def __init__(self, conn: Stream, method: str, target: str, headers: dict[str, str]) -> None:
        self.conn: Stream = conn
        self.method: str = method
        self.path, _, self.query = target.partition('?')
        self.headers: dict[str, str] = headers

    def reply(self, status: int, kind: str, body: bytes, headers: Headers = ()) -> None:
        """Send a response with `body` of the media type `kind`. Does nothing if the connection is closed."""
        lengths = ('Content-Type', kind), ('Content-Length', str(len(body)))
        _answer(self.conn, status, (*lengths, *headers), b'' if self.method == 'HEAD' else body)

    def stream(self, kind: str, headers: Headers = ()) -> Stream | None:
        """Send the headers of a response whose body the caller then writes to the returned connection.

        The body ends when the connection is closed. The connection has no callbacks; set `on_close` to notice its end.
        A client that reads nothing for 30 s is dropped; there is no other time limit. While `write` returns False,
        write only what is essential.

        Returns:
            The connection. None if no body can be sent: the client has disconnected, or the method is HEAD.
        """
        conn, headers = self.conn, (('Content-Type', kind), *headers)
        if self.method == 'HEAD' or conn.closed:
            _answer(conn, 200, headers, b'')
            return None
        conn.data.timer.cancel()
        conn.data = conn.on_close = None
        conn.set_timeouts(write=STALLED)
        conn.write(_head(200, headers))
        return conn


class _Client:
    """The received bytes and the time limit of a connection whose request has not been answered."""

    __slots__ = ('frames', 'timer')

    def __init__(self, conn: Stream) -> None:
        self.frames = Frames(LONGEST_HEAD)
        self.timer = conn.loop.call_later(REQUEST_TIMEOUT, conn.abort)
        self.timer.unref()


class _Site:
    """The callbacks and settings that the connections of one listener share."""

    __slots__ = ('answer', 'hosts', 'local')

    def __init__(self, answer: Answer, hosts: Iterable[str]) -> None:
        self.answer = answer
        self.hosts = {'localhost', *(host.lower() for host in hosts)}
        self.local = True

    def on_connect(self, conn: Stream) -> None:
        conn.unref()
        conn.data = _Client(conn)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if conn.data is not None:  # None if the connection was closed before `on_connect`
            conn.data.timer.cancel()

    def on_data(self, conn: Stream, data: bytes) -> None:
        frames = conn.data.frames
        frames.feed(data)
        try:
            try:
                head = frames.until(b'\r\n\r\n')
            except FrameTooLong:
                raise HTTPError(431, f'the headers of a request may have at most {LONGEST_HEAD} bytes') from None
            if head is None:
                return
            request = Request(conn, *_parse(head))
            self._check_host(request)
        except HTTPError as error:
            conn.on_data = None
            status, why = error.args
            Request(conn, 'GET', '/', {}).reply(status, 'text/plain', why.encode() + b'\n')
            return
        conn.on_data = None  # further bytes are read and dropped: closing with unread bytes resets the connection
        self.answer(request)

    def on_error(self, conn: Stream, exc: Exception) -> None:
        """Log the exception and reset this connection only, whatever `catch_errors` is."""
        if conn.may_log():
            log('error', 'exception while answering the request of %s', conn, exc=exc)
        conn.abort()

    def _check_host(self, request: Request) -> None:
        host = request.headers.get('host')
        if self.local and host is not None and not self._is_ours(host):
            raise HTTPError(403, 'on loopback, the Host header must be localhost or an address')

    def _is_ours(self, host: str) -> bool:
        name = host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0]
        return name.lower() in self.hosts or _address(name) is not None


def listen_http(r: Reactor, host: str | None, port: int, answer: Answer, *, hosts: Iterable[str] = ()) -> Listener:
    """Listen for HTTP requests.

    Neither the listener nor its connections keep `run` running.

    Args:
        r: The reactor.
        host: Host name or address to listen on, as for `listen_tcp`.
        port: Port number; 0 picks a free one.
        answer: Called as `answer(request)` with each valid `Request`. If it raises, the exception is logged and the
            connection is reset.
        hosts: Host names that requests may use on loopback, besides `localhost` and addresses.

    Returns:
        The listener.

    Raises:
        OSError: As for `listen_tcp`.
        TypeError: `hosts` is not a list.
    """
    if isinstance(hosts, str) or not hasattr(hosts, '__iter__'):
        raise TypeError(f'hosts must be a list of names, not {shown(hosts)}')  # a str would be a list of letters
    site = _Site(answer, hosts)
    server = r.listen_tcp(
        host,
        port,
        site.on_data,
        on_connect=site.on_connect,
        on_close=site.on_close,
        on_error=site.on_error,
        max_connections=MOST_CLIENTS,
    )
    server.unref()
    site.local = _address(server.address[0]).is_loopback
    return server


def _address(text: str) -> Any:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Return method, target and headers. Raises `HTTPError` if the request is invalid (RFC 9112) or not supported."""
    first, *lines = head.split(b'\r\n')
    if len(lines) > MOST_HEADERS:
        raise HTTPError(431, f'a request may have at most {MOST_HEADERS} headers')
    if any(line.translate(None, CONTROLS) != line for line in (first, *lines)):
        raise HTTPError(400, 'control characters are not allowed in a request')
    method, target, version = _request_line(first)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b':')
        key, text = name.decode('latin-1').lower(), value.strip(b' \t').decode('latin-1')
        if not colon or not name or not TOKEN.issuperset(name):
            raise HTTPError(400, 'a header must be a name, a colon and a value on one line')
        if key == 'host' and key in headers:
            raise HTTPError(400, 'a request must have only one Host header')
        headers[key] = f'{headers[key]}, {text}' if key in headers else text
    if version == b'HTTP/1.1' and 'host' not in headers:
        raise HTTPError(400, 'an HTTP/1.1 request must have a Host header')
    return method, target, headers


def _request_line(line: bytes) -> tuple[str, str, bytes]:
    words = line.split(b' ')
    if len(words) != 3 or b'\t' in line or not words[1].startswith(b'/') or not words[1].isascii():
        raise HTTPError(400, 'a request must begin with a method, a path and a version')
    method, target, version = words
    if version not in (b'HTTP/1.1', b'HTTP/1.0'):
        raise HTTPError(505, 'this server supports HTTP/1.1 and HTTP/1.0')
    if method not in (b'GET', b'HEAD'):
        raise HTTPError(405, 'this server supports GET and HEAD')
    return method.decode(), target.decode(), version


def _head(status: int, headers: Headers) -> bytes:
    lines = [f'HTTP/1.1 {status} {REASONS[status]}', *(f'{name}: {value}' for name, value in (*headers, *ALWAYS))]
    if status == 405:
        lines.append('Allow: GET, HEAD')
    return '\r\n'.join([*lines, '', '']).encode('latin-1')


def _answer(conn: Stream, status: int, headers: Headers, body: bytes) -> None:
    if not conn.closed:
        conn.writelines((_head(status, headers), body))
        conn.write_eof()  # the connection is closed when the client closes its side, or after REQUEST_TIMEOUT
