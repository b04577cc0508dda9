"""A server on asyncio's protocols and transports, the fastest way to use asyncio. asyncio sets TCP_NODELAY.

Only this folder and `tests/reference/` may import asyncio.
"""

import asyncio

from common import (
    BODY,
    CHUNK,
    HEAD,
    LARGE_REPLY,
    LAST_REPLY,
    LATE_REPLY,
    MESSAGE,
    REPLY,
    REQUEST_END,
    SMALL,
    SMALLS,
    arguments,
    bound,
    deferred,
    listening,
    server_context,
)  # fmt: skip


class Reply(asyncio.Protocol):
    __slots__ = ('transport',)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(REPLY)


class ReplyAndClose(Reply):
    def data_received(self, data):
        self.transport.write(LAST_REPLY)
        self.transport.close()


class ReplyLarge(Reply):
    def data_received(self, data):
        self.transport.write(LARGE_REPLY)


class Pump(Reply):
    def data_received(self, data=None):
        while self.transport.get_write_buffer_size() <= 65536:  # the high-water mark
            self.transport.write(CHUNK)

    resume_writing = data_received  # asyncio calls this at the low-water mark


class ReplyLate(Reply):
    __slots__ = ()

    def data_received(self, data):
        asyncio.get_running_loop().call_later(delay, self.answer)

    def answer(self):
        self.transport.write(LATE_REPLY)
        self.transport.close()


class Echo(Reply):
    def data_received(self, data):
        self.transport.write(data)


class Twice(Reply):
    def data_received(self, data):
        self.transport.write(HEAD)
        self.transport.write(BODY)


class Small(Reply):
    def data_received(self, data):
        for _ in range(SMALLS):
            self.transport.write(SMALL)


class Pipeline(Reply):
    def data_received(self, data):
        for _ in range(data.count(REQUEST_END)):
            self.transport.write(REPLY)


class Datagram(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


class Broadcast(Reply):
    def connection_made(self, transport):
        self.transport = transport
        members.add(transport)

    def connection_lost(self, exc):
        members.discard(self.transport)

    def data_received(self, data):
        for member in members:
            member.write(MESSAGE)


members = set()
port, workload, delay = arguments()
kinds = {'keepalive': Reply, 'churn': ReplyAndClose, 'large': ReplyLarge, 'pump': Pump}
kinds |= {'tls': Reply, 'seed': ReplyLate, 'pending': ReplyLate, 'broadcast': Broadcast, 'defer': ReplyAndClose}
kinds |= {'echo': Echo, 'twice': Twice, 'small': Small, 'pipeline': Pipeline, 'unix': Reply, 'udp': Datagram}


async def serve():
    loop, kind = asyncio.get_running_loop(), kinds[workload]
    if workload == 'udp':
        server, _ = await loop.create_datagram_endpoint(kind, ('127.0.0.1', port))
        listening(server.get_extra_info('sockname'))
    elif workload == 'unix':
        server = await loop.create_unix_server(kind, bound(), backlog=4096)
    elif workload == 'defer':
        server = await loop.create_server(kind, sock=deferred(port), backlog=4096)
    else:
        secure = server_context() if workload == 'tls' else None
        server = await loop.create_server(kind, '127.0.0.1', port, backlog=4096, ssl=secure)
    if workload != 'udp':
        listening(server.sockets[0].getsockname())
    await loop.create_future()  # not server.serve_forever(), with which rloop stops listening


if __name__ == '__main__':
    asyncio.run(serve())
