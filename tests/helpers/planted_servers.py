"""Small servers with a planted bug, each with clients that notice it: programs for `Simulation.run_program`.

A bug shows only when the network or the system misbehaves. `PLANTED` maps each program to the faults that can show it.
"""

from __future__ import annotations

from typing import Any


def chunk_is_message(world: Any) -> None:
    """The server takes each chunk for a whole message."""

    def on_data(conn: Any, data: bytes) -> None:
        conn.write(b'%d\n' % len(data))

    server = world.r.listen_tcp(*world.address(), on_data)
    for size in (5, 7):
        ask(world, server, b'x' * size, b'%d\n' % size)


def timer_against_data(world: Any) -> None:
    """A client gives up after two seconds, but does not expect the answer that may still come."""
    server = world.r.listen_tcp(*world.address(), lambda conn, data: conn.write(b'late'))
    given_up = []

    def give_up(conn: Any) -> None:
        given_up.append(conn)
        world.r.call_later(3, conn.close)

    def on_data(conn: Any, data: bytes) -> None:
        if conn in given_up:
            world.fail('an answer came after the client had given up')
        timer.cancel()
        conn.close()

    client = world.r.connect_tcp(*server.address, on_data, on_close=lambda conn, exc: (timer.cancel(), server.close()))
    timer = world.r.call_later(2, give_up, client)
    client.write(b'question')


def close_forgotten(world: Any) -> None:
    """The server frees the seat of a guest only if the connection ends cleanly."""
    seats: list[Any] = []

    def on_close(conn: Any, exc: BaseException | None) -> None:
        if exc is None:
            seats.remove(conn)

    server = world.r.listen_tcp(
        *world.address(), lambda conn, data: conn.write(data), on_connect=seats.append, on_close=on_close
    )
    for _ in range(3):
        guest = world.r.connect_tcp(*server.address, lambda conn, data: conn.close(), on_close=lambda conn, exc: None)
        guest.write(b'hello')
        world.r.call_later(10, guest.close)
    free = world.expect('all seats are free after a minute')

    def look() -> None:
        server.close()
        if not seats:
            free.met()

    world.r.call_later(400, look)


def order_after_partial_write(world: Any) -> None:
    """The server puts lines aside while the connection is full, but writes the lines after them at once."""

    def on_connect(conn: Any) -> None:
        conn.data = []
        for number in range(6):
            line = b'%4d' % number * 5
            if conn.data and number % 3:
                conn.data.append(line)
            elif not conn.write(line):
                conn.data.append(b'')

    def on_drain(conn: Any) -> None:
        for line in conn.data:
            if line:
                conn.write(line)
        conn.data = []

    server = world.r.listen_tcp(
        *world.address(), on_connect=on_connect, on_drain=on_drain, high_water=1, on_close=lambda conn, exc: None
    )
    got = bytearray()

    def on_data(conn: Any, data: bytes) -> None:
        got.extend(data)
        numbers = [int(got[at : at + 4]) for at in range(0, len(got) // 20 * 20, 20)]
        if numbers != sorted(numbers):
            world.fail(f'the lines are out of order: {numbers}')
            conn.close()

    client = world.r.connect_tcp(*server.address, on_data, on_close=lambda conn, exc: server.close())
    world.r.call_later(60, client.close)


def work_done_twice(world: Any) -> None:
    """A client asks again on a new connection, and the server does not notice that it has done this work."""
    done: list[bytes] = []

    def on_data(conn: Any, data: bytes) -> None:
        conn.data = (conn.data or b'') + data
        *lines, conn.data = conn.data.split(b'\n')
        for line in lines:
            if line in done:
                world.fail(f'{line!r} was done twice')
            done.append(line)
            conn.write(b'done\n')

    server = world.r.listen_tcp(*world.address(), on_data)

    def begin(number: int, attempts: int) -> None:
        def on_close(conn: Any, exc: BaseException | None) -> None:
            if exc is not None and attempts:
                world.r.call_later(1, begin, number, attempts - 1)

        client = world.r.connect_tcp(*server.address, lambda conn, data: conn.close(), on_close=on_close)
        client.write(b'order %d\n' % number)

    for number in range(5):
        begin(number, 3)
    world.r.call_later(600, server.close)


def ask(world: Any, server: Any, question: bytes, answer: bytes) -> None:
    """Ask on a new connection; fail if the answer differs."""
    got = bytearray()

    def on_data(conn: Any, data: bytes) -> None:
        got.extend(data)
        if not answer.startswith(got):
            world.fail(f'the answer to {len(question)} bytes is {bytes(got)!r}')
        if got == answer:
            conn.close()

    def on_close(conn: Any, exc: BaseException | None) -> None:
        if not server.closed:
            world.r.call_later(30, server.close)

    world.r.connect_tcp(*server.address, on_data, on_close=on_close).write(question)


PLANTED = {
    chunk_is_message: {'send.short', 'recv.short'},
    timer_against_data: {'clock.jump', 'network.stall', 'descriptors.few', 'accept.exhausted', 'socket.exhausted'},
    close_forgotten: {
        'accept.aborted', 'network.broken', 'network.stall', 'send.broken', 'send.exhausted', 'address.peer',
        'clock.jump', 'descriptors.few',
    },
    order_after_partial_write: {'send.short', 'send.again'},
    work_done_twice: {'network.broken', 'send.broken', 'send.exhausted', 'clock.jump', 'accept.aborted'},
}  # fmt: skip
