"""Where a program is defined, and where its exceptions come from, as a person writes it."""

from __future__ import annotations

import os
from functools import partial
from sys import _getframe
from typing import Any

PACKAGE = __name__.partition('.')[0]


def program_name(program: Any) -> str:
    """Return the name of a program, such as `server:talk`. For a lambda or an inner function, add its file and line."""
    while isinstance(program, partial):
        program = program.func
    module, name = getattr(program, '__module__', None), getattr(program, '__qualname__', None)
    if name is None:
        return f'{type(program).__module__}:{type(program).__qualname__}'
    if '<' not in name:
        return f'{module}:{name}'
    code = getattr(program, '__code__', None)
    outer, _, inner = name.partition('.<locals>.')
    shown = f'{module}:{outer}' if inner else f'{module}'
    line = f', line {code.co_firstlineno} of {os.path.basename(code.co_filename)}' if code else ''
    return f'{shown} ({"a lambda" if name.endswith("<lambda>") else inner}{line})'


def can_be_imported(program: Any) -> bool:
    """Return whether `from module import name` gives this program."""
    name = getattr(program, '__qualname__', '')
    return not isinstance(program, partial) and name.isidentifier() and program.__module__ != '__main__'


def place_of(exc: BaseException) -> str:
    """Return where the program raised an exception, such as ` at server.py:12, in on_data`; '' if that is unknown."""
    place, traceback = '', exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if is_users(frame.f_globals.get('__name__', '')):
            place = f' at {os.path.basename(frame.f_code.co_filename)}:{traceback.tb_lineno}, in {frame.f_code.co_name}'
        traceback = traceback.tb_next
    return place


def place_of_caller(depth: int) -> str:
    """Return the place of the call that is `depth` frames above the caller of this function."""
    frame = _getframe(depth + 1)
    return f'{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}, in {frame.f_code.co_name}'


def is_users(module: str) -> bool:
    """Return whether a module belongs to the program, and not to the reactor."""
    return module.partition('.')[0] != PACKAGE or module.startswith(f'{PACKAGE}.testing.programs')
