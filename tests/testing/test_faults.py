"""The faults of a seed: each kind has its own random numbers, so the other kinds and the traffic do not change it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reactor.testing import Simulation, SimulationFailed
from reactor.testing.faults import SITES, Faults
from tests.helpers.planted_servers import PLANTED

SEEDS = 400


def strikes(faults, sites, rounds=400):
    """Ask for each of these sites in turn, and return its strikes as (round, detail)."""
    found = {site: [] for site in sites}
    for number in range(rounds):
        for site in sites:
            if faults.falls(site):
                found[site].append((number, faults.between(0, 1000)))
    return found


def test_the_strikes_of_one_site_do_not_depend_on_the_other_sites():
    names = ('recv.short', 'send.short', 'clock.jump')
    together = strikes(Faults(5, names), names)
    assert all(together.values())
    for name in names:
        assert strikes(Faults(5, (name,)), (name,))[name] == together[name]
        assert strikes(Faults(5, names, only=(name,)), (name,))[name] == together[name]


def test_a_strike_that_is_left_out_changes_no_later_strike():
    every = strikes(Faults(5, ('recv.short',)), ('recv.short',))['recv.short']
    some = strikes(Faults(5, ('recv.short',), only=('recv.short@2', 'recv.short@7')), ('recv.short',))['recv.short']
    assert some == [every[1], every[6]]


def test_only_leaves_a_seed_the_strength_of_its_other_faults():
    seed = next(seed for seed in range(100) if len(Faults(seed).on) > 3)
    drawn = {name: site.often for name, site in Faults(seed).on.items()}
    kept = sorted(drawn)[:2]
    assert {name: site.often for name, site in Faults(seed, only=kept).on.items()} == {n: drawn[n] for n in kept}
    assert not Faults(seed, only=()).on


def test_a_run_has_about_a_third_of_all_faults_and_one_run_in_ten_has_none():
    counts = [len(Faults(seed).on) for seed in range(1000)]
    assert 60 < counts.count(0) < 140
    assert 0.25 < sum(counts) / (1000 - counts.count(0)) / len(SITES) < 0.35


@pytest.mark.parametrize('fault', ['recv.late', 'recv.late@2', 'recv.short@', 'recv.short@0', 'recv.short@x'])
def test_a_fault_that_does_not_exist_is_refused(fault):
    with pytest.raises(ValueError, match=fault.partition('@')[0]):
        Faults(0, only=(fault,))


def test_the_draws_are_the_same_in_every_process():
    code = (
        'from reactor.testing.faults import *; f = Faults(5, SITES);'
        'print([(n, f.drawn) for _ in range(50) for n in SITES if f.falls(n)])'
    )
    said = {
        subprocess.run(
            [sys.executable, '-c', code], env={'PYTHONHASHSEED': seed}, capture_output=True, text=True
        ).stdout
        for seed in ('1', '2')
    }
    assert len(said) == 1
    assert 'recv.short' in said.pop()


def fails(program, seed):
    try:
        Simulation(seed).run_program(program)
    except SimulationFailed:
        return True
    return False


def test_a_failing_seed_still_fails_if_an_unrelated_part_of_the_program_sets_timers():
    def with_timer(world):
        program(world)
        timer = world.r.call_every(0.01, lambda: None)
        world.r.call_later(2, timer.cancel)

    failed = kept = 0
    for program in PLANTED:
        seeds = [seed for seed in range(SEEDS) if fails(program, seed)]
        assert seeds, f'{program.__name__}: no seed found the bug'
        failed += len(seeds)
        kept += sum(fails(with_timer, seed) for seed in seeds)
    assert kept > 0.95 * failed


def test_a_client_that_connects_in_the_turn_in_which_it_is_closed_may_end_without_sending():
    """The clock jumps past the timer of `close`, so the socket is connected before `close` is called."""

    def program(world):
        server = world.r.listen_tcp(*world.address(), on_close=lambda conn, exc: server.close())
        client = world.r.connect_tcp(*server.address, on_close=lambda conn, exc: None)
        client.write(b'hello')
        world.r.call_later(world.random.random() / 5, client.close)
        world.r.call_later(200, server.close)

    for seed in range(100):
        Simulation(seed, faults=False, grain=0.1).run_program(program)


def test_a_client_that_tried_at_once_while_the_backlog_was_full_is_accepted_once():
    """Regression: both the failed try and the retransmitted SYN connected the client, each time to another server."""
    accepted = 0

    def program(r):
        nonlocal accepted

        def on_connect(conn):
            nonlocal accepted
            accepted += 1
            conn.close()

        server = r.listen_tcp('10.0.0.1', 80, on_connect=on_connect, backlog=0)
        server.pause()
        for _ in range(5):
            r.call_later(1, r.connect_tcp, '10.0.0.1', 80)
        r.call_later(3, server.resume)
        r.call_later(30, server.close)

    for seed in range(10):
        accepted = 0
        Simulation(seed, faults=('connect.at_once',), selector='epoll', calm=60).run(program)
        assert accepted == 5, seed
