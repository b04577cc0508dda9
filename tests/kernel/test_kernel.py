"""The kernel: the assumptions about the operating system that the rest of the package makes."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import stat
import tempfile
import threading
import time
from contextlib import closing

import pytest

from reactor.kernel import Kernel
from reactor.kernel.platforms import AF_UNIX, FD_SETSIZE
from reactor.kernel.sockets import send_first
from tests.helpers.support import SELECTORS, in_thread


@pytest.fixture
def real():
    """The real kernel."""
    return Kernel()


@pytest.mark.scenario(25)
def test_the_clock_is_monotonic(real):
    assert real.clock is time.monotonic


def test_the_selector_is_the_best_of_the_platform(real):
    with real.selector() as selector:
        assert isinstance(selector, selectors.DefaultSelector)
        assert type(selector) is SELECTORS['default']


def test_sockets_do_not_block_and_are_not_inherited(real):
    ours, theirs = real.socketpair()
    with closing(real.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock, ours, theirs:
        for each in sock, ours, theirs:
            assert each.getblocking() is False
            assert os.get_inheritable(each.fileno()) is False
        ours.send(b'x')
        assert theirs.recv(10) == b'x'


def test_only_select_limits_the_number_of_a_descriptor(real):
    with selectors.DefaultSelector() as selector:
        assert real.room_of(selector) is None
    if os.name != 'posix':
        pytest.skip('select on this platform limits how many descriptors there are, not their numbers')
    with selectors.SelectSelector() as selector:
        assert real.room_of(selector)(FD_SETSIZE - 1)
        assert not real.room_of(selector)(FD_SETSIZE)


@pytest.mark.skipif(os.name != 'posix', reason='elsewhere select takes only sockets')
def test_files_and_directories_never_block_and_pipes_do(real, tmp_path):
    reading, writing = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    with open(tmp_path / 'file', 'wb') as file, socket.socket() as sock:
        assert real.never_blocks(file.fileno()) and real.never_blocks(folder)
        assert not any(real.never_blocks(fd) for fd in (reading, writing, sock.fileno()))
    for fd in reading, writing, folder:
        os.close(fd)
    with pytest.raises(OSError, match=f'{reading} is not open'):
        real.never_blocks(reading)


def test_an_address_has_the_name_that_the_system_gives_it(real):
    flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    assert real.getnameinfo(('127.0.0.1', 80), flags) == ('127.0.0.1', '80')


def test_a_descriptor_is_open_until_it_is_closed(real):
    fd = os.dup(0)
    assert real.is_open(fd)
    os.close(fd)
    assert not real.is_open(fd)
    assert not real.is_open(-1)


def test_a_new_selector_is_of_the_same_kind(real):
    with selectors.SelectSelector() as selector, real.new_selector_like(selector) as another:
        assert another is not selector
        assert type(another) is selectors.SelectSelector


def test_addresses_are_looked_up(real):
    found = real.getaddrinfo('127.0.0.1', 80, socket.AF_INET, socket.SOCK_STREAM, socket.AI_NUMERICHOST)
    assert found[0][4] == ('127.0.0.1', 80)
    with pytest.raises(socket.gaierror):
        real.getaddrinfo('no.number', 80, socket.AF_INET, socket.SOCK_STREAM, socket.AI_NUMERICHOST)


def test_a_thread_is_a_daemon_with_its_name(real):
    found, done = [], threading.Event()

    def work():
        found.append((threading.current_thread().daemon, threading.current_thread().name, real.in_main_thread()))
        done.set()

    real.start_thread(work, 'worker')
    assert done.wait(10)
    assert found == [(True, 'worker', False)]


def test_each_thread_has_a_different_id(real):
    assert real.in_main_thread() is True
    assert real.thread() == threading.get_ident()
    assert in_thread(real.thread) != real.thread()


def test_a_signal_handler_is_returned_and_replaced(real):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert real.getsignal(signal.SIGINT) is real.default_int_handler
        assert real.signal(signal.SIGINT, signal.SIG_IGN) is signal.default_int_handler
        assert real.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_wakeup_descriptor_is_handed_over_and_back(real):
    ours, theirs = real.socketpair()
    with ours, theirs:
        assert real.set_wakeup_fd(theirs.fileno()) == -1
        assert real.set_wakeup_fd(-1) == theirs.fileno()


@pytest.mark.scenario(29)
def test_a_full_wakeup_descriptor_causes_no_warning(real, capfd):
    if not hasattr(signal, 'SIGUSR1'):
        pytest.skip('this platform has no SIGUSR1 to raise')
    ours, theirs = real.socketpair()
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: None)
    try:
        while True:
            try:
                theirs.send(b'x' * 4096)
            except BlockingIOError:
                break
        real.set_wakeup_fd(theirs.fileno())
        signal.raise_signal(signal.SIGUSR1)
    finally:
        real.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
        ours.close()
        theirs.close()
    assert capfd.readouterr().err == ''


def test_writing_to_a_descriptor_reaches_it(real):
    ours, theirs = real.socketpair()
    with ours, theirs:
        assert real.write(ours.fileno(), b'abc') == 3
        assert theirs.recv(10) == b'abc'


def test_the_file_of_a_socket_is_known_by_device_and_inode(real, tmp_path):
    if AF_UNIX < 0:
        pytest.skip('this platform has no Unix sockets')
    path = str(tmp_path / 's')
    assert real.socket_file(path) is None
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
        found = os.stat(path)
        assert real.socket_file(path) == (found.st_dev, found.st_ino)
        real.chmod(path, 0o600)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    real.unlink(path)
    real.unlink(path)
    assert real.socket_file(path) is None


@pytest.mark.parametrize('kind', ['file', 'folder', 'link'])
def test_a_path_that_is_not_a_socket_is_an_error_that_names_it(real, tmp_path, kind):
    path = tmp_path / 'taken'
    if kind == 'file':
        path.write_bytes(b'precious')
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to('nowhere')
    for name in str(path), os.fsencode(path):
        with pytest.raises(FileExistsError, match='taken'):
            real.socket_file(name)
    assert os.path.lexists(path)


def test_an_error_number_has_a_text(real):
    assert real.strerror(2) == os.strerror(2)


def test_without_sendmsg_the_first_buffer_is_sent(real):
    ours, theirs = real.socketpair()
    with ours, theirs:
        assert send_first(ours, [b'one', b'two']) == 3
        assert theirs.recv(10) == b'one'


def test_a_file_is_read_and_sent_from_the_given_offset_without_moving_its_position(real):
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile(buffering=0) as file, ours, theirs:
        file.write(b'0123456789')
        copy = real.copy_of_file(file.fileno())
        try:
            assert copy != file.fileno() and not os.get_inheritable(copy)
            assert real.size_of_file(copy) == 10
            assert real.read_file(copy, 2, 3) == b'234'
            assert real.read_file(copy, 8, 100) == b'89'
            if hasattr(os, 'sendfile'):
                assert real.sendfile(ours, copy, 4, 3) == 3
                assert theirs.recv(10) == b'456'
            assert os.lseek(copy, 0, os.SEEK_CUR) == 10
        finally:
            real.close_fd(copy)
        assert not real.is_open(copy)


def test_only_regular_files_have_a_size(real):
    reader, writer = os.pipe()
    with open(reader), open(writer, 'w'), pytest.raises(ValueError, match='regular'):
        real.size_of_file(reader)


def test_sendfile_is_used_only_for_real_sockets(real):
    class Simulated:
        def fileno(self):
            return 1

    with tempfile.TemporaryFile() as file, pytest.raises(OSError) as caught:
        real.sendfile(Simulated(), file.fileno(), 0, 10)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize('name', [os.name, 'nt'])
def test_waiting_clients_are_detected_without_accepting_them(monkeypatch, name):
    kernel = Kernel()
    with socket.create_server(('127.0.0.1', 0)) as server:
        monkeypatch.setattr('reactor.kernel.calls.os.name', name)  # `nt` simulates a system without poll
        assert not kernel.has_clients(server)
        with socket.create_connection(server.getsockname()):
            assert kernel.has_clients(server)
            server.accept()[0].close()
        assert not kernel.has_clients(server)


def test_clients_are_assumed_to_wait_when_poll_fails(monkeypatch):
    class Poll:
        def register(self, fd, events):
            pass

        def poll(self, timeout):
            raise OSError(errno.ENOMEM, 'planted')

    with socket.create_server(('127.0.0.1', 0)) as server:
        monkeypatch.setattr('reactor.kernel.calls.select.poll', Poll)
        assert Kernel().has_clients(server)


def test_waiting_bytes_are_detected_and_not_consumed():
    kernel = Kernel()
    ours, theirs = kernel.socketpair()
    assert not kernel.has_bytes(ours)
    theirs.send(b'ab')
    assert kernel.has_bytes(ours)
    assert ours.recv(10) == b'ab'
    theirs.close()
    assert not kernel.has_bytes(ours)
    ours.close()
