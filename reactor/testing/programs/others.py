"""Programs without streams: timers, datagrams, signals, calls in threads and look-ups.

Each program has a small model of its handles' promises. Lost datagrams are sent again, the callback of a cancelled
operation must never be called, and every program must end.
"""

from __future__ import annotations

import signal
from itertools import count
from operator import floordiv
from signal import SIGINT, SIGTERM
from typing import Any

from reactor import DatagramSocket, ResolveError, Timer

from .parts import AnyWorld, WaitGroup, new_random, some_bytes


def timers(world: AnyWorld) -> None:
    """Set timers that cancel and move each other, some with equal deadlines. They must fire in order, never early."""
    r, rng, group = world.r, new_random(world), WaitGroup(world)
    start = r.now
    fired: list[tuple[float, int]] = []
    many = rng.random() < 0.2  # many timers, most of which are cancelled at once
    delays = [
        rng.random() * 0.03 if many else rng.choice((0, 0, 0.001, 0.002, 0.01, 0.03))
        for _ in range(rng.randint(200, 300) if many else rng.randint(1, 40))
    ]
    due: dict[int, tuple[float, int]] = {}  # for each timer's number: its deadline, and the order in which it was set
    order = count()
    cancelled: set[int] = set()

    def fire(number: int, part: int) -> None:
        group.done(part)
        if number in cancelled:
            world.fail(f'timer {number} was cancelled, but fired')
        if r.now < due[number][0]:
            world.fail(f'timer {number} fired early')
        if fired and fired[-1] > due[number]:
            world.fail(f'a timer with (deadline, order) {due[number]} fired after the timer with {fired[-1]}')
        fired.append(due[number])
        if rng.random() < 0.3:
            cancel(rng.randrange(len(delays)))
        if rng.random() < 0.3:
            move(rng.randrange(len(delays)))
        world.trouble()

    def cancel(number: int) -> None:
        timer, part = made[number]
        if timer.deadline is not None:
            timer.cancel()
            cancelled.add(number)
            group.done(part)

    def move(number: int) -> None:
        timer, _ = made[number]
        if timer.deadline is not None:
            timer.reset(rng.choice((0, 0.001, 0.02)))
            due[number] = timer.deadline, next(order)

    made: list[tuple[Timer, int]] = []
    for number, delay in enumerate(delays):
        part = group.add('timer')
        made.append((r.call_at(start + delay, fire, number, part), part))
        due[number] = start + delay, next(order)
    if many:
        for number in rng.sample(range(len(delays)), len(delays) * 3 // 4):
            cancel(number)


def calls(world: AnyWorld) -> None:
    """Run calls that schedule further calls, a repeating timer that cancels itself, and a timer that is moved."""
    r, group = world.r, WaitGroup(world)
    start = r.now

    def beat(part: int, beats: list[int]) -> None:
        if beating.deadline is None or beating.deadline < r.now - 1e-6:
            world.fail(f'a repeating timer has its next deadline at {beating.deadline}, before {r.now}')
        beats.append(0)
        if len(beats) == 5:
            beating.cancel()
            group.done(part)
        world.trouble()

    def again(part: int, times: int, before: int) -> None:
        turn = r.stats().loop_count
        if turn == before:
            world.fail('a call ran in the turn in which another call scheduled it')
        if times:
            r.call_soon(again, part, times - 1, turn)
        else:
            group.done(part)
        world.trouble()

    def fire_moved(part: int) -> None:
        group.done(part)
        if r.now > start + 30 and not world.faulty:
            world.fail('a timer that was moved to an earlier time fired at its old time')

    beating = r.call_every(0.001, beat, group.add('beats'), [])
    r.call_soon(again, group.add('calls'), 10, 0)
    moved = r.call_later(60, fire_moved, group.add('moved timer'))
    r.call_later(0.001, moved.reset, 0.005)


def datagrams(world: AnyWorld) -> None:
    """Send datagrams to an echo server by UDP, again and again until each is answered or the server is closed."""

    def on_datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
        world.trouble(sock)
        sock.send(data, address)

    def on_close(sock: DatagramSocket, exc: BaseException | None) -> None:
        if isinstance(exc, ConnectionError) or (exc is not None and not world.faulty):
            world.fail(f'the socket of the server was closed with {exc!r}')
        for each in correspondents:
            each.sock.close()

    address, correspondents = world.address(), []
    queued = world.random.choice((0, 3000, 1 << 20))
    server = world.r.bind_udp(*address, on_datagram, on_close=on_close, max_queued=queued)
    group = WaitGroup(world, server)
    for _ in range(world.random.randint(1, 8)):
        correspondents.append(Correspondent(world, group, (server.address or address)[:2]))


class Correspondent:
    """A client of `datagrams`. Each question begins with its own number."""

    def __init__(self, world: AnyWorld, group: WaitGroup, address: tuple[str, int]) -> None:
        self.world = world
        self.group = group
        self.number: int = group.add('correspondent')
        self.address = address
        rng = new_random(world)
        self.open: dict[int, bytes] = {n: bytes([n]) + some_bytes(rng, 9000) for n in range(rng.randint(1, 10))}
        self.asked: dict[int, bytes] = dict(self.open)
        callbacks: dict[str, Any] = {'on_close': self.on_close, 'on_send_error': self.on_send_error}
        callbacks['max_queued'] = rng.choice((0, 3000, 1 << 20))
        if rng.random() < 0.5:
            self.sock: DatagramSocket = world.r.connect_udp(*address, self.on_datagram, **callbacks)
        else:
            self.sock = world.r.bind_udp(address[0], 0, self.on_datagram, **callbacks)
        self.timer: Timer = world.r.call_every(0.2, self.ask)
        world.r.call_soon(self.ask)

    def ask(self) -> None:
        for question in self.open.values():
            if not self.sock.closed:
                self.sock.send(question, self.address)
        self.world.trouble()

    def on_datagram(self, sock: DatagramSocket, data: bytes, address: Any) -> None:
        self.world.trouble(sock)
        if data != self.asked[data[0]]:
            self.world.fail(f'the echo of {self.asked[data[0]]!r} is {data!r}')
        self.open.pop(data[0], None)  # a second answer is fine, because the question may be sent twice
        if not self.open:
            sock.close()

    def on_send_error(self, sock: DatagramSocket, exc: OSError) -> None:
        if not isinstance(exc, OSError):
            self.world.fail(f'on_send_error was called with {exc!r}')
        self.world.trouble(sock)

    def on_close(self, sock: DatagramSocket, exc: BaseException | None) -> None:
        self.timer.cancel()
        self.group.done(self.number)
        if exc is not None and not self.world.faulty:
            self.world.fail(f'the socket of a client was closed with {exc!r}')
        self.world.trouble(sock)


def signals(world: AnyWorld) -> None:
    """Send signals to this process, one or more at a time. Handlers are called for these signals only."""
    r, rng, group = world.r, new_random(world), WaitGroup(world)
    if any(hasattr(handle, 'signum') for handle in r.handles()):
        return  # a signal is sent to the whole process, so only one such program can run
    part, rounds = group.add('signals'), rng.randint(1, 5)
    sent, heard = {SIGTERM: 0, SIGINT: 0}, {SIGTERM: 0, SIGINT: 0}
    waits = {SIGTERM: 0, SIGINT: 0}  # ticks since the signal was sent
    awaited = {SIGTERM: False, SIGINT: False}

    def on_signal(number: signal.Signals) -> None:
        heard[number] += 1
        awaited[number] = False
        if min(heard.values()) >= rounds and not any(awaited.values()) and ticking.deadline is not None:
            ticking.cancel()
            for handler in handlers:
                handler.close()
            group.done(part)
        if heard[number] > sent[number] and not world.faulty:
            world.fail(f'{number!r} was sent {sent[number]} times, but its handler was called {heard[number]} times')
        world.trouble()

    def send() -> None:
        for number in sent:
            if not awaited[number]:
                awaited[number], waits[number] = True, 0
                for _ in range(rng.choice((1, 1, 3))):
                    sent[number] += 1
                    world.raise_signal(number)
            waits[number] += 1
            if waits[number] == 1000:
                world.fail(f'{number!r} was sent, but its handler was not called')
        world.trouble()

    handlers = [r.add_signal_handler(number, on_signal, number) for number in sent]
    ticking = r.call_every(0.002, send)


def threads(world: AnyWorld) -> None:
    """Run calls in threads: some return, some raise. Unless a call is cancelled, its `on_done` must be called once."""
    rng, group = new_random(world), WaitGroup(world)
    left = rng.randint(1, 30)

    def begin(number: int) -> None:
        nonlocal left
        left -= 1
        part = group.add('call')
        handle, fate = call(number, part), rng.random()
        if fate < 0.2:
            cancel(handle, part)
        elif fate < 0.4:
            world.r.call_later(rng.random() * 0.04, cancel, handle, part)

    def cancel(handle: Any, part: int) -> None:
        if not handle.closed:
            handle.close()
            group.done(part)

    def call(number: int, part: int) -> Any:
        def on_done(result: Any, error: BaseException | None) -> None:
            if left:
                begin(rng.randrange(5))
            group.done(part)
            right = isinstance(error, ZeroDivisionError) if number == 0 else (result, error) == (1000 // number, None)
            if not (right or world.faulty):
                world.fail(f'on_done of 1000 // {number} was called with {result!r}, {error!r}')
            world.trouble()

        return world.r.run_in_thread(floordiv, 1000, number, on_done=on_done)

    for _ in range(rng.randint(1, left)):
        begin(rng.randrange(5))


def look_ups(world: AnyWorld) -> None:
    """Look up names that exist and names that do not, and cancel some of the look-ups."""
    rng, group = new_random(world), WaitGroup(world)

    def ask(host: str, part: int) -> Any:
        def on_done(addresses: list[str] | None, error: Exception | None) -> None:
            group.done(part)
            found = addresses is not None and bool({'127.0.0.1', '::1'} & {*addresses})
            right = found and error is None if host == 'localhost' else isinstance(error, ResolveError)
            if not (right or world.faulty):
                world.fail(f'on_done of the look-up of {host} was called with {addresses}, {error!r}')
            world.trouble()

        return world.r.resolve(host, on_done, timeout=20)

    for _ in range(rng.randint(1, 8)):
        host, part = rng.choice(('localhost', 'localhost', 'missing.invalid')), group.add('look-up')
        handle = ask(host, part)
        if rng.random() < 0.3:
            handle.close()
            group.done(part)
