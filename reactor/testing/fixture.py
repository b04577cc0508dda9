"""The pytest fixture `simulate`. To use it, put `pytest_plugins = ['reactor.testing.fixture']` into your conftest.py.

The message of a failure has the seed and the faults that matter. `pytest --seed N --faults A,B@3` runs that seed alone,
with these faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .shrinking import parse_faults, shrink
from .simulation import Simulation, SimulationFailed, World


def pytest_addoption(parser: Any) -> None:
    """Add `--seed`, `--faults` and `--traffic`."""
    parser.addoption('--seed', type=int, default=None, metavar='N', help='simulate this seed only')
    parser.addoption('--faults', type=parse_faults, default=None, metavar='A,B@N', help='simulate these faults only')
    parser.addoption('--traffic', type=float, default=None, metavar='X', help='from 0 to 1: simulate less traffic')


@pytest.fixture
def simulate(request: Any) -> Callable[..., None]:
    """Run a program on many simulated systems: `simulate(program, seeds=100, **options)`.

    Args:
        program: Called with a `World` in the first turn. It starts servers and clients on `world.r`.
        seeds: The number of systems, or the seeds themselves. Latencies, buffer sizes and faults differ between seeds.
        options: Options of `Simulation`, such as `faults=False`, `until_stop=True` or `patience=60`. `selector` is the
            platform for all seeds: 'epoll', 'poll', 'select', 'kqueue' (a BSD or macOS) or 'windows'. By default, each
            seed draws one.

    Raises:
        SimulationFailed: A law of the reactor was broken, a callback raised an exception that the simulation had not
            planted, the program waits for something that cannot happen, or the program called `world.fail`. The message
            is the report of a smaller run that fails in the same way. To find it, the program runs again with fewer
            faults, for up to two seconds.
    """

    def run(program: Callable[[World], object], seeds: Any = 100, **options: Any) -> None:
        only = request.config.getoption('--seed')
        for name, option in ('only', '--faults'), ('traffic', '--traffic'):
            if request.config.getoption(option) is not None:
                options[name] = request.config.getoption(option)
        for seed in [only] if only is not None else range(seeds) if isinstance(seeds, int) else seeds:
            run_and_shrink(program, seed, options)

    return run


def run_and_shrink(program: Callable[[World], object], seed: int, options: dict[str, Any]) -> None:
    """Run a program with one seed; if it fails, raise the failure of a smaller run."""

    def again(**changes: Any) -> None:
        Simulation(seed, **{**options, **changes}).run_program(program)

    try:
        again()
    except SimulationFailed as failed:
        smaller = shrink(failed, again, [program])
    else:
        return
    raise smaller
