"""Run the simulation of a seed. The seed decides the system, its faults, and a few programs.

The same seed makes the same run, on every computer and with every version of Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .programs import ALONE, HOSTILE, PROGRAMS, meddling, restarts
from .simulation import Simulation

MOST_PROGRAMS = 3  # the most programs in one run
ALONE_EVERY = 8  # one in this many seeds runs a program that has to run alone
MEDDLE_EVERY = 8  # one in this many seeds runs `meddling`, with up to two other programs
RESTART_EVERY = 16  # one in this many seeds runs `restarts`, with up to two other programs


def run_seed(seed: int, programs: tuple[Callable[[Any], object], ...] | None = None, **options: Any) -> Simulation:
    """Run the simulation of a seed.

    Args:
        seed: Decides the whole run.
        programs: The programs to run. None: the seed draws one to three. These have no time limits, so they run with
            `keepalive=True`.
        options: Options of `Simulation`.

    Returns:
        The simulation, which has ended without a violation.

    Raises:
        SimulationFailed: A law was broken, or a program failed.
    """
    alone = programs is None and seed % ALONE_EVERY == ALONE_EVERY - 1
    if alone:
        # Half of these runs have no faults, because some checks in these programs are made only without faults.
        options.setdefault('faults', seed % (2 * ALONE_EVERY) < ALONE_EVERY)
    if programs is None and options.get('profile') == 'hostile':
        options.setdefault('keepalive', True)
    simulation = Simulation(seed, **options)
    world = simulation.world
    if alone:
        programs = (world.random.choice(ALONE),)
    elif programs is None:
        drawn = [*PROGRAMS, *(HOSTILE if simulation.kernel.hostile else ())]
        world.random.shuffle(drawn)
        programs = tuple(drawn[: world.random.randrange(1, MOST_PROGRAMS + 1)])
        if seed % MEDDLE_EVERY == MEDDLE_EVERY // 2:
            programs = (meddling, *programs[1:])
        elif seed % RESTART_EVERY == RESTART_EVERY // 4 * 3 - 1:
            programs = (restarts, *programs[1:])
    return simulation.run_program(*programs)
