"""The TLS side of a connection, without its socket: take handshake steps, decrypt and encrypt.

OpenSSL does not limit the work of one call: a single `SSL_read` processes every record without data that it can see.
And an `ssl.MemoryBIO` never shrinks. So ciphertext is buffered here as `bytes`, OpenSSL gets one whole record at a
time, and its output is taken right after each call. Two rules follow:

    Both buffers are empty whenever no call into OpenSSL is running, so all connections of a loop share one pair.
    The peer's end of file is not passed to OpenSSL. A stream without close_notify is detected here, so every version of
    OpenSSL behaves the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..hints import MemoryBIO, SSLContext, SSLError, SSLObject
from ..loop.timers import Timer

CallbackAndArgs = tuple[Callable[..., object] | None, tuple[Any, ...]]

HEADER = 5  # bytes: the type of a record, two for its version, two for its length
APPLICATION_DATA = 23  # the type of records with data, and in TLS 1.3 of all encrypted records
RECORD_TYPES = range(20, 25)  # change_cipher_spec to heartbeat (RFC 8446, B.1)
LARGEST_RECORD = 16384 + 2048  # bytes after the header, in TLS 1.2 (RFC 5246, 6.2.3)
RECORD = 16384  # bytes of plaintext in the largest record
RECORDS_PER_TURN = 4  # records with data: one recv may return four of 16 KiB; any further ones wait for the next turn
HANDSHAKE_RECORDS = 64  # records in a step: more than a whole flight has; 64 fragments of one byte take 0.1 ms
SLICE = 65536  # bytes encrypted before the output buffer is emptied, because it never shrinks
EMPTY_WEIGHT = 1024  # bytes: a record without data may hold many messages, so each KiB counts as one more record


class Buffers:
    """The two buffers between us and OpenSSL, shared by all TLS connections of a loop.

    A call that fails may leave bytes in the buffers. Such bytes belong to a connection that cannot go on, and are
    dropped before the next call. While `inside` is True, OpenSSL is running and may call a function of the user, such
    as an `sni_callback`. The bytes in the buffers then belong to the connection for which OpenSSL is running. Calls for
    other connections set these bytes aside and put them back.
    """

    __slots__ = ('incoming', 'inside', 'outgoing', 'ssl')

    def __init__(self) -> None:
        import ssl

        self.ssl: Any = ssl
        self.incoming: MemoryBIO = ssl.MemoryBIO()
        self.outgoing: MemoryBIO = ssl.MemoryBIO()
        self.inside: bool = False

    def empty(self) -> tuple[bytes, bytes]:
        """Empty both buffers and return the argument for `put_back`."""
        left = self.incoming.read(), self.outgoing.read()
        return left if self.inside else (b'', b'')

    def put_back(self, left: tuple[bytes, bytes]) -> None:
        """Restore the bytes of the OpenSSL call that is still running.

        Nothing is called if there are none: at the limit of the stack, encrypted bytes must not be lost here.
        """
        incoming, outgoing = left
        if incoming:
            self.incoming.write(incoming)
        if outgoing:
            self.outgoing.write(outgoing)


class TLSSession:
    """The TLS side of a connection, `conn.tls`, which describes the negotiated TLS session.

    All attributes are None until the handshake is done, and stay None if it fails.

    Attributes:
        version: The protocol version, such as 'TLSv1.3'.
        cipher: The name of the cipher.
        alpn: The protocol chosen by ALPN, or None.
        peer_certificate: The peer's certificate as `ssl.SSLSocket.getpeercert` returns it: a dict, which is empty if
            the certificate was not verified. None if the peer sent none.
        peer_certificate_der: The same certificate as bytes in DER form, or None.
        ssl_object: The `ssl.SSLObject`, for further details; None until connected. Do not read from it, write to it or
            shut it down.
    """

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # OpenSSL
        'ssl', 'ssl_object', '_read', '_write',
        # ciphertext that was received
        'buffers', '_incoming', 'more', 'empty', 'ended', 'over',
        # a handshake under way
        'timer', 'on_secured', 'held', 'held_bytes', 'full', 'last', 'reading',
    )  # fmt: skip

    def __init__(self, buffers: Buffers) -> None:
        self.buffers: Buffers = buffers
        self.ssl: Any = buffers.ssl
        self.ssl_object: SSLObject = None  # type: ignore[assignment]  # None until connected
        self._incoming = b''  # buffered ciphertext; its first byte is always the first byte of a record
        self.on_secured: CallbackAndArgs = (None, ())
        # Writes that are waiting for the end of a handshake, in order. None when no handshake is under way.
        self.held: list[tuple[list[bytes], CallbackAndArgs]] | None = []
        self.held_bytes: int = 0
        self.full: bool = False  # a held write has returned False, so `on_drain` must follow
        self.last: Callable[[Any], None] | None = None  # write_eof or close, to be called after the held writes
        self.reading: bool = True  # whether the user wants to read when the handshake is done
        self.more: bool = False  # whether a completion will decrypt ciphertext that is buffered here
        self.over: bool = False  # the peer has ended the connection
        self.ended: bool = False  # the peer has sent its close_notify
        self.empty: int = 0  # records without data in a row; a long one counts several times
        self.timer: Timer | None = None  # the timer of the handshake

    def begin(self, context: SSLContext, server_side: bool, server_hostname: str | None) -> None:
        """Make the SSL object. Raise ValueError if `context` checks host names and `server_hostname` is None."""
        if context.check_hostname and not server_side and not server_hostname:
            raise ValueError('this ssl.SSLContext checks host names; give server_hostname=')
        buffers = self.buffers
        self.ssl_object = context.wrap_bio(buffers.incoming, buffers.outgoing, server_side, server_hostname)
        # The object inside an `SSLObject` has the same two methods, without a Python function around each.
        methods = getattr(self.ssl_object, '_sslobj', self.ssl_object)
        self._read, self._write = methods.read, methods.write

    @property
    def version(self) -> str | None:
        """The TLS version, such as `TLSv1.3`."""
        version: str | None = self._agreed('version')
        return version

    @property
    def cipher(self) -> str | None:
        """The name of the cipher."""
        cipher = self._agreed('cipher')
        return None if cipher is None else cipher[0]

    @property
    def alpn(self) -> str | None:
        """The protocol that was chosen by ALPN."""
        alpn: str | None = self._agreed('selected_alpn_protocol')
        return alpn

    @property
    def peer_certificate(self) -> Any:
        """The certificate of the peer, as `ssl.SSLSocket.getpeercert` returns it."""
        return self._agreed('getpeercert')

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The certificate of the peer, DER-encoded."""
        der: bytes | None = self._agreed('getpeercert', True)
        return der

    def _agreed(self, question: str, *args: Any) -> Any:
        try:
            return getattr(self.ssl_object, question)(*args)
        except (AttributeError, ValueError):
            return None  # not connected yet, or the handshake is not done

    @property
    def unread(self) -> bool:
        """Whether there is buffered ciphertext that has not been decrypted."""
        return self.more or bool(self._incoming)

    # -- input from the peer

    def received(self, data: bytes) -> None:
        """Buffer ciphertext from the peer; b'' is end of file."""
        if not data:
            self.over = True
        elif self._incoming:
            self._incoming += data
        else:
            self._incoming = data

    def drop_received(self) -> None:
        """Drop the buffered ciphertext: the connection has ended."""
        self._incoming, self.more = b'', False

    def shake_hands(self) -> bool:
        """Continue the handshake and return whether it is done. Raise SSLError if it has failed.

        Afterwards `more` says whether another record of the handshake is buffered.
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
            self._incoming = buffers.incoming.read() + self._incoming  # the first records with data
            return True
        self.more = record_end(self._incoming, 0) > 0
        if self.over and not self.more:
            # Raised outside the handler above: otherwise OpenSSL's error would become its context, and the traceback of
            # that error would keep the connection alive.
            raise self._cut_short()
        return False

    def decrypt_record(self, data: bytes) -> bytes | None:
        """Decrypt newly received `data` if it is one whole record of application data, as it nearly always is.

        OpenSSL calls no function of the user for such a record, so `buffers.inside` stays False. Returns b'' if the
        peer has ended its side, and None if `data` must be passed to `received` and `decrypt`. Raises SSLError for a
        record that has no data or is wrong: see `outcome`.
        """
        if self._incoming or self.held is not None:  # a record is incomplete, or a handshake is under way
            return None
        length, buffers = len(data) - HEADER, self.buffers
        if length <= 0 or data[0] != APPLICATION_DATA or data[3] << 8 | data[4] != length:
            return None
        incoming = buffers.incoming
        if incoming.pending or buffers.outgoing.pending:
            return None
        incoming.write(data)
        piece: bytes = self._read(length)
        if piece:
            self.empty = 0
        else:
            self.ended = True
        return piece

    def outcome(self, error: SSLError, length: int) -> SSLError | None:
        """Record that a record of `length` bytes had no data. Return the error if there was one."""
        if isinstance(error, self.ssl.SSLWantReadError):
            self.empty += 1 + length // EMPTY_WEIGHT
        elif isinstance(error, self.ssl.SSLZeroReturnError):  # raised instead of an empty read if our side has ended
            self.ended = True
        else:
            return error.with_traceback(None)
        return None

    def decrypt(self) -> tuple[list[bytes], SSLError | None]:
        """Decrypt a few records; return their plaintext, and the error of the next record or None.

        Afterwards `more` says whether another record is buffered, and `ended` whether the peer has ended its side.
        After a record without data, the remaining records wait for the next turn, because the peer decides how much
        work such a record causes.
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
        except self.ssl.SSLError as error:
            exc = self.outcome(error, length)
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
        exc.reason = 'UNEXPECTED_EOF_WHILE_READING'  # the reason that OpenSSL's own error has
        return exc

    # -- output for the peer

    def pending_output(self) -> bytes:
        """Take the bytes for the peer that OpenSSL's last call has made: handshake messages, alerts, key updates."""
        outgoing = self.buffers.outgoing
        return outgoing.read() if outgoing.pending else b''

    def encrypt_record(self, data: bytes) -> bytes:
        """Encrypt `data` if it fits into one record. Return b'' if it is too long or cannot be encrypted now."""
        outgoing, size = self.buffers.outgoing, len(data)
        if size > RECORD or not size or outgoing.pending:
            return b''
        try:
            self._write(data)
        except self.ssl.SSLError:
            return b''
        return outgoing.read()

    def encrypt(self, pieces: Iterable[bytes | memoryview]) -> list[bytes]:
        """Encrypt `pieces` and return the ciphertext in parts of about SLICE bytes.

        Raises SSLWantReadError, with nothing encrypted, if the peer has begun a new handshake.
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
        """End our side of the stream and return the record that says so: close_notify."""
        left = self.buffers.empty()
        try:
            self.ssl_object.unwrap()
        except self.ssl.SSLError:
            pass  # the peer has not yet ended its side
        said = self.pending_output()
        self.buffers.put_back(left)
        return said


def record_end(data: bytes, begin: int) -> int:
    """Return where the TLS record that begins at `begin` ends in `data`; 0 if it is incomplete.

    For bytes that cannot be a record, return the end of `data`, so that OpenSSL reports the error at once.
    """
    size = len(data)
    if size - begin < HEADER:
        return 0
    end = begin + HEADER + (data[begin + 3] << 8 | data[begin + 4])
    if end <= size:
        return end
    whole = data[begin] in RECORD_TYPES and data[begin + 1] == 3 and end - begin - HEADER <= LARGEST_RECORD
    return 0 if whole else size
