"""What the programs are made of: what they ask of their world, places to meet, conversations, and an end.

Owns nothing of the system: a program knows the public names of `reactor` and its `World`. The rule: every decision is
drawn from the world's generator when the program begins, or later from a generator of the one connection it is for. So
it depends neither on how independent connections take turns nor on how their bytes are cut into chunks.

`World.trouble` stands first in the callbacks of a connection, for an exception there ends that connection and is told.
It stands last where an exception ends nothing: in `on_close`, and in the callbacks of timers and other calls.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Protocol

from reactor import ConnectionClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from reactor import Listener, Reactor, Stream


class Goal(Protocol):
    """Something that must happen before a program may be called finished."""

    def met(self) -> None: ...


class AnyWorld(Protocol):
    """Where a program runs: on the real system over loopback, or on a simulated one.

    r                   the reactor, which is running
    random              a seeded generator, from which every decision comes
    faulty              whether faults may happen. Ends with errors are right then; wrong bytes never are
    address()           (host, port) on which nobody listens yet, the host in numbers; port 0: the system chooses
    tls                 contexts for (servers, clients) to talk over TLS with, or None
    stops               how often `run` was stopped, as `drain` does; it was called again then
    name                of the host of address(); it may have other addresses, too
    has_unix            whether there are Unix sockets
    counts_tcp          whether the system counts the bytes of TCP connections, for a minimum rate
    unix_path()         a path for a socket that is not there yet
    trouble(conn)       called in every callback: may raise, and may let time pass
    expect(text)        a `Goal`, for checking liveness
    fail(text)          raises AssertionError: the reactor broke a promise
    raise_signal(number)  send a signal to ourselves
    """

    r: Reactor
    random: random.Random
    faulty: bool
    has_unix: bool
    counts_tcp: bool
    name: str
    stops: int
    tls: Any

    def address(self) -> tuple[str, int]: ...
    def unix_path(self) -> str: ...
    def trouble(self, conn: Any = None) -> None: ...
    def expect(self, text: str) -> Goal: ...
    def fail(self, text: str) -> None: ...
    def raise_signal(self, number: int) -> None: ...


LARGEST = 200_000  # bytes
PROXIES = ('127.0.0.0/8', '::1/128')  # where a world's clients come from


def new_random(world: AnyWorld) -> random.Random:
    """A generator for one connection."""
    return random.Random(world.random.getrandbits(64))


def some_bytes(rng: random.Random, most: int = LARGEST) -> bytes:
    """Mostly few, sometimes many, sometimes none."""
    return rng.randbytes(int((most + 1) ** (rng.random() ** 1.5)) - 1)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """The same in a few pieces, some of them empty."""
    borders = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 2, 9))))
    return [data[begin:end] for begin, end in zip([0, *borders], [*borders, len(data)], strict=True)]


def limits(rng: random.Random) -> dict[str, Any]:
    """Options for connections: how much they read at once, and from when on they ask to hold back."""
    return {'read_size': rng.choice((100, 1000, 65536)), 'high_water': rng.choice((0, 1, 1000, 65536))}


class Place:
    """Where a server listens: a TCP port or a Unix socket, as the dice fall, over TLS where the world has contexts.

    proxied  it is behind proxies: each client says a header when it is connected, and then calls `secure`
    """

    def __init__(
        self,
        world: AnyWorld,
        on_data: Callable[..., object] | None = None,
        proxied: bool = False,
        defer_accept: bool = False,
        **keywords: Any,
    ) -> None:
        self._proxied = proxied
        self._connect: Callable[..., Stream]
        self._secured: dict[str, Any] = {}
        self._target: tuple[Any, ...]
        self.server: Listener
        if world.tls is not None:
            keywords['ssl'], context = world.tls
            self._secured = {'ssl': context, 'server_hostname': 'localhost'}
        if world.random.random() < 0.6 or not world.has_unix:
            address = world.address()
            if proxied:
                keywords['proxy_protocol'] = PROXIES
            self.server = world.r.listen_tcp(*address, on_data, defer_accept=defer_accept, **keywords)
            host, port = (self.server.address or address)[:2]
            self._connect, self._target = world.r.connect_tcp, (world.random.choice((host, host, world.name)), port)
        else:
            path = world.unix_path()
            if proxied:
                keywords['proxy_protocol'] = True
            self.server = world.r.listen_unix(path, on_data, **keywords)
            self._connect, self._target = world.r.connect_unix, (path,)

    def connect(self, on_data: Callable[..., object] | None = None, **keywords: Any) -> Stream:
        """A new client of this server."""
        secured = {} if self._proxied else self._secured
        return self._connect(*self._target, on_data, **keywords, **secured)

    def secure(self, conn: Stream, on_secured: Callable[[Stream], object]) -> None:
        """Begin TLS on a connection that was made in plain text, if this is a place for it."""
        if not self._secured:
            on_secured(conn)
        elif not conn.closed:
            conn.start_tls(self._secured['ssl'], on_secured, server_hostname=self._secured['server_hostname'])


class WaitGroup:
    """What has to come to its end; with the last of it, `handles` are closed, and the program is over."""

    def __init__(self, world: AnyWorld, *handles: Any) -> None:
        self._world = world
        self._handles = handles
        self._goals: dict[int, Goal] = {}
        self._count = 0

    def add(self, text: str) -> int:
        """One thing more; returns the number to call `done` with."""
        self._count += 1
        self._goals[self._count] = self._world.expect(f'{text} {self._count}')
        return self._count

    def done(self, number: int) -> None:
        """It has come to its end, in whatever way."""
        goal = self._goals.pop(number, None)
        if goal is None:
            return self._world.fail(f'part {number} ended twice')
        goal.met()
        if not self._goals:
            for handle in self._handles:
                handle.close()


class Talker:
    """One side of a conversation, as the `data` of its connection: says `words`, hears `expected`, ends as told.

    then    'eof': end our side when all is said; 'close': close when all is said and heard; 'wait' for the peer to end
    leave   called with no arguments at the end, whichever it is

    It says its words in random pieces and in all the ways there are, before it is connected or after, waits for
    `on_drain` when asked to, and pauses reading now and then.
    """

    def __init__(
        self,
        world: AnyWorld,
        rng: random.Random,
        words: bytes,
        expected: bytes,
        then: str,
        leave: Callable[[], object] | None = None,
    ) -> None:
        self.world = world
        self.rng = rng
        self.conn: Stream = None  # type: ignore[assignment]  # until `join`
        self.expected = expected
        self.heard: int = 0  # bytes of them
        self.then = then
        self.leave = leave
        self.pause_every: int | None = rng.choice((None, None, 1 + len(expected) // 3))  # bytes
        self._early = rng.random() < 0.3
        self._connected = self._started = self._peer_ended = False
        self._pieces = deque((piece, rng.randrange(4)) for piece in cut(rng, words))  # and how to write it
        self._told: deque[int] = deque()  # numbers of the writes whose `on_written` is to come
        self._count = 0

    def join(self, conn: Stream) -> Stream:
        """Begin, as the user of this connection."""
        self.conn = conn
        conn.data = self
        if self._early:
            self.say()
        return conn

    def connected(self) -> None:
        """We are connected: begin, unless we have begun already."""
        self._connected = True
        if self._started:
            self._end_if_done()
        else:
            self.say()

    def say(self) -> None:
        """Write on, until asked to hold back."""
        self._started = True
        while self._pieces:
            if not self._write(*self._pieces.popleft()):
                return
        if self.then == 'eof' or self._peer_ended:
            self.conn.write_eof()
        self._end_if_done()

    def hear(self, data: bytes) -> None:
        """Bytes came: exactly the next that were said."""
        before, self.heard = self.heard, self.heard + len(data)
        if data != self.expected[before : self.heard]:
            self.world.fail(f'wrong bytes behind {before}: {data[:40]!r}, not {self.expected[before:][:40]!r}')
        every = self.pause_every
        if every and before // every != self.heard // every:
            self.conn.pause_reading()
            self.world.r.call_later(0.001 * self.rng.randrange(3), self._resume)
        self._end_if_done()

    def peer_ended(self) -> None:
        """The peer has ended its side, for which we waited or not."""
        self._peer_ended = True
        if not self._pieces:
            self.conn.write_eof()

    def wrote(self, conn: Stream, number: int) -> None:
        """A write was accepted by the kernel: always the first of those that wait."""
        if not self._told or self._told.popleft() != number:
            self.world.fail(f'on_written of write {number} out of order')
        self.world.trouble(conn)

    def ended(self, exc: BaseException | None) -> None:
        """The end: without faults it is a clean one, and nothing is missing."""
        if self.leave is not None:
            self.leave()
        if not self.world.faulty:
            missing = len(self.expected) - self.heard
            if exc is not None or missing or self._pieces or self._told:
                self.world.fail(
                    f'ended with {exc!r}; {missing} bytes were not heard, {len(self._pieces)} pieces not said, '
                    f'and on_written did not come for writes {list(self._told)}'
                )

    def _write(self, piece: bytes, way: int) -> bool:
        conn = self.conn
        if way == 0:
            return conn.write(piece)
        number, half = self._count, len(piece) // 2
        self._count += 1
        self._told.append(number)
        if way == 1:
            return conn.write(piece, self.wrote, number)
        if way == 2:
            return conn.writelines((piece[:half], memoryview(piece)[half:]), self.wrote, number)
        ours = bytearray(piece)
        answer = conn.write(ours, self.wrote, number)
        ours[:] = bytes(len(ours))  # it is ours again, whatever waits
        return answer

    def _end_if_done(self) -> None:
        if self.then == 'close' and self._connected and not self._pieces and self.heard == len(self.expected):
            self.conn.close()

    def _resume(self) -> None:
        self.conn.resume_reading()
        self.world.trouble()


def echoing(world: AnyWorld) -> dict[str, Any]:
    """The callbacks of a server that sends back what it hears, no faster than it is taken."""

    def on_data(conn: Stream, data: bytes) -> None:
        world.trouble(conn)
        if not conn.write(data):
            conn.pause_reading()

    def on_drain(conn: Stream) -> None:
        world.trouble(conn)
        conn.resume_reading()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        world.trouble(conn)

    return {'on_data': on_data, 'on_drain': on_drain, 'on_close': on_close}


def talk(world: AnyWorld, **others: Any) -> dict[str, Any]:
    """The callbacks of connections whose `data` is a `Talker`, to be given to `connect_*` and `listen_*`.

    For a listener, `on_connect` has to be another, which makes the Talker.
    """

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        conn.data.connected()

    def on_data(conn: Stream, data: bytes) -> None:
        world.trouble(conn)
        conn.data.hear(data)

    def on_drain(conn: Stream) -> None:
        world.trouble(conn)
        conn.data.say()

    def on_eof(conn: Stream) -> None:
        world.trouble(conn)
        conn.data.peer_ended()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        if conn.data is not None:
            conn.data.ended(exc)
        world.trouble(conn)

    named = {'on_connect': on_connect, 'on_data': on_data, 'on_drain': on_drain, 'on_eof': on_eof, 'on_close': on_close}
    return {**named, **others}


def try_to_write(conn: Stream, data: bytes, *args: Any) -> None:
    """Write, unless we have ended it ourselves."""
    try:
        conn.write(data, *args)
    except ConnectionClosed:
        pass
