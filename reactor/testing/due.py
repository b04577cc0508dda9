"""What is due: things that have to happen soon, and since when they have not.

The rest of the oracles look at what has happened, and see nothing of a loop that forgets. Each check here says what the
kernel holds and what the user was promised, never how the reactor keeps it in mind: bytes that can be read are read,
room for bytes that wait is used, a client in a backlog is accepted, a time limit ends its connection.

A condition is late when it has held for so long, and for so many polls after that: a callback that takes a minute, or a
machine that slept, delays everything and breaks no promise. Whenever the kernel refuses a call, the time begins again.

Owns the conditions of one reactor that are pending. The rule: none is read from the reactor that is tested.
"""

from __future__ import annotations

from math import inf
from selectors import EVENT_WRITE

from ..errors import ReadTimeout
from .calls import PROMPT, ROUNDED
from .files import End, Listening

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .ledger import Ledger
    from .records import Record
    from .watched import WatchedStream

    # What is pending, a key that changes when something moves, seconds, and a time in ns to count from at the earliest.
    Pending = tuple[str, Any, float, int]

POLLS = 5  # that a condition has to hold for
LATE = 1.0  # seconds, by which a time limit may be late


class Dues:
    """The conditions of one reactor."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._asleep_until = 0.0  # ns
        self._held: dict[Any, tuple[int, int]] = {}  # since when each has held, and polls at which that was too long

    def check_turn(self, timeout: float | None) -> None:
        """Note what is pending now, and complain of what has been for too long, or would be after the poll to come."""
        now, held, before = self.ledger.time(), {}, self._held
        self._asleep_until = inf if timeout is None else now + timeout * 1e9 - ROUNDED * 1e9
        for what, key, seconds, floor in self._pending():
            since, polls = before.get((what, key), (now, 0))
            since = max(since, floor)
            polls = polls + 1 if now - since >= seconds * 1e9 else 0
            held[what, key] = since, polls
            if polls >= POLLS:
                self.ledger.violations.append(f'late, after {(now - since) / 1e9:g} s and {polls} polls: {what} {key}')
        self._held = held

    def _is_over(self, stream: WatchedStream, what: str, at: float) -> bool:
        """Whether the time `at` is over, in ns; the loop must not sleep beyond it."""
        if self.ledger.time() > at:
            return True
        if self._asleep_until > at:
            self.ledger.wrong(stream, f'the loop sleeps beyond {what}, at {at / 1e9}, until {self._asleep_until / 1e9}')
        return False

    def _pending(self) -> Iterator[Pending]:
        for stream in self.ledger.streams:
            record = stream.record
            if record.closed_by is not None:
                yield from self._of_closed(stream, record)
            end = self.ledger.end_of(stream)
            if end is not None and record.begun:
                if not (end.stuck or end.unread_error or record.raw):
                    yield from self._of_open(stream, record, end)
            elif record.connect_by is not None and record.closed_by is None and not stream.closed:
                if self._is_over(stream, 'the timeout of its connect', record.connect_by):
                    yield 'the timeout of a connect is over', record.number, 0.0, 0
        for listener, paused in self.ledger.listeners.items():
            if not paused:
                yield from self._of_listener(listener)

    def _of_closed(self, stream: WatchedStream, record: Record) -> Iterator[Pending]:
        if record.closed_by == 'abort':
            yield 'it was aborted', record.number, 0.0, 0
        elif self._is_over(stream, 'linger', record.closed_at + stream.options.linger * 1e9):
            yield 'it was closed, and its linger is over', record.number, 0.0, 0

    def _of_open(self, stream: WatchedStream, record: Record, end: End) -> Iterator[Pending]:
        number, floor = record.number, end.refused_at
        if end.reported and not record.paused and not self.ledger.lacks_close_notify(stream, end):
            yield 'it was told an error', (number, end.received, len(end.reported)), PROMPT, floor
        waits = stream.buffered if record.secured else len(record.offered) - end.sent
        if (
            record.written_calls < len(record.marks)
            and not record.secured
            and end.sent >= record.marks[record.written_calls]
        ):
            yield 'the bytes of an on_written are sent', (number, record.written_calls), 0.0, 0
        if record.closed_by is not None or stream.closed:
            return
        if not record.paused and 'eof' not in record.events:
            if end.inbox:
                yield 'bytes are there to read', (number, end.received), PROMPT, floor
            elif end.ended_in and not (record.secured or waits):
                yield 'an end is there to read', number, PROMPT, floor
        if waits and end.ready & EVENT_WRITE and not record.secured:
            yield 'bytes wait, and there is room', (number, end.sent), PROMPT, floor
        low = stream.options.low_water or 0
        if record.awaits_drain and stream.on_drain is not None and waits <= low and end.sent > record.marks_set_at:
            yield 'what waits is down at the low-water mark, and on_drain is owed', number, 0.0, floor
        if stream.options.timed and not end.inbox:
            for error, since, limit in record.time_limits(stream.options, waits):
                if record.paused and error is ReadTimeout:
                    continue  # it was paused when the time was over already: this may come, and is not owed
                if limit is not None and self._is_over(stream, error.__name__, since + (limit + LATE) * 1e9):
                    yield error.__name__, number, 0.0, floor

    def _of_listener(self, listener: Any) -> Iterator[Pending]:
        file, most = self.ledger.kernel.files.get(listener.fileno()), listener.max_connections
        if isinstance(file, Listening) and file.queue and not (file.stuck or file.unread_error):
            if most is None or listener.open_connections < most:
                yield 'a client is there to accept', (file.number, file.queue[0].number), PROMPT, file.refused_at
