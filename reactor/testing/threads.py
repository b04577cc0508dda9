"""Threads that interleave with the loop, in the profile 'hostile'.

Each simulated thread is a real thread, but only one thread runs at a time: it has the baton, which it gets in `_resume`
and gives back in `pause` or when it ends. So a run is the same each time. By default a thread's function runs from
beginning to end while the loop sleeps. Here it can be suspended, and the loop runs in the meantime:

    thread.paused    after a `call_soon_threadsafe` of the program in the thread
    thread.preempts  a thread that waits for its turn runs between two callbacks, while the loop does not sleep
    lookup.slow      inside a look-up
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .descriptors import Descriptors
from .platforms import MS

PAUSES = 1, 1000  # ms


class ThreadKilled(BaseException):
    """The run is over, and ends a thread that is suspended."""


class SimThread:
    """A simulated thread, which runs only between `run` and the next `give_back`."""

    def __init__(
        self, number: int, pool: str, target: Callable[[], None], around: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.number = number
        self.pool = pool
        self.turn: int = 0  # how many times it was suspended
        self.over: bool = False
        self.killed: bool = False
        self._target = target
        self._around = around
        self._raised: BaseException | None = None
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()

    def start(self) -> None:
        """Start the real thread, which waits for `run`."""
        threading.Thread(target=self._work, name=f'simulated thread {self.number}', daemon=True).start()

    def run(self) -> None:
        """Let the thread run until it is suspended or ends; raise the exception that has ended it."""
        self.turn += 1
        self._go.release()
        self._back.acquire()
        if self._raised is not None and not self.killed:
            raise self._raised

    def give_back(self) -> None:
        """Suspend this thread, which calls this method, until `run` is called again."""
        if not self.killed:
            self._back.release()
            self._go.acquire()
        if self.killed:
            raise ThreadKilled

    def _work(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                with self._around():
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
        self._suspended: dict[SimThread, None] = {}
        self._running: SimThread | None = None

    def start(self, target: Callable[[], None], delay: int, pool: str) -> None:
        """Start a thread of a pool that begins to run in `delay` ns, or earlier between two callbacks."""
        thread = SimThread(1000 + self._kernel.next_number(), pool, target, self.around)
        thread.start()
        self._suspend(thread, delay)

    def pause(self, milliseconds: int) -> None:
        """Suspend the running thread. In the thread of the loop, the time passes at once."""
        if self._running is None:
            self._kernel.busy(milliseconds / 1000)
            return
        thread = self._running
        self._suspend(thread, milliseconds * MS)
        thread.give_back()

    def called(self) -> None:
        """Suspend the running thread at random, after its `call_soon_threadsafe`."""
        if self._running is not None and self._kernel.faults.falls('thread.paused'):
            self.pause(self._kernel.faults.between(*PAUSES))

    def preempt(self) -> None:
        """Let a suspended thread run at random, before the loop makes its next callback."""
        if self._suspended and self._running is None and self._kernel.faults.falls('thread.preempts'):
            self._run(self._kernel.faults.pick(list(self._suspended)))

    def end(self) -> None:
        """End all threads, because the run is over."""
        while self._suspended:
            thread, _ = self._suspended.popitem()
            thread.killed = True
            self._as_running(thread)

    def _suspend(self, thread: SimThread, delay: int) -> None:
        self._suspended[thread] = None
        self._kernel.at(self._kernel.time + delay, self._resume, thread, thread.turn)

    def _resume(self, thread: SimThread, turn: int) -> None:
        if thread in self._suspended and thread.turn == turn:  # otherwise it has run already, between two callbacks
            self._run(thread)

    def _run(self, thread: SimThread) -> None:
        del self._suspended[thread]
        self._as_running(thread)

    def _as_running(self, thread: SimThread) -> None:
        kernel = self._kernel
        before = kernel.running_thread
        self._running, kernel.running_thread = thread, thread.number
        try:
            thread.run()
        finally:
            self._running, kernel.running_thread = None, before
            kernel.threads[thread.pool] -= thread.over
