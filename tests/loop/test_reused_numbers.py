"""Other code closes a descriptor that the loop watches, a copy of it stays open, and a new handle gets its number.

epoll watches the open file, and goes on to report it under the old number. No such event may reach the new handle, keep
the loop busy, or hide the events of the new handle and of others. `poll` and `select` watch numbers: there the same
programs show that every selector behaves the same.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

import pytest

from reactor import READ, WRITE, Reactor
from tests.helpers.support import SELECTORS, drain, fill, in_thread, run_until, turns, turns_in

if os.name != 'posix':
    pytest.skip('sockets of this platform cannot be closed by number', allow_module_level=True)

FEW = 12  # turns in 0.05 s of a loop that sleeps; a spin makes thousands
linux = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has epoll and ignores clients of a full backlog')


class Old:
    """A handle that is about to lose its descriptor. `sock` is the watched socket, which is ready all the time."""

    def __init__(self, r, sockets, kind):
        self.r = r
        self.spare = os.dup(0)  # the lowest number, for a new epoll
        self.sock, peer = sockets()
        if kind == 'stream':
            peer.send(b'x' * 100_000)
            self.handle = r.adopt(self.sock, read_size=1)
        elif kind == 'hung up':
            self.handle = r.adopt(self.sock, on_eof=lambda conn: None)
        elif kind == 'listener':
            self.handle = r.listen_tcp('127.0.0.1', 0, sock=sockets.track(listening()))
            self.sock = self.handle.sock
        elif kind == 'datagrams':
            self.handle = r.bind_udp('127.0.0.1', 0, lambda *args: None)
            self.sock = self.handle.sock
        else:
            self.handle = r.watch_fd(self.sock.fileno(), WRITE if kind == 'watch WRITE' else READ, lambda *args: None)
            if kind == 'watch READ':
                peer.send(b'x')
        self.kind, self.peer, self.number = kind, peer, self.sock.fileno()
        self.fillers = []

    def make_ready(self, sockets):
        if self.kind == 'listener':
            sockets.connect(self.sock.getsockname())
        elif self.kind == 'datagrams':
            self.sock.sendto(b'x', self.sock.getsockname())
        elif self.kind == 'hung up':
            self.peer.close()

    def lose(self, sockets, noticed):
        """Close the descriptor as other code would, and keep a copy. Then `number` is the lowest free number."""
        sockets.track(socket.socket(fileno=os.dup(self.number)))
        self.make_ready(sockets)
        os.close(self.number)
        os.close(self.spare)
        if noticed == 'in an event':
            turns(self.r, 3)
        elif noticed == 'in close':
            self.handle.close()
            turns(self.r, 2)
        if self.sock is not getattr(self.handle, 'sock', None):
            self.sock.detach()
        while (fd := os.dup(0)) < self.number:
            self.fillers.append(fd)
        os.close(fd)
        assert fd == self.number


def listening():
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    sock.listen(1)
    sock.setblocking(False)
    return sock


def full_listener(sockets):
    """Return the address of a listener whose backlog is full, so that a connect to it stays in progress."""
    server = sockets.track(socket.socket())
    server.bind(('127.0.0.1', 0))
    server.listen(0)
    for _ in range(3):
        client = sockets.track(socket.socket())
        client.setblocking(False)
        client.connect_ex(server.getsockname())
    time.sleep(0.01)
    return server.getsockname()


class New:
    """A handle that gets the number. It has nothing to do until `give_work` is called."""

    def __init__(self, r, sockets, kind, address=None):
        self.r, self.sockets, self.kind = r, sockets, kind
        self.calls = []
        if kind == 'listener':
            self.handle = r.listen_tcp('127.0.0.1', 0, on_connect=self.calls.append)
        elif kind == 'datagrams':
            self.handle = r.bind_udp('127.0.0.1', 0, lambda sock, data, address: self.calls.append(data))
        elif kind == 'connect':
            self.handle = r.connect_tcp(
                *address, on_connect=self.calls.append, on_close=lambda conn, exc: self.calls.append(exc)
            )
        else:
            sock, self.peer = sockets()
            if kind == 'watch READ':
                self.handle = r.watch_fd(sock, READ, lambda *args: self.calls.append(sock.recv(9)))
            elif kind == 'watch WRITE':
                fill(sock)
                self.handle = r.watch_fd(sock, WRITE, lambda *args: self.calls.append(sock.send(b'x')))
            else:
                self.handle = r.adopt(sock, lambda conn, data: self.calls.append(data), linger=0.05)
                if kind == 'full stream':
                    self.handle.write(b'x' * 1_000_000, self.written)
                    self.handle.pause_reading()

    def written(self, conn):
        self.calls.append('written')

    def numbers(self):
        """Return the descriptors of all handles, because a connect has its own."""
        return [handle.fileno() for handle in self.r.handles() if not handle.closed]

    def give_work(self):
        if self.kind == 'listener':
            self.sockets.connect(self.handle.address)
        elif self.kind == 'datagrams':
            peer = self.sockets.track(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            peer.sendto(b'x', self.handle.address)
        elif self.kind in ('watch WRITE', 'full stream'):
            drain(self.peer)
        elif self.kind == 'connect':
            self.calls.append('in progress')  # it connects when the kernel sends the SYN again, in a second
        else:
            self.peer.send(b'x')

    def has_worked(self):
        if self.kind == 'full stream':
            drain(self.peer)  # it sends more than the kernel holds at once
        return self.calls

    def close(self):
        for handle in [self.handle, *(call for call in self.calls if hasattr(call, 'abort'))]:
            handle.abort()


OLD = ['stream', 'hung up', 'listener', 'datagrams', 'watch READ', 'watch WRITE']
NEW = ['stream', 'full stream', 'listener', 'datagrams', 'connect', 'watch READ', 'watch WRITE']


def check_quiet(r, calls):
    """Check that no event is reported while nothing happens, and that the loop sleeps."""
    before = r.stats().events
    assert any(turns_in(r, 0.05) <= FEW for _ in range(3))
    assert r.stats().events == before
    assert calls == []


@linux
@pytest.mark.parametrize('new', NEW)
@pytest.mark.parametrize('old', OLD)
@pytest.mark.parametrize('selector', [each for each in SELECTORS.values() if each is not None])
def test_a_new_handle_gets_no_event_of_the_file_that_had_its_number(sockets, selector, old, new):
    if selector is not selectors.DefaultSelector and 'stream' not in (old, new):
        pytest.skip('poll and select watch numbers, so a sample is enough')
    for noticed in 'in an event', 'in close', 'at reuse':
        if new.startswith('watch') and noticed == 'at reuse':
            continue  # watch_fd() refuses a number that another handle has
        with Reactor(selector=selector()) as r:
            reuse(r, sockets, old, new, noticed)


def reuse(r, sockets, old, new, noticed):
    address = full_listener(sockets) if new == 'connect' else None
    received = []
    other, peer = sockets()
    r.adopt(other, lambda conn, data: received.append(data))
    old = Old(r, sockets, old)
    turns(r, 1)
    old.lose(sockets, noticed)
    try:
        new = New(r, sockets, new, address)
        assert old.number in new.numbers()
        turns(r, 3)
        check_quiet(r, new.calls)
        peer.send(b'hello')
        run_until(r, lambda: received)
        new.give_work()
        run_until(r, new.has_worked)
        new.close()
    finally:
        for fd in old.fillers:
            os.close(fd)


@linux
@pytest.mark.parametrize('how', ['fork', 'sent'])
def test_a_copy_in_another_process_or_on_its_way_there_harms_no_new_handle(r, sockets, how):
    """A child process inherits copies of all descriptors, and a Unix socket holds the descriptors sent over it."""
    ours, _ = sockets()
    number = ours.fileno()
    old = r.watch_fd(number, WRITE, lambda *args: None)
    if how == 'fork':
        child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, pass_fds=[number])
    else:
        mail, _held = sockets()
        socket.send_fds(mail, [b'x'], [number])
    os.close(ours.detach())
    old.close()
    calls = []
    new, peer = sockets()
    assert new.fileno() == number
    conn = r.adopt(new, lambda conn, data: calls.append(data))
    check_quiet(r, calls)
    peer.send(b'x')
    run_until(r, lambda: calls)
    conn.abort()
    turns(r, 2)
    if how == 'fork':
        child.communicate(b'\n', timeout=10)


@linux
def test_a_new_wakeup_gets_no_event_of_the_one_that_other_code_has_closed(r, sockets):
    """The new sockets get the number of the old one, whose copy is readable for ever."""
    heard = []
    r.add_signal_handler(signal.SIGUSR1, heard.append, 'signal')
    number = r._wakeup.sock.fileno()
    sockets.track(socket.socket(fileno=os.dup(number)))
    spare = os.dup(0)
    r.call_soon_threadsafe(heard.append, 'call')
    os.close(number)
    turns(r, 1)
    run_until(r, lambda: heard)
    os.close(spare)
    assert heard == ['call']
    heard.clear()
    check_quiet(r, heard)
    signal.raise_signal(signal.SIGUSR1)
    in_thread(r.call_soon_threadsafe, heard.append, 'call')
    run_until(r, lambda: len(heard) == 2)
    r.clear_signal_handlers()


# -- numbers that the reactor could not know to be lost: nothing is noticed before the first false event


@linux
@pytest.mark.parametrize('event', ['READ', 'WRITE'])
@pytest.mark.parametrize('new', NEW)
def test_a_number_that_was_lost_unnoticed_costs_the_new_handle_at_most_a_few_events(sockets, caplog, event, new):
    """Other code has the number in between, so closing the old handle closes a descriptor of that code."""
    for other_events in range(2):
        with Reactor() as r:
            address = full_listener(sockets) if new == 'connect' else None
            sock, peer = sockets()
            number = sock.fileno()
            old = r.adopt(sock)
            if event == 'WRITE':
                old.pause_reading()
                fill(sock)
                old.write(b'x')
            copy = sockets.track(socket.socket(fileno=os.dup(number)))
            os.close(number)
            assert os.dup(0) == number  # a descriptor of other code
            old.abort()
            turns(r, 2)
            if event == 'READ':
                peer.send(b'x')
            else:
                drain(peer)
            busy = r.call_every(0.001, int) if other_events else None
            handle = New(r, sockets, new, address)
            assert number in handle.numbers()
            assert any(turns_in(r, 0.2) <= (1000 if busy else FEW) for _ in range(5))
            assert handle.calls == []
            before = r.stats().events
            turns_in(r, 0.1)
            assert r.stats().events == before
            handle.give_work()
            run_until(r, handle.has_worked)
            handle.close()
            copy.close()


@linux
def test_a_selector_that_cannot_be_replaced_does_not_spin_and_is_replaced_later(sockets, monkeypatch, caplog):
    """At the descriptor limit there can be no new epoll. The loop then sleeps a little after each false event."""

    def no_descriptor(selector):
        raise OSError(errno.EMFILE, 'no descriptor is left')

    with Reactor() as r:
        old = Old(r, sockets, 'watch WRITE')
        old.lose(sockets, 'at reuse')
        monkeypatch.setattr(r.kernel, 'new_selector_like', no_descriptor)
        sock, peer = sockets()
        received = []
        r.adopt(sock, lambda conn, data: received.append(data))
        assert sock.fileno() == old.number
        turns_in(r, 0.1)
        assert turns_in(r, 0.4) < 40
        for text in b'one', b'two':  # meanwhile events are reported
            peer.send(text)
            run_until(r, lambda: received.pop() if received else None)
        monkeypatch.undo()
        check_quiet(r, received)
        for fd in old.fillers:
            os.close(fd)
    assert caplog.text.count('was replaced') == 1
