"""Every kind of stream that a program can get from a reactor, each with the raw socket at its other end.

A `Kind` opens a stream and its `Peer`: a plain socket or descriptor, or for TLS an `ssl.SSLObject`. The peer shares no
code with the package. A `World` runs the stream and its peer in one thread, and checks in each callback what must hold
for all kinds. The dict `cannot` of a kind maps each ability that the kind lacks to the reason.
"""

from __future__ import annotations

import gc
import inspect
import os
import random
import socket
import ssl
import struct
import tempfile
import time
import tty
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import reactor
from reactor import PIPE, Limits, Reactor
from tests.helpers.support import SELECTORS, FakeKernel, FakeSelector, options_of

PACKAGE = str(Path(reactor.__file__).parent)
RST = struct.pack('ii', 1, 0)  # a value for SO_LINGER (on, 0 seconds): closing the socket sends an RST
WINDOW = 200_000  # bytes that the kernel buffers for a peer that does not read
MOST_TURNS = 30_000  # a law fails if the event that it waits for does not happen in this many turns
DEEPEST = 8  # frames of the package between the turn and a callback: four for plain bytes, a few more over TLS


@cache
def payload(size: int, seed: int = 0) -> bytes:
    """Return bytes in which each position can be recognized."""
    return random.Random(seed).randbytes(size)


SIZES = (0, 1, 2, 4095, 4096, 4097, 16383, 16384, 16385, 65535, 65536, 65537, 3, 150_000)


def pieces_of(data: bytes, seed: int = 0) -> list[bytes]:
    """Cut `data` into pieces of interesting sizes: zero bytes, one byte, a record, a page, the size of one recv."""
    chance = random.Random(seed)
    pieces, at = [], 0
    while at < len(data):
        size = chance.choice(SIZES)
        pieces.append(data[at : at + size])
        at += size
    return pieces


# -- the peers: raw sockets at the other end


class Peer:
    """A plain socket that never blocks.

    `got` is the received data. `ended` is '' while the reactor's side can still send, then 'eof' or 'reset'. Over TLS
    it can also be 'cut' (EOF without close_notify) or the reason of an alert.
    """

    def __init__(self, world: World, sock: Any) -> None:
        sock.setblocking(False)
        if sock.family in (INET, INET6) and sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 3 * WINDOW)  # otherwise the kernel enlarges the buffer
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.got = bytearray()
        self.ended = ''
        world.peers.append(self)

    greeted = True  # over TLS, whether the handshake is done

    def pump(self) -> None:
        """Make progress between turns."""

    def send(self, data: bytes) -> int:
        """Send part of `data`; returns the number of bytes accepted."""
        try:
            return self.write(data)
        except BlockingIOError:
            return 0

    def take(self, limit: int = 1 << 20) -> int:
        """Receive up to `limit` bytes without waiting; returns their number."""
        try:
            data = self.read(limit)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            self.ended = 'reset'
            return 0
        if not data:
            self.ended = self.ended or 'eof'
        self.got += data
        return len(data)

    def take_all(self) -> None:
        """Receive everything that has arrived."""
        while self.take():
            pass

    def write(self, data: bytes) -> int:
        return self.sock.send(data)

    def read(self, limit: int) -> bytes:
        return self.sock.recv(limit)

    def end(self) -> None:
        """Shut down the peer's sending side; the peer can still receive."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket cleanly."""
        self.sock.close()

    def reset(self) -> None:
        """Close the socket so that our end is reset: over TCP with an RST, on other sockets by leaving bytes unread."""
        if self.sock.family in (socket.AF_INET, socket.AF_INET6):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        self.sock.close()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0


class TLSPeer(Peer):
    """A peer with its own TLS: an SSLObject between two buffers."""

    def __init__(self, world: World, sock: Any, context: ssl.SSLContext, server_side: bool) -> None:
        super().__init__(world, sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, None if server_side else 'localhost')
        self.out = bytearray()
        self.greeted = self.ending = False

    def pump(self) -> None:
        if self.closed:
            return
        if not self.greeted:
            try:
                self.tls.do_handshake()
                self.greeted = True
            except ssl.SSLWantReadError:
                with suppress(BlockingIOError, ConnectionResetError):
                    if data := self.sock.recv(65536):
                        self.incoming.write(data)
                    else:
                        self.ended = 'cut'
            except ssl.SSLError as exc:
                self.ended = str(exc.reason)
        self.flush()

    def flush(self) -> bool:
        self.out += self.outgoing.read()
        with suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
            while self.out:
                del self.out[: self.sock.send(self.out)]
            if self.ending:
                self.ending = False
                self.sock.shutdown(socket.SHUT_WR)
        return not self.out

    def write(self, data: bytes) -> int:
        self.pump()
        if self.out or not self.greeted:
            return 0
        self.tls.write(data)
        self.flush()
        return len(data)

    def take(self, limit: int = 1 << 20) -> int:
        self.pump()
        before = len(self.got)
        if self.greeted:
            self.decrypt()
            try:
                data = self.sock.recv(limit)
            except BlockingIOError:
                return len(self.got) - before
            except ConnectionResetError:
                self.ended = self.ended or 'reset'
                return len(self.got) - before
            if data:
                self.incoming.write(data)
            else:
                self.incoming.write_eof()
            self.decrypt()
            if data and not self.ended:
                return len(data)
        return len(self.got) - before

    def decrypt(self) -> None:
        try:
            while not self.ended:
                piece = self.tls.read(65536)
                if not piece:
                    self.ended = 'eof'
                self.got += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = 'eof'
        except ssl.SSLEOFError:
            self.ended = 'cut'
        except ssl.SSLError as exc:
            self.ended = str(exc.reason)

    def end(self) -> None:
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        self.ending = True
        self.flush()

    def close(self) -> None:
        if not self.closed and self.greeted:
            self.take_all()  # with unread bytes, such as session tickets, the close would be a reset
            with suppress(OSError):
                self.end()
        super().close()

    def cut(self) -> None:
        """End the connection without a close_notify."""
        self.sock.close()


class Pipe:
    """A descriptor with the socket methods that a peer calls."""

    family = -1

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def setblocking(self, flag: bool) -> None:
        os.set_blocking(self.fd, flag)

    def recv(self, size: int) -> bytes:
        return os.read(self.fd, size)

    def send(self, data: bytes) -> int:
        return os.write(self.fd, data)

    def shutdown(self, how: int) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def getsockname(self) -> None:
        return None


class VsockSocket(socket.socket):
    """A Unix socket with vsock addresses, a stand-in for AF_VSOCK where the kernel has no transport for it."""

    family = getattr(socket, 'AF_VSOCK', 40)  # type: ignore[assignment]
    ours, theirs = (2, 1024), (3, 4294967295)  # context ID and port; the kernel gives both as numbers

    def getsockname(self) -> Any:
        return self.ours

    def getpeername(self) -> Any:
        socket.socket.getpeername(self)
        return self.theirs

    def accept(self) -> Any:
        sock, _ = super().accept()
        return VsockSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, sock.detach()), self.theirs


# -- the parts of one run of a law


class ClockKernel(FakeKernel):
    """A kernel with the given selector. Its clock moves only when the loop would otherwise wait."""

    def __init__(self, selector: Any) -> None:
        super().__init__()
        self.kind = selector

    def selector(self) -> FakeSelector:
        made = FakeSelector(self)
        made.real.close()
        made.real = self.kind()
        return made


class Recorder:
    """The callbacks of one stream. Each records and checks its event, then calls the function that the law gave it."""

    def __init__(self, world: World, prefix: bytes = b'') -> None:
        self.world = world
        self.conn: Any = None
        self.names: list[str] = []
        self.received = bytearray()
        self.prefix = prefix  # bytes that the kind itself has to send first
        self.written: list[Any] = []
        self.exc: Any = None  # passed to on_close
        self.errors: list[BaseException] = []
        self.left = -1  # the value of `buffered` in on_close
        self.does: dict[str, Any] = {}
        world.recorders.append(self)

    def callbacks(self, eof: bool = False, error: bool = False) -> dict[str, Any]:
        given = {'on_connect': self.on_connect, 'on_data': self.on_data, 'on_drain': self.on_drain}
        given['on_close'] = self.on_close
        if eof:
            given['on_eof'] = self.on_eof
        if error:
            given['on_error'] = self.on_error
        return given

    def note(self, name: str, conn: Any, *details: Any) -> None:
        problems = self.world.problems
        if self.conn is None:
            self.conn = conn
        if conn is not self.conn:
            problems.append(f'{name} was called with {conn!r}, not with {self.conn!r}')
        if 'close' in self.names:
            problems.append(f'{name} was called after on_close')
        if name == 'connect' and self.names:
            problems.append(f'on_connect was called after {self.names}')
        self.names.append(name)
        if len(self.names) < 100 or name == 'close':
            self.check(name, conn)
        act = self.does.get(name)
        if act is not None:
            act(conn, *details)

    def check(self, name: str, conn: Any) -> None:
        """Check that the loop itself made this call, and that reading an attribute of the stream never raises."""
        problems = self.world.problems
        depth, frame = 0, inspect.currentframe()
        frame = frame.f_back.f_back.f_back  # type: ignore[union-attr]
        while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            depth, frame = depth + 1, frame.f_back
        if frame is None or frame.f_code not in OUTER:
            where = None if frame is None else frame.f_code.co_name
            problems.append(f'{name} was called inside a call into the reactor, made by {where}')
        elif depth > DEEPEST:
            problems.append(f'{name} was called {depth} frames below the turn')
        try:
            repr(conn), conn.peername, conn.sockname, conn.closed, conn.buffered
        except Exception as exc:
            problems.append(f'in {name} an attribute raised {exc!r}')

    def on_connect(self, conn: Any) -> None:
        self.note('connect', conn)

    def on_data(self, conn: Any, data: Any) -> None:
        if type(data) is not bytes or not data:
            self.world.problems.append(f'on_data got {data!r}')
        if self.prefix:
            data, self.prefix = data[len(self.prefix) :], self.prefix[len(data) :]
            if not data:
                return
        self.received += data
        self.note('data', conn, data)

    def on_eof(self, conn: Any) -> None:
        self.note('eof', conn)

    def on_drain(self, conn: Any) -> None:
        self.note('drain', conn)

    def on_written(self, conn: Any, *args: Any) -> None:
        self.written.append(args[0] if len(args) == 1 else args)
        self.note('written', conn)

    def on_error(self, conn: Any, exc: BaseException) -> None:
        self.errors.append(exc)
        self.note('error', conn, exc)

    def on_close(self, conn: Any, exc: BaseException | None) -> None:
        self.exc, self.left = exc, conn.buffered
        self.note('close', conn, exc)
        if not conn.closed:
            self.world.problems.append('closed is False in on_close')

    @property
    def closed(self) -> bool:
        return 'close' in self.names


class World:
    """One reactor, the streams of a law, and their peers. At the end of the test, problems and leaks make it fail."""

    def __init__(self, contexts: Any, selector: str = 'default', debug: bool = False, fake_clock: bool = False) -> None:
        made = SELECTORS[selector]
        kernel = ClockKernel(made) if fake_clock else None
        self.kernel: Any = kernel
        self.contexts = contexts  # two TLS contexts: one for servers, one for clients
        self.descriptors = descriptors()
        self.uncaught: list[BaseException] = []
        self.r = Reactor(None if fake_clock else made(), kernel=kernel, debug=debug, catch_errors=self.caught)
        self.peers: list[Peer] = []
        self.recorders: list[Recorder] = []
        self.problems: list[str] = []
        self.garbage_on = gc.isenabled()
        gc.disable()

    def caught(self, exc: Exception, handle: Any) -> None:
        self.uncaught.append(exc)

    def turn(self, timeout: float = 0) -> None:
        for peer in self.peers:
            peer.pump()
        self.r.run_once(timeout)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.turn()

    def until(self, predicate: Any, step: Any = None, patience: int = 1000) -> None:
        """Run turns, and a step of the peer after each, until `predicate()` is true. Wait only when nothing happens.

        Fail after `patience` turns in which nothing happened, each a millisecond long. Turns are counted instead of
        time, so the test does not fail on a busy machine. Also fail after MOST_TURNS turns: then an event must have
        been reported again and again.
        """
        counters, last = self.r.counters, self.r.counters.loop_count + MOST_TURNS
        while not predicate():
            before = counters.events
            assert counters.loop_count < last, f'not done after {MOST_TURNS} turns: {self.r.why_alive()}'
            self.turn()
            if step is not None:
                step()
            if counters.events == before and not self.r.completions:
                patience -= 1
                if not patience:
                    why = '\n'.join([*self.r.why_alive(), *map(repr, self.uncaught), *self.problems])
                    raise AssertionError(f'not in time: {inspect.getsource(predicate).strip()}\n{why}')
                self.turn(0.001)

    def quiet(self, count: int = 20) -> None:
        """Check that the loop does not spin: in `count` turns the selector reports only bytes that were in flight."""
        counters = self.r.counters
        for _ in range(2000):  # in case each unread byte costs a turn
            before = counters.events
            self.turns(3)
            if counters.events == before:
                break
        before = counters.events
        self.turns(count)
        reported = counters.events - before
        assert reported <= 2, f'{reported} events in {count} turns, although there is nothing to do'

    def end(self) -> None:
        """Close everything, and check that each stream ended once, left nothing behind and is no longer referenced."""
        try:
            for recorder in self.recorders:
                recorder.does.clear()
                if recorder.conn is not None:
                    recorder.conn.abort()
            if not self.r.guard.closed:
                self.turns(3)
            handles = self.r.handles()
            assert not handles, f'left open: {handles}'
            assert not len(self.r.timers) and not self.r.completions, 'a timer or a completion is left'
            stats = self.r.stats()
            assert (stats.incoming, stats.outgoing) == (0, 0), f'counted as open: {stats.incoming}, {stats.outgoing}'
            assert not self.r.streams.busy
            del handles
            refs = [weakref.ref(each.conn) for each in self.recorders if each.conn is not None]
            for recorder in self.recorders:
                assert recorder.conn is None or recorder.names.count('close') == 1, recorder.names
                if isinstance(recorder.exc, OSError):
                    assert recorder.exc.__traceback__ is None, 'the traceback of an OSError is kept, with its frames'
                recorder.conn = recorder.exc = None
                recorder.errors.clear()
            self.uncaught.clear()
            held = [ref() for ref in refs if ref() is not None]
            assert not held, f'stays in memory until a garbage collection: {held[0]!r}'
            assert not self.problems, self.problems[:3]
        finally:
            self.close()
        left = descriptors() - self.descriptors
        assert left <= 0, f'{left} descriptors are left open'

    def close(self) -> None:
        self.r.close()
        for peer in self.peers:
            if not peer.closed:
                peer.sock.close()
        if self.garbage_on:
            gc.enable()


OUTER = {World.turn.__code__, World.close.__code__}


def descriptors() -> int:
    return len(os.listdir('/proc/self/fd'))


# -- the kinds of streams


class Kind:
    """A kind of stream.

    `call` is the method of `Reactor` that makes the stream. `cannot` maps the abilities that the kind lacks ('read',
    'write', 'half-close', 'reset', 'names', ...) to the reasons. `family` is the address family of the sockets. `tls`
    says whether the stream uses TLS.
    """

    call = ''
    tls = False
    family = -1
    prefix = b''
    cannot: dict[str, str]

    def __init__(self, name: str) -> None:
        self.name = name
        self.cannot = {}
        if not self.tls:
            self.cannot['tls'] = 'it does not use TLS'
        else:
            self.cannot['count'] = 'buffered counts ciphertext, whose length only OpenSSL knows'
        if self.family not in (socket.AF_INET, socket.AF_INET6) and 'names' not in self.cannot:
            self.cannot['names'] = 'its addresses are not IP addresses'

    def __repr__(self) -> str:
        return self.name

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Peer:
        """Open a stream of this kind, set `recorder.conn` and return its peer."""
        raise NotImplementedError

    def options(self) -> list[str]:
        """Return the names of the keyword arguments of `call` that are options of this kind; callbacks are not."""
        found = options_of(getattr(Reactor, self.call))
        return [name for name in found if not name.startswith('on_') and name not in self.refused()]

    def refused(self) -> dict[str, str]:
        """Return the keyword arguments of `call` that are not tested with this kind, and why."""
        return {}

    def peer(self, world: World, sock: Any, server_side: bool) -> Peer:
        """Return the peer for a connected socket."""
        if not self.tls:
            return Peer(world, sock)
        return TLSPeer(world, sock, world.contexts[0 if server_side else 1], server_side)


class Accepted(Kind):
    """A connection that a listener accepts."""

    def __init__(self, name: str, family: int, tls: bool = False, host: str | None = None, first: str = '') -> None:
        self.family, self.tls, self.host, self.first = family, tls, host, first
        self.call = 'listen_unix' if family == socket.AF_UNIX else 'listen_tcp'
        self.prefix = b'!' if first == 'deferred' else b''
        super().__init__(name)
        self.cannot['connect'] = 'it is accepted, so it is open from the start'
        if first == 'proxied':
            self.cannot['names'] = 'its peer name is that of the client in the PROXY header'

    def listen(self, world: World, callbacks: dict[str, Any], options: dict[str, Any]) -> Any:
        if self.tls:
            options = {'ssl': world.contexts[0], **options}
        if self.first == 'deferred':
            options = {'defer_accept': True, **options}
        if self.first == 'vsock':
            sock = VsockSocket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(f'\0vsock of {os.getpid()}')
            return world.r.listen_tcp(None, 0, sock=sock, **callbacks, **options)
        if self.family == socket.AF_UNIX:
            proxied = {'proxy_protocol': True} if self.first == 'proxied' else {}
            return world.r.listen_unix(f'@kinds of {os.getpid()}', **callbacks, **proxied, **options)
        proxied = {'proxy_protocol': ['127.0.0.0/8', '::1/128']} if self.first == 'proxied' else {}
        return world.r.listen_tcp(self.host, 0, **callbacks, **proxied, **options)

    def dial(self, listener: Any) -> Any:
        if self.first == 'vsock':
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(f'\0vsock of {os.getpid()}')
        elif self.family == socket.AF_UNIX:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(listener.address)
        else:
            host = '127.0.0.1' if self.family == socket.AF_INET else '::1'
            sock = socket.create_connection((host, listener.address[1]))
        if self.first == 'proxied':
            sock.sendall(b'PROXY TCP4 192.0.2.1 198.51.100.7 51234 443\r\n')
        if self.first == 'deferred':
            sock.sendall(self.prefix)
        return sock

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Peer:
        listener = self.listen(world, callbacks, options)
        peer = self.peer(world, self.dial(listener), False)
        world.until(lambda: recorder.names and peer.greeted)
        listener.close()
        return peer

    def refused(self) -> dict[str, str]:
        kinds = {
            'ssl': 'tested as a separate kind',
            'server_hostname': 'only for the side that connects',
            'sock': 'tested as separate kinds',
        }
        kinds.update(proxy_protocol='tested as a separate kind', defer_accept='tested as a separate kind')
        if self.first == 'vsock':
            kinds['reuse_port'] = 'ignored with sock='
        return kinds


class Connected(Kind):
    """A connection that our side makes."""

    def __init__(self, name: str, family: int, tls: bool = False) -> None:
        self.family, self.tls = family, tls
        self.call = 'connect_unix' if family == socket.AF_UNIX else 'connect_tcp'
        super().__init__(name)

    def begin(self, world: World, callbacks: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
        """Start to connect a stream; returns it and the listening socket of the peer."""
        server = socket.socket(self.family)
        if self.tls:
            options = {'ssl': world.contexts[1], 'server_hostname': 'localhost', **options}
        if self.family == socket.AF_UNIX:
            server.bind(f'\0kinds of {os.getpid()}')
            server.listen(8)
            return world.r.connect_unix(server.getsockname(), **callbacks, **options), server
        host = '127.0.0.1' if self.family == socket.AF_INET else '::1'
        server.bind((host, 0))
        server.listen(8)
        return world.r.connect_tcp(host, server.getsockname()[1], **callbacks, **options), server

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Peer:
        recorder.conn, server = self.begin(world, callbacks, options)
        peer = self.accept(world, server)
        world.until(lambda: recorder.names and peer.greeted)
        return peer

    def accept(self, world: World, server: Any) -> Peer:
        with server:
            world.turn()
            return self.peer(world, server.accept()[0], True)

    def refused(self) -> dict[str, str]:
        return {'ssl': 'tested as a separate kind', 'server_hostname': 'passed together with ssl'}


class Adopted(Kind):
    """A connection that the reactor adopts; a kind with TLS starts TLS after the adoption."""

    call = 'adopt'

    def __init__(self, name: str, how: str, tls: bool = False, server_side: bool = False) -> None:
        self.how, self.tls, self.server_side = how, tls, server_side
        self.family = {'tcp4': socket.AF_INET, 'tcp6': socket.AF_INET6}.get(how, socket.AF_UNIX)
        super().__init__(name)
        self.cannot['connect'] = 'it is connected when it is adopted'
        self.cannot['on_connect'] = 'it is connected when it is adopted'

    def pair(self) -> tuple[Any, Any]:
        if self.how == 'pair':
            return socket.socketpair()
        if self.how == 'vsock':
            ours, theirs = socket.socketpair()
            return VsockSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach()), theirs
        with socket.create_server(('127.0.0.1' if self.how == 'tcp4' else '::1', 0), family=self.family) as server:
            theirs = socket.create_connection(server.getsockname()[:2])
            return server.accept()[0], theirs

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Peer:
        ours, theirs = self.pair()
        callbacks = {name: each for name, each in callbacks.items() if name != 'on_connect'}
        recorder.conn = world.r.adopt(ours, **callbacks, **options)
        peer = self.peer(world, theirs, not self.server_side)
        if self.tls:
            secured: list[Any] = []
            context, name = world.contexts[0 if self.server_side else 1], None if self.server_side else 'localhost'
            recorder.conn.start_tls(context, lambda conn: secured.append(1), server_hostname=name)
            world.until(lambda: secured and peer.greeted)
        return peer

    def refused(self) -> dict[str, str]:
        return {'ssl': 'start_tls takes it', 'server_hostname': 'start_tls takes it'}


class Child(Kind):
    """A pipe to or from a child process; the peer gets a copy of the other end before the child is killed."""

    call = 'spawn'

    def __init__(self, name: str) -> None:
        self.stdio = ('stdin', 'stdout', 'stderr').index(name)
        super().__init__(f'child-{name}')
        if name == 'stdin':
            self.cannot['read'] = 'the child reads from this pipe; its output arrives through its stdout'
            self.cannot['reset'] = 'a pipe has no reset: when the child stops reading, it is an end, or EPIPE'
        else:
            self.cannot['write'] = 'the child writes to this pipe'
            self.cannot['reset'] = 'a pipe has no reset: when the child is gone, its output has ended'
        self.cannot['both'] = self.cannot['half-close'] = 'a pipe is one-way'
        self.cannot['connect'] = self.cannot['on_connect'] = 'a child has its pipes from the start'
        self.cannot['names'] = 'a pipe has no address; instead its name says which child it belongs to'
        self.cannot['socket'] = 'a pipe cannot be distinguished from a later file with the same descriptor number'

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Peer:
        name = ('stdin', 'stdout', 'stderr')[self.stdio]
        ended: list[Any] = []
        process = world.r.spawn(['sleep', '60'], on_exit=lambda *args: ended.append(1), **{name: PIPE}, **options)
        recorder.conn = getattr(process, name)
        for each, fn in callbacks.items():
            setattr(recorder.conn, each, fn)
        way = os.O_WRONLY if self.stdio else os.O_RDONLY
        fd = os.open(f'/proc/{process.pid}/fd/{self.stdio}', way | os.O_NONBLOCK)
        peer = Peer(world, Pipe(fd))
        process.kill()
        while not ended:  # in real time, whatever the loop's clock shows
            time.sleep(0.0005)
            world.turn(0 if world.kernel is None else 0.001)
        return peer

    def refused(self) -> dict[str, str]:
        sockets = dict.fromkeys(('nodelay', 'keepalive', 'ssl', 'server_hostname', 'handshake_timeout'), 'of sockets')
        own = dict.fromkeys(('stdin', 'stdout', 'stderr', 'env', 'cwd', 'pass_fds'), 'for the child, not for its pipes')
        return {**sockets, **own}


class Opened(Kind):
    """One direction of a pipe, a FIFO or a terminal, opened with `open_fd`."""

    call = 'open_fd'

    def __init__(self, name: str, reads: bool) -> None:
        self.medium, self.reads = name, reads
        super().__init__(f'{name}-{"read" if reads else "written"}')
        if reads:
            self.cannot['write'] = 'only its other end is written'
            self.cannot['reset'] = 'it has no reset: when the other end is gone, its input has ended'
        else:
            self.cannot['read'] = 'only its other end is read'
            self.cannot['reset'] = 'it has no reset: when the other end is gone, it is an end, or EPIPE'
        self.cannot['both'] = self.cannot['half-close'] = 'it is used in one direction'
        self.cannot['connect'] = self.cannot['on_connect'] = 'it is open from the start'
        self.cannot['names'] = 'it has no address'
        self.cannot['socket'] = 'it cannot be distinguished from a later file with the same descriptor number'

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Peer:
        with tempfile.TemporaryDirectory() as folder:
            reader, writer = watched_kinds(folder)[self.medium]()
        ours, theirs = (reader, writer) if self.reads else (writer, reader)
        for name in ('on_connect',) if self.reads else ('on_connect', 'on_data', 'on_eof'):
            callbacks.pop(name, None)
        other = 'write_timeout' if self.reads else 'read_timeout'  # refused, which tests/system/test_open_fd.py checks
        options = {name: value for name, value in options.items() if name != other}
        recorder.conn = world.r.open_fd(ours, **callbacks, **options)
        os.set_blocking(theirs, False)
        return Peer(world, Pipe(theirs))

    def refused(self) -> dict[str, str]:
        sockets = dict.fromkeys(('nodelay', 'keepalive', 'ssl', 'server_hostname', 'handshake_timeout'), 'of sockets')
        return {**sockets, 'closefd': 'it says who closes the descriptor'}


INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, getattr(socket, 'AF_UNIX', -1)
KINDS: tuple[Kind, ...] = (
    Accepted('tcp4-accepted', INET, host='127.0.0.1'),
    Accepted('tcp6-accepted', INET6, host='::1'),
    Accepted('tcp-mapped', INET),
    Accepted('tcp4-deferred', INET, host='127.0.0.1', first='deferred'),
    Accepted('tcp4-proxied', INET, host='127.0.0.1', first='proxied'),
    Accepted('unix-accepted', UNIX),
    Accepted('unix-proxied', UNIX, first='proxied'),
    Accepted('vsock-accepted', getattr(socket, 'AF_VSOCK', -2), first='vsock'),
    Connected('tcp4-connected', INET),
    Connected('tcp6-connected', INET6),
    Connected('unix-connected', UNIX),
    Adopted('socketpair', 'pair'),
    Adopted('tcp4-adopted', 'tcp4'),
    Adopted('vsock-adopted', 'vsock'),
    Accepted('tls-tcp4-accepted', INET, tls=True, host='127.0.0.1'),
    Accepted('tls-tcp6-accepted', INET6, tls=True, host='::1'),
    Accepted('tls-tcp4-proxied', INET, tls=True, host='127.0.0.1', first='proxied'),
    Accepted('tls-unix-accepted', UNIX, tls=True),
    Accepted('tls-vsock-accepted', getattr(socket, 'AF_VSOCK', -2), tls=True, first='vsock'),
    Connected('tls-tcp4-connected', INET, tls=True),
    Connected('tls-tcp6-connected', INET6, tls=True),
    Connected('tls-unix-connected', UNIX, tls=True),
    Adopted('tls-socketpair-server', 'pair', tls=True, server_side=True),
    Adopted('tls-socketpair-client', 'pair', tls=True),
    Adopted('tls-tcp6-adopted', 'tcp6', tls=True, server_side=True),
    Child('stdin'),
    Child('stdout'),
    Child('stderr'),
    Opened('pipe', True),
    Opened('pipe', False),
    Opened('fifo', True),
    Opened('fifo', False),
    Opened('tty-master', True),
)

# -- the options, each with values at its limits; a new option fails a test until it has values here

FAR = 1e15  # seconds: the longest time that the reactor supports; longer times are reduced to this
VALUES: dict[str, list[dict[str, Any]]] = {
    'read_size': [{'read_size': 1}, {'read_size': 100}, {'read_size': 1 << 20}],
    'high_water': [{'high_water': 0}, {'high_water': 1}, {'high_water': 1 << 40}],
    'low_water': [{'low_water': 0}, {'high_water': 1000, 'low_water': 1000}],
    'max_buffered': [{'max_buffered': 1, 'high_water': 0}, {'max_buffered': 1 << 40}],
    'linger': [{'linger': 3600}, {'linger': 1e300}],
    'read_timeout': [{'read_timeout': 3600}, {'read_timeout': 1e300}],
    'write_timeout': [{'write_timeout': 3600}, {'write_timeout': 1e300}],
    'idle_timeout': [{'idle_timeout': 3600}, {'idle_timeout': 1e300, 'read_timeout': 60, 'write_timeout': 3600}],
    'nodelay': [{'nodelay': False}],
    'keepalive': [{'keepalive': 1}, {'keepalive': (32767, 32767, 127)}, {'keepalive': 0}],
    'handshake_timeout': [{'handshake_timeout': 3600}, {'handshake_timeout': 1e300}],
    'max_empty_records': [{'max_empty_records': None}, {'max_empty_records': 3}, {'max_empty_records': 1 << 40}],
    'backlog': [{'backlog': 0}, {'backlog': (1 << 31) - 1}],
    'reuse_port': [{'reuse_port': True}],
    'max_connections': [{'max_connections': 1}],
    'limits': [
        {'limits': lambda: Limits(connections=1, per_address=1, lifetime=3600)},
        {'limits': lambda: Limits(refuse=lambda address: False, connect_rate=(0.001, 1), max_addresses=0)},
    ],
    'proxy_timeout': [{'proxy_timeout': 3600}, {'proxy_timeout': 1e300}],
    'mode': [{'mode': 0o600}, {'mode': 0}],
    'timeout': [{'timeout': 3600}, {'timeout': 1e300}],
    'family': [{'family': 'its own'}],
    'local_address': [{'local_address': 'its own'}],
}


def settings_of(kind: Kind) -> list[dict[str, Any]]:
    """Return each option of a kind with each of its values; the first values of all options come first."""
    local = {'local_address': ('127.0.0.1' if kind.family == INET else '::1', 0)}
    own = {'family': {'family': kind.family}, 'local_address': local}
    names = [name for name in kind.options() if name != 'mode']  # see `test_a_mode_is_applied`
    ranks = range(max(map(len, VALUES.values())))
    values = [(name, VALUES[name][rank]) for rank in ranks for name in names if rank < len(VALUES[name])]
    return [own.get(name, value) for name, value in values]


def called(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of one run. Each run gets a new `Limits` object."""
    return {name: value() if name == 'limits' else value for name, value in options.items()}


# -- datagrams


class DatagramRecorder(Recorder):
    """Like `Recorder`, but for a datagram socket."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.datagrams: list[tuple[bytes, Any]] = []
        self.send_errors: list[OSError] = []

    def callbacks(self, eof: bool = False, error: bool = False) -> dict[str, Any]:
        given: dict[str, Any] = {'on_datagram': self.on_datagram, 'on_send_error': self.on_send_error}
        given.update(on_drain=self.on_drain, on_close=self.on_close)
        if error:
            given['on_error'] = self.on_error
        return given

    def on_datagram(self, sock: Any, data: Any, address: Any) -> None:
        if type(data) is not bytes:
            self.world.problems.append(f'on_datagram got {data!r}')
        self.datagrams.append((data, address))
        self.note('datagram', sock, data)

    def on_send_error(self, sock: Any, exc: OSError) -> None:
        self.send_errors.append(exc)
        self.note('send_error', sock, exc)


class DatagramKind:
    """A kind of datagram socket; `target` is the peer's address for `send`."""

    def __init__(self, name: str, call: str, family: int, host: str | None = None, given: str = '') -> None:
        self.name, self.call, self.family, self.host, self.given = name, call, family, host, given
        self.cannot: dict[str, str] = {}
        self.connected = call == 'connect_udp' or given == 'connected'
        if family != UNIX:
            self.cannot['full'] = 'a UDP datagram never waits: if there is no room for it, it is dropped on the way'
            if not self.connected:
                self.cannot['refusal'] = 'the kernel reports refusals only to connected sockets'
        else:
            self.cannot['longest'] = 'a Unix datagram has no known maximum length'

    def __repr__(self) -> str:
        return self.name

    def options(self) -> list[str]:
        """Return the names of all keyword arguments of `call`, except callbacks and `sock`."""
        found = options_of(getattr(Reactor, self.call))
        return [name for name in found if not name.startswith('on_') and name != 'sock']

    def open(self, world: World, recorder: Recorder, callbacks: dict[str, Any], options: dict[str, Any]) -> Any:
        """Open a socket of this kind; returns (the peer, a plain socket; the target for `send`)."""
        theirs = socket.socket(self.family, socket.SOCK_DGRAM)
        host = '::1' if self.family == INET6 else '127.0.0.1'
        theirs.bind(f'\0peer of {os.getpid()}' if self.family == UNIX else (host, 0))
        world.peers.append(Peer(world, theirs))
        if self.call == 'connect_udp':
            recorder.conn = world.r.connect_udp(host, theirs.getsockname()[1], **callbacks, **options)
        elif self.given:
            ours = socket.socket(self.family, socket.SOCK_DGRAM)
            ours.bind(f'\0ours of {os.getpid()}' if self.family == UNIX else (host, 0))
            if self.given == 'connected':
                ours.connect(theirs.getsockname())
            recorder.conn = world.r.bind_udp(None, 0, sock=ours, **callbacks, **options)
        else:
            recorder.conn = world.r.bind_udp(self.host, 0, **callbacks, **options)
        name = recorder.conn.address
        theirs.connect(name if self.family == UNIX else (host, name[1]))
        return theirs, None if self.connected else theirs.getsockname()


DATAGRAM_KINDS = (
    DatagramKind('udp4-bound', 'bind_udp', INET, host='127.0.0.1'),
    DatagramKind('udp6-bound', 'bind_udp', INET6, host='::1'),
    DatagramKind('udp-mapped', 'bind_udp', INET),
    DatagramKind('udp4-given', 'bind_udp', INET, given='bound'),
    DatagramKind('udp6-given-connected', 'bind_udp', INET6, given='connected'),
    DatagramKind('udp4-connected', 'connect_udp', INET),
    DatagramKind('udp6-connected', 'connect_udp', INET6),
    DatagramKind('unix-given', 'bind_udp', UNIX, given='bound'),
    DatagramKind('unix-given-connected', 'bind_udp', UNIX, given='connected'),
)

VALUES['max_queued'] = [{'max_queued': 1 << 40}, {'max_queued': 1}]
VALUES['broadcast'] = [{'broadcast': True}]


# -- watched descriptors


def watched_kinds(folder: str) -> dict[str, Any]:
    """Map each kind of descriptor for `watch_fd` to a function that returns (our end, the other end)."""
    fifo = os.path.join(folder, 'fifo')
    if not os.path.exists(fifo):
        os.mkfifo(fifo)

    def make_fifo() -> tuple[int, int]:
        ours = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        return ours, os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)

    def make_pair() -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()

    def make_tty() -> tuple[int, int]:
        master, slave = os.openpty()
        tty.setraw(slave)
        return slave, master

    return {
        'pipe': os.pipe,
        'fifo': make_fifo,
        'socketpair': make_pair,
        'tty': make_tty,
        'tty-master': lambda: make_tty()[::-1],
    }
