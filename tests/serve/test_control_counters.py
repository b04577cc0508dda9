"""A worker's counters do not show its own reports to the parent."""

from __future__ import annotations

import json
import os
import socket

import pytest

from reactor import Reactor
from reactor.serve.worker import Worker
from tests.helpers.support import fill, run_until, turns

if os.name != 'posix':
    pytest.skip('workers inherit descriptors, which this platform does not support', allow_module_level=True)


class Parent:
    """The parent's side of a worker that runs in this process; `reports` has the counters that it sent."""

    def __init__(self, r: Reactor, sockets) -> None:
        ours, theirs = socket.socketpair()
        self.sock = sockets.track(ours)
        self.sock.setblocking(False)
        self.worker = Worker(r, {'slot': 0, 'control': theirs.detach(), 'listeners': [], 'shared': []}, (5, 0))
        self.received = b''

    def reports(self):
        try:
            while data := self.sock.recv(1 << 20):
                self.received += data
        except BlockingIOError:
            pass
        return [json.loads(line)[0] for line in self.received.splitlines()]

    def end(self):
        self.worker.control.on_close = None


def test_reports_are_sent_once_a_second_at_instants_that_workers_share(fake, kernel, sockets):
    kernel.time = 1000.3
    parent = Parent(fake, sockets)
    times = []
    while len(times) < 3:
        before = len(parent.reports())
        kernel.time += 1 / 64
        turns(fake, 1)
        if len(parent.reports()) > before:
            times.append(kernel.time)
    assert all(0 <= time - due < 0.02 for time, due in zip(times, (1001.375, 1002.375, 1003.375), strict=True))
    parent.end()


TRAFFIC = 'reads', 'bytes_in', 'writes', 'bytes_out', 'short_writes', 'timers_fired', 'timer_lag_sum'


def test_an_idle_worker_that_reports_has_counted_nothing(fake, kernel, sockets):
    parent = Parent(fake, sockets)
    parent.worker.begin(lambda r, listeners: None)
    for late in range(1, 30):
        kernel.time += 1 + late / 1000
        turns(fake, 2)
    reports = parent.reports()
    assert len(reports) > 25
    for counters in (*reports, fake.stats().as_dict()):
        assert {name: counters[name] for name in TRAFFIC} == dict.fromkeys(TRAFFIC, 0)
        assert set(counters['timer_lag']) == {0}
    parent.end()


def test_the_timers_and_writes_of_the_program_are_counted_exactly(fake, kernel, sockets):
    parent = Parent(fake, sockets)
    parent.worker.begin(lambda r, listeners: None)
    ours, _ = sockets()
    conn = fake.adopt(ours)
    sums = []
    for _ in range(20):
        fake.call_at(kernel.time + 1, conn.write, b'12345')
        kernel.time += 1.003
        turns(fake, 2)
        sums.append(fake.stats().timer_lag_sum)
    stats = fake.stats()
    assert (stats.timers_fired, stats.writes, stats.bytes_out) == (20, 20, 100)
    assert sum(stats.timer_lag) == 20 and min(stats.timer_lag) == 0
    assert sums == sorted(sums) and sums[-1] == pytest.approx(0.06)
    conn.abort()
    turns(fake, 2)
    parent.end()


def test_the_sum_of_lateness_never_falls_not_even_by_a_rounding_error(fake, kernel, sockets):
    """Prometheus would take that for a restart, and count the whole sum once more."""
    parent = Parent(fake, sockets)
    # Adding 1.5 to this number and subtracting it again gives a smaller number, because both results are rounded.
    fake.counters.timer_lag_sum = before = 2.0**52 + 1
    assert before + 1.5 - 1.5 < before
    kernel.time += 2.5
    turns(fake, 1)
    assert fake.stats().timer_lag_sum == before and parent.reports()
    parent.end()


def test_messages_of_the_parent_are_not_counted(fake, sockets):
    parent = Parent(fake, sockets)
    parent.worker.begin(lambda r, listeners: None)
    turns(fake, 1)
    for number in range(3):  # each in a turn of its own
        parent.sock.send(b'["ask", %d, "[\\"counters\\", {}]"]\n' % number)
        run_until(fake, lambda wanted=number + 1: fake.stats().events == wanted)
    answers = [line for line in parent.sock.recv(1 << 20).splitlines() if b'"answer"' in line]
    assert len(answers) == 3
    for line in answers:  # an answer does not count its own question either
        counters = json.loads(json.loads(line)[2])['answer']
        assert {name: counters[name] for name in TRAFFIC} == dict.fromkeys(TRAFFIC, 0)
    assert {name: getattr(fake.stats(), name) for name in TRAFFIC} == dict.fromkeys(TRAFFIC, 0)
    parent.end()


def test_a_report_that_is_sent_in_parts_is_not_counted(fake, kernel, sockets):
    """As to a parent that was stopped for a while, and left the connection full."""
    parent = Parent(fake, sockets)
    size = fill(parent.worker.control.sock)
    parent.worker.report()
    assert parent.worker.control.buffered
    while size > 0:
        size -= len(parent.sock.recv(1 << 20))
    run_until(fake, lambda: not parent.worker.control.buffered)
    assert parent.reports()[-1]['pid'] == os.getpid()
    assert {name: getattr(fake.stats(), name) for name in TRAFFIC} == dict.fromkeys(TRAFFIC, 0)
    parent.end()
