"""gevent's own machinery: its hub's timers and callbacks, and greenlets that connect.

Owns what gevent calls these. The rule: as loop_figures asks; see there.
"""

import gevent
import loop_figures
from gevent import socket
from gevent.event import Event


class Timer:
    """A timer of libev that was started."""

    __slots__ = ('cancel',)

    def __init__(self, watcher):
        self.cancel = watcher.close


class Loop:
    """What loop_figures needs of a loop."""

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
        keepalive = self.call_later(3600, int)  # else it takes a wait for a thread for a deadlock
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
