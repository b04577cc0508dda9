"""The properties of a simulated system: its platform, its faults and its limits, all drawn from the seed.

`Platform` is the first base class of `SimKernel` to be initialized. Do not change the order of its draws: otherwise
every seed would stand for a different run.
"""

from __future__ import annotations

import errno
from random import Random
from socket import SO_REUSEADDR
from typing import Any

from ..kernel import Kernel
from ..kernel.platforms import step_of_waits
from .faults import Faults

MS = 1_000_000  # ns
STDIO = 3  # descriptors that every program has from the start
KINDS = ('epoll', 'poll', 'select', 'kqueue', 'windows')
FOREIGN = 0.4  # the share of seeds whose system is not Linux
TICK = 15_625_000  # ns: the timer of Windows has 64 ticks a second


class Platform(Kernel):
    """A kernel for one platform, drawn or chosen, with the attributes of `Kernel` that differ between platforms."""

    counts_tcp: bool
    nodelay_inherited: bool
    exclusive_address: int
    connecting: frozenset[int]
    clock_step: float

    def __init__(self, seed: int, selector: str | None, faults: Any, only: Any, descriptors: int, profile: str) -> None:
        self.seed = seed
        self.hostile: bool = profile == 'hostile'
        # Traffic is drawn from other generators than faults, so that a fault can be left out without other changes.
        self.random: Random = Random(seed)
        self.random.getrandbits(64)
        self.faults: Faults = Faults(seed, None if faults is True else faults or (), only, profile)
        kind = self.random.choice(KINDS[:3])
        # A separate generator, so that the other draws of a seed do not depend on these draws. A seed that was used
        # before kqueue and Windows were simulated still stands for the same run, if `selector` names its old platform.
        manner = Random(f'manner {seed}')
        if manner.random() < FOREIGN:
            kind = manner.choice(KINDS[3:])
        self.kind: str = selector or kind
        self.on_linux: bool = self.kind in KINDS[:3]
        self.tick: int = MS  # ns: on Windows, the steps of the timer that ends waits
        self.clock_grain: int = 1  # ns: the steps of the clock
        self.lost: int = errno.EBADF  # the error number of calls on a descriptor that is not open
        self.counts_tcp = self.nodelay_inherited = self.on_linux
        if self.kind == 'windows':
            self._be_windows(manner)
        self.descriptors: int = descriptors
        if 'descriptors.few' in self.faults.on:
            self.descriptors = STDIO + int(4 + 36 * self.faults.on['descriptors.few'].draw(0))

    def _be_windows(self, random: Random) -> None:
        self.lost = errno.ENOTSOCK
        self.reuse_address = False
        self.exclusive_address = ~SO_REUSEADDR
        self.reset_on_close = b'\1\0\0\0'
        self.connecting = frozenset({errno.EWOULDBLOCK, errno.EALREADY})
        # Up to Python 3.12 the clock advances in ticks; from 3.13 on it is exact. Programs can ask for finer ticks.
        self.clock_grain, self.tick = random.choice(((TICK, TICK), (TICK, MS), (100, TICK)))
        self.clock_step = step_of_waits('nt', self.clock_grain / 1e9)
