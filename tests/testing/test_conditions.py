"""Conditions of the user's own: `World.always`, and writes after a write has returned False."""

from __future__ import annotations

import pytest

from reactor.testing import Simulation, SimulationFailed


def simulation(**options):
    return Simulation(1, faults=False, **options)


def fails(match):
    return pytest.raises(SimulationFailed, match=match)


# -- world.always


def count_to(most, condition, text=''):
    """Return a program that counts up once a second, and has `condition(count)` checked after each turn."""

    def program(world):
        count = [0]

        def tick():
            count[0] += 1
            if count[0] == most:
                ticker.cancel()

        ticker = world.r.call_every(1, tick)
        world.always(lambda: condition(count[0]), text)

    return program


def test_a_condition_is_checked_after_every_turn():
    seen = []
    simulation().run_program(count_to(5, lambda count: seen.append(count)))
    assert sorted(set(seen)) == [0, 1, 2, 3, 4, 5]


def test_a_condition_that_is_false_for_one_turn_fails_the_run_with_its_text():
    with fails('always: this was not true after the turn: the count is never 3\n'):
        simulation().run_program(count_to(5, lambda count: count != 3, 'the count is never 3'))


@pytest.mark.parametrize('value', [True, 1, 'yes', None])
def test_true_values_and_none_are_no_failure(value):
    simulation().run_program(count_to(2, lambda count: value))


@pytest.mark.parametrize('value', [False, 0, '', []])
def test_false_values_are_failures(value):
    with fails('always'):
        simulation().run_program(count_to(2, lambda count: value))


def test_an_exception_of_a_condition_fails_the_run_with_its_line():
    def must_be_small(count):
        assert count < 3, f'{count} is not small'

    with fails(r'always: .*3 is not small.* was raised at .*test_conditions\.py:\d+'):
        simulation().run_program(count_to(5, must_be_small))


def test_a_docstring_is_the_text_of_a_condition():
    def program(world):
        def never():
            """There are no members.

            This is not part of the message.
            """
            return False

        world.always(never)

    with fails('always: this was not true after the turn: There are no members.\n'):
        simulation().run_program(program)


def test_several_conditions_are_all_checked():
    def program(world):
        world.always(lambda: True, 'first')
        world.always(lambda: False, 'second')

    with fails('second'):
        simulation().run_program(program)


# -- writes after False


def publish(polite, pieces=30, size=1000):
    """Return a program in which a server publishes to a client. If polite, it waits for `on_drain`."""

    def program(world):
        def send(conn):
            while conn.data and not conn.closed:
                conn.data -= 1
                if not conn.write(bytes(size)) and polite:
                    return
            if not conn.data:
                conn.close()
                server.close()

        def on_connect(conn):
            conn.data = pieces
            send(conn)

        def on_data(conn, data):
            conn.pause_reading()
            world.r.call_later(0.1, conn.resume_reading)

        server = world.r.listen_tcp(
            *world.address(), on_connect=on_connect, on_drain=send, high_water=2000, low_water=500
        )
        world.r.connect_tcp(*server.address, on_data, read_size=500)

    return program


SMALL_BUFFERS = range(20)  # among these seeds are some whose buffers are smaller than what is published


def test_a_publisher_that_ignores_the_result_of_write_is_found():
    with fails(r'a write had returned False, and the program has written \d+ bytes since.*max_undrained allows 5000'):
        for seed in SMALL_BUFFERS:
            Simulation(seed, faults=False, max_undrained=5000).run_program(publish(polite=False))


def test_a_publisher_that_waits_for_on_drain_is_no_failure():
    waited = 0
    for seed in SMALL_BUFFERS:
        run = Simulation(seed, faults=False, max_undrained=0).run_program(publish(polite=True))
        waited += any('drain' in record.events for record in run.reactor.ledger.records)
    assert waited


def test_a_publisher_that_looks_at_the_bytes_that_wait_is_no_failure():
    def program(world):
        def send(conn):
            while conn.data and conn.buffered <= 500:
                conn.data -= 1
                conn.write(bytes(3000))
            if conn.data:
                world.r.call_later(0.1, send, conn)
            else:
                conn.close()
                server.close()

        def on_connect(conn):
            conn.data = 30
            send(conn)

        server = world.r.listen_tcp(*world.address(), on_connect=on_connect, high_water=2000, low_water=500)
        world.r.connect_tcp(*server.address)

    for seed in SMALL_BUFFERS:
        Simulation(seed, faults=False, max_undrained=0).run_program(program)


def test_without_the_option_ignoring_the_result_of_write_is_no_failure():
    for seed in SMALL_BUFFERS:
        Simulation(seed, faults=False).run_program(publish(polite=False))
