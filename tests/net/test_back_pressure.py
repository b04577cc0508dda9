"""Back-pressure as shown in the README: pause reading when `write` returns False, and resume it in `on_drain`.

A client sends all of its requests at once, and reads the answers late. On every kind of stream, all requests must be
answered in order, and the server must never buffer more than the answers to one chunk of requests.
"""

from __future__ import annotations

from typing import Any

import pytest

import reactor
from reactor import Reactor, framing
from reactor.testing import Simulation
from tests.helpers.certificates import certificates  # noqa: F401  (a fixture)
from tests.helpers.support import drain, end, fill, run_until, turns

REQUESTS, ANSWER = 400, 60_000  # 24 MB of answers
SIZE = 32  # bytes in a request


def answer(conn: Any, request: bytes) -> None:
    """Answer one request with the code in the README."""
    if not conn.write(request.rjust(ANSWER, b'.')):
        conn.pause_reading()


def chunk_by_chunk(conn: Any, data: bytes) -> None:
    """Answer requests without `framing`. All requests in a chunk are answered at once, so chunks have to be small."""
    for line in data.splitlines():
        answer(conn, line)


class Client:
    """A client that sends all requests at once, and starts to read after the server has paused.

    requests  the number of requests to send: fewer in simulation, where each byte is checked
    """

    def __init__(self, requests: int = REQUESTS) -> None:
        self.received = bytearray()
        self.requests = requests

    def on_connect(self, conn: Any) -> None:
        conn.pause_reading()
        for number in range(self.requests):
            # Over TLS, each of these lines is a record of its own, and a turn decrypts only a few records.
            conn.write(b'%0*d\n' % (SIZE - 1, number))
        conn.loop.call_later(0.05, conn.resume_reading)

    def on_data(self, conn: Any, data: bytes) -> None:
        self.received += data
        if len(self.received) == self.requests * ANSWER:
            conn.close()

    def check(self) -> None:
        answers = [bytes(self.received[at : at + ANSWER]) for at in range(0, len(self.received), ANSWER)]
        assert len(answers) == self.requests
        assert [int(one.lstrip(b'.')) for one in answers] == list(range(self.requests))


KINDS = {'chunks': chunk_by_chunk, 'framing.lines': framing.lines(answer)}


@pytest.mark.parametrize('secure', [False, True], ids=['TCP', 'TLS'])
@pytest.mark.parametrize('kind', KINDS)
def test_each_request_is_answered_however_late_the_client_reads(r, certificates, kind, secure):  # noqa: F811
    ours, theirs = {'read_size': SIZE}, {}
    if secure:
        ours, theirs = {'ssl': certificates.server()}, {'ssl': certificates.client(), 'server_hostname': 'localhost'}
    client = Client()
    server = r.listen_tcp('127.0.0.1', 0, KINDS[kind], on_drain=reactor.Stream.resume_reading, **ours)
    port = server.address[1]
    conn = r.connect_tcp('127.0.0.1', port, client.on_data, on_connect=client.on_connect, **theirs)
    run_until(r, lambda: conn.closed)
    client.check()
    server.close()
    run_until(r, lambda: not r.handles())


@pytest.mark.parametrize('secure', [False, True], ids=['TCP', 'TLS'])
@pytest.mark.parametrize('kind', KINDS)
def test_each_request_is_answered_in_simulation_too(certificates, kind, secure):  # noqa: F811
    ours, theirs = {'read_size': SIZE}, {}
    if secure:
        ours, theirs = {'ssl': certificates.server()}, {'ssl': certificates.client(), 'server_hostname': 'localhost'}
    client = Client(40)

    def main(r: Reactor) -> None:
        server = r.listen_tcp('10.0.0.1', 80, KINDS[kind], on_drain=reactor.Stream.resume_reading, **ours)
        r.connect_tcp(
            '10.0.0.1', 80, client.on_data, on_connect=client.on_connect, on_close=lambda *_: server.close(), **theirs
        )

    Simulation(1, faults=False).run(main)
    client.check()


def test_in_debug_mode_resuming_through_the_base_class_delivers_data_received_before(certificates, sockets):  # noqa: F811
    # Regression: a call to the unbound method `Stream.resume_reading` used to skip the override of TLS streams. Data
    # that had already been received was then not decrypted until more data arrived.
    with Reactor(debug=True) as r:
        client, server = Client(), None
        server = r.listen_tcp(
            '127.0.0.1', 0, KINDS['framing.lines'], on_drain=reactor.Stream.resume_reading, ssl=certificates.server()
        )
        conn = r.connect_tcp(
            *server.address[:2], client.on_data, on_connect=client.on_connect,
            ssl=certificates.client(), server_hostname='localhost',
        )  # fmt: skip
        run_until(r, lambda: conn.closed)
        client.check()
        server.close()


def test_if_a_callback_lowers_the_marks_on_drain_waits_for_the_new_ones(r, sockets):
    ours, theirs = sockets()
    fill(ours)
    waiting = []
    conn = r.adopt(ours, on_drain=lambda conn: waiting.append(conn.buffered), high_water=900_000, low_water=890_000)
    conn.write(b'first', lambda conn: conn.set_write_limits(1000))
    assert conn.write(bytes(900_000)) is False
    while conn.buffered == 900_005:
        theirs.recv(65536)
        turns(r, 1)
    turns(r, 2)
    assert 1000 <= conn.buffered <= 890_000, 'the kernel took too much or too little for this test'
    assert waiting == []  # `write` would return False now
    while not waiting:
        drain(theirs)
        turns(r, 1)
    assert waiting[0] <= 250
    end(r, conn)
