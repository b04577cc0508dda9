"""The time limits of a connection: `Timeouts`, which only connections with `read_`, `write_` or `idle_timeout` have.

A connection is looked at in the second in which a limit may be over (`loop/buckets.py`), so a byte costs no more than a
reading of the clock. A limit that does not apply now (nothing waits to be sent, reading is paused) is looked at again
when it could be over at the earliest.
"""

from __future__ import annotations

from ..errors import IdleTimeout, ReactorError, ReadTimeout, WriteTimeout
from .addresses import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .options import Options


class Timeouts:
    """When bytes went either way last, in seconds of the loop's clock; `second` is when it is looked at next."""

    __slots__ = ('received_at', 'second', 'sent_at')

    second: int

    def __init__(self, now: float) -> None:
        self.received_at: float = now
        self.sent_at: float = now

    def look(self, options: Options, peername: Any, reads: bool, waits: bool, now: float) -> tuple[Any, float]:
        """Return the error of the limit that is over at `now`, or None, and when to look again.

        reads  whether input is wanted: reading is neither paused nor over
        waits  whether bytes wait to be sent
        """
        received_at, sent_at = self.received_at, self.sent_at
        limits: tuple[tuple[float | None, bool, float, type[ReactorError], str], ...] = (
            (options.read_timeout, reads, received_at, ReadTimeout, 'sent nothing'),
            (options.write_timeout, waits, sent_at, WriteTimeout, 'took none of the bytes that wait'),
            (options.idle_timeout, True, max(received_at, sent_at), IdleTimeout, 'was idle'),
        )
        looks = []
        for limit, applies, since, error, what in limits:
            if limit is not None:
                if applies and since + limit <= now:
                    return error(f'{show(peername)} {what} for {limit:g} s; it was reset'), now
                looks.append((since if applies else now) + limit)
        return None, min(looks)
