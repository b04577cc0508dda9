"""Fixtures: a reactor on each selector that must leave nothing behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

import reactor
from reactor import Reactor
from tests.helpers.machine import machine
from tests.helpers.support import SELECTORS, FakeKernel, ScriptedKernel, ScriptedSocket

WORKERS = 5  # on two cores, because most tests wait


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--deep',
        type=int,
        metavar='EXAMPLES',
        help='run each property-based test with so many random examples, the models with up to 200 steps in each, '
        'instead of the quick profile, which is the same every time: for example "pytest --deep 20000 '
        'tests/models/test_model_writer.py", which takes hours. What fails is kept in .hypothesis and tried first the '
        'next time.',
    )
    parser.addoption(
        '--slow',
        action='store_true',
        help='run what is marked slow too, as CI does (sweeps, counts of work, figures in a tiny size, a soak, hunts '
        'for planted bugs): some minutes more',
    )
    parser.addoption(
        '--selector',
        choices=list(SELECTORS),
        help='run on this selector alone what is run on each of the three with the fixture `r`',
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
        'of a sample: "pytest --lasting-whole tests/laws/test_lasting_faults.py -k whole", in two processes',
    )
    parser.addoption(
        '--tls-worlds',
        type=int,
        default=150,
        metavar='SEEDS',
        help='how many worlds with TLS peers that misbehave are tried: "pytest --tls-worlds 20000 '
        'tests/net/test_tls_worlds.py" takes about 40 minutes',
    )
    parser.addoption(
        '--fuzz-seconds',
        type=int,
        default=20,
        metavar='SECONDS',
        help='for how long each fuzz target is run: "pytest --fuzz-seconds 1200 -n 2 tests/fuzz -k search"',
    )
    parser.addoption(
        '--kinds-whole',
        action='store_true',
        help='run each law on each kind of stream with every value of every option on every selector, instead of a few '
        'of them in turn: "pytest --kinds-whole -n 2 tests/laws/test_every_kind.py", some 25 minutes of CPU',
    )
    parser.addoption(
        '--nth-whole',
        action='store_true',
        help='have each call to the kernel fail once with each error, in every program and on every selector, instead '
        'of a sample: "pytest --nth-whole tests/laws/test_nth_call.py -k whole", in two processes, some ten minutes',
    )
    parser.addoption(
        '--owners-whole',
        action='store_true',
        help='run every order in which three owners of signal handlers and of the wakeup descriptor begin and end, '
        'instead of a sample: "pytest --owners-whole tests/loop/test_owners.py", some ten minutes',
    )
    parser.addoption(
        '--interrupts-whole',
        action='store_true',
        help='press Ctrl-C at each line of ours that a program reaches, instead of a sample: "pytest '
        '--interrupts-whole tests/laws/test_interrupt_sweep.py", in two processes, some ten minutes',
    )
    parser.addoption(
        '--sweep-whole',
        action='store_true',
        help='have each allocation fail, and the stack run out at each depth, in every program and on every selector, '
        'instead of a sample: "pytest --sweep-whole -n 2 tests/laws/test_sweeps.py"',
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to begin without what the tests need, and load a profile of hypothesis."""
    if not in_worker(config):
        check_setup()
    load_profile(config)


def in_worker(config: pytest.Config) -> bool:
    """Whether this process is one of those that pytest-xdist started."""
    return hasattr(config, 'workerinput')


def check_setup() -> None:
    """Raise UsageError, once, for what would otherwise fail hundreds of tests."""
    install = "run: python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
    if importlib.util.find_spec('psutil') is None:
        raise pytest.UsageError(f'the tests need psutil, which is not installed; {install}')
    # Many tests start programs in other folders, which import the package from there.
    command = [sys.executable, '-c', 'import reactor; print(reactor.__file__)']
    child = subprocess.run(command, cwd=os.path.abspath(os.sep), capture_output=True, text=True)
    if child.returncode:
        raise pytest.UsageError(f'a program started by a test cannot import reactor: it is not installed; {install}')
    if not os.path.samefile(child.stdout.strip(), reactor.__file__):
        found = child.stdout.strip()
        raise pytest.UsageError(f'programs started by tests import {found}, not {reactor.__file__}; {install}')


def load_profile(config: pytest.Config) -> None:
    """Choose between two profiles: `ci`, which runs the same examples every time, and `deep`, for `--deep`."""
    # Explaining a failure takes minutes with these models; the shrunk run tells enough.
    phases = [phase for phase in Phase if phase is not Phase.explain]
    common = settings(
        deadline=None, phases=phases, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    # The whole suite runs on five Pythons and tries the first examples; tests that are named try all, in CI once.
    examples = 40 if whole_suite(config) and not config.option.slow else 100
    settings.register_profile(
        'ci', common, max_examples=examples, stateful_step_count=50, derandomize=True, database=None
    )
    deep = config.getoption('--deep')
    settings.register_profile('deep', common, max_examples=deep or 20_000, stateful_step_count=200)
    settings.load_profile('deep' if deep else 'ci')


@pytest.hookimpl(tryfirst=True)  # before that of pytest-xdist
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in parallel, unless `-n` or `--pdb` says otherwise; tests that are named run as usual."""
    option = config.option
    if not whole_suite(config) or in_worker(config) or option.usepdb:
        return
    if config.getoption('numprocesses', 0) is None:
        option.numprocesses = WORKERS
    if config.getoption('dist', '') == 'no':
        option.dist = 'worksteal'  # each process has its modules, and at the end what another one has left


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let the workers, and the programs that tests start, write bytecode and so find what another one has compiled."""
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)


def pytest_sessionstart(session: pytest.Session) -> None:
    """In a worker, import the test modules, beginning with a different one in each worker.

    Rewriting their assertions takes 10 s of CPU. The result is kept in `__pycache__`, so each worker rewrites a share
    and finds the rest there.
    """
    if not in_worker(session.config):
        return
    gc.disable()  # until the tests are collected: a million objects are made, and none of them can be freed
    tests = Path(__file__).parent
    files = sorted(path.relative_to(tests.parent) for path in tests.rglob('test_*.py'))
    modules = ['.'.join(path.with_suffix('').parts) for path in files]
    begin = len(modules) * int(os.environ['PYTEST_XDIST_WORKER'][2:]) // int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
    for module in modules[begin:] + modules[:begin]:
        with suppress(Exception, pytest.skip.Exception):  # collecting the module reports it
            importlib.import_module(module)


def whole_suite(config: pytest.Config) -> bool:
    """Whether no test was named on the command line."""
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the command did not run."""
    if whole_suite(config) and not config.option.slow:
        terminalreporter.write_line(
            'NOT RUN: slow tests (sweeps, counts of work, figures, a soak, hunts for planted bugs); CI runs them: '
            'pytest --slow'
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless it was asked for, and other selectors than the one asked for; order the rest."""
    slow_too, only = config.option.slow or not whole_suite(config), config.option.selector

    def wanted(item: Any) -> bool:
        selector = item.callspec.params.get('r') if hasattr(item, 'callspec') else None
        slow = item.get_closest_marker('slow') is not None
        return (slow_too or not slow) and (only is None or selector in (None, only))

    unwanted = [item for item in items if not wanted(item)]
    items[:] = [item for item in items if wanted(item)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
    order(items)


def order(items: list[pytest.Item]) -> None:
    """Spread tests that compute for long among the modules, whose tests mostly wait; end with those that run alone."""
    alone = [item for item in items if item.get_closest_marker('alone')]
    long = deque(item for item in items if item.get_closest_marker('timeout') and item not in alone)
    others = (item for item in items if not item.get_closest_marker('timeout') and not item.get_closest_marker('alone'))
    modules = [list(module) for _, module in groupby(others, key=lambda item: item.path)]
    share = len(long) // len(modules) + 1 if modules else len(long)
    items.clear()
    for module in modules:
        items += [long.popleft() for _ in range(min(share, len(long)))] + module
    items += [*long, *alone]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Hide the tests themselves from the garbage collector.

    They stay until the end. Each collection, automatic or a test's own, would go through a million of their objects.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the time limit, which does not include the wait for a turn
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    with machine(item.get_closest_marker('alone') is not None):
        return (yield)


with suppress(ImportError):
    import ctypes

    # libffi opens its own file for the first callback that ctypes makes, as watchdog does, and keeps it open.
    ctypes.CFUNCTYPE(None)(lambda: None)


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    for folder in ('/proc/self/fd', '/dev/fd'):
        if os.path.isdir(folder):
            return len(os.listdir(folder))
    return 0


def has_children() -> bool:
    """Whether this process has a child, running or a zombie."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # AttributeError: this platform has no waitid
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test ends with the descriptors it began with, and leaves no child process."""
    before, had_children = open_descriptors(), has_children()
    yield
    until = time.monotonic() + 5  # a look-up that was abandoned has a file open for a moment, in its thread
    while open_descriptors() > before or has_children() > had_children:
        alone = threading.active_count() == 1
        gc.collect()  # after that look: a thread that has just ended has released what it held
        if alone or time.monotonic() > until:
            break
        time.sleep(0.01)
    assert open_descriptors() <= before, 'a descriptor was left open'
    assert has_children() <= had_children, 'a child process was left, running or as a zombie'


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
    if not reactor.guard.closed:
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
