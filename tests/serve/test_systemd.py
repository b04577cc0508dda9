"""Inherited sockets and messages to the service manager, tested with the tools of systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import pytest

from reactor import ReactorError
from reactor.serve import systemd
from tests.helpers.support import drain, run_until

pytestmark = pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='systemd needs Unix sockets')
FIRST = 300  # the first inherited descriptor in these tests; in a service it is 3, but pytest uses 3 itself


def needs(command):
    return pytest.mark.skipif(
        shutil.which(command) is None, reason=f'NOT TESTED: the command {command} is not installed'
    )


@pytest.fixture
def inherit(monkeypatch):
    """`inherit(*socks, pid, **environment)` copies sockets as if a service manager had passed them to this process."""
    monkeypatch.setattr(systemd, 'FIRST', FIRST)
    numbers = []

    def give(*socks, pid=None, **environment):
        for number, sock in enumerate(socks, FIRST):
            os.dup2(sock.fileno(), number)
            numbers.append(number)
        monkeypatch.setenv('LISTEN_FDS', str(len(socks)))
        monkeypatch.setenv('LISTEN_PID', str(os.getpid() if pid is None else pid))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    yield give
    for number in numbers:
        try:
            os.close(number)
        except OSError:
            pass  # the inherited socket has already closed the descriptor


@pytest.fixture
def listening(sockets):
    return sockets.track(socket.create_server(('127.0.0.1', 0)))


def still_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# -- inherited sockets


def test_without_a_manager_there_are_no_sockets(monkeypatch):
    for name in systemd.LISTEN:
        monkeypatch.delenv(name, raising=False)
    assert systemd.inherited_sockets() == []


def test_sockets_are_returned_in_order_with_their_names_and_only_once(inherit, sockets, listening):
    datagrams = sockets.track(socket.socket(type=socket.SOCK_DGRAM))
    datagrams.bind(('127.0.0.1', 0))
    inherit(listening, datagrams, LISTEN_FDNAMES='web:syslog')
    (name, web), (other, syslog) = systemd.inherited_sockets()
    with web, syslog:
        assert (name, other) == ('web', 'syslog')
        assert web.getsockname() == listening.getsockname() and web.type == socket.SOCK_STREAM
        assert syslog.getsockname() == datagrams.getsockname() and syslog.type == socket.SOCK_DGRAM
        assert not web.get_inheritable() and not syslog.get_inheritable()
        assert not [name for name in os.environ if name.startswith('LISTEN_')]
        assert systemd.inherited_sockets() == []


def test_a_socket_without_a_name_is_called_unknown(inherit, listening):
    inherit(listening, listening)
    taken = systemd.inherited_sockets()
    assert [name for name, _ in taken] == ['unknown', 'unknown']
    for _, sock in taken:
        sock.close()


def test_the_name_of_a_unit_is_passed_unchanged(inherit, listening):
    inherit(listening, LISTEN_FDNAMES='a%b\\x2dc@1.socket')
    ((name, sock),) = systemd.inherited_sockets()
    sock.close()
    assert name == 'a%b\\x2dc@1.socket'


@pytest.mark.scenario(153)
def test_sockets_passed_to_another_process_are_not_used_and_a_warning_is_logged(inherit, listening, caplog):
    inherit(listening, pid=1)
    assert systemd.inherited_sockets() == []
    assert 'passed to process 1' in caplog.text and 'exec' in caplog.text
    assert 'LISTEN_FDS' not in os.environ and still_open(FIRST)


@pytest.mark.parametrize(('count', 'names', 'said'), [('x', 'web', "LISTEN_FDS='x'"), ('1', 'web:more', 'one name')])
def test_invalid_variables_are_refused(inherit, listening, count, names, said):
    inherit(listening, LISTEN_FDS=count, LISTEN_FDNAMES=names)
    with pytest.raises(ReactorError, match=said):
        systemd.inherited_sockets()


def test_the_error_for_an_inherited_connection_says_what_to_change(inherit, sockets, listening):
    inherit(listening, sockets()[0], LISTEN_FDNAMES='web:connection')
    with pytest.raises(ReactorError, match=rf'descriptor {FIRST + 1} \(connection\).* is a connection.*Accept=no'):
        systemd.inherited_sockets()
    assert still_open(FIRST) and still_open(FIRST + 1)


@pytest.mark.scenario(153)
@pytest.mark.skipif(not hasattr(socket, 'SOCK_SEQPACKET'), reason='this platform has no SOCK_SEQPACKET')
def test_other_kinds_of_descriptors_are_refused(inherit, sockets, tmp_path):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in pair:
        sockets.track(sock)
    inherit(pair[0])
    with pytest.raises(ReactorError, match='SOCK_SEQPACKET'):
        systemd.inherited_sockets()
    with open(tmp_path / 'file', 'wb') as file:
        inherit(file)
        with pytest.raises(ReactorError, match='is not a socket'):
            systemd.inherited_sockets()


# -- with the real systemd-socket-activate

PROGRAM = """
import reactor
from reactor.serve import systemd

def answer(conn, data):
    conn.write(conn.data + b' ' + data)
    conn.close()
    r.stop()

def datagram(sock, data, address):
    sock.send(b'datagram ' + data, address)
    r.stop()

with reactor.Reactor() as r:
    for name, sock in systemd.inherited_sockets():
        if sock.type == sock.type.SOCK_DGRAM:
            r.bind_udp(None, 0, datagram, sock=sock)
        else:
            connected = lambda conn, name=name.encode(): setattr(conn, 'data', name)
            r.listen_tcp(None, 0, answer, on_connect=connected, sock=sock)
    print(len(r.handles()), 'sockets', systemd.inherited_sockets(), flush=True)
    r.run()
"""


@contextmanager
def activated(tmp_path, *options, code=PROGRAM):
    """Run a program with systemd-socket-activate, and yield the process when it listens."""
    (tmp_path / 'program.py').write_text(textwrap.dedent(code))
    python = [sys.executable, '-W', 'error', str(tmp_path / 'program.py')]
    path = f'PYTHONPATH={os.pathsep.join(filter(None, sys.path))}'
    command = ['systemd-socket-activate', *options, '-E', path, *python]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(options.count('-l')):
            assert 'Listening on' in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as probe:
        return probe.getsockname()[1]


def talk(family, address, data, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as sock:
        sock.settimeout(20)
        sock.connect(address)
        sock.send(data)
        return sock.recv(100)


@needs('systemd-socket-activate')
@pytest.mark.parametrize('which', [0, 1])
def test_systemd_passes_several_sockets_with_names(tmp_path, which):
    port, path = free_port(), str(tmp_path / 'socket')
    clients = (socket.AF_INET, ('127.0.0.1', port)), (socket.AF_UNIX, path)
    with activated(tmp_path, '-l', f'127.0.0.1:{port}', '-l', path, '--fdname=web:local') as process:
        assert talk(*clients[which], b'hello') == [b'web hello', b'local hello'][which]
        assert process.stdout.readline() == '2 sockets []\n'
        assert process.wait(20) == 0
    assert os.path.exists(path)  # the socket and its file belong to the manager


@needs('systemd-socket-activate')
def test_systemd_passes_a_socket_without_a_name(tmp_path):
    port = free_port()
    with activated(tmp_path, '-l', f'127.0.0.1:{port}') as process:
        assert talk(socket.AF_INET, ('127.0.0.1', port), b'hello') == b'unknown hello'
        assert process.wait(20) == 0


@needs('systemd-socket-activate')
def test_systemd_passes_a_datagram_socket(tmp_path):
    port = free_port()
    with activated(tmp_path, '-d', '-l', f'127.0.0.1:{port}') as process:
        # The datagram that makes systemd start the program stays in the socket until the program reads it.
        assert talk(socket.AF_INET, ('127.0.0.1', port), b'hello', socket.SOCK_DGRAM) == b'datagram hello'
        assert process.wait(20) == 0


@pytest.mark.scenario(153)
@needs('systemd-socket-activate')
def test_connections_passed_by_systemd_are_refused(tmp_path):
    port = free_port()
    with activated(tmp_path, '-a', '-l', f'127.0.0.1:{port}') as process:
        with socket.create_connection(('127.0.0.1', port)):
            lines = iter(process.stderr.readline, '')
            error = next(line for line in lines if 'errors.ReactorError:' in line)
    assert 'descriptor 3 (unknown) from the service manager is a connection' in error and 'Accept=no' in error


# -- messages to the service manager


@pytest.fixture(params=['path', 'abstract'])
def manager(request, tmp_path, monkeypatch, sockets):
    """A socket that receives the messages in place of a service manager."""
    if request.param == 'abstract' and sys.platform != 'linux':
        pytest.skip('only Linux has abstract Unix sockets')
    name = str(tmp_path / 'notify') if request.param == 'path' else f'@reactor-test-{os.getpid()}'
    sock = sockets.track(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(name.replace('@', '\0', 1) if request.param == 'abstract' else name)
    sock.settimeout(10)
    monkeypatch.setenv('NOTIFY_SOCKET', name)
    return sock


def test_each_message_consists_of_lines_with_assignments(manager):
    assert systemd.ready() and manager.recv(4096) == b'READY=1'
    assert systemd.ready('serving') and manager.recv(4096) == b'READY=1\nSTATUS=serving'
    assert systemd.stopping() and manager.recv(4096) == b'STOPPING=1'
    assert systemd.status('läuft') and manager.recv(4096) == 'STATUS=läuft'.encode()
    assert systemd.notify(MAINPID=1, X_QUEUE=2.5) and manager.recv(4096) == b'MAINPID=1\nX_QUEUE=2.5'


def test_a_reload_sends_the_time_of_the_monotonic_clock(manager):
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert systemd.reloading()
    first, second = manager.recv(4096).decode().split('\n')
    assert first == 'RELOADING=1' and second.startswith('MONOTONIC_USEC=')
    assert before - 1e-5 <= int(second.partition('=')[2]) / 1e6 <= time.clock_gettime(time.CLOCK_MONOTONIC)


def test_no_value_can_begin_another_assignment_and_long_values_are_cut(manager):
    systemd.status('a name\nREADY=1\r\0MAINPID=1 \udcff')
    assert manager.recv(4096) == b'STATUS=a name READY=1  MAINPID=1 ?'
    systemd.notify(READY=1, STATUS='€' * 10_000)
    said = manager.recv(65536)
    assert len(said) < 4096 and said.startswith('READY=1\nSTATUS=€€'.encode())


@pytest.mark.parametrize('name', ['ready', 'A\nB', '', 'A=B', 'Ä', '1A'])
def test_an_invalid_name_raises(name):
    with pytest.raises(ValueError, match='not a valid name for sd_notify'):
        systemd.notify(**{name: 1})


@needs('systemd-notify')
@pytest.mark.parametrize(
    ('arguments', 'notify'),
    [
        (['--ready', '--status=up to date'], lambda: systemd.ready('up to date')),
        (['--status=Grüße'], lambda: systemd.status('Grüße')),
        (['STOPPING=1'], systemd.stopping),
        (['WATCHDOG=1'], systemd._beat),
        (['RELOADING=1', 'MONOTONIC_USEC=5000'], systemd.reloading),
        (['MAINPID=7', 'X_QUEUE=2'], lambda: systemd.notify(MAINPID=7, X_QUEUE=2)),
    ],
    ids=['ready', 'status', 'stopping', 'watchdog', 'reloading', 'more'],
)
def test_messages_have_the_same_bytes_as_those_of_systemd_notify(manager, monkeypatch, arguments, notify):
    monkeypatch.setattr(time, 'monotonic_ns', lambda: 5_000_999)
    subprocess.run(['systemd-notify', '--no-block', *arguments], check=True, timeout=20)
    theirs = manager.recv(4096)
    notify()
    assert manager.recv(4096) == theirs


def test_without_a_manager_nothing_is_sent(monkeypatch, caplog):
    monkeypatch.delenv('NOTIFY_SOCKET', raising=False)
    caplog.set_level('DEBUG')
    assert not systemd.ready() and not systemd.status('up')
    assert not caplog.text


@pytest.mark.scenario(154)
@pytest.mark.parametrize('where', ['/nowhere/notify', '@no-listener-here', 'vsock:2:1234', '/' + 'x' * 200])
def test_a_manager_that_cannot_be_reached_is_not_an_error(monkeypatch, caplog, where):
    monkeypatch.setenv('NOTIFY_SOCKET', where)
    caplog.set_level('DEBUG')
    assert not systemd.ready()
    (record,) = caplog.records
    assert record.levelname == 'DEBUG' and where in record.getMessage() and 'READY=1' in record.getMessage()


@pytest.mark.scenario(154)
def test_a_manager_that_does_not_read_blocks_the_loop_only_briefly(manager, monkeypatch, caplog):
    monkeypatch.setattr(systemd, 'PATIENCE', 0.05)
    caplog.set_level('DEBUG')
    began = time.process_time()
    for _ in range(10_000):
        if not systemd.status('x' * 400):
            break
    else:
        raise AssertionError('the queue of the socket was never full')
    assert 'timed out' in caplog.text
    assert manager.recv(4096).startswith(b'STATUS=x')
    assert systemd.ready()
    assert time.process_time() - began < 5


# -- the watchdog


def test_the_loop_notifies_the_watchdog_at_half_of_its_interval(fake, kernel, manager, monkeypatch):
    monkeypatch.setenv('WATCHDOG_USEC', '20000000')
    monkeypatch.setenv('WATCHDOG_PID', str(os.getpid()))
    manager.setblocking(False)
    systemd.watchdog(fake)
    keeper = fake.call_later(60, fake.stop)
    for beat in range(1, 4):
        run_until(fake, lambda beat=beat: kernel.time >= 1000 + 10 * beat)
        assert manager.recv(4096) == b'WATCHDOG=1'
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    keeper.cancel()
    assert fake.run(), 'the watchdog kept the loop running'


def test_a_manager_that_does_not_read_does_not_block_the_loop_at_each_beat(r, manager, monkeypatch):
    monkeypatch.setenv('WATCHDOG_USEC', '100000')
    monkeypatch.delenv('WATCHDOG_PID', raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(systemd, 'PATIENCE', 0.05)
        while systemd.status('x' * 400):
            pass
    manager.setblocking(False)
    timer = systemd.watchdog(r)
    turns = []
    ticks = r.call_every(0.01, turns.append, 1)
    r.call_later(0.5, r.stop)
    r.run()
    assert len(turns) > 20  # ten beats, each of which used to block the loop for a second
    drain(manager)
    r.call_later(0.2, r.stop)
    r.run()
    assert b'WATCHDOG=1' in drain(manager)
    timer.cancel()
    ticks.cancel()


@pytest.mark.scenario(155)
def test_a_loop_that_hangs_does_not_notify_the_watchdog(r, manager, monkeypatch):
    monkeypatch.setenv('WATCHDOG_USEC', '20000')
    monkeypatch.delenv('WATCHDOG_PID', raising=False)
    manager.setblocking(False)
    timer = systemd.watchdog(r)
    beats = []

    def hang():
        beats.append(drain(manager))  # the messages so far
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            pass
        beats.append(drain(manager))
        r.call_later(0.1, r.stop)

    r.call_soon(hang)
    r.run()
    assert beats[1] == b'' and drain(manager).startswith(b'WATCHDOG=1')
    timer.cancel()


@pytest.mark.parametrize(
    ('interval', 'pid'), [(None, None), ('20000000', '1'), ('0', None), ('soon', None), ('', None), ('-5', None)]
)
def test_without_a_watchdog_for_this_process_no_timer_is_set(r, monkeypatch, interval, pid):
    for name, value in (('WATCHDOG_USEC', interval), ('WATCHDOG_PID', pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog(r) is None
    assert len(r.timers) == 0
