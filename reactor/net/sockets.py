"""Sockets made ready: bound, listening, with their options.

Owns the order of the calls, and what differs between platforms. Knows no loop and no callback. The rule: whatever
fails, no descriptor is left open, and the error names the address.
"""

from __future__ import annotations

import errno
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

from ..errors import ResolveError
from ..kernel import (
    AF_UNIX,
    IP_BIND_ADDRESS_NO_PORT,
    KEEPALIVE_OPTIONS,
    SO_REUSEPORT,
    TCP_DEFER_ACCEPT,
    ResolveFailure,
    close_socket,
)
from ..loop.checks import shown, whole
from .addresses import PASSIVE, is_abstract, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from ..kernel import Kernel
    from .options import Options

MOST_BACKLOG = (1 << 31) - 1  # a C int; the kernel cuts it to a limit of its own
DEFER_SECONDS = 1  # how long a client may stay silent before it is accepted all the same


def check_stream_socket(sock: Any, argument: str) -> None:
    """Refuse what is not a stream socket that this process may read and write itself.

    Raises TypeError for another kind of socket or object, OSError for a closed socket.
    """
    if not hasattr(sock, 'recv') or not hasattr(sock, 'setblocking'):
        raise TypeError(f'{argument} takes a stream socket, not {shown(sock)}')
    if hasattr(sock, 'getpeercert'):  # known by its method: the module `ssl` may not be loaded
        raise TypeError(
            f'{argument} takes a plain socket, not {shown(sock)}: give it the socket that was wrapped, before it is '
            'wrapped, and use start_tls() on the connection or ssl= of the listener'
        )
    if getattr(sock, 'type', SOCK_STREAM) != SOCK_STREAM:
        raise TypeError(f'{argument} takes a stream socket, not {shown(sock)}: bind_udp(sock=) takes datagram sockets')
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, f'{argument} takes an open socket, and this one is closed: {shown(sock)}')


def check_adopted(sock: Any) -> None:
    """Refuse a socket that `adopt` cannot take. One that is not connected, or not any more, fails when it is read."""
    check_stream_socket(sock, 'adopt')
    try:
        listens = sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    except (AttributeError, OSError):
        return  # not every kind of socket can be asked
    if listens:
        raise ValueError(f'adopt takes a connected socket, and this one listens: {shown(sock)}: use listen_tcp(sock=)')


def check_backlog(backlog: int) -> None:
    """Refuse a length of a listen queue that no kernel takes; TypeError or ValueError."""
    whole('backlog', backlog, 0, MOST_BACKLOG, 'number of connections')


def check_bound(sock: Any) -> None:
    """Refuse a socket that `listen_tcp(sock=)` cannot listen on."""
    check_stream_socket(sock, 'listen_tcp(sock=)')
    try:
        peer = sock.getpeername()
    except OSError:
        return
    raise ValueError(f'listen_tcp(sock=) takes a bound socket, and this one is connected to {show(peer)}: use adopt()')


def listening_tcp(
    kernel: Kernel, host: str | None, port: int, options: Options, *, backlog: int, reuse_port: bool, defer_accept: bool
) -> socket:
    """A listening TCP socket; looks the host up, blocking. Host None: every address, IPv4 and IPv6 where possible."""
    sock = bound_tcp(kernel, host, port, reuse_port=reuse_port)
    try:
        prepare_listener(kernel, sock, options, backlog, defer_accept)
    except BaseException:
        close_socket(sock)
        raise
    return sock


def bound_tcp(kernel: Kernel, host: str | None, port: int, *, reuse_port: bool) -> socket:
    """A TCP socket with an address of its own that does not listen yet."""
    return _bound(kernel, SOCK_STREAM, host, port, reuse_port)


def bound_udp(kernel: Kernel, host: str | None, port: int, *, reuse_port: bool, broadcast: bool) -> socket:
    """A UDP socket with an address of its own, looked up as by `listening_tcp`."""
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
    """A UDP socket that hears `address` alone and sends to nobody else."""
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
        family, address, dual = AF_INET, ('0.0.0.0', port), False  # this machine has no IPv6
        sock = kernel.socket(family, kind)
    try:
        # For UDP it would let another program take the port and what is sent to it.
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
                close_socket(sock)  # OpenBSD has no sockets for both: IPv4 alone, as on a machine without IPv6
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
    """Make a bound socket, perhaps one that listens already, accept connections with `options`."""
    sock.setblocking(False)
    if sock.family in (AF_INET, AF_INET6):
        if kernel.nodelay_inherited:
            set_stream_options(sock, options)  # once here instead of for each connection
        if defer_accept and TCP_DEFER_ACCEPT >= 0:
            sock.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, DEFER_SECONDS)
    sock.listen(backlog)


def disable_defer_accept(sock: socket) -> None:
    """Have clients accepted before they have spoken, too, from now on; those of before are in a second."""
    try:
        if TCP_DEFER_ACCEPT >= 0:
            sock.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, 0)
    except OSError:
        pass  # it is lost, which accepting will tell


def set_accepted_options(sock: socket, options: Options) -> None:
    """Set the options of an accepted socket, where it does not inherit them from its listener."""
    if sock.family in (AF_INET, AF_INET6):
        set_stream_options(sock, options)


def set_stream_options(sock: socket, options: Options) -> None:
    """Set TCP_NODELAY and keepalive. A peer that is gone already makes this fail on some systems: reading will tell."""
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
    """Bind a socket that is going to connect. With port 0 the port is chosen at the connect, for its destination."""
    if not local_address[1] and IP_BIND_ADDRESS_NO_PORT >= 0:
        try:
            sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        except OSError:
            pass  # then it is chosen now, from fewer
    elif kernel.reuse_address:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(local_address)


def listening_unix(
    kernel: Kernel, path: str | bytes, options: Options, *, backlog: int, mode: int | None
) -> tuple[socket, Callable[[], None] | None]:
    """A listening Unix socket, and what removes its file.

    A socket file on which nobody listens is replaced; anything else at the path is left alone and raises. `mode` is set
    before the socket listens.

    Two programs may do this at once. A socket that is bound and does not listen yet looks like one that was left
    behind, and so does the file that the other has just replaced. So the directory is locked meanwhile: the second
    program waits, and finds that the first one listens.
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
            pass  # something else is there now, or we may not: it stays

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
        hint = f': somebody listens there already (`{tool}` tells who); choose {other}'
    elif exc.errno == errno.EADDRNOTAVAIL:
        hint = ': that is no address of this machine'
    elif exc.errno == errno.EACCES:
        hint = ': its directory does not let you' if unix else ': not permitted; ports below 1024 need privileges'
    return OSError(exc.errno, f'cannot listen on {show(address)}: {exc.strerror}{hint}')


def _remove_stale(kernel: Kernel, path: str | bytes) -> None:
    found = kernel.socket_file(path)
    if found is None:
        return
    probe = kernel.socket(AF_UNIX, SOCK_STREAM)
    try:
        refused = probe.connect_ex(path) == errno.ECONNREFUSED
    finally:
        close_socket(probe)
    if refused and kernel.socket_file(path) == found:
        kernel.unlink(path)  # else another program listens there, and the bind says so
