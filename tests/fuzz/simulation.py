"""Fuzz simulated systems: each decision is a byte of the input, so that code coverage guides the decisions.

A program of `reactor.testing.programs` runs on a simulated system, and the oracles check every law. The reactor must
break no law, whatever the network, the scheduler and the faults do.

If the input were only a seed, any change would give a completely different run. Here, changing one byte changes only
one decision and its consequences.
"""

from __future__ import annotations

import logging
import random
from typing import Any

from reactor.testing import Simulation
from reactor.testing.faults import SITES
from reactor.testing.platforms import KINDS
from reactor.testing.programs import ALONE, PROGRAMS, meddling

LONGEST_INPUT = 400
WORDS: tuple[bytes, ...] = ()
CHOICES = (*PROGRAMS, *ALONE, meddling)
HEAD = 9  # bytes before the decisions: program (1), manner (1), seed (2), faults (5)
# A longer number, such as a seed or many random bytes, comes from a generator that is seeded with this many bytes.
BYTES_OF_A_NUMBER = 2


class Decisions(random.Random):
    """Random numbers that come from the bytes of an input, and after its end from a generator with the given seed.

    One byte gives the most significant bits of a float. An integer of more than 16 bits comes from a separate
    generator, with two bytes as its seed.
    """

    def __new__(cls, data: bytes, seed: int) -> Decisions:
        return super().__new__(cls)

    def __init__(self, data: bytes, seed: int) -> None:
        self.data, self.at = data, 0
        self.later = random.Random(seed)
        super().__init__(seed)

    def take(self, size: int) -> int:
        """Return the next `size` bytes as an integer."""
        self.at += size
        if self.at > len(self.data):
            return self.later.getrandbits(8 * size)
        return int.from_bytes(self.data[self.at - size : self.at], 'big')

    def random(self) -> float:
        return self.take(1) / 256

    def getrandbits(self, k: int) -> int:
        if k <= 8 * BYTES_OF_A_NUMBER:
            return self.take((k + 7) // 8) & ((1 << k) - 1)
        return random.Random(self.take(BYTES_OF_A_NUMBER)).getrandbits(k)


def run(data: bytes) -> None:
    """Run one input: its first bytes choose a program, a system and its faults; the other bytes are the decisions."""
    head = data[:HEAD].ljust(HEAD, b'\0')
    program, manner = CHOICES[head[0] % len(CHOICES)], KINDS[head[1] % len(KINDS)]
    seed, mask = int.from_bytes(head[2:4], 'big'), int.from_bytes(head[4:HEAD], 'big')
    faults = tuple(site for index, site in enumerate(SITES) if mask >> index & 1)
    decisions = Decisions(data[HEAD:], seed)

    def draw(key: int = 0) -> float:
        return decisions.random()

    def take_over(kernel: Any) -> None:
        kernel.random = decisions
        kernel.draw = draw
        for site in kernel.faults.on.values():
            site.draw = draw

    log = logging.getLogger('reactor')
    level = log.level
    log.setLevel(logging.CRITICAL)  # injected faults cause errors in the log
    try:
        simulation = Simulation(seed, selector=manner, faults=faults, on_kernel=take_over)
        simulation.world.random = decisions
        simulation.run_program(program)
    finally:
        log.setLevel(level)
