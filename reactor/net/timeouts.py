"""Check the read, write and idle timeouts of a connection.

The limits themselves are in the connection's `Options`. A `Timeouts` object, which only connections with a limit have,
records when bytes were last received and sent. The time limit of a TLS handshake is in `handshake.py`.

Sending or receiving bytes costs one reading of the clock and no timer, because the connection is checked only in the
second in which a limit may expire (`loop/buckets.py`). A limit that does not apply now, because no byte is waiting to
be sent or because reading is paused, is checked again at the earliest time when it could expire.
"""

from __future__ import annotations

from typing import Any

from ..errors import IdleTimeout, ReactorError, ReadTimeout, WriteTimeout
from .addresses import show
from .options import Options


class Timeouts:
    """When bytes were last received and sent, in seconds of the loop's clock.

    `second` is the second of the next check.
    """

    __slots__ = ('received_at', 'second', 'sent_at')

    second: int

    def __init__(self, now: float) -> None:
        self.received_at: float = now
        self.sent_at: float = now

    def look(self, options: Options, peername: Any, reads: bool, waits: bool, now: float) -> tuple[Any, float]:
        """Return the error of the limit that has expired at `now`, or None, and the time of the next check.

        Args:
            options: The options with the limits.
            peername: The address of the peer, for the message.
            reads: Whether input is wanted: reading is neither paused nor over.
            waits: Whether bytes are waiting to be sent.
            now: A reading of the loop's clock.
        """
        received_at, sent_at = self.received_at, self.sent_at
        limits: tuple[tuple[float | None, bool, float, type[ReactorError], str, str], ...] = (
            (options.read_timeout, reads, received_at, ReadTimeout, 'sent nothing', 'read'),
            (options.write_timeout, waits, sent_at, WriteTimeout, 'accepted none of the buffered bytes', 'write'),
            (options.idle_timeout, True, max(received_at, sent_at), IdleTimeout, 'was idle', 'idle'),
        )
        looks = []
        for limit, applies, since, error, what, name in limits:
            if limit is not None:
                if applies and since + limit <= now:
                    message = f'{show(peername)} {what} for {limit:g} s ({name} timeout); the connection was reset'
                    return error(message), now
                looks.append((since if applies else now) + limit)
        return None, min(looks)
