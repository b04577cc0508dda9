"""Where a write goes when the kernel is full: the bytes of one stream that wait, and the callbacks that wait for them.

A stream has a `Writer` only while bytes wait, which keeps idle connections small; `conn.writer is None` is all that a
write has to ask. Positions are absolute, counted in bytes since the writer was made, so a mark never moves. Large
`bytes` are kept by reference, small pieces are gathered into one growing buffer, and nothing is ever shifted: any
number of writes costs O(bytes).
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from ..loop.checks import shown
from .files import FilePart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Mark = tuple[int, Callable[..., object], tuple[Any, ...]]

GATHER_BELOW = 4096  # copying so little costs less than another buffer in sendmsg
GATHER_UP_TO = 65536
# IOV_MAX is 1024, but a send accepts what the socket's buffer holds: more than this is prepared in vain.
BUFFERS_PER_SEND = 64
FILE_COST = 16384  # bytes: what a file weighs, so that 1,024 descriptors wait for one peer at most
# So many callbacks at most become due by one send. A peer that has read nothing for a while decides when it reads, and
# 130,000 of them may wait: they would be one turn of about 60 ms.
MARKS_PER_SEND = 1024
MARK_COST = 128  # bytes: what a mark weighs, so that many tiny writes with callbacks cannot grow past the limit


class Writer:
    """What waits to be sent on one stream.

    full   the high-water mark was reached, and the low one not yet since
    files  how many parts of files are among what waits
    """

    __slots__ = ('_chunks', '_file_bytes', '_queued', '_sent', '_skip', 'files', 'full', 'marks')

    def __init__(self) -> None:
        self.full: bool = False
        self.marks: deque[Mark] | tuple[()] = ()  # an empty deque is 700 bytes
        self.files: int = 0
        self._file_bytes = 0  # of these parts, that wait
        self._chunks: deque[bytes | bytearray | FilePart] = deque()
        self._skip = 0  # bytes of the first chunk that were sent already
        self._queued = 0
        self._sent = 0

    @property
    def buffered(self) -> int:
        """How many bytes wait."""
        return self._queued - self._sent

    @property
    def sent(self) -> int:
        """How many bytes were sent since it was made."""
        return self._sent

    @property
    def weight(self) -> int:
        """What waits, in bytes of memory: the bytes, their marks, and open files."""
        bytes_and_marks = self._queued - self._sent + len(self.marks) * MARK_COST
        return bytes_and_marks - self._file_bytes + self.files * FILE_COST if self.files else bytes_and_marks

    @property
    def untouched(self) -> bool:
        """Whether nothing was ever written to it."""
        return not (self._queued or self.marks)

    def extend(
        self,
        pieces: Iterable[bytes | memoryview | FilePart],
        on_written: Callable[..., object] | None,
        args: tuple[Any, ...],
    ) -> int:
        """Queue pieces after what waits, all or nothing, and return how many bytes wait then.

        A memoryview is copied, bytes of some size are not.
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
        except BaseException:  # of the last piece, or for want of memory
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
        """The next buffers to send, a list for one `sendmsg`; release them before the next `extend`.

        When a file is next, its `FilePart` alone, which sends by itself.
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
        """Cut what comes behind the last mark that one send may reach."""
        left = self.marks[MARKS_PER_SEND - 1][0] - self._sent
        for index, buffer in enumerate(buffers):
            if type(buffer) is FilePart:
                break  # it is sent by itself
            if len(buffer) > left:
                buffers[index:] = [memoryview(buffer)[:left]] if left else []
                break
            left -= len(buffer)
        return buffers

    def advance(self, sent: int) -> None:
        """The first `sent` bytes of `buffers` were accepted."""
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
        """Take the marks up to which everything was accepted, in order."""
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
        """Count the parts of files again, after one that was counted could not be queued."""
        parts = [len(chunk) for chunk in self._chunks if type(chunk) is FilePart]
        sent = self._skip if self._chunks and type(self._chunks[0]) is FilePart else 0
        self.files = len(parts)
        self._file_bytes = sum(parts) - sent


# What stands for the writer of a stream that takes no more writes, or not as plain ones: the state knows why. Streams
# share it, and nothing may ever be appended to it.
SHUT = Writer()


def check_buffers(buffers: object) -> None:
    """TypeError for what is not several buffers: a single one would be taken apart into numbers."""
    if not hasattr(buffers, '__iter__') or isinstance(buffers, bytes | bytearray | memoryview | str):
        raise TypeError(f'writelines takes a list of buffers, not {shown(buffers)}; write() takes one')


def flat(data: bytes | bytearray | memoryview) -> bytes | memoryview:
    """What a user writes as bytes, or as a view that counts in bytes; TypeError for anything else."""
    if type(data) is bytes:
        return data
    if not isinstance(data, (bytes, bytearray, memoryview)):
        advice = '; encode text first: text.encode()' if isinstance(data, str) else ''
        raise TypeError(f'a write takes bytes, bytearray or memoryview, not {shown(data)}{advice}')
    try:
        return memoryview(data).cast('B')
    except (TypeError, ValueError):  # it has gaps, the order of Fortran, or items of a foreign format
        return memoryview(data).tobytes()
