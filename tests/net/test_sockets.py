"""Listening sockets: dual stack, shared ports, inherited sockets, and the files of Unix sockets."""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
import stat
import sys
import tempfile
import threading
import time
from contextlib import closing

import pytest

from reactor import Reactor, ResolveError, SelectorFull
from reactor.kernel import Kernel
from reactor.kernel.calls import ResolveFailure
from reactor.kernel.platforms import ABSTRACT_PATHS, AF_UNIX, KEEPALIVE_OPTIONS, SO_REUSEPORT, TCP_DEFER_ACCEPT
from reactor.kernel.sockets import LeanSocket
from reactor.net.options import Options
from reactor.net.sockets import bind_local, listening_tcp, listening_unix, set_stream_options
from tests.helpers.support import FailingKernel, FakeKernel, Log, drain, end, run_until, turns

HERE = '127.0.0.1'

needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')
needs_abstract = pytest.mark.skipif(not ABSTRACT_PATHS, reason='abstract Unix sockets are a Linux feature')


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(('::1', 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6')


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A short path for a socket file: on some machines, paths in the temporary folder are too long for a socket."""
    monkeypatch.chdir(tmp_path)
    return 's'


def connect(sockets, path):
    client = sockets.track(socket.socket(socket.AF_UNIX))
    client.connect(path)
    client.setblocking(False)
    return client


# -- TCP


@pytest.mark.scenario(45)
@needs_ipv6
def test_without_a_host_both_families_are_served_and_ipv4_peers_shown_as_ipv4(r, sockets):
    conns = []
    listener = r.listen_tcp(None, 0, on_connect=conns.append)
    port = listener.address[1]
    client = sockets.connect((HERE, port))
    run_until(r, lambda: conns)
    assert conns[0].peername == client.getsockname() == (HERE, client.getsockname()[1])
    assert conns[0].sockname == (HERE, port)
    assert HERE in repr(conns[0]) and 'ffff' not in repr(conns[0])
    client = sockets.connect(('::1', port))
    run_until(r, lambda: len(conns) == 2)
    assert conns[1].peername[:2] == client.getsockname()[:2]
    listener.close()
    end(r, *conns)


@needs_ipv6
def test_an_ipv6_host_serves_ipv6_alone(r, sockets):
    conns = []
    listener = r.listen_tcp('::1', 0, on_connect=conns.append)
    assert listener.address[0] == '::1'
    assert '[::1]:' in repr(listener)
    sockets.connect(listener.address[:2])
    run_until(r, lambda: conns)
    listener.close()
    end(r, *conns)


def test_without_ipv6_no_host_means_every_ipv4_address(sockets):
    class OldKernel(Kernel):
        def socket(self, family, kind, proto=0):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, 'not supported')
            return super().socket(family, kind, proto)

    with Reactor(kernel=OldKernel()) as r:
        listener = r.listen_tcp(None, 0)
        sockets.connect((HERE, listener.address[1]))
        turns(r, 2)
        assert listener.address[0] == '0.0.0.0'
        assert listener.open_connections == 1


def test_a_name_is_looked_up_at_the_call(r, sockets):
    listener = r.listen_tcp('localhost', 0)
    sockets.connect(listener.address[:2])
    run_until(r, lambda: listener.open_connections)
    conns = [handle for handle in r.handles() if handle is not listener]
    listener.close()
    end(r, *conns)


@pytest.mark.parametrize('failure', [ResolveFailure(-2, 'no such name'), UnicodeError('label too long')])
def test_a_name_that_cannot_be_looked_up_raises_at_the_call(failure):
    class Nameless(Kernel):
        def getaddrinfo(self, host, port, family, kind, flags=0):
            raise failure

    with Reactor(kernel=Nameless()) as r:
        with pytest.raises(ResolveError, match='nowhere'):
            r.listen_tcp('nowhere', 80)
        assert r.handles() == []


@pytest.mark.scenario(45)
def test_an_address_of_another_machine_raises_at_the_call_and_says_so(r):
    with pytest.raises(OSError, match='this machine does not have that address') as caught:
        r.listen_tcp('192.0.2.1', 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert r.handles() == []


def test_a_listening_socket_never_blocks_and_is_not_inherited():
    made = listening_tcp(Kernel(), HERE, 0, Options(), backlog=5, reuse_port=False, defer_accept=False)
    with closing(made) as sock:
        assert sock.getblocking() is False
        assert os.get_inheritable(sock.fileno()) is False
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@pytest.mark.skipif(SO_REUSEPORT < 0, reason='this platform has no SO_REUSEPORT')
def test_listeners_with_reuse_port_share_a_port(r, sockets):
    conns = [[], []]
    first = r.listen_tcp(HERE, 0, on_connect=conns[0].append, reuse_port=True)
    second = r.listen_tcp(*first.address, on_connect=conns[1].append, reuse_port=True)
    with pytest.raises(OSError, match='listens there'):
        r.listen_tcp(*first.address)
    for _ in range(30):
        sockets.connect(first.address)
    run_until(r, lambda: len(conns[0]) + len(conns[1]) == 30)
    if sys.platform == 'linux':
        assert conns[0] and conns[1]
    first.close()
    second.close()
    end(r, *conns[0], *conns[1])


def test_reuse_port_raises_where_it_is_not_supported_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr('reactor.net.sockets.SO_REUSEPORT', -1)
    with Reactor() as r, pytest.raises(OSError, match='share one listener'):
        r.listen_tcp(HERE, 0, reuse_port=True)


@pytest.mark.skipif(TCP_DEFER_ACCEPT < 0, reason='TCP_DEFER_ACCEPT is a Linux feature')
def test_a_deferred_client_is_accepted_when_it_has_sent_data(r, sockets):
    log = Log()
    listener = r.listen_tcp(HERE, 0, defer_accept=True, **log.callbacks('on_connect', 'on_data', 'on_close'))
    client = sockets.connect(listener.address)
    turns(r, 5)
    assert listener.open_connections == 0
    client.send(b'spoken')
    client.close()
    run_until(r, lambda: len(log) == 3)
    assert log == [('connect',), ('data', b'spoken'), ('close', None)]
    listener.close()


@pytest.mark.parametrize('listening', [False, True])
def test_an_inherited_socket_is_listened_on(r, sockets, listening):
    conns = []
    sock = socket.socket()
    sock.bind((HERE, 0))
    if listening:
        sock.listen(1)
    address = sock.getsockname()
    listener = r.listen_tcp(None, 0, sock=sock, on_connect=conns.append)
    assert listener.address == address
    client = sockets.connect(address)
    if listening:
        client.send(b'x')
    run_until(r, lambda: conns)
    assert conns[0].sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getblocking() is False
    listener.close()
    assert sock.fileno() == -1
    end(r, *conns)


def test_the_backlog_is_the_one_that_the_caller_passes(r):
    class Recorded(socket.socket):
        def listen(self, backlog):
            backlogs.append(backlog)
            super().listen(backlog)

    backlogs = []
    for arguments, expected in ({}, socket.SOMAXCONN), ({'backlog': 7}, 7):
        sock = Recorded()
        sock.bind((HERE, 0))
        r.listen_tcp(None, 0, sock=sock, **arguments).close()
        assert backlogs[-1] == expected


@pytest.mark.scenario(42)
def test_options_of_a_connected_socket_are_set_and_a_closed_one_raises_nothing():
    with socket.create_server((HERE, 0)) as server, socket.create_connection(server.getsockname()) as sock:
        set_stream_options(sock, Options(nodelay=True, keepalive=60))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    set_stream_options(sock, Options())  # the socket is closed, and the next read will report that


def test_a_local_address_with_a_port_is_bound_at_once():
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
    with socket.socket() as sock:
        bind_local(Kernel(), sock, (HERE, port))
        assert sock.getsockname() == (HERE, port)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux can leave the choice of the port to the connect')
def test_a_local_address_without_a_port_gets_a_port_at_the_connect():
    with socket.create_server((HERE, 0)) as server, socket.socket() as sock:
        bind_local(Kernel(), sock, (HERE, 0))
        assert sock.getsockname() == (HERE, 0)
        sock.connect(server.getsockname())
        assert sock.getsockname()[1] > 0


# -- Unix sockets


@needs_unix
def test_a_unix_listener_serves_and_removes_its_file_when_it_closes(r, sockets, path):
    log = Log()
    listener = r.listen_unix(path, **log.callbacks('on_connect', 'on_data', 'on_close'))
    assert listener.address == path
    assert path in repr(listener)
    client = connect(sockets, path)
    client.send(b'hello')
    client.close()
    run_until(r, lambda: len(log) == 3)
    assert log == [('connect',), ('data', b'hello'), ('close', None)]
    listener.close()
    assert not os.path.lexists(path)


@needs_unix
def test_a_unix_connection_shows_its_addresses_and_is_answered(r, sockets, path):
    conns = []
    listener = r.listen_unix(path, on_connect=conns.append)
    client = connect(sockets, path)
    run_until(r, lambda: conns)
    assert conns[0].sockname == path
    assert conns[0].peername == ''
    assert path in repr(conns[0]) and 'unnamed' in repr(conns[0])
    conns[0].write(b'x')
    assert drain(client) == b'x'
    listener.close()
    end(r, *conns)


@pytest.mark.scenario(46)
@needs_unix
def test_a_socket_file_on_which_no_program_listens_is_replaced(r, sockets, path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    listener = r.listen_unix(path)
    connect(sockets, path)
    run_until(r, lambda: listener.open_connections)
    conns = [handle for handle in r.handles() if handle is not listener]
    listener.close()
    end(r, *conns)


class Starting(Kernel):
    """A kernel that, in one of its calls, runs a second program on the same path until that program sleeps or ends."""

    def __init__(self, call, path):
        self.call, self.path = call, path
        self.progress = threading.Semaphore(0)
        self.second = None
        self.outcome = None

    def _start(self, call):
        if call == self.call and self.second is None:
            self.second = threading.Thread(target=self._listen)
            self.second.start()
            assert self.progress.acquire(timeout=30)

    def _listen(self):
        waiting = Kernel()
        waiting.sleep = self._wait
        try:
            self.outcome = listening_unix(waiting, self.path, Options(), backlog=1, mode=None)[0]
        except OSError as exc:
            self.outcome = exc
        self.progress.release()

    def _wait(self, seconds):
        self.progress.release()
        time.sleep(seconds)

    def unlink(self, path):
        self._start('unlink')
        super().unlink(path)

    def chmod(self, path, mode):
        self._start('chmod')
        super().chmod(path, mode)


@needs_unix
@pytest.mark.parametrize('form', [str, os.fsencode])
def test_the_file_is_removed_even_if_the_program_has_changed_its_directory(path, tmp_path, monkeypatch, form):
    # Regression: a daemon changes its directory to the root. The file at a relative path used to be left behind then.
    with Reactor() as r:
        listener = r.listen_unix(form(path))
        monkeypatch.chdir('/')
        listener.close()
    assert os.listdir(tmp_path) == []


@needs_unix
@pytest.mark.parametrize('call', ['unlink', 'chmod'])
def test_of_two_programs_that_replace_a_stale_file_one_listens_and_the_other_gets_an_error(path, call):
    # Regression: one program used to remove the socket file of the other program, if the file was made after the path
    # had been checked, or if the other program's socket was bound but not listening yet.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    kernel = Starting(call, path)
    sock, unlink = listening_unix(kernel, path, Options(), backlog=1, mode=0o600)
    kernel.second.join(30)
    with closing(sock), socket.socket(socket.AF_UNIX) as client:
        if not isinstance(kernel.outcome, OSError):
            kernel.outcome.close()
        assert getattr(kernel.outcome, 'errno', 'both listen') == errno.EADDRINUSE
        client.connect(path)
        unlink()
    assert not os.path.lexists(path)


@needs_unix
@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='NOT TESTED: only root can change its user')
@pytest.mark.parametrize(
    ('mode', 'said'),
    [
        (0o600, 'belongs to another user, and this user may not check whether a program listens there'),
        (0o666, 'belongs to another user, and this user may not remove it, although no program listens there'),
    ],
)
def test_the_error_for_a_stale_file_of_another_user_says_whose_it_is_and_what_to_do(mode, said):
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as dead:
        os.chmod(folder, 0o1777)
        path = os.path.join(folder, 'stale')
        dead.bind(path)
        os.chmod(path, mode)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match=said) as raised:
                listening_unix(Kernel(), path, Options(), backlog=1, mode=None)
        finally:
            os.seteuid(0)
        assert path in str(raised.value) and 'remove the file, or choose another path' in str(raised.value)
        assert os.path.exists(path)


@needs_unix
def test_a_file_that_was_replaced_after_it_was_checked_is_left_alone(path):
    """Even if the directory cannot be locked, the new file is not removed."""

    class Unlocked(Kernel):
        looks = 0

        def lock_folder(self, path):
            return -1

        def socket_file(self, path):
            self.looks += 1
            if self.looks == 2:
                os.rename(path, path + '.old')
                other.bind(path)
                other.listen()
            return super().socket_file(path)

    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as other:
        dead.bind(path)
        with pytest.raises(OSError, match='shows the program that listens there'):
            listening_unix(Unlocked(), path, Options(), backlog=1, mode=None)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@needs_unix
def test_a_directory_that_another_program_keeps_locked_does_not_prevent_listening(path, monkeypatch):
    fcntl = pytest.importorskip('fcntl')
    naps = []
    monkeypatch.setattr(Kernel, 'sleep', lambda kernel, seconds: naps.append(seconds))
    folder = os.open('.', os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        sock, unlink = listening_unix(Kernel(), path, Options(), backlog=1, mode=None)
        sock.close()
        unlink()
    finally:
        os.close(folder)
    assert sum(naps) == pytest.approx(1)


@pytest.mark.scenario(46)
@needs_unix
@pytest.mark.parametrize('kind', ['file', 'folder', 'link', 'dangling link'])
def test_anything_else_at_the_path_is_never_touched(r, path, kind):
    if kind == 'file':
        with open(path, 'w') as file:
            file.write('precious')
    elif kind == 'folder':
        os.mkdir(path)
    else:
        os.symlink('other', path)
        if kind == 'link':
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind('other')
    before = os.lstat(path)
    with pytest.raises(OSError) as caught:
        r.listen_unix(path)
    assert path in str(caught.value)
    assert os.lstat(path) == before
    assert r.handles() == []
    if kind == 'link':
        assert stat.S_ISSOCK(os.stat('other').st_mode)


@needs_unix
def test_a_path_on_which_another_program_listens_is_left_alone(r, sockets, path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(5)
        before = os.stat(path).st_ino
        with pytest.raises(OSError, match=re.escape(path)) as caught:
            r.listen_unix(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert os.stat(path).st_ino == before  # still the same file
        connect(sockets, path)
    assert r.handles() == []


@needs_unix
def test_a_path_whose_listener_is_busy_is_left_alone_too(r, path):
    """When the backlog is full, a connect fails with EAGAIN. That error does not mean that no listener exists."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(0)
        waiting = []
        try:
            for _ in range(10):
                sock = socket.socket(socket.AF_UNIX)
                waiting.append(sock)
                sock.setblocking(False)
                if sock.connect_ex(path) == errno.EAGAIN:
                    break
            with pytest.raises(OSError):
                r.listen_unix(path)
            assert os.path.exists(path)
        finally:
            for sock in waiting:
                sock.close()


@pytest.mark.scenario(46)
@needs_unix
@pytest.mark.parametrize('mode', [0o600, 0o666, 0o660])
def test_the_mode_is_set_before_the_socket_listens(r, path, mode):
    listening = []

    class Watching(Kernel):
        def chmod(self, path, mode):
            with socket.socket(socket.AF_UNIX) as probe:
                listening.append(probe.connect_ex(os.fspath(path)))
            super().chmod(path, mode)

    with Reactor(kernel=Watching()) as watched:
        listener = watched.listen_unix(path, mode=mode)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
        assert listening == [errno.ECONNREFUSED]
        listener.close()


@needs_unix
def test_close_leaves_a_file_that_is_not_its_own(r, path):
    listener = r.listen_unix(path)
    os.unlink(path)
    with open(path, 'w') as file:
        file.write('precious')
    listener.close()
    assert os.path.isfile(path)


@needs_unix
def test_close_leaves_the_socket_of_a_successor(r, sockets, path):
    first = r.listen_unix(path)
    os.rename(path, 'old')
    second = r.listen_unix(path)
    first.close()
    connect(sockets, path)
    run_until(r, lambda: second.open_connections)
    conns = [handle for handle in r.handles() if handle is not second]
    second.close()
    assert not os.path.lexists(path)
    end(r, *conns)


@needs_unix
def test_close_works_when_the_file_is_gone(r, path):
    listener = r.listen_unix(path)
    os.unlink(path)
    listener.close()
    assert listener.closed


@needs_unix
def test_closing_the_reactor_removes_the_file(path):
    with Reactor() as r:
        r.listen_unix(path)
        assert os.path.exists(path)
    assert not os.path.lexists(path)


@pytest.mark.scenario(46)
@needs_unix
@pytest.mark.parametrize('wrong', ['x' * 200, '', None, 5, 'a\0b'])
def test_an_invalid_path_raises_at_the_call(r, wrong):
    with pytest.raises((OSError, TypeError, ValueError)):
        r.listen_unix(wrong)
    assert r.handles() == []


@needs_unix
def test_a_missing_folder_raises_at_the_call(r):
    with pytest.raises(OSError, match='nowhere') as caught:
        r.listen_unix('nowhere/s')
    assert caught.value.errno == errno.ENOENT
    assert r.handles() == []


@needs_unix
@pytest.mark.parametrize('step', ['chmod', 'listen'])
def test_a_failure_after_the_bind_leaves_neither_socket_nor_file(path, step):
    class Failing(Kernel):
        def chmod(self, path, mode):
            raise OSError(errno.EPERM, 'scripted')

        def socket(self, family, kind, proto=0):
            sock = BadListen(family, kind, proto) if step == 'listen' else super().socket(family, kind, proto)
            sock.setblocking(False)
            return sock

    class BadListen(socket.socket):
        def listen(self, backlog):
            raise OSError(errno.ENOBUFS, 'scripted')

    with pytest.raises(OSError, match='scripted'):
        listening_unix(Failing(), path, Options(), backlog=5, mode=0o600 if step == 'chmod' else None)
    gc.collect()
    assert not os.path.lexists(path)


@needs_unix
def test_a_selector_without_room_leaves_neither_socket_nor_file(path):
    class Crowded(FakeKernel):
        room = True

        def room_of(self, selector):
            return lambda fd: self.room

    kernel = Crowded()
    with Reactor(kernel=kernel) as r:
        kernel.room = False
        with pytest.raises(SelectorFull):
            r.listen_unix(path)
        gc.collect()
        kernel.room = True
    assert not os.path.lexists(path)


@needs_abstract
@pytest.mark.parametrize('form', ['@{}', '\0{}'])
def test_an_abstract_path_needs_no_file(r, sockets, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    name = f'reactor-{os.getpid()}'
    conns = []
    listener = r.listen_unix(form.format(name), on_connect=conns.append, mode=0o600)
    assert listener.address == b'\0' + name.encode()
    assert f'@{name}' in repr(listener)
    connect(sockets, '\0' + name)
    run_until(r, lambda: conns)
    with pytest.raises(OSError, match=name) as caught:
        r.listen_unix('@' + name)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()
    assert os.listdir(tmp_path) == []
    end(r, *conns)


@needs_unix
def test_a_path_may_be_bytes(r, sockets, path):
    listener = r.listen_unix(os.fsencode(path))
    connect(sockets, path)
    run_until(r, lambda: listener.open_connections)
    conns = [handle for handle in r.handles() if handle is not listener]
    listener.close()
    assert not os.path.lexists(path)
    end(r, *conns)


# -- platforms without a feature, and failing calls


class NoSocket(Kernel):
    """A kernel at its descriptor limit."""

    def socket(self, family, kind, proto=0):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize('host', [HERE, None])
def test_without_a_descriptor_listening_raises_at_the_call(host):
    with Reactor(kernel=NoSocket()) as r:
        with pytest.raises(OSError) as caught:
            r.listen_tcp(host, 0)
        assert caught.value.errno == errno.EMFILE
        assert r.handles() == []


def test_the_error_for_a_port_below_1024_says_that_privileges_are_needed():
    class Forbidden(LeanSocket):
        def bind(self, address):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    class Strict(Kernel):
        def socket(self, family, kind, proto=0):
            return Forbidden(family, kind, proto)

    with Reactor(kernel=Strict()) as r, pytest.raises(PermissionError, match=f'{HERE}:80.*below 1024 need privileges'):
        r.listen_tcp(HERE, 80)


def test_a_keepalive_time_that_a_platform_cannot_set_is_left_out(monkeypatch):
    ours, *others = KEEPALIVE_OPTIONS
    monkeypatch.setattr('reactor.net.sockets.KEEPALIVE_OPTIONS', (-1, *others))
    with socket.socket() as sock:
        before = sock.getsockopt(socket.IPPROTO_TCP, ours)
        set_stream_options(sock, Options(keepalive=(60, 7, 3)))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, ours) == before
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in others] == [7, 3]


def test_keepalive_times_are_rounded_to_whole_seconds_of_at_least_one():
    with socket.socket() as sock:
        set_stream_options(sock, Options(keepalive=(1, 0.2, 1)))
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE_OPTIONS if option >= 0] == [1, 1, 1]
        set_stream_options(sock, Options(keepalive=1.6))
        assert sock.getsockopt(socket.IPPROTO_TCP, KEEPALIVE_OPTIONS[0]) == 2


def test_a_local_address_is_bound_at_once_where_the_port_cannot_be_left_to_the_connect(monkeypatch):
    monkeypatch.setattr('reactor.net.sockets.IP_BIND_ADDRESS_NO_PORT', 9999)  # an option that no kernel has
    with socket.socket() as sock:
        bind_local(Kernel(), sock, (HERE, 0))
        assert sock.getsockname()[0] == HERE and sock.getsockname()[1]


@pytest.mark.parametrize('given', [False, True])
@pytest.mark.parametrize('reuse', [False, True])
def test_a_local_port_is_bound_with_reuse_only_where_that_cannot_steal_it(monkeypatch, reuse, given):
    monkeypatch.setattr('reactor.kernel.Kernel.reuse_address', reuse)
    monkeypatch.setattr('reactor.net.sockets.IP_BIND_ADDRESS_NO_PORT', -1)  # so that `connect` cannot choose the port
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    with socket.socket() as sock:
        bind_local(Kernel(), sock, (HERE, port if given else 0))
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is reuse
        host, taken = sock.getsockname()
        assert host == HERE and (taken == port if given else taken)


def test_the_errors_for_a_path_give_advice_for_paths(tmp_path):
    path = str(tmp_path / 'taken')
    with Reactor() as r:
        server = r.listen_unix(path)
        with pytest.raises(OSError, match=r'taken.*`ss -lxp`.*choose another path$'):
            r.listen_unix(path)
        server.close()

    class Refused(socket.socket):
        def bind(self, address):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    class Strict(Kernel):
        def socket(self, family, kind):
            return Refused(family, kind)

    with Reactor(kernel=Strict()) as r, pytest.raises(PermissionError, match=r'taken: .*directory is not writable'):
        r.listen_unix(path)


def test_a_socket_that_cannot_be_made_to_listen_is_closed():
    kernel = FailingKernel('listen', errno.EADDRINUSE)
    with Reactor(kernel=kernel) as r:
        before = len(kernel.files)
        with pytest.raises(OSError) as raised:
            r.listen_tcp(HERE, 4000)
        assert raised.value.errno == errno.EADDRINUSE
        assert len(kernel.files) == before
        r.listen_tcp(HERE, 4000).close()


class OneFamily(socket.socket):
    """A socket as on OpenBSD, where IPv6 sockets never serve IPv4."""

    def setsockopt(self, level, option, *value):
        if (level, option) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            raise OSError(errno.EINVAL, 'Invalid argument')
        super().setsockopt(level, option, *value)


class OpenBSD(Kernel):
    def socket(self, family, kind, proto=0):
        return OneFamily(family, kind, proto)


@needs_ipv6
def test_without_dual_stack_sockets_no_host_means_every_ipv4_address():
    with Reactor(kernel=OpenBSD()) as r:
        server = r.listen_tcp(None, 0)
        assert server.address[0] == '0.0.0.0'
        server.close()


@needs_ipv6
def test_without_ipv6_only_sockets_listening_on_ipv6_is_refused_and_leaves_no_descriptor():
    with Reactor(kernel=OpenBSD()) as r, pytest.raises(OSError, match='Invalid argument'):
        r.listen_tcp('::1', 0)
