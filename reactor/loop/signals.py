"""Signals, delivered as callbacks in the loop.

A Python signal handler may run in the middle of any code, so ours only sets a flag and wakes the loop. The user's
callback runs later, in the loop. `claims.py` installs the handlers in the process and restores the previous ones.

Without a wakeup descriptor, a signal does not end a waiting `select`, because Python retries the call (PEP 475). Other
code may replace our descriptor, so our handler itself also writes to the wakeup socket. The handler runs before Python
retries `select`, so the retried call returns at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from signal import NSIG, SIGINT
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import ReactorError
from ..kernel import Kernel
from .claims import InterruptClaim, SignalClaim, WakeupClaim, living
from .wakeup import Call, Wakeup
from .watcher import Handle

if TYPE_CHECKING:
    from ..callbacks import Loop

_PACKAGE = __name__.rpartition('.')[0].rpartition('.')[0] + '.'
# The functions that call user code: one of them is below each callback on the stack.
_PHASES = {'_dispatch', '_run_timers', '_run_soon', '_run_completions', 'run_exit_callbacks'}
# Modules of the standard library, written in Python, that the reactor calls.
_CALLED = {'logging', 'os', 'selectors', 'signal', 'socket', 'ssl', 'subprocess', 'threading'}


class SignalHandler(Handle):
    """A callback for a signal, as returned by `add_signal_handler`. `close` restores the previous handler."""

    __slots__ = ('_signals', 'args', 'claim', 'fn', 'signum')

    leads_to: tuple[tuple[str, str], ...] = (('handle_signal', 'fn'),)

    def __init__(self, loop: Loop, signals: Signals, claim: SignalClaim) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.signum: int = claim.signum
        self.claim: SignalClaim = claim
        self.fn: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()
        self._signals = signals
        loop.watchers.park(self)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        if self.fn is not None:
            self.loop.guard.check_thread()
            self._signals.remove(self.signum)

    def handle_signal(self) -> None:
        """Called in the loop after the signal arrived."""
        if self.fn is not None:
            self.fn(*self.args)

    def waits_for(self) -> str:
        return f'signal {self.signum}'

    def __repr__(self) -> str:
        return f'<SignalHandler signal={self.signum}{" closed" if self.closed else ""}>'


class Signals:
    """The signal handlers of one loop, including the SIGINT handler that is installed while the loop runs."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # the loop, and the parts of it that are used here
        '_loop', '_kernel', '_wakeup', '_soon',
        # the handlers, and which signals have arrived
        '_handlers', '_raised',
        # SIGINT while the loop runs
        '_in_run', '_interrupts', 'interrupted',
        # the wakeup descriptor
        '_claim', '_holds_wakeup',
    )  # fmt: skip

    def __init__(self, loop: Loop, kernel: Kernel, wakeup: Wakeup, soon: deque[Call]) -> None:
        self.interrupted: bool = False  # whether SIGINT arrived while the loop's handler was installed
        self._loop = loop
        self._kernel = kernel
        self._wakeup = wakeup
        self._soon = soon
        self._handlers: dict[int, SignalHandler] = {}
        self._raised = bytearray(NSIG)
        self._in_run = False
        self._holds_wakeup = False  # whether `run` needs the wakeup descriptor; each handler needs it too
        self._interrupts: InterruptClaim | None = None  # installed while the loop runs
        self._claim = WakeupClaim(kernel, wakeup, self.give_back)
        wakeup.on_bytes = self.collect
        wakeup.on_replaced = self._claim.bell_replaced

    def add(self, signum: int, fn: Callable[..., object], args: tuple[Any, ...]) -> SignalHandler:
        """Set the callback for a signal. Raises OSError or ValueError for a signal that cannot be caught."""
        if not self._kernel.in_main_thread():
            raise ReactorError(
                'add_signal_handler was called outside the main thread, or in a sub-interpreter; Python allows signal '
                'handlers only in the main thread of the main interpreter: add it there'
            )
        handler = self._handlers.get(signum)
        if handler is None:
            handler = SignalHandler(self._loop, self, SignalClaim(self._kernel, signum, self._note))
            try:
                self._handlers[signum] = handler
                self._claim.acquire()
                handler.claim.install()
            except BaseException:
                self._forget(handler)
                raise
        handler.fn, handler.args = fn, args
        return handler

    def remove(self, signum: int) -> bool:
        """Restore the previous handler. Return whether this loop had a handler for the signal."""
        handler = self._handlers.get(signum)
        if handler is None:
            return False
        self.check_thread()
        self._forget(handler)
        if signum == SIGINT and self._in_run and self._interrupts is None:
            self._take_interrupt()
        return True

    def _forget(self, handler: SignalHandler) -> None:
        handler.claim.drop()
        del self._handlers[handler.signum]
        self._raised[handler.signum] = 0
        handler.fn, handler.args = None, ()
        self._loop.watchers.remove(handler)
        self._release_unneeded(self._holds_wakeup)

    def clear(self) -> None:
        """Remove all handlers."""
        for signum in list(self._handlers):
            self.remove(signum)

    def check_thread(self) -> None:
        """Raise ReactorError when there are handlers that the caller's thread cannot remove."""
        if self._handlers and not self._kernel.in_main_thread():
            raise ReactorError(
                'signal handlers can be removed only in the main thread; call clear_signal_handlers() there first'
            )

    def enter(self, sleeps: bool) -> None:
        """Called when the loop begins to run.

        If this is the main thread, SIGINT from now on raises KeyboardInterrupt only between callbacks.
        """
        if self._kernel.in_main_thread():
            self.interrupted = False
            self._take_interrupt()  # this comes first: from here on SIGINT never raises in the middle of our own code
            try:
                self._in_run = True
                if sleeps:  # a loop that does not sleep needs only the flags, so run_once(0) costs a third less
                    self._holds_wakeup = True
                    self._claim.acquire()
            except BaseException:
                self.leave()
                raise

    def _take_interrupt(self) -> None:
        kernel = self._kernel
        found = living(kernel.getsignal(SIGINT))
        # When this loop runs inside a callback of another reactor, that reactor handles SIGINT: take over from it.
        if found is kernel.default_int_handler or type(found) is InterruptClaim:
            self._interrupts = InterruptClaim(kernel, SIGINT, self._interrupt)
            try:
                self._interrupts.install()
            except OSError:
                pass  # a sandbox forbids this: Python's own handler stays, and may raise anywhere

    def release_wakeup(self) -> None:
        """Release the wakeup descriptor. This is the first half of `leave`."""
        if self._holds_wakeup:
            self._release_unneeded(False)
            self._holds_wakeup = False  # this comes last: if memory runs out above, the next call tries again

    def _release_unneeded(self, by_run: bool) -> None:
        if not by_run and not self._handlers:
            self._claim.release()

    def leave(self) -> None:
        """Undo `enter` when the loop stops. Raise KeyboardInterrupt if SIGINT arrived after the last callback."""
        try:
            self.release_wakeup()
        finally:
            self._in_run = False
            interrupts, self._interrupts = self._interrupts, None
            if interrupts is not None:
                interrupts.drop()  # this comes last: from here on SIGINT may raise anywhere
        if self.interrupted:
            self.raise_interrupt()

    def give_back(self) -> None:
        """Undo everything that this loop has installed in the process.

        Called in a forked child, which may be in the middle of `run`.
        """
        self.interrupted = False
        self.clear()
        self.leave()

    def raise_interrupt(self) -> None:
        """Raise KeyboardInterrupt. The loop calls this between two callbacks when `interrupted` is set."""
        self.interrupted = False
        raise KeyboardInterrupt

    def collect(self, data: bytes) -> None:
        """Called with the bytes read from the wakeup socket: queue the callback of each signal whose flag is set."""
        raised = self._raised
        for signum, handler in self._handlers.items():
            if raised[signum]:
                self._soon.append((handler.handle_signal, ()))  # before the flag is cleared: memory may run out here
                raised[signum] = 0
        data = data.replace(b'\0', b'')  # drop the bytes that our own code wrote; the others are signal numbers
        if data:
            self._claim.pass_on(data)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._raised[signum] = 1
        self._ring()
        handler = self._handlers.get(signum)
        below = living(handler.claim.previous) if handler is not None else None
        if type(below) is SignalClaim:
            below(signum, frame)  # `below` is the handler of another reactor

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        # A second Ctrl-C during the same callback interrupts that callback.
        if self.interrupted and _in_callback(frame):
            self.raise_interrupt()
        self.interrupted = True
        self._ring()

    def _ring(self) -> None:
        if self._wakeup.ring():
            self._claim.check()


def _in_callback(frame: FrameType | None) -> bool:
    """Return whether an exception may be raised at `frame`: in a user's callback, or in code that the callback called.

    It must not be raised while the callback is calling the reactor. It could then end a function of the reactor
    halfway, or a function of the standard library that the reactor has called: a selector, for example, could then list
    a descriptor that the kernel does not watch.
    """
    called = None
    while frame is not None and not _is_ours(frame):
        called, frame = frame, frame.f_back
    if called is None or frame is None or _module(called) in _CALLED or frame.f_code.co_name == '_poll':
        return False
    if _module(frame) == _PACKAGE + 'loop.watcher':
        return False  # the user's code is a custom selector, and the reactor is calling one of its methods
    while frame is not None and _is_ours(frame):
        if frame.f_code.co_name in _PHASES:
            return True
        frame = frame.f_back
    return False  # user code has called the reactor


def _is_ours(frame: FrameType) -> bool:
    return _module(frame).startswith(_PACKAGE)


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get('__name__', '')
    return name
