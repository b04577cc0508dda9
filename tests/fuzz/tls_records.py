"""TLS records into a `TLSStream`: of a real peer, flipped, cut, doubled, dropped, swapped, and bytes that are none.

Owns the peer, which is the `ssl` module on two memory buffers, and what is done to its records on the way. The rule:
what `on_data` gets is a beginning of what the peer has written, and no more than that; a stream that was changed or cut
on the way never ends with `on_close(conn, None)`; and a stream that was not changed arrives whole.

Keys are random, and so are the lengths of some messages: an input repeats the steps, but not every byte.
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
ENDS_WITHIN = 100.0  # seconds: linger and the time limits of TLS are 30 each
MOST_PIECES = 200
MOST_UPDATES = 32  # records without data in a row, the default of max_empty_records: more may be an error
HEADER = 5  # bytes of a record: type, version, length


@cache
def contexts() -> tuple[dict[int, ssl.SSLContext], dict[int, ssl.SSLContext]]:
    """Contexts for servers and for clients, by version 2 or 3; made once, with certificates in a temporary folder."""
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
    """The connection under test: it sends back what it receives, and says how it has ended."""

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
        """Write, unless we have ended our side ourselves."""
        if not self.shut and not self.conn.closed:
            self.written += data
            self.conn.write(data)


class Peer:
    """The other side, and what is done to its records on their way to `sock`."""

    def __init__(self, context: ssl.SSLContext, server_side: bool, sock: Socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, None if server_side else 'localhost')
        self.sock = sock
        self.said = bytearray()
        self.heard = bytearray()
        self.ready = self.farewell = False
        self.broken = False  # whether it cannot go on, because of what it was sent
        self.arrived = False  # whether its close_notify has: what comes after it is not looked at
        self.changed = False  # whether a record was changed on its way, before that
        self._read = 0

    def pump(self) -> None:
        """Read what was sent, and go on with the handshake."""
        self.incoming.write(bytes(self.sock.sent[self._read :]))
        self._read = len(self.sock.sent)
        try:
            if not self.ready:
                self.tls.do_handshake()
                self.ready = True
            while data := self.tls.read(65536):
                self.heard += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.broken = True

    def records(self) -> list[bytes]:
        """What OpenSSL wants to send, in records."""
        data, found = self.outgoing.read(), []
        while data:
            size = HEADER + int.from_bytes(data[3:HEADER], 'big')
            found.append(data[:size])
            data = data[size:]
        return found

    def say(self, data: bytes) -> None:
        """Write, if it still can."""
        if self.ready and not self.farewell:
            try:
                self.tls.write(data)
            except ssl.SSLError:
                return
            self.said += data

    def say_farewell(self) -> None:
        """Send close_notify, the end of the stream."""
        if self.ready and not self.farewell:
            try:
                self.tls.unwrap()
            except ssl.SSLError:
                pass  # the other side has not ended
            self.farewell = True


class Run:
    """One input: numbers, each pair of which is a step."""

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
        self.in_order = not manner & 4  # whether the handshake is left alone
        self.version = version
        self.gone = self.reset = False  # whether the peer has ended the connection, and how
        self.updates = 0  # of keys
        self.closed_by_us = self.deaf = False
        self.last = ''

    def number(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def shake_hands(self) -> None:
        """Until both sides are done, nothing is changed."""
        for _ in range(10):
            self.peer.pump()
            self.deliver(self.peer.records(), False)
            self.scene.settle()
            if self.peer.ready and not self.peer.outgoing.pending:
                break
        assert self.peer.ready and not self.member.over, f'the handshake has failed: {self.member.exc!r}'

    def deliver(self, records: list[bytes], changed: bool, size: int = 0) -> None:
        """Have records arrive, at once or in pieces of `size` bytes, but not in too many; `changed`: they were others.

        After the end of the connection nothing arrives.
        """
        peer = self.peer
        if not self.gone:
            peer.changed |= changed and not peer.arrived
            peer.arrived |= peer.farewell and not changed
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

    # -- the steps: each takes a number, 0 to 255

    def say(self, number: int) -> None:
        """The peer writes: a record, many of one byte, or more than a record holds."""
        if number < 200:
            self.peer.say(bytes(range(number)))
        elif number < 240:
            for byte in range(number - 200):
                self.peer.say(bytes((byte,)))
        else:
            self.peer.say(bytes(range(number)) * 200)

    def flush(self, number: int) -> None:
        """Everything arrives as it is."""
        self.deliver(self.peer.records(), False, number)

    def flip(self, number: int) -> None:
        """A bit of the first record is changed."""
        records = self.peer.records()
        if records:
            first = bytearray(records[0])
            first[self.number() * len(first) >> 8] ^= 1 << number % 8
            records[0] = bytes(first)
        self.deliver(records, bool(records))

    def cut(self, number: int) -> None:
        """The last bytes of a record are missing, and others come after it or not."""
        records = self.peer.records()
        if records:
            records[0] = records[0][: (number & 127) * (len(records[0]) - 1) >> 7]
        self.deliver(records if number > 127 else records[:1], bool(records))

    def double(self, number: int) -> None:
        """A record comes twice: the second time right after the first, or at the end."""
        records = self.peer.records()
        at = 1 if number < 128 else len(records)
        # After the end of the stream, nothing is looked at.
        changed = bool(records) and (at < len(records) or not self.peer.farewell)
        records[at:at] = records[:1]
        self.deliver(records, changed)

    def drop(self, number: int) -> None:
        """A record is missing."""
        records = self.peer.records()
        left = [record for index, record in enumerate(records) if index != number % len(records)]
        self.deliver(left, bool(records))

    def swap(self, number: int) -> None:
        """Two records change places."""
        records = self.peer.records()
        changed = len(records) > 1
        records[:2] = records[1::-1] if changed else records
        self.deliver(records, changed)

    def raw(self, number: int) -> None:
        """Bytes of the input, whatever they are."""
        data = self.data[self.at : self.at + number % 64]
        self.at += number % 64
        if data:
            self.deliver([data], True)

    def update_keys(self, number: int) -> None:
        """The peer sends new keys (TLS 1.3), or asks for a new handshake and is refused (TLS 1.2)."""
        if self.peer.ready and not (self.peer.farewell or self.peer.broken or ENGINE.missing):
            self.updates += 1 + number % 40
            for _ in range(1 + number % 40):
                if self.version == 3:
                    ENGINE.update_keys(self.peer.tls, number > 127)

    def notify(self, number: int) -> None:
        """The end of the TLS stream."""
        self.peer.say_farewell()

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
        """The connection under test writes by itself."""
        if not self.member.over:
            self.member.say(b'.' * (number if number < 250 else 40_000))

    def pause(self, number: int) -> None:
        """It does not read for a while."""
        conn = self.member.conn
        conn.pause_reading()
        self.member.paused = True
        self.flush(0)
        self.scene.wait(number / 100)
        self.member.paused = False
        conn.resume_reading()

    def close(self, number: int) -> None:
        """It ends: its side, in good order, or at once."""
        if number < 128:
            self.member.shut = True
            self.member.conn.write_eof()
        else:
            self.closed_by_us = True
            self.member.conn.close() if number < 250 else self.member.conn.abort()

    def deafen(self, number: int) -> None:
        """The peer takes a little, or all again."""
        self.sock.room = None if number > 127 else number
        self.deaf = self.sock.room is not None

    # -- what has to hold

    def check_bytes(self) -> None:
        """No byte reaches either side that the other one has not written, in its place."""
        member, peer = self.member, self.peer
        assert peer.said.startswith(member.received), f'{bytes(member.received)[-80:]!r} was received after {self.last}'
        assert member.written.startswith(peer.heard), f'the peer has heard {bytes(peer.heard)[-80:]!r}'

    def check_end(self) -> None:
        member, exc = self.member, self.member.exc
        assert member.over, f'{ENDS_WITHIN} s after the peer has ended, on_close was not called'
        late = self.deaf or self.closed_by_us  # linger may be over, which is a WriteTimeout
        allowed = exc is None or isinstance(exc, (TLSError, WriteTimeout) if late else TLSError)
        assert allowed or (self.reset and isinstance(exc, OSError)), f'ended with {exc!r}'
        if self.closed_by_us:
            return
        if self.peer.changed and self.in_order:
            assert exc is not None, f'a record was changed, and on_close gets None; {len(member.received)} bytes'
        elif not self.peer.arrived:
            assert exc is not None, 'the stream was cut, and on_close gets None'
        elif not (self.peer.changed or self.reset or self.deaf or self.updates > MOST_UPDATES):
            assert exc is None, f'nothing was changed, and it ended with {exc!r}'
            assert member.received == self.peer.said, f'{len(member.received)} of {len(self.peer.said)} bytes came'


STEPS = (
    'say', 'flush', 'flip', 'cut', 'double', 'drop', 'swap', 'raw', 'update_keys', 'notify', 'end', 'abort', 'wait',
    'write', 'pause', 'close', 'deafen',
)  # fmt: skip


def run(data: bytes) -> None:
    """A handshake that is left alone, or not; then the steps; then the end of what is left."""
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
