"""Run one target under atheris, which is libFuzzer for Python.

This module must not import the reactor, nor anything that imports it: atheris instruments the modules of the reactor
while they are imported, and has to be set up before that. The simulated systems are not instrumented: they are tools
of the search, not its subject.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from . import CORPUS, TARGETS

NOT_INSTRUMENTED = ('testing', 'demo')  # subpackages
LONGEST_RUN = 60  # seconds for one input, after which libFuzzer reports it as a hang


def main(arguments: list[str]) -> NoReturn:
    """Run the target that the first argument names, and pass the other arguments to libFuzzer. Does not return."""
    if not arguments or arguments[0] not in TARGETS:
        raise SystemExit(f'usage: python -m tests.fuzz TARGET [libFuzzer options]; targets: {", ".join(TARGETS)}')
    name, *options = arguments
    try:
        import atheris
    except ImportError:
        raise SystemExit("atheris is not installed; run: pip install -e '.[test,fuzz]'") from None
    with atheris.instrument_imports(include=['reactor'], exclude=excluded()):
        target = import_module(f'tests.fuzz.{name}')
    atheris.Setup([sys.argv[0], *defaults(target), *options, *folders(name, options)], target.run)
    atheris.Fuzz()
    raise AssertionError('libFuzzer should have ended the process')


def excluded() -> list[str]:
    """Return the names of all modules that are not instrumented; atheris needs each module, not only its package."""
    spec = find_spec('reactor')
    assert spec is not None and spec.origin is not None, 'the reactor is not installed'
    package = Path(spec.origin).parent
    paths = [path for room in NOT_INSTRUMENTED for path in (package / room).rglob('*.py')]
    names = ['.'.join(path.relative_to(package.parent).with_suffix('').parts) for path in paths]
    return [name.removesuffix('.__init__') for name in names]


def defaults(target: Any) -> list[str]:
    """Return the libFuzzer options for a target. Options on the command line come later and override these."""
    # By default, libFuzzer starts with short inputs and makes them longer too slowly for a search of 20 s.
    chosen = [f'-timeout={LONGEST_RUN}', f'-max_len={target.LONGEST_INPUT}', '-len_control=0']
    if target.WORDS:
        with tempfile.NamedTemporaryFile('w', suffix='.dict', delete=False) as file:
            file.writelines(f'"{escaped(word)}"\n' for word in target.WORDS)
        chosen.append(f'-dict={file.name}')
    return chosen


def escaped(word: bytes) -> str:
    """Return the word in the syntax of libFuzzer's dictionaries."""
    return ''.join(f'\\x{byte:02x}' for byte in word)


def folders(name: str, options: list[str]) -> list[str]:
    """Return a new folder for new inputs, and the corpus to start from, unless the options name files or folders."""
    if not all(option.startswith('-') for option in options):
        return []
    found = tempfile.mkdtemp(prefix=f'fuzz-{name}-')
    print(f'new inputs are written to {found}; copy the ones worth keeping to {CORPUS / name}')
    return [found, str(Path(CORPUS / name))]
