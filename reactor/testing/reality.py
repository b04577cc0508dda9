"""Refuse what a simulated program must not use: the real network, the real clock and real threads.

A call of such a function would reach the real world without a word, and a run could not be repeated. So these functions
are replaced while a simulation runs, and raise `NotSimulated` in its thread. In other threads they work as always.

The standard library and the tools that run tests may use them: `logging` reads the clock for each record. A function
that was imported by its own name (`from time import time`) is not replaced, nor is `datetime.now`.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Modules of tools that run tests, and of this package. What they call is not part of the program.
TOOLS = {'_pytest', 'coverage', 'execnet', 'hypothesis', 'pluggy', 'pytest', 'pytest_timeout', 'reactor', 'xdist'}

REAL_NETWORK = 'it uses the real network. Use r.connect_tcp, r.listen_tcp, r.bind_udp or another method of the reactor'
REAL_LOOK_UP = 'it looks up the name with the real resolver, and blocks the loop. Use r.resolve'
REAL_CLOCK = "it reads the real clock. Use r.now, the loop's clock in seconds"
# The object and the name of each function, how a program calls it, and why it is refused.
REFUSED: tuple[tuple[Any, str, str, str], ...] = (
    (socket, 'create_connection', 'socket.create_connection', REAL_NETWORK),
    (socket, 'getaddrinfo', 'socket.getaddrinfo', REAL_LOOK_UP),
    (socket, 'gethostbyname', 'socket.gethostbyname', REAL_LOOK_UP),
    (socket.socket, 'bind', 'socket.bind', REAL_NETWORK),
    (socket.socket, 'connect', 'socket.connect', REAL_NETWORK),
    (socket.socket, 'connect_ex', 'socket.connect_ex', REAL_NETWORK),
    (socket.socket, 'sendto', 'socket.sendto', REAL_NETWORK),
    (threading.Thread, 'start', 'threading.Thread.start', 'it starts a real thread. Use r.run_in_thread'),
    (time, 'monotonic', 'time.monotonic', REAL_CLOCK),
    (time, 'sleep', 'time.sleep', 'it blocks the loop, and no simulated time passes. Use r.call_later'),
    (time, 'time', 'time.time', REAL_CLOCK),
)
ORIGINALS = {(owner, name): getattr(owner, name) for owner, name, *_ in REFUSED}
_lock = threading.Lock()
_runs: dict[int, Callable[[str], object]] = {}  # maps each thread with a simulation to the function that is called


class NotSimulated(RuntimeError):
    """A program in a simulated run has used the real network, the real clock or a real thread."""


class Refusal:
    """Refuses the real world in this thread: `with Refusal(report): ...`. Runs in several threads can overlap.

    Args:
        report: Called with the sentence for each refused call, because a program may catch the exception.
    """

    def __init__(self, report: Callable[[str], object]) -> None:
        self._report = report
        self._before: Callable[[str], object] | None = None

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with _lock:
            if not _runs:
                for refused in REFUSED:
                    _replace(*refused)
            self._before = _runs.get(thread)
            _runs[thread] = self._report

    def __exit__(self, *exc: object) -> None:
        thread = threading.get_ident()
        with _lock:
            if self._before is None:
                del _runs[thread]
            else:
                _runs[thread] = self._before  # a simulation inside a simulation is over
            if not _runs:
                for owner, name, *_ in REFUSED:
                    _restore(owner, name)


class Refused:
    """A function in place of a real one. It is a class so that `_restore` recognizes it."""

    def __init__(self, original: Any, called: str, reason: str) -> None:
        self._original = original
        self._called = called
        self._reason = reason

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return (
            self if instance is None else Refused(self._original.__get__(instance, owner), self._called, self._reason)
        )

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        report = _runs.get(threading.get_ident())
        place = None if report is None else _place_in_program(sys._getframe(1), nearest=self._reason is REAL_CLOCK)
        if report is not None and place is not None:
            text = (
                f'{self._called} was called in a simulated run, at {place}: {self._reason}, '
                'or pass allow_real=True to the simulation'
            )
            report(text)
            raise NotSimulated(text)
        return self._original(*args, **keywords)


def _place_in_program(frame: Any, nearest: bool) -> str | None:
    """Return the file and line of the program's call.

    None if a tool has made the call, or, with `nearest`, the standard library.
    """
    while frame is not None:
        module = frame.f_globals.get('__name__', '').partition('.')[0]
        if module in TOOLS or (nearest and module in sys.stdlib_module_names):
            return None
        if module not in sys.stdlib_module_names:
            return f'{frame.f_code.co_filename}:{frame.f_lineno}'
        frame = frame.f_back
    return None


def _replace(owner: Any, name: str, called: str, reason: str) -> None:
    original = ORIGINALS[owner, name]
    if getattr(owner, name) is original:  # otherwise the user has replaced it, for example by a clock of their own
        setattr(owner, name, Refused(original, called, reason))


def _restore(owner: Any, name: str) -> None:
    if not isinstance(vars(owner).get(name), Refused):
        return
    inherited = isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:])
    if inherited:
        delattr(owner, name)
    else:
        setattr(owner, name, ORIGINALS[owner, name])
