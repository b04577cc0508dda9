"""Where each counter is declared, with its help text: `stats()`, metrics, tables and COUNTERS.md are made from it.

Each part of the reactor counts what it does itself, on the attribute, so that counting is one addition. The words are
libuv's (`loop_count`, `events`, `idle_time`), else redis'.
"""

from __future__ import annotations

from typing import Any

LAG_BUCKETS = 16  # powers of two of 1/1024 s: 1 ms, 2 ms ... 16 s, more
SLOW_PLACES = 20  # callbacks of which it is remembered how slow they were


class Declaration:
    """What one attribute of `Counters` or `Stats` means. `kind` is 'count', 'gauge', 'seconds' or 'list'."""

    __slots__ = ('help', 'kind', 'metric')

    def __init__(self, kind: str, help: str, metric: str) -> None:
        self.kind: str = kind
        self.help: str = help
        self.metric: str = metric  # its name at Prometheus, where that differs


def count(help: str, metric: str = '') -> Any:
    """A number that only grows."""
    return Declaration('count', help, metric)


def gauge(help: str) -> Any:
    """A number as it is now."""
    return Declaration('gauge', help, 'connections')


def seconds(help: str) -> Any:
    """Time spent in a phase of the turn."""
    return Declaration('seconds', help, 'phase_seconds')


def other(help: str, metric: str) -> Any:
    """What is filled by code of its own."""
    return Declaration('other', help, metric)


class Declared(type):
    """Makes a slot of each declaration in the body of a class, and collects them in `declared`."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Declared:
        own = {key: value for key, value in body.items() if type(value) is Declaration}
        inherited = getattr(bases[0], 'declared', {}) if bases else {}
        rest = {key: value for key, value in body.items() if key not in own}
        return super().__new__(cls, name, bases, {**rest, '__slots__': tuple(own), 'declared': {**inherited, **own}})


class Counters(metaclass=Declared):
    """The running numbers of one loop, `loop.counters` (internal)."""

    declared: dict[str, Declaration]

    # The loop, and calls into the application.
    loop_count: int = count('Turns of the loop.', 'turns')
    events: int = count('Events that the selector reported.')
    stalls: int = count(
        'Times that a spin was stopped: a handle that could do nothing was parked, or the selector was replaced.'
    )
    callback_errors: int = count('Exceptions that callbacks of the application raised.')
    slow_callbacks: int = count('Callbacks that took as long as slow_callback= or longer.')
    slow_turns: int = count('Turns that took as long as slow_callback= or longer, the wait in the selector apart.')
    timers_fired: int = count('Timers that fired, each beat of a repeating one.')
    timers_cancelled: int = count('Timers cancelled before they fired.')

    # Listeners.
    accepts: int = count('Connections accepted.')
    accept_pauses: int = count(
        'Times that a listener paused: descriptors or memory had run out, or accept kept failing.'
    )
    accepts_refused: int = count('Connections accepted and closed at once, because the selector had no room for them.')

    # Admission: limits, pace and the PROXY protocol.
    refused_untrusted: int = count(
        'Connections reset at once: from outside the networks from which a PROXY header is taken.'
    )
    refused_by_hook: int = count('Connections reset at once: the hook of Limits said so.')
    refused_connections: int = count('Connections reset at once: as many as Limits allows were open.')
    refused_per_address: int = count(
        'Connections reset at once: as many as Limits allows were open from their address.'
    )
    refused_rate: int = count('Connections reset at once: their address connects more often than Limits allows.')
    requests_refused: int = count('Requests that Limits did not allow: their address asks too often.')
    ended_lifetime: int = count('Connections ended because they lasted as long as Limits allows.')
    ended_slow: int = count('Connections ended because they sent, or took, less than Limits asks for.')
    proxy_headers: int = count('PROXY headers read.')
    proxy_errors: int = count('Connections ended because their PROXY header was wrong, cut short or too late.')

    # Connections.
    requests: int = count('Requests that applications said they owe an answer to: busy of a connection became True.')
    connects: int = count('Outgoing connections established.')
    reads: int = count('Calls to recv that brought bytes.')
    bytes_in: int = count('Bytes received on connections.', 'received_bytes')
    writes: int = count('Calls to send or sendmsg on connections.')
    bytes_out: int = count('Bytes that the kernel took for sending on connections.', 'sent_bytes')
    short_writes: int = count('Calls to send that could not take all that waited.')

    # Datagram sockets.
    datagrams_in: int = count('Datagrams received.')
    datagrams_out: int = count('Datagrams handed to the kernel.')
    datagrams_dropped: int = count(
        'Datagrams never handed to the kernel: the queue was full, a send failed, the socket closed.'
    )
    datagram_errors: int = count('Errors that the kernel reported about datagrams: a failed send, an ICMP message.')

    incoming: int = gauge('Connections open now that were accepted.')
    outgoing: int = gauge('Connections open now that were made from here.')

    idle_time: float = seconds('Seconds inside the selector, waiting or not.')
    dispatch_time: float = seconds('Seconds of reading and writing, on_data included.')
    timers_time: float = seconds('Seconds of timers and their callbacks.')
    soon_time: float = seconds('Seconds of call_soon, signals, and calls from threads.')
    completions_time: float = seconds('Seconds of on_connect, on_written, on_drain, on_close and other completions.')

    # A list that the loop counts in; in a snapshot a tuple.
    timer_lag: Any = other('Timers that were late by less than Stats.lag_bounds seconds each.', 'timer_lag_seconds')
    timer_lag_sum: float = other('Seconds that all fired timers together were late.', 'timer_lag_seconds')
    # In the loop a dict: place -> [count, longest].
    slow: Any = other('[place, count, longest] of the slowest 20 callbacks.', 'slow_callback_places')

    def __init__(self) -> None:
        for name in COUNTS + GAUGES:
            setattr(self, name, 0)
        for name in TIMES:
            setattr(self, name, 0.0)
        self.timer_lag = [0] * LAG_BUCKETS
        self.timer_lag_sum = 0.0
        self.slow = {}

    def count_slow(self, place: str, seconds: float) -> None:
        """A callback written at `place` was slow. Of more than SLOW_PLACES, the rarest is forgotten."""
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
