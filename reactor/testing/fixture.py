"""The pytest fixture `simulate`. To use it, put `pytest_plugins = ['reactor.testing.fixture']` into your conftest.py.

The message of a failure has the seed, the faults that matter, and a command that repeats it: `pytest --seed N --faults
A,B@3` runs that seed alone, with these faults.

With pytest-xdist, each test that uses the fixture is collected once for each worker, as `test[seeds-1-of-2]` and so on.
Each of these parts runs its share of the seeds. With `--seed`, and without pytest-xdist, there is only one test.

`pytest --simulation-report`, or `-v`, lists for each test the time limits, timers and error paths of the programs that
no seed has reached.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from .faults import PROFILES
from .reached import Reached, show_never
from .shrinking import parse_faults, shrink
from .simulation import Simulation, SimulationFailed
from .world import World

PART = re.compile(r'(?:(?<=\[)|-)seeds-\d+-of-\d+\]$')  # the end of the name of a test that runs a part of the seeds
PLUGIN = __name__
EARLY = pytest.StashKey[bool]()  # this plugin knew the command line before it was parsed
REACHED = pytest.StashKey[dict[str, Reached]]()  # for each test, what its seeds have reached


def pytest_addoption(parser: Any) -> None:
    """Add `--seed`, `--faults`, `--traffic`, `--profile` and `--simulation-report`."""
    parser.addoption('--seed', type=int, default=None, metavar='N', help='simulate this seed only')
    parser.addoption('--faults', type=parse_faults, default=None, metavar='A,B@N', help='simulate these faults only')
    parser.addoption('--profile', choices=tuple(PROFILES), default=None, help='hostile: simulate harsher systems')
    parser.addoption('--traffic', type=float, default=None, metavar='X', help='from 0 to 1: simulate less traffic')
    parser.addoption(
        '--simulation-report',
        action='store_true',
        help='list the time limits, timers and error paths that no simulated seed has reached',
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: Any) -> None:
    """Record that the options of this plugin can be used without `-p`: it comes from a conftest.py, for example."""
    config.stash[EARLY] = PLUGIN not in (config.getoption('plugins') or ())


def pytest_configure(config: Any) -> None:
    """Prepare for what the tests report."""
    config.stash[REACHED] = {}


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: Any) -> None:
    """With several workers of pytest-xdist, divide the seeds of a test into as many parts."""
    workers = getattr(metafunc.config, 'workerinput', {}).get('workercount', 1)
    if workers > 1 and 'simulate' in metafunc.fixturenames and metafunc.config.getoption('--seed') is None:
        parts = [(part, workers) for part in range(workers)]
        ids = [f'seeds-{part + 1}-of-{workers}' for part in range(workers)]
        metafunc.parametrize('simulate', parts, indirect=True, ids=ids)


@pytest.fixture
def simulate(request: Any) -> Callable[..., None]:
    """Run a program on many simulated systems: `simulate(program, seeds=100, **options)`.

    Args:
        program: Called with a `World` in the first turn. It starts servers and clients on `world.r`.
        seeds: The number of systems, or the seeds themselves. Latencies, buffer sizes and faults differ between seeds.
            The workers of pytest-xdist share a number or a range. Other seeds, such as a list, run on every worker.
        options: Options of `Simulation`, such as `faults=False`, `profile='hostile'` or `until_stop=True`. `selector`
            is the platform for all seeds: 'epoll', 'poll', 'select', 'kqueue' (a BSD or macOS) or 'windows'. By
            default, each seed draws one.

    Raises:
        SimulationFailed: A law of the reactor was broken, a callback raised an exception that the simulation had not
            planted, the program waits for something that cannot happen, or the program called `world.fail`. The message
            is the report of a smaller run that fails in the same way. To find it, the program runs again with fewer
            faults, for up to two seconds.
    """
    part, parts = getattr(request, 'param', (0, 1))
    reached = request.config.stash[REACHED].setdefault(whole_test(request.node.nodeid), Reached())
    loaded = '' if request.config.stash.get(EARLY, False) else f'-p {PLUGIN} '
    command = f'python -m pytest {loaded}{shlex.quote(test_to_run(request.node))}'

    def run(program: Callable[[World], object], seeds: Any = 100, **options: Any) -> None:
        only = request.config.getoption('--seed')
        for name, option in ('only', '--faults'), ('traffic', '--traffic'), ('profile', '--profile'):
            if request.config.getoption(option) is not None:
                options[name] = request.config.getoption(option)
        for seed in [only] if only is not None else share(seeds, part, parts):
            run_and_shrink(program, seed, options, reached, command)

    return run


def share(seeds: int | Iterable[int], part: int, parts: int) -> Iterable[int]:
    """Return the seeds of one of several parts; seeds that are neither a number nor a range are in every part."""
    if isinstance(seeds, int):
        seeds = range(seeds)
    return seeds[part::parts] if isinstance(seeds, range) else seeds


def whole_test(name: str) -> str:
    """Return the name of the test of which `name` is a part."""
    return PART.sub(']', name).removesuffix('[]')


def test_to_run(node: Any) -> str:
    """Return the name of a test for the command line, relative to the directory where pytest was started."""
    file = os.path.relpath(node.path, node.config.invocation_params.dir)
    return '::'.join([file.replace(os.sep, '/'), *whole_test(node.nodeid).split('::')[1:]])


def run_and_shrink(
    program: Callable[[World], object],
    seed: int,
    options: dict[str, Any],
    reached: Reached | None = None,
    command: str = '',
) -> None:
    """Run a program with one seed; if it fails, raise the failure of a smaller run.

    Args:
        program: The program.
        seed: The seed.
        options: Options of `Simulation`.
        reached: What the run has reached is added to this object.
        command: The command for the report that runs the program with the same options.
    """

    def again(**changes: Any) -> Simulation:
        return Simulation(seed, **{**options, **changes}).run_program(program)

    try:
        simulation = again()
    except SimulationFailed as failed:
        if reached is not None and failed.simulation is not None:
            reached.merge(failed.simulation.reached)
        smaller = shrink(failed, again, [program], command)
    else:
        if reached is not None:
            reached.merge(simulation.reached)
        return
    raise smaller


def pytest_sessionfinish(session: Any) -> None:
    """On a worker of pytest-xdist, send what its tests have reached to the main process."""
    output = getattr(session.config, 'workeroutput', None)
    if output is not None:
        output['reached'] = {name: reached.as_list() for name, reached in session.config.stash[REACHED].items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the main process of pytest-xdist, add what the tests of a worker have reached."""
    for name, reached in getattr(node, 'workeroutput', {}).get('reached', {}).items():
        node.config.stash[REACHED].setdefault(name, Reached()).merge(Reached(*reached))


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """With `-v` or `--simulation-report`, list what no seed has reached."""
    found = {name: reached for name, reached in sorted(config.stash[REACHED].items()) if reached.runs}
    if found and (config.getoption('--simulation-report') or config.get_verbosity() > 0):
        terminalreporter.section('simulated programs')
        for name, reached in found.items():
            first, *lines = show_never(reached)
            terminalreporter.write_line(f'{name}: {first}')
            for line in lines:
                terminalreporter.write_line(line)
