"""Reports slow callbacks with name and line, for `Reactor(slow_callback=seconds)`.

Each phase of a turn is run one item at a time, and each item is timed. When `slow_callback` is off, this costs nothing,
because the phases are called directly. Many short callbacks in one turn block a loop as much as one long callback, so
the whole turn is timed too.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, TypeAlias

from .counters import Counters
from .log import log, name_of
from .watcher import Handle, Watchers

Phase: TypeAlias = Callable[[int], None]
Phases: TypeAlias = tuple[Callable[[Any], None], Phase, Phase, Phase]

DEBUG_LIMIT = 0.1  # seconds: the default of `slow_callback` in debug mode, as in asyncio
REPORT_INTERVAL = 1.0  # seconds between two lines in the log; all slow callbacks are counted


class SlowWatch:
    """Runs the phases of a turn, and reports callbacks and turns that take `limit` seconds or longer."""

    def __init__(
        self,
        limit: float,
        clock: Callable[[], float],
        counters: Counters,
        watchers: Watchers,
        phases: Phases,
        queues: tuple[deque[Any], deque[Any], deque[Any]],
        callers: set[Callable[..., None]],
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._counters = counters
        self._watchers = watchers
        self._dispatch, self._run_timers, self._run_soon, self._run_completions = phases
        self._due, self._soon, self._completions = queues
        self.callers: set[Callable[..., None]] = callers  # the methods that call their first argument, such as `main`
        self._reported = -REPORT_INTERVAL
        self._callbacks = 0  # how many callbacks have run in this turn

    def phases(self) -> dict[str, Any]:
        """Return the functions that replace the phases of a turn, by name."""
        return {
            '_dispatch': self.dispatch,
            '_run_timers': self.run_timers,
            '_run_soon': self.run_soon,
            '_run_completions': self.run_completions,
        }

    def dispatch(self, ready: list[Any]) -> None:
        """Run the dispatch phase, one event at a time."""
        for event in ready:
            try:
                watcher = self._watchers.source.handles[event[0]]
            except KeyError:
                fn = None  # a callback of this batch has closed the watcher
            else:
                fn = callback_of(watcher, watcher.handle_read)
            began = self._clock()
            self._dispatch([event])
            self._judge('dispatch', began, fn)

    def run_timers(self, count: int) -> None:
        """Run the timers phase, one timer at a time."""
        for _ in range(count):
            if not self._due:
                break
            timer = self._due[0]
            fn, began = self._behind(timer.fn, timer.args), self._clock()
            self._run_timers(1)
            self._judge('timers', began, fn)

    def run_soon(self, count: int) -> None:
        """Run the soon phase, one call at a time."""
        for _ in range(count):
            if not self._soon:
                break  # a callback has forked and closed the loop in the child
            fn, began = self._behind(*self._soon[0]), self._clock()
            self._run_soon(1)
            self._judge('soon', began, fn)

    def run_completions(self, count: int) -> None:
        """Run the completions phase, one completion at a time."""
        for _ in range(count):
            if not self._completions:
                break  # a callback has forked and closed the loop in the child, as in `run_soon`
            handle, fn, _args = self._completions[0]
            if type(fn) is FunctionType:
                fn = callback_of(handle, fn)
            began = self._clock()
            self._run_completions(1)
            self._judge('completions', began, fn)

    def _behind(self, fn: Any, args: tuple[Any, ...]) -> object:
        if type(fn) is not MethodType or type(fn.__func__) is not FunctionType:
            return fn
        if issubclass(type(fn.__self__), Handle):
            return callback_of(fn.__self__, fn)
        return args[0] if fn.__func__ in self.callers else fn

    def judge_turn(self, seconds: float) -> None:
        """Called at the end of each turn with its duration in seconds, without the wait in the selector."""
        callbacks, self._callbacks = self._callbacks, 0
        if seconds >= self._limit:
            self._counters.slow_turns += 1
            self._report(f'slow turn: {seconds:.3f} s in {callbacks} callbacks')

    def _judge(self, phase: str, began: float, fn: object) -> None:
        self._callbacks += 1
        seconds = self._clock() - began
        if seconds >= self._limit:
            place = where(fn)
            self._counters.slow_callbacks += 1
            self._counters.count_slow(place, seconds)
            self._report(f'slow callback: {place} took {seconds:.3f} s in the {phase} phase')

    def _report(self, line: str) -> None:
        now = self._clock()
        if now - self._reported >= REPORT_INTERVAL:
            self._reported = now
            log('warning', '%s', line)


# A user's callable may be any object: reading an attribute of it, or testing whether it is true, may raise or never
# return. So `_behind` and `where` check its type first.


def callback_of(handle: Any, method: Any) -> object:
    """Return the user's callback that `method` of `handle` will call, or `method` itself if there is none."""
    for name, callback in handle.leads_to:
        fn: object = getattr(handle, callback) if name == method.__name__ else None
        if fn is not None:
            return fn
    return method


def where(fn: object) -> str:
    """Return where a callback is defined: module, qualified name and line."""
    name = name_of(fn)
    while issubclass(type(fn), functools.partial):
        fn = fn.func  # type: ignore[attr-defined]
    if type(fn) is MethodType:
        fn = fn.__func__
    return f'{name}:{fn.__code__.co_firstlineno}' if type(fn) is FunctionType else name
