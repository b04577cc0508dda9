"""Random programs that resemble users' programs, for real and simulated systems.

A program is a function with one argument: its world, an `AnyWorld`, which has the reactor and a random generator. It is
called once, in the first turn of the loop, and it has ended when `run` returns True. All its sizes, counts, methods and
times are drawn from the world's generator.

    PROGRAMS  programs that can run together
    HOSTILE   more of them, which run in the profile 'hostile'
    ALONE     programs that shut the reactor down, so they must run alone
    meddling  handles of all kinds that act on each other; it runs in some of the seeds
    restarts  servers that are killed and started again, and clients that reconnect: on simulated systems only
    RACES     programs with a race between client and server: two runs on a real system can differ
"""

from __future__ import annotations

from .admission import limited, paces, proxied
from .conversations import echo, floods, half_closes, proxy, publish, publish_to_the_dying, requests
from .endings import churn, closing
from .limits import crowd, time_limits
from .meddling import meddling
from .others import calls, datagrams, look_ups, signals, threads, timers
from .parts import AnyWorld
from .reporting import reporting
from .restarts import restarts
from .service import drain

PROGRAMS = (
    echo, proxy, half_closes, floods, requests, publish, publish_to_the_dying,
    churn, closing, proxied, limited, paces, crowd, time_limits, timers, calls, datagrams, signals, threads, look_ups,
)  # fmt: skip
HOSTILE = (reporting,)
ALONE = (drain,)
RACES = (publish_to_the_dying, churn, closing, crowd)

__all__ = ['ALONE', 'HOSTILE', 'PROGRAMS', 'RACES', 'AnyWorld', 'meddling', 'restarts']
