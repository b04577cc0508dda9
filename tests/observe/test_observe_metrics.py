"""Metrics for Prometheus: promtool accepts names and units, values agree with `stats`, and a page can be scraped."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from reactor import Reactor, Stats, observe
from reactor.loop.counters import COUNTS, GAUGES
from tests.helpers.support import read_all, run_until, turns

prometheus_client = pytest.importorskip(
    'prometheus_client', reason='NOT TESTED: metrics; pip install prometheus_client'
)

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families as parse_text  # noqa: E402

from reactor.observe.families import metric_name  # noqa: E402


def exposed(source):
    """Export a source with the library, and parse the text with its parser; return {(sample, *labels): value}."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(observe.ReactorCollector(source))
    return values(parse_text(prometheus_client.generate_latest(registry).decode()))


def values(families):
    return {
        (sample.name, *(f'{name}={value}' for name, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def busy(fake, kernel):
    """A reactor whose counters are not zero."""
    for late in (0, 0.0005, 0.0015, 0.1, 1000):
        fake.call_at(kernel.time, kernel.clock)
        kernel.time += late
        turns(fake, 1)
    counters = fake.counters
    for number, name in enumerate(COUNTS + GAUGES):
        setattr(counters, name, 100 + number)
    counters.count_slow('app."on\\data:7\n', 0.5)
    return fake


def test_each_counter_and_gauge_has_a_help_text():
    with Reactor() as r:
        assert set(Stats.declared) == set(r.stats().as_dict()) > {*COUNTS, *GAUGES}
    assert all(each.help.endswith('.') and len(each.help) > 15 for each in Stats.declared.values())


def test_each_counter_is_exported_unchanged(busy):
    metrics, stats = exposed(observe.source(busy)), busy.stats()
    for name in COUNTS:
        assert metrics[f'{metric_name(name)}_total', 'worker=0'] == getattr(stats, name)
    assert metrics['reactor_connections', 'direction=incoming', 'worker=0'] == stats.incoming
    assert metrics['reactor_connections', 'direction=outgoing', 'worker=0'] == stats.outgoing
    assert metrics['reactor_handles', 'worker=0'] == stats.handles
    assert metrics['reactor_timers', 'worker=0'] == stats.timers
    assert metrics['reactor_phase_seconds_total', 'phase=idle', 'worker=0'] == stats.idle_time
    assert metrics['reactor_phase_seconds_total', 'phase=completions', 'worker=0'] == stats.completions_time


def test_the_histogram_agrees_with_stats(busy):
    metrics, stats = exposed(observe.source(busy)), busy.stats()
    for n, bound in enumerate(stats.lag_bounds):
        assert metrics['reactor_timer_lag_seconds_bucket', f'le={bound}', 'worker=0'] == sum(stats.timer_lag[: n + 1])
    assert metrics['reactor_timer_lag_seconds_bucket', 'le=+Inf', 'worker=0'] == sum(stats.timer_lag) == 5
    assert metrics['reactor_timer_lag_seconds_count', 'worker=0'] == 5
    assert metrics['reactor_timer_lag_seconds_sum', 'worker=0'] == stats.timer_lag_sum == pytest.approx(1000.102)


def test_slow_places_are_exported_with_any_characters_in_their_names(busy):
    metrics = exposed(observe.source(busy))
    assert metrics['reactor_slow_callback_places_total', 'place=app."on\\data:7\n', 'worker=0'] == 1


def test_the_memory_of_the_process_is_exported(busy):
    assert 5 << 20 < exposed(observe.source(busy))['reactor_resident_memory_bytes', 'worker=0'] < 4 << 30


def test_each_worker_has_its_own_label():
    with Reactor() as one, Reactor() as another:
        one.counters.accepts, another.counters.accepts = 5, 7

        def source():
            return {'0': observe.source(one)()['0'], '1': {**observe.source(another)()['0'], 'pid': 1 << 30}}

        metrics = exposed(source)
    assert metrics['reactor_accepts_total', 'worker=0'] == 5
    assert metrics['reactor_accepts_total', 'worker=1'] == 7
    assert ('reactor_resident_memory_bytes', 'worker=1') not in metrics  # there is no such process
    assert exposed(dict).keys() == {('reactor_info', f'version={__import__("reactor").__version__}')}


def test_registering_twice_is_refused_without_reading_the_source():
    registry = prometheus_client.CollectorRegistry()
    registry.register(observe.ReactorCollector(None))
    with pytest.raises(ValueError, match='reactor_turns'):
        registry.register(observe.ReactorCollector(None))


def scrape(r, sockets, server, path='/metrics', accept=None):
    """Send one request and return (head, body) of the response."""
    client = sockets.connect(server.address)
    lines = [f'GET {path} HTTP/1.1', 'Host: localhost', *([f'Accept: {accept}'] if accept else []), '', '']
    client.send('\r\n'.join(lines).encode())
    head, _, body = read_all(r, client).partition(b'\r\n\r\n')
    client.close()
    run_until(r, lambda: not server.open_connections)
    return head.decode(), body.decode()


def test_a_scrape_is_text_or_open_metrics_depending_on_the_accept_header(r, sockets):
    server = observe.serve_metrics(r)
    head, body = scrape(r, sockets, server)
    assert 'Content-Type: text/plain; version=0.0.4; charset=utf-8' in head
    plain = values(parse_text(body))
    # The Accept header sent by Prometheus.
    accept = 'application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1'
    head, body = scrape(r, sockets, server, accept=accept)
    assert 'Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8' in head
    assert body.endswith('# EOF\n')
    assert values(parse_open_metrics(body)).keys() == plain.keys()
    assert plain['reactor_accepts_total', 'worker=0'] == 1
    server.close()


@pytest.mark.parametrize(
    'accept', ['application/openmetrics-text; version=evil', 'text/plain; version=1.0.evil', ';,;', '=']
)
def test_the_accept_header_is_never_sent_back(r, sockets, accept):
    server = observe.serve_metrics(r)
    head, body = scrape(r, sockets, server, accept=accept)
    assert head.startswith('HTTP/1.1 200 ') and 'evil' not in head + body
    server.close()


def test_another_registry_can_be_exported_instead(r, sockets):
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter('orders', 'Orders taken.', registry=registry).inc(3)
    server = observe.serve_metrics(r, registry=registry)
    metrics = values(parse_text(scrape(r, sockets, server)[1]))
    assert metrics['orders_total',] == 3 and ('reactor_turns_total', 'worker=0') not in metrics
    server.close()


def test_another_source_can_be_exported_instead(r, sockets):
    with Reactor() as another:
        server = observe.serve_metrics(r, source=lambda: {'other': observe.source(another)()['0']})
        assert 'reactor_turns_total{worker="other"} 0.0' in scrape(r, sockets, server)[1]
    server.close()


def test_other_paths_are_not_found(r, sockets):
    server = observe.serve_metrics(r)
    assert scrape(r, sockets, server, '/metrics/')[0].startswith('HTTP/1.1 404 ')
    server.close()


def test_health_checks_fail_while_the_reactor_drains_and_are_answered_until_its_end(r, sockets):
    server = observe.serve_metrics(r)
    served = r.listen_tcp('127.0.0.1', 0, lambda conn, data: setattr(conn, 'busy', True))
    client = sockets.connect(served.address)
    client.send(b'x')
    run_until(r, lambda: r.stats().requests)
    head, body = scrape(r, sockets, server, '/healthz')
    assert head.startswith('HTTP/1.1 200 ') and body == 'ok\n'
    r.drain(60)
    run_until(r, lambda: served.closed)
    head, body = scrape(r, sockets, server, '/healthz')
    assert head.startswith('HTTP/1.1 503 ') and body == 'draining\n'
    assert 'reactor_connections{direction="incoming",worker="0"}' in scrape(r, sockets, server)[1]
    r.close()


def test_the_program_can_decide_whether_it_is_healthy(r, sockets):
    answers = [True, False, True]
    server = observe.serve_metrics(r, ready=lambda: answers.pop())
    assert scrape(r, sockets, server, '/healthz')[1] == 'ok\n'
    head, body = scrape(r, sockets, server, '/healthz')
    assert head.startswith('HTTP/1.1 503 ') and body == 'not ready\n'
    server.close()


@pytest.mark.parametrize('argument', ['source', 'ready'])
def test_an_argument_that_is_not_callable_is_refused_at_the_call(r, argument):
    with pytest.raises(TypeError, match=f'{argument} must be callable or None, not 3'):
        observe.serve_metrics(r, **{argument: 3})
    assert not r.handles()


def test_promtool_reports_nothing(busy, sockets):
    if shutil.which('promtool') is None:
        pytest.skip('NOT TESTED: promtool check metrics: apt-get install prometheus')
    server = observe.serve_metrics(busy)
    text = scrape(busy, sockets, server)[1]
    done = subprocess.run(
        ['promtool', 'check', 'metrics'], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert 'reactor_timer_lag_seconds_bucket' in text
    server.close()
