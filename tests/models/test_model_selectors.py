"""Test watched descriptors on every selector against one model, with real socket pairs.

Descriptor numbers are reused all the time here, copies outlive their descriptors, and some descriptors are closed
without the loop's knowledge. An open handle must always get exactly the wanted events for which its own socket is
ready.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from reactor import READ, WRITE, Reactor
from tests.helpers.models_support import Machine, case_of
from tests.helpers.support import Probe, fill

KINDS: list[Any] = [
    getattr(selectors, name)
    for name in ('EpollSelector', 'KqueueSelector', 'PollSelector', 'SelectSelector')
    if hasattr(selectors, name)
]


class LikeKqueue(selectors.PollSelector):
    """A selector that, like kqueue, reports each direction in a separate entry, and never a closed descriptor."""

    def select(self, timeout=None):
        entries = []
        for key, mask in super().select(0 if any(not is_open(fd) for fd in self._fd_to_key) else timeout):
            if is_open(key.fd):
                entries += [(key, event) for event in (WRITE, READ) if mask & event]
        return entries


if not hasattr(selectors, 'KqueueSelector'):
    KINDS.append(LikeKqueue)
if os.name != 'posix':
    pytest.skip('sockets of this platform cannot be closed by number', allow_module_level=True)

INDEX = st.integers(0, 1000)
EVENTS = st.sampled_from([0, READ, WRITE, READ | WRITE, READ | WRITE])


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class End:
    """The model of one watched socket, which is the same for all selectors."""

    def __init__(self, wants):
        self.wants = wants
        self.waiting = 0  # bytes that the peer has sent and that are unread
        self.full = self.peer_gone = self.lost = self.closed = False
        self.does = None  # the (action, number of the target) of its next callback

    @property
    def true(self):
        """The events for which the socket is ready. After a hang-up it is ready for both, because writes fail."""
        readable = self.waiting or self.peer_gone
        return (READ if readable else 0) | (WRITE if not self.full or self.peer_gone else 0)


class World:
    """One selector, with a handle and a peer for each `End` of the model."""

    def __init__(self, kind, model):
        self.kind = kind
        self.model = model
        self.r = Reactor(selector=kind(), catch_errors=model.caught)
        self.handles, self.peers, self.copies = [], [], []
        self.received = []  # the events of this turn, as (number of the end, 'read' or 'write')

    def open(self, wants):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        number = len(self.handles)
        self.handles.append(Probe(self.r, ours, wants, lambda probe: self.model.ready(self, number, probe.log[-1])))
        self.peers.append(theirs)

    def close(self):
        for handle in self.handles:
            handle.close()
        for each in [*self.peers, *self.copies]:
            each.close()
        self.r.close()


class Selectors(Machine):
    """Each event of the model is reported once per turn, and never for an earlier owner of a descriptor number."""

    @initialize()
    def begin(self):
        self.ends = []
        self.worlds = [World(kind, self) for kind in KINDS]
        self.disturbed = set()  # ends changed by another end's callback in this turn, perhaps after their own callback

    def pick(self, index, only=lambda end: True):
        numbers = [n for n, end in enumerate(self.ends) if not end.closed and not end.lost and only(end)]
        return numbers[index % len(numbers)] if numbers else None

    # -- called by the probes

    def ready(self, world, number, what):
        end = self.ends[number]
        if end.lost:
            world.r.watchers.evict(world.handles[number])  # as a stream does after EBADF from recv
            return
        state = self.now[world, number]
        assert not state['closed'], f'{world.kind.__name__}: {what} of a closed handle'
        event = READ if what == 'read' else WRITE
        assert event & state['wants'], f'{world.kind.__name__}: {what} was reported, which is not wanted'
        assert event & end.true, f'{world.kind.__name__}: {what} was reported, which is not true'
        world.received.append((number, what))
        if number in self.acting and world not in self.done:
            self.done.add(world)
            action, other = end.does
            handle, state = world.handles[other], self.now[world, other]
            if action == 'close':
                handle.close()
                state['closed'] = True
            else:
                world.r.watchers.set_events(handle, action)
                state['wants'] = action

    # -- actions

    @rule(wants=EVENTS, count=st.sampled_from([1, 1, 3]))
    def open(self, wants, count):
        for _ in range(count):
            if sum(not end.closed for end in self.ends) < 12:
                self.ends.append(End(wants))
                for world in self.worlds:
                    world.open(wants)

    @rule(index=INDEX, wants=EVENTS)
    def set_events(self, index, wants):
        number = self.pick(index)
        if number is not None:
            self.ends[number].wants = wants
            for world in self.worlds:
                world.r.watchers.set_events(world.handles[number], wants)

    @rule(index=INDEX, copied=st.booleans())
    def close(self, index, copied):
        """Close a handle. A copy of its descriptor may stay open, as in a child; the copy's events are not reported."""
        number = self.pick(index)
        if number is not None:
            self.ends[number].closed = True
            for world in self.worlds:
                handle = world.handles[number]
                if copied:
                    world.copies.append(handle.sock.dup())
                handle.close()

    @rule(index=INDEX)
    def close_without_its_knowledge(self, index):
        number = self.pick(index)
        if number is not None:
            self.ends[number].lost = True
            for world in self.worlds:
                os.close(world.handles[number].sock.fileno())

    @rule(index=INDEX)
    def peer_writes(self, index):
        number = self.pick(index, lambda end: not end.peer_gone)
        if number is not None:
            self.ends[number].waiting += 3
            for world in self.worlds:
                world.peers[number].send(b'abc')

    @rule(index=INDEX)
    def peer_goes(self, index):
        number = self.pick(index, lambda end: not end.peer_gone)
        if number is not None:
            self.ends[number].peer_gone = True
            for world in self.worlds:
                world.peers[number].close()

    @rule(index=INDEX)
    def read(self, index):
        number = self.pick(index, lambda end: end.waiting)
        if number is not None:
            self.ends[number].waiting -= 3
            for world in self.worlds:
                assert world.handles[number].sock.recv(3) == b'abc'

    @rule(index=INDEX)
    def write_until_full(self, index):
        number = self.pick(index, lambda end: not end.peer_gone and not end.full)
        if number is not None:
            self.ends[number].full = True
            for world in self.worlds:
                world.handles[number].sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                fill(world.handles[number].sock)

    @rule(index=INDEX)
    def peer_drains(self, index):
        number = self.pick(index, lambda end: end.full and not end.peer_gone)
        if number is not None:
            self.ends[number].full = False
            for world in self.worlds:
                try:
                    while world.peers[number].recv(1 << 20):
                        pass
                except BlockingIOError:
                    pass

    @rule(index=INDEX, other=INDEX, what=st.one_of(st.just('close'), EVENTS))
    def in_its_callback(self, index, other, what):
        """Let the callback of a ready handle close or change the wanted events of a handle, its own or another."""
        number, target = self.pick(index, lambda end: end.wants & end.true), self.pick(other)
        if number is not None:
            self.ends[number].does = (what, target)
            self.one_turn()

    @rule(times=st.sampled_from([1, 1, 2]))
    def turn(self, times):
        for _ in range(times):
            self.one_turn()

    def one_turn(self):
        ends = self.ends
        acting = [
            number
            for number, end in enumerate(ends)
            if end.does is not None and not end.closed and not end.lost and end.wants & end.true
            if not (ends[end.does[1]].closed or ends[end.does[1]].lost)
        ]
        acting = acting[:1]  # only one handle acts, so that the result does not depend on the order of the events
        self.done, self.acting = set(), acting
        self.now = {
            (world, number): {'closed': end.closed or end.lost, 'wants': end.wants}
            for world in self.worlds
            for number, end in enumerate(ends)
        }
        changed = {ends[number].does[1] for number in acting}
        for world in self.worlds:
            world.received.clear()
            if world.kind is selectors.SelectSelector and self.is_blind(world):
                self.turns(world.r)
                assert not world.received, 'select() reported events although it failed'
            self.turns(world.r)
            received = Counter(world.received)
            for number, end in enumerate(ends):
                if number in changed:
                    assert all(received[number, what] <= 1 for what in ('read', 'write'))
                    continue
                due = 0 if end.closed or end.lost else end.wants & end.true
                for what, event in ('read', READ), ('write', WRITE):
                    expected = 1 if due & event else 0
                    assert received[number, what] == expected, (
                        f'{world.kind.__name__}: end {number} got {what} {received[number, what]} times, not {expected}'
                    )
        for number in acting:
            action, other = ends[number].does
            ends[number].does = None
            if action == 'close':
                ends[other].closed = True
            else:
                ends[other].wants = action

    def is_blind(self, world):
        """Return whether a world watches a number that is no longer open. select() then fails once, for all handles."""
        return any(
            end.lost and end.wants and handle.lost is None and not is_open(handle.sock.fileno())
            for end, handle in zip(self.ends, world.handles, strict=True)
        )

    # -- invariants

    @invariant()
    def all_selectors_agree_with_the_model(self):
        for world in self.worlds:
            registered = {key.data: key.events for key in world.r.watchers.selector.get_map().values()}
            handles = set(world.r.handles())
            for end, handle in zip(self.ends, world.handles, strict=True):
                if end.closed:
                    assert handle not in registered and handle not in handles
                elif not end.lost:
                    assert registered.get(handle, 0) == handle.events == end.wants
                    assert handle in handles and handle.lost is None
                elif handle.lost is not None:
                    assert handle not in registered and handle not in handles

    def teardown(self):
        self.acting = []
        for world in getattr(self, 'worlds', ()):
            self.now = {
                (world, number): {'closed': end.closed or end.lost, 'wants': end.wants}
                for number, end in enumerate(self.ends)
            }
            self.turns(world.r, 2)
            silent = 'Epoll' in world.kind.__name__ or 'queue' in world.kind.__name__
            assert not self.is_blind(world) or silent, 'a closed descriptor was not reported'
            for end, handle in zip(self.ends, world.handles, strict=True):
                if end.lost and handle.lost is None:
                    world.r.watchers.evict(handle)
            world.close()


TestThreeSelectors = case_of(Selectors)
