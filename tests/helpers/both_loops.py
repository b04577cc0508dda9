"""Programs that run on two loops, the reactor's and asyncio's, and must leave the same trace on both.

A program gets a `Driver` and a random number generator. It draws its actions, and the actions of its callbacks, from
the generator in the order of events, so on two loops that behave alike it draws the same actions. The program also
moves the clock. The programs rely only on behaviour that both loops promise; `DIFFERENCES` lists the situations that
they avoid, and why.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import threading
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
STEP = 1 / 8  # seconds; all times are multiples of this power of two, so that floats represent them exactly
SETTLED = 4  # turns after which every consequence of an action has happened
NAMES = 'SIGUSR1', 'SIGUSR2', 'SIGWINCH'

# How this loop differs from asyncio by design, and how the programs avoid each difference.
DIFFERENCES = {
    'timers with the same deadline': (
        'This loop runs them in the order in which they were set; in asyncio the order is undefined. '
        'No two timers of a program share a deadline.'
    ),
    'a delay below 0': (
        'This loop treats it as 0; in asyncio the deadline is in the past, before other timers that are due. '
        'A program sets such a timer by its deadline.'
    ),
    'phases': (
        'A turn of this loop runs events, timers, calls and completions, and a call made in the callback of an event '
        'runs in the same turn. In asyncio, waiting calls run before the events and timers of a turn, and new calls in '
        'the next turn. A program compares the order within one kind only, and lets the loop settle after each action.'
    ),
    'both sides have ended': (
        'This loop closes the connection by itself; in asyncio the program has to call close(), which the driver does.'
    ),
    'a write after our own end': (
        'This loop raises ConnectionClosed; asyncio drops the bytes after close(), and raises RuntimeError after '
        'write_eof(). A program never writes after its own end.'
    ),
    'close() with unread bytes': (
        'This loop shuts down the write side, and reads and drops the rest, so that no sent bytes are lost; '
        'asyncio closes the descriptor, which resets the connection. A program closes only after it has read '
        'everything and the peer has stopped writing.'
    ),
    'write callbacks': (
        'Here each write has its own callback. The driver of asyncio sets both water marks to 0, and resume_writing() '
        'is called when nothing is queued. The peers of a program read nothing, or everything.'
    ),
    'a descriptor that is no longer ready': (
        'This loop checks a watched descriptor again right before it calls the callback; asyncio calls it for every '
        'event that the selector has reported, even if another callback has since read from the descriptor or filled '
        'it. Callbacks only change the wanted events.'
    ),
    'an event that is unwanted and wanted again in one turn': (
        'This loop still reports the event in that turn; asyncio reports it in the next one. '
        'A program changes the wanted events of a descriptor at most once per turn.'
    ),
    'exceptions in callbacks of a watched descriptor': (
        'In this loop an exception ends the watch; in asyncio the watch continues. The callbacks of a program do not '
        'raise there.'
    ),
    'a signal raised many times at once': (
        'This loop may call the handler once for all of them; asyncio calls it once for each byte written to the '
        'wakeup descriptor. A program raises a signal at most once before it lets the loop settle.'
    ),
    'the handler of a signal after removal': (
        'This loop restores the previous handler; asyncio sets the default. In a program the previous handler is the '
        'default.'
    ),
}


class Clock:
    """A clock that the program moves."""

    now = 1000.0


class Selector(selectors.BaseSelector):
    """A real selector that does not wait for timers. Descriptors registered earlier are reported first."""

    def __init__(self) -> None:
        self.real = selectors.DefaultSelector()
        self.order: dict[int, int] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        key = self.real.register(fileobj, events, data)
        self.order.setdefault(key.fd, len(self.order))
        return key

    def unregister(self, fileobj: Any) -> Any:
        return self.real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return self.real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> Any:
        # The timeout is None only in `run`. A thread wakes the loop then, by making a call.
        return sorted(self.real.select(30 if timeout is None else 0), key=lambda each: self.order[each[0].fd])

    def get_map(self) -> Any:
        return self.real.get_map()

    def close(self) -> None:
        self.real.close()


class Driver:
    """The interface of one loop, used by the programs.

    `trace` is what a test compares: it maps the name of each source of events to the list of its events.
    """

    def __init__(self, clock: Clock, selector: Selector) -> None:
        self.clock = clock
        self.selector = selector
        self.trace: dict[str, list[Any]] = {}

    def note(self, kind: str, *what: Any) -> None:
        """Add an event to the trace."""
        self.trace.setdefault(kind, []).append(list(what))

    def settle(self) -> None:
        """Run turns until every consequence of the last action has happened."""
        for _ in range(SETTLED):
            self.turn()

    # The driver of each loop implements these methods. Operations that both loops have are named as in asyncio.

    def turn(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        """Run until `stop` is called."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def call_soon(self, fn: Any, *args: Any) -> None:
        raise NotImplementedError

    def call_soon_threadsafe(self, fn: Any, *args: Any) -> None:
        raise NotImplementedError

    def call_later(self, delay: float, fn: Any, *args: Any) -> Any:
        raise NotImplementedError

    def call_at(self, deadline: float, fn: Any, *args: Any) -> Any:
        raise NotImplementedError

    def watch(self, fd: int, events: int, fn: Any) -> None:
        """Call `fn(event)` while the descriptor is ready for one of `events`; with 0, stop watching it."""
        raise NotImplementedError

    def add_signal_handler(self, signum: int, fn: Any, *args: Any) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, signum: int) -> bool:
        raise NotImplementedError

    def connect(self, sock: socket.socket, side: Side) -> None:
        """Connect `side`: set `side.conn` to an object with `write(data, number)`, `write_eof`, `close`, `abort`,
        `pause_reading` and `resume_reading`.
        """
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Raised(Exception):
    """Raised by a callback on purpose; the driver records it as ('errors', name)."""


# -- the programs


def timers(driver: Driver, rng: random.Random) -> None:
    """Timers whose callbacks set and cancel timers, or raise; slow callbacks often make many timers due in one turn."""
    made: list[Any] = []
    deadlines: set[float] = set()
    left = [60]

    def add(delay: float) -> None:
        left[0] -= 1
        deadline = driver.clock.now + delay
        while deadline in deadlines:
            deadline += STEP / 1024
        deadlines.add(deadline)
        number, relative = len(made), rng.random() < 0.5 and delay >= 0
        made.append(None)
        if relative:
            made[number] = driver.call_later(deadline - driver.clock.now, fire, number)
        else:
            made[number] = driver.call_at(deadline, fire, number)

    def fire(number: int) -> None:
        driver.note('timers', number, driver.clock.now)
        for _ in range(rng.randrange(3)):
            act()
        if rng.random() < 0.2:
            driver.clock.now += STEP * rng.randrange(1, 9)  # a slow callback
        if rng.random() < 0.1:
            raise Raised

    def act() -> None:
        choice = rng.random()
        if choice < 0.5 and left[0] > 0:
            add(STEP * rng.choice((0, 0, 1, 2, 7, -3)))
        elif choice < 0.9:
            made[rng.randrange(len(made))].cancel()

    for _ in range(rng.randrange(1, 20)):
        add(STEP * rng.randrange(20))
    for _ in range(60):
        driver.turn()
        driver.clock.now += STEP * rng.choice((0, 1, 1, 3))
        if rng.random() < 0.2:
            act()
    driver.clock.now += 100
    driver.settle()


def calls(driver: Driver, rng: random.Random) -> None:
    """Calls that make further calls, in the loop and in a thread; some raise, and some stop the loop for a moment."""
    left = [80]

    def ask(name: str) -> None:
        if left[0] > 0:
            left[0] -= 1
            driver.call_soon(call, name + chr(ord('a') + left[0] % 26))

    def call(name: str) -> None:
        driver.note('calls', name)
        for _ in range(rng.choice((0, 1, 1, 2))):
            ask(name)
        choice = rng.random()
        if choice < 0.1:
            raise Raised
        if choice < 0.3 and running:
            driver.stop()

    def called(number: int, last: bool) -> None:
        driver.note('calls of a thread', number)
        if last:
            driver.stop()

    running = False
    for _ in range(10):
        for _ in range(rng.randrange(4)):
            ask('')
        driver.turn()
        driver.note('calls', 'a turn')
        if rng.random() < 0.3:
            running = True
            driver.call_soon(driver.stop)
            driver.run()
            driver.note('calls', 'stopped')
            running = False
        if rng.random() < 0.3:
            count = rng.randrange(1, 20)
            args = [(called, number, number == count - 1) for number in range(count)]
            thread = threading.Thread(target=lambda args=args: [driver.call_soon_threadsafe(*each) for each in args])
            thread.start()
            driver.run() if not left[0] else None
            thread.join()
            driver.settle()
    left[0] = 0
    for _ in range(100):
        driver.turn()


def mixed(driver: Driver, rng: random.Random) -> None:
    """Timers and calls that start each other at different times, so the order of phases does not matter."""
    count = [0]

    def ask() -> None:
        if count[0] < 60:
            count[0] += 1
            if rng.random() < 0.5:
                driver.call_soon(call, count[0])
            else:
                driver.call_later(STEP * rng.randrange(1, 9) + STEP * count[0] / 1024, fire, count[0])

    def call(number: int) -> None:
        driver.note('all', 'call', number)
        driver.call_soon(driver.note, 'all', 'follows', number)

    def fire(number: int) -> None:
        driver.note('all', 'timer', number)
        ask()
        ask()

    for _ in range(12):
        ask()
    for _ in range(150):
        driver.settle()
        driver.clock.now += STEP / 16


def descriptors(driver: Driver, rng: random.Random) -> None:
    """Watched descriptors whose wanted events are changed by other callbacks in the same turn."""
    pairs = [socket.socketpair() for _ in range(rng.randrange(1, 5))]
    for pair in pairs:
        for sock in pair:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    wanted = [0] * len(pairs)
    deeds: list[Any] = []

    def want(number: int, events: int) -> None:
        wanted[number] = events
        driver.watch(pairs[number][0].fileno(), events, lambda event: ready(number, event))

    def ready(number: int, event: int) -> None:
        driver.note('descriptors', number, event)
        if not event & wanted[number]:
            driver.note('descriptors', 'which is not wanted')
        if deeds:
            act(*deeds.pop())

    def act(what: str, number: int, events: int) -> None:
        ours, theirs = pairs[number]
        try:
            if what == 'want':
                want(number, events)
            elif what == 'send':
                theirs.send(b'x')
            elif what == 'read':
                ours.recv(100)
            elif what == 'fill':
                while True:
                    ours.send(b'x' * 65536)
            elif what == 'drain':
                while theirs.recv(1 << 20):
                    pass
            elif what == 'end':
                theirs.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def draw() -> tuple[str, int, int]:
        what = rng.choice(('want', 'want', 'want', 'send', 'read', 'fill', 'drain', 'end'))
        return what, rng.randrange(len(pairs)), rng.choice((0, READ, WRITE, READ | WRITE))

    for number in range(len(pairs)):
        want(number, READ | WRITE)  # descriptors are registered in numerical order
    for _ in range(40):
        whom = rng.sample(range(len(pairs)), rng.randrange(len(pairs) + 1))
        deeds[:] = [('want', number, rng.choice((0, READ, WRITE, READ | WRITE))) for number in whom]
        act(*draw())
        driver.turn()
        driver.note('descriptors', 'a turn')
    for number, pair in enumerate(pairs):
        want(number, 0)
        for sock in pair:
            sock.close()


def signals(driver: Driver, rng: random.Random) -> None:
    """Signals with a handler, a replaced handler, or no handler; each is raised once before the loop runs."""
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    handled: set[int] = set()
    made = 0

    def hear(number: int, name: int, then: str) -> None:
        driver.note(f'signal {numbers.index(number)}', name)
        if then == 'remove':
            remove(number)
        elif then == 'again':
            os.kill(os.getpid(), number)
            add(number, '')
        elif then == 'raise':
            raise Raised

    def add(number: int, then: str) -> None:
        nonlocal made
        made += 1
        handled.add(number)
        driver.add_signal_handler(number, hear, number, made, then)

    def remove(number: int) -> None:
        handled.discard(number)
        driver.note(f'signal {numbers.index(number)}', 'removed', driver.remove_signal_handler(number))

    for _ in range(25):
        number = rng.choice(numbers)
        then = rng.choice(('', '', 'remove', 'again', 'raise'))
        choice = rng.random()
        if choice < 0.4:
            add(number, then)
        elif choice < 0.55:
            remove(number)
        for each in numbers:
            if each in handled and rng.random() < 0.5:
                os.kill(os.getpid(), each)
        driver.settle()
        driver.settle()
    for number in numbers:
        remove(number)
        driver.note('handlers', number, str(signal.getsignal(number)))


class Side:
    """One side of a connection: its callbacks add to the trace, then do the next step of the script."""

    def __init__(self, driver: Driver, name: str, keeps_open: bool, script: list[str]) -> None:
        self.driver, self.name, self.keeps_open, self.script = driver, name, keeps_open, script
        self.conn: Any = None
        self.writes = 0
        self.over = self.paused = self.closed = self.ended = self.peer_ended = False
        self.other: Any = None

    def on_data(self, data: bytes) -> None:
        trace = self.driver.trace.setdefault(self.name, [])
        if trace and trace[-1][0] == 'data':  # the loops may split the data into different chunks
            trace[-1][1] += len(data)
        else:
            self.driver.note(self.name, 'data', len(data))
        self.act()

    def on_eof(self) -> None:
        self.peer_ended = True
        self.driver.note(self.name, 'eof')

    def on_written(self, number: int) -> None:
        self.driver.note(self.name, 'written', number)

    def on_close(self, exc: BaseException | None) -> None:
        self.over = True
        self.driver.note(self.name, 'close', type(exc).__name__)

    def act(self) -> None:
        """Do the next step of the script, if there is one."""
        what = self.script.pop() if self.script else ''
        if what == 'raise':
            raise Raised
        if what:
            self.do(what, 10)

    def do(self, what: str, size: int) -> None:
        """Do this action if the state of the connection allows it."""
        if self.over or self.closed:
            return
        if what == 'write' and not self.ended and not self.other.closed:
            self.writes += 1
            self.conn.write(b'x' * size, self.writes)
        elif what == 'pause' and not self.paused and not self.peer_ended:
            self.paused = True
            self.conn.pause_reading()
        elif what == 'resume' and self.paused:
            self.paused = False
            self.conn.resume_reading()
        elif what == 'write_eof' and not self.ended:
            self.ended = True
            self.conn.write_eof()
        elif what in ('close', 'abort') and not self.paused:
            self.closed = True
            getattr(self.conn, what)()


def connections(driver: Driver, rng: random.Random) -> None:
    """Two sides that write, pause, end, close and abort; after each step the loop runs until all bytes have arrived."""
    both = socket.socketpair()
    sides = []
    for name, sock in zip('ab', both, strict=True):
        sock.setblocking(False)
        deeds = ('', '', '', 'write', 'write', 'pause', 'write_eof', 'close', 'raise')
        script = [rng.choice(deeds) for _ in range(rng.randrange(6))]
        side = Side(driver, name, rng.random() < 0.7, script)
        driver.connect(sock, side)
        sides.append(side)
    sides[0].other, sides[1].other = sides[1], sides[0]
    settle_all(driver, sides)
    ends_at = rng.randrange(20)
    for time in range(25):
        side, other = rng.sample(sides, 2)
        what = rng.choice(('write', 'write', 'write', 'pause', 'resume'))
        if time > ends_at:
            what = rng.choice(('write', 'write', 'pause', 'resume', 'write_eof', 'write_eof', 'close', 'abort'))
        # A small write is accepted at once; a large one waits until the other side reads everything.
        large = not (other.paused or side.paused or other.script)
        side.do(what, rng.choice((1, 100, 3_000_000)) if large else rng.choice((1, 100)))
        settle_all(driver, sides)
    for side in sides:
        side.script.clear()
        side.do('resume', 0)
        settle_all(driver, sides)
    for side in sides:
        side.do('close', 0)
        settle_all(driver, sides)


def settle_all(driver: Driver, sides: list[Side]) -> None:
    """Run turns until neither side has new events."""
    still = 0
    while still < SETTLED:
        before = repr(driver.trace)
        driver.turn()
        still = still + 1 if repr(driver.trace) == before else 0


PROGRAMS = {fn.__name__: fn for fn in (timers, calls, mixed, descriptors, signals, connections)}


def play(name: str, seed: int, make: Any) -> dict[str, list[Any]]:
    """Run a program on the driver that `make(clock, selector)` returns; returns the trace."""
    driver: Driver = make(Clock(), Selector())
    try:
        PROGRAMS[name](driver, random.Random(f'{name} {seed}'))
    finally:
        driver.close()
    return driver.trace
