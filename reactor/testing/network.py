"""The simulated network: the addresses of listeners and datagram sockets, and how clients are connected.

This module knows nothing about descriptors. `files` moves the bytes between two connected ends.
"""

from __future__ import annotations

import errno
from socket import AF_INET6, AF_UNIX, IPPROTO_IPV6, IPV6_V6ONLY, SO_REUSEPORT, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from typing import Any

from .addresses import EVERYWHERE, Addresses, Binding, address_for, is_group, plain, reachable
from .faults import fail
from .files import DEFERRED, READ, SYN_RETRY, WRITE, End, File, Listening
from .mailboxes import Mailbox
from .options import LINGER
from .platforms import MS

NOWHERE = '', 0


class Network(Addresses):
    """A kernel with a simulated network. The arguments are for `Agenda`."""

    def __init__(self, *agenda: Any) -> None:
        super().__init__(*agenda)
        self.silent: set[str] = set()  # hosts that never answer
        self.paths: dict[Any, tuple[int, int]] = {}  # device and inode of each socket file
        self._at_node: dict[tuple[Any, int], Binding] = {}  # the sockets that are bound to socket files

    def bind_path(self, file: File, path: Any) -> None:
        """Make a socket file. Fails with EADDRINUSE if there is one at the path."""
        if not path:
            return
        if path in self.paths:
            fail(errno.EADDRINUSE)
        if file.local:
            fail(errno.EINVAL)
        self.paths[path] = node = 1, self.next_number()
        self._at_node[node] = file.binding = Binding(file, 0, AF_UNIX, node)
        file.local = path

    def refusal_at(self, path: Any) -> int:
        """Return the error of connecting a stream to the socket at a path; 0: there is a listener with room."""
        listening = self._listener(path)
        if listening is None:
            return errno.ECONNREFUSED if path in self.paths else errno.ENOENT
        return errno.EAGAIN if len(listening.queue) > listening.backlog else 0

    def at_path(self, path: Any) -> File | None:
        """Return the socket that is bound to a path, or None."""
        binding = self._at_node.get(self.paths.get(path, NOWHERE))
        return binding.file if binding is not None and binding.file.references else None

    def forget(self, file: File) -> None:
        """Free the address of a file whose last descriptor was closed."""
        if file.binding is None:
            return
        if file.binding.family == AF_UNIX:
            self._at_node.pop((file.binding.host, file.binding.port), None)
        else:
            self.unbind(file.binding)

    def ephemeral(self, family: int) -> Any:
        """Return an address for an end of a socketpair."""
        return '' if family == AF_UNIX else address_for(family, '127.0.0.1', self.choose_port(SOCK_STREAM))

    def set_remote(self, file: End | Mailbox, kind: int, address: Any) -> None:
        """Choose the addresses of a TCP or UDP socket that connects to `address`; fail if it cannot be reached."""
        host, port = self.check_route(file, address)
        bound = (plain(file.local)[0] if file.local is not None else '::'), 0
        if file.binding is not None:
            bound = file.binding.host, file.binding.port
        source = self.source_of(host) if bound[0] in EVERYWHERE else bound[0]
        if isinstance(file, End) and is_group(host):
            fail(errno.ENETUNREACH)
        local = address_for(file.family, source, bound[1] or self.choose_port(kind))
        remote = address_for(file.family, host, port)
        for other in self.using(bound[1]) if isinstance(file, End) else ():
            end = other.file
            if isinstance(end, End) and (end.local, end.remote) == (local, remote):
                # The address of a connection in TIME_WAIT can be used: old segments have older timestamps.
                if other.until is None:
                    fail(errno.EADDRNOTAVAIL)
        file.local, file.remote = local, remote
        if isinstance(file, End):
            if file.binding is not None:
                file.binding.host = source
        else:
            if file.binding is None:
                file.binding = Binding(file, kind, file.family, (source, local[1]))
                self.add(file.binding)
            file.binding.host = source

    def check_route(self, file: End | Mailbox, address: Any, any_port: bool = True) -> tuple[str, int]:
        """Return the host and port that `address` reaches; fail if the socket cannot reach them."""
        host, port = plain(address)
        if file.family == AF_INET6 and ':' not in host and file.options.get((IPPROTO_IPV6, IPV6_V6ONLY)):
            fail(errno.ENETUNREACH)
        if not port and not any_port:
            fail(errno.EINVAL)
        bound = plain(file.local)[0] if file.local is not None else '::'
        if file.binding is not None:
            bound = file.binding.host
        if file.family == AF_INET6 and host == '::' and ':' not in bound:
            host = '127.0.0.1'
        if ':' in host and ':' not in bound:
            fail(errno.EAFNOSUPPORT)
        if host == '0.0.0.0' and ':' not in bound:
            host = bound
        return reachable(host), port

    def separates(self, file: File, other: File) -> bool:
        """Return whether a partition separates the processes of two sockets."""
        first, second = file.kernel.index, other.kernel.index
        return any((first in part) != (second in part) for part in self.partitions)

    def is_silent(self, address: Any) -> bool:
        """Return whether the host of this address never answers."""
        return bool(address) and address[0] in self.silent

    def try_connect(self, end: End) -> bool:
        """Connect a client if there is a listener with room at the address; return whether it is connected."""
        if not end.references or end.connected or end.dead:
            return False  # it was closed, or another attempt was faster
        listening = self._listener(end.remote, end.key)
        if listening is None and end.remote == end.local:
            end.peer, end.connected = end, True  # TCP connects a socket to itself: RFC 9293, section 3.5
            if end.shut & WRITE:
                end.end()
            end.look()
            return True
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

    def post_unix(self, sender: Mailbox, data: bytes, receiver: File | None) -> int:
        """Deliver a datagram to a Unix socket at once, or refuse it; return the error number, or 0."""
        if not isinstance(receiver, Mailbox):
            return errno.ECONNREFUSED if receiver is None else errno.EPROTOTYPE
        if receiver.peer is not None and receiver.peer is not sender:
            return errno.EPERM
        if receiver.shut & READ:
            return errno.EPIPE
        if receiver.is_full_for(sender, len(data)):
            return errno.EAGAIN if self.on_linux else errno.ENOBUFS
        receiver.arrive(data, sender)  # it shows the path that the sender has when the datagram is read
        return 0

    def post(self, sender: Mailbox, data: bytes, address: Any) -> None:
        """Deliver a datagram; if no socket is bound to the address, a sender that is connected to it gets an error."""
        host, port = address
        source, source_port = plain(sender.local)
        if source in EVERYWHERE or (':' in source) != (':' in host):
            source = self.source_of(host)
        found: dict[int, list[Mailbox]] = {}
        for binding in self.bound_to(SOCK_DGRAM, port):
            mailbox, score = binding.file, binding.covers(host) or (is_group(host) and binding.host == '0.0.0.0')
            if score and isinstance(mailbox, Mailbox) and not self.separates(mailbox, sender):
                if mailbox.remote is None or plain(mailbox.remote) in ((source, source_port), (source, 0)):
                    found.setdefault(4 * (mailbox.remote is not None) + score, []).append(mailbox)
        if not found:
            if sender.remote is None or plain(sender.remote) in ((host, port), (host, 0)):
                sender.refuse()
            return
        group = found[max(found)]
        shared = group[0].options.get((SOL_SOCKET, SO_REUSEPORT))
        receivers = group if is_group(host) else [group[source_port % len(group) if shared else -1]]
        for mailbox in receivers:
            mailbox.arrive(data, address_for(mailbox.family, source, source_port))

    def _listener(self, address: Any, key: int = 0) -> Listening | None:
        if not isinstance(address, tuple):
            file = self.at_path(address)
            return file if isinstance(file, Listening) and not file.shut & READ else None
        host, port = plain(address)
        found: dict[int, list[Listening]] = {}
        for binding in self.bound_to(SOCK_STREAM, port):
            score = binding.covers(host)
            if score and isinstance(binding.file, Listening) and binding.until is None:
                found.setdefault(score, []).append(binding.file)
        best = found[max(found)] if found else []
        return best[int(self.draw(key) * len(best))] if len(best) > 1 else best[0] if best else None

    def _join(self, client: End, listening: Listening) -> None:
        server = End(listening.kernel, client.family, client.instant, ~client.key)
        server.references = 0
        server.accepted = False
        client.peer, server.peer = server, client
        server.confirmed = True
        server.options = dict(listening.options)
        if client.instant:
            server.local, server.remote, server.binding = listening.local, client.local, None
        else:
            binding = listening.binding
            server.local = address_for(binding.family, *plain(client.remote))
            server.remote = address_for(binding.family, *plain(client.local))
            server.family = binding.family
        server.lingers = server.options.get(LINGER) != self.reset_on_close
        client.connected = server.connected = True
        if listening.half_closed and self.on_linux:
            server.end()
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
