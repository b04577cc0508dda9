"""Handles and their registry: where each handle is kept, the events that it wants, and descriptors that fail."""

from __future__ import annotations

import collections
import errno
import os
import selectors
import socket
import time

import pytest

from reactor import READ, WRITE, Reactor, ReactorError, SelectorFull
from reactor.loop.watcher import Handle, Watchers
from tests.helpers.support import Log, Probe, read_all, run_short, run_until, turns, turns_in

try:
    import fcntl
except ImportError:
    fcntl = None


def beyond_fd_setsize(sock):
    """Duplicate the socket to a descriptor number that is too large for `select`, and return the duplicate."""
    if fcntl is None:
        pytest.skip('this platform cannot choose a descriptor number')
    try:
        number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 1024)
    except OSError as exc:
        pytest.skip(f'the descriptor limit is too low: {exc}')
    return socket.socket(fileno=number)


@pytest.fixture
def on_select():
    """A reactor that uses a `select` selector."""
    with Reactor(selector=selectors.SelectSelector()) as reactor:
        yield reactor


def registered(r, fd):
    """Return the (events, handle) that the selector holds for a descriptor, or None."""
    key = r.watchers.selector.get_map().get(fd)
    return None if key is None else (key.events, key.data)


# -- the registry


def test_a_handle_that_wants_events_is_registered_and_a_handle_that_wants_none_is_parked(r, sockets):
    probe = Probe(r, sockets()[0], READ)
    fd = probe.fileno()
    for events in WRITE, READ | WRITE, READ:
        r.watchers.set_events(probe, events)
        assert probe.events == events
        assert registered(r, fd) == (events, probe)
        assert r.handles() == [probe]
    r.watchers.set_events(probe, 0)
    assert registered(r, fd) is None
    assert r.handles() == [probe]
    r.watchers.set_events(probe, READ)
    assert registered(r, fd) == (READ, probe)
    assert r.handles() == [probe]
    probe.close()
    assert r.handles() == []
    assert registered(r, fd) is None


def test_a_parked_handle_is_removed_as_well(r, sockets):
    probe = Probe(r, sockets()[0], 0)
    assert (r.handles(), r.watchers.referenced) == ([probe], 1)
    probe.close()
    assert (r.handles(), r.watchers.referenced) == ([], 0)


def test_wanting_the_same_events_again_does_not_call_the_selector(r, sockets, monkeypatch):
    probe = Probe(r, sockets()[0], READ)
    asked = []
    for name in 'register', 'unregister', 'modify':
        monkeypatch.setattr(r.watchers.selector, name, lambda *args: asked.append(args))
    r.watchers.set_events(probe, READ)
    monkeypatch.undo()
    assert asked == []
    probe.close()


def test_a_handle_gets_the_events_it_wants_and_no_others(r, sockets):
    ours, theirs = sockets()
    probe = Probe(r, ours, WRITE, lambda probe: r.watchers.set_events(probe, probe.events ^ (READ | WRITE)))
    theirs.send(b'x')
    turns(r, 4)
    assert probe.log == ['write', 'read', 'write', 'read']
    r.watchers.set_events(probe, READ | WRITE)
    probe.on_ready = None
    turns(r, 1)
    assert probe.log[4:] == ['read', 'write']
    probe.close()


def test_references_count_open_handles_once(r, sockets):
    first, second = Probe(r, sockets()[0]), Probe(r, sockets()[0], 0)
    assert r.watchers.referenced == 2
    for _ in range(2):
        first.unref()
        second.unref()
    assert r.watchers.referenced == 0
    assert not r.watchers.is_referenced(first)
    second.ref()
    second.ref()
    assert r.watchers.referenced == 1
    for probe in first, second:
        probe.close()
        probe.close()
        probe.unref()
        probe.ref()
    assert r.watchers.referenced == 0


def test_an_unreferenced_handle_stays_unreferenced_when_it_is_parked(r, sockets):
    probe = Probe(r, sockets()[0])
    probe.unref()
    for events in 0, READ, 0:
        r.watchers.set_events(probe, events)
        assert r.watchers.referenced == 0
    probe.close()
    assert r.watchers.referenced == 0


def test_handles_may_be_closed_while_they_are_listed(r, sockets):
    probes = [Probe(r, sockets()[0], events) for events in (READ, 0, READ, 0)]
    for handle in r.watchers:
        if handle in probes:
            handle.close()
    assert r.handles() == []


# -- descriptors that cannot be watched


@pytest.mark.scenario(15)
def test_a_regular_file_is_refused_by_epoll_and_nothing_is_left(tmp_path):
    if not hasattr(selectors, 'EpollSelector'):
        pytest.skip('this platform has no epoll')
    log = []
    with Reactor(selector=selectors.EpollSelector()) as r, open(tmp_path / 'file', 'wb') as file:
        with pytest.raises(PermissionError):
            Probe(r, file)
        assert r.handles() == []
        r.call_soon(log.append, 1)
        assert r.run() is True
    assert log == [1]


@pytest.mark.scenario(15)
@pytest.mark.parametrize('name', ['PollSelector', 'SelectSelector'])
def test_a_regular_file_is_always_ready_elsewhere(tmp_path, name):
    if not hasattr(selectors, name) or os.name != 'posix':
        pytest.skip(f'{name} takes no files here')
    with Reactor(selector=getattr(selectors, name)()) as r, open(tmp_path / 'file', 'wb') as file:
        probe = Probe(r, file, WRITE)
        turns(r, 2)
        assert probe.log == ['write', 'write']
        probe.close()


@pytest.mark.scenario(120)
def test_a_descriptor_beyond_fd_setsize_is_refused_and_the_others_go_on(on_select, sockets):
    log = Log()
    ours, theirs = sockets()
    on_select.adopt(ours, log.on_data)
    high = sockets.track(beyond_fd_setsize(sockets()[0]))
    with pytest.raises(SelectorFull, match='SelectSelector'):
        Probe(on_select, high)
    assert len(on_select.handles()) == 1
    theirs.send(b'x')
    turns(on_select, 2)
    assert log.received == b'x'


def test_a_parked_handle_beyond_fd_setsize_is_refused_when_it_wants_something(on_select, sockets):
    probe = Probe(on_select, beyond_fd_setsize(sockets()[0]), 0)
    with pytest.raises(SelectorFull):
        on_select.watchers.set_events(probe, READ)
    assert on_select.handles() == [probe]
    assert probe.events == 0
    turns(on_select, 1)
    probe.close()


@pytest.mark.scenario(120)
def test_a_client_beyond_fd_setsize_is_refused_and_the_others_are_served(on_select, sockets):
    log = Log()
    server = on_select.listen_tcp('127.0.0.1', 0, log.on_data, on_accept_error=lambda listener, exc: None)
    first, second = sockets.connect(server.address), None
    run_until(on_select, lambda: server.open_connections == 1)
    second = sockets.connect(server.address)
    taken = []
    try:
        while not taken or taken[-1] < 1023:
            taken.append(os.dup(0))
        on_select.run_once(1)
        assert on_select.stats().accepts_refused == 1
        first.send(b'x')
        run_until(on_select, lambda: log)
        assert log.received == b'x'
        assert read_all(on_select, second) == b''
    except OSError as exc:
        if exc.errno == errno.EMFILE:
            pytest.skip('the descriptor limit is too low')
        raise
    finally:
        for fd in taken:
            os.close(fd)


# -- descriptors that other code has closed


def lose(sock):
    """Close the descriptor of a socket, as other code would, but not the socket object."""
    os.close(sock.fileno())


@pytest.mark.scenario(12)
def test_a_connection_whose_descriptor_was_closed_ends_and_the_others_go_on(r, sockets):
    logs = [Log(), Log()]
    lost, _ = sockets()
    ours, theirs = sockets()
    victim = r.adopt(lost, logs[0].on_data, on_close=logs[0].on_close)
    conn = r.adopt(ours, logs[1].on_data, on_close=logs[1].on_close)
    lose(lost)
    theirs.send(b'x')
    turns(r, 3)
    if not victim.closed:  # epoll never reports a closed descriptor; the next operation detects it
        victim.pause_reading()
        victim.resume_reading()
    turns(r, 3)
    ((what, exc),) = logs[0]
    assert (what, exc.errno) == ('close', errno.EBADF)
    assert logs[1] == [('data', b'x')]
    assert turns_in(r) <= 3
    conn.abort()
    turns(r, 1)


def test_a_write_to_a_connection_whose_descriptor_was_closed_ends_it(r, sockets):
    log = Log()
    lost, _ = sockets()
    conn = r.adopt(lost, on_close=log.on_close)
    lose(lost)
    assert conn.write(b'x') is False
    turns(r, 3)
    assert [(what, exc.errno) for what, exc in log] == [('close', errno.EBADF)]


@pytest.mark.scenario(83)
def test_a_socket_object_closed_by_other_code_ends_its_connection(r, sockets):
    logs = [Log(), Log()]
    lost, _ = sockets()
    ours, theirs = sockets()
    victim = r.adopt(lost, on_close=logs[0].on_close)
    conn = r.adopt(ours, logs[1].on_data)
    lost.close()
    theirs.send(b'x')
    turns(r, 3)
    if not victim.closed:
        victim.write(b'x')
        turns(r, 3)
    assert [(what, exc.errno) for what, exc in logs[0]] == [('close', errno.EBADF)]
    assert logs[1].received == b'x'
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(12)
def test_a_new_handle_with_the_number_of_a_lost_descriptor_is_not_hurt(r, sockets):
    logs = [Log(), Log()]
    lost, _ = sockets()
    number = lost.fileno()
    victim = r.adopt(lost, logs[0].on_data, on_close=logs[0].on_close)
    lose(lost)
    ours, theirs = socket.socketpair()
    sockets.track(theirs).setblocking(False)
    assert ours.fileno() == number
    conn = r.adopt(ours, logs[1].on_data, on_close=logs[1].on_close)
    assert victim.closed
    theirs.send(b'x')
    turns(r, 3)
    assert [(what, exc.errno) for what, exc in logs[0]] == [('close', errno.EBADF)]
    assert logs[1] == [('data', b'x')]
    conn.write(b'y')
    assert theirs.recv(10) == b'y'
    conn.abort()
    turns(r, 1)


def test_a_new_handle_with_the_number_of_a_lost_parked_handle_is_not_hurt(r, sockets):
    logs = [Log(), Log()]
    lost, _ = sockets()
    number = lost.fileno()
    victim = r.adopt(lost, logs[0].on_data, on_close=logs[0].on_close)
    victim.pause_reading()
    lose(lost)
    ours, theirs = socket.socketpair()
    sockets.track(theirs).setblocking(False)
    assert ours.fileno() == number
    conn = r.adopt(ours, logs[1].on_data, on_close=logs[1].on_close)
    theirs.send(b'x')
    turns(r, 2)
    assert logs[1] == [('data', b'x')]
    lost.detach()
    victim.abort()
    conn.abort()
    turns(r, 2)
    assert logs[0].names() == ['close']


@pytest.mark.scenario(12)
def test_many_handles_lost_at_once_all_get_the_error(r, sockets):
    probes = [Probe(r, sockets()[0]) for _ in range(20)]
    live, mate = sockets()
    survivor = Probe(r, live)
    for probe in probes[:10]:
        lose(probe.sock)
    r.watchers.evict_closed()
    assert [probe.lost.errno for probe in probes[:10]] == [errno.EBADF] * 10
    assert [probe.lost for probe in probes[10:]] == [None] * 10
    assert len(r.handles()) == 11
    mate.send(b'x')
    turns(r, 2)
    assert survivor.log == ['read', 'read']
    for probe in [*probes[10:], survivor]:
        probe.close()


def test_a_lost_handle_that_another_one_closes_first_gets_no_error_and_is_not_kept(r, sockets):
    class Mate(Probe):
        other: Probe | None = None

        def handle_lost(self, exc):
            super().handle_lost(exc)
            if self.other is not None:
                self.loop.watchers.remove(self.other)
                self.other.sock.detach()

    first, second = (Mate(r, sockets()[0]) for _ in range(2))
    first.other = second
    for probe in first, second:
        lose(probe.sock)
    assert r.watchers.evict_closed()
    assert (first.lost.errno, second.lost) == (errno.EBADF, None)
    assert r.handles() == []


def test_a_new_selector_detects_lost_handles_and_takes_over_the_others(r, sockets):
    probe = Probe(r, sockets()[0])
    ours, theirs = sockets()
    survivor = Probe(r, ours)
    lose(probe.sock)
    r.watchers.rebuild()
    r._select = r.watchers.source.poll
    theirs.send(b'x')
    r.run_once(0)
    assert probe.lost is not None or probe.log == ['read']  # `poll` does not detect the lost descriptor
    if probe.lost is None:
        r.watchers.evict(probe)
    r.run_once(0)
    assert 'read' in survivor.log
    assert r.handles() == [survivor]
    survivor.close()


def test_a_lost_handle_that_changes_what_it_wants_gets_the_error(r, sockets):
    probe = Probe(r, sockets()[0])
    lose(probe.sock)
    r.watchers.set_events(probe, 0)
    if probe.lost is None:
        r.watchers.set_events(probe, READ)
    if probe.lost is None:  # `poll` and `select` detect the lost descriptor only at their next wait
        r.run_once(0)
    assert probe.lost is not None or probe.log == ['read']
    if probe.lost is None:
        r.watchers.evict(probe)
    assert probe.lost.errno == errno.EBADF
    assert r.handles() == []


def test_a_listener_whose_descriptor_was_closed_is_closed_and_the_others_go_on(r, sockets, caplog):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0)
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    os.close(server.fileno())
    theirs.send(b'x')
    turns(r, 3)
    if not server.closed:
        server.pause()
        server.resume()
    turns(r, 3)
    assert server.closed
    assert log.received == b'x'
    conn.abort()
    turns(r, 1)


def test_a_new_listener_with_the_number_of_a_lost_one_is_not_hurt(r, sockets, caplog):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0)
    number = server.fileno()
    os.close(number)
    ours, theirs = socket.socketpair()
    sockets.track(theirs).setblocking(False)
    assert ours.fileno() == number
    conn = r.adopt(ours, log.on_data, on_close=log.on_close)
    theirs.send(b'x')
    turns(r, 3)
    assert server.closed
    assert log == [('data', b'x')]
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(12)
def test_a_listener_gets_the_number_of_a_lost_one(r, caplog):
    # Regression: the new listener used to be refused with "descriptor 7 belongs to <Listener> already".
    lost = r.listen_tcp('127.0.0.1', 0)
    number = lost.fileno()
    os.close(number)
    server = r.listen_tcp('127.0.0.1', 0)
    assert server.fileno() == number
    assert lost.closed
    client = r.connect_tcp(*server.address)
    run_until(r, lambda: server.open_connections)
    client.abort()
    run_until(r, lambda: not server.open_connections)
    server.close()


@pytest.mark.scenario(13)
def test_one_socket_cannot_belong_to_two_handles(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data, on_close=log.on_close)
    with pytest.raises((ReactorError, OSError)):
        r.adopt(ours)
    theirs.send(b'x')
    turns(r, 2)
    assert log == [('data', b'x')]
    conn.abort()
    turns(r, 1)


@pytest.mark.scenario(13)
def test_a_released_descriptor_can_belong_to_another_handle(r, sockets):
    log = Log()
    ours, theirs = sockets()
    probe = Probe(r, ours)
    r.watchers.remove(probe)
    conn = r.adopt(ours, log.on_data)
    theirs.send(b'x')
    turns(r, 2)
    assert (probe.log, log.received) == ([], b'x')
    conn.abort()
    turns(r, 1)


# -- the kernel has no memory to watch a descriptor


@pytest.fixture(params=['register', 'modify'])
def refusing(request, r, monkeypatch):
    """A function that makes the next registration with the selector fail with ENOSPC."""
    selector, failing = r.watchers.selector, request.param
    real = getattr(selector, failing)

    def refuse(fd, events, data=None):
        monkeypatch.setattr(selector, failing, real)
        if failing == 'modify':
            selector.unregister(fd)  # `selectors` does the same when the kernel refuses the change
        raise OSError(errno.ENOSPC, 'No space left on device')

    def begin():
        monkeypatch.setattr(selector, failing, refuse)
        return failing

    return begin


@pytest.mark.scenario(118)
def test_a_connection_that_the_system_cannot_watch_ends_with_its_error_and_is_closed(r, sockets, refusing):
    log, (sock, peer) = Log(), sockets()
    conn = r.adopt(sock, on_close=log.on_close)
    if refusing() == 'modify':
        r.watchers.set_events(conn, READ | WRITE)
    else:
        conn.pause_reading()
        conn.resume_reading()
    turns(r, 2)
    assert [entry[1].errno for entry in log] == [errno.ENOSPC]
    assert sock.fileno() == -1
    assert peer.recv(1) == b''


def test_a_datagram_socket_that_the_system_cannot_watch_ends_with_its_error_and_is_closed(r, refusing):
    reported = []
    sock = r.bind_udp('127.0.0.1', 0, on_close=lambda sock, exc: reported.append(exc.errno))
    if refusing() == 'modify':
        r.watchers.set_events(sock, READ | WRITE)
    else:
        sock.pause_reading()
        sock.resume_reading()
    turns(r, 2)
    assert reported == [errno.ENOSPC]
    assert sock.fileno() == -1


@pytest.mark.scenario(39)
def test_a_listener_that_the_system_cannot_watch_tries_again(r, refusing, caplog):
    log = Log()
    server = r.listen_tcp('127.0.0.1', 0, on_connect=log.on_connect)
    if refusing() == 'modify':
        r.watchers.set_events(server, READ | WRITE)
    server.pause()
    server.resume()
    client = r.connect_tcp(*server.address)
    run_until(r, lambda: log.names() == ['connect'])
    assert 'paused' in caplog.text
    client.abort()
    server.close()
    run_until(r, lambda: not r.handles())


def test_a_watched_descriptor_that_the_system_cannot_watch_is_logged_and_released(r, sockets, refusing, caplog):
    sock, _ = sockets()
    handle = r.watch_fd(sock, READ, print)
    if refusing() == 'register':
        handle.set_events(0)
    handle.set_events(READ | WRITE)
    assert handle.closed
    assert 'No space left' in caplog.text
    assert sock.fileno() >= 0


# -- handles alone


class WithoutMemory(selectors.SelectSelector):
    """A `select` selector that can run out of memory before or after it has registered a descriptor."""

    short = None

    def register(self, fileobj, events, data=None):
        if self.short == 'before':
            raise MemoryError
        key = super().register(fileobj, events, data)
        if self.short == 'after':
            raise MemoryError
        return key


class Forgetful(selectors.SelectSelector):
    """A `select` selector that forgets a descriptor and then finds no memory or stack to register it again."""

    short = None

    def modify(self, fileobj, events, data=None):
        if self.short is not None:
            self.unregister(fileobj)
            raise self.short
        return super().modify(fileobj, events, data)


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('kind', [MemoryError, RecursionError])
def test_a_handle_that_its_selector_has_forgotten_is_refused_and_still_closed_with_the_reactor(
    kind, again, sockets, monkeypatch
):
    selector = Forgetful()
    with Reactor(selector=selector) as r:
        conn = r.adopt(sockets()[0])
        closed = []
        conn.on_close = lambda conn, exc: closed.append(exc)
        if again and kind is MemoryError:  # there is no memory for parking the handle, either
            run_short(monkeypatch, Watchers, '_park_lost')
        selector.short = kind()
        r.watchers.set_events(conn, READ | WRITE)
        assert not closed
        selector.short = None
        turns(r, 3)
        assert [type(exc) for exc in closed] == [kind]
        assert (r.handles(), r.watchers.referenced) == ([], 0)


@pytest.mark.skipif(not hasattr(selectors, 'PollSelector'), reason='needs poll')
@pytest.mark.parametrize('again', [False, True])
def test_a_listener_that_poll_has_registered_but_does_not_watch_accepts_again(again, sockets, monkeypatch):
    # Regression: unregistering used to raise KeyError, which was logged; the listener was closed or stayed parked for
    # ever.
    class Halfway(selectors.PollSelector):
        short = False

        def register(self, fileobj, events, data=None):
            key = super().register(fileobj, events, data)
            if self.short:
                self._selector.unregister(key.fd)
                raise MemoryError
            return key

    selector, errors = Halfway(), []
    with Reactor(selector=selector, catch_errors=lambda exc, handle: errors.append(exc)) as r:
        server = r.listen_tcp('127.0.0.1', 0, on_accept_error=lambda server, exc: None)
        server.pause()
        if again:  # there is no memory to unregister the listener at once, either
            run_short(monkeypatch, Watchers, '_unregister_lost')
        selector.short = True
        server.resume()
        selector.short = False
        sockets.connect(server.address)
        run_until(r, lambda: server.open_connections)
        assert not errors


@pytest.fixture(params=['before', 'after'])
def without_memory(request):
    """A reactor with a `select` selector, and a function that makes every later registration run out of memory."""
    selector = WithoutMemory()
    with Reactor(selector=selector) as reactor:
        yield reactor, lambda: setattr(selector, 'short', request.param)


def check_forgotten(r, fd):
    """Check that no handle is registered under the descriptor, and that none is counted."""
    assert registered(r, fd) is None
    assert (r.handles(), r.watchers.referenced) == ([], 0)


def test_a_new_handle_that_cannot_be_registered_for_want_of_memory_is_not_kept(without_memory, sockets):
    r, run_short = without_memory
    ours = sockets()[0]
    run_short()
    with pytest.raises(MemoryError):
        Probe(r, ours, READ)
    check_forgotten(r, ours.fileno())


@pytest.mark.parametrize('wanted', [READ, 0])
@pytest.mark.parametrize('closed_first', [False, True])
def test_a_change_without_memory_ends_the_handle_and_leaves_none_counted(without_memory, sockets, wanted, closed_first):
    r, run_short = without_memory
    ours, _theirs = sockets()
    ended = []
    conn = r.adopt(ours, on_close=lambda conn, exc: ended.append(exc))
    fd = conn.fileno()
    r.watchers.set_events(conn, wanted)
    run_short()
    r.watchers.set_events(conn, WRITE)
    if closed_first:
        conn.abort()
    run_until(r, lambda: ended)
    assert [type(exc) for exc in ended] == [type(None) if closed_first else MemoryError]
    check_forgotten(r, fd)


def test_a_handle_without_a_descriptor_has_the_number_minus_one(r):
    idler = r.idle(int)
    assert idler.fileno() == -1
    idler.close()


def test_a_handle_that_does_not_say_what_it_waits_for_is_shown_as_waiting_for_events(r, sockets):
    probe = Probe(r, sockets()[0])
    (line,) = r.why_alive()
    assert line.endswith('waits for events')
    probe.close()


def test_a_kind_of_handle_that_lacks_a_method_fails_instead_of_spinning(sockets):
    class Bare(Handle):
        def __init__(self, r, sock):
            self.loop, self.since, self.sock = r, r.now, sock

        def fileno(self):
            return self.sock.fileno()

    ours, theirs = sockets()
    theirs.send(b'x')
    with Reactor(catch_errors=False) as r:
        bare = Bare(r, ours)
        r.watchers.add(bare, READ)
        for events in READ, WRITE:
            r.watchers.set_events(bare, events)
            with pytest.raises(NotImplementedError):
                r.run_once(0)
        for part in bare.close, lambda: bare.closed:
            with pytest.raises(NotImplementedError):
                part()
        r.watchers.remove(bare)


def test_a_handle_that_was_only_half_forgotten_for_want_of_memory_leaves_nothing_when_it_is_closed(
    r, sockets, monkeypatch
):
    probe = Probe(r, sockets()[0])
    fd = probe.fileno()
    run_short(monkeypatch, Watchers, '_finish_parking')
    with pytest.raises(MemoryError):
        r.watchers.refuse(probe, MemoryError())
    probe.close()
    check_forgotten(r, fd)


def test_a_handle_that_was_only_half_forgotten_for_want_of_memory_can_be_watched_again(r, sockets, monkeypatch):
    ours, theirs = sockets()
    probe = Probe(r, ours)
    run_short(monkeypatch, Watchers, '_finish_parking')
    with pytest.raises(MemoryError):
        r.watchers.refuse(probe, MemoryError())
    r.watchers.set_events(probe, READ | WRITE)
    assert registered(r, probe.fileno()) == (READ | WRITE, probe)
    assert r.handles() == [probe]
    theirs.send(b'x')
    run_until(r, lambda: 'read' in probe.log)
    probe.close()


class Idle(Probe):
    """A probe that never makes progress."""

    def handle_read(self):
        super().handle_read()
        self.loop.spins.no_progress(self)


def test_a_parked_handle_is_watched_again_as_soon_as_there_is_memory(sockets):
    selector = WithoutMemory()
    with Reactor(selector=selector) as r:
        ours, theirs = sockets()
        probe = Idle(r, ours)
        theirs.send(b'x')
        run_until(r, lambda: r.stats().stalls)
        seen, selector.short = len(probe.log), 'before'
        time.sleep(0.02)  # by then, the parking time of the handle is over
        turns(r, 3)
        assert len(probe.log) == seen
        assert r.handles() == [probe]
        selector.short = None
        run_until(r, lambda: len(probe.log) > seen)
        assert r.stats().callback_errors == 0
        probe.close()


def test_a_handle_that_cannot_be_watched_again_after_a_moment_without_progress_ends_with_the_error(
    r, sockets, monkeypatch
):
    def refuse(fd, events, data=None):
        raise OSError(errno.ENOSPC, 'No space left on device')

    ours, theirs = sockets()
    probe = Idle(r, ours)
    reported = []
    probe.handle_refused = lambda exc: (reported.append(exc.errno), probe.close())
    theirs.send(b'x')
    run_until(r, lambda: r.stats().stalls)
    monkeypatch.setattr(r.watchers.selector, 'register', refuse)
    run_until(r, lambda: reported)
    assert reported == [errno.ENOSPC]
    assert r.handles() == []


class Deep(selectors.SelectSelector):
    """A selector that runs out of stack once, when `deep` is set."""

    deep = False

    def register(self, fileobj, events, data=None):
        self.check()
        return super().register(fileobj, events, data)

    def unregister(self, fileobj):
        self.check()
        return super().unregister(fileobj)

    def check(self):
        if self.deep:
            self.deep = False
            raise RecursionError


@pytest.mark.parametrize('what', ['parked', 'watched again'])
def test_a_handle_that_cannot_be_parked_or_watched_for_want_of_stack_is_refused(what, sockets):
    selector, log = Deep(), Log()
    with Reactor(selector=selector) as r:
        conn = r.adopt(sockets()[0], on_close=log.on_close)
        if what == 'watched again':
            conn.pause_reading()
        selector.deep = True
        conn.pause_reading() if what == 'parked' else conn.resume_reading()
        turns(r, 2)
        assert [(name, type(exc)) for name, exc in log] == [('close', RecursionError)]
        assert (r.handles(), r.watchers.referenced) == ([], 0)


def test_a_handle_whose_change_of_events_found_no_stack_leaves_nothing_when_it_is_closed_before_the_report(sockets):
    selector, log = Deep(), Log()
    with Reactor(selector=selector) as r:
        conn = r.adopt(sockets()[0], on_close=log.on_close)
        fd = conn.fileno()
        selector.deep = True
        r.watchers.set_events(conn, READ | WRITE)
        conn.abort()
        check_forgotten(r, fd)
        turns(r, 2)
        assert log == [('close', None)]


def test_refusing_a_handle_for_want_of_memory_does_not_look_at_the_others(sockets):
    class Counting(collections.UserDict):
        looks = 0

        def values(self):
            self.looks += 1
            return super().values()

    class Watched(selectors.SelectSelector):
        def __init__(self):
            super().__init__()
            self._fd_to_key = Counting()

        def get_map(self):
            return self._fd_to_key

    selector = Watched()
    with Reactor(selector=selector) as r:
        probe, _other = Probe(r, sockets()[0]), Probe(r, sockets()[0])
        fd, before = probe.fileno(), selector.get_map().looks
        r.watchers.refuse(probe, MemoryError())
        assert registered(r, fd) is None
        assert selector.get_map().looks == before


def test_two_dispatches_without_progress_in_one_turn_count_as_one(sockets):
    with Reactor() as r:
        conn = r.adopt(sockets()[0])
        for _ in range(10):
            turns(r, 1)
            assert not r.spins.stalled(conn)
            assert not r.spins.stalled(conn)
        assert r.spins.stalls[conn].row == 10
        conn.close()
        turns(r, 2)


def test_a_selector_that_cannot_be_replaced_for_want_of_memory_keeps_watching_everything(sockets):
    # Regression: half of the handles used to be registered with the new selector. The rest were no longer in any map
    # and were not closed with the reactor.
    class Selector(selectors.SelectSelector):
        full = False

        def register(self, *args):
            if self.full and len(self.get_map()):
                raise MemoryError
            return super().register(*args)

    log, selector = Log(), Selector()
    ours, theirs = sockets()
    with Reactor(selector=selector) as r:
        conn = r.adopt(ours, log.on_data, on_close=log.on_close)
        Selector.full = True
        assert r.watchers.rebuild() is selector is r.watchers.selector
        assert r.handles() == [conn]
        Selector.full = False
        theirs.send(b'x')
        run_until(r, lambda: log)
        assert r.watchers.rebuild() is not selector and r.handles() == [conn]
    assert log.names() == ['data', 'close']
