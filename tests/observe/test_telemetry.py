"""OpenTelemetry: metrics and spans, as the exporters of the SDK see them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from reactor import Reactor
from reactor.loop.counters import COUNTS
from tests.helpers.support import FakeKernel, run_until

pytest.importorskip('opentelemetry.sdk', reason='NOT TESTED: OpenTelemetry: pip install opentelemetry-sdk')

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reactor.observe import Telemetry

STALL = 0.03  # seconds


class Exporters:
    """Providers whose output stays in memory."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def metrics(self):
        """Return {name: {attributes: value}}; an instrument without attributes has the key ()."""
        data = self.reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data is not None else []:
            for scope in resource.scope_metrics:
                assert scope.scope.name == 'reactor'
                for metric in scope.metrics:
                    points = {tuple(point.attributes.items()): point.value for point in metric.data.data_points}
                    found[metric.name] = points
        return found

    def spans(self):
        return self.exporter.get_finished_spans()


@pytest.fixture
def exporters():
    exporters = Exporters()
    yield exporters
    exporters.meters.shutdown()
    exporters.tracers.shutdown()


@pytest.fixture
def telemetry(r, exporters):
    telemetry = Telemetry(r, exporters.meters, exporters.tracers, slow=STALL / 2)
    yield telemetry
    telemetry.close()


def wait():
    time.sleep(0.06)  # the instruments of a collection share a snapshot for 50 ms


def test_each_counter_is_exported_with_its_value(r, sockets, telemetry, exporters):
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data * 2))
    client = sockets.track(socket.create_connection(server.address))
    client.send(b'hello')
    run_until(r, lambda: r.stats().bytes_out == 10)
    wait()
    found = exporters.metrics()
    stats = r.stats()
    for name in COUNTS:
        assert found[f'reactor.{name}'] == {(): getattr(stats, name)}, name
    assert found['reactor.bytes_in'] == {(): 5} and found['reactor.bytes_out'] == {(): 10}
    assert found['reactor.connections'] == {(('direction', 'incoming'),): 1, (('direction', 'outgoing'),): 0}
    client.close()
    run_until(r, lambda: not r.stats().incoming)
    server.close()


def test_the_time_and_the_utilization_of_the_loop_are_exported():
    kernel, exporters = FakeKernel(), Exporters()
    with Reactor(kernel=kernel) as r:
        Telemetry(r, exporters.meters, exporters.tracers)

        def busy(seconds):
            kernel.time += seconds

        r.call_later(3.0, busy, 1.0)
        r.run()
        found = exporters.metrics()
        times = found['reactor.eventloop.time']
        assert times[(('state', 'active'),)] == pytest.approx(1.0)
        assert times[(('state', 'idle'),)] == pytest.approx(3.0)
        assert found['reactor.eventloop.utilization'] == {(): pytest.approx(0.25)}
        r.call_later(0.0, busy, 1.0)
        r.run()
        assert exporters.metrics()['reactor.eventloop.utilization'] == {(): pytest.approx(1.0)}, 'since the last time'


def test_the_delay_is_that_of_the_timers_since_the_last_collection():
    kernel, exporters = FakeKernel(), Exporters()
    with Reactor(kernel=kernel) as r:
        Telemetry(r, exporters.meters, exporters.tracers)

        def late(seconds, count=1):
            for _ in range(count):
                r.call_later(0.5, int)
            kernel.time += 0.5 + seconds
            r.run()

        late(0.0001, 90)
        late(0.3, 10)
        found = exporters.metrics()
        delay = {name: found[f'reactor.eventloop.delay.{name}'][()] for name in ('mean', 'p50', 'p90', 'p99', 'max')}
        assert delay['mean'] == pytest.approx((90 * 0.0001 + 10 * 0.3) / 100)
        assert 0.0001 <= delay['p50'] == delay['p90'] < 0.002
        assert 0.3 <= delay['p99'] == delay['max'] <= 0.6
        kernel.time += 1
        assert 'reactor.eventloop.delay.max' not in exporters.metrics(), 'no timer has fired since'
        late(0.0001)
        assert exporters.metrics()['reactor.eventloop.delay.max'][()] < 0.002


def stall(*args):
    time.sleep(STALL)


def test_a_slow_callback_is_a_span(r, sockets, telemetry, exporters):
    began = time.time()
    r.call_soon(partial(stall, 1))
    r.call_soon(int)
    run_until(r, exporters.spans)
    (span,) = exporters.spans()
    assert span.name == 'slow callback'
    assert began - 0.01 <= span.start_time / 1e9 <= time.time() - STALL + 0.01
    assert STALL <= (span.end_time - span.start_time) / 1e9 < 10 * STALL
    assert dict(span.attributes) == {
        'code.function.name': f'{__name__}.stall',
        'code.file.path': str(Path(__file__)),
        'code.line.number': stall.__code__.co_firstlineno,
        'reactor.phase': 'soon',
    }


def test_the_span_of_a_connection_has_the_address_of_the_peer(r, sockets, telemetry, exporters):
    server = r.listen_tcp('127.0.0.1', 0, stall)
    client = sockets.track(socket.create_connection(server.address))
    client.send(b'x')
    run_until(r, exporters.spans)
    host, port = client.getsockname()
    about = exporters.spans()[0].attributes
    assert about['network.peer.address'] == f'{host}:{port}' and about['reactor.phase'] == 'dispatch'
    client.close()
    run_until(r, lambda: not r.stats().incoming)
    server.close()


def test_without_slow_nothing_is_timed(r, exporters):
    telemetry = Telemetry(r, exporters.meters, exporters.tracers, slow=None)
    assert not r.phase_timer.watching
    r.call_soon(stall)
    r.run_once(0)
    assert exporters.spans() == ()
    telemetry.close()


def test_after_close_nothing_is_exported(r, telemetry, exporters):
    telemetry.close()
    telemetry.close()
    r.call_soon(stall)
    r.run_once(0)
    assert exporters.spans() == ()
    assert not any(exporters.metrics().values())


def test_a_reader_in_another_thread_collects_while_the_loop_runs(exporters):
    class Exporter:
        def __init__(self):
            self.got = []

        def export(self, data, **options):
            self.got.append(data)

        def shutdown(self, *args, **options):
            pass

        force_flush = shutdown
        _preferred_temporality = None
        _preferred_aggregation = None

    exporter = Exporter()
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=20)
    meters = MeterProvider([reader])
    with Reactor(debug=True) as r:
        Telemetry(r, meters, exporters.tracers)
        r.call_every(0.001, int).unref()
        r.call_later(5, r.stop).unref()
        run_until(r, lambda: len(exporter.got) >= 3)
    meters.shutdown()
    names = {m.name for d in exporter.got for x in d.resource_metrics for s in x.scope_metrics for m in s.metrics}
    assert {'reactor.loop_count', 'reactor.eventloop.utilization'} <= names


@pytest.mark.parametrize('wrong, error', [(0, ValueError), ('1', TypeError)])
def test_a_wrong_limit_is_refused(r, exporters, wrong, error):
    with pytest.raises(error, match='slow must be'):
        Telemetry(r, exporters.meters, exporters.tracers, slow=wrong)
    assert not r.phase_timer.watching


def test_without_the_package_the_error_says_how_to_install_it():
    code = 'import sys; sys.modules["opentelemetry"] = None; from reactor import observe; observe.Telemetry'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "observe.Telemetry needs the package opentelemetry-api; install it with pip install '.[otel]'" in done.stderr
