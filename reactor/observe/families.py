"""The metric families for Prometheus, made from the counters that a source returns.

Each counter that `loop/counters.py` declares becomes a metric with the same help text. Names and units follow `promtool
check metrics`. Every metric of a reactor has the label `worker`, whose value is the reactor's name in the source.
Prometheus adds up the workers, because it notices when a worker has restarted. Timer lag and the times of requests are
histograms, because a gauge would miss the worst moments between two scrapes.

Workers may run another version of this library than the process that exports their counters. A counter that a worker
lacks is left out, and a counter that is not declared here is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from .. import Stats, __version__
from ..loop.counters import COUNTS, GAUGES, TIMES
from ..net.addresses import show
from ..serve.health import STATES, Health, Snapshots
from .counters import Snapshot, memory
from .usage import accept_queue, descriptor_limit, open_descriptors

PHASES = {name: name.removesuffix('_time') for name in TIMES}
GAUGE_METRICS = 'handles', 'timers', 'draining'
DRAIN_METRICS = 'drain_connections', 'drain_seconds'  # exported while the reactor drains
# The name of each histogram, with its bounds and its help text.
HISTOGRAMS: dict[str, tuple[tuple[float, ...], str]] = {
    'timer_lag': (Stats.lag_bounds, 'How late timers fired, in seconds: the best sign of an overloaded loop.'),
    'request_seconds': (
        Stats.request_bounds,
        'How long connections were busy with a request, in seconds; failed requests are not included.',
    ),
}
REFUSALS = {
    'untrusted': 'refused_untrusted',
    'hook': 'refused_by_hook',
    'connections': 'refused_connections',
    'per_address': 'refused_per_address',
    'connect_rate': 'refused_rate',
    'request_rate': 'requests_refused',
    'no_room': 'accepts_refused',
}
PROCESS_METRICS = (
    ('reactor_resident_memory_bytes', 'Resident memory of the process.', memory),
    ('reactor_open_descriptors', 'Descriptors that the process has open.', open_descriptors),
    ('reactor_descriptor_limit', 'Descriptors that the process may have open: RLIMIT_NOFILE.', descriptor_limit),
)


def metric_name(name: str) -> str:
    """Return the Prometheus name of a counter, without the suffix for its type."""
    return f'reactor_{Stats.declared[name].metric or name}'


def families(workers: dict[str, Snapshot]) -> Iterator[Metric]:
    """Yield all metrics with their current values."""
    info = InfoMetricFamily('reactor', 'The version of the reactor library.')
    info.add_metric([], {'version': __version__})
    yield info
    for name in COUNTS:
        yield _of(CounterMetricFamily, name, workers)
    for name in GAUGE_METRICS:
        yield _of(GaugeMetricFamily, name, workers)
    draining = {worker: counters for worker, counters in workers.items() if counters.get('draining')}
    for name in DRAIN_METRICS:
        yield _of(GaugeMetricFamily, name, draining)
    text = 'Seconds spent in each phase of the turn; "idle" is the time inside the selector.'
    yield _labelled(CounterMetricFamily('reactor_phase_seconds', text, labels=['worker', 'phase']), workers, PHASES)
    text = 'Connections open now: accepted (incoming) or connected (outgoing).'
    connections = GaugeMetricFamily('reactor_connections', text, labels=['worker', 'direction'])
    yield _labelled(connections, workers, {name: name for name in GAUGES})
    text = 'Connections and requests refused, by the limit or the reason.'
    refusals = CounterMetricFamily('reactor_refusals', text, labels=['worker', 'reason'])
    yield _labelled(refusals, workers, {name: reason for reason, name in REFUSALS.items()})
    for name, (bounds, text) in HISTOGRAMS.items():
        yield _histogram(name, bounds, text, workers)
    yield _slow_places(workers)
    for title, text, read in PROCESS_METRICS:
        metric = GaugeMetricFamily(title, text, labels=['worker'])
        for worker, counters in workers.items():
            found = read(counters['pid']) if 'pid' in counters else None
            if found is not None:
                metric.add_metric([worker], found)
        yield metric
    if isinstance(workers, Snapshots):
        yield from _service(workers.health)
        yield _lines_lost(workers)
        yield from _queues(workers.listeners)


def _of(kind: Any, name: str, workers: dict[str, Snapshot]) -> Metric:
    metric: Metric = kind(metric_name(name), Stats.declared[name].help, labels=['worker'])
    for worker, counters in workers.items():
        if name in counters:
            metric.add_metric([worker], counters[name])  # type: ignore[attr-defined]  # each kind has this method
    return metric


def _labelled(metric: Any, workers: dict[str, Snapshot], names: dict[str, str]) -> Metric:
    for worker, counters in workers.items():
        for name, label in names.items():
            if name in counters:
                metric.add_metric([worker, label], counters[name])
    result: Metric = metric
    return result


def _histogram(name: str, bounds: tuple[float, ...], text: str, workers: dict[str, Snapshot]) -> Metric:
    metric = HistogramMetricFamily(metric_name(name), text, labels=['worker'])
    edges = [*map(str, bounds), '+Inf']
    for worker, counters in workers.items():
        counts = counters.get(name, ())
        if len(counts) == len(edges):
            buckets = [(edge, sum(counts[: n + 1])) for n, edge in enumerate(edges)]
            metric.add_metric([worker], buckets, counters.get(f'{name}_sum', 0.0))
    return metric


def _slow_places(workers: dict[str, Snapshot]) -> Metric:
    text = 'Slow callbacks by the place in the code where they are defined, the 20 most frequent of each worker.'
    metric = CounterMetricFamily('reactor_slow_callback_places', text, labels=['worker', 'place'])
    for worker, counters in workers.items():
        for place, count, _ in counters.get('slow', ()):
            metric.add_metric([worker, place], count)
    return metric


def _service(health: Health) -> Iterator[Metric]:
    text = 'Workers by their state; "restarting" are places whose worker has failed and is started again after a pause.'
    states = GaugeMetricFamily('reactor_workers', text, labels=['state'])
    for state in STATES:
        states.add_metric([state], health.count(state))
    yield states
    text = 'Workers that ended unexpectedly or failed to start. Each is started again, unless a reload failed.'
    restarts = CounterMetricFamily('reactor_worker_restarts', text, labels=['worker'])
    for slot, count in health.restarts.items():
        restarts.add_metric([slot], count)
    yield restarts
    text = 'Time when the process of the worker was started, in seconds since 1970.'
    started = GaugeMetricFamily('reactor_worker_start_time_seconds', text, labels=['worker'])
    text = 'Seconds since the last report of the worker. A worker reports every second.'
    ages = GaugeMetricFamily('reactor_worker_report_age_seconds', text, labels=['worker'])
    for worker in health.workers:
        if worker.started is not None:
            started.add_metric([worker.name], worker.started)
        if worker.report_age is not None:
            ages.add_metric([worker.name], worker.report_age)
    yield from (started, ages)
    text = '1 while the whole service shuts down, otherwise 0.'
    yield GaugeMetricFamily('reactor_service_draining', text, value=int(health.draining))
    text = '0 after a reload has failed, until the next one begins: workers of the old program still serve.'
    yield GaugeMetricFamily('reactor_last_reload_successful', text, value=int(not health.reload_failed))


def _lines_lost(workers: Snapshots) -> Metric:
    text = 'Log lines that could not be written, because the disk was full or the reader of the pipe did not read.'
    lost = CounterMetricFamily('reactor_log_lines_lost', text, labels=['worker'])
    lost.add_metric(['parent'], workers.health.log_lines_lost)
    for worker, counters in workers.items():
        lost.add_metric([worker], counters.get('log_lines_lost', 0))
    return lost


def _queues(listeners: list[tuple[str, Any]]) -> Iterator[Metric]:
    labels = ['worker', 'address']
    text = 'Connections that wait to be accepted.'
    lengths = GaugeMetricFamily('reactor_listen_queue_connections', text, labels=labels)
    text = 'Connections that may wait to be accepted; when more wait, the kernel drops new ones.'
    limits = GaugeMetricFamily('reactor_listen_queue_limit', text, labels=labels)
    text = 'Segments that the kernel dropped on a listening socket, because its queue was full or it was closing.'
    drops = CounterMetricFamily('reactor_listen_drops', text, labels=labels)
    for worker, sock in listeners:
        queue = accept_queue(sock)
        if queue is not None:
            where = [worker, show(sock.getsockname())]
            lengths.add_metric(where, queue.length)
            limits.add_metric(where, queue.limit)
            drops.add_metric(where, queue.drops)
    yield from (lengths, limits, drops)
