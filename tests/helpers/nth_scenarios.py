"""Small programs for `test_nth_call.py`, with operations that the random programs use rarely or never.

Each program is a function that gets a `World` on a `SimKernel`. It makes a few dozen calls to the kernel, the same ones
on every run. The end of every handle that it opens is a goal, so a handle that is forgotten or that ends twice is
reported.
"""

from __future__ import annotations

import signal
from socket import AF_UNIX, SOCK_DGRAM
from typing import Any

from reactor import READ, WRITE, ConnectionClosed
from reactor.testing.programs.parts import WaitGroup

HOST = '10.0.0.1'


class Once:
    """A goal that is reached by one call; a second call is an error."""

    def __init__(self, world: Any, text: str) -> None:
        self.world, self.text, self.goal = world, text, world.expect(text)
        self.over = False

    def __call__(self, *args: Any) -> None:
        if self.over:
            self.world.fail(f'{self.text}, twice')
        self.over = True
        self.goal.met()


def nothing(*args: Any) -> None:
    """A callback that does nothing."""


def close_all(*parts: Any) -> None:
    """Close these handles; some of them may be closed already."""
    for part in parts:
        try:
            part.close()
        except OSError:
            pass


def echo_back(conn: Any, data: bytes) -> None:
    conn.write(data)


class Client:
    """A client that sends some bytes when it is connected, receives them back, and closes."""

    def __init__(self, ending: WaitGroup, words: bytes = b'hello' * 100) -> None:
        self.ending, self.words, self.heard = ending, words, b''
        self.number = ending.add('client')
        self.callbacks = {'on_connect': self.on_connect, 'on_data': self.on_data, 'on_close': self.on_close}

    def on_connect(self, conn: Any) -> None:
        conn.write(self.words[:100], self.on_written)
        conn.write(self.words[100:])

    def on_written(self, conn: Any) -> None:
        """Do nothing. The oracles of the simulation check that this is not called after `on_close`."""

    def on_data(self, conn: Any, data: bytes) -> None:
        self.heard += data
        if self.heard == self.words:
            conn.close()

    def on_close(self, conn: Any, exc: BaseException | None) -> None:
        self.ending.done(self.number)


def tls_echo(world: Any) -> None:
    """An echo over TLS."""
    server = world.r.listen_tcp(HOST, 1, echo_back, ssl=world.contexts[0])
    ending = WaitGroup(world, server)
    for _ in range(2):
        client = Client(ending, b'x' * 20_000)
        world.r.connect_tcp(HOST, 1, ssl=world.contexts[1], server_hostname='localhost', timeout=5, **client.callbacks)


def tls_ends(world: Any) -> None:
    """Half-closes and pauses over TLS: the server answers at the end of the request."""

    def on_eof(conn: Any) -> None:
        conn.write(b'answer' * 1000)
        conn.write_eof()

    server = world.r.listen_tcp(HOST, 1, lambda conn, data: None, on_eof=on_eof, ssl=world.contexts[0])
    ending = WaitGroup(world, server)
    client = Client(ending)

    def on_connect(conn: Any) -> None:
        conn.write(b'question')
        conn.write_eof()
        conn.pause_reading()
        world.r.call_later(0.5, conn.resume_reading)

    client.callbacks['on_connect'] = on_connect
    world.r.connect_tcp(HOST, 1, ssl=world.contexts[1], server_hostname='localhost', **client.callbacks)


def upgrade(world: Any) -> None:
    """`start_tls` on both sides, after some plain text."""

    def on_data(conn: Any, data: bytes) -> None:
        if data == b'STARTTLS':
            conn.on_data = echo_back
            conn.write(b'GO')
            if not conn.closed:
                conn.start_tls(world.contexts[0], handshake_timeout=5)

    server = world.r.listen_tcp(HOST, 1, on_data)
    client = Client(WaitGroup(world, server))

    def on_answer(conn: Any, data: bytes) -> None:
        conn.on_data = client.on_data
        conn.start_tls(world.contexts[1], client.on_connect, server_hostname='localhost', handshake_timeout=5)

    client.callbacks.update(on_data=on_answer, on_connect=lambda conn: conn.write(b'STARTTLS'))
    world.r.connect_tcp(HOST, 1, **client.callbacks)


def files(world: Any) -> None:
    """Two files, sent between other bytes to a slow reader; both are closed right after `send_file`."""
    _send_files(world, {}, {})


def tls_files(world: Any) -> None:
    """Like `files`, but over TLS."""
    _send_files(world, {'ssl': world.contexts[0]}, {'ssl': world.contexts[1], 'server_hostname': 'localhost'})


def _send_files(world: Any, server_options: Any, client_options: Any) -> None:
    kernel = world.r.kernel
    content = bytes(range(256)) * 100

    def on_connect(conn: Any) -> None:
        long, short = kernel.make_file(content), kernel.make_file(content[:1000])
        world.r.ledger.foreign.update((long.fileno(), short.fileno()))
        try:
            conn.write(b'begin')
            conn.send_file(long, 0, 10_000, on_written)
            conn.write(b'middle')
            conn.send_file(long, 10_000)
            conn.send_file(short)
        except (OSError, ConnectionClosed):
            conn.abort()
        finally:
            close_all(long, short)
            world.r.ledger.foreign.clear()

    def on_written(conn: Any) -> None:
        conn.close()

    server = world.r.listen_tcp(HOST, 1, on_connect=on_connect, **server_options)
    client = Client(WaitGroup(world, server), b'')
    client.callbacks['on_connect'] = None
    world.r.connect_tcp(HOST, 1, **client.callbacks, **client_options)


def unix_places(world: Any) -> None:
    """Unix sockets: one that replaces a stale file, one with a mode, and an abstract one."""
    world.r.kernel.paths['/run/stale'] = (1, 1)  # the file was left behind by a process that has ended
    servers = [
        world.r.listen_unix('/run/stale', echo_back),
        world.r.listen_unix('/run/mode', echo_back, mode=0o600),
        world.r.listen_unix('@abstract', echo_back),
    ]
    ending = WaitGroup(world, *servers)
    for path in '/run/stale', '/run/mode', '@abstract', '/run/absent':
        world.r.connect_unix(path, timeout=5, **Client(ending).callbacks)


def full_backlog(world: Any) -> None:
    """A Unix socket with more clients than its backlog holds: they try again and are accepted one by one."""
    server = world.r.listen_unix('/run/1', echo_back, backlog=1, max_connections=1)
    ending = WaitGroup(world, server)
    for _ in range(5):
        world.r.connect_unix('/run/1', timeout=20, **Client(ending).callbacks)


def options(world: Any) -> None:
    """Options that need additional calls: keepalive, local addresses, deferred accepts, time limits."""

    def on_connect(conn: Any) -> None:
        conn.data = conn.peername, conn.sockname, repr(conn), repr(server), server.address

    server = world.r.listen_tcp(
        HOST, 1, echo_back, on_connect=on_connect, defer_accept=True, keepalive=(60, 10, 3), idle_timeout=30
    )
    ending = WaitGroup(world, server)
    for local in None, ('127.0.0.9', 0), ('127.0.0.9', 99):
        world.r.connect_tcp(
            HOST, 1, local_address=local, keepalive=60, nodelay=True, timeout=9, **Client(ending).callbacks
        )


def names(world: Any) -> None:
    """Look up a name with addresses of two families, one without a server; an unknown name; the name of an address."""
    server = world.r.listen_tcp(HOST, 1, echo_back)
    ending = WaitGroup(world, server)
    world.r.connect_tcp('both.test', 1, timeout=9, **Client(ending).callbacks)
    world.r.connect_tcp('absent.invalid', 1, timeout=9, **Client(ending).callbacks)
    world.r.resolve('both.test', Once(world, 'the lookup is answered'), timeout=9)
    world.r.resolve_address('10.0.0.1', Once(world, 'the address is answered'), timeout=9)


def everywhere(world: Any) -> None:
    """Two servers that share a port on all addresses, IPv4 and IPv6."""
    servers = [world.r.listen_tcp(None, 1, echo_back, reuse_port=True) for _ in range(2)]
    ending = WaitGroup(world, *servers)
    for host in '127.0.0.1', '::1':
        world.r.connect_tcp(host, 1, timeout=9, **Client(ending).callbacks)


def udp(world: Any) -> None:
    """Datagram sockets with all options, by address and by name. The sockets close after a while, even idle ones."""
    r = world.r

    def on_datagram(sock: Any, data: bytes, address: Any) -> None:
        if data == b'ask':
            sock.send(b'answer', address)

    def ended(text: str) -> Any:
        return Once(world, f'{text} is closed')

    made: list[Any] = []
    r.call_later(1, lambda: [sock.close() for sock in made])
    make = made.append
    make(r.bind_udp(HOST, 1, on_datagram, on_close=ended('server'), broadcast=True, reuse_port=True))
    make(r.bind_udp(None, 2, on_datagram, on_close=ended('dual')))
    make(r.connect_udp(HOST, 1, on_close=ended('client'), local_address=('127.0.0.9', 9), broadcast=True))
    make(r.connect_udp('both.test', 1, on_close=ended('named')))
    make(r.connect_udp('absent.invalid', 1, on_close=ended('absent')))
    for sock in made[2:]:
        sock.send(b'ask')
        sock.send(b'ask')

    def look() -> None:
        for sock in made:
            sock.data = sock.kernel_drops, sock.address, repr(sock)
            sock.pause_reading()
            sock.resume_reading()
            if not sock.closed and sock.peername:
                sock.send(b'ask')

    r.call_later(0.3, look)


def unix_datagrams(world: Any) -> None:
    """A Unix datagram socket that sends to a receiver that reads late, and to another that reads at once."""
    r, kernel = world.r, world.r.kernel
    made: list[Any] = []

    def on_datagram(sock: Any, data: bytes, address: Any) -> None:
        sock.data = (sock.data or 0) + 1

    def bound(path: str) -> Any:
        raw = kernel.socket(AF_UNIX, SOCK_DGRAM)
        r.ledger.foreign.add(raw.fileno())
        try:
            raw.bind(path)
            sock = r.bind_udp(None, 0, on_datagram, sock=raw, on_close=Once(world, f'{path} is closed'))
        except BaseException:
            close_all(raw)
            raise
        finally:
            r.ledger.foreign.clear()
        made.append(sock)
        return sock

    def close() -> None:
        close_all(*made)

    def send() -> None:
        for path, count in ('/run/late', 20), ('/run/prompt', 5):
            for number in range(count):
                if not sender.closed:
                    sender.send(bytes(70_000 if number == 3 else 10), path)

    def check_prompt() -> None:
        prompt = made[2]
        if not (world.faulty or prompt.data == 5):
            world.fail(f'{prompt.data} of 5 datagrams arrived at the receiver that reads at once')

    r.call_later(2, close)
    sender, late = bound('/run/sender'), bound('/run/late')
    bound('/run/prompt')
    late.pause_reading()
    send()
    r.call_later(0.1, check_prompt)
    r.call_later(0.5, late.resume_reading)


def watched(world: Any) -> None:
    """Descriptors of the program, watched for various events."""
    r, kernel = world.r, world.r.kernel
    ours, theirs = kernel.socketpair()
    r.ledger.foreign.update((ours.fileno(), theirs.fileno()))

    def on_ready(handle: Any, events: int) -> None:
        if events == WRITE:
            handle.set_events(READ)
            return
        try:
            ours.recv(10)
        except OSError:
            pass
        finish()

    def finish() -> None:
        close_all(*handles, ours, theirs)
        r.ledger.foreign.clear()

    handles: list[Any] = []
    try:
        theirs.send(b'x')
        handles.append(r.watch_fd(ours, WRITE, on_ready))
        handles.append(r.watch_fd(theirs.fileno(), 0, on_ready))
        r.call_later(1, finish).unref()
    except OSError:
        finish()
        raise
    r.call_later(2, finish)


def signalled(world: Any) -> None:
    """Handlers are added, called and removed; SIGINT is taken over and restored."""
    r = world.r
    heard = []
    for number in signal.SIGTERM, signal.SIGINT:
        goal = Once(world, f'{number!r} is handled')
        heard.append(r.add_signal_handler(number, goal))
    r.call_soon(world.raise_signal, signal.SIGTERM)
    r.call_soon(world.raise_signal, signal.SIGINT)

    def let_go() -> None:
        for handler in heard:
            try:
                handler.close()
            except OSError:
                handler.close()

    r.call_later(0.2, let_go)


def threaded(world: Any) -> None:
    """Calls in threads, from threads, and by notifiers; there are more calls than threads."""
    r = world.r
    for number in range(6):
        r.run_in_thread(divmod, 7, number, on_done=Once(world, f'call {number} is answered'))
    called = Once(world, 'called from a thread')
    r.run_in_thread(r.call_soon_threadsafe, called, on_done=Once(world, 'that is answered'))
    notifier = r.notifier(Once(world, 'notified'))
    r.run_in_thread(notifier.trigger)


def all_open(world: Any) -> None:
    """The reactor is closed with everything open: each handle ends once, after the exit callbacks."""
    r = world.r
    called: list[str] = []
    r.add_exit_callback(called.append, 'second')
    r.add_exit_callback(called.append, 'first')
    held: list[Any] = []
    held.append(r.listen_tcp(HOST, 1, on_connect=lambda conn: conn.pause_reading(), idle_timeout=60))
    held.append(r.listen_unix('/run/1'))
    held.append(r.bind_udp(HOST, 1))
    held.append(r.connect_udp('absent.invalid', 1))
    held.append(r.add_signal_handler(signal.SIGTERM, nothing))
    held.append(r.notifier(nothing))
    held.append(r.call_later(1000, nothing))
    held.append(r.call_every(1000, nothing))
    for host, port in (HOST, 1), (HOST, 1), (HOST, 2), ('both.test', 1):
        conn = r.connect_tcp(host, port, idle_timeout=900)
        conn.write(b'x' * 1_000_000)
        held.append(conn)
    held.append(r.connect_unix('/run/1'))
    held.append(r.resolve('both.test', nothing))
    held.append(r.run_in_thread(nothing))

    def let_go() -> None:
        for handle in (*held, *r.handles()):
            handle.unref()

    def check() -> None:
        if called != ['first', 'second']:
            world.fail(f'exit callbacks were called: {called}')

    r.call_later(0.01, let_go)
    world.at_end = check


SCENARIOS = (
    tls_echo, tls_ends, upgrade, files, tls_files, unix_places, full_backlog, options, names, everywhere, udp,
    unix_datagrams, watched, signalled, threaded, all_open,
)  # fmt: skip
