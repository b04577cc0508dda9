"""Handles, and the registry of the open ones.

Owns the selector and with it every registration. Knows nothing of what a handle does when it is ready, and nothing of
turns. The rule: an open handle is in exactly one of two places, in the selector's map when it wants events, parked when
it wants none. There is no other registry, so a handle that left both is held by nobody.

The trap it avoids: a registration that wants no events still reports a hang-up, at once and for ever, so wanting
nothing means being *unregistered*. And a descriptor closed behind our back is never reported by epoll, makes `poll`
report it for ever and `select` fail for everybody: whoever is found dead is evicted, by number, and told.
"""

from __future__ import annotations

import errno
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE

from ..errors import HandleClosed, ReactorError, SelectorFull
from .log import describe, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from selectors import BaseSelector
    from typing import Any

    from ..callbacks import Loop
    from ..kernel import Kernel
    from .timers import Timer

# Registering fails with these although the descriptor is fine: ENOSPC is the limit of epoll's watches per user.
NO_MEMORY = {errno.ENOMEM, errno.ENOSPC}

READ = EVENT_READ
WRITE = EVENT_WRITE
UNHEARD = 4  # in place of `events`: the handle is called for nothing more, and is still counted as open

STALLED = 50  # dispatches of a handle in consecutive turns, each without progress, before it is parked for a moment
STALLED_AGAIN = 10  # of a handle that was parked before: something is wrong with it, and it makes progress in between
MOMENT, LONGEST_MOMENT = 0.01, 0.25  # seconds; doubled while it goes on, so that it costs less than 1 % of a core
EPISODE = 60.0  # seconds without such a moment, after which the next one is logged again
MOST_STALLS = 1000  # remembered at once; above that, those that are over are forgotten


class Handle:
    """Something open that `run` waits for: a connection, a listener, a signal handler, a call in a thread.

    `events` is the mask of what it wants from its descriptor. The loop tests it right before each call, which is
    the whole guard against stale events. `loop` is the reactor that it belongs to, `since` its clock when the handle
    was opened, in seconds.
    """

    __slots__ = ('__weakref__', 'events', 'loop', 'since')

    events: int
    since: float

    if TYPE_CHECKING:
        loop: Loop

    def fileno(self) -> int:
        """The descriptor, -1 when there is none."""
        return -1

    @property
    def closed(self) -> bool:
        """True from `close`, `abort` or failure on."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it in good order. Closing what is closed does nothing."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close it at once."""
        self.close()

    def reset(self, exc: BaseException | None) -> None:
        """Called by the reactor to close it at once, for its own reasons."""
        self.close()

    def ref(self) -> None:
        """Let this handle keep `run` running again (the default). `ReactorError` in another thread than the loop's."""
        self.loop.watchers.ref(self)

    def unref(self) -> None:
        """Let `run` end although this handle is open. `ReactorError` in another thread than the loop's."""
        self.loop.watchers.unref(self)

    def waits_for(self) -> str:
        """What has to happen next, in words, for `why_alive`."""
        return 'events'

    def handle_read(self) -> None:
        """Called by the loop when the descriptor is readable and READ is wanted."""
        raise NotImplementedError

    def handle_write(self) -> None:
        """Called by the loop when the descriptor is writable and WRITE is wanted."""
        raise NotImplementedError

    def handle_failed(self, exc: Exception) -> None:
        """Called when one of its callbacks raised and nobody took the exception."""

    def may_log(self) -> bool:
        """Asked before an exception of one of its callbacks is logged."""
        return True

    def handle_lost(self, exc: OSError) -> None:
        """Called when somebody else closed the descriptor: it must not be closed again, the number may be another's."""

    def handle_refused(self, exc: Exception) -> None:
        """Called when the system has no memory to watch the descriptor for what was wanted; it is not watched now."""
        self.reset(exc)

    def handle_exhausted(self, exc: Exception) -> bool:
        """Called when memory or stack ran out in one of its own methods, before the user was called.

        Returns True when the handle has dealt with it, False when the loop may call the method again.
        """
        return False


class Stall:
    """What is remembered of a handle that was dispatched without making progress."""

    __slots__ = ('delay', 'parked_at', 'row', 'timer', 'turn')

    def __init__(self) -> None:
        self.row: int = 0  # dispatches without progress, in consecutive turns
        self.turn: int = -1  # of the last one, or in which the handle was watched again
        self.delay: float = MOMENT  # for how long it is parked next, in seconds
        self.parked_at: float = -EPISODE  # the clock when it was parked last
        self.timer: Timer | None = None  # pending while it is parked


class Watchers:
    """The open handles of one loop, `loop.watchers` (internal: public inside the package, not exported)."""

    __slots__ = (
        '_half_parked',
        '_has_room',
        '_map',
        '_parked',
        '_stalls',
        '_unreferenced',
        'busy',
        'closed',
        'kernel',
        'referenced',
        'selector',
        'starved',
        'suspended',
        'thread',
        'tls_buffers',
    )

    def __init__(self, kernel: Kernel, selector: BaseSelector) -> None:
        self.selector: BaseSelector = selector
        self.closed: bool = False  # with the loop
        self.referenced: int = 0  # open handles that keep the loop running
        self.thread: int | None = None  # who runs the loop and alone may touch them, None while nobody does
        self.busy: set[Handle] = set()  # whose application owes an answer; see `Stream.busy`
        # That receive nothing, since a layer above has more for the user first; False while the user has paused
        # reading. See `stream.suspend_reading`.
        self.suspended: dict[Handle, bool] = {}
        # What found no memory or stack, and the exception, one after the other: nothing is allocated to note that. None
        # when an exception has left a turn. The next turn begins with them.
        self.starved: deque[Any] = deque()
        self.tls_buffers: Any = None  # of all TLS connections, made with the first
        self.kernel: Kernel = kernel
        self._map = selector.get_map()
        self._has_room = kernel.room_of(selector)
        self._parked: dict[Handle, None] = {}
        self._half_parked = False  # a handle was parked, and there was no memory to unregister it as well
        self._unreferenced: set[Handle] = set()
        self._stalls: dict[Handle, Stall] = {}

    def __iter__(self) -> Iterator[Handle]:
        yield from [key.data for key in self._map.values()]
        yield from list(self._parked)

    def __len__(self) -> int:
        return len(self._map) + len(self._parked)  # of 40,000 connections in no time, where iterating takes 15 ms

    def add(self, handle: Handle, events: int) -> None:
        """Take a newly opened handle that wants `events` of its descriptor.

        Raises `SelectorFull`, or the selector's OSError; the handle is not taken then.
        """
        self._register(handle, handle.fileno(), events)
        try:
            self.referenced += 1
        except MemoryError:
            self.selector.unregister(handle.fileno())
            raise
        handle.events = events

    def defer(self, handle: Handle, events: int) -> None:
        """Take a newly opened handle that will want `events`, and may never need to be registered: see `settle`."""
        self.park(handle)
        handle.events = events

    def settle(self, handle: Handle) -> None:
        """Register a deferred handle, unless it was closed or wants nothing by now. Raises as `add`."""
        if handle in self._parked and handle.events:
            self._register(handle, handle.fileno(), handle.events)
            del self._parked[handle]

    def park(self, handle: Handle) -> None:
        """Take a newly opened handle that wants no events, or has no descriptor yet."""
        handle.events = 0
        referenced = self.referenced + 1
        self._parked[handle] = None
        self.referenced = referenced

    def is_parked(self, handle: Handle) -> bool:
        """Whether an open handle is not registered, because it wants no events or has no descriptor yet."""
        return handle in self._parked

    def set_events(self, handle: Handle, events: int) -> None:
        """Change what an open handle wants; 0 parks it."""
        was = handle.events
        if events == was or was == UNHEARD:
            return
        fd = handle.fileno()
        parked = handle in self._parked
        try:
            if events and parked:
                self._register(handle, fd, events)
                del self._parked[handle]
            elif events:
                self.selector.modify(fd, events, handle)
            elif not parked:
                self._parked[handle] = None
                self.selector.unregister(fd)
        except (OSError, ValueError, KeyError) as exc:
            self._fail(handle, exc)
        except (MemoryError, RecursionError) as exc:
            self._refuse_soon(handle, exc, parked, events)
        else:
            handle.events = events

    def _refuse_soon(self, handle: Handle, exc: Exception, parked: bool, events: int) -> None:
        # The selector may have done half of it: what it cannot change it forgets, `poll` without memory and `select`
        # without stack. The handle fails in the completions phase, on a fresh stack.
        try:
            if type(exc) is MemoryError:
                self._park_lost(handle)
            elif events and not parked:
                self._parked[handle] = None
                handle.events = 0
                self._half_parked = True
            elif not parked:
                self._parked.pop(handle, None)
            handle.loop.completions.append((handle, refuse, (exc,)))
        except MemoryError:  # not even for that: the next turn begins with it
            handle.events = UNHEARD
            self.starved.append(handle)
            self.starved.append(exc)

    def remove(self, handle: Handle) -> None:
        """Forget a handle, before its descriptor is closed. Does nothing for a handle that is forgotten already."""
        if self._stalls:
            self._forget_stall(handle)
        if self.suspended:
            self.suspended.pop(handle, None)
        if self._half_parked:
            self._finish_parking()
        referenced = self.referenced - 1  # what may find no memory or stack comes before what changes something
        if handle in self._parked:
            del self._parked[handle]
        else:
            try:
                self.selector.unregister(handle.fileno())
            except (KeyError, ValueError):
                self._unregister_lost(handle)
            if not handle.events:
                return  # it was never counted, or is forgotten already
        handle.events = 0
        if handle in self._unreferenced:
            self._unreferenced.discard(handle)
        else:
            self.referenced = referenced

    def ref(self, handle: Handle) -> None:
        """See `Handle.ref`."""
        self.check_thread()
        if handle in self._unreferenced:
            referenced = self.referenced + 1
            self._unreferenced.discard(handle)
            self.referenced = referenced

    def unref(self, handle: Handle) -> None:
        """See `Handle.unref`."""
        self.check_thread()
        if handle not in self._unreferenced and not handle.closed:
            referenced = self.referenced - 1
            self._unreferenced.add(handle)
            self.referenced = referenced

    def is_referenced(self, handle: Handle) -> bool:
        """Whether this open handle keeps the loop running."""
        return handle not in self._unreferenced

    def check(self) -> None:
        """HandleClosed when the loop is closed, ReactorError when another thread than the caller's runs it."""
        if self.closed:
            raise HandleClosed('this reactor is closed; make a new one')
        self.check_thread()

    def check_thread(self) -> None:
        """ReactorError when another thread than the caller's runs the loop."""
        if self.thread is not None and self.thread != self.kernel.thread():
            raise ReactorError('called from another thread than the one that runs it; use call_soon_threadsafe()')

    def rebuild(self) -> BaseSelector:
        """Move all registrations to a new selector of the same kind, and return it."""
        old = self.selector
        try:
            new = self.kernel.another(old)
        except (OSError, TypeError):
            return old  # no descriptor is left, or the user's own kind needs arguments: it has to go on as it is
        failed: list[tuple[Handle, Exception]] = []
        try:
            has_room = self.kernel.room_of(new)
            for key in list(old.get_map().values()):
                try:
                    new.register(key.fd, key.events, key.data)
                except (OSError, ValueError) as exc:
                    failed.append((key.data, exc))
        except (MemoryError, RecursionError):
            new.close()
            return old  # likewise; nothing was changed
        self.selector, self._map, self._has_room = new, new.get_map(), has_room
        old.close()
        self._fail_all(failed)
        return new

    def evict(self, handle: Handle) -> None:
        """Forget the registration of a handle whose descriptor was closed by somebody else, and tell it."""
        self._park_lost(handle)
        what = f'descriptor of {describe(handle)} was closed by somebody else; close the handle instead'
        handle.handle_lost(OSError(errno.EBADF, what))

    def no_progress(self, handle: Handle) -> None:
        """Called by a handle that was dispatched and found nothing that it could do.

        Once, that is nothing. In STALLED turns in a row it would be a spin, so the handle is parked for a moment, and
        `events` stays what it was. While it is parked, epoll's report of a descriptor that was closed by other code
        reaches no handle at all, which has the loop replace the selector; then nothing is wrong any more.
        """
        if self.stalled(handle) and handle not in self._parked:
            readiness = self.kernel.readiness(handle.fileno(), handle.events)
            self.selector.unregister(handle.fileno())
            self._parked[handle] = None
            self._rest(handle, self._stalls[handle], readiness)

    def stalled(self, handle: Handle) -> bool:
        """Count a dispatch of `handle` without progress; whether it is the last of STALLED or more in a row.

        Only those without progress are counted, so that progress costs nothing: a turn that is missing ends the row.
        """
        turn = handle.loop.counters.loop_count
        stall = self._stalls.get(handle)
        if stall is None:
            self._forget_old_stalls(turn)
            stall = self._stalls[handle] = Stall()
        if turn > stall.turn + 1:
            stall.row = 0 if stall.parked_at < 0 else STALLED - STALLED_AGAIN
            stall.delay = MOMENT
        if turn != stall.turn:
            stall.row += 1
            stall.turn = turn
        return stall.row >= STALLED

    def resume_row(self, handle: Handle) -> None:
        """A handle is watched again after a pause: without progress in the next turn, it is the same row."""
        stall = self._stalls.get(handle)
        if stall is not None:
            stall.turn = handle.loop.counters.loop_count

    def is_lost(self, handle: Handle, fd: int) -> bool:
        """Whether `fd`, the descriptor of `handle`, was closed by somebody else."""
        return handle.fileno() != fd or not self.kernel.is_open(fd)

    def evict_closed(self) -> bool:
        """Find and evict handles with a closed descriptor; returns whether there was one."""
        lost = OSError(errno.EBADF, 'closed by somebody else')
        dead = [(key.data, lost) for key in self._map.values() if self.is_lost(key.data, key.fd)]
        self._fail_all(dead)
        return bool(dead)

    def selector_failed(self, exc: Exception) -> OSError:
        """What leaves `run` when `select` has failed with `exc`, and no watched descriptor is the reason.

        The selector is not replaced: its number may be another file's by now, which closing it would close.
        """
        code = (exc.errno if isinstance(exc, OSError) else None) or errno.EBADF
        return OSError(
            code,
            f'{type(self.selector).__name__}.select failed: {exc}; the loop cannot wait any more; look for code that '
            'closes descriptors which it does not own, then close this reactor and make a new one',
        )

    def _register(self, handle: Handle, fd: int, events: int) -> None:
        if self._has_room is not None and not self._has_room(fd):
            raise SelectorFull(
                f'descriptor {fd} is beyond what {type(self.selector).__name__} can watch; '
                'use the default selector or fewer connections'
            )
        try:
            self.selector.register(fd, events, handle)
        except KeyError:
            # A socket's number is its own, so another handle that holds it here lost it without our knowing. A handle
            # without a socket watches what others own, and may not take it from who has it.
            holder, sock = self._map[fd].data, getattr(handle, 'sock', None)
            if holder is handle:  # left there when the last attempt found no memory, and perhaps not polled
                self._take_out(fd)
                self.selector.register(fd, events, handle)
                return
            if sock is getattr(holder, 'sock', handle):
                raise ReactorError(f'this socket belongs to {describe(holder)} already') from None
            if sock is None and holder.fileno() == fd:
                raise ReactorError(f'descriptor {fd} belongs to {describe(holder)} already; close that first') from None
            self.evict(holder)
            self.selector.register(fd, events, handle)
        except MemoryError:  # the map may have it, and not what is polled
            self._unregister_lost(handle)
            raise

    def _rest(self, handle: Handle, stall: Stall, readiness: int) -> None:
        timers, counters = handle.loop.timers, handle.loop.counters
        now = timers.clock()
        counters.stalls += 1
        # When the kernel does not call it ready, others were faster: several processes that share a listener are woken
        # by one client. That is no trouble, and must not cost them more than this moment.
        if readiness and now - stall.parked_at >= EPISODE:
            log(
                'warning',
                '%s was ready in %d turns in a row, and nothing could be received, sent or accepted. It is watched '
                'again after a pause, which is doubled up to %g s. An unread error queue does that: read it with '
                'recvmsg(..., MSG_ERRQUEUE), or do not enable it (IP_RECVERR, SO_TIMESTAMPING)',
                handle,
                STALLED,
                LONGEST_MOMENT,
            )
        stall.parked_at = now
        if stall.timer is not None:
            stall.timer.cancel()  # its user has asked for other events meanwhile, which ended the last moment early
        stall.timer = timers.later(stall.delay, Watchers._watch_again, self, handle)
        stall.timer.unref()  # the handle itself keeps the loop running
        if readiness:
            stall.delay = min(2 * stall.delay, LONGEST_MOMENT)

    def _watch_again(self, handle: Handle) -> None:
        self._stalls[handle].timer = None
        self.resume_row(handle)
        try:
            self.settle(handle)
        except (OSError, ValueError, ReactorError) as exc:
            self._fail(handle, exc)

    def _forget_stall(self, handle: Handle) -> None:
        stall = self._stalls.pop(handle, None)
        if stall is not None and stall.timer is not None:
            stall.timer.cancel()

    def _forget_old_stalls(self, turn: int) -> None:
        if len(self._stalls) >= MOST_STALLS:
            over = [handle for handle, stall in self._stalls.items() if stall.timer is None and turn > stall.turn + 1]
            for handle in over:
                del self._stalls[handle]

    def _fail_all(self, failed: Iterable[tuple[Handle, Exception]]) -> None:
        for handle, exc in failed:
            if handle.events:  # else it was closed meanwhile, by the loss of another
                self._fail(handle, exc)

    def _fail(self, handle: Handle, exc: Exception) -> None:
        # The poll would not tell, so we do.
        if isinstance(exc, OSError) and exc.errno in NO_MEMORY:
            self.refuse(handle, exc)
        else:
            self.evict(handle)  # nothing else fails but a descriptor that is not ours any more

    def refuse(self, handle: Handle, exc: Exception) -> None:
        """Do not watch an open handle any more, for want of memory, and call its `handle_refused`."""
        self._park_lost(handle)
        handle.handle_refused(exc.with_traceback(None))

    def _park_lost(self, handle: Handle) -> None:
        self._parked[handle] = None  # first: it may find no memory
        handle.events = 0
        alone, self._half_parked = not self._half_parked, True
        self._finish_parking(handle if alone else None)

    def _finish_parking(self, handle: Handle | None = None) -> None:
        # Of this handle, if it is registered by its number and no other one waits for this: nearly always.
        fd = -1 if handle is None else handle.fileno()
        key = self._map.get(fd) if fd >= 0 else None
        keys = [key] if key is not None and key.data is handle else list(self._map.values())
        for key in keys:
            if key.data in self._parked:
                self._take_out(key.fd)
        self._half_parked = False

    def _unregister_lost(self, handle: Handle) -> None:
        # Its socket object may be closed and know no number any more: look for the one that it had.
        fd = next((key.fd for key in self._map.values() if key.data is handle), -1)
        if fd >= 0:
            self._take_out(fd)

    def _take_out(self, fd: int) -> None:
        try:
            self.selector.unregister(fd)
        except KeyError:
            pass  # no memory was left when it was registered: it was in the map alone, and `poll` knew nothing of it


def refuse(handle: Handle, exc: Exception) -> None:
    """Called as a completion after `set_events` has failed: see `Watchers.refuse`."""
    watchers = handle.loop.watchers
    if any(handle is other for other in watchers):  # else it was forgotten meanwhile
        watchers.refuse(handle, exc)
