"""Test a stream on a scripted socket against a model of one byte stream: the bytes written and accepted, and the
callbacks.
"""

from __future__ import annotations

import errno
import tempfile
from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from reactor import ConnectionClosed, Reactor, WriteBufferFull
from tests.helpers.models_support import Machine, case_of, depth
from tests.helpers.support import ScriptedKernel, ScriptedSocket

HIGH, LOW, MOST = 50_000, 10_000, 300_000
CALLBACK_COST, FILE_COST = 1024, 65_536  # bytes: a queued callback or file counts as at most this many

# How many bytes a send accepts: a few, many, or all.
taken = st.one_of(st.integers(0, 100), st.integers(0, 300_000), st.just(1 << 30))
sizes = st.one_of(st.integers(0, 5), st.integers(0, 9000), st.integers(0, 200_000))
kinds = st.sampled_from([bytes, bytearray, memoryview])
FAILURES = errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS


class StrictSocket(ScriptedSocket):
    """A socket that accepts only the next bytes of the model, no empty sends, and nothing after a failure."""

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
        assert as_written, 'not the bytes that were written'
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


class Writing(Machine):
    """Sent bytes are a prefix of the written bytes; callbacks run once, in order, on a fresh stack; on_close last."""

    @initialize(rewriting=st.booleans(), patience=st.integers(0, 20))
    def begin(self, rewriting, patience):
        kernel = ScriptedKernel()
        self.r = Reactor(kernel=kernel, catch_errors=False)
        self.sock = StrictSocket(kernel)
        self.sock.outcomes = deque()
        self.sock.model = self.model = bytearray()
        self.rewriting = rewriting  # whether on_written and on_drain write again
        self.marks = deque()  # the (position, identity) of each expected call of on_written
        self.files = []  # (start, end) of bytes from files
        self.count = 0
        self.patience = patience  # the number of turns and rules before anything ends the connection
        self.refused = False  # whether a write was refused after the end; one refused write is enough
        self.inside = False
        self.owed = False  # whether write returned False, so that on_drain must be called
        self.ended = None  # the call with which the user ended the connection
        self.overfull = False
        self.outcome = None  # the error that on_close was called with, in a tuple
        self.base = 0  # depth of the stack in the current turn
        self.depths = set()  # depths of the callbacks, relative to `base`
        self.left = None
        self.conn = self.r.adopt(
            self.sock, on_drain=self.on_drain, on_close=self.on_close, high_water=HIGH, low_water=LOW, max_buffered=MOST
        )

    # -- callbacks

    def check_fresh(self):
        assert not self.inside, 'called inside a call'
        assert self.outcome is None, 'called after on_close'
        self.depths.add(depth() - self.base)

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
        assert self.rewriting or conn.buffered <= LOW, 'on_drain above the low mark'
        self.owed = False
        if self.rewriting and self.ended is None:
            self.write(bytes, 20_000, False)

    def on_close(self, conn, exc):
        self.check_fresh()
        self.outcome = (exc,)
        self.left = conn.buffered

    # -- actions of the user

    def call(self, fn, *args):
        before, self.inside = self.inside, True
        self.acted()
        try:
            return fn(*args)
        finally:
            self.inside = before

    @property
    def waiting(self):
        return len(self.model) - self.sock.position

    @precondition(lambda self: not self.refused)
    @rule(kind=kinds, size=sizes, callback=st.booleans())
    def write(self, kind, size, callback):
        data = bytes((len(self.model) + i) * 7 & 255 for i in range(min(size, 251))) * (size // 251 + 1)
        buffer = kind(bytearray(data[:size])) if kind is memoryview else kind(data[:size])
        self.write_with(self.conn.write, buffer, data[:size], callback)
        if kind is not bytes:
            memoryview(buffer)[:] = b'!' * size  # the user may change the buffer now

    @precondition(lambda self: not self.refused)
    @rule(pieces=st.lists(st.tuples(kinds, st.integers(0, 9000)), max_size=100), callback=st.booleans())
    def writelines(self, pieces, callback):
        data = [bytes([len(self.model) + i & 255]) * size for i, (_, size) in enumerate(pieces)]
        buffers = [kind(piece) for (kind, _), piece in zip(pieces, data, strict=True)]
        self.write_with(self.conn.writelines, buffers, b''.join(data), callback)

    @precondition(lambda self: not self.refused)
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
        if len(self.model) > before:
            self.files.append((before, len(self.model)))

    @property
    def weights(self):
        """Return the least and the most bytes that may count towards max_buffered; bytes of files need not count."""
        sent = self.sock.position
        files = [end - max(begin, sent) for begin, end in self.files if end > sent]
        most = self.waiting + CALLBACK_COST * len(self.marks) + FILE_COST * len(files)
        return self.waiting - sum(files), most

    def write_with(self, write, buffer, data, callback):
        conn, model, sock = self.conn, self.model, self.sock
        if callback and not sock.outcomes and len(model) % 2:
            sock.outcomes.append(1 << 30)  # often there is room at once
        alive = not conn.closed
        before, waited = len(model), self.waiting
        least, most = self.weights
        taken = alive and self.ended is None
        unclear = (
            taken and waited > 0 and most >= MOST
        )  # the state afterwards shows whether the write was queued or refused
        args = ()
        if taken and not unclear:
            model += data
        if callback:
            self.count += 1
            args = (self.on_written, before + len(data), self.count)
        if callback and taken and not unclear:
            self.marks.append(args[1:])
        failed_before = sock.failed
        try:
            result = self.call(write, buffer, *args)
        except ConnectionClosed:
            assert self.ended or self.outcome, 'refused although the user has not ended the connection'
            self.refused = self.outcome is not None
            return
        assert self.ended is None or failed_before or self.overfull, f'accepted after {self.ended}'
        assert self.outcome is None, 'accepted after on_close'
        if unclear and conn.closed:
            assert result is False
            self.overfull = True
            return
        if unclear:
            assert least < MOST, 'the peer must be cut off when this much waits'
            model += data
            self.marks.extend([args[1:]] if callback else [])
        if alive and not sock.failed:
            assert result is (self.waiting < HIGH or not self.waiting)
            if not result:
                self.owed = True
        else:
            assert result is False
            if alive and callback:
                self.marks.pop()  # the send failed inside this write, so its callback is never called

    @precondition(lambda self: self.patience <= 0 and self.outcome is None)
    @rule(how=st.sampled_from(['write_eof', 'close', 'abort', 'lost', 'lost']), number=st.sampled_from(FAILURES))
    def ends(self, how, number):
        """End the connection in one of the possible ways. Only this rule does so, so most runs have traffic first."""
        self.acted()
        if how == 'lost':
            self.sock.outcomes.append(OSError(number, 'scripted'))
            return
        self.call(getattr(self.conn, how))
        if how == 'abort':
            self.ended = how
            self.sock.outcomes.clear()
        elif self.outcome is None and self.ended != 'abort':
            self.ended = 'close' if how == 'close' else self.ended or how

    # -- actions of the peer

    @precondition(lambda self: self.outcome is None and not self.sock.outcomes)
    @rule(outcomes=st.lists(st.one_of(taken, taken, st.just('again')), max_size=4))
    def peer_takes(self, outcomes):
        self.patience -= 1
        self.acted()
        self.sock.outcomes.extend(BlockingIOError() if taken == 'again' else taken for taken in outcomes)

    @rule(count=st.integers(1, 5))
    def turn(self, count):
        self.base = depth() + 1
        self.patience -= 1
        self.turns(self.r, count)

    # -- invariants

    @invariant()
    def buffered_is_the_number_of_unsent_bytes(self):
        if self.outcome is None and not self.sock.failed:
            assert self.conn.buffered == self.waiting

    @invariant()
    def closed_is_true_from_the_end_on(self):
        if self.outcome is not None or self.ended in ('close', 'abort') or self.sock.failed or self.overfull:
            assert self.conn.closed

    @invariant()
    def no_callback_is_late(self):
        if self.settled and self.outcome is None:
            assert not self.marks or self.marks[0][0] > self.sock.position

    @invariant()
    def a_false_is_followed_by_an_on_drain(self):
        if self.settled and self.outcome is None and not self.conn.closed and self.waiting <= LOW:
            assert not self.owed

    @invariant()
    def the_stack_does_not_grow(self):
        # on_drain and on_close are called through one frame of the stream, on_written through none.
        assert len(self.depths) <= 2 and max(self.depths, default=0) - min(self.depths, default=0) <= 1

    def teardown(self):
        if not hasattr(self, 'r'):
            return
        sock = self.sock
        alive = not self.conn.closed
        if alive or self.conn.state == 'CLOSING':  # the peer accepts everything
            sock.outcomes = None
            sock.incoming.append(b'')
            if alive and self.ended is None:
                self.ended = 'close'
                self.call(self.conn.close)
        self.turn(200)
        self.the_stack_does_not_grow()
        assert self.outcome is not None, 'on_close was never called'
        exc = self.outcome[0]
        if sock.failed:
            assert isinstance(exc, OSError) and exc.errno in FAILURES
            assert exc.__traceback__ is None
        elif self.overfull:
            assert isinstance(exc, WriteBufferFull)
        else:
            assert exc is None
            if self.ended != 'abort':
                assert sock.position == len(self.model), 'something was not sent'
                assert not self.marks
        assert self.left == self.waiting, 'buffered was wrong in on_close'
        assert self.conn.closed and sock.number < 0
        assert self.r.handles() == []
        self.r.close()


TestOneByteStream = pytest.mark.scenario(56, 121)(case_of(Writing))
