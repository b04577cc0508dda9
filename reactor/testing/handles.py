"""The part of a simulated socket that does not depend on its type: the object, its addresses and its options."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..kernel.platforms import AF_UNIX, SO_MEMINFO, SO_PEERNAME, TCP_DEFER_ACCEPT
from .addresses import address_for, sockaddr
from .descriptors import Descriptors
from .faults import fail
from .files import End, File, Listening
from .mailboxes import Mailbox
from .options import KNOWN, LINGER, check_level, stored, to_store

PROTOCOLS = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}


class SimHandle:
    """A socket on a `SimKernel`, without the calls that send and receive."""

    def __init__(self, kernel: Descriptors, family: int, kind: int, fd: int) -> None:
        self.kernel = kernel
        self.family = family
        self.type = kind
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            error = self.kernel.failing('close', fd)
            if error != errno.EBADF:
                self.kernel.close_fd(fd)
            if error:
                fail(error)

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError('simulated sockets cannot block: setblocking(True) is not supported')

    @property
    def file(self) -> Any:
        """The file of the socket; fails with EBADF if its descriptor was closed."""
        return self.kernel.file(self._fd)

    # -- addresses

    def bind(self, address: Any) -> None:
        kernel = self.kernel
        kernel.call('bind', self._fd)
        file: File = self.file
        if self.family == AF_UNIX:
            kernel.bind_path(file, address)
            return
        if self.family == socket.AF_INET:
            kernel.check_host(file, self.family, self.type, address)
        if self._has_port(file):
            fail(errno.EINVAL)
        kernel.check_host(file, self.family, self.type, address)
        try:
            kernel.bind(file, self.family, self.type, address)
        except OSError:
            if file.local is not None:  # a failed bind clears the host of an ended connection, but not its port
                file.local = address_for(self.family, self._anywhere(), file.local[1])
            raise

    def _has_port(self, file: File) -> bool:
        """Return whether a socket has a port. An ended connection has lost it, unless `bind` has named the port."""
        if isinstance(file, End) and file.over and not file.released:
            file.released = True
            self.kernel.release(file)
        return file.binding is not None or (isinstance(file, End) and not file.over)

    def getsockname(self) -> Any:
        self.kernel.call('getsockname', self._fd)
        file: File = self.file
        if self.family != AF_UNIX:
            self._has_port(file)
        local = file.local
        if local is not None:
            return local
        return '' if self.family == AF_UNIX else address_for(self.family, self._anywhere(), 0)

    def getpeername(self) -> Any:
        kernel = self.kernel
        kernel.call('getpeername', self._fd)
        file = self.file
        connected = isinstance(file, End) and file.connected and (file.instant or not file.over)
        if not connected and not (
            isinstance(file, Mailbox) and file.remote and (self.family == AF_UNIX or file.remote[1])
        ):
            fail(errno.ENOTCONN)
        if kernel.faults.falls('address.peer', self._fd):
            fail(errno.ENOTCONN)
        if self.family == AF_UNIX:
            return (file.peer.local if file.peer is not None else file.remote) or ''
        return file.remote

    def _sockaddr_of_peer(self) -> bytes:
        """Return the peer's address, also after the connection has ended."""
        self.kernel.call('getpeername', self._fd)
        file: Any = self.file
        if not (isinstance(file, End) and file.connected):
            fail(errno.ENOTCONN)
        return sockaddr(self.family, file.remote)

    def _anywhere(self) -> str:
        return '0.0.0.0' if self.family == socket.AF_INET else '::'

    # -- options

    def setsockopt(self, level: int, option: int, value: Any = None) -> None:
        kernel = self.kernel
        kernel.call('setsockopt', self._fd)
        file: File = self.file
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_NODELAY) and isinstance(file, End | Listening):
            file.nodelay = True  # recorded even if the call fails, because the reactor has tried to set it
        if isinstance(file, End) and file.dead and kernel.kind == 'kqueue':
            fail(errno.EINVAL)  # macOS accepts no options on a socket that is shut down in both directions
        if (level, option) == LINGER and isinstance(file, End):
            if len(value) < len(kernel.reset_on_close):
                fail(errno.EINVAL)
            file.lingers = value != kernel.reset_on_close
            file.options[LINGER] = value
            return
        if option == socket.SO_REUSEPORT and level == socket.SOL_SOCKET and kernel.kind == 'windows':
            fail(errno.ENOPROTOOPT)
        if isinstance(file, End) and kernel.faults.falls('setsockopt.invalid', self._fd):
            fail(errno.EINVAL)
        if (level, option) == (socket.IPPROTO_TCP, TCP_DEFER_ACCEPT):
            if not kernel.on_linux:
                return  # the reactor relies on this option only on Linux
            if isinstance(file, Listening):
                file.deferred = bool(value)
        if kernel.on_linux:
            check_level(self.family, self.type, level, option, errno.ENOPROTOOPT)
            if (level, option) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) and self._has_port(file):
                fail(errno.EINVAL)
            value = to_store(self.family, level, option, value)
        file.options[level, option] = value
        if isinstance(file, End) and file.vanished:
            kernel.probe(file)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        kernel = self.kernel
        if level == socket.SOL_SOCKET and option == SO_PEERNAME and kernel.on_linux:
            return self._sockaddr_of_peer()
        kernel.call('getsockopt', self._fd)
        file = self.file
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            return file.take_error() if isinstance(file, End | Mailbox) else 0
        if level == socket.SOL_SOCKET and option == SO_MEMINFO and size:
            if not kernel.on_linux:
                fail(errno.ENOPROTOOPT)
            return (file.dropped if isinstance(file, Mailbox) else 0).to_bytes(size, 'little')
        if kernel.on_linux:
            check_level(
                self.family,
                self.type,
                level,
                option,
                errno.EOPNOTSUPP if self.family == socket.AF_INET else errno.ENOPROTOOPT,
            )
        known = {
            socket.SO_TYPE: self.type,
            socket.SO_ACCEPTCONN: int(isinstance(file, Listening)),
            getattr(socket, 'SO_DOMAIN', None): int(self.family),
            getattr(socket, 'SO_PROTOCOL', None): self._protocol(),
        }
        if level == socket.SOL_SOCKET and option in known and option in KNOWN[level]:
            return known[option].to_bytes(4, 'little')[:size] if size else int(known[option])
        return stored(file.options, level, option, size)

    def _protocol(self) -> int:
        return 0 if self.family == AF_UNIX else PROTOCOLS[socket.SocketKind(self.type)]

    def __repr__(self) -> str:
        return f'<SimSocket fd={self._fd}>'
