"""Who may call the loop now, `loop.guard`: no program once it is closed, and only the thread that runs it.

Only cold calls ask here. In debug mode every call does.
"""

from __future__ import annotations

from ..errors import HandleClosed, ReactorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel import Kernel


class Guard:
    """Refuses calls to a loop that is closed, that another thread runs, or that another process owns."""

    __slots__ = ('_kernel', '_pid', 'closed', 'thread')

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._pid = kernel.pid()
        self.closed: bool = False  # with the loop
        self.thread: int | None = None  # that runs the loop, None while it does not run

    def check(self) -> None:
        """HandleClosed when the loop is closed, ReactorError when another thread than the caller's runs it."""
        if self.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        self.check_thread()

    def check_thread(self) -> None:
        """ReactorError when another thread than the caller's runs the loop."""
        if self.thread is not None and self.thread != self._kernel.thread():
            raise ReactorError('called from another thread than the one that runs it; use call_soon_threadsafe()')

    def check_idle(self) -> int:
        """Raise unless the loop can begin to run here: HandleClosed, else ReactorError. Returns the caller's thread."""
        if self.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        if self.thread is not None:
            raise ReactorError(
                'this reactor is running already: run, run_once and close cannot be called from its '
                'callbacks, nor from another thread; use stop() or call_soon()'
            )
        if self.forked():
            raise ReactorError('this reactor belongs to the process that forked this one; make a new one here')
        return self._kernel.thread()

    def forked(self) -> bool:
        """Whether this process is a fork of the one that made the loop."""
        return self._kernel.pid() != self._pid
