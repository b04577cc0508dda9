"""Growth of the work in C loops: bytecode counts do not show it, so user instructions are counted instead.

A mistake would make these cases copy, move or compare too much. At these sizes, that would outweigh all other work of
Python. The test needs callgrind, which is slow, and a machine that does nothing else:
`pytest --slow tests/laws/test_work_in_c.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SIZE = 250
MOST = 2.3  # doubling the number of things may multiply the instructions by this factor
LONGEST = 300  # seconds; callgrind is slow, and a busy machine makes it slower
GROUPS = {
    'framing': ['a line in pieces', 'a block in pieces', 'lines in a chunk'],
    'timers': [
        'timers due together, reset by the first of them, descending',
        'timers set all the same, reset descending',
        'timers set at random, cancelled at random',
    ],
    'time limits': [
        'time limits in one second, discarded at random',
        'time limits in many seconds, ascending, discarded ascending',
    ],
    'writes': [
        'writes that wait, small, with callbacks, taken all at once',
        'buffers_of_one_writelines',
        'addresses_of_two_families_in_turn',
    ],
}

if sys.platform != 'linux':
    pytest.skip('callgrind runs on Linux', allow_module_level=True)


@pytest.mark.slow
@pytest.mark.timeout(LONGEST)
@pytest.mark.parametrize('group', GROUPS)
def test_the_instructions_grow_no_faster_than_n_log_n(group, tmp_path):
    from perf.instructions import callgrind

    if reason := callgrind.missing():
        pytest.skip(reason)
    names = GROUPS[group]
    command = [
        *callgrind.environment(tmp_path),
        f'PYTHONPATH={PROJECT}',
        *callgrind.callgrind(tmp_path / 'out'),
        *(sys.executable, str(PROJECT / 'tests' / 'helpers' / 'work_in_c.py'), str(SIZE), *names),
    ]
    subprocess.run(command, check=True, timeout=LONGEST, cwd=tmp_path)
    # The first mark comes after the start of the program, the second one after the first case.
    totals = [callgrind.total((tmp_path / f'out.{2 * number + 2}').read_text()) for number in range(3 * len(names))]
    too_fast = {}
    for number, name in enumerate(names):
        counts = totals[3 * number : 3 * number + 3]
        print(f'{name:65} {counts} {counts[2] / counts[0]:.2f}')
        # The limit applies to both doublings together, so that one jump, such as a larger table, does not exceed it.
        if counts[2] > MOST**2 * counts[0]:
            too_fast[name] = counts
    assert not too_fast, f'user instructions for {SIZE}, {2 * SIZE} and {4 * SIZE}'
