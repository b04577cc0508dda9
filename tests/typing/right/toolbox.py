"""Correct uses of reconnect, Requests and Group."""

from __future__ import annotations

from typing import assert_type

import reactor
from reactor import Group, Listener, PendingRequest, Reactor, Reconnector, Requests, Stream, Timer


def on_up(conn: Stream) -> None:
    conn.write(b'hello')


def on_down(conn: Stream | None, exc: BaseException | None, delay: float | None) -> None:
    print(conn, exc, delay if delay is None else round(delay))


def on_answer(answer: bytes | None, error: BaseException | None) -> None:
    print(answer if answer is None else answer.decode(), error)


def main(r: Reactor) -> None:
    def connect() -> Stream:
        return r.connect_tcp('localhost', 80, timeout=5, on_close=lambda conn, exc: print(requests.fail_all(exc)))

    client = reactor.reconnect(connect, on_up, on_down, first=0.5, most=30, jitter=0.5)
    assert_type(client, Reconnector)
    assert_type(client.conn, Stream | None)
    client.on_up = lambda conn: conn.close()
    client.on_down = None
    reactor.reconnect(lambda: r.connect_unix('/run/x'), on_down=lambda conn, exc, delay: client.stop())
    requests: Requests[bytes] = Requests(r, timeout=5, max_pending=10)
    request = requests.add(on_answer, timeout=1, deadline=r.now + 2)
    assert_type(request, PendingRequest[bytes])
    assert_type(request.time_left, float | None)
    requests.add(lambda answer, error: print(None if answer is None else answer.decode()), id='x')
    assert_type(requests.answer(request.id, b'x'), bool)
    requests.fail('x', ValueError('no'))
    group = Group()
    assert_type(group.add(r.listen_tcp('localhost', 0)), Listener)
    assert_type(group.add(r.call_later(1, print)), Timer)
    group.add(client)
    group.add(request)
    group.add(Group()).close()


reactor.run(main)
