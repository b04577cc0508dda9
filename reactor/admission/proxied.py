"""The PROXY protocol: a proxy begins each connection with a header that names the client.

Only the header is read here, and not a byte more. So the stream reads the bytes after the header, over TLS or not, as
if the connection had just been accepted. A header is accepted only from the networks given by the user, because anyone
can send one.

The bytes are peeked first, and then only those that must belong to the header are read. So no part of a header
stays unread in the kernel, which would make the selector report the socket again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from socket import MSG_PEEK
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, ProxyError, ProxyTimeout
from ..hints import socket
from ..kernel import Kernel
from ..loop.checks import shown, time_limit
from ..loop.log import log
from ..loop.timers import Timer
from ..loop.watcher import READ
from ..net.addresses import show
from ..net.proxy_header import header_size, parse_header
from ..net.states import CONNECTING, OPEN, State
from ..net.stream import Stream
from ..net.writer import SHUT, Writer
from .networks import Networks

PROXY_TIMEOUT = 10.0  # seconds; a proxy sends its header in the first packet
PEEK = 536  # bytes that proxy-protocol.txt asks receivers to read at once


class ProxyProtocol:
    """The PROXY options of a listener.

    Attributes:
        networks: The networks whose headers are accepted; None: all.
        timeout: Seconds until a header must be complete.
        kind: The class of a stream after its header.
        buffers: The headers that are not complete yet.
    """

    __slots__ = ('buffers', 'kernel', 'kind', 'networks', 'timeout')

    def __init__(self, kernel: Kernel, networks: Networks | None, timeout: float, kind: type[Stream]) -> None:
        self.buffers: dict[ProxiedStream, HeaderBuffer] = {}
        self.kernel: Kernel = kernel
        self.networks: Networks | None = networks
        self.timeout: float = timeout
        self.kind: type[Stream] = kind

    def trusts(self, address: Any) -> bool:
        """Return whether headers from this address are accepted."""
        return self.networks is None or address in self.networks


def check_proxy_protocol(
    kernel: Kernel, value: Iterable[str] | bool | None, timeout: float, kind: type[Stream], unix: bool
) -> ProxyProtocol | None:
    """Check the argument `proxy_protocol` of a listener. Raises TypeError or ValueError."""
    timeout = time_limit('proxy_timeout', timeout)
    if value is None or value is False:
        return None
    if unix:
        if value is not True:
            raise TypeError(
                f'on a Unix socket proxy_protocol must be True or False, not {shown(value)}: clients have no network'
            )
        return ProxyProtocol(kernel, None, timeout, kind)
    if value is True:
        raise TypeError('proxy_protocol must be a list of your proxies\' networks, such as ["10.0.0.0/8"], not True')
    networks = Networks(kernel, value)
    if not networks:
        raise ValueError(f'proxy_protocol={shown(value)} has no networks, so every client would be reset; add some')
    return ProxyProtocol(kernel, networks, timeout, kind)


class HeaderBuffer:
    """The part of a header that has been read, and whether the user wants to read after it."""

    __slots__ = ('data', 'reading', 'timer')

    def __init__(self) -> None:
        self.data: bytes = b''
        self.reading: bool = True
        self.timer: Timer | None = None


class ProxiedStream(Stream):
    """A connection that waits for its PROXY header. It is CONNECTING, and changes its class after the header.

    Writes are dropped and return False, because the client is not known yet.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        writer: Writer | None
        state: State
        peer: Any

    # -- methods for opening (internal)

    def attach(self, sock: socket, deferred: bool = False) -> None:
        """Take an accepted socket (internal). The proxy sends its header first."""
        loop = self.loop
        self.sock = sock
        self.writer = SHUT
        self._protocol.buffers[self] = buffer = HeaderBuffer()  # set before the socket can be read
        # Unreferenced, because the stream itself keeps the loop running.
        late = ProxiedStream.handle_header_late
        buffer.timer = loop.timers.unreferenced_later(self._protocol.timeout, late, self)
        if deferred:
            loop.watchers.defer(self, READ)
        else:
            loop.watchers.add(self, READ)

    # -- methods for the loop

    def handle_read(self) -> None:
        """Called by the loop: peek, read the bytes of the header, and open the stream when the header is complete."""
        buffer = self._buffer
        seen = self._receive(PEEK, MSG_PEEK)
        if not seen:
            if seen is not None:
                self._ended()
            return
        try:
            size = header_size(buffer.data + seen)
        except ValueError as exc:
            self._fail(str(exc))
            return
        missing = size - len(buffer.data)
        taken = self._receive(min(missing, len(seen)))
        if taken is None:
            return
        self.handle_header_bytes(taken)
        if len(buffer.data) == size:
            self._understand(len(seen) > missing)

    def handle_header_bytes(self, data: bytes) -> None:
        """Called with bytes of the header that were read."""
        counters = self.loop.counters
        counters.reads += 1
        counters.bytes_in += len(data)
        self._buffer.data += data

    def handle_header_late(self) -> None:
        """Called by the timer of the header, which has not arrived in time."""
        # Otherwise the header was read or the connection closed, and there was no memory to cancel the timer.
        if isinstance(self, ProxiedStream) and self.state is CONNECTING:
            self._fail(f'its header did not arrive within proxy_timeout={self._protocol.timeout:g} s', ProxyTimeout)

    # -- methods for users, on a stream from `handles()`

    def write_eof(self) -> None:
        """Do nothing: the client is not known yet."""

    def waits_for(self) -> str:
        return 'its PROXY header'

    # -- overridden methods

    def set_reading(self, reading: bool) -> None:
        if self.state is CONNECTING:
            self._buffer.reading = reading

    def finish(self, exc: BaseException | None) -> None:
        origin = self.origin
        Stream.finish(self, exc)  # done first, so that `on_close` is called even if a later step fails
        if origin is not None:
            self._forget_buffer(origin.proxy)  # type: ignore[attr-defined]  # the origin is a `GuardedListener`

    def forget(self) -> None:
        self._forget_buffer(self._protocol)
        Stream.forget(self)

    # -- private methods

    @property
    def _protocol(self) -> ProxyProtocol:
        protocol: ProxyProtocol = self.origin.proxy  # type: ignore[union-attr]
        return protocol

    @property
    def _buffer(self) -> HeaderBuffer:
        return self._protocol.buffers[self]

    def _receive(self, size: int, flags: int = 0) -> bytes | None:
        try:
            return self.sock.recv(size, flags)
        except BlockingIOError:
            self.loop.spins.no_progress(self)
            return None
        except OSError as exc:
            self.read_failed(exc)
            return None

    def _understand(self, more: bool) -> None:
        try:
            header = parse_header(self._protocol.kernel, self._buffer.data)
        except ValueError as exc:
            self._fail(str(exc))
            return
        if header.source is None:
            header.peername = self.peername
        self.loop.streams.proxy_headers[self] = header
        self.peer = header.peername
        self.loop.counters.proxy_headers += 1
        if self.origin.admit_proxied(self, header):  # type: ignore[union-attr]
            self._open(more)

    def _open(self, more: bool) -> None:
        """Turn this stream into the client's stream."""
        options, reading, protocol = self.options, self._buffer.reading, self._protocol
        self._forget_buffer(protocol)
        self.writer = None
        self.state = OPEN
        self.__class__ = protocol.kind  # type: ignore[assignment]
        if options.timed:
            self.start_timeouts()
        if options.ssl is not None:
            on_secured = (Stream.handle_accepted, ())
            self.loop.streams.tls_class.upgrade(self, options.ssl, on_secured, True, None, options.handshake_timeout)
        if not reading:
            self.pause_reading()
        elif more:  # bytes that came with the header are read in this turn
            self.loop.completions.append((self, Stream.handle_first_read, ()))
        if options.ssl is None:
            self.handle_accepted()

    def _ended(self) -> None:
        if self._buffer.data:
            self._fail('it closed the connection in the middle of its header')
        else:
            self.finish(None)  # a health check, or a client that closed at once

    def _fail(self, what: str, kind: type[ProxyError] = ProxyError) -> None:
        self.loop.counters.proxy_errors += 1
        error = kind(f'{show(self.peername)} was reset: {what}. Only proxies that send a PROXY header may connect here')
        if self.options.shared.may_log_refusal(self.loop.timers.clock()):
            log('warning', '%s', error)
        self.reset(error)

    def _forget_buffer(self, protocol: ProxyProtocol) -> None:
        buffer = protocol.buffers.pop(self, None)
        if buffer is not None and buffer.timer is not None:
            try:
                buffer.timer.cancel()
            except EXHAUSTION:
                pass  # the timer will fire, but do nothing: the header was read, or the connection is closed
