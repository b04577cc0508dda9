"""Pace: end connections that send or take too little, or that have lasted too long.

The kernel counts the bytes of each connection, so the path of the bytes costs nothing more. A connection is looked at
each quarter of the grace (`loop/buckets.py`). It is never ended too early: what is not known begins with the look that
sees it.

A message starts with the first byte received after our last send. It is too slow only when more of it has come and the
whole of it is below the rate, so a client that has sent a request and waits for the answer is not slow, however long it
waits; `read_timeout` and `idle_timeout` limit silence. The attack is that of "Slowloris" (2009), the measure that of
Apache's mod_reqtimeout.
"""

from __future__ import annotations

from ..errors import LifetimeOver, TooSlow
from ..loop.watcher import READ
from ..net.addresses import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..net.stream import Stream
    from .address_record import AddressRecord, Rate


class LimitedClient:
    """A connection under `Limits`: whose it is, and how it gets on."""

    __slots__ = (
        '_acked',
        '_deadline',
        '_pace',
        '_received',
        '_receiving',
        '_second',
        '_sending',
        '_stream',
        'address',
    )

    def __init__(
        self, stream: Stream, address: AddressRecord, lifetime: float | None, pace: Rate | None, now: float
    ) -> None:
        self._stream = stream
        self.address: AddressRecord = address  # what is remembered of it
        self._deadline = None if lifetime is None else now + lifetime
        self._pace = pace
        self._second: int | None = None
        self._received = self._acked = 0  # bytes, at the last look
        self._receiving: TransferWindow | None = None  # what he has to say
        self._sending: TransferWindow | None = None  # what waits for him

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
        slow = self._pace and (stream.state.receives or stream.state.half) and self._slowness(now, self._pace)
        if slow:
            counters.ended_slow += 1
            stream.reset(TooSlow(f'{show(stream.peername)} {slow}; it was reset'))
        else:
            self.begin(now)

    def _slowness(self, now: float, pace: Rate) -> str:
        """What is too slow, if anything, in words."""
        stream = self._stream
        try:
            heard, acked, unsent = stream.loop.kernel.tcp_counts(stream.sock)
        except OSError:
            return ''  # it has ended, and reading will tell
        more, answered = heard > self._received, acked > self._acked
        self._received, self._acked = heard, acked
        if answered or not stream.events & READ:
            self._receiving = None
        elif more and self._receiving is None:
            self._receiving = TransferWindow(now, heard)
        elif more and self._receiving is not None and self._receiving.is_slow(now, heard, pace):
            return f'sent too slowly, {self._receiving.show(now, heard)}'
        if not unsent and not stream.buffered:
            self._sending = None
        elif self._sending is None:
            self._sending = TransferWindow(now, acked)
        elif self._sending.is_slow(now, acked, pace):
            return f'took too slowly, {self._sending.show(now, acked)}'
        return ''


class TransferWindow:
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
        """Describe it, for an error message."""
        return f'{count - self._before} bytes in {now - self._since:.0f} s'
