"""The loop workloads on Tornado: timers, callbacks from the loop and from threads, connecting."""

import socket

import loop_figures
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream


class Timer:
    """A timeout with a method to cancel it."""

    __slots__ = ('handle', 'loop')

    def __init__(self, loop, handle):
        self.loop = loop
        self.handle = handle

    def cancel(self):
        self.loop.remove_timeout(self.handle)


class Loop:
    """The methods that loop_figures calls."""

    def __init__(self):
        self.loop = IOLoop()
        self.call_soon = self.call_soon_threadsafe = self.loop.add_callback
        self.run = self.loop.start
        self.stop = self.loop.stop

    def call_later(self, delay, fn, *args):
        return Timer(self.loop, self.loop.call_later(delay, fn, *args))

    def connect(self, port, request, on_close):
        self.loop.add_callback(self.ask, port, request, on_close)

    async def ask(self, port, request, on_close):
        stream = IOStream(socket.socket())
        await stream.connect(('127.0.0.1', port))
        stream.write(request)
        await stream.read_until_close()
        on_close()


loop_figures.main(Loop)
