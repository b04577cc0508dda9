"""A server for `test_memory.py`, which measures the memory of each kind of connection: `memory_server.py KIND`.

The server answers `?` with a mebibyte, and a mebibyte with `!`. Commands arrive as lines on stdin, and each
reply is a line on stdout.
"""

from __future__ import annotations

import ssl
import sys
from typing import Any

import reactor
from reactor.system.process import PIPE

SIZE = 1 << 20


class Server:
    def __init__(self, r: reactor.Reactor, kind: str, *paths: str) -> None:
        self.r = r
        self.opened: list[Any] = []
        self.received = 0
        self.address: Any = None
        context = None
        if kind == 'tls':
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*paths)
        if kind in ('tcp', 'tls'):
            self.address = r.listen_tcp('127.0.0.1', 0, self.on_data, ssl=context).address[1]
        elif kind == 'unix':
            r.listen_unix(paths[0], self.on_data)

    def on_data(self, conn: Any, data: bytes) -> None:
        if data == b'?':
            conn.write(bytes(SIZE))
            return
        conn.data = (conn.data or 0) + len(data)
        if conn.data == SIZE:
            conn.data = None
            conn.write(b'!')

    def on_datagram(self, sock: Any, data: bytes, address: Any) -> None:
        sock.send(data, address)

    def on_echo(self, pipe: Any, data: bytes) -> None:
        self.received += len(data)
        if self.received == SIZE:
            print('carried', flush=True)

    def do_open(self, count: str) -> Any:
        """Open `count` UDP sockets; returns their ports."""
        sockets = [self.r.bind_udp('127.0.0.1', 0, self.on_datagram) for _ in range(int(count))]
        self.opened += sockets
        return ' '.join(str(sock.address[1]) for sock in sockets)

    def do_spawn(self, count: str) -> Any:
        for _ in range(int(count)):
            child = self.r.spawn(['cat'], stdin=PIPE, stdout=PIPE)
            child.stdout.on_data = self.on_echo
            self.opened.append(child)
        return 'ok'

    def do_carry(self, number: str) -> None:
        """Send a mebibyte through a child; prints 'carried' when all of it has come back."""
        self.received = 0
        self.opened[int(number)].stdin.write(bytes(SIZE))

    def do_address(self) -> Any:
        return self.address or 'a path'

    def on_line(self, conn: Any, line: bytes) -> None:
        name, *arguments = line.decode().split()
        answer = getattr(self, f'do_{name}')(*arguments)
        if answer is not None:
            print(answer, flush=True)


def main(r: reactor.Reactor) -> None:
    server = Server(r, *sys.argv[1:])
    stdin = r.watch_fd(0, reactor.READ, lambda handle, event: read())

    def read() -> None:
        line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]
        if line:
            server.on_line(None, line)
        else:
            stdin.close()
            r.stop()


reactor.run(main)
