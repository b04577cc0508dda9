"""What a program has and no run has reached: time limits, timers, and callbacks for errors and rare events."""

from __future__ import annotations

from functools import partial

from reactor.testing import Simulation, SimulationFailed
from reactor.testing.reached import Reached, name_of, show_never
from reactor.testing.watched import Planted


def never(program, seeds=(0,), **options):
    """Return what these seeds do not reach, without the places."""
    reached = Reached()
    for seed in seeds:
        reached.merge(Simulation(seed, **options).run_program(program).reached)
    assert reached.runs == len(seeds)
    return [line.partition(' at ')[0].partition(' (')[0] for line in reached.never()]


def quiet(world, stop=0.0, **limits):
    """A client that says nothing, until it leaves after `stop` seconds."""

    def on_close(conn, exc):
        server.close()
        leave.cancel()

    server = world.r.listen_tcp(*world.address(), on_close=on_close, **limits)
    client = world.r.connect_tcp(*server.address)
    leave = world.r.call_later(stop, client.close)


def test_a_time_limit_is_reached_when_a_connection_ends_with_its_error():
    for limit in 'read_timeout', 'idle_timeout':
        program = partial(quiet, **{limit: 10})
        assert f'{limit} of listen_tcp' in never(partial(program, stop=5), faults=False)
        assert f'{limit} of listen_tcp' not in never(partial(program, stop=50), faults=False)


def test_what_one_seed_reaches_is_reached():
    def program(world):
        quiet(world, stop=5 + 20 * world._simulation.seed, read_timeout=10)

    assert 'read_timeout of listen_tcp' in never(program, seeds=[0], faults=False)
    assert 'read_timeout of listen_tcp' not in never(program, seeds=[0, 1], faults=False)


def test_limits_of_set_timeouts_and_connect_are_listed():
    def program(world, idle):
        def on_connect(conn):
            conn.set_timeouts(idle=idle)

        server = world.r.listen_tcp(*world.address(), on_connect=on_connect, on_close=lambda conn, exc: server.close())
        client = world.r.connect_tcp(*server.address, timeout=5)
        world.r.call_later(20, client.close)

    assert {'idle_timeout of set_timeouts', 'timeout of connect_tcp'} <= set(never(partial(program, idle=60)))
    found = never(partial(program, idle=10), faults=False)
    assert 'idle_timeout of set_timeouts' not in found
    assert 'timeout of connect_tcp' in found


def test_a_connect_timeout_is_reached():
    def program(world):
        world._simulation.kernel.silent.add('10.0.0.1')
        world.r.connect_tcp('10.0.0.1', 99, timeout=5)

    assert never(program, faults=False) == []


def test_a_linger_does_not_count_as_a_write_timeout():
    def program(world):
        server = world.r.listen_tcp(*world.address(), on_connect=lambda conn: conn.pause_reading())
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: world.r.stop(), write_timeout=5)
        client.write(bytes(1_000_000))
        world.r.call_later(1, client.close)

    assert 'write_timeout of connect_tcp' in never_until_stop(program)


def never_until_stop(program):
    try:
        simulation = Simulation(0, faults=False, patience=100).run_program(program)
    except SimulationFailed as failed:
        simulation = failed.simulation
    return [line.partition(' at ')[0] for line in simulation.reached.never()]


def test_error_paths_are_reached_when_their_callbacks_are_called():
    def program(world, broken, ends):
        def on_data(conn, data):
            if broken:
                raise world.planted

        def on_error(conn, exc):
            conn.close()

        def on_eof(conn):
            conn.close()

        def on_close(conn, exc):
            server.close()

        server = world.r.listen_tcp(*world.address(), on_data, on_error=on_error, on_eof=on_eof, on_close=on_close)
        client = world.r.connect_tcp(*server.address, on_close=world.ignore)
        client.write(b'x')
        if ends:
            client.write_eof()
        world.r.call_later(9, client.close)

    def run(**which):
        def start(world):
            world.planted, world.ignore = Planted('planted'), lambda conn, exc: None
            program(world, **which)

        return {line.partition(':')[0] for line in never(start, faults=False)}

    assert run(broken=True, ends=False) == {'on_eof', 'on_close with an exception'}
    assert run(broken=False, ends=True) == {'on_error', 'on_close with an exception'}


def test_an_accept_error_is_reached():
    def program(world):
        def on_accept_error(listener, exc):
            pass

        server = world.r.listen_tcp(*world.address(), None, on_accept_error=on_accept_error)
        for _ in range(20):
            client = world.r.connect_tcp(*server.address)
            world.r.call_later(300, client.close)
        world.r.call_later(500, server.close)

    assert len(never(program, faults=False)) == 1
    assert never(program, seeds=range(10), faults=('accept.exhausted',), calm=400) == []


def test_names_and_lines():
    assert name_of(partial(partial(quiet, 1), 2)) == 'tests.testing.test_reached:quiet'
    assert show_never(Reached(['b', 'a', 'c'], ['c'], 1200)) == ['never reached in 1,200 seeds:', '    a', '    b']
    assert show_never(Reached(['c'], ['c'], 1)) == ['every time limit, timer and error path was reached in 1 seed']
    assert Reached(*Reached(['b'], ['a'], 3).as_list()).as_list() == [['b'], ['a'], 3]
