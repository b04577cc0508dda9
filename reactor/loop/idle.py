"""Idlers: callbacks that are called once per turn.

A loop without idlers spends nothing on them, not even a test. With an idler, a timer that is always due keeps the loop
from sleeping. It fires in the timers phase and puts the idlers at the head of the queue for the soon phase.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .log import name_of
from .timers import Timer
from .wakeup import Call
from .watcher import Handle

if TYPE_CHECKING:
    from ..callbacks import Loop


class Idler(Handle):
    """A callback that is called in every turn, as returned by `idle`. `close` ends it, even inside the callback."""

    __slots__ = ('_idlers', 'args', 'fn', 'queued')

    leads_to: tuple[tuple[str, str], ...] = (('handle_turn', 'fn'),)

    def __init__(self, loop: Loop, idlers: Idlers, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.fn: Callable[..., object] | None = fn
        self.args: tuple[Any, ...] = args
        # Whether this idler is in the soon queue. An earlier turn has left it there if an exception ended that turn.
        self.queued: bool = False
        self._idlers = idlers
        loop.watchers.park(self)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def close(self) -> None:
        self.loop.guard.check_thread()
        if self.fn is not None:
            self._idlers.discard(self)
            self.loop.watchers.remove(self)
            self.fn, self.args = None, ()

    def handle_turn(self) -> None:
        """Called by the loop, once per turn."""
        self.queued = False
        if self.fn is not None:
            self.fn(*self.args)

    def waits_for(self) -> str:
        return 'close(): it is called in every turn'

    def __repr__(self) -> str:
        return '<Idler closed>' if self.closed else f'<Idler calls {name_of(self.fn)}>'


class Idlers:
    """The open idlers of one loop, in the order in which they were opened."""

    __slots__ = ('_loop', '_open', '_soon', '_timer')

    def __init__(self, loop: Loop, soon: deque[Call]) -> None:
        self._loop = loop
        self._soon = soon
        self._open: dict[Idler, None] = {}
        self._timer: Timer | None = None

    def add(self, fn: Callable[..., object], args: tuple[Any, ...]) -> Idler:
        """Open an idler, which is called from the next turn on."""
        idler = Idler(self._loop, self, fn, args)
        try:
            self._open[idler] = None
            if self._timer is None:
                self._arm()
        except BaseException:
            idler.close()
            raise
        return idler

    def discard(self, idler: Idler) -> None:
        """Forget an idler that was closed. Without idlers the loop may sleep again."""
        self._open.pop(idler, None)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        # The timer is unreferenced, because the idlers themselves decide whether the loop keeps running.
        self._timer = self._loop.timers.unreferenced_later(0, self._queue)

    def _queue(self) -> None:
        for idler in reversed(self._open):
            if not idler.queued:
                self._soon.appendleft((idler.handle_turn, ()))
                idler.queued = True
        # The timer is due again in the next turn. It is set last, because if memory runs out, this method is repeated.
        self._arm()
