"""The reasons that keep `run` going, and `why_alive`, which lists them.

Until `stop` is called, `run` goes on while there is at least one of these:

- a call to `call_soon` or `call_soon_threadsafe` that waits for its turn;
- a callback that waits for the completions phase, such as `on_written` or `on_close`;
- a call or handle that ran out of memory or stack, and is handled at the start of the next turn;
- a pending timer, unless its `unref` was called;
- an open handle (a connection, listener, look-up, signal handler or call in a thread), unless its `unref` was called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .log import describe, name_of
from .timers import TimerHeap
from .wakeup import Wakeup
from .watcher import Handle, Watchers

MOST_REASONS = 1 << 31  # the largest `limit` of `why_alive`


class Alive:
    """Finds the reasons that keep one loop running: calls, completions, timers and handles."""

    __slots__ = ('_completions', '_soon', '_starved', '_timers', '_wakeup', '_watchers')

    def __init__(
        self,
        soon: deque[tuple[Callable[..., object], tuple[Any, ...]]],
        completions: deque[tuple[Handle, Callable[..., object], tuple[Any, ...]]],
        starved: deque[Any],
        timers: TimerHeap,
        watchers: Watchers,
        wakeup: Wakeup,
    ) -> None:
        self._soon = soon
        self._completions = completions
        self._starved = starved
        self._timers = timers
        self._watchers = watchers
        self._wakeup = wakeup

    def any_reason(self) -> bool:
        """Return whether there is any reason to keep running."""
        return bool(
            self._soon
            or self._watchers.referenced
            or self._completions
            or self._timers.referenced
            or self._wakeup.calls
            or self._starved
        )

    def reasons(self) -> Iterator[str]:
        """Yield one line for each reason: what waits, since when, and for what."""
        timers, now = self._timers, self._timers.clock()
        for fn, _ in [*self._soon, *self._wakeup.calls]:
            yield f'call_soon of {name_of(fn)}: waits for its turn'
        for handle, _, _ in self._completions:
            yield f'{describe(handle)}: a callback is due'
        for timer in timers:
            if timers.is_referenced(timer) and timer.deadline is not None:
                yield (
                    f'timer of {name_of(timer.fn)}: since {now - timer.deadline + timer.delay:.0f} s, '
                    f'waits another {timer.deadline - now:.1f} s'
                )
        for handle in self.handles():
            if self._watchers.is_referenced(handle):
                yield f'{describe(handle)}: since {now - handle.since:.0f} s, waits for {handle.waits_for()}'

    def handles(self) -> list[Handle]:
        """Return every open handle except the wakeup, which does not keep the loop running."""
        return [handle for handle in self._watchers if handle is not self._wakeup]

    def count_handles(self) -> int:
        """Return how many handles are open, without iterating over them."""
        return len(self._watchers) - (not self._wakeup.closed)
