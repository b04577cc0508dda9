"""A simulated operating system for testing servers: it can fail in every way, takes no real time, and repeats by seed.

    SimKernel         the simulated operating system: `Reactor(kernel=SimKernel(seed))`
    Simulation        one checked run: `Simulation(seed).run(main)`
    SimulationFailed  raised by a run that failed, with the seed and the end of the trace
    World             passed to each program: the reactor, a random generator, and planted trouble

The pytest fixture is in `reactor.testing.fixture`. `python -m reactor.testing --seeds N` tests the reactor itself.
"""

from .kernel import SimKernel
from .simulation import Simulation, SimulationFailed, World

__all__ = ['SimKernel', 'Simulation', 'SimulationFailed', 'World']
