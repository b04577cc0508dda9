"""The loop: one turn after the other, until nothing is left to wait for.

Owns the order in which things happen. Knows no transport and no protocol: a watcher is something with `handle_read`
and `handle_write`. A turn has five phases, each a function of its own, so that a profile splits by phase:

    _poll              wait in the selector, no longer than until the next timer; read the turn's clock once
    _dispatch          tell each ready watcher, asking again what it wants right before each call
    _run_timers        collect what is due, then run it; a timer set meanwhile waits for a later turn
    _run_soon          the call_soon queue, as long as it was when the phase began, idlers at its head
    _run_completions   on_written, on_drain, on_close ...: what has happened and was not told yet, in that order

The rules: users are called from these phases and from nowhere else, so always on a fresh stack. What waits is taken
from its queue before it is called, so an exception that leaves `run` loses nothing. And no frame that lives across
`select` holds the last batch, whose connections would stay alive while the loop sleeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ..hints import BaseSelector
from ..kernel import Kernel
from .alive import Alive
from .api import LoopAPI
from .checks import callback, number, shown
from .closing import end_handles, run_exit_callbacks, take_steps
from .counters import LAG_BUCKETS, Counters
from .failures import Failures, called_user
from .guard import Guard
from .idle import Idlers
from .signals import Signals
from .slow import SlowWatch
from .spins import BLIND_PAUSE, BLIND_POLLS, Spins
from .streams import Streams
from .threads import ThreadPool
from .timers import CheckedRepeatingTimer, CheckedTimer, RepeatingTimer, Timer, TimerHeap
from .wakeup import Wakeup
from .watcher import READ, WRITE, Handle, Watchers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from selectors import SelectorKey

    from ..callbacks import CatchErrors
    from ..callbacks import Loop as Reactor

LONGEST_WAIT = 86400.0  # seconds; selectors overflow on much more, and a turn a day costs nothing


class Loop(LoopAPI):
    """A single-threaded event loop.

    selector      a new `selectors` selector, by default the best of the platform; the loop closes it
    kernel        what stands for the operating system, for tests and simulation
    catch_errors  True: an exception raised by a callback is logged with its traceback, and its connection, if it
                  belongs to one without `on_error`, is aborted. Those of a listener's connections, which clients can
                  cause at will, are logged once a second, and all counted. A callable `fn(exc, handle_or_None)` is
                  called instead of the log. False: it leaves `run`.
    slow_callback a number of seconds: a callback, or a whole turn, that takes as long is logged with the name and line
                  of the callback, at most once a second, and counted
    debug         check in every call that it comes from the loop's thread

    It is also a context manager that closes itself. After `close`, each method that begins something (a call, a timer,
    a connection, a look-up, a child) raises `HandleClosed`. One thread at a time; only `call_soon_threadsafe`, and
    `trigger` of a notifier, may be called from others.
    """

    # CPython finds an attribute at once in a slot, and among up to 29 of an instance. The 30th, which may be a user's,
    # makes all of them slow: 5 % of a request.
    __slots__ = (
        '_blind_polls', '_main_error', '_select', '_slow', '_starved', '_stopping', '_turn_began', 'completions',
        'failures', 'now', 'spins', 'streams',
    )  # fmt: skip

    now: float

    def __init__(
        self,
        selector: BaseSelector | None = None,
        kernel: Kernel | None = None,
        catch_errors: CatchErrors = True,
        slow_callback: float | None = None,
        debug: bool = False,
    ) -> None:
        if slow_callback is not None and number('slow_callback', slow_callback) <= 0:
            raise ValueError(f'slow_callback is a number of seconds above 0, not {slow_callback!r}')
        if type(catch_errors) is not bool and not callable(catch_errors):
            raise TypeError(f'catch_errors is True, False or a callable, not {shown(catch_errors)}')
        kernel = kernel or Kernel()
        self.kernel = kernel
        self.guard: Guard = Guard(kernel)
        self.streams: Streams = Streams()
        self._clock = kernel.clock
        self._guarded = debug  # whether every call is checked: in debug mode, and once it is closed
        self._stopping = False
        self._main_error: Exception | None = None
        self._exit_callbacks: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._turn_began = self.now = self._clock()
        self.counters: Counters = Counters()
        self.completions: deque[tuple[Handle, Callable[..., object], tuple[Any, ...]]] = deque()
        this: Reactor = self  # type: ignore[assignment]  # handles are typed with what users find in their `loop`
        own = selector is None
        selector = kernel.selector() if selector is None else selector
        self.watchers: Watchers = Watchers(kernel, selector)
        self.timers: TimerHeap = TimerHeap(self._clock, self.counters, self.guard.check_thread)
        self.spins: Spins = Spins(kernel, self.watchers, self.timers, self.counters)
        self.failures: Failures = Failures(catch_errors, self.watchers, self.timers, self.completions, self.counters)
        self._starved = self.failures.starved
        self._timer = CheckedTimer if debug else Timer
        self._repeating_timer = CheckedRepeatingTimer if debug else RepeatingTimer
        self._select = self.watchers.selector.select
        self._blind_polls = 0  # in a row that ended early and brought nothing
        try:
            self._wakeup = Wakeup(this, kernel, self._soon)
        except BaseException:
            if own:
                selector.close()  # no reference count does: the timers and their buckets refer to each other
            raise
        self.failures.doorbell = self._wakeup
        self._signals = Signals(this, kernel, self._wakeup, self._soon)
        self._alive = Alive(self._soon, self.completions, self.timers, self.watchers, self._wakeup)
        self._threads = ThreadPool(this, kernel)
        self._idlers = Idlers(this, self._soon)
        self._slow: SlowWatch | None = None
        if slow_callback is not None:
            self._watch_slow(slow_callback)

    # -- running

    def run(self, main: Callable[[Self], object] | None = None) -> bool:
        """Run until nothing is left to wait for (returns True) or until `stop` (returns False).

        main: called with the reactor in the first turn. An exception it raises leaves `run`, after that turn.

        Raises `ReactorError` when the loop runs already, `HandleClosed` after `close`. It can be called again.
        Raises `OSError` when the selector fails as a whole and no watched descriptor is the reason, as when other code
        has closed the selector's own descriptor: nothing can be waited for then. Nothing that waits is lost.
        Ctrl-C raises `KeyboardInterrupt` between two callbacks, and nothing that waits is lost.
        """
        if main is not None:
            callback('main', main)
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
        """Run one turn that waits at most `timeout` seconds (None: until something happens); for embedding.

        Returns whether something is left to wait for, and False after `stop`. Never waits when nothing is left. Raises
        as `run` does, TypeError for a timeout that is not a number, ValueError for NaN.
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
        """Have `run` return at the end of this turn; what is left to do waits for the next `run`."""
        if self._guarded:
            self.guard.check_thread()
        self._stopping = True

    def close(self) -> None:
        """End it: exit callbacks run, the last added first, every handle is aborted and told, the selector is closed.

        The one call inside which callbacks run. Raises `ReactorError` from inside a callback. Closing twice does
        nothing. In a fork of the process that made it, it gives back the signals, lets go of the selector and tells
        nobody: what is open belongs to the other. There alone it may be called from a callback, the one that forked.
        """
        if self.guard.closed:
            return
        steps: list[tuple[Any, ...]] = [(self._signals.give_back,)]
        if not self.guard.forked():
            self._signals.check_thread()
            self._enter()
            steps = [
                (self.failures.end_starved,),
                (run_exit_callbacks, self._exit_callbacks, self.failures),
                (self._signals.clear,),
                (self.timers.clear,),
                (end_handles, self._alive, self.completions, self._run_completions),
            ]
        try:
            take_steps(steps)
        finally:
            self.guard.closed = self._guarded = True
            if self.guard.forked():  # perhaps in the middle of a turn: what is ready is not ours to handle
                self.watchers.disown()
            self._signals.release_wakeup()  # before the number of the doorbell is another's
            self.timers.close()
            self._soon.clear()
            self._wakeup.calls.clear()
            self.completions.clear()
            self._starved.clear()
            self.watchers.close()  # before the doorbell, see there
            self._wakeup.close()
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def timeout(self) -> float | None:
        """How long the next turn may wait, in seconds: 0 when calls wait, None for as long as it likes."""
        starved = self._starved
        if self._wakeup.calls or starved.count(None) < len(starved):
            return 0
        return self._wait()

    def _wait(self) -> float | None:
        # LoopAPI of other threads ring, once they are queued: until then, turn after turn would find nothing to do.
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
        if self._starved:  # what the last turn left over comes before what happens next
            self.failures.end_starved()
            self._run_completions(len(self.completions))
            limit = 0  # perhaps nothing is left to wait for
        ready = self._poll(limit)
        began = self.now
        counters.loop_count += 1
        counters.idle_time += began - self._turn_began
        if ready:
            counters.events += len(ready)
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

    def _poll(self, limit: float | None) -> list[tuple[SelectorKey, int]]:
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
            self._look_for_spin(timeout)
        return ready

    def _look_for_spin(self, timeout: float | None) -> None:
        # A descriptor that was closed behind our back while a copy of it lives is reported by epoll for ever, and
        # `selectors` drops what it does not know: polls that end early with nothing. A new selector ends that.
        if timeout is not None and self.now - self._turn_began + self.kernel.clock_step >= timeout:
            self._blind_polls = 0
            return
        self._blind_polls += 1
        if self._blind_polls >= BLIND_POLLS:
            old = self.watchers.selector
            self._select = self.watchers.rebuild().select
            if self.watchers.selector is not old:
                self._blind_polls = 0
                self.spins.selector_replaced(self.now)
            else:  # nothing can be done about it now: try again with each such poll, without using the processor
                self.kernel.sleep(BLIND_PAUSE)

    def _dispatch(self, ready: list[tuple[SelectorKey, int]]) -> None:
        signals = self._signals
        for key, mask in ready:
            if signals.interrupted:
                signals.raise_interrupt()  # what is left of the batch is ready again next time
            watcher = key.data
            try:
                if mask & watcher.events & READ:
                    watcher.handle_read()
                if mask & WRITE and watcher.events & WRITE:  # asked again: the read may have closed it
                    watcher.handle_write()
            except (MemoryError, RecursionError) as exc:
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
                    break  # one of them has forked and has closed the loop in the child
                timer = due.popleft()
                if moved and timer in moved:  # one of this very batch has moved it to a later turn
                    self.timers.pass_over(timer)
                    continue
                deadline = timer.deadline
                if deadline is None:
                    continue  # cancelled by one of this batch
                try:
                    timer.handle_due(now)
                    counters.timers_fired += 1
                    behind = now - deadline
                    lag_sum += behind  # added up in here: an attribute for each timer costs 5 % of it
                    late = int(behind * 1024)
                    lag[min(late.bit_length(), LAG_BUCKETS - 1) if late else 0] += 1
                    timer.fn(*timer.args)  # type: ignore[misc]
                except (MemoryError, RecursionError) as exc:
                    if called_user(exc, timer.fn if timer.deadline != deadline else None):
                        self.failures.callback_failed(exc, None)
                        continue
                    if timer.deadline is None:
                        timer.deadline = deadline
                        self.timers.pending += 1
                    if timer.deadline == deadline:  # else it repeats, and has its next beat already
                        due.appendleft(timer)
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
            except (MemoryError, RecursionError) as exc:
                soon.appendleft(call)
                if called_user(exc, fn):
                    soon.popleft()
                    self.failures.callback_failed(exc, None)
                else:
                    self.failures.retry(exc)
            except Exception as exc:
                self.failures.callback_failed(exc, None)

    def _run_completions(self, count: int) -> None:
        signals, completions = self._signals, self.completions
        for _ in range(count):
            if signals.interrupted:
                signals.raise_interrupt()
            completion = handle, fn, args = completions.popleft()
            try:
                fn(handle, *args)
            except (MemoryError, RecursionError) as exc:
                completions.appendleft(completion)
                if called_user(exc):
                    completions.popleft()
                    self.failures.callback_failed(exc, handle)
                else:
                    self.failures.retry(exc, handle)
            except Exception as exc:
                self.failures.callback_failed(exc, handle)

    # -- around it

    def _watch_slow(self, limit: float) -> None:
        phases = self._dispatch, self._run_timers, self._run_soon, self._run_completions
        queues = self.timers.due, self._soon, self.completions
        self._slow = slow = SlowWatch(limit, self._clock, self.counters, phases, queues, Loop._run_main)
        # On this object alone: the phases of every other loop stay what they are.
        vars(self).update(slow.phases())

    def _enter(self, sleeps: bool = True) -> None:
        thread = self.guard.check_idle()  # first: from `enter` on, nothing may fail before the `try` with `_leave`
        self._signals.enter(sleeps)  # before anything is changed: from here on Ctrl-C is raised between callbacks only
        self.guard.thread = thread

    def _leave(self) -> None:
        # What `main` raised waits for the next call when another exception has left this one in the same turn.
        self._stopping = self._main_error is not None
        self.guard.thread = None
        self._signals.leave()  # last: from here on Ctrl-C is raised wherever we are

    def _run_main(self, main: Callable[[Any], object]) -> None:
        try:
            main(self)
        except Exception as exc:
            self._main_error = exc
            self._stopping = True

    def _is_over(self, exc: BaseException) -> bool:
        """Whether a callback has forked and closed this loop in the child: its phase then finds its queue empty."""
        return self.guard.closed and type(exc) is IndexError

    def _raise_main_error(self) -> None:
        exc, self._main_error = self._main_error, None
        if exc is not None:
            try:
                raise exc
            finally:
                del exc  # its traceback has this frame
