"""Guarded listeners: those that ask who it is before a client becomes a connection.

Owns the order of the questions. Knows no answer. The rule: who is not let in is reset at once, is counted, and is never
told to the user; a listener without guards is a plain `Listener`, which has no such question on its way.
"""

from __future__ import annotations

from socket import SO_LINGER, SOL_SOCKET

from ..kernel import RESET_ON_CLOSE, close_socket
from ..loop.log import log
from .addresses import show
from .listener import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

    from .proxy_protocol import ProxyProtocol


class GuardedListener(Listener):
    """A `Listener` behind proxies, see `ProxyProtocol`."""

    __slots__ = ('proxy',)

    def __init__(self, *args: Any, proxy: ProxyProtocol | None, **keywords: Any) -> None:
        self.proxy = proxy
        super().__init__(*args, **keywords)

    def welcome(self, sock: socket, address: Any) -> None:
        """As `Listener.welcome`, of those that are let in."""
        if self.proxy is not None and not self.proxy.trusts(address):
            self._refuse(sock, address, 'refused_untrusted', 'is in none of the networks of proxy_protocol')
        else:
            super().welcome(sock, address)

    def _refuse(self, sock: socket, address: Any, counter: str, why: str) -> None:
        counters = self.loop.counters
        setattr(counters, counter, getattr(counters, counter) + 1)
        if self.may_log():
            log('warning', '%s was refused: it %s', show(address), why)
        try:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
        except OSError:
            pass  # it is gone already
        close_socket(sock)
