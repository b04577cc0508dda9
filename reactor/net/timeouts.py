"""The time limits of a stream: which is over, and when to look again.

Owns the arithmetic. Knows the stamps of a stream and nothing of its states. The rule: a limit that does not apply now
(nothing waits to be written, reading is paused) is looked at again when it could be over at the earliest.
"""

from __future__ import annotations

from ..errors import IdleTimeout, ReactorError, ReadTimeout, WriteTimeout
from ..loop.watcher import READ
from .addresses import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .stream import Stream


def look_at_limits(stream: Stream, now: float) -> tuple[ReactorError | None, float]:
    """The limit of `stream` that is over at `now`, if any, and when to look again."""
    options = stream.options
    limits = (
        (options.read_timeout, stream.events & READ, stream.since, ReadTimeout, 'sent nothing'),
        (options.write_timeout, stream.buffered, stream.written_at, WriteTimeout, 'took none of the bytes that wait'),
        (options.idle_timeout, True, max(stream.since, stream.written_at), IdleTimeout, 'was idle'),
    )
    looks = []
    for limit, applies, since, error, what in limits:
        if limit is not None:
            if applies and since + limit <= now:
                return error(f'{show(stream.peername)} {what} for {limit:g} s; it was reset'), now
            looks.append((since if applies else now) + limit)
    return None, min(looks)
