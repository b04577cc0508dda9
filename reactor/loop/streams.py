"""What the connections of one loop share, `loop.streams`.

Few connections need any of it, so it is kept here by handle: a slot in each of them would cost memory.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .watcher import Handle


class Streams:
    """The marks of some connections, and the buffers that all TLS connections use in turn."""

    __slots__ = ('busy', 'proxy_headers', 'suspended', 'tls_buffers', 'tls_class')

    def __init__(self) -> None:
        self.busy: set[Handle] = set()  # whose application owes an answer; see `Stream.busy`
        self.proxy_headers: dict[Handle, Any] = {}  # of the connections that a proxy has made for a client
        # That receive nothing, since a layer above has more for the user first; False while the user has paused
        # reading. See `stream.suspend_reading`.
        self.suspended: dict[Handle, bool] = {}
        self.tls_buffers: Any = None  # made with the first TLS connection
        self.tls_class: Any = None  # what `start_tls` makes of a stream: set by the reactor, which knows its kinds
