"""Fewer wake-ups, for `Reactor(min_wait=seconds)`: events that arrive soon after each other share a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MinWait:
    """Sleeps before each poll that may wait.

    A loop that waits for the first event sleeps and wakes up for nearly every event under a moderate load, and each
    time its code is cold in the caches of the processor. The minimum wait of io_uring (IORING_ENTER_EXT_ARG) and the
    interrupt moderation of network cards are the same trade.

    Args:
        poll: Polls for at most this many seconds; None: no limit.
        seconds: The minimum wait.
        sleep: Sleeps for this many seconds.
    """

    __slots__ = ('_poll', '_seconds', '_sleep')

    def __init__(self, poll: Callable[[float | None], Any], seconds: float, sleep: Callable[[float], object]) -> None:
        self._poll = poll
        self._seconds = seconds
        self._sleep = sleep

    def poll(self, timeout: float | None) -> Any:
        """Sleep, but not beyond `timeout`, and then poll for the rest of it."""
        if timeout is None:
            self._sleep(self._seconds)
        elif timeout > 0:
            pause = min(self._seconds, timeout)
            self._sleep(pause)
            timeout -= pause
        return self._poll(timeout)
