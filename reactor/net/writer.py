"""The bytes of one stream that the kernel has not accepted yet, and the callbacks that follow them.

A stream has a `Writer` only while bytes are waiting to be sent, so idle connections stay small. The only check that a
plain write makes is `conn.writer is None`. A callback is kept as a mark: a position in the stream, counted in bytes
since the writer was made, so that a mark never moves. Large `bytes` are kept by reference, and small pieces are
gathered into one growing buffer. Buffered bytes are never moved, so the cost of writes is proportional to the number of
their bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from ..loop.checks import shown
from .files import FilePart

Mark = tuple[int, Callable[..., object], tuple[Any, ...]]

GATHER_BELOW = 4096  # bytes; copying fewer costs less than another buffer in sendmsg
GATHER_UP_TO = 65536
# IOV_MAX is 1024, but the kernel accepts only what fits into the socket's buffer. Preparing more would be wasted work.
BUFFERS_PER_SEND = 64
FILE_COST = 16384  # bytes of `max_buffered` that each open file uses up: at most 1,024 files may wait for a peer
# The most callbacks that become due after one send. The peer decides when it reads, and 130,000 callbacks may be
# waiting at that time. Calling all of them at once would take about 60 ms.
MARKS_PER_SEND = 1024
MARK_COST = 128  # bytes of `max_buffered` that each mark uses up, so that tiny writes with callbacks are limited


class Writer:
    """The bytes of one stream that are waiting to be sent, and their callbacks.

    Attributes:
        full: The high-water mark was reached, and the buffer has not yet fallen to the low-water mark again.
        marks: A (position, callback, arguments) for each write with `on_written`, in order.
        files: How many of the waiting pieces are parts of files.
    """

    __slots__ = ('_chunks', '_file_bytes', '_queued', '_sent', '_skip', 'files', 'full', 'marks')

    def __init__(self) -> None:
        self.full: bool = False
        self.marks: deque[Mark] | tuple[()] = ()  # an empty deque takes 700 bytes
        self.files: int = 0
        self._file_bytes = 0  # bytes of the parts of files that are not sent yet
        self._chunks: deque[bytes | bytearray | FilePart] = deque()
        self._skip = 0  # bytes of the first chunk that were sent already
        self._queued = 0
        self._sent = 0

    @property
    def buffered(self) -> int:
        """How many bytes are waiting to be sent."""
        return self._queued - self._sent

    @property
    def sent(self) -> int:
        """How many bytes the kernel has accepted since the writer was made."""
        return self._sent

    @property
    def weight(self) -> int:
        """The memory that is in use, in bytes: buffered bytes, marks, and open files."""
        bytes_and_marks = self._queued - self._sent + len(self.marks) * MARK_COST
        return bytes_and_marks - self._file_bytes + self.files * FILE_COST if self.files else bytes_and_marks

    @property
    def untouched(self) -> bool:
        """Whether nothing has been written yet."""
        return not (self._queued or self.marks)

    def extend(
        self,
        pieces: Iterable[bytes | memoryview | FilePart],
        on_written: Callable[..., object] | None,
        args: tuple[Any, ...],
    ) -> int:
        """Append all pieces, or none if this raises, and return how many bytes are waiting now.

        A memoryview is copied. `bytes` of GATHER_BELOW bytes or more are not.
        """
        chunks, queued = self._chunks, self._queued
        before, first = len(chunks), chunks[-1] if chunks else None
        length = len(first) if type(first) is bytearray else 0
        try:
            for piece in pieces:
                size = len(piece)
                last = chunks[-1] if chunks else None
                if size >= GATHER_BELOW:
                    chunks.append(piece if type(piece) is bytes else self._keep(piece))
                elif type(last) is bytearray and len(last) < GATHER_UP_TO:
                    last += piece  # type: ignore[arg-type]  # no part of a file is so small
                elif size:
                    chunks.append(bytearray(piece))  # type: ignore[arg-type]
                queued += size
            buffered = queued - self._sent
            if on_written is not None:
                self.marks = self.marks or deque()
                self.marks.append((queued, on_written, args))
        except BaseException:  # the user's iterator raised, or memory ran out
            while len(chunks) > before:
                chunks.pop()
            if type(first) is bytearray:
                del first[length:]
            if self.files:
                self._count_files()
            raise
        self._queued = queued
        return buffered

    def buffers(self) -> Any:
        """Return the next buffers to send, a list for one `sendmsg`. Release them before the next `extend`.

        When a part of a file is next, the `FilePart` is returned instead; it is sent with its method `send_some`.
        """
        if self.files:
            return self._buffers_or_file()
        return self._buffers()

    def _buffers(self) -> list[Any]:
        buffers: list[Any] = list(islice(self._chunks, BUFFERS_PER_SEND))
        if self._skip:
            buffers[0] = memoryview(buffers[0])[self._skip :]
        return buffers if len(self.marks) <= MARKS_PER_SEND else self._within_marks(buffers)

    def _buffers_or_file(self) -> Any:
        first = self._chunks[0]
        if type(first) is FilePart:
            first.sent = self._skip
            return first
        buffers = self._buffers()
        for index, chunk in enumerate(buffers):
            if type(chunk) is FilePart:
                return buffers[:index]
        return buffers

    def _within_marks(self, buffers: list[Any]) -> list[Any]:
        """Cut the buffers after the last mark that one send may reach."""
        left = self.marks[MARKS_PER_SEND - 1][0] - self._sent
        for index, buffer in enumerate(buffers):
            if type(buffer) is FilePart:
                break  # a part of a file is sent by a call of its own
            if len(buffer) > left:
                buffers[index:] = [memoryview(buffer)[:left]] if left else []
                break
            left -= len(buffer)
        return buffers

    def advance(self, sent: int) -> None:
        """Drop the first `sent` bytes of `buffers`: the kernel has accepted them."""
        self._sent += sent
        chunks = self._chunks
        if self.files and type(chunks[0]) is FilePart:
            self._file_bytes -= sent
        sent += self._skip
        while chunks and sent >= len(chunks[0]):
            done = chunks.popleft()
            sent -= len(done)
            if type(done) is FilePart:
                self.files -= 1
        self._skip = sent

    def reached(self) -> list[Mark]:
        """Remove and return, in order, the marks up to which all bytes were accepted."""
        marks, reached = self.marks, []
        while marks and marks[0][0] <= self._sent:
            reached.append(marks.popleft())
        return reached

    def _keep(self, piece: bytes | memoryview | FilePart) -> bytes | FilePart:
        if type(piece) is not FilePart:
            return bytes(piece)  # type: ignore[arg-type]  # a memoryview
        self.files += 1
        self._file_bytes += len(piece)
        return piece

    def _count_files(self) -> None:
        """Count the parts of files again, after a part was counted but could not be queued."""
        parts = [len(chunk) for chunk in self._chunks if type(chunk) is FilePart]
        sent = self._skip if self._chunks and type(self._chunks[0]) is FilePart else 0
        self.files = len(parts)
        self._file_bytes = sum(parts) - sent


# Takes the place of the writer in a stream that accepts no more writes, or none for the moment; the state says why. All
# streams share it, so nothing may ever be appended to it.
SHUT = Writer()


def check_buffers(buffers: object) -> None:
    """Raise TypeError unless `buffers` is an iterable of buffers. A single buffer would be split into numbers."""
    if not hasattr(buffers, '__iter__') or isinstance(buffers, bytes | bytearray | memoryview | str):
        raise TypeError(f'writelines() takes a list of buffers, not {shown(buffers)}; use write() for a single buffer')


def flat(data: bytes | bytearray | memoryview) -> bytes | memoryview:
    """Return bytes or a view of single bytes. Raise TypeError if `data` is not bytes, bytearray or memoryview."""
    if type(data) is bytes:
        return data
    if not isinstance(data, (bytes, bytearray, memoryview)):
        advice = '; encode text first: text.encode()' if isinstance(data, str) else ''
        raise TypeError(f'data must be bytes, bytearray or memoryview, not {shown(data)}{advice}')
    try:
        return memoryview(data).cast('B')
    except (TypeError, ValueError):  # the view has gaps, Fortran order, or items of a format that cannot be cast
        return memoryview(data).tobytes()
