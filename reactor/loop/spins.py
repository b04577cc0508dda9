"""`loop.spins`: finds and stops busy loops, in which a handle or selector is ready in every turn but makes no progress.

A handle that was dispatched and could do nothing reports that here. A handle that does so in STALLED turns in a row is
parked (not watched) for a moment. This is counted, and logged at most once every EPISODE seconds. A handle that makes
progress reports nothing, so progress costs nothing.

epoll watches open files, not descriptor numbers. If other code closes a descriptor while a copy of it exists, epoll
reports the file for ever, under the old number, and nothing but closing the epoll ends that. `selectors` drops these
events, or takes them for events of the handle that has got the number since. So the selector is replaced before the
next poll whenever a handle turns out to have lost its descriptor, or when the selector reports an event of no handle.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from ..errors import ReactorError
from ..kernel import Kernel
from ..kernel.platforms import LOST_ERRORS
from .counters import Counters
from .log import EPISODE, log
from .timers import Timer, TimerHeap
from .watcher import READ, WRITE, Handle, Watchers

Select = Callable[[float | None], list[tuple[Any, int]]]  # the method `poll` of an `EventSource`

STALLED = 50  # dispatches without progress, in consecutive turns, before a handle is parked for a moment
STALLED_AGAIN = 10  # the same limit for a handle that was parked before, and has made progress since then
# The first and the longest pause of a stalled handle, in seconds. The pause is doubled each time, so a stalled handle
# costs less than 1 % of a core.
MOMENT, LONGEST_MOMENT = 0.01, 0.25
MOST_STALLS = 1000  # how many stalls are remembered at once; beyond that, finished stalls are forgotten
BLIND_POLLS = 20  # polls in a row that ended early without an event, before the selector is replaced
BLIND_PAUSE = 0.02  # seconds to sleep after such a poll if the selector cannot be replaced
STALE = 4  # an event that no longer holds; not READ, WRITE or 0


class Stall:
    """The record of a handle that was dispatched without making progress."""

    __slots__ = ('delay', 'parked_at', 'row', 'timer', 'turn')

    def __init__(self) -> None:
        self.row: int = 0  # dispatches without progress, in consecutive turns
        self.turn: int = -1  # the turn of the last such dispatch, or the turn in which the handle was watched again
        self.delay: float = MOMENT  # how long the handle is parked next time, in seconds
        self.parked_at: float = -EPISODE  # when the handle was last parked, by the loop's clock
        self.timer: Timer | None = None  # pending while the handle is parked


class Spins:
    """Watches the handles of one loop, and its selector, for busy loops."""

    __slots__ = (
        '_blind_polls', '_counters', '_kernel', '_replaced_at', '_set_select', '_slack', '_timers', '_watchers',
        'stalls',
    )  # fmt: skip

    def __init__(
        self,
        kernel: Kernel,
        watchers: Watchers,
        timers: TimerHeap,
        counters: Counters,
        set_select: Callable[[Select], object],
    ) -> None:
        self._kernel = kernel
        self._watchers = watchers
        self._timers = timers
        self._counters = counters
        self._set_select = set_select  # sets the function that the loop polls with
        self.stalls: dict[Handle, Stall] = {}
        self._blind_polls = 0  # polls in a row that ended early without an event of a handle
        self._slack = kernel.clock_step  # how much too short a poll may be and still count as full, in seconds
        self._replaced_at = -EPISODE  # when the selector was last replaced, by the loop's clock

    def no_progress(self, handle: Handle) -> None:
        """Called by a handle that was dispatched and could do nothing.

        A handle that is parked here keeps its `events`. If epoll still reports a descriptor that other code has closed,
        these events reach no handle while this handle is parked. The loop then replaces the selector, and the new
        selector does not report them.
        """
        if self.stalled(handle) and not self._watchers.is_parked(handle):
            readiness = self._kernel.readiness(handle.fileno(), handle.events)
            if not readiness and self._kernel.watches_files(self._watchers.selector):
                self._slack = 0  # an event of another file is likely, so suspect even the shortest polls
            self._watchers.rest(handle)
            self._park(handle, self.stalls[handle], readiness)

    def stalled(self, handle: Handle) -> bool:
        """Count a dispatch of `handle` without progress. Return whether there were STALLED or more in a row.

        Dispatches with progress are not counted, so a turn without a count ends the row.
        """
        turn = self._counters.loop_count
        stall = self.stalls.get(handle)
        if stall is None:
            self._forget_old(turn)
            stall = self.stalls[handle] = Stall()
        if turn > stall.turn + 1:
            stall.row = 0 if stall.parked_at < 0 else STALLED - STALLED_AGAIN
            stall.delay = MOMENT
        if turn != stall.turn:
            stall.row += 1
            stall.turn = turn
        return stall.row >= STALLED

    def resume_row(self, handle: Handle) -> None:
        """Called when a parked handle is watched again: its row continues if it makes no progress in the next turn."""
        stall = self.stalls.get(handle)
        if stall is not None:
            stall.turn = self._counters.loop_count

    def forget(self, handle: Handle) -> None:
        """Forget a handle that is being closed."""
        stall = self.stalls.pop(handle, None)
        if stall is not None and stall.timer is not None:
            stall.timer.cancel()

    def replace_selector(self) -> None:
        """Called when other code has closed a watched descriptor: replace the selector before the next poll."""
        if self._kernel.watches_files(self._watchers.selector):
            self._set_select(self._select_anew)

    def close_failed(self, exc: OSError) -> None:
        """Called when the descriptor of a handle, which is no longer watched, could not be closed."""
        if exc.errno in LOST_ERRORS:
            self.replace_selector()

    def nothing_ready(self, timeout: float | None, waited: float) -> None:
        """Called after a poll that may wait and has reported nothing; `waited` is how long the poll took, in seconds.

        A poll that ends early was woken by a descriptor that no handle has.
        """
        if timeout is not None and waited + self._slack >= timeout:
            self._blind_polls = 0
            self._slack = self._kernel.clock_step
            return
        self._blind_polls += 1
        if self._blind_polls >= BLIND_POLLS:
            self._set_select(self._select_anew)

    def reported_for_another(self) -> None:
        """Called when the selector has reported a handle without any event that the handle is registered for.

        The event is that of another file, which had the number of the handle's descriptor before.
        """
        self._blind_polls = BLIND_POLLS
        self._set_select(self._select_anew)

    def events_of(self, item: Any, event: int, handle: Handle) -> int:
        """Return what the selector has reported for `handle`: READ, WRITE, both, or STALE if it is not ready any more.

        Returns 0 if the event is that of another file, see `reported_for_another`.
        """
        source, wanted = self._watchers.source, handle.events & (READ | WRITE)
        if source.changed and item in source.changed:
            # The event may belong to a handle that had this number when the loop polled, so the kernel is asked again.
            return self._kernel.readiness(item, wanted) or STALE
        return source.events_for(event, wanted)

    def _any_for_handle(self, ready: list[tuple[Any, int]]) -> bool:
        source = self._watchers.source
        for item, event in ready:
            try:
                handle = source.handles[item]
            except KeyError:
                continue  # a file that no handle has
            if self.events_of(item, event, handle):
                return True
        return False

    def _select_anew(self, timeout: float | None) -> list[Any]:
        old, blind = self._watchers.selector, self._blind_polls >= BLIND_POLLS
        new = self._watchers.rebuild()
        if new is not old:
            self._set_select(self._watchers.source.poll)
            if blind:
                self._blind_polls = 0
                self._selector_replaced()
            timeout = 0  # handles that were evicted in `rebuild` may have completions waiting
        ready = self._watchers.source.poll(timeout)
        if blind and new is old and timeout != 0 and not self._any_for_handle(ready):
            self._kernel.sleep(BLIND_PAUSE)  # the selector cannot be replaced now; the next poll tries it again
        return ready

    def _selector_replaced(self) -> None:
        now = self._timers.clock()
        self._counters.stalls += 1
        if now - self._replaced_at >= EPISODE:
            log(
                'warning',
                'the selector reported events that no handle waits for, and was replaced; look for code that closes '
                'descriptors that it does not own',
            )
        self._replaced_at = now

    def select_failed(self, exc: Exception, timeout: float | None) -> float | None:
        """Handle a `select` that raised. A single descriptor that other code has closed makes the whole call fail.

        Returns the timeout of the poll, or 0 if the length of the poll says nothing about busy loops. Raises OSError if
        no watched descriptor caused the failure. The selector is not replaced then: its descriptor may now belong to
        another file, and replacing the selector would close that file.
        """
        if self._watchers.evict_closed():
            return timeout
        selector = self._watchers.selector
        if selector.get_map():
            raise OSError(
                (exc.errno if isinstance(exc, OSError) else None) or errno.EBADF,
                f'{type(selector).__name__}.select failed: {exc}; the loop can no longer wait; look for code that '
                'closes descriptors that it does not own, then close this reactor and make a new one',
            ) from None
        # `select` on Windows fails when nothing is watched. Here only the wakeup was watched, and it is now parked.
        self._kernel.sleep(BLIND_PAUSE if timeout is None else min(timeout, BLIND_PAUSE))
        return 0

    def _park(self, handle: Handle, stall: Stall, readiness: int) -> None:
        now = self._timers.clock()
        self._counters.stalls += 1
        # When the kernel says that the descriptor is not ready, another process was faster: one client wakes all
        # processes that share a listener. That is not a fault, and must not make the pause longer.
        if readiness and now - stall.parked_at >= EPISODE:
            log(
                'warning',
                '%s was ready in %d turns in a row, and nothing could be received, sent or accepted. It is watched '
                'again after a pause, which is doubled up to %g s. An unread error queue can cause this: read it with '
                'recvmsg(..., MSG_ERRQUEUE), or do not enable it (IP_RECVERR, SO_TIMESTAMPING)',
                handle,
                STALLED,
                LONGEST_MOMENT,
            )
        stall.parked_at = now
        if stall.timer is not None:
            stall.timer.cancel()  # `set_events` has ended the last pause early
        stall.timer = self._timers.later(stall.delay, Spins._watch_again, self, handle)
        stall.timer.unref()  # the handle itself keeps the loop running
        if readiness:
            stall.delay = min(2 * stall.delay, LONGEST_MOMENT)

    def _watch_again(self, handle: Handle) -> None:
        self.stalls[handle].timer = None
        self.resume_row(handle)
        try:
            self._watchers.settle(handle)
        except (OSError, ValueError, ReactorError) as exc:
            self._watchers.fail(handle, exc)

    def _forget_old(self, turn: int) -> None:
        if len(self.stalls) >= MOST_STALLS:
            over = [handle for handle, stall in self.stalls.items() if stall.timer is None and turn > stall.turn + 1]
            for handle in over:
                del self.stalls[handle]
