"""The simulated network: the addresses of listeners and datagram sockets, and how clients are connected.

This module knows nothing about descriptors. `files` moves the bytes between two connected ends.
"""

from __future__ import annotations

import errno
from socket import AF_INET, AF_UNIX
from typing import Any

from .agenda import Agenda
from .faults import fail
from .files import DEFERRED, SYN_RETRY, End, File, Listening, Mailbox
from .platforms import MS

UNIX_QUEUE = 10  # datagrams that can wait in the queue of a Unix socket: net.unix.max_dgram_qlen on Linux


class Network(Agenda):
    """A kernel with a simulated network. The arguments are for `Agenda`."""

    def __init__(self, *agenda: Any) -> None:
        super().__init__(*agenda)
        self.silent: set[str] = set()  # hosts that never answer
        self.paths: dict[Any, tuple[int, int]] = {}  # device and inode of each socket file
        self._listeners: dict[Any, list[Listening]] = {}
        self._mailboxes: dict[Any, Mailbox] = {}
        self._port = 32768

    def bind(self, file: Any, family: int, kind: int, address: Any, reuse: bool) -> Any:
        """Bind a socket to an address, and return the address; fail with EADDRINUSE if it is taken."""
        if family == AF_UNIX:
            if not address:
                return ''
            if address in self.paths:
                fail(errno.EADDRINUSE)
            self.paths[address] = (1, self.next_number())
            if isinstance(file, Mailbox):
                self._mailboxes[address] = file
                file.local = address
            return address
        address = address or ('0.0.0.0' if family == AF_INET else '::', 0)
        if not address[1]:
            self._port += 1
            address = (address[0], self._port, *address[2:])
        if isinstance(file, Mailbox):
            if address in self._mailboxes:
                fail(errno.EADDRINUSE)
            self._mailboxes[address] = file
            file.local = address
        else:
            found = self._listeners.get(_key(address), ())
            if any(listening.exclusive for listening in found) and reuse:
                fail(errno.EACCES)
            if found and not reuse:
                fail(errno.EADDRINUSE)
        return address

    def listen(self, listening: Listening) -> None:
        """Add a listener at its address."""
        self._listeners.setdefault(_key(listening.address), []).append(listening)

    def forget(self, file: File) -> None:
        """Free the address of a file whose last descriptor was closed."""
        if isinstance(file, Listening):
            key = _key(file.address)
            self._listeners[key].remove(file)
            if not self._listeners[key]:
                del self._listeners[key]
        elif isinstance(file, Mailbox) and self._mailboxes.get(file.local) is file:
            del self._mailboxes[file.local]

    def ephemeral(self, family: int) -> Any:
        """Return an address for a socket that connects without being bound."""
        if family == AF_UNIX:
            return ''
        self._port += 1
        return ('127.0.0.1', self._port) if family == AF_INET else ('::1', self._port, 0, 0)

    def is_silent(self, address: Any) -> bool:
        """Return whether the host of this address never answers."""
        return bool(address) and address[0] in self.silent

    def try_connect(self, end: End) -> bool:
        """Connect a client if there is a listener with room at the address; return whether it is connected."""
        if not end.references:
            return False
        listening = self._listener(end.remote)
        if listening is None:
            self.refuse(end)
        elif len(listening.queue) > listening.backlog or not listening.takes_new:
            self.at(self.time + SYN_RETRY, self.try_connect, end)
        else:
            self._join(end, listening)
            return True
        return False

    def connect_unix(self, end: End) -> int:
        """Connect a client of a Unix socket at once; return the error number, or 0."""
        listening = self._listener(end.remote)
        if listening is None:
            return errno.ECONNREFUSED if end.remote in self.paths else errno.ENOENT
        if len(listening.queue) > listening.backlog:
            return errno.EAGAIN if self.on_linux else errno.ECONNREFUSED
        self._join(end, listening)
        return 0

    def refuse(self, end: End) -> None:
        """Refuse a client: no socket is listening at the address to which it connects."""
        self._fail_connect(end, errno.ECONNREFUSED)

    def give_up(self, end: End) -> None:
        """Let a connect time out, because there was no answer."""
        self._fail_connect(end, errno.ETIMEDOUT)

    def post_unix(self, sender: Mailbox, data: bytes, path: Any) -> int:
        """Deliver a datagram to a Unix socket at once, or refuse it; return the error number, or 0."""
        receiver = self._mailboxes.get(path)
        if receiver is None:
            return errno.ECONNREFUSED if path in self.paths else errno.ENOENT
        if len(receiver.inbox) >= UNIX_QUEUE:
            return errno.EAGAIN if self.on_linux else errno.ENOBUFS  # even so, the sender is reported as writable
        receiver.arrive(data, sender.local)
        return 0

    def post(self, sender: Mailbox, data: bytes, address: Any) -> None:
        """Deliver a datagram; if no socket is bound to the address, the sender gets an error."""
        host, port = address[:2]
        for found in (address, (host, port), ('0.0.0.0', port), ('::', port, 0, 0), ('::', port)):
            if found in self._mailboxes:
                local = sender.local
                self._mailboxes[found].arrive(data, ('127.0.0.1', *local[1:]) if local[0] == '0.0.0.0' else local)
                return
        sender.refuse()

    def _listener(self, address: Any) -> Listening | None:
        if isinstance(address, tuple):
            for host in (address[0], '0.0.0.0', '::'):
                group = self._listeners.get((host, address[1]))
                if group:
                    return self.random.choice(group)
            return None
        group = self._listeners.get(address)
        return group[0] if group and address in self.paths else None

    def _join(self, client: End, listening: Listening) -> None:
        server = End(self, client.family, client.instant)
        server.references = 0
        server.accepted = False
        client.peer, server.peer = server, client
        server.local, server.remote = listening.address, client.local
        client.connected = server.connected = True
        client.look()
        server.look()
        self.note('connected', -1, (client.number, server.number))
        if listening.deferred:
            self._queue_deferred(server, listening, self.time + DEFERRED)
        else:
            listening.arrive(server)

    def _queue_deferred(self, server: End, listening: Listening, until: int) -> None:
        if not listening.references:
            server.reset()
        elif server.inbox or server.ended_in or server.dead or self.time >= until:
            listening.arrive(server)
        else:
            self.at(self.time + MS, self._queue_deferred, server, listening, until)

    def _fail_connect(self, end: End, error: int) -> None:
        if end.references:
            end.error, end.dead, end.refused = error, True, True
            self.note('connect failed', -1, (end.number, errno.errorcode[error]))
            end.look()


def _key(address: Any) -> Any:
    return address[:2] if isinstance(address, tuple) else address
