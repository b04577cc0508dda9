"""Runs by number: each seed draws a system, its faults, a few programs, and their course.

Owns the meaning of a seed. Knows the programs and the simulation. The rule: a seed is the whole of a run, wherever and
whenever it is made.
"""

from __future__ import annotations

from .programs import PROGRAMS
from .simulation import Simulation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_PROGRAMS = 3  # at once


def run_seed(seed: int, programs: tuple[Callable[[Any], object], ...] | None = None, **options: Any) -> Simulation:
    """Run what this seed stands for; raises `SimulationFailed`.

    programs  those to run, instead of one to three that are drawn
    options   of `Simulation`
    """
    simulation = Simulation(seed, **options)
    world = simulation.world
    if programs is None:
        drawn = list(PROGRAMS)
        world.random.shuffle(drawn)
        programs = tuple(drawn[: world.random.randrange(1, MOST_PROGRAMS + 1)])
    return simulation.run_program(*programs)
