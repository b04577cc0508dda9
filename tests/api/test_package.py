"""The package `reactor`: what an import loads, which parts are reached through it, and what a missing extra says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reactor

PARTS = ('observe', 'serve', 'testing')


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, timeout=60)


def test_an_import_loads_none_of_the_parts_that_few_programs_need():
    done = run('import sys, reactor; print(*sys.modules)')
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert 'reactor.loop.loop' in loaded
    assert not [name for name in loaded if name.startswith(tuple(f'reactor.{part}' for part in PARTS))]
    assert not {'inspect', 'ssl', 'logging', 'dataclasses', 'asyncio'} & set(loaded)


@pytest.mark.parametrize('part', PARTS)
def test_a_part_is_reached_through_the_package(part):
    done = run(f'import reactor; print(reactor.{part}.__name__)')
    assert (done.stdout, done.stderr) == (f'reactor.{part}\n', '')


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'reactor' has no attribute 'observ'"):
        reactor.observ  # noqa: B018
    assert not hasattr(reactor, '__wrapped__')


def test_metrics_without_their_package_say_what_to_install():
    code = "import sys; sys.modules['prometheus_client'] = None; import reactor; reactor.observe.serve_metrics"
    last = run(code).stderr.strip().splitlines()[-1]
    assert last == (
        'ModuleNotFoundError: observe.serve_metrics needs the package prometheus_client; install it with '
        "pip install '.[metrics]' in a checkout of this library, or with pip install 'prometheus_client>=0.20'"
    )


def test_watched_paths_without_their_package_say_what_to_install():
    code = "import sys; sys.modules['watchdog.observers'] = None\nimport reactor\n"
    last = run(code + "reactor.run(lambda r: r.watch_path('.', print))").stderr.strip().splitlines()[-1]
    assert 'pip install' in last and "'.[paths]'" in last and 'watchdog' in last
