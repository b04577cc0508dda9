"""Simulated descriptors that other code closes while a copy of them is open, and handles that get their numbers next.

Simulated selectors report them as real ones do. Programs that do this at random find loops that do not notice it.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys

import pytest

from reactor import READ, WRITE
from reactor.loop.spins import Spins
from reactor.testing import SimKernel, Simulation, SimulationFailed
from tests.helpers.support import drain, fill

SEEDS = range(100)
KINDS = {'epoll': 'EpollSelector', 'poll': 'PollSelector', 'select': 'SelectSelector'}


class Real:
    """The calls of a scene on the real kernel."""

    duplicate = staticmethod(os.dup)
    close_fd = staticmethod(os.close)

    def __init__(self, kind):
        self.selector = getattr(selectors, KINDS[kind])()

    def socketpair(self):
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        return pair


class Simulated:
    """The same calls on the simulated kernel."""

    def __init__(self, kind):
        kernel = SimKernel(1, selector=kind, faults=False)
        self.selector = kernel.selector()
        self.socketpair, self.duplicate, self.close_fd = kernel.socketpair, kernel.duplicate, kernel.close_fd


def reports(system, old, new, ready, noticed, moved):
    """Return what the selector reports: the names of the handles, and the events."""
    selector = system.selector
    idle = system.socketpair()
    for each in idle:  # `selectors` reports no more events at once than descriptors are registered
        selector.register(each.fileno(), READ, 'idle')
    sock, peer = system.socketpair()
    number = sock.fileno()
    selector.register(number, old, 'old')
    copy = system.duplicate(number)
    if ready == 'readable':
        peer.send(b'x')
    elif ready == 'hung up':
        sock.shutdown(socket.SHUT_WR)
        peer.shutdown(socket.SHUT_WR)
    system.close_fd(number)
    found = []
    if noticed:
        selector.unregister(number)
        found.append([(key.data, mask) for key, mask in selector.select(0)])
    other, mate = system.socketpair()
    assert other.fileno() == number
    if not noticed:
        selector.unregister(number)
    selector.register(number, new, 'new')
    if moved:
        selector.modify(number, READ | WRITE, 'moved')
    found.append(sorted((key.data, mask) for key, mask in selector.select(0)))
    system.close_fd(copy)
    found.append(sorted((key.data, mask) for key, mask in selector.select(0)))
    selector.close()
    sock.detach()
    for each in *idle, peer, other, mate:
        each.close()
    return found


@pytest.mark.skipif(sys.platform != 'linux', reason='the simulated selectors are those of Linux')
@pytest.mark.parametrize('moved', [False, True])
@pytest.mark.parametrize('noticed', [False, True])
@pytest.mark.parametrize('ready', ['readable', 'writable', 'hung up'])
@pytest.mark.parametrize('kind', list(KINDS))
def test_a_simulated_selector_reports_a_lost_number_as_the_real_one_does(kind, ready, noticed, moved):
    for old in READ, WRITE, READ | WRITE:
        for new in READ, WRITE:
            real, simulated = (reports(each(kind), old, new, ready, noticed, moved) for each in (Real, Simulated))
            assert simulated == real, (old, new)


class Meddler:
    """Other code in the process of the reactor: it closes descriptors of handles, and keeps copies for a while."""

    def __init__(self, world, simulation):
        self.world, self.r, self.kernel = world, world.r, simulation.kernel
        self.foreign = simulation.reactor.ledger.foreign
        self.handles = []
        for _ in range(world.random.randint(1, 4)):
            self.strike()
        self.goal = world.expect('a call after everything')
        self.r.call_later(5, self.end)

    def pair(self):
        pair = self.kernel.socketpair()
        self.foreign.update(sock.fileno() for sock in pair)
        return pair

    def strike(self):
        rng = self.world.random
        sock, peer = self.pair()
        number = sock.fileno()
        event = rng.choice((READ, WRITE))
        if event == WRITE:
            fill(sock)
        handle = self.r.watch_fd(number, event, lambda *args: None)
        copy = self.kernel.duplicate(number)
        self.foreign.add(copy)
        self.r.call_later(rng.random(), self.lose, handle, sock, peer, copy)

    def lose(self, handle, sock, peer, copy):
        rng = self.world.random
        if handle.closed:
            return  # it has been closed by the end of the program
        self.kernel.lose_fd(sock.detach())
        if rng.random() < 0.5:
            handle.close()
            self.take_number()
        else:
            self.r.call_later(rng.random() / 10, self.close, handle)
            if rng.random() < 0.5:
                self.take_number()
        if rng.random() < 0.8:  # the copy is ready from now on
            peer.send(b'x')
            drain(peer)
        self.r.call_later(4, self.kernel.close_fd, copy)
        self.handles.append(peer)

    def close(self, handle):
        handle.close()
        self.take_number()

    def take_number(self):
        if self.world.random.random() < 0.5:
            self.handles.append(self.r.bind_udp(*self.world.address(), lambda *args: None))
        else:
            self.handles.append(self.r.listen_tcp(*self.world.address()))

    def end(self):
        for handle in [*self.handles, *self.r.handles()]:
            handle.close()
        self.goal.met()


def meet(seed, **options):
    simulation = Simulation(seed, faults=False, **options)

    def meddler(world):
        Meddler(world, simulation)

    simulation.run_program(meddler)


@pytest.mark.parametrize('kind', [*KINDS, 'kqueue'])
def test_no_law_is_broken_by_other_code_that_closes_descriptors(kind):
    for seed in SEEDS:
        meet(seed, selector=kind)


def caught(**options):
    found = []
    for seed in SEEDS:
        try:
            meet(seed, **options)
        except SimulationFailed as exc:
            found.append(str(exc).split(': ')[1])
    return found


def test_seeds_find_a_loop_that_keeps_its_selector_when_a_descriptor_is_lost(monkeypatch):
    monkeypatch.setattr(Spins, 'replace_selector', lambda self: None)
    found = caught(selector='epoll')
    assert set(found) == {'law 4'} and len(found) > len(SEEDS) / 2
    assert caught(selector='poll') == []
