"""Sockets and pipes with the methods that a stream calls.

`LeanSocket` is a socket of the operating system without the cost of `socket.socket`. `PipeSocket` is one end of a pipe
with the interface of a socket. Nothing here knows the loop.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from ..errors import EXHAUSTION
from .platforms import SO_PEERNAME

SOCKADDR_SIZES: dict[int, int] = {socket.AF_INET: 16, socket.AF_INET6: 28}  # of struct sockaddr_in and sockaddr_in6


def send_first(sock: socket.socket, buffers: list[Any]) -> int:
    """Send the first buffer only, on platforms without `sendmsg` (Windows)."""
    return sock.send(buffers[0])


def close_socket(sock: Any, failed: Callable[[OSError], object] | None = None) -> None:
    """Close a socket.

    Errors (other code has closed it, the peer has reset it) are only passed to `failed`: the descriptor is gone.
    """
    try:
        sock.close()
    except OSError as exc:
        if failed is not None:
            failed(exc)


def peer_of(sock: Any) -> Any:
    """Return the address of the peer; on Linux, also after the connection has been reset. Raises OSError."""
    try:
        return sock.getpeername()
    except OSError as exc:
        if exc.errno != errno.ENOTCONN or SO_PEERNAME < 0 or sock.family not in SOCKADDR_SIZES:
            raise
    data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERNAME, SOCKADDR_SIZES[sock.family])
    port = int.from_bytes(data[2:4], 'big')
    if sock.family == socket.AF_INET:
        return socket.inet_ntoa(data[4:8]), port
    host = socket.inet_ntop(socket.AF_INET6, data[8:24])
    return host, port, int.from_bytes(data[4:8], 'big'), int.from_bytes(data[24:28], sys.byteorder)


class LeanSocket(socket.SocketType):
    """A socket without the additions of `socket.socket`: files, enums, an instance dictionary.

    It exists for its `accept`. The `accept` of `socket.socket` looks up two enum members and runs three Python
    functions for each connection, which is a tenth of the cost of a short connection. Here accepted sockets are plain
    `SocketType` objects, which are half as large.
    """

    __slots__ = ()

    def accept(self) -> tuple[socket.SocketType, Any]:
        fd, address = self._accept()  # type: ignore[attr-defined]
        try:
            return socket.SocketType(self.family, self.type, self.proto, fd), address
        except EXHAUSTION:
            os.close(fd)
            raise


class PipeSocket:
    """One end of a pipe, with the methods of a socket that a stream calls, so that streams need not know about pipes.

    Methods that do not apply to a pipe (addresses, options) fail with the error that the kernel would give.
    """

    __slots__ = ('_fd',)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def recv(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def sendmsg(self, buffers: list[Any]) -> int:
        return os.writev(self._fd, buffers)

    def hung_up(self) -> bool:
        """Return whether the other end is closed."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def has_bytes(self) -> bool:
        """Return whether there are bytes to read."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))

    def shutdown(self, how: int) -> None:
        """Do nothing: a pipe has one direction, and ends when it is closed."""

    def setblocking(self, flag: bool) -> None:
        os.set_blocking(self._fd, flag)

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self.detach())

    def setsockopt(self, *args: Any) -> NoReturn:
        raise OSError(errno.ENOTSOCK, 'a pipe has no options')

    def getsockname(self) -> NoReturn:
        raise OSError(errno.ENOTSOCK, 'a pipe has no address')

    def getpeername(self) -> NoReturn:
        raise OSError(errno.ENOTSOCK, 'a pipe has no address')


class FileSocket(PipeSocket):
    """A pipe, terminal or FIFO of the user, with the methods of a socket that a stream calls.

    O_NONBLOCK belongs to the open file, which other descriptors and processes may share. So a file that was blocking is
    made blocking again at the end, unless another `FileSocket` still uses it: a blocking file would block its loop.

    Args:
        fd: The descriptor.
        owner: The object that closes it, or None: `close` closes the number.
        keep: Whether `close` leaves it open.
        mode: How it was opened: O_RDONLY, O_WRONLY or O_RDWR.
    """

    __slots__ = ('_file', '_keep', '_owner', '_was_blocking')

    # The users of each open file. It is known by device, inode and mode, which two descriptors of a terminal have in
    # common, and the two ends of a pipe do not.
    users: ClassVar[dict[tuple[int, int, int], list[FileSocket]]] = {}

    def __init__(self, fd: int, owner: Any, keep: bool, mode: int) -> None:
        super().__init__(fd)
        status = os.fstat(fd)
        self._file = status.st_dev, status.st_ino, mode
        self._owner = owner
        self._keep = keep
        self._was_blocking = False

    def begin(self) -> None:
        """Make the file non-blocking."""
        self._was_blocking = os.get_blocking(self._fd)
        self.users.setdefault(self._file, []).append(self)
        self.setblocking(False)

    def recv(self, size: int) -> bytes:
        try:
            return super().recv(size)
        except OSError as exc:
            if exc.errno == errno.EIO:  # the other end of the terminal is closed
                return b''
            raise

    def detach(self) -> int:
        users = self.users.get(self._file, [])
        if self in users:
            users.remove(self)
        if not users:
            self.users.pop(self._file, None)
        return super().detach()

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, owner = self.detach(), self._owner
        users = self.users.get(self._file)
        try:
            if self._was_blocking and users:
                users[0]._was_blocking = True
            elif self._was_blocking:
                os.set_blocking(fd, True)
        finally:
            if not self._keep:
                os.close(fd) if owner is None else owner.close()
