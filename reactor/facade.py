"""The object that a program holds: a loop that can listen and connect.

Owns nothing: each method checks its arguments and builds one part. Knows every transport, which is why the loop below
does not have to.
"""

from __future__ import annotations

from socket import SOMAXCONN

from .kernel import AF_UNIX, Kernel
from .loop.loop import Loop
from .net.addresses import check_family, check_host, check_local_address, check_path, check_port, show
from .net.checked import CheckedStream
from .net.connector import Connector
from .net.listener import Listener, check_max_connections
from .net.options import Callbacks, Options, check_callback, seconds
from .net.sockets import listening_tcp, listening_unix, prepare_listener
from .net.stream import Stream
from .system.paths import WatchedPath, watch
from .system.process import Process, check_args, check_stdio, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike
    from selectors import BaseSelector
    from socket import socket
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
        self._os = kernel or Kernel()
        self._stream_kind = CheckedStream if debug else Stream
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
        on_accept_error  `on_accept_error(listener, exc)` when descriptors have run out, once per episode

        Raises OSError (address in use, no permission), ResolveError, TypeError and ValueError for bad arguments.
        """
        settings, callbacks = Options(**options), Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        check_callback('on_accept_error', on_accept_error)
        check_max_connections(max_connections)
        self.watchers.check()
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
            prepare_listener(sock, settings, backlog, defer_accept)
        return Listener(
            self,
            sock,
            settings,
            callbacks,
            kind=self._stream_kind,
            defer_accept=defer_accept,
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
        **options: Any,
    ) -> Listener:
        """Listen on a Unix socket at `path`; one beginning with `@` or NUL is abstract (Linux).

        A socket file on which nobody listens is replaced, anything else at the path raises and is left alone. `mode`
        gives the file's permissions. `close` removes the file. Otherwise as `listen_tcp`.
        """
        settings, callbacks = Options(**options), Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        check_callback('on_accept_error', on_accept_error)
        check_max_connections(max_connections)
        self.watchers.check()
        sock, unlink = listening_unix(self._os, check_path(path), settings, backlog=backlog, mode=mode)
        return Listener(
            self,
            sock,
            settings,
            callbacks,
            kind=self._stream_kind,
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
        **options: Any,
    ) -> Stream:
        """Connect to a TCP server; returns at once, and may be written to at once: it is sent after `on_connect`.

        host           a name is looked up in a thread; all of its addresses are tried (RFC 8305)
        timeout        seconds from now until it is connected, look-up included, else `ConnectTimeout`; None: no limit
        family         AF_INET or AF_INET6 to use only these, 0 for both
        local_address  (host, port) to connect from, port 0 for any

        Raises only for bad arguments. What the world decides is told by `on_connect` or `on_close`, never in this call.
        """
        settings, callbacks = Options(**options), Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        if check_host(host) is None:
            raise ValueError('connecting needs a host')
        check_port(port)
        check_family(family)
        check_local_address(local_address)
        self._check_connect(timeout)
        connector = Connector(
            self,
            self._os,
            settings,
            callbacks,
            kind=self._stream_kind,
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
        **options: Any,
    ) -> Stream:
        """Connect to a Unix socket, as `connect_tcp`. While its backlog is full it is tried again and again."""
        settings, callbacks = Options(**options), Callbacks(on_data, on_connect, on_eof, on_drain, on_close, on_error)
        path = check_path(path)
        self._check_connect(timeout)
        connector = Connector(
            self, self._os, settings, callbacks, kind=self._stream_kind, target=show(path), timeout=timeout
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
        """Take over a connected stream socket, ours from now on; `on_data` may come from the next turn on."""
        settings, callbacks = Options(**options), Callbacks(on_data, None, on_eof, on_drain, on_close, on_error)
        self.watchers.check()
        if not hasattr(sock, 'recv') or not hasattr(sock, 'setblocking'):
            raise TypeError(f'adopt takes a connected socket, not {sock!r}')
        sock.setblocking(False)
        stream = self._stream_kind(self, settings, callbacks, None)
        stream.attach(sock)
        return stream

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

        The child gets these three descriptors and no other, and signals as a shell would give them to it. It is killed
        when the process handle or the reactor is closed. Without `on_data` what a pipe brings is read and dropped.
        Raises FileNotFoundError, PermissionError or another OSError when it cannot be started, `SelectorFull`, and
        TypeError or ValueError for bad arguments; nothing is left of it then.
        """
        words, settings = check_args(args), Options(**options)
        stdio = check_stdio('stdin', stdin), check_stdio('stdout', stdout), check_stdio('stderr', stderr)
        check_callback('on_exit', on_exit)
        self.watchers.check()
        checked = self._stream_kind is CheckedStream
        return spawn(self, self._os, words, stdio, on_exit, env, cwd, settings, checked)

    def watch_path(self, path: str | PathLike[str], fn: Callable[[WatchedPath, str, str], object]) -> WatchedPath:
        """Call `fn(handle, path, change)` when a file, or something in a directory, changes; see `WatchedPath`.

        change  'created', 'changed' or 'deleted'; renaming is the one at the old path and the other at the new one
        path    which, below the path that is watched as you gave it

        Needs the library watchdog: `pip install 'selectors-reactor[paths]'`; ReactorError without it. Raises
        FileNotFoundError when nothing is there, and OSError at the system's limits.
        """
        self._check(fn)
        return watch(self, self._os, path, fn)

    def _check_connect(self, timeout: float | None) -> None:
        self.watchers.check()
        if timeout is not None:
            seconds('timeout', timeout)


def run(main: Callable[[Reactor], object], **options: Any) -> bool:
    """Make a `Reactor(**options)`, `run(main)`, and close it whatever happens; returns what `run` returned."""
    with Reactor(**options) as r:
        return r.run(main)
