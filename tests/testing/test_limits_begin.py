"""The time limits of a connection count from the time when it is made: the simulation reports no correct program.

The docstring of `set_timeouts` has the rule. Time may pass between the start of a connect, the poll in which it
succeeds, and the end of the turn: the computer was asleep, or a callback was slow.
"""

from __future__ import annotations

import pytest

from reactor.net.timeouts import Timeouts
from reactor.testing import Simulation

SEEDS = 25
LIMITS = {'idle_timeout': 20}, {'read_timeout': 20}, {'write_timeout': 20}
FAULTS = ('clock.jump',), ('clock.jump', 'callback.slow', 'network.stall')


@pytest.mark.parametrize('faults', FAULTS, ids=' '.join)
@pytest.mark.parametrize('reports', [False, True], ids=['without on_connect', 'with on_connect'])
@pytest.mark.parametrize('limits', LIMITS, ids=lambda limits: ''.join(limits))
@pytest.mark.slow
def test_a_correct_program_is_not_reported_when_time_passes_while_a_connection_is_made(limits, reports, faults):
    def program(world):
        def trouble(*args):
            world.trouble()

        def on_close(conn, exc):
            clients.remove(conn)
            if not clients:
                server.close()

        def say(conn):
            if not conn.closed:
                conn.write(b'hello')

        on_connect = trouble if reports else None
        server = world.r.listen_tcp(*world.address(), trouble, on_connect=trouble, **limits)
        clients = [
            world.r.connect_tcp(*server.address, on_connect=on_connect, on_close=on_close, **limits) for _ in range(4)
        ]
        for number, conn in enumerate(clients):
            world.r.call_later(0.01 * number, say, conn)
            world.r.call_later(100, conn.close)

    for seed in range(SEEDS):
        Simulation(seed, faults=faults).run_program(program)


def test_a_limit_that_begins_before_the_connection_is_made_is_reported(monkeypatch):
    """The check is not blind: a reactor that counts from the beginning of the connect ends connections too early."""
    begin = Timeouts.__init__
    monkeypatch.setattr(Timeouts, '__init__', lambda self, now: begin(self, now - 5))

    def program(world):
        server = world.r.listen_tcp(*world.address(), idle_timeout=60)
        world.r.connect_tcp(*server.address, idle_timeout=60, on_close=lambda conn, exc: server.close())

    with pytest.raises(AssertionError, match='the limit is 60 s'):
        Simulation(1, faults=False).run_program(program)
