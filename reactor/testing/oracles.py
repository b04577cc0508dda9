"""Oracles: what has to hold, whatever a program does and whatever fails.

The laws are those of the README, "What it promises". Each check is written from them and the docstrings, and looks at
what the program has called and was called with, and at what the simulated kernel holds; repeating a condition of the
code under test, it would find nothing. What is wrong is added to `violations`, and that turn is the last.

    ledger   the facts that all checks read;  records  those of one connection;  watched  the streams that report them
    streams  what a connection has to keep: its callbacks, its bytes;  ends  how it ends
    calls    timers and calls: in order, in their phase, in time
    due      what has to happen soon, and has not
    here     the turn: bounds, spins, descriptors, counts, what is left over

Imports point up this list: the ledger knows none of the checks, and they know each other as little as possible.

The oracles only look on, and change nothing.
"""

from __future__ import annotations

from functools import cache
from math import inf
from signal import SIG_DFL, SIGINT, default_int_handler
from sys import _getframe
from weakref import WeakKeyDictionary

from ..facade import Reactor
from ..loop.threads import THREADS
from ..net.datagram import DatagramSocket
from ..net.datagram_sending import DATAGRAM_COST, DATAGRAMS_PER_TURN
from ..net.endpoints import Endpoints
from ..net.listener import ACCEPTS_PER_TURN, Listener
from .calls import Calls, is_ours
from .due import Dues
from .ends import Ends
from .files import End, Listening, Mailbox, Stored
from .ledger import CALLS, IDLERS, TIMERS, Ledger
from .streams import StreamChecks
from .watched import WATCHED_KINDS, is_accepted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..hints import Ts
    from ..loop.idle import Idler
    from ..loop.timers import Timer
    from ..net.stream import Stream
    from .kernel import SimKernel

MOST_IDLE_POLLS = 100  # polls in a row that bring nothing: a spin, unless time passes
MOST_A_SECOND = 100  # polls that bring nothing, while it does
MOST_TURNS = 200_000
MOST_TURNS_AT_ONCE = 20_000  # without time passing
READ_PER_TURN = 65536  # bytes of one connection, by one recv


@cache
def watched(kind: Any) -> Any:
    """The same kind of listener, which tells whether it is paused."""

    def pause(self: Any) -> None:
        kind.pause(self)
        self.loop.oracles.paused(self, True)

    def resume(self: Any) -> None:
        kind.resume(self)
        self.loop.oracles.paused(self, False)

    return type('Watched' + kind.__name__, (kind,), {'__slots__': (), 'pause': pause, 'resume': resume})


class WatchedDatagramSocket(DatagramSocket):
    """A datagram socket that reports what is sent with it."""

    __slots__ = ()

    def send(self, data: Any, address: Any = None) -> bool:
        taken = super().send(data, address)
        if taken:
            self.loop.oracles.datagrams[self].take(len(data))  # type: ignore[attr-defined]
        return taken


class Datagrams:
    """What is known of the datagrams that a socket has taken: each waits, or is sent, or has failed."""

    def __init__(self, max_queued: int) -> None:
        self.max_queued = max_queued
        self.sizes: tuple[int, int] | None = None  # bytes of the shortest and of the longest

    def take(self, size: int) -> None:
        """One was taken."""
        least, most = self.sizes or (size, size)
        self.sizes = min(least, size), max(most, size)

    def is_too_much(self, count: int, size: int) -> bool:
        """Whether the last of `count` with `size` bytes was taken although `max_queued` bytes waited."""
        _, most = self.sizes or (0, 0)
        return count > 0 and size - most + (count - 1) * DATAGRAM_COST >= self.max_queued

    def may_wait(self, count: int, size: int) -> bool:
        """Whether `count` of them can have `size` bytes together."""
        least, most = self.sizes or (0, 0)
        return count * least <= size <= count * most


class WatchedReactor(Reactor):
    """A reactor on a simulated kernel, under watch."""

    def __init__(self, kernel: SimKernel, **options: Any) -> None:
        self.oracles: Oracles = Oracles(kernel, self)
        self.ledger: Ledger = self.oracles.ledger
        super().__init__(kernel=kernel, catch_errors=self.oracles.streams.caught, **options)
        self._endpoints = Endpoints(self, kernel, WATCHED_KINDS)
        kernel.on_turn = self.oracles.check_turn

    def run(self, main: Any = None) -> bool:
        try:
            return super().run(main)
        except BaseException:
            self.ledger.cut = True  # what is left of the turn comes first when it is run again
            raise

    def run_once(self, timeout: float | None = None) -> bool:
        try:
            return super().run_once(timeout)
        except BaseException:
            self.ledger.cut = True
            raise

    def close(self) -> None:
        self.ledger.closing = True
        super().close()

    def call_soon(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        super().call_soon(self.oracles.calls.wrap(CALLS, 'call_soon', fn), *args)

    def call_soon_threadsafe(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        super().call_soon_threadsafe(self.oracles.calls.wrap(CALLS, 'call_soon_threadsafe', fn), *args)

    def call_later(self, delay: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        calls = self.oracles.calls
        return calls.watch_timer(super().call_later(delay, calls.wrap(TIMERS, 'a timer', fn), *args))

    def call_at(self, deadline: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        calls = self.oracles.calls
        return calls.watch_timer(super().call_at(deadline, calls.wrap(TIMERS, 'a timer', fn), *args))

    def call_every(self, interval: float, fn: Callable[[*Ts], object], *args: *Ts) -> Timer:
        calls = self.oracles.calls
        return calls.watch_timer(super().call_every(interval, calls.wrap(TIMERS, 'a timer', fn), *args))

    def idle(self, fn: Callable[[*Ts], object], *args: *Ts) -> Idler:
        return super().idle(self.oracles.calls.wrap(IDLERS, 'an idler', fn), *args)

    def listen_tcp(self, *args: Any, **keywords: Any) -> Listener:
        return self.oracles.watch_listener(super().listen_tcp(*args, **keywords), keywords)

    def listen_unix(self, *args: Any, **keywords: Any) -> Listener:
        return self.oracles.watch_listener(super().listen_unix(*args, **keywords), keywords)

    def connect_tcp(self, *args: Any, **keywords: Any) -> Stream:
        return self.oracles.watch_connect(super().connect_tcp(*args, **keywords), keywords)

    def connect_unix(self, *args: Any, **keywords: Any) -> Stream:
        return self.oracles.watch_connect(super().connect_unix(*args, **keywords), keywords)

    def bind_udp(self, *args: Any, **keywords: Any) -> DatagramSocket:
        return self.oracles.watch_datagrams(super().bind_udp(*args, **keywords), keywords)

    def connect_udp(self, *args: Any, **keywords: Any) -> DatagramSocket:
        return self.oracles.watch_datagrams(super().connect_udp(*args, **keywords), keywords)


class Oracles:
    """The checks of one reactor, most of which are made between two turns."""

    def __init__(self, kernel: SimKernel, reactor: Reactor) -> None:
        self.kernel, self.reactor = kernel, reactor
        self.ledger: Ledger = Ledger(kernel, reactor)
        self.violations: list[str] = self.ledger.violations
        self.calls: Calls = Calls(self.ledger)
        self.streams: StreamChecks = StreamChecks(self.ledger, self.calls, Ends(self.ledger))
        self.dues: Dues = Dues(self.ledger)
        self.datagrams: dict[DatagramSocket, Datagrams] = {}
        self._were_paused: set[Listener] = set()  # a turn before
        self._idle_polls = 0
        self._idle_since = 0
        self._bounds: WeakKeyDictionary[Listener, float] = WeakKeyDictionary()  # of open connections, a turn before
        self._last: tuple[int, Any, int] = (0, None, 0)  # time, what was done, turns at that time

    # -- told by the reactor

    def watch_listener(self, listener: Listener, keywords: Any) -> Listener:
        """A listener was made. One with `Limits` has its own reasons to keep clients waiting."""
        if keywords.get('limits') is None:
            listener.__class__ = watched(type(listener))  # type: ignore[arg-type]
            self.ledger.listeners[listener] = False
        return listener

    def paused(self, listener: Listener, paused: bool) -> None:
        """The user has paused a listener, or resumed it."""
        if listener in self.ledger.listeners:
            self.ledger.listeners[listener] = paused

    def watch_connect(self, stream: Any, keywords: Any) -> Stream:
        """A connection was begun."""
        if keywords.get('timeout') is not None:
            stream.record.connect_by = self.ledger.time() + int(keywords['timeout'] * 1e9)
        return stream  # type: ignore[no-any-return]

    def watch_datagrams(self, sock: DatagramSocket, keywords: Any) -> DatagramSocket:
        """A datagram socket was made."""
        sock.__class__ = WatchedDatagramSocket
        self.datagrams[sock] = Datagrams(keywords.get('max_queued', 1 << 20))
        return sock

    # -- turns

    def check_turn(self, timeout: float | None) -> None:
        """Between two turns everything has to be in order; raises `Violation` when something was not."""
        self.ledger.turns += 1
        self.ledger.inside = None
        self._check_bounds()
        self._check_progress(timeout)
        if self.kernel.replaced_in_vain:
            self.violations.append('law 7: the selector was replaced, and nothing was wrong with it')
        self._check_descriptors()
        self._check_counts()
        self._check_listeners()
        self._check_datagrams()
        self.calls.check_turn(timeout)
        self.dues.check_turn(timeout)
        self.streams.check_turn()
        self.ledger.phase, self.ledger.cut, self.ledger.depth = 0, False, _depth()
        if self.violations:
            raise Violation('\n'.join(self.violations))

    def _check_bounds(self) -> None:
        kernel = self.kernel
        if kernel.threads > THREADS:
            self.violations.append(f'law 6: {kernel.threads} threads')
        for file, count in kernel.reads.items():
            if isinstance(file, Mailbox) and count > DATAGRAMS_PER_TURN:
                self.violations.append(f'law 5: {count} datagrams in a turn')
            elif isinstance(file, Listening) and count > ACCEPTS_PER_TURN:
                self.violations.append(f'law 5: {count} accepts in a turn')
            elif isinstance(file, End) and count > READ_PER_TURN and not file.reported:
                record = self.ledger.by_end.get(file)
                if record is not None and record.has_header and count <= 2 * READ_PER_TURN:
                    continue
                self.violations.append(f'law 5: {count} bytes of one connection in a turn')

    def _check_progress(self, timeout: float | None) -> None:
        # Law 7, whatever the loop makes of its poll: a turn that brought nothing is wasted.
        kernel = self.kernel
        done = kernel.progress, self.ledger.callbacks + self.calls.count, kernel.threads
        time, before, turns = self._last
        if done != before:
            self._idle_polls, self._idle_since = 0, kernel.time
        self._idle_polls += 1
        seconds = (kernel.time - self._idle_since) / 1e9
        if self._idle_polls > MOST_IDLE_POLLS + MOST_A_SECOND * seconds:
            self.violations.append(f'law 7: {self._idle_polls} polls in a row brought nothing, in {seconds:g} s')
        turns = turns + 1 if kernel.time == time else 0
        if turns > MOST_TURNS_AT_ONCE or self.ledger.turns > MOST_TURNS:
            self.violations.append(f'law 7: {turns} turns at once, {self.ledger.turns} in all')
        self._last = kernel.time, done, turns

    def _check_descriptors(self) -> None:
        files = self.kernel.files
        held = {handle.fileno() for handle in self.reactor.handles()}
        lost = [fd for fd in files if fd not in held and fd not in self.ledger.foreign]
        if len(lost) == 2:
            first, second = lost
            if files[first].private and files[second].private:
                return  # the doorbell
        lost = [fd for fd in lost if not isinstance(files[fd], Stored)]
        if sum(files[fd].private for fd in lost) > 2 or not all(files[fd].private for fd in lost):
            self.violations.append(f'law 9: descriptors {lost} are open, and no handle has them')

    def _check_counts(self) -> None:
        reactor = self.reactor
        accepted: dict[Any, int] = {}
        outgoing = 0
        for stream in self.ledger.streams:
            if is_accepted(stream):
                accepted[stream.origin] = accepted.get(stream.origin, 0) + 1
            elif stream.origin is not None:
                outgoing += 1
        counted = reactor.counters.incoming, reactor.counters.outgoing
        if counted != (sum(accepted.values()), outgoing):
            self.violations.append(f'{counted} are counted as open, and {sum(accepted.values()), outgoing} are')
        for handle in reactor.handles():
            if isinstance(handle, Listener):
                count, most = accepted.get(handle, 0), handle.max_connections
                # The limit may be lowered at any time, which closes none of those that are open.
                bound = inf if most is None else most
                before, self._bounds[handle] = self._bounds.get(handle, 0), max(count, bound)
                if handle.open_connections != count or count > max(bound, before):
                    self.violations.append(f'law 6: {handle!r} has {count} of {most}')

    def _check_listeners(self) -> None:
        listeners = {listener: paused for listener, paused in self.ledger.listeners.items() if not listener.closed}
        self.ledger.listeners = listeners
        paused = {listener for listener, paused in listeners.items() if paused}
        for listener in paused & self._were_paused:
            file = self.kernel.files.get(listener.fileno())
            if file is not None and self.kernel.reads.get(file) and not self.reactor.draining:
                self.violations.append(f'{listener!r} accepts, and was paused')
        self._were_paused = paused

    def _check_datagrams(self) -> None:
        self.datagrams = {sock: taken for sock, taken in self.datagrams.items() if not sock.closed}
        for sock, taken in self.datagrams.items():
            queued, buffered = sock.queued, sock.buffered
            if taken.is_too_much(queued, buffered):
                self.violations.append(f'law 6: {queued} datagrams of {buffered} bytes wait in {sock!r}')
            if not taken.may_wait(queued, buffered):
                self.violations.append(f'{queued} datagrams wait in {sock!r}, and buffered says {buffered}')

    def check_over(self) -> None:
        """After `run` has returned True: nobody waits for anything, and nothing of ours is left."""
        left, buckets = [timer for timer in self.reactor.timers if is_ours(timer)], self.reactor.timers.buckets
        if not self.reactor.handles() and (left or buckets):
            self.violations.append(f'law 9: left over are {left}, and {len(buckets)} that have a time limit')
        if self.ledger.begun and self.reactor.why_alive():
            self.violations.append(f'run() has returned True, and waits for {self.reactor.why_alive()}')

    def check_closed(self) -> None:
        """After `close()` of the reactor nothing may be left."""
        for stream in self.ledger.streams:
            self.ledger.wrong(stream, 'law 1: it never ended')
        if self.kernel.files.keys() - self.ledger.foreign:
            self.violations.append(f'law 9: descriptors {sorted(self.kernel.files)} are open after close()')
        handlers = {SIGINT: default_int_handler, **self.kernel.handlers}
        changed = [n for n, fn in handlers.items() if fn is not (default_int_handler if n == SIGINT else SIG_DFL)]
        if changed or self.kernel.wakeup_fd != -1:
            self.violations.append(
                f'handlers of {changed} and wakeup descriptor {self.kernel.wakeup_fd} are not put back'
            )
        if self.violations:
            raise Violation('\n'.join(self.violations))


class Violation(BaseException):
    """A law was broken. No `Exception`: it leaves `run`, and no callback's `except` takes it."""


def _depth() -> int:
    frame, depth = _getframe(), 1
    while frame := frame.f_back:  # type: ignore[assignment]  # until there is none
        depth += 1
    return depth
