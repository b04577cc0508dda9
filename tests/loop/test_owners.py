"""Several owners of signals and of the wakeup descriptor in one process can begin and end in any order.

The combinations are in `owners.py` and, with an asyncio loop among the owners, in `reference/asyncio_owner.py`. They
run in child processes, all of which start at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reactor.loop.claims import SignalClaim
from tests.helpers import owners

PROJECT = Path(__file__).parents[2]
PROGRAMS = {'reactors and plain programs': 'tests.helpers.owners', 'with asyncio': 'tests.reference.asyncio_owner'}
HOW = ('SIGUSR1+base', 'SIGUSR1+inside')
SAMPLE = 40

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


@pytest.fixture(autouse=True)
def nothing_left():
    """Replace the check for leaked descriptors: the count changes here when child processes end."""


@pytest.fixture(scope='module')
def children(request):
    """The child processes, one for each program and number of owners."""
    whole = request.config.getoption('--owners-whole')
    sizes = {2: 'all', 3: 'all' if whole else str(SAMPLE)}
    started = {
        (program, count): subprocess.Popen(
            [sys.executable, '-W', 'error', '-m', module, str(count), size, *HOW],
            cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for program, module in PROGRAMS.items()
        for count, size in sizes.items()
    }  # fmt: skip
    yield started
    for child in started.values():
        child.kill()
        child.communicate()


@pytest.mark.scenario(36)
@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('program', PROGRAMS)
def test_owners_of_signals_begin_and_end_in_any_order(program, count, children, request):
    whole = request.config.getoption('--owners-whole')
    child = children[program, count]
    output, _ = child.communicate(timeout=3600 if whole else 120)
    assert child.returncode == 0, output
    first, *wrong = output.splitlines()
    print(first)
    assert ', 0 wrong' in first, '\n'.join(wrong[:20])
    cells = int(first.split()[0])
    assert cells >= 2 * (SAMPLE if count == 3 else 78)


@pytest.mark.skipif('SIGUSR1' not in dir(signal), reason='needs SIGUSR1')
def test_a_handler_left_by_a_closed_reactor_is_detected(monkeypatch):
    """Show that the check in `owners.py` can fail: here, a closed reactor leaves its signal handler installed."""
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(SignalClaim, 'drop', lambda claim: None)
    try:
        wrong = owners.run_cells([((owners.OfReactor, owners.OfReactor), (0, 1, 1, 0))], ('SIGUSR1+base',))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(wrong) == 1
    assert wrong[0].endswith('OfReactor 1 ends: OfReactor 0 did not receive the signal')
