"""A server on asyncore, with dispatchers over poll(2) and without timers.

Up to Python 3.11, asyncore is part of the standard library; for later versions there is the package pyasyncore.

This is the echo example from asyncore's documentation, with a buffer only where the kernel may not accept the whole
reply.
"""

import asyncore
import socket

from common import CHUNK, LARGE_REPLY, LAST_REPLY, MESSAGE, REPLY, arguments, listening


class Reply(asyncore.dispatcher):
    def writable(self):
        return False

    def handle_read(self):
        if self.recv(65536):
            self.send(REPLY)


class ReplyAndClose(Reply):
    def handle_read(self):
        if self.recv(65536):
            self.send(LAST_REPLY)
            self.close()


class ReplyLarge(Reply):
    rest = b''

    def writable(self):
        return bool(self.rest)

    def handle_read(self):
        if self.recv(65536):
            self.rest = memoryview(LARGE_REPLY)

    def handle_write(self):
        self.rest = self.rest[self.send(self.rest) :]


class Pump(ReplyLarge):
    def handle_read(self):
        if self.recv(65536):
            self.rest = CHUNK

    def handle_write(self):
        self.rest = memoryview(self.rest)[self.send(self.rest) :] or CHUNK


class Broadcast(Reply):
    def handle_read(self):
        if self.recv(65536):
            for member in list(asyncore.socket_map.values()):
                if member.connected:
                    member.send(MESSAGE)


class Listener(asyncore.dispatcher):
    def handle_accepted(self, sock, address):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kinds[workload](sock)


kinds = {'keepalive': Reply, 'churn': ReplyAndClose, 'large': ReplyLarge, 'pump': Pump}
kinds |= {'broadcast': Broadcast}
port, workload, _ = arguments()
listener = Listener()
listener.create_socket()
listener.bind(('127.0.0.1', port))
listener.listen(4096)
listening(listener.socket.getsockname())
asyncore.loop(use_poll=True)
