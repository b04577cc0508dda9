"""Runs by number: each seed draws a system, its faults, a few programs, and their course.

Owns the meaning of a seed. Knows the programs and the simulation. The rule: a seed is the whole of a run, wherever and
whenever it is made.
"""

from __future__ import annotations

from .programs import ALONE, PROGRAMS, meddling
from .simulation import Simulation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_PROGRAMS = 3  # at once
ALONE_EVERY = 8  # seeds, one is for a program that runs alone
MEDDLE_EVERY = 8  # seeds, one is for handles that act on each other, and what else is drawn


def run_seed(seed: int, programs: tuple[Callable[[Any], object], ...] | None = None, **options: Any) -> Simulation:
    """Run what this seed stands for; raises `SimulationFailed`.

    programs  those to run, instead of one to three that are drawn
    options   of `Simulation`
    """
    alone = programs is None and seed % ALONE_EVERY == ALONE_EVERY - 1
    if alone:
        options.setdefault('faults', seed % (2 * ALONE_EVERY) < ALONE_EVERY)  # what they promise needs calm
    simulation = Simulation(seed, **options)
    world = simulation.world
    if alone:
        programs = (world.random.choice(ALONE),)
    elif programs is None:
        drawn = list(PROGRAMS)
        world.random.shuffle(drawn)
        programs = tuple(drawn[: world.random.randrange(1, MOST_PROGRAMS + 1)])
        if seed % MEDDLE_EVERY == MEDDLE_EVERY // 2:
            programs = (meddling, *programs[1:])
    return simulation.run_program(*programs)
