"""The methods of `Reactor` that end a server: `drain`, `draining` and `add_drain_callback`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hints import Ts
from ..loop.checks import callback
from ..loop.loop import Loop
from .drain import begin_drain

if TYPE_CHECKING:
    from ..callbacks import Loop as Reactor


class DrainAPI(Loop):
    """The base class of `Reactor`: a loop that can drain its listeners and connections."""

    __slots__ = ()

    def drain(self, timeout: float, lame_duck: float = 0) -> None:
        """Stop the server without losing an accepted request; at the end `stop` is called, so `run` returns False.

        Timers, signal handlers and other handles that are still open then do not keep `run` running.

        First the callbacks of `add_drain_callback` are called. For `lame_duck` seconds clients are still accepted, and
        `draining` is True. Then each listener accepts the clients in its queue and closes; a paused or full listener
        waits for room first. Accepted connections are closed once they are idle: not `busy`, nothing to send and
        nothing unread, for half a second (two seconds with 10,000 connections). `stop` is called once they are closed
        and no other stream is busy or has bytes to send.

        You close the streams that you connected or adopted. `drain` does not wait for datagrams, children, threads or
        timers. Listeners and connections whose `unref` was called stay open: health checks and live views keep working.

        Args:
            timeout: Seconds from now until the remaining connections are reset with `DrainTimeout`. A second call of
                `drain` can only make this time shorter.
            lame_duck: Seconds of `timeout` in which clients are accepted, so load balancers notice the drain first.
        """
        this: Reactor = self  # type: ignore[assignment]
        self.streams.drain = begin_drain(this, self.streams.drain, timeout, lame_duck, self.streams.drain_callbacks)
        self.streams.drain_callbacks.clear()

    def add_drain_callback(self, fn: Callable[[float, *Ts], object], *args: *Ts) -> None:
        """Have `drain` call a function, for example to send clients a goodbye and to wait for their replies.

        Callbacks are called once, in the order in which they were added. They run in the timers phase, soon after the
        call of `drain` and before the drain closes anything; an exception in a callback does not stop the drain. To
        have the drain wait for a connection, set its `busy` in the callback. A second call of `drain`, which makes the
        time shorter, does not call them again. A callback that is added during a drain is called soon.

        Under `reactor.serve.run`, add callbacks in `main`: every drain of a worker calls them, whether it was begun by
        SIGTERM, by a replacement (SIGHUP), by the parent's control socket or by `drain`.

        Args:
            fn: Called as `fn(seconds, *args)`, with the seconds that are left until the timeout of the drain.
            *args: More arguments for `fn`.

        Raises:
            TypeError: `fn` is not callable.
            HandleClosed: The reactor is closed.
        """
        callback('fn', fn, '(seconds)', len(args))
        self.guard.check()
        if self.streams.drain is not None:
            self.streams.drain.call(fn, args)
            return
        if not self.streams.drain_callbacks:
            self.add_exit_callback(self.streams.drain_callbacks.clear)  # a closed reactor keeps no callbacks
        self.streams.drain_callbacks.append((fn, args))

    @property
    def draining(self) -> bool:
        """Whether `drain` was called. If so, fail readiness checks, and close connections after their next response."""
        return self.streams.drain is not None
