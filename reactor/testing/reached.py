"""Which time limits, timers and error paths of a program some run has reached, and which of them none has.

A simulation records what its program has: the time limits that it passes to `listen_tcp`, `connect_tcp` and
`set_timeouts`, its timers, and its callbacks for errors and for rare events. It also records which of them were
reached. Both are sets of sentences, so the runs of many seeds, also those of other processes, are added up with
`merge`. No object of the program is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ..errors import ConnectTimeout, HandshakeTimeout, IdleTimeout, ReadTimeout, WriteTimeout
from .places import is_users, program_name

# The options that are time limits, as `listen_tcp` and `connect_tcp` name them, and the errors that they end with.
LIMITS: dict[str, type[BaseException]] = {
    'read_timeout': ReadTimeout,
    'write_timeout': WriteTimeout,
    'idle_timeout': IdleTimeout,
    'timeout': ConnectTimeout,
    'handshake_timeout': HandshakeTimeout,
}
RARE = ('eof', 'drain', 'error')  # callbacks of connections; `on_close` counts if it gets an exception
Limits = Mapping[type[BaseException], str]  # the time limits of a connection: each error, and what it is called here

_names: dict[Any, str] = {}  # by code object: a name takes longer to find than a call of the function


class Reached:
    """What the program of one run, or of many, has, and what of it was reached."""

    def __init__(self, there: Iterable[str] = (), reached: Iterable[str] = (), runs: int = 0) -> None:
        self.there: set[str] = set(there)
        self.reached: set[str] = set(reached)
        self.runs: int = runs

    def merge(self, other: Reached) -> None:
        """Add what other runs have reached."""
        self.there |= other.there
        self.reached |= other.reached
        self.runs += other.runs

    def never(self) -> list[str]:
        """Return what no run has reached, sorted."""
        return sorted(self.there - self.reached)

    def as_list(self) -> list[Any]:
        """Return the arguments that make an equal object, for JSON."""
        return [sorted(self.there), sorted(self.reached), self.runs]

    # -- called while a program runs

    def add_limits(self, limits: Mapping[str, Any], method: str, place: str) -> Limits:
        """Record the time limits among the arguments of a call.

        Args:
            limits: The keyword arguments of the call.
            method: The name of the method.
            place: Where the program has called it, such as `server.py:12, in main`.

        Returns:
            The errors of these limits, to be passed to `ended` when a connection ends.
        """
        found = {LIMITS[name]: f'{name} of {method} at {place}' for name in LIMITS if limits.get(name) is not None}
        self.there.update(found.values())
        return found

    def add_timer(self, fn: Any) -> str:
        """Record the function of a timer; return what to pass to `reach` when the timer fires."""
        text = f'the timer of {name_of(fn)}'
        self.there.add(text)
        return text

    def add_callback(self, kind: str, fn: Callable[..., object]) -> None:
        """Record a callback, if it is one for errors or rare events; `kind` is 'eof' for `on_eof`."""
        if (kind == 'close' or kind in RARE) and is_users(getattr(fn, '__module__', None) or ''):
            self.there.add(_callback(kind, fn))

    def reach(self, text: str) -> None:
        """Record that this was reached."""
        self.reached.add(text)

    def called(self, kind: str, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Record a call of a connection's callback."""
        if kind in RARE or (kind == 'close' and args[0] is not None):
            self.reached.add(_callback(kind, fn))

    def ended(self, exc: BaseException | None, limits: Limits) -> None:
        """Record that a connection has ended with this exception, and had these time limits."""
        for error, text in limits.items():
            if isinstance(exc, error):
                self.reached.add(text)

    def watch_accept_error(self, fn: Callable[..., object]) -> Callable[..., object]:
        """Record an `on_accept_error`; return the function that takes its place and records its calls."""
        text = _callback('accept_error', fn)
        self.there.add(text)

        def watched(*args: Any) -> None:
            self.reached.add(text)
            fn(*args)

        return watched


def show_never(reached: Reached) -> list[str]:
    """Return the lines of a report; the first says how many seeds ran."""
    never, seeds = reached.never(), f'{reached.runs:,} seed{"s" * (reached.runs != 1)}'
    if not never:
        return [f'every time limit, timer and error path was reached in {seeds}']
    return [f'never reached in {seeds}:', *(f'    {text}' for text in never)]


def name_of(fn: Any) -> str:
    """Return the name of a function as `program_name` does, but faster."""
    while isinstance(fn, partial):
        fn = fn.func
    code = getattr(fn, '__code__', None) or type(fn)
    name = _names.get(code)
    if name is None:
        name = _names[code] = program_name(fn)
    return name


def _callback(kind: str, fn: Any) -> str:
    return f'on_{kind}{" with an exception" if kind == "close" else ""}: {name_of(fn)}'
