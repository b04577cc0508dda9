"""An in-memory key-value server that speaks the protocol of Redis (RESP2).

    $ python examples/resp_server.py
    listening on 127.0.0.1:6380

In another terminal:

    $ redis-cli -p 6380 set greeting hello ex 60
    OK
    $ redis-cli -p 6380 get greeting
    "hello"

Nothing is stored on disk, and keys expire with the reactor's timers. A whole pipeline is answered with one write. A
chunk is split at all its line breaks at once, which is the fastest way. Only commands that arrive in several chunks, or
that have a line break in a value, are parsed piece by piece with `reactor.framing`. When a client does not read its
answers, the server stops reading from it. A subscriber that does not read is reset when 16 MiB are buffered for it
(`max_buffered`).
"""

import argparse
import signal

import reactor
from reactor.framing import Frames

CRLF = b'\r\n'
OK, NIL, PONG = b'+OK\r\n', b'$-1\r\n', b'+PONG\r\n'
MOST_ARGUMENTS = 1 << 16  # the largest number of arguments that a command may have
LARGEST = 16 << 20  # bytes: limit for all arguments of a command together, and for an answer
LONGEST_LINE = 1 << 16  # bytes: limit for an inline command, which a person types
LARGE = 4096  # bytes; before an answer that is longer than this, the answers collected so far are sent
SETTINGS = {b'save': b'', b'appendonly': b'no'}
LINES = {b'*%d' % count: 2 * count + 1 for count in range(1, 65)}  # maps a command's first line to its number of lines
SIZES = {b'$%d' % size: size for size in range(LARGE)}

store, expiry, channels = {}, {}, {}  # {key: value}, {key: timer}, {channel: {subscribed client: None}}


class Refused(Exception):
    """Raised by a command that is answered with an error."""


class Goodbye(Exception):
    """Raised by a command to have the connection closed after the answer."""


# -- from bytes to commands


def on_connect(conn):
    conn.data = Client(conn)


def on_data(conn, data):
    client = conn.data
    try:
        if client.unfinished:
            client.frames.feed(data)
            if (command := next(client.parser)) is None:
                return
            client.unfinished = False
            execute(client, command)
            data = client.frames.rest()
        run(client, data)
        client.flush()
    except (Goodbye, reactor.FrameTooLong) as exc:
        too_long = b'-ERR Protocol error: too big inline request\r\n'
        client.replies.append(exc.args[0] if isinstance(exc, Goodbye) else too_long)
        client.flush()
        conn.pause_reading()  # close() then drops unread bytes, which would otherwise reset the connection
        conn.close()


def on_drain(conn):
    conn.data.full = False
    conn.resume_reading()
    on_data(conn, b'')  # execute the commands of the pipeline that have not been executed yet


def on_close(conn, exc):
    if conn.data is not None:  # a connection can be closed before `on_connect` is called, for example by Ctrl-C
        conn.data.unsubscribe()


def run(client, data):
    """Run all commands in a chunk that starts at the beginning of a command."""
    lines = data.split(CRLF)
    begin, last = 0, len(lines) - 1
    while begin < last and not client.full:
        count = LINES.get(lines[begin])
        if count:
            end = begin + count
            if end > last:
                break  # the rest of the command has not been received
            at = begin + 1
            while at < end and SIZES.get(lines[at]) == len(lines[at + 1]):
                at += 2
            if at < end:
                break  # a value is large or contains a line break
            execute(client, lines[begin + 2 : end : 2])
        else:
            end, command = begin + 1, lines[begin].split()
            if not command or command[0][:1] == b'*' or b'\n' in lines[begin]:
                break
            execute(client, command)
        begin = end
    if begin < last or lines[last]:
        client.frames.feed(CRLF.join(lines[begin:]))
        while not client.full and (command := next(client.parser)) is not None:
            execute(client, command)
        client.unfinished = True


def parse(frames):
    """Generate the commands in the frames; generate None when the next command is not complete."""
    while True:
        while (line := frames.line(LONGEST_LINE)) is None:
            yield None
        command, room = [], LARGEST
        if line[:1] != b'*':
            line, command = b'*0', line.split()
        for _ in range(number(line, MOST_ARGUMENTS, b'invalid multibulk length')):
            while (line := frames.line(LONGEST_LINE)) is None:
                yield None
            if line[:1] != b'$':
                raise Goodbye(b"-ERR Protocol error: expected '$', got %a\r\n" % line[:1].decode('latin-1'))
            size = number(line, room, b'invalid bulk length')
            room -= size
            while (piece := frames.exactly(size + 2)) is None:
                yield None
            command.append(piece[:-2])
        if command:
            yield command


def number(line, most, error):
    if len(line) > 10 or not line[1:].isdigit() or int(line[1:]) > most:
        raise Goodbye(b'-ERR Protocol error: %b\r\n' % error)
    return int(line[1:])


def execute(client, command):
    name = command[0]
    fn = client.commands.get(name) or client.commands.get(name.upper())
    try:
        reply = fn(client, *command[1:]) if fn else client.unknown(name)
    except TypeError as exc:
        if exc.__traceback__.tb_next is not None:
            raise  # a bug inside the command, which was called with the right number of arguments
        reply = b"-ERR wrong number of arguments for '%b' command\r\n" % name.lower()
    except Refused as exc:
        reply = b'-ERR %b\r\n' % exc.args[0]
    client.replies.append(reply)


# -- the commands


def bulk(value):
    return NIL if value is None else b'$%d\r\n%b\r\n' % (len(value), value)


def integer(text):
    if len(text) < 20 and text.removeprefix(b'-').isdigit():
        return int(text)
    raise Refused(b'value is not an integer or out of range')


def keep(key, value):
    store[key] = value
    if key in expiry:
        expiry.pop(key).cancel()


def drop(key):
    if key in expiry:
        expiry.pop(key).cancel()
    return store.pop(key, None) is not None


class Client:
    """One connection. Its methods are the commands; they return the answers."""

    def __init__(self, conn):
        self.conn = conn
        self.commands = COMMANDS
        self.channels = {}
        self.replies = []  # answers that have not been sent yet
        self.full = False  # True: the client has to read its answers before the pipeline continues
        self.frames = Frames(LARGEST + 2)
        self.parser = parse(self.frames)
        self.unfinished = False  # True: the frames contain a command or a part of a command

    def flush(self):
        if self.replies and not self.conn.write(b''.join(self.replies)):
            self.full = True
            self.conn.pause_reading()
        self.replies.clear()

    def unknown(self, name):
        if self.channels:
            raise Refused(b'only SUBSCRIBE, UNSUBSCRIBE, PING and QUIT are allowed while subscribed')
        return b'-ERR unknown command %a\r\n' % name[:128].decode('latin-1')

    def ping(self, text=None):
        if self.channels:
            return b'*2\r\n$4\r\npong\r\n' + bulk(text or b'')
        return PONG if text is None else bulk(text)

    def echo(self, text):
        return bulk(text)

    def get(self, key):
        value = store.get(key)
        if value is None:
            return NIL
        if len(value) > LARGE:
            self.flush()
        return b'$%d\r\n%b\r\n' % (len(value), value)

    def set(self, key, value, *options):
        if not options and key not in expiry:  # the common case
            store[key] = value
            return OK
        seconds = present = None
        options = iter(options)
        for option in map(bytes.upper, options):
            if option in (b'EX', b'PX') and seconds is None:
                seconds = integer(next(options, b'')) / (1 if option == b'EX' else 1000)
                if not 0 < seconds < 1e10:
                    raise Refused(b"invalid expire time in 'set' command")
            elif option in (b'NX', b'XX') and present is None:
                present = option == b'XX'
            else:
                raise Refused(b'syntax error')
        if present is not None and present != (key in store):
            return NIL
        keep(key, value)
        if seconds is not None:
            self.expire_in(key, seconds)
        return OK

    def mset(self, *pairs):
        if not pairs or len(pairs) % 2:
            raise Refused(b"wrong number of arguments for 'mset' command")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            keep(key, value)
        return OK

    def mget(self, key, *keys):
        values = [store.get(key) for key in (key, *keys)]
        if sum(len(value or b'') for value in values) > LARGEST:
            raise Refused(b'the answer would be too large')
        self.flush()
        return b'*%d\r\n%b' % (len(values), b''.join(map(bulk, values)))

    def incr(self, key):
        value = integer(store.get(key, b'0')) + 1
        store[key] = b'%d' % value
        return b':%d\r\n' % value

    def delete(self, key, *keys):
        return b':%d\r\n' % sum(map(drop, (key, *keys)))

    def exists(self, key, *keys):
        return b':%d\r\n' % sum(key in store for key in (key, *keys))

    def expire(self, key, seconds):
        seconds = integer(seconds)
        if key not in store:
            return b':0\r\n'
        if seconds > 0:
            self.expire_in(key, min(seconds, 1e10))
        else:
            drop(key)
        return b':1\r\n'

    def expire_in(self, key, seconds):
        if key in expiry:
            expiry.pop(key).cancel()
        expiry[key] = self.conn.loop.call_later(seconds, drop, key)

    def ttl(self, key):
        if key in expiry:
            return b':%d\r\n' % round(expiry[key].deadline - self.conn.loop.now)
        return b':-1\r\n' if key in store else b':-2\r\n'

    def subscribe(self, first, *names):
        replies = []
        for name in (first, *names):
            channels.setdefault(name, {})[self] = self.channels[name] = None
            replies.append(b'*3\r\n$9\r\nsubscribe\r\n%b:%d\r\n' % (bulk(name), len(self.channels)))
        self.commands = SUBSCRIBED
        return b''.join(replies)

    def unsubscribe(self, *names):
        replies = []
        for name in names or tuple(self.channels) or (None,):
            if name in self.channels:
                del self.channels[name], channels[name][self]
                if not channels[name]:
                    del channels[name]
            replies.append(b'*3\r\n$11\r\nunsubscribe\r\n%b:%d\r\n' % (bulk(name), len(self.channels)))
        self.commands = SUBSCRIBED if self.channels else COMMANDS
        return b''.join(replies)

    def publish(self, name, text):
        subscribers = [client.conn for client in channels.get(name, ()) if not client.conn.closed]
        message = b'*3\r\n$7\r\nmessage\r\n%b%b' % (bulk(name), bulk(text))
        for conn in subscribers:
            conn.write(message)
        return b':%d\r\n' % len(subscribers)

    def config(self, what, *names):
        if what.upper() != b'GET':
            raise Refused(b'only CONFIG GET is known')
        known = [(name, SETTINGS[name.lower()]) for name in names if name.lower() in SETTINGS]
        return b'*%d\r\n%b' % (2 * len(known), b''.join(bulk(name) + bulk(value) for name, value in known))

    def info(self, *sections):
        facts = {**self.conn.loop.stats().as_dict(), 'keys': len(store), 'expires': len(expiry)}
        return bulk('\r\n'.join(['# reactor', *(f'{name}:{value}' for name, value in facts.items()), '']).encode())

    def select(self, number):
        if integer(number) != 0:
            raise Refused(b'DB index is out of range')
        return OK

    def command(self, *arguments):
        return b'*0\r\n'  # an empty list of commands: redis-cli uses the list only to complete names

    def quit(self):
        self.unsubscribe()
        raise Goodbye(OK)


def table(names):
    return {name.upper().encode(): getattr(Client, name) for name in names.split()}


SUBSCRIBED = table('subscribe unsubscribe ping quit')  # the commands that a subscriber can use
COMMANDS = table('get set mset mget incr exists expire ttl echo publish config info select command')
COMMANDS |= SUBSCRIBED | {b'DEL': Client.delete}


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, on_data, on_connect=on_connect, on_drain=on_drain, on_close=on_close)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=6380)
    port = options.parse_args().port
    reactor.run(lambda r: main(r, port))
    print('bye')
