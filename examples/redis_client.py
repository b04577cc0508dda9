"""A Redis client: commands, publish and subscribe. It stays connected, and subscribes again after each connection.

It sends each line that you type as a command:

    $ python examples/redis_client.py
    PING
    PING: PONG

A line such as SUBSCRIBE news prints the messages of a channel. Ctrl-D ends the program.
"""

import argparse
from collections import deque
from functools import partial

import reactor
from reactor import framing

MOST_BYTES = 1 << 20  # of one value


class RedisError(Exception):
    """The answer of Redis to a wrong command."""


def encode(words):
    return b'*%d\r\n' % len(words) + b''.join(b'$%d\r\n%b\r\n' % (len(word), word) for word in words)


def read_answer(frames):
    """Take an answer from the received bytes. A generator, which stops at each point where bytes are missing."""
    while (line := frames.line()) is None:
        yield
    kind, text = line[:1], line[1:]
    if kind == b'$' and text != b'-1':
        while (value := frames.exactly(int(text) + 2)) is None:
            yield
        return value[:-2]
    if kind == b'*' and text != b'-1':
        items = []
        for _ in range(int(text)):
            items.append((yield from read_answer(frames)))
        return items
    return RedisError(text.decode()) if kind == b'-' else int(text) if kind == b':' else text if kind == b'+' else None


def on_data(conn, data):
    """Pass each answer to `conn.data`, whose `frames` hold the bytes that were not parsed yet."""
    client = conn.data
    client.frames.feed(data)
    while not conn.closed:
        try:
            next(client.parser)
            return
        except StopIteration as done:
            client.parser = read_answer(client.frames)
            client.on_answer(done.value)


class Connection:
    """What commands and subscriptions have in common: a connection that is made again whenever it ends."""

    def __init__(self, r, port):
        connect = partial(r.connect_tcp, '127.0.0.1', port, on_data, timeout=5, keepalive=30)
        self.up = False
        self.client = reactor.reconnect(connect, self.on_up, self.on_down, first=0.2, most=5)

    def on_up(self, conn):
        conn.data = self
        self.frames = framing.Frames(MOST_BYTES)
        self.parser = read_answer(self.frames)
        self.up = True

    def on_down(self, conn, exc, delay):
        self.up = False


class Commands(Connection):
    """Sends commands, and passes the answers on. Commands wait for a connection, within their time limit."""

    def __init__(self, r, port, timeout):
        self.requests = reactor.Requests(r, timeout=timeout)
        self.waiting = deque()
        self.sent = deque()  # Redis answers in order
        super().__init__(r, port)

    def send(self, on_done, *words):
        self.waiting.append((self.requests.add(on_done), words))
        self.flush()

    def flush(self):
        while self.up and self.waiting:
            request, words = self.waiting.popleft()
            if not request.closed:  # it may have waited for too long
                self.sent.append(request.id)
                self.client.conn.write(encode(words))

    def on_up(self, conn):
        super().on_up(conn)
        self.flush()

    def on_down(self, conn, exc, delay):
        if self.up:  # otherwise no command was sent
            self.requests.fail_all(exc)
        self.sent.clear()
        super().on_down(conn, exc, delay)

    def on_answer(self, answer):
        finish = self.requests.fail if isinstance(answer, RedisError) else self.requests.answer
        finish(self.sent.popleft(), answer)


class Subscriptions(Connection):
    """Calls `on_message(channel, message)`. A channel stays subscribed, whatever happens to the connection."""

    def __init__(self, r, port, on_message):
        self.channels = []
        self.on_message = on_message
        super().__init__(r, port)

    def subscribe(self, channel):
        self.channels.append(channel)
        if self.up:
            self.client.conn.write(encode([b'SUBSCRIBE', channel]))

    def on_up(self, conn):
        super().on_up(conn)
        if self.channels:
            conn.write(encode([b'SUBSCRIBE', *self.channels]))

    def on_answer(self, answer):
        self.on_message(*answer[:3])


def send_lines(r, port, timeout):
    """Send each line of standard input as a command."""

    def on_line(conn, line):
        words = line.split()
        if words[0] == b'SUBSCRIBE':
            subscriptions.subscribe(words[1])
        else:
            commands.send(partial(on_done, line.decode()), *words)

    def on_done(line, answer, error):
        shown = answer if error is None else error if isinstance(error, RedisError) else type(error).__name__
        print(f'{line}: {shown.decode() if isinstance(shown, bytes) else shown}', flush=True)
        stop_at_end()

    def on_message(kind, channel, message):
        print(kind.decode(), channel.decode(), message if isinstance(message, int) else message.decode(), flush=True)

    def stop_at_end(*_):
        if stdin.closed and not commands.requests:
            commands.client.stop()
            subscriptions.client.stop()

    commands = Commands(r, port, timeout)
    subscriptions = Subscriptions(r, port, on_message)
    stdin = r.open_fd(0, framing.lines(on_line), closefd=False, on_close=stop_at_end)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=6379)
    options.add_argument('--timeout', type=float, default=10, help='seconds for each command')
    given = options.parse_args()
    reactor.run(lambda r: send_lines(r, given.port, given.timeout))
