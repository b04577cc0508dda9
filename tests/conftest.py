"""Fixtures: a reactor on each selector that must leave nothing behind."""

from __future__ import annotations

import gc
import os
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from support import SELECTORS, FakeKernel, ScriptedKernel, ScriptedSocket

from reactor import Reactor


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--deep',
        type=int,
        metavar='EXAMPLES',
        help='run each property-based test with so many random examples, the models with up to 200 steps in each, '
        'instead of the quick profile, which is the same every time: for example "pytest --deep 20000 '
        'tests/test_model_writer.py", which takes hours. What fails is kept in .hypothesis and tried first the next '
        'time.',
    )
    parser.addoption(
        '--live-seconds',
        type=int,
        default=5,
        help='for how long the live page is open in a browser before it is looked at for growth',
    )
    parser.addoption(
        '--lasting-whole',
        action='store_true',
        help='have every kind of call fail for good with each error, in every program and on every selector, instead '
        'of a sample: "pytest --lasting-whole tests/test_lasting_faults.py -k whole", in two processes',
    )
    parser.addoption(
        '--tls-worlds',
        type=int,
        default=150,
        metavar='SEEDS',
        help='how many worlds with TLS peers that misbehave are tried: "pytest --tls-worlds 20000 '
        'tests/test_tls_worlds.py" takes about 40 minutes',
    )
    parser.addoption(
        '--nth-whole',
        action='store_true',
        help='have each call to the kernel fail once with each error, in every program and on every selector, instead '
        'of a sample: "pytest --nth-whole tests/test_nth_call.py -k whole", in two processes, some ten minutes',
    )
    parser.addoption(
        '--owners-whole',
        action='store_true',
        help='run every order in which three owners of signal handlers and of the wakeup descriptor begin and end, '
        'instead of a sample: "pytest --owners-whole tests/test_owners.py", some ten minutes',
    )
    parser.addoption(
        '--interrupts-whole',
        action='store_true',
        help='press Ctrl-C at each line of ours that a program reaches, instead of a sample: "pytest '
        '--interrupts-whole tests/test_interrupt_sweep.py", in two processes, some ten minutes',
    )
    parser.addoption(
        '--sweep-whole',
        action='store_true',
        help='have each allocation fail, and the stack run out at each depth, in every program and on every selector, '
        'instead of a sample: "pytest --sweep-whole -n 2 tests/test_sweeps.py"',
    )


def pytest_configure(config: pytest.Config) -> None:
    """The two profiles of hypothesis: `ci`, which finds the same today and tomorrow, and `deep`, by `--deep`."""
    # Explaining a failure takes minutes with these models; the shrunk run tells enough.
    phases = [phase for phase in Phase if phase is not Phase.explain]
    common = settings(
        deadline=None, phases=phases, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    settings.register_profile('ci', common, max_examples=100, stateful_step_count=50, derandomize=True, database=None)
    deep = config.getoption('--deep')
    settings.register_profile('deep', common, max_examples=deep or 20_000, stateful_step_count=200)
    settings.load_profile('deep' if deep else 'ci')


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    for folder in ('/proc/self/fd', '/dev/fd'):
        if os.path.isdir(folder):
            return len(os.listdir(folder))
    return 0


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test ends with the descriptors it began with."""
    before = open_descriptors()
    yield
    if open_descriptors() > before:
        gc.collect()
    assert open_descriptors() <= before, 'a descriptor was left open'


def check_empty(r: Reactor) -> None:
    """No handle, timer, completion or gauge is left."""
    assert not r.handles(), r.handles()
    assert len(r.timers) == 0, list(r.timers)
    assert r.timers.referenced == 0
    assert len(r.timers.buckets) == 0
    assert r.watchers.referenced == 0
    assert not r.completions
    stats = r.stats()
    assert (stats.incoming, stats.outgoing) == (0, 0)


@pytest.fixture(params=list(SELECTORS))
def r(request: Any):
    """A reactor on the default selector, on poll, on select; what a test leaves open fails it."""
    selector = SELECTORS[request.param]
    if selector is None:
        pytest.skip(f'this platform has no {request.param} selector')
    reactor = Reactor(selector=selector())
    yield reactor
    if not reactor.watchers.closed:
        try:
            check_empty(reactor)
        finally:
            reactor.close()


@pytest.fixture
def kernel() -> FakeKernel:
    """A kernel whose clock moves only while the loop would wait."""
    return FakeKernel()


@pytest.fixture
def fake(kernel: FakeKernel):
    """A reactor on that kernel."""
    reactor = Reactor(kernel=kernel)
    yield reactor
    reactor.close()


@pytest.fixture
def sockets():
    """Make sockets that are closed after the test: `sockets()` a pair, `sockets.track(sock)` one made elsewhere."""
    made: list[socket.socket] = []

    class Maker:
        def __call__(self, blocking: bool = False) -> tuple[socket.socket, socket.socket]:
            pair = socket.socketpair()
            for sock in pair:
                sock.setblocking(blocking)
                made.append(sock)
            return pair

        def track(self, sock: socket.socket) -> socket.socket:
            made.append(sock)
            return sock

        def connect(self, address: Any) -> socket.socket:
            sock = self.track(socket.create_connection(address))
            sock.setblocking(False)
            return sock

    yield Maker()
    for sock in made:
        sock.close()


@pytest.fixture
def scripted():
    """A reactor on a scripted kernel, and a function that makes a stream and its scripted socket."""
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as reactor:

        def make(**keywords):
            sock = ScriptedSocket(kernel)
            return reactor.adopt(sock, **keywords), sock

        yield reactor, make
