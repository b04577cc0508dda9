"""The laws on real sockets of every kind, with every option at its limits.

`kinds.py` has the kinds: TCP, Unix, adopted sockets, a stand-in for AF_VSOCK, each also over TLS, the pipes of
children, and datagram sockets. Each function marked `@law` tests a promise that holds for every kind with the
abilities that the law needs. Each pair of law and kind runs on one selector, with at most one option. The options are
chosen so that each is used with each kind. With `--kinds-whole` each pair runs with all selectors and options.
`Recorder` and `World` check the rules that hold in every callback and at the end of every connection.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque

import pytest

from reactor import (
    PIPE,
    READ,
    ConnectionClosed,
    HandleClosed,
    HandshakeTimeout,
    IdleTimeout,
    Limits,
    ReadTimeout,
    TLSError,
    WriteBufferFull,
    WriteTimeout,
)
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.kinds import (
    DATAGRAM_KINDS,
    INET,
    INET6,
    KINDS,
    VALUES,
    WINDOW,
    DatagramRecorder,
    Recorder,
    VsockSocket,
    World,
    called,
    payload,
    pieces_of,
    settings_of,
    watched_kinds,
)
from tests.helpers.support import idle, run_until, turns

pytestmark = pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='the other ends of pipes are found in /proc')

BIG = 3 << 20  # bytes: many times more than one call sends or receives
STALL = 4 << 20  # bytes: more than the kernel buffers for a peer that does not read
LAWS = []


def law(*needs, clock=False, callbacks=None, **given):
    """Mark a law with the abilities that it needs, the options that it sets, and whether the clock is simulated."""

    def add(fn):
        LAWS.append(fn)
        fn.needs, fn.clock, fn.callbacks, fn.given = needs, clock, callbacks or {}, given
        return fn

    return add


class Run:
    """A run of a law: `conn` is our stream, `rec` records its callbacks, and `peer` is at its other end."""

    def __init__(self, kind, world, options, callbacks):
        self.kind, self.world, self.options = kind, world, options
        self.rec = Recorder(world, kind.prefix)
        self.peer = kind.open(world, self.rec, self.rec.callbacks(**callbacks), options)
        self.until, self.turns = world.until, world.turns
        if kind.family in (INET, INET6) and not self.rec.closed:
            with socket.socket(fileno=os.dup(self.conn.fileno())) as ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WINDOW)

    @property
    def conn(self):
        return self.rec.conn

    @property
    def size(self):
        """The number of bytes to send: fewer if each byte costs a call."""
        size = self.options.get('read_size', 65536)
        return BIG if size > 1000 else 300 * size + 2000

    def closes(self):
        """Wait for the end of the stream; return the error that `on_close` was called with."""
        self.until(lambda: self.rec.closed)
        assert self.rec.names[-1] == 'close'
        assert self.conn.closed and self.conn.state == 'CLOSED'
        return self.rec.exc

    def send(self, data):
        """Let the peer send all of `data`, and run turns until it has."""
        left = memoryview(data)
        while left:
            left = left[self.peer.send(bytes(left[:65536])) :]
            self.world.turn()

    def gets(self, data, ended='', slow=1 << 20):
        """Wait until the peer has received exactly `data`, and `peer.ended` has the value `ended`."""
        peer = self.peer
        self.until(lambda: len(peer.got) >= len(data) and peer.ended == ended, lambda: peer.take(slow))
        assert len(peer.got) == len(data) and peer.got == data, 'the peer received different bytes'

    def stall(self):
        """Write so much data that most of it is queued; return the data."""
        data = payload(STALL)
        assert self.conn.write(data, self.rec.on_written, 'stall') is (
            len(data) < self.options.get('high_water', 65536)
        )
        assert self.conn.buffered
        return data

    def writes(self, pieces):
        """Write pieces as the documentation recommends: pause when `write` returns False, continue in `on_drain`."""
        waiting = deque(enumerate(pieces))

        def go(conn):
            while waiting:
                number, piece = waiting.popleft()
                if not conn.write(piece, self.rec.on_written, number):
                    return

        self.rec.does['drain'] = go
        go(self.conn)
        return waiting


# -- the peer closes, resets or ends its side


@law('read')
def received_data_is_delivered_and_then_a_clean_end(run):
    run.send(b'last words')
    run.peer.close()
    assert run.closes() is None
    assert run.rec.received == b'last words'


@law('write')
def a_peer_that_closes_ends_the_stream_without_an_error(run):
    run.conn.write(b'all of it')
    run.gets(b'all of it')
    run.peer.close()
    assert run.closes() is None


@law('both')
def waiting_bytes_are_sent_after_an_end_of_file(run):
    data = run.stall()
    run.peer.end()
    run.turns(3)
    assert not run.rec.closed
    run.gets(data, 'eof', 100_000)
    assert run.closes() is None
    assert run.rec.left == 0 and run.rec.written == ['stall']


@law('reset')
def a_reset_is_reported_with_the_error_of_the_kernel(run):
    run.conn.write(b'never read')
    run.turns(2)
    run.peer.reset()
    exc = run.closes()
    assert isinstance(exc, OSError) and exc.errno in (errno.ECONNRESET, errno.EPIPE), repr(exc)


@law('reset')
def a_reset_while_reading_is_paused_waits_for_the_reader(run):
    run.conn.pause_reading()
    run.conn.write(b'never read')
    run.turns(2)
    run.peer.reset()
    run.world.quiet()
    assert not run.rec.closed
    run.conn.resume_reading()
    assert isinstance(run.closes(), ConnectionResetError), repr(run.rec.exc)


@law('reset')
def a_write_to_a_peer_that_is_gone_returns_false_and_its_earlier_data_is_delivered(run):
    run.conn.write(b'never read')
    run.turns(2)
    while not run.peer.send(b'before'):
        run.turns(1)
    run.peer.reset()
    # The kernel may accept the first write, because it does not know yet that the peer is gone. No write raises.
    for _ in range(3):
        accepted = run.conn.write(b'lost', run.rec.on_written, 'never')
        if not accepted:
            break
    assert not accepted and not run.rec.closed
    assert run.conn.closed
    assert isinstance(run.closes(), OSError)
    assert run.rec.received == b'before'


@law('reset')
def a_reset_while_bytes_wait_is_reported_once_and_the_bytes_are_counted(run):
    run.stall()
    run.peer.reset()
    assert isinstance(run.closes(), OSError)
    assert run.rec.left > 0 and not run.rec.written


@law('write')
def a_peer_that_is_gone_while_bytes_wait_is_an_error(run):
    run.stall()
    run.peer.close()
    exc = run.closes()
    assert isinstance(exc, OSError) and exc.errno in (errno.ECONNRESET, errno.EPIPE), repr(exc)
    assert run.rec.left > 0 and not run.rec.written


@law('tls', 'read')
def an_end_without_close_notify_is_an_error_after_the_data(run):
    run.send(b'cut sho')
    run.until(lambda: run.rec.received)
    run.peer.take_all()
    run.peer.cut()
    exc = run.closes()
    assert isinstance(exc, TLSError), repr(exc)
    assert run.rec.received == b'cut sho'


# -- the program closes or aborts the stream


@law()
def a_close_is_reported_in_a_later_turn_and_the_peer_sees_a_clean_end(run):
    assert not run.conn.closed
    run.conn.close()
    assert run.conn.closed and not run.rec.closed
    if run.kind.cannot.get('write') is None:
        run.gets(b'', 'eof')
    run.peer.close()
    assert run.closes() is None


@law('write')
def a_close_sends_everything_first(run):
    data = run.stall()
    run.conn.close()
    assert run.conn.closed and not run.rec.closed
    with pytest.raises(ConnectionClosed):
        run.conn.write(b'too late')
    if 'read' not in run.kind.cannot:
        run.peer.send(b'chatter')
    run.gets(data, 'eof', 200_000)
    run.peer.close()
    assert run.closes() is None
    assert run.rec.written == ['stall'] and run.rec.left == 0 and not run.rec.received


@law('both')
def a_close_with_unread_bytes_does_not_reset_bytes_in_flight(run):
    run.conn.pause_reading()
    run.turns(1)
    run.send(payload(50_000))
    run.conn.write(b'goodbye')
    run.conn.close()
    run.gets(b'goodbye', 'eof')
    run.peer.close()
    assert run.closes() is None
    assert not run.rec.received


@law()
def an_abort_is_reported_in_a_later_turn_with_none(run):
    if 'write' not in run.kind.cannot:
        run.stall()
    run.conn.abort()
    assert run.conn.closed and not run.rec.closed
    assert run.closes() is None
    if 'write' not in run.kind.cannot:
        assert run.rec.left and not run.rec.written
        run.until(lambda: run.peer.ended, run.peer.take_all)
        if run.kind.family in (INET, INET6):
            assert run.peer.ended == 'reset'


@law()
def each_end_is_reported_once_however_often_it_is_requested(run):
    def again(conn, exc):
        conn.close()
        conn.abort()
        conn.close()

    run.rec.does['close'] = again
    conn = run.conn
    conn.close()
    conn.close()
    conn.abort()
    conn.close()
    conn.abort()
    assert run.closes() is None
    conn.close()
    conn.abort()
    run.turns(3)
    assert run.rec.names.count('close') == 1


@law()
def closing_the_reactor_ends_the_connection(run):
    if 'write' not in run.kind.cannot:
        run.stall()
    run.world.close()
    assert run.world.r.handles() == []
    assert run.rec.names.count('close') == 1 and run.rec.exc is None


@law('write')
def a_write_after_our_own_end_raises(run):
    for end in run.conn.write_eof, run.conn.close, run.conn.abort:
        end()
        for write in run.conn.write, lambda data: run.conn.writelines([data]):
            with pytest.raises(ConnectionClosed):
                write(b'too late')
    assert run.closes() is None
    with pytest.raises(ConnectionClosed):
        run.conn.write(b'far too late')


@law('write', clock=True, linger=2.5)
def a_close_that_lasts_longer_than_linger_is_a_write_timeout(run):
    run.stall()
    run.conn.close()
    began = run.world.kernel.time
    run.turns(5)
    assert not run.rec.closed
    run.world.quiet()
    while not run.rec.closed:
        assert run.world.kernel.time <= began + 3.5
        run.world.turn(0.25)
    assert isinstance(run.rec.exc, WriteTimeout), repr(run.rec.exc)
    assert run.world.kernel.time >= began + 2.5
    assert run.rec.left and not run.rec.written


@law('write', linger=0)
def a_linger_of_0_lasts_no_longer_than_a_turn(run):
    run.stall()
    run.conn.close()
    run.turns(3)
    assert isinstance(run.rec.exc, WriteTimeout), repr(run.rec.exc)


# -- time limits


def runs_out(run, limit):
    """Let time pass until the stream ends. It must end at the limit or at most a second later."""
    began = run.world.kernel.time
    while not run.rec.closed:
        assert run.world.kernel.time <= began + limit + 1.25, 'the timeout is more than a second late'
        run.world.turn(0.25)
    assert run.world.kernel.time >= began + limit, 'the timeout came early'
    return run.rec.exc


@law('read', clock=True, read_timeout=2.5)
def a_silent_peer_is_a_read_timeout_unless_reading_is_paused(run):
    run.conn.pause_reading()
    for _ in range(20):
        run.world.turn(0.25)
    run.conn.resume_reading()
    run.world.turn(1)
    run.send(b'a sign')
    run.until(lambda: run.rec.received)
    exc = runs_out(run, 2.5)
    assert isinstance(exc, ReadTimeout) and isinstance(exc, TimeoutError), repr(exc)


@law('write', clock=True, write_timeout=2.5)
def a_peer_that_takes_nothing_is_a_write_timeout_and_a_slow_one_is_not(run):
    for _ in range(20):
        run.world.turn(0.25)
    run.stall()
    run.turns(3)
    for _ in range(2):
        run.world.turn(1)
        run.world.turn(1)
        before = run.conn.buffered
        run.until(lambda before=before: run.conn.buffered < before, lambda: run.peer.take(300_000))
    assert not run.rec.closed
    began = run.world.kernel.time
    while not run.rec.closed:
        assert run.world.kernel.time <= began + 3.75
        run.world.turn(0.25)
    assert isinstance(run.rec.exc, WriteTimeout), repr(run.rec.exc)
    assert run.rec.left


@law('both', clock=True, idle_timeout=2.5)
def bytes_in_either_direction_prevent_the_idle_timeout(run):
    for _ in range(4):
        run.world.turn(2)
        run.send(b'ping')
        run.world.turn(2)
        run.conn.write(b'pong')
        run.peer.take_all()
    assert not run.rec.closed
    assert isinstance(runs_out(run, 2.5), IdleTimeout), repr(run.rec.exc)


@law(clock=True)
def time_limits_can_be_set_and_removed(run):
    run.conn.set_timeouts(idle=1)
    run.conn.set_timeouts()
    for _ in range(8):
        run.world.turn(1)
    assert not run.rec.closed
    run.conn.set_timeouts(idle=3)
    assert isinstance(runs_out(run, 3), IdleTimeout)


# -- bytes


@law('read')
def bytes_arrive_complete_and_in_order(run):
    data = payload(run.size)
    run.send(data)
    run.until(lambda: len(run.rec.received) >= len(data))
    assert run.rec.received == data
    run.peer.close()
    assert run.closes() is None


@law('write')
def bytes_reach_a_slow_peer_complete_and_in_order(run):
    data = payload(run.size, 1)
    pieces = pieces_of(data)
    waiting = run.writes(pieces)
    run.gets(data, slow=50_000)
    assert not waiting and run.rec.written == list(range(len(pieces)))
    assert run.conn.buffered == 0
    run.conn.close()
    run.gets(data, 'eof')
    run.peer.close()
    assert run.closes() is None


@law('both')
def bytes_go_both_ways_at_once(run):
    there, back = payload(run.size, 2), payload(run.size, 3)
    left = memoryview(back)

    def step():
        nonlocal left
        left = left[run.peer.send(bytes(left[:40_000])) :]
        run.peer.take(30_000)

    waiting = run.writes(pieces_of(there, 2))
    rec, peer = run.rec, run.peer
    run.until(lambda: len(rec.received) >= len(back) and len(peer.got) >= len(there), step)
    assert rec.received == back and peer.got == there
    assert not waiting


@law('write')
def a_bytearray_may_be_changed_as_soon_as_it_is_written(run):
    data = bytearray(payload(BIG + 5000, 4))
    expected = bytes(data)
    small, large = data[:5000], data[5000:]
    run.conn.write(small)
    small[:] = bytes(len(small))
    small.clear()
    run.conn.write(large)
    large[:] = bytes(len(large))
    large.clear()
    run.gets(expected)


@law('write')
def the_bytearrays_of_writelines_may_be_changed_too(run):
    data = bytearray(payload(BIG, 5))
    first, second, third = data[:100], data[100:70_000], data[70_000:]
    expected = bytes(data)
    run.conn.writelines([first, memoryview(second), third])
    for each in first, second, third:
        each[:] = bytes(len(each))
    for each in first, third:
        each.clear()
    run.gets(expected)


@law('write')
def every_kind_of_buffer_is_sent_as_its_bytes(run):
    data = payload(12_000, 6)
    views = [
        memoryview(data)[10:20],
        memoryview(data)[::-1],
        memoryview(data)[::3],
        memoryview(data).cast('I'),
        memoryview(data).cast('B', (100, 120)),
        bytearray(data),
        memoryview(b''),
    ]
    run.writes(views)
    run.gets(b''.join(view.tobytes() if isinstance(view, memoryview) else view for view in views))


@law('write', high_water=1 << 30)
def more_buffers_than_one_call_takes_go_out_in_order(run):
    data = payload(200_000, 7)
    buffers = [data[at : at + 50] for at in range(0, len(data), 50)]
    buffers[1::3] = [bytearray(each) for each in buffers[1::3]]
    buffers.insert(100, b'')
    assert len(buffers) > 3 * os.sysconf('SC_IOV_MAX')
    run.conn.writelines(buffers, run.rec.on_written, 'lines')
    run.gets(data)
    assert run.rec.written == ['lines']


@law('write', high_water=1 << 30)
def more_large_buffers_than_one_call_takes_go_out_in_order_too(run):
    data = payload(5_000_000, 15)
    buffers = [data[at : at + 4100] for at in range(0, len(data), 4100)]
    assert len(buffers) > os.sysconf('SC_IOV_MAX')
    run.conn.writelines(buffers, run.rec.on_written, 'lines')
    run.gets(data)
    assert run.rec.written == ['lines']


@law('write', high_water=1 << 30)
def empty_writes_keep_their_place(run):
    conn, on_written = run.conn, run.rec.on_written
    conn.write(b'', on_written, 0)
    conn.write(b'a', on_written, 1)
    conn.write(bytearray(), on_written, 2)
    conn.writelines([], on_written, 3)
    conn.writelines([b'', memoryview(b'')], on_written, 4)
    assert not run.rec.written
    run.gets(b'a')
    run.turns(2)
    assert run.rec.written == [0, 1, 2, 3, 4]
    data = payload(STALL)
    conn.write(data, on_written, 5)
    conn.write(b'', on_written, 6)
    conn.writelines([], on_written, 7)
    run.turns(3)
    assert run.rec.written == [0, 1, 2, 3, 4]
    run.gets(b'a' + data)
    run.turns(2)
    assert run.rec.written == [0, 1, 2, 3, 4, 5, 6, 7]


@law('write', high_water=1 << 30)
def a_part_of_a_file_is_sent_in_its_place(run):
    data = payload(BIG, 8)
    conn, on_written = run.conn, run.rec.on_written
    conn.write(b'head', on_written, 'head')
    with open(run.world.path, 'rb') as file:
        conn.send_file(file, 1000, None, on_written, 'file')
        conn.send_file(file, 10, 20, on_written, 'little')
        conn.send_file(file, 0, 0, on_written, 'nothing')
    conn.write(b'tail', on_written, 'tail')
    run.gets(b'head' + data[1000:] + data[10:30] + b'tail')
    run.turns(2)
    assert run.rec.written == ['head', 'file', 'little', 'nothing', 'tail']


@law('read')
def without_on_data_bytes_are_read_and_dropped(run):
    run.conn.on_data = None
    run.send(payload(run.size))
    run.peer.close()
    assert run.closes() is None
    assert not run.rec.received


# -- callbacks of writes


@law('write', high_water=1 << 30)
def on_written_comes_in_order_when_the_kernel_has_the_bytes_and_not_after_a_failure(run):
    total, sizes = 0, []
    for number, piece in enumerate(pieces_of(payload(STALL, 9), 9)):
        run.conn.write(piece, run.rec.on_written, number)
        total += len(piece)
        sizes.append(total)
    for _ in range(3):
        run.peer.take(100_000)
        run.turns(2)
    written = list(run.rec.written)
    assert written == list(range(len(written))) and 0 < len(written) < len(sizes)
    if 'count' not in run.kind.cannot:
        accepted = total - run.conn.buffered
        assert len(written) == len([size for size in sizes if size <= accepted])
    run.conn.abort()
    assert run.closes() is None
    assert run.rec.written[: len(written)] == written and len(run.rec.written) < len(sizes)


@law('write', 'count')
def buffered_is_exactly_what_the_kernel_has_not_accepted(run):
    data = run.stall()
    run.turns(3)
    run.peer.take(200_000)
    run.turns(2)
    waits = run.conn.buffered
    # Bytes that the kernel has accepted arrive without further turns.
    os.set_blocking(run.peer.sock.fileno(), True)
    while len(run.peer.got) < len(data) - waits:
        assert run.peer.take(len(data) - waits - len(run.peer.got))
    os.set_blocking(run.peer.sock.fileno(), False)
    assert not run.peer.take()
    assert len(run.peer.got) + waits == len(data)
    run.conn.abort()
    assert run.closes() is None
    assert run.rec.left == waits


@law('write', high_water=100_000, low_water=20_000)
def a_drain_follows_a_write_that_returned_false_when_few_bytes_wait(run):
    marks = []
    run.rec.does['drain'] = lambda conn: marks.append(conn.buffered)
    settled = False
    while not settled:  # write again, because the network has accepted some of the bytes
        while run.conn.write(bytes(5000)):
            assert run.conn.buffered < 100_000
        assert run.conn.buffered >= 100_000
        run.turns(5)
        settled = not marks
        marks.clear()
    run.until(lambda: marks, lambda: run.peer.take(10_000))
    assert marks[0] <= 20_000
    run.until(lambda: not run.conn.buffered, run.peer.take)
    run.turns(3)
    assert len(marks) == 1


@law('write', high_water=1, low_water=0)
def on_written_comes_before_the_drain(run):
    data = run.stall()
    run.gets(data)
    run.until(lambda: 'drain' in run.rec.names)
    order = [name for name in run.rec.names if name in ('written', 'drain')]
    assert order == ['written', 'drain']


@law('write')
def a_chain_of_write_callbacks_has_a_constant_depth(run):
    left = 200

    def more(conn):
        nonlocal left
        left -= 1
        if left:
            conn.write(b'x', run.rec.on_written, left)

    run.rec.does['written'] = more
    more(run.conn)
    run.gets(b'x' * 199)


@law('write', max_buffered=100_000)
def only_a_receiver_that_is_too_slow_is_cut_off(run):
    other = Run(run.kind, run.world, called(run.options), {})
    run.stall()  # a single write can have any size
    run.turns(2)
    assert not run.conn.closed
    assert run.conn.write(b'more', run.rec.on_written, 'never') is False
    assert run.conn.closed and not run.rec.closed
    assert other.conn.write(b'hello') is True
    assert isinstance(run.closes(), WriteBufferFull), repr(run.rec.exc)
    assert run.rec.left and not run.rec.written
    other.gets(b'hello')


# -- half-close


@law('half-close')
def after_our_end_the_peer_may_go_on(run):
    run.conn.write(b'question')
    run.conn.write_eof()
    run.conn.write_eof()
    run.gets(b'question', 'eof')
    run.world.quiet()
    assert not run.conn.closed and not run.rec.closed
    run.send(b'answer')
    run.until(lambda: run.rec.received == b'answer')
    run.peer.end()
    assert run.closes() is None


@law('half-close', callbacks={'eof': True})
def after_the_end_of_the_peer_we_may_go_on(run):
    run.send(b'question')
    run.peer.end()
    run.until(lambda: 'eof' in run.rec.names)
    run.world.quiet()
    assert not run.conn.closed and run.rec.received == b'question'
    data = payload(run.size, 10)
    waiting = run.writes(pieces_of(data))
    run.gets(data)
    assert not waiting
    run.world.quiet()
    run.conn.write_eof()
    run.gets(data, 'eof')
    assert run.closes() is None
    assert run.rec.names.count('eof') == 1


@law('half-close', callbacks={'eof': True})
def after_both_ends_the_stream_closes_by_itself(run):
    data = run.stall()
    run.conn.write_eof()
    run.peer.end()
    run.until(lambda: 'eof' in run.rec.names)
    run.gets(data, 'eof')
    assert run.closes() is None


@law('both', callbacks={'eof': True})
def an_end_of_file_with_on_eof_does_not_wake_the_loop(run):
    run.send(b'all')
    run.peer.end()
    run.until(lambda: 'eof' in run.rec.names)
    run.world.quiet()
    assert not run.rec.closed
    run.conn.close()
    run.peer.close()
    assert run.closes() is None


# -- paused reading


@law('read')
def while_reading_is_paused_nothing_is_called_and_the_loop_is_not_woken(run):
    run.conn.pause_reading()
    run.send(b'later')
    run.world.quiet()
    assert not run.rec.received
    run.peer.close()
    run.world.quiet()
    assert not run.rec.closed and not run.conn.closed
    run.conn.resume_reading()
    run.turns(2)
    assert run.closes() is None
    assert run.rec.received == b'later'


@law('read', callbacks={'eof': True})
def pausing_in_on_data_stops_at_once(run):
    run.rec.does['data'] = lambda conn, data: conn.pause_reading()
    data = payload(200_000, 11) if run.size == BIG else b'some'
    sent = 0
    while (taken := run.peer.send(data[sent : sent + 50_000])) and sent < len(data):
        sent += taken
    run.peer.pump()
    run.until(lambda: run.rec.received)
    run.turns(5)
    assert run.rec.names.count('data') == 1
    calls = 1
    while len(run.rec.received) < sent:
        run.conn.resume_reading()
        run.until(lambda calls=calls: run.rec.names.count('data') > calls)
        run.turns(2)
        calls += 1
        assert run.rec.names.count('data') == calls
    assert run.rec.received == data[:sent]


# -- states and attributes


@law()
def attributes_can_be_read_in_every_state(run):
    def ask(conn):
        for name in 'peername', 'sockname', 'closed', 'state', 'buffered', 'busy', 'unread', 'reading', 'proxy':
            getattr(conn, name)
        for text in repr(conn), conn.waits_for():
            assert text.isprintable()
        conn.fileno()

    conn = run.conn
    ask(conn)
    if 'write' not in run.kind.cannot:
        run.stall()
        ask(conn)
        assert conn.state == 'OPEN'
        conn.close()
        assert conn.state == 'CLOSING'
        ask(conn)
    conn.abort()
    ask(conn)
    assert run.closes() is None
    ask(conn)
    conn.set_write_limits(1000, 10)
    conn.set_timeouts()
    assert conn.fileno() == -1 and conn.data is None


@law('names')
def addresses_are_those_that_the_peer_sees(run):
    assert run.conn.peername[:2] == run.peer.sock.getsockname()[:2]
    assert run.conn.sockname[:2] == run.peer.sock.getpeername()[:2]
    assert str(run.conn.peername[1]) in repr(run.conn)
    run.conn.abort()
    run.closes()
    assert run.conn.peername[:2] == run.peer.sock.getsockname()[:2]


@law()
def an_unreferenced_stream_lets_run_end(run):
    run.conn.unref()
    assert run.world.r.run() is True
    run.conn.ref()
    run.world.r.call_later(0.005, run.world.r.stop)
    assert run.world.r.run() is False
    assert not run.conn.closed


@law('on_connect')
def on_connect_comes_once_and_first(run):
    if 'write' not in run.kind.cannot:
        run.conn.write(b'x')
    run.peer.close()
    run.closes()
    assert run.rec.names[0] == 'connect' and run.rec.names.count('connect') == 1


@law()
def a_descriptor_that_other_code_closes_ends_the_stream_with_ebadf(run):
    fd = run.conn.fileno()
    os.close(fd)
    if 'write' in run.kind.cannot:
        run.conn.pause_reading()
        run.conn.resume_reading()
    else:
        assert run.conn.write(b'lost') is False
    exc = run.closes()
    assert isinstance(exc, OSError) and exc.errno == errno.EBADF, repr(exc)


@law('socket')
def the_next_owner_of_a_number_that_other_code_closed_is_not_hurt(run):
    fd = run.conn.fileno()
    foreign = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(foreign, fd)
    os.close(foreign)
    assert run.conn.write(b'lost') is False
    assert isinstance(run.closes(), OSError)
    os.close(fd)  # fails if the descriptor was closed


@law('socket')
def the_next_owner_of_the_number_is_not_hurt_by_write_eof(run):
    fd = run.conn.fileno()
    foreign = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(foreign, fd)
    os.close(foreign)
    run.conn.write_eof()
    assert isinstance(run.closes(), OSError)
    os.close(fd)


@law('socket')
def the_next_owner_of_the_number_is_not_hurt_by_a_read(run):
    fd = run.conn.fileno()
    foreign = os.eventfd(1, os.EFD_NONBLOCK)  # always readable
    run.conn.pause_reading()
    os.dup2(foreign, fd)
    os.close(foreign)
    run.conn.resume_reading()
    assert isinstance(run.closes(), OSError)
    os.close(fd)


# -- callbacks that raise


class Problem(Exception):
    """The exception that a callback raises."""


def fails(run, name):
    def act(conn, *details):
        raise Problem(name)

    run.rec.does[name] = act


def was(exc, name):
    return type(exc) is Problem and exc.args == (name,)


@law('read')
def an_exception_in_on_data_ends_this_connection_with_it(run):
    fails(run, 'data')
    run.send(b'x')
    assert was(run.closes(), 'data')
    assert [was(exc, 'data') for exc in run.world.uncaught] == [True]


@law('write')
def an_exception_in_on_written_ends_this_connection_with_it(run):
    fails(run, 'written')
    run.conn.write(b'x', run.rec.on_written)
    assert was(run.closes(), 'written')
    assert [was(exc, 'written') for exc in run.world.uncaught] == [True]


@law('write', high_water=1000)
def an_exception_in_on_drain_ends_this_connection_with_it(run):
    fails(run, 'drain')
    run.stall()
    run.until(lambda: run.rec.closed, run.peer.take)
    assert was(run.rec.exc, 'drain')
    assert [was(exc, 'drain') for exc in run.world.uncaught] == [True]


@law('read', callbacks={'eof': True})
def an_exception_in_on_eof_ends_this_connection_with_it(run):
    fails(run, 'eof')
    run.peer.end()
    assert was(run.closes(), 'eof'), repr(run.rec.exc)


@law('half-close', callbacks={'eof': True})
def an_exception_in_on_eof_ends_the_stream_even_if_our_side_has_ended(run):
    fails(run, 'eof')
    run.conn.write_eof()
    run.gets(b'', 'eof')
    run.peer.end()
    assert was(run.closes(), 'eof'), repr(run.rec.exc)


@law('half-close')
def an_end_of_both_sides_at_the_same_time_is_clean(run):
    for end in run.conn.write_eof, run.peer.close:
        end()
    assert run.closes() is None


@law('half-close')
def a_peer_that_has_closed_before_we_end_our_side_is_a_clean_end(run):
    run.send(b'goodbye')
    run.peer.close()
    run.conn.write_eof()
    assert run.closes() is None, repr(run.rec.exc)
    assert run.rec.received == b'goodbye'


@law('both')
def a_close_after_the_peer_has_closed_is_a_clean_end(run):
    run.peer.close()
    run.conn.close()
    assert run.closes() is None, repr(run.rec.exc)


@law('read', callbacks={'eof': True, 'error': True})
def with_on_error_the_connection_lives(run):
    fails(run, 'data')
    run.send(b'x')
    run.until(lambda: run.rec.errors)
    run.rec.does.clear()
    run.send(b'y')
    run.until(lambda: run.rec.received == b'xy')
    assert [was(exc, 'data') for exc in run.rec.errors] == [True]
    assert not run.world.uncaught and not run.conn.closed


@law()
def an_exception_in_on_close_hurts_no_other_handle(run):
    fails(run, 'close')
    run.conn.abort()
    assert run.closes() is None
    assert [was(exc, 'close') for exc in run.world.uncaught] == [True]


# -- datagrams

DATAGRAM_LAWS = []


def datagram_law(*needs, callbacks=None, **given):
    def add(fn):
        DATAGRAM_LAWS.append(fn)
        fn.needs, fn.clock, fn.callbacks, fn.given = needs, False, callbacks or {}, given
        return fn

    return add


class DatagramRun:
    """A run of a law: `sock` is our datagram socket, `rec` records its callbacks, and `peer` is a plain socket.

    `target` is the address to which our socket sends; None if it is connected to the peer.
    """

    def __init__(self, kind, world, options, callbacks):
        self.kind, self.world, self.options = kind, world, options
        self.rec = DatagramRecorder(world)
        self.peer, self.target = kind.open(world, self.rec, self.rec.callbacks(**callbacks), options)
        self.until, self.turns = world.until, world.turns

    @property
    def sock(self):
        return self.rec.conn

    @property
    def longest(self):
        return {INET: 65507, INET6: 65527}.get(self.kind.family, 150_000)

    def closes(self):
        self.until(lambda: self.rec.closed)
        assert self.rec.names[-1] == 'close' and self.sock.closed
        return self.rec.exc

    def receive(self, count):
        """Return the next datagrams that the peer receives."""
        got = []
        self.until(lambda: len(got) >= count, lambda: got.extend(arrived(self.peer)))
        return got


def arrived(sock):
    got = []
    try:
        while True:
            got.append(sock.recv(1 << 20))
    except BlockingIOError:
        return got


@datagram_law()
def datagrams_arrive_complete_and_in_order(run):
    sent = [b'first', b'', b'x', payload(run.longest), bytes(65536 if 'longest' in run.kind.cannot else 100), b'last']
    for data in sent:
        run.peer.send(data)
        run.until(lambda: len(run.rec.datagrams) and run.rec.datagrams[-1][0] == data)  # noqa: B023
    assert [data for data, _ in run.rec.datagrams] == sent
    name = run.peer.getsockname()
    assert {address[:2] for _, address in run.rec.datagrams} == {name[:2]}


@datagram_law()
def datagrams_are_sent_complete_and_in_order_and_may_be_changed_at_once(run):
    changed = bytearray(b'changed later')
    sent = [b'first', b'', changed, memoryview(payload(5000))[::2], payload(run.longest), b'last']
    expected = [bytes(data) for data in sent]
    for data, whole in zip(sent, expected, strict=True):
        assert run.sock.send(data, run.target) is True
        if data is changed:
            changed[:] = bytes(len(changed))
            changed.clear()
        assert run.receive(1) == [whole]


@datagram_law()
def a_turn_delivers_a_limited_number_of_datagrams(run):
    count = 0
    try:
        for count in range(100):
            run.peer.send(b'%d' % count)
        count += 1
    except BlockingIOError:
        pass  # a Unix socket queues only a few datagrams
    before = 0
    while before < count:
        run.turns(1)
        now = len(run.rec.datagrams)
        assert now - before <= 32
        before = now
    assert [data for data, _ in run.rec.datagrams] == [b'%d' % number for number in range(count)]


@datagram_law()
def the_end_of_a_datagram_socket_is_reported_once(run):
    run.rec.does['close'] = lambda sock, exc: sock.close()
    sock = run.sock
    sock.close()
    sock.close()
    sock.abort()
    assert sock.closed and not run.rec.closed
    with pytest.raises(HandleClosed):
        sock.send(b'too late', run.target)
    assert run.closes() is None
    with pytest.raises(HandleClosed):
        sock.send(b'far too late', run.target)


@datagram_law()
def while_a_datagram_socket_is_paused_the_loop_is_not_woken(run):
    run.turns(2)
    run.sock.pause_reading()
    run.peer.send(b'later')
    run.world.quiet()
    assert not run.rec.datagrams
    run.sock.resume_reading()
    run.until(lambda: run.rec.datagrams)


@datagram_law()
def pausing_in_on_datagram_stops_at_once(run):
    run.turns(2)
    run.rec.does['datagram'] = lambda sock, data: sock.pause_reading()
    run.peer.send(b'1')
    run.peer.send(b'2')
    run.until(lambda: run.rec.datagrams)
    run.turns(3)
    assert len(run.rec.datagrams) == 1


@datagram_law()
def an_exception_in_on_datagram_ends_nothing(run):
    fails(run, 'datagram')
    run.peer.send(b'1')
    run.until(lambda: run.rec.datagrams)
    run.rec.does.clear()
    run.peer.send(b'2')
    run.until(lambda: len(run.rec.datagrams) == 2)
    assert [was(exc, 'datagram') for exc in run.world.uncaught] == [True] and not run.sock.closed


@datagram_law()
def attributes_of_a_datagram_socket_can_be_read_in_every_state(run):
    def ask(sock):
        for name in 'address', 'sockname', 'peername', 'closed', 'state', 'buffered', 'queued', 'kernel_drops':
            getattr(sock, name)
        assert repr(sock).isprintable() and sock.waits_for().isprintable()

    ask(run.sock)
    run.turns(1)
    ask(run.sock)
    if run.kind.connected:
        name = run.peer.getsockname()
        assert run.sock.peername[:2] == name[:2]
    run.sock.close()
    ask(run.sock)
    run.closes()
    ask(run.sock)
    assert run.sock.fileno() == -1


@datagram_law()
def an_unreferenced_datagram_socket_lets_run_end(run):
    run.turns(2)
    run.sock.unref()
    assert run.world.r.run() is True


@datagram_law('longest')
def a_datagram_that_is_too_long_is_refused_at_the_call(run):
    run.turns(2)
    with pytest.raises(ValueError):
        run.sock.send(bytes(run.longest + 1), run.target)
    assert not arrived(run.peer)


@datagram_law('refusal')
def a_peer_that_is_gone_is_reported_and_ends_nothing(run):
    run.turns(2)
    run.peer.close()
    run.sock.send(b'lost', run.target)
    run.until(lambda: run.rec.send_errors or run.rec.closed)
    run.sock.send(b'lost', run.target)
    run.turns(3)
    assert {exc.errno for exc in run.rec.send_errors} <= {errno.ECONNREFUSED, errno.ENOTCONN, errno.ENOENT}
    assert not run.sock.closed
    run.world.quiet()


@datagram_law('full', max_queued=20_000)
def datagrams_for_a_full_receiver_keep_their_order_and_the_newest_is_dropped(run):
    run.turns(2)
    kept = []
    while run.sock.send(b'%05d' % len(kept) + bytes(200), run.target):
        kept.append(b'%05d' % len(kept) + bytes(200))
        assert len(kept) < 5000
    assert run.sock.queued and run.sock.buffered == run.sock.queued * 205
    run.world.quiet()
    run.turns(3)
    assert not run.rec.names
    got = []
    run.until(lambda: len(got) >= len(kept), lambda: got.extend(arrived(run.peer)))
    assert got == kept
    run.until(lambda: run.rec.names)
    assert run.rec.names == ['drain'] and not run.sock.queued


@datagram_law('full')
def waiting_datagrams_may_be_changed_and_are_counted_at_the_end(run):
    run.turns(2)
    data = bytearray(b'changed later')
    while not run.sock.queued:
        run.sock.send(data, run.target)
    data[:] = bytes(len(data))
    data.clear()
    got = []
    run.until(lambda: not run.sock.queued, lambda: got.extend(arrived(run.peer)))
    got += arrived(run.peer)
    assert set(got) == {b'changed later'}
    while not run.sock.queued:
        run.sock.send(b'never sent', run.target)
    run.sock.close()
    assert run.closes() is None
    assert run.rec.left == len(b'never sent')


@datagram_law()
def the_next_owner_of_the_number_of_a_lost_datagram_socket_is_not_hurt(run):
    run.turns(2)
    fd = run.sock.fileno()
    foreign = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(foreign, fd)
    os.close(foreign)
    assert run.sock.send(b'lost', run.target) is False
    exc = run.closes()
    assert isinstance(exc, OSError) and exc.errno == errno.EBADF
    os.close(fd)


# -- the tests: every law on every kind


def runs(fn, kind):
    return not [need for need in fn.needs if need in kind.cannot]


CASES = [(fn, kind) for fn in LAWS for kind in KINDS if runs(fn, kind)]
CASES += [(fn, kind) for fn in DATAGRAM_LAWS for kind in DATAGRAM_KINDS if runs(fn, kind)]
SELECTORS = ('default', 'poll', 'select')


def applies(fn, options):
    """Return whether a law can run with these options.

    The law must not set the same options itself. A law with a simulated clock cannot have further time limits.
    """
    return not set(fn.given) & set(options) and not (fn.clock and any('timeout' in name for name in options))


def chosen():
    """Choose the options for each law and kind in the short run.

    A third of the pairs have no options. The other pairs take the options in turn, so that each option is used.
    """
    found = {}
    for kind in (*KINDS, *DATAGRAM_KINDS):
        left = settings_of(kind)
        for number, fn in enumerate(fn for fn, other in CASES if other is kind):
            options = {} if number % 3 == 0 else next(each for each in left if applies(fn, each))
            found[fn, kind] = options
            if options:
                left.remove(options)
                left.append(options)
    return found


CHOSEN = chosen()


def variants(fn, kind, whole):
    """Generate (selector, debug, options) for one run or, with `whole`, for all runs."""
    if not whole:
        number = CASES.index((fn, kind))
        yield SELECTORS[number // 2 % 3], number % 2 == 1, CHOSEN[fn, kind]
        return
    for number, options in enumerate([{}, *settings_of(kind)]):
        if applies(fn, options):
            for selector in SELECTORS:
                yield selector, number % 2 == 1, options


@pytest.fixture(scope='module')
def contexts(certificates):  # noqa: F811
    return certificates.server(), certificates.client()


@pytest.fixture(scope='module')
def file_to_send(tmp_path_factory):
    path = tmp_path_factory.mktemp('kinds') / 'file'
    path.write_bytes(payload(BIG, 8))
    return path


# These kinds differ from other kinds only in their addresses, or in how they are made, and run only
# with `--slow`.
ALIKE = (
    'tcp6',
    'tcp-mapped',
    'tls-tcp6',
    'vsock-adopted',
    'tls-vsock',
    'tcp4-adopted',
    'unix-proxied',
    'tls-socketpair',
)


def case(fn, kind):
    marks = pytest.mark.slow if repr(kind).startswith(ALIKE) else ()
    return pytest.param(fn, kind, marks=marks, id=f'{fn.__name__}-{kind}')


@pytest.mark.parametrize(('fn', 'kind'), [case(fn, kind) for fn, kind in CASES])
def test_a_law_holds(fn, kind, contexts, file_to_send, request):
    for selector, debug, options in variants(fn, kind, request.config.getoption('--kinds-whole')):
        world = World(contexts, selector, debug, fn.clock)
        world.path = file_to_send
        try:
            made = DatagramRun if fn in DATAGRAM_LAWS else Run
            fn(made(kind, world, called({**options, **fn.given}), fn.callbacks))
            world.end()
        except BaseException as exc:
            world.close()
            exc.add_note(f'{kind} on the {selector} selector, debug={debug}, with {options}')
            raise


# -- descriptors for `watch_fd`: pipes, FIFOs and ttys

WATCHED = ('pipe', 'fifo', 'socketpair', 'tty', 'tty-master')


class Watched:
    """A watched descriptor, its other end, and the reported events."""

    def __init__(self, r, name, folder):
        self.ours, self.theirs = watched_kinds(str(folder))[name]()
        os.set_blocking(self.ours, False)
        self.r, self.reported = r, []
        self.handle = r.watch_fd(self.ours, READ, self.ready, 'argument')

    def ready(self, handle, events, argument):
        assert handle is self.handle and argument == 'argument' and repr(handle)
        try:
            data = os.read(self.ours, 1 << 20) if events == READ else 'writable'
        except BlockingIOError:
            return
        except OSError as exc:
            assert exc.errno == errno.EIO  # this is how a tty reports that the other end is gone
            data = b''
        self.reported.append(data)
        if not data:
            handle.close()

    def end(self):
        self.handle.close()
        os.close(self.ours)
        if self.theirs >= 0:
            os.close(self.theirs)

    def hang_up(self):
        os.close(self.theirs)
        self.theirs = -1


@pytest.fixture(params=WATCHED)
def watched(r, request, tmp_path):
    made = Watched(r, request.param, tmp_path)
    yield made
    made.end()


def test_a_watched_descriptor_is_reported_in_a_turn_and_at_its_end(r, watched):
    os.write(watched.theirs, b'hello')
    assert not watched.reported
    run_until(r, lambda: watched.reported)
    assert watched.reported == [b'hello']
    watched.hang_up()
    run_until(r, lambda: watched.handle.closed)
    assert watched.reported == [b'hello', b'']
    watched.handle.close()
    with pytest.raises(HandleClosed):
        watched.handle.set_events(READ)
    os.fstat(watched.ours)  # the descriptor stays open


def test_unwanted_events_of_a_watched_descriptor_do_not_wake_the_loop(r, watched):
    watched.handle.set_events(0)
    os.write(watched.theirs, b'later')
    assert idle(r)
    if os.isatty(watched.ours):
        watched.handle.set_events(READ)  # a tty drops unread bytes when the other end is closed
        run_until(r, lambda: watched.reported)
        watched.handle.set_events(0)
    watched.hang_up()
    assert idle(r)
    watched.handle.set_events(READ)
    run_until(r, lambda: watched.handle.closed)
    assert watched.reported == [b'later', b'']


def test_a_watched_descriptor_may_be_unreferenced_and_hurts_no_other_when_its_callback_raises(r, watched, caplog):
    watched.handle.unref()
    assert r.run() is True
    watched.handle.ref()

    def fail(handle, events, argument):
        raise Problem('watch')

    watched.handle.fn = fail
    os.write(watched.theirs, b'x')
    run_until(r, lambda: watched.handle.closed)
    assert 'Problem: watch' in caplog.text
    assert idle(r)


def test_the_output_of_a_child_on_a_tty_arrives_at_the_other_end(r, tmp_path):
    watched = Watched(r, 'tty-master', tmp_path)
    child = r.spawn(
        ['sh', '-c', 'read line; test -t 0 && echo "$line again"'], stdin=watched.theirs, stdout=watched.theirs
    )
    os.write(watched.ours, b'once\n')
    run_until(r, lambda: child.closed)
    watched.hang_up()
    run_until(r, lambda: watched.handle.closed)
    assert b''.join(watched.reported) == b'once again\n'
    watched.end()


# -- child processes with all their pipes


def test_a_child_on_a_socket_pair_echoes_both_ways_at_once(r):
    ours, theirs = socket.socketpair()
    data, got, ends = payload(BIG, 12), bytearray(), []
    conn = r.adopt(ours, lambda conn, data: got.extend(data), on_close=lambda conn, exc: ends.append(exc))
    with theirs:
        child = r.spawn(['cat'], stdin=theirs, stdout=theirs)
    conn.write(data)
    conn.write_eof()
    run_until(r, lambda: ends and child.closed, 60)
    assert got == data and ends == [None]


def test_a_child_on_three_pipes_echoes_both_ways_at_once(r):
    data, got, ends = payload(BIG, 13), {'stdout': bytearray(), 'stderr': bytearray()}, []
    child = r.spawn(['sh', '-c', 'tee /dev/stderr'], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    for name, pieces in got.items():
        pipe = getattr(child, name)
        pipe.on_data = lambda pipe, data, pieces=pieces: pieces.extend(data)
    for pipe in child.stdin, child.stdout, child.stderr:
        pipe.on_close = lambda pipe, exc: ends.append(exc)
    child.stdin.write(data)
    child.stdin.close()
    run_until(r, lambda: len(ends) == 3 and child.closed, 60)
    assert got == {'stdout': data, 'stderr': data} and ends == [None] * 3


# -- before the connection is open


@pytest.mark.parametrize('kind', [kind for kind in KINDS if 'connect' not in kind.cannot], ids=repr)
@pytest.mark.parametrize('debug', [False, True])
def test_bytes_written_before_the_connection_is_made_are_sent_first(kind, debug, contexts):
    world = World(contexts, debug=debug)
    rec = Recorder(world)
    rec.conn, server = kind.begin(world, rec.callbacks(), {})
    conn, changed, large = rec.conn, bytearray(b'two '), payload(STALL, 14)
    rec.does['connect'] = lambda conn: conn.write(b'last', rec.on_written, 4)
    repr(conn), conn.peername, conn.sockname
    assert conn.state == 'CONNECTING' and not conn.closed
    conn.write(b'one ', rec.on_written, 1)
    conn.write(changed, rec.on_written, 2)
    changed[:] = bytes(len(changed))
    conn.write(b'', rec.on_written, 3)
    assert conn.write(large) is False
    assert not rec.names and conn.buffered == 8 + len(large)
    peer = kind.accept(world, server)
    expected = b'one two ' + large + b'last'
    world.until(lambda: len(peer.got) >= len(expected), lambda: peer.take(300_000))
    assert peer.got == expected
    world.until(lambda: len(rec.written) == 4)
    assert rec.written == [1, 2, 3, 4] and rec.names[0] == 'connect'
    del conn
    world.end()


@pytest.mark.parametrize('kind', [kind for kind in KINDS if 'connect' not in kind.cannot], ids=repr)
@pytest.mark.parametrize('how', ['close', 'abort'])
def test_a_close_before_the_connection_is_made_is_reported_without_on_connect(kind, how, contexts):
    world = World(contexts)
    rec = Recorder(world)
    rec.conn, server = kind.begin(world, rec.callbacks(eof=True), {})
    rec.conn.write(b'never sent', rec.on_written, 'never')
    getattr(rec.conn, how)()
    with pytest.raises(ConnectionClosed):
        rec.conn.write(b'too late')
    assert rec.conn.closed and not rec.names
    world.turns(3)
    assert rec.names == ['close'] and rec.exc is None and rec.left == 10
    server.close()
    world.end()


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind.tls], ids=repr)
def test_a_handshake_that_takes_too_long_is_reported_without_on_connect(kind, contexts):
    world = World(contexts, fake_clock=True)
    rec = Recorder(world)
    options = {'handshake_timeout': 2.5}
    if kind.call == 'adopt':
        ours, theirs = kind.pair()
        callbacks = {name: fn for name, fn in rec.callbacks().items() if name != 'on_connect'}
        rec.conn = world.r.adopt(ours, **callbacks)
        name = None if kind.server_side else 'localhost'
        rec.conn.start_tls(contexts[0 if kind.server_side else 1], server_hostname=name, **options)
        server = theirs
    elif 'connect' in kind.cannot:
        listener = kind.listen(world, rec.callbacks(), options)
        server = kind.dial(listener)
        world.turns(3)
        listener.close()
    else:
        rec.conn, server = kind.begin(world, rec.callbacks(), options)
    began = world.kernel.time
    while not rec.closed:
        assert world.kernel.time < began + 5
        world.turn(0.25)
    assert isinstance(rec.exc, HandshakeTimeout) and world.kernel.time >= began + 2.5
    assert rec.names == ['close']
    server.close()
    world.end()


# -- listeners


@pytest.mark.parametrize('mode', [0o600, 0o666, 0])
def test_a_mode_is_applied(r, tmp_path, mode):
    path = str(tmp_path / 'socket')
    listener = r.listen_unix(path, mode=mode)
    assert os.stat(path).st_mode & 0o7777 == mode
    listener.close()
    assert not os.path.exists(path)


@pytest.mark.parametrize('host', ['127.0.0.1', '::1', None])
@pytest.mark.parametrize('limits', [{}, {'connections': 1}])
def test_clients_beyond_max_connections_wait_in_the_backlog(r, host, limits):
    served = []
    options = {'limits': Limits(**limits)} if limits else {}
    listener = r.listen_tcp(host, 0, on_connect=served.append, max_connections=1, **options)
    where = (host or '127.0.0.1', listener.address[1])
    clients = [socket.create_connection(where) for _ in range(3)]
    for count in 1, 2, 3:
        run_until(r, lambda count=count: len(served) == count)
        assert idle(r)
        assert len(served) == count and listener.open_connections == 1
        served[-1].abort()
        turns(r, 2)
    listener.close()
    for client in clients:
        client.close()


def test_two_listeners_share_a_port_with_reuse_port(r):
    first = r.listen_tcp('127.0.0.1', 0, reuse_port=True)
    second = r.listen_tcp('127.0.0.1', first.address[1], reuse_port=True)
    with pytest.raises(OSError):
        r.listen_tcp('127.0.0.1', first.address[1])
    first.close()
    second.close()


@pytest.mark.skipif(not hasattr(socket, 'AF_VSOCK'), reason='this Python has no AF_VSOCK')
def test_a_listener_on_the_real_af_vsock_has_its_address_and_closes_cleanly(r):
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as exc:
        pytest.skip(f'this kernel has no AF_VSOCK: {exc}')
    try:
        sock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    except OSError as exc:
        sock.close()
        pytest.skip(f'this kernel has no transport for AF_VSOCK: {exc}')
    listener = r.listen_tcp(None, 0, sock=sock)
    assert listener.address == sock.getsockname()
    assert str(listener.address[1]) in repr(listener)
    assert idle(r)
    listener.close()
    assert listener.address is None


@pytest.mark.parametrize('proxied', [False, True])
def test_a_client_of_af_vsock_is_admitted_without_an_address(r, proxied):
    """Limits for addresses do not count the client, and networks do not contain it. The socket is a stand-in."""
    sock = VsockSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(f'\0vsock of {os.getpid()}')
    received, options = [], {'proxy_protocol': ['0.0.0.0/0', '::/0']} if proxied else {}
    limits = Limits(per_address=0, connect_rate=(0.001, 1), refuse=lambda address: True)
    listener = r.listen_tcp(None, 0, sock=sock, on_connect=received.append, limits=limits, **options)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f'\0vsock of {os.getpid()}')
        if proxied:
            run_until(r, lambda: r.stats().refused_untrusted)
        else:
            run_until(r, lambda: received)
            assert received[0].peername == VsockSocket.theirs
            received[0].abort()
    turns(r, 3)
    assert not limits._clients
    listener.close()


# -- the tables of kinds and options are complete


def test_every_option_has_values_at_its_limits():
    missing = {(kind.name, name) for kind in (*KINDS, *DATAGRAM_KINDS) for name in kind.options() if name not in VALUES}
    assert not missing, f'add values to kinds.VALUES for the new options: {missing}'


def test_each_kind_is_tested_with_each_of_its_options_in_the_short_run():
    met = {}
    for fn, kind in CASES:
        for _, _, options in variants(fn, kind, False):
            met.setdefault(kind.name, set()).update(options)
    for kind in (*KINDS, *DATAGRAM_KINDS):
        wanted = {name for options in settings_of(kind) for name in options}
        assert wanted <= met[kind.name], (kind, wanted - met[kind.name])


def test_every_gap_has_a_reason_and_every_reason_a_gap():
    needs = {need for fn in (*LAWS, *DATAGRAM_LAWS) for need in fn.needs}
    needs.add('connect')  # needed by the tests of connections that are not open yet
    for kind in (*KINDS, *DATAGRAM_KINDS):
        for what, reason in kind.cannot.items():
            assert what in needs, f'no law needs {what!r}, which {kind} lacks'
            assert len(reason) > 10
    for fn in (*LAWS, *DATAGRAM_LAWS):
        table = DATAGRAM_KINDS if fn in DATAGRAM_LAWS else KINDS
        assert [kind for kind in table if runs(fn, kind)], f'no kind is left for {fn.__name__}'


@pytest.mark.parametrize('name', ['stdin', 'stdout', 'stderr'])
def test_operations_that_a_pipe_lacks_are_refused(r, name):
    child = r.spawn(['cat'], **{'stdin': PIPE, name: PIPE})
    pipe = getattr(child, name)
    for call in pipe.start_tls, lambda: r.spawn(['cat'], stdin=PIPE, nodelay=False):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError):
        pipe.set_timeouts(**{'read' if name == 'stdin' else 'write': 5})
    if name != 'stdin':
        with pytest.raises(ConnectionClosed):
            pipe.write(b'x')
        with pytest.raises(ConnectionClosed):
            pipe.writelines([b'x'])
    child.close()
    run_until(r, lambda: not r.handles())
