"""Times each callback of a loop: `Reactor(slow_callback=seconds)` reports the slow ones, with name and line.

While nothing watches a loop, this costs nothing, because the loop calls the phases of a turn directly. Many short
callbacks in one turn block a loop as much as one long callback, so the whole turn is timed too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import length_hint
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION
from .counters import Counters
from .log import called_by, log, name_of
from .watcher import READ, WRITE, Handle

if TYPE_CHECKING:
    from .loop import Loop

PHASES = '_dispatch', '_run_timers', '_run_soon', '_run_completions'  # methods of the loop
DEBUG_LIMIT = 0.1  # seconds: the default of `slow_callback` in debug mode, as in asyncio
REPORT_INTERVAL = 1.0  # seconds between two lines in the log; all slow callbacks are counted


class Watch:
    """Something that wants to know which callbacks take at least `limit` seconds."""

    limit: float

    def passed(self, phase: str, began: float, ended: float, fn: object, item: object) -> None:
        """Called after such a callback, between two callbacks.

        `began` and `ended` are times of the loop's clock. `fn` is the user's callback, if it is known, and `item`
        the handle or timer to which it belongs, or None.
        """


class PhaseTimer:
    """Takes the place of the phases of a loop while something watches it, and times each callback.

    Attributes:
        callers: The methods that call their first argument, such as `main`.
        callbacks: How many callbacks have run.
        watching: Whether the phases are timed.
    """

    def __init__(self, loop: Loop, callers: set[Callable[..., None]]) -> None:
        self._loop = loop
        self.callers = callers
        self.callbacks: int = 0
        self.watching: bool = False
        self._watches: list[Watch] = []
        self._limit = 0.0
        self._batch: Iterator[tuple[Any, int]] = iter(())  # the events of this turn that have not been handled yet

    def add(self, watch: Watch) -> None:
        """Tell `watch` about slow callbacks, from the next phase on."""
        self._set_watches([*self._watches, watch])

    def remove(self, watch: Watch) -> None:
        """Undo `add`."""
        self._set_watches([each for each in self._watches if each is not watch])

    def _set_watches(self, watches: list[Watch]) -> None:
        self._watches, self.watching = watches, bool(watches)
        self._limit = min((watch.limit for watch in watches), default=0.0)
        replaced = vars(self._loop)  # of this object only: other loops keep their own methods
        for name in PHASES:
            replaced.pop(name, None)
        if watches:
            loop = self._loop
            self._run_timers, self._run_soon, self._run_completions = (
                loop._run_timers, loop._run_soon, loop._run_completions,
            )  # fmt: skip
            timed = self.dispatch, self.run_timers, self.run_soon, self.run_completions
            replaced.update(zip(PHASES, timed, strict=True))

    def left(self, phase: str) -> int:
        """Return how many events or timers of this turn have not had their callback yet."""
        return length_hint(self._batch) if phase == 'dispatch' else len(self._loop.timers.due)

    def dispatch(self, ready: list[tuple[Any, int]]) -> None:
        """Like `Loop._dispatch`, and read the clock after each event."""
        loop, limit, batch = self._loop, self._limit, iter(ready)
        clock, signals, source = loop._clock, loop._signals, loop.watchers.source
        handles, changed, readable = source.handles, source.changed, source.readable
        self.callbacks += len(ready)
        self._batch = batch
        began = clock()
        for item, event in batch:
            if signals.interrupted:
                signals.raise_interrupt()
            try:
                watcher = handles[item]
            except KeyError:
                if item not in changed:
                    loop.spins.reported_for_another()
                continue
            on_data = watcher.on_data
            try:
                if event == readable and watcher.events & READ and (not changed or item not in changed):
                    watcher.handle_read()
                else:
                    self._handle(item, event, watcher)
            except EXHAUSTION as exc:
                loop._starved.append(watcher)
                loop._starved.append(exc)
            except Exception as exc:
                loop.failures.callback_failed(exc, watcher)
            ended = clock()
            if ended - began >= limit:
                forgotten = watcher.closed and on_data is not None
                fn = on_data if forgotten else callback_of(watcher, watcher.handle_read)
                self._tell('dispatch', began, ended, fn, watcher)
            began = ended

    def _handle(self, item: Any, event: int, watcher: Handle) -> None:
        """Handle an event that is not merely readable."""
        mask = self._loop.spins.events_of(item, event, watcher)
        if mask & watcher.events & READ:
            watcher.handle_read()
        if mask & WRITE and watcher.events & WRITE:
            watcher.handle_write()
        elif not mask:
            self._loop.spins.reported_for_another()

    def run_timers(self, count: int) -> None:
        """Run the timers phase, one timer at a time."""
        due = self._loop.timers.due
        for _ in range(count):
            if not due:
                break
            timer = due[0]
            fn, began = self._behind(timer.fn, timer.args), self._loop._clock()
            self._run_timers(1)
            self._judge('timers', began, fn, timer)

    def run_soon(self, count: int) -> None:
        """Run the soon phase, one call at a time."""
        soon = self._loop._soon
        for _ in range(count):
            if not soon:
                break  # a callback has forked and closed the loop in the child
            fn, began = self._behind(*soon[0]), self._loop._clock()
            self._run_soon(1)
            self._judge('soon', began, fn, None)

    def run_completions(self, count: int) -> None:
        """Run the completions phase, one completion at a time."""
        completions = self._loop.completions
        for _ in range(count):
            if not completions:
                break  # a callback has forked and closed the loop in the child, as in `run_soon`
            handle, method, _args = completions[0]
            fn = callback_of(handle, method) if type(method) is FunctionType else method
            began = self._loop._clock()
            self._run_completions(1)
            self._judge('completions', began, fn, handle)

    def _behind(self, fn: Any, args: tuple[Any, ...] | None) -> object:
        if type(fn) is not MethodType or type(fn.__func__) is not FunctionType:
            return fn
        if issubclass(type(fn.__self__), Handle):
            return callback_of(fn.__self__, fn)
        return args[0] if args and fn.__func__ in self.callers else fn

    def _judge(self, phase: str, began: float, fn: object, item: object) -> None:
        self.callbacks += 1
        ended = self._loop._clock()
        if ended - began >= self._limit:
            self._tell(phase, began, ended, fn, item)

    def _tell(self, phase: str, began: float, ended: float, fn: object, item: object) -> None:
        for watch in self._watches:
            if ended - began >= watch.limit:
                watch.passed(phase, began, ended, fn, item)


class SlowWatch(Watch):
    """Counts and reports callbacks and turns that take `limit` seconds or longer."""

    def __init__(self, limit: float, counters: Counters, clock: Callable[[], float], timer: PhaseTimer) -> None:
        self.limit: float = limit
        self._counters = counters
        self._clock = clock
        self._timer = timer
        self._callbacks = 0  # how many had run when this turn began
        self._reported = -REPORT_INTERVAL

    def passed(self, phase: str, began: float, ended: float, fn: object, item: object) -> None:
        """Count and report a slow callback."""
        place, seconds = where(fn), ended - began
        self._counters.slow_callbacks += 1
        self._counters.count_slow(place, seconds)
        self._report(f'slow callback: {place} took {seconds:.3f} s in the {phase} phase')

    def judge_turn(self, seconds: float) -> None:
        """Called at the end of each turn with its duration in seconds, without the wait in the selector."""
        callbacks, self._callbacks = self._timer.callbacks - self._callbacks, self._timer.callbacks
        if seconds >= self.limit:
            self._counters.slow_turns += 1
            self._report(f'slow turn: {seconds:.3f} s in {callbacks} callbacks')

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
    name, code = name_of(fn), code_of(fn)
    return name if code is None else f'{name}:{code.co_firstlineno}'


def code_of(fn: object) -> CodeType | None:
    """Return the code of a callback that is a Python function, a method or a partial of one; otherwise None."""
    fn = called_by(fn)
    if type(fn) is MethodType:
        fn = fn.__func__
    return fn.__code__ if type(fn) is FunctionType else None
