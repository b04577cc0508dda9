"""`max_memory` finds programs that hold too much for one connection, and does not count what connections share."""

from __future__ import annotations

import re
import time
from collections import deque

import pytest

from reactor import framing
from reactor.testing import Simulation, SimulationFailed
from reactor.testing.memory import held_for, show_held

MOST = 20_000


class Guest:
    def __init__(self, room=None):
        self.room = room
        self.queue = []
        self.line = bytearray()


class Compact:
    __slots__ = ('line', 'other')


def compact(size):
    data = Compact()
    data.line = bytearray(size)
    return data


class Connection:
    """What the functions of `memory` read from a stream."""

    def __init__(self, data, buffered=0, on_data=None):
        self.data, self.buffered, self.on_data = data, buffered, on_data


def held(data, **more):
    return held_for(Connection(data, **more), 1 << 40)


def test_what_only_the_data_refers_to_is_counted_at_any_depth():
    def make(size):
        guest = Guest()
        guest.queue = [{'deep': deque([(bytearray(size),)])}]
        return guest

    assert held(make(50_000)) - held(make(10)) == 50_000 - 10
    twice = {1: (bytearray(50_000),) * 2}
    for data in compact(50_000), [bytearray(50_000)], {'x': bytearray(50_000)}, twice:
        assert 50_000 < held(data) < 51_000
    assert 50_000 < held(bytearray(50_000)) < 50_100
    assert held(None, buffered=77) == 77


def test_shared_objects_and_what_they_hold_are_not_counted():
    room = {'history': [bytes(1000) for _ in range(100)], 'guests': []}
    guests = [Guest(room) for _ in range(50)]
    room['guests'] += guests
    alone = held(Guest(None))
    assert all(held(guest) == alone for guest in guests)
    message = bytes(100_000)
    for guest in guests:
        guest.queue.append(message)
    assert held(guests[0]) < alone + 200
    del message, guest
    del guests[1:], room['guests'][1:]
    assert held(guests[0]) > 100_000  # now only this guest refers to the message


def test_an_object_that_refers_to_the_connection_or_back_to_the_data_is_counted():
    guest = Guest()
    conn = Connection(guest)
    guest.queue = [(guest, conn, bytearray(9000))]
    assert 9000 < held_for(conn, 1 << 40) < 10_000


def test_the_cost_does_not_depend_on_what_is_shared():
    room = [[bytes(10)] for _ in range(300_000)]
    guests = [Guest(room) for _ in range(300)]
    begin = time.perf_counter()
    for guest in guests:
        held(guest)
    assert time.perf_counter() - begin < 5  # to walk through the room each time would take half a minute


def test_counting_stops_at_the_limit():
    guest = Guest()
    guest.queue = [bytes(1000) for _ in range(100)]
    assert 10_000 < held_for(Connection(guest), 10_000) < 12_500


def test_the_report_has_the_places():
    guest = Guest()
    guest.queue = [bytes(1000) for _ in range(30)]
    guest.line = bytearray(5000)
    said = show_held(Connection(guest, buffered=123))
    assert re.fullmatch(
        r'the program holds 3\d,\d{3} bytes for it: 3\d,\d{3} in conn\.data\.queue, 5,\d{3} in conn\.data\.line, '
        r'(\d+ in conn\.data, 123 waiting to be sent|123 waiting to be sent, \d+ in conn\.data)',
        said.replace(', 0 waiting', ''),
    ), said
    assert ' in conn.data.line' in show_held(Connection(compact(900)))
    assert " in conn.data['key']" in show_held(Connection({'key': bytearray(900)}))


def collecting(limit):
    """Return a program whose server collects what it gets, up to a limit; a client sends 60,000 bytes."""

    def program(world):
        def on_connect(conn):
            conn.data = Guest()

        def on_data(conn, data):
            conn.data.line += data
            del conn.data.line[limit:]

        server = world.r.listen_tcp(*world.address(), on_data, on_connect=on_connect)
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: server.close())
        client.write(bytes(60_000), lambda conn: conn.close())

    return program


def test_a_program_that_holds_too_much_fails():
    for seed in range(5):
        with pytest.raises(SimulationFailed) as caught:
            Simulation(seed, faults=False, max_memory=MOST).run_program(collecting(1 << 20))
        first = str(caught.value).splitlines()[0]
        if 'client 1' not in first:
            assert re.search(
                r'server 1: the program holds \d+,\d{3} bytes for it: \d+,\d{3} in conn\.data\.line', first
            )
        assert first.endswith('; max_memory allows 20,000')


def test_a_program_that_holds_less_does_not_fail():
    for seed in range(20):
        Simulation(seed, max_memory=61_000 + MOST).run_program(collecting(5000))
    Simulation(0).run_program(collecting(1 << 20))


def test_bytes_that_wait_to_be_sent_are_held():
    def slow(conn):
        conn.pause_reading()
        conn.loop.call_later(10, conn.abort)

    def program(world):
        server = world.r.listen_tcp(*world.address(), on_connect=slow)
        client = world.r.connect_tcp(*server.address)
        client.write(bytes(2_000_000))
        world.r.call_later(5, client.abort)
        world.r.call_later(9, server.close)

    with pytest.raises(
        SimulationFailed, match=r'client 1: the program holds .*: [\d,]+ waiting to be sent; max_memory'
    ):
        Simulation(0, faults=False, max_memory=1_000_000).run_program(program)
    Simulation(0, faults=False, max_memory=2_100_000).run_program(program)


def test_the_buffer_of_framing_is_held():
    def program(world):
        server = world.r.listen_tcp(*world.address(), framing.lines(lambda conn, line: None))
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: server.close())
        for number in range(50):
            world.r.call_later(number, client.write, bytes(1000))
        world.r.call_later(60, client.close)

    with pytest.raises(SimulationFailed, match=r'server 1: .* [\d,]+ in the buffer of reactor\.framing'):
        Simulation(0, faults=False, max_memory=MOST).run_program(program)
    Simulation(0, faults=False, max_memory=4 * MOST).run_program(program)


def test_the_other_connection_of_a_proxy_is_not_counted():
    def program(world):
        def on_connect(conn):
            conn.data = client
            client.data = conn

        server = world.r.listen_tcp(*world.address(), on_connect=on_connect, on_close=lambda conn, exc: server.close())
        client = world.r.connect_tcp(*server.address)
        world.r.call_later(5, client.close)

    Simulation(0, faults=False, max_memory=10).run_program(program)
