"""The worker's side of the control connection, and the timer of its reports. The counters show neither of them.

The reports would otherwise hide what the counters are for: in a quiet worker, most writes, bytes and timers would be
its own, and the lateness of its timers would be that of the reports.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from socket import socket
from typing import Self

from .. import Reactor, Stream
from ..callbacks import OnClose
from ..framing import Frames
from ..hints import Buffer, Ts
from ..loop.counters import LAG_BUCKETS
from ..loop.timers import RepeatingTimer

# Reports are sent at multiples of 1/INSTANTS seconds of the clock that all processes share. So the parent of 50 workers
# wakes 8 times a second and not 50 times, which halves its CPU time. With a single instant, all workers would report
# together, and clients would notice.
INSTANTS = 8
WRITTEN = 'writes', 'bytes_out', 'short_writes'  # the counters that sending changes


class ControlStream(Stream):
    """A stream whose sent bytes are not counted. Neither method calls the user, so nothing else is lost."""

    __slots__ = ()

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        before = self._written()
        try:
            return super().write(data, on_written, *args)
        finally:
            self._restore(before)

    def handle_write(self, dispatched: bool = True) -> None:
        before = self._written()
        try:
            super().handle_write(dispatched)
        finally:
            self._restore(before)

    def _written(self) -> list[int]:
        return [getattr(self.loop.counters, name) for name in WRITTEN]

    def _restore(self, before: list[int]) -> None:
        for name, value in zip(WRITTEN, before, strict=True):
            setattr(self.loop.counters, name, value)


def control_stream(
    r: Reactor, descriptor: int, on_line: Callable[[Stream, bytes], object], on_close: OnClose
) -> Stream:
    """Adopt the control connection. It does not keep the loop running."""
    frames = Frames()  # not `framing.lines`, which would replace `on_data` when the first bytes arrive

    def on_data(conn: Stream, data: bytes) -> None:
        counters = r.counters
        counters.reads -= 1
        counters.bytes_in -= len(data)
        frames.feed(data)
        while (line := frames.line()) is not None:
            on_line(conn, line)

    conn = r.adopt(socket(fileno=descriptor), on_data, on_close=on_close)
    conn.__class__ = ControlStream
    conn.unref()
    return conn


class ReportTimer(RepeatingTimer):
    """A repeating timer that is not counted. The loop counts it after `handle_due`, so this counts it down before."""

    __slots__ = ()

    def handle_due(self, now: float) -> None:
        assert self.deadline is not None
        counters = self.timers.counters
        counters.timers_fired -= 1
        late = int((now - self.deadline) * 1024)
        counters.timer_lag[min(late.bit_length(), LAG_BUCKETS - 1)] -= 1
        report = self.args[0]  # type: ignore[index]
        report.lag_sum, report.behind = counters.timer_lag_sum, now - self.deadline
        super().handle_due(now)


class Reports:
    """Calls a function at a fixed rate, in the phase after the timers, when the counters are complete."""

    __slots__ = ('_fn', '_r', 'behind', 'lag_sum')

    def __init__(self, r: Reactor, fn: Callable[[], object]) -> None:
        self._r = r
        self._fn = fn
        self.lag_sum: float = 0.0
        self.behind: float = 0.0

    def due(self) -> None:
        self._r.call_soon(self.report)

    def report(self) -> None:
        counters = self._r.counters
        # The sum must never fall, not even by a rounding error: Prometheus would take that for a restart.
        counters.timer_lag_sum = max(self.lag_sum, counters.timer_lag_sum - self.behind)
        self._fn()


def report_regularly(r: Reactor, interval: float, fn: Callable[[], object]) -> None:
    """Call `fn()` every `interval` seconds, without counting the timer. It does not keep the loop running."""
    timers = r.timers
    first = ceil((timers.clock() + interval) * INSTANTS) / INSTANTS
    timer = timers.add_at(ReportTimer, first, interval, Reports.due, (Reports(r, fn),))
    timers.unref(timer)
