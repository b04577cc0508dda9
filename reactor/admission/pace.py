"""End connections that send or read too slowly, or that have lasted too long.

The kernel counts the bytes of each connection, so no work is done here when bytes are received or sent. A connection is
checked each time a quarter of the grace has passed (`loop/buckets.py`). A time window begins with the check that finds
its first byte, so no connection is ended too early.

A message starts with the first byte received after our last send. It is too slow only if more of it has arrived and its
average rate is too low. A client that has sent a request and waits for the answer is therefore not slow; `read_timeout`
and `idle_timeout` limit silence. The attack that this prevents is "Slowloris" (2009); the defence follows Apache's
mod_reqtimeout.
"""

from __future__ import annotations

from errno import EBADF

from ..errors import LifetimeOver, TooSlow
from ..loop.watcher import READ
from ..net.addresses import show
from ..net.stream import Stream
from .address_record import AddressRecord, Rate


class LimitedClient:
    """A connection under `Limits`: its address, and the progress of its bytes."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # the connection, its address, and when it is checked next
        '_stream', 'address', '_second',
        # the limits
        '_deadline', '_pace',
        # the bytes at the last check, and the transfer under way in each direction
        '_received', '_acked', '_receiving', '_sending',
    )  # fmt: skip

    def __init__(
        self, stream: Stream, address: AddressRecord, lifetime: float | None, pace: Rate | None, now: float
    ) -> None:
        self._stream = stream
        self.address: AddressRecord = address
        self._deadline = None if lifetime is None else now + lifetime
        self._pace = pace
        self._second: int | None = None
        self._received = self._acked = 0  # how many bytes there were at the last check
        self._receiving: TransferWindow | None = None  # opened when a message of the client begins
        self._sending: TransferWindow | None = None  # opened when bytes begin to wait for the client

    def begin(self, now: float) -> None:
        """Schedule the next check, if a limit applies."""
        when = self._deadline
        if self._pace is not None:
            soon = now + max(1, self._pace[1] / 4) - 0.5  # half a second less, because buckets round up
            when = soon if when is None else min(soon, when)
        if when is not None:
            self._second = self._stream.loop.timers.buckets.add(self, when)

    def end(self) -> None:
        """Cancel the next check: the connection has ended."""
        if self._second is not None:
            self._stream.loop.timers.buckets.discard(self, self._second)

    def handle_look(self, now: float) -> None:
        """Called in the second of the next check."""
        self._second = None
        stream, counters = self._stream, self._stream.loop.counters
        if self._deadline is not None and now >= self._deadline:
            counters.ended_lifetime += 1
            stream.reset(
                LifetimeOver(f'{show(stream.peername)} reached the lifetime= of the limits; the connection was reset')
            )
            return
        slow = self._pace and (stream.state.receives or stream.state.half) and self._slowness(now, self._pace)
        if slow:
            counters.ended_slow += 1
            limit = f'the limit is min_rate={self._pace}'
            stream.reset(TooSlow(f'{show(stream.peername)} {slow}; {limit}; the connection was reset'))
        elif not stream.closed:
            self.begin(now)

    def _slowness(self, now: float, pace: Rate) -> str:
        """Return the part of the message that says how the client is too slow; '' if it is not too slow."""
        stream = self._stream
        try:
            heard, acked, unsent = stream.loop.kernel.tcp_counts(stream.sock)
        except OSError as exc:
            if exc.errno == EBADF:
                stream.loop.watchers.evict(stream)  # epoll does not report that other code has closed the socket
            return ''  # otherwise the connection has ended, which reading will report
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
            return f'read too slowly, {self._sending.show(now, acked)}'
        return ''


class TransferWindow:
    """A span of time in which bytes should move in one direction."""

    __slots__ = ('_before', '_since')

    def __init__(self, since: float, before: int) -> None:
        self._since = since  # when it began
        self._before = before  # the count of bytes at that time

    def is_slow(self, now: float, count: int, pace: Rate) -> bool:
        """Return whether fewer bytes have moved than the rate requires."""
        rate, grace = pace
        return now - self._since > grace + (count - self._before) / rate

    def show(self, now: float, count: int) -> str:
        """Describe the bytes and seconds for an error message."""
        return f'{count - self._before} bytes in {now - self._since:.0f} s'
