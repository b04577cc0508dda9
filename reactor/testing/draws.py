"""Random numbers of which each connection has its own, so that another connection does not change them.

A key stands for a connection, a listener or a datagram socket. It is made from the address and from how many keys that
address had before, so it does not depend on what else the program does. Keys and numbers are the same in every process
and with every version of Python.
"""

from __future__ import annotations

from hashlib import sha256

FACTOR, STEP = 6364136223846793005, 1442695040888963407  # the generator of Knuth's MMIX
MASK = 2**64 - 1


class Draws:
    """Random numbers from 0 to 1, with an independent sequence for each key.

    `random.Random` would be too slow: a generator takes longer to make than all the draws of a usual connection.
    """

    __slots__ = ('_number', '_states')

    def __init__(self, number: int) -> None:
        self._number = number & MASK
        self._states: dict[int, int] = {}

    def draw(self, key: int = 0) -> float:
        """Return the next number of the sequence of a key, which may be 0 but not 1."""
        state = self._states.get(key)
        if state is None:
            state = (self._number ^ key) & MASK
        state = self._states[key] = (state * FACTOR + STEP) & MASK
        return (state >> 11) / 2**53


class Keys:
    """The keys of one simulated system."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, object], int] = {}

    def make(self, kind: str, address: object) -> int:
        """Return the key of the next object of a kind at an address."""
        count = self._counts[kind, address] = self._counts.get((kind, address), 0) + 1
        return number_of(f'{kind} {address} {count}')


def number_of(text: str) -> int:
    """Return a number that stands for a text. Unlike that of `hash`, it is the same in every process."""
    return int.from_bytes(sha256(text.encode('utf-8', 'backslashreplace')).digest(), 'big')
