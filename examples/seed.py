"""The program that this project began with, translated as literally as Python allows.

    $ python examples/seed.py
    Starting TCP server.
    listening on port 9009
    incoming: 0
    outgoing: 0
    finished: 0
    rate: 0.000 req/s

In another terminal, the answer comes after five seconds:

    $ curl http://127.0.0.1:9009/
    omglolwtf

The figures are printed once a second. Ctrl-C or SIGTERM closes the listener; the program ends when its last connection
has ended.
"""

import argparse
import signal

import reactor

HTTP_RESPONSE = (
    b'HTTP/1.1 200 OK\r\nDate: Wed, 03 Oct 2012 23:43:10 GMT\r\n'
    b'Content-Type: text/plain\r\nContent-Length: 9\r\n\r\nomglolwtf'
)


def tcp_server_test(r, port, delay):
    print('Starting TCP server.', flush=True)
    finished_requests = last_finished = last_time = 0

    def on_data(socket, data):
        r.call_later(delay, answer, socket)

    def answer(socket):
        if not socket.closed:
            socket.write(HTTP_RESPONSE, on_written)

    def on_written(socket):
        nonlocal finished_requests
        socket.close()
        finished_requests += 1

    def on_signal():
        r.clear_signal_handlers()
        listener.close()

    def show_stats():
        nonlocal last_finished, last_time
        stats, now = r.stats(), r.now
        print(f'incoming: {stats.incoming}\noutgoing: {stats.outgoing}\nfinished: {finished_requests}')
        print(f'rate: {(finished_requests - last_finished) / (now - last_time):.3f} req/s\n', flush=True)
        last_finished, last_time = finished_requests, now
        if not listener.closed:
            r.call_later(1, show_stats)

    listener = r.listen_tcp(None, port, on_data)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, on_signal)
    print(f'listening on port {listener.address[1]}', flush=True)
    show_stats()


if __name__ == '__main__':
    options = argparse.ArgumentParser()
    options.add_argument('--port', type=int, default=9009)
    options.add_argument('--delay', type=float, default=5)
    args = options.parse_args()
    reactor.run(lambda r: tcp_server_test(r, args.port, args.delay))
    print('TCP server exited.')
