"""The steady load: sends requests at a fixed rate over keep-alive connections, and accounts for each request.

Times are measured from the moment when a request was due, however long the previous requests took. This avoids
coordinated omission, as wrk2 does. Each request is either answered or counted as an error. No request is retried, so no
loss is hidden.

Only the necessary part of HTTP/1.1 is supported: replies with a Content-Length, and `Connection: close`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import Reactor, Stream
from .load import OPENS_PER_TICK, error_kind, kinds, quantiles, reply_size, spread

TICK = 0.001  # seconds between two checks of the schedule; selectors cannot wait for a shorter time
RETRY = 0.1  # seconds after a failed connection attempt before the next one
DUE_PER_TICK = 1000  # the most requests that become due at once, so that Ctrl-C is heeded at any rate
LONELY = 1.0  # seconds without an open connection, after the end of the schedule, until unsent requests fail
STOPPING = 3.0  # seconds to wait for outstanding answers after the first `stop`
LISTED = 1000  # number of errors that are reported with their time
STATUS = slice(9, 12)  # the position of the status in b'HTTP/1.1 200 OK'


class SteadyLoad:
    """Sends `rate` requests per second for `seconds`, each over the connection that has been idle the longest.

    The first request is due once every connection is open or has failed. If no connection is free, a request has to
    wait, and this wait counts as part of its reply time. A connection that is closed between two requests is opened
    again, and is not counted as an error. A connection that is closed before an answer is complete is an error.

    While the server is away, connecting is tried again and requests wait. Once the last request is due, they wait for
    at most `LONELY` seconds without any open connection.

    Args:
        host: Host to connect to.
        port: Port to connect to.
        timeout: Seconds from when a request was due until it counts as failed, even if it was not sent. Also the
            timeout for connecting.
        method: 'GET' or 'POST'; a POST has an empty body.
        path: Path to request.
        on_done: Called without arguments when every request has been answered or has failed.
    """

    def __init__(
        self,
        r: Reactor,
        host: str,
        port: int,
        *,
        connections: int,
        rate: float,
        seconds: float,
        timeout: float,
        method: str = 'GET',
        path: str = '/',
        on_done: Callable[[], object],
    ) -> None:
        self.r = r
        self.host = host
        self.port = port
        self.connections = connections
        self.rate = rate
        self.wanted: int = max(1, round(rate * seconds))
        self.total: int = self.wanted
        self.timeout = timeout
        self.on_done = on_done
        name = f'[{host}]' if ':' in host else host
        length = '' if method == 'GET' else 'Content-Length: 0\r\n'
        self.request: bytes = f'{method} {path} HTTP/1.1\r\nHost: {name}:{port}\r\n{length}\r\n'.encode()
        self.requests: int = 0
        self.replies: int = 0
        self.connected: int = 0  # connections that were established
        self.most_open: int = 0
        self.reopened: int = 0
        self.errors: dict[str, int] = {}
        self.listed: list[tuple[float, str]] = []  # (seconds since the first request was due, kind)
        self.connect_errors: dict[str, int] = {}
        self.reply_times: list[float] = []
        self.began_at: float = 0.0  # start time by the wall clock, to compare with logs
        self.began: float = 0.0
        self.ended: float = 0.0
        self.stopped: bool = False
        self._opened = self._settled = self._open = 0
        self._done = False
        self._lost_at = self._stopped_at = 0.0  # when the last open connection was closed; when `stop` was called
        self._waiting: deque[float] = deque()  # when each unsent request was due
        self._asked: dict[Stream, float] = {}  # when the request of each busy connection was due
        self._free: deque[Stream] = deque()
        self._ticks = r.call_every(TICK, self.tick)

    # the schedule

    def tick(self) -> None:
        """Open connections, send the requests that are due, and fail requests that have waited too long."""
        now = time.monotonic()
        for _ in range(min(OPENS_PER_TICK, self.connections - self._opened)):
            self._opened += 1
            self.open()
        if self.began:
            self.schedule(now)
            self.send()
            self.give_up(now - self.timeout)
            if self.requests == self.total and (not (self._waiting or self._asked) or self.is_hopeless(now)):
                self.finish()

    def schedule(self, now: float) -> None:
        """Queue the requests that are due."""
        for number in range(self.requests, min(self.total, self.requests + DUE_PER_TICK)):
            due = self.began + number / self.rate
            if due > now:
                break
            self._waiting.append(due)
            self.requests += 1

    def is_hopeless(self, now: float) -> bool:
        """Return whether to stop waiting for the remaining answers. Called once no more requests become due."""
        if self.stopped:
            return not self._open or now >= self._stopped_at + STOPPING
        return not self._open and now >= max(self._lost_at, self.began + self.total / self.rate) + LONELY

    def send(self) -> None:
        """Send waiting requests while connections are free."""
        while self._waiting and self._free:
            conn = self._free.popleft()
            if not conn.closed:
                self._asked[conn] = self._waiting.popleft()
                conn.data = b''
                conn.write(self.request)

    def give_up(self, since: float) -> None:
        """Fail the requests that were due before `since`. Both queues are sorted by the time when requests were due."""
        while self._waiting and self._waiting[0] < since:
            self._waiting.popleft()
            self.fail('unsent')
        while self._asked:
            conn, due = next(iter(self._asked.items()))
            if due >= since:
                break
            del self._asked[conn]
            self.fail('reply-timeout')
            conn.abort()

    def fail(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.ended = time.monotonic()
        if len(self.listed) < LISTED:
            self.listed.append((self.ended - self.began, kind))

    def stop(self) -> None:
        """End the schedule, and wait up to `STOPPING` seconds for answers. A second call ends the wait."""
        again, self.stopped = self.stopped, True
        if again or not self.began:
            self.finish()
        else:
            self._stopped_at = time.monotonic()
            self.total = self.requests

    def finish(self) -> None:
        """End the load. Requests that are still unsent or unanswered have failed."""
        if self._done:
            return
        self._done = True
        self._ticks.cancel()
        for _ in self._waiting:
            self.fail('unsent')
        for _ in self._asked:
            self.fail('interrupted')
        self._waiting.clear()
        self._asked.clear()
        self.ended = max(self.ended, self.began)
        for handle in self.r.handles():
            if isinstance(handle, Stream) and handle.on_close == self.on_close:
                handle.abort()
        self.on_done()

    # the connections

    def open(self) -> None:
        if not self._done:
            self.r.connect_tcp(
                self.host,
                self.port,
                self.on_data,
                on_connect=self.on_connect,
                on_close=self.on_close,
                timeout=self.timeout,
            )

    def settle(self) -> None:
        """Count an initial connection as open or failed; the last initial connection starts the schedule."""
        self._settled += 1
        if self._settled == self.connections:
            self.began_at, self.began = time.time(), time.monotonic()

    def on_connect(self, conn: Stream) -> None:
        conn.data = b''
        self.connected += 1
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        if not self.began:
            self.settle()
        self._free.append(conn)
        self.send()

    def on_data(self, conn: Stream, data: bytes) -> None:
        conn.data += data
        if conn not in self._asked:
            self.fail('unasked')
            conn.abort()
            return
        size = reply_size(conn.data)
        if size is not None and len(conn.data) >= size:
            self.answered(conn, conn.data[:size], conn.data[size:])

    def answered(self, conn: Stream, reply: bytes, more: bytes) -> None:
        self.ended = time.monotonic()
        self.reply_times.append(self.ended - self._asked.pop(conn))
        kind = flaw(reply, more)
        if kind:
            self.fail(kind)
        else:
            self.replies += 1
        if is_last(reply) or more or kind == 'no-length':
            conn.close()
        else:
            self._free.append(conn)
            self.send()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if self._done:
            return
        if self._asked.pop(conn, None) is not None:
            self.fail(error_kind(exc))
        if conn.data is None:  # the connection was never established
            kind = error_kind(exc)
            self.connect_errors[kind] = self.connect_errors.get(kind, 0) + 1
            if not self.began:
                self.settle()
            self.r.call_later(RETRY, self.open)
        else:
            self._open -= 1
            self._lost_at = time.monotonic()
            self.reopened += 1
            self.open()

    # results

    @property
    def share(self) -> float:
        """The share of requests that are finished, 0 to 1."""
        return (self.requests - len(self._waiting) - len(self._asked)) / self.wanted

    @property
    def failed(self) -> int:
        """The number of requests and connection attempts that have failed."""
        return sum(self.errors.values()) + sum(self.connect_errors.values())

    def line(self) -> str:
        """Return a line for the progress display."""
        stopping = '; waiting for answers, Ctrl-C ends at once' if self.stopped else ''
        return f'{self.requests:,} of {self.wanted:,} requests, {self.failed} failed{stopping}'

    def figures(self) -> dict[str, Any]:
        """Return the results for JSON; times in seconds."""
        return {
            'connections': self.most_open,
            'requests': self.requests,
            'replies': self.replies,
            'failed': self.failed,
            'errors': self.errors,
            'connect_errors': self.connect_errors,
            'reopened': self.reopened,
            'began_at': self.began_at,
            'seconds': self.ended - self.began,
            'reply_time': quantiles(self.reply_times),
            'listed': self.listed,
        }

    def report(self) -> str:
        """Return the results as text, in the format of httperf."""
        seconds = max(self.ended - self.began, 1e-9)
        refused = sum(self.connect_errors.values())
        all_errors = {
            kind: self.errors.get(kind, 0) + self.connect_errors.get(kind, 0)
            for kind in self.errors.keys() | self.connect_errors.keys()
        }
        lines = [
            f'Total: connections {self.most_open} requests {self.requests} replies {self.replies} '
            f'test-duration {seconds:.3f} s',
            '',
            f'Reply rate [replies/s]: {self.replies / seconds:.1f} (wanted {self.rate:g})',
            f'Reply time [ms]: {spread(self.reply_times)}',
            f'Connections: reopened {self.reopened} failed {refused}{kinds(self.connect_errors)}',
            '',
            f'Errors: total {self.failed}{kinds(all_errors)}',
        ]
        return '\n'.join(lines)


def flaw(reply: bytes, more: bytes) -> str:
    """Return what is wrong with a reply, or ''. `more` has the bytes received after the reply."""
    head = reply.partition(b'\r\n\r\n')[0].lower()
    if not reply.startswith(b'HTTP/1.') or not reply[STATUS].isdigit():
        return 'not-http'
    if reply[STATUS][:1] != b'2':
        return f'status-{reply[STATUS].decode()}'
    if b'\r\ncontent-length:' not in head:
        return 'no-length'
    return 'too-long' if more else ''


def is_last(reply: bytes) -> bool:
    """Return whether the server closes the connection after this reply (RFC 9112, 9.3)."""
    head = reply.partition(b'\r\n\r\n')[0].lower() + b'\r\n'
    if reply.startswith(b'HTTP/1.0'):
        return b'\r\nconnection: keep-alive\r\n' not in head
    return b'\r\nconnection: close\r\n' in head
