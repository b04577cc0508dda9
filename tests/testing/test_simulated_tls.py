"""The random programs over TLS on simulated kernels: the laws hold, and all plaintext arrives despite faults.

Keys and the lengths of some messages are random, so a seed repeats the program and the faults, but not every byte.
"""

from __future__ import annotations

import pytest

from reactor.testing import Simulation
from reactor.testing.programs import ALONE, PROGRAMS
from tests.helpers.certificates import Certificates, certificates  # noqa: F401


@pytest.mark.scenario(113)
@pytest.mark.parametrize(
    'seeds', [range(2), pytest.param(range(2, 12), marks=pytest.mark.slow)], ids=['2 seeds', '10 seeds more']
)
@pytest.mark.parametrize('faults', [True, False], ids=['faults', 'calm'])
@pytest.mark.parametrize('program', (*PROGRAMS, *ALONE), ids=lambda program: program.__name__)
def test_a_program_keeps_the_laws_over_tls(certificates: Certificates, program, faults, seeds):  # noqa: F811
    contexts = certificates.server(), certificates.client()
    for seed in seeds:
        simulation = Simulation(seed, faults=faults)
        simulation.world.tls = contexts
        simulation.run_program(program)
