"""The facts about one connection, collected outside the stream that is tested.

A `Record` holds the user's calls, the callbacks and their arguments, and the connection's end in the simulated kernel.
Nothing in it is read from the state of the stream: otherwise a check would repeat the stream's mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any
from weakref import ReferenceType

from ..errors import IdleTimeout, ReadTimeout, WriteTimeout
from .files import End
from .reached import Limits


class Record:
    """The facts about one connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.listener: ReferenceType[Any] | None = None  # the listener that has accepted it
        self.limits: Limits = {}  # the time limits that the program has passed for it
        self.counted: int = 0  # as an incoming (1) or outgoing (-1) connection, or not at all
        self.look_at: float = inf  # ns: when `Dues` looks at it next, even if nothing happens
        self.name = ''  # given by `Ledger.name`
        self.client = False  # the user has made the connection with connect_tcp or connect_unix
        self.events: list[str] = []  # the callbacks that were called
        self.end: End | None = None
        self.offered: bytearray = bytearray()  # bytes that the user wrote and that were not dropped
        self.got: bytearray = bytearray()  # bytes that were passed to on_data
        self.writing = False
        self.marks: list[int] = []  # for each write with an on_written, the size of `offered` after that write
        self.written_calls = 0  # how many times an on_written was called
        self.closed_by: str | None = None  # 'close' or 'abort', if the user called it
        self.closed_at = 0  # ns
        self.ended_by: str | None = None  # the user's call after which every write raises
        self.resumed_late = False
        self.marks_set_at = -1  # how many bytes had been sent when the user changed the high- or low-water mark
        self.has_header = False  # a PROXY header was received; the bytes after it are read in the same turn
        self.unclear = False  # the documentation does not say whether a write raises now
        self.failed_before = False  # `closed` was already True when the user called abort()
        self.gone_before = False  # its descriptor was already closed when the user called abort()
        self.over = False  # on_close was called
        self.options_at_end: Any = None  # the options when the connection ended, if the user has changed them since
        self.limited = False  # a limit of its listener has ended the connection, which may have failed before
        self.exc: BaseException | None = None  # the exception that was passed to on_close
        self.connected = False
        self.paused = False
        self.awaits_connect = False
        self.connect_by: float | None = None  # ns: the end of the connect timeout
        self.awaits_drain = False  # a write has returned False
        self.undrained: int = 0  # bytes written since then
        self.waited = False  # at least once, bytes had to wait for the peer
        self.unread = False  # the connection may have had unread input when the user closed it
        self.dropped = False  # a write after a failure returned False, so the bytes of that write are never sent
        self.cut = False  # a write found `max_buffered` bytes waiting, so the connection is aborted
        self.sends_files = False
        self.largest = 0  # bytes: the largest write
        self.high_water = 0
        self.limits_from = self.paused_at = self.resumed_at = self.waiting_from = 0  # ns
        self.aborted_with: BaseException | None = None
        self.raised: list[BaseException] = []
        self.survived: list[BaseException] = []  # the exceptions in `raised` that on_error handles
        self.secured = False
        self.raw = False  # the program transforms the bytes itself, so the peer receives different bytes
        self.wrappers: list[ReferenceType[Any]] = []  # the wrappers of its callbacks, to check that they are freed
        self.sock: ReferenceType[Any] | None = None
        self.deliveries: tuple[int, int] = (0, 0)  # a turn, and how many times on_data was called in it

    @property
    def begun(self) -> bool:
        """Whether the user has seen the connection open."""
        return self.end is not None and (self.connected or not self.awaits_connect)

    def time_limits(self, options: Any, waits: int) -> Iterator[tuple[type[BaseException], int, float | None]]:
        """Yield (error, start in ns, limit in s) for each time limit that is running."""
        end = self.end
        assert end is not None
        read_at, sent_at = end.kernel.reading(end.read_at), end.kernel.reading(end.sent_at)
        # The idle and read limits share one time stamp for input: with a read_timeout, resuming restarts both.
        resumed = self.resumed_at if options.read_timeout is not None else 0
        yield IdleTimeout, max(read_at, sent_at, self.limits_from, resumed), options.idle_timeout
        since = max(read_at, self.limits_from, self.resumed_at)
        limit = options.read_timeout
        # Pausing stops the read limit only if reading is paused before this limit has been reached.
        paused = self.paused and (limit is None or self.paused_at < since + limit * 1e9)
        if not paused and 'eof' not in self.events:
            yield ReadTimeout, since, limit
        if waits:
            yield WriteTimeout, max(sent_at, self.limits_from, self.waiting_from), options.write_timeout
