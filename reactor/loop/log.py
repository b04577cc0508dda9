"""Logs to the logger `reactor` of the standard library, and names objects in messages.

Logging never makes its caller fail. A logger may raise, a descriptor limit may make even `import logging` fail,
standard error may be closed, and the repr of an object or the str of an exception may raise: none of these errors
reaches the caller, except `KeyboardInterrupt` and `SystemExit`. So every line is logged with `log`, and objects of
other code are converted with `describe` or `name_of` before they are put in a message.

A program that has not imported `logging` has not configured it either, so the logging module sends its lines to
standard error.
"""

from __future__ import annotations

import functools
import sys
from types import CodeType
from typing import Any

EPISODE = 60.0  # seconds after which a problem that occurs again is logged again
LONGEST = 1000  # how many characters of one object a message shows


def log(level: str, message: str, *args: object, exc: BaseException | None = None) -> None:
    """Log `message % args` at `level` ('debug', 'warning', 'error'), with the traceback of `exc`, if there is one.

    Arguments that are not numbers are passed to the logger as text, made by `describe`.
    """
    try:
        texts = tuple(arg if type(arg) in (int, float) else describe(arg) for arg in args)
        try:
            import logging

            # Do not pass `exc` itself: `logging` tests whether `exc_info` is true, and an exception may be false.
            info = None if exc is None else (type(exc), exc, exc.__traceback__)
            getattr(logging.getLogger('reactor'), level)(message, *texts, exc_info=info)
        except MemoryError:
            raise
        except Exception as failure:
            _print(f'{message % texts} (not logged: {describe(failure)})', exc)
    except Exception:
        pass  # the line is lost, because the caller must be able to continue


def describe(value: object) -> str:
    """Return text for a message: an exception or string as it is, the repr of anything else. Never raises.

    The text is cut to LONGEST characters.
    """
    try:
        text = str(value) if isinstance(value, str | BaseException) else repr(value)
    except Exception:
        return f'{object.__repr__(value)}, whose repr failed'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}... ({len(text):,} characters)'


def called_by(fn: Any) -> Any:
    """Return the user's function that a partial, or an object of a class with `leads_to`, calls. Never raises."""
    while True:
        if issubclass(type(fn), functools.partial):
            fn = fn.func
        elif type(name := vars(type(fn)).get('leads_to')) is str:
            fn = getattr(fn, name)
        else:
            return fn


def name_of(fn: object) -> str:
    """Return the module and qualified name of a callback. Never raises."""
    try:
        fn = called_by(fn)
        module, name = getattr(fn, '__module__', None), getattr(fn, '__qualname__', None)
        if type(name) is str:
            return describe(f'{module}.{name}')
    except Exception:
        pass  # a callable object may have properties with these names, and reading them may raise
    return describe(fn)


def place_of(code: CodeType, module: object) -> str:
    """Return where a function is defined, such as `app.handlers.on_data (handlers.py:12)`."""
    file = code.co_filename.replace('\\', '/').rpartition('/')[2]
    return describe(f'{module}.{code.co_qualname} ({file}:{code.co_firstlineno})')


def _print(line: str, exc: BaseException | None) -> None:
    stderr = sys.stderr
    if stderr is not None:  # it is None under pythonw, and print(file=None) would write to standard output
        print(line, file=stderr)
        if exc is not None:
            sys.__excepthook__(type(exc), exc, exc.__traceback__)
