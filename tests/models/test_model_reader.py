"""Test reading and framing against a model that parses the whole input at once.

A scripted socket delivers the bytes in pieces of any size, with spurious readiness in between, and with an end or a
reset at any point. The callbacks pause, resume, raise, close, and replace themselves.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from reactor import FrameTooLong, Reactor, framing
from tests.helpers.models_support import (
    Machine,
    Raised,
    case_of,
    model_exactly,
    model_lines,
    model_prefixed,
    model_until,
)
from tests.helpers.support import ScriptedKernel, ScriptedSocket

MESSAGES_PER_TURN = framing.MESSAGES_PER_TURN
PIECES = [b'\n', b'\r', b'\r\n', b'a', b'b', b'aa', b'aab', b'\0', b'\1', b'\2', b'\3', b'\3\0', b'12345']


def model_bytes(data):
    return [data] if data else [], False


# For each kind: the function that makes the `on_data`, and the function with which the model parses the input.
KINDS = {
    'bytes': (lambda fn, limit: fn, lambda data, limit: model_bytes(data)),
    'lines': (lambda fn, limit: framing.lines(fn, limit=limit), lambda data, limit: model_lines(data, limit)),
    'until a byte': (
        lambda fn, limit: framing.delimited(fn, b'a', limit=limit),
        lambda data, limit: model_until(data, limit, b'a'),
    ),
    'until three': (
        lambda fn, limit: framing.delimited(fn, b'aab', limit=20),
        lambda data, limit: model_until(data, 20, b'aab'),
    ),
    'prefixed': (
        lambda fn, limit: framing.prefixed(fn, 1, limit=limit),
        lambda data, limit: model_prefixed(data, limit, 1, 'big'),
    ),
    'prefixed, little': (
        lambda fn, limit: framing.prefixed(fn, 2, 'little', limit=1000),
        lambda data, limit: model_prefixed(data, 1000, 2, 'little'),
    ),
    'blocks': (lambda fn, limit: framing.blocks(fn, 5), lambda data, limit: model_exactly(data, 5, 5)),
    'alternating': (
        lambda fn, limit: framing.Framing(fn, alternating()),
        lambda data, limit: (model_alternating(data), False),
    ),
}


def alternating():
    """A framing written by a user: a message is a line and 0 to 3 more bytes, depending on the line's length."""
    line = None

    def take(frames):
        nonlocal line
        line = frames.line() if line is None else line
        body = None if line is None else frames.exactly(len(line) % 4)
        if body is None:
            return None
        message, line = line + b':' + body, None
        return message

    return take


def model_alternating(data):
    messages = []
    while (at := data.find(b'\n')) >= 0:
        line = data[: at - 1] if data[:at].endswith(b'\r') else data[:at]
        end = at + 1 + len(line) % 4
        if len(data) < end:
            break
        messages.append(line + b':' + data[at + 1 : end])
        data = data[end:]
    return messages


class Reading(Machine):
    """Messages do not depend on the pieces; none is delivered while paused; the end is reported once, and last."""

    @initialize(
        kind=st.sampled_from(list(KINDS)),
        read_size=st.sampled_from([1, 7, 65536, 65536, 65536]),
        limit=st.sampled_from([9, 200, 200]),
        with_eof=st.booleans(),
        per_turn=st.sampled_from([1, 2, 128]),
    )
    def begin(self, kind, read_size, limit, with_eof, per_turn):
        make, whole = KINDS[kind]
        framing.MESSAGES_PER_TURN = per_turn
        self.whole = lambda data: whole(data, limit)
        self.framed = kind != 'bytes'
        kernel = ScriptedKernel()
        self.r = Reactor(kernel=kernel, catch_errors=self.caught)
        self.sock = ScriptedSocket(kernel)
        self.arrived = b''
        self.delivered = []  # the messages delivered so far
        self.remainder = None  # bytes received after the framing was replaced
        self.script = []  # the actions of the callbacks for the next messages
        self.paused = self.resuming = self.closed = False
        self.ended = None  # 'eof' or 'reset': how the input ends after the bytes that have arrived
        self.raised, self.errors = 0, 0
        self.eofs, self.over = 0, None
        self.conn = self.r.adopt(
            self.sock, make(self.on_message, limit), on_eof=self.on_eof if with_eof else None,
            on_close=self.on_close, on_error=self.on_error, read_size=read_size,
        )  # fmt: skip

    # -- callbacks

    def check(self):
        assert self.over is None, 'called after on_close'
        assert not self.eofs, 'called after on_eof'
        assert not self.closed, 'called after close()'
        assert not self.paused, 'called while reading is paused'
        self.resuming = False

    def on_message(self, conn, message):
        self.acted()
        self.check()
        assert type(message) is bytes
        self.delivered.append(message)
        for action in self.script.pop(0) if self.script else ():
            if action == 'raise':
                self.raised += 1
                raise Raised
            if action == 'replace':
                if self.framed and self.remainder is None:
                    self.remainder = conn.on_data.rest()
                    conn.on_data = self.on_bytes
            elif not self.resuming and not self.closed:
                getattr(self, action)()

    def on_bytes(self, conn, data):
        self.acted()
        self.check()
        assert data
        self.remainder += data

    def on_eof(self, conn):
        self.check()
        assert self.ended == 'eof'
        self.eofs += 1

    def on_error(self, conn, exc):
        self.caught(exc)
        self.errors += 1

    def on_close(self, conn, exc):
        assert self.over is None
        self.over = (exc,)
        if exc is None:
            assert self.closed or self.ended == 'eof'
        elif isinstance(exc, FrameTooLong):
            assert self.whole(self.arrived) == (self.delivered, True)
        else:
            assert isinstance(exc, ConnectionResetError) and self.ended == 'reset'

    # -- actions of the user

    def pause(self):
        self.acted()
        self.conn.pause_reading()
        self.paused = True

    def resume(self):
        self.acted()
        if self.framed and self.remainder is None:
            self.conn.resume_reading()
            self.resuming = True
        else:
            self.conn.resume_reading()
        self.paused = False

    def close(self):
        self.acted()
        self.conn.close()
        self.closed = True

    @precondition(lambda self: not self.resuming and not self.closed)
    @rule(resume=st.booleans())
    def pause_or_resume(self, resume):
        if resume and self.paused:
            self.resume()
        elif not resume:
            self.pause()

    @precondition(lambda self: len(self.delivered) > 2 and not self.closed)
    @rule()
    def ends_it(self):
        self.close()

    ACTIONS = st.lists(
        st.lists(
            st.sampled_from(['pause', 'pause', 'pause', 'resume', 'raise', 'raise', 'replace', 'close']), max_size=2
        ),
        max_size=4,
    )

    @precondition(lambda self: not self.script)
    @rule(script=ACTIONS)
    def will_do(self, script):
        self.script.extend(script)

    # -- actions of the peer

    @precondition(lambda self: self.ended is None)
    @rule(pieces=st.lists(st.sampled_from(PIECES), max_size=20), cuts=st.lists(st.integers(0, 6), max_size=8))
    def bytes_arrive(self, pieces, cuts):
        self.acted()
        data = b''.join(pieces)
        self.arrived += data
        for size in [*cuts, len(data)]:
            if data[:size]:
                self.sock.incoming.append(data[:size])
            data = data[size:]

    @precondition(lambda self: self.ended is None)
    @rule()
    def ready_for_nothing(self):
        self.acted()
        self.sock.incoming.append(BlockingIOError())

    @precondition(lambda self: self.ended is None and len(self.arrived) > 20)
    @rule(how=st.sampled_from(['eof', 'reset']))
    def peer_ends(self, how):
        self.acted()
        self.ended = how
        self.sock.incoming.append(b'' if how == 'eof' else ConnectionResetError())

    @rule(count=st.sampled_from([1, 2, 100]))
    def turn(self, count):
        self.turns(self.r, count)
        self.resuming = False

    # -- invariants

    @invariant()
    def the_messages_are_the_beginning_of_the_input(self):
        messages, _ = self.whole(self.arrived)
        delivered = self.delivered
        if not self.framed:
            delivered = [b''.join(delivered)]
            messages = [messages[0][: len(delivered[0])]] if messages else [b'']
        assert delivered == messages[: len(delivered)]

    @invariant()
    def exceptions_are_reported_once(self):
        assert self.errors == self.raised

    @invariant()
    def the_stream_reads_only_while_reading_is_wanted(self):
        if self.over is None and not self.closed and self.settled:
            assert self.conn.reading == (not self.paused and not self.eofs) or self.conn.closed

    @invariant()
    def no_message_is_delayed_without_a_reason(self):
        if self.settled and not (self.paused or self.closed or self.sock.incoming):
            self.check_that_all_was_delivered()

    def check_that_all_was_delivered(self):
        messages, too_long = self.whole(self.arrived)
        if not self.framed:
            assert b''.join(self.delivered) == self.arrived
        elif self.remainder is None:
            assert self.delivered == messages
            assert not too_long or isinstance(self.over[0], FrameTooLong)
        else:
            taken = self.arrived[: len(self.arrived) - len(self.remainder)]
            assert self.arrived == taken + self.remainder, 'not the bytes after the last message'
            assert self.whole(taken)[0] == self.delivered, 'bytes were lost or doubled when the framing was replaced'

    def teardown(self):
        if not hasattr(self, 'r'):
            return
        try:
            self.deliver_everything()
        finally:
            framing.MESSAGES_PER_TURN = MESSAGES_PER_TURN

    def deliver_everything(self):
        self.script.clear()
        if self.ended is None:
            self.peer_ends('eof')
        self.turn(2)
        if self.paused and not self.closed:
            self.resume()
        for _ in range(5000):
            if self.over is not None or self.eofs:
                break
            self.turns(self.r)
        if not self.closed:
            self.check_that_all_was_delivered()
        if self.eofs:
            self.conn.close()
            self.closed = True
            self.turn(1)
        assert self.over is not None and self.eofs <= 1
        assert self.sock.number < 0 and self.r.handles() == []
        self.r.close()


TestTheWholeInput = case_of(Reading)
