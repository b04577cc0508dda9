"""A crowd of handles whose callbacks act on each other; this module has the crowd and its connections.

Each handle has an actor: an object that acts on the handle at random, and has a small model of the handle's promises,
written from the documentation. All streams send the same endless text, so received bytes show their position in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reactor import ConnectionClosed, Limits, Stream

from .admission import header
from .parts import AnyWorld, Goal, Place, new_random

if TYPE_CHECKING:
    from reactor import Reactor, Timer

TEXT = bytes(range(251)) * 1200  # 251 is prime, so a lost or doubled chunk of a common size is noticed
PERIOD = 251
MOST = 14  # the most handles that are open at once
END = 20.0  # seconds after which all handles are closed


class Crowd:
    """The handles, and how many actions are left. After the last action, all handles are closed.

    kinds  functions that open handles other than connections: each takes the crowd, and returns an actor or None
    """

    world: AnyWorld
    r: Reactor
    rng: random.Random
    beat: Timer

    def __init__(self, world: AnyWorld, kinds: tuple[Callable[[Crowd], Any], ...] = ()) -> None:
        self.world, self.r, self.rng = world, world.r, new_random(world)
        self.left = self.rng.choice((30, 100, 300))
        self.actors: list[Any] = []
        self.places: list[tuple[Place, bool]] = []
        self.goals: dict[int, Goal] = {}
        self.over: bool = False
        self.began: float = world.r.now
        self._numbers = 0
        self._kinds = (Side.open, Side.open, Side.open, *kinds)

    def begin(self) -> None:
        """Open a few handles, and start a timer that acts on them even if nothing else happens."""
        self.beat = self.r.call_every(self.rng.choice((0.002, 0.01)), self.tick)
        for _ in range(self.rng.randint(1, 3)):
            self.open_place()
        for _ in range(self.rng.randint(3, MOST)):
            self.open()

    def expect(self, text: str) -> int:
        """Expect an event; return the number to call `met` with."""
        self._numbers += 1
        self.goals[self._numbers] = self.world.expect(f'{text} {self._numbers}')
        return self._numbers

    def met(self, number: int) -> None:
        """Record that an expected event has happened. The event must not happen twice."""
        goal = self.goals.pop(number, None)
        if goal is None:
            self.fail(f'part {number} ended twice')
        else:
            goal.met()
        if self.over and not self.goals and self.beat.deadline is not None:
            self.beat.cancel()

    def fail(self, text: str) -> None:
        """Report that the reactor broke a promise."""
        self.world.fail(text)

    def tick(self) -> None:
        """Act on a few handles, from the timer of the crowd. End everything after END seconds."""
        if self.r.now - self.began > END:
            self.left = 0
        self.meddle()
        self.world.trouble()

    def meddle(self) -> None:
        """Act on a few of the handles."""
        for _ in range(self.rng.choice((0, 1, 1, 2, 4))):
            if self.left <= 0:
                self.end()
                return
            self.left -= 1
            self.actors[:] = [actor for actor in self.actors if not actor.over]
            choice = self.rng.random()
            if choice < 0.15 or not self.actors:
                self.open()
            elif choice < 0.25:
                self.act_on_place()
            else:
                self.rng.choice(self.actors).act(self.rng)

    def open(self) -> None:
        """Open one more handle, unless there are enough handles or the system is out of descriptors."""
        if len(self.actors) >= MOST or self.over:
            return
        try:
            actor = self.rng.choice(self._kinds)(self)
        except OSError:
            if not self.world.faulty:
                raise
            return
        if actor is not None:
            self.actors.append(actor)

    def open_place(self) -> None:
        """Open a listener with random options."""
        rng = self.rng
        proxied = self.world.tls is None and rng.random() < 0.2
        keywords: dict[str, Any] = {}
        if rng.random() < 0.3:
            keywords['max_connections'] = rng.choice((1, 3))
        if rng.random() < 0.3:
            keywords['limits'] = Limits(connections=rng.choice((2, 10)), lifetime=rng.choice((None, 2)))
        if rng.random() < 0.3:
            keywords['read_size'] = rng.choice((100, 1000))
        place = Place(
            self.world, on_connect=Side.accepted_by(self), on_accept_error=self.on_accept_error,
            proxied=proxied, defer_accept=rng.random() < 0.2, **keywords,
        )  # fmt: skip
        self.places.append((place, proxied))

    def on_accept_error(self, server: Any, exc: Exception) -> None:
        """Act on a few handles, from `on_accept_error` of a listener."""
        self.meddle()
        self.world.trouble()

    def act_on_place(self) -> None:
        """Pause, resume, limit or close a listener, or open another one."""
        rng = self.rng
        place, _ = rng.choice(self.places)
        server, action = place.server, rng.randrange(6)
        if action == 0:
            server.pause()
        elif action == 1 and not server.closed:
            server.resume()
        elif action == 2:
            server.max_connections = rng.choice((None, 0, 1, 3))
        elif action == 3:
            refer(server, rng)
        elif action == 4 and rng.random() < 0.3:
            server.close()
            if not server.closed or server.address is not None:
                self.fail('a closed listener has `closed` False, or an address')
        elif len(self.places) < 4 and not self.over:
            try:
                self.open_place()
            except OSError:
                if not self.world.faulty:
                    raise

    def end(self) -> None:
        """Close all handles in a random order."""
        if self.over:
            return
        self.over = True
        actors, places = self.actors[:], self.places[:]
        self.rng.shuffle(actors)
        newcomers = {place.server.address for place, _ in places} - {None}
        for place, _ in places:
            place.server.close()
        known = {id(actor.conn) for actor in actors if isinstance(actor, Side)}
        for handle in self.r.handles():  # connections that were accepted, but whose `on_connect` is still to be called
            if isinstance(handle, Stream) and id(handle) not in known and handle.sockname in newcomers:
                handle.abort()
        for actor in actors:
            actor.close(self.rng)
        if not self.goals:
            self.beat.cancel()


def refer(handle: Any, rng: random.Random) -> None:
    """Call `ref` or `unref` at random. The timer of the crowd keeps the loop running anyway."""
    if rng.random() < 0.5:
        handle.unref()
    else:
        handle.ref()


class Side:
    """One end of a connection. The program writes to it, pauses it, and ends it in every possible way."""

    over: bool
    paused: bool
    closed_by_us: bool
    peer_ended: bool
    said: int
    heard: int
    count: int
    written_calls: int

    def __init__(self, crowd: Crowd, conn: Stream | None, ready: bool) -> None:
        self.crowd = crowd
        self.conn: Stream = conn  # type: ignore[assignment]  # `open` sets it right after this call
        self.number: int = crowd.expect('end of connection')
        self.ready = ready  # the program may write to the connection; a proxied client first sends its header
        self.ended: str = ''  # the method with which the program has ended the connection
        self.over = self.paused = self.closed_by_us = self.peer_ended = False
        self.said = self.heard = 0  # bytes of the text that were sent and received
        self.count = self.written_calls = 0  # how many writes had an on_written, and how many of those were called

    @classmethod
    def open(cls, crowd: Crowd) -> Side | None:
        """Connect to one of the listeners, which may be closed already."""
        rng = crowd.rng
        place, proxied = rng.choice(crowd.places)
        side = cls(crowd, None, not proxied)

        def on_connect(conn: Stream) -> None:
            crowd.world.trouble(conn)
            if proxied:
                conn.write(header(rng, side.number))
                side.ready = True
            side.happened('connect')

        side.conn = place.connect(
            on_connect=on_connect, **side.callbacks(rng), timeout=rng.choice((None, None, 0.01, 5)),
            read_size=rng.choice((100, 65536)), high_water=rng.choice((0, 1000, 65536)), linger=rng.choice((0.05, 30)),
        )  # fmt: skip
        return side

    @staticmethod
    def accepted_by(crowd: Crowd) -> Callable[[Stream], None]:
        """Return the `on_connect` of a listener."""

        def on_connect(conn: Stream) -> None:
            side = Side(crowd, conn, True)
            for name, callback in side.callbacks(crowd.rng).items():
                setattr(conn, name, callback)
            crowd.actors.append(side)
            if crowd.over:
                side.close(crowd.rng)
            crowd.world.trouble(conn)
            if not crowd.over:
                side.happened('connect')

        return on_connect

    def callbacks(self, rng: random.Random) -> dict[str, Any]:
        """Return the callbacks of this end. Some are left out at random."""
        named: dict[str, Any] = {'on_data': self.on_data, 'on_close': self.on_close}
        for name, callback in ('on_eof', self.on_eof), ('on_drain', self.on_drain), ('on_error', self.on_error):
            if rng.random() < 0.6:
                named[name] = callback
        return named

    def happened(self, what: str) -> None:
        """Check that a callback may be called now, and then act on other handles."""
        if self.over:
            self.crowd.fail(f'on_{what} was called after on_close')
        if self.closed_by_us and what != 'written':
            self.crowd.fail(f'on_{what} was called after {self.ended}()')
        self.crowd.meddle()

    def on_data(self, conn: Stream, data: bytes) -> None:
        if self.paused:
            self.crowd.fail('on_data was called while reading is paused')
        if self.peer_ended:
            self.crowd.fail('on_data was called after on_eof')
        at = self.heard % PERIOD
        if data != TEXT[at : at + len(data)]:
            self.crowd.fail(f'{len(data)} bytes at {self.heard} are not the bytes that were written')
        self.heard += len(data)
        self.crowd.world.trouble(conn)
        self.happened('data')

    def on_eof(self, conn: Stream) -> None:
        if self.peer_ended:
            self.crowd.fail('on_eof was called twice')
        self.peer_ended = True
        self.crowd.world.trouble(conn)
        self.happened('eof')

    def on_drain(self, conn: Stream) -> None:
        self.crowd.world.trouble(conn)
        self.happened('drain')

    def on_written(self, conn: Stream, number: int) -> None:
        if number != self.written_calls:
            self.crowd.fail(f'on_written of write {number} was called before that of write {self.written_calls}')
        self.written_calls += 1
        self.crowd.world.trouble(conn)
        self.happened('written')

    def on_error(self, conn: Stream, exc: Exception) -> None:
        self.crowd.meddle()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if self.over:
            self.crowd.fail('on_close was called twice')
        if not conn.closed:
            self.crowd.fail('in on_close of a connection, `closed` is still False')
        self.over = True
        self.crowd.met(self.number)
        self.crowd.meddle()
        self.crowd.world.trouble(conn)

    def act(self, rng: random.Random) -> None:
        """Call a random method of the connection, whatever its state."""
        conn, action = self.conn, rng.randrange(16)
        if action < 6:
            self.write(rng)
        elif action == 6:
            conn.pause_reading()
            self.paused = True
        elif action in (7, 8):
            self.paused = False
            conn.resume_reading()
        elif action == 9:
            limits = (None, None, 0.02, 0.5, 10)
            conn.set_timeouts(read=rng.choice(limits), write=rng.choice(limits), idle=rng.choice(limits))
        elif action == 10:
            conn.set_write_limits(rng.choice((1, 1000, 100_000)))
        elif action == 11:
            refer(conn, rng)
        elif action == 12:
            conn.on_eof = None if rng.random() < 0.5 else self.on_eof
        elif action == 13 and self.ready:
            if not conn.closed:  # otherwise write_eof does nothing
                self.ended = 'write_eof'
            conn.write_eof()
        elif rng.random() < 0.4:
            self.close(rng)

    def write(self, rng: random.Random) -> None:
        """Write more of the text. The write must raise if the connection has been ended or is over, and only then."""
        if not self.ready:
            return
        size = rng.choice((0, 1, 100, 5000, 70_000))
        at = self.said % PERIOD
        data = TEXT[at : at + size]
        way = rng.randrange(4)
        on_written = (self.on_written, self.count) if way & 1 else ()
        raises = bool(self.ended) or self.over
        try:
            if way < 2:
                self.conn.write(data, *on_written)
            else:
                self.conn.writelines((data[: size // 2], memoryview(data)[size // 2 :]), *on_written)
        except ConnectionClosed:
            if not raises:
                self.crowd.fail('a write raised ConnectionClosed, but the program had not ended the connection')
            return
        if raises:
            self.crowd.fail(f'a write after {self.ended or "on_close"} did not raise')
        self.said += size
        self.count += way & 1

    def close(self, rng: random.Random) -> None:
        """Close or abort the connection."""
        how = rng.choice(('close', 'close', 'abort'))
        getattr(self.conn, how)()
        self.closed_by_us, self.ended = True, how
        if not self.conn.closed:
            self.crowd.fail(f'after {how}() of a connection, `closed` is still False')
