"""`loop.guard`: checks that the loop is open, and that the caller is in the thread that runs it.

Only methods that are rarely called make these checks. In debug mode, every method does.
"""

from __future__ import annotations

from ..errors import HandleClosed, ReactorError
from ..kernel import Kernel


class Guard:
    """Refuses calls to a loop that is closed, runs in another thread, or belongs to another process."""

    __slots__ = ('_kernel', '_pid', 'closed', 'closing', 'thread')

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._pid = kernel.pid()
        self.closing: bool = False  # the loop's `close` has begun
        self.closed: bool = False  # and has ended
        self.thread: int | None = None  # the thread that runs the loop; None while it does not run

    def check(self) -> None:
        """Raise HandleClosed if the loop is closed, ReactorError if it runs in a thread other than the caller's."""
        if self.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        self.check_thread()

    def check_thread(self) -> None:
        """Raise ReactorError if the loop runs in a thread other than the caller's."""
        if self.thread is not None and self.thread != self._kernel.thread():
            raise ReactorError('called in another thread, not the one that runs the loop; use call_soon_threadsafe()')

    def check_idle(self) -> int:
        """Return the caller's thread if the loop can start in it; otherwise raise HandleClosed or ReactorError."""
        if self.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        if self.thread is not None:
            raise ReactorError(
                'this reactor is running already: run, run_once and close cannot be called in its '
                'callbacks, or in another thread; use stop() or call_soon()'
            )
        if self.forked():
            raise ReactorError('this reactor belongs to the process that forked this one; make a new one here')
        return self._kernel.thread()

    def forked(self) -> bool:
        """Return whether this process is a fork of the one that made the loop."""
        return self._kernel.pid() != self._pid
