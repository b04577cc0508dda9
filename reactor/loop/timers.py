"""Timers: a heap of deadlines, and a dict that maps each deadline to the timers due then.

A timer is pending while its `deadline` is not None, and due at a deadline only while it is found `at` it. So cancelling
and moving touch no heap: a deadline without timers is dropped when it surfaces, or when half of the heap is such ones.

Bare floats compare faster than any entry around them, and a timer is one object to the garbage collector instead of
two. Timers of one deadline share it, in the order in which they came to it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import Any

from ..errors import HandleClosed
from .buckets import Buckets
from .checks import FOREVER, number
from .log import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .counters import Counters

COMPACT_ABOVE = 64  # a heap this small is not worth compacting


class Timer:
    """A call in the future, as returned by `call_later` and `call_at`.

    `deadline` is the loop's clock, in seconds, when it is due, None once it fired or was cancelled. Five slots and no
    more: servers hold one for each connection. Made by `TimerHeap` alone, which fills it.
    """

    __slots__ = ('args', 'deadline', 'delay', 'fn', 'timers')

    args: tuple[Any, ...] | None
    deadline: float | None
    delay: float
    fn: Callable[..., object] | None
    timers: TimerHeap

    def cancel(self) -> None:
        """Do not fire. The callback and its arguments are released now. Cancelling twice does nothing."""
        deadline = self.deadline
        if deadline is not None:
            timers = self.timers
            at = timers.at
            pending = timers.pending - 1  # what may find no memory or stack comes before what changes something
            if timers.unreferenced:
                timers.unreferenced.discard(self)
            if at.get(deadline) is self:  # nearly always: it is alone there
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
        """Fire `seconds` from now instead, by default the delay it was made with; also after it has fired.

        Raises `HandleClosed` after `cancel` and after `close` of the reactor, TypeError for what is not a number,
        ValueError for NaN and infinity.
        """
        if self.fn is None:
            raise HandleClosed('this timer was cancelled and its callback released; make a new one')
        self.timers.move(self, self.timers.after(self.delay if seconds is None else number('seconds', seconds)))

    def ref(self) -> None:
        """Let this timer keep `run` running again (the default). `ReactorError` in another thread than the loop's."""
        self.timers.ref(self)

    def unref(self) -> None:
        """Let `run` end although this timer is pending. `ReactorError` in another thread than the loop's.

        It holds until the timer has fired: one that is reset then keeps `run` running again.
        """
        self.timers.unref(self)

    def handle_due(self, now: float) -> None:
        """Called by the loop right before the callback: it is pending no more."""
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
        deadline: Any = self.deadline
        beats = (now - deadline) // self.delay + 1
        if deadline + beats * self.delay <= now:  # as it is rounded: the one that is due now, a second time
            beats += 1
        # An interval near the smallest float makes `beats` infinite.
        deadline = min(deadline + beats * self.delay, now + self.delay)
        self.timers.insert(self, deadline)  # it stays pending all the while
        self.deadline: float | None = deadline


class CheckedRepeatingTimer(CheckedTimer, RepeatingTimer):
    """The same at a fixed rate."""

    __slots__ = ()


class TimerHeap:
    """The timers of one loop, `loop.timers` (internal)."""

    __slots__ = (
        'at',
        'buckets',
        'check_thread',
        'clock',
        'counters',
        'due',
        'heap',
        'moved',
        'pending',
        'second',
        'unreferenced',
    )

    def __init__(self, clock: Callable[[], float], counters: Counters, check_thread: Callable[[], None]) -> None:
        self.clock: Callable[[], float] = clock
        self.check_thread: Callable[[], None] = check_thread
        self.counters: Counters = counters
        self.buckets: Buckets = Buckets(clock, self.unreferenced_later)
        self.second: int = 0  # a recent whole second of the clock, one object for all who stamp themselves with it
        self.pending: int = 0  # timers that are to fire, in the heap or due
        self.unreferenced: set[Timer] = set()  # those of them that do not keep the loop running
        self.heap: list[float] = []
        self.at: dict[float, Any] = {}  # a timer, or an OrderedDict of those that share the deadline
        self.due: deque[Timer] = deque()  # collected and not run yet
        # How many entries of `due` are to be passed over, since their timer was moved when it had been collected.
        self.moved: dict[Timer, int] = {}

    def __len__(self) -> int:
        """How many timers are pending."""
        return self.pending

    @property
    def referenced(self) -> int:
        """How many pending timers keep the loop running."""
        return self.pending - len(self.unreferenced)

    def __iter__(self) -> Iterator[Timer]:
        timers, moved = [], self.moved.copy()
        for timer in self.due:
            if moved.get(timer):
                moved[timer] -= 1  # this entry is to be passed over, and a later one may not
            elif timer.deadline is not None:
                timers.append(timer)
        for _, entry in sorted(self.at.items(), key=itemgetter(0)):
            timers.extend(entry if isinstance(entry, OrderedDict) else (entry,))
        yield from timers

    def add(self, kind: type[Timer], delay: float, fn: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        """A new timer, due `delay` seconds from now on a fresh clock; raises as `Loop.call_later`."""
        exact = type(delay)
        if (exact is float or exact is int) and delay >= 0.0 and delay < FOREVER:  # a chain of two costs more
            deadline = self.clock() + delay
        else:
            delay = number('delay', delay)
            deadline = self.after(delay)
        # The same lines as in `add_at`: a call less for each timer.
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
            except (MemoryError, RecursionError):
                del self.at[deadline]
                raise
        else:
            self._share(deadline, timer)
        self.pending = pending
        return timer

    def add_at(
        self, kind: type[Timer], deadline: float, delay: float, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> Timer:
        """A new timer, due at `deadline`."""
        timer = kind()
        timer.timers = self
        timer.deadline = None
        timer.delay = delay
        timer.fn = fn
        timer.args = args
        self.move(timer, deadline)
        return timer

    def later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """A timer of the reactor's own."""
        return self.add(Timer, seconds, fn, args)

    def unreferenced_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """A timer of the reactor's own that does not keep the loop running."""
        timer = self.add(Timer, seconds, fn, args)
        try:
            self.unreferenced.add(timer)
        except (MemoryError, RecursionError):
            timer.cancel()
            raise
        return timer

    def after(self, seconds: float) -> float:
        """Return the deadline `seconds` from now, on a fresh clock; a delay below 0 is 0."""
        return self.clock() + (seconds if seconds > 0 else 0.0)

    def next_deadline(self) -> float | None:
        """When the next pending timer is due, None without one."""
        heap = self.heap
        while heap:
            if heap[0] in self.at:
                return heap[0]
            heappop(heap)
        return None

    def collect(self, now: float) -> int:
        """Move what is due at `now` to `due`, so that a timer set meanwhile waits for a later turn.

        Returns how many are due.
        """
        heap, at, due = self.heap, self.at, self.due
        while heap and heap[0] <= now:
            deadline = heap[0]
            entry = at.get(deadline)  # removed only when it is in `due`: nothing is lost where there is no memory
            if type(entry) is OrderedDict:
                due.extend(entry)
                del at[deadline]
            elif entry is not None:
                due.append(entry)
                del at[deadline]
            heappop(heap)
        return len(due)

    def has_due(self) -> bool:
        """Whether a timer of a batch that an exception has left is still to run."""
        due = self.due
        while due:
            timer = due[0]
            if timer in self.moved:
                self.pass_over(timer)
            elif timer.deadline is not None:
                return True
            due.popleft()  # cancelled or moved meanwhile
        return False

    def move(self, timer: Timer, deadline: float) -> None:
        """`timer`, pending or not, is due at `deadline`. It is left as it was when there is no memory for it."""
        was, pending = timer.deadline, self.pending + (timer.deadline is None)
        if was == deadline and self._put_last(timer):
            return
        self.insert(timer, deadline)
        if was is not None:
            try:
                self._withdraw(timer, deadline)
            except (MemoryError, RecursionError):
                timer.deadline = deadline
                self.leave(timer)
                timer.deadline = was
                raise
        timer.deadline = deadline
        self.pending = pending
        self.compact()

    def insert(self, timer: Timer, deadline: float) -> None:
        """Have `timer` found at `deadline`. This order: a deadline at which nobody is found is dropped."""
        if deadline in self.at:
            self._share(deadline, timer)
        else:
            heappush(self.heap, deadline)
            self.at[deadline] = timer

    def leave(self, timer: Timer) -> bool:
        """Take `timer`, which is pending, away from its deadline; returns whether it was still there."""
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
        """An entry of `due` was reached whose timer was moved."""
        left = self.moved.pop(timer) - 1
        if left:
            self.moved[timer] = left

    def _put_last(self, timer: Timer) -> bool:
        """Move `timer` after the others of its deadline; returns False when it was collected already."""
        found = self.at.get(timer.deadline)  # type: ignore[arg-type]
        if type(found) is OrderedDict and timer in found:
            found.move_to_end(timer)  # needs no memory, unlike taking it out and adding it again
            return True
        return found is timer

    def _withdraw(self, timer: Timer, new: float) -> None:
        """Take `timer`, which is in the heap at `new` already, away from the deadline that it had until now."""
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
        """Whether this pending timer keeps the loop running."""
        return timer not in self.unreferenced

    def close(self) -> None:
        """Cancel them all, and refuse those that fired before and are reset later."""
        self.clear()
        self.__class__ = ClosedTimerHeap

    def clear(self) -> None:
        """Cancel them all; for the end of the loop."""
        for timer in list(self):
            timer.cancel()
        self.heap.clear()
        self.at.clear()
        self.due.clear()
        self.moved.clear()
        self.buckets.clear()

    def compact(self) -> None:
        """Drop the deadlines that nobody has any more when they are half of the heap: O(1) for each of them."""
        heap, at = self.heap, self.at
        if not at:
            heap.clear()
        elif len(heap) > COMPACT_ABOVE and len(heap) > 2 * len(at):
            heap[:] = at
            heapify(heap)


class ClosedTimerHeap(TimerHeap):
    """That of a closed reactor: a class of its own, so that an open one does not have to ask."""

    __slots__ = ()

    def move(self, timer: Timer, deadline: float) -> None:
        raise HandleClosed('this reactor is closed; make a new one')
