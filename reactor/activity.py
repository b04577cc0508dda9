"""Which connections are the busiest and the oldest: what `python -m reactor.observe SOCKET top` shows.

While somebody watches, each callback is timed, and the times are summed up by connection. Connections that only wait
are not visited, so 40,000 of them cost nothing. To find the oldest ones, each look visits some thousand handles, and
continues where the last look stopped.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from heapq import nlargest, nsmallest
from itertools import islice
from operator import attrgetter
from typing import Any

from . import Reactor
from .loop.log import describe
from .loop.slow import Watch
from .loop.timers import Timer
from .net.addresses import show
from .net.ending import Connection

LIMIT = 10  # connections in each list, by default
SHORTEST = 0.5  # seconds between two looks; a second viewer who looks earlier gets the figures of the first
SILENT = 5.0  # seconds without a look after which nothing is timed any more
VISITED = 4000  # handles that one look visits, which takes a millisecond
LONGEST_TEXT = 200  # characters
KEYS = {'busy': 'busy', 'calls': 'calls', 'waits': 'buffered', 'age': 'seconds'}  # the sort keys, and their fields
BYTE_COUNTS = struct.Struct('QQ')  # tcpi_bytes_acked and tcpi_bytes_received of struct tcp_info (linux/tcp.h)
COUNTS_AT = 120  # where they are

_activities: dict[Reactor, Activity] = {}


class Activity(Watch):
    """Sums up the time of callbacks by connection, until nobody has looked for SILENT seconds.

    There is one for each reactor, which keeps it until its end; `look` starts it again.
    """

    limit: float = 0.0

    def __init__(self, r: Reactor) -> None:
        self._r = r
        self._spent: dict[Connection, list[Any]] = {}  # [seconds, callbacks] since the last look
        self._last: dict[Connection, list[Any]] = {}  # the same, at the last look
        self._interval = 0.0  # seconds to which that belongs
        self._since = self._looked = r.kernel.clock()
        self._only = ''  # of the last look
        self._ahead: Iterator[Any] | None = None  # handles to visit for the oldest ones
        self._oldest: list[Connection] = []  # of the last complete visit
        self._found: list[Connection] = []  # of the visit that is under way
        self._timer: Timer | None = None  # while callbacks are timed

    def passed(self, phase: str, began: float, ended: float, fn: object, item: object) -> None:
        """Add the time of a callback to that of its connection."""
        if isinstance(item, Connection) and self._r.watchers.is_referenced(item):
            spent = self._spent.get(item)
            if spent is None:
                self._spent[item] = [ended - began, 1]
            else:
                spent[0] += ended - began
                spent[1] += 1

    def look(self, sort: str, limit: int, only: str) -> dict[str, Any]:
        """Return the lists, and start new sums."""
        now = self._r.kernel.clock()
        self._looked = now
        if self._timer is None:
            self._since, self._interval = now, 0.0
            self._r.phase_timer.add(self)
            self._timer = self._r.call_every(SILENT / 2, self._stop_if_silent)
            self._timer.unref()
        if now - self._since >= SHORTEST or not self._interval:
            self._last, self._spent = self._spent, {}
            self._interval, self._since = now - self._since, now
        spent, key = self._last, KEYS[sort]
        chosen = nlargest(4 * limit, spent, key=lambda conn: spent[conn][0]) if key == 'busy' and not only else spent
        rows = [row(conn, now, *spent[conn]) for conn in chosen if only in show(conn.peername)]
        busiest = sorted(rows, key=lambda one: one[key], reverse=True)[:limit]
        if only != self._only:
            self._only, self._ahead, self._oldest, self._found = only, None, [], []
        oldest = [row(conn, now) for conn in self._visit(limit)]
        return {'interval': self._interval, 'active': len(spent), 'busiest': busiest, 'oldest': oldest}

    def _visit(self, limit: int) -> list[Connection]:
        self._ahead = self._ahead or iter(self._r.handles())
        handles = list(islice(self._ahead, VISITED))
        if len(handles) < VISITED:  # this was the end of the visit
            self._oldest, self._found, self._ahead = self._merged(handles, limit), [], None
        else:
            self._found = self._merged(handles, limit)
        return [conn for conn in self._oldest or self._found if not conn.closed][:limit]

    def _merged(self, handles: list[Any], limit: int) -> list[Connection]:
        chosen = [one for one in handles if isinstance(one, Connection) and self._counts(one)]
        return nsmallest(limit, [*self._found, *chosen], key=attrgetter('since'))

    def _counts(self, conn: Connection) -> bool:
        if conn.closed or not self._r.watchers.is_referenced(conn):
            return False
        return not self._only or self._only in show(conn.peername)

    def _stop_if_silent(self) -> None:
        if self._timer is not None and self._r.kernel.clock() - self._looked >= SILENT:
            self._timer.cancel()
            self._timer = None
            self._r.phase_timer.remove(self)
            self._spent, self._last, self._ahead, self._oldest, self._found = {}, {}, None, [], []


def activity(r: Reactor, sort: str = 'busy', limit: int = LIMIT, only: str = '') -> dict[str, Any]:
    """Return the busiest connections since the last call, and the oldest ones. The first call begins to time callbacks.

    Connections that do not keep the reactor running, such as those of a control socket, are left out.

    Args:
        r: The reactor.
        sort: What decides: 'busy' (the time of callbacks), 'calls', 'waits' (bytes that wait to be sent) or 'age'.
        limit: The length of each list.
        only: Connections whose address contains this text.
    """
    found = _activities.get(r)
    if found is None:
        found = _activities[r] = Activity(r)
        r.add_exit_callback(_activities.pop, r, None)
    return found.look(sort, limit, only)


def row(conn: Any, now: float, busy: float = 0.0, calls: int = 0) -> dict[str, Any]:
    """Describe a connection."""
    received, sent = transferred(conn)
    return {
        'connection': show(conn.peername)[:LONGEST_TEXT],
        'kind': type(conn).__name__,
        'busy': busy,
        'calls': calls,
        'received': received,
        'sent': sent,
        'buffered': conn.buffered,
        'seconds': now - conn.since,
        'waits_for': 'nothing: it has ended' if conn.closed else describe(conn.waits_for())[:LONGEST_TEXT],
    }


def transferred(conn: Any) -> tuple[int | None, int | None]:
    """Return the bytes that the peer has sent and acknowledged, by the kernel's counts; None where it has none."""
    try:
        info = conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, COUNTS_AT + BYTE_COUNTS.size)
        acknowledged, received = BYTE_COUNTS.unpack_from(info, COUNTS_AT)
    except (AttributeError, OSError, struct.error):  # it has ended, is no TCP connection, or this is not Linux
        return None, None
    return received, acknowledged
