"""Create and prepare sockets: bind them, set their options, and make them listen.

The order of these calls and the differences between platforms are handled here. When a call fails, no descriptor stays
open, and the error names the address.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_ACCEPTCONN,
    SO_BROADCAST,
    SO_KEEPALIVE,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)
from typing import Any

from ..errors import ResolveError
from ..hints import socket
from ..kernel import Kernel
from ..kernel.calls import ResolveFailure
from ..kernel.platforms import AF_UNIX, IP_BIND_ADDRESS_NO_PORT, KEEPALIVE_OPTIONS, SO_REUSEPORT, TCP_DEFER_ACCEPT
from ..kernel.sockets import close_socket
from ..loop.checks import shown, whole
from .addresses import PASSIVE, is_abstract, show
from .options import Options

MOST_BACKLOG = (1 << 31) - 1  # the largest C int; the kernel reduces it to its own limit
DEFER_SECONDS = 1  # how long a client may send nothing before it is accepted anyway


def check_stream_socket(sock: Any, argument: str) -> None:
    """Raise TypeError unless `sock` is a plain stream socket, and OSError if it is closed."""
    if not hasattr(sock, 'recv') or not hasattr(sock, 'setblocking'):
        raise TypeError(f'{argument} takes a stream socket, not {shown(sock)}')
    if hasattr(sock, 'getpeercert'):  # an SSLSocket, recognized without importing `ssl`
        raise TypeError(
            f'{argument} takes a plain socket, not {shown(sock)}: pass the socket before it is wrapped, '
            'and use start_tls() on the connection or ssl= of the listener'
        )
    if getattr(sock, 'type', SOCK_STREAM) != SOCK_STREAM:
        raise TypeError(f'{argument} takes a stream socket, not {shown(sock)}: bind_udp(sock=) takes datagram sockets')
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, f'{argument} takes an open socket, but this one is closed: {shown(sock)}')


def check_adopted(sock: Any) -> None:
    """Check the socket given to `adopt`. A socket that is not connected fails later, at the first read."""
    check_stream_socket(sock, 'adopt()')
    try:
        listens = sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    except (AttributeError, OSError):
        return  # not every kind of socket has this option
    if listens:
        raise ValueError(
            f'adopt() takes a connected socket, but this one listens: {shown(sock)}; use listen_tcp(sock=)'
        )


def check_backlog(backlog: int) -> None:
    """Raise TypeError or ValueError unless `backlog` is a queue length that kernels accept."""
    whole('backlog', backlog, 0, MOST_BACKLOG, 'number of connections')


def check_bound(sock: Any) -> None:
    """Check the socket given to `listen_tcp(sock=)`."""
    check_stream_socket(sock, 'listen_tcp(sock=)')
    try:
        peer = sock.getpeername()
    except OSError:
        return
    raise ValueError(f'listen_tcp(sock=) takes a bound socket, but this one is connected to {show(peer)}; use adopt()')


def listening_tcp(
    kernel: Kernel, host: str | None, port: int, options: Options, *, backlog: int, reuse_port: bool, defer_accept: bool
) -> socket:
    """Make a listening TCP socket. A host name is looked up, which blocks. None means all addresses, IPv4 and IPv6."""
    sock = bound_tcp(kernel, host, port, reuse_port=reuse_port)
    try:
        prepare_listener(kernel, sock, options, backlog, defer_accept)
    except BaseException:
        close_socket(sock)
        raise
    return sock


def bound_tcp(kernel: Kernel, host: str | None, port: int, *, reuse_port: bool) -> socket:
    """Make a bound TCP socket that does not listen yet."""
    return _bound(kernel, SOCK_STREAM, host, port, reuse_port)


def bound_udp(kernel: Kernel, host: str | None, port: int, *, reuse_port: bool, broadcast: bool) -> socket:
    """Make a bound UDP socket; the host is looked up as in `listening_tcp`."""
    sock = _bound(kernel, SOCK_DGRAM, host, port, reuse_port)
    try:
        if broadcast:
            sock.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
    except BaseException:
        close_socket(sock)
        raise
    return sock


def connected_udp(
    kernel: Kernel, family: int, address: Any, *, local_address: tuple[str, int] | None, broadcast: bool
) -> socket:
    """Make a UDP socket that receives only from `address` and sends only to it."""
    sock = kernel.socket(family, SOCK_DGRAM)
    try:
        if broadcast:
            sock.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
        if local_address is not None:
            sock.bind(local_address)
        sock.connect(address)
    except BaseException:
        close_socket(sock)
        raise
    return sock


def _bound(kernel: Kernel, kind: int, host: str | None, port: int, reuse_port: bool) -> socket:
    family, address, dual = _passive_address(kernel, host, port)
    try:
        sock = kernel.socket(family, kind)
    except OSError:
        if not dual:
            raise
        family, address, dual = AF_INET, ('0.0.0.0', port), False  # this machine lacks IPv6
        sock = kernel.socket(family, kind)
    try:
        # For UDP, SO_REUSEADDR would let another program take the port and its datagrams.
        if kernel.reuse_address and kind == SOCK_STREAM:
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        elif kernel.exclusive_address != -1:
            sock.setsockopt(SOL_SOCKET, kernel.exclusive_address, 1)
        if reuse_port:
            if SO_REUSEPORT < 0:
                raise OSError(errno.EOPNOTSUPP, 'this platform has no SO_REUSEPORT; share one listener instead')
            sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        if family == AF_INET6:
            try:
                sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 0 if dual else 1)
            except OSError:
                if not dual:
                    raise
                close_socket(sock)  # OpenBSD has no dual-stack sockets: use IPv4 alone, as on a machine without IPv6
                return _bound(kernel, kind, '0.0.0.0', port, reuse_port)
        try:
            sock.bind(address)
        except OSError as exc:
            raise _bind_error(exc, address, kind) from None
    except BaseException:
        close_socket(sock)
        raise
    return sock


def prepare_listener(kernel: Kernel, sock: socket, options: Options, backlog: int, defer_accept: bool = False) -> None:
    """Make a bound socket listen, and set the options of the connections that it will accept."""
    sock.setblocking(False)
    if sock.family in (AF_INET, AF_INET6):
        if kernel.nodelay_inherited:
            set_stream_options(sock, options)  # set once here instead of for each connection
        if defer_accept and TCP_DEFER_ACCEPT >= 0:
            sock.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, DEFER_SECONDS)
    sock.listen(backlog)


def disable_defer_accept(sock: socket) -> None:
    """From now on, accept clients before they have sent data. Earlier clients are accepted within a second."""
    try:
        if TCP_DEFER_ACCEPT >= 0:
            sock.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, 0)
    except OSError:
        pass  # the descriptor was lost, which the next accept will notice


def set_accepted_options(sock: socket, options: Options) -> None:
    """Set the options of an accepted socket, on platforms where it does not inherit them from its listener."""
    if sock.family in (AF_INET, AF_INET6):
        set_stream_options(sock, options)


def set_stream_options(sock: socket, options: Options) -> None:
    """Set TCP_NODELAY and keepalive. If the peer has gone, some systems refuse this; reading then reports it."""
    try:
        if options.nodelay:
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        if options.keepalive:
            sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
            values = options.keepalive if isinstance(options.keepalive, tuple) else (options.keepalive,)
            for option, value in zip(KEEPALIVE_OPTIONS, values, strict=False):
                if option >= 0:
                    sock.setsockopt(IPPROTO_TCP, option, max(1, round(value)))
    except OSError:
        pass


def bind_local(kernel: Kernel, sock: socket, local_address: tuple[str, int]) -> None:
    """Bind a socket before it connects. With port 0, Linux chooses the port in `connect`, to suit the peer."""
    if not local_address[1] and IP_BIND_ADDRESS_NO_PORT >= 0:
        try:
            sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        except OSError:
            pass  # then the port is chosen now, from fewer candidates
    elif kernel.reuse_address:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(local_address)


def listening_unix(
    kernel: Kernel, path: str | bytes, options: Options, *, backlog: int, mode: int | None
) -> tuple[socket, Callable[[], None] | None]:
    """Make a listening Unix socket. Return the socket, and the function that removes its file (None: no file).

    A stale socket file, on which no process listens, is replaced. Anything else at the path is left alone, and an error
    is raised. `mode` is set before the socket listens.

    Two programs may do this at the same time, and a socket that is bound but not listening yet looks like a stale
    socket. So the directory is locked: the second program waits, and then finds that the first one is listening.
    """
    sock = kernel.socket(AF_UNIX, SOCK_STREAM)
    unlink, lock = None, -1
    try:
        if not is_abstract(path):
            lock = kernel.lock_folder(path)
            _remove_stale(kernel, path)
        try:
            sock.bind(path)
        except OSError as exc:
            raise _bind_error(exc, path) from None
        if not is_abstract(path):
            unlink = _unlinker(kernel, path)
            if mode is not None:
                kernel.chmod(path, mode)
        prepare_listener(kernel, sock, options, backlog)
    except BaseException:
        if unlink is not None:
            unlink()
        close_socket(sock)
        raise
    finally:
        if lock >= 0:
            kernel.close_fd(lock)
    return sock, unlink


def _unlinker(kernel: Kernel, path: str | bytes) -> Callable[[], None]:
    path = kernel.absolute_path(path)
    ours = kernel.socket_file(path)

    def unlink() -> None:
        try:
            if kernel.socket_file(path) == ours:
                kernel.unlink(path)
        except OSError:
            pass  # another file is there now, or we lack permission to delete it: leave the file

    return unlink


def _passive_address(kernel: Kernel, host: str | None, port: int) -> tuple[int, Any, bool]:
    if host is None:
        return AF_INET6, ('::', port), True
    try:
        family, _, _, _, address = kernel.getaddrinfo(host, port, 0, SOCK_STREAM, PASSIVE)[0]
    except (ResolveFailure, UnicodeError) as exc:
        raise ResolveError(
            f'cannot listen on {host!r}: {exc}; use an address of this machine, or None for all'
        ) from None
    return family, address, False


def _bind_error(exc: OSError, address: object, kind: int = SOCK_STREAM) -> OSError:
    unix = not isinstance(address, tuple)
    hint = ''
    if exc.errno == errno.EADDRINUSE:
        tool = 'ss -lxp' if unix else 'ss -ltnp' if kind == SOCK_STREAM else 'ss -lunp'
        other = 'another path' if unix else 'another address, or port 0 for a free one'
        hint = f'; `{tool}` shows the program that listens there. Stop it, or choose {other}'
    elif exc.errno == errno.EADDRNOTAVAIL:
        hint = '; this machine does not have that address'
    elif exc.errno == errno.EACCES:
        hint = '; its directory is not writable by this user' if unix else '; ports below 1024 need privileges'
    return OSError(exc.errno, f'cannot listen on {show(address)}: {exc.strerror}{hint}')


def _remove_stale(kernel: Kernel, path: str | bytes) -> None:
    found = kernel.socket_file(path)
    if found is None:
        return
    probe = kernel.socket(AF_UNIX, SOCK_STREAM)
    try:
        answer = probe.connect_ex(path)
    finally:
        close_socket(probe)
    if answer == errno.EACCES:
        raise _foreign(path, 'this user may not check whether a program listens there')
    if answer == errno.ECONNREFUSED and kernel.socket_file(path) == found:
        try:
            kernel.unlink(path)  # otherwise another program is listening there, and `bind` raises
        except PermissionError:
            raise _foreign(path, 'this user may not remove it, although no program listens there') from None


def _foreign(path: str | bytes, why: str) -> OSError:
    return OSError(
        errno.EACCES,
        f'cannot listen on {show(path)}: the socket file there belongs to another user, and {why}; '
        'remove the file, or choose another path',
    )
