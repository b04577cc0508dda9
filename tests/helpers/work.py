"""An exact measure of the work that a call does: it is the same on every run and on every machine.

The unit is one bytecode that CPython executes, in any frame: of the reactor, of the standard library, or of the test's
callbacks, which should be cheap. Python 3.12 and later report bytecodes through `sys.monitoring`, older versions
through opcode tracing. Two versions of Python differ by a few percent.

Some functions written in C do as much work as a loop, but are called by one bytecode. The functions in FUNCTIONS and
METHODS visit each element of their argument, so each element counts as one more bytecode. Copying counts as one
bytecode for each BYTES bytes. This counts more than the real cost, so that a few elements are enough to show excessive
growth. The following work is not counted here; `tests/laws/test_work_in_c.py` counts some of it as user instructions:

    slices and concatenations of bytes; the search of `find`; `del` and `pop` near the head of a list
    before Python 3.12: types and functions called with an argument, such as `min(d)`, `sorted(d)`, `list(d)`
    the kernel's work for a system call, and OpenSSL
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from itertools import pairwise
from typing import Any

BYTES = 64  # copying this many bytes counts as one bytecode
CONTAINERS = (list, tuple, set, frozenset, dict, deque, OrderedDict, bytes, bytearray)
FUNCTIONS = (min, max, sum, sorted, any, all, list, tuple, set, frozenset, dict, deque, bytes, bytearray)
METHODS = {'remove', 'index', 'count', 'copy', 'sort', 'reverse'}  # methods of a list or a deque
TOOL = 3  # a free tool id of `sys.monitoring`


def elements(function: Any, first: Any) -> int:
    """Return the extra bytecodes for a call to `function`, counted from the elements of `first`, its first argument."""
    if isinstance(first, (list, deque)):
        walked = function in FUNCTIONS or getattr(function, '__name__', '') in METHODS
        return len(first) if walked else 0
    if function in FUNCTIONS and isinstance(first, CONTAINERS):
        return len(first) // (BYTES if isinstance(first, (bytes, bytearray)) else 1)
    return 0


class Meter:
    """A counter: `with Meter() as meter: ...`, then read `meter.work`. Before 3.12 it counts this thread only."""

    def __init__(self) -> None:
        self.work = 0

    if sys.version_info >= (3, 12):

        def __enter__(self) -> Meter:
            monitoring = sys.monitoring
            events = monitoring.events
            monitoring.use_tool_id(TOOL, 'work')

            def on_instruction(code: Any, offset: int) -> None:
                self.work += 1

            def on_call(code: Any, offset: int, function: Any, first: Any) -> None:
                try:
                    self.work += elements(function, first)
                except TypeError:
                    pass  # the function cannot be hashed or compared, so it is not in FUNCTIONS

            monitoring.register_callback(TOOL, events.INSTRUCTION, on_instruction)
            monitoring.register_callback(TOOL, events.CALL, on_call)
            monitoring.set_events(TOOL, events.INSTRUCTION | events.CALL)
            return self

        def __exit__(self, *exc: object) -> None:
            sys.monitoring.set_events(TOOL, 0)
            sys.monitoring.free_tool_id(TOOL)

    else:

        def __enter__(self) -> Meter:
            def on_opcode(frame: Any, event: str, argument: Any) -> Any:
                if event == 'opcode':
                    self.work += 1
                return on_opcode

            def on_call(frame: Any, event: str, argument: Any) -> Any:
                frame.f_trace_opcodes, frame.f_trace_lines = True, False
                return on_opcode

            def on_c_call(frame: Any, event: str, function: Any) -> None:
                if event == 'c_call':
                    self.work += elements(function, function.__self__)

            self._before = sys.gettrace(), sys.getprofile()
            sys.setprofile(on_c_call)
            sys.settrace(on_call)
            return self

        def __exit__(self, *exc: object) -> None:
            trace, profile = self._before
            sys.settrace(trace)
            sys.setprofile(profile)


def work_of(fn: Any, *args: Any) -> int:
    """Measure the work of `fn(*args)`."""
    with Meter() as meter:
        fn(*args)
    return meter.work


def most_work(r: Any, until: Any, most_turns: int = 10_000) -> int:
    """Run non-blocking turns until `until()` is true; returns the most work done in any one turn."""
    most = 0
    for _ in range(most_turns):
        most = max(most, work_of(r.run_once, 0))
        if until():
            return most
    raise AssertionError(f'not done within {most_turns} turns')


def growth(work: Any, size: int) -> list[float]:
    """Return the factors by which `work(n)` grows from `size` to twice and to four times that size."""
    counts = [work(size << step) for step in range(3)]
    return [after / before for before, after in pairwise(counts)]
