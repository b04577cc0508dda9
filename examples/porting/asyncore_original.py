"""A small command server on asyncore and asynchat; `port_from_asyncore.py` is the port. Needs Python 3.11 or older.

    $ python3.11 examples/porting/asyncore_original.py
    listening on 127.0.0.1:2525

In another terminal:

    $ nc -C 127.0.0.1 2525
    220 ready
    say hello
    250 hello
"""

import argparse
import asynchat
import asyncore
import signal

LONGEST_LINE = 4096


class Server(asyncore.dispatcher):
    def __init__(self, port):
        super().__init__()
        self.create_socket()
        self.set_reuse_addr()
        self.bind(('127.0.0.1', port))
        self.listen(128)

    def handle_accepted(self, sock, address):
        Connection(sock).push(b'220 ready\r\n')


class Connection(asynchat.async_chat):
    def __init__(self, sock):
        super().__init__(sock)
        self.set_terminator(b'\r\n')
        self.line, self.count = b'', 0

    def collect_incoming_data(self, data):
        self.line += data
        if len(self.line) > LONGEST_LINE:
            self.close()

    def found_terminator(self):
        command, _, text = self.line.partition(b' ')
        self.line, self.count = b'', self.count + 1
        if command.lower() == b'say':
            self.push(b'250 ' + text.strip() + b'\r\n')
        elif command.lower() == b'count':
            self.push(b'250 %d\r\n' % self.count)
        elif command.lower() == b'quit':
            self.push(b'221 bye\r\n')
            self.close_when_done()
        else:
            self.push(b'500 unknown\r\n')


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2525)
    server = Server(options.parse_args().port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the program, like Ctrl-C
    try:
        print(f'listening on 127.0.0.1:{server.socket.getsockname()[1]}', flush=True)
        asyncore.loop()
    except KeyboardInterrupt:
        asyncore.close_all()
