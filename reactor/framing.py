"""Whole messages out of chunks: lines, delimiters, length prefixes, blocks of a known size.

Owns the bytes of one connection that are not a whole message yet. Knows no socket: it is fed what `on_data` brings.
The rules: the same messages come out however the bytes were cut into chunks; each has a limit, and `FrameTooLong` tells
when more than that and a delimiter has come without an end; no byte is searched twice and none is moved more than a few
times, so a message in any number of chunks costs O(bytes).

Where all messages are of one kind, one of the four functions makes an `on_data` for any number of connections:

    def on_line(conn, line):
        conn.write(line.upper() + b'\\n')

    r.listen_tcp(host, port, framing.lines(on_line))

A protocol that changes its framing on the way (lines of a header, then so many bytes) keeps a `Frames` for each
connection, feeds it, and asks it for what has to come next:

    def on_data(conn, data):
        frames = conn.data
        frames.feed(data)
        while conn.reading and (line := frames.line()) is not None:
            ...

A loop like this one takes all messages of a chunk in one turn, of which there may be as many as bytes. `Framing` has a
bound, and it takes a function of yours, too: the state of the protocol decides what that asks the frames for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from .errors import FrameTooLong
from .net.addresses import show
from .net.stream import Stream, continue_reading, hold_reading, suspend_reading

__all__ = ['Framed', 'Frames', 'Framing', 'blocks', 'delimited', 'lines', 'prefixed']

LIMIT = 65536  # bytes of one message: what asyncio allows a line
# A peer decides how many messages a chunk has: 65,536 empty lines took 85 ms. So many take 0.2 ms, which leaves
# each callback 30 us of the 5 ms for which one peer may hold the loop. A turn more costs 1 % of so many.
MESSAGES_PER_TURN = 128


class Frames:
    """The bytes of one connection that were received and not taken yet; `len(frames)` tells how many.

    limit  bytes that one message may have, its delimiter or prefix not counted; each method takes another as `limit=`

    The methods give the next message, or None until all of it was fed. When it exceeds the limit they raise
    `FrameTooLong`, then and whenever they are asked again: nothing is skipped.
    """

    __slots__ = ('_buffer', '_searched', '_sought', '_start', 'limit')

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit: int = check_size('limit', limit)
        self._buffer: bytes | bytearray = b''
        self._start = 0  # before it, all was taken
        self._sought = b''  # the delimiter that was looked for last,
        self._searched = 0  # and behind `_start` so many bytes in which it does not begin

    def __len__(self) -> int:
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        if not data:
            return
        self._trim()
        buffer = self._buffer
        if not buffer:
            self._buffer = bytes(data)
            return
        if type(buffer) is not bytearray:
            self._buffer = buffer = bytearray(memoryview(buffer)[self._start :])
            self._start = 0
        buffer += data

    def line(self, limit: int | None = None) -> bytes | None:
        """The next line without its end, which is LF or CR LF."""
        size = self._find(b'\n')
        bare = self._without_cr(size)
        # Of bytes without an end the last may be the CR of one.
        self._check('a line', bare if size >= 0 else len(self) - 1, limit)
        return self._wait() if size < 0 else self._take(bare, size - bare + 1)

    def until(self, delimiter: bytes, limit: int | None = None) -> bytes | None:
        """The bytes before the next `delimiter`, which is dropped."""
        if not delimiter:
            raise ValueError('a delimiter has at least one byte')
        size = self._find(delimiter)
        # Of bytes without a delimiter the last may be the beginning of one.
        self._check('a message', size if size >= 0 else len(self) - len(delimiter) + 1, limit)
        return self._wait() if size < 0 else self._take(size, len(delimiter))

    def exactly(self, size: int, limit: int | None = None) -> bytes | None:
        """The next `size` bytes. Ask for no more than the limit, or take them as they come with `rest(size)`."""
        self._check('a message', check_size('size', size), limit)
        return self._wait() if len(self) < size else self._take(size, 0)

    def prefixed(
        self, width: int = 4, byteorder: Literal['big', 'little'] = 'big', limit: int | None = None
    ) -> bytes | None:
        """The message behind its length, an unsigned number of `width` bytes. The length alone can be too long."""
        begin = self._start + width
        if width < 1:
            raise ValueError(f'a length has at least one byte, not {width}')
        if len(self._buffer) < begin:
            return self._wait()
        size = int.from_bytes(self._buffer[self._start : begin], byteorder)
        self._check('a message', size, limit)
        if len(self._buffer) < begin + size:
            return self._wait()
        return self._take(size, 0, width)

    def rest(self, most: int | None = None) -> bytes:
        """What is there, at most `most` bytes of it: for a long body as it comes, or to hand on to another parser."""
        size = len(self)
        return self._take(size if most is None else min(size, check_size('most', most)), 0)

    def _find(self, delimiter: bytes) -> int:
        """How many bytes come before the delimiter, -1 when it is not there yet."""
        if delimiter != self._sought:
            self._sought, self._searched = delimiter, 0
        at = self._buffer.find(delimiter, self._start + self._searched)
        if at >= 0:
            return at - self._start
        self._searched = max(0, len(self) - len(delimiter) + 1)
        return -1

    def _without_cr(self, size: int) -> int:
        return size - 1 if size > 0 and self._buffer[self._start + size - 1] == 13 else size

    def _check(self, what: str, size: int, limit: int | None) -> None:
        limit = self.limit if limit is None else limit
        if size > limit:
            raise FrameTooLong(f'{what} of more than {limit} bytes; if that is right, allow it with limit=')

    def _take(self, size: int, skip: int, before: int = 0) -> bytes:
        begin = self._start + before
        start = begin + size + skip
        # Copied before anything changes: if no memory is left for that, the message is there to be asked for again.
        piece = bytes(self._buffer[begin : begin + size])
        self._start = start
        self._searched = 0
        if start == len(self._buffer):
            self._buffer, self._start = b'', 0
        return piece

    def _wait(self) -> bytes | None:
        self._trim()  # a few bytes of the next message shall not hold a whole chunk until it comes
        return None

    def _trim(self) -> None:
        # Only when less is left than was taken: so what is moved costs no more than what was taken.
        if self._start > len(self._buffer) // 2:
            self._buffer = bytearray(memoryview(self._buffer)[self._start :])
            self._start = 0


class Framing:
    """An `on_data` for any number of connections, which tells whole messages: `on_message(conn, message)`.

    on_message  called for each message, in order, and not after it has closed the connection
    take        gives the next message or None: a method of `Frames`, or a function of yours that is called as
                `take(frames, *args)` and asks the frames for what it needs
    limit       bytes that a message may have; `on_close` gets `FrameTooLong` from the peer that sends a longer one,
                and the connection is reset

    At most 128 messages of a chunk are passed on in one turn. The others follow in the next turns, and until they have,
    nothing more from this peer, not even its end. `conn.reading` stays True meanwhile.

    With its first bytes, a connection gets a `Framed` of its own as its `on_data`; until then it costs nothing.
    `conn.pause_reading()` holds the messages that are left, and the end of the stream, until `conn.resume_reading()`.
    An exception in a callback goes where exceptions go, and if the connection lives, the other
    messages follow.
    """

    __slots__ = ('args', 'limit', 'on_message', 'take')

    def __init__(
        self,
        on_message: Callable[[Stream, Any], object],
        take: Callable[..., Any] = Frames.line,
        *args: Any,
        limit: int = LIMIT,
    ) -> None:
        for fn in on_message, take:
            if not callable(fn):
                raise TypeError(f'on_message and take must be callable, not {fn!r}')
        self.on_message: Callable[[Stream, Any], object] = on_message
        self.take: Callable[..., Any] = take
        self.args: tuple[Any, ...] = args
        self.limit: int = check_size('limit', limit)

    def __call__(self, conn: Stream, data: bytes) -> None:
        framed = Framed(self)
        conn.on_data = framed
        framed(conn, data)


class Framed(Frames):
    """The `on_data` of one connection, made by a `Framing`.

    To go on with another framing, take `conn.on_data.rest()` before you replace `conn.on_data`.
    """

    __slots__ = ('_queued', '_turn', 'framing')

    def __init__(self, framing: Framing) -> None:
        super().__init__(framing.limit)
        self.framing: Framing = framing
        self._queued = False  # a completion will go on with what is left,
        self._turn = 0  # in another turn of the loop than this one

    def __call__(self, conn: Stream, data: bytes) -> None:
        self.feed(data)
        self.handle_resumed(conn)

    def handle_resumed(self, conn: Stream) -> None:
        """Pass on what is here; called as a completion after `resume_reading`."""
        if not self._queued:
            self._pass_on(conn)

    def handle_rest(self, conn: Stream) -> None:
        """Called as a completion: pass on what a turn has left, in the next one."""
        if conn.loop.counters.loop_count == self._turn:
            conn.loop.completions.append((conn, _handle_rest, (self,)))
            return
        self._queued = False
        self._pass_on(conn)

    def _pass_on(self, conn: Stream) -> None:
        frames: Any = self
        framing, left, more = self.framing, MESSAGES_PER_TURN, True
        try:
            while left and conn.on_data == self and conn.reading:
                more = False  # what `take` raises is no reason to go on
                try:
                    message = framing.take(frames, *framing.args)
                except FrameTooLong as exc:
                    conn.reset(FrameTooLong(f'{show(conn.peername)} sent {exc}'))
                    return
                if message is None:
                    return
                more = True
                left -= 1
                framing.on_message(conn, message)
        finally:
            # Also after an exception. Nothing may overtake what is left here, not even the end of the stream. Only
            # `take` knows whether there is more: a function of the user's may have a message that needs no bytes.
            if more and conn.on_data == frames and conn.reading:
                suspend_reading(conn)
                self._wait_for_turn(conn)
            elif more and conn.on_data == frames and not conn.closed:
                hold_reading(conn)
            elif not (isinstance(conn.on_data, Framed) and conn.on_data._queued):  # of another framing
                continue_reading(conn)

    def _wait_for_turn(self, conn: Stream) -> None:
        self._queued, self._turn = True, conn.loop.counters.loop_count
        conn.loop.completions.append((conn, _handle_rest, (self,)))


def lines(on_line: Callable[[Stream, bytes], object], *, limit: int = LIMIT) -> Framing:
    """An `on_data` that calls `on_line(conn, line)`, without the line's end, LF or CR LF; otherwise see `Framing`."""
    return Framing(on_line, Frames.line, limit=limit)


def delimited(on_message: Callable[[Stream, bytes], object], delimiter: bytes, *, limit: int = LIMIT) -> Framing:
    """An `on_data` that calls `on_message(conn, message)` for what comes before each delimiter; see `Framing`."""
    Frames().until(delimiter)  # a bad one raises here
    return Framing(on_message, Frames.until, delimiter, limit=limit)


def prefixed(
    on_message: Callable[[Stream, bytes], object],
    width: int = 4,
    byteorder: Literal['big', 'little'] = 'big',
    *,
    limit: int = LIMIT,
) -> Framing:
    """An `on_data` that calls `on_message(conn, message)`; each follows its length in `width` bytes; see `Framing`."""
    int.from_bytes(bytes(width), byteorder)  # bad ones raise here
    Frames().prefixed(width)
    return Framing(on_message, Frames.prefixed, width, byteorder, limit=limit)


def blocks(on_block: Callable[[Stream, bytes], object], size: int, *, limit: int | None = None) -> Framing:
    """An `on_data` that calls `on_block(conn, block)` with exactly `size` bytes each time; see `Framing`."""
    if check_size('size', size) == 0:
        raise ValueError('a block has at least one byte')
    return Framing(on_block, Frames.exactly, size, limit=size if limit is None else limit)


def _handle_rest(conn: Stream, framed: Framed) -> None:
    framed.handle_rest(conn)


def check_size(name: str, size: int) -> int:
    """Check a number of bytes; ValueError below 0, TypeError for what is no int."""
    if not isinstance(size, int):
        raise TypeError(f'{name} is a number of bytes, not {size!r}')
    if size < 0:
        raise ValueError(f'{name} is a number of bytes, at least 0, not {size}')
    return size
