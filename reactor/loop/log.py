"""The log: logger `reactor` of the standard library.

Owns how a line gets there. The rule: logging never fails its caller, least of all at the descriptor limit, where even
importing the `logging` module fails, or when no memory is left for a line. A program that has not imported it has
configured nothing either, so its lines go where logging's own last resort would send them, to standard error.
"""

from __future__ import annotations

import sys


def log(level: str, message: str, *args: object, exc: BaseException | None = None) -> None:
    """Log `message % args` at `level` ('debug', 'warning', 'error'), with the traceback of `exc`, if any."""
    try:
        import logging

        getattr(logging.getLogger('reactor'), level)(message, *args, exc_info=exc)
    except OSError:  # no descriptor is left to read the module with
        print(message % args, file=sys.stderr)
        if exc is not None:
            sys.excepthook(type(exc), exc, exc.__traceback__)
    except MemoryError:
        pass  # the caller is about to give some back, which helps more than this line
