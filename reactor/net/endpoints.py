"""Check the options of `listen_*`, `connect_*`, `adopt`, `bind_udp` and `connect_udp`, and build their results.

Listeners with limits or behind proxies are made in `kinds.py`, because `net` must not import `admission`.

All arguments are checked before anything is opened, and a call that raises leaves no descriptor open.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SOMAXCONN
from typing import TYPE_CHECKING, Any

from ..hints import socket
from ..kernel import Kernel
from ..kernel.platforms import AF_UNIX
from ..kernel.sockets import close_socket
from ..loop.checks import optional_count, seconds, switch, whole
from . import sockets
from .addresses import check_family, check_host, check_local_address, check_path, check_port
from .connector import Connector
from .contexts import check_context, client_options
from .datagram import DatagramSocket, check_datagram_socket
from .datagram_connector import DatagramConnector
from .listener import Listener
from .options import Callbacks, ListenerShared, Options, check_callback, check_server_hostname, stream_options
from .stream import Stream
from .tls import TLSStream

if TYPE_CHECKING:
    from ..callbacks import AdoptOptions, ConnectOptions, DatagramOptions, ListenOptions, Loop, OnData, OnDatagram


class Kinds:
    """The classes of one reactor's streams, listeners and datagram sockets.

    Attributes:
        plain: The class of plain streams.
        tls: The class of TLS streams.
        proxied: The class of streams whose PROXY header has not arrived yet.
        datagram: The class of datagram sockets.
        guard: The function that checks `limits` and `proxy_protocol`, and returns the callable that makes the listener:
            `guard` in `kinds.py`. Its arguments are the kernel, the kinds, whether the listener has a path, whether its
            socket is a Unix socket, `proxy_protocol`, and the listener's options.
    """

    __slots__ = ('datagram', 'guard', 'plain', 'proxied', 'tls')

    def __init__(
        self,
        plain: type[Stream],
        tls: type[TLSStream],
        proxied: type[Stream],
        datagram: type[DatagramSocket],
        guard: Callable[[Kernel, Kinds, bool, bool, Any, ListenOptions], Callable[..., Listener]],
    ) -> None:
        self.plain: type[Stream] = plain
        self.tls: type[TLSStream] = tls
        self.proxied: type[Stream] = proxied
        self.datagram: type[DatagramSocket] = datagram
        self.guard: Callable[[Kernel, Kinds, bool, bool, Any, ListenOptions], Callable[..., Listener]] = guard


class Endpoints:
    """Makes the streams, listeners and datagram sockets of one reactor; see the `Reactor` methods of the same names."""

    __slots__ = ('_kernel', '_kinds', '_loop')

    def __init__(self, loop: Loop, kernel: Kernel, kinds: Kinds) -> None:
        self._loop = loop
        self._kernel = kernel
        self._kinds = kinds
        loop.streams.tls_class = kinds.tls

    def listen_tcp(
        self,
        host: str | None,
        port: int,
        on_data: OnData | None,
        reuse_port: bool,
        defer_accept: bool,
        sock: socket | None,
        proxy_protocol: Any,
        options: ListenOptions,
    ) -> Listener:
        """Listen on an address, or on a bound socket."""
        kernel, backlog = self._kernel, options.get('backlog', SOMAXCONN)
        settings = self._listener_options(backlog, options)
        keywords = _listener_keywords(on_data, options)
        reuse_port, defer_accept = switch('reuse_port', reuse_port), switch('defer_accept', defer_accept)
        if sock is not None:
            sockets.check_bound(sock)
        unix = sock is not None and sock.family == AF_UNIX
        make = self._kinds.guard(kernel, self._kinds, False, unix, proxy_protocol, options)
        self._loop.guard.check()
        inherited = sock is not None
        if sock is None:
            host, port = check_host(host), check_port(port)
            sock = sockets.listening_tcp(
                kernel, host, port, settings, backlog=backlog, reuse_port=reuse_port, defer_accept=defer_accept
            )
        else:
            sockets.prepare_listener(kernel, sock, settings, backlog, defer_accept)
        return make(
            self._loop,
            sock,
            settings,
            kind=self._kind(settings),
            defer_accept=defer_accept,
            inherited=inherited,
            **keywords,
        )

    def listen_unix(
        self,
        path: str | bytes,
        on_data: OnData | None,
        mode: int | None,
        proxy_protocol: Any,
        options: ListenOptions,
    ) -> Listener:
        """Listen on the path of a Unix socket."""
        kernel, backlog = self._kernel, options.get('backlog', SOMAXCONN)
        settings = self._listener_options(backlog, options)
        keywords = _listener_keywords(on_data, options)
        if mode is not None:
            whole('mode', mode, 0, 0o7777, 'number of permission bits')
        make = self._kinds.guard(kernel, self._kinds, True, True, proxy_protocol, options)
        self._loop.guard.check()
        sock, unlink = sockets.listening_unix(kernel, check_path(path), settings, backlog=backlog, mode=mode)
        return make(self._loop, sock, settings, kind=self._kind(settings), unlink=unlink, **keywords)

    def connect_tcp(
        self,
        host: str,
        port: int,
        on_data: OnData | None,
        family: int,
        local_address: tuple[str, int] | None,
        options: ConnectOptions,
    ) -> Stream:
        """Connect to a host."""
        settings = self._connect_options(host, options)
        callbacks = stream_callbacks(on_data, options)
        if check_host(host) is None:
            raise ValueError('connect_tcp() needs a host, not None; use "127.0.0.1" or "localhost" for this machine')
        check_port(port)
        check_family(family)
        check_local_address(self._kernel, local_address)
        connector = self._connector(settings, callbacks, (host, port), options, local_address)
        stream = connector.stream
        connector.connect(host, port, family)
        return stream

    def connect_unix(self, path: str | bytes, on_data: OnData | None, options: ConnectOptions) -> Stream:
        """Connect to the path of a Unix socket."""
        settings = self._connect_options(None, options)
        callbacks = stream_callbacks(on_data, options)
        path = check_path(path)
        connector = self._connector(settings, callbacks, path, options)
        stream = connector.stream
        connector.try_addresses([(AF_UNIX, path)])
        return stream

    def adopt(self, sock: socket, on_data: OnData | None, options: AdoptOptions) -> Stream:
        """Make a stream from a connected socket."""
        settings, callbacks = Options(**stream_options(options)), stream_callbacks(on_data, options)
        self._loop.guard.check()
        sockets.check_adopted(sock)
        sock.setblocking(False)
        stream = self._kind(settings)(self._loop, settings, callbacks, None)
        stream.attach(sock)
        return stream

    def bind_udp(
        self,
        host: str | None,
        port: int,
        on_datagram: OnDatagram | None,
        reuse_port: bool,
        sock: socket | None,
        options: DatagramOptions,
    ) -> DatagramSocket:
        """Receive datagrams at an address, or on a bound socket."""
        reuse_port = switch('reuse_port', reuse_port)
        handle, broadcast = self._datagram_socket(on_datagram, options)
        if sock is not None:
            check_datagram_socket(sock)
            sock.setblocking(False)
            handle.attach(sock)
            return handle
        sock = sockets.bound_udp(
            self._kernel, check_host(host), check_port(port), reuse_port=reuse_port, broadcast=broadcast
        )
        try:
            handle.attach(sock)
        except BaseException:
            close_socket(sock)
            raise
        return handle

    def connect_udp(
        self,
        host: str,
        port: int,
        on_datagram: OnDatagram | None,
        family: int,
        local_address: tuple[str, int] | None,
        options: DatagramOptions,
    ) -> DatagramSocket:
        """Exchange datagrams with one peer."""
        if check_host(host) is None:
            raise ValueError('connect_udp() needs a host, not None; use "127.0.0.1" or "localhost" for this machine')
        check_port(port)
        check_family(family)
        check_local_address(self._kernel, local_address)
        handle, broadcast = self._datagram_socket(on_datagram, options)
        DatagramConnector(handle, self._kernel, local_address, broadcast).connect(host, port, family)
        return handle

    def _listener_options(self, backlog: int, options: ListenOptions) -> Options:
        ssl = options.get('ssl')
        if ssl is not None:
            check_context(ssl, True)
        sockets.check_backlog(backlog)
        settings = Options(ssl=ssl, **stream_options(options))
        settings.shared = ListenerShared()
        return settings

    def _connect_options(self, host: str | None, options: ConnectOptions) -> Options:
        ssl, server_hostname = options.get('ssl'), options.get('server_hostname')
        check_server_hostname(server_hostname, ssl)
        return Options(**client_options(ssl, server_hostname or host), **stream_options(options))

    def _connector(
        self,
        settings: Options,
        callbacks: Callbacks,
        target: Any,
        options: ConnectOptions,
        local_address: tuple[str, int] | None = None,
    ) -> Connector:
        self._loop.guard.check()
        timeout = options.get('timeout')
        return Connector(
            self._loop,
            self._kernel,
            settings,
            callbacks,
            kind=self._kind(settings),
            target=target,
            timeout=None if timeout is None else seconds('timeout', timeout),
            local_address=local_address,
        )

    def _datagram_socket(self, on_datagram: OnDatagram | None, options: DatagramOptions) -> tuple[DatagramSocket, bool]:
        others: dict[str, Any] = {**options}
        broadcast = switch('broadcast', others.pop('broadcast', False))
        self._loop.guard.check()
        return self._kinds.datagram(self._loop, self._kernel, on_datagram=on_datagram, **others), broadcast

    def _kind(self, settings: Options) -> type[Stream]:
        return self._kinds.plain if settings.ssl is None else self._kinds.tls


def stream_callbacks(on_data: OnData | None, options: AdoptOptions | ListenOptions | ConnectOptions) -> Callbacks:
    """Check and return the callbacks among the options of a method."""
    given: Any = options
    return Callbacks(on_data, **{name: given[name] for name in Callbacks.__slots__ if name in given})


def _listener_keywords(on_data: OnData | None, options: ListenOptions) -> dict[str, Any]:
    on_accept_error = options.get('on_accept_error')
    callbacks = stream_callbacks(on_data, options)
    check_callback('on_accept_error', on_accept_error, '(listener, exc)')
    max_connections = optional_count('max_connections', options.get('max_connections'))
    return {'callbacks': callbacks, 'on_accept_error': on_accept_error, 'max_connections': max_connections}
