"""What becomes of an exception that a callback raised, and of a call that found no memory or stack, `loop.failures`.

- An exception goes to `on_error` of its handle, to the callable `catch_errors`, or to the log, or it leaves `run`.
- Where memory or stack ran out before a callback was reached, the call goes back to the head of its queue: see `retry`.
- A handle that could not go on in its own methods waits in `starved`, and the next turn begins with it.

A reserve of memory is released when memory has run out, because logging an error and ending a connection take some.
"""

from __future__ import annotations

import functools
from collections import deque
from types import BuiltinFunctionType

from .log import describe, log
from .watcher import UNHEARD, Watchers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from .counters import Counters
    from .timers import TimerHeap
    from .watcher import Handle

    CatchErrors: TypeAlias = bool | Callable[[Exception, Handle | None], object]

RESERVE = 2 << 20  # bytes
RESERVE_RETRY = 0.1  # seconds between two attempts to have them back
# What may run between a phase and a callback of the user.
OWN_PACKAGES = {'reactor', 'reactor.admission', 'reactor.kernel', 'reactor.loop', 'reactor.net', 'reactor.system'}
OWN_MODULES = {'selectors', 'socket', 'ssl'}
WRITTEN_IN_C = {BuiltinFunctionType, type}  # functions, methods, and the making of an object


class Failures:
    """Deals with the exceptions that the phases of one loop catch."""

    __slots__ = ('_completions', '_counters', '_reserve', '_timers', '_watchers', 'catch_errors', 'doorbell', 'starved')

    doorbell: Handle  # of the loop, set when it is there: the completions of this object need a handle

    def __init__(
        self,
        catch_errors: CatchErrors,
        watchers: Watchers,
        timers: TimerHeap,
        completions: deque[tuple[Handle, Callable[..., object], tuple[Any, ...]]],
        counters: Counters,
    ) -> None:
        self.catch_errors: CatchErrors = catch_errors
        # Each handle that found no memory or stack, then its exception: nothing is allocated to note that. None when an
        # exception has left a turn.
        self.starved: deque[Any] = deque()
        self._watchers = watchers
        self._timers = timers
        self._completions = completions
        self._counters = counters
        self._reserve: bytes | None = bytes(RESERVE)  # untouched, not even by zeros: address space, and no memory

    def callback_failed(self, exc: Exception, handle: Handle | None) -> None:
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
                self._completions.append((handle, _fail, (exc,)))
        finally:
            if self._reserve is None:
                self._restore_reserve()

    def exit_callback_failed(self, exc: Exception) -> None:
        """Report an exception of an exit callback. It never leaves `close`: the others have to run."""
        self._counters.callback_errors += 1
        self._report(exc, None)

    def retry(self, exc: Exception, handle: Handle | None = None) -> None:
        """Memory or stack ran out before the callback was reached. The call is at the head of its queue again.

        The first time the reserve is released, and the call is made again. When there is none, and when it is the
        stack, whose frames are those of the caller of `run`, `exc` leaves `run`: nothing is lost, and it can be called
        again.
        """
        if type(exc) is RecursionError or self._reserve is None:
            raise exc
        self._reserve = None
        if handle is not None and handle.handle_exhausted(exc):
            self._completions.popleft()  # it has failed instead
        self._restore_reserve()

    def end_starved(self) -> None:
        """Deal with the handles that found no memory or stack in the last turn: it was too late then to go on there."""
        starved = self.starved
        while starved:
            if starved[0] is None:
                starved.popleft()
                continue
            handle, exc = starved[0], starved[1]
            self._restore_reserve()
            if handle.events == UNHEARD and not handle.closed:
                self._watchers.refuse(handle, exc)
            elif called_user(exc):
                try:
                    self.callback_failed(exc, handle)
                except BaseException as failure:
                    if failure is exc or not isinstance(failure, MemoryError | RecursionError):
                        starved.popleft()
                        starved.popleft()  # it was passed on, and leaves `run` once
                    raise
            else:
                handle.handle_exhausted(exc)
            starved.popleft()
            starved.popleft()

    def _set_aside(self, handle: Handle) -> None:
        # A completion, after those that give some memory back.
        try:
            self._reserve = bytes(RESERVE)
        except MemoryError:
            try:
                self._timers.unreferenced_later(RESERVE_RETRY, self._set_aside, handle)
            except MemoryError:
                pass  # it is tried again when the next callback finds no memory

    def _restore_reserve(self) -> None:
        """Have the reserve again, if it was released, when what happens now is over."""
        if self._reserve is None:
            self._completions.append((self.doorbell, self._set_aside, ()))

    def _settle(self, exc: Exception, handle: Handle | None) -> None:
        """One place decides what an exception in a user's callback does: see `catch_errors`."""
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
        finally:  # KeyboardInterrupt and SystemExit leave a logger too, and the connection ends all the same
            if handle is not None:
                handle.handle_failed(exc)
            del exc  # its traceback may hold this frame

    def _report(self, exc: Exception, handle: Handle | None) -> None:
        """Pass `exc` to the callable `catch_errors`, else log it."""
        if callable(self.catch_errors):
            try:
                self.catch_errors(exc, handle)
            except Exception as another:
                _log(another, handle)
        else:
            _log(exc, handle)


def _log(exc: Exception, handle: Handle | None) -> None:
    if handle is not None and not handle.may_log():
        return
    where = 'a callback' if handle is None else f'a callback of {describe(handle)}'
    log('error', 'exception in %s', where, exc=exc)


def _fail(handle: Handle, exc: Exception) -> None:
    # A completion, when an exception of one of its callbacks could not be dealt with at once.
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
