"""Limits: how many clients may be connected, how many from one address, and how often they may connect and ask.

Memory is bounded by the connections that are open and by `max_addresses` addresses without one, of which the one not
seen for longest is forgotten first. Of an address without connections only its tokens are remembered, until they have
grown again.

The rates are token buckets: `burst` tokens at first, each worth one connection or request, which grow again at so many
a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from errno import EOPNOTSUPP
from typing import Any

from ..kernel import Kernel
from ..loop.checks import number, shown, time_limit
from ..net.options import check_callback
from ..net.stream import Stream
from .address_record import AddressRecord, Rate
from .networks import packed
from .pace import LimitedClient

Refusal = tuple[str, str]  # the counter, and the reason in words

MAX_ADDRESSES = 50_000  # some 400 bytes each
IPV6_PREFIX = 8  # bytes: a client of IPv6 has a /64 and changes its address in it at will (RFC 8981)


class Limits:
    """What clients may take, given to `listen_tcp` or `listen_unix` as `limits=`; several listeners may share it.

    refuse         `refuse(address)` is called for each client, (host, port), and True refuses him. An exception of it
                   refuses it, too, and is reported like those of callbacks
    connections    how many may be open at once. One more is refused; with `max_connections` he waits in the backlog
    per_address    how many of one address
    connect_rate   (a second, burst): how often one address may connect
    request_rate   (a second, burst): how often one address may ask; see `allow`
    lifetime       seconds after which a connection is reset, `LifetimeOver`
    min_rate       (bytes a second, grace in seconds): how fast a client must send what he has to say, and take what
                   waits for him, else he is reset, `TooSlow`. What he says begins with his first byte since our last
                   one to him. It is looked at each quarter of the grace: he is ended when something more has come, and
                   yet the whole is later than the grace and its bytes at this rate allow. So he may wait for a slow
                   answer, and silence is not slowness: `read_timeout` and `idle_timeout` are for that. Over TLS what
                   is encrypted counts. TCP on Linux only, which counts the bytes
    max_addresses  how many addresses are remembered that have no connection open

    One address of IPv6 is a /64. Who is refused is reset, before `on_connect`; `stats` counts each limit, and one line
    a second is logged for a listener. Behind `proxy_protocol` all of it is about the real client, as soon as the header
    has named him: `on_close(conn, exc)` gets a `ClientRefused` then, since the connection was open. Clients without an
    address (Unix sockets, UNKNOWN) count in `connections` alone, and LOCAL ones, the proxy's own, not at all.
    """

    __slots__ = (
        '_clients',
        '_forget_after',
        '_idle',
        '_present',
        'connect_rate',
        'connections',
        'lifetime',
        'max_addresses',
        'min_rate',
        'per_address',
        'refuse',
        'request_rate',
    )

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
        self.connections: int | None = _count('connections', connections)
        self.per_address: int | None = _count('per_address', per_address)
        self.connect_rate: Rate | None = _rate('connect_rate', connect_rate, 1)
        self.request_rate: Rate | None = _rate('request_rate', request_rate, 1)
        self.lifetime: float | None = (
            None if lifetime is None else time_limit('lifetime', lifetime, '; None means no limit')
        )
        self.min_rate: Rate | None = _rate('min_rate', min_rate, 0)
        self.max_addresses: int = _count('max_addresses', max_addresses) or 0
        rates = [rate for rate in (self.connect_rate, self.request_rate) if rate is not None]
        self._forget_after = max([burst / a_second for a_second, burst in rates], default=0.0)
        self._clients: dict[Stream, LimitedClient] = {}
        self._present: dict[bytes, AddressRecord] = {}  # with connections open
        self._idle: OrderedDict[bytes, AddressRecord] = OrderedDict()  # without, the one unseen for longest first

    def __repr__(self) -> str:
        return f'<Limits: {len(self._clients)} connections, {len(self._present)} addresses, {len(self._idle)} gone>'

    def allow(self, conn: Stream) -> bool:
        """Whether the client may have one request more now, by `request_rate`; it counts as one then.

        To be asked before a request is done. False: answer that it is too much (HTTP: 429 with `Retry-After`), or
        close. True also for a connection that has ended, and for one that these limits are not for.
        """
        client, rate = self._clients.get(conn), self.request_rate
        if client is None or rate is None or client.address.requests.take(conn.loop.timers.clock(), rate):
            return True
        conn.loop.counters.requests_refused += 1
        return False

    # -- for listeners

    def judge(self, kernel: Kernel, address: Any, now: float) -> tuple[AddressRecord, Refusal | None]:
        """Who a client is, and why he is refused, None when he is not."""
        key = packed(kernel, address)
        known = self._know(key[:IPV6_PREFIX], now)
        if key and self.refuse is not None and self.refuse(address):
            return known, ('refused_by_hook', 'the hook has said so')
        if self.connections is not None and len(self._clients) >= self.connections:
            return known, ('refused_connections', f'{self.connections} connections are open')
        if key and self.per_address is not None and known.open >= self.per_address:
            return known, ('refused_per_address', f'it has {known.open} connections open')
        if key and self.connect_rate is not None and not known.connects.take(now, self.connect_rate):
            return known, ('refused_rate', f'it connects more often than {self.connect_rate[0]:g} times a second')
        return known, None

    def track(self, stream: Stream, address: AddressRecord, now: float) -> None:
        """Count an open connection that was not refused.

        Where memory or stack runs out it raises, and `handle_closed` gives back what it had taken.
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
        """A connection has ended; nothing when it was none of ours."""
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
        del self._clients[stream]  # last: where memory or stack has run out, all of this is run again

    # -- in this file

    def _know(self, key: bytes, now: float) -> AddressRecord:
        known = self._present.get(key)
        if known is None:
            known = self._idle.pop(key, None) or AddressRecord(key, self.connect_rate, self.request_rate, now)
            if key:
                self._keep(known, now)
        return known

    def _keep(self, address: AddressRecord, now: float) -> None:
        """Remember who has no connection open, and forget those who need not be, or too many."""
        idle = self._idle
        address.seen = now
        idle[address.key] = address
        for _ in range(2):  # more than come in
            oldest = next(iter(idle.values()), None)
            if oldest is not None and (oldest.seen + self._forget_after < now or len(idle) > self.max_addresses):
                del idle[oldest.key]


def check_limits(kernel: Kernel, limits: Limits | None, unix: bool) -> None:
    """The argument `limits` of a listener; TypeError, or OSError where it cannot be held."""
    if limits is None:
        return
    if not isinstance(limits, Limits):
        raise TypeError(f'limits is None or a reactor.Limits, not {shown(limits)}')
    if limits.min_rate is not None and (unix or not kernel.counts_tcp):
        raise OSError(EOPNOTSUPP, 'min_rate needs what Linux counts for TCP; use read_timeout and write_timeout here')


def _count(name: str, value: int | None) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError(f'{name} is None or an int, not {shown(value)}')
    if value is not None and value < 0:
        raise ValueError(f'{name} is None or at least 0, not {value!r}')
    return value


def _rate(name: str, value: Rate | None, least: int) -> Rate | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f'{name} is a tuple of two numbers, not {shown(value)}')
    a_second, burst = (float(number(name, each, 'tuple of two numbers')) for each in value)
    if not (a_second > 0 and burst >= least):
        raise ValueError(f'{name} is (a number above 0, a number of at least {least}), not {value!r}')
    return a_second, burst
