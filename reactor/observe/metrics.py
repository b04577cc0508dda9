"""Metrics for Prometheus, through `prometheus_client`: `pip install 'selectors-reactor[metrics]'`.

Each counter that `loop/counters.py` declares becomes a metric with the same help text. Names and units follow `promtool
check metrics`. Every metric has the label `worker`, whose value is the reactor's name in the source. Prometheus adds up
the workers, because it notices when a worker has restarted. Timer lag is a histogram, because a gauge would miss the
worst moments between two scrapes.

The cost of a scrape does not depend on the number of open connections. That is why `ProcessCollector` of
`prometheus_client` is not included: it lists all descriptors, which takes 18 ms for 18,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .. import Listener, Reactor, Stats, __version__
from ..loop.counters import COUNTS, GAUGES, TIMES
from ..net.options import check_callback
from .counters import Snapshot, Source, memory
from .counters import source as source_of
from .responder import Request, listen_http

OPEN_METRICS = 'application/openmetrics-text; version=1.0.0'
PHASES = {name: name.removesuffix('_time') for name in TIMES}


class ReactorCollector(Collector):
    """The counters of a source, for a `prometheus_client.CollectorRegistry`.

    Args:
        source: Source of the counters, called at each scrape, in the thread that serves the scrape.
            `observe.source(r)` can only be called in the thread that runs the reactor. So use `serve_metrics` instead
            of `prometheus_client.start_http_server`, which serves in another thread.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values. The registry calls this when the collector is registered."""
        return list(_metrics({}))

    def collect(self) -> Iterable[Metric]:
        """Return all metrics with their current values."""
        return list(_metrics(self._source()))


def metric_name(name: str) -> str:
    """Return the Prometheus name of a counter, without the suffix for its type."""
    return f'reactor_{Stats.declared[name].metric or name}'


def _metrics(workers: dict[str, Snapshot]) -> Iterator[Metric]:
    info = InfoMetricFamily('reactor', 'The version of the reactor library.')
    info.add_metric([], {'version': __version__})
    yield info
    for name in COUNTS:
        metric = CounterMetricFamily(metric_name(name), Stats.declared[name].help, labels=['worker'])
        for worker, counters in workers.items():
            metric.add_metric([worker], counters[name])
        yield metric
    yield _phases(workers)
    yield _timer_lag(workers)
    yield _slow_places(workers)
    yield from _gauges(workers)


def _phases(workers: dict[str, Snapshot]) -> Metric:
    text = 'Seconds spent in each phase of the turn; "idle" is the time inside the selector.'
    metric = CounterMetricFamily('reactor_phase_seconds', text, labels=['worker', 'phase'])
    for worker, counters in workers.items():
        for name, phase in PHASES.items():
            metric.add_metric([worker, phase], counters[name])
    return metric


def _timer_lag(workers: dict[str, Snapshot]) -> Metric:
    text = 'How late timers fired, in seconds: the best sign of an overloaded loop.'
    metric = HistogramMetricFamily('reactor_timer_lag_seconds', text, labels=['worker'])
    bounds = [*map(str, Stats.lag_bounds), '+Inf']
    for worker, counters in workers.items():
        counts = counters['timer_lag']
        buckets = [(bound, sum(counts[: n + 1])) for n, bound in enumerate(bounds)]
        metric.add_metric([worker], buckets, counters['timer_lag_sum'])
    return metric


def _slow_places(workers: dict[str, Snapshot]) -> Metric:
    text = 'Slow callbacks by the place in the code where they are defined, the 20 most frequent of each worker.'
    metric = CounterMetricFamily('reactor_slow_callback_places', text, labels=['worker', 'place'])
    for worker, counters in workers.items():
        for place, count, _ in counters['slow']:
            metric.add_metric([worker, place], count)
    return metric


def _gauges(workers: dict[str, Snapshot]) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        'reactor_connections', 'Connections open now: accepted (incoming) or connected (outgoing).',
        labels=['worker', 'direction'],
    )  # fmt: skip
    for worker, counters in workers.items():
        for direction in GAUGES:
            connections.add_metric([worker, direction], counters[direction])
    yield connections
    for name in ('handles', 'timers'):
        metric = GaugeMetricFamily(metric_name(name), Stats.declared[name].help, labels=['worker'])
        for worker, counters in workers.items():
            metric.add_metric([worker], counters[name])
        yield metric
    resident = GaugeMetricFamily('reactor_resident_memory_bytes', 'Resident memory of the process.', labels=['worker'])
    for worker, counters in workers.items():
        taken = memory(counters['pid'])
        if taken is not None:
            resident.add_metric([worker], taken)
    yield resident


def serve_metrics(
    r: Reactor,
    host: str | None = '127.0.0.1',
    port: int = 0,
    source: Source | None = None,
    *,
    registry: CollectorRegistry | None = None,
    hosts: Iterable[str] = (),
    ready: Callable[[], bool] | None = None,
) -> Listener:
    """Serve /metrics for Prometheus and /healthz for health checks, from the reactor's own loop.

    /healthz answers 200 `ok`, or 503 with `draining` after `r.drain`, or with `not ready` when `ready` returns False.
    A scrape blocks the loop for about a millisecond.

    Args:
        r: The reactor that serves the pages.
        host: Host name or address to listen on, as for `listen_tcp`.
        port: Port number; 0 picks a free one, which is then in `address` of the returned listener.
        source: Source of the counters. Default: the counters of `r`.
        registry: Metrics to serve instead of the reactor's. To serve both, register a `ReactorCollector` in it.
        hosts: Host names that requests may use on loopback, besides `localhost` and addresses.
        ready: Called without arguments for each request to /healthz; returns whether the program can serve clients now.
            It can return False while a database is unreachable, for example.

    Returns:
        The listener. It does not keep `run` running, and a drain leaves it open.

    Raises:
        OSError: As for `listen_tcp`.
        TypeError: `source` or `ready` is not callable, or `hosts` is not a list.
    """
    check_callback('source', source)
    check_callback('ready', ready)
    if registry is None:
        registry = CollectorRegistry()
        registry.register(ReactorCollector(source or source_of(r)))
    return listen_http(r, host, port, _Pages(r, registry, ready).answer, hosts=hosts)


class _Pages:
    __slots__ = ('_r', '_ready', '_registry')

    def __init__(self, r: Reactor, registry: CollectorRegistry, ready: Callable[[], bool] | None) -> None:
        self._r = r
        self._registry = registry
        self._ready = ready

    def answer(self, request: Request) -> None:
        if request.path == '/metrics':
            encode, kind = choose_encoder(_accepted(request.headers.get('accept', '')))
            request.reply(200, kind, encode(self._registry))
        elif request.path == '/healthz':
            status, health = self._health()
            request.reply(status, 'text/plain', health)
        else:
            request.reply(404, 'text/plain', b'not found; the pages are /metrics and /healthz\n')

    def _health(self) -> tuple[int, bytes]:
        if self._r.draining:
            return 503, b'draining\n'
        if self._ready is not None and not self._ready():
            return 503, b'not ready\n'
        return 200, b'ok\n'


def _accepted(accept: str) -> str:
    # Return a constant, because `prometheus_client` raises for invalid versions in the header and echoes valid ones.
    kinds = [part.partition(';')[0].strip().lower() for part in accept.split(',')]
    return OPEN_METRICS if 'application/openmetrics-text' in kinds else ''
