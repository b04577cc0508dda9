"""Checks that the loop forgets nothing. They watch conditions that must end soon, and record when each began.

The other checks look at past events, so they cannot see that the loop has forgotten something. Each condition here
stands for a promise to the user: bytes that can be read are read, waiting bytes are sent when the kernel has room, a
client in a backlog is accepted, and an expired limit ends its connection. Conditions are read from the simulated
kernel, the ledger and public attributes, never from the internal state of the reactor.

A condition is late if it exceeds its time limit at POLLS polls in a row. One poll is not enough: a callback that takes
a minute, or a computer that was asleep, delays everything but breaks no promise. When the kernel refuses a call, the
time of the condition starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import inf
from selectors import EVENT_WRITE
from typing import Any
from weakref import ref

from ..errors import ReadTimeout
from .calls import PROMPT, ROUNDED
from .files import End, Listening
from .ledger import Ledger
from .records import Record
from .watched import WatchedStream

# A description, a key that changes when there is progress, a time limit in s, and a time in ns before which the limit
# does not start.
Pending = tuple[str, Any, float, int]

POLLS = 5  # a condition is late if it exceeds its limit at this many polls in a row
LATE = 1.0  # seconds by which the reactor may be late in applying a time limit


class Dues:
    """The pending conditions of one reactor."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._asleep_until = 0.0  # ns: when the next poll times out
        self._held: dict[Any, tuple[int, int]] = {}  # the start of each condition, and how many polls found it late
        self._holding: list[WatchedStream] = []  # the streams whose conditions are in `_held`
        self._next = inf  # ns: the earliest time limit of the stream that is being looked at
        # When to look at a stream again, even if nothing happens to it: ns, a sequence number and the stream.
        self._looks: list[tuple[float, int, ref[WatchedStream]]] = []
        self._sequence = 0

    def check_turn(self, timeout: float | None, touched: dict[WatchedStream, None]) -> None:
        """Record the conditions that hold now; report those that are late now or after `timeout` seconds of sleep.

        Besides the streams in `touched`, only those are looked at that had a condition one turn ago, or
        whose time limit ends before the next turn.
        """
        now, held, before = self.ledger.time(), {}, self._held
        self._asleep_until = inf if timeout is None else now + timeout * 1e9 - ROUNDED * 1e9
        for what, key, seconds, floor in self._pending(touched):
            since, polls = before.get((what, key), (now, 0))
            since = max(since, self.ledger.kernel.reading(floor))
            polls = polls + 1 if now - since >= seconds * 1e9 else 0
            held[what, key] = since, polls
            if polls >= POLLS:
                held_for = (now - since) / 1e9
                self.ledger.violations.append(f'forgotten for {held_for:g} s and {polls} polls: {what} ({key})')
        self._held = held

    def _is_over(self, stream: WatchedStream, what: str, at: float) -> bool:
        """Return whether the time `at`, in ns, has passed. If the loop is about to sleep beyond it, add a violation."""
        if self.ledger.time() > at:
            return True
        self._next = min(self._next, at)
        if self._asleep_until > at:
            self.ledger.wrong(stream, f'the loop sleeps until {self._asleep_until / 1e9}, but {what} is at {at / 1e9}')
        return False

    def _pending(self, touched: dict[WatchedStream, None]) -> Iterator[Pending]:
        holding, self._holding = self._holding, []
        for stream in {**dict.fromkeys(holding), **touched, **dict.fromkeys(self._due())}:
            if stream not in self.ledger.streams:
                continue
            self._next, holds = inf, False
            for pending in self._of_stream(stream, stream.record):
                holds = True
                yield pending
            if holds:
                self._holding.append(stream)
            self._look_later(stream)
        for listener, paused in self.ledger.listeners.items():
            if not paused:
                yield from self._of_listener(listener)

    def _due(self) -> Iterator[WatchedStream]:
        """Yield the streams with a time limit that may be over, or that ends while the loop sleeps."""
        until = max(self.ledger.time(), self._asleep_until)
        while self._looks and self._looks[0][0] < until:
            stream = heappop(self._looks)[2]()
            if stream is not None:
                stream.record.look_at = inf
                yield stream

    def _look_later(self, stream: WatchedStream) -> None:
        if self._next < stream.record.look_at:
            stream.record.look_at = self._next
            self._sequence += 1
            heappush(self._looks, (self._next, self._sequence, ref(stream)))

    def _of_stream(self, stream: WatchedStream, record: Record) -> Iterator[Pending]:
        if record.closed_by is not None:
            yield from self._of_closed(stream, record)
        end = self.ledger.end_of(stream)
        if end is not None and record.begun:
            if not (end.stuck or end.unread_error or record.raw):
                yield from self._of_open(stream, record, end)
        elif record.connect_by is not None and record.closed_by is None and not stream.closed:
            if self._is_over(stream, 'its connect timeout', record.connect_by):
                yield 'the connect timeout of a connection is over', record.name or record.number, 0.0, 0

    def _of_closed(self, stream: WatchedStream, record: Record) -> Iterator[Pending]:
        if record.closed_by == 'abort':
            yield 'a connection was aborted, and must end', record.name or record.number, 0.0, 0
        elif self._is_over(stream, 'the end of its linger', record.closed_at + stream.options.linger * 1e9):
            yield 'a connection was closed, and its linger is over', record.name or record.number, 0.0, 0

    def _of_open(self, stream: WatchedStream, record: Record, end: End) -> Iterator[Pending]:
        number, floor = record.name or self.ledger.name(record), end.refused_at
        if end.reported and not record.paused and not self.ledger.lacks_close_notify(stream, end):
            yield 'a connection got an error, and must end', (number, end.received, len(end.reported)), PROMPT, floor
        waits = stream.buffered if record.secured else len(record.offered) - end.sent
        called, marks = record.written_calls, record.marks
        if called < len(marks) and not record.secured and end.sent >= marks[called]:
            yield 'the bytes of a write are sent, so on_written must be called', (number, called), 0.0, 0
        if record.closed_by is not None or stream.closed:
            return
        if not record.paused and 'eof' not in record.events:
            if end.inbox:
                yield 'bytes can be read', (number, end.received), PROMPT, floor
            elif end.ended_in and not (record.secured or waits):
                yield 'an end of file can be read', number, PROMPT, floor
        if waits and end.ready & EVENT_WRITE and not record.secured:
            yield 'bytes are waiting, and the kernel has room for them', (number, end.sent), PROMPT, floor
        low = stream.options.low_water or 0
        if record.awaits_drain and stream.on_drain is not None and waits <= low and end.sent > record.marks_set_at:
            yield 'the low-water mark is reached, so on_drain must be called', number, 0.0, floor
        if stream.options.timed and not end.inbox:
            for error, since, limit in record.time_limits(stream.options, waits):
                if record.paused and error is ReadTimeout:
                    continue  # reading was paused after the limit had passed: ReadTimeout is allowed, not required
                if limit is not None and self._is_over(stream, error.__name__, since + (limit + LATE) * 1e9):
                    yield f'a connection must end with {error.__name__}', number, 0.0, floor

    def _of_listener(self, listener: Any) -> Iterator[Pending]:
        file, most = self.ledger.kernel.files.get(listener.fileno()), listener.max_connections
        if isinstance(file, Listening) and file.queue and not (file.stuck or file.unread_error):
            if most is None or listener.open_connections < most:
                yield 'a client waits to be accepted', (file.number, file.queue[0].number), PROMPT, file.refused_at
