"""Run the same random calls on sockets of Linux and of the simulated kernel, and compare what both report.

`draw` makes a sequence of steps from a seed. A step is a tuple: the name of a call, the number of a socket, and
arguments. It names ports and paths by letters, or by the socket that is bound to them, so it never depends on the
result of an earlier step, and a sequence stays valid when steps are left out. `difference` runs a sequence on both
kernels. After each step it compares the result (a value or an error) and the readiness of all sockets on epoll, poll
and select. `shrink` leaves out steps while the sequence still differs.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

from reactor.kernel import Kernel
from reactor.kernel.platforms import RESET_ON_CLOSE
from reactor.kernel.sockets import LeanSocket
from reactor.testing.kernel import SimKernel
from reactor.testing.poller import SimSelector

Step = tuple[Any, ...]

SLOTS = 6  # sockets in a sequence
READY_WITHIN = 0.2  # seconds that Linux has to report the readiness that the simulated kernel reports
TRIES = 3  # a difference counts only if it repeats this often
REAL_SELECTORS = {
    'epoll': getattr(selectors, 'EpollSelector', None),
    'poll': getattr(selectors, 'PollSelector', None),
    'select': selectors.SelectSelector,
}
PORTS = itertools.cycle(range(20_000 + os.getpid() % 97 * 120, 32_000))  # below the ports that Linux chooses itself

V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
FOREIGN = {V4: '203.0.113.7', V6: '2001:db8::7'}  # addresses that no computer has; sockets are only bound to them
LOCAL = {V4: ('127.0.0.1', '127.0.0.1', '0.0.0.0', '127.0.0.2'), V6: ('::1', '::1', '::', '::ffff:127.0.0.1')}
SETTABLE: tuple[tuple[int, int, tuple[Any, ...]], ...] = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, (0, 1, 1, 1)),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT, (0, 1, 1, 1)),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, (0, 1)),
    (socket.SOL_SOCKET, socket.SO_BROADCAST, (0, 1)),
    (socket.SOL_SOCKET, socket.SO_LINGER, (RESET_ON_CLOSE, b'\0' * 8, b'\0' * 3)),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, (0, 1)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, (0, 30)),
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, (0, 1, 1)),
    (socket.SOL_SOCKET, 9999, (1,)),
)
READABLE = (
    *((level, option) for level, option, _ in SETTABLE if option != socket.SO_LINGER),
    (socket.SOL_SOCKET, socket.SO_ERROR), (socket.SOL_SOCKET, socket.SO_TYPE), (socket.SOL_SOCKET, socket.SO_DOMAIN),
    (socket.SOL_SOCKET, socket.SO_ACCEPTCONN), (socket.SOL_SOCKET, socket.SO_PROTOCOL),
)  # fmt: skip


class Difference(NamedTuple):
    """The first step after which the two kernels differ, and what each of them reported."""

    before: list[Step]
    step: Step
    linux: Any
    simulated: Any

    def __str__(self) -> str:
        lines = ''.join(f'    {step!r},\n' for step in [*self.before, self.step])
        return f'{lines}Linux: {self.linux!r}\nsimulated: {self.simulated!r}'


class Family(NamedTuple):
    """The sockets of a sequence: address families (even and odd slots), type, and whether it binds often."""

    families: tuple[int, int]
    kind: int
    binds: bool = False


FAMILIES = {
    'tcp v4': Family((V4, V4), STREAM),
    'tcp v6': Family((V6, V6), STREAM),
    'tcp v4 and v6': Family((V4, V6), STREAM),
    'tcp listeners': Family((V4, V6), STREAM, True),
    'unix streams': Family((UNIX, UNIX), STREAM),
    'udp v4': Family((V4, V4), DGRAM),
    'udp v6': Family((V6, V6), DGRAM),
    'udp v4 and v6': Family((V4, V6), DGRAM, True),
    'unix datagrams': Family((UNIX, UNIX), DGRAM),
}


# -- drawing sequences


class Draw:
    """The random choices of one sequence."""

    def __init__(self, seed: int, family: Family) -> None:
        self.random = Random(f'{seed} {family}')
        self.family = family

    def steps(self, length: int) -> list[Step]:
        steps: list[Step] = []
        for _ in range(self.random.choice((0, 1, 1, 1, 2))):
            steps += self.conversation()
        names = self.names()
        while len(steps) < length:
            steps.append(getattr(self, self.random.choice(names))())
        return steps[:length]

    def names(self) -> list[str]:
        common = ['socket'] * 2 + ['bind'] * 2 + ['close', 'getsockname', 'getpeername', 'setsockopt', 'getsockopt']
        common += ['shutdown', 'connect', 'recv', 'recv', 'send', 'send', 'sendmsg']
        if self.family.binds:
            common += ['bind'] * 6 + ['socket'] * 3 + ['setsockopt'] * 5
        if self.family.kind == STREAM:
            return [*common, 'listen', 'listen', 'connect', 'connect', 'accept', 'accept', 'accept', 'recv', 'close']
        return [*common, *['sendto'] * 6, *['recvfrom'] * 3, 'connect', 'peek_length']

    def slot(self, like: int | None = None) -> int:
        """A slot, of the same family as the slot `like` if one is given."""
        slot = self.random.randrange(SLOTS)
        return slot if like is None else slot // 2 * 2 + like % 2

    def conversation(self) -> list[Step]:
        """The steps that connect two sockets, so that sequences do not depend on luck for that."""
        one, other, third = (each * 2 + self.random.randrange(2) for each in self.random.sample(range(SLOTS // 2), 3))
        third = third // 2 * 2 + one % 2
        first: list[Step] = [('socket', one), ('bind', one, self.place(one, '0a'))]
        if self.family.kind == DGRAM:
            return [*first, ('socket', other), ('connect', other, self.place(other, f'{one}'))]
        first += [('listen', one, self.random.choice((0, 1, 5))), ('socket', other)]
        return [*first, ('connect', other, self.place(other, f'{one}')), ('accept', one, third)]

    def place(self, slot: int, ports: str) -> Any:
        """A path, or a host and the name of a port: "0" is any port, a digit above it the port of a slot."""
        family, name = self.family.families[slot % 2], self.random.choice(ports)
        return name if family == UNIX else (self.random.choice(LOCAL[family]), name)

    def socket(self) -> Step:
        return 'socket', self.slot()

    def bind(self) -> Step:
        slot = self.slot()
        place = self.place(slot, '00aaab')
        if place[1:] and self.random.random() < 0.1:
            place = FOREIGN[self.family.families[slot % 2]], place[1]
        return 'bind', slot, place

    def connect(self) -> Step:
        slot = self.slot()
        return 'connect', slot, self.place(slot, 'aab012345')

    def listen(self) -> Step:
        return 'listen', self.slot(), self.random.choice((0, 0, 1, 5))

    def accept(self) -> Step:
        slot = self.slot()
        return 'accept', slot, self.slot(slot)

    def close(self) -> Step:
        return 'close', self.slot()

    def shutdown(self) -> Step:
        return 'shutdown', self.slot(), self.random.choice((socket.SHUT_WR, socket.SHUT_WR, socket.SHUT_RD, 2))

    def getsockname(self) -> Step:
        return 'getsockname', self.slot()

    def getpeername(self) -> Step:
        return 'getpeername', self.slot()

    def setsockopt(self) -> Step:
        level, option, values = self.random.choice(SETTABLE[:2] if self.family.binds else SETTABLE)
        if self.family.binds and self.random.random() < 0.3:
            level, option, values = socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, (0, 1)
        return 'setsockopt', self.slot(), level, option, self.random.choice(values)

    def getsockopt(self) -> Step:
        return 'getsockopt', self.slot(), *self.random.choice((*READABLE, *READABLE[-5:-4] * 6))

    def payload(self) -> bytes:
        return bytes([self.random.randrange(97, 123)]) * self.random.choice((1, 2, 5, 100))

    def send(self) -> Step:
        return 'send', self.slot(), self.random.choice((self.payload(), self.payload(), b'', 'words'))

    def sendmsg(self) -> Step:
        return 'sendmsg', self.slot(), [self.payload(), self.payload()]

    def recv(self) -> Step:
        flags = self.random.choice((0, 0, 0, socket.MSG_PEEK))
        return 'recv', self.slot(), self.random.choice((0, 1, 3, 1000, 1000)), flags

    def sendto(self) -> Step:
        slot = self.slot()
        place = self.place(slot, 'aab001234512345')
        if place[0] == '127.0.0.2' and self.random.random() < 0.2:
            place = '127.255.255.255', place[1]
        return 'sendto', slot, self.payload(), place

    def recvfrom(self) -> Step:
        return 'recvfrom', self.slot(), self.random.choice((1, 1000, 1000))

    def peek_length(self) -> Step:
        return 'peek_length', self.slot()


def draw(seed: int, family: str, length: int = 30) -> list[Step]:
    """Return the sequence of a seed."""
    return Draw(seed, FAMILIES[family]).steps(length)


# -- running a sequence on one kernel


class Side:
    """One of the two kernels, with the sockets of a sequence."""

    def __init__(self, kernel: Any, family: Family, ports: dict[str, int], folder: str) -> None:
        self.kernel, self.family, self.ports, self.folder = kernel, family, ports, folder
        self.sockets: dict[int, Any] = {}
        self.names = {0: '0', **{port: name for name, port in ports.items()}}

    def do(self, step: Step) -> Any:
        """Take a step; return its result, or the name of its error. A socket that does not exist is 'no socket'."""
        name, slot, *arguments = step
        try:
            if name == 'socket':
                return self.put(slot, self.kernel.socket(self.family.families[slot % 2], self.family.kind))
            sock = self.sockets.get(slot)
            return 'no socket' if sock is None else getattr(self, name, self.call)(step, sock, *arguments)
        except BlockingIOError as exc:
            return errno.errorcode[exc.errno or 0]
        except OSError as exc:
            return errno.errorcode.get(exc.errno or 0, type(exc).__name__)
        except Exception as exc:
            return type(exc).__name__  # raised by Python's own checks, or by a mistake in the simulation

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

    def getsockname(self, step: Step, sock: Any) -> Any:
        return self.shown(sock.getsockname())

    def getpeername(self, step: Step, sock: Any) -> Any:
        return self.shown(sock.getpeername())

    def send(self, step: Step, sock: Any, data: Any) -> Any:
        return sock.send(memoryview(bytes(8)).cast('H') if data == 'words' else data)

    def sendto(self, step: Step, sock: Any, data: bytes, place: Any) -> Any:
        return sock.sendto(data, self.address(place))

    def recvfrom(self, step: Step, sock: Any, size: int) -> Any:
        data, sender = sock.recvfrom(size)
        return data, self.shown(sender)

    def peek_length(self, step: Step, sock: Any) -> Any:
        return sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)

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

    def ready(self) -> dict[str, dict[int, int]]:
        """The readiness of each socket on each selector: 1 to read, 2 to write, 3 both."""
        return {kind: self.ready_on(selector) for kind, selector in self.selectors()}

    def ready_on(self, selector: Any) -> dict[int, int]:
        for slot, sock in self.sockets.items():
            selector.register(sock.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE, slot)
        found = {key.data: mask for key, mask in selector.select(0)}
        selector.close()
        return dict(sorted(found.items()))

    def selectors(self) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError

    def settle(self) -> None:
        """Return when everything sent so far has arrived."""
        raise NotImplementedError

    def end(self) -> None:
        for sock in self.sockets.values():
            if self.family.kind == STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)  # leaves no port in TIME_WAIT
            sock.close()


class Simulated(Side):
    """The simulated kernel."""

    def __init__(self, *rest: Any) -> None:
        kernel = SimKernel(0, selector='epoll', faults=False, grain=0)
        kernel._latency, kernel._capacity = 50_000, 262_144
        super().__init__(kernel, *rest)

    def selectors(self) -> Iterator[tuple[str, Any]]:
        return ((kind, SimSelector(self.kernel, kind)) for kind in REAL_SELECTORS)

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
        lean = LeanSocket(sock.family, sock.type, sock.proto, sock.detach())
        lean.setblocking(False)
        return lean

    def selectors(self) -> Iterator[tuple[str, Any]]:
        return ((kind, make()) for kind, make in REAL_SELECTORS.items() if make is not None)

    def settle(self) -> None:
        # Loopback delivers packets in order, from one queue of each core. So when a datagram has arrived, the packets
        # sent before it have arrived, too. The second and the third follow the answers to those packets.
        for _ in range(3):
            self.bell.send(b'')
            self.bell.recv(1)

    def end(self) -> None:
        super().end()
        self.bell.close()
        for name in 'ab012345':
            if os.path.exists(os.path.join(self.folder, name)):
                os.unlink(os.path.join(self.folder, name))


# -- comparing


def changes_version(found: Difference) -> bool:
    """Whether an IPv6 socket has connected to an IPv4 address and to an IPv6 address."""
    used: dict[int, set[bool]] = {}
    for name, slot, *arguments in [*found.before, found.step]:
        if name == 'socket':
            used.pop(slot, None)
        elif name == 'connect' and isinstance(arguments[0], tuple):
            used.setdefault(slot, set()).add(arguments[0][0].startswith('::ffff:'))
    return any(len(versions) > 1 for versions in used.values())


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


def free_port() -> int:
    """A port below those that Linux chooses, which no socket uses, not even one in TIME_WAIT."""
    for port in PORTS:
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
