"""Send PostgreSQL's notifications (LISTEN and NOTIFY) to WebSocket clients, with psycopg 3 and websockets; no threads.

    $ pip install 'psycopg[binary]' websockets && apt-get install postgresql
    $ PYTHONPATH=. python3 examples/recipes/postgres_notify.py 'hostaddr=127.0.0.1 user=postgres' news
    listening on 127.0.0.1:8091

The clients receive what `psql -c "NOTIFY news, 'hello'"` sends, as {"channel": "news", "payload": "hello"}.

Their first message is {"gap": "none"}, or {"gap": "began", "why": ...} while there is no connection to the server; they
receive the latter also when the connection ends. The recipe connects again, after a delay of up to 0.2 s that grows up
to 5 s. Then they receive {"gap": "ended", "seconds": ...}, and must read the table themselves if they need what was
sent meanwhile: PostgreSQL keeps no notification for a listener that is not connected. To notice a server that
disappears without closing its connections, add `keepalives_idle=30 keepalives_interval=10 keepalives_count=3` to the
conninfo.

Measured with PostgreSQL 15.18, psycopg 3.3.9 and websockets 17.4: 10,000 notifications, 2,500 a second, while the
server was killed with `kill -9` and started again 0.5 s later. In seven such runs, 6,919 to 9,919 arrived. The others
were sent during the reported gap of 0.7 to 1.9 s; none was lost outside it. Without notifications, the program wakes up
once a second.
"""

import argparse
import json
import random
import time

import psycopg
from psycopg import generators, pq
from psycopg.waiting import Ready
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

import reactor


class Listener:
    """Keeps a connection to PostgreSQL. `report` is called with each notification, and when a gap begins or ends."""

    def __init__(self, r, conninfo, channels, report, timeout):
        self.r, self.conninfo, self.channels, self.report, self.timeout = r, conninfo, channels, report, timeout
        self.delay = 0.1  # the next attempt follows after at most this many seconds
        self.gap, self.gap_since = {'gap': 'began', 'why': 'not connected yet'}, time.monotonic()
        self.connect()

    def connect(self):
        self.pgconn = self.watch = None
        self.steps = self.receive()
        self.timer = self.r.call_later(self.timeout, self.down, f'no answer within {self.timeout} s')
        self.advance(None)

    def receive(self):
        """Connect, listen and receive. A generator like those of psycopg: it yields what to wait for."""
        self.pgconn = yield from generators.connect(self.conninfo)
        self.pgconn.notify_handler = self.on_notify
        names = (bytes(pq.Escaping(self.pgconn).escape_identifier(name.encode())) for name in self.channels)
        self.pgconn.send_query(b';'.join(b'LISTEN ' + name for name in names))
        for result in (yield from generators.execute(self.pgconn)):
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.OperationalError(result.get_error_message())
        self.up()
        while True:
            yield from generators.notifies(self.pgconn)  # calls `on_notify`

    def advance(self, ready):
        """Run the generator until it waits for the socket again."""
        if self.watch is not None:
            self.watch.close()  # first, because libpq may close its socket in this step, and open another one
        try:
            wanted = self.steps.send(ready)
        except psycopg.Error as exc:
            return self.down(str(exc).strip())
        fd, events = wanted if isinstance(wanted, tuple) else (self.pgconn.socket, wanted)
        self.watch = self.r.watch_fd(fd, int(events), lambda watch, event: self.advance(Ready(event)))

    def up(self):
        self.timer.cancel()
        self.delay = 0.1
        if self.gap is not None:
            self.gap = None
            self.report({'gap': 'ended', 'seconds': round(time.monotonic() - self.gap_since, 3)})

    def down(self, why):
        self.timer.cancel()
        self.watch = self.watch and self.watch.close()
        self.steps.close()
        if self.pgconn is not None:
            self.pgconn.finish()
        began = self.gap is None
        self.gap = {'gap': 'began', 'why': why}
        if began:
            self.gap_since = time.monotonic()
            self.report(self.gap)
        self.delay = min(2 * self.delay, 5)
        self.timer = self.r.call_later(random.uniform(0, self.delay), self.connect)

    def on_notify(self, notify):
        if self.gap is not None:
            self.up()  # a notification may arrive before the result of LISTEN
        self.report({'channel': notify.relname.decode(), 'payload': notify.extra.decode()})


def main(r, conninfo, channels, port, timeout):
    clients = set()

    def report(message):
        data = json.dumps(message).encode()
        for conn in clients:
            send(conn, data)

    def send(conn, data):
        if conn.data.state is State.OPEN and not conn.closed:
            conn.data.send_text(data)
            flush(conn)

    def flush(conn):
        for data in conn.data.data_to_send():
            conn.write(data) if data else conn.close()

    def on_connect(conn):
        conn.data = ServerProtocol(max_size=1024)

    def on_data(conn, data):
        """Answer handshakes, pings and close frames; everything else that clients send is dropped."""
        conn.data.receive_data(data)
        for event in conn.data.events_received():
            if isinstance(event, Request):
                conn.data.send_response(conn.data.accept(event))
                clients.add(conn)
                send(conn, json.dumps(listener.gap or {'gap': 'none'}).encode())
        flush(conn)

    # A client that reads too slowly is disconnected when 1 MiB is waiting for it.
    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, max_buffered=1 << 20, keepalive=60,
                          on_close=lambda conn, exc: clients.discard(conn))  # fmt: skip
    listener = Listener(r, conninfo, channels, report, timeout)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('conninfo', help="of libpq; an address (hostaddr=), because libpq's look-up of a name blocks")
    options.add_argument('channels', nargs='+')
    options.add_argument('--port', type=int, default=8091)
    options.add_argument('--timeout', type=float, default=10, help='seconds until PostgreSQL must have accepted LISTEN')
    args = options.parse_args()
    try:
        reactor.run(lambda r: main(r, **vars(args)))
    except KeyboardInterrupt:
        print('bye')
