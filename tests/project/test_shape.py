"""Tests of the architecture: directions of imports, places of system calls, frames per callback, sizes of objects."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
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
# The packages from top to bottom: each imports only from itself and from the packages below it.
FLOORS = [
    'demo',
    'observe',
    'serve',
    'inspection',
    'activity',
    'testing',
    '__init__',
    'names',
    'toolbox',
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
LAZY = {
    'ssl',
    'subprocess',
    'logging',
    'watchdog.observers',
    'termios',
    'tty',
}  # modules that may be imported inside functions; watchdog is installed by an extra, and Windows has no terminals
HOT = {
    'handle_read', 'handle_write', 'write', 'call_soon', '_turn', '_poll', '_dispatch', '_run_timers', '_run_soon',
    '_run_completions', 'handle_due', 'collect', 'accept_client', 'finish', 'handle_closed', 'close', 'attach',
}  # fmt: skip
LONGEST_FUNCTION = 60  # lines, without the docstring: a function should fit on a screen
LONGEST_FILE = 400  # lines
# Files that may be longer, because splitting them would separate code that belongs together.
LONGER_FILES = {
    'loop/loop.py': 450,
    'net/stream.py': 450,
}

MODULES = sorted(ROOT.rglob('*.py'))


def floor(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix('.py')


def below_the_seam(path: Path) -> bool:
    return FLOORS.index(floor(path)) > FLOORS.index('facade')


@cache  # because each rule parses each module of the package
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(folder: Path, *words: str):
    """Generate (path, names) for each import in a folder. Files that contain none of the words are skipped."""
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
    """Generate (node, absolute module name, imported names) for each import, except imports for type checkers."""
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
    """Return a test that checks all modules at once, and names each module that breaks the rule.

    Separate tests for each module and rule would take longer to collect and report than to run.
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
    assert longest == LONGEST_FILE or lines > LONGEST_FILE, 'this file is short now: remove it from LONGER_FILES'


def siblings(path: Path) -> set[Path]:
    """Return the modules in the same package that a module imports, including imports for type checkers."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module.split('.')[0]] if node.module else [alias.name for alias in node.names]
            found |= {path.parent / f'{name}.py' for name in names}
    # `callbacks` is left out: packages below it import its types for type checkers, which another test checks.
    return found & set(MODULES) - {ROOT / 'callbacks.py'}


def reached(path: Path) -> set[Path]:
    """Return the modules in the same package that a module imports, directly or indirectly."""
    found: set[Path] = set()
    ahead = [path]
    while ahead:
        new = siblings(ahead.pop()) - found
        found |= new
        ahead += new
    return found


def test_no_package_has_circular_imports():
    """Imports for type checkers count too. The exception is `loop/`, where the loop and its parts import each other."""
    modules = [path for path in MODULES if path.name != '__init__.py' and path.parent != ROOT / 'loop']
    assert len({path.parent for path in modules}) > 8
    circular = {str(path.relative_to(ROOT)) for path in modules if path in reached(path)}
    assert circular == set()


def test_timers_import_buckets_and_not_the_other_way_round():
    timers, buckets = ROOT / 'loop' / 'timers.py', ROOT / 'loop' / 'buckets.py'
    assert siblings(timers) >= {buckets} and timers not in siblings(buckets)


@each_module
def test_only_the_kernel_package_makes_system_calls(path):
    if not below_the_seam(path) or floor(path) in ('kernel', 'hints'):
        return  # `hints` imports types of the standard library for annotations
    for node, module, names in imports(path):
        if module in SYSTEM:
            constants = isinstance(node, ast.ImportFrom) and all(name.isupper() for name in names)
            assert constants, f'{path}:{node.lineno} imports {module}'


# The parts of `perf/` from top to bottom. Each part imports only from itself and from the parts below it; no tool
# imports another tool.
PERF = PROJECT / 'perf'
TOOLS = {'compare', 'faults', 'imports', 'instructions', 'profiling', 'soak', 'visitors'}
PERF_FLOORS = [TOOLS, {'compare.peers'}, {'loads'}, {'common'}]


def perf_room(module: str) -> str:
    """Return the part of `perf` that a module belongs to. The peers are a separate part, because two tools run them."""
    parts = module.split('.')[1:]
    return '.'.join(parts[:2]) if parts[:2] == ['compare', 'peers'] else parts[0]


def perf_imports(path: Path):
    """Generate (line, absolute name) for each import in a file of `perf/`; the name includes the imported object."""
    package = list(path.relative_to(PROJECT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def perf_imports_that_climb(paths: list[Path]) -> list[str]:
    height = {room: number for number, rooms in enumerate(PERF_FLOORS) for room in rooms}
    found = []
    for path in paths:
        room = perf_room('.'.join(path.relative_to(PROJECT).with_suffix('').parts))
        for line, module in perf_imports(path):
            parts = module.split('.')
            if parts[0] == 'perf' and perf_room(module) != room and height[perf_room(module)] <= height[room]:
                found.append(f'{path.relative_to(PROJECT)}:{line} imports {module}')
    return found


def test_the_parts_of_perf_import_only_from_below():
    paths = [path for path in PERF.rglob('*.py') if path != PERF / '__init__.py']
    assert {path.relative_to(PERF).parts[0] for path in paths} == {'loads', 'common', *TOOLS}
    assert perf_imports_that_climb(paths) == []


def test_an_upward_import_in_perf_is_found(monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), 'PROJECT', tmp_path)
    (tmp_path / 'perf' / 'common').mkdir(parents=True)
    (tmp_path / 'perf' / 'faults').mkdir()
    wrong, right = tmp_path / 'perf' / 'common' / 'wrong.py', tmp_path / 'perf' / 'faults' / 'right.py'
    wrong.write_text('from perf.loads.wrk import Wrk\nfrom ..faults import case\nfrom . import machine\n')
    right.write_text('import perf.common.machine\nfrom perf.compare.peers import common\nfrom .case import Case\n')
    assert len(perf_imports_that_climb([wrong, right])) == 2
    right.write_text('from perf.compare import ratios\nfrom perf.soak import promises\n')
    assert len(perf_imports_that_climb([right])) == 2


@each_module
def test_imports_are_at_the_top(path):
    tree = parse(path)
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
                assert names <= LAZY, f'{path}:{node.lineno}'


def test_nothing_imports_asyncio():
    # These folders have programs that the reactor is compared with, or that share a process with it in a test. The
    # programs are run in separate processes, and no module imports them.
    others = {PROJECT / 'perf' / 'compare' / 'peers', PROJECT / 'tests' / 'reference'}
    found = set()
    for folder in ('reactor', 'tests', 'examples', 'perf'):
        for path, names in imported(PROJECT / folder, 'asyncio'):
            if any(name.split('.')[0] == 'asyncio' for name in names):
                found.add(path)
    assert found, 'some programs in these folders import asyncio, but this test did not find them'
    assert {path for path in found if path.parent not in others} == set()


def test_no_module_imports_the_programs_that_import_asyncio():
    programs = {path.stem for path in (PROJECT / 'tests' / 'reference').glob('*.py')}
    assert programs
    for path, names in imported(PROJECT / 'tests', 'reference', *programs):
        assert not any(part in ('reference', *programs) for name in names for part in name.split('.')), path


@each_module
def test_no_module_has_the_name_of_a_standard_library_module(path):
    assert path.stem.startswith('__') or path.stem not in sys.stdlib_module_names


@each_module
def test_each_module_begins_with_a_line_about_its_purpose(path):
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
def test_functions_fit_on_a_screen(path):
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


def test_no_clause_for_exhausted_memory_makes_a_tuple():
    clauses = [
        (path.name, node.lineno)
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple)
        if 'MemoryError' in ast.unparse(node.type)
    ]
    assert not clauses, 'the tuple itself needs memory: use reactor.errors.EXHAUSTION'


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
    # Datagrams have a separate `send`. TLS, and connections that are waiting for a PROXY header, have a separate
    # `recv`, because they do not pass the received bytes to the user.
    transports = {'send': 2, 'recv': 3}.get(name, 1)
    assert len(set(places)) == len(places) == transports, places


def test_failures_lists_the_packages_that_run_between_a_phase_and_a_callback():
    """A MemoryError in a package that is not listed would be mistaken for an error of the user's callback."""
    packages = {'.'.join(['reactor', *path.relative_to(ROOT).parts[:-1]]) for path in MODULES if below_the_seam(path)}
    assert packages == OWN_PACKAGES


def test_signals_lists_the_modules_of_the_standard_library_that_the_reactor_calls():
    """If a second Ctrl-C raised inside these modules, it would leave the reactor's own work half done."""
    used = {module for path in MODULES if below_the_seam(path) for _, module, _ in imports(path)}
    origins = {name: importlib.util.find_spec(name).origin for name in used & (SYSTEM | LAZY) - {'watchdog.observers'}}
    assert {name for name, origin in origins.items() if origin.endswith(('frozen', '.py'))} == _CALLED


def test_signals_lists_the_functions_that_call_user_code():
    """While one of these functions is calling user code, a second Ctrl-C raises at once."""
    for name in _PHASES:
        assert inspect.isfunction(getattr(reactor.Reactor, name, None) or getattr(closing, name)), name


def test_each_method_of_the_reactor_is_a_docstring_and_one_or_two_statements():
    """The code that listens, connects or starts a child is in other modules."""
    cls = next(node for node in parse(ROOT / 'facade.py').body if isinstance(node, ast.ClassDef))
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef) and not node.name.startswith('_')]
    assert methods and {method.name: len(method.body) - 1 for method in methods if len(method.body) > 3} == {}


def test_only_callbacks_is_imported_upward_for_type_checkers():
    """`callbacks` has the types of all callbacks, which the packages below it also use in annotations."""
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


# Public slots that can hold values of several types, and why each still has one meaning.
MIXED_SLOTS = {
    ('Connection', 'data'): 'belongs to the user',
    ('DatagramSocket', 'data'): 'belongs to the user',
    ('Connection', 'peer'): 'an address, whose form depends on the family',
    ('DatagramSender', 'peer'): 'an address, whose form depends on the family',
    ('ProxyHeader', 'peername'): 'an address, whose form depends on the family',
    ('ProxyHeader', 'source'): 'an address, whose form depends on the family',
    ('ProxyHeader', 'destination'): 'an address, whose form depends on the family',
    ('Options', 'keepalive'): 'as the user gave it: seconds, or a tuple of three numbers',
    ('Streams', 'tls_buffers'): 'of a class in net/, above this module',
    ('Streams', 'tls_class'): 'a class in net/, above this module',
    ('Buffers', 'ssl'): 'the module ssl, which is imported only for TLS',
    ('TLSSession', 'ssl'): 'the module ssl, which is imported only for TLS',
    ('Writer', 'marks'): 'a deque, which takes 700 bytes, or an empty tuple instead of an empty deque',
    ('SignalClaim', 'previous'): 'a signal handler, as `signal.signal` returned it',
}


def declared_slots() -> Iterator[tuple[str, str, list[str]]]:
    """Generate (class name, public slot, annotations) for each public slot of each class below the facade."""
    for path in below_the_facade:
        for cls in (node for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)):
            names = [
                element.value
                for node in cls.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__slots__'
                for element in ast.walk(node.value)
                if isinstance(element, ast.Constant)
            ]
            for name in names:
                found = [
                    ast.unparse(node.annotation)
                    for node in ast.walk(cls)
                    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in (name, f'self.{name}')
                ]
                if not name.startswith('_'):
                    yield cls.name, name, found


def united(annotation: ast.expr) -> Iterator[str]:
    """Generate the types in a union; a type that is not a union is generated alone."""
    if isinstance(annotation, ast.BinOp):
        yield from united(annotation.left)
        yield from united(annotation.right)
    else:
        yield ast.unparse(annotation)


def test_each_slot_has_one_meaning():
    """A slot holds an object of one type, or None. mypy checks that nothing else is stored there."""
    wrong = {}
    for cls, name, declared in declared_slots():
        types = set(united(ast.parse(declared[0], mode='eval').body)) if declared else {'Any'}
        mixed = len(set(declared)) != 1 or len(types - {'None'}) != 1 or 'Any' in types
        if mixed:
            wrong[cls, name] = declared
    assert wrong.keys() == MIXED_SLOTS.keys(), wrong


def test_a_stream_has_twenty_slots_and_nothing_else():
    assert len(slots(reactor.Stream)) == 20, slots(reactor.Stream)
    assert '__dict__' not in dir(reactor.Stream)


def test_a_timer_has_five_slots_and_nothing_else():
    assert len(slots(Timer)) == 5 == len(slots(RepeatingTimer))
    assert '__dict__' not in dir(Timer)


def test_a_reactor_has_slots_and_few_attributes_so_that_access_stays_fast():
    with reactor.Reactor(slow_callback=1) as r:
        assert len(vars(r)) < 10, (
            'with 30 or more, access to all becomes slow: attributes that the loop reads belong in slots'
        )


def frames_since(function: str) -> list[str]:
    """Return the names of the frames between the caller and the nearest outer frame of `function`."""
    frame = inspect.currentframe().f_back.f_back
    names = []
    while frame.f_code.co_name != function:
        names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names


def test_one_frame_is_between_the_dispatch_and_on_data(r, sockets):
    seen = []
    ours, theirs = sockets()
    conn = r.adopt(ours, lambda conn, data: seen.append(frames_since('_dispatch')))
    theirs.send(b'x')
    r.run_once(0)
    conn.close()
    r.run_once(0)
    assert seen == [['Stream.handle_read']]


@pytest.mark.parametrize('phase', ['_run_timers', '_run_soon'])
def test_no_frame_is_between_a_phase_and_its_callbacks(r, phase):
    seen = []

    def callback():
        seen.append(frames_since(phase))

    r.call_later(0, callback) if phase == '_run_timers' else r.call_soon(callback)
    r.run()
    assert seen == [[]]


def test_no_frame_is_between_the_completions_and_on_written(r, sockets):
    seen = []
    ours, _ = sockets()
    conn = r.adopt(ours)
    conn.write(b'x', lambda conn: seen.append(frames_since('_run_completions')))
    r.run_once(0)
    conn.close()
    r.run_once(0)
    assert seen == [[]]


def test_each_phase_of_the_turn_is_a_separate_function():
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
