"""A server on the protocols and transports of asyncio. Ported in `port_from_asyncio.py`.

Run it:    python examples/asyncio_original.py              (--port 2528), with --cert and --key over TLS
Ask it:    nc -C 127.0.0.1 2528                             and type: say hello, later 0.5 hello, digest hello, flood 9
"""

import argparse
import asyncio
import hashlib
import signal
import ssl

LONGEST_LINE = 4096
PIECE = b'x' * 65536


def digest(text):
    return hashlib.pbkdf2_hmac('sha256', text, b'salt', 1000).hex().encode()


class Connection(asyncio.Protocol):
    def __init__(self, idle):
        self.loop = asyncio.get_running_loop()
        self.idle, self.rest, self.flood = idle, b'', 0

    def connection_made(self, transport):
        self.transport, self.paused = transport, False
        self.watchdog = self.loop.call_later(self.idle, transport.abort)
        self.say(b'ready, ' + transport.get_extra_info('peername')[0].encode())

    def data_received(self, data):
        self.watchdog.cancel()
        self.watchdog = self.loop.call_later(self.idle, self.transport.abort)
        *lines, self.rest = (self.rest + data).split(b'\r\n')
        if any(len(line) > LONGEST_LINE for line in [*lines, self.rest]):
            self.transport.abort()
            return
        for line in lines:
            if not self.transport.is_closing():
                self.line_received(line)

    def line_received(self, line):
        match line.split():
            case [b'say', text]:
                self.say(text)
            case [b'later', seconds, text]:
                self.loop.call_later(float(seconds), self.say, text)
            case [b'digest', text]:
                self.loop.run_in_executor(None, digest, text).add_done_callback(self.digested)
            case [b'flood', pieces]:
                self.flood = int(pieces)
                self.resume_writing()
            case [b'quit']:
                self.say(b'bye')
                self.transport.close()
            case _:
                self.say(b'what?')

    def digested(self, future):
        self.say(future.result())

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        while self.flood and not self.paused:
            self.flood -= 1
            self.transport.write(PIECE)

    def say(self, text):
        if not self.transport.is_closing():
            self.transport.write(text + b'\r\n')

    def eof_received(self):
        self.say(b'you have ended')  # and the transport closes

    def connection_lost(self, exc):
        self.watchdog.cancel()
        print(f'closed: {exc}', flush=True)


async def main(port, idle, tls):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(idle), '127.0.0.1', port, ssl=tls)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, ended.set)
    print(f'listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}', flush=True)
    await ended.wait()
    server.close()


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2528)
    options.add_argument('--idle', type=float, default=60, help='seconds of silence until a client is cut off')
    options.add_argument('--cert')
    options.add_argument('--key')
    args = options.parse_args()
    tls = None
    if args.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(args.cert, args.key)
    asyncio.run(main(args.port, args.idle, tls))
