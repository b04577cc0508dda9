"""Test TLS against a model of two byte streams. The peer is OpenSSL itself, with two buffers in memory.

The ciphertext arrives in pieces, is truncated, or has a byte changed. The peer may be slow, and ends with or without
close_notify. The received plaintext is a prefix of the plaintext that was written, and is complete if the stream ends
cleanly. A truncated stream never ends cleanly. (The ssl module cannot request new keys, so `test_tls.py` uses the
openssl command for that.)
"""

from __future__ import annotations

import errno
import itertools
import ssl

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from reactor import READ, WRITE, ConnectionClosed, Reactor, TLSError, WriteBufferFull
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.models_support import Machine, case_of
from tests.helpers.support import ScriptedKernel, ScriptedSocket

MOST = 100_000  # bytes: the value of max_buffered
CALLBACK_COST = 1024  # bytes: a pending on_written counts as at most this many
RECORD_ON_WIRE = 17_000  # bytes: a full record, encrypted
READ_SIZE = 5000
SIZES = st.sampled_from([0, 1, 100, 5000, 16384, 16385, 65536])
CUTS = st.sampled_from([1, 3, 40, 1000, 5000, 1 << 20])
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
# Contexts are slow to make, so they are cached here by (whether it is a server's, version).
CONTEXTS: dict[tuple[bool, ssl.TLSVersion], ssl.SSLContext] = {}


@pytest.fixture(scope='module', autouse=True)
def contexts(certificates):  # noqa: F811
    make_contexts(certificates)


def make_contexts(certificates):  # noqa: F811
    for version in VERSIONS:
        limits = {'minimum_version': version, 'maximum_version': version}
        CONTEXTS[True, version] = certificates.server(**limits)
        CONTEXTS[False, version] = certificates.client(**limits)


class Wire(ScriptedSocket):
    """A socket that accepts as many bytes as it has room for."""

    room = 0

    def ready(self):
        return (READ if self.incoming else 0) | (WRITE if self.room else 0)

    def sendmsg(self, buffers):
        if not self.room:
            raise BlockingIOError
        data = b''.join(buffers)[: self.room]
        assert data, 'an empty send'
        self.room -= len(data)
        self.sent += data
        return len(data)


class TLS(Machine):
    """Both plaintexts arrive completely and in order, or an error is reported; no buffer exceeds its bound."""

    @initialize(server=st.booleans(), version=st.sampled_from(VERSIONS), with_eof=st.booleans(), shake=st.booleans())
    def begin(self, server, version, with_eof, shake):
        kernel = self.kernel = ScriptedKernel()
        self.r = Reactor(kernel=kernel, catch_errors=self.caught)
        self.sock = Wire(kernel)
        self.peer_in, self.peer_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = 'localhost' if server else None
        self.peer = CONTEXTS[not server, version].wrap_bio(self.peer_in, self.peer_out, not server, name)
        self.peer_ready = self.peer_saw_end = False
        self.air = bytearray()  # ciphertext on its way to us
        self.taken = 0  # the number of our bytes that the peer has received
        self.ours, self.theirs = bytearray(), bytearray()  # plaintext that each side wrote
        self.peer_got, self.got = bytearray(), bytearray()  # plaintext that each side received
        self.notified = self.cut = self.changed = self.peer_over = False  # how the peer's side has ended
        self.user_ended = self.overfull = self.paused = self.dropped = False
        self.count, self.marks = itertools.count(), []  # a counter for writes, and the expected calls of on_written
        self.secured = self.eofs = 0
        self.outcome = None
        self.conn = self.r.adopt(
            self.sock, self.on_data, on_eof=self.on_eof if with_eof else None, on_close=self.on_close,
            max_buffered=MOST, read_size=READ_SIZE,
        )  # fmt: skip
        self.conn.start_tls(CONTEXTS[server, version], self.on_secured, server_hostname=None if server else 'localhost')
        self.pump()
        if shake:
            self.settle()
            self.sock.room = 0
            assert self.secured and self.peer_ready

    # -- callbacks

    def on_secured(self, conn):
        assert not self.secured and self.outcome is None
        self.secured = 1

    def on_data(self, conn, data):
        assert self.secured and not self.eofs and self.outcome is None and data
        assert not self.paused, 'called while reading is paused'
        self.got += data

    def on_eof(self, conn):
        assert not self.eofs and self.outcome is None
        self.check_clean_end()
        self.eofs = 1

    def on_written(self, conn, number):
        assert self.marks.pop(0) == number, 'not in the order of the writes'
        assert self.outcome is None

    def on_close(self, conn, exc):
        assert self.outcome is None
        self.outcome = (exc,)
        if exc is None:
            if not self.user_ended:
                self.check_clean_end()
        elif isinstance(exc, TLSError):
            assert self.cut or self.changed, 'an error was reported although nothing was wrong'
        elif isinstance(exc, WriteBufferFull):
            assert self.overfull
        else:
            assert isinstance(exc, ConnectionResetError) and self.cut

    def check_clean_end(self):
        assert self.notified and not self.cut and not self.changed, 'a truncated stream ended cleanly'
        assert self.got == self.theirs, 'the stream ended cleanly before all of the data'

    # -- the peer

    def pump(self):
        """Let the peer process the bytes that it has received."""
        try:
            if not self.peer_ready:
                self.peer.do_handshake()
                self.peer_ready = True
            while data := self.peer.read(1 << 20):
                self.peer_got += data
            self.peer_saw_end = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.peer_saw_end = True
        except ssl.SSLError:
            assert self.cut or self.changed or self.user_ended or self.overfull, 'the peer got broken data'
        if not self.peer_over:
            self.air += self.peer_out.read()

    @property
    def peer_writes_on(self):
        return self.peer_ready and not (self.notified or self.peer_over)

    @precondition(lambda self: self.peer_writes_on)
    @rule(size=SIZES)
    def peer_writes(self, size):
        data = bytes([len(self.theirs) & 255]) * size
        while data:
            try:
                written = self.peer.write(data)
            except ssl.SSLError:  # over TLS 1.2, our alert ends both directions
                assert self.changed or self.cut or self.user_ended or self.overfull, 'the peer cannot write'
                break
            self.theirs += data[:written]
            data = data[written:]
        self.air += self.peer_out.read()

    @rule(size=CUTS)
    def peer_receives(self, size):
        data = self.sock.sent[self.taken : self.taken + size]
        self.taken += len(data)
        self.peer_in.write(data)
        self.pump()

    @precondition(lambda self: self.peer_writes_on and self.theirs)
    @rule(how=st.sampled_from(['notified', 'cut', 'cut', 'change']), at=st.integers(0, 1 << 16))
    def peer_ends(self, how, at):
        if how == 'notified':
            self.notified = True
            try:
                self.peer.unwrap()
            except ssl.SSLError:
                pass
            self.air += self.peer_out.read()
        elif how == 'change' and self.air:
            self.air[at % len(self.air)] ^= 1 + at % 255
            self.changed = True
        elif how == 'cut':
            del self.air[at % (len(self.air) + 1) :]
            self.cut = self.peer_over = True

    # -- the network

    @rule(size=CUTS)
    def arrives(self, size):
        if self.air:
            self.sock.incoming.append(bytes(self.air[:size]))
            del self.air[:size]
        elif self.peer_over and b'' not in self.sock.incoming:
            self.sock.incoming.append(b'')

    @precondition(lambda self: self.cut and b'' not in self.sock.incoming)
    @rule()
    def peer_resets(self):
        self.sock.incoming.append(OSError(errno.ECONNRESET, 'scripted').with_traceback(None))

    @rule(room=CUTS)
    def peer_takes(self, room):
        self.sock.room += room

    @rule(count=st.sampled_from([1, 5]))
    def turn(self, count):
        self.turns(self.r, count)

    @rule(size=CUTS)
    def both_ways(self, size):
        """Transfer bytes both ways, so that most runs make real progress."""
        self.sock.room = max(self.sock.room, size)
        self.arrives(size)
        self.turn(5)
        self.peer_receives(size)

    # -- the user

    @rule(size=SIZES, lines=st.booleans())
    def writes(self, size, lines):
        conn, data = self.conn, bytes([len(self.ours) + 7 & 255]) * size
        before, over, number = conn.buffered, conn.closed, next(self.count)
        weight = before + CALLBACK_COST * len(self.marks)
        if not over and not self.user_ended:
            self.ours += data
            self.marks.append(number)
        pieces = [data[: size // 2], data[size // 2 :]]
        try:
            if lines:
                conn.writelines(pieces, self.on_written, number)
            else:
                conn.write(data, self.on_written, number)
        except ConnectionClosed:
            assert self.user_ended or self.outcome
            return
        assert not self.user_ended
        if not over:
            assert conn.closed or before < MOST, 'a peer that takes nothing is not cut off'
            assert not conn.closed or weight >= MOST, 'cut off although only a few bytes wait'
            self.overfull = conn.closed

    @precondition(lambda self: len(self.ours) + len(self.theirs) > 300)
    @rule(how=st.sampled_from(['write_eof', 'close', 'abort']))
    def user_ends(self, how):
        if not self.conn.closed or how == 'abort':
            self.user_ended = True
            # Closing during the handshake drops the bytes that are queued until the handshake ends.
            self.dropped |= how == 'abort' or (how == 'close' and self.conn.state == 'CONNECTING')
            getattr(self.conn, how)()

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause):
        (self.conn.pause_reading if pause else self.conn.resume_reading)()
        self.paused = pause

    # -- invariants

    @invariant()
    def received_plaintext_is_a_prefix_of_written_plaintext(self):
        assert self.theirs.startswith(self.got)
        assert self.ours.startswith(self.peer_got)

    @invariant()
    def nothing_grows(self):
        session = self.conn.tls
        assert len(session._incoming) <= RECORD_ON_WIRE + READ_SIZE
        buffers = session.buffers
        assert not (buffers.incoming.pending or buffers.outgoing.pending), (
            'bytes stay in buffers that other connections share'
        )
        assert self.conn.buffered <= MOST + 2 * 65536 * 1.1

    def teardown(self):
        if not hasattr(self, 'r'):
            return
        self.sock.room = 1 << 30
        self.pause_or_resume(False)
        self.settle()
        alive = not (self.cut or self.changed or self.overfull or self.dropped)
        if alive and not self.conn.closed:
            assert self.got == self.theirs, 'some data is not delivered'
        if alive and not self.conn.closed and not self.eofs:
            self.user_ended = True
            self.conn.close()
            self.settle()
        if alive and not self.notified:
            assert self.peer_got == self.ours and self.peer_saw_end, 'the peer did not get all data and the end'
            assert not self.marks
        self.peer_over = True
        self.cut = self.cut or not self.notified
        self.settle()
        self.kernel.time += 100
        self.turns(self.r, 3)
        if self.outcome is None:
            assert self.conn.state == 'OPEN', 'a dead end'
            self.user_ended = True
            self.conn.close()
            self.settle()
        assert self.outcome is not None and self.sock.number < 0 and not self.r.handles()
        self.r.close()

    def settle(self):
        """Run turns until nothing more changes."""
        while True:
            before = len(self.sock.sent), len(self.got), len(self.air), len(self.sock.incoming), self.outcome
            self.both_ways(1 << 20)
            self.turns(self.r, 5)
            if before == (len(self.sock.sent), len(self.got), len(self.air), len(self.sock.incoming), self.outcome):
                break


TestTwoPlaintexts = case_of(TLS)
