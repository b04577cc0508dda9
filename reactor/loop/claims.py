"""Installs signal handlers and Python's wakeup descriptor in the process, and restores the previous ones.

A claim is one such installation. Other reactors and other code (asyncio, callers of `signal.signal`) install handlers
and descriptors of their own in the same process, and all of them start and stop in any order. So a claim is undone only
while its handler or descriptor is still installed, and whatever was installed later is left alone.

The handler of a dropped claim may still be called: code that replaced it with another handler may call it or reinstall
it at any time. The claim then behaves like the handler that it had replaced, so a closed reactor never gets a signal.
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
    """A handler that the reactor installs for a signal. It calls `fn` until `drop` is called.

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
        """Restore the previous handler, if this one is still installed."""
        self.fn = None  # this comes first: from here on this claim behaves like the handler that it replaced
        if self._kernel.getsignal(self.signum) is self:
            self._restore()

    def _restore(self) -> Any:
        before = living(self.previous)
        # None: the previous handler was not installed from Python and cannot be restored.
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
        else:  # other code has reinstalled this claim after it was dropped
            before = self._restore()
            if callable(before):
                before(signum, frame)
            else:
                self._kernel.raise_signal(signum)


class InterruptClaim(SignalClaim):
    """The SIGINT handler that is installed while a loop runs.

    It replaces Python's own handler, which may raise `KeyboardInterrupt` at any point of the code.
    """

    __slots__ = ()


def living(handler: Any) -> Any:
    """Return `handler`. If it was dropped, return the latest handler before it that was not dropped."""
    while isinstance(handler, SignalClaim) and handler.fn is None:
        handler = handler.previous
    return handler


class WakeupClaim:
    """Installs a loop's bell, the sending end of its wakeup socket, as Python's wakeup descriptor.

    Each signal then writes a byte to the bell and wakes the loop.

    Another reactor or other code may already have installed its own descriptor. A descriptor of other code is
    remembered with its device and inode, because its number may later belong to another file. The bytes of signals are
    passed on to that descriptor, and it is restored at the end.

    `kernel.owners` lists the installed claims of all reactors in this process. When a reactor releases its claim, a
    claim that was installed on top of it takes over the descriptor that the released claim had remembered.
    """

    __slots__ = ('_below', '_kernel', '_number', '_wakeup', 'on_fork')

    def __init__(self, kernel: Kernel, wakeup: Wakeup, on_fork: Callable[[], object]) -> None:
        self.on_fork: Callable[[], object] = on_fork
        self._kernel = kernel
        self._wakeup = wakeup
        self._number = -1  # the number under which our bell is installed; -1 while it must not be installed
        self._below: Below = None

    def acquire(self) -> None:
        """Install our bell, unless it is installed already."""
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
        """Restore the previous descriptor, if our bell is still installed. Does nothing unless `acquire` was called.

        If memory runs out, this method can be called again, because the claim stays in `owners` until the last step.
        """
        owners, below = self._kernel.owners, self._below
        if self not in owners:
            return
        # This comes first: if a signal arrives now, its handler calls `check`, which must not reinstall our bell.
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
        """Called when our bell was replaced by a new socket: install the new one if the old one was installed."""
        if self in self._kernel.owners:
            self._install()

    def _install(self) -> None:
        before, self._number = self._number, self._wakeup.bell_fileno()
        found = self._set(self._number)
        if found not in (-1, before, self._number):
            self._set(found)  # other code has installed its own descriptor since then: leave it

    def pass_on(self, data: bytes) -> None:
        """Write the bytes of signals to the descriptor that was installed before ours."""
        below = self._below
        if isinstance(below, WakeupClaim):
            below.pass_on(data)  # this skips the other reactor, which its own signal handlers wake
        elif below is not None and self._number_of(below) >= 0:
            try:
                self._kernel.write(below[0], data)
            except OSError:
                pass  # the descriptor is full, so its reader will wake up anyway, or it has just been closed

    def _set(self, fd: int) -> int:
        try:
            return self._kernel.set_wakeup_fd(fd)
        except (OSError, ValueError):
            return self._kernel.set_wakeup_fd(-1)  # other code has closed this descriptor

    def _number_of(self, below: Below) -> int:
        # The descriptor that was installed before ours; -1 if its number now belongs to another file.
        if isinstance(below, WakeupClaim):
            return below._number
        if below is None or below[1] is None or self._kernel.identity(below[0]) != below[1]:
            return -1
        return below[0]
