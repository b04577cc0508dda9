"""The queue of bytes that wait, alone; and a stream on a scripted socket against a model of one byte stream."""

from __future__ import annotations

import errno
import tempfile
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import ScriptedKernel, ScriptedSocket

from reactor import ConnectionClosed, Reactor, WriteBufferFull
from reactor.net.files import READ_BELOW
from reactor.net.writer import (
    BROKEN,
    BUFFERS_PER_SEND,
    DRAINED,
    ENDED,
    FILE_COST,
    GATHER_BELOW,
    GATHER_UP_TO,
    MARK_COST,
    Writer,
)


def joined(writer: Writer) -> bytes:
    return b''.join(writer.buffers())


def names(marks) -> list[object]:
    return [args[0] for _, _, args in marks]


# -- the queue alone


def test_a_new_writer_holds_nothing():
    writer = Writer()
    assert (writer.buffered, writer.weight, writer.buffers(), writer.reached()) == (0, 0, [], [])
    assert not writer.ended and not writer.full and writer.error is None


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
    large = b'L' * GATHER_BELOW
    writer.extend((b'a', large, b'b', b'c'), None, ())
    assert joined(writer) == b'a' + large + b'bc'
    assert writer.buffers()[1] is large


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


def test_appending_after_a_buffer_went_out_in_part_keeps_the_order():
    writer = Writer()
    writer.extend((b'0123456789',), None, ())
    writer.advance(4)
    assert joined(writer) == b'456789'
    writer.extend((b'abc',), None, ())
    assert joined(writer) == b'456789abc'


def test_one_send_is_given_a_bounded_number_of_buffers():
    writer = Writer()
    writer.extend([b'x' * GATHER_BELOW] * (3 * BUFFERS_PER_SEND), None, ())
    assert len(writer.buffers()) == BUFFERS_PER_SEND


def test_marks_are_reached_in_order_and_taken_once():
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


def test_marks_weigh():
    writer = Writer()
    writer.extend((b'x',), print, ())
    assert writer.weight == 1 + MARK_COST
    writer.extend((b'y',), None, ())
    assert writer.weight == 2 + MARK_COST


def test_the_shared_writers_hold_nothing():
    for shared in DRAINED, ENDED, BROKEN:
        assert (shared.buffered, shared.buffers(), shared.reached()) == (0, [], [])
    assert ENDED.ended
    assert BROKEN.error is not None


# -- a stream on a scripted socket

HIGH, LOW, MOST = 50_000, 10_000, 300_000

# A mix of what a kernel answers: mostly room for some, sometimes for none, rarely the end.
taken = st.one_of(st.integers(0, 100), st.integers(0, 300_000), st.just(1 << 30))
sizes = st.one_of(st.integers(0, 5), st.integers(0, 9000), st.integers(0, 200_000))
kinds = st.sampled_from([bytes, bytearray, memoryview])
failures = st.sampled_from([errno.EPIPE, errno.ECONNRESET])


class StrictSocket(ScriptedSocket):
    """Accepts only what the model says comes next, nothing empty, and nothing after a failure."""

    failed = False
    shut = False
    position = 0

    def sendmsg(self, buffers):
        assert not self.failed, 'a send after a failure'
        assert not self.shut, 'a send after the end'
        assert self.number >= 0, 'a send after the close'
        try:
            count = super().sendmsg(buffers)
        except BlockingIOError:
            raise
        except OSError:
            self.failed = True
            raise
        as_written = self.sent == self.model[self.position : self.position + count]
        assert as_written, 'not what was written'
        self.sent.clear()
        self.position += count
        return count

    def shutdown(self, how):
        assert self.position == len(self.model), 'ended before the last byte'
        self.shut = True
        super().shutdown(how)

    def ready(self):
        # An error makes a socket writable and readable, as a hang-up does.
        return super().ready() | (1 if self.failed else 0)


class Machine(RuleBasedStateMachine):
    """What was sent is a prefix of what was written; callbacks come in order, once, on a fresh stack, then on_close."""

    @initialize(rewriting=st.booleans())
    def begin(self, rewriting):
        kernel = ScriptedKernel()
        self.r = Reactor(kernel=kernel, catch_errors=False)
        self.sock = StrictSocket(kernel)
        self.sock.outcomes = deque()
        self.sock.model = self.model = bytearray()
        self.rewriting = rewriting  # whether on_written and on_drain write again
        self.marks = deque()  # (where, identity) of the write-callbacks to come
        self.files = []  # (from, to) of what came from files
        self.count = 0
        self.inside = False
        self.owed = False  # write returned False, so an on_drain is to come
        self.ended = None  # the call by which the user ended it
        self.overfull = False
        self.told = None  # what on_close was called with
        self.left = None
        self.conn = self.r.adopt(
            self.sock, on_drain=self.on_drain, on_close=self.on_close, high_water=HIGH, low_water=LOW, max_buffered=MOST
        )

    # -- callbacks

    def check_fresh(self):
        assert not self.inside, 'called inside a call'
        assert self.told is None, 'called after on_close'

    def on_written(self, conn, where, identity):
        self.check_fresh()
        assert self.marks.popleft() == (where, identity)
        assert self.sock.position >= where
        if self.rewriting and identity % 3 == 0 and self.ended is None:
            self.write(bytes, identity * 20_000 % 120_000, True)

    def on_drain(self, conn):
        self.check_fresh()
        assert self.owed, 'on_drain without a write that returned False'
        assert conn.buffered < HIGH, 'on_drain although the mark is reached'
        self.owed = False
        if self.rewriting and self.ended is None:
            self.write(bytes, 20_000, False)

    def on_close(self, conn, exc):
        self.check_fresh()
        self.told = (exc,)
        self.left = conn.buffered

    # -- what the user does

    def call(self, fn, *args):
        before, self.inside = self.inside, True
        try:
            return fn(*args)
        finally:
            self.inside = before

    @property
    def waiting(self):
        return len(self.model) - self.sock.position

    @rule(kind=kinds, size=sizes, callback=st.booleans())
    def write(self, kind, size, callback):
        data = bytes((len(self.model) + i) * 7 & 255 for i in range(min(size, 251))) * (size // 251 + 1)
        buffer = kind(bytearray(data[:size])) if kind is memoryview else kind(data[:size])
        self.write_with(self.conn.write, buffer, data[:size], callback)
        if kind is not bytes:
            memoryview(buffer)[:] = b'!' * size  # whatever happens to it now is the user's business

    @rule(pieces=st.lists(st.tuples(kinds, st.integers(0, 9000)), max_size=100), callback=st.booleans())
    def writelines(self, pieces, callback):
        data = [bytes([len(self.model) + i & 255]) * size for i, (_, size) in enumerate(pieces)]
        buffers = [kind(piece) for (kind, _), piece in zip(pieces, data, strict=True)]
        self.write_with(self.conn.writelines, buffers, b''.join(data), callback)

    @rule(size=sizes, offset=st.integers(0, 9000), callback=st.booleans())
    def send_file(self, size, offset, callback):
        data = bytes((len(self.model) + i) * 3 & 255 for i in range(min(size, 251))) * (size // 251 + 1)
        before = len(self.model)
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(bytes(offset) + data[:size] + b'behind')
            self.write_with(
                lambda file, *args: self.conn.send_file(file, offset, size, *(args or (None,))),
                file, data[:size], callback,
            )  # fmt: skip
        if size >= READ_BELOW and len(self.model) > before:
            self.files.append((before, len(self.model)))

    @property
    def weight(self):
        """What counts towards max_buffered: a file does not by its bytes."""
        sent = self.sock.position
        held = sum(where > sent for where, _ in self.marks)
        files = [end - max(begin, sent) for begin, end in self.files if end > sent]
        return self.waiting + MARK_COST * held + FILE_COST * len(files) - sum(files)

    def write_with(self, write, buffer, data, callback):
        conn, model, sock = self.conn, self.model, self.sock
        alive = not conn.closed
        before, waited = len(model), self.waiting
        overfull = alive and waited > 0 and self.weight >= MOST
        args = ()
        if alive and not overfull and self.ended is None:
            model += data
        if callback:
            self.count += 1
            args = (self.on_written, before + len(data), self.count)
        if callback and alive and not overfull and self.ended is None:
            self.marks.append(args[1:])
        failed_before = sock.failed
        try:
            result = self.call(write, buffer, *args)
        except ConnectionClosed:
            assert self.ended or self.told, 'refused although nobody has ended it'
            return
        assert self.ended is None or failed_before or self.overfull, f'accepted after {self.ended}'
        assert self.told is None, 'accepted after on_close'
        if overfull:
            assert result is False and conn.closed
            self.overfull = True
        elif alive and not sock.failed:
            assert result is (self.waiting < HIGH or not self.waiting)
            if not result:
                self.owed = True
        else:
            assert result is False
            if alive and callback:
                self.marks.pop()  # it failed inside this write, whose callback is never called

    @rule(how=st.sampled_from(['write_eof', 'close', 'abort', 'lost', 'lost']), number=failures)
    def ends(self, how, number):
        """One rule for all, so that most runs see some traffic before their end."""
        if how == 'lost':
            self.sock.outcomes.append(OSError(number, 'scripted'))
            return
        self.call(getattr(self.conn, how))
        if how == 'abort':
            self.ended = how
            self.sock.outcomes.clear()
        elif self.told is None and self.ended != 'abort':
            self.ended = 'close' if how == 'close' else self.ended or how

    # -- what the world does

    @precondition(lambda self: self.told is None and not self.sock.outcomes)
    @rule(outcomes=st.lists(st.one_of(taken, taken, st.just('again')), max_size=4))
    def peer_takes(self, outcomes):
        self.sock.outcomes.extend(BlockingIOError() if taken == 'again' else taken for taken in outcomes)

    @rule(count=st.integers(1, 3))
    def turn(self, count):
        for _ in range(count):
            self.r.run_once(0)

    # -- what holds after each

    @invariant()
    def what_waits_is_what_was_written_and_not_sent(self):
        if self.told is None and not self.sock.failed:
            assert self.conn.buffered == self.waiting

    @invariant()
    def closed_is_true_from_the_end_on(self):
        if self.told is not None or self.ended in ('close', 'abort') or self.sock.failed or self.overfull:
            assert self.conn.closed

    @invariant()
    def no_callback_is_late(self):
        if not self.r.completions and self.told is None:
            assert not self.marks or self.marks[0][0] > self.sock.position

    def teardown(self):
        if not hasattr(self, 'r'):
            return
        sock = self.sock
        alive = not self.conn.closed
        if alive or self.conn.state == 'CLOSING':  # the peer takes all of it
            sock.outcomes = None
            sock.incoming.append(b'')
            if alive and self.ended is None:
                self.ended = 'close'
                self.call(self.conn.close)
        for _ in range(200):
            self.r.run_once(0)
        assert self.told is not None, 'on_close was never called'
        exc = self.told[0]
        if sock.failed:
            assert isinstance(exc, OSError) and exc.errno in (errno.EPIPE, errno.ECONNRESET)
            assert exc.__traceback__ is None
        elif self.overfull:
            assert isinstance(exc, WriteBufferFull)
        else:
            assert exc is None
            if self.ended != 'abort':
                assert sock.position == len(self.model), 'something was not sent'
                assert not self.marks
        assert self.left == self.waiting, 'on_close was not told what was never accepted'
        assert self.conn.closed and sock.number < 0
        assert self.r.handles() == []
        self.r.close()


Machine.TestCase.settings = settings(max_examples=400, stateful_step_count=30, deadline=None, derandomize=True)
TestOneByteStream = Machine.TestCase


@pytest.mark.parametrize('steps', [[1] * 9, [4, 0, 5], [9], [BlockingIOError(), 9]])
def test_a_line_leaves_whole_however_it_is_taken(steps):
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as r:
        sock = ScriptedSocket(kernel)
        conn = r.adopt(sock)
        sock.outcomes = deque(steps)
        conn.write(b'123456789')
        for _ in range(10):
            r.run_once(0)
        assert sock.sent == b'123456789'
