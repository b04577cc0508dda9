"""Small servers and clients with a bug that the profile 'hostile' shows, each with its fix.

A program is called as `program(world, fixed)`. `BUGS` maps each program to the faults that can show its bug.
"""

from __future__ import annotations

from typing import Any

ORDER = b'an order of forty bytes, ended by a line\n'


def peer_never_missed(world: Any, fixed: bool) -> None:
    """The server waits for its clients without a time limit, so it keeps the connections of those that vanish."""
    limit = 120 if fixed else None
    server = world.r.listen_tcp(*world.address(), lambda conn, data: conn.write(data), idle_timeout=limit)
    for _ in range(3):
        client = world.r.connect_tcp(*server.address, idle_timeout=60, timeout=60)
        client.write(b'hello')
        world.r.call_later(30, client.close)
    world.r.call_later(40, server.close)


def five_attempts(world: Any, fixed: bool) -> None:
    """The client tries five times to place an order, and then gives up for ever."""
    placed = world.expect('the order is placed')
    server = world.r.listen_tcp(*world.address(), lambda conn, data: conn.write(b'placed'), idle_timeout=60)

    def attempt(left: int) -> None:
        def on_data(conn: Any, data: bytes) -> None:
            placed.met()
            server.close()
            conn.data = 'placed'
            conn.close()

        def on_close(conn: Any, exc: BaseException | None) -> None:
            if conn.data is None and (left or fixed):
                world.r.call_later(5, attempt, left - 1)
            elif conn.data is None:
                server.close()

        client = world.r.connect_tcp(*server.address, on_data, on_close=on_close, idle_timeout=20, timeout=5)
        client.write(b'order')

    attempt(4)


def slow_order(world: Any, fixed: bool) -> None:
    """The server means to give a client ten seconds for an order, but the time starts again at each byte."""
    began: dict[Any, float] = {}

    def on_connect(conn: Any) -> None:
        began[conn] = world.r.now
        conn.data = world.r.call_later(10, conn.abort) if fixed else None

    def on_data(conn: Any, data: bytes) -> None:
        if data.endswith(b'\n'):
            conn.close()

    def on_close(conn: Any, exc: BaseException | None) -> None:
        del began[conn]
        if conn.data is not None:
            conn.data.cancel()

    server = world.r.listen_tcp(
        *world.address(), on_data, on_connect=on_connect, on_close=on_close, read_timeout=10, linger=1
    )
    world.always(lambda: all(world.r.now - since < 15 for since in began.values()), 'no client has 15 s for its order')
    for _ in range(3):
        world.r.connect_tcp(*server.address, idle_timeout=60, timeout=60).write(ORDER)
    world.r.call_later(90, server.close)


def answer_after_limit(world: Any, fixed: bool) -> None:
    """The client gives up after 30 seconds, but does not expect the answer that may still come."""
    given_up: list[Any] = []

    def give_up(conn: Any) -> None:
        given_up.append(conn)
        if fixed:
            conn.abort()

    def on_data(conn: Any, data: bytes) -> None:
        if conn in given_up:
            world.fail('an answer came after the client had given up')
        conn.close()

    server = world.r.listen_tcp(*world.address(), lambda conn, data: conn.write(b'answer'), idle_timeout=100)
    for _ in range(3):
        client = world.r.connect_tcp(*server.address, on_data, idle_timeout=100, timeout=60)
        client.write(b'question')
        world.r.call_later(30, give_up, client)
    world.r.call_later(100, server.close)


def stopped_while_resolving(world: Any, fixed: bool) -> None:
    """The client is stopped after five seconds, but forgets the look-up that is still under way."""
    stopped = []

    def found(addresses: Any, error: Any) -> None:
        if stopped:
            world.fail('the client goes on after it was stopped')

    lookups = [world.r.resolve('server.test', found) for _ in range(3)]

    def stop() -> None:
        stopped.append(True)
        if fixed:
            for lookup in lookups:
                lookup.close()

    world.r.call_later(5, stop)


def half_a_result(world: Any, fixed: bool) -> None:
    """The thread tells the loop of a result before the second half is in the list."""
    result: list[str] = []

    def work() -> None:
        result.append('first half')
        if fixed:
            result.append('second half')
        world.r.call_soon_threadsafe(use)
        if not fixed:
            result.append('second half')

    def use() -> None:
        if len(result) % 2:
            world.fail(f'the loop has read half a result: {result}')

    for delay in range(4):
        world.r.call_later(delay, world.r.run_in_thread, work)


def checked_then_used(world: Any, fixed: bool) -> None:
    """One callback checks that there is a job, and the next one takes it, but a thread may take it in between."""
    jobs: list[int] = []
    checked: list[bool] = []

    def check() -> None:
        checked.append(bool(jobs))

    def take() -> None:
        if checked.pop() and (jobs or not fixed):
            jobs.pop()

    def tick() -> None:
        jobs.append(len(jobs))
        world.r.run_in_thread(jobs.clear)
        world.r.call_soon(check)
        world.r.call_soon(take)

    for number in range(50):
        world.r.call_later(number / 100, tick)


BUGS = {
    peer_never_missed: {'peer.vanishes', 'network.partition'},
    five_attempts: {'network.partition'},
    slow_order: {'network.trickle'},
    answer_after_limit: {'network.limit', 'network.partition'},
    stopped_while_resolving: {'lookup.slow'},
    half_a_result: {'thread.paused'},
    checked_then_used: {'thread.preempts'},
}


def vanished_client(world: Any) -> None:
    """`peer_never_missed`, as a program for the command line."""
    peer_never_missed(world, fixed=False)
