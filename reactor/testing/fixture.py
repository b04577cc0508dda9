"""The pytest fixture `simulate`. To use it, put `pytest_plugins = ['reactor.testing.fixture']` into your conftest.py.

The message of a failure has the seed, and `pytest --seed N` runs that seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .simulation import Simulation, World


def pytest_addoption(parser: Any) -> None:
    """Add `--seed`."""
    parser.addoption('--seed', type=int, default=None, metavar='N', help='simulate this seed only')


@pytest.fixture
def simulate(request: Any) -> Callable[..., None]:
    """Run a program on many simulated systems: `simulate(program, seeds=100, **options)`.

    Args:
        program: Called with a `World` in the first turn. It starts servers and clients on `world.r`.
        seeds: The number of systems, or the seeds themselves. Latencies, buffer sizes and faults differ between seeds.
        options: Options of `Simulation`, such as `faults=False`, `patience=60` or `hosts=...`. `selector` is the
            platform for all seeds: 'epoll', 'poll', 'select', 'kqueue' (a BSD or macOS) or 'windows'. By default, each
            seed draws one.

    Raises:
        SimulationFailed: A law of the reactor was broken, a callback raised an exception that the simulation had not
            planted, the program waits for something that cannot happen, or the program called `world.fail`. The message
            has the seed and the end of the trace.
    """

    def run(program: Callable[[World], object], seeds: Any = 100, **options: Any) -> None:
        only = request.config.getoption('--seed')
        for seed in [only] if only is not None else range(seeds) if isinstance(seeds, int) else seeds:
            simulation = Simulation(seed, **options)
            simulation.run_program(program)

    return run
