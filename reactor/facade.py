"""The object that a program holds: a loop that can listen and connect.

Owns nothing: each method hands its arguments to the module that checks them and builds the object. It knows every
transport, so that the loop below does not have to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

from .callbacks import (
    AdoptOptions,
    CatchErrors,
    ConnectOptions,
    DatagramOptions,
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
from .loop.checks import shown
from .loop.loop import Loop
from .net.datagram import DatagramSocket
from .net.drain import Drain, begin_drain
from .net.endpoints import Endpoints
from .net.listener import Listener
from .net.options import check_names
from .net.resolver import LookUp, resolve, resolve_address
from .net.stream import Stream
from .system.paths import WatchedPath, watch
from .system.process import Process, spawn


class Reactor(Loop):
    """A single-threaded network reactor; see `Loop` for the arguments, the timers, and how it runs.

    Callbacks of connections: `on_connect(conn)`, `on_data(conn, data)`, `on_eof(conn)`, `on_drain(conn)`,
    `on_close(conn, exc)`, `on_error(conn, exc)`. The methods that make connections take them by these names. They and
    the other options that several methods share are in `reactor.StreamOptions`, `ListenOptions`, `ConnectOptions` and
    `DatagramOptions`. An option that a method does not have is refused with TypeError, which names the nearest one.
    """

    def __init__(
        self,
        selector: BaseSelector | None = None,
        kernel: Kernel | None = None,
        catch_errors: CatchErrors = True,
        slow_callback: float | None = None,
        debug: bool = False,
    ) -> None:
        if selector is not None and not hasattr(selector, 'get_map'):
            raise TypeError(f'selector is None or a selector of the module selectors, not {shown(selector)}')
        if selector is not None and (selector.get_map() is None or len(selector.get_map())):
            raise ValueError(f'selector is a new one, which the reactor fills and closes; {shown(selector)} is in use')
        if kernel is not None and not hasattr(kernel, 'clock'):
            raise TypeError(f'kernel is None or a kernel such as reactor.kernel.Kernel(), not {shown(kernel)}')
        super().__init__(selector, kernel, catch_errors, slow_callback, debug)
        self._endpoints = Endpoints(self, self.kernel, CHECKED_KINDS if debug else KINDS)
        self._debug = debug
        self._drain: Drain | None = None

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
        """Listen on a Unix socket at `path`; one beginning with `@` or NUL is abstract (Linux).

        A socket file on which nobody listens is replaced, anything else at the path raises and is left alone. `mode`
        gives the file's permissions. `close` removes the file. `proxy_protocol` is True for all that may connect.
        Otherwise as `listen_tcp`.
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
        check_names(Reactor.connect_tcp, options, ConnectOptions)
        return self._endpoints.connect_tcp(host, port, on_data, family, local_address, options)

    def connect_unix(
        self, path: str | bytes, on_data: OnData | None = None, **options: Unpack[ConnectOptions]
    ) -> Stream:
        """Connect to a Unix socket, as `connect_tcp`. While its backlog is full it is tried again and again."""
        check_names(Reactor.connect_unix, options, ConnectOptions)
        return self._endpoints.connect_unix(path, on_data, options)

    def adopt(self, sock: socket, on_data: OnData | None = None, **options: Unpack[AdoptOptions]) -> Stream:
        """Take over a connected stream socket, ours from now on; `on_data` may come from the next turn on.

        Raises TypeError for a datagram socket, an `ssl.SSLSocket` (adopt it before it is wrapped, then `start_tls`) and
        what is not a socket, ValueError for a listening socket and bad options, OSError for a closed socket,
        `SelectorFull`, and `ReactorError` when a handle of this reactor has the socket already.
        """
        check_names(Reactor.adopt, options, AdoptOptions)
        return self._endpoints.adopt(sock, on_data, options)

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
        """A UDP socket for one peer: it hears nobody else, and learns that nobody is there (ICMP, `on_send_error`).

        host           a name is looked up in a thread, what is sent meanwhile waits; the first address is taken to
                       which the system knows a way
        family         AF_INET or AF_INET6 to use only these, 0 for both
        local_address  (host, port) to send from, the host in numbers, port 0 for any

        Otherwise as `bind_udp`. Raises only for bad arguments. What the world decides, a name without an address among
        it, is told by `on_close(sock, exc)`.
        """
        check_names(Reactor.connect_udp, options, DatagramOptions)
        return self._endpoints.connect_udp(host, port, on_datagram, family, local_address, options)

    def resolve(self, host: str, on_done: OnResolved, *, family: int = 0, timeout: float | None = None) -> LookUp:
        """Look a name up with the system's resolver, in a thread; `close` of the returned handle cancels it.

        on_done  `on_done(addresses, error)`, never inside this call, one of them None. `addresses` is a list of str in
                 the system's order, IPv4 and IPv6 mixed, each once: what `connect_tcp` takes as its host
        family   AF_INET or AF_INET6 for these alone, 0 for both
        timeout  seconds, then the error is a `ResolveTimeout`; None: as long as the system tries, often 30 s and more

        Every other failure is a `ResolveError`. At most four calls run in threads at once, `run_in_thread` included,
        and 1,000 wait. One that is cancelled or too late keeps its thread until the system gives up.
        """
        return resolve(self, self.kernel, host, family, on_done, timeout)

    def resolve_address(
        self, address: str | tuple[Any, ...], on_done: OnName, *, timeout: float | None = None
    ) -> LookUp:
        """Find the name of an address; `on_done(name, error)`, one of them None, and otherwise as `resolve`.

        address  in numbers, `'192.0.2.1'` or `'2001:db8::1'`, or a tuple that begins with one, such as `conn.peername`

        An address without a name is a `ResolveError`. ValueError for what is no address.
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
        check_names(Reactor.spawn, options, PipeOptions)
        return spawn(
            self, self.kernel, args, (stdin, stdout, stderr), on_exit, env, cwd, pass_fds, options, self._debug
        )

    def watch_path(self, path: StrPath, fn: Callable[[WatchedPath, str, str, *Ts], object], *args: *Ts) -> WatchedPath:
        """Call `fn(handle, path, change, *args)` when a file, or something in a directory, changes; see `WatchedPath`.

        change  'created', 'changed' or 'deleted'; renaming is the one at the old path and the other at the new one
        path    which, below the path that is watched as you gave it

        Needs the library watchdog: `pip install 'selectors-reactor[paths]'`; ReactorError without it. Raises
        FileNotFoundError when nothing is there, and OSError at the system's limits.
        """
        self._check(fn)
        return watch(self, self.kernel, path, fn, args)

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
        self._drain = begin_drain(self, self._drain, timeout, lame_duck)

    @property
    def draining(self) -> bool:
        """Whether `drain` was called. Fail readiness checks then, and close each connection after its next response."""
        return self._drain is not None


def run(main: Callable[[Reactor], object], **options: Unpack[ReactorOptions]) -> bool:
    """Make a `Reactor(**options)`, `run(main)`, and close it whatever happens; returns what `run` returned."""
    check_names(run, options, ReactorOptions)
    with Reactor(**options) as r:
        return r.run(main)
