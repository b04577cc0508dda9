"""A simulated operating system for testing servers.

It simulates failures of every kind and takes no real time. The same seed always gives the same run.

    SimKernel         the simulated operating system: `Reactor(kernel=SimKernel(seed))`
    Simulation        one checked run: `Simulation(seed).run(main)`
    SimulationFailed  raised by a run that failed, with the seed and the end of the trace
    NotSimulated      raised when a simulated program uses the real network, the real clock or a real thread
    World             the object passed to each program: it has the reactor, and makes random decisions and failures

The pytest fixture is in `reactor.testing.fixture`. `python -m reactor.testing --seeds N` tests the reactor itself.
"""

from .kernel import SimKernel
from .reality import NotSimulated
from .simulation import Simulation, SimulationFailed, World

__all__ = ['NotSimulated', 'SimKernel', 'Simulation', 'SimulationFailed', 'World']
