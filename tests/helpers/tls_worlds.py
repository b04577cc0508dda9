"""Worlds: simulated chat rooms in which some clients speak correct TLS and others do not.

The room sends each line to all members in one callback, whatever `write` returns: a misbehaving member must not affect
another. The checks are the laws of the design and do not repeat conditions of the TLS code. Records are counted in the
message callback of a context, which OpenSSL itself calls.

    law 1  every connection ends once (checked by the ledger of the simulation)
    law 2  no call raises an exception that its docstring does not name, whatever the peer has done
    law 5  a turn processes only a few records of a connection, including those without data
    law 6  a connection keeps no more than a record and the data of one `recv`
    law 8  a correct client gets every line, and a clean end
"""

from __future__ import annotations

import random
import ssl
from collections import Counter
from typing import Any

from reactor import ConnectionClosed
from reactor.testing import Simulation
from reactor.testing.simulation import SimulationFailed  # noqa: F401
from tests.helpers.certificates import Certificates
from tests.helpers.hostile_tls import ACTS, ALLOW_CLIENT_RENEGOTIATION, TLS_1_2, TLS_1_3, Peer, peer_callbacks

RECORDS = 2 * (4 + 1)  # the most records of a connection per turn: 4 and an empty one, twice
HEADER = 0x100  # the content type with which a message callback reports a record header
KEPT = 65536 + 16384 + 2048 + 5  # bytes: an incomplete record, and the data of one recv
LINES = 3  # lines that each good client sends
MAX_BUFFERED = 100_000


class Contexts:
    """The contexts of a world's servers and clients: both TLS versions, some servers with renegotiation."""

    def __init__(self, certificates: Certificates) -> None:
        limits = [{'maximum_version': version} for version in (TLS_1_2, TLS_1_3)]
        self.servers = [certificates.server(**limit) for limit in limits]
        self.clients = [certificates.client(**limit) for limit in limits]
        self.servers.append(certificates.server(maximum_version=TLS_1_2))
        self.servers[-1].options |= ALLOW_CLIENT_RENEGOTIATION


class Room:
    """A chat room under test, with well-behaved and hostile members."""

    def __init__(self, world: Any, contexts: Contexts) -> None:
        rng = self.rng = random.Random(world.random.getrandbits(64))
        self.world, self.r, self.contexts = world, world.r, contexts
        self.members: dict[Any, None] = {}
        self.good = rng.randrange(1, 4)
        self.joined = 0
        self.records: Counter[Any] = Counter()  # for each connection, how many records OpenSSL has read in this turn
        self.goal = world.expect('every good client has received everything, and has ended')
        self.left = self.good  # good clients that have not ended
        self.peers: list[Peer] = []
        self.limit = rng.choice((32, None))
        self.server_context, self.client_context = rng.choice(contexts.servers), rng.choice(contexts.clients)
        self.address = world.address()
        self.server = self.r.listen_tcp(*self.address, ssl=self.watched(self.server_context), **self.callbacks())
        for number in range(self.good):
            self.join_good(number)
        for _ in range(rng.randrange(1, 4)):
            self.join_hostile()
        self.polite: list[Peer] = []
        for _ in range(rng.randrange(3)):
            self.join_polite()
        self.outward = None
        if rng.random() < 0.7:
            self.dial_out()

    def watched(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Count the records that OpenSSL reads."""

        def on_message(conn: Any, direction: str, version: Any, kind: int, message: Any, data: bytes) -> None:
            if direction == 'read' and kind == HEADER:
                self.records[conn] += 1

        context._msg_callback = on_message  # type: ignore[attr-defined]
        return context

    # -- the chat room

    def callbacks(self) -> dict[str, Any]:
        """Return the room's callbacks and options for a member."""

        def on_connect(conn: Any) -> None:
            self.members[conn] = None
            conn.data = random.Random(self.rng.getrandbits(64))

        def on_data(conn: Any, data: bytes) -> None:
            if conn.data is not None and conn.data.random() < 0.2:
                conn.pause_reading()
                self.r.call_later(conn.data.random() * 3, self.resume, conn)
            self.send_to_all(data)
            kind = any(word in data for word in (b'good', b'polite', b'~'))
            if conn.data is not None and not kind and conn.data.random() < 0.05:
                conn.close() if conn.data.random() < 0.5 else conn.write_eof()

        def on_close(conn: Any, exc: BaseException | None) -> None:
            self.members.pop(conn, None)
            self.check_cut(conn, exc)
            self.send_to_all(b'a client has left\n')

        calls = {'on_connect': on_connect, 'on_data': on_data, 'on_close': on_close}
        return {**calls, 'max_buffered': MAX_BUFFERED, 'max_empty_records': self.limit, 'linger': 5}

    def check_cut(self, conn: Any, exc: BaseException | None) -> None:
        """Check that an end without a close_notify is reported as an error: an attacker may have cut the connection."""
        end = conn.record.end
        if exc is None and conn.record.closed_by is None and conn.tls.last is None and end is not None:
            other = self.r.ledger.by_end.get(end.peer)
            for peer in (*self.peers, *self.polite):
                if other is not None and peer.record is other and not peer.farewell:
                    self.world.fail(f'connection {conn.record.number} was cut short, but on_close got None')

    def send_to_all(self, data: bytes) -> None:
        for member in list(self.members):
            way = self.rng.randrange(12)
            try:
                if way == 0:
                    member.writelines((data[:5], memoryview(data)[5:]))
                elif way == 1:
                    member.write(data, self.nothing)
                elif way == 2:
                    member.write(bytearray(data))
                else:
                    member.write(data)
                if way == 3:
                    self.ask(member)
            except Exception as exc:
                ended = member.record.closed_by or member.has_ended_writing()
                if not (isinstance(exc, ConnectionClosed) and ended):
                    self.world.fail(f'law 2: a write to connection {member.record.number} raised {exc!r}')

    def ask(self, member: Any) -> None:
        """Use those attributes and methods of a connection that must work at any time."""
        repr(member), member.buffered, member.closed, member.state, member.peername, member.sockname, member.reading
        repr(member.tls.version), member.tls.cipher, member.tls.alpn, member.tls.unread
        member.set_write_limits(1000)
        member.resume_reading()

    def nothing(self, conn: Any) -> None:
        """An `on_written` that does nothing."""

    def resume(self, conn: Any) -> None:
        try:
            conn.resume_reading()
        except Exception as exc:
            self.world.fail(f'law 2: resume_reading() raised {exc!r}')

    # -- correct clients

    def join_good(self, number: int) -> None:
        """Add a client that sends its lines when all have joined, and receives the lines of the others."""
        heard = bytearray()

        def on_connect(conn: Any) -> None:
            self.joined += 1
            if self.joined == self.good:
                self.r.call_later(0.5, self.begin)

        def on_data(conn: Any, data: bytes) -> None:
            heard.extend(data)
            if heard.count(b'$') == self.good * LINES:
                conn.close()

        def on_close(conn: Any, exc: BaseException | None) -> None:
            if not self.world.faulty and (exc is not None or heard.count(b'$') != self.good * LINES):
                self.world.fail(f'law 8: good client {number} received {bytes(heard[-50:])!r} and ended with {exc!r}')
            self.one_less()

        calls = {'on_connect': on_connect, 'on_data': on_data, 'on_close': on_close}
        context = self.contexts.clients[self.server_context.maximum_version == TLS_1_3]
        conn = self.r.connect_tcp(*self.address, ssl=context, server_hostname='localhost', idle_timeout=60, **calls)
        self.talkers = [*getattr(self, 'talkers', ()), conn]

    def one_less(self) -> None:
        self.left -= 1
        if not self.left:
            self.goal.met()
            self.end()

    def join_polite(self) -> None:
        """Add a client that behaves unusually but correctly; it must receive everything, too."""
        self.left += 1
        peer = Peer(self.contexts.clients[self.server_context.maximum_version == TLS_1_3], False, self.rng)

        def on_data(conn: Any, data: bytes) -> None:
            peer.received(data)
            if peer.heard.count(b'$') == self.good * LINES:
                peer.do('close_notify')
                conn.close()

        def on_close(conn: Any, exc: BaseException | None) -> None:
            peer.conn = None
            if not self.world.faulty and peer.heard.count(b'$') != self.good * LINES:
                self.world.fail(f'law 8: a polite client received {bytes(peer.heard[-50:])!r} and ended with {exc!r}')
            self.one_less()

        calls = {'on_connect': peer.join, 'on_data': on_data, 'on_close': on_close, 'idle_timeout': 60}
        conn = self.r.connect_tcp(*self.address, **calls)
        conn.record.raw = True
        peer.record = conn.record
        self.polite.append(peer)

    def begin(self) -> None:
        for peer in self.polite:
            for _ in range(3):
                self.r.call_later(self.rng.choice((1, 1, 2, 3)), peer.do, 'politely')
        for number, conn in enumerate(self.talkers):
            for line in range(LINES):
                self.r.call_later(self.rng.choice((1, 1, 2, 3)), self.say, conn, b'good line %d %d$' % (number, line))
        for peer in self.peers:
            for _ in range(self.rng.randrange(1, 4)):
                self.r.call_later(self.rng.choice((1, 1, 2, 3)), peer.do, self.rng.choice(ACTS))

    def say(self, conn: Any, line: bytes) -> None:
        if not conn.closed:
            for _ in range(self.rng.choice((0, 0, 20))):
                conn.write(b'good ')  # each write becomes a record, and all records arrive at once
            conn.write(line)

    def end(self) -> None:
        """Abort the other clients, because all good ones have ended."""
        self.server.close()
        if self.outward is not None:
            self.outward.close()
        for conn in [*self.members, *[peer.conn for peer in self.peers if peer.conn is not None]]:
            conn.abort() if self.rng.random() < 0.3 else conn.close()

    # -- misbehaving peers

    def join_hostile(self) -> None:
        """Connect a `Peer` to the room as a client."""
        peer = Peer(self.contexts.clients[self.server_context.maximum_version == TLS_1_3], False, self.rng)
        self.peers.append(peer)
        calls = peer_callbacks()
        conn = self.r.connect_tcp(*self.address, on_connect=peer.join, idle_timeout=30, **calls)
        conn.record.raw = True  # type: ignore[attr-defined]
        peer.record = conn.record  # type: ignore[attr-defined]

    def dial_out(self) -> None:
        """Connect the room to a server that is a `Peer`."""
        address = self.world.address()

        def on_connect(conn: Any) -> None:
            conn.record.raw = True
            peer = Peer(self.rng.choice(self.contexts.servers[:2]), True, self.rng)
            self.peers.append(peer)
            peer.record = conn.record
            peer.join(conn)

        calls = peer_callbacks()
        self.outward = self.r.listen_tcp(*address, on_connect=on_connect, idle_timeout=30, **calls)
        context = self.watched(self.contexts.clients[1])
        self.r.connect_tcp(*address, ssl=context, server_hostname='localhost', **self.callbacks())

    # -- checks after each turn

    def check_turn(self) -> None:
        for conn in list(self.world.r.ledger.streams):
            session = conn.tls
            if session is None:
                continue
            count = self.records.pop(getattr(session, 'ssl_object', None), 0)
            if count > RECORDS and conn.record.connected:
                self.world.fail(f'law 5: {count} records of connection {conn.record.number} in one turn')
            if len(session._incoming) > KEPT:
                self.world.fail(f'law 6: connection {conn.record.number} keeps {len(session._incoming)} bytes')
        self.records.clear()


def run_world(seed: int, contexts: Contexts, **options: Any) -> Simulation:
    """Run one world; raises `SimulationFailed` if a law is broken. With an even seed only the peers cause faults."""
    options.setdefault('faults', None if seed % 2 else ())
    simulation = Simulation(seed, **options)
    rooms: list[Room] = []
    checked = simulation.kernel.on_turn

    def check(timeout: float | None) -> None:
        for room in rooms:
            room.check_turn()
        checked(timeout)

    simulation.kernel.on_turn = check

    def room(world: Any) -> None:
        rooms.append(Room(world, contexts))

    try:
        return simulation.run_program(room)
    finally:
        for context in (*contexts.servers, *contexts.clients):
            context._msg_callback = None  # type: ignore[attr-defined]
