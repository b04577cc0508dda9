"""A very small HTTP server for pages of counters: one GET or HEAD per connection, an answer, the end.

Owns the request line, the headers and their limits, and who may ask. Knows nothing of what is answered. The rules: what
is not understood is refused and never guessed at; not a byte that a client sends is sent back; and no client can hold a
connection for longer than REQUEST_TIMEOUT, unless it is one of those that a stream of events was given to.

On loopback a page is reached by a name of this machine or by an address, and by nothing else. A page of somebody else's
could have the name of its own server point here ("DNS rebinding") and then read the counters; the header Host tells.
"""

from __future__ import annotations

from ipaddress import ip_address

from ..errors import FrameTooLong
from ..framing import Frames
from ..loop.checks import shown
from ..loop.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .. import Listener, Reactor, Stream

    Headers = Iterable[tuple[str, str]]
    Answer = Callable[['Request'], object]

LONGEST_HEAD = 8192  # bytes of a request line and its headers, as in nginx and Apache
MOST_HEADERS = 100  # lines, as in Apache: 2,000 fit into so many bytes, and took 4 ms
REQUEST_TIMEOUT = 15.0  # seconds for the request and the answer; Prometheus gives up after 10
MOST_CLIENTS = 64  # at once, further ones wait in the backlog; each has some kilobytes of ours
STALLED = 30.0  # seconds in which a client may take nothing of a stream
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
# Counters are of this moment, and are what their type says and nothing else.
ALWAYS = (('Cache-Control', 'no-store'), ('X-Content-Type-Options', 'nosniff'), ('Connection', 'close'))
TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # RFC 9110, 5.6.2
CONTROLS = bytes({*range(32), 127} - {9})


class HTTPError(Exception):
    """A request that is answered with an error: the status, and one sentence."""


class Request:
    """What a client asked for, and the one answer to it: `reply` or `stream`, in the callback or later.

    `method` is GET or HEAD; `path` begins with a slash and is as it was sent, nothing decoded; `query` is what stood
    behind its question mark; `headers` has lower-case names. `conn` is the connection.
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
        """Answer with `body` of the media type `kind`. Does nothing when the client is gone."""
        lengths = ('Content-Type', kind), ('Content-Length', str(len(body)))
        _answer(self.conn, status, (*lengths, *headers), b'' if self.method == 'HEAD' else body)

    def stream(self, kind: str, headers: Headers = ()) -> Stream | None:
        """Answer with what is written to the returned connection from now on, until it is closed.

        None when there is nobody to write to: the client is gone, or asked for the headers alone (HEAD). The connection
        has no callbacks, so `on_close` is yours, and no time limit, except that a client that takes nothing for 30 s is
        cut off. `write` returns False while 64 KiB wait: skip what can be skipped until `on_drain`.
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
    """One connection until it is answered."""

    __slots__ = ('frames', 'timer')

    def __init__(self, conn: Stream) -> None:
        self.frames = Frames(LONGEST_HEAD)
        self.timer = conn.loop.call_later(REQUEST_TIMEOUT, conn.abort)
        self.timer.unref()


class _Site:
    """What the connections of one listener share."""

    __slots__ = ('answer', 'hosts', 'local')

    def __init__(self, answer: Answer, hosts: Iterable[str]) -> None:
        self.answer = answer
        self.hosts = {'localhost', *(host.lower() for host in hosts)}
        self.local = True

    def on_connect(self, conn: Stream) -> None:
        conn.unref()
        conn.data = _Client(conn)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if conn.data is not None:  # else it was closed before `on_connect`
            conn.data.timer.cancel()

    def on_data(self, conn: Stream, data: bytes) -> None:
        frames = conn.data.frames
        frames.feed(data)
        try:
            try:
                head = frames.until(b'\r\n\r\n')
            except FrameTooLong:
                raise HTTPError(431, f'a request may have {LONGEST_HEAD} bytes of headers') from None
            if head is None:
                return
            request = Request(conn, *_parse(head))
            self._check_host(request)
        except HTTPError as error:
            conn.on_data = None
            status, why = error.args
            Request(conn, 'GET', '/', {}).reply(status, 'text/plain', why.encode() + b'\n')
            return
        conn.on_data = None  # what follows is read and dropped: closing with unread bytes would reset the connection
        self.answer(request)

    def on_error(self, conn: Stream, exc: Exception) -> None:
        """What goes wrong here is told, and ends nothing but this connection, whatever `catch_errors` says."""
        if conn.may_log():
            log('error', 'exception while %s was answered', conn, exc=exc)
        conn.abort()

    def _check_host(self, request: Request) -> None:
        host = request.headers.get('host')
        if self.local and host is not None and not self._is_ours(host):
            raise HTTPError(403, 'this page is for this machine only: ask for localhost or an address')

    def _is_ours(self, host: str) -> bool:
        name = host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0]
        return name.lower() in self.hosts or _address(name) is not None


def listen_http(r: Reactor, host: str | None, port: int, answer: Answer, *, hosts: Iterable[str] = ()) -> Listener:
    """Listen, and call `answer(request)` for each `Request`; see there for how to answer.

    host, port  as for `listen_tcp`
    hosts       names by which it may be asked for on loopback, besides `localhost` and addresses

    Neither the listener nor its connections keep `run` running. An exception that `answer` raises is logged and ends
    that connection. Raises as `listen_tcp` does.
    """
    if isinstance(hosts, str) or not hasattr(hosts, '__iter__'):
        raise TypeError(f'hosts is a list of names, not {shown(hosts)}')  # a str would be taken apart into letters
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
    """Method, target and headers; `HTTPError` for what RFC 9112 does not allow, or we do not need."""
    first, *lines = head.split(b'\r\n')
    if len(lines) > MOST_HEADERS:
        raise HTTPError(431, f'a request may have {MOST_HEADERS} headers')
    if any(line.translate(None, CONTROLS) != line for line in (first, *lines)):
        raise HTTPError(400, 'a request has no control characters')
    method, target, version = _request_line(first)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b':')
        key, text = name.decode('latin-1').lower(), value.strip(b' \t').decode('latin-1')
        if not colon or not name or not TOKEN.issuperset(name):
            raise HTTPError(400, 'a header is a name, a colon and a value on one line')
        if key == 'host' and key in headers:
            raise HTTPError(400, 'a request has one Host')
        headers[key] = f'{headers[key]}, {text}' if key in headers else text
    if version == b'HTTP/1.1' and 'host' not in headers:
        raise HTTPError(400, 'a request of HTTP/1.1 has a Host')
    return method, target, headers


def _request_line(line: bytes) -> tuple[str, str, bytes]:
    words = line.split(b' ')
    if len(words) != 3 or b'\t' in line or not words[1].startswith(b'/') or not words[1].isascii():
        raise HTTPError(400, 'a request begins with a method, a path and a version')
    method, target, version = words
    if version not in (b'HTTP/1.1', b'HTTP/1.0'):
        raise HTTPError(505, 'this server speaks HTTP/1.1')
    if method not in (b'GET', b'HEAD'):
        raise HTTPError(405, 'this server answers GET and HEAD')
    return method.decode(), target.decode(), version


def _head(status: int, headers: Headers) -> bytes:
    lines = [f'HTTP/1.1 {status} {REASONS[status]}', *(f'{name}: {value}' for name, value in (*headers, *ALWAYS))]
    if status == 405:
        lines.append('Allow: GET, HEAD')
    return '\r\n'.join([*lines, '', '']).encode('latin-1')


def _answer(conn: Stream, status: int, headers: Headers, body: bytes) -> None:
    if not conn.closed:
        conn.writelines((_head(status, headers), body))
        conn.write_eof()  # and closes when the client has read all of it and closed, or after REQUEST_TIMEOUT
