"""The queue of bytes that are waiting to be sent.

`test_model_writer.py` compares the queue of a stream with a model.
"""

from __future__ import annotations

import os
from collections import deque

import pytest

from reactor import Reactor
from reactor.kernel import Kernel
from reactor.net.files import FilePart
from reactor.net.writer import (
    BUFFERS_PER_SEND,
    GATHER_BELOW,
    GATHER_UP_TO,
    MARK_COST,
    MARKS_PER_SEND,
    SHUT,
    Writer,
)
from tests.helpers.support import ScriptedKernel, ScriptedSocket


def joined(writer: Writer) -> bytes:
    return b''.join(writer.buffers())


def names(marks) -> list[object]:
    return [args[0] for _, _, args in marks]


# -- the queue without a stream


def test_a_new_writer_is_empty():
    writer = Writer()
    assert (writer.buffered, writer.weight, writer.buffers(), writer.reached()) == (0, 0, [], [])
    assert not writer.full and not writer.files and writer.untouched


def test_small_pieces_are_gathered_into_one_buffer():
    writer = Writer()
    for i in range(1000):
        writer.extend((bytes([i & 255]),), None, ())
    assert len(writer.buffers()) == 1
    assert joined(writer) == bytes(i & 255 for i in range(1000))


def test_a_gathered_buffer_is_bounded():
    writer = Writer()
    for _ in range(300):
        writer.extend((bytes(1000),), None, ())
    assert max(map(len, writer.buffers())) < GATHER_UP_TO + GATHER_BELOW
    assert writer.buffered == 300_000


def test_large_bytes_are_kept_by_reference_and_in_order():
    writer = Writer()
    large = b'L' * 4096
    writer.extend((b'a', large, b'b', b'c'), None, ())
    assert joined(writer) == b'a' + large + b'bc'
    assert writer.buffers()[1] is large
    writer.extend((large[1:], b'd'), None, ())
    assert list(map(len, writer.buffers())) == [1, 4096, 2 + 4095 + 1]


def test_a_memoryview_is_copied_whatever_its_size():
    writer = Writer()
    source = bytearray(b'x' * (2 * GATHER_BELOW))
    writer.extend((memoryview(source), memoryview(source)[:10]), None, ())
    source[:] = b'!' * len(source)
    assert joined(writer) == b'x' * (2 * GATHER_BELOW + 10)


def test_advancing_inside_and_across_buffers_leaves_the_rest():
    writer = Writer()
    data = bytes(range(256)) * 64
    writer.extend((data[:5000], data[5000:5010], data[5010:]), None, ())
    for step in 1, 4998, 2, 8, 3, 5000:
        before = joined(writer)
        writer.advance(step)
        assert joined(writer) == before[step:]
    writer.advance(writer.buffered)
    assert (writer.buffered, writer.buffers()) == (0, [])


def test_appending_after_a_buffer_was_sent_in_part_keeps_the_order():
    writer = Writer()
    writer.extend((b'0123456789',), None, ())
    writer.advance(4)
    assert joined(writer) == b'456789'
    writer.extend((b'abc',), None, ())
    assert joined(writer) == b'456789abc'


@pytest.mark.scenario(58)
def test_one_send_is_given_a_bounded_number_of_buffers():
    writer = Writer()
    writer.extend([b'x' * GATHER_BELOW] * (3 * BUFFERS_PER_SEND), None, ())
    assert len(writer.buffers()) == BUFFERS_PER_SEND


def test_marks_are_reached_in_order_and_returned_once():
    writer = Writer()
    for i in range(4):
        writer.extend((b'xxx',), print, (i,))
    writer.extend((), print, ('empty',))
    assert names(writer.reached()) == []
    writer.advance(5)
    assert names(writer.reached()) == [0]
    assert names(writer.reached()) == []
    writer.advance(7)
    assert names(writer.reached()) == [1, 2, 3, 'empty']


def test_marks_count_towards_the_weight():
    writer = Writer()
    writer.extend((b'x',), print, ())
    assert writer.weight == 1 + MARK_COST
    writer.extend((b'y',), None, ())
    assert writer.weight == 2 + MARK_COST


def test_the_shared_writer_is_empty():
    assert (SHUT.buffered, SHUT.buffers(), SHUT.reached(), SHUT.full) == (0, [], [], False)


# -- a stream on a scripted socket


@pytest.mark.parametrize('steps', [[1] * 9, [4, 0, 5], [9], [BlockingIOError(), 9]])
def test_a_line_is_sent_completely_however_it_is_split(steps):
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        sock = ScriptedSocket(kernel)
        conn = r.adopt(sock)
        sock.outcomes = deque(steps)
        conn.write(b'123456789')
        for _ in range(10):
            r.run_once(0)
        assert sock.sent == b'123456789'


class Unreadable:
    """A piece whose bytes cannot be copied, because memory has run out."""

    def __len__(self):
        return 10

    def __iter__(self):
        raise MemoryError


@pytest.mark.parametrize('before', [b'', b'waits', b'w' * GATHER_BELOW])
def test_either_all_pieces_are_queued_or_none(before):
    writer = Writer()
    writer.extend((before,), None, ())
    with pytest.raises(MemoryError):
        writer.extend((b'small', bytes(GATHER_BELOW), Unreadable()), print, ())
    assert (writer.buffered, joined(writer), writer.reached()) == (len(before), before, [])
    writer.extend((b'more',), print, (1,))
    assert joined(writer) == before + b'more'
    writer.advance(len(before) + 4)
    assert writer.sent == len(before) + 4
    assert names(writer.reached()) == [1]


@pytest.mark.parametrize('size', [1, GATHER_BELOW + 1])
def test_a_send_ends_before_it_makes_too_many_callbacks_due(size):
    writer, reported = Writer(), []
    for number in range(2 * MARKS_PER_SEND + 7):
        writer.extend((b'x' * size,), print, (number,))
    while writer.buffered:
        sent = len(joined(writer))
        assert sent <= MARKS_PER_SEND * size
        writer.advance(sent)
        reached = names(writer.reached())
        assert len(reached) <= MARKS_PER_SEND
        reported += reached
    assert reported == list(range(2 * MARKS_PER_SEND + 7))


def test_callbacks_after_a_file_are_bounded_too(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'f' * 10_000)
    writer = Writer()
    writer.extend((b'head',), None, ())
    with open(path, 'rb') as file:
        part = FilePart(Kernel(), os.dup(file.fileno()), 0, 10_000, 'file')
    writer.extend((part,), print, ('file',))
    for number in range(MARKS_PER_SEND + 7):
        writer.extend((b'x',), print, (number,))
    assert joined(writer) == b'head'
    writer.advance(4)
    assert writer.buffers() is part
    writer.advance(10_000)
    assert names(writer.reached()) == ['file']
    assert joined(writer) == b'x' * MARKS_PER_SEND
