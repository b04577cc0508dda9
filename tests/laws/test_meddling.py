"""Handles of every kind on the real kernel: their callbacks act on any other handle in the same turn.

The program is that of the simulation, and adds handles that the simulated kernel lacks: pipes of children, descriptors
of other code, Unix datagrams, files, adopted sockets and watched paths. Each handle must keep the promises of its
documentation.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from reactor import READ, WRITE, ConnectionClosed, HandleClosed, Reactor
from reactor.kernel.platforms import AF_UNIX
from reactor.testing.programs.actors import PERIOD, TEXT, Crowd, Side, refer
from reactor.testing.programs.meddling import KINDS, Mailer
from tests.conftest import check_empty
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import SELECTORS
from tests.testing.test_programs import RealWorld

pytestmark = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets, which the program uses')

SEEDS = range(8)


class Planted(Exception):
    """The exception that some callbacks raise."""


class RaisingWorld(RealWorld):
    """A world in which callbacks raise with the probability `raises`."""

    raises = 0.03

    def trouble(self, conn: Any = None) -> None:
        if self.random.random() < self.raises:
            raise Planted


class FileSide(Side):
    """A connection that also sends parts of a file."""

    def write(self, rng: Any) -> None:
        if rng.random() < 0.5 or not self.ready or self.ended or self.over:
            super().write(rng)
            return
        size = rng.choice((0, 100, 5000, 200_000))
        self.conn.send_file(self.crowd.file, self.said % PERIOD, size, self.on_written, self.count)
        self.said += size
        self.count += 1


def adopted(crowd: Any) -> Any:
    """Return two streams, adopted from a pair of sockets, that are connected to each other."""
    sides = []
    for sock in socket.socketpair():
        sock.setblocking(False)
        side = FileSide(crowd, None, True)
        side.conn = crowd.r.adopt(sock, **side.callbacks(crowd.rng), linger=0.05)
        sides.append(side)
    crowd.actors.append(sides[0])
    return sides[1]


class Watch:
    """A watched descriptor: one end of a socket pair, whose other end is written to and read here."""

    def __init__(self, crowd: Any) -> None:
        self.crowd, self.over = crowd, False
        self.ours, self.theirs = crowd.pair()
        self.events = crowd.rng.choice((READ, WRITE, READ | WRITE, 0))
        self.handle = crowd.r.watch_fd(self.ours, self.events, self.ready)

    def ready(self, handle: Any, event: int) -> None:
        if self.over or not event & self.events:
            self.crowd.fail(f'event {event} of a descriptor watched for {self.events}')
        with suppress(BlockingIOError):
            self.ours.recv(100) if event == READ else self.ours.send(b'x' * 1000)
        self.crowd.meddle()

    def act(self, rng: Any) -> None:
        action = rng.randrange(5)
        with suppress(OSError):
            if action == 0:
                self.theirs.send(b'y' * rng.choice((1, 1000)))
            elif action == 1:
                self.theirs.recv(1 << 20)
        if action == 2:
            self.events = rng.choice((READ, WRITE, READ | WRITE, 0))
            self.handle.set_events(self.events)
        elif action == 3:
            refer(self.handle, rng)
        elif action == 4 and rng.random() < 0.5:
            self.close(rng)

    def close(self, rng: Any) -> None:
        self.handle.close()
        self.over = True
        for sock in self.ours, self.theirs:
            sock.close()


class UnixMailer(Mailer):
    """A Unix datagram socket with its peer."""

    def __init__(self, crowd: Any) -> None:
        self.crowd, self.over, self.paused, self.closed = crowd, False, False, False
        ours, self.theirs = crowd.pair(socket.SOCK_DGRAM)
        self.sock = crowd.r.bind_udp(
            None, 0, self.on_datagram, sock=ours, on_drain=self.on_drain, on_send_error=self.on_send_error,
            on_close=self.on_close, max_queued=crowd.rng.choice((0, 3000, 1 << 20)),
        )  # fmt: skip
        self.number = crowd.expect('end of Unix datagram socket')

    def send(self, rng: Any) -> None:
        size = rng.choice((0, 1, 900, 9000))
        with suppress(OSError):
            self.theirs.send(TEXT[:size]) if rng.random() < 0.5 else self.theirs.recv(65536)
        for _ in range(rng.choice((1, 1, 40))):
            try:
                self.sock.send(TEXT[:size])
            except HandleClosed:
                if not (self.closed or self.over):
                    self.crowd.fail('send raised HandleClosed, but the socket was open')


class Child:
    """A child process that echoes its input."""

    def __init__(self, crowd: Any) -> None:
        self.crowd, self.over, self.heard, self.said, self.ended = crowd, False, 0, 0, False
        options = {'read_size': crowd.rng.choice((100, 65536)), 'linger': 0.05}
        self.process = crowd.r.spawn(['cat'], stdin=-1, stdout=-1, on_exit=self.on_exit, **options)
        self.number = crowd.expect('end of a child')
        self.pipes = {}
        for name in 'stdin', 'stdout':
            pipe = getattr(self.process, name)
            self.pipes[pipe] = crowd.expect(f'end of {name}')
            pipe.on_close = self.on_close
        self.process.stdout.on_data = self.on_data

    def on_data(self, pipe: Any, data: bytes) -> None:
        at = self.heard % PERIOD
        if data != TEXT[at : at + len(data)]:
            self.crowd.fail('a child wrote bytes that were not sent to it')
        self.heard += len(data)
        self.crowd.world.trouble(pipe)
        self.crowd.meddle()

    def on_close(self, pipe: Any, exc: Any) -> None:
        self.crowd.met(self.pipes[pipe])
        self.crowd.meddle()

    def on_exit(self, process: Any, code: Any, signum: Any) -> None:
        if (code is None) == (signum is None):
            self.crowd.fail(f'a child has ended with status {code} and signal {signum}')
        self.over = True
        self.crowd.met(self.number)
        for pipe in self.pipes:
            pipe.close()
        self.crowd.meddle()

    def act(self, rng: Any) -> None:
        action, stdin = rng.randrange(9), self.process.stdin
        if action < 5:
            size = rng.choice((0, 1, 5000, 100_000))
            try:
                stdin.write(TEXT[self.said % PERIOD :][:size])
                self.said += size
            except ConnectionClosed:
                if not (self.ended or self.over or stdin.closed):
                    self.crowd.fail('a write to a child raised ConnectionClosed')
        elif action == 5:
            stdin.write_eof()
            self.ended = True
        elif action == 6:
            self.process.stdout.pause_reading()
        elif action == 7:
            self.process.stdout.resume_reading()
        elif rng.random() < 0.3:
            self.close(rng)

    def close(self, rng: Any) -> None:
        self.ended = True
        if rng.random() < 0.5:
            self.process.close()
        else:
            self.process.kill()
            for pipe in self.pipes:
                pipe.abort()


class Path_:
    """A watched directory, in which the program changes files now and then."""

    def __init__(self, crowd: Any) -> None:
        self.crowd, self.over = crowd, False
        self.folder = crowd.folder
        self.handle = crowd.r.watch_path(self.folder, self.changed)

    def changed(self, handle: Any, path: str, change: str) -> None:
        if self.over:
            self.crowd.fail('a change of a path that is no longer watched was reported')
        self.crowd.meddle()

    def act(self, rng: Any) -> None:
        if rng.random() < 0.8:
            (self.folder / str(rng.randrange(5))).write_bytes(b'x')
        else:
            self.close(rng)

    def close(self, rng: Any) -> None:
        self.handle.close()
        self.over = True


class RealCrowd(Crowd):
    """A crowd that has every kind of handle that the real kernel supports."""

    def __init__(self, world: Any, folder: Path) -> None:
        pytest.importorskip('watchdog')
        super().__init__(world, (*KINDS, adopted, FileSide.open, Watch, UnixMailer, Child, Path_))
        self.folder = folder
        self.made: list[Any] = []
        path = folder / 'text'
        path.write_bytes(TEXT)
        self.file = path.open('rb')
        self.made.append(self.file)

    def pair(self, kind: int = socket.SOCK_STREAM) -> Any:
        """Return a pair of sockets that are closed at the end."""
        pair = socket.socketpair(AF_UNIX, kind)
        for sock in pair:
            sock.setblocking(False)
            self.made.append(sock)
        return pair


def play(
    seed: int, selector: selectors.BaseSelector, folder: Path, tls: Any = None, seconds: float = 30, **options: Any
) -> None:
    errors: list[Any] = []
    crowds: list[RealCrowd] = []

    def program(world: Any) -> None:
        crowds.append(RealCrowd(world, folder))
        crowds[0].begin()

    with Reactor(selector=selector, catch_errors=lambda exc, handle: errors.append(exc), **options) as r:
        world = RaisingWorld(r, seed, folder)
        world.tls = tls
        try:
            world.play(program, seconds)
            check_empty(r)
        finally:
            for crowd in crowds:
                for made in crowd.made:
                    made.close()
            assert [exc for exc in errors if type(exc) is not Planted] == []


@pytest.fixture(autouse=True)
def no_thread_left(nothing_left):
    """Wait for the threads that watch paths: they end soon after their handle is closed."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('kind', list(SELECTORS))
def test_handles_that_act_on_each_other_keep_their_promises(kind, seed, tmp_path_factory):
    if SELECTORS[kind] is None:
        pytest.skip(f'this platform has no {kind} selector')
    play(seed, SELECTORS[kind](), tmp_path_factory.mktemp('s'))


@pytest.mark.parametrize('seed', SEEDS)
def test_handles_keep_their_promises_over_tls(seed, certificates, tmp_path_factory):  # noqa: F811
    contexts = certificates.server(), certificates.client()
    play(seed, selectors.DefaultSelector(), tmp_path_factory.mktemp('s'), contexts)


@pytest.mark.parametrize('options', [{'debug': True}, {'slow_callback': 1e-9}], ids=['debug', 'slow'])
def test_handles_keep_their_promises_with_debugging_options(options, tmp_path_factory):
    for seed in SEEDS:
        play(seed, selectors.DefaultSelector(), tmp_path_factory.mktemp('s'), **options)
