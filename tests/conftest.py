"""Test fixtures and options. The main fixture, `r`, is a reactor on each selector, and tests must leave it empty."""

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

WORKERS = 5  # for two cores: most tests wait instead of computing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--deep',
        type=int,
        metavar='EXAMPLES',
        help='run each property-based test with this many random examples (in the models, of up to 200 steps each), '
        'instead of the few examples that are the same in every run. For instance, "pytest --deep 20000 '
        'tests/models/test_model_writer.py" takes hours. A failing example is stored in .hypothesis, and is the first '
        'to be tried in the next run.',
    )
    parser.addoption(
        '--slow',
        action='store_true',
        help='also run the tests marked slow, as CI does (sweeps, counts of work, small measurements, a soak test, '
        'searches for planted bugs), which takes some minutes more',
    )
    parser.addoption(
        '--selector',
        choices=list(SELECTORS),
        help='run tests that have the fixture `r` on this selector only, instead of on all three',
    )
    parser.addoption(
        '--live-seconds',
        type=int,
        default=5,
        help='seconds for which the live page is open in a browser before its memory is checked for growth',
    )
    parser.addoption(
        '--like-linux-seconds',
        type=float,
        default=0.0,
        metavar='SECONDS',
        help='compare the simulated kernel with this Linux for this long, instead of a few seconds: "pytest -rP '
        '--like-linux-seconds 3600 -k random tests/testing/test_like_linux.py" takes an hour',
    )
    parser.addoption(
        '--lasting-whole',
        action='store_true',
        help='let every kind of call fail permanently with each error, in every program and on every selector, instead '
        'of a sample: "pytest --lasting-whole tests/laws/test_lasting_faults.py -k whole", in two processes',
    )
    parser.addoption(
        '--tls-worlds',
        type=int,
        default=150,
        metavar='SEEDS',
        help='number of worlds with misbehaving TLS peers to try: "pytest --tls-worlds 20000 '
        'tests/net/test_tls_worlds.py" takes about 40 minutes',
    )
    parser.addoption(
        '--fuzz-seconds',
        type=int,
        default=20,
        metavar='SECONDS',
        help='seconds for which each fuzz target is run: "pytest --fuzz-seconds 1200 -n 2 tests/fuzz -k search"',
    )
    parser.addoption(
        '--kinds-whole',
        action='store_true',
        help='run each law on each kind of stream with every value of every option on every selector, instead of a '
        'sample: "pytest --kinds-whole -n 2 tests/laws/test_every_kind.py", about 25 minutes of CPU time',
    )
    parser.addoption(
        '--nth-whole',
        action='store_true',
        help='let each call to the kernel fail once with each error, in every program and on every selector, instead '
        'of a sample: "pytest --nth-whole tests/laws/test_nth_call.py -k whole", in two processes, about ten minutes',
    )
    parser.addoption(
        '--owners-whole',
        action='store_true',
        help='run every order in which three owners of signal handlers and of the wakeup descriptor begin and end, '
        'instead of a sample: "pytest --owners-whole tests/loop/test_owners.py", about ten minutes',
    )
    parser.addoption(
        '--interrupts-whole',
        action='store_true',
        help='deliver SIGINT at each line of the package that a program reaches, instead of a sample: "pytest '
        '--interrupts-whole tests/laws/test_interrupt_sweep.py", in two processes, about ten minutes',
    )
    parser.addoption(
        '--sweep-whole',
        action='store_true',
        help='let each allocation fail, and the stack run out at each depth, in every program and on every selector, '
        'instead of a sample: "pytest --sweep-whole -n 2 tests/laws/test_sweeps.py"',
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to start if a requirement of the tests is not installed, and load a Hypothesis profile."""
    if not in_worker(config):
        check_setup()
    load_profile(config)


def in_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, 'workerinput')


def check_setup() -> None:
    """Raise a single UsageError for a mistake in the setup that would otherwise fail hundreds of tests."""
    install = "run: python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
    if importlib.util.find_spec('psutil') is None:
        raise pytest.UsageError(f'the tests need psutil, which is not installed; {install}')
    # Many tests start programs in other folders, and those programs must be able to import the package there.
    command = [sys.executable, '-c', 'import reactor; print(reactor.__file__)']
    child = subprocess.run(command, cwd=os.path.abspath(os.sep), capture_output=True, text=True)
    if child.returncode:
        raise pytest.UsageError(f'a program started by a test cannot import reactor: it is not installed; {install}')
    if not os.path.samefile(child.stdout.strip(), reactor.__file__):
        found = child.stdout.strip()
        raise pytest.UsageError(f'programs started by tests import {found}, not {reactor.__file__}; {install}')


def load_profile(config: pytest.Config) -> None:
    """Choose the profile: `ci`, with the same examples every time, or `deep`, for `--deep`."""
    # The explain phase takes minutes with these models, and the shrunk example is explanation enough.
    phases = [phase for phase in Phase if phase is not Phase.explain]
    common = settings(
        deadline=None, phases=phases, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    # The whole suite runs on five Python versions, so it tries only the first 40 examples. Tests that are named on the
    # command line try 100.
    examples = 40 if whole_suite(config) and not config.option.slow else 100
    settings.register_profile(
        'ci', common, max_examples=examples, stateful_step_count=50, derandomize=True, database=None
    )
    deep = config.getoption('--deep')
    settings.register_profile('deep', common, max_examples=deep or 20_000, stateful_step_count=200)
    settings.load_profile('deep' if deep else 'ci')


@pytest.hookimpl(tryfirst=True)  # run before the hook of pytest-xdist
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in parallel, unless `-n` or `--pdb` says otherwise; named tests run as usual."""
    option = config.option
    if not whole_suite(config) or in_worker(config) or option.usepdb:
        return
    if config.getoption('numprocesses', 0) is None:
        option.numprocesses = WORKERS
    if config.getoption('dist', '') == 'no':
        option.dist = 'worksteal'  # an idle worker takes over tests that were assigned to others


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let the workers, and the programs that tests start, write bytecode, so that each module is compiled only once."""
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)


def pytest_sessionstart(session: pytest.Session) -> None:
    """In a worker, import the test modules, starting with a different one in each worker.

    Rewriting the assertions of all modules takes 10 s of CPU time. The results are stored in `__pycache__`, so each
    worker rewrites only some of the modules and finds the others there.
    """
    if not in_worker(session.config):
        return
    gc.disable()  # until the tests are collected: a million objects are created, and none of them becomes garbage
    tests = Path(__file__).parent
    files = sorted(path.relative_to(tests.parent) for path in tests.rglob('test_*.py'))
    modules = ['.'.join(path.with_suffix('').parts) for path in files]
    begin = len(modules) * int(os.environ['PYTEST_XDIST_WORKER'][2:]) // int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
    for module in modules[begin:] + modules[:begin]:
        with suppress(Exception, pytest.skip.Exception):  # the error is reported when pytest collects the module
            importlib.import_module(module)


def whole_suite(config: pytest.Config) -> bool:
    """Whether no test was named on the command line."""
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List the tests that this command did not run."""
    if whole_suite(config) and not config.option.slow:
        terminalreporter.write_line(
            'NOT RUN: slow tests (sweeps, counts of work, measurements, a soak test, searches for planted bugs); '
            'to run them, as CI does: pytest --slow'
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect slow tests unless they are requested, and all selectors but the requested one; order the other tests."""
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
    """Spread the tests that need much CPU among the others, which mostly wait; tests that run alone come last."""
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

    The tests exist until the end of the run, and every garbage collection would visit a million of their objects.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # waiting for the machine does not count towards the time limit
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    with machine(item.get_closest_marker('alone') is not None):
        return (yield)


with suppress(ImportError):
    import ctypes

    # The watchdog package makes ctypes callbacks. For the first callback, libffi opens a file and keeps it open.
    ctypes.CFUNCTYPE(None)(lambda: None)


def open_descriptors() -> int:
    """Count the open descriptors of this process."""
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
    """Check that each test leaves no open descriptor and no child process."""
    before, had_children = open_descriptors(), has_children()
    yield
    until = time.monotonic() + 20  # an abandoned look-up has a socket open until the name server has answered or not
    while open_descriptors() > before or has_children() > had_children:
        alone = threading.active_count() == 1
        gc.collect()  # after reading `alone`: when the other threads have ended, this frees all their objects
        if alone or time.monotonic() > until:
            break
        time.sleep(0.01)
    assert open_descriptors() <= before, 'the test left a descriptor open'
    assert has_children() <= had_children, 'the test left a child process, running or as a zombie'


def check_empty(r: Reactor) -> None:
    """Check that no handle, timer, completion or counted connection is left."""
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
    """A reactor on the default selector, on poll and on select; the test fails if it leaves anything open."""
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
    """A reactor on the fixture `kernel`."""
    reactor = Reactor(kernel=kernel)
    yield reactor
    reactor.close()


@pytest.fixture
def sockets():
    """Sockets that are closed after the test: `sockets()` makes a pair, and `sockets.track(sock)` adds a socket."""
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
    """A reactor on a scripted kernel, and a function that makes a stream with its scripted socket."""
    kernel = ScriptedKernel()
    with Reactor(kernel=kernel) as reactor:

        def make(**keywords):
            sock = ScriptedSocket(kernel)
            return reactor.adopt(sock, **keywords), sock

        yield reactor, make
