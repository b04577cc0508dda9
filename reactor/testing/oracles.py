"""The checks for a reactor on a simulated kernel, and a reactor that reports to them.

The checks test the laws in the README ("What it promises"), whatever a program does and whatever fails. Each check is
written from the laws and the docstrings, and compares the program's calls and callbacks with the state of the simulated
kernel. A check that repeated a condition from the tested code would find nothing. Checks change nothing in the reactor.
A check adds its findings to `violations`, and the run ends after that turn.

After a turn, only connections that something has happened to are checked, those with a condition that must end, and
those whose time limit is near. Everything is checked now and then, and after each turn of a small program.

    records  the facts about one connection
    watched  streams that report to the checks
    ledger   the facts that all checks read
    calls    timers and scheduled calls: their order, phase and time
    ends     how connections end
    streams  the callbacks and bytes of connections
    due      conditions that must end soon
    oracles  this module: bounds, spins, descriptors and counts of each turn, and leftovers

Within this list, each module imports only modules above it. So the ledger does not depend on any check.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf
from signal import SIG_DFL, SIGINT, default_int_handler
from sys import _getframe
from typing import Any
from weakref import WeakKeyDictionary

from ..facade import Reactor
from ..hints import Result, Ts
from ..loop.idle import Idler
from ..loop.threads import LOOK_UP_THREADS, THREADS, ThreadCall
from ..loop.timers import Timer
from ..net.datagram import DatagramSocket
from ..net.datagram_sending import DATAGRAMS_PER_TURN
from ..net.endpoints import Endpoints
from ..net.listener import ACCEPTS_PER_TURN, Listener
from ..net.stream import Stream
from .agenda import START
from .calls import Calls, InThread, is_ours
from .due import Dues
from .ends import Ends
from .files import End, Listening, Stored
from .kernel import SimKernel
from .ledger import CALLS, IDLERS, TIMERS, Ledger, Walks
from .mailboxes import Mailbox
from .places import place_of, place_of_caller
from .streams import StreamChecks
from .watched import WATCHED_KINDS, Datagrams, WatchedDatagramSocket

MOST_IDLE_POLLS = 100  # the most polls in a row without progress, if no time passes
MOST_A_SECOND = 100  # how many more such polls are allowed for each second that passes
MOST_TURNS = 200_000  # the most turns in which no timer of the program fires
MOST_TURNS_IN_ALL = 2_000_000
MOST_TURNS_AT_ONCE = 20_000  # the most turns in a row during which no time passes
READ_PER_TURN = 65536  # the most bytes to read from one connection per turn: one recv


@cache
def watched(kind: Any) -> Any:
    """Return a subclass of a listener class whose objects report when they are paused or resumed."""

    def pause(self: Any) -> None:
        kind.pause(self)
        self.loop.oracles.paused(self, True)

    def resume(self: Any) -> None:
        kind.resume(self)
        self.loop.oracles.paused(self, False)

    return type('Watched' + kind.__name__, (kind,), {'__slots__': (), 'pause': pause, 'resume': resume})


class WatchedReactor(Reactor):
    """A reactor on a simulated kernel; it checks itself between turns."""

    def __init__(self, kernel: SimKernel, **options: Any) -> None:
        self.oracles: Oracles = Oracles(kernel, self)
        self.oracles.threads = options.get('threads', THREADS)
        self.ledger: Ledger = self.oracles.ledger
        super().__init__(kernel=kernel, catch_errors=self.oracles.streams.caught, **options)
        self._endpoints = Endpoints(self, kernel, WATCHED_KINDS)
        kernel.on_turn = self.oracles.check_turn

    def run(self, main: Any = None) -> bool:
        try:
            return super().run(main)
        except BaseException:
            self.ledger.cut = True  # the next `run` first finishes this turn
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
        self.oracles.calls.note_thread('calls call_soon_threadsafe', fn)
        call = self.oracles.calls.wrap(CALLS, 'call_soon_threadsafe', fn)
        super().call_soon_threadsafe(call, *args)
        if call is not fn:
            self.ledger.thread_called()

    def run_in_thread(
        self,
        fn: Callable[[*Ts], Result],
        *args: *Ts,
        on_done: Callable[[Result | None, BaseException | None], object] | None = None,
    ) -> ThreadCall:
        call = super().run_in_thread(fn, *args, on_done=on_done)
        if call.fn is not None:
            call.fn = InThread(self.oracles.calls, call.fn)
        return call

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
        return self.oracles.watch_listener(super().listen_tcp(*args, **keywords), keywords, 'listen_tcp')

    def listen_unix(self, *args: Any, **keywords: Any) -> Listener:
        return self.oracles.watch_listener(super().listen_unix(*args, **keywords), keywords, 'listen_unix')

    def connect_tcp(self, *args: Any, **keywords: Any) -> Stream:
        return self.oracles.watch_connect(super().connect_tcp(*args, **keywords), keywords, 'connect_tcp')

    def connect_unix(self, *args: Any, **keywords: Any) -> Stream:
        return self.oracles.watch_connect(super().connect_unix(*args, **keywords), keywords, 'connect_unix')

    def bind_udp(self, *args: Any, **keywords: Any) -> DatagramSocket:
        return self.oracles.watch_datagrams(super().bind_udp(*args, **keywords), keywords)

    def connect_udp(self, *args: Any, **keywords: Any) -> DatagramSocket:
        return self.oracles.watch_datagrams(super().connect_udp(*args, **keywords), keywords)


class Oracles:
    """The checks for one reactor. Most of them run between turns."""

    def __init__(self, kernel: SimKernel, reactor: Reactor) -> None:
        self.kernel: SimKernel = kernel
        self.reactor: Reactor = reactor
        self.ledger: Ledger = Ledger(kernel, reactor)
        self.violations: list[str] = self.ledger.violations
        self.calls: Calls = Calls(self.ledger)
        self.streams: StreamChecks = StreamChecks(self.ledger, self.calls, Ends(self.ledger))
        self.dues: Dues = Dues(self.ledger)
        self.datagrams: dict[DatagramSocket, Datagrams] = {}
        self._were_paused: set[Listener] = set()  # the listeners that were paused one turn ago
        self.conditions: list[tuple[Callable[[], object], str]] = []  # of `World.always`, each with its text
        self.threads: int = THREADS  # how many calls of `run_in_thread` may run at once
        self.most_turns: int | None = None  # the limit that the user has set
        self._untimed_turns = 0  # turns in which no timer of the program fired
        self._walks = Walks()
        self._over = False
        self._idle_polls = 0
        self._idle_since = 0
        self._bounds: WeakKeyDictionary[Listener, float] = WeakKeyDictionary()  # each listener's limit one turn ago
        self._last: tuple[int, Any, int] = (0, None, 0)  # a time, and the progress counts and turns at that time

    # -- called by the reactor

    def watch_listener(self, listener: Listener, keywords: Any, method: str) -> Listener:
        """Watch a new listener, unless it has `Limits`, which may keep clients waiting."""
        self.ledger.limits[listener] = self.ledger.reached.add_limits(keywords, method, place_of_caller(2))
        if listener.on_accept_error is not None:
            listener.on_accept_error = self.ledger.reached.watch_accept_error(listener.on_accept_error)
        self.ledger.accepted.setdefault(listener, 0)
        if keywords.get('limits') is None:
            listener.__class__ = watched(type(listener))  # type: ignore[arg-type]
            self.ledger.listeners[listener] = False
        return listener

    def paused(self, listener: Listener, paused: bool) -> None:
        """Record that the user has paused or resumed a listener."""
        if listener in self.ledger.listeners:
            self.ledger.listeners[listener] = paused

    def watch_connect(self, stream: Any, keywords: Any, method: str) -> Stream:
        """Record the time limits of a new connection."""
        stream.record.limits = self.ledger.reached.add_limits(keywords, method, place_of_caller(2))
        if keywords.get('timeout') is not None:
            self.ledger.uses(keywords['timeout'])
            stream.record.connect_by = self.ledger.time() + int(keywords['timeout'] * 1e9)
        return stream  # type: ignore[no-any-return]

    def watch_datagrams(self, sock: DatagramSocket, keywords: Any) -> DatagramSocket:
        """Watch a new datagram socket."""
        sock.__class__ = WatchedDatagramSocket
        self.datagrams[sock] = Datagrams(keywords.get('max_queued', 1 << 20))
        return sock

    # -- turns

    def check_turn(self, timeout: float | None) -> None:
        """Check the last turn, before a poll of `timeout` seconds; raise `Violation` if anything was wrong."""
        self.ledger.turns += 1
        if self.ledger.simulated:
            self.ledger.find_attempts()
        self.ledger.inside = None
        everything = self._over or self._walks.is_time(len(self.kernel.files) + len(self.ledger.streams))
        touched = self.ledger.take_touched(everything)
        if everything:
            self._check_descriptors()
        self._check_bounds()
        self._check_progress(timeout)
        if self.kernel.replaced_in_vain:
            self.violations.append('law 7: the selector was replaced although it worked')
        if self.kernel.misled:
            self.violations.append('law 4: a handle got an event of a file that had the same number before')
        self._check_counts()
        self._check_listeners()
        self._check_datagrams()
        self.calls.check_turn(timeout)
        self.dues.check_turn(timeout, touched)
        self.streams.check_turn(touched)
        self._check_conditions()
        self.ledger.phase, self.ledger.cut, self.ledger.depth = 0, False, _depth()
        if self.violations:
            raise Violation('\n'.join(self.violations))

    def _check_bounds(self) -> None:
        kernel = self.kernel
        for pool, count in kernel.threads.items():
            most = self.threads if pool == 'reactor' else LOOK_UP_THREADS
            if count > most:
                self.violations.append(f'law 6: {count} threads of {pool} are running; at most {most} are allowed')
        for file, count in kernel.reads.items():
            if isinstance(file, Mailbox) and count > DATAGRAMS_PER_TURN:
                self.violations.append(f'law 5: {count} datagrams were received in one turn')
            elif isinstance(file, Listening) and count > ACCEPTS_PER_TURN:
                self.violations.append(f'law 5: {count} clients were accepted in one turn')
            elif isinstance(file, End) and count > READ_PER_TURN and not file.reported:
                record = self.ledger.by_end.get(file)
                if record is not None and record.has_header and count <= 2 * READ_PER_TURN:
                    continue
                self.violations.append(f'law 5: {count} bytes of one connection were read in one turn')

    def _check_progress(self, timeout: float | None) -> None:
        # Law 7: a turn without a successful call or a callback is wasted, whatever its poll returned.
        kernel = self.kernel
        done = kernel.progress, self.ledger.callbacks + self.calls.count, kernel.threads.total()
        time, before, turns = self._last
        if done != before:
            self._idle_polls, self._idle_since = 0, kernel.time
        self._idle_polls += 1
        seconds = (kernel.time - self._idle_since) / 1e9
        if self._idle_polls > MOST_IDLE_POLLS + MOST_A_SECOND * seconds:
            self.violations.append(f'law 7: {self._idle_polls} polls in a row made no progress, in {seconds:g} s')
        turns = turns + 1 if kernel.time == time else 0
        if turns > MOST_TURNS_AT_ONCE:
            self.violations.append(f'law 7: {turns} turns without time passing')
        self._untimed_turns += not self.calls.fired
        if self._is_too_long():
            self.violations.append(
                f'liveness: the run has not ended after {self.ledger.turns} turns of the loop, in '
                f'{(self.kernel.time - START) / 1e9:g} s. If the program needs more, pass `turns=` with their number'
            )
        self._last = kernel.time, done, turns

    def _check_conditions(self) -> None:
        for fn, text in self.conditions:
            try:
                holds = fn()
            except Exception as exc:
                self.violations.append(f'always: {text}: {exc!r} was raised{place_of(exc)}')
            else:
                if not holds and holds is not None:
                    self.violations.append(f'always: this was not true after the turn: {text}')

    def _is_too_long(self) -> bool:
        if self.most_turns is not None:
            return self.ledger.turns > self.most_turns
        return self._untimed_turns > MOST_TURNS or self.ledger.turns > MOST_TURNS_IN_ALL

    def _check_descriptors(self) -> None:
        files = self.kernel.files
        held = {handle.fileno() for handle in self.reactor.handles()}
        held |= self.ledger.foreign
        lost = [fd for fd, file in files.items() if fd not in held and not isinstance(file, Stored)]
        if len(lost) > 2 or not all(files[fd].private for fd in lost):  # the wakeup has two private descriptors
            self.violations.append(f'law 9: descriptors {lost} are open, but belong to no handle')

    def _check_counts(self) -> None:
        counters, ledger = self.reactor.counters, self.ledger
        counted, there = (counters.incoming, counters.outgoing), (ledger.incoming, ledger.outgoing)
        if counted != there:
            self.violations.append(f'(incoming, outgoing) connections are counted as {counted}, but {there} are open')
        for listener, count in ledger.accepted.items():
            if not listener.closed:
                most = listener.max_connections
                # The limit may be lowered at any time; this does not close open connections.
                bound = inf if most is None else most
                before, self._bounds[listener] = self._bounds.get(listener, 0), max(count, bound)
                if listener.open_connections != count or count > max(bound, before):
                    self.violations.append(f'law 6: {listener!r} has {count} open connections; its limit is {most}')

    def _check_listeners(self) -> None:
        listeners = {listener: paused for listener, paused in self.ledger.listeners.items() if not listener.closed}
        self.ledger.listeners = listeners
        paused = {listener for listener, paused in listeners.items() if paused}
        for listener in paused & self._were_paused:
            file = self.kernel.files.get(listener.fileno())
            if file is not None and self.kernel.reads.get(file) and not self.reactor.draining:
                self.violations.append(f'{listener!r} accepted a client although it was paused')
        self._were_paused = paused

    def _check_datagrams(self) -> None:
        self.datagrams = {sock: taken for sock, taken in self.datagrams.items() if not sock.closed}
        for sock, taken in self.datagrams.items():
            queued, buffered = sock.queued, sock.buffered
            if taken.is_too_much(queued, buffered):
                self.violations.append(f'law 6: {queued} datagrams are waiting in {sock!r}, {buffered} bytes in all')
            if not taken.may_wait(queued, buffered):
                self.violations.append(f'{queued} datagrams are waiting in {sock!r}, but `buffered` is {buffered}')

    def check_over(self) -> None:
        """After `run` has returned True, check that the loop waits for nothing and that no timer is left.

        The next `check_turn` checks everything, and not only what has changed.
        """
        self._over = True
        self.streams.check_timers()
        left, buckets = [timer for timer in self.reactor.timers if is_ours(timer)], self.reactor.timers.buckets
        if not self.reactor.handles() and (left or buckets):
            self.violations.append(f'law 9: timers {left} and {len(buckets)} buckets of time limits are left over')
        if self.ledger.begun and self.reactor.why_alive():
            self.violations.append(f'run() returned True, but the loop still waits for {self.reactor.why_alive()}')

    def check_closed(self) -> None:
        """After `close()` of the reactor, check that nothing is left."""
        for stream in self.ledger.streams:
            self.ledger.wrong(stream, 'law 1: on_close was never called')
        if self.kernel.files.keys() - self.ledger.foreign:
            self.violations.append(f'law 9: descriptors {sorted(self.kernel.files)} are open after close()')
        handlers = {SIGINT: default_int_handler, **self.kernel.handlers}
        changed = [n for n, fn in handlers.items() if fn is not (default_int_handler if n == SIGINT else SIG_DFL)]
        if changed or self.kernel.wakeup_fd != -1:
            self.violations.append(
                f'law 11: after close(), the handlers of signals {changed} are not restored, '
                f'and the wakeup descriptor is {self.kernel.wakeup_fd}'
            )
        if self.violations:
            raise Violation('\n'.join(self.violations))


class Violation(BaseException):
    """A law was broken. This is not an `Exception`, so it is not caught like a callback's error, and leaves `run`."""


def _depth() -> int:
    frame, depth = _getframe(), 1
    while frame := frame.f_back:  # type: ignore[assignment]  # None after the outermost frame
        depth += 1
    return depth
