"""A fixed-rate load: requests at a given rate whatever the server does, over connections that stay open.

Times are measured from when a request was due by the schedule, so they show when a server falls behind. The load
never sleeps, because a late wake-up would be measured too. It therefore needs its own core.
"""

import selectors
import time
from collections import deque

from perf.common.arithmetic import quantile

from .sockets import REQUEST, TIMEOUT, connections


def latencies(port, count, rate, seconds, size):
    """Return the sorted times in seconds, each from the moment when a request was due until its reply.

    `count` connections send `rate` requests a second for `seconds`; each reply has `size` bytes.
    """
    times = []
    with connections(port, count) as socks, selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        free, total, due = deque(socks), int(rate * seconds), 0
        asked, started = {}, time.perf_counter()
        while len(times) < total and time.perf_counter() < started + seconds + TIMEOUT:
            if due < total and free and started + due / rate <= time.perf_counter():
                sock = free.popleft()
                asked[sock] = started + due / rate
                sock.send(REQUEST)
                due += 1
            for key, _ in selector.select(0):
                sock = key.fileobj
                if len(sock.recv(65536)) == size:
                    times.append(time.perf_counter() - asked[sock])
                    free.append(sock)
    if len(times) < total:
        raise TimeoutError(f'{len(times)} answers to {total} requests')
    return sorted(times)


def p50_and_p99(times):
    """Return the median and the 99th percentile of sorted times: given in seconds, returned in microseconds."""
    return {'p50_us': quantile(times, 0.5) * 1e6, 'p99_us': quantile(times, 0.99) * 1e6}
