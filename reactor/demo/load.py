"""The load: opens connections at a fixed rate, sends requests and measures the reply times, as httperf does.

Times are measured from the moment when a connection was due, not from when it was opened. So the results show when the
server, or the load generator itself, falls behind.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from .. import ConnectTimeout, Reactor, ReactorError, ReadTimeout, Stream

REQUEST = b'GET / HTTP/1.1\r\nHost: demo\r\n\r\n'
TICK = 0.005  # seconds between two checks of the schedule
OPENS_PER_TICK = 200  # the most connections to open at once, even when behind schedule: answers must be read, too


class ScheduledClient:
    """The state of a connection: when its current wait began, the number of calls left, and the bytes received."""

    __slots__ = ('calls_left', 'connected', 'received', 'since')

    def __init__(self, since: float, calls: int) -> None:
        self.since: float = since
        self.calls_left: int = calls
        self.connected: bool = False
        self.received: bytes = b''


class Load:
    """Opens `connections` connections, `rate` per second, and sends `calls` requests on each, one after the other.

    Args:
        host: Host to connect to.
        port: Port to connect to.
        timeout: Seconds to wait for a connection or an answer.
        sources: Addresses to connect from, used in turn. If empty, the kernel chooses.
        most_open: The maximum number of open connections, whatever the schedule says.
        on_done: Called without arguments when the last connection is closed.
    """

    def __init__(
        self,
        r: Reactor,
        host: str,
        port: int,
        *,
        connections: int,
        rate: float,
        calls: int,
        timeout: float,
        sources: Sequence[str],
        most_open: int = 1 << 30,
        on_done: Callable[[], object],
    ) -> None:
        self.r = r
        self.host = host
        self.port = port
        self.connections = connections
        self.rate = rate
        self.calls = calls
        self.timeout = timeout
        self.sources = sources
        self.most_at_once = most_open
        self.on_done = on_done
        self.attempted: int = 0
        self.connected: int = 0
        self.requests: int = 0
        self.replies: int = 0
        self.closed: int = 0
        self.open: int = 0
        self.most_open: int = 0
        self.errors: dict[str, int] = {}
        self.connect_times: list[float] = []
        self.reply_times: list[float] = []
        self.replied_at: list[float] = []  # seconds from `started`
        self.started: float = monotonic()
        self.opened: float = self.started
        self.ended: float = self.started
        self.stopped: bool = False
        self._ticks = r.call_every(TICK, self.tick)

    def tick(self) -> None:
        """Open the connections that are due."""
        due = min(self.connections, int((monotonic() - self.started) * self.rate) + 1)
        most = min(due, self.attempted + OPENS_PER_TICK, self.closed + self.most_at_once)
        for index in range(self.attempted, most):
            self.attempted += 1
            client = ScheduledClient(self.started + index / self.rate, self.calls)
            source = self.sources[index % len(self.sources)] if self.sources else None
            conn = self.r.connect_tcp(
                self.host,
                self.port,
                self.on_data,
                on_connect=self.on_connect,
                on_close=self.on_close,
                timeout=self.timeout,
                read_timeout=self.timeout,
                local_address=(source, 0) if source else None,
            )
            conn.data = client
        if self.attempted >= self.connections:
            self._ticks.cancel()

    def on_connect(self, conn: Stream) -> None:
        now = monotonic()
        self.connect_times.append(now - conn.data.since)
        conn.data.connected = True
        self.connected += 1
        self.opened = now
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.ask(conn)

    def ask(self, conn: Stream) -> None:
        self.requests += 1
        conn.write(REQUEST)

    def on_data(self, conn: Stream, data: bytes) -> None:
        client = conn.data
        client.received += data
        size = reply_size(client.received)
        if size is None or len(client.received) < size:
            return
        now = monotonic()
        self.replies += 1
        self.reply_times.append(now - client.since)
        self.replied_at.append(now - self.started)
        client.received = client.received[size:]
        client.since = now
        client.calls_left -= 1
        if client.calls_left:
            self.ask(conn)
        else:
            conn.close()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.closed += 1
        self.ended = monotonic()
        if conn.data.connected:
            self.open -= 1
        if conn.data.calls_left:
            kind = 'interrupted' if self.stopped else error_kind(exc)
            self.errors[kind] = self.errors.get(kind, 0) + 1
        if self.closed == self.connections or (self.stopped and self.closed == self.attempted):
            self.on_done()

    def stop(self) -> None:
        """Stop opening connections and abort the open ones."""
        self.stopped = True
        self._ticks.cancel()
        for handle in self.r.handles():
            if isinstance(handle, Stream) and isinstance(handle.data, ScheduledClient):
                handle.abort()
        if self.closed == self.attempted:
            self.on_done()

    @property
    def share(self) -> float:
        """The share of connections that are finished, 0 to 1."""
        return self.closed / self.connections

    @property
    def failed(self) -> int:
        """The number of calls that have failed."""
        return sum(self.errors.values())

    def line(self) -> str:
        """Return a line for the progress display."""
        return f'{self.closed:,} of {self.connections:,}, {self.open:,} open'

    def figures(self) -> dict[str, Any]:
        """Return the results for JSON; times in seconds."""
        return {
            'connections': self.connected,
            'requests': self.requests,
            'replies': self.replies,
            'failed': self.failed,
            'errors': self.errors,
            'most_open': self.most_open,
            'seconds': self.ended - self.started,
            'connect_time': quantiles(self.connect_times),
            'reply_time': quantiles(self.reply_times),
        }

    def report(self) -> str:
        """Return the results as text, in the format of httperf."""
        seconds = max(self.ended - self.started, 1e-9)
        opening = max(self.opened - self.started, 1e-9)
        lines = [
            f'Total: connections {self.connected} requests {self.requests} replies {self.replies} '
            f'test-duration {seconds:.3f} s',
            '',
            f'Connection rate: {self.connected / opening:.1f} conn/s (<={self.most_open} concurrent connections)',
            f'Connection time [ms]: {spread(self.connect_times)}',
            f'Reply rate [replies/s]: {self.replies / seconds:.1f}',
            f'Reply time [ms]: {spread(self.reply_times)}',
            '',
            f'Errors: total {self.failed}{kinds(self.errors)}',
        ]
        return '\n'.join(lines)


def reply_size(received: bytes) -> int | None:
    """Return the length of the first reply in `received`, or None while its header is incomplete."""
    end = received.find(b'\r\n\r\n')
    if end < 0:
        return None
    for line in received[:end].split(b'\r\n')[1:]:
        name, _, value = line.partition(b':')
        if name.lower() == b'content-length':
            return end + 4 + int(value)
    return end + 4


def error_kind(exc: BaseException | None) -> str:
    """Return a word for the cause of a failure, such as 'ECONNREFUSED'."""
    if exc is None:
        return 'closed-early'
    if isinstance(exc, ConnectTimeout):
        return 'connect-timeout'
    if isinstance(exc, ReadTimeout):
        return 'reply-timeout'
    if isinstance(exc, OSError) and exc.errno and not isinstance(exc, ReactorError):
        return errno.errorcode.get(exc.errno, str(exc.errno))
    return type(exc).__name__


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile `share` (0 to 1) of sorted values, by the nearest-rank method."""
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Return minimum, median, p99 and maximum; an empty dict if there are no times."""
    if not times:
        return {}
    ordered = sorted(times)
    return {
        'min': ordered[0],
        'median': quantile(ordered, 0.5),
        'p99': quantile(ordered, 0.99),
        'max': ordered[-1],
    }


def spread(times: Sequence[float]) -> str:
    """Format the quantiles in milliseconds; `times` are in seconds."""
    return ' '.join(f'{name} {value * 1000:.1f}' for name, value in quantiles(times).items()) or 'none'


def kinds(errors: dict[str, int]) -> str:
    """Format the counts of errors by kind."""
    return ''.join(f' {kind} {count}' for kind, count in sorted(errors.items()))
