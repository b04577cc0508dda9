"""Cut a stream of bytes into messages: lines, delimited or length-prefixed messages, blocks of a known size.

When all messages are of one kind, one of four functions makes an `on_data` that many connections can share:

    def on_line(conn, line):
        conn.write(line.upper() + b'\\n')

    r.listen_tcp(host, port, framing.lines(on_line))

A protocol that switches its framing (first the lines of a header, then a body of known size) keeps a `Frames` object
for each connection, feeds it with bytes, and takes messages from it:

    def on_data(conn, data):
        frames = conn.data
        frames.feed(data)
        while conn.reading and (line := frames.line()) is not None:
            ...

Such a loop handles all messages of a chunk in one turn, and a chunk can contain as many messages as bytes. `Framing`
passes on a limited number of messages per turn. It also accepts a function of your own that takes the next message.

The messages do not depend on how the bytes were cut into chunks. `FrameTooLong` is raised as soon as a message exceeds
its limit. The cost of a message is proportional to its size: no byte is searched twice or moved more than a few times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from .errors import FrameTooLong, TLSError
from .net.addresses import show
from .net.options import check_size
from .net.states import CONNECTING
from .net.stream import Stream, continue_reading, hold_reading, suspend_reading

__all__ = ['Framed', 'Frames', 'Framing', 'blocks', 'delimited', 'lines', 'prefixed']

LIMIT = 65536  # maximum size of a message in bytes; asyncio has the same limit for a line
# 65,536 empty lines in one chunk took 85 ms, and 128 take 0.2 ms. A peer may occupy the loop for 5 ms.
MESSAGES_PER_TURN = 128


class Frames:
    """The received bytes of one connection, until they are taken as messages. `len(frames)` is how many bytes are left.

    Each method that takes a message returns it, or None while it is incomplete. When a message exceeds the limit, the
    method raises `FrameTooLong`, and so does each later call, because that message is not skipped.

    Args:
        limit: Maximum size of a message in bytes, without its delimiter or prefix. Methods also accept a `limit`.

    Raises:
        TypeError, ValueError: `limit` is not a number of bytes.
    """

    __slots__ = ('_buffer', '_searched', '_sought', '_start', 'limit')

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit: int = check_size('limit', limit)
        self._buffer: bytes | bytearray = b''
        self._start = 0  # index of the first byte that has not been taken yet
        self._sought = b''  # the delimiter that was searched for last
        self._searched = 0  # how many positions from `_start` on are known not to begin a delimiter

    def __len__(self) -> int:
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
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
        """Take the next line, without its LF or CR LF.

        Args:
            limit: Maximum size of the line in bytes. None: the `limit` of this object.

        Returns:
            The line, or None while it is incomplete.

        Raises:
            FrameTooLong: The line is longer than the limit.
        """
        size = self._find(b'\n')
        bare = self._without_cr(size)
        # While the LF has not arrived, the last byte may be the CR before it.
        self._check('a line', bare if size >= 0 else len(self) - 1, limit)
        return self._wait() if size < 0 else self._take(bare, size - bare + 1)

    def until(self, delimiter: bytes, limit: int | None = None) -> bytes | None:
        """Take the bytes before the next `delimiter`, and drop the delimiter.

        Args:
            delimiter: At least one byte.
            limit: Maximum size of the message in bytes. None: the `limit` of this object.

        Returns:
            The message, or None while the delimiter has not arrived.

        Raises:
            FrameTooLong: The message is longer than the limit.
            ValueError: The delimiter is empty.
        """
        if not delimiter:
            raise ValueError('a delimiter must have at least one byte')
        size = self._find(delimiter)
        # While the delimiter has not arrived, the last bytes may be its beginning.
        self._check('a message', size if size >= 0 else len(self) - len(delimiter) + 1, limit)
        return self._wait() if size < 0 else self._take(size, len(delimiter))

    def exactly(self, size: int, limit: int | None = None) -> bytes | None:
        """Take the next `size` bytes. For more bytes than the limit allows, call `rest(size)` each time bytes arrive.

        Args:
            size: How many bytes to take.
            limit: Maximum size of the message in bytes. None: the `limit` of this object.

        Returns:
            The bytes, or None while there are fewer.

        Raises:
            FrameTooLong: `size` is above the limit.
            TypeError, ValueError: `size` is not a number of bytes.
        """
        self._check('a message', check_size('size', size), limit)
        return self._wait() if len(self) < size else self._take(size, 0)

    def prefixed(
        self, width: int = 4, byteorder: Literal['big', 'little'] = 'big', limit: int | None = None
    ) -> bytes | None:
        """Take the next length-prefixed message. The length is an unsigned number.

        Args:
            width: Size of the length in bytes.
            byteorder: Byte order of the length.
            limit: Maximum size of the message in bytes. None: the `limit` of this object.

        Returns:
            The message without its length, or None while it is incomplete.

        Raises:
            FrameTooLong: The length is above the limit.
            ValueError: `width` is below 1.
        """
        begin = self._start + width
        if width < 1:
            raise ValueError(f'a length must have at least one byte, not {width}')
        if len(self._buffer) < begin:
            return self._wait()
        size = int.from_bytes(self._buffer[self._start : begin], byteorder)
        self._check('a message', size, limit)
        if len(self._buffer) < begin + size:
            return self._wait()
        return self._take(size, 0, width)

    def rest(self, most: int | None = None) -> bytes:
        """Take buffered bytes: part of a long body, or everything, for example to pass it to another parser.

        Args:
            most: Maximum number of bytes to take. None: all.

        Raises:
            TypeError, ValueError: `most` is not a number of bytes.
        """
        size = len(self)
        return self._take(size if most is None else min(size, check_size('most', most)), 0)

    def _find(self, delimiter: bytes) -> int:
        """Return how many bytes come before the delimiter, or -1 while it has not arrived."""
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
            raise FrameTooLong(f'{what} of more than {limit} bytes; if such messages are allowed, raise limit=')

    def _take(self, size: int, skip: int, before: int = 0) -> bytes:
        begin = self._start + before
        start = begin + size + skip
        # Make the copy before anything changes: if memory runs out here, the message can still be taken later.
        piece = bytes(self._buffer[begin : begin + size])
        self._start = start
        self._searched = 0
        if start == len(self._buffer):
            self._buffer, self._start = b'', 0
        return piece

    def _wait(self) -> bytes | None:
        self._trim()  # a few bytes of the next message must not keep a whole chunk in memory
        return None

    def _trim(self) -> None:
        # Trim only when fewer bytes are left than were taken: moving these costs no more than taking the others did.
        if self._start > len(self._buffer) // 2:
            self._buffer = bytearray(memoryview(self._buffer)[self._start :])
            self._start = 0


class Framing:
    """An `on_data` for many connections at once: calls `on_message(conn, message)` for each complete message.

    At most 128 messages of a connection are passed on in one turn, and the others in later turns. Until then nothing
    more is received from this peer, and the end of the stream is not reported; `conn.reading` stays True.

    A connection gets its own `Framed` as `on_data` when its first bytes arrive, and uses no memory before that. After
    `conn.pause_reading()` the remaining messages, and the end of the stream, wait for `conn.resume_reading()`. An
    exception in `on_message` is handled like one in `on_data`; the other messages follow if the connection stays open.

    Args:
        on_message: Called for each message in order, until it closes the connection.
        take: A method of `Frames`, or a function that is called with a `Frames`. Returns the next message or None.
        *args: More arguments for `take`.
        limit: Maximum size of a message in bytes. When a peer sends a longer message, the connection is reset, and
            `on_close` gets `FrameTooLong`.

    Raises:
        TypeError, ValueError: A function is not callable, or `limit` is not a number of bytes.
    """

    __slots__ = ('args', 'limit', 'on_message', 'take')
    leads_to: str = 'on_message'  # the attribute that logs name

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
    """The `on_data` of one connection; a `Framing` makes it.

    To switch to another framing, take `conn.on_data.rest()` before you replace `conn.on_data`.
    """

    __slots__ = ('_queued', '_turn', 'framing')
    leads_to: str = 'framing'

    def __init__(self, framing: Framing) -> None:
        super().__init__(framing.limit)
        self.framing: Framing = framing
        self._queued = False  # whether a queued completion will pass on the remaining messages
        self._turn = 0  # the turn in which that completion was queued; it runs in a later turn

    def __call__(self, conn: Stream, data: bytes) -> None:
        self.feed(data)
        self.handle_resumed(conn)

    def handle_resumed(self, conn: Stream) -> None:
        """Pass on the buffered messages. Called as a completion after `resume_reading`."""
        if not self._queued:
            self._pass_on(conn)

    def handle_rest(self, conn: Stream) -> None:
        """Pass on the messages that an earlier turn has left. Called as a completion."""
        if conn.loop.counters.loop_count == self._turn:
            conn.loop.completions.append((conn, _handle_rest, (self,)))
            return
        self._queued = False
        self._pass_on(conn)

    def _pass_on(self, conn: Stream) -> None:
        frames: Any = self
        framing, left, more = self.framing, MESSAGES_PER_TURN, True
        try:
            while left and conn.on_data == self and conn.reading and conn.state is not CONNECTING:
                more = False  # so that no message is expected if `take` raises
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
            # After an exception, too, nothing may overtake the other messages, not even the end of the stream. Only
            # `take` knows whether there are more. In the last branch, `on_data` may be another `Framed` with messages.
            if conn.state is CONNECTING and conn.on_data == frames:
                self._begin_tls(conn)
            elif more and conn.on_data == frames and conn.reading:
                suspend_reading(conn)
                self._wait_for_turn(conn)
            elif more and conn.on_data == frames and not conn.closed:
                hold_reading(conn)
            elif not (isinstance(conn.on_data, Framed) and conn.on_data._queued):
                continue_reading(conn)

    def _begin_tls(self, conn: Stream) -> None:
        continue_reading(conn)
        if size := len(self):  # in plain text, which would look encrypted (CVE-2011-0411)
            conn.reset(TLSError(f'{show(conn.peername)} sent {size} bytes in plain text after the request for TLS'))

    def _wait_for_turn(self, conn: Stream) -> None:
        self._queued, self._turn = True, conn.loop.counters.loop_count
        conn.loop.completions.append((conn, _handle_rest, (self,)))


def lines(on_line: Callable[[Stream, bytes], object], *, limit: int = LIMIT) -> Framing:
    """Return an `on_data` that calls `on_line(conn, line)` for each line that ends with LF or CR LF, without these.

    Args:
        on_line: Called for each line; see `Framing`.
        limit: Maximum size of a line in bytes. A longer line resets the connection with `FrameTooLong`.
    """
    return Framing(on_line, Frames.line, limit=limit)


def delimited(on_message: Callable[[Stream, bytes], object], delimiter: bytes, *, limit: int = LIMIT) -> Framing:
    """Return an `on_data` that calls `on_message(conn, message)` for the bytes before each delimiter.

    Args:
        on_message: Called for each message; see `Framing`.
        delimiter: At least one byte. The delimiter is dropped.
        limit: Maximum size of a message in bytes. A longer message resets the connection with `FrameTooLong`.

    Raises:
        ValueError: The delimiter is empty.
    """
    Frames().until(delimiter)  # raises for a wrong delimiter
    return Framing(on_message, Frames.until, delimiter, limit=limit)


def prefixed(
    on_message: Callable[[Stream, bytes], object],
    width: int = 4,
    byteorder: Literal['big', 'little'] = 'big',
    *,
    limit: int = LIMIT,
) -> Framing:
    """Return an `on_data` that calls `on_message(conn, message)` for each length-prefixed message.

    Args:
        on_message: Called for each message, without its length; see `Framing`.
        width: Size of the length, an unsigned number, in bytes.
        byteorder: Byte order of the length.
        limit: Maximum size of a message in bytes. A longer message resets the connection with `FrameTooLong`.

    Raises:
        TypeError, ValueError: `width` or `byteorder` is wrong.
    """
    int.from_bytes(bytes(width), byteorder)  # raises for a wrong width or byte order
    Frames().prefixed(width)
    return Framing(on_message, Frames.prefixed, width, byteorder, limit=limit)


def blocks(on_block: Callable[[Stream, bytes], object], size: int, *, limit: int | None = None) -> Framing:
    """Return an `on_data` that calls `on_block(conn, block)` with exactly `size` bytes each time.

    Args:
        on_block: Called for each block; see `Framing`.
        size: Size of a block in bytes, at least 1.
        limit: Maximum size of a block in bytes. None: `size`.

    Raises:
        TypeError, ValueError: `size` is not a number of bytes, or is 0.
    """
    if check_size('size', size) == 0:
        raise ValueError('a block must have at least one byte')
    return Framing(on_block, Frames.exactly, size, limit=size if limit is None else limit)


def _handle_rest(conn: Stream, framed: Framed) -> None:
    framed.handle_rest(conn)
