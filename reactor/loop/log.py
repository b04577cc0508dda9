"""The log: logger `reactor` of the standard library, and how its messages name objects.

Reporting an error never fails its caller. A logger may raise, a descriptor limit may make even `import logging` fail,
standard error may be closed, and the repr of an object or the str of an exception may raise: none of this turns one
error into another. Only `KeyboardInterrupt` and `SystemExit` pass. So every line goes through `log`, and every foreign
object in a message through `describe` or `name_of`.

A program that has not imported `logging` has not configured it either, so the logging module sends its lines to
standard error.
"""

from __future__ import annotations

import functools
import sys
from types import CodeType

EPISODE = 60.0  # seconds: a problem that occurs again after this long is logged again
LONGEST = 1000  # characters of one object in a message


def log(level: str, message: str, *args: object, exc: BaseException | None = None) -> None:
    """Log `message % args` at `level` ('debug', 'warning', 'error'), with the traceback of `exc`, if there is one.

    Arguments that are not numbers are passed to the logger as text, made by `describe`.
    """
    try:
        texts = tuple(arg if type(arg) in (int, float) else describe(arg) for arg in args)
        try:
            import logging

            info = None if exc is None else (type(exc), exc, exc.__traceback__)  # logging tests whether it is true
            getattr(logging.getLogger('reactor'), level)(message, *texts, exc_info=info)
        except MemoryError:
            raise
        except Exception as failure:
            _print(f'{message % texts} (not logged: {describe(failure)})', exc)
    except Exception:
        pass  # the line is lost; it matters more that the caller goes on


def describe(value: object) -> str:
    """Return text for a message: an exception or string as it is, the repr of anything else. Never raises.

    Cut to LONGEST characters.
    """
    try:
        text = str(value) if isinstance(value, str | BaseException) else repr(value)
    except Exception:
        return f'{object.__repr__(value)}, whose repr failed'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}... ({len(text):,} characters)'


def name_of(fn: object) -> str:
    """Return the module and qualified name of a callback. Never raises."""
    try:
        while isinstance(fn, functools.partial):
            fn = fn.func
        module, name = getattr(fn, '__module__', None), getattr(fn, '__qualname__', None)
        if type(name) is str:
            return describe(f'{module}.{name}')
    except Exception:
        pass  # a callable object may have properties with these names, which raise
    return describe(fn)


def place_of(code: CodeType, module: object) -> str:
    """Return where a function is defined, as `app.handlers.on_data (handlers.py:12)`."""
    file = code.co_filename.replace('\\', '/').rpartition('/')[2]
    return describe(f'{module}.{code.co_qualname} ({file}:{code.co_firstlineno})')


def _print(line: str, exc: BaseException | None) -> None:
    stderr = sys.stderr
    if stderr is not None:  # it is None under pythonw; print() would write to standard output then
        print(line, file=stderr)
        if exc is not None:
            sys.__excepthook__(type(exc), exc, exc.__traceback__)
