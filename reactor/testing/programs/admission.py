"""Programs with servers that limit their clients: by PROXY headers, by number, and by pace.

- A client with a valid PROXY header has the address from the header, and receives every byte. For other clients,
  `on_connect` is not called.
- A server with `Limits` accepts exactly the clients that the limits allow.
- A client that keeps the minimum rate may stay until its lifetime is over.
"""

from __future__ import annotations

import random
import struct
from functools import partial
from typing import Any

from reactor import LifetimeOver, Limits, Stream, TooSlow

from .parts import AnyWorld, Place, Talker, WaitGroup, cut, echoing, limits, new_random, some_bytes, talk

SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
NO_HEADERS = (b'GET / HTTP/1.1\r\n\r\n', b'\x16\x03\x01\0\xa5', b'PROXY TCP4 10.0.0.1\r\n', SIGNATURE + b'\x21\xff\0\0')
CLIENT = '192.0.2.1'


def proxied(world: AnyWorld) -> None:
    """Run an echo server behind proxies, with TLS if the world has contexts. Some clients send no valid header."""
    place = proxied_echo(world)
    group = WaitGroup(world, place.server)
    for _ in range(world.random.randint(1, 8)):
        rng, number = new_random(world), group.add('client')
        kind = rng.choice(('proxy', 'proxy', 'stranger', 'check'))
        if kind == 'proxy':
            Proxy(world, rng, place, number, group)
        else:
            disturb(world, place, rng.choice(NO_HEADERS) if kind == 'stranger' else b'', partial(group.done, number))


def proxied_echo(world: AnyWorld) -> Place:
    """Listen with an echo server that knows its clients by their PROXY headers."""

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        if conn.peername[0] != CLIENT or conn.proxy is None or conn.proxy.source != conn.peername:
            world.fail(f'{conn!r} was accepted, but its PROXY header is {conn.proxy!r}')

    return Place(world, **echoing(world), on_connect=on_connect, proxied=True, proxy_timeout=2, **limits(world.random))


class Proxy:
    """A proxy and its client: the proxy sends the header, and then the client talks."""

    def __init__(self, world: AnyWorld, rng: random.Random, place: Place, number: int, group: WaitGroup) -> None:
        words = some_bytes(rng)
        self.talker: Talker = Talker(
            world, rng, words, words, rng.choice(('eof', 'close')), partial(group.done, number)
        )
        self.place = place
        self.pieces: list[bytes] = cut(rng, header(rng, number))
        callbacks = talk(world, on_connect=self.on_connect)
        self.talker.conn = conn = place.connect(timeout=rng.choice((None, 30)), **callbacks, **limits(rng))
        conn.data = self.talker

    def on_connect(self, conn: Stream) -> None:
        self.talker.world.trouble(conn)
        for piece in self.pieces:
            conn.write(piece)
        self.place.secure(conn, self.secured)

    def secured(self, conn: Stream) -> None:
        self.talker.world.trouble(conn)
        self.talker.connected()


def limited(world: AnyWorld) -> None:
    """Connect clients, often more than the limits allow. They close once each of them has been accepted or refused."""
    rng = world.random
    most, of_one, burst = rng.choice((0, 1, 3, 50)), rng.choice((None, 2)), rng.choice((None, 2, 4))
    inside = [0, 0]  # how many connections are open, and how many were accepted in total

    def on_connect(conn: Stream) -> None:
        inside[0] += 1
        inside[1] += 1
        conn.data = inside
        if inside[0] > most:
            world.fail(f'{inside[0]} connections are open; the limit is {most}')
        world.trouble(conn)
        conn.write(b'in')

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        if conn.data is not None:
            inside[0] -= 1
        world.trouble(conn)

    rate = None if burst is None else (1e-6, burst)
    rules = Limits(connections=most, per_address=of_one, connect_rate=rate)
    place = Place(world, on_connect=on_connect, on_close=on_close, limits=rules)
    group = WaitGroup(world, place.server)
    guests = Guests(world, rng.randint(1, 8), group)
    if not isinstance(place.server.address, tuple):
        of_one = burst = None  # clients of a Unix socket have no addresses
    room = min(len(guests.undecided), *(limit for limit in (most, of_one, burst, 99) if limit is not None))
    for number in sorted(guests.undecided):
        conn = place.connect(guests.on_data, on_close=guests.on_close, timeout=60)
        conn.data = number
    guests.room, guests.admitted = room, inside


class Guests:
    """The clients of `limited`, by number. When all have been accepted or refused, the accepted clients close."""

    def __init__(self, world: AnyWorld, count: int, group: WaitGroup) -> None:
        self.world = world
        self.group = group
        self.undecided: set[int] = {group.add('client') for _ in range(count)}
        self.inside: list[Stream] = []
        self.room = 0
        self.admitted: list[int] = [0, 0]

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.inside.append(conn)
        self.decided(conn.data)
        self.world.trouble(conn)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.decided(conn.data)
        self.group.done(conn.data)
        self.world.trouble(conn)

    def decided(self, number: int) -> None:
        self.undecided.discard(number)
        if not self.undecided:
            if self.admitted[1] != self.room and not self.world.faulty:
                self.world.fail(f'{self.admitted[1]} clients were accepted; the limits allow {self.room}')
            inside, self.inside = self.inside, []
            for conn in inside:
                conn.close()


def paces(world: AnyWorld) -> None:
    """Connect slow, fast and silent clients to a server with a minimum rate and a lifetime."""

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        kind = kinds.get(bytes(conn.data or b'')[:1])
        if not world.faulty and type(exc) is not kind and not (kind is None and exc is None):
            world.fail(f'the connection of a client that sent {conn.data!r} ended with {exc!r}, not with {kind!r}')
        world.trouble(conn)

    def on_data(conn: Stream, data: bytes) -> None:
        conn.data = (conn.data or b'') + data[:1]
        world.trouble(conn)

    kinds = {b'd': TooSlow if world.counts_tcp else LifetimeOver, b'k': LifetimeOver}
    rules = Limits(min_rate=(200, 1) if world.counts_tcp else None, lifetime=7)
    keywords: dict[str, Any] = {} if world.tls is None else {'ssl': world.tls[0]}
    address = world.address()
    server = world.r.listen_tcp(*address, on_data, on_close=on_close, limits=rules, **keywords)
    group = WaitGroup(world, server)
    for _ in range(world.random.randint(1, 5)):
        rng = new_random(world)
        Dripping(world, (server.address or address)[:2], rng.choice((b'd', b'k' * 300, b'')), group)


class Dripping:
    """A client of `paces`: it sends `word` every 0.3 s until it is disconnected, or nothing if `word` is empty."""

    def __init__(self, world: AnyWorld, address: tuple[str, int], word: bytes, group: WaitGroup) -> None:
        self.world = world
        self.word = word
        self.group = group
        self.number: int = group.add('dripping client')
        keywords: dict[str, Any] = {'on_connect': self.on_connect, 'on_close': self.on_close, 'timeout': 20}
        if world.tls is not None:
            keywords.update(ssl=world.tls[1], server_hostname='localhost')
        world.r.connect_tcp(*address, **keywords)

    def on_connect(self, conn: Stream) -> None:
        self.world.trouble(conn)
        if self.word:
            self.speak(conn)
        else:
            self.world.r.call_later(2, conn.close)

    def speak(self, conn: Stream) -> None:
        if not conn.closed:
            conn.write(self.word)
            self.world.r.call_later(0.3, self.speak, conn)
        self.world.trouble()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.group.done(self.number)
        self.world.trouble(conn)


def header(rng: random.Random, number: int) -> bytes:
    """Return the PROXY header of a client; `number` is also the client's port."""
    if rng.random() < 0.4:
        return b'PROXY TCP4 %s 10.0.0.1 %d 443\r\n' % (CLIENT.encode(), number)
    tlvs = b''.join(struct.pack('!BH', 0xE0, size) + bytes(size) for size in rng.choice(((), (0,), (5, 90))))
    body = bytes((192, 0, 2, 1, 10, 0, 0, 1)) + struct.pack('!HH', number, 443) + tlvs
    return SIGNATURE + struct.pack('!BBH', 0x21, 0x11, len(body)) + body


def disturb(world: AnyWorld, place: Place, words: bytes, done: Any) -> None:
    """Connect and send `words`, which are not a header; if there are none, close at once. Any error is allowed."""

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        if words:
            conn.write(words)
        else:
            conn.close()

    def on_data(conn: Stream, data: bytes) -> None:
        world.fail(f'a client that sent {words!r} instead of a header received {data!r}')

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        done()
        world.trouble(conn)

    place.connect(on_data, on_connect=on_connect, on_close=on_close, timeout=30)
