"""Simulated programs as users write them: each runs as it would on a real system, and only its own mistakes fail it."""

from __future__ import annotations

from reactor import framing
from reactor.testing import Simulation

SEEDS = range(12)


def test_a_callback_can_be_chained():
    def program(world):
        ends = []

        def chain(conn):
            old = conn.on_close
            conn.on_close = lambda conn, exc: (old(conn, exc), ends.append(exc))

        server = world.r.listen_tcp(
            *world.address(), lambda conn, data: conn.write(data), on_connect=chain, on_close=lambda *_: server.close()
        )
        both = world.expect('both chained callbacks')
        client = world.r.connect_tcp(*server.address, lambda conn, data: conn.close(), on_close=lambda *_: None)
        chain(client)
        client.write(b'hello')
        world.r.call_later(600, lambda: (len(ends) == 2) and both.met())

    for seed in SEEDS:
        Simulation(seed, faults=False).run_program(program)


def test_a_callback_reads_as_it_was_set():
    def program(world):
        def on_data(conn, data): ...

        conn = world.r.connect_tcp(*world.address(), on_data)
        assert conn.on_data is on_data
        assert conn.on_close is None and conn.on_drain is None
        conn.on_data = None
        assert conn.on_data is None
        conn.close()

    Simulation(1).run_program(program)


def test_every_line_is_delivered():
    lines = []

    def program(world):
        def served(conn, exc):
            lines.append(got)
            server.close()

        got = []
        read = framing.lines(lambda conn, line: got.append(line))
        server = world.r.listen_tcp(*world.address(), read, on_close=served)
        client = world.r.connect_tcp(*server.address)
        client.write(b'one\ntwo\nthree\n')
        client.write_eof()

    for seed in SEEDS:
        Simulation(seed, faults=False).run_program(program)
    assert lines == [[b'one', b'two', b'three']] * len(SEEDS)
