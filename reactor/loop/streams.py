"""`loop.streams`: state that only some connections of a loop need.

It is kept in sets and dicts of handles, because a slot in each connection would cost memory.
"""

from __future__ import annotations

from typing import Any

from .watcher import Handle


class Streams:
    """State of some connections, and the buffers that all TLS connections of the loop share."""

    __slots__ = ('busy', 'proxy_headers', 'suspended', 'tls_buffers', 'tls_class')

    def __init__(self) -> None:
        self.busy: set[Handle] = set()  # connections whose application owes the peer a response; see `Stream.busy`
        self.proxy_headers: dict[Handle, Any] = {}  # the headers of connections that came through a proxy
        # Connections that do not receive, because a layer above them still has messages for the user. The value is
        # False while the user has paused reading. See `stream.suspend_reading`.
        self.suspended: dict[Handle, bool] = {}
        self.tls_buffers: Any = None  # made for the first TLS connection
        self.tls_class: Any = None  # the class that `start_tls` gives a stream; set by the reactor
