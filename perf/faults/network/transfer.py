"""One side of a faulty network: connections on which both ends send at the same time, and hash all data.

All data can be computed again from a seed, so received data can be checked even if the connection broke. Every
connection is reported; connections that had to be aborted at the timeout are reported as `hung`.
"""

import hashlib
import random
import ssl
import subprocess
import tempfile

import reactor

CHUNK = 1 << 16  # bytes in one write
BURST = 2  # the most writes per turn
PORT = 5000  # port of the listener
# The first connection has this local port, the second the next port, and so on, so both sides can identify them.
FIRST_PORT = 10000
SEED = 20
HEARTBEAT = 60  # seconds between two calls of a timer that keeps a side without connections running


class Pattern:
    """Endless bytes in chunks that are all different, so a lost, duplicated or reordered chunk changes the hash."""

    def __init__(self, role, port):
        self.block = random.Random(f'{SEED} {role} {port}').randbytes(2 * CHUNK)

    def chunk(self, index, size=CHUNK):
        start = index % CHUNK
        return (index.to_bytes(8, 'big') + self.block[start : start + CHUNK - 8])[:size]

    def digest(self, count):
        """Return the SHA-256 of the first `count` bytes."""
        sha = hashlib.sha256()
        for index in range(count // CHUNK):
            sha.update(self.chunk(index))
        sha.update(self.chunk(count // CHUNK, count % CHUNK))
        return sha.hexdigest()


class End:
    """One end of a connection: what it sent and received, its longest stall, and how it ended."""

    def __init__(self, side, port):
        self.side = side
        self.r = side.r
        self.port = port
        self.stream = side.streams[port - FIRST_PORT]
        self.pattern = Pattern(side.role, port)
        self.sent = self.received = 0
        self.sent_sha, self.received_sha = hashlib.sha256(), hashlib.sha256()
        self.began = self.moved = self.r.now
        self.stall = 0.0
        self.connected = self.eof = self.hung = False

    def on_connect(self, conn):
        self.connected = True
        self.moves()
        conn.on_data, conn.on_eof, conn.on_drain, conn.on_close = self.on_data, self.on_eof, self.fill, self.on_close
        conn.set_timeouts(**self.stream['timeouts'])
        self.fill(conn)

    def fill(self, conn):
        """Write until `write` returns False, at most BURST chunks per turn.

        After the last byte send EOF, unless the connection is to stay open.
        """
        total = self.stream['bytes']
        for _ in range(BURST):
            if conn.closed or self.sent == total:
                break
            data = self.pattern.chunk(self.sent // CHUNK, total - self.sent)
            self.sent += len(data)
            self.sent_sha.update(data)
            self.moves()
            if not conn.write(data):
                break
        else:
            self.r.call_soon(self.fill, conn)
        if self.sent == total and not self.stream['hold'] and not conn.closed:
            conn.write_eof()

    def on_data(self, conn, data):
        self.received += len(data)
        self.received_sha.update(data)
        self.side.received += len(data)
        self.moves()

    def on_eof(self, conn):
        self.eof = True
        self.moves()

    def on_close(self, conn, exc):
        self.moves()
        del self.side.open[conn]
        self.side.ended.append(
            {
                'port': self.port,
                'sent': self.sent,
                'sent_sha': self.sent_sha.hexdigest(),
                'received': self.received,
                'received_sha': self.received_sha.hexdigest(),
                'connected': self.connected,
                'eof': self.eof,
                'hung': self.hung,
                'error': exc and type(exc).__name__,
                'message': exc and str(exc),
                'seconds': self.r.now - self.began,
                'at': self.r.now,
                'stall': self.stall,
            }
        )

    def moves(self):
        """Record the length of the stall that ends now, because bytes were transferred or the connection ended."""
        now = self.r.now
        self.stall = max(self.stall, now - self.moved)
        self.moved = now


class Side:
    """One side of the transfer: all of its connections, in one process."""

    def __init__(self, r, role, streams, keepalive, tls):
        self.r = r
        self.options = {'keepalive': keepalive and tuple(keepalive), 'ssl': context(role) if tls else None}
        self.role = role
        self.streams = streams
        self.received = 0
        self.open = {}
        self.ended = []

    def listen(self, host):
        self.r.listen_tcp(host, PORT, on_connect=self.on_accepted, **self.options)

    def on_accepted(self, conn):
        end = self.open[conn] = End(self, conn.peername[1])
        end.on_connect(conn)

    def connect_all(self, host, source, timeout):
        for index in range(len(self.streams)):
            end = End(self, FIRST_PORT + index)
            conn = self.r.connect_tcp(
                host,
                PORT,
                on_connect=end.on_connect,
                on_close=end.on_close,
                timeout=timeout,
                local_address=(source, end.port),
                **self.options,
            )
            self.open[conn] = end

    def look(self):
        """Return the progress: the bytes received, and how many connections are open."""
        return {'received': self.received, 'open': len(self.open)}

    def ends(self):
        """Return how the connections ended."""
        return self.ended

    def give_up(self):
        """Abort the connections that are still open."""
        for conn, end in list(self.open.items()):
            end.hung = True
            conn.abort()


def listen(control, streams, host, keepalive, tls):
    """Run the side that listens at `host`.

    streams    for each connection, a dict as returned by `exchange.stream`
    keepalive  the option of `listen_tcp`
    tls        whether to use TLS
    """
    with reactor.Reactor() as r:
        side = Side(r, 'listen', streams, keepalive, tls)
        side.listen(host)
        work(control, r, side)


def connect(control, streams, host, keepalive, tls, source, timeout):
    """Run the side that connects to `host` from the address `source`, with a connect timeout in seconds."""
    with reactor.Reactor() as r:
        side = Side(r, 'connect', streams, keepalive, tls)
        side.connect_all(host, source, timeout)
        work(control, r, side)


def context(role):
    """Return a TLS context: with a new key for the role 'listen', without verification for 'connect'."""
    if role == 'connect':
        made = ssl.create_default_context()
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        return made
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        kind = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-subj', '/CN=listener')
        command = ['openssl', 'req', '-x509', *kind, '-days', '1', '-keyout', file.name, '-out', '-']
        certificate = subprocess.run(command, check=True, capture_output=True).stdout
        file.seek(0, 2)
        file.write(certificate)
        file.flush()
        made.load_cert_chain(file.name)
    return made


def work(control, r, side):
    control.attach(r, {'look': side.look, 'ends': side.ends, 'give_up': side.give_up})
    control.send('ready')
    r.call_every(HEARTBEAT, side.look)
    r.run()
