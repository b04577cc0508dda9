"""How long a simulated run may take: long waits cost nothing, and a program that waits for long is not a failure."""

from __future__ import annotations

import pytest

from reactor import IdleTimeout, ReadTimeout
from reactor.testing import Simulation, SimulationFailed, runs
from reactor.testing import simulation as simulations
from tests.helpers.work import work_of

HOUR = 3600.0


def simulation(**options):
    return Simulation(1, faults=False, **options)


def silent_clients(r, **limits):
    """Connect a client that sends nothing to a server with these time limits, and end with it."""
    server = r.listen_tcp('10.0.0.1', 80, on_close=lambda conn, exc: server.close(), **limits)
    r.connect_tcp('10.0.0.1', 80)


@pytest.mark.parametrize(('limit', 'error'), [('idle_timeout', IdleTimeout), ('read_timeout', ReadTimeout)])
def test_a_time_limit_of_hours_is_no_failure(limit, error):
    run = simulation().run(lambda r: silent_clients(r, **{limit: 7200}))
    assert error in [type(record.exc) for record in run.reactor.ledger.records]


def test_a_timer_of_a_week_is_no_failure():
    simulation().run(lambda r: r.call_later(7 * 24 * HOUR, int))


def test_timers_of_hours_one_after_the_other_are_no_failure():
    def main(r):
        left = [3 * HOUR] * 5

        def go_on():
            if left:
                r.call_later(left.pop(), go_on)

        go_on()

    simulation().run(main)


def test_an_hour_costs_no_more_than_a_minute():
    def work(seconds):
        return work_of(simulation(grain=0).run, lambda r: r.call_later(seconds, int))

    assert work(HOUR) < 1.1 * work(60)


def test_a_ticker_may_tick_for_35_minutes():
    ticks = 0

    def main(r):
        def tick():
            nonlocal ticks
            ticks += 1

        ticker = r.call_every(0.01, tick)
        r.call_later(35 * 60, ticker.cancel)

    simulation(grain=0).run(main)
    assert ticks >= 200_000


# -- what never ends is still found


def fails(match):
    return pytest.raises(SimulationFailed, match=match)


def test_a_server_that_is_never_closed_is_found():
    def main(r):
        r.call_every(60, int)
        r.listen_tcp('10.0.0.1', 80)

    with fails('liveness: [0-9]+ s after the last fault(?s:.*)`patience=`(?s:.*)accepting at 10.0.0.1:80'):
        simulation().run(main)


def test_a_timer_of_hours_that_is_always_set_again_is_found():
    def again(r):
        r.call_later(2 * HOUR, again, r)

    with fails('liveness'):
        simulation().run(again)


def test_patience_can_be_set():
    with fails('liveness: 30 s after the last fault'):
        simulation(patience=30, calm=0).run(lambda r: r.call_later(31, int))
    simulation(patience=32, calm=0, grain=0).run(lambda r: r.call_later(31, int))


def test_the_number_of_turns_can_be_limited():
    def main(r):
        ticker = r.call_every(1, int)
        r.call_later(100.5, ticker.cancel)

    with fails('has not ended after 91 turns(?s:.*)`turns=`'):
        simulation(turns=90, grain=0).run(main)
    simulation(turns=120, grain=0).run(main)


def test_a_program_that_always_has_something_to_do_is_found(monkeypatch):
    """Time passes in each turn, so the loop does not spin."""
    monkeypatch.setattr('reactor.testing.oracles.MOST_TURNS', 500)

    def again(r, kernel):
        kernel.busy(0.001)
        r.call_soon(again, r, kernel)

    run = simulation()
    with fails('has not ended after 5[0-9]+ turns'):
        run.run(lambda r: again(r, run.kernel))


@pytest.mark.parametrize('how', [['--seed', '5'], ['--seeds', '1', '--first', '5']])
def test_both_limits_are_options_of_the_command(monkeypatch, capsys, how):
    seen = []

    def run_some(seed, **options):
        seen.append({name: options[name] for name in ('patience', 'turns')})
        kernel = simulations.SimKernel(seed)
        options.get('on_kernel', str)(kernel)
        raise SimulationFailed('it never ended')

    monkeypatch.setattr(runs, 'run_seed', run_some)
    assert runs.main([*how, '--patience', '9.5', '--turns', '77']) == 1
    assert seen == [{'patience': 9.5, 'turns': 77}]
    if '--seeds' in how:
        assert '--patience 9.5 --turns 77 --seed 5' in capsys.readouterr().out


def undrained(world):
    """A server that goes on writing after `write` has returned False."""

    def on_connect(conn):
        for _ in range(20):
            conn.write(bytes(50_000))
        conn.close()

    server = world.r.listen_tcp(*world.address(), on_connect=on_connect, idle_timeout=60)
    world.r.connect_tcp(*server.address, idle_timeout=60, on_close=lambda conn, exc: server.close())


@pytest.mark.parametrize(
    ('option', 'value'), [('--max-undrained', '1000'), ('--max-memory', '1000'), ('--calm', '0.5')], ids=str
)
def test_the_command_line_has_the_options_and_its_repeat_line_too(option, value, monkeypatch, capsys):
    name = option.lstrip('-').replace('-', '_')
    seen, real = [], runs.run_seed

    def run_seed(seed, **options):
        seen.append(options.get(name))
        return real(seed, **options)

    monkeypatch.setattr(runs, 'run_seed', run_seed)
    program = f'{__name__}:undrained'
    failed = runs.main([program, '--seeds', '1', '--profile', 'default', option, value])
    assert set(seen) == {float(value)}
    said = capsys.readouterr().out
    if option == '--calm':
        assert not failed
        return
    repeat = said.partition('repeat: python -m reactor.testing ')[2].partition('\n')[0]
    assert f' {option} {value} ' in repeat
    assert runs.main(repeat.split()) == 1
    assert first_line(capsys.readouterr().out.partition('\nfailed: ')[2]) == first_line(said)
    assert runs.main([program, '--seed', '0', '--faults', 'none']) == 0


def first_line(text):
    return text.partition('\n')[0]


def test_keepalive_can_be_set_on_the_command_line(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(runs, 'run_seed', lambda seed, **options: seen.append(options) or simulation().run(str))
    runs.main([f'{__name__}:undrained', '--seed', '1', '--profile', 'hostile', '--keepalive'])
    assert seen[0]['keepalive'] is True
    assert '--keepalive' in runs.command(seen[0])
