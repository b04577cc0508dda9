"""The distributions: the source distribution can test itself, and the same source gives the same wheel."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import reactor

CHECKOUT = Path(__file__).parents[2]
METADATA = configparser.ConfigParser()
METADATA.read(CHECKOUT / 'setup.cfg')
TOP = ('.ci', 'docs', 'examples', 'perf', 'reactor', 'tests', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'ruff.toml')
JUNK = shutil.ignore_patterns('__pycache__', '*.egg-info', '.*_cache', '.hypothesis', 'out')
SECONDS = '1700000000'  # the time of all files in a wheel


def copied(folder: Path) -> Path:
    """Return a copy of the checkout without what tools have left there; it is built in its own folder."""
    folder.mkdir()
    for path in [
        *(CHECKOUT / name for name in TOP),
        *CHECKOUT.glob('*.md'),
        CHECKOUT / 'LICENSE',
        CHECKOUT / '.gitignore',
    ]:
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, folder / path.name, **({'ignore': JUNK} if path.is_dir() else {}))
    return folder


def build(source: Path, kind: str) -> Path:
    """Build an sdist or a wheel with the installed setuptools, and return its path."""
    code = f'import setuptools.build_meta as b; b.build_{kind}("dist")'
    environment = {**os.environ, 'SOURCE_DATE_EPOCH': SECONDS, 'PYTHONPATH': ''}
    done = subprocess.run([sys.executable, '-c', code], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next((source / 'dist').iterdir())


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    """The source distribution, unpacked."""
    pytest.importorskip('setuptools', minversion='77')
    folder = tmp_path_factory.mktemp('sdist')
    with tarfile.open(build(copied(folder / 'checkout'), 'sdist')) as archive:
        archive.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    (top,) = folder.glob('selectors_reactor-*')
    return top


def test_the_source_distribution_has_all_files_of_the_checkout(unpacked):
    def files(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}

    missing = files(copied(unpacked.parent / 'again')) - files(unpacked)
    assert not missing


def test_the_tests_run_from_the_source_distribution(unpacked):
    tests = 'tests/net/test_addresses.py', 'tests/net/test_multicast.py', 'tests/project/test_scenarios.py'
    command = [sys.executable, '-m', 'pytest', '-q', '-n', '0', '-p', 'no:cacheprovider', *tests]
    done = subprocess.run(
        command,
        cwd=unpacked,
        env={**os.environ, 'PYTHONPATH': str(unpacked)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_same_source_gives_the_same_wheel(unpacked, tmp_path):
    wheels = []
    for number, name in enumerate(('one', 'two')):
        source = tmp_path / name
        shutil.copytree(unpacked, source)
        for path in source.rglob('*'):
            os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
        wheels.append(build(source, 'wheel'))
    assert wheels[0].name == wheels[1].name == f'selectors_reactor-{reactor.__version__}-py3-none-any.whl'
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = wheel.namelist()
    assert 'reactor/py.typed' in names and 'reactor/observe/live.html' in names
    assert not [name for name in names if not name.startswith(('reactor/', 'selectors_reactor-'))]


def test_the_description_on_an_index_has_no_link_to_a_file():
    text = METADATA['metadata']['long_description']
    assert len(text) > 500 and 'pip install' in text
    assert not re.findall(r'\]\((?!https?:)|<(?:img|source)', text)


def test_the_license_is_named_once():
    assert METADATA['metadata']['license'] == 'MIT'
    assert 'License ::' not in METADATA['metadata']['classifiers']


def test_pytest_finds_the_options_of_the_fixture_when_only_a_test_file_names_it(tmp_path):
    """An installed distribution registers the plugin before pytest reads its command line."""
    entries = METADATA['options.entry_points']['pytest11'].strip()
    info = tmp_path / 'site' / 'selectors_reactor-0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: selectors-reactor\nVersion: 0\n')
    (info / 'entry_points.txt').write_text(f'[pytest11]\n{entries}\n')
    (tmp_path / 'test_it.py').write_text(
        "pytest_plugins = ['reactor.testing.fixture']\n\n\n"
        'def test_it(simulate):\n    seeds = []\n    simulate(lambda world: seeds.append(world.random))\n'
        '    assert len(seeds) == 1\n'
    )
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-c', os.devnull, '--rootdir', '.']
    environment = {**os.environ, 'PYTHONPATH': f'{CHECKOUT}{os.pathsep}{tmp_path / "site"}'}
    done = subprocess.run(
        [*command, '--seed', '17', 'test_it.py'], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert '1 passed' in done.stdout, done.stdout + done.stderr
