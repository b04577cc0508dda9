"""One side of a TLS connection, from ciphertext to plaintext and back, without a socket.

Owns what OpenSSL needs of us: whole records, one after the other, and two buffers to work between. Knows no stream.

OpenSSL has no bounds of its own on what one call does: one `SSL_read` works off every record without data that it can
see, and a `ssl.MemoryBIO` never returns memory. So ciphertext waits here, as plain `bytes`, and OpenSSL is given one
whole record at a time; what it writes is taken from it right after each call. The rules that follow:

    both buffers are empty whenever no call into OpenSSL runs, so all connections of a loop share one pair
    OpenSSL is never told that the peer has ended: a stream without close_notify is found here, the same on each version
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ssl import MemoryBIO, SSLContext, SSLError, SSLObject
    from typing import Any

    CallbackAndArgs = tuple[Callable[..., object] | None, tuple[Any, ...]]

HEADER = 5  # bytes of a record: its type, a version, two of length
RECORD_TYPES = range(20, 25)  # change_cipher_spec to heartbeat (RFC 8446, B.1)
LARGEST_RECORD = 16384 + 2048  # bytes behind the header, in TLS 1.2 (RFC 5246, 6.2.3)
RECORD = 16384  # bytes of plaintext in the largest record
RECORDS_PER_TURN = 4  # with data: as many of 16 KiB as one recv may bring; small ones wait for the next turn
HANDSHAKE_RECORDS = 64  # per step: more than a whole flight, and in fragments of one byte 0.1 ms
SLICE = 65536  # bytes encrypted between two looks into the buffer, which stays as large as it was once
EMPTY_WEIGHT = 1024  # bytes: a record without data counts once more for each, since it may hold many messages


class Buffers:
    """What OpenSSL reads from and writes to, shared by all TLS connections of a loop.

    A call that fails may leave bytes in them. They belong to a connection that cannot go on, and are dropped before
    the next call. `inside` says that OpenSSL is at work and may call a function of the user, such as an `sni_callback`:
    what is in the buffers then belongs to the connection in that call, and is set aside for calls of other connections.
    """

    __slots__ = ('incoming', 'inside', 'outgoing', 'ssl')

    def __init__(self) -> None:
        import ssl

        self.ssl: Any = ssl
        self.incoming: MemoryBIO = ssl.MemoryBIO()
        self.outgoing: MemoryBIO = ssl.MemoryBIO()
        self.inside: bool = False

    def empty(self) -> tuple[bytes, bytes]:
        """Empty both, and return what `put_back` needs afterwards."""
        left = self.incoming.read(), self.outgoing.read()
        return left if self.inside else (b'', b'')

    def put_back(self, left: tuple[bytes, bytes]) -> None:
        """Give the call in which OpenSSL has called the user what it had."""
        for buffer, data in zip((self.incoming, self.outgoing), left, strict=True):
            if data:
                buffer.write(data)


class Session:
    """The TLS side of a connection, `conn.tls`: what was agreed with the peer, once the handshake is done.

    `version` ('TLSv1.3'), `cipher` (its name), `alpn` (the protocol chosen, or None), `peer_certificate` (a dict as
    `ssl.SSLSocket.getpeercert` gives it, empty for one that was not verified, None without one) and
    `peer_certificate_der` (bytes or None). Until then all of them are None, and stay so when the handshake fails.
    `ssl_object` is the `ssl.SSLObject`, None until connected, for other questions; do not read from it, write to it or
    shut it down.
    """

    __slots__ = (
        '_incoming',
        '_read',
        '_write',
        'buffers',
        'empty',
        'ended',
        'full',
        'held',
        'held_bytes',
        'last',
        'more',
        'on_secured',
        'over',
        'reading',
        'ssl',
        'ssl_object',
        'timer',
    )

    def __init__(self, buffers: Buffers) -> None:
        self.buffers: Buffers = buffers
        self.ssl: Any = buffers.ssl
        self.ssl_object: SSLObject = None  # type: ignore[assignment]  # until connected
        self._incoming = b''  # ciphertext that waits, from the beginning of a record on
        self.on_secured: CallbackAndArgs = (None, ())
        # Writes that wait for the end of a handshake, in order; None when there is no handshake.
        self.held: list[tuple[list[bytes], CallbackAndArgs]] | None = []
        self.held_bytes: int = 0
        self.full: bool = False  # a write that waits returned False, so `on_drain` has to follow
        self.last: Callable[[Any], None] | None = None  # write_eof or close, called behind what is held
        self.reading: bool = True  # whether the user wants to read when the handshake is done
        self.more: bool = False  # whether a completion will decrypt what is here already
        self.over: bool = False  # nothing more will be received
        self.ended: bool = False  # the peer has sent its close_notify
        self.empty: int = 0  # records in a row that brought no data, by weight
        self.timer: Any = None  # of the handshake

    def begin(self, context: SSLContext, server_side: bool, server_hostname: str | None) -> None:
        """Make the SSL object; ValueError when `context` checks host names and none is given."""
        if context.check_hostname and not server_side and not server_hostname:
            raise ValueError('this context checks host names: give server_hostname')
        buffers = self.buffers
        self.ssl_object = context.wrap_bio(buffers.incoming, buffers.outgoing, server_side, server_hostname)
        self._read, self._write = self.ssl_object.read, self.ssl_object.write

    @property
    def version(self) -> str | None:
        version: str | None = self._agreed('version')
        return version

    @property
    def cipher(self) -> str | None:
        cipher = self._agreed('cipher')
        return None if cipher is None else cipher[0]

    @property
    def alpn(self) -> str | None:
        alpn: str | None = self._agreed('selected_alpn_protocol')
        return alpn

    @property
    def peer_certificate(self) -> Any:
        return self._agreed('getpeercert')

    @property
    def peer_certificate_der(self) -> bytes | None:
        der: bytes | None = self._agreed('getpeercert', True)
        return der

    def _agreed(self, question: str, *args: Any) -> Any:
        try:
            return getattr(self.ssl_object, question)(*args)
        except (AttributeError, ValueError):
            return None  # it is not connected, or the handshake is not done

    @property
    def unread(self) -> bool:
        """Whether ciphertext waits to be decrypted."""
        return self.more or bool(self._incoming)

    # -- what the peer has sent

    def received(self, data: bytes) -> None:
        """Keep ciphertext from the peer; nothing at its end."""
        if not data:
            self.over = True
        elif self._incoming:
            self._incoming += data
        else:
            self._incoming = data

    def drop_received(self) -> None:
        """Keep nothing from the peer: the connection has ended."""
        self._incoming, self.more = b'', False

    def shake_hands(self) -> bool:
        """Go on with the handshake; True when it is done. Raises SSLError when it has failed.

        `more` says whether there is more to go on with.
        """
        buffers, data = self.buffers, self._incoming
        end = count = 0
        while count < HANDSHAKE_RECORDS and (next_end := record_end(data, end)):
            end, count = next_end, count + 1
        buffers.empty()
        buffers.incoming.write(memoryview(data)[:end])
        self._incoming = data[end:]
        buffers.inside = True
        try:
            self.ssl_object.do_handshake()
            done = True
        except self.ssl.SSLWantReadError:
            done = False
        finally:
            buffers.inside = False
        if done:
            self._incoming = buffers.incoming.read() + self._incoming  # the first records of data
            return True
        self.more = record_end(self._incoming, 0) > 0
        if self.over and not self.more:
            # Not in the handler above: what OpenSSL raised would be its context, whose traceback keeps the connection.
            raise self._cut_short()
        return False

    def decrypt(self) -> tuple[list[bytes], SSLError | None]:
        """Decrypt a few records: their plaintext, and what is wrong with the next one.

        `more` says whether another record is here, `ended` whether the peer has ended its side. After a record without
        data the others wait for the next turn, since what it costs is up to the peer.
        """
        pieces: list[bytes] = []
        exc: SSLError | None = None
        data, begin = self._incoming, 0
        size, buffers = len(data), self.buffers
        incoming = buffers.incoming
        if incoming.pending or buffers.outgoing.pending:
            buffers.empty()
        buffers.inside = True
        try:
            while begin < size and len(pieces) < RECORDS_PER_TURN and (end := record_end(data, begin)):
                length = end - begin
                incoming.write(data if length == size else memoryview(data)[begin:end])
                begin = end
                piece = self._read(length)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
                self.empty = 0
        except self.ssl.SSLWantReadError:
            self.empty += 1 + length // EMPTY_WEIGHT
        except self.ssl.SSLZeroReturnError:  # as nothing read, when our side has ended before
            self.ended = True
        except self.ssl.SSLError as error:
            exc = error.with_traceback(None)
        finally:
            buffers.inside = False
        if begin == size:
            self._incoming, self.more = b'', False
        else:
            self._incoming = data[begin:]
            self.more = not self.ended and record_end(data, begin) > 0
        if self.over and exc is None and not (self.more or self.ended):
            exc = self._cut_short()
        return pieces, exc

    def _cut_short(self) -> SSLError:
        exc: SSLError = self.ssl.SSLEOFError(self.ssl.SSL_ERROR_EOF, 'unexpected eof while reading')
        exc.reason = 'UNEXPECTED_EOF_WHILE_READING'  # as from OpenSSL
        return exc

    # -- what it is sent

    def pending_output(self) -> bytes:
        """What OpenSSL wants to be sent after a call: handshakes, alerts, new keys."""
        outgoing = self.buffers.outgoing
        return outgoing.read() if outgoing.pending else b''

    def encrypt_record(self, data: bytes) -> bytes:
        """The ciphertext of `data` if it makes one record; b'' when it does not, or when it cannot be encrypted now."""
        outgoing = self.buffers.outgoing
        if outgoing.pending or not 0 < len(data) <= RECORD:
            return b''
        try:
            self._write(data)
        except self.ssl.SSLError:
            return b''
        return outgoing.read()

    def encrypt(self, pieces: Iterable[bytes | memoryview]) -> list[bytes]:
        """The ciphertext of `pieces`, in parts of about SLICE bytes.

        Raises SSLWantReadError, and has encrypted nothing, while the peer has begun a new handshake.
        """
        write, outgoing = self._write, self.buffers.outgoing
        left = self.buffers.empty()
        parts = []
        try:
            for piece in pieces:
                while piece:
                    sent = write(piece if len(piece) <= SLICE else memoryview(piece)[:SLICE])
                    if outgoing.pending >= SLICE:
                        parts.append(outgoing.read())
                    if sent == len(piece):
                        break
                    piece = memoryview(piece)[sent:]
            if outgoing.pending or not parts:
                parts.append(outgoing.read())
        finally:
            self.buffers.put_back(left)
        return parts

    def close_notify(self) -> bytes:
        """The end of our side of the stream: close_notify."""
        left = self.buffers.empty()
        try:
            self.ssl_object.unwrap()
        except self.ssl.SSLError:
            pass  # the peer has not ended its side
        said = self.pending_output()
        self.buffers.put_back(left)
        return said


def record_end(data: bytes, begin: int) -> int:
    """Where the TLS record that begins at `begin` ends in `data`, 0 while the rest of it is missing.

    What cannot be a record ends with all that is here: OpenSSL says at once what is wrong with it.
    """
    size = len(data)
    if size - begin < HEADER:
        return 0
    end = begin + HEADER + (data[begin + 3] << 8 | data[begin + 4])
    if end <= size:
        return end
    whole = data[begin] in RECORD_TYPES and data[begin + 1] == 3 and end - begin - HEADER <= LARGEST_RECORD
    return 0 if whole else size
