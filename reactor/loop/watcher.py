"""Handles, and the registry of open handles.

An open handle is in exactly one of two places: in the map of the selector if it wants events, or parked if it wants
none. There is no other registry, so a handle that is in neither place is not kept alive.

A registration without events would keep reporting a hang-up. So a handle that wants no events is unregistered.
A descriptor that other code has closed is not reported by epoll, and makes `select` fail. Its handle is evicted:
unregistered by the number of the descriptor. epoll may still report a copy, so the selector is replaced, see `Spins`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from ..errors import EXHAUSTION, ReactorError, SelectorFull
from ..hints import BaseSelector
from ..kernel import EventSource, Kernel
from .log import describe

if TYPE_CHECKING:
    from ..callbacks import Loop

# Errors that registering a valid descriptor can raise. ENOSPC: the user's limit of epoll watches is reached.
NO_MEMORY = {errno.ENOMEM, errno.ENOSPC}

READ, WRITE = EVENT_READ, EVENT_WRITE
UNHEARD = 4  # a value of `events`: the handle gets no more events, but still counts as open


class Handle:
    """Something open that `run` waits for: a connection, a listener, a signal handler, a call in a thread.

    Attributes:
        loop: Its reactor.
        since: When it was opened, in seconds of the loop's clock.
        events: Which events of its descriptor it wants. The loop tests this right before each call of the handle.
    """

    __slots__ = ('__weakref__', 'events', 'loop', 'since')

    leads_to: tuple[tuple[str, str], ...] = ()  # (method, callback that it calls), for `slow_callback`
    on_data: object = None  # what `handle_read` calls; read before the call, because a connection that ends forgets it

    if TYPE_CHECKING:
        events: int
        since: float
        loop: Loop

    def fileno(self) -> int:
        """Return the descriptor, or -1 if there is none."""
        return -1

    @property
    def closed(self) -> bool:
        """True after `close`, `abort` or a failure."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the handle in an orderly way. Closing twice does nothing."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the handle at once."""
        self.close()

    def reset(self, exc: BaseException | None) -> None:
        """Close the handle at once because of `exc`. Called by the reactor."""
        self.close()

    def ref(self) -> None:
        """Let this handle keep `run` running again (the default). Raises `ReactorError` outside the loop's thread."""
        self.loop.watchers.ref(self)

    def unref(self) -> None:
        """Let `run` end while this handle is open. Raises `ReactorError` outside the loop's thread."""
        self.loop.watchers.unref(self)

    def waits_for(self) -> str:
        """Return what the handle waits for, in words, for `why_alive`."""
        return 'events'

    def handle_read(self) -> None:
        """Called by the loop when the descriptor is readable and READ is wanted."""
        raise NotImplementedError

    def handle_write(self) -> None:
        """Called by the loop when the descriptor is writable and WRITE is wanted."""
        raise NotImplementedError

    def handle_failed(self, exc: Exception) -> None:
        """Called when a callback of the handle raised an exception that no `on_error` has handled."""

    def may_log(self) -> bool:
        """Return whether an exception from a callback of the handle may be logged now."""
        return True

    def has_log_limit(self) -> bool:
        """Return whether `may_log` sets a limit; otherwise the loop limits how often the same exception is logged."""
        return False

    def handle_lost(self, exc: OSError) -> None:
        """Called when other code has closed the descriptor. Do not close it: its number may belong to another file."""

    def handle_refused(self, exc: Exception) -> None:
        """Called when the kernel has no memory to watch the descriptor, which is no longer watched."""
        self.reset(exc)

    def handle_exhausted(self, exc: Exception) -> bool:
        """Called when memory or stack ran out in a method of the handle, before user code was called.

        Returns True if the handle has dealt with that, False if the loop may call the method again.
        """
        return False


class Watchers:
    """The open handles of one loop, `loop.watchers` (internal)."""

    __slots__ = (
        '_half_parked', '_has_room', '_kernel', '_map', '_parked', '_unreferenced', 'referenced', 'selector', 'source',
    )  # fmt: skip

    def __init__(self, kernel: Kernel, selector: BaseSelector) -> None:
        self.selector: BaseSelector = selector
        self.source: EventSource = kernel.event_source(selector)  # the loop polls this
        self.referenced: int = 0  # how many open handles keep the loop running
        self._kernel = kernel
        self._map = selector.get_map()
        self._has_room = kernel.room_of(selector)
        self._parked: dict[Handle, None] = {}
        self._half_parked = False  # whether memory ran out after a handle was parked and before it was unregistered
        self._unreferenced: set[Handle] = set()

    def __iter__(self) -> Iterator[Handle]:
        yield from self.source.open_handles()
        yield from list(self._parked)

    def __len__(self) -> int:
        return len(self._map) + len(self._parked)  # iterating over 40,000 connections would take 15 ms

    def add(self, handle: Handle, events: int, fd: int | None = None) -> None:
        """Register a newly opened handle that wants `events` of its descriptor, which is `fd` if that is given.

        Raises `SelectorFull` or the selector's OSError; then the handle is not registered.
        """
        fd = handle.fileno() if fd is None else fd
        self._register(handle, fd, events)
        try:
            self.referenced += 1
        except MemoryError:
            self.selector.unregister(fd)
            raise
        handle.events = events

    def defer(self, handle: Handle, events: int) -> None:
        """Add a newly opened handle that wants `events`, but is not registered until `settle` is called."""
        self.park(handle)
        handle.events = events

    def settle(self, handle: Handle) -> None:
        """Register a deferred handle, unless it was closed or wants no events now. Raises as `add` does."""
        if handle in self._parked and handle.events:
            self._register(handle, handle.fileno(), handle.events)
            del self._parked[handle]

    def park(self, handle: Handle) -> None:
        """Add a newly opened handle that wants no events, or has no descriptor yet."""
        handle.events = 0
        referenced = self.referenced + 1
        self._parked[handle] = None
        self.referenced = referenced

    def is_parked(self, handle: Handle) -> bool:
        """Return whether an open handle is not registered."""
        return handle in self._parked

    def set_events(self, handle: Handle, events: int) -> None:
        """Change the events that an open handle wants. 0 parks the handle."""
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
        except EXHAUSTION as exc:
            self._refuse_soon(handle, exc, parked, events)
        else:
            handle.events = events

    def _refuse_soon(self, handle: Handle, exc: Exception, parked: bool, events: int) -> None:
        # The selector may have made half of the change: `poll` loses a registration when memory runs out in `modify`,
        # and `select` when the stack runs out. The handle fails in the completions phase, on a fresh stack.
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
        except MemoryError:  # no memory even for the completion: the next turn begins with this handle
            handle.events = UNHEARD
            starved = handle.loop.failures.starved
            starved.append(handle)
            starved.append(exc)

    def remove(self, handle: Handle, fd: int | None = None) -> None:
        """Forget a handle, before its descriptor `fd` is closed. Does nothing if it was already forgotten."""
        loop = handle.loop
        if loop.spins.stalls:
            loop.spins.forget(handle)
        if loop.streams.suspended:
            loop.streams.suspended.pop(handle, None)
        if self._half_parked:
            self._finish_parking()
        referenced = self.referenced - 1  # steps that may run out of memory or stack come before all changes
        if handle in self._parked:
            del self._parked[handle]
        else:
            try:
                self.selector.unregister(handle.fileno() if fd is None else fd)
            except (KeyError, ValueError):
                self._unregister_lost(handle)
            if not handle.events:
                return  # the handle was never counted, or is already forgotten
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
        """Return whether this open handle keeps the loop running."""
        return handle not in self._unreferenced

    def rebuild(self) -> BaseSelector:
        """Move all registrations to a new selector of the same class, and return the selector in use."""
        old = self.selector
        try:
            new = self._kernel.new_selector_like(old)
        except (OSError, TypeError):
            return old  # no descriptor is left, or the user's own class needs arguments: keep the old selector
        failed: list[tuple[Handle, Exception]] = []
        try:
            has_room, source = self._kernel.room_of(new), self._kernel.event_source(new)
            for key in [key for key in old.get_map().values() if key.events]:
                try:
                    new.register(key.fd, key.events, key.data)
                except (OSError, ValueError) as exc:
                    failed.append((key.data, exc))
        except EXHAUSTION:
            new.close()
            return old  # keep the old selector, in which nothing was changed
        self.selector, self.source, self._map, self._has_room = new, source, new.get_map(), has_room
        old.close()
        self._fail_all(failed)
        return new

    def evict(self, handle: Handle) -> None:
        """Unregister a handle whose descriptor other code has closed, and call its `handle_lost`."""
        handle.loop.spins.replace_selector()
        self._park_lost(handle)
        what = f'descriptor of {describe(handle)} was closed by other code; close the handle instead'
        handle.handle_lost(OSError(errno.EBADF, what))

    def rest(self, handle: Handle) -> None:
        """Stop watching a registered handle until `settle`. Its `events` stay the same."""
        self.selector.unregister(handle.fileno())
        self._parked[handle] = None

    def fail(self, handle: Handle, exc: Exception) -> None:
        """Refuse or evict a handle that the selector rejected with `exc`: the next poll would not report the handle."""
        if isinstance(exc, OSError) and exc.errno in NO_MEMORY:
            self.refuse(handle, exc)
        else:
            self.evict(handle)  # every other error means that the descriptor is no longer ours

    def refuse(self, handle: Handle, exc: Exception) -> None:
        """Stop watching an open handle because memory has run out, and call its `handle_refused`."""
        self._park_lost(handle)
        handle.handle_refused(exc.with_traceback(None))

    def is_lost(self, handle: Handle, fd: int) -> bool:
        """Return whether other code has closed `fd`, the descriptor of `handle`."""
        return handle.fileno() != fd or not self._kernel.is_open(fd)

    def evict_closed(self) -> bool:
        """Evict all handles whose descriptor is closed. Return whether there were any."""
        lost = OSError(errno.EBADF, 'closed by other code')
        dead = [(key.data, lost) for key in self._map.values() if self.is_lost(key.data, key.fd)]
        self._fail_all(dead)
        return bool(dead)

    def disown(self) -> None:
        """In a fork, set the `events` of all handles to 0, because the open descriptors belong to the parent."""
        self.referenced = 0
        for handle in self:
            handle.events = 0

    def close(self) -> None:
        """Close the selector. Unregister nothing: another process may share the registrations after a fork."""
        with suppress(OSError):  # a kqueue is not inherited by a fork
            self.selector.close()

    def _register(self, handle: Handle, fd: int, events: int) -> None:
        if self._has_room is not None and not self._has_room(fd):
            raise SelectorFull(
                f'descriptor {fd} is beyond what {type(self.selector).__name__} can watch; '
                'use the default selector or fewer connections'
            )
        try:
            self.selector.register(fd, events, handle)
        except KeyError:
            # A socket owns its number. So if another handle is registered under that number, the descriptor of that
            # handle was closed unnoticed. A handle without a socket watches a user's descriptor, and must not replace
            # another handle.
            holder, sock = self._map[fd].data, getattr(handle, 'sock', None)
            if holder is handle:  # memory ran out in the last attempt: the handle is in the map, but may not be polled
                self._take_out(fd)
                self.selector.register(fd, events, handle)
                return
            if sock is getattr(holder, 'sock', handle):
                raise ReactorError(f'this socket already belongs to {describe(holder)}') from None
            if sock is None and holder.fileno() == fd:
                raise ReactorError(f'descriptor {fd} already belongs to {describe(holder)}; close that first') from None
            self.evict(holder)
            self.selector.register(fd, events, handle)
        except MemoryError:  # the handle may be in the map although it is not polled
            self._unregister_lost(handle)
            raise

    def _fail_all(self, failed: Iterable[tuple[Handle, Exception]]) -> None:
        for handle, exc in failed:
            if handle.events:  # otherwise `handle_lost` of another handle has closed this one
                self.fail(handle, exc)

    def _park_lost(self, handle: Handle) -> None:
        self._parked[handle] = None  # this comes first, because memory may run out
        handle.events = 0
        alone, self._half_parked = not self._half_parked, True
        self._finish_parking(handle if alone else None)

    def _finish_parking(self, handle: Handle | None = None) -> None:
        # Usually only this handle has to be unregistered, and it is registered under its own number.
        fd = -1 if handle is None else handle.fileno()
        key = self._map.get(fd) if fd >= 0 else None
        keys = [key] if key is not None and key.data is handle else list(self._map.values())
        for key in keys:
            if key.data in self._parked:
                self._take_out(key.fd)
        self._half_parked = False

    def _unregister_lost(self, handle: Handle) -> None:
        # The socket object may be closed and no longer have a number: search for the registration.
        fd = next((key.fd for key in self._map.values() if key.data is handle), -1)
        if fd >= 0:
            self._take_out(fd)

    def _take_out(self, fd: int) -> None:
        with suppress(KeyError):  # memory ran out when the handle was registered: it was only in the map, not polled
            self.selector.unregister(fd)


def refuse(handle: Handle, exc: Exception) -> None:
    """Called as a completion after `set_events` has failed: see `Watchers.refuse`."""
    watchers = handle.loop.watchers
    if any(handle is other for other in watchers):  # otherwise the handle was removed in the meantime
        watchers.refuse(handle, exc)
