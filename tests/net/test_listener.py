"""Listeners: accepting and refusing clients, pausing, and errors that must not affect other handles."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest

from reactor import HandleClosed, Reactor, ReactorError, SelectorFull, Stream
from reactor.kernel.platforms import TCP_DEFER_ACCEPT
from reactor.net.listener import Listener
from reactor.net.options import Options
from tests.helpers.support import (
    SELECTORS,
    FailingKernel,
    FakeKernel,
    Log,
    drain,
    end,
    idle,
    reset,
    run_short,
    run_until,
    turns,
)

HERE = '127.0.0.1'


class FlakySocket(socket.socket):
    """A real listening socket whose next accepts fail with the errors in `failures`."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[int] = []
        self.attempts = 0
        self.backlogs: list[int] = []
        self.bind((HERE, 0))

    def listen(self, backlog=None):  # type: ignore[no-untyped-def]
        self.backlogs.append(backlog)
        super().listen(backlog)

    def accept(self):  # type: ignore[no-untyped-def]
        self.attempts += 1
        if self.failures:
            number = self.failures.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


@pytest.fixture
def flaky(sockets):
    return sockets.track(FlakySocket())


def listen(r, log=None, **keywords):
    """Return a listener on a free port and the list of its connections."""
    conns = []
    if log is not None:
        keywords.update(log.callbacks('on_data', 'on_close'))
    return r.listen_tcp(HERE, 0, on_connect=conns.append, **keywords), conns


# -- accepting


def test_each_client_becomes_a_connection_and_on_connect_is_called(r, sockets):
    log = Log()
    listener, conns = listen(r, log)
    clients = [sockets.connect(listener.address) for _ in range(3)]
    run_until(r, lambda: len(conns) == 3)
    assert listener.open_connections == 3
    assert sorted(conn.peername for conn in conns) == sorted(client.getsockname() for client in clients)
    assert {conn.sockname for conn in conns} == {listener.address}
    assert r.stats().incoming == 3
    for client in clients:
        client.close()
    run_until(r, lambda: len(log) == 3)
    assert (listener.open_connections, r.stats().incoming, r.stats().accepts) == (0, 0, 3)
    listener.close()


def test_on_connect_comes_before_the_first_data(r, sockets):
    log = Log()
    listener = r.listen_tcp(HERE, 0, **log.callbacks('on_data', 'on_connect', 'on_close'))
    client = sockets.connect(listener.address)
    client.send(b'first')
    client.close()
    run_until(r, lambda: len(log) == 3)
    assert log == [('connect',), ('data', b'first'), ('close', None)]
    listener.close()


def test_a_client_can_be_answered_in_on_connect(r, sockets):
    listener = r.listen_tcp(HERE, 0, on_connect=lambda conn: conn.write(b'220 hello', Stream.close))
    client = sockets.connect(listener.address)
    run_until(r, lambda: drain(client) == b'220 hello')
    run_until(r, lambda: not listener.open_connections)
    turns(r, 1)
    listener.close()


def test_the_first_turn_accepts_one_client_and_later_turns_more_while_clients_wait(r, sockets):
    listener, conns = listen(r)
    for _ in range(20):
        sockets.connect(listener.address)
    opened = []
    for _ in range(6):
        turns(r, 1)
        opened.append(listener.open_connections)
    assert opened == [1, 3, 6, 10, 15, 20]
    listener.close()
    turns(r, 1)
    end(r, *conns)


@pytest.mark.scenario(41)
def test_a_turn_accepts_sixty_four_at_most(r, sockets):
    listener, conns = listen(r)
    listener._batch = 64  # accepts per turn, as after about sixty turns in which clients were waiting
    for _ in range(100):
        sockets.connect(listener.address)
    turns(r, 1)
    assert listener.open_connections == 64 == listener._batch
    turns(r, 1)
    assert listener.open_connections == 100
    listener.close()
    turns(r, 1)
    end(r, *conns)


@pytest.mark.scenario(41)
def test_a_flood_of_clients_does_not_keep_open_connections_waiting(r, sockets):
    log = Log()
    listener, conns = listen(r, log)
    client = sockets.connect(listener.address)
    run_until(r, lambda: conns)
    client.send(b'x')
    for _ in range(100):
        sockets.connect(listener.address)
    turns(r, 1)
    assert log == [('data', b'x')]
    listener.close()
    turns(r, 1)
    end(r, *conns)


@pytest.mark.scenario(42, 80)
def test_clients_that_have_reset_before_the_accept_end_once_and_leave_nothing(r, sockets, caplog):
    caplog.set_level(logging.INFO)
    log = Log()
    listener = r.listen_tcp(HERE, 0, **log.callbacks('on_connect', 'on_data', 'on_close'))
    for _ in range(200):
        reset(sockets.connect(listener.address))
    run_until(r, lambda: not listener.open_connections and idle(r, 3))
    closes = [entry for entry in log if entry[0] == 'close']
    assert len(closes) == log.names().count('connect') == r.stats().accepts
    assert all(exc is None or isinstance(exc, OSError) for _, exc in closes)
    assert caplog.records == []
    listener.close()


@pytest.mark.scenario(40)
@pytest.mark.parametrize('number', [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_client_that_aborts_in_the_backlog_is_skipped(r, sockets, flaky, number):
    conns, errors = [], []
    listener = r.listen_tcp(None, 0, sock=flaky, on_connect=conns.append, on_accept_error=lambda *a: errors.append(a))
    sockets.connect(listener.address)
    flaky.failures = [number, number]
    turns(r, 3)
    assert listener.open_connections == 1
    assert (len(conns), errors) == (1, [])
    listener.close()
    end(r, *conns)


@pytest.mark.scenario(40)
def test_endless_aborts_are_bounded_in_a_turn(r, sockets, flaky):
    listener = r.listen_tcp(None, 0, sock=flaky)
    sockets.connect(listener.address)
    flaky.failures = [errno.ECONNABORTED] * 200
    turns(r, 1)
    assert flaky.attempts <= 64
    listener.close()


@pytest.mark.scenario(77)
def test_options_of_the_listener_reach_its_connections(r, sockets):
    for nodelay in True, False:
        listener, conns = listen(r, nodelay=nodelay, keepalive=(60, 10, 5), read_size=3)
        sockets.connect(listener.address)
        run_until(r, lambda conns=conns: conns)
        sock = conns[0].sock
        assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == 'linux':
            names = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
            assert [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [60, 10, 5]
        assert conns[0].options.read_size == 3
        listener.close()
        end(r, *conns)


def test_accepted_sockets_do_not_block_and_are_not_inherited(r, sockets):
    listener, conns = listen(r)
    sockets.connect(listener.address)
    run_until(r, lambda: conns)
    assert conns[0].sock.getblocking() is False
    assert os.get_inheritable(conns[0].fileno()) is False
    listener.close()
    end(r, *conns)


def test_idle_clients_of_a_listener_are_timed_out(kernel, fake, sockets):
    log = Log()
    listener, _ = listen(fake, log, idle_timeout=3)
    sockets.connect(listener.address)
    run_until(fake, lambda: log)
    assert isinstance(log[0][1], TimeoutError)
    assert 1003 <= kernel.time <= 1004
    listener.close()


@pytest.mark.scenario(43)
def test_an_exception_in_on_connect_affects_that_connection_only(r, sockets, caplog):
    log = Log()
    raised = []

    def on_connect(conn):
        if not raised:
            raised.append(conn)
            raise ZeroDivisionError('on purpose')

    listener = r.listen_tcp(HERE, 0, on_connect=on_connect, **log.callbacks('on_data', 'on_close'))
    first = sockets.connect(listener.address)
    run_until(r, lambda: log)
    assert isinstance(log[0][1], ZeroDivisionError)
    with pytest.raises(ConnectionResetError):
        while first.recv(10):
            pass
    assert 'on purpose' in caplog.text
    second = sockets.connect(listener.address)
    second.send(b'x')
    run_until(r, lambda: len(log) == 2)
    assert log[1] == ('data', b'x')
    listener.close()
    second.close()
    run_until(r, lambda: len(log) == 3)


# -- pausing


@pytest.mark.scenario(44)
def test_a_paused_listener_leaves_clients_in_the_backlog_and_does_not_spin(r, sockets):
    listener, conns = listen(r)
    listener.pause()
    listener.pause()
    client = sockets.connect(listener.address)  # connecting succeeds, because the kernel completes the handshake
    assert idle(r)
    assert 'paused' in repr(listener)
    listener.resume()
    listener.resume()
    run_until(r, lambda: conns)
    assert conns[0].peername == client.getsockname()
    listener.close()
    end(r, *conns)


@pytest.mark.scenario(44, 81)
def test_at_max_connections_a_listener_pauses_until_a_connection_closes(r, sockets):
    listener, conns = listen(r, max_connections=2)
    clients = [sockets.connect(listener.address) for _ in range(4)]
    turns(r, 5)
    assert (listener.open_connections, len(conns)) == (2, 2)
    assert idle(r)
    clients[0].close()
    clients[1].send(b'still served')
    run_until(r, lambda: len(conns) == 3)
    assert listener.open_connections == 2
    conns[1].close()
    run_until(r, lambda: len(conns) == 4)
    listener.close()
    end(r, *conns)


@pytest.mark.scenario(81)
def test_max_connections_can_be_changed_at_any_time(r, sockets):
    listener, conns = listen(r, max_connections=1)
    for _ in range(4):
        sockets.connect(listener.address)
    turns(r, 3)
    assert len(conns) == 1
    listener.max_connections = 3
    turns(r, 3)
    assert len(conns) == 3
    listener.max_connections = 1
    end(r, *conns[:2])
    assert listener.open_connections == 1
    turns(r, 3)
    assert len(conns) == 3
    listener.max_connections = None
    turns(r, 3)
    assert len(conns) == 4
    assert listener.max_connections is None
    listener.close()
    end(r, *conns)


def test_with_a_limit_of_zero_no_client_is_accepted_until_the_limit_is_raised(r, sockets):
    # Regression: the first client used to be accepted, because the limit was checked only after an accept.
    listener, conns = listen(r, max_connections=0)
    sockets.connect(listener.address)
    assert idle(r)
    assert (listener.open_connections, conns) == (0, [])
    assert 'paused' in repr(listener)
    listener.max_connections = 1
    run_until(r, lambda: conns)
    listener.close()
    end(r, *conns)


@pytest.mark.scenario(44)
def test_a_pause_by_the_user_outlasts_a_connection_that_closes(r, sockets):
    listener, conns = listen(r, max_connections=1)
    sockets.connect(listener.address)
    run_until(r, lambda: conns)
    listener.pause()
    sockets.connect(listener.address)
    end(r, *conns)
    turns(r, 3)
    assert len(conns) == 1
    listener.resume()
    run_until(r, lambda: len(conns) == 2)
    listener.close()
    end(r, *conns)


@pytest.mark.parametrize('limit', ['many', 1.5, -1])
def test_an_invalid_limit_of_connections_is_refused_at_the_call(r, limit):
    with pytest.raises((TypeError, ValueError)):
        r.listen_tcp(HERE, 0, max_connections=limit)
    assert r.handles() == []


def test_clients_that_connect_one_by_one_cost_at_most_one_extra_accept_for_every_two_clients(fake, sockets, flaky):
    listener = fake.listen_tcp(None, 0, sock=flaky)
    for _ in range(10):
        sockets.connect(listener.address)
    run_until(fake, lambda: listener.open_connections == 10)
    for count in range(11, 25):
        if count == 15:
            # After four clients that connected one by one, the listener tries only a few accepts per turn again.
            before = flaky.attempts
        sockets.connect(listener.address)
        run_until(fake, lambda count=count: listener.open_connections == count)
    assert flaky.attempts - before <= 15
    listener.close()
    end(fake, *fake.handles())


# -- descriptors run out


EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@pytest.mark.scenario(39)
@pytest.mark.parametrize('number', EXHAUSTED)
def test_when_descriptors_run_out_a_listener_pauses_reports_once_and_tries_again(kernel, fake, sockets, flaky, number):
    conns, errors = [], []
    listener = fake.listen_tcp(
        None, 0, sock=flaky, on_connect=conns.append, on_accept_error=lambda *args: errors.append(args)
    )
    sockets.connect(listener.address)
    flaky.failures = [number] * 10
    run_until(fake, lambda: conns)
    assert flaky.attempts in (11, 12)
    assert 1000.99 <= kernel.time <= 1001.1  # one attempt every 0.1 s, and none in between
    assert fake.stats().loop_count < 60
    assert fake.stats().accept_pauses == 10
    assert [(handle, exc.errno) for handle, exc in errors] == [(listener, number)]
    assert errors[0][1].__traceback__ is None
    listener.close()
    end(fake, *conns)


@pytest.mark.scenario(38)
def test_when_descriptors_run_out_a_connection_that_closes_resumes_the_listener_at_once(kernel, fake, sockets, flaky):
    conns = []
    listener = fake.listen_tcp(None, 0, sock=flaky, on_connect=conns.append, on_accept_error=lambda *args: None)
    sockets.connect(listener.address)
    run_until(fake, lambda: conns)
    flaky.failures = [errno.EMFILE]
    sockets.connect(listener.address)
    turns(fake, 2)
    assert len(conns) == 1
    assert idle(fake, 5)
    now = kernel.time
    conns[0].close()
    turns(fake, 2)
    assert len(conns) == 2
    assert kernel.time == now
    listener.close()
    end(fake, *conns)
    assert len(fake.timers) == 0


@pytest.mark.parametrize('count', [0, 1, 2])
def test_the_first_episode_is_reported_however_many_clients_were_accepted_before(fake, sockets, flaky, count):
    errors = []
    listener = fake.listen_tcp(None, 0, sock=flaky, on_accept_error=lambda *args: errors.append(args))
    for _ in range(count):
        sockets.connect(listener.address)
    run_until(fake, lambda: listener.open_connections == count)
    flaky.failures = [errno.EMFILE]
    sockets.connect(listener.address)
    run_until(fake, lambda: listener.open_connections == count + 1)
    assert len(errors) == 1
    listener.close()
    end(fake, *fake.handles())


@pytest.mark.scenario(38)
def test_each_episode_is_reported(kernel, fake, sockets, flaky):
    errors = []
    listener = fake.listen_tcp(None, 0, sock=flaky, on_accept_error=lambda *args: errors.append(args))
    for episode in 1, 2:
        sockets.connect(listener.address)
        flaky.failures = [errno.EMFILE] * 3
        run_until(fake, lambda: not flaky.failures)
        fake.call_later(10, lambda: None)
        now = kernel.time
        run_until(fake, lambda now=now: kernel.time >= now + 10)
        assert len(errors) == episode
    conns = [handle for handle in fake.handles() if isinstance(handle, Stream)]
    listener.close()
    end(fake, *conns)


@pytest.mark.scenario(38, 84)
def test_without_on_accept_error_an_episode_is_one_line_in_the_log(kernel, fake, sockets, flaky, caplog):
    listener = fake.listen_tcp(None, 0, sock=flaky)
    sockets.connect(listener.address)
    flaky.failures = [errno.EMFILE] * 30
    run_until(fake, lambda: not flaky.failures)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert str(listener.address[1]) in caplog.text
    listener.close()


@pytest.mark.scenario(38)
def test_an_episode_is_reported_once_even_if_the_loop_is_busy_for_seconds(kernel, fake, sockets, flaky, caplog):
    def be_busy():
        kernel.time += 5

    listener = fake.listen_tcp(None, 0, sock=flaky)
    sockets.connect(listener.address)
    flaky.failures = [errno.EMFILE] * 10
    busy = fake.call_every(0.05, be_busy)
    run_until(fake, lambda: not flaky.failures)
    assert len(caplog.records) == 1
    busy.cancel()
    listener.close()


def test_an_on_accept_error_that_raises_is_logged_and_the_listener_goes_on(kernel, fake, sockets, flaky, caplog):
    def on_accept_error(listener, exc):
        raise ZeroDivisionError('on purpose')

    conns = []
    listener = fake.listen_tcp(None, 0, sock=flaky, on_connect=conns.append, on_accept_error=on_accept_error)
    sockets.connect(listener.address)
    flaky.failures = [errno.EMFILE]
    run_until(fake, lambda: conns)
    assert 'on purpose' in caplog.text
    listener.close()
    end(fake, *conns)


@pytest.mark.scenario(39)
def test_resume_while_descriptors_have_run_out_does_not_spin(fake, sockets, flaky):
    listener = fake.listen_tcp(None, 0, sock=flaky, on_accept_error=lambda *args: None)
    sockets.connect(listener.address)
    flaky.failures = [errno.EMFILE] * 100
    turns(fake, 1)
    listener.pause()
    listener.resume()
    attempts = flaky.attempts
    fake.run_once(0)
    assert flaky.attempts == attempts
    listener.close()
    assert len(fake.timers) == 0


@pytest.mark.scenario(39)
def test_closing_while_descriptors_have_run_out_leaves_no_timer(fake, sockets, flaky):
    listener = fake.listen_tcp(None, 0, sock=flaky, on_accept_error=lambda *args: None)
    sockets.connect(listener.address)
    flaky.failures = [errno.EMFILE]
    turns(fake, 1)
    assert len(fake.timers) == 1
    listener.close()
    assert len(fake.timers) == 0
    assert fake.run() is True


AT_THE_LIMIT = """
    import resource, socket, sys, time
    from reactor import Reactor

    conns, errors, served = [], [], []
    clients = []
    with Reactor() as r:
        listener = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data), on_connect=conns.append,
                                on_accept_error=lambda listener, exc: errors.append(exc))
        for _ in range(20):
            client = socket.create_connection(listener.address)
            client.setblocking(False)
            clients.append(client)
        used = clients[-1].fileno() + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        end = time.monotonic() + 1
        before, cpu = r.stats().loop_count, time.process_time()
        while time.monotonic() < end:
            r.run_once(end - time.monotonic())
        assert len(conns) == 5, len(conns)
        assert len(errors) == 1 and errors[0].errno == 24, errors
        assert r.stats().loop_count - before < 60, r.stats()
        assert time.process_time() - cpu < 0.2
        clients[0].send(b'served')
        while not served:
            r.run_once(0.1)
            try:
                served.append(clients[0].recv(100))
            except BlockingIOError:
                pass
        while len(conns) < 20:  # each client that closes makes room for another
            clients[len(conns) - 5].close()
            r.run_once(0.1)
        assert len(errors) == 1, errors
    print('ok', served)
"""


@pytest.mark.scenario(38)
@pytest.mark.alone
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no descriptor limit to lower')
def test_at_the_real_descriptor_limit_clients_wait_and_nothing_spins():
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', textwrap.dedent(AT_THE_LIMIT)],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])},
    )
    assert done.stdout == "ok [b'served']\n", done.stderr


# -- the selector is full


class CrowdedKernel(FakeKernel):
    """A kernel whose selector has room only while `room` is true."""

    room = True

    def room_of(self, selector):
        return lambda fd: self.room


def test_refusing_a_client_beyond_the_selectors_room_leaves_the_count_of_references_right(sockets):
    kernel = CrowdedKernel()
    with Reactor(kernel=kernel) as r:
        listener = r.listen_tcp(HERE, 0, on_accept_error=lambda *args: None)
        kernel.room = False
        sockets.connect(listener.address)
        run_until(r, lambda: r.stats().accepts_refused)
        assert r.run_once(0) is True
        listener.close()
        assert r.run_once(0) is False


def test_a_client_beyond_the_selectors_room_is_refused_and_the_others_are_served(sockets):
    kernel, log, errors = CrowdedKernel(), Log(), []
    with Reactor(kernel=kernel) as r:
        listener, conns = listen(r, log, on_accept_error=lambda *args: errors.append(args))
        first = sockets.connect(listener.address)
        run_until(r, lambda: conns)
        kernel.room = False
        refused = sockets.connect(listener.address)
        turns(r, 2)
        with pytest.raises((ConnectionResetError, BlockingIOError)) as caught:
            assert refused.recv(1) == b''
            raise ConnectionResetError
        assert caught.type is ConnectionResetError
        assert r.stats().accepts_refused == 1
        assert [type(exc) for _, exc in errors] == [SelectorFull]
        first.send(b'x')
        turns(r, 2)
        assert log == [('data', b'x')]
        kernel.room = True
        sockets.connect(listener.address)
        run_until(r, lambda: len(conns) == 2)
        assert listener.open_connections == 2


def test_a_selector_without_room_for_the_listener_leaves_nothing_open():
    kernel = CrowdedKernel()
    with Reactor(kernel=kernel) as r:
        kernel.room = False
        with pytest.raises(SelectorFull):
            r.listen_tcp(HERE, 0)
        gc.collect()  # a socket that is still open would cause a warning here, and warnings are errors
        kernel.room = True
        assert r.handles() == []


@pytest.mark.scenario(120)
@pytest.mark.skipif(os.name != 'posix', reason='select limits the numbers of descriptors only on POSIX')
def test_the_real_select_refuses_numbers_it_cannot_hold_and_serves_the_others(sockets):
    resource = pytest.importorskip('resource')
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1100:
        pytest.skip('the descriptor limit of this process is too low')
    log, dups = Log(), []
    with Reactor(selector=SELECTORS['select']()) as r:
        listener, conns = listen(r, log, on_accept_error=lambda *args: None)
        first = sockets.connect(listener.address)
        run_until(r, lambda: conns)
        try:
            while not dups or dups[-1] < 1030:
                dups.append(os.dup(listener.fileno()))
            beyond = sockets.connect(listener.address)
            run_until(r, lambda: r.stats().accepts_refused)
            first.send(b'x')
            run_until(r, lambda: log)
        finally:
            for fd in dups:
                os.close(fd)
        beyond.close()
        sockets.connect(listener.address)
        run_until(r, lambda: len(conns) == 2)


# -- closing


@pytest.mark.scenario(47)
def test_closing_a_listener_leaves_its_connections_usable(r, sockets):
    log = Log()
    listener, conns = listen(r, log)
    client = sockets.connect(listener.address)
    run_until(r, lambda: conns)
    address = listener.address
    listener.close()
    listener.close()
    listener.abort()
    assert listener.closed
    assert listener.address is None
    assert 'closed' in repr(listener)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    client.send(b'x')
    conns[0].write(b'y')
    run_until(r, lambda: log)
    assert drain(client) == b'y'
    client.close()
    run_until(r, lambda: len(log) == 2)
    assert log == [('data', b'x'), ('close', None)]
    assert listener.open_connections == 0


@pytest.mark.scenario(47)
def test_closing_a_listener_refuses_clients_that_were_not_accepted_yet(r, sockets):
    listener, conns = listen(r)
    client = sockets.connect(listener.address)
    listener.close()
    turns(r, 2)
    assert conns == []
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.scenario(110)
def test_a_listening_socket_that_is_passed_on_loses_no_client(r, sockets):
    """The backlog belongs to the socket, so its clients can be accepted on a duplicate, even in another process."""
    sock = socket.create_server((HERE, 0))
    duplicate = sock.dup()
    listener, conns = listen(r, sock=sock)
    clients = [sockets.connect(listener.address) for _ in range(10)]
    run_until(r, lambda: len(conns) == 10)
    listener.pause()
    clients += [sockets.connect(listener.address) for _ in range(50)]
    turns(r, 3)
    listener.close()
    with Reactor() as another:
        successor, others = listen(another, sock=duplicate)
        run_until(another, lambda: len(others) == 50)
        successor.close()
        for client, conn in zip(clients, conns + others, strict=True):
            conn.write(b'served')
            assert client.recv(100) == b'served'
        end(another, *others)
    end(r, *conns)


@pytest.mark.scenario(113)
def test_closing_the_listener_and_aborting_at_a_deadline_drains_a_server_by_hand(kernel, fake, sockets):
    log = Log()
    listener, conns = listen(fake, log)
    clients = [sockets.connect(listener.address) for _ in range(20)]
    run_until(fake, lambda: len(conns) == 20)
    for conn in conns[:15]:  # only these clients are answered
        fake.call_later(1, conn.write, b'answer', Stream.close)

    def drain_until(deadline):
        listener.close()
        fake.call_at(deadline, lambda: [handle.abort() for handle in fake.handles()])

    fake.call_later(0.5, drain_until, kernel.time + 10)
    assert fake.run() is True
    assert 1010 <= kernel.time < 1010.5
    assert log == [('close', None)] * 20
    assert [client.recv(100) for client in clients[:15]] == [b'answer'] * 15
    for client in clients[15:]:
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_a_closed_listener_cannot_be_resumed_and_pausing_it_does_nothing(r):
    listener, _ = listen(r)
    listener.close()
    listener.pause()
    listener.max_connections = 5
    with pytest.raises(HandleClosed):
        listener.resume()
    assert r.handles() == []


@pytest.mark.scenario(8)
def test_a_listener_can_be_closed_by_its_own_callback(r, sockets):
    listener = r.listen_tcp(HERE, 0, on_connect=lambda conn: (listener.close(), conn.close()))
    for _ in range(3):
        sockets.connect(listener.address)
    assert r.run() is True
    assert listener.closed


def test_a_listener_keeps_the_loop_running_unless_unreferenced(r):
    listener, _ = listen(r)
    assert 'clients' in r.why_alive()[0]
    listener.unref()
    assert r.run() is True
    listener.close()


def test_a_listener_counts_its_connections_and_does_not_hold_them(r, sockets):
    refs = []
    listener = r.listen_tcp(HERE, 0, on_connect=lambda conn: refs.append(weakref.ref(conn)))
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            sockets.connect(listener.address).close()
        run_until(r, lambda: len(refs) == 3 and not listener.open_connections)
        turns(r, 1)
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()
    listener.close()


def test_a_closed_listener_is_freed_without_the_collector(r):
    def make():
        class Callback:
            def __call__(self, *args):
                pass

        callback = Callback()
        listener = r.listen_tcp(HERE, 0, callback, on_connect=callback, on_accept_error=callback)
        listener.close()
        return weakref.ref(listener), weakref.ref(callback)

    gc.collect()
    gc.disable()
    try:
        refs = make()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


# -- other code closes the socket


@pytest.mark.parametrize('name', ['poll', 'select'])
@pytest.mark.parametrize('how', ['socket', 'descriptor'])
def test_a_foreign_close_of_the_listening_socket_is_reported_and_closes_the_listener(sockets, name, how):
    if SELECTORS[name] is None:
        pytest.skip(f'this platform has no {name} selector')
    errors, log = [], Log()
    sock = socket.create_server((HERE, 0))
    with Reactor(selector=SELECTORS[name]()) as r:
        listener = r.listen_tcp(None, 0, sock=sock, on_accept_error=lambda *args: errors.append(args))
        ours, theirs = sockets()
        conn = r.adopt(ours, on_data=log.on_data)
        sock.close() if how == 'socket' else os.close(sock.fileno())
        try:
            turns(r, 3)
        finally:
            if how == 'descriptor':
                sock.detach()
        assert listener.closed
        assert r.handles() == [conn]
        assert [exc.errno for _, exc in errors] == [errno.EBADF]
        theirs.send(b'x')
        turns(r, 2)
        assert log == [('data', b'x')]


@pytest.mark.parametrize('how', ['socket', 'descriptor'])
def test_closing_a_listener_whose_socket_is_gone_is_harmless_and_leaves_nothing(r, how):
    sock = socket.create_server((HERE, 0))
    listener = r.listen_tcp(None, 0, sock=sock)
    sock.close() if how == 'socket' else os.close(sock.fileno())
    try:
        listener.close()
    finally:
        if sock.fileno() >= 0:
            sock.detach()
    assert listener.closed
    assert r.handles() == []


@pytest.mark.scenario(14)
def test_a_new_socket_with_the_number_of_a_lost_listener_is_not_closed(r, sockets):
    sock = socket.create_server((HERE, 0))
    listener = r.listen_tcp(None, 0, sock=sock, on_accept_error=lambda *args: None)
    number = sock.fileno()
    os.close(number)
    ours, theirs = sockets()
    if number not in (ours.fileno(), theirs.fileno()):
        pytest.skip('the descriptor number was not reused')
    new_socket = ours if ours.fileno() == number else theirs
    try:
        conn = r.adopt(new_socket)  # registering this socket shows that the listener has lost its descriptor
        turns(r, 2)
        assert listener.closed
        new_socket.getsockname()  # raises OSError if the new socket was closed
        assert r.handles() == [conn]
        end(r, conn)
    finally:
        sock.detach()


# -- addresses


@pytest.mark.scenario(45)
def test_port_zero_is_a_free_port_that_the_address_shows(r, sockets):
    listener, _ = listen(r)
    host, port = listener.address
    assert host == HERE
    assert port > 0
    assert f'{HERE}:{port}' in repr(listener)
    assert 'accepting' in repr(listener)
    listener.close()


@pytest.mark.scenario(45)
def test_an_address_in_use_raises_at_the_call_and_says_what_to_do(r):
    listener, _ = listen(r)
    host, port = listener.address
    with pytest.raises(OSError, match='port 0') as caught:
        r.listen_tcp(host, port)
    assert caught.value.errno == errno.EADDRINUSE
    assert f'{host}:{port}' in str(caught.value)
    assert r.handles() == [listener]
    listener.close()


def test_a_port_can_be_listened_on_again_right_after_a_close(r, sockets):
    listener, conns = listen(r)
    host, port = listener.address
    sockets.connect(listener.address)
    run_until(r, lambda: conns)
    conns[0].close()  # this leaves a socket in TIME_WAIT
    listener.close()
    turns(r, 1)
    r.listen_tcp(host, port).close()


@pytest.mark.parametrize('arguments', [(HERE, -1), (HERE, 65536), (HERE, '80'), (5, 80), ('', 80)])
def test_bad_addresses_raise_at_the_call(r, arguments):
    with pytest.raises((TypeError, ValueError)):
        r.listen_tcp(*arguments)
    assert r.handles() == []


@pytest.mark.parametrize('name', ['on_data', 'on_connect', 'on_close', 'on_accept_error'])
def test_bad_callbacks_raise_at_the_call(r, name):
    with pytest.raises(TypeError, match=name):
        r.listen_tcp(HERE, 0, **{name: 'not callable'})
    assert r.handles() == []


def test_listening_from_another_thread_is_refused(r):
    caught = []

    def listen_in_a_thread():
        try:
            r.listen_tcp(HERE, 0)
        except ReactorError as exc:
            caught.append(exc)

    done = []
    r.call_soon(lambda: r.run_in_thread(listen_in_a_thread, on_done=lambda *args: done.append(args)))
    run_until(r, lambda: done)
    assert len(caught) == 1
    assert 'call_soon_threadsafe' in str(caught[0])


def test_listening_on_a_closed_reactor_is_refused(r):
    r.close()
    with pytest.raises(HandleClosed):
        r.listen_tcp(HERE, 0)


def test_closing_the_reactor_closes_its_listeners(sockets):
    with Reactor() as r:
        listener, conns = listen(r)
        sockets.connect(listener.address)
        run_until(r, lambda: conns)
    assert listener.closed
    assert conns[0].closed


def test_connections_do_not_share_options_that_are_set_for_one(r, sockets):
    listener, conns = listen(r)
    for _ in range(2):
        sockets.connect(listener.address)
    run_until(r, lambda: len(conns) == 2)
    conns[0].set_timeouts(idle=100)
    conns[0].on_data = print
    assert isinstance(conns[1].options, Options)
    assert conns[1].options.idle_timeout is None
    assert conns[1].on_data is None
    listener.close()
    end(r, *conns)


# -- hostile clients


@pytest.mark.scenario(80, 84)
def test_a_storm_of_clients_that_reset_leaves_no_object_and_no_line_in_the_log(r, caplog):
    caplog.set_level(logging.INFO)
    log = Log()
    listener = r.listen_tcp(HERE, 0, **log.callbacks('on_data', 'on_close'))

    def storm():
        for _ in range(50):
            client = socket.create_connection(listener.address)
            client.send(b'x')
            reset(client)
        turns(r, 5)
        run_until(r, lambda: not listener.open_connections and idle(r, 3))
        log.clear()

    storm()
    gc.collect()
    gc.disable()
    try:
        before, accepts = len(gc.get_objects()), r.stats().accepts
        for _ in range(40):
            storm()
        assert len(gc.get_objects()) - before < 50
        assert sys.platform != 'linux' or r.stats().accepts - accepts == 2000
    finally:
        gc.enable()
    assert caplog.records == []
    assert r.handles() == [listener]
    listener.close()


@pytest.fixture
def deferring(r):
    """A listener with `defer_accept`, and the log of its callbacks."""
    log = Log()
    listener = r.listen_tcp(HERE, 0, defer_accept=True, **log.callbacks('on_data', 'on_close'))
    yield listener, log
    listener.close()


def test_a_deferred_client_is_read_in_the_turn_in_which_it_is_accepted(r, sockets, deferring):
    listener, log = deferring
    client = sockets.connect(listener.address)
    client.send(b'at once')
    run_until(r, lambda: listener.open_connections)
    assert log == [('data', b'at once')]
    client.send(b'and later')
    run_until(r, lambda: len(log) == 2)
    client.close()
    run_until(r, lambda: len(log) == 3)
    assert log[1:] == [('data', b'and later'), ('close', None)]


def test_a_deferred_client_that_stays_silent_is_accepted_too(r, sockets, deferring):
    listener, log = deferring
    client = sockets.connect(listener.address)
    run_until(r, lambda: listener.open_connections)
    assert log == []
    client.send(b'late')
    run_until(r, lambda: log)
    assert log == [('data', b'late')]
    client.close()
    run_until(r, lambda: len(log) == 2)


def test_a_deferred_client_that_is_answered_and_closed_is_never_registered(r, sockets):
    registered = []

    def answer(conn, data):
        registered.append(conn.fileno() in r.watchers.selector.get_map())
        conn.write(b'answer')
        conn.close()

    listener = r.listen_tcp(HERE, 0, answer, defer_accept=True)
    client = sockets.connect(listener.address)
    client.send(b'ask')
    run_until(r, lambda: drain(client) == b'answer')
    assert registered == [False]
    listener.close()
    turns(r, 1)


@pytest.mark.parametrize('where', ['on_connect', 'on_data'])
def test_a_deferred_client_can_be_paused_by_its_first_callback(r, sockets, where):
    log, conns = Log(), []

    def pause(conn, *args):
        conns.append(conn)
        log.extend(('data', data) for data in args)
        conn.pause_reading()

    listener = r.listen_tcp(HERE, 0, defer_accept=True, **{'on_data': log.on_data, where: pause})
    client = sockets.connect(listener.address)
    client.send(b'one')
    run_until(r, lambda: conns)
    client.send(b'two')
    turns(r, 5)
    assert log.received == (b'one' if where == 'on_data' else b'')
    conns[0].on_data = log.on_data
    conns[0].resume_reading()
    run_until(r, lambda: log.received == b'onetwo')
    listener.close()
    end(r, *conns)


def test_an_exception_in_the_first_read_of_a_deferred_client_leaves_it_open_with_on_error(r, sockets):
    log = Log()

    def fail(conn, data):
        conn.on_data = log.on_data
        raise ValueError

    listener = r.listen_tcp(HERE, 0, fail, defer_accept=True, **log.callbacks('on_error', 'on_close'))
    client = sockets.connect(listener.address)
    client.send(b'one')
    run_until(r, lambda: log)
    client.send(b'two')
    run_until(r, lambda: len(log) == 2)
    assert log.names() == ['error', 'data']
    client.close()
    run_until(r, lambda: len(log) == 3)
    listener.close()


def test_a_large_answer_to_a_deferred_client_arrives_whole(r, sockets):
    listener = r.listen_tcp(HERE, 0, lambda conn, data: (conn.write(b'x' * 4_000_000), conn.close()), defer_accept=True)
    client = sockets.connect(listener.address)
    client.send(b'ask')
    client.send(b'and again')
    received = bytearray()

    def read():
        received.extend(drain(client))
        return len(received) == 4_000_000

    run_until(r, read)
    client.close()
    run_until(r, lambda: not listener.open_connections)
    listener.close()
    turns(r, 1)


def test_a_listener_whose_socket_was_shut_down_by_other_code_is_closed(r, flaky, caplog):
    server = r.listen_tcp(HERE, 0, sock=flaky)
    flaky.failures = [errno.EINVAL]
    address = server.address
    with socket.create_connection(address):
        run_until(r, lambda: server.closed)
    assert flaky.fileno() == -1
    assert 'is over' in caplog.text


@pytest.mark.scenario(42)
def test_an_accepted_socket_that_is_lost_at_once_affects_no_other_handle():
    errors = []
    kernel = FailingKernel('register', errno.EBADF, count=5)  # the fifth registration is the first accepted socket's
    with Reactor(kernel=kernel, catch_errors=lambda exc, handle: errors.append(exc)) as r:
        server = r.listen_tcp('10.0.0.1', 80)
        clients = [r.connect_tcp('10.0.0.1', 80) for _ in range(2)]
        r.call_later(5, server.close)
        for client in clients:
            r.call_later(5, client.close)
        r.run()
        assert (r.stats().accepts, r.stats().accepts_refused) == (1, 1)
    assert not errors
    assert not kernel.files


@pytest.mark.skipif(TCP_DEFER_ACCEPT < 0, reason='TCP_DEFER_ACCEPT is a Linux feature')
def test_a_deferred_client_beyond_the_selectors_room_is_reset_and_reported(sockets):
    kernel, log = CrowdedKernel(), Log()

    def crowd(conn, data):
        log.on_data(conn, data)
        kernel.room = False

    with Reactor(kernel=kernel) as r:
        listener = r.listen_tcp(HERE, 0, crowd, defer_accept=True, on_close=log.on_close)
        client = sockets.connect(listener.address)
        client.send(b'ask')
        run_until(r, lambda: 'close' in log.names())
        assert [log[0], type(log[1][1])] == [('data', b'ask'), SelectorFull]
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert listener.open_connections == 0
        kernel.room = True


def test_why_alive_shows_what_a_listener_waits_for(kernel, fake, sockets, flaky):
    conns = []
    listener = fake.listen_tcp(None, 0, sock=flaky, on_connect=conns.append, max_connections=1)

    def waits_for():
        return [line.rpartition('waits for ')[2] for line in fake.why_alive() if 'Listener' in line]

    assert waits_for() == ['clients']
    listener.pause()
    assert waits_for() == ['resume()']
    listener.resume()
    flaky.failures.append(errno.EMFILE)
    sockets.connect(listener.address)
    fake.run_once(0)
    assert waits_for() == ['descriptors']
    run_until(fake, lambda: conns)
    assert waits_for() == ['one of its connections to close']


@pytest.mark.parametrize('family', ['tcp', 'unix'])
def test_where_options_are_not_inherited_each_accepted_connection_gets_them(r, sockets, monkeypatch, tmp_path, family):
    monkeypatch.setattr('reactor.kernel.Kernel.nodelay_inherited', False)
    conns = []
    if family == 'tcp':
        listener = r.listen_tcp(HERE, 0, on_connect=conns.append, keepalive=60)
        assert not listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sockets.connect(listener.address)
    else:
        listener = r.listen_unix(str(tmp_path / 's'), on_connect=conns.append, keepalive=60)
        sockets.track(socket.socket(socket.AF_UNIX)).connect(listener.address)
    run_until(r, lambda: conns)
    sock = conns[0].sock
    if family == 'tcp':
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is (family == 'tcp')
    listener.close()
    end(r, *conns)


def test_a_client_that_cannot_be_accepted_without_memory_is_closed_and_the_next_is_served(
    kernel, fake, sockets, monkeypatch
):
    listener, conns = listen(fake)
    refused = sockets.connect(listener.address)
    run_short(monkeypatch, Stream, '__init__')
    turns(fake, 2)
    assert conns == [] and listener.open_connections == 0
    assert drain(refused) == b''
    assert fake.stats().accepts_refused == 1
    sockets.connect(listener.address)
    while not conns:
        fake.run_once()
    listener.close()
    end(fake, *conns)


def test_a_listener_out_of_memory_that_is_closed_in_the_same_turn_leaves_nothing(fake, sockets, monkeypatch):
    listener = fake.listen_tcp('127.0.0.1', 0)
    sockets.connect(listener.address)
    run_short(monkeypatch, Listener, 'handle_read')
    fake.call_soon(listener.close)
    turns(fake, 3)
    assert len(fake.timers) == 0 and fake.handles() == []
    assert fake.stats().accept_pauses == 0


def test_a_listener_without_memory_to_accept_pauses_and_then_accepts(kernel, fake, sockets, monkeypatch):
    listener, conns = listen(fake)
    run_short(monkeypatch, Listener, 'handle_read')
    sockets.connect(listener.address)
    began = kernel.time
    turns(fake, 3)
    assert conns == []
    assert fake.stats().accept_pauses == 1
    while not conns:
        fake.run_once()
    assert 0 < kernel.time - began < 1
    listener.close()
    end(fake, *conns)


def test_the_callbacks_of_a_listener_can_be_replaced_for_later_connections(r):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0, log.on_data, on_close=log.on_close)
    old = r.connect_tcp(*server.address[:2])
    run_until(r, lambda: server.open_connections == 1)
    later = Log()
    server.on_data, server.on_close, server.on_connect = later.on_data, later.on_close, later.on_connect
    new = r.connect_tcp(*server.address[:2])
    run_until(r, lambda: server.open_connections == 2)
    old.write(b'old')
    new.write(b'new')
    run_until(r, lambda: log and len(later) == 2)
    assert log == [('data', b'old')]
    assert later == [('connect',), ('data', b'new')]
    server.on_data = None  # from now on, data is dropped
    for conn in old, new:
        conn.close()
    run_until(r, lambda: not server.open_connections)
    server.close()
