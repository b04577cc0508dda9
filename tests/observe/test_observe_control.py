"""The control socket: its commands, bad requests, and reading without side effects."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import stat
import weakref

import pytest

from reactor import READ, Reactor, ReactorError, SelectorFull, Stream, observe
from reactor.inspection import LONGEST_TEXT
from reactor.kernel.sockets import LeanSocket
from reactor.loop.watcher import Watchers
from reactor.observe.commands import COMMANDS, MOST
from reactor.observe.control_socket import LONGEST_LINE, RETRY, SILENT, STALLED
from tests.helpers.support import drain, ends, idle, in_thread, run_until, turns

if not hasattr(socket, 'AF_UNIX'):
    pytest.skip('NOT TESTED: the control socket: this platform has no Unix sockets', allow_module_level=True)


class Client:
    """A client of the control socket."""

    def __init__(self, r, sockets, path):
        self.r, self.received = r, b''
        self.sock = sockets.track(socket.socket(socket.AF_UNIX))
        self.sock.connect(path)
        self.sock.setblocking(False)

    def send(self, data):
        self.sock.sendall(data)

    def lines(self, count):
        """Wait for `count` lines and return them as bytes."""

        def here():
            self.received += drain(self.sock)
            return self.received.count(b'\n') >= count

        run_until(self.r, here)
        *lines, self.received = self.received.split(b'\n', count)
        return lines

    def ask(self, request, **arguments):
        if arguments:
            request = json.dumps({'do': request, **arguments})
        self.send(request.encode() + b'\n')
        return json.loads(self.lines(1)[0])

    def ended(self):
        """Run until the server has closed the connection; return the bytes that it sent before."""
        over = []

        def end():
            try:
                while piece := self.sock.recv(65536):
                    self.received += piece
                over.append(True)
            except BlockingIOError:
                pass
            except ConnectionError:
                over.append(True)
            return over

        run_until(self.r, end)
        return self.received


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'control')


@pytest.fixture
def door(r, path):
    door = observe.serve_control(r, path)
    yield door
    if not r.guard.closed:
        door.close()
        turns(r, 2)
    assert not os.path.exists(path)


@pytest.fixture
def client(r, sockets, door):
    return Client(r, sockets, door.path)


# -- commands


def test_help_lists_every_command_and_its_arguments(client):
    answer = client.ask('help')
    assert answer['ok'] is True
    assert list(answer['commands']) == ['help', 'stats', 'phases', 'handles', 'why_alive', 'top', 'trace', 'drain']
    for name, (what, arguments) in COMMANDS.items():
        assert answer['commands'][name]['what'] == what
        assert set(answer['commands'][name]['arguments']) == set(arguments)


@pytest.mark.parametrize('request_', ['stats', ' stats \r', '{"do": "stats"}'])
def test_stats_returns_the_counters_of_the_reactor(r, client, request_):
    answer = client.ask(request_)
    assert answer['ok'] and answer['draining'] is False
    assert answer['workers']['0']['pid'] == os.getpid()
    assert answer['sum']['loop_count'] == answer['workers']['0']['loop_count'] > 0
    assert set(answer['sum']) == set(r.stats().as_dict())


def test_a_control_client_is_not_counted_as_a_connection(r, client):
    answer = client.ask('stats')
    assert (answer['sum']['incoming'], answer['sum']['outgoing'], answer['sum']['accepts']) == (0, 0, 0)


def test_workers_are_reported_separately_and_as_a_sum(r, path, sockets):
    with Reactor() as one, Reactor() as another:
        one.counters.reads, another.counters.reads = 2, 3
        workers = {'0': observe.source(one)()['0'], '1': observe.source(another)()['0']}
        door = observe.serve_control(r, path, source=lambda: workers)
        answer = Client(r, sockets, path).ask('stats')
        assert {name: figures['reads'] for name, figures in answer['workers'].items()} == {'0': 2, '1': 3}
        assert answer['sum']['reads'] == 5
        phases = Client(r, sockets, path).ask('phases')
        assert set(phases['workers']) == {'0', '1'} and 'seconds' in phases['sum']
        door.close()
        turns(r, 2)


def test_phases_are_reported_in_seconds_with_the_lateness_of_timers(r, client):
    for _ in range(3):
        r.call_later(0, int)
    answer = client.ask('phases')
    assert set(answer['sum']['seconds']) == {'idle', 'dispatch', 'timers', 'soon', 'completions'}
    assert answer['sum']['seconds']['idle'] == pytest.approx(r.stats().idle_time, abs=0.2)
    assert answer['sum']['timer_lag'] == list(r.stats().timer_lag) and sum(answer['sum']['timer_lag']) == 3
    assert answer['workers']['0'] == answer['sum']


def test_handles_are_described_and_counted_by_kind(r, client, sockets):
    listener = r.listen_tcp('127.0.0.1', 0)
    answer = client.ask('handles')
    assert answer['kinds'] == {'Listener': 1, 'ControlSocket': 1, 'Stream': 1}
    only = client.ask('handles', kind='Listener')
    assert [one['handle'] for one in only['handles']] == [repr(listener)]
    assert only['handles'][0]['waits_for'] == 'clients' and only['handles'][0]['keeps_running'] is True
    assert [one['keeps_running'] for one in client.ask('handles', kind='Stream')['handles']] == [False]
    listener.close()


def test_the_number_of_omitted_handles_is_reported(r, client, sockets):
    conns = [r.adopt(sockets()[0]) for _ in range(20)]
    answer = client.ask('handles', limit=5, kind='Stream')
    assert (len(answer['handles']), answer['left_out']) == (5, 16)
    answer = client.ask('why_alive', limit=5)
    assert (len(answer['reasons']), answer['more']) == (5, True)
    answer = client.ask('why_alive', limit=20)
    assert (len(answer['reasons']), answer['more']) == (20, False)
    for conn in conns:
        conn.abort()


def test_the_length_of_an_answer_is_bounded(r, client, sockets, monkeypatch):
    conns = [r.adopt(sockets()[0]) for _ in range(10)]
    monkeypatch.setattr(type(conns[0]), '__repr__', lambda conn: 'x' * 100_000)
    answer = client.ask('handles', kind='Stream')
    assert {len(one['handle']) for one in answer['handles']} == {LONGEST_TEXT}
    for conn in conns:
        conn.abort()


def test_why_alive_returns_the_reasons_of_the_reactor(r, client):
    timer = r.call_later(1000, int)
    answer = client.ask('why_alive')
    assert len(answer['reasons']) == 1 and answer['reasons'][0].startswith('timer of builtins.int')
    timer.cancel()


def test_drain_begins_a_drain(r, client):
    answer = client.ask('drain', drain_timeout=60, lame_duck=30)
    assert answer == {'ok': True, 'drain_timeout': 60, 'lame_duck': 30}
    assert r.draining and client.ask('stats')['draining'] is True
    r.close()


def test_the_program_can_supply_the_drain_function(r, path, sockets):
    calls = []
    door = observe.serve_control(r, path, drain=lambda *args: calls.append(args))
    assert Client(r, sockets, path).ask('drain')['ok']
    assert calls == [(30.0, 0.0)] and not r.draining
    door.close()
    turns(r, 2)


def test_many_requests_at_once_are_answered_in_order_one_per_turn(r, client):
    client.send(b'help\nstats\n\n{"do": "phases"}\nnonsense\nhelp\n')
    answers = [json.loads(line) for line in client.lines(5)]
    for answer, part in zip(answers, ['commands', 'version', 'workers', 'error', 'commands'], strict=True):
        assert part in answer
    client.send(b'help\n' * 800)
    before = r.stats().loop_count
    client.lines(800)
    assert r.stats().loop_count - before >= 799


def test_the_last_line_needs_no_line_break(client):
    client.send(b'help\nstats')
    client.sock.shutdown(socket.SHUT_WR)
    lines = client.ended().splitlines()
    assert ['commands' in json.loads(lines[0]), 'version' in json.loads(lines[1]), len(lines)] == [True, True, 2]


# -- bad requests


BAD = [
    ('nonsense', 'unknown command; the commands are help, stats'),
    ('{}', 'unknown command'),
    ('{"do": 5}', 'unknown command'),
    ('{"do": ["stats"]}', 'unknown command'),
    ('{"do": "__init__"}', 'unknown command'),
    ('"stats"', 'unknown command'),
    ('stats 5', 'unknown command'),
    ('{"do": "stats"', 'not JSON'),
    ('{' * 2000, 'not JSON'),
    ('{"do": ' + '[' * 4000, 'not JSON'),
    ('{"do": "drain", "drain_timeout": NaN}', 'not JSON'),
    ('{"do": "stats", "limit": 5}', "unknown argument 'limit': stats takes no arguments"),
    ('{"do": "handles", "limits": 5}', "unknown argument 'limits': handles takes only kind and limit"),
    ('{"do": "handles", "limit": 0}', 'limit must be the number'),
    ('{"do": "handles", "limit": true}', 'limit must be the number'),
    ('{"do": "handles", "limit": "5"}', 'limit must be the number'),
    ('{"do": "handles", "limit": %d}' % (MOST + 1), 'limit must be the number'),  # noqa: UP031
    ('{"do": "handles", "kind": 5}', 'kind must be the class'),
    ('{"do": "drain", "drain_timeout": -1}', 'drain_timeout must be the seconds'),
    ('{"do": "drain", "drain_timeout": 1e999}', 'drain_timeout must be the seconds'),
    ('{"do": "drain", "drain_timeout": 86401}', 'drain_timeout must be the seconds'),
    ('{"do": "drain", "drain_timeout": "soon"}', 'drain_timeout must be the seconds'),
    ('{"do": "drain", "drain_timeout": 1, "lame_duck": 2}', 'lame_duck cannot be longer than drain_timeout'),
    ('\x00\x1b[2J', 'unknown command'),
]


@pytest.mark.parametrize(('request_', 'error'), BAD)
def test_a_bad_request_is_answered_with_the_reason_and_the_next_one_works(r, client, request_, error):
    answer = client.ask(request_)
    assert answer['ok'] is False and error in answer['error'] and len(answer['error']) < 200
    assert not r.draining
    assert client.ask('help')['ok'] is True


@pytest.mark.parametrize(
    ('command', 'arguments'),
    [
        ('handles', {'limit': 1}),
        ('handles', {'limit': 1000}),
        ('drain', {'drain_timeout': 0, 'lame_duck': 0}),
        ('drain', {'drain_timeout': 86400, 'lame_duck': 86400}),
    ],
)
def test_an_argument_may_have_its_smallest_and_its_largest_value(fake, path, sockets, command, arguments):
    observe.serve_control(fake, path, drain=lambda timeout, lame_duck: None)
    assert Client(fake, sockets, path).ask(command, **arguments)['ok'] is True


def test_bytes_that_are_not_text_are_a_bad_request(client):
    client.send(b'\xff\xfe\n')
    assert json.loads(client.lines(1)[0])['ok'] is False
    assert client.ask('help')['ok'] is True


@pytest.mark.parametrize('end', [b'', b'\n'])
def test_a_line_that_is_too_long_gets_an_error_and_ends_the_connection(r, client, end):
    client.send(b'x' * (LONGEST_LINE + 100) + end)
    (line,) = client.ended().splitlines()
    assert json.loads(line) == {'ok': False, 'error': f'a request may have at most {LONGEST_LINE} bytes'}


@pytest.mark.parametrize('catch_errors', [True, False])
def test_an_exception_in_the_source_is_reported_to_the_client_and_logged(path, sockets, caplog, catch_errors):
    with Reactor(catch_errors=catch_errors) as r:
        observe.serve_control(r, path, source=lambda: 1 / 0)
        client = Client(r, sockets, path)
        answer = client.ask('stats')
        assert answer['ok'] is False and answer['error'].startswith('ZeroDivisionError: division by zero')
        assert client.ask('help')['ok'] is True
    assert 'ZeroDivisionError' in caplog.text


# -- clients


def test_a_client_that_has_disconnected_does_no_harm(r, door, sockets, caplog):
    for _ in range(20):
        client = Client(r, sockets, door.path)
        client.send(b'stats\n' * 100)
        client.sock.close()
        turns(r, 3)
    run_until(r, lambda: len(r.handles()) == 1)
    assert not caplog.records


def test_eight_clients_are_answered_at_once_and_further_clients_wait(r, door, sockets):
    clients = [Client(r, sockets, door.path) for _ in range(9)]
    for one in clients:
        one.send(b'help\n')
    turns(r, 30)
    assert [drain(one.sock).count(b'\n') for one in clients] == [1] * 8 + [0]
    assert idle(r, 5)
    clients[0].sock.close()
    clients[-1].lines(1)


@pytest.mark.parametrize('at_once', [1, 600])
def test_output_for_a_client_that_reads_nothing_is_bounded(r, door, client, at_once):
    asked = 0
    for _ in range(600 // at_once):
        try:
            client.send(b'stats\n' * at_once)
        except BlockingIOError:
            break  # the server has also stopped reading requests
        asked += at_once
        turns(r, at_once + 1)
    (conn,) = [handle for handle in r.handles() if isinstance(handle, Stream)]
    assert 0 < conn.buffered < conn.options.high_water + 4096
    assert idle(r)
    assert len(client.lines(asked)) == asked  # when the client reads, every request is answered


@pytest.mark.parametrize(('sends', 'seconds'), [(b'', SILENT), (b'stats\n' * 600, STALLED)])
def test_a_client_that_does_nothing_is_cut_off(fake, kernel, path, sockets, sends, seconds):
    observe.serve_control(fake, path)
    client = Client(fake, sockets, path)
    client.send(sends)
    turns(fake, 700)
    assert len(fake.handles()) == 2
    kernel.time += seconds + 1
    turns(fake, 3)
    assert len(fake.handles()) == 1


@pytest.mark.parametrize('failure', [SelectorFull('no room'), MemoryError(), RecursionError()], ids=repr)
def test_a_client_that_the_selector_has_no_room_for_is_closed_and_the_next_is_answered(
    r, door, sockets, monkeypatch, failure
):
    def full(*args, **options):
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(r, 'adopt', full)
        assert Client(r, sockets, door.path).ended() == b''
    assert Client(r, sockets, door.path).ask('help')['ok'] is True


def test_a_spurious_readiness_event_is_ignored(door):
    door._on_ready(READ)
    assert not door.closed


def test_an_internal_error_is_logged_and_closes_only_that_client(door, client, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr('reactor.observe.commands.Commands.answer', lambda commands, line: 1 / 0)
        client.send(b'help\n')
        assert client.ended() == b''
    assert 'ZeroDivisionError' in caplog.text and len(caplog.records) == 1


# -- reading changes nothing


def test_neither_the_socket_nor_its_clients_keep_the_loop_running(r, client):
    client.ask('help')
    assert ends(r)


def test_waiting_requests_do_not_keep_the_loop_running(r, client):
    client.ask('help')
    client.send(b'\n' * 1000)
    r.run_once(0)
    assert r.run() is True and r.stats().loop_count < 100
    assert not any('call_soon' in reason for reason in r.why_alive())


def test_the_control_socket_does_not_delay_a_drain_and_works_until_its_end(r, door, client, sockets):
    listener = r.listen_tcp('127.0.0.1', 0, lambda conn, data: setattr(conn, 'busy', True))
    busy = sockets.connect(listener.address)
    busy.send(b'x')
    run_until(r, lambda: r.stats().requests == 1)
    assert client.ask('drain', drain_timeout=60)['ok']
    run_until(r, lambda: listener.closed)
    late = Client(r, sockets, door.path)
    waits_for = [reason for reason in late.ask('why_alive')['reasons'] if '<Stream' in reason]
    assert len(waits_for) == 1 and '127.0.0.1' in waits_for[0]
    assert late.ask('stats')['sum']['incoming'] == 1
    next(handle for handle in r.handles() if getattr(handle, 'busy', False)).busy = False
    assert r.run() is False
    r.close()


def test_closing_the_reactor_closes_the_control_socket_and_removes_the_file(r, door, client):
    client.ask('help')
    r.close()
    assert door.closed and not os.path.exists(door.path)
    client.sock.setblocking(True)
    with pytest.raises(ConnectionError):
        assert not client.sock.recv(1)
        raise ConnectionError  # end of file is also allowed; a reset raises this error anyway


def test_the_control_socket_may_be_closed_twice_and_its_clients_are_closed(r, door, client):
    client.ask('help')
    door.close()
    door.close()
    assert client.ended() == b''
    assert not r.handles()


def test_a_close_in_another_thread_raises_and_the_next_close_closes_everything(r, door, client):
    client.ask('help')
    errors = []

    def close_elsewhere():
        try:
            in_thread(door.close)
        except ReactorError as exc:
            errors.append(exc)

    r.call_soon(close_elsewhere)
    turns(r, 1)
    assert errors and not door.closed and client.ask('help')['ok']
    door.close()
    assert client.ended() == b'' and not r.handles()


def test_a_socket_that_other_code_has_closed_is_not_closed_again_and_nothing_is_left(r, door, client, sockets, caplog):
    client.ask('help')
    lost, before = door._sock.fileno(), len(os.listdir('/proc/self/fd'))
    stranger, _other = (sockets.track(sock) for sock in socket.socketpair())
    os.dup2(stranger.fileno(), lost)  # now the number belongs to another socket
    watch = next(handle for handle in r.handles() if handle.fileno() == lost)
    r.watchers.evict(watch)
    assert client.ended() == b''
    assert door.closed and not os.path.exists(door.path) and not r.handles()
    os.fstat(lost)
    door.close()
    os.close(lost)
    # The pair was added; the lost socket, the spare descriptor and the client's connection are gone.
    assert len(os.listdir('/proc/self/fd')) == before + 2 - 3
    assert 'closed by other code' in caplog.text


# -- the file


@pytest.mark.parametrize('mode', [0o600, 0o660])
def test_the_file_has_the_given_mode(r, path, mode):
    door = observe.serve_control(r, path, mode=mode)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    door.close()


def test_a_stale_socket_file_is_replaced(r, path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    observe.serve_control(r, path).close()


def test_a_path_in_use_is_refused_and_nothing_is_left(r, door):
    with pytest.raises(OSError) as raised:
        observe.serve_control(r, door.path)
    assert raised.value.errno == errno.EADDRINUSE
    assert len(r.handles()) == 1


def test_a_full_selector_raises_at_the_call_and_nothing_is_left(r, path, monkeypatch):
    def full(*args):
        raise SelectorFull('no room')

    with monkeypatch.context() as patched:
        patched.setattr(Watchers, 'add', full)
        with pytest.raises(SelectorFull):
            observe.serve_control(r, path)
    assert not r.handles() and not os.path.exists(path)


def test_a_closed_control_socket_leaves_no_exit_callback(r, path):
    for _ in range(3):
        observe.serve_control(r, path).close()
    left = [fn for fn, _ in r._exit_callbacks]
    assert left == [] and not r.handles()


def test_a_closed_control_socket_is_freed_without_the_collector(r, path):
    door = observe.serve_control(r, path)
    ref = weakref.ref(door)
    gc.disable()
    try:
        door.close()
        del door
        assert ref() is None
    finally:
        gc.enable()


def test_bad_arguments_are_refused_at_the_call(r, path):
    with pytest.raises(ValueError, match='abstract'):
        observe.serve_control(r, '@control')
    with pytest.raises(TypeError):
        observe.serve_control(r, 5)
    with pytest.raises(TypeError, match='drain'):
        observe.serve_control(r, path, drain=True)
    with pytest.raises(TypeError, match='source must be callable or None, not 3'):
        observe.serve_control(r, path, source=3)
    assert not r.handles() and not os.path.exists(path)


# -- when descriptors have run out


@pytest.fixture
def exhausted():
    """`exhausted()` uses up all descriptors and returns them in a list; closing one of them makes room."""
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []

    def exhaust():
        highest = max(map(int, os.listdir('/proc/self/fd'))) if os.path.isdir('/proc/self/fd') else 200
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, limits[1]))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError as exc:
            assert exc.errno == errno.EMFILE
        return taken

    yield exhaust
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class Scarce(LeanSocket):
    """A listening socket whose next accepts fail with the errors in `failures`."""

    failures: list[int]  # error numbers

    def accept(self):
        if self.failures:
            raise OSError(self.failures.pop(0), 'as the test says')
        return super().accept()


@pytest.fixture
def scarce(fake, kernel, path, monkeypatch):
    """A control socket at `path`; its next accepts fail with each errno that is added to the yielded list."""
    sock = Scarce(socket.AF_UNIX)
    sock.setblocking(False)
    sock.failures = []
    with monkeypatch.context() as patched:
        patched.setattr(kernel, 'socket', lambda *args: sock)
        observe.serve_control(fake, path)
    return sock.failures


@pytest.mark.parametrize('number', [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_the_spare_descriptor_is_for_one_client_at_a_time_and_further_clients_wait(
    fake, kernel, path, sockets, scarce, number
):
    scarce.append(number)
    first = Client(fake, sockets, path)
    assert first.ask('help')['ok'] is True
    scarce.append(number)  # now the spare descriptor is in use
    second = Client(fake, sockets, path)
    second.send(b'help\n')
    turns(fake, 5)
    assert drain(second.sock) == b''
    kernel.time += RETRY
    assert len(second.lines(1)) == 1
    first.sock.close()  # the freed descriptor becomes the spare descriptor
    run_until(fake, lambda: len(fake.handles()) == 2)
    scarce.append(number)
    third = Client(fake, sockets, path)
    third.send(b'help\n')
    turns(fake, 5)
    assert drain(third.sock).endswith(b'\n')


def test_a_client_that_disconnects_before_it_is_accepted_does_not_use_the_spare_descriptor(
    fake, kernel, path, sockets, scarce
):
    scarce.append(errno.ECONNABORTED)
    client = Client(fake, sockets, path)
    client.send(b'help\n')
    turns(fake, 5)
    assert drain(client.sock) == b''
    kernel.time += RETRY
    scarce.append(errno.EMFILE)
    turns(fake, 5)
    assert drain(client.sock).endswith(b'\n')


def test_a_control_socket_that_is_closed_while_accepting_is_paused_stays_closed(
    fake, kernel, path, sockets, monkeypatch, caplog
):
    def full(*args, **options):
        raise SelectorFull('no room')

    door = observe.serve_control(fake, path)
    monkeypatch.setattr(fake, 'adopt', full)
    assert Client(fake, sockets, path).ended() == b''
    door.close()
    kernel.time += RETRY
    turns(fake, 2)
    assert not caplog.records and not fake.handles()


def test_the_control_socket_answers_when_descriptors_have_run_out(r, door, sockets, exhausted):
    first, second = [sockets.track(socket.socket(socket.AF_UNIX)) for _ in range(2)]
    taken = exhausted()
    for sock in first, second:
        sock.connect(door.path)
        sock.setblocking(False)
    answers = {first: b'', second: b''}

    def asked(sock):
        try:
            answers[sock] += sock.recv(65536)
        except BlockingIOError:
            pass
        return answers[sock].endswith(b'\n')

    first.send(b'stats\n')
    second.send(b'stats\n')
    run_until(r, lambda: asked(first))
    assert json.loads(answers[first])['ok'] is True
    assert idle(r)  # the second client waits, and the loop sleeps
    os.close(taken.pop())
    run_until(r, lambda: asked(second))


def test_the_spare_descriptor_is_replaced_after_each_client(r, door, sockets, exhausted):
    socks = [sockets.track(socket.socket(socket.AF_UNIX)) for _ in range(3)]
    exhausted()
    for sock in socks:
        sock.connect(door.path)
        sock.send(b'help\n')
        sock.setblocking(True)
        run_until(r, lambda: len(r.handles()) == 2)
        turns(r, 3)
        assert sock.recv(65536).endswith(b'\n')
        sock.shutdown(socket.SHUT_RDWR)
        run_until(r, lambda: len(r.handles()) == 1)
        with pytest.raises(OSError, match='Too many open files'):
            os.dup(0)
