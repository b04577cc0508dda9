"""The loop workloads on this reactor: timers, soon-calls, calls from threads, connecting."""

import loop_figures

import reactor


class Loop:
    """The methods that loop_figures calls."""

    def __init__(self):
        self.r = reactor.Reactor()
        self.call_later = self.r.call_later
        self.call_soon = self.r.call_soon
        self.call_soon_threadsafe = self.r.call_soon_threadsafe
        self.stop = self.r.stop

    def run(self):
        self.keepalive = self.r.call_later(3600, int)  # the timer keeps run() from returning before stop()
        self.r.run()
        self.keepalive.cancel()

    def connect(self, port, request, on_close):
        conn = self.r.connect_tcp('127.0.0.1', port, on_close=lambda conn, exc: on_close())
        conn.write(request)


loop_figures.main(Loop)
