"""Minimum progress: who sends or takes too little, and who is there for too long.

Owns the looks at one connection, in the buckets of one second. Knows no address. The rule: it costs the path of the
bytes nothing, since the system counts them anyway; and nobody is ended too early, for whatever is not known begins with
the look that sees it.

What a client says counts from its first byte since our last to him, and it is too little only when more has come and
the whole of it is below the rate. So who has asked and waits, however long, is not slow; the limits for silence are
`read_timeout` and `idle_timeout`. The attack is that of "Slowloris" (2009), the measure that of Apache's
mod_reqtimeout.
"""

from __future__ import annotations

from ..errors import LifetimeOver, TooSlow
from ..loop.watcher import READ
from ..net.addresses import show
from ..net.stream import HALF_OPEN, OPEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..net.stream import Stream
    from .limits import Address

    Rate = tuple[float, float]


class Guest:
    """A connection under `Limits`: whose it is, and how it gets on."""

    __slots__ = (
        '_acked',
        '_deadline',
        '_heard',
        '_pace',
        '_second',
        '_speaks',
        '_stream',
        '_takes',
        'address',
    )

    def __init__(self, stream: Stream, address: Address, lifetime: float | None, pace: Rate | None, now: float) -> None:
        self._stream = stream
        self.address: Address = address  # what is remembered of it
        self._deadline = None if lifetime is None else now + lifetime
        self._pace = pace
        self._second: int | None = None
        self._heard = self._acked = 0  # bytes, at the last look
        self._speaks: Stretch | None = None  # what he has to say
        self._takes: Stretch | None = None  # what waits for him

    def begin(self, now: float) -> None:
        """Look at it from time to time, if there is something to see."""
        when = self._deadline
        if self._pace is not None:
            soon = now + max(1, self._pace[1] / 4) - 0.5  # buckets round up
            when = soon if when is None else min(soon, when)
        if when is not None:
            self._second = self._stream.loop.timers.buckets.add(self, when)

    def end(self) -> None:
        """The connection has ended."""
        if self._second is not None:
            self._stream.loop.timers.buckets.discard(self, self._second)

    def handle_look(self, now: float) -> None:
        """Called in the second for which it has asked."""
        self._second = None
        stream, counters = self._stream, self._stream.loop.counters
        if self._deadline is not None and now >= self._deadline:
            counters.ended_lifetime += 1
            stream.reset(LifetimeOver(f'{show(stream.peername)} was connected for as long as it may; it was reset'))
            return
        slow = self._pace and (stream.state is OPEN or stream.state is HALF_OPEN) and self._slowness(now, self._pace)
        if slow:
            counters.ended_slow += 1
            stream.reset(TooSlow(f'{show(stream.peername)} {slow}; it was reset'))
        else:
            self.begin(now)

    def _slowness(self, now: float, pace: Rate) -> str:
        """What is too slow, if anything, in words."""
        stream = self._stream
        try:
            heard, acked, unsent = stream.loop.watchers.kernel.tcp_counts(stream.sock)
        except OSError:
            return ''  # it has ended, and reading will tell
        more, answered = heard > self._heard, acked > self._acked
        self._heard, self._acked = heard, acked
        if answered or not stream.events & READ:
            self._speaks = None
        elif more and self._speaks is None:
            self._speaks = Stretch(now, heard)
        elif more and self._speaks is not None and self._speaks.is_slow(now, heard, pace):
            return f'sent too slowly, {self._speaks.show(now, heard)}'
        if not unsent and not stream.buffered:
            self._takes = None
        elif self._takes is None:
            self._takes = Stretch(now, acked)
        elif self._takes.is_slow(now, acked, pace):
            return f'took too slowly, {self._takes.show(now, acked)}'
        return ''


class Stretch:
    """A time in which bytes should go one way: its begin, and how many had gone before."""

    __slots__ = ('_before', '_since')

    def __init__(self, since: float, before: int) -> None:
        self._since = since
        self._before = before

    def is_slow(self, now: float, count: int, pace: Rate) -> bool:
        """Whether fewer have gone than should have."""
        rate, grace = pace
        return now - self._since > grace + (count - self._before) / rate

    def show(self, now: float, count: int) -> str:
        """What is told of it."""
        return f'{count - self._before} bytes in {now - self._since:.0f} s'
