"""A program with several processes: servers that are killed and started again, and clients that reconnect.

It runs on simulated systems only. Each server has a disk, which survives its death: it has the work that is done. A
client asks again for work that was not answered, so the server must not do the same work twice.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from reactor import Stream

if TYPE_CHECKING:
    from ..world import Expectation, World

WAIT = 20.0  # seconds: the time limits of clients


class WorkServer:
    """A server. It does each piece of work that it does not find on its disk, and answers."""

    world: World
    disk: list[bytes]

    def __init__(self, world: World, address: tuple[str, int], disk: list[bytes]) -> None:
        self.world, self.disk = world, disk
        world.r.listen_tcp(*address, self.on_data, on_connect=self.on_connect, on_close=self.on_close)

    def on_connect(self, conn: Stream) -> None:
        conn.data = b''
        self.world.trouble(conn)

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.world.trouble(conn)
        *lines, conn.data = (conn.data + data).split(b'\n')
        for line in lines:
            if line not in self.disk:
                self.disk.append(line)
            conn.write(line + b'\n')

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.world.trouble(conn)


class WorkClient:
    """A client with a few requests. It connects until each of them is answered."""

    world: World
    address: tuple[str, int]
    rng: Random

    def __init__(self, world: World, address: tuple[str, int], name: bytes, rng: Random) -> None:
        self.world, self.address, self.rng = world, address, rng
        self.left: list[bytes] = [b'%s-%d' % (name, number) for number in range(rng.choice((1, 5, 100)))]
        self.goal: Expectation = world.expect(f'all answers to {name!r}')
        self.connect()

    def connect(self) -> None:
        self.rest: bytes = b''
        self.world.r.connect_tcp(
            *self.address, self.on_data, on_connect=self.ask, on_close=self.on_close,
            timeout=WAIT, read_timeout=WAIT, write_timeout=WAIT,
        )  # fmt: skip

    def ask(self, conn: Stream) -> None:
        self.world.trouble(conn)
        conn.write(b''.join(line + b'\n' for line in self.left))

    def on_data(self, conn: Stream, data: bytes) -> None:
        self.world.trouble(conn)
        *lines, self.rest = (self.rest + data).split(b'\n')
        self.left = [line for line in self.left if line not in lines]
        if not self.left:
            conn.close()

    def on_close(self, conn: Stream, exc: BaseException | None) -> None:
        if self.left:
            self.world.r.call_later(self.rng.choice((0.1, 1, 5)), self.connect)
        else:
            self.goal.met()
        self.world.trouble(conn)


def restarts(world: Any) -> None:
    """Start one or two servers and a few clients, each in a process of its own or in the main process."""
    rng = Random(world.random.getrandbits(64))
    disks: list[list[bytes]] = []
    for server in range(rng.randint(1, 2)):
        _start_group(world, rng, server, disks)
    world.always(lambda: all(len(disk) == len(set(disk)) for disk in disks), 'no server does the same work twice')


def _start_group(world: Any, rng: Random, server: int, disks: list[list[bytes]]) -> None:
    address, disk = world.address(), []  # type: tuple[str, int], list[bytes]
    disks.append(disk)
    process = world.process(lambda inner: WorkServer(inner, address, disk), name=f'server {server}')
    for number in range(rng.randint(1, 3)):
        name, drawn = b'%d-%d' % (server, number), rng.getrandbits(64)
        if rng.random() < 0.3:
            world.process(
                lambda inner, name=name, drawn=drawn: WorkClient(inner, address, name, Random(drawn)),
                name=f'client process {number}',
            )
        else:
            WorkClient(world, address, name, Random(drawn))
    if world.faulty and rng.random() < 0.3:
        world.r.call_later(rng.random() * 5, process.kill)
        world.r.call_later(5 + rng.random() * 5, lambda: process.running or process.start())
