"""A store of bytes on asynchat, with a terminator that changes; `port_from_asyncore_store.py` is the port.

Needs Python 3.11 or older.

    $ python3.11 examples/porting/asyncore_store_original.py
    listening on 127.0.0.1:2526

In another terminal:

    $ nc -C 127.0.0.1 2526
    put greeting 5
    hello
    stored
"""

import argparse
import asynchat
import asyncore
import signal

MOST = 1 << 20  # the largest size of a value, in bytes
LONGEST_LINE = 4096
stored = {}


class Server(asyncore.dispatcher):
    def __init__(self, port):
        super().__init__()
        self.create_socket()
        self.set_reuse_addr()
        self.bind(('127.0.0.1', port))
        self.listen(128)

    def handle_accepted(self, sock, address):
        Connection(sock)


class Connection(asynchat.async_chat):
    def __init__(self, sock):
        super().__init__(sock)
        self.set_terminator(b'\r\n')
        self.pieces, self.name = [], None

    def collect_incoming_data(self, data):
        self.pieces.append(data)
        if self.name is None and sum(map(len, self.pieces)) > LONGEST_LINE:
            self.close()

    def found_terminator(self):
        data, self.pieces = b''.join(self.pieces), []
        if self.name is not None:
            stored[self.name], self.name = data, None
            self.set_terminator(b'\r\n')
            self.push(b'stored\r\n')
            return
        match data.split():
            case [b'put', name, size] if size.isdigit() and 0 < int(size) <= MOST:
                self.name = name
                self.set_terminator(int(size))
            case [b'get', name]:
                value = stored.get(name, b'')
                self.push(b'%d\r\n' % len(value))
                self.push_with_producer(asynchat.simple_producer(value))
            case [b'quit']:
                self.close_when_done()
            case _:
                self.push(b'what?\r\n')


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2526)
    server = Server(options.parse_args().port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the program, like Ctrl-C
    try:
        print(f'listening on 127.0.0.1:{server.socket.getsockname()[1]}', flush=True)
        asyncore.loop()
    except KeyboardInterrupt:
        asyncore.close_all()
