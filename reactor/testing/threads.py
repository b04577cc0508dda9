"""Simulated threads: blocking calls that run while the loop goes on.

Each simulated thread is a real thread, but only one thread runs at a time: it has the baton, which it gets in `_resume`
and gives back when it is suspended or ends. So a run is the same each time. A thread is suspended in `time.sleep`,
until the simulated time has passed. Otherwise a thread's function runs from beginning to end while the loop sleeps.
In the profile 'hostile' it can be suspended in other places, too, and the loop runs in the meantime:

    thread.paused    after a `call_soon_threadsafe` of the program in the thread
    thread.preempts  a thread that waits for its turn runs between two callbacks, while the loop does not sleep
    lookup.slow      inside a look-up

A thread is never suspended between two other statements. So a lost update (the thread reads a number, the loop changes
it, the thread writes the old number plus one) is only found if one of these calls is between the reading and the
writing. Locks are not simulated: if a thread is suspended while it holds a lock, and the loop or another thread waits
for this lock, the run waits for ever.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .descriptors import Descriptors
from .platforms import MS

PAUSES = 1, 1000  # ms


SLACK = 50_000  # ns: the shortest sleep; it is the timer slack of Linux
MOST_KILLS = 100  # how many times `ThreadKilled` is raised in one thread
LONGEST_END = 1.0  # seconds of real time for the end of a thread


class ThreadKilled(BaseException):
    """The run is over, and ends a thread that is suspended."""


class SimThread:
    """A simulated thread, which runs only between `run` and the next `give_back`."""

    def __init__(
        self, number: int, pool: str, target: Callable[[], None], around: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.number = number
        self.pool = pool
        self.turn: int = 0  # how many times it has run
        self.over: bool = False
        self.killed: bool = False
        self._target = target
        self._around = around()
        self._raised: BaseException | None = None
        self._kills = 0
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()

    def run(self) -> None:
        """Let the thread run until it is suspended or ends; raise the exception that has ended it."""
        self._continue()
        self._back.acquire()
        if self._raised is not None:
            raise self._raised

    def kill(self) -> None:
        """End the thread, which is suspended: raise `ThreadKilled` in it, wherever it is.

        A thread that goes on in spite of this, or that does not end in time, is abandoned.
        """
        self.killed = True
        if self.turn == 0:
            self.over = True
            return
        self._continue()
        if not (self._back.acquire(timeout=LONGEST_END) and self.over):
            self._around.__exit__(None, None, None)
            logging.getLogger('reactor').warning(
                'a thread of a simulated run did not end, and was abandoned: it catches BaseException and goes on, '
                'or waits for something that is not simulated, such as a lock'
            )

    def give_back(self) -> None:
        """Suspend this thread, which calls this method, until `run` is called again."""
        if not self.killed:
            self._back.release()
            self._go.acquire()
        if self.killed:
            self._kills += 1
            if self._kills > MOST_KILLS:  # it catches every exception, in a loop
                self._back.release()
                self._go.acquire()  # for ever
            raise ThreadKilled

    def _continue(self) -> None:
        self.turn += 1
        if self.turn > 1:
            self._go.release()
        else:
            threading.Thread(target=self._work, name=f'simulated thread {self.number}', daemon=True).start()

    def _work(self) -> None:
        try:
            with self._around:
                self._target()
        except BaseException as exc:
            self._raised = exc
        finally:
            self.over = True
            self._back.release()


class Threads:
    """The simulated threads of one kernel, all suspended except the one that runs.

    Attributes:
        around: Returns a context manager in which each thread runs.
    """

    def __init__(self, kernel: Descriptors) -> None:
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext
        self._kernel = kernel
        self._suspended: dict[SimThread, bool] = {}  # maps each thread to whether it sleeps until a certain time
        self._running: SimThread | None = None

    def start(self, target: Callable[[], None], delay: int, pool: str) -> None:
        """Start a thread of a pool that begins to run in `delay` ns, or earlier between two callbacks."""
        self._suspend(SimThread(1000 + self._kernel.next_number(), pool, target, self.around), delay)

    def sleep(self, seconds: float) -> None:
        """Suspend the running thread for this time, as `time.sleep` does; the loop goes on.

        Raises:
            ValueError: The time is negative.
        """
        if seconds < 0:
            raise ValueError('sleep length must be non-negative')
        self._wait(max(int(seconds * 1e9), SLACK), sleeps=True)

    def pause(self, milliseconds: int) -> None:
        """Suspend the running thread. In the thread of the loop, the time passes at once."""
        if self._running is None:
            self._kernel.busy(milliseconds / 1000)
        else:
            self._wait(milliseconds * MS, sleeps=False)

    def called(self) -> None:
        """Suspend the running thread at random, after its `call_soon_threadsafe`."""
        if self._running is None:
            return
        if self._running.killed:
            self._running.give_back()
        if self._kernel.faults.falls('thread.paused'):
            self.pause(self._kernel.faults.between(*PAUSES))

    def preempt(self) -> None:
        """Let a suspended thread run at random, before the loop makes its next callback."""
        if self._suspended and self._running is None and self._kernel.faults.falls('thread.preempts'):
            ready = [thread for thread, sleeps in self._suspended.items() if not sleeps]
            if ready:
                self._run(self._kernel.faults.pick(ready))

    def end(self) -> None:
        """End all threads, because the run is over. This takes at most LONGEST_END of real time for each."""
        while self._suspended:
            thread, _ = self._suspended.popitem()
            self._as_running(thread, thread.kill)

    def _wait(self, delay: int, sleeps: bool) -> None:
        thread = self._running
        assert thread is not None
        if not thread.killed:
            self._suspend(thread, delay, sleeps)
        thread.give_back()

    def _suspend(self, thread: SimThread, delay: int, sleeps: bool = False) -> None:
        self._suspended[thread] = sleeps
        self._kernel.at(self._kernel.time + delay, self._resume, thread, thread.turn)

    def _resume(self, thread: SimThread, turn: int) -> None:
        if thread in self._suspended and thread.turn == turn:  # otherwise it has run already, between two callbacks
            self._run(thread)

    def _run(self, thread: SimThread) -> None:
        del self._suspended[thread]
        self._as_running(thread, thread.run)

    def _as_running(self, thread: SimThread, act: Callable[[], None]) -> None:
        kernel = self._kernel
        before = kernel.running_thread
        self._running, kernel.running_thread = thread, thread.number
        try:
            act()
        finally:
            self._running, kernel.running_thread = None, before
            kernel.threads[thread.pool] -= thread.over
