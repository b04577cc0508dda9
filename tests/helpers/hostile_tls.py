"""A TLS peer that misbehaves, implemented on a plain stream, for simulated and for real sockets.

The ssl module has no function for a key update or a renegotiation, so `Engine` calls the OpenSSL that the module is
linked with. Where these calls are impossible, `Engine.missing` gives the reason, and the tests that need `Engine` are
skipped.
"""

from __future__ import annotations

import ctypes
import random
import ssl
from typing import Any

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ALLOW_CLIENT_RENEGOTIATION = 1 << 8  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION of OpenSSL 3.0, off by default
SSL_OF_SSLSOCKET, CONTEXT_OF_SSLSOCKET = 3, 4  # offsets in words within CPython's PySSLSocket


class Engine:
    """Functions of OpenSSL that Python does not offer; `missing` says why they cannot be called here."""

    def __init__(self) -> None:
        self.missing = ''
        try:
            import _ssl

            self._library = ctypes.CDLL(getattr(_ssl, '__file__', None))
            for name in ('SSL_key_update', 'SSL_renegotiate', 'SSL_do_handshake', 'SSL_version'):
                function = getattr(self._library, name)
                function.argtypes = [ctypes.c_void_p, ctypes.c_int][: 2 if name == 'SSL_key_update' else 1]
        except (ImportError, OSError, AttributeError) as exc:
            self.missing = f'no OpenSSL to call: {exc!r}'

    def _ssl_of(self, ssl_object: ssl.SSLObject) -> int:
        socket: Any = ssl_object._sslobj  # type: ignore[attr-defined]
        words = (ctypes.c_void_p * 5).from_address(id(socket))
        # Check the layout before the pointer is used, because the layout is private to CPython.
        if words[CONTEXT_OF_SSLSOCKET] != id(ssl_object.context):
            raise RuntimeError('the SSL of an ssl.SSLObject is not at the offset used by CPython 3.11 to 3.15')
        found = words[SSL_OF_SSLSOCKET]
        assert found is not None
        return found

    def update_keys(self, ssl_object: ssl.SSLObject, requested: bool) -> None:
        """Send a KeyUpdate (RFC 8446, 4.6.3); with `requested`, ask the peer to send one, too."""
        pointer = self._ssl_of(ssl_object)
        assert self._library.SSL_key_update(pointer, int(requested)) == 1
        self._library.SSL_do_handshake(pointer)

    def renegotiate(self, ssl_object: ssl.SSLObject) -> None:
        """Begin a new handshake; a server requests that the client begin it (RFC 5246, 7.4.1.1)."""
        pointer = self._ssl_of(ssl_object)
        self._library.SSL_renegotiate(pointer)
        self._library.SSL_do_handshake(pointer)
        ctypes.pythonapi.PyErr_Clear()


ENGINE = Engine()


class Peer:
    """One side of a TLS connection. A plain stream carries its bytes and has it as its `data`.

    After `join(conn)` the peer does the handshake; then `do(act)` performs one of ACTS. `heard` is the received data.
    """

    def __init__(self, context: ssl.SSLContext, server_side: bool, rng: random.Random) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side, None if server_side else 'localhost')
        self.rng = rng
        self.conn: Any = None
        self.record: Any = None  # the simulation's record of the connection, if there is one
        self.heard = bytearray()
        self.ready = self.over = False
        self.farewell = False  # whether close_notify was sent
        self._flips = False  # whether the next bytes are sent with one bit changed

    def join(self, conn: Any) -> None:
        """Begin the handshake on this connection."""
        self.conn = conn
        conn.data = self
        self.pump()

    def received(self, data: bytes) -> None:
        """Handle bytes from the other side."""
        self._incoming.write(data)
        self.pump()

    def pump(self) -> None:
        """Continue the handshake or read the data that has arrived; then send OpenSSL's output."""
        try:
            if not self.ready:
                self.tls.do_handshake()
                self.ready = True
            while data := self.tls.read(65536):
                self.heard += data
        except ssl.SSLError:
            pass  # OpenSSL is waiting for more bytes, or the connection has failed
        self.send()

    def send(self, most: int | None = None) -> None:
        """Send OpenSSL's output; with `most`, send only that many bytes and drop the rest."""
        data = bytearray(self._outgoing.read())
        if self._flips and len(data) > 5:
            data[self.rng.randrange(5, len(data))] ^= 1 << self.rng.randrange(8)
            self._flips = False
        if data and self.conn is not None and not self.conn.closed and not self.over:
            self.conn.write(bytes(data[:most]))

    def say(self, data: bytes) -> None:
        """Send data correctly."""
        if self.ready:
            try:
                self.tls.write(data)
            except ssl.SSLError:
                pass  # a new handshake is under way
            self.send()

    def do(self, act: str) -> None:
        """Perform one of ACTS."""
        if self.ready and self.conn is not None and not self.conn.closed and not self.over:
            try:
                getattr(self, '_' + act)()
            except ssl.SSLError:
                pass  # an earlier act makes this one impossible

    # -- misbehaviour

    def _end_connection(self, reset: bool = False) -> None:
        if reset:
            self.conn.abort()
        elif not self.over:
            self.conn.write_eof()
        self.over = True

    def _fin(self) -> None:
        """End the connection without a close_notify."""
        self._end_connection()

    def _reset(self) -> None:
        self._end_connection(reset=True)

    def _say_and_fin(self) -> None:
        """Send data and end the connection, so that both arrive in one turn."""
        self.say(b'last words\n')
        self._end_connection()

    def _flip(self) -> None:
        """Send a record with one wrong bit."""
        self._flips = True
        self.say(b'a record with a bit changed\n')

    def _flip_and_fin(self) -> None:
        self._flip()
        self._end_connection()

    def _cut(self) -> None:
        """End the connection in the middle of a record."""
        self.tls.write(bytes(self.rng.randrange(1, 20_000)))
        self.send(self.rng.randrange(1, 20))
        self._end_connection()

    def _stall(self) -> None:
        """Send half a record, and then nothing."""
        self.tls.write(bytes(1000))
        self.send(self.rng.randrange(1, 1000))
        self.over = True

    def _garbage(self) -> None:
        self.conn.write(self.rng.randbytes(self.rng.randrange(1, 300)))

    def _tiny(self) -> None:
        """Send many records of one byte, several of them in one segment."""
        for _ in range(self.rng.randrange(1, 200)):
            self.tls.write(b'.')
        self.send()

    def _close_notify(self) -> None:
        """End the TLS stream correctly."""
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self.farewell = True
        self.send()
        if self.rng.random() < 0.5:
            self._end_connection()

    def _politely(self) -> None:
        """Behave unusually but correctly: send small records or key updates, and then data."""
        if self.rng.random() < 0.5:
            for _ in range(20):
                self.tls.write(b'~')
        elif self.tls.version() == 'TLSv1.3':
            for _ in range(8):
                ENGINE.update_keys(self.tls, self.rng.random() < 0.5)
        self.send()
        self.say(b'polite\n')

    def _deaf(self) -> None:
        """Stop reading."""
        self.conn.pause_reading()

    def _keys(self) -> None:
        """Send one or many KeyUpdates, with or without asking the other side to send one, too."""
        if self.tls.version() == 'TLSv1.3':
            requested = self.rng.random() < 0.5
            for _ in range(self.rng.choice((1, 2, 40, 200))):
                ENGINE.update_keys(self.tls, requested)
            self.send()

    def _renegotiate(self) -> None:
        """Begin a new handshake, which in some cases is never continued."""
        if self.tls.version() == 'TLSv1.2':
            ENGINE.renegotiate(self.tls)
            self.send()
            if self.rng.random() < 0.3:
                self.over = True  # the handshake is never continued


ACTS = tuple(
    'fin reset say_and_fin flip flip_and_fin cut stall garbage tiny close_notify deaf keys renegotiate'.split()
)


def peer_callbacks(ended: Any = None) -> dict[str, Any]:
    """Return the callbacks of a plain stream whose `data` is a `Peer`; `ended(conn)` is called when it has ended."""

    def on_data(conn: Any, data: bytes) -> None:
        conn.data.received(data)

    def on_eof(conn: Any) -> None:
        conn.close()

    def on_close(conn: Any, exc: BaseException | None) -> None:
        if conn.data is not None:
            conn.data.conn = None
        if ended is not None:
            ended(conn)

    return {'on_data': on_data, 'on_eof': on_eof, 'on_close': on_close}
