"""`Limits`: refuse clients that exceed limits on open connections, on connections from one address, or on rates.

`Limits.judge` decides about a new client, and `Limits.allow` about a request. A client beyond `max_connections` is not
refused: it waits in the kernel's backlog (`net/listener.py`). A PROXY header from an unknown network is refused in
`admission/listener.py`.

Memory is bounded by the open connections and by `max_addresses`. An address without a connection is remembered only
until its tokens are refilled. If there are too many such addresses, the least recently seen address is forgotten
first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from errno import EOPNOTSUPP
from typing import Any

from ..kernel import Kernel
from ..loop.checks import number, optional_count, shown, time_limit
from ..net.options import check_callback
from ..net.stream import Stream
from .address_record import AddressRecord, Rate
from .networks import packed
from .pace import LimitedClient

Refusal = tuple[str, str]  # the name of the counter to increment, and the reason to show in messages

MAX_ADDRESSES = 50_000  # about 400 bytes each
IPV6_PREFIX = 8  # bytes: an IPv6 client has a /64, and can change its address within it at will (RFC 8981)


class Limits:
    """Limits for clients, passed to `listen_tcp` or `listen_unix` as `limits=`. Several listeners may share them.

    A refused client is reset before `on_connect`. `stats()` has a counter for each limit, and each listener logs at
    most one line a second. An IPv6 address stands for the whole /64 that it belongs to.

    With `proxy_protocol`, the limits apply to the real client once the header has named it. By then a connection
    exists, so for a refused client `on_close(conn, exc)` is called with a `ClientRefused`. Clients without an address
    (Unix sockets, UNKNOWN headers) are limited only by `connections`. LOCAL connections, which the proxy makes for
    itself, are not counted.

    Args:
        refuse: Called as `refuse(address)` for each client with an address, (host, port); a true result refuses the
            client. An exception refuses it too, and is reported like an exception in a callback.
        connections: How many connections may be open at once. Further clients are refused; with the listener's
            `max_connections` they would wait in the backlog.
        per_address: How many connections one address may have open.
        connect_rate: (per second, burst): how often one address may connect.
        request_rate: (per second, burst): how often one address may make requests; see `allow`.
        lifetime: Seconds after which a connection is reset with `LifetimeOver`.
        min_rate: (bytes per second, grace in seconds): how fast a client must send its messages and read the bytes sent
            to it. A slower client is reset with `TooSlow`. A message starts with the first byte received after our last
            send. The client is checked each time a quarter of the grace has passed. It is too slow if more of the
            message has arrived since the last check, and the message has taken longer than the grace plus the time that
            its bytes need at this rate.
            A client that waits for a slow answer, or is silent, is not too slow: `read_timeout` and `idle_timeout`
            limit silence. Over TLS, encrypted bytes are counted. Works only for TCP on Linux, where the kernel counts
            the bytes.
        max_addresses: How many addresses without an open connection are remembered.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # set by users
        'refuse', 'connections', 'per_address', 'connect_rate', 'request_rate', 'lifetime', 'min_rate', 'max_addresses',
        # connections, addresses with open connections, and addresses without
        '_clients', '_present', '_idle', '_forget_after',
    )  # fmt: skip

    def __init__(
        self,
        *,
        refuse: Callable[[Any], object] | None = None,
        connections: int | None = None,
        per_address: int | None = None,
        connect_rate: Rate | None = None,
        request_rate: Rate | None = None,
        lifetime: float | None = None,
        min_rate: Rate | None = None,
        max_addresses: int = MAX_ADDRESSES,
    ) -> None:
        check_callback('refuse', refuse)
        self.refuse: Callable[[Any], object] | None = refuse
        self.connections: int | None = optional_count('connections', connections)
        self.per_address: int | None = optional_count('per_address', per_address)
        self.connect_rate: Rate | None = _rate('connect_rate', connect_rate, 1)
        self.request_rate: Rate | None = _rate('request_rate', request_rate, 1)
        self.lifetime: float | None = (
            None if lifetime is None else time_limit('lifetime', lifetime, '; None means no limit')
        )
        self.min_rate: Rate | None = _rate('min_rate', min_rate, 0)
        self.max_addresses: int = optional_count('max_addresses', max_addresses) or 0
        rates = [rate for rate in (self.connect_rate, self.request_rate) if rate is not None]
        self._forget_after = max([burst / a_second for a_second, burst in rates], default=0.0)
        self._clients: dict[Stream, LimitedClient] = {}
        self._present: dict[bytes, AddressRecord] = {}  # addresses with open connections
        self._idle: OrderedDict[bytes, AddressRecord] = OrderedDict()  # the others, the least recently seen first

    def __repr__(self) -> str:
        return f'<Limits: {len(self._clients)} connections, {len(self._present)} addresses, {len(self._idle)} gone>'

    def allow(self, conn: Stream) -> bool:
        """Count a request of a client against `request_rate`, and return whether it is allowed.

        Call this before you process a request. If it returns False, refuse the request (HTTP: 429 with `Retry-After`)
        or close.

        Args:
            conn: The connection of the client.

        Returns:
            False if the address has used up its rate. True otherwise, also for a closed connection or a connection to
            which these limits do not apply.
        """
        client, rate = self._clients.get(conn), self.request_rate
        if client is None or rate is None or client.address.requests.take(conn.loop.timers.clock(), rate):
            return True
        conn.loop.counters.requests_refused += 1
        return False

    # -- methods for listeners

    def judge(self, kernel: Kernel, address: Any, now: float) -> tuple[AddressRecord, Refusal | None]:
        """Return the record of a new client's address, and the reason to refuse the client, or None."""
        key = packed(kernel, address)
        known = self._know(key[:IPV6_PREFIX], now)
        if key and self.refuse is not None and self.refuse(address):
            return known, ('refused_by_hook', 'the refuse= hook returned true')
        if self.connections is not None and len(self._clients) >= self.connections:
            reason = f'{len(self._clients)} connections are open; the limit is connections={self.connections}'
            return known, ('refused_connections', reason)
        if key and self.per_address is not None and known.open >= self.per_address:
            reason = f'its address has {known.open} connections open; the limit is per_address={self.per_address}'
            return known, ('refused_per_address', reason)
        if key and self.connect_rate is not None and not known.connects.take(now, self.connect_rate):
            reason = f'its address connects too often; the limit is connect_rate={self.connect_rate}'
            return known, ('refused_rate', reason)
        return known, None

    def track(self, stream: Stream, address: AddressRecord, now: float) -> None:
        """Count a connection that was not refused.

        If memory or stack runs out, this raises, and `handle_closed` undoes the steps already taken.
        """
        client = LimitedClient(stream, address, self.lifetime, self.min_rate, now)
        opened = address.open + 1
        self._clients[stream] = client
        address.open = opened
        if address.key:
            self._present[address.key] = address
            self._idle.pop(address.key, None)
        client.begin(now)

    def handle_closed(self, stream: Stream) -> None:
        """Called when a connection has ended. Does nothing for a connection that was not counted."""
        client = self._clients.get(stream)
        if client is None:
            return
        client.end()
        address = client.address
        left = address.open - 1
        if not left and address.key:
            self._keep(address, stream.loop.timers.clock())
            self._present.pop(address.key, None)
        address.open = left
        del self._clients[stream]  # this comes last: if memory or stack runs out before, all steps are repeated

    # -- private methods

    def _know(self, key: bytes, now: float) -> AddressRecord:
        known = self._present.get(key)
        if known is None:
            known = self._idle.pop(key, None) or AddressRecord(key, self.connect_rate, self.request_rate, now)
            if key:
                self._keep(known, now)
        return known

    def _keep(self, address: AddressRecord, now: float) -> None:
        """Remember an address without open connections. Forget old addresses, and the oldest if there are too many."""
        idle = self._idle
        address.seen = now
        idle[address.key] = address
        for _ in range(2):  # forget up to two addresses, because one was just added
            oldest = next(iter(idle.values()), None)
            if oldest is not None and (oldest.seen + self._forget_after < now or len(idle) > self.max_addresses):
                del idle[oldest.key]


def check_limits(kernel: Kernel, limits: Limits | None, unix: bool) -> None:
    """Check the argument `limits` of a listener. Raises TypeError, or OSError if this platform cannot enforce them."""
    if limits is None:
        return
    if not isinstance(limits, Limits):
        raise TypeError(f'limits must be None or a reactor.Limits, not {shown(limits)}')
    if limits.min_rate is not None and (unix or not kernel.counts_tcp):
        raise OSError(EOPNOTSUPP, 'min_rate works for TCP on Linux only; use read_timeout= and write_timeout= here')


def _rate(name: str, value: Rate | None, least: int) -> Rate | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f'{name} must be a tuple of two numbers, not {shown(value)}')
    a_second, burst = (float(number(name, each, 'tuple of two numbers')) for each in value)
    if not (a_second > 0 and burst >= least):
        raise ValueError(f'{name} must be (a number above 0, a number of at least {least}), not {value!r}')
    return a_second, burst
