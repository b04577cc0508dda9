"""OpenTelemetry: the counters as metrics, and a span for each slow callback. Needs the package `opentelemetry-api`.

OpenTelemetry has no conventions for event loops in Python. The names have the shape of those for Node.js
(`nodejs.eventloop.*`, semantic-conventions, docs/runtime/nodejs-metrics.md), and the counters those of the Prometheus
metrics, made from the same declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import TracerProvider

from .. import Reactor, Stats, __version__
from ..loop.checks import time_limit
from ..loop.counters import COUNTS, GAUGES
from ..loop.slow import Watch, code_of, where
from ..net.addresses import show
from ..net.ending import Connection
from .counters import utilisation

SCOPE = 'reactor'
BYTES = {'bytes_in', 'bytes_out'}
DELAYS = {'p50': 0.5, 'p90': 0.9, 'p99': 0.99, 'max': 1.0}  # share of the timers that were late by at most this value
FRESH = 0.05  # seconds: the instruments of one collection share a snapshot that is younger than this


class Telemetry(Watch):
    """Exports a reactor to OpenTelemetry until it is closed. The reader collects in a thread of its own.

    Metrics: `reactor.eventloop.utilization`, `reactor.eventloop.time` by `state`, `reactor.eventloop.delay.mean`,
    `.p50`, `.p90`, `.p99` and `.max` (how late timers fired since the last collection, rounded up to a power of two),
    `reactor.connections` by `direction`, and a counter for each count in `r.stats()`, such as `reactor.bytes_in`.
    A span `slow callback` has the attributes `code.function.name`, `code.file.path` and `code.line.number`,
    `reactor.phase`, and, for a connection, `network.peer.address`.

    Args:
        r: The reactor.
        meter_provider: Default: the global one.
        tracer_provider: Default: the global one.
        slow: Seconds. Callbacks that take at least this long become spans. None: no spans.

    Raises:
        TypeError, ValueError: `slow` is not a number of seconds above 0.
        ReactorError: This thread is not the one that runs the reactor.
        HandleClosed: The reactor is closed.
    """

    def __init__(
        self,
        r: Reactor,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        *,
        slow: float | None = 0.1,
    ) -> None:
        r.guard.check()
        self.limit: float = float('inf') if slow is None else time_limit('slow', slow)
        self.closed: bool = False
        self._r = r
        self._stats = r.stats()
        self._taken = r.kernel.clock()
        self._used = self._stats  # at the last collection
        self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
        self._make_instruments(metrics.get_meter(SCOPE, __version__, meter_provider))
        if slow is not None:
            r.phase_timer.add(self)
        r.add_exit_callback(self.close)

    def close(self) -> None:
        """Export nothing more. Closing twice does nothing."""
        if not self.closed:
            self.closed = True
            self._r.phase_timer.remove(self)

    def passed(self, phase: str, began: float, ended: float, fn: object, item: object) -> None:
        """Export a span. Called by the loop after a slow callback."""
        offset = time() - self._r.kernel.clock()
        about: dict[str, Any] = {
            'code.function.name': where(fn).rpartition(':')[0] or where(fn),
            'reactor.phase': phase,
        }
        code = code_of(fn)
        if code is not None:
            about |= {'code.file.path': code.co_filename, 'code.line.number': code.co_firstlineno}
        if isinstance(item, Connection):
            about['network.peer.address'] = show(item.peername)
        start, end = (int((moment + offset) * 1e9) for moment in (began, ended))
        self._tracer.start_span('slow callback', attributes=about, start_time=start).end(end)

    # -- instruments; their callbacks are called in the thread of a reader

    def _make_instruments(self, meter: metrics.Meter) -> None:
        def observed(
            fn: Callable[[], Iterable[Observation]],
        ) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
            def observe(options: CallbackOptions) -> Iterable[Observation]:
                return [] if self.closed else fn()

            return [observe]

        for name in COUNTS:
            unit = 'By' if name in BYTES else '1'
            meter.create_observable_counter(
                f'reactor.{name}', observed(self._count(name)), unit, Stats.declared[name].help
            )
        text = 'Connections open now, accepted (incoming) or connected (outgoing).'
        meter.create_observable_up_down_counter('reactor.connections', observed(self._connections), '1', text)
        text = 'Seconds of the event loop, by state: idle in the selector, or active.'
        meter.create_observable_counter('reactor.eventloop.time', observed(self._times), 's', text)
        text = 'Share of the time since the last collection in which the event loop was active.'
        meter.create_observable_gauge('reactor.eventloop.utilization', observed(self._utilization), '1', text)
        text = 'How late timers fired since the last collection: {}.'
        for name in 'mean', *DELAYS:
            full, unit = f'reactor.eventloop.delay.{name}', 's'
            meter.create_observable_gauge(full, observed(self._delay(name)), unit, text.format(name))

    def _now(self) -> Stats:
        """Return the counters, read at most once in a collection."""
        now = self._r.kernel.clock()
        if now - self._taken >= FRESH:
            self._stats, self._taken = self._r.stats(), now
        return self._stats

    def _count(self, name: str) -> Callable[[], Iterable[Observation]]:
        def count() -> Iterable[Observation]:
            return [Observation(getattr(self._now(), name))]

        return count

    def _connections(self) -> Iterator[Observation]:
        for name in GAUGES:
            yield Observation(getattr(self._now(), name), {'direction': name})

    def _times(self) -> Iterator[Observation]:
        now = self._now()
        yield Observation(now.idle_time, {'state': 'idle'})
        yield Observation(_active(now), {'state': 'active'})

    def _utilization(self) -> Iterator[Observation]:
        now, before = self._now(), self._used
        active, idle = _active(now) - _active(before), now.idle_time - before.idle_time
        share = utilisation(idle, active + idle)
        if share is not None:
            self._used = now
            yield Observation(share)

    def _delay(self, name: str) -> Callable[[], Iterable[Observation]]:
        before = self._stats

        def delay() -> Iterator[Observation]:
            nonlocal before
            now = self._now()
            fired = [b - a for a, b in zip(before.timer_lag, now.timer_lag, strict=True)]
            total, late = sum(fired), now.timer_lag_sum - before.timer_lag_sum
            before = now
            if total:
                yield Observation(late / total if name == 'mean' else _bound(fired, DELAYS[name] * total))

        return delay


def _active(stats: Stats) -> float:
    return stats.dispatch_time + stats.timers_time + stats.soon_time + stats.completions_time


def _bound(counts: list[int], wanted: float) -> float:
    """Return the bound below which at least `wanted` of the timers were late; twice the last bound if there is none."""
    reached = 0
    for bound, count in zip(Stats.lag_bounds, counts, strict=False):
        reached += count
        if reached >= wanted:
            return float(bound)
    return float(2 * Stats.lag_bounds[-1])
