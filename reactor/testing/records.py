"""What is known of one connection, apart from what its stream keeps.

A `Record` holds what the user of the connection has called and was called with, and the end of the connection in the
simulated kernel. Nothing in it is read from the stream that is tested.
"""

from __future__ import annotations

from ..errors import IdleTimeout, ReadTimeout, WriteTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any
    from weakref import ReferenceType

    from .files import End


class Record:
    """What was seen of one connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.events: list[str] = []
        self.end: End | None = None
        self.offered: bytearray = bytearray()  # what the user wrote, and was not told to be dropped
        self.got: bytearray = bytearray()
        self.writing = False
        self.marks: list[int] = []  # for each on_written that is awaited, up to where
        self.written_calls = 0  # how many callbacks of writes were called
        self.closed_by: str | None = None  # the user's own close() or abort()
        self.closed_at = 0
        self.ended_by: str | None = None  # the call after which a write raises
        self.resumed_late = False
        self.marks_set_at = -1  # bytes that were sent when the user has changed the marks
        self.has_header = False  # of the PROXY protocol; what follows it is read at once
        self.unclear = False  # whether a write raises
        self.failed_before = False  # something had ended it before the user aborted it,
        self.gone_before = False  # and its descriptor was closed by then
        self.over = False
        self.exc: BaseException | None = None
        self.connected = False
        self.paused = False
        self.awaits_connect = False
        self.connect_by: float | None = None  # ns
        self.awaits_drain = False  # a write has returned False
        self.waited = False  # bytes had to wait for the peer once
        self.unread = False  # when it was closed, something was known to be unread, perhaps
        self.dropped = False  # a write returned False, and the connection had failed: it is never sent
        self.cut = False  # a write found so much waiting that the connection is aborted
        self.sends_files = False
        self.largest = 0  # bytes of one write
        self.high_water = 0
        self.limits_from = self.paused_at = self.resumed_at = self.waiting_from = 0  # ns
        self.aborted_with: BaseException | None = None
        self.raised: list[BaseException] = []
        self.survived: list[BaseException] = []  # of these, which there was an on_error for
        self.secured = False
        self.raw = False  # the program makes its own protocol of these bytes: the peer gets other ones than it writes
        self.wrappers: list[ReferenceType[Any]] = []  # its callbacks, to see them gone
        self.sock: ReferenceType[Any] | None = None
        self.deliveries: tuple[int, int] = (0, 0)  # turn, and how often on_data was called in it

    @property
    def begun(self) -> bool:
        """Whether it is open as far as its user knows."""
        return self.end is not None and (self.connected or not self.awaits_connect)

    def time_limits(self, options: Any, waits: int) -> Iterator[tuple[type[BaseException], int, float | None]]:
        """(error, since when in ns, limit in s) of the limits that run now."""
        end = self.end
        assert end is not None
        read_at, sent_at = end.kernel.reading(end.read_at), end.kernel.reading(end.sent_at)
        # One stamp serves both limits for what comes in: with a read_timeout, resuming begins the idle time again too.
        resumed = self.resumed_at if options.read_timeout is not None else 0
        yield IdleTimeout, max(read_at, sent_at, self.limits_from, resumed), options.idle_timeout
        since = max(read_at, self.limits_from, self.resumed_at)
        limit = options.read_timeout
        paused = self.paused and (limit is None or self.paused_at < since + limit * 1e9)  # before it was over
        if not paused and 'eof' not in self.events:
            yield ReadTimeout, since, limit
        if waits:
            yield WriteTimeout, max(sent_at, self.limits_from, self.waiting_from), options.write_timeout
