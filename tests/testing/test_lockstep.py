"""Lockstep: the same programs have the same result for each connection on the real and on the simulated kernel.

These tests compare the order of a connection's callbacks, the bytes that it received, the number of calls of
`on_written`, and its end. They do not compare chunk borders and `on_drain`, which depend on buffer sizes, nor the order
between connections. In `RACES` the outcome depends on timing: both kernels must keep the laws, and connections must
have the same kinds of ends.
"""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import pytest

from reactor import ConnectTimeout, WriteTimeout
from reactor.kernel import Kernel
from reactor.testing.oracles import WatchedReactor
from reactor.testing.programs import RACES
from reactor.testing.records import Record
from reactor.testing.simulation import Simulation
from tests.helpers.support import SELECTORS
from tests.testing.test_programs import RealWorld, courses

SEEDS, MORE_SEEDS = range(100, 102), range(102, 105)
KINDS = {'default': 'epoll', 'poll': 'poll', 'select': 'select'}
# WriteTimeout: two peers close while each has more bytes to send than the other has room for, and neither reads.
ENDS = {
    type(None), ConnectionResetError, BrokenPipeError, ConnectionRefusedError, FileNotFoundError, ConnectTimeout,
    WriteTimeout,
}  # fmt: skip


class QuietKernel(Kernel):
    """The real kernel for a `WatchedReactor`, which then observes only the callbacks, not the kernel's calls."""

    def __init__(self) -> None:
        self.files: dict[int, Any] = {}
        self.on_turn: Any = None

    def note(self, *args: Any) -> None:
        """Keep no trace."""

    def getaddrinfo(self, host: str | None, port: int, family: int, *rest: Any) -> list[Any]:
        """Resolve `localhost` to one address, as on the simulated kernel, even if /etc/hosts has more."""
        return super().getaddrinfo(host, port, socket.AF_INET if host == 'localhost' else family, *rest)


def trace(record: Record) -> tuple[Any, ...]:
    """Return the history of one connection, without the parts that can depend on the kernel."""
    events = [event for event, _ in groupby(event for event in record.events if event not in ('written', 'drain'))]
    return (
        ' '.join(events),
        len(record.got),
        hashlib.sha256(record.got).hexdigest(),
        record.written_calls,
        repr(type(record.exc)),
    )


def on_real_kernel(program: Any, seed: int, selector: Any, folder: Path) -> list[Record]:
    """Run a program on the real kernel, check the laws that are visible from outside, and return its records."""
    with WatchedReactor(QuietKernel(), selector=selector) as r:  # type: ignore[arg-type]
        RealWorld(r, seed, folder).play(program)
    assert r.ledger.violations == []
    return r.ledger.records


def on_simulated_kernel(program: Any, seed: int, kind: str) -> list[Record]:
    """Run a program on the simulated kernel, check all laws, and return its records."""
    simulation = Simulation(seed, selector=kind, faults=False)
    simulation.world.random = Random(seed)
    simulation.run(lambda r: program(simulation.world))
    return simulation.reactor.ledger.records


@pytest.mark.parametrize(
    ('program', 'seed'),
    [
        *courses(SEEDS),
        *(pytest.param(*each.values, id=each.id, marks=pytest.mark.slow) for each in courses(MORE_SEEDS)),
    ],
)
@pytest.mark.parametrize('kind', list(SELECTORS))
def test_a_program_has_the_same_records_on_both_kernels(kind, program, seed, tmp_path_factory):
    if SELECTORS[kind] is None:
        pytest.skip(f'this platform has no {kind} selector')
    if not hasattr(socket, 'AF_UNIX'):
        pytest.skip('this platform has no Unix sockets, which the programs use')
    real = on_real_kernel(program, seed, SELECTORS[kind](), tmp_path_factory.mktemp('s'))
    simulated = on_simulated_kernel(program, seed, KINDS[kind])
    if program in RACES:
        assert {type(record.exc) for record in [*real, *simulated]} <= ENDS
        return
    ours, theirs = Counter(map(trace, real)), Counter(map(trace, simulated))
    assert (ours - theirs, theirs - ours) == (Counter(), Counter()), 'only on the real, only on the simulated kernel'


def test_a_trace_shows_the_order_of_callbacks_the_bytes_the_writes_and_the_end():
    def record(events: str, got: bytes, written: int, exc: BaseException | None) -> Record:
        made = Record(0)
        made.events, made.got, made.written_calls, made.exc = events.split(), bytearray(got), written, exc
        return made

    same = [
        record('connect data eof close', b'ab', 1, None),
        record('connect written data drain data eof close', b'ab', 1, None),
    ]
    others = [
        record('connect eof data close', b'ab', 1, None),
        record('connect data close', b'ab', 1, None),
        record('connect data eof close', b'ba', 1, None),
        record('connect data eof close', b'ab', 2, None),
        record('connect data eof close', b'ab', 1, ConnectionResetError()),
    ]
    assert len({trace(each) for each in same}) == 1
    assert len({trace(each) for each in same + others}) == 1 + len(others)
