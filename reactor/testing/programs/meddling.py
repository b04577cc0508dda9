"""A program in which every callback acts on other handles, as callbacks in real programs do.

Each callback acts on a few random handles: it writes to them, closes them, pauses them, moves their timers, or opens
new ones. So when many handles are ready in one turn, some change their state after the selector has reported them and
before their callbacks run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from operator import floordiv
from signal import SIGTERM
from typing import Any

from reactor import DatagramSocket, HandleClosed, Timer

from .actors import TEXT, Crowd, refer
from .parts import AnyWorld


class Actor:
    """A handle of a crowd. `act` calls one of its methods at random."""

    handle: Any

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.over: bool = False  # the handle is closed, and its callbacks must no longer be called

    def act(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            self.close(rng)
        else:
            refer(self.handle, rng)

    def close(self, rng: random.Random) -> None:
        self.handle.close()
        self.over = True


class Clock(Actor):
    """A timer that is cancelled, moved, and set again after it has fired."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.number: int = crowd.expect('timer')
        rng = crowd.rng
        self.every: bool = rng.random() < 0.3
        delay = rng.choice((0, 0.001, 0.01, 0.05)) + (0.001 if self.every else 0)
        self.due: float = crowd.r.now + delay
        self.timer: Timer = (crowd.r.call_every if self.every else crowd.r.call_later)(delay, self.fire)

    def fire(self) -> None:
        if self.over:
            self.crowd.fail('a cancelled timer fired')
        if self.crowd.r.now < self.due - 1e-9:
            self.crowd.fail('a timer fired early')
        if not self.every:
            self.end()
        self.crowd.meddle()
        self.crowd.world.trouble()

    def act(self, rng: random.Random) -> None:
        if rng.random() < 0.3:
            self.close(rng)
        elif rng.random() < 0.5:
            delay = rng.choice((0, 0.001, 0.03))
            before = self.crowd.r.now
            self.timer.reset(delay)
            self.due = before + delay
        else:
            refer(self.timer, rng)

    def close(self, rng: random.Random) -> None:
        self.timer.cancel()
        if not self.over:
            self.end()

    def end(self) -> None:
        self.over = True
        self.crowd.met(self.number)


class Mailer(Actor):
    """A UDP socket that sends to itself and to other sockets of this class. It is over after `on_close`."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.paused: bool = False
        self.closed: bool = False
        self.sock: DatagramSocket = crowd.r.bind_udp(
            '127.0.0.1', 0, self.on_datagram, on_drain=self.on_drain, on_send_error=self.on_send_error,
            on_close=self.on_close, max_queued=crowd.rng.choice((0, 3000, 1 << 20)),
        )  # fmt: skip
        self.number: int = crowd.expect('end of datagram socket')

    def happened(self, what: str) -> None:
        if self.closed or self.over:
            self.crowd.fail(f'on_{what} of a datagram socket was called after close()')
        self.crowd.meddle()

    def on_datagram(self, sock: DatagramSocket, data: bytes, address: Any) -> None:
        if self.paused:
            self.crowd.fail('on_datagram was called while reading is paused')
        if data != TEXT[: len(data)]:
            self.crowd.fail('a datagram was received that was never sent')
        self.happened('datagram')
        self.crowd.world.trouble(sock)

    def on_drain(self, sock: DatagramSocket) -> None:
        self.happened('drain')
        self.crowd.world.trouble(sock)

    def on_send_error(self, sock: DatagramSocket, exc: OSError) -> None:
        self.happened('send_error')
        self.crowd.world.trouble(sock)

    def on_close(self, sock: DatagramSocket, exc: BaseException | None) -> None:
        self.over = True
        self.crowd.met(self.number)
        self.crowd.meddle()
        self.crowd.world.trouble(sock)

    def act(self, rng: random.Random) -> None:
        sock, action = self.sock, rng.randrange(9)
        if action < 6:
            self.send(rng)
        elif action == 6:
            sock.pause_reading()
            self.paused = True
        elif action == 7:
            self.paused = False
            sock.resume_reading()
        elif rng.random() < 0.5:
            refer(sock, rng)
        else:
            self.close(rng)

    def send(self, rng: random.Random) -> None:
        others = [actor.sock for actor in self.crowd.actors if type(actor) is Mailer]
        target = rng.choice([self.sock, *others]).address or ('127.0.0.1', 9)
        for _ in range(rng.choice((1, 1, 40))):
            try:
                self.sock.send(TEXT[: rng.choice((0, 1, 900, 9000))], target)
            except HandleClosed:
                if not (self.closed or self.over):
                    self.crowd.fail('send raised HandleClosed, but the program had not closed the socket')

    def close(self, rng: random.Random) -> None:
        self.sock.close()
        self.closed = True


class Operation(Actor):
    """A call or a look-up that runs in a thread and may be cancelled."""

    number: int

    def on_done(self, result: Any, error: BaseException | None) -> None:
        if self.over:
            self.crowd.fail('on_done of a cancelled call was called')
        if (result is None) == (error is None):
            self.crowd.fail(f'on_done was called with both or neither of a result and an error: {result!r}, {error!r}')
        self.end()
        self.crowd.meddle()
        self.crowd.world.trouble()

    def close(self, rng: random.Random) -> None:
        self.handle.close()
        if not self.over:
            self.end()

    def end(self) -> None:
        self.over = True
        self.crowd.met(self.number)


class PooledCall(Operation):
    """A call in a thread."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.number: int = crowd.expect('call in a thread')
        self.handle: Any = crowd.r.run_in_thread(floordiv, 1000, crowd.rng.randrange(4), on_done=self.on_done)


class Question(Operation):
    """A look-up."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.number: int = crowd.expect('look-up')
        host = crowd.rng.choice(('localhost', '127.0.0.1', '::1'))
        self.handle: Any = crowd.r.resolve(host, self.on_done, timeout=crowd.rng.choice((None, 0.005, 5)))


class Awaited(Actor):
    """A handle whose callback runs some time after `send`."""

    event: str

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.number: int = 0  # the number of the expected callback; 0: none is expected

    def send(self) -> None:
        raise NotImplementedError

    def called(self) -> None:
        """Meet the expectation, if there is one."""
        if self.number:
            number, self.number = self.number, 0
            self.crowd.met(number)

    def act(self, rng: random.Random) -> None:
        if rng.random() < 0.7:
            self.number = self.number or self.crowd.expect(self.event)
            self.send()
        elif rng.random() < 0.5:
            refer(self.handle, rng)
        else:
            self.close(rng)

    def close(self, rng: random.Random) -> None:
        super().close(rng)
        self.called()


class Bell(Awaited):
    """A notifier, which other callbacks trigger."""

    event = 'ring of a notifier'

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.once: bool = crowd.rng.random() < 0.5
        self.handle: Any = crowd.r.notifier(self.ring, once=self.once)

    def ring(self) -> None:
        if self.over:
            self.crowd.fail('a closed notifier was called')
        if not self.number:
            self.crowd.fail('a notifier was called without being triggered')
        self.called()
        self.over: bool = self.once
        self.crowd.meddle()
        self.crowd.world.trouble()

    def send(self) -> None:
        self.handle.trigger()


class Idle(Actor):
    """An idler, called once per turn while it is open."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.turn: int = -1
        self.lives: int = crowd.rng.randrange(1, 5)
        self.handle: Any = crowd.r.idle(self.work)

    def work(self) -> None:
        if self.over:
            self.crowd.fail('a closed idler was called')
        turn = self.crowd.r.stats().loop_count
        if turn == self.turn and not self.crowd.world.faulty:
            self.crowd.fail('an idler was called twice in one turn')
        self.turn = turn
        self.lives -= 1
        if not self.lives:
            self.close(self.crowd.rng)
        self.crowd.meddle()
        self.crowd.world.trouble()


class Ear(Awaited):
    """A handler for SIGTERM. Only one such handler is open at a time. The program sends the signal to itself."""

    event = 'signal'

    def __new__(cls, crowd: Crowd) -> Any:
        if any(hasattr(handle, 'signum') for handle in crowd.r.handles()):
            return None  # a signal is sent to the whole process, so one handler is enough
        return super().__new__(cls)

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.sent: int = 0
        self.handle: Any = crowd.r.add_signal_handler(SIGTERM, self.hear)

    def hear(self) -> None:
        if self.over:
            self.crowd.fail('a removed signal handler was called')
        self.called()
        if not self.sent and not self.crowd.world.faulty:
            self.crowd.fail('a signal handler was called, but no signal was sent')
        self.sent -= 1
        self.crowd.meddle()
        self.crowd.world.trouble()

    def send(self) -> None:
        self.sent += 1
        self.crowd.world.raise_signal(SIGTERM)


KINDS: tuple[Callable[[Crowd], Any], ...] = (Bell, Clock, Mailer, PooledCall, Question, Idle, Ear)


def meddling(world: AnyWorld) -> None:
    """Open handles of all kinds whose callbacks act on each other, until all actions are done."""
    Crowd(world, KINDS).begin()
