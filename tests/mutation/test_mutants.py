"""The simulation finds planted bugs: some seed fails on each mutant, and no seed fails on the original code.

Each hunt runs in a separate process, on a copy of the package.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reactor.testing import SimKernel
from tests.helpers import mutants
from tests.helpers.mutants import MUTANTS, Mutant, copy_package, plant

SEEDS = 1000
CALM_SEEDS = 100  # seeds without a planted bug; CI runs more with `python -m reactor.testing`
LONGEST = 60  # seconds of CPU time after which a seed counts as hung
PATIENCE = 600  # seconds for a hunt
HUNT = """
import logging, resource, sys, time
logging.disable(logging.CRITICAL)
import reactor
from reactor.testing.seeds import run_seed

begin, first, last, longest = map(int, sys.argv[1:5])
manner = sys.argv[5] or None
slowest = 0.0
for seed in (begin, *range(first, last)):
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(began) + longest + 1, resource.RLIM_INFINITY))
    print(seed, flush=True)
    try:
        run_seed(seed, selector=manner)
    except BaseException as exc:
        print('found', reactor.__file__, f'{type(exc).__name__}: {exc}', sep=chr(10))
        break
    slowest = max(slowest, time.process_time() - began)
else:
    print('slowest', reactor.__file__, slowest, sep=chr(10))
"""


class Outcome:
    """The outcome of a hunt: its last seed, and the violation that this seed found, or ''."""

    def __init__(self, output: str, status: int, folder: Path) -> None:
        seeds, self.wrong, self.hung, self.slowest = [], '', False, 0.0
        lines = output.splitlines()
        for line in lines:
            if not line.isdigit():
                break
            seeds.append(int(line))
        self.seed = seeds[-1] if seeds else -1
        rest = lines[len(seeds) :]
        assert not rest or rest[1].startswith(str(folder)), f'{rest[1]} was imported, not the copy in {folder}'
        if not rest:
            assert seeds, f'no seed was started: status {status}'
            self.wrong, self.hung = f'seed {self.seed} did not end in {LONGEST} s', True
        elif rest[0] == 'found':
            self.wrong = '\n'.join(rest[2:])
        else:
            self.slowest = float(rest[2])


def hunt(folder: Path, mutant: Mutant | None, first: int, last: int) -> Outcome:
    """Run these seeds on a copy of the package in `folder` until one fails."""
    copy_package(folder, mutant)
    begin, manner = (first, '') if mutant is None else (mutant.seed, mutant.manner)
    environment = {**os.environ, 'PYTHONPATH': str(folder), 'PYTHONDONTWRITEBYTECODE': '1'}
    child = subprocess.run(
        [sys.executable, '-c', HUNT, *map(str, (begin, first, last, LONGEST)), manner],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert child.stdout, child.stderr
    return Outcome(child.stdout, child.returncode, folder)


HUNTS: dict[str, tuple[Mutant | None, int, int]] = {
    'nothing': (None, 0, CALM_SEEDS),
    **{mutant.name: (mutant, 0, SEEDS) for mutant in MUTANTS},
}


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.slow
@pytest.mark.parametrize('planted', list(HUNTS))
def test_each_planted_bug_is_found_and_the_original_code_passes(planted, tmp_path):
    mutant = HUNTS[planted][0]
    outcome = hunt(tmp_path / 'copy', *HUNTS[planted])
    if mutant is None:
        assert not outcome.wrong
    else:
        print(f'{planted}: seed {outcome.seed}, {outcome.wrong}')
        assert outcome.wrong, f'{SEEDS} seeds did not find the bug, which breaks {mutant.law}'
    if outcome.hung:
        usual = hunt(tmp_path / 'usual', None, outcome.seed, outcome.seed + 1)
        assert not usual.wrong and usual.slowest < LONGEST / 100, (
            'this seed is slow without the bug too, so it proves nothing'
        )


def test_there_are_mutants_for_each_part_with_unique_names():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 28
    files = {mutant.file for mutant in MUTANTS}
    assert {f'loop/{name}.py' for name in 'loop timers watcher wakeup signals threads buckets'.split()} <= files
    net = 'stream sending ending writer timeouts listener connector datagram options'.split()
    assert {f'net/{name}.py' for name in net} <= files


def written_in(path: Path):
    """Generate the arguments of each `Mutant(...)` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'Mutant':
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if 5 <= len(values) == len(node.args):
                yield Mutant(*values)


def test_the_anchor_of_every_planted_bug_still_exists():
    """This is checked without a hunt, which takes minutes. Even a reworded comment can break an anchor."""
    planted = [mutant for path in Path(mutants.__file__).parents[1].rglob('*.py') for mutant in written_in(path)]
    assert len(planted) > 150
    for mutant in planted:
        plant(mutant)


@pytest.mark.parametrize(
    ('file', 'anchor'),
    [
        ('net/writer.py', 'no such text'),
        ('net/writer.py', 'self'),
        ('testing/kernel.py', 'class SimKernel(Descriptors)'),
    ],
    ids=['absent', 'twice', 'in the simulator'],
)
def test_a_mutant_is_refused_unless_its_anchor_occurs_once_in_the_package(file, anchor, tmp_path):
    with pytest.raises(ValueError, match='its anchor text is'):
        copy_package(tmp_path, Mutant('it', file, anchor, '', ''))


def test_the_copy_differs_from_the_package_only_in_the_mutated_file(tmp_path):
    mutant = MUTANTS[0]
    copy_package(tmp_path, mutant)
    changed = [
        path.relative_to(mutants.PACKAGE).as_posix()
        for path in mutants.PACKAGE.rglob('*.py')
        if path.read_bytes() != (tmp_path / 'reactor' / path.relative_to(mutants.PACKAGE)).read_bytes()
    ]
    assert changed == [mutant.file]
    assert SimKernel.__module__ == 'reactor.testing.kernel'
