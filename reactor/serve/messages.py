"""The messages between the parent and its workers: lines of JSON on a pair of sockets.

From the parent to a worker:

    "replaced"                      a successor is ready on the same sockets: leave their queues to it, and drain
    "last"                          no other process will serve the worker's own sockets
    ["drain", timeout, lame_duck]   begin a drain, or end it earlier. The times are in seconds; without them, the worker
                                    uses those that its program has passed to `run`

From a worker to the parent, once a second and when a drain begins: [counters, draining]. The first such line means that
the worker is ready.
"""

from __future__ import annotations

REPORTS_EVERY = 1.0  # seconds between two reports of a worker, and between two checks for silent workers
