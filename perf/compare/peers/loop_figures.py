"""The loop workloads (timers, soon-calls, calls from threads, and clients), measured in the same way on every loop.

A loop object has `call_later(delay, fn, *args)`, which returns an object with `cancel()`, and `call_soon`,
`call_soon_threadsafe`, `run`, `stop` and `connect(port, request, on_close)`. The CPU time of the whole process is
measured, so no loop gains an advantage by sleeping. The program prints one line of JSON.
"""

import argparse
import json
import threading
import time

SPREAD = 100  # number of different deadlines, a millisecond apart
BATCH = 1000  # soon-calls that are pending at the same time
CLIENTS = 100  # connections open at once
IN_FLIGHT = 1000  # calls from a thread that are pending at the same time
REQUEST = b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'


class Countdown:
    """A callable that calls `on_zero` when it is called for the `count`-th time."""

    def __init__(self, count, on_zero):
        self.left = count
        self.on_zero = on_zero

    def __call__(self):
        self.left -= 1
        if not self.left:
            self.on_zero()


def per_second(count, before):
    return count / (time.process_time() - before)


def timers(loop, count, port):
    before = time.process_time()
    for timer in [loop.call_later(60 + i % SPREAD, int) for i in range(count)]:
        timer.cancel()
    loop.call_soon(loop.stop)
    loop.run()
    figures = {'cancelled_per_s': per_second(count, before)}
    before, fired = time.process_time(), Countdown(count, loop.stop)
    kept = [loop.call_later(i % SPREAD / 1000, fired) for i in range(count)]
    loop.run()
    return {**figures, 'fired_per_s': per_second(len(kept), before)}


def soon(loop, count, port):
    def batch(left):
        for _ in range(BATCH):
            loop.call_soon(int)
        loop.call_soon(batch, left - 1) if left > 1 else loop.stop()

    def chain(left):
        loop.call_soon(chain, left - 1) if left > 1 else loop.stop()

    figures = {}
    for name, fn, times in (('batch_per_s', batch, count // BATCH), ('chain_per_s', chain, count)):
        before = time.process_time()
        loop.call_soon(fn, times)
        loop.run()
        figures[name] = per_second(count, before)
    return figures


def threads(loop, count, port):
    room, done = threading.Semaphore(IN_FLIGHT), Countdown(count, loop.stop)

    def called():
        room.release()
        done()

    def calls():
        for _ in range(count):
            room.acquire()
            loop.call_soon_threadsafe(called)

    caller, before = threading.Thread(target=calls), time.process_time()
    loop.call_later(0, caller.start)
    loop.run()
    caller.join()
    return {'calls_per_s': per_second(count, before)}


def client(loop, count, port):
    left, done = count, Countdown(count, loop.stop)

    def connect():
        nonlocal left
        left -= 1
        loop.connect(port, REQUEST, closed)

    def closed():
        connect() if left > 0 else None
        done()

    before = time.process_time()
    for _ in range(min(CLIENTS, count)):
        loop.call_soon(connect)
    loop.run()
    return {'cpu_us_per_connection': 1e6 / per_second(count, before)}


def main(make_loop):
    parser = argparse.ArgumentParser()
    parser.add_argument('--workload', choices=('timers', 'soon', 'threads', 'client'), required=True)
    parser.add_argument('--count', type=int, default=100_000)
    parser.add_argument('--port', type=int, help='port of a server that closes after its reply')
    args = parser.parse_args()
    print(json.dumps(globals()[args.workload](make_loop(), args.count, args.port)), flush=True)
