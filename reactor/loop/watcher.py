"""Handles, and the registry of the open ones.

An open handle is in exactly one of two places: in the selector's map when it wants events, parked when it wants none.
There is no other registry, so nothing holds a handle that left both.

A registration that wants no events still reports a hang-up, for ever, so wanting nothing means being *unregistered*. A
descriptor that other code closed is never reported by epoll, and makes `select` fail: its handle is evicted, by number.
"""

from __future__ import annotations

import errno
from selectors import EVENT_READ, EVENT_WRITE

from ..errors import ReactorError, SelectorFull
from .log import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from selectors import BaseSelector

    from ..callbacks import Loop
    from ..kernel import Kernel

# Registering fails with these although the descriptor is fine: ENOSPC is the limit of epoll's watches per user.
NO_MEMORY = {errno.ENOMEM, errno.ENOSPC}

READ, WRITE = EVENT_READ, EVENT_WRITE
UNHEARD = 4  # in place of `events`: the handle is called for nothing more, and is still counted as open


class Handle:
    """Something open that `run` waits for: a connection, a listener, a signal handler, a call in a thread.

    `events` is what it wants from its descriptor. The loop tests it right before each call, which is the whole guard
    against stale events. `loop` is its reactor, `since` the loop's clock when it was opened, in seconds.
    """

    __slots__ = ('__weakref__', 'events', 'loop', 'since')

    leads_to: tuple[tuple[str, str], ...] = ()  # its methods, and the callback that each calls, for `slow_callback`

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


class Watchers:
    """The open handles of one loop, `loop.watchers` (internal: public inside the package, not exported)."""

    __slots__ = (
        '_half_parked',
        '_has_room',
        '_kernel',
        '_map',
        '_parked',
        '_unreferenced',
        'referenced',
        'selector',
    )

    def __init__(self, kernel: Kernel, selector: BaseSelector) -> None:
        self.selector: BaseSelector = selector
        self.referenced: int = 0  # open handles that keep the loop running
        self._kernel = kernel
        self._map = selector.get_map()
        self._has_room = kernel.room_of(selector)
        self._parked: dict[Handle, None] = {}
        self._half_parked = False  # a handle was parked, and there was no memory to unregister it as well
        self._unreferenced: set[Handle] = set()

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
            self.fail(handle, exc)
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
            starved = handle.loop.failures.starved
            starved.append(handle)
            starved.append(exc)

    def remove(self, handle: Handle) -> None:
        """Forget a handle, before its descriptor is closed. Does nothing for a handle that is forgotten already."""
        loop = handle.loop
        if loop.spins.stalls:
            loop.spins.forget(handle)
        if loop.streams.suspended:
            loop.streams.suspended.pop(handle, None)
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
        handle.loop.guard.check_thread()
        if handle in self._unreferenced:
            referenced = self.referenced + 1
            self._unreferenced.discard(handle)
            self.referenced = referenced

    def unref(self, handle: Handle) -> None:
        """See `Handle.unref`."""
        handle.loop.guard.check_thread()
        if handle not in self._unreferenced and not handle.closed:
            referenced = self.referenced - 1
            self._unreferenced.add(handle)
            self.referenced = referenced

    def is_referenced(self, handle: Handle) -> bool:
        """Whether this open handle keeps the loop running."""
        return handle not in self._unreferenced

    def rebuild(self) -> BaseSelector:
        """Move all registrations to a new selector of the same kind, and return it."""
        old = self.selector
        try:
            new = self._kernel.new_selector_like(old)
        except (OSError, TypeError):
            return old  # no descriptor is left, or the user's own kind needs arguments: it has to go on as it is
        failed: list[tuple[Handle, Exception]] = []
        try:
            has_room = self._kernel.room_of(new)
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

    def rest(self, handle: Handle) -> None:
        """Do not watch a registered handle until `settle`; its `events` stay what they are."""
        self.selector.unregister(handle.fileno())
        self._parked[handle] = None

    def fail(self, handle: Handle, exc: Exception) -> None:
        """Deal with a selector that refused a handle with `exc`: the next poll would not report it."""
        if isinstance(exc, OSError) and exc.errno in NO_MEMORY:
            self.refuse(handle, exc)
        else:
            self.evict(handle)  # nothing else fails but a descriptor that is not ours any more

    def refuse(self, handle: Handle, exc: Exception) -> None:
        """Do not watch an open handle any more, for want of memory, and call its `handle_refused`."""
        self._park_lost(handle)
        handle.handle_refused(exc.with_traceback(None))

    def is_lost(self, handle: Handle, fd: int) -> bool:
        """Whether `fd`, the descriptor of `handle`, was closed by somebody else."""
        return handle.fileno() != fd or not self._kernel.is_open(fd)

    def evict_closed(self) -> bool:
        """Find and evict handles with a closed descriptor; returns whether there was one."""
        lost = OSError(errno.EBADF, 'closed by somebody else')
        dead = [(key.data, lost) for key in self._map.values() if self.is_lost(key.data, key.fd)]
        self._fail_all(dead)
        return bool(dead)

    def disown(self) -> None:
        """Want nothing any more, in a fork: what is open belongs to the other process."""
        self.referenced = 0
        for handle in self:
            handle.events = 0

    def close(self) -> None:
        """Close the selector, before anything is unregistered: a fork may share it, and would lose it too."""
        try:
            self.selector.close()
        except OSError:
            pass  # in a fork that has not inherited its descriptor, which is how a kqueue is

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

    def _fail_all(self, failed: Iterable[tuple[Handle, Exception]]) -> None:
        for handle, exc in failed:
            if handle.events:  # else it was closed meanwhile, by the loss of another
                self.fail(handle, exc)

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
