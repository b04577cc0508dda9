"""What a loop installs in the whole process: handlers of signals, and Python's wakeup descriptor.

Owns what was there before, and gives it back. Knows nothing of what a signal does. The rule: the process is shared
with others who do not know us (other reactors, asyncio, `signal.signal`), and they begin and end in any order. So a
claim is undone only where it is still the one installed, and nothing that somebody installed later is touched.

A dropped claim may still be in use: whoever installed a handler over it may call it, or put it back, at any time. It
then behaves as the handler that it replaced, so no signal ever goes to a closed reactor.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, TypeAlias

    from ..kernel import Kernel
    from .wakeup import Wakeup

    Below: TypeAlias = 'WakeupClaim | tuple[int, object] | None'

DEFAULT = 0  # SIG_DFL


class SignalClaim:
    """What is installed for a signal: it calls `fn` until it is dropped. ValueError when there is no such signal."""

    __slots__ = ('_kernel', 'fn', 'previous', 'signum')

    def __init__(self, kernel: Kernel, signum: int, fn: Callable[[int, FrameType | None], object]) -> None:
        self._kernel = kernel
        self.signum: int = signum
        self.fn: Callable[[int, FrameType | None], object] | None = fn
        self.previous: Any = living(kernel.getsignal(signum))

    def install(self) -> None:
        """Replace the handler that is installed. OSError for a signal that cannot be caught."""
        self._kernel.signal(self.signum, self)

    def drop(self) -> None:
        """Restore what was installed before, if ours is still installed."""
        self.fn = None  # first: from here on it behaves as the handler that it replaced, whatever happens
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
        else:  # somebody has put it back after it was dropped
            before = self._restore()
            if callable(before):
                before(signum, frame)
            else:
                self._kernel.raise_signal(signum)


class InterruptClaim(SignalClaim):
    """What is installed for SIGINT while a loop runs, in place of the handler that raises `KeyboardInterrupt`."""

    __slots__ = ()


def living(handler: Any) -> Any:
    """The handler itself, or the first one below it that was not dropped."""
    while isinstance(handler, SignalClaim) and handler.fn is None:
        handler = handler.previous
    return handler


class WakeupClaim:
    """Python's wakeup descriptor, for as long as a loop needs it: it makes a signal end the loop's sleep.

    Below ours there may be the one of another reactor or that of somebody else, which is remembered with its device and
    inode, because its number may be given to another file. It gets the bytes of its signals from us, and is restored.

    `kernel.owners` lists the claims of all reactors of this process that have the wakeup descriptor, which are all that
    have anything installed. A reactor that ends first is replaced, in the claim above it, by what was below it.
    """

    __slots__ = ('_below', '_kernel', '_number', '_wakeup', 'on_fork')

    def __init__(self, kernel: Kernel, wakeup: Wakeup, on_fork: Callable[[], object]) -> None:
        self.on_fork: Callable[[], object] = on_fork
        self._kernel = kernel
        self._wakeup = wakeup
        self._number = -1  # of our bell, as Python has it; -1 while it is not to be installed
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
        """Restore what was installed before, if our bell is still installed. Does nothing unless `acquire` was called.

        Where it finds no memory it can be called again: it is an owner until all is done.
        """
        owners, below = self._kernel.owners, self._below
        if self not in owners:
            return
        # First: the handler of a signal that arrives in here calls `check`, which must not install our bell again.
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
        """Install our bell again where other code has removed it."""
        if self._number >= 0:
            self._install()

    def bell_replaced(self) -> None:
        """Install our bell, which is another socket now, or none for the moment, if the one before was installed."""
        if self in self._kernel.owners:
            self._install()

    def _install(self) -> None:
        before, self._number = self._number, self._wakeup.bell_fileno()
        found = self._set(self._number)
        if found not in (-1, before, self._number):
            self._set(found)  # other code has installed its own later: it stays

    def pass_on(self, data: bytes) -> None:
        """Write the bytes of signals to the descriptor that was installed before ours."""
        below = self._below
        if isinstance(below, WakeupClaim):
            below.pass_on(data)  # a reactor's own doorbell is rung by its handlers
        elif below is not None and self._number_of(below) >= 0:
            try:
                self._kernel.write(below[0], data)
            except OSError:
                pass  # it is full, which is a doorbell all the same, or it was closed just now

    def _set(self, fd: int) -> int:
        try:
            return self._kernel.set_wakeup_fd(fd)
        except (OSError, ValueError):
            return self._kernel.set_wakeup_fd(-1)  # its owner has closed it, or somebody has closed our bell

    def _number_of(self, below: Below) -> int:
        # Of what was installed before ours; -1 when the number is another file's by now.
        if isinstance(below, WakeupClaim):
            return below._number
        if below is None or below[1] is None or self._kernel.identity(below[0]) != below[1]:
            return -1
        return below[0]
