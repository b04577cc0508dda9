"""Shut a server down without losing a request: the phases of `Reactor.drain`.

A check runs about every CHECK_INTERVAL seconds and goes through the open handles; nothing here keeps a handle alive.
The phases are those of load balancers (the drain of HAProxy and Envoy). "Lame duck" is Google's term ("Site Reliability
Engineering", chapter 20):

    callbacks   The functions of `add_drain_callback` are called. They may write, and set `busy`.
    lame duck   `draining` is True and nothing else changes: health checks can fail, and answers can say
                `Connection: close`.
    refusing    A listener is closed only when its accept queue is empty, because the kernel has already accepted the
                clients in the queue. On Linux, new SYNs are dropped once a check has found the queue empty. The
                listener is closed at the next check, so that handshakes under way can complete. A paused or full
                listener stays open until it has accepted the clients in its queue.
    finishing   Idle connections are closed; busy ones may finish. When no connection is left, `stop` is called.
    timeout     The remaining connections are reset.

Handles that do not keep the loop running (`unref`) are left alone, so live pages and health checks work until the end.

A connection is closed as idle when every check of the last GRACE seconds has found it idle. A request may be on its way
for that long, if its client was accepted or answered at the last moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import DrainTimeout
from ..loop.checks import seconds
from ..loop.streams import DrainUnderWay
from ..loop.timers import Timer
from ..loop.watcher import Handle
from .addresses import show
from .listener import Listener
from .states import CONNECTING, State
from .stream import Stream

if TYPE_CHECKING:
    from ..callbacks import Loop

DrainCallback = tuple[Callable[..., object], tuple[Any, ...]]
Idle = WeakKeyDictionary[Stream, tuple[State, float]]  # values: the state of the stream, and when it became idle

GRACE = 0.5  # seconds: two round trips around the world, or one and the retransmission of a lost segment
HANDSHAKE = 5.0  # seconds for a client to begin its TLS handshake or PROXY header; it may never do so
CHECK_INTERVAL = 0.1  # seconds between two checks
CHECK_COST = 1.5e-4  # seconds between checks, per handle: 100 times the cost of its check, so checks use 1 % of a CPU
CLOSES_PER_TURN = 256  # idle connections closed in a turn; busy ones must be served in between
EOF_WAIT = 1.0  # seconds for peers to end their side; many peers do so only when they write again


class Drain:
    """A drain under way. `over` is True after it has called `stop`, or if it could not begin."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # the loop, and whether the drain is over
        '_loop', 'over',
        # when it began, when it must end, and its timers
        '_began', '_deadline', '_aborting', '_asking', '_checking',
        # the results of the last check
        '_accepts', '_idle', '_left', '_silent_since',
    )  # fmt: skip

    def __init__(self, loop: Loop, timeout: float, lame_duck: float, callbacks: list[DrainCallback]) -> None:
        self._loop = loop
        self.over: bool = False
        self._began = loop.timers.clock()
        self._deadline = self._began + timeout
        self._accepts = -1  # how many connections the loop had accepted at the last check of the listeners
        self._idle: Idle = WeakKeyDictionary()  # the idle connections at the last check
        self._left: int | None = None  # how many connections the last check has found to wait for
        # When the drain began to wait only for peers that have not ended their side. None: it waits for others, too.
        self._silent_since: float | None = None
        for handle in self._served():
            if isinstance(handle, Listener):
                handle.handle_drain()
        later = loop.timers.later
        timers: list[Any] = [None] * (len(callbacks) + 3)  # of full length: appending may fail after a timer was made
        try:
            for at, (fn, args) in enumerate(callbacks):  # first: steps that are due in the same turn come after them
                timers[at] = self.call(fn, args)
            self._aborting = timers[-3] = later(timeout, self._abort)
            self._asking = timers[-2] = later(lame_duck, self._ask_listeners)
            self._checking = timers[-1] = later(lame_duck, self._check)
        except BaseException:  # no memory or stack for one of the timers: the drain has not begun
            self.over = True  # set first: if cancelling fails too, the timers that remain do nothing
            for timer in timers:
                if timer is not None:
                    timer.cancel()
            raise

    def call(self, fn: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        """Have `fn(seconds, *args)` called in the timers phase, with the seconds that are left until the timeout."""
        return self._loop.timers.later(0, self.run_callback, fn, args)

    def run_callback(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Called by the timer of a callback."""
        if not self.over:
            fn(max(0.0, self._deadline - self._loop.timers.clock()), *args)

    def left(self) -> tuple[int, float]:
        """Return for how many connections the drain waits, and the seconds until they are reset.

        The number is that of the last check. Before the first check, it is the number of all accepted connections.
        """
        left = self._loop.counters.incoming if self._left is None else self._left
        return (0, 0.0) if self.over else (left, max(0.0, self._deadline - self._loop.timers.clock()))

    def hasten(self, timeout: float, lame_duck: float) -> None:
        """Called when `drain` is called again: each step happens at the earlier of its old and its new time."""
        if self.over:
            return
        now = self._loop.timers.clock()
        self._deadline = min(self._deadline, now + timeout)
        for timer, delay in ((self._aborting, timeout), (self._asking, lame_duck), (self._checking, lame_duck)):
            if timer.deadline is not None and now + delay < timer.deadline:
                timer.reset(delay)

    def _served(self) -> list[Handle]:
        watchers = self._loop.watchers
        return [handle for handle in self._loop.handles() if watchers.is_referenced(handle)]

    def _ask_listeners(self) -> None:
        """Close each listener whose accept queue is empty."""
        if self.over:
            return
        # Each turn accepts a few clients, so check again in the next turn, unless the last turn accepted none.
        accepts, before = self._loop.counters.accepts, self._accepts
        self._accepts = accepts
        taking = False
        for handle in self._served():
            if isinstance(handle, Listener):
                if handle.accept_queue_empty():
                    handle.close()
                else:
                    taking = taking or handle.events != 0
        if taking and accepts != before:
            self._asking.reset(0)  # paused and full listeners are left for the next check

    def _check(self) -> None:
        """Close connections that have been idle for long enough; stop the loop when no connection is left."""
        self._checking.reset(CHECK_INTERVAL)  # done first, because `reset` may raise
        if self._asking.deadline is None:
            self._ask_listeners()
        handles, now = self._served(), self._loop.timers.clock()
        idle: Idle = WeakKeyDictionary()
        waits, listeners, silent, closed = 0, 0, [], 0
        busy, suspended = self._loop.streams.busy, self._loop.streams.suspended
        for handle in handles:
            if handle in busy and not handle.closed:
                waits += 1
            elif not isinstance(handle, Stream):
                listeners += isinstance(handle, Listener)
            elif handle.buffered:
                waits += 1
            elif not isinstance(handle.origin, Listener):
                pass  # an outgoing or adopted connection, which the application closes
            elif handle.state.discards:
                silent.append(handle)
            elif not self._idle_long(handle, now, idle):
                waits += 1
            elif handle.unread or handle in suspended:
                # Checked last: `unread` may consume the socket's error, and then no callback would get it.
                waits += 1
                del idle[handle]
            elif closed == CLOSES_PER_TURN:
                self._checking.reset(0)
                return
            else:
                closed += 1
                handle.close()
                waits += handle.sock is not None
        self._idle, self._left = idle, waits + len(silent)
        if waits or listeners:
            self._silent_since = None
        elif not silent or self._waited_for_peers(now):
            for stream in silent:
                stream.finish(None)
            self._stop()
            return
        self._checking.reset(max(CHECK_INTERVAL, min(len(handles) * CHECK_COST, (self._deadline - now) / 4)))

    def _idle_long(self, stream: Stream, now: float, idle: Idle) -> bool:
        before, since = self._idle.get(stream, (None, now))
        if before is not stream.state:
            since = now
        idle[stream] = stream.state, since
        patience = HANDSHAKE if stream.state is CONNECTING else GRACE
        return now - since >= min(patience, (self._deadline - since) / 2)  # if little time is left, wait half of it

    def _waited_for_peers(self, now: float) -> bool:
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since >= EOF_WAIT

    def _abort(self) -> None:
        """Called at the timeout: stop the loop and reset the remaining connections."""
        if self.over:
            return
        self._stop()
        waited = self._loop.timers.clock() - self._began
        for handle in self._served():
            if isinstance(handle, Listener):
                handle.close()
            elif isinstance(handle, Stream) and isinstance(handle.origin, Listener):
                busy = 'its answer was under way' if handle.busy else 'it was not busy'
                handle.reset(
                    DrainTimeout(
                        f'{show(handle.peername)} was not finished within {waited:.3g} s of drain(): {busy}, '
                        f'{handle.buffered} bytes were buffered; the connection was reset'
                    )
                )

    def _stop(self) -> None:
        self.over = True
        for timer in (self._aborting, self._asking, self._checking):
            timer.cancel()
        self._loop.stop()


def begin_drain(
    loop: Loop, drain: DrainUnderWay | None, timeout: float, lame_duck: float, callbacks: list[DrainCallback]
) -> DrainUnderWay:
    """Begin the drain of a loop, or make a drain under way end earlier; see `Reactor.drain`."""
    timeout, lame_duck = check_times(timeout, lame_duck)
    loop.guard.check()
    if drain is None:
        loop.phase_timer.callers.add(Drain.run_callback)
        return Drain(loop, timeout, lame_duck, callbacks)
    drain.hasten(timeout, lame_duck)
    return drain


def check_times(timeout: float, lame_duck: float, name: str = 'timeout') -> tuple[float, float]:
    """Check and return both arguments, in seconds. `name` is the name of the timeout in messages.

    Raises TypeError, and ValueError unless 0 <= lame_duck <= timeout.
    """
    timeout, lame_duck = seconds(name, timeout), seconds('lame_duck', lame_duck)
    if lame_duck > timeout:
        raise ValueError(f'lame_duck must be a part of {name}, but {lame_duck!r} s do not fit into {timeout!r} s')
    return timeout, lame_duck
