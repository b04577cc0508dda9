"""Messages between the experiment and its processes: dictionaries, each behind its length, over a socketpair.

Owns the format, which is `marshal`: both ends are the same Python, and the `json` module would cost each server more
memory than a thousand connections. Knows nothing of what is said. The rule: when one side is gone, the other is told
once, and ends.
"""

from __future__ import annotations

import marshal

from .. import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from .. import Reactor

LENGTH = 4  # bytes


class ControlConnection:
    """One end: `send(**message)`, and `on_message(message)` for each that arrives, `on_gone()` at the end."""

    def __init__(
        self, r: Reactor, sock: socket, on_message: Callable[[dict[str, Any]], object], on_gone: Callable[[], object]
    ) -> None:
        self._received = bytearray()
        self._on_message = on_message
        self._on_gone = on_gone
        self.stream: Stream = r.adopt(sock, self.on_data, on_close=self.on_close, linger=5)

    def send(self, **message: Any) -> None:
        """Send a message, unless the other side is gone."""
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
