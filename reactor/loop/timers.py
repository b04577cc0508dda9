"""Timers: one heap, ordered by deadline and, among equals, by age.

Owns every pending timer. Knows nothing of what they call. The rule: a timer is pending exactly while its `deadline` is
not None, and an entry of the heap counts only while it carries the very deadline that its timer has. So cancelling and
moving touch no heap: the entry left behind is dropped when it surfaces, or when half of the heap is such entries.

The heap holds tuples, `(deadline, sequence, timer)`: they compare in C, a third faster than objects with `__lt__`.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count

from ..errors import HandleClosed
from .buckets import Buckets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .stats import Counters

    Entry = tuple[float, int, 'Timer']

COMPACT_ABOVE = 64  # a heap this small is not worth compacting
FOREVER = 1e15  # seconds; anything longer is taken for a mistake (infinity, nanoseconds)


class Timer:
    """A call in the future, as returned by `call_later` and `call_at`.

    `deadline` is the loop's clock, in seconds, when it is due, None once it fired or was cancelled. Five slots and no
    more: servers hold one for each connection.
    """

    __slots__ = ('args', 'deadline', 'delay', 'fn', 'timers')

    def __init__(
        self, timers: TimerHeap, deadline: float, delay: float, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.timers = timers
        self.deadline: float | None = deadline
        self.delay = delay
        self.fn: Callable[..., object] | None = fn
        self.args: tuple[Any, ...] | None = args

    def cancel(self) -> None:
        """Do not fire. The callback and its arguments are released now. Cancelling twice does nothing."""
        if self.deadline is not None:
            self.deadline = None
            timers = self.timers
            timers.pending -= 1
            if timers.unreferenced:
                timers.unreferenced.discard(self)
            timers.counters.timers_cancelled += 1
            if len(timers.heap) > 2 * timers.pending:
                timers.compact()
        self.fn = self.args = None

    def reset(self, seconds: float | None = None) -> None:
        """Fire `seconds` from now instead, by default the delay it was made with; also after it has fired.

        Raises `HandleClosed` after `cancel`, ValueError for NaN or infinity.
        """
        if self.fn is None:
            raise HandleClosed('this timer was cancelled and its callback released; make a new one')
        self.timers.move(self, self.timers.after(self.delay if seconds is None else seconds))

    def ref(self) -> None:
        """Let this timer keep `run` running again (the default)."""
        self.timers.ref(self)

    def unref(self) -> None:
        """Let `run` end although this timer is pending."""
        self.timers.unref(self)

    def handle_due(self, now: float) -> None:
        """Called by the loop right before the callback: it is pending no more."""
        self.deadline = None
        timers = self.timers
        timers.pending -= 1
        if timers.unreferenced:
            timers.unreferenced.discard(self)

    def __repr__(self) -> str:
        if self.deadline is None:
            return f'<{type(self).__name__} {"cancelled" if self.fn is None else "fired"}>'
        seconds = self.deadline - self.timers.clock()
        return f'<{type(self).__name__} in {seconds:.3f} s calls {name_of(self.fn)}>'


class CheckedTimer(Timer):
    """A timer that checks its caller's thread, for `Reactor(debug=True)`."""

    __slots__ = ()

    def cancel(self) -> None:
        self.timers.check_thread()
        super().cancel()

    def reset(self, seconds: float | None = None) -> None:
        self.timers.check_thread()
        super().reset(seconds)


class RepeatingTimer(Timer):
    """A call at a fixed rate, as returned by `call_every`; beats that were missed are skipped."""

    __slots__ = ()

    def handle_due(self, now: float) -> None:
        """Take the next beat that is still to come, before the callback: it may raise, cancel or reset."""
        assert self.deadline is not None
        beats = (now - self.deadline) // self.delay + 1
        self.timers.move(self, self.deadline + beats * self.delay)


class CheckedRepeatingTimer(CheckedTimer, RepeatingTimer):
    """The same at a fixed rate."""

    __slots__ = ()


def name_of(fn: object) -> str:
    """The name of a callback as a person would look for it: module and qualified name."""
    fn = getattr(fn, 'func', fn)  # a partial
    module, name = getattr(fn, '__module__', None), getattr(fn, '__qualname__', None)
    return f'{module}.{name}' if name else repr(fn)


class TimerHeap:
    """The timers of one loop, `loop.timers` (internal)."""

    __slots__ = (
        '_sequence',
        'buckets',
        'check_thread',
        'clock',
        'counters',
        'due',
        'heap',
        'pending',
        'second',
        'unreferenced',
    )

    def __init__(self, clock: Callable[[], float], counters: Counters, check_thread: Callable[[], None]) -> None:
        self.clock = clock
        self.check_thread = check_thread
        self.counters = counters
        self.buckets = Buckets(self)
        self.second = 0  # a recent whole second of the clock, one object for all who stamp themselves with it
        self.pending = 0  # timers that are to fire, in the heap or due
        self.unreferenced: set[Timer] = set()  # those of them that do not keep the loop running
        self.heap: list[Entry] = []
        self.due: deque[Entry] = deque()  # collected and not run yet
        self._sequence = count()

    def __len__(self) -> int:
        """How many timers are pending."""
        return self.pending

    @property
    def referenced(self) -> int:
        """How many pending timers keep the loop running."""
        return self.pending - len(self.unreferenced)

    def __iter__(self):  # type: ignore[no-untyped-def]
        entries = [*self.due, *sorted(self.heap)]
        yield from [timer for deadline, _, timer in entries if timer.deadline is deadline]

    def add(self, kind: type[Timer], delay: float, fn: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        """A new timer, due `delay` seconds from now on a fresh clock; see `after`."""
        if 0 < delay < FOREVER:
            deadline = self.clock() + delay
        else:
            deadline = self.after(delay)
        timer = kind(self, deadline, delay, fn, args)
        heappush(self.heap, (deadline, next(self._sequence), timer))
        self.pending += 1
        return timer

    def add_at(
        self, kind: type[Timer], deadline: float, delay: float, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> Timer:
        """A new timer, due at `deadline`."""
        timer = kind(self, deadline, delay, fn, args)
        heappush(self.heap, (deadline, next(self._sequence), timer))
        self.pending += 1
        return timer

    def later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """A timer of the reactor's own."""
        return self.add(Timer, seconds, fn, args)

    def after(self, seconds: float) -> float:
        """The deadline `seconds` from now, on a fresh clock; a delay below 0 is 0. ValueError for NaN and infinity."""
        if not -FOREVER < seconds < FOREVER:
            raise ValueError(f'a delay is a finite number of seconds, not {seconds!r}')
        return self.clock() + (seconds if seconds > 0 else 0.0)

    def next_deadline(self) -> float | None:
        """When the next pending timer is due, None without one."""
        heap = self.heap
        while heap:
            deadline, _, timer = heap[0]
            if timer.deadline is deadline:
                return deadline
            heappop(heap)
        return None

    def collect(self, now: float) -> int:
        """Move what is due at `now` from the heap to `due`, so that a timer set meanwhile waits for a later turn.

        Returns how many entries are due.
        """
        heap, due = self.heap, self.due
        while heap and heap[0][0] <= now:
            due.append(heappop(heap))
        return len(due)

    def move(self, timer: Timer, deadline: float) -> None:
        """`timer`, pending or not, is due at `deadline`."""
        if timer.deadline is None:
            self.pending += 1
        timer.deadline = deadline
        heappush(self.heap, (deadline, next(self._sequence), timer))
        self.compact()

    def ref(self, timer: Timer) -> None:
        """See `Timer.ref`."""
        self.unreferenced.discard(timer)

    def unref(self, timer: Timer) -> None:
        """See `Timer.unref`."""
        if timer.deadline is not None:
            self.unreferenced.add(timer)

    def is_referenced(self, timer: Timer) -> bool:
        """Whether this pending timer keeps the loop running."""
        return timer not in self.unreferenced

    def clear(self) -> None:
        """Cancel them all; for the end of the loop."""
        for timer in list(self):
            timer.cancel()
        self.heap.clear()
        self.due.clear()
        self.buckets.clear()

    def compact(self) -> None:
        """Drop the entries of cancelled and moved timers when they are half of the heap: O(1) for each of them."""
        heap = self.heap
        if not self.pending:
            heap.clear()
        elif len(heap) > COMPACT_ABOVE and len(heap) > 2 * self.pending:
            heap[:] = [entry for entry in heap if entry[2].deadline is entry[0]]
            heapify(heap)
