"""Slow callbacks and slow turns are reported by name; late timers are counted by their lateness."""

from __future__ import annotations

import signal
import socket
from functools import partial

import pytest

from reactor import WRITE, Reactor, Stats, framing
from reactor.loop.slow import Watch
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import kinds_of_handles, turns


@pytest.fixture
def slow(kernel):
    """A reactor on the fake clock, with a slow-callback limit of half a second."""
    with Reactor(kernel=kernel, slow_callback=0.5) as reactor:
        yield reactor


@pytest.fixture
def busy(kernel):
    """A callback whose last argument is the number of seconds that it takes."""

    def busy(*args):
        kernel.time += args[-1]

    return busy


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def line_of(fn):
    return f'{fn.__module__}.{fn.__qualname__}:{fn.__code__.co_firstlineno}'


def test_a_slow_call_is_reported_with_its_place_its_phase_and_its_time(slow, busy, caplog):
    slow.call_soon(busy, 0.7)
    slow.run()
    assert lines(caplog) == [f'slow callback: {line_of(busy)} took 0.700 s in the soon phase']
    assert (slow.stats().slow_callbacks, slow.stats().slow_turns) == (1, 1)


def test_a_slow_timer_is_reported(slow, busy, caplog):
    slow.call_later(3, partial(busy, 1, 2))
    slow.run()
    assert lines(caplog) == [f'slow callback: {line_of(busy)} took 2.000 s in the timers phase']


@pytest.mark.parametrize('name', ['on_data', 'on_eof', 'on_close', 'on_written'])
def test_a_slow_callback_of_a_connection_is_reported(slow, kernel, sockets, caplog, name):
    def slowly(*args):
        kernel.time += 0.9

    ours, theirs = sockets()
    conn = slow.adopt(ours, **({name: slowly} if name != 'on_written' else {}))
    if name == 'on_written':
        conn.write(b'x', slowly)
    elif name == 'on_data':
        theirs.send(b'x')
    else:
        theirs.close()
    turns(slow, 2)
    conn.close()
    turns(slow, 1)
    phase = 'dispatch' if name in ('on_data', 'on_eof') else 'completions'
    assert lines(caplog) == [f'slow callback: {line_of(slowly)} took 0.900 s in the {phase} phase']


@pytest.mark.parametrize('chunks', [[b'one\n'], [b'o', b'ne\n']], ids=['the first chunk', 'a later chunk'])
def test_a_slow_callback_for_a_message_is_reported_by_its_own_name(slow, kernel, sockets, caplog, chunks):
    def slowly(conn, line):
        kernel.time += 0.9

    ours, theirs = sockets()
    conn = slow.adopt(ours, framing.lines(slowly))
    for chunk in chunks:
        theirs.send(chunk)
        turns(slow, 2)
    conn.close()
    turns(slow, 1)
    assert lines(caplog) == [f'slow callback: {line_of(slowly)} took 0.900 s in the dispatch phase']


@pytest.mark.parametrize('name', ['on_datagram', 'on_send_error'])
def test_a_slow_callback_of_a_datagram_socket_is_reported(slow, kernel, caplog, name):
    def slowly(*args):
        kernel.time += 0.9

    sock = slow.bind_udp('127.0.0.1', 0, **{name: slowly})
    peer = slow.connect_udp(*sock.address)
    if name == 'on_datagram':
        peer.send(b'x')
    else:
        sock.send(b'x', ('127.0.0.1', 0))
    turns(slow, 2)
    phase = 'dispatch' if name == 'on_datagram' else 'completions'
    assert lines(caplog) == [f'slow callback: {line_of(slowly)} took 0.900 s in the {phase} phase']


@pytest.mark.parametrize('kind', ['idler', 'notifier', 'descriptor', 'thread', 'look-up'])
def test_a_slow_callback_of_another_handle_is_reported_by_its_own_name(slow, kernel, sockets, caplog, kind):
    def slowly(*args):
        kernel.time += 0.9

    kernel.start_thread = lambda target, name: target()
    ours, _ = sockets()
    if kind == 'idler':
        handle = slow.idle(slowly)
    elif kind == 'notifier':
        handle = slow.notifier(slowly)
        handle.trigger()
    elif kind == 'descriptor':
        handle = slow.watch_fd(ours, WRITE, slowly)
    elif kind == 'thread':
        handle = slow.run_in_thread(int, on_done=slowly)
    else:
        handle = slow.resolve('127.0.0.1', slowly)
    slow.run_once(0)
    handle.close()
    assert len(lines(caplog)) == 1
    assert lines(caplog)[0].startswith(f'slow callback: {line_of(slowly)} took 0.900 s in the ')


@pytest.mark.parametrize('name', ['on_data', 'on_eof'])
def test_a_slow_callback_of_a_tls_stream_is_reported_by_its_own_name(slow, kernel, caplog, certificates, name):  # noqa: F811
    def slowly(*args):
        kernel.time += 0.9

    server = slow.listen_tcp('127.0.0.1', 0, ssl=certificates.server(), **{name: slowly})
    conn = slow.connect_tcp(*server.address, ssl=certificates.client())
    conn.write(b'x')
    conn.write_eof()
    for _ in range(1000):
        slow.run_once(0.001)
        if lines(caplog):
            break
    assert f'slow callback: {line_of(slowly)} took 0.900 s in the ' in lines(caplog)[0]


def test_a_slow_main_is_reported_by_its_own_name(slow, kernel, caplog):
    def main(reactor):
        kernel.time += 0.9

    slow.run(main)
    assert lines(caplog) == [f'slow callback: {line_of(main)} took 0.900 s in the soon phase']


def test_a_slow_drain_callback_is_reported_by_its_own_name(slow, kernel, caplog):
    def say_goodbye(seconds):
        kernel.time += 0.8

    slow.add_drain_callback(say_goodbye)
    slow.drain(5)
    slow.run()
    assert lines(caplog) == [f'slow callback: {line_of(say_goodbye)} took 0.800 s in the timers phase']


def test_each_kind_of_handle_declares_its_methods_and_their_callbacks():
    """A method that was renamed without its declaration would be reported instead of the user's callback."""
    assert kinds_of_handles()
    for kind in kinds_of_handles():
        for method, callback in kind.leads_to:
            assert callable(getattr(kind, method, None)) or method == 'handle_connected', (kind, method)
            assert callback in dir(kind), (kind, callback)


def test_many_short_calls_are_a_slow_turn(slow, busy, caplog):
    for _ in range(100):
        slow.call_soon(busy, 0.01)
    slow.run()
    assert lines(caplog) == ['slow turn: 1.000 s in 100 callbacks']
    assert (slow.stats().slow_callbacks, slow.stats().slow_turns) == (0, 1)


def test_callbacks_below_the_limit_are_not_reported(slow, busy, caplog):
    slow.call_soon(busy, 0.4)
    slow.call_later(1, busy, 0.4)
    slow.run()
    assert lines(caplog) == []


@pytest.mark.scenario(27)
def test_slow_callbacks_are_reported_once_a_second_and_are_all_counted(slow, busy, caplog):
    for _ in range(10):
        slow.call_soon(busy, 0.5)
    slow.run()
    assert len(lines(caplog)) in (5, 6)  # one line a second for five seconds
    assert slow.stats().slow_callbacks == 10


def test_slow_places_are_remembered_with_their_count_and_the_longest_time(slow, kernel, busy):
    def longer(*args):
        busy(0.9)

    for seconds in (0.5, 0.75, 0.5):
        slow.call_soon(busy, seconds)
    slow.call_soon(longer)
    slow.call_soon(busy, 0.1)
    slow.run()
    assert slow.stats().slow == [[line_of(busy), 3, 0.75], [line_of(longer), 1, pytest.approx(0.9)]]


def test_of_many_slow_places_the_least_frequent_is_forgotten(fake):
    for n in range(20):
        for _ in range(20 - n):
            fake.counters.count_slow(f'place {n}', 1.0)
    fake.counters.count_slow('new place', 2.0)
    slow = fake.stats().slow
    assert len(slow) == 20
    assert slow[0] == ['place 0', 20, 1.0] and slow[-1] == ['new place', 1, 2.0]
    assert 'place 19' not in [place for place, _, _ in slow]


def test_a_watched_loop_keeps_the_order_of_the_turn(slow, sockets):
    seen = []
    slow.call_soon(lambda: (seen.append('soon'), slow.call_soon(seen.append, 'next turn')))
    slow.call_later(0, seen.append, 'timer')
    slow.run()
    assert seen == ['timer', 'soon', 'next turn']


def test_an_interrupt_in_a_watched_loop_loses_nothing(slow):
    def interrupt():
        raise KeyboardInterrupt

    seen = []
    slow.call_soon(interrupt)
    slow.call_soon(seen.append, 1)
    with pytest.raises(KeyboardInterrupt):
        slow.run()
    slow.run()
    assert seen == [1]


def test_a_loop_without_slow_callback_limit_calls_its_phases_directly(fake):
    assert not [
        name for name in vars(fake) if name.startswith(('_run', '_dispatch', '_turn')) and callable(vars(fake)[name])
    ]


@pytest.mark.parametrize('limit', [0, -1, float('nan')])
def test_a_limit_that_is_not_a_time_is_refused(limit):
    with pytest.raises(ValueError, match='slow_callback'):
        Reactor(slow_callback=limit)


def test_timers_are_counted_by_how_late_they_fire(fake, kernel):
    for late in (0, 0.0005, 0.0015, 0.1, 1000):
        fake.call_at(kernel.time, kernel.clock)
        kernel.time += late
        turns(fake, 1)
    lag = fake.stats().timer_lag
    assert sum(lag) == 5 and lag[0] == 2 and lag[1] == 1 and lag[-1] == 1
    assert fake.stats().timer_lag_sum == pytest.approx(1000.102)
    assert Stats.lag_bounds[0] == 1 / 1024 and len(Stats.lag_bounds) == len(lag) - 1


# -- the dispatch phase, which is another one while callbacks are timed


@pytest.fixture
def pairs(sockets):
    """Two pairs of connected sockets; the first of each is for the reactor."""
    both = [socket.socketpair() for _ in range(2)]
    for pair in both:
        for sock in pair:
            sockets.track(sock)
    return both


def watched(r, pairs, fn):
    """Call `fn(conn, data)` for both pairs, and make both readable before the next turn."""
    conns = [r.adopt(ours, fn) for ours, _ in pairs]
    r.run_once(0)
    for _, theirs in pairs:
        theirs.send(b'x')
    return conns


def test_ctrl_c_between_two_events_loses_neither(pairs):
    seen = []

    def read(conn, data):
        seen.append(conn)
        if len(seen) == 1:
            signal.raise_signal(signal.SIGINT)

    with Reactor(slow_callback=60) as r:
        conns = watched(r, pairs, read)
        with pytest.raises(KeyboardInterrupt):
            r.run()
        assert len(seen) == 1
        r.run_once(0)
        assert set(seen) == set(conns)


def test_a_callback_can_close_the_other_connection_of_its_batch(pairs):
    seen = []

    def read(conn, data):
        seen.append(conn)
        for other in conns:
            other.abort()

    with Reactor(slow_callback=60) as r:
        conns = watched(r, pairs, read)
        r.run_once(0)
        r.run_once(0)
        assert len(seen) == 1


def test_a_connection_that_ends_in_its_slow_callback_is_reported_by_the_name_of_the_callback(pairs, kernel, caplog):
    def read(conn, data):
        kernel.time += 1
        conn.abort()

    with Reactor(kernel=kernel, slow_callback=0.5) as r:
        watched(r, pairs, read)
        r.run_once(0)
        assert f'slow callback: {line_of(read)} took 1.000 s in the dispatch phase' in lines(caplog)


def test_an_event_that_belongs_to_no_handle_is_noticed(pairs, monkeypatch):
    noticed = []
    monkeypatch.setattr('reactor.loop.spins.Spins.reported_for_another', lambda spins: noticed.append(spins))
    with Reactor(slow_callback=60) as r:
        watched(r, pairs, lambda conn, data: None)
        r._dispatch([(9999, 1)])
        assert len(noticed) == 1


def test_of_two_watches_each_sees_what_reaches_its_limit(kernel, busy):
    class Lower(Watch):
        limit = 0.1

        def __init__(self):
            self.seen = []

        def passed(self, phase, began, ended, fn, item):
            self.seen.append((phase, round(ended - began, 3)))

    with Reactor(kernel=kernel, slow_callback=0.5) as r:
        lower = Lower()
        r.phase_timer.add(lower)
        r.call_soon(busy, 0.2)
        r.call_soon(busy, 0.7)
        r.run_once(0)
        assert lower.seen == [('soon', 0.2), ('soon', 0.7)]
        assert r.stats().slow_callbacks == 1
        r.phase_timer.remove(lower)
        r.call_soon(busy, 0.7)
        r.run_once(0)
        assert len(lower.seen) == 2 and r.stats().slow_callbacks == 2
