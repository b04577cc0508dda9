"""The command that starts this program again, and the directory in which it is started.

A worker is never a fork of a running loop: the parent starts the same command again, with the same interpreter options.
"""

from __future__ import annotations

import os
import sys

from .. import ReactorError
from ..loop.log import log


def _directory() -> str | None:
    """Return the current directory of this process, or None if it has been removed.

    $PWD is preferred. It can lead through a symbolic link, which may point to the next release later.
    """
    path = os.environ.get('PWD', '')
    try:
        if os.path.isabs(path) and os.path.samefile(path, '.'):
            return path
    except OSError:
        pass  # the directory that $PWD names has been removed
    try:
        return os.getcwd()
    except OSError:
        return None


BEGAN_IN = _directory()  # the base of relative paths in the command, even if the program changes its directory later


def directory() -> str | None:
    """Return the directory to start a worker in. None: it has been removed, so the worker gets the parent's."""
    if BEGAN_IN is None or os.path.isdir(BEGAN_IN):
        return BEGAN_IN
    log(
        'warning',
        'the directory %s, in which this program was started, has been removed: a worker is started without it. '
        'Start the program in a directory that stays, such as the symbolic link to the current release',
        BEGAN_IN,
    )
    return None


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
    return [_interpreter(), *sys.orig_argv[1:]]


def _interpreter() -> str:
    # `sys.executable` is an absolute path: it no longer has the symbolic link through which a relative one was found.
    name = sys.orig_argv[0]
    if BEGAN_IN is not None and os.path.dirname(name) and not os.path.isabs(name):
        path = os.path.join(BEGAN_IN, name)
        try:
            if os.path.samefile(path, sys.executable):
                return path
        except OSError:
            pass
    return sys.executable
