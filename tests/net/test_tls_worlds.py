"""Misbehaving TLS peers on simulated kernels: no law is broken, and no other connection is affected.

The simulated worlds and the laws are in `tests/helpers/tls_worlds.py`. The keys and the lengths of some messages are
random, so a seed repeats the program, but not every byte. `--tls-worlds N` sets the number of worlds; without `--slow`,
only a fifth of them run.
"""

from __future__ import annotations

import pytest

from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.hostile_tls import ENGINE
from tests.helpers.tls_worlds import Contexts, run_world

BLOCKS = 5


@pytest.fixture(scope='module')
def contexts(certificates):  # noqa: F811
    if ENGINE.missing:
        pytest.skip(f'NOT TESTED: TLS peers that misbehave; {ENGINE.missing}')
    return Contexts(certificates)


@pytest.mark.scenario(89)
@pytest.mark.parametrize('block', [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, BLOCKS))])
def test_peers_that_misbehave_affect_no_other_connection(contexts, block, request):
    count = request.config.getoption('--tls-worlds')
    for seed in range(block, count, BLOCKS):
        run_world(seed, contexts)
