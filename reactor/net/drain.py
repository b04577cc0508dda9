"""The end of a server: `Reactor.drain`, phase after phase.

Owns the phases and the looks at what is left. Knows listeners and streams by their attributes, and keeps
none of them: each look goes through the open handles again. The phases are those of the load balancers in front of it,
HAProxy's drain and Envoy's; "lame duck" is Google's word ("Site Reliability Engineering", chapter 20):

    lame duck   `draining` is True and nothing else: health checks turn red, answers say `Connection: close`
    refusing    a listener closes when its queue is empty: the system has accepted the clients in it in our name. On
                Linux, what a new client sends first is dropped from the first look at an empty queue on, and the
                listener closes a look later, so that handshakes under way can end. A listener that is paused or full
                goes on waiting for room
    finishing   connections that are idle are closed, busy ones are left to end; when none is left, `stop`
    timeout     what is left is reset

What keeps nothing running (`unref`) is no part of it: who looks in sees the end, and health checks are answered to it.

The rule: a connection is closed for being idle when it was so at each look of GRACE seconds, of which the last is right
before: so long a request is on its way, from a client who was accepted or answered at the last moment.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from ..errors import DrainTimeout
from ..loop.checks import seconds
from .addresses import show
from .listener import Listener
from .states import CONNECTING
from .stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop
    from ..loop.watcher import Handle
    from .states import State

    Idle = WeakKeyDictionary[Stream, tuple[State, float]]  # in which state, and since when

GRACE = 0.5  # seconds: twice around the world, or once and a lost segment sent again
HANDSHAKE = 5.0  # seconds, for who has not said yet what a protocol begins with (TLS, PROXY), and may never do
LOOK = 0.1  # seconds between two looks
LOOK_COST = 1.5e-4  # and so many for each open handle, a hundred times what it takes: 1 % of a processor
CLOSES_PER_TURN = 256  # of idle connections; the busy ones are being served
EOF_WAIT = 1.0  # seconds that peers get to end their side; many do so only when they write again


class Drain:
    """What `drain` has begun. `over` is True when it has called `stop`, and when it could not begin."""

    __slots__ = (
        '_aborting',
        '_accepts',
        '_asking',
        '_began',
        '_deadline',
        '_idle',
        '_looking',
        '_loop',
        '_silent_since',
        'over',
    )

    def __init__(self, loop: Loop, timeout: float, lame_duck: float) -> None:
        self._loop = loop
        self.over: bool = False
        self._began = loop.timers.clock()
        self._deadline = self._began + timeout
        self._accepts = -1  # how many connections the loop had accepted when the listeners were asked last
        self._idle: Idle = WeakKeyDictionary()  # as the last look saw them
        self._silent_since: float | None = None  # from when on nothing but the ends of peers were waited for
        for handle in self._served():
            if isinstance(handle, Listener):
                handle.handle_drain()
        later = loop.timers.later
        try:
            self._aborting = later(timeout, self._abort)
            self._asking = later(lame_duck, self._ask_listeners)
            self._looking = later(lame_duck, self._look)
        except BaseException:  # no memory or stack for one of them: it has not begun
            self.over = True  # first: there may be none to cancel the others either, which then do nothing
            for name in ('_aborting', '_asking'):
                if hasattr(self, name):
                    getattr(self, name).cancel()
            raise

    def hasten(self, timeout: float, lame_duck: float) -> None:
        """The same again: of each time, whichever is earlier."""
        if self.over:
            return
        now = self._loop.timers.clock()
        self._deadline = min(self._deadline, now + timeout)
        for timer, delay in ((self._aborting, timeout), (self._asking, lame_duck), (self._looking, lame_duck)):
            if timer.deadline is not None and now + delay < timer.deadline:
                timer.reset(delay)

    def _served(self) -> list[Handle]:
        watchers = self._loop.watchers
        return [handle for handle in self._loop.handles() if watchers.is_referenced(handle)]

    def _ask_listeners(self) -> None:
        """Close each listener in whose queue nobody waits."""
        if self.over:
            return
        # Each turn accepts some of them, so ask again in the next turn; but not when the last one accepted nobody.
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
            self._asking.reset(0)  # paused and full ones are asked with the next look

    def _look(self) -> None:
        """Close what has been idle for long enough; stop when nothing is left."""
        self._looking.reset(LOOK)  # whatever happens here
        if self._asking.deadline is None:
            self._ask_listeners()
        handles, now = self._served(), self._loop.timers.clock()
        idle: Idle = WeakKeyDictionary()
        waits, silent, closed = 0, [], 0
        busy, suspended = self._loop.streams.busy, self._loop.streams.suspended
        for handle in handles:
            if handle in busy and not handle.closed:
                waits += 1
            elif not isinstance(handle, Stream):
                waits += isinstance(handle, Listener)
            elif handle.buffered:
                waits += 1
            elif not isinstance(handle.origin, Listener):
                pass  # the application's own
            elif handle.state.discards:
                silent.append(handle)
            elif not self._idle_long(handle, now, idle):
                waits += 1
            elif handle.unread or handle in suspended:
                # Asked only right before: the answer may be an error, of which nothing would be reported then.
                waits += 1
                del idle[handle]
            elif closed == CLOSES_PER_TURN:
                self._looking.reset(0)
                return
            else:
                closed += 1
                handle.close()
                waits += handle.sock is not None
        self._idle = idle
        if waits:
            self._silent_since = None
        elif not silent or self._waited_for_peers(now):
            for stream in silent:
                stream.finish(None)
            self._stop()
            return
        self._looking.reset(max(LOOK, min(len(handles) * LOOK_COST, (self._deadline - now) / 4)))

    def _idle_long(self, stream: Stream, now: float, idle: Idle) -> bool:
        before, since = self._idle.get(stream, (None, now))
        if before is not stream.state:
            since = now
        idle[stream] = stream.state, since
        patience = HANDSHAKE if stream.state is CONNECTING else GRACE
        return now - since >= min(patience, (self._deadline - since) / 2)  # where time is short, half of it

    def _waited_for_peers(self, now: float) -> bool:
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since >= EOF_WAIT

    def _abort(self) -> None:
        """The timeout is over: stop, and reset what is left."""
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
                        f'{show(handle.peername)} was not done within {waited:.3g} s of drain(): {busy}, '
                        f'{handle.buffered} bytes waited; it was reset'
                    )
                )

    def _stop(self) -> None:
        self.over = True
        for timer in (self._aborting, self._asking, self._looking):
            timer.cancel()
        self._loop.stop()


def begin_drain(loop: Loop, drain: Drain | None, timeout: float, lame_duck: float) -> Drain:
    """Begin the drain of a loop, or have the one that goes on end earlier; see `Reactor.drain`."""
    timeout, lame_duck = check_times(timeout, lame_duck)
    loop.guard.check()
    if drain is None:
        return Drain(loop, timeout, lame_duck)
    drain.hasten(timeout, lame_duck)
    return drain


def check_times(timeout: float, lame_duck: float, name: str = 'timeout') -> tuple[float, float]:
    """Return both as numbers of seconds. `name` is what the caller calls the timeout.

    Raises TypeError, and ValueError unless 0 <= lame_duck <= timeout.
    """
    timeout, lame_duck = seconds(name, timeout), seconds('lame_duck', lame_duck)
    if lame_duck > timeout:
        raise ValueError(f'lame_duck is a part of {name}: {lame_duck!r} s do not fit into {timeout!r} s')
    return timeout, lame_duck
