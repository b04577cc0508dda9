"""The type of every callback, and of every option that several methods share, in one place.

The rooms below are typed with these names, too. They import this module for type checkers alone, and it is the only one
that they may look up to: when a program runs, imports point down.

Annotations are not postponed here. A TypedDict compiles those that are, one by one, which would take 4 ms.
"""

from collections.abc import Callable
from typing import Any, TypedDict

from .admission.limits import Limits
from .hints import BaseSelector, SSLContext
from .kernel import Kernel
from .loop.watcher import Handle
from .net.datagram import DatagramSocket
from .net.listener import Listener
from .net.stream import Stream
from .system.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .facade import Reactor

    Loop = Reactor  # the rooms below use no more of it than `Loop` has; users find the Reactor in `loop` of a handle

# -- of connections

OnConnect = Callable[[Stream], object]
OnData = Callable[[Stream, bytes], object]
OnEof = Callable[[Stream], object]
OnDrain = Callable[[Stream], object]
OnClose = Callable[[Stream, BaseException | None], object]
OnError = Callable[[Stream, Exception], object]
OnAcceptError = Callable[[Listener, Exception], object]

# -- of datagram sockets

OnDatagram = Callable[[DatagramSocket, bytes, Any], object]
OnSendError = Callable[[DatagramSocket, OSError], object]
OnDatagramDrain = Callable[[DatagramSocket], object]
OnDatagramClose = Callable[[DatagramSocket, BaseException | None], object]
OnDatagramError = Callable[[DatagramSocket, Exception], object]

# -- of the rest

OnResolved = Callable[[list[str] | None, Exception | None], object]
OnName = Callable[[str | None, Exception | None], object]
OnExit = Callable[[Process, int | None, int | None], object]
CatchErrors = bool | Callable[[Exception, Handle | None], object]


class PipeOptions(TypedDict, total=False):
    """The options of every stream, those of `spawn` for the pipes of a child among them.

    read_size                  bytes asked for by one recv
    high_water, low_water      `write` returns False from the first on, `on_drain` is called at the second
    max_buffered               a write while this many bytes wait aborts the connection with `WriteBufferFull`
    linger                     how long `close` may take before it becomes an abort; 0: no longer than this turn
    read_timeout               seconds without a byte received, then `ReadTimeout`; None: no limit; above 0
    write_timeout              seconds in which bytes wait and the kernel accepts none, then `WriteTimeout`
    idle_timeout               seconds without a byte in either direction, then `IdleTimeout`
    """

    read_size: int
    high_water: int
    low_water: int | None
    max_buffered: int
    linger: float
    read_timeout: float | None
    write_timeout: float | None
    idle_timeout: float | None


class StreamOptions(PipeOptions, total=False):
    """The options that all connections have: those of `PipeOptions`, and

    nodelay                    TCP_NODELAY: do not wait for more before sending what is there
    keepalive                  None or 0: off; seconds, or (idle, interval, count): probe a silent peer
    handshake_timeout          seconds that a TLS handshake may take, then `HandshakeTimeout`
    max_empty_records          TLS records without data (new keys, tickets) that a peer may send in a row, one with more
                               than 1 KiB counting as several; more, and it is reset with `TLSError`. None: no limit

    Sizes are in bytes and times in seconds. TypeError for a value of another type, such as '5', 1.5 bytes or True for a
    number, and ValueError for one out of range.
    """

    nodelay: bool
    keepalive: float | tuple[float, float, int] | None
    handshake_timeout: float
    max_empty_records: int | None


class AdoptOptions(StreamOptions, total=False):
    """What `adopt` takes: the options of all connections, and the callbacks of one that is connected."""

    on_eof: OnEof | None
    on_drain: OnDrain | None
    on_close: OnClose | None
    on_error: OnError | None


class ListenOptions(AdoptOptions, total=False):
    """What `listen_tcp` and `listen_unix` share; see `listen_tcp`."""

    on_connect: OnConnect | None
    on_accept_error: OnAcceptError | None
    backlog: int
    max_connections: int | None
    ssl: SSLContext | None
    proxy_timeout: float
    limits: Limits | None


class ConnectOptions(AdoptOptions, total=False):
    """What `connect_tcp` and `connect_unix` share; see `connect_tcp`."""

    on_connect: OnConnect | None
    timeout: float | None
    ssl: SSLContext | bool | None
    server_hostname: str | None


class DatagramOptions(TypedDict, total=False):
    """What `bind_udp` and `connect_udp` share; see `bind_udp`, and `DatagramSocket` for the callbacks."""

    on_send_error: OnSendError | None
    on_drain: OnDatagramDrain | None
    on_close: OnDatagramClose | None
    on_error: OnDatagramError | None
    broadcast: bool
    max_queued: int


class ReactorOptions(TypedDict, total=False):
    """The arguments of `Reactor`, as `reactor.run` and `reactor.serve.run` take them."""

    selector: BaseSelector | None
    kernel: Kernel | None
    catch_errors: CatchErrors
    slow_callback: float | None
    debug: bool
