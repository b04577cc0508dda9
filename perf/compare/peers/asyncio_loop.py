"""The loop workloads on asyncio: timers, soon-calls, calls from threads, connecting."""

import asyncio

import loop_figures


class Client(asyncio.Protocol):
    __slots__ = ('on_close', 'request')

    def __init__(self, request, on_close):
        self.request = request
        self.on_close = on_close

    def connection_made(self, transport):
        transport.write(self.request)

    def connection_lost(self, exc):
        self.on_close()


class Loop:
    """The methods that loop_figures calls."""

    def __init__(self, loop=None):
        self.loop = loop or asyncio.new_event_loop()
        self.call_later = self.loop.call_later
        self.call_soon = self.loop.call_soon
        self.call_soon_threadsafe = self.loop.call_soon_threadsafe
        self.run = self.loop.run_forever
        self.stop = self.loop.stop
        self.tasks = set()

    def connect(self, port, request, on_close):
        connecting = self.loop.create_connection(lambda: Client(request, on_close), '127.0.0.1', port)
        task = self.loop.create_task(connecting)
        self.tasks.add(task)  # the loop itself has only a weak reference to the task
        task.add_done_callback(self.tasks.discard)


if __name__ == '__main__':
    loop_figures.main(Loop)
