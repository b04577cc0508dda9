"""The event loop: runs turn after turn until nothing is left to wait for.

A turn has five phases. Each is a separate function, so that a profile shows the phases:

    _poll              wait in the selector, at most until the next timer; read the clock once for the whole turn
    _dispatch          call each ready watcher, and check right before each call which events it wants
    _run_timers        collect the due timers, then run them; a timer set by a callback waits for a later turn
    _run_soon          run the calls that were in the call_soon queue when the phase began, idlers first
    _run_completions   report what has happened, in order: on_written, on_drain, on_close ...

Only these phases call callbacks, so each callback starts on a fresh stack. A call is taken from its queue before it is
made, so an exception that leaves `run` loses nothing. No frame that exists during `select` refers to the last batch of
events, because otherwise the connections in the batch would stay alive while the loop sleeps. The loop does not know
any transport or protocol: a watcher is an object with `handle_read` and `handle_write`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import EXHAUSTION
from ..hints import BaseSelector
from ..kernel import Kernel
from .alive import Alive
from .api import LoopAPI
from .checks import callback, number, seconds, shown, whole
from .closing import end_handles, run_exit_callbacks, take_steps
from .counters import LAG_BUCKETS, Counters
from .failures import Failures, called_user
from .guard import Guard
from .idle import Idlers
from .min_wait import MinWait
from .signals import Signals
from .slow import DEBUG_LIMIT, PhaseTimer, SlowWatch
from .spins import Select, Spins
from .streams import Streams
from .threads import LOOK_UP_THREADS, THREADS, ThreadPool
from .timers import CheckedRepeatingTimer, CheckedTimer, RepeatingTimer, Timer, TimerHeap
from .wakeup import Wakeup
from .watcher import READ, WRITE, Handle, Watchers

if TYPE_CHECKING:
    from ..callbacks import CatchErrors
    from ..callbacks import Loop as Reactor

LONGEST_WAIT = 86400.0  # seconds; selectors overflow with much longer waits, and one turn a day costs nothing


class Loop(LoopAPI):
    """A single-threaded event loop. Users make a `Reactor`, a subclass whose docstring describes both classes."""

    # CPython looks up attributes fast in slots, and in an instance dictionary with up to 29 entries. A 30th entry,
    # which a user may add, makes all of these look-ups slow. That costs 5 % of a request.
    __slots__ = (
        '_main_error', '_min_wait', '_select', '_slow', '_starved', '_stopping', '_turn_began', 'completions',
        'failures', 'now', 'phase_timer', 'spins', 'streams',
    )  # fmt: skip

    now: float
    _select: Select

    def __init__(
        self,
        selector: BaseSelector | None = None,
        kernel: Kernel | None = None,
        catch_errors: CatchErrors = True,
        slow_callback: float | None = None,
        debug: bool = False,
        threads: int = THREADS,
        min_wait: float = 0.0,
    ) -> None:
        whole('threads', threads, 1, unit='number of threads')
        if slow_callback is not None and number('slow_callback', slow_callback) <= 0:
            raise ValueError(f'slow_callback must be a number of seconds above 0, not {slow_callback!r}')
        if type(catch_errors) is not bool and not callable(catch_errors):
            raise TypeError(f'catch_errors must be True, False or a callable, not {shown(catch_errors)}')
        self._min_wait = seconds('min_wait', min_wait)
        kernel = kernel or Kernel()
        self.kernel = kernel
        self.guard: Guard = Guard(kernel)
        self.streams: Streams = Streams()
        self._clock = kernel.clock
        self._guarded = debug  # whether every call is checked: in debug mode, and after `close`
        self._stopping = False
        self._main_error: Exception | None = None
        self._exit_callbacks: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._turn_began = self.now = self._clock()
        self.counters: Counters = Counters()
        self.completions: deque[tuple[Handle, Callable[..., object], tuple[Any, ...]]] = deque()
        this: Reactor = self  # type: ignore[assignment]  # for users, the `loop` of a handle is a Reactor
        selector, own = (kernel.selector(), True) if selector is None else (selector, False)
        self.watchers: Watchers = Watchers(kernel, selector)
        self.timers: TimerHeap = TimerHeap(self._clock, self.counters, self.guard.check_thread)
        self.spins: Spins = Spins(kernel, self.watchers, self.timers, self.counters, self._set_select)
        self.failures: Failures = Failures(catch_errors, self.watchers, self.timers, self.completions, self.counters)
        self._starved = self.failures.starved
        self._timer = CheckedTimer if debug else Timer
        self._repeating_timer = CheckedRepeatingTimer if debug else RepeatingTimer
        self._set_select(self.watchers.source.poll)
        try:
            self._wakeup = Wakeup(this, kernel, self._soon)
        except BaseException:
            if own:
                selector.close()  # timers and buckets refer to each other, so reference counting would not close it
            raise
        self.failures.doorbell = self._wakeup
        self._signals = Signals(this, kernel, self._wakeup, self._soon)
        self._alive = Alive(self._soon, self.completions, self._starved, self.timers, self.watchers, self._wakeup)
        self._threads = ThreadPool(this, kernel, threads, 'reactor')
        self.look_ups: ThreadPool = ThreadPool(this, kernel, LOOK_UP_THREADS, 'reactor-names')
        self._idlers = Idlers(this, self._soon)
        self.phase_timer: PhaseTimer = PhaseTimer(self, {Loop._run_main})
        self._slow: SlowWatch | None = None
        if debug or slow_callback is not None:
            limit = DEBUG_LIMIT if slow_callback is None else slow_callback
            self._slow = SlowWatch(limit, self.counters, self._clock, self.phase_timer)
            self.phase_timer.add(self._slow)

    # -- running

    def run(self, main: Callable[[Self], object] | None = None) -> bool:
        """Run until nothing is left to wait for, or until `stop` is called. `run` can be called again.

        Args:
            main: Called with the reactor in the first turn. An exception that it raises leaves `run` after that turn.

        Returns:
            True when nothing is left to wait for, False after `stop`.

        Raises:
            ReactorError: The reactor is running already.
            HandleClosed: The reactor is closed.
            OSError: The selector itself failed, for example because other code has closed its descriptor.
            KeyboardInterrupt: Ctrl-C was pressed. It is raised between two callbacks, so no waiting call is lost.
        """
        if main is not None:
            callback('main', main, '(r)')
        self._enter()
        try:
            if main is not None:
                self.call_soon(self._run_main, main)
            self._turn_began = self._clock()
            while self._soon or self.watchers.referenced or self._alive.any_reason():
                self._turn(0 if self._stopping else None)
                if self._stopping:
                    self._raise_main_error()
                    return False
            self._raise_main_error()
            return True
        except BaseException as exc:
            if self._is_over(exc):
                return True
            self._starved.append(None)
            raise
        finally:
            self._leave()

    def run_once(self, timeout: float | None = None) -> bool:
        """Run one turn, for embedding in another event loop. It does not wait when nothing is left to wait for.

        Args:
            timeout: Maximum time to wait for something to happen, in seconds. None: no limit.

        Returns:
            Whether something is left to wait for; False after `stop`.

        Raises:
            TypeError: `timeout` is not a number.
            ValueError: `timeout` is NaN.
            ReactorError, HandleClosed, OSError, KeyboardInterrupt: As in `run`.
        """
        if timeout is not None and (type(timeout) not in (int, float) or timeout != timeout):
            timeout = number('timeout', timeout)
        self._enter(timeout != 0)
        try:
            self._turn_began = self._clock()
            self._turn(timeout if self._alive.any_reason() and not self._stopping else 0)
            self._raise_main_error()
            return not self._stopping and self._alive.any_reason()
        except BaseException as exc:
            if self._is_over(exc):
                return False
            self._starved.append(None)
            raise
        finally:
            self._leave()

    def stop(self) -> None:
        """Have `run` return False at the end of this turn. Calls and events that are left wait for the next `run`."""
        if self._guarded:
            self.guard.check_thread()
        self._stopping = True

    def close(self) -> None:
        """Close the reactor. Closing twice does nothing.

        The exit callbacks run, starting with the one added last. Then every handle is aborted and its `on_close` is
        called, all during this call. In a fork of the process that made the reactor, no callback is called, because the
        open handles belong to the parent: only signal handlers are restored and the selector is closed. In a fork,
        `close` may be called in a callback.

        Raises:
            ReactorError: Called in a callback, in another thread while the reactor runs, or outside the main thread
                while there are signal handlers.
        """
        if self.guard.closed:
            return
        steps: list[tuple[Any, ...]] = [(self._signals.give_back,)]
        if not self.guard.forked():
            self._signals.check_thread()
            self._enter()
            self.guard.closing = True
            steps = [
                (self.failures.end_starved,),
                (run_exit_callbacks, self._exit_callbacks, self.failures),
                (self._signals.clear,),
                (self.timers.clear,),
                (end_handles, self._alive, self.completions, self.failures, self._run_completions),
            ]
        try:
            take_steps(steps)
        finally:
            self.guard.closed = self._guarded = True
            if self.guard.forked():  # this may be the middle of a turn, and its ready handles are the parent's
                self.watchers.disown()
            self._signals.release_wakeup()  # before another file gets the number of the wakeup's descriptor
            self.timers.close()
            self._soon.clear()
            self._wakeup.calls.clear()
            self.completions.clear()
            self._starved.clear()
            self.watchers.close()  # before the wakeup is closed: see `Watchers.close`
            self._wakeup.close()
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def timeout(self) -> float | None:
        """Return how long the next turn may wait, in seconds: 0 when calls are waiting, None for no limit."""
        starved = self._starved
        return 0 if self._wakeup.calls or starved.count(None) < len(starved) else self._wait()

    def _wait(self) -> float | None:
        # Calls from other threads are not counted here: they wake the loop through the selector.
        if self._soon or self.completions or (self.timers.due and self.timers.has_due()):
            return 0
        deadline = self.timers.next_deadline()
        if deadline is None:
            return None
        wait = deadline - self._clock()
        return 0 if wait < 0 else wait if wait < LONGEST_WAIT else LONGEST_WAIT

    # -- the turn

    def _turn(self, limit: float | None) -> None:
        counters, clock = self.counters, self._clock
        if self._starved:  # the failures that the last turn could not handle come first
            self.failures.end_starved()
            self._run_completions(len(self.completions))
            limit = 0  # do not sleep: there may be nothing left to wait for
        ready = self._poll(limit)
        began = self.now
        counters.loop_count += 1
        counters.idle_time += began - self._turn_began
        if ready:
            counters.events += len(ready)
            self.watchers.source.changed.clear()  # from here on, it says what the callbacks of this batch have changed
            self._dispatch(ready)
            began, ended = clock(), began
            counters.dispatch_time += began - ended
        timers = self.timers
        if timers.due or (timers.heap and timers.heap[0] <= self.now):
            self._run_timers(timers.collect(self.now))
            began, ended = clock(), began
            counters.timers_time += began - ended
        if self._soon:
            self._run_soon(len(self._soon))
            began, ended = clock(), began
            counters.soon_time += began - ended
        if self.completions:
            self._run_completions(len(self.completions))
            began, ended = clock(), began
            counters.completions_time += began - ended
        self._turn_began = began
        if self._slow is not None:
            self._slow.judge_turn(began - self.now)

    def _poll(self, limit: float | None) -> list[tuple[Any, int]]:
        timeout = 0 if self._soon else self._wait()
        if limit is not None and (timeout is None or limit < timeout):
            timeout = min(limit, LONGEST_WAIT)
        try:
            ready = self._select(timeout)
        except (OSError, ValueError) as exc:
            timeout = self.spins.select_failed(exc, timeout)
            ready = []
        self.now = self._clock()
        if not ready and timeout != 0:
            self.spins.nothing_ready(timeout, self.now - self._turn_began)
        return ready

    def _dispatch(self, ready: list[tuple[Any, int]]) -> None:
        signals, source = self._signals, self.watchers.source
        handles, changed, readable = source.handles, source.changed, source.readable
        for item, event in ready:
            if signals.interrupted:
                signals.raise_interrupt()  # the next poll reports the remaining events again
            try:
                watcher = handles[item]
            except KeyError:
                if item not in changed:
                    self.spins.reported_for_another()
                continue
            try:
                if event == readable and watcher.events & READ and (not changed or item not in changed):
                    watcher.handle_read()
                    continue  # most events end here
                mask = self.spins.events_of(item, event, watcher)
                if mask & watcher.events & READ:
                    watcher.handle_read()
                if mask & WRITE and watcher.events & WRITE:  # checked again: the read may have closed the watcher
                    watcher.handle_write()
                elif not mask:
                    self.spins.reported_for_another()
            except EXHAUSTION as exc:
                self._starved.append(watcher)
                self._starved.append(exc)
            except Exception as exc:
                self.failures.callback_failed(exc, watcher)

    def _run_timers(self, count: int) -> None:
        signals, counters, due, now = self._signals, self.counters, self.timers.due, self.now
        moved, lag, lag_sum = self.timers.moved, counters.timer_lag, 0.0
        try:
            for _ in range(count):
                if signals.interrupted:
                    signals.raise_interrupt()
                if not due:
                    break  # a callback has forked and closed the loop in the child
                timer = due.popleft()
                if moved and timer in moved:  # a callback of this batch has moved it to a later turn
                    self.timers.pass_over(timer)
                    continue
                deadline = timer.deadline
                if deadline is None:
                    continue  # a callback of this batch has cancelled it
                try:
                    timer.handle_due(now)
                    counters.timers_fired += 1
                    behind = now - deadline
                    lag_sum += behind  # a local variable: adding to an attribute costs 5 % of a timer
                    bucket = int(behind * 1024).bit_length()
                    lag[bucket if bucket < LAG_BUCKETS else LAG_BUCKETS - 1] += 1
                    timer.fn(*timer.args)  # type: ignore[misc]
                except EXHAUSTION as exc:
                    if called_user(exc, timer.fn if timer.deadline != deadline else None):
                        self.failures.callback_failed(exc, None)
                        continue
                    if timer.deadline is None:
                        timer.deadline = deadline
                        self.timers.pending += 1
                    if timer.deadline == deadline:  # otherwise it repeats, and its next deadline is already set
                        self._starved.append(timer)
                        self._starved.append(due)
                    self.failures.retry(exc)
                except Exception as exc:
                    self.failures.callback_failed(exc, None)
        finally:
            counters.timer_lag_sum += lag_sum
        self.timers.compact()

    def _run_soon(self, count: int) -> None:
        signals, soon = self._signals, self._soon
        for _ in range(count):
            if signals.interrupted:
                signals.raise_interrupt()
            call = fn, args = soon.popleft()
            try:
                fn(*args)
            except EXHAUSTION as exc:
                self._starved.append(call)  # kept there while the failure is handled, because this cannot fail
                self._starved.append(soon)
                self.failures.ran_out(exc, None, fn)
            except Exception as exc:
                self.failures.callback_failed(exc, None)

    def _run_completions(self, count: int) -> None:
        signals, completions = self._signals, self.completions
        for _ in range(count):
            if signals.interrupted:
                signals.raise_interrupt()
            completion = handle, fn, args = completions.popleft()
            try:
                if args:
                    fn(handle, *args)
                else:
                    fn(handle)  # faster, and most completions have no arguments
            except EXHAUSTION as exc:
                self._starved.append(completion)  # as in `_run_soon`
                self._starved.append(completions)
                self.failures.ran_out(exc, handle)
            except Exception as exc:
                self.failures.callback_failed(exc, handle)

    # -- entering and leaving

    def _set_select(self, select: Select) -> None:
        self._select = MinWait(select, self._min_wait, self.kernel.sleep).poll if self._min_wait else select

    def _enter(self, sleeps: bool = True) -> None:
        thread = self.guard.check_idle()  # before `enter`, after which nothing may fail until the `try` with `_leave`
        self._signals.enter(sleeps)  # before any state changes: from here on Ctrl-C is raised only between callbacks
        self.guard.thread = thread

    def _leave(self) -> None:
        # If another exception has ended this call in the same turn, the exception of `main` is raised by the next call.
        self._stopping = self._main_error is not None
        self.guard.thread = None
        self._signals.leave()  # this comes last: from here on Ctrl-C may be raised anywhere

    def _run_main(self, main: Callable[[Any], object]) -> None:
        try:
            main(self)
        except Exception as exc:
            self._main_error = exc
            self._stopping = True

    def _is_over(self, exc: BaseException) -> bool:
        """Return whether `exc` arose because a callback has forked and closed the child's loop, emptying its queues."""
        return self.guard.closed and type(exc) is IndexError

    def _raise_main_error(self) -> None:
        exc, self._main_error = self._main_error, None
        if exc is not None:
            try:
                raise exc
            finally:
                del exc  # its traceback refers to this frame
