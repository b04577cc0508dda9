"""Time limits of many: members that ask to be looked at in some second, all under a single timer.

Owns the buckets, one for each second in which somebody is to be looked at. Knows nothing of what a look finds. The
rule: a member is moved only when it is looked at, never when something happens to it. So a connection with an idle
timeout costs no timer operation for its bytes, only a stamp; it is told late by up to a second, never early. Where so
many are due in the same second that a turn cannot look at them all, the last are looked at some turns later.
Kernels keep their own time limits so ("timer wheels", Varghese and Lauck, 1987).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import islice
from math import ceil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Alarm(Protocol):
        deadline: float | None

        def cancel(self) -> None: ...

    class Member(Protocol):
        def handle_look(self, now: float) -> None:
            """Called in the second that was asked for; to be looked at again, the member adds itself again."""


MOST_STALE = 64  # seconds in the heap without a bucket, beside as many as have one
LOOKS_PER_TURN = 128  # about 2 ms: thousands that are due in the same second must not keep the others waiting


class Buckets:
    """Members by the second of the loop's clock in which they are to be looked at."""

    __slots__ = ('_armed', '_buckets', '_clock', '_later', '_seconds', '_timer')

    def __init__(self, clock: Callable[[], float], later: Callable[..., Alarm]) -> None:
        self._clock = clock
        self._later = later  # makes a timer that does not keep the loop running
        self._buckets: dict[int, dict[Member, None]] = {}
        self._seconds: list[int] = []  # a heap of those that have a bucket, and of some that had one
        self._timer: Alarm | None = None  # for the earliest bucket; it never keeps the loop running
        self._armed = 0

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def add(self, member: Member, when: float) -> int:
        """Have `member` looked at in the first full second from `when` on; returns that second, for `discard`."""
        second = ceil(when)
        bucket = self._buckets.get(second)
        if bucket is not None:
            bucket[member] = None
            return second
        seconds, buckets = self._seconds, self._buckets
        buckets[second] = {member: None}
        try:
            if len(seconds) > 2 * len(buckets) + MOST_STALE:
                seconds[:] = buckets
                heapify(seconds)
            else:
                heappush(seconds, second)
            self._arm()
        except BaseException:
            del buckets[second]
            raise
        return second

    def discard(self, member: Member, second: int) -> None:
        """Do not look at `member`, which was to be looked at in `second`."""
        bucket = self._buckets.get(second)
        if bucket is not None and member in bucket:
            del bucket[member]
            if not bucket:
                del self._buckets[second]
                self._arm()
        elif not self._buckets:
            self._arm()  # it may have failed the first time

    def clear(self) -> None:
        """Forget everybody; for the end of the loop."""
        self._buckets.clear()
        self._seconds.clear()
        self._arm()

    def _earliest(self) -> int:
        """The earliest second that has a bucket, 0 for none."""
        seconds, buckets = self._seconds, self._buckets
        while seconds and seconds[0] not in buckets:
            heappop(seconds)
        return seconds[0] if seconds else 0

    def _arm(self) -> None:
        timer, earliest = self._timer, self._earliest()
        if self._buckets and timer is not None and timer.deadline is not None and earliest == self._armed:
            return
        if self._buckets:  # the new timer first: where it cannot be made, the old one fires early and tries again
            self._timer = self._later(earliest - self._clock(), self._look)
            self._armed = earliest
        if timer is not None:
            timer.cancel()
        if not self._buckets:
            self._timer = None

    def _look(self) -> None:
        """Look at what is due, `LOOKS_PER_TURN` members at most: the timer is due again at once for the others."""
        now, left = self._clock(), LOOKS_PER_TURN
        while left and self._buckets and (second := self._earliest()) <= now:
            bucket = self._buckets[second]
            for member in list(islice(bucket, left)):
                if member in bucket:  # not discarded by the look of another
                    left -= 1
                    member.handle_look(now)
                    bucket.pop(member, None)  # afterwards, so a look that fails for want of memory is made again
            if bucket:
                break
            if self._buckets.get(second) is bucket:
                del self._buckets[second]
        self._arm()
