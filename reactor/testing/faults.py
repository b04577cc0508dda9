"""Faults: what a simulated system does that a program hopes it will not.

Owns the coins. Knows nothing of what they are thrown for. The rule: which coins a run has, and how often each falls,
is drawn from its seed once ("buggify", FoundationDB), so that one run is full of short sends and never short of
descriptors, and the next is the other way round; a run in which everything fails a little finds less.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random
    from typing import NoReturn

# Each site with how often it may fall at most, where it is on at all.
SITES = {
    'accept.aborted': 0.3,  # ECONNABORTED: the client is gone again
    'accept.exhausted': 0.3,  # EMFILE, ENFILE, ENOBUFS, ENOMEM
    'accept.spurious': 0.3,  # EAGAIN although the listener was readable
    'address.peer': 0.2,  # getpeername fails with ENOTCONN
    'callback.raises': 0.1,
    'callback.slow': 0.1,
    'clock.jump': 0.05,  # a machine that slept: seconds pass at once
    'connect.at_once': 0.5,  # no EINPROGRESS
    'connect.refused': 0.3,
    'connect.silent': 0.2,  # nobody answers, ETIMEDOUT after 127 s
    'connect.unreachable': 0.2,  # ENETUNREACH or EADDRNOTAVAIL, at once
    'datagram.again': 0.3,
    'datagram.full': 0.2,  # ENOBUFS
    'datagram.lost': 0.3,
    'datagram.twice': 0.2,
    'descriptors.few': 1.0,  # a limit just above what the reactor itself needs
    'lookup.fails': 0.5,
    'network.broken': 0.02,  # a connection ends by what lies between: ECONNRESET, ETIMEDOUT, EHOSTUNREACH
    'network.stall': 0.05,  # bytes under way stay there for seconds
    'recv.short': 0.8,
    'recv.spurious': 0.3,  # EAGAIN although it was readable
    'select.shuffled': 1.0,
    'select.some': 0.3,  # not all that are ready are told
    'select.spurious': 0.1,  # told although it is not ready
    'send.again': 0.3,
    'send.broken': 0.02,  # EPIPE
    'send.exhausted': 0.02,  # ENOBUFS, ENOMEM
    'send.short': 0.8,
    'signal': 0.01,  # any that is handled, at any call or callback; the call goes on afterwards, as PEP 475 has it
    'signal.interrupt': 0.01,  # SIGINT, at any call or callback
    'socket.exhausted': 0.2,  # EMFILE, ENFILE, ENOBUFS at socket()
    'setsockopt.invalid': 0.3,
    'thread.fails': 0.2,  # no more threads can be started
}
FAULTLESS = 0.1  # of the runs: everything has to end well then


class Faults:
    """The coins of one run.

    random  where everything is drawn from
    sites   names of `SITES` that are on, each with its highest frequency; None: drawn, about a third of them, or none
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
            raise ValueError(f'no such fault: {", ".join(sorted(unknown))}; choose from reactor.testing.faults.SITES')

    def falls(self, site: str) -> bool:
        """Throw the coin of a site."""
        often = self.on.get(site)
        return often is not None and self._random.random() < often

    def calm(self) -> None:
        """No fault from now on."""
        self.on.clear()


def fail(error: int) -> NoReturn:
    """Raise what Python raises for an error number."""
    raise OSError(error, f'simulated: {os.strerror(error)}')
