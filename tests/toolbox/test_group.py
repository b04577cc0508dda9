"""Groups: handles, timers and requests that end together, and members that have ended by themselves are forgotten."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from reactor import READ, Group, Reactor, Requests
from reactor.testing import Simulation, World
from tests.helpers.support import run_until


class Member:
    """A handle that records its end."""

    def __init__(self, log: list[Any], name: Any = None, error: Exception | None = None) -> None:
        self.log, self.name, self.error = log, name, error
        self.closed = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.log.append(self.name)
            if self.error is not None:
                raise self.error


def test_all_members_end_with_the_group_the_last_one_first():
    log: list[Any] = []
    group = Group()
    members = [group.add(Member(log, name)) for name in 'abc']
    assert len(group) == 3 and not group.closed
    group.close()
    group.close()
    assert log == ['c', 'b', 'a'] and all(member.closed for member in members)
    assert group.closed and len(group) == 0


def test_every_kind_of_handle_can_be_a_member(r, sockets, tmp_path):
    ours, _ = sockets()
    watched, _ = sockets()
    group = Group()
    called: list[str] = []
    requests: Requests[str] = Requests(r)
    members = [
        group.add(r.adopt(ours)),
        group.add(r.listen_tcp('127.0.0.1', 0)),
        group.add(r.bind_udp('127.0.0.1', 0)),
        group.add(r.watch_fd(watched, READ, lambda handle, event: called.append('fd'))),
        group.add(r.idle(called.append, 'idle')),
        group.add(r.notifier(called.append, 'notifier')),
        group.add(r.resolve('127.0.0.1', lambda addresses, error: called.append('resolve'))),
        group.add(requests.add(lambda answer, error: called.append('request'))),
    ]
    timers = [group.add(r.call_later(0, called.append, 'later')), group.add(r.call_every(1, called.append, 'every'))]
    assert len(group) == 10
    group.close()
    assert all(member.closed for member in members) and [timer.deadline for timer in timers] == [None, None]
    run_until(r, lambda: not (r.handles() or r.completions))
    assert called == []


def test_groups_can_be_nested():
    log: list[Any] = []
    outer = Group()
    outer.add(Member(log, 'outer'))
    inner = outer.add(Group())
    inner.add(Member(log, 'inner'))
    other = outer.add(Group())
    other.add(Member(log, 'other'))
    other.close()
    assert log == ['other'] and not inner.closed
    outer.close()
    assert log == ['other', 'inner', 'outer'] and inner.closed


def test_a_member_added_to_a_closed_group_is_closed_at_once():
    log: list[Any] = []
    group = Group()
    group.close()
    member = group.add(Member(log, 'late'))
    assert member.closed and log == ['late'] and len(group) == 0


def test_a_member_added_while_the_group_is_closing_is_closed():
    log: list[Any] = []
    group = Group()

    class Adds(Member):
        def close(self) -> None:
            super().close()
            group.add(Member(log, 'added'))

    group.add(Adds(log, 'adds'))
    group.close()
    assert log == ['adds', 'added']


def test_an_exception_of_a_member_does_not_keep_the_others_open():
    log: list[Any] = []
    group = Group()
    for name, error in (('a', None), ('b', ValueError('second')), ('c', OSError('first')), ('d', None)):
        group.add(Member(log, name, error))
    with pytest.raises(OSError, match='first'):
        group.close()
    assert log == ['d', 'c', 'b', 'a']


def test_what_cannot_be_closed_is_refused():
    with pytest.raises(TypeError, match=r'a member of a group must have close\(\) or cancel\(\), and None has neither'):
        Group().add(None)  # type: ignore[type-var]


def test_repr():
    group = Group()
    group.add(Member([]))
    assert repr(group) == '<Group 1 members>'
    group.close()
    assert repr(group) == '<Group closed>'


@pytest.mark.parametrize('open_ones', [0, 10, 1000])
def test_members_that_have_ended_do_not_accumulate(open_ones):
    group, alive = Group(), []
    keep = [group.add(Member([])) for _ in range(open_ones)]
    for _ in range(5000):
        member = group.add(Member([]))
        alive.append(weakref.ref(member))
        member.close()
        del member
    held = sum(ref() is not None for ref in alive) + open_ones
    assert held <= max(16, 2 * open_ones)
    assert len(group) == open_ones == len(keep)


def test_timers_that_have_fired_or_were_cancelled_do_not_accumulate(fake):
    group = Group()
    for number in range(100):
        timer = group.add(fake.call_later(0, print))
        timer.cancel() if number % 2 else fake.run_once(0)
    assert len(group) == 0 and len(group._members) <= 16


def test_ended_connections_of_a_group_are_freed_without_the_garbage_collector(r):
    class Data:
        pass

    group, alive = Group(), []

    def on_connect(conn: Any) -> None:
        group.add(conn)
        conn.data = Data()
        alive.append(weakref.ref(conn.data))
        conn.close()

    server = r.listen_tcp('127.0.0.1', 0, on_connect=on_connect)
    gc.disable()
    try:
        for _ in range(40):
            conn = r.connect_tcp(*server.address)
            run_until(r, lambda conn=conn: conn.state == 'CLOSED')
        run_until(r, lambda: r.stats().incoming == 0 and not r.completions)
        assert [ref() for ref in alive] == [None] * 40, 'on_close drops the data, whatever holds the connection'
        assert len(group._members) <= 16
    finally:
        gc.enable()
        server.close()
    run_until(r, lambda: not r.handles())


def sessions(world: World) -> None:
    """Each connection has a group with a timer and a connection of its own; everything ends with the first end."""
    host, port = world.address()
    r = world.r
    everything = Group()

    def on_connect(conn: Any) -> None:
        world.trouble()
        session = everything.add(Group())
        session.add(conn)
        session.add(r.call_every(1 + world.random.random(), conn.write, b'tick'))
        session.add(r.call_later(world.random.random() * 20, session.close))
        conn.on_close = lambda conn, exc: session.close()

    def end() -> None:
        everything.close()
        ended.met()

    ended = world.expect('the group has ended')
    everything.add(r.listen_tcp(host, port, on_connect=on_connect))
    for _ in range(world.random.randrange(1, 8)):
        everything.add(r.connect_tcp(host, port, timeout=5))
    r.call_later(30, end)


def test_nothing_is_left_after_the_end_of_a_group_on_a_simulated_system_with_faults():
    for seed in range(60):
        Simulation(seed).run_program(sessions)


def test_a_group_without_a_reactor_needs_none():
    with Reactor() as r:
        group = Group()
        group.add(r.call_later(1000, print))
        group.close()
        assert r.run()
