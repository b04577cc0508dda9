"""A server on asyncio's protocols and transports, the fastest way to use asyncio. asyncio sets TCP_NODELAY.

Only this folder and `tests/reference/` may import asyncio.
"""

import asyncio

from common import CHUNK, LARGE_REPLY, LAST_REPLY, LATE_REPLY, MESSAGE, REPLY, arguments, listening, server_context


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
kinds |= {'tls': Reply, 'seed': ReplyLate, 'pending': ReplyLate, 'broadcast': Broadcast}


async def serve():
    secure = server_context() if workload == 'tls' else None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(kinds[workload], '127.0.0.1', port, backlog=4096, ssl=secure)
    listening(server.sockets[0].getsockname())
    await server.serve_forever()


if __name__ == '__main__':
    asyncio.run(serve())
