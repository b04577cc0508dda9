"""Describe what a reactor is doing: its counters, its open handles, and what keeps it running.

A control socket shows these descriptions, and a worker sends them to its parent. They can be written as JSON, and their
size is bounded, however many handles are open: a truncated list says so.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from . import Reactor
from .activity import activity
from .loop.log import describe

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 100  # number of handles or reasons, by default
LONGEST_TEXT = 500  # characters for each handle or reason; longer texts are cut


def counters(r: Reactor) -> dict[str, Any]:
    """Return `Stats.as_dict()` with the process id added as 'pid'."""
    return {**r.stats().as_dict(), 'pid': os.getpid()}


def handles(r: Reactor, kind: str = '', limit: int = LIMIT) -> dict[str, Any]:
    """Count the open handles by kind, and describe up to `limit` of them, of all kinds or of one."""
    found = r.handles()
    kinds = Counter(type(handle).__name__ for handle in found)
    if kind:
        found = [handle for handle in found if type(handle).__name__ == kind]
    now = r.kernel.clock()
    listed = [
        {
            'handle': describe(handle)[:LONGEST_TEXT],
            'seconds': round(now - handle.since, 1),
            'waits_for': handle.waits_for()[:LONGEST_TEXT],
            'keeps_running': r.watchers.is_referenced(handle),
        }
        for handle in found[:limit]
    ]
    return {'kinds': kinds, 'handles': listed, 'left_out': len(found) - len(listed)}


def why_alive(r: Reactor, limit: int = LIMIT) -> dict[str, Any]:
    """Return up to `limit` of the reasons that `Reactor.why_alive` lists."""
    reasons = [reason[:LONGEST_TEXT] for reason in r.why_alive(limit + 1)]
    return {'reasons': reasons[:limit], 'more': len(reasons) > limit}


DESCRIPTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    'counters': counters,
    'handles': handles,
    'why_alive': why_alive,
    'activity': activity,
}
