"""The methods of a loop that a program calls, except those that run and close it. They check their arguments."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from ..errors import HandleClosed, ReactorError
from ..hints import HasFileno, Result, Ts
from ..kernel import Kernel
from .alive import MOST_REASONS, Alive
from .checks import callback, is_async, number, refuse_async, whole
from .counters import Counters
from .descriptor import Descriptor
from .guard import Guard
from .idle import Idler, Idlers
from .log import describe
from .notifier import Notifier
from .signals import SignalHandler, Signals
from .stats import Stats
from .streams import Streams
from .threads import ThreadCall, ThreadPool
from .timers import RepeatingTimer, Timer, TimerHeap
from .wakeup import Wakeup
from .watcher import Handle, Watchers

Call = tuple[Callable[..., object], tuple[Any, ...]]

YEAR = 365 * 86400  # seconds
MOST_SIGNUM = 128  # FreeBSD has the most signals; an operating system with fewer refuses larger numbers itself


class LoopAPI:
    """The base class of `Loop`, which creates the parts of the loop and runs them."""

    __slots__ = (
        '_alive', '_clock', '_exit_callbacks', '_guarded', '_idlers', '_repeating_timer', '_signals', '_soon',
        '_threads', '_timer', '_wakeup', 'counters', 'guard', 'kernel', 'look_ups', 'timers', 'watchers',
    )  # fmt: skip

    _alive: Alive
    _clock: Callable[[], float]
    _exit_callbacks: list[Call]
    _guarded: bool  # whether every call is checked: in debug mode, and after `close`
    _idlers: Idlers
    _repeating_timer: type[RepeatingTimer]
    _signals: Signals
    _soon: deque[Call]
    _threads: ThreadPool
    _timer: type[Timer]
    _wakeup: Wakeup
    counters: Counters
    guard: Guard
    kernel: Kernel
    look_ups: ThreadPool
    streams: Streams
    timers: TimerHeap
    watchers: Watchers

    def call_soon(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function in the next soon phase: in this turn if that phase has not begun, otherwise in the next turn.

        An exception that the function raises is handled as `catch_errors` says. Only with `debug=True`, a coroutine
        function is refused here as everywhere; otherwise Python warns that it was never awaited.

        Args:
            fn: Called as `fn(*args)`, after the functions of earlier calls.
            *args: Arguments for `fn`.

        Raises:
            TypeError: `fn` is not callable.
            HandleClosed: The reactor is closed.
        """
        if not callable(fn) or self._guarded:
            self._check(fn, args)
        self._soon.append((fn, args))

    def call_soon_threadsafe(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function in the loop, like `call_soon`. May be called in any thread.

        Wakes the loop if it is sleeping. Functions passed by the same thread are called in order.

        Args:
            fn: Called as `fn(*args)` in the loop's thread.
            *args: Arguments for `fn`.

        Raises:
            TypeError: `fn` is not callable.
            HandleClosed: The reactor is closed.
        """
        callback('a callback', fn, '()', len(args))
        if self.guard.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        self._wakeup.call(fn, args)

    def call_later(self, delay: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        """Call a function after a delay, never early.

        Args:
            delay: Seconds from now, where now is a fresh reading of the clock. Any finite number is allowed; a negative
                number counts as 0.
            fn: Called as `fn(*args)` in the timers phase.
            *args: Arguments for `fn`.

        Returns:
            The timer, which can be cancelled and reset.

        Raises:
            TypeError: `delay` is not a number, or `fn` is not callable.
            ValueError: `delay` is NaN or infinite.
            HandleClosed: The reactor is closed.
        """
        if not callable(fn) or self._guarded:
            self._check(fn, args)
        elif is_async(fn):
            refuse_async('a callback', fn)
        return self.timers.add(self._timer, delay, fn, args)

    def call_at(self, deadline: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        """Call a function when the loop's clock reaches a deadline.

        Args:
            deadline: A reading of the monotonic clock, in seconds, like `now`.
            fn: Called as `fn(*args)` in the timers phase.
            *args: Arguments for `fn`.

        Returns:
            The timer, which can be cancelled and reset.

        Raises:
            TypeError: `deadline` is not a number, or `fn` is not callable.
            ValueError: `deadline` is NaN or infinite.
            HandleClosed: The reactor is closed.

        Warns:
            RuntimeWarning: The deadline is 1 to 1,000 years ahead, so it was probably read from another clock.
        """
        self._check(fn, args)
        deadline = number('deadline', deadline)
        wait = deadline - self._clock()
        if YEAR < wait < 1000 * YEAR:  # a longer wait probably means "never"
            message = f'call_at({deadline:.0f}) waits {wait / YEAR:.0f} years: a deadline is compared with '
            warnings.warn(f'{message}r.now, not with time.time()', RuntimeWarning, stacklevel=2)
        return self.timers.add_at(self._timer, deadline, max(0, wait), fn, args)

    def call_every(self, interval: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        """Call a function at a fixed rate, for the first time after one interval.

        The rate does not drift. Calls that were missed are skipped. An exception in `fn` does not end the timer.

        Args:
            interval: Seconds between two calls, above 0.
            fn: Called as `fn(*args)` in the timers phase.
            *args: Arguments for `fn`.

        Returns:
            The timer, which can be cancelled and reset.

        Raises:
            TypeError: `interval` is not a number, or `fn` is not callable.
            ValueError: `interval` is not finite, or not above 0.
            HandleClosed: The reactor is closed.
        """
        self._check(fn, args)
        interval = number('interval', interval)
        if interval <= 0:
            raise ValueError(f'interval must be a number of seconds above 0, not {interval!r}')
        return self.timers.add(self._repeating_timer, interval, fn, args)

    def add_signal_handler(self, signum: int, fn: Callable[[*Ts], object], *args: *Ts) -> SignalHandler:
        """Call a function in the loop each time a signal arrives.

        The handler stays until it is removed or the reactor is closed; then the previous handler is restored. A second
        call for the same signal replaces `fn`. The handler keeps `run` running until `stop` or the end of `drain`,
        unless its `unref` is called. Signals that arrive together may cause only one call.

        Args:
            signum: Number of the signal.
            fn: Called as `fn(*args)` in the soon phase, never in the middle of other code.
            *args: Arguments for `fn`.

        Returns:
            The handler; close it to remove it.

        Raises:
            ReactorError: Called outside the main thread of the main interpreter.
            TypeError, ValueError: `signum` is not the number of a signal, or `fn` is not callable.
            OSError: The signal cannot be caught.
            HandleClosed: The reactor is closed.
        """
        self._check(fn, args)
        whole('signum', signum, 1, MOST_SIGNUM, 'signal number')
        return self._signals.add(signum, fn, args)

    def remove_signal_handler(self, signum: int) -> bool:
        """Remove a handler that `add_signal_handler` added, and restore the previous one.

        Args:
            signum: Number of the signal.

        Returns:
            Whether there was such a handler.

        Raises:
            TypeError, ValueError: `signum` is not the number of a signal.
            ReactorError: Called outside the main thread.
        """
        self.guard.check_thread()
        whole('signum', signum, 1, MOST_SIGNUM, 'signal number')
        return self._signals.remove(signum)

    def clear_signal_handlers(self) -> None:
        """Remove all handlers that `add_signal_handler` added, and restore the previous ones.

        Raises:
            ReactorError: Called outside the main thread.
        """
        self.guard.check_thread()
        self._signals.clear()

    def run_in_thread(
        self,
        fn: Callable[[*Ts], Result],
        *args: *Ts,
        on_done: Callable[[Result | None, BaseException | None], object] | None = None,
    ) -> ThreadCall:
        """Call a function in a daemon thread, and pass its result to the loop.

        As many calls as the option `threads` says run at once (4), and up to 1,000 more may wait for a thread. Closing
        the returned handle cancels the call: a call that has begun runs to its end, but `on_done` is not called.

        Args:
            fn: Called as `fn(*args)` in the thread.
            *args: Arguments for `fn`.
            on_done: `on_done(result, error)`, called in the loop's thread. `error` is None when `fn` returned.
                Otherwise `result` is None, and `error` is the exception that `fn` raised, or a `ReactorError` because
                too many calls are waiting or no thread can be started.

        Returns:
            A handle; it keeps `run` running until the call is done.

        Raises:
            TypeError: `fn` or `on_done` is not callable.
            HandleClosed: The reactor is closed.
            ReactorError: Called in a thread other than the one that runs the reactor.
        """
        self._check(fn, args)
        if on_done is not None:
            callback('on_done', on_done, '(result, error)')
        return self._threads.submit(fn, args, on_done)

    def watch_fd(
        self, fd: int | HasFileno, events: int, fn: Callable[[Descriptor, int, *Ts], object], *args: *Ts
    ) -> Descriptor:
        """Call a function in each turn in which a descriptor is ready.

        The descriptor stays yours: the reactor never reads, writes or closes it. It must be non-blocking if `fn`
        reads more than once per call. Close the returned handle first, and the descriptor afterwards. If the descriptor
        is closed too early, a warning is logged and the watch ends, within two seconds. An exception in `fn` ends it.

        Args:
            fd: A number, or an object with `fileno()`: a pipe, a socket of another library, inotify, an eventfd.
            events: `reactor.READ`, `reactor.WRITE`, both, or 0 for none yet. `set_events` of the handle changes them.
            fn: `fn(handle, event, *args)`; `event` is READ or WRITE. If the descriptor is ready for both, `fn` is
                called twice: for READ, and then for WRITE if that is still wanted.
            *args: More arguments for `fn`.

        Returns:
            The handle.

        Raises:
            PermissionError: `fd` is a regular file, a directory, or another descriptor that is always ready.
            OSError: `fd` is not open.
            ReactorError: Another handle of this reactor already has the descriptor.
            SelectorFull: The selector has no room for another descriptor.
            TypeError, ValueError: An argument is wrong.
            HandleClosed: The reactor is closed.
        """
        callback('fn', fn, '(handle, event)', len(args))
        self.guard.check()
        return Descriptor(self, self.kernel, fd, events, fn, args)  # type: ignore[arg-type]  # `self` is a `Loop`

    def idle(self, fn: Callable[[*Ts], object], *args: *Ts) -> Idler:
        """Call a function once per turn, before all other calls in the soon phase.

        While there is an idler, the loop never sleeps, and occupies a whole processor core. Use idlers for work in
        small pieces.

        Args:
            fn: Called as `fn(*args)`.
            *args: Arguments for `fn`.

        Returns:
            The idler; `close` ends it.

        Raises:
            TypeError: `fn` is not callable.
            HandleClosed: The reactor is closed.
        """
        self._check(fn, args)
        return self._idlers.add(fn, args)

    def notifier(self, fn: Callable[[*Ts], object], *args: *Ts, once: bool = True) -> Notifier:
        """Make a handle with which any thread or signal handler can have a function called in the loop.

        Its `trigger()` requests the call. Several triggers before the call cause only one call. While the notifier is
        open, it keeps `run` running, unless its `unref` is called.

        Args:
            fn: Called as `fn(*args)` in the loop's thread.
            *args: Arguments for `fn`.
            once: Whether the notifier closes itself before its first call.

        Returns:
            The notifier.

        Raises:
            TypeError: `fn` is not callable.
            HandleClosed: The reactor is closed.
        """
        self._check(fn, args)
        return Notifier(self, fn, args, once)  # type: ignore[arg-type]  # `self` is a `Loop`

    def add_exit_callback(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have `close` call a function before it closes any handle. The function added last is called first.

        Args:
            fn: Called as `fn(*args)`.
            *args: Arguments for `fn`.

        Raises:
            TypeError: `fn` is not callable.
            HandleClosed: The reactor is closed.
        """
        self._check(fn, args)
        self._exit_callbacks.append((fn, args))

    def fileno(self) -> int:
        """Return the descriptor of the selector, for another event loop to watch.

        The selector's descriptor is readable when a descriptor of this reactor is ready. Timers do not make it
        readable: see `timeout`. It changes when other code has closed a descriptor that this reactor watches.

        Raises:
            ReactorError: The selector has no descriptor (`poll` and `select` have none).
            HandleClosed: The reactor is closed.
        """
        if self.guard.closed:
            raise HandleClosed('this reactor is closed and no longer has a descriptor; make a new one')
        selector = self.watchers.selector
        fileno = getattr(selector, 'fileno', None)
        if fileno is None:
            raise ReactorError(f'{type(selector).__name__} has no descriptor; call run_once(0) regularly')
        fd: int = fileno()
        return fd

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        drain = self.streams.drain
        left = None if drain is None else drain.left()
        return Stats(self.counters, len(self.timers), self._alive.count_handles(), left)

    def handles(self) -> list[Handle]:
        """Return all open handles: connections, listeners, look-ups, calls in threads, signal handlers...

        Timers are not handles.
        """
        return self._alive.handles()

    def why_alive(self, limit: int | None = None) -> list[str]:
        """Return one line for each reason why `run` goes on: what is waiting, since when, and for what.

        Making 40,000 lines takes a fifth of a second.

        Args:
            limit: Maximum number of lines. None: all.

        Raises:
            TypeError, ValueError: `limit` is not a number of lines.
        """
        if limit is not None:
            whole('limit', limit, 0, MOST_REASONS, 'number of lines')
        return list(islice(self._alive.reasons(), limit))

    def __del__(self) -> None:
        if hasattr(self, '_alive') and not (self.guard.closed or self.counters.loop_count):
            handles = self.handles()
            if handles:
                count = f'{len(handles)} handle{"" if len(handles) == 1 else "s"}, such as {describe(handles[0])}'
                message = f'a Reactor that was never run is destroyed with {count}: call run(), or close()'
                warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def _check(self, fn: object, args: tuple[Any, ...]) -> None:
        callback('a callback', fn, '()', len(args))
        self.guard.check()
