"""Calls that run out of memory or stack, and cannot be put back because their queue finds no memory, either.

The queues of a loop are replaced by queues whose first few `appendleft` fail. A call must be made exactly once in the
end, before the calls that were queued after it.
"""

from __future__ import annotations

from collections import deque

import pytest

from reactor import Reactor
from reactor.loop.timers import Timer
from reactor.net.ending import Connection
from tests.helpers.support import Log, run_short


class FullQueue(deque):
    """A queue whose `appendleft` finds no memory `failures` times."""

    failures = 0

    def appendleft(self, item):
        if FullQueue.failures:
            FullQueue.failures -= 1
            raise MemoryError
        super().appendleft(item)


@pytest.fixture(params=[0, 1, 2, 3, 5])
def r(request, monkeypatch):
    monkeypatch.setattr('reactor.loop.loop.deque', FullQueue)
    monkeypatch.setattr('reactor.loop.timers.deque', FullQueue)
    with Reactor() as r:
        assert type(r.completions) is type(r._soon) is type(r.timers.due) is FullQueue
        FullQueue.failures = request.param
        yield r
        FullQueue.failures = 0


def run_turns(r, count=12):
    """Run turns, as a program that calls `run_once` again after a MemoryError or RecursionError."""
    left = 0
    for _ in range(count):
        try:
            r.run_once(0)
        except (MemoryError, RecursionError):
            left += 1
    return left


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_a_completion_is_called_once_and_in_order(r, sockets, monkeypatch, kind):
    closed = []
    conns = [r.adopt(sockets()[0], on_close=lambda conn, exc: closed.append(conn)) for _ in range(2)]
    run_short(monkeypatch, Connection, 'handle_closed', 1, kind)
    for conn in conns:
        conn.abort()
    run_turns(r)
    assert closed == conns


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_a_callback_that_was_reached_is_not_called_again(r, sockets, monkeypatch, kind):
    called = []

    def on_close(conn, exc):
        called.append(conn)
        raise kind

    r.adopt(sockets()[0], on_close=on_close).abort()
    run_turns(r)
    assert len(called) == 1


def test_timers_are_called_once_and_in_order(r, monkeypatch):
    called = []
    for n in range(3):
        r.call_later(0, called.append, n)
    run_short(monkeypatch, Timer, 'handle_due', 1, MemoryError)
    run_turns(r)
    assert called == [0, 1, 2]


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_calls_are_called_once_and_in_order(r, monkeypatch, kind):
    class Calls:
        def first():
            called.append('first')

    called = []
    run_short(monkeypatch, Calls, 'first', 1, kind)  # now it counts as code of the reactor
    r.call_soon(Calls.first)
    r.call_soon(called.append, 'second')
    run_turns(r)
    assert called == ['first', 'second']


def test_run_goes_on_until_the_last_completion_has_been_called(r, sockets, monkeypatch):
    log = Log()
    conn = r.adopt(sockets()[0], log.on_data, on_close=log.on_close)
    run_short(monkeypatch, Connection, 'handle_closed', 2, MemoryError)
    conn.abort()
    for _ in range(12):
        try:
            r.run()
            break
        except MemoryError:
            pass
    assert log.names() == ['close']


def test_close_calls_a_completion_that_could_not_be_put_back(r, sockets, monkeypatch):
    log = Log()
    r.adopt(sockets()[0], log.on_data, on_close=log.on_close)
    run_short(monkeypatch, Connection, 'handle_closed', 2, MemoryError)
    try:
        r.close()
    except MemoryError:
        pass
    assert log.names() == ['close']
