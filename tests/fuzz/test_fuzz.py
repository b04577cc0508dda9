"""Run the corpus of each fuzz target without atheris, and a short search with atheris.

The searches run in child processes and are marked as slow. `--fuzz-seconds N` makes them longer:
`pytest --fuzz-seconds 1200 tests/fuzz/test_fuzz.py -k search`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import CORPUS, TARGETS, kept_inputs
from tests.helpers.mutants import FUZZ_MUTANTS, copy_package

PROJECT = Path(__file__).parents[2]
MOST_KEPT = 40_000  # bytes of all corpora together
BRIEF = 20  # seconds of search for each target, as in CI
START = 200  # seconds for the child process to start and to end, in addition to the search
KEPT = """
import sys
import reactor
print(reactor.__file__, flush=True)
from tests.fuzz.test_fuzz import run_kept
run_kept(sys.argv[1])
"""


def check_tools(target: str) -> None:
    if target == 'tls_records' and shutil.which('openssl') is None:
        pytest.skip('NOT TESTED: TLS records; the openssl command, which makes the certificates, is missing')


def run_kept(target: str) -> None:
    """Run every input in the corpus of a target. If one fails, it is shown as a bytes literal."""
    module = importlib.import_module(f'tests.fuzz.{target}')
    for path in kept_inputs(target):
        data = path.read_bytes()
        try:
            module.run(data)
        except Exception as exc:
            raise AssertionError(f'{target}, {path.name}: run({data!r}) raised {exc!r}') from exc


@pytest.mark.parametrize('target', TARGETS)
def test_no_kept_input_breaks_a_promise(target):
    check_tools(target)
    assert kept_inputs(target)
    run_kept(target)


@pytest.mark.parametrize('target', TARGETS)
def test_empty_and_short_inputs_are_accepted(target):
    check_tools(target)
    module = importlib.import_module(f'tests.fuzz.{target}')
    for data in b'', b'\0', b'\xff':
        module.run(data)


def test_each_target_has_a_small_corpus_and_nothing_else_is_kept():
    assert {path.name for path in CORPUS.iterdir() if not path.name.startswith('.')} == set(TARGETS)
    assert sum(path.stat().st_size for target in TARGETS for path in kept_inputs(target)) <= MOST_KEPT


# -- the search


def paths(package: Path | None) -> str:
    """Return the PYTHONPATH of a child process: the folder of a changed package, if there is one, then this project."""
    return os.pathsep.join(str(folder) for folder in (package, PROJECT) if folder is not None)


def search(target: str, seconds: int, folder: Path, package: Path | None = None) -> tuple[str, list[bytes]]:
    """Search in a child process, starting from the corpus; return its output and the inputs that failed.

    package  the folder of the package to test; None: this project
    """
    check_tools(target)
    if importlib.util.find_spec('atheris') is None:
        pytest.skip(
            f'NOT FUZZED: {target}; this Python {sys.version.split()[0]} has no atheris: '
            "pip install -e '.[test,fuzz]', if there is a build for this version"
        )
    found, failed = folder / 'found', folder / 'failed'
    found.mkdir(), failed.mkdir()
    options = [f'-max_total_time={seconds}', f'-artifact_prefix={failed}/', '-print_final_stats=1']
    if seconds <= BRIEF:
        options.append('-seed=1')  # reproducible: a new failure comes from a change in the code, not from chance
    environment = {**os.environ, 'PYTHONDONTWRITEBYTECODE': '1', 'PYTHONPATH': paths(package)}
    child = subprocess.run(
        [sys.executable, '-m', 'tests.fuzz', target, *options, str(found), str(CORPUS / target)],
        cwd=folder, env=environment, capture_output=True, text=True, errors='replace', timeout=seconds + START,
    )  # fmt: skip
    # Slow inputs are not failures: the machine may be slow.
    inputs = [path.read_bytes() for path in sorted(failed.iterdir()) if not path.name.startswith('slow-unit')]
    if child.returncode and not inputs:
        raise AssertionError(f'{target}: the search itself has failed, status {child.returncode}:\n{child.stderr}')
    return child.stdout + child.stderr, inputs


def verdict(printed: str) -> str:
    """Return the lines that report errors and the progress of the search."""
    lines = printed.splitlines()
    wanted = [line for line in lines if 'Error: ' in line or 'ERROR' in line or line.startswith('stat::')]
    return '\n'.join([*wanted, *[line for line in lines if ' cov: ' in line][-1:]])


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Override the check for open descriptors, because child processes start and end during these tests."""


@pytest.mark.slow
@pytest.mark.parametrize('planted', FUZZ_MUTANTS, ids=[mutant.name for mutant, _ in FUZZ_MUTANTS])
def test_kept_inputs_find_a_planted_bug(planted, tmp_path):
    mutant, target = planted
    check_tools(target)
    copy_package(tmp_path, mutant)
    child = subprocess.run(
        [sys.executable, '-c', KEPT, target],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': paths(tmp_path), 'PYTHONDONTWRITEBYTECODE': '1'},
        capture_output=True, text=True, timeout=START,
    )  # fmt: skip
    assert child.stdout.startswith(str(tmp_path)), child.stderr
    assert 'AssertionError' in child.stderr, f'no input in the corpus finds this bug, which breaks: {mutant.law}'
    print(f'{mutant.name}: {child.stderr.splitlines()[-1]}')


@pytest.mark.slow
def test_a_search_reports_the_input_that_makes_a_target_fail(tmp_path):
    mutant, target = next(pair for pair in FUZZ_MUTANTS if pair[1] == 'framing')
    printed, inputs = search(target, 10, tmp_path, copy_package(tmp_path / 'copy', mutant))
    assert inputs
    assert 'AssertionError: ' in verdict(printed)
    for data in inputs:
        importlib.import_module(f'tests.fuzz.{target}').run(data)  # raises nothing without the planted bug


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize('target', TARGETS)
def test_a_search_finds_no_broken_promise(target, request, tmp_path):
    printed, inputs = search(target, request.config.getoption('--fuzz-seconds'), tmp_path)
    print(f'{target}: {verdict(printed)}')
    assert not inputs, f'{target}: fails with {", ".join(map(repr, inputs))}\n{verdict(printed)}'
