"""What a loop installs in the process, and how it is given back: signal handlers, and Python's wakeup descriptor.

The process is shared with code that does not know us (asyncio, `signal.signal`) and with other reactors, and all of
them begin and end in any order. So a claim is undone only if it is still what is installed, and nothing that was
installed later is touched.

A dropped claim may still be called: code that installed a handler over it may call it, or install it again, at any
time. Then it behaves like the handler that it had replaced, so no signal ever goes to a closed reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

from ..kernel import Kernel
from .wakeup import Wakeup

Below: TypeAlias = 'WakeupClaim | tuple[int, object] | None'

DEFAULT = 0  # SIG_DFL


class SignalClaim:
    """The handler that we install for a signal. It calls `fn` until it is dropped.

    Raises ValueError when there is no such signal.
    """

    __slots__ = ('_kernel', 'fn', 'previous', 'signum')

    def __init__(self, kernel: Kernel, signum: int, fn: Callable[[int, FrameType | None], object]) -> None:
        self._kernel = kernel
        self.signum: int = signum
        self.fn: Callable[[int, FrameType | None], object] | None = fn
        self.previous: Any = living(kernel.getsignal(signum))

    def install(self) -> None:
        """Replace the installed handler. Raises OSError for a signal that cannot be caught."""
        self._kernel.signal(self.signum, self)

    def drop(self) -> None:
        """Restore the handler from before, if ours is still installed."""
        self.fn = None  # first: from here on it behaves like the handler that it replaced
        if self._kernel.getsignal(self.signum) is self:
            self._restore()

    def _restore(self) -> Any:
        before = living(self.previous)
        # None: the previous handler was not installed from Python and cannot be put back.
        self._kernel.signal(self.signum, DEFAULT if before is None else before)
        return before

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        fn = self.fn
        if fn is not None:
            fn(signum, frame)
        elif self._kernel.getsignal(signum) is not self:
            before = living(self.previous)
            if callable(before):
                before(signum, frame)
        else:  # other code has installed it again after it was dropped
            before = self._restore()
            if callable(before):
                before(signum, frame)
            else:
                self._kernel.raise_signal(signum)


class InterruptClaim(SignalClaim):
    """The handler for SIGINT while a loop runs, in place of the one that raises `KeyboardInterrupt`."""

    __slots__ = ()


def living(handler: Any) -> Any:
    """Return the handler itself or, if it was dropped, the first handler below it that was not."""
    while isinstance(handler, SignalClaim) and handler.fn is None:
        handler = handler.previous
    return handler


class WakeupClaim:
    """Python's wakeup descriptor, while a loop needs it. A signal writes a byte to it, which ends the loop's sleep.

    Another descriptor may have been installed before ours, by another reactor or by other code. That of other code is
    remembered with its device and inode, because its number may be given to another file. We pass on to it the bytes of
    its signals, and restore it.

    `kernel.owners` lists the claims of all reactors of this process that have installed anything. When a reactor is
    closed before one that installed its claim later, the later claim remembers what the closed one had remembered.
    """

    __slots__ = ('_below', '_kernel', '_number', '_wakeup', 'on_fork')

    def __init__(self, kernel: Kernel, wakeup: Wakeup, on_fork: Callable[[], object]) -> None:
        self.on_fork: Callable[[], object] = on_fork
        self._kernel = kernel
        self._wakeup = wakeup
        self._number = -1  # the descriptor of our bell that Python has; -1 while it is not to be installed
        self._below: Below = None

    def acquire(self) -> None:
        """Install our bell, unless it is installed."""
        owners = self._kernel.owners
        if self in owners:
            self._install()
            return
        owners.append(self)
        self._kernel.watch_forks()
        self._number = number = self._wakeup.bell_fileno()
        found = self._set(number)
        if found >= 0 and found != number:
            ours = [owner for owner in owners if owner._number == found]
            self._below = ours[0] if ours else (found, self._kernel.identity(found))

    def release(self) -> None:
        """Restore the descriptor from before, if our bell is still installed. Does nothing without `acquire`.

        When memory runs out it can be called again: the claim stays in `owners` until everything is done.
        """
        owners, below = self._kernel.owners, self._below
        if self not in owners:
            return
        # First: if a signal arrives in here, its handler calls `check`, which must not install our bell again.
        number, self._number = self._number, -1
        found = self._set(-1)
        if found == number or (found < 0 and isinstance(below, WakeupClaim)):
            found = self._number_of(below)
        if found >= 0:
            self._set(found)
        for owner in owners:
            if owner._below is self:
                owner._below = below
        self._below = None
        owners.remove(self)

    def check(self) -> None:
        """Install our bell again if other code has removed it."""
        if self._number >= 0:
            self._install()

    def bell_replaced(self) -> None:
        """Our bell is another socket now: install it, if the one before was installed."""
        if self in self._kernel.owners:
            self._install()

    def _install(self) -> None:
        before, self._number = self._number, self._wakeup.bell_fileno()
        found = self._set(self._number)
        if found not in (-1, before, self._number):
            self._set(found)  # other code has installed its own descriptor later, which stays

    def pass_on(self, data: bytes) -> None:
        """Write the bytes of signals to the descriptor that was installed before ours."""
        below = self._below
        if isinstance(below, WakeupClaim):
            below.pass_on(data)  # the other reactor's bell itself is rung by its signal handlers
        elif below is not None and self._number_of(below) >= 0:
            try:
                self._kernel.write(below[0], data)
            except OSError:
                pass  # it is full, so its reader will wake up anyway, or it was closed just now

    def _set(self, fd: int) -> int:
        try:
            return self._kernel.set_wakeup_fd(fd)
        except (OSError, ValueError):
            return self._kernel.set_wakeup_fd(-1)  # other code has closed this descriptor

    def _number_of(self, below: Below) -> int:
        # The descriptor that was installed before ours; -1 when its number stands for another file now.
        if isinstance(below, WakeupClaim):
            return below._number
        if below is None or below[1] is None or self._kernel.identity(below[0]) != below[1]:
            return -1
        return below[0]
