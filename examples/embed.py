"""Run the reactor inside another event loop that waits for the reactor's descriptor and next deadline.

    $ python examples/embed.py
    listening on 127.0.0.1:7007
    0 connections
    0 connections

In another terminal, each line that you type comes back, and the line `quit` ends the program:

    $ nc 127.0.0.1 7007
    hello
    hello

The other loop here is a plain `select.poll`. A game loop or a GUI toolkit makes the same three calls: `fileno`,
`timeout` and `run_once(0)`.
"""

import argparse
import math
import select
import signal

import reactor


def foreign_loop(r):
    poll = select.poll()
    poll.register(r.fileno(), select.POLLIN)
    while r.run_once(0):  # runs one turn, without waiting; False when the loop was stopped or has nothing to wait for
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
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop).unref()  # with unref(), the handler does not keep the loop running
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    with reactor.Reactor() as r:
        start(r, options.parse_args().port)
        foreign_loop(r)
    print('bye')
