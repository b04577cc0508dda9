"""Checks for arguments that are numbers, flags, paths or callbacks.

All methods share them, so the same mistake gives the same message everywhere. The method that gets a wrong value
refuses it, and the message names the argument and shows the value. A bool is not a number here: `idle_timeout=True` is
a mistake, not one second.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from .log import describe, place_of

FOREVER = 1e15  # seconds (31 million years); longer times are cut to this, so that they can be added to a clock reading
LONGEST_REPR = 100  # how many characters of a value a message shows
INFINITY = float('inf')
ASYNC = 0x80 | 0x200  # CO_COROUTINE and CO_ASYNC_GENERATOR: the function is defined with `async def`
TAKES_ANY_NUMBER = 0x04  # CO_VARARGS, in the flags of a code object: the function has `*args`


def shown(value: object) -> str:
    """Return the repr of a value for a message, cut to LONGEST_REPR characters. Never raises."""
    text = describe(repr(value) if type(value) is str else value)
    return text if len(text) <= LONGEST_REPR else f'{text[:LONGEST_REPR]}...'


def number(name: str, value: Any, unit: str = 'number of seconds') -> float:
    """Return a finite int or float, cut to FOREVER.

    Raises TypeError if `value` is neither an int nor a float, and ValueError for NaN and infinity.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f'{name} must be a {unit}, not {shown(value)}')
    if value != value or value in (INFINITY, -INFINITY):
        raise ValueError(f'{name} must be a finite {unit}, not {value!r}')
    return max(-FOREVER, min(value, FOREVER))


def seconds(name: str, value: Any) -> float:
    """Return a duration, which must be at least 0. Raises as `number` does, and ValueError for a negative value."""
    duration = number(name, value)
    if duration < 0:
        raise ValueError(f'{name} must be a finite number of seconds, at least 0, not {shown(value)}')
    return duration


def time_limit(name: str, value: Any, hint: str = '') -> float:
    """Return a duration, which must be above 0.

    A limit of 0 would expire at once; the caller may have meant "no limit". Raises as `seconds` does, and ValueError
    for 0.
    """
    limit = seconds(name, value)
    if limit == 0:
        raise ValueError(f'{name} must be a number of seconds above 0, not {value!r}{hint}')
    return limit


def whole(name: str, value: Any, least: int, most: int | None = None, unit: str = 'number of bytes') -> int:
    """Return an int from `least` to `most`. Raises TypeError if it is not an int, ValueError if it is out of range."""
    bounds = f'at least {least}' if most is None else f'{least} to {most}'
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{name} must be a {unit}, {bounds}, not {shown(value)}')
    if value < least or (most is not None and value > most):
        raise ValueError(f'{name} must be a {unit}, {bounds}, not {shown(value)}')
    return int(value)


def optional_count(name: str, value: Any) -> int | None:
    """Return an int of at least 0, or None. Raises TypeError if it is neither, ValueError if it is negative."""
    if value is not None and type(value) is not int:
        raise TypeError(f'{name} must be None or an int, not {shown(value)}')
    if value is not None and value < 0:
        raise ValueError(f'{name} must be None or at least 0, not {value!r}')
    return value


def file_path(name: str, value: Any) -> None:
    """Check the path of a file or directory: str, bytes or os.PathLike. Raises TypeError or ValueError."""
    if not isinstance(value, str | bytes) and not hasattr(value, '__fspath__'):
        raise TypeError(f'{name} must be a path (a str, bytes or os.PathLike), not {shown(value)}')
    if b'\0' in (value if isinstance(value, bytes) else str(value).encode('utf-8', 'surrogatepass')):
        raise ValueError(f'{name} must be a path without a NUL inside, not {shown(value)}')


def check_parts(selector: Any, kernel: Any) -> None:
    """Check the `selector` and `kernel` of a reactor. Raises TypeError, or ValueError if the selector is not new."""
    if selector is not None and not hasattr(selector, 'get_map'):
        raise TypeError(f'selector must be None or a selector of the module selectors, not {shown(selector)}')
    if selector is not None and (selector.get_map() is None or len(selector.get_map())):
        raise ValueError(f'selector must be a new one, which the reactor fills and closes; {shown(selector)} is in use')
    if kernel is not None and not hasattr(kernel, 'clock'):
        raise TypeError(f'kernel must be None or a kernel such as reactor.kernel.Kernel(), not {shown(kernel)}')


def callback(name: str, fn: Any, arguments: str = '', more: int = 0) -> None:
    """Raise TypeError unless `fn` can be called with `arguments`, such as '(conn, data)', and `more` further values.

    A coroutine function is refused, too: calling it runs nothing.
    """
    if not callable(fn):
        hint = '; was it called instead of passed?' if fn is None else ''
        raise TypeError(f'{name} must be callable, not {shown(fn)}{hint}')
    if is_async(fn):
        refuse_async(name, fn)
    if arguments:
        function = fn.__func__ if type(fn) is MethodType else fn
        if type(function) is FunctionType:
            bound = function is not fn
            own = 0 if arguments == '()' else arguments.count(',') + 1
            wrong = _misfit(function, own + more + bound, bound)
            if wrong:
                place = place_of(function.__code__, function.__module__)
                raise TypeError(f'{name} is called with {_shape(arguments, more)}, but {place} {wrong}')


def _shape(arguments: str, more: int) -> str:
    if arguments == '()':
        return f'{more} argument{"" if more == 1 else "s"}'
    return f'{arguments[:-1]}, *args), {more} of them yours' if more else arguments


def is_async(fn: Any) -> bool:
    """Return whether `fn` is a function or method that is defined with `async def`."""
    if type(fn) is MethodType:
        fn = fn.__func__
    return type(fn) is FunctionType and fn.__code__.co_flags & ASYNC != 0


def refuse_async(name: str, fn: Any) -> None:
    """Raise TypeError for a coroutine function."""
    place = place_of(fn.__code__, fn.__module__)
    raise TypeError(f'{name} must not be {place}: it is an `async def` function and would never run; use def')


def _misfit(function: FunctionType, given: int, bound: bool) -> str:
    """Return why a function cannot take `given` positional arguments (the first is `self` if `bound`), or ''."""
    code = function.__code__
    most, names = code.co_argcount, code.co_varnames
    for name in names[most : most + code.co_kwonlyargcount]:
        if name not in (function.__kwdefaults__ or ()):
            return f'needs the keyword argument {name}'
    least, endless = most - len(function.__defaults__ or ()), code.co_flags & TAKES_ANY_NUMBER
    if least <= given and (given <= most or endless):
        return ''
    least, most = least - bound, most - bound
    count = f'at least {least}' if endless else f'{least}' if least == most else f'{least} to {most}'
    return f'takes {count} argument{"" if count == "1" else "s"}'


def switch(name: str, value: Any) -> bool:
    """Return a bool. Raises TypeError for anything but True, False, 1 and 0."""
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f'{name} must be True or False, not {shown(value)}')
    return bool(value)
