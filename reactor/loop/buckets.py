"""Time limits of many members, such as connections, checked once a second with a single timer.

The members that are due in the same second are in one bucket. A member moves to another bucket only when it is checked,
not when bytes arrive for it. So a connection with an idle timeout needs no timer operation for its bytes, only a
timestamp. An exceeded limit is noticed up to a second late, never early. When more members are due in one second than a
turn can check, the others are checked in the next turns.

Kernels implement their own timeouts like this ("timer wheels", Varghese and Lauck, 1987).
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
        """Called in the second for which the member was added. For another check, the member must add itself again."""


MOST_STALE = 64  # the heap is rebuilt when its length exceeds twice the number of buckets by more than this
LOOKS_PER_TURN = 128  # this many checks take about 2 ms; thousands of members due in one second must not block the loop


class Buckets:
    """Maps seconds of the loop's clock to the members that are checked then."""

    __slots__ = ('_armed', '_buckets', '_clock', '_later', '_seconds', '_timer')

    def __init__(self, clock: Callable[[], float], later: Callable[..., Alarm]) -> None:
        self._clock = clock
        self._later = later  # makes a timer that does not keep the loop running
        self._buckets: dict[int, dict[Member, None]] = {}
        self._seconds: list[int] = []  # a heap of the seconds that have a bucket, or had one
        self._timer: Alarm | None = None  # fires for the earliest bucket; never keeps the loop running
        self._armed = 0

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def add(self, member: Member, when: float) -> int:
        """Have `member` checked at the first whole second that is not before `when`. Return that second."""
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
        """Remove `member` from the bucket of `second`."""
        bucket = self._buckets.get(second)
        if bucket is not None and member in bucket:
            del bucket[member]
            if not bucket:
                del self._buckets[second]
                self._arm()
        elif not self._buckets:
            self._arm()  # an earlier call may have run out of memory before it cancelled the timer

    def clear(self) -> None:
        """Forget all members. Called when the loop is closed."""
        self._buckets.clear()
        self._seconds.clear()
        self._arm()

    def _earliest(self) -> int:
        """Return the earliest second that has a bucket, or 0 if there is none."""
        seconds, buckets = self._seconds, self._buckets
        while seconds and seconds[0] not in buckets:
            heappop(seconds)
        return seconds[0] if seconds else 0

    def _arm(self) -> None:
        timer, earliest = self._timer, self._earliest()
        if self._buckets and timer is not None and timer.deadline is not None and earliest == self._armed:
            return
        if self._buckets:  # make the new timer first: if that fails, the old timer fires early, and `_look` tries again
            self._timer = self._later(earliest - self._clock(), self._look)
            self._armed = earliest
        if timer is not None:
            timer.cancel()
        if not self._buckets:
            self._timer = None

    def _look(self) -> None:
        """Check the members that are due, at most LOOKS_PER_TURN. If more are due, fire again in the next turn."""
        now, left = self._clock(), LOOKS_PER_TURN
        while left and self._buckets and (second := self._earliest()) <= now:
            bucket = self._buckets[second]
            for member in list(islice(bucket, left)):
                if member in bucket:  # otherwise the check of another member has discarded this one
                    left -= 1
                    member.handle_look(now)
                    bucket.pop(member, None)  # only after the check: if memory runs out in it, the check is repeated
            if bucket:
                break
            if self._buckets.get(second) is bucket:
                del self._buckets[second]
        self._arm()
