"""Connect datagram sockets to a peer, given by its name or its address.

Connecting a UDP socket sends nothing, and fails only if there is no route. So all addresses of a name are tried in one
turn, and the first address with a route becomes the peer. Names are looked up in a thread. Failures are passed to
`on_close`, never raised.
"""

from __future__ import annotations

from ..errors import EXHAUSTION
from ..kernel import Kernel
from .addresses import MOST_ADDRESSES, Address, interleave, numeric, show, unmapped
from .datagram import DatagramSocket
from .resolver import look_up
from .sockets import connected_udp

MOST_TRIES = 64  # at most this many addresses of a name are tried, all in one turn


class DatagramConnector:
    """Connects one `DatagramSocket`, which is CONNECTING until it has a peer."""

    __slots__ = ('_broadcast', '_kernel', '_local_address', '_socket')

    def __init__(
        self, sock: DatagramSocket, kernel: Kernel, local_address: tuple[str, int] | None, broadcast: bool
    ) -> None:
        self._socket = sock
        self._kernel = kernel
        self._local_address = local_address
        self._broadcast = broadcast

    def connect(self, host: str, port: int, family: int) -> None:
        """Connect to a numeric address at once, or to a name after its look-up."""
        sock = self._socket
        addresses = numeric(self._kernel, host, port, family)
        sock.loop.watchers.park(sock)
        try:
            if addresses:
                self._try(addresses)
            else:
                sock.lookup = look_up(sock.loop, self._kernel, host, port, family, self._looked_up)
                sock.lookup.unref()  # the socket itself keeps the loop running
        except EXHAUSTION as exc:
            sock.finish(exc)

    # -- private methods

    def _looked_up(self, addresses: list[Address] | None, error: Exception | None) -> None:
        self._socket.lookup = None
        try:
            if addresses:
                self._try(addresses)
            else:
                self._fail(error)
        except EXHAUSTION as exc:
            self._socket.finish(exc)

    def _try(self, addresses: list[Address]) -> None:
        sock, error = self._socket, None
        for family, address in interleave(addresses[:MOST_ADDRESSES])[:MOST_TRIES]:
            try:
                sock.sock = connected_udp(  # assigned at once, so that `finish` closes it if a later step fails
                    self._kernel, family, address, local_address=self._local_address, broadcast=self._broadcast
                )
                sock.take(sock.sock)
                sock.peer = sock.peer or unmapped(address)  # the kernel may have failed to report the peer
                break
            except OSError as exc:
                error = error or OSError(exc.errno, f'cannot connect to {show(address)}: {exc.strerror or exc}')
        else:
            self._fail(error)
            return
        sock.opened()

    def _fail(self, error: Exception | None) -> None:
        self._socket.loop.failures.unheard(self._socket, error)
        self._socket.finish(error)
