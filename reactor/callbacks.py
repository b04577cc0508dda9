"""The types of all callbacks, and the options that several methods share.

Each option is documented here once, and the methods of `Reactor` refer to these classes.

The modules below the facade use these types too, but import this module only for type checkers. At run time, a module
imports only from layers below its own.

Annotations are not postponed here. A TypedDict compiles postponed annotations one by one, which would add 4 ms to the
import time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

from .admission.limits import Limits
from .hints import BaseSelector, SSLContext
from .kernel import Kernel
from .loop.watcher import Handle
from .net.datagram import DatagramSocket
from .net.listener import Listener
from .net.stream import Stream
from .system.process import Process

if TYPE_CHECKING:
    from .facade import Reactor

    # The modules below the facade use only methods of `Loop`. For users, the `loop` of a handle is a `Reactor`.
    Loop = Reactor

# -- callbacks of connections and listeners

OnConnect = Callable[[Stream], object]
OnData = Callable[[Stream, bytes], object]
OnEof = Callable[[Stream], object]
OnDrain = Callable[[Stream], object]
OnClose = Callable[[Stream, BaseException | None], object]
OnError = Callable[[Stream, Exception], object]
OnAcceptError = Callable[[Listener, Exception], object]

# -- callbacks of datagram sockets

OnDatagram = Callable[[DatagramSocket, bytes, Any], object]
OnSendError = Callable[[DatagramSocket, OSError], object]
OnDatagramDrain = Callable[[DatagramSocket], object]
OnDatagramClose = Callable[[DatagramSocket, BaseException | None], object]
OnDatagramError = Callable[[DatagramSocket, Exception], object]

# -- other callbacks

OnResolved = Callable[[list[str] | None, Exception | None], object]
OnName = Callable[[str | None, Exception | None], object]
OnExit = Callable[[Process, int | None, int | None], object]
OnUp = Callable[[Stream], object]
OnDown = Callable[[Stream | None, BaseException | None, float | None], object]
CatchErrors = bool | Callable[[Exception, Handle | None], object]


class PipeOptions(TypedDict, total=False):
    """Options of every stream. `spawn` accepts them, too, for the pipes of the child.

    Sizes are in bytes, times in seconds. Time limits are checked about once a second, so a connection may end up to a
    second late, never early.

    Every method that takes an option raises TypeError for a value of the wrong type, such as `'5'`, 1.5 bytes, or True
    for a number, and ValueError for a value out of range.

    Attributes:
        read_size: Maximum number of bytes that one `recv` reads. Default: 64 KiB.
        high_water: While this many bytes or more are waiting to be sent, `write` returns False. Default: 64 KiB.
        low_water: After `write` has returned False, `on_drain` is called once no more than this many bytes are waiting
            to be sent. Default: a quarter of `high_water`, at most 16 KiB.
        max_buffered: While this many bytes or more are waiting to be sent, a further write is dropped, and the
            connection is aborted with `WriteBufferFull`. A single write may have any size. Default: 16 MiB.
        linger: How long `close` may take before the connection is reset. 0: bytes that the kernel does not accept
            at once are discarded. Default: 30.
        read_timeout: Abort with `ReadTimeout` when no byte has been received for this long. None (default): no limit.
        write_timeout: Abort with `WriteTimeout` when bytes are waiting to be sent and the kernel has accepted none of
            them for this long. None (default): no limit.
        idle_timeout: Abort with `IdleTimeout` when no byte has been sent or received for this long. None (default): no
            limit.
    """

    read_size: int
    high_water: int
    low_water: int | None
    max_buffered: int
    linger: float
    read_timeout: float | None
    write_timeout: float | None
    idle_timeout: float | None


class FdOptions(PipeOptions, total=False):
    """Options of `open_fd`, in addition to `PipeOptions`: the callbacks, as in `AdoptOptions`.

    Attributes:
        on_eof: `on_eof(stream)`: the last writer of a pipe has closed it, or the terminal was hung up.
        on_drain: `on_drain(stream)`: `write` returned False earlier, and now few bytes are waiting.
        on_close: `on_close(stream, exc)`: the stream has ended. A `BrokenPipeError` says that a pipe has no reader.
        on_error: `on_error(stream, exc)`: another callback raised `exc`.
    """

    on_eof: OnEof | None
    on_drain: OnDrain | None
    on_close: OnClose | None
    on_error: OnError | None


class StreamOptions(PipeOptions, total=False):
    """Options of every connection, in addition to `PipeOptions`.

    Attributes:
        nodelay: Set TCP_NODELAY, so that small writes are sent without delay. Default: True.
        keepalive: Have the kernel probe a silent peer. Either seconds of silence before the first probe, or a tuple
            `(idle, interval, count)`, which adds the seconds between probes and how many probes may go unanswered.
            None or 0: off (default).
        handshake_timeout: Abort with `HandshakeTimeout` when a TLS handshake takes longer. Default: 60.
        max_empty_records: How many TLS records without data (key updates, session tickets) the peer may send in a row.
            A record of more than 1 KiB counts as several. Beyond this limit, the connection is reset with `TLSError`.
            None: no limit. Default: 32.
    """

    nodelay: bool
    keepalive: float | tuple[float, float, int] | None
    handshake_timeout: float
    max_empty_records: int | None


class AdoptOptions(StreamOptions, total=False):
    """Options of `adopt`, in addition to `StreamOptions`: the callbacks of an open connection.

    Callbacks run in the loop, never inside a method that you call, except `Reactor.close`. They are attributes of the
    connection and may be replaced at any time.

    Attributes:
        on_eof: `on_eof(conn)`: the peer has shut down its sending side. The connection stays open for writing. Without
            this callback, the connection is closed as soon as all waiting bytes have been sent.
        on_drain: `on_drain(conn)`: `write` returned False earlier, and now no more than `low_water` bytes are waiting.
        on_close: `on_close(conn, exc)`: called exactly once, as the last callback. `exc` is None after a clean end or
            your own `close`. Otherwise it is the reason: an `OSError` from the kernel, an error of this package, the
            argument of `abort`, or the exception that a callback raised.
        on_error: `on_error(conn, exc)`: another callback of this connection raised `exc`. The connection stays open.
            Without this callback, the exception is handled as `catch_errors` of the `Reactor` says.
    """

    on_eof: OnEof | None
    on_drain: OnDrain | None
    on_close: OnClose | None
    on_error: OnError | None


class ListenOptions(AdoptOptions, total=False):
    """Options of `listen_tcp` and `listen_unix`, in addition to `AdoptOptions`, which apply to accepted connections.

    Attributes:
        on_connect: `on_connect(conn)`: a connection was accepted. If the listener uses PROXY headers or TLS, this is
            called after the header and the handshake.
        on_accept_error: `on_accept_error(listener, exc)`: a client could not be accepted (for example, no descriptor is
            left) and the listener pauses, or other code has closed the listener's socket. Called once per episode.
            Without this callback, a warning is logged.
        backlog: How many established connections may wait in the kernel to be accepted. Default: SOMAXCONN.
        max_connections: How many accepted connections may be open at once. Further clients wait in the backlog. None
            (default): no limit.
        ssl: An `ssl.SSLContext` for servers: accepted connections use TLS. After a failed handshake `on_close` gets a
            `TLSError`, and `on_connect` is not called.
        proxy_timeout: With `proxy_protocol`: close a connection with `ProxyTimeout` when its PROXY header takes longer
            than this many seconds. Default: 10.
        limits: A `Limits` object: which clients are accepted, and how much they may use. Several listeners may share
            it.
    """

    on_connect: OnConnect | None
    on_accept_error: OnAcceptError | None
    backlog: int
    max_connections: int | None
    ssl: SSLContext | None
    proxy_timeout: float
    limits: Limits | None


class ConnectOptions(AdoptOptions, total=False):
    """Options of `connect_tcp` and `connect_unix`, in addition to `AdoptOptions`.

    Attributes:
        on_connect: `on_connect(conn)`: the connection is established, TLS handshake included. Not called when
            connecting fails: `on_close` reports that.
        timeout: How many seconds may pass from the call until `on_connect`, look-up and handshake included. After that
            `on_close` gets a `ConnectTimeout`. None (default): no limit.
        ssl: Use TLS. An `ssl.SSLContext` for clients, or True for a context that verifies the server with the
            certificate authorities of the operating system.
        server_hostname: The name that the certificate of the server must have. Default: the host. Raises ValueError
            without `ssl`.
    """

    on_connect: OnConnect | None
    timeout: float | None
    ssl: SSLContext | bool | None
    server_hostname: str | None


class DatagramOptions(TypedDict, total=False):
    """Options of `bind_udp` and `connect_udp`. `DatagramSocket` documents when the callbacks are called.

    Attributes:
        on_send_error: `on_send_error(sock, exc)`: the kernel refused a datagram, or an ICMP message reported an error.
        on_drain: `on_drain(sock)`: `send` returned False earlier because the queue was full; now the queue is empty.
        on_close: `on_close(sock, exc)`: the socket was closed; `exc` is None or the reason.
        on_error: `on_error(sock, exc)`: another callback raised `exc`.
        broadcast: Allow sending to broadcast addresses. Default: False.
        max_queued: How many bytes may be queued while the kernel has no room. Each datagram counts as its size plus
            256 bytes. When the limit is reached, `send` drops the new datagram and returns False. Default: 1 MiB.
    """

    on_send_error: OnSendError | None
    on_drain: OnDatagramDrain | None
    on_close: OnDatagramClose | None
    on_error: OnDatagramError | None
    broadcast: bool
    max_queued: int


class ReactorOptions(TypedDict, total=False):
    """The arguments of `Reactor`, `reactor.run` and `reactor.serve.run`.

    Attributes:
        selector: A new selector from the module `selectors`. The reactor will close it. None (default): the
            platform's best selector.
        kernel: A replacement for the operating system, for tests and simulation. None (default): the real one.
        catch_errors: What happens to an exception that a callback raises. True (default): it is logged with its
            traceback; if the callback belongs to a connection without `on_error`, that connection is aborted. Clients
            can cause such exceptions at will, so at most one a second is logged for the connections of a listener, but
            all of them are counted. A callable: `catch_errors(exc, handle_or_None)` is called instead of logging.
            False: the exception leaves `run`.
        slow_callback: Seconds. A callback, or a whole turn, that takes this long or longer is counted and logged, with
            the name and line of the callback, at most once a second. None (default): off, or 0.1 with `debug=True`.
        debug: Check in every method that it is called in the thread that runs the reactor, and report slow callbacks.
            Default: False.
        threads: How many calls of `run_in_thread` may run at once; further ones wait. Default: 4. Threads exist only
            while there are calls. Names are looked up in four other threads.
        min_wait: Seconds. Before each turn for which nothing is waiting or due, sleep this long, so that the events
            that arrive in the meantime share the turn. 0 (default): never. This trades latency for CPU time under
            moderate load: events, signals and calls from other threads are handled up to this much later, and at
            10,000 requests a second 0.0005 saves 40 % of the CPU time of a request.
    """

    selector: BaseSelector | None
    kernel: Kernel | None
    catch_errors: CatchErrors
    slow_callback: float | None
    debug: bool
    threads: int
    min_wait: float
