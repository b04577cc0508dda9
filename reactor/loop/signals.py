"""Signals, delivered as callbacks inside the loop.

Owns the handlers, a flag for each signal and, while it needs it, Python's wakeup descriptor. Knows nothing of turns.
The rule: what runs in signal context sets a flag and touches nothing else; the callback runs in the loop, later.

Without `set_wakeup_fd` a signal does not end a `select` that waits: PEP 475 retries it. Another library's wakeup
descriptor is remembered, gets the bytes that are its, and is put back.
"""

from __future__ import annotations

from signal import NSIG, SIGINT

from ..errors import ReactorError
from .watcher import Handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from ..kernel import Kernel
    from .loop import Loop
    from .wakeup import Call, Wakeup

_PACKAGE = __name__.rpartition('.')[0].rpartition('.')[0] + '.'


class SignalHandler(Handle):
    """A callback for a signal, as returned by `add_signal_handler`; `close` restores what was installed before."""

    __slots__ = ('_signals', 'args', 'fn', 'previous', 'signum')

    def __init__(self, loop: Loop, signals: Signals, signum: int, previous: Any) -> None:
        self.loop = loop
        self.since = loop.now
        self.signum = signum
        self.fn: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()
        self.previous = previous
        self._signals = signals
        loop.watchers.park(self)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        if self.fn is not None:
            self._signals.remove(self.signum)

    def handle_signal(self) -> None:
        """Called in the loop after the signal came."""
        if self.fn is not None:
            self.fn(*self.args)

    def waits_for(self) -> str:
        return f'signal {self.signum}'

    def __repr__(self) -> str:
        return f'<SignalHandler signal={self.signum}{" closed" if self.closed else ""}>'


class Signals:
    """The signal handlers of one loop."""

    __slots__ = (
        '_default_interrupt',
        '_foreign',
        '_handlers',
        '_holds',
        '_in_run',
        '_kernel',
        '_loop',
        '_raised',
        '_soon',
        '_wakeup',
        'interrupted',
    )

    def __init__(self, loop: Loop, kernel: Kernel, wakeup: Wakeup, soon: deque[Call]) -> None:
        self.interrupted = False  # SIGINT came while the loop had it
        self._loop = loop
        self._kernel = kernel
        self._wakeup = wakeup
        self._soon = soon
        self._handlers: dict[int, SignalHandler] = {}
        self._raised = bytearray(NSIG)
        self._in_run = False
        self._holds = 0  # who needs the wakeup descriptor: each handler, and `run`
        self._foreign = -1
        self._default_interrupt: Any = None

    def add(self, signum: int, fn: Callable[..., object], args: tuple[Any, ...]) -> SignalHandler:
        """Bind a callback, in place of an earlier one; OSError or ValueError for a signal that cannot be caught."""
        handler = self._handlers.get(signum)
        if handler is None:
            try:
                self._hold()
                previous = self._kernel.signal(signum, self._note)
            except BaseException:
                self._release()
                raise
            handler = self._handlers[signum] = SignalHandler(self._loop, self, signum, previous)
        handler.fn, handler.args = fn, args
        return handler

    def remove(self, signum: int) -> bool:
        """Restore what was installed before; returns whether there was a handler of ours."""
        handler = self._handlers.get(signum)
        if handler is None:
            return False
        if not self._kernel.in_main_thread():
            raise ReactorError('signal handlers can be removed in the main thread only')
        # None: the previous handler was not installed from Python and cannot be put back.
        self._kernel.signal(signum, handler.previous if handler.previous is not None else 0)
        del self._handlers[signum]
        self._raised[signum] = 0
        handler.fn, handler.args = None, ()
        self._loop.watchers.remove(handler)
        self._release()
        if signum == SIGINT and self._in_run and self._default_interrupt is None:
            self._take_interrupt()
        return True

    def clear(self) -> None:
        """Remove them all."""
        for signum in list(self._handlers):
            self.remove(signum)

    def enter(self) -> None:
        """`run` begins in the main thread: signals end its sleep, and SIGINT is raised between callbacks."""
        self._hold()
        self._in_run = True
        self._take_interrupt()

    def _take_interrupt(self) -> None:
        if self._kernel.takes_sigint():
            self._default_interrupt = self._kernel.signal(SIGINT, self._interrupt)

    def leave(self) -> None:
        """`run` ends: undo `enter`, as far as it came."""
        self._in_run = False
        try:
            self._release()
        finally:
            self._give_interrupt_back()  # last: from here on SIGINT is raised wherever we are

    def _give_interrupt_back(self) -> None:
        if self._default_interrupt is not None:
            if SIGINT in self._handlers:
                self._handlers[SIGINT].previous = self._default_interrupt
            else:
                found = self._kernel.signal(SIGINT, self._default_interrupt)
                if found != self._interrupt:
                    self._kernel.signal(SIGINT, found)  # somebody installed theirs meanwhile: it stays
            self._default_interrupt = None

    def give_back(self) -> None:
        """In a fork, perhaps in the middle of `run`: have nothing of this process's any more."""
        self.clear()
        if self._in_run:
            self.leave()

    def raise_interrupt(self) -> None:
        """Called by the loop, between two callbacks, when `interrupted` is set."""
        self.interrupted = False
        raise KeyboardInterrupt

    def collect(self, data: bytes) -> None:
        """Called when the doorbell rang: queue the callback of each signal that was raised."""
        raised = self._raised
        for signum, handler in self._handlers.items():
            if raised[signum]:
                raised[signum] = 0
                self._soon.append((handler.handle_signal, ()))
        data = data.replace(b'\0', b'')  # our own doorbell
        if data and self._foreign >= 0:
            try:
                self._kernel.write(self._foreign, data)
            except OSError:
                pass  # full or gone: its owner's affair, and a doorbell all the same

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._raised[signum] = 1
        handler = self._handlers.get(signum)
        if handler is not None and getattr(handler.previous, '__func__', None) is Signals._note:
            handler.previous(signum, frame)  # another reactor's

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        # The second time inside one callback the user means it. Not in our own code, which it would leave half done.
        if self.interrupted and frame is not None and not frame.f_globals.get('__name__', '').startswith(_PACKAGE):
            self.raise_interrupt()
        self.interrupted = True

    def _hold(self) -> None:
        self._holds += 1  # first: whoever fails here lets go as well
        if self._holds == 1:
            self._foreign = self._kernel.set_wakeup_fd(self._wakeup.bell_fileno())
            self._wakeup.on_bytes = self.collect
            self._wakeup.on_replaced = self._hold_on

    def _hold_on(self) -> None:
        # The number that Python has may be another's by now.
        if self._holds and self._kernel.in_main_thread():
            self._kernel.set_wakeup_fd(self._wakeup.bell_fileno())

    def _release(self) -> None:
        self._holds -= 1
        if not self._holds:
            try:
                found = self._kernel.set_wakeup_fd(self._foreign)
            except (OSError, ValueError):
                found = self._kernel.set_wakeup_fd(-1)  # its owner closed it
            if found != self._wakeup.bell_fileno():
                self._kernel.set_wakeup_fd(found)  # somebody installed theirs meanwhile: it stays
            self._foreign = -1
