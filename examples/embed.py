"""The reactor inside a foreign loop, which asks for its descriptor and its next deadline and gives it single turns.

Run it:    python examples/embed.py        (--port 7007)
Use it:    nc 127.0.0.1 7007               and type: it comes back; Ctrl-C here ends it

The foreign loop is a plain `select.poll`; that of a game or a toolkit takes its place in the same three lines.
"""

import argparse
import math
import select

import reactor


def foreign_loop(r):
    poll = select.poll()
    poll.register(r.fileno(), select.POLLIN)
    while r.run_once(0):  # a turn that does not wait; False: nothing is left to wait for
        seconds = r.timeout()
        poll.poll(None if seconds is None else math.ceil(seconds * 1000))


def start(r, port):
    def on_data(conn, data):
        conn.write(data)
        if data.strip() == b'quit':
            conn.close()
            server.close()
            ticks.cancel()

    def tick():
        print(f'{server.open_connections} connections', flush=True)

    server = r.listen_tcp('127.0.0.1', port, on_data)
    ticks = r.call_every(0.5, tick)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    with reactor.Reactor() as r:
        start(r, options.parse_args().port)
        try:
            foreign_loop(r)
        except KeyboardInterrupt:
            print('bye')
