"""A program that shuts a server down with `drain`, while clients send requests, wait for answers, or are idle.

- A client that was accepted gets an answer to each request that it sent in time.
- An idle client is not closed before the lame-duck time is over.
- When the timeout of `drain` is over, everything has ended.
- The drain callback is called once, before an idle client is closed, with the seconds that are left.
"""

from __future__ import annotations

from random import Random

from reactor import Stream

from .parts import AnyWorld, Place, WaitGroup, new_random

REQUEST = 10  # bytes of a request: the time until the answer in ms, and the size of the answer
SOON = 1.5  # seconds: a server that waits for nothing stops within this time


def drain(world: AnyWorld) -> None:
    """Shut down a server that is idle or busy. This program must run alone, because `drain` ends other programs."""
    Service(world)


class Service:
    """The server. Answers end with b'+', but the last answer on a connection ends with b'-'."""

    def __init__(self, world: AnyWorld) -> None:
        self.world = world
        rng = new_random(world)
        self.lame_duck = rng.choice((0, 0, 0.9))
        self.timeout: float = self.lame_duck + rng.choice((0.05, 30, 30, 30))
        self.patient: bool = not world.faulty and self.timeout > 10  # True: no answer may be lost
        self.closes: bool = rng.random() < 0.5  # the server closes each connection after the last answer
        self.slow = rng.choice((0, 0, 0.8))  # seconds until the server reads from a new client
        self.began: float | None = None  # when `drain` was called
        self.was_open: bool = False  # whether the listener was open then
        self.callbacks: int = 0  # calls of the drain callback
        world.r.add_drain_callback(self.on_drain_begin)
        most = rng.choice((None, None, 1, 3))
        self.place: Place = Place(
            world, self.on_data, on_connect=self.on_connect, on_close=self.on_close, max_connections=most
        )
        self.group: WaitGroup = WaitGroup(world)
        self.number: int = self.group.add('service')
        self.clients: int = rng.randint(1, 5)
        for _ in range(self.clients):
            Client(self, new_random(world))
        world.r.call_later(rng.choice((0, 0.001, 0.1)), self.shut_down)

    def shut_down(self) -> None:
        r = self.world.r
        before, self.began, self.was_open = r.draining, r.now, not self.place.server.closed
        r.drain(self.timeout, self.lame_duck)
        if (before, r.draining) != (False, True):
            self.world.fail(f'`draining` was {before} before drain(), and is {r.draining} after it')
        if not self.patient:
            r.call_later(self.timeout + SOON, self.check_over)
        self.expect_end()
        self.world.trouble()

    def on_drain_begin(self, seconds: float) -> None:
        self.callbacks += 1
        if (
            self.began is None
            or self.callbacks > 1
            or not 0 <= seconds < self.timeout + 1e-6
            or (self.was_open and self.place.server.closed and not self.world.faulty)  # an error of accept closes it
        ):
            began, calls, server = self.began, self.callbacks, self.place.server
            self.world.fail(f'drain callback: call {calls}, {seconds} s left, drain began at {began}, {server!r}')
        self.world.trouble()

    def expect_end(self) -> None:
        """If the last client has ended, expect the server to stop right after the lame-duck time."""
        if self.patient and not self.clients and self.began is not None:
            r = self.world.r
            r.call_at(max(r.now, self.began + self.lame_duck) + SOON, self.check_over)

    def check_over(self) -> None:
        """Check that the listener is closed, that no connection is open, and that `run` was stopped."""
        server, stops = self.place.server, self.world.stops
        # With faults, an interrupt may leave `run` in the turn in which drain() stops it. Then the stop is not counted.
        if not server.closed or server.open_connections or not (stops or self.world.faulty):
            self.world.fail(f'after the drain, the listener is {server!r}, and run() was stopped {stops} times')
        if self.callbacks != 1:
            self.world.fail(f'the drain callback was called {self.callbacks} times')
        self.group.done(self.number)

    def on_connect(self, conn: Stream) -> None:
        self.world.trouble(conn)
        conn.data = bytearray()
        if self.slow:
            conn.pause_reading()
            self.world.r.call_later(self.slow, conn.resume_reading)

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.world.trouble(conn)
        conn.busy = True
        conn.data += data
        if len(conn.data) == REQUEST:
            delay, size = map(int, conn.data.split())
            conn.data.clear()
            self.world.r.call_later(delay / 1000, self.answer, conn, size)

    def answer(self, conn: Stream, size: int) -> None:
        if not conn.closed:
            last = self.world.r.draining
            conn.write(b'x' * size + (b'-' if last else b'+'))
            conn.busy = False
            if last and self.closes:
                conn.close()
        self.world.trouble()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.world.trouble(conn)


class Client:
    """A client that sends up to three requests. Then it closes, or waits until the server closes."""

    def __init__(self, service: Service, rng: Random) -> None:
        self.service = service
        self.world: AnyWorld = service.world
        self.number: int = service.group.add('client')
        times, sizes = (0, 100, 900), (0, 10, 3000)
        self.todo: list[bytes] = [
            b'%04d %04d\n' % (rng.choice(times), rng.choice(sizes)) for _ in range(rng.randrange(4))
        ]
        self.stays: bool = rng.random() < 0.5
        self.thinks = rng.choice((0, 0.05))  # seconds between an answer and the next request
        self.connected: bool = False
        self.waits: bool = False
        self.left: bool = False
        self.world.r.call_later(rng.choice((0, 0, 0.05, 0.4)), self.connect)

    def connect(self) -> None:
        callbacks = {'on_connect': self.on_connect, 'on_close': self.on_close}
        self.service.place.connect(self.on_data, timeout=20, **callbacks)
        self.world.trouble()

    def on_connect(self, conn: Stream) -> None:
        self.connected = True
        self.world.trouble(conn)
        self.ask(conn)

    def ask(self, conn: Stream) -> None:
        if self.todo and not conn.closed:
            self.waits = True
            conn.write(self.todo.pop())
        elif not self.stays:
            self.leave(conn)

    def leave(self, conn: Stream) -> None:
        self.left = True
        conn.close()

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.world.trouble(conn)
        if data.endswith(b'-'):
            self.waits = False
            self.leave(conn)
        elif data.endswith(b'+'):
            self.waits = False
            self.world.r.call_later(self.thinks, self.ask, conn)

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        service, now = self.service, self.world.r.now
        if service.patient:
            began = service.began
            if self.waits or (exc is not None and (self.connected or began is None)):
                waits = 'was waiting for an answer' if self.waits else 'was not waiting for an answer'
                self.world.fail(f'a client ended with {exc!r} while it {waits}')
            if self.connected and not self.left and (began is None or now < began + service.lame_duck):
                until = f'{began} + {service.lame_duck}'
                self.world.fail(f'an idle client was closed at {now}, before the lame-duck time was over at {until}')
        service.clients -= 1
        service.group.done(self.number)
        service.expect_end()
        self.world.trouble(conn)
