"""The clients of a soak, good and hostile: one class for each kind of behaviour.

A good client succeeds only if it receives every byte that it was promised. A hostile client may end with any outcome in
`STATED`, but the server has to end it in time.
"""

from reactor.net.stream import Stream

from .common import STATED, TWICE, part, reason

LATEST = 6  # multiple of the server's patience after which a client that is still connected counts as too late
MEGABYTE = 1 << 20
# A message for each service; it can be cut off anywhere.
WORDS = {
    'echo': part(0, 100_000),
    'unix': part(0, 100_000),
    'tls': part(0, 100_000),
    'http': b'GET /20/50000\r\n\r\n' * 3,
    'download': b'write 4000000\n',
    'task': b'thread\nresolve\nraise\n',
}


class Client:
    """A connection of the driver, from start to end."""

    hostile = False
    service = 'echo'

    def __init__(self, driver):
        self.driver = driver
        self.r = driver.r
        self.random = driver.random
        self.patience = driver.patience
        self.began = self.r.now
        self.complete = False
        self.trouble = None  # the outcome, if it is not the reason passed to on_close
        self.position = self.random.randrange(MEGABYTE)  # where this client is in the stream of checked bytes
        self.timers = []
        self.later(LATEST * self.patience, self.too_late)
        self.conn = self.connect()

    def connect(self):
        return self.connect_to(self.service)

    def connect_to(self, service, **options):
        options = {'timeout': 4 * self.patience, 'on_data': self.on_data, 'on_close': self.on_close, **options}
        options = {'on_connect': self.on_connect, 'on_eof': self.on_eof, **options}
        if service == 'unix':
            return self.r.connect_unix(self.driver.ports[service], **options)
        host = 'localhost' if service == 'named' else '127.0.0.1'
        return self.r.connect_tcp(host, self.driver.ports[service], **options)

    def later(self, seconds, fn, *args):
        self.timers.append(self.r.call_later(seconds, fn, *args))

    def on_connect(self, conn):
        pass

    def on_data(self, conn, data):
        pass

    def on_eof(self, conn):
        conn.close()

    def on_close(self, conn, exc):
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
        self.conn = None
        self.driver.ended(self, self.outcome(exc))

    def outcome(self, exc):
        """Return the outcome in one or two words."""
        if self.trouble is not None:
            return self.trouble
        if exc is None:
            return 'success' if self.complete else 'clean' if self.hostile else 'cut short'
        return reason(exc)

    def acceptable(self, how):
        """Return whether the client may end with this outcome if nothing disturbed it."""
        if how in ('success', 'stopped'):
            return True
        return self.hostile and how in STATED and how != 'too late'

    def check(self, data):
        """Return whether these are the next bytes of the stream; abort if they are not."""
        at = self.position % MEGABYTE
        right = len(data) <= MEGABYTE and TWICE.startswith(data, at)
        self.position += len(data)
        if not right:
            self.end('wrong bytes')
        return right

    def too_late(self):
        self.end('too late')

    def end(self, trouble):
        """Abort the connection, and record this outcome."""
        if self.conn is not None:
            self.trouble = trouble
            self.conn.abort()


class Echo(Client):
    """Writes pieces, together or one by one, before or after it is connected; ends when all pieces are echoed."""

    services = ('echo', 'echo', 'named', 'unix', 'tls')
    sizes = (1, 20, 500, 20_000, 200_000)

    def connect(self):
        self.pieces = self.random.randint(1, 5)
        self.size = self.random.randint(1, self.random.choice(self.sizes))
        self.half_close = self.random.random() < 0.5
        self.at_once = self.random.random() < 0.3
        self.sent = self.position
        service = self.random.choice(self.services)
        conn = self.connect_to(service, ssl=self.driver.context if service == 'tls' else None)
        while self.pieces and self.at_once:
            self.send(conn)
        return conn

    def on_connect(self, conn):
        if not self.at_once:
            self.send(conn)

    def send(self, conn):
        if conn.closed:
            return
        conn.write(part(self.sent, self.size))
        self.sent += self.size
        self.pieces -= 1
        if not self.pieces and self.half_close:
            conn.write_eof()

    def on_data(self, conn, data):
        if not self.check(data) or self.position < self.sent:
            return
        if self.pieces:
            self.send_more(conn)
        else:
            self.complete = True
            if not self.half_close:
                conn.close()

    def send_more(self, conn):
        self.send(conn)


class SlowEcho(Echo):
    """An `Echo` that sends a few bytes at a time, with pauses."""

    sizes = (1, 20)

    def send_more(self, conn):
        self.later(self.random.random() * self.patience / 3, self.send, conn)


class Asking(Client):
    """Sends requests one after the other; each is answered after a delay."""

    service = 'http'

    def on_connect(self, conn):
        self.left = self.random.randint(1, 6)
        self.ask(conn)

    def ask(self, conn):
        self.size = self.random.randint(1, self.random.choice((100, 50_000)))
        self.head = b'%d\r\n' % self.size
        self.position = 0
        conn.write(b'GET /%d/%d\r\n\r\n' % (self.random.randint(0, 100), self.size))

    def on_data(self, conn, data):
        begin = min(len(self.head), len(data))
        if data[:begin] != self.head[:begin]:
            self.end('wrong bytes')
            return
        self.head = self.head[begin:]
        if not self.check(data[begin:]) or self.position < self.size:
            return
        self.left -= 1
        if self.left:
            self.ask(conn)
        else:
            self.complete = True
            conn.close()


class Download(Client):
    """Receives many bytes, sent by `write` or `send_file`, and pauses reading now and then."""

    service = 'download'
    rest = (0, 0, 0.01, 0.5)  # possible lengths of a pause in reading, as multiples of the patience

    def on_connect(self, conn):
        self.position, self.size = 0, self.random.randint(1, self.random.choice((10_000, MEGABYTE, 6 * MEGABYTE)))
        conn.write(b'%s %d\n' % (self.random.choice((b'file', b'write')), self.size))

    def on_data(self, conn, data):
        if not self.check(data):
            return
        if self.position == self.size:
            self.complete = True
            conn.close()
        elif seconds := self.random.choice(self.rest) * self.patience * self.rests():
            conn.pause_reading()
            self.later(seconds, conn.resume_reading)

    def rests(self):
        return self.random.random() < 0.02


class StalledDownload(Download):
    """Requests more than the kernel buffers, and does not read until long after the server should have aborted."""

    hostile = True

    def on_connect(self, conn):
        self.position, self.size = 0, 8 * MEGABYTE
        conn.write(b'%s %d\n' % (self.random.choice((b'file', b'write')), self.size))
        conn.pause_reading()
        self.later(self.random.uniform(2.5, 4) * self.patience, conn.resume_reading)

    def rests(self):
        return False


class SlowWriter(Client):
    """Sends a request that never ends, one byte at a time."""

    hostile = True
    service = 'http'

    def on_connect(self, conn):
        self.drip()

    def drip(self):
        if self.conn is not None and not self.conn.closed:
            self.conn.write(b'G')
            self.timers[1:] = []
            self.later(self.patience / 20, self.drip)


class LongRequest(Client):
    """Sends a request that is too long for the server's framing."""

    hostile = True
    service = 'http'

    def on_connect(self, conn):
        conn.write(self.random.randbytes(self.random.randint(5_000, 300_000)))


class Garbage(Client):
    """Sends the TLS port random bytes, the beginning of a handshake, or garbage after a complete handshake."""

    hostile = True

    def connect(self):
        handshake = self.random.random() < 0.3
        return self.connect_to('tls', ssl=self.driver.context if handshake else None)

    def on_connect(self, conn):
        garbage = self.random.randbytes(self.random.randint(1, 50_000))
        if self.random.random() < 0.5:
            garbage = b'\x16\x03\x01' + garbage[:100]  # this looks like the beginning of a handshake
        Stream.write(conn, garbage)  # unencrypted, because TLSStream.write is not called


class Silent(Client):
    """Sends nothing to a service that is waiting for data."""

    hostile = True

    def connect(self):
        return self.connect_to(self.random.choice(('echo', 'tls', 'http', 'task', 'unix')))


class Aborting(Client):
    """Sends part of a valid message, and resets the connection at a random point."""

    hostile = True

    def connect(self):
        service = self.random.choice(list(WORDS))
        words = WORDS[service]
        tls = service == 'tls' and self.random.random() < 0.7
        conn = self.connect_to(service, ssl=self.driver.context if tls else None)
        conn.write(words[: self.random.randint(0, len(words))])
        if self.random.random() < 0.3:
            self.later(self.random.random() * 0.1, self.reset)
        self.most = self.random.randint(1, 200_000)
        self.read = 0
        return conn

    def on_connect(self, conn):
        if self.random.random() < 0.3:
            self.reset()
        else:
            self.later(self.random.random() * 0.5, self.reset)

    def on_data(self, conn, data):
        self.read += len(data)
        if self.read >= self.most:
            self.reset()

    def reset(self):
        if self.conn is not None:
            self.conn.abort()


class Raising(Client):
    """Makes a callback of the server raise."""

    hostile = True
    words = (b'at once', b'at the end', b'written')

    def connect(self):
        self.asked = self.random.choice(('forgiving', 'unforgiving', 'raising', 'http'))
        return self.connect_to(self.asked)

    def on_connect(self, conn):
        conn.write(b'GET /raise/0\r\n\r\n' if self.asked == 'http' else self.random.choice(self.words))
        self.later(self.patience / 2, conn.write_eof)


class Firehose(Client):
    """Writes without reading, to a service that ignores back-pressure."""

    hostile = True
    service = 'careless'

    def on_connect(self, conn):
        conn.pause_reading()
        for index in range(12):
            conn.write(part(index, MEGABYTE))
        self.later(2 * self.patience, conn.resume_reading)


class Task(Client):
    """Makes the server work in a thread, look up a name, or start a child."""

    service = 'task'
    words = (b'thread', b'thread', b'raise', b'resolve', b'spawn')

    def connect(self):
        self.word = self.words[self.driver.opened['Task'] % len(self.words)]  # in turn: a few clients send all words
        return self.connect_to(self.service)

    def on_connect(self, conn):
        conn.write(self.word + b'\n')

    def on_data(self, conn, data):
        self.complete = data == b'done\n'
        if not self.complete:
            self.trouble = 'refused in words'
        conn.close()


class Refused(Client):
    """Connects to a port where nothing listens."""

    service = 'closed'

    def acceptable(self, how):
        return how == 'ECONNREFUSED'


class Datagrams(Client):
    """Sends a few datagrams that must be echoed, and others that make the server's callback raise."""

    def connect(self):
        self.left = self.random.randint(1, 5)
        conn = self.r.connect_udp('127.0.0.1', self.driver.ports['udp'], self.on_datagram, on_close=self.on_close)
        for _ in range(self.left):
            if self.random.random() < 0.2:
                conn.send(b'raise')
            conn.send(part(self.position, self.random.randint(1, 1400)))
        return conn

    def on_datagram(self, sock, data, address):
        self.left -= 1
        if not TWICE.startswith(data, self.position % MEGABYTE):
            self.end('wrong bytes')
        elif not self.left:
            self.complete = True
            sock.close()


class Held(Client):
    """One connection of a flood: stays open until `leave` is called."""

    hostile = True

    def on_eof(self, conn):
        conn.close()

    def leave(self):
        if self.conn is not None:
            self.conn.close() if self.random.random() < 0.5 else self.conn.abort()


# How often each kind of client is started, as relative weights.
WEIGHTS = {
    Echo: 30, SlowEcho: 6, Asking: 20, Download: 8, Task: 6, Datagrams: 6, Refused: 2,
    Aborting: 12, StalledDownload: 1, SlowWriter: 1, LongRequest: 2, Garbage: 4, Silent: 1, Raising: 4, Firehose: 1,
}  # fmt: skip
