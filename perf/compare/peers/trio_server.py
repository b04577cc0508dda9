"""A server on trio, with serve_listeners and one task of sequential code for each connection, as its tutorial teaches.

SocketStream sets TCP_NODELAY by default.
"""

import trio
from common import CHUNK, LARGE_REPLY, LAST_REPLY, LATE_REPLY, MESSAGE, REPLY, arguments, listening


async def reply(stream):
    while await stream.receive_some(65536):
        await stream.send_all(REPLY)


async def reply_and_close(stream):
    await stream.receive_some(65536)
    await stream.send_all(LAST_REPLY)


async def reply_large(stream):
    while await stream.receive_some(65536):
        await stream.send_all(LARGE_REPLY)


async def pump(stream):
    await stream.receive_some(65536)
    while True:
        await stream.send_all(CHUNK)


async def reply_late(stream):
    await stream.receive_some(65536)
    await trio.sleep(delay)
    await stream.send_all(LATE_REPLY)


members = set()


async def broadcast(stream):
    members.add(stream)
    while await stream.receive_some(65536):
        for member in members:
            await member.send_all(MESSAGE)
    members.discard(stream)


WORKLOADS = {
    'keepalive': reply, 'churn': reply_and_close, 'large': reply_large, 'pump': pump,
    'seed': reply_late, 'pending': reply_late, 'broadcast': broadcast,
}  # fmt: skip


async def handle(stream):
    try:
        await WORKLOADS[workload](stream)
    except trio.BrokenResourceError:
        pass  # the client has disconnected


async def main():
    listeners = await trio.open_tcp_listeners(port, host='127.0.0.1', backlog=4096)
    listening(listeners[0].socket.getsockname())
    await trio.serve_listeners(handle, listeners)


port, workload, delay = arguments()
trio.run(main)
