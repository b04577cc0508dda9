"""Streams on pipes, terminals and FIFOs of the user: their callbacks and ends, and what happens to the descriptor."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import weakref
from typing import Any

import pytest

from reactor import (
    ConnectionClosed,
    HandleClosed,
    IdleTimeout,
    Reactor,
    ReactorError,
    ReadTimeout,
    WriteTimeout,
    framing,
)
from reactor.testing import SimKernel
from tests.helpers.support import Log, idle, run_until, turns

if os.name != 'posix':
    pytest.skip('there are no such descriptors on this platform', allow_module_level=True)

import pty
import tty

CALLBACKS = 'on_eof', 'on_drain', 'on_close', 'on_error'


@pytest.fixture
def files():
    """Descriptors that are closed after the test, unless the test or a stream has closed them."""
    made: list[int] = []

    class Maker:
        def pipe(self) -> tuple[int, int]:
            made.extend(pair := os.pipe())
            return pair

        def pty(self) -> tuple[int, int]:
            """Return the master and the slave of a terminal that passes bytes on as they are."""
            made.extend(pair := pty.openpty())
            tty.setraw(pair[1])
            return pair

        def open(self, path: Any, flags: int) -> int:
            made.append(fd := os.open(path, flags))
            return fd

    yield Maker()
    for fd in made:
        try:
            os.close(fd)
        except OSError:
            pass


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- pipes


def test_a_readable_end_delivers_bytes_and_the_end_of_file(r, files):
    reader, writer = files.pipe()
    log = Log()
    stream = r.open_fd(reader, log.on_data, **log.callbacks(*CALLBACKS))
    os.write(writer, b'hello')
    run_until(r, lambda: log)
    os.close(writer)
    run_until(r, lambda: stream.state == 'CLOSED')
    run_until(r, lambda: log[-1][0] == 'close')
    assert log == [('data', b'hello'), ('eof',), ('close', None)]
    assert not is_open(reader)


def test_a_readable_end_accepts_no_bytes(r, files):
    stream = r.open_fd(files.pipe()[0])
    with pytest.raises(ConnectionClosed):
        stream.write(b'x')
    stream.close()
    turns(r, 1)


def test_a_writable_end_sends_buffers_and_ends(r, files):
    reader, writer = files.pipe()
    log = Log()
    stream = r.open_fd(writer, high_water=1000, **log.callbacks(*CALLBACKS))
    data = os.urandom(1_000_000)
    assert not stream.write(data, log.on_written, 1)
    stream.write_eof()
    with pytest.raises(ConnectionClosed):
        stream.write(b'x')
    received = bytearray()
    os.set_blocking(reader, False)

    def all_received() -> bool:
        try:
            received.extend(os.read(reader, 1 << 16))
        except BlockingIOError:
            pass
        return len(received) == len(data)

    run_until(r, all_received)
    run_until(r, lambda: ('close', None) in log)
    assert received == data and log == [('written', 1), ('close', None)] and os.read(reader, 1) == b''
    assert not is_open(writer)


def test_on_drain_is_called_at_the_low_water_mark(r, files):
    reader, writer = files.pipe()
    log = Log()
    stream = r.open_fd(writer, high_water=100_000, **log.callbacks('on_drain'))
    while stream.write(b'x' * 10_000):
        pass
    os.set_blocking(reader, False)
    run_until(r, lambda: os.read(reader, 1 << 20) and log if stream.buffered else log)
    assert log == [('drain',)]
    stream.abort()
    turns(r, 2)


def test_a_reader_that_goes_away_is_a_broken_pipe(r, files):
    reader, writer = files.pipe()
    log = Log()
    stream = r.open_fd(writer, **log.callbacks(*CALLBACKS))
    stream.write(b'x' * 200_000)
    os.close(reader)
    run_until(r, lambda: log)
    ((_, exc),) = log
    assert type(exc) is BrokenPipeError and f'descriptor {writer}' in str(exc)


def test_a_write_after_the_reader_is_gone_is_a_broken_pipe(r, files):
    reader, writer = files.pipe()
    log: list[Any] = []
    stream = r.open_fd(writer, on_close=lambda stream, exc: log.extend((type(exc), stream.buffered)))
    os.close(reader)
    assert not stream.write(b'x')
    run_until(r, lambda: log)
    assert log == [BrokenPipeError, 1]


def test_an_idle_writer_notices_that_its_reader_is_gone(r, files):
    reader, writer = files.pipe()
    log = Log()
    r.open_fd(writer, **log.callbacks(*CALLBACKS))
    os.close(reader)
    run_until(r, lambda: log)
    assert log == [('close', None)]


def test_lines_from_a_pipe(r, files):
    reader, writer = files.pipe()
    lines: list[bytes] = []
    r.open_fd(reader, framing.lines(lambda conn, line: lines.append(line)))
    os.write(writer, b'one\ntwo\nthr')
    os.close(writer)
    run_until(r, lambda: not r.handles() and not r.completions)
    assert lines == [b'one', b'two']


def test_a_paused_stream_reads_nothing_and_does_not_spin(r, files):
    reader, writer = files.pipe()
    log = Log()
    stream = r.open_fd(reader, log.on_data, **log.callbacks('on_close'))
    stream.pause_reading()
    os.write(writer, b'x')
    os.close(writer)
    assert idle(r) and log == []
    stream.resume_reading()
    run_until(r, lambda: ('close', None) in log)
    assert log[0] == ('data', b'x')


def test_a_fifo(r, tmp_path, files):
    path = tmp_path / 'fifo'
    os.mkfifo(path)
    log = Log()
    reader = r.open_fd(files.open(path, os.O_RDONLY | os.O_NONBLOCK), log.on_data, **log.callbacks('on_close'))
    assert idle(r), 'a FIFO without a writer is not at its end'
    writer = r.open_fd(files.open(path, os.O_WRONLY))
    writer.write(b'hello')
    writer.close()
    run_until(r, lambda: ('close', None) in log)
    assert log == [('data', b'hello'), ('close', None)] and reader.closed


@pytest.mark.parametrize(
    ('end', 'limit', 'error'),
    [(0, 'read_timeout', ReadTimeout), (0, 'idle_timeout', IdleTimeout), (1, 'write_timeout', WriteTimeout)],
)
def test_time_limits(fake, files, end, limit, error):
    log = Log()
    stream = fake.open_fd(files.pipe()[end], **{limit: 5}, **log.callbacks('on_close'))
    if end:
        stream.write(b'x' * 1_000_000)
    fake.run()
    ((_, exc),) = log
    assert type(exc) is error and 5 <= fake.kernel.time - 1000 <= 7


# -- terminals


def test_a_terminal_is_read_and_written(r, files):
    master, slave = files.pty()
    log, other = Log(), Log()
    stream = r.open_fd(master, log.on_data, **log.callbacks('on_close'))
    far = r.open_fd(slave, other.on_data)
    stream.write(b'question\n', log.on_written, 1)
    far.write(b'answer\n')
    run_until(r, lambda: other.received == b'question\n' and log.received == b'answer\n')
    assert ('written', 1) in log
    far.close()
    run_until(r, lambda: ('close', None) in log)
    assert len(log) == 3, 'EIO on the master is the end of the stream'
    assert not is_open(master) and not is_open(slave)


def test_the_end_of_a_child_on_a_terminal_is_the_end_of_the_stream(r, files):
    master, slave = files.pty()
    log = Log()
    r.open_fd(master, log.on_data, **log.callbacks('on_close'))
    child = r.spawn([sys.executable, '-c', 'print(input())'], stdin=slave, stdout=slave)
    os.close(slave)
    os.write(master, b'hello\n')
    run_until(r, lambda: ('close', None) in log and child.closed)
    assert log.received == b'hello\n' and len([each for each in log if each[0] == 'close']) == 1
    turns(r, 2)


def test_after_the_end_of_a_terminal_writing_fails_or_is_lost_and_nothing_spins(r, files):
    master, slave = files.pty()
    log = Log()
    stream = r.open_fd(master, log.on_data, **log.callbacks('on_eof', 'on_close'))
    os.close(slave)
    run_until(r, lambda: ('eof',) in log)
    assert stream.state == 'OPEN' and idle(r)
    stream.close()
    run_until(r, lambda: log.names()[-1] == 'close')


def test_closing_a_terminal_sends_what_is_buffered_and_does_not_wait_for_an_end_of_file(r, files):
    master, slave = files.pty()
    stream = r.open_fd(slave, linger=60)
    size = 100_000
    stream.write(b'x' * size)
    stream.close()
    assert stream.state == 'CLOSING'
    os.set_blocking(master, False)
    received = 0

    def over() -> bool:
        nonlocal received
        try:
            received += len(os.read(master, 1 << 16))
        except (BlockingIOError, OSError):
            pass
        return received == size and not r.handles() and not r.completions

    run_until(r, over)


def test_write_eof_ends_only_our_side_of_a_terminal(r, files):
    master, slave = files.pty()
    log = Log()
    stream = r.open_fd(master, log.on_data, **log.callbacks('on_close'))
    stream.write(b'last')
    stream.write_eof()
    with pytest.raises(ConnectionClosed):
        stream.write(b'x')
    os.write(slave, b'still read')
    run_until(r, lambda: log.received == b'still read')
    os.close(slave)
    run_until(r, lambda: ('close', None) in log)


def test_repr_and_peername(r, files):
    reader, writer = files.pipe()
    master, _ = files.pty()
    streams = [r.open_fd(fd) for fd in (reader, writer, master)]
    for stream, fd, kind in zip(
        streams, (reader, writer, master), ('ReadPipe', 'WritePipe', 'DuplexPipe'), strict=True
    ):
        assert repr(stream) == f'<{kind} fd={fd} OPEN descriptor {fd}, 0 bytes wait>'
        assert stream.peername == f'descriptor {fd}' and stream.sockname is None
        with pytest.raises(TypeError, match='start_tls'):
            stream.start_tls(None)
        stream.abort()
    turns(r, 2)


# -- the descriptor


def test_a_descriptor_becomes_non_blocking_and_is_blocking_again_after_the_end(r, files):
    _, writer = files.pipe()
    copy = os.dup(writer)  # it shares the flag, as a descriptor of another process would
    stream = r.open_fd(writer)
    assert not os.get_blocking(copy)
    stream.close()
    turns(r, 1)
    assert os.get_blocking(copy) and not is_open(writer)
    os.close(copy)


def test_a_descriptor_that_was_non_blocking_stays_so(r, files):
    _, writer = files.pipe()
    os.set_blocking(writer, False)
    stream = r.open_fd(writer, closefd=False)
    stream.close()
    turns(r, 1)
    assert not os.get_blocking(writer)


@pytest.mark.parametrize('first', [0, 1])
def test_of_two_streams_on_one_terminal_the_last_one_makes_it_blocking_again(r, files, first):
    """Standard input and output often share a terminal. A blocking one would block the loop of the other stream."""
    _, slave = files.pty()
    copy = os.dup(slave)
    streams = [r.open_fd(slave, closefd=False), r.open_fd(copy, closefd=False)]
    streams.pop(first).close()
    turns(r, 1)
    assert not os.get_blocking(slave)
    streams.pop().close()
    turns(r, 1)
    assert os.get_blocking(slave)
    os.close(copy)


def test_each_end_of_a_pipe_becomes_blocking_again_at_its_own_end(r, files):
    reader, writer = files.pipe()
    streams = [r.open_fd(fd, closefd=False) for fd in (reader, writer)]
    streams[1].close()
    turns(r, 1)
    assert os.get_blocking(writer) and not os.get_blocking(reader)
    streams[0].close()
    turns(r, 1)
    assert os.get_blocking(reader)


def test_closefd_false_leaves_the_descriptor_open(r, files):
    reader, writer = files.pipe()
    for _ in range(2):
        stream = r.open_fd(reader, closefd=False)
        stream.close()
        turns(r, 1)
    assert is_open(reader) and os.get_blocking(reader)
    os.write(writer, b'x')
    assert os.read(reader, 1) == b'x'


@pytest.mark.parametrize('closefd', [True, False])
def test_a_file_object_is_closed_by_its_own_method(r, files, closefd):
    """Otherwise it would later close a descriptor of somebody else that has got the number."""
    reader, _ = files.pipe()
    with open(reader, 'rb', buffering=0) as file:
        stream = r.open_fd(file, closefd=closefd)
        assert stream.fileno() == reader
        stream.close()
        turns(r, 1)
        assert file.closed == closefd


def test_the_reactor_closes_its_streams(files):
    reader, writer = files.pipe()
    log = Log()
    with Reactor() as r:
        r.open_fd(reader, **log.callbacks('on_close'))
        r.open_fd(writer, closefd=False)
    assert log == [('close', None)] and not is_open(reader) and is_open(writer) and os.get_blocking(writer)


@pytest.mark.parametrize('what', ['file', 'directory'])
def test_files_and_directories_are_refused_as_watch_fd_refuses_them(r, tmp_path, files, what):
    path = tmp_path
    if what == 'file':
        path = tmp_path / 'file'
        path.touch()
    fd = files.open(path, os.O_RDONLY)
    with pytest.raises(PermissionError, match='always ready; read it in a thread'):
        r.open_fd(fd)
    assert is_open(fd) and os.get_blocking(fd) and r.handles() == []


def test_a_socket_is_refused(r, sockets):
    ours, _ = sockets(blocking=True)
    with pytest.raises(ValueError, match=r'is a socket; use adopt\(\)'):
        r.open_fd(ours)
    assert ours.getblocking()


ONLY = r'cannot apply: descriptor \d+ is open for (reading|writing) only'


@pytest.mark.parametrize(
    ('error', 'message', 'fd', 'options'),
    [
        (TypeError, 'a descriptor must be an int or an object with fileno', 'x', {}),
        (ValueError, 'has no open descriptor', -1, {}),
        (OSError, 'is not open', 1000, {}),
        (TypeError, r"open_fd\(\) has no option 'closfd'; did you mean 'closefd'", 'reader', {'closfd': True}),
        (TypeError, "has no option 'nodelay'", 'reader', {'nodelay': True}),
        (TypeError, 'closefd must be True or False', 'reader', {'closefd': 'no'}),
        (ValueError, f'write_timeout=5 {ONLY}', 'reader', {'write_timeout': 5}),
        (ValueError, f'read_timeout=5 {ONLY}', 'writer', {'read_timeout': 5}),
        (ValueError, f'on_data=.*print.* {ONLY}', 'writer', {'on_data': print}),
        (TypeError, 'on_data must be callable', 'reader', {'on_data': 5}),
    ],
)
def test_wrong_arguments_are_refused_and_the_descriptor_stays_as_it_is(r, files, error, message, fd, options):
    reader, writer = files.pipe()
    with pytest.raises(error, match=message):
        r.open_fd({'reader': reader, 'writer': writer}.get(fd, fd), **options)
    assert os.get_blocking(reader) and os.get_blocking(writer) and r.handles() == []


def test_a_descriptor_that_has_a_stream_gets_no_second_one(r, files):
    reader, _ = files.pipe()
    stream = r.open_fd(reader)
    with pytest.raises(ReactorError):
        r.open_fd(reader)
    assert not os.get_blocking(reader) and r.handles() == [stream]
    stream.close()
    turns(r, 1)


def test_a_closed_reactor_opens_nothing(files):
    r = Reactor()
    r.close()
    with pytest.raises(HandleClosed):
        r.open_fd(files.pipe()[0])


def test_a_simulated_system_has_no_such_descriptors():
    with Reactor(kernel=SimKernel(1, faults=False)) as r, pytest.raises(OSError) as caught:
        r.open_fd(0)
    assert caught.value.errno == errno.ENOTSUP


def test_a_closed_stream_is_freed_without_the_garbage_collector(r, files):
    class Data:
        pass

    reader, _ = files.pipe()
    stream = r.open_fd(reader)
    stream.data = Data()
    watched = weakref.ref(stream.data)
    gc.disable()
    try:
        stream.close()
        turns(r, 1)
        assert watched() is None
    finally:
        gc.enable()


def test_debug_checks_the_thread(files):
    _, writer = files.pipe()
    errors: list[BaseException] = []
    with Reactor(debug=True) as r:
        stream = r.open_fd(writer)

        def wrong() -> None:
            try:
                stream.write(b'x')
            except ReactorError as exc:
                errors.append(exc)

        def start(r: Reactor) -> None:
            thread = threading.Thread(target=wrong)
            thread.start()
            thread.join()
            stream.close()

        r.run(start)
    assert len(errors) == 1


def test_a_hung_up_terminal_with_bytes_to_send_ends(r, files):
    master, slave = files.pty()
    log: list[Any] = []
    stream = r.open_fd(slave, on_close=lambda stream, exc: log.extend((type(exc), stream.buffered > 0)))
    stream.write(b'x' * 100_000)
    os.close(master)
    run_until(r, lambda: log)
    assert log == [OSError, True]
