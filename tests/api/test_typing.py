"""The types: hints can be evaluated, classes are exported, and type checkers find the mistakes in user programs.

The programs are in `typing/`. Programs in `right/` have no mistakes. In `wrong/`, a comment marks each line that has a
mistake, and names the kind of the mistake.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import reactor
import reactor.observe
import reactor.serve.certificates
from reactor import Handle, Reactor
from tests.helpers.support import INTERNAL

PROJECT = Path(reactor.__file__).parent.parent
PROGRAMS = Path(__file__).parents[1] / 'typing'
SCRIPTS = Path(sysconfig.get_path('scripts'))
MODULES = [reactor, reactor.framing, reactor.observe, reactor.serve, reactor.serve.systemd, reactor.serve.certificates]
COMPLETE = 98.0  # minimum percentage of public names whose types are known
# Errors that pyright reports in strict mode as a consequence of another error.
AFTERMATH = re.compile('reportUnknown|reportUnused')

# The kinds of mistakes that ty does not find yet. It finds all other kinds.
MISSED_BY_TY = {
    'args',  # arguments that do not match the callback before them: ty does not solve a TypeVarTuple
    'name after Self',  # a nonexistent attribute of a lambda's parameter that a base class declares as `Self`
    'shared option',  # an option that is in none of the TypedDicts of the method
}


# -- at run time


def public() -> Iterator[tuple[str, Any]]:
    """Generate every public function and class, and every public method and property of these classes."""
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                yield f'{module.__name__}.{name}', value
            for attribute, member in inspect.getmembers(value) if inspect.isclass(value) else ():
                if attribute.startswith('_') and attribute not in ('__init__', '__call__', '__enter__', '__exit__'):
                    continue
                if attribute == '__init__' and issubclass(value, Handle):
                    continue  # users do not construct handles; the reactor's methods return them
                for fn in (member.fget, member.fset) if isinstance(member, property) else (member,):
                    if isinstance(fn, FunctionType) and fn.__module__.startswith('reactor'):
                        yield f'{module.__name__}.{name}.{attribute}', fn


def test_the_hints_of_every_public_callable_can_be_evaluated():
    broken, count = [], 0
    for name, value in public():
        count += 1
        try:
            typing.get_type_hints(value)
        except Exception as exc:
            broken.append(f'{name}: {exc!r}')
    assert count > 300
    assert broken == []


def named(hint: Any) -> Iterator[Any]:
    """Generate a type hint and all hints inside it."""
    yield hint
    for inner in typing.get_args(hint):
        if isinstance(inner, list):
            for one in inner:
                yield from named(one)
        else:
            yield from named(inner)


def test_every_class_that_a_user_can_hold_is_exported():
    exported = [getattr(module, name) for module in MODULES for name in module.__all__]
    missing = {
        f'{name}: {hint.__name__}'
        for name, value in public()
        if name.startswith('reactor.')
        if not inspect.isclass(value) and name.rpartition('.')[2] not in INTERNAL
        for hint in named(typing.get_type_hints(value).get('return'))
        if inspect.isclass(hint) and hint.__module__.startswith('reactor') and hint not in exported
    }
    assert missing == set()


# -- checkers


def tool(name: str) -> str:
    path = SCRIPTS / name
    if not path.exists():
        pytest.skip(f"UNTESTED: there is no {name} in {SCRIPTS}; install it with: pip install -e '.[typing]'")
    return str(path)


def run(*command: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=PROGRAMS,
        env={**os.environ, 'PYTHONPATH': str(PROJECT), 'NO_COLOR': '1'},
        timeout=110,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def found(pattern: str, text: str) -> dict[tuple[str, int], str]:
    return {(file, int(line)): message for file, line, message in re.findall(pattern, text, re.M)}


@cache
def errors(checker: str, cache_folder: str) -> dict[tuple[str, int], str]:
    """Run a checker on all programs; return its message for each file and line."""
    if checker == 'mypy':
        options = '--config-file=', '--strict', '--no-pretty', '--explicit-package-bases', f'--cache-dir={cache_folder}'
        return found(r'^(.+?):(\d+): error: (.*)$', run(tool('mypy'), *options, 'right', 'wrong'))
    if checker == 'ty':
        options = '--python', sys.executable, '--extra-search-path', str(PROJECT), '--output-format', 'concise'
        return found(r'^(.+?):(\d+):\d+: error(.*)$', run(tool('ty'), 'check', *options, 'right', 'wrong'))
    said = json.loads(run(tool('pyright'), '-p', '.', '--pythonpath', sys.executable, '--outputjson'))
    assert said['summary']['filesAnalyzed'] == len(list(PROGRAMS.glob('*/*.py')))
    return {
        (os.path.relpath(each['file'], PROGRAMS), each['range']['start']['line'] + 1): each['message']
        for each in said['generalDiagnostics']
        if each['severity'] == 'error' and not ('wrong/' in each['file'] and AFTERMATH.match(each.get('rule', '')))
    }


def marks() -> dict[tuple[str, int], str]:
    """Find each line with a mistake, and the kind of the mistake."""
    return {
        (str(path.relative_to(PROGRAMS)), number): line.partition('# wrong: ')[2]
        for path in sorted(PROGRAMS.glob('wrong/*.py'))
        for number, line in enumerate(path.read_text().split('\n'), 1)
        if '# wrong: ' in line
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp('mypy'))


@pytest.mark.slow
@pytest.mark.parametrize('checker', ['mypy', 'pyright', 'ty'])
def test_no_checker_refuses_a_right_program(checker, folder):
    assert len(list(PROGRAMS.glob('right/*.py'))) >= 4
    assert {place: said for place, said in errors(checker, folder).items() if place[0].startswith('right')} == {}


@pytest.mark.slow
@pytest.mark.parametrize('checker', ['mypy', 'pyright', 'ty'])
def test_a_checker_finds_the_mistakes_in_the_wrong_programs_and_nothing_else(checker, folder):
    said = {place: what for place, what in errors(checker, folder).items() if place[0].startswith('wrong')}
    missed = MISSED_BY_TY if checker == 'ty' else set()
    must = {place for place, kind in marks().items() if kind not in missed}
    assert {place: what for place, what in said.items() if place not in marks()} == {}
    assert must - set(said) == set()
    for kind in missed:  # when ty starts to find a kind, remove it from MISSED_BY_TY
        assert not {place for place, of in marks().items() if of == kind} & set(said), kind


def test_each_method_and_each_callback_has_a_wrong_call():
    wrong = [PROGRAMS.joinpath(file).read_text().split('\n')[line - 1] for file, line in marks()]
    used = {word for line in wrong for word in re.findall(r'\w+', line.partition('#')[0])}
    kinds = [Reactor, reactor.Stream, reactor.Listener, reactor.DatagramSocket, reactor.Timer, reactor.Process]
    options = [reactor.ListenOptions, reactor.ConnectOptions, reactor.DatagramOptions, reactor.ReactorOptions]
    names = {
        name
        for kind in kinds
        for name, value in inspect.getmembers(kind)
        if not name.startswith(('_', 'handle_')) and getattr(value, '__doc__', None)
        if isinstance(value, property) or (inspect.isfunction(value) and name not in INTERNAL)
    }
    names |= {name for each in options for name in each.__optional_keys__}
    assert names - used == set()


@pytest.mark.slow
def test_nearly_every_public_name_of_the_package_has_a_type():
    said = json.loads(
        run(
            tool('pyright'),
            *('--pythonpath', sys.executable, '--verifytypes', 'reactor', '--ignoreexternal', '--outputjson'),
        )
    )
    complete = said['typeCompleteness']
    untyped = [each['name'] for each in complete['symbols'] if each['isExported'] and not each['isTypeKnown']]
    assert len(complete['symbols']) > 1000
    assert 100 * complete['completenessScore'] >= COMPLETE, untyped[:50]


def test_the_marker_for_type_checkers_is_in_the_package():
    assert (PROJECT / 'reactor' / 'py.typed').exists()
    assert 'reactor = py.typed' in (PROJECT / 'setup.cfg').read_text()


def test_the_programs_can_be_parsed():
    for path in PROGRAMS.glob('*/*.py'):
        ast.parse(path.read_text(), str(path))
