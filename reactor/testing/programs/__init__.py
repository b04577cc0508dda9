"""Random programs of users, which run on the real system and on a simulated one.

A program is a function of a `World`; it is called once, in the first turn of the loop, and has ended when `run` returns
True. Each is drawn anew from the world's generator: sizes, numbers, ways and times.

    PROGRAMS  those that run together
    ALONE     those that end the reactor, and the others with it
    meddling  handles of all kinds that act on each other, in a share of the seeds
    RACES     those in which something depends on who is faster, so that no two runs on a real system are alike
"""

from __future__ import annotations

from .admission import limited, paces, proxied
from .conversations import echo, floods, half_closes, proxy, publish, publish_to_the_dying, requests
from .endings import churn, closing
from .limits import crowd, time_limits
from .meddling import meddling
from .others import calls, datagrams, look_ups, signals, threads, timers
from .parts import AnyWorld
from .service import drain

PROGRAMS = (
    echo, proxy, half_closes, floods, requests, publish, publish_to_the_dying,
    churn, closing, proxied, limited, paces, crowd, time_limits, timers, calls, datagrams, signals, threads, look_ups,
)  # fmt: skip
ALONE = (drain,)
RACES = (publish_to_the_dying, churn, closing, crowd)

__all__ = ['ALONE', 'PROGRAMS', 'RACES', 'AnyWorld', 'meddling']
