"""The log: logger `reactor` of the standard library, and how its messages name objects.

Owns the way of a line to the logger. The rule: reporting an error never fails its caller. Neither the logger (a handler
or filter that raises, a descriptor limit at which even importing `logging` fails, a closed standard error) nor what is
reported (an object whose repr raises, an exception whose str raises) may turn one error into another. Only
`KeyboardInterrupt` and `SystemExit` pass. So every line goes through `log`, and every foreign object in a message goes
through `describe` or `name_of`.

A program that has not imported `logging` has configured nothing either, so its lines go where logging's own last
resort would send them, to standard error.
"""

from __future__ import annotations

import functools
import sys

EPISODE = 60.0  # seconds without a trouble, after which it is logged again
LONGEST = 1000  # characters of one object in a message; a repr may have any number


def log(level: str, message: str, *args: object, exc: BaseException | None = None) -> None:
    """Log `message % args` at `level` ('debug', 'warning', 'error'), with the traceback of `exc`, if any.

    Arguments other than numbers are passed to the logger as the text that `describe` makes of them.
    """
    try:
        texts = tuple(arg if type(arg) in (int, float) else describe(arg) for arg in args)
        try:
            import logging

            told = None if exc is None else (type(exc), exc, exc.__traceback__)  # logging asks whether it is true
            getattr(logging.getLogger('reactor'), level)(message, *texts, exc_info=told)
        except MemoryError:
            raise
        except Exception as failure:
            _print(f'{message % texts} (not logged: {describe(failure)})', exc)
    except Exception:
        pass  # Nothing is left to report with. The caller goes on, which matters more than this line.


def describe(value: object) -> str:
    """Return the text of an exception or string, and the repr of anything else, for a message; never raises.

    Cut at LONGEST characters.
    """
    try:
        text = str(value) if isinstance(value, str | BaseException) else repr(value)
    except Exception:
        return f'{object.__repr__(value)}, whose repr failed'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}... ({len(text):,} characters)'


def name_of(fn: object) -> str:
    """Return the name of a callback as a person would look for it, module and qualified name; never raises."""
    try:
        while isinstance(fn, functools.partial):
            fn = fn.func
        module, name = getattr(fn, '__module__', None), getattr(fn, '__qualname__', None)
        if type(name) is str:
            return describe(f'{module}.{name}')
    except Exception:
        pass  # a callable object may have properties by these names, which raise
    return describe(fn)


def _print(line: str, exc: BaseException | None) -> None:
    stderr = sys.stderr
    if stderr is not None:  # as it is under pythonw; print() would write to standard output instead
        print(line, file=stderr)
        if exc is not None:
            sys.__excepthook__(type(exc), exc, exc.__traceback__)
