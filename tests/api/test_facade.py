"""The `Reactor` object: the names and arguments of its methods, calls from other threads, starting and closing."""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import ssl
import tempfile
import threading
import weakref
from inspect import signature
from typing import Any

import pytest

import reactor
from reactor import HandleClosed, IdleTimeout, Reactor, ReactorError, Stats, Stream
from reactor.kernel import Kernel
from reactor.kernel.platforms import ABSTRACT_PATHS, AF_UNIX
from reactor.kinds import CheckedStream, CheckedTLSStream
from reactor.net.tls import TLSStream
from tests.helpers.support import SELECTORS, FakeKernel, Log, end, in_thread, reset, run_until, tcp_sockets, turns

needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')

API = {
    # running
    *('run', 'run_once', 'stop', 'close', 'now', 'timeout', 'fileno'),
    *('drain', 'draining', 'add_drain_callback'),
    *('add_exit_callback', 'stats', 'handles', 'why_alive'),
    # calls and timers
    *('call_soon', 'call_soon_threadsafe', 'call_later', 'call_at', 'call_every'),
    # streams
    *('listen_tcp', 'listen_unix', 'connect_tcp', 'connect_unix', 'adopt', 'open_fd'),
    # datagrams
    *('bind_udp', 'connect_udp'),
    # signals and threads
    *('add_signal_handler', 'remove_signal_handler', 'clear_signal_handlers', 'run_in_thread'),
    # names, turns, descriptors
    *('resolve', 'resolve_address', 'idle', 'notifier', 'watch_fd'),
    # processes and paths
    *('spawn', 'watch_path'),
}
# Attributes that the transports use. They are internal, as the changelog says.
PARTS = {
    'watchers',
    'timers',
    'completions',
    'counters',
    'failures',
    'guard',
    'kernel',
    'look_ups',
    'phase_timer',
    'spins',
    'streams',
}


def nothing(*args: Any) -> None:
    pass


def in_words(value: Any) -> str:
    """Return a parameter's id for the name of a test."""
    if isinstance(value, dict):
        return ','.join(f'{name}={each}' for name, each in value.items())
    if isinstance(value, type):
        return value.__name__
    return repr(value)[:20]


# -- names


def test_a_reactor_has_only_its_api_and_its_parts_as_public_names():
    with Reactor() as r:
        assert {name for name in dir(r) if not name.startswith('_')} == API | PARTS


def test_the_package_exports_each_name_in_all():
    assert sorted(reactor.__all__) == sorted(set(reactor.__all__))
    for name in reactor.__all__:
        assert getattr(reactor, name) is not None


@pytest.mark.parametrize('name', sorted(API - {'now'}))
def test_every_method_has_a_docstring(name):
    assert getattr(Reactor, name).__doc__


def test_the_repr_of_each_kind_of_handle_and_why_alive_describe_it(sockets):
    gate = threading.Event()
    with Reactor() as r:
        ours, theirs = sockets()
        handles = [
            r.listen_tcp('127.0.0.1', 0),
            r.adopt(ours),
            r.add_signal_handler(2, nothing),
            r.run_in_thread(gate.wait, 10),
            r.idle(nothing),
            r.notifier(nothing),
            r.watch_fd(theirs, reactor.READ, nothing),
            r.resolve('127.0.0.1', nothing),
        ]
        why = r.why_alive()
        for handle in handles:
            assert any(line.startswith(f'{handle!r}: since ') and 'waits for' in line for line in why), handle
            handle.unref()
        r.run_once(0)
        assert not any('waits for' in line for line in r.why_alive())
        for handle in handles:
            if not handle.closed:
                handle.ref()
                assert r.watchers.is_referenced(handle)
        gate.set()
    assert all(handle.closed for handle in handles)
    for handle in handles:
        handle.close()
        handle.unref()
        handle.ref()
        assert 'closed' in repr(handle).lower()
    assert r.watchers.referenced == 0 and r.handles() == []


# -- bad arguments


NOT_CALLABLE = ['on_data', 'on_connect', 'on_eof', 'on_drain', 'on_close', 'on_error']

BAD_LIMITS: list[tuple[dict[str, Any], type[Exception]]] = [
    *(({name: 'x'}, TypeError) for name in NOT_CALLABLE),
    ({'unknown_option': 1}, TypeError),
    ({'high_water': -1}, ValueError),
    ({'high_water': 10, 'low_water': 11}, ValueError),
    ({'high_water': 'x'}, TypeError),
    ({'read_size': 0}, ValueError),
    ({'max_buffered': 0}, ValueError),
    ({'linger': math.nan}, ValueError),
    ({'linger': -1}, ValueError),
    ({'idle_timeout': math.nan}, ValueError),
    ({'idle_timeout': math.inf}, ValueError),
    ({'read_timeout': -1}, ValueError),
    ({'write_timeout': 'x'}, TypeError),
]

BAD_TIMEOUTS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({'timeout': math.nan}, ValueError),
    ({'timeout': math.inf}, ValueError),
    ({'timeout': -1}, ValueError),
    ({'timeout': '1'}, TypeError),
]

BAD_PORTS: list[tuple[Any, type[Exception]]] = [
    ('80', TypeError),
    (80.0, TypeError),
    (None, TypeError),
    (True, TypeError),
    (-1, ValueError),
    (65536, ValueError),
]

BAD_HOSTS: list[tuple[Any, type[Exception]]] = [
    ('', ValueError),
    ('a\0b', ValueError),
    (b'localhost', TypeError),
    (1, TypeError),
    (('127.0.0.1', 80), TypeError),
]

BAD_PATHS: list[tuple[Any, type[Exception]]] = [
    ('', ValueError),
    (b'', ValueError),
    (1, TypeError),
    (None, TypeError),
    ('a\0b', ValueError),
    ('x' * 200, OSError),
]


def refused_at_the_call(r: Reactor, error: Any, fn: Any, *args: Any, **options: Any) -> None:
    """Check that the call raises and leaves no handle, timer, completion or counted connection."""
    with pytest.raises(error):
        fn(*args, **options)
    assert r.handles() == [] and len(r.timers) == 0 and not r.completions
    assert (r.stats().outgoing, r.stats().incoming) == (0, 0)


@pytest.mark.parametrize(('options', 'error'), BAD_LIMITS + BAD_TIMEOUTS, ids=in_words)
@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
def test_connect_tcp_refuses_bad_options_at_the_call(fake, host, options, error):
    refused_at_the_call(fake, error, fake.connect_tcp, host, 9, **options)


@pytest.mark.parametrize(('port', 'error'), BAD_PORTS, ids=repr)
def test_connect_tcp_and_listen_tcp_refuse_a_bad_port_at_the_call(fake, port, error):
    refused_at_the_call(fake, error, fake.connect_tcp, '127.0.0.1', port)
    refused_at_the_call(fake, error, fake.listen_tcp, '127.0.0.1', port)


@pytest.mark.parametrize(('host', 'error'), BAD_HOSTS, ids=repr)
def test_connect_tcp_and_listen_tcp_refuse_a_bad_host_at_the_call(fake, host, error):
    refused_at_the_call(fake, error, fake.connect_tcp, host, 9)
    refused_at_the_call(fake, error, fake.listen_tcp, host, 0)


def test_connecting_to_no_host_is_refused_at_the_call(fake):
    refused_at_the_call(fake, ValueError, fake.connect_tcp, None, 9)


@pytest.mark.parametrize('family', [-1, 99, 'x', None, AF_UNIX if AF_UNIX > 0 else 1])
def test_connect_tcp_refuses_an_invalid_family_at_the_call(fake, family):
    refused_at_the_call(fake, ValueError, fake.connect_tcp, '127.0.0.1', 9, family=family)


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
@pytest.mark.parametrize(
    'local_address',
    ['127.0.0.1', 5, ('127.0.0.1',), ('127.0.0.1', '0'), ('127.0.0.1', -1), ('127.0.0.1', 65536), (None, 0), (b'x', 0)],
    ids=repr,
)
def test_connect_tcp_refuses_a_bad_local_address_at_the_call(fake, host, local_address):
    refused_at_the_call(fake, (TypeError, ValueError), fake.connect_tcp, host, 9, local_address=local_address)


@needs_unix
@pytest.mark.parametrize(('options', 'error'), BAD_LIMITS + BAD_TIMEOUTS, ids=in_words)
def test_connect_unix_refuses_bad_options_at_the_call(fake, options, error):
    refused_at_the_call(fake, error, fake.connect_unix, '/nowhere', **options)


@needs_unix
@pytest.mark.parametrize(('path', 'error'), BAD_PATHS, ids=in_words)
def test_connect_unix_and_listen_unix_refuse_a_bad_path_at_the_call(fake, path, error):
    refused_at_the_call(fake, error, fake.connect_unix, path)
    refused_at_the_call(fake, error, fake.listen_unix, path)


@needs_unix
@pytest.mark.skipif(ABSTRACT_PATHS, reason='this platform has abstract Unix sockets')
def test_abstract_paths_are_refused_at_the_call_where_the_platform_has_none(fake):
    refused_at_the_call(fake, OSError, fake.connect_unix, '@reactor')


BAD_LISTENERS: list[tuple[dict[str, Any], type[Exception]]] = [
    *BAD_LIMITS,
    ({'on_accept_error': 'x'}, TypeError),
    ({'backlog': 'x'}, TypeError),
    ({'max_connections': 'x'}, TypeError),
    ({'max_connections': -1}, ValueError),
    ({'max_connections': 1.5}, TypeError),
]


@pytest.mark.parametrize(('options', 'error'), BAD_LISTENERS, ids=in_words)
def test_listen_tcp_refuses_bad_options_at_the_call(fake, options, error):
    refused_at_the_call(fake, error, fake.listen_tcp, '127.0.0.1', 0, **options)


@needs_unix
@pytest.mark.parametrize(('options', 'error'), [*BAD_LISTENERS, ({'mode': 'rw'}, TypeError)], ids=in_words)
def test_listen_unix_refuses_bad_options_at_the_call_and_leaves_no_file(fake, tmp_path, options, error):
    path = tmp_path / 's'
    refused_at_the_call(fake, error, fake.listen_unix, str(path), **options)
    assert not path.exists()


@pytest.mark.parametrize(('options', 'error'), BAD_LIMITS, ids=in_words)
def test_adopt_refuses_bad_options_at_the_call_and_leaves_the_socket_alone(fake, sockets, options, error):
    ours, theirs = sockets(blocking=True)
    if 'on_connect' in options:
        error = TypeError  # adopt() has no such parameter: the socket is connected already
    refused_at_the_call(fake, error, fake.adopt, ours, **options)
    ours.send(b'still usable')
    assert theirs.recv(99) == b'still usable'


def test_time_limits_of_none_set_no_time_limit(fake):
    for options in {'timeout': None}, {'idle_timeout': None, 'read_timeout': None, 'write_timeout': None}:
        conn = fake.connect_tcp('127.0.0.1', 9, **options)
        conn.abort()
        turns(fake, 1)


@pytest.mark.parametrize('catch_errors', ['x', 5])
def test_a_reactor_refuses_a_catch_errors_that_cannot_be_called(catch_errors):
    with pytest.raises(TypeError):
        Reactor(catch_errors=catch_errors).close()


def test_a_reactor_refuses_an_unknown_option_and_leaves_no_descriptor():
    with pytest.raises(TypeError):
        Reactor(unknown_option=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        reactor.run(nothing, unknown_option=1)


# -- building, running, closing


def test_run_makes_a_reactor_runs_it_and_closes_it():
    seen: list[Reactor] = []

    def main(r: Reactor) -> None:
        seen.append(r)
        r.call_later(0, seen.append, r)

    assert reactor.run(main) is True
    assert len(seen) == 2
    with pytest.raises(HandleClosed):
        seen[0].run()


def test_run_returns_false_when_stopped_and_closes_all_handles():
    log = Log()

    def main(r: Reactor) -> None:
        listener = r.listen_tcp('127.0.0.1', 0)
        r.connect_tcp(*listener.address, on_connect=lambda conn: r.stop(), on_close=log.on_close)

    assert reactor.run(main) is False
    assert log == [('close', None)]


@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('catch_errors', [True, False])
def test_an_exception_in_main_leaves_run_and_closes_the_reactor(kind, catch_errors):
    seen: list[Reactor] = []

    def main(r: Reactor) -> None:
        seen.append(r)
        r.listen_tcp('127.0.0.1', 0)
        raise kind('boom')

    with pytest.raises(kind, match='boom'):
        reactor.run(main, catch_errors=catch_errors)
    with pytest.raises(HandleClosed):
        seen[0].run()


def test_an_exception_in_a_callback_leaves_run_when_errors_are_not_caught():
    def main(r: Reactor) -> None:
        r.call_soon(int, 'x')

    with pytest.raises(ValueError, match='invalid literal'):
        reactor.run(main, catch_errors=False)


def test_main_that_cannot_be_called_is_refused_and_closes_the_reactor():
    with pytest.raises(TypeError):
        reactor.run('main')  # type: ignore[arg-type]


def test_main_runs_inside_the_loop():
    inside = []

    def main(r: Reactor) -> None:
        with pytest.raises(ReactorError, match='running'):
            r.run()
        with pytest.raises(ReactorError, match='running'):
            r.run_once(0)
        with pytest.raises(ReactorError, match='running'):
            r.close()
        inside.append(r.stats().loop_count)

    assert reactor.run(main) is True
    assert inside == [1]


def test_run_passes_its_options_on():
    class Mine(selectors.SelectSelector):
        closed = False

        def close(self) -> None:
            self.closed = True
            super().close()

    mine, errors = Mine(), []

    def main(r: Reactor) -> None:
        r.call_soon(int, 'x')

    assert reactor.run(main, selector=mine, catch_errors=lambda *args: errors.append(args)) is True
    assert mine.closed
    assert [type(exc) for exc, _ in errors] == [ValueError]


def test_the_given_kernel_provides_clock_selector_and_sockets():
    kernel = FakeKernel()
    made = []
    real = kernel.socket
    kernel.socket = lambda *args: made.append(args) or real(*args)  # type: ignore[method-assign]
    with Reactor(kernel=kernel) as r:
        assert r.now == kernel.time == 1000
        r.listen_tcp('127.0.0.1', 0)
        r.call_later(50, nothing)
        r.call_later(51, r.stop)
        assert r.run() is False
        assert r.now == 1051
    assert len(made) == 1


def test_a_reactor_is_a_context_manager_that_closes_itself():
    with Reactor() as r:
        assert isinstance(r, Reactor)
        listener = r.listen_tcp('127.0.0.1', 0)
    assert listener.closed
    with pytest.raises(HandleClosed):
        r.run()


def test_an_exception_in_a_with_block_is_raised_and_closes_the_reactor():
    with pytest.raises(ZeroDivisionError):
        with Reactor() as r:
            listener = r.listen_tcp('127.0.0.1', 0)
            raise ZeroDivisionError
    assert listener.closed


@pytest.mark.parametrize('kind', [kind for kind in SELECTORS.values() if kind is not None])
def test_a_reactor_closes_the_selector_that_it_was_given(kind):
    selector = kind()
    Reactor(selector=selector).close()
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        selector.get_key(0)


@pytest.mark.scenario(7)
def test_closing_a_reactor_with_everything_open_leaves_nothing(tmp_path, sockets):
    log = Log()
    with Reactor() as r:
        listener = r.listen_tcp('127.0.0.1', 0, on_close=log.on_close)
        conn = r.connect_tcp(*listener.address, on_close=log.on_close)
        run_until(r, lambda: listener.open_connections and conn.state == 'OPEN')
        r.connect_tcp(*listener.address, on_close=log.on_close, timeout=60)
        r.connect_tcp('localhost', 9, on_close=log.on_close)
        r.adopt(sockets()[0], on_close=log.on_close)
        if AF_UNIX > 0:
            r.listen_unix(str(tmp_path / 's'))
            r.connect_unix(str(tmp_path / 's'), on_close=log.on_close)
        r.call_every(1, nothing)
    assert set(log) == {('close', None)}
    assert len(log) == (6 if AF_UNIX > 0 else 5)
    assert not (tmp_path / 's').exists()
    assert r.stats().handles == 0


def test_closing_a_reactor_twice_is_silent():
    r = Reactor()
    r.close()
    r.close()


@pytest.mark.parametrize(
    'call',
    [
        lambda r: r.run(),
        lambda r: r.run_once(0),
        lambda r: r.call_soon(nothing),
        lambda r: r.call_soon_threadsafe(nothing),
        lambda r: r.call_later(1, nothing),
        lambda r: r.call_at(1, nothing),
        lambda r: r.call_every(1, nothing),
        lambda r: r.run_in_thread(nothing),
        lambda r: r.listen_tcp('127.0.0.1', 0),
        lambda r: r.connect_tcp('127.0.0.1', 9),
        lambda r: r.connect_tcp('localhost', 9),
        pytest.param(lambda r: r.listen_unix('/nowhere/s'), marks=needs_unix),
        pytest.param(lambda r: r.connect_unix('/nowhere/s'), marks=needs_unix),
        lambda r: r.add_signal_handler(2, nothing),
        lambda r: r.resolve('127.0.0.1', nothing),
        lambda r: r.resolve_address('127.0.0.1', nothing),
        lambda r: r.idle(nothing),
        lambda r: r.notifier(nothing),
        lambda r: r.watch_fd(0, reactor.READ, nothing),
    ],
)
def test_calls_on_a_closed_reactor_say_that_it_is_closed(call):
    r = Reactor()
    r.close()
    with pytest.raises(HandleClosed, match='closed'):
        call(r)


def test_a_closed_reactor_does_not_adopt_a_socket(sockets):
    ours, theirs = sockets()
    r = Reactor()
    r.close()
    with pytest.raises(HandleClosed):
        r.adopt(ours)
    ours.send(b'x')
    assert theirs.recv(9) == b'x'


def test_a_closed_reactor_can_still_be_inspected():
    r = Reactor()
    r.close()
    assert isinstance(r.stats(), Stats)
    assert r.handles() == [] and r.why_alive() == []


def test_a_reactor_that_is_closed_is_freed_without_the_garbage_collector():
    import gc

    gc.collect()
    gc.disable()
    try:
        with Reactor() as r:
            listener = r.listen_tcp('127.0.0.1', 0)
            r.connect_tcp(*listener.address)
            turns(r, 3)
        freed = [weakref.ref(listener)]
        del listener, r
        assert [ref() for ref in freed] == [None]
    finally:
        gc.enable()


# -- threads


def test_a_reactor_works_in_a_thread_other_than_the_main_one():
    log = Log()

    def main(r: Reactor) -> None:
        assert threading.current_thread() is not threading.main_thread()
        listener = r.listen_tcp(
            '127.0.0.1', 0, lambda conn, data: conn.write(data), on_close=lambda *_: listener.close()
        )
        conn = r.connect_tcp(
            'localhost',
            listener.address[1],
            lambda conn, data: (log.on_data(conn, data), conn.close()),
            **log.callbacks('on_connect', 'on_close'),
        )
        conn.write(b'hello')

    assert in_thread(reactor.run, main) is True
    assert log == [('connect',), ('data', b'hello'), ('close', None)]


def test_each_thread_can_run_its_own_reactor():
    heard: dict[int, int] = {}

    def main(r: Reactor) -> None:
        r.call_soon(lambda: heard.update({threading.get_ident(): threading.get_ident()}))
        r.call_later(0.01, nothing)

    def both(r: Reactor) -> None:
        main(r)
        in_thread(reactor.run, main)

    assert reactor.run(both) is True
    assert len(heard) == 2


def test_a_reactor_can_move_to_another_thread_between_two_runs():
    seen: list[int] = []
    with Reactor() as r:
        r.run(lambda r: seen.append(threading.get_ident()))
        in_thread(r.run, lambda r: seen.append(threading.get_ident()))
    assert len(set(seen)) == 2


def test_signal_handlers_can_be_added_in_the_main_thread_only():
    with Reactor() as r:
        with pytest.raises(ReactorError, match='main thread'):
            in_thread(r.add_signal_handler, 2, nothing)


def from_another_thread(call: Any, **options: Any) -> BaseException | None:
    """Run `call(r, conn, listener)` in another thread while the loop runs; return the exception that it raises."""
    raised: list[BaseException | None] = []

    def main(r: Reactor) -> None:
        listener = r.listen_tcp('127.0.0.1', 0)
        r.call_later(60, nothing)

        def on_connect(conn: Stream) -> None:
            try:
                in_thread(call, r, conn, listener)
            except Exception as exc:
                raised.append(exc)
            else:
                raised.append(None)
            r.stop()

        r.connect_tcp(*listener.address, on_connect=on_connect)

    reactor.run(main, **options)
    return raised[0]


COLD_CALLS = {
    'run': lambda r, conn, listener: r.run(),
    'run_once': lambda r, conn, listener: r.run_once(0),
    'close': lambda r, conn, listener: r.close(),
    'listen_tcp': lambda r, conn, listener: r.listen_tcp('127.0.0.1', 0),
    'connect_tcp': lambda r, conn, listener: r.connect_tcp('127.0.0.1', 9),
    'call_at': lambda r, conn, listener: r.call_at(1e9, nothing),
    'call_every': lambda r, conn, listener: r.call_every(1, nothing),
    'run_in_thread': lambda r, conn, listener: r.run_in_thread(nothing),
    'add_signal_handler': lambda r, conn, listener: r.add_signal_handler(2, nothing),
    'resolve': lambda r, conn, listener: r.resolve('127.0.0.1', nothing),
    'resolve_address': lambda r, conn, listener: r.resolve_address('127.0.0.1', nothing),
    'idle': lambda r, conn, listener: r.idle(nothing),
    'notifier': lambda r, conn, listener: r.notifier(nothing),
    'watch_fd': lambda r, conn, listener: r.watch_fd(0, reactor.READ, nothing),
}
if AF_UNIX > 0:
    COLD_CALLS['listen_unix'] = lambda r, conn, listener: r.listen_unix('/nowhere/s')
    COLD_CALLS['connect_unix'] = lambda r, conn, listener: r.connect_unix('/nowhere/s')

HOT_CALLS = {
    'call_soon': lambda r, conn, listener: r.call_soon(nothing),
    'call_later': lambda r, conn, listener: r.call_later(1, nothing),
    'stop': lambda r, conn, listener: r.stop(),
    'write': lambda r, conn, listener: conn.write(b'x'),
    'writelines': lambda r, conn, listener: conn.writelines([b'x']),
    'write_eof': lambda r, conn, listener: conn.write_eof(),
    'conn.close': lambda r, conn, listener: conn.close(),
    'conn.abort': lambda r, conn, listener: conn.abort(),
    'pause_reading': lambda r, conn, listener: conn.pause_reading(),
    'resume_reading': lambda r, conn, listener: conn.resume_reading(),
    'set_timeouts': lambda r, conn, listener: conn.set_timeouts(idle=1),
    'listener.close': lambda r, conn, listener: listener.close(),
    'listener.pause': lambda r, conn, listener: listener.pause(),
    'listener.max_connections': lambda r, conn, listener: setattr(listener, 'max_connections', 1),
    'timer.cancel': lambda r, conn, listener: next(iter(r.timers)).cancel(),
    'timer.reset': lambda r, conn, listener: next(iter(r.timers)).reset(),
}


@pytest.mark.scenario(16)
@pytest.mark.parametrize('debug', [False, True])
@pytest.mark.parametrize('name', sorted(COLD_CALLS))
def test_a_cold_call_from_another_thread_always_raises(name, debug):
    exc = from_another_thread(COLD_CALLS[name], debug=debug)
    assert isinstance(exc, ReactorError) and 'thread' in str(exc)


@pytest.mark.scenario(16, 83)
@pytest.mark.parametrize('name', sorted(HOT_CALLS))
def test_with_debug_a_hot_call_from_another_thread_raises_too(name):
    exc = from_another_thread(HOT_CALLS[name], debug=True)
    assert isinstance(exc, ReactorError) and 'thread' in str(exc)


CALLS_OF_A_STREAM = 'write writelines send_file write_eof pause_reading resume_reading set_timeouts close abort'.split()


@pytest.mark.parametrize('kind', [TLSStream, CheckedStream, CheckedTLSStream])
@pytest.mark.parametrize('name', CALLS_OF_A_STREAM)
def test_over_tls_and_with_debug_a_call_takes_the_same_arguments(name, kind):
    def parameters(owner: Any) -> list[Any]:
        return [(one.name, one.kind, one.default) for one in signature(getattr(owner, name)).parameters.values()]

    assert parameters(kind) == parameters(Stream)


def test_time_limits_are_given_by_name(r, sockets):
    conn = r.adopt(sockets()[0])
    with pytest.raises(TypeError, match='positional'):
        conn.set_timeouts(1, 2, 3)
    end(r, conn)


def test_with_debug_everything_works_in_the_loops_own_thread():
    log = Log()

    def main(r: Reactor) -> None:
        listener = r.listen_tcp(
            '127.0.0.1', 0, lambda conn, data: conn.write(data), on_close=lambda *_: listener.close()
        )

        def on_data(conn: Stream, data: bytes) -> None:
            log.on_data(conn, data)
            conn.pause_reading()
            conn.resume_reading()
            conn.set_timeouts(idle=60)
            with tempfile.TemporaryFile() as file:
                file.write(b'of a file')
                file.flush()
                conn.send_file(file, 0, None, log.on_written)
            conn.write_eof()
            r.call_soon(conn.abort)

        conn = r.connect_tcp(*listener.address, on_data, **log.callbacks('on_connect', 'on_close'))
        conn.write(b'hello', log.on_written)
        r.call_soon(nothing)
        timer = r.call_later(60, nothing)
        timer.reset(0)

    assert reactor.run(main, debug=True) is True
    assert log == [('connect',), ('written',), ('data', b'hello'), ('written',), ('close', None)]


@pytest.mark.parametrize('debug', [False, True])
def test_any_thread_can_use_call_soon_threadsafe_to_wake_the_loop(debug):
    heard = []

    def main(r: Reactor) -> None:
        def stop() -> None:
            heard.append(threading.get_ident())
            r.stop()

        r.call_later(60, nothing)
        in_thread(r.call_soon_threadsafe, stop)

    assert reactor.run(main, debug=debug) is False
    assert heard == [threading.get_ident()]


# -- adopted sockets


def test_an_adopted_socket_is_an_open_stream(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data, on_close=log.on_close)
    assert conn.state == 'OPEN' and log == []
    conn.write(b'out', log.on_written)
    theirs.send(b'in')
    run_until(r, lambda: log.received == b'in')
    assert theirs.recv(9) == b'out'
    theirs.close()
    run_until(r, lambda: conn.closed and not r.completions)
    assert log[-1] == ('close', None) and sorted(log.names()) == ['close', 'data', 'written']


def test_an_adopted_socket_need_not_be_non_blocking(r, sockets):
    ours, _ = sockets(blocking=True)
    conn = r.adopt(ours)
    turns(r, 3)
    assert conn.sock.getblocking() is False
    end(r, conn)


def test_an_adopted_connection_counts_in_no_gauge_but_keeps_the_loop_running(r, sockets):
    ours, _ = sockets()
    conn = r.adopt(ours)
    assert (r.stats().incoming, r.stats().outgoing, r.stats().handles) == (0, 0, 1)
    assert r.run_once(0) is True
    end(r, conn)
    assert (r.stats().incoming, r.stats().outgoing, r.stats().handles) == (0, 0, 0)


def test_data_that_arrived_before_the_adoption_is_delivered_in_a_later_turn(r, sockets):
    log = Log()
    ours, theirs = sockets()
    theirs.send(b'early')
    conn = r.adopt(ours, log.on_data)
    assert log == []
    run_until(r, lambda: log)
    assert log == [('data', b'early')]
    end(r, conn)


def test_an_adopted_tcp_socket_has_a_peername_and_reports_a_reset(r, sockets):
    log = Log()
    ours, theirs = tcp_sockets(sockets)
    conn = r.adopt(ours, on_close=log.on_close)
    assert conn.peername == theirs.getsockname()
    assert conn.sockname == theirs.getpeername()
    reset(theirs)
    run_until(r, lambda: log)
    assert isinstance(log[0][1], ConnectionResetError)


def test_an_adopted_connection_has_the_given_time_limits(fake, kernel, sockets):
    log = Log()
    ours, _ = sockets()
    fake.adopt(ours, on_close=log.on_close, idle_timeout=5)
    assert fake.run() is True
    assert [type(exc) for _, exc in log] == [IdleTimeout]
    assert 5 <= kernel.time - 1000 <= 6


@pytest.mark.scenario(14)
def test_an_adopted_socket_belongs_to_the_reactor(r, sockets):
    ours, theirs = sockets()
    r.adopt(ours).close()
    turns(r, 2)
    assert ours.fileno() == -1
    assert theirs.recv(1) == b''


@pytest.mark.parametrize('what', [None, 5, 'socket', []], ids=repr)
def test_an_object_that_is_not_a_socket_is_not_adopted(fake, what):
    with pytest.raises(TypeError):
        fake.adopt(what)
    assert fake.handles() == []


def plain_client_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context


@pytest.fixture
def strange(sockets):
    """Sockets that are open, but are not connected stream sockets."""
    made = {
        'datagram': sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        'listening': sockets.track(socket.create_server(('127.0.0.1', 0))),
        'ssl': sockets.track(plain_client_context().wrap_socket(sockets()[0], do_handshake_on_connect=False)),
        'connected': sockets()[0],
    }
    return made


@pytest.mark.parametrize(
    ('kind', 'error', 'advice'),
    [('datagram', TypeError, 'bind_udp'), ('listening', ValueError, 'listen_tcp'), ('ssl', TypeError, 'start_tls')],
)
def test_a_socket_that_would_fail_later_is_not_adopted_and_stays_with_the_caller(fake, strange, kind, error, advice):
    with pytest.raises(error, match=advice):
        fake.adopt(strange[kind])
    assert fake.handles() == [] and strange[kind].fileno() >= 0


@pytest.mark.parametrize(
    ('kind', 'error', 'advice'),
    [('datagram', TypeError, 'bind_udp'), ('connected', ValueError, 'adopt'), ('ssl', TypeError, 'ssl=')],
)
def test_a_listener_refuses_a_socket_that_it_cannot_listen_on(fake, strange, kind, error, advice):
    with pytest.raises(error, match=advice):
        fake.listen_tcp(None, 0, sock=strange[kind])
    assert fake.handles() == [] and strange[kind].fileno() >= 0


@pytest.mark.parametrize('ssl', [None, False])
@pytest.mark.parametrize('where', ['tcp', 'unix'])
def test_a_server_hostname_without_tls_is_refused_because_data_would_be_sent_unencrypted(fake, where, ssl):
    options = {'ssl': ssl, 'server_hostname': 'example.org'}
    with pytest.raises(ValueError, match=r"server_hostname='example\.org' without ssl="):
        if where == 'tcp':
            fake.connect_tcp('127.0.0.1', 9, **options)
        else:
            fake.connect_unix('/tmp/no-listener', **options)
    assert fake.handles() == []


def test_a_server_hostname_is_refused_where_there_is_no_server_to_verify(fake, sockets):
    for call in (
        lambda: fake.listen_tcp('127.0.0.1', 0, server_hostname='example.org'),
        lambda: fake.adopt(sockets()[0], server_hostname='example.org'),
    ):
        with pytest.raises(TypeError, match='server_hostname'):
            call()
    assert fake.handles() == []


@pytest.mark.parametrize('name', ['.example.org', 'a..b', 'x' * 70, 'a\0b', 5, b'example.org'], ids=repr)
def test_a_server_hostname_that_tls_would_refuse_later_is_refused_at_the_call(fake, name):
    with pytest.raises((TypeError, ValueError), match='server_hostname'):
        fake.connect_tcp('127.0.0.1', 9, ssl=plain_client_context(), server_hostname=name)
    assert fake.handles() == []


@pytest.mark.parametrize('call', ['connect_tcp', 'connect_udp'])
def test_the_name_of_a_local_address_is_refused_and_not_looked_up_inside_the_loop(fake, kernel, monkeypatch, call):
    def look_up(host, port, family, kind, flags=0):
        assert flags & socket.AI_NUMERICHOST, 'a name was looked up in the thread of the loop'
        return Kernel().getaddrinfo(host, port, family, kind, flags)

    monkeypatch.setattr(kernel, 'getaddrinfo', look_up)
    with pytest.raises(ValueError, match=r"local_address must be numeric.*'localhost'.*resolve\(\)"):
        getattr(fake, call)('127.0.0.1', 9, local_address=('localhost', 0))
    assert fake.handles() == []


@pytest.mark.parametrize('options', [{'backlog': -1}, {'backlog': 1 << 31}, {'backlog': 1.5}, {'reuse_port': 'no'}])
def test_a_listener_refuses_invalid_options_and_names_them(fake, options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        fake.listen_tcp('127.0.0.1', 0, **options)
    assert fake.handles() == []


@pytest.mark.parametrize(
    'options', [{'selector': 5}, {'selector': 0}, {'kernel': 5}, {'slow_callback': '1'}, {'threads': '4'}], ids=repr
)
def test_a_reactor_refuses_invalid_options_and_names_them(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        Reactor(**options)


def test_a_main_that_is_not_callable_is_refused_before_anything_runs(fake):
    with pytest.raises(TypeError, match='main must be callable, not 5'):
        fake.run(5)


def test_a_closed_socket_is_not_adopted(fake, sockets):
    ours, _ = sockets()
    ours.close()
    with pytest.raises(OSError) as caught:
        fake.adopt(ours)
    assert caught.value.errno == errno.EBADF
    assert fake.handles() == []


def test_a_socket_that_is_not_connected_ends_with_the_error_of_the_kernel(r):
    log = Log()
    r.adopt(socket.socket(), on_close=log.on_close)
    run_until(r, lambda: log)
    turns(r, 2)
    assert log.names() == ['close'] and isinstance(log[0][1], OSError)


# -- listening


def test_a_listener_takes_a_bound_socket(r, sockets):
    log = Log()
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    address = sock.getsockname()
    listener = r.listen_tcp(None, 0, sock=sock, on_connect=log.on_connect)
    assert listener.address == address
    client = sockets.connect(address)
    run_until(r, lambda: log)
    listener.close()
    assert sock.fileno() == -1
    client.close()
    run_until(r, lambda: not r.handles())


def test_an_address_in_use_raises_at_the_call_and_leaves_no_descriptor(r):
    listener = r.listen_tcp('127.0.0.1', 0)
    with pytest.raises(OSError) as caught:
        r.listen_tcp(*listener.address)
    assert caught.value.errno == errno.EADDRINUSE
    assert str(listener.address[1]) in str(caught.value)
    listener.close()


def test_listening_on_a_name_that_does_not_exist_raises_at_the_call(fake):
    with pytest.raises(reactor.ResolveError, match=r'nope\.invalid'):
        fake.listen_tcp('nope.invalid', 0)
    assert fake.handles() == []


def test_a_full_selector_refuses_a_listener_and_leaves_no_descriptor(kernel):
    descriptors = []  # there is room for one descriptor, the reactor's own
    kernel.room_of = lambda selector: lambda fd: not descriptors and not descriptors.append(fd)
    with Reactor(kernel=kernel) as r:
        with pytest.raises(reactor.SelectorFull):
            r.listen_tcp('127.0.0.1', 0)
        assert r.handles() == []


@needs_unix
def test_a_full_selector_refuses_a_unix_listener_and_leaves_no_file(kernel, tmp_path):
    descriptors = []  # there is room for one descriptor, the reactor's own
    kernel.room_of = lambda selector: lambda fd: not descriptors and not descriptors.append(fd)
    with Reactor(kernel=kernel) as r:
        with pytest.raises(reactor.SelectorFull):
            r.listen_unix(str(tmp_path / 's'))
        assert not (tmp_path / 's').exists()


@needs_unix
def test_the_path_of_a_unix_listener_exists_while_it_listens(r, tmp_path):
    path = str(tmp_path / 's')
    listener = r.listen_unix(path, mode=0o600)
    assert listener.address == path
    assert os.stat(path).st_mode & 0o777 == 0o600
    listener.close()
    assert not os.path.exists(path)
