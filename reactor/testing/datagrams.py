"""Datagrams on simulated sockets: the calls of UDP and of Unix datagram sockets, with their errors and faults."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..kernel.platforms import AF_UNIX
from .addresses import is_group, plain
from .agenda import excerpt
from .faults import fail
from .files import WRITE
from .handles import SimHandle
from .mailboxes import Mailbox

LARGEST_DATAGRAM = 65507
LARGEST_UNIX_DATAGRAM = 212_960  # bytes: the largest datagram that fits into the default SO_SNDBUF
BROADCAST = socket.SOL_SOCKET, socket.SO_BROADCAST


class SimDatagrams(SimHandle):
    """A socket on a `SimKernel`, with the calls for datagrams. `sendto` on a stream is a `send`."""

    def send(self, data: Any) -> int:
        raise NotImplementedError

    def _connect_datagrams(self, address: Any) -> int:
        kernel = self.kernel
        kernel.call('connect', self._fd)
        mailbox: Mailbox = self.file
        if self.family == AF_UNIX:
            peer = kernel.at_path(address)
            if not isinstance(peer, Mailbox):
                return errno.ECONNREFUSED if address in kernel.paths else errno.ENOENT
            if peer.peer not in (None, mailbox):
                return errno.EPERM
            mailbox.connect_unix(peer)
            mailbox.remote = address
            return 0
        if mailbox.binding is None:  # the socket gets a port even if the connect fails
            kernel.bind(mailbox, self.family, self.type, (self._anywhere(), 0))
        try:
            host = kernel.check_route(mailbox, address)[0]
        except OSError as exc:
            return exc.errno or 0
        if is_group(host) and not mailbox.options.get(BROADCAST):
            return errno.EACCES
        kernel.set_remote(mailbox, self.type, address)
        return 0

    def sendto(self, data: Any, address: Any) -> int:
        self.kernel.call('sendto', self._fd)
        if not isinstance(self.file, Mailbox):
            return self.send(data)
        return self._post(self.file, bytes(data), address)

    def _post(self, mailbox: Mailbox, data: bytes, address: Any) -> int:
        kernel, falls = self.kernel, self.kernel.faults.falls
        target: Any = None
        if mailbox.shut & WRITE and self.family == AF_UNIX:
            fail(errno.EPIPE)
        if self.family != AF_UNIX:
            target = self._route(mailbox, data, address)
        elif address is None and mailbox.peer is None:
            fail(errno.ENOTCONN)
        elif len(data) > LARGEST_UNIX_DATAGRAM:
            fail(errno.EMSGSIZE)
        if mailbox.error and kernel.kind != 'windows':
            fail(mailbox.take_error())
        if mailbox.shut & WRITE:
            fail(errno.EPIPE)
        if falls('datagram.again', self._fd):
            raise BlockingIOError(errno.EAGAIN, 'simulated: no room')
        if falls('datagram.full', self._fd):
            fail(errno.ENOBUFS)
        if self.family == AF_UNIX:
            self._post_unix(mailbox, data, address)
        elif not falls('datagram.lost', self._fd):
            for _ in range(2 if falls('datagram.twice', self._fd) else 1):
                kernel.after_latency(kernel.post, mailbox, data, target)
        kernel.moved('sendto', self._fd, excerpt(data))
        return len(data)

    def _route(self, mailbox: Mailbox, data: bytes, address: Any) -> tuple[str, int]:
        """Return the host and port to which a datagram goes; fail with the error that Linux has for it."""
        kernel = self.kernel
        if mailbox.binding is None:
            kernel.bind(mailbox, self.family, self.type, (self._anywhere(), 0))
        if len(data) > 0xFFFF and self.family == socket.AF_INET:
            fail(errno.EMSGSIZE)
        if address is None and mailbox.remote is None:
            fail(errno.EDESTADDRREQ)
        connected = address is None
        address = mailbox.remote if connected else address
        any_port = connected and (self.family == socket.AF_INET or ':' in plain(address)[0])
        host, port = kernel.check_route(mailbox, address, any_port)
        if is_group(host) and not mailbox.options.get(BROADCAST) and host.endswith('.255'):
            fail(errno.EACCES)
        if len(data) > LARGEST_DATAGRAM:
            fail(errno.EMSGSIZE)
        return host, port

    def _post_unix(self, mailbox: Mailbox, data: bytes, path: Any) -> None:
        kernel = self.kernel
        receiver: Any = mailbox.peer if path is None else kernel.at_path(path)
        if path is not None and receiver is None and path not in kernel.paths:
            fail(errno.ENOENT)
        if receiver is not None and not receiver.references:
            mailbox.leave()
            mailbox.remote = receiver = None
        error = kernel.post_unix(mailbox, data, receiver)
        if error:
            fail(error)

    def recv_into(self, buffer: Any, size: int, flags: int) -> int:
        """Return the length of the next datagram. The reactor calls this only with MSG_PEEK | MSG_TRUNC."""
        self.kernel.call('recv', self._fd)
        mailbox: Mailbox = self.file
        if mailbox.error:
            fail(mailbox.take_error())
        if not mailbox.inbox:
            raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')
        length = len(mailbox.inbox[0][0])
        return length if self.kernel.on_linux else min(1, length)  # only Linux accepts MSG_TRUNC here

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        kernel = self.kernel
        kernel.call('recvfrom', self._fd)
        return self._receive(self.file, size)

    def _receive(self, mailbox: Mailbox, size: int, flags: int = 0) -> tuple[bytes, Any]:
        kernel = self.kernel
        if mailbox.error:
            fail(mailbox.take_error())
        if not mailbox.inbox or kernel.faults.falls('recv.spurious', self._fd):
            raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')
        if flags & socket.MSG_PEEK:
            return mailbox.first()[0][:size], mailbox.first()[1]
        data, sender = mailbox.take()
        kernel.moved('recvfrom', self._fd, excerpt(data))
        kernel.took(mailbox, 1)
        return data[:size], sender
