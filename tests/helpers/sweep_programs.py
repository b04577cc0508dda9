"""The programs of the sweeps: they use each kind of handle and each way to end it, in as few calls as possible.

Each program is a function that gets a `World` from `exhaustion`. It acts in the loop, in callbacks that allocate as
little as possible. Its promises are checked when the fault is over.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from reactor import READ, WRITE
from tests.helpers.exhaustion import EXHAUSTED, HOST, World
from tests.helpers.support import drain, reset

BIG = 300_000  # bytes: more than a socket pair accepts at once


class Said:
    """The writes to one connection. The peer must receive each write completely or not at all, and in order.

    A write that raised counts as not made. A write that returned counts as made, unless its connection has failed.
    """

    def __init__(self, world: World, conn: Any, peer: socket.socket, *sizes: int) -> None:
        self.world, self.conn, self.peer = world, conn, peer
        self.records = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
        self.made = bytearray(len(sizes))
        self.got: list[bytes] = []
        self.blind = False  # whether reading ran out of memory and lost the data
        world.promises.append(self.wrong)

    def write(self, number: int) -> None:
        self.conn.write(self.records[number])
        self.made[number] = 1

    def write_all(self) -> None:
        for number in range(len(self.records)):
            self.write(number)

    def writelines(self) -> None:
        self.conn.writelines(self.records)
        self.made[0] = self.made[1] = self.made[2] = 1

    def read(self) -> None:
        try:
            self.got.append(drain(self.peer))
        except MemoryError:
            self.blind = True

    def wrong(self) -> str | None:
        world = self.world
        want = b''.join(record for record, made in zip(self.records, self.made, strict=True) if made)
        failed = any(conn is self.conn and exc is not None for conn, exc in zip(world.ended, world.errors, strict=True))
        end = time.monotonic() + 2  # seconds of real time for the kernel, because the turns do not wait
        while sum(map(len, self.got)) < len(want) and time.monotonic() < end:
            try:
                self.read()
            except OSError:
                break
            if failed or self.blind:
                break
            world.r.run_once(0)
        try:
            self.read()  # more bytes would be an error: see whether any arrive
        except OSError:
            pass
        if self.blind:
            return None
        got = b''.join(self.got)
        if got != want[: len(got)]:
            return f'a write that raised, or was cut, sent bytes: {summary(got)}, not {summary(want)}'
        if len(got) < len(want) and not failed:
            return f'bytes of a write that returned are lost: {summary(got)}, not {summary(want)}'
        return None


def summary(data: bytes) -> str:
    return ' '.join(f'{data.count(letter)}{letter:c}' for letter in sorted(set(data))) or 'nothing'


def echo_back(conn: Any, data: bytes) -> None:
    conn.write(data)


def ignore(*args: Any) -> None:
    """A callback that does nothing."""


def accept(w: World) -> None:
    server = w.listen(on_connect=ignore)
    w.client(server).send(b'x')
    w.client(server)


def echo(w: World) -> None:
    server = w.listen(on_data=echo_back)
    for _ in range(2):
        w.client(server).send(b'hello')


def deferred(w: World) -> None:
    server = w.listen(on_data=answer_and_close, on_connect=ignore, defer_accept=True)
    w.client(server).send(b'hello')
    w.client(server).send(b'hello')


def answer_and_close(conn: Any, data: bytes) -> None:
    conn.write(data)
    conn.close()


def with_errors(w: World) -> None:
    """A server whose callbacks raise, with and without `on_error`."""
    server = w.listen(on_data=raises, on_error=ignore)
    w.client(server).send(b'x')
    server = w.listen(on_data=raises)
    w.client(server).send(b'x')


def raises(conn: Any, data: bytes) -> None:
    raise ValueError


def full(w: World) -> None:
    """More clients than a server accepts at once."""
    server = w.listen(on_data=answer_and_close, max_connections=1)
    for _ in range(3):
        w.client(server).send(b'x')


def write_small(w: World) -> None:
    ours, theirs = w.pair()
    said = Said(w, w.adopt(ours), theirs, 10, 10)
    w.act(said.write_all)


def write_told(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours)
    said = Said(w, conn, theirs, 10, BIG, 20)

    def act() -> None:
        conn.write(said.records[0], ignore)
        said.made[0] = 1
        conn.write(said.records[1], ignore)
        said.made[1] = 1
        conn.write(said.records[2], ignore)
        said.made[2] = 1

    conn.on_drain = ignore
    w.act(act)
    w.r.call_later(1, said.read)


def write_waits(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours, on_drain=ignore, high_water=1000, low_water=100)
    said = Said(w, conn, theirs, 10, BIG, 20, 5000, 30)
    w.act(said.write_all)
    for seconds in range(1, 8):
        w.r.call_later(seconds, said.read)


def write_lines(w: World) -> None:
    ours, theirs = w.pair()
    said = Said(w, w.adopt(ours), theirs, 10, BIG, 20)
    w.act(said.writelines)
    w.r.call_later(1, said.read)


def write_then_close(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours)
    said = Said(w, conn, theirs, 10, BIG, 20)

    def act() -> None:
        said.write_all()
        conn.close()

    w.act(act)
    for seconds in range(1, 8):
        w.r.call_later(seconds, said.read)


def write_eof(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours, on_eof=ignore)
    said = Said(w, conn, theirs, 10)

    def act() -> None:
        said.write_all()
        conn.write_eof()

    w.act(act)
    w.r.call_later(1, lambda: theirs.shutdown(socket.SHUT_WR))


def write_after_reset(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours)
    theirs.send(b'last words')
    reset(theirs)
    w.act(lambda: (conn.write(b'x'), conn.write(b'y'), conn.write(b'z')))


def send_file(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours)
    with open('/proc/self/exe', 'rb') as file:
        content = file.read(BIG)
    said = Said(w, conn, theirs, BIG)
    said.records = [content]
    file = open('/proc/self/exe', 'rb')

    class Closer:
        close = staticmethod(file.close)

    w.handles.append(Closer)

    def act() -> None:
        conn.send_file(file, 0, BIG)
        said.made[0] = 1

    w.act(act)
    for seconds in range(1, 8):
        w.r.call_later(seconds, said.read)


def close_plain(w: World) -> None:
    w.act(w.adopt(w.pair()[0]).close)


def close_with_limits(w: World) -> None:
    w.act(w.adopt(w.pair()[0], idle_timeout=50).close)


def close_paused(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours)
    theirs.send(b'unread')

    def act() -> None:
        conn.pause_reading()
        conn.close()

    w.act(act)


def close_in_callback(w: World) -> None:
    ours, theirs = w.pair()
    w.adopt(ours, on_data=answer_and_close)
    theirs.send(b'x')


def abort(w: World) -> None:
    conn = w.adopt(w.pair()[0])
    w.act(lambda: (conn.write(b'x' * BIG), conn.abort()))


def peer_resets(w: World) -> None:
    ours, theirs = w.pair()
    w.adopt(ours, on_data=ignore)
    reset(theirs)


def peer_ends(w: World) -> None:
    for on_eof in None, ignore, lambda conn: conn.close():
        ours, theirs = w.pair()
        w.adopt(ours, on_eof=on_eof)
        theirs.shutdown(socket.SHUT_WR)


def peer_ends_while_bytes_wait(w: World) -> None:
    ours, theirs = w.pair()
    said = Said(w, w.adopt(ours), theirs, BIG)
    w.act(said.write_all)
    w.act(lambda: theirs.shutdown(socket.SHUT_WR))
    w.r.call_later(1, said.read)


def pause(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours, on_data=ignore)
    theirs.send(b'x')
    w.act(conn.pause_reading)
    w.r.call_later(1, conn.resume_reading)


def idle_limits(w: World) -> None:
    conn = w.adopt(w.pair()[0], idle_timeout=2)
    w.act(lambda: conn.set_timeouts(read=3, idle=5))
    w.adopt(w.pair()[0], read_timeout=1)


def lingers(w: World) -> None:
    conn = w.adopt(w.pair()[0], linger=2)
    w.act(lambda: (conn.write(b'x' * BIG), conn.close()))


def lost_descriptor(w: World) -> None:
    ours, theirs = w.pair()
    conn = w.adopt(ours)
    theirs.send(b'x')
    with socket.socket() as other:
        os.dup2(other.fileno(), ours.fileno())
    del conn


def connect(w: World) -> None:
    server = w.listen(on_data=echo_back)

    def on_connect(conn: Any) -> None:
        conn.write(b'x')

    def act() -> None:
        w.conns.append(w.r.connect_tcp(*server.address, ignore, on_connect=on_connect, on_close=w.on_close, timeout=20))

    act()


def connect_in_the_loop(w: World) -> None:
    server = w.listen(on_data=echo_back)
    address = server.address
    w.act(lambda: w.r.connect_tcp(*address, ignore, on_close=w.on_close, timeout=20))


def connect_and_write(w: World) -> None:
    server = w.listen(on_data=ignore)
    conn = w.r.connect_tcp(*server.address, on_close=w.on_close, idle_timeout=50)
    w.conns.append(conn)
    w.act(lambda: conn.write(b'x' * 10))


def refused(w: World) -> None:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        address = sock.getsockname()
    w.conns.append(w.r.connect_tcp(*address, on_close=w.on_close, timeout=20))


def connect_closed(w: World) -> None:
    server = w.listen()
    conn = w.r.connect_tcp(*server.address, on_close=w.on_close, timeout=20)
    w.conns.append(conn)
    w.act(conn.close)


def connect_times_out(w: World) -> None:
    server = socket.create_server((HOST, 0), backlog=0)
    w.socks.append(server)
    for _ in range(3):  # more clients than the backlog holds
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
        w.socks.append(sock)
    w.conns.append(w.r.connect_tcp(*server.getsockname(), on_close=w.on_close, timeout=2))


def names(w: World) -> None:
    """A name that a thread looks up; the program runs the thread's function in the loop."""
    works: list[Any] = []
    address = w.listen().address
    w.kernel.start_thread = lambda fn, name: works.append(fn)  # type: ignore[method-assign, assignment]
    w.kernel.getaddrinfo = lambda host, port, *args: [  # type: ignore[method-assign, assignment]
        (socket.AF_INET, socket.SOCK_STREAM, 0, '', address)
    ]
    w.conns.append(w.r.connect_tcp('name.test', address[1], on_close=w.on_close, timeout=20))
    w.r.call_later(0, in_thread, works)


def threads(w: World) -> None:
    works: list[Any] = []
    w.kernel.start_thread = lambda fn, name: works.append(fn)  # type: ignore[method-assign, assignment]
    tick = w.tick(0)
    call = w.r.run_in_thread(int, on_done=tick)
    w.handles.append(call)
    w.handles.append(w.r.run_in_thread(int, on_done=w.tick(1)))
    w.r.call_soon(w.handles[-1].close)
    w.r.call_later(0, in_thread, works)
    w.r.call_later(50, in_thread, works)
    w.promises.append(lambda: None if w.called[0] == 1 else f'on_done was called {w.called[0]} times')


def in_thread(works: list[Any]) -> None:
    """Run the functions of threads until all have ended."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 1000)  # a real thread has its own stack
    try:
        while works:
            works[0]()
            works.pop()
    except EXHAUSTED:
        works.pop()  # the exception ends the thread
    finally:
        sys.setrecursionlimit(limit)


def timers(w: World) -> None:
    r = w.r
    shared = r.now + 2
    one = r.call_at(shared, w.tick(0))
    r.call_at(shared, w.tick(1))
    r.call_at(shared, w.tick(2))
    moved = r.call_later(1, w.tick(3))
    w.handles += [Cancelled(r.call_every(1, w.tick(4)))]
    alone = r.call_later(3, w.tick(5))
    w.act(one.cancel)
    w.act(alone.cancel)
    w.act(lambda: moved.reset(2.5))

    def wrong() -> str | None:
        if w.called[1] != 1 or w.called[2] != 1 or w.called[3] != 1:
            return f'timers were called {list(w.called[:6])} times'
        if w.called[0] > 1 or w.called[5] > 1 or w.called[4] < 5:
            return f'timers were called {list(w.called[:6])} times'
        return None

    w.promises.append(wrong)


class Cancelled:
    """A timer with the `close` method of a handle."""

    def __init__(self, timer: Any) -> None:
        self.close = timer.cancel


def many_timers(w: World) -> None:
    """So many cancelled timers that the loop compacts its heap."""
    made = [w.r.call_later(10 + number / 100, w.tick(0)) for number in range(100)]
    w.act(lambda: [timer.cancel() for timer in made[:60]])
    w.promises.append(lambda: None if w.called[0] >= 40 else f'{w.called[0]} timers of 40 were called')


def timers_in_the_loop(w: World) -> None:
    tick = w.tick(0)

    def act() -> None:
        w.r.call_later(1, tick)
        w.called[1] += 1
        w.r.call_later(1, tick)
        w.called[1] += 1

    w.act(act)
    w.promises.append(
        lambda: None if w.called[0] == w.called[1] else f'{w.called[1]} timers were made, {w.called[0]} were called'
    )


def soon(w: World) -> None:
    tick, again = w.tick(0), w.tick(1)
    w.r.call_soon(tick)
    w.r.call_soon(tick, 1, 2)
    w.r.call_soon_threadsafe(tick)

    def act() -> None:
        w.r.call_soon(again)
        w.called[2] += 1
        w.r.call_soon_threadsafe(again)
        w.called[2] += 1

    w.act(act)
    w.promises.append(lambda: None if w.called[0] == 3 else f'{w.called[0]} of 3 calls were made')
    w.promises.append(lambda: None if w.called[1] == w.called[2] else f'{w.called[1]} of {w.called[2]} calls were made')


def notify(w: World) -> None:
    tick = w.tick(0)
    notifier = w.r.notifier(tick, once=False)
    w.handles.append(notifier)
    w.act(notifier.trigger)
    w.handles.append(Cancelled(w.r.call_later(60, notifier.trigger)))
    w.promises.append(lambda: None if w.called[0] else 'the notifier never calls its function')


def idler(w: World) -> None:
    idle = w.r.idle(w.tick(0))
    idle.unref()
    w.handles.append(idle)
    w.r.call_soon(w.r.call_soon, idle.close)
    w.promises.append(idle.close)


def signals(w: World) -> None:
    handler = w.r.add_signal_handler(signal.SIGUSR2, w.tick(0))
    w.handles.append(handler)
    handler.unref()
    os.kill(os.getpid(), signal.SIGUSR2)
    again = w.r.call_later(60, os.kill, os.getpid(), signal.SIGUSR2)
    w.handles.append(Cancelled(again))
    w.promises.append(lambda: None if w.called[0] else 'the signal handler is never called')


def watched(w: World) -> None:
    ours, theirs = w.pair()
    tick = w.tick(0)

    def on_ready(handle: Any, events: int) -> None:
        tick()
        if events == READ:
            ours.recv(10)
        handle.set_events(READ)

    handle = w.r.watch_fd(ours, READ | WRITE, on_ready)
    w.handles.append(handle)
    theirs.send(b'x')
    w.act(lambda: handle.set_events(0))
    w.act(lambda: handle.set_events(READ))


def udp(w: World) -> None:
    def on_datagram(sock: Any, data: bytes, address: Any) -> None:
        sock.send(data, address)

    server = w.r.bind_udp(HOST, 0, on_datagram, on_close=ignore)
    client = w.r.connect_udp(*server.address, ignore, on_close=w.on_close)
    w.handles.append(server)
    w.handles.append(client)
    w.act(lambda: client.send(b'x'))
    w.act(client.close)


def unix(w: World) -> None:
    path = f'\0reactor-sweep-{os.getpid()}'
    server = w.r.listen_unix(f'@{path[1:]}', echo_back, on_close=w.on_close)
    w.handles.append(server)
    conn = w.r.connect_unix(f'@{path[1:]}', ignore, on_close=w.on_close)
    w.conns.append(conn)
    w.act(lambda: conn.write(b'x'))


def listen_and_close(w: World) -> None:
    server = w.listen()
    w.act(server.pause)
    w.act(server.resume)
    other = w.listen()
    w.act(other.close)


def listens_in_the_loop(w: World) -> None:
    def act() -> None:
        w.handles[0] = w.r.listen_tcp(HOST, 0)
        w.handles[0].close()

    w.handles.append(w.r.listen_tcp(HOST, 0))
    w.handles[0].close()
    w.act(act)


def drains(w: World) -> None:
    server = w.listen(on_data=answer_and_close)
    w.client(server)
    w.client(server).send(b'x')
    w.act(lambda: w.r.drain(2))


def limits(w: World) -> None:
    from reactor import Limits

    server = w.listen(on_data=answer_and_close, limits=Limits(per_address=3, lifetime=5))
    for _ in range(2):
        w.client(server).send(b'x')


def proxied(w: World) -> None:
    server = w.listen(on_data=echo_back, proxy_protocol=['127.0.0.1/32'])
    w.client(server).send(b'PROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\nhello')
    w.client(server)


def tls(w: World) -> None:
    server = w.listen(on_data=answer_and_close, ssl=w.contexts[0])

    def on_connect(conn: Any) -> None:
        conn.write(b'x')

    conn = w.r.connect_tcp(
        *server.address, ignore, on_connect=on_connect, on_close=w.on_close, timeout=20, ssl=w.contexts[1],
        server_hostname='localhost',
    )  # fmt: skip
    w.conns.append(conn)


def start_tls(w: World) -> None:
    ours, theirs = w.pair()
    context = w.contexts[0]
    server = w.adopt(ours, on_data=ignore)
    client = w.adopt(theirs, on_data=ignore)
    w.act(lambda: server.start_tls(context, handshake_timeout=5))
    other = w.contexts[1]
    w.act(lambda: client.start_tls(other, server_hostname='localhost', handshake_timeout=5))
    w.act(lambda: client.write(b'x'))


PROGRAMS: tuple[Callable[[World], None], ...] = (
    accept, echo, deferred, with_errors, full, write_small, write_told, write_waits, write_lines, write_then_close,
    write_eof, write_after_reset, send_file, close_plain, close_with_limits, close_paused, close_in_callback, abort,
    peer_resets, peer_ends, peer_ends_while_bytes_wait, pause, idle_limits, lingers, connect, connect_in_the_loop,
    connect_and_write, refused, connect_closed, connect_times_out, names, threads, timers, many_timers,
    timers_in_the_loop, soon, notify, idler, signals, watched, udp, unix, listen_and_close, listens_in_the_loop,
    drains, limits, proxied, tls, start_tls,
)  # fmt: skip
SECURED = (tls, start_tls)
