"""Spins: handles and selectors that are ready turn after turn, while nothing can be done, `loop.spins`.

A handle that is dispatched and can do nothing reports that here. Once, that is nothing. In STALLED turns in a row it
would be a spin, so the handle is parked for a moment, counted, and logged once per episode. Progress is not counted,
so it costs nothing.
"""

from __future__ import annotations

import errno

from ..errors import ReactorError
from .log import EPISODE, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel import Kernel
    from .counters import Counters
    from .timers import Timer, TimerHeap
    from .watcher import Handle, Watchers

STALLED = 50  # dispatches of a handle in consecutive turns, each without progress, before it is parked for a moment
STALLED_AGAIN = 10  # of a handle that was parked before: something is wrong with it, and it makes progress in between
MOMENT, LONGEST_MOMENT = 0.01, 0.25  # seconds; doubled while it goes on, so that it costs less than 1 % of a core
MOST_STALLS = 1000  # remembered at once; above that, those that are over are forgotten
BLIND_PAUSE = 0.02  # seconds to block after such a poll while the selector cannot be replaced
BLIND_POLLS = 20  # polls in a row that ended early without a report, before the selector is taken for broken


class Stall:
    """What is remembered of a handle that was dispatched without making progress."""

    __slots__ = ('delay', 'parked_at', 'row', 'timer', 'turn')

    def __init__(self) -> None:
        self.row: int = 0  # dispatches without progress, in consecutive turns
        self.turn: int = -1  # of the last one, or in which the handle was watched again
        self.delay: float = MOMENT  # for how long it is parked next, in seconds
        self.parked_at: float = -EPISODE  # the clock when it was parked last
        self.timer: Timer | None = None  # pending while it is parked


class Spins:
    """The handles of one loop that made no progress lately."""

    __slots__ = ('_counters', '_kernel', '_replaced_at', '_timers', '_watchers', 'stalls')

    def __init__(self, kernel: Kernel, watchers: Watchers, timers: TimerHeap, counters: Counters) -> None:
        self._kernel = kernel
        self._watchers = watchers
        self._timers = timers
        self._counters = counters
        self.stalls: dict[Handle, Stall] = {}
        self._replaced_at = -EPISODE  # the clock when the selector was replaced last

    def no_progress(self, handle: Handle) -> None:
        """Called by a handle that was dispatched and found nothing that it could do.

        A handle that is parked for it keeps its `events`. While it is parked, epoll's report of a descriptor that was
        closed by other code reaches no handle at all, which has the loop replace the selector; then nothing is wrong
        any more.
        """
        if self.stalled(handle) and not self._watchers.is_parked(handle):
            readiness = self._kernel.readiness(handle.fileno(), handle.events)
            self._watchers.rest(handle)
            self._park(handle, self.stalls[handle], readiness)

    def stalled(self, handle: Handle) -> bool:
        """Count a dispatch of `handle` without progress; whether it is the last of STALLED or more in a row.

        Only those without progress are counted: a turn that is missing ends the row.
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
        """A handle is watched again after a pause: without progress in the next turn, it is the same row."""
        stall = self.stalls.get(handle)
        if stall is not None:
            stall.turn = self._counters.loop_count

    def forget(self, handle: Handle) -> None:
        """Called when a handle is closed."""
        stall = self.stalls.pop(handle, None)
        if stall is not None and stall.timer is not None:
            stall.timer.cancel()

    def selector_replaced(self, now: float) -> None:
        """Count a selector that was replaced after BLIND_POLLS, and log it once per episode."""
        self._counters.stalls += 1
        if now - self._replaced_at >= EPISODE:
            log(
                'warning',
                'the selector returned early without a report %d times in a row, and was replaced; look for '
                'code that closes descriptors which it does not own',
                BLIND_POLLS,
            )
        self._replaced_at = now

    def select_failed(self, exc: Exception, timeout: float | None) -> float | None:
        """Deal with a `select` that raised: it fails as a whole for one descriptor that other code has closed.

        Returns the timeout of the poll, 0 when that says nothing about how long it should have taken. Raises OSError
        when no watched descriptor is the reason. The selector is not replaced then: its number may be another file's
        by now, which closing it would close.
        """
        if self._watchers.evict_closed():
            return timeout
        selector = self._watchers.selector
        if selector.get_map():
            raise OSError(
                (exc.errno if isinstance(exc, OSError) else None) or errno.EBADF,
                f'{type(selector).__name__}.select failed: {exc}; the loop cannot wait any more; look for code that '
                'closes descriptors which it does not own, then close this reactor and make a new one',
            ) from None
        # `select` of Windows does not wait for nothing: the doorbell alone was open, and it is parked.
        self._kernel.sleep(BLIND_PAUSE if timeout is None else min(timeout, BLIND_PAUSE))
        return 0

    def _park(self, handle: Handle, stall: Stall, readiness: int) -> None:
        now = self._timers.clock()
        self._counters.stalls += 1
        # When the kernel does not call it ready, others were faster: several processes that share a listener are woken
        # by one client. That is no trouble, and must not cost them more than this moment.
        if readiness and now - stall.parked_at >= EPISODE:
            log(
                'warning',
                '%s was ready in %d turns in a row, and nothing could be received, sent or accepted. It is watched '
                'again after a pause, which is doubled up to %g s. An unread error queue does that: read it with '
                'recvmsg(..., MSG_ERRQUEUE), or do not enable it (IP_RECVERR, SO_TIMESTAMPING)',
                handle,
                STALLED,
                LONGEST_MOMENT,
            )
        stall.parked_at = now
        if stall.timer is not None:
            stall.timer.cancel()  # its user has asked for other events meanwhile, which ended the last moment early
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
