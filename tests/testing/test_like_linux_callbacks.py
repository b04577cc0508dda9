"""Random calls on two connected streams have the same callbacks on the simulated kernel as on Linux.

`test_like_linux` compares single calls on sockets. Here the whole reactor runs on both kernels: each step is a call on
one of the two streams, made when everything before it has arrived. Each stream's callbacks are compared, with all
bytes, and the result of each call.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from reactor import Listener, Reactor, Stream
from reactor.kernel import Kernel
from reactor.testing.files import End
from tests.helpers.like_linux import free_port, outcome, own_ports, quiet_kernel

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='compares with Linux')

SAMPLE = 40  # sequences of each transport in a short run
PAUSE = 0.003  # seconds after each step: on loopback, everything arrives much earlier
CALLS = ('write', 'write', 'write', 'write_eof', 'write_eof', 'close', 'abort', 'pause', 'pause', 'resume', 'resume')
STREAMS = ('client', 'server')
TRIES = 3  # a difference counts only if it repeats this often, with longer and longer pauses

Step = tuple[str, str, int]
Found = dict[str, list[Any]]


@pytest.fixture(scope='module', autouse=True)
def ports():
    """Take the ports of this process before the first test, which must leave no descriptor open."""
    own_ports()


class Pair:
    """A client and a server stream on one reactor, the steps on them, and their callbacks."""

    def __init__(self, r: Reactor, seed: int, place: Any, pause: float) -> None:
        self.r, self.random, self.place, self.pause = r, Random(seed), place, pause
        self.streams: dict[str, Stream] = {}
        self.found: Found = {'client': [], 'server': [], 'results': []}
        self.left = self.random.randrange(2, 12)
        self.listener = self.listen() if self.random.random() < 0.95 else None

    def run(self) -> Found:
        """Take all steps; return the callbacks of both streams and the results of the steps."""
        self.r.run(self.begin)
        return self.found

    def begin(self, r: Reactor) -> None:
        options = self.callbacks('client')
        connect: Callable[..., Stream] = r.connect_unix if isinstance(self.place, str) else r.connect_tcp
        self.streams['client'] = connect(*self.where(), **options)
        r.call_later(self.pause, self.step)

    def listen(self) -> Listener:
        listen: Callable[..., Listener] = self.r.listen_unix if isinstance(self.place, str) else self.r.listen_tcp
        return listen(*self.where(), **self.callbacks('server'))

    def where(self) -> tuple[Any, ...]:
        return (self.place,) if isinstance(self.place, str) else ('127.0.0.1', self.place)

    def callbacks(self, name: str) -> dict[str, Callable[..., object]]:
        log = self.found[name].append

        def on_connect(conn: Stream) -> None:
            self.streams[name] = conn
            log('connect')

        def on_data(conn: Stream, data: bytes) -> None:
            found = self.found[name]
            if isinstance(found[-1], bytes):
                found[-1] += bytes(data)
            else:
                log(bytes(data))

        def on_close(conn: Stream, exc: BaseException | None) -> None:
            log(f'close: {type(exc).__name__}')

        callbacks: dict[str, Callable[..., object]] = {
            'on_connect': on_connect, 'on_data': on_data, 'on_close': on_close
        }  # fmt: skip
        if self.random.random() < 0.7:
            callbacks['on_eof'] = lambda conn: log('eof')
        return callbacks

    def step(self) -> None:
        name, call, size = self.random.choice(STREAMS), self.random.choice(CALLS), self.random.randrange(1, 300)
        conn = self.streams.get(name)
        if conn is not None:
            self.found['results'].append((name, call, outcome(self.call, name, conn, call, size), conn.state))
        self.left -= 1
        self.r.call_later(self.pause, self.step if self.left else self.end)

    def call(self, name: str, conn: Stream, call: str, size: int) -> Any:
        if call == 'write':
            return conn.write(bytes([97 + self.left]) * size, self.written, name)
        if call in ('pause', 'resume'):
            return conn.set_reading(call == 'resume')
        return getattr(conn, call)()

    def written(self, conn: Stream, name: str) -> None:
        self.found[name].append('written')

    def end(self) -> None:
        for name, conn in self.streams.items():
            self.found[name].append(f'at the end: {conn.state}')
            conn.abort()
        if self.listener is not None:
            self.listener.close()
        self.r.stop()


def callbacks(kernel: Any, seed: int, place: Any, pause: float) -> Found:
    with Reactor(kernel=kernel) as r:
        return Pair(r, seed, place, pause).run()


def difference(seed: int, place: Callable[[], Any]) -> tuple[Found, Found] | None:
    """Return what a sequence has as callbacks on Linux and on the simulated kernel, if it differs each time."""
    found = None
    for pause in (PAUSE, 5 * PAUSE, 20 * PAUSE)[:TRIES]:
        where = place()
        found = callbacks(Kernel(), seed, where, pause), callbacks(quiet_kernel(), seed, where, pause)
        if found[0] == found[1]:
            return None
    return found


@pytest.mark.timeout(0)
@pytest.mark.parametrize('transport', ['tcp', 'unix'])
def test_random_calls_have_the_same_callbacks(transport, tmp_path, request):
    until = time.monotonic() + request.config.getoption('--like-linux-seconds') / 10
    place = free_port if transport == 'tcp' else lambda: str(tmp_path / 's')
    for seed in itertools.count():
        if seed >= SAMPLE and time.monotonic() > until:
            break
        found = difference(seed, place)
        assert found is None, f'seed {seed} of {transport}'


def test_a_wrong_end_is_found(monkeypatch):
    def closed(end: End) -> None:
        if end.connected:
            end.end()

    monkeypatch.setattr(End, 'closed', closed)
    assert any(difference(seed, free_port) for seed in range(20))
