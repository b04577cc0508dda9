"""Metrics for Prometheus and health checks, through `prometheus_client` (the extra `metrics`).

The cost of a scrape does not depend on the number of open connections. That is why `ProcessCollector` of
`prometheus_client` is not included: it lists all descriptors, which takes 37 ms for 18,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .. import Listener, Reactor
from ..net.options import check_callback
from .counters import Source, health_of
from .counters import source as source_of
from .families import families
from .responder import Request, listen_http

OPEN_METRICS = 'application/openmetrics-text; version=1.0.0'


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
        return list(families({}))

    def collect(self) -> Iterable[Metric]:
        """Return all metrics with their current values."""
        return list(families(self._source()))


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
    """Serve /metrics for Prometheus, and /ready and /live for health checks, from the reactor's own loop.

    /ready asks whether clients should be sent here. It answers 200 `ok`, or 503 with the reason: `draining` after
    `r.drain` and while all workers shut down, `no worker` when no worker serves (all have failed, are starting or do
    not report), or `not ready` when `ready` returns False. Use it for load balancers and for Kubernetes' readiness
    probe. /healthz is another name for it.

    /live asks whether a restart would help. It answers 200 as long as the loop runs, also during a drain, and 503
    `hung` only when no worker reports and `hang_timeout` of `serve.run` is None, so that none is replaced. Use it for
    Kubernetes' liveness probe.

    A scrape blocks the loop for about a millisecond for each worker.

    Args:
        r: The reactor that serves the pages.
        host: Host name or address to listen on, as for `listen_tcp`.
        port: Port number; 0 picks a free one, which is then in `address` of the returned listener.
        source: Source of the counters. Default: the counters of `r`. With `workers.stats`, the health checks are about
            the workers; with another source, only about `r`.
        registry: Metrics to serve instead of the reactor's. To serve both, register a `ReactorCollector` in it.
        hosts: Host names that requests may use on loopback, besides `localhost` and addresses.
        ready: Called without arguments for each request to /ready; returns whether the program can serve clients now.
            It can return False while a database is unreachable, for example. It is not called while a worker or the
            drain is the reason for 503.

    Returns:
        The listener. It does not keep `run` running, and a drain leaves it open.

    Raises:
        OSError: As for `listen_tcp`.
        TypeError: `source` or `ready` is not callable, or `hosts` is not a list.
    """
    check_callback('source', source)
    check_callback('ready', ready)
    source = source or source_of(r)
    if registry is None:
        registry = CollectorRegistry()
        registry.register(ReactorCollector(source))
    return listen_http(r, host, port, _Pages(r, source, registry, ready).answer, hosts=hosts)


class _Pages:
    __slots__ = ('_r', '_ready', '_registry', '_source')

    def __init__(
        self, r: Reactor, source: Source, registry: CollectorRegistry, ready: Callable[[], bool] | None
    ) -> None:
        self._r = r
        self._source = source
        self._registry = registry
        self._ready = ready

    def answer(self, request: Request) -> None:
        if request.path == '/metrics':
            encode, kind = choose_encoder(_accepted(request.headers.get('accept', '')))
            request.reply(200, kind, encode(self._registry))
        elif request.path in ('/ready', '/healthz'):
            _reply(request, self._not_ready())
        elif request.path == '/live':
            _reply(request, self._not_alive())
        else:
            request.reply(404, 'text/plain', b'not found; the pages are /metrics, /ready and /live\n')

    def _not_ready(self) -> str | None:
        health = health_of(self._source())
        if self._r.draining or (health is not None and health.draining):
            return 'draining'
        if health is not None and not health.ready:
            return 'no worker'
        return 'not ready' if self._ready is not None and not self._ready() else None

    def _not_alive(self) -> str | None:
        health = health_of(self._source())
        return 'hung' if health is not None and health.stuck else None


def _reply(request: Request, trouble: str | None) -> None:
    status = 200 if trouble is None else 503
    request.reply(status, 'text/plain', f'{trouble or "ok"}\n'.encode())


def _accepted(accept: str) -> str:
    # Return a constant, because `prometheus_client` raises for invalid versions in the header and echoes valid ones.
    kinds = [part.partition(';')[0].strip().lower() for part in accept.split(',')]
    return OPEN_METRICS if 'application/openmetrics-text' in kinds else ''
