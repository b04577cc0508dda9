"""Messages between the experiment and its processes: dictionaries with a length prefix, over a socketpair.

The format is `marshal`, because both ends run the same Python, and importing `json` would cost each server more memory
than a thousand connections do.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable
from typing import Any

from .. import Reactor, Stream
from ..hints import socket

LENGTH = 4  # bytes in the length prefix


class ControlConnection:
    """One end of the connection. Calls `on_message(message)` for each message, and `on_gone()` when it is closed."""

    def __init__(
        self, r: Reactor, sock: socket, on_message: Callable[[dict[str, Any]], object], on_gone: Callable[[], object]
    ) -> None:
        self._received = bytearray()
        self._on_message = on_message
        self._on_gone = on_gone
        self.stream: Stream = r.adopt(sock, self.on_data, on_close=self.on_close, linger=5)

    def send(self, **message: Any) -> None:
        """Send a message, unless the connection is closed."""
        if not self.stream.closed:
            body = marshal.dumps(message)
            self.stream.writelines((len(body).to_bytes(LENGTH, 'big'), body))

    def on_data(self, conn: Stream, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= LENGTH:
            end = LENGTH + int.from_bytes(received[:LENGTH], 'big')
            if len(received) < end:
                break
            message = marshal.loads(received[LENGTH:end])
            del received[:end]
            self._on_message(message)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self._on_gone()
