"""Time limits of many members, checked once a second, all under a single timer.

Each second in which a member is to be checked has a bucket of members. A member moves only when it is checked, never
when something happens to it. So a connection with an idle timeout costs no timer operation for its bytes, only a time
stamp. Its limit is found up to a second late, never early; when more members are due in one second than a turn can
check, the last ones are checked some turns later.

Kernels keep their own time limits like this ("timer wheels", Varghese and Lauck, 1987).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import islice
from math import ceil
from typing import Protocol


class Alarm(Protocol):
    deadline: float | None

    def cancel(self) -> None: ...


class Member(Protocol):
    def handle_look(self, now: float) -> None:
        """Called in the second that was asked for. To be checked again, the member adds itself again."""


MOST_STALE = 64  # the heap is rebuilt when it has this many more entries than twice the number of buckets
LOOKS_PER_TURN = 128  # about 2 ms: thousands of members due in the same second must not block the loop


class Buckets:
    """Members, by the second of the loop's clock in which they are checked."""

    __slots__ = ('_armed', '_buckets', '_clock', '_later', '_seconds', '_timer')

    def __init__(self, clock: Callable[[], float], later: Callable[..., Alarm]) -> None:
        self._clock = clock
        self._later = later  # makes a timer that does not keep the loop running
        self._buckets: dict[int, dict[Member, None]] = {}
        self._seconds: list[int] = []  # a heap of the seconds that have a bucket, and some that had one
        self._timer: Alarm | None = None  # for the earliest bucket; it never keeps the loop running
        self._armed = 0

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def add(self, member: Member, when: float) -> int:
        """Have `member` checked in the first full second from `when` on. Return that second, for `discard`."""
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
        """Do not check `member`, which was to be checked in `second`."""
        bucket = self._buckets.get(second)
        if bucket is not None and member in bucket:
            del bucket[member]
            if not bucket:
                del self._buckets[second]
                self._arm()
        elif not self._buckets:
            self._arm()  # an earlier call may have run out of memory before it cancelled the timer

    def clear(self) -> None:
        """Forget all members, when the loop is closed."""
        self._buckets.clear()
        self._seconds.clear()
        self._arm()

    def _earliest(self) -> int:
        """Return the earliest second that has a bucket, 0 when there is none."""
        seconds, buckets = self._seconds, self._buckets
        while seconds and seconds[0] not in buckets:
            heappop(seconds)
        return seconds[0] if seconds else 0

    def _arm(self) -> None:
        timer, earliest = self._timer, self._earliest()
        if self._buckets and timer is not None and timer.deadline is not None and earliest == self._armed:
            return
        if self._buckets:  # the new timer first: if it cannot be made, the old one fires early and tries again
            self._timer = self._later(earliest - self._clock(), self._look)
            self._armed = earliest
        if timer is not None:
            timer.cancel()
        if not self._buckets:
            self._timer = None

    def _look(self) -> None:
        """Check the members that are due, at most LOOKS_PER_TURN. For the others the timer is due again at once."""
        now, left = self._clock(), LOOKS_PER_TURN
        while left and self._buckets and (second := self._earliest()) <= now:
            bucket = self._buckets[second]
            for member in list(islice(bucket, left)):
                if member in bucket:  # else the check of another member has discarded it
                    left -= 1
                    member.handle_look(now)
                    bucket.pop(member, None)  # afterwards: a check that fails because memory has run out is made again
            if bucket:
                break
            if self._buckets.get(second) is bucket:
                del self._buckets[second]
        self._arm()
