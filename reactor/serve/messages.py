"""The messages between the parent and its workers: lines of JSON on a pair of sockets.

From the parent to a worker:

    "replaced"                      a successor is ready on the same sockets: leave their queues to it, and drain
    "last"                          no other process will serve the worker's own sockets
    ["drain", timeout, lame_duck]   begin a drain, or end it earlier. The times are in seconds; without them, the worker
                                    uses those that its program has passed to `run`
    ["ask", number, request]        describe the worker's reactor

From a worker to the parent:

    ["hello", VERSION, terms]       the first message, with what the program of the worker has passed to `run`, see
                                    `Terms`. After a reload, that may differ from what the parent's program has passed
    [counters, draining]            once a second and when a drain begins. The first one means that the worker is ready
    ["answer", number, text]        the description that the parent has asked for
"""

from __future__ import annotations

import signal
from typing import TypedDict

VERSION = 1  # of these messages; a worker and a parent with different versions do not work together
REPORTS_EVERY = 1.0  # seconds between two reports of a worker
GRACE = 2.0  # seconds from the drain timeout, or from the warning about a hung worker, until the worker is killed
HURRY = 5.0  # seconds that a draining worker has left when a reload waits for it
# Signals that mean nothing here. Tools send them to all processes of a service, and by default they would end it.
STRAY = (signal.SIGUSR1, signal.SIGUSR2) if hasattr(signal, 'SIGUSR1') else ()
LONGEST_ANSWER = 4 << 20  # characters of the answer to a question; in a message they can take twice as many bytes
MOST_QUESTIONS = 8  # unanswered at once; a worker that hangs gets no more, so that it can catch up quickly
RESTART = 'restart the program; a reload is not enough'


class Terms(TypedDict):
    """What a program has passed to `run`.

    drain_timeout, start_timeout, hang_timeout  in seconds: the parent applies those of each worker's program
    fixed  what only a restart can change: maps the text before each value in messages to the value
    """

    drain_timeout: float
    start_timeout: float
    hang_timeout: float | None
    fixed: dict[str, str]
