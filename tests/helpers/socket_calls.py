"""Draw random sequences of calls on sockets, for `like_linux`, which runs them on two kernels.

A step is a tuple: the name of a call, the number of a socket, and arguments. It names ports and paths by letters, or by
the socket that is bound to them, so it never depends on the result of an earlier step, and a sequence stays valid when
steps are left out.
"""

from __future__ import annotations

import socket
from random import Random
from typing import Any, NamedTuple

from reactor.kernel.platforms import RESET_ON_CLOSE

Step = tuple[Any, ...]

SLOTS = 6  # sockets in a sequence
V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
FOREIGN: dict[int, str] = {
    V4: '203.0.113.7',
    V6: '2001:db8::7',
}  # addresses that no computer has; sockets are only bound to them
LOCAL: dict[int, tuple[str, ...]] = {
    V4: ('127.0.0.1', '127.0.0.1', '0.0.0.0', '127.0.0.2'),
    V6: ('::1', '::1', '::', '::ffff:127.0.0.1'),
}
ABORT = socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
ERROR = socket.SOL_SOCKET, socket.SO_ERROR
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
    (socket.SOL_SOCKET, socket.SO_TYPE), (socket.SOL_SOCKET, socket.SO_DOMAIN),
    (socket.SOL_SOCKET, socket.SO_ACCEPTCONN), (socket.SOL_SOCKET, socket.SO_PROTOCOL), *[ERROR] * 7,
)  # fmt: skip


class Family(NamedTuple):
    """The sockets of a sequence: address families (even and odd slots), type, and what most sequences are about."""

    families: tuple[int, int]
    kind: int
    theme: str = ''


FAMILIES = {
    'tcp v4': Family((V4, V4), STREAM),
    'tcp v6': Family((V6, V6), STREAM),
    'tcp v4 and v6': Family((V4, V6), STREAM),
    'tcp listeners': Family((V4, V6), STREAM, 'binding'),
    'unix streams': Family((UNIX, UNIX), STREAM),
    'udp v4': Family((V4, V4), DGRAM),
    'udp v6': Family((V6, V6), DGRAM),
    'udp v4 and v6': Family((V4, V6), DGRAM, 'binding'),
    'unix datagrams': Family((UNIX, UNIX), DGRAM),
    'tcp watched': Family((V4, V4), STREAM, 'watching'),
    'unix watched': Family((UNIX, UNIX), STREAM, 'watching'),
    'udp watched': Family((V4, V4), DGRAM, 'watching'),
}

# How often each call is drawn, among all calls on sockets of a type.
COMMON: dict[str, float] = {
    'socket': 2, 'bind': 2, 'close': 1, 'shutdown': 1, 'connect': 1, 'getsockname': 1, 'getpeername': 1, 'send': 2,
    'sendmsg': 1, 'recv': 2, 'setsockopt': 1, 'getsockopt': 1, 'ask': 1, 'dup': 1,
}  # fmt: skip
STREAMS: dict[str, float] = {
    'listen': 2, 'connect': 2, 'accept': 3, 'recv': 1, 'close': 1, 'sendfile': 1, 'exchange': 1, 'rebind': 0.5,
    'connect_to_itself': 1,
}  # fmt: skip
DATAGRAMS: dict[str, float] = {'sendto': 6, 'recvfrom': 3, 'connect': 1, 'peek_length': 1, 'burst': 1}
THEMES: dict[str, dict[str, float]] = {
    '': {},
    'binding': {'bind': 6, 'socket': 3, 'setsockopt': 5},
    'watching': {'watch': 6, 'rewatch': 2, 'unwatch': 2, 'dup': 3, 'close': 3, 'socket': 2},
}  # fmt: skip
ON_UNIX: dict[str, float] = {'unlink': 1}


class Draw:
    """The random choices of one sequence."""

    def __init__(self, seed: int, family: Family) -> None:
        self.random = Random(f'{seed} {family}')
        self.family = family
        self.made: list[int] = []  # slots that probably have a socket
        self.pairs: list[tuple[int, int]] = []  # slots that were probably connected with each other

    def steps(self, length: int) -> list[Step]:
        steps: list[Step] = []
        for _ in range(self.random.choice((0, 1, 1, 1, 2))):
            steps += self.conversation()
            if self.random.random() < 0.7:
                steps += self.exchange()
        weights: dict[str, float] = {}
        for each in self.weights():
            for name, weight in each.items():
                weights[name] = weights.get(name, 0) + weight
        names, frequencies = list(weights), list(weights.values())
        while len(steps) < length:
            found = getattr(self, self.random.choices(names, frequencies)[0])()
            for step in found if isinstance(found, list) else [found]:
                self.record(step)
                steps.append(step)
        return steps[:length]

    def weights(self) -> list[dict[str, float]]:
        streams = self.family.kind == STREAM
        special = [ON_UNIX] if self.family.families[0] == UNIX else []
        return [COMMON, STREAMS if streams else DATAGRAMS, THEMES[self.family.theme], *special]

    def record(self, step: Step) -> None:
        """Record which slots have a socket after a step, if it succeeds."""
        name, slot = step[:2]
        if name == 'close' and slot in self.made:
            self.made.remove(slot)
        new = slot if name == 'socket' else step[2] if name in ('accept', 'dup') else None
        if new is not None and new not in self.made:
            self.made.append(new)

    def any_slot(self, like: int | None = None) -> int:
        """A slot, of the same family as the slot `like` if one is given."""
        slot = self.random.randrange(SLOTS)
        return slot if like is None else slot // 2 * 2 + like % 2

    def slot(self) -> int:
        """A slot, most often one that has a socket."""
        if self.made and self.random.random() < 0.85:
            return self.random.choice(self.made)
        return self.any_slot()

    # -- several steps

    def conversation(self) -> list[Step]:
        """The steps that connect two sockets, so that sequences do not depend on luck for that."""
        one, other, third = (each * 2 + self.random.randrange(2) for each in self.random.sample(range(SLOTS // 2), 3))
        third = third // 2 * 2 + one % 2
        steps: list[Step] = [('socket', one), ('bind', one, self.place(one, '0a'))]
        if self.family.kind == DGRAM:
            steps += [('socket', other), ('connect', other, self.place(other, f'{one}'))]
            self.pairs.append((other, one))
        else:
            steps += [('listen', one, self.random.choice((0, 1, 5))), ('socket', other)]
            steps += [('connect', other, self.place(other, f'{one}')), ('accept', one, third)]
            self.pairs.append((other, third))
            if self.random.random() < 0.2:  # the listener ends before it accepts the client
                steps[-1] = self.random.choice((('shutdown', one, socket.SHUT_RD), ('close', one)))
        for step in steps:
            self.record(step)
        return steps

    def exchange(self) -> list[Step]:
        """Steps of two sockets that are connected with each other: they send, end, abort and receive."""
        pair = self.random.choice(self.pairs) if self.pairs else (self.slot(), self.slot())
        steps: list[Step] = []
        names = ['send', 'send', 'recv', 'recv', 'shutdown', 'shutdown', 'close', 'abort', 'error', 'flood', 'other']
        if self.family.kind == DGRAM:
            names.remove('flood')
        for _ in range(self.random.randrange(2, 12)):
            slot, peer = self.random.sample(pair, 2) if pair[0] != pair[1] else pair
            name = self.random.choice(names)
            if name == 'abort':
                steps += [('setsockopt', slot, *ABORT), ('close', slot)]
            elif name == 'error':
                steps.append(('getsockopt', slot, *ERROR))
            elif name == 'flood':
                steps += [('flood', slot, peer)] if self.random.random() < 0.2 else []
            else:
                name = self.random.choice(('getpeername', 'getsockname', 'connect', 'ask')) if name == 'other' else name
                step: Step = getattr(self, name)()
                place = [self.place(slot, 'aab012345')] if name == 'connect' else step[2:]
                steps.append((name, slot, *place))
        return steps

    def connect_to_itself(self) -> list[Step]:
        slot = self.slot()
        if slot == 0 or self.family.families[0] == UNIX:
            return [self.connect()]
        first: list[Step] = [('socket', slot), ('bind', slot, self.place(slot, '0a')), self.shutdown()]
        first = first[: self.random.randrange(4)]
        return [*((name, slot, *rest) for name, _, *rest in first), ('connect', slot, self.place(slot, str(slot)))]

    def rebind(self) -> list[Step]:
        """Close all sockets but one, in any order, and bind another one to a port that they may have used."""
        gone = self.random.sample(self.made, max(0, len(self.made) - self.random.randrange(2)))
        slot, free = self.any_slot(), self.random.random() < 0.3
        steps: list[Step] = [*(('close', each) for each in gone), ('socket', slot)]
        steps += [('setsockopt', slot, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)] if free else []
        return [*steps, ('bind', slot, self.place(slot, 'a')), ('listen', slot, 5)]

    def burst(self) -> list[Step]:
        """More datagrams than the queue of a Unix socket holds."""
        step = self.random.choice((self.send, self.sendto))()
        return [step] * self.random.choice((3, 11, 12))

    # -- addresses

    def place(self, slot: int, ports: str) -> Any:
        """A path, or a host and the name of a port: "0" is any port, a digit above it the port of a slot."""
        family, name = self.family.families[slot % 2], self.random.choice(ports)
        return name if family == UNIX else (self.random.choice(LOCAL[family]), name)

    # -- single steps

    def socket(self) -> Step:
        return 'socket', self.any_slot()

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
        return 'accept', slot, self.any_slot(slot)

    def dup(self) -> Step:
        slot = self.slot()
        return 'dup', slot, self.any_slot(slot)

    def close(self) -> Step:
        return 'close', self.slot()

    def unlink(self) -> Step:
        return 'unlink', self.slot()

    def shutdown(self) -> Step:
        return 'shutdown', self.slot(), self.random.choice((socket.SHUT_WR, socket.SHUT_WR, socket.SHUT_RD, 2))

    def getsockname(self) -> Step:
        return 'getsockname', self.slot()

    def getpeername(self) -> Step:
        return 'getpeername', self.slot()

    def setsockopt(self) -> Step:
        binds = self.family.theme == 'binding'
        level, option, values = self.random.choice(SETTABLE[:2] if binds else SETTABLE)
        if binds and self.random.random() < 0.3:
            level, option, values = socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, (0, 1)
        return 'setsockopt', self.slot(), level, option, self.random.choice(values)

    def getsockopt(self) -> Step:
        return 'getsockopt', self.slot(), *self.random.choice(READABLE)

    def ask(self) -> Step:
        ours = ('readiness', 'has_bytes', 'has_clients') if self.family.kind == STREAM else ('readiness',)
        return 'ask', self.slot(), self.random.choice(ours)

    def watch(self) -> Step:
        return 'watch', self.slot(), self.random.choice((1, 2, 3))

    def rewatch(self) -> Step:
        return 'rewatch', self.slot(), self.random.choice((1, 2, 3))

    def unwatch(self) -> Step:
        return 'unwatch', self.slot()

    def payload(self) -> bytes:
        return bytes([self.random.randrange(97, 123)]) * self.random.choice((1, 2, 5, 100))

    def send(self) -> Step:
        return 'send', self.slot(), self.random.choice((self.payload(), self.payload(), b'', 'words'))

    def sendmsg(self) -> Step:
        return 'sendmsg', self.slot(), [self.payload(), self.payload()]

    def sendfile(self) -> Step:
        return 'sendfile', self.slot(), self.random.choice((0, 1, 5, 1000)), self.random.choice((1, 2, 100))

    def recv(self) -> Step:
        flags = self.random.choice((0, 0, 0, int(socket.MSG_PEEK)))
        return 'recv', self.slot(), self.random.choice((0, 1, 3, 1000, 1000)), flags

    def sendto(self) -> Step:
        slot = self.slot()
        place = self.place(slot, 'aab001234512345')
        if place[0] == '127.0.0.2' and self.random.random() < 0.2:
            place = '127.255.255.255', place[1]
        return 'sendto', slot, self.random.choice((self.payload(), self.payload(), self.payload(), b'')), place

    def recvfrom(self) -> Step:
        return 'recvfrom', self.slot(), self.random.choice((0, 1, 1000, 1000))

    def peek_length(self) -> Step:
        return 'peek_length', self.slot()


def draw(seed: int, family: str, length: int = 30) -> list[Step]:
    """Return the sequence of a seed."""
    return Draw(seed, FAMILIES[family]).steps(length)
