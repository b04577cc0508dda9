"""Open streams: reading, writing, back-pressure, time limits, callbacks and their exceptions, attributes."""

from __future__ import annotations

import array
import contextlib
import errno
import inspect
import os
import socket
import sys
import threading
from collections import deque
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE

import pytest

from reactor import (
    ConnectionClosed,
    IdleTimeout,
    Reactor,
    ReactorError,
    ReadTimeout,
    Stream,
    WriteBufferFull,
    WriteTimeout,
)
from reactor.loop.buckets import Buckets
from reactor.loop.watcher import Watchers
from reactor.net.sending import Sender
from reactor.net.writer import MARKS_PER_SEND
from tests.helpers.support import (
    FakeKernel,
    Log,
    drain,
    end,
    fill,
    idle,
    pair,
    read_all,
    reset,
    run_short,
    run_until,
    tcp_sockets,
    turns,
    uncallable,
)


def flood(conn, data=b'\xff' * 100_000):
    """Write until `write` returns False."""
    while conn.write(data):
        pass


# -- reading


def test_data_arrives_as_bytes_on_the_connection(r, sockets):
    seen = []
    conn, theirs = pair(r, sockets, on_data=lambda *args: seen.append(args))
    theirs.send(b'hello')
    run_until(r, lambda: seen)
    assert seen == [(conn, b'hello')]
    assert type(seen[0][1]) is bytes
    end(r, conn)


def test_without_on_data_bytes_are_read_and_dropped(r, sockets):
    log = Log()
    _, theirs = pair(r, sockets, on_close=log.on_close)
    while r.stats().bytes_in < 1 << 20:
        fill(theirs)
        turns(r, 1)
    theirs.close()
    run_until(r, lambda: log)
    assert log == [('close', None)]


@pytest.mark.scenario(59)
def test_a_connection_is_read_once_a_turn_however_much_data_waits(r, sockets):
    conn, theirs = pair(r, sockets)
    other, theirs_2 = pair(r, sockets)
    fill(theirs)
    theirs_2.send(b'x')
    turns(r, 1)
    assert r.stats().reads == 2
    assert r.stats().bytes_in <= 65537
    end(r, conn, other)


@pytest.mark.scenario(59)
def test_read_size_bounds_a_chunk(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_data=log.on_data, read_size=10)
    theirs.send(b'x' * 25)
    run_until(r, lambda: len(log.received) == 25)
    assert [len(data) for _, data in log] == [10, 10, 5]
    end(r, conn)


@pytest.mark.scenario(69)
def test_pause_inside_on_data_stops_at_once_and_nothing_is_lost(r, sockets):
    log = Log()

    def on_data(conn, data):
        log.on_data(conn, data)
        conn.pause_reading()

    conn, theirs = pair(r, sockets, on_data=on_data, read_size=4)
    theirs.send(b'0123456789')
    turns(r, 5)
    assert log.received == b'0123'
    assert idle(r)
    conn.resume_reading()
    turns(r, 5)
    assert log.received == b'01234567'
    conn.on_data = log.on_data
    conn.resume_reading()
    run_until(r, lambda: log.received == b'0123456789')
    end(r, conn)


@pytest.mark.scenario(69)
def test_pausing_and_resuming_twice_is_the_same_as_once(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_data=log.on_data)
    conn.pause_reading()
    conn.pause_reading()
    theirs.send(b'x')
    assert idle(r)
    conn.resume_reading()
    conn.resume_reading()
    run_until(r, lambda: log.received == b'x')
    end(r, conn)


def test_a_pause_by_another_callback_of_the_batch_holds(r, sockets):
    """Two connections are ready in one batch. The first pauses the second, which must not be read after that."""
    conns, readers = [], []

    def on_data(conn, data):
        readers.append(conn)
        for other in conns:
            if other is not conn:
                other.pause_reading()

    made = [pair(r, sockets, on_data=on_data) for _ in range(2)]
    conns += [conn for conn, _ in made]
    for _, theirs in made:
        theirs.send(b'x')
    turns(r, 3)
    assert len(readers) == 1
    end(r, *conns)


@pytest.mark.scenario(69)
def test_pause_and_resume_of_a_closed_connection_do_nothing(r, sockets):
    conn, _ = pair(r, sockets)
    end(r, conn)
    conn.pause_reading()
    conn.resume_reading()
    assert r.handles() == []


def test_writing_goes_on_while_reading_is_paused(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_data=log.on_data)
    conn.pause_reading()
    conn.write(b'out', log.on_written)
    theirs.send(b'in')
    run_until(r, lambda: log)
    assert (log, drain(theirs)) == ([('written',)], b'out')
    end(r, conn)


@pytest.mark.scenario(76)
@pytest.mark.skipif(not hasattr(socket, 'MSG_OOB'), reason='this platform has no urgent data')
def test_an_urgent_byte_is_ignored_and_the_other_bytes_arrive(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, on_data=log.on_data)
    theirs.send(b'before')
    theirs.send(b'!', socket.MSG_OOB)
    theirs.send(b'after')
    run_until(r, lambda: log.received == b'beforeafter')
    assert idle(r)
    end(r, conn)


@pytest.mark.scenario(118)
def test_a_memory_error_while_reading_ends_that_connection_only(scripted, caplog):
    r, make = scripted
    log = Log()
    _, sock = make(on_close=log.on_close)
    other, other_sock = make(on_data=log.on_data)
    sock.incoming.append(MemoryError())
    other_sock.incoming.append(b'x')
    turns(r, 2)
    assert sorted(log.names()) == ['close', 'data']
    assert isinstance(dict(log)['close'], MemoryError)
    assert not other.closed


# -- writing


def test_write_returns_true_and_calls_on_written_when_the_kernel_has_the_data(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets)
    assert conn.write(b'hello', log.on_written, 1, 'two') is True
    assert log == []
    turns(r, 1)
    assert log == [('written', 1, 'two')]
    assert drain(theirs) == b'hello'
    assert conn.buffered == 0
    end(r, conn)


@pytest.mark.scenario(56)
def test_on_written_comes_in_the_order_of_the_writes_and_once(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets)
    expected = b''
    for i in range(50):
        data = bytes([i]) * (i * 2000)
        conn.write(data, log.on_written, i)
        expected += data
    received = bytearray()
    run_until(r, lambda: received.extend(drain(theirs)) or len(received) == len(expected))
    turns(r, 2)
    assert received == expected
    assert log == [('written', i) for i in range(50)]
    end(r, conn)


@pytest.mark.scenario(56)
def test_on_written_waits_for_its_own_last_byte(scripted):
    r, make = scripted
    log = Log()
    conn, sock = make()
    sock.outcomes = deque([3])
    conn.write(b'hello', log.on_written, 'hello')
    conn.write(b'world', log.on_written, 'world')
    for outcome, written in (1, []), (1, ['hello']), (4, ['hello']), (BlockingIOError(), ['hello']), (1, None):
        sock.outcomes.append(outcome)
        turns(r, 1)
        assert [name for _, name in log] == (['hello', 'world'] if written is None else written)
    assert sock.sent == b'helloworld'


@pytest.mark.scenario(56)
def test_bytes_sent_one_by_one_stay_in_order(scripted):
    r, make = scripted
    conn, sock = make()
    sock.outcomes = deque([1] * 10)
    conn.write(b'0123')
    conn.writelines([b'45', b'', bytearray(b'67')])
    conn.write(memoryview(b'89'))
    assert conn.buffered == 9
    turns(r, 10)
    assert (sock.sent, conn.buffered) == (b'0123456789', 0)


@pytest.mark.scenario(65)
def test_an_empty_write_is_reported_in_order(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets)
    conn.write(b'', log.on_written, 1)
    conn.write(b'x', log.on_written, 2)
    flood(conn)
    conn.write(b'', log.on_written, 3)
    turns(r, 2)
    assert log == [('written', 1), ('written', 2)]
    run_until(r, lambda: drain(theirs) is not None and conn.buffered == 0)
    turns(r, 1)
    assert log[-1] == ('written', 3)
    end(r, conn)


@pytest.mark.scenario(65)
@pytest.mark.parametrize('write', ['write', 'bytearray', 'writelines', 'writelines_of_nothing'])
def test_an_empty_write_makes_no_system_call(scripted, write):
    r, make = scripted
    log = Log()
    conn, sock = make()
    if write == 'write':
        assert conn.write(b'', log.on_written)
    elif write == 'bytearray':
        assert conn.write(bytearray(), log.on_written)
    else:
        assert conn.writelines([b''] if write == 'writelines' else [], log.on_written)
    turns(r, 1)
    assert log == [('written',)]
    assert sock.calls == []


@pytest.mark.scenario(65)
@pytest.mark.parametrize('data', ['text', None, 5, [b'x'], array.array('b')])
def test_writing_anything_but_bytes_raises_type_error_at_the_call(r, sockets, data):
    conn, theirs = pair(r, sockets)
    for write in conn.write, lambda data: conn.writelines([b'x', data]):
        with pytest.raises(TypeError, match='bytes, bytearray or memoryview'):
            write(data)
    turns(r, 1)
    assert conn.buffered == 0
    assert drain(theirs) == b''
    end(r, conn)


def test_a_callback_that_is_not_callable_is_refused_before_anything_is_sent(r, sockets):
    conn, theirs = pair(r, sockets)
    with pytest.raises(TypeError):
        conn.write(b'x', 'not callable')
    turns(r, 1)
    assert drain(theirs) == b''
    end(r, conn)


def test_writelines_is_one_system_call(scripted):
    r, make = scripted
    log = Log()
    conn, sock = make()
    assert conn.writelines([b'a' * 5000, b'b', bytearray(b'c'), memoryview(b'd')], log.on_written, 7) is True
    assert sock.calls == ['send']
    assert sock.sent == b'a' * 5000 + b'bcd'
    turns(r, 1)
    assert log == [('written', 7)]


@pytest.mark.scenario(58)
def test_a_connection_is_written_once_a_turn_however_fast_its_reader(scripted):
    r, make = scripted
    conn, sock = make(max_buffered=1 << 30)
    sock.outcomes = deque()
    for _ in range(200):
        conn.write(bytes(10_000))
    sock.calls.clear()
    sock.outcomes = None
    turns(r, 1)
    assert sock.calls == ['send']
    assert conn.buffered


@pytest.mark.scenario(62)
@pytest.mark.parametrize('kind', [bytearray, lambda data: memoryview(bytearray(data))])
@pytest.mark.parametrize('write', ['write', 'writelines'])
def test_a_buffer_may_be_changed_after_the_write(r, sockets, kind, write):
    conn, theirs = pair(r, sockets)
    flood(conn)
    waiting = conn.buffered
    small, large = kind(b'a' * 10), kind(b'b' * 10_000)
    for data in small, large:
        conn.write(data) if write == 'write' else conn.writelines([data])
        memoryview(data)[:] = b'!' * len(data)
    assert conn.buffered == waiting + 10_010
    conn.write_eof()
    conn.on_eof = None
    received = read_all(r, theirs)
    assert received.endswith(b'\xff' + b'a' * 10 + b'b' * 10_000)
    end(r, conn)


@pytest.mark.scenario(62)
@pytest.mark.parametrize('kind', [bytearray, lambda data: memoryview(bytearray(data))])
def test_a_buffer_sent_in_part_may_be_changed_after_the_write(scripted, kind):
    r, make = scripted
    conn, sock = make()
    sock.outcomes = deque([4])
    data = kind(b'0123456789')
    conn.write(data)
    memoryview(data)[:] = b'!' * 10
    sock.outcomes = None
    turns(r, 1)
    assert sock.sent == b'0123456789'


def test_bytes_that_wait_are_kept_by_reference(scripted):
    import sys

    _, make = scripted
    conn, sock = make()
    sock.outcomes = deque([1])
    data = bytes(100_000)
    before = sys.getrefcount(data)
    conn.write(data)
    assert conn.buffered == 99_999
    assert sys.getrefcount(data) > before


def test_a_memoryview_counts_its_bytes_not_its_items(r, sockets):
    conn, theirs = pair(r, sockets)
    wide = array.array('I', [1, 2, 3])
    square = memoryview(bytes(range(16))).cast('B', (4, 4))
    strided = memoryview(b'0123456789')[::3]
    conn.write(memoryview(wide))
    conn.write(square)
    conn.writelines([strided])
    run_until(r, lambda: not conn.buffered)
    assert drain(theirs) == wide.tobytes() + bytes(range(16)) + b'0369'
    end(r, conn)


def test_a_view_in_fortran_order_is_written_as_its_bytes(r, sockets):
    testbuffer = pytest.importorskip('_testbuffer')
    conn, theirs = pair(r, sockets)
    view = memoryview(testbuffer.ndarray(list(range(6)), shape=[2, 3], format='B', flags=testbuffer.ND_FORTRAN))
    assert view.contiguous and not view.c_contiguous
    conn.write(view)
    conn.writelines([view, b'|'])
    run_until(r, lambda: not conn.buffered)
    assert drain(theirs) == bytes(view) * 2 + b'|'
    end(r, conn)


@pytest.mark.parametrize('buffers', [b'abc', 'abc', 5, None, bytearray(b'x')], ids=repr)
def test_writelines_refuses_a_single_buffer_and_other_values(r, sockets, buffers):
    conn, _ = pair(r, sockets)
    with pytest.raises(TypeError, match=r'writelines\(\) takes a list of buffers'):
        conn.writelines(buffers)
    end(r, conn)


def test_the_error_for_text_says_how_to_encode_it(r, sockets):
    conn, _ = pair(r, sockets)
    with pytest.raises(TypeError, match=r"not 'hello'; encode text first: text\.encode\(\)"):
        conn.write('hello')
    end(r, conn)


def test_unread_can_be_read_while_connecting_and_after_the_end(r):
    server = r.listen_tcp('127.0.0.1', 0)
    conn = r.connect_tcp(*server.address)
    assert conn.unread is False
    closed = r.connect_tcp(*server.address)
    closed.close()
    assert closed.unread is False
    run_until(r, lambda: conn.state == 'OPEN')
    assert conn.unread is False
    conn.abort()
    assert conn.unread is False
    turns(r, 2)
    assert conn.unread is False and closed.unread is False
    server.close()
    run_until(r, lambda: not r.handles())


@pytest.mark.scenario(63)
def test_ten_megabytes_in_one_write_arrive(r, sockets):
    log = Log()
    data = os.urandom(1 << 20) * 10
    conn, theirs = pair(r, sockets, tcp=True)
    conn.write(data, log.on_written)
    conn.close()
    assert read_all(r, theirs) == data
    theirs.close()
    run_until(r, lambda: conn.state == 'CLOSED')
    turns(r, 1)
    assert log == [('written',)]


@pytest.mark.scenario(63)
def test_large_writes_are_not_copied_for_each_send(scripted):
    """Ten megabytes are sent in small steps. Copying the rest after each step would move tens of gigabytes."""
    r, make = scripted
    conn, sock = make()
    sock.outcomes = deque()
    seen = []
    conn.write(bytes(10 << 20))
    sock.sendmsg = lambda buffers: seen.append(sum(map(len, buffers))) or 4096
    sock.outcomes = None
    turns(r, 2560)
    assert seen == list(range(10 << 20, 0, -4096))
    assert conn.buffered == 0
    del sock.sendmsg


@pytest.mark.scenario(63)
def test_a_hundred_thousand_tiny_writes_are_gathered(scripted):
    r, make = scripted
    conn, sock = make()
    sock.outcomes = deque()
    calls = []
    for i in range(100_000):
        conn.write(bytes([i & 255]), lambda conn, i: calls.append(i), i)
    assert conn.buffered == 100_000
    sock.calls.clear()
    sock.outcomes = None
    sends = -(-100_000 // MARKS_PER_SEND)
    turns(r, sends + 1)
    assert sock.sent == bytes(i & 255 for i in range(100_000))
    assert sock.calls.count('send') == sends
    assert calls == list(range(100_000))


@pytest.mark.scenario(57)
def test_writes_from_callbacks_chain_without_growing_the_stack(scripted):
    r, make = scripted
    conn, sock = make()
    depths = []
    left = 100_000

    def again(conn):
        nonlocal left
        left -= 1
        if left % 10_000 == 0:
            depths.append(len(inspect.stack(0)))
        if left:
            conn.write(b'x', again)
        else:
            conn.abort()

    conn.write(b'x', again)
    r.run()
    assert len(sock.sent) == 100_000
    assert len(depths) == 10
    assert len(set(depths)) == 1


@pytest.mark.scenario(57)
def test_no_callback_runs_inside_a_call(r, sockets):
    inside = False
    calls = []

    def note(name, *args):
        assert not inside, name
        calls.append(name)

    callbacks = {name: partial(note, name) for name in ('on_data', 'on_eof', 'on_drain', 'on_close', 'on_error')}
    conn, theirs = pair(r, sockets, high_water=1, low_water=0, **callbacks)

    def call(fn, *args):
        nonlocal inside
        inside = True
        fn(*args)
        inside = False

    call(conn.write, b'x', partial(note, 'on_written'))
    call(conn.write, bytes(1 << 20), partial(note, 'on_written'))
    theirs.send(b'x')
    call(conn.pause_reading)
    call(conn.resume_reading)
    run_until(r, lambda: drain(theirs) is not None and not conn.buffered)
    turns(r, 3)
    call(conn.write_eof)
    call(conn.close)
    call(conn.abort)
    turns(r, 2)
    assert sorted(calls) == ['on_close', 'on_data', 'on_drain', 'on_written', 'on_written']


def test_an_exception_in_one_on_written_does_not_prevent_the_next(r, sockets):
    log = Log()
    conn, _ = pair(r, sockets, on_error=log.on_error)
    conn.write(b'a', lambda conn: 1 / 0)
    conn.write(b'b', log.on_written)
    turns(r, 2)
    assert log.names() == ['error', 'written']
    end(r, conn)


# -- back-pressure


@pytest.mark.scenario(60)
def test_write_returns_false_at_the_high_mark_and_on_drain_is_called_at_the_low_mark(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_drain=log.on_drain)
    while conn.write(b'x' * 1000):
        assert conn.buffered < 65536
    assert conn.buffered >= 65536
    turns(r, 3)
    assert log == []
    run_until(r, lambda: drain(theirs) is not None and log)
    assert log == [('drain',)]
    assert conn.buffered <= 16384
    end(r, conn)


def test_on_drain_is_also_called_when_a_later_write_reached_the_mark(scripted):
    r, make = scripted
    log = Log()
    conn, sock = make(on_drain=log.on_drain)
    sock.outcomes = deque()
    assert conn.write(bytes(1000)) is True
    assert conn.write(bytes(70_000)) is False
    sock.outcomes = None
    turns(r, 3)
    assert conn.buffered == 0
    assert log == [('drain',)]


@pytest.mark.scenario(61)
@pytest.mark.parametrize('kind', [bytes, bytearray, 'writelines'])
def test_every_way_to_write_respects_the_marks(scripted, kind):
    r, make = scripted
    log = Log()
    conn, sock = make(on_drain=log.on_drain, high_water=100, low_water=10)
    sock.outcomes = deque()
    if kind == 'writelines':
        assert conn.writelines([bytes(50), bytes(49)]) is True
        assert conn.writelines([b'', b'x']) is False
    else:
        assert conn.write(kind(99)) is True
        assert conn.write(kind(1)) is False
    sock.outcomes.append(89)
    turns(r, 2)
    assert log == []
    sock.outcomes.append(1)
    turns(r, 2)
    assert (log, conn.buffered) == ([('drain',)], 10)


@pytest.mark.scenario(61)
def test_the_first_write_that_waits_respects_the_mark(scripted):
    _, make = scripted
    log = Log()
    for size, fits in (99, True), (100, False):
        conn, sock = make(on_drain=log.on_drain, high_water=100, low_water=10)
        sock.outcomes = deque()
        assert conn.write(bytes(size)) is fits
        conn, sock = make(on_drain=log.on_drain, high_water=100, low_water=10)
        sock.outcomes = deque()
        assert conn.writelines([bytes(size)]) is fits


def test_on_drain_is_not_called_when_the_mark_is_reached_again(scripted):
    """Another callback fills the buffer after it was flushed, so `on_drain` is called only after the next flush."""
    r, make = scripted
    log = Log()
    conn, sock = make(on_drain=log.on_drain, high_water=100, low_water=10)
    sock.outcomes = deque()
    conn.write(bytes(100))
    sock.outcomes.append(100)
    r.call_soon(lambda: log.append(('write', conn.write(bytes(200)))))
    turns(r, 2)
    assert log == [('write', False)]
    sock.outcomes.append(200)
    turns(r, 2)
    assert log == [('write', False), ('drain',)]


def test_a_stream_that_is_filled_again_in_on_drain_stays_registered_for_writing(r, sockets, monkeypatch):
    ours, theirs = sockets()
    asked = []
    modify = r.watchers.selector.modify
    monkeypatch.setattr(r.watchers.selector, 'modify', lambda fd, *args: (asked.append(args[0]), modify(fd, *args)))

    def pump(conn):
        while not conn.closed and rounds and conn.write(b'x' * 65536):
            pass

    rounds = 20
    conn = r.adopt(ours, on_drain=pump)
    pump(conn)
    assert asked == [EVENT_READ | EVENT_WRITE]
    while rounds > 1:
        rounds -= 1
        before = r.counters.writes
        drain(theirs)
        run_until(r, lambda before=before: r.counters.writes > before)
    assert asked == [EVENT_READ | EVENT_WRITE]
    rounds = 0
    run_until(r, lambda: drain(theirs) == b'' and not conn.buffered)
    turns(r, 1)
    assert asked == [EVENT_READ | EVENT_WRITE, EVENT_READ]
    end(r, conn)


@pytest.mark.scenario(60)
def test_a_program_that_waits_for_on_drain_never_buffers_more_than_the_mark_and_one_write(r, sockets):
    sent = most = 0
    received = 0

    def pump(conn):
        nonlocal sent, most
        while sent < 3_000_000:
            sent += 10_000
            held = not conn.write(bytes(10_000))
            most = max(most, conn.buffered)
            if held:
                return

    conn, theirs = pair(r, sockets, on_drain=pump)
    pump(conn)

    def read():
        nonlocal received
        received += len(drain(theirs))
        return received == 3_000_000

    run_until(r, read)
    assert most < 65536 + 10_000
    end(r, conn)


def test_limits_can_be_set_for_one_connection(scripted):
    r, make = scripted
    log = Log()
    conn, sock = make(on_drain=log.on_drain)
    sock.outcomes = deque()
    conn.set_write_limits(high=10, low=0)
    assert conn.write(bytes(10)) is False
    sock.outcomes.append(9)
    turns(r, 2)
    assert log == []
    sock.outcomes.append(1)
    turns(r, 2)
    assert log == [('drain',)]
    for high, low in (10, 11), (-1, None), (5, -1):
        with pytest.raises(ValueError):
            conn.set_write_limits(high, low)


def test_with_a_high_mark_of_zero_each_write_that_waits_returns_false(scripted):
    _, make = scripted
    conn, sock = make(high_water=0)
    sock.outcomes = deque([5])
    assert conn.write(b'12345678') is False


@pytest.mark.scenario(60, 79)
def test_a_write_beyond_max_buffered_aborts_that_connection_only(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, on_close=log.on_close, max_buffered=100_000)
    assert conn.write(bytes(20 << 20), log.on_written) is False  # a single write can have any size
    assert not conn.closed
    assert conn.write(b'one more', log.on_written) is False
    assert conn.closed
    assert conn.write(b'another', log.on_written) is False
    assert log == []
    turns(r, 1)
    assert log.names() == ['close']
    exc = log[0][1]
    assert isinstance(exc, WriteBufferFull)
    assert 'on_drain' in str(exc) and str(theirs.getsockname()[1]) in str(exc)
    with pytest.raises(ConnectionResetError):
        while theirs.recv(1 << 20):
            pass


def test_write_callbacks_count_towards_max_buffered(scripted):
    """Without this limit, a million tiny writes to a stalled peer could leave a million callbacks waiting."""
    _, make = scripted
    conn, sock = make(max_buffered=10_000)
    sock.outcomes = deque()
    count = 0
    while not conn.closed:
        conn.write(b'x', print)
        count += 1
    assert count < 10_000


@pytest.mark.scenario(60)
def test_stalled_and_dead_subscribers_do_not_affect_a_publisher(r, sockets):
    log, good = Log(), Log()
    made = [pair(r, sockets, on_close=log.on_close, max_buffered=50_000, high_water=10_000) for _ in range(9)]
    subscribers = [conn for conn, _ in made]
    for _, theirs in made[3:6]:
        theirs.close()  # these subscribers are dead
    rounds = []
    received = [bytearray() for _ in range(3)]

    def publish():
        for conn in subscribers:
            if not conn.closed:
                conn.write(b'm' * 5000)  # this never raises, whatever the subscriber does
        rounds.append(1)
        for i in range(3):  # only these subscribers read; the last three stall
            received[i] += drain(made[i][1])
        if len(rounds) < 200:
            r.call_soon(publish)

    publish()
    run_until(r, lambda: len(rounds) == 200)
    turns(r, 3)
    assert good == []
    assert all(conn.closed for conn in subscribers[3:])
    assert not any(conn.closed for conn in subscribers[:3])
    assert [len(data) + conn.buffered for data, conn in zip(received, subscribers, strict=False)] == [1_000_000] * 3
    excs = [exc for _, exc in log]
    assert len(excs) == 6
    assert sum(isinstance(exc, WriteBufferFull) for exc in excs) == 3
    end(r, *subscribers)


@pytest.mark.scenario(79)
def test_stalled_readers_use_no_more_than_their_limit_and_end_at_the_write_timeout(kernel, fake, sockets):
    log = Log()
    conns = [pair(fake, sockets, on_close=log.on_close, write_timeout=5)[0] for _ in range(50)]
    for conn in conns:
        flood(conn)
    assert all(conn.buffered < 65536 + 100_000 for conn in conns)
    fake.run()
    assert len(log) == 50
    assert all(isinstance(exc, WriteTimeout) for _, exc in log)
    assert 5 <= kernel.time - 1000 <= 6


# -- time limits, on a clock that moves only while the loop waits


def test_a_silent_peer_times_out_never_early_and_at_most_a_second_late(kernel, fake, sockets):
    for start in 1000.0, 1100.3, 1200.999:
        kernel.time = start
        log = Log()
        pair(fake, sockets, on_close=log.on_close, read_timeout=5)
        fake.run()
        assert isinstance(log[0][1], ReadTimeout)
        assert isinstance(log[0][1], TimeoutError)
        assert start + 5 <= kernel.time <= start + 6


@pytest.mark.scenario(77)
@pytest.mark.parametrize('limit', ['read', 'idle'])
def test_every_byte_received_restarts_the_time_limit(kernel, fake, sockets, limit):
    log = Log()
    conn, theirs = pair(fake, sockets, on_close=log.on_close)
    conn.set_timeouts(**{limit: 5})
    for i in range(1, 11):
        fake.call_at(1000 + 4.5 * i, theirs.send, b'x')
    fake.run()
    assert 1045 + 5 <= kernel.time <= 1045 + 6
    assert isinstance(log[0][1], ReadTimeout if limit == 'read' else IdleTimeout)


def test_writing_keeps_a_connection_from_being_idle_but_not_from_a_read_timeout(kernel, fake, sockets):
    log = Log()
    for limit, kind, least in ('idle_timeout', IdleTimeout, 13.5), ('read_timeout', ReadTimeout, 5):
        start = kernel.time
        conn, _ = pair(fake, sockets, on_close=log.on_close, **{limit: 5})
        timers = [fake.call_later(4.5 * i, lambda conn=conn: conn.closed or conn.write(b'x')) for i in (1, 2)]
        fake.run()
        assert isinstance(log[-1][1], kind)
        if limit == 'idle_timeout':
            assert start + 9 + 5 <= kernel.time <= start + 9 + 6
        assert kernel.time >= start + min(least, 14)
        assert all(timer.deadline is None for timer in timers)


@pytest.mark.scenario(77)
def test_a_peer_that_receives_nothing_times_out_and_one_that_receives_little_does_not(kernel, fake, sockets):
    log = Log()
    conn, theirs = pair(fake, sockets, on_close=log.on_close, write_timeout=5)
    conn.write(bytes(4 << 20))
    for i in range(1, 6):
        fake.call_at(1000 + 4 * i, drain, theirs)
    fake.run()
    assert isinstance(log[0][1], WriteTimeout)
    assert 1020 + 5 <= kernel.time <= 1020 + 6


def test_the_write_timeout_is_stopped_while_nothing_waits(kernel, fake, sockets):
    log = Log()
    conn, _ = pair(fake, sockets, on_close=log.on_close, write_timeout=5)
    conn.write(b'x')
    fake.call_later(100, conn.close)
    fake.run()
    assert log == [('close', None)]
    assert kernel.time >= 1100


@pytest.mark.parametrize('kind', [bytes, bytearray, 'writelines'])
def test_the_write_timeout_begins_with_the_write_that_has_to_wait(kernel, fake, sockets, kind):
    log = Log()
    conn, _ = pair(fake, sockets, on_close=log.on_close, write_timeout=5)

    def write():
        fill(conn.sock)  # so that every byte has to be queued
        conn.writelines([b'x']) if kind == 'writelines' else conn.write(kind(1))
        assert conn.buffered == 1

    fake.call_at(1100.5, write)
    fake.run()
    assert isinstance(log[0][1], WriteTimeout)
    assert 1105.5 <= kernel.time <= 1106.5


def late(kernel, r, act):
    """Block the loop, so that a timer that calls `act` and then a time limit of 2 s are due in the same turn."""

    def block():
        kernel.time += 5

    r.call_later(1, block)
    r.call_later(1.5, act)
    r.call_later(1.9, r.stop)
    r.run()
    turns(r, 3)


def test_unread_bytes_prevent_a_read_timeout_after_a_slow_callback(kernel, fake, sockets):
    """The peer has sent its data in time, but the program reads the data late."""
    log = Log()
    conn, theirs = pair(fake, sockets, read_timeout=2, **log.callbacks('on_data', 'on_close'))
    late(kernel, fake, lambda: theirs.send(b'in time'))
    assert log == [('data', b'in time')]
    end(fake, conn)


@pytest.mark.parametrize('limit', ['read_timeout', 'write_timeout', 'idle_timeout'])
def test_a_time_limit_does_not_drop_data_received_before_a_send_failed(scripted, limit):
    r, make = scripted
    log = Log()
    conn, sock = make(**{limit: 2}, **log.callbacks('on_data', 'on_close'))
    sock.outcomes = deque()
    conn.write(b'waits')

    def fail():
        sock.incoming.extend([b'before the end', ConnectionResetError(104, 'reset')])
        sock.outcomes.append(ConnectionResetError(104, 'reset'))
        conn.handle_write()

    late(r.kernel, r, fail)
    run_until(r, lambda: log.names()[-1:] == ['close'])
    assert log.names() == ['data', 'close'] and isinstance(log[-1][1], ConnectionResetError)


def test_reading_unread_does_not_clear_the_error_of_the_socket(r, sockets):
    log = Log()
    ours, theirs = tcp_sockets(sockets)
    conn = r.adopt(ours, **log.callbacks('on_data', 'on_close'))
    reset(theirs)
    assert conn.unread is False
    run_until(r, lambda: log)
    assert log.names() == ['close'] and isinstance(log[0][1], ConnectionResetError)


def test_the_read_timeout_is_stopped_while_reading_is_paused(kernel, fake, sockets):
    log = Log()
    conn, _ = pair(fake, sockets, on_close=log.on_close, read_timeout=5)
    conn.pause_reading()
    fake.call_at(1052.5, conn.resume_reading)
    fake.run()
    assert isinstance(log[0][1], ReadTimeout)
    assert 1057.5 <= kernel.time <= 1058.5


def test_set_timeouts_replaces_all_time_limits(kernel, fake, sockets):
    log = Log()
    conn, _ = pair(fake, sockets, on_close=log.on_close, read_timeout=5)
    conn.set_timeouts(idle=50)
    fake.run()
    assert isinstance(log[0][1], IdleTimeout)
    assert 1050 <= kernel.time <= 1051


def test_time_limits_can_be_removed(kernel, fake, sockets):
    conn, _ = pair(fake, sockets, idle_timeout=5)
    conn.set_timeouts()
    fake.call_later(100, conn.abort)
    fake.run()
    assert kernel.time >= 1100
    assert len(fake.timers.buckets) == 0


def test_the_shortest_of_several_time_limits_applies(kernel, fake, sockets):
    log = Log()
    pair(fake, sockets, on_close=log.on_close, read_timeout=7, write_timeout=3, idle_timeout=20)
    fake.run()
    assert isinstance(log[0][1], ReadTimeout)
    assert 1007 <= kernel.time <= 1008


def test_receiving_bytes_moves_no_timer(fake, sockets):
    conn, theirs = pair(fake, sockets, idle_timeout=60)
    turns(fake, 0)
    before = fake.timers.next_deadline()
    for _ in range(100):
        theirs.send(b'x')
        fake.run_once()
        conn.write(b'y')
    assert fake.timers.next_deadline() == before
    assert len(fake.timers) == 1


@pytest.mark.scenario(78)
def test_connections_with_time_limits_share_one_timer(fake, sockets):
    conns = [pair(fake, sockets, idle_timeout=60)[0] for _ in range(20)]
    assert len(fake.timers) == 1
    end(fake, *conns)
    assert len(fake.timers) == 0


# -- callbacks and their exceptions


def test_callbacks_can_be_replaced_at_any_time(r, sockets):
    log, other = Log(), Log()

    def on_data(conn, data):
        log.on_data(conn, data)
        conn.on_data = other.on_data
        conn.on_close = other.on_close

    conn, theirs = pair(r, sockets, on_data=on_data, on_close=log.on_close)
    theirs.send(b'a')
    run_until(r, lambda: log)
    theirs.send(b'b')
    run_until(r, lambda: other)
    conn.on_data = None
    theirs.send(b'c')
    turns(r, 3)
    end(r, conn)
    assert log == [('data', b'a')]
    assert other == [('data', b'b'), ('close', None)]


def raises(*args):
    raise ZeroDivisionError('on purpose')


def trigger(r, conn, theirs, name):
    """Make the reactor call the named callback."""
    if name == 'on_data':
        theirs.send(b'x')
    elif name == 'on_eof':
        theirs.shutdown(socket.SHUT_WR)
    elif name == 'on_written':
        conn.write(b'x', raises)
    elif name == 'on_drain':
        conn.write(bytes(16 << 20))
        run_until(r, lambda: conn.closed or (drain(theirs) is not None and not conn.buffered))
    turns(r, 3)


KINDS = ['on_data', 'on_eof', 'on_drain', 'on_written']


@pytest.mark.scenario(115)
@pytest.mark.parametrize('name', KINDS)
def test_an_exception_goes_to_on_error_and_the_connection_stays_open(r, sockets, name):
    log = Log()
    callbacks = {} if name == 'on_written' else {name: raises}
    conn, theirs = pair(r, sockets, **callbacks, **log.callbacks('on_error', 'on_close'))
    trigger(r, conn, theirs, name)
    assert log.names() == ['error']
    assert isinstance(log[0][1], ZeroDivisionError)
    assert not conn.closed
    assert r.stats().callback_errors == 1
    conn.write(b'still alive')
    assert drain(theirs).endswith(b'still alive')
    end(r, conn)
    assert log.names() == ['error', 'close']


@pytest.mark.scenario(115)
@pytest.mark.parametrize('name', KINDS)
def test_without_on_error_an_exception_is_logged_and_that_connection_aborted_with_it(r, sockets, caplog, name):
    log = Log()
    callbacks = {} if name == 'on_written' else {name: raises}
    conn, theirs = pair(r, sockets, tcp=True, **callbacks, on_close=log.on_close)
    other, theirs_2 = pair(r, sockets, on_data=log.on_data)
    trigger(r, conn, theirs, name)
    theirs_2.send(b'other')
    turns(r, 2)
    assert isinstance(dict(log)['close'], ZeroDivisionError)
    assert sorted(log.names()) == ['close', 'data']
    assert [record.name for record in caplog.records] == ['reactor']
    assert 'on purpose' in caplog.text and 'Traceback' in caplog.text
    assert not other.closed
    with pytest.raises(ConnectionResetError):
        while theirs.recv(1 << 20):
            pass
    end(r, other)


@pytest.mark.parametrize('name', KINDS)
def test_catch_errors_may_be_a_function_that_is_called_instead_of_logging(sockets, caplog, name):
    calls, log = [], Log()
    callbacks = {} if name == 'on_written' else {name: raises}
    with Reactor(catch_errors=lambda exc, handle: calls.append((type(exc), handle))) as r:
        conn, theirs = pair(r, sockets, **callbacks, on_close=log.on_close)
        trigger(r, conn, theirs, name)
        assert calls == [(ZeroDivisionError, conn)]
        assert [type(exc) for _, exc in log] == [ZeroDivisionError]
    assert caplog.records == []


@pytest.mark.parametrize('name', KINDS)
def test_with_catch_errors_off_an_exception_leaves_run(sockets, name):
    callbacks = {} if name == 'on_written' else {name: raises}
    with Reactor(catch_errors=False) as r:
        conn, theirs = pair(r, sockets, **callbacks)
        with pytest.raises(ZeroDivisionError):
            trigger(r, conn, theirs, name)
        turns(r, 1)  # the reactor can run again


@pytest.mark.scenario(116)
def test_an_on_error_that_raises_is_logged_and_the_connection_aborted(r, sockets, caplog):
    log = Log()

    def on_error(conn, exc):
        raise KeyError('in on_error')

    conn, theirs = pair(r, sockets, on_data=raises, on_error=on_error, on_close=log.on_close)
    theirs.send(b'x')
    run_until(r, lambda: log)
    assert conn.closed
    assert log.names() == ['close']
    assert 'in on_error' in caplog.text
    assert len(caplog.records) == 1


def test_an_exception_in_on_error_goes_to_the_catch_errors_function(sockets, caplog):
    errors = []

    def raises(conn, what):
        raise KeyError(what)

    with Reactor(catch_errors=lambda exc, handle: errors.append((exc, handle))) as r:
        conn, theirs = pair(r, sockets, on_data=raises, on_error=raises)
        theirs.send(b'x')
        run_until(r, lambda: conn.closed)
    assert [(type(exc), type(exc.args[0]), handle) for exc, handle in errors] == [(KeyError, KeyError, conn)]
    assert caplog.records == []


@pytest.mark.scenario(116)
def test_an_exception_in_on_close_is_logged_and_not_passed_to_on_error(r, sockets, caplog):
    log = Log()
    conn, _ = pair(r, sockets, on_close=raises, on_error=log.on_error)
    conn.close()
    turns(r, 3)
    assert log == []
    assert len(caplog.records) == 1
    assert conn.on_close is None
    assert r.handles() == []


def test_an_exception_in_on_close_is_logged_or_passed_to_catch_errors(sockets, caplog):
    calls = []
    with Reactor(catch_errors=lambda exc, handle: calls.append(type(exc))) as r:
        conn, _ = pair(r, sockets, on_close=raises)
        conn.close()
        turns(r, 2)
    assert calls or caplog.records


@pytest.mark.scenario(118)
@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_even_exhaustion_in_a_callback_affects_its_connection_only(r, sockets, caplog, kind):
    log = Log()

    def on_data(conn, data):
        raise kind

    _, theirs = pair(r, sockets, on_data=on_data, on_close=log.on_close)
    other, theirs_2 = pair(r, sockets, on_data=log.on_data)
    theirs.send(b'x')
    theirs_2.send(b'y')
    run_until(r, lambda: len(log) == 2)
    assert isinstance(dict(log)['close'], kind)
    end(r, other)


@pytest.mark.scenario(117)
@pytest.mark.parametrize('kind', [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_leaves_run_and_loses_nothing(r, sockets, kind):
    log = Log()

    def interrupted(conn, data):
        conn.on_data = log.on_data
        raise kind

    made = [pair(r, sockets, on_data=interrupted) for _ in range(3)]
    for conn, theirs in made:
        conn.write(b'x', log.on_written)
        theirs.send(b'first')
    for _ in made:
        with pytest.raises(kind):
            r.run()
    for _, theirs in made:
        theirs.send(b'second')
    run_until(r, lambda: len(log) == 6)
    assert sorted(log.names()) == ['data'] * 3 + ['written'] * 3
    end(r, *[conn for conn, _ in made])


@pytest.mark.scenario(117)
@pytest.mark.parametrize('kind', [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_completion_leaves_the_others_for_the_next_run(r, sockets, kind):
    log = Log()

    def interrupted(conn):
        raise kind

    conn, _ = pair(r, sockets, on_close=log.on_close)
    conn.write(b'a', interrupted)
    conn.write(b'b', log.on_written)
    conn.close()
    with pytest.raises(kind):
        r.run()
    late = r.call_later(3, r.stop)
    late.unref()
    assert r.run() is True  # there is nothing left to wait for
    late.cancel()
    assert log == [('written',), ('close', None)]


# -- attributes, references, counters


def test_peername_and_sockname_are_those_of_the_socket(r, sockets):
    conn, theirs = pair(r, sockets, tcp=True)
    assert conn.peername == theirs.getsockname()
    assert conn.sockname == theirs.getpeername()
    end(r, conn)


def test_peername_is_read_once_and_kept(r, sockets):
    log = []
    conn, theirs = pair(r, sockets, tcp=True, on_close=lambda conn, exc: log.append(conn.peername))
    expected = theirs.getsockname()
    assert conn.peername is conn.peername
    end(r, conn)
    assert log == [expected]
    assert conn.peername == expected


@pytest.mark.parametrize('how', ['close', 'abort', 'reset', 'end', 'both ends'])
def test_peername_is_known_in_on_close(r, sockets, how):
    seen = []
    conn, theirs = pair(r, sockets, tcp=True, on_close=lambda conn, exc: seen.append((conn.peername, repr(conn))))
    expected = theirs.getsockname()
    if how in ('close', 'abort'):
        getattr(conn, how)()
    elif how == 'both ends':
        conn.write_eof()
        turns(r, 2)
    if how == 'reset':
        reset(theirs)
    elif how not in ('close', 'abort'):
        theirs.close()
    run_until(r, lambda: seen)
    assert seen[0][0] == expected
    assert f' CLOSED to 127.0.0.1:{expected[1]}, ' in seen[0][1]


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux knows the peer after a reset')
def test_peername_is_known_after_a_reset(r, sockets):
    conn, theirs = pair(r, sockets, tcp=True)
    expected = theirs.getsockname()
    conn.pause_reading()
    reset(theirs)
    assert conn.peername == expected
    end(r, conn)


@pytest.mark.scenario(42)
def test_peername_is_none_when_it_is_first_read_after_the_close(r, sockets):
    conn, _ = pair(r, sockets, tcp=True)
    end(r, conn)
    assert conn.peername is None
    assert conn.sockname is None


def test_repr_shows_descriptor_state_addresses_and_waiting_bytes(r, sockets):
    conn, theirs = pair(r, sockets, tcp=True)
    text = repr(conn)
    assert f'fd={conn.fileno()}' in text
    assert 'OPEN' in text
    assert str(theirs.getsockname()[1]) in text and str(theirs.getpeername()[1]) in text
    flood(conn)
    assert f'{conn.buffered} bytes' in repr(conn)
    end(r, conn)
    assert 'CLOSED' in repr(conn) and 'fd=-1' in repr(conn)


def test_the_descriptor_of_a_stream_without_a_socket_is_minus_one(r, sockets):
    waiting = r.connect_tcp('127.0.0.1', 9)
    ended, _ = pair(r, sockets)
    end(r, ended)
    assert waiting.fileno() == ended.fileno() == -1
    end(r, waiting)


def test_data_belongs_to_the_user_and_starts_as_none(r, sockets):
    conn, _ = pair(r, sockets)
    assert conn.data is None
    conn.data = {'any': 'thing'}
    end(r, conn)


def test_states_have_names(r, sockets):
    conn, theirs = pair(r, sockets, on_eof=lambda conn: None)
    assert conn.state == 'OPEN'
    theirs.shutdown(socket.SHUT_WR)
    turns(r, 2)
    assert conn.state == 'OPEN'
    flood(conn)
    conn.close()
    assert conn.state == 'CLOSING'
    conn.abort()
    assert conn.state == 'CLOSED'
    turns(r, 1)


def test_why_alive_says_what_a_connection_waits_for(r, sockets):
    conn, _ = pair(r, sockets)
    assert 'bytes to read' in r.why_alive()[0]
    flood(conn)
    assert f'take {conn.buffered} bytes' in r.why_alive()[0]
    end(r, conn)


def test_an_unreferenced_connection_does_not_keep_the_loop_running(r, sockets):
    conn, _ = pair(r, sockets)
    conn.unref()
    assert r.run() is True
    conn.ref()
    assert len(r.why_alive()) == 1
    end(r, conn)


def test_bytes_are_counted(r, sockets):
    conn, theirs = pair(r, sockets)
    conn.write(b'12345')
    theirs.send(b'123')
    turns(r, 2)
    stats = r.stats()
    assert (stats.bytes_out, stats.writes, stats.bytes_in, stats.reads) == (5, 1, 3, 1)
    end(r, conn)


def test_debug_refuses_a_write_from_another_thread(sockets):
    errors = []
    with Reactor(debug=True) as r:
        conn, _ = pair(r, sockets)

        def write():
            try:
                conn.write(b'x')
            except ReactorError as exc:
                errors.append(exc)

        def from_a_thread():
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()

        r.call_soon(from_a_thread)
        turns(r, 1)
    assert len(errors) == 1


def test_an_on_written_that_is_not_callable_is_refused_and_nothing_is_sent(r, sockets):
    conn, theirs = pair(r, sockets)
    for write in conn.write, lambda data, fn: conn.writelines([data], fn):
        with pytest.raises(TypeError, match='on_written'):
            write(b'x', 'not callable')
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    end(r, conn)


@pytest.mark.scenario(64)
def test_write_after_close_abort_or_write_eof_raises_and_queues_nothing(r, sockets):
    for name in 'close', 'abort', 'write_eof':
        conn, theirs = pair(r, sockets, tcp=True)
        port = str(theirs.getsockname()[1])
        assert conn.peername
        getattr(conn, name)()
        for write in conn.write, lambda data, conn=conn: conn.writelines([data]):
            with pytest.raises(ConnectionClosed, match=port):
                write(b'x')
        end(r, conn)


def test_a_send_that_fails_inside_write_is_reported_later_and_never_raises(scripted):
    r, make = scripted
    for data in b'data', bytearray(b'data'):
        log = Log()
        conn, sock = make(on_close=log.on_close)
        sock.outcomes = deque([BrokenPipeError(errno.EPIPE, 'broken')])
        assert conn.write(data, log.on_written) is False
        assert conn.closed
        assert conn.write(b'more', log.on_written) is False
        assert log == []
        turns(r, 3)
        assert [type(exc) for _, exc in log] == [BrokenPipeError]
        assert sock.calls.count('send') == 1


@pytest.mark.parametrize('kind', [bytes, bytearray, 'writelines'])
def test_bytes_that_a_failing_write_could_not_send_count_as_buffered(scripted, kind):
    r, make = scripted
    left = []
    conn, sock = make(on_close=lambda conn, exc: left.append(conn.buffered))
    sock.outcomes = deque([BrokenPipeError(errno.EPIPE, 'broken')])
    conn.writelines([bytes(7)]) if kind == 'writelines' else conn.write(kind(7))
    turns(r, 3)
    assert left == [7]


def test_closing_the_reactor_aborts_its_connections_and_calls_on_close(sockets):
    log = Log()
    with Reactor() as r:
        conn, _ = pair(r, sockets, on_close=log.on_close)
        flood(conn)
    assert log == [('close', None)]
    assert conn.closed


# -- peers that are dead, slow or hostile


@pytest.mark.scenario(77)
def test_a_keepalive_failure_is_reported_with_the_kernels_error(scripted):
    """When keepalive gives up, recv fails with ETIMEDOUT, which must not look like a time limit of the reactor."""
    r, make = scripted
    log = Log()
    _, sock = make(**log.callbacks('on_data', 'on_eof', 'on_close'))
    sock.incoming.append(TimeoutError(errno.ETIMEDOUT, 'timed out'))
    turns(r, 3)
    assert log.names() == ['close']
    assert type(log[0][1]) is TimeoutError
    assert log[0][1].errno == errno.ETIMEDOUT


@pytest.mark.scenario(78)
def test_a_deadline_ends_a_peer_that_trickles_bytes(kernel, fake, sockets):
    log, ended = Log(), []
    conn, theirs = pair(fake, sockets, on_data=log.on_data, idle_timeout=5)
    conn.on_close = lambda conn, exc: (ended.append((kernel.time, exc)), beat.cancel())
    beat = fake.call_every(1, lambda: theirs.send(b'x'))
    fake.call_later(20.5, conn.abort)
    assert fake.run() is True
    assert log.received == b'x' * 20
    assert ended == [(1020.5, None)]


@pytest.mark.scenario(84)
def test_data_of_a_peer_is_not_used_as_a_format_in_the_log(r, sockets, caplog):
    def on_data(conn, data):
        raise ValueError(data.decode())

    log = Log()
    _, theirs = pair(r, sockets, on_data=on_data, on_close=log.on_close)
    theirs.send(b'%s %d %(name)s %n {0}')
    run_until(r, lambda: log)
    (record,) = caplog.records
    assert 'exception in' in record.getMessage()
    assert '%s %d %(name)s %n {0}' in caplog.text


# -- memory or stack runs out in the reactor itself


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_a_connection_that_cannot_be_read_without_memory_or_stack_ends_alone(r, sockets, monkeypatch, kind):
    log, other_log = Log(), Log()
    _, theirs = pair(r, sockets, on_data=log.on_data, on_close=log.on_close)
    other, other_theirs = pair(r, sockets, on_data=other_log.on_data)
    run_short(monkeypatch, Stream, 'handle_read', kind=kind)
    theirs.send(b'x')
    run_until(r, lambda: log)
    turns(r, 2)
    assert log.names() == ['close'] and type(log[0][1]) is kind
    other_theirs.send(b'y')
    run_until(r, lambda: other_log)
    end(r, other)


def test_a_connection_without_memory_for_its_on_drain_ends_with_memory_error(r, sockets, monkeypatch):
    log = Log()
    conn, theirs = pair(r, sockets, on_drain=log.on_drain, on_close=log.on_close)
    flood(conn)
    run_short(monkeypatch, Sender, 'handle_drain')
    while not log:
        with contextlib.suppress(ConnectionResetError):
            drain(theirs)
        r.run_once(0)
    assert log.names() == ['close'] and type(log[0][1]) is MemoryError


@pytest.mark.parametrize('times', [1, 2])
def test_an_end_without_memory_to_unregister_is_repeated(r, sockets, monkeypatch, times):
    log = Log()
    conn, theirs = pair(r, sockets, on_close=log.on_close)
    run_short(monkeypatch, Watchers, 'remove', times)
    conn.abort()
    assert conn.closed
    turns(r, 3)
    assert log == [('close', None)]
    assert theirs.recv(1) == b''
    assert r.handles() == []


def test_an_on_close_that_waits_for_memory_is_called_once_with_the_same_exception(r, sockets, monkeypatch):
    log = Log()
    conn, _ = pair(r, sockets, on_close=log.on_close)
    run_short(monkeypatch, Stream, 'handle_closed')
    error = ValueError('why')
    conn.reset(error)
    turns(r, 3)
    assert log == [('close', error)]


def test_an_on_close_without_memory_for_its_call_is_called_later(r, sockets):
    log = Log()
    conn, _ = pair(r, sockets, on_close=uncallable(2))
    conn.data = log
    conn.abort()
    turns(r, 1)
    assert conn.data is log  # the user's objects are dropped only after on_close has been called
    conn.on_close = log.on_close
    turns(r, 2)
    assert log == [('close', None)]
    assert conn.data is conn.on_close is None


def test_an_exception_in_a_callback_ends_its_connection_later_when_there_is_no_memory_at_once(r, sockets, monkeypatch):
    log = Log()

    def on_data(conn, data):
        raise ValueError('boom')

    _, theirs = pair(r, sockets, on_data=on_data, on_close=log.on_close)
    run_short(monkeypatch, Stream, 'handle_failed')
    theirs.send(b'x')
    run_until(r, lambda: log)
    turns(r, 2)
    assert log.names() == ['close']
    assert str(log[0][1]) == 'boom'


def test_a_send_without_memory_is_reported_by_on_close(scripted):
    r, make = scripted
    log = Log()
    conn, sock = make(on_close=log.on_close)
    sock.outcomes = deque([MemoryError()])
    assert conn.write(b'x', log.on_written) is False
    assert conn.write(b'y') is False
    assert log == []
    turns(r, 2)
    assert log.names() == ['close'] and type(log[0][1]) is MemoryError
    assert sock.sent == b''


@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
@pytest.mark.parametrize('data', [b'x' * 9, bytearray(9)], ids=['bytes', 'bytearray'])
def test_running_out_of_memory_or_stack_after_a_partial_send_is_reported_by_on_close(scripted, monkeypatch, data, kind):
    r, make = scripted
    ends = []
    conn, sock = make(on_close=lambda conn, exc: ends.append((type(exc), conn.buffered)))
    sock.outcomes = deque([4])
    run_short(monkeypatch, Watchers, 'set_events', kind=kind)
    assert conn.write(data, ends.append) is False
    assert conn.write(b'y') is False
    turns(r, 2)
    assert ends == [(kind, 5)]  # the kernel never accepted these 5 bytes
    assert len(sock.sent) == 4


def test_a_write_without_stack_raises_and_sends_nothing(scripted, monkeypatch):
    r, make = scripted
    log = Log()
    conn, sock = make(on_close=log.on_close)
    run_short(monkeypatch, Stream, 'handle_write', kind=RecursionError)
    with pytest.raises(RecursionError):
        conn.write(bytearray(b'lost'), log.on_written)
    assert sock.sent == b'' and conn.buffered == 0
    assert conn.write(bytearray(b'next'), log.on_written) is True
    turns(r, 2)
    assert log == [('written',)] and sock.sent == b'next'
    end(r, conn)


def test_an_aborted_connection_refuses_writes_and_a_failed_one_drops_them(scripted):
    r, make = scripted
    log = Log()
    aborted, _ = make()
    failed, _ = make(on_close=log.on_close)
    aborted.abort()
    error = ValueError('why')
    failed.reset(error)
    with pytest.raises(ConnectionClosed):
        aborted.write(b'x')
    assert failed.write(b'x') is False  # its failure has not been reported yet
    turns(r, 2)
    assert log == [('close', error)]


def test_a_time_limit_that_could_not_be_removed_without_memory_does_nothing(kernel, fake, sockets, monkeypatch):
    log = Log()
    conn, _ = pair(fake, sockets, on_close=log.on_close, idle_timeout=5, linger=60)
    conn.write(b'\xff' * 1_000_000)
    run_short(monkeypatch, Buckets, 'discard')
    with pytest.raises(MemoryError):
        conn.close()
    kernel.time += 10
    turns(fake, 3)
    assert log == []  # the connection lingers: the peer can still receive the rest
    assert conn.closed
    conn.abort()
    turns(fake, 2)
    assert log == [('close', None)]


def test_pausing_and_resuming_does_not_keep_a_connection_from_being_idle(sockets):
    log, kernel = Log(), FakeKernel()
    with Reactor(kernel=kernel) as r:
        ours, _ = sockets()
        conn = r.adopt(ours, on_close=log.on_close, idle_timeout=2)
        began = kernel.time

        def pause_and_resume():
            conn.pause_reading()
            conn.resume_reading()
            if kernel.time > began + 10:
                r.stop()

        r.call_every(0.25, pause_and_resume).unref()
        r.run()
        assert log.names() == ['close']
        assert isinstance(log[0][1], IdleTimeout)
        assert kernel.time <= began + 3
