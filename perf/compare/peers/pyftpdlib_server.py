"""A server on pyftpdlib's IOLoop, which runs handlers like asyncore's on its own epoll loop and heap of timers.

Write events are requested only while part of a reply remains to be sent.
"""

import socket

from common import CHUNK, LARGE_REPLY, LAST_REPLY, LATE_REPLY, MESSAGE, REPLY, arguments, listening
from pyftpdlib.ioloop import Acceptor, AsyncChat, IOLoop


class Reply(AsyncChat):
    def handle_read(self):
        if self.recv(65536):
            self.send(REPLY)


class ReplyAndClose(Reply):
    def handle_read(self):
        if self.recv(65536):
            self.send(LAST_REPLY)
            self.close()


class ReplyLarge(Reply):
    reply, again, rest = memoryview(LARGE_REPLY), b'', b''

    def writable(self):
        return bool(self.rest)

    def handle_read(self):
        if self.recv(65536):
            self.rest = self.reply
            self.modify_ioloop_events(loop.READ | loop.WRITE)

    def handle_write(self):
        self.rest = self.rest[self.send(self.rest) :] or self.again
        if not self.rest:
            self.modify_ioloop_events(loop.READ)


class Pump(ReplyLarge):
    reply = again = memoryview(CHUNK)


class ReplyLate(Reply):
    def handle_read(self):
        if self.recv(65536):
            loop.call_later(delay, self.answer)

    def answer(self):
        self.send(LATE_REPLY)
        self.close()


class Broadcast(Reply):
    def handle_read(self):
        if self.recv(65536):
            for member in loop.socket_map.values():
                if member is not acceptor:
                    member.send(MESSAGE)


class Server(Acceptor):
    def handle_accepted(self, sock, address):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kinds[workload](sock, loop)


kinds = {'keepalive': Reply, 'churn': ReplyAndClose, 'large': ReplyLarge, 'pump': Pump}
kinds |= {'seed': ReplyLate, 'pending': ReplyLate, 'broadcast': Broadcast}
port, workload, delay = arguments()
loop = IOLoop()
acceptor = Server(ioloop=loop)
acceptor.create_socket(socket.AF_INET, socket.SOCK_STREAM)
acceptor.bind(('127.0.0.1', port))
acceptor.listen(4096)
listening(acceptor.socket.getsockname())
loop.loop()
