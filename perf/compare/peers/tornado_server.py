"""A server on Tornado, with one coroutine for each connection, like the example in Tornado's documentation.

It uses TCPServer and IOStream. A write is not awaited where it is enough that the bytes are sent in order.
"""

from common import CHUNK, LARGE_REPLY, LAST_REPLY, LATE_REPLY, MESSAGE, REPLY, arguments, listening
from tornado.gen import sleep
from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer


async def reply(stream):
    while True:
        await stream.read_bytes(65536, partial=True)
        stream.write(REPLY)


async def reply_and_close(stream):
    await stream.read_bytes(65536, partial=True)
    stream.write(LAST_REPLY)
    stream.close()


async def reply_large(stream):
    while True:
        await stream.read_bytes(65536, partial=True)
        await stream.write(LARGE_REPLY)


async def pump(stream):
    await stream.read_bytes(65536, partial=True)
    while True:
        await stream.write(CHUNK)


async def reply_late(stream):
    await stream.read_bytes(65536, partial=True)
    await sleep(delay)
    await stream.write(LATE_REPLY)
    stream.close()


members = set()


async def broadcast(stream):
    members.add(stream)
    stream.set_close_callback(lambda: members.discard(stream))
    while True:
        await stream.read_bytes(65536, partial=True)
        for member in members:
            member.write(MESSAGE)


class Server(TCPServer):
    async def handle_stream(self, stream, address):
        stream.set_nodelay(True)
        try:
            await WORKLOADS[workload](stream)
        except StreamClosedError:
            pass


WORKLOADS = {
    'keepalive': reply, 'churn': reply_and_close, 'large': reply_large, 'pump': pump,
    'seed': reply_late, 'pending': reply_late, 'broadcast': broadcast,
}  # fmt: skip
port, workload, delay = arguments()
sockets = bind_sockets(port, '127.0.0.1', backlog=4096)
Server().add_sockets(sockets)
listening(sockets[0].getsockname())
IOLoop.current().start()
