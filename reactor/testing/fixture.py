"""The fixture `simulate` for pytest: put `pytest_plugins = ['reactor.testing.fixture']` into your conftest.py.

Owns the fixture and the option `--seed`. Knows nothing of the program under test. The rule: a failure names the seed,
and `pytest --seed N` runs that one alone.
"""

from __future__ import annotations

import pytest

from .simulation import Simulation, World

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add `--seed`."""
    parser.addoption('--seed', type=int, default=None, metavar='N', help='simulate this seed only')


@pytest.fixture
def simulate(request: Any) -> Callable[..., None]:
    """`simulate(program, seeds=100, **options)`: run `program(world)` on so many simulated systems.

    program  called with a `World` in the first turn: it starts servers and clients on `world.r`
    seeds    how many systems, each with latencies, room and faults of its own; or the seeds themselves
    options  of `Simulation`: `faults=False`, `hosts=...`; `selector=` one of 'epoll', 'poll', 'select', 'kqueue' (a BSD
             or macOS) and 'windows', instead of the system that each seed draws

    Fails with the first seed in which a law of the reactor is broken, a callback raises what the simulation has not
    planted, something waits for ever, or `world.fail` is called; and tells its seed and the last of its trace.
    """

    def run(program: Callable[[World], object], seeds: Any = 100, **options: Any) -> None:
        only = request.config.getoption('--seed')
        for seed in [only] if only is not None else range(seeds) if isinstance(seeds, int) else seeds:
            simulation = Simulation(seed, **options)
            simulation.run_program(program)

    return run
