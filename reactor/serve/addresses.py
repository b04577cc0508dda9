"""The addresses that workers listen on, and the sockets bound to them.

On Linux each worker has its own listening socket (SO_REUSEPORT). With that option alone, a second copy of the program
could be started by mistake, and would silently get half of the connections. So the first socket binds and listens
without the option: the kernel lets only one such socket listen, even if two programs try at the same moment. The option
is set afterwards, so that the other sockets of this program can join.
"""

from __future__ import annotations

import errno
import random
import re
import sys
import time
from collections.abc import Callable
from socket import SOCK_STREAM, SOL_SOCKET
from typing import Any

from ..kernel import Kernel
from ..kernel.platforms import SO_REUSEPORT
from ..kernel.sockets import close_socket
from ..net.addresses import check_host, check_path, check_port
from ..net.options import Options
from ..net.sockets import bound_tcp, check_stream_socket, listening_unix

# Only on Linux does SO_REUSEPORT distribute connections among the listeners.
DIVIDED = sys.platform == 'linux'
TRIES = 20  # how often to try to listen; two programs that call listen() at the same moment can both fail
LEFT_BEHIND = 'It is perhaps a worker that an earlier start of this program left behind; it ends when its drain is over'
LONGEST_PAUSE = 0.02  # seconds between two tries; the pauses are random, so that one of two programs comes first


class ListenAddress:
    """An address, bound when the object is created. `socket_for_worker()` returns a socket for a worker."""

    def __init__(self, address: Any, backlog: int) -> None:
        self._unlink: Callable[[], None] | None = None
        self._first: Any = None  # the socket that has claimed the port, until a worker gets it
        self._backlog = backlog
        self._where = where = parse(address)
        self.shared: Any = where
        if isinstance(where, str):
            mode = split_unix(address)[1]
            self.shared, self._unlink = listening_unix(
                Kernel(), check_path(where), Options(), backlog=backlog, mode=mode
            )
        elif isinstance(where, tuple):
            self.shared = self._claim()
            if DIVIDED:
                self._first, self.shared = self.shared, None
                self._first.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
                self._where = where[0], self._first.getsockname()[1]

    def socket_for_worker(self, listening: bool = True) -> Any:
        """Return a new socket if the kernel distributes connections among sockets, otherwise the shared socket."""
        if self.shared is not None:
            return self.shared
        if self._first is not None:  # it listens, even if `listening` is false
            sock, self._first = self._first, None
            return sock
        sock = self._bind(True)
        if listening:
            sock.listen(self._backlog)
        return sock

    def close(self, sock: Any = None) -> None:
        """Close a worker's socket unless it is the shared one. Without an argument, close the shared socket."""
        if sock is None:
            sock, self.shared = self.shared, None
        if sock is not None and sock is not self.shared:
            close_socket(sock)

    def remove(self) -> None:
        """Close the sockets that no worker has, and remove the file of a Unix socket."""
        self.close()
        if self._first is not None:
            close_socket(self._first)
        if self._unlink is not None:
            self._unlink()

    def _claim(self) -> Any:
        """Return a socket that listens without SO_REUSEPORT. Raises OSError if another socket listens on the port."""
        tries = TRIES
        while True:
            try:
                sock = self._bind(False)
                try:
                    sock.listen(self._backlog)
                    return sock
                except BaseException:
                    close_socket(sock)
                    raise
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                tries -= 1
                if not tries:
                    raise OSError(exc.errno, f'{exc.strerror}. {LEFT_BEHIND}') from None
            time.sleep(random.uniform(0, LONGEST_PAUSE))

    def _bind(self, reuse_port: bool) -> Any:
        host, port = self._where
        return bound_tcp(Kernel(), host, port, reuse_port=reuse_port)


def parse(address: Any) -> Any:
    """Convert an element of `listen=` to (host, port), to the path of a Unix socket, or to a socket.

    Raises ValueError or TypeError if the element is not an address, and OSError if it is a closed socket.
    """
    if hasattr(address, 'fileno'):
        if getattr(address, 'type', SOCK_STREAM) != SOCK_STREAM:
            raise ValueError(
                f'workers share only listening stream sockets, not {address!r}; use it in one process, with bind_udp'
            )
        check_stream_socket(address, 'listen=')
        return address
    if isinstance(address, str) and address.startswith('unix:'):
        return split_unix(address)[0]
    host, port = address if isinstance(address, tuple) and len(address) == 2 else (None, None)
    if isinstance(address, str):
        host, colon, port = address.rpartition(':')
        if host.startswith('[') and host.endswith(']'):
            host = host[1:-1]
        elif ':' in host:
            raise ValueError(f'an IPv6 address in listen= needs brackets, as in [::1]:8000, not {address!r}')
        host, port = host or None, int(port) if colon and port.isdecimal() else None
    if port is None:
        raise ValueError(
            f"listen= takes 'host:port', '[IPv6]:port', 'unix:/path', 'unix:/path?mode=0660', (host, port) or a "
            f'socket, not {address!r}'
        )
    return check_host(host), check_port(port)


def split_unix(address: str) -> tuple[str, int | None]:
    """Split 'unix:PATH?mode=0660' into the path and the permission bits (None: they depend on the umask).

    Raises ValueError if the options after the question mark are not valid.
    """
    path, question_mark, option = address.removeprefix('unix:').partition('?')
    if not question_mark:
        return path, None
    name, _, value = option.partition('=')
    if name != 'mode':
        raise ValueError(f'a Unix socket in listen= has no option {name!r}; the only one is mode: {address!r}')
    if not re.fullmatch('0?[0-7]{3}', value):
        raise ValueError(f'mode= in listen= takes three octal digits, such as 0660, not {value!r}: {address!r}')
    if path.startswith(('@', '\0')):
        raise ValueError(f'an abstract Unix socket has no file, so leave out mode=: {address!r}')
    return path, int(value, 8)
