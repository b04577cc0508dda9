"""Timers: a heap of deadlines, and a dict that maps each deadline to the timers due then.

A timer is pending while its `deadline` is not None. A timer fires at a deadline only if the dict, `at`, lists it there.
So cancelling or moving a timer removes nothing from the heap. A deadline without timers is dropped when it reaches the
top of the heap, or when half of the heap consists of such deadlines.

The heap holds bare floats, because they compare faster than tuples or objects. So a timer is one object for the garbage
collector, not two. Timers with the same deadline fire in the order in which that deadline was set.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import Any

from ..errors import EXHAUSTION, HandleClosed
from .buckets import Buckets
from .checks import FOREVER, number
from .counters import Counters
from .log import name_of

COMPACT_ABOVE = 64  # entries; a smaller heap is not worth compacting


class Timer:
    """A call in the future, as returned by `call_later` and `call_at`.

    `deadline` is the time when it is due, in seconds of the loop's clock, and None after it has fired or was cancelled.
    A timer has only five slots, because a server may have one for each connection. `TimerHeap` creates the timers.
    """

    __slots__ = ('args', 'deadline', 'delay', 'fn', 'timers')

    args: tuple[Any, ...] | None
    deadline: float | None
    delay: float
    fn: Callable[..., object] | None
    timers: TimerHeap

    def cancel(self) -> None:
        """Cancel the timer. Its callback and arguments are released at once. Cancelling twice does nothing."""
        deadline = self.deadline
        if deadline is not None:
            timers = self.timers
            at = timers.at
            pending = timers.pending - 1  # steps that may run out of memory or stack come before all changes
            if timers.unreferenced:
                timers.unreferenced.discard(self)
            if at.get(deadline) is self:  # nearly always true, because timers rarely share a deadline
                del at[deadline]
            else:
                timers.leave(self)
            self.deadline = self.fn = self.args = None
            timers.pending = pending
            timers.counters.timers_cancelled += 1
            if len(timers.heap) > 2 * len(at):
                timers.compact()
        else:
            self.fn = self.args = None

    def reset(self, seconds: float | None = None) -> None:
        """Fire `seconds` from now instead. A timer that has fired can be reset too.

        Args:
            seconds: Seconds from now. None: the delay with which the timer was made.

        Raises:
            HandleClosed: The timer was cancelled, or the reactor is closed.
            TypeError, ValueError: `seconds` is not a finite number.
        """
        if self.fn is None:
            raise HandleClosed('this timer was cancelled and its callback released; make a new one')
        self.timers.move(self, self.timers.after(self.delay if seconds is None else number('seconds', seconds)))

    def ref(self) -> None:
        """Let this timer keep `run` running again, which is the default.

        Raises:
            ReactorError: Called outside the loop's thread.
        """
        self.timers.ref(self)

    def unref(self) -> None:
        """Let `run` end while this timer is pending. A timer that is reset after firing keeps `run` running again.

        Raises:
            ReactorError: Called outside the loop's thread.
        """
        self.timers.unref(self)

    def handle_due(self, now: float) -> None:
        """Called by the loop right before the callback: the timer is no longer pending."""
        timers = self.timers
        if timers.unreferenced:
            timers.unreferenced.discard(self)
        timers.pending -= 1
        self.deadline = None

    def __repr__(self) -> str:
        if self.deadline is None:
            return f'<{type(self).__name__} {"cancelled" if self.fn is None else "fired"}>'
        seconds = self.deadline - self.timers.clock()
        return f'<{type(self).__name__} in {seconds:.3f} s calls {name_of(self.fn)}>'


class CheckedTimer(Timer):
    """A timer that checks the caller's thread, for `Reactor(debug=True)`."""

    __slots__ = ()

    def cancel(self) -> None:
        self.timers.check_thread()
        super().cancel()

    def reset(self, seconds: float | None = None) -> None:
        self.timers.check_thread()
        super().reset(seconds)


class RepeatingTimer(Timer):
    """A call at a fixed rate, as returned by `call_every`. Calls that were missed are skipped."""

    __slots__ = ()

    def handle_due(self, now: float) -> None:
        """Set the next deadline before the callback, which may raise, or cancel or reset the timer."""
        deadline: Any = self.deadline
        beats = (now - deadline) // self.delay + 1
        if deadline + beats * self.delay <= now:  # rounding gave a deadline that is not in the future
            beats += 1
        # With an interval near the smallest float, `beats` is infinite, and `min` picks the second value.
        deadline = min(deadline + beats * self.delay, now + self.delay)
        self.timers.insert(self, deadline)  # the timer stays pending
        self.deadline: float | None = deadline


class CheckedRepeatingTimer(CheckedTimer, RepeatingTimer):
    """A repeating timer that checks the caller's thread."""

    __slots__ = ()


class TimerHeap:
    """The timers of one loop, `loop.timers` (internal)."""

    __slots__ = (
        'at', 'buckets', 'check_thread', 'clock', 'counters', 'due', 'heap', 'moved', 'pending', 'second',
        'unreferenced',
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float], counters: Counters, check_thread: Callable[[], None]) -> None:
        self.clock: Callable[[], float] = clock
        self.check_thread: Callable[[], None] = check_thread
        self.counters: Counters = counters
        self.buckets: Buckets = Buckets(clock, self.unreferenced_later)
        self.second: int = 0  # a recent whole second of the clock: one object that connections share as a timestamp
        self.pending: int = 0  # how many timers will fire, whether they are in the heap or in `due`
        self.unreferenced: set[Timer] = set()  # the pending timers that do not keep the loop running
        self.heap: list[float] = []
        self.at: dict[float, Any] = {}  # maps a deadline to its timer, or to an OrderedDict if several share it
        self.due: deque[Timer] = deque()  # timers that have been collected, and have not run yet
        # Maps each timer that was moved after it had been collected to the number of its entries in `due` to skip.
        self.moved: dict[Timer, int] = {}

    def __len__(self) -> int:
        """Return how many timers are pending."""
        return self.pending

    @property
    def referenced(self) -> int:
        """How many pending timers keep the loop running."""
        return self.pending - len(self.unreferenced)

    def __iter__(self) -> Iterator[Timer]:
        timers, moved = [], self.moved.copy()
        for timer in self.due:
            if moved.get(timer):
                moved[timer] -= 1  # skip this entry; a later entry of the timer may count
            elif timer.deadline is not None:
                timers.append(timer)
        for _, entry in sorted(self.at.items(), key=itemgetter(0)):
            timers.extend(entry if isinstance(entry, OrderedDict) else (entry,))
        yield from timers

    def add(self, kind: type[Timer], delay: float, fn: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        """Make a timer that is due `delay` seconds from now, by a fresh clock reading. Raises as `call_later` does."""
        exact = type(delay)
        if (exact is float or exact is int) and delay >= 0.0 and delay < FOREVER:  # faster than a chained comparison
            deadline = self.clock() + delay
        else:
            delay = number('delay', delay)
            deadline = self.after(delay)
        # These lines repeat the code of `add_at`, to save a call for each timer.
        timer = kind()
        timer.timers = self
        timer.deadline = deadline
        timer.delay = delay
        timer.fn = fn
        timer.args = args
        pending = self.pending + 1
        if self.at.setdefault(deadline, timer) is timer:  # one look-up instead of two: floats are slow to hash
            try:
                heappush(self.heap, deadline)
            except EXHAUSTION:
                del self.at[deadline]
                raise
        else:
            self._share(deadline, timer)
        self.pending = pending
        return timer

    def add_at(
        self, kind: type[Timer], deadline: float, delay: float, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> Timer:
        """Make a timer that is due at `deadline`."""
        timer = kind()
        timer.timers = self
        timer.deadline = None
        timer.delay = delay
        timer.fn = fn
        timer.args = args
        self.move(timer, deadline)
        return timer

    def later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Make a timer for the reactor itself."""
        return self.add(Timer, seconds, fn, args)

    def unreferenced_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Make a timer for the reactor itself that does not keep the loop running."""
        timer = self.add(Timer, seconds, fn, args)
        try:
            self.unreferenced.add(timer)
        except EXHAUSTION:
            timer.cancel()
            raise
        return timer

    def after(self, seconds: float) -> float:
        """Return the deadline `seconds` from now, by a fresh clock reading. A negative delay counts as 0."""
        return self.clock() + (seconds if seconds > 0 else 0.0)

    def next_deadline(self) -> float | None:
        """Return when the next pending timer is due, or None if there is none."""
        heap = self.heap
        while heap:
            if heap[0] in self.at:
                return heap[0]
            heappop(heap)
        return None

    def collect(self, now: float) -> int:
        """Move the timers due at `now` to `due`, so that a timer set by a callback waits for a later turn.

        Returns how many are due.
        """
        heap, at, due = self.heap, self.at, self.due
        while heap and heap[0] <= now:
            deadline = heap[0]
            entry = at.get(deadline)  # deleted only once its timers are in `due`: if memory runs out, none is lost
            if type(entry) is OrderedDict:
                due.extend(entry)
                del at[deadline]
            elif entry is not None:
                due.append(entry)
                del at[deadline]
            heappop(heap)
        return len(due)

    def has_due(self) -> bool:
        """Return whether `due` still has a timer to run, after an exception has escaped from the timers phase."""
        due = self.due
        while due:
            timer = due[0]
            if timer in self.moved:
                self.pass_over(timer)
            elif timer.deadline is not None:
                return True
            due.popleft()  # the timer was cancelled or moved
        return False

    def move(self, timer: Timer, deadline: float) -> None:
        """Make `timer`, pending or not, due at `deadline`. If memory runs out, the timer stays as it was."""
        was, pending = timer.deadline, self.pending + (timer.deadline is None)
        if was == deadline and self._put_last(timer):
            return
        self.insert(timer, deadline)
        if was is not None:
            try:
                self._withdraw(timer, deadline)
            except EXHAUSTION:
                timer.deadline = deadline
                self.leave(timer)
                timer.deadline = was
                raise
        timer.deadline = deadline
        self.pending = pending
        self.compact()

    def insert(self, timer: Timer, deadline: float) -> None:
        """Add `timer` at `deadline`. The heap comes first, because a deadline without timers does no harm there."""
        if deadline in self.at:
            self._share(deadline, timer)
        else:
            heappush(self.heap, deadline)
            self.at[deadline] = timer

    def leave(self, timer: Timer) -> bool:
        """Remove a pending `timer` from its deadline. Return whether it was still there."""
        deadline: Any = timer.deadline
        found = self.at.get(deadline)
        if found is timer:
            del self.at[deadline]
        elif type(found) is OrderedDict and timer in found:
            del found[timer]
            if not found:
                del self.at[deadline]
        else:
            return False
        return True

    def pass_over(self, timer: Timer) -> None:
        """Skip an entry of `due` whose timer was moved."""
        left = self.moved.pop(timer) - 1
        if left:
            self.moved[timer] = left

    def _put_last(self, timer: Timer) -> bool:
        """Move `timer` to the end of the timers with its deadline. Return False if it was already collected."""
        found = self.at.get(timer.deadline)  # type: ignore[arg-type]
        if type(found) is OrderedDict and timer in found:
            found.move_to_end(timer)  # unlike removing and adding it, this needs no memory
            return True
        return found is timer

    def _withdraw(self, timer: Timer, new: float) -> None:
        """Remove `timer`, which was already added at `new`, from its previous deadline."""
        if timer.deadline == new or not self.leave(timer):
            self.moved[timer] = self.moved.get(timer, 0) + 1

    def _share(self, deadline: float, timer: Timer) -> None:
        entry = self.at[deadline]
        if type(entry) is OrderedDict:
            entry[timer] = None
        else:
            self.at[deadline] = OrderedDict({entry: None, timer: None})

    def ref(self, timer: Timer) -> None:
        """See `Timer.ref`."""
        self.check_thread()
        self.unreferenced.discard(timer)

    def unref(self, timer: Timer) -> None:
        """See `Timer.unref`."""
        self.check_thread()
        if timer.deadline is not None:
            self.unreferenced.add(timer)

    def is_referenced(self, timer: Timer) -> bool:
        """Return whether this pending timer keeps the loop running."""
        return timer not in self.unreferenced

    def close(self) -> None:
        """Cancel all timers, and refuse a later reset of timers that have fired."""
        self.clear()
        self.__class__ = ClosedTimerHeap

    def clear(self) -> None:
        """Cancel all timers. Called when the loop is closed."""
        for timer in list(self):
            timer.cancel()
        self.heap.clear()
        self.at.clear()
        self.due.clear()
        self.moved.clear()
        self.buckets.clear()

    def compact(self) -> None:
        """Drop the deadlines without timers once they make up half of the heap, so that dropping each costs O(1)."""
        heap, at = self.heap, self.at
        if not at:
            heap.clear()
        elif len(heap) > COMPACT_ABOVE and len(heap) > 2 * len(at):
            heap[:] = at
            heapify(heap)


class ClosedTimerHeap(TimerHeap):
    """The class of the heap after `close`, so that an open heap need not test whether it is closed."""

    __slots__ = ()

    def move(self, timer: Timer, deadline: float) -> None:
        raise HandleClosed('this reactor is closed; make a new one')
