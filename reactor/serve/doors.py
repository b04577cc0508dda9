"""What is listened on: addresses as people write them, and the sockets bound to them.

Owns the sockets that are shared, and the files of Unix sockets. Knows nothing of workers. The rule: nobody joins the
port of a stranger. With SO_REUSEPORT a second start of the same program would silently get half of the clients of the
first; so the port is asked for without it first.
"""

from __future__ import annotations

import socket
import sys

from ..kernel import Kernel, LeanSocket, close_socket
from ..net.options import Options
from ..net.sockets import listening_tcp, listening_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Elsewhere SO_REUSEPORT lets several listen, but does not divide the clients among them.
DIVIDED = sys.platform == 'linux'


class Door:
    """One address of `listen`; `open()` gives the socket for one more worker."""

    def __init__(self, address: Any, backlog: int, balanced: bool) -> None:
        self._where = parse(address)
        self._backlog = backlog
        self._divided = DIVIDED and balanced
        self._bound = False
        self._shared: Any = None
        self._unlink: Callable[[], None] | None = None

    def open(self) -> Any:
        """A listening socket: a new one on the same port where the system divides the clients, else always the same."""
        if self._shared is None:
            if isinstance(self._where, tuple) and self._divided:
                return self._another(*self._where)
            if isinstance(self._where, tuple):
                self._shared = self._listen(*self._where, False)
            elif isinstance(self._where, str):
                self._shared, self._unlink = listening_unix(
                    Kernel(), self._where, Options(), backlog=self._backlog, mode=None
                )
            else:
                self._shared = self._where
        return self._shared

    def _another(self, host: str | None, port: int) -> Any:
        if port and not self._bound:
            self._listen(host, port, False).close()
        sock = self._listen(host, port, True)
        self._where, self._bound = (host, sock.getsockname()[1]), True
        return sock

    def _listen(self, host: str | None, port: int, divided: bool) -> Any:
        return listening_tcp(
            Kernel(), host, port, Options(), backlog=self._backlog, reuse_port=divided, defer_accept=False
        )

    def close(self, sock: Any) -> None:
        """Close a worker's socket, unless it is everybody's."""
        if sock is not self._shared:
            close_socket(sock)

    def remove(self) -> None:
        """Close what all share, and remove its file. Clients in the queue are served by workers that have it."""
        if self._shared is not None:
            close_socket(self._shared)
        if self._unlink is not None:
            self._unlink()


def parse(address: Any) -> tuple[str | None, int] | str | Any:
    """(host, port), the path of a Unix socket, or the socket itself; ValueError or TypeError for anything else."""
    if hasattr(address, 'fileno'):
        return address
    if isinstance(address, str) and address.startswith('unix:'):
        return address[len('unix:') :]
    host, port = address, None
    if isinstance(address, str):
        host, _, port = address.rpartition(':')
        if host.startswith('[') and host.endswith(']'):
            host = host[1:-1]
        elif ':' in host:
            raise ValueError(f'an IPv6 address is written in brackets, as in [::1]:8000: {address!r}')
        port = int(port) if port.isdecimal() else None
    elif isinstance(address, tuple) and len(address) == 2:
        host, port = address
    if type(port) is not int or not 0 <= port < 65536:
        raise ValueError(
            f"an address is 'host:port', '[IPv6]:port', 'unix:/path', (host, port) or a socket: {address!r}"
        )
    return host or None, port


def inherited(number: int) -> Any:
    """The listening socket behind a descriptor that was handed on, no longer for children of ours."""
    sock = LeanSocket(fileno=number)
    sock.setblocking(False)
    socket.socket.set_inheritable(sock, False)  # type: ignore[arg-type]
    return sock
