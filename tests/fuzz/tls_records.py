"""Fuzz a `TLSStream` with random bytes, and with a peer's records flipped, cut, doubled, dropped or swapped.

The peer is the `ssl` module on two memory buffers, and its records are changed on the way. `on_data` must get a prefix
of the bytes that the peer wrote, and nothing else. A stream that was changed or cut on the way must never end with
`on_close(conn, None)`. A stream that was not changed must arrive completely.

The keys and the lengths of some messages are random, so running an input again repeats the steps, but not every byte.
"""

from __future__ import annotations

import atexit
import shutil
import ssl
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from reactor import TLSError, WriteTimeout
from tests.helpers.certificates import Certificates
from tests.helpers.hostile_tls import ENGINE

from .scene import Scene, Seen, Socket

LONGEST_INPUT = 120
WORDS = (b'\x16\x03\x01\0', b'\x17\x03\x03\0', b'\x15\x03\x03\0\x02\x01\0', b'\x14\x03\x03\0\x01\x01', b'\x16\x03\x03')
HANDSHAKE_LIMIT = 60.0  # seconds, the default of handshake_timeout
ENDS_WITHIN = 100.0  # seconds: the linger and the time limits of TLS are 30 s each
MOST_PIECES = 200
MOST_UPDATES = 32  # records in a row without data, the default of max_empty_records; more may end the connection
HEADER = 5  # bytes of a record: type, version, length


@cache
def contexts() -> tuple[dict[int, ssl.SSLContext], dict[int, ssl.SSLContext]]:
    """Make server and client contexts with temporary certificates. The dict keys 2 and 3 mean TLS 1.2 and TLS 1.3."""
    folder = tempfile.mkdtemp(prefix='fuzz-tls-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Certificates(Path(folder))
    versions = {2: ssl.TLSVersion.TLSv1_2, 3: ssl.TLSVersion.TLSv1_3}
    servers = {number: made.server(maximum_version=version) for number, version in versions.items()}
    clients = {number: made.client(maximum_version=version) for number, version in versions.items()}
    for context in servers.values():
        context.num_tickets = 1
    return servers, clients


class Member(Seen):
    """The connection under test. It sends back all data that it receives."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.written = bytearray()
        self.paused = self.shut = False

    def message(self, data: bytes) -> None:
        assert not self.paused, 'on_data while reading is paused'
        self.say(data)

    def eof(self) -> None:
        assert not self.paused, 'on_eof while reading is paused'
        self.conn.close()

    def say(self, data: bytes) -> None:
        """Write data, unless our side of the stream has ended."""
        if not self.shut and not self.conn.closed:
            self.written += data
            self.conn.write(data)


class Peer:
    """The peer of the connection under test, and the state of its records on their way to `sock`."""

    def __init__(self, context: ssl.SSLContext, server_side: bool, sock: Socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, None if server_side else 'localhost')
        self.sock = sock
        self.written = bytearray()
        self.received = bytearray()
        self.ready = self.notified = False
        self.broken = False  # whether the peer failed because of a record that it received
        self.arrived = False  # whether the peer's close_notify has arrived; anything after it is ignored
        self.changed = False  # whether a record before the close_notify was changed on its way
        self._read = 0

    def pump(self) -> None:
        """Receive what the connection under test has sent, and continue the handshake."""
        self.incoming.write(bytes(self.sock.sent[self._read :]))
        self._read = len(self.sock.sent)
        try:
            if not self.ready:
                self.tls.do_handshake()
                self.ready = True
            while data := self.tls.read(65536):
                self.received += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.broken = True

    def records(self) -> list[bytes]:
        """Return the records that OpenSSL wants to send."""
        data, found = self.outgoing.read(), []
        while data:
            size = HEADER + int.from_bytes(data[3:HEADER], 'big')
            found.append(data[:size])
            data = data[size:]
        return found

    def say(self, data: bytes) -> None:
        """Write data, if the TLS stream still allows that."""
        if self.ready and not self.notified:
            try:
                self.tls.write(data)
            except ssl.SSLError:
                return
            self.written += data

    def close_notify(self) -> None:
        """Send close_notify, the end of the stream."""
        if self.ready and not self.notified:
            try:
                self.tls.unwrap()
            except ssl.SSLError:
                pass  # the other side has not sent its close_notify yet
            self.notified = True


class Run:
    """The run of one input, which is read as pairs of numbers: a step and its argument."""

    def __init__(self, scene: Scene, data: bytes) -> None:
        self.scene, self.data, self.at = scene, data, 0
        manner = self.number()
        servers, clients = contexts()
        version = 3 if manner & 1 else 2
        self.member = Member(scene)
        self.sock = Socket(scene.kernel)
        callbacks = self.member.callbacks('on_data', 'on_close', *(('on_eof',) if manner & 8 else ()))
        conn: Any = scene.r.adopt(self.sock, **callbacks)
        self.member.watch(conn)
        if manner & 2:
            conn.start_tls(clients[version], server_hostname='localhost')
            self.peer = Peer(servers[version], True, self.sock)
        else:
            conn.start_tls(servers[version])
            self.peer = Peer(clients[version], False, self.sock)
        self.in_order = not manner & 4  # whether the handshake is delivered unchanged
        self.version = version
        self.gone = self.reset = False  # whether the peer has ended the connection, and whether by a reset
        self.updates = 0  # how often the keys were updated
        self.closed_by_us = self.limited = False
        self.last = ''

    def number(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def shake_hands(self) -> None:
        """Complete the handshake on both sides, without changes to its records."""
        for _ in range(10):
            self.peer.pump()
            self.deliver(self.peer.records(), False)
            self.scene.settle()
            if self.peer.ready and not self.peer.outgoing.pending:
                break
        assert self.peer.ready and not self.member.over, f'the handshake has failed: {self.member.exc!r}'

    def deliver(self, records: list[bytes], changed: bool, size: int = 0) -> None:
        """Deliver records at once, or in pieces of `size` bytes (at most MOST_PIECES).

        `changed` says whether they differ from the records that were sent. After the end of the connection, nothing
        arrives.
        """
        peer = self.peer
        if not self.gone:
            peer.changed |= changed and not peer.arrived
            peer.arrived |= peer.notified and not changed
        data = b''.join(records)
        size = max(size, len(data) // MOST_PIECES) if size else len(data)
        for begin in range(0, len(data), size or 1):
            self.sock.arrive(data[begin : begin + size])
            self.scene.turn()

    def steps(self) -> None:
        while self.at < len(self.data) and not self.member.over:
            self.last = STEPS[self.number() % len(STEPS)]
            getattr(self, self.last)(self.number())
            self.peer.pump()
            self.check_bytes()

    # -- the steps: each takes a number from 0 to 255

    def say(self, number: int) -> None:
        """Let the peer write one record, many records of one byte, or more than fits into one record."""
        if number < 200:
            self.peer.say(bytes(range(number)))
        elif number < 240:
            for byte in range(number - 200):
                self.peer.say(bytes((byte,)))
        else:
            self.peer.say(bytes(range(number)) * 200)

    def flush(self, number: int) -> None:
        """Deliver everything unchanged."""
        self.deliver(self.peer.records(), False, number)

    def flip(self, number: int) -> None:
        """Flip one bit of the first record."""
        records = self.peer.records()
        if records:
            first = bytearray(records[0])
            first[self.number() * len(first) >> 8] ^= 1 << number % 8
            records[0] = bytes(first)
        self.deliver(records, bool(records))

    def cut(self, number: int) -> None:
        """Deliver a record without its end, with or without the records after it."""
        records = self.peer.records()
        if records:
            records[0] = records[0][: (number & 127) * (len(records[0]) - 1) >> 7]
        self.deliver(records if number > 127 else records[:1], bool(records))

    def double(self, number: int) -> None:
        """Deliver a record twice: the second time right after the first, or at the end."""
        records = self.peer.records()
        at = 1 if number < 128 else len(records)
        # Records after the end of the stream are ignored.
        changed = bool(records) and (at < len(records) or not self.peer.notified)
        records[at:at] = records[:1]
        self.deliver(records, changed)

    def drop(self, number: int) -> None:
        """Deliver all records but one."""
        records = self.peer.records()
        left = [record for index, record in enumerate(records) if index != number % len(records)]
        self.deliver(left, bool(records))

    def swap(self, number: int) -> None:
        """Swap two records."""
        records = self.peer.records()
        changed = len(records) > 1
        records[:2] = records[1::-1] if changed else records
        self.deliver(records, changed)

    def raw(self, number: int) -> None:
        """Deliver bytes from the input."""
        data = self.data[self.at : self.at + number % 64]
        self.at += number % 64
        if data:
            self.deliver([data], True)

    def update_keys(self, number: int) -> None:
        """Let the peer update its keys (TLS 1.3). With TLS 1.2, nothing is sent."""
        if self.peer.ready and not (self.peer.notified or self.peer.broken or ENGINE.missing):
            self.updates += 1 + number % 40
            for _ in range(1 + number % 40):
                if self.version == 3:
                    ENGINE.update_keys(self.peer.tls, number > 127)

    def notify(self, number: int) -> None:
        """Let the peer end the TLS stream."""
        self.peer.close_notify()

    def end(self, number: int) -> None:
        self.flush(0)
        self.sock.end()
        self.gone = True
        self.scene.turn()

    def abort(self, number: int) -> None:
        self.sock.reset()
        self.gone = self.reset = True
        self.scene.turn()

    def wait(self, number: int) -> None:
        self.scene.wait(number / 4)

    def write(self, number: int) -> None:
        """Write on the connection under test, although it has received nothing to reply to."""
        if not self.member.over:
            self.member.say(b'.' * (number if number < 250 else 40_000))

    def pause(self, number: int) -> None:
        """Pause reading on the connection under test for a while."""
        conn = self.member.conn
        conn.pause_reading()
        self.member.paused = True
        self.flush(0)
        self.scene.wait(number / 100)
        self.member.paused = False
        conn.resume_reading()

    def close(self, number: int) -> None:
        """Shut down the sending side of the connection under test, or close or abort the connection."""
        if number < 128:
            self.member.shut = True
            self.member.conn.write_eof()
        else:
            self.closed_by_us = True
            self.member.conn.close() if number < 250 else self.member.conn.abort()

    def limit_room(self, number: int) -> None:
        """Let the peer receive only a few more bytes, or everything again."""
        self.sock.room = None if number > 127 else number
        self.limited = self.sock.room is not None

    # -- checks

    def check_bytes(self) -> None:
        """Check that each side has received a prefix of the bytes that the other side wrote, and nothing else."""
        member, peer = self.member, self.peer
        assert peer.written.startswith(member.received), (
            f'{bytes(member.received)[-80:]!r} was received after {self.last}'
        )
        assert member.written.startswith(peer.received), f'the peer has received {bytes(peer.received)[-80:]!r}'

    def check_end(self) -> None:
        member, exc = self.member, self.member.exc
        assert member.over, f'{ENDS_WITHIN} s after the peer has ended, on_close was not called'
        late = self.limited or self.closed_by_us  # the linger time may run out first, with a WriteTimeout
        allowed = exc is None or isinstance(exc, (TLSError, WriteTimeout) if late else TLSError)
        assert allowed or (self.reset and isinstance(exc, OSError)), f'ended with {exc!r}'
        if self.closed_by_us:
            return
        if self.peer.changed and self.in_order:
            assert exc is not None, f'a record was changed, but on_close got None; {len(member.received)} bytes'
        elif not self.peer.arrived:
            assert exc is not None, 'the stream was cut, but on_close got None'
        elif not (self.peer.changed or self.reset or self.limited or self.updates > MOST_UPDATES):
            assert exc is None, f'nothing was changed, but on_close got {exc!r}'
            assert member.received == self.peer.written, (
                f'{len(member.received)} of {len(self.peer.written)} bytes arrived'
            )


STEPS = (
    'say', 'flush', 'flip', 'cut', 'double', 'drop', 'swap', 'raw', 'update_keys', 'notify', 'end', 'abort', 'wait',
    'write', 'pause', 'close', 'limit_room',
)  # fmt: skip


def run(data: bytes) -> None:
    """Run one input: the handshake, changed or not, then the steps, then the end of the connection."""
    with Scene() as scene:
        this = Run(scene, data)
        if this.in_order:
            this.shake_hands()
        this.steps()
        if not this.member.over:
            if not this.gone:
                this.peer.pump()
                this.end(0)
            scene.wait(ENDS_WITHIN)
            this.peer.pump()
        this.check_bytes()
        this.check_end()
