"""The files of simulated datagram sockets."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

from .agenda import Agenda
from .files import BOTH, READ, WRITE, File

UNIX_QUEUE = 10  # a queue with more datagrams than this takes no more: net.unix.max_dgram_qlen on Linux


class Mailbox(File):
    """A datagram socket. It holds received datagrams and their senders, up to `capacity` bytes."""

    def __init__(self, kernel: Agenda, family: int) -> None:
        super().__init__(kernel)
        self.family = family
        self.remote: Any = None
        self.peer: Mailbox | None = None  # the socket to which a Unix socket is connected
        self.senders: dict[Mailbox, None] = {}  # the Unix sockets that are connected to this one
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
        self.queue_changed()

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
        self.queue_changed()
        return data, sender

    def connect_unix(self, peer: Mailbox) -> None:
        """Send to a Unix socket from now on."""
        if peer is not self.peer:
            self.leave()
        self.peer = peer
        peer.senders[self] = None
        self.look()
        peer.look()  # its datagrams no longer wait for room in the queue of this socket

    def leave(self) -> None:
        """Be connected to no Unix socket. Unread datagrams are lost, and a peer that sends to it gets an error."""
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.senders.pop(self, None)
            if self.inbox and peer.references and peer.peer is self:
                peer.error = errno.ECONNRESET
            peer.look()
            self.inbox.clear()
            self.held = 0
            self.queue_changed()

    def closed(self) -> None:
        if self.peer is not None:
            self.peer.senders.pop(self, None)
        for sender in self.senders:
            sender.look()

    def is_full_for(self, sender: Mailbox, size: int = 0) -> bool:
        """Return whether this Unix socket has no room for a datagram: the queue is short, except for its own peer."""
        if sender is self or self.peer is sender:
            return self.held + size > self.capacity
        return len(self.inbox) > UNIX_QUEUE and self.references > 0

    def queue_changed(self) -> None:
        """Update `ready` of this socket, and of those whose datagrams wait for room in its queue."""
        self.look()
        if len(self.inbox) in (0, UNIX_QUEUE, UNIX_QUEUE + 1):
            for sender in self.senders:
                sender.look()

    def look(self) -> None:
        """Update `ready`."""
        full = self.peer is not None and self.peer.is_full_for(self)
        read = READ if self.inbox or self.error or self.shut & READ else 0
        self.ready = read | (0 if full and not self.error else WRITE)
        self.hung_up: bool = self.shut == BOTH
