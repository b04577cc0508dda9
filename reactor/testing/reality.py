"""Refuse what a simulated program must not use: the real network, the real clock and real threads.

A call of such a function would reach the real world without a word, and a run could not be repeated. So these functions
are replaced while a simulation runs, and raise `NotSimulated` in its thread and in its simulated threads. In these,
`time.sleep` lets simulated time pass. In other threads the functions work as always.

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

REAL_NETWORK = 'it uses the real network'
ENDPOINTS = 'Use r.connect_tcp, r.listen_tcp, r.bind_udp or another method of the reactor'
REAL_LOOK_UP = 'it looks up the name with the real resolver'
REAL_THREAD = 'it starts a real thread'
REAL_CLOCK = 'it reads the real clock'
IN_THREAD = 'In the test, replace the blocking function by one that calls time.sleep, which is simulated, and returns'
CLOCK = "Use r.now, the loop's clock in seconds"
# The object and the name of each function, how a program calls it, why it is refused, and what to do instead.
REFUSED: tuple[tuple[Any, str, str, str, str], ...] = (
    (socket, 'create_connection', 'socket.create_connection', REAL_NETWORK, ENDPOINTS),
    (socket, 'getaddrinfo', 'socket.getaddrinfo', REAL_LOOK_UP, 'Use r.resolve'),
    (socket, 'gethostbyname', 'socket.gethostbyname', REAL_LOOK_UP, 'Use r.resolve'),
    (socket.socket, 'bind', 'socket.bind', REAL_NETWORK, ENDPOINTS),
    (socket.socket, 'connect', 'socket.connect', REAL_NETWORK, ENDPOINTS),
    (socket.socket, 'connect_ex', 'socket.connect_ex', REAL_NETWORK, ENDPOINTS),
    (socket.socket, 'sendto', 'socket.sendto', REAL_NETWORK, ENDPOINTS),
    (threading.Thread, 'start', 'threading.Thread.start', REAL_THREAD, 'Use r.run_in_thread'),
    (time, 'monotonic', 'time.monotonic', REAL_CLOCK, CLOCK),
    (time, 'sleep', 'time.sleep', 'it blocks the loop, and no simulated time passes', 'Use r.call_later'),
    (time, 'time', 'time.time', REAL_CLOCK, CLOCK),
)
ORIGINALS = {(owner, name): getattr(owner, name) for owner, name, *_ in REFUSED}
SLEEP = ORIGINALS[time, 'sleep']
_lock = threading.Lock()
_runs: dict[int, Refusal] = {}  # maps each thread with a simulation to what it refuses


class NotSimulated(RuntimeError):
    """A program in a simulated run has used the real network, the real clock or a real thread."""


class Refusal:
    """Refuses the real world in this thread: `with Refusal(report): ...`. Runs in several threads can overlap.

    Args:
        report: Called with the sentence for each refused call, because a program may catch the exception.
        sleep: In a simulated thread: called in place of `time.sleep`. None: this is the thread of the loop.
    """

    def __init__(self, report: Callable[[str], object], sleep: Callable[[float], object] | None = None) -> None:
        self.report: Callable[[str], object] = report
        self.sleep: Callable[[float], object] | None = sleep
        self._before: Refusal | None = None
        self._thread = 0

    def __enter__(self) -> None:
        self._thread = thread = threading.get_ident()
        with _lock:
            if not _runs:
                for refused in REFUSED:
                    _replace(*refused)
            self._before = _runs.get(thread)
            _runs[thread] = self

    def __exit__(self, *exc: object) -> None:
        with _lock:
            if self._before is None:
                _runs.pop(self._thread, None)  # a thread that was abandoned may end later
            else:
                _runs[self._thread] = self._before  # a simulation inside a simulation is over
            if not _runs:
                for owner, name, *_ in REFUSED:
                    _restore(owner, name)


class Refused:
    """A function in place of a real one. It is a class so that `_restore` recognizes it."""

    def __init__(self, original: Any, called: str, reason: str, instead: str) -> None:
        self._original = original
        self._called = called
        self._reason = reason
        self._instead = instead

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        return Refused(self._original.__get__(instance, owner), self._called, self._reason, self._instead)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        run = _runs.get(threading.get_ident())
        place = None if run is None else _place_in_program(sys._getframe(1), nearest=self._reason is REAL_CLOCK)
        if run is None or place is None:
            return self._original(*args, **keywords)
        if run.sleep is not None and self._original is SLEEP:
            return run.sleep(*args, **keywords)
        instead = self._instead if run.sleep is None or self._reason is REAL_CLOCK else IN_THREAD
        text = (
            f'{self._called} was called in a simulated run, at {place}: {self._reason}. {instead}, '
            'or pass allow_real=True to the simulation'
        )
        run.report(text)
        raise NotSimulated(text)


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


def _replace(owner: Any, name: str, called: str, reason: str, instead: str) -> None:
    original = ORIGINALS[owner, name]
    if getattr(owner, name) is original:  # otherwise the user has replaced it, for example by a clock of their own
        setattr(owner, name, Refused(original, called, reason, instead))


def _restore(owner: Any, name: str) -> None:
    if not isinstance(vars(owner).get(name), Refused):
        return
    inherited = isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:])
    if inherited:
        delattr(owner, name)
    else:
        setattr(owner, name, ORIGINALS[owner, name])
