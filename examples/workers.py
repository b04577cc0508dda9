"""An echo server on all processors: several worker processes on one port, each with its own reactor.

    $ python examples/workers.py
    workers of 12345 listening on 127.0.0.1:7007

In another terminal (the first line names the worker that serves you):

    $ nc 127.0.0.1 7007
    worker 12346
    hello
    hello

Signals to the parent (12345):

    kill -HUP 12345     replace all workers, one after another; no client is refused
    kill -TTIN 12345    add a worker; -TTOU removes one
    kill -9 12346       kill a worker; a new worker starts and serves the clients waiting in the queue

Ctrl-C and SIGTERM drain the workers: no new clients are accepted, and the program ends when the last client has
disconnected, or after ten seconds. A second Ctrl-C ends it at once.
"""

import argparse
import os
import sys

from reactor import serve


def on_connect(conn):
    conn.write(b'worker %d\n' % os.getpid())


def on_data(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_drain(conn):
    conn.resume_reading()


def main(r, listeners):
    """Listen on the worker's socket; called in each worker."""
    for sock in listeners:
        r.listen_tcp(None, 0, on_data, on_connect=on_connect, on_drain=on_drain, sock=sock)


def on_start(r, workers):
    """Print the address; called in the parent."""
    print(f'workers of {os.getpid()} listening on 127.0.0.1:{workers.addresses[0][1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    options.add_argument('--workers', type=int)
    args = options.parse_args()
    here = [('127.0.0.1', args.port)]
    sys.exit(serve.run(main, workers=args.workers, listen=here, drain_timeout=10, on_start=on_start))
