"""Signals: handlers run in the loop, Ctrl-C raises between two callbacks, and the previous handlers are restored."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from reactor import HandleClosed, Reactor, ReactorError
from reactor.kernel import Kernel
from reactor.loop.claims import SignalClaim, WakeupClaim
from reactor.loop.signals import _in_callback
from reactor.testing import SimKernel
from tests.helpers.support import FailingKernel, Log, drain, fill, in_thread, run_short, run_until, turns

if not hasattr(signal, 'SIGUSR1'):
    pytest.skip('this platform has no SIGUSR1 to raise', allow_module_level=True)

from signal import SIGINT, SIGUSR1, SIGUSR2


@pytest.fixture(autouse=True)
def put_back():
    """Start with Python's own SIGINT handler; at the end, check that no handler and no wakeup descriptor is left."""
    previous = signal.signal(SIGINT, signal.default_int_handler)
    before = {signum: signal.getsignal(signum) for signum in (SIGINT, SIGUSR1, SIGUSR2, signal.SIGALRM)}
    yield
    left = signal.set_wakeup_fd(-1)
    after = {signum: signal.getsignal(signum) for signum in before}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signal.signal(SIGINT, previous)
    assert left == -1, 'a wakeup descriptor was left'
    assert after == before


@pytest.fixture
def foreign():
    """A socket pair of other code: its first end is the wakeup descriptor, and its second end receives the bytes."""
    bell, sock = socket.socketpair()
    bell.setblocking(False)
    sock.setblocking(False)
    signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    yield bell, sock
    signal.set_wakeup_fd(-1)
    bell.close()
    sock.close()


def has_default(kernel):
    """Return whether SIGINT has Python's own handler on this simulated kernel."""
    return kernel.handlers[SIGINT] is signal.default_int_handler


# -- handlers


@pytest.mark.scenario(30)
def test_a_signal_calls_its_handler_in_the_loop_with_its_arguments(r):
    log = []
    handler = r.add_signal_handler(SIGUSR1, lambda *args: log.append(args), 1, 'two')
    signal.raise_signal(SIGUSR1)
    assert log == []
    run_until(r, lambda: log)
    assert log == [(1, 'two')]
    handler.close()


def test_a_handler_stays_until_it_is_removed(r):
    log = []
    r.add_signal_handler(SIGUSR1, log.append, 1)
    for count in range(1, 4):
        signal.raise_signal(SIGUSR1)
        turns(r, 2)
        assert len(log) == count
    assert r.remove_signal_handler(SIGUSR1) is True
    assert r.remove_signal_handler(SIGUSR1) is False


@pytest.mark.scenario(30)
def test_a_signal_ends_the_sleep_of_the_loop(r):
    latencies = []
    due = 0

    def again():
        nonlocal due
        latencies.append(time.monotonic() - due)
        if len(latencies) == 5:
            r.stop()
        else:
            due = time.monotonic() + 0.01
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    r.add_signal_handler(signal.SIGALRM, again)
    timer = r.call_later(30, r.stop)
    r.call_soon(signal.raise_signal, signal.SIGALRM)
    r.run()
    assert len(latencies) == 5
    assert min(latencies[1:]) < 0.05
    timer.cancel()
    r.clear_signal_handlers()


@pytest.mark.scenario(30)
def test_a_signal_ends_a_sleep_without_any_timer(r):
    log = []

    def handle():
        log.append(1)
        r.clear_signal_handlers()

    r.add_signal_handler(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    assert r.run() is True
    assert log == [1]


def test_a_signal_of_another_thread_reaches_the_loop(r):
    log = []
    r.add_signal_handler(SIGUSR1, log.append, 1)
    in_thread(signal.raise_signal, SIGUSR1)
    run_until(r, lambda: log)
    r.clear_signal_handlers()


def test_a_handler_keeps_run_running_unless_unreferenced(r):
    handler = r.add_signal_handler(SIGUSR1, int)
    timer = r.call_later(0.01, r.stop)
    timer.unref()
    assert r.run() is False
    handler.unref()
    assert r.run() is True
    assert r.handles() == [handler]
    handler.close()
    assert handler.closed
    assert r.handles() == []


def test_a_second_handler_replaces_the_first(r):
    log = []
    first = r.add_signal_handler(SIGUSR1, log.append, 'first')
    second = r.add_signal_handler(SIGUSR1, log.append, 'second')
    signal.raise_signal(SIGUSR1)
    turns(r, 2)
    assert log == ['second']
    assert len(r.handles()) == 1
    second.close()
    first.close()
    assert not r.handles()


def test_each_signal_has_its_own_handler(r):
    log = []
    r.add_signal_handler(SIGUSR1, log.append, 1)
    r.add_signal_handler(SIGUSR2, log.append, 2)
    signal.raise_signal(SIGUSR2)
    turns(r, 2)
    assert log == [2]
    signal.raise_signal(SIGUSR1)
    signal.raise_signal(SIGUSR2)
    turns(r, 2)
    assert sorted(log) == [1, 2, 2]
    r.clear_signal_handlers()


@pytest.mark.scenario(29)
def test_of_twenty_thousand_signals_at_least_one_is_delivered_after_the_last(r):
    log, raised = [], []

    def busy():
        for _ in range(20_000):
            signal.raise_signal(SIGUSR1)
        signal.raise_signal(SIGUSR2)
        raised.append(1)

    r.add_signal_handler(SIGUSR1, lambda: log.append((1, len(raised))))
    r.add_signal_handler(SIGUSR2, lambda: log.append((2, len(raised))))
    r.call_soon(busy)
    run_until(r, lambda: len(log) >= 2)
    assert sorted(log) == [(1, 1), (2, 1)]
    r.clear_signal_handlers()
    run_until(r, lambda: not drainable(r))


def drainable(r):
    """Return whether the wakeup socket still has unread bytes."""
    before = r.stats().events
    r.run_once(0)
    return r.stats().events != before


@pytest.mark.scenario(29)
def test_a_full_doorbell_loses_no_signal(r):
    log = []
    r.add_signal_handler(SIGUSR1, log.append, 1)
    fill(r._wakeup._bell)
    signal.raise_signal(SIGUSR1)
    run_until(r, lambda: log)
    assert log == [1]
    r.clear_signal_handlers()


@pytest.mark.scenario(31, 32)
def test_a_storm_of_signals_damages_no_timer_and_no_byte(r, sockets):
    log, fired, caught = Log(), [], []
    ours, theirs = sockets()
    conn = r.adopt(ours, lambda conn, data: (log.on_data(conn, data), conn.write(data)))
    sent, got = b'0123456789' * 5000, bytearray()
    r.add_signal_handler(signal.SIGALRM, caught.append, 1)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        position = 0
        for number in range(2000):
            timer = r.call_later(number % 7 / 1000, fired.append, number)
            if number % 3 == 0:
                timer.cancel()
        while len(got) < len(sent):
            if position < len(sent):
                position += theirs.send(sent[position : position + 1000])
            r.run_once(0.001)
            got += drain(theirs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    run_until(r, lambda: not len(r.timers))
    assert (bytes(got), log.received) == (sent, sent)
    assert sorted(fired) == [number for number in range(2000) if number % 3]
    run_until(r, lambda: caught)
    conn.abort()
    r.clear_signal_handlers()
    turns(r, 2)


@pytest.mark.scenario(32)
def test_a_storm_of_signals_loses_no_client_and_no_child(r, sockets):
    """The signals also interrupt accept, connect and waitpid."""
    accepted, connected, ended, exits, caught = [], [], [], [], []
    listener = r.listen_tcp('127.0.0.1', 0, on_connect=accepted.append)
    r.add_signal_handler(signal.SIGALRM, caught.append, 1)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)

    def on_connect(conn):
        connected.append(conn)
        conn.close()

    try:
        for number in range(300):
            r.connect_tcp(*listener.address, on_connect=on_connect, on_close=lambda conn, exc: ended.append(exc))
            if number % 10 == 0:
                r.spawn(['true'], on_exit=lambda process, *how: exits.append(how))
            r.run_once(0)
        run_until(r, lambda: len(ended) == 300 and len(exits) == 30 and not listener.open_connections)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(accepted) == len(connected) == 300
    assert ended == [None] * 300
    assert exits == [(0, None)] * 30
    run_until(r, lambda: caught)
    r.clear_signal_handlers()
    listener.close()


@pytest.mark.scenario(36)
@pytest.mark.parametrize('removed', ['remove', 'close', 'clear'])
def test_a_removed_handler_is_not_called_for_a_signal_that_was_raised_before(r, removed):
    log = []
    handler = r.add_signal_handler(SIGUSR1, log.append, 1)
    signal.raise_signal(SIGUSR1)
    if removed == 'remove':
        r.remove_signal_handler(SIGUSR1)
    elif removed == 'close':
        handler.close()
    else:
        r.clear_signal_handlers()
    turns(r, 3)
    assert log == []


def test_a_handler_removed_by_another_one_in_the_same_turn_is_not_called(r):
    log = []

    def handle(name, other):
        log.append(name)
        r.remove_signal_handler(other)

    r.add_signal_handler(SIGUSR1, handle, 1, SIGUSR2)
    r.add_signal_handler(SIGUSR2, handle, 2, SIGUSR1)
    signal.raise_signal(SIGUSR1)
    signal.raise_signal(SIGUSR2)
    turns(r, 3)
    r.clear_signal_handlers()
    assert len(log) == 1


def test_a_handler_may_remove_itself(r):
    log = []

    def handle():
        log.append(1)
        handler.close()

    handler = r.add_signal_handler(SIGUSR1, handle)
    signal.raise_signal(SIGUSR1)
    assert r.run() is True
    assert log == [1]


@pytest.mark.scenario(115)
def test_an_exception_in_a_handler_is_logged_and_the_handler_stays(r, caplog):
    log = []

    def handle():
        log.append(1)
        raise ValueError('boom')

    r.add_signal_handler(SIGUSR1, handle)
    for _ in range(2):
        signal.raise_signal(SIGUSR1)
        turns(r, 2)
    assert len(log) == len(caplog.records) == 2
    r.clear_signal_handlers()


@pytest.mark.scenario(35)
def test_removing_restores_the_previous_handler(r):
    def before(signum, frame):
        pass

    previous = signal.signal(SIGUSR1, before)
    try:
        r.add_signal_handler(SIGUSR1, int)
        r.add_signal_handler(SIGUSR1, str)
        r.remove_signal_handler(SIGUSR1)
        assert signal.getsignal(SIGUSR1) is before
    finally:
        signal.signal(SIGUSR1, previous)


def test_closing_a_handler_twice_does_not_remove_a_handler_added_in_between(r):
    first = r.add_signal_handler(SIGUSR1, print)
    first.close()
    log = []
    second = r.add_signal_handler(SIGUSR1, log.append, 'heard')
    first.close()
    assert not second.closed
    signal.raise_signal(SIGUSR1)
    run_until(r, lambda: log)
    second.close()


@pytest.mark.scenario(35)
def test_closing_the_reactor_restores_every_handler_and_the_wakeup_descriptor():
    before = [signal.getsignal(signum) for signum in (SIGUSR1, SIGUSR2)]
    with Reactor() as r:
        handlers = [r.add_signal_handler(signum, int) for signum in (SIGUSR1, SIGUSR2)]
    assert [signal.getsignal(signum) for signum in (SIGUSR1, SIGUSR2)] == before
    assert all(handler.closed for handler in handlers)
    for handler in handlers:
        handler.close()


@pytest.mark.scenario(36)
def test_two_reactors_receive_one_signal():
    log = []
    with Reactor() as first, Reactor() as second:
        first.add_signal_handler(SIGUSR1, log.append, 'first')
        second.add_signal_handler(SIGUSR1, log.append, 'second')
        signal.raise_signal(SIGUSR1)
        turns(second, 2)
        turns(first, 2)
        second.clear_signal_handlers()
        first.clear_signal_handlers()
    assert sorted(log) == ['first', 'second']


@pytest.mark.scenario(35)
@pytest.mark.parametrize(
    ('signum', 'error'), [(signal.SIGKILL, OSError), (9999, ValueError), (-1, ValueError), ('x', TypeError)]
)
def test_a_signal_that_cannot_be_caught_is_refused_and_nothing_changes(r, signum, error):
    with pytest.raises(error):
        r.add_signal_handler(signum, int)
    assert not r.handles()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize('fn', [None, 5])
def test_a_handler_must_be_callable(r, fn):
    try:
        with pytest.raises(TypeError):
            r.add_signal_handler(SIGUSR1, fn)
    finally:
        r.clear_signal_handlers()


@pytest.mark.scenario(35)
def test_handlers_can_be_added_only_in_the_main_thread(r):
    with pytest.raises(ReactorError, match='main thread'):
        in_thread(r.add_signal_handler, SIGUSR1, int)


@pytest.mark.parametrize('call', ['remove', 'clear', 'close'])
def test_a_handler_cannot_be_half_removed_from_another_thread(r, call):
    log = []
    handler = r.add_signal_handler(SIGUSR1, log.append, 1)
    calls = {
        'remove': lambda: r.remove_signal_handler(SIGUSR1),
        'clear': r.clear_signal_handlers,
        'close': handler.close,
    }
    try:
        with pytest.raises(ReactorError, match='main thread'):
            in_thread(calls[call])
        assert not handler.closed
        signal.raise_signal(SIGUSR1)
        turns(r, 2)
        assert log == [1]
        assert r.remove_signal_handler(SIGUSR1) is True
    finally:
        r.close()
        signal.signal(SIGUSR1, signal.SIG_DFL)


def test_a_handler_of_a_closed_reactor_cannot_be_added(r):
    r.close()
    with pytest.raises(HandleClosed):
        r.add_signal_handler(SIGUSR1, int)


def test_the_repr_of_a_handler_shows_its_signal(r):
    handler = r.add_signal_handler(SIGUSR1, int)
    assert repr(handler) == f'<SignalHandler signal={SIGUSR1}>' or str(int(SIGUSR1)) in repr(handler)
    assert r.why_alive()[0].endswith(f'waits for signal {SIGUSR1}')
    handler.close()
    assert 'closed' in repr(handler)


def test_a_previous_handler_of_c_code_cannot_be_restored_and_the_default_is_installed(monkeypatch):
    with Reactor() as r:
        with monkeypatch.context() as patched:
            patched.setattr(r.kernel, 'getsignal', lambda signum: None, raising=False)
            r.add_signal_handler(SIGUSR1, int)
        r.clear_signal_handlers()
        assert signal.getsignal(SIGUSR1) is signal.SIG_DFL


# -- wakeup descriptors of other code


@pytest.mark.scenario(34)
def test_a_foreign_wakeup_descriptor_is_put_back_and_gets_its_bytes(r, foreign):
    bell, sock = foreign
    r.add_signal_handler(SIGUSR1, int)
    signal.raise_signal(SIGUSR1)
    turns(r, 2)
    assert drain(sock) == bytes([SIGUSR1])
    r.clear_signal_handlers()
    assert signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False) == bell.fileno()


def test_a_foreign_wakeup_descriptor_may_be_descriptor_0(r):
    bell, sock = socket.socketpair()
    bell.setblocking(False)
    sock.setblocking(False)
    with bell, sock:
        stdin = os.dup(0)
        os.dup2(bell.fileno(), 0)
        before = signal.set_wakeup_fd(0, warn_on_full_buffer=False)
        try:
            r.add_signal_handler(SIGUSR1, int)
            signal.raise_signal(SIGUSR1)
            turns(r, 2)
            assert drain(sock) == bytes([SIGUSR1])
            r.clear_signal_handlers()
            assert signal.set_wakeup_fd(-1) == 0
        finally:
            signal.set_wakeup_fd(before)
            os.dup2(stdin, 0)
            os.close(stdin)


def test_a_foreign_wakeup_descriptor_does_not_get_the_bytes_of_others(r, foreign):
    r.add_signal_handler(SIGUSR1, int)
    for _ in range(3):
        r.call_soon_threadsafe(int)
        turns(r, 2)
    assert drain(foreign[1]) == b''
    r.clear_signal_handlers()


@pytest.mark.scenario(34)
def test_run_puts_a_foreign_wakeup_descriptor_back_even_when_an_exception_leaves_run(r, foreign):
    def leave():
        raise SystemExit

    r.call_soon(leave)
    with pytest.raises(SystemExit):
        r.run()
    assert signal.set_wakeup_fd(foreign[0].fileno(), warn_on_full_buffer=False) == foreign[0].fileno()


def test_a_full_foreign_wakeup_descriptor_causes_no_warning(r, foreign):
    fill(foreign[0])
    log = []
    r.add_signal_handler(SIGUSR1, log.append, 1)
    signal.raise_signal(SIGUSR1)
    run_until(r, lambda: log)
    r.clear_signal_handlers()


def test_a_foreign_wakeup_descriptor_that_was_closed_before_the_end_is_not_put_back(r):
    bell, sock = socket.socketpair()
    bell.setblocking(False)
    signal.set_wakeup_fd(bell.fileno())
    r.add_signal_handler(SIGUSR1, int)
    bell.close()
    sock.close()
    r.clear_signal_handlers()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.scenario(34)
def test_a_wakeup_descriptor_that_other_code_installed_over_ours_stays(r, foreign):
    bell, _ = foreign
    signal.set_wakeup_fd(-1)
    r.add_signal_handler(SIGUSR1, int)
    signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    r.clear_signal_handlers()
    assert signal.set_wakeup_fd(-1) == bell.fileno()


def test_a_reactor_that_runs_in_another_thread_changes_no_signal_handling(r):
    found = []

    def look():
        found.append(threading.get_ident())

    r.call_soon(look)
    before = signal.getsignal(SIGINT)
    assert in_thread(r.run) is True
    assert signal.getsignal(SIGINT) is before
    assert found != [threading.get_ident()]


# -- Ctrl-C


@pytest.mark.scenario(33)
def test_ctrl_c_leaves_run_between_two_callbacks_and_nothing_is_lost(r):
    log = []

    def interrupted():
        signal.raise_signal(SIGINT)
        log.append('finished')

    r.call_soon(interrupted)
    r.call_soon(log.append, 'kept')
    with pytest.raises(KeyboardInterrupt):
        r.run()
    assert log == ['finished']
    assert r.run() is True
    assert log == ['finished', 'kept']


@pytest.mark.scenario(33)
@pytest.mark.parametrize('phase', ['dispatch', 'timers', 'completions'])
def test_ctrl_c_in_any_phase_keeps_the_rest_of_the_batch(r, sockets, phase):
    log = []

    def interrupted(*args):
        signal.raise_signal(SIGINT)
        log.append(args[-1])

    for number in range(3):
        if phase == 'timers':
            r.call_later(0, interrupted, number)
            continue
        ours, theirs = sockets()
        conn = r.adopt(ours, interrupted)
        if phase == 'dispatch':
            theirs.send(b'%d' % number)
        else:
            conn.write(b'x', interrupted, number)
    for count in range(1, 4):
        r.call_soon(int)
        with pytest.raises(KeyboardInterrupt):
            r.run()
        assert len(log) == count
    assert len(set(log)) == 3
    for handle in r.handles():
        handle.abort()
    assert r.run() is True


def test_ctrl_c_in_the_last_callback_of_all_still_leaves_run(r):
    r.call_soon(signal.raise_signal, SIGINT)
    with pytest.raises(KeyboardInterrupt):
        r.run()
    assert r.run() is True


def test_ctrl_c_in_the_turn_that_stops_still_leaves_run(r):
    def last():
        r.stop()
        signal.raise_signal(SIGINT)

    timer = r.call_later(60, int)
    r.call_soon(last)
    with pytest.raises(KeyboardInterrupt):
        r.run()
    timer.cancel()
    assert r.run() is True


@pytest.mark.scenario(33)
def test_ctrl_c_ends_the_sleep_of_the_loop(r):
    timer = r.call_later(30, r.stop)
    main = threading.main_thread().ident
    thread = threading.Timer(0.05, signal.pthread_kill, (main, SIGINT))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        r.run()
    thread.join()
    timer.cancel()


@pytest.mark.scenario(33)
def test_a_second_ctrl_c_inside_the_same_callback_raises_on_the_spot(r):
    log = []

    def stuck():
        signal.raise_signal(SIGINT)
        log.append('first')
        signal.raise_signal(SIGINT)
        log.append('second')

    r.call_soon(stuck)
    r.call_soon(log.append, 'kept')
    with pytest.raises(KeyboardInterrupt):
        r.run()
    assert log == ['first']
    assert r.run() is True
    assert log == ['first', 'kept']


def test_a_callback_may_catch_the_second_ctrl_c_and_go_on(r):
    log = []

    def stubborn():
        signal.raise_signal(SIGINT)
        try:
            signal.raise_signal(SIGINT)
        except KeyboardInterrupt:
            log.append('caught')

    r.call_soon(stubborn)
    r.call_soon(log.append, 'next')
    assert r.run() is True
    assert log == ['caught', 'next']


def test_after_run_ctrl_c_is_pythons_again(r):
    inside = []
    r.call_soon(lambda: inside.append(signal.getsignal(SIGINT)))
    r.run()
    assert inside[0] is not signal.default_int_handler
    assert signal.getsignal(SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(SIGINT)
    r.call_soon(int)
    assert r.run() is True


def test_ctrl_c_as_run_ends_finds_the_wakeup_descriptor_restored():
    # Regression: the SIGINT handler used to be restored before the wakeup descriptor, so a Ctrl-C between the two left
    # our own wakeup descriptor installed.
    class Interrupting(SimKernel):
        def set_wakeup_fd(self, fd):
            if fd == -1:
                self.raise_signal(SIGINT)
            return super().set_wakeup_fd(fd)

    kernel = Interrupting(faults=False)
    r = Reactor(kernel=kernel)
    for end in (lambda: r.run(lambda r: None), lambda: r.run_once(0.1), r.close):
        with pytest.raises(KeyboardInterrupt):
            end()
        assert kernel.wakeup_fd == -1
        assert has_default(kernel)
    assert not kernel.files


def test_a_handler_for_sigint_comes_before_ctrl_c(r):
    log = []
    r.add_signal_handler(SIGINT, lambda: (log.append(1), r.clear_signal_handlers()))
    r.call_soon(signal.raise_signal, SIGINT)
    assert r.run() is True
    assert log == [1]
    assert signal.getsignal(SIGINT) is signal.default_int_handler


def test_a_handler_for_sigint_added_while_running_is_called_and_run_goes_on(r):
    log = []

    def main(r):
        r.add_signal_handler(SIGINT, lambda: (log.append(1), r.stop()))
        signal.raise_signal(SIGINT)

    assert r.run(main) is False
    assert log == [1]
    r.remove_signal_handler(SIGINT)
    assert signal.getsignal(SIGINT) is signal.default_int_handler


def test_ctrl_c_is_taken_again_when_the_handler_for_sigint_is_removed_while_running(r):
    log = []
    r.add_signal_handler(SIGINT, log.append, 'handler')

    def main(r):
        r.remove_signal_handler(SIGINT)
        signal.raise_signal(SIGINT)
        log.append('finished')

    r.call_soon(int)
    try:
        with pytest.raises(KeyboardInterrupt):
            r.run(main)
        assert log == ['finished']
    finally:
        r.clear_signal_handlers()


def test_a_sigint_handler_of_other_code_is_left_alone(r):
    def theirs(signum, frame):
        log.append('theirs')

    log = []
    signal.signal(SIGINT, theirs)
    try:
        r.call_soon(signal.raise_signal, SIGINT)
        assert r.run() is True
        assert log == ['theirs']
        assert signal.getsignal(SIGINT) is theirs
    finally:
        signal.signal(SIGINT, signal.default_int_handler)


def test_a_sigint_handler_installed_by_other_code_during_run_stays(r):
    def theirs(signum, frame):
        pass

    try:
        r.call_soon(signal.signal, SIGINT, theirs)
        r.run()
        assert signal.getsignal(SIGINT) is theirs
    finally:
        signal.signal(SIGINT, signal.default_int_handler)


@pytest.mark.scenario(37)
def test_a_write_to_a_broken_pipe_is_an_error_and_no_signal(r, sockets):
    log = Log()
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    ours, theirs = sockets()
    conn = r.adopt(ours, on_close=log.on_close)
    theirs.close()
    assert conn.write(b'x') is False
    run_until(r, lambda: log)
    assert isinstance(log[0][1], BrokenPipeError)


@pytest.mark.parametrize('running', [True, False])
def test_a_reactor_closed_in_a_forked_copy_restores_the_signals_at_once(running):
    class Copied(Kernel):
        number = 1

        def pid(self):
            return self.number

    kernel = Copied()
    r = Reactor(kernel=kernel)
    before = signal.getsignal(SIGINT), signal.getsignal(SIGUSR1)
    after = []

    def main(r):
        r.add_signal_handler(SIGUSR1, print)
        kernel.number = 2  # simulates a fork
        r.close()
        after.append((signal.getsignal(SIGINT), signal.getsignal(SIGUSR1)))
        after.append(signal.set_wakeup_fd(-1))
        raise SystemExit

    with pytest.raises(SystemExit):
        r.run(main) if running else main(r)
    assert after == [before, -1]
    assert (signal.getsignal(SIGINT), signal.getsignal(SIGUSR1)) == before


@pytest.mark.parametrize(('call', 'count'), [('set_wakeup_fd', 1), ('signal', 1), ('set_wakeup_fd', 2), ('signal', 2)])
def test_a_run_that_cannot_install_or_restore_the_signals_leaves_the_next_run_intact(call, count):
    kernel, bells = FailingKernel(call, errno.EINVAL, count), []
    with Reactor(kernel=kernel) as r:
        begun = kernel.wakeup_fd, has_default(kernel)
        try:
            r.run()
        except OSError:
            pass
        r.run(lambda r: bells.append((kernel.wakeup_fd, has_default(kernel))))
        assert bells == [(r._wakeup.bell_fileno(), False)]
        if (call, count) != ('signal', 2):
            assert (kernel.wakeup_fd, has_default(kernel)) == begun


def test_a_handler_that_cannot_be_added_leaves_nothing():
    kernel = FailingKernel('signal', errno.EINVAL)
    with Reactor(kernel=kernel) as r:
        with pytest.raises(OSError, match='simulated'):
            r.add_signal_handler(signal.SIGTERM, print)
        assert r.handles() == []
        assert kernel.wakeup_fd == -1
        bells = []
        r.run(lambda r: bells.append(kernel.wakeup_fd))
        assert bells == [r._wakeup.bell_fileno()]


def test_a_run_that_cannot_set_the_wakeup_descriptor_restores_sigint():
    class Refusing(SimKernel):
        refuses = True

        def set_wakeup_fd(self, fd):
            if self.refuses:
                raise OSError(errno.EPERM, 'refused')
            return super().set_wakeup_fd(fd)

    kernel = Refusing(faults=False)
    with Reactor(kernel=kernel) as r:
        with pytest.raises(OSError, match='refused'):
            r.run()
        assert has_default(kernel)
        kernel.refuses = False
        assert r.run(lambda r: None) is True
    assert has_default(kernel)
    assert kernel.wakeup_fd == -1


def test_a_handler_is_called_even_if_the_wakeup_descriptor_cannot_be_set():
    kernel, heard = FailingKernel('set_wakeup_fd', errno.EBADF), []
    with Reactor(kernel=kernel) as r:
        handler = r.add_signal_handler(signal.SIGTERM, lambda: (heard.append(1), handler.close()))
        kernel.at(kernel.time + 10**9, kernel.raise_signal, signal.SIGTERM)
        assert r.run() is True
    assert heard == [1]
    assert kernel.wakeup_fd == -1


@pytest.mark.parametrize('error', [errno.EAGAIN, errno.EPIPE, errno.EBADF])
def test_a_foreign_wakeup_descriptor_that_cannot_be_written_is_ignored(error):
    kernel, heard = FailingKernel('write', error), []
    theirs, _ = kernel.socketpair()
    kernel.wakeup_fd = theirs.fileno()
    with Reactor(kernel=kernel) as r:
        handler = r.add_signal_handler(signal.SIGTERM, heard.append, 1)
        r.call_soon(kernel.raise_signal, signal.SIGTERM)
        r.call_later(1, handler.close)
        r.run()
    assert heard == [1]
    assert kernel.failed == 'write'
    assert kernel.wakeup_fd == (-1 if error == errno.EBADF else theirs.fileno())  # EBADF: already closed


# -- other reactors and other code that handle signals in the same process


def close_both(*socks):
    for sock in socks:
        sock.close()


def test_a_foreign_wakeup_descriptor_whose_number_was_reused_gets_nothing_and_is_not_put_back(r, sockets):
    bell, sock = socket.socketpair()
    bell.setblocking(False)
    signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    r.add_signal_handler(SIGUSR1, int)
    number = bell.fileno()
    close_both(bell, sock)
    taken = [sockets(), sockets()]  # connections of other code; one of them reuses the number
    assert number in [one.fileno() for pair in taken for one in pair]
    signal.raise_signal(SIGUSR1)
    turns(r, 2)
    assert [drain(one) for pair in taken for one in pair] == [b''] * 4
    r.clear_signal_handlers()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.scenario(36)
@pytest.mark.parametrize('signum', [SIGUSR1, SIGINT])
@pytest.mark.parametrize('first', [0, 1], ids=['in order', 'in reverse order'])
def test_two_reactors_closed_in_any_order_restore_the_previous_handler(signum, first):
    before = signal.getsignal(signum)
    reactors, heard = [Reactor(), Reactor()], []
    for number, one in enumerate(reactors):
        one.add_signal_handler(signum, heard.append, number)
    reactors.pop(first).close()
    signal.raise_signal(signum)
    turns(reactors[0], 2)
    assert heard == [1 - first]
    reactors[0].close()
    assert signal.getsignal(signum) is before


def test_a_handler_installed_over_ours_stays_and_ours_is_silent_when_it_is_put_back_late():
    def theirs(signum, frame):
        heard.append('theirs')

    def before(signum, frame):
        heard.append('before')

    heard, previous = [], signal.signal(SIGUSR1, before)
    try:
        with Reactor() as r:
            r.add_signal_handler(SIGUSR1, heard.append, 'ours')
            found = signal.signal(SIGUSR1, theirs)
        signal.raise_signal(SIGUSR1)
        found(SIGUSR1, None)  # the handler of other code may call the one that it replaced
        signal.signal(SIGUSR1, found)
        signal.raise_signal(SIGUSR1)
        assert heard == ['theirs', 'before', 'before']
        assert signal.getsignal(SIGUSR1) is before
    finally:
        signal.signal(SIGUSR1, previous)


def test_a_closed_reactors_handler_that_is_put_back_late_performs_the_default_action():
    kernel = SimKernel(faults=False)
    with Reactor(kernel=kernel) as r:
        r.add_signal_handler(signal.SIGTERM, print)
        found = kernel.signal(signal.SIGTERM, signal.SIG_IGN)
    kernel.signal(signal.SIGTERM, found)
    kernel.raise_signal(signal.SIGTERM)
    assert kernel.handlers[signal.SIGTERM] == signal.SIG_DFL
    sent = [detail for _, what, _, detail in kernel.trace if what == 'signal']
    assert sent == [signal.SIGTERM] * 2, 'the default action was not performed'


def test_two_reactors_on_one_system_end_in_any_order():
    for order in itertools.permutations(range(3)):
        kernel, heard = SimKernel(selector='epoll', faults=False), []
        reactors = [Reactor(kernel=kernel) for _ in order]
        for number, one in enumerate(reactors):
            one.add_signal_handler(signal.SIGTERM, heard.append, number)
        for ended, number in enumerate(order, 1):
            reactors[number].close()
            heard.clear()
            kernel.raise_signal(signal.SIGTERM)
            alive = sorted(order[ended:])
            for other in alive:
                reactors[other].run_once(0)
            assert heard == alive
        assert kernel.wakeup_fd == -1
        assert kernel.handlers[signal.SIGTERM] == signal.SIG_DFL


@pytest.mark.parametrize('raised', ['in this thread', 'by another thread'])
def test_signals_are_delivered_after_other_code_has_removed_the_wakeup_descriptor(r, raised):
    log = []
    r.add_signal_handler(SIGUSR1, lambda: (log.append(1), r.stop()))
    too_late = r.call_later(10, r.stop)
    signal.set_wakeup_fd(-1)
    if raised == 'in this thread':
        signal.raise_signal(SIGUSR1)
        r.run_once(10)
    else:
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main, SIGUSR1)).start()
        r.run()
    assert log == [1]
    too_late.cancel()
    r.clear_signal_handlers()


def test_ctrl_c_works_after_other_code_has_removed_the_wakeup_descriptor(r):
    def silence():
        signal.set_wakeup_fd(-1)
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, SIGINT)).start()

    too_late = r.call_later(10, r.stop)
    r.call_soon(silence)
    with pytest.raises(KeyboardInterrupt):
        r.run()
    too_late.cancel()


def test_the_first_signal_after_the_wakeup_descriptor_was_removed_installs_it_again(r):
    r.add_signal_handler(SIGUSR1, int)
    signal.set_wakeup_fd(-1)
    signal.raise_signal(SIGUSR1)
    found = signal.set_wakeup_fd(-1)
    assert found == r._wakeup.bell_fileno()
    r.clear_signal_handlers()


def test_a_signal_reaches_a_loop_that_runs_in_another_thread(r):
    heard = threading.Event()
    r.add_signal_handler(SIGUSR1, lambda: (heard.set(), r.stop()))
    thread = threading.Thread(target=r.run)
    thread.start()
    for _ in range(100):
        signal.raise_signal(SIGUSR1)
        if heard.wait(0.1):
            break
    thread.join()
    r.clear_signal_handlers()


def test_a_handler_is_not_closed_while_its_loop_runs_in_another_thread(r):
    # Regression: `close` used to change the registry while the loop was running in the other thread.
    handler = r.add_signal_handler(SIGUSR1, int)
    event = threading.Event()
    r.call_soon(event.set)
    thread = threading.Thread(target=r.run)
    thread.start()
    assert event.wait(10)
    with pytest.raises(ReactorError, match='another thread'):
        handler.close()
    assert not handler.closed
    r.call_soon_threadsafe(r.stop)
    thread.join()
    handler.close()
    assert handler.closed and r.handles() == []


def test_a_reactor_is_not_closed_in_another_thread_while_its_signals_are_installed(r):
    r.add_signal_handler(SIGUSR1, int)
    with pytest.raises(ReactorError, match='clear_signal_handlers'):
        in_thread(r.close)
    assert not r.guard.closed
    r.clear_signal_handlers()
    in_thread(r.close)
    assert r.guard.closed


def in_child(fn):
    """Call `fn` in a forked child, and return the child's exit status."""
    pid = os.fork()
    if not pid:
        try:
            fn()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.scenario(109)
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_a_forked_child_does_not_keep_our_handlers_and_wakeup_descriptor(r, sockets):
    def look():
        assert signal.set_wakeup_fd(-1) == -1
        assert signal.getsignal(SIGINT) is signal.default_int_handler
        signal.raise_signal(SIGUSR1)

    log = []
    r.add_signal_handler(SIGUSR1, log.append, 1)
    r.call_soon(lambda: log.append(in_child(look)))
    turns(r, 2)
    assert log == [-SIGUSR1]
    signal.raise_signal(SIGUSR1)  # the parent's handlers are unchanged
    turns(r, 2)
    assert log == [-SIGUSR1, 1]
    r.clear_signal_handlers()


@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_a_child_of_multiprocessing_can_be_terminated(r):
    def begin():
        child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(10)
        ended.append(child.exitcode)
        child.kill()

    ended = []
    r.add_signal_handler(signal.SIGTERM, int)
    r.call_soon(begin)
    turns(r, 2)
    assert ended == [-signal.SIGTERM]
    r.clear_signal_handlers()


@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_a_signal_that_reaches_a_child_before_our_handlers_are_gone_there_is_not_lost(r, monkeypatch):
    r.add_signal_handler(SIGUSR1, int)
    owner = Kernel.owners[-1]
    give_back = owner.on_fork
    owner.on_fork = lambda: (os.kill(os.getpid(), SIGUSR1), give_back())
    assert in_child(int) == -SIGUSR1
    r.clear_signal_handlers()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


INSIDE = """
import reactor, signal
r = reactor.Reactor()
done = []
r.call_later(0.001, done.append, 'a timer')
r.call_soon_threadsafe(done.append, 'a call')
assert r.run() is True
assert r.run_once(0) is False
assert sorted(done) == ['a call', 'a timer'], done
try:
    r.add_signal_handler(signal.SIGTERM, print)
except reactor.ReactorError as exc:
    assert 'main interpreter' in str(exc), exc
else:
    raise AssertionError('a handler was added')
assert not r.handles()
assert r.remove_signal_handler(signal.SIGTERM) is False
r.close()
"""
IN_SUB_INTERPRETER = f"""
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import reactor, signal
before = signal.getsignal(signal.SIGINT)
one = interpreters.create()
found = getattr(interpreters, 'run_string')(one, {INSIDE!r})
assert not found, found
interpreters.destroy(one)
assert signal.getsignal(signal.SIGINT) is before
assert signal.set_wakeup_fd(-1) == -1
print('well')
"""


def test_a_reactor_runs_in_a_sub_interpreter_and_refuses_signal_handlers_there():
    if not any(map(importlib.util.find_spec, ('_interpreters', '_xxsubinterpreters'))):
        pytest.skip('this Python has no sub-interpreters')
    done = subprocess.run([sys.executable, '-c', IN_SUB_INTERPRETER], capture_output=True, text=True, timeout=60)
    assert done.stdout == 'well\n', done.stderr


# -- Ctrl-C at any point


def test_ctrl_c_in_run_once_ends_it_between_two_callbacks_and_nothing_is_lost(r):
    log = []

    def interrupted():
        signal.raise_signal(SIGINT)
        log.append('finished')

    for timeout in (None, 0):
        r.call_soon(interrupted)
        r.call_soon(log.append, 'kept')
        with pytest.raises(KeyboardInterrupt):
            r.run_once(timeout)
        assert log == ['finished']
        assert signal.getsignal(SIGINT) is signal.default_int_handler
        r.run_once(timeout)
        assert log == ['finished', 'kept']
        log.clear()


def test_ctrl_c_during_close_ends_every_connection_first(sockets):
    ended = []

    def on_close(conn, exc):
        signal.raise_signal(SIGINT)
        ended.append(conn)

    r = Reactor()
    conns = [r.adopt(sockets()[0], on_close=on_close) for _ in range(5)]
    with pytest.raises(KeyboardInterrupt):
        r.close()
    assert sorted(map(id, ended)) == sorted(map(id, conns))
    assert r.guard.closed
    assert signal.getsignal(SIGINT) is signal.default_int_handler


def test_ctrl_c_ends_the_inner_of_two_nested_loops_and_then_the_outer_one(r):
    log = []

    def inner(r):
        signal.raise_signal(SIGINT)
        log.append('finished')

    def outer():
        with Reactor() as another:
            another.call_later(60, int)
            try:
                another.run(inner)
            finally:
                log.append('left')

    r.call_soon(outer)
    r.call_soon(log.append, 'kept')
    with pytest.raises(KeyboardInterrupt):
        r.run()
    assert log == ['finished', 'left']
    assert r.run() is True
    assert log == ['finished', 'left', 'kept']


def pressed_twice(frame_of):
    """Call the installed SIGINT handler twice, as if each signal had arrived in the given frame."""
    handler = signal.getsignal(SIGINT)
    handler(SIGINT, frame_of)
    handler(SIGINT, frame_of)


class Pressing(selectors.DefaultSelector):
    """A selector written by a user. While `pressing` is true, Ctrl-C is pressed twice in each of its methods."""

    pressing = False

    def unregister(self, fileobj):
        if self.pressing:
            pressed_twice(sys._getframe())
        return super().unregister(fileobj)

    def select(self, timeout=None):
        if self.pressing:
            pressed_twice(sys._getframe())
        return super().select(timeout)


@pytest.mark.parametrize('written_by', ['the standard library', 'a user'])
@pytest.mark.parametrize('called_by', ['the loop', 'a callback'])
def test_a_second_ctrl_c_in_a_selector_called_by_us_interrupts_nothing(written_by, called_by, sockets):
    class Readers(set):
        def discard(self, fd):
            if r.watchers.selector.pressing:
                pressed_twice(sys._getframe(1))  # as if Ctrl-C were pressed in a frame of `selectors`
            super().discard(fd)

    r = Reactor(selector=Pressing() if written_by == 'a user' else selectors.SelectSelector())
    if written_by != 'a user':
        r.watchers.selector._readers = Readers(r.watchers.selector._readers)
    ended = []
    ours, theirs = sockets()
    conn = r.adopt(ours, on_close=lambda conn, exc: ended.append(conn))

    def press():
        r.watchers.selector.pressing = True

    r.watchers.selector.pressing = False
    try:
        if called_by == 'a callback':
            r.call_soon(lambda: (press(), conn.pause_reading(), ended.append('whole')))
        else:
            press()
            theirs.close()
        with pytest.raises(KeyboardInterrupt):
            r.run()
        r.watchers.selector.pressing = False
        assert ended == (['whole'] if called_by == 'a callback' else ended)
        assert conn in list(r.watchers) or conn.closed
        conn.abort()
        r.run()
        assert ended[-1] is conn
    finally:
        r.watchers.selector.pressing = False
        r.close()


def test_a_second_ctrl_c_in_a_function_that_a_callback_calls_raises_on_the_spot(r):
    log = []

    def deeper(depth):
        if depth:
            deeper(depth - 1)
        signal.raise_signal(SIGINT)
        log.append(depth)

    def callback(conn):
        json.loads('[1]', object_hook=print, parse_float=print)
        deeper(1)

    r.call_soon(callback, None)
    with pytest.raises(KeyboardInterrupt):
        r.run()
    assert log == [0]


def test_ctrl_c_as_run_begins_leaves_a_reactor_that_can_run(r):
    """Ctrl-C is pressed at each line that runs before the callbacks."""
    entered, before, owners = [], sys.gettrace(), Kernel.owners[:]
    for n in range(200):
        count = 0

        def line(frame, event, arg, n=n):
            nonlocal count
            if event == 'line' and frame.f_code.co_filename.endswith(('loop.py', 'signals.py', 'claims.py')):
                count += 1
                if count == n + 1:
                    sys.settrace(before)
                    signal.getsignal(SIGINT)(SIGINT, frame)
            return line

        r.call_soon(entered.append, n)
        sys.settrace(line)
        try:
            r.run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert r.run() is True
        assert entered.pop() == n
        assert not entered
        assert signal.getsignal(SIGINT) is signal.default_int_handler
        assert Kernel.owners == owners
        if count <= n:
            break
    assert 30 < n < 199


@pytest.mark.parametrize('method', [WakeupClaim.acquire, WakeupClaim.release], ids=['acquire', 'release'])
@pytest.mark.parametrize('below', [True, False], ids=['over a foreign descriptor', 'alone'])
def test_ctrl_c_at_any_line_that_changes_the_wakeup_descriptor_still_restores_it(method, below, request):
    """The SIGINT handler normally writes to the wakeup socket and checks that the wakeup descriptor is ours. It must do
    neither while the descriptor is being released.
    """
    there = request.getfixturevalue('foreign')[0].fileno() if below else -1
    before, lines = sys.gettrace(), 0
    for n in range(100):
        count = 0

        def line(frame, event, arg, n=n):
            nonlocal count
            if frame.f_code is not method.__code__:
                return None
            if event == 'line':
                count += 1
                if count == n + 1:
                    sys.settrace(before)
                    signal.raise_signal(SIGINT)
            return line

        with Reactor() as r:
            sys.settrace(line)
            try:
                r.run(lambda r: None)
            except KeyboardInterrupt:
                lines += 1
            finally:
                sys.settrace(before)
            found = signal.set_wakeup_fd(there, warn_on_full_buffer=False)
            assert found == there, f'at line {n + 1} of {method.__name__}'
        if count <= n:
            break
    assert 3 < lines == n


LOOP, STREAM, WATCHER = 'reactor.loop.loop', 'reactor.net.stream', 'reactor.loop.watcher'
CLOSING = 'reactor.loop.closing'


@pytest.mark.parametrize(
    ('calls', 'raises'),
    [
        ([(LOOP, '_run_soon'), ('app', 'callback')], True),
        ([(LOOP, '_run_soon'), ('app', 'callback'), ('ssl', 'read')], True),
        ([(LOOP, '_dispatch'), (STREAM, 'handle_read'), ('app', 'on_data')], True),
        ([(LOOP, 'close'), (CLOSING, 'take_steps'), (CLOSING, 'run_exit_callbacks'), ('app', 'callback')], True),
        ([(LOOP, '_run_soon'), ('app', 'callback'), (LOOP, 'run'), (LOOP, '_run_soon'), ('app', 'inner')], True),
        ([(LOOP, '_run_soon')], False),
        ([(LOOP, '_run_soon'), ('app', 'callback'), (STREAM, 'write')], False),
        ([(LOOP, '_run_soon'), ('app', 'callback'), (STREAM, 'write'), ('app', 'its_own_socket')], False),
        ([(LOOP, '_dispatch'), ('reactor.net.tls', 'handle_read'), ('ssl', 'read')], False),
        ([(LOOP, '_run_completions'), (WATCHER, 'remove'), ('selectors', 'unregister')], False),
        ([(LOOP, '_run_completions'), (WATCHER, 'remove'), ('app', 'unregister')], False),
        ([(LOOP, '_turn'), (LOOP, '_poll'), ('app', 'select')], False),
        ([('app', 'main')], False),
    ],
    ids=lambda value: '-'.join(name for _, name in value) if isinstance(value, list) else None,
)
def test_a_second_ctrl_c_raises_only_if_no_frame_of_ours_lies_between(calls, raises):
    """`calls` lists the module and the function of each frame, the outermost first."""
    inner = None
    for module, name in reversed(calls):
        scope = {'__name__': module, '_called': inner, '_in_callback': _in_callback, 'sys': sys}
        exec(f'def {name}(): return _called() if _called else _in_callback(sys._getframe())', scope)
        inner = scope[name]
    assert inner() is raises


# -- memory runs out, and claims without a reactor


def test_a_run_that_finds_no_memory_for_the_wakeup_restores_sigint_and_can_be_called_again(r, monkeypatch):
    run_short(monkeypatch, WakeupClaim, 'acquire')
    with pytest.raises(MemoryError):
        r.run()
    assert signal.getsignal(SIGINT) is signal.default_int_handler
    log = []
    r.call_soon(signal.raise_signal, SIGINT)
    r.call_soon(log.append, 'after')
    with pytest.raises(KeyboardInterrupt):
        r.run()
    assert r.run() is True
    assert log == ['after']


def test_a_foreign_wakeup_descriptor_that_a_run_had_no_memory_to_put_back_is_put_back_at_close(foreign, monkeypatch):
    run_short(monkeypatch, WakeupClaim, '_number_of')
    with Reactor() as r, pytest.raises(MemoryError):
        r.run()
    assert signal.set_wakeup_fd(-1) == foreign[0].fileno()


def test_a_dropped_handler_called_by_the_handler_that_replaced_it_does_nothing():
    # A handler that replaced ours may still call it: such code only checks `callable(previous)` first, because SIG_DFL
    # is not a function.
    kernel, log = SimKernel(faults=False), []
    claim = SignalClaim(kernel, SIGUSR1, lambda signum, frame: log.append(signum))
    claim.install()
    kernel.signal(SIGUSR1, lambda signum, frame: claim(signum, frame))
    kernel.raise_signal(SIGUSR1)
    assert log == [SIGUSR1]
    claim.drop()
    kernel.raise_signal(SIGUSR1)
    assert log == [SIGUSR1]


def test_a_wakeup_that_was_never_acquired_does_not_release_the_descriptor_of_others():
    kernel = SimKernel(faults=False)
    kernel.set_wakeup_fd(77)
    WakeupClaim(kernel, None, int).release()
    assert kernel.set_wakeup_fd(-1) == 77


@pytest.mark.parametrize('exc', [KeyboardInterrupt, MemoryError])
def test_a_run_that_fails_at_its_start_leaves_the_process_unchanged(exc):
    """A user's signal handler may raise at any line, and memory may run out at any line."""

    class Failing(Kernel):
        failures = 1

        def thread(self):
            if self.failures:
                self.failures -= 1
                raise exc
            return super().thread()

    before = signal.getsignal(signal.SIGINT)
    with Reactor(kernel=Failing()) as r:
        with pytest.raises(exc):
            r.run()
        assert signal.getsignal(signal.SIGINT) is before
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        assert wakeup == -1
        assert r.run()
    assert signal.getsignal(signal.SIGINT) is before
