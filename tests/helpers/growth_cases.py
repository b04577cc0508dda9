"""Cases for `test_growth.py`: each is a function that does something with n things, such as n timers.

Only the work to be measured happens inside `meter`, a context manager. So the same cases can be used to count bytecodes
and, in `work_in_c.py`, instructions. This module imports no test module, because imports are slow under callgrind.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
from collections import deque
from types import SimpleNamespace
from typing import Any

from reactor import Limits, Reactor, framing
from reactor.admission.networks import Networks
from reactor.framing import Frames
from reactor.kernel import Kernel
from reactor.loop.buckets import Buckets
from reactor.loop.threads import QUEUE_LIMIT
from reactor.net.addresses import interleave
from reactor.net.writer import Writer
from reactor.system.paths import Changes
from tests.helpers.support import FakeKernel, ManyAddresses, ScriptedKernel, ScriptedSocket, turns

CASES: dict[str, tuple[Any, int]] = {}


def case(size: int) -> Any:
    """Register `fn(n, meter)`, which does something with n things inside `meter`; the first n is `size`."""

    def add(fn: Any) -> Any:
        CASES[fn.__name__] = fn, size
        return fn

    return add


def nothing(*args: Any) -> None:
    pass


ORDERS = {
    'ascending': lambda things: things,
    'descending': lambda things: things[::-1],
    'at random': lambda things: random.Random(1).sample(things, len(things)),
}


# -- timers

DELAYS = {**ORDERS, 'all the same': lambda numbers: [7] * len(numbers)}


def timers_cases() -> None:
    def make(delays: Any, order: Any, what: str) -> Any:
        def run(n: int, meter: Any) -> None:
            kernel = FakeKernel()
            with Reactor(kernel=kernel) as r:
                chosen = delays(list(range(1, n + 1)))
                if what == 'set':
                    with meter:
                        for delay in chosen:
                            r.call_later(delay, nothing)
                    return
                timers = [r.call_later(delay, nothing) for delay in chosen]
                if what == 'fire together':
                    kernel.time += 2 * n
                with meter:
                    if what.startswith('fire'):
                        r.run()
                    for timer in order(timers) if what == 'cancelled' else ():
                        timer.cancel()
                    for timer in order(timers) if what == 'reset' else ():
                        timer.reset()

        return run

    for delays in DELAYS:
        CASES[f'timers set, {delays}'] = make(DELAYS[delays], None, 'set'), 128
        for what in 'fire', 'fire together':
            CASES[f'timers that {what}, {delays}'] = make(DELAYS[delays], None, what), 128
        for order in ORDERS:
            for what in 'cancelled', 'reset':
                CASES[f'timers set {delays}, {what} {order}'] = make(DELAYS[delays], ORDERS[order], what), 128


timers_cases()


@case(128)
def timers_reset_again_and_again(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        timers = [r.call_later(60, nothing) for _ in range(16)]
        with meter:
            for number in range(n):
                r._clock.__self__.time += 0.001
                timers[number % 16].reset()


def batch_case(order: Any, what: str) -> Any:
    def run(n: int, meter: Any) -> None:
        kernel = FakeKernel()
        with Reactor(kernel=kernel) as r:

            def first() -> None:
                for timer in order(timers):
                    timer.reset(5) if what == 'reset' else timer.cancel()

            r.call_later(1, first)
            timers = [r.call_later(1 + number / n, nothing) for number in range(n)]
            kernel.time += 3
            with meter:
                r.run()

    return run


for each in ORDERS:
    for done in 'reset', 'cancelled':
        CASES[f'timers due together, {done} by the first of them, {each}'] = batch_case(ORDERS[each], done), 128


@case(64)
def timers_that_repeat(n, meter):
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        timers = [r.call_every(1, nothing) for _ in range(n)]
        with meter:
            turns(r, 3)
            kernel.time += 1
            turns(r, 3)
        for timer in timers:
            timer.cancel()


@case(64)
def timers_unreferenced(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        timers = [r.call_later(1, nothing) for _ in range(n)]
        with meter:
            for timer in timers:
                timer.unref()
            for timer in timers:
                timer.ref()
            for timer in timers:
                timer.unref()
            r.run()


# -- time limits


class Member:
    def handle_look(self, now: float) -> None:
        pass


def bucket_case(order: Any, seconds: Any) -> Any:
    def run(n: int, meter: Any) -> None:
        with Reactor(kernel=FakeKernel()) as r:
            buckets: Buckets = r.timers.buckets
            members = [(Member(), 1001 + second) for second in seconds(list(range(n)))]
            with meter:
                placed = [(member, buckets.add(member, when)) for member, when in members]
                for member, second in order(placed):
                    buckets.discard(member, second)

    return run


for each in ORDERS:
    CASES[f'time limits in one second, discarded {each}'] = bucket_case(ORDERS[each], lambda n: [5] * len(n)), 128
    for spread in ORDERS:
        name = f'time limits in many seconds, {spread}, discarded {each}'
        CASES[name] = bucket_case(ORDERS[each], ORDERS[spread]), 256


@case(128)
def time_limits_that_are_due(n, meter):
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        for number in range(n):
            r.timers.buckets.add(Member(), 1001 + number % 7)
        kernel.time += 20
        with meter:
            while len(r.timers.buckets):
                r.run_once(0)


# -- handles


def streams(r: Reactor, n: int, **options: Any) -> list[Any]:
    kernel = r.kernel
    return [r.adopt(Numbered(kernel, number), **options) for number in range(n)]


class Numbered(ScriptedSocket):
    """A scripted socket with a given number, because the search for a free number gets slower with each socket."""

    def __init__(self, kernel: Any, number: int) -> None:
        self.kernel = kernel
        self.number = number + 100
        kernel.open[self.number] = self
        self.incoming = deque()
        self.outcomes = None
        self.backlog = deque()
        self.sent = bytearray()
        self.calls = []


def handles_case(what: str, order: Any) -> Any:
    def run(n: int, meter: Any) -> None:
        with Reactor(kernel=ScriptedKernel()) as r:
            if what == 'opened':
                sockets = [Numbered(r.kernel, number) for number in range(n)]
                with meter:
                    for sock in sockets:
                        r.adopt(sock)
                return
            conns = order(streams(r, n, idle_timeout=60) if what == 'closed, timed' else streams(r, n))
            if what == 'resumed':
                for conn in conns:
                    conn.pause_reading()
            if what == 'paused and closed':
                for conn in conns:
                    conn.pause_reading()
            if what == 'lost':
                for conn in conns:
                    r.kernel.open.pop(conn.sock.number)
            with meter:
                for conn in conns:
                    if what.startswith('closed') or what == 'paused and closed':
                        conn.close()
                    elif what == 'aborted':
                        conn.abort()
                    elif what == 'paused':
                        conn.pause_reading()
                    elif what == 'resumed':
                        conn.resume_reading()
                    elif what == 'unreferenced':
                        conn.unref()
                    elif what == 'lost':
                        r.watchers.evict(conn)
                    elif what == 'busy':
                        conn.busy = True
                        conn.busy = False
                if what not in ('paused', 'resumed', 'unreferenced', 'busy'):
                    r._run_completions(len(r.completions))

    return run


CASES['handles opened'] = handles_case('opened', None), 64
for each in ORDERS:
    for done in (
        'closed', 'closed, timed', 'aborted', 'paused', 'resumed', 'paused and closed', 'unreferenced', 'lost', 'busy',
    ):  # fmt: skip
        CASES[f'handles {done}, {each}'] = handles_case(done, ORDERS[each]), 64


@case(64)
def handles_when_the_reactor_is_closed(n, meter):
    r = Reactor(kernel=ScriptedKernel())
    streams(r, n, idle_timeout=10)
    for _ in range(n):
        r.call_later(1, nothing)
        r.notifier(nothing)
        r.add_exit_callback(nothing)
        r.add_drain_callback(nothing)
        r.call_soon(nothing)
    with meter:
        r.close()


@case(64)
def open_handles_are_listed(n, meter):
    with Reactor(kernel=ScriptedKernel()) as r:
        streams(r, n)
        for _ in range(n):
            r.call_later(1, nothing)
            r.call_soon(nothing)
        with meter:
            r.handles()
            r.why_alive()


@case(64)
def snapshots_while_much_is_open(n, meter):
    """Take n snapshots: each must cost the same, however many handles are open."""
    with Reactor(kernel=ScriptedKernel()) as r:
        streams(r, n)
        for _ in range(n):
            r.call_later(1, nothing)
        with meter:
            for _ in range(n):
                r.stats()
                r.timeout()
                r.why_alive(0)


@case(64)
def connections_that_end_while_the_loop_runs(n, meter):
    with Reactor(kernel=ScriptedKernel()) as r:
        conns = streams(r, n, on_close=nothing)
        for conn in conns:
            conn.sock.incoming.append(b'')
        with meter:
            r.run()


@case(32)
def drain_callbacks(n, meter):
    with Reactor(kernel=ScriptedKernel()) as r:
        for _ in range(n):
            r.add_drain_callback(nothing)
        with meter:
            r.drain(10)
            r.run()


@case(32)
def exit_callbacks(n, meter):
    r = Reactor(kernel=ScriptedKernel())
    for _ in range(n):
        r.add_exit_callback(nothing)
    with meter:
        r.close()


# -- writing


def writes_case(data: bytes, marks: bool, taken: Any) -> Any:
    def run(n: int, meter: Any) -> None:
        with Reactor(kernel=ScriptedKernel()) as r:
            (conn,) = streams(r, 1)
            conn.options = conn.options.changed(max_buffered=1 << 30)
            sock = conn.sock
            sock.outcomes = deque()
            with meter:
                for _ in range(n):
                    conn.write(data, nothing if marks else None)
                sock.outcomes = taken(n, len(data))
                while conn.buffered:
                    r.run_once(0)
            conn.abort()

    return run


WRITES = {'small': b'x' * 10, 'large': b'x' * 5000}
TAKEN = {
    'all at once': lambda n, size: None,
    'one by one': lambda n, size: deque([size] * n),
}
for size_name, payload in WRITES.items():
    for each, taken in TAKEN.items():
        for marks in False, True:
            kind = f'writes that wait, {size_name}{", with callbacks" if marks else ""}, taken {each}'
            CASES[kind] = writes_case(payload, marks, taken), 64


@case(64)
def buffers_of_one_writelines(n, meter):
    with Reactor(kernel=ScriptedKernel()) as r:
        (conn,) = streams(r, 1)
        conn.sock.outcomes = deque([1])
        with meter:
            conn.writelines([b'x' * 5000] * n, nothing)
            conn.sock.outcomes = None
            while conn.buffered:
                r.run_once(0)
        conn.abort()


@case(64)
def datagrams_that_wait(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        sock = r.bind_udp('127.0.0.1', 0, nothing)
        taken = deque()

        def sendto(data, target):
            if not taken:
                raise BlockingIOError
            taken.popleft()

        real, sock.sock = sock.sock, SimpleNamespace(
            sendto=sendto, fileno=sock.sock.fileno, close=sock.sock.close, getsockname=sock.sock.getsockname
        )  # fmt: skip
        with meter:
            for _ in range(n):
                sock.send(b'x', ('127.0.0.1', 9))
            taken.extend(range(n))
            while sock.queued:
                r.run_once(0)
        sock.sock = real
        sock.close()


@case(64)
def receivers_of_datagrams_that_are_full(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        sock = r.bind_udp('127.0.0.1', 0, nothing)
        sock._per_receiver = True
        full = True

        def sendto(data, target):
            if full:
                raise BlockingIOError

        real, sock.sock = sock.sock, SimpleNamespace(
            sendto=sendto, fileno=sock.sock.fileno, close=sock.sock.close, getsockname=sock.sock.getsockname
        )  # fmt: skip
        with meter:
            for number in range(n):
                sock.send(b'x', ('127.0.0.1', 9 + number))
            full = False
            while sock.queued:
                r.run_once(0)
        sock.sock = real
        sock.close()
        ours.close()


# -- framing


def frames_case(take: Any, args: tuple[Any, ...], pieces: Any) -> Any:
    def run(n: int, meter: Any) -> None:
        frames = Frames(1 << 30)
        with meter:
            for piece in pieces(n):
                frames.feed(piece)
                while take(frames, *args) is not None:
                    pass

    return run


FRAMES = {
    'a line in pieces': (Frames.line, (), lambda n: [b'x' * 100] * n),
    'a line in pieces of a byte': (Frames.line, (), lambda n: [b'x'] * n),
    'a message with a long delimiter, in pieces': (Frames.until, (b'\r\n\r\n',), lambda n: [b'\r\n\r'] * n),
    'lines in a chunk': (Frames.line, (), lambda n: [b'\n' * n]),
    'delimiters in a chunk': (Frames.until, (b'\0\0',), lambda n: [b'\0' * n]),
    'lengths in a chunk': (Frames.prefixed, (1,), lambda n: [b'\0' * n]),
    'a length and its bytes in pieces': (Frames.prefixed, (4,), lambda n: [n.to_bytes(4, 'big'), *[b'x'] * n]),
    'blocks in a chunk': (Frames.exactly, (3,), lambda n: [b'xyz' * n]),
    'a block in pieces': (lambda frames, n=0: frames.exactly(1 << 20), (), lambda n: [b'x'] * n),
}
for each, arguments in FRAMES.items():
    CASES[each] = frames_case(*arguments), 64


@case(256)
def lines_of_a_connection(n, meter):
    with Reactor(kernel=ScriptedKernel()) as r:
        (conn,) = streams(r, 1, on_data=framing.lines(nothing))
        conn.sock.incoming.append(b'\n' * n)
        with meter:
            r.run_once(0)
            while r.completions:
                r.run_once(0)
        conn.abort()


# -- state that a server keeps about its clients


def admission_case(addresses: Any, order: Any) -> Any:
    def run(n: int, meter: Any) -> None:
        with Reactor(kernel=ScriptedKernel()) as r:
            limits = Limits(per_address=10**6, connect_rate=(1.0, 10**6), lifetime=60, max_addresses=n // 2)
            conns = streams(r, n)
            with meter:
                for number, conn in enumerate(conns):
                    known, refusal = limits.judge(Kernel(), addresses(number), 1000.0)
                    assert refusal is None
                    limits.track(conn, known, 1000.0)
                for conn in order(conns):
                    limits.handle_closed(conn)

    return run


for each in ORDERS:
    CASES[f'clients of one address that go {each}'] = admission_case(lambda n: ('192.0.2.1', n), ORDERS[each]), 64
    CASES[f'clients of many addresses that go {each}'] = (
        admission_case(lambda n: (f'10.{n >> 16}.{n >> 8 & 255}.{n & 255}', 1), ORDERS[each]), 64,
    )  # fmt: skip


@case(64)
def clients_that_are_refused(n, meter):
    limits = Limits(connect_rate=(1.0, 1.0), max_addresses=10)
    with meter:
        for number in range(n):
            limits.judge(Kernel(), (f'10.0.{number >> 8}.{number & 255}', 1), 1000.0)


@case(64)
def networks(n, meter):
    with meter:
        trusted = Networks(Kernel(), [f'10.{number >> 8}.{number & 255}.0/24' for number in range(n)])
        assert ('192.0.2.1', 1) not in trusted


# -- look-ups, threads, signals, and the rest


class Direct(FakeKernel):
    """A kernel whose threads run to their end when the test calls `work_off`."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Any] = []

    def start_thread(self, fn: Any, name: str) -> None:
        self.work.append(fn)

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        if flags:
            raise socket.gaierror
        return [(socket.AF_INET, kind, 0, '', ('192.0.2.1', port))]

    def work_off(self) -> None:
        while self.work:
            self.work.pop()()


@case(64)
def look_ups(n, meter):
    kernel = Direct()
    with Reactor(kernel=kernel) as r:
        with meter:
            for _ in range(n):
                r.resolve('name', nothing)
            kernel.work_off()
            while r.handles():
                r.run_once(0)
                kernel.work_off()


@case(64)
def look_ups_that_are_closed(n, meter):
    kernel = Direct()
    with Reactor(kernel=kernel) as r:
        with meter:
            lookups = [r.resolve('name', nothing) for _ in range(n)]
            for lookup in reversed(lookups):
                lookup.close()
            kernel.work_off()
            turns(r, 2)


@case(64)
def calls_beyond_the_queue_limit_of_threads(n, meter):
    kernel = Direct()
    with Reactor(kernel=kernel) as r:
        for _ in range(QUEUE_LIMIT):
            r.run_in_thread(nothing)
        r.run_once(0)
        r.run_in_thread(nothing)  # this call searches the queue for cancelled calls, as happens once per turn
        with meter:
            for _ in range(n):
                r.run_in_thread(nothing)
        r._threads._queue.clear()


@case(64)
def calls_of_threads(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        with meter:
            for _ in range(n):
                r.call_soon_threadsafe(nothing)
            while r._wakeup.calls or r._soon:
                r.run_once(0)


@case(64)
def idlers(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        with meter:
            opened = [r.idle(nothing) for _ in range(n)]
            turns(r, 3)
            for idler in opened:
                idler.close()


@case(64)
def idlers_that_close_themselves(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        with meter:
            opened: deque[Any] = deque()
            for _ in range(n):
                opened.append(r.idle(lambda: opened.popleft().close()))
            turns(r, 3)
        assert not opened


@case(64)
def notifiers(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        with meter:
            opened = [r.notifier(nothing, once=False) for _ in range(n)]
            for notifier in opened:
                notifier.trigger()
            turns(r, 3)
            for notifier in opened:
                notifier.close()


@case(64)
def signal_handlers_added_and_removed(n, meter):
    with Reactor() as r:
        with meter:
            for _ in range(n):
                r.add_signal_handler(signal.SIGUSR1, nothing)
                r.remove_signal_handler(signal.SIGUSR1)


@case(64)
def signals_that_arrive(n, meter):
    with Reactor() as r:
        r.add_signal_handler(signal.SIGUSR1, nothing)
        with meter:
            for _ in range(n):
                signal.raise_signal(signal.SIGUSR1)
            turns(r, 3)


@case(4)
def reactors_with_signal_handlers(n, meter):
    """All reactors of a process share a list of handled signals, which each of them searches, so n is small."""
    with meter:
        reactors = [Reactor() for _ in range(n)]
        for r in reactors:
            r.add_signal_handler(signal.SIGUSR1, nothing)
        for r in reactors:
            r.close()


@case(64)
def watched_descriptors(n, meter):
    with Reactor(kernel=FakeKernel()) as r:
        pairs = [socket.socketpair() for _ in range(n)]
        with meter:
            watched = [r.watch_fd(ours, 1, nothing) for ours, _ in pairs]
            for descriptor in watched:
                descriptor.set_events(3)
            for descriptor in watched:
                descriptor.close()
        for each in pairs:
            for sock in each:
                sock.close()


@case(64)
def changes_of_paths(n, meter):
    changes = Changes('/tmp', None, '/tmp')
    with meter:
        for number in range(n):
            changes.dispatch(SimpleNamespace(event_type='created', src_path=f'/tmp/{number}', dest_path=''))
        for number in range(n):
            changes.dispatch(SimpleNamespace(event_type='deleted', src_path=f'/tmp/{number}', dest_path=''))
        assert len(changes.take()) == min(n, 1000)


@case(64)
def addresses_that_are_all_unreachable(n, meter):
    closed = []
    with Reactor(kernel=ManyAddresses(n)) as r:
        with meter:
            r.connect_tcp('many', 1, on_close=lambda conn, exc: closed.append(exc))
            while not closed:
                r.run_once(0)


@case(64)
def addresses_that_do_not_answer(n, meter):
    """Every quarter of a second the reactor tries another address. At the end, all attempts are closed at once."""
    kernel, pipes = ManyAddresses(n), []
    real = FakeKernel()

    def make(family, kind, proto=0):
        pipes.append(os.pipe())
        return Silent(pipes[-1][0])

    kernel.socket, kernel.clock, kernel.selector = make, real.clock, real.selector
    connected = []
    with Reactor(kernel=kernel) as r:
        conn = r.connect_tcp('many', 1, on_connect=connected.append, timeout=10**6)
        with meter:
            while len(pipes) < n:
                r.run_once(0)
                real.time += 0.25
        conn.abort()
    for reading, writing in pipes:
        os.close(reading)
        os.close(writing)


class Silent:
    """A socket whose peer does not answer, simulated by an end of a pipe that is never writable."""

    family = socket.AF_INET

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def connect_ex(self, address: Any) -> int:
        return errno.EINPROGRESS

    def getsockopt(self, level: int, name: int) -> int:
        return 0

    def getpeername(self) -> Any:
        raise OSError(errno.ENOTCONN, 'not connected')

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        pass

    def setblocking(self, flag: bool) -> None:
        pass


@case(64)
def addresses_of_two_families_in_turn(n, meter):
    found = [(10, number) for number in range(n)] + [(2, number) for number in range(n)]
    with meter:
        assert len(interleave(found)) == 2 * n


@case(64)
def marks_of_a_writer(n, meter):
    writer = Writer()
    with meter:
        for _ in range(n):
            writer.extend((b'x',), nothing, ())
        writer.buffers()
        writer.advance(n)
        assert len(writer.reached()) == n
