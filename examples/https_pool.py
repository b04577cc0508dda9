"""A pool of HTTPS connections, with h11 (`pip install h11`). The time limit of a request includes its wait for one.

It gets each path that you type from one server, over up to four connections, until Ctrl-D:

    $ python examples/https_pool.py example.org
    /
    /: 200, 559 bytes
"""

import argparse
import ssl
from collections import deque
from functools import partial

import h11

import reactor
from reactor import framing

MOST_BYTES = 1 << 24  # of one answer


class Get:
    """A request: its path, its place in the table, and what was received of its answer."""

    def __init__(self, path, on_done):
        self.path = path
        self.on_done = on_done
        self.request = self.conn = self.status = None
        self.body = bytearray()


class Session:
    """The `data` of a connection: its HTTP state, its request if it has one, and whether it has served one before."""

    def __init__(self):
        self.http = h11.Connection(h11.CLIENT)
        self.get = None
        self.used = False


class Pool:
    """Connections to one server."""

    def __init__(self, r, host, port, context, size=4, timeout=10):
        self.r = r
        self.host = host
        self.port = port
        self.context = context
        self.size = size
        self.requests = reactor.Requests(r, timeout=timeout, max_pending=1000)
        self.waiting = deque()
        self.idle = []
        self.open = set()

    def get(self, path, on_done):
        """Call `on_done(get, error)`; `get` has the status and the body. Raises TooManyRequests if 1,000 wait."""
        get = Get(path, on_done)
        get.request = self.requests.add(partial(self.on_done, get))
        self.waiting.append(get)
        self.send()

    def close(self):
        for conn in list(self.open):
            conn.close()

    def send(self):
        while self.waiting and (self.idle or len(self.open) < self.size):
            get = self.waiting.popleft()
            if not get.request.closed:  # it may have waited for too long
                get.conn = conn = self.idle.pop() if self.idle else self.connect(get.request.time_left)
                conn.data.get = get
                http = conn.data.http
                headers = {'Host': self.host, 'User-Agent': 'reactor'}
                conn.write(http.send(h11.Request(method='GET', target=get.path, headers=list(headers.items()))))
                http.send(h11.EndOfMessage())

    def connect(self, timeout):
        callbacks = {'on_eof': self.on_eof, 'on_close': self.on_close}
        conn = self.r.connect_tcp(
            self.host, self.port, self.on_data, ssl=self.context, timeout=timeout, idle_timeout=60, **callbacks
        )
        conn.data = Session()
        self.open.add(conn)
        return conn

    def on_data(self, conn, data):
        session = conn.data
        session.http.receive_data(data)
        while session.get is not None:
            event = session.http.next_event()
            if event is h11.NEED_DATA:
                return
            if isinstance(event, h11.Response):
                session.get.status = event.status_code
            elif isinstance(event, h11.Data):
                session.get.body += event.data
                if len(session.get.body) > MOST_BYTES:
                    conn.abort(ValueError('the answer is too long'))
                    return
            elif isinstance(event, h11.EndOfMessage):
                self.finish(conn, session)

    def finish(self, conn, session):
        get, session.get, session.used = session.get, None, True
        self.requests.answer(get.request.id, get)
        if session.http.our_state is session.http.their_state is h11.DONE:
            session.http.start_next_cycle()
            self.idle.append(conn)
            self.send()
        else:
            conn.close()

    def on_eof(self, conn):
        if conn.data.get is not None:
            self.on_data(conn, b'')
        conn.close()

    def on_close(self, conn, exc):
        self.open.discard(conn)
        if conn in self.idle:
            self.idle.remove(conn)
        get = conn.data.get
        if get is not None and not get.request.closed:
            if conn.data.used and get.status is None:
                self.waiting.appendleft(get)  # the server closed an idle connection when the request was on its way
            else:
                self.requests.fail(get.request.id, exc or ConnectionError('the server has closed the connection'))
        self.send()

    def on_done(self, get, answer, error):
        if error is not None and get.conn is not None:
            get.conn.abort()  # the rest of the answer must not be taken for that of another request
        get.conn = None
        get.on_done(get, error)


def get_lines(r, pool):
    """Get the path on each line of standard input."""

    def on_done(get, error):
        shown = type(error).__name__ if error is not None else f'{get.status}, {len(get.body)} bytes'
        print(f'{get.path}: {shown}', flush=True)
        stop_at_end()

    def stop_at_end(*_):
        if stdin.closed and not pool.requests:
            pool.close()

    on_line = framing.lines(lambda conn, line: pool.get(line.decode(), on_done))
    stdin = r.open_fd(0, on_line, closefd=False, on_close=stop_at_end)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('host')
    options.add_argument('--port', type=int, default=443)
    options.add_argument('--timeout', type=float, default=10, help='seconds for each request')
    options.add_argument('--authority', help='file with the certificates to trust, instead of those of the system')
    given = options.parse_args()
    tls = ssl.create_default_context(cafile=given.authority)
    reactor.run(lambda r: get_lines(r, Pool(r, given.host, given.port, tls, timeout=given.timeout)))
