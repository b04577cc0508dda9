"""Framing: messages cut into any chunks, limits, cost, and callbacks that close, pause, raise or switch framings."""

from __future__ import annotations

import gc
import re
import socket
import weakref
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reactor import FrameTooLong, Reactor, ReactorError, TLSError, framing
from reactor.framing import MESSAGES_PER_TURN, Frames
from tests.helpers.certificates import certificates  # noqa: F401  (a fixture)
from tests.helpers.exhaustion import need_faults
from tests.helpers.models_support import model_exactly, model_lines, model_prefixed, model_until
from tests.helpers.support import Log, end, idle, pair, read_all, run_until, turns

LIMIT = 12

KINDS = [
    (Frames.line, (), model_lines),
    (Frames.until, (b'\0',), model_until),
    (Frames.until, (b'aab',), model_until),
    (Frames.prefixed, (1, 'big'), model_prefixed),
    (Frames.prefixed, (2, 'little'), model_prefixed),
    (Frames.exactly, (5,), model_exactly),
]
BYTES = st.lists(st.sampled_from([b'\n', b'\r', b'\r\n', b'a', b'b', b'aa', b'\0', b'\1', b'\2', b'\6\0'])).map(
    b''.join
)
CUTS = st.lists(st.integers(0, 6))


def chunks(data: bytes, cuts: list[int]):
    """Cut the data into pieces of these sizes; the last piece is the rest."""
    for size in cuts:
        yield data[:size]
        data = data[size:]
    yield data


def collect(pieces, take, args, limit=LIMIT):
    """Feed each piece and then take all messages; return the messages, and whether a message was too long."""
    frames, messages = Frames(limit), []
    try:
        for piece in pieces:
            frames.feed(piece)
            while (message := take(frames, *args)) is not None:
                messages.append(message)
    except FrameTooLong:
        return messages, True
    return messages, False


@pytest.mark.scenario(67)
@pytest.mark.parametrize(('take', 'args', 'model'), KINDS)
@given(data=BYTES, cuts=CUTS)
def test_the_messages_are_the_same_for_any_chunking(take, args, model, data, cuts):
    assert collect(chunks(data, cuts), take, args) == model(data, LIMIT, *args)


ASKS = st.lists(
    st.one_of(
        st.tuples(st.just('line')),
        st.tuples(st.just('until'), st.sampled_from([b'a', b'\0', b'ab'])),
        st.tuples(st.just('exactly'), st.integers(0, 4)),
        st.tuples(st.just('prefixed'), st.integers(1, 2)),
    )
)


@given(data=BYTES, cuts=CUTS, asks=ASKS)
def test_framings_can_be_mixed_and_the_rest_is_returned_untouched(data, cuts, asks):
    """Messages that are taken while pieces arrive are the same as if all bytes had been fed at once."""

    def answers(pieces):
        frames, given, waiting = Frames(1 << 20), [], list(asks)
        for piece in pieces:
            frames.feed(piece)
            while waiting and (message := getattr(frames, waiting[0][0])(*waiting[0][1:])) is not None:
                given.append(message)
                del waiting[0]
        return given, frames.rest()

    assert answers(chunks(data, cuts)) == answers([data])


@given(data=BYTES, cuts=CUTS)
def test_a_search_that_found_nothing_does_not_affect_another(data, cuts):
    frames, fed = Frames(1 << 20), b''
    for piece in chunks(data, cuts):
        frames.feed(piece)
        fed += piece
        for delimiter in b'aab', b'\0':
            if fed.find(delimiter) >= 0:
                return
            assert frames.until(delimiter) is None
        assert len(frames) == len(fed)


# -- limits


@pytest.mark.scenario(67)
@pytest.mark.parametrize(
    ('fed', 'take', 'args'),
    [
        (b'x' * 11 + b'\n', Frames.line, ()),
        (b'x' * 12, Frames.line, ()),
        (b'x' * 11 + b'\0', Frames.until, (b'\0',)),
        (b'x' * 12, Frames.until, (b'ab',)),
        (b'\0\0\0\x0b', Frames.prefixed, ()),
        (b'', Frames.exactly, (11,)),
    ],
)
def test_a_message_over_the_limit_raises_as_soon_as_the_excess_is_certain(fed, take, args):
    frames = Frames(10)
    frames.feed(fed)
    for _ in range(2):  # the second call raises too: the first has skipped nothing
        with pytest.raises(FrameTooLong, match='more than 10 bytes') as caught:
            take(frames, *args)
    assert isinstance(caught.value, ReactorError) and isinstance(caught.value, ValueError)
    assert frames.rest() == fed


@pytest.mark.scenario(67)
@pytest.mark.parametrize(
    ('fed', 'take', 'args'),
    [
        (b'x' * 10 + b'\r\n', Frames.line, ()),
        (b'x' * 10 + b'\r', Frames.line, ()),
        (b'x' * 10 + b'ab', Frames.until, (b'ab',)),
        (b'x' * 10 + b'a', Frames.until, (b'ab',)),
        (b'\0\0\0\x0a' + b'x' * 10, Frames.prefixed, ()),
        (b'x' * 10, Frames.exactly, (10,)),
    ],
)
def test_a_message_of_exactly_the_limit_is_accepted(fed, take, args):
    frames = Frames(10)
    frames.feed(fed)
    assert take(frames, *args) in (b'x' * 10, None)


def test_a_limit_can_be_given_for_one_message():
    frames = Frames(10)
    frames.feed(b'GET / HTTP/1.1\r\nabcdef')
    assert frames.line(limit=100) == b'GET / HTTP/1.1'
    with pytest.raises(FrameTooLong):
        frames.exactly(6, limit=5)


@pytest.mark.parametrize(
    ('wrong', 'error'),
    [
        (lambda: Frames(-1), ValueError),
        (lambda: Frames('12'), TypeError),
        (lambda: Frames().until(b''), ValueError),
        (lambda: Frames().exactly(-1), ValueError),
        (lambda: Frames().exactly(1.5), TypeError),
        (lambda: Frames().prefixed(0), ValueError),
        (lambda: Frames().rest(-1), ValueError),
        (lambda: framing.lines(None), TypeError),
        (lambda: framing.lines(print, limit=-1), ValueError),
        (lambda: framing.delimited(print, b''), ValueError),
        (lambda: framing.prefixed(print, 0), ValueError),
        (lambda: framing.prefixed(print, 4, 'middle'), ValueError),
        (lambda: framing.blocks(print, 0), ValueError),
        (lambda: framing.Framing(print, 7), TypeError),
    ],
)
def test_bad_arguments_raise_at_the_call(wrong, error):
    with pytest.raises(error):
        wrong()


# -- messages


def test_the_header_of_a_request_and_then_its_body():
    frames = Frames()
    frames.feed(b'POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET')
    assert [frames.line(), frames.line(), frames.line()] == [b'POST / HTTP/1.1', b'Content-Length: 5', b'']
    assert frames.exactly(5) == b'hello'
    assert frames.line() is None and len(frames) == 3 and frames.rest() == b'GET' and not len(frames)


def test_a_long_body_can_be_taken_as_it_arrives():
    frames = Frames()
    frames.feed(b'abcdef')
    assert [frames.rest(4), frames.rest(4), frames.rest(4)] == [b'abcd', b'ef', b'']


def test_an_empty_message_is_a_message():
    frames = Frames()
    frames.feed(b'\n\0\0')
    assert (frames.line(), frames.prefixed(1), frames.until(b'\0'), frames.exactly(0)) == (b'', b'', b'', b'')
    assert frames.line() is None


def test_every_message_is_bytes_however_it_was_fed():
    frames = Frames()
    for piece in b'on', bytearray(b'e\ntw'), memoryview(b'o\n'):
        frames.feed(piece)
    assert [type(frames.line()), type(frames.rest())] == [bytes, bytes]


# -- cost


@pytest.mark.scenario(82)
@pytest.mark.parametrize(('take', 'args'), [(Frames.line, ()), (Frames.until, (b'\r\n\r\n',))])
def test_a_search_starts_where_the_last_one_ended(take, args):
    frames = Frames(1 << 20)
    for _ in range(1000):
        frames.feed(b'x')
        assert take(frames, *args) is None
        assert len(frames) - frames._searched < 4


def test_each_byte_of_ten_megabytes_in_small_chunks_is_moved_only_a_few_times():
    size = 10 << 20
    frames = Frames(size)
    frames.feed(b'xx')
    frames.feed(b'x' * 1022)
    growing = frames._buffer
    for _ in range(size // 1024 - 1):
        frames.feed(b'x' * 1024)
        assert frames.line() is None
        assert frames._buffer is growing  # the buffer grows in place
    frames.feed(b'\n')
    assert len(frames.line()) == size


def test_many_messages_in_one_chunk_are_taken_without_moving_the_others():
    frames = Frames()
    frames.feed(b'x\n' * (1 << 20))
    before = frames._buffer
    for _ in range(1000):
        assert frames.line() == b'x'
    assert frames._buffer is before  # the chunk is kept, not copied


def test_a_few_waiting_bytes_do_not_keep_their_chunk_alive():
    frames = Frames()
    frames.feed(b'x' * 65000 + b'\nrest')
    assert len(frames.line()) == 65000 and frames.line() is None
    assert len(frames._buffer) == 4
    frames.feed(b'\n')
    assert frames.line() == b'rest' and frames._buffer == b''


# -- on connections


def test_lines_are_delivered_whole_and_in_order(r, sockets):
    log = []
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: log.append(line)))
    for piece in b'one\r\ntw', b'o', b'\n\nthree':
        theirs.send(piece)
        turns(r, 2)
    assert log == [b'one', b'two', b'']
    end(r, conn)


@pytest.mark.parametrize(
    ('make', 'sent', 'expected'),
    [
        (lambda fn: framing.delimited(fn, b'--'), b'a--b-c--d', [b'a', b'b-c']),
        (framing.prefixed, b'\0\0\0\3abc\0\0\0\0\0', [b'abc', b'']),
        (lambda fn: framing.prefixed(fn, 2, 'little'), b'\3\0abc\0\0\1\0', [b'abc', b'']),
        (lambda fn: framing.blocks(fn, 3), b'abcdefgh', [b'abc', b'def']),
    ],
)
def test_each_framing_is_an_on_data(r, sockets, make, sent, expected):
    log = []
    conn, theirs = pair(r, sockets, on_data=make(lambda conn, message: log.append(message)))
    theirs.send(sent)
    turns(r, 2)
    assert log == expected
    end(r, conn)


def test_a_user_defined_framing(r, sockets):
    def take(frames, separator):
        head = frames.until(separator)
        return None if head is None else int(head)

    log = []
    conn, theirs = pair(r, sockets, on_data=framing.Framing(lambda conn, n: log.append(n), take, b';'))
    theirs.send(b'1;22;3')
    turns(r, 2)
    assert log == [1, 22]
    end(r, conn)


def test_the_connections_of_a_listener_do_not_share_waiting_bytes(r, sockets):
    log = []
    server = r.listen_tcp('127.0.0.1', 0, framing.lines(lambda conn, line: log.append((conn.peername[1], line))))
    first, second = (sockets.connect(server.address) for _ in range(2))
    for sock, piece in (first, b'fi'), (second, b'sec'), (first, b'rst\n'), (second, b'ond\n'):
        sock.send(piece)
        before = r.stats().reads
        run_until(r, lambda before=before: r.stats().reads > before)
    assert log == [(first.getsockname()[1], b'first'), (second.getsockname()[1], b'second')]
    server.close()
    end(r, *[handle for handle in r.handles() if handle is not server])


@pytest.mark.scenario(8)
@pytest.mark.parametrize('how', ['close', 'abort'])
def test_nothing_is_delivered_after_a_callback_has_closed(r, sockets, how):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        getattr(conn, how)()

    _, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_close=log.on_close)
    theirs.send(b'one\ntwo\nthree\n')
    turns(r, 3)
    assert log == [('line', b'one'), ('close', None)]


def test_nothing_is_delivered_after_a_close_that_has_to_flush(r, sockets):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        conn.write(b'x' * 4_000_000)
        conn.close()

    _, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_close=log.on_close)
    theirs.send(b'one\ntwo\n')
    turns(r, 2)
    theirs.send(b'three\n')
    theirs.shutdown(socket.SHUT_WR)
    assert len(read_all(r, theirs)) == 4_000_000
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['line', 'close']


@pytest.mark.scenario(69)
def test_a_pause_delays_messages_until_resume_and_they_come_first(r, sockets):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        conn.pause_reading()

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_eof=log.on_eof)
    theirs.send(b'one\ntwo\nthree\n')
    turns(r, 3)
    assert log == [('line', b'one')]
    theirs.send(b'four\n')
    theirs.close()
    for known in (b'two', b'three', b'four'):
        conn.resume_reading()
        assert log[-1] != ('line', known)  # nothing is delivered inside the call to resume_reading()
        turns(r, 3)
        assert log[-1] == ('line', known)
    conn.resume_reading()
    turns(r, 3)
    assert log[-1] == ('eof',)
    end(r, conn)


@pytest.mark.parametrize('ends', [False, True], ids=['the peer waits', 'the peer has sent EOF'])
def test_resume_reading_delivers_the_delayed_messages_before_anything_else(r, sockets, ends):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        if line in (b'one', b'three'):
            conn.pause_reading()

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_eof=log.on_eof)
    theirs.send(b'one\ntwo\nthree\nfour\nfi')
    if ends:
        theirs.close()
    turns(r, 3)
    conn.resume_reading()
    conn.resume_reading()
    assert log == [('line', b'one')] and conn.reading  # nothing is delivered inside the calls
    turns(r, 3)
    assert log == [('line', line) for line in (b'one', b'two', b'three')] and not conn.reading
    conn.resume_reading()
    conn.pause_reading()  # reading is paused again at once, so nothing must be delivered
    turns(r, 3)
    assert len(log) == 3
    conn.resume_reading()
    if not ends:
        turns(r, 3)
        theirs.send(b've\n')
        theirs.close()
    run_until(r, lambda: 'eof' in log.names())
    rest = [b'four'] if ends else [b'four', b'five']
    assert log == [('line', line) for line in (b'one', b'two', b'three', *rest)] + [('eof',)]
    assert not r.streams.suspended
    end(r, conn)


def test_resume_reading_continues_with_the_on_data_that_replaced_a_framing_with_messages(r, sockets):
    received = []
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: conn.pause_reading()))
    theirs.send(b'one\ntwo\n')
    turns(r, 2)
    assert conn.on_data.rest() == b'two\n'
    conn.on_data = lambda conn, data: received.append(data)
    conn.resume_reading()
    theirs.send(b'three')
    run_until(r, lambda: received)
    assert received == [b'three'] and not r.streams.suspended
    end(r, conn)


def test_resume_after_the_end_does_nothing(r, sockets):
    log = []
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: (log.append(line), conn.pause_reading())))
    theirs.send(b'one\ntwo\n')
    turns(r, 2)
    conn.resume_reading()
    conn.close()
    theirs.close()
    turns(r, 2)
    conn.resume_reading()
    turns(r, 2)
    assert log == [b'one']


def test_resume_continues_with_any_on_data(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_data=log.on_data)
    conn.pause_reading()
    theirs.send(b'x')
    conn.resume_reading()
    turns(r, 3)
    assert log == [('data', b'x')]
    end(r, conn)


def test_after_an_exception_the_other_messages_follow_in_order(r, sockets):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        if line in (b'two', b'three'):
            raise RuntimeError(line)

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_error=log.on_error, on_eof=log.on_eof)
    theirs.send(b'one\ntwo\nthree\nfour\n')
    theirs.close()
    run_until(r, lambda: 'eof' in log.names())
    assert log.names() == ['line', 'line', 'error', 'line', 'error', 'line', 'eof']
    end(r, conn)


def test_without_on_error_an_exception_ends_the_connection_and_no_message_follows(r, sockets, caplog):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        raise RuntimeError(line)

    _, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_close=log.on_close)
    theirs.send(b'one\ntwo\n')
    turns(r, 3)
    assert log.names() == ['line', 'close'] and len(caplog.records) == 1


@pytest.mark.scenario(67, 82)
def test_a_message_that_is_too_long_ends_its_connection_without_a_line_in_the_log(r, sockets, caplog):
    log = Log()
    on_data = framing.lines(lambda conn, line: log.append(('line', line)), limit=10)
    _, theirs = pair(r, sockets, tcp=True, on_data=on_data, on_close=log.on_close, on_error=log.on_error)
    theirs.send(b'fine\n' + b'x' * 20)
    run_until(r, lambda: 'close' in log.names())
    assert log[0] == ('line', b'fine') and log.names() == ['line', 'close']
    exc = log[1][1]
    assert type(exc) is FrameTooLong
    assert re.match(r'127\.0\.0\.1:\d+ sent a line of more than 10 bytes; .*limit=', str(exc))
    assert not caplog.records


def test_a_framing_can_be_replaced_in_a_callback_and_given_the_rest(r, sockets):
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        rest, conn.on_data = conn.on_data.rest(), log.on_data
        log.append(('rest', rest))

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line))
    theirs.send(b'raw\nbytes\nhere')
    turns(r, 2)
    theirs.send(b'more')
    turns(r, 2)
    assert log == [('line', b'raw'), ('rest', b'bytes\nhere'), ('data', b'more')]
    end(r, conn)


def test_messages_received_before_sending_failed_are_still_delivered(scripted):
    r, make = scripted
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        conn.write(b'answer')

    _, sock = make(on_data=framing.lines(on_line), on_close=log.on_close)
    sock.outcomes = deque([ConnectionResetError()])
    sock.incoming.extend([b'one\ntwo\n', b'three\n', ConnectionResetError()])
    turns(r, 4)
    assert log[:3] == [('line', b'one'), ('line', b'two'), ('line', b'three')]
    assert log.names() == ['line'] * 3 + ['close']


def test_a_connection_with_a_framing_is_freed_without_the_collector(r, sockets):
    gc.disable()
    try:
        conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: None))
        theirs.send(b'one\npart')
        turns(r, 2)
        framed = weakref.ref(conn)
        conn.close()
        turns(r, 2)
        del conn
        assert framed() is None
    finally:
        gc.enable()


def test_the_reading_attribute_is_true_while_on_data_may_be_called(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_data=log.on_data, on_eof=log.on_eof)
    seen = [conn.reading]
    conn.pause_reading()
    seen.append(conn.reading)
    conn.resume_reading()
    seen.append(conn.reading)
    theirs.close()
    run_until(r, lambda: log.names() == ['eof'])
    seen.append(conn.reading)
    end(r, conn)
    assert [*seen, conn.reading] == [True, False, True, False, False]


@pytest.mark.parametrize('take', [Frames.line, Frames.prefixed], ids=['line', 'prefixed'])
def test_a_message_that_failed_for_lack_of_memory_can_be_taken_again(take):
    need_faults()
    import _testcapi

    fed = b'one\nthe second\n' if take is Frames.line else b'\0\0\0\3one\0\0\0\12the second'
    for number in range(20):
        frames = Frames()
        frames.feed(fed[:9])
        frames.feed(fed[9:])
        _testcapi.set_nomemory(number, number + 1)
        try:
            first = take(frames)
        except MemoryError:
            first = None
        finally:
            _testcapi.remove_mem_hooks()
        assert [first or take(frames), take(frames)] == [b'one', b'the second'], number


# -- many messages in one chunk

MANY = 3 * MESSAGES_PER_TURN + 5


def per_turn(r, received, count):
    """Count the messages that each turn delivers, until `count` have been delivered."""
    counts = []
    while len(received) < count:
        before = len(received)
        r.run_once(0)
        counts.append(len(received) - before)
        assert len(counts) < 10 * count
    return counts


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (framing.lines, b'\n'),
        (lambda fn: framing.delimited(fn, b'\0\0'), b'\0\0'),
        (lambda fn: framing.prefixed(fn, 1), b'\0'),
        (lambda fn: framing.blocks(fn, 1), b'x'),
        (lambda fn: framing.Framing(fn, lambda frames: frames.line()), b'\n'),
    ],
)
def test_a_turn_delivers_a_bounded_number_of_messages_and_later_turns_the_rest(r, sockets, make, message):
    received = []
    conn, theirs = pair(r, sockets, on_data=make(lambda conn, message: received.append(message)))
    theirs.send(message * MANY)
    assert per_turn(r, received, MANY) == [MESSAGES_PER_TURN] * 3 + [5]
    theirs.send(message)  # after that, the connection reads as before
    run_until(r, lambda: len(received) > MANY)
    assert idle(r)
    end(r, conn)


@pytest.mark.parametrize('first', [[], ['first']], ids=['even', 'odd'])
def test_a_message_that_needs_no_bytes_is_delivered_although_the_turn_is_full(r, sockets, first):
    due, received, count = [*first], [], MESSAGES_PER_TURN // 2

    def take(frames):
        if due:
            return due.pop()
        line = frames.line()
        if line is not None:
            due.append('end of it')
        return line

    conn, theirs = pair(r, sockets, on_data=framing.Framing(lambda conn, message: received.append(message), take))
    theirs.send(b'x\n' * count)
    turns(r, 4)
    assert received == first + [b'x', 'end of it'] * count
    assert idle(r)
    end(r, conn)


def test_the_messages_of_many_turns_keep_their_order_and_the_end_comes_last(r, sockets):
    log = Log()
    on_data = framing.lines(lambda conn, line: log.append(('line', line)))
    conn, theirs = pair(r, sockets, on_data=on_data, on_eof=log.on_eof)
    sent = [b'%d' % number for number in range(MANY)]
    theirs.sendall(b'\n'.join(sent) + b'\n')
    r.run_once(0)
    theirs.sendall(b'behind\n')
    theirs.close()
    run_until(r, lambda: 'eof' in log.names())
    assert log == [('line', line) for line in [*sent, b'behind']] + [('eof',)]
    end(r, conn)


def test_while_messages_wait_for_a_turn_nothing_more_is_received(r, sockets):
    received = []
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: received.append(line)))
    theirs.send(b'\n' * MANY)
    r.run_once(0)
    before = r.stats().bytes_in
    theirs.send(b'\n' * 100)
    assert conn.reading
    conn.resume_reading()  # as far as the program knows, reading was never paused
    turns(r, 2)
    assert r.stats().bytes_in == before and len(received) == 3 * MESSAGES_PER_TURN
    run_until(r, lambda: len(received) == MANY + 100)
    end(r, conn)


@pytest.mark.parametrize('how', ['in a callback', 'between two turns'])
def test_a_pause_delays_messages_that_wait_for_a_turn_and_the_end(r, sockets, how):
    log = Log()
    pause_at = 2 * MESSAGES_PER_TURN if how == 'in a callback' else 0

    def on_line(conn, line):
        log.append(('line',))
        if len(log) == pause_at:
            conn.pause_reading()

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_eof=log.on_eof)
    theirs.send(b'\n' * MANY)
    theirs.close()
    turns(r, 2)
    if how == 'between two turns':
        conn.pause_reading()
    turns(r, 10)
    assert len(log) == 2 * MESSAGES_PER_TURN and not conn.reading
    conn.resume_reading()
    run_until(r, lambda: 'eof' in log.names())
    assert log.names() == ['line'] * MANY + ['eof']
    end(r, conn)


def test_a_pause_and_a_resume_between_two_turns_do_not_reorder_messages(r, sockets):
    log = Log()
    on_data = framing.lines(lambda conn, line: log.append(('line',)))
    conn, theirs = pair(r, sockets, on_data=on_data, on_close=log.on_close)
    theirs.send(b'\n' * MANY)
    theirs.close()
    r.run_once(0)
    conn.pause_reading()
    conn.resume_reading()
    assert per_turn(r, log, MANY) == [MESSAGES_PER_TURN] * 2 + [5]
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['line'] * MANY + ['close']


def test_a_pause_and_a_resume_within_a_turn_do_not_double_the_pace(r, sockets):
    received = []
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: received.append(line)))
    theirs.send(b'\n' * (100 + 9 * MESSAGES_PER_TURN))
    for _ in range(8):
        before = len(received)
        r.run_once(0)
        assert len(received) - before <= MESSAGES_PER_TURN
        conn.pause_reading()
        conn.resume_reading()
    run_until(r, lambda: len(received) == 100 + 9 * MESSAGES_PER_TURN)
    end(r, conn)


@pytest.mark.parametrize('how', ['close', 'abort'])
def test_nothing_is_delivered_after_an_end_between_two_turns(r, sockets, how):
    log = Log()
    on_data = framing.lines(lambda conn, line: log.append(('line',)))
    conn, theirs = pair(r, sockets, on_data=on_data, on_close=log.on_close)
    theirs.send(b'\n' * MANY)
    r.run_once(0)
    getattr(conn, how)()
    theirs.close()
    run_until(r, lambda: 'close' in log.names())
    assert log.names() == ['line'] * MESSAGES_PER_TURN + ['close']
    assert not r.streams.suspended


@settings(max_examples=25)
@given(rnd=st.randoms(use_true_random=False), count=st.sampled_from([1, MESSAGES_PER_TURN, MESSAGES_PER_TURN + 1, 300]))
def test_whenever_reading_is_paused_and_resumed_every_message_arrives_in_order_and_then_the_end(rnd, count):
    received, paused = [], False

    def pause():
        nonlocal paused
        conn.pause_reading()
        paused = True

    def resume():
        nonlocal paused
        conn.resume_reading()
        paused = False

    def on_line(conn, line):
        assert not paused
        received.append(line)
        choice = rnd.random()
        if choice < 0.15:
            pause()
        if 0.1 < choice < 0.15:
            resume()

    def on_eof(conn):
        assert not paused
        received.append('eof')

    messages = [b'%d' % number for number in range(count)]
    left = b''.join(message + b'\n' for message in messages)
    ours, theirs = socket.socketpair()
    with theirs, Reactor(catch_errors=False) as r:
        conn = r.adopt(ours, framing.lines(on_line), on_eof=on_eof)
        while 'eof' not in received:
            if left and rnd.random() < 0.5:
                piece, left = left[:1000], left[1000:]
                theirs.send(piece)
                if not left:
                    theirs.shutdown(socket.SHUT_WR)
            if rnd.random() < 0.1:
                pause()
            if paused and rnd.random() < 0.5:
                resume()
            r.run_once(0)
        assert received == [*messages, 'eof'] and not r.streams.suspended


def test_an_exception_between_turns_is_passed_to_on_error_and_the_other_messages_follow(r, sockets):
    log = Log()

    def on_line(conn, line):
        log.append(('line',))
        if log.names().count('line') in (MESSAGES_PER_TURN, MESSAGES_PER_TURN + 7):
            raise RuntimeError

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_error=log.on_error, on_eof=log.on_eof)
    theirs.send(b'\n' * MANY)
    theirs.close()
    run_until(r, lambda: 'eof' in log.names())
    assert log.names().count('line') == MANY and log.names().count('error') == 2
    end(r, conn)


def test_another_framing_continues_with_the_rest_of_many(r, sockets):
    log = Log()
    block = framing.blocks(lambda conn, block: log.append(('block', block)), 3)

    def on_line(conn, line):
        log.append(('line', line))
        if line == b'switch':
            rest = conn.on_data.rest()
            conn.on_data = block
            block(conn, rest)

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line), on_eof=log.on_eof)
    theirs.send(b'\n' * MANY + b'switch\n' + b'abc' * MANY)
    theirs.close()
    run_until(r, lambda: 'eof' in log.names())
    assert log.names() == ['line'] * (MANY + 1) + ['block'] * MANY + ['eof']
    end(r, conn)


def test_another_on_data_that_replaced_a_framing_between_two_turns_is_called(r, sockets):
    log = Log()
    conn, theirs = pair(r, sockets, on_data=framing.lines(lambda conn, line: None), on_eof=log.on_eof)
    theirs.send(b'\n' * MANY)
    r.run_once(0)
    rest, conn.on_data = conn.on_data.rest(), log.on_data
    assert len(rest) == MANY - MESSAGES_PER_TURN
    theirs.send(b'more')
    theirs.close()
    run_until(r, lambda: 'eof' in log.names())
    assert log == [('data', b'more'), ('eof',)]
    end(r, conn)


def test_everything_received_before_sending_failed_is_delivered_even_over_several_turns(scripted):
    r, make = scripted
    log = Log()

    def on_line(conn, line):
        log.append(('line',))
        conn.write(b'answer')

    _, sock = make(on_data=framing.lines(on_line), on_close=log.on_close)
    sock.outcomes = deque([ConnectionResetError()])
    sock.incoming.extend([b'\n' * MANY, b'\n' * MANY, ConnectionResetError()])
    turns(r, 20)
    assert log.names() == ['line'] * 2 * MANY + ['close']


def test_waiting_messages_do_not_hit_a_time_limit(fake, kernel, sockets):
    log = Log()

    def on_line(conn, line):
        log.append(('line',))
        kernel.time += 0.01  # a slow callback

    ours, theirs = sockets()
    fake.adopt(ours, framing.lines(on_line), on_eof=log.on_eof, on_close=log.on_close, idle_timeout=1, read_timeout=1)
    theirs.send(b'\n' * MANY)
    theirs.close()
    run_until(fake, lambda: len(log) >= MANY)
    turns(fake, 3)
    assert log.names() == ['line'] * MANY + ['eof']
    end(fake, *fake.handles())


def test_over_tls_the_end_comes_after_many_messages_too(r, certificates):  # noqa: F811
    log = Log()
    on_data = framing.lines(lambda conn, line: log.append(('line',)))
    server = r.listen_tcp('127.0.0.1', 0, on_data, on_eof=log.on_eof, ssl=certificates.server())

    def on_connect(conn):
        conn.write(b'\n' * MANY)
        conn.write_eof()

    options = {'ssl': certificates.client(), 'server_hostname': 'localhost'}
    r.connect_tcp('127.0.0.1', server.address[1], on_connect=on_connect, **options)
    run_until(r, lambda: 'eof' in log.names())
    assert log.names() == ['line'] * MANY + ['eof']
    server.close()
    end(r, *r.handles())


def test_over_tls_resume_reading_delivers_the_delayed_messages_before_the_end(r, certificates):  # noqa: F811
    log = Log()

    def on_line(conn, line):
        log.append(('line', line))
        if line == b'one':
            conn.pause_reading()
            conn.loop.call_later(0.01, conn.resume_reading)

    server = r.listen_tcp('127.0.0.1', 0, framing.lines(on_line), on_eof=log.on_eof, ssl=certificates.server())

    def on_connect(conn):
        conn.write(b'one\ntwo\nthree\n')
        conn.write_eof()

    options = {'ssl': certificates.client(), 'server_hostname': 'localhost'}
    r.connect_tcp('127.0.0.1', server.address[1], on_connect=on_connect, **options)
    run_until(r, lambda: 'eof' in log.names())
    assert log == [('line', b'one'), ('line', b'two'), ('line', b'three'), ('eof',)]
    server.close()
    end(r, *r.handles())


def test_a_program_can_take_the_plain_text_after_the_request_for_tls_itself(r, sockets, certificates):  # noqa: F811
    log = Log()

    def on_line(conn, line):
        log.append((line, conn.on_data.rest()))
        conn.start_tls(certificates.server())
        conn.pause_reading()

    conn, theirs = pair(r, sockets, on_data=framing.lines(on_line))
    theirs.send(b'STARTTLS\nbehind\n')
    turns(r, 5)
    assert log == [(b'STARTTLS', b'behind\n')] and not conn.reading
    conn.resume_reading()
    turns(r, 3)
    assert len(log) == 1 and conn.reading and not conn.closed and not r.streams.suspended
    end(r, conn)


# -- STARTTLS


@pytest.mark.parametrize('after', [b'evil\n', b'ev'], ids=['a line', 'a part of a line'])
def test_plain_text_after_the_request_for_tls_ends_the_connection_and_is_never_a_message(
    r,
    sockets,
    certificates,  # noqa: F811
    after,
):
    """A line that arrived in plain text must not look as if it had been encrypted (as in CVE-2011-0411)."""
    lines, log = [], Log()
    a, b = sockets()

    def on_line(conn, line):
        lines.append(line)
        conn.write(b'go ahead\n')
        conn.start_tls(certificates.server())

    server = r.adopt(a, framing.lines(on_line), on_close=log.on_close)
    b.sendall(b'STARTTLS\n' + after)
    run_until(r, lambda: server.closed and log)
    assert lines == [b'STARTTLS']
    ((_, exc),) = log
    assert isinstance(exc, TLSError) and f'{len(after)} bytes in plain text after' in str(exc)


def test_lines_after_the_handshake_are_messages_again(r, sockets, certificates):  # noqa: F811
    lines = []
    a, b = sockets()

    def on_line(conn, line):
        lines.append((line, conn.tls is not None))
        if line == b'STARTTLS':
            conn.write(b'go ahead\n')
            conn.start_tls(certificates.server())

    def on_answer(conn, line):
        conn.start_tls(certificates.client(), server_hostname='localhost')
        conn.write(b'one\ntwo\n')

    server, client = r.adopt(a, framing.lines(on_line)), r.adopt(b, framing.lines(on_answer))
    client.write(b'STARTTLS\n')
    run_until(r, lambda: len(lines) == 3)
    assert lines == [(b'STARTTLS', False), (b'one', True), (b'two', True)]
    end(r, server, client)
