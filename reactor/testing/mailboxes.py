"""The files of simulated datagram sockets."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

from .agenda import Agenda
from .files import BOTH, READ, WRITE, File


class Mailbox(File):
    """A datagram socket. It holds received datagrams and their senders, up to `capacity` bytes."""

    def __init__(self, kernel: Agenda, family: int) -> None:
        super().__init__(kernel)
        self.family = family
        self.remote: Any = None
        self.peer: Mailbox | None = None  # the socket to which a Unix socket is connected
        self.inbox: deque[tuple[bytes, Any]] = deque()
        self.key: int = kernel.keys.make('datagrams', family)
        self.capacity: int = kernel.draw_capacity(self.key) + 100_000
        self.held: int = 0
        self.dropped: int = 0
        self.error: int = 0
        self.ready = WRITE

    def arrive(self, data: bytes, sender: Any) -> None:
        """Receive a datagram; it is dropped if there is no room."""
        if self.held + len(data) > self.capacity:
            self.dropped += 1
            return
        self.inbox.append((data, sender))
        self.held += len(data) + 1
        self.look()

    def refuse(self) -> None:
        """Receive an ICMP error: no socket is bound to the address to which this socket has sent.

        Windows reports the error to unconnected sockets, too: their next receive fails with WSAECONNRESET (recvfrom in
        the Winsock reference).
        """
        on_windows = self.kernel.kind == 'windows'
        if self.references and (self.remote is not None or on_windows):
            self.error = errno.ECONNRESET if on_windows else errno.ECONNREFUSED
            self.look()

    def take_error(self) -> int:
        """Return SO_ERROR and clear it."""
        error, self.error = self.error, 0
        self.look()
        return error

    def first(self) -> tuple[bytes, Any]:
        """Return the next datagram and its sender, without taking it."""
        data, sender = self.inbox[0]
        return data, sender.local if isinstance(sender, Mailbox) else sender

    def take(self) -> tuple[bytes, Any]:
        """Return the next datagram and its sender."""
        data, sender = self.first()
        self.inbox.popleft()
        self.held -= len(data) + 1
        self.look()
        return data, sender

    def look(self) -> None:
        """Update `ready`."""
        self.ready = BOTH if self.inbox or self.error or self.shut & READ else WRITE
        self.hung_up = self.shut == BOTH
