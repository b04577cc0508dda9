"""A server with a window to look in: its figures in a browser, drawn again every second.

Run it:    python examples/live_page.py                  (--port 7020 --page 9010)
Look:      http://127.0.0.1:9010/
Use it:    nc 127.0.0.1 7020                             a line comes back half a second later; the line "slow" holds up
                                                         everybody, and the page tells which callback that was

The page is for this machine alone: it has no password. From afar, `ssh -L 9010:127.0.0.1:9010` brings it to you.
"""

import argparse
import time

import reactor
from reactor import framing, observe


class Server:
    def __init__(self, r, port, page):
        self.r = r
        server = r.listen_tcp('127.0.0.1', port, self.on_data, on_connect=self.on_connect)
        window = observe.serve_page(r, port=page, about='examples/live_page.py.')
        print(f'look at http://127.0.0.1:{window.address[1]}/', flush=True)
        print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)

    def on_connect(self, conn):
        conn.data = framing.Frames()

    def on_data(self, conn, data):
        conn.data.feed(data)
        self.take(conn)

    def take(self, conn):
        line = conn.data.until(b'\n')
        if line is not None:
            conn.pause_reading()  # one at a time
            conn.busy = True  # a request, as the page counts them: it is owed an answer
            self.r.call_later(0.5, self.slow if line == b'slow' else self.answer, conn, line)

    def slow(self, conn, line):
        time.sleep(0.2)  # what nobody should do in a callback
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
    try:
        reactor.run(lambda r: Server(r, args.port, args.page), slow_callback=0.1)
    except KeyboardInterrupt:
        print('bye')
