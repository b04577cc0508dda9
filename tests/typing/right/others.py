"""Correct uses of datagrams, children, files, paths, TLS and framings."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, assert_type

import reactor
from reactor import DatagramSocket, Process, Reactor, ReadPipe, Stream, WatchedPath, WritePipe, framing


def on_datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
    sock.send(data, address)


def on_exit(process: Process, code: int | None, signum: int | None) -> None:
    print(process.pid, code, signum)


def on_change(handle: WatchedPath, path: str, change: str, number: int) -> None:
    print(path, change, number)


def on_secured(conn: Stream, text: str) -> None:
    conn.write(text.encode())


def on_line(conn: Stream, line: bytes) -> None:
    print(line, conn.peername)


def on_data(conn: Stream, data: bytes) -> None:
    frames = framing.Frames(limit=100)
    frames.feed(data)
    while (line := frames.line()) is not None:
        print(assert_type(line, bytes))


def send(conn: Stream, path: Path) -> None:
    with path.open('rb') as file:
        conn.send_file(file, 0, 100, on_sent, path)


def on_sent(conn: Stream, path: Path) -> None:
    print(path, conn.buffered)


def main(r: Reactor) -> None:
    sock = r.bind_udp(None, 0, on_datagram, broadcast=True, on_send_error=lambda sock, exc: print(exc.errno, sock))
    assert_type(sock, DatagramSocket)
    sock.on_close = lambda sock, exc: print(sock.data, exc)
    sock.join_group('239.1.2.3', 'eth0')
    r.connect_udp('localhost', 53, lambda sock, data, address: sock.close(), max_queued=0)
    child = r.spawn(['cat', Path('x')], stdin=reactor.PIPE, stdout=reactor.PIPE, on_exit=on_exit, env={'A': 'b'})
    child.on_exit = lambda process, code, signum: print(process.args, code, signum)
    assert_type(child.stdin, WritePipe | None)
    assert_type(child.stdout, ReadPipe | None)
    if child.stdin is not None and child.stdout is not None:
        child.stdin.write(b'x', lambda pipe: pipe.close())
        child.stdout.on_data = on_data
    pipe = r.open_fd(0, on_data, closefd=False, on_eof=lambda stream: stream.close(), high_water=1)
    assert_type(pipe, Stream)
    fd_options: reactor.FdOptions = {'idle_timeout': 5, 'on_close': lambda stream, exc: print(stream.state, exc)}
    with open('/dev/tty', 'rb') as file:
        r.open_fd(file, **fd_options)
    r.watch_path(Path('x'), on_change, 1)
    r.watch_path('x', lambda handle, path, change: handle.close())
    context = ssl.create_default_context()
    conn = r.connect_tcp('localhost', 443, ssl=context, server_hostname='example.org', handshake_timeout=5)
    conn.start_tls(context, on_secured, 'x', server_hostname='example.org')
    conn.start_tls(context, lambda conn: conn.close())
    send(conn, Path('x'))
    r.listen_tcp('', 0, framing.lines(on_line, limit=100), ssl=context)
    r.listen_tcp('', 0, framing.delimited(on_line, b';'))
    r.listen_tcp('', 0, framing.prefixed(on_line, 2, 'little'))
    r.listen_tcp('', 0, framing.blocks(lambda conn, block: conn.write(block), 16))
    r.adopt(conn.sock, on_data, linger=0)


reactor.run(main)
