"""Each bug planted in the TLS code is found by the worlds of `tls_worlds.py` or by a named test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import mutants
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.hostile_tls import ENGINE
from tests.helpers.mutants import TLS_MUTANTS, copy_package

SEEDS = 1000
LONGEST = 60  # seconds for a test in a child; `run_until` needs ten of them before it fails
PATIENCE = 110  # seconds for a child; less than the time limit of the test itself
PROJECT = Path(__file__).parents[2]
# The pytest options of setup.cfg, without the options for reports and for the project's own package.
FROM_ELSEWHERE = ('-o', 'addopts=--import-mode=importlib', '-o', 'pythonpath=')
HUNT = """
import logging, sys
from pathlib import Path
logging.disable(logging.CRITICAL)
import reactor
from tests.helpers.certificates import Certificates
from tests.helpers.tls_worlds import Contexts, run_world

made = Certificates.__new__(Certificates)
made.folder = Path(sys.argv[1])
made.authority = made.folder / 'authority.pem'
contexts = Contexts(made)
print(reactor.__file__)
for seed in range(int(sys.argv[2])):
    try:
        run_world(seed, contexts)
    except BaseException as exc:
        print('found', str(exc).partition('the last of')[0], sep=chr(10))
        break
"""


def run_child(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copy of the package in `folder`."""
    paths = f'{folder}{os.pathsep}{PROJECT}'  # the package is imported from the copy, and the tests from this project
    environment = {**os.environ, 'PYTHONPATH': paths, 'PYTHONDONTWRITEBYTECODE': '1'}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )


def hunt(folder: Path, certificates: Path) -> str:  # noqa: F811
    """Run the worlds on the copy of the package in `folder`; return the failure, or ''."""
    child = run_child(folder, '-c', HUNT, str(certificates), str(SEEDS))
    where, _, found = child.stdout.partition('\n')
    assert where.startswith(str(folder)), child.stderr
    return found


def run_test(folder: Path, name: str) -> str:
    """Run a test of this project on the copy; return its failure, or ''."""
    options = ['-q', '-x', '-p', 'no:cacheprovider', '--tb=line', *FROM_ELSEWHERE, '--timeout', str(LONGEST)]
    child = run_child(folder, '-m', 'pytest', *options, '-k', 'not poll and not select', str(PROJECT / 'tests' / name))
    said = child.stdout + child.stderr
    assert child.returncode in (0, 1), said
    assert 'from pytest-timeout' not in said, f'{name} was ended after {LONGEST} s, and proves nothing:\n{said}'
    failed = child.returncode and ' failed' in child.stdout  # otherwise the test did not run
    assert bool(child.returncode) is bool(failed), said
    return child.stdout if failed else ''


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the fixture that counts descriptors, because children start and end during these tests."""


@pytest.mark.slow
@pytest.mark.parametrize('planted', TLS_MUTANTS, ids=[mutant.name for mutant, _ in TLS_MUTANTS])
def test_each_bug_planted_in_tls_is_found(planted, certificates, tmp_path):  # noqa: F811
    if ENGINE.missing:
        pytest.skip(f'NOT TESTED: TLS peers that misbehave; {ENGINE.missing}')
    mutant, test = planted
    copy_package(tmp_path, mutant)
    found = run_test(tmp_path, test) if test else hunt(tmp_path, certificates.folder)
    print(f'{mutant.name}: {found.strip() or "not found"}')
    assert found, f'{test or f"{SEEDS} worlds"} did not find the bug, which breaks {mutant.law}'


def test_there_are_enough_tls_mutants_and_each_anchor_is_found():
    assert len({mutant.name for mutant, _ in TLS_MUTANTS}) == len(TLS_MUTANTS) >= 10
    assert not {mutant.name for mutant, _ in TLS_MUTANTS} & {mutant.name for mutant in mutants.MUTANTS}
    for mutant, _ in TLS_MUTANTS:
        assert (mutants.PACKAGE / mutant.file).read_text().count(mutant.anchor) == 1, mutant.name
