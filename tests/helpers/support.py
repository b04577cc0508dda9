"""Shared helpers of the tests: running until a condition holds, fake clocks, scripted sockets, logs of callbacks."""

from __future__ import annotations

import ctypes
import errno
import selectors
import socket
import struct
import threading
import time
from collections import deque
from inspect import signature
from typing import Any, get_args, get_type_hints

from reactor import READ, Reactor, Stream
from reactor.kernel import Kernel
from reactor.kernel.polling import EventSelector, can_report_numbers
from reactor.loop.watcher import Handle
from reactor.testing import SimKernel

SELECTORS = {
    'default': EventSelector if can_report_numbers() else selectors.DefaultSelector,
    'poll': getattr(selectors, 'PollSelector', None),
    'select': selectors.SelectSelector,
}

# Methods that the parts of the reactor call on each other. They do not belong to the API.
INTERNAL = {
    *('accept_client', 'accept_queue_empty', 'attach', 'begin', 'begin_closing', 'connect', 'evict', 'finish'),
    *('forget', 'has_ended_writing', 'has_log_limit', 'lose', 'may_log', 'opened', 'overflows', 'read_failed'),
    'refuse_writes',
    *('refuses', 'reset', 'set_reading', 'set_suspended', 'shut_down', 'start_timeouts'),
    *('judge', 'track', 'admit_proxied', 'waits_for', 'write_failed', 'datagram_failed', 'take'),
}


def options_of(method: Any) -> list[str]:
    """Return the names of all options of a method: its own keyword arguments, and those of its TypedDict."""
    own = [each.name for each in signature(method).parameters.values() if each.kind is each.KEYWORD_ONLY]
    rest = get_type_hints(method).get('options')
    return own if rest is None else [*own, *get_type_hints(get_args(rest)[0])]


def run_until(r: Reactor, predicate: Any, timeout: float = 10) -> None:
    """Run turns until `predicate()` holds; at the timeout, fail with the reasons why the loop is alive."""
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError('not in time; still alive:\n' + '\n'.join(r.why_alive()))
        r.run_once(0.05)


def turns(r: Reactor, count: int) -> None:
    """Run `count` turns without waiting."""
    for _ in range(count):
        r.run_once(0)


def fill(sock: socket.socket) -> int:
    """Write to a non-blocking socket until it is full; returns the number of bytes written."""
    total = 0
    try:
        while True:
            total += sock.send(b'\xff' * 65536)
    except BlockingIOError:
        return total


def drain(sock: socket.socket) -> bytes:
    """Read from a non-blocking socket until EOF or until it would block."""
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
    """Records the events of streams in order: its methods are callbacks that append (name, ...)."""

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
        """Return the named callbacks as keyword arguments."""
        return {name: getattr(self, name) for name in names}

    def names(self) -> list[str]:
        """The names of the events."""
        return [entry[0] for entry in self]

    @property
    def received(self) -> bytes:
        """The bytes of all on_data calls."""
        return b''.join(entry[1] for entry in self if entry[0] == 'data')


class FakeSelector(selectors.BaseSelector):
    """A real selector that never waits: the timeout is added to its kernel's clock instead."""

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
    """The real kernel with a clock that starts at 1000 s and advances only when the loop would otherwise wait."""

    def __init__(self) -> None:
        self.time = 1000.0

    def clock(self) -> float:  # type: ignore[override]
        return self.time

    def selector(self) -> FakeSelector:
        return FakeSelector(self)


RST = struct.pack('ii', 1, 0)  # SO_LINGER: on, 0 seconds


def tcp_sockets(sockets: Any, blocking: bool = False) -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets on 127.0.0.1, tracked by the fixture `sockets`."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        theirs = sockets.track(socket.create_connection(server.getsockname()))
        ours = sockets.track(server.accept()[0])
    for sock in ours, theirs:
        sock.setblocking(blocking)
    return ours, theirs


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with an RST, so that the connection is reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    sock.close()


def end(r: Reactor, *conns: Stream) -> None:
    """Abort connections that a test leaves open, and run turns until `on_close` has been called for each."""
    for conn in conns:
        conn.abort()
    turns(r, 2)


def idle(r: Reactor, count: int = 20) -> bool:
    """Return whether the selector reports nothing in `count` turns; False for a loop that spins."""
    before = r.stats().events
    turns(r, count)
    return r.stats().events == before


def ends(r: Reactor, seconds: float = 1.0) -> bool:
    """Return whether `run` ends by itself, which means that nothing open keeps it running."""
    stop = r.call_later(seconds, r.stop)
    stop.unref()
    ended = r.run()
    stop.cancel()
    return ended


class ScriptedSocket:
    """A socket without a descriptor: the test scripts the incoming data and the result of each send.

    incoming  one item for each recv: bytes, b'' for EOF (never removed), or an exception to raise
    outcomes  one item for each send: the most bytes to accept, or an exception. When none is left, send would block.
              None instead of a queue: every send accepts everything
    backlog   scripted sockets to accept, or exceptions to raise instead
    """

    family = socket.AF_INET

    def __init__(self, kernel: ScriptedKernel) -> None:
        self.kernel = kernel
        self.number = kernel.take_number(self)
        self.incoming: deque[Any] = deque()
        self.outcomes: deque[Any] | None = None
        self.backlog: deque[Any] = deque()
        self.sent = bytearray()
        self.calls: list[str] = []
        self.address = ('127.0.0.1', 0)

    def ready(self) -> int:
        mask = selectors.EVENT_READ if self.incoming or self.backlog else 0
        return mask | (selectors.EVENT_WRITE if self.outcomes is None or self.outcomes else 0)

    def fileno(self) -> int:
        return self.number

    def recv(self, size: int) -> bytes:
        self.calls.append('recv')
        if not self.incoming:
            raise BlockingIOError
        item = self.incoming.popleft()
        if isinstance(item, BaseException):
            raise item
        if item[size:]:
            self.incoming.appendleft(item[size:])
        elif not item:
            self.incoming.append(item)
        return bytes(item[:size])

    def send(self, data: Any) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Any) -> int:
        self.calls.append('send')
        data = b''.join(buffers)
        assert data, 'an empty send'
        if self.outcomes is None:
            taken: Any = len(data)
        else:
            taken = self.outcomes.popleft() if self.outcomes else BlockingIOError()
        if isinstance(taken, BaseException):
            try:
                raise taken
            finally:
                del taken  # the traceback of the exception refers to this frame, and so to the buffers
        self.sent += data[:taken]
        return min(taken, len(data))

    def accept(self) -> tuple[Any, Any]:
        self.calls.append('accept')
        if not self.backlog:
            raise BlockingIOError
        item = self.backlog.popleft()
        if isinstance(item, BaseException):
            raise item
        return item, ('127.0.0.1', 50000)

    def shutdown(self, how: int) -> None:
        self.calls.append('shutdown')

    def close(self) -> None:
        if self.number >= 0:
            self.calls.append('close')
            self.detach()

    def detach(self) -> int:
        number, self.number = self.number, -1
        self.kernel.open.pop(number, None)
        return number

    def setblocking(self, flag: bool) -> None:
        pass

    def setsockopt(self, *args: Any) -> None:
        pass

    def bind(self, address: Any) -> None:
        self.address = address

    def listen(self, backlog: int) -> None:
        self.calls.append('listen')

    def getsockname(self) -> Any:
        return self.address

    def getpeername(self) -> Any:
        return ('127.0.0.1', 50000)


class ScriptedSelector(selectors.BaseSelector):
    """A selector for scripted sockets; time passes only when none of them is ready."""

    def __init__(self, kernel: ScriptedKernel) -> None:
        self.kernel = kernel
        self.keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj, events, data=None):  # type: ignore[no-untyped-def]
        if fileobj in self.keys:
            raise KeyError(f'{fileobj} is registered already')
        key = self.keys[fileobj] = selectors.SelectorKey(fileobj, fileobj, events, data)
        return key

    def unregister(self, fileobj):  # type: ignore[no-untyped-def]
        return self.keys.pop(fileobj)

    def select(self, timeout=None):  # type: ignore[no-untyped-def]
        ready = []
        for fd, key in self.keys.items():
            mask = self.kernel.open[fd].ready() & key.events
            if mask:
                ready.append((key, mask))
        if not ready:
            if timeout is None:
                raise AssertionError('the loop would wait for ever')
            self.kernel.time += timeout
        return ready

    def get_map(self):  # type: ignore[no-untyped-def]
        return self.keys


class ScriptedKernel(FakeKernel):
    """A kernel with scripted sockets and their selector, without the operating system."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, ScriptedSocket] = {}

    def take_number(self, sock: ScriptedSocket) -> int:
        number = next(number for number in range(len(self.open) + 1) if number not in self.open)
        self.open[number] = sock
        return number

    def selector(self) -> ScriptedSelector:  # type: ignore[override]
        return ScriptedSelector(self)

    def socket(self, family: int, kind: int, proto: int = 0) -> Any:
        return ScriptedSocket(self)

    def socketpair(self) -> Any:
        return ScriptedSocket(self), ScriptedSocket(self)

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        return [(socket.AF_INET, kind, 0, '', (host, port))]

    def is_open(self, fd: int) -> bool:
        return fd in self.open

    def has_bytes(self, sock: Any) -> bool:
        return bool(sock.incoming) and isinstance(sock.incoming[0], bytes)

    def in_main_thread(self) -> bool:
        return False


class FailingKernel(SimKernel):
    """A simulated kernel with a single fault: the `count`-th call to the function `name` fails; see `failing`."""

    def __init__(self, name: str, error: int, count: int = 1, selector: str = 'epoll') -> None:
        super().__init__(faults=False, selector=selector)
        self.name, self.error, self.count = name, error, count

    def failing(self, name: str, fd: int) -> int:
        self.count -= name == self.name
        if not self.count:
            self.count, self._fail = -1, (self.calls + 1, self.error)
        return super().failing(name, fd)


class Probe(Handle):
    """A handle over a socket that adds each event to `log`, and then calls `on_ready(probe)`."""

    def __init__(self, r: Reactor, sock: socket.socket, events: int = READ, on_ready: Any = None) -> None:
        self.loop = r
        self.since = r.now
        self.sock = sock
        self.on_ready = on_ready
        self.log: list[str] = []
        self.lost: OSError | None = None
        if events:
            r.watchers.add(self, events)
        else:
            r.watchers.park(self)

    def handle_read(self) -> None:
        self._ready('read')

    def handle_write(self) -> None:
        self._ready('write')

    def handle_lost(self, exc: OSError) -> None:
        self.lost = exc
        self.loop.watchers.remove(self)
        self.sock.detach()

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0

    def close(self) -> None:
        if not self.closed:
            self.loop.watchers.remove(self)
            self.sock.close()

    def _ready(self, what: str) -> None:
        self.log.append(what)
        if self.on_ready is not None:
            self.on_ready(self)


def in_thread(fn: Any, *args: Any) -> Any:
    """Call `fn(*args)` in another thread and return what it returns, or raise what it raises."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.extend((fn(*args), None))
        except BaseException as exc:
            outcome.extend((None, exc))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result, error = outcome
    if error is not None:
        raise error
    return result


def turns_in(r: Reactor, seconds: float = 0.15) -> int:
    """Count the turns that the loop makes in `seconds` of real time."""
    before = r.stats().loop_count
    r.call_later(seconds, r.stop)
    r.run()
    return r.stats().loop_count - before


def pair(r: Reactor, sockets: Any, *, tcp: bool = False, **keywords: Any) -> tuple[Stream, socket.socket]:
    """Return a stream and the plain socket at its other end."""
    ours, theirs = tcp_sockets(sockets) if tcp else sockets()
    return r.adopt(ours, **keywords), theirs


def run_short(
    monkeypatch: Any,
    owner: Any,
    name: str,
    times: int = 1,
    kind: type[BaseException] = MemoryError,
    after: bool = False,
) -> None:
    """Make the next `times` calls of a function of the package raise; later calls work again.

    `owner` is the class or module that has the function. With `after`, the call raises after it has done its work.

    The exception appears to come from a frame of the reactor, as if memory had run out there. From any other frame, it
    would be treated as an exception in the user's code.
    """
    names = {'__name__': 'reactor.loop', '__package__': 'reactor.loop', 'kind': kind, 'left': times, 'after': after}
    names['do'] = getattr(owner, name)
    exec(
        'def short(*args, **keywords):\n'
        '    global left\n'
        '    left -= 1\n'
        '    result = do(*args, **keywords) if after or left < 0 else None\n'
        '    if left >= 0:\n'
        '        raise kind\n'
        '    return result\n',
        names,
    )
    monkeypatch.setattr(owner, name, names['short'])


def uncallable(arguments: int) -> Any:
    """Return a callback whose call raises MemoryError, as if there were no memory for its frame."""
    fn = ctypes.pythonapi['PyErr_NoMemory']
    fn.restype, fn.argtypes = ctypes.py_object, [ctypes.py_object] * arguments
    return fn


class Unreachable:
    """A socket on a machine that has no route to any address."""

    family = socket.AF_INET

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass

    def setblocking(self, flag: bool) -> None:
        pass

    def connect_ex(self, address: Any) -> int:
        return errno.ENETUNREACH

    def connect(self, address: Any) -> None:
        raise OSError(errno.ENETUNREACH, 'Network is unreachable')


class ManyAddresses(Kernel):
    """A kernel where each name has `count` unreachable addresses. A thread's function runs at once, in the caller."""

    def __init__(self, count: int) -> None:
        self.count = count

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        if flags:
            raise socket.gaierror
        return [(socket.AF_INET, kind, 0, '', (f'10.0.{n >> 8}.{n & 255}', port)) for n in range(self.count)]

    def start_thread(self, fn: Any, name: str) -> None:
        fn()

    def socket(self, family: int, kind: int, proto: int = 0) -> Any:
        return Unreachable()


def kinds_of_handles():
    """Return the handle classes of the package, except those of the simulation."""

    def below(kind):
        for each in kind.__subclasses__():
            if each.__module__.startswith('reactor.') and not each.__module__.startswith('reactor.testing'):
                yield each
                yield from below(each)

    return sorted(set(below(Handle)), key=lambda kind: kind.__name__)
