"""Programs with small servers and clients, as users write them: echo, proxy, half-closes, requests, publishing.

Without faults, every connection ends cleanly with all bytes delivered. With faults, the received bytes are a prefix of
the bytes sent.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from reactor import Stream, Timer
from reactor.framing import Frames

from .parts import AnyWorld, Place, Talker, WaitGroup, cut, echoing, limits, new_random, some_bytes, talk, try_to_write


def echo(world: AnyWorld) -> None:
    """Run an echo server with a few clients."""
    place = echo_server(world)
    talk_to(world, place, WaitGroup(world, place.server))


def echo_server(world: AnyWorld) -> Place:
    """Listen with an echo server that pauses reading while its client reads too slowly."""
    most = world.random.choice((None, None, 1, 3))  # further clients wait in the backlog
    return Place(world, **echoing(world), max_connections=most, **limits(world.random))


def talk_to(world: AnyWorld, place: Place, group: WaitGroup) -> None:
    """Connect a few clients that expect an echo."""
    for _ in range(world.random.randint(1, 8)):
        rng, number = new_random(world), group.add('client')
        words = some_bytes(rng)
        talker = Talker(world, rng, words, words, rng.choice(('eof', 'close')), partial(group.done, number))
        callbacks = talk(world)
        if rng.random() < 0.5:
            del callbacks['on_eof']
        talker.join(place.connect(timeout=rng.choice((None, 30)), **callbacks, **limits(rng)))


def proxy(world: AnyWorld) -> None:
    """Run an echo server behind a proxy that passes bytes both ways, no faster than the slower side reads."""

    def on_connect(front: Stream) -> None:
        world.trouble(front)
        front.data = back_place.connect(on_data, **pair, **options)
        front.data.data = front

    def on_data(conn: Stream, data: bytes) -> None:
        world.trouble(conn)
        if conn.data is not None and not conn.data.write(data):  # None: the other side has ended
            conn.pause_reading()

    def on_drain(conn: Stream) -> None:
        world.trouble(conn)
        if conn.data is not None:
            conn.data.resume_reading()

    def on_eof(conn: Stream) -> None:
        world.trouble(conn)
        if conn.data is not None:
            conn.data.write_eof()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        other, conn.data = conn.data, None
        if other is not None:
            other.data = None
            if exc is None:
                other.close()
            else:
                other.abort()
        world.trouble(conn)

    pair: dict[str, Any] = {'on_drain': on_drain, 'on_eof': on_eof, 'on_close': on_close}
    options = limits(world.random)
    back_place = echo_server(world)
    place = Place(world, on_data, on_connect=on_connect, **pair, **options)
    talk_to(world, place, WaitGroup(world, place.server, back_place.server))


def half_closes(world: AnyWorld) -> None:
    """Close one direction and use the other: the server answers after an end of file, or sends first and then ends."""
    first = world.random.random() < 0.5
    greeting = some_bytes(world.random) if first else b''
    pieces_of = new_random(world)
    said: list[bytes] = []

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        conn.data = bytearray()
        if first:
            conn.write(greeting)
            conn.write_eof()

    def on_data(conn: Stream, data: bytes) -> None:
        world.trouble(conn)
        conn.data += data

    def on_eof(conn: Stream) -> None:
        world.trouble(conn)
        asked = bytes(conn.data)
        if asked not in said and not world.faulty:
            world.fail(f'the server received {len(asked)} bytes that no client has sent')
        if not first:
            for piece in cut(pieces_of, asked[::-1]):
                conn.write(piece)
            conn.write_eof()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        world.trouble(conn)

    place = Place(world, on_data, on_connect=on_connect, on_eof=on_eof, on_close=on_close, **limits(world.random))
    group = WaitGroup(world, place.server)
    for _ in range(world.random.randint(1, 8)):
        rng, number = new_random(world), group.add('client')
        words = some_bytes(rng)
        said.append(words)
        expected = greeting if first else words[::-1]
        talker = Talker(world, rng, words, expected, 'eof', partial(group.done, number))
        talker.join(place.connect(**talk(world), **limits(rng)))


def floods(world: AnyWorld) -> None:
    """Send many bytes in both directions at once, with each side reading at its own pace."""
    ours, theirs = (world.random.randbytes(world.random.randint(0, 200_000)) for _ in range(2))
    seed = world.random.getrandbits(64)

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        talker = Talker(world, random.Random(seed), theirs, ours, 'eof')
        talker.join(conn)
        talker.connected()

    place = Place(world, **talk(world, on_connect=on_connect), **limits(world.random))
    group = WaitGroup(world, place.server)
    for _ in range(world.random.randint(1, 3)):
        rng, number = new_random(world), group.add('client')
        talker = Talker(world, rng, ours, theirs, 'eof', partial(group.done, number))
        talker.join(place.connect(**talk(world), **limits(rng)))


def requests(world: AnyWorld) -> None:
    """Connect clients that send one request after another. Answers take some time, and some clients give up."""
    r = world.r

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        conn.data = [Frames(), None]

    def on_data(conn: Stream, data: bytes) -> None:
        world.trouble(conn)
        frames = conn.data[0]
        frames.feed(data)
        while (line := frames.line()) is not None:
            milliseconds, last, text = line.split()
            conn.data[1] = r.call_later(int(milliseconds) / 1000, answer, conn, text[::-1], last == b'last')

    def answer(conn: Stream, text: bytes, last: bool) -> None:
        world.trouble(conn)
        if not conn.closed:
            conn.writelines((text, b'\n'), *((close,) if last else ()))

    def close(conn: Stream) -> None:
        world.trouble(conn)
        conn.close()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        if conn.data is not None and conn.data[1] is not None:
            conn.data[1].cancel()
        world.trouble(conn)

    place = Place(world, on_data, on_connect=on_connect, on_close=on_close, **limits(world.random))
    group = WaitGroup(world, place.server)
    for _ in range(world.random.randint(1, 8)):
        RequestClient(world, place, group)


class RequestClient:
    """A client of `requests`. The server closes the connection after the last answer, or the client gives up."""

    PATIENCE, LATE = 20.0, 3600_000  # the first is in seconds, the second in milliseconds

    def __init__(self, world: AnyWorld, place: Place, group: WaitGroup) -> None:
        self.world = world
        self.group = group
        self.number: int = group.add('requesting client')
        rng = new_random(world)
        self.texts: list[bytes] = [b'%x' % rng.getrandbits(4 << rng.randrange(9)) for _ in range(rng.randint(1, 5))]
        self.delays: list[int] = [rng.choice((0, 0, 1, 5)) for _ in self.texts]
        self.gives_up: bool = rng.random() < 0.3
        if self.gives_up:
            self.delays[-1] = self.LATE
        self.frames: Frames = Frames()
        self.answers: list[bytes] = []
        self.conn: Stream = place.connect(
            self.on_data, on_connect=self.on_connect, on_close=self.on_close, timeout=self.PATIENCE, **limits(rng)
        )
        self.deadline: Timer = world.r.call_later(2 * self.PATIENCE, self.give_up)

    def on_connect(self, conn: Stream) -> None:
        self.world.trouble(conn)
        self.ask()

    def ask(self) -> None:
        number = len(self.answers)
        last = number == len(self.texts) - 1
        self.conn.write(b'%d %s %s\n' % (self.delays[number], b'last' if last else b'more', self.texts[number]))
        self.deadline.reset(0.05 if last and self.gives_up else self.PATIENCE)

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.world.trouble(conn)
        self.frames.feed(data)
        while (line := self.frames.line()) is not None:
            if [line[::-1]] != self.texts[len(self.answers) :][:1]:
                self.world.fail(f'answer {len(self.answers)} is {line!r}, which is wrong')
            self.answers.append(line)
            if len(self.answers) < len(self.texts):
                self.ask()

    def give_up(self) -> None:
        self.conn.close()
        if not (self.gives_up or self.world.faulty):
            self.world.fail(f'a client got no answer in {self.PATIENCE} s')
        self.world.trouble()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.deadline.cancel()
        self.group.done(self.number)
        if not self.world.faulty and (exc is not None or len(self.answers) != len(self.texts) - self.gives_up):
            count, asked = len(self.answers), len(self.texts)
            self.world.fail(f'a client with {count} answers to {asked} requests ended with {exc!r}')
        self.world.trouble(conn)


def publish(world: AnyWorld) -> None:
    """Run a hub that passes the lines from a publisher to all subscribers, some of which pause reading."""
    Hub(world, dying=False)


def publish_to_the_dying(world: AnyWorld) -> None:
    """Run the hub of `publish` with subscribers that may reset their connections."""
    Hub(world, dying=True)


class Hub:
    """The server of `publish`. It also starts the clients: first the subscribers, then the publisher."""

    WELCOME = b'welcome\n'

    def __init__(self, world: AnyWorld, dying: bool) -> None:
        self.world = world
        self.subscribers: dict[Stream, None] = {}
        options = limits(world.random)
        if world.faulty:
            options['max_buffered'] = world.random.choice((1000, 1 << 24))
        self.place: Place = Place(world, self.on_data, on_connect=self.on_connect, on_close=self.on_close, **options)
        self.group: WaitGroup = WaitGroup(world, self.place.server)
        self.publisher: random.Random = new_random(world)
        self.publishing: int = self.group.add('publisher')
        self.news: list[bytes] = [
            b'%x\n' % self.publisher.getrandbits(4 << self.publisher.randrange(14)) for _ in range(10)
        ]
        self.stuck: list[Any] = []
        members = [Subscriber(self, new_random(world), dying) for _ in range(world.random.randint(1, 7))]
        self.unwelcomed: int = len(members)
        for member in members:
            member.join(self.place.connect(**talk(world), idle_timeout=30, **limits(member.rng)))

    def on_connect(self, conn: Stream) -> None:
        self.world.trouble(conn)
        conn.data = Frames(limit=1 << 20)

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.world.trouble(conn)
        conn.data.feed(data)
        while (line := conn.data.line()) is not None:
            if line == b'subscribe':
                self.subscribers[conn] = None
                conn.write(self.WELCOME)
                continue
            for each in self.subscribers:
                try_to_write(each, line + b'\n')

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if conn in self.subscribers:
            del self.subscribers[conn]
        elif not self.unwelcomed:  # the publisher has ended
            for each in self.subscribers:
                each.close()
        self.world.trouble(conn)

    def welcomed(self) -> None:
        """Record that a subscriber was welcomed or has ended. When no other is left, start the publisher."""
        self.unwelcomed -= 1
        if not self.unwelcomed:
            talker = Talker(self.world, self.publisher, b''.join(self.news), b'', 'eof', self.published)
            talker.join(self.place.connect(**talk(self.world)))

    def published(self) -> None:
        """The publisher has ended: resume the subscribers that have paused reading."""
        for each in self.stuck:
            each.resume_reading()
        self.group.done(self.publishing)


class Subscriber(Talker):
    """A client of a `Hub`. It receives all the news, though it may pause first, or it resets its connection early."""

    def __init__(self, hub: Hub, rng: random.Random, dying: bool) -> None:
        expected = b''.join([hub.WELCOME, *hub.news])
        super().__init__(hub.world, rng, b'subscribe\n', expected, 'wait', self.left)
        self.hub = hub
        self.number: int = hub.group.add('subscriber')
        self.waits: bool = True
        self.dies_at: int | None = rng.randrange(len(expected)) if dying and rng.random() < 0.5 else None
        self.sleeps: bool = rng.random() < 0.3

    def hear(self, data: bytes) -> None:
        super().hear(data)
        if self.heard < len(self.hub.WELCOME):
            return
        self._welcomed()
        if self.dies_at is not None and self.heard > self.dies_at:
            self.conn.abort()
        elif self.sleeps:
            self.sleeps = False
            self.conn.pause_reading()
            self.hub.stuck.append(self.conn)

    def ended(self, exc: BaseException | None) -> None:
        if self.dies_at is not None:
            self.expected: bytes = self.expected[: self.heard]
        super().ended(exc)

    def left(self) -> None:
        self.hub.group.done(self.number)
        self._welcomed()

    def _welcomed(self) -> None:
        if self.waits:
            self.waits = False
            self.hub.welcomed()
