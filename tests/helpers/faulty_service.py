"""A service with one fault, for the tests of the alert rules: `python tests/helpers/faulty_service.py FAULT PATH`.

It prints the port of the service and the port of its metrics. A worker answers whatever it receives, except `hold`,
which leaves the request open. While the file PATH exists, a worker with the fault `reload` does not start.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from reactor import observe, serve

FAULT = sys.argv[1]
# One of two workers has the fault, unless it is a fault of all of them.
WORKERS = 1 if FAULT in ('listen queue', 'drain') else 2
BACKLOG = 8 if FAULT == 'listen queue' else 1024


def on_data(conn, data):
    conn.busy = True
    if data != b'hold':
        conn.write(b'answer')
        conn.busy = False


def fail_to_start(r, server):
    raise RuntimeError('failed because the test requested it')


def fail_to_start_again(r, server):
    if os.path.exists(sys.argv[2]):
        raise RuntimeError('failed because the test requested it')


def hang(r, server):
    r.call_later(1, time.sleep, 60)


def die(r, server):
    r.call_later(1.2, os._exit, 3)  # not within the first second, because the pauses between restarts would grow


def use_up_descriptors(r, server):
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    for _ in range(82 - len(os.listdir('/proc/self/fd'))):
        os.open('/dev/null', os.O_RDONLY)


def accept_nothing(r, server):
    server.pause()


def block_now_and_then(r, server):
    r.call_every(0.05, int)
    r.call_every(0.9, time.sleep, 0.7)


def always_work(r, server):
    time.sleep(0.2)
    r.call_soon(always_work, r, server)


def lose_clients(r, server):
    r.call_every(0.1, lambda: r.connect_tcp(*server.address, on_connect=send_and_reset))


def send_and_reset(conn):
    conn.write(b'hold')
    conn.loop.call_later(0.05, conn.abort)


def raise_now_and_then(r, server):
    r.call_every(0.3, divide)


def divide():
    raise ZeroDivisionError('raised because the test requested it')


def nothing(r, server):
    pass


FAULTS = {
    'no worker': fail_to_start,
    'hang': hang,
    'restarts': die,
    'descriptors': use_up_descriptors,
    'listen queue': accept_nothing,
    'late timers': block_now_and_then,
    'busy loop': always_work,
    'failed requests': lose_clients,
    'exceptions': raise_now_and_then,
    'reload': fail_to_start_again,
    'log': nothing,
    'drain': nothing,
    'down': nothing,
    'none': nothing,
}


def main(r, listeners):
    server = r.listen_tcp(None, 0, on_data, sock=listeners[0], backlog=BACKLOG)
    if listeners.slot == 0 or FAULT == 'no worker':
        r.call_soon(FAULTS[FAULT], r, server) if FAULT == 'busy loop' else FAULTS[FAULT](r, server)


def on_start(r, workers):
    metrics = observe.serve_metrics(r, source=workers.stats)
    print(workers.addresses[0][1], metrics.address[1], flush=True)


if __name__ == '__main__':
    sys.exit(
        serve.run(
            main,
            workers=WORKERS,
            listen=['127.0.0.1:0'],
            on_start=on_start,
            drain_timeout=18,
            lame_duck=0,
            log='text',
            backlog=BACKLOG,
        )
    )
