"""Programs about beginnings and ends: connections that come and go at once, and everything ended inside everything.

Owns clients that are no model for anybody. The rule: however rudely it is done, each connection ends once, and the
program ends. What exactly happens to each depends on how fast the other side is.
"""

from __future__ import annotations

from typing import Any

from reactor import ConnectTimeout, SelectorFull, TLSError

from .parts import Place, WaitGroup, limits, new_random, some_bytes, try_to_write

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from reactor import Reactor, Stream, Timer

    from .parts import AnyWorld


def churn(world: AnyWorld) -> None:
    """Clients that come and go at once, each in its own way, the next one from where the last is told of its end."""
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
    """A client of `churn` that connects several times."""

    world: AnyWorld
    places: dict[str, Place]
    group: WaitGroup
    rng: random.Random

    def __init__(self, world: AnyWorld, places: dict[str, Place], group: WaitGroup) -> None:
        self.world, self.places, self.group = world, places, group
        self.number: int = group.add('visitor')
        self.rng = new_random(world)
        self.visits: int = self.rng.randint(1, 6)
        self.visit()

    def visit(self) -> None:
        self.visits -= 1
        manner = self.rng.choice(list(MANNERS))
        where, begin, connected = MANNERS[manner]
        timeout = self.rng.choice((0, 0.01, 0.05)) if where == 'deaf' else 20

        def on_connect(conn: Stream) -> None:
            if where == 'gone':
                self.world.fail('connected to a server that is closed')
            self.world.trouble(conn)
            connected(conn)

        def on_close(conn: Stream, exc: BaseException | None) -> None:
            if self.places['deaf'].server.open_connections:
                self.world.fail('a listener has accepted while it was paused')
            if self.visits:
                self.visit()  # its descriptor may be the one that has just become free
            else:
                self.group.done(self.number)
            on_linux = self.world.r.kernel.counts_tcp
            if not self.world.faulty and not isinstance(exc, (ENDS if on_linux else ENDS_OF_OTHERS)[where]):
                self.world.fail(f'{manner!r} ended with {exc!r}')
            self.world.trouble(conn)

        conn = self.places[where].connect(on_connect=on_connect, on_close=on_close, timeout=timeout)
        begin(self, conn)

    def nothing(self, conn: Stream) -> None:
        """Let things happen."""

    def close(self, conn: Stream) -> None:
        conn.close()

    def abort(self, conn: Stream) -> None:
        conn.abort()

    def write_and_close(self, conn: Stream) -> None:
        conn.write(b'x' * 10_000)
        conn.close()

    def close_soon(self, conn: Stream) -> None:
        self.world.r.call_soon(conn.close)

    def abort_later(self, conn: Stream) -> None:
        self.world.r.call_later(0, conn.abort)


def close(conn: Stream) -> None:
    """Said in `on_connect`."""
    conn.close()


def abort(conn: Stream) -> None:
    """Said in `on_connect`."""
    conn.abort()


def speak_and_close(conn: Stream) -> None:
    """Said in `on_connect`."""
    conn.write(b'x' * 10_000)
    conn.close()


def end(conn: Stream) -> None:
    """Said in `on_connect`: hear what the other has to say."""
    conn.write_eof()


# Where to, what to do right after the call, and in on_connect.
MANNERS: dict[str, tuple[str, Callable[[Visitor, Stream], None], Callable[[Stream], None]]] = {
    'close before connected': ('lively', Visitor.close, close),
    'abort before connected': ('lively', Visitor.abort, close),
    'write and close before connected': ('lively', Visitor.write_and_close, close),
    'close soon': ('lively', Visitor.close_soon, end),
    'abort soon': ('lively', Visitor.abort_later, end),
    'close in on_connect': ('lively', Visitor.nothing, close),
    'abort in on_connect': ('lively', Visitor.nothing, abort),
    'write and close in on_connect': ('lively', Visitor.nothing, speak_and_close),
    'end in on_connect': ('lively', Visitor.nothing, end),
    'nobody there': ('gone', Visitor.nothing, close),
    'nobody answers': ('deaf', Visitor.nothing, close),
}


# How the connections to each may end. Unix sockets know no resets: TLS that is aborted there was cut short. Where the
# queue of a Unix socket is full, Linux has the client wait, and the BSDs refuse it.
ENDS: dict[str, tuple[type, ...]] = {
    'lively': (type(None), OSError, TLSError),
    'gone': (OSError,),
    'deaf': (type(None), ConnectTimeout),
}
ENDS_OF_OTHERS: dict[str, Any] = {**ENDS, 'deaf': (type(None), ConnectTimeout, ConnectionRefusedError)}


def closing(world: AnyWorld) -> None:
    """Everything that ends, holds or begins something, inside every kind of callback, done to oneself and to others."""
    Mischief(world)


class Mischief:
    """The state of `closing`: who is there, and what may still be done."""

    world: AnyWorld
    r: Reactor
    rng: random.Random
    beating: Timer

    def __init__(self, world: AnyWorld) -> None:
        self.world, self.r, self.rng = world, world.r, new_random(world)
        self.left: int = self.rng.randrange(300)  # deeds
        self.conns: list[Any] = []
        self.timers: list[Any] = []
        self.places: list[Place] = []
        self.over: bool = False
        self.group: WaitGroup = WaitGroup(world)
        self.part: Any = self.group.add('everybody went home')
        self.listen()
        self.listen()
        for _ in range(self.rng.randint(1, 8)):
            self.connect()
        self.beating = self.r.call_every(0.005, self.beat)

    def act(self, conn: Any = None) -> None:
        """Do something random, to this connection or to another."""
        for _ in range(self.rng.choice((0, 1, 1, 3))):
            if self.left:
                self.left -= 1
                if not self.conns:
                    self.connect()
                other = conn is None or self.rng.random() < 0.5
                self.rng.choice(self.DEEDS)(self, self.rng.choice(self.conns) if other else conn)
        self.world.trouble(conn)

    def callbacks(self) -> dict[str, Any]:
        """Callbacks that act, for a listener or a client; some have no `on_eof`, and some an `on_error`."""

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
        """A timer, a call, a moment between two events. When all deeds are done, everybody has to go."""
        if not self.left:
            self.curfew()
        self.act()

    def called(self, part: int) -> None:
        """A call that was asked for."""
        self.group.done(part)
        self.act()

    def on_written(self, conn: Stream) -> None:
        """Bytes of a deed were accepted."""
        self.act(conn)

    def curfew(self) -> None:
        """Everybody has to go, whatever they are doing."""
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
        """After the curfew, the last to go has put out the light."""
        if self.over and not self.conns and self.part is not None:
            self.group.done(self.part)
            self.part = None

    # -- the deeds

    def connect(self, conn: Any = None) -> None:
        """Start a client, of a server that may be closed by now."""
        if len(self.conns) < 30:
            self.conns.append(self.rng.choice(self.places).connect(**self.callbacks()))

    def listen(self, conn: Any = None) -> None:
        if len(self.places) < 5:
            try:
                self.places.append(Place(self.world, **self.callbacks()))
            except (OSError, SelectorFull):
                if not self.world.faulty:  # no descriptor is left
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
