"""State that only some connections of a loop need, `loop.streams`.

It is kept here, by handle, because a slot in each connection would cost memory.
"""

from __future__ import annotations

from typing import Any

from .watcher import Handle


class Streams:
    """Marks of some connections, and the buffers that all TLS connections of the loop use in turn."""

    __slots__ = ('busy', 'proxy_headers', 'suspended', 'tls_buffers', 'tls_class')

    def __init__(self) -> None:
        self.busy: set[Handle] = set()  # the application owes their peers an answer; see `Stream.busy`
        self.proxy_headers: dict[Handle, Any] = {}  # of connections that a proxy has made for a client
        # Connections that receive nothing, because a layer above them has messages for the user first. The value is
        # False while the user has paused reading. See `stream.suspend_reading`.
        self.suspended: dict[Handle, bool] = {}
        self.tls_buffers: Any = None  # made for the first TLS connection
        self.tls_class: Any = None  # the class that `start_tls` gives a stream; set by the reactor
