"""The parts that programs share: the world they run in, servers, conversations, and the end of a program.

- A program uses only its world and the public names of `reactor`.
- Decisions at the start of the program are drawn from the world's generator. Later decisions are drawn from a generator
  that belongs to one connection. So these do not depend on the order in which independent connections run, nor on how
  their bytes are cut into chunks.
- `world.trouble` is called first in the callbacks of a connection: an exception there ends the connection, and is
  reported. Where an exception ends nothing (in `on_close`, timers and other calls), `world.trouble` is called last.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from reactor import ConnectionClosed, Listener, Reactor, Stream


class Goal(Protocol):
    """An event that must happen before the program ends."""

    def met(self) -> None: ...


class AnyWorld(Protocol):
    """The world of a program: the real system over loopback, or a simulated one.

    r                   the reactor, which is running
    random              a seeded generator for all decisions
    faulty              whether faults may happen; connections may then end with errors, but bytes are never wrong
    address()           a numeric host and a port at which there is no listener; port 0: the system chooses
    tls                 SSL contexts for (servers, clients) if the programs use TLS, otherwise None
    stops               how many times `run` was stopped, for example by `drain`; it was called again each time
    name                the host name of address(); the name may have other addresses, too
    has_unix            whether there are Unix sockets
    counts_tcp          whether the system counts the bytes of TCP connections, which a minimum rate needs
    unix_path()         a path at which there is no socket yet
    trouble(conn)       called in every callback; it may raise an exception, or let time pass
    expect(text)        returns a `Goal` that must be met before the program ends
    fail(text)          reports that the reactor broke a promise
    raise_signal(number)  sends a signal to this process
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


LARGEST = 200_000  # the default limit of `some_bytes`
PROXIES = ('127.0.0.0/8', '10.0.0.0/8', '::1/128')  # in all worlds, clients have addresses in these networks


def new_random(world: AnyWorld) -> random.Random:
    """Return a new generator, usually for one connection."""
    return random.Random(world.random.getrandbits(64))


def some_bytes(rng: random.Random, most: int = LARGEST) -> bytes:
    """Return random bytes: mostly few, sometimes many, sometimes none."""
    return rng.randbytes(int((most + 1) ** (rng.random() ** 1.5)) - 1)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Cut bytes into a few pieces, some of which may be empty."""
    borders = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 2, 9))))
    return [data[begin:end] for begin, end in zip([0, *borders], [*borders, len(data)], strict=True)]


def limits(rng: random.Random) -> dict[str, Any]:
    """Draw options for connections: how much they read at once, and their high-water mark."""
    return {'read_size': rng.choice((100, 1000, 65536)), 'high_water': rng.choice((0, 1, 1000, 65536))}


class Place:
    """A listener and the way to connect to it: TCP or a Unix socket, at random, and TLS if the world has contexts.

    proxied  each client must send a PROXY header when it is connected, and then call `secure`
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
        """Connect a new client."""
        secured = {} if self._proxied else self._secured
        return self._connect(*self._target, on_data, **keywords, **secured)

    def secure(self, conn: Stream, on_secured: Callable[[Stream], object]) -> None:
        """Start TLS on a plain-text connection if this world uses TLS, then call `on_secured`."""
        if not self._secured:
            on_secured(conn)
        elif not conn.closed:
            conn.start_tls(self._secured['ssl'], on_secured, server_hostname=self._secured['server_hostname'])


class WaitGroup:
    """The parts of a program that must end. When all have ended, `handles` are closed, so that the program ends."""

    def __init__(self, world: AnyWorld, *handles: Any) -> None:
        self._world = world
        self._handles = handles
        self._goals: dict[int, Goal] = {}
        self._count = 0

    def add(self, text: str) -> int:
        """Add a part; return the number to call `done` with."""
        self._count += 1
        self._goals[self._count] = self._world.expect(f'{text} {self._count}')
        return self._count

    def done(self, number: int) -> None:
        """Record that a part has ended."""
        goal = self._goals.pop(number, None)
        if goal is None:
            return self._world.fail(f'part {number} ended twice')
        goal.met()
        if not self._goals:
            for handle in self._handles:
                handle.close()


class Talker:
    """One side of a conversation, kept in `data` of its connection: it sends `words` and expects to receive `expected`.

    then    'eof': call `write_eof` after sending; 'close': close after sending and receiving; 'wait': wait for the
            peer to close the connection
    leave   called without arguments when the connection ends

    It writes in random pieces, with all write methods, before or after it is connected. It waits for `on_drain` when a
    write returns False, and pauses reading now and then.
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
        self.heard: int = 0  # bytes received
        self.then = then
        self.leave = leave
        self.pause_every: int | None = rng.choice((None, None, 1 + len(expected) // 3))  # bytes between two pauses
        self._early = rng.random() < 0.3
        self._connected = self._started = self._peer_ended = False
        self._pieces = deque((piece, rng.randrange(4)) for piece in cut(rng, words))  # pieces, and a way to write each
        self._unwritten: deque[int] = deque()  # numbers of the writes whose `on_written` is still to be called
        self._count = 0

    def join(self, conn: Stream) -> Stream:
        """Set the connection that this talker uses. Some talkers, drawn at random, begin to write at once."""
        self.conn = conn
        conn.data = self
        if self._early:
            self.say()
        return conn

    def connected(self) -> None:
        """Record that the connection is open, and begin to write, unless `join` has begun already."""
        self._connected = True
        if self._started:
            self._end_if_done()
        else:
            self.say()

    def say(self) -> None:
        """Write until a write returns False, and end our side after the last piece."""
        self._started = True
        while self._pieces:
            if not self._write(*self._pieces.popleft()):
                return
        if self.then == 'eof' or self._peer_ended:
            self.conn.write_eof()
        self._end_if_done()

    def hear(self, data: bytes) -> None:
        """Check received bytes: they must be the next bytes of `expected`."""
        before, self.heard = self.heard, self.heard + len(data)
        if data != self.expected[before : self.heard]:
            self.world.fail(f'wrong bytes at {before}: {data[:40]!r}, not {self.expected[before:][:40]!r}')
        every = self.pause_every
        if every and before // every != self.heard // every:
            self.conn.pause_reading()
            self.world.r.call_later(0.001 * self.rng.randrange(3), self._resume)
        self._end_if_done()

    def peer_ended(self) -> None:
        """Record the peer's end of file, and end our side if all pieces are written."""
        self._peer_ended = True
        if not self._pieces:
            self.conn.write_eof()

    def wrote(self, conn: Stream, number: int) -> None:
        """Check that `on_written` is called in the order of the writes."""
        if not self._unwritten or self._unwritten.popleft() != number:
            self.world.fail(f'on_written of write {number} was called out of order')
        self.world.trouble(conn)

    def ended(self, exc: BaseException | None) -> None:
        """Handle the end of the connection: without faults, it must be clean, and all bytes must have arrived."""
        if self.leave is not None:
            self.leave()
        if not self.world.faulty:
            missing = len(self.expected) - self.heard
            if exc is not None or missing or self._pieces or self._unwritten:
                self.world.fail(
                    f'a connection ended with {exc!r}; {missing} bytes were not received, {len(self._pieces)} pieces '
                    f'were not written, and on_written was not called for writes {list(self._unwritten)}'
                )

    def _write(self, piece: bytes, way: int) -> bool:
        conn = self.conn
        if way == 0:
            return conn.write(piece)
        number, half = self._count, len(piece) // 2
        self._count += 1
        self._unwritten.append(number)
        if way == 1:
            return conn.write(piece, self.wrote, number)
        if way == 2:
            return conn.writelines((piece[:half], memoryview(piece)[half:]), self.wrote, number)
        ours = bytearray(piece)
        answer = conn.write(ours, self.wrote, number)
        ours[:] = bytes(len(ours))  # after `write`, the caller may change the buffer
        return answer

    def _end_if_done(self) -> None:
        if self.then == 'close' and self._connected and not self._pieces and self.heard == len(self.expected):
            self.conn.close()

    def _resume(self) -> None:
        self.conn.resume_reading()
        self.world.trouble()


def echoing(world: AnyWorld) -> dict[str, Any]:
    """Return the callbacks of an echo server that pauses reading while its client reads too slowly."""

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
    """Return the callbacks of connections whose `data` is a `Talker`, for `connect_*` and `listen_*`.

    A listener needs a different `on_connect`, which makes the `Talker`.
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
    """Write, unless the program has ended the connection itself."""
    try:
        conn.write(data, *args)
    except ConnectionClosed:
        pass
