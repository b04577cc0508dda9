"""Sockets and pipes with the methods that a stream calls, and what is done to any socket.

`LeanSocket` is a socket of the operating system without the cost of `socket.socket`. `PipeSocket` is one end of a pipe
that looks like a socket. Nothing here knows the loop.
"""

from __future__ import annotations

import errno
import os
import select
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def send_first(sock: socket.socket, buffers: list[Any]) -> int:
    """What stands for `sendmsg` where there is none (Windows): send the first buffer only."""
    return sock.send(buffers[0])


def close_socket(sock: Any) -> None:
    """Close a socket. That somebody else has closed it, or the peer reset it, is fine: the descriptor is gone."""
    try:
        sock.close()
    except OSError:
        pass


class LeanSocket(socket.SocketType):
    """A socket without what `socket.socket` adds: files, enums, a dictionary of its own.

    Its `accept` is why: that of `socket.socket` makes two enum members and runs three Python functions for each
    connection, a tenth of what a short connection costs. Accepted sockets are plain `SocketType`, and half as large.
    """

    __slots__ = ()

    def accept(self) -> tuple[socket.SocketType, Any]:
        fd, address = self._accept()  # type: ignore[attr-defined]
        try:
            return socket.SocketType(self.family, self.type, self.proto, fd), address
        except (MemoryError, RecursionError):
            os.close(fd)
            raise


class PipeSocket:
    """One end of a pipe, with the methods of a socket that a stream calls: so a pipe is a stream, and streams of
    sockets know nothing of pipes. What a pipe has not (addresses, options) fails as the system would fail it.
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
        """Whether nobody has the other end any more."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def has_bytes(self) -> bool:
        """Whether bytes wait to be read."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))

    def shutdown(self, how: int) -> None:
        """Nothing: a pipe has one direction, and ends when it is closed."""

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
