"""Watched descriptors of any kind, with changing events. The reactor never reads, writes or closes them."""

from __future__ import annotations

import errno
import gc
import os
import selectors
import socket
import sys
import weakref
from contextlib import closing, suppress

import pytest

from reactor import READ, WRITE, HandleClosed, Reactor, ReactorError, SelectorFull
from reactor.kernel.platforms import FD_SETSIZE
from reactor.loop.watcher import UNHEARD, Watchers
from tests.helpers.support import Log, fill, idle, in_thread, run_short, run_until, turns, turns_in

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='select takes only sockets there')


@pytest.fixture
def pipe():
    """A non-blocking pipe, as (reading end, writing end)."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    it = os.fstat(ends[0]).st_ino
    yield ends
    for fd in ends:
        with suppress(OSError):  # the test may have closed the descriptor
            if os.fstat(fd).st_ino == it:  # the number may belong to another file now, such as a new selector
                os.close(fd)


class Seen(list):
    """Records the arguments of each call to `on_ready`."""

    def on_ready(self, handle, event, *args):
        self.append((handle, event, *args))


def test_a_pipe_is_watched_until_it_is_read(r, pipe):
    seen = Seen()
    handle = r.watch_fd(pipe[0], READ, seen.on_ready, 'more')
    turns(r, 2)
    assert seen == []
    os.write(pipe[1], b'x')
    run_until(r, lambda: seen)
    assert seen == [(handle, READ, 'more')]
    turns(r, 2)
    assert len(seen) == 3
    os.read(pipe[0], 10)
    turns(r, 2)
    assert len(seen) == 3
    handle.close()


def test_the_callback_is_not_called_inside_watch_fd(r, pipe):
    seen = Seen()
    handle = r.watch_fd(pipe[1], WRITE, seen.on_ready)
    assert seen == []
    turns(r, 1)
    assert seen == [(handle, WRITE)]
    handle.close()


@pytest.mark.scenario(14)
def test_closing_ends_the_watch_and_leaves_the_descriptor_open(r, pipe):
    seen = Seen()
    os.write(pipe[1], b'x')
    handle = r.watch_fd(pipe[0], READ, seen.on_ready)
    handle.close()
    handle.close()
    assert handle.closed and r.handles() == []
    turns(r, 2)
    assert seen == []
    assert os.read(pipe[0], 10) == b'x'


def test_closing_the_reactor_leaves_the_descriptor_open(pipe):
    with Reactor() as r:
        handle = r.watch_fd(pipe[0], READ, turns)
    assert handle.closed
    os.write(pipe[1], b'x')
    assert os.read(pipe[0], 10) == b'x'
    with pytest.raises(HandleClosed):
        r.watch_fd(pipe[0], READ, turns)


def test_the_wanted_events_can_be_changed_at_any_time(r, sockets):
    seen = Seen()
    ours, theirs = sockets()
    handle = r.watch_fd(ours, READ | WRITE, seen.on_ready)
    assert handle.events == READ | WRITE
    theirs.send(b'x')
    turns(r, 1)
    assert seen == [(handle, READ), (handle, WRITE)]
    for events in READ, WRITE:
        seen.clear()
        handle.set_events(events)
        assert handle.events == events
        turns(r, 1)
        assert seen == [(handle, events)]
    handle.set_events(0)
    seen.clear()
    assert idle(r) and seen == []
    handle.set_events(READ)
    turns(r, 1)
    assert seen == [(handle, READ)]
    handle.close()


def test_a_watch_may_begin_with_nothing_wanted(r, pipe):
    seen = Seen()
    os.write(pipe[1], b'x')
    handle = r.watch_fd(pipe[0], 0, seen.on_ready)
    assert idle(r) and seen == []
    handle.set_events(READ)
    turns(r, 1)
    assert len(seen) == 1
    handle.close()


def test_a_watch_closed_in_its_callback_is_not_called_again(r, sockets):
    seen = Seen()

    def on_ready(handle, event):
        seen.append(event)
        handle.close()

    ours, theirs = sockets()
    theirs.send(b'x')
    r.watch_fd(ours, READ | WRITE, on_ready)
    assert r.run() is True
    assert seen == [READ]


def test_a_hang_up_does_not_wake_a_watch_that_wants_nothing(r, pipe):
    handle = r.watch_fd(pipe[0], 0, turns)
    os.close(pipe[1])
    assert turns_in(r) <= 3
    handle.close()


def test_the_end_of_a_pipe_is_input(r, pipe):
    ended = []

    def on_ready(handle, event):
        ended.append(os.read(handle.fileno(), 10))
        handle.close()

    r.watch_fd(pipe[0], READ, on_ready)
    os.close(pipe[1])
    assert r.run() is True
    assert ended == [b'']


def test_a_socket_with_no_other_reference_stays_open_while_it_is_watched(r):
    seen = Seen()
    ours, theirs = socket.socketpair()
    handle = r.watch_fd(ours, READ, seen.on_ready)
    fd = ours.fileno()
    ref = weakref.ref(ours)
    del ours
    gc.collect()
    with theirs:
        theirs.send(b'x')
        turns(r, 1)
        assert seen == [(handle, READ)] and handle.fileno() == fd
        ref().close()
        handle.close()
    turns(r, 1)


@pytest.mark.skipif(not hasattr(os, 'eventfd'), reason='this platform has no eventfd')
def test_an_eventfd_is_watched(r):
    seen = Seen()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        handle = r.watch_fd(fd, READ, seen.on_ready)
        os.eventfd_write(fd, 3)
        run_until(r, lambda: seen)
        assert os.eventfd_read(fd) == 3
        handle.close()
    finally:
        os.close(fd)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has inotify')
def test_inotify_is_watched(r, tmp_path):
    import ctypes

    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0
    seen = Seen()
    try:
        handle = r.watch_fd(fd, READ, seen.on_ready)
        created = 0x100
        assert libc.inotify_add_watch(fd, os.fsencode(tmp_path), created) >= 0
        (tmp_path / 'new').write_text('')
        run_until(r, lambda: seen)
        assert b'new' in os.read(fd, 4096)
        handle.close()
    finally:
        os.close(fd)


def test_a_full_pipe_is_reported_when_there_is_room(r, pipe):
    seen = Seen()
    try:
        while True:
            os.write(pipe[1], bytes(4096))
    except BlockingIOError:
        pass
    handle = r.watch_fd(pipe[1], WRITE, seen.on_ready)
    assert idle(r) and seen == []
    os.read(pipe[0], 1 << 20)
    run_until(r, lambda: seen)
    handle.close()


def test_a_full_socket_is_reported_when_there_is_room(r, sockets):
    seen = Seen()
    ours, theirs = sockets()
    fill(ours)
    handle = r.watch_fd(ours.fileno(), WRITE, seen.on_ready)
    assert idle(r) and seen == []
    theirs.recv(1 << 20)
    run_until(r, lambda: seen)
    handle.close()


# -- values that are refused


@pytest.mark.scenario(15)
def test_a_regular_file_is_refused_on_every_selector(r, tmp_path):
    with open(tmp_path / 'file', 'w+b') as file:
        for what in file, file.fileno():
            with pytest.raises(PermissionError, match=r'run_in_thread') as caught:
                r.watch_fd(what, READ, turns)
            assert caught.value.errno == errno.EPERM
            assert str(file.fileno()) in str(caught.value)
    assert r.handles() == []
    assert r.run() is True


def test_a_directory_is_refused(r, tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError, match='directories'):
            r.watch_fd(fd, READ, turns)
    finally:
        os.close(fd)


def test_a_number_that_is_not_open_is_refused(r, pipe):
    os.close(pipe[0])
    with pytest.raises(OSError, match='not open') as caught:
        r.watch_fd(pipe[0], READ, turns)
    assert caught.value.errno == errno.EBADF
    assert r.handles() == []


@pytest.mark.parametrize(
    ('what', 'error'), [(-1, ValueError), ('7', TypeError), (None, TypeError), (True, TypeError), (1.0, TypeError)]
)
def test_a_value_that_is_not_a_descriptor_is_refused(r, what, error):
    with pytest.raises(error):
        r.watch_fd(what, READ, turns)
    assert r.handles() == []


def test_a_closed_socket_is_refused(r, sockets):
    ours, _ = sockets()
    ours.close()
    with pytest.raises(ValueError):
        r.watch_fd(ours, READ, turns)


@pytest.mark.parametrize('events', [-1, 4, 'r', None, 1.0, True])
def test_invalid_events_are_refused(r, pipe, events):
    with pytest.raises(ValueError, match='READ'):
        r.watch_fd(pipe[0], events, turns)
    handle = r.watch_fd(pipe[0], READ, turns)
    with pytest.raises(ValueError, match='READ'):
        handle.set_events(events)
    assert handle.events == READ
    handle.close()


def test_a_descriptor_too_large_for_select_is_refused_and_the_others_go_on(pipe):
    import fcntl

    seen = Seen()
    with Reactor(selector=selectors.SelectSelector()) as r:
        r.watch_fd(pipe[1], WRITE, seen.on_ready)
        try:
            high = fcntl.fcntl(pipe[0], fcntl.F_DUPFD_CLOEXEC, FD_SETSIZE)
        except OSError as exc:
            pytest.skip(f'the descriptor limit is too low: {exc}')
        try:
            with pytest.raises(SelectorFull, match=str(high)):
                r.watch_fd(high, READ, turns)
        finally:
            os.close(high)
        turns(r, 1)
        assert len(seen) == 1 and len(r.handles()) == 1


def test_a_callback_that_is_not_callable_is_refused(r, pipe):
    with pytest.raises(TypeError):
        r.watch_fd(pipe[0], READ, 5)


@pytest.mark.scenario(13)
def test_one_descriptor_has_one_watch(r, pipe):
    seen = Seen()
    handle = r.watch_fd(pipe[0], READ, seen.on_ready)
    with pytest.raises(ReactorError, match=rf'descriptor {pipe[0]} already belongs to <Descriptor fd={pipe[0]}'):
        r.watch_fd(pipe[0], READ, turns)
    assert r.handles() == [handle]
    os.write(pipe[1], b'x')
    run_until(r, lambda: seen)
    handle.close()
    r.watch_fd(pipe[0], READ, turns).close()


@pytest.mark.scenario(13)
def test_the_socket_of_a_connection_is_not_watched(r, sockets):
    log = Log()
    ours, theirs = sockets()
    conn = r.adopt(ours, log.on_data)
    for what in ours, ours.fileno():
        with pytest.raises(ReactorError, match='belongs to <Stream'):
            r.watch_fd(what, READ, turns)
    theirs.send(b'x')
    turns(r, 2)
    assert log.received == b'x'
    conn.close()
    turns(r, 2)


def test_the_first_of_two_watches_cannot_want_events_while_the_second_does(r, pipe):
    first = r.watch_fd(pipe[0], 0, turns)
    second = r.watch_fd(pipe[0], READ, turns)
    with pytest.raises(ReactorError, match='belongs to'):
        first.set_events(READ)
    assert not first.closed and first.events == 0
    second.close()
    first.set_events(READ)
    first.close()


def test_a_closed_watch_cannot_be_changed(r, pipe):
    handle = r.watch_fd(pipe[0], READ, turns)
    handle.close()
    with pytest.raises(HandleClosed, match='watch_fd'):
        handle.set_events(WRITE)
    assert handle.fileno() == -1


def test_a_watch_whose_socket_was_closed_has_the_number_minus_one(r, sockets):
    ours, _theirs = sockets()
    handle = r.watch_fd(ours, 0, turns)
    ours.close()
    assert handle.fileno() == -1
    handle.close()


# -- descriptors that other code has closed


@pytest.mark.scenario(12)
def test_a_descriptor_closed_too_early_is_logged_and_does_not_spin(r, pipe, caplog):
    seen = Seen()
    handle = r.watch_fd(pipe[0], READ, seen.on_ready)
    os.close(pipe[0])
    assert turns_in(r) <= 4
    if not handle.closed:  # epoll never reports a closed descriptor; the next operation detects it
        handle.set_events(0)
        handle.set_events(READ)
    assert handle.closed and r.handles() == []
    assert seen == []
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and f'fd={pipe[0]}' in record.message and 'closed by' in record.message


@pytest.mark.scenario(11)
def test_a_copy_of_a_descriptor_closed_too_early_is_not_reported(r, pipe, caplog):
    seen = Seen()
    copy = os.dup(pipe[0])
    try:
        handle = r.watch_fd(pipe[0], READ, seen.on_ready)
        os.close(pipe[0])
        os.write(pipe[1], b'x')
        turns(r, 2)
        assert handle.closed and seen == []
        assert len(caplog.records) == 1
        turns(r, 40)  # epoll reports the duplicate until the selector is replaced
        assert turns_in(r) <= 30
    finally:
        os.close(copy)


@pytest.mark.scenario(12)
def test_a_socket_object_closed_too_early_does_not_hurt_the_next_owner_of_its_number(r, caplog):
    seen, log = Seen(), Log()
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    r.watch_fd(ours, READ, seen.on_ready)
    ours.close()
    with theirs:
        new, mate = socket.socketpair()
        assert new.fileno() == number
        conn = r.adopt(new, log.on_data)
        with mate:
            mate.send(b'x')
            run_until(r, lambda: log)
            assert log.received == b'x' and seen == []
            conn.abort()
            turns(r, 2)
    assert len(caplog.records) == 1
    assert r.handles() == []


def test_a_new_watch_of_a_number_replaces_that_of_a_closed_socket(r, caplog):
    seen = Seen()
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    old = r.watch_fd(ours, READ, seen.on_ready)
    ours.close()
    theirs.close()
    new, mate = socket.socketpair()
    with new, mate:
        assert new.fileno() == number
        handle = r.watch_fd(new, READ, seen.on_ready)
        assert old.closed
        mate.send(b'x')
        run_until(r, lambda: seen)
        assert seen[0] == (handle, READ)
        handle.close()


class Client:
    """A client object of a library.

    `fileno` returns the descriptor of the client's connection, and raises once the connection is closed.
    """

    def __init__(self):
        self.sock = None
        self.connect()

    def connect(self):
        self.close()
        self.sock, self.peer = socket.socketpair()

    def close(self):
        if self.sock is not None:
            self.sock.close()
            self.peer.close()
        self.sock = None

    def fileno(self):
        return self.sock.fileno()


@pytest.fixture
def client():
    client = Client()
    yield client
    client.close()


@pytest.mark.parametrize('how', ['close', 'set_events', 'turn'])
def test_a_watched_object_may_raise_anything_once_it_is_closed(r, sockets, client, caplog, how):
    # Regression: `run`, `set_events` and every `close`, even the reactor's, used to raise the error of `fileno`, and
    # other handles stayed open.
    seen, log = Seen(), Log()
    conn = r.adopt(sockets()[0], log.on_data)
    handle = r.watch_fd(client, READ, seen.on_ready)
    client.close()
    assert handle.fileno() == -1
    if how == 'close':
        handle.close()
    elif how == 'set_events':
        handle.set_events(READ | WRITE)
    else:
        turns(r, 2)
        handle.close()  # epoll never reports a closed descriptor
    assert handle.closed and seen == []
    assert r.handles() == [conn]
    assert len(caplog.records) <= 1
    conn.abort()
    turns(r, 2)


def test_a_watched_object_that_raises_does_not_keep_the_reactor_from_closing(sockets, client):
    log = Log()
    r = Reactor()
    r.watch_fd(client, READ, turns)
    r.adopt(sockets()[0], log.on_data, on_close=log.on_close)
    client.close()
    r.close()
    assert log.names() == ['close']


def test_closing_the_watch_of_an_earlier_connection_of_an_object_leaves_the_later_watch(r, client):
    # Regression: `fileno` used to be called when the watch ended. It returned the number of the later connection, so
    # the later connection was unregistered.
    seen = Seen()
    old = r.watch_fd(client, READ, turns)
    kept = client.sock, client.peer
    client.sock = None
    client.connect()
    handle = r.watch_fd(client, READ, seen.on_ready)
    old.close()
    for end in kept:
        end.close()
    client.peer.send(b'x')
    run_until(r, lambda: seen)
    assert seen[0] == (handle, READ)
    handle.close()


# -- properties of every handle


@pytest.mark.scenario(115)
def test_an_exception_is_logged_and_ends_the_watch_alone(r, pipe, sockets, caplog):
    seen = Seen()

    def bad(handle, event):
        raise ValueError('boom')

    ours, _ = sockets()
    handle = r.watch_fd(pipe[1], WRITE, bad)
    other = r.watch_fd(ours, WRITE, seen.on_ready)
    turns(r, 3)
    assert handle.closed and not other.closed and len(seen) == 3
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]
    other.close()


def test_a_watch_keeps_the_loop_running_unless_it_is_unreferenced(r, pipe):
    handle = r.watch_fd(pipe[0], READ, turns)
    (line,) = r.why_alive()
    assert f'fd={pipe[0]}' in line and 'waits for input' in line
    handle.unref()
    assert r.run() is True and r.why_alive() == []
    handle.ref()
    assert r.watchers.referenced == 1
    handle.close()
    assert r.run() is True


def test_the_repr_of_a_watch_shows_its_descriptor_and_what_it_wants(r, pipe):
    handle = r.watch_fd(pipe[0], READ, turns)
    assert repr(handle) == f'<Descriptor fd={pipe[0]} wants READ, calls tests.helpers.support.turns>'
    handle.set_events(0)
    assert repr(handle) == f'<Descriptor fd={pipe[0]} wants nothing, calls tests.helpers.support.turns>'
    assert 'waits for set_events()' in r.why_alive()[0]
    handle.close()
    assert repr(handle) == f'<Descriptor fd={pipe[0]} closed>'


def test_a_watch_that_found_no_memory_is_still_shown_until_it_ends(r, pipe, monkeypatch):
    # Regression: `why_alive` used to raise KeyError.
    handle = r.watch_fd(pipe[0], READ, turns)
    run_short(monkeypatch, type(r.watchers.selector), 'modify')
    run_short(monkeypatch, Watchers, '_park_lost')
    handle.set_events(READ | WRITE)
    assert handle.events == UNHEARD
    (line,) = r.why_alive()
    assert repr(handle) in line and 'wants nothing' in line
    turns(r, 2)
    assert handle.closed


def test_a_closed_watch_releases_everything(r, sockets):
    class Thing:
        def call(self, handle, event):
            handle.close()

    thing = Thing()
    with closing(socket.socket()) as sock:
        refs = weakref.ref(thing), weakref.ref(r.watch_fd(sock, WRITE | READ, thing.call))
        assert r.run() is True
    del thing
    gc.disable()
    try:
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_another_thread_cannot_change_a_watch_of_a_running_loop(r, pipe):
    def other():
        for call in (handle.close,), (handle.set_events, 0), (r.watch_fd, pipe[1], WRITE, turns):
            with pytest.raises(ReactorError, match='thread'):
                in_thread(*call)
        handle.close()

    handle = r.watch_fd(pipe[0], READ, turns)
    r.call_soon(other)
    assert r.run() is True
    assert handle.closed


@pytest.mark.parametrize('events', [READ, WRITE, 0])
def test_a_descriptor_that_is_closed_too_early_ends_its_watch_within_two_seconds(fake, kernel, caplog, events):
    """epoll and kqueue do not report it, and the loop would wait for ever."""
    ours, theirs = socket.socketpair()
    handle = fake.watch_fd(ours, events, turns)
    with theirs:
        ours.close()
        for _ in range(4):
            kernel.time += 0.5
            fake.run_once(0)
    assert handle.closed and fake.handles() == []
    assert 'closed by other code; close the handle instead' in caplog.text


def test_a_descriptor_that_stays_open_is_watched_for_ever(fake, kernel, pipe):
    handle = fake.watch_fd(pipe[0], READ, turns)
    for _ in range(20):
        kernel.time += 0.5
        fake.run_once(0)
    assert not handle.closed
    handle.close()
    assert len(fake.timers) == 0


def test_a_look_at_a_closed_watch_does_nothing(r, sockets):
    ours, _theirs = (sockets.track(sock) for sock in socket.socketpair())
    handle = r.watch_fd(ours, READ, int)
    handle.close()
    handle.handle_look(r.now)
    assert handle.closed and ours.fileno() >= 0
