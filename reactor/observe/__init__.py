"""Monitoring of running reactors: metrics for Prometheus, a control socket for the terminal, a live page for a browser.

    from reactor import observe

    observe.serve_control(r, '/run/app.sock')      # then: python -m reactor.observe /run/app.sock
    observe.serve_page(r, port=9080)               # then: a browser at http://127.0.0.1:9080
    observe.serve_metrics(r, '127.0.0.1', 9464)    # needs prometheus_client: pip install '.[metrics]' in a checkout
    observe.Telemetry(r)                           # to OpenTelemetry; needs opentelemetry-api: pip install '.[otel]'
    observe.FlightRecorder(r, folder='/var/tmp')   # what happened around a stall, in a file for Perfetto

The first three take a *source*: a callable that returns `{name: counters}`, for one reactor (`source(r)`) or for
workers of `reactor.serve` (`workers.stats`). On a control socket with `workers=workers`, each worker answers for
itself.

Monitoring must not disturb the program: it never keeps `run` running and never delays shutdown. Its errors are logged,
and close only its own connections. Each part is imported on first use, so that a program that only reads the counters
imports neither `json` nor `prometheus_client`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .counters import combined, memory, source

if TYPE_CHECKING:
    from .control_socket import ControlSocket, serve_control
    from .live import serve_page
    from .metrics import ReactorCollector, serve_metrics
    from .recorder import FlightRecorder
    from .telemetry import Telemetry
    from .trace_events import Recording

_PARTS = {
    'ControlSocket': 'control_socket',
    'serve_control': 'control_socket',
    'serve_page': 'live',
    'ReactorCollector': 'metrics',
    'serve_metrics': 'metrics',
    'FlightRecorder': 'recorder',
    'Recording': 'trace_events',
    'Telemetry': 'telemetry',
}

# The modules that are not in the standard library, with their package and the extra that installs it.
_PACKAGES = (
    ('prometheus_client', 'prometheus_client>=0.20', 'metrics'),
    ('opentelemetry', 'opentelemetry-api>=1.20', 'otel'),
)

__all__ = [
    'ControlSocket',
    'FlightRecorder',
    'ReactorCollector',
    'Recording',
    'Telemetry',
    'combined',
    'memory',
    'serve_control',
    'serve_metrics',
    'serve_page',
    'source',
]


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return getattr(import_module(f'.{_PARTS[name]}', __name__), name)
    except ModuleNotFoundError as exc:
        for module, package, extra in _PACKAGES:
            if exc.name is not None and exc.name.split('.')[0] == module:
                cure = f"pip install '.[{extra}]' in a checkout of this library, or with pip install '{package}'"
                raise ModuleNotFoundError(
                    f'observe.{name} needs the package {package.partition(">")[0]}; install it with {cure}',
                    name=exc.name,
                ) from None
        raise
