"""A simulated operating system, to test servers on: every fault, no second spent, each failure repeatable by a seed.

    SimKernel         stands for the system, in `Reactor(kernel=SimKernel(seed))`
    Simulation        a whole run under watch: `Simulation(seed).run(main)`
    SimulationFailed  what it raises, with the seed and the last of the trace
    World             what programs for many seeds get: the reactor, a random source, trouble

The fixture for pytest is in `reactor.testing.fixture`; `python -m reactor.testing --seeds N` tests the reactor itself.
"""

from .kernel import SimKernel
from .simulation import Simulation, SimulationFailed, World

__all__ = ['SimKernel', 'Simulation', 'SimulationFailed', 'World']
