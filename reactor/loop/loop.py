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

Where memory or stack runs out before a callback was reached, the call goes back to the head of its queue: see `_retry`.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from itertools import islice
from types import BuiltinFunctionType, TracebackType
from typing import Any, Self

from ..errors import HandleClosed, ReactorError
from ..hints import BaseSelector, HasFileno, Result, Ts
from ..kernel import Kernel
from .checks import callback, number, shown, whole
from .descriptor import Descriptor
from .idle import Idler, Idlers
from .log import describe, log, name_of
from .notifier import Notifier
from .signals import SignalHandler, Signals
from .slow import SlowWatch
from .stats import LAG_BUCKETS, Counters, Stats
from .threads import ThreadCall, ThreadPool
from .timers import CheckedRepeatingTimer, CheckedTimer, RepeatingTimer, Timer, TimerHeap
from .wakeup import Wakeup
from .watcher import EPISODE, READ, UNHEARD, WRITE, Handle, Watchers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from selectors import SelectorKey

    from ..callbacks import CatchErrors
    from ..callbacks import Loop as Reactor

CLOSING_ROUNDS = 1000  # a program that never ends is cut off
BLIND_PAUSE = 0.01  # seconds to block after such a poll while the selector cannot be replaced
BLIND_POLLS = 20  # in a row, before the selector is taken for broken
RESERVE = 2 << 20  # bytes let go of when memory has run out: to log that takes some, and so does ending a connection
RESERVE_RETRY = 0.1  # seconds between two attempts to have them back
MOST_REASONS = 1 << 31  # lines of `why_alive`
MOST_SIGNUM = 128  # on FreeBSD; each system refuses those that it does not have
# What may run between a phase and a callback of the user.
OWN_PACKAGES = {'reactor', 'reactor.loop', 'reactor.net', 'reactor.system'}
OWN_MODULES = {'selectors', 'socket', 'ssl'}
WRITTEN_IN_C: set[type] = {BuiltinFunctionType, type}  # functions, methods, and the making of an object
LONGEST_WAIT = 86400.0  # seconds; selectors overflow on much more, and a turn a day costs nothing


class Loop:
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
        '_blind_polls',
        '_catch_errors',
        '_clock',
        '_exit_callbacks',
        '_guarded',
        '_idlers',
        '_kernel',
        '_main_error',
        '_pid',
        '_repeating_timer',
        '_replaced_at',
        '_reserve',
        '_select',
        '_signals',
        '_slow',
        '_soon',
        '_starved',
        '_stopping',
        '_threads',
        '_timer',
        '_turn_began',
        '_wakeup',
        'completions',
        'counters',
        'now',
        'timers',
        'watchers',
    )

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
        self._kernel = kernel
        self._pid = kernel.pid()
        self._clock = kernel.clock
        self._catch_errors = catch_errors
        self._reserve: bytes | None = bytes(RESERVE)  # untouched, not even by zeros: address space, and no memory
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
        self._starved = self.watchers.starved
        self.timers: TimerHeap = TimerHeap(self._clock, self.counters, self.watchers.check_thread)
        self._timer = CheckedTimer if debug else Timer
        self._repeating_timer = CheckedRepeatingTimer if debug else RepeatingTimer
        self._select = self.watchers.selector.select
        self._blind_polls = 0  # in a row that ended early and brought nothing
        self._replaced_at = -EPISODE  # the clock when the selector was replaced last
        try:
            self._wakeup = Wakeup(this, kernel, self._soon)
        except BaseException:
            if own:
                selector.close()  # no reference count does: the timers and their buckets refer to each other
            raise
        self._signals = Signals(this, kernel, self._wakeup, self._soon)
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
            while self._soon or self.watchers.referenced or self._alive():
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
            self._turn(timeout if self._alive() and not self._stopping else 0)
            self._raise_main_error()
            return not self._stopping and self._alive()
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
            self.watchers.check_thread()
        self._stopping = True

    def close(self) -> None:
        """End it: exit callbacks run, the last added first, every handle is aborted and told, the selector is closed.

        The one call inside which callbacks run. Raises `ReactorError` from inside a callback. Closing twice does
        nothing. In a fork of the process that made it, it gives back the signals, lets go of the selector and tells
        nobody: what is open belongs to the other. There alone it may be called from a callback, the one that forked.
        """
        if self.watchers.closed:
            return
        steps: tuple[Callable[[], object], ...] = (self._signals.give_back,)
        if not self._forked():
            self._signals.check_thread()
            self._enter()
            steps = (
                self._end_starved,
                self._run_exit_callbacks,
                self._signals.clear,
                self.timers.clear,
                self._end_handles,
            )
        try:
            error = None
            for step in steps:
                for _ in range(CLOSING_ROUNDS):  # whatever callbacks raise, everything is closed first
                    try:
                        step()
                        break
                    except BaseException as exc:
                        error = exc if error is None else error
            if error is not None:
                raise error
        finally:
            self.watchers.closed = self._guarded = True
            if self._forked():  # perhaps in the middle of a turn, which ends then: what is ready is not ours to handle
                self.watchers.referenced = 0
                for handle in self.watchers:
                    handle.events = 0
            self._signals.release_wakeup()  # before the number of the doorbell is another's
            self.timers.close()
            self._soon.clear()
            self._wakeup.calls.clear()
            self.completions.clear()
            self._starved.clear()
            # First the selector: unregistering from an epoll that a fork shares would unregister it for both.
            try:
                self.watchers.selector.close()
            except OSError:
                pass  # in a fork that has not inherited its descriptor, which is how a kqueue is
            self._wakeup.close()
            self._leave()

    def add_exit_callback(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have `close` call `fn(*args)` before it closes anything; the last added is called first."""
        self._check(fn)
        self._exit_callbacks.append((fn, args))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- looking

    def timeout(self) -> float | None:
        """How long the next turn may wait, in seconds: 0 when calls wait, None for as long as it likes."""
        starved = self._starved
        if self._wakeup.calls or starved.count(None) < len(starved):
            return 0
        return self._wait()

    def _wait(self) -> float | None:
        # Calls of other threads ring, once they are queued: until then, turn after turn would find nothing to do.
        if self._soon or self.completions or (self.timers.due and self.timers.has_due()):
            return 0
        deadline = self.timers.next_deadline()
        if deadline is None:
            return None
        wait = deadline - self._clock()
        return 0 if wait < 0 else wait if wait < LONGEST_WAIT else LONGEST_WAIT

    def fileno(self) -> int:
        """The selector's own descriptor: readable when the loop has something to do, for a foreign loop to watch.

        Raises `ReactorError` for selectors without one (`poll` and `select`), `HandleClosed` after `close`.
        """
        if self.watchers.closed:
            raise HandleClosed('this reactor is closed and has no descriptor any more')
        selector = self.watchers.selector
        fileno = getattr(selector, 'fileno', None)
        if fileno is None:
            raise ReactorError(f'{type(selector).__name__} has no descriptor of its own; call run_once(0) regularly')
        fd: int = fileno()
        return fd

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return Stats(self.counters, len(self.timers), len(self.watchers) - (not self._wakeup.closed))

    def handles(self) -> list[Handle]:
        """Everything open: connections, listeners, look-ups, calls in threads, signal handlers, descriptors, idlers."""
        return [handle for handle in self.watchers if handle is not self._wakeup]

    def why_alive(self, limit: int | None = None) -> list[str]:
        """One line for each reason why `run` goes on: what it is, since when, what it waits for; at most `limit`.

        40,000 of them take a fifth of a second.
        """
        if limit is not None:
            whole('limit', limit, 0, MOST_REASONS, 'number of lines')
        return list(islice(self._reasons(), limit))

    def _reasons(self) -> Iterator[str]:
        now = self._clock()
        for fn, _ in [*self._soon, *self._wakeup.calls]:
            yield f'call_soon of {name_of(fn)}: waits for its turn'
        for handle, _, _ in self.completions:
            yield f'{describe(handle)}: has something to tell'
        for timer in self.timers:
            if self.timers.is_referenced(timer) and timer.deadline is not None:
                yield (
                    f'timer of {name_of(timer.fn)}: since {now - timer.deadline + timer.delay:.0f} s, '
                    f'waits another {timer.deadline - now:.1f} s'
                )
        for handle in self.handles():
            if self.watchers.is_referenced(handle):
                yield f'{describe(handle)}: since {now - handle.since:.0f} s, waits for {handle.waits_for()}'

    # -- calls and timers

    def call_soon(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call `fn(*args)` in the next soon-phase: this turn's when it is still to come, else the next turn's."""
        if not callable(fn) or self._guarded:
            self._check(fn)
        self._soon.append((fn, args))

    def call_soon_threadsafe(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """The same from any thread, in the order of the calls of each; wakes a loop that sleeps."""
        _check_callable(fn)
        if self.watchers.closed:
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
        self.watchers.check_thread()
        whole('signum', signum, 1, MOST_SIGNUM, 'number of a signal')
        return self._signals.remove(signum)

    def clear_signal_handlers(self) -> None:
        """Remove all signal handlers that were added here. ReactorError outside the main thread."""
        self.watchers.check_thread()
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
            _check_callable(on_done)
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
        return Descriptor(self, self._kernel, fd, events, fn, args)  # type: ignore[arg-type]  # see `this`

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
        return Notifier(self, fn, args, once)  # type: ignore[arg-type]  # see `this`

    # -- the turn

    def _turn(self, limit: float | None) -> None:
        counters, clock = self.counters, self._clock
        if self._starved:  # what the last turn left over comes before what happens next
            self._end_starved()
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
            # `select` fails as a whole for one descriptor that was closed behind our back.
            if not self.watchers.evict_closed():
                if self.watchers.selector.get_map():
                    raise self.watchers.selector_failed(exc) from None
                # `select` of Windows does not wait for nothing: the doorbell alone was open, and it is parked.
                self._kernel.sleep(BLIND_PAUSE if timeout is None else min(timeout, BLIND_PAUSE))
                timeout = 0  # it ended early, and that says nothing
            ready = []
        self.now = self._clock()
        if not ready and timeout != 0:
            self._look_for_spin(timeout)
        return ready

    def _look_for_spin(self, timeout: float | None) -> None:
        # A descriptor that was closed behind our back while a copy of it lives is reported by epoll for ever, and
        # `selectors` drops what it does not know: polls that end early with nothing. A new selector ends that.
        if timeout is not None and self.now - self._turn_began + self._kernel.clock_step >= timeout:
            self._blind_polls = 0
            return
        self._blind_polls += 1
        if self._blind_polls >= BLIND_POLLS:
            old = self.watchers.selector
            self._select = self.watchers.rebuild().select
            if self.watchers.selector is not old:
                self._blind_polls = 0
                self.counters.stalls += 1
                if self.now - self._replaced_at >= EPISODE:
                    log(
                        'warning',
                        'the selector returned early without a report %d times in a row, and was replaced; look for '
                        'code that closes descriptors which it does not own',
                        BLIND_POLLS,
                    )
                self._replaced_at = self.now
            else:  # nothing can be done about it now: try again with each such poll, without using the processor
                self._kernel.sleep(BLIND_PAUSE)

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
                self._callback_failed(exc, watcher)

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
                        self._callback_failed(exc, None)
                        continue
                    if timer.deadline is None:
                        timer.deadline = deadline
                        self.timers.pending += 1
                    if timer.deadline == deadline:  # else it repeats, and has its next beat already
                        due.appendleft(timer)
                    self._retry(exc)
                except Exception as exc:
                    self._callback_failed(exc, None)
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
                    self._callback_failed(exc, None)
                else:
                    self._retry(exc)
            except Exception as exc:
                self._callback_failed(exc, None)

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
                    self._callback_failed(exc, handle)
                else:
                    self._retry(exc, handle)
            except Exception as exc:
                self._callback_failed(exc, handle)

    # -- around it

    def _retry(self, exc: Exception, handle: Handle | None = None) -> None:
        """Memory or stack ran out before the callback was reached. The call is at the head of its queue again.

        The first time the reserve is released, and the call is made again. When there is none, and when it is the
        stack, whose frames are those of the caller of `run`, `exc` leaves `run`: nothing is lost, and it can be called
        again.
        """
        if type(exc) is RecursionError or self._reserve is None:
            raise exc
        self._reserve = None
        if handle is not None and handle.handle_exhausted(exc):
            self.completions.popleft()  # it has failed instead
        self._restore_reserve()

    def _end_starved(self) -> None:
        """Deal with the handles that found no memory or stack in the last turn: it was too late then to go on there."""
        starved = self._starved
        while starved:
            if starved[0] is None:
                starved.popleft()
                continue
            handle, exc = starved[0], starved[1]
            self._restore_reserve()
            if handle.events == UNHEARD and not handle.closed:
                self.watchers.refuse(handle, exc)
            elif called_user(exc):
                try:
                    self._callback_failed(exc, handle)
                except BaseException as failure:
                    if failure is exc or not isinstance(failure, MemoryError | RecursionError):
                        starved.popleft()
                        starved.popleft()  # it was passed on, and leaves `run` once
                    raise
            else:
                handle.handle_exhausted(exc)
            starved.popleft()
            starved.popleft()

    def _watch_slow(self, limit: float) -> None:
        self._slow = slow = SlowWatch(
            limit,
            self._clock,
            self.counters,
            self._dispatch,
            (self._run_timers, self.timers.due),
            (self._run_soon, self._soon),
            (self._run_completions, self.completions),
        )
        # On this object alone: the phases of every other loop stay what they are.
        self._dispatch = slow.dispatch  # type: ignore[method-assign]
        self._run_timers = slow.run_timers  # type: ignore[method-assign]
        self._run_soon = slow.run_soon  # type: ignore[method-assign]
        self._run_completions = slow.run_completions  # type: ignore[method-assign]

    def _alive(self) -> bool:
        return bool(
            self._soon or self.watchers.referenced or self.completions or self.timers.referenced or self._wakeup.calls
        )

    def _enter(self, sleeps: bool = True) -> None:
        if self.watchers.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        if self.watchers.thread is not None:
            raise ReactorError(
                'this reactor is running already: run, run_once and close cannot be called from its '
                'callbacks, nor from another thread; use stop() or call_soon()'
            )
        if self._forked():
            raise ReactorError('this reactor belongs to the process that forked this one; make a new one here')
        thread = (
            self._kernel.thread()
        )  # first: from `enter` on, nothing may fail before the `try` that ends in `_leave`
        self._signals.enter(sleeps)  # before anything is changed: from here on Ctrl-C is raised between callbacks only
        self.watchers.thread = thread

    def _leave(self) -> None:
        # What `main` raised waits for the next call when another exception has left this one in the same turn.
        self._stopping = self._main_error is not None
        self.watchers.thread = None
        self._signals.leave()  # last: from here on Ctrl-C is raised wherever we are

    def _forked(self) -> bool:
        return self._kernel.pid() != self._pid

    def _check(self, fn: object) -> None:
        _check_callable(fn)
        self.watchers.check()

    def _run_main(self, main: Callable[[Any], object]) -> None:
        try:
            main(self)
        except Exception as exc:
            self._main_error = exc
            self._stopping = True

    def _is_over(self, exc: BaseException) -> bool:
        """Whether a callback has forked and closed this loop in the child: its phase then finds its queue empty."""
        return self.watchers.closed and type(exc) is IndexError

    def _raise_main_error(self) -> None:
        exc, self._main_error = self._main_error, None
        if exc is not None:
            try:
                raise exc
            finally:
                del exc  # its traceback has this frame

    def _end_handles(self) -> None:
        error = None
        for _ in range(CLOSING_ROUNDS):  # closing a connection may open another
            for handle in self.handles():
                try:
                    handle.reset(None)
                except BaseException as exc:
                    error = exc  # the others are closed all the same
            if not self.completions:
                break
            self._run_completions(len(self.completions))
        if error is not None:
            raise error

    def _run_exit_callbacks(self) -> None:
        while self._exit_callbacks:
            fn, args = self._exit_callbacks.pop()
            try:
                fn(*args)
            except Exception as exc:
                self.counters.callback_errors += 1
                if callable(self._catch_errors):
                    self._report(exc, None)
                else:
                    self._log(exc, None)

    def _set_aside(self, handle: Handle) -> None:
        """Have the reserve again, for the next who finds no memory. A completion, behind those that give some back."""
        try:
            self._reserve = bytes(RESERVE)
        except MemoryError:
            try:
                self.timers.unreferenced_later(RESERVE_RETRY, self._set_aside, handle)
            except MemoryError:
                pass  # it is tried again when the next callback finds no memory

    def _restore_reserve(self) -> None:
        """Have the reserve again, if it was released, when what happens now is over."""
        if self._reserve is None:
            self.completions.append((self._wakeup, self._set_aside, ()))

    def _callback_failed(self, exc: Exception, handle: Handle | None) -> None:
        """Deal with an exception in a user's callback. Without memory or stack for that, its handle fails anyway."""
        if type(exc) is MemoryError:
            self._reserve = None
        try:
            self._settle(exc, handle)
        except (MemoryError, RecursionError) as failure:
            if failure is exc:
                raise  # with `catch_errors=False`
            self._reserve = None
            if handle is not None:
                self.completions.append((handle, _fail, (exc,)))
        finally:
            if self._reserve is None:
                self._restore_reserve()

    def _settle(self, exc: Exception, handle: Handle | None) -> None:
        """One place decides what an exception in a user's callback does: see `catch_errors`."""
        self.counters.callback_errors += 1
        on_error = getattr(handle, 'on_error', None)
        if on_error is not None:
            try:
                on_error(handle, exc)
                return
            except Exception as another:
                exc = another
        elif self._catch_errors is False:
            raise exc
        try:
            if self._catch_errors is True or self._catch_errors is False:  # False: `on_error` has raised it
                self._log(exc, handle)
            else:
                self._report(exc, handle)
        finally:  # KeyboardInterrupt and SystemExit leave a logger too, and the connection ends all the same
            if handle is not None:
                handle.handle_failed(exc)
            del exc  # its traceback may hold this frame

    def _report(self, exc: Exception, handle: Handle | None) -> None:
        assert callable(self._catch_errors)
        try:
            self._catch_errors(exc, handle)
        except Exception as another:
            self._log(another, handle)

    def _log(self, exc: Exception, handle: Handle | None) -> None:
        if handle is not None and not handle.may_log():
            return
        where = 'a callback' if handle is None else f'a callback of {describe(handle)}'
        log('error', 'exception in %s', where, exc=exc)


def _fail(handle: Handle, exc: Exception) -> None:
    """Called as a completion when an exception of one of its callbacks could not be dealt with at once."""
    handle.handle_failed(exc)


def called_user(exc: BaseException, fn: object = None) -> bool:
    """Whether `exc`, which a phase has caught, came when code was reached that is not the reactor's own.

    A function written in C has no frame that would show it. So when the phase was about to call one, `fn`, the error
    is taken for its own: called again, it would fail again, for ever.

    It calls nothing, since it may have been the stack that ran out.
    """
    traceback = exc.__traceback__
    while traceback is not None:
        names = traceback.tb_frame.f_globals
        if '__name__' not in names or not (names['__package__'] in OWN_PACKAGES or names['__name__'] in OWN_MODULES):
            return True
        if names['__name__'] == Watchers.__module__:
            return False  # what it calls is a selector, which may be the user's own
        traceback = traceback.tb_next
    while type(fn) is functools.partial:
        fn = fn.func
    traceback = exc.__traceback__
    return type(fn) in WRITTEN_IN_C and traceback is not None and traceback.tb_next is None


def _check_callable(fn: object) -> None:
    callback('a callback', fn)
