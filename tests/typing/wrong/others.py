"""Datagrams, children, framing, service: each marked line has a mistake, and no other line has one."""

from __future__ import annotations

from typing import Any

import reactor
from reactor import DatagramSocket, Process, Reactor, Stream, framing, observe, serve


def nothing() -> None:
    pass


def main(r: Reactor, listeners: list[Any]) -> None:
    pass


def one(sock: DatagramSocket) -> None:
    pass


def datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
    pass


def value_error(sock: DatagramSocket, exc: ValueError) -> None:
    pass


def on_data(conn: Stream, data: bytes) -> None:
    pass


def on_exit(process: Process, code: int) -> None:
    pass


def datagrams(r: Reactor) -> None:
    r.open_fd('/dev/tty')  # wrong: value
    r.open_fd(0, datagram)  # wrong: callback
    r.open_fd(0, on_close=one)  # wrong: callback
    r.open_fd(0, nodelay=True)  # wrong: shared option
    r.open_fd(0, closefd='no')  # wrong: value
    r.bind_udp('localhost')  # wrong: call
    r.bind_udp('localhost', '53')  # wrong: value
    r.bind_udp('localhost', 53, on_data)  # wrong: callback
    r.bind_udp('localhost', 53, lambda sock, data: None)  # wrong: callback
    r.bind_udp('localhost', 53, on_data=datagram)  # wrong: shared option
    r.bind_udp('localhost', 53, on_send_error=value_error)  # wrong: callback
    r.bind_udp('localhost', 53, on_drain=nothing)  # wrong: callback
    r.bind_udp('localhost', 53, on_close=one)  # wrong: callback
    r.bind_udp('localhost', 53, on_error=one)  # wrong: callback
    r.bind_udp('localhost', 53, brodcast=True)  # wrong: shared option
    r.bind_udp('localhost', 53, broadcast='yes')  # wrong: value
    r.bind_udp('localhost', 53, max_queued=1.5)  # wrong: value
    r.bind_udp('localhost', 53, reuse_port='yes')  # wrong: value
    r.connect_udp(None, 53)  # wrong: value
    r.connect_udp('localhost', 53, on_data)  # wrong: callback
    r.connect_udp('localhost', 53, reuse_port=True)  # wrong: shared option
    r.connect_udp('localhost', 53, family='inet')  # wrong: value
    sock = r.bind_udp('localhost', 53, datagram)
    sock.send('x')  # wrong: value
    sock.sendto(b'x', ('::1', 1))  # wrong: name
    sock.on_datagram = on_data  # wrong: callback
    sock.on_send_error = value_error  # wrong: callback
    sock.on_drain = datagram  # wrong: callback
    sock.on_close = one  # wrong: callback
    sock.on_error = one  # wrong: callback
    sock.join_group(5)  # wrong: value
    sock.leave_group(5)  # wrong: value
    sock.pause_reading(1)  # wrong: call
    sock.resume_reading(1)  # wrong: call
    sock.queued = 0  # wrong: read-only
    sock.buffered = 0  # wrong: read-only
    sock.kernel_drops = 0  # wrong: read-only
    sock.address = 0  # wrong: read-only
    sock.sockname = 0  # wrong: read-only
    sock.peername = 0  # wrong: read-only
    sock.closed = True  # wrong: read-only
    sock.close(1)  # wrong: call


def children(r: Reactor) -> None:
    r.spawn()  # wrong: call
    r.spawn(5)  # wrong: value
    r.spawn(['cat', 5])  # wrong: value
    r.spawn(['cat'], stdin='x')  # wrong: value
    r.spawn(['cat'], stdout=b'x')  # wrong: value
    r.spawn(['cat'], stderr=1.5)  # wrong: value
    r.spawn(['cat'], on_exit=nothing)  # wrong: callback
    r.spawn(['cat'], on_exit=on_exit)  # wrong: callback
    r.spawn(['cat'], env=['A=b'])  # wrong: value
    r.spawn(['cat'], cwd=5)  # wrong: value
    r.spawn(['cat'], pass_fds=5)  # wrong: value
    r.spawn(['cat'], nodelay=True)  # wrong: shared option
    r.spawn(['cat'], idle_timout=5)  # wrong: shared option
    child = r.spawn(['cat'])
    child.stdin.write(b'x')  # wrong: none
    child.stdout.on_data = on_data  # wrong: none
    child.on_exit = on_exit  # wrong: callback
    child.send_signal('TERM')  # wrong: value
    child.terminate(1)  # wrong: call
    child.kill(1)  # wrong: call
    child.close(1)  # wrong: call
    child.wait()  # wrong: name
    child.closed = True  # wrong: read-only
    if child.stdin is not None and child.stdout is not None:
        child.stdin.write('x')  # wrong: value
        child.stdout.on_data = nothing  # wrong: callback


def layers(r: Reactor) -> None:
    framing.lines(nothing)  # wrong: callback
    framing.lines(on_data, limt=5)  # wrong: option
    framing.delimited(on_data)  # wrong: call
    framing.delimited(on_data, ';')  # wrong: value
    framing.prefixed(on_data, 2, 'middle')  # wrong: value
    framing.blocks(on_data, '16')  # wrong: value
    framing.Frames(limit='16')  # wrong: value
    framing.Frames().feed('x')  # wrong: value
    framing.Frames().until(';')  # wrong: value
    framing.Framing(nothing)  # wrong: callback
    r.listen_tcp('localhost', 80, framing.lines)  # wrong: callback
    r.listen_tcp('localhost', 80, framing.Frames())  # wrong: callback


def services(r: Reactor) -> None:
    serve.run(nothing)  # wrong: callback
    serve.run(main, workers='2')  # wrong: value
    serve.run(main, listen=5)  # wrong: value
    serve.run(main, drain_timout=5)  # wrong: shared option
    serve.run(main, on_start=nothing)  # wrong: callback
    serve.run(main, slow_callback='1')  # wrong: value
    observe.serve_control(r)  # wrong: call
    observe.serve_control(r, '/run/x', mode='600')  # wrong: value
    observe.serve_control(r, '/run/x', drain=nothing)  # wrong: callback
    observe.serve_page(r, prot=9080)  # wrong: option
    observe.serve_metrics(r, 'localhost', '80')  # wrong: value
    observe.source(5)  # wrong: value
    reactor.HandleClosed.x  # wrong: name
    reactor.Options  # wrong: name
