"""The faults of a simulated system: which faults can happen in a run, and how often.

Both are drawn from the seed once, at the start, as FoundationDB does with "buggify". For example, one run has many
short sends but never lacks descriptors, and in another run it is the reverse. Runs with a few faults of every kind
would find fewer bugs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from .draws import FACTOR, MASK, STEP, Draws, number_of

# The name of each fault: its highest probability in runs that have it, and what it means.
SITES = {
    'accept.aborted': (0.3, 'accept fails with ECONNABORTED, EPROTO or EPERM: the client has already left'),
    'accept.exhausted': (0.3, 'accept fails with EMFILE, ENFILE, ENOBUFS or ENOMEM'),
    'accept.spurious': (0.3, 'accept fails with EAGAIN although the listener was readable'),
    'address.peer': (0.2, 'getpeername fails with ENOTCONN'),
    'callback.raises': (0.1, 'world.trouble raises an exception in a callback'),
    'callback.slow': (0.1, 'world.trouble lets up to 2 seconds pass in a callback'),
    'clock.jump': (0.05, 'the computer was asleep: up to 90 seconds pass at once'),
    'connect.at_once': (0.5, 'a socket is connected within the call, without EINPROGRESS'),
    'connect.refused': (0.3, 'a connect fails with ECONNREFUSED'),
    'connect.silent': (0.2, 'a connect gets no answer, and fails with ETIMEDOUT after 127 s'),
    'connect.unreachable': (0.2, 'a connect fails at once with ENETUNREACH, EADDRNOTAVAIL or EHOSTUNREACH'),
    'datagram.again': (0.3, 'the send of a datagram fails with EAGAIN'),
    'datagram.full': (0.2, 'the send of a datagram fails with ENOBUFS'),
    'datagram.lost': (0.3, 'a datagram is lost'),
    'datagram.twice': (0.2, 'a datagram arrives twice'),
    'descriptors.few': (1.0, 'the limit of descriptors is just above the number that the reactor itself needs'),
    'lookup.fails': (0.5, 'the look-up of a name fails'),
    'network.broken': (0.02, 'the network ends a connection: ECONNRESET, ETIMEDOUT or EHOSTUNREACH'),
    'network.stall': (0.05, 'bytes, an end of file or a connect arrive up to 8 seconds later'),
    'process.killed': (0.01, 'a process of world.process is killed at a call, and started again after up to 10 s'),
    'recv.short': (0.8, 'recv returns only some of the bytes that have arrived'),
    'recv.spurious': (0.3, 'recv fails with EAGAIN although there was something to read'),
    'select.shuffled': (1.0, 'the selector reports the ready descriptors in another order'),
    'select.some': (0.3, 'the selector does not report some of the ready descriptors'),
    'select.spurious': (0.1, 'the selector reports a descriptor that is not ready'),
    'send.again': (0.3, 'send fails with EAGAIN although there was room'),
    'send.broken': (0.02, 'send fails with EPIPE'),
    'send.exhausted': (0.02, 'send fails with ENOBUFS or ENOMEM'),
    'send.short': (0.8, 'send accepts only some of the bytes'),
    'signal': (0.01, 'a handled signal arrives at a call or callback, which then continues (PEP 475)'),
    'signal.interrupt': (0.01, 'SIGINT arrives at a call or callback'),
    'socket.exhausted': (0.2, 'socket fails with EMFILE, ENFILE or ENOBUFS'),
    'setsockopt.invalid': (0.3, 'setsockopt fails with EINVAL'),
    'thread.fails': (0.2, 'no more threads can be started'),
}
# The faults that only the profile 'hostile' has.
HOSTILE = {
    'lookup.slow': (0.5, 'a look-up of a name takes up to 30 seconds'),
    'network.limit': (0.3, 'bytes, an end of file or a connect take 0.9 to 1.1 times a duration that the program uses'),
    'network.partition': (0.1, 'some hosts cannot be reached for up to 20 minutes'),
    'network.trickle': (0.3, 'up to 60 bytes arrive one by one, one a second'),
    'peer.vanishes': (0.2, 'a peer is gone without a word: neither end of the connection hears from the other again'),
    'thread.paused': (0.8, 'a thread is paused for up to a second after call_soon_threadsafe'),
    'thread.preempts': (0.5, 'a thread runs between two callbacks'),
}
ALL = SITES | HOSTILE
PROFILES = {'default': SITES, 'hostile': ALL}
SHARE = 0.3  # the probability that a run has a certain fault
HOSTILE_SHARE = 0.5  # the same for a fault in `HOSTILE`
DECADES = 2  # a fault's probability in a run is at least its highest one, divided by ten this many times
HOSTILE_DECADES = 1
FAULTLESS = 0.1  # the share of runs without faults, in which every connection must end cleanly


class Killed(BaseException):
    """A process is killed during a call. It is not an `Exception`, because a program cannot catch its own end."""


class Site:
    """One kind of fault in one run, with random numbers that only this kind uses.

    So the strikes of one kind do not depend on the other kinds. Each connection has its own random numbers, so the
    strikes on a connection do not depend on the other connections either.
    """

    __slots__ = ('draw', 'often', 'only', 'strikes')

    def __init__(self, number: int, often: float, only: frozenset[int] | None) -> None:
        self.often: float = often  # the probability of a strike
        self.draw: Callable[[int], float] = Draws(number).draw  # called with the key of a connection, or 0
        self.strikes: int = 0
        self.only: frozenset[int] | None = only  # the numbers of the strikes that happen; None: all


class Faults:
    """The faults of one run.

    Args:
        seed: Decides which faults happen, how often, and when.
        sites: Names in `SITES`: only these faults can happen, each with its highest probability. None: a run gets
            about a third of all faults, drawn at random, and about one run in ten gets none.
        only: Of these faults, only some happen: 'name' means all strikes of a fault, and 'name@3' only the third one.
            The others are left out, but change no draw. None: all happen.
        profile: 'default', or 'hostile' for the faults in `HOSTILE`, too.

    Raises:
        ValueError: There is no such profile, the profile has no fault of a name, or the number of a strike is not a
            positive integer.
    """

    def __init__(
        self,
        seed: int,
        sites: Iterable[str] | None = None,
        only: Iterable[str] | None = None,
        profile: str = 'default',
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f'there is no profile {profile!r}; choose one of {", ".join(PROFILES)}')
        known = PROFILES[profile]
        self.on: dict[str, Site] = {}
        self.on_strike: Callable[[str, int, int, int], object] = _nothing  # called with site, strike, fd and key
        self.key_of: Callable[[int], int] = _no_key  # returns the key of the file of a descriptor
        self.drawn: float = 0.0  # a number from 0 to 1 that decides the details of the latest strike
        chosen = None if sites is None else frozenset(sites)
        wanted = None if only is None else parse_strikes(only)
        unknown = ((chosen or frozenset()) | (wanted or {}).keys()) - known.keys()
        if unknown:
            hint = "pass profile='hostile' to have them" if unknown <= HOSTILE.keys() else 'see reactor.testing.faults'
            raise ValueError(f'the profile {profile!r} has no faults {", ".join(sorted(unknown))}; {hint}')
        faultless = _part(number_of(f'{seed} faultless')) < FAULTLESS
        for name, (most, _) in known.items():
            if wanted is not None and name not in wanted:
                continue
            number = number_of(f'{seed} {name}')
            if chosen is not None:
                often = most if name in chosen else 0.0
            else:
                share, decades = (HOSTILE_SHARE, HOSTILE_DECADES) if name in HOSTILE else (SHARE, DECADES)
                happens = _part(number) < share and not faultless
                often = most * 10 ** (-decades * _part(number >> 64)) if happens else 0.0
            if often:
                self.on[name] = Site(number, often, None if wanted is None else wanted[name])

    def falls(self, name: str, fd: int = -1, key: int = 0) -> bool:
        """Decide at random whether a fault happens now.

        Args:
            name: The fault.
            fd: The descriptor that it would happen to, or -1.
            key: Which random numbers decide. 0: those of the descriptor's file, or without a descriptor the common
                ones.
        """
        site = self.on.get(name)
        if site is None:
            return False
        if not key and fd >= 0:
            key = self.key_of(fd)
        if site.draw(key) >= site.often:
            return False
        # Drawn even if the strike is left out: then the later strikes are the same.
        drawn = site.draw(key)
        site.strikes += 1
        if site.only is not None and site.strikes not in site.only:
            return False
        self.drawn = drawn
        self.on_strike(name, site.strikes, fd, key)
        return True

    def pick(self, choices: Sequence[Any]) -> Any:
        """Return one of these choices, as a detail of the latest strike."""
        return choices[int(self.drawn * len(choices))]

    def between(self, least: int, beyond: int) -> int:
        """Return an integer from `least` on that is smaller than `beyond`, as a detail of the latest strike."""
        return least + int(self.drawn * (beyond - least))

    def shuffle(self, items: list[Any]) -> None:
        """Shuffle a list, as a detail of the latest strike."""
        state = int(self.drawn * 2**53)
        for last in range(len(items) - 1, 0, -1):
            state = (state * FACTOR + STEP) & MASK
            other = (state >> 32) % (last + 1)
            items[last], items[other] = items[other], items[last]

    def calm(self) -> None:
        """Stop all faults."""
        self.on = {}


def parse_strikes(faults: Iterable[str]) -> dict[str, frozenset[int] | None]:
    """Return, for each name in a list like ('clock.jump', 'send.short@3'), the numbers of its strikes; None: all."""
    strikes: dict[str, frozenset[int] | None] = {}
    for fault in faults:
        name, at, number = fault.partition('@')
        if at and not (number.isdecimal() and int(number)):
            raise ValueError(f'{fault!r}: after the @ write the number of a strike, for example {name}@1')
        before = strikes.get(name, frozenset())
        strikes[name] = before | {int(number)} if at and before is not None else None
    return strikes


def _part(number: int) -> float:
    return (number & (1 << 53) - 1) / 2**53


def _no_key(fd: int) -> int:
    return 0


def _nothing(name: str, strike: int, fd: int, key: int) -> None:
    pass


def fail(error: int) -> NoReturn:
    """Raise the OSError of an error number."""
    raise OSError(error, f'simulated: {os.strerror(error)}')
