"""Notifiers: callbacks in the loop that any thread can trigger.

A flag merges several triggers into one call. The flag is set before the call is queued, and cleared before the callback
runs, so at least one call of the callback begins after each `trigger`. When two threads set the flag at the same time,
two calls may be queued; the second call finds the flag cleared and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import HandleClosed
from .log import name_of
from .watcher import Handle

if TYPE_CHECKING:
    from ..callbacks import Loop


class Notifier(Handle):
    """A handle that wakes the loop, as returned by `notifier`. Any thread or signal handler may call `trigger`.

    With `once`, the notifier closes itself before its first call; otherwise it stays open until `close` is called.
    """

    __slots__ = ('_triggered', 'args', 'fn', 'once')

    leads_to: tuple[tuple[str, str], ...] = (('handle_trigger', 'fn'),)

    def __init__(self, loop: Loop, fn: Callable[..., object], args: tuple[Any, ...], once: bool) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.fn: Callable[..., object] | None = fn
        self.args: tuple[Any, ...] = args
        self.once: bool = once
        self._triggered = False
        loop.watchers.park(self)

    def trigger(self) -> None:
        """Have the callback called soon in the loop. Several triggers before the call cause only one call.

        Raises:
            HandleClosed: The notifier is closed. With `once` it closes itself before its call, so the caller must be
                prepared for this error.
        """
        if self.fn is None:
            raise HandleClosed('this notifier is closed; with once=True it closes itself before its first call')
        if not self._triggered:
            self._triggered = True
            try:
                self.loop.call_soon_threadsafe(self.handle_trigger)
            except BaseException:
                self._triggered = False  # after Ctrl-C, too: while the flag is set, no trigger queues a call
                raise

    def handle_trigger(self) -> None:
        """Called in the loop after a `trigger`."""
        fn, args = self.fn, self.args
        if fn is not None and self._triggered:
            self._triggered = False
            if self.once:
                self.close()
            fn(*args)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        self.loop.guard.check_thread()
        if self.fn is not None:
            self.loop.watchers.remove(self)
            self.fn, self.args = None, ()

    def waits_for(self) -> str:
        return 'its turn' if self._triggered else 'trigger()'

    def __repr__(self) -> str:
        if self.closed:
            return '<Notifier closed>'
        return f'<Notifier {"triggered, " if self._triggered else ""}calls {name_of(self.fn)}>'
