"""The reactor's own machinery: timers, soon-calls, calls from threads, connecting.

Owns what each loop workload does. The rule: as loop_figures asks; see there.
"""

import loop_figures

import reactor


class Loop:
    """What loop_figures needs of a loop."""

    def __init__(self):
        self.r = reactor.Reactor()
        self.call_later = self.r.call_later
        self.call_soon = self.r.call_soon
        self.call_soon_threadsafe = self.r.call_soon_threadsafe
        self.stop = self.r.stop

    def run(self):
        self.keepalive = self.r.call_later(3600, int)  # no end before stop()
        self.r.run()
        self.keepalive.cancel()

    def connect(self, port, request, on_close):
        conn = self.r.connect_tcp('127.0.0.1', port, on_close=lambda conn, exc: on_close())
        conn.write(request)


loop_figures.main(Loop)
