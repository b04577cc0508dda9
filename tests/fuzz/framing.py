"""Fuzz framing: messages assembled from chunks must equal those split off the whole input at once.

An input is either fed to `Frames` directly, or sent to a connection with a `Framing` whose callback pauses, raises and
closes. The messages must be the same however the bytes were cut, and `FrameTooLong` must be raised for messages over
the limit, and only for those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reactor import FrameTooLong, framing

from .scene import Expected, Input, Scene, Seen

LONGEST_INPUT = 600
WORDS = (b'\r\n', b'\n\r\n', b'--', b'--\r\n--', b'aab', b'aaab', b'\0\3abc', b'\3\0abc', b'\xff\xff', b'\0\0')
DELIMITERS = (b'\n', b'\r\n', b'--', b'aab', b'--\r\n--', b'a')
MOST_IN_A_TURN = 2 * 128  # 128 messages per chunk; one turn can resume a chunk and receive the next one
LONGEST_PAUSE = 0.32  # seconds
TOO_LONG, WAIT = 'too long', 'wait'


def run(data: bytes) -> None:
    """Run one input: the first byte chooses `Frames` or a connection, and the other bytes are fed to it."""
    if data[:1] < b'\x80':
        run_frames(data[1:])
    else:
        run_connection(data[1:], data[0] & 127)


# -- the naive parser, which splits the whole input at once


def message_until(data: bytes, delimiter: bytes, limit: int) -> Any:
    """Return (message, rest), WAIT or TOO_LONG; {WAIT, TOO_LONG} if a part of a delimiter may exceed the limit."""
    before, found, after = data.partition(delimiter)
    if found:
        return TOO_LONG if len(before) > limit else (before, after)
    return either(len(data), limit, len(delimiter))


def line(data: bytes, limit: int) -> Any:
    """Like `message_until`, for a line, which ends with LF or CR LF."""
    before, found, after = data.partition(b'\n')
    if found:
        before = before.removesuffix(b'\r')
        return TOO_LONG if len(before) > limit else (before, after)
    return either(len(data), limit, 2)


def either(size: int, limit: int, delimiter: int) -> Any:
    """Return the result while there is no delimiter: its first `delimiter` - 1 bytes may have arrived already."""
    if size <= limit:
        return WAIT
    return TOO_LONG if size >= limit + delimiter else {WAIT, TOO_LONG}


def block(data: bytes, size: int, limit: int) -> Any:
    """Like `message_until`, for a message of `size` bytes."""
    if size > limit:
        return TOO_LONG
    return (data[:size], data[size:]) if len(data) >= size else WAIT


def prefixed(data: bytes, width: int, byteorder: Any, limit: int) -> Any:
    """Like `message_until`, for a length followed by that many bytes."""
    if len(data) < width:
        return WAIT
    return block(data[width:], int.from_bytes(data[:width], byteorder), limit)


# -- `Frames` without a connection


class Program:
    """Reads an input as numbers and strings. After the end of the input, numbers are 0 and strings are empty."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, below: int = 256) -> int:
        self.at += 1
        return self.data[self.at - 1] % below if self.at <= len(self.data) else 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def __bool__(self) -> bool:
        return self.at < len(self.data)


def run_frames(data: bytes) -> None:
    program = Program(data)
    frames, left = framing.Frames(limit := program.number()), b''
    while program:
        step = program.number(10)
        if step < 4:
            fed = program.take(program.number(40)) * (1, 1, 2, 30)[step]
            frames.feed(fed)
            left += fed
        elif step == 4:
            most = program.number()
            assert frames.rest(most if most else None) == (left[:most] if most else left), f'rest({most})'
            left = left[most:] if most else b''
        else:
            own = program.number() if program.number(2) else None
            left = ask(frames, program, step, own, limit if own is None else own, left)
        assert len(frames) == len(left), f'{len(frames)} bytes are left, not {len(left)}'


def ask(frames: Any, program: Program, step: int, own: int | None, limit: int, left: bytes) -> bytes:
    """Ask for a message, compare it with the expected one, and return the bytes that are left."""
    args: tuple[Any, ...]
    if step < 7:
        method, args, expected = frames.line, (), line(left, limit)
    elif step == 7:
        delimiter = DELIMITERS[program.number(len(DELIMITERS))]
        method, args, expected = frames.until, (delimiter,), message_until(left, delimiter, limit)
    elif step == 8:
        size = program.number()
        method, args, expected = frames.exactly, (size,), block(left, size, limit)
    else:
        args = 1 + program.number(3), ('big', 'little')[program.number(2)]
        method, expected = frames.prefixed, prefixed(left, *args, limit)
    try:
        found = method(*args, limit=own)
    except FrameTooLong:
        found = TOO_LONG
    outcome = WAIT if found is None else found
    if isinstance(expected, tuple):
        assert outcome == expected[0], (
            f'{method.__name__}{args} of {left!r}, limit {limit}: {outcome!r}, not {expected[0]!r}'
        )
        assert type(outcome) is bytes, f'{method.__name__} returned {type(outcome)}'
        return expected[1]
    allowed = expected if isinstance(expected, set) else {expected}
    assert outcome in allowed, f'{method.__name__}{args} of {left!r}, limit {limit}: {outcome!r}, not {expected!r}'
    return left


# -- `Framing` on a connection

SplitOne = Callable[[bytes, int], Any]
# Each kind has two functions: one makes an `on_data` from a callback and a limit, the other splits off one message.
KINDS: tuple[tuple[Callable[[Any, int], Any], SplitOne], ...] = (
    (lambda fn, limit: framing.lines(fn, limit=limit), line),
    (lambda fn, limit: framing.delimited(fn, b'--', limit=limit), lambda d, limit: message_until(d, b'--', limit)),
    (lambda fn, limit: framing.delimited(fn, b'aab', limit=limit), lambda d, limit: message_until(d, b'aab', limit)),
    (lambda fn, limit: framing.prefixed(fn, 1, limit=limit), lambda d, limit: prefixed(d, 1, 'big', limit)),
    (lambda fn, limit: framing.prefixed(fn, 2, 'little', limit=limit), lambda d, n: prefixed(d, 2, 'little', n)),
    (lambda fn, limit: framing.blocks(fn, 1 + limit), lambda d, limit: block(d, 1 + limit, 1 + limit)),
)
NUMBERS = 8  # numbers in an input: the limit, three piece lengths, three actions, and how the connection ends


def split(data: bytes, one: SplitOne, limit: int) -> tuple[list[bytes], Any]:
    """Return all messages, and the result for the bytes after them."""
    messages = []
    while isinstance(found := one(data, limit), tuple):
        messages.append(found[0])
        data = found[1]
    return messages, found


class Reader(Seen):
    """A connection with a framing. `script` lists the actions of its callback, one per message, repeated in a cycle."""

    def __init__(self, scene: Scene, script: list[int]) -> None:
        super().__init__(scene)
        self.script = script
        self.messages: list[bytes] = []
        self.paused = self.closed_by_us = False
        self.raised = self.errors = 0
        self._turn, self._in_turn = 0, 0

    def message(self, data: bytes) -> None:
        self._count()
        assert not self.paused, 'a message was delivered while reading is paused'
        assert not self.closed_by_us, 'a message was delivered after close()'
        step = self.script[len(self.messages) % len(self.script)]
        self.messages.append(data)
        if step & 7 == 1:
            self.conn.pause_reading()
            self.paused = True
            self.scene.r.call_later(LONGEST_PAUSE * (step >> 3) / 32, self.resume)
        elif step & 7 == 2:
            self.raised += 1
            raise Expected
        elif step == 3:
            self.conn.close()
            self.closed_by_us = True

    def resume(self) -> None:
        if self.conn is not None:
            count = len(self.messages)
            self.conn.resume_reading()
            assert len(self.messages) == count, 'law 2: resume_reading() has called the callback'
            self.paused = False

    def on_error(self, conn: Any, exc: Exception) -> None:
        """Count the exception, and keep the connection open."""
        assert isinstance(exc, Expected), exc
        self.errors += 1

    def _count(self) -> None:
        turn = self.scene.kernel.watch.turns
        self._in_turn = self._in_turn + 1 if turn == self._turn else 1
        self._turn = turn
        assert self._in_turn <= MOST_IN_A_TURN, f'law 5: {self._in_turn} messages in one turn'

    def _data(self, data: bytes) -> None:
        assert type(data) is bytes, f'a message is {type(data)}'
        self.message(data)


def run_connection(data: bytes, kind: int) -> None:
    given = Input(data, NUMBERS)
    make, one = KINDS[kind % len(KINDS)]
    limit, repeated = given.number(), kind // len(KINDS) % 3 == 1
    with Scene() as scene:
        pieces = list(given.pieces(3)) * (40 if repeated else 1)
        reader = Reader(scene, [given.number() for _ in range(3)])
        sock = scene.kernel.socket(0, 0)
        names = ('on_close', 'on_error')
        reader.watch(scene.r.adopt(sock, make(reader.on_data, limit), **reader.callbacks(*names)))
        for piece, misled in pieces:
            sock.arrive(piece, misled)
            scene.turn()
        how = given.number(3)
        if how < 2:
            sock.end() if how == 0 else sock.reset()
        scene.wait(LONGEST_PAUSE * len(pieces) * LONGEST_INPUT)  # long enough if each message pauses reading
        check(reader, b''.join(piece for piece, _ in pieces), one, limit, how)


def check(reader: Reader, payload: bytes, one: SplitOne, limit: int, how: int) -> None:
    messages, rest = split(payload, one, limit)
    count = len(reader.messages)
    assert reader.messages == messages[:count], f'{reader.messages} is not the beginning of {messages}'
    assert reader.errors == reader.raised, f'{reader.raised} exceptions, on_error was called {reader.errors} times'
    if reader.closed_by_us:
        return
    if how == 1:  # bytes that were not read before the reset are lost
        assert isinstance(reader.exc, ConnectionResetError | FrameTooLong), f'{reader.exc!r} after a reset'
        return
    assert count == len(messages), f'{count} of {len(messages)} messages: {messages[count:]} are missing'
    if isinstance(reader.exc, FrameTooLong):
        assert rest == TOO_LONG or rest == {WAIT, TOO_LONG}, f'{reader.exc!r}, but nothing is too long'
    else:
        assert rest != TOO_LONG, f'the next message is too long, but on_close got {reader.exc!r}'
        assert reader.exc is None, f'ended with {reader.exc!r}'
        assert reader.over == (how == 0), f'on_close was called {reader.over} times'
