"""`loop.failures`: handles exceptions that callbacks raise, and calls that run out of memory or stack.

- An exception is passed to `on_error` of its handle or to the callable `catch_errors`, or it is logged, or it leaves
  `run`.
- When memory or stack ran out before a callback was reached, the call goes back to the head of its queue: see `retry`.
- A handle that ran out of memory or stack in its own methods is added to `starved`, and the next turn begins with it.

A reserve of memory is released when memory has run out, because logging an error and closing a connection need some.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType
from typing import Any, TypeAlias

from ..errors import EXHAUSTION
from .counters import Counters
from .log import describe, log, place_of
from .timers import TimerHeap
from .watcher import UNHEARD, Handle, Watchers

CatchErrors: TypeAlias = bool | Callable[[Exception, Handle | None], object]

RESERVE = 2 << 20  # the size of the reserve in bytes
LOG_INTERVAL = 1.0  # seconds between two log lines for the same exception in callbacks of handles
MOST_LOGGED = 100  # how many different exceptions are remembered for that limit
RESERVE_RETRY = 0.1  # seconds between two attempts to allocate the reserve again
# Packages and modules whose code may run between a phase of the turn and the user's callback.
OWN_PACKAGES = {'reactor', 'reactor.admission', 'reactor.kernel', 'reactor.loop', 'reactor.net', 'reactor.system'}
OWN_MODULES = {'selectors', 'socket', 'ssl'}
WRITTEN_IN_C: set[type[object]] = {BuiltinFunctionType, type}  # the types of C functions and methods, and of classes


class Failures:
    """Handles the exceptions that the phases of one loop catch."""

    __slots__ = (
        '_completions', '_counters', '_logged', '_reserve', '_timers', '_watchers', 'catch_errors', 'doorbell',
        'starved',
    )  # fmt: skip

    doorbell: Handle  # the loop's wakeup, set by the loop: completions that are queued here need some handle

    def __init__(
        self,
        catch_errors: CatchErrors,
        watchers: Watchers,
        timers: TimerHeap,
        completions: deque[tuple[Handle, Callable[..., object], tuple[Any, ...]]],
        counters: Counters,
    ) -> None:
        self.catch_errors: CatchErrors = catch_errors
        # Handles that ran out of memory or stack, each followed by its exception: a tuple of both would need memory.
        # Also a call that ran out, followed by its queue. None marks an exception that has left a turn.
        self.starved: deque[Any] = deque()
        self._watchers = watchers
        self._timers = timers
        self._completions = completions
        self._counters = counters
        self._logged: dict[object, float] = {}  # maps (exception type, function) to the time of the last log line
        self._reserve: bytes | None = bytes(RESERVE)  # never written to, so it takes only address space

    def callback_failed(self, exc: Exception, handle: Handle | None) -> None:
        """Handle an exception in a user's callback. If memory or stack runs out here, the handle still fails."""
        if type(exc) is MemoryError:
            self._reserve = None
        try:
            self._settle(exc, handle)
        except EXHAUSTION as failure:
            if failure is exc:
                raise  # `catch_errors` is False: the exception leaves `run`
            self._reserve = None
            if handle is not None:
                self._completions.append((handle, _fail, (exc,)))
        finally:
            if self._reserve is None:
                self._restore_reserve()

    def unheard(self, handle: Handle, exc: BaseException | None) -> None:
        """Have an error logged, if the handle has no `on_close` that gets it when it is reported."""
        if handle.on_close is None:  # type: ignore[attr-defined]  # a stream or a datagram socket
            self._completions.append((handle, _log_unheard, (self, exc)))

    def thread_call_failed(self, name: str, exc: BaseException) -> None:
        """Log an exception in a thread that no `on_done` gets."""
        code, _, _ = _raised_in(exc)
        if self.is_news((type(exc), code)):
            log('error', 'run_in_thread(%s) failed, and has no on_done= that gets the error', name, exc=exc)

    def exit_callback_failed(self, exc: Exception) -> None:
        """Report an exception in an exit callback. It is not raised, because the other exit callbacks have to run."""
        self._counters.callback_errors += 1
        self._report(exc, None)

    def ran_out(self, exc: Exception, handle: Handle | None, fn: object = None) -> None:
        """Called when memory or stack ran out in a call. The call and its queue are the last two items of `starved`.

        If the call had reached the user's code, the callback has failed. Otherwise the call is repeated, see `retry`.
        """
        if called_user(exc, fn):
            self.starved.pop()
            self.starved.pop()
            self.callback_failed(exc, handle)
        else:
            self.retry(exc, handle)

    def retry(self, exc: Exception, handle: Handle | None = None) -> None:
        """Called when memory or stack ran out before a callback was reached: have the call repeated.

        The call goes from `starved` back to the head of its queue. The first time, the reserve is released. If the
        reserve is gone, or if the stack has run out (its frames belong to the caller of `run`), raise `exc`, which
        leaves `run`. Nothing is lost, and `run` can be called again: a call that could not go back, because its queue
        would have needed memory, stays in `starved`.
        """
        leaves = type(exc) is RecursionError or self._reserve is None
        if type(exc) is MemoryError:
            self._reserve = None
        self._put_back()
        if leaves:
            raise exc
        if handle is not None and handle.handle_exhausted(exc):
            self._completions.popleft()  # the handle has failed, so the call is not repeated
        self._restore_reserve()

    def _put_back(self) -> None:
        starved = self.starved
        if starved and isinstance(starved[-1], deque):  # a repeating timer is not there: it is pending again
            starved[-1].appendleft(starved[-2])
            starved.pop()
            starved.pop()

    def end_starved(self) -> None:
        """Handle the failures that the last turn could not handle because memory or stack had run out."""
        starved = self.starved
        while starved:
            if starved[0] is None:
                starved.popleft()
                continue
            handle, exc = starved[0], starved[1]
            self._restore_reserve()
            if isinstance(exc, deque):  # the queue of a call that could not be put back
                exc.appendleft(handle)
            elif handle.events == UNHEARD and not handle.closed:
                self._watchers.refuse(handle, exc)
            elif called_user(exc):
                try:
                    self.callback_failed(exc, handle)
                except BaseException as failure:
                    if failure is exc or not isinstance(failure, EXHAUSTION):
                        starved.popleft()
                        starved.popleft()  # an exception leaves `run` only once
                    raise
            else:
                handle.handle_exhausted(exc)
            starved.popleft()
            starved.popleft()

    def _set_aside(self, handle: Handle) -> None:
        # Runs as a completion, because earlier completions may have released some memory.
        try:
            self._reserve = bytes(RESERVE)
        except MemoryError:
            try:
                self._timers.unreferenced_later(RESERVE_RETRY, self._set_aside, handle)
            except MemoryError:
                pass  # retried the next time a callback runs out of memory

    def _restore_reserve(self) -> None:
        """If the reserve was released, allocate it again once the current failure has been handled."""
        if self._reserve is None:
            self._completions.append((self.doorbell, self._set_aside, ()))

    def _settle(self, exc: Exception, handle: Handle | None) -> None:
        """Pass on an exception in a user's callback as `on_error` and `catch_errors` say. Only this method decides."""
        self._counters.callback_errors += 1
        on_error = getattr(handle, 'on_error', None)
        if on_error is not None:
            try:
                on_error(handle, exc)
                return
            except Exception as another:
                exc = another
        elif self.catch_errors is False:
            raise exc
        try:
            self._report(exc, handle)
        finally:  # even if KeyboardInterrupt or SystemExit leaves the logger, the connection has to end
            if handle is not None:
                handle.handle_failed(exc)
            del exc  # its traceback may refer to this frame

    def _report(self, exc: Exception, handle: Handle | None) -> None:
        """Pass `exc` to `catch_errors` if that is a callable; otherwise log it."""
        if callable(self.catch_errors):
            try:
                self.catch_errors(exc, handle)
            except Exception as another:
                self._log(another, handle)
        else:
            self._log(exc, handle)

    def _log(self, exc: Exception, handle: Handle | None) -> None:
        # Peers can cause exceptions at will. The listener limits how many are logged for its connections. For
        # other handles, exceptions of the same type from the same code are logged at most once per LOG_INTERVAL.
        if handle is not None and not handle.may_log():
            return
        code, module, phases = _raised_in(exc)
        if handle is not None and not (handle.has_log_limit() or self.is_news((type(exc), code))):
            return
        kind = 'timer callback' if '_run_timers' in phases else 'callback'
        what = f'a {kind}' if code is None else f'the {kind} {place_of(code, module)}'
        if handle is None:
            log('error', 'exception in %s', what, exc=exc)
        else:
            log('error', 'exception in %s of %s', what, handle, exc=exc)

    def is_news(self, key: object) -> bool:
        """Return whether an error may be logged now: at most once per LOG_INTERVAL for each key."""
        now, logged = self._timers.clock(), self._logged
        if now - logged.get(key, -LOG_INTERVAL) < LOG_INTERVAL:
            return False
        if len(logged) >= MOST_LOGGED:
            logged.clear()
        logged[key] = now
        return True


def _raised_in(exc: BaseException) -> tuple[CodeType | None, object, list[str]]:
    """Return the user's function that was called, its module, and the functions of the reactor that led to it."""
    ours: list[str] = []
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get('__package__') not in OWN_PACKAGES:
            return frame.f_code, frame.f_globals.get('__name__'), ours
        ours.append(frame.f_code.co_name)
        traceback = traceback.tb_next
    return None, None, ours  # a function written in C has no frame


def _log_unheard(handle: Handle, failures: Failures, exc: BaseException) -> None:
    # Runs as a completion, because the program may set `on_close` after the call that has failed.
    text = describe(exc)
    if handle.on_close is None and failures.is_news(text):  # type: ignore[attr-defined]
        log('warning', '%s. No on_close= gets this error, so it is logged', text)


def _fail(handle: Handle, exc: Exception) -> None:
    # Runs as a completion, for a callback's exception that could not be handled at once.
    handle.handle_failed(exc)


def called_user(exc: BaseException, fn: object = None) -> bool:
    """Return whether `exc`, which a phase has caught, was raised after the call had reached code outside the reactor.

    A function written in C has no frame that would show this. So if the phase called such a function directly, `fn`,
    the error counts as the function's own. Otherwise the call would be repeated for ever, and fail each time.

    This function calls nothing, because the stack may have run out.
    """
    traceback = exc.__traceback__
    while traceback is not None:
        names = traceback.tb_frame.f_globals
        if '__name__' not in names or not (names['__package__'] in OWN_PACKAGES or names['__name__'] in OWN_MODULES):
            return True
        if names['__name__'] == Watchers.__module__:
            return False  # this module calls the selector, whose class may be the user's own
        traceback = traceback.tb_next
    while type(fn) is functools.partial:
        fn = fn.func
    traceback = exc.__traceback__
    return type(fn) in WRITTEN_IN_C and traceback is not None and traceback.tb_next is None
