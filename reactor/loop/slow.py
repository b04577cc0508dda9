"""Slow callbacks, found by name: `Reactor(slow_callback=seconds)`.

Owns the timing of single callbacks and of whole turns, and what is said about them. Knows neither loop nor transport:
it is given the phases of the turn and their queues, and runs them one item at a time. The rule: it costs nothing when
it is off, because then the phases are called as they are.

Many short callbacks in one turn block a loop as much as a long one, so a turn is judged as a whole too.
"""

from __future__ import annotations

from .log import log
from .timers import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any

    from .stats import Counters

REPORT_INTERVAL = 1.0  # seconds between two lines; all are counted
# What the completions of streams tell the user, by the name of what is queued.
TOLD_BY = {
    'handle_accepted': 'on_connect',
    'handle_connected': 'on_connect',
    'handle_first_read': 'on_data',
    'handle_last_reads': 'on_data',
    'handle_records': 'on_data',
    'handle_stream_end': 'on_eof',
    'handle_drain': 'on_drain',
    'handle_closed': 'on_close',
    'handle_send_error': 'on_send_error',
    'handle_addresses': 'on_done',
}


class SlowWatch:
    """Stands between the turn and its phases, and reports what takes `limit` seconds or longer."""

    def __init__(
        self,
        limit: float,
        clock: Callable[[], float],
        counters: Counters,
        dispatch: Callable[[Any], None],
        timers: tuple[Callable[[int], None], deque[Any]],
        soon: tuple[Callable[[int], None], deque[Any]],
        completions: tuple[Callable[[int], None], deque[Any]],
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._counters = counters
        self._dispatch = dispatch
        self._run_timers, self._due = timers
        self._run_soon, self._soon = soon
        self._run_completions, self._completions = completions
        self._reported = -REPORT_INTERVAL
        self._callbacks = 0  # in this turn

    def dispatch(self, ready: list[Any]) -> None:
        """The dispatch phase, one event at a time."""
        for event in ready:
            watcher = event[0].data
            fn = (
                getattr(watcher, 'on_data', None)
                or getattr(watcher, 'on_eof', None)
                or getattr(watcher, 'on_datagram', None)
                or _behind(watcher.handle_read)
            )
            began = self._clock()
            self._dispatch([event])
            self._judge('dispatch', began, fn)

    def run_timers(self, count: int) -> None:
        """The timers phase, one timer at a time."""
        for _ in range(count):
            if not self._due:
                break
            fn, began = self._due[0].fn, self._clock()
            self._run_timers(1)
            self._judge('timers', began, fn)

    def run_soon(self, count: int) -> None:
        """The soon phase, one call at a time."""
        for _ in range(count):
            fn, began = _behind(self._soon[0][0]), self._clock()
            self._run_soon(1)
            self._judge('soon', began, fn)

    def run_completions(self, count: int) -> None:
        """The completions phase, one at a time."""
        for _ in range(count):
            handle, fn, _args = self._completions[0]
            fn = getattr(handle, TOLD_BY.get(getattr(fn, '__name__', ''), ''), None) or fn
            began = self._clock()
            self._run_completions(1)
            self._judge('completions', began, fn)

    def judge_turn(self, seconds: float) -> None:
        """Called at the end of each turn with the time it took, the wait in the selector apart."""
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


def _behind(fn: Any) -> Any:
    """The user's callback behind a call that a handle (an idler, a notifier, a call in a thread) has queued."""
    handle = getattr(fn, '__self__', None)
    if handle is None or not fn.__name__.startswith('handle_'):
        return fn
    return getattr(handle, 'on_done', None) or getattr(handle, 'fn', None) or fn


def where(fn: object) -> str:
    """Where a callback is written: module, qualified name and line."""
    while hasattr(fn, 'func'):  # a partial
        fn = fn.func
    code = getattr(fn, '__code__', None)
    return name_of(fn) + (f':{code.co_firstlineno}' if code is not None else '')
