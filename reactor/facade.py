"""The object that a program holds: a loop that can listen, connect, look up names and start children.

Other modules do the work: `net/endpoints.py`, `net/resolver.py`, `net/drain.py` and `system/` (children, paths).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

from .callbacks import (
    AdoptOptions,
    CatchErrors,
    ConnectOptions,
    DatagramOptions,
    FdOptions,
    ListenOptions,
    OnData,
    OnDatagram,
    OnExit,
    OnName,
    OnResolved,
    PipeOptions,
    ReactorOptions,
)
from .hints import AnyPath, BaseSelector, HasFileno, StrPath, Ts, socket
from .kernel import Kernel
from .kinds import CHECKED_KINDS, KINDS
from .loop.checks import check_parts
from .loop.threads import THREADS
from .net.datagram import DatagramSocket
from .net.drain_api import DrainAPI
from .net.endpoints import Endpoints
from .net.listener import Listener
from .net.options import check_names
from .net.resolver import LookUp, resolve, resolve_address
from .net.stream import Stream
from .system.paths import WatchedPath, watch
from .system.pipe import open_fd
from .system.process import Process, spawn


class Reactor(DrainAPI):
    """A single-threaded network reactor on the selectors of the standard library; a context manager that calls `close`.

    `ReactorOptions` documents the arguments. `now` is the monotonic clock in seconds, read once a turn, after the wait
    for events. Threads other than the reactor's may call only `call_soon_threadsafe` and `Notifier.trigger`.

    Methods raise TypeError or ValueError for a wrong argument, and suggest the nearest name for a misspelt option. A
    callback that cannot take its arguments, or is a coroutine function, is refused when it is given.
    Methods that start something raise `HandleClosed` after `close`, and `ReactorError` in another thread while the
    reactor runs; frequently called methods check the thread only with `debug=True`. Methods that open a descriptor
    raise `SelectorFull` when the selector has no room for it. The docstring of each method lists its other errors.
    """

    def __init__(
        self,
        selector: BaseSelector | None = None,
        kernel: Kernel | None = None,
        catch_errors: CatchErrors = True,
        slow_callback: float | None = None,
        debug: bool = False,
        threads: int = THREADS,
        min_wait: float = 0.0,
    ) -> None:
        check_parts(selector, kernel)
        super().__init__(selector, kernel, catch_errors, slow_callback, debug, threads, min_wait)
        self._endpoints = Endpoints(self, self.kernel, CHECKED_KINDS if debug else KINDS)
        self._debug = debug

    def listen_tcp(
        self,
        host: str | None,
        port: int,
        on_data: OnData | None = None,
        *,
        reuse_port: bool = False,
        defer_accept: bool = False,
        sock: socket | None = None,
        proxy_protocol: Iterable[str] | None = None,
        **options: Unpack[ListenOptions],
    ) -> Listener:
        """Listen for TCP connections.

        Args:
            host: Name or address to listen on. A name is looked up during the call, which blocks. None: all addresses.
            port: Port number; 0 picks a free one.
            on_data: `on_data(conn, data)`: bytes were received. None: bytes that arrive are read and dropped.
            reuse_port: Let several processes listen on the port (SO_REUSEPORT); the kernel distributes the clients.
            defer_accept: For protocols in which the client sends first: accept a client when its first bytes arrive,
                and read them at once (TCP_DEFER_ACCEPT, if available). A silent client is accepted after about 1 s.
            sock: A bound stream socket to listen on instead; the listener owns it, and `host` and `port` are ignored.
            proxy_protocol: Networks of your proxies, such as `['10.0.0.0/8', '::1/128']`; other clients are reset. Each
                connection must begin with a header of HAProxy's PROXY protocol, version 1 or 2. `conn.peername` is then
                the client's address, and `conn.proxy` is the header. TLS, `on_connect` and time limits start after the
                header. If it is wrong, incomplete or late, the connection ends without `on_connect`, and `on_close`
                gets a `ProxyError`, or None when the peer sent nothing, as health checks do.
            **options: See `ListenOptions`.

        Returns:
            The listener, which accepts clients from the next turn on.

        Raises:
            OSError: The address is in use, permission is denied, or the platform does not support an option.
            ResolveError: The host has no address.
        """
        check_names(Reactor.listen_tcp, options, ListenOptions)
        return self._endpoints.listen_tcp(host, port, on_data, reuse_port, defer_accept, sock, proxy_protocol, options)

    def listen_unix(
        self,
        path: str | bytes,
        on_data: OnData | None = None,
        *,
        mode: int | None = None,
        proxy_protocol: bool = False,
        **options: Unpack[ListenOptions],
    ) -> Listener:
        """Listen on a Unix socket.

        A stale socket file, on which no program listens, is replaced. Any other file at `path` is left alone, and an
        error is raised. Closing the listener removes the file.

        Args:
            path: Path of the socket file. A path that begins with `@` or NUL is abstract and creates no file (Linux).
            on_data: `on_data(conn, data)`: bytes were received. None: bytes that arrive are read and dropped.
            mode: Permission bits of the socket file, such as 0o660. None: they depend on the umask.
            proxy_protocol: True: each connection must begin with a PROXY header, as with `listen_tcp`.
            **options: See `ListenOptions`.

        Returns:
            The listener.

        Raises:
            OSError: Another program is listening there, `path` is too long or not a socket, or permission is denied.
        """
        check_names(Reactor.listen_unix, options, ListenOptions)
        return self._endpoints.listen_unix(path, on_data, mode, proxy_protocol, options)

    def connect_tcp(
        self,
        host: str,
        port: int,
        on_data: OnData | None = None,
        *,
        family: int = 0,
        local_address: tuple[str, int] | None = None,
        **options: Unpack[ConnectOptions],
    ) -> Stream:
        """Connect to a TCP server.

        Returns at once. Data written before `on_connect` is queued, and sent once connected. All addresses of the host
        are tried, IPv6 and IPv4 in turn (Happy Eyeballs, RFC 8305). A failure is never raised: `on_close` reports it.

        Args:
            host, port: The server. A name is looked up in a thread.
            on_data: `on_data(conn, data)`: bytes were received. None: bytes that arrive are read and dropped.
            family: AF_INET or AF_INET6 to try only addresses of that family; 0 for both.
            local_address: `(host, port)` to connect from. The host is a numeric address; port 0 picks a free port.
            **options: See `ConnectOptions`.

        Returns:
            The connection, in the state CONNECTING.
        """
        check_names(Reactor.connect_tcp, options, ConnectOptions)
        return self._endpoints.connect_tcp(host, port, on_data, family, local_address, options)

    def connect_unix(
        self, path: str | bytes, on_data: OnData | None = None, **options: Unpack[ConnectOptions]
    ) -> Stream:
        """Connect to a Unix socket.

        Works like `connect_tcp`. While the listener's backlog is full, connecting is retried until `timeout` expires.

        Args:
            path: Path of the socket file, or an abstract path; see `listen_unix`.
            on_data: `on_data(conn, data)`: bytes were received. None: bytes that arrive are read and dropped.
            **options: See `ConnectOptions`.

        Returns:
            The connection.

        Raises:
            OSError: The path is too long, or the platform has no Unix sockets.
        """
        check_names(Reactor.connect_unix, options, ConnectOptions)
        return self._endpoints.connect_unix(path, on_data, options)

    def adopt(self, sock: socket, on_data: OnData | None = None, **options: Unpack[AdoptOptions]) -> Stream:
        """Make a connection from a connected stream socket, and take ownership of the socket.

        Args:
            sock: The socket; it becomes non-blocking. For TLS, adopt a socket that is not wrapped and call `start_tls`.
            on_data: `on_data(conn, data)`: bytes were received, from the next turn on. None: bytes are dropped.
            **options: See `AdoptOptions`.

        Returns:
            The connection, in the state OPEN.

        Raises:
            TypeError: `sock` is not a stream socket, or is an `ssl.SSLSocket`.
            ValueError: The socket is a listening socket.
            OSError: The socket is closed.
            ReactorError: A handle of this reactor already uses the socket.
        """
        check_names(Reactor.adopt, options, AdoptOptions)
        return self._endpoints.adopt(sock, on_data, options)

    def open_fd(
        self, fd: int | HasFileno, on_data: OnData | None = None, *, closefd: bool = True, **options: Unpack[FdOptions]
    ) -> Stream:
        """Make a `ReadPipe`, `WritePipe` or `DuplexPipe` of a pipe, a terminal, a FIFO or a serial line.

        It becomes non-blocking, also for other processes that share it, and blocking again when the stream ends.

        Args:
            fd: A number, or an object with `fileno()`.
            on_data: `on_data(stream, data)`: bytes were read. None: bytes are dropped.
            closefd: True: the stream closes the descriptor, with the method `close` of an object. False: it stays open.
            **options: See `FdOptions`.

        Raises:
            PermissionError: `fd` is a file, a directory, or another descriptor that is always ready.
            OSError: `fd` is not open, or the platform can only watch sockets.
            ReactorError: A handle of this reactor already uses the descriptor.
        """
        check_names(Reactor.open_fd, options, FdOptions)
        return open_fd(self, self.kernel, fd, on_data, closefd, options, self._debug)

    def bind_udp(
        self,
        host: str | None,
        port: int,
        on_datagram: OnDatagram | None = None,
        *,
        reuse_port: bool = False,
        sock: socket | None = None,
        **options: Unpack[DatagramOptions],
    ) -> DatagramSocket:
        """Open a UDP socket that receives datagrams from any address, and sends to any address.

        Args:
            host, port: Where to receive, as with `listen_tcp`.
            on_datagram: `on_datagram(sock, data, address)`: a datagram arrived. None: datagrams are read and dropped.
            reuse_port: Let several sockets share the port (SO_REUSEPORT); the kernel distributes the senders.
            sock: A bound or connected datagram socket to use instead, UDP or Unix. The returned socket owns it, and
                `host`, `port`, `reuse_port` and `broadcast` are ignored.
            **options: See `DatagramOptions`.

        Returns:
            The socket.

        Raises:
            OSError: The address is in use, or permission is denied.
            ResolveError: The host has no address.
        """
        check_names(Reactor.bind_udp, options, DatagramOptions)
        return self._endpoints.bind_udp(host, port, on_datagram, reuse_port, sock, options)

    def connect_udp(
        self,
        host: str,
        port: int,
        on_datagram: OnDatagram | None = None,
        *,
        family: int = 0,
        local_address: tuple[str, int] | None = None,
        **options: Unpack[DatagramOptions],
    ) -> DatagramSocket:
        """Open a UDP socket with one peer.

        The socket receives only from this peer, and `on_send_error` reports ICMP errors such as "port unreachable".
        Returns at once; datagrams are queued until the look-up is done. A failure is not raised: `on_close` reports it.

        Args:
            host, port: The peer. A name is looked up in a thread; its first address with a route is the peer.
            on_datagram: `on_datagram(sock, data, address)`, as with `bind_udp`.
            family: AF_INET or AF_INET6 to use only addresses of that family; 0 for both.
            local_address: `(host, port)` to send from. The host is a numeric address; port 0 picks a free port.
            **options: See `DatagramOptions`.

        Returns:
            The socket.
        """
        check_names(Reactor.connect_udp, options, DatagramOptions)
        return self._endpoints.connect_udp(host, port, on_datagram, family, local_address, options)

    def resolve(self, host: str, on_done: OnResolved, *, family: int = 0, timeout: float | None = None) -> LookUp:
        """Look up the addresses of a name, with the resolver of the operating system, in a thread.

        Names have four threads of their own, and up to 1,000 look-ups may wait for one. A look-up that has been closed
        or has timed out keeps its thread until the operating system gives up.

        Args:
            host: The name. A numeric address needs no thread.
            on_done: `on_done(addresses, error)`, called in the loop; one of the two is None. `addresses` is a list of
                unique str, IPv4 and IPv6 mixed, in the operating system's order. `connect_tcp` accepts each as a host.
            family: AF_INET or AF_INET6 for addresses of that family only; 0 for both.
            timeout: After this many seconds, `error` is a `ResolveTimeout`; other errors are `ResolveError`. None: no
                limit but that of the operating system, which often tries for 30 seconds or more.

        Returns:
            A handle. Closing it cancels the look-up: `on_done` is not called.
        """
        return resolve(self, self.kernel, host, family, on_done, timeout)

    def resolve_address(
        self, address: str | tuple[Any, ...], on_done: OnName, *, timeout: float | None = None
    ) -> LookUp:
        """Look up the name of an address in a thread, like `resolve`.

        Args:
            address: A str such as `'192.0.2.1'`, or a tuple that begins with such a str, as `conn.peername` does.
            on_done: `on_done(name, error)`, called in the loop; one of the two is None. `error` is a `ResolveError`.
            timeout: After this many seconds, `error` is a `ResolveTimeout`. None: no limit.

        Returns:
            A handle. Closing it cancels the look-up: `on_done` is not called.

        Raises:
            ValueError: `address` is a name, not a numeric address.
        """
        return resolve_address(self, self.kernel, address, on_done, timeout)

    def spawn(
        self,
        args: Iterable[AnyPath],
        *,
        stdin: int | HasFileno | None = None,
        stdout: int | HasFileno | None = None,
        stderr: int | HasFileno | None = None,
        on_exit: OnExit | None = None,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        cwd: AnyPath | None = None,
        pass_fds: Iterable[int | HasFileno] = (),
        **options: Unpack[PipeOptions],
    ) -> Process:
        """Start a program as a child process.

        Returns once the program is running. The child gets only its three standard descriptors and those in `pass_fds`.
        SIGPIPE, which Python ignores, is not ignored in the child. Closing the process handle or the reactor kills it.

        Args:
            args: The words of the command, the program first. No shell is involved.
            stdin, stdout, stderr: None: inherited. `reactor.DEVNULL`: nothing. A file or descriptor, which stays yours.
                `reactor.PIPE`: a pipe, with a stream of the same name on the returned handle; without `on_data`,
                received bytes are dropped. `stderr` may be `reactor.STDOUT`: the same as stdout.
            on_exit: `on_exit(process, code, signal)`: the child has ended; `code` or `signal` is None. Called once.
            env: The child's whole environment. None: the environment of this process.
            cwd: The directory in which the child starts. None: the directory of this process.
            pass_fds: More descriptors for the child (numbers, or objects with `fileno()`), under the same numbers.
            **options: See `PipeOptions`. `read_size`, `read_timeout` and `idle_timeout` apply to stdout and stderr; the
                water marks, `max_buffered`, `linger` and `write_timeout` to stdin.

        Returns:
            The process handle.

        Raises:
            OSError: The program cannot be started (FileNotFoundError, PermissionError and others).
        """
        check_names(Reactor.spawn, options, PipeOptions)
        return spawn(
            self, self.kernel, args, (stdin, stdout, stderr), on_exit, env, cwd, pass_fds, options, self._debug
        )

    def watch_path(self, path: StrPath, fn: Callable[[WatchedPath, str, str, *Ts], object], *args: *Ts) -> WatchedPath:
        """Call a function when a file, or something in a directory, changes; see `WatchedPath` for what is reported.

        Needs the package `watchdog`: in a checkout of this library, `pip install '.[paths]'`.

        Args:
            path: The file or directory.
            fn: `fn(handle, path, change, *args)`, called in the loop. `path` is the path as you gave it, or a path in
                that directory. `change` is 'created', 'changed' or 'deleted'; a rename is 'deleted' and 'created'.

        Returns:
            A handle. Closing it ends the watch.

        Raises:
            FileNotFoundError: There is nothing at `path`.
            OSError: A limit of the operating system has been reached, or permission is denied.
            ReactorError: The `watchdog` package is not installed.
        """
        self.guard.check()
        return watch(self, self.kernel, path, fn, args)


def run(main: Callable[[Reactor], object], **options: Unpack[ReactorOptions]) -> bool:
    """Make a `Reactor`, run it, and close it whatever happens.

    Args:
        main: Called with the reactor in its first turn. An exception that it raises leaves `run` after that turn.
        **options: See `ReactorOptions`.

    Returns:
        True when nothing was left to wait for, False after `stop`. `Reactor.run` documents the errors.
    """
    check_names(run, options, ReactorOptions)
    with Reactor(**options) as r:
        return r.run(main)
