"""Random numbers for programs that should make less traffic, so that the report of a failing run is short."""

from __future__ import annotations

from random import Random
from typing import Any

MOST_SMALL = 1000  # later draws are as usual: a program may draw until it gets a number that it does not have yet


class LessTraffic(Random):
    """A generator whose integers are smaller than those of `random.Random` with the same seed.

    `randrange` and `randint` return integers nearer to their lower bound. The other methods are unchanged.

    Attributes:
        part: From 0 to 1: 0.5 halves the distance to the lower bound, and 0 always gives the lower bound.
    """

    part: float = 1
    _draws = 0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> Any:
        drawn = super().randrange(start, stop, step)
        self._draws += 1
        if step != 1 or self._draws > MOST_SMALL:
            return drawn
        least = 0 if stop is None else start
        return least + int((drawn - least) * self.part)

    def randint(self, a: int, b: int) -> Any:
        return self.randrange(a, b + 1)  # since Python 3.14, `Random.randint` does not call it


def programs_random(seed: int | str, traffic: float) -> Random:
    """Return the generator of a program, which `seed` decides; `traffic` is the `part` of a `LessTraffic`."""
    if traffic == 1:
        return Random(f'programs {seed}')
    random = LessTraffic(f'programs {seed}')
    random.part = traffic
    return random
