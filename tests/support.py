"""What the tests share: running until something holds, a clock that moves only in `select`, sockets to fill."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any

from reactor import Reactor, Stream
from reactor.kernel import Kernel

SELECTORS = {
    'default': selectors.DefaultSelector,
    'poll': getattr(selectors, 'PollSelector', None),
    'select': selectors.SelectSelector,
}


def run_until(r: Reactor, predicate: Any, timeout: float = 10) -> None:
    """Run turns until `predicate()` holds; fail with the reasons why the loop goes on when it does not in time."""
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError('not in time; still alive:\n' + '\n'.join(r.why_alive()))
        r.run_once(0.05)


def turns(r: Reactor, count: int) -> None:
    """Run so many turns without waiting."""
    for _ in range(count):
        r.run_once(0)


def fill(sock: socket.socket) -> int:
    """Write to a non-blocking socket until it takes no more; returns how many bytes it took."""
    total = 0
    try:
        while True:
            total += sock.send(b'\xff' * 65536)
    except BlockingIOError:
        return total


def drain(sock: socket.socket) -> bytes:
    """Read what a non-blocking socket has, to its end or until it would block."""
    pieces = []
    try:
        while piece := sock.recv(1 << 20):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b''.join(pieces)


def read_all(r: Reactor, sock: socket.socket, timeout: float = 10) -> bytes:
    """Read a non-blocking socket to its end while the reactor runs."""
    pieces: list[bytes] = []
    ended = False

    def read() -> bool:
        nonlocal ended
        try:
            while piece := sock.recv(1 << 20):
                pieces.append(piece)
            ended = True
        except BlockingIOError:
            pass
        return ended

    run_until(r, read, timeout)
    return b''.join(pieces)


class Log(list):  # type: ignore[type-arg]
    """What happened, in order: its methods are callbacks that append (name, ...) and can be given to any stream."""

    def on_connect(self, conn: Stream) -> None:
        self.append(('connect',))

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.append(('data', data))

    def on_eof(self, conn: Stream) -> None:
        self.append(('eof',))

    def on_drain(self, conn: Stream) -> None:
        self.append(('drain',))

    def on_written(self, conn: Stream, *args: Any) -> None:
        self.append(('written', *args))

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.append(('close', exc))

    def on_error(self, conn: Stream, exc: BaseException) -> None:
        self.append(('error', exc))

    def callbacks(self, *names: str) -> dict[str, Any]:
        """Keyword arguments for the named callbacks."""
        return {name: getattr(self, name) for name in names}

    def names(self) -> list[str]:
        """Only what happened."""
        return [entry[0] for entry in self]

    @property
    def received(self) -> bytes:
        """The bytes of all on_data."""
        return b''.join(entry[1] for entry in self if entry[0] == 'data')


class FakeSelector(selectors.BaseSelector):
    """A real selector that never waits: what it would have waited is added to its kernel's clock."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.real = selectors.DefaultSelector()
        self.kernel = kernel
        self.waits: list[float | None] = []

    def register(self, fileobj, events, data=None):  # type: ignore[no-untyped-def]
        return self.real.register(fileobj, events, data)

    def unregister(self, fileobj):  # type: ignore[no-untyped-def]
        return self.real.unregister(fileobj)

    def modify(self, fileobj, events, data=None):  # type: ignore[no-untyped-def]
        return self.real.modify(fileobj, events, data)

    def select(self, timeout=None):  # type: ignore[no-untyped-def]
        self.waits.append(timeout)
        ready = self.real.select(0)
        if not ready:
            if timeout is None:
                raise AssertionError('the loop would wait for ever')
            self.kernel.time += timeout
        return ready

    def get_map(self):  # type: ignore[no-untyped-def]
        return self.real.get_map()

    def close(self) -> None:
        self.real.close()


class FakeKernel(Kernel):
    """The real kernel with a clock that starts at 1000 s and moves only while the loop would wait."""

    def __init__(self) -> None:
        self.time = 1000.0

    def clock(self) -> float:  # type: ignore[override]
        return self.time

    def selector(self) -> FakeSelector:
        return FakeSelector(self)
