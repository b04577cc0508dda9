"""The package `reactor`: what an import loads, which parts are reached through it, and what a missing extra says."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reactor

PARTS = ('observe', 'serve', 'testing')


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, timeout=60)


def printed(code: str) -> str:
    """Run a program and return what it prints. It must end without an error or a warning."""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, ''), done.stderr
    return done.stdout.strip()


# -- what is loaded, and when


def test_an_import_loads_no_other_module():
    code = 'import sys; before = {*sys.modules}; import reactor; print(*{*sys.modules} - before)'
    assert printed(code) == 'reactor'


def test_a_name_of_a_tool_loads_nothing():
    """Tools such as `inspect.unwrap` and `doctest` ask every module for names of their own."""
    code = "import sys, reactor; print(hasattr(reactor, '__wrapped__'), 'reactor.names' in sys.modules)"
    assert printed(code) == 'False False'


def test_a_server_loads_none_of_the_parts_that_few_programs_need_and_nothing_after_the_first_use_of_a_name():
    loaded, later = printed("""
import sys
before = {*sys.modules}
import reactor

def main(r):
    listener = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data), on_close=lambda conn, exc: r.stop())
    client = r.connect_tcp(*listener.address, lambda conn, data: conn.close(), on_connect=lambda conn: conn.write(b'x'))
    r.call_later(9, lambda: None)

reactor.run
loaded = {*sys.modules}
reactor.run(main, slow_callback=5)
print(*loaded - before)
print('later:', *{*sys.modules} - loaded)
""").splitlines()
    assert 'reactor.loop.loop' in loaded.split() and later.split() == ['later:']
    parts = tuple(f'reactor.{part}' for part in ('toolbox', *PARTS))
    assert not [name for name in loaded.split() if name.startswith(parts)]
    heavy = {'asyncio', 'concurrent.futures', 'dataclasses', 'inspect', 'logging', 'ssl', 'subprocess'}
    assert not heavy & {*loaded.split()}


def test_every_module_can_be_the_first_one_that_is_imported():
    """Unpickling, for example, imports the module of a class. Circular imports would then fail in some orders."""
    found = pkgutil.walk_packages(reactor.__path__, 'reactor.')
    names = [each.name for each in found if not each.name.endswith('__main__') and '.fixture' not in each.name]
    assert len(names) > 120
    code = f"""
import importlib, sys
for name in {names!r}:
    for each in [each for each in sys.modules if each.partition('.')[0] == 'reactor']:
        del sys.modules[each]
    try:
        importlib.import_module(name)
    except ImportError as exc:
        print(name, exc)
"""
    assert not [line for line in printed(code).splitlines() if 'prometheus' not in line]


# -- the first use of a name


@pytest.mark.parametrize(
    'code',
    [
        "reactor.Reactor.__name__ == 'Reactor'",
        "{*reactor.__all__, 'serve', 'observe', 'testing', '__version__'} <= {*dir(reactor)}",
        'all(getattr(reactor, name) is not None for name in reactor.__all__)',
        "typing.get_type_hints(reactor.Reactor.listen_tcp)['return'] is reactor.Listener",
        "typing.get_type_hints(reactor.run)['return'] is bool",
        "'class Reactor' in pydoc.render_doc(reactor, renderer=pydoc.plaintext)",
        "pickle.loads(b'creactor\\nTimer\\n.') is reactor.Timer",
        "pickle.loads(b'creactor.errors\\nTLSError\\n.') is reactor.TLSError",
        'not isinstance(1, reactor.Stream) and issubclass(reactor.TLSError, reactor.ReactorError)',
        'reactor.kernel.Kernel().clock() > 0',  # a message names this class
        "not hasattr(reactor, 'Readtor') and hasattr(reactor, 'Reactor')",
    ],
)
def test_the_first_use_of_the_package_can_be(code):
    assert printed(f'import pickle, pydoc, typing, reactor; print({code})') == 'True'


def test_every_name_that_the_documents_show_is_there():
    project = Path(__file__).parents[2]
    texts = [path.read_text() for path in (project / 'README.md', *(project / 'docs').rglob('*.md'))]
    names = {name for text in texts for name in re.findall(r'\breactor\.([A-Z]\w+|run|reconnect|framing)\b', text)}
    assert len(names) > 8
    assert printed(f'import reactor; print([name for name in {sorted(names)} if not hasattr(reactor, name)])') == '[]'


def test_import_star_imports_the_public_names():
    code = 'from reactor import *; import reactor; print({*reactor.__all__} - {*globals()}, Reactor, Group)'
    assert printed(code) == "set() <class 'reactor.facade.Reactor'> <class 'reactor.toolbox.group.Group'>"


def test_the_public_names_are_those_of_the_module_names():
    names = {name for name in vars(reactor.names) if name.isidentifier() and not name.startswith('_')}
    assert names - {'TYPE_CHECKING', 'reactor'} == {*reactor.__all__} - {*reactor._LATER}


def test_a_name_that_the_program_has_replaced_stays_replaced():
    assert printed('import reactor; reactor.Reactor = 1; reactor.Timer; print(reactor.Reactor)') == '1'


def test_several_threads_can_use_the_package_first():
    code = """
import threading, reactor
start, found = threading.Barrier(8), []

def use(name):
    start.wait()
    found.append(getattr(reactor, name))

names = ['Reactor', 'Timer', 'run', 'TLSError', 'framing', 'READ', 'WRITE', 'Process']
threads = [threading.Thread(target=use, args=(name,)) for name in names]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(len(found))
"""
    assert printed(code) == '8'


@pytest.mark.skipif(sys.platform == 'win32', reason='the limit of descriptors is set with the module resource')
def test_without_a_free_descriptor_the_first_use_fails_as_opening_a_file_does_and_later_uses_work():
    code = """
import errno, resource, reactor

def most(count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
most(0)
try:
    reactor.Reactor
except OSError as exc:
    failed = exc.errno == errno.EMFILE
most(soft)
reactor.Reactor
most(0)
few = [name for name in reactor.__all__ if name not in reactor._LATER]
print(failed, all(getattr(reactor, name) for name in few))
"""
    assert printed(code) == 'True True'


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
