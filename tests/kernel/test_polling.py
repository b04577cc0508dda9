"""The selector that reports numbers, and events whose number has changed hands since the loop polled."""

from __future__ import annotations

import errno
import os
import selectors
import sys
from types import SimpleNamespace

import pytest

from reactor import READ, WRITE, Reactor
from reactor.kernel.polling import EventSelector, KeySource, can_report_numbers
from tests.helpers.support import Probe, turns, turns_in

reports_numbers = pytest.mark.skipif(not can_report_numbers(), reason='this platform has no such selector')


@pytest.fixture
def selector():
    with EventSelector() as selector:
        yield selector


def test_linux_has_a_selector_that_reports_numbers():
    assert can_report_numbers() is (sys.platform == 'linux')


@pytest.mark.parametrize('part', ['_selector_cls', '_EVENT_READ', '_EVENT_WRITE', 'fileno'])
def test_without_the_parts_that_it_uses_the_selector_of_the_standard_library_is_used(monkeypatch, part, sockets):
    class Other(selectors.SelectSelector):
        pass

    assert not hasattr(Other, part)
    monkeypatch.setattr(selectors, 'DefaultSelector', Other)
    assert not can_report_numbers()
    ours, theirs = sockets()
    with Reactor() as r:
        assert type(r.watchers.selector) is Other
        probe = Probe(r, ours)
        theirs.send(b'x')
        turns(r, 1)
        assert probe.log == ['read']
        probe.close()


@reports_numbers
def test_registrations_are_shown_as_keys(selector, sockets):
    ours, _ = sockets()
    handle = SimpleNamespace(events=READ)
    selector.register(ours.fileno(), READ, handle)
    keys = selector.get_map()
    assert len(keys) == 1 and list(keys) == [ours.fileno()]
    key = selectors.SelectorKey(ours.fileno(), ours.fileno(), READ, handle)
    assert keys[ours.fileno()] == key == selector.get_key(ours.fileno())
    with pytest.raises(KeyError):
        selector.register(ours.fileno(), READ, handle)
    selector.unregister(ours.fileno())
    assert len(keys) == 0 and keys.get(ours.fileno()) is None
    with pytest.raises(KeyError):
        selector.unregister(ours.fileno())


@reports_numbers
def test_select_reports_keys_with_the_wanted_events(selector, sockets):
    ours, theirs = sockets()
    handle = SimpleNamespace(events=READ)
    selector.register(ours.fileno(), READ, handle)
    assert selector.select(0) == []
    theirs.close()
    assert [(key.data, events) for key, events in selector.select(1)] == [(handle, READ)]
    handle.events = READ | WRITE
    selector.modify(ours.fileno(), READ | WRITE, handle)
    assert [(key.data, events) for key, events in selector.select(1)] == [(handle, READ | WRITE)]


@reports_numbers
def test_a_registration_that_fails_leaves_nothing(selector, sockets, tmp_path):
    with open(tmp_path / 'file', 'wb') as file, pytest.raises(PermissionError):
        selector.register(file.fileno(), READ, SimpleNamespace(events=READ))
    assert not selector.get_map()
    ours, _ = sockets()
    selector.register(ours.fileno(), READ, SimpleNamespace(events=READ))
    number = ours.detach()
    os.close(number)
    with pytest.raises(OSError) as failure:
        selector.modify(number, WRITE, None)
    assert failure.value.errno == errno.EBADF
    assert not selector.get_map()


@reports_numbers
def test_a_closed_selector_has_no_registrations(selector, sockets):
    selector.register(sockets()[0].fileno(), READ, SimpleNamespace(events=READ))
    selector.close()
    assert selector.get_map() is None


def test_any_other_selector_reports_keys():
    with Reactor(selector=selectors.SelectSelector()) as r:
        assert type(r.watchers.source) is KeySource


# -- events of a number that has changed hands since the loop polled


def ready(sockets):
    """Return a socket that is readable, and its peer."""
    ours, theirs = sockets()
    theirs.send(b'x')
    return ours, theirs


@pytest.mark.parametrize('pending', [False, True])
def test_an_event_of_a_closed_handle_does_not_reach_the_handle_that_has_got_its_number(r, sockets, pending):
    """It is called only if its own socket is ready by then."""
    (one, _), (two, _) = ready(sockets), ready(sockets)
    ours, theirs = sockets()
    if pending:
        theirs.send(b'x')
    new = []

    def replace(other):
        if new:
            return
        number = other.sock.fileno()
        other.close()
        moved = os.dup(ours.fileno())
        assert moved == number
        ours.close()
        new.append(Probe(r, sockets.track(type(ours)(fileno=moved))))

    probes = Probe(r, one), Probe(r, two)
    probes[0].on_ready = lambda probe: replace(probes[1])
    probes[1].on_ready = lambda probe: replace(probes[0])
    turns(r, 1)
    assert len(new) == 1 and sum(len(probe.log) for probe in probes) == 1
    # A selector that reports keys knows that the event belongs to the closed handle, and reports the new one later.
    assert new[0].log == [] or pending
    turns(r, 1)
    assert bool(new[0].log) is pending
    for probe in *probes, new[0]:
        probe.close()


def test_a_handle_that_is_paused_and_resumed_in_each_turn_still_gets_its_events(r, sockets):
    (one, _), (two, _) = ready(sockets), ready(sockets)

    def disturb(other):
        r.watchers.set_events(other, 0)
        r.watchers.set_events(other, READ)

    probes = Probe(r, one), Probe(r, two)
    probes[0].on_ready = lambda probe: disturb(probes[1])
    probes[1].on_ready = lambda probe: disturb(probes[0])
    turns(r, 5)
    assert [len(probe.log) for probe in probes] == [5, 5]
    for probe in probes:
        probe.close()


def test_a_handle_that_stops_wanting_what_was_reported_is_not_called(r, sockets):
    (one, _), (two, _) = ready(sockets), ready(sockets)
    selector = r.watchers.selector

    def take(other):
        r.watchers.set_events(other, WRITE)

    probes = Probe(r, one), Probe(r, two)
    probes[0].on_ready = lambda probe: take(probes[1])
    probes[1].on_ready = lambda probe: take(probes[0])
    turns(r, 1)
    assert sorted(len(probe.log) for probe in probes) in ([0, 1], [1, 1])
    assert [probe.log for probe in probes].count(['read']) == 1
    turns(r, 2)
    assert r.watchers.selector is selector and not r.stats().stalls
    for probe in probes:
        probe.close()


@reports_numbers
@pytest.mark.parametrize('other', [False, True])
def test_an_event_of_a_file_that_no_handle_has_replaces_the_selector(sockets, other):
    """It is replaced at once, although other handles are ready too."""
    with Reactor() as r:
        ours, theirs = ready(sockets)
        probe = Probe(r, ours)
        lost, _ = ready(sockets)
        r.watchers.selector._selector.register(lost.fileno(), 1)
        if not other:
            ours.recv(1)
        selector = r.watchers.selector
        turns(r, 2)
        assert r.watchers.selector is not selector
        assert r.stats().stalls == 1
        assert probe.log == (['read', 'read'] if other else [])
        probe.close()
        assert theirs.fileno() >= 0


@reports_numbers
def test_events_of_a_file_that_no_handle_has_do_not_spin_when_the_selector_cannot_be_replaced(sockets, monkeypatch):
    def new_selector_like(selector):
        raise OSError(errno.EMFILE, 'no descriptor is left')

    with Reactor() as r:
        monkeypatch.setattr(r.kernel, 'new_selector_like', new_selector_like)
        lost, _ = ready(sockets)
        r.watchers.selector._selector.register(lost.fileno(), 1)
        assert turns_in(r, 0.5) <= 60
