"""The server of reactor_chain.py, with its chain of call_soon, on uvloop."""

import asyncio

import uvloop
from common import CHAIN, REPLY, arguments, listening


class Chain(asyncio.Protocol):
    __slots__ = ('loop', 'transport')

    def connection_made(self, transport):
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def data_received(self, data):
        self.loop.call_soon(self.go_on, CHAIN - 1)

    def go_on(self, left):
        if left:
            self.loop.call_soon(self.go_on, left - 1)
        else:
            self.transport.write(REPLY)


async def main():
    server = await asyncio.get_running_loop().create_server(Chain, '127.0.0.1', port)
    listening(server.sockets[0].getsockname())
    await server.serve_forever()


port, _, _ = arguments()
uvloop.run(main())
