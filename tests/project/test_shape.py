"""The architecture, as tests: who imports whom, where the system is called, how short the path, how small a thing."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import reactor
from reactor.loop import closing
from reactor.loop.failures import OWN_PACKAGES
from reactor.loop.signals import _CALLED, _PHASES
from reactor.loop.timers import RepeatingTimer, Timer

ROOT = Path(reactor.__file__).parent
PROJECT = ROOT.parent
# The house, from the roof down: a room imports from its own floor and from below.
FLOORS = [
    'demo',
    'observe',
    'serve',
    'testing',
    '__init__',
    'facade',
    'callbacks',
    'framing',
    'system',
    'kinds',
    'admission',
    'net',
    'loop',
    'kernel',
    'hints',
    'errors',
]
SYSTEM = {'socket', 'select', 'selectors', 'time', 'os', 'signal', 'threading', 'subprocess'}
LAZY = {'ssl', 'subprocess', 'logging', 'watchdog.observers'}  # the last is an extra's
HOT = {
    'handle_read', 'handle_write', 'write', 'call_soon', '_turn', '_poll', '_dispatch', '_run_timers', '_run_soon',
    '_run_completions', 'handle_due', 'collect', 'accept_client', 'finish', 'handle_closed', 'close', 'attach',
}  # fmt: skip
LONGEST_FUNCTION = 60  # lines, docstring apart: a screen
LONGEST_FILE = 400  # lines
# Files that may be longer: each is one thing.
LONGER_FILES = {
    'loop/loop.py': 450,
    'net/stream.py': 450,
}

MODULES = sorted(ROOT.rglob('*.py'))


def floor(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix('.py')


def below_the_seam(path: Path) -> bool:
    return FLOORS.index(floor(path)) > FLOORS.index('facade')


@cache  # each rule reads each module of the package
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(folder: Path, *words: str):
    """(path, names) of each import in a folder, in files that contain one of the words: no other can import it."""
    for path in sorted(folder.rglob('*.py')):
        text = path.read_text()
        if any(word in text for word in words):
            for node in ast.walk(ast.parse(text, str(path))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
                yield path, names


def for_type_checkers(tree: ast.Module) -> set[ast.AST]:
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING']
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def imports(path: Path):
    """(node, absolute module name, imported names) of each import that is run."""
    tree = parse(path)
    skipped = for_type_checkers(tree)
    package = ['reactor', *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield node, '.'.join([*base, *([node.module] if node.module else [])]), [a.name for a in node.names]


def each_module(rule: Callable[[Path], None], modules: list[Path] = MODULES) -> Callable[[], None]:
    """Check all modules in one test and name each that breaks the rule.

    A test for each module and rule would take longer to be collected and reported than to run.
    """

    def test() -> None:
        broken = []
        for path in modules:
            try:
                rule(path)
            except AssertionError as exc:
                broken.append(f'{path.relative_to(ROOT)}: {exc}')
        assert not broken, '\n'.join(broken)

    test.__doc__ = rule.__doc__
    return test


@each_module
def test_imports_only_point_down(path):
    for _, module, names in imports(path):
        if module == 'reactor' or module.startswith('reactor.'):
            parts = module.split('.')[1:]
            target = parts[0] if parts else '__init__'
            if not parts and names and all((ROOT / f'{name}.py').exists() or (ROOT / name).is_dir() for name in names):
                target = names[0]
            assert FLOORS.index(target) >= FLOORS.index(floor(path)), f'{path} imports {module}'


@each_module
def test_files_are_short(path):
    lines = path.read_text().count('\n')
    longest = LONGER_FILES.get(str(path.relative_to(ROOT)), LONGEST_FILE)
    assert lines <= longest, f'{lines} lines'
    assert longest == LONGEST_FILE or lines > LONGEST_FILE, 'it is short by now: take it out of LONGER_FILES'


def siblings(path: Path) -> set[Path]:
    """The modules of the same room that a module imports, for type checkers too."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module.split('.')[0]] if node.module else [alias.name for alias in node.names]
            found |= {path.parent / f'{name}.py' for name in names}
    # `callbacks` types the rooms below it, and is looked up to; a test of its own pins that.
    return found & set(MODULES) - {ROOT / 'callbacks.py'}


def reached(path: Path) -> set[Path]:
    """The modules of the same room that a module imports, or that these import."""
    found: set[Path] = set()
    ahead = [path]
    while ahead:
        new = siblings(ahead.pop()) - found
        found |= new
        ahead += new
    return found


def test_no_room_has_a_circle_of_imports():
    """For type checkers neither. The parts of `loop/` know the loop, which is made of them."""
    modules = [path for path in MODULES if path.name != '__init__.py' and path.parent != ROOT / 'loop']
    assert len({path.parent for path in modules}) > 8
    circular = {str(path.relative_to(ROOT)) for path in modules if path in reached(path)}
    assert circular == set()


def test_timers_and_buckets_import_nothing_of_each_other_that_makes_a_circle():
    timers, buckets = ROOT / 'loop' / 'timers.py', ROOT / 'loop' / 'buckets.py'
    assert siblings(timers) >= {buckets} and timers not in siblings(buckets)


@each_module
def test_only_the_kernel_calls_the_system(path):
    if not below_the_seam(path) or floor(path) in ('kernel', 'hints'):
        return  # annotations name the types of the standard library that `hints` imports
    for node, module, names in imports(path):
        if module in SYSTEM:
            constants = isinstance(node, ast.ImportFrom) and all(name.isupper() for name in names)
            assert constants, f'{path}:{node.lineno} imports {module}'


@each_module
def test_imports_stand_at_the_top(path):
    tree = parse(path)
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
                assert names <= LAZY, f'{path}:{node.lineno}'


def test_nothing_imports_asyncio():
    # What the reactor is measured against, and what shares a process with it in a test: programs that are run as
    # processes of their own and that no module imports.
    others = {PROJECT / 'perf' / 'peers', PROJECT / 'tests' / 'reference'}
    found = set()
    for folder in ('reactor', 'tests', 'examples', 'perf'):
        for path, names in imported(PROJECT / folder, 'asyncio'):
            if any(name.split('.')[0] == 'asyncio' for name in names):
                found.add(path)
    assert found, 'the programs to compare with import it, so this test does not find what it looks for'
    assert {path for path in found if path.parent not in others} == set()


def test_nothing_imports_the_programs_that_import_asyncio():
    programs = {path.stem for path in (PROJECT / 'tests' / 'reference').glob('*.py')}
    assert programs
    for path, names in imported(PROJECT / 'tests', 'reference', *programs):
        assert not any(part in ('reference', *programs) for name in names for part in name.split('.')), path


@each_module
def test_no_module_is_named_like_one_of_the_standard_library(path):
    assert path.stem.startswith('__') or path.stem not in sys.stdlib_module_names


@each_module
def test_a_module_opens_with_one_line_that_says_what_it_is_for(path):
    first, _, rest = (ast.get_docstring(parse(path)) or '').partition('\n')
    assert first.endswith('.') and len(first.split()) > 2, path
    assert not rest.split('\n')[0].strip(), path


def test_no_two_classes_have_the_same_name():
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    shared = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not shared


@each_module
def test_functions_fit_a_screen(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert body[-1].end_lineno - body[0].lineno < LONGEST_FUNCTION, f'{path}:{node.name}'


def every_frame_has_a_name(path: Path) -> None:
    """No lambda or partial below the facade, and no comprehension or nested function on the hot path."""
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Lambda), f'{path}:{node.lineno}'
        assert not (isinstance(node, ast.Name) and node.id == 'partial'), f'{path}:{node.lineno}'
        if isinstance(node, ast.FunctionDef) and node.name in HOT:
            for inner in ast.walk(node):
                nameless = (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp, ast.Yield, ast.YieldFrom)
                assert not isinstance(inner, nameless), f'{path}:{inner.lineno}'
                assert inner is node or not isinstance(inner, ast.FunctionDef), f'{path}:{inner.lineno}'


below_the_facade = [path for path in MODULES if floor(path) in ('system', 'kinds', 'admission', 'loop', 'net')]
test_every_frame_has_a_name = each_module(every_frame_has_a_name, below_the_facade)


@pytest.mark.parametrize('name', ['accept', 'recv', 'send', 'sendmsg', 'shutdown', 'recvfrom', 'sendto'])
def test_each_system_call_of_a_transport_has_one_place(name):
    places = [
        path.name
        for path in MODULES
        if floor(path) in ('admission', 'net')
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
        if not ast.unparse(node.func).startswith('super()')
    ]
    # Datagrams are sent by a call of their own; TLS, and who awaits a PROXY header, read for themselves: what they
    # receive is not what the user gets.
    transports = {'send': 2, 'recv': 3}.get(name, 1)
    assert len(set(places)) == len(places) == transports, places


def test_failures_know_the_packages_that_run_between_a_phase_and_a_callback():
    """Memory that runs out in one that is missing would be taken for an error of the user's callback."""
    packages = {'.'.join(['reactor', *path.relative_to(ROOT).parts[:-1]]) for path in MODULES if below_the_seam(path)}
    assert packages == OWN_PACKAGES


def test_signals_know_what_the_reactor_calls_of_the_standard_library():
    """In a function of these a second Ctrl-C would leave our own work half done."""
    used = {module for path in MODULES if below_the_seam(path) for _, module, _ in imports(path)}
    origins = {name: importlib.util.find_spec(name).origin for name in used & (SYSTEM | LAZY) - {'watchdog.observers'}}
    assert {name for name, origin in origins.items() if origin.endswith(('frozen', '.py'))} == _CALLED


def test_signals_know_the_functions_that_call_the_user():
    """Below one of these a second Ctrl-C raises at once."""
    for name in _PHASES:
        assert inspect.isfunction(getattr(reactor.Reactor, name, None) or getattr(closing, name)), name


def test_each_method_of_the_reactor_is_a_docstring_and_a_line_or_two():
    """What it takes to listen, to connect, to start a child stands where listeners, connections and children are."""
    cls = next(node for node in parse(ROOT / 'facade.py').body if isinstance(node, ast.ClassDef))
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef) and not node.name.startswith('_')]
    assert methods and {method.name: len(method.body) - 1 for method in methods if len(method.body) > 3} == {}


def test_only_callbacks_is_looked_up_to_by_type_checkers():
    """It has the types of all callbacks, which the rooms below are typed with, too."""
    up = [
        f'{path.relative_to(ROOT)}: {node.module}'
        for path in MODULES
        for node in for_type_checkers(parse(path))
        if isinstance(node, ast.ImportFrom) and node.level
        for target in [(path.relative_to(ROOT).parts[: -node.level] + tuple((node.module or '').split('.')))[0]]
        if FLOORS.index(target or '__init__') < FLOORS.index(floor(path)) and target != 'callbacks'
    ]
    assert up == ['callbacks.py: facade']


def slots(cls: type) -> list[str]:
    return [name for base in cls.__mro__ for name in base.__dict__.get('__slots__', ())]


def test_a_stream_has_twenty_slots_and_nothing_else():
    assert len(slots(reactor.Stream)) == 20, slots(reactor.Stream)
    assert '__dict__' not in dir(reactor.Stream)


def test_a_timer_has_five_slots_and_nothing_else():
    assert len(slots(Timer)) == 5 == len(slots(RepeatingTimer))
    assert '__dict__' not in dir(Timer)


def test_a_reactor_has_few_attributes_but_slots_so_that_some_more_do_not_slow_it_down():
    with reactor.Reactor(slow_callback=1) as r:
        assert len(vars(r)) < 10, 'the 30th makes each of them slow: what the loop asks for belongs into its slots'


def frames_since(function: str) -> list[str]:
    """The names of the frames between the caller and the next outer frame of `function`."""
    frame = inspect.currentframe().f_back.f_back
    names = []
    while frame.f_code.co_name != function:
        names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names


def test_one_frame_lies_between_the_dispatch_and_on_data(r, sockets):
    seen = []
    ours, theirs = sockets()
    conn = r.adopt(ours, lambda conn, data: seen.append(frames_since('_dispatch')))
    theirs.send(b'x')
    r.run_once(0)
    conn.close()
    r.run_once(0)
    assert seen == [['Stream.handle_read']]


@pytest.mark.parametrize('phase', ['_run_timers', '_run_soon'])
def test_no_frame_lies_between_a_phase_and_its_callbacks(r, phase):
    seen = []

    def callback():
        seen.append(frames_since(phase))

    r.call_later(0, callback) if phase == '_run_timers' else r.call_soon(callback)
    r.run()
    assert seen == [[]]


def test_no_frame_lies_between_the_completions_and_on_written(r, sockets):
    seen = []
    ours, _ = sockets()
    conn = r.adopt(ours)
    conn.write(b'x', lambda conn: seen.append(frames_since('_run_completions')))
    r.run_once(0)
    conn.close()
    r.run_once(0)
    assert seen == [[]]


def test_each_phase_of_the_turn_is_a_function_of_its_own():
    for phase in ('_poll', '_dispatch', '_run_timers', '_run_soon', '_run_completions'):
        assert inspect.isfunction(getattr(reactor.Reactor, phase))


@pytest.mark.parametrize('name', sorted(reactor.__all__))
def test_every_public_name_is_explained(name):
    value = getattr(reactor, name)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return
    assert value.__doc__
    for attribute, member in vars(value).items() if inspect.isclass(value) else ():
        if not attribute.startswith('_') and (inspect.isfunction(member) or isinstance(member, property)):
            inherited = [getattr(base, attribute, None) for base in value.__mro__[1:]]
            assert member.__doc__ or any(getattr(other, '__doc__', None) for other in inherited), attribute


def test_the_package_imports_quickly_and_little():
    """No runtime dependency, and none of the standard library's heavy modules on the import path.

    `typing` is there: without it the hints of the public methods could not be evaluated (see below). It takes a quarter
    of the time of the import, and nearly every program that uses the reactor imports it anyway.
    """
    import subprocess

    code = 'import sys; import reactor; print(*sys.modules)'
    done = subprocess.run(
        [sys.executable, '-S', '-c', code], capture_output=True, text=True, check=True, cwd=PROJECT, timeout=30
    )
    loaded = set(done.stdout.split())
    assert not loaded & {
        'asyncio',
        'concurrent.futures',
        'dataclasses',
        'logging',
        'subprocess',
        'ssl',
        'inspect',
    }
