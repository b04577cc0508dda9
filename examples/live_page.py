"""A server whose counters can be watched in a browser, where they are updated every second.

    $ python examples/live_page.py
    look at http://127.0.0.1:9010/
    listening on 127.0.0.1:7020

In another terminal, each line that you type comes back after half a second:

    $ nc 127.0.0.1 7020
    hello
    hello

The line `slow` blocks the loop for 0.2 seconds, and the page then names the callback that blocked it. What happened
around it is in the trace that the page offers as a download. The page has no password, and is served only on loopback;
from another machine, use `ssh -L 9010:127.0.0.1:9010`.
"""

import argparse
import signal
import time

import reactor
from reactor import framing, observe


class Server:
    def __init__(self, r, port, page):
        self.r = r
        server = r.listen_tcp('127.0.0.1', port, self.on_data, on_connect=self.on_connect)
        recorder = observe.FlightRecorder(r)
        page = observe.serve_page(r, port=page, about='examples/live_page.py.', recorder=recorder)
        for signum in signal.SIGINT, signal.SIGTERM:
            r.add_signal_handler(signum, r.stop)
        print(f'look at http://127.0.0.1:{page.address[1]}/', flush=True)
        print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)

    def on_connect(self, conn):
        conn.data = framing.Frames()

    def on_data(self, conn, data):
        conn.data.feed(data)
        self.take(conn)

    def take(self, conn):
        line = conn.data.until(b'\n')
        if line is not None:
            conn.pause_reading()  # handle one line at a time
            conn.busy = True  # on the page, a busy connection counts as a request
            self.r.call_later(0.5, self.slow if line == b'slow' else self.answer, conn, line)

    def slow(self, conn, line):
        time.sleep(0.2)  # never do this in a callback: it blocks all connections
        self.answer(conn, line)

    def answer(self, conn, line):
        if not conn.closed:
            conn.write(line + b'\n')
            conn.busy = False
            conn.resume_reading()
            self.take(conn)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7020)
    options.add_argument('--page', type=int, default=9010)
    args = options.parse_args()
    reactor.run(lambda r: Server(r, args.port, args.page), slow_callback=0.1)
    print('bye')
