"""Messages between the experiment and its processes: JSON, one object a line, over a socketpair.

Owns the format. Knows nothing of what is said. The rule: when one side is gone the other is told once, and ends.
"""

from __future__ import annotations

import json

from .. import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from .. import Reactor


class Control:
    """One end: `send(**message)`, and `on_message(message)` for each that arrives, `on_gone()` at the end."""

    def __init__(
        self, r: Reactor, sock: socket, on_message: Callable[[dict[str, Any]], object], on_gone: Callable[[], object]
    ) -> None:
        self._pieces: list[bytes] = []
        self._on_message = on_message
        self._on_gone = on_gone
        self.stream = r.adopt(sock, self.on_data, on_close=self.on_close, linger=5)

    def send(self, **message: Any) -> None:
        """Send a message, unless the other side is gone."""
        if not self.stream.closed:
            self.stream.write(json.dumps(message).encode() + b'\n')

    def on_data(self, conn: Stream, data: bytes) -> None:
        *lines, rest = data.split(b'\n')
        for line in lines:
            message = json.loads(b''.join([*self._pieces, line]))
            self._pieces.clear()
            self._on_message(message)
        self._pieces.append(rest)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self._on_gone()
