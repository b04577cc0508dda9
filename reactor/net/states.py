"""The states of a connection, and the transitions between them.

    CONNECTING ── connected ──> OPEN ── write_eof ──> ENDING ── last byte sent ──> ENDED
                                 │                      │                           │
                               FIN (1)                FIN (1)                     FIN (1)
                                 v                      v                           v
                                HALF ── write_eof ──> HALF_ENDING ── last byte ──> CLOSED

    close() with bytes waiting         ──> CLOSING ── last byte sent ──> LINGERING ── FIN ──> CLOSED
    close() when bytes may be unread   ──> LINGERING
    close() with neither               ──> CLOSED
    FIN without on_eof                 ──> CLOSING with bytes waiting, otherwise CLOSED
    a send failed                      ──> FAILED ── received bytes are delivered ──> CLOSED
    abort(), a reset, a time limit     ──> CLOSED

(1) Only for a connection with `on_eof`; that callback is called then. A state that has nothing to wait for is skipped:
in HALF with no byte buffered, `write_eof` leads to CLOSED at once. CLOSED is the last state. The descriptor is closed
then, and only `on_close` remains to be called.

There are ten states. The code reads the attributes of states and compares states only by identity, because several
states have the same name. The name is what users see in `conn.state`: CONNECTING, OPEN, CLOSING or CLOSED. The design
follows h11's `_state.py`.
"""

from __future__ import annotations


class State(str):
    """A state of a connection. The string is the name that users see.

    Attributes:
        closed: The user has closed the connection, or it has failed.
        takes_writes: A write is sent, now or later.
        user_ended: The user has ended the write side, so a write is the user's mistake.
        receives: The peer has not ended its side, and the user may get data.
        half: The peer has ended its side, and we may still send.
        reads: Input is read and passed to `on_data`.
        ends_when_sent: Our side of the stream ends after the last buffered byte.
        discards: Input is read and dropped.
    """

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        'closed', 'takes_writes', 'user_ended', 'receives', 'half', 'reads', 'ends_when_sent', 'discards',
    )  # fmt: skip

    closed: bool
    discards: bool
    ends_when_sent: bool
    half: bool
    reads: bool
    receives: bool
    takes_writes: bool
    user_ended: bool

    def __new__(cls, name: str, *true: str) -> State:
        state = str.__new__(cls, name)
        for answer in cls.__slots__:
            setattr(state, answer, answer in true)
        return state


CONNECTING = State('CONNECTING', 'takes_writes')
OPEN = State('OPEN', 'takes_writes', 'receives', 'reads')
ENDING = State('OPEN', 'user_ended', 'receives', 'reads', 'ends_when_sent')
ENDED = State('OPEN', 'user_ended', 'receives', 'reads')
HALF = State('OPEN', 'takes_writes', 'half')
HALF_ENDING = State('OPEN', 'user_ended', 'half', 'ends_when_sent')
CLOSING = State('CLOSING', 'closed', 'discards', 'ends_when_sent')
LINGERING = State('CLOSING', 'closed', 'discards')
FAILED = State('CLOSED', 'closed', 'reads')
CLOSED = State('CLOSED', 'closed')
