"""Declares every counter, with its help text.

`stats()`, the metrics, the live page and the table in docs/counters.md are made from these declarations. Each part of
the reactor adds to the attributes directly, so counting costs one addition. Names are taken from libuv (`loop_count`,
`events`, `idle_time`), otherwise from redis.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

LAG_BUCKETS = 16  # upper bounds of 1/1024 s times powers of two: 1 ms, 2 ms ... 16 s; the last bucket has no bound
# Upper bounds in seconds for the times of requests, from an answer out of memory to one that a slow database delays.
# Each is about twice the one before, so a quantile that Prometheus estimates is at most that factor off.
REQUEST_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SLOW_PLACES = 20  # how many slow callbacks are remembered


class Declaration:
    """The declaration of one attribute of `Counters` or `Stats`.

    Attributes:
        kind: The kind of value: 'count', 'gauge', 'seconds' or 'other'.
        help: The help text that operators read.
        metric: The name of the metric, if it differs from the attribute's.
    """

    __slots__ = ('help', 'kind', 'metric')

    def __init__(self, kind: str, help: str, metric: str) -> None:
        self.kind: str = kind
        self.help: str = help
        self.metric: str = metric


def count(help: str, metric: str = '') -> Any:
    """Declare a number that only grows."""
    return Declaration('count', help, metric)


def gauge(help: str) -> Any:
    """Declare a number that rises and falls."""
    return Declaration('gauge', help, 'connections')


def seconds(help: str) -> Any:
    """Declare the time spent in a phase of the turn."""
    return Declaration('seconds', help, 'phase_seconds')


def other(help: str, metric: str) -> Any:
    """Declare an attribute of any other kind."""
    return Declaration('other', help, metric)


class Declared(type):
    """Turns each declaration in a class body into a slot, and collects the declarations in `declared`."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Declared:
        own = {key: value for key, value in body.items() if type(value) is Declaration}
        inherited = getattr(bases[0], 'declared', {}) if bases else {}
        rest = {key: value for key, value in body.items() if key not in own}
        return super().__new__(cls, name, bases, {**rest, '__slots__': tuple(own), 'declared': {**inherited, **own}})


class Counters(metaclass=Declared):
    """The counters of one loop while it runs, `loop.counters` (internal)."""

    declared: dict[str, Declaration]

    # The loop, and calls into the application.
    loop_count: int = count('Turns of the event loop.', 'turns')
    events: int = count('Readiness events reported by the selector.')
    stalls: int = count('Busy loops stopped, by pausing a handle that made no progress or by replacing the selector.')
    callback_errors: int = count('Exceptions raised by callbacks of the application.')
    slow_callbacks: int = count('Callbacks that took at least slow_callback= seconds.')
    slow_turns: int = count('Turns that took at least slow_callback= seconds, without the wait in the selector.')
    timers_fired: int = count('Timers that fired; each call of a repeating timer counts.')
    timers_cancelled: int = count('Timers cancelled before they fired.')

    # Listeners.
    accepts: int = count('Connections accepted.')
    accept_pauses: int = count(
        'Pauses of a listener because descriptors or memory ran out, or because accept kept failing.'
    )
    accepts_refused: int = count('Connections closed right after accept, for lack of room in the selector or memory.')

    # Admission: limits, pace and the PROXY protocol.
    refused_untrusted: int = count('Connections reset because the peer is not in a network of proxy_protocol=.')
    refused_by_hook: int = count('Connections reset because refuse= of Limits returned true.')
    refused_connections: int = count('Connections reset because connections= of Limits was reached.')
    refused_per_address: int = count('Connections reset because per_address= of Limits was reached.')
    refused_rate: int = count('Connections reset because their address exceeded connect_rate= of Limits.')
    requests_refused: int = count('Requests refused because their address exceeded request_rate= of Limits.')
    ended_lifetime: int = count('Connections reset because they reached lifetime= of Limits.')
    ended_slow: int = count('Connections reset because they were slower than min_rate= of Limits.')
    proxy_headers: int = count('PROXY headers received.')
    proxy_errors: int = count('Connections ended because their PROXY header was wrong, incomplete or late.')

    # Connections.
    requests: int = count('Requests, counted when the application marks a connection as busy.')
    requests_failed: int = count('Requests whose connection ended with an error before the application finished them.')
    connects: int = count('Outgoing connections established.')
    reads: int = count('Calls of recv on connections that returned bytes.')
    bytes_in: int = count('Bytes received, on connections and in datagrams.', 'received_bytes')
    writes: int = count('Calls of send, sendmsg and sendfile on connections.')
    bytes_out: int = count('Bytes accepted by the kernel for sending, on connections and in datagrams.', 'sent_bytes')
    short_writes: int = count('Writes that the kernel could not accept completely at once.')

    # Datagram sockets.
    datagrams_in: int = count('Datagrams received.')
    datagrams_out: int = count('Datagrams passed to the kernel.')
    datagrams_dropped: int = count(
        'Datagrams dropped before they reached the kernel: queue full, send failed or socket closed.'
    )
    datagram_errors: int = count('Datagram errors reported by the kernel: failed sends and ICMP messages.')

    incoming: int = gauge('Connections that were accepted and are open.')
    outgoing: int = gauge('Connections that were started here and are open or connecting.')

    idle_time: float = seconds('Seconds spent in the selector, waiting or not.')
    dispatch_time: float = seconds('Seconds spent reading and writing, on_data callbacks included.')
    timers_time: float = seconds('Seconds spent in timers and their callbacks.')
    soon_time: float = seconds('Seconds spent in call_soon callbacks, signal handlers and calls from threads.')
    completions_time: float = seconds('Seconds spent in on_connect, on_written, on_drain, on_close and the like.')

    # `timer_lag` is a list in the loop, and a tuple in a snapshot.
    timer_lag: Any = other(
        'Timers fired, by how late they were; the bounds are in Stats.lag_bounds.', 'timer_lag_seconds'
    )
    timer_lag_sum: float = other('Total seconds by which fired timers were late.', 'timer_lag_seconds')
    # A list in the loop, a tuple in a snapshot.
    request_seconds: Any = other(
        'Requests finished, by how long the connection was busy; the bounds are in Stats.request_bounds.',
        'request_seconds',
    )
    request_seconds_sum: float = other('Total seconds that finished requests took.', 'request_seconds')
    # In the loop, `slow` is a dict that maps each place to [count, longest seconds].
    slow: Any = other('Slow callbacks as [place, count, longest seconds], at most 20.', 'slow_callback_places')

    def __init__(self) -> None:
        for name in COUNTS + GAUGES:
            setattr(self, name, 0)
        for name in TIMES:
            setattr(self, name, 0.0)
        self.timer_lag = [0] * LAG_BUCKETS
        self.timer_lag_sum = 0.0
        self.request_seconds = [0] * (len(REQUEST_BOUNDS) + 1)
        self.request_seconds_sum = 0.0
        self.slow = {}

    def count_request(self, seconds: float) -> None:
        """Count a finished request that took this long."""
        self.request_seconds[bisect_left(REQUEST_BOUNDS, seconds)] += 1
        self.request_seconds_sum += seconds

    def count_slow(self, place: str, seconds: float) -> None:
        """Count a slow callback that is defined at `place`.

        If SLOW_PLACES other places are known already, the one with the lowest count is forgotten.
        """
        known = self.slow.get(place)
        if known is not None:
            known[0] += 1
            known[1] = max(known[1], seconds)
            return
        if len(self.slow) >= SLOW_PLACES:
            del self.slow[min(self.slow, key=self.slow.__getitem__)]
        self.slow[place] = [1, seconds]


def _of_kind(kind: str) -> tuple[str, ...]:
    return tuple(name for name, declared in Counters.declared.items() if declared.kind == kind)


COUNTS, GAUGES, TIMES = _of_kind('count'), _of_kind('gauge'), _of_kind('seconds')
