"""The loop workloads on gevent: timers and callbacks of its hub, and greenlets that connect."""

import gevent
import loop_figures
from gevent import socket
from gevent.event import Event


class Timer:
    """A running timer of libev."""

    __slots__ = ('cancel',)

    def __init__(self, watcher):
        self.cancel = watcher.close


class Loop:
    """The methods that loop_figures calls."""

    def __init__(self):
        self.loop = gevent.get_hub().loop
        self.call_soon = self.loop.run_callback
        self.call_soon_threadsafe = self.loop.run_callback_threadsafe
        self.ended = Event()
        self.stop = self.ended.set

    def call_later(self, delay, fn, *args):
        watcher = self.loop.timer(delay)
        watcher.start(fn, *args)
        return Timer(watcher)

    def run(self):
        self.ended.clear()
        keepalive = self.call_later(3600, int)  # without a timer, gevent reports a deadlock while only a thread runs
        self.ended.wait()
        keepalive.cancel()

    def connect(self, port, request, on_close):
        gevent.spawn(self.ask, port, request, on_close)

    def ask(self, port, request, on_close):
        with socket.create_connection(('127.0.0.1', port)) as sock:
            sock.sendall(request)
            while sock.recv(65536):
                pass
        on_close()


loop_figures.main(Loop)
