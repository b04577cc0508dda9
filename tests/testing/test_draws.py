"""Each connection has its own random numbers: a failing seed still fails when unrelated parts of a program change."""

from __future__ import annotations

from itertools import pairwise

import pytest

from reactor.testing import Simulation, SimulationFailed
from reactor.testing.draws import Draws, Keys, number_of
from reactor.testing.shrinking import kind_of
from tests.helpers.planted_servers import chunk_is_message, order_after_partial_write


def ticker(world):
    """A timer that has nothing to do with the rest of the program."""
    left = [600]

    def tick():
        left[0] -= 1
        if not left[0]:
            timer.cancel()

    timer = world.r.call_every(0.5, tick)


def connections(world):
    """A server at another address, and five clients of it, one after the other."""
    server = world.r.listen_tcp('10.0.0.1', 5000, lambda conn, data: conn.write(data))

    def begin(left):
        client = world.r.connect_tcp('10.0.0.1', 5000, lambda conn, data: conn.close(), on_close=lambda conn, exc: None)
        client.write(bytes(30))
        world.r.call_later(50, client.close)
        if left:
            world.r.call_later(0.7, begin, left - 1)
        else:
            world.r.call_later(100, server.close)

    begin(4)


def listener(world):
    """A listener to which no client connects."""
    server = world.r.listen_tcp('10.0.0.1', 6000, None)
    world.r.call_later(100, server.close)


def failure(seed, *programs):
    try:
        Simulation(seed).run_program(*programs)
    except SimulationFailed as failed:
        return kind_of(failed)
    return None


@pytest.mark.parametrize('program', [chunk_is_message, order_after_partial_write])
@pytest.mark.slow
def test_seeds_that_fail_still_fail_with_an_unrelated_timer_connection_or_listener(program):
    failures = {seed: kind for seed in range(200) if (kind := failure(seed, program))}
    assert len(failures) >= 10
    for unrelated in ticker, connections, listener:
        for programs in (program, unrelated), (unrelated, program):
            kept = sum(failure(seed, *programs) == kind for seed, kind in failures.items())
            assert kept >= 0.95 * len(failures), (unrelated, kept, len(failures))


def test_the_numbers_of_a_key_do_not_depend_on_other_keys():
    alone, among = Draws(7).draw, Draws(7).draw
    numbers = [alone(1) for _ in range(50)]
    assert [(among(2), among(1), among(3))[1] for _ in range(50)] == numbers
    assert len({*numbers, *(among(2) for _ in range(50))}) == 100
    assert all(0 <= number < 1 for number in numbers)


@pytest.mark.parametrize('key', [0, 1, ~1, 2**200])
def test_the_numbers_are_even(key):
    """Each tenth has about a tenth of the numbers, also of those that follow a small number."""
    draw = Draws(number_of('even')).draw
    numbers = [draw(key) for _ in range(100_000)]
    for some in numbers, [after for before, after in pairwise(numbers) if before < 0.02]:
        counts = [0] * 10
        for number in some:
            counts[int(number * 10)] += 1
        assert all(abs(count - len(some) / 10) < 5 * (len(some) * 0.09) ** 0.5 for count in counts)


def test_the_first_numbers_of_many_connections_are_even():
    keys, draw = Keys(), Draws(number_of('first')).draw
    for low in range(10):
        firsts = [draw(keys.make('client', ('10.0.0.1', low))) for _ in range(1000)]
        assert 0.45 < sum(firsts) / len(firsts) < 0.55


def test_a_key_depends_only_on_the_address_and_on_the_earlier_keys_of_the_address():
    keys, others = Keys(), Keys()
    first = [keys.make('client', ('10.0.0.1', 80)) for _ in range(3)]
    second = []
    for port in range(3):
        others.make('client', ('10.0.0.1', port))
        second.append(others.make('client', ('10.0.0.1', 80)))
    assert first == second
    assert len(set(first)) == 3
    assert keys.make('client', b'/run/\xff') != keys.make('client', '/run/\udcff')
