"""Lockstep: the same programs on the real kernel and on the simulated one, and connection by connection the same.

What is compared of a connection: its callbacks in order, the bytes it got, how many of its writes were told, its end.
What is not: chunk borders and `on_drain`, which depend on the size of buffers, and the order between connections. In
`RACES` the outcome depends on who is faster; there both have to keep the laws, and to know the same kinds of ends.
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
# The last is for two peers that close with more bytes waiting than the other has room for: neither reads any more.
ENDS = {
    type(None), ConnectionResetError, BrokenPipeError, ConnectionRefusedError, FileNotFoundError, ConnectTimeout,
    WriteTimeout,
}  # fmt: skip


class QuietKernel(Kernel):
    """The real kernel, for a `WatchedReactor`: what it does is not watched, only what the user is told."""

    def __init__(self) -> None:
        self.files: dict[int, Any] = {}
        self.on_turn: Any = None

    def note(self, *args: Any) -> None:
        """Keeps no trace."""

    def getaddrinfo(self, host: str | None, port: int, family: int, *rest: Any) -> list[Any]:
        """One address for `localhost`, as the simulated name has, whatever else /etc/hosts says of it."""
        return super().getaddrinfo(host, port, socket.AF_INET if host == 'localhost' else family, *rest)


def trace(record: Record) -> tuple[Any, ...]:
    """What happened to one connection, as far as it may not depend on the kernel."""
    events = [event for event, _ in groupby(event for event in record.events if event not in ('written', 'drain'))]
    return (
        ' '.join(events),
        len(record.got),
        hashlib.sha256(record.got).hexdigest(),
        record.written_calls,
        repr(type(record.exc)),
    )


def on_real_kernel(program: Any, seed: int, selector: Any, folder: Path) -> list[Record]:
    """Its records, after it has kept the laws that can be seen from outside."""
    with WatchedReactor(QuietKernel(), selector=selector) as r:  # type: ignore[arg-type]
        RealWorld(r, seed, folder).play(program)
    assert r.ledger.violations == []
    return r.ledger.records


def on_simulated_kernel(program: Any, seed: int, kind: str) -> list[Record]:
    """Its records, after it has kept all the laws."""
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
def test_a_program_sees_the_same_on_both_kernels(kind, program, seed, tmp_path_factory):
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
    assert (ours - theirs, theirs - ours) == (Counter(), Counter()), 'only on the real kernel, only on the simulated'


def test_a_trace_tells_the_order_of_callbacks_the_bytes_the_writes_and_the_end():
    def record(events: str, got: bytes, told: int, exc: BaseException | None) -> Record:
        made = Record(0)
        made.events, made.got, made.written_calls, made.exc = events.split(), bytearray(got), told, exc
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
