"""The report of a failing seed names the program, the law that it breaks, the faults that struck, and what happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial

import pytest

from reactor.testing import Simulation, SimulationFailed
from reactor.testing.places import can_be_imported, program_name
from tests.helpers.planted_servers import chunk_is_message


def report(program, seed=0, **options):
    with pytest.raises(SimulationFailed) as caught:
        Simulation(seed, **options).run_program(program)
    return str(caught.value)


def talk(world, text='the end'):
    """One client sends 100 bytes, and the run fails when they have arrived."""
    got = []

    def on_data(conn, data):
        got.append(data)
        if sum(map(len, got)) == 100:
            world.fail(text)

    server = world.r.listen_tcp(*world.address(), on_data, on_connect=lambda conn: None)
    port = server.address[1]
    client = world.r.connect_tcp('both.test', port, on_close=lambda conn, exc: None)
    client.write(b'hello ' + bytes(94))
    world.r.call_later(300, client.close)
    world.r.call_later(400, server.close)


def test_one_connection_has_one_number_in_every_line():
    for seed in range(20):
        said = report(talk, seed, faults=False)
        lines = [line for line in said.splitlines() if line.startswith('  turn ')]
        assert {name for line in lines for name in re.findall(r'(?:client|server) \d+', line)} == {
            'client 1',
            'server 1',
        }
        [sent] = [line for line in lines if 'the program calls write' in line] or ['client 1: the program calls write']
        assert 'client 1: the program calls write' in sent
        assert any('server 1: on_data' in line for line in lines)
        known = ('ready:', 'socket fd=', 'listener fd=', 'program ', 'a timer:', 'signal', 'calm', 'the wakeup: ')
        for line in lines:
            assert re.match(r'  turn \d+ +\d+\.\d{6}  (client 1: |server 1: )', line) or any(k in line for k in known)


def test_an_accepted_connection_and_its_client_have_the_same_number():
    """Several clients connect in one turn and are accepted in any order; their bytes say who is who."""

    def program(world):
        heard = []

        def on_data(conn, data):
            heard.append(data)
            if len(heard) == 6:
                world.fail('all six')

        server = world.r.listen_tcp(*world.address(), on_data)
        clients = [world.r.connect_tcp(*server.address) for _ in range(6)]
        for number, client in enumerate(clients, 1):
            client.write(b'%d' % number)

    for seed in range(10):
        with pytest.raises(SimulationFailed) as caught:
            Simulation(seed, faults=('select.shuffled', 'network.stall')).run_program(program)
        trace = caught.value.simulation.show_trace()
        heard = re.findall(r"server (\d): on_data 1 byte b'(\d)'", trace)
        assert sorted(heard) == [(str(number), str(number)) for number in range(1, 7)]


def test_bytes_are_shown_readable_and_shortened():
    said = report(talk, faults=False)
    assert "arrived: 100 bytes b'hello \\x00" in said
    shown = [len(each) for each in re.findall(r"100 bytes (b'.*')\.\.\.", said)]
    assert shown
    assert max(shown) < 250


def test_the_faults_that_could_happen_and_those_that_did_are_listed():
    seed = next(seed for seed in range(500) if failing(seed))
    said = report(chunk_is_message, seed)
    assert re.search(r'^faults that could happen in the first \S+ s: .*(recv|send)\.short \(\d+\S* %\)', said, re.M)
    count = int(re.search(r'^faults that happened: (\d+)$', said, re.M)[1])
    listed = re.split('the last events|the end of the trace', said.partition('faults that happened: ')[2])[
        0
    ].splitlines()[1:]
    assert len(listed) == count > 0
    line = r'  turn \d+ +\d+\.\d+  (?:(?:client|server) \d: |socket fd=\d+: |listener fd=\d+: )?fault \w+\.\w+@\d+: \w+'
    assert all(re.match(line, each) for each in listed)
    assert any(re.search(r'(client|server) \d: fault (recv|send)\.short@\d', each) for each in listed)


def failing(seed):
    try:
        Simulation(seed).run_program(chunk_is_message)
    except SimulationFailed:
        return True
    return False


def test_a_jump_of_the_clock_and_a_stall_say_how_long_they_were():
    said = ''.join(report(talk, seed, faults=('clock.jump', 'network.stall'), calm=1000) for seed in range(20))
    assert re.search(r'clock jumped: \d+(\.\d+)? s passed', said)
    assert re.search(r'(client|server) 1: what arrives next takes \S+ s', said)


def test_the_turn_of_the_report_is_the_turn_of_the_last_line():
    said = report(talk, faults=False)
    turn = int(re.match(r'seed 0, turn (\d+): the end', said)[1])
    assert said.rstrip().splitlines()[-1].startswith(f'  turn {turn} ')


def test_a_law_and_an_expectation_are_explained_in_a_sentence():
    simulation = Simulation(0, selector='windows', faults=False)
    with pytest.raises(SimulationFailed, match=r'(?m)^law 7: a handle that cannot progress uses no CPU$'):
        simulation.run(lambda r: r.call_later(1, r.watchers.rebuild))
    assert 'have not happened: tea\nliveness: after the faults have stopped, everything' in report(
        lambda world: world.expect('tea'), faults=False
    )


def test_an_exception_and_a_call_of_fail_say_where_they_are_in_the_program():
    def program(world):
        def broken(conn):
            raise KeyError('no such guest')

        server = world.r.listen_tcp(*world.address(), on_connect=broken)
        world.r.connect_tcp(*server.address)

    said = report(program, faults=False).splitlines()[0]
    assert re.search(
        r"a callback of server 1 raised KeyError\('no such guest'\) at test_report\.py:\d+, in broken$", said
    )
    assert re.search(r'the end \(world\.fail at test_report\.py:\d+, in on_data\)$', report(talk).splitlines()[0])


class Callable:
    def __call__(self, world):
        """Do nothing."""


def test_a_program_has_a_name_that_a_person_can_find():
    def inner(world):
        """Do nothing."""

    here = __name__
    line = inner.__code__.co_firstlineno
    assert program_name(talk) == f'{here}:talk'
    assert program_name(partial(talk, text='x')) == f'{here}:talk'
    assert program_name(Callable()) == f'{here}:Callable'
    test = 'test_a_program_has_a_name_that_a_person_can_find'
    assert program_name(inner) == f'{here}:{test} (inner, line {line} of test_report.py)'
    assert re.fullmatch(
        rf'{re.escape(here)}:{test} \(a lambda, line \d+ of test_report.py\)', program_name(lambda w: w)
    )
    assert can_be_imported(talk)
    assert not can_be_imported(inner)
    assert not can_be_imported(partial(talk, text='x'))
    assert f'\nthe program: {here}:talk\n' in report(talk)


def test_a_report_is_the_same_in_every_process():
    code = (
        'import logging; logging.disable(50)\n'
        'from tests.helpers.planted_servers import *\n'
        'from reactor.testing import *\n'
        'for seed in range(60):\n'
        '    for program in PLANTED:\n'
        '        try: Simulation(seed).run_program(program)\n'
        '        except SimulationFailed as exc: print(exc)\n'
    )
    said = {
        subprocess.run(
            [sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': seed}, capture_output=True, text=True
        ).stdout
        for seed in ('1', '2', '3')
    }
    assert len(said) == 1
    assert 'the end of the trace' in said.pop()


def failure(program, seed, **options):
    with pytest.raises(SimulationFailed) as failed:
        Simulation(seed, **options).run_program(program)
    return str(failed.value)


def test_what_waits_has_the_name_of_its_connection_and_the_expectations_are_listed():
    def program(world):
        world.expect('a miracle')
        server = world.r.listen_tcp(*world.address())
        world.r.connect_tcp(*server.address)

    said = failure(program, 1, faults=False)
    assert re.search(r'^client 1: <Stream fd=\d+ OPEN', said, re.M) and 'expects: a miracle' in said
    assert 'Watched' not in said


def test_without_faults_the_report_says_that_none_is_needed():
    assert 'no fault is needed' in failure(lambda world: world.fail('wrong'), 1, faults=False)


def test_the_last_events_of_a_connection_that_the_violation_names_are_shown():
    def program(world):
        server = world.r.listen_tcp(*world.address(), lambda conn, data: None)
        first = world.r.connect_tcp(*server.address)
        first.write(b'the first words')
        for _ in range(40):
            world.r.connect_tcp(*server.address, on_connect=lambda conn: conn.close())

    said = failure(program, 1, faults=False)
    events = said.partition('the last events of client 1:')[2].partition('the last events of')[0]
    assert "the program calls write 15 bytes b'the first words'" in events


def test_a_strike_without_a_descriptor_names_its_connection():
    def program(world):
        server = world.r.listen_tcp(*world.address(), lambda conn, data: None)
        world.r.connect_tcp(*server.address, on_connect=lambda conn: conn.write(b'x'))
        world.r.call_later(100, lambda: world.fail('wrong'))

    said = ''.join(failure(program, seed, faults=('network.stall',), calm=50) for seed in range(60))
    assert re.search(r'(client|server) 1: fault network\.stall@1', said)


def test_the_trace_has_pauses_and_refused_writes_and_what_threads_do():
    def work(world):
        world.r.call_soon_threadsafe(done, world)

    def done(world):
        world.fail('wrong')

    def program(world):
        server = world.r.listen_tcp(*world.address(), on_connect=lambda conn: conn.pause_reading(), high_water=10)
        conn = world.r.connect_tcp(*server.address, high_water=10)
        world.r.call_later(1, lambda: conn.write(bytes(10_000_000)))
        world.r.call_later(2, world.r.run_in_thread, work, world)

    said = failure(program, 1, faults=False)
    for text in (
        'server 1: the program calls pause_reading()',
        'client 1: the write returned False',
        'begins test_the_trace_has_pauses',
        'calls call_soon_threadsafe test_the_trace_has_pauses',
        'ends test_the_trace_has_pauses',
    ):
        assert text in said, text
