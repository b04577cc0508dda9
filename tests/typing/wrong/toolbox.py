"""reconnect, Requests and Group: each marked line has a mistake, and no other line has one."""

from __future__ import annotations

import reactor
from reactor import Group, Reactor, Requests, Stream


def nothing() -> None:
    pass


def one(conn: Stream) -> None:
    pass


def down(conn: Stream, exc: BaseException | None, delay: float | None) -> None:
    pass


def on_text(answer: str | None, error: BaseException | None) -> None:
    pass


def clients(r: Reactor) -> None:
    def connect() -> Stream:
        return r.connect_tcp('localhost', 80)

    reactor.reconnect(nothing)  # wrong: callback
    reactor.reconnect(connect, nothing)  # wrong: callback
    reactor.reconnect(connect, one, one)  # wrong: callback
    reactor.reconnect(connect, one, down)  # wrong: callback
    reactor.reconnect(connect, first='1')  # wrong: value
    reactor.reconnect(connect, longest=5)  # wrong: call
    reactor.reconect(connect)  # wrong: name
    client = reactor.reconnect(connect)
    client.conn.write(b'x')  # wrong: optional
    client.on_down = one  # wrong: callback
    client.halt()  # wrong: name


def requests(r: Reactor) -> None:
    table: Requests[bytes] = Requests(r)
    table.add(on_text)  # wrong: callback
    table.add(one)  # wrong: callback
    table.add(lambda answer: None)  # wrong: callback
    table.answer(1, 'text')  # wrong: value
    table.fail(1, 'text')  # wrong: value
    Requests(timeout=5)  # wrong: call


def groups(r: Reactor) -> None:
    group = Group()
    group.add(5)  # wrong: value
    group.add(r.call_soon(nothing))  # wrong: value
    group.add(r.listen_tcp('localhost', 0)).cancel()  # wrong: name
