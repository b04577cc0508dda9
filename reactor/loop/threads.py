"""Runs blocking calls in a few threads, and passes their results to the loop.

Only the loop's thread changes state. A worker thread takes calls until the queue is empty, and then ends. It uses only
the queue and `call_soon_threadsafe`. So there is no lock, no idle thread, and nothing to shut down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, ReactorError
from ..kernel import Kernel
from .log import name_of
from .watcher import Handle

if TYPE_CHECKING:
    from ..callbacks import Loop

THREADS = 4  # libuv's default
LOOK_UP_THREADS = 4  # more would only help look-ups that wait for slow name servers
QUEUE_LIMIT = 1000  # how many calls may wait for a thread
RETRY = 0.01  # seconds before a thread that ran out of memory tries again


class ThreadCall(Handle):
    """A call in a thread, as returned by `run_in_thread`. `close` cancels it, so that `on_done` is not called.

    A call that has begun runs to its end, and its result is dropped.
    """

    __slots__ = ('args', 'fn', 'on_done')

    leads_to: tuple[tuple[str, str], ...] = (('handle_done', 'on_done'),)

    def __init__(
        self,
        loop: Loop,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        on_done: Callable[[Any, BaseException | None], object] | None,
    ) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.fn: Callable[..., Any] | None = fn
        self.args: tuple[Any, ...] = args
        self.on_done: Callable[[Any, BaseException | None], object] | None = on_done
        loop.watchers.park(self)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        if self.fn is not None:
            self.loop.guard.check_thread()
            self.loop.watchers.remove(self)
            self.fn = self.on_done = None
            self.args = ()

    def handle_done(self, result: Any, error: BaseException | None) -> None:
        """Called in the loop when the call in the thread has ended."""
        on_done, name = self.on_done, '' if error is None else name_of(self.fn)
        unheard = error is not None and on_done is None and not self.closed
        self.close()
        if unheard and error is not None:
            self.loop.failures.thread_call_failed(name, error)
        elif on_done is not None:
            try:
                on_done(result, error)
            except EXHAUSTION:
                self.on_done = on_done  # if the callback was not reached, the loop calls this method again
                raise

    def waits_for(self) -> str:
        return f'{name_of(self.fn)} to return'

    def __repr__(self) -> str:
        return '<ThreadCall closed>' if self.closed else f'<ThreadCall {name_of(self.fn)}>'


class ThreadPool:
    """At most `most` daemon threads, which exist while there is work. The names of the threads begin with `name`.

    A loop has two pools: one for `run_in_thread`, and one for look-ups, so that slow calls of the program do not delay
    its connections.
    """

    __slots__ = ('_kernel', '_loop', '_most', '_name', '_queue', '_running', '_swept')

    def __init__(self, loop: Loop, kernel: Kernel, most: int, name: str) -> None:
        self._loop = loop
        self._kernel = kernel
        self._most = most
        self._name = name
        self._queue: deque[ThreadCall] = deque()
        self._running = 0
        self._swept = -1  # the last turn in which cancelled calls were dropped

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        on_done: Callable[[Any, BaseException | None], object] | None,
    ) -> ThreadCall:
        """Queue a call. `on_done` gets a `ReactorError` if too many calls wait or no thread can be started."""
        call = ThreadCall(self._loop, fn, args, on_done)
        turn = self._loop.counters.loop_count
        # Search the queue for cancelled calls at most once per turn, because peers can cause any number of look-ups.
        if len(self._queue) >= QUEUE_LIMIT and turn != self._swept:
            self._swept = turn
            self._drop_cancelled()
        if len(self._queue) >= QUEUE_LIMIT:
            self._refuse(call, f'{QUEUE_LIMIT} calls already wait for a thread; {name_of(fn)} was not queued')
        else:
            try:
                self._queue.append(call)
                self._start_threads()
            except BaseException:
                call.close()  # the caller gets the exception, so this call must not be made
                raise
        return call

    def _drop_cancelled(self) -> None:
        # Threads take calls at the same time, so the queue may get shorter. Each step is atomic.
        for _ in range(len(self._queue)):
            try:
                call = self._queue.popleft()
            except IndexError:
                return
            if not call.closed:
                self._queue.append(call)

    def _start_threads(self) -> None:
        if self._queue and self._running < self._most:
            try:
                self._kernel.start_thread(self._work, f'{self._name}-{self._running + 1}')
                self._running += 1
            except RuntimeError as exc:  # no more threads can be started; the running threads will take the calls
                while not self._running and self._queue:
                    call = self._queue.popleft()
                    self._refuse(call, f'{exc}; {name_of(call.fn)} was not called')

    def _refuse(self, call: ThreadCall, why: str) -> None:
        self._loop.call_soon(call.handle_done, None, ReactorError(f'{why}: call it later'))

    def _work(self) -> None:
        # Runs in a thread. If memory runs out in a step, the step is repeated later: the result of each call must be
        # passed on, and the end of the thread must be reported, or the thread would count as running for ever.
        call: ThreadCall | None = None
        fn: Callable[..., Any] | None = None
        starved = False
        while True:
            try:
                if starved:
                    self._kernel.sleep(RETRY)
                    starved = False
                if call is None:
                    try:
                        call = self._queue.popleft()
                    except IndexError:
                        self._loop.call_soon_threadsafe(self._thread_ended)
                        return
                    result = error = None
                    # `close` may run at the same time, and clears the function before the arguments. So the arguments
                    # are read first: if the function is still set afterwards, they are its arguments.
                    args, fn = call.args, call.fn
                    if fn is None:
                        call = None
                        continue
                if fn is not None:
                    todo, fn = fn, None  # whatever happens next, the function is called only once
                    try:
                        result = todo(*args)
                    except BaseException as exc:
                        error = exc
                    del todo, args
                self._loop.call_soon_threadsafe(call.handle_done, result, error)
                call = result = error = None  # keep nothing of a finished call alive
            except MemoryError:
                starved = True
            except ReactorError:
                return  # the loop was closed, and all its calls with it

    def _thread_ended(self) -> None:
        self._running -= 1
        self._start_threads()
