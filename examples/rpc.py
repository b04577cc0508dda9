"""Remote calls as lines of JSON: a server that drains, and a client that stays connected; each call has a time limit.

    $ python examples/rpc.py
    listening on 127.0.0.1:4000

On SIGTERM the server answers the calls that it has, and ends. The client makes a call for each line of its input:

    $ echo add 1 2 | python examples/rpc.py --call
    add 1 2: 3
"""

import argparse
import json
import signal
from collections import deque
from functools import partial

import reactor
from reactor import framing

MOST_CALLS = 100  # of one client at once: then the server receives no further ones


def add(r, reply, *numbers):
    reply(sum(numbers))


def sleep(r, reply, seconds):
    r.call_later(seconds, reply, seconds)


METHODS = {'add': add, 'sleep': sleep}


def on_connect(conn):
    conn.data = 0  # how many calls are not answered yet


def on_call(conn, line):
    conn.data += 1
    conn.busy = True
    if conn.data == MOST_CALLS:
        conn.pause_reading()
    call = {}
    try:
        call = json.loads(line)
        METHODS[call['method']](conn.loop, partial(reply, conn, call['id']), *call['params'])
    except Exception as exc:
        reply(conn, call.get('id'), None, repr(exc))


def reply(conn, id, result, error=None):
    if not conn.closed:
        conn.write(json.dumps({'id': id, 'result': result, 'error': error}).encode() + b'\n')
        conn.data -= 1
        conn.busy = conn.data > 0
        conn.resume_reading()


def serve(r, port):
    server = r.listen_tcp('127.0.0.1', port, framing.lines(on_call), on_connect=on_connect, idle_timeout=600)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.drain, 10)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


class Client:
    """Calls the methods of a server. Calls wait for a connection, if there is none, within their time limit."""

    def __init__(self, r, port, timeout):
        self.requests = reactor.Requests(r, timeout=timeout)
        self.waiting = deque()
        self.up = False
        on_data = framing.lines(self.on_answer)
        connect = partial(r.connect_tcp, '127.0.0.1', port, on_data, timeout=5, keepalive=30)
        self.client = reactor.reconnect(connect, self.on_up, self.on_down, first=0.2, most=5)

    def call(self, on_done, method, *params):
        request = self.requests.add(on_done)
        self.waiting.append((request, {'id': request.id, 'method': method, 'params': params}))
        self.send()

    def send(self):
        while self.up and self.waiting:
            request, call = self.waiting.popleft()
            if not request.closed:  # it may have waited for too long
                self.client.conn.write(json.dumps(call).encode() + b'\n')

    def on_up(self, conn):
        self.up = True
        self.send()

    def on_down(self, conn, exc, delay):
        if self.up:  # otherwise no call was sent
            self.up = False
            self.requests.fail_all(exc)

    def on_answer(self, conn, line):
        answer = json.loads(line)
        if answer['error'] is None:
            self.requests.answer(answer['id'], answer['result'])
        else:
            self.requests.fail(answer['id'], RuntimeError(answer['error']))


def call_lines(r, port, timeout):
    """Make a call for each line of standard input."""

    def on_line(conn, line):
        method, *params = line.decode().split()
        client.call(partial(on_done, line.decode()), method, *map(json.loads, params))

    def on_done(line, answer, error):
        print(f'{line}: {answer if error is None else type(error).__name__}', flush=True)
        stop_at_end()

    def stop_at_end(*_):
        if stdin.closed and not client.requests:
            client.client.stop()

    client = Client(r, port, timeout)
    stdin = r.open_fd(0, framing.lines(on_line), closefd=False, on_close=stop_at_end)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=4000)
    options.add_argument('--call', action='store_true', help='call a method for each line of standard input')
    options.add_argument('--timeout', type=float, default=10, help='seconds for each call')
    given = options.parse_args()
    if given.call:
        reactor.run(lambda r: call_lines(r, given.port, given.timeout))
    else:
        reactor.run(lambda r: serve(r, given.port))
