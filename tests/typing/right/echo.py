"""A server and a client with functions, and with lambdas; an editor has to know the types of their arguments."""

from __future__ import annotations

from typing import assert_type

import reactor
from reactor import Listener, Reactor, Stream

STRICT: reactor.StreamOptions = {'idle_timeout': 30, 'keepalive': (60, 10, 3), 'high_water': 1 << 20}


def on_data(conn: Stream, data: bytes) -> None:
    if not conn.write(data, on_written, 1, 'x'):
        conn.pause_reading()
        conn.on_drain = Stream.resume_reading


def on_written(conn: Stream, number: int, text: str) -> None:
    conn.data = number, text
    conn.set_timeouts(idle=5)
    conn.set_write_limits(high=1 << 20)


def on_close(conn: Stream, exc: BaseException | None) -> None:
    print(conn.peername, exc, conn.buffered)
    conn.loop.call_soon(print, 'closed')
    assert_type(conn.loop, Reactor)
    assert_type(conn.proxy, reactor.ProxyHeader | None)


def on_accept_error(server: Listener, exc: Exception) -> None:
    server.loop.call_later(1, server.resume)


class Session:
    """Bound methods as callbacks."""

    def __init__(self, r: Reactor) -> None:
        self.conn = r.connect_tcp('localhost', 80, self.on_data, on_connect=self.on_connect, timeout=5, **STRICT)

    def on_connect(self, conn: Stream) -> None:
        conn.write(b'hello', self.on_written)
        conn.writelines([b'a', bytearray(b'b'), memoryview(b'c')], self.on_written)

    def on_data(self, conn: Stream, data: bytes) -> None:
        conn.close()

    def on_written(self, conn: Stream) -> None:
        conn.write_eof()


def main(r: Reactor) -> None:
    server = r.listen_tcp(
        None,
        0,
        on_data,
        on_close=on_close,
        on_accept_error=on_accept_error,
        backlog=100,
        max_connections=10,
        limits=reactor.Limits(per_address=10, connect_rate=(1, 5)),
        proxy_protocol=['10.0.0.0/8'],
        **STRICT,
    )
    server.on_data = lambda conn, data: conn.abort(ValueError(data.decode()))
    assert_type(server, Listener)
    assert_type(server.open_connections, int)
    r.listen_unix('/tmp/x', lambda conn, data: assert_type(conn, Stream).close(), mode=0o600, proxy_protocol=True)
    r.connect_tcp('localhost', 1, lambda conn, data: assert_type(data, bytes), family=2, local_address=('::1', 0))
    r.connect_unix(b'/tmp/x', on_connect=lambda conn: assert_type(conn, Stream).write_eof())
    r.connect_unix('/tmp/x', on_close=lambda conn, exc: print(assert_type(exc, BaseException | None), conn.peername))
    r.connect_unix('/tmp/x', on_error=lambda conn, exc: print(assert_type(exc, Exception), conn.sockname))
    conn = r.connect_tcp('localhost', 1, None, on_eof=None, read_timeout=None)
    conn.write(b'x', lambda conn, number: print(conn.closed, number), 1)
    conn.write(b'x', lambda conn: conn.close())
    conn.busy = True
    assert_type(conn, Stream)
    Session(r)


if __name__ == '__main__':
    reactor.run(main, slow_callback=0.1, catch_errors=lambda exc, handle: print(exc, handle), debug=True, min_wait=0.01)
