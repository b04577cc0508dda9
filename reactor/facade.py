"""The object that a program holds: a loop that can listen and connect.

Owns nothing: each method checks its arguments and builds one part. Knows every transport, which is why the loop below
does not have to.
"""

from __future__ import annotations

from socket import SOMAXCONN

from .admission.limits import Limits, check_limits
from .admission.listener import GuardedListener
from .admission.proxied import PROXY_TIMEOUT, ProxyProtocol, check_proxy_protocol
from .kernel import AF_UNIX, Kernel, close_socket
from .kinds import CHECKED_KINDS, KINDS
from .loop.checks import file_path, seconds, shown, switch, whole
from .loop.loop import Loop
from .net.addresses import check_family, check_host, check_local_address, check_path, check_port, numeric, show
from .net.connector import Connector
from .net.contexts import check_context, client_options
from .net.datagram import MAX_QUEUED, DatagramSocket, check_datagram_socket
from .net.drain import Drain, check_times
from .net.listener import Listener, check_max_connections
from .net.options import Callbacks, Options, check_callback, check_server_hostname
from .net.resolver import LookUp, resolve, resolve_address
from .net.sockets import (
    bound_udp,
    check_adopted,
    check_backlog,
    check_bound,
    listening_tcp,
    listening_unix,
    prepare_listener,
)
from .net.stream import Stream
from .system.paths import WatchedPath, watch
from .system.process import Process, check_args, check_descriptors, check_environment, check_options, check_stdio, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike
    from selectors import BaseSelector
    from socket import socket
    from ssl import SSLContext
    from typing import Any

    from .loop.watcher import Handle

    Callback = Callable[..., object] | None


class Reactor(Loop):
    """A single-threaded network reactor; see `Loop` for the arguments, the timers, and how it runs.

    Callbacks of connections: `on_connect(conn)`, `on_data(conn, data)`, `on_eof(conn)`, `on_drain(conn)`,
    `on_close(conn, exc)`, `on_error(conn, exc)`. All methods that make connections take them by these names, and as
    further keywords (`**options`) the limits of `reactor.Options`.
    """

    def __init__(
        self,
        selector: BaseSelector | None = None,
        kernel: Kernel | None = None,
        catch_errors: bool | Callable[[Exception, Handle | None], object] = True,
        slow_callback: float | None = None,
        debug: bool = False,
    ) -> None:
        if selector is not None and not hasattr(selector, 'get_map'):
            raise TypeError(f'selector is None or a selector of the module selectors, not {shown(selector)}')
        if selector is not None and (selector.get_map() is None or len(selector.get_map())):
            raise ValueError(f'selector is a new one, which the reactor fills and closes; {shown(selector)} is in use')
        if kernel is not None and not hasattr(kernel, 'clock'):
            raise TypeError(f'kernel is None or a kernel such as reactor.kernel.Kernel(), not {shown(kernel)}')
        self._os = kernel or Kernel()
        self._kinds = CHECKED_KINDS if debug else KINDS
        self._drain: Drain | None = None
        super().__init__(selector, self._os, catch_errors, slow_callback, debug)

    def listen_tcp(
        self,
        host: str | None,
        port: int,
        on_data: Callback = None,
        *,
        on_connect: Callback = None,
        on_eof: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        on_accept_error: Callback = None,
        backlog: int = SOMAXCONN,
        reuse_port: bool = False,
        defer_accept: bool = False,
        sock: socket | None = None,
        max_connections: int | None = None,
        ssl: SSLContext | None = None,
        proxy_protocol: Iterable[str] | None = None,
        proxy_timeout: float = PROXY_TIMEOUT,
        limits: Limits | None = None,
        **options: Any,
    ) -> Listener:
        """Listen for TCP connections.

        host, port       a name is looked up here, blocking; None: all addresses, IPv4 and IPv6; port 0: a free one
        backlog          how many connections the kernel may complete before we accept them
        reuse_port       let several processes listen on the port (SO_REUSEPORT); the kernel divides the clients
        defer_accept     for protocols in which the client speaks first: accept it when it has spoken, where the system
                         can (TCP_DEFER_ACCEPT), and read it at once; a silent one is accepted after about a second
        sock             a bound socket to listen on instead, ours from now on; host and port are ignored then
        max_connections  how many may be open at once; further clients wait in the backlog
        ssl              an `ssl.SSLContext` for servers: TLS, `on_connect` after the handshake (`handshake_timeout=`)
        on_accept_error  `on_accept_error(listener, exc)` when descriptors have run out, once per episode
        proxy_protocol   the networks of your proxies, such as `['10.0.0.0/8', '::1/128']`, which begin each connection
                         by telling for whom it is (HAProxy's PROXY protocol, 1 and 2): `conn.peername` is the client
                         then, and `conn.proxy` what was said. TLS, `on_connect` and the time limits begin behind the
                         header. Others are reset at once; a header that is wrong, cut short, or not there within
                         `proxy_timeout` seconds ends the connection without `on_connect`: `on_close(conn, exc)` gets a
                         `ProxyError` or `ProxyTimeout`, as it gets a `TLSError` after a failed handshake, and None when
                         the peer closes without a byte, as health checks do
        limits           `reactor.Limits`: who is let in, and for how long; several listeners may share it

        Raises OSError (address in use, no permission), ResolveError, TypeError and ValueError for bad arguments.
        """
        settings = self._listener_options(ssl, backlog, options)
        callbacks = Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        check_callback('on_accept_error', on_accept_error)
        check_max_connections(max_connections)
        reuse_port, defer_accept = switch('reuse_port', reuse_port), switch('defer_accept', defer_accept)
        inherited = sock is not None
        if inherited:
            check_bound(sock)
        proxy = check_proxy_protocol(self._os, proxy_protocol, proxy_timeout, self._kinds.plain, False)
        check_limits(self._os, limits, sock is not None and sock.family == AF_UNIX)
        self.guard.check()
        if sock is None:
            sock = listening_tcp(
                self._os,
                check_host(host),
                check_port(port),
                settings,
                backlog=backlog,
                reuse_port=reuse_port,
                defer_accept=defer_accept,
            )
        else:
            prepare_listener(self._os, sock, settings, backlog, defer_accept)
        return self._listener(
            sock,
            settings,
            callbacks,
            proxy,
            limits,
            defer_accept=defer_accept,
            inherited=inherited,
            max_connections=max_connections,
            on_accept_error=on_accept_error,
        )

    def listen_unix(
        self,
        path: str | bytes,
        on_data: Callback = None,
        *,
        on_connect: Callback = None,
        on_eof: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        on_accept_error: Callback = None,
        backlog: int = SOMAXCONN,
        mode: int | None = None,
        max_connections: int | None = None,
        ssl: SSLContext | None = None,
        proxy_protocol: bool = False,
        proxy_timeout: float = PROXY_TIMEOUT,
        limits: Limits | None = None,
        **options: Any,
    ) -> Listener:
        """Listen on a Unix socket at `path`; one beginning with `@` or NUL is abstract (Linux).

        A socket file on which nobody listens is replaced, anything else at the path raises and is left alone. `mode`
        gives the file's permissions. `close` removes the file. `proxy_protocol` is True for all that may connect.
        Otherwise as `listen_tcp`.
        """
        settings = self._listener_options(ssl, backlog, options)
        callbacks = Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        check_callback('on_accept_error', on_accept_error)
        check_max_connections(max_connections)
        if mode is not None:
            whole('mode', mode, 0, 0o7777, 'number of permission bits')
        proxy = check_proxy_protocol(self._os, proxy_protocol, proxy_timeout, self._kinds.plain, True)
        check_limits(self._os, limits, True)
        self.guard.check()
        sock, unlink = listening_unix(self._os, check_path(path), settings, backlog=backlog, mode=mode)
        return self._listener(
            sock,
            settings,
            callbacks,
            proxy,
            limits,
            max_connections=max_connections,
            on_accept_error=on_accept_error,
            unlink=unlink,
        )

    def connect_tcp(
        self,
        host: str,
        port: int,
        on_data: Callback = None,
        *,
        on_connect: Callback = None,
        on_eof: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        timeout: float | None = None,
        family: int = 0,
        local_address: tuple[str, int] | None = None,
        ssl: SSLContext | bool | None = None,
        server_hostname: str | None = None,
        **options: Any,
    ) -> Stream:
        """Connect to a TCP server; returns at once, and may be written to at once: it is sent after `on_connect`.

        host           a name is looked up in a thread; all of its addresses are tried (RFC 8305)
        timeout        seconds from now until it is connected, look-up included, else `ConnectTimeout`; None: no limit;
                       0, as what is left of a time of yours may be: at once
        family         AF_INET or AF_INET6 to use only these, 0 for both
        local_address  (host, port) to connect from, the host in numbers, port 0 for any
        ssl              TLS: True, or an `ssl.SSLContext` for clients; `on_connect` comes after the handshake
        server_hostname  the name that the certificate must have, by default `host`; refused without `ssl`

        Raises only for bad arguments. What the world decides is told by `on_connect` or `on_close`, never in this call.
        """
        check_server_hostname(server_hostname, ssl)
        settings = Options(**client_options(ssl, server_hostname or host), **options)
        callbacks = Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        if check_host(host) is None:
            raise ValueError('connecting needs a host')
        check_port(port)
        check_family(family)
        check_local_address(self._os, local_address)
        timeout = self._check_connect(timeout)
        connector = Connector(
            self,
            self._os,
            settings,
            callbacks,
            kind=self._kind(settings),
            target=show((host, port)),
            timeout=timeout,
            local_address=local_address,
        )
        stream = connector.stream
        connector.connect(host, port, family)
        return stream

    def connect_unix(
        self,
        path: str | bytes,
        on_data: Callback = None,
        *,
        on_connect: Callback = None,
        on_eof: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        timeout: float | None = None,
        ssl: SSLContext | bool | None = None,
        server_hostname: str | None = None,
        **options: Any,
    ) -> Stream:
        """Connect to a Unix socket, as `connect_tcp`. While its backlog is full it is tried again and again."""
        check_server_hostname(server_hostname, ssl)
        settings = Options(**client_options(ssl, server_hostname), **options)
        callbacks = Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        path = check_path(path)
        timeout = self._check_connect(timeout)
        connector = Connector(
            self, self._os, settings, callbacks, kind=self._kind(settings), target=show(path), timeout=timeout
        )
        stream = connector.stream
        connector.try_addresses([(AF_UNIX, path)])
        return stream

    def adopt(
        self,
        sock: socket,
        on_data: Callback = None,
        *,
        on_eof: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        **options: Any,
    ) -> Stream:
        """Take over a connected stream socket, ours from now on; `on_data` may come from the next turn on.

        Raises TypeError for a datagram socket, an `ssl.SSLSocket` (adopt it before it is wrapped, then `start_tls`) and
        what is not a socket, ValueError for a listening socket and bad options, OSError for a closed socket,
        `SelectorFull`, and `ReactorError` when a handle of this reactor has the socket already.
        """
        for name in 'ssl', 'server_hostname':
            if options.pop(name, None) is not None:
                raise TypeError(
                    f'adopt takes no {name}: which side it is would be a guess; call start_tls on what it returns'
                )
        settings, callbacks = Options(**options), Callbacks(on_data, None, on_eof, on_drain, on_close, on_error)
        self.guard.check()
        check_adopted(sock)
        sock.setblocking(False)
        stream = self._kind(settings)(self, settings, callbacks, None)
        stream.attach(sock)
        return stream

    def _listener_options(self, ssl: SSLContext | None, backlog: int, options: dict[str, Any]) -> Options:
        if ssl is not None:
            check_context(ssl, True)
        if 'server_hostname' in options:
            raise TypeError('server_hostname is for the side that connects: a listener has none')
        check_backlog(backlog)
        return Options(ssl=ssl, **options)

    def _kind(self, settings: Options) -> type[Stream]:
        settings.shared.tls_class = self._kinds.tls
        return self._kinds.plain if settings.ssl is None else self._kinds.tls

    def _listener(
        self,
        sock: socket,
        settings: Options,
        callbacks: Callbacks,
        proxy: ProxyProtocol | None,
        limits: Limits | None,
        **keywords: Any,
    ) -> Listener:
        kind = self._kind(settings)
        keywords['kind'] = kind if proxy is None else self._kinds.proxied
        if proxy is None and limits is None:
            return Listener(self, sock, settings, callbacks, **keywords)
        return GuardedListener(self, sock, settings, callbacks, proxy=proxy, limits=limits, **keywords)

    def bind_udp(
        self,
        host: str | None,
        port: int,
        on_datagram: Callback = None,
        *,
        on_send_error: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        reuse_port: bool = False,
        broadcast: bool = False,
        sock: socket | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> DatagramSocket:
        """Receive datagrams at an address, from anybody, and send them to anybody; the callbacks: `DatagramSocket`.

        host, port  a name is looked up here, blocking; None: all addresses, IPv4 and IPv6; port 0: a free one
        reuse_port  let several sockets have the port (SO_REUSEPORT); the kernel divides the senders
        broadcast   allow sending to broadcast addresses
        sock        a bound or connected datagram socket instead, a Unix one too, ours from now on; host, port and the
                    two options are ignored then
        max_queued  bytes that may wait for the system to take them, 256 more for each datagram; beyond that, the newest
                    is dropped and `send` returns False

        Raises OSError (address in use, no permission), ResolveError, TypeError and ValueError for bad arguments.
        """
        reuse_port, broadcast = switch('reuse_port', reuse_port), switch('broadcast', broadcast)
        self.guard.check()
        handle = self._kinds.datagram(
            self,
            self._os,
            on_datagram=on_datagram,
            on_send_error=on_send_error,
            on_drain=on_drain,
            on_close=on_close,
            on_error=on_error,
            max_queued=max_queued,
        )
        if sock is not None:
            check_datagram_socket(sock)
            sock.setblocking(False)
            handle.attach(sock)
            return handle
        sock = bound_udp(self._os, check_host(host), check_port(port), reuse_port=reuse_port, broadcast=broadcast)
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
        on_datagram: Callback = None,
        *,
        on_send_error: Callback = None,
        on_drain: Callback = None,
        on_close: Callback = None,
        on_error: Callback = None,
        family: int = 0,
        local_address: tuple[str, int] | None = None,
        broadcast: bool = False,
        max_queued: int = MAX_QUEUED,
    ) -> DatagramSocket:
        """A UDP socket for one peer: it hears nobody else, and learns that nobody is there (ICMP, `on_send_error`).

        host           a name is looked up in a thread, what is sent meanwhile waits; the first address is taken to
                       which the system knows a way
        family         AF_INET or AF_INET6 to use only these, 0 for both
        local_address  (host, port) to send from, the host in numbers, port 0 for any

        Otherwise as `bind_udp`. Raises only for bad arguments. What the world decides, a name without an address among
        it, is told by `on_close(sock, exc)`.
        """
        if check_host(host) is None:
            raise ValueError('connecting needs a host')
        check_port(port)
        check_family(family)
        check_local_address(self._os, local_address)
        broadcast = switch('broadcast', broadcast)
        self.guard.check()
        handle = self._kinds.datagram(
            self,
            self._os,
            on_datagram=on_datagram,
            on_send_error=on_send_error,
            on_drain=on_drain,
            on_close=on_close,
            on_error=on_error,
            max_queued=max_queued,
        )
        handle.connect(host, port, family, local_address, broadcast)
        return handle

    def resolve(
        self, host: str, on_done: Callable[..., object], *, family: int = 0, timeout: float | None = None
    ) -> LookUp:
        """Look a name up with the system's resolver, in a thread; `close` of the returned handle cancels it.

        on_done  `on_done(addresses, error)`, never inside this call, one of them None. `addresses` is a list of str in
                 the system's order, IPv4 and IPv6 mixed, each once: what `connect_tcp` takes as its host
        family   AF_INET or AF_INET6 for these alone, 0 for both
        timeout  seconds, then the error is a `ResolveTimeout`; None: as long as the system tries, often 30 s and more

        Every other failure is a `ResolveError`. At most four calls run in threads at once, `run_in_thread` included,
        and 1,000 wait. One that is cancelled or too late keeps its thread until the system gives up.
        """
        if check_host(host) is None:
            raise ValueError('a look-up needs a host, and got None')
        check_family(family)
        timeout = self._check_look_up(on_done, timeout)
        return resolve(self, self._os, host, family, on_done, timeout)

    def resolve_address(
        self, address: str | tuple[Any, ...], on_done: Callable[..., object], *, timeout: float | None = None
    ) -> LookUp:
        """Find the name of an address; `on_done(name, error)`, one of them None, and otherwise as `resolve`.

        address  in numbers, `'192.0.2.1'` or `'2001:db8::1'`, or a tuple that begins with one, such as `conn.peername`

        An address without a name is a `ResolveError`. ValueError for what is no address.
        """
        host = address[0] if isinstance(address, tuple) and address else address
        if not isinstance(host, str):
            raise TypeError(f'an address is a str or a tuple that begins with one, not {shown(address)}')
        timeout = self._check_look_up(on_done, timeout)
        found = numeric(self._os, host, 0) if check_host(host) else []
        if not found:
            raise ValueError(f'an address is written in numbers, not {host!r}; a name is looked up with resolve()')
        return resolve_address(self, self._os, host, found[0][1], on_done, timeout)

    def _check_look_up(self, on_done: Callable[..., object], timeout: float | None) -> float | None:
        if not callable(on_done):
            raise TypeError(f'on_done must be callable, not {shown(on_done)}')
        return self._check_connect(timeout)

    def spawn(
        self,
        args: Iterable[Any],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        on_exit: Callable[[Process, int | None, int | None], object] | None = None,
        env: Mapping[Any, Any] | None = None,
        cwd: str | bytes | PathLike[Any] | None = None,
        pass_fds: Iterable[Any] = (),
        **options: Any,
    ) -> Process:
        """Start a program as a child; returns when it runs, with its pipes as streams in `stdin`, `stdout`, `stderr`.

        args     the words of the command, the program first; no shell looks at them
        stdin, stdout, stderr
                 `reactor.PIPE`: a pipe to us; None: ours, inherited; `reactor.DEVNULL`: nothing; or a file or
                 descriptor, which stays yours. `stderr` may be `reactor.STDOUT`: where stdout goes
        on_exit  `on_exit(process, code, signal)`, once, after its end: one of the two is None; see `Process`
        env      its whole environment, by default ours
        cwd      the directory in which it starts, by default ours
        pass_fds descriptors (numbers, or what has a `fileno()`) that it gets as well, under the same numbers; they
                 stay yours

        The child gets its three descriptors, these, and no other, and signals as a shell would give them to it. It is
        killed when the process handle or the reactor is closed. Without `on_data` what a pipe brings is read and
        dropped.

        Each pipe takes the options of its direction. `stdout` and `stderr`: `read_size`, `read_timeout` (the child
        wrote nothing for so long) and `idle_timeout`, which is the same here. `stdin`: the water marks,
        `max_buffered`, `linger` and `write_timeout` (the child took nothing for so long). TypeError for options of
        sockets: `ssl`, `server_hostname`, `handshake_timeout`, `nodelay`, `keepalive`.

        Raises FileNotFoundError, PermissionError or another OSError when it cannot be started, `SelectorFull`, and
        TypeError or ValueError for bad arguments; nothing is left of it then.
        """
        words, passed, settings = check_args(args), check_descriptors(self._os, pass_fds), check_options(options)
        given = {'stdin': stdin, 'stdout': stdout, 'stderr': stderr}
        stdio = [check_stdio(self._os, name, what) for name, what in given.items()]
        check_callback('on_exit', on_exit)
        check_environment(env)
        if cwd is not None:
            file_path('cwd', cwd)
        self.guard.check()
        checked = self._kinds is CHECKED_KINDS
        return spawn(self, self._os, words, stdio, on_exit, env, cwd, passed, settings, checked)

    def watch_path(self, path: str | PathLike[str], fn: Callable[..., object], *args: Any) -> WatchedPath:
        """Call `fn(handle, path, change, *args)` when a file, or something in a directory, changes; see `WatchedPath`.

        change  'created', 'changed' or 'deleted'; renaming is the one at the old path and the other at the new one
        path    which, below the path that is watched as you gave it

        Needs the library watchdog: `pip install 'selectors-reactor[paths]'`; ReactorError without it. Raises
        FileNotFoundError when nothing is there, and OSError at the system's limits.
        """
        self._check(fn)
        file_path('path', path)
        return watch(self, self._os, path, fn, args)

    def drain(self, timeout: float, lame_duck: float = 0) -> None:
        """Come to an end without losing a request that was accepted; `run` then returns False, for `stop` is called.

        timeout    seconds from now until what is left is reset, with `DrainTimeout`
        lame_duck  seconds of these in which it goes on accepting, with `draining` True: time for those who send
                   clients here to look elsewhere, and for clients to be told `Connection: close`

        Then who waits in the queue of a listener is accepted, and the listener is closed; one that is paused, or has
        `max_connections`, goes on as there is room. Accepted connections are closed when they are idle: not `busy`,
        nothing waits to be sent, nothing unread is here, all that for half a second (with 10,000 of them, two).
        `stop` is called when none of them is left, and no other stream is busy or has bytes waiting. Streams that you
        connected or adopted are yours to close, and nothing else is waited for: datagrams, children, threads, timers.
        Listeners and connections that keep nothing running (`unref`) are left as they are, so that health checks and
        those who look in are answered to the end.

        A second call can only make it earlier. With `run_once`: it returns False in the end. Raises ValueError and
        TypeError for bad arguments, HandleClosed after `close`, `ReactorError` in another thread than the loop's.
        """
        timeout, lame_duck = check_times(timeout, lame_duck)
        self.guard.check()
        if self._drain is None:
            self._drain = Drain(self, timeout, lame_duck)
        else:
            self._drain.hasten(timeout, lame_duck)

    @property
    def draining(self) -> bool:
        """Whether `drain` was called. Fail readiness checks then, and close each connection after its next response."""
        return self._drain is not None

    def _check_connect(self, timeout: float | None) -> float | None:
        self.guard.check()
        return None if timeout is None else seconds('timeout', timeout)


def run(main: Callable[[Reactor], object], **options: Any) -> bool:
    """Make a `Reactor(**options)`, `run(main)`, and close it whatever happens; returns what `run` returned."""
    with Reactor(**options) as r:
        return r.run(main)
