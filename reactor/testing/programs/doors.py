"""Programs in which clients are looked at before they are let in: behind proxies.

Owns proxies that speak for their clients, and others that only pretend. The rule: who comes with a right header is
known by it and gets every byte, and whoever else comes is never heard of.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

from .parts import Ending, Place, Talker, child, cut, limits, some_bytes, talk

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random

    from reactor import Stream

    from .parts import World

SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
NO_HEADERS = (b'GET / HTTP/1.1\r\n\r\n', b'\x16\x03\x01\0\xa5', b'PROXY TCP4 10.0.0.1\r\n', SIGNATURE + b'\x21\xff\0\0')
CLIENT = '192.0.2.1'


def proxied(world: World) -> None:
    """Clients behind proxies, over TLS where the world has contexts, who expect an echo; strangers; health checks."""
    place = proxied_echo(world)
    ending = Ending(world, place.server)
    for _ in range(world.random.randint(1, 8)):
        rng, number = child(world), ending.add('client')
        kind = rng.choice(('proxy', 'proxy', 'stranger', 'check'))
        if kind == 'proxy':
            Proxy(world, rng, place, number, ending)
        else:
            disturb(world, place, rng.choice(NO_HEADERS) if kind == 'stranger' else b'', partial(ending.done, number))


def proxied_echo(world: World) -> Place:
    """A server that sends back what it hears from clients whose proxies have said who they are."""

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        if conn.peername[0] != CLIENT or conn.proxy is None or conn.proxy.source != conn.peername:
            world.fail(f'{conn!r} was let in, and its proxy said {conn.proxy!r}')

    def on_data(conn: Stream, data: bytes) -> None:
        world.trouble(conn)
        if not conn.write(data):
            conn.pause_reading()

    def on_drain(conn: Stream) -> None:
        world.trouble(conn)
        conn.resume_reading()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        world.trouble(conn)

    rest: dict[str, Any] = {'on_connect': on_connect, 'on_drain': on_drain, 'on_close': on_close}
    return Place(world, on_data, proxied=True, proxy_timeout=2, **rest, **limits(world.random))


class Proxy:
    """Connects for a client: says its header, and then all is the client's."""

    def __init__(self, world: World, rng: random.Random, place: Place, number: int, ending: Ending) -> None:
        words = some_bytes(rng)
        self.talker = Talker(world, rng, words, words, rng.choice(('eof', 'close')), partial(ending.done, number))
        self.place, self.pieces = place, cut(rng, header(rng, number))
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


def header(rng: random.Random, number: int) -> bytes:
    """What the proxy of the client with this number, which is its port, has to say."""
    if rng.random() < 0.4:
        return b'PROXY TCP4 %s 10.0.0.1 %d 443\r\n' % (CLIENT.encode(), number)
    tlvs = b''.join(struct.pack('!BH', 0xE0, size) + bytes(size) for size in rng.choice(((), (0,), (5, 90))))
    body = bytes((192, 0, 2, 1, 10, 0, 0, 1)) + struct.pack('!HH', number, 443) + tlvs
    return SIGNATURE + struct.pack('!BBH', 0x21, 0x11, len(body)) + body


def disturb(world: World, place: Place, words: bytes, done: Any) -> None:
    """Connect and say what is no header, or nothing and go; whichever way it ends is right."""

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        if words:
            conn.write(words)
        else:
            conn.close()

    def on_data(conn: Stream, data: bytes) -> None:
        world.fail(f'{data!r} was said to who said {words!r}')

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        done()
        world.trouble(conn)

    place.connect(on_data, on_connect=on_connect, on_close=on_close, timeout=30)
