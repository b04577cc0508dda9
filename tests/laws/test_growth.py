"""The work for n, 2n and 4n things grows no faster than n log n.

`tests/helpers/work.py` counts the work in bytecodes. Its docstring lists the work that is not counted; the relevant
part of that work is counted as user instructions in `test_work_in_c.py`. Each case does all of its work for n, 2n and
4n things, and each doubling may multiply the work by MOST. A constant part of the work hides growth,
so n must not be small.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest

from reactor import Reactor
from tests.helpers.certificates import certificates  # noqa: F401  (a fixture)
from tests.helpers.growth_cases import CASES
from tests.helpers.support import run_until
from tests.helpers.work import Meter, work_of

# Doubling n = 128 multiplies n log n by 2 * 8 / 7. The rest is a margin for dicts and lists, which grow in steps.
MOST = 2.3


def measured(fn: Any, size: int) -> list[int]:
    """Return the work for `size` things, for twice and for four times that number."""
    counts = []
    for step in range(3):
        meter = Meter()
        fn(size << step, meter)
        counts.append(meter.work)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_the_work_grows_no_faster_than_n_log_n(name, recwarn):
    fn, size = CASES[name]
    counts = measured(fn, size)
    ratios = [counts[1] / counts[0], counts[2] / counts[1]]
    print(f'{name:70} {counts} {ratios[0]:.2f} {ratios[1]:.2f}')
    assert max(ratios) <= MOST, f'{name}, {size}, {2 * size} and {4 * size} times: {counts} bytecodes'


# -- TLS


class Conversation:
    """A TLS server and its clients, whose handshakes advance step by step."""

    def __init__(self, certificates: Any) -> None:  # noqa: F811
        self.received = 0
        self.r = Reactor()
        self.server = self.r.listen_tcp('127.0.0.1', 0, self.on_data, ssl=certificates.server())
        self.server._batch = 64
        self.context = certificates.client()
        self.conns: list[Any] = []
        self.clients: list[Any] = []
        self.server.on_connect = self.conns.append

    def on_data(self, conn: Any, data: bytes) -> None:
        self.received += len(data)

    def connect(self, count: int) -> None:
        """Connect clients. Their handshakes make progress only in `step`."""
        for _ in range(count):
            sock = socket.create_connection(self.server.address)
            sock.setblocking(False)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.clients.append(
                (sock, incoming, outgoing, self.context.wrap_bio(incoming, outgoing, False, 'localhost'))
            )
        run_until(self.r, lambda: self.server.open_connections == len(self.clients))

    def step(self) -> None:
        """Let each client continue its handshake."""
        for sock, incoming, outgoing, tls in self.clients:
            try:
                incoming.write(sock.recv(65536))
            except BlockingIOError:
                pass
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            if outgoing.pending:
                sock.sendall(outgoing.read())

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock, *_ in self.clients:
            sock.close()
        self.server.close()
        self.r.close()


def tls_handshakes(conversation: Conversation, n: int) -> int:
    conversation.connect(n)
    conversation.step()
    work = 0
    while len(conversation.conns) < n:
        work += work_of(conversation.r.run_once, 0)
        if not conversation.r.completions:
            conversation.step()
    return work


def tls_pieces(conversation: Conversation, n: int) -> int:
    conversation.connect(1)
    run_until(conversation.r, lambda: conversation.step() or conversation.conns)
    (conn,) = conversation.conns
    return work_of(conn.writelines, [b'x'] * n)


def tls_records(conversation: Conversation, n: int) -> int:
    conversation.connect(1)
    run_until(conversation.r, lambda: conversation.step() or conversation.conns)
    sock, _, outgoing, tls = conversation.clients[0]
    for _ in range(n):
        tls.write(b'x')
    sock.sendall(outgoing.read())
    work = 0
    while conversation.received < n:
        work += work_of(conversation.r.run_once, 0)
    return work


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'size'), [(tls_handshakes, 50), (tls_pieces, 100), (tls_records, 200)])
def test_the_work_of_tls_grows_no_faster(kind, size, certificates):  # noqa: F811
    counts = []
    for step in range(3):
        with Conversation(certificates) as conversation:
            counts.append(kind(conversation, size << step))
    ratios = [counts[1] / counts[0], counts[2] / counts[1]]
    print(f'{kind.__name__:70} {counts} {ratios[0]:.2f} {ratios[1]:.2f}')
    assert max(ratios) <= MOST, f'{kind.__name__}, {size}, {2 * size} and {4 * size} of them: {counts} bytecodes'
