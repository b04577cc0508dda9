"""Exhausted memory and stack for tests: the n-th allocation fails, or only n stack frames are left.

This module has the faults, the `World` in which a program runs, and the laws that are checked after each run.

The callbacks that record events allocate nothing, so no fault happens in them. After the fault every program continues
as a user would: it closes some handles and goes on using the others.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from reactor import Reactor
from reactor.kernel.sockets import LeanSocket
from tests.helpers.support import FakeKernel, FakeSelector

try:
    import _testcapi

    HAS_FAULTS = hasattr(_testcapi, 'set_nomemory')
except ImportError:
    HAS_FAULTS = False

HOST = '127.0.0.1'
MANY = 1_000_000  # more allocations than any program makes
PLACES = 64  # the most connections that one program can close
SETTLED = 60  # more turns than any program needs without faults
EXHAUSTED = (MemoryError, RecursionError)


def need_faults() -> None:
    """Skip the test if this Python cannot make allocations fail."""
    if not HAS_FAULTS:
        pytest.skip('UNTESTED: this Python has no _testcapi.set_nomemory, so no allocation can be made to fail')


def depth() -> int:
    """Count the frames of the caller's stack."""
    frame, count = sys._getframe(1), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


def dive(frames: int, fn: Callable[[], Any]) -> Any:
    """Call `fn` with `frames` more frames on the stack."""
    return fn() if frames <= 0 else dive(frames - 1, fn)


def near_limit(left: int, fn: Callable[[], Any], room: int = 150) -> Any:
    """Call `fn` with only `left` frames left on the stack; the recursion limit is lowered during the call."""
    limit, here = sys.getrecursionlimit(), depth()
    sys.setrecursionlimit(here + room)
    try:
        return dive(room - left - 2, fn)
    finally:
        sys.setrecursionlimit(limit)


def is_traced() -> bool:
    """Return whether coverage is being measured; its trace function would itself run out of stack."""
    monitoring = getattr(sys, 'monitoring', None)
    return sys.gettrace() is not None or bool(monitoring and monitoring.get_tool(monitoring.COVERAGE_ID))


def allocations(fn: Callable[[], Any]) -> int:
    """Count the allocations that `fn` makes; the count is too high by a few."""
    _testcapi.set_nomemory(MANY, MANY + 1)
    try:
        fn()
        left = 0
        while True:
            object()
            left += 1  # a count above 256 is itself an allocated int
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
    return MANY - 2 * left + 300


leaked = bytearray(1)  # the number of descriptors that CPython has leaked
_accept = LeanSocket._accept


def accept(sock: socket.socket) -> Any:
    """Call `_accept` and count descriptors that CPython leaks for lack of memory for their number or address."""
    try:
        return _accept(sock)
    except EXHAUSTED:
        leaked[0] += 1
        raise


def no_fault() -> None:
    """End the shortage of memory."""
    if HAS_FAULTS:
        _testcapi.remove_mem_hooks()


class Fault:
    """The n-th allocation fails; with `in_a_row` above 1, the following allocations fail, too."""

    def __init__(self, n: int, in_a_row: int = 1) -> None:
        self.n, self.in_a_row = n, in_a_row

    def __repr__(self) -> str:
        return f'allocation {self.n} fails, {self.in_a_row} in a row'

    def run(self, turns: Callable[[], Any]) -> None:
        # CPython reports a MemoryError raised in its own code through sys.unraisablehook and then continues.
        hook, sys.unraisablehook = sys.unraisablehook, lambda what: memory_alone(what, hook)
        _testcapi.set_nomemory(self.n, self.n + self.in_a_row)
        try:
            turns()
        finally:
            _testcapi.remove_mem_hooks()
            sys.unraisablehook = hook


def memory_alone(what: Any, hook: Callable[[Any], object]) -> None:
    """Pass everything to `hook` except a MemoryError raised by the interpreter itself."""
    if what.object is not None or not isinstance(what.exc_value, MemoryError):
        hook(what)


class Deep:
    """A fault: turns run with only `left` frames left on the stack."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __repr__(self) -> str:
        return f'turns are run with {self.left} frames left'

    def run(self, turns: Callable[[], Any]) -> None:
        near_limit(self.left, turns)


class NoFault:
    """A run without a fault, in which allocations are counted."""

    def __repr__(self) -> str:
        return 'no fault'

    def run(self, turns: Callable[[], Any]) -> None:
        turns()


class World:
    """One program on real sockets: its handles, the connections whose end was reported, and its promises.

    `promises` must be kept once the fault is over; each is checked after the program has settled.
    """

    def __init__(self, selector: Callable[[], Any], contexts: Any = None, left: int = 0) -> None:
        self.kernel = FakeKernel()
        fake = FakeSelector(self.kernel)
        fake.real.close()
        fake.real = selector()
        self.kernel.selector = lambda: fake  # type: ignore[method-assign, assignment, return-value]
        self.kernel.sleep = lambda seconds: no_fault()  # type: ignore[method-assign, assignment]
        self.contexts = contexts
        self.left = left  # frames left on the stack for actions near the limit
        self.r = Reactor(kernel=self.kernel)
        self.wakeup_fd = self.r.fileno() if hasattr(fake, 'fileno') else -1
        self.socks: list[socket.socket] = []
        self.handles: list[Any] = []  # held by the program and closed at the end
        self.conns: list[Any] = []  # connections returned by a call
        self.servers: list[Any] = []
        self.ended: list[Any] = [None] * PLACES
        self.errors: list[Any] = [None] * PLACES
        self.count = bytearray(1)
        self.called = bytearray(64)
        self.promises: list[Callable[[], str | None]] = []
        self.escaped: list[BaseException] = []

    # -- methods that programs call

    def on_close(self, conn: Any, exc: BaseException | None) -> None:
        """Record the end of a connection without allocating memory."""
        at = self.count[0]
        self.ended[at] = conn
        self.errors[at] = exc
        self.count[0] = at + 1

    def tick(self, place: int) -> Callable[[], None]:
        """Return a callback that counts its calls in `called[place]` without allocating memory."""
        called = self.called

        def tick(a: Any = None, b: Any = None) -> None:
            called[place] += 1

        return tick

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return two connected, non-blocking TCP sockets."""
        with socket.create_server((HOST, 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours = server.accept()[0]
        for sock in ours, theirs:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            self.socks.append(sock)
        return ours, theirs

    def adopt(self, sock: socket.socket, **keywords: Any) -> Any:
        conn = self.r.adopt(sock, on_close=self.on_close, **keywords)
        self.socks.remove(sock)
        self.conns.append(conn)
        return conn

    def listen(self, **keywords: Any) -> Any:
        server = self.r.listen_tcp(HOST, 0, on_close=self.on_close, **keywords)
        self.servers.append(server)
        return server

    def client(self, server: Any) -> socket.socket:
        sock = socket.create_connection(server.address)
        sock.setblocking(False)
        self.socks.append(sock)
        return sock

    def act(self, fn: Callable[[], Any]) -> None:
        """Call `fn` in the loop, where the fault can occur."""
        left = self.left
        if left:
            self.r.call_soon(attempt, lambda: near_limit(left, fn))
        else:
            self.r.call_soon(attempt, fn)

    # -- running a program

    def run(self, fault: Any) -> str | None:
        """Run the program's turns with `fault`, then end it without the fault; returns the broken law, or None."""
        run_once, escaped = self.r.run_once, [None] * SETTLED

        def turn() -> None:
            for index in range(12):
                try:
                    run_once(1.0)
                except EXHAUSTED as exc:
                    escaped[index] = exc  # type: ignore[call-overload]

        try:
            fault.run(turn)
        except EXHAUSTED:
            pass  # an allocation of the test itself failed
        self.escaped = [exc for exc in escaped if exc is not None]
        try:
            return self.verdict()
        except AssertionError as exc:
            return f'{exc}' or repr(exc)
        except Exception as exc:
            return f'{type(exc).__name__}: {exc}'

    def verdict(self) -> str | None:
        r = self.r
        self.settle('after the fault')
        for promise in self.promises:
            wrong = promise()
            if wrong:
                return wrong
        closing = [conn for conn in [*self.conns, *r.handles()] if hasattr(conn, 'write') and not conn.closed]
        for conn in closing:
            conn.abort()
        self.settle('after everything was aborted')
        ended = self.ended[: self.count[0]]
        for conn in ended:
            if sum(other is conn for other in ended) > 1:
                return f'law 1: on_close of {conn!r} was called twice'
        for conn in [*self.conns, *closing]:
            if not any(other is conn for other in ended):
                return f'law 1: on_close of {conn!r} was not called'
        stats = r.stats()
        if (stats.incoming, stats.outgoing) != (0, 0):
            return f'the gauges show {stats.incoming} incoming and {stats.outgoing} outgoing, but no connection is open'
        for server in self.servers:
            wrong = self.still_serves(server)
            if wrong:
                return wrong
        return self.ends()

    def settle(self, when: str) -> None:
        """Run turns and advance the clock until nothing more happens; the loop must come to rest."""
        until = self.kernel.time + 100
        for _ in range(SETTLED * 10):
            before = self.r.stats().events
            try:
                self.r.run_once(20)
            except Exception as exc:
                raise AssertionError(f'law 8: run_once raised {exc!r} {when}') from exc
            busy = self.r.stats().events != before or self.r.completions or self.r._soon
            if not busy and (self.kernel.time >= until or not self.r._alive.any_reason()):
                return
        raise AssertionError(f'law 7: still busy after {SETTLED * 10} turns {when}: {self.r.why_alive(5)}')

    def still_serves(self, server: Any) -> str | None:
        if server.closed:
            return None
        if server._paused:  # the program has paused the listener, and then had no memory to resume it
            server.resume()
        if server.open_connections:
            return f'{server!r} counts {server.open_connections} connections, but none is open'
        before = self.r.stats().accepts
        with socket.create_connection(server.address):
            for _ in range(4):
                self.r.run_once(0.2)
        self.settle('after a new client')
        return None if self.r.stats().accepts > before else f'law 8: {server!r} no longer accepts clients'

    def ends(self) -> str | None:
        r = self.r
        for handle in [*self.handles, *self.servers]:
            handle.close()
        self.settle('after everything was closed')
        for handle in r.handles():
            return f'law 9: {handle!r} is left'
        for timer in r.timers:
            return f'law 9: {timer!r} is left'
        if r.timers.referenced or r.watchers.referenced or len(r.timers.buckets):
            return (
                f'law 9: {r.timers.referenced} timers, {r.watchers.referenced} handles and {len(r.timers.buckets)} '
                'time limits are counted, but none is left'
            )
        if r._alive.any_reason():
            return 'run would not return, although nothing is left'
        return None

    def close(self) -> None:
        try:
            self.r.close()
        finally:
            for sock in self.socks:
                sock.close()


def attempt(fn: Callable[[], Any]) -> None:
    """Call `fn` as a careful user does: ignore a failure for lack of memory or stack."""
    try:
        fn()
    except EXHAUSTED:
        pass
