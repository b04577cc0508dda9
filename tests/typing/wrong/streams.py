"""Connections: each marked line has a mistake, and no other line has one."""

from __future__ import annotations

import ssl
from typing import Any

import reactor
from reactor import DatagramSocket, Listener, Reactor, Stream


def nothing() -> None:
    pass


def one(conn: Stream) -> None:
    pass


def two(conn: Stream, data: bytes) -> None:
    pass


def text(conn: Stream, data: str) -> None:
    pass


def number(conn: Stream, count: int) -> None:
    pass


def closed(conn: Stream, exc: BaseException | None) -> None:
    pass


def strict(conn: Stream, exc: OSError) -> None:
    pass


def accept_error(server: Listener, exc: Exception) -> None:
    pass


def datagram(sock: DatagramSocket, data: bytes, address: Any) -> None:
    pass


def listening(r: Reactor) -> None:
    r.listen_tcp('localhost', '80')  # wrong: value
    r.listen_tcp(host=b'localhost', port=80)  # wrong: value
    r.listen_tcp('localhost')  # wrong: call
    r.listen_tcp('localhost', 80, one)  # wrong: callback
    r.listen_tcp('localhost', 80, text)  # wrong: callback
    r.listen_tcp('localhost', 80, lambda conn: None)  # wrong: callback
    r.listen_tcp('localhost', 80, lambda conn, data: conn.wriet(data))  # wrong: name
    r.listen_tcp('localhost', 80, lambda conn, data: conn.write(data.encode()))  # wrong: name
    r.listen_tcp('localhost', 80, on_connect=two)  # wrong: callback
    r.listen_tcp('localhost', 80, on_eof=two)  # wrong: callback
    r.listen_tcp('localhost', 80, on_drain=nothing)  # wrong: callback
    r.listen_tcp('localhost', 80, on_close=one)  # wrong: callback
    r.listen_tcp('localhost', 80, on_close=strict)  # wrong: callback
    r.listen_tcp('localhost', 80, on_error=strict)  # wrong: callback
    r.listen_tcp('localhost', 80, on_accept_error=closed)  # wrong: callback
    r.listen_tcp('localhost', 80, on_dat=two)  # wrong: shared option
    r.listen_tcp('localhost', 80, idle_timout=5)  # wrong: shared option
    r.listen_tcp('localhost', 80, server_hostname='x')  # wrong: shared option
    r.listen_tcp('localhost', 80, idle_timeout='5')  # wrong: value
    r.listen_tcp('localhost', 80, read_timeout=b'5')  # wrong: value
    r.listen_tcp('localhost', 80, write_timeout=[5])  # wrong: value
    r.listen_tcp('localhost', 80, linger=None)  # wrong: value
    r.listen_tcp('localhost', 80, read_size=1.5)  # wrong: value
    r.listen_tcp('localhost', 80, high_water=1.5)  # wrong: value
    r.listen_tcp('localhost', 80, low_water='1')  # wrong: value
    r.listen_tcp('localhost', 80, max_buffered=None)  # wrong: value
    r.listen_tcp('localhost', 80, nodelay='yes')  # wrong: value
    r.listen_tcp('localhost', 80, keepalive=(60, 10))  # wrong: value
    r.listen_tcp('localhost', 80, handshake_timeout=None)  # wrong: value
    r.listen_tcp('localhost', 80, max_empty_records='32')  # wrong: value
    r.listen_tcp('localhost', 80, backlog=None)  # wrong: value
    r.listen_tcp('localhost', 80, max_connections='10')  # wrong: value
    r.listen_tcp('localhost', 80, reuse_port='yes')  # wrong: value
    r.listen_tcp('localhost', 80, defer_accept=None)  # wrong: value
    r.listen_tcp('localhost', 80, sock=5)  # wrong: value
    r.listen_tcp('localhost', 80, ssl=True)  # wrong: value
    r.listen_tcp('localhost', 80, limits={'per_address': 5})  # wrong: value
    r.listen_tcp('localhost', 80, limits=reactor.Limits(per_adress=5))  # wrong: option
    r.listen_tcp('localhost', 80, limits=reactor.Limits(refuse=nothing))  # wrong: callback
    r.listen_tcp('localhost', 80, proxy_protocol=True)  # wrong: value
    r.listen_tcp('localhost', 80, proxy_timeout=None)  # wrong: value
    r.listen_unix(5)  # wrong: value
    r.listen_unix('/tmp/x', one)  # wrong: callback
    r.listen_unix('/tmp/x', mode='600')  # wrong: value
    r.listen_unix('/tmp/x', proxy_protocol=['::1/128'])  # wrong: value
    r.listen_unix('/tmp/x', reuse_port=True)  # wrong: shared option
    server = r.listen_tcp('localhost', 80)
    server.on_data = one  # wrong: callback
    server.on_connect = two  # wrong: callback
    server.on_accept_error = closed  # wrong: callback
    server.max_connections = '10'  # wrong: value
    server.address = 'localhost'  # wrong: read-only
    server.open_connection  # wrong: name
    server.pause(1)  # wrong: call
    server.resume(1)  # wrong: call
    server.close(1)  # wrong: call
    server.write(b'x')  # wrong: name


def connecting(r: Reactor, context: ssl.SSLContext) -> None:
    r.connect_tcp('localhost')  # wrong: call
    r.connect_tcp(None, 80)  # wrong: value
    r.connect_tcp('localhost', 80, one)  # wrong: callback
    r.connect_tcp('localhost', 80, on_connect=two)  # wrong: callback
    r.connect_tcp('localhost', 80, on_close=lambda conn: None)  # wrong: callback
    r.connect_tcp('localhost', 80, timout=5)  # wrong: shared option
    r.connect_tcp('localhost', 80, timeout='5')  # wrong: value
    r.connect_tcp('localhost', 80, family='inet')  # wrong: value
    r.connect_tcp('localhost', 80, local_address='localhost')  # wrong: value
    r.connect_tcp('localhost', 80, ssl='yes')  # wrong: value
    r.connect_tcp('localhost', 80, server_hostname=b'x')  # wrong: value
    r.connect_tcp('localhost', 80, backlog=5)  # wrong: shared option
    r.connect_unix(None)  # wrong: value
    r.connect_unix('/tmp/x', one)  # wrong: callback
    r.connect_unix('/tmp/x', local_address=('::1', 0))  # wrong: shared option
    r.adopt(5)  # wrong: value
    r.adopt(context)  # wrong: value
    conn = r.connect_tcp('localhost', 80)
    r.adopt(conn.sock, one)  # wrong: callback
    r.adopt(conn.sock, on_connect=one)  # wrong: shared option
    r.adopt(conn.sock, ssl=context)  # wrong: shared option
    options: reactor.StreamOptions = {'idle_timout': 5}  # wrong: option
    r.adopt(conn.sock, **options)


def writing(r: Reactor, conn: Stream, context: ssl.SSLContext) -> None:
    conn.write('x')  # wrong: value
    conn.write(b'x', nothing)  # wrong: callback
    conn.write(b'x', number)  # wrong: args
    conn.write(b'x', one, 1)  # wrong: args
    conn.write(b'x', number, 'x')  # wrong: args
    conn.write(b'x', lambda conn: conn.wriet(b'x'))  # wrong: name after Self
    conn.write(b'x').real.close()  # wrong: name
    conn.writelines(5)  # wrong: value
    conn.writelines(['x'])  # wrong: value
    conn.writelines([b'x'], nothing)  # wrong: callback
    conn.writelines([b'x'], number, 1, 2)  # wrong: args
    conn.send_file('path')  # wrong: value
    conn.send_file(conn, '0')  # wrong: value
    conn.send_file(conn, 0, None, nothing)  # wrong: callback
    conn.send_file(conn, 0, None, number)  # wrong: args
    conn.start_tls(True)  # wrong: value
    conn.start_tls(context, nothing)  # wrong: callback
    conn.start_tls(context, number)  # wrong: args
    conn.start_tls(context, one, server_name='x')  # wrong: option
    conn.write_eof(b'x')  # wrong: call
    conn.close(1)  # wrong: call
    conn.abort('reason')  # wrong: value
    conn.pause_reading(1)  # wrong: call
    conn.resume_reading(1)  # wrong: call
    conn.set_timeouts(5)  # wrong: call
    conn.set_timeouts(idel=5)  # wrong: option
    conn.set_timeouts(idle='5')  # wrong: value
    conn.set_write_limits('5')  # wrong: value
    conn.set_write_limits(hihg=5)  # wrong: option
    conn.busy = 'yes'  # wrong: value
    conn.closed = True  # wrong: read-only
    conn.buffered = 0  # wrong: read-only
    conn.peername = 'x'  # wrong: read-only
    conn.sockname = 'x'  # wrong: read-only
    conn.proxy = None  # wrong: read-only
    conn.reading = False  # wrong: read-only
    conn.unread = False  # wrong: read-only
    conn.state.upper().x  # wrong: name
    conn.on_connect = two  # wrong: callback
    conn.on_data = one  # wrong: callback
    conn.on_data = lambda conn: None  # wrong: callback
    conn.on_eof = two  # wrong: callback
    conn.on_drain = nothing  # wrong: callback
    conn.on_close = one  # wrong: callback
    conn.on_error = strict  # wrong: callback
    conn.on_date = two  # wrong: name
    conn.loop.call_son(nothing)  # wrong: name
    conn.loop.now.x  # wrong: name
    r.handles()[0].write(b'x')  # wrong: name
