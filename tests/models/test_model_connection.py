"""Test a connection against an automaton of ten states, based on the documentation of `Stream` and not on its code.

Only calls by the user and results from the scripted socket change the state of the automaton. All actions of the stream
(callbacks, the events that it wants from the selector, shutdown and close of the socket) must be legal in that state.
No state is a dead end: when all timers have fired, each connection has ended.
"""

from __future__ import annotations

import errno
from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from reactor import READ, WRITE, ConnectionClosed, ConnectTimeout, IdleTimeout, Reactor, WriteTimeout
from tests.helpers.models_support import Machine, Raised, case_of
from tests.helpers.support import ScriptedKernel, ScriptedSocket

CONNECT_TIMEOUT, IDLE, LINGER = 10, 20, 30

# ENDING, ENDED: our side of the stream is ending, or has ended. HALF, HALF_ENDING: the peer has ended its side.
# CLOSING: queued bytes are being sent before the close. LINGERING: the stream is waiting until the peer ends its side.
# FAILED: a send has failed.
CONNECTING, OPEN, ENDING, ENDED, HALF, HALF_ENDING, CLOSING, LINGERING, FAILED, CLOSED = (
    'CONNECTING OPEN ENDING ENDED HALF HALF_ENDING CLOSING LINGERING FAILED CLOSED'.split()
)
SHOWN = {ENDING: OPEN, ENDED: OPEN, HALF: OPEN, HALF_ENDING: OPEN, LINGERING: CLOSING, FAILED: CLOSED}


def if_waiting(there, else_there):
    return lambda model: there if model.waiting else else_there


def if_on_eof(there, else_there):
    """Return a function that chooses the next state: `there` if the model has an `on_eof`, otherwise `else_there`."""
    return lambda model: there if model.with_eof else else_there(model) if callable(else_there) else else_there


def on_close(model):
    if model.waiting:
        return CLOSING
    return CLOSED if model.reading and not model.waited else LINGERING


# Maps (state, event) to the next state. Other events do not change the state, or must not happen: see LEGAL.
TABLE = {
    (CONNECTING, 'connected'): lambda model: ENDING if model.user_ended else OPEN,
    (CONNECTING, 'refused'): CLOSED,
    (CONNECTING, 'close'): CLOSED,
    (OPEN, 'write_eof'): if_waiting(ENDING, ENDED),
    (OPEN, 'close'): on_close,
    (OPEN, 'fin'): if_on_eof(HALF, if_waiting(CLOSING, CLOSED)),
    (ENDING, 'shut'): ENDED,
    (ENDING, 'close'): if_waiting(CLOSING, LINGERING),
    (ENDING, 'fin'): if_on_eof(HALF_ENDING, if_waiting(CLOSING, CLOSED)),
    (ENDED, 'close'): LINGERING,
    (ENDED, 'fin'): CLOSED,
    (HALF, 'write_eof'): if_waiting(HALF_ENDING, CLOSED),
    (HALF, 'close'): if_waiting(CLOSING, CLOSED),
    (HALF_ENDING, 'shut'): CLOSED,
    (HALF_ENDING, 'close'): if_waiting(CLOSING, CLOSED),
    (CLOSING, 'shut'): LINGERING,
    (LINGERING, 'fin'): CLOSED,
    (FAILED, 'fin'): CLOSED,
    **{(state, 'abort'): CLOSED for state in (CONNECTING, OPEN, ENDING, ENDED, HALF, HALF_ENDING)},
    **{(state, 'abort'): CLOSED for state in (CLOSING, LINGERING, FAILED)},
    **{(state, 'reset'): CLOSED for state in (OPEN, ENDING, ENDED, LINGERING, FAILED)},
    **{(state, 'send failed'): FAILED for state in (OPEN, ENDING, HALF, HALF_ENDING, CLOSING)},
}
# The states in which the stream may read, send, or end its side of the socket.
LEGAL = {
    'data': (OPEN, ENDING, ENDED, LINGERING, FAILED),
    'fin': (OPEN, ENDING, ENDED, LINGERING, FAILED),
    'reset': (OPEN, ENDING, ENDED, LINGERING, FAILED),
    'sent': (OPEN, ENDING, HALF, HALF_ENDING, CLOSING),
    'send failed': (OPEN, ENDING, HALF, HALF_ENDING, CLOSING),
    'shut': (ENDING, ENDED, HALF_ENDING, CLOSING, LINGERING, CLOSED),
}
TIMEOUTS = {CONNECTING: ConnectTimeout, CLOSING: WriteTimeout, LINGERING: WriteTimeout}


class Sock(ScriptedSocket):
    """A socket that reports the results of its calls to the model."""

    def __init__(self, kernel):
        super().__init__(kernel)
        self.model = kernel.model
        self.model.sock = self
        self.connecting = None  # 'under way', or the error number of the attempt to connect
        self.room = 0  # bytes that the kernel accepts
        self.broken = None  # the error that the next send raises
        self.dry = False  # whether the last recv found nothing

    def connect_ex(self, address):
        self.connecting = self.model.answer
        return errno.EINPROGRESS if self.connecting == 'under way' else self.connecting

    def getsockopt(self, *args):
        return 0 if self.connecting == 'under way' else self.connecting

    def getpeername(self):
        if self.connecting:
            raise OSError(errno.ENOTCONN, 'scripted')
        return super().getpeername()

    def ready(self):
        if self.connecting:
            return 0 if self.connecting == 'under way' else WRITE
        return (READ if self.incoming else 0) | (WRITE if self.room or self.broken or self.connecting == 0 else 0)

    def recv(self, size):
        assert self.model.reading or self.model.state == LINGERING, 'read although reading is paused'
        try:
            self.dry = False
            data = super().recv(size)
        except BlockingIOError:
            self.dry = True
            raise
        except OSError as exc:
            self.model.happens('reset', exc)
            raise
        self.model.happens('data' if data else 'fin')
        return data

    def sendmsg(self, buffers):
        assert any(buffers), 'an empty send'
        if self.broken is not None:
            exc, self.broken = self.broken, None
            self.model.happens('send failed', exc)
            raise exc
        if not self.room:
            raise BlockingIOError
        count = min(self.room, sum(map(len, buffers)))
        self.room -= count
        self.model.happens('sent', count)
        return count

    def shutdown(self, how):
        self.model.happens('shut')

    def close(self):
        if self.number >= 0:
            self.model.socket_closed()
        super().close()


class World(ScriptedKernel):
    def socket(self, family, kind, proto=0):
        return Sock(self)


ENDS = ['write_eof', 'close', 'abort']
CALLS = ['write', 'write', 'pause', 'resume']


class Connection(Machine):
    """Transitions are legal, the wanted events match the state, callbacks obey the laws, and every connection ends."""

    @initialize(
        how=st.sampled_from(['adopt'] * 5 + ['under way', 'under way', 0, errno.ECONNREFUSED]),
        with_eof=st.booleans(),
        with_error=st.booleans(),
        patience=st.integers(0, 6),
    )
    def begin(self, how, with_eof, with_error, patience):
        kernel = self.kernel = World()
        kernel.model = self
        self.state = CONNECTING
        self.patience = patience  # the number of turns before anything ends the connection
        self.with_eof = with_eof
        self.with_error = with_error
        self.answer = how
        self.adopted = how == 'adopt'
        self.sock = None
        self.reading = True  # whether the user wants to read
        self.written = self.accepted = 0
        self.waited = False  # whether any bytes had to wait for the peer
        self.user_ended = self.wants_no_data = False  # whether the user has ended the connection, or wants no more data
        self.marks = deque()
        self.owed_eof = self.owed_drain = False
        self.connected = self.eofs = 0
        self.why = None  # the error with which on_close must be called
        self.reported = False
        self.refused = False  # whether a write was refused after the end; one refused write is enough
        self.moved = kernel.time  # the time at which a byte was last sent or received
        self.closing_since = 0
        self.script = deque()
        self.inside = False
        self.r = Reactor(kernel=kernel, catch_errors=self.caught)
        options = {
            'on_eof': self.on_eof if with_eof else None, 'on_drain': self.on_drain, 'on_close': self.on_close,
            'on_error': self.caught if with_error else None, 'high_water': 100, 'low_water': 20,
            'idle_timeout': IDLE, 'linger': LINGER,
        }  # fmt: skip
        if how == 'adopt':
            self.state = OPEN
            self.conn = self.r.adopt(Sock(kernel), self.on_data, **options)
        else:
            self.conn = self.r.connect_tcp(
                '10.0.0.1', 80, self.on_data, on_connect=self.on_connect, timeout=CONNECT_TIMEOUT, **options
            )
        self.began = kernel.time

    @property
    def waiting(self):
        return self.written - self.accepted

    # -- the automaton

    def happens(self, what, fact=None):
        state = self.state
        assert state in LEGAL.get(what, (state,)), f'{what} while {state}'
        assert not self.reported or what in ENDS, f'{what} after on_close'
        if what == 'shut':
            assert not self.waiting, 'ended before the last byte'
        if what in ('data', 'sent'):
            self.moved = self.kernel.time
        if what == 'sent':
            self.accepted += fact
        self.owed_eof = self.owed_eof or (what == 'fin' and self.with_eof and state in (OPEN, ENDING, ENDED))
        there = TABLE.get((state, what), state)
        there = there(self) if callable(there) else there
        if what in ('close', 'abort'):
            self.user_ended = self.wants_no_data = True
        elif what == 'write_eof':
            self.user_ended |= state in (CONNECTING, OPEN, HALF)
        elif what in ('reset', 'send failed') and state != FAILED:
            self.why = fact
        if there in (CLOSING, LINGERING) and state not in (CLOSING, LINGERING):
            self.closing_since = self.kernel.time
        self.state = there

    def ends(self, why):
        if self.state not in (FAILED, CLOSED):
            self.why = why
        self.state = CLOSED

    def socket_closed(self):
        """Called when the stream closes its socket. The state must allow this, or a timer must have run out."""
        now, state = self.kernel.time, self.state
        if state == CONNECTING and self.sock.connecting not in ('under way', 0):
            self.ends(OSError(self.sock.connecting, ''))
        elif state == FAILED:
            assert self.sock.dry or self.wants_no_data or not (self.reading and b'data' in self.sock.incoming), (
                'received data is not delivered'
            )
            self.state = CLOSED
        elif state != CLOSED:
            error = TIMEOUTS.get(state, IdleTimeout)
            limits = {
                ConnectTimeout: (self.began, CONNECT_TIMEOUT),
                WriteTimeout: (self.closing_since, LINGER),
                IdleTimeout: (self.moved, IDLE),
            }
            since, limit = limits[error]
            assert now >= since + limit, f'closed while {state}, before {error.__name__} was due'
            self.ends(error('scripted'))

    def wants(self):
        if self.state in (OPEN, ENDING, ENDED):
            return (READ if self.reading else 0) | (WRITE if self.waiting else 0)
        if self.state in (HALF, HALF_ENDING):
            return WRITE if self.waiting else 0
        return {CLOSING: WRITE, LINGERING: READ}.get(self.state, 0)

    # -- callbacks

    def called(self, raising=True):
        """Check the rules for every callback, and run the next action of the script."""
        assert not self.inside, 'called inside a call'
        assert not self.reported, 'called after on_close'
        action = self.script.popleft() if self.script else None
        if action == 'raise':
            if not raising:
                return
            exc = Raised()
            if not self.with_error:
                self.raised = exc
                self.ends(exc)
            raise exc
        if action is not None:
            self.act(action, 70)

    def on_connect(self, conn):
        assert self.state == CONNECTING and self.sock.connecting == 0 and not self.connected
        self.connected = 1
        self.waited = self.waited or bool(self.waiting or self.marks or self.user_ended)
        self.happens('connected')
        self.moved = self.kernel.time
        self.called()

    def on_data(self, conn, data):
        assert self.state in (OPEN, ENDING, ENDED, FAILED) and self.reading and not self.wants_no_data
        assert data
        self.called()

    def on_eof(self, conn):
        assert self.owed_eof and self.state in (HALF, HALF_ENDING, CLOSED)
        self.owed_eof = False
        self.eofs += 1
        self.called()

    def on_drain(self, conn):
        assert self.owed_drain and self.waiting < 100
        assert self.state not in (CLOSING, LINGERING, FAILED, CLOSED)
        self.owed_drain = False
        self.called()

    def on_written(self, conn, where):
        assert self.marks.popleft() == where, 'not in the order of the writes'
        assert self.accepted >= where
        self.called()

    def on_close(self, conn, exc):
        assert self.state == CLOSED
        self.called(raising=False)
        self.reported = True
        if isinstance(self.why, Raised) or (isinstance(self.why, OSError) and self.why.args[1:] == ('scripted',)):
            assert exc is self.why
        else:
            assert type(exc) is type(self.why), f'on_close got {exc!r}, not {self.why!r}'
        assert conn.buffered == self.waiting
        assert not self.owed_eof
        if self.connected or self.adopted:  # otherwise nothing was sent
            assert all(mark > self.accepted for mark in self.marks), 'on_written of accepted bytes is missing'

    # -- actions of the user

    def act(self, what, size):
        before, self.inside = self.inside, True
        self.acted()
        try:
            if what == 'write':
                self.write(size)
            elif what in ('pause', 'resume'):
                getattr(self.conn, f'{what}_reading')()
                if self.state in (CONNECTING, OPEN, ENDING, ENDED):
                    self.reading = what == 'resume'
            else:
                self.happens(what)
                getattr(self.conn, what)()
        finally:
            self.inside = before

    def write(self, size):
        taken = not self.user_ended and self.state in (CONNECTING, OPEN, HALF)
        mark = self.written + size
        if taken:
            self.written = mark
            self.marks.append(mark)
        state = self.state
        try:
            result = self.conn.write(b'x' * size, self.on_written, mark)
        except ConnectionClosed:
            assert self.user_ended or self.reported, f'refused while {state}'
            self.refused = self.reported
            return
        assert not self.user_ended and not self.reported, f'accepted while {state}'
        if not taken or self.state == FAILED:
            assert result is False
            if taken:
                self.marks.pop()
            return
        assert result is (self.waiting < 100)
        self.owed_drain |= not result
        self.waited |= self.waiting > 0

    @precondition(lambda self: not self.refused)
    @rule(what=st.sampled_from([*CALLS, *CALLS, *ENDS]), size=st.sampled_from([0, 1, 70, 300]))
    def user(self, what, size):
        if what not in ENDS or self.patience <= 0:
            self.act(what, size)

    @precondition(lambda self: not self.script and not self.reported)
    @rule(script=st.lists(st.sampled_from([None, 'raise', 'write', 'write', *ENDS, *CALLS]), min_size=1, max_size=5))
    def callbacks_will(self, script):
        self.script.extend(script)

    # -- actions of the kernel and the peer, and then some turns

    @rule(
        what=st.sampled_from(
            ['data', 'nothing', 'takes', 'takes', 'takes', 'time', *['fin'] * 3, 'reset', 'failure', 'failure']
        ),
        room=st.sampled_from([1, 50, 1000]),
        number=st.sampled_from([errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS]),
        seconds=st.sampled_from([1, 9, 21, 31]),
        turns=st.sampled_from([0, 0, 1, 2, 4]),
    )
    def world(self, what, room, number, seconds, turns):
        self.acted()
        incoming, ends = self.sock.incoming, self.patience <= 0
        self.patience -= 1
        if self.sock.connecting == 'under way':
            if ends and what != 'time':
                self.sock.connecting = errno.ECONNREFUSED if what == 'reset' else 0
        elif what == 'takes':
            self.sock.room += room
        elif len(incoming) < 4 and b'' not in incoming:
            if what == 'data':
                incoming.append(b'data')
            elif what == 'nothing':
                incoming.append(BlockingIOError())
            elif what == 'fin' and ends:
                incoming.append(b'')
            elif what == 'reset' and ends:
                incoming.append(OSError(errno.ECONNRESET, 'scripted'))
        if what == 'failure' and ends:
            self.sock.broken = OSError(number, 'scripted')
        elif what == 'time' and ends:
            self.kernel.time += seconds
        self.turns(self.r, turns)

    # -- invariants

    @invariant()
    def the_connection_shows_its_state(self):
        assert self.conn.state == SHOWN.get(self.state, self.state)
        assert self.conn.closed == (self.state in (CLOSING, LINGERING, FAILED, CLOSED))
        assert (self.sock.number < 0) == (self.state == CLOSED)
        if not self.reported:
            assert self.conn.buffered == self.waiting

    @invariant()
    def the_wanted_events_follow_from_the_state(self):
        if not self.settled:
            return
        conn = self.conn
        registered = self.r.watchers.selector.get_map().get(conn.fileno())
        if registered is not None and registered.data is conn:
            assert registered.events == conn.events
        else:
            assert conn.events == 0
        assert conn.events == self.wants(), f'it wants {conn.events} while {self.state}'

    @invariant()
    def an_ended_connection_was_reported(self):
        assert self.state == CLOSED or not self.reported
        if self.settled:
            assert self.reported == (self.state == CLOSED)

    @invariant()
    def a_timer_is_set_until_the_end(self):
        if not self.reported and self.settled:
            assert self.r.timeout() is not None, 'a silent peer would keep the connection for ever'

    def teardown(self):
        if not hasattr(self, 'r'):
            return
        self.script.clear()
        for _ in range(3):
            self.kernel.time += 35
            self.turns(self.r, 20)
        assert self.state == CLOSED and self.reported, f'left in {self.state}'
        assert self.r.handles() == [] and not len(self.r.timers)
        assert self.connected <= 1 and self.eofs <= 1
        self.r.close()


TestConnection = case_of(Connection)
