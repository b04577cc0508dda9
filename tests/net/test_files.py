"""Sending files: in order with other writes, at the pace of the peer, and with exactly one `on_close`."""

from __future__ import annotations

import errno
import gc
import os
import socket
import tempfile
import weakref

import pytest

from reactor import ConnectionClosed, Reactor, ReactorError, SendFileError, WriteBufferFull, WriteTimeout
from reactor.kernel import Kernel
from reactor.net.files import FILE_BYTES_PER_TURN, READ_BELOW
from reactor.net.writer import (
    BUFFERS_PER_SEND,
    FILE_COST,
    GATHER_BELOW,
    MARK_COST,
    FilePart,
    Writer,
)
from tests.helpers.exhaustion import Fault, need_faults
from tests.helpers.support import FakeKernel, Log, drain, end, in_thread, pair, read_all, run_until, turns

BIG = 100 << 20


class ReadingKernel(Kernel):
    """A kernel whose sendfile always fails, so that files have to be read."""

    def sendfile(self, sock, fd, offset, count):
        raise OSError(errno.EINVAL, 'refused')


class FailingKernel(Kernel):
    """A kernel whose disk fails."""

    def sendfile(self, sock, fd, offset, count):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read_file(self, fd, offset, count):
        if offset < 1 << 20:
            return super().read_file(fd, offset, count)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def made():
    """Make an unnamed file with the given bytes, or a sparse file of the given size."""
    files = []

    def make(content):
        file = tempfile.TemporaryFile()
        files.append(file)
        if type(content) is int:
            file.truncate(content)
        else:
            file.write(content)
            file.flush()
        return file

    yield make
    for file in files:
        file.close()


@pytest.fixture(params=['sendfile', 'reading'])
def either(request):
    """Two reactors in turn: the test runs with one that uses sendfile, and with one that has to read files."""
    reactor = Reactor(kernel=Kernel() if request.param == 'sendfile' else ReadingKernel())
    yield reactor
    assert not reactor.handles() and not reactor.completions
    reactor.close()


def pattern(size):
    """Make bytes without repetitions: consecutive numbers of four bytes each."""
    return b''.join(number.to_bytes(4, 'big') for number in range(size // 4))


def descriptors():
    return len(os.listdir('/proc/self/fd' if os.path.isdir('/proc/self/fd') else '/dev/fd'))


def count_to_end(r, sock):
    """Read and drop everything up to the end of the stream; return the number of bytes."""
    total, buffer, ended = 0, bytearray(1 << 20), False

    def read():
        nonlocal total, ended
        try:
            while size := sock.recv_into(buffer):
                total += size
            ended = True
        except BlockingIOError:
            pass
        return ended

    run_until(r, read, 60)
    return total


# -- sending


@pytest.mark.parametrize('size', [1, READ_BELOW - 1, READ_BELOW, 100_000, 3_000_004])
def test_a_file_arrives_whole(either, sockets, made, size):
    log = Log()
    data = pattern(size + 4)[:size]
    conn, theirs = pair(either, sockets, **log.callbacks('on_close'))
    conn.send_file(made(data), 0, None, log.on_written, 'all')
    conn.close()
    assert read_all(either, theirs) == data
    theirs.close()
    run_until(either, lambda: log.names() == ['written', 'close'])
    assert log == [('written', 'all'), ('close', None)]


@pytest.mark.scenario(121)
@pytest.mark.parametrize(('offset', 'count'), [(0, 10), (5, None), (100_000, 200_000), (399_990, 10), (0, 400_000)])
def test_a_part_of_a_file_is_counted_from_its_offset(either, sockets, made, offset, count):
    data = pattern(400_000)
    conn, theirs = pair(either, sockets)
    conn.send_file(made(data), offset, count)
    conn.close()
    assert read_all(either, theirs) == data[offset : None if count is None else offset + count]
    theirs.close()
    turns(either, 3)


@pytest.mark.scenario(122)
def test_a_hundred_megabytes_arrive_and_wait_for_a_slow_reader(r, sockets, made):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_drain', 'on_close'))
    assert conn.send_file(made(BIG), 0, None, log.on_written) is False
    turns(r, 50)
    assert log == []
    taken = BIG - conn.buffered
    assert 0 < taken < BIG
    before = r.stats().events
    turns(r, 20)
    assert r.stats().events == before, 'the loop spins while the reader sleeps'
    total = 0
    while log.names() != ['written', 'drain']:
        total += len(theirs.recv(1 << 22, socket.MSG_DONTWAIT)) if readable(theirs) else 0
        r.run_once(0)
    assert conn.writer is None
    conn.close()
    assert total + count_to_end(r, theirs) == BIG
    theirs.close()
    run_until(r, lambda: log.names() == ['written', 'drain', 'close'])
    assert log[-1] == ('close', None)


def readable(sock):
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


@pytest.mark.scenario(121)
def test_a_hundred_megabytes_arrive_without_sendfile(either, sockets, made):
    conn, theirs = pair(either, sockets, tcp=True)
    conn.send_file(made(BIG), 0, None, type(conn).close)
    assert count_to_end(either, theirs) == BIG
    theirs.close()
    run_until(either, lambda: conn.sock is None)
    turns(either, 2)


@pytest.mark.scenario(121)
def test_the_order_with_other_writes_is_kept(either, sockets, made):
    log = Log()
    data = pattern(1_000_000)
    file = made(data)
    conn, theirs = pair(either, sockets, high_water=16, **log.callbacks('on_close'))
    expected = []
    for number in range(5):
        for piece in b'head', b'x' * 9000, bytearray(b'tail'):
            conn.write(piece, log.on_written, number, len(piece))
            expected.append(bytes(piece))
        conn.send_file(file, 4 * number, 300_000, log.on_written, number, 'file')
        conn.send_file(file, number, 7, log.on_written, number, 'small')
        expected += [data[4 * number :][:300_000], data[number:][:7]]
    assert conn.buffered > 0
    conn.close()
    assert read_all(either, theirs) == b''.join(expected)
    theirs.close()
    run_until(either, lambda: 'close' in log.names())
    assert log[-1] == ('close', None)
    assert [entry[1:] for entry in log[:-1]] == [
        (number, what) for number in range(5) for what in (4, 9000, 4, 'file', 'small')
    ]


@pytest.mark.scenario(124)
def test_the_file_may_be_closed_after_the_call(either, sockets, made):
    log = Log()
    data = pattern(8 << 20)
    conn, theirs = pair(either, sockets, **log.callbacks('on_close'))
    file = made(data)
    conn.send_file(file)
    file.close()
    with tempfile.TemporaryFile() as another:  # probably gets the number of the closed file
        another.truncate(8 << 20)
        conn.close()
        assert read_all(either, theirs) == data
    theirs.close()
    run_until(either, lambda: log == [('close', None)])


def test_the_position_of_the_file_is_neither_used_nor_moved(either, sockets, made):
    file = made(pattern(100_000))
    file.seek(17)
    conn, theirs = pair(either, sockets)
    conn.send_file(file)
    assert len(read_until_quiet(either, theirs)) == 100_000
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 17 or os.name == 'nt'
    end(either, conn)


def read_until_quiet(r, sock):
    pieces = []
    for _ in range(20):
        r.run_once(0)
        try:
            while piece := sock.recv(1 << 20):
                pieces.append(piece)
        except BlockingIOError:
            pass
    return b''.join(pieces)


@pytest.mark.scenario(125)
@pytest.mark.parametrize('empty', [False, True])
def test_sending_an_empty_part_is_reported_in_order_without_a_system_call(r, sockets, made, empty):
    log = Log()
    conn, _ = pair(r, sockets)
    file = made(b'' if empty else b'data')
    writes = r.stats().writes
    assert conn.send_file(file, 0, None if empty else 0, log.on_written, 1) is True
    assert conn.send_file(file, 0 if empty else 4, None, log.on_written, 2) is True
    assert log == []
    turns(r, 1)
    assert log == [('written', 1), ('written', 2)]
    assert r.stats().writes == writes
    end(r, conn)


@pytest.mark.scenario(61)
def test_a_file_sent_while_connecting_is_sent_after_the_connect(r, made):
    log = Log()
    data = pattern(2_000_000)
    received = []
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, piece: received.append(piece))
    conn = r.connect_tcp('127.0.0.1', server.address[1], **log.callbacks('on_connect', 'on_close'))
    conn.write(b'first')
    assert conn.send_file(made(data), 0, None, log.on_written) is False
    conn.on_drain = lambda conn: conn.close()
    run_until(r, lambda: 'close' in log.names())
    assert log == [('connect',), ('written',), ('close', None)]
    run_until(r, lambda: sum(map(len, received)) == 2_000_005)
    assert b''.join(received) == b'first' + data
    server.close()
    run_until(r, lambda: not r.handles())


def test_a_unix_socket_takes_files_too(r, made, tmp_path):
    data = pattern(2_000_000)
    received = []
    server = r.listen_unix(str(tmp_path / 's'), lambda conn, piece: received.append(piece))
    conn = r.connect_unix(str(tmp_path / 's'))
    conn.send_file(made(data), 0, None, type(conn).close)
    run_until(r, lambda: sum(map(len, received)) == len(data))
    assert b''.join(received) == data
    server.close()
    run_until(r, lambda: not r.handles())


@pytest.mark.scenario(121)
def test_a_file_is_read_and_sent_where_sendfile_cannot_be_used(scripted, made):
    r, make = scripted
    data = pattern(300_000)
    conn, sock = make()
    conn.send_file(made(data))
    turns(r, 10)
    assert sock.sent == data
    conn.close()


# -- the pace


@pytest.mark.scenario(122)
def test_one_connection_sends_a_bounded_part_of_a_file_in_a_turn(r, sockets, made):
    conn, theirs = pair(r, sockets, tcp=True)
    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    conn.send_file(made(BIG))
    assert BIG - conn.buffered <= FILE_BYTES_PER_TURN
    for _ in range(10):
        before = conn.buffered
        read_now(theirs)
        r.run_once(0)
        assert before - conn.buffered <= FILE_BYTES_PER_TURN
    end(r, conn)


def read_now(sock):
    try:
        while sock.recv(1 << 20):
            pass
    except BlockingIOError:
        pass


@pytest.mark.scenario(61)
def test_the_unsent_part_of_a_file_counts_towards_the_marks_and_drains(r, sockets, made):
    log = Log()
    conn, theirs = pair(r, sockets, on_drain=log.on_drain)
    assert conn.send_file(made(8 << 20)) is False
    assert conn.write(b'x') is False
    assert 0 < conn.buffered <= (8 << 20) + 1
    assert f'{conn.buffered} bytes wait' in repr(conn)
    run_until(r, lambda: read_now(theirs) or log == [('drain',)])
    assert conn.buffered < 65536
    assert conn.write(b'y') is True
    end(r, conn)


def test_a_file_that_is_sent_at_once_leaves_no_writer(r, sockets, made):
    conn, theirs = pair(r, sockets)
    assert conn.send_file(made(pattern(10_000))) is True
    assert conn.writer is None and conn.buffered == 0
    assert conn.send_file(made(pattern(10_000))) is True
    conn.close()
    assert len(read_all(r, theirs)) == 20_000
    turns(r, 2)


@pytest.mark.scenario(124)
def test_a_file_counts_towards_max_buffered_with_a_fixed_cost_and_not_its_size(r, sockets, made):
    log = Log()
    file = made(BIG)
    conn, _ = pair(r, sockets, max_buffered=5 * FILE_COST, **log.callbacks('on_close'))
    before = descriptors()
    for _ in range(5):
        conn.send_file(file)
    assert descriptors() == before + 5
    assert not conn.closed
    assert conn.send_file(file) is False
    assert conn.closed
    turns(r, 1)
    assert [type(exc) for _, exc in log] == [WriteBufferFull]
    assert descriptors() < before + 1


@pytest.mark.scenario(122)
def test_the_write_timeout_applies_to_a_file(kernel, fake, sockets, made):
    log = Log()
    conn, _ = pair(fake, sockets, write_timeout=5, **log.callbacks('on_close'))
    conn.send_file(made(BIG))
    fake.run()
    assert [type(exc) for _, exc in log] == [WriteTimeout]
    assert 5 <= kernel.time - 1000 <= 7


def test_writes_are_counted(r, sockets, made):
    conn, _theirs = pair(r, sockets)
    before = r.stats()
    conn.send_file(made(50_000))
    assert (r.stats().writes - before.writes, r.stats().bytes_out - before.bytes_out) == (1, 50_000)
    end(r, conn)


# -- ends


def test_close_sends_the_rest_of_the_file_first(r, sockets, made):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_close'))
    conn.send_file(made(BIG // 4), 0, None, log.on_written)
    conn.close()
    assert conn.closed
    assert count_to_end(r, theirs) == BIG // 4
    theirs.close()
    run_until(r, lambda: len(log) == 2)
    assert log == [('written',), ('close', None)]


@pytest.mark.scenario(122)
def test_a_peer_that_does_not_take_the_file_is_reset_when_the_linger_is_over(kernel, fake, sockets, made):
    log = Log()
    conn, _ = pair(fake, sockets, linger=3, **log.callbacks('on_close'))
    conn.send_file(made(BIG), 0, None, log.on_written)
    conn.close()
    fake.run()
    assert [type(exc) for _, exc in log] == [WriteTimeout]
    assert 3 <= kernel.time - 1000 <= 4


def test_write_eof_comes_after_the_file_and_reading_goes_on(r, sockets, made):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_data', 'on_eof', 'on_close'))
    conn.send_file(made(BIG // 10))
    conn.write_eof()
    assert count_to_end(r, theirs) == BIG // 10
    theirs.send(b'thanks')
    theirs.close()
    run_until(r, lambda: 'close' in log.names())
    assert log == [('data', b'thanks'), ('eof',), ('close', None)]


@pytest.mark.scenario(124)
def test_abort_drops_the_file_and_on_close_sees_how_much_was_not_sent(r, sockets, made):
    log, left = Log(), []
    conn, theirs = pair(r, sockets, tcp=True)
    conn.on_close = lambda conn, exc: left.append((exc, conn.buffered))
    before = descriptors()
    conn.send_file(made(BIG), 0, None, log.on_written)
    waiting = conn.buffered
    conn.abort()
    assert left == []
    turns(r, 1)
    assert (left, log) == ([(None, waiting)], [])
    assert descriptors() <= before + 1  # one more, because the file was opened after counting
    with pytest.raises(ConnectionResetError):
        while theirs.recv(1 << 20):
            pass


def test_a_reset_by_the_peer_ends_the_connection_once_with_the_kernels_error(r, sockets, made):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_close'))
    conn.send_file(made(BIG), 0, None, log.on_written)
    theirs.close()  # bytes are still unread, so the kernel sends a reset
    run_until(r, lambda: log)
    turns(r, 3)
    assert len(log) == 1
    assert isinstance(log[0][1], ConnectionError) and log[0][1].__traceback__ is None


@pytest.mark.scenario(123)
def test_a_file_that_becomes_shorter_resets_the_connection_with_a_clear_error(either, sockets, made):
    log = Log()
    file = made(8 << 20)
    conn, theirs = pair(either, sockets, tcp=True, **log.callbacks('on_close', 'on_error'))
    conn.send_file(file, 0, None, log.on_written)
    conn.write(b'behind it')
    conn.close()
    file.truncate(1 << 20)
    with pytest.raises(ConnectionResetError):
        for _ in range(1000):
            either.run_once(0)
            try:
                while True:
                    assert theirs.recv(1 << 20), 'the stream ended cleanly after only a part of the file'
            except BlockingIOError:
                pass
    turns(either, 2)
    ((name, exc),) = log
    assert name == 'close' and isinstance(exc, SendFileError)
    assert 'became shorter' in str(exc) and str(8 << 20) in str(exc)
    assert exc.__traceback__ is None and exc.__context__ is None


def test_a_small_file_that_becomes_shorter_while_it_is_read_raises_at_the_call_and_sends_nothing(sockets, made):
    class Shrinking(Kernel):
        def read_file(self, fd, offset, count):
            return super().read_file(fd, offset, count - 1)

    with Reactor(kernel=Shrinking()) as r:
        conn, theirs = pair(r, sockets)
        with pytest.raises(SendFileError, match='nothing was sent'):
            conn.send_file(made(b'a few bytes'))
        conn.write(b'next')
        assert theirs.recv(100) == b'next'


@pytest.mark.scenario(123)
def test_a_file_that_becomes_longer_is_sent_up_to_its_old_length(either, sockets, made):
    file = made(4 << 20)
    conn, theirs = pair(either, sockets)
    conn.send_file(file)
    file.truncate(5 << 20)
    conn.close()
    assert count_to_end(either, theirs) == 4 << 20
    theirs.close()
    turns(either, 3)


@pytest.mark.scenario(123)
def test_a_disk_that_fails_resets_the_connection(sockets, made):
    log = Log()
    with Reactor(kernel=FailingKernel()) as r:
        conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_close'))
        conn.send_file(made(8 << 20))
        run_until(r, lambda: read_now_or_lost(theirs) or log)
        missing = (8 << 20) - r.stats().bytes_out
    exc = log[0][1]
    assert isinstance(exc, SendFileError) and 'cannot be read' in str(exc) and exc.__context__ is None
    assert f'the last {missing} of {8 << 20} bytes were not sent' in str(exc)


def test_a_foreign_close_of_the_file_resets_the_connection(r, sockets, made):
    # Regression: the reactor used to believe that the descriptor of the connection was lost. The connection was neither
    # reset nor closed, and its descriptor leaked.
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_close'))
    number, copies = conn.fileno(), []

    class Noting(Kernel):
        def copy_of_file(self, fd):
            copies.append(super().copy_of_file(fd))
            return copies[0]

    r.kernel = Noting()
    conn.send_file(made(BIG))
    os.close(copies[0])
    drain(theirs)
    run_until(r, lambda: log)
    exc = log[0][1]
    assert isinstance(exc, SendFileError) and 'cannot be read' in str(exc)
    with pytest.raises(ConnectionResetError):
        drain(theirs)
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(number)


@pytest.mark.parametrize('files', [0, 1])
def test_a_file_that_could_not_be_queued_is_not_counted(made, files):
    # Regression: a file that could not be queued used to be counted among the queued files, whose bytes do not
    # count towards max_buffered. The connection could then buffer 50 MiB too much.
    need_faults()
    kernel, file, args = Kernel(), made(BIG), ()

    def part():
        return FilePart(kernel, kernel.copy_of_file(file.fileno()), 0, 50 << 20, 'file')

    failed = 0
    for n in range(1, 30):
        writer = Writer()
        for _ in range(files):
            writer.extend((part(),), None, ())
            writer.advance(10)
        writer.extend((b'x',), None, ())
        before, pieces = (type(writer), writer.weight, writer.buffered), (part(),)
        try:
            Fault(n).run(lambda writer=writer, pieces=pieces: writer.extend(pieces, print, args))
        except MemoryError:
            failed += 1
            assert (type(writer), writer.weight, writer.buffered) == before
        else:
            assert writer.weight == before[1] + FILE_COST + MARK_COST
    assert failed


def read_now_or_lost(sock):
    try:
        read_now(sock)
    except ConnectionResetError:
        pass


@pytest.mark.parametrize('how', ['close', 'abort', 'write_eof'])
def test_send_file_after_our_own_end_raises(r, sockets, made, how):
    conn, _theirs = pair(r, sockets)
    file = made(100_000)
    before = descriptors()
    getattr(conn, how)()
    with pytest.raises(ConnectionClosed):
        conn.send_file(file)
    assert descriptors() <= before
    end(r, conn)


def test_send_file_after_a_failure_that_was_not_reported_yet_returns_false(r, sockets, made):
    log = Log()
    conn, theirs = pair(r, sockets, tcp=True, **log.callbacks('on_close'))
    file = made(BIG)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
    theirs.close()
    results = [conn.send_file(file, 0, None, log.on_written) for _ in range(3)]
    assert results == [False] * 3
    run_until(r, lambda: log)
    assert [name for name, _ in log] == ['close']


# -- arguments


@pytest.mark.scenario(125)
def test_objects_that_cannot_be_sent_are_refused_at_the_call(r, sockets, made):
    conn, _ = pair(r, sockets)
    file = made(b'0123456789')
    for error, args in [
        (TypeError, ('name',)),
        (TypeError, (3,)),
        (TypeError, (file, 1.5)),
        (TypeError, (file, True)),
        (TypeError, (file, 0, '3')),
        (TypeError, (file, 0, 3, 'not callable')),
        (ValueError, (file, -1)),
        (ValueError, (file, 0, -1)),
        (ValueError, (file, 11)),
        (ValueError, (file, 11, 0)),
        (ValueError, (file, 5, 6)),
        (ValueError, (file, 0, 1 << 40)),
    ]:
        with pytest.raises(error):
            conn.send_file(*args)
    assert (conn.buffered, conn.writer) == (0, None)
    end(r, conn)


def test_a_closed_file_is_refused_at_the_call(r, sockets, made):
    conn, _ = pair(r, sockets)
    file = made(b'data')
    file.close()
    with pytest.raises(ValueError):
        conn.send_file(file)
    end(r, conn)


@pytest.mark.scenario(125)
def test_a_pipe_is_refused_because_reading_it_could_block(r, sockets):
    conn, _ = pair(r, sockets)
    reader, writer = os.pipe()
    with open(reader, 'rb') as pipe, open(writer, 'wb'):
        with pytest.raises(ValueError, match='regular'):
            conn.send_file(pipe)
    end(r, conn)


def test_debug_refuses_a_file_from_another_thread(sockets, made):
    with Reactor(debug=True) as r:
        conn, _ = pair(r, sockets)
        file = made(b'data')
        refused = []

        def send():
            try:
                in_thread(conn.send_file, file)
            except ReactorError as exc:
                refused.append(exc)

        r.call_soon(send)
        turns(r, 1)
        assert len(refused) == 1


# -- leaks


@pytest.mark.scenario(124)
@pytest.mark.parametrize('way', ['sent', 'closed', 'abort', 'lost', 'shorter', 'reactor closed'])
def test_the_objects_and_descriptors_of_a_file_are_freed_without_the_collector(sockets, made, way):
    class Thing:
        def __call__(self, *args):
            pass

    gc.collect()
    gc.disable()
    try:
        r = Reactor(kernel=FakeKernel())
        file = made(16 << 20)
        ours, theirs = sockets()
        before = descriptors()
        refs = []

        def go():
            thing = Thing()
            conn = r.adopt(ours, thing, on_close=thing, linger=1)
            conn.send_file(file, 0, None, thing, thing)
            conn.write(b'x', thing)
            refs.extend((weakref.ref(thing), weakref.ref(conn)))
            if way == 'sent':
                conn.close()
                assert len(read_all(r, theirs)) == (16 << 20) + 1
                theirs.close()
            elif way == 'closed':
                conn.close()
            elif way == 'abort':
                conn.abort()
            elif way == 'lost':
                theirs.close()
            elif way == 'shorter':
                file.truncate(100)
                read_until_lost(r, theirs)

        go()
        if way == 'reactor closed':
            r.close()
        else:
            r.run()
        assert [ref() for ref in refs] == [None, None]
        assert descriptors() < before  # the socket and the duplicate of the file are closed
        r.close()
    finally:
        gc.enable()


def read_until_lost(r, sock):
    for _ in range(100):
        r.run_once(0)
        try:
            if not sock.recv(1 << 20):
                return
        except (BlockingIOError, ConnectionResetError):
            pass


# -- the writer


def test_a_file_after_more_buffers_than_one_send_takes_waits_its_turn(r, sockets, made):
    conn, theirs = pair(r, sockets)
    conn.write(bytes(1 << 20))
    pieces = [bytes([number]) * GATHER_BELOW for number in range(2 * BUFFERS_PER_SEND)]
    conn.writelines(pieces)
    conn.send_file(made(pattern(20_000)))
    conn.close()
    assert read_all(r, theirs) == bytes(1 << 20) + b''.join(pieces) + pattern(20_000)
    theirs.close()
    run_until(r, lambda: not r.handles())


def test_a_writer_is_a_file_writer_only_while_it_has_files(made):
    kernel = Kernel()
    writer = Writer()
    file = made(pattern(20_000))

    def part(offset, count):
        return FilePart(kernel, os.dup(file.fileno()), offset, count, 'x')

    writer.extend((b'a', part(0, 5000), b'b', part(8, 6000)), print, ('all',))
    assert writer.files
    assert writer.buffered == 11_002
    assert writer.weight == 2 + 2 * FILE_COST + MARK_COST
    assert writer.buffers() == [b'a']
    writer.advance(1)
    first = writer.buffers()
    assert type(first) is FilePart and (len(first), first.sent) == (5000, 0)
    writer.advance(4999)
    assert writer.buffers() is first and first.sent == 4999
    assert writer.weight == 1 + 2 * FILE_COST + MARK_COST
    writer.advance(1)
    assert writer.weight == 1 + FILE_COST + MARK_COST
    assert writer.buffers() == [b'b']
    writer.extend((b'c',), None, ())
    writer.advance(1)
    assert writer.buffers().read(4) == pattern(20_000)[8:12]
    writer.advance(6000)
    assert type(writer) is Writer and writer.buffers() == [b'c']
    assert writer.reached()[0][2] == ('all',)
    assert (writer.buffered, writer.weight) == (1, 1)


def test_a_writer_never_gathers_a_part_of_a_file():
    assert READ_BELOW >= GATHER_BELOW


def test_dropping_a_copy_of_a_file_after_a_foreign_close_prints_no_error():
    # Regression: Python used to print "Exception ignored in FilePart.__del__" to standard error. That would
    # fail this test.
    with tempfile.TemporaryFile() as file:
        copy = os.dup(file.fileno())
        part = FilePart(Kernel(), copy, 0, 10, 'x')
        os.close(copy)
        del part
        gc.collect()
