"""`loop.streams`: state that only some connections of a loop need.

It is kept in sets and dicts of handles, because a slot in each connection would cost memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .timers import Timer
from .watcher import Handle


class DrainUnderWay(Protocol):
    """What the loop knows of a drain, see `net/drain.py`."""

    def left(self) -> tuple[int, float]: ...

    def hasten(self, timeout: float, lame_duck: float) -> None: ...

    def call(self, fn: Callable[..., object], args: tuple[Any, ...]) -> Timer: ...


class Streams:
    """State of some connections, and the buffers that all TLS connections of the loop share."""

    __slots__ = ('busy', 'drain', 'drain_callbacks', 'proxy_headers', 'suspended', 'tls_buffers', 'tls_class')

    def __init__(self) -> None:
        # Connections whose application owes the peer a response, each with the time when the request began. See
        # `Stream.busy`.
        self.busy: dict[Handle, float] = {}
        self.drain: DrainUnderWay | None = None  # set by `Reactor.drain`
        # The functions that the next drain calls, with their arguments.
        self.drain_callbacks: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.proxy_headers: dict[Handle, Any] = {}  # the headers of connections that came through a proxy
        # Connections that do not receive, because a layer above them still has messages for the user. The value is
        # False while the user has paused reading. See `stream.suspend_reading`.
        self.suspended: dict[Handle, bool] = {}
        self.tls_buffers: Any = None  # made for the first TLS connection
        self.tls_class: Any = None  # the class that `start_tls` gives a stream; set by the reactor
