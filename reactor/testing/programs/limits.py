"""Programs that reach limits: time limits, and the number of connections.

A connection within its limits must stay open. A connection that exceeds a limit must end with the right exception; the
checks of the simulation test that it ends in time.
"""

from __future__ import annotations

from typing import Any

from reactor import IdleTimeout, ReadTimeout, Stream

from .parts import AnyWorld, Place, WaitGroup, limits, new_random

LOOKS = 1.1  # seconds: the reactor checks each limit at least once in this time


def time_limits(world: AnyWorld) -> None:
    """Connect clients that are silent, or send just often enough, or pause reading."""

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        world.trouble(conn)

    place = Place(world, on_close=on_close, **limits(world.random))
    group = WaitGroup(world, place.server)
    for _ in range(world.random.randint(1, 6)):
        Silent(world, place, group)


class Silent:
    """A client of `time_limits`. Most clients send a few times before they fall silent."""

    def __init__(self, world: AnyWorld, place: Place, group: WaitGroup) -> None:
        self.world = world
        self.group = group
        self.number: int = group.add('silent client')
        rng = new_random(world)
        self.patience: float = rng.choice((0.1, 0.25, 0.4))
        self.kind = rng.choice(('read', 'paused', 'idle', 'write', 'changed'))
        self.words: int = rng.randrange(5)
        self.began: float = world.r.now
        options: dict[str, dict[str, Any]] = {
            'read': {'read_timeout': self.patience},
            'paused': {'read_timeout': self.patience},
            'idle': {'idle_timeout': self.patience},
            'write': {'write_timeout': self.patience},
            'changed': {'idle_timeout': 1000},
        }
        place.connect(on_connect=self.on_connect, on_close=self.on_close, timeout=20, **options[self.kind])

    def on_connect(self, conn: Stream) -> None:
        self.world.trouble(conn)
        later = self.world.r.call_later
        if self.kind == 'paused':
            conn.pause_reading()
            later(LOOKS + self.patience, conn.resume_reading)
        elif self.kind == 'changed':
            conn.set_timeouts(idle=self.patience)
        elif self.kind == 'write':
            later(LOOKS + self.patience, conn.close)
        later(self.patience / 2, self.speak, conn)

    def speak(self, conn: Stream) -> None:
        if self.words and not conn.closed:
            self.words -= 1
            conn.write(b'x')
            self.world.r.call_later(self.patience / 2, self.speak, conn)
        self.world.trouble()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.group.done(self.number)
        ends = {'read': ReadTimeout, 'paused': ReadTimeout, 'write': type(None)}
        if not self.world.faulty and type(exc) is not ends.get(self.kind, IdleTimeout):
            self.world.fail(f'a client of kind {self.kind!r} ended with {exc!r}')
        if not self.world.faulty and self.world.r.now > self.began + 60:
            seconds = self.world.r.now - self.began
            self.world.fail(f'a client of kind {self.kind!r} ended {seconds:.1f} s after it had begun')
        self.world.trouble(conn)


def crowd(world: AnyWorld) -> None:
    """Connect many clients at once, each of which closes when it is connected."""

    def on_connect(conn: Stream) -> None:
        world.trouble(conn)
        conn.close()

    def on_close(conn: Stream, exc: BaseException | None) -> None:
        group.done(conn.data)
        if exc is not None and not world.faulty:
            world.fail(f'a client ended with {exc!r}')
        world.trouble(conn)

    most = world.random.choice((None, None, 5))
    place = Place(world, max_connections=most, **limits(world.random))
    group = WaitGroup(world, place.server)
    for _ in range(world.random.choice((5, 10, 80) if world.tls is None else (5, 10))):
        conn = place.connect(on_connect=on_connect, on_close=on_close)
        conn.data = group.add('client')
