"""Programs with connections that begin and end in unusual ways: at once, by a reset, or in each other's callbacks.

Each connection must end exactly once, and the program must end. How a connection ends depends on how fast its peer is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from reactor import ConnectTimeout, Reactor, SelectorFull, Stream, Timer, TLSError

from .parts import AnyWorld, Place, WaitGroup, limits, new_random, some_bytes, try_to_write


def churn(world: AnyWorld) -> None:
    """Connect clients that end at once, in various ways. Most of them connect again, from within `on_close`."""
    greeting, manner = some_bytes(world.random, 5000), world.random.choice(('stay', 'close', 'abort'))

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        conn.write(greeting)
        if manner != 'stay':
            (conn.close if manner == 'close' else conn.abort)()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        world.trouble(conn)

    lively = Place(world, on_connect=on_connect, on_close=on_close, **limits(world.random))
    deaf = Place(world, backlog=1)
    deaf.server.pause()
    gone = Place(world)
    gone.server.close()
    group = WaitGroup(world, lively.server, deaf.server)
    for _ in range(world.random.randint(1, 8)):
        Visitor(world, {'lively': lively, 'deaf': deaf, 'gone': gone}, group)


class Visitor:
    """A client of `churn` that connects up to six times."""

    def __init__(self, world: AnyWorld, places: dict[str, Place], group: WaitGroup) -> None:
        self.world = world
        self.places = places
        self.group = group
        self.number: int = group.add('client')
        self.rng: random.Random = new_random(world)
        self.visits: int = self.rng.randint(1, 6)
        self.visit()

    def visit(self) -> None:
        self.visits -= 1
        manner = self.rng.choice(list(MANNERS))
        where, begin, connected = MANNERS[manner]
        timeout = self.rng.choice((0, 0.01, 0.05)) if where == 'deaf' else 20

        def on_connect(conn: Stream) -> None:
            if where == 'gone':
                self.world.fail('a client was connected to a closed server')
            self.world.trouble(conn)
            connected(conn)

        def on_close(conn: Stream, exc: BaseException | None) -> None:
            if self.places['deaf'].server.open_connections:
                self.world.fail('a listener accepted a client while it was paused')
            if self.visits:
                self.visit()  # the new descriptor may have the number of the old one
            else:
                self.group.done(self.number)
            on_linux = self.world.r.kernel.counts_tcp
            if not self.world.faulty and not isinstance(exc, (ENDS if on_linux else ENDS_OF_OTHERS)[where]):
                self.world.fail(f'the connection of {manner!r} ended with {exc!r}')
            self.world.trouble(conn)

        conn = self.places[where].connect(on_connect=on_connect, on_close=on_close, timeout=timeout)
        begin(conn)


def nothing(conn: Stream) -> None:
    """Do nothing right after the connect call."""


def close(conn: Stream) -> None:
    """Close the connection."""
    conn.close()


def close_soon(conn: Stream) -> None:
    """Close the connection in the phase of `call_soon`."""
    conn.loop.call_soon(conn.close)


def abort(conn: Stream) -> None:
    """Abort the connection."""
    conn.abort()


def abort_soon(conn: Stream) -> None:
    """Abort the connection in the phase of the timers."""
    conn.loop.call_later(0, conn.abort)


def write_and_close(conn: Stream) -> None:
    """Write, and close before all bytes are sent."""
    conn.write(b'x' * 10_000)
    conn.close()


def end(conn: Stream) -> None:
    """End the client's side, and receive the bytes that the server sends."""
    conn.write_eof()


# For each way to end: the server, the action right after the connect call, and the action in `on_connect`.
MANNERS: dict[str, tuple[str, Callable[[Stream], None], Callable[[Stream], None]]] = {
    'close before connected': ('lively', close, close),
    'abort before connected': ('lively', abort, close),
    'write and close before connected': ('lively', write_and_close, close),
    'close soon': ('lively', close_soon, end),
    'abort soon': ('lively', abort_soon, end),
    'close in on_connect': ('lively', nothing, close),
    'abort in on_connect': ('lively', nothing, abort),
    'write and close in on_connect': ('lively', nothing, write_and_close),
    'end in on_connect': ('lively', nothing, end),
    'no listener': ('gone', nothing, close),
    'no answer': ('deaf', nothing, close),
}


# How connections to each server may end. Unix sockets have no resets, so an aborted TLS connection ends with TLSError.
# If the queue of a Unix socket is full, the client waits on Linux and is refused on the BSDs.
ENDS: dict[str, tuple[type, ...]] = {
    'lively': (type(None), OSError, TLSError),
    'gone': (OSError,),
    'deaf': (type(None), ConnectTimeout),
}
ENDS_OF_OTHERS: dict[str, Any] = {**ENDS, 'deaf': (type(None), ConnectTimeout, ConnectionRefusedError)}


def closing(world: AnyWorld) -> None:
    """Begin, pause and end connections in every kind of callback, both of the same connection and of others."""
    Mischief(world)


class Mischief:
    """The state of `closing`: the connections, timers and listeners, and how many actions are left."""

    def __init__(self, world: AnyWorld) -> None:
        self.world = world
        self.r: Reactor = world.r
        self.rng: random.Random = new_random(world)
        self.left: int = self.rng.randrange(300)
        self.conns: list[Any] = []
        self.timers: list[Any] = []
        self.places: list[Place] = []
        self.over: bool = False
        self.group: WaitGroup = WaitGroup(world)
        self.part: Any = self.group.add('end of all connections')
        self.listen()
        self.listen()
        for _ in range(self.rng.randint(1, 8)):
            self.connect()
        self.beating: Timer = self.r.call_every(0.005, self.beat)

    def act(self, conn: Any = None) -> None:
        """Perform random actions on this connection or on others."""
        for _ in range(self.rng.choice((0, 1, 1, 3))):
            if self.left:
                self.left -= 1
                if not self.conns:
                    self.connect()
                other = conn is None or self.rng.random() < 0.5
                self.rng.choice(self.DEEDS)(self, self.rng.choice(self.conns) if other else conn)
        self.world.trouble(conn)

    def callbacks(self) -> dict[str, Any]:
        """Return callbacks that call `act`, for a listener or a client. Some are left out at random."""

        def on_event(conn: Stream, *args: Any) -> None:
            self.act(conn)

        named: dict[str, Any] = {'on_connect': self.on_connect, 'on_close': self.on_close}
        for name, likely in ('on_data', 0.9), ('on_drain', 0.9), ('on_eof', 0.5), ('on_error', 0.2):
            if self.rng.random() < likely:
                named[name] = on_event
        return {**named, **limits(self.rng)}

    def on_connect(self, conn: Stream) -> None:
        if conn not in self.conns:
            self.conns.append(conn)
        if self.over:
            conn.abort()
        self.act(conn)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if conn in self.conns:
            self.conns.remove(conn)
        self.look_for_the_end()
        self.act()

    def beat(self) -> None:
        """Call `act` from a timer. When no actions are left, end everything."""
        if not self.left:
            self.curfew()
        self.act()

    def called(self, part: int) -> None:
        """Call `act` from a scheduled call."""
        self.group.done(part)
        self.act()

    def on_written(self, conn: Stream) -> None:
        """Call `act` from `on_written`."""
        self.act(conn)

    def curfew(self) -> None:
        """End all connections, listeners and timers."""
        self.over, self.left = True, 0
        for timer in [self.beating, *self.timers]:
            timer.cancel()
        for place in self.places:
            place.server.close()
        for conn in self.conns:
            conn.abort()
        self.look_for_the_end()
        self.world.trouble()

    def look_for_the_end(self) -> None:
        """After `curfew`, record the end of the last connection."""
        if self.over and not self.conns and self.part is not None:
            self.group.done(self.part)
            self.part = None

    # -- the random actions

    def connect(self, conn: Any = None) -> None:
        """Connect a client to a server that may be closed already."""
        if len(self.conns) < 30:
            self.conns.append(self.rng.choice(self.places).connect(**self.callbacks()))

    def listen(self, conn: Any = None) -> None:
        if len(self.places) < 5:
            try:
                self.places.append(Place(self.world, **self.callbacks()))
            except (OSError, SelectorFull):
                if not self.world.faulty:  # faults include a lack of descriptors
                    raise

    def stop_listening(self, conn: Any) -> None:
        self.rng.choice(self.places).server.close()

    def close(self, conn: Any) -> None:
        conn.close()

    def abort(self, conn: Any) -> None:
        conn.abort()

    def end(self, conn: Any) -> None:
        conn.write_eof()

    def write(self, conn: Any) -> None:
        try_to_write(conn, some_bytes(self.rng, 50_000), self.on_written)

    def pause(self, conn: Any) -> None:
        conn.pause_reading()

    def resume(self, conn: Any) -> None:
        conn.resume_reading()

    def marks(self, conn: Any) -> None:
        conn.set_write_limits(self.rng.randrange(1, 1000), 0)

    def call_soon(self, conn: Any) -> None:
        self.r.call_soon(self.called, self.group.add('call'))

    def call_later(self, conn: Any) -> None:
        self.timers.append(self.r.call_later(self.rng.choice((0, 0.001, 0.1)), self.beat))

    def cancel(self, conn: Any) -> None:
        if self.timers:
            self.rng.choice(self.timers).cancel()

    DEEDS = (
        close, close, abort, end, write, write, write, pause, resume, connect, connect,
        listen, stop_listening, marks, call_soon, call_later, cancel,
    )  # fmt: skip
