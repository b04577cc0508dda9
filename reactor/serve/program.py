"""The command that starts this program again, and the directory in which it is started.

A worker is never a fork of a running loop: the parent starts the same command again, with the same interpreter options.
"""

from __future__ import annotations

import os
import sys

from .. import ReactorError


def folder() -> str | None:
    """Return the current directory of this process, or None if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


BEGAN_IN = folder()  # the base of relative paths in the command, even if the program changes its directory later


def command() -> list[str]:
    """Return the command that starts this program again. Raises `ReactorError` if there is none."""
    if os.name != 'posix':
        raise ReactorError(
            'workers inherit descriptors, which this platform does not support: use one process, reactor.run'
        )
    file = getattr(sys.modules['__main__'], '__file__', None)
    if not file or file == '<stdin>' or not sys.executable:
        raise ReactorError(
            'workers start this program again, which is not possible for code from -c, standard input or the prompt: '
            'put it into a file and run that file'
        )
    return [sys.executable, *sys.orig_argv[1:]]
