"""Run the same random calls on sockets of Linux and of the simulated kernel, and compare what both report.

`socket_calls.draw` makes a sequence of steps from a seed. `difference` runs a sequence on both kernels. After each step
it compares the result (a value or an error) and the readiness of all sockets on epoll, poll and select: on selectors
that are made for this look, and on three that exist as long as the sequence. `shrink` leaves out steps while the
sequence still differs.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from reactor.kernel import Kernel
from reactor.kernel.platforms import RESET_ON_CLOSE
from reactor.kernel.sockets import LeanSocket
from reactor.testing.kernel import SimKernel
from reactor.testing.poller import SimSelector
from reactor.testing.sockets import SimSocket

from .socket_calls import DGRAM, FAMILIES, SLOTS, STREAM, V4, V6, Family, Step

SIOCOUTQNSD = 0x894B  # an ioctl that returns how many bytes a socket has not sent yet: linux/sockios.h
SENDING = {1, 4, 8, 9, 11}  # ESTABLISHED, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING: linux/tcp_states.h
SENT_WITHIN = 0.1  # seconds that Linux has to send bytes for which there is room
READY_WITHIN = 0.2  # seconds that Linux has to report the readiness that the simulated kernel reports
TRIES = 3  # a difference counts only if it repeats this often
REFUSALS = 3  # a buffer is full, or empty, if this many calls in a row find it so
REAL_SELECTORS: dict[str, Any] = {
    'epoll': getattr(selectors, 'EpollSelector', None),
    'poll': getattr(selectors, 'PollSelector', None),
    'select': selectors.SelectSelector,
}
PORTS = range(12_000, 32_000)  # below the ports that Linux chooses itself
BLOCK = 1_000  # ports of one process; while it runs, no other process uses them


class Difference(NamedTuple):
    """The first step after which the two kernels differ, and what each of them reported."""

    before: list[Step]
    step: Step
    linux: Any
    simulated: Any

    def slots(self) -> set[int]:
        """The sockets that the kernels report differently."""
        if not (isinstance(self.linux, tuple) and self.linux[0] == 'ready'):
            return {self.step[1]}
        ready = self.linux[1], self.simulated[1]
        slots = range(SLOTS)
        return {slot for slot in slots for kind in REAL_SELECTORS if len({each[kind].get(slot) for each in ready}) > 1}

    def __str__(self) -> str:
        lines = ''.join(f'    {step!r},\n' for step in [*self.before, self.step])
        return f'{lines}Linux: {self.linux!r}\nsimulated: {self.simulated!r}'


class Side:
    """One of the two kernels, with the sockets of a sequence."""

    def __init__(self, kernel: Any, family: Family, ports: dict[str, int], folder: str) -> None:
        self.kernel, self.family, self.ports, self.folder = kernel, family, ports, folder
        self.sockets: dict[int, Any] = {}
        self.names = {0: '0', **{port: name for name, port in ports.items()}}
        self.kept = {kind: self.selector(kind) for kind in REAL_SELECTORS}  # selectors that live through the sequence
        self.watched = 0  # registrations on them
        self.flooding = False  # bytes are sent for which there may be no room
        self.content = self.file(bytes(range(256)) * 4)  # the descriptor of a file with this content

    def do(self, step: Step) -> Any:
        """Take a step; return its result, or the name of its error. A socket that does not exist is 'no socket'."""
        name, slot, *arguments = step
        if name == 'socket':
            return outcome(self.socket, slot)
        sock = self.sockets.get(slot)
        return 'no socket' if sock is None else outcome(getattr(self, name, self.call), step, sock, *arguments)

    def socket(self, slot: int) -> None:
        self.put(slot, self.kernel.socket(self.family.families[slot % 2], self.family.kind))

    def put(self, slot: int, sock: Any) -> None:
        if slot in self.sockets:
            self.sockets.pop(slot).close()
        self.sockets[slot] = sock

    def close(self, step: Step, sock: Any) -> None:
        self.sockets.pop(step[1]).close()

    def call(self, step: Step, sock: Any, *arguments: Any) -> Any:
        return getattr(sock, step[0])(*arguments)

    def bind(self, step: Step, sock: Any, place: Any) -> Any:
        return sock.bind(self.address(place))

    def connect(self, step: Step, sock: Any, place: Any) -> Any:
        return errno.errorcode.get(sock.connect_ex(self.address(place)), 'connected')

    def accept(self, step: Step, sock: Any, into: int) -> Any:
        accepted, address = sock.accept()
        self.put(into, self.accepted(accepted))
        return self.shown(address)

    def accepted(self, sock: Any) -> Any:
        """An accepted socket, made like the sockets of `Kernel.socket`."""
        return sock

    def dup(self, step: Step, sock: Any, into: int) -> None:
        self.put(into, self.copy(sock))

    def copy(self, sock: Any) -> Any:
        """A socket with another descriptor of the same open file."""
        raise NotImplementedError

    def unlink(self, step: Step, sock: Any) -> bool:
        path = sock.getsockname()
        if path:
            self.kernel.unlink(path)
        return self.kernel.socket_file(path) is None

    def getsockname(self, step: Step, sock: Any) -> Any:
        return self.shown(sock.getsockname())

    def getpeername(self, step: Step, sock: Any) -> Any:
        return self.shown(sock.getpeername())

    def ask(self, step: Step, sock: Any, what: str) -> Any:
        """Call a method of the kernel that looks at a socket."""
        if what == 'readiness':
            return [bool(self.kernel.readiness(sock.fileno(), events)) for events in (1, 2, 3)]
        if what == 'has_clients':
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and self.kernel.has_clients(sock)
        sock.getpeername()  # fails unless the socket is connected
        return getattr(self.kernel, what)(sock)

    def send(self, step: Step, sock: Any, data: Any) -> Any:
        return sock.send(memoryview(bytes(8)).cast('H') if data == 'words' else data)

    def sendfile(self, step: Step, sock: Any, offset: int, count: int) -> int:
        return int(self.kernel.sendfile(sock, self.content, offset, count))

    def sendto(self, step: Step, sock: Any, data: bytes, place: Any) -> Any:
        return sock.sendto(data, self.address(place))

    def recvfrom(self, step: Step, sock: Any, size: int) -> Any:
        data, sender = sock.recvfrom(size)
        return data, self.shown(sender)

    def peek_length(self, step: Step, sock: Any) -> Any:
        return sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)

    def flood(self, step: Step, sock: Any, peer: int) -> Any:
        """Fill the buffers of a connection, and empty them. Return what each part ended with, and the readiness.

        How many bytes fit is not compared. So if they could not all be read, both sockets are closed.
        """
        self.flooding = True
        sent = self.repeat(lambda: sock.send(bytes(100_000)))
        ready = self.ready_on(self.selector('select')).get(step[1], 0)
        reader = self.sockets.get(peer)
        got: Any = 'no socket' if reader is None else self.repeat(lambda: len(reader.recv(100_000)))
        self.flooding = False
        complete = got[0] == 'EAGAIN' and sent[1] == got[1]
        if not complete:
            for slot in {step[1], peer} & self.sockets.keys():
                self.reset(self.sockets.pop(slot))  # whether bytes are left, and so who ends first, is not compared
        return sent[0], ready, got[0], complete

    def repeat(self, fn: Callable[[], int]) -> tuple[Any, int]:
        """Repeat a call until it fails or returns 0; return the error or 'end', and the sum of its results."""
        total = refusals = 0
        while refusals < REFUSALS:
            try:
                done = fn()
            except BlockingIOError:
                done, refusals = -1, refusals + 1
            except OSError as exc:
                return errno.errorcode[exc.errno or 0], total
            else:
                refusals, total = 0, total + done
            if not done:
                return 'end', total
            self.settle()
        return 'EAGAIN', total

    # -- addresses

    def address(self, place: Any) -> Any:
        """The address that a step names."""
        name = place if isinstance(place, str) else place[1]
        bound = self.bound(int(name)) if name in '12345' else None
        if isinstance(place, str):
            return bound or os.path.join(self.folder, name)
        return place[0], bound[1] if isinstance(bound, tuple) else self.ports.get(name, 0)

    def bound(self, slot: int) -> Any:
        return self.sockets[slot].getsockname() if slot in self.sockets else None

    def shown(self, address: Any) -> Any:
        """An address with the name of its port; ports that a kernel has chosen are named in the order they appear."""
        if not isinstance(address, tuple):
            return address
        port = self.names.setdefault(address[1], f'chosen {len(self.names)}')
        return (address[0], port, *address[2:])

    # -- readiness

    def watch(self, step: Step, sock: Any, events: int) -> Any:
        return self.on_each('register', sock.fileno(), events, self.next_watch())

    def rewatch(self, step: Step, sock: Any, events: int) -> Any:
        return self.on_each('modify', sock.fileno(), events, self.next_watch())

    def unwatch(self, step: Step, sock: Any) -> Any:
        return self.on_each('unregister', sock.fileno())

    def next_watch(self) -> int:
        self.watched += 1
        return self.watched

    def on_each(self, method: str, *arguments: Any) -> Any:
        """Call a method of each selector that is kept; return the outcomes, without the keys."""
        results = {kind: outcome(getattr(selector, method), *arguments) for kind, selector in self.kept.items()}
        return {kind: result if isinstance(result, str) else 'done' for kind, result in results.items()}

    def ready(self) -> dict[str, Any]:
        """The readiness of each socket on each selector: 1 to read, 2 to write, 3 both."""
        found: dict[str, Any] = {kind: self.ready_on(self.selector(kind)) for kind in REAL_SELECTORS}
        if self.watched:
            found |= {f'{kind} kept': outcome(self.ready_on_kept, selector) for kind, selector in self.kept.items()}
        return found

    def ready_on(self, selector: Any) -> dict[int, int]:
        """The readiness of all sockets on a selector, which is closed then."""
        for slot, sock in self.sockets.items():
            selector.register(sock.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE, slot)
        found = {key.data: mask for key, mask in selector.select(0)}
        selector.close()
        return dict(sorted(found.items()))

    def ready_on_kept(self, selector: Any) -> dict[int, int]:
        """The readiness on a selector that is kept, by the number of the registration."""
        found: dict[int, int] = {}
        # `selectors` asks epoll for at most as many events as there are keys. If events of closed descriptors, which
        # have no key, are among them, others are reported only by the next calls.
        for _ in range(3 if selector.get_map() else 1):
            for key, mask in selector.select(0):
                found[key.data] = found.get(key.data, 0) | mask
        return dict(sorted(found.items()))

    def selector(self, kind: str) -> Any:
        raise NotImplementedError

    def file(self, content: bytes) -> int:
        """Open a file with this content; return its descriptor."""
        raise NotImplementedError

    def settle(self) -> None:
        """Return when everything sent so far has arrived."""
        raise NotImplementedError

    def end(self) -> None:
        for selector in self.kept.values():
            selector.close()
        for sock in self.sockets.values():
            self.reset(sock)

    def reset(self, sock: Any) -> None:
        """Close a socket so that it leaves no port in TIME_WAIT."""
        if self.family.kind == STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.close()


def quiet_kernel() -> SimKernel:
    """A simulated kernel without faults, with one latency and one size of buffers."""
    kernel = SimKernel(0, selector='epoll', faults=False, grain=0)
    kernel._latency, kernel._capacity = 50_000, 262_144
    return kernel


class Simulated(Side):
    """The simulated kernel."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(quiet_kernel(), *rest)

    def copy(self, sock: Any) -> Any:
        return SimSocket(self.kernel, sock.family, sock.type, self.kernel.duplicate(sock.fileno()))

    def selector(self, kind: str) -> Any:
        return SimSelector(self.kernel, kind)

    def file(self, content: bytes) -> int:
        return int(self.kernel.make_file(content).fileno())

    def settle(self) -> None:
        SimSelector(self.kernel, 'poll').select(0.001)


class Linux(Side):
    """The real kernel."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(Kernel(), *rest)
        self.bell = socket.socket(V4, DGRAM)
        self.bell.bind(('127.0.0.1', 0))
        self.bell.connect(self.bell.getsockname())

    def accepted(self, sock: Any) -> Any:
        return self.opened(sock, sock.detach())

    def copy(self, sock: Any) -> Any:
        return self.opened(sock, os.dup(sock.fileno()))

    def opened(self, sock: Any, fd: int) -> LeanSocket:
        lean = LeanSocket(sock.family, sock.type, sock.proto, fd)
        lean.setblocking(False)
        return lean

    def selector(self, kind: str) -> Any:
        return REAL_SELECTORS[kind]()

    def file(self, content: bytes) -> int:
        fd, path = tempfile.mkstemp(dir=self.folder)
        os.unlink(path)
        os.write(fd, content)
        return fd

    def settle(self) -> None:
        # Loopback delivers packets in order, from one queue of each core. So when a datagram has arrived, the packets
        # sent before it have arrived, too. The second and the third follow the answers to those packets.
        for _ in range(3):
            self.bell.send(b'')
            self.bell.recv(1)

        # A small segment waits until the one before it is acknowledged, which takes up to 40 ms (Nagle's algorithm).
        until = time.monotonic() + SENT_WITHIN
        while any(map(self.unsent, self.sockets.values())) and time.monotonic() < until:
            time.sleep(0.001)

    def unsent(self, sock: Any) -> int:
        """The bytes of a TCP socket that Linux has not sent yet."""
        if self.flooding or sock.family == socket.AF_UNIX or sock.type != STREAM:
            return 0
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in SENDING:
            return 0
        return int.from_bytes(fcntl.ioctl(sock.fileno(), SIOCOUTQNSD, bytes(4)), sys.byteorder)

    def end(self) -> None:
        super().end()
        self.bell.close()
        os.close(self.content)
        for name in 'ab012345':
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))


def outcome(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; return its result, or the name of its error."""
    try:
        return fn(*arguments)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, type(exc).__name__)
    except Exception as exc:
        return type(exc).__name__  # raised by Python's own checks, or by a mistake in the simulation


# -- comparing


def changes_version(found: Difference) -> bool:
    """Whether an IPv6 socket that differs has been bound or connected to an IPv4, and connected to an IPv6 address.

    Other sockets may differ, too: a listener, for example, is readable only if that socket has connected to it, and the
    peer of that socket learns of its end.
    """
    used: dict[int, set[bool]] = {}
    changed: set[int] = set()
    for name, slot, *arguments in [*found.before, found.step]:
        if name == 'socket':
            used[slot] = set()
        elif name == 'dup' and slot in used:  # otherwise there is nothing to copy, and the other socket stays
            used[arguments[0]] = used[slot]
            changed |= {arguments[0]} if len(used[slot]) > 1 else set()
        elif name in ('connect', 'bind') and isinstance(arguments[0], tuple):
            mapped = arguments[0][0].startswith('::ffff:')
            if mapped or name == 'connect':
                used.setdefault(slot, set()).add(mapped)
                if len(used[slot]) > 1:
                    changed.add(slot)  # a socket that is made later in its place finds the port in use
    return not changed.isdisjoint((*found.slots(), found.step[1]))


# Differences that stay, with the steps that show them. `reactor.testing` lists them for users.
ALLOWED: dict[str, tuple[Callable[[Difference], bool], str, list[Step]]] = {
    'a socket that changes between IPv4 and IPv6': (
        changes_version,
        'tcp v4 and v6',
        [
            ('socket', 5),
            ('connect', 5, ('::ffff:127.0.0.1', '0')),
            ('connect', 5, ('::1', '3')),
            ('connect', 5, ('::', '0')),
        ],
    ),
}


def difference(steps: list[Step], family: str, folder: str) -> Difference | None:
    """Return the first difference, if it repeats and is not in `ALLOWED`."""
    for _ in range(TRIES):
        found = difference_once(steps, family, folder)
        if found is None or any(allows(found) for allows, *_ in ALLOWED.values()):
            return None
    return found


def difference_once(steps: list[Step], family: str, folder: str) -> Difference | None:
    ports = {name: free_port() for name in 'ab'}
    linux, simulated = (side(FAMILIES[family], ports, folder) for side in (Linux, Simulated))
    try:
        for number, step in enumerate(steps):
            results = linux.do(step), simulated.do(step)
            if results[0] != results[1]:
                return Difference(steps[:number], step, *results)
            linux.settle()
            simulated.settle()
            expected, until = simulated.ready(), time.monotonic() + READY_WITHIN
            while (found := linux.ready()) != expected:
                if time.monotonic() > until:
                    return Difference(steps[:number], step, ('ready', found), ('ready', expected))
                select.select([], [], [], 0.001)
        return None
    finally:
        linux.end()
        simulated.end()


def shrink(steps: list[Step], family: str, folder: str) -> list[Step]:
    """Leave out steps as long as the sequence still differs."""
    size = len(steps)
    while size:
        for begin in range(len(steps) - size, -1, -1):
            fewer = steps[:begin] + steps[begin + size :]
            if len(fewer) < len(steps) and difference(fewer, family, folder):
                steps = fewer
        size //= 2
    return steps


@cache
def own_ports() -> Iterator[int]:
    """Return the ports of a block that no other process uses: an abstract Unix socket locks it, as long as we run."""
    for first in PORTS[::BLOCK]:
        lock = socket.socket(socket.AF_UNIX, DGRAM)
        try:
            lock.bind(f'\0like_linux {first}')
        except OSError:
            lock.close()
            continue
        LOCKS.append(lock)
        return itertools.cycle(range(first, first + BLOCK))
    raise AssertionError('other processes use all ports: run fewer tests at a time')


LOCKS: list[socket.socket] = []


def free_port() -> int:
    """A port of this process which no socket uses, not even one in TIME_WAIT."""
    for port in itertools.islice(own_ports(), BLOCK):
        try:
            for family, host in ((V4, '0.0.0.0'), (V6, '::')):
                for kind in STREAM, DGRAM:
                    with socket.socket(family, kind) as sock:
                        sock.bind((host, port))
        except OSError:
            continue
        return port
    raise AssertionError('no port is free')


def has_ipv6() -> bool:
    """Whether this computer has IPv6."""
    try:
        with socket.socket(V6, STREAM) as sock:
            sock.bind(('::1', 0))
    except OSError:
        return False
    return True
