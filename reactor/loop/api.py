"""The methods of a loop that a program calls, except those that run and close it.

Each checks its arguments and passes them to the part of the loop that does it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from ..errors import HandleClosed, ReactorError
from ..hints import HasFileno, Result, Ts
from ..kernel import Kernel
from .alive import MOST_REASONS, Alive
from .checks import callback, number, whole
from .counters import Counters
from .descriptor import Descriptor
from .guard import Guard
from .idle import Idler, Idlers
from .notifier import Notifier
from .signals import SignalHandler, Signals
from .stats import Stats
from .threads import ThreadCall, ThreadPool
from .timers import RepeatingTimer, Timer, TimerHeap
from .wakeup import Wakeup
from .watcher import Handle, Watchers

Call = tuple[Callable[..., object], tuple[Any, ...]]

MOST_SIGNUM = 128  # on FreeBSD; each system refuses those that it does not have


class LoopAPI:
    """Half of `Loop`, which makes the parts and runs them."""

    __slots__ = (
        '_alive',
        '_clock',
        '_exit_callbacks',
        '_guarded',
        '_idlers',
        '_repeating_timer',
        '_signals',
        '_soon',
        '_threads',
        '_timer',
        '_wakeup',
        'counters',
        'guard',
        'kernel',
        'timers',
        'watchers',
    )

    _alive: Alive
    _clock: Callable[[], float]
    _exit_callbacks: list[Call]
    _guarded: bool  # whether every call is checked: in debug mode, and once it is closed
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
    timers: TimerHeap
    watchers: Watchers

    def call_soon(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call `fn(*args)` in the next soon-phase: this turn's when it is still to come, else the next turn's."""
        if not callable(fn) or self._guarded:
            self._check(fn)
        self._soon.append((fn, args))

    def call_soon_threadsafe(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """The same from any thread, in the order of the calls of each; wakes a loop that sleeps."""
        callback('a callback', fn)
        if self.guard.closed:
            raise HandleClosed('this reactor is closed')
        self._wakeup.call(fn, args)

    def call_later(self, delay: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        """Call `fn(*args)` in `delay` seconds, counted from now on a fresh clock; below 0 means 0. Never early.

        Any finite delay is accepted. TypeError for what is not a number, ValueError for NaN and infinity.
        """
        if not callable(fn) or self._guarded:
            self._check(fn)
        return self.timers.add(self._timer, delay, fn, args)

    def call_at(self, deadline: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        """Call `fn(*args)` when the loop's clock (monotonic seconds, as `now`) reaches `deadline`.

        TypeError for what is not a number, ValueError for NaN and infinity.
        """
        self._check(fn)
        deadline = number('deadline', deadline)
        return self.timers.add_at(self._timer, deadline, max(0, deadline - self._clock()), fn, args)

    def call_every(self, interval: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        """Call `fn(*args)` every `interval` seconds, the first time after one interval.

        At a fixed rate: it does not drift, beats that were missed are skipped, an exception does not end it.
        TypeError for what is not a number, ValueError unless it is finite and above 0.
        """
        self._check(fn)
        interval = number('interval', interval)
        if interval <= 0:
            raise ValueError(f'interval is a number of seconds above 0, not {interval!r}')
        return self.timers.add(self._repeating_timer, interval, fn, args)

    def add_signal_handler(self, signum: int, fn: Callable[[*Ts], object], *args: *Ts) -> SignalHandler:
        """Call `fn(*args)` in the loop each time the signal arrives; many at once may be one call.

        It stays until removed or until the reactor is closed, which restores the previous handler, and keeps `run`
        running unless unreferenced. A second handler for a signal replaces the first. ReactorError outside the main
        thread; OSError or ValueError for a signal that cannot be caught.
        """
        self._check(fn)
        whole('signum', signum, 1, MOST_SIGNUM, 'number of a signal')
        return self._signals.add(signum, fn, args)

    def remove_signal_handler(self, signum: int) -> bool:
        """Restore the handler from before; returns whether there was one of ours.

        TypeError and ValueError for what is not a number of a signal, ReactorError outside the main thread.
        """
        self.guard.check_thread()
        whole('signum', signum, 1, MOST_SIGNUM, 'number of a signal')
        return self._signals.remove(signum)

    def clear_signal_handlers(self) -> None:
        """Remove all signal handlers that were added here. ReactorError outside the main thread."""
        self.guard.check_thread()
        self._signals.clear()

    def run_in_thread(
        self,
        fn: Callable[[*Ts], Result],
        *args: *Ts,
        on_done: Callable[[Result | None, BaseException | None], object] | None = None,
    ) -> ThreadCall:
        """Call `fn(*args)` in a daemon thread, then `on_done(result, error)` in the loop, one of them None.

        At most four run at once and 1,000 wait; for one more, `on_done` gets a `ReactorError`, and where the system
        starts no thread at all. `close` of the returned handle cancels it.
        """
        self._check(fn)
        if on_done is not None:
            callback('on_done', on_done)
        return self._threads.submit(fn, args, on_done)

    def watch_fd(
        self, fd: int | HasFileno, events: int, fn: Callable[[Descriptor, int, *Ts], object], *args: *Ts
    ) -> Descriptor:
        """Call `fn(handle, event, *args)` whenever a descriptor that you own is ready, once in each turn while it is.

        fd      a number, or anything with `fileno()`: a pipe, a socket of another library, inotify, an eventfd. It has
                to be non-blocking if you read more than once, and is never read, written or closed here: call `close`
                of the returned handle first, then close it
        events  READ, WRITE or both of `reactor`, 0 for nothing yet; `set_events` of the handle changes it
        event   READ or WRITE. Both at once are two calls, READ first, the second only if it is still wanted

        An exception in `fn` is logged and ends the watch. That the descriptor was closed too early is logged, too.

        Raises PermissionError for a regular file, OSError for a number that is not open, `ReactorError` when a handle
        of this reactor has it already, `SelectorFull`, TypeError and ValueError for bad arguments.
        """
        self._check(fn)
        return Descriptor(self, self.kernel, fd, events, fn, args)  # type: ignore[arg-type]  # it is a `Loop`

    def idle(self, fn: Callable[[*Ts], object], *args: *Ts) -> Idler:
        """Call `fn(*args)` once in each turn, before all other calls, until `close` of the returned handle.

        The loop does not sleep while there is one: this is for work in small pieces, and uses all of a processor.
        """
        self._check(fn)
        return self._idlers.add(fn, args)

    def notifier(self, fn: Callable[[*Ts], object], *args: *Ts, once: bool = True) -> Notifier:
        """A handle whose `trigger()`, from any thread or signal handler, has `fn(*args)` called in the loop.

        Many triggers before the call are one call. With `once` it closes itself when it is called, else it stays. It
        keeps `run` running while it is open, unless unreferenced.
        """
        self._check(fn)
        return Notifier(self, fn, args, once)  # type: ignore[arg-type]  # it is a `Loop`

    def add_exit_callback(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have `close` call `fn(*args)` before it closes anything; the last added is called first."""
        self._check(fn)
        self._exit_callbacks.append((fn, args))

    def fileno(self) -> int:
        """The selector's own descriptor: readable when the loop has something to do, for a foreign loop to watch.

        Raises `ReactorError` for selectors without one (`poll` and `select`), `HandleClosed` after `close`.
        """
        if self.guard.closed:
            raise HandleClosed('this reactor is closed and has no descriptor any more')
        selector = self.watchers.selector
        fileno = getattr(selector, 'fileno', None)
        if fileno is None:
            raise ReactorError(f'{type(selector).__name__} has no descriptor of its own; call run_once(0) regularly')
        fd: int = fileno()
        return fd

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return Stats(self.counters, len(self.timers), self._alive.count_handles())

    def handles(self) -> list[Handle]:
        """Everything open: connections, listeners, look-ups, calls in threads, signal handlers, descriptors, idlers."""
        return self._alive.handles()

    def why_alive(self, limit: int | None = None) -> list[str]:
        """One line for each reason why `run` goes on: what it is, since when, what it waits for; at most `limit`.

        40,000 of them take a fifth of a second.
        """
        if limit is not None:
            whole('limit', limit, 0, MOST_REASONS, 'number of lines')
        return list(islice(self._alive.reasons(), limit))

    def _check(self, fn: object) -> None:
        callback('a callback', fn)
        self.guard.check()
