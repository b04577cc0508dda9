"""Listeners with limits or behind proxies: they check a client before it becomes a connection.

A refused client is reset and counted, and no callback is called for it. A plain `Listener` makes none of these checks.
`kinds.py` decides which of the two classes is used.
"""

from __future__ import annotations

from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, ClientRefused
from ..hints import socket
from ..kernel.sockets import close_socket
from ..loop.log import log
from ..net.addresses import show, unmapped
from ..net.listener import Listener
from ..net.options import Options
from ..net.proxy_header import ProxyHeader
from ..net.stream import Stream
from .limits import Limits, Refusal
from .proxied import ProxyProtocol

if TYPE_CHECKING:
    from ..callbacks import Loop


class GuardedListener(Listener):
    """A `Listener` with limits, or behind proxies, or both."""

    __slots__ = ('_shared', 'limits', 'proxy')

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        options: Options,
        *args: Any,
        proxy: ProxyProtocol | None,
        limits: Limits | None,
        **keywords: Any,
    ) -> None:
        self.proxy: ProxyProtocol | None = proxy
        self.limits: Limits | None = limits
        self._shared = options.shared
        super().__init__(loop, sock, options, *args, **keywords)

    def accept_client(self, sock: socket, address: Any) -> Stream | None:
        """Refuse or accept the client. Behind a proxy, this is decided when the header has arrived."""
        address = unmapped(address)
        if self.proxy is not None:
            if self.proxy.trusts(address):
                return super().accept_client(sock, address)
            self._refuse(sock, address, ('refused_untrusted', 'it is not in the networks of proxy_protocol='))
            return None
        limits, loop = self.limits, self.loop
        assert limits is not None
        now = loop.timers.clock()
        try:
            known, refusal = limits.judge(loop.kernel, address, now)
        except BaseException:
            self._reset(sock)
            raise
        if refusal is not None:
            self._refuse(sock, address, refusal)
            return None
        stream = super().accept_client(sock, address)
        if stream is not None and not stream.closed:  # a closed stream would be counted for ever
            try:
                limits.track(stream, known, now)
            except EXHAUSTION as exc:
                stream.reset(exc)
        return stream

    def admit_proxied(self, stream: Stream, header: ProxyHeader) -> bool:
        """Called when a PROXY header has named the client: return whether it is accepted; reset it if not."""
        limits, loop = self.limits, self.loop
        if limits is None or header.command == 'LOCAL':
            return True
        now = loop.timers.clock()
        try:
            known, refusal = limits.judge(loop.kernel, header.source, now)
        except BaseException:
            stream.reset(ClientRefused(f'{show(header.peername)} was refused: the refuse= hook raised an exception'))
            raise
        if refusal is not None:
            self._count(header.peername, refusal)
            stream.reset(ClientRefused(f'{show(header.peername)} was refused: {refusal[1]}'))
            return False
        limits.track(stream, known, now)
        return True

    def handle_closed(self, stream: Stream) -> None:
        if self.limits is not None:
            self.limits.handle_closed(stream)
        super().handle_closed(stream)

    def _refuse(self, sock: socket, address: Any, refusal: Refusal) -> None:
        self._count(address, refusal)
        self._reset(sock)

    def _reset(self, sock: socket) -> None:
        try:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, self.loop.kernel.reset_on_close)
        except OSError:
            pass  # the client is already gone
        close_socket(sock)

    def _count(self, address: Any, refusal: Refusal) -> None:
        counter, why = refusal
        counters = self.loop.counters
        setattr(counters, counter, getattr(counters, counter) + 1)
        if self._shared.may_log_refusal(self.loop.timers.clock()):
            log('warning', '%s was refused: %s', show(address), why)
