"""What is listened on: addresses as people write them, and the sockets bound to them.

Owns the sockets that all share, and the files of Unix sockets. Knows nothing of workers. The rule: nobody joins the
port of a stranger. With SO_REUSEPORT a second start of the same program would silently get half of the clients of the
first, so the port is asked for without it first.
"""

from __future__ import annotations

import sys
from socket import SOCK_STREAM

from ..kernel import Kernel, close_socket
from ..net.addresses import check_host, check_path, check_port
from ..net.options import Options
from ..net.sockets import bound_tcp, check_stream_socket, listening_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Elsewhere SO_REUSEPORT lets several listen and does not divide the clients among them.
DIVIDED = sys.platform == 'linux'


class ListenAddress:
    """One address, open from now on; `socket_for_worker()` gives the socket of one more worker."""

    shared: Any

    def __init__(self, address: Any, backlog: int) -> None:
        self._unlink: Callable[[], None] | None = None
        self._backlog = backlog
        self._where = where = parse(address)
        self.shared = where
        if isinstance(where, str):
            self.shared, self._unlink = listening_unix(
                Kernel(), check_path(where), Options(), backlog=backlog, mode=None
            )
        elif isinstance(where, tuple):
            self.shared = self._bind(False) if where[1] or not DIVIDED else None
            if DIVIDED:
                self.close()
            else:
                self.shared.listen(backlog)

    def socket_for_worker(self, listening: bool = True) -> Any:
        """A socket of its own on the same port where the system divides the clients, else the one that all share."""
        if self.shared is not None:
            return self.shared
        sock = self._bind(True)
        if listening:
            sock.listen(self._backlog)
        self._where = self._where[0], sock.getsockname()[1]
        return sock

    def close(self, sock: Any = None) -> None:
        """Close the socket of one worker, unless all share it; without one, that which all share."""
        if sock is None:
            sock, self.shared = self.shared, None
        if sock is not None and sock is not self.shared:
            close_socket(sock)

    def remove(self) -> None:
        """Close it, and remove the file of a Unix socket."""
        self.close()
        if self._unlink is not None:
            self._unlink()

    def _bind(self, reuse_port: bool) -> Any:
        host, port = self._where
        return bound_tcp(Kernel(), host, port, reuse_port=reuse_port)


def parse(address: Any) -> Any:
    """(host, port), the path of a Unix socket, or the socket itself; ValueError or TypeError for anything else.

    OSError for a socket that is closed.
    """
    if hasattr(address, 'fileno'):
        if getattr(address, 'type', SOCK_STREAM) != SOCK_STREAM:
            raise ValueError(f'workers share listening stream sockets; bind_udp in one process is for {address!r}')
        check_stream_socket(address, 'listen=')
        return address
    if isinstance(address, str) and address.startswith('unix:'):
        return address.removeprefix('unix:')
    host, port = address if isinstance(address, tuple) and len(address) == 2 else (None, None)
    if isinstance(address, str):
        host, colon, port = address.rpartition(':')
        if host.startswith('[') and host.endswith(']'):
            host = host[1:-1]
        elif ':' in host:
            raise ValueError(f'an IPv6 address stands in brackets, as in [::1]:8000: {address!r}')
        host, port = host or None, int(port) if colon and port.isdecimal() else None
    if port is None:
        raise ValueError(f"listen= has 'host:port', '[IPv6]:port', 'unix:/path', (host, port), sockets: {address!r}")
    return check_host(host), check_port(port)
