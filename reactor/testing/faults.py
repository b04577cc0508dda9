"""The faults of a simulated system: which faults can happen in a run, and how often.

Both are drawn from the seed once, at the start, as FoundationDB does with "buggify". For example, one run has many
short sends but never lacks descriptors, and in another run it is the reverse. Runs with a few faults of every kind
would find fewer bugs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from random import Random
from typing import NoReturn

# The name of each fault, and its highest probability in runs that have it.
SITES = {
    'accept.aborted': 0.3,  # ECONNABORTED: the client has already left
    'accept.exhausted': 0.3,  # EMFILE, ENFILE, ENOBUFS, ENOMEM
    'accept.spurious': 0.3,  # EAGAIN although the listener was readable
    'address.peer': 0.2,  # getpeername fails with ENOTCONN
    'callback.raises': 0.1,
    'callback.slow': 0.1,
    'clock.jump': 0.05,  # the computer was asleep: up to 90 seconds pass at once
    'connect.at_once': 0.5,  # connected within the call, without EINPROGRESS
    'connect.refused': 0.3,
    'connect.silent': 0.2,  # no answer, ETIMEDOUT after 127 s
    'connect.unreachable': 0.2,  # ENETUNREACH or EADDRNOTAVAIL, at once
    'datagram.again': 0.3,
    'datagram.full': 0.2,  # ENOBUFS
    'datagram.lost': 0.3,
    'datagram.twice': 0.2,
    'descriptors.few': 1.0,  # the limit is just above the number that the reactor itself needs
    'lookup.fails': 0.5,
    'network.broken': 0.02,  # the network ends a connection: ECONNRESET, ETIMEDOUT, EHOSTUNREACH
    'network.stall': 0.05,  # bytes arrive seconds later
    'recv.short': 0.8,
    'recv.spurious': 0.3,  # EAGAIN although there was something to read
    'select.shuffled': 1.0,
    'select.some': 0.3,  # some of the ready descriptors are not reported
    'select.spurious': 0.1,  # a descriptor is reported although it is not ready
    'send.again': 0.3,
    'send.broken': 0.02,  # EPIPE
    'send.exhausted': 0.02,  # ENOBUFS, ENOMEM
    'send.short': 0.8,
    'signal': 0.01,  # a handled signal, at any call or callback; the call then continues (PEP 475)
    'signal.interrupt': 0.01,  # SIGINT, at any call or callback
    'socket.exhausted': 0.2,  # EMFILE, ENFILE, ENOBUFS at socket()
    'setsockopt.invalid': 0.3,
    'thread.fails': 0.2,  # no more threads can be started
}
FAULTLESS = 0.1  # the share of runs without faults, in which every connection must end cleanly


class Faults:
    """The faults of one run.

    Args:
        random: The generator from which all faults are drawn.
        sites: Names in `SITES`: only these faults can happen, each with its highest probability. None: a run gets
            about a third of all faults, drawn at random, and about one run in ten gets none.

    Raises:
        ValueError: A name is not in `SITES`.
    """

    def __init__(self, random: Random, sites: Iterable[str] | None = None) -> None:
        self._random = random
        self.on: dict[str, float] = {}
        none = random.random() < FAULTLESS
        for site, most in SITES.items():
            chosen, strength = random.random() < 0.3, random.random()
            if sites is None and chosen and not none:
                self.on[site] = most * 10 ** (-2 * strength)
            elif sites is not None and site in sites:
                self.on[site] = most
        unknown = set(sites or ()) - SITES.keys()
        if unknown:
            raise ValueError(f'unknown faults: {", ".join(sorted(unknown))}; see reactor.testing.faults.SITES')

    def falls(self, site: str) -> bool:
        """Decide at random whether a fault happens now."""
        often = self.on.get(site)
        return often is not None and self._random.random() < often

    def calm(self) -> None:
        """Stop all faults."""
        self.on.clear()


def fail(error: int) -> NoReturn:
    """Raise the OSError of an error number."""
    raise OSError(error, f'simulated: {os.strerror(error)}')
